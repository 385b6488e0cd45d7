"""``vmas/hidden_leader``: one agent knows where the team must go, and nobody is told who that agent is.

N agents and K landmarks on a circle of radius 0.8, evenly spaced and turned by a random angle, in the square [-1, 1]^2
without collisions. Each environment draws its leader, its goal, the angle and the starts (uniform over the square)
anew at every reset. All get the same reward: minus the mean distance of the agents to the goal, and 1 more in steps in
which all of them are within 0.15 of it. Nothing ends an episode but its horizon of 100 steps.

Observation, 4 + 2 K + 2 (N - 1) + 1 + K numbers, 21 for N = 3 and K = 4: own position and velocity; positions of the
landmarks and of the other agents relative to the own one; 1 for the leader and 0 for others; the goal as one-hot, zeros
for all but the leader. Hidden variables, the same for all agents: leader and goal as one-hot (7 numbers).

With ``partner_types`` the leader is not the policy's: in each environment it follows one of `PARTNERS`, drawn at every
reset (and a third hidden variable), whatever action the policy gives for that agent; ("agents", "controlled") is False
for it, and ("agents", "scripted_action") is what it will do. Both tell who leads: they are for losses and for setting
the record right, not for actors. The followers meet partners that differ from episode to episode, after the protocol
of Papoudakis, Christianos, Albrecht (2021), "Agent Modelling under Partial Observability for Deep Reinforcement
Learning", arXiv 2006.09447.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import one_hot
from vmas.simulator.core import Agent, Landmark, Sphere, World
from vmas.simulator.scenario import BaseScenario
from vmas.simulator.utils import ScenarioUtils

from envs.base import check_sizes

CIRCLE = 0.8  # radius on which the landmarks stand
NEAR = 0.15  # the team is at the goal if all are this near; landmarks are drawn with this radius
SPRING, BRAKE = 5.0, 2.0  # force of a scripted leader per distance and per velocity
LEADER, FOLLOWER = (0.90, 0.45, 0.10), (0.25, 0.45, 0.80)
GOAL, OTHER_LANDMARK = (0.15, 0.65, 0.25), (0.60, 0.60, 0.60)


class Partner(NamedTuple):
    """A way to walk to the goal.

    Attributes:
        speed: largest force; 1 is what a policy can do along one axis. ``turn``: angle [rad] between the heading and
        the way straight to the goal, which makes the path an arc. ``wait``: steps without force before it starts.
        decoy: steps in which it first walks to the landmark that follows the goal counter-clockwise.
    """

    speed: float
    turn: float = 0.0
    wait: int = 0
    decoy: int = 0


# fast 0 to 4, slow 5 to 9; in each: straight, arc to the left, arc to the right, late, by way of another landmark.
# all of them are at the goal within the horizon of 100 steps, wherever they start
PARTNERS = tuple(Partner(speed, **detour) for speed in (1.0, 0.7)
                 for detour in ({}, {"turn": math.pi / 6}, {"turn": -math.pi / 6}, {"wait": 15}, {"decoy": 25}))


class HiddenLeader(BaseScenario):
    """The scenario; options ``n_agents`` (3), ``n_landmarks`` (4), ``partner_types`` (False).

    ``partner_types`` is True for all of `PARTNERS`, or a list of their numbers, so that one may train with some and
    test with others.

    Attributes:
        types: numbers of the partners to draw from; empty if the leader is the policy's.
        leader: int64 [N], number of the leader in each environment. ``goal``: int64 [N], number of the landmark.
        partner: int64 [N], number of the scripted leader's type. ``clock``: int64 [N], steps since the reset.
    """

    def make_world(self, batch_dim: int, device: torch.device, **kwargs: Any) -> World:
        """A world with agents and landmarks in no particular place; ValueError for values that make no sense."""
        n_agents, n_landmarks = kwargs.pop("n_agents", 3), kwargs.pop("n_landmarks", 4)
        self.types = _numbers(kwargs.pop("partner_types", False))
        ScenarioUtils.check_kwargs_consumed(kwargs)
        check_sizes(n_agents=n_agents, n_landmarks=n_landmarks)
        if min(n_agents, n_landmarks) < 2:
            raise ValueError("hidden_leader needs n_agents >= 2 and n_landmarks >= 2, "
                             f"got {n_agents} and {n_landmarks}")
        world = World(batch_dim, device, x_semidim=1.0, y_semidim=1.0)
        for i in range(n_agents):
            world.add_agent(Agent(f"agent_{i}", shape=Sphere(0.05), collide=False))
        for k in range(n_landmarks):
            world.add_landmark(Landmark(f"landmark_{k}", shape=Sphere(NEAR), collide=False))
        self.partners = torch.tensor(PARTNERS, device=device)  # [10, 4]
        zero = torch.zeros(batch_dim, dtype=torch.int64, device=device)
        self.leader, self.goal, self.partner, self.clock = (zero.clone() for _ in range(4))
        return world

    def reset_world_at(self, env_index: int | None = None) -> None:
        """New leader, goal, places and partner in all environments, or in one."""
        n, agents, landmarks = self.world.batch_dim, self.world.agents, self.world.landmarks
        like = agents[0].state.pos
        row = slice(None) if env_index is None else env_index
        types = torch.tensor(self.types or (0,), device=like.device)
        drawn = {"leader": torch.randint(len(agents), (n,), device=like.device),
                 "goal": torch.randint(len(landmarks), (n,), device=like.device),
                 "partner": types[torch.randint(len(types), (n,), device=like.device)],
                 "clock": torch.zeros_like(self.clock)}
        for name, value in drawn.items():
            now = getattr(self, name).clone()
            now[row] = value[row]
            setattr(self, name, now)
        turn = 2 * math.pi * torch.rand(n, device=like.device)
        for k, landmark in enumerate(landmarks):
            angle = turn + 2 * math.pi * k / len(landmarks)
            landmark.set_pos((CIRCLE * torch.stack([angle.cos(), angle.sin()], 1))[row], batch_index=env_index)
            landmark.color = _either(self.goal == k, GOAL, OTHER_LANDMARK, like)
        for i, agent in enumerate(agents):
            agent.set_pos(torch.empty_like(like).uniform_(-1, 1)[row], batch_index=env_index)
            agent.color = _either(self.leader == i, LEADER, FOLLOWER, like)

    # ------------------------------------------------------------------ what agents get

    def observation(self, agent: Agent) -> Tensor:
        """Of one agent, [N, 4 + 2 K + 2 (A - 1) + 1 + K] (see the module's docstring)."""
        place = agent.state.pos
        landmarks = [landmark.state.pos - place for landmark in self.world.landmarks]
        others = [other.state.pos - place for other in self.world.agents if other is not agent]
        leads = self._leads(agent).unsqueeze(1).float()
        return torch.cat([place, agent.state.vel, *landmarks, *others, leads, leads * self._goal_one_hot()], -1)

    def reward(self, agent: Agent) -> Tensor:
        """The team's reward [N], the same for all agents."""
        if agent is self.world.agents[0]:
            goal = self._place(self.goal).unsqueeze(1)
            places = torch.stack([each.state.pos for each in self.world.agents], 1)
            distance = torch.linalg.vector_norm(places - goal, dim=-1)
            self.team_reward = (distance <= NEAR).all(1).float() - distance.mean(1)
        return self.team_reward

    def hidden(self, agent: Agent) -> Tensor:
        """Leader and goal as one-hot, also the partner's type if leaders are scripted: float32 [N, A + K (+ 10)]."""
        parts = [one_hot(self.leader, len(self.world.agents)).float(), self._goal_one_hot()]
        if self.types:
            parts.append(one_hot(self.partner, len(PARTNERS)).float())
        return torch.cat(parts, -1)

    def informed(self, agent: Agent) -> Tensor:
        """Whether the agent leads: it is told so, and the goal; bool [N]."""
        return self._leads(agent)

    @property
    def hidden_parts(self) -> tuple[tuple[str, int, bool], ...]:
        """What `hidden` is made of: name, width, whether it is a one-hot."""
        parts = (("leader", len(self.world.agents), True), ("goal", len(self.world.landmarks), True))
        return (*parts, ("partner", len(PARTNERS), True)) if self.types else parts

    # ------------------------------------------------------------------ the scripted leader

    @property
    def scripts_agents(self) -> bool:
        """Whether there are agents whose action is not the policy's."""
        return bool(self.types)

    def controlled(self, agent: Agent) -> Tensor:
        """Whether the policy's action for this agent is carried out: bool [N], False where it is a scripted leader."""
        return ~self._leads(agent) if self.types else torch.ones_like(self.leader, dtype=torch.bool)

    def process_action(self, agent: Agent) -> None:
        """Where a scripted leader is this agent, its force replaces the one of the policy."""
        if self.types:
            agent.action.u = torch.where(self._leads(agent).unsqueeze(1), self.script(agent), agent.action.u)

    def post_step(self) -> None:
        """Count the step."""
        self.clock = self.clock + 1

    def script(self, agent: Agent) -> Tensor:
        """Forces [N, 2] that would lead this agent to the goal in the manner of each environment's partner."""
        speed, turn, wait, decoy = self.partners[self.partner].unbind(1)
        aside = (self.goal + 1) % len(self.world.landmarks)
        target = self._place(torch.where(self.clock < decoy, aside, self.goal))
        x, y = (target - agent.state.pos).unbind(1)
        heading = torch.stack([turn.cos() * x - turn.sin() * y, turn.sin() * x + turn.cos() * y], 1)
        wish = SPRING * heading - BRAKE * agent.state.vel
        most = torch.where(self.clock < wait, 0.0, speed).unsqueeze(1)
        return wish * (most / torch.linalg.vector_norm(wish, dim=1, keepdim=True).clamp(min=1e-6)).clamp(max=1.0)

    def _leads(self, agent: Agent) -> Tensor:
        return self.leader == self.world.agents.index(agent)

    def _goal_one_hot(self) -> Tensor:
        return one_hot(self.goal, len(self.world.landmarks)).float()

    def _place(self, index: Tensor) -> Tensor:
        """Position [N, 2] of the landmark with this number [N] in each environment."""
        places = torch.stack([landmark.state.pos for landmark in self.world.landmarks], 1)
        return places.gather(1, index[:, None, None].expand(-1, 1, 2)).squeeze(1)


def _numbers(given: bool | Sequence[int]) -> tuple[int, ...]:
    """Numbers of the partners to draw from, none if leaders are not scripted."""
    if isinstance(given, bool):
        return tuple(range(len(PARTNERS))) if given else ()
    if (not isinstance(given, (list, tuple)) or not given
            or any(isinstance(k, bool) or not isinstance(k, int) or not 0 <= k < len(PARTNERS) for k in given)):
        raise ValueError(f"partner_types must be True, False or a list of numbers from 0 to {len(PARTNERS) - 1}, "
                         f"got {given!r}")
    return tuple(given)


def _either(mask: Tensor, yes: tuple[float, ...], no: tuple[float, ...], like: Tensor) -> Tensor:
    """One colour where ``mask`` [N] is True, another elsewhere: [N, 3]."""
    return torch.where(mask.unsqueeze(1), like.new_tensor(yes), like.new_tensor(no))
