"""Runs what is missing of a published table, here or on a Ray cluster.

    python -m recipes.benchmark cooperative --seeds 3 --jobs 2
    python -m suite.report results

A cell is finished when its CSV file holds the final evaluation of a seed; the launcher skips it, resumes what was
interrupted, and starts the rest.
"""

from __future__ import annotations

import csv
import json
import os
import platform
import sys
from pathlib import Path

import tyro

from recipes.jobs import Job, random_return
from recipes.launchers import LAUNCHERS
from recipes.tables import TABLES
from suite.config import check_choice, check_positive, run_cli
from suite.run import versions, write_whole


def write_info(name: str, results: str, seeds: int, *, measures: bool = True) -> None:
    """table.json: what the report says around the numbers; what was measured before is kept.

    Args:
        seeds: asked for now; the command names those that the results hold, if they are more.
        measures: runs follow, here and with these versions, which are then listed beside those of earlier ones.
    """
    table = TABLES[name]
    path = Path(results) / name / "table.json"
    before = json.loads(path.read_text()) if path.exists() else {}
    known = before.get("random", {})
    seeds = max(seeds, seeds_held(path.parent))
    hardware, libraries = before.get("hardware", ""), before.get("versions", {})
    if measures or not before:
        hardware = merged(hardware, f"{os.cpu_count()} CPU cores, {platform.machine()}, one core per run", "; ")
        libraries |= {key: merged(libraries.get(key, ""), value, " and ") for key, value in versions().items()}
    rows = " | ".join(f"{row}: {' '.join(flags)}" for row, flags in table.rows.items())
    info = {
        "title": table.title,
        "command": f"python -m recipes.benchmark {name} --seeds {seeds}",
        "cell_command": f"python -m recipes.benchmark {name} --rows {{row}} --tasks {{task}} --seeds {seeds}",
        "notes": [*table.notes, f"Flags of the rows: {rows}."],
        "hardware": hardware,
        "versions": libraries,
        "mode": table.mode,
        "last": table.last,
        "frames": table.frames,
        "rows": list(table.rows),
        "tasks": list(table.tasks),
        "reference": table.reference,
        "random": {task: known[task] if task in known else random_return(name, task) for task in table.tasks},
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, json.dumps(info, indent=2) + "\n")


def merged(before: str, now: str, separator: str) -> str:
    """What was said before, with what is to be said now unless it is among it."""
    return before if now in before.split(separator) else separator.join(filter(None, (before, now)))


def seeds_held(folder: Path) -> int:
    """The highest seed that a table's CSV files hold, 0 if they hold none."""
    seeds = (row["seed"] for path in folder.glob("*.csv") for row in csv.DictReader(path.read_text().splitlines()))
    return max(map(int, seeds), default=0)


def benchmark(table: tyro.conf.Positional[str], *, seeds: int = 3, jobs: int = 1, launcher: str = "local",
              rows: tuple[str, ...] = (), tasks: tuple[str, ...] = (), runs: str = "runs/benchmark",
              results: str = "results") -> None:
    """Run what is missing of a table; SystemExit with 1 if something still is.

    Args:
        table: name of the table.
        seeds: seeds 1 to this number.
        jobs: runs at a time.
        launcher: local or ray.
        rows: only these rows.
        tasks: only these tasks.
        runs: folder of the run folders.
        results: folder of the results.
    """
    check_choice("table", table, TABLES)
    check_choice("launcher", launcher, LAUNCHERS)
    for what, chosen, allowed in (("row", rows, TABLES[table].rows), ("task", tasks, TABLES[table].tasks)):
        for name in chosen:
            check_choice(f"{what} of table {table!r}", name, allowed)
    check_positive({"seeds": seeds, "jobs": jobs})
    todo = [Job(table, row, task, seed, runs, results) for seed in range(1, seeds + 1)
            for task in (tasks or TABLES[table].tasks) for row in (rows or TABLES[table].rows)
            if TABLES[table].has(row, task)]
    if not todo:
        raise ValueError(f"table {table!r} has none of the rows {list(rows)} on {list(tasks)}: they exist on "
                         f"{sorted({task for row in rows for task in TABLES[table].only.get(row, ())})}")
    todo = [job for job in todo if not job.finished()]
    write_info(table, results, seeds, measures=bool(todo))
    print(f"{len(todo)} runs to do")
    if missing := [outcome.message for outcome in LAUNCHERS[launcher](todo, jobs) if not outcome.done]:
        print("\n".join([f"error: {len(missing)} of {len(todo)} runs are not finished:", *missing]), file=sys.stderr)
        raise SystemExit(1)


if __name__ == "__main__":
    run_cli(lambda: tyro.cli(benchmark, prog="python -m recipes.benchmark"))
