"""An update: losses that see the same data, one optimiser per network, one backward pass per minibatch or per part."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from tensordict import TensorDictBase
from torch import Tensor, nn

from suite import distributed
from suite.data import DataSource

FIRST_STEP = "first_step_"  # metrics with this prefix are those of an iteration's first optimiser step


class Update:
    """Losses that see the same data, each with an optimiser of its own; one backward pass per minibatch.

    Args:
        name: prefix of its metrics.
        losses: {part: loss or list of losses}; a part has one optimiser and one gradient clipping.
        data: source of minibatches; see `suite.data`.
        optimizer: function of a list of parameters, or {part: function, or an optimizer that another update has too}.
        max_grad_norm: clipping per part, or {part: clipping}; None neither clips nor logs the gradient's norm.
        every: run only at every that many iterations.
        early: run before rewards are combined and advantages estimated (which the losses then cannot read).
        shared: parts that another update trains as well, on purpose.
        targets: objects with ``step()``, called after each optimiser step (soft or hard target updates); if the parts
            take turns, {part: objects}.
        delay: None takes one backward pass over the sum of all losses. Else the parts take turns on each minibatch, in
            their order, with passes of their own, so that each sees what the ones before it have changed; a part with
            delay d only at every d-th minibatch, as the delayed actors of TD3 do ({}: no delays).
        compile: options of ``torch.compile`` for the losses' forward pass; None runs it eagerly.
        autocast: dtype of autocast in the losses; None for none.
    """

    def __init__(
        self,
        name: str,
        losses: dict[str, Any],
        data: DataSource,
        *,
        optimizer: Callable | dict[str, Callable | torch.optim.Optimizer],
        max_grad_norm: float | dict[str, float | None] | None,
        every: int = 1,
        early: bool = False,
        shared: Collection[str] = (),
        targets: Sequence | dict[str, Sequence] = (),
        delay: dict[str, int] | None = None,
        compile: dict[str, Any] | None = None,
        autocast: torch.dtype | None = None,
    ):
        self.name, self.data, self.every, self.early = name, data, every, early
        self.parts = {
            part: list(group) if isinstance(group, (list, tuple)) else [group] for part, group in losses.items()
        }
        self.losses = [loss for group in self.parts.values() for loss in group]
        self.keys = list(dict.fromkeys(key for loss in self.losses for key in loss.in_keys))
        self.params = _owned(self.parts)
        make = optimizer if isinstance(optimizer, dict) else dict.fromkeys(self.params, optimizer)
        self.optimizers = {part: make[part] if isinstance(make[part], torch.optim.Optimizer) else make[part](params)
                           for part, params in self.params.items() if params}
        clipping = max_grad_norm if isinstance(max_grad_norm, dict) else dict.fromkeys(self.params, max_grad_norm)
        self.max_grad_norm = {part: clipping[part] for part in self.optimizers}
        self.shared = set(shared)
        self.autocast = autocast
        self.device_type = next((p.device.type for group in self.params.values() for p in group), "cpu")
        self.compiled = compile is not None  # a captured graph overwrites its outputs
        self.turns = _turns(self.parts, targets, delay)
        for turn in self.turns:
            compute = partial(self._compute, turn.parts)
            turn.compute = compute if compile is None else torch.compile(compute, **compile)
        self.steps = 0

    def run(self, batch: TensorDictBase) -> dict[str, Tensor]:
        """All minibatches of one iteration; metrics as 0-d tensors, named ``update/metric``: means, or the first's."""
        if not self.optimizers:
            return {}
        try:
            steps = [self.step(minibatch) for minibatch in self.data(batch, self.keys)]
        except KeyError as error:
            self.check_keys(batch, error)
            raise
        keys = dict.fromkeys(key for step in steps for key in step)
        found = {key: [step[key] for step in steps if key in step] for key in keys}
        return {f"{self.name}/{key}": values[0] if key.startswith(FIRST_STEP) else torch.stack(values).mean()
                for key, values in found.items()}

    def step(self, minibatch: TensorDictBase) -> dict[str, Tensor]:
        """One optimiser step of every part whose turn it is; no host synchronisation."""
        self.steps += 1
        out: dict[str, Tensor] = {}
        for turn in self.turns:
            if self.steps % turn.delay == 0:
                found, part = self._take(turn, minibatch), next(iter(turn.parts))
                out |= {key if key not in out else f"{key}_{part}": value for key, value in found.items()}
        return out

    def _take(self, turn: _Turn, minibatch: TensorDictBase) -> dict[str, Tensor]:
        total, metrics = self._forward(turn, minibatch)
        out = {key: value.clone() for key, value in metrics.items()} if self.compiled else metrics
        optimizers = {part: optimizer for part, optimizer in self.optimizers.items() if part in turn.trained}
        for part in optimizers:
            for param in self.params[part]:
                param.grad = None
        total.backward()
        for part, optimizer in optimizers.items():
            distributed.average_gradients(self.params[part])
            if (limit := self.max_grad_norm[part]) is not None:
                norm = nn.utils.clip_grad_norm_(self.params[part], limit).to(total.device)  # CPU if nothing has one
                out["grad_norm" if len(self.optimizers) == 1 else f"grad_norm_{part}"] = norm
            optimizer.step()
        for target in turn.targets:
            target.step()
        return out

    def _forward(self, turn: _Turn, minibatch: TensorDictBase) -> tuple[Tensor, dict[str, Tensor]]:
        try:
            if self.autocast is None:
                total, metrics = turn.compute(minibatch)
            else:
                with torch.autocast(self.device_type, self.autocast):
                    total, metrics = turn.compute(minibatch)
        except KeyError as error:
            raise ValueError(_fault(self, turn.parts, minibatch, error)) from error
        if total is None or total.ndim or not total.requires_grad:
            raise ValueError(_fault(self, turn.parts, minibatch))
        return total, metrics

    def _compute(self, parts: dict[str, list], minibatch: TensorDictBase) -> tuple[Tensor, dict[str, Tensor]]:
        total, out, owners = None, {}, {}
        for part, group in parts.items():
            for loss in group:
                for key, value in loss(minibatch).items():
                    if key.startswith("loss_"):
                        total = value if total is None else total + value
                    name = key if key not in out else f"{key}_{part}"
                    owner = f"{type(loss).__name__} in part {part!r}"
                    if name in out:
                        raise ValueError(f"update {self.name!r} has two metrics {name!r}, from {owners[name]} and from "
                                         f"{owner}: rename one, or give the losses other parts")
                    owners[name] = owner
                    value = value.detach()
                    out[name] = value.float().mean() if value.ndim else value
        return total, out

    def check_keys(self, batch: TensorDictBase, cause: KeyError | None = None) -> None:
        """ValueError if the batch lacks what a loss reads."""
        has = set(batch.keys(True, True))
        for part, group in self.parts.items():
            for loss in group:
                if absent := [key for key in loss.in_keys if key not in has]:
                    raise ValueError(f"update {self.name!r}, part {part!r}: {type(loss).__name__} reads {absent}, "
                                     f"which the batch lacks; it has {sorted(has, key=str)}") from cause

    def non_finite(self) -> list[str]:
        """Parts with a parameter that is not finite; asks the host, so only for a run that fails anyway."""
        return [part for part in self.optimizers if not all(param.isfinite().all() for param in self.params[part])]

    def state_dict(self) -> dict[str, Any]:
        """Losses, with their targets and buffers, and optimisers."""
        return {"losses": [dict(loss.state_dict()) for loss in self.losses], "steps": self.steps,
                "optimizers": {part: optimizer.state_dict() for part, optimizer in self.optimizers.items()}}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Put back what `state_dict` returned."""
        self.steps = state.get("steps", 0)
        for loss, saved in zip(self.losses, state["losses"], strict=True):
            loss.load_state_dict(saved)
        for part, optimizer in self.optimizers.items():
            optimizer.load_state_dict(state["optimizers"][part])


@dataclass(eq=False)
class _Turn:
    """Parts that share a backward pass, the networks that then step, and what follows them."""

    parts: dict[str, list]
    trained: set[str]
    targets: Sequence
    delay: int
    compute: Callable = field(init=False)


def _turns(parts: dict[str, list], targets: Sequence | dict[str, Sequence],
           delay: dict[str, int] | None) -> list[_Turn]:
    if isinstance(targets, dict) == (delay is None) and targets:
        raise ValueError("targets are {part: objects} if the parts take turns (delay is given), else a list of objects,"
                         f" got {type(targets).__name__} with delay {delay}")
    if delay is None:
        return [_Turn(parts, set(_owned(parts)), targets, 1)]
    targets = targets or {}
    for what, given in (("delay", delay), ("targets", targets)):
        if unknown := sorted(set(given) - set(parts)):
            raise ValueError(f"{what} names the parts {unknown}, but the parts are {list(parts)}")
    if bad := {part: value for part, value in delay.items() if value < 1}:
        raise ValueError(f"delays must be at least 1, got {bad}")
    return [_Turn({part: group}, set(_owned({part: group})), targets.get(part, ()), delay.get(part, 1))
            for part, group in parts.items()]


def _fault(update: Update, parts: dict[str, list], minibatch: TensorDictBase, missing: KeyError | None = None) -> str:
    """What is wrong with the losses of a sum that cannot be minimised, or of a missing key: they run once more."""
    found = {}
    for part, group in parts.items():
        for loss in group:
            name = f"{type(loss).__name__} in part {part!r}"
            try:
                out = dict(loss(minibatch).items())
            except KeyError as error:
                return (f"update {update.name!r}: {name} met a KeyError, {error}; of a minibatch it may read what it "
                        f"names as in_keys: {loss.in_keys}")
            if wrong := {key: tuple(x.shape) for key, x in out.items() if key.startswith("loss_") and x.ndim}:
                return f"update {update.name!r}: {name} returns {wrong}, but entries named loss_* have the shape ()"
            found[name] = sorted(out)
    if missing is not None:
        return f"update {update.name!r} met a KeyError, {missing}, among the losses {found}"
    return (f"update {update.name!r} has nothing to minimise: {found}; some entry of these must be named loss_*, have "
            "the shape () and depend on a parameter that is trained")


def check_ownership(updates: Sequence[Update], modules: Sequence[nn.Module]) -> None:
    """ValueError if a parameter has two optimisers, or a trainable one of ``modules`` and the losses has none.

    Parts that an update declares as shared have another update as their owner.
    """
    owner: dict[nn.Parameter, tuple[str, Any]] = {}
    for update in updates:
        for part, optimizer in update.optimizers.items():
            for param in () if part in update.shared else update.params[part]:
                name, other = owner.setdefault(param, (f"{update.name}/{part}", optimizer))
                if other is not optimizer:
                    raise ValueError(
                        f"updates {name!r} and '{update.name}/{part}' train a parameter of shape "
                        f"{tuple(param.shape)} with two optimizers: detach it, or put both losses in one part"
                    )
    trained = [*modules, *(loss for update in updates for loss in update.losses)]
    for module in trained:
        for name, param in module.named_parameters():
            if param.requires_grad and param not in owner:
                raise ValueError(f"no update trains parameter {name!r} of shape {tuple(param.shape)} in "
                                 f"{type(module).__name__}: add its loss to an update, or freeze it")


def _owned(parts: dict[str, list]) -> dict[str, list[nn.Parameter]]:
    """{part: parameters}; a loss with several networks may name a part for each."""
    owned: dict[str, dict[nn.Parameter, None]] = {}
    for part, group in parts.items():
        for loss in group:
            for name, params in loss.networks(part).items():
                owned.setdefault(name, {}).update(dict.fromkeys(params))
    return {name: list(params) for name, params in owned.items()}
