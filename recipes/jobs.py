"""One run of a published table: what starts or continues it, and what became of it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import NamedTuple

import torch
from tensordict.nn import TensorDictModule
from torch import Tensor

from envs import make_env
from recipes.evaluations import evaluations
from recipes.tables import TABLES
from suite.checkpoint import Checkpoints
from suite.config import parse_cli
from suite.evaluate import Evaluator
from suite.results import append_rows, file_name, read_cell
from suite.specs import ACTION_MASK, OBSERVATION

STOPPED = (128 + signal.SIGINT, 128 + signal.SIGTERM, -signal.SIGTERM)  # ends of runs that were asked to stop


@dataclass(frozen=True)
class Job:
    """One seed of one cell."""

    table: str
    row: str
    task: str
    seed: int
    runs: str
    results: str

    @property
    def folder(self) -> Path:
        """Its run folder."""
        return Path(self.runs) / self.table / file_name(self.row, self.task) / f"seed{self.seed}"

    def finished(self) -> bool:
        """Whether the results hold its final evaluation."""
        table = TABLES[self.table]
        path = Path(self.results) / self.table / f"{file_name(self.row, self.task)}.csv"
        if not path.exists():
            return False
        cell = read_cell(path, table.mode_of(self.task), table.frames_of(self.task))
        return self.seed in cell.runs and self.seed not in cell.incomplete

    def command(self) -> list[str]:
        """What runs it, or continues it; without a checkpoint to continue from it begins anew."""
        table = TABLES[self.table]
        where = ["--run-dir", str(self.folder)]
        if (self.folder / "config.json").exists():
            resumable = Checkpoints(self.folder / "checkpoints").paths()
            where = ["--resume", str(self.folder)] if resumable else [*where, "--overwrite"]
        return [sys.executable, "-m", table.recipe_of(self.row), *table.flags(self.row, self.task), "--seed",
                str(self.seed), *where, "--quiet"]


class Outcome(NamedTuple):
    """What became of a job: whether its results are whole, and a line that says so."""

    done: bool
    message: str


class Processes:
    """The runs in progress, which can all be asked to stop behind a checkpoint; none begins after that."""

    def __init__(self):
        self.running: set[subprocess.Popen] = set()
        self.stopped = False
        self._lock = threading.RLock()  # a second signal may interrupt `stop` itself

    def run(self, command: Sequence[str], log: Path) -> int | None:
        """What the command ends with, on one core and with its output behind that of ``log``; None if asked to stop."""
        with open(log, "a") as file, self._lock:
            if self.stopped:
                return None
            process = subprocess.Popen(command, stdout=file, stderr=subprocess.STDOUT,
                                       env=os.environ | {"OMP_NUM_THREADS": "1"})
            self.running.add(process)
        try:
            return process.wait()
        finally:
            with self._lock:
                self.running.discard(process)

    def stop(self) -> None:
        """Send SIGTERM to what runs; asked twice, runs leave at once."""
        with self._lock:
            self.stopped = True
            for process in self.running:
                process.terminate()


def run_job(job: Job, processes: Processes | None = None) -> Outcome:
    """Run one job in a process of its own and append its evaluations to the results."""
    name = f"{job.row} {job.task} seed {job.seed}"
    if job.finished():
        return Outcome(True, f"{name}: already there")
    log = job.folder.with_suffix(".log")
    log.parent.mkdir(parents=True, exist_ok=True)
    code = (processes or Processes()).run(job.command(), log)
    if code is None:
        return Outcome(False, f"{name}: not begun")
    if found := evaluations(job.folder, job.seed):  # a run that failed stays in the table, marked as incomplete
        append_rows(job.results, job.table, job.row, job.task, found)
    whole, stopped = job.finished(), code in STOPPED
    if whole and (stopped or not code):
        _keep_picture(job)
        return Outcome(True, f"{name}: done")
    if stopped:
        return Outcome(False, f"{name}: stopped, the same command continues it")
    return Outcome(False, f"{name}: {f'failed with {code}' if code else 'ended before its last frame'}, see {log}")


def random_return(table: str, task: str) -> float:
    """Mean return (or success) of uniformly random actions over 256 episodes: the zero of normalised scores."""
    chosen = TABLES[table]
    row = next(iter(chosen.rows))
    recipe = import_module(chosen.recipe_of(row))
    cfg = parse_cli(recipe.configure, recipe.Config, choosers=recipe.CHOOSERS, prog="", args=chosen.flags(row, task))
    env = make_env(task, num_envs=256, seed=0, max_steps=cfg.max_steps, **cfg.task_options)
    specs = [env.full_action_spec[key] for key in env.action_keys]

    def draw(observation: Tensor, allowed: Tensor | None = None) -> tuple[Tensor, ...]:
        if allowed is not None:
            return torch.rand(allowed.shape).masked_fill(~allowed, -1).argmax(-1)
        return tuple(spec.rand() for spec in specs)

    mask = [ACTION_MASK] if ACTION_MASK in env.observation_spec.keys(True, True) else []
    policy = TensorDictModule(draw, in_keys=[OBSERVATION, *mask], out_keys=env.action_keys)
    found = Evaluator(env, policy, seed=0, team=cfg.team_reward).play(deterministic=False)
    return found["success" if chosen.mode_of(task).startswith("success") else "return"]


def _keep_picture(job: Job) -> None:
    pictures = sorted((job.folder / "videos").glob("*.gif"))
    kept = Path(job.results) / job.table / f"{file_name(job.row, job.task)}.gif"
    if pictures and not kept.exists():
        kept.write_bytes(pictures[-1].read_bytes())
