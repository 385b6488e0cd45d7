"""What the runs of a table of loss ``moa`` prove: predictions while partners learn, use of the latent, returns.

Numbers are ``{figure: {seed: value}}``, or a statistic over runs with its interval; without runs there are none.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from envs import make_env
from recipes.cooperative import make_trainer
from recipes.cooperative_config import Config
from recipes.jobs import Job
from recipes.stored_config import stored_config
from recipes.tables import TABLES
from suite.checkpoint import Checkpoints
from suite.evaluate import Evaluator
from suite.latent_use import latent_use
from suite.modules.state_model import LATENT
from suite.report import Estimate, bootstrap, iqm, normalised
from suite.results import Table, read_table
from suite.run import MemoryRun, restoring
from suite.state_figures import Series, read_curves

METHOD = "MOA"
METHODS = {"": METHOD, "plain: ": "MOA-plain-x"}  # by the prefix of their figures
CONTROLS = ("MAPPO", "MAPPO-inputs", "MAPPO-matched", "MAPPO-GRU", "MOA-shuffled")
HIDDEN = ("vmas/hidden_leader", "vmas/simple_speaker_listener_pe", "vmas/simple_reference_pe")
DENSE = ("vmas/give_way", "vmas/navigation")
SHUFFLES = 0  # seed of the other episode's latent, and of the episodes: equal for all runs

Numbers = dict[str, dict[str, float | None]]


def run_folders(table: str, runs: str, seeds: int, tasks: Sequence[str] = ()) -> Iterator[tuple[str, int, Path]]:
    """(task, seed, folder) of the method's runs that exist."""
    for task in TABLES[table].tasks:
        for seed in range(1, seeds + 1):
            folder = Job(table, METHOD, task, seed, runs, "").folder
            if (not tasks or task in tasks) and (folder / "config.json").exists():
                yield task, seed, folder


def learning(table: str, runs: str, seeds: int) -> Numbers:
    """Do the models of the others keep up with policies that learn? From the metrics that the runs logged."""
    lowest: dict[int, list[float]] = {}
    better: dict[int, list[bool]] = {}
    for _, seed, folder in run_folders(table, runs, seeds):
        curves = read_curves(folder)
        if "moa/skill" in curves:
            lowest.setdefault(seed, []).append(curves["moa/skill"][1].min())
            better.setdefault(seed, []).append(beats_baselines(curves))
    return {"lowest skill": {str(seed): float(min(x)) for seed, x in lowest.items()},
            "tasks with acc > baselines": {str(k): float(np.mean(x)) for k, x in better.items()}}


def beats_baselines(curves: dict[str, Series]) -> bool:
    """At the last evaluation, acc > max(acc_marginal, acc_repeat)."""
    last = {name: curves[f"moa/{name}"][1][-1] for name in ("acc", "acc_marginal", "acc_repeat")}
    return bool(last["acc"] > max(last["acc_marginal"], last["acc_repeat"]))


def use(table: str, runs: str, seeds: int) -> Numbers:
    """The share of the return that a trained policy loses with another episode's latent, per task with something to
    infer."""
    found: Numbers = {}
    for task, seed, folder in run_folders(table, runs, seeds, HIDDEN):
        found.setdefault(f"{task}: z_use / return", {})[str(seed)] = latent_use_of(folder)["z_use_share"]
    return found


def latent_use_of(folder: Path, episodes: int = 200) -> dict[str, float]:
    """`latent_use` of a run's newest policy, sampled actions."""
    cfg = replace(stored_config(Config, folder, task=None), evaluations=0, eval_starts="same", resume=None)
    trainer = make_trainer(cfg, MemoryRun())
    state = Checkpoints(folder / "checkpoints").load()
    with restoring(folder):
        trainer.load_state_dict(state)

    def evaluator(policy) -> Callable[[], dict[str, float]]:
        env = make_env(cfg.task, num_envs=episodes, seed=SHUFFLES, device=cfg.device, max_steps=cfg.max_steps,
                       truncate=cfg.truncate, **cfg.task_options)
        return Evaluator(env, policy, seed=SHUFFLES, team=cfg.team_reward)

    return latent_use(evaluator, trainer.policy, LATENT, seed=SHUFFLES)


# ---------------------------------------------------------------------- returns


def returns(table: str, results: str) -> Numbers:
    """The method against each control on the tasks with hidden variables, and against MAPPO on dense ones."""
    folder = Path(results) / table
    if not (folder / "table.json").exists():
        return {}
    read, found = read_table(folder), {}
    for prefix, method in METHODS.items():
        for control in CONTROLS:
            found |= {f"{prefix}{name} {control}": value for name, value in compare(read, control, method).items()}
    losses = [relative(read, task) for task in DENSE if {(task, METHOD), (task, CONTROLS[0])} <= read.cells.keys()]
    if losses:
        found["worst difference / |MAPPO|"] = min(losses)
    return {name: {part: None if x is None else float(x) for part, x in estimate._asdict().items()}
            for name, estimate in found.items()}


def compare(table: Table, control: str, method: str = METHOD) -> dict[str, Estimate]:
    """Difference of IQMs of normalised scores, and probability of improvement (Agarwal et al. 2021), over tasks.

    Tasks with a single seed of either count only if there are no others: with one of them nothing has an interval.
    """
    seeds = {task: min(len(table.cells[task, row].runs) for row in (method, control)) for task in HIDDEN
             if {(task, method), (task, control)} <= table.cells.keys()}
    tasks = [task for task in seeds if seeds[task] > 1] or list(seeds)
    scores, _ = normalised(replace(table, tasks=tasks, rows=[method, control]))
    if len(scores) < 2:
        return {}
    strata = [*scores[method], *scores[control]]
    cuts = np.cumsum([len(part) for part in strata])[:-1]

    def pairs(pooled: np.ndarray) -> list[tuple[np.ndarray, np.ndarray]]:
        parts = np.split(pooled, cuts)
        return list(zip(parts[: len(parts) // 2], parts[len(parts) // 2 :], strict=True))

    def difference(pooled: np.ndarray) -> float:
        mine, theirs = (np.concatenate(part) for part in zip(*pairs(pooled), strict=True))
        return iqm(mine) - iqm(theirs)

    return {"IQM - IQM of": bootstrap(strata, difference),
            "P: better than": bootstrap(strata, lambda pooled: np.mean(
                [improvement(*pair) for pair in pairs(pooled)]))}


def improvement(mine: np.ndarray, theirs: np.ndarray) -> float:
    """P(a run of mine returns more than one of theirs), ties counting half."""
    gap = mine[:, None] - theirs
    return float((gap > 0).mean() + 0.5 * (gap == 0).mean())


def relative(table: Table, task: str) -> Estimate:
    """(IQM - IQM of MAPPO) / |IQM of MAPPO| on one task."""
    mine, theirs = (table.cells[task, row].finals for row in (METHOD, CONTROLS[0]))
    n, scale = len(mine), max(abs(float(iqm(theirs))), 1e-8)
    return bootstrap([mine, theirs], lambda pooled: (iqm(pooled[:n]) - iqm(pooled[n:])) / scale)
