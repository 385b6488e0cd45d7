"""Hybrid actions for agents that are moved by forces: ``make_env("hybrid/vmas.navigation", modes="planar")``.

Any task of the project whose agents all have a continuous action [2], a push in the plane, can be played with modes: a
discrete choice and its continuous parameters, which stand for one such push. The task itself stays what it is.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from envs import make_env, suggestion
from envs.base import ACTION, CHOICE, CONTROLLED, GROUP, PARAMS, BatchedEnv, Tensors, hybrid
from envs.hybrid.base import OtherActions
from envs.hybrid.point_mass import hard_motions

COUNTS = (4, 6, 8, 10)  # of actuators
NAMES = ("planar", *(f"actuators-{n}" for n in COUNTS))
# what makes a family's actions pushes in the plane where they are not by default
PUSHED: dict[str, dict[str, Any]] = {"particle": {"dialect": "vmas"}}


class Modes(NamedTuple):
    """K modes of an agent: how many parameters each has, and what they do; which of them are an angle.

    ``motion`` maps choices int64 [..., A] and parameters [..., A, P] in [-1, 1] to [..., A, 2] in [-1, 1], in units of
    the largest push of each agent along x and y; made of tensor operations alone.
    """

    param_sizes: tuple[int, ...]
    motion: Callable[[Tensor, Tensor], Tensor]
    periodic: frozenset[tuple[int, int]] = frozenset()


def planar(choice: Tensor, params: Tensor) -> Tensor:
    """0 stay; 1 east or west, 2 north or south with a signed strength; 3 full push at pi times the parameter from x."""
    strength = params[..., 0]
    angle, none = math.pi * strength, torch.zeros_like(strength)
    x = torch.where(choice == 1, strength, torch.where(choice == 3, angle.cos(), none))
    y = torch.where(choice == 2, strength, torch.where(choice == 3, angle.sin(), none))
    return torch.stack([x, y], -1)


def modes_named(name: str, device: torch.device | str) -> Modes:
    """The modes ``planar``, or ``actuators-n``: the 2^n sets of Hard Move with one signed strength each.

    Raises:
        ValueError: any other name.
    """
    if name == "planar":
        return Modes((0, 1, 1, 1), planar, frozenset({(3, 0)}))
    if name not in NAMES:
        raise ValueError(f"modes must be one of {list(NAMES)}, or a Modes, got {name!r}" + suggestion(str(name), NAMES))
    table = hard_motions(int(name.rpartition("-")[2])).to(device, torch.float32)
    return Modes((1,) * len(table), lambda choice, params: table[choice] * params)


class HybridModes(OtherActions):
    """An environment whose agents choose modes in place of pushes; all else is the inner environment's.

    Actions: ("agents", "action", "discrete") int64 [N, A] and ("agents", "action", "params") float32 [N, A, P], clamped
    to [-1, 1]; ``param_mask`` bool [K, P] says which of them a mode reads.

    Args:
        env: the environment, which is stepped by this one alone. ``modes``: a name (`modes_named`), or modes.

    Raises:
        ValueError: agents that are not moved by a push of two symmetric dimensions, or that the task moves itself.
    """

    def __init__(self, env: BatchedEnv, modes: Modes | str = "planar"):
        high = _largest_push(env)
        modes = modes if isinstance(modes, Modes) else modes_named(modes, env.device)
        sizes = torch.tensor(modes.param_sizes, device=env.device)
        width = max(modes.param_sizes)
        super().__init__(env, hybrid(len(sizes), width, env.n_agents))
        self.high, self.modes = high, modes
        self.param_mask = torch.arange(width, device=self.device) < sizes.unsqueeze(-1)
        self.periodic = modes.periodic

    def pushes(self, actions: Tensors) -> Tensor:
        """What the inner environment gets for hybrid ``actions``: [N, A, 2]."""
        return self.modes.motion(actions[CHOICE], actions[PARAMS].clamp(-1.0, 1.0)) * self.high

    def _translate(self, actions: Tensors) -> Tensors:
        return {ACTION: self.pushes(actions)}


def _largest_push(env: BatchedEnv) -> Tensor:
    """Upper bounds [A, 2] of the actions; ValueError unless modes can stand for them."""
    if not isinstance(env, BatchedEnv):  # such as native groups
        raise ValueError(f"modes need all agents in one group {GROUP!r}; this task has {list(env.group_map)}")
    if env.param_mask is not None:
        raise ValueError("this task has hybrid actions already")
    spec = env.full_action_spec[ACTION]
    if spec.dtype == torch.int64:
        raise ValueError("modes are for continuous actions with 2 dimensions; this task has discrete ones")
    if spec.shape[-1] != 2 or set(env.action_dims or (2,)) != {2}:
        widths = sorted(set(env.action_dims or (spec.shape[-1],)))
        raise ValueError(f"modes are for actions with 2 dimensions, a push in the plane; this task has {widths}")
    low, high = (bound.expand(spec.shape)[0] for bound in (spec.space.low, spec.space.high))
    if not torch.equal(low, -high):
        raise ValueError("modes are for pushes with as much room one way as the other; the bounds of this task are "
                         f"{low.tolist()} and {high.tolist()}")
    if CONTROLLED in env.observation_spec.keys(True, True):
        raise ValueError("this task moves agents itself and tells their actions, for which there are no modes")
    return high.clone()


def make_modes(name: str, *, num_envs: int, device: torch.device | str, seed: int, max_steps: int | None,
               truncate: bool = True, modes: Modes | str = "planar", **options: Any) -> HybridModes:
    """N copies of ``[family].[name]`` with modes, for example ``vmas.navigation`` and ``particle.spread-3``.

    Args:
        modes: see `HybridModes`. ``max_steps``, ``truncate`` and ``options`` are those of the task; particle tasks are
            those of the dialect "vmas" unless ``dialect`` says otherwise.

    Raises:
        ValueError: unknown task or option, or a task whose agents modes cannot move.
    """
    family, _, task = name.partition(".")
    fixed = {key: value for key, value in PUSHED.get(family, {}).items() if key not in options}
    try:
        env = make_env(f"{family}/{task}", num_envs=num_envs, device=device, seed=seed, max_steps=max_steps,
                       truncate=truncate, **fixed, **options)
        return HybridModes(env, modes)
    except ValueError as error:
        also = f" (asked with {fixed}, which pushes need)" if fixed else ""
        raise ValueError(f"hybrid/{name}: {error}{also}") from error
