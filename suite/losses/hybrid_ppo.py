"""The policy loss of hybrid PPO with a trust region for the choice and another for its parameters."""

from __future__ import annotations

from tensordict import NestedKey, TensorDict, TensorDictBase
from tensordict.nn import TensorDictSequential

from suite.losses.common import Loss
from suite.losses.ppo import ratio_metrics
from suite.modules.functional import clipped_surrogate, masked_mean
from suite.modules.hybrid_policy import CHOICE_LOG_PROB
from suite.modules.lowered import Lowered
from suite.specs import ACTION, ADVANTAGE, LOG_PROB


class HybridPolicyLoss(Loss):
    """Two clipped surrogates (H-PPO, Fan et al. 2019, "Hybrid Actor-Critic Reinforcement Learning in Parameterized
    Action Space").

    L = - mean S(rho_k) - mean S(rho_x) - entropy_coef * mean H,  S(rho) = min(rho A, clip(rho, 1 +- clip) A)

    rho_k is the ratio of the choice's probability to that when it was taken, rho_x that of the density of the choice's
    own parameters; `PolicyLoss` has their product instead. Where the choice has no parameters rho_x is 1, and there is
    nothing to learn. The advantage is a constant.

    Args:
        actor: see `make_hybrid_actor`. clip: half width of both trust regions. mask: key of a bool [..., A]; agents
            where it is False do not count.
    """

    def __init__(self, actor: TensorDictSequential, *, clip: float, entropy_coef: float, mask: NestedKey | None = None):
        if not clip > 0:
            raise ValueError(f"clip must be positive, got {clip}")
        super().__init__([*actor.in_keys, ACTION, LOG_PROB, CHOICE_LOG_PROB, ADVANTAGE, *([mask] if mask else [])])
        self.actor, self.clip, self.entropy_coef, self.mask = actor, clip, entropy_coef, mask
        self.lowered = Lowered(actor)

    def forward(self, minibatch: TensorDictBase) -> TensorDictBase:
        """``loss_choice``, ``loss_params``, ``loss_entropy`` if it has a weight, and diagnostics for each ratio."""
        dist = self.lowered.distribution({key: minibatch[key] for key in self.actor.in_keys})
        mask = minibatch[self.mask] if self.mask else None
        advantage = minibatch[ADVANTAGE].squeeze(-1)
        choice, params = dist.parts(minibatch[ACTION])
        old_choice = minibatch[CHOICE_LOG_PROB]
        out = {}
        for name, new, old in (("choice", choice, old_choice), ("params", params, minibatch[LOG_PROB] - old_choice)):
            out[f"loss_{name}"] = -masked_mean(clipped_surrogate(new, old, advantage, clip=self.clip), mask)
            found = ratio_metrics(new, old, clip=self.clip, mask=mask)
            out |= {f"{metric}_{name}": value for metric, value in found.items()}
        entropy = masked_mean(dist.entropy(), mask)
        if self.entropy_coef:
            out["loss_entropy"] = -self.entropy_coef * entropy
        return TensorDict(out | {"entropy": entropy.detach()})
