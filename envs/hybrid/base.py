"""The base of hybrid tasks: one agent, whose action is a choice and the continuous parameters of that choice.

And the base of environments under another action space.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torchrl.data import Categorical, TensorSpec

from envs.base import CHOICE, GROUP, OBSERVATION, PARAMS, SUCCESS, BatchedEnv, Tensors, hybrid


class Step(NamedTuple):
    """What one step of all rows gives: the next state, reward [N], whether the episode ends and succeeds, bool [N]."""

    state: Any
    reward: Tensor
    terminated: Tensor
    success: Tensor


class HybridEnv(BatchedEnv):
    """N copies of a task with a single agent and hybrid actions; a family implements `_begin`, `_advance` and `_see`.

    Actions: ("agents", "action", "discrete") int64 [N, 1], one of K choices, and ("agents", "action", "params") float32
    [N, 1, P], scaled to [-1, 1] and clamped to it; a choice reads those that ``param_mask`` bool [K, P] names, by
    default from the front. Beside observation, reward and done flags it writes ``success`` bool [N, 1].

    A state is a NamedTuple of tensors that begin with the rows (those of `PureRules` end with them); its numbers are
    float32 unless a family says otherwise.

    Args:
        param_sizes: number of parameters of each choice.
        observation_dim: length of an observation. Other arguments: see `BatchedEnv`.
    """

    def __init__(self, *, num_envs: int, seed: int, device: torch.device | str, max_steps: int | None,
                 observation_dim: int, param_sizes: Sequence[int], truncate: bool = True):
        super().__init__(num_envs=num_envs, agent_names=["agent"], agent_types=[0], max_steps=max_steps, seed=seed,
                         device=device, truncate=truncate)
        width = max(param_sizes)
        self.param_mask = torch.arange(width, device=self.device) < torch.tensor(
            param_sizes, device=self.device).unsqueeze(-1)
        self.cheap_reset = self.device.type != "cpu"
        self.generator = torch.Generator(self.device)
        self._set_specs(observation_dim=observation_dim, action=hybrid(len(param_sizes), width, 1),
                        observations={SUCCESS: Categorical(2, shape=(1,), dtype=torch.bool)})
        self._set_seed(seed)
        self.state = self._begin(num_envs)
        self.success = torch.zeros(num_envs, dtype=torch.bool, device=self.device)

    # ------------------------------------------------------------------ what a family implements

    @abstractmethod
    def _begin(self, rows: int) -> NamedTuple:
        """States of ``rows`` new episodes, drawn from ``self.generator``."""

    @abstractmethod
    def _advance(self, state: NamedTuple, choice: Tensor, params: Tensor) -> Step:
        """One step: ``choice`` int64 [N] and ``params`` [N, P] in [-1, 1]; draws come from ``self.generator``."""

    @abstractmethod
    def _see(self, state: NamedTuple) -> Tensor:
        """Observations float32 [N, S], a fresh tensor."""

    def row(self, env_index: int) -> NamedTuple:
        """One row's state on the CPU, without the dimension of the rows; ValueError if there is no such row."""
        self._check_row(env_index)
        return type(self.state)(*(value[env_index].cpu() for value in self.state))

    def _check_row(self, env_index: int) -> None:
        if not 0 <= env_index < self.num_envs:
            raise ValueError(f"env_index must be in [0, {self.num_envs - 1}], got {env_index}")

    # ------------------------------------------------------------------ what the base makes of it

    def _restart(self, mask: Tensor | None) -> None:
        if mask is None:
            self.state, self.success = self._begin(self.num_envs), torch.zeros_like(self.success)
            return
        if self.cheap_reset:  # draw for all rows: to ask which ones would stop the device
            self.state = _where(mask, self._begin(self.num_envs), self.state)
        else:
            rows = mask.nonzero().squeeze(-1)
            fresh = self._begin(len(rows))
            self.state = type(fresh)(*(old.index_copy(0, rows, new) for new, old in zip(fresh, self.state,
                                                                                        strict=True)))
        self.success = self.success & ~mask

    def _simulate(self, actions: Tensors) -> tuple[Tensor, Tensor]:
        params = actions[PARAMS].squeeze(1).clamp(-1.0, 1.0)
        self.state, reward, terminated, self.success = self._advance(self.state, actions[CHOICE].squeeze(1), params)
        return reward.to(torch.float32).unsqueeze(-1), terminated

    def _observe(self) -> Tensors:
        return {OBSERVATION: self._see(self.state).unsqueeze(1), SUCCESS: self.success.unsqueeze(-1).clone()}

    def _capture(self) -> dict[str, Any]:
        return {"state": {name: value.clone() for name, value in self.state._asdict().items()},
                "success": self.success.clone(), "random": self.generator.get_state()}

    def _restore(self, state: dict[str, Any], mask: Tensor | None = None) -> None:
        saved = type(self.state)(**{name: value.to(self.device) for name, value in state["state"].items()})
        success = state["success"].to(self.device)
        if mask is None:
            self.state, self.success = type(saved)(*(value.clone() for value in saved)), success.clone()
            self.generator.set_state(state["random"].cpu())
        else:
            self.state, self.success = _where(mask, saved, self.state), torch.where(mask, success, self.success)

    def _set_seed(self, seed: int | None) -> None:
        self.generator.manual_seed(0 if seed is None else seed)


class OtherActions(BatchedEnv):
    """An environment under another action space: a subclass implements `_translate`, all else is the inner one's.

    Time limits are this one's. The inner environment is stepped by it alone.

    Args:
        action: spec of the actions, without the batch dimension.
    """

    def __init__(self, env: BatchedEnv, action: TensorSpec):
        super().__init__(num_envs=env.num_envs, agent_names=env.group_map[GROUP], agent_types=env.agent_types,
                         max_steps=env.max_steps, truncate=env.truncate, seed=0, device=env.device)
        self.env, self.cheap_reset = env, env.cheap_reset
        self.reward_is_shared = getattr(env, "reward_is_shared", False)
        self.obs_dims, self.hidden_parts = env.obs_dims, env.hidden_parts
        self.action_spec = self._in_group("action", action.to(self.device).expand(env.num_envs, *action.shape))
        self.observation_spec = env.observation_spec.clone()
        self.reward_spec, self.done_spec = env.full_reward_spec.clone(), env.full_done_spec.clone()

    @abstractmethod
    def _translate(self, actions: Tensors) -> Tensors:
        """The inner environment's actions for those given here."""

    def _restart(self, mask: Tensor | None) -> None:
        self.env._restart(mask)

    def _simulate(self, actions: Tensors) -> tuple[Tensor, ...]:
        return self.env._simulate(self._translate(actions))

    def _observe(self) -> Tensors:
        return self.env._observe()

    def _capture(self) -> dict[str, Any]:
        return self.env._capture()

    def _restore(self, state: dict[str, Any], mask: Tensor | None = None) -> None:
        self.env._restore(state, mask)

    def _set_seed(self, seed: int | None) -> None:
        self.env._set_seed(seed)

    def render_frame(self, env_index: int = 0, size: tuple[int, int] | None = None) -> np.ndarray:
        """Picture of one row of the inner environment."""
        return self.env.render_frame(env_index, size)


def _where(mask: Tensor, new: NamedTuple, old: NamedTuple) -> NamedTuple:
    """``new`` in the rows where ``mask`` [N] is True, else ``old``."""
    return type(new)(*(torch.where(mask.view(-1, *[1] * (a.ndim - 1)), a, b) for a, b in zip(new, old, strict=True)))
