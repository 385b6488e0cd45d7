"""Environments. ``make_env("family/name", ...)`` is the one door; no family is imported before it is asked for."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from difflib import get_close_matches
from importlib import import_module
from inspect import signature
from typing import Any

import torch

from envs.base import BatchedEnv, check_sizes
from envs.kinds import check_kinds, kinds_of

FAMILIES = {
    "vmas": "envs.vmas:make_vmas",
    "particle": "envs.particle:make_particle",
    "pettingzoo": "envs.pettingzoo:make_pettingzoo",
    "gymnasium": "envs.gymnasium:make_gymnasium",
    "foraging": "envs.foraging:make_foraging",
    "warehouse": "envs.warehouse:make_warehouse",
    "hybrid": "envs.hybrid:make_hybrid",
}

SAID_OTHERWISE = ("name", "num_envs", "device", "seed", "max_steps", "truncate", "options")  # than as an option


def make_env(task: str, *, num_envs: int, device: torch.device | str = "cpu", seed: int = 0,
             max_steps: int | None = None, **options: Any) -> BatchedEnv:
    """Make ``num_envs`` copies of ``"family/name"`` as one TorchRL environment.

    Args:
        task: for example ``"vmas/navigation"``, ``"pettingzoo/mpe2.simple_spread_v3"``, ``"gymnasium/CartPole-v1"``.
        max_steps: horizon; None takes the task's own.
        options: options of the family and of the scenario by name.

    Raises:
        ValueError: unknown family, name, option or device, an option's value of another kind than its own, or a size
            that is not positive; lists what is allowed.
    """
    family, _, name = task.partition("/")
    if family not in FAMILIES or not name:
        raise ValueError(f"unknown task {task!r}: write 'family/name' with a family of {sorted(FAMILIES)}"
                         + suggestion(family, FAMILIES))
    check_sizes(num_envs=num_envs, max_steps=max_steps)
    make = _maker(family)
    check_kinds(task, options, kinds_of(make))
    return make(
        name, num_envs=num_envs, device=resolve_device(device), seed=seed, max_steps=max_steps, **options
    )


def _maker(family: str) -> Callable[..., BatchedEnv]:
    module, _, function = FAMILIES[family].partition(":")
    return getattr(import_module(module), function)


def resolve_device(device: torch.device | str) -> torch.device:
    """The device by name; ValueError if it is unknown or not present on this machine."""
    try:
        device = torch.device(device)
    except RuntimeError as error:
        raise ValueError(f"unknown device {device!r}; write 'cpu', 'cuda' or 'cuda:0'") from error
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ValueError(f"device {str(device)!r} was asked for, but no CUDA device is present; use 'cpu'")
    return device


def check_options(task: str, options: Iterable[str], allowed: Iterable[str],
                  make: Callable[..., BatchedEnv] | None = None) -> None:
    """ValueError for an option that ``task`` does not have, naming those of its rules and those that ``make`` has."""
    own = [] if make is None else [name for name in signature(make).parameters if name not in SAID_OTHERWISE]
    known = [*own, *allowed]
    for option in options:
        if option not in known:
            raise ValueError(f"{task} has no option {option!r}; it has {known}" + suggestion(option, known))


def suggestion(word: str, words) -> str:
    """'; did you mean ...?' for a near miss, else an empty string."""
    near = get_close_matches(word, list(words), n=1)
    return f"; did you mean {near[0]!r}?" if near else ""
