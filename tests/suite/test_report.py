"""Reading, statistics against hand-computed values, Markdown, and the command line."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from suite import report, results
from tests.tables import run, table_of, write

ROOT = Path(__file__).resolve().parents[2]


# ---- statistics


@pytest.mark.parametrize(("scores", "expected"), [
    ([5], 5), ([1, 2], 1.5), ([1, 2, 6], 3),            # fewer than 4: nothing is cut, the plain mean
    ([0, 2, 4, 100], 3), ([0, 1, 2, 6, 100], 3),        # 4 and 5: one is cut at either end
    ([100, 4, 0, 2, 0, -50, 3, 9], 2.25),               # 8: two at either end leave 0, 2, 3, 4
])
def test_iqm_by_hand(scores, expected):
    assert report.iqm(np.array(scores, float)) == pytest.approx(expected)


def test_iqm_is_rliables():
    from rliable import metrics
    for n in range(1, 14):
        scores = np.random.default_rng(n).normal(size=n)
        assert report.iqm(scores) == pytest.approx(metrics.aggregate_iqm(scores[:, None]))


def test_bootstrap_of_constant_runs_is_a_point_and_of_one_run_has_no_interval():
    assert report.bootstrap([np.full(5, 2.0)]) == (2, 2, 2)
    assert report.bootstrap([np.array([2.0])]) == (2, None, None)
    assert report.bootstrap([np.array([0.0, 1.0]), np.array([3.0])]).low is None


def test_bootstrap_interval_by_hand():
    # two runs 0 and 1: the mean of a resample is 0, 1/2, 1 with probability 1/4, 1/2, 1/4
    assert report.bootstrap([np.array([0.0, 1.0])]) == (0.5, 0, 1)
    # three runs 0, 0, 3: the mean exceeds 2 only for three times 3 (1/27 > 2.5 %), and is 0 with 8/27
    assert report.bootstrap([np.array([0.0, 0.0, 3.0])]) == (1, 0, 3)


def test_bootstrap_is_stratified():
    # each task's runs are equal: resampling within tasks cannot change anything, resampling the pool would
    strata = [np.zeros(3), np.ones(3)]
    assert report.bootstrap(strata, lambda runs: runs.mean(axis=0)) == (0.5, 0.5, 0.5)


def test_bootstrap_repeats_itself_and_leaves_the_global_random_state():
    scores = np.random.default_rng(0).normal(size=7)
    np.random.seed(5)
    first, after = report.bootstrap([scores]), np.random.random()
    np.random.seed(5)
    assert np.random.random() == after
    assert report.bootstrap([scores]) == first
    assert first.low < first.value < first.high


def test_normalised_by_hand(tmp_path):
    cells = {("x", "t/a"): [0, 5], ("y", "t/a"): [10], ("x", "t/b"): [1, 3], ("y", "t/b"): [2]}
    table = table_of(write(tmp_path, cells, random={"t/b": -1.0}))
    scores, left_out = report.normalised(table)
    assert left_out == []
    np.testing.assert_allclose(scores["x"][0], [0, 0.5])       # (r - lowest 0) / (10 - 0)
    np.testing.assert_allclose(scores["x"][1], [0.5, 1])       # (r - random -1) / (3 + 1)
    np.testing.assert_allclose(np.concatenate(scores["y"]), [1, 0.75])


def test_normalised_needs_every_task_and_a_run_above_the_floor(tmp_path):
    cells = {("x", "t/a"): [0, 5], ("y", "t/a"): [1, 2], ("x", "t/b"): [1, 3], ("y", "t/c"): [1], ("x", "t/c"): [2]}
    scores, left_out = report.normalised(table_of(write(tmp_path, cells, random={"t/c": 7})))
    assert list(scores) == ["x"] and left_out == ["t/c"]       # y never ran t/b; nothing on t/c beats random actions


@pytest.mark.parametrize(("x", "y", "best"), [
    ([4, 5, 6], [1, 2, 3], "x"),
    ([1, 2, 3], [4, 5, 6], "y"),
    ([3, 5, 7], [1, 3, 5], None),       # the intervals overlap
    ([9, 9], [1, 1, 1], None),          # 2 seeds decide nothing
    ([9, 9, 9], None, None),            # no runner-up
])
def test_bold_needs_disjoint_intervals(tmp_path, x, y, best):
    cells = {("x", "t/a"): x} | ({} if y is None else {("y", "t/a"): y})
    assert report.summarise(table_of(write(tmp_path, cells))).bold.get("t/a") == best


def test_incomplete_cell_is_marked_and_never_bold(tmp_path):
    write(tmp_path, {("x", "t/a"): [8, 9], ("y", "t/a"): [1, 2, 3]})
    results.append_rows(tmp_path, "a", "x", "t/a", run(2, 8, frames=(0, 60)))
    summary = report.summarise(table_of(tmp_path))
    text = report.markdown([summary])
    assert summary.bold == {} and summary.table.cells["t/a", "x"].incomplete == {2: 60}
    assert "(3 seeds) \u2020" in text and "x on t/a, seed 2: 60 of 100 frames" in text


# ---- Markdown and the command line


def test_markdown_of_a_table(tmp_path):
    cells = {("x", "t/a"): [4, 5, 6], ("y", "t/a"): [1, 2, 3], ("y", "t/b"): [150]}
    write(tmp_path, cells, rows=["y", "x"], versions={"torch": "2.9"}, notes=["a | b"],
          reference={"t/a": {"x": {"value": 4.0, "source": "paper"}, "y": {"value": 2, "source": "thesis"}},
                     "t/b": {"x": {"value": 1, "source": "paper"}}})
    lines = report.markdown([report.summarise(table_of(tmp_path))]).splitlines()
    assert "| task | y | x |" in lines
    assert "| t/a | 2.00 [1.00, 3.00] (3 seeds); published 2 | **5.00** [4.00, 6.00] (3 seeds); published 4 |" in lines
    assert "| t/b | 150.0 (1 seed) | \u2013; published 1 |" in lines
    for line in ("- Frames per run: 100", "- Wall time per run, median: y 1.0 min, x 1.0 min", "- Commit: abc",
                 "- Command: `python -m recipes.benchmark a`", "- Versions: torch 2.9", "- Hardware: CPU",
                 "- Published by: paper (x on t/a, x on t/b); thesis (y on t/a)", "- Note: a \\| b",
                 "![A table: curves](a/curves.png)"):
        assert line in lines, line


def test_mode_chooses_the_return(tmp_path):
    write(tmp_path, {}, mode="greedy")
    results.append_rows(tmp_path, "a", "x", "t/a", run(0, 1, greedy=7.0))
    assert "| t/a | 7.00 (1 seed) |" in report.markdown([report.summarise(table_of(tmp_path))])


def test_planned_cells_without_runs_are_shown(tmp_path):
    write(tmp_path, {}, rows=["x", "y"], tasks=["t/a"])
    assert "| t/a | \u2013 | \u2013 |" in report.markdown([report.summarise(table_of(tmp_path))])


def test_tasks_and_rows_without_runs_are_named_below(tmp_path):
    """Three rows on three tasks, two of each with runs: a line and a column less, and no word of them but there."""
    write(tmp_path, {("x", "t/a"): [1], ("y", "t/c"): [2]}, rows=["x", "y", "z"], tasks=["t/a", "t/b", "t/c"],
          frames={"t/a": 100, "t/b": 200, "t/c": 100}, mode={"t/a": "sampled", "t/b": "greedy", "t/c": "sampled"},
          reference={task: {row: {"value": k, "source": "paper"} for k, row in enumerate("xyz")}
                     for task in ("t/a", "t/b")})
    lines = report.markdown([report.summarise(table_of(tmp_path))]).splitlines()
    table = [line for line in lines if line.startswith("|")]
    assert table[0] == "| task | x | y |" and [line.split(" | ")[0] for line in table[2:]] == [
        "| t/a", "| t/c", "| all tasks, normalised"]
    assert table[2] == "| t/a | 1.00 (1 seed); published 0 | \u2013; published 1 |"
    for line in ("- Not run yet: tasks t/b; rows z", "- Published by: paper", "- Frames per run: 100",
                 "- Published, not run here: t/a: z 2; t/b: x 0, y 1, z 2"):
        assert line in lines, line
    assert not any("greedy" in line for line in lines)


def test_writing_twice_gives_the_same_bytes(tmp_path):
    write(tmp_path, {(row, task): [1, 2, i] for row in ("x", "y") for i, task in enumerate(("t/a", "t/b"))})
    paths = report.write_report(tmp_path)
    names = ["README.md", "index.html", "a/curves.png", "a/profile.png"]
    assert [path.relative_to(tmp_path).as_posix() for path in paths] == names
    first = [path.read_bytes() for path in paths]
    np.random.seed(9)
    assert [path.read_bytes() for path in report.write_report(tmp_path)] == first
    assert paths[0].read_text() == report.markdown([report.summarise(t) for t in results.read_results(tmp_path)])


def test_a_single_row_has_no_profile(tmp_path):
    write(tmp_path, {("x", "t/a"): [1, 2, 3], ("x", "t/b"): [1, 2, 4]})
    assert [path.name for path in report.write_report(tmp_path)] == ["README.md", "index.html", "curves.png"]
    assert "profile" not in (tmp_path / "README.md").read_text()


def test_command_line(tmp_path, capsys):
    write(tmp_path, {("x", "t/a"): [1, 2]})
    report.main([str(tmp_path), "--tables", "a"])
    assert "| t/a | 1.50" in capsys.readouterr().out and not (tmp_path / "README.md").exists()
    with pytest.raises(SystemExit, match="error: unknown table 'b'"):
        report.main([str(tmp_path), "--tables", "b"])


def test_command_line_prints_no_traceback(tmp_path):
    done = subprocess.run([sys.executable, "-m", "suite.report", str(tmp_path / "none")], cwd=ROOT, text=True,
                          capture_output=True, check=False)
    assert done.returncode == 1 and done.stderr.startswith("error: no folder") and "Traceback" not in done.stderr


def test_a_score_may_be_the_mean_of_the_last_evaluations(tmp_path):
    """0, 2, 6 and 8: the last is 8, the mean of the last three 16 / 3; a run with fewer takes all it has."""
    write(tmp_path, {}, last=3)
    lines = [line for value, line in zip((0, 2, 6, 8), run(0, 8, frames=(0, 25, 75, 100)), strict=True)
             if line.return_sampled == value]
    results.append_rows(tmp_path, "a", "x", "t/a", lines)
    results.append_rows(tmp_path, "a", "x", "t/a", run(1, 4))
    table = table_of(tmp_path)
    np.testing.assert_allclose(table.cells["t/a", "x"].finals, [16 / 3, 2.0])
    assert "mean of the last 3 evaluations" in report.markdown([report.summarise(table)])
    write(tmp_path, {}, last=1)
    np.testing.assert_allclose(table_of(tmp_path).cells["t/a", "x"].finals, [8.0, 4.0])


def test_every_task_may_show_something_else(tmp_path):
    write(tmp_path, {}, mode={"t/a": "success", "t/b": "sampled"}, tasks=["t/a", "t/b"])
    lines = [line._replace(success=0.5) for line in run(1, 4.0)]
    for task in ("t/a", "t/b"):
        results.append_rows(tmp_path, "a", "x", task, lines)
    table = table_of(tmp_path)
    assert table.cells["t/a", "x"].finals == [0.5] and table.cells["t/b", "x"].finals == [4.0]
    text = report.markdown([report.summarise(table)])
    assert "Success of t/a: share of episodes" in text and "Return of t/b: sampled actions" in text
    write(tmp_path, {}, mode={"t/a": "success"}, tasks=["t/a", "t/b"])
    with pytest.raises(ValueError, match=r"mode says nothing of \['t/b'\]"):
        table_of(tmp_path)
    report.write_report(write(tmp_path, {}, mode={"t/a": "success", "t/b": "sampled"}, tasks=["t/a", "t/b"]))


def test_how_often_tasks_were_played_is_said_of_each(tmp_path):
    tasks = ["t/a", "t/b", "t/c"]
    write(tmp_path, {("x", "t/a"): [1], ("x", "t/b"): [2]}, tasks=tasks)
    results.append_rows(tmp_path, "a", "x", "t/c", [line._replace(episodes=50) for line in run(1, 4.0)])
    lines = report.markdown([report.summarise(table_of(tmp_path))]).splitlines()
    assert f"- Return of t/a, t/b: sampled actions, {run(1, 4.0)[-1].episodes} episodes per evaluation" in lines
    assert "- Return of t/c: sampled actions, 50 episodes per evaluation" in lines
