"""Environments. ``make_env("family/name", ...)`` is the one door; no family is imported before it is asked for."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from difflib import get_close_matches
from importlib import import_module
from inspect import Parameter, signature
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin

import torch

from envs.base import BatchedEnv, check_sizes

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


def check_kinds(task: str, options: Mapping[str, Any], kinds: Mapping[str, Any]) -> None:
    """ValueError for an option of ``task`` whose value is not of its kind, an annotation; any fits one without."""
    for name, value in options.items():
        if not _fits(value, kind := kinds.get(name, Any)):
            words = _words(kind)
            named = " or ".join([", ".join(words[:-1]), *words[-1:]] if words[1:] else words)
            raise ValueError(f"{name} of {task} must be {named}, got {value!r}")


def kinds_of(make: Callable[..., Any]) -> dict[str, Any]:
    """The kind of each parameter: its annotation, else that of its default."""
    try:
        parameters = signature(make, eval_str=True).parameters.values()
    except NameError:  # of another's constructor, whose annotations are for a type checker alone
        return {}
    return {p.name: kind_of(p.default) if p.annotation is Parameter.empty else p.annotation for p in parameters}


def kind_of(default: Any) -> Any:
    """The kind of an option of which its default alone is known; a number may also be one per agent, or no limit."""
    if isinstance(default, (bool, str)):
        return type(default)
    return float | Sequence[float] | None if isinstance(default, (int, float)) else Any


# as in suite.config, which checks losses: neither package imports the other
def _fits(value: Any, kind: Any) -> bool:
    """Whether a value is of an annotated kind; kinds that no option is written with fit always."""
    origin, parts = get_origin(kind), get_args(kind)
    if origin in (Union, UnionType):
        return any(_fits(value, part) for part in parts)
    if origin is Literal:
        return value in parts
    if origin in (list, tuple, Sequence):
        return isinstance(value, (list, tuple)) and all(_fits(part, parts[0]) for part in value)
    if kind in (int, float):
        return isinstance(value, (int, kind)) and not isinstance(value, bool)
    return isinstance(value, kind) if kind in (bool, str, NoneType) else True


def _words(kind: Any) -> list[str]:
    """What may be given for an annotated kind."""
    origin, parts = get_origin(kind), get_args(kind)
    if origin in (Union, UnionType):
        return [word for part in parts for word in _words(part)]
    if origin is Literal:
        return [f"one of {list(parts)}"]
    if origin in (list, tuple, Sequence):
        return ["a list"]
    return {bool: ["True", "False"], int: ["an integer"], float: ["a number"], str: ["a word"]}.get(kind, ["None"])


def suggestion(word: str, words) -> str:
    """'; did you mean ...?' for a near miss, else an empty string."""
    near = get_close_matches(word, list(words), n=1)
    return f"; did you mean {near[0]!r}?" if near else ""
