"""Data sources: what an update sees of the batch that was just collected (or of all batches so far).

A source is called with the batch [N, T] and the keys that the losses read, and yields minibatches.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from tensordict import NestedKey, TensorDict, TensorDictBase
from torchrl.data import LazyTensorStorage, TensorDictReplayBuffer

from suite.distributed import world_size


class DataSource:
    """Base: what every update's ``data`` offers. Sources without memory keep these defaults."""

    def __call__(self, batch: TensorDictBase, keys: Sequence[NestedKey]) -> Iterator[TensorDictBase]:
        """Yield minibatches with ``keys`` (a source may hand over more)."""
        raise NotImplementedError

    def with_epochs(self, epochs: int) -> DataSource:
        """The same source with another number of passes."""
        raise NotImplementedError

    def check(self, rows: int, steps: int) -> None:
        """ValueError if batches [rows, steps] cannot be used; recipes ask before training."""

    @property
    def owner(self) -> DataSource:
        """The source that extends and saves what this one draws from."""
        return self

    def extend(self, batch: TensorDictBase) -> None:
        """Take in a batch [N, T]; the trainer calls it once per batch, before the updates."""

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint needs."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Put back what `state_dict` returned."""


@dataclass(eq=False)
class Minibatches(DataSource):
    """Every frame of the batch once per epoch, in random order, ``size`` frames at a time (None: the whole batch).

    The last, smaller minibatch is used too. One permuted copy is made per epoch; minibatches are views of it.
    """

    epochs: int
    size: int | None = None

    def __post_init__(self) -> None:
        _check(self.epochs, self.size)

    def with_epochs(self, epochs: int) -> Minibatches:
        """The same source with another number of epochs."""
        return replace(self, epochs=epochs)

    def __call__(self, batch: TensorDictBase, keys: Sequence[NestedKey]) -> Iterator[TensorDictBase]:
        """Yield minibatches [size] with ``keys``."""
        frames = batch.select(*keys).reshape(-1)
        for _ in range(self.epochs):
            if self.size is None or self.size >= len(frames):
                yield frames
            else:
                yield from frames[torch.randperm(len(frames), device=frames.device)].split(self.size)


@dataclass(eq=False)
class Sequences(DataSource):
    """Whole environment rows [rows, T], for recurrent networks; every row once per epoch, in random order.

    ``size`` is given in frames, like that of `Minibatches`, and rounded to at least one row.
    """

    epochs: int
    size: int | None = None

    def __post_init__(self) -> None:
        _check(self.epochs, self.size)

    def with_epochs(self, epochs: int) -> Sequences:
        """The same source with another number of epochs."""
        return replace(self, epochs=epochs)

    def __call__(self, batch: TensorDictBase, keys: Sequence[NestedKey]) -> Iterator[TensorDictBase]:
        """Yield minibatches [rows, T] with ``keys``."""
        rows, steps = batch.shape
        chosen = batch.select(*keys)
        take = rows if self.size is None else max(1, self.size // steps)
        for _ in range(self.epochs):
            if take >= rows:
                yield chosen
            else:
                for index in torch.randperm(rows, device=batch.device).split(take):
                    yield chosen[index]


@dataclass(eq=False)
class Derived(DataSource):
    """What another source makes of a changed batch; that one owns what is stored."""

    source: DataSource

    def check(self, rows: int, steps: int) -> None:
        """What the source behind it asks of batches."""
        self.source.check(rows, steps)

    @property
    def owner(self) -> DataSource:
        """The source behind it."""
        return self.source.owner

    def with_epochs(self, epochs: int) -> Derived:
        """The same with another number of epochs."""
        return replace(self, source=self.source.with_epochs(epochs))


@dataclass(eq=False)
class FirstRows(Derived):
    """Another source, of all but the last ``share`` of the environments, which are kept for measurements.

    ``needed_by``: what cannot do without them.
    """

    share: float
    needed_by: str = ""

    def check(self, rows: int, steps: int) -> None:
        """ValueError if there is no environment to leave out, but one is needed; what the source asks of the others."""
        out = self.kept_out(rows, self.share)
        if self.needed_by and not out:
            raise ValueError(f"{self.needed_by} is measured on environments that are held out: give --num-envs 2 or "
                             f"more, got {rows}")
        self.source.check(rows - out, steps)

    @staticmethod
    def kept_out(rows: int, share: float) -> int:
        """How many of ``rows`` environments are left out: at least one if any, never all."""
        return min(max(1, round(rows * share)), rows - 1) if share else 0

    def __call__(self, batch: TensorDictBase, keys: Sequence[NestedKey]) -> Iterator[TensorDictBase]:
        """Yield what the source makes of the first rows."""
        yield from self.source(batch[: len(batch) - self.kept_out(len(batch), self.share)], keys)


@dataclass(eq=False)
class Chunks(Derived):
    """Another source of sequences, of rows cut into chunks of ``length`` steps: gradients of a memory end there."""

    length: int

    def check(self, rows: int, steps: int) -> None:
        """ValueError if the steps are no multiple of the length."""
        if steps % self.length:
            raise ValueError(f"chunks of {self.length} steps do not divide a batch of {steps} steps")
        self.source.check(rows * steps // self.length, self.length)

    def __call__(self, batch: TensorDictBase, keys: Sequence[NestedKey]) -> Iterator[TensorDictBase]:
        """Yield what the source makes of the chunks [N T / length, length]."""
        rows, steps = batch.shape
        self.check(rows, steps)
        yield from self.source(batch.select(*keys).reshape(rows * steps // self.length, self.length), keys)


class PreviousBatches(DataSource):
    """What another source makes of the last ``count`` batches before the present one, which then joins them.

    Batches must have one size; nothing is yielded before the second.
    """

    def __init__(self, source: DataSource, count: int):
        self.source, self.count = source, count
        self.held: TensorDict | None = None  # [count, N, T]
        self.seen = 0

    def with_epochs(self, epochs: int) -> PreviousBatches:
        """The same, without its memory, with another number of epochs."""
        return PreviousBatches(self.source.with_epochs(epochs), self.count)

    def check(self, rows: int, steps: int) -> None:
        """What the source asks of batches."""
        self.source.check(rows, steps)

    def __call__(self, batch: TensorDictBase, keys: Sequence[NestedKey]) -> Iterator[TensorDictBase]:
        """Yield what the source makes of the batches before, joined along the environments."""
        if self.held is not None:
            self.held = self.held.to(batch.device)  # a checkpoint comes to the host
        if self.seen:
            yield from self.source(self.held[:min(self.seen, self.count)].flatten(0, 1), keys)
        chosen = batch.select(*keys)
        if self.held is None:
            self.held = chosen.apply(lambda x: x.new_zeros(self.count, *x.shape),
                                     batch_size=[self.count, *batch.shape], names=None)
        self.held[self.seen % self.count] = chosen
        self.seen += 1

    def state_dict(self) -> dict[str, Any]:
        """The batches and how many there have been."""
        held = {} if self.held is None else dict(self.held.flatten_keys("/").items())
        return {"batches": {key: value.clone() for key, value in held.items()}, "seen": self.seen}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Put back what `state_dict` returned."""
        self.seen, batches = state["seen"], state["batches"]
        if batches:
            shape = next(iter(batches.values())).shape[:3]
            self.held = TensorDict(batches, batch_size=shape).unflatten_keys("/").clone()


class Replay(DataSource):
    """Uniform samples of a ring buffer of the last ``capacity`` frames, once it holds ``warmup`` of them.

    The trainer extends the buffer with each batch before the updates; several updates may share one `Replay`. Batches
    that begin before ``skip`` frames were collected (by all processes) are not stored: others' actions, of a warm-up.
    """

    def __init__(self, *, capacity: int, steps: int, size: int, warmup: int, keys: Sequence[NestedKey],
                 device: torch.device | str, skip: int = 0):
        if not 0 < size <= warmup <= capacity:
            raise ValueError(f"replay needs 0 < size <= warmup <= capacity, got {size}, {warmup}, {capacity}")
        # compilable: without it each `extend` asks the device for a number and waits
        self.buffer = TensorDictReplayBuffer(storage=LazyTensorStorage(capacity, device=device, compilable=True))
        self.capacity, self.steps, self.size, self.warmup, self.keys = capacity, steps, size, warmup, list(keys)
        self.skip = skip  # what is left of it

    def with_epochs(self, epochs: int) -> ReplayView:
        """A view of the same buffer with ``epochs`` times the samples per batch."""
        return ReplayView(self, self.steps * epochs)

    def extend(self, batch: TensorDictBase) -> None:
        """Append all frames of a batch [N, T], time by time, so that the oldest frames leave first."""
        if self.skip > 0:
            self.skip -= batch.numel() * world_size()
            return
        frames = batch.select(*self.keys).transpose(0, 1).reshape(-1)
        self.buffer.extend(frames[-self.capacity:])

    def __call__(self, batch: TensorDictBase, keys: Sequence[NestedKey]) -> Iterator[TensorDictBase]:
        """Yield ``steps`` samples of ``size`` frames, or none during the warm-up."""
        yield from self.samples(self.steps)

    def samples(self, steps: int, size: int | None = None) -> Iterator[TensorDictBase]:
        """Yield ``steps`` samples of ``size`` frames (None: the source's), or none during the warm-up."""
        if len(self.buffer) >= self.warmup:
            size = size or self.size
            yield from self.buffer.sample(steps * size).split(size)  # one draw of all costs a fraction of many draws

    def state_dict(self) -> dict[str, Any]:
        """Contents and write position."""
        storage = self.buffer.storage
        length = len(storage)
        held = {} if length == 0 else dict(storage[:length].flatten_keys("/").items())
        return {"frames": {key: value.clone() for key, value in held.items()}, "cursor": self.buffer.writer._cursor,
                "skip": self.skip}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Put back what `state_dict` returned."""
        self.buffer.empty()
        self.skip = state.get("skip", 0)
        if state["frames"]:
            length = len(next(iter(state["frames"].values())))
            self.buffer.extend(TensorDict(state["frames"], batch_size=[length]).unflatten_keys("/"))
        self.buffer.writer._cursor = state["cursor"]


def _check(epochs: int, size: int | None) -> None:
    if epochs < 1 or (size is not None and size < 1):
        raise ValueError(f"epochs and size must be positive, got {epochs}, {size}")


@dataclass(eq=False)
class Changed(Derived):
    """Samples of a `Replay` as a function changes them, such as corrections of what is stale; all of a batch at once.

    The function maps frames [n] to frames [n], and leaves those it was given as they are. ``more``: how many
    minibatches a batch [N, T] brings besides the source's own number.
    """

    function: Callable[[TensorDictBase], TensorDictBase]
    more: Callable[[TensorDictBase], int] | None = None

    def __call__(self, batch: TensorDictBase, keys: Sequence[NestedKey]) -> Iterator[TensorDictBase]:
        """Yield the buffer's samples of this batch, changed."""
        replay, steps = self.owner, self.source.steps + (self.more(batch) if self.more else 0)
        for frames in replay.samples(1, steps * replay.size):
            yield from self.function(frames).split(replay.size)


class ReplayView(DataSource):
    """Samples of another source's buffer, which alone extends and saves it."""

    def __init__(self, replay: Replay, steps: int):
        self.replay, self.steps = replay, steps

    @property
    def owner(self) -> Replay:
        """The viewed buffer's source, also where no update has it as its data."""
        return self.replay

    def with_epochs(self, epochs: int) -> ReplayView:
        """Another number of samples of the same buffer."""
        return ReplayView(self.replay, self.replay.steps * epochs)

    def __call__(self, batch: TensorDictBase, keys: Sequence[NestedKey]) -> Iterator[TensorDictBase]:
        """Yield ``steps`` samples, or none during the warm-up."""
        yield from self.replay.samples(self.steps)
