"""Hard Move with one parameter per actuator: the body jumps by the sum of its actuators, in the square of Moving.

This is the variant of DI-engine's gym-hybrid, and what the text of the HyAR paper (arXiv 2109.05490) describes; the
published numbers were measured on ``hard_move-n``. There is no velocity. The limit of 25 steps belongs to the rules:
step 26 costs 1 and terminates.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor

from envs import check_options
from envs.compiling import backend_of
from envs.hybrid.base import Step
from envs.hybrid.moving import Driving, Mover, settle
from envs.hybrid.point_mass import actuators, switches

LIMIT = 25


def jump(sets: Tensor, directions: Tensor, state: Mover, choice: Tensor, params: Tensor) -> Step:
    """One step: go by ``params`` [N, n] along those of ``directions`` [2, n] that ``sets`` [K, n] has for the choice.

    The nose points along the arc tangent of y / x, which is what the original shows.
    """
    position = state.position + directions @ (sets[choice] * params).t()
    heading = (position[1] / position[0]).atan()
    return settle(LIMIT, state, state._replace(position=position, heading=heading, drift=heading))


def make_actuators(name: str, *, num_envs: int, device: torch.device | str, seed: int, max_steps: int | None,
                   truncate: bool = True, compile: bool | str = False, **options: Any) -> Driving:
    """N copies of ``actuators-n``: 2^n sets of actuators, whose distances are n parameters, the same place for each.

    ``param_mask`` [2^n, n] says which actuators a choice has: parameters of the others are not read, so here a choice's
    own parameters do not all come first. Other arguments and errors: see `envs.hybrid.moving.make_moving`; the limit of
    the rules is 25, and ``max_steps`` None takes 26.
    """
    check_options(f"hybrid/{name}", options, ["compile"])
    n = int(name.rpartition("-")[2])
    sets, device = switches(n), torch.device(device)
    rules = partial(jump, sets.to(device, torch.float32), actuators(n).t().to(device, torch.float32))
    env = Driving(rules, LIMIT, param_sizes=(n,) * len(sets), num_envs=num_envs, device=device, seed=seed,
                  max_steps=max_steps, truncate=truncate, backend=backend_of(compile))
    env.param_mask = sets.to(device)
    return env
