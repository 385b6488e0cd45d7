"""The rules of Platform as pure functions of tensors; see `envs.hybrid.platform`.

Rows are the last dimension. Numbers may be of any float dtype: the only equality that the rules ask for, a player
standing at the height 40, is between numbers that a landing has set. Lengths are in the simulator's units, times in
seconds.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from envs.hybrid.macro import Move, Ran, run_sub_steps

RUN, HOP, LEAP = range(3)
LENGTH = 1035.0  # of the way, from the first platform's left end to the last one's right end
LEFTS, WIDTHS = (0.0, 475.0, 985.0), (250.0, 275.0, 50.0)  # of the platforms; their top is at TOP
GAPS = (225.0, 235.0, 0.0)  # behind each platform
TOP, WIDE, HIGH = 40.0, 20.0, 30.0  # height of the platforms, sides of the player and of an enemy
MIDDLES = (350.0, 850.0)  # inside the gaps: only one platform is within reach on either side
DT, GRAVITY = 0.05, 9.8
RUN_SUB_STEPS, SUB_STEPS = 20, 150  # of a run; more than any jump takes
PARAMETERS = (30.0, 720.0, 430.0)  # the largest parameter of each action; the least is 0
TAKE_OFF = (0.0, 35.0, 25.0)  # upward speed that an action asks for
MAX_PUSH = (600.0, 4000.0)  # acceleration, in x and y
MAX_SPEED = (100.0, 200.0)  # of the player, in x and y
MAX_RUN, ENEMY_SPEED, DRAG = 70.0, 30.0, 0.99
NOISE = 0.025  # of a speed in one sub-step
CHANNELS = 12  # numbers of a row that a sub-step works on


class Platform(NamedTuple):
    """N rows of float tensors [N]: the player's place and velocity, the places and velocities of the two enemies."""

    x: Tensor
    y: Tensor
    vx: Tensor
    vy: Tensor
    enemy1_x: Tensor
    enemy1_vx: Tensor
    enemy2_x: Tensor
    enemy2_vx: Tensor


class Outcome(NamedTuple):
    """A macro step: the next state, reward [N], whether the episode is over and the end was reached, and how it ran."""

    state: Platform
    reward: Tensor
    over: Tensor
    success: Tensor
    ran: Ran


def start(rows: int, *, dtype: torch.dtype = torch.float32, device: torch.device | str = "cpu") -> Platform:
    """Where every episode begins: the player at the left end, each enemy at the right end of its platform."""
    first = (0.0, TOP, 0.0, 0.0, LEFTS[0] + WIDTHS[0] - WIDE, -ENEMY_SPEED, LEFTS[1] + WIDTHS[1] - WIDE, -ENEMY_SPEED)
    return Platform(*torch.tensor(first, dtype=dtype, device=device).unsqueeze(-1).repeat(1, rows))


def parameter(choice: Tensor, scaled: Tensor) -> Tensor:
    """The parameter of each row's action in the simulator's units, from ``scaled`` [N] in [-1, 1]."""
    return (scaled.clamp(-1.0, 1.0) + 1.0) / 2.0 * _table(PARAMETERS, choice, scaled)


def advance(state: Platform, choice: Tensor, scaled: Tensor, jump: Tensor, move: Move, keys: Tensor) -> Outcome:
    """One macro step of all rows.

    Args:
        choice: int64 [N]: 0 run, 1 hop, 2 leap. ``scaled``: [N], the parameter in [-1, 1].
        jump: normal numbers [2, N] of take-offs.
        move: a masked `sub_step` with numbers that are made of ``keys`` [D, N]; see `run_sub_steps`.
    """
    begin = state.x
    runs = choice == RUN
    work = torch.stack([*state, *push(state, choice, parameter(choice, scaled), jump),
                        torch.where(runs, RUN_SUB_STEPS, 0).to(begin.dtype), stands(state.x, state.y).to(begin.dtype)])
    ran = run_sub_steps(move, work, keys, active=torch.ones_like(runs), limit=SUB_STEPS)
    after = Platform(*ran.work[:8])
    return Outcome(after, (after.x - begin) / LENGTH, is_over(after), after.x >= LENGTH, ran)


def push(state: Platform, choice: Tensor, param: Tensor, jump: Tensor) -> tuple[Tensor, Tensor]:
    """Acceleration in x and y, within their limits, that an action gives to a player who stands on a platform."""
    up = _table(TAKE_OFF, choice, param)
    ahead = (param / (2.0 * up / GRAVITY + 1.0) - state.vx).clamp(min=-MAX_PUSH[0])
    ahead = torch.minimum(ahead, MAX_SPEED[1] - up)
    runs = choice == RUN
    ax = torch.where(runs, param, ahead - jump[0].abs()) / DT
    ay = torch.where(runs, 0.0, up - jump[1].abs()) / DT
    return ax.clamp(-MAX_PUSH[0], MAX_PUSH[0]), ay.clamp(-MAX_PUSH[1], MAX_PUSH[1])


def stands(x: Tensor, y: Tensor) -> Tensor:
    """Whether a player at these places is on a platform, bool."""
    left, right = _platform(x)
    return (y == TOP) & (x >= left - WIDE) & (x <= right)


def is_over(state: Platform) -> Tensor:
    """Whether the player fell, touches an enemy or is at the end, bool [N]."""
    near = torch.minimum((state.x - state.enemy1_x).abs(), (state.x - state.enemy2_x).abs()) < WIDE
    return (state.y < TOP) | (near & (state.y < TOP + HIGH)) | (state.x >= LENGTH)


def sub_step(work: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
    """One sub-step of all rows, and who goes on, bool [M].

    Args:
        work: [12, M]: the state; the push of a player who stands, in x and y; the sub-steps that a run still has, 0 of
            a jump; whether the player stands.
        noise: normal numbers [2, M]: for the player, for the active enemy.
    """
    (x, y, vx, vy), (push_x, push_y, left), standing = work[:4], work[8:11], work[11] != 0
    vx = (vx + torch.where(standing, push_x * DT, 0.0) - (NOISE * noise[0]).abs()).clamp(0.0, MAX_SPEED[0])
    vx = torch.where(standing, vx.clamp(max=MAX_RUN), vx)
    vy = (vy + torch.where(standing, push_y * DT, -GRAVITY * DT)).clamp(-MAX_SPEED[1], MAX_SPEED[1])
    enemies = _patrol(x > LEFTS[1], work[4:6], work[6:8], noise[1])
    x, y, vx, vy = _land((x + vx * DT).clamp(0.0, LENGTH), y + vy * DT, vx * DRAG, vy)
    standing = stands(x, y)
    going = ((left > 1.0) | (~standing & (left <= 0.0))) & ~is_over(Platform(x, y, vx, vy, *enemies))
    return torch.stack([x, y, vx, vy, *enemies, push_x, push_y, left - 1.0, standing.to(x.dtype)]), going


def _patrol(second: Tensor, enemy1: Tensor, enemy2: Tensor, noise: Tensor) -> tuple[Tensor, ...]:
    """Place and velocity of both enemies [2, M] after a sub-step: only the one on the player's side moves."""
    x, vx = torch.where(second, enemy2, enemy1)
    left = torch.where(second, LEFTS[1], 0.0).to(x.dtype)
    right = torch.where(second, LEFTS[1] + WIDTHS[1] - WIDE, WIDTHS[0] - WIDE).to(x.dtype)
    vx = torch.where((left < x) & (x < right), vx, -vx) + NOISE * noise
    vx = vx.clamp(-ENEMY_SPEED, ENEMY_SPEED)
    x = torch.minimum(torch.maximum(x + vx * DT, left), right)
    return (torch.where(second, enemy1[0], x), torch.where(second, enemy1[1], vx),
            torch.where(second, x, enemy2[0]), torch.where(second, vx, enemy2[1]))


def _land(x: Tensor, y: Tensor, vx: Tensor, vy: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Who would be inside a platform is put on top of it, or beside it if that is nearer.

    In one sub-step a player falls by at most 10, and the episode is over below the top: nobody comes from below.
    """
    left, right = _platform(x)
    inside = (y < TOP) & (x > left - WIDE) & (x < right)
    before, behind = x < left, x > right - WIDE
    aside = torch.where(before, left - WIDE, torch.where(behind, right, x))
    beside = inside & (before | behind) & ((x - aside).abs() < TOP - y)
    above = inside & ~beside
    return (torch.where(beside, aside, x), torch.where(above, TOP, y), torch.where(inside, 0.0, vx),
            torch.where(above, 0.0, vy))


def _platform(x: Tensor) -> tuple[Tensor, Tensor]:
    """Left and right end of the only platform that can be within reach of each place."""
    first, second = x < MIDDLES[0], x < MIDDLES[1]
    ends = [left + width for left, width in zip(LEFTS, WIDTHS, strict=True)]
    return (torch.where(first, LEFTS[0], torch.where(second, LEFTS[1], LEFTS[2])),
            torch.where(first, ends[0], torch.where(second, ends[1], ends[2])))


def observe(state: Platform) -> Tensor:
    """What the player sees, [N, 9] in [-1, 1]: itself, the active enemy, its platform and what follows."""
    second = state.x > LEFTS[1]
    enemy_x = torch.where(second, state.enemy2_x, state.enemy1_x)
    enemy_vx = torch.where(second, state.enemy2_vx, state.enemy1_vx)
    at = (state.x >= LEFTS[1]).long() + (state.x >= LEFTS[2]).long()
    ahead = [(WIDTHS[0], WIDTHS[1], GAPS[0], LEFTS[0], 0.0), (WIDTHS[1], WIDTHS[2], GAPS[1], LEFTS[1], 0.0),
             (WIDTHS[2], 0.0, 0.0, LEFTS[2], 0.0)]
    scale = (max(WIDTHS), max(WIDTHS), max(GAPS), LENGTH, 1.0)
    features = state.x.new_tensor(ahead) / state.x.new_tensor(scale)
    own = [(state.x + WIDE) / (LENGTH + WIDE), state.vx / MAX_SPEED[0], enemy_x / LENGTH,
           (enemy_vx + ENEMY_SPEED) / (2.0 * ENEMY_SPEED)]
    return 2.0 * torch.cat([torch.stack(own, -1), features[at]], -1) - 1.0


def _table(values: tuple[float, ...], index: Tensor, like: Tensor) -> Tensor:
    return like.new_tensor(values)[index]
