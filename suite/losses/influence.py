"""The reward for moving the others (social influence, Jaques et al. 2019), and when it counts."""

from __future__ import annotations

from typing import Literal

import torch
from tensordict import TensorDictBase
from tensordict.nn import TensorDictModuleBase
from torch import Tensor, nn

from suite import distributed
from suite.data import FirstRows
from suite.losses.action_model import ActionModelLoss
from suite.modules.functional import Divergence
from suite.modules.lowered import Lowered
from suite.modules.normalizer import RunningMoments
from suite.state_metrics import LEAST_GAP, skill

InfluenceScale = Literal["none", "std"]
ERRORS = ("", "_marginal", "_floor")  # of what moa/skill is made of
SHARE = 0.1  # of a batch in the average of the errors


class Influence(nn.Module):
    """`ActionModelLoss.influence` [N, T, A, 1], at most ``limit``, times the factors of a schedule.

    It counts once the model of the others had a skill above ``least_skill`` on held-out environments; at 0 always. That
    is moa/skill of errors averaged over the latest ten batches or so: of one batch it is mostly noise, which is above
    any threshold sooner or later. Over the last share ``decay`` of the run the term falls linearly to zero. What an
    agent might have done instead of a continuous action, its policy says, see `ask`.

    Args:
        action_loss, reward_moments: the model, and the statistics of the task's reward; they remain their owner's.
        scale: ``std`` counts in units of the running deviation of the task's reward, which is unknown, and nothing
            paid, in the first batch.
        held_out: see `FirstRows`. samples: of a continuous policy, the action taken among them.

    Attributes:
        noted: metrics of the latest batch.
    """

    def __init__(self, action_loss: ActionModelLoss, reward_moments: RunningMoments, *, divergence: Divergence,
                 limit: float, least_skill: float, decay: float, scale: InfluenceScale, held_out: float,
                 samples: int):
        super().__init__()
        self.__dict__.update(action_loss=action_loss, reward_moments=reward_moments, policy=None)
        self.samples = samples
        self.divergence, self.limit, self.scale, self.held_out = divergence, limit, scale, held_out
        self.least_skill, self.decay, self.share = least_skill, decay, 1.0
        self.register_buffer("active", torch.zeros(()) if least_skill else None)
        self.register_buffer("errors", torch.zeros(len(ERRORS)) if least_skill else None)
        self.register_buffer("batches", torch.zeros(()) if least_skill else None)
        self.noted: dict[str, Tensor] = {}

    def ask(self, actor: TensorDictModuleBase) -> None:
        """Whose samples are counterfactuals of continuous actions: the actor, which has not learned since it acted."""
        self.__dict__["policy"] = Lowered(actor)

    def schedule(self, done: float) -> None:
        """Take note of the share of the run that is over."""
        self.share = min(1.0, max(0.0, 1 - done) / self.decay) if self.decay else 1.0

    @torch.no_grad()
    def moved(self, batch: TensorDictBase) -> Tensor:
        """`ActionModelLoss.influence` [N, T, A, 1] of a batch [N, T], of a policy that has not learned since."""
        drawn = None if self.action_loss.discrete else self._drawn(batch)
        return self.action_loss.influence(batch, drawn, divergence=self.divergence)

    @torch.no_grad()
    def forward(self, batch: TensorDictBase, moved: Tensor | None = None) -> Tensor:
        """The term of a batch [N, T], which may switch it on: once per batch. ``moved``: if it is known already."""
        moved = self.moved(batch) if moved is None else moved
        moved = self.share * moved.clamp_max(self.limit)
        if self.scale == "std":
            moments = self.reward_moments
            moved = moved * torch.where(moments.count > 1, moments.var.sqrt(), 0.0)
        return moved if self.active is None else moved * self._measured(batch)

    def _drawn(self, batch: TensorDictBase) -> Tensor:
        """[K - 1, N, T, A, d]."""
        policy = self.policy.distribution({key: batch[key] for key in self.policy.policy.in_keys})
        return policy.sample(torch.Size([self.samples - 1]))

    def _measured(self, batch: TensorDictBase) -> Tensor:
        """0-d: 1 once the skill was there, else 0."""
        out = FirstRows.kept_out(len(batch), self.held_out)
        if not out:
            raise ValueError("influence_skill of loss 'moa' is measured on held-out environments: it needs --num-envs "
                             "2")
        found = self.action_loss.scores(batch[:-out], batch[-out:])
        self.batches += 1
        error = "ce" if self.action_loss.discrete else "nll"
        latest = distributed.average(torch.stack([found[error + name] for name in ERRORS]).to(self.errors.dtype))
        self.errors.lerp_(latest, (1 / self.batches).clamp_min(SHARE))
        reached = skill(*self.errors, least=LEAST_GAP)
        self.active.copy_(torch.maximum(self.active, (reached > self.least_skill).to(self.active.dtype)))
        self.noted = {"influence/active": self.active.clone(), "influence/skill": reached}
        return self.active
