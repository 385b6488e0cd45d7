"""VMAS scenarios as batched environments: ``make_env("vmas/navigation", num_envs=64, n_agents=4)``.

VMAS is licensed GPL-3.0: it is imported and subclassed by the modules ``envs.vmas*`` alone. States and rewards are
those of stock VMAS to the last bit, with these differences and peculiarities:

- Every environment object has its own random state; time limits are truncations; a partial reset is one vectorised
  reset that leaves the other rows exact, so random numbers are used in another order than in stock VMAS.
- Actions outside the box are clamped (stock VMAS asserts; give_way, multi_give_way and wind_flocking have the box
  [-0.5, 0.5]). Discrete actions are one flattened choice, 3 levels per dimension, the first one "stay": 9 choices for
  a holonomic agent, multiplied by the number of messages where agents talk. A choice that an agent does not have acts
  as choice 0.
- Goals of simple_reference, simple_speaker_listener, simple_adversary and simple_push, and the spawn noise of
  give_way, are drawn once for the whole batch, and only when all rows reset together. The variants ``<name>_pe`` draw
  them for each environment. simple_world_comm hides all others from everyone but the leader;
  ``simple_world_comm_pe`` has the visibility rules of MPE.
- ball_trajectory pays all agents, passage with shared_reward pays all the same (`envs.vmas_scenarios`).
- navigation's collision penalty depends on the whole batch: VMAS looks for pairs in contact in any environment before
  it computes the penalty. This is left as it is; the native navigation defines it per environment.
- football's scripted opponents play the same game in every row against a passive team (177 steps, return -115.17).
  They draw random numbers for the whole batch, as road_traffic does: there the rows that are not reset keep their
  state, but not the same future random numbers. road_traffic also records history whenever it is observed.
  Observation noise is drawn anew when other rows are reset.
- ``hidden_leader`` is a scenario of the project's own (`envs.vmas_hidden_leader`). Where it moves agents itself,
  ("agents", "controlled") bool [N, A] is False for those whose action it will override in the coming step, and
  ("agents", "scripted_action") is what these will do, or the choice that comes nearest to it.
- A scenario without an end of its own never terminates: only ``max_steps`` ends its episodes.
"""

from __future__ import annotations

import math
from importlib import import_module
from typing import Any, Literal

import numpy as np
import torch
import vmas
from torch import Tensor
from torchrl.data import Binary, TensorSpec, Unbounded
from vmas.simulator.core import Agent
from vmas.simulator.scenario import BaseScenario

from envs import check_options, suggestion
from envs.base import (
    ACTION,
    ACTION_MASK,
    CONTROLLED,
    GROUP,
    HIDDEN_VARIABLES,
    INFORMED,
    OBSERVATION,
    SCRIPTED_ACTION,
    BatchedEnv,
    Tensors,
    continuous,
    discrete,
)
from envs.kinds import check_kinds
from envs.rendering import draw_world
from envs.vmas_groups import NativeGroups
from envs.vmas_hidden import hidden_variables, who_is_informed
from envs.vmas_hidden_leader import HiddenLeader
from envs.vmas_scenarios import CORRECTED, PER_ENV, scenario_options
from envs.vmas_state import FreshRows, RandomState, SlotFinder, capture, restore
from envs.vmas_world_state import world_state

MODULES = ({name: f"vmas.scenarios.{name}" for name in vmas.scenarios}
           | {name: f"vmas.scenarios.mpe.{name}" for name in vmas.mpe_scenarios}
           | {name: f"vmas.scenarios.debug.{name}" for name in vmas.debug_scenarios})
OWN = {**PER_ENV, "hidden_leader": HiddenLeader}  # beside the shipped ones
# horizons in common use: 25 for the particle environments, 100 for the others but these
HORIZONS = {"ball_passage": 500, "football": 500, "joint_passage": 500, "joint_passage_size": 500, "passage": 500,
            "multi_give_way": 200}
# all agents get the same number, whatever the options
TEAM_REWARD = {"balance", "ball_passage", "ball_trajectory", "buzz_wire", "dropout", "hidden_leader",
               "joint_passage", "joint_passage_size", "reverse_transport", "simple_reference",
               "simple_speaker_listener", "simple_spread", "transport", "wheel"}


class VmasBatch(BatchedEnv):
    """One VMAS scenario, all its policy agents in the group "agents".

    Observations are padded with zeros to the longest, continuous actions with dimensions that do nothing (bounds -1
    and 1), discrete ones to the largest number of choices, with a mask. Made by `make_vmas`.

    Attributes:
        scenario: the VMAS scenario. ``continuous_actions``: False for one flattened choice per agent. ``with_info``:
        asked for, and the scenario has any. ``with_state``: asked for.
    """

    def __init__(self, scenario: BaseScenario, name: str, *, options: dict[str, Any], num_envs: int, seed: int,
                 device: torch.device, max_steps: int | None, truncate: bool, continuous_actions: bool,
                 with_info: bool, with_hidden: bool, with_state: bool):
        """AssertionError or TypeError from VMAS for option values it refuses."""
        random = RandomState(seed, torch.device(device), numpy=name == "het_mass")
        with random.swapped_in():
            scenario.env_make_world(num_envs, torch.device(device), **options)
            scenario.env_reset_world_at(None)
            agents = scenario.world.policy_agents
            observations = [_flat(scenario.observation(agent)) for agent in agents]
        actions = ActionWriter(agents, scenario.world.dim_c, continuous_actions)
        obs_dims = [observation.shape[-1] for observation in observations]
        names = [agent.name for agent in agents]
        super().__init__(num_envs=num_envs, agent_names=names, agent_types=_roles(names, obs_dims, actions.dims),
                         max_steps=max_steps, seed=seed, device=device, truncate=truncate)
        self.scenario, self.name, self.random, self.actions = scenario, name, random, actions
        self.obs_dims, self.action_dims, self.continuous_actions = obs_dims, actions.dims, continuous_actions
        self.action_factors = actions.factors
        self.reward_is_shared = self.n_agents == 1 or name.removesuffix("_pe") in TEAM_REWARD
        self._policy_agents = agents
        self._fresh = FreshRows(SlotFinder(scenario, num_envs), lambda: scenario.env_reset_world_at(None))
        self._mask = None
        if not continuous_actions and len(set(actions.dims)) > 1:
            choices = torch.arange(max(actions.dims), device=self.device)
            self._mask = choices < torch.tensor(actions.dims, device=self.device)[:, None]
        infos = self._info_specs() if with_info else {}
        self.with_info = bool(infos)
        self._hidden, self.hidden_parts = hidden_variables(scenario, name) if with_hidden else (None, ())
        if with_hidden:
            width = sum(size for _, size, _ in self.hidden_parts)
            infos = infos | {HIDDEN_VARIABLES: Unbounded((self.n_agents, width))}
        flag = Binary(self.n_agents, shape=(self.n_agents,), dtype=torch.bool)
        self._informed = who_is_informed(scenario, agents) if with_hidden else None
        if self._informed is not None:
            infos = infos | {INFORMED: flag}
        self._scripts = getattr(scenario, "scripts_agents", False)
        if self._scripts:
            infos = infos | {CONTROLLED: flag, SCRIPTED_ACTION: actions.spec()}
        self.with_state, self._state = with_state, world_state(scenario, name) if with_state else None
        self._set_specs(observation_dim=max(obs_dims), action=actions.spec(), observations=infos,
                        action_mask=None if self._mask is None else max(actions.dims),
                        state_dim=None if self._state is None else (
                            self._state().shape[-1] + self.n_agents * max(obs_dims)))
        self.random.seed(seed)

    def _info_specs(self) -> dict[tuple[str, ...], TensorSpec]:
        with self.random.swapped_in():
            return {key: Unbounded(value.shape[1:]) for key, value in self._infos().items()}

    # ------------------------------------------------------------------ what the base asks for

    def _restart(self, mask: Tensor | None) -> None:
        if mask is not None and mask.all():
            mask = None  # goals that all rows share are drawn anew when all rows start together
        with self.random.swapped_in():
            if mask is None:
                self.scenario.env_reset_world_at(None)
            elif mask.any():
                self._fresh.put(mask)

    def _simulate(self, actions: Tensors) -> tuple[Tensor, Tensor]:
        scenario = self.scenario
        with self.random.swapped_in():
            self.actions.write(actions[ACTION])
            for agent in scenario.world.agents:  # scripted ones too
                scenario.env_process_action(agent)
            scenario.pre_step()
            scenario.world.step()
            scenario.post_step()
            # clones: scenarios return tensors that they change in place later (shape [N], but wheel [N, 1])
            rewards = [scenario.reward(agent).reshape(self.num_envs).clone() for agent in self._policy_agents]
            return torch.stack(rewards, 1).float(), scenario.done().reshape(self.num_envs).clone()

    def _observe(self) -> Tensors:
        width = max(self.obs_dims)
        with self.random.swapped_in():
            rows = [_padded(_flat(self.scenario.observation(agent)), width) for agent in self._policy_agents]
            out: Tensors = {OBSERVATION: torch.stack(rows, 1).float()}
            if self.with_info:
                out |= self._infos()
            if self._hidden is not None:
                out[HIDDEN_VARIABLES] = torch.stack([self._hidden(agent) for agent in self._policy_agents], 1).float()
            if self._informed is not None:
                out[INFORMED] = self._informed()
            if self._state is not None:
                out["state"] = torch.cat([self._state(), *rows], -1).float()
            if self._scripts:
                out |= self._script()
        if self._mask is not None:
            out[ACTION_MASK] = self._mask.expand(self.num_envs, -1, -1).clone()
        return out

    def _script(self) -> Tensors:
        """Who acts as the policy says, and what the others will do instead (zeros for those who do not)."""
        controlled = torch.stack([self.scenario.controlled(agent) for agent in self._policy_agents], 1)
        forces = torch.stack([self.scenario.script(agent) for agent in self._policy_agents], 1)
        action = self.actions.read(forces)
        return {CONTROLLED: controlled,
                SCRIPTED_ACTION: action.masked_fill(controlled.view(*controlled.shape, *[1] * (action.ndim - 2)), 0)}

    def _infos(self) -> dict[tuple[str, ...], Tensor]:
        """What the scenario tells about each agent, float32 [N, A, ...]; zeros where it tells nothing."""
        infos = [self.scenario.info(agent) for agent in self._policy_agents]
        out = {}
        for name in dict.fromkeys(name for info in infos for name in info):
            like = next(info[name] for info in infos if name in info)
            values = [info.get(name, torch.zeros_like(like)) for info in infos]
            out[GROUP, "info", name] = torch.stack([value.reshape(self.num_envs, -1) for value in values], 1).float()
        return out

    def _capture(self) -> dict[str, Any]:
        return {"scenario": self.name, "random": self.random.capture(), "fresh": self._fresh.state_dict(),
                **capture(self.scenario, self.num_envs)}

    def _restore(self, state: dict[str, Any], mask: Tensor | None = None) -> None:
        if state["scenario"] != self.name:
            raise ValueError(f"the saved state is of vmas/{state['scenario']}, this environment is vmas/{self.name}")
        restore(self.scenario, self.num_envs, state, mask)
        if mask is None:
            self.random.restore(state["random"])
            self._fresh.load_state_dict(state["fresh"], self.device)

    def _set_seed(self, seed: int | None) -> None:
        self.random.seed(0 if seed is None else seed)
        self._fresh.forget()  # they were drawn from another seed

    # ------------------------------------------------------------------ pictures

    def render_frame(self, env_index: int = 0, size: tuple[int, int] | None = None, *,
                     lidar: bool = False) -> np.ndarray:
        """Picture of one row now, uint8 [H, W, 3], drawn in software; ``size`` is (H, W), None takes the scenario's.

        ``lidar`` draws the rays of the agents' sensors. ValueError if there is no such row.
        """
        if not 0 <= env_index < self.num_envs:
            raise ValueError(f"env_index must be in [0, {self.num_envs - 1}], got {env_index}")
        return draw_world(self.scenario, env_index, size, lidar=lidar)


def _flat(observation: Tensor | dict[str, Tensor]) -> Tensor:
    if isinstance(observation, Tensor):
        return observation
    return torch.cat([value.reshape(len(value), -1) for value in observation.values()], -1)


def _padded(value: Tensor, width: int) -> Tensor:
    missing = width - value.shape[-1]
    return value if missing == 0 else torch.nn.functional.pad(value, (0, missing))


def _roles(names: list[str], *sizes: list[int]) -> tuple[int, ...]:
    """One number per agent: the same for agents with the same name, up to the final number, and the same sizes."""
    keys = [(name.rstrip("0123456789"), *key) for name, *key in zip(names, *sizes, strict=True)]
    kinds = list(dict.fromkeys(keys))
    return tuple(kinds.index(key) for key in keys)


class ActionWriter:
    """Writes a batch of actions into the agents of a world; no host synchronisation.

    Args:
        agents: the A policy agents. ``dim_c``: number of message dimensions of agents that are not silent.
        is_continuous: forces (and messages in [0, 1]); else one choice per agent.

    Attributes:
        dims: for each agent the number of action dimensions, or of choices. factors: what a choice combines: a level
            of each force, and a message; None of forces.
    """

    def __init__(self, agents: list[Agent], dim_c: int, is_continuous: bool):
        self.agents, self.is_continuous = agents, is_continuous
        self.physical = [agent.action_size for agent in agents]
        self.messages = [0 if agent.silent else dim_c for agent in agents]
        self.width = max(p + c for p, c in zip(self.physical, self.messages, strict=True))
        self.noisy = [agent.u_noise > 0 for agent in agents]
        self.factors = None if is_continuous else [
            [*agent.discrete_action_nvec, *([c] if c else [])] for agent, c in zip(agents, self.messages, strict=True)]
        if is_continuous:
            self.dims = [p + c for p, c in zip(self.physical, self.messages, strict=True)]
            self.low = self._rows(lambda u: -u.u_range_tensor, message=0.0, padding=-1.0)
            self.high = self._rows(lambda u: u.u_range_tensor, message=1.0, padding=1.0)
            self.scale = self._rows(lambda u: u.u_multiplier_tensor, message=1.0, padding=1.0)
        else:
            tables = [self._table(*each) for each in zip(agents, self.factors, self.messages, strict=True)]
            self.dims = [len(table) for table in tables]
            stay = max(self.dims)  # choices that an agent does not have
            self.table = torch.stack([torch.cat([table, table[:1].expand(stay - len(table), -1)]) for table in tables])
            self.index = torch.arange(len(agents), device=self.table.device)[:, None]

    def _rows(self, physical, *, message: float, padding: float) -> Tensor:
        rows = []
        for agent, c in zip(self.agents, self.messages, strict=True):
            row = physical(agent.action)
            rest = self.width - len(row) - c
            rows.append(torch.cat([row, row.new_full((c,), message), row.new_full((rest,), padding)]))
        return torch.stack(rows)

    def _table(self, agent: Agent, factors: list[int], messages: int) -> Tensor:
        """Forces and message of every choice [choices, width]; the last dimension changes fastest, as in VMAS."""
        reach = agent.action.u_range_tensor
        parts = [torch.arange(n, device=reach.device) for n in factors]
        choice = torch.cartesian_prod(*parts).reshape(math.prod(factors), -1)
        columns = []
        for k, n in enumerate(agent.discrete_action_nvec):
            level = choice[:, k]
            if n % 2:  # choice 0 is the middle level: no force
                level = torch.where(level == 0, n // 2, torch.where(level <= n // 2, level - 1, level))
            columns.append((level / (n - 1)) * (2 * reach[k]) - reach[k])
        forces = torch.stack(columns, -1) * agent.action.u_multiplier_tensor
        spoken = torch.nn.functional.one_hot(choice[:, -1], messages).float() if messages else forces[:, :0]
        return _padded(torch.cat([forces, spoken], -1), self.width)

    def spec(self) -> TensorSpec:
        """Of one environment: bounds [A, width], or one categorical per agent."""
        if self.is_continuous:
            return continuous(self.low, self.high)
        return discrete(max(self.dims), len(self.agents))

    def write(self, action: Tensor) -> None:
        """Clamp or decode ``action`` [N, A, width] or int64 [N, A] into ``agent.action``."""
        if self.is_continuous:
            values = torch.minimum(torch.maximum(action.detach().float(), self.low), self.high) * self.scale
            values = values.transpose(0, 1).contiguous()
        else:
            values = self.table[self.index, action.T]
        for agent, value, p, c, noisy in zip(self.agents, values, self.physical, self.messages, self.noisy,
                                             strict=True):
            force = value[:, :p]
            agent.action.u = force + torch.randn_like(force) * agent.u_noise if noisy else force
            if c:
                message = value[:, p:p + c]
                agent.action.c = message + torch.randn_like(message) * agent.c_noise if agent.c_noise else message

    def read(self, forces: Tensor) -> Tensor:
        """The actions that come nearest to ``forces`` [N, A, width]: what `write` takes."""
        if self.is_continuous:
            return torch.minimum(torch.maximum(forces / self.scale, self.low), self.high)
        away = torch.linalg.vector_norm(forces.unsqueeze(2) - self.table, dim=-1)  # [N, A, choices]
        return away.argmin(-1)


# ---------------------------------------------------------------------- the family

def make_vmas(name: str, *, num_envs: int, device: torch.device | str, seed: int, max_steps: int | None,
              truncate: bool = True, continuous_actions: bool = True, with_info: bool = False,
              with_hidden: bool = False, with_state: bool = False, groups: Literal["padded", "native"] = "padded",
              **options: Any) -> VmasBatch | NativeGroups:
    """N copies of the VMAS scenario ``name``: one of vmas.scenarios, its mpe and debug folders, ``<name>_pe``, or
    hidden_leader.

    Args:
        max_steps: None takes 100; 25 for the mpe scenarios; 500 for football, passage, ball_passage, joint_passage and
            joint_passage_size; 200 for multi_give_way.
        truncate: see `BatchedEnv`. ``with_info``: write ("agents", "info", ...), which costs a tensor per entry.
        with_hidden: write ("agents", "hidden") [N, A, D], for teachers and probes only, and where some agents know
            that anyway ("agents", "informed"), bool [N, A] (`envs.vmas_hidden`).
        with_state: write "state" [N, S], which central critics then read: positions, velocities, hidden variables
            (`envs.vmas_world_state`), and behind them all observations.
        groups: "padded" for one group "agents"; "native" for one group per kind of agent and no padding, as TorchRL's
            own wrapper has them (`NativeGroups`).
        options: of the scenario (``n_agents=4``).

    Raises:
        ValueError: unknown scenario or option, a value that it refuses, or hidden variables where there are none.
    """
    scenario = _scenario(name)
    known = scenario_options(scenario)
    check_options(f"vmas/{name}", options, known, make_vmas)
    check_kinds(f"vmas/{name}", options, known)
    base = name.removesuffix("_pe")
    horizon = max_steps or HORIZONS.get(base, 25 if base in vmas.mpe_scenarios else 100)
    try:
        env = VmasBatch(scenario, name, options=options, num_envs=num_envs, seed=seed, device=torch.device(device),
                        max_steps=horizon, truncate=truncate, continuous_actions=continuous_actions,
                        with_info=with_info, with_hidden=with_hidden, with_state=with_state)
    except (AssertionError, TypeError) as error:
        if not options:
            raise
        raise ValueError(f"vmas/{name} refused the options {options}: {error}") from error
    return env if groups == "padded" else NativeGroups(env)


def available() -> list[str]:
    """Names that `make_vmas` knows."""
    return sorted([*MODULES, *OWN])


def _scenario(name: str) -> BaseScenario:
    if name not in available():
        raise ValueError(f"unknown VMAS scenario {name!r}; choose from {available()}" + suggestion(name, available()))
    own = CORRECTED.get(name) or OWN.get(name)
    # as a module with a name (VMAS loads its files without one), which torch.compile needs
    return own() if own else import_module(MODULES[name]).Scenario()
