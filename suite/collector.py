"""Collectors: iterables of [N, T] TensorDicts. ``make_collector`` gives the fast one, or TorchRL's own.

Both write the same batch for the same seed. The fast one executes the lowered policy and the environment's tensor
interface into preallocated storage; TorchRL's serves any EnvBase and any policy.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from tensordict import NestedKey, TensorDict, TensorDictBase
from tensordict.nn import TensorDictModuleBase
from torch import Tensor
from torchrl.collectors import Collector
from torchrl.data import Composite, Unbounded
from torchrl.envs import Compose, EnvBase, InitTracker, TensorDictPrimer, TransformedEnv

from suite.modules.lowered import Lowered
from suite.modules.policies import hidden_shapes
from suite.specs import ALIVE, GROUP, IS_INIT, RECURRENT, REWARD, SUCCESS

DONE_KEYS = ("done", "terminated", "truncated")


def make_collector(env: EnvBase, policy: TensorDictModuleBase, *, steps: int, total_frames: int,
                   fast: bool = True, compile: dict[str, Any] | None = None,
                   keep: Sequence[NestedKey] = ()) -> FastCollector | StockCollector:
    """A collector of batches of ``steps`` steps of all environments, ``total_frames`` frames in all."""
    if fast:
        return FastCollector(env, policy, steps=steps, total_frames=total_frames, compile=compile, keep=keep)
    n, transforms = env.batch_size[0], [InitTracker()]
    if shapes := hidden_shapes(policy):
        primers = Composite({}, shape=(n,))
        for key, shape in shapes.items():
            primers[key] = Unbounded((n, *shape), device=env.device)
        transforms.append(TensorDictPrimer(primers=primers, reset_key="_reset"))
    env = TransformedEnv(env, Compose(*transforms))
    return StockCollector(env, policy, frames_per_batch=steps * n, total_frames=total_frames, device=env.device,
                          auto_register_policy_transforms=False, track_traj_ids=False,
                          use_buffers=False)  # its buffers do not fit a recurrent state inside the group


class StockCollector(Collector):
    """TorchRL's collector with its frame count in public; its ``state_dict`` does not hold the episodes under way."""

    @property
    def frames(self) -> int:
        """Frames collected so far."""
        return self._frames


class FastCollector:
    """Steps an environment with a policy and yields batches [N, T]; the storage is reused, so copy what you keep.

    The environment must offer ``reset_tensors(mask)`` and ``step_tensors(actions)``. Iteration ends once
    ``total_frames`` frames were collected; `load_state_dict` resumes to the last bit. Of what the policy writes,
    distribution parameters are stored only if ``keep`` names them.
    """

    def __init__(self, env: EnvBase, policy: TensorDictModuleBase, *, steps: int, total_frames: int,
                 compile: dict[str, Any] | None = None, keep: Sequence[NestedKey] = ()):
        self.env, self.policy, self.steps, self.total_frames = env, policy, steps, total_frames
        lowered = Lowered(policy)
        # compiled code draws its random numbers in another way, so its actions differ from the eager ones
        self.act = lowered if compile is None else torch.compile(lowered, **compile)
        self.frames_per_batch = steps * env.num_envs
        self.frames = 0
        self.carried = hidden_shapes(policy)
        self.observed = list(env.observation_spec.keys(True, True))
        written = [key for key in policy.out_keys if key[0] != "next"]
        self.stored = [*self.observed, *self.carried, *written, IS_INIT]
        self.returned = [*self.observed, REWARD, *DONE_KEYS]
        self.skipped = {key for key in written if key[-1] in ("logits", "loc", "scale") and key not in keep}
        self.stored = [key for key in self.stored if key not in self.skipped]
        self.actions = list(env.action_keys)
        self.current: dict[NestedKey, Tensor] | None = None
        self.storage: dict[NestedKey, Tensor] | None = None

    def __iter__(self) -> Iterator[TensorDictBase]:
        while self.frames < self.total_frames:
            yield self.rollout()

    @torch.no_grad()
    def rollout(self) -> TensorDictBase:
        """Collect one batch [N, T]."""
        if self.current is None:
            self._start()
        for t in range(self.steps):
            tensors = self.act(dict(self.current))
            out = self.env.step_tensors({key: tensors[key] for key in self.actions})
            if self.storage is None:
                self._allocate(tensors, out)
            for key, buffer in self.now:
                buffer[:, t] = tensors[key]
            for key, buffer in self.after:
                buffer[:, t] = out[key]
            for key, buffer in self.handed_on:
                buffer[:, t] = tensors[key]
            self._advance(tensors, out)
        self.frames += self.frames_per_batch
        return self._batch()

    def _start(self) -> None:
        n, device = self.env.num_envs, self.env.device
        self.current = self.env.reset_tensors()
        for key, shape in self.carried.items():
            self.current[key] = torch.zeros(n, *shape, device=device)
        self.current[IS_INIT] = torch.ones(n, 1, dtype=torch.bool, device=device)

    def _advance(self, tensors: dict[NestedKey, Tensor], out: dict[NestedKey, Tensor]) -> None:
        done = out["done"]
        # a masked reset costs more than the question whether there is one, unless the environment says otherwise
        if self.env.cheap_reset or done.any():
            observed = self.env.reset_tensors(done.squeeze(-1))
            self.current = {key: observed[key] for key in self.observed}
        else:
            self.current = {key: out[key] for key in self.observed}
        for key in self.carried:
            value = tensors[_next(key)]
            self.current[key] = value.masked_fill(done.view(-1, *[1] * (value.ndim - 1)), 0)
        self.current[IS_INIT] = done

    def _allocate(self, tensors: dict[NestedKey, Tensor], out: dict[NestedKey, Tensor]) -> None:
        n = self.env.num_envs

        def empty(x: Tensor) -> Tensor:
            return torch.empty(n, self.steps, *x.shape[1:], dtype=x.dtype, device=x.device)

        self.now = [(key, empty(tensors[key])) for key in self.stored]
        self.after = [(key, empty(out[key])) for key in self.returned]
        # what a critic or an encoder may read at the next observation; the actor's own state is large and not needed
        self.handed_on = [(_next(key), empty(tensors[_next(key)])) for key in self.carried if key != RECURRENT]
        self.storage = dict(self.now) | {_next(key): x for key, x in self.after} | dict(self.handed_on)

    def _batch(self) -> TensorDictBase:
        n, steps, agents = self.env.num_envs, self.steps, self.env.n_agents
        batch = TensorDict({}, batch_size=[n, steps], device=self.env.device)
        for at in (batch, batch.setdefault("next", TensorDict({}, batch_size=[n, steps], device=self.env.device))):
            at[GROUP] = TensorDict({}, batch_size=[n, steps, agents], device=self.env.device)
        for key, value in self.storage.items():
            batch.set(key, value)
        batch.names = [None, "time"]
        return batch

    # ------------------------------------------------------------------ the rest of a TorchRL collector's interface

    def update_policy_weights_(self, *args: Any, **kwargs: Any) -> None:
        """Nothing to do: the policy is used in place."""

    def set_seed(self, seed: int, static_seed: bool = False) -> int:
        """Seed the environment's own random state; the policy draws from torch's."""
        return self.env.set_seed(seed, static_seed=static_seed)

    def shutdown(self, *args: Any, **kwargs: Any) -> None:
        """Close the environment."""
        self.env.close()

    def state_dict(self) -> dict[str, Any]:
        """Environment, pending observation and recurrent state, frame count."""
        current = {_text(key): value.clone() for key, value in (self.current or {}).items()}
        return {"env": self.env.state_dict(), "current": current, "frames": self.frames}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue where `state_dict` was called."""
        self.env.load_state_dict(state["env"])
        keys = {_text(key): key for key in (*self.observed, *self.carried, IS_INIT)}
        self.current = {
            keys[name]: value.to(self.env.device).clone() for name, value in state["current"].items()
        } or None
        # an environment may show more today than when the state was saved
        if self.current and (missing := [key for key in self.observed if key not in self.current]):
            seen = self.env.reset_tensors(torch.zeros(self.env.num_envs, dtype=torch.bool, device=self.env.device))
            self.current |= {key: seen[key] for key in missing}
            self.env.load_state_dict(state["env"])  # also a reset of no rows may draw random numbers
        self.frames = state["frames"]


def _next(key: NestedKey) -> NestedKey:
    return ("next", key) if isinstance(key, str) else ("next", *key)


def _text(key: NestedKey) -> str:
    return key if isinstance(key, str) else "/".join(key)


class EpisodeStatistics:
    """Returns and lengths of the episodes that ended inside each batch, whatever collector made it.

    ``team``: returns are sums over the agents instead of means. Steps without a living agent do not count as length.
    Where the task says what success is, an episode is one if any of its steps is, as in `Evaluator`.
    """

    def __init__(self, *, team: bool = False):
        self.team = team
        self.open: Tensor | None = None  # [N, 2]: return and length of the running episodes
        self.reached: Tensor | None = None  # [N, 1]: how many of their steps were a success

    @torch.no_grad()
    def __call__(self, batch: TensorDictBase) -> dict[str, Tensor]:
        """Sums over the episodes that ended, without host synchronisation: ``return``, ``length`` and ``count``.

        And ``success``, if the task writes it.
        """
        reward = batch["next", *REWARD]
        reward = reward.sum((-2, -1)) if self.team else reward.mean((-2, -1))
        here = batch[ALIVE].any(-1).to(reward.dtype) if ALIVE in batch.keys(True) else torch.ones_like(reward)
        done = batch["next", "done"]
        so_far, self.open = _sums(torch.stack([reward, here], -1), done, self.open)
        sums = (so_far * done).sum((0, 1))
        out = {"return": sums[0], "length": sums[1], "count": done.sum().to(reward.dtype)}
        success = batch["next"].get(SUCCESS, None)
        if success is not None:
            so_far, self.reached = _sums(success.to(reward.dtype), done, self.reached)
            out["success"] = ((so_far > 0) & done).sum().to(reward.dtype)
        return out

    def state_dict(self) -> dict[str, Any]:
        """The running sums."""
        sums = {"open": self.open, "reached": self.reached}
        return {name: value.clone() for name, value in sums.items() if value is not None}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Put the running sums back."""
        self.open, self.reached = state.get("open"), state.get("reached")


def _sums(values: Tensor, done: Tensor, before: Tensor | None) -> tuple[Tensor, Tensor]:
    """Sums [N, T, k] of the values of each step's episode up to that step, and those of the episodes left open [N, k].

    ``before``: the latter of the batch before.
    """
    if before is None:
        before = torch.zeros_like(values[:, 0])
    total = before.to(values.device).unsqueeze(1) + values.cumsum(1)  # a loaded state comes from the CPU
    # what had been summed up when the row's previous episode ended: the latest `total` at a done before each step
    index = torch.arange(values.shape[1], device=values.device).unsqueeze(-1)
    latest = torch.where(done, index, -1).cummax(1).values
    ended = total.gather(1, latest.clamp_min(0).expand_as(total)) * (latest >= 0)
    earlier = torch.cat([torch.zeros_like(ended[:, :1]), ended[:, :-1]], 1)
    return total - earlier, total[:, -1] - ended[:, -1]
