"""P-DQN and PDQN-TD3: one loss for the values of the choices, one for their parameters; the two take turns."""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
from tensordict import NestedKey, TensorDict, TensorDictBase
from tensordict.nn import TensorDictModule
from torch import Tensor, nn
from torch.func import functional_call

from suite.losses.deterministic import SoftTargets
from suite.losses.off_policy import OffPolicyLoss
from suite.modules.functional import masked_mean
from suite.modules.hybrid_networks import ALL_PARAMS
from suite.modules.inverting import InvertingGradients
from suite.modules.lowered import call
from suite.specs import ACTION_MASK, CHOICE, REWARD, TERMINATED


class PDQNValueLoss(OffPolicyLoss):
    """Temporal-difference error of the choices taken (Xiong et al. 2018, "Parametrized Deep Q-Networks Learning", 4).

    y = r + gamma (1 - terminated) max_j Q'(s', x'(s'))_j;  L = mean (Q(s, x)_k - y)^2

    x are the parameters of all choices as they were played, k is the choice; mean over frames and agents. With two
    heads (PDQN-TD3) y has the smaller of the heads' maxima, and their errors are added. Q' and x' are slow copies of
    both networks that belong to this loss; no gradient reaches them or the parameter network.

    Args:
        param_network, q_network: see `make_param_network` and `make_hybrid_q`. Only the latter is trained here.
        has_mask: the maximum is taken over the allowed choices only (`ACTION_MASK`).
        mask: key of a bool [..., A]; agents where it is False do not count.
    """

    def __init__(self, param_network: TensorDictModule, q_network: TensorDictModule, *, gamma: float,
                 encoders: Sequence[TensorDictModule] = (), has_mask: bool = False, mask: NestedKey | None = None):
        super().__init__(_observed(param_network, q_network), encoders)
        self.gamma, self.has_mask, self.mask = gamma, has_mask, mask
        self.q = q_network
        self.slow_q, self.slow_params = (copy.deepcopy(x).requires_grad_(False) for x in (q_network, param_network))
        self.__dict__["params"] = param_network  # not a submodule: it belongs to the other loss
        after = [*self.inputs, REWARD, TERMINATED, *([ACTION_MASK] if has_mask else [])]
        self.in_keys = [*self.inputs, ALL_PARAMS, CHOICE, *map(_next, after), *([mask] if mask else [])]

    def forward(self, minibatch: TensorDictBase) -> TensorDictBase:
        """``loss_value``, the mean value of the choices taken and the mean target."""
        td = self.with_features(minibatch)
        target = self._target(td)
        values = self.q.module.every(*[td[key] for key in self.q.in_keys])  # [heads, ..., A, K]
        choice = td[CHOICE].unsqueeze(-1).expand(*values.shape[:-1], 1)
        chosen = values.gather(-1, choice).squeeze(-1)
        mask = td[self.mask] if self.mask else None
        loss = masked_mean((chosen - target).square().sum(0), mask)
        return TensorDict({"loss_value": loss, "pred_value": masked_mean(chosen[0].detach(), mask),
                           "target_value": masked_mean(target, mask)})

    @torch.no_grad()
    def _target(self, td: TensorDictBase) -> Tensor:
        after = td["next"].copy()
        after[ALL_PARAMS] = call(self.slow_params, after)
        values = self.slow_q.module.every(*[after[key] for key in self.slow_q.in_keys])
        if self.has_mask:
            values = values.masked_fill(~after[ACTION_MASK], -torch.inf)
        best = values.amax(-1).amin(0)
        return (after[REWARD] + self.gamma * best.unsqueeze(-1) * ~after[TERMINATED]).squeeze(-1)

    def targets(self, *, tau_q: float, tau_params: float) -> dict[str, list[SoftTargets]]:
        """What moves the slow copies, by the part after whose step it is to do so: ``critic`` and ``actor``.

        Raises:
            ValueError: a rate is not between 0 and 1.
        """
        return {"critic": [SoftTargets((self.q, self.slow_q, tau_q))],
                "actor": [SoftTargets((self.params, self.slow_params, tau_params))]}


class PDQNParamsLoss(OffPolicyLoss):
    """The parameters of all choices follow the sum of the choices' values (Xiong et al. 2018, section 4).

    L = - mean sum_j Q(s, x(s))_j, whose gradient with respect to x is inverted at the bounds -1 and 1, see
    `InvertingGradients`. The first head is asked; no gradient is taken of the Q network's parameters.

    Args:
        inverting: False takes the gradient as it is, so that nothing keeps the parameters inside their bounds.
        Others: see `PDQNValueLoss`.
    """

    def __init__(self, param_network: TensorDictModule, q_network: TensorDictModule, *, inverting: bool = True,
                 encoders: Sequence[TensorDictModule] = (), mask: NestedKey | None = None):
        super().__init__(_observed(param_network, q_network), encoders)
        self.mask = mask
        self.params = param_network
        self.bounded = InvertingGradients() if inverting else nn.Identity()
        self.__dict__["q"] = q_network  # not a submodule: it belongs to the other loss
        self.in_keys = [*self.inputs, *([mask] if mask else [])]

    def forward(self, minibatch: TensorDictBase) -> TensorDictBase:
        """``loss_params``, and the share of parameters outside their bounds."""
        td = minibatch.copy()
        if self.encode is not None:  # this observation alone
            with torch.no_grad():
                td = self.encode(td)
        params = call(self.params, td)
        td[ALL_PARAMS] = self.bounded(params)
        fixed = {name: value.detach() for name, value in self.q.module.named_parameters()}
        values = functional_call(self.q.module, fixed, tuple(td[key] for key in self.q.in_keys))
        mask = td[self.mask] if self.mask else None
        outside = (params.detach().abs() > 1).to(values.dtype).mean(-1)
        return TensorDict({"loss_params": -masked_mean(values.sum(-1), mask), "outside": masked_mean(outside, mask)})


def _observed(*networks: TensorDictModule) -> list[NestedKey]:
    return [key for network in networks for key in network.in_keys if key != ALL_PARAMS]


def _next(key: NestedKey) -> NestedKey:
    return ("next", key) if isinstance(key, str) else ("next", *key)
