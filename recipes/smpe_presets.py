"""Presets of SMPE2 as data: the published program per benchmark, the printed equations, and the repaired version.

Sources: the configuration files of the official program (arXiv 2505.05262) for level-based foraging, the warehouse and
the particle tasks; other families take the numbers of the particle tasks.
"""

from __future__ import annotations

from typing import Any

from recipes.cost_study import CostStudy

# networks and horizon of the program, per benchmark: LBF and RWARE share one actor, MPE has one per agent
_RECIPE: dict[str, dict[str, Any]] = {
    "foraging": {"actor_cells": (128,), "actor_recurrent_dim": 128, "critic_cells": (128, 128), "share": "all",
                 "frames": 10_050_000},
    "warehouse": {"actor_cells": (64,), "actor_recurrent_dim": 64, "critic_cells": (64, 64), "share": "all",
                  "frames": 40_050_000},
    "particle": {"actor_cells": (128,), "actor_recurrent_dim": 128, "critic_cells": (128, 128), "share": "none",
                 "frames": 10_050_000},
}
_COMMON = {"evaluations": 200, "eval_episodes": 100}

# the loss, per benchmark; copy_every: 200 and 600 iterations of 10 episodes
_LOSS: dict[str, dict[str, Any]] = {
    "foraging": {"latent_dim": 32, "filter_layers": 1, "clip_min": 0.3, "rec_coef": 0.1, "norm_coef": 0.5,
                 "kl_coef": 0.1, "lr": 5e-4, "lr_filter": 5e-4, "filter_every": 1, "copy_every": 2000, "novelty": 0.1},
    "warehouse": {"latent_dim": 32, "filter_layers": 1, "clip_min": 0.1, "rec_coef": 1.0, "norm_coef": 0.1,
                  "kl_coef": 0.1, "lr": 5e-4, "lr_filter": 5e-5, "filter_every": 0, "copy_every": 6000,
                  "novelty": 0.001},
    "particle": {"latent_dim": 64, "filter_layers": 2, "clip_min": 0.1, "rec_coef": 1.0, "norm_coef": 0.1,
                 "kl_coef": 0.1, "lr": 5e-4, "lr_filter": 5e-4, "filter_every": 10, "copy_every": 6000, "novelty": 0.0},
}
_RATE = {"foraging": 5e-5, "warehouse": 5e-7, "particle": 5e-7}  # of the filter in L^w_critic, where it has an effect

# official: padded episodes that count everywhere, and two Adam optimisers that step the central critic one after the
# other with the same gradient; their states are equal, so that is one step at twice the rate
_OFFICIAL_A2C = {"whole_episodes": True, "mask_padding": False, "returns": "padded_nstep", "critic_lr": 1e-3}
SMPE: dict[str, dict[str, dict[str, Any]]] = {
    "official": {"maa2c": _OFFICIAL_A2C, "mappo": _OFFICIAL_A2C | {"critic_lr": 6e-4}},
    "paper": {"maa2c": {"n_step": 1}, "mappo": {"n_step": 1}},
    "fixed": {"maa2c": {}, "mappo": {}},
}

# encoders are trained every 8 iterations of 10 episodes, so whole rounds of 8 are measured; padded: MAA2C with the
# padded episodes of official
COST = CostStudy("SMPE² in the paper's regime", ("foraging/2s-9x9-3p-2f-coop",),
                 {"maa2c": {"preset": "epymarl", "algorithm": "maa2c"}, "fixed": {"preset": "fixed", "loss": "smpe"},
                  "padded": {"preset": "official"}, "official": {"preset": "official", "loss": "smpe"}},
                 warm=8, measured=24, long=160)


def settings(preset: str, algorithm: str, loss: str, task: str) -> dict[str, Any]:
    """What the preset changes in the recipe's Config for a task; the loss's options only if it is the loss."""
    family = task.partition("/")[0]
    family = family if family in _RECIPE else "particle"
    out = _RECIPE[family] | _COMMON | SMPE[preset][algorithm]
    if loss != "smpe":
        return out
    options = {"preset": preset} | _LOSS[family]
    if preset != "official":
        options |= {"lr_filtered_critic": _RATE[family], "filter_every": max(1, options["filter_every"])}
    if algorithm != "maa2c":
        options["reencode"] = False  # the ratio of PPO needs the inputs that acted
    return out | {"loss_options": options}
