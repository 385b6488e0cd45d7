"""What every recipe does around its own composition: how a run ends, and under which name it is logged."""

import os
import signal
import sys

import pytest

import recipes.cooperative as recipe
from suite.config import run_cli
from suite.run import Run
from suite.trainer import Trainer
from tests.small import TOY, make_toy

TINY = ["--task", TOY, "--num-envs", "2", "--steps", "4", "--max-steps", "4", "--frames", "32", "--minibatch-size", "4",
        "--actor-cells", "4", "--critic-cells", "4", "--evaluations", "0", "--loggers", "csv", "--quiet"]


def main(monkeypatch, *words):
    monkeypatch.setattr(recipe, "make_env", make_toy)
    monkeypatch.setattr(sys, "argv", ["recipes/cooperative.py", *words])
    run_cli(recipe.main)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_stopped_run_says_so_to_the_shell_and_is_continued_to_its_end(number, tmp_path, monkeypatch, capsys):
    iterate = Trainer.iterate

    def stopping(self, batch):
        if self.iteration == 1:
            os.kill(os.getpid(), number)
        return iterate(self, batch)

    with monkeypatch.context() as patch, pytest.raises(SystemExit) as caught:
        patch.setattr(Trainer, "iterate", stopping)
        main(patch, *TINY, "--run-dir", str(tmp_path / "r"))
    assert caught.value.code == 128 + number
    assert "stopped  after 16 of 32 frames" in capsys.readouterr().out
    main(monkeypatch, "--resume", str(tmp_path / "r"))  # ends as usual, so without a code


def test_a_run_is_logged_under_the_name_of_its_recipe(tmp_path, monkeypatch):
    projects = []

    class Spied(Run):
        def __init__(self, *args, **options):
            super().__init__(*args, **options)
            projects.append(self.project)

    monkeypatch.setattr("recipes.running.Run", Spied)
    main(monkeypatch, *TINY, "--run-dir", str(tmp_path / "r"))
    assert projects == ["cooperative"]


def test_one_checkpoint_alone_is_refused(tmp_path, monkeypatch, capsys):
    with pytest.raises(SystemExit):
        main(monkeypatch, *TINY, "--run-dir", str(tmp_path / "r"), "--keep-checkpoints", "1")
    assert "keep_checkpoints must be at least 2, got 1" in capsys.readouterr().err and not (tmp_path / "r").exists()
