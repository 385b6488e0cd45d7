"""The published tables as data: rows, tasks, frames. ``recipes.benchmark`` runs them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal


@dataclass(frozen=True)
class Table:
    """Rows and tasks of one table; a row or a task changes flags of the recipe."""

    title: str
    recipe: str
    rows: dict[str, list[str]]
    tasks: dict[str, list[str]]
    frames: int
    mode: Literal["sampled", "greedy"] = "greedy"
    notes: list[str] = field(default_factory=list)

    def flags(self, row: str, task: str) -> list[str]:
        """The recipe's flags of one cell, without seed and folder."""
        return ["--task", task, *self.rows[row], *self.tasks[task], "--frames", str(self.frames), "--evaluations", "10"]


TABLES = {
    "cooperative": Table(
        title="Cooperative control",
        recipe="recipes.cooperative",
        rows={name: ["--algorithm", name.lower()] for name in ("MAPPO", "IPPO", "MAA2C", "MADDPG")},
        tasks={"vmas/navigation": [], "vmas/balance": [], "vmas/give_way": [], "vmas/simple_spread": []},
        frames=300_000,
        notes=["Default settings of the recipe for every cell; no number was tuned to a task.",
               "Return is the mean over agents of the undiscounted sum of rewards, greedy actions, 32 fresh episodes "
               "of the final policy."]),
}
