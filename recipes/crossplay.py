"""Do agents of separate trainings understand each other? Their returns in each other's company.

    python -m recipes.crossplay runs/cooperative/vmas.navigation/mappo-none/seed1 .../seed2 .../seed3

Takes the newest checkpoint of each run; runs may differ in seed, algorithm, loss and networks, but not in the task.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import torch
import tyro
from tensordict.nn import TensorDictModuleBase

from envs import make_env
from recipes import cooperative
from recipes.cooperative_config import Config
from recipes.stored_config import stored_config
from suite.checkpoint import Checkpoints
from suite.config import check_positive, run_cli
from suite.crossplay import cross_play, summary, write
from suite.run import MemoryRun, restoring

SAME = ("task", "task_options", "max_steps", "truncate", "team_reward")  # what makes a game and its returns


def load(path: str, cfg: Config, device: str) -> TensorDictModuleBase:
    """The policy of a run's newest checkpoint, without exploration; CheckpointError if there is none that fits."""
    state = Checkpoints(Path(path) / "checkpoints").load()
    # the run's trainer is built again, with an evaluator: it has the policy that the run evaluated
    cfg = dataclasses.replace(cfg, device=device, evaluations=1, eval_episodes=1, resume=None, compile=False,
                              cuda_graphs=False)
    trainer = cooperative.make_trainer(cfg, MemoryRun())
    with restoring(path):
        trainer.policy.load_state_dict(state["policy"])
    return trainer.evaluate.lowered.policy


def check(paths: Sequence[str], configs: Sequence[Config]) -> None:
    """ValueError unless all play the same game."""
    for name in SAME:
        first, *others = (getattr(cfg, name) for cfg in configs)
        for path, value in zip(paths[1:], others, strict=True):
            if value != first:
                raise ValueError(f"runs that play together need the same {name}: {paths[0]} has {first!r}, {path} has "
                                 f"{value!r}")


def short_names(paths: Sequence[str]) -> list[str]:
    """The paths without the folders that all of them share, at either end."""
    parts = [Path(path).resolve().parts for path in paths]
    while min(map(len, parts)) > 1 and len({part[0] for part in parts}) == 1:
        parts = [part[1:] for part in parts]
    while min(map(len, parts)) > 1 and len({part[-1] for part in parts}) == 1:
        parts = [part[:-1] for part in parts]
    return ["/".join(part) for part in parts]


def crossplay(runs: tyro.conf.Positional[tuple[str, ...]], *, episodes: int = 96, sampled: bool = False,
              seed: int = 2_000_000, device: str = "cpu", out: str = "runs/crossplay", task: str | None = None) -> None:
    """Play every run's agents with every other run's, one among the others in each place.

    Args:
        runs: run folders, at least two, of the same task.
        episodes: per pair, rounded up so that each place gets as many.
        sampled: sample actions instead of taking the most probable ones.
        seed: of the episodes and of sampled actions.
        device: cpu, cuda or cuda:<n>.
        out: folder of crossplay.csv and crossplay.png.
        task: the runs' own, to be repeated only if it imports a module (Gymnasium's module:Name).
    """
    check_positive({"episodes": episodes})
    resolved = [Path(path).resolve() for path in runs]
    if len(set(resolved)) < max(2, len(runs)):
        raise ValueError(f"cross-play needs at least two run folders, each given once, got {list(runs)}")
    configs = [stored_config(Config, path, task=task) for path in runs]
    if task not in (None, configs[0].task):
        raise ValueError(f"--task only repeats the runs' own task {configs[0].task!r}, got {task!r}")
    check(runs, configs)
    policies = [load(path, each, device) for path, each in zip(runs, configs, strict=True)]
    cfg = configs[0]
    new_env = partial(make_env, cfg.task, seed=seed, device=device, max_steps=cfg.max_steps, truncate=cfg.truncate,
                      **cfg.task_options)
    n_agents = new_env(num_envs=1).n_agents
    episodes = -(-episodes // n_agents) * n_agents
    returns = cross_play(new_env(num_envs=episodes), policies, seed=seed, deterministic=not sampled,
                         team=cfg.team_reward)
    table, figure = write(returns, short_names(runs), out)
    own, mixed = summary(returns)
    how = "sampled" if sampled else "greedy"
    print(f"self-play   {own:.3f}\ncross-play  {mixed:.3f}  ({how}, {episodes} episodes per pair, one agent among "
          f"{n_agents - 1} of another run)\ntable       {table}\nfigure      {figure}")


def main() -> None:
    """The command line."""
    torch.set_num_threads(1)
    tyro.cli(crossplay, prog="python -m recipes.crossplay")


if __name__ == "__main__":
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    run_cli(main)
