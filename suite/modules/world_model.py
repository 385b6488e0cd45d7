"""The world model: an agent's next observation and reward from its observation and the joint action, or several of it.

N agents, observations of size D, encoded actions of size E; u is the standardised observation, z a latent of size k.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from suite.modules.networks import AgentInput, AgentLinear, mlp
from suite.specs import Specs


class Prediction(NamedTuple):
    """u_{t+1} [..., N, D], reward [..., N, 1], and the chance [..., N, 1] that the episode goes on (or 1)."""

    observation: Tensor
    reward: Tensor
    goes_on: Tensor


class WorldModel(nn.Module):
    """Predicts an agent's next standardised observation (as a change) and its reward from the joint action.

    Its output layer starts at zero: the first prediction is that nothing changes. An ensemble is M such networks with
    initial weights of their own, stacked, so that all run as one batched product; its prediction is their mean.

    Args:
        members: M. continues: also predict whether the episode goes on (is not terminated). latent_dim: k, or 0.
    """

    def __init__(self, specs: Specs, cells: Sequence[int], *, members: int = 1, continues: bool = False,
                 latent_dim: int = 0):
        super().__init__()
        n = specs.n_agents
        self.members, self.continues = members, continues
        self.assemble = AgentInput(n, agent_id=True)
        self.net = mlp(specs.obs_dim + n * specs.action_dim + latent_dim + n, specs.obs_dim + 1 + continues,
                       None if members == 1 else range(members), cells=cells, activation="relu", init="orthogonal",
                       out_gain=0.0)

    def forward(self, u: Tensor, joint: Tensor, *latent: Tensor) -> tuple[Tensor, Tensor]:
        """From u_t [..., N, D], a_t [..., N, N E] and z_t [..., N, k], if it reads one: u_{t+1}, reward [..., N, 1]."""
        observation, reward, _ = self.predict(u, joint, *latent)
        return observation, reward

    def predict(self, u: Tensor, joint: Tensor, *latent: Tensor) -> Prediction:
        """The same, and the chance that the episode goes on."""
        observation, reward, logit = self.each(u, joint, *latent)
        goes_on = logit.sigmoid().mean(0) if self.continues else torch.ones_like(reward[0])
        return Prediction(observation.mean(0), reward.mean(0), goes_on)

    def each(self, u: Tensor, joint: Tensor, *latent: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Every member's u_{t+1} [M, ..., N, D], reward [M, ..., N, 1] and logit [M, ..., N, 0 or 1] of going on."""
        outputs = self._outputs(self.assemble(u, joint, *latent))
        change, reward, logit = outputs.tensor_split((u.shape[-1], u.shape[-1] + 1), -1)
        return u + change, reward, logit

    def _outputs(self, x: Tensor) -> Tensor:
        """[..., d] -> [M, ..., D + 1 or 2]."""
        if self.members == 1:
            return self.net(x).unsqueeze(0)
        rows = x.reshape(1, -1, x.shape[-1]).expand(self.members, -1, -1)
        for layer in self.net:
            rows = layer.by_agent(rows) if isinstance(layer, AgentLinear) else layer(rows)
        return rows.unflatten(1, x.shape[:-1])


def disagreement(predictions: Tensor, mask: Tensor) -> Tensor:
    """Population variance over members [M, ..., D], its mean [...] over features where ``mask`` ([D], [N, D]) holds."""
    return (predictions.var(0, correction=0) * mask).sum(-1) / mask.sum(-1).clamp_min(1)


def symlog(x: Tensor) -> Tensor:
    """sign(x) ln(1 + |x|): nearly x when small, a logarithm when large (Hafner et al. 2023, eq. 9)."""
    return x.sign() * x.abs().log1p()


def symexp(x: Tensor) -> Tensor:
    """sign(x) (exp(|x|) - 1), the inverse of `symlog`."""
    return x.sign() * x.abs().expm1()
