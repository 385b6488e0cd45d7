"""A comparison of training costs as data."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class CostStudy:
    """Subjects of the cooperative recipe to be timed on the same tasks.

    Attributes:
        subjects: {name: the words that choose its Config (preset, algorithm, loss)}; ratios are to the first.
        warm, measured, long: iterations before the clock starts, under it, and of the run that shows the memory.
    """

    title: str
    tasks: tuple[str, ...]
    subjects: dict[str, dict[str, str]]
    warm: int
    measured: int
    long: int
