"""The view of a VMAS environment with one group per kind of agent, as code written for TorchRL's wrapper expects."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from tensordict import TensorDict, TensorDictBase
from torchrl.data import Binary, Bounded, Categorical, Composite, Unbounded
from torchrl.envs import EnvBase

from envs.base import ACTION, CONTROLLED, DONE_KEYS, HIDDEN_VARIABLES, INFORMED, OBSERVATION, REWARD

if TYPE_CHECKING:
    from envs.vmas import VmasBatch


class NativeGroups(EnvBase):
    """Splits the group "agents" into groups by name: ``adversary_0`` and ``adversary_1`` are the group "adversary".

    A lone group "agent" is called "agents"; names that do not all end in ``_<number>`` give one group "agents". No
    padding within a group. Keys: (group, "observation"), (group, "action"), ("next", group, "reward"), done flags at
    the root, (group, "info", name), (group, "hidden"), (group, "informed"), (group, "controlled") and "state" if there
    are any.

    Args:
        env: the padded environment; stays available as ``env``, with the tensor interface and save and load.

    Attributes:
        group_map: group -> names of its agents.
    """

    def __init__(self, env: VmasBatch):
        """ValueError if agents of one group differ in their spaces."""
        super().__init__(device=env.device, batch_size=env.batch_size)
        self.env, self.num_envs, self.max_steps = env, env.num_envs, env.max_steps
        self.members = _members(env.group_map["agents"])
        written = set(env.full_observation_spec.keys(True, True))
        self.flags = [key for key in (INFORMED, CONTROLLED) if key in written]
        self.group_map = {group: [env.group_map["agents"][k] for k in rows] for group, rows in self.members.items()}
        for group, rows in self.members.items():
            if len({(env.obs_dims[k], env.action_dims[k]) for k in rows}) > 1:
                raise ValueError(f"agents of the group {group!r} of vmas/{env.name} have different spaces; "
                                 "use groups='padded'")
        self._set_group_specs()

    def _set_group_specs(self) -> None:
        env, n = self.env, self.num_envs
        specs = {kind: {} for kind in ("observation", "action", "reward")}
        bounds = env.full_action_spec[ACTION]
        for group, rows in self.members.items():
            a, width = len(rows), env.action_dims[rows[0]]
            where = {"shape": (n, a), "device": self.device}
            seen = {"observation": Unbounded((n, a, env.obs_dims[rows[0]]), device=self.device)}
            if env.with_info:
                infos = env.full_observation_spec["agents", "info"]
                seen["info"] = Composite({name: Unbounded((n, a, *infos[name].shape[2:]), device=self.device)
                                          for name in infos}, **where)
            if env.hidden_parts:
                width_hidden = env.full_observation_spec[HIDDEN_VARIABLES].shape[-1]
                seen["hidden"] = Unbounded((n, a, width_hidden), device=self.device)
            for key in self.flags:
                seen[key[-1]] = Binary(a, shape=(n, a), dtype=torch.bool, device=self.device)
            if env.continuous_actions:
                action = Bounded(low=bounds.space.low[:, rows, :width], high=bounds.space.high[:, rows, :width],
                                 shape=(n, a, width), device=self.device)
            else:
                action = Categorical(width, shape=(n, a), device=self.device)
            specs["observation"][group] = Composite(seen, **where)
            specs["action"][group] = Composite({"action": action}, **where)
            specs["reward"][group] = Composite({"reward": Unbounded((n, a, 1), device=self.device)}, **where)
        if env.with_state:
            specs["observation"]["state"] = env.observation_spec["state"].clone()
        self.observation_spec = Composite(specs["observation"], shape=(n,), device=self.device)
        self.action_spec = Composite(specs["action"], shape=(n,), device=self.device)
        self.reward_spec = Composite(specs["reward"], shape=(n,), device=self.device)
        self.done_spec = env.full_done_spec.clone()

    def _split(self, whole: TensorDictBase, *, reward: bool) -> TensorDictBase:
        root = [*DONE_KEYS, *(["state"] if self.env.with_state else [])]
        out = TensorDict({key: whole[key] for key in root}, batch_size=self.batch_size, device=self.device)
        for group, rows in self.members.items():
            part = {"observation": whole[OBSERVATION][:, rows, :self.env.obs_dims[rows[0]]]}
            if reward:
                part["reward"] = whole[REWARD][:, rows]
            if self.env.with_info:
                part["info"] = whole["agents", "info"][:, rows]
            if self.env.hidden_parts:
                part["hidden"] = whole[HIDDEN_VARIABLES][:, rows]
            part |= {key[-1]: whole[key][:, rows] for key in self.flags}
            out[group] = TensorDict(part, batch_size=[self.num_envs, len(rows)], device=self.device)
        return out

    def _reset(self, tensordict: TensorDictBase | None = None, **kwargs: Any) -> TensorDictBase:
        return self._split(self.env._reset(tensordict, **kwargs), reward=False)

    def _step(self, tensordict: TensorDictBase) -> TensorDictBase:
        spec = self.env.full_action_spec[ACTION]
        whole = torch.zeros(spec.shape, dtype=spec.dtype, device=self.device)
        for group, rows in self.members.items():
            action = tensordict[group, "action"]
            if self.env.continuous_actions:
                whole[:, rows, :action.shape[-1]] = action
            else:
                whole[:, rows] = action
        command = TensorDict({}, batch_size=self.batch_size, device=self.device)
        command[ACTION] = whole
        rows = tensordict.get("_step", None)
        if rows is not None:
            command["_step"] = rows
        return self._split(self.env._step(command), reward=True)

    def _set_seed(self, seed: int | None) -> None:
        self.env._set_seed(seed)

    def state_dict(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """The padded environment's."""
        return self.env.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any], strict: bool = True, **kwargs: Any) -> None:
        """The padded environment's; ValueError if the state belongs to another environment."""
        self.env.load_state_dict(state_dict, strict=strict)

    def render_frame(self, env_index: int = 0, size: tuple[int, int] | None = None) -> np.ndarray:
        """The padded environment's picture of one row, uint8 [H, W, 3]."""
        return self.env.render_frame(env_index, size)


def _members(names: list[str]) -> dict[str, list[int]]:
    groups: dict[str, list[int]] = {}
    for k, name in enumerate(names):
        prefix, _, number = name.rpartition("_")
        if not prefix or not number.isdecimal():
            return {"agents": list(range(len(names)))}
        groups.setdefault(prefix, []).append(k)
    return {"agents": groups["agent"]} if list(groups) == ["agent"] else groups
