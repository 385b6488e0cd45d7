"""Cooperative multi-agent learning: an algorithm and an optional state-modelling loss on any task.

    python -m recipes.cooperative --task vmas/navigation --algorithm mappo --loss none --seed 1
"""

from __future__ import annotations

import dataclasses
import os
import shlex
import warnings

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # spinning OpenMP threads stall a shared CPU; before torch

import torch

from envs import make_env
from envs.whole_episodes import WholeEpisodes
from recipes.checks import check_config, check_used, never_learns, validate
from recipes.compositions import COMPOSITIONS
from recipes.cooperative_config import Config
from recipes.presets import ALGORITHMS, PRESETS, comparable, overrides, usual_algorithm
from recipes.run_checks import check_options, check_resume
from recipes.running import assemble, launch
from recipes.stored_config import stored_config
from suite import distributed
from suite.config import as_flags, check_choice, check_names, parse_cli, run_cli
from suite.losses import STATE_MODELS
from suite.run import MemoryRun, Run
from suite.schedules import LinearDecay
from suite.specs import Specs
from suite.trainer import Trainer

CHOOSERS = ("algorithm", "preset", "loss", "task", "resume")  # the flags whose words decide other defaults


def configure(chosen: dict[str, str]) -> Config:
    """The Config that an algorithm, a preset, or a run to resume stands for."""
    if "resume" in chosen:
        stored = stored_config(Config, chosen["resume"], task=chosen.get("task"))
        return dataclasses.replace(stored, resume=chosen["resume"], overwrite=False)
    preset = chosen.get("preset", Config.preset)
    check_choice("preset", preset, PRESETS)
    algorithm = chosen.get("algorithm") or usual_algorithm(preset) or Config.algorithm
    check_choice("algorithm", algorithm, ALGORITHMS)
    return Config(**overrides(algorithm, preset, chosen.get("loss"), chosen.get("task", Config.task)))


def untouched(cfg: Config) -> Config:
    """What the algorithm, preset, loss and task of a config stand for."""
    return Config(**overrides(cfg.algorithm, cfg.preset, cfg.loss, cfg.task))


def make_trainer(cfg: Config, run: Run | MemoryRun) -> Trainer:
    """Everything the run needs, composed in the order in which it is used."""
    for what, value, table in (
        ("algorithm", cfg.algorithm, ALGORITHMS),
        ("loss", cfg.loss, STATE_MODELS),
        ("preset", cfg.preset, PRESETS),
    ):
        check_choice(what, value, table)
    check_config(cfg)
    torch.set_num_threads(cfg.threads)
    torch.manual_seed(cfg.seed)
    common = dict(device=cfg.device, max_steps=cfg.max_steps, truncate=cfg.truncate, **cfg.task_options)
    env = make_env(cfg.task, num_envs=cfg.num_envs, seed=cfg.seed + 1000 * distributed.rank(), **common)
    if cfg.whole_episodes:
        env = WholeEpisodes(env)
    specs = Specs.from_env(env)
    if env.max_steps is None and (cfg.steps is None or cfg.evaluations):
        raise ValueError(f"{cfg.task!r} has no horizon: give --max-steps (or --steps, with --evaluations 0)")
    steps = cfg.steps or env.max_steps
    validate(cfg, specs, cfg.num_envs * steps)
    check_used(cfg, untouched(cfg), discrete=specs.discrete)

    aux = make_loss(cfg, specs)
    parts = COMPOSITIONS[ALGORITHMS[cfg.algorithm][0]](cfg, specs, aux)
    for remark in (*(f"loss {cfg.loss!r}: {remark}" for remark in aux.plan(cfg.frames)), *never_learns(cfg)):
        warnings.warn(remark, stacklevel=2)
    weights = {"task": 1.0} | aux.reward_weights
    check_names("reward term", cfg.reward_weights, weights)

    own = [update for update in parts.updates if update.name == cfg.algorithm]  # a loss has rates of its own
    return assemble(cfg, run, env, lambda episodes, seed: make_env(cfg.task, num_envs=episodes, seed=seed, **common),
                    parts, [aux], steps=steps, frames=cfg.frames, weights=weights | cfg.reward_weights,
                    schedules=[LinearDecay(own)] if cfg.lr_decay == "linear" else [], team=cfg.team_reward)


def make_loss(cfg: Config, specs: Specs):
    """The state-modelling loss by name, with its options; a wrong option is refused with the right ones."""
    loss = STATE_MODELS[cfg.loss]
    check_options(f"loss {cfg.loss!r}", cfg.loss_options, loss)
    return loss(specs, **cfg.loss_options).to(cfg.device)


def swap_flags(cfg: Config) -> str:
    """The flags of this run with another loss, quoted for a shell."""
    other = "next_observation" if cfg.loss == "none" else "none"
    swapped = dataclasses.replace(cfg, preset=comparable(cfg.preset), loss=other, loss_options={}, reward_weights={},
                                  run_dir=None, resume=None, overwrite=False)
    named = ("task", "algorithm", "loss") + (("preset",) if cfg.preset != Config.preset else ())
    return shlex.join(as_flags(swapped, untouched(swapped), always=named))


def main() -> None:
    """The command line."""
    cfg = parse_cli(configure, Config, choosers=CHOOSERS, prog="python -m recipes.cooperative")
    check_resume(cfg, configure)
    launch(cfg, make_trainer, module="recipes.cooperative", swap=swap_flags,
           name=f"cooperative/{cfg.task.replace('/', '.')}/{cfg.algorithm}-{cfg.loss}")


if __name__ == "__main__":
    run_cli(main)
