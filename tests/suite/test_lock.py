"""Two processes and one run folder: real ones, of which the first trains, or was killed."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from suite.lock import LOCK, FolderLock
from suite.run import Run
from tests.runs import CONFIG, finished, rows

ROOT = Path(__file__).resolve().parents[2]
TRAINING = """
import sys, time
from suite.run import Run
from tests.runs import CONFIG
with Run(sys.argv[1], CONFIG, quiet=True, loggers=("csv",)) as run:
    run.log({"episode/return": 1.0}, frames=0)
    print("training", flush=True)
    time.sleep(600)
"""


@pytest.fixture
def training(tmp_path):
    """A process that trains in a folder."""
    process = subprocess.Popen([sys.executable, "-c", TRAINING, str(tmp_path / "r")], cwd=ROOT, stdout=subprocess.PIPE,
                               text=True, env=os.environ | {"PYTHONPATH": str(ROOT)})
    assert process.stdout.readline() == "training\n"
    yield process
    process.kill()
    process.communicate()


def test_a_second_process_is_refused_by_folder_and_number_and_a_killed_one_leaves_no_lock(training, tmp_path):
    message = rf"process {training.pid} on \S* ?trains in {tmp_path}/r: wait for its end or stop it"
    for options in ({"resume": True}, {"overwrite": True}, {}):
        with pytest.raises(ValueError, match=message), Run(tmp_path / "r", CONFIG, quiet=True, **options):
            pass
    assert rows(tmp_path / "r") == [(0, 1)], "asked before it deletes"
    training.send_signal(signal.SIGKILL)
    training.wait()
    with Run(tmp_path / "r", CONFIG, quiet=True, resume=True):
        pass
    finished(tmp_path / "r", overwrite=True)


def test_a_run_holds_its_folder_until_it_ends_also_by_an_error(tmp_path, monkeypatch):
    with Run(tmp_path, CONFIG, quiet=True), pytest.raises(ValueError, match=f"process {os.getpid()} on"), Run(
            tmp_path, CONFIG, resume=True):
        pass
    with pytest.raises(RuntimeError), Run(tmp_path, CONFIG, resume=True, quiet=True):
        raise RuntimeError

    def no_room(*args, **options):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("suite.run.make_logger", no_room)
        with pytest.raises(ValueError, match="cannot write the run folder"), Run(tmp_path, CONFIG, resume=True):
            pass
    free = FolderLock(tmp_path)
    free.take()
    free.release()


def test_a_lock_alone_is_no_run(tmp_path):
    """As a process leaves it that was killed before it wrote its config."""
    (tmp_path / LOCK).write_text("1 on nowhere")
    finished(tmp_path)


def test_a_lock_of_something_else_is_left_alone(tmp_path):
    for name in (LOCK, "thesis.txt"):
        (tmp_path / name).write_text("not ours")
    with pytest.raises(ValueError, match="is not a run folder"), Run(tmp_path, CONFIG, overwrite=True):
        pass
    assert (tmp_path / LOCK).read_text() == "not ours"


def test_only_the_first_of_several_processes_holds_it(tmp_path, monkeypatch):
    with Run(tmp_path, CONFIG, quiet=True):
        monkeypatch.setattr("suite.distributed.rank", lambda: 1)
        with Run(tmp_path, CONFIG, quiet=True):
            pass
