"""How long the sections of an iteration take, without waiting for the device that works on them."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch


class Stopwatch:
    """Seconds by name; on CUDA between events in the current stream, elsewhere by the clock.

    Args:
        device: where the timed work is done.
    """

    def __init__(self, device: torch.device | str | None = None):
        self.cuda = device is not None and torch.device(device).type == "cuda"
        self.marks: dict[str, list[tuple]] = {}

    @contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        """Time what is done inside; times of one name add up."""
        start = self._mark()
        yield
        self.marks.setdefault(name, []).append((start, self._mark()))

    def read(self) -> dict[str, float]:
        """Seconds since the last reading, which forgets them; waits for a CUDA device that is not yet done."""
        marks, self.marks = self.marks, {}
        return {name: sum(self._between(*pair) for pair in pairs) for name, pairs in marks.items()}

    def _mark(self) -> float | torch.cuda.Event:
        if not self.cuda:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def _between(self, start, end) -> float:
        if not self.cuda:
            return end - start
        end.synchronize()
        return start.elapsed_time(end) / 1000
