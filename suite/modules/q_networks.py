"""Networks of the off-policy algorithms: per-agent action values, mixers, deterministic actors, joint critics."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from tensordict import NestedKey
from tensordict.nn import TensorDictModule, TensorDictSequential
from torch import Tensor, nn
from torchrl.modules import QMixer, QValueModule, VDNMixer

from suite.modules.networks import AgentInput, Init, JointInput, Sharing, mlp, sharing_index
from suite.specs import ACTION, ACTION_MASK, GROUP, OBSERVATION, STATE, Specs

ACTION_VALUE = (GROUP, "action_value")
CHOSEN_VALUE = (GROUP, "chosen_action_value")
STATE_ACTION_VALUE = (GROUP, "state_action_value")


class AgentMLP(nn.Module):
    """Input assembly and an MLP: inputs [..., A, d_k] -> [..., A, out]."""

    def __init__(self, assemble: nn.Module, layers: nn.Module, squash: tuple[Tensor, Tensor] | None = None):
        super().__init__()
        self.assemble, self.layers, self.squashed = assemble, layers, squash is not None
        if squash is not None:
            low, high = squash
            self.register_buffer("mid", (low + high) / 2, persistent=False)
            self.register_buffer("reach", (high - low) / 2, persistent=False)

    def forward(self, *inputs: Tensor) -> Tensor:
        """Values, or actions squashed into their bounds."""
        out = self.layers(self.assemble(*inputs))
        return self.mid + self.reach * out.tanh() if self.squashed else out


def _agent_mlp(specs: Specs, in_dim: int, out_dim: int, assemble: nn.Module, *, share: Sharing, cells: Sequence[int],
               activation: str, init: Init, squash=None) -> AgentMLP:
    index = sharing_index(share, specs.agent_types)
    return AgentMLP(assemble, mlp(in_dim, out_dim, index, cells=cells, activation=activation, init=init), squash)


def _own_mlp(specs: Specs, features: dict[NestedKey, int], agent_id: bool, **layers) -> AgentMLP:
    """From an agent's own observation and features to one number per action."""
    in_dim = specs.obs_dim + sum(features.values()) + (specs.n_agents if agent_id else 0)
    return _agent_mlp(specs, in_dim, specs.action_dim, AgentInput(specs.n_agents, agent_id), **layers)


def make_q_policy(specs: Specs, features: dict[NestedKey, int], *, share: Sharing, agent_id: bool, cells: Sequence[int],
                  activation: str, init: Init, device: torch.device | str) -> TensorDictSequential:
    """Greedy policy over per-agent action values [..., A, n]; masked choices are never taken."""
    network = _own_mlp(specs, features, agent_id, share=share, cells=cells, activation=activation, init=init).to(device)
    choose = QValueModule(action_space="categorical", action_value_key=ACTION_VALUE,
                          action_mask_key=ACTION_MASK if specs.has_mask else None,
                          out_keys=[ACTION, ACTION_VALUE, CHOSEN_VALUE])
    return TensorDictSequential(
        TensorDictModule(network, in_keys=[OBSERVATION, *features], out_keys=[ACTION_VALUE]), choose
    )


def make_mixer(kind: str, specs: Specs, *, embed_dim: int, device: torch.device | str) -> TensorDictModule:
    """QMIX (monotonic, conditioned on the state or all observations) or VDN (sum) of chosen values -> [..., 1]."""
    if kind not in ("qmix", "vdn"):
        raise ValueError(f"unknown mixer {kind!r}; choose from ['qmix', 'vdn']")
    if kind == "vdn":
        mixer, keys = VDNMixer(n_agents=specs.n_agents, device=device), [CHOSEN_VALUE]
    elif specs.state_dim is not None:
        mixer = QMixer(
            state_shape=(specs.state_dim,), mixing_embed_dim=embed_dim, n_agents=specs.n_agents, device=device
        )
        keys = [CHOSEN_VALUE, STATE]
    else:
        mixer = QMixer(state_shape=(specs.n_agents, specs.obs_dim), mixing_embed_dim=embed_dim, n_agents=specs.n_agents,
                       device=device)
        keys = [CHOSEN_VALUE, OBSERVATION]
    return TensorDictModule(mixer, in_keys=keys, out_keys=["chosen_action_value"])


def make_deterministic_actor(specs: Specs, features: dict[NestedKey, int], *, share: Sharing, agent_id: bool,
                             cells: Sequence[int], activation: str, init: Init,
                             device: torch.device | str) -> TensorDictModule:
    """Actor writing one action inside the bounds."""
    network = _own_mlp(specs, features, agent_id, share=share, cells=cells, activation=activation, init=init,
                       squash=(specs.low, specs.high))
    return TensorDictModule(network.to(device), in_keys=[OBSERVATION, *features], out_keys=[ACTION])


def make_joint_q(specs: Specs, *, share: Sharing, cells: Sequence[int], activation: str, init: Init,
                 device: torch.device | str) -> TensorDictModule:
    """Central action values [..., A, 1] of all observations and all actions, row i that of agent i.

    All rows see the same, so where agents share parameters each row has a one-hot agent id beside it: else they could
    not differ, and none could be the value of its agent's own reward.
    """
    n, index = specs.n_agents, sharing_index(share, specs.agent_types)
    shared = n > len(set(index or [0]))
    assemble = JointInput(n, agent_id=shared, per_agent=True, has_state=False)
    in_dim = n * (specs.obs_dim + specs.action_dim) + (n if shared else 0)
    network = _agent_mlp(specs, in_dim, 1, assemble, share=share, cells=cells, activation=activation, init=init)
    return TensorDictModule(network.to(device), in_keys=[OBSERVATION, ACTION], out_keys=[STATE_ACTION_VALUE])
