"""What every recipe does around its own composition: the collector, the evaluation, the trainer, the command line."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from tensordict.nn import TensorDictModuleBase
from torchrl.envs import EnvBase

from envs import resolve_device
from recipes.run_checks import no_resume
from recipes.stored_config import imports_module
from suite import distributed
from suite.collector import make_collector
from suite.config import as_plain
from suite.evaluate import Evaluator
from suite.losses import Loss, Returns
from suite.run import MemoryRun, Run, restoring
from suite.trainer import Trainer
from suite.update import Update


@dataclass
class Parts:
    """What a composition hands to the trainer. ``acting`` is evaluated; ``policy`` also explores."""

    policy: TensorDictModuleBase
    acting: TensorDictModuleBase
    updates: list[Update]
    estimators: Sequence[Returns] = ()
    refresh: Sequence[Callable] = field(default_factory=list)


def assemble(cfg: Any, run: Run | MemoryRun, env: EnvBase, make_eval_env: Callable[[int, int], EnvBase], parts: Parts,
             losses: Sequence[Loss], *, steps: int, frames: int, weights: dict[str, float],
             schedules: Sequence[Callable] = (), team: bool = False) -> Trainer:
    """The trainer of a recipe.

    Args:
        cfg: a recipe's Config; read are the flags that all recipes have.
        make_eval_env: (number of episodes, seed) -> environment.
        steps: per batch and environment; frames: of the whole run and all processes, rounded up to whole batches.
        weights: of reward terms. team: see `Trainer`.
    """
    for update in parts.updates:
        update.data.check(cfg.num_envs, steps)
    torch.manual_seed(cfg.seed + 1000 * distributed.rank())  # equal networks, different actions
    iterations = max(1, -(-frames // (cfg.num_envs * steps * distributed.world_size())))
    read = [*(key for loss in losses for key in loss.reward_keys), *(key for u in parts.updates for key in u.keys)]
    collector = make_collector(env, parts.policy, steps=steps, total_frames=iterations * cfg.num_envs * steps,
                               fast=cfg.fast_collector, compile={} if cfg.compile else None, keep=read)
    evaluator = None
    if cfg.evaluations and distributed.rank() == 0:
        seed = cfg.seed + 1_000_000
        written = {key for loss in losses for module in loss.encoders for key in module.out_keys}
        latents = [key for loss in losses for key in loss.features if key in written]
        evaluator = Evaluator(make_eval_env(cfg.eval_episodes, seed), parts.acting, seed=seed,
                              fresh=cfg.eval_starts == "fresh", team=team, latents=latents)
    return Trainer(collector, parts.policy, parts.updates, reward_weights=weights, run=run, team_reward=team,
                   losses=losses, estimators=parts.estimators, refresh=parts.refresh, schedules=schedules,
                   evaluate=evaluator, checkpoint_every=cfg.checkpoint_every,
                   evaluate_every=max(1, iterations // cfg.evaluations) if cfg.evaluations else 0)


def launch(cfg: Any, make_trainer: Callable[[Any, Run], Trainer], *, module: str, name: str,
           swap: Callable[[Any], str]) -> None:
    """Train in a run folder, new or to be resumed, and print what came out; SystemExit after a stop by a signal.

    Args:
        module: of the recipe, for the printed commands; name: of the run below ``runs``, beginning with the recipe's.
        swap: the flags of the same run with another loss or codec.
    """
    logging.getLogger("torchrl").setLevel(logging.WARNING)  # it reports every buffer that it fills for the first time
    plain = as_plain(cfg)  # before each process takes its own device
    cfg = dataclasses.replace(cfg, device=str(distributed.start(resolve_device(cfg.device))))
    run = Run(cfg.resume or cfg.run_dir or f"runs/{name}/seed{cfg.seed}", plain, resume=cfg.resume is not None,
              overwrite=cfg.overwrite, loggers=cfg.loggers, keep_checkpoints=cfg.keep_checkpoints, quiet=cfg.quiet,
              project=name.partition("/")[0], defaults=as_plain(type(cfg)()), no_resume=no_resume(cfg))
    trainer = make_trainer(cfg, run)
    if run.state is not None:
        with restoring(run.path):
            trainer.load_state_dict(run.state)
    with run:
        trainer.train()
        run.conclude(trainer, video=cfg.video, module=module, swap=swap(cfg),
                     again=["--task", cfg.task] if imports_module(cfg.task) else [])
    distributed.stop()
    if run.exit_code:
        raise SystemExit(run.exit_code)
