"""Tasks with hybrid actions: ``make_env("hybrid/platform", num_envs=4096)``.

``hybrid/[family].[name]``, such as ``hybrid/vmas.navigation``, gives agents that are moved by forces modes in their
place (`envs.hybrid.modes`).

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
                truncate: bool = True, levels: int | None = None, **options: Any) -> BatchedEnv:
    """N copies of the task ``name``; ``options`` are those of its maker.

    Args:
        levels: make it a task with discrete actions, in which every parameter takes one of that many values.

    Raises:
        ValueError: unknown name or option; lists what is allowed.
    """
    if levels is not None:
        from envs.hybrid.discretised import Discretised

        return Discretised(make_hybrid(name, num_envs=num_envs, device=device, seed=seed, max_steps=max_steps,
                                       truncate=truncate, **options), levels)
    if "." in name:
        from envs.hybrid.modes import make_modes

        return make_modes(name, num_envs=num_envs, device=device, seed=seed, max_steps=max_steps, truncate=truncate,
                          **options)
    if name not in TASKS:
        raise ValueError(f"unknown hybrid task {name!r}; choose from {sorted(TASKS)}, or write '[family].[name]' for a "
                         "task whose agents are moved by forces, as in 'vmas.navigation'" + suggestion(name, TASKS))
    module, _, function = TASKS[name].partition(":")
    make: Callable[..., BatchedEnv] = getattr(import_module(module), function)
    return make(name, num_envs=num_envs, device=device, seed=seed, max_steps=max_steps, truncate=truncate, **options)
