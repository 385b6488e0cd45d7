"""Every cell of every table is a command line that its recipe reads."""

from importlib import import_module

import pytest

from recipes.tables import TABLES
from suite.config import parse_cli
from suite.results import file_name, names_of

CELLS = [(name, row, task) for name, table in TABLES.items() for row in table.rows for task in table.tasks
         if table.has(row, task)]


@pytest.mark.parametrize("name, row, task", CELLS)
def test_the_flags_of_a_cell(name, row, task):
    table = TABLES[name]
    recipe = import_module(table.recipe_of(row))
    cfg = parse_cli(recipe.configure, recipe.Config, choosers=recipe.CHOOSERS, prog="", args=table.flags(row, task))
    assert (cfg.task, cfg.frames, cfg.evaluations) == (task, table.frames_of(task), table.evaluations)
    assert names_of(file_name(row, task)) == (task, row)


def test_published_numbers_are_of_cells_that_exist():
    for table in TABLES.values():
        for task, by_row in table.reference.items():
            assert all(table.has(row, task) and row in table.rows for row in by_row) and task in table.tasks
    assert TABLES["hybrid"].reference["hybrid/platform"]["HyAR-TD3"]["value"] == 0.98
    assert "PPO" not in TABLES["hybrid"].reference["hybrid/goal"]
