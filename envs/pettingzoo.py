"""PettingZoo games with simultaneous moves as batched environments: ``make_env("pettingzoo/mpe2.simple_spread_v3")``.

Names are modules: below ``mpe2`` (the prefix may be left out: ``simple_spread_v3``), or below ``pettingzoo``
(``sisl.pursuit_v5``). Stepping, padding, save and load are those of `envs.gymnasium`.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from functools import partial
from importlib import import_module
from importlib.util import find_spec
from inspect import Parameter, signature
from pathlib import Path
from pkgutil import iter_modules
from re import search
from types import ModuleType
from typing import Any

import numpy as np
import pettingzoo
import torch
from gymnasium import spaces
from pettingzoo import ParallelEnv

from envs import suggestion
from envs.gymnasium import AgentSpaces, JointEnv, ReplayEnv, box, check_arguments


class ParallelAgents(JointEnv):
    """A PettingZoo ``ParallelEnv`` as a joint environment.

    Agents with the same name up to the last underscore and the same sizes have the same role. The episode ends when
    no agent is left: terminated if every agent terminated, else truncated; one that left earlier counts with how it
    left, and has zeros as observation and reward from then on. The alive mask is False for agents that left; an agent
    truncated in the episode's last step stays True, because its last observation still has a value.

    Args:
        state: write ``env.state()`` where the game has one (some are whole pictures: large and slow).
        mortal: write the alive mask.
        closes: ``close()`` closes the game.
    """

    def __init__(self, env: ParallelEnv, *, state: bool, mortal: bool, closes: bool):
        """ValueError for spaces that `JointEnv` does not support."""
        _, infos = env.reset(seed=0)
        agents = {name: AgentSpaces(name, env.observation_space(name), env.action_space(name))
                  for name in env.possible_agents}
        masks = any("action_mask" in info for info in infos.values())
        super().__init__(env, agents, _roles(agents), masks=masks)
        size = self._state_size() if state else None
        self.has_state, self.mortal, self.closes = size is not None, mortal, closes
        if self.has_state:
            self.observation_space["state"] = box(size)
        if mortal:
            self.observation_space["mask"] = spaces.MultiBinary(len(agents))

    def _state_size(self) -> int | None:
        try:
            return np.asarray(self.env.state()).size
        except (NotImplementedError, AttributeError, TypeError):
            return None  # optional, but declared for every game, and rps has something else under this name

    def close(self) -> None:
        """Close the game, if it ``closes``."""
        if self.closes:
            super().close()

    def _begin(self, seed: int) -> dict[str, np.ndarray]:
        observations, infos = self.env.reset(seed=seed)
        self._terminated = {}  # how each agent left: True if it terminated, False if it was truncated
        return self._joint(observations, infos, {}, acting=self.env.agents, living=self.env.agents)

    def _advance(self, actions: np.ndarray) -> dict[str, np.ndarray]:
        acting = list(self.env.agents)
        choice = dict(zip(self.agents, actions, strict=True))
        observations, rewards, terminations, truncations, infos = self.env.step(
            {name: self.agents[name].native(choice[name]) for name in acting})
        living = list(self.env.agents)
        for name in acting:
            cut = truncations.get(name, False)
            if terminations.get(name, False) or cut or name not in living:
                self._terminated[name] = bool(terminations.get(name, not cut))
                living = [other for other in living if other != name]
        self._terminated = {name: how for name, how in self._terminated.items() if name not in living}
        rewards = {name: rewards.get(name, 0.0) for name in acting}
        return self._joint(observations, infos, rewards, acting=acting, living=living)

    def _joint(self, observations: dict[str, Any], infos: dict[str, dict[str, Any]], rewards: dict[str, float], *,
               acting: list[str], living: list[str]) -> dict[str, np.ndarray]:
        over = not living
        terminated = over and all(self._terminated.values())
        # some games go on to write for agents that left
        observations, infos = ({name: value for name, value in entries.items() if name in acting or name in living}
                               for entries in (observations, infos))
        out = self.arrays(observations, infos, rewards, terminated=terminated, truncated=over and not terminated)
        if self.has_state:
            out["state"] = np.asarray(self.env.state(), dtype=np.float32).ravel()
        if self.mortal:
            cut_last = {name for name in acting if over and not self._terminated[name]}
            out["mask"] = np.array([name in living or name in cut_last for name in self.agents])
        return out


def _roles(agents: dict[str, AgentSpaces]) -> tuple[int, ...]:
    keys = [(name.rpartition("_")[0] or name, agent.obs_dim, agent.choices, agent.action_dim)
            for name, agent in agents.items()]
    kinds = list(dict.fromkeys(keys))
    return tuple(kinds.index(key) for key in keys)


def make_parallel(factory: Callable[..., ParallelEnv], *, num_envs: int, device: torch.device | str = "cpu",
                  seed: int = 0, max_steps: int | None = None, truncate: bool = True, parallel: bool = False,
                  state: bool = True, alive_mask: bool = True) -> ReplayEnv:
    """N copies of any ``ParallelEnv``: ``factory()`` makes one, ``factory(render_mode="rgb_array")`` one that can draw.

    Args:
        max_steps: horizon, reported as truncated; None leaves the end to the game.
        state: see `ParallelAgents`. ``alive_mask``: write ("agents", "mask"); not needed if all agents leave together.
        truncate, parallel: see `ReplayEnv`.

    Raises:
        ValueError: spaces that are not supported, or agents with different kinds of action.
    """
    make_row = partial(_make_row, factory, state=state, mortal=alive_mask, closes=True)
    return ReplayEnv(make_row, num_envs=num_envs, device=device, seed=seed, max_steps=max_steps, truncate=truncate,
                     parallel=parallel)


def _make_row(factory: Callable[..., ParallelEnv], render_mode: str | None, **switches: bool) -> ParallelAgents:
    drawing = {} if render_mode is None else {"render_mode": render_mode}
    return ParallelAgents(factory(**drawing), **switches)


# ---------------------------------------------------------------------- the family

def make_pettingzoo(name: str, *, num_envs: int, device: torch.device | str, seed: int, max_steps: int | None,
                    truncate: bool = True, parallel: bool = False, state: bool = True, alive_mask: bool | None = None,
                    **options: Any) -> ReplayEnv:
    """N copies of the game in the module ``name`` below ``mpe2`` or ``pettingzoo``.

    Args:
        max_steps: horizon, given to the game as its ``max_cycles``; None takes the game's own.
        alive_mask: write ("agents", "mask"); None: for all games but those of mpe2, whose agents leave together.
        truncate, parallel, state: see `make_parallel`. ``options``: of the game's constructor (``N=5``).

    Raises:
        ValueError: unknown name or option, turn-based game, spaces not supported. ImportError: a package is missing.
    """
    task, module = f"pettingzoo/{name}", _load(name)
    if "parallel_env" not in vars(module):
        raise ValueError(f"{task} is turn-based (it has no parallel_env); only simultaneous moves are supported")
    check_arguments(task, module.raw_env, options)
    options, horizon = _limit(task, module.raw_env, options, max_steps)
    if alive_mask is None:
        alive_mask = not module.__name__.startswith("mpe2.")
    # closing one of these games ends pygame for the whole process, and with it the drawing of all others
    make_row = partial(_make_row, partial(_make_game, module.__name__, options), state=state, mortal=alive_mask,
                       closes=False)
    return ReplayEnv(make_row, num_envs=num_envs, device=device, seed=seed, max_steps=horizon, truncate=truncate,
                     parallel=parallel)


def _make_game(module: str, options: dict[str, Any], **drawing: str) -> ParallelEnv:
    try:
        return import_module(module).parallel_env(**options, **drawing)
    except ImportError as error:
        raise _missing(module, error) from error
    except TypeError as error:  # constructors that take **kwargs can only be asked by calling them
        raise ValueError(f"{module} refused the options {options}: {error}") from error


def _limit(task: str, constructor: Callable[..., Any], options: dict[str, Any],
           max_steps: int | None) -> tuple[dict[str, Any], int | None]:
    """The options, with the horizon as ``max_cycles`` where the constructor takes it, and the horizon if known."""
    parameters = signature(constructor).parameters
    if max_steps is not None and options.get("max_cycles", max_steps) != max_steps:
        raise ValueError(f"{task}: max_steps={max_steps} and max_cycles={options['max_cycles']} are the same limit, "
                         "give one")
    horizon = max_steps or options.get("max_cycles")
    if "max_cycles" in parameters:
        horizon = horizon or parameters["max_cycles"].default
        return options | {"max_cycles": horizon}, horizon
    open_ended = any(p.kind is Parameter.VAR_KEYWORD for p in parameters.values())
    return (options | {"max_cycles": horizon} if open_ended and horizon else options), horizon


def available() -> list[str]:
    """Names that `make_pettingzoo` knows, of the installed packages; found without importing any game."""
    mpe2 = find_spec("mpe2")
    found = [] if mpe2 is None else [f"mpe2.{name}" for name in _games(Path(mpe2.origin).parent)]
    for package in sorted(path for path in Path(pettingzoo.__file__).parent.iterdir() if path.is_dir()):
        found += [f"{package.name}.{name}" for name in _games(package)]
    return found


def _games(folder: Path) -> list[str]:
    return [module.name for module in iter_modules([str(folder)]) if search(r"_v\d+$", module.name)]


def _load(name: str) -> ModuleType:
    known = available()
    full = name if "." in name else f"mpe2.{name}"
    if full.startswith("mpe2.") and find_spec("mpe2") is None:
        raise ImportError(f"pettingzoo/{name} is a game of the package mpe2, not installed; try: pip install mpe2")
    if full not in known:
        raise ValueError(f"unknown PettingZoo game {name!r}; installed are {known}" + suggestion(full, known))
    module = full if full.startswith("mpe2.") else f"pettingzoo.{full}"
    try:
        with warnings.catch_warnings():
            # every module of pettingzoo 1.27 announces on import that a registry is to replace it
            warnings.simplefilter("ignore", DeprecationWarning)
            return import_module(module)
    except ImportError as error:
        raise _missing(module, error) from error


def _missing(module: str, error: ImportError) -> ImportError:
    extra = "mpe2" if module.startswith("mpe2.") else f"pettingzoo[{module.split('.')[1]}]"
    return ImportError(f"{module} needs a package that is not installed ({error}); try: pip install '{extra}'")
