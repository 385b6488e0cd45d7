"""Policy losses of proximal policy optimisation and advantage actor-critic, and the value loss of both."""

from __future__ import annotations

from functools import partial
from typing import Literal

import torch
from tensordict import NestedKey, TensorDict, TensorDictBase
from tensordict.nn import TensorDictModule, TensorDictSequential
from torch import Tensor

from suite import distributed
from suite.losses.common import Loss
from suite.modules.functional import clipped_surrogate, clipped_value_error, huber, masked_mean
from suite.modules.lowered import Lowered, call
from suite.specs import ACTION, ADVANTAGE, LOG_PROB, VALUE, VALUE_TARGET
from suite.update import FIRST_STEP


@torch.no_grad()
def ratio_metrics(log_prob: Tensor, old: Tensor, *, clip: float, mask: Tensor | None) -> dict[str, Tensor]:
    """What the ratios rho = exp(log_prob - old) say of an update, over all that counts.

    kl: mean rho - 1 - log rho, which estimates KL(old || new); clip_fraction: share of |rho - 1| > clip;
    first_step_ratio_error: max |rho - 1|. Before an iteration's first optimiser step the latter is 0, up to rounding,
    if the loss sees the policy that acted: same weights, statistics, latents and memory. (The mean of rho would not
    tell: under the old policy's actions it is 1 for any new one.)
    """
    log_ratio = log_prob - old
    off = log_ratio.expm1()
    error = off.abs() if mask is None else torch.where(mask, off.abs(), 0.0)
    return {"kl": masked_mean(off - log_ratio, mask), "clip_fraction": masked_mean((error > clip).to(off.dtype), mask),
            f"{FIRST_STEP}ratio_error": error.amax()}


class PolicyLoss(Loss):
    """Clipped surrogate (PPO) or plain policy gradient (A2C), with an entropy bonus, averaged over frames and agents.

    ppo: - mean min(rho A, clip(rho, 1 +- clip) A) - entropy_coef * mean H     (Schulman et al. 2017, eq. 7 and 9)
    a2c: - mean A log pi(a) - entropy_coef * mean H                            (Mnih et al. 2016)

    The advantage is a constant: the batch's, or with ``critic`` given, value target minus that critic's present value
    (EPyMARL recomputes it in every epoch). No gradient reaches the critic, or encoders whose features were stored.

    Own code, though value and gradients are those of TorchRL's ClipPPOLoss and A2CLoss (the tests compare them): these
    have neither ``critic`` nor ``controlled``, and with the functional parameters and TensorDicts inside ClipPPOLoss
    takes 1.1 times as long for 2400 frames and 1.35 times for 240 (with a value loss, forth and back, one core).

    Args:
        actor: probabilistic policy head; its inputs are read from the minibatch.
        clip: half width of the trust region of the ratio; None is the A2C objective.
        mask, controlled: keys of bools [..., A]; agents where one is False do not count: they are no more, or the
            environment chose the action that the batch holds.
        normalize: standardise the advantages over all that counts in the minibatch, of all processes.
    """

    def __init__(self, actor: TensorDictSequential, *, clip: float | None, entropy_coef: float,
                 critic: TensorDictModule | None = None, mask: NestedKey | None = None,
                 controlled: NestedKey | None = None, normalize: bool = False):
        if clip is not None and not clip > 0:
            raise ValueError(f"clip must be positive, or None for A2C, got {clip}")
        advantage = [ADVANTAGE] if critic is None else [VALUE_TARGET, *critic.in_keys]
        super().__init__(
            [*actor.in_keys, ACTION, *([] if clip is None else [LOG_PROB]), *advantage,
             *(key for key in (mask, controlled) if key)]
        )
        self.actor = actor
        self.lowered = Lowered(actor)
        self.clip, self.entropy_coef, self.mask, self.controlled = clip, entropy_coef, mask, controlled
        self.normalize = normalize
        self.__dict__["critic"] = critic  # not a submodule: its parameters belong to the value loss

    def forward(self, minibatch: TensorDictBase) -> TensorDictBase:
        """``loss_policy``, ``loss_entropy`` if it has a weight, and diagnostics."""
        dist = self.lowered.distribution({key: minibatch[key] for key in self.actor.in_keys})
        mask = minibatch[self.mask] if self.mask else None
        log_prob = dist.log_prob(minibatch[ACTION])
        if self.controlled:  # what a script does may be all but impossible for the policy: 0 times infinity
            acted = minibatch[self.controlled]
            log_prob = torch.where(acted, log_prob, 0.0 if self.clip is None else minibatch[LOG_PROB])
            mask = acted if mask is None else mask & acted
        advantage = self._advantage(minibatch)
        if self.normalize:
            mean, var, _ = distributed.moments(advantage, range(advantage.ndim), mask)
            advantage = (advantage - mean) / (var.sqrt() + 1e-8)
        out = {}
        if self.clip is None:
            objective = advantage * log_prob
        else:
            old = minibatch[LOG_PROB]
            objective = clipped_surrogate(log_prob, old, advantage, clip=self.clip)
            out |= ratio_metrics(log_prob, old, clip=self.clip, mask=mask)
        out["loss_policy"] = -masked_mean(objective, mask)
        if self.entropy_coef:
            entropy = masked_mean(dist.entropy(), mask)
            out["loss_entropy"] = -self.entropy_coef * entropy
        else:
            entropy = -masked_mean(log_prob.detach(), mask)
        return TensorDict(out | {"entropy": entropy.detach()})

    def _advantage(self, minibatch: TensorDictBase) -> Tensor:
        if self.critic is None:
            return minibatch[ADVANTAGE].squeeze(-1)
        with torch.no_grad():
            value = call(self.critic, {key: minibatch[key] for key in self.critic.in_keys})
            return (minibatch[VALUE_TARGET] - value).squeeze(-1)


ValueKind = Literal["l2", "smooth_l1", "huber"]
VALUE_ERRORS = {"l2": torch.square, "smooth_l1": partial(huber, threshold=1.0), "huber": partial(huber, threshold=10.0)}


class ValueLoss(Loss):
    """Error between the critic and the value target, averaged over frames and agents.

    l2: mean (V - G)^2; with ``clip``: mean max((V - G)^2, (V_old + clip(V - V_old, +-clip) - G)^2). The other kinds
    have the Huber error instead of the square: smooth_l1 with threshold 1, huber with 10, as MAPPO's program.
    ``target``, ``old``: keys of G and V_old.
    """

    def __init__(self, critic: TensorDictModule, *, clip: float | None, kind: ValueKind,
                 mask: NestedKey | None = None, target: NestedKey = VALUE_TARGET, old: NestedKey = VALUE):
        if kind not in VALUE_ERRORS:
            raise ValueError(f"unknown value loss {kind!r}; choose from {list(VALUE_ERRORS)}")
        super().__init__([*critic.in_keys, target, *([] if clip is None else [old]), *([mask] if mask else [])])
        self.critic, self.clip, self.kind, self.mask = critic, clip, kind, mask
        self.target_key, self.old_key = target, old

    def forward(self, minibatch: TensorDictBase) -> TensorDictBase:
        """``loss_value`` and the share of variance explained."""
        value = call(self.critic, {key: minibatch[key] for key in self.critic.in_keys})
        target = minibatch[self.target_key]
        of = VALUE_ERRORS[self.kind]
        if self.clip is None:
            error = of(value - target)
        else:
            error = clipped_value_error(value, minibatch[self.old_key], target, clip=self.clip, error=of)
        alive = minibatch[self.mask].unsqueeze(-1) if self.mask else None
        loss = masked_mean(error, alive)
        with torch.no_grad():
            spread = masked_mean((target - masked_mean(target, alive)).square(), alive)
            residual = target - value
            unexplained = masked_mean((residual - masked_mean(residual, alive)).square(), alive)
            explained = 1 - unexplained / spread.clamp_min(1e-8)
        return TensorDict({"loss_value": loss, "explained_variance": explained})
