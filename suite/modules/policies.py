"""Actors and critics as TensorDictModules, feed-forward or recurrent, for any parameter sharing."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Literal

import torch
from tensordict import NestedKey
from tensordict.nn import ProbabilisticTensorDictModule, ProbabilisticTensorDictSequential, TensorDictModule
from torch import Tensor, nn
from torch.nn import functional as F

from suite.modules.distributions import Categorical, DiagonalNormal, TanhNormal
from suite.modules.networks import AgentGRU, AgentInput, Init, JointInput, Sharing, linear, mlp, sharing_index
from suite.modules.normalizer import Scaler
from suite.specs import ACTION, ACTION_MASK, GROUP, IS_INIT, LOG_PROB, OBSERVATION, RECURRENT, STATE, VALUE, Specs

Head = Literal["tanh_normal", "normal"]
CRITIC_RECURRENT = "critic_hidden"  # [N, T, A, H], or [N, T, 1, H] where one row serves all agents: so not in the group
MASKED_LOGIT = -1e10
MIN_SCALE = 1e-4
PADDED_SCALE = (2 * math.pi * math.e) ** -0.5  # a normal with this deviation has the entropy 0
NO_SCALERS: Mapping[NestedKey, Scaler] = MappingProxyType({})
NO_PAST: Mapping[NestedKey, NestedKey] = MappingProxyType({})


class Trunk(nn.Module):
    """Input assembly, hidden layers and, if recurrent, a GRU: inputs [..., A, d_k] -> [..., rows, width].

    With a ``scaler`` the first input, observation or state, is standardised. ``past``: {place of an input that is the
    observation of another step: place of the one that says whether there is such a step}; with a ``past_scaler`` these
    are standardised too, and 0 where there is none.
    """

    def __init__(self, assemble: nn.Module, in_dim: int, *, index: Sequence[int] | None, cells: Sequence[int],
                 activation: str, init: Init, recurrent_dim: int, scaler: Scaler | None = None,
                 past: Mapping[int, int] = MappingProxyType({}), past_scaler: Scaler | None = None):
        super().__init__()
        self.scaler, self.assemble = scaler, assemble
        self.past, self.past_scaler = dict(past), past_scaler if past else None
        self.hidden = mlp(in_dim, None, index, cells=cells, activation=activation, init=init)
        self.width = cells[-1] if cells else in_dim
        self.gru = AgentGRU(self.width, recurrent_dim, index, init=init) if recurrent_dim else None
        self.width = recurrent_dim or self.width

    def forward(self, inputs: Sequence[Tensor], memory: Sequence[Tensor]) -> tuple[Tensor, Tensor | None]:
        """Features, and the next state if recurrent; ``memory`` is (hidden, is_init), or empty."""
        if self.scaler is not None:
            inputs = [self.scaler(inputs[0]), *inputs[1:]]
        if self.past_scaler is not None:
            inputs = list(inputs)
            for place, valid in self.past.items():
                inputs[place] = self.past_scaler(inputs[place]) * inputs[valid]
        x = self.hidden(self.assemble(*inputs))
        return (x, None) if self.gru is None else self.gru(x, *memory)


class ActorNetwork(nn.Module):
    """Trunk and head: logits (masked), or location and positive scale; then the next state if recurrent.

    Positional inputs in order: observation, features ..., [action mask], [hidden, is_init]. Continuous action
    dimensions that an agent does not have get a fixed normal around the middle: the same in rollout and update, so it
    cancels in the ratio, and it passes no gradient.
    """

    def __init__(self, trunk: Trunk, specs: Specs, *, num_inputs: int, head: Head, state_dependent_scale: bool,
                 index: Sequence[int] | None, init: Init):
        super().__init__()
        self.trunk, self.num_inputs, self.has_mask = trunk, num_inputs, specs.has_mask and specs.discrete
        self.discrete, self.state_dependent_scale = specs.discrete, state_dependent_scale
        self.carried = {RECURRENT: (trunk.assemble.rows, trunk.gru.hidden_dim)} if trunk.gru is not None else {}
        self.register_buffer("unpadded", None if specs.discrete else specs.action_mask, persistent=False)
        both = not specs.discrete and state_dependent_scale
        self.out = linear(trunk.width, specs.action_dim * (1 + both), index, init=init, gain=0.01)
        if not specs.discrete and not state_dependent_scale:
            rows = index or [0] * specs.n_agents
            self.log_scale = nn.Parameter(torch.zeros(max(rows) + 1, specs.action_dim))
            self.register_buffer("rows", torch.tensor(rows), persistent=False)

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        """Distribution parameters, then the next hidden state if recurrent."""
        rest = inputs[self.num_inputs:]
        mask, memory = (rest[0], rest[1:]) if self.has_mask else (None, rest)
        x, hidden = self.trunk(inputs[:self.num_inputs], memory)
        out = self.out(x)
        if self.discrete:
            params = (out if mask is None else out.masked_fill(~mask, MASKED_LOGIT),)
        elif self.state_dependent_scale:
            loc, raw = out.chunk(2, -1)
            params = loc, F.softplus(raw + 0.5413) + MIN_SCALE  # softplus(0.5413) = 1: unit scale at the start
        else:
            params = out, self.log_scale.exp()[self.rows].expand_as(out)
        if self.unpadded is not None:
            loc, scale = params
            params = torch.where(self.unpadded, loc, 0.0), torch.where(self.unpadded, scale, PADDED_SCALE)
        return params if hidden is None else (*params, hidden)


class CriticNetwork(nn.Module):
    """Trunk and linear output: value [..., A, 1], equal for all agents when the critic has one row for all."""

    def __init__(self, trunk: Trunk, n_agents: int, *, index: Sequence[int] | None, init: Init):
        super().__init__()
        self.trunk, self.n_agents = trunk, n_agents
        self.out = linear(trunk.width, 1, index, init=init)

    def forward(self, *inputs: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        """Value, and the next hidden state if recurrent (the last two inputs are then hidden and is_init)."""
        split = len(inputs) - (2 if self.trunk.gru is not None else 0)
        x, hidden = self.trunk(inputs[:split], inputs[split:])
        value = self.out(x)
        value = value.expand(*value.shape[:-2], self.n_agents, 1)
        return value if hidden is None else (value, hidden)


def make_actor(specs: Specs, features: dict[NestedKey, int], *, share: Sharing, agent_id: bool, cells: Sequence[int],
               activation: str, init: Init, recurrent_dim: int, head: Head, state_dependent_scale: bool,
               device: torch.device | str, scalers: Mapping[NestedKey, Scaler] = NO_SCALERS,
               past: Mapping[NestedKey, NestedKey] = NO_PAST) -> ProbabilisticTensorDictSequential:
    """Stochastic policy: reads observation and ``features``, writes action and its log-probability [..., A].

    ``scalers``: see `make_scalers`. ``past``: see `Loss`.

    Raises:
        ValueError: unknown sharing, activation, init or head.
    """
    index = sharing_index(share, specs.agent_types)
    in_dim = specs.obs_dim + sum(features.values()) + (specs.n_agents if agent_id else 0)
    trunk = Trunk(AgentInput(specs.n_agents, agent_id), in_dim, index=index, cells=cells, activation=activation,
                  init=init, recurrent_dim=recurrent_dim, **_scaling([OBSERVATION, *features], scalers, past))
    network = ActorNetwork(trunk, specs, num_inputs=1 + len(features), head=head, index=index, init=init,
                           state_dependent_scale=state_dependent_scale)
    distribution, names, kwargs = _distribution(specs, head, device)
    params = [(GROUP, name) for name in names]
    in_keys = [OBSERVATION, *features, *([ACTION_MASK] if network.has_mask else [])]
    out_keys = list(params)
    if recurrent_dim:
        in_keys, out_keys = [*in_keys, RECURRENT, IS_INIT], [*out_keys, ("next", *RECURRENT)]
    actor = ProbabilisticTensorDictSequential(
        TensorDictModule(network.to(device), in_keys=in_keys, out_keys=out_keys),
        ProbabilisticTensorDictModule(in_keys=params, out_keys=[ACTION], distribution_class=distribution,
                                      distribution_kwargs=kwargs, return_log_prob=True, log_prob_key=LOG_PROB,
                                      default_interaction_type="random"))
    return actor


def _distribution(specs: Specs, head: Head, device):
    if specs.discrete:
        return Categorical, ["logits"], {}
    if head == "normal":
        return DiagonalNormal, ["loc", "scale"], {}
    if head == "tanh_normal":
        return TanhNormal, ["loc", "scale"], {"low": specs.low.to(device), "high": specs.high.to(device)}
    raise ValueError(f"unknown head {head!r}; choose from ['normal', 'tanh_normal']")


def make_critic(specs: Specs, features: dict[NestedKey, int], *, centralized: bool, share: Sharing, agent_id: bool,
                cells: Sequence[int], activation: str, init: Init, recurrent_dim: int,
                device: torch.device | str, scalers: Mapping[NestedKey, Scaler] = NO_SCALERS,
                past: Mapping[NestedKey, NestedKey] = NO_PAST, own_features: bool = False) -> TensorDictModule:
    """Value network writing [..., A, 1]: of ``state`` or all observations (central), or of each agent's own.

    A central critic gives one value for all agents unless it has agent ids, unshared parameters, or ``own_features``:
    those of an agent itself beside what is joint. ``scalers``: see `make_scalers`. ``past``: see `Loss`.
    """
    index = sharing_index(share, specs.agent_types)
    n, own = specs.n_agents, own_features and bool(features)
    per_agent = agent_id or index is not None
    has_state = centralized and specs.state_dim is not None
    read = STATE if has_state else OBSERVATION
    if centralized:
        assemble = JointInput(n, agent_id=agent_id, per_agent=per_agent, has_state=has_state, own=own)
        in_dim = specs.state_dim if has_state else n * specs.obs_dim
        in_dim += (1 if own else n) * sum(features.values())
    else:
        assemble = AgentInput(n, agent_id)
        in_dim = specs.obs_dim + sum(features.values())
    trunk = Trunk(assemble, in_dim + (n if agent_id else 0), index=index, cells=cells, activation=activation, init=init,
                  recurrent_dim=recurrent_dim, **_scaling([read, *features], scalers, past))
    network = CriticNetwork(trunk, n, index=index, init=init).to(device)
    in_keys, out_keys = [read, *features], [VALUE]
    if recurrent_dim:
        in_keys, out_keys = [*in_keys, CRITIC_RECURRENT, IS_INIT], [*out_keys, ("next", CRITIC_RECURRENT)]
    return TensorDictModule(network, in_keys=in_keys, out_keys=out_keys)


def _scaling(keys: Sequence[NestedKey], scalers: Mapping[NestedKey, Scaler],
             past: Mapping[NestedKey, NestedKey]) -> dict[str, object]:
    """What a `Trunk` with the inputs ``keys`` is told of scalers."""
    places = {keys.index(key): keys.index(valid) for key, valid in past.items() if key in keys}
    return {"scaler": scalers.get(keys[0]), "past": places, "past_scaler": scalers.get(OBSERVATION)}


def make_scalers(specs: Specs, *, centralized: bool) -> dict[NestedKey, Scaler]:
    """{key: what standardises it} for the inputs of an actor and a critic, which share that of observations."""
    scalers: dict[NestedKey, Scaler] = {OBSERVATION: Scaler(specs.obs_dim, specs.obs_mask, specs.agent_types)}
    if centralized and specs.state_dim is not None:
        scalers[STATE] = Scaler(specs.state_dim)
    return scalers


def hidden_shapes(policy: nn.Module) -> dict[NestedKey, tuple[int, ...]]:
    """Shapes without the env dimension of what a policy carries from one step to the next.

    A module that reads a key and writes ("next", key), or lets a later module write it, declares it in ``carried``
    {key: shape} (float32); collectors hand the value on, with zeros at the start of an episode.
    """
    plain = [part for part in policy.modules() if type(part) is TensorDictModule]
    return {key: shape for part in plain for key, shape in getattr(part.module, "carried", {}).items()}
