"""What every recipe refuses before it begins."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Literal, get_args, get_origin, get_type_hints

from envs.kinds import fits, named
from suite.config import check_choice, check_names
from suite.losses import Loss


def check_words(cfg: Any) -> None:
    """ValueError for a word that a flag does not know."""
    for name, kind in get_type_hints(type(cfg)).items():
        if get_origin(kind) is Literal:
            check_choice(name, getattr(cfg, name), get_args(kind))


def check_options(what: str, given: Mapping[str, Any], made: type[Loss]) -> None:
    """ValueError for an option that a loss or codec does not have, or a value of another kind than its annotation's.

    Without an annotation it is the kind of the default.
    """
    defaults = made.option_defaults()
    if given and not defaults:
        raise ValueError(f"{what} has no options, got {list(given)}")
    check_names(f"option of {what}", given, defaults)
    annotated = get_type_hints(made.__init__)
    for name, value in given.items():
        default = defaults[name]
        kind = annotated.get(name, Any if default is None else type(default))
        if not fits(value, kind):
            such = "" if default is None or get_origin(kind) is Literal else f", such as {default!r}"
            raise ValueError(f"{name} of {what} must be {named(kind)}{such}, got {value!r}")


def check_evaluations(cfg: Any) -> None:
    """ValueError for a flag about evaluations of a run that makes none."""
    if cfg.eval_starts == "fresh" and not cfg.evaluations:
        raise ValueError("--eval-starts fresh is of evaluations, and --evaluations 0 makes none: leave one of them out")


def check_task_options(cfg: Any) -> None:
    """ValueError for a task option that is a flag."""
    for name in {"num_envs", "device", "seed", "max_steps", "truncate"} & cfg.task_options.keys():
        raise ValueError(f"{name} is no task option but a flag of its own: --{name.replace('_', '-')}")


def check_unread(cfg: Any, default: Any, unread: dict[str, str]) -> None:
    """ValueError if a field differs from its default that nobody reads; ``unread`` is {field: who does not}."""
    for name, reader in unread.items():
        if getattr(cfg, name) != getattr(default, name):
            raise ValueError(f"{reader} does not use {name}: leave it at {getattr(default, name)!r}")


def check_resume(cfg: Any, configure: Callable[[dict[str, str]], Any]) -> None:
    """ValueError for a flag that contradicts ``--resume``; ``configure`` gives the config of a stored run."""
    if cfg.resume is None:
        return
    if cfg.overwrite:
        raise ValueError("--resume continues a run and --overwrite replaces it: give one of them")
    if cfg.run_dir != configure({"resume": cfg.resume, "task": cfg.task}).run_dir:
        raise ValueError(f"--resume {cfg.resume} goes on in that folder, so --run-dir {cfg.run_dir} has no use")


def no_resume(cfg: Any) -> str | None:
    """Why a run with this config cannot be resumed, or None."""
    return None if cfg.fast_collector else "TorchRL's collector (fast_collector=False) does not save open episodes"
