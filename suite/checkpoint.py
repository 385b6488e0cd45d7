"""Checkpoints: one file and its checksum, written aside and renamed; a broken one is named and the one before used.

torch's own format with ``weights_only=True`` is used (tensors, numbers and containers, nothing executed). TorchRL's
``Checkpoint`` stores a directory of memory-mapped leaves without a checksum.
"""

from __future__ import annotations

import hashlib
import os
import pickle
import warnings
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch


class CheckpointError(RuntimeError):
    """No usable checkpoint, or one that could not be written."""


class Checkpoints:
    """The last ``keep`` checkpoints of one process in a folder, newest last.

    Args:
        folder: made if it does not exist.
        rank: process number; every process writes its own file.
        keep: at least 2, so that a broken newest one has a predecessor.
    """

    def __init__(self, folder: Path, *, rank: int = 0, keep: int = 2):
        if keep < 2:
            raise ValueError(f"keep_checkpoints must be at least 2, got {keep}: of a broken one the one before is "
                             "used; give --keep-checkpoints 2")
        self.folder, self.rank, self.keep = Path(folder), rank, keep

    def paths(self) -> list[Path]:
        """Existing checkpoint files, oldest first."""
        return sorted(self.folder.glob(f"*.rank{self.rank}.pt"))

    def save(self, state: dict[str, Any], iteration: int) -> Path:
        """Write a checkpoint; CheckpointError if the disk does not take it (the earlier ones stay untouched)."""
        path = self.folder / f"{iteration:09d}.rank{self.rank}.pt"
        aside = path.with_suffix(".tmp")
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            with open(aside, "wb") as file:
                torch.save(state, file)
                file.flush()
                os.fsync(file.fileno())
            checksum = path.with_suffix(".sha256")
            _write(checksum.with_suffix(".sha256.tmp"), _digest(aside))
            os.replace(checksum.with_suffix(".sha256.tmp"), checksum)
            os.replace(aside, path)
        except (OSError, RuntimeError) as error:
            with suppress(OSError):
                aside.unlink(missing_ok=True)
            kept = self.paths()
            raise CheckpointError(f"could not write {path}: {error}. Still there: "
                                  f"{kept[-1] if kept else 'no checkpoint'}") from error
        until_now = [old for old in self.paths() if old <= path]  # later ones are broken ones
        for old in until_now[: -self.keep]:
            old.unlink()
            old.with_suffix(".sha256").unlink(missing_ok=True)
        return path

    def load(self, iteration: int | None = None) -> dict[str, Any]:
        """The newest checkpoint that is whole (of ``iteration`` if given); broken ones are named in a warning."""
        for path in reversed(self.paths()):
            if iteration is not None and int(path.name.split(".")[0]) != iteration:
                continue
            if problem := broken(path):
                warnings.warn(f"checkpoint {path} is broken ({problem}); trying the one before", stacklevel=2)
                continue
            try:
                return torch.load(path, weights_only=True, map_location="cpu")
            except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError) as error:
                warnings.warn(f"checkpoint {path} is refused ({error}); trying the one before", stacklevel=2)
        raise CheckpointError(f"no whole checkpoint of process {self.rank} in {self.folder}")

    def whole(self) -> list[int]:
        """Iterations whose checkpoint is whole, oldest first."""
        return [int(path.name.split(".")[0]) for path in self.paths() if not broken(path)]


def broken(path: Path) -> str | None:
    """Why a checkpoint cannot be used, or None."""
    checksum = path.with_suffix(".sha256")
    if not checksum.exists():
        return "its checksum is missing"
    return (
        None if checksum.read_text().strip() == _digest(path) else "its checksum does not match: truncated or altered"
    )


def _digest(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _write(path: Path, text: str) -> None:
    with open(path, "w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())


def random_state() -> dict[str, Any]:
    """State of torch's default generators (Python's and NumPy's are used by no training code of the project)."""
    cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []
    return {"cpu": torch.get_rng_state(), "cuda": cuda}


def restore_random_state(state: dict[str, Any]) -> None:
    """Put back what `random_state` returned."""
    torch.set_rng_state(state["cpu"])
    if state["cuda"] and torch.cuda.is_available():
        torch.cuda.set_rng_state_all(state["cuda"])
