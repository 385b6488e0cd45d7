"""The native particle world: ``make_env("particle/spread-5", num_envs=512, dialect="vmas")``.

Tasks are written from the published equations (`envs.particle_tasks`); a step of all environments, agents and pairs is
a few dozen tensor operations without host synchronisation, or one compiled graph.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor
from torchrl.data import Unbounded

from envs import check_options, suggestion
from envs.base import ACTION, HIDDEN_VARIABLES, OBSERVATION, BatchedEnv, Tensors, check_sizes
from envs.compiling import backend_of, one_graph
from envs.kinds import check_kinds, kinds_of
from envs.particle_drawing import draw_particles
from envs.particle_tasks import (
    ClimbingSpread,
    DoubleSpread,
    ForkSpread,
    Mpe2Spread,
    Navigation,
    ParticleTask,
    VmasSpread,
)

# task -> dialect -> class; the first dialect is the default
TASKS: dict[str, dict[str, type[ParticleTask]]] = {
    "spread": {"smpe": ForkSpread, "mpe2": Mpe2Spread, "vmas": VmasSpread},
    "navigation": {"vmas": Navigation},
    "climbing_spread": {"smpe": ClimbingSpread},
    "doublespread": {"smpe": DoubleSpread},
}
COMMON = ("n_agents", "device", "is_continuous")  # what every task takes and no user passes


class ParticleWorld(BatchedEnv):
    """N copies of a particle task. Made by `make_particle`.

    Attributes:
        task: the `ParticleTask`. ``places`` [E, 2, N]: agents, then landmarks. ``velocity`` [A, 2, N].
        ``continuous_actions``: False for one choice per agent.
    """

    def __init__(self, task: ParticleTask, name: str, *, num_envs: int, seed: int, device: torch.device,
                 max_steps: int | None, truncate: bool, continuous_actions: bool, with_hidden: bool,
                 backend: str | None):
        super().__init__(num_envs=num_envs, agent_names=[f"agent_{k}" for k in range(task.n_agents)],
                         agent_types=[0] * task.n_agents, max_steps=max_steps, seed=seed, device=device,
                         truncate=truncate)
        self.task, self.name, self.continuous_actions = task, name, continuous_actions
        self.reward_is_shared = task.reward_is_shared
        # on a GPU a reset by mask costs less than waiting for the answer whether there is anything to reset
        self.cheap_reset = self.device.type != "cpu"
        self.hidden_parts = task.hidden_parts if with_hidden else ()
        width = sum(size for _, size, _ in self.hidden_parts)
        more = {HIDDEN_VARIABLES: Unbounded((task.n_agents, width))} if with_hidden else {}
        self._set_specs(observation_dim=task.n_observed, action=task.actions.spec(task.n_agents), observations=more)
        self.random = torch.Generator(self.device).manual_seed(seed)
        self._seen: Tensor | None = None  # observation that the last step computed along the way
        self._restart(None)
        state = self.places, self.velocity
        self._step_task = one_graph(task.step, backend, *state, self.full_action_spec[ACTION].zero())
        self._observe_task = one_graph(task.observe, backend, *state)

    # ------------------------------------------------------------------ what the base asks for

    def _restart(self, mask: Tensor | None) -> None:
        self._seen = None
        if mask is None:
            self.places, self.velocity = self.task.spawn(self.num_envs, self.random)
        elif self.device.type == "cpu":  # only the rows asked for; on a GPU their number would have to be waited for
            rows = mask.nonzero().squeeze(1)
            places, velocity = self.task.spawn(len(rows), self.random)
            self.places = self.places.index_copy(-1, rows, places)
            self.velocity = self.velocity.index_copy(-1, rows, velocity)
        else:
            places, velocity = self.task.spawn(self.num_envs, self.random)
            self._merge(mask, places, velocity)

    def _merge(self, mask: Tensor, places: Tensor, velocity: Tensor) -> None:
        self.places = torch.where(mask, places, self.places)
        self.velocity = torch.where(mask, velocity, self.velocity)

    def _simulate(self, actions: Tensors) -> tuple[Tensor, Tensor]:
        with torch.no_grad():
            self.places, self.velocity, reward, terminated, self._seen = self._step_task(
                self.places, self.velocity, actions[ACTION])
        return reward, terminated

    def _observe(self) -> Tensors:
        seen, self._seen = self._seen, None
        out = {OBSERVATION: self._observe_task(self.places, self.velocity) if seen is None else seen}
        return out | {HIDDEN_VARIABLES: self.task.hidden(self.places)} if self.hidden_parts else out

    def _capture(self) -> dict[str, Any]:
        return {"task": self.name, "places": self.places.clone(), "velocity": self.velocity.clone(),
                "random": {self.device.type: self.random.get_state()}}

    def _restore(self, state: dict[str, Any], mask: Tensor | None = None) -> None:
        if state["task"] != self.name:
            raise ValueError(f"the saved state is of particle/{state['task']}, this environment is "
                             f"particle/{self.name}")
        self._seen = None
        places, velocity = (state[key].to(self.device, copy=True) for key in ("places", "velocity"))
        if mask is not None:
            self._merge(mask, places, velocity)
            return
        self.places, self.velocity = places, velocity
        if self.device.type in state["random"]:  # a state saved on another kind of device leaves the generator
            self.random.set_state(state["random"][self.device.type].cpu())

    def _set_seed(self, seed: int | None) -> None:
        self.random.manual_seed(0 if seed is None else seed)

    # ------------------------------------------------------------------ pictures

    def render_frame(self, env_index: int = 0, size: tuple[int, int] | None = None, *,
                     lidar: bool = True) -> np.ndarray:
        """Picture of one row now, uint8 [H, W, 3], drawn in software; ``lidar`` shows the rays that hit.

        ValueError if there is no such row.
        """
        if not 0 <= env_index < self.num_envs:
            raise ValueError(f"env_index must be in [0, {self.num_envs - 1}], got {env_index}")
        row = slice(env_index, env_index + 1)
        return draw_particles(self.task, self.places[..., row], self.velocity[..., row], size, lidar=lidar)


# ---------------------------------------------------------------------- the family

def make_particle(name: str, *, num_envs: int, device: torch.device | str, seed: int, max_steps: int | None,
                  dialect: str | None = None, continuous_actions: bool | None = None, truncate: bool = True,
                  with_hidden: bool = False, compile: bool | str = False, **options: Any) -> ParticleWorld:
    """N copies of ``spread-A``, ``navigation-A``, ``doublespread-A`` or ``climbing_spread``, for A agents.

    Args:
        name: without a number the task's own: spread 3, navigation and doublespread 4, climbing_spread 2.
        max_steps: None takes 25, navigation 100.
        dialect: "smpe" (default), "mpe2" or "vmas" for spread (`envs.particle_tasks` lists the differences);
            navigation is "vmas", the others are "smpe".
        continuous_actions: None takes the dialect's: True for vmas; False for mpe2, which has both, and for smpe, which
            has discrete actions only.
        truncate: see `BatchedEnv`; the published runs of the smpe dialect used False.
        with_hidden: write ("agents", "hidden") [N, A, D], for teachers and probes only: positions of the others' goals
            in navigation; other tasks have none.
        compile: True compiles the step as one graph, a word names the backend of ``torch.compile``; what cannot be
            compiled raises, at once.
        options: of the task (`Mpe2Spread`, `VmasSpread`, `Navigation`).

    Raises:
        ValueError: unknown task, dialect, option or backend, or a value out of range; lists what is allowed.
    """
    base, _, number = name.partition("-")
    if base not in TASKS:
        raise ValueError(f"unknown particle task {name!r}; choose from {available()}" + suggestion(base, TASKS))
    dialects = TASKS[base]
    dialect = next(iter(dialects)) if dialect is None else dialect
    if dialect not in dialects:
        raise ValueError(f"particle/{base} has no dialect {dialect!r}; it has {list(dialects)}"
                         + suggestion(str(dialect), dialects))
    cls = dialects[dialect]
    n_agents = _agents(name, number, cls)
    if "n_agents" in options:
        raise ValueError(f"particle tasks take the number of agents in the name: 'particle/{base}-"
                         f"{options['n_agents']}'")
    title, kinds = f"particle/{base} in dialect {dialect!r}", kinds_of(cls)
    check_options(title, options, [option for option in kinds if option not in COMMON], make_particle)
    check_kinds(title, options, kinds)
    is_continuous = cls.offers[0] if continuous_actions is None else continuous_actions
    if is_continuous not in cls.offers:
        raise ValueError(f"{title} has no continuous_actions={is_continuous!r}; it has {list(cls.offers)}")
    device = torch.device(device)
    task = cls(n_agents, device, is_continuous, **options)
    if with_hidden and not task.hidden_parts:
        raise ValueError(f"particle/{name} has no hidden variables with these options; with_hidden is for navigation "
                         "with others, without observe_all_goals")
    return ParticleWorld(task, f"{base}-{n_agents} {dialect}", num_envs=num_envs, seed=seed, device=device,
                         max_steps=max_steps or cls.horizon, truncate=truncate, continuous_actions=is_continuous,
                         with_hidden=with_hidden, backend=backend_of(compile))


def available() -> list[str]:
    """Names that `make_particle` knows; A stands for the number of agents."""
    return [base if next(iter(dialects.values())).agent_counts else f"{base}-A" for base, dialects in TASKS.items()]


def _agents(name: str, number: str, cls: type[ParticleTask]) -> int:
    if "-" not in name:
        return cls.default_agents
    counts = cls.agent_counts
    if not number.isdecimal() or int(number) < 1 or (counts and int(number) not in counts):
        raise ValueError(f"particle/{name}: the number of agents must be {counts or 'a positive integer'}, "
                         f"got {number!r}")
    check_sizes(n_agents=int(number))
    return int(number)

