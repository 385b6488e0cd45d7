"""Tasks with hybrid actions: ``make_env("hybrid/platform", num_envs=4096)``.

The rules are those of the programs that HyAR (Li et al., ICLR 2022, arXiv 2109.05490) and its baselines were compared
on, equal to them step by step from the same state with the same draws; what is a defect there is reproduced by default,
because the published numbers include it, and an option repairs it.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from typing import Any

import torch

from envs import suggestion
from envs.base import BatchedEnv

TASKS = {  # name: where it is made
    "platform": "envs.hybrid.platform:make_platform",
    "goal": "envs.hybrid.goal:make_goal",
    "hard_goal": "envs.hybrid.goal:make_hard_goal",
    "catch_point": "envs.hybrid.point_mass:make_catch_point",
    "simple_move": "envs.hybrid.point_mass:make_simple_move",
    **{f"hard_move-{n}": "envs.hybrid.point_mass:make_hard_move" for n in (4, 6, 8, 10)},
    **{f"actuators-{n}": "envs.hybrid.actuators:make_actuators" for n in (4, 6, 8, 10)},
    "moving": "envs.hybrid.moving:make_moving",
    "sliding": "envs.hybrid.moving:make_sliding",
}


def make_hybrid(name: str, *, num_envs: int, device: torch.device | str, seed: int, max_steps: int | None,
                truncate: bool = True, **options: Any) -> BatchedEnv:
    """N copies of the task ``name``; ``options`` are those of its maker.

    Raises:
        ValueError: unknown name or option; lists what is allowed.
    """
    if name not in TASKS:
        raise ValueError(f"unknown hybrid task {name!r}; choose from {sorted(TASKS)}" + suggestion(name, TASKS))
    module, _, function = TASKS[name].partition(":")
    make: Callable[..., BatchedEnv] = getattr(import_module(module), function)
    return make(name, num_envs=num_envs, device=device, seed=seed, max_steps=max_steps, truncate=truncate, **options)
