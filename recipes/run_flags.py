"""The flags of running that all recipes have: where results go, evaluation, checkpoints, logs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class RunFlags:
    """Fields of a recipe's Config, which follow its own; a recipe may have other defaults."""

    run_dir: str | None = None
    """Run folder; None: runs/<recipe>/<task>/<method>/seed<seed>."""
    resume: str | None = None
    """Continue the run in this folder, with its config; --frames extends it."""
    overwrite: bool = False
    """Replace a run folder that exists."""
    evaluations: int = 5
    """Evaluations over the run, besides the one before training; 0 for none. They change nothing in the training."""
    eval_episodes: int = 32
    """Episodes per evaluation, greedy and sampled."""
    eval_starts: Literal["same", "fresh"] = "same"
    """Every evaluation of a run plays the same initial states and draws, or fresh ones (which follow from the seed and
    the frames so far)."""
    checkpoint_every: int = 10
    """Iterations between checkpoints, besides the last; 0: only at the end."""
    keep_checkpoints: int = 2
    """How many checkpoints to keep, at least 2: of a broken one the one before is used."""
    loggers: tuple[Literal["csv", "tensorboard", "wandb"], ...] = ("csv", "tensorboard")
    """Where metrics go."""
    video: bool = True
    """Write a GIF of one episode at the end, where the task can be drawn."""
    quiet: bool = False
    """No progress bar."""
    threads: int = 1
    """Intra-op threads on a CPU."""
    compile: bool = False
    """Compile policy and losses."""
    fast_collector: bool = True
    """False collects with TorchRL's own Collector (same batches, slower; its runs cannot be resumed)."""
