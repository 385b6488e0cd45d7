"""A config read back from a file that somebody else may have written: what it may say, and what it may not do."""

import json
import sys

import pytest

import recipes.cooperative as recipe
from recipes.cooperative_config import Config
from recipes.hybrid_config import Config as HybridConfig
from recipes.stored_config import stored_config
from suite.config import as_plain, run_cli
from tests.small import config

MODULE = """
import gymnasium
from gymnasium.envs.classic_control import CartPoleEnv
print("the module was imported")
gymnasium.registry.pop("Owned-v0", None)
gymnasium.register("Owned-v0", CartPoleEnv, max_episode_steps=4)
"""
TASK = "gymnasium/owned:Owned-v0"
TINY = ["--num-envs", "2", "--steps", "4", "--frames", "8", "--minibatch-size", "4", "--actor-cells", "4",
        "--critic-cells", "4", "--evaluations", "0", "--loggers", "csv", "--quiet", "--no-video"]


def write(folder, cfg, **changes):
    record = {"config": as_plain(cfg) | changes, "processes": 1, "versions": {}, "commit": "abc", "command": ""}
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(record))
    return folder


def test_what_was_stored_comes_back(tmp_path):
    for cfg in (Config(), HybridConfig(), config("qmix"), config(loss="moa", reward_weights={"task": 0.5})):
        assert stored_config(type(cfg), write(tmp_path, cfg), task=None) == cfg


@pytest.mark.parametrize("change, message", [
    ({"frames": "many"}, "frames is 'many', but must be an integer"),
    ({"lr": None}, "lr is None, but must be a number"),
    ({"num_envs": True}, "num_envs is True, but must be an integer"),
    ({"frames": 1.5}, "frames is 1.5, but must be an integer"),
    ({"steps": "all"}, "steps is 'all', but must be an integer or None"),
    ({"task": 3}, "task is 3, but must be a word"),
    ({"actor_cells": [4, "x"]}, r"actor_cells is \(4, 'x'\), but must be a list"),
    ({"actor_cells": 4}, "actor_cells is 4, but must be a list"),
    ({"share": "some"}, r"share is 'some', but must be one of \['all', 'roles', 'none'\]"),
    ({"loss_options": [1]}, r"loss_options is \(1,\), but must be names with values"),
    ({"quiet": 1}, "quiet is 1, but must be True or False"),
    ({"speed": 1}, "unknown config field 'speed'")], ids=str)
def test_a_wrong_value_is_named_with_its_file(change, message, tmp_path):
    with pytest.raises(ValueError, match=rf"^{tmp_path}/config.json: {message}"):
        stored_config(Config, write(tmp_path, Config(), **change), task=None)


def main(monkeypatch, *words):
    monkeypatch.setattr(sys, "argv", ["recipes/cooperative.py", *words])
    run_cli(recipe.main)


def test_a_module_is_imported_for_a_typed_task_and_not_for_a_stored_one(tmp_path, monkeypatch, capsys):
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "owned.py").write_text(MODULE)
    folder = tmp_path / "r"
    main(monkeypatch, *TINY, "--task", TASK, "--run-dir", str(folder))
    printed = capsys.readouterr().out
    assert "the module was imported" in printed and f"--resume {folder} --frames 16 --task {TASK}\n" in printed
    for words in ([], ["--task", "gymnasium/other:Owned-v0"]):
        monkeypatch.delitem(sys.modules, "owned", raising=False)
        with pytest.raises(SystemExit) as caught:
            main(monkeypatch, "--resume", str(folder), "--frames", "16", *words)
        said = capsys.readouterr()
        assert caught.value.code == 2 and "the module was imported" not in said.out
        assert f"{folder}/config.json has the task {TASK!r}, which imports a module by its name" in said.err
        assert f"if you trust it, repeat it with --task {TASK}" in said.err
    main(monkeypatch, "--resume", str(folder), "--frames", "16", "--task", TASK)
    assert "the module was imported" in capsys.readouterr().out
