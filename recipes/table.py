"""What a published table is: rows, tasks, frames, and the commands of its cells."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

Mode = Literal["sampled", "greedy", "success", "success_sampled"]


@dataclass(frozen=True)
class Table:
    """Rows and tasks of one table; a row or a task changes flags of the recipe."""

    title: str
    recipe: str
    rows: dict[str, list[str]]
    tasks: dict[str, list[str]]
    frames: int | dict[str, int]
    mode: Mode | dict[str, Mode] = "greedy"
    notes: list[str] = field(default_factory=list)

    evaluations: int = 10
    only: dict[str, tuple[str, ...]] = field(default_factory=dict)
    """{row: the tasks that it exists for}; other rows exist for all."""
    reference: dict[str, dict[str, dict[str, Any]]] = field(default_factory=dict)
    """{task: {row: value and source}}: published numbers, shown beside ours."""
    last: int = 1
    """A run's score is the mean of that many last evaluations."""
    recipes: dict[str, str] = field(default_factory=dict)
    """{row: its recipe} where it is not the table's."""

    def has(self, row: str, task: str) -> bool:
        """Whether the cell exists."""
        return task in self.only.get(row, (task,))

    def recipe_of(self, row: str) -> str:
        """The module that trains a row."""
        return self.recipes.get(row, self.recipe)

    def mode_of(self, task: str) -> str:
        """What is shown of a task."""
        return self.mode[task] if isinstance(self.mode, dict) else self.mode

    def frames_of(self, task: str) -> int:
        """Frames of one run on a task."""
        return self.frames[task] if isinstance(self.frames, dict) else self.frames

    def flags(self, row: str, task: str) -> list[str]:
        """The recipe's flags of one cell, without seed and folder."""
        return ["--task", task, *self.rows[row], *self.tasks[task], "--frames", str(self.frames_of(task)),
                "--evaluations", str(self.evaluations)]
