"""State modelling by variational beliefs: what each agent can infer of the others' observations from its own.

The parts of SMPE2 (Kontogiannis et al., ICML 2025, arXiv 2505.05262). A agents, observations of size o, latent k; the
parameters of all agents are stacked, without a loop. "Others" are the (A - 1) o features of the other agents, in their
order.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from suite.modules.networks import AgentLinear, others_index, rows_first, rows_last
from suite.modules.normalizer import RunningMoments


class Others(nn.Module):
    """Maps between the joint observation and what of it belongs to the others, for every agent at once."""

    def __init__(self, n_agents: int, obs_dim: int):
        super().__init__()
        features = torch.arange(n_agents * obs_dim).view(n_agents, obs_dim)
        slots = features[others_index(n_agents)].flatten(1)  # [A, (A - 1) o]: where in the joint vector
        self.register_buffer("slots", slots, persistent=False)

    def forward(self, joint: Tensor) -> Tensor:
        """[..., A, o] -> [..., A, (A - 1) o]: what the others observe, as seen from each agent."""
        rows = joint.flatten(-2).unsqueeze(-2).expand(*joint.shape[:-2], *_size(joint))
        return rows.gather(-1, self.slots.expand(*joint.shape[:-2], -1, -1))

    def spread(self, weights: Tensor, joint: Tensor) -> Tensor:
        """``joint`` [..., A, o] times ``weights`` [..., A, (A - 1) o] in the others' slots and 1 in the agent's own.

        Returns [..., A, A o], the joint observation in agent order, as each agent weighs it.
        """
        ones = torch.ones((), dtype=weights.dtype, device=weights.device)
        ones = ones.expand(*joint.shape[:-2], *_size(joint))
        full = ones.scatter(-1, self.slots.expand_as(weights), weights)
        return full * joint.flatten(-2).unsqueeze(-2)


def _size(joint: Tensor) -> tuple[int, int]:
    return joint.shape[-2], joint.shape[-2] * joint.shape[-1]


class ObservationScaler(nn.Module):
    """Standardises observations by running statistics that all agents share, and clips if asked.

    x~ = clip((x - mean) / (std + 1e-8), +-limit); ``limit`` None does not clip.
    """

    def __init__(self, obs_dim: int, limit: float | None):
        super().__init__()
        self.moments, self.limit = RunningMoments((obs_dim,)), limit

    def forward(self, observation: Tensor) -> Tensor:
        """[..., o] -> [..., o]."""
        x = self.moments(observation)
        return x if self.limit is None else x.clamp(-self.limit, self.limit)


class BeliefEncoder(nn.Module):
    """q(z | o): two ReLU layers of width k, a linear head for mean and log-variance; parameters of each agent."""

    def __init__(self, n_agents: int, obs_dim: int, latent_dim: int):
        super().__init__()
        index = range(n_agents)
        self.fc1, self.fc2 = AgentLinear(obs_dim, latent_dim, index), AgentLinear(latent_dim, latent_dim, index)
        self.heads = AgentLinear(latent_dim, 2 * latent_dim, index)  # mean and log-variance

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation [..., A, k] of the belief, from standardised observations [..., A, o]."""
        mu, log_sigma = self.gaussian(x)
        return mu, log_sigma.exp()

    def gaussian(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and log-sigma [..., A, k]."""
        hidden = F.relu(self.fc2.by_agent(F.relu(self.fc1.by_agent(rows_first(x)))))
        mu, logvar = rows_last(self.heads.by_agent(hidden), x.shape[:-1]).chunk(2, -1)
        return mu, 0.5 * logvar


class BeliefMean(nn.Module):
    """The belief that acts: its mean, from raw observations [..., A, o]; no gradient."""

    def __init__(self, scaler: ObservationScaler, encoder: BeliefEncoder):
        super().__init__()
        self.scaler, self.encoder = scaler, encoder

    def forward(self, observation: Tensor) -> Tensor:
        """[..., A, k]."""
        with torch.no_grad():
            return self.encoder(self.scaler(observation))[0]


class BeliefDecoder(nn.Module):
    """p(o of the others | z): two ReLU layers of width k and a linear output, one set of parameters per agent."""

    def __init__(self, n_agents: int, obs_dim: int, latent_dim: int):
        super().__init__()
        index = range(n_agents)
        self.fc1, self.fc2 = (AgentLinear(latent_dim, latent_dim, index) for _ in range(2))
        self.fc3 = AgentLinear(latent_dim, (n_agents - 1) * obs_dim, index)

    def forward(self, z: Tensor) -> Tensor:
        """[..., A, k] -> the others' standardised observations [..., A, (A - 1) o]."""
        hidden = F.relu(self.fc2.by_agent(F.relu(self.fc1.by_agent(rows_first(z)))))
        return rows_last(self.fc3.by_agent(hidden), z.shape[:-1])


class AMFilter(nn.Module):
    """Which features of the others matter and can be inferred: w = clamp(sigmoid(f(o)), low, high), per agent.

    ``layers`` 1: one linear layer; 2: o -> m, ReLU, m -> m with m = (A - 1) o. Outside the clamp w has no gradient.
    ``spare`` keeps the second layer of a one-layer filter, which a penalty on the parameters' norms then counts.
    """

    def __init__(self, n_agents: int, obs_dim: int, *, layers: int, low: float, high: float, spare: bool = False):
        super().__init__()
        width, index = (n_agents - 1) * obs_dim, range(n_agents)
        self.layers, self.low, self.high = layers, low, high
        self.fc1 = AgentLinear(obs_dim, width, index)
        self.fc2 = AgentLinear(width, width, index) if layers == 2 or spare else None

    def forward(self, x: Tensor) -> Tensor:
        """Standardised observations [..., A, o] -> w [..., A, (A - 1) o]."""
        w = self.fc1(x) if self.layers == 1 else self.fc2(F.relu(self.fc1(x)))
        return w.sigmoid().clamp(self.low, self.high)

    def parameter_norm(self) -> Tensor:
        """Sum over agents and parameter tensors of the (not squared) Euclidean norm."""
        return torch.stack([torch.linalg.vector_norm(param, dim=tuple(range(1, param.ndim))).sum()
                            for param in self.parameters()]).sum()


class FilteredCritic(nn.Module):
    """V(w(o) * o): each agent's value of the joint observation as its filter lets it through; [..., A, 1].

    The own slot passes whole. The filter reads standardised observations, its weights apply to the raw ones.
    """

    def __init__(self, scaler: ObservationScaler, am_filter: AMFilter, others: Others, critic: nn.Module):
        super().__init__()
        self.scaler, self.am_filter, self.others, self.critic = scaler, am_filter, others, critic

    def forward(self, observation: Tensor) -> Tensor:
        """[..., A, o] -> [..., A, 1]."""
        return self.critic(self.others.spread(self.am_filter(self.scaler(observation)), observation))
