"""The launchers of tables: what the one for Ray, on a stand-in, hands over and leaves; what is said of the numbers."""

import json
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from recipes import benchmark, launchers
from recipes.jobs import Job, Outcome
from recipes.table import Table
from suite.results import append_rows, read_info
from tests.tables import run as evaluated

JOBS = [Job("cooperative", "MAPPO", "vmas/navigation", seed, "runs/x", "results") for seed in (1, 2, 3)]


class Cluster:
    """Runs tasks when they are asked for, the last one first, in another working folder."""

    def __init__(self, elsewhere, monkeypatch):
        self.elsewhere, self.monkeypatch, self.options, self.up = elsewhere, monkeypatch, None, False

    def init(self, **options):
        self.options, self.up = options, True

    def remote(self, **resources):
        assert resources == {"num_cpus": 1}
        return lambda function: SimpleNamespace(remote=lambda job: (function, job))

    def wait(self, tasks):
        return tasks[-1:], tasks[:-1]

    def get(self, task):
        function, job = task
        with self.monkeypatch.context() as patch:
            patch.chdir(self.elsewhere)
            return function(job)

    def shutdown(self):
        self.up = False


@pytest.fixture
def cluster(tmp_path, monkeypatch):
    here, elsewhere = tmp_path / "here", tmp_path / "elsewhere"
    here.mkdir()
    elsewhere.mkdir()
    monkeypatch.chdir(here)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)

    def run(job, processes=None):
        path = Path(job.results) / f"{job.seed}.csv"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(str(job.folder))
        return Outcome(job.seed != 2, f"seed {job.seed}: done")

    monkeypatch.setattr(launchers, "run_job", run)
    fake = Cluster(elsewhere, monkeypatch)
    monkeypatch.setitem(sys.modules, "ray", fake)
    return fake


def test_ray_workers_in_another_folder_write_where_the_launcher_stands(cluster, tmp_path, capsys):
    outcomes = launchers.launch_ray(JOBS, 2)
    assert [(outcome.done, outcome.message[:6]) for outcome in outcomes] == [(True, "seed 3"), (False, "seed 2"),
                                                                            (True, "seed 1")]
    assert sorted(path.name for path in (tmp_path / "here" / "results").iterdir()) == ["1.csv", "2.csv", "3.csv"]
    assert not list((tmp_path / "elsewhere").iterdir())
    folder = Path((tmp_path / "here" / "results" / "1.csv").read_text())
    assert folder.is_absolute() and folder.is_relative_to(tmp_path / "here" / "runs" / "x")
    printed = capsys.readouterr().out
    assert [printed.index(f"seed {seed}: done") for seed in (3, 2, 1)] == sorted(
        printed.index(f"seed {seed}: done") for seed in (1, 2, 3)), "each as soon as it is there"


def test_ray_takes_the_cores_it_is_given_here_and_the_clusters_elsewhere(cluster, monkeypatch):
    launchers.launch_ray([], 2)
    assert cluster.options["num_cpus"] == 2 and not cluster.up
    monkeypatch.setenv("RAY_ADDRESS", "head:6379")
    launchers.launch_ray([], 2)
    assert cluster.options["num_cpus"] is None


def test_without_ray_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ValueError, match=r"--launcher ray needs the extra: pip install -e '\.\[ray\]'"):
        launchers.launch_ray(JOBS, 2)


# ---------------------------------------------------------------------- what stands around the numbers

TABLE = Table("A table", "recipes.cooperative", {"MAPPO": []}, {"vmas/navigation": []}, 100, "sampled")


@pytest.fixture
def table(tmp_path, monkeypatch):
    """table.json of a table whose runs are only noted down."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(benchmark.TABLES, "a", TABLE)
    monkeypatch.setattr(benchmark, "random_return", lambda name, task: -1.0)
    monkeypatch.setattr(benchmark, "versions", lambda: {"torch": "2.9", "python": "3.11"})
    monkeypatch.setattr(launchers, "run_job", run_of(set()))
    return tmp_path / "results" / "a" / "table.json"


def run_of(failing):
    """A `run_job` of runs that end in no time; those of some seeds fail."""
    def run(job, processes=None):
        if job.seed in failing:
            return Outcome(False, f"{job.row} seed {job.seed}: failed with 1")
        append_rows(job.results, job.table, job.row, job.task, evaluated(job.seed, 1.0))
        return Outcome(True, "done")

    return run


def test_the_command_names_as_many_seeds_as_the_results_hold(table):
    for seeds, named in ((2, 2), (1, 2), (3, 3), (1, 3)):
        benchmark.benchmark("a", seeds=seeds)
        assert read_info(table).command == f"python -m recipes.benchmark a --seeds {named}"
        assert read_info(table).cell_command.endswith(f"--tasks {{task}} --seeds {named}")


def test_every_machine_and_version_that_measured_is_kept_once(table, monkeypatch):
    monkeypatch.setattr(benchmark.os, "cpu_count", lambda: 2)
    monkeypatch.setattr(benchmark.platform, "machine", lambda: "x")
    benchmark.benchmark("a", seeds=1)
    first = read_info(table)
    assert first.hardware == "2 CPU cores, x, one core per run" and first.versions["torch"] == "2.9"
    monkeypatch.setattr(benchmark.os, "cpu_count", lambda: 8)
    monkeypatch.setattr(benchmark, "versions", lambda: {"torch": "2.10", "numpy": "2.0"})
    benchmark.benchmark("a", seeds=1)
    assert read_info(table) == first, "nothing was measured here"
    for seeds in (2, 3):
        benchmark.benchmark("a", seeds=seeds)
        now = read_info(table)
        assert now.hardware == "2 CPU cores, x, one core per run; 8 CPU cores, x, one core per run"
        assert now.versions == {"torch": "2.9 and 2.10", "python": "3.11", "numpy": "2.0"}


def test_a_table_whose_writing_is_interrupted_stays_whole(table, monkeypatch):
    benchmark.benchmark("a", seeds=1)
    before = table.read_text()

    def interrupted(*paths):
        raise KeyboardInterrupt

    monkeypatch.setattr("os.replace", interrupted)
    with pytest.raises(KeyboardInterrupt):
        benchmark.benchmark("a", seeds=2)
    assert table.read_text() == before and json.loads(before)


def test_runs_that_are_not_finished_are_named_and_the_exit_code_is_1(table, monkeypatch, capsys):
    monkeypatch.setattr(launchers, "run_job", run_of({2}))
    with pytest.raises(SystemExit) as caught:
        benchmark.benchmark("a", seeds=3)
    assert caught.value.code == 1
    assert "error: 1 of 3 runs are not finished:\nMAPPO seed 2: failed with 1\n" in capsys.readouterr().err
    monkeypatch.setattr(launchers, "run_job", run_of(set()))
    benchmark.benchmark("a", seeds=3)
    assert "1 runs to do" in capsys.readouterr().out
