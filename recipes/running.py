"""What every recipe does around its own composition: the collector, the evaluation, the trainer, the command line."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, get_args, get_origin, get_type_hints

import torch
from tensordict.nn import TensorDictModuleBase
from torchrl.envs import EnvBase

from envs import resolve_device
from envs.kinds import fits, named
from recipes.stored_config import imports_module
from suite import distributed
from suite.collector import make_collector
from suite.config import as_plain, check_choice, check_names
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


# ---------------------------------------------------------------------- what every recipe refuses

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
