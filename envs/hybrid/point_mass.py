"""Catch Point, Hard Move and Simple Move: a point with momentum in an open plane, pushed towards a landmark.

The rules are functions of tensors of any float type; the programs that HyAR (arXiv 2109.05490) was measured with use
float64 and agree to rounding, with float32 to about six digits. Differences from them: the runner's limit of 25 or 30
steps is a truncation, as there (it is never stored as an end); Catch Point ends by an explicit flag instead of by a
reward of zero.
"""

from __future__ import annotations

import math
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

DT, DRAG, FORCE = 0.1, 0.25, 2.0  # seconds; share of the velocity lost in a step; of a full push, the mass is 1
REACH, PRIZE = 0.2, 20.0  # distance that counts as arrived; what it pays
MISSES = 10  # catches that may fail; the next failure is paid still, and the step behind it ends the episode
CATCH_LIMIT, MOVE_LIMIT = 25, 30


class Point(NamedTuple):
    """N points: position, velocity and landmark [2, N], failed catches [N] (Catch Point alone counts them)."""

    position: Tensor
    velocity: Tensor
    landmark: Tensor
    misses: Tensor


# ---------------------------------------------------------------------- rules

def start(uniform: Tensor) -> Point:
    """New episodes from unit draws [N, 4]: agent x, y and landmark x, y, each in [-1, 1]; at rest."""
    position, landmark = (2 * uniform - 1).t().split(2)
    return Point(position, torch.zeros_like(position), landmark, torch.zeros_like(position[0]))


def see(state: Point) -> Tensor:
    """Observations [N, 4]: velocity, and where the landmark is from here."""
    return torch.stack([*state.velocity, *(state.landmark - state.position)], -1)


def push(state: Point, force: Tensor) -> tuple[Point, Tensor]:
    """Move under ``force`` [2, N]; the new state and its squared distance [N] to the landmark."""
    velocity = torch.add((1 - DRAG) * state.velocity, force, alpha=DT)
    position = torch.add(state.position, velocity, alpha=DT)
    x, y = state.landmark - position
    return state._replace(position=position, velocity=velocity), x * x + y * y


def catch(state: Point, choice: Tensor, param: Tensor) -> Step:
    """One step of Catch Point.

    Choice 0 pushes at the angle pi * ``param`` [N] from the y axis, 1 tries to catch while drifting on. Reward is minus
    the squared distance, and 20 more for a catch within 0.2, which ends the episode as a success. The step behind the
    11th failed catch pays nothing and ends it as a failure.
    """
    catching, angle = choice == 1, math.pi * param
    force = torch.stack([angle.sin(), angle.cos()]) * torch.where(catching, 0.0, FORCE)
    moved, square = push(state, force)
    lost = state.misses > MISSES
    tries, near = catching & ~lost, square <= REACH**2
    caught = tries & near
    reward = (PRIZE * caught - square).masked_fill(lost, 0.0)
    return Step(moved._replace(misses=state.misses + (tries & ~near)), reward, caught | lost, caught)


def move(motions: Tensor, state: Point, choice: Tensor, param: Tensor) -> Step:
    """One step of Hard Move and Simple Move: push by 2 * ``param`` [N] times the choice's column of ``motions`` [2, K].

    Reward is minus the squared distance, and 20 more within 0.2, which ends the episode as a success.
    """
    moved, square = push(state, motions.index_select(1, choice) * (FORCE * param))
    near = square <= REACH**2
    return Step(moved, PRIZE * near - square, near, near)


def actuators(n: int, *, digits: int | None = None) -> Tensor:
    """Directions float64 [n, 2] of n actuators round the body, rounded to ``digits`` if given."""
    angles = [2 * math.pi * i / n for i in range(n)]
    directions = torch.tensor([[math.cos(a), math.sin(a)] for a in angles], dtype=torch.float64)
    return directions if digits is None else directions.round(decimals=digits)


def switches(n: int) -> Tensor:
    """Which of n actuators each of the 2^n choices switches on: bool [2^n, n], the first one in the highest bit."""
    return (torch.arange(2**n).unsqueeze(-1) >> torch.arange(n - 1, -1, -1)) & 1 == 1


def hard_motions(n: int) -> Tensor:
    """Hard Move's table float64 [2^n, 2]: sums of directions, scaled so that the longest has length 1.

    Directions are rounded to three digits first, as the published program has them.
    """
    sums = switches(n).double() @ actuators(n, digits=3)
    return sums / sums.norm(dim=-1).max()


def simple_motions() -> Tensor:
    """Simple Move's table float64 [4, 2]: left, right, down, up."""
    return torch.tensor([[-1.0, 0.0], [1.0, 0.0], [0.0, -1.0], [0.0, 1.0]], dtype=torch.float64)


# ---------------------------------------------------------------------- environments

class PointMass(PureRules):
    """N copies of a point-mass task. Made by `make_catch_point`, `make_hard_move` and `make_simple_move`.

    Observations [N, 1, 4]: `see`. ``motions`` [K, 2] makes it a move task with one parameter per choice; without, it is
    Catch Point, whose second choice has no parameter.
    """

    def __init__(self, motions: Tensor | None, *, num_envs: int, seed: int, device: torch.device | str,
                 max_steps: int, truncate: bool, backend: str | None):
        sizes = (1, 0) if motions is None else (1,) * len(motions)
        super().__init__(num_envs=num_envs, seed=seed, device=device, max_steps=max_steps, observation_dim=4,
                         param_sizes=sizes, truncate=truncate)
        rules = catch if motions is None else partial(move, motions.t().contiguous().to(self.device, torch.float32))
        self.counts_misses = motions is None
        self.periodic = frozenset({(0, 0)}) if motions is None else frozenset()
        self._set_rules(lambda state, choice, params: rules(state, choice, params[:, 0]), see, backend)

    def _begin(self, rows: int) -> Point:
        return start(torch.rand(rows, 4, generator=self.generator, device=self.device))

    def render_frame(self, env_index: int = 0, size: tuple[int, int] | None = None) -> np.ndarray:
        """Picture of one row, uint8 [H, W, 3]: the point, its motion and the landmark's reach, failed catches as dots.

        Raises:
            ValueError: no such row.
        """
        position, velocity, landmark, misses = (x.tolist() for x in self.row(env_index))
        return draw_point(position, landmark, REACH, size, motion=velocity,
                          dots=(misses, MISSES + 1) if self.counts_misses else None)


# ---------------------------------------------------------------------- the tasks

def make_catch_point(name: str, *, num_envs: int, device: torch.device | str, seed: int, max_steps: int | None,
                     truncate: bool = True, compile: bool | str = False, **options: Any) -> PointMass:
    """N copies of Catch Point: move at an angle, or catch; 10 catches may fail.

    Args:
        max_steps: None takes 25. ``truncate``: see `BatchedEnv`.
        compile: True compiles the rules as one graph, a word names the backend of ``torch.compile``.

    Raises:
        ValueError: an option that is not among these, or an unknown backend.
    """
    check_options(f"hybrid/{name}", options, ["compile"])
    return PointMass(None, num_envs=num_envs, seed=seed, device=device, max_steps=max_steps or CATCH_LIMIT,
                     truncate=truncate, backend=backend_of(compile))


def make_hard_move(name: str, *, num_envs: int, device: torch.device | str, seed: int, max_steps: int | None,
                   truncate: bool = True, compile: bool | str = False, **options: Any) -> PointMass:
    """N copies of ``hard_move-n``: 2^n sets of n actuators, each with one signed strength; None takes 30 steps.

    Sets repeat each other: of 16, 64, 256 and 1024 there are 9, 19, 81 and 211 motions, and strength may be negative.
    Other arguments and errors: see `make_catch_point`.
    """
    check_options(f"hybrid/{name}", options, ["compile"])
    return PointMass(hard_motions(int(name.rpartition("-")[2])), num_envs=num_envs, seed=seed, device=device,
                     max_steps=max_steps or MOVE_LIMIT, truncate=truncate, backend=backend_of(compile))


def make_simple_move(name: str, *, num_envs: int, device: torch.device | str, seed: int, max_steps: int | None,
                     truncate: bool = True, compile: bool | str = False, **options: Any) -> PointMass:
    """N copies of Simple Move: left, right, down or up with a signed strength; None takes 30 steps.

    Other arguments and errors: see `make_catch_point`.
    """
    check_options(f"hybrid/{name}", options, ["compile"])
    return PointMass(simple_motions(), num_envs=num_envs, seed=seed, device=device,
                     max_steps=max_steps or MOVE_LIMIT, truncate=truncate, backend=backend_of(compile))
