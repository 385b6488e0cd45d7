"""What the hybrid-action recipe refuses before training, with what is allowed."""

from __future__ import annotations

import math

from recipes.hybrid_config import Config
from recipes.hybrid_presets import ALGORITHMS
from recipes.run_checks import check_evaluations, check_task_options, check_unread, check_words, no_resume
from suite.config import check_positive
from suite.specs import Specs

# fields that only some compositions read; giving them to another is refused, not ignored
REPLAY = ("tau", "critic_tau", "smoothing", "policy_delay", "buffer_size", "first_update", "updates_per_frame",
          "update_at_reset", "exploration_start", "exploration_end", "exploration_episodes", "inverting")
ON_POLICY = ("epochs", "actor_epochs", "clip", "gae_lambda", "critic_lambda", "entropy_coef", "clamp_samples")
PDQN = ("multipass", "pass_through")
UNREAD = {"deterministic": (*ON_POLICY, *PDQN),
          "pdqn": (*ON_POLICY, "update_at_reset", "smoothing", "policy_delay", "centralized"),
          "on_policy": (*REPLAY, *PDQN)}


def check_config(cfg: Config) -> None:
    """ValueError for a number or a word that no task could work with, naming what is allowed."""
    check_words(cfg)
    check_positive({name: getattr(cfg, name) for name in (
        "frames", "num_envs", "steps", "lr", "critic_lr", "max_grad_norm", "critic_max_grad_norm", "policy_delay",
        "minibatch_size", "buffer_size", "first_update", "updates_per_frame", "exploration_episodes", "epochs", "clip",
        "eval_episodes", "keep_checkpoints", "threads")})
    check_positive({name: getattr(cfg, name) for name in ("smoothing", "entropy_coef", "evaluations",
                                                          "checkpoint_every")}, zero=True)
    for name in ("gamma", "gae_lambda", "critic_lambda", "tau", "critic_tau"):
        if not 0 <= (getattr(cfg, name) or 0) <= 1:
            raise ValueError(f"{name} must be between 0 and 1, got {getattr(cfg, name)}")
    for name in ("actor_cells", "critic_cells"):
        check_positive(dict.fromkeys([name], min(getattr(cfg, name), default=1)))
    most = 1 if ALGORITHMS[cfg.algorithm][0] == "pdqn" else math.inf  # a probability, else a standard deviation
    if not 0 <= cfg.exploration_end <= cfg.exploration_start <= most:
        raise ValueError(f"exploration falls from exploration_start {cfg.exploration_start} to exploration_end "
                         f"{cfg.exploration_end}, but 0 <= exploration_end <= exploration_start"
                         f"{' <= 1' if most == 1 else ''} is needed")
    if ALGORITHMS[cfg.algorithm][0] != "on_policy":
        if cfg.minibatch_size > cfg.first_update:
            raise ValueError(f"minibatch_size {cfg.minibatch_size} is more than first_update {cfg.first_update}, the "
                             f"frames that the first update waits for")
        if cfg.first_update > cfg.buffer_size:
            raise ValueError(f"buffer_size {cfg.buffer_size} holds fewer frames than first_update {cfg.first_update} "
                             f"needs")
    if cfg.compile and not cfg.fast_collector:
        raise ValueError("--compile needs the fast collector")
    if cfg.resume and (reason := no_resume(cfg)):
        raise ValueError(f"{cfg.resume} cannot be resumed: {reason}")
    check_evaluations(cfg)
    check_task_options(cfg)


def check_used(cfg: Config, default: Config) -> None:
    """ValueError if a field differs from its default that this algorithm does not read."""
    check_unread(cfg, default, dict.fromkeys(unread(cfg.algorithm), f"algorithm {cfg.algorithm!r}"))


def unread(algorithm: str) -> tuple[str, ...]:
    """The fields that an algorithm does not read."""
    return UNREAD[ALGORITHMS[algorithm][0]]


def check_specs(cfg: Config, specs: Specs) -> None:
    """ValueError for a task without hybrid actions, or with what no algorithm here knows."""
    if specs.alive:
        raise ValueError(f"no algorithm for hybrid actions knows agents that leave early, as those of {cfg.task!r} do")
    if specs.param_mask is not None and specs.has_mask and ALGORITHMS[cfg.algorithm][0] == "deterministic":
        knowing = [name for name, (kind, _) in ALGORITHMS.items() if kind != "deterministic"]
        raise ValueError(f"{cfg.task!r} forbids choices from step to step, which algorithm {cfg.algorithm!r} does not "
                         f"know: take one of {knowing}")
    if specs.param_mask is not None:
        return
    if "levels" in cfg.task_options:
        raise ValueError(f"levels make {cfg.task!r} a task with discrete actions: leave them out, or train with python "
                         f"-m recipes.cooperative")
    kind = "discrete" if specs.discrete else "continuous"
    modes = "" if specs.discrete else f", give it modes (hybrid/{cfg.task.replace('/', '.')})"
    raise ValueError(f"{cfg.task!r} has {kind} actions, not hybrid ones: take a hybrid task (hybrid/platform){modes}, "
                     f"or train with python -m recipes.cooperative")


def never_learns(cfg: Config, warmup: int) -> list[str]:
    """A sentence of warning if the run ends before the first update."""
    left = cfg.frames - warmup
    if ALGORITHMS[cfg.algorithm][0] == "on_policy" or not 0 < left < cfg.first_update:
        return []
    return [f"{left} frames of learning are fewer than the first_update {cfg.first_update}: no update will be made"]
