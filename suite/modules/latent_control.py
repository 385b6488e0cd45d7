"""Deterministic actors and critics over an action vector in [-1, 1], which a codec may turn into a hybrid action."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from suite.modules.inverting import InvertingGradients
from suite.modules.networks import AgentInput, Init, JointInput, Sharing, mlp, sharing_index
from suite.specs import Specs


class BoxActor(nn.Module):
    """mu(s) = tanh(f(s)): observations [..., A, S] -> actions [..., A, d] in [-1, 1].

    ``inverting`` scales the gradients down that would push an action out of its box (Hausknecht & Stone 2016), on top
    of tanh, as HyAR and its baselines do.
    """

    def __init__(self, assemble: nn.Module, layers: nn.Module, *, inverting: bool):
        super().__init__()
        self.assemble, self.layers = assemble, layers
        self.invert = InvertingGradients(-1.0, 1.0) if inverting else nn.Identity()

    def forward(self, observation: Tensor) -> Tensor:
        """[..., A, S] -> [..., A, d]."""
        return self.invert(torch.tanh(self.layers(self.assemble(observation))))


class HierarchicalActor(nn.Module):
    """Two actors in turn: the upper one values the choices, the lower one gives parameters knowing these values.

    mu(s) = (v, x), v = tanh(f(s)) and x = tanh(g(s, v)) (HHQN, Fu et al., IJCAI 2019, with a deterministic upper
    level). ``upper`` and ``lower`` are `BoxActor` without ``inverting``, which happens to their outputs side by side.
    """

    def __init__(self, upper: BoxActor, lower: BoxActor, *, inverting: bool):
        super().__init__()
        self.upper, self.lower = upper, lower
        self.invert = InvertingGradients(-1.0, 1.0) if inverting else nn.Identity()

    def forward(self, observation: Tensor) -> Tensor:
        """[..., A, S] -> [..., A, d]."""
        values = self.upper(observation)
        return self.invert(torch.cat([values, self.lower(torch.cat([observation, values], -1))], -1))


class Critics(nn.Module):
    """E independent critics Q_i(s, a): observations [..., A, S] and actions [..., A, d] -> [E, ..., A, 1].

    A central critic reads all agents' observations and actions, a local one its agent's.
    """

    def __init__(self, assemble: nn.Module, heads: Sequence[nn.Module]):
        super().__init__()
        self.assemble, self.heads = assemble, nn.ModuleList(heads)

    def forward(self, observation: Tensor, action: Tensor) -> Tensor:
        """All of them."""
        x = self.assemble(observation, action)
        return torch.stack([head(x) for head in self.heads])

    def first(self, observation: Tensor, action: Tensor) -> Tensor:
        """Q_1 alone, [..., A, 1]: the one that teaches the actor."""
        return self.heads[0](self.assemble(observation, action))


def make_box_actor(specs: Specs, width: int, *, share: Sharing, agent_id: bool, cells: Sequence[int], activation: str,
                   init: Init, device: torch.device | str, inverting: bool = True, extra: int = 0) -> BoxActor:
    """Actor with ``width`` outputs; ``extra`` numbers follow the observation."""
    in_dim = specs.obs_dim + extra + (specs.n_agents if agent_id else 0)
    layers = mlp(in_dim, width, sharing_index(share, specs.agent_types), cells=cells, activation=activation, init=init)
    return BoxActor(AgentInput(specs.n_agents, agent_id), layers, inverting=inverting).to(device)


def make_hierarchical_actor(specs: Specs, width: int, *, inverting: bool = True, **options: Any) -> HierarchicalActor:
    """Actor of a hybrid task with K choices and ``width`` outputs in all; options of `make_box_actor`."""
    choices, options = len(specs.param_mask), options | {"inverting": False}
    return HierarchicalActor(make_box_actor(specs, choices, **options),
                             make_box_actor(specs, width - choices, extra=choices, **options), inverting=inverting)


def make_critics(specs: Specs, width: int, *, heads: int, centralized: bool, share: Sharing, agent_id: bool,
                 cells: Sequence[int], activation: str, init: Init, device: torch.device | str) -> Critics:
    """``heads`` critics of actions with ``width`` numbers."""
    n, own = specs.n_agents, specs.obs_dim + width
    in_dim = (n if centralized else 1) * own + (n if agent_id else 0)
    assemble = (JointInput(n, agent_id=agent_id, per_agent=True, has_state=False) if centralized else
                AgentInput(n, agent_id))
    index = sharing_index(share, specs.agent_types)
    return Critics(assemble, [mlp(in_dim, 1, index, cells=cells, activation=activation, init=init)
                              for _ in range(heads)]).to(device)
