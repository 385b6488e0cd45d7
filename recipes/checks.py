"""What the cooperative recipe refuses before training, with what is allowed."""

from __future__ import annotations

import math
import sys

from recipes.cooperative_config import Config
from recipes.presets import ALGORITHMS
from recipes.run_checks import check_evaluations, check_task_options, check_unread, check_words, no_resume
from suite.config import check_positive
from suite.losses import STATE_MODELS
from suite.specs import Specs

# fields that only some algorithms read; giving them to another is refused, not ignored
ON_POLICY = ("centralized", "gae_lambda", "returns", "n_step", "normalize_advantage", "standardize_reward",
             "target_tau", "epochs", "recompute_advantage", "clip", "value_clip", "value_loss", "entropy_coef", "head",
             "state_dependent_scale", "critic_lr", "whole_episodes", "value_norm",
             "normalize_observation")
OFF_POLICY = ("buffer_size", "warmup", "gradient_steps", "tau", "exploration_start", "exploration_end",
              "exploration_frames")
UNREAD = {"on_policy": (*OFF_POLICY, "mixer_dim"), "mixed_q": (*ON_POLICY, "critic_cells"),
          "maddpg": (*ON_POLICY, "mixer_dim")}


def check_config(cfg: Config) -> None:
    """ValueError for a number or a word that no task could work with, naming what is allowed."""
    check_words(cfg)
    numbers = ("frames", "steps", "lr", "adam_eps", "max_grad_norm", "epochs", "minibatch_size", "clip", "value_clip",
               "n_step", "critic_lr", "buffer_size", "gradient_steps", "mixer_dim", "exploration_frames",
               "eval_episodes", "keep_checkpoints", "threads")
    check_positive({name: getattr(cfg, name) for name in numbers})
    numbers = ("actor_recurrent_dim", "critic_recurrent_dim", "entropy_coef", "warmup", "tau", "evaluations",
               "checkpoint_every")
    check_positive({name: getattr(cfg, name) for name in numbers}, zero=True)
    for name in ("gamma", "gae_lambda", "tau", "target_tau"):
        if (value := getattr(cfg, name)) is not None and not 0 <= value <= 1:
            raise ValueError(f"{name} must be between 0 and 1, got {value}")
    for name in ("actor_cells", "critic_cells"):
        check_positive(dict.fromkeys([name], min(getattr(cfg, name), default=1)))
    for name, weight in cfg.reward_weights.items():
        if isinstance(weight, bool) or not isinstance(weight, (int, float)) or not math.isfinite(weight):
            raise ValueError(f"the weight of reward term {name!r} must be a finite number, got {weight!r}")
    probability = ALGORITHMS[cfg.algorithm][0] == "mixed_q"  # else a noise scale
    if not 0 <= cfg.exploration_end <= cfg.exploration_start <= (1 if probability else sys.float_info.max):
        raise ValueError(f"exploration falls from exploration_start {cfg.exploration_start} to exploration_end "
                         f"{cfg.exploration_end}, but 0 <= exploration_end <= exploration_start"
                         f"{' <= 1' if probability else ''} is needed")
    if cfg.cuda_graphs and not (cfg.compile and cfg.device.startswith("cuda")):
        raise ValueError("--cuda-graphs needs --compile and a CUDA device")
    if cfg.compile and not cfg.fast_collector:
        raise ValueError("--compile needs the fast collector")
    check_evaluations(cfg)
    check_task_options(cfg)


def check_used(cfg: Config, default: Config, *, discrete: bool) -> None:
    """ValueError if a field, or an option of the loss, differs from its default and this choice does not read it."""
    unread = dict.fromkeys(UNREAD[ALGORITHMS[cfg.algorithm][0]], f"algorithm {cfg.algorithm!r}")
    if cfg.algorithm == "vdn":
        unread |= {"mixer_dim": "algorithm 'vdn'"}
    if discrete:  # a categorical actor has neither
        unread |= {name: "a task with discrete actions" for name in ("head", "state_dependent_scale")} | unread
    other = "n_step" if cfg.returns == "gae" else "gae_lambda"
    unread = {other: f"returns {cfg.returns!r}"} | unread
    if cfg.recompute_advantage and cfg.normalize_advantage != "minibatch":  # target minus present value, as it is
        unread = {"normalize_advantage": "recompute_advantage"} | unread
    check_unread(cfg, default, unread)
    given = [name for name, value in cfg.loss_options.items() if value != default.loss_options.get(name)]
    STATE_MODELS[cfg.loss].check_given(cfg.loss_options, given)


def validate(cfg: Config, specs: Specs, batch: int) -> None:
    """Refuse what cannot work, before training, with what is allowed."""
    if specs.param_mask is not None:
        raise ValueError(f"{cfg.task!r} has hybrid actions: train on it with python -m recipes.hybrid_actions")
    kind = "discrete" if specs.discrete else "continuous"
    supported = ALGORITHMS[cfg.algorithm][2]
    if supported not in ("any", kind):
        fitting = sorted(name for name, (*_, actions) in ALGORITHMS.items() if actions in ("any", kind))
        raise ValueError(f"algorithm {cfg.algorithm!r} needs {supported} actions, but {cfg.task!r} has {kind} ones "
                         f"(vmas: --task-options continuous_actions={supported == 'continuous'}); "
                         f"algorithms for {kind} actions: {fitting}")
    off_policy = ALGORITHMS[cfg.algorithm][0] != "on_policy"
    if off_policy and specs.alive:
        raise ValueError(f"{cfg.algorithm!r} cannot learn tasks whose agents leave early, such as {cfg.task!r}; "
                         f"use mappo, ippo, maa2c or ia2c")
    if off_policy and specs.controlled:
        raise ValueError(f"{cfg.algorithm!r} cannot learn tasks that play some agents themselves, such as {cfg.task!r} "
                         f"with scripted partners; use mappo, ippo, maa2c or ia2c")
    if cfg.whole_episodes and batch != cfg.num_envs * specs.horizon:
        raise ValueError(f"whole_episodes needs steps equal to the horizon {specs.horizon}: leave --steps at None")
    if not cfg.mask_padding and specs.alive is None:
        raise ValueError("--no-mask-padding is of padded steps, and there are none: give --whole-episodes, or "
                         "--mask-padding")
    if cfg.returns == "padded_nstep" and not cfg.whole_episodes:
        raise ValueError("returns 'padded_nstep' needs --whole-episodes")
    if not off_policy and cfg.minibatch_size is not None and cfg.minibatch_size > batch:
        raise ValueError(
            f"minibatch_size {cfg.minibatch_size} is larger than the batch of {batch} frames (num_envs * steps): give "
            f"a smaller --minibatch-size"
        )
    if off_policy and (cfg.actor_recurrent_dim or cfg.critic_recurrent_dim):
        raise ValueError(
            f"{cfg.algorithm!r} has no recurrent networks; set actor_recurrent_dim and critic_recurrent_dim to 0"
        )
    if off_policy and not (cfg.minibatch_size or math.inf) <= cfg.warmup <= cfg.buffer_size:
        raise ValueError(f"{cfg.algorithm!r} needs minibatch_size <= warmup <= buffer_size, got {cfg.minibatch_size}, "
                         f"{cfg.warmup}, {cfg.buffer_size}")
    if cfg.resume and (reason := no_resume(cfg)):
        raise ValueError(f"{cfg.resume} cannot be resumed: {reason}")


def never_learns(cfg: Config) -> list[str]:
    """A sentence of warning if an off-policy run ends before its first update."""
    if ALGORITHMS[cfg.algorithm][0] == "on_policy" or cfg.frames >= cfg.warmup:
        return []
    return [f"{cfg.frames} frames are fewer than the warmup of {cfg.warmup}: no update will be made"]
