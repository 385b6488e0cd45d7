"""Any gymnasium environment as a batched one: ``make_env("gymnasium/CartPole-v1", num_envs=8)``.

`JointEnv` is one copy of a task as a ``gymnasium.Env`` of arrays [A, ...]; `ReplayEnv` steps N of them in gymnasium's
own vector classes, with exact save and load for any deterministic simulator. `envs.pettingzoo` uses both as they are.
"""

from __future__ import annotations

import warnings
from abc import abstractmethod
from collections.abc import Callable
from functools import partial
from importlib import import_module
from inspect import Parameter, signature
from typing import Any

import gymnasium
import numpy as np
import torch
from gymnasium import spaces
from gymnasium.envs.registration import EnvSpec, load_env_creator
from gymnasium.vector import AsyncVectorEnv, AutoresetMode, SyncVectorEnv
from torch import Tensor
from torchrl.data import Binary

from envs import check_options, suggestion
from envs.base import ACTION, ACTION_MASK, ALIVE, OBSERVATION, BatchedEnv, Tensors, continuous, discrete
from envs.kinds import check_kinds, kinds_of

MASKS = {"action_mask": ACTION_MASK, "mask": ALIVE}
FIRST_CAPACITY = 256  # recorded steps at first, where the horizon is unlimited


class AgentSpaces:
    """The spaces of one agent as flat arrays: a float observation, and one categorical or one bounded action.

    Attributes:
        obs_dim: length of the flat observation (discrete parts one-hot, Dict and Tuple concatenated).
        choices: number of choices of a categorical action, None if the action is continuous.
        low, high: float32 bounds [d] of a continuous action. ``action_dim``: choices, or d.
        masked: the observation is a Dict with an entry "action_mask", which is taken out of it.
    """

    def __init__(self, agent: str, observation: spaces.Space, action: spaces.Space):
        """ValueError for a space without flat size, and an action that is neither Discrete nor a bounded float Box."""
        self.choices = int(action.n) if isinstance(action, spaces.Discrete) else None
        bounded = isinstance(action, spaces.Box) and action.is_bounded() and np.issubdtype(action.dtype, np.floating)
        if self.choices is None and not bounded:
            raise ValueError(f"action space {action} of agent {agent!r} is not supported; Discrete and Box of floats "
                             "with finite bounds are")
        self.masked = isinstance(observation, spaces.Dict) and "action_mask" in observation.spaces and not bounded
        if self.masked:
            observation = spaces.Dict({key: space for key, space in observation.spaces.items() if key != "action_mask"})
        try:
            self.obs_dim = spaces.flatdim(observation)
        except (ValueError, NotImplementedError) as error:
            raise ValueError(f"observation space {observation} of agent {agent!r} has no fixed flat size") from error
        self._observation, self._action = observation, action
        if bounded:
            self.low, self.high = (bound.astype(np.float32).ravel() for bound in (action.low, action.high))
        self.action_dim = self.choices or self.low.size

    def flat(self, observation: Any) -> np.ndarray:
        """The observation as float32 [obs_dim]."""
        return np.asarray(spaces.flatten(self._observation, observation), dtype=np.float32)

    def legal(self, observation: Any, info: dict[str, Any], width: int) -> np.ndarray:
        """Which of ``width`` choices may be taken, bool; all own ones if the simulator allows none or says nothing."""
        given = observation["action_mask"] if self.masked and observation is not None else info.get("action_mask")
        mask = np.zeros(width, dtype=bool)
        # where nothing is legal the episode is over: no choice matters, but a policy must be able to make one
        mask[:self.choices] = True if given is None or not np.any(given) else np.asarray(given, dtype=bool)
        return mask

    def native(self, action: np.ndarray) -> Any:
        """What the simulator takes: clipped to the space's own bounds; an index beyond the choices is the last one."""
        if self.choices is not None:
            return self._action.start + np.minimum(action, self.choices - 1)
        action = action[:self.action_dim].astype(self._action.dtype).reshape(self._action.shape)
        return np.clip(action, self._action.low, self._action.high)


def box(*shape: int) -> spaces.Box:
    """Space of unlimited float32 arrays of this shape."""
    return spaces.Box(-np.inf, np.inf, shape, np.float32)


class JointEnv(gymnasium.Env):
    """One copy of a task for A agents, as arrays padded to the largest agent; a family implements two methods.

    Observation: Dict of observation [A, obs], reward [A], terminated [1], truncated [1], and optionally action_mask
    [A, n], state [S], mask [A]. Rewards and flags travel there and not as the step's own results, because those are
    scalars, and because a vector class refuses to step while one of its rows is finished.
    Action: Dict of action [A, d] or [A], and active [1]: with 0 the step is skipped and the last observation repeated.

    Args:
        env: the simulator, of which ``metadata``, ``render()`` and ``close()`` are used.
        roles: one integer per agent; same number, same role. ``masks``: write an action mask in any case.
    """

    def __init__(self, env: Any, agents: dict[str, AgentSpaces], roles: tuple[int, ...], *, masks: bool = False):
        """ValueError if the agents do not all have the same kind of action."""
        if len({agent.choices is None for agent in agents.values()}) != 1:
            raise ValueError(f"agents {list(agents)}: all need Discrete actions, or all need Box actions")
        self.env, self.agents, self.roles, self.metadata = env, agents, roles, env.metadata
        count, n = len(agents), max(agent.action_dim for agent in agents.values())
        entries = {"observation": box(count, max(agent.obs_dim for agent in agents.values())), "reward": box(count),
                   "terminated": spaces.MultiBinary(1), "truncated": spaces.MultiBinary(1)}
        if all(agent.choices for agent in agents.values()):
            action = spaces.MultiDiscrete([n] * count)
            if masks or any(agent.masked or agent.choices < n for agent in agents.values()):
                entries["action_mask"] = spaces.MultiBinary((count, n))
        else:
            # the simulator never sees padding; [-1, 1] keeps it harmless for a policy that rescales to the bounds
            low, high = -np.ones((count, n), np.float32), np.ones((count, n), np.float32)
            for i, agent in enumerate(agents.values()):
                low[i, :agent.action_dim], high[i, :agent.action_dim] = agent.low, agent.high
            action = spaces.Box(low, high)
        self.action_space = spaces.Dict({"action": action, "active": spaces.MultiBinary(1)})
        self.observation_space = spaces.Dict(entries)

    @abstractmethod
    def _begin(self, seed: int) -> dict[str, np.ndarray]:
        """Start the episode of this seed; return `arrays`."""

    @abstractmethod
    def _advance(self, actions: np.ndarray) -> dict[str, np.ndarray]:
        """Take the joint action [A, d] or [A]; return `arrays`."""

    def arrays(self, observations: dict[str, Any], infos: dict[str, dict[str, Any]], rewards: dict[str, float], *,
               terminated: bool = False, truncated: bool = False) -> dict[str, np.ndarray]:
        """The joint observation from dicts by agent; an agent that is not in them gets zeros and its own choices."""
        observation = np.zeros(self.observation_space["observation"].shape, dtype=np.float32)
        for i, (name, agent) in enumerate(self.agents.items()):
            if name in observations:
                observation[i, :agent.obs_dim] = agent.flat(observations[name])
        reward = np.array([rewards.get(name, 0.0) for name in self.agents], dtype=np.float32)
        out = {"observation": observation, "reward": reward, "terminated": np.array([terminated]),
               "truncated": np.array([truncated])}
        if "action_mask" in self.observation_space.spaces:
            width = self.observation_space["action_mask"].shape[1]
            out["action_mask"] = np.stack([agent.legal(observations.get(name), infos.get(name, {}), width)
                                           for name, agent in self.agents.items()])
        return out

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[dict, dict]:
        """Start the episode of ``seed``."""
        self._last = self._begin(seed)
        return self._last, {}

    def step(self, action: dict[str, np.ndarray]) -> tuple[dict, float, bool, bool, dict]:
        """Take the joint action unless ``action["active"]`` is 0; reward and flags are in the observation."""
        if action["active"][0]:
            self._last = self._advance(action["action"])
        return self._last, 0.0, False, False, {}

    def render(self) -> Any:
        """The simulator's own frame."""
        return self.env.render()

    def close(self) -> None:
        """Close the simulator."""
        self.env.close()


class SingleAgent(JointEnv):
    """A gymnasium environment as a joint one with the one agent "agent"; a mask in its info becomes the action mask."""

    def __init__(self, env: gymnasium.Env):
        """ValueError for spaces that `AgentSpaces` does not support."""
        _, info = env.reset(seed=0)
        super().__init__(env, {"agent": AgentSpaces("agent", env.observation_space, env.action_space)}, (0,),
                         masks="action_mask" in info)

    def _begin(self, seed: int) -> dict[str, np.ndarray]:
        observation, info = self.env.reset(seed=seed)
        return self.arrays({"agent": observation}, {"agent": info}, {})

    def _advance(self, actions: np.ndarray) -> dict[str, np.ndarray]:
        observation, reward, terminated, truncated, info = self.env.step(self.agents["agent"].native(actions[0]))
        return self.arrays({"agent": observation}, {"agent": info}, {"agent": reward},
                           terminated=terminated, truncated=truncated)


class ReplayEnv(BatchedEnv):
    """N copies of a `JointEnv` whose exact state is, per copy, the seed of its episode and the actions taken since.

    Every (partial) reset draws a seed per restarted row from this object's own generator, so an episode depends on
    nothing before it. `state_dict` costs a copy of the recorded actions. `load_state_dict` plays them again: as many
    steps of the vector class as the longest episode has (rows with fewer wait), none for rows that are already there.
    If a simulator is not deterministic under its seed, loading warns and names the rows.
    A finished row that is stepped without a reset stays as it is, with reward 0 and its flags.

    Args:
        make_row: called with a render mode or None; makes one copy.
        max_steps: horizon; None for what the simulator itself does (the record then grows with the longest episode).
        parallel: one process per copy (``AsyncVectorEnv``); worth it where a step takes longer than about 1 ms.

    Attributes:
        episode_seeds: int64 [N]; ``reset(seed=...)`` of the plain environment with it begins the same episode.
    """

    def __init__(self, make_row: Callable[[str | None], JointEnv], *, num_envs: int, device: torch.device | str,
                 seed: int, max_steps: int | None, truncate: bool = True, parallel: bool = False):
        """ValueError for spaces that `JointEnv` does not support."""
        row = make_row(None)
        super().__init__(num_envs=num_envs, agent_names=list(row.agents), agent_types=row.roles, max_steps=max_steps,
                         seed=seed, device=device, truncate=truncate)
        self.reward_is_shared = self.n_agents == 1
        self.obs_dims, self.action_dims = zip(*((x.obs_dim, x.action_dim) for x in row.agents.values()), strict=True)
        self._make_row, self._metadata, self._viewer = make_row, row.metadata, None
        self._action = row.action_space["action"]
        self._declare(row.observation_space.spaces)
        row.close()
        self.generator = torch.Generator().manual_seed(seed)
        vector = AsyncVectorEnv if parallel else SyncVectorEnv
        self.vector = vector([partial(make_row, None)] * num_envs, copy=False, autoreset_mode=AutoresetMode.DISABLED)
        self.episode_seeds, self.taken = np.zeros(num_envs, np.int64), np.zeros(num_envs, np.int64)
        self.recorded = np.zeros((num_envs, max_steps or FIRST_CAPACITY, *self._action.shape), self._action.dtype)
        self._begin(np.ones(num_envs, bool))  # the vector class can restart single rows only after all have begun

    def _declare(self, entries: dict[str, spaces.Space]) -> None:
        sizes = {key: space.shape[-1] for key, space in entries.items()}
        if isinstance(self._action, spaces.Box):
            action = continuous(torch.tensor(self._action.low), torch.tensor(self._action.high))
        else:
            action = discrete(int(self._action.nvec[0]), self.n_agents)
        alive = {ALIVE: Binary(self.n_agents, shape=(self.n_agents,), dtype=torch.bool)} if "mask" in entries else None
        self._set_specs(observation_dim=sizes["observation"], action=action, action_mask=sizes.get("action_mask"),
                        state_dim=sizes.get("state"), observations=alive)

    def _begin(self, rows: np.ndarray) -> None:
        self.taken[rows] = 0
        if rows.any():
            self._seen, _ = self.vector.reset(seed=self.episode_seeds.tolist(), options={"reset_mask": rows.copy()})

    def _advance(self, actions: np.ndarray, active: np.ndarray) -> None:
        self._seen, *_ = self.vector.step({"action": actions, "active": active[:, None].astype(np.int8)})

    def _finished(self) -> np.ndarray:
        over = (self._seen["terminated"] | self._seen["truncated"])[:, 0] != 0
        return over if self.max_steps is None else over | (self.taken >= self.max_steps)

    def _reserve(self, steps: int) -> None:
        if steps > self.recorded.shape[1]:
            self.recorded = np.concatenate([self.recorded, np.zeros_like(self.recorded)], axis=1)
            self._reserve(steps)

    def _restart(self, mask: Tensor | None) -> None:
        rows = np.ones(self.num_envs, bool) if mask is None else mask.cpu().numpy()
        self.episode_seeds[rows] = torch.randint(2**31 - 1, (int(rows.sum()),), generator=self.generator).numpy()
        self._begin(rows)

    def _simulate(self, actions: Tensors) -> tuple[Tensor, ...]:
        joint, active = actions[ACTION].detach().cpu().numpy(), ~self._finished()
        if isinstance(self._action, spaces.Box):
            joint = np.clip(joint, self._action.low, self._action.high)
        rows = np.flatnonzero(active)
        self._reserve(int(self.taken[rows].max(initial=0)) + 1)
        self.recorded[rows, self.taken[rows]] = joint[rows]
        self.taken[rows] += 1
        self._advance(joint, active)
        reward = torch.as_tensor(self._seen["reward"] * active[:, None], device=self.device)
        return reward, self._flag("terminated")[:, 0], self._flag("truncated")[:, 0]

    def _flag(self, entry: str) -> Tensor:
        return torch.tensor(self._seen[entry], dtype=torch.bool, device=self.device)

    def _observe(self) -> Tensors:
        out = {OBSERVATION: torch.tensor(self._seen["observation"], device=self.device)}
        out |= {key: self._flag(entry) for entry, key in MASKS.items() if entry in self._seen}
        if "state" in self._seen:
            out["state"] = torch.tensor(self._seen["state"], device=self.device)
        return out

    def _capture(self) -> dict[str, Any]:
        return {"generator": self.generator.get_state(), "episode_seeds": torch.tensor(self.episode_seeds),
                "taken": torch.tensor(self.taken), "actions": torch.tensor(self.recorded[:, :int(self.taken.max())]),
                "observation": torch.tensor(self._seen["observation"])}

    def _restore(self, state: dict[str, Any], mask: Tensor | None = None) -> None:
        seeds, taken, actions = (state[key].cpu().numpy() for key in ("episode_seeds", "taken", "actions"))
        length = actions.shape[1]
        self._reserve(length)
        rows = np.ones(self.num_envs, bool) if mask is None else mask.cpu().numpy()
        past = np.arange(length)[None] >= taken[:, None]
        equal = (self.recorded[:, :length] == actions).all(tuple(range(2, actions.ndim))) | past
        replay = rows & ~((self.episode_seeds == seeds) & (self.taken == taken) & equal.all(-1))
        self.episode_seeds[replay], self.recorded[replay, :length] = seeds[replay], actions[replay]
        self._begin(replay)
        for step in range(int(taken[replay].max(initial=0))):
            self._advance(actions[:, step], replay & (step < taken))
        self.taken[replay] = taken[replay]
        if mask is None:
            self.generator.set_state(state["generator"].cpu())
        self._warn_if_different(state["observation"].cpu().numpy(), replay)

    def _warn_if_different(self, observation: np.ndarray, rows: np.ndarray) -> None:
        same = ((self._seen["observation"] == observation) | np.isnan(observation)).all((1, 2))
        if (rows & ~same).any():
            warnings.warn(f"rows {np.flatnonzero(rows & ~same).tolist()} were played again to another observation than "
                          "the saved one: not exact, this simulator is not deterministic under its seed", stacklevel=3)

    def _set_seed(self, seed: int | None) -> None:
        self.generator.manual_seed(seed)

    def render_frame(self, env_index: int = 0, size: tuple[int, int] | None = None) -> np.ndarray:
        """Frame of one row now, uint8 [H, W, 3], as large as the simulator draws it or of ``size`` (H, W).

        Drawn by one further copy that plays the row's episode along, so that training pays nothing for it: the first
        frame of an episode costs its steps again, the next ones one step each. ValueError if it cannot draw.
        """
        if "rgb_array" not in self._metadata.get("render_modes", ()):
            raise ValueError(f"it cannot draw frames: its render modes are {self._metadata.get('render_modes', [])}, "
                             "and 'rgb_array' is needed")
        if not 0 <= env_index < self.num_envs:
            raise ValueError(f"env_index must be in [0, {self.num_envs - 1}], got {env_index}")
        if self._viewer is None:
            self._viewer, self._shown = self._make_row("rgb_array"), (-1, self.recorded[0, :0])
        seed, actions = int(self.episode_seeds[env_index]), self.recorded[env_index, :self.taken[env_index]].copy()
        shown_seed, shown = self._shown
        if shown_seed != seed or not np.array_equal(actions[:len(shown)], shown):
            self._viewer.reset(seed=seed)
            shown = shown[:0]
        for action in actions[len(shown):]:
            self._viewer.step({"action": action, "active": np.ones(1)})
        self._shown = seed, actions
        return _resized(np.asarray(self._viewer.render(), dtype=np.uint8), size)

    def close(self, *, raise_if_closed: bool = True) -> None:
        """Close all copies, and their processes."""
        super().close(raise_if_closed=raise_if_closed)
        self.vector.close()
        if self._viewer is not None:
            self._viewer.close()
            self._viewer = None


def _resized(frame: np.ndarray, size: tuple[int, int] | None) -> np.ndarray:
    if size is None or frame.shape[:2] == tuple(size):
        return frame
    picture = torch.from_numpy(frame.copy()).permute(2, 0, 1)[None].float()
    picture = torch.nn.functional.interpolate(picture, size=tuple(size), mode="bilinear", antialias=True)
    return picture[0].permute(1, 2, 0).round().clamp(0, 255).byte().numpy()


# ---------------------------------------------------------------------- the family

def make_gymnasium(name: str, *, num_envs: int, device: torch.device | str, seed: int, max_steps: int | None,
                   truncate: bool = True, parallel: bool = False, **options: Any) -> ReplayEnv:
    """N copies of the gymnasium environment ``name`` (also ``"module:Name-v0"``) with one agent.

    Args:
        max_steps: horizon in place of the registered one; None takes the registered one (which may be none at all).
        truncate, parallel: see `ReplayEnv`. ``options``: of the environment's constructor.

    Raises:
        ValueError: unknown name or option, or a space that is not supported. ImportError: a package is missing.
    """
    spec = _spec(name)
    check_arguments(f"gymnasium/{name}", _constructor(spec), options)
    return ReplayEnv(partial(_make_row, spec, max_steps, options), num_envs=num_envs, device=device, seed=seed,
                     max_steps=max_steps or spec.max_episode_steps, truncate=truncate, parallel=parallel)


def _spec(name: str) -> EnvSpec:
    module, _, env_id = name.rpartition(":")
    if module:
        import_module(module)  # registers its environments
    try:
        return gymnasium.spec(env_id)
    except gymnasium.error.Error as error:
        raise ValueError(f"gymnasium/{name}: {error}" + suggestion(env_id, gymnasium.registry)) from error


def _constructor(spec: EnvSpec) -> Callable[..., Any]:
    try:
        return spec.entry_point if callable(spec.entry_point) else load_env_creator(spec.entry_point)
    except gymnasium.error.DependencyNotInstalled as error:
        raise ImportError(f"gymnasium/{spec.id} needs a further package: {error}") from error


def _make_row(spec: EnvSpec, max_steps: int | None, options: dict[str, Any], render_mode: str | None) -> SingleAgent:
    drawing = {} if render_mode is None else {"render_mode": render_mode}
    try:
        env = gymnasium.make(spec, max_episode_steps=max_steps, disable_env_checker=True, **options, **drawing)
    except gymnasium.error.DependencyNotInstalled as error:
        raise ImportError(f"gymnasium/{spec.id} needs a further package: {error}") from error
    return SingleAgent(env)


def check_arguments(task: str, constructor: Callable[..., Any], options: dict[str, Any]) -> None:
    """ValueError, naming the constructor's arguments, for one that it does not take, or not of that kind."""
    parameters = signature(constructor).parameters.values()
    allowed = [p.name for p in parameters if p.kind in (Parameter.POSITIONAL_OR_KEYWORD, Parameter.KEYWORD_ONLY)]
    open_ended = any(p.kind is Parameter.VAR_KEYWORD for p in parameters)
    own = [name for name in options if name == "render_mode" or not open_ended]  # ours: frames are `render_frame`'s
    check_options(task, own, [name for name in allowed if name != "render_mode"])
    given = {name: value for name, value in options.items() if value is not None}  # may be annotated without None
    check_kinds(task, given, kinds_of(constructor))
