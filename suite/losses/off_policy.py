"""Off-policy losses: TorchRL's, given our keys and the team's reward."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from tensordict import NestedKey, TensorDict, TensorDictBase
from tensordict.nn import TensorDictModule, TensorDictSequential
from torch import nn
from torchrl.objectives import DDPGLoss, QMixerLoss, ValueEstimators

from suite.losses.common import Loss
from suite.modules.q_networks import STATE_ACTION_VALUE
from suite.specs import ACTION, DONE, REWARD, TERMINATED


class OffPolicyLoss(Loss):
    """Base of losses on replayed frames: encodes observations anew, because stored features would be stale.

    No gradient reaches the encoders, and their parameters belong to their own loss.
    """

    def __init__(self, inputs: Sequence[NestedKey], encoders: Sequence[TensorDictModule]):
        super().__init__()
        written = {key for encoder in encoders for key in encoder.out_keys}
        self.inputs = [
            key for key in dict.fromkeys([*(k for e in encoders for k in e.in_keys), *inputs]) if key not in written
        ]
        self.__dict__["encode"] = TensorDictSequential(*encoders) if encoders else None

    def with_features(self, minibatch: TensorDictBase) -> TensorDictBase:
        """A shallow copy of the minibatch with features of this and of the next observation."""
        td = minibatch.copy()
        if self.encode is not None:
            with torch.no_grad():
                td, after = self.encode(td), self.encode(td["next"].copy())
            td["next"] = after
        return td


class MixedQLoss(OffPolicyLoss):
    """QMIX (Rashid et al. 2018) and VDN (Sunehag et al. 2018): one temporal-difference error of the mixed value.

    L = mean (Q_tot(s, a) - (r + gamma (1 - terminated) max_a' Q_tot'(s', a')))^2 with target networks; r is the mean
    of the agents' rewards. The target follows with `torchrl.objectives.SoftUpdate(loss.td, ...)`.
    """

    def __init__(self, policy: TensorDictSequential, mixer: TensorDictModule, *, gamma: float,
                 encoders: Sequence[TensorDictModule] = ()):
        super().__init__([key for key in (*policy.in_keys, *mixer.in_keys) if key not in policy.out_keys], encoders)
        self.td = QMixerLoss(policy, mixer, action_space="categorical", delay_value=True)
        self.td.make_value_estimator(ValueEstimators.TD0, gamma=gamma)
        self.in_keys = [*self.inputs, ACTION, *map(_next, [*self.inputs, REWARD, "done", "terminated"])]

    def forward(self, minibatch: TensorDictBase) -> TensorDictBase:
        """``loss_q``."""
        td = self.with_features(minibatch)
        td["next", "reward"] = minibatch[_next(REWARD)].mean(-2)
        return TensorDict({"loss_q": self.td(td)["loss"]})


class MADDPGLoss(OffPolicyLoss):
    """Deterministic policy gradient with a joint critic per agent (Lowe et al. 2017).

    Critic: mean (Q_i(o, a) - (r_i + gamma (1 - terminated) Q_i'(o', mu'(o'))))^2; actor: - mean Q_i(o, mu(o)), where
    all agents' actions come from the current policy, so that an actor climbs the mean of all agents' values (the
    paper's climbs its own, beside stored actions of the others). Target networks on both. The critic has a row
    [..., A, 1] per agent, which must know whose it is, else all would learn the mean of the agents' values; see
    `make_joint_q`.
    """

    def __init__(self, actor: TensorDictModule, critic: TensorDictModule, *, gamma: float,
                 encoders: Sequence[TensorDictModule] = ()):
        super().__init__([*actor.in_keys, *(key for key in critic.in_keys if key != ACTION)], encoders)
        self.td = DDPGLoss(actor, critic, delay_actor=True, delay_value=True, loss_function="l2")
        self.td.set_keys(state_action_value=STATE_ACTION_VALUE, reward=REWARD, done=DONE, terminated=TERMINATED)
        self.td.make_value_estimator(ValueEstimators.TD0, gamma=gamma)
        self.in_keys = [*self.inputs, ACTION, *map(_next, [*self.inputs, REWARD, DONE, TERMINATED])]

    def networks(self, part: str) -> dict[str, list[nn.Parameter]]:
        """Actor and critic apart."""
        return {"actor": list(self.td.actor_network_params.parameters()),
                "critic": list(self.td.value_network_params.parameters())}

    def forward(self, minibatch: TensorDictBase) -> TensorDictBase:
        """``loss_value``, ``loss_actor`` and the mean value."""
        out = self.td(self.with_features(minibatch))
        losses = {key: out[key].mean() for key in ("loss_value", "loss_actor")}
        return TensorDict(losses | {"pred_value": out["pred_value"].detach().mean()})


def _next(key):
    return ("next", key) if isinstance(key, str) else ("next", *key)
