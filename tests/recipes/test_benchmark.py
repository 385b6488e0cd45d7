"""The launchers of tables: what the one for Ray, on a stand-in, hands over and leaves; how runs become rows."""

import math
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from recipes import benchmark
from recipes.jobs import Job, evaluations
from suite.results import Evaluation

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

    def run(job):
        path = Path(job.results) / f"{job.seed}.csv"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(str(job.folder))
        return f"seed {job.seed}: done"

    monkeypatch.setattr(benchmark, "run_job", run)
    fake = Cluster(elsewhere, monkeypatch)
    monkeypatch.setitem(sys.modules, "ray", fake)
    return fake


def test_ray_workers_in_another_folder_write_where_the_launcher_stands(cluster, tmp_path, capsys):
    benchmark.launch_ray(JOBS, 2)
    assert sorted(path.name for path in (tmp_path / "here" / "results").iterdir()) == ["1.csv", "2.csv", "3.csv"]
    assert not list((tmp_path / "elsewhere").iterdir())
    folder = Path((tmp_path / "here" / "results" / "1.csv").read_text())
    assert folder.is_absolute() and folder.is_relative_to(tmp_path / "here" / "runs" / "x")
    printed = capsys.readouterr().out
    assert [printed.index(f"seed {seed}: done") for seed in (3, 2, 1)] == sorted(
        printed.index(f"seed {seed}: done") for seed in (1, 2, 3)), "each as soon as it is there"


def test_ray_takes_the_cores_it_is_given_here_and_the_clusters_elsewhere(cluster, monkeypatch):
    benchmark.launch_ray([], 2)
    assert cluster.options["num_cpus"] == 2 and not cluster.up
    monkeypatch.setenv("RAY_ADDRESS", "head:6379")
    benchmark.launch_ray([], 2)
    assert cluster.options["num_cpus"] is None


def test_without_ray_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ValueError, match=r"--launcher ray needs the extra: pip install -e '\.\[ray\]'"):
        benchmark.launch_ray(JOBS, 2)


def test_what_a_run_evaluated_becomes_result_rows(tmp_path):
    """A file for each scalar; what was not measured is nan."""
    scalars = tmp_path / "metrics" / "scalars"
    written = {"eval/return": (1.0, 2.0), "eval/return_greedy": (1.5, 2.5), "eval/length": (7.0, 6.0),
               "eval/success": (0.25, 0.5), "eval/success_sampled": (0.125, 0.75), "time/total": (None, 9.04)}
    (tmp_path / "config.json").write_text('{"config": {"eval_episodes": 16}, "commit": "abc"}')
    for name, values in written.items():
        path = scalars / f"{name}.csv"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("".join(f"{frames},{value}\n" for frames, value in zip((0, 40), values, strict=True)
                                if value is not None))
    assert evaluations(tmp_path, 3) == [Evaluation(3, 0, 0.0, 1.0, 1.5, 16, 7.0, "abc", 0.25, 0.125),
                                        Evaluation(3, 40, 9.0, 2.0, 2.5, 16, 6.0, "abc", 0.5, 0.75)]
    for name in ("success", "success_sampled"):
        (scalars / "eval" / f"{name}.csv").unlink()
    assert all(math.isnan(value) for line in evaluations(tmp_path, 3) for value in line[-2:])
