"""Schedules that follow the collected frames; their state is in the optimisers, so resume is exact."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from suite.trainer import Update


class LinearDecay:
    """Multiplies every learning rate by 1 - frames / total_frames; call it with each batch (``refresh``)."""

    def __init__(self, collector: Any, updates: Sequence[Update]):
        self.collector, self.updates = collector, updates
        for group in self._groups():
            group["initial_lr"] = group["lr"]

    def _groups(self) -> list[dict[str, Any]]:
        # looked up each time: an optimiser makes new groups when its state is loaded
        return [
            group
            for update in self.updates
            for optimizer in update.optimizers.values()
            for group in optimizer.param_groups
        ]

    def __call__(self, batch: Any) -> None:
        """Set the rates for the next iteration."""
        left = max(0.0, 1 - self.collector.frames / self.collector.total_frames)
        for group in self._groups():
            group["lr"] = group["initial_lr"] * left
