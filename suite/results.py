"""Result files: what stands in them, appending to them, reading them back.

``results/<table>/<row>__<task>.csv`` (the task's '/' as '.' and its '.' as '~') holds one line per evaluation (see
`Evaluation`), and ``results/<table>/table.json`` describes the table (see `Info`). Both are only parsed, never
executed. A line whose frames do not exceed its seed's previous line means that the run was resumed or repeated from
there: it replaces the lines of that seed at or beyond it. The last line of a seed is its final policy.
"""

from __future__ import annotations

import csv
import fcntl
import json
import math
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import MISSING, dataclass, field, fields
from pathlib import Path
from typing import Any, NamedTuple, get_type_hints

import numpy as np

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_+=.-]*")
TASK = re.compile(r"[A-Za-z0-9][A-Za-z0-9_+=.-]*(/[A-Za-z0-9][A-Za-z0-9_+=.-]*)*")
COLUMNS = {"sampled": "return_sampled", "greedy": "return_greedy", "success": "success",
           "success_sampled": "success_sampled"}  # what a table's mode shows
MODES = tuple(COLUMNS)


class Evaluation(NamedTuple):
    """One line of a CSV file: fresh episodes of the policy of one seed after that many frames.

    ``seconds`` is the run's wall time, ``length`` the mean episode length, ``success`` and ``success_sampled`` the
    shares of greedy and of sampled episodes that reached the task's goal, columns that only tasks with one have, the
    second only policies that sample; what of these and of the returns is not measured is nan.
    """

    seed: int
    frames: int
    seconds: float
    return_sampled: float
    return_greedy: float
    episodes: int
    length: float
    commit: str
    success: float = math.nan
    success_sampled: float = math.nan


KINDS = get_type_hints(Evaluation)
HEADERS = Evaluation._fields[:-2], Evaluation._fields[:-1], Evaluation._fields  # without success, with one, with both


@dataclass(frozen=True)
class Info:
    """What table.json says; ``rows`` and ``tasks`` fix the order and name planned cells, both may be left out.

    ``cell_command`` is the command of one cell, in which {row} and {task} are replaced; without it ``command`` stands.
    ``mode`` is what is shown, one of `MODES`, or one for each task. ``last``: a run's score is the mean of that many
    last evaluations.
    """

    title: str
    command: str
    hardware: str
    mode: str | dict[str, str]
    frames: int | dict[str, int]
    notes: list[str] = field(default_factory=list)
    versions: dict[str, str] = field(default_factory=dict)
    reference: dict[str, dict[str, dict]] = field(default_factory=dict)
    random: dict[str, float] = field(default_factory=dict)
    rows: list[str] = field(default_factory=list)
    tasks: list[str] = field(default_factory=list)
    cell_command: str = ""
    last: int = 1

    def mode_of(self, task: str) -> str:
        """What is shown of a task."""
        return self.mode[task] if isinstance(self.mode, dict) else self.mode


@dataclass(frozen=True)
class Cell:
    """The runs of one row on one task: {seed: evaluations by frames}; ``superseded`` lines were replaced.

    ``last``: see `Info`.
    """

    runs: dict[int, list[Evaluation]]
    mode: str
    target: int
    superseded: int = 0
    last: int = 1

    def series(self, seed: int) -> tuple[np.ndarray, np.ndarray]:
        """Frames and returns (or successes, as the mode says) of one seed."""
        return tuple(np.array([getattr(line, key) for line in self.runs[seed]], float)
                     for key in ("frames", COLUMNS[self.mode]))

    @property
    def finals(self) -> np.ndarray:
        """Return (or success) of the final policy, or mean of the last few, of every seed, [seeds]."""
        return np.array([self.series(seed)[1][-self.last:].mean() for seed in self.runs])

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

    @property
    def shown(self) -> tuple[list[str], list[str]]:
        """Tasks and rows with a run: the lines and columns to print; all that are planned if there is none yet."""
        tasks, rows = ({key[k] for key in self.cells} for k in range(2)) if self.cells else (self.tasks, self.rows)
        return [task for task in self.tasks if task in tasks], [row for row in self.rows if row in rows]

    def path(self, task: str, row: str, ending: str) -> Path:
        """File of one cell."""
        return self.folder / f"{file_name(row, task)}.{ending}"

    def command(self, task: str, row: str) -> str:
        """The command that reproduces one cell."""
        return (self.info.cell_command or self.info.command).replace("{row}", row).replace("{task}", task)


def file_name(row: str, task: str) -> str:
    """``<row>__<task>`` without ending, '/' as '.' and '.' as '~'; names that could not be read back are refused."""
    if not NAME.fullmatch(row) or "__" in row or row.endswith("_"):
        raise ValueError(f"row name {row!r}: letters, digits and _ + = . - are allowed, without '__' or '_' at the end")
    if not TASK.fullmatch(task):
        raise ValueError(f"task name {task!r}: letters, digits and _ + = . - are allowed in its parts, joined by '/'")
    return f"{row}__{task.replace('.', '~').replace('/', '.')}"


def names_of(stem: str) -> tuple[str, str]:
    """Task and row of a `file_name`."""
    row, _, task = stem.partition("__")
    return task.replace(".", "/").replace("~", "."), row


def append_rows(results: Path | str, table: str, row: str, task: str, rows: Iterable[Evaluation]) -> Path:
    """Append evaluations to the CSV file of a cell, which is created with its header; safe between processes.

    A file keeps its columns: if it has none for sampled successes, they are left out.

    Raises:
        ValueError: a name, a number, or a success for a file that has no column for it.
    """
    if not NAME.fullmatch(table):
        raise ValueError(f"table name {table!r}: letters, digits and _ + = . - are allowed")
    path = Path(results) / table / f"{file_name(row, task)}.csv"
    lines = [[str(value) for value in _complete(evaluation)] for evaluation in rows]
    for line in lines:
        _parse(line, f"a new line for {path.name}")
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a+", newline="", encoding="utf-8") as file:
        fcntl.flock(file, fcntl.LOCK_EX)  # seeds run in parallel write to the same file
        writer = csv.writer(file, lineterminator="\n")
        width = max((k + 1 for line in lines for k, text in enumerate(line) if text != "nan"), default=0)
        if path.stat().st_size:
            file.seek(0)
            header = tuple(next(csv.reader(file)))
            if width > len(HEADERS[0]) == len(header):
                raise ValueError(f"{path} has no column for the success of the new lines")
        else:
            header = next(header for header in HEADERS if len(header) >= width)
            writer.writerow(header)
        writer.writerows(line[:len(header)] for line in lines)
        file.flush()
    return path


def _complete(values: Sequence) -> Sequence:
    """With ``nan`` as successes if these alone are missing."""
    missing = len(KINDS) - len(values)
    return [*values, *[math.nan] * missing] if missing <= len(KINDS) - len(HEADERS[0]) else values


def _parse(values: Sequence[str], where: str) -> Evaluation:
    if len(values) != len(KINDS):
        raise ValueError(f"{where}: {len(values)} values, expected {', '.join(HEADERS[0])}, and success and "
                         f"success_sampled if measured")
    out: list[Any] = []
    for (name, kind), text in zip(KINDS.items(), values, strict=True):
        try:
            value = kind(text)
            optional, signed = name in COLUMNS.values(), name.startswith("return")
            fine = text.isprintable() if kind is str else abs(value) < math.inf or (optional and math.isnan(value))
            if not fine or (kind is not str and not signed and value < 0):
                raise ValueError
        except ValueError:
            expected = {int: "an integer >= 0", float: "a finite number (or nan, in a return or success)",
                        str: "one line"}
            raise ValueError(f"{where}: {name} is {text!r}, expected {expected[kind]}") from None
        out.append(math.nan if value != value else value)  # one object, so that equal lines compare equal
    return Evaluation(*out)


def read_cell(path: Path, mode: str, target: int, last: int = 1) -> Cell:
    """The runs of one CSV file; a malformed line is a ValueError that names file and line."""
    try:
        lines = list(csv.reader(path.read_text(encoding="utf-8").splitlines(), strict=True))
    except (UnicodeDecodeError, csv.Error) as error:
        raise ValueError(f"{path}: not a CSV file in UTF-8: {error}") from None
    if not lines or tuple(lines[0]) not in HEADERS:
        raise ValueError(f"{path}:1: header is {','.join(lines[0]) if lines else ''!r}, expected "
                         f"{','.join(HEADERS[0])!r}, with success and success_sampled behind it or not")
    runs: dict[int, list[Evaluation]] = {}
    for number, values in enumerate(lines[1:], start=2):
        if len(values) != len(lines[0]):
            raise ValueError(f"{path}:{number}: {len(values)} values, expected {len(lines[0])}: {', '.join(lines[0])}")
        row = _parse([str(value) for value in _complete(values)], f"{path}:{number}")
        if math.isnan(getattr(row, COLUMNS[mode])):
            raise ValueError(f"{path}:{number}: {COLUMNS[mode]} is not measured, but table.json shows mode {mode!r}")
        runs[row.seed] = [*(r for r in runs.get(row.seed, []) if r.frames < row.frames), row]
    kept = sum(map(len, runs.values()))
    return Cell(dict(sorted(runs.items())), mode, target, superseded=len(lines) - 1 - kept, last=last)


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
    "mode": lambda value: _all(dict, lambda mode: mode in MODES)(value if type(value) is dict else {"": value}),
    "last": lambda value: type(value) is int and value > 0,
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
    names = {names_of(path.stem): path for path in sorted(folder.glob("*.csv"))}
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
    if isinstance(info.mode, dict) and (lost := [task for task in tasks if task not in info.mode]):
        raise ValueError(f"{folder / 'table.json'}: mode says nothing of {lost}, only of {sorted(info.mode)}")
    cells = {key: read_cell(path, info.mode_of(key[0]), target[key[0]], info.last) for key, path in names.items()}
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
