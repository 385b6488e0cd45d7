"""Reward terms that pay an agent for what it could not foresee, or for what changes its mind about the others."""

from __future__ import annotations

from collections.abc import Collection
from typing import Literal

import torch
from tensordict import NestedKey, TensorDictBase
from torch import Tensor, nn

from suite.losses.world_model import WorldModelLoss, observation_error
from suite.modules.gaussian import kl_divergence
from suite.modules.normalizer import RunningMoments
from suite.modules.state_model import StateModel
from suite.modules.world_model import disagreement
from suite.specs import OBSERVATION

Scale = Literal["none", "std"]
TERMS = ("curiosity", "disagreement", "latent_surprise")
LIMIT = 5.0


class Curiosity(nn.Module):
    """Terms [N, T, A, 1] by name, each at most 5 after a division by its running deviation, in which the batch counts.

    - ``curiosity``: the world model's squared error, mean over features; it also pays for noise. Its division is an
      option: ``scale`` "std".
    - ``disagreement``: variance of an ensemble's predictions, mean over features (Pathak et al. 2019): noise that all
      members have learned to ignore is not paid.
    - ``latent_surprise``: KL(q(z_{t+1}) || q(z_t)), how far a step moved the belief about the others. The first belief
      of an episode has none before it, so nothing is paid for it; the last observation of an episode counts.

    Args:
        names: those wanted. model, world_loss: whose predictions; they remain their owner's.
        alive: key of a bool [..., A]; agents where it is False do not count in the deviations.
    """

    def __init__(self, names: Collection[str], model: StateModel, world_loss: WorldModelLoss, *, scale: Scale,
                 alive: NestedKey | None = None):
        super().__init__()
        self.names, self.alive = [name for name in TERMS if name in names], alive
        self.__dict__.update(model=model, world_loss=world_loss)
        plain = ["curiosity"] if scale == "none" else []
        self.moments = nn.ModuleDict({name: RunningMoments((1,)) for name in self.names if name not in plain})

    @torch.no_grad()
    def forward(self, batch: TensorDictBase) -> dict[str, Tensor]:
        """The terms of a batch [N, T], which moves the deviations: once per batch."""
        return {name: self._scaled(name, getattr(self, f"_{name}")(batch).unsqueeze(-1), batch) for name in self.names}

    def _scaled(self, name: str, value: Tensor, batch: TensorDictBase) -> Tensor:
        if name not in self.moments:
            return value.clamp_max(LIMIT)
        moments = self.moments[name]
        moments.update(value, None if self.alive is None else batch[self.alive].unsqueeze(-1))
        return (value / (moments.var.sqrt() + 1e-8)).clamp_max(LIMIT)

    def _curiosity(self, batch: TensorDictBase) -> Tensor:
        predicted, _ = self.world_loss.predict(batch)
        scaler = self.model.scaler
        return observation_error(predicted, scaler(batch["next", *OBSERVATION]), scaler.mask,
                                 reduction="mean")

    def _disagreement(self, batch: TensorDictBase) -> Tensor:
        predictions, *_ = self.model.world_model.each(*self.world_loss.inputs(batch))
        return disagreement(predictions, self.model.scaler.mask)

    def _latent_surprise(self, batch: TensorDictBase) -> Tensor:
        return kl_divergence(*self._belief(batch, "next"), *self._belief(batch)).sum(-1)

    def _belief(self, batch: TensorDictBase, *root: str) -> tuple[Tensor, Tensor]:
        """Mean and log-sigma [N, T, A, k] at each step or after it; with a memory from the states stored there."""
        rows = [batch[*root, *key].flatten(0, 1) for key in self.model.keys]
        known = self.model.infer(*rows)
        return known.mean.unflatten(0, batch.shape), known.log_sigma.unflatten(0, batch.shape)
