"""P-DQN's networks: the parameters of every choice from the observation, and the value of every choice given all those.

K choices with sum P_k = D parameters in all and at most P each, numbered choice by choice as `Specs.param_mask` has
them. (Xiong et al. 2018, "Parametrized Deep Q-Networks Learning"; Bester et al. 2019, "Multi-Pass Q-Networks for Deep
Reinforcement Learning with Parameterised Action Spaces".)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from tensordict import NestedKey
from tensordict.nn import TensorDictModule, TensorDictSequential
from torch import Tensor, nn

from suite.modules.exploration import EpsilonGreedy
from suite.modules.networks import AgentInput, Init, Sharing, mlp, sharing_index
from suite.modules.q_networks import ACTION_VALUE
from suite.specs import ACTION_MASK, CHOICE, GROUP, OBSERVATION, PARAMS, Specs

ALL_PARAMS = (GROUP, "all_params")  # [N, T, A, D], the parameters of all choices side by side, not clamped


class ParamSlots(nn.Module):
    """Where the parameters of each choice lie among those of all choices.

    Attributes:
        slots: int64 [K, P], the place of each of a choice's parameters, D where it has none.
        owned: bool [K, D], which of all parameters belong to a choice. width: D.

    Raises:
        ValueError: there is no mask, because the actions are not hybrid, or no choice has a parameter.
    """

    def __init__(self, param_mask: Tensor | None):
        super().__init__()
        if param_mask is None or not bool(param_mask.any()):
            raise ValueError(f"hybrid actions with parameters are needed, got the parameter mask {param_mask}")
        self.width = int(param_mask.sum())
        place = param_mask.flatten().cumsum(0).view(param_mask.shape) - 1
        slots = torch.where(param_mask, place, self.width)
        self.register_buffer("slots", slots, persistent=False)
        everywhere = torch.arange(self.width, device=slots.device)
        self.register_buffer("owned", (slots.unsqueeze(-1) == everywhere).any(-2), persistent=False)

    def forward(self, choice: Tensor, all_params: Tensor) -> Tensor:
        """Choice int64 [...] and all parameters [..., D] -> the choice's own [..., P], zero behind them."""
        return take(self.slots, choice, all_params)


def take(slots: Tensor, choice: Tensor, all_params: Tensor, *, padding: float = 0.0) -> Tensor:
    """[..., D] -> [..., P]: the entries that belong to ``choice`` int64 [...], then ``padding``."""
    return nn.functional.pad(all_params, (0, 1), value=padding).gather(-1, slots[choice])


@dataclass(frozen=True)
class PassThrough:
    """A fixed linear map of the observation that a parameter network starts from: biases [D], {(row, column): weight}.

    Rows are parameters scaled to [-1, 1], columns entries of the scaled observation; all other weights are zero.
    """

    bias: tuple[float, ...]
    weight: dict[tuple[int, int], float]


# where the MP-DQN programs start: constants 3, 10 and 400 of the ranges 30, 720 and 430; kick to where the ball is
# going, and shoot one metre inside either post
PASS_THROUGHS = {
    "platform": PassThrough((-0.8, 20 / 720 - 1, 800 / 430 - 1), {}),
    "goal": PassThrough((-0.375, 0.0, 6.01 / 7.01, -6.01 / 7.01),
                        {(0, 10): 0.5, (0, 14): 0.0625, (1, 11): 5 / 6, (1, 15): 1 / 9}),
}


class ParamNetwork(nn.Module):
    """x(s) = MLP(s, features) + W s + b [..., A, D], W and b fixed; not squashed, see `InvertingGradients`."""

    def __init__(self, assemble: nn.Module, layers: nn.Module, obs_dim: int, width: int, fixed: PassThrough | None):
        super().__init__()
        self.assemble, self.layers = assemble, layers
        weight, bias = torch.zeros(width, obs_dim), torch.zeros(width)
        if fixed is not None:
            rows, columns = (1 + max((place[axis] for place in fixed.weight), default=-1) for axis in (0, 1))
            if len(fixed.bias) != width or rows > width or columns > obs_dim:
                raise ValueError(f"the pass-through has {len(fixed.bias)} biases and weights for {rows} parameters and "
                                 f"{columns} observations, but there are {width} and {obs_dim}")
            bias = torch.tensor(fixed.bias)
            for place, value in fixed.weight.items():
                weight[place] = value
        self.register_buffer("weight", weight)
        self.register_buffer("bias", bias)

    def forward(self, *inputs: Tensor) -> Tensor:
        """Observation [..., A, obs] and features -> all parameters."""
        return self.layers(self.assemble(*inputs)) + nn.functional.linear(inputs[0], self.weight, self.bias)


class HybridQNetwork(nn.Module):
    """Values of all choices; with two ``heads``, whole networks that share nothing, as in TD3.

    ``owned`` bool [K, D] makes it multi-pass: choice j's value is that of the input in which only j's parameters are
    not zero, so that no value depends on the parameters of another choice. ``legacy``: the last layer of the first head
    also ends the others, as in the published PDQN-TD3 program, and their own is never used.
    """

    def __init__(self, assemble: nn.Module, heads: Sequence[nn.Sequential], *, owned: Tensor | None, legacy: bool):
        super().__init__()
        self.assemble, self.heads, self.legacy = assemble, nn.ModuleList(heads), legacy
        self.register_buffer("owned", owned, persistent=False)

    def forward(self, *inputs: Tensor) -> Tensor:
        """Observation, features ..., all parameters [..., A, D] -> the first head's values [..., A, K]."""
        return self._values(self._input(inputs), 0)

    def every(self, *inputs: Tensor) -> Tensor:
        """Values of every head [heads, ..., A, K]."""
        x = self._input(inputs)
        return torch.stack([self._values(x, head) for head in range(len(self.heads))])

    def _input(self, inputs: Sequence[Tensor]) -> Tensor:
        if self.owned is None:
            return self.assemble(*inputs)
        *observed, params = inputs  # passes [..., K, A, d]
        observed = [x.unsqueeze(-3).expand(*x.shape[:-2], len(self.owned), *x.shape[-2:]) for x in observed]
        return self.assemble(*observed, params.unsqueeze(-3) * self.owned.unsqueeze(-2))

    def _values(self, x: Tensor, head: int) -> Tensor:
        layers = self.heads[head]
        values = self.heads[0][-1](layers[:-1](x)) if self.legacy else layers(x)
        return values if self.owned is None else values.diagonal(dim1=-3, dim2=-1)


def make_param_network(specs: Specs, features: dict[NestedKey, int], *, share: Sharing, agent_id: bool,
                       cells: Sequence[int], activation: str, init: Init, device: torch.device | str,
                       pass_through: PassThrough | None = None) -> TensorDictModule:
    """x_theta(s): reads observation and ``features``, writes `ALL_PARAMS`.

    Raises:
        ValueError: the actions are not hybrid, or the pass-through does not fit.
    """
    width, in_dim = ParamSlots(specs.param_mask).width, _in_dim(specs, features, agent_id)
    layers = mlp(in_dim, width, sharing_index(share, specs.agent_types), cells=cells, activation=activation, init=init)
    network = ParamNetwork(AgentInput(specs.n_agents, agent_id), layers, specs.obs_dim, width, pass_through)
    return TensorDictModule(network.to(device), in_keys=[OBSERVATION, *features], out_keys=[ALL_PARAMS])


def make_hybrid_q(specs: Specs, features: dict[NestedKey, int], *, share: Sharing, agent_id: bool, cells: Sequence[int],
                  activation: str, init: Init, device: torch.device | str, heads: int = 1, multipass: bool = False,
                  legacy: bool = False) -> TensorDictModule:
    """Q_omega(s, x): reads observation, ``features`` and `ALL_PARAMS`, writes `ACTION_VALUE` [..., A, K].

    Args:
        heads: 2 for PDQN-TD3; the first one acts and trains the parameters. multipass, legacy: see `HybridQNetwork`.

    Raises:
        ValueError: the actions are not hybrid, or there is no head.
    """
    if heads < 1:
        raise ValueError(f"heads must be positive, got {heads}")
    slots, index = ParamSlots(specs.param_mask), sharing_index(share, specs.agent_types)
    in_dim = _in_dim(specs, features, agent_id) + slots.width
    layers = [mlp(in_dim, len(slots.slots), index, cells=cells, activation=activation, init=init) for _ in range(heads)]
    network = HybridQNetwork(AgentInput(specs.n_agents, agent_id), layers, legacy=legacy,
                             owned=slots.owned if multipass else None)
    return TensorDictModule(network.to(device), in_keys=[OBSERVATION, *features, ALL_PARAMS], out_keys=[ACTION_VALUE])


def _in_dim(specs: Specs, features: dict[NestedKey, int], agent_id: bool) -> int:
    return specs.obs_dim + sum(features.values()) + (specs.n_agents if agent_id else 0)


class BestChoice(nn.Module):
    """The choice of the highest value; masked ones are never taken."""

    def forward(self, values: Tensor, mask: Tensor | None = None) -> Tensor:
        """Values and optional mask [..., A, K] -> int64 [..., A]."""
        return (values if mask is None else values.masked_fill(~mask, -torch.inf)).argmax(-1)


def make_pdqn_policy(specs: Specs, param_network: TensorDictModule, q_network: TensorDictModule,
                     explore: EpsilonGreedy | None = None, *, device: torch.device | str) -> TensorDictSequential:
    """Parameters of all choices, their values, the best choice, exploration if any, the chosen parameters.

    It writes `ALL_PARAMS`, which the losses read, and the action: `CHOICE` and `PARAMS` [..., A, P], zero behind the
    parameters that the choice has. Parameters may lie outside [-1, 1], where the environment clamps them. A choice that
    exploration draws has the network's parameters, as in the published programs but for noise of deviation 1e-4.

    Raises:
        ValueError: the actions are not hybrid.
    """
    slots = ParamSlots(specs.param_mask)
    mask = [ACTION_MASK] if specs.has_mask else []
    steps = [param_network, q_network,
             TensorDictModule(BestChoice(), in_keys=[ACTION_VALUE, *mask], out_keys=[CHOICE])]
    if explore is not None:
        steps.append(TensorDictModule(explore, in_keys=[CHOICE, *mask], out_keys=[CHOICE]))
    steps.append(TensorDictModule(slots, in_keys=[CHOICE, ALL_PARAMS], out_keys=[PARAMS]))
    return TensorDictSequential(*steps).to(device)
