"""Moving and Sliding: drive to a target in a fenced square, and stop there (gym-hybrid, Thomas Hirtz).

The rules are functions of tensors of any float type, in the units of that package. What differs: Sliding's direction of
motion survives a reset there; here it starts at zero, which nothing can tell, because the body is at rest. The limit of
200 steps belongs to the rules: step 201 costs 1 and terminates.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from envs import check_options
from envs.compiling import backend_of
from envs.hybrid.base import Step
from envs.hybrid.point_drawing import draw_point
from envs.hybrid.pure_rules import PureRules

DT, BRAKE, MAX_ACCELERATION, MAX_TURN = 0.005, 0.1, 0.5, math.pi / 2
RADIUS, FIELD, SPREAD = 0.1, 1.0, 0.9  # of the target; half sides of the field, and of where targets lie
PENALTY, LIMIT, FULL = 0.001, 200, 2 * math.pi
ACCELERATE, TURN, BRAKING = 0, 1, 2


class Mover(NamedTuple):
    """N bodies: position [2, N], speed [N], direction of the nose, in [0, 2 pi], and of the motion [N] (rad),
    target [2, N], steps taken [N]. In Moving both directions are the same.
    """

    position: Tensor
    speed: Tensor
    heading: Tensor
    drift: Tensor
    target: Tensor
    age: Tensor


# ---------------------------------------------------------------------- rules

def start(uniform: Tensor) -> Mover:
    """New episodes from unit draws [N, 6]: target x, y, one that is not used, agent x, y, and heading."""
    draws = uniform.t()
    target, position, heading = SPREAD * (2 * draws[:2] - 1), FIELD * (2 * draws[3:5] - 1), 2 * math.pi * draws[5]
    zero = torch.zeros_like(heading)
    return Mover(position, zero, heading, zero, target, zero)


def see(limit: int, state: Mover) -> Tensor:
    """Observations [N, 10]: x, y, speed, cosine and sine of the heading, target x, y, distance, whether it is in
    reach, share of ``limit`` used.
    """
    away = distance(state)
    return torch.stack([*state.position, state.speed, state.heading.cos(), state.heading.sin(), *state.target, away,
                        (away <= RADIUS).to(away.dtype), state.age / limit], -1)


def distance(state: Mover) -> Tensor:
    """How far [N] the target is."""
    x, y = state.target - state.position
    return (x * x + y * y).sqrt()  # hypot costs four times as much, to be right beyond 1e19


def settle(limit: int, before: Mover, after: Mover) -> Step:
    """What the step from ``before`` to ``after`` pays, and whether it ends the episode.

    Standing still in the target pays 1 and is success; leaving the field, or step ``limit`` + 1, costs 1; the rest pays
    what the distance became smaller, minus 0.001.
    """
    after = after._replace(age=before.age + 1)
    was, now = distance(before), distance(after)
    success = (now < RADIUS) & (after.speed == 0)
    x, y = after.position.abs() > FIELD
    lost = (x | y | (after.age > limit)) & ~success
    reward = torch.where(lost, -1.0, was - now - PENALTY + success)
    return Step(after, reward, success | lost, success)


def moving(state: Mover, choice: Tensor, param: Tensor) -> Step:
    """One step of Moving. ``param`` [N] in the package's units: choice 0 accelerates by half of it, in [0, 1]; 1 turns
    by pi/2 times it, in [-1, 1]; 2 brakes and does not read it. Values outside are clipped.
    """
    gain, turn = _amounts(param)
    speed = torch.where(choice == ACCELERATE, state.speed + gain, _braked(state.speed, choice))
    heading = _turned(state.heading, turn, choice)
    return settle(LIMIT, state, _glide(state._replace(speed=speed, heading=heading, drift=heading)))


def sliding(state: Mover, choice: Tensor, param: Tensor) -> Step:
    """One step of Sliding: acceleration along the nose adds to a velocity that keeps its direction; see `moving`."""
    gain, turn = _amounts(param)
    apart = state.drift - state.heading
    along, across = gain + state.speed * apart.cos(), state.speed * apart.sin()
    pushed, braked = choice == ACCELERATE, _braked(state.speed, choice)
    # by the law of cosines: a push straight back by the whole speed leaves exactly none, which success asks for
    squared = gain.square() + state.speed.square() + 2 * gain * state.speed * apart.cos()
    speed = torch.where(pushed, squared.clamp_min(0.0).sqrt(), braked)
    drift = torch.where(pushed, state.heading + torch.atan2(across, along), state.drift)
    drift = torch.where((choice == BRAKING) & (speed == 0), state.heading, drift)
    heading = _turned(state.heading, turn, choice)
    return settle(LIMIT, state, _glide(state._replace(speed=speed, heading=heading, drift=drift)))


def _amounts(param: Tensor) -> tuple[Tensor, Tensor]:
    return MAX_ACCELERATION * param.clamp(0.0, 1.0), MAX_TURN * param.clamp(-1.0, 1.0)


def _braked(speed: Tensor, choice: Tensor) -> Tensor:
    return torch.where(choice == BRAKING, (speed - BRAKE).clamp_min(0.0), speed)


def _turned(heading: Tensor, turn: Tensor, choice: Tensor) -> Tensor:
    """Modulo a full turn, of which the modulo operator costs a fifth of a step: nobody turns by more than one."""
    turned = heading + turn
    turned = torch.where(turned < 0, turned + FULL, torch.where(turned >= FULL, turned - FULL, turned))
    return torch.where(choice == TURN, turned, heading)


def _glide(state: Mover) -> Mover:
    path = DT * state.speed * torch.stack([state.drift.cos(), state.drift.sin()])
    return state._replace(position=state.position + path)


# ---------------------------------------------------------------------- environments

class Driving(PureRules):
    """N copies of a task in the fenced square; made by `make_moving`, `make_sliding` and `make_actuators`.

    Observations [N, 1, 10]: `see`. ``rules`` takes states, choices and parameters [N, P] in [-1, 1]; ``limit`` is the
    number of steps that they allow, which ``max_steps`` None takes, and the one more that costs 1.
    """

    def __init__(self, rules: Callable[[Mover, Tensor, Tensor], Step], limit: int, *, param_sizes: tuple[int, ...],
                 num_envs: int, seed: int, device: torch.device | str, max_steps: int | None, truncate: bool,
                 backend: str | None):
        super().__init__(num_envs=num_envs, seed=seed, device=device, max_steps=max_steps or limit + 1,
                         observation_dim=10, param_sizes=param_sizes, truncate=truncate)
        self._set_rules(rules, partial(see, limit), backend)

    def _begin(self, rows: int) -> Mover:
        return start(torch.rand(rows, 6, generator=self.generator, device=self.device))

    def render_frame(self, env_index: int = 0, size: tuple[int, int] | None = None) -> np.ndarray:
        """Picture of one row, uint8 [H, W, 3]: the body with its nose and motion, the target, the fence.

        Raises:
            ValueError: no such row.
        """
        position, speed, heading, drift, target, _ = (x.tolist() for x in self.row(env_index))
        return draw_point(position, target, RADIUS, size, motion=(speed * math.cos(drift), speed * math.sin(drift)),
                          tail=20 * DT, heading=heading, fenced=True)


def scaled(rules: Callable[[Mover, Tensor, Tensor], Step], state: Mover, choice: Tensor, params: Tensor) -> Step:
    """``rules`` with parameters [N, 1] in [-1, 1]: each choice's own range stretched to it, as HyAR's wrapper does.

    The range of the acceleration is [0, 1], that of the turn [-1, 1] already.
    """
    param = params[:, 0]
    return rules(state, choice, torch.where(choice == ACCELERATE, (param + 1) / 2, param))


# ---------------------------------------------------------------------- the tasks

def make_moving(name: str, *, num_envs: int, device: torch.device | str, seed: int, max_steps: int | None,
                truncate: bool = True, compile: bool | str = False, **options: Any) -> Driving:
    """N copies of Moving: accelerate (one parameter), turn (one), brake (none).

    Args:
        max_steps: None takes 201, the step at which the rules end the episode anyhow, at a cost of 1; both flags are
            set then. A smaller number only truncates. ``truncate``: see `BatchedEnv`.
        compile: True compiles the rules as one graph, a word names the backend of ``torch.compile``.

    Raises:
        ValueError: an option that is not among these, or an unknown backend.
    """
    return _make(moving, name, options, num_envs=num_envs, device=device, seed=seed, max_steps=max_steps,
                 truncate=truncate, backend=backend_of(compile))


def make_sliding(name: str, *, num_envs: int, device: torch.device | str, seed: int, max_steps: int | None,
                 truncate: bool = True, compile: bool | str = False, **options: Any) -> Driving:
    """N copies of Sliding: as `make_moving`, but the body keeps its direction of motion when it turns."""
    return _make(sliding, name, options, num_envs=num_envs, device=device, seed=seed, max_steps=max_steps,
                 truncate=truncate, backend=backend_of(compile))


def _make(rules: Callable[..., Step], name: str, options: dict[str, Any], **common: Any) -> Driving:
    check_options(f"hybrid/{name}", options, ["compile"])
    return Driving(partial(scaled, rules), LIMIT, param_sizes=(1, 1, 0), **common)
