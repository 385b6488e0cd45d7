"""The words and numbers that `SMPELoss` takes, its presets, and what it refuses before any training."""

from __future__ import annotations

from typing import Any, Literal, get_args

from suite.losses.common import OptionsOf
from suite.specs import Specs

Preset = Literal["official", "paper", "fixed"]
FilteredTarget = Literal["own", "central"]
NormLoss = Literal["parameters", "output", "none"]
BonusBelief = Literal["sample", "mean"]
Bonus = Literal["rsqrt", "inverse"]
WORDS = {"filtered_target": FilteredTarget, "norm_loss": NormLoss, "bonus_belief": BonusBelief, "bonus": Bonus}

# what distinguishes the published program, the printed equations, and the repaired version
PRESETS: dict[str, dict[str, Any]] = {
    "official": {"train_filtered_critic": False, "filtered_target": "central", "lr_filtered_critic": None,
                 "norm_loss": "parameters", "mask_padding": False, "bonus_belief": "sample", "clip_inputs": None,
                 "reencode": True},
    "paper": {"train_filtered_critic": True, "filtered_target": "own", "lr_filtered_critic": 5e-5,
              "norm_loss": "output", "mask_padding": True, "bonus_belief": "sample", "clip_inputs": None,
              "reencode": True},
    "fixed": {"train_filtered_critic": True, "filtered_target": "own", "lr_filtered_critic": 5e-5,
              "norm_loss": "output", "mask_padding": True, "bonus_belief": "mean", "clip_inputs": 10.0,
              "reencode": False},
}


def check_options(specs: Specs, options: dict[str, Any]) -> None:
    """ValueError for a wrong value, naming it and what is allowed, or for what the task cannot give."""
    if specs.n_agents < 2:
        raise ValueError("loss 'smpe' models other agents, but the task has a single agent")
    if specs.horizon is None:
        raise ValueError("loss 'smpe' counts episodes of the task's horizon, but the task has none: give --max-steps")
    for name, words in WORDS.items():
        if options[name] not in get_args(words):
            raise ValueError(f"{name} of loss 'smpe' must be one of {list(get_args(words))}, got {options[name]!r}")
    for name in ("latent_dim", "encode_every", "encode_steps", "encode_rows", "memory", "copy_every", "lr",
                 "lr_filter"):
        if not options[name] > 0:
            raise ValueError(f"{name} of loss 'smpe' must be positive, got {options[name]}")
    for name in ("rec_coef", "kl_coef", "norm_coef", "filter_every", "novelty", "observation_novelty"):
        if not options[name] >= 0:
            raise ValueError(f"{name} of loss 'smpe' must not be negative, got {options[name]}")
    if not 0 <= options["clip_min"] < options["clip_max"] <= 1:
        raise ValueError(f"the filter's clamp needs 0 <= clip_min < clip_max <= 1, got {options['clip_min']} and "
                         f"{options['clip_max']}")
    if not (options["clip_inputs"] or 0.0) >= 0:
        raise ValueError(f"clip_inputs of loss 'smpe' must be positive, or 0 for none, got {options['clip_inputs']}")
    if options["memory"] * specs.horizon < options["encode_rows"]:
        raise ValueError(f"memory of loss 'smpe' holds {options['memory'] * specs.horizon} frames, fewer than the "
                         f"encode_rows {options['encode_rows']} of a minibatch")
    if options["filter_layers"] not in (1, 2):
        raise ValueError(f"filter_layers of loss 'smpe' must be 1 or 2, got {options['filter_layers']}")


READ_BY_PARTS = (
    OptionsOf("give filters=True", lambda o: o["filters"], (
        "filter_layers", "clip_min", "clip_max", "lr_filter", "filter_every", "copy_every", "norm_coef", "norm_loss")),
    OptionsOf("give filters=True and filtered_critic=True", lambda o: o["filters"] and o["filtered_critic"],
              ("train_filtered_critic", "filtered_target", "lr_filtered_critic")),
    OptionsOf("give novelty a weight", lambda o: o["novelty"], ("bonus_belief",)),
    OptionsOf("give novelty or observation_novelty a weight", lambda o: o["novelty"] or o["observation_novelty"],
              ("bonus",)),
    OptionsOf("give use_belief=True", lambda o: o["use_belief"], ("reencode",)))
