"""One run of a table in a process of its own: how it is started, and what its end is called."""

import os
import re
import shlex
import signal
import sys
import threading
import time
from dataclasses import replace

import pytest

from recipes import jobs
from recipes.jobs import Job, run_job
from recipes.launchers import launch_local
from recipes.table import Table
from suite.results import append_rows
from tests.runs import finished
from tests.tables import run as evaluated

TABLE = Table("A table", "recipes.cooperative", {"MAPPO": ["--lr", "0.1"]}, {"vmas/navigation": []}, 100, "sampled")


@pytest.fixture
def job(tmp_path, monkeypatch):
    monkeypatch.setitem(jobs.TABLES, "a", TABLE)
    return Job("a", "MAPPO", "vmas/navigation", 1, str(tmp_path / "runs"), str(tmp_path / "results"))


def test_a_run_is_begun_continued_and_without_a_checkpoint_begun_anew(job):
    """Also one that was killed before its first checkpoint, or whose checkpoints somebody deleted."""
    begin = [*shlex.split("--task vmas/navigation --lr 0.1 --frames 100 --evaluations 10 --seed 1 --run-dir"),
             str(job.folder)]
    assert job.command() == [sys.executable, "-m", "recipes.cooperative", *begin, "--quiet"]
    finished(job.folder)
    assert job.command()[-3:] == ["--resume", str(job.folder), "--quiet"]
    for path in (job.folder / "checkpoints").iterdir():
        path.unlink()
    assert job.command()[3:] == [*begin, "--overwrite", "--quiet"]


@pytest.mark.parametrize("code, frames, done, said", [
    (0, 100, True, "done"), (0, 60, False, "ended before its last frame, see .*seed1.log"),
    (2, 60, False, "failed with 2, see .*seed1.log"), (1, 100, False, "failed with 1, see"),
    (143, 60, False, "stopped, the same command continues it"), (130, 60, False, "stopped, the same"),
    (143, 100, True, "done")], ids=str)
def test_only_a_whole_run_is_done(code, frames, done, said, job, monkeypatch):
    def evaluations(folder, seed):
        return evaluated(seed, 1.0, frames=(0, frames))

    monkeypatch.setattr(Job, "command", lambda self: [sys.executable, "-c", f"raise SystemExit({code})"])
    monkeypatch.setattr(jobs, "evaluations", evaluations)
    outcome = run_job(job)
    name, _, message = outcome.message.partition(": ")
    assert outcome.done == done and name == "MAPPO vmas/navigation seed 1"
    assert re.match(said, message)


def test_what_is_there_is_not_run_again(job):
    append_rows(job.results, job.table, job.row, job.task, evaluated(1, 1.0))
    assert run_job(job) == (True, "MAPPO vmas/navigation seed 1: already there")


def test_who_asks_for_a_stop_ends_what_runs_and_begins_nothing_more(job, monkeypatch, tmp_path):
    """Nothing that the launcher has begun goes on without it."""
    waits = f"import pathlib, time; pathlib.Path({str(tmp_path / 'begun')!r}).touch(); time.sleep(60)"
    monkeypatch.setattr(Job, "command", lambda self: [sys.executable, "-c", waits])
    monkeypatch.setattr(jobs, "evaluations", lambda folder, seed: [])

    def stop():
        while not (tmp_path / "begun").exists():
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGTERM)

    before = signal.getsignal(signal.SIGTERM)
    threading.Thread(target=stop).start()
    first, second = launch_local([job, replace(job, seed=2)], 1)
    assert first == (False, "MAPPO vmas/navigation seed 1: stopped, the same command continues it")
    assert second == (False, "MAPPO vmas/navigation seed 2: not begun")
    assert signal.getsignal(signal.SIGTERM) == before
