"""Presets of the family of loss moa as data: its reference settings, and the controls that could explain a gain away.

The reference settings are the CPU profile of the method's specification: MAPPO's (Yu et al. 2022) with 64 environments
of 100 steps, networks of two layers of 256, standardised observations, values normalised and clipped, advantages
standardised per minibatch, one actor and critic per role; but gradients are clipped for each network, not for both
together, and continuous actions have the entropy bonus of discrete ones (``--entropy-coef 0``). The controls have the
same code, frames and numbers, and differ in one thing; without ``--loss`` they run with the loss they need.
"""

from __future__ import annotations

from typing import Any

from recipes.cost_study import CostStudy

REFERENCE: dict[str, Any] = {
    "num_envs": 64, "steps": 100, "minibatch_size": 1600, "epochs": 10, "frames": 2_000_000, "lr": 3e-4,
    "actor_cells": (256, 256), "critic_cells": (256, 256), "init": "orthogonal", "share": "roles", "agent_id": True,
    "value_norm": True, "value_clip": 0.2, "clip": 0.2, "entropy_coef": 0.01, "gamma": 0.99, "gae_lambda": 0.95,
    "max_grad_norm": 1.0, "normalize_observation": True, "normalize_advantage": "minibatch", "eval_episodes": 200,
}

# preset: (the loss that it needs, or none; what it changes of the recipe; options of the loss)
MOA: dict[str, tuple[str | None, dict[str, Any], dict[str, Any]]] = {
    "moa": (None, {}, {}),
    "same_inputs": ("moa", {}, {"actor_inputs": "obs+past"}),  # what the models read
    "matched": ("none", {"actor_cells": (380, 380)}, {}),  # as many parameters at execution (navigation, 4 agents)
    "gru": ("none", {"actor_recurrent_dim": 128}, {}),
    "shuffled": ("moa", {}, {"shuffle_z": True}),
    "oracle": ("moa", {}, {"actor_inputs": "obs+hidden"}),  # headroom: needs --task-options with_hidden=True
}

COST = CostStudy("Models of other agents in their reference settings",
                 ("vmas/navigation", "foraging/2s-8x8-2p-2f-coop"),
                 {"mappo": {"preset": "moa"}, "moa": {"preset": "moa", "loss": "moa"}}, warm=1, measured=3, long=12)


def settings(preset: str, loss: str) -> dict[str, Any]:
    """What the preset changes in the recipe's Config; ValueError for another loss than its control has."""
    needed, changes, options = MOA[preset]
    if needed not in (None, loss):
        raise ValueError(f"preset {preset!r} is a control with loss {needed!r}, not {loss!r}; leave --loss out")
    return REFERENCE | changes | ({"loss_options": options} if options else {})
