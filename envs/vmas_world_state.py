"""The bodies of a VMAS world and what its scenario hides, for central critics. float32 [N, S].

Of every landmark and then every agent (scripted ones too), in the world's order: position [2], velocity [2] of what
moves, rotation [1] of what turns or is not round, angular velocity [1] of what turns, the message of an agent that
speaks. Behind them stand the hidden variables of each policy agent, in scenarios that have any (`envs.vmas_hidden`).
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from vmas.simulator.core import Agent, Entity, Sphere
from vmas.simulator.scenario import BaseScenario

from envs.vmas_hidden import TASKS, hidden_variables


def world_state(scenario: BaseScenario, name: str) -> Callable[[], Tensor]:
    """Function that reads this [N, S] off the world; what else a scenario keeps, only observations tell."""
    world, agents = scenario.world, scenario.world.policy_agents
    hidden = hidden_variables(scenario, name)[0] if name in TASKS and len(world.agents) > 1 else None

    def read() -> Tensor:
        parts = [part for entity in world.entities for part in _parts(entity, world.dim_c)]
        if hidden is not None:
            parts += [hidden(agent) for agent in agents]
        return torch.cat(parts, -1).float()

    return read


def _parts(entity: Entity, dim_c: int) -> list[Tensor]:
    state, turns = entity.state, entity.rotatable
    parts = {"pos": True, "vel": entity.movable, "rot": turns or not isinstance(entity.shape, Sphere), "ang_vel": turns,
             "c": isinstance(entity, Agent) and not entity.silent and dim_c > 0}
    return [getattr(state, part) for part, there in parts.items() if there]
