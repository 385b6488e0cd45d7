"""State modelling by variational beliefs: what each agent can infer of the others' observations from its own.

The parts of SMPE2 (Kontogiannis et al., ICML 2025, arXiv 2505.05262). A agents, observations of size o, latent k; the
parameters of all agents are stacked, without a loop. "Others" are the (A - 1) o features of the other agents, in their
order.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from suite.modules import stacked
from suite.modules.networks import AgentLinear, others_index
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
        return joint.flatten(-2).index_select(-1, self.slots.flatten()).unflatten(-1, self.slots.shape)

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

    @property
    def layers(self) -> tuple[AgentLinear, ...]:
        """From the observation to the head."""
        return self.fc1, self.fc2, self.heads

    @staticmethod
    def halves(head: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and log-sigma [..., k] of what the last layer gives."""
        mu, logvar = head.chunk(2, -1)
        return mu, 0.5 * logvar

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation [..., A, k] of the belief, from standardised observations [..., A, o]."""
        mu, log_sigma = self.gaussian(x)
        return mu, log_sigma.exp()

    def mean(self, x: Tensor) -> Tensor:
        """The mean alone, [..., A, k]."""
        head = stacked.apply(x, self.layers)
        return head[..., :head.shape[-1] // 2]

    def gaussian(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and log-sigma [..., A, k]."""
        return self.halves(stacked.apply(x, self.layers))


class BeliefMean(nn.Module):
    """The belief that acts: its mean, from raw observations [..., A, o]; no gradient."""

    def __init__(self, scaler: ObservationScaler, encoder: BeliefEncoder):
        super().__init__()
        self.scaler, self.encoder = scaler, encoder

    def forward(self, observation: Tensor) -> Tensor:
        """[..., A, k]."""
        with torch.no_grad():
            return self.encoder.mean(self.scaler(observation))


class BeliefDecoder(nn.Module):
    """p(o of the others | z): two ReLU layers of width k and a linear output, one set of parameters per agent."""

    def __init__(self, n_agents: int, obs_dim: int, latent_dim: int):
        super().__init__()
        index = range(n_agents)
        self.fc1, self.fc2 = (AgentLinear(latent_dim, latent_dim, index) for _ in range(2))
        self.fc3 = AgentLinear(latent_dim, (n_agents - 1) * obs_dim, index)

    @property
    def layers(self) -> tuple[AgentLinear, ...]:
        """From the latent to the output."""
        return self.fc1, self.fc2, self.fc3

    def forward(self, z: Tensor) -> Tensor:
        """[..., A, k] -> the others' standardised observations [..., A, (A - 1) o]."""
        return stacked.apply(z, self.layers)


class AMFilter(nn.Module):
    """Which features of the others matter and can be inferred: w = clamp(sigmoid(f(o)), low, high), per agent.

    ``layers`` 1: one linear layer; 2: o -> m, ReLU, m -> m with m = (A - 1) o. Outside the clamp w has no gradient.
    ``spare`` keeps the second layer of a one-layer filter, which a penalty on the parameters' norms then counts.
    """

    def __init__(self, n_agents: int, obs_dim: int, *, layers: int, low: float, high: float, spare: bool = False):
        super().__init__()
        width, index = (n_agents - 1) * obs_dim, range(n_agents)
        self.low, self.high = low, high
        self.fc1 = AgentLinear(obs_dim, width, index)
        self.fc2 = AgentLinear(width, width, index) if layers == 2 or spare else None
        self.depth = layers

    def forward(self, x: Tensor) -> Tensor:
        """Standardised observations [..., A, o] -> w [..., A, (A - 1) o]."""
        return self.squash(stacked.apply(x, self.layers), self.low, self.high)

    @property
    def layers(self) -> tuple[AgentLinear, ...]:
        """From the observation to the gate."""
        return (self.fc1, self.fc2)[:self.depth]

    @staticmethod
    def squash(gate: Tensor, low: float, high: float) -> Tensor:
        """w of the last layer's output."""
        return gate.sigmoid().clamp(low, high)

    @staticmethod
    def squash_backward(gradient: Tensor, w: Tensor, low: float, high: float) -> Tensor:
        """The gradient of the last layer's output, from that of w."""
        return torch.ops.aten.sigmoid_backward(torch.ops.aten.hardtanh_backward(gradient, w, low, high), w)

    def parameter_norm(self) -> Tensor:
        """Sum over agents and parameter tensors of the (not squared) Euclidean norm."""
        return _Norms.apply(*self.parameters())


class _Norms(torch.autograd.Function):
    """Sum of the tensors' norms over all dimensions but the first; torch's own backward takes twice the time."""

    @staticmethod
    def forward(ctx, *params: Tensor) -> Tensor:
        norms = torch.cat([torch.linalg.vector_norm(param.flatten(1), dim=1) for param in params])
        ctx.save_for_backward(norms, *params)
        return norms.sum()

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient: Tensor) -> tuple[Tensor, ...]:
        norms, *params = ctx.saved_tensors
        scale = (gradient / norms.clamp_min(1e-12)).view(len(params), -1)  # theta / |theta|, 0 at 0
        return tuple(param * row.view(-1, *[1] * (param.ndim - 1)) for param, row in
                     zip(params, scale.unbind(), strict=True))


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
