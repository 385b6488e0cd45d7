"""The training loop: collect, combine rewards, estimate advantages, update, refresh, evaluate, checkpoint."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
from tensordict import TensorDictBase
from torch import Tensor, nn

from suite import distributed
from suite.checkpoint import random_state, restore_random_state
from suite.collector import EpisodeStatistics
from suite.data import DataSource
from suite.specs import ALIVE, DONE, REWARD, TERMINATED
from suite.stopwatch import Stopwatch
from suite.update import Update, check_ownership

PARAMETER_NORM = "parameters/norm"  # of all that is trained, not logged


class Trainer:
    """Repeats one iteration until the collector ends, or until ``run`` asks for a stop.

    Args:
        collector: iterable of batches [N, T] with ``frames``, ``total_frames``, ``state_dict``.
        policy: the module that acts; saved, evaluated, and checked for parameters nobody trains.
        updates: run in the order of the list; those that are ``early`` before the rewards are combined.
        reward_weights: {term: weight}; the term ``task`` is the environment's reward.
        team_reward: give every agent the sum of all agents' task rewards, and report returns of the team.
        losses: losses that may add reward terms; told of each batch before the updates, and again after them.
        estimators: TorchRL value estimators that write advantages and value targets; none off-policy.
        refresh: functions of the batch called after the updates (schedules, target networks); what they change must
            be saved by the module it belongs to.
        schedules: functions of the share of frames done when an iteration begins, called before its updates.
        run: where metrics and checkpoints go; see `suite.run.Run`.
        evaluate: function of the frames so far that returns metrics, of "eval" unless they say of what, and changes
            nothing.
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
        estimators: Sequence = (),
        refresh: Sequence[Callable] = (),
        schedules: Sequence[Callable[[float], None]] = (),
        evaluate: Callable[[int], dict[str, float]] | None = None,
        evaluate_every: int = 0,
        checkpoint_every: int = 0,
    ):
        self.collector, self.policy, self.updates, self.losses = collector, policy, list(updates), list(losses)
        names = [update.name for update in self.updates]
        if twice := sorted({name for name in names if names.count(name) > 1}):
            raise ValueError(f"several updates are named {twice}: their metrics and checkpoints would overwrite others")
        self.reward_weights, self.team_reward = reward_weights, team_reward
        self.estimators, self.sources = list(estimators), list(dict.fromkeys(u.data.owner for u in updates))
        self.trained = [param for u in updates for part in u.optimizers for param in u.params[part]]
        self.early_sources = list(dict.fromkeys(u.data.owner for u in updates if u.early))
        self.refresh, self.schedules, self.run, self.evaluate = list(refresh), list(schedules), run, evaluate
        self.evaluate_every, self.checkpoint_every = evaluate_every, checkpoint_every
        self.episodes = EpisodeStatistics(team=team_reward)
        self.iteration, self.seconds = 0, 0.0
        self.stopwatch = Stopwatch(next((param.device for param in self.trained), None))
        check_ownership(self.updates, [self.policy, *self.losses])

    def train(self) -> None:
        """Run to the collector's last frame; a stop request or an error leaves a checkpoint of a finished iteration."""
        learned = [self.policy, *self.losses, *(loss for u in self.updates for loss in u.losses), *self.estimators]
        distributed.broadcast(learned)
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
            norm = row.pop(PARAMETER_NORM)
            end = time.perf_counter()
            self.iteration += 1
            self.seconds += end - start
            row |= {"time/collect": collected - start, "time/update": end - collected, "time/total": self.seconds,
                    "time/frames_per_second": distributed.world_size() * batch.numel() / (end - start)}
            row |= {f"time/update_{name}": seconds for name, seconds in self.stopwatch.read().items()}
            self.run.log(row, frames=self.frames)
            self._check_finite(row, norm)
            last = self.collector.frames >= self.collector.total_frames
            if last or _due(self.iteration, self.evaluate_every):
                self._evaluate(batch)
            stop = self.run.stop_requested  # asked once, so that a stop never goes without its checkpoint
            if last or stop or _due(self.iteration, self.checkpoint_every):
                self._checkpoint()

    @property
    def frames(self) -> int:
        """Environment frames so far, over all processes."""
        return self.collector.frames * distributed.world_size()

    def iterate(self, batch: TensorDictBase) -> dict[str, Tensor]:
        """Everything that one batch [N, T] causes; metrics as 0-d tensors, without host synchronisation.

        A loss may ask the host itself, such as one that counts finished episodes, and says so where it does.
        """
        self.receive(batch)
        for schedule in self.schedules:
            schedule((self.collector.frames - batch.numel()) / self.collector.total_frames)
        due = [update for update in self.updates if self.iteration % update.every == 0]
        metrics = self._run([update for update in due if update.early], batch)
        metrics |= self.prepare(batch)
        metrics |= self._run([update for update in due if not update.early], batch)
        for function in (*self.refresh, *(loss.refresh for loss in self.losses)):
            function(batch)
        self.collector.update_policy_weights_()
        for loss in self.losses:
            metrics |= loss.metrics()
        return metrics

    def _run(self, updates: Sequence[Update], batch: TensorDictBase) -> dict[str, Tensor]:
        metrics = {}
        for update in updates:
            with self.stopwatch(update.name):
                metrics |= update.run(batch)
        return metrics

    @torch.no_grad()
    def receive(self, batch: TensorDictBase) -> None:
        """Write per-agent dones, let the losses take note, and fill the sources of the early updates."""
        task, left = batch["next", *REWARD], False
        if ALIVE in batch.keys(True):  # an agent that leaves early has terminated, whatever the others do
            left = (batch[ALIVE] & ~batch["next", *ALIVE]).unsqueeze(-1)
        for source, key in (("done", DONE), ("terminated", TERMINATED)):
            batch["next", *key] = batch["next", source].unsqueeze(-2).expand(task.shape) | left
        for loss in self.losses:
            loss.receive(batch)
        self._extend(self.early_sources, batch)

    @torch.no_grad()
    def prepare(self, batch: TensorDictBase) -> dict[str, Tensor]:
        """Write what the losses read: features, the weighted reward, advantages; fill the other data sources."""
        task = batch["next", *REWARD]
        for encoder in (encoder for loss in self.losses if loss.reencode for encoder in loss.encoders):
            encoder(batch)
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
        for estimator in self.estimators:
            estimator(batch)
        self._extend([source for source in self.sources if source not in self.early_sources], batch)
        return metrics | {f"reward/{name}": value.mean() for name, value in terms.items()}

    def _extend(self, sources: Sequence[DataSource], batch: TensorDictBase) -> None:
        for source in sources:
            try:
                source.extend(batch)
            except KeyError as error:
                for update in self.updates:
                    if update.data.owner is source:
                        update.check_keys(batch, error)
                raise

    # ------------------------------------------------------------------ logging, checks, checkpoints

    def _to_host(self, metrics: dict[str, Tensor]) -> dict[str, float]:
        """The one synchronisation of an iteration; with the metrics goes whether a checkpoint may be written."""
        with torch.no_grad():
            norm = nn.utils.get_total_norm(self.trained, 1.0)  # finite if and only if they are
        metrics = metrics | {PARAMETER_NORM: norm.to(metrics["episode/count"].device)}
        values = distributed.average(torch.stack([value.float() for value in metrics.values()])).tolist()
        row = dict(zip(metrics, values, strict=True))
        count = row.pop("episode/count")
        sums = {key: row.pop(key) for key in list(row) if key.startswith("episode/")}
        return row | ({key: total / count for key, total in sums.items()} if count else {})

    def _check_finite(self, row: dict[str, float], norm: float) -> None:
        bad = {key: value for key, value in row.items() if not math.isfinite(value)}
        for key in bad:
            name, _, metric = key.partition("/")
            if name in ("reward", "episode"):
                raise FloatingPointError(f"non-finite reward at frame {self.frames}: {bad}")
            if metric.startswith(("loss_", "grad_norm")):
                losses = {k: v for k, v in row.items() if k.startswith(f"{name}/")}
                raise FloatingPointError(f"update {name!r} met a non-finite value at frame {self.frames}: {losses}")
        if not math.isfinite(norm):
            found = {update.name: parts for update in self.updates if (parts := update.non_finite())}
            where = ", ".join(f"part {part!r} of update {name!r}" for name, parts in found.items() for part in parts)
            losses = {k: v for k, v in row.items() if k.partition("/")[0] in found}
            raise FloatingPointError(f"non-finite parameters at frame {self.frames} in {where}, after finite losses: "
                                     f"{losses}; a part with max_grad_norm also logs the norm of its gradient")

    def _evaluate(self, batch: TensorDictBase | None = None) -> None:
        if self.evaluate is None or distributed.rank() != 0:
            return
        found = self.evaluate(self.frames)
        row = {key if "/" in key else f"eval/{key}": value for key, value in found.items()}
        if batch is not None:
            with torch.random.fork_rng([batch.device] if batch.device.type == "cuda" else []):
                for loss in self.losses:
                    row |= loss.diagnose(batch)
        self.run.log(row, frames=self.frames)

    def _checkpoint(self) -> None:
        self.run.save(self.state_dict(), iteration=self.iteration, frames=self.frames)

    def state_dict(self) -> dict[str, Any]:
        """All that decides the future of the run, as nested dicts of tensors and plain numbers."""
        return {"policy": dict(self.policy.state_dict()), "updates": {u.name: u.state_dict() for u in self.updates},
                 "losses": [dict(loss.state_dict()) for loss in self.losses],
                 "sources": [source.state_dict() for source in self.sources], "collector": self.collector.state_dict(),
                 "episodes": self.episodes.state_dict(),
                 "estimators": [dict(estimator.state_dict()) for estimator in self.estimators],
                 "random": random_state(), "iteration": self.iteration, "seconds": self.seconds}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue where `state_dict` was called; on CPU to the last bit."""
        self.policy.load_state_dict(state["policy"])
        for update in self.updates:
            update.load_state_dict(state["updates"][update.name])
        for loss, saved in zip(self.losses, state["losses"], strict=True):
            loss.load_state_dict(saved)
        self.collector.load_state_dict(state["collector"])
        self.episodes.load_state_dict(state["episodes"])
        for estimator, saved in zip(self.estimators, state["estimators"], strict=True):
            estimator.load_state_dict(saved)
        for source, saved in zip(self.sources, state["sources"], strict=True):
            source.load_state_dict(saved)
        self.iteration, self.seconds = state["iteration"], state["seconds"]
        restore_random_state(state["random"])


def _due(iteration: int, every: int) -> bool:
    return every > 0 and iteration % every == 0
