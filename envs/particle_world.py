"""Physics, sensors and actions of the particle world, on tensors that hold all environments and all pairs at once.

Inside the particle world the batch N is the *last* dimension: places [E, 2, N] (agents first, then landmarks) and
velocities [A, 2, N]. Every sum over entities or coordinates then runs along contiguous rows of environments, several
times faster on a CPU than with N first, where the innermost dimension would be a handful of numbers.

Equations (Lowe et al. 2017, arXiv 1706.02275; Bettini et al. 2022, arXiv 2207.03530): unit masses, time step 0.1,
each step keeps 0.75 of the velocity, contact forces push discs apart.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import embedding, softplus, threshold
from torchrl.data import TensorSpec

from envs.base import continuous, discrete

TIME_STEP = 0.1
KEPT_VELOCITY = 0.75
STIFFNESS = 100.0
MARGIN = 1e-3  # softness of a contact, in units of length
COINCIDENT = 1e-6  # discs closer than this have no direction to be pushed in
CACHED_ENVS = 512  # environments whose lidar rays fit into the cache of a CPU


def length(offset: Tensor) -> Tensor:
    """Euclidean length [..., N] of vectors [..., 2, N]."""
    return torch.hypot(*offset.unbind(-2))


def batch_first(rows: Tensor) -> Tensor:
    """[A, K, N] to contiguous [N, A, K]."""
    agents, width, num_envs = rows.shape
    return rows.flatten(0, 1).t().contiguous().view(num_envs, agents, width)


def batch_last(rows: Tensor) -> Tensor:
    """[N, A, K] to contiguous [A, K, N]."""
    num_envs, agents, width = rows.shape
    return rows.flatten(1).t().contiguous().view(agents, width, num_envs)


def others(n_agents: int, device: torch.device | str) -> Tensor:
    """For each agent the indices of all others in ascending order, int64 [A, A - 1]."""
    index = torch.arange(n_agents - 1, device=device).expand(n_agents, -1)
    return index + (index >= torch.arange(n_agents, device=device)[:, None])


class World:
    """Moves discs of equal size under control and contact forces.

    Args:
        reach: distance of two centres at contact (the sum of the radii); None: agents pass through each other.
        soft_everywhere: the contact force has its exponential tail at all distances; else none beyond contact.
        position_first: positions move with the old velocity (mpe2), else with the new one.
        substeps: parts of a step; contacts are computed anew in each, the velocity decays in the first.
        bounds: largest |x| and |y| of an agent, None for an open plane.
    """

    def __init__(self, n_agents: int, device: torch.device | str, *, reach: float | None, soft_everywhere: bool = False,
                 position_first: bool = False, substeps: int = 1, bounds: tuple[float, float] | None = None):
        self.n_agents, self.reach = n_agents, None if n_agents == 1 else reach
        self.soft_everywhere, self.position_first, self.substeps = soft_everywhere, position_first, substeps
        self.others = others(n_agents, device).flatten()
        self.bounds = None if bounds is None else torch.tensor(bounds, device=device)[:, None]

    def move(self, agents: Tensor, velocity: Tensor, force: Tensor) -> tuple[Tensor, Tensor]:
        """Positions and velocities [A, 2, N] after one step under control forces [A, 2, N]."""
        dt = TIME_STEP / self.substeps
        for k in range(self.substeps):
            total = force if self.reach is None else force + self.contact_force(agents, self.reach)
            new = torch.add(velocity * KEPT_VELOCITY if k == 0 else velocity, total, alpha=dt)
            agents = torch.add(agents, velocity if self.position_first else new, alpha=dt)
            velocity = new
            if self.bounds is not None:
                agents = torch.minimum(torch.maximum(agents, -self.bounds), self.bounds)
        return agents, velocity

    def contact_force(self, agents: Tensor, reach: float) -> Tensor:
        """Sum over other agents of 100 d/|d| margin softplus((reach - |d|) / margin), [A, 2, N]; finite everywhere.

        Without `soft_everywhere` a pair beyond contact has none. Coincident discs have none either.
        """
        offset = agents[:, None] - agents.index_select(0, self.others).view(self.n_agents, -1, *agents.shape[1:])
        distance = length(offset)
        distance = distance.masked_fill(distance < COINCIDENT, math.inf)
        depth = reach - distance
        if not self.soft_everywhere:
            depth = threshold(depth, -1e-9, -math.inf)  # at contact exactly, depth 0, there is a force
        gain = softplus(depth, beta=1 / MARGIN) / distance
        return (offset * gain.unsqueeze(2)).sum(1) * STIFFNESS


class Lidar:
    """Rays that start at agents' centres, evenly spaced from the x axis on, and end at other agents' discs.

    Args:
        rays: number of rays R. ``reach``: their length. ``radius``: of the discs.
    """

    def __init__(self, rays: int, reach: float, radius: float, device: torch.device | str):
        angle = torch.arange(rays, device=device) * (2 * math.pi / rays)
        self.cos, self.sin = angle.cos()[:, None], angle.sin()[:, None]
        self.rays, self.reach, self.radius = rays, reach, radius

    def measure(self, offset: Tensor) -> Tensor:
        """Nearness [A, R, N]: reach - distance to the first disc hit, 0 for none; offsets to others [A, K, 2, N].

        A disc is hit if its centre lies in front of the agent; from inside a disc the hit lies behind the centre, so
        that nearness exceeds the reach.
        """
        agents, seen, _, num_envs = offset.shape
        if seen == 0:
            return offset.new_zeros(agents, self.rays, num_envs)
        if offset.device.type != "cpu" or torch.compiler.is_compiling():
            return self._nearness(offset)
        return torch.cat([self._nearness(block) for block in offset.split(CACHED_ENVS, -1)], -1)

    def _nearness(self, offset: Tensor) -> Tensor:
        x, y = offset.unsqueeze(2).unbind(3)  # [A, K, 1, N]
        along = torch.addcmul(x * self.cos, y, self.sin)
        aside = torch.addcmul(x * self.sin, y, self.cos, value=-1)
        half_chord = self.radius**2 - aside * aside
        # not clamped to 0: on a CPU square roots of zeros and negative numbers take ten times as long
        nearness = self.reach - along + half_chord.clamp_min(1e-30).sqrt()
        return nearness.masked_fill((half_chord < 0) | (along <= 0), 0.0).amax(1).clamp_min(0.0)


# ---------------------------------------------------------------------- actions

PLUS_X, MINUS_X, PLUS_Y, MINUS_Y, STAY = (1.0, 0.0), (-1.0, 0.0), (0.0, 1.0), (0.0, -1.0), (0.0, 0.0)


class Choices:
    """Discrete actions: a table of forces.

    Args:
        forces: the force of each choice.
    """

    def __init__(self, forces: Sequence[tuple[float, float]], scale: float, device: torch.device | str):
        self.table = torch.tensor(forces, device=device) * scale

    def spec(self, n_agents: int) -> TensorSpec:
        """Of one environment."""
        return discrete(len(self.table), n_agents)

    def forces(self, action: Tensor) -> Tensor:
        """Forces [A, 2, N] of int64 [N, A]."""
        return batch_last(embedding(action, self.table))


class Thrust:
    """Continuous actions: the force itself, in [-1, 1] per axis."""

    def __init__(self, scale: float, device: torch.device | str):
        self.scale, self.device = scale, device

    def spec(self, n_agents: int) -> TensorSpec:
        """Of one environment."""
        high = torch.ones(n_agents, 2, device=self.device)
        return continuous(-high, high)

    def forces(self, action: Tensor) -> Tensor:
        """Forces [A, 2, N] of [N, A, 2], clamped."""
        force = batch_last(action).clamp(-1.0, 1.0)
        return force if self.scale == 1.0 else force * self.scale


class Pushes:
    """Continuous actions of mpe2: five numbers in [0, 1], "nothing" and one push in each of -x, +x, -y, +y."""

    def __init__(self, scale: float, device: torch.device | str):
        self.scale, self.device = scale, device

    def spec(self, n_agents: int) -> TensorSpec:
        """Of one environment."""
        high = torch.ones(n_agents, 5, device=self.device)
        return continuous(torch.zeros_like(high), high)

    def forces(self, action: Tensor) -> Tensor:
        """Forces [A, 2, N] of [N, A, 5], clamped."""
        push = batch_last(action).clamp(0.0, 1.0)
        return (push[:, 2::2] - push[:, 1::2]) * self.scale
