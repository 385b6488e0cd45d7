"""Hidden variables of VMAS scenarios: what decides an agent's task or its partners' and is not in its observation.

They are for teachers and probes, never for an actor or a critic. Per agent, float32 [N, D]:

====================================  =======================================================================
hidden_leader                         leader and goal as one-hot; with ``partner_types`` also the partner's type
simple_reference_pe                   one-hot of the landmark that this agent is to reach (only the other one knows)
simple_speaker_listener_pe            one-hot of the listener's goal
simple_adversary_pe, simple_push_pe   one-hot of the good agents' goal
give_way_pe                           the other agent's position and velocity
navigation                            positions of the others' goals, in the order of the agents
====================================  =======================================================================

A scenario of the project's own has ``hidden(agent)`` and ``hidden_parts``; VMAS's are in the table `STOCK`. In tasks
with roles the numbers are given to all agents, also to those that know them; ``informed(agent)`` tells who does.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from vmas.simulator.core import Agent
from vmas.simulator.scenario import BaseScenario

from envs import suggestion
from envs.vmas_scenarios import PER_ENV

Parts = tuple[tuple[str, int, bool], ...]  # name, width, whether it is a one-hot


def _others_goals(scenario: BaseScenario, agent: Agent) -> Tensor:
    goals = [other.goal.state.pos for other in scenario.world.agents if other is not agent]
    return torch.cat(goals, -1) if goals else agent.state.pos[:, :0]


def _others_goals_parts(scenario: BaseScenario) -> Parts:
    return (("others_goals", 2 * (len(scenario.world.agents) - 1), False),)


STOCK = {"navigation": (_others_goals, _others_goals_parts)}
TASKS = sorted([*STOCK, "hidden_leader", *(name for name, cls in PER_ENV.items() if hasattr(cls, "hidden"))])


def who_is_informed(scenario: BaseScenario, agents: Sequence[Agent]) -> Callable[[], Tensor] | None:
    """Function that tells who sees the hidden variables without being told, bool [N, A]; None if nobody ever does."""
    informed = getattr(scenario, "informed", None)
    if informed is None:
        return None
    return lambda: torch.stack([informed(agent) for agent in agents], 1)


def hidden_variables(scenario: BaseScenario, name: str) -> tuple[Callable[[Agent], Tensor], Parts]:
    """Function from an agent to its hidden variables [N, D], and what the D numbers are.

    ValueError if the scenario has none; it lists those that have.
    """
    if name in STOCK:
        function, parts = STOCK[name]
        found = (lambda agent: function(scenario, agent)), parts(scenario)
    elif name in TASKS:
        found = scenario.hidden, scenario.hidden_parts
    else:
        raise ValueError(f"vmas/{name} has no hidden variables; with_hidden is for {TASKS}" + suggestion(name, TASKS))
    if not sum(width for _, width, _ in found[1]):
        raise ValueError(f"vmas/{name} has no hidden variables with these options: there is nobody else")
    return found
