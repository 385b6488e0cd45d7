"""Next-observation prediction: a small state model that feeds the actor, and can pay for surprise."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from tensordict import TensorDict, TensorDictBase
from tensordict.nn import TensorDictModule
from torch import Tensor, nn
from torch.nn import functional as F

from suite.data import DataSource
from suite.losses.common import Loss
from suite.modules.networks import mlp
from suite.specs import ACTION, GROUP, OBSERVATION, Specs
from suite.update import Update

LATENT = (GROUP, "latent")
NEXT_OBSERVATION = ("next", *OBSERVATION)


class NextObservationLoss(Loss):
    """Each agent predicts the change of its own observation from its latent and its action.

    z = tanh(encoder(o_t));  L = coef * mean || o_t + f(z, a_t) - o_{t+1} ||^2  (mean over features, agents, frames)

    The latent is an encoder feature for actor and critic, which read it as stored: no policy or value gradient
    reaches the encoder. The reward term ``curiosity`` is the prediction error of each agent (Pathak et al. 2017,
    without its inverse model), weight 0 by default. The loss trains with its own optimiser and epochs.

    Args:
        latent_dim: size of z. num_cells: width of encoder and predictor. coef: weight of the loss.
        lr: Adam's learning rate. epochs: passes over each batch, with the recipe's minibatch size.
        curiosity: default weight of the reward term.
        use_latent: False keeps the latent from actor and critic (the loss then only adds the reward term).
    """

    def __init__(self, specs: Specs, *, latent_dim: int = 16, num_cells: int = 64, coef: float = 1.0, lr: float = 1e-3,
                 epochs: int = 1, curiosity: float = 0.0, use_latent: bool = True):
        if latent_dim < 1 or epochs < 1 or lr <= 0:
            raise ValueError(f"latent_dim, epochs and lr must be positive, got {latent_dim}, {epochs}, {lr}")
        super().__init__([OBSERVATION, ACTION, NEXT_OBSERVATION])
        self.coef, self.lr, self.epochs = coef, lr, epochs
        sizes = dict(cells=[num_cells], activation="tanh", init="default")
        self.encoder = nn.Sequential(mlp(specs.obs_dim, latent_dim, None, **sizes), nn.Tanh())
        self.predictor = mlp(latent_dim + specs.action_dim, specs.obs_dim, None, **sizes)
        self.choices = specs.action_dim if specs.discrete else None
        if use_latent:
            self.encoders = [TensorDictModule(self.encoder, in_keys=[OBSERVATION], out_keys=[LATENT])]
            self.features = {LATENT: latent_dim}
        self.reward_weights = {"curiosity": curiosity}

    def error(self, td: TensorDictBase) -> Tensor:
        """Mean squared prediction error [..., A, 1]."""
        observation, action = td[OBSERVATION], td[ACTION]
        if self.choices is not None:
            action = F.one_hot(action, self.choices).to(observation.dtype)
        change = self.predictor(torch.cat([self.encoder(observation), action], -1))
        return (observation + change - td[NEXT_OBSERVATION]).square().mean(-1, keepdim=True)

    def reward_terms(self, batch: TensorDictBase) -> dict[str, Tensor]:
        """``curiosity``: the prediction error, before the update on this batch."""
        return {"curiosity": self.error(batch)}

    def forward(self, minibatch: TensorDictBase) -> TensorDictBase:
        """``loss_prediction``."""
        return TensorDict({"loss_prediction": self.coef * self.error(minibatch).mean()})

    def updates(self, name: str, data: DataSource, **optimisation: Any) -> list[Update]:
        """One update with Adam at the loss's own rate and its own number of epochs."""
        own = optimisation | {"optimizer": partial(torch.optim.Adam, lr=self.lr, fused=True)}
        return [Update(name, {name: self}, data.with_epochs(self.epochs), **own)]
