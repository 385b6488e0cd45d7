"""VMAS scenarios that need a correction, as subclasses: rewards that depend on the order of agents, shared goals.

``CORRECTED`` replaces shipped scenarios of the same name. ``PER_ENV`` adds ``<name>_pe``: what the shipped scenario
draws once for the whole batch is drawn for each environment, and redrawn when that environment is reset.
"""

from __future__ import annotations

import ast
import textwrap
from inspect import getsource
from typing import Any

import torch
from torch import Tensor
from vmas.scenarios import ball_trajectory, give_way, passage
from vmas.scenarios.mpe import (
    simple_adversary,
    simple_push,
    simple_reference,
    simple_speaker_listener,
    simple_world_comm,
)
from vmas.simulator.core import Agent, Landmark
from vmas.simulator.scenario import BaseScenario

from envs.kinds import kind_of


class BallTrajectory(ball_trajectory.Scenario):
    """All agents get the reward; as shipped the first call uses it up and agent 0 alone is paid (Q3)."""

    def reward(self, agent: Agent) -> Tensor:
        """The team's reward [N]."""
        if agent is self.world.agents[0]:
            self.team_reward = super().reward(agent)
        return self.team_reward


class Passage(passage.Scenario):
    """With ``shared_reward`` all agents get the same sum; as shipped later agents see more of the penalties (Q8)."""

    def reward(self, agent: Agent) -> Tensor:
        """The reward [N] of the agent, or of the team."""
        if not self.shared_reward:
            return super().reward(agent)
        if agent is self.world.agents[0]:
            for each in self.world.agents:
                self.team_reward = super().reward(each)
        return self.team_reward


class GiveWay(give_way.Scenario):
    """Spawn noise is drawn for each environment; as shipped one reset gives all of them the same start."""

    hidden_parts = (("position", 2, False), ("velocity", 2, False))

    def reset_world_at(self, env_index: int | None = None) -> None:
        """Reset all rows."""
        noise, self.spawn_pos_noise = self.spawn_pos_noise, 0.0
        super().reset_world_at(env_index)
        self.spawn_pos_noise = noise
        for agent in self.world.agents:
            start = agent.state.pos
            agent.set_pos(start + torch.empty_like(start).uniform_(-noise, noise), batch_index=env_index)
            distance = torch.linalg.vector_norm(agent.state.pos - agent.goal.state.pos, dim=1)
            agent.shaping = distance * self.pos_shaping_factor

    def hidden(self, agent: Agent) -> Tensor:
        """Position and velocity of the other agent, [N, 4]."""
        other, = (each for each in self.world.agents if each is not agent)
        return torch.cat([other.state.pos, other.state.vel], -1)


class Goal:
    """One of several landmarks, another one in each environment; stands where a scenario expects a landmark.

    Attributes:
        index: int64 [N], which landmark. ``state``: itself, so that ``goal.state.pos`` [N, 2] can be read.
    """

    def __init__(self, landmarks: list[Landmark]):
        """Draw a landmark for each environment."""
        self.landmarks = landmarks
        rows = landmarks[0].state.pos
        self.index = torch.randint(len(landmarks), (len(rows),), device=rows.device)

    @property
    def state(self) -> Goal:
        """Itself."""
        return self

    @property
    def pos(self) -> Tensor:
        """Positions [N, 2]."""
        return self.pick([landmark.state.pos for landmark in self.landmarks])

    def pick(self, values: list[Tensor]) -> Tensor:
        """Of one tensor [N, d] or [d] per landmark, that of each environment's goal: [N, d]."""
        table = torch.stack([value.expand(len(self.index), -1) for value in values], 1)
        return table.gather(1, self.index[:, None, None].expand(-1, 1, table.shape[-1])).squeeze(1)

    @property
    def color(self) -> Tensor:
        """Colours [N, 3]."""
        return self.pick([landmark.color for landmark in self.landmarks])

    @property
    def one_hot(self) -> Tensor:
        """Which landmark, float32 [N, number of landmarks]."""
        return torch.nn.functional.one_hot(self.index, len(self.landmarks)).float()


def _offsets(entities: list, agent: Agent) -> list[Tensor]:
    return [entity.state.pos - agent.state.pos for entity in entities if entity is not agent]


def _everywhere(value: bool, agent: Agent) -> Tensor:
    """bool [N]; made on the device."""
    return torch.full_like(agent.state.pos[:, 0], value, dtype=torch.bool)


def _messages(agents: list[Agent], agent: Agent) -> list[Tensor]:
    return [other.state.c for other in agents if other is not agent and other.state.c is not None]


class HiddenGoal:
    """Scenarios in which one of the landmarks is a goal that somebody does not know."""

    @property
    def hidden_parts(self) -> tuple[tuple[str, int, bool], ...]:
        """What `hidden` is made of: name, width, whether it is a one-hot."""
        return (("goal", len(self.world.landmarks), True),)

    def hidden(self, agent: Agent) -> Tensor:
        """The goal as one-hot, float32 [N, landmarks]."""
        return agent.goal.one_hot


class GoodAgentsKnow(HiddenGoal):
    """Of those the ones in which adversaries do not know it."""

    def informed(self, agent: Agent) -> Tensor:
        """All but the adversaries see the goal: bool [N]."""
        return _everywhere(not agent.adversary, agent)


class SimpleReference(HiddenGoal, simple_reference.Scenario):
    """Both agents' goals are drawn for each environment."""

    def reset_world_at(self, env_index: int | None = None) -> None:
        """Reset all rows."""
        super().reset_world_at(env_index)
        for agent in self.world.agents:
            agent.goal_b = Goal(self.world.landmarks)
        for agent in self.world.agents:
            agent.goal_a.color = agent.goal_b.color

    def observation(self, agent: Agent) -> Tensor:
        """Velocity, landmarks, colour of the landmark that the other agent is to reach, its message: [N, 21]."""
        return torch.cat([agent.state.vel, *_offsets(self.world.landmarks, agent), agent.goal_b.color,
                          *_messages(self.world.agents, agent)], dim=-1)

    def hidden(self, agent: Agent) -> Tensor:
        """One-hot of the landmark that this agent is to reach, float32 [N, landmarks]; only the other one knows it."""
        other, = (each for each in self.world.agents if each is not agent)
        return other.goal_b.one_hot


class SimpleSpeakerListener(HiddenGoal, simple_speaker_listener.Scenario):
    """The listener's goal is drawn for each environment."""

    def reset_world_at(self, env_index: int | None = None) -> None:
        """Reset all rows."""
        super().reset_world_at(env_index)
        speaker, listener = self.world.agents
        speaker.goal_b = Goal(self.world.landmarks)
        listener.color = speaker.goal_b.color + 0.45

    def observation(self, agent: Agent) -> Tensor:
        """Speaker: colour of the goal [N, 3]. Listener: velocity, landmarks, message [N, 11]."""
        if agent is self.world.agents[0]:
            return agent.goal_b.color
        return torch.cat([agent.state.vel, *_offsets(self.world.landmarks, agent),
                          *_messages(self.world.agents, agent)], dim=-1)

    def hidden(self, agent: Agent) -> Tensor:
        """One-hot of the landmark that the listener is to reach, float32 [N, landmarks]."""
        return self.world.agents[0].goal_b.one_hot

    def informed(self, agent: Agent) -> Tensor:
        """The speaker sees the goal: bool [N]."""
        return _everywhere(agent is self.world.agents[0], agent)


class SimpleAdversary(GoodAgentsKnow, simple_adversary.Scenario):
    """The landmark that the good agents know as the goal is drawn for each environment."""

    def reset_world_at(self, env_index: int | None = None) -> None:
        """Reset all rows."""
        super().reset_world_at(env_index)
        goal = Goal(self.world.landmarks)
        for agent in self.world.agents:
            agent.goal = goal
        green, black = goal.pos.new_tensor([[0.25, 0.75, 0.25], [0.15, 0.15, 0.15]])
        for k, landmark in enumerate(self.world.landmarks):
            landmark.color = torch.where(goal.index[:, None] == k, green, black)


class SimplePush(GoodAgentsKnow, simple_push.Scenario):
    """The good agent's goal is drawn for each environment; its own colour shows which one it is."""

    def reset_world_at(self, env_index: int | None = None) -> None:
        """Reset all rows."""
        super().reset_world_at(env_index)
        goal = Goal(self.world.landmarks)
        for agent in self.world.agents:
            agent.goal = goal
            if not agent.adversary:
                agent.color = 0.25 + 0.5 * torch.nn.functional.one_hot(goal.index + 1, 3).float()

    def observation(self, agent: Agent) -> Tensor:
        """Adversary: velocity, landmarks, others [N, 8]. Good agent: also goal, own colour, all colours [N, 19]."""
        landmarks, others = _offsets(self.world.landmarks, agent), _offsets(self.world.agents, agent)
        if agent.adversary:
            return torch.cat([agent.state.vel, *landmarks, *others], dim=-1)
        colors = [landmark.color.expand(len(agent.color), -1) for landmark in self.world.landmarks]
        return torch.cat([agent.state.vel, agent.goal.pos - agent.state.pos, agent.color, *landmarks, *colors,
                          *others], dim=-1)


class SimpleWorldComm(simple_world_comm.Scenario):
    """Who sees whom follows the rules of MPE, and adversaries are drawn to the nearest good agent.

    As shipped the forest flags are never set, so that only the leader sees anyone, and the shaping is zero (Q2).
    """

    def _hidden_in(self, agent: Agent) -> Tensor:
        return torch.stack([self.is_collision(agent, forest) for forest in self.world.forests], dim=1)

    def observation(self, agent: Agent) -> Tensor:
        """Own velocity and position, landmarks, others, velocities of good others, forest flags, leader's message.

        Others are zeros unless both are in one forest, both are in none, or the agent is the leader. Adversaries
        [N, 34], good agents, who do not hear the message, [N, 28].
        """
        mine, places, velocities = self._hidden_in(agent), [], []
        for other in self.world.agents:
            if other is agent:
                continue
            theirs = self._hidden_in(other)
            seen = (mine & theirs).any(1) | ~(mine.any(1) | theirs.any(1)) | agent.leader
            places.append(torch.where(seen[:, None], other.state.pos - agent.state.pos, 0.0))
            if not other.adversary:
                velocities.append(torch.where(seen[:, None], other.state.vel, 0.0))
        message = [self.world.agents[0].state.c] if agent.adversary else []
        return torch.cat([agent.state.vel, agent.state.pos, *_offsets(self.world.landmarks, agent), *places,
                          *velocities, mine.float() * 2 - 1, *message], dim=-1)

    def reward(self, agent: Agent) -> Tensor:
        """As shipped, and for adversaries minus a tenth of the distance to the nearest good agent: [N]."""
        reward = super().reward(agent)
        if not agent.adversary:
            return reward
        gaps = [torch.linalg.vector_norm(gap, dim=1) for gap in _offsets(self.good_agents(), agent)]
        return reward - 0.1 * torch.stack(gaps, 1).amin(1)


CORRECTED = {"ball_trajectory": BallTrajectory, "passage": Passage}
PER_ENV = {
    "give_way_pe": GiveWay,
    "simple_adversary_pe": SimpleAdversary,
    "simple_push_pe": SimplePush,
    "simple_reference_pe": SimpleReference,
    "simple_speaker_listener_pe": SimpleSpeakerListener,
    "simple_world_comm_pe": SimpleWorldComm,
}


def scenario_options(scenario: BaseScenario) -> dict[str, Any]:
    """{option: kind} that a scenario reads, found in its source: scenarios take them out of ``kwargs`` one by one."""
    kinds = {}
    for cls in type(scenario).__mro__:
        if not cls.__module__.startswith(("vmas.scenarios", "envs.vmas")):
            continue
        for node in ast.walk(ast.parse(textwrap.dedent(getsource(cls)))):
            if (isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in ("pop", "get")
                    and ast.unparse(node.func.value) == "kwargs" and isinstance(node.args[0], ast.Constant)):
                own = cls.__module__.startswith("envs")  # those check what they take
                kinds.setdefault(node.args[0].value, Any if own else _kind(node.args[1:]))
    return dict(sorted(kinds.items()))


def _kind(default: list[ast.expr]) -> Any:
    """The kind of an option by its default, if that is written out."""
    try:
        return kind_of(ast.literal_eval(default[0])) if default else Any
    except ValueError:  # an expression
        return Any
