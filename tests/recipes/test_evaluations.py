"""How what a run logged becomes rows of results, and which commit they name."""

import json
import math

import pytest

from recipes.evaluations import evaluations
from suite.results import Evaluation

RECORD = {"config": {"eval_episodes": 16}, "processes": 1, "versions": {}, "commit": "abc", "command": ""}


def measured(folder, **record):
    """The folder of a run with evaluations at frames 0 and 40: a file for each scalar."""
    scalars = folder / "metrics" / "scalars"
    written = {"eval/return": (1.0, 2.0), "eval/return_greedy": (1.5, 2.5), "eval/length": (7.0, 6.0),
               "eval/success": (0.25, 0.5), "eval/success_sampled": (0.125, 0.75), "time/total": (None, 9.04)}
    (folder / "config.json").write_text(json.dumps(RECORD | record))
    for name, values in written.items():
        path = scalars / f"{name}.csv"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("".join(f"{frames},{value}\n" for frames, value in zip((0, 40), values, strict=True)
                                if value is not None))
    return scalars


def test_what_a_run_evaluated_becomes_result_rows_and_what_it_did_not_is_nan(tmp_path):
    scalars = measured(tmp_path)
    assert evaluations(tmp_path, 3) == [Evaluation(3, 0, 0.0, 1.0, 1.5, 16, 7.0, "abc", 0.25, 0.125),
                                        Evaluation(3, 40, 9.0, 2.0, 2.5, 16, 6.0, "abc", 0.5, 0.75)]
    for name in ("success", "success_sampled"):
        (scalars / "eval" / f"{name}.csv").unlink()
    assert all(math.isnan(value) for line in evaluations(tmp_path, 3) for value in line[-2:])


def test_an_evaluation_in_which_the_run_was_killed_is_left_out(tmp_path):
    scalars = measured(tmp_path)
    for name, text in (("return", "80,3.0\n"), ("return_greedy", "80,3")):
        with open(scalars / "eval" / f"{name}.csv", "a") as file:
            file.write(text)
    assert [row.frames for row in evaluations(tmp_path, 3)] == [0, 40]


@pytest.mark.parametrize("resumed, commits", [
    ([(20, "def")], ["abc", "def"]),
    ([(40, "def")], ["abc", "abc"]),  # the row of its checkpoint was there
    ([(0, "def")], ["def", "def"]),  # begun again: the first evaluation too
    ([(30, "def"), (20, "fed")], ["abc", "fed"]),  # the newest checkpoint was broken
    ([(0, "def"), (20, "fed"), (60, "late")], ["def", "fed"]),
], ids=str)
def test_a_row_names_the_commit_that_measured_it(resumed, commits, tmp_path):
    measured(tmp_path, resumed=[{"frames": frames, "commit": commit} for frames, commit in resumed])
    assert [row.commit for row in evaluations(tmp_path, 1)] == commits
