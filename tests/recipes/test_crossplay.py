"""Cross-play from run folders: different algorithms, losses and memories at one table; refusals."""

import csv
import dataclasses
import json
import shutil
from pathlib import Path

import pytest
import torch

import recipes.cooperative as recipe
from recipes.crossplay import check, crossplay, short_names
from suite.config import as_plain
from suite.run import Run
from tests.small import config

TASK, OPTIONS = "particle/spread-3", {"dialect": "mpe2"}


def trained(folder, algorithm="mappo", *, train=True, **changes):
    """A run folder after two iterations."""
    cfg = config(algorithm, **{"task": TASK, "task_options": OPTIONS, "max_steps": 5, "evaluations": 0} | changes)
    run = Run(folder, as_plain(cfg), quiet=True, loggers=["csv"])
    trainer = recipe.make_trainer(cfg, run)
    with run:
        if train:
            trainer.train()
    return str(folder)


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    return [trained(folder / "mappo" / "seed1"), trained(folder / "mappo" / "seed2", seed=2),
            trained(folder / "gru" / "seed1", actor_recurrent_dim=6), trained(folder / "moa" / "seed1", loss="moa"),
            trained(folder / "qmix" / "seed1", "qmix")]


def test_every_kind_of_policy_plays_with_every_other(runs, tmp_path, capsys):
    crossplay(tuple(runs), episodes=7, out=str(tmp_path / "out"))
    rows = list(csv.reader((tmp_path / "out" / "crossplay.csv").read_text().splitlines()))
    names = ["mappo/seed1", "mappo/seed2", "gru/seed1", "moa/seed1", "qmix/seed1"]
    assert rows[0][1:] == names == [row[0] for row in rows[1:]]
    returns = torch.tensor([[float(x) for x in row[1:]] for row in rows[1:]])
    assert torch.isfinite(returns).all() and len(returns.unique()) > 10
    said = capsys.readouterr().out
    own, cross = returns.diag().mean(), returns[~torch.eye(5, dtype=torch.bool)].mean()
    assert f"self-play   {own:.3f}" in said and f"cross-play  {cross:.3f}" in said
    assert "greedy, 9 episodes per pair, one agent among 2" in said  # 7 rounded up to three for each place
    assert (tmp_path / "out" / "crossplay.png").exists()


def test_a_copy_of_a_run_plays_as_the_run_itself(runs, tmp_path):
    copy = trained(tmp_path / "copy", loss="moa")  # the same seed: the same weights
    for sampled in (False, True):
        crossplay((runs[3], copy), episodes=6, out=str(tmp_path / "out"), sampled=sampled)
        rows = list(csv.reader((tmp_path / "out" / "crossplay.csv").read_text().splitlines()))[1:]
        assert rows[0][1] == rows[1][2] and (sampled or rows[0][1:] == rows[1][1:] == [rows[0][1]] * 2)


def test_what_is_refused(runs, tmp_path):
    with pytest.raises(ValueError, match="at least two run folders, each given once"):
        crossplay((runs[0],))
    with pytest.raises(ValueError, match="at least two run folders, each given once"):
        crossplay((runs[0], runs[0] + "/../seed1"))
    with pytest.raises(ValueError, match="nothing is not a run folder"):
        crossplay((runs[0], str(tmp_path / "nothing")))
    with pytest.raises(ValueError, match="episodes must be positive, got 0"):
        crossplay(tuple(runs), episodes=0)
    with pytest.raises(ValueError, match=r"only repeats the runs' own task .*, got 'vmas/balance'"):
        crossplay(tuple(runs), task="vmas/balance")


@pytest.mark.parametrize(("change", "named"), [
    ({"task": "particle/spread-2"}, "same task: one has 'particle/spread-3', two has 'particle/spread-2'"),
    ({"task_options": {}}, "same task_options"), ({"max_steps": 7}, "same max_steps: one has 5, two has 7"),
    ({"team_reward": True}, "same team_reward")], ids=str)
def test_another_game_is_refused(change, named):
    cfg = config(task=TASK, task_options=OPTIONS, max_steps=5)
    with pytest.raises(ValueError, match=named):
        check(["one", "two"], [cfg, dataclasses.replace(cfg, **change)])
    check(["one", "two"], [cfg, dataclasses.replace(cfg, seed=5, algorithm="ippo", lr=1.0, loss="moa")])


def test_a_run_that_never_saved_is_refused(runs, tmp_path):
    from suite.checkpoint import CheckpointError

    with pytest.raises(CheckpointError, match="no whole checkpoint"):
        crossplay((runs[0], trained(tmp_path / "empty", train=False)))


def test_a_run_of_another_version_is_refused_by_its_commit(runs, tmp_path):
    from suite.checkpoint import CheckpointError

    folder = Path(shutil.copytree(runs[0], tmp_path / "old"))
    text = (folder / "config.json").read_text()
    (folder / "config.json").write_text(json.dumps(json.loads(text) | {
        "config": json.loads(text)["config"] | {"actor_cells": [7]}, "commit": "abc1234"}))
    with pytest.raises(CheckpointError, match=r"old does not fit: it was saved at commit abc1234, .* size mismatch"):
        crossplay((runs[0], str(folder)))


def test_a_run_whose_task_imports_a_module_is_refused_unless_the_task_is_typed(runs, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "taken_over.py").write_text("raise SystemExit('the module was imported')")
    for name in ("one", "two"):
        shutil.copytree(runs[0], tmp_path / name)
        file = tmp_path / name / "config.json"
        file.write_text(file.read_text().replace(json.dumps(TASK), '"gymnasium/taken_over:X-v0"').replace(
            json.dumps(OPTIONS)[1:-1], ""))
    folders = str(tmp_path / "one"), str(tmp_path / "two")
    with pytest.raises(ValueError, match=r"one/config.json has the task .*--task gymnasium/taken_over:X-v0"):
        crossplay(folders)
    with pytest.raises(SystemExit, match="the module was imported"):
        crossplay(folders, task="gymnasium/taken_over:X-v0")


def test_names_are_what_differs():
    assert short_names(["runs/x/mappo/seed1", "runs/x/mappo/seed2"]) == ["seed1", "seed2"]
    assert short_names(["runs/x/mappo/seed1", "runs/x/moa/seed1"]) == ["mappo", "moa"]
    assert short_names(["a/mappo/seed1", "a/moa/seed2"]) == ["mappo/seed1", "moa/seed2"]
    assert short_names(["a", "a/b"]) == ["a", "a/b"]
