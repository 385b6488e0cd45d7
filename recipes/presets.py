"""Algorithms and presets of the cooperative recipe: what each word changes in the Config, as data.

Order of precedence: flag given by the user > preset > algorithm > default of the Config field.
"""

from __future__ import annotations

from typing import Any

from recipes import moa_presets, smpe_presets
from recipes.moa_presets import MOA
from recipes.smpe_presets import SMPE

_CENTRAL, _LOCAL = {"centralized": True}, {"centralized": False}
_A2C = {"clip": None, "epochs": 1, "minibatch_size": None, "steps": 10, "lr": 7e-4}
_REPLAY = {"steps": 10, "num_envs": 32, "lr": 5e-4, "minibatch_size": 512, "gradient_steps": 10, "max_grad_norm": 10.0}

# algorithm: (composition, what it changes, actions it supports)
ALGORITHMS: dict[str, tuple[str, dict[str, Any], str]] = {
    "mappo": ("on_policy", _CENTRAL, "any"),
    "ippo": ("on_policy", _LOCAL, "any"),
    "maa2c": ("on_policy", _CENTRAL | _A2C, "any"),
    "ia2c": ("on_policy", _LOCAL | _A2C, "any"),
    "qmix": ("mixed_q", _REPLAY, "discrete"),
    "vdn": ("mixed_q", _REPLAY, "discrete"),
    "maddpg": ("maddpg", _REPLAY, "continuous"),
}

# EPyMARL's learners: GRU actor on observation and id, target critic, 5-step returns, standardised team reward, the
# whole batch of 10 episodes as one minibatch; advantages recomputed from the critic in every epoch (specs of the
# benchmark paper, arXiv 2006.07869, and its program's defaults)
_EPYMARL = {"num_envs": 10, "steps": None, "actor_cells": (128,), "critic_cells": (128, 128), "activation": "relu",
            "actor_recurrent_dim": 128, "agent_id": True, "returns": "nstep", "n_step": 5, "target_tau": 0.01,
            "standardize_reward": True, "normalize_advantage": "none", "team_reward": True, "minibatch_size": None,
            "recompute_advantage": True, "max_grad_norm": 10.0, "adam_eps": 1e-8, "gamma": 0.99}
_EPYMARL_PPO = _EPYMARL | {"lr": 3e-4, "entropy_coef": 0.001, "epochs": 4, "clip": 0.2}
_EPYMARL_A2C = _EPYMARL | {"lr": 5e-4, "entropy_coef": 0.01, "epochs": 1, "clip": None}
# BenchMARL's fine-tuned VMAS settings; time limits are terminations there
_BENCHMARL = {
    "num_envs": 600,
    "steps": 100,
    "actor_cells": (256, 256),
    "critic_cells": (256, 256),
    "activation": "tanh",
    "gamma": 0.9,
    "gae_lambda": 0.9,
    "lr": 5e-5,
    "epochs": 45,
    "minibatch_size": 4096,
    "clip": 0.2,
    "entropy_coef": 0.0,
    "max_grad_norm": 5.0,
    "adam_eps": 1e-6,
    "normalize_advantage": "none",
    "truncate": False,
    "frames": 10_000_000,
}

PRESETS: dict[str, dict[str, dict[str, Any]]] = {
    "default": {name: {} for name in ALGORITHMS},
    "epymarl": {"mappo": _EPYMARL_PPO, "ippo": _EPYMARL_PPO, "maa2c": _EPYMARL_A2C, "ia2c": _EPYMARL_A2C},
    "benchmarl": {"mappo": _BENCHMARL, "ippo": _BENCHMARL},
    **{name: {"maa2c": _EPYMARL_A2C, "mappo": _EPYMARL_PPO} for name in SMPE},  # the program is built on EPyMARL's
    **{name: {"mappo": {}, "ippo": {}} for name in MOA},
}


COST_STUDIES = {"smpe": smpe_presets.COST, "moa": moa_presets.COST}  # of `recipes.speed --state-models`


def overrides(algorithm: str, preset: str, loss: str | None = None, task: str = "") -> dict[str, Any]:
    """What the four words change in the Config; ValueError if the preset has no such algorithm or loss."""
    if algorithm not in PRESETS[preset]:
        raise ValueError(f"preset {preset!r} has no algorithm {algorithm!r}; it has {sorted(PRESETS[preset])}")
    loss, special = loss or usual_loss(preset), {}
    if preset in SMPE:
        special = smpe_presets.settings(preset, algorithm, loss, task)
    elif preset in MOA:
        special = moa_presets.settings(preset, loss)
    return (ALGORITHMS[algorithm][1] | PRESETS[preset][algorithm] | special
            | {"algorithm": algorithm, "preset": preset, "loss": loss})


def usual_algorithm(preset: str) -> str | None:
    """The algorithm that a preset stands for if the user names none."""
    return "maa2c" if preset in SMPE else None


def usual_loss(preset: str) -> str:
    """The loss that a preset stands for if the user names none: controls of a loss run with it."""
    return MOA.get(preset, (None,))[0] or "none"


def comparable(preset: str) -> str:
    """The preset for another loss with the same settings: a control's reference, else itself."""
    return "moa" if preset in MOA else preset
