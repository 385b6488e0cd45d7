"""Small result folders for tests of what reads them."""

import json

from suite import results
from suite.results import Evaluation

INFO = {"title": "A table", "command": "python -m recipes.benchmark a", "hardware": "CPU", "mode": "sampled",
        "frames": 100}


def run(seed, final, *, frames=(0, 100), greedy=float("nan"), seconds=60.0, commit="abc"):
    """Evaluations of one seed that rise linearly to ``final``."""
    return [Evaluation(seed, f, seconds * f / frames[-1], final * f / frames[-1], greedy, 10, 5.0, commit)
            for f in frames]


def write(folder, cells, table="a", **info):
    """Files of a table: {(row, task): final returns by seed}."""
    for (row, task), finals in cells.items():
        lines = [line for seed, final in enumerate(finals) for line in run(seed, final)]
        results.append_rows(folder, table, row, task, lines)
    (folder / table).mkdir(parents=True, exist_ok=True)
    (folder / table / "table.json").write_text(json.dumps(INFO | info))
    return folder


def table_of(folder):
    (table,) = results.read_results(folder)
    return table
