"""The base of every batched environment of the project: N copies in lock step, one home for time limits and resume.

A family subclasses `BatchedEnv` and implements five small methods on plain tensors (`_simulate`, `_restart`,
`_observe`, `_capture`, `_restore`); the base turns them into a TorchRL ``EnvBase`` and into the tensor interface
(`reset_tensors`, `step_tensors`) that the fast collector reads without TensorDict overhead.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from functools import reduce
from typing import Any

import numpy as np
import torch
from tensordict import NestedKey, TensorDict, TensorDictBase
from torch import Tensor
from torchrl.data import Binary, Bounded, Categorical, Composite, TensorSpec, Unbounded
from torchrl.envs import EnvBase

GROUP = "agents"
OBSERVATION = (GROUP, "observation")
ACTION = (GROUP, "action")
CHOICE = (GROUP, "action", "discrete")  # int64 [N, A] of a hybrid action
PARAMS = (GROUP, "action", "params")  # float32 [N, A, P] in [-1, 1] of a hybrid action; see `param_mask`
ACTION_MASK = (GROUP, "action_mask")
ALIVE = (GROUP, "mask")  # bool [N, A], False for agents that have left the episode; optional
REWARD = (GROUP, "reward")
HIDDEN_VARIABLES = (GROUP, "hidden")  # float32 [N, A, D], for teachers and probes only; written if asked for
INFORMED = (GROUP, "informed")  # bool [N, A], True for agents that see those themselves; beside them, where some do
VISIBLE = (GROUP, "visible")  # float32 [N, A, A - 1], 1 for each other agent that is seen now; written if asked for
CONTROLLED = (GROUP, "controlled")  # bool [N, A], False where the environment overrides the action; optional
SCRIPTED_ACTION = (GROUP, "scripted_action")  # like an action, what it will do instead there; with CONTROLLED only
SUCCESS = "success"  # bool [N, 1], whether this step reached the task's goal; optional
DONE_KEYS = ("done", "terminated", "truncated")

Tensors = dict[NestedKey, Tensor]


class BatchedEnv(EnvBase):
    """N copies of a task stepped together; truncation, partial resets, clamping and save/load stand here once.

    Args:
        num_envs: number of copies N, at least 1.
        agent_types: one integer per agent; agents with the same number have the same role (and may share a network).
        max_steps: horizon in steps; the episode is *truncated* there. None: no limit.
        truncate: False reports the time limit as ``terminated`` instead (the convention of some published runs).
        seed: seed of this environment's own random state.

    Attributes:
        agent_types: tuple of A integers. ``group_map``: {"agents": [names]}. ``reward_is_shared``: all agents get
        the same number. ``cheap_reset``: a reset costs about as much as a test for "any done", so a collector on a
        GPU may reset with an all-False mask instead of synchronising. ``obs_dims``, ``action_dims``: sizes of each
        agent without padding (choices if discrete), None if all have the full size. ``action_factors``: for each
        agent the sizes of what its choice is a combination of, the last changing fastest; None if of nothing.
        ``hidden_parts``: what
        ("agents", "hidden") is made of, as tuples (name, width, whether it is a one-hot); empty if there is none.
        ``param_mask``: of hybrid actions, bool [K, P]: the parameters that each of the K choices has; else None.
        ``periodic``: those (choice, parameter) that are an angle, with -1 and 1 the same.
    """

    cheap_reset = False
    obs_dims: Sequence[int] | None = None
    action_dims: Sequence[int] | None = None
    action_factors: Sequence[Sequence[int]] | None = None
    hidden_parts: tuple[tuple[str, int, bool], ...] = ()
    param_mask: Tensor | None = None
    periodic: frozenset[tuple[int, int]] = frozenset()

    def __init__(self, *, num_envs: int, agent_names: Sequence[str], agent_types: Sequence[int], max_steps: int | None,
                 seed: int, device: torch.device | str, truncate: bool = True):
        check_sizes(num_envs=num_envs, max_steps=max_steps)
        super().__init__(device=torch.device(device), batch_size=[num_envs])
        self.max_steps, self.truncate = max_steps, truncate
        self.agent_types = tuple(agent_types)
        self.group_map = {GROUP: list(agent_names)}
        self.n_agents = len(self.group_map[GROUP])
        self.num_envs = num_envs
        self.steps = torch.zeros(num_envs, dtype=torch.int64, device=self.device)

    # ------------------------------------------------------------------ what a family implements, on plain tensors

    @abstractmethod
    def _restart(self, mask: Tensor | None) -> None:
        """Start a new episode in the rows where ``mask`` [N] is True (all rows if None); other rows stay exact."""

    @abstractmethod
    def _simulate(self, actions: Tensors) -> tuple[Tensor, ...]:
        """Advance all rows one step: reward [N, A] float32 and terminated [N] bool.

        A simulator that cuts episodes for reasons of its own returns a third tensor: truncated [N] bool.
        """

    @abstractmethod
    def _observe(self) -> Tensors:
        """What agents (and critics) see now, as fresh tensors: observation, and the optional mask, state, info."""

    @abstractmethod
    def _capture(self) -> dict[str, Any]:
        """The exact simulator state and random state, as nested dicts of tensors and plain numbers (clones)."""

    @abstractmethod
    def _restore(self, state: dict[str, Any], mask: Tensor | None = None) -> None:
        """Put a captured state back, in the rows where ``mask`` [N] is True (all rows and random state if None)."""

    # ------------------------------------------------------------------ the tensor interface (fast collector)

    def reset_tensors(self, mask: Tensor | None = None) -> Tensors:
        """Restart the rows where ``mask`` [N] is True (None: all) and return the observations of all rows."""
        self._restart(mask)
        self.steps = torch.zeros_like(self.steps) if mask is None else self.steps.masked_fill(mask, 0)
        return self._observe()

    def step_tensors(self, actions: Tensors) -> Tensors:
        """One step of all rows: observations, reward [N, A, 1] and the three done flags [N, 1]."""
        reward, *ends = self._simulate(actions)
        self.steps, *flags = count(self.steps, *ends, max_steps=self.max_steps, truncate=self.truncate)
        out = self._observe()
        out[REWARD] = reward.unsqueeze(-1)
        for key, flag in zip(DONE_KEYS, flags, strict=True):
            out[key] = flag.unsqueeze(-1)
        return out

    # ------------------------------------------------------------------ the TorchRL interface

    def _reset(self, tensordict: TensorDictBase | None = None, **kwargs: Any) -> TensorDictBase:
        mask = None if tensordict is None else tensordict.get("_reset", None)
        out = self.reset_tensors(None if mask is None else mask.reshape(self.num_envs))
        zero = torch.zeros(self.num_envs, 1, dtype=torch.bool, device=self.device)
        return self._pack(out | {key: zero.clone() for key in DONE_KEYS})

    def _step(self, tensordict: TensorDictBase) -> TensorDictBase:
        rows = tensordict.get("_step", None)
        if rows is None:
            return self._pack(self.step_tensors({key: tensordict[key] for key in self.action_keys}))
        rows = rows.reshape(self.num_envs)
        before, steps = self._capture(), self.steps.clone()
        out = self.step_tensors({key: tensordict[key] for key in self.action_keys})
        self._restore(before, ~rows)
        self.steps = torch.where(rows, self.steps, steps)
        return self._pack(out | self._observe())

    def _pack(self, tensors: Tensors) -> TensorDictBase:
        out = TensorDict({}, batch_size=self.batch_size, device=self.device)
        out[GROUP] = TensorDict({}, batch_size=[self.num_envs, self.n_agents], device=self.device)
        for key, value in tensors.items():
            out.set(key, value)
        return out

    def render_frame(self, env_index: int = 0, size: tuple[int, int] | None = None) -> np.ndarray:
        """Picture of one copy, uint8 [H, W, 3], of ``size`` (H, W) or its own; ValueError if it cannot be drawn."""
        raise ValueError(f"{type(self).__name__} cannot be drawn")

    # ------------------------------------------------------------------ exact save and load

    def state_dict(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """Everything that decides the future of this environment: simulator, step counters, random state."""
        return {"simulator": self._capture(), "steps": self.steps.clone()}

    def load_state_dict(self, state_dict: dict[str, Any], strict: bool = True, **kwargs: Any) -> None:
        """Put back what `state_dict` returned; raises ValueError if it belongs to another number of envs."""
        steps = state_dict["steps"]
        if len(steps) != self.num_envs:
            raise ValueError(f"the saved state has {len(steps)} environments, this one has {self.num_envs}")
        self._restore(state_dict["simulator"])
        self.steps = steps.to(self.device).clone()

    # ------------------------------------------------------------------ specs

    def _set_specs(
        self,
        *,
        observation_dim: int,
        action: TensorSpec,
        observations: dict[NestedKey, TensorSpec] | None = None,
        action_mask: int | None = None,
        state_dim: int | None = None,
    ) -> None:
        """Declare the specs of the one group from sizes without the batch dimension.

        ``action`` has shape [A, act] (continuous), [A] (categorical), or is a Composite of both (`hybrid`);
        ``observations`` are further entries with shapes that begin with A under the group, or without A at the root.
        """
        n, a = self.num_envs, self.n_agents
        group = Composite(
            {"observation": Unbounded((n, a, observation_dim), device=self.device)}, shape=(n, a), device=self.device
        )
        root = Composite({GROUP: group}, shape=(n,), device=self.device)
        if action_mask is not None:
            root[ACTION_MASK] = Binary(action_mask, shape=(n, a, action_mask), dtype=torch.bool, device=self.device)
        if state_dim is not None:
            root["state"] = Unbounded((n, state_dim), device=self.device)
        for key, spec in (observations or {}).items():
            root[key] = spec.to(self.device).expand(n, *spec.shape)
        self.observation_spec = root
        self.action_spec = self._in_group("action", action.to(self.device).expand(n, *action.shape))
        self.reward_spec = self._in_group("reward", Unbounded((n, a, 1), device=self.device))
        flag = {key: Categorical(2, shape=(n, 1), dtype=torch.bool, device=self.device) for key in DONE_KEYS}
        self.done_spec = Composite(flag, shape=(n,), device=self.device)

    def _in_group(self, name: str, spec: TensorSpec) -> Composite:
        group = Composite({name: spec}, shape=(self.num_envs, self.n_agents), device=self.device)
        return Composite({GROUP: group}, shape=(self.num_envs,), device=self.device)


def count(steps: Tensor, terminated: Tensor, *cut: Tensor, max_steps: int | None,
          truncate: bool) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """One step more: counters [N], and whether an episode is done, terminated, truncated there, bool [N].

    ``cut``: who is truncated for other reasons than ``max_steps``; ``truncate``: see `BatchedEnv`.
    """
    steps = steps + 1
    cuts = [*cut] if max_steps is None else [*cut, steps >= max_steps]
    limit = reduce(torch.logical_or, cuts) if cuts else torch.zeros_like(terminated)
    done = terminated | limit
    return (steps, done, terminated, limit) if truncate else (steps, done, done.clone(), torch.zeros_like(done))


def continuous(low: Tensor, high: Tensor) -> Bounded:
    """Spec of a continuous action with bounds of shape [A, act]."""
    return Bounded(low=low, high=high, shape=low.shape, dtype=torch.float32)


def discrete(n: int, n_agents: int) -> Categorical:
    """Spec of one categorical action with ``n`` choices for each of the agents, as int64 [A]."""
    return Categorical(n, shape=(n_agents,), dtype=torch.int64)


def hybrid(n: int, width: int, n_agents: int) -> Composite:
    """Spec of a hybrid action: one of ``n`` choices as int64 [A], and ``width`` parameters in [-1, 1], float32."""
    parameters = Bounded(low=-1.0, high=1.0, shape=(n_agents, width), dtype=torch.float32)
    return Composite({"discrete": discrete(n, n_agents), "params": parameters}, shape=(n_agents,))


def check_sizes(**sizes: int | None) -> None:
    """Raise ValueError unless every given size is None or a positive integer."""
    for name, value in sizes.items():
        if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 1):
            raise ValueError(f"{name} must be a positive integer, got {value!r}")


def check_others(task: str, n_agents: int) -> None:
    """Raise ValueError for the question whom a single agent sees, or what others hide from it."""
    if n_agents < 2:
        raise ValueError(f"{task} has a single agent: with_visible and with_hidden are about the others")
