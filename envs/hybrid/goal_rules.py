"""The rules of Goal and Hard Goal as pure functions of tensors; see `envs.hybrid.goal`.

Numbers may be of any float dtype; metres, and speeds in metres per sub-step. The attacked half of the pitch is
[0, 20] x [-15, 15], its goal line is x = 20. Bodies are in the order player, keeper, ball.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from envs.hybrid.macro import Move, Ran, run_sub_steps

PLAYER, KEEPER, BALL = range(3)
KICK_TO, SHOOT, SHOOT_TOO = range(3)
LENGTH, HALF_WIDTH = 20.0, 15.0  # of the half that is played on
POST, DEPTH = 7.01, 2.44  # half the width of the goal, how far it reaches behind the line
AREA = (14.5, 9.16)  # where the goal area begins, half its width
RATES, SIZES, NOISES = (0.006, 0.006, 0.027), (0.9, 0.9, 0.4), (0.1, 0.1, 0.05)  # of the three bodies
MAX_SPEEDS, DECAYS = (1.0, 1.0, 2.7), (0.4, 0.4, 0.94)  # the first also bounds what one sub-step adds to a speed
KICKABLE, CATCHABLE, INERTIA, MAX_POWER = 1.6, 2.0, 5.0, 100.0
RUN_POWER, KEEPER_POWER, SAVE_POWER = 10.0, 8.0, 20.0  # of the player, of the keeper, of a keeper at a shot's line
CLOSE, SLOW = math.pi / 8, 0.1  # an angle to run at; a speed at which a ball that was kicked to somewhere lies there
BEHIND = 0.4  # metres behind the goal line that a shot aims at
TIME_LIMIT, SUB_STEPS = 100, 1000  # macro steps of an episode; sub-steps that no macro step is known to reach
SCORE = 50.0
CHANNELS = 17  # numbers of a row that a sub-step works on
PER_SUB_STEP = 6  # uniform numbers: three for the player, three for the keeper
INTERVALS = ((-1.0, -0.6), (-0.6, -0.2), (0.2, 0.2), (0.2, 0.6), (0.6, 1.0))  # of Hard Goal's shots, as published
FIXED_INTERVALS = (*INTERVALS[:2], (-0.2, 0.2), *INTERVALS[3:])
PAIRS = ((PLAYER, KEEPER), (PLAYER, BALL), (KEEPER, BALL))
STILL = 1.0 - DECAYS[BALL]  # what a ball travels with the speed v is v / STILL

LOW = (0.0, -15.0, -1.0, -1.0, -math.pi) * 2 + (0.0, -15.0, -3.0, -3.0, -1.0, -1.0, -POST)  # of observations
HIGH = (20.0, 15.0, 1.0, 1.0, math.pi) * 2 + (20.0, 15.0, 3.0, 3.0, 1.0, 1.0, 2 * POST)

Pair = Sequence[Tensor]  # x and y of a place or a vector, or the numbers of noise


class Goal(NamedTuple):
    """N rows: places and velocities [N, 3, 2] of player, keeper and ball, where player and keeper face [N, 2] in rad.

    ``time`` int64 [N] counts macro steps.
    """

    place: Tensor
    velocity: Tensor
    facing: Tensor
    time: Tensor


class Outcome(NamedTuple):
    """A macro step: the next state, reward [N], whether the episode is over and a goal was shot, and how it ran."""

    state: Goal
    reward: Tensor
    over: Tensor
    success: Tensor
    ran: Ran


# ---------------------------------------------------------------------- starts and actions

def start(uniform: Tensor) -> Goal:
    """Starts from uniform numbers [N] in [0, 1): the player is on the left side with the ball and faces the goal."""
    y = HALF_WIDTH * (2.0 * uniform - 1.0)
    player = torch.stack([torch.zeros_like(y), y], -1)
    facing = torch.atan2(-y, torch.full_like(y, LENGTH))
    reach = KICKABLE - (1e-12 if y.dtype == torch.float64 else 1e-5)  # rounding must not take the ball away
    ball = player + reach * torch.stack([facing.cos(), facing.sin()], -1)
    keeper = _guard(ball)
    ahead = ball - keeper
    place = torch.stack([player, keeper, ball], 1)
    return Goal(place, torch.zeros_like(place), torch.stack([facing, torch.atan2(ahead[:, 1], ahead[:, 0])], -1),
                torch.zeros_like(y, dtype=torch.int64))


def _guard(ball: Tensor) -> Tensor:
    """Where the keeper starts [N, 2]: on the line from the ball [N, 2] to the middle of the goal, in the goal area."""
    x, y = ball.unbind(-1)
    slope = -y / (LENGTH - x)
    offset = y - slope * x
    side = torch.where(y < -AREA[1], -AREA[1], AREA[1])
    at = torch.where(x < AREA[0], x, (side - offset) / slope).clamp(AREA[0], LENGTH)
    return torch.stack([at, (slope * at + offset).clamp(-AREA[1], AREA[1])], -1)


def harder(choice: Tensor, scaled: Tensor, intervals: tuple[tuple[float, float], ...]) -> tuple[Tensor, Tensor]:
    """Hard Goal's action as one of Goal: ``choice`` int64 [N] of 11, ``scaled`` [N, 2] in [-1, 1].

    Choice 0 kicks to a place; 1 to 5 and 6 to 10 are the two shots, each at one interval of the goal, from its upper
    end at -1 to its lower end at 1.
    """
    low, high = scaled.new_tensor(intervals)[(choice - 1) % len(intervals)].unbind(-1)
    first = scaled[:, 0] * ((low - high) / 2.0) + (low + high) / 2.0
    return ((choice + len(intervals) - 1) // len(intervals),
            torch.stack([torch.where(choice == 0, scaled[:, 0], first), scaled[:, 1]], -1))


def aim(choice: Tensor, scaled: Tensor, *, fixed_kick_to: bool) -> Tensor:
    """Where the ball is to go, [N, 2] in metres, from ``scaled`` [N, 2] in [-1, 1].

    A kick-to goes to the place (p0, p0), as published, or with ``fixed_kick_to`` to (p0, p1).
    """
    share = (scaled.clamp(-1.0, 1.0) + 1.0) / 2.0
    # the published programs hold the bounds of actions in single precision
    low, width = (torch.tensor(v, dtype=torch.float32).item() for v in (-POST, 2 * POST))
    place = torch.stack([40.0 * share[:, 0], 30.0 * share[:, 1] - 15.0], -1)
    if not fixed_kick_to:
        place = place[:, :1].expand(-1, 2)
    shot = torch.stack([torch.full_like(share[:, 0], LENGTH + BEHIND), (low + width * share[:, 0]).clamp(-POST, POST)],
                       -1)
    return torch.where((choice == KICK_TO).unsqueeze(-1), place, shot)


# ---------------------------------------------------------------------- a macro step

def advance(state: Goal, choice: Tensor, scaled: Tensor, move: Move, keys: Tensor, *,
            fixed_kick_to: bool = False) -> Outcome:
    """One macro step of all rows; at the time limit nothing moves any more, and the episode is over.

    Args:
        choice: int64 [N]: 0 kick to a place, 1 and 2 shoot. ``scaled``: [N, 2], its parameters in [-1, 1].
        move: a masked `sub_step` with numbers that are made of ``keys`` [D, N]; see `run_sub_steps`.
    """
    time = state.time + 1
    late = time >= TIME_LIMIT
    target = aim(choice, scaled, fixed_kick_to=fixed_kick_to)
    work = torch.cat([state.place.flatten(1), state.velocity.flatten(1), state.facing, target,
                      (choice == KICK_TO).to(target.dtype).unsqueeze(-1)], -1).t().contiguous()
    ran = run_sub_steps(move, work, keys, active=~late, limit=SUB_STEPS)
    rows = ran.work.t()
    place, velocity = rows[:, :6].reshape(-1, 3, 2), rows[:, 6:12].reshape(-1, 3, 2)
    keeper, ball = place[:, KEEPER].unbind(-1), place[:, BALL].unbind(-1)
    scored = _in_goal(ball) & ~late
    over = _is_over(keeper, ball) | late
    reward = torch.where(scored, SCORE, torch.where(over, -goal_distance(place[:, BALL]), 0.0))
    return Outcome(Goal(place, velocity, rows[:, 12:14].contiguous(), time), reward, over, scored, ran)


def goal_distance(ball: Tensor) -> Tensor:
    """How far balls [N, 2] are from the goal, [N]; below it, behind the line, 14.02 too much, as published."""
    x, y = ball.unbind(-1)
    beside = (y.abs() - POST).clamp(min=0.0)
    before = torch.where(y.abs() > POST, torch.hypot(LENGTH - x, beside), LENGTH - x)
    return torch.where(x < LENGTH, before, torch.where(y < -POST, POST - y, beside))


def _in_goal(ball: Pair) -> Tensor:
    return (ball[0] >= LENGTH) & (ball[0] <= LENGTH + DEPTH) & (ball[1].abs() <= POST)


def _is_over(keeper: Pair, ball: Pair) -> Tensor:
    """Whether the ball is in the goal, with the keeper, or out, bool [M]."""
    held = _squared(_away(keeper, ball)) < CATCHABLE**2
    return held | (ball[0] > LENGTH) | (ball[0] < 0.0) | (ball[1].abs() > HALF_WIDTH) | _in_goal(ball)


# ---------------------------------------------------------------------- a sub-step; every tensor is [M]
# Coordinates are tensors of their own, and nothing is changed in place: a compiled sub-step is one loop over the rows.

def sub_step(work: Tensor, uniform: Tensor) -> tuple[Tensor, Tensor]:
    """One sub-step of all rows, and who goes on, bool [M].

    Args:
        work: [17, M]: the places, velocities and facing of the state; the ball's target; 1 for a kick-to.
        uniform: numbers [6, M] in [0, 1): of the angle and of the speed in x and y, for the player (or the ball that it
            kicks), then for the keeper.
    """
    rows, noise = work.unbind(), torch.sub(2.0 * uniform, 1.0).unbind()
    player, keeper, ball, player_v, keeper_v, ball_v = (rows[i:i + 2] for i in range(0, 12, 2))
    facing, _, *target, is_kick_to = rows[12:]
    facing, player_v, ball_v = _play_ball(player, ball, facing, player_v, ball_v, target, noise[:3])
    keeper_facing, power = _keep(keeper, ball, ball_v)
    keeper_v = _pushed(keeper_v, power, keeper_facing, noise[3:], KEEPER)
    places = [_sum(at, v) for at, v in ((player, player_v), (keeper, keeper_v), (ball, ball_v))]
    velocities = [_times(v, decay) for v, decay in zip((player_v, keeper_v, ball_v), DECAYS, strict=True)]
    places, velocities = _collide(places, velocities)
    player, keeper, ball = places
    lies = (_squared(velocities[BALL]) <= SLOW**2) & (_squared(_away(player, ball)) <= KICKABLE**2)
    going = ~(_is_over(keeper, ball) | (lies & (is_kick_to != 0.0)))
    return torch.stack([*player, *keeper, *ball, *velocities[PLAYER], *velocities[KEEPER], *velocities[BALL], facing,
                        keeper_facing, *target, is_kick_to]), going


def _play_ball(player: Pair, ball: Pair, facing: Tensor, player_v: Pair, ball_v: Pair, target: Pair,
               noise: Pair) -> tuple[Tensor, Pair, Pair]:
    """The player kicks a ball within its reach, else turns to it, else runs: facing and both velocities."""
    ahead = _away(player, ball)
    distance = _squared(ahead)
    far = distance > KICKABLE**2
    turn = _wrapped(torch.atan2(ahead[1], ahead[0]) - facing)
    close = turn.abs() < CLOSE
    slowed = turn / (1.0 + INERTIA * _squared(player_v).sqrt())
    ran, runs = _pushed(player_v, RUN_POWER, facing, noise, PLAYER), far & close
    player_v = tuple(torch.where(runs, new, old) for new, old in zip(ran, player_v, strict=True))
    given = (*player, *ball_v, *target, *noise, distance, turn)
    if _picks_rows(far):  # kicks are rare
        rows = (~far).nonzero().squeeze(-1)
        if len(rows):
            kicked = _kicked(*(x.index_select(0, rows) for x in given))
            ball_v = tuple(old.index_copy(0, rows, new) for new, old in zip(kicked, ball_v, strict=True))
    else:
        ball_v = tuple(torch.where(far, old, new) for new, old in zip(_kicked(*given), ball_v, strict=True))
    return torch.where(far & ~close, facing + slowed, facing), player_v, ball_v


def _kicked(x: Tensor, y: Tensor, vx: Tensor, vy: Tensor, to_x: Tensor, to_y: Tensor, noise0: Tensor, noise1: Tensor,
            noise2: Tensor, distance: Tensor, turn: Tensor) -> Pair:
    """Velocity of balls that players at (x, y) kick to their targets: with less power from aside or from farther away.

    ``distance`` of the ball is squared; ``turn`` is the angle by which the player does not face it.
    """
    wanted = STILL * (to_x - x) - vx, STILL * (to_y - y) - vy
    ease = 1.0 - 0.25 * turn.abs() / math.pi - 0.25 * distance.sqrt() / KICKABLE
    power = (_squared(wanted).sqrt() / (ease * RATES[BALL])).clamp(max=MAX_POWER) * ease
    return _pushed((vx, vy), power, torch.atan2(wanted[1], wanted[0]), (noise0, noise1, noise2), BALL)


def _keep(keeper: Pair, ball: Pair, ball_v: Pair) -> Pair:
    """Where the keeper turns and its power: to where the ball will lie, or to the nearest point of its way to goal."""
    end = tuple(at + v / STILL for at, v in zip(ball, ball_v, strict=True))
    way = _away(ball, end)
    slope = way[1] / way[0]  # of a ball that moves along the goal line: not finite, and then nothing below is True
    offset = ball[1] - slope * ball[0]
    at_goal = LENGTH * slope + offset
    shot = (end[0] > LENGTH) & (at_goal.abs() <= POST + CATCHABLE) & (slope != 0.0)
    across = -1.0 / slope
    foot_x = (keeper[1] - across * keeper[0] - offset) / (slope - across)
    ahead = _away(keeper, (torch.where(shot, foot_x, end[0]), torch.where(shot, slope * foot_x + offset, end[1])))
    return torch.atan2(ahead[1], ahead[0]), torch.where(shot, SAVE_POWER, KEEPER_POWER).to(slope.dtype)


def _pushed(velocity: Pair, power: Tensor | float, angle: Tensor, noise: Pair, body: int) -> Pair:
    """Velocity after a push; of the three numbers of noise in [-1, 1], one turns the push by a share of its angle.

    The other two add to the velocity, in proportion to the speed.
    """
    angle = (1.0 + NOISES[body] * noise[0]) * angle
    power, most, blur = power * RATES[body], MAX_SPEEDS[body], NOISES[body] * _squared(velocity).sqrt()
    return tuple((v + (power * part + blur * n).clamp(-most, most)).clamp(-most, most)
                 for v, part, n in zip(velocity, (angle.cos(), angle.sin()), noise[1:], strict=True))


def _collide(places: list[Pair], velocities: list[Pair]) -> tuple[list[Pair], list[Pair]]:
    """Bodies that overlap are moved apart, and their velocities turn round; one pair after the other."""
    if not _picks_rows(places[0][0]):
        return _moved_apart(places, velocities)
    hit = [_squared(_away(places[a], places[b])) < (SIZES[a] + SIZES[b]) ** 2 for a, b in PAIRS]
    rows = (hit[0] | hit[1] | hit[2]).nonzero().squeeze(-1)  # few
    if not len(rows):
        return places, velocities
    some = _moved_apart(*([tuple(x.index_select(0, rows) for x in pair) for pair in pairs]
                          for pairs in (places, velocities)))
    return tuple([tuple(x.index_copy(0, rows, y) for x, y in zip(old, new, strict=True))
                  for old, new in zip(olds, news, strict=True)]
                 for olds, news in zip((places, velocities), some, strict=True))


def _moved_apart(places: list[Pair], velocities: list[Pair]) -> tuple[list[Pair], list[Pair]]:
    places, velocities = list(places), list(velocities)
    for a, b in PAIRS:
        between = _away(places[a], places[b])
        distance = _squared(between).sqrt()
        overlap = SIZES[a] + SIZES[b] - distance
        share = torch.where(overlap > 0.0, overlap / (2.0 * distance).clamp(min=1e-12), 0.0)
        shift, sign = _times(between, share), torch.where(overlap > 0.0, -1.0, 1.0).to(distance.dtype)
        places[a], places[b] = _away(shift, places[a]), _sum(places[b], shift)
        velocities[a], velocities[b] = _times(velocities[a], sign), _times(velocities[b], sign)
    return places, velocities


def _picks_rows(like: Tensor) -> bool:
    """Whether it pays to find the few rows that something happens to: not where it waits for a device or a graph."""
    return like.device.type == "cpu" and not torch.compiler.is_compiling()


def _sum(a: Pair, b: Pair) -> Pair:
    return a[0] + b[0], a[1] + b[1]


def _away(a: Pair, b: Pair) -> Pair:
    """From ``a`` to ``b``."""
    return b[0] - a[0], b[1] - a[1]


def _times(a: Pair, factor: Tensor | float) -> Pair:
    return a[0] * factor, a[1] * factor


def _squared(vector: Pair) -> Tensor:
    """Squared length."""
    return torch.addcmul(vector[0] * vector[0], vector[1], vector[1])


def _wrapped(angle: Tensor) -> Tensor:
    """The same angles in [-pi, pi]."""
    return angle - 2.0 * math.pi * torch.round(angle / (2.0 * math.pi))


# ---------------------------------------------------------------------- what is seen

def observe(state: Goal) -> Tensor:
    """What the player sees, [N, 17], scaled to [-1, 1]; angles are not wrapped and may be beyond it.

    Place, velocity and angle of the player, then of the keeper, place and velocity of the ball; the direction from the
    keeper to the ball; where on the goal line the keeper stands, seen from the ball.
    """
    (player, keeper, ball), (own, theirs, rolling) = state.place.unbind(1), state.velocity.unbind(1)
    away = ball - keeper
    direction = away / torch.hypot(away[:, :1], away[:, 1:]).clamp(min=1e-12)
    slope = away[:, 1] / away[:, 0]
    shadow = (LENGTH * slope + (ball[:, 1] - slope * ball[:, 0])).clamp(-POST, 2 * POST)
    edge = torch.where(keeper[:, 1] < ball[:, 1], -POST, POST).to(shadow.dtype)
    shadow = torch.where(away[:, 0] == 0.0, edge, shadow)
    raw = torch.cat([player, own, state.facing[:, :1], keeper, theirs, state.facing[:, 1:], ball, rolling, direction,
                     shadow.unsqueeze(-1)], -1)
    low, high = (torch.tensor(x, dtype=torch.float32, device=raw.device).to(raw.dtype) for x in (LOW, HIGH))
    return 2.0 * (raw - low) / (high - low) - 1.0
