"""What a run prints at its end: returns before and after, how far it came, and the commands to go on."""

import os
import signal

import pytest

from suite.run import Run
from tests.runs import CONFIG, finished


class Trained:
    """What `conclude` asks a trainer for."""

    frames = 100

    def __init__(self, evaluate=None):
        self.evaluate = evaluate


class Drawing:
    def video(self, path):
        path.parent.mkdir(parents=True)
        path.write_text("GIF")
        return path


def test_conclude_prints_returns_folder_and_commands(tmp_path, capsys):
    run = finished(tmp_path / "r")
    run.conclude(Trained(Drawing()), video=True, module="recipes.x", swap="--loss y")
    lines = capsys.readouterr().out.splitlines()
    folder = tmp_path / "r"
    assert lines == ["return   0.000 -> 2.000 after 100 frames (greedy)",
                     f"video    {folder}/videos/100.gif", f"run      {folder}",
                     f"watch    tensorboard --logdir {folder}",
                     f"resume   python -m recipes.x --resume {folder} --frames 200",
                     "swap     python -m recipes.x --loss y"]


def test_conclude_prints_success_where_the_task_has_it(tmp_path, capsys):
    run = finished(tmp_path / "r")
    run.log({"eval/return_greedy": 3.0, "eval/success": 0.25}, frames=120)
    run.conclude(Trained(Drawing()), video=False, module="recipes.x", swap="--loss y")
    first = capsys.readouterr().out.splitlines()[0]
    assert first == "return   0.000 -> 3.000, success 25% after 120 frames (greedy)"


def test_runs_of_several_processes_are_resumed_by_as_many(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("suite.distributed.world_size", lambda: 2)
    run = finished(tmp_path / "r")
    run.conclude(Trained(), video=False, module="recipes.x", swap="--loss y")
    said, start = capsys.readouterr().out, "python -m torch.distributed.run --nproc_per_node 2 -m recipes.x"
    assert f"resume   {start} --resume {tmp_path}/r" in said and f"swap     {start} --loss y" in said
    monkeypatch.setattr("suite.distributed.world_size", lambda: 1)
    with pytest.raises(ValueError, match=r"processes: 2 -> 1 \(it was started by python -m .* --nproc_per_node 2 -m"):
        Run(tmp_path / "r", CONFIG, resume=True)


def test_an_interrupted_run_says_how_far_it_came(tmp_path, capsys):
    with Run(tmp_path / "r", CONFIG, quiet=True) as run:
        run.expect(100)
        run.log({"eval/return_greedy": 1.5}, frames=0)
        os.kill(os.getpid(), signal.SIGTERM)
    trained = Trained()
    trained.frames = 60
    run.conclude(trained, video=True, module="recipes.x", swap="")
    assert capsys.readouterr().out.splitlines()[:2] == ["stopped  after 60 of 100 frames",
                                                        "return   1.500 after 0 frames (greedy)"]


def test_a_run_that_cannot_be_resumed_says_so_before_and_after_and_is_not(tmp_path, capsys):
    run = finished(tmp_path / "r", no_resume="it keeps nothing")
    assert "note: this run cannot be resumed: it keeps nothing\n" in capsys.readouterr().err
    run.conclude(Trained(), video=False, module="recipes.x", swap="")
    printed = capsys.readouterr().out
    assert "resume   not possible: it keeps nothing\n" in printed and "--resume" not in printed
    with pytest.raises(ValueError, match="r cannot be resumed: it keeps nothing"):
        Run(tmp_path / "r", CONFIG, resume=True)
    said = r"exists: it cannot be resumed \(it keeps nothing\); replace it with --over"
    with pytest.raises(ValueError, match=said), Run(tmp_path / "r", CONFIG):
        pass


def test_a_task_that_cannot_be_drawn_does_not_spoil_the_end(tmp_path, capsys):
    class Blind:
        def video(self, path):
            raise ValueError("this task cannot be drawn")

    run = finished(tmp_path / "r")
    run.conclude(Trained(Blind()), video=True, module="recipes.x", swap="")
    printed = capsys.readouterr().out
    assert "video    none: this task cannot be drawn" in printed and "resume " in printed


def test_conclude_of_a_resumed_run_starts_with_the_first_return(tmp_path, capsys):
    finished(tmp_path)
    with Run(tmp_path, CONFIG, resume=True, quiet=True) as run:
        pass
    run.conclude(Trained(), video=True, module="recipes.x", swap="")
    printed = capsys.readouterr().out
    assert "return   0.000 -> 2.000" in printed
    assert "video" not in printed
