"""The config of a run folder, which somebody else may have written, read back into a recipe's Config."""

from __future__ import annotations

from pathlib import Path
from typing import TypeVar, get_type_hints

from envs.kinds import fits, named
from suite.config import from_plain
from suite.run import stored_run

T = TypeVar("T")


def stored_config(config: type[T], path: str | Path, *, task: str | None) -> T:
    """The Config that a run folder holds.

    Args:
        task: as typed on this command line, or None. A stored task that imports a module must be the same: what is
            loaded is data, and names no code to run.

    Raises:
        ValueError: no run folder, another recipe's, a value of a wrong kind, or a task to be typed; names the file.
    """
    stored, file = stored_run(path)["config"], Path(path) / "config.json"
    try:
        cfg = from_plain(config, stored)
    except ValueError as error:
        raise ValueError(f"{file}: {error}") from None
    for name, kind in get_type_hints(config, include_extras=True).items():
        if not fits(getattr(cfg, name), kind):
            raise ValueError(f"{file}: {name} is {getattr(cfg, name)!r}, but must be {named(kind)}")
    if imports_module(cfg.task) and task != cfg.task:
        raise ValueError(f"{file} has the task {cfg.task!r}, which imports a module by its name, and a file alone may "
                         f"not do that: if you trust it, repeat it with --task {cfg.task}")
    return cfg


def imports_module(task: str) -> bool:
    """Whether making the environment imports a module that the task names: Gymnasium's 'module:Name'."""
    return ":" in task
