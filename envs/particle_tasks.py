"""Tasks of the particle world: spread in three dialects, climbing and double spread, navigation with lidar.

A task is a set of pure functions of tensors with the batch N last (`envs.particle_world`): `step` has no Python loop
over entities, no host synchronisation, no random number, and is compiled as one graph.

Dialects: "smpe" is the particle environment shipped with SMPE² (Kontogiannis et al. 2025, arXiv 2505.05262), "mpe2" is
the package of that name, "vmas" is VMAS (Bettini et al. 2022, arXiv 2207.03530). They differ as follows.

============  ==========================  ==============================  ====================================
spread        smpe                        mpe2                            vmas
============  ==========================  ==============================  ====================================
integration   velocity, then position     position (old velocity), then   velocity, then position
                                          velocity
contact       at all distances            at all distances                none beyond contact
choices       none, +x, -x, +y, -y        none, -x, +x, -y, +y            3 x 3: none, -, + for x and for y
continuous    no                          5 pushes in [0, 1]              force in [-1, 1]²
force         5                           5                               1
observation   v, x, landmarks, others,    as smpe                         x, v, landmarks, others (optional)
              2(A - 1) zeros
reward        sum over agents of          (1 - p)(-cover) - p hits_i      sum over agents of
              -cover - 1 - hits_i                                         -cover - hits_i
============  ==========================  ==============================  ====================================

Offsets are to others, as seen from the agent; cover is the sum over landmarks of the distance to the nearest agent;
hits_i is the number of other agents in contact with agent i.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod

import torch
from torch import Tensor

from envs.base import check_sizes
from envs.particle_world import (
    MINUS_X,
    MINUS_Y,
    PLUS_X,
    PLUS_Y,
    STAY,
    Choices,
    Lidar,
    Pushes,
    Thrust,
    World,
    batch_first,
    length,
    others,
)

Actions = Choices | Thrust | Pushes
LANDMARK_RADIUS = 0.05


class ParticleTask(ABC):
    """What all tasks share; a task adds its numbers, `judge` and, where it differs, what is seen.

    Args:
        n_agents: A. ``is_continuous``: kind of actions, one that the task offers.

    Attributes:
        n_landmarks: number of landmarks. ``n_observed``: length of an observation. ``reward_is_shared``: all agents
        get the same number. ``radius``: of agents. ``agent_counts``: numbers of agents allowed, None for any.
        ``offers``: kinds of actions (True for continuous), the default first. ``hidden_parts``: name, width and
        whether it is a one-hot for each part of `hidden`; empty where observations tell everything.
    """

    hidden_parts: tuple[tuple[str, int, bool], ...] = ()
    horizon = 25
    default_agents = 3
    agent_counts: tuple[int, ...] | None = None
    offers: tuple[bool, ...] = (False,)
    radius = 0.15
    landmark_radius = LANDMARK_RADIUS

    def __init__(self, n_agents: int, n_landmarks: int, device: torch.device | str, *, actions: Actions, world: World,
                 shared: bool = True):
        self.n_agents, self.n_landmarks, self.device = n_agents, n_landmarks, device
        self.actions, self.world = actions, world
        self.reward_is_shared = shared or n_agents == 1
        landmarks = torch.arange(n_agents, n_agents + n_landmarks, device=device).expand(n_agents, -1)
        self.seen = self._seen(landmarks, others(n_agents, device))
        self._index = self.seen.flatten()
        self.n_observed = self.observe(*self._state(torch.zeros(n_agents + n_landmarks, 2, 1, device=device))).shape[-1]

    def _seen(self, landmarks: Tensor, others: Tensor) -> Tensor:
        """Which entities each agent measures its offset to, int64 [A, K]."""
        return torch.cat([landmarks, others], 1)

    def _state(self, places: Tensor) -> tuple[Tensor, Tensor]:
        return places, torch.zeros_like(places[: self.n_agents])

    def spawn(self, num_envs: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Places [E, 2, N] and velocities [A, 2, N] of new episodes: uniform in [-1, 1]², at rest."""
        shape = (self.n_agents + self.n_landmarks, 2, num_envs)
        return self._state(torch.rand(shape, generator=generator, device=self.device) * 2 - 1)

    def step(self, places: Tensor, velocity: Tensor, action: Tensor) -> tuple[Tensor, ...]:
        """New places and velocities, reward [N, A], terminated [N], observation [N, A, O]."""
        before, landmarks = places[: self.n_agents], places[self.n_agents:]
        agents, velocity = self.world.move(before, velocity, self.actions.forces(action))
        places = torch.cat([agents, landmarks])
        offset = self._offsets(places)
        reward, ended = self.judge(before, places, length(offset))
        reward = reward.t().expand(-1, self.n_agents).contiguous()
        return places, velocity, reward, ended, batch_first(self.rows(places, velocity, offset))

    def observe(self, places: Tensor, velocity: Tensor) -> Tensor:
        """Observation [N, A, O]."""
        return batch_first(self.rows(places, velocity, self._offsets(places)))

    def hidden(self, places: Tensor) -> Tensor:
        """What decides the game and an agent is not told, [N, A, D], for tasks with `hidden_parts`."""
        raise NotImplementedError

    def _offsets(self, places: Tensor) -> Tensor:
        seen = places.index_select(0, self._index).view(*self.seen.shape, *places.shape[1:])
        return seen - places[: self.n_agents, None]

    @abstractmethod
    def judge(self, before: Tensor, places: Tensor, distance: Tensor) -> tuple[Tensor, Tensor]:
        """Reward [A, N], or [1, N] for all, and terminated [N].

        ``before``: agents' positions [A, 2, N] before the step. ``distance``: [A, K, N] to what each agent measures.
        """

    def rows(self, places: Tensor, velocity: Tensor, offset: Tensor) -> Tensor:
        """Observation rows [A, O, N]: velocity, position, offsets [A, K, 2, N]."""
        return torch.cat([velocity, places[: self.n_agents], offset.flatten(1, 2)], 1)


# ---------------------------------------------------------------------- spread

class Spread(ParticleTask):
    """A agents cover A landmarks without touching: what the dialects share."""

    def __init__(self, n_agents: int, device: torch.device | str, *, actions: Actions, shared: bool = True,
                 soft_everywhere: bool = True, position_first: bool = False):
        world = World(n_agents, device, reach=2 * self.radius, soft_everywhere=soft_everywhere,
                      position_first=position_first)
        super().__init__(n_agents, n_agents, device, actions=actions, world=world, shared=shared)

    def _cover(self, distance: Tensor) -> Tensor:
        return distance[:, : self.n_landmarks].amin(0).sum(0, keepdim=True)

    def _hits(self, distance: Tensor) -> Tensor:
        return distance[:, self.n_landmarks:] < 2 * self.radius

    def _team(self, distance: Tensor) -> Tensor:
        hits = self._hits(distance).flatten(0, 1).sum(0, keepdim=True, dtype=distance.dtype)
        return -torch.add(hits, self._cover(distance), alpha=self.n_agents)


class ForkSpread(Spread):
    """Spread of the fork shipped with SMPE²."""

    def __init__(self, n_agents: int, device: torch.device | str, is_continuous: bool):
        super().__init__(n_agents, device, actions=_fork_actions(device))

    def judge(self, before: Tensor, places: Tensor, distance: Tensor) -> tuple[Tensor, Tensor]:
        """Every agent counts itself among those that it touches: a constant -1 each."""
        return self._team(distance) - self.n_agents, _never(places)

    def rows(self, places: Tensor, velocity: Tensor, offset: Tensor) -> Tensor:
        """Velocity, position, offsets, and what others say: nothing."""
        return _with_silence(super().rows(places, velocity, offset))


class Mpe2Spread(Spread):
    """Spread of mpe2 (simple_spread_v3).

    Args:
        local_ratio: p in [0, 1], weight of an agent's own collisions against the team's cover.
    """

    offers = (False, True)

    def __init__(self, n_agents: int, device: torch.device | str, is_continuous: bool, *, local_ratio: float = 0.5):
        if not 0 <= local_ratio <= 1:
            raise ValueError(f"local_ratio must be in [0, 1], got {local_ratio!r}")
        self.local_ratio = local_ratio
        choices = [STAY, MINUS_X, PLUS_X, MINUS_Y, PLUS_Y]
        super().__init__(n_agents, device, shared=local_ratio == 0, position_first=True,
                         actions=Pushes(5.0, device) if is_continuous else Choices(choices, 5.0, device))

    def judge(self, before: Tensor, places: Tensor, distance: Tensor) -> tuple[Tensor, Tensor]:
        """Cover for all, collisions for each."""
        cover, hits = self._cover(distance), self._hits(distance).sum(1)
        return -(cover * (1 - self.local_ratio) + hits * self.local_ratio), _never(places)

    def rows(self, places: Tensor, velocity: Tensor, offset: Tensor) -> Tensor:
        """Velocity, position, offsets, and what others say: nothing."""
        return _with_silence(super().rows(places, velocity, offset))


class VmasSpread(Spread):
    """Spread of VMAS (simple_spread).

    Args:
        obs_agents: whether agents see each other.
    """

    offers = (True, False)

    def __init__(self, n_agents: int, device: torch.device | str, is_continuous: bool, *, obs_agents: bool = True):
        self.obs_agents = obs_agents
        super().__init__(n_agents, device, actions=_vmas_actions(is_continuous, device), soft_everywhere=False)

    def judge(self, before: Tensor, places: Tensor, distance: Tensor) -> tuple[Tensor, Tensor]:
        """The sum over agents of cover and collisions."""
        return self._team(distance), _never(places)

    def rows(self, places: Tensor, velocity: Tensor, offset: Tensor) -> Tensor:
        """Position, velocity, offsets."""
        offset = offset if self.obs_agents else offset[:, : self.n_landmarks]
        return torch.cat([places[: self.n_agents], velocity, offset.flatten(1, 2)], 1)


class ClimbingSpread(ParticleTask):
    """Two agents that pass through each other, three landmarks, paid if both stand on the same one.

    A matrix game in space: landmark 2 pays best and costs most to an agent alone on it, landmark 0 is safe.
    """

    default_agents = 2
    agent_counts = (2,)
    together, alone = (5.0, 7.0, 11.0), (0.0, -5.0, -6.0)

    def __init__(self, n_agents: int, device: torch.device | str, is_continuous: bool):
        super().__init__(n_agents, 3, device, actions=_fork_actions(device), world=World(n_agents, device, reach=None))
        self._pay = torch.tensor([self.alone, self.together], device=device)[:, :, None]

    def judge(self, before: Tensor, places: Tensor, distance: Tensor) -> tuple[Tensor, Tensor]:
        """Each agent is paid for the last landmark that it stands on (distance below 0.3); both get the sum."""
        on = distance[:, :3] < 2 * self.radius  # [A, 3, N]
        pay = torch.where(on.all(0), self._pay[1], self._pay[0])  # [3, N]
        on0, on1, on2 = on.unbind(1)
        paid = torch.where(on2, pay[2], torch.where(on1, pay[1], torch.where(on0, pay[0], 0.0)))
        return paid.sum(0, keepdim=True), _never(places)

    def rows(self, places: Tensor, velocity: Tensor, offset: Tensor) -> Tensor:
        """Velocity, position, offsets, and what others say: nothing."""
        return _with_silence(super().rows(places, velocity, offset))


class DoubleSpread(ParticleTask):
    """Agents that pass through each other split evenly over two landmarks."""

    default_agents = 4
    radius = landmark_radius = 0.1

    def __init__(self, n_agents: int, device: torch.device | str, is_continuous: bool):
        super().__init__(n_agents, 2, device, actions=_fork_actions(device), world=World(n_agents, device, reach=None))

    def judge(self, before: Tensor, places: Tensor, distance: Tensor) -> tuple[Tensor, Tensor]:
        """A times the number of agents that touch the landmark which fewer agents touch."""
        on = (distance[:, :2] < self.radius + self.landmark_radius).sum(0)  # [2, N]
        return (on.amin(0, keepdim=True) * self.n_agents).to(places.dtype), _never(places)


def _fork_actions(device: torch.device | str) -> Choices:
    return Choices([STAY, PLUS_X, MINUS_X, PLUS_Y, MINUS_Y], 5.0, device)


def _vmas_actions(is_continuous: bool, device: torch.device | str) -> Actions:
    if is_continuous:
        return Thrust(1.0, device)
    return Choices([(x, y) for x in (0.0, -1.0, 1.0) for y in (0.0, -1.0, 1.0)], 1.0, device)


def _never(places: Tensor) -> Tensor:
    return torch.zeros(places.shape[-1], dtype=torch.bool, device=places.device)


def _with_silence(rows: Tensor) -> Tensor:
    return torch.cat([rows, rows.new_zeros(len(rows), 2 * (len(rows) - 1), rows.shape[-1])], 1)


# ---------------------------------------------------------------------- navigation

class Navigation(ParticleTask):
    """Navigation of VMAS: every agent drives to its goal and sees others by lidar. Options have VMAS' names.

    An episode ends when every agent is within its own radius of its goal. The collision penalty of an environment
    depends on that environment alone (VMAS computes it only if two agents touch in some environment of the batch).

    Args:
        collisions: agents push each other, pay for touching and have a lidar.
        world_spawning_x, world_spawning_y: largest |x|, |y| of a start. ``enforce_bounds``: of agents at all times.
        agents_with_same_goal: the first so many agents share a goal (needs ``collisions=False``).
        split_goals: the two halves of the team have a goal each (needs ``agents_with_same_goal`` of half the team).
        observe_all_goals: offsets from everyone's goal, not only the own.
        lidar_range, n_lidar_rays, agent_radius: sizes.
        shared_rew: the progress of all is paid to all.
        pos_shaping_factor: pay per unit of progress. ``final_reward``: while all are on their goals.
        agent_collision_penalty: per other agent whose surface is within 0.005.
    """

    horizon = 100
    default_agents = 4
    offers = (True, False)
    touching = 0.005

    def __init__(self, n_agents: int, device: torch.device | str, is_continuous: bool, *, collisions: bool = True,
                 world_spawning_x: float = 1.0, world_spawning_y: float = 1.0, enforce_bounds: bool = False,
                 agents_with_same_goal: int = 1, split_goals: bool = False, observe_all_goals: bool = False,
                 lidar_range: float = 0.35, n_lidar_rays: int = 12, agent_radius: float = 0.1, shared_rew: bool = True,
                 pos_shaping_factor: float = 1.0, final_reward: float = 0.01, agent_collision_penalty: float = -1.0):
        check_sizes(agents_with_same_goal=agents_with_same_goal, n_lidar_rays=n_lidar_rays)
        _positive(world_spawning_x=world_spawning_x, world_spawning_y=world_spawning_y, lidar_range=lidar_range,
                  agent_radius=agent_radius)
        _check_goals(n_agents, collisions, agents_with_same_goal, split_goals)
        self.collisions, self.observe_all_goals, self.shared_rew = collisions, observe_all_goals, shared_rew
        self.radius, self.pos_shaping_factor = agent_radius, pos_shaping_factor
        self.final_reward, self.agent_collision_penalty = final_reward, agent_collision_penalty
        self.area = torch.tensor([world_spawning_x, world_spawning_y], device=device)
        self.gap = 2 * agent_radius + 0.05
        taken = (2 * n_agents - 1) * math.pi * self.gap**2  # by the others, when the last body is placed
        self.attempts = _attempts(taken / (4 * world_spawning_x * world_spawning_y))
        self.lidar = Lidar(n_lidar_rays, lidar_range, agent_radius, device) if collisions else None
        agent = torch.arange(n_agents, device=device)
        shared = agent // agents_with_same_goal if split_goals else torch.where(agent < agents_with_same_goal, 0, agent)
        self._goal = n_agents + shared
        bounds = (world_spawning_x, world_spawning_y) if enforce_bounds else None
        world = World(n_agents, device, reach=2 * agent_radius if collisions else None, substeps=2, bounds=bounds)
        super().__init__(n_agents, n_agents, device, actions=_vmas_actions(is_continuous, device), world=world,
                         shared=shared_rew and not collisions)
        if n_agents > 1 and not observe_all_goals:
            self.hidden_parts = (("others_goals", 2 * (n_agents - 1), False),)

    def hidden(self, places: Tensor) -> Tensor:
        """Positions of the others' goals, in ascending order, as for VMAS."""
        goals = places[self.n_agents:].index_select(0, self._index)
        return batch_first(goals.view(self.n_agents, -1, places.shape[-1]))

    def _seen(self, landmarks: Tensor, others: Tensor) -> Tensor:
        return others

    def spawn(self, num_envs: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Starts and goals [2A, 2, N], uniform at distances of at least two radii and 0.05, at rest.

        Bodies are placed one after the other; of `attempts` candidates the first that keeps the distance is taken.
        Where none does (once in a million, or if the area is too small for so many), the one farthest from all is.
        """
        shape = (2 * self.n_agents, self.attempts, 2, num_envs)
        drawn = (torch.rand(shape, generator=generator, device=self.device) * 2 - 1) * self.area[:, None]
        order = torch.arange(self.attempts, 0, -1, device=self.device, dtype=drawn.dtype)[:, None] * 1e6
        placed = drawn[:1, 0]
        for candidates in drawn[1:]:
            clearance = length(placed[:, None] - candidates).amin(0)  # [attempts, N]
            best = torch.where(clearance >= self.gap, order, clearance).argmax(0)
            chosen = candidates.gather(0, best.expand(1, 2, -1))
            placed = torch.cat([placed, chosen])
        return self._state(torch.cat([placed[: self.n_agents], placed.index_select(0, self._goal)]))

    def judge(self, before: Tensor, places: Tensor, distance: Tensor) -> tuple[Tensor, Tensor]:
        """Progress towards goals, a little when all are there, and penalties for touching."""
        agents, goals = places[: self.n_agents], places[self.n_agents:]
        left = length(agents - goals)
        progress = (length(before - goals) - left) * self.pos_shaping_factor
        if self.shared_rew:
            progress = progress.sum(0, keepdim=True)
        reward = progress + (left < self.landmark_radius).all(0) * self.final_reward
        if self.collisions:
            touched = (distance <= 2 * self.radius + self.touching).sum(1)
            reward = torch.add(reward, touched, alpha=self.agent_collision_penalty)
        return reward, (left < self.radius).all(0)

    def rows(self, places: Tensor, velocity: Tensor, offset: Tensor) -> Tensor:
        """Position, velocity, offset *from* the goal, lidar."""
        agents, goals = places[: self.n_agents], places[self.n_agents:]
        rows = [agents, velocity]
        rows.append((agents[:, None] - goals).flatten(1, 2) if self.observe_all_goals else agents - goals)
        if self.lidar is not None:
            rows.append(self.lidar.measure(offset))
        return torch.cat(rows, 1)


def _attempts(covered: float) -> int:
    """Candidates of which all fail once in a million, if each fails with probability ``covered``; 64 at most."""
    return min(64, 2 + math.ceil(math.log(1e-6) / math.log(covered))) if 0 < covered < 0.99 else 64


def _positive(**sizes: float) -> None:
    for name, value in sizes.items():
        if not value > 0:
            raise ValueError(f"{name} must be positive, got {value!r}")


def _check_goals(n_agents: int, collisions: bool, same_goal: int, split_goals: bool) -> None:
    if same_goal > n_agents:
        raise ValueError(f"agents_with_same_goal must be at most the number of agents {n_agents}, got {same_goal}")
    if same_goal > 1 and collisions:
        raise ValueError(f"agents_with_same_goal={same_goal} needs collisions=False: agents on one goal would collide")
    if split_goals and 2 * same_goal != n_agents:
        raise ValueError(f"split_goals needs agents_with_same_goal to be half of {n_agents} agents, got {same_goal}")
