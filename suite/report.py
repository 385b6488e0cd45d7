"""Results folder -> tables, intervals, curves, one HTML page: ``python -m suite.report [results]``.

``results/<table>/<row>__<task with '/' as '.'>.csv`` holds one line per evaluation (see `Evaluation`), and
``results/<table>/table.json`` describes the table (see `Info`). Both are only parsed, never executed. A line whose
frames do not exceed its seed's previous line means that the run was resumed or repeated from there: it replaces the
lines of that seed at or beyond it. The last line of a seed is its final policy.
"""

from __future__ import annotations

import argparse
import csv
import fcntl
import json
import math
import re
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import MISSING, dataclass, field, fields
from pathlib import Path
from typing import Any, NamedTuple, get_type_hints

import numpy as np

from suite import page

REPS = 2000  # bootstrap resamples
BOOTSTRAP_SEED = 0
BOLD_SEEDS = 3  # by chance alone the intervals of 2 against 2 seeds are disjoint one time in three
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_+=.-]*")
TASK = re.compile(r"[A-Za-z0-9][A-Za-z0-9_+=-]*(/[A-Za-z0-9][A-Za-z0-9_+=-]*)*")
MODES = ("sampled", "greedy")


class Evaluation(NamedTuple):
    """One line of a CSV file: fresh episodes of the policy of one seed after that many frames.

    ``seconds`` is the run's wall time, ``length`` the mean episode length; a return that not measured is nan.
    """

    seed: int
    frames: int
    seconds: float
    return_sampled: float
    return_greedy: float
    episodes: int
    length: float
    commit: str


KINDS = get_type_hints(Evaluation)


@dataclass(frozen=True)
class Info:
    """What table.json says; ``rows`` and ``tasks`` fix the order and name planned cells, both may be left out.

    ``cell_command`` is the command of one cell, in which {row} and {task} are replaced; without it ``command`` stands.
    """

    title: str
    command: str
    hardware: str
    mode: str
    frames: int | dict[str, int]
    notes: list[str] = field(default_factory=list)
    versions: dict[str, str] = field(default_factory=dict)
    reference: dict[str, dict[str, dict]] = field(default_factory=dict)
    random: dict[str, float] = field(default_factory=dict)
    rows: list[str] = field(default_factory=list)
    tasks: list[str] = field(default_factory=list)
    cell_command: str = ""


@dataclass(frozen=True)
class Cell:
    """The runs of one row on one task: {seed: evaluations by frames}; ``superseded`` lines were replaced."""

    runs: dict[int, list[Evaluation]]
    mode: str
    target: int
    superseded: int = 0

    def series(self, seed: int) -> tuple[np.ndarray, np.ndarray]:
        """Frames and returns of one seed."""
        return tuple(np.array([getattr(line, key) for line in self.runs[seed]], float)
                     for key in ("frames", f"return_{self.mode}"))

    @property
    def finals(self) -> np.ndarray:
        """Return of the final policy of every seed, [seeds]."""
        return np.array([self.series(seed)[1][-1] for seed in self.runs])

    @property
    def incomplete(self) -> dict[int, int]:
        """{seed: frames reached} of the runs that ended below the target."""
        return {seed: rows[-1].frames for seed, rows in self.runs.items() if rows[-1].frames < self.target}


@dataclass(frozen=True)
class Table:
    """One folder of results; a cell without runs is absent from ``cells``."""

    name: str
    folder: Path
    info: Info
    tasks: list[str]
    rows: list[str]
    cells: dict[tuple[str, str], Cell]

    def path(self, task: str, row: str, ending: str) -> Path:
        """File of one cell."""
        return self.folder / f"{file_name(row, task)}.{ending}"

    def command(self, task: str, row: str) -> str:
        """The command that reproduces one cell."""
        return (self.info.cell_command or self.info.command).replace("{row}", row).replace("{task}", task)


class Estimate(NamedTuple):
    """A statistic with its 95 % interval; bounds are None where a stratum has a single run."""

    value: Any
    low: Any = None
    high: Any = None


def file_name(row: str, task: str) -> str:
    """``<row>__<task>`` without ending, '/' as '.'; names that could not be read back are refused."""
    if not NAME.fullmatch(row) or "__" in row or row.endswith("_"):
        raise ValueError(f"row name {row!r}: letters, digits and _ + = . - are allowed, without '__' or '_' at the end")
    if not TASK.fullmatch(task):
        raise ValueError(f"task name {task!r}: letters, digits and _ + = - are allowed in its parts, joined by '/'")
    return f"{row}__{task.replace('/', '.')}"


def append_rows(results: Path | str, table: str, row: str, task: str, rows: Iterable[Evaluation]) -> Path:
    """Append evaluations to the CSV file of a cell, which is created with its header; safe between processes."""
    if not NAME.fullmatch(table):
        raise ValueError(f"table name {table!r}: letters, digits and _ + = . - are allowed")
    path = Path(results) / table / f"{file_name(row, task)}.csv"
    lines = [[str(value) for value in evaluation] for evaluation in rows]
    for line in lines:
        _parse(line, f"a new line for {path.name}")
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a+", newline="", encoding="utf-8") as file:
        fcntl.flock(file, fcntl.LOCK_EX)  # seeds run in parallel write to the same file
        writer = csv.writer(file, lineterminator="\n")
        if not path.stat().st_size:
            writer.writerow(Evaluation._fields)
        writer.writerows(lines)
        file.flush()
    return path


def _parse(values: Sequence[str], where: str) -> Evaluation:
    if len(values) != len(KINDS):
        raise ValueError(f"{where}: {len(values)} values, expected {len(KINDS)}: {', '.join(KINDS)}")
    out: list[Any] = []
    for (name, kind), text in zip(KINDS.items(), values, strict=True):
        try:
            value = kind(text)
            signed = name.startswith("return")
            fine = text.isprintable() if kind is str else abs(value) < math.inf or (signed and math.isnan(value))
            if not fine or (kind is not str and not signed and value < 0):
                raise ValueError
        except ValueError:
            expected = {int: "an integer >= 0", float: "a finite number (or nan, in a return)", str: "one line"}
            raise ValueError(f"{where}: {name} is {text!r}, expected {expected[kind]}") from None
        out.append(value)
    return Evaluation(*out)


def read_cell(path: Path, mode: str, target: int) -> Cell:
    """The runs of one CSV file; a malformed line is a ValueError that names file and line."""
    try:
        lines = list(csv.reader(path.read_text(encoding="utf-8").splitlines(), strict=True))
    except (UnicodeDecodeError, csv.Error) as error:
        raise ValueError(f"{path}: not a CSV file in UTF-8: {error}") from None
    if not lines or tuple(lines[0]) != Evaluation._fields:
        raise ValueError(f"{path}:1: header is {','.join(lines[0]) if lines else ''!r}, expected "
                         f"{','.join(Evaluation._fields)!r}")
    runs: dict[int, list[Evaluation]] = {}
    for number, values in enumerate(lines[1:], start=2):
        row = _parse(values, f"{path}:{number}")
        if math.isnan(getattr(row, f"return_{mode}")):
            raise ValueError(f"{path}:{number}: return_{mode} is not measured, but table.json shows mode {mode!r}")
        runs[row.seed] = [*(r for r in runs.get(row.seed, []) if r.frames < row.frames), row]
    kept = sum(map(len, runs.values()))
    return Cell(dict(sorted(runs.items())), mode, target, superseded=len(lines) - 1 - kept)


def _all(kind: type, check: Callable[[Any], bool]) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, kind) and all(map(check, value.values() if kind is dict else value))


def _text(value: Any) -> bool:
    return isinstance(value, str)


def _number(value: Any) -> bool:
    return type(value) in (int, float) and math.isfinite(value)


def _source(value: Any) -> bool:
    known = type(value) is dict and set(value) == {"value", "source"}
    return known and _number(value["value"]) and _text(value["source"])


CHECKS: dict[str, Callable[[Any], bool]] = {
    **dict.fromkeys(("title", "command", "hardware", "cell_command"), _text),
    **dict.fromkeys(("notes", "rows", "tasks"), _all(list, _text)),
    "mode": lambda value: value in MODES,
    "frames": lambda value: _all(dict, lambda n: type(n) is int and n > 0)(
        value if type(value) is dict else {"": value}),
    "versions": _all(dict, _text), "random": _all(dict, _number), "reference": _all(dict, _all(dict, _source)),
}


def read_info(path: Path) -> Info:
    """table.json, checked: unknown or missing keys and wrong types are a ValueError that says what is allowed."""
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path}: not JSON: {error}") from None
    if not isinstance(data, dict) or (unknown := sorted(set(data) - set(CHECKS))):
        raise ValueError(f"{path}: {unknown if isinstance(data, dict) else data!r}, expected keys of {sorted(CHECKS)}")
    if missing := [f.name for f in fields(Info) if f.default is MISSING is f.default_factory and f.name not in data]:
        raise ValueError(f"{path}: keys {missing} are missing")
    for key, value in data.items():
        if not CHECKS[key](value):
            allowed = f"one of {MODES}" if key == "mode" else Info.__annotations__[key]
            raise ValueError(f"{path}: {key} is {value!r}, expected {allowed} (finite numbers; frames > 0)")
    return Info(**data)


def read_table(folder: Path) -> Table:
    """One table folder; tasks and rows in the order of table.json, then those only found as files."""
    info = read_info(folder / "table.json")
    names = {}
    for path in sorted(folder.glob("*.csv")):
        row, _, task = path.stem.partition("__")
        names[task.replace(".", "/"), row] = path
    tasks = list(dict.fromkeys([*info.tasks, *sorted(task for task, _ in names)]))
    rows = list(dict.fromkeys([*info.rows, *sorted(row for _, row in names)]))
    try:
        for task, row in [*names, *((task, row) for task in info.tasks for row in info.rows)]:
            file_name(row, task)
    except ValueError as error:
        raise ValueError(f"{names.get((task, row), folder / 'table.json')}: <row>__<task>.csv: {error}") from None
    # with planned tasks known, a name that is none of them is a typing error that would change the normalisation
    if info.tasks and (lost := sorted({*info.random, *info.reference} - set(tasks))):
        raise ValueError(f"{folder / 'table.json'}: random or reference names {lost}, but the tasks are {tasks}")
    target = info.frames if isinstance(info.frames, dict) else dict.fromkeys(tasks, info.frames)
    if lost := [task for task in tasks if task not in target]:
        raise ValueError(f"{folder / 'table.json'}: frames has no target for {lost}, only for {sorted(target)}")
    cells = {key: read_cell(path, info.mode, target[key[0]]) for key, path in names.items()}
    return Table(folder.name, folder, info, tasks, rows, {key: cell for key, cell in cells.items() if cell.runs})


def read_results(results: Path | str, only: Sequence[str] | None = None) -> list[Table]:
    """The tables of a results folder in order of name, or those named."""
    results = Path(results)
    if not results.is_dir():
        raise ValueError(f"no folder {str(results)!r}; expected <results>/<table>/table.json")
    folders = {p.name: p for p in sorted(results.iterdir()) if any(p.glob("*.csv")) or (p / "table.json").exists()}
    if bare := [str(path) for path in folders.values() if not (path / "table.json").exists()]:
        raise ValueError(f"{bare[0]} has CSV files but no table.json")
    if unknown := [name for name in only or () if name not in folders]:
        raise ValueError(f"unknown table {unknown[0]!r}; choose from {sorted(folders)}")
    if not folders:
        raise ValueError(f"no tables in {str(results)!r}; expected <results>/<table>/table.json")
    return [read_table(path) for name, path in folders.items() if not only or name in only]


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
    for task in table.tasks:
        runs = {row: table.cells[task, row].finals for row in table.rows if (task, row) in table.cells}
        every = np.concatenate(list(runs.values())) if runs else np.zeros(1)
        floor = table.info.random.get(task, every.min())
        if every.max() > floor:
            scores[task] = {row: (final - floor) / (every.max() - floor) for row, final in runs.items()}
    whole = [row for row in table.rows if scores and all(row in by_row for by_row in scores.values())]
    return {row: [s[row] for s in scores.values()] for row in whole}, [t for t in table.tasks if t not in scores]


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
        table = summary.table
        lines += ["", f"## {page.mark(table.info.title)}", ""]
        lines += [f"| {' | '.join(['task', *map(page.mark, table.rows)])} |", "|:--|" + "--:|" * len(table.rows)]
        for task in [*table.tasks, None] if len(table.tasks) > 1 else table.tasks:
            texts = [page.cell_text(summary, task, row) for row in table.rows]
            for row, text in zip(table.rows, texts, strict=True):
                text[0] = f"**{text[0]}**" if row == summary.bold.get(task) else text[0]
            lines.append(f"| {' | '.join([page.mark(task or page.AGGREGATE), *map(' '.join, texts)])} |")
        lines += ["", *(f"- {label}: " + (f"`{text}`" if label == "Command" else page.mark(text))
                        for label, text in page.facts(summary))]
        for name, there in (("curves", table.cells), ("profile", summary.scores)):
            if there and figures:
                lines += ["", f"![{page.mark(table.info.title)}: {name}]({table.name}/{name}.png)"]
    return "\n".join(lines) + "\n"


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
