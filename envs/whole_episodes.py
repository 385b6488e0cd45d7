"""One episode per environment and horizon, padded behind its end: the regime of the EPyMARL family of programs."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor
from torchrl.data import Binary

from envs.base import ACTION_MASK, ALIVE, GROUP, REWARD, BatchedEnv, Tensors


class WholeEpisodes(BatchedEnv):
    """Holds every row at its episode's end until all rows have reached the horizon; then all begin anew.

    ("agents", "mask") is True while the episode runs, also behind its last step if only the time limit cut it there.
    The step that ends it shows the last observation; from the next one on, observations and rewards are zero and every
    action is allowed. Padded steps are simulated like others, so a task whose episodes end early costs more per useful
    step than without this wrapper.

    Args:
        env: the environment; it needs a horizon (``max_steps``), and agents that do not leave before the others.

    Raises:
        ValueError: an environment without horizon, or with a mask of living agents of its own.
    """

    def __init__(self, env: BatchedEnv):
        if env.max_steps is None:
            raise ValueError("whole episodes need a horizon: give max_steps")
        if ALIVE in env.observation_spec.keys(True, True):
            raise ValueError("whole episodes need agents that all stay to the end; this task's agents leave early")
        super().__init__(num_envs=env.num_envs, agent_names=env.group_map[GROUP], agent_types=env.agent_types,
                         max_steps=env.max_steps, truncate=env.truncate, seed=0, device=env.device)
        self.env = env
        self.reward_is_shared = getattr(env, "reward_is_shared", False)
        self.obs_dims, self.action_dims, self.hidden_parts = env.obs_dims, env.action_dims, env.hidden_parts
        self.action_factors = env.action_factors
        self.observation_spec, self.action_spec = env.observation_spec.clone(), env.full_action_spec.clone()
        self.reward_spec, self.done_spec = env.full_reward_spec.clone(), env.full_done_spec.clone()
        shape = (env.num_envs, env.n_agents)
        self.observation_spec[ALIVE] = Binary(env.n_agents, shape=shape, dtype=torch.bool, device=env.device)
        self.over = torch.zeros(env.num_envs, dtype=torch.bool, device=env.device)
        self.seen: Tensors = {}

    def _restart(self, mask: Tensor | None) -> None:
        seen = self.env.reset_tensors(mask)
        if mask is not None:  # rows that go on keep what they show, which may be padding
            seen = {key: torch.where(_like(mask, x), x, self.seen[key]) for key, x in seen.items()}
        self.seen = seen
        self.over = torch.zeros_like(self.over) if mask is None else self.over & ~mask

    def _simulate(self, actions: Tensors) -> tuple[Tensor, Tensor]:
        out, before = self.env.step_tensors(actions), self.over
        self.seen = {key: self._padded(key, x, before) for key, x in out.items() if key in self.seen}
        last = self.steps + 1 >= self.max_steps
        ended = out["terminated"].squeeze(-1) & ~before
        self.over = before | ended | (out["truncated"].squeeze(-1) & ~last)  # the time limit ends no episode
        return out[REWARD].squeeze(-1).masked_fill(before.unsqueeze(-1), 0), ended & last

    def _padded(self, key, x: Tensor, over: Tensor) -> Tensor:
        return x.masked_fill(_like(over, x), True if key == ACTION_MASK else 0)

    def _observe(self) -> Tensors:
        alive = (~self.over).unsqueeze(-1).expand(-1, self.n_agents)
        return {key: x.clone() for key, x in self.seen.items()} | {ALIVE: alive.clone()}

    def _capture(self) -> dict[str, Any]:
        seen = {key if isinstance(key, str) else "/".join(key): x.clone() for key, x in self.seen.items()}
        return {"env": self.env.state_dict(), "over": self.over.clone(), "seen": seen}

    def _restore(self, state: dict[str, Any], mask: Tensor | None = None) -> None:
        names = {name: tuple(name.split("/")) if "/" in name else name for name in state["seen"]}
        seen = {names[name]: x.to(self.device) for name, x in state["seen"].items()}
        if mask is None:
            self.env.load_state_dict(state["env"])
            self.over, self.seen = state["over"].to(self.device).clone(), {key: x.clone() for key, x in seen.items()}
            return
        self.env._restore(state["env"]["simulator"], mask)
        self.env.steps = torch.where(mask, state["env"]["steps"].to(self.device), self.env.steps)
        self.over = torch.where(mask, state["over"].to(self.device), self.over)
        self.seen = {key: torch.where(_like(mask, x), seen[key], x) for key, x in self.seen.items()}

    def _set_seed(self, seed: int | None) -> None:
        self.env.set_seed(seed)

    def render_frame(self, env_index: int = 0, size: tuple[int, int] | None = None) -> np.ndarray:
        """Picture of one row of the inner environment."""
        return self.env.render_frame(env_index, size)


def _like(rows: Tensor, x: Tensor) -> Tensor:
    return rows.view(-1, *[1] * (x.ndim - 1))
