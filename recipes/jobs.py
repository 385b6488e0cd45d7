"""One run of a published table: what starts or continues it, and how its evaluations become result rows."""

from __future__ import annotations

import csv
import math
import os
import subprocess
import sys
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path

import torch
from tensordict.nn import TensorDictModule
from torch import Tensor

from envs import make_env
from recipes.tables import TABLES
from suite.config import parse_cli
from suite.evaluate import Evaluator
from suite.results import Evaluation, append_rows, file_name, read_cell
from suite.run import stored_run
from suite.specs import ACTION_MASK, OBSERVATION


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
        """What runs it, or continues it."""
        table = TABLES[self.table]
        where = ["--resume" if (self.folder / "config.json").exists() else "--run-dir", str(self.folder)]
        return [
            sys.executable,
            "-m",
            table.recipe_of(self.row),
            *table.flags(self.row, self.task),
            "--seed",
            str(self.seed),
            *where,
            "--quiet",
        ]


def run_job(job: Job) -> str:
    """Run one job in a process of its own and append its evaluations to the results."""
    if job.finished():
        return f"{job.row} {job.task} seed {job.seed}: already there"
    log = job.folder.with_suffix(".log")
    log.parent.mkdir(parents=True, exist_ok=True)
    with open(log, "a") as file:
        code = subprocess.run(
            job.command(), stdout=file, stderr=subprocess.STDOUT, env=os.environ | {"OMP_NUM_THREADS": "1"}
        ).returncode
    if found := evaluations(job.folder, job.seed):  # a run that failed stays in the table, marked as incomplete
        append_rows(job.results, job.table, job.row, job.task, found)
    if code:
        return f"{job.row} {job.task} seed {job.seed}: failed with {code}, see {log}"
    _keep_picture(job)
    return f"{job.row} {job.task} seed {job.seed}: done"


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


def evaluations(folder: Path, seed: int) -> list[Evaluation]:
    """The evaluations a run wrote, as result rows."""
    scalars = folder / "metrics" / "scalars"
    if not (scalars / "eval" / "return.csv").exists():
        return []
    info = stored_run(folder)

    def scalar(name: str) -> dict[int, float]:
        path = scalars / f"{name}.csv"
        if not path.exists():
            return {}
        with open(path) as file:
            return {int(step): float(value) for step, value in csv.reader(file)}

    sampled, greedy, length, seconds, success, success_sampled = map(scalar, (
        "eval/return", "eval/return_greedy", "eval/length", "time/total", "eval/success", "eval/success_sampled"))
    return [
        Evaluation(
            seed=seed,
            frames=frames,
            seconds=round(seconds.get(frames, 0.0), 1),
            return_sampled=sampled[frames],
            return_greedy=greedy[frames],
            episodes=info["config"]["eval_episodes"],
            length=length[frames],
            commit=info["commit"],
            success=success.get(frames, math.nan),
            success_sampled=success_sampled.get(frames, math.nan),
        )
        for frames in sorted(sampled)
    ]


def _keep_picture(job: Job) -> None:
    pictures = sorted((job.folder / "videos").glob("*.gif"))
    kept = Path(job.results) / job.table / f"{file_name(job.row, job.task)}.gif"
    if pictures and not kept.exists():
        kept.write_bytes(pictures[-1].read_bytes())
