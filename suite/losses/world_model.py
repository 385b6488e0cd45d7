"""The loss of the world model: next observation and reward, from observation and joint action."""

from __future__ import annotations

from typing import Literal

import torch
from tensordict import TensorDict, TensorDictBase
from torch import Tensor
from torch.nn import functional as F

from suite.losses.common import Loss
from suite.modules.gaussian import weighted_mean
from suite.modules.state_model import StateModel
from suite.modules.world_model import symexp, symlog
from suite.specs import GROUP, OBSERVATION, TERMINATED, Specs
from suite.state_metrics import observation_prediction

TASK_REWARD = ("next", GROUP, "task_reward")  # [N, T, A, 1], before any shaping
NEXT_OBSERVATION = ("next", *OBSERVATION)
Reduction = Literal["mean", "sum"]


def observation_error(predicted: Tensor, target: Tensor, mask: Tensor, *, reduction: Reduction) -> Tensor:
    """Squared error [...] over the features where ``mask`` [D] or [N, D] is True: their ``sum``, or their ``mean``."""
    total = ((predicted - target).square() * mask).sum(-1)
    return total if reduction == "sum" else total / mask.sum(-1).clamp_min(1)


class WorldModelLoss(Loss):
    """L = obs_coef mean |u^_{t+1} - u_{t+1}|^2 + reward_coef mean (r^_{t+1} - r_{t+1} / scale)^2 over living agents.

    u is the standardised observation, the mean also runs over its features; targets are constants. It is written in
    the next convention (input o_t, a_t), which equals the loss on (o_{t-1}, a_{t-1}) shifted by a step, uses the last
    transition, and sees the true last observation of an episode. A world model that predicts whether the episode goes
    on adds the binary cross-entropy with "not terminated". The members of an ensemble learn from the same minibatches
    and differ by their initial weights (Lakshminarayanan et al. 2017); L is the mean of their losses.

    Args:
        model: holds world model, action encoding and scaler. reward_scale: 0-d tensor that rewards are divided by.
        reduction: ``sum`` adds the squared errors of the features up instead. huber: Huber error (threshold 1) for
            rewards. symlog_reward: predict symlog(r) instead of r / scale.
        shared_reward: predict one reward for all agents, their mean.
    """

    def __init__(self, specs: Specs, model: StateModel, reward_scale: Tensor, *, obs_coef: float = 1.0,
                 reward_coef: float = 1.0, reduction: Reduction = "mean", huber: bool = False,
                 symlog_reward: bool = False, shared_reward: bool = False):
        continues = [("next", *TERMINATED)] if model.world_model.continues else []
        self.read_latent = [("next", *key) for key in model.carried_latent]
        super().__init__([OBSERVATION, *model.previous.keys, NEXT_OBSERVATION, TASK_REWARD, *continues,
                          *self.read_latent, *([specs.alive] if specs.alive else [])])
        self.model, self.alive, self.huber, self.reduction = model, specs.alive, huber, reduction
        self.obs_coef, self.reward_coef = obs_coef, reward_coef
        self.symlog, self.shared_reward = symlog_reward, shared_reward
        self.register_buffer("reward_scale", reward_scale)

    def inputs(self, td: TensorDictBase) -> tuple[Tensor, ...]:
        """What the world model reads of a step: u_t and a_t, and z_t as it acted if it reads that."""
        return self.model.scaler(td[OBSERVATION]), self.model.joint_action(td), *self.latent(td)

    def latent(self, td: TensorDictBase) -> list[Tensor]:
        """[z_t] of a world model that reads it, as the step handed it on; else nothing."""
        return [td[key] for key in self.read_latent]

    def predict(self, td: TensorDictBase) -> tuple[Tensor, Tensor]:
        """Next standardised observation and scaled reward [..., A, 1]."""
        return self.model.world_model(*self.inputs(td))

    def scaled(self, reward: Tensor) -> Tensor:
        """Rewards [..., A, 1] as the world model predicts them."""
        if self.shared_reward:
            reward = reward.mean(-2, keepdim=True).expand_as(reward)
        return symlog(reward) if self.symlog else reward / self.reward_scale

    def unscaled(self, prediction: Tensor) -> Tensor:
        """Predicted rewards in the task's units."""
        return symexp(prediction) if self.symlog else prediction * self.reward_scale

    def forward(self, minibatch: TensorDictBase) -> TensorDictBase:
        """``loss_obs``, ``loss_reward``, and ``loss_continue`` if that is predicted."""
        observation, reward, logit = self.model.world_model.each(*self.inputs(minibatch))
        target = self.model.scaler(minibatch[NEXT_OBSERVATION])
        error = observation_error(observation, target, self.model.scaler.mask, reduction=self.reduction).mean(0)
        alive = minibatch[self.alive].to(error.dtype) if self.alive else torch.ones_like(error)
        wanted = self.scaled(minibatch[TASK_REWARD]).expand_as(reward)
        miss = F.huber_loss(reward, wanted, reduction="none") if self.huber else (reward - wanted).square()
        out = {"loss_obs": self.obs_coef * weighted_mean(error, alive),
               "loss_reward": self.reward_coef * weighted_mean(miss.mean(0).squeeze(-1), alive)}
        if self.model.world_model.continues:
            goes_on = (~minibatch["next", *TERMINATED]).to(logit.dtype).expand_as(logit)
            miss = F.binary_cross_entropy_with_logits(logit, goes_on, reduction="none")
            out["loss_continue"] = weighted_mean(miss.mean(0).squeeze(-1), alive)
        return TensorDict(out)

    def skill(self, td: TensorDictBase) -> Tensor:
        """0-d: how much of the error of "nothing changes" is gone, 1 - mse / mse_copy (wm/obs_skill_1)."""
        inputs, scaler = self.inputs(td), self.model.scaler
        u, alive = inputs[0], td[self.alive].to(inputs[0].dtype) if self.alive else None
        predicted, after = self.model.world_model(*inputs)[0], scaler(td[NEXT_OBSERVATION])
        return observation_prediction(predicted, after, u, alive, dims=scaler.mask)["obs_skill_1"]

    def networks(self, part: str) -> dict[str, list]:
        """The world model."""
        return {part: list(self.model.world_model.parameters())}
