"""What every recipe does around its own composition: how a run ends, and under which name it is logged."""

import os
import signal
import sys
from typing import Literal

import pytest

import recipes.cooperative as recipe
from recipes.run_checks import check_options
from suite.config import run_cli
from suite.losses import STATE_MODELS, Loss
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


# ---------------------------------------------------------------------- options of losses


@pytest.mark.parametrize("given, words", [
    ({"flag": "false"}, "flag of loss 'x' must be True or False, such as False, got 'false'"),
    ({"flag": 1}, "must be True or False"), ({"count": 2.0}, "count of loss 'x' must be an integer, such as 3"),
    ({"count": True}, "an integer"), ({"rate": "fast"}, "rate of loss 'x' must be a number"),
    ({"rate": True}, "a number"), ({"word": 3}, "word of loss 'x' must be a word, such as 'a', got 3"),
    ({"wrod": "a"}, "unknown option of loss 'x' 'wrod'.*mean 'word'"),
])
def test_options_have_the_kind_of_their_default(given, words):
    class Made(Loss):
        def __init__(self, specs, *, flag=False, count=3, rate=0.5, word="a", open_=None):
            pass

    check_options("loss 'x'", {"flag": True, "count": 4, "rate": 1, "word": "b", "open_": 3}, Made)
    with pytest.raises(ValueError, match=words):
        check_options("loss 'x'", given, Made)


@pytest.mark.parametrize("given, words", [
    ({"flag": "no"}, "flag of loss 'x' must be True, False or None, got 'no'"), ({"flag": 1}, "got 1"),
    ({"rate": "abc"}, "rate of loss 'x' must be a number or None, got 'abc'"), ({"rate": "none"}, "got 'none'"),
    ({"way": "c"}, r"way of loss 'x' must be one of \['a', 'b'\], got 'c'"), ({"way": None}, "got None"),
    ({"sizes": 3}, r"sizes of loss 'x' must be a list, such as \(\), got 3"), ({"sizes": [1, "a"]}, "a list"),
    ({"scale": "wide"}, "scale of loss 'x' must be a number, such as 1, got 'wide'"),
])
def test_options_have_the_kind_of_their_annotation(given, words):
    class Made(Loss):
        def __init__(self, specs, *, flag: bool | None = None, rate: float | None = None, way: Literal["a", "b"] = "a",
                     sizes: tuple[int, ...] = (), scale: float = 1):
            pass

    fine = {"flag": False, "rate": 1, "way": "b", "sizes": [1, 2], "scale": 0.5}
    check_options("loss 'x'", fine, Made)
    check_options("loss 'x'", {"flag": None, "rate": None}, Made)
    with pytest.raises(ValueError, match=words):
        check_options("loss 'x'", given, Made)


@pytest.mark.parametrize("option, value", [
    ("train_filtered_critic", "no"), ("reencode", "no"), ("mask_padding", 0), ("lr_filtered_critic", "abc"),
    ("clip_inputs", "abc"), ("norm_loss", "l2"), ("bonus_belief", "mode"), ("filters", 1),
])
def test_what_loss_smpe_leaves_to_its_preset_is_checked_too(option, value):
    with pytest.raises(ValueError, match=f"{option} of loss 'smpe' must be .*got {value!r}"):
        check_options("loss 'smpe'", {option: value}, STATE_MODELS["smpe"])
