"""Schedules that follow the collected frames; their state is in the optimisers, so resume is exact."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from suite.update import Update


class LinearDecay:
    """Multiplies every learning rate of some updates by 1 - frames / total_frames, before each iteration.

    Extending a finished run stretches the decay over the new total.
    """

    def __init__(self, updates: Sequence[Update]):
        self.updates = updates
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

    def __call__(self, progress: float) -> None:
        """Set the rates for an iteration that begins after this share of the frames."""
        for group in self._groups():
            group["lr"] = group["initial_lr"] * (1 - progress)
