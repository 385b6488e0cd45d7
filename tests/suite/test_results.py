"""Result files: written, read back, and refused with their name and line."""

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from suite import report, results
from suite.results import Evaluation
from tests.tables import run, table_of, write


def test_rows_come_back_as_written(tmp_path):
    lines = [Evaluation(3, 7, 1.25, -0.1, 0.3, 16, 12.5, "abc, dirty")]
    path = results.append_rows(tmp_path, "a", "smpe+moa", "vmas/navigation", lines)
    assert path.name == "smpe+moa__vmas.navigation.csv"
    assert path.read_text() == ("seed,frames,seconds,return_sampled,return_greedy,episodes,length,commit\n"
                                '3,7,1.25,-0.1,0.3,16,12.5,"abc, dirty"\n')
    results.append_rows(tmp_path, "a", "smpe+moa", "vmas/navigation", [lines[0]._replace(seed=4)])
    assert results.read_cell(path, "greedy", 7).runs == {3: lines, 4: [lines[0]._replace(seed=4)]}


def test_parallel_writers_write_one_header_and_every_line(tmp_path):
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda seed: results.append_rows(tmp_path, "a", "x", "t/a", run(seed, 1)), range(40)))
    assert len(results.read_cell(tmp_path / "a" / "x__t.a.csv", "sampled", 100).runs) == 40


def test_resumed_run_replaces_what_it_repeats(tmp_path):
    write(tmp_path, {})
    results.append_rows(tmp_path, "a", "x", "t/a", run(0, 1.0, frames=(0, 40, 80)) + run(0, 5.0, frames=(40, 100)))
    cell = table_of(tmp_path).cells["t/a", "x"]
    np.testing.assert_array_equal(cell.series(0)[0], [0, 40, 100])
    np.testing.assert_array_equal(cell.series(0)[1], [0, 2, 5])
    assert cell.superseded == 2 and cell.finals == [5]
    assert "2 lines were replaced" in report.markdown([report.summarise(table_of(tmp_path))])


@pytest.mark.parametrize(("row", "task"), [("a__b", "t"), ("a_", "t"), ("a/b", "t"), ("", "t"), ("..", "t"), ("a", ""),
                                           ("a", "t~x"), ("a", ".t"), ("a", "../t")])
def test_names_that_cannot_be_read_back_are_refused(tmp_path, row, task):
    with pytest.raises(ValueError, match="name"):
        results.append_rows(tmp_path, "a", row, task, [])
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("task", ["vmas/navigation", "hybrid/vmas.navigation", "hybrid/foraging.2s-8x8-2p-2f-coop"])
def test_names_come_back_from_a_file_name(task):
    assert results.names_of(results.file_name("a.b_c", task)) == (task, "a.b_c")


def test_bad_new_lines_write_nothing(tmp_path):
    with pytest.raises(ValueError, match=r"frames is '1\.5'"):
        results.append_rows(tmp_path, "a", "x", "t", [Evaluation(0, 1.5, 1, 1, 1, 1, 1, "c")])
    with pytest.raises(ValueError, match="2 values, expected seed"):
        results.append_rows(tmp_path, "a", "x", "t", [(0, 1)])
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("line", "message"), [
    ("0,100,1,2,3,10,5", "x__t.a.csv:4: 7 values, expected 8: seed, frames"),
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
        results.read_results(tmp_path)
    assert message in str(error.value)


@pytest.mark.parametrize("content", [b"", b"seed,frames\n", b"\xff\xfe"])
def test_other_files_are_named(tmp_path, content):
    write(tmp_path, {})
    (tmp_path / "a" / "x__t.a.csv").write_bytes(content)
    with pytest.raises(ValueError, match=r"x__t\.a\.csv"):
        results.read_results(tmp_path)


@pytest.mark.parametrize(("change", "message"), [
    ({"mode": "best"}, r"mode is 'best', expected one of \('sampled', 'greedy', 'success', 'success_sampled'\)"),
    ({"frames": 0}, "frames is 0"), ({"last": 0}, "last is 0"), ({"last": 2.5}, "last is 2.5"),
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
        results.read_results(tmp_path)


def test_missing_things_are_named(tmp_path):
    with pytest.raises(ValueError, match="no folder"):
        results.read_results(tmp_path / "none")
    with pytest.raises(ValueError, match="no tables"):
        results.read_results(tmp_path)
    write(tmp_path, {("x", "t/a"): [1]})
    with pytest.raises(ValueError, match=r"unknown table 'b'; choose from \['a'\]"):
        results.read_results(tmp_path, ["b"])
    (tmp_path / "a" / "table.json").write_text("{")
    with pytest.raises(ValueError, match=r"table.json: not JSON"):
        results.read_results(tmp_path)
    (tmp_path / "a" / "table.json").write_text("{}")
    with pytest.raises(ValueError, match=r"\['title', 'command', 'hardware', 'mode', 'frames'\] are missing"):
        results.read_results(tmp_path)
    (tmp_path / "a" / "table.json").unlink()
    with pytest.raises(ValueError, match=r"no table.json"):
        results.read_results(tmp_path)


def test_success_is_a_column_of_its_own_files(tmp_path):
    """Tables of other tasks keep their form; a success has nowhere to go in them."""
    line = run(1, 3.0)[1]
    path = results.append_rows(tmp_path, "a", "x", "t/a", [line._replace(success=0.75)])
    assert path.read_text() == ("seed,frames,seconds,return_sampled,return_greedy,episodes,length,commit,success\n"
                                "1,100,60.0,3.0,nan,10,5.0,abc,0.75\n")
    results.append_rows(tmp_path, "a", "x", "t/a", [line._replace(seed=2, success=0.5)])
    cell = results.read_cell(path, "success", 100)
    np.testing.assert_array_equal(cell.finals, [0.75, 0.5])
    np.testing.assert_array_equal(results.read_cell(path, "sampled", 100).finals, [3.0, 3.0])
    other = results.append_rows(tmp_path, "a", "y", "t/a", [line])
    with pytest.raises(ValueError, match="no column for the success"):
        results.append_rows(tmp_path, "a", "y", "t/a", [line._replace(success=0.5)])
    with pytest.raises(ValueError, match="success is not measured"):
        results.read_cell(other, "success", 100)


def test_sampled_successes_are_a_further_column_of_new_files(tmp_path):
    """A file with fewer columns keeps them; what it lacks cannot be shown."""
    line = run(1, 3.0)[1]._replace(success=0.75)
    header = "seed,frames,seconds,return_sampled,return_greedy,episodes,length,commit,success"
    old = results.append_rows(tmp_path, "a", "x", "t/a", [line])
    results.append_rows(tmp_path, "a", "x", "t/a", [line._replace(seed=2, success_sampled=0.5)])
    assert old.read_text().splitlines() == [header, "1,100,60.0,3.0,nan,10,5.0,abc,0.75",
                                            "2,100,60.0,3.0,nan,10,5.0,abc,0.75"]
    new = results.append_rows(tmp_path, "a", "y", "t/a", [line, line._replace(seed=2, success_sampled=0.5)])
    assert new.read_text().splitlines() == [f"{header},success_sampled", "1,100,60.0,3.0,nan,10,5.0,abc,0.75,nan",
                                            "2,100,60.0,3.0,nan,10,5.0,abc,0.75,0.5"]
    runs = results.read_cell(new, "success", 100).runs
    assert runs[2][0][-2:] == (0.75, 0.5) and runs[1][0].success == 0.75 and np.isnan(runs[1][0].success_sampled)
    sampled = results.append_rows(tmp_path, "a", "z", "t/a", [line._replace(success_sampled=0.5)])
    np.testing.assert_array_equal(results.read_cell(sampled, "success_sampled", 100).finals, [0.5])
    with pytest.raises(ValueError, match="success_sampled is not measured"):
        results.read_cell(old, "success_sampled", 100)
