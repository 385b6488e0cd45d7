"""Reading, statistics against hand-computed values, Markdown, and the command line."""

import json
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from suite import report
from suite.report import Evaluation

ROOT = Path(__file__).resolve().parents[2]
INFO = {"title": "A table", "command": "python -m recipes.benchmark a", "hardware": "CPU", "mode": "sampled",
        "frames": 100}


def run(seed, final, *, frames=(0, 100), greedy=float("nan"), seconds=60.0, commit="abc"):
    """Evaluations of one seed that rise linearly to ``final``."""
    return [Evaluation(seed, f, seconds * f / frames[-1], final * f / frames[-1], greedy, 10, 5.0, commit)
            for f in frames]


def write(results, cells, table="a", **info):
    """Files of a table: {(row, task): final returns by seed}."""
    for (row, task), finals in cells.items():
        lines = [line for seed, final in enumerate(finals) for line in run(seed, final)]
        report.append_rows(results, table, row, task, lines)
    (results / table).mkdir(parents=True, exist_ok=True)
    (results / table / "table.json").write_text(json.dumps(INFO | info))
    return results


def table_of(results):
    (table,) = report.read_results(results)
    return table


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
    report.append_rows(tmp_path, "a", "x", "t/a", run(2, 8, frames=(0, 60)))
    summary = report.summarise(table_of(tmp_path))
    text = report.markdown([summary])
    assert summary.bold == {} and summary.table.cells["t/a", "x"].incomplete == {2: 60}
    assert "(3 seeds) \u2020" in text and "x on t/a, seed 2: 60 of 100 frames" in text


# ---- reading and writing


def test_rows_come_back_as_written(tmp_path):
    lines = [Evaluation(3, 7, 1.25, -0.1, 0.3, 16, 12.5, "abc, dirty")]
    path = report.append_rows(tmp_path, "a", "smpe+moa", "vmas/navigation", lines)
    assert path.name == "smpe+moa__vmas.navigation.csv"
    assert path.read_text() == ("seed,frames,seconds,return_sampled,return_greedy,episodes,length,commit\n"
                                '3,7,1.25,-0.1,0.3,16,12.5,"abc, dirty"\n')
    report.append_rows(tmp_path, "a", "smpe+moa", "vmas/navigation", [lines[0]._replace(seed=4)])
    assert report.read_cell(path, "greedy", 7).runs == {3: lines, 4: [lines[0]._replace(seed=4)]}


def test_parallel_writers_write_one_header_and_every_line(tmp_path):
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda seed: report.append_rows(tmp_path, "a", "x", "t/a", run(seed, 1)), range(40)))
    assert len(report.read_cell(tmp_path / "a" / "x__t.a.csv", "sampled", 100).runs) == 40


def test_resumed_run_replaces_what_it_repeats(tmp_path):
    write(tmp_path, {})
    report.append_rows(tmp_path, "a", "x", "t/a", run(0, 1.0, frames=(0, 40, 80)) + run(0, 5.0, frames=(40, 100)))
    cell = table_of(tmp_path).cells["t/a", "x"]
    np.testing.assert_array_equal(cell.series(0)[0], [0, 40, 100])
    np.testing.assert_array_equal(cell.series(0)[1], [0, 2, 5])
    assert cell.superseded == 2 and cell.finals == [5]
    assert "2 lines were replaced" in report.markdown([report.summarise(table_of(tmp_path))])


@pytest.mark.parametrize(("row", "task"), [("a__b", "t"), ("a_", "t"), ("a/b", "t"), ("", "t"), ("..", "t"), ("a", ""),
                                           ("a", "t.x"), ("a", "../t")])
def test_names_that_cannot_be_read_back_are_refused(tmp_path, row, task):
    with pytest.raises(ValueError, match="name"):
        report.append_rows(tmp_path, "a", row, task, [])
    assert not list(tmp_path.iterdir())


def test_bad_new_lines_write_nothing(tmp_path):
    with pytest.raises(ValueError, match=r"frames is '1\.5'"):
        report.append_rows(tmp_path, "a", "x", "t", [Evaluation(0, 1.5, 1, 1, 1, 1, 1, "c")])
    with pytest.raises(ValueError, match="8: seed"):
        report.append_rows(tmp_path, "a", "x", "t", [(0, 1)])
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("line", "message"), [
    ("0,100,1,2,3,10,5", "x__t.a.csv:4: 7 values, expected 8"),
    ("0,1e2,1,2,3,10,5,c", "x__t.a.csv:4: frames is '1e2'"),
    ("-1,100,1,2,3,10,5,c", "x__t.a.csv:4: seed is '-1'"),
    ("0,100,1,inf,3,10,5,c", "x__t.a.csv:4: return_sampled is 'inf'"),
    ("0,100,nan,2,3,10,5,c", "x__t.a.csv:4: seconds is 'nan'"),
    ("0,100,1,nan,3,10,5,c", "x__t.a.csv:4: return_sampled is not measured"),
    ("0,100,1,__import__('os'),3,10,5,c", "x__t.a.csv:4: return_sampled is \"__import__"),
    ('0,100,1,2,3,10,5,"c', "not a CSV file"),
])
def test_malformed_line_names_file_and_line(tmp_path, line, message):
    write(tmp_path, {("x", "t/a"): [1]})
    with (tmp_path / "a" / "x__t.a.csv").open("a") as file:
        file.write(line + "\n")
    with pytest.raises(ValueError) as error:
        report.read_results(tmp_path)
    assert message in str(error.value)


@pytest.mark.parametrize("content", [b"", b"seed,frames\n", b"\xff\xfe"])
def test_other_files_are_named(tmp_path, content):
    write(tmp_path, {})
    (tmp_path / "a" / "x__t.a.csv").write_bytes(content)
    with pytest.raises(ValueError, match=r"x__t\.a\.csv"):
        report.read_results(tmp_path)


@pytest.mark.parametrize(("change", "message"), [
    ({"mode": "best"}, r"mode is 'best', expected one of \('sampled', 'greedy'\)"),
    ({"frames": 0}, "frames is 0"),
    ({"frames": {"t/b": 5}}, "frames has no target for"),
    ({"notes": "a note"}, "notes is 'a note'"),
    ({"random": {"t/a": float("nan")}}, "random is"),
    ({"reference": {"t/a": {"x": 3}}}, "reference is"),
    ({"tasks": ["t/a"], "random": {"t/A": 0}}, "names"),
    ({"frame": 3}, "frame"),
    ({"rows": ["a b"]} | {"tasks": ["t/a"]}, "row name 'a b'"),
])
def test_bad_descriptions_say_what_is_allowed(tmp_path, change, message):
    write(tmp_path, {("x", "t/a"): [1]}, **change)
    with pytest.raises(ValueError, match=message):
        report.read_results(tmp_path)


def test_missing_things_are_named(tmp_path):
    with pytest.raises(ValueError, match="no folder"):
        report.read_results(tmp_path / "none")
    with pytest.raises(ValueError, match="no tables"):
        report.read_results(tmp_path)
    write(tmp_path, {("x", "t/a"): [1]})
    with pytest.raises(ValueError, match=r"unknown table 'b'; choose from \['a'\]"):
        report.read_results(tmp_path, ["b"])
    (tmp_path / "a" / "table.json").write_text("{")
    with pytest.raises(ValueError, match=r"table.json: not JSON"):
        report.read_results(tmp_path)
    (tmp_path / "a" / "table.json").write_text("{}")
    with pytest.raises(ValueError, match=r"\['title', 'command', 'hardware', 'mode', 'frames'\] are missing"):
        report.read_results(tmp_path)
    (tmp_path / "a" / "table.json").unlink()
    with pytest.raises(ValueError, match=r"no table.json"):
        report.read_results(tmp_path)


# ---- Markdown and the command line


def test_markdown_of_a_table(tmp_path):
    cells = {("x", "t/a"): [4, 5, 6], ("y", "t/a"): [1, 2, 3], ("y", "t/b"): [150]}
    write(tmp_path, cells, rows=["y", "x"], versions={"torch": "2.9"}, notes=["a | b"],
          reference={"t/a": {"x": {"value": 4.0, "source": "paper"}}, "t/b": {"x": {"value": 1, "source": "paper"}}})
    lines = report.markdown([report.summarise(table_of(tmp_path))]).splitlines()
    assert "| task | y | x |" in lines
    assert "| t/a | 2.00 [1.00, 3.00] (3 seeds) | **5.00** [4.00, 6.00] (3 seeds) |" in lines
    assert "| t/b | 150.0 (1 seed) | \u2013 |" in lines
    for line in ("- Frames per run: 100", "- Wall time per run, median: y 1.0 min, x 1.0 min", "- Commit: abc",
                 "- Command: `python -m recipes.benchmark a`", "- Versions: torch 2.9", "- Hardware: CPU",
                 "- Reference, x on t/a: 4 (paper); here 5.00, deviation +1.00 (+25.0 %)",
                 "- Reference, x on t/b: 1 (paper); no run here", "- Note: a \\| b",
                 "![A table: curves](a/curves.png)"):
        assert line in lines, line


def test_mode_chooses_the_return(tmp_path):
    write(tmp_path, {}, mode="greedy")
    report.append_rows(tmp_path, "a", "x", "t/a", run(0, 1, greedy=7.0))
    assert "| t/a | 7.00 (1 seed) |" in report.markdown([report.summarise(table_of(tmp_path))])


def test_planned_cells_without_runs_are_shown(tmp_path):
    write(tmp_path, {}, rows=["x", "y"], tasks=["t/a"])
    assert "| t/a | \u2013 | \u2013 |" in report.markdown([report.summarise(table_of(tmp_path))])


def test_writing_twice_gives_the_same_bytes(tmp_path):
    write(tmp_path, {(row, task): [1, 2, i] for row in ("x", "y") for i, task in enumerate(("t/a", "t/b"))})
    paths = report.write_report(tmp_path)
    names = ["README.md", "index.html", "a/curves.png", "a/profile.png"]
    assert [path.relative_to(tmp_path).as_posix() for path in paths] == names
    first = [path.read_bytes() for path in paths]
    np.random.seed(9)
    assert [path.read_bytes() for path in report.write_report(tmp_path)] == first
    assert paths[0].read_text() == report.markdown([report.summarise(t) for t in report.read_results(tmp_path)])


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
