"""The training loop: collect, combine rewards, estimate advantages, update, refresh, evaluate, checkpoint."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from tensordict import TensorDictBase
from torch import Tensor, nn

from suite import distributed
from suite.checkpoint import random_state, restore_random_state
from suite.collector import EpisodeStatistics
from suite.specs import ALIVE, DONE, REWARD, TERMINATED


class Update:
    """Losses that see the same data, each with an optimiser of its own; one backward pass per minibatch.

    Args:
        name: prefix of its metrics.
        losses: {part: loss or list of losses}; a part has one optimiser and one gradient clipping.
        data: callable (batch, keys) -> minibatches; see `suite.data`.
        optimizer: function of a list of parameters, or {part: function}.
        max_grad_norm: clipping per part; None does not clip.
        every: run only at every that many iterations.
        targets: objects with ``step()``, called after each optimiser step (soft or hard target updates).
        compile: options of ``torch.compile`` for the losses' forward pass; None runs it eagerly.
        autocast: dtype of autocast in the losses; None for none.
    """

    def __init__(
        self,
        name: str,
        losses: dict[str, Any],
        data: Callable,
        *,
        optimizer: Callable | dict[str, Callable],
        max_grad_norm: float | None,
        every: int = 1,
        targets: Sequence = (),
        compile: dict[str, Any] | None = None,
        autocast: torch.dtype | None = None,
    ):
        self.name, self.data, self.max_grad_norm, self.every, self.targets = name, data, max_grad_norm, every, targets
        self.parts = {
            part: list(group) if isinstance(group, (list, tuple)) else [group] for part, group in losses.items()
        }
        self.losses = [loss for group in self.parts.values() for loss in group]
        self.keys = list(dict.fromkeys(key for loss in self.losses for key in loss.in_keys))
        self.params = {part: _trainable(group) for part, group in self.parts.items()}
        make = optimizer if isinstance(optimizer, dict) else dict.fromkeys(self.parts, optimizer)
        self.optimizers = {part: make[part](params) for part, params in self.params.items() if params}
        self.autocast = autocast
        self.device_type = next((p.device.type for group in self.params.values() for p in group), "cpu")
        self.compute = self._compute if compile is None else torch.compile(self._compute, **compile)

    def run(self, batch: TensorDictBase) -> dict[str, Tensor]:
        """All minibatches of one iteration; mean metrics as 0-d tensors, named ``update/metric``."""
        if not self.optimizers:
            return {}
        steps = [self.step(minibatch) for minibatch in self.data(batch, self.keys)]
        keys = dict.fromkeys(key for step in steps for key in step)
        return {f"{self.name}/{key}": torch.stack([s[key] for s in steps if key in s]).mean() for key in keys}

    def step(self, minibatch: TensorDictBase) -> dict[str, Tensor]:
        """One optimiser step of every part; no host synchronisation."""
        with torch.autocast(self.device_type, self.autocast, enabled=self.autocast is not None):
            total, metrics = self.compute(minibatch)
        out = {key: value.clone() for key, value in metrics.items()}  # a captured graph overwrites its outputs
        for optimizer in self.optimizers.values():
            optimizer.zero_grad(set_to_none=True)
        total.backward()
        for part, optimizer in self.optimizers.items():
            distributed.average_gradients(self.params[part])
            norm = nn.utils.clip_grad_norm_(self.params[part], self.max_grad_norm or math.inf)
            out["grad_norm" if len(self.optimizers) == 1 else f"grad_norm_{part}"] = norm
            optimizer.step()
        for target in self.targets:
            target.step()
        return out

    def _compute(self, minibatch: TensorDictBase) -> tuple[Tensor, dict[str, Tensor]]:
        out = {key: value for loss in self.losses for key, value in loss(minibatch).items()}
        total = sum(value for key, value in out.items() if key.startswith("loss_"))
        return total, {key: value.detach().float().mean() for key, value in out.items()}

    def state_dict(self) -> dict[str, Any]:
        """Losses, with their targets and buffers, and optimisers."""
        return {"losses": [dict(loss.state_dict()) for loss in self.losses],
                "optimizers": {part: optimizer.state_dict() for part, optimizer in self.optimizers.items()}}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Put back what `state_dict` returned."""
        for loss, saved in zip(self.losses, state["losses"], strict=True):
            loss.load_state_dict(saved)
        for part, optimizer in self.optimizers.items():
            optimizer.load_state_dict(state["optimizers"][part])


class Trainer:
    """Repeats one iteration until the collector ends, or until ``run`` asks for a stop.

    Args:
        collector: iterable of batches [N, T] with ``frames``, ``total_frames``, ``state_dict``.
        policy: the module that acts; saved, evaluated, and checked for parameters nobody trains.
        updates: run in the order of the list.
        reward_weights: {term: weight}; the term ``task`` is the environment's reward.
        team_reward: give every agent the sum of all agents' task rewards.
        losses: losses that may add reward terms and are refreshed after the updates.
        advantage: TorchRL value estimator that writes advantages and value targets; None off-policy.
        replay: data source extended with every batch; None on-policy.
        refresh: functions of the batch called after the updates (schedules, target networks); what they change must
            be saved by the module it belongs to.
        run: where metrics and checkpoints go; see `suite.run.Run`.
        evaluate: function without arguments that returns metrics and changes nothing.
        evaluate_every, checkpoint_every: in iterations; 0 means only at the end.
    """

    def __init__(
        self,
        collector,
        policy: nn.Module,
        updates: Sequence[Update],
        *,
        reward_weights: dict[str, float],
        run,
        team_reward: bool = False,
        losses: Sequence = (),
        advantage: Any = None,
        replay: Any = None,
        refresh: Sequence[Callable] = (),
        evaluate: Callable[[], dict[str, float]] | None = None,
        evaluate_every: int = 0,
        checkpoint_every: int = 0,
    ):
        self.collector, self.policy, self.updates, self.losses = collector, policy, list(updates), list(losses)
        self.reward_weights, self.team_reward = reward_weights, team_reward
        self.advantage, self.replay = advantage, replay
        self.refresh, self.run, self.evaluate = list(refresh), run, evaluate
        self.evaluate_every, self.checkpoint_every = evaluate_every, checkpoint_every
        self.episodes = EpisodeStatistics()
        self.iteration, self.seconds = 0, 0.0
        self._check_ownership()

    def train(self) -> None:
        """Run to the collector's last frame; a stop request or an error leaves a checkpoint of a finished iteration."""
        learned = [self.policy, *(loss for update in self.updates for loss in update.losses), self.advantage]
        distributed.broadcast([module for module in learned if module is not None])
        if self.iteration == 0:
            self._evaluate()
            self._checkpoint()
        self.run.expect(self.collector.total_frames * distributed.world_size())
        batches, stop = iter(self.collector), self.run.stop_requested
        while not stop:
            start = time.perf_counter()
            batch = next(batches, None)
            if batch is None:
                break
            collected = time.perf_counter()
            metrics = self.iterate(batch)
            row = self._to_host(metrics)
            end = time.perf_counter()
            self.iteration += 1
            self.seconds += end - start
            row |= {"time/collect": collected - start, "time/update": end - collected, "time/total": self.seconds,
                    "time/frames_per_second": distributed.world_size() * batch.numel() / (end - start)}
            self.run.log(row, frames=self.frames)
            self._check_finite(row)
            last = self.collector.frames >= self.collector.total_frames
            if last or _due(self.iteration, self.evaluate_every):
                self._evaluate()
            stop = self.run.stop_requested  # asked once, so that a stop never goes without its checkpoint
            if last or stop or _due(self.iteration, self.checkpoint_every):
                self._checkpoint()

    @property
    def frames(self) -> int:
        """Environment frames so far, over all processes."""
        return self.collector.frames * distributed.world_size()

    def iterate(self, batch: TensorDictBase) -> dict[str, Tensor]:
        """Everything that one batch [N, T] causes; metrics as 0-d tensors, without host synchronisation."""
        metrics = self.prepare(batch)
        for update in self.updates:
            if self.iteration % update.every == 0:
                metrics |= update.run(batch)
        for function in (*self.refresh, *(loss.refresh for loss in self.losses)):
            function(batch)
        self.collector.update_policy_weights_()
        return metrics

    @torch.no_grad()
    def prepare(self, batch: TensorDictBase) -> dict[str, Tensor]:
        """Write what the losses read: per-agent dones, the weighted reward, advantages; extend the replay."""
        task, left = batch["next", *REWARD], False
        if ALIVE in batch.keys(True):  # an agent that leaves early has terminated, whatever the others do
            left = (batch[ALIVE] & ~batch["next", *ALIVE]).unsqueeze(-1)
        for source, key in (("done", DONE), ("terminated", TERMINATED)):
            batch["next", *key] = batch["next", source].unsqueeze(-2).expand(task.shape) | left
        metrics = {f"episode/{name}": value for name, value in self.episodes(batch).items()}
        terms = {"task": task.sum(-2, keepdim=True).expand_as(task) if self.team_reward else task}
        for loss in self.losses:
            extra = loss.reward_terms(batch)
            if twice := sorted(terms.keys() & extra.keys()):
                raise ValueError(f"reward terms {twice} are given twice, the second time by {type(loss).__name__}")
            terms |= extra
        if missing := sorted(self.reward_weights.keys() - terms.keys()):
            raise ValueError(f"reward_weights names {missing}, but the terms are {sorted(terms)}")
        batch["next", *REWARD] = sum(weight * terms[name] for name, weight in self.reward_weights.items())
        if self.advantage is not None:
            self.advantage(batch)
        if self.replay is not None:
            self.replay.extend(batch)
        return metrics | {f"reward/{name}": value.mean() for name, value in terms.items()}

    # ------------------------------------------------------------------ logging, checks, checkpoints

    def _to_host(self, metrics: dict[str, Tensor]) -> dict[str, float]:
        """The one synchronisation of an iteration."""
        values = distributed.average(torch.stack([value.float() for value in metrics.values()])).tolist()
        row = dict(zip(metrics, values, strict=True))
        count, total, length = (row.pop(f"episode/{key}") for key in ("count", "return", "length"))
        return row | ({"episode/return": total / count, "episode/length": length / count} if count else {})

    def _check_finite(self, row: dict[str, float]) -> None:
        bad = {key: value for key, value in row.items() if not math.isfinite(value)}
        for key in bad:
            name, _, metric = key.partition("/")
            if name in ("reward", "episode"):
                raise FloatingPointError(f"non-finite reward at frame {self.frames}: {bad}")
            if metric.startswith(("loss_", "grad_norm")):
                losses = {k: v for k, v in row.items() if k.startswith(f"{name}/")}
                raise FloatingPointError(f"update {name!r} met a non-finite value at frame {self.frames}: {losses}")

    def _evaluate(self) -> None:
        if self.evaluate is not None and distributed.rank() == 0:
            self.run.log({f"eval/{key}": value for key, value in self.evaluate().items()}, frames=self.frames)

    def _checkpoint(self) -> None:
        self.run.save(self.state_dict(), iteration=self.iteration, frames=self.frames)

    def _check_ownership(self) -> None:
        owner: dict[nn.Parameter, tuple[str, Any]] = {}
        for update in self.updates:
            for part, optimizer in update.optimizers.items():
                for param in update.params[part]:
                    name, other = owner.setdefault(param, (f"{update.name}/{part}", optimizer))
                    if other is not optimizer:
                        raise ValueError(
                            f"updates {name!r} and '{update.name}/{part}' train a parameter of shape "
                            f"{tuple(param.shape)} with two optimizers: detach it, or put both losses in one part"
                        )
        trained = [self.policy, *self.losses, *(loss for update in self.updates for loss in update.losses)]
        for module in trained:
            for name, param in module.named_parameters():
                if param.requires_grad and param not in owner:
                    raise ValueError(f"no update trains parameter {name!r} of shape {tuple(param.shape)} in "
                                     f"{type(module).__name__}: add its loss to an update, or freeze it")

    def state_dict(self) -> dict[str, Any]:
        """All that decides the future of the run, as nested dicts of tensors and plain numbers."""
        state = {"policy": dict(self.policy.state_dict()), "updates": {u.name: u.state_dict() for u in self.updates},
                 "losses": [dict(loss.state_dict()) for loss in self.losses], "collector": self.collector.state_dict(),
                 "episodes": self.episodes.state_dict(),
                 "random": random_state(), "iteration": self.iteration, "seconds": self.seconds}
        if self.advantage is not None:
            state["advantage"] = self.advantage.state_dict()
        if self.replay is not None:
            state["replay"] = self.replay.state_dict()
        return state

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue where `state_dict` was called; on CPU to the last bit."""
        self.policy.load_state_dict(state["policy"])
        for update in self.updates:
            update.load_state_dict(state["updates"][update.name])
        for loss, saved in zip(self.losses, state["losses"], strict=True):
            loss.load_state_dict(saved)
        self.collector.load_state_dict(state["collector"])
        self.episodes.load_state_dict(state["episodes"])
        if self.advantage is not None:
            self.advantage.load_state_dict(state["advantage"])
        if self.replay is not None:
            self.replay.load_state_dict(state["replay"])
        self.iteration, self.seconds = state["iteration"], state["seconds"]
        restore_random_state(state["random"])


def _trainable(losses: Iterable[nn.Module]) -> list[nn.Parameter]:
    return list(dict.fromkeys(param for loss in losses for param in loss.parameters() if param.requires_grad))


def _due(iteration: int, every: int) -> bool:
    return every > 0 and iteration % every == 0
