"""The loss of the world model: next observation and reward, from observation and joint action."""

from __future__ import annotations

import torch
from tensordict import TensorDict, TensorDictBase
from torch import Tensor
from torch.nn import functional as F

from suite.losses.common import Loss
from suite.modules.gaussian import weighted_mean
from suite.modules.state_model import StateModel
from suite.specs import ACTION, GROUP, OBSERVATION, Specs

TASK_REWARD = ("next", GROUP, "task_reward")  # [N, T, A, 1], before any shaping
NEXT_OBSERVATION = ("next", *OBSERVATION)


def observation_error(predicted: Tensor, target: Tensor, mask: Tensor, *, reduce: str = "mean") -> Tensor:
    """Squared error [...] over the features where ``mask`` [D] is True: their ``sum``, or their ``mean``."""
    total = ((predicted - target).square() * mask).sum(-1)
    return total if reduce == "sum" else total / mask.sum().clamp_min(1)


class WorldModelLoss(Loss):
    """L = obs_coef mean |u^_{t+1} - u_{t+1}|^2 + reward_coef mean (r^_{t+1} - r_{t+1} / scale)^2 over living agents.

    u is the standardised observation, the mean also runs over its features; targets are constants. It is written in
    the next convention (input o_t, a_t), which equals the loss on (o_{t-1}, a_{t-1}) shifted by a step, uses the last
    transition, and sees the true last observation of an episode.

    Args:
        model: holds world model, action encoding and scaler. reward_scale: 0-d tensor that rewards are divided by.
        huber: Huber error (threshold 1) for rewards.
    """

    def __init__(self, specs: Specs, model: StateModel, reward_scale: Tensor, *, obs_coef: float = 1.0,
                 reward_coef: float = 1.0, huber: bool = False):
        super().__init__([OBSERVATION, ACTION, NEXT_OBSERVATION, TASK_REWARD, *([specs.alive] if specs.alive else [])])
        self.model, self.alive, self.huber = model, specs.alive, huber
        self.obs_coef, self.reward_coef = obs_coef, reward_coef
        self.register_buffer("reward_scale", reward_scale)

    def predict(self, td: TensorDictBase) -> tuple[Tensor, Tensor]:
        """Next standardised observation and scaled reward [..., A, 1]."""
        model = self.model
        joint = model.previous.visible(model.actions.pack(model.actions.encode(td[ACTION])))
        return model.world_model(model.scaler(td[OBSERVATION]), joint)

    def forward(self, minibatch: TensorDictBase) -> TensorDictBase:
        """``loss_obs``, ``loss_reward``."""
        predicted, reward = self.predict(minibatch)
        target = self.model.scaler(minibatch[NEXT_OBSERVATION])
        error = observation_error(predicted, target, self.model.scaler.mask)
        alive = minibatch[self.alive].to(error.dtype) if self.alive else torch.ones_like(error)
        wanted = minibatch[TASK_REWARD] / self.reward_scale
        miss = F.huber_loss(reward, wanted, reduction="none") if self.huber else (reward - wanted).square()
        return TensorDict({"loss_obs": self.obs_coef * weighted_mean(error, alive),
                           "loss_reward": self.reward_coef * weighted_mean(miss.squeeze(-1), alive)})

    def networks(self, part: str) -> dict[str, list]:
        """The world model."""
        return {part: list(self.model.world_model.parameters())}
