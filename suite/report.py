"""Results folder -> tables, intervals, curves, one HTML page: ``python -m suite.report [results]``.

The files are described in `suite.results`.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from suite import page
from suite.results import Table, read_results

REPS = 2000  # bootstrap resamples
BOOTSTRAP_SEED = 0
BOLD_SEEDS = 3  # by chance alone the intervals of 2 against 2 seeds are disjoint one time in three


class Estimate(NamedTuple):
    """A statistic with its 95 % interval; bounds are None where a stratum has a single run."""

    value: Any
    low: Any = None
    high: Any = None


def iqm(scores: np.ndarray) -> np.ndarray:
    """Interquartile mean along the first axis: floor(n / 4) values cut at either end, so the mean if n < 4."""
    cut = len(scores) // 4
    return np.sort(scores, axis=0)[cut:len(scores) - cut].mean(axis=0)


def bootstrap(strata: Sequence[np.ndarray], statistic: Callable[[np.ndarray], Any] = iqm) -> Estimate:
    """A statistic of the pooled runs with its 95 % stratified bootstrap interval (percentile method).

    Args:
        strata: per task the scores of its runs, [runs, ...]; every resample keeps the number of runs of each.
        statistic: pooled runs [runs, ...] -> array.
    """
    from rliable import library  # takes seconds to import, and writers of rows do not need it

    if min(map(len, strata)) < 2:
        return Estimate(statistic(np.concatenate(strata)))
    state = np.random.get_state()
    np.random.seed(BOOTSTRAP_SEED)  # rliable 1.2 draws from numpy's global state and ignores its argument random_state
    try:
        point, bounds = library.get_interval_estimates(
            {"": [s[:, None] for s in strata]}, lambda *s: np.atleast_1d(statistic(np.concatenate(s)[:, 0])), reps=REPS)
    finally:
        np.random.set_state(state)
    scalar = np.ndim(statistic(np.concatenate(strata))) == 0
    return Estimate(*(array[0] if scalar else array for array in (point[""], *bounds[""])))


def normalised(table: Table) -> tuple[dict[str, list[np.ndarray]], list[str]]:
    """Scores (return - floor) / (best run - floor), and the tasks left out because no run is above the floor.

    The floor is the return of random actions, else the lowest run of the task. Only rows with runs on every task
    that is scored appear: a mean over fewer tasks is another quantity.
    """
    scores: dict[str, dict[str, np.ndarray]] = {}
    tasks, rows = table.shown
    for task in tasks:
        runs = {row: table.cells[task, row].finals for row in rows if (task, row) in table.cells}
        every = np.concatenate(list(runs.values())) if runs else np.zeros(1)
        floor = table.info.random.get(task, every.min())
        if every.max() > floor:
            scores[task] = {row: (final - floor) / (every.max() - floor) for row, final in runs.items()}
    whole = [row for row in rows if scores and all(row in by_row for by_row in scores.values())]
    return {row: [s[row] for s in scores.values()] for row in whole}, [t for t in tasks if t not in scores]


@dataclass(frozen=True)
class Summary:
    """The numbers of one table: an estimate per (task, row) and per row over tasks, the bold row of a task."""

    table: Table
    cells: dict[tuple[str, str], Estimate]
    aggregate: dict[str, Estimate]
    scores: dict[str, list[np.ndarray]]
    left_out: list[str]
    bold: dict[str, str]


def summarise(table: Table) -> Summary:
    """Estimates of every cell and of the normalised scores over tasks."""
    cells = {key: bootstrap([cell.finals]) for key, cell in table.cells.items()}
    scores, left_out = normalised(table)
    bold = {task: row for task in table.tasks if (row := best_row(table, task, cells))}
    return Summary(table, cells, {row: bootstrap(s) for row, s in scores.items()}, scores, left_out, bold)


def best_row(table: Table, task: str, cells: dict[tuple[str, str], Estimate]) -> str | None:
    """The row to print in bold: complete, and its interval does not overlap the runner-up's."""
    order = sorted((row for row in table.rows if (task, row) in cells), key=lambda row: -cells[task, row].value)[:2]
    if len(order) < 2 or min(len(table.cells[task, row].runs) for row in order) < BOLD_SEEDS:
        return None
    clear = cells[task, order[0]].low > cells[task, order[1]].high and not table.cells[task, order[0]].incomplete
    return order[0] if clear else None


def markdown(summaries: Sequence[Summary], figures: bool = True) -> str:
    """results/README.md as text; ``figures`` links the pictures that stand beside each table."""
    lines = ["# Results", "", "Written by `python -m suite.report` from CSV files; do not edit.", "", page.READING]
    for summary in summaries:
        table, (tasks, rows) = summary.table, summary.table.shown
        lines += ["", f"## {page.mark(table.info.title)}", ""]
        lines += [f"| {' | '.join(['task', *map(page.mark, rows)])} |", "|:--|" + "--:|" * len(rows)]
        for task in [*tasks, None] if len(tasks) > 1 else tasks:
            cells = [_cell(summary, task, row) for row in rows]
            lines.append(f"| {' | '.join([page.mark(task or page.AGGREGATE), *cells])} |")
        lines += ["", *(f"- {label}: " + (f"`{text}`" if label == "Command" else page.mark(text))
                        for label, text in page.facts(summary))]
        for name, there in (("curves", table.cells), ("profile", len(summary.scores) > 1)):
            if there and figures:
                lines += ["", f"![{page.mark(table.info.title)}: {name}]({table.name}/{name}.png)"]
    return "\n".join(lines) + "\n"


def _cell(summary: Summary, task: str | None, row: str) -> str:
    value, *rest = page.cell_text(summary, task, row)
    value = f"**{value}**" if row == summary.bold.get(task) else value
    return "; ".join([" ".join([value, *rest]), *page.published_text(summary, task, row)])


def write_report(results: Path) -> list[Path]:
    """Write README.md, index.html and the figures of every table; returns their paths."""
    from suite import figures  # matplotlib, which writers of rows do not need

    summaries = [summarise(table) for table in read_results(results)]
    drawings = figures.draw(summaries)
    texts = {results / "README.md": markdown(summaries), results / "index.html": page.html(summaries, drawings)}
    for path, text in texts.items():
        path.write_text(text, encoding="utf-8")
    return [*texts, *(path for drawing in drawings for path in drawing.paths)]


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line; a user's mistake ends it with one line."""
    parser = argparse.ArgumentParser(prog="python -m suite.report", description="Tables and figures of results.")
    parser.add_argument("results", nargs="?", type=Path, default=Path("results"), help="folder of tables")
    parser.add_argument("--tables", nargs="+", help="only print the Markdown of these tables, write nothing")
    options = parser.parse_args(arguments)
    try:
        if options.tables:
            print(markdown([*map(summarise, read_results(options.results, options.tables))], figures=False), end="")
        else:
            print("\n".join(map(str, write_report(options.results))))
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    from suite import report  # the figures import this module by name: run that one, not a second copy

    report.main()
