"""The Ray launcher, on a stand-in for Ray: what it hands over, prints and leaves."""

import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from recipes import benchmark
from recipes.jobs import Job

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
