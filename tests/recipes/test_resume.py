"""N + M iterations equal N, stop or kill, resume, M: to the last bit, in every metric and in all that is saved."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

import recipes.cooperative as recipe
from suite.checkpoint import Checkpoints
from suite.config import run_cli
from tests.runs import differences, metrics, state, training

ROOT = Path(__file__).resolve().parents[2]
SMALL = ["--num-envs", "4", "--steps", "10", "--max-steps", "8", "--eval-episodes", "2", "--evaluations", "2",
         "--quiet",
         "--no-video", "--loggers", "csv", "--checkpoint-every", "2", "--actor-cells", "8"]
NAVIGATION = ["--task", "vmas/navigation", "--task-options", "n_agents=2"]
SPREAD = ["--task", "vmas/simple_spread", "--task-options", "n_agents=2", "continuous_actions=False"]
PPO = ["--minibatch-size", "20", "--epochs", "2", "--critic-cells", "8"]
REPLAY = ["--minibatch-size", "10", "--warmup", "60", "--buffer-size", "100", "--gradient-steps", "2",
          "--exploration-frames", "200"]
# trainings in iterations 2, 3, 5 and 6, copies of the filter in 3 and 5, and every reward counted
SMPE = ["--loss", "smpe", "--loss-options", "encode_every=6", "encode_steps=3", "encode_rows=8", "copy_every=9",
        "memory=12", "latent_dim=4", "novelty=0.1", "observation_novelty=0.1", "filter_every=2", "--critic-cells", "8",
        "--actor-recurrent-dim", "6", "--max-steps", "10"]
MOA = ["--loss", "moa", "--loss-options", "latent_dim=4", "num_cells=8", "depth=1", "curiosity=0.1"]
FRAMES = 40  # of one iteration
RUNS = {
    "mappo": [*NAVIGATION, *PPO],
    "mappo gru": [*NAVIGATION, *PPO, "--actor-recurrent-dim", "6", "--critic-recurrent-dim", "5", "--value-norm",
                  "--value-clip", "0.2"],
    "mappo gru target": [*NAVIGATION, *PPO, "--actor-recurrent-dim", "6", "--critic-recurrent-dim", "5", "--target-tau",
                         "0.1"],
    "maa2c epymarl": [*NAVIGATION, "--algorithm", "maa2c", "--preset", "epymarl", "--actor-recurrent-dim", "6",
                      "--critic-cells", "8"],
    "qmix": [*SPREAD, "--algorithm", "qmix", *REPLAY],
    "maddpg": [*NAVIGATION, "--algorithm", "maddpg", *REPLAY, "--critic-cells", "8"],
    "next observation": [*NAVIGATION, *PPO, "--loss", "next_observation", "--loss-options", "curiosity=0.1"],
    "next observation qmix": [*SPREAD, "--algorithm", "qmix", *REPLAY, "--loss", "next_observation"],
    "discrete roles": [*SPREAD, *PPO, "--share", "none"],
    "smpe official": [*NAVIGATION, "--algorithm", "maa2c", "--preset", "official", *SMPE],
    "smpe fixed": [*NAVIGATION, "--algorithm", "mappo", "--preset", "fixed", *SMPE],
    "mappo scaled": [*NAVIGATION, *PPO, "--normalize-observation", "--target-tau", "0.1", "--actor-recurrent-dim", "6"],
    "moa": [*NAVIGATION, *PPO, *MOA, "alpha_warmup=0.0"],
    "moa gru": [*SPREAD, *PPO, *MOA, "alpha_warmup=0.0", "policy_latent=sample", "--actor-recurrent-dim", "6",
                "--critic-recurrent-dim", "5"],
    "moa memory": [*SPREAD, *PPO, *MOA, "alpha_warmup=0.0", "memory=gru", "memory_dim=6", "memory_chunk=5",
                   "ppo_latent=recompute"],
    "moa shuffled": [*SPREAD, *PPO, *MOA, "alpha_warmup=0.0", "shuffle_z=True"],
    "moa ramp": [*SPREAD, *PPO, *MOA, "alpha_warmup=0.9", "actor_inputs=obs+z+moa"],
}
MODELS = ["--loss", "moa", "--loss-options", "latent_dim=4", "num_cells=8", "depth=1", "alpha_warmup=0.0", "ensemble=3"]
IMAGINED = [*MODELS, "imagination_skill=0.0", "imagination_reward_skill=-1e9"]
RUNS |= {
    "moa curious": [*NAVIGATION, *PPO, *MODELS, "disagreement=0.1", "latent_surprise=0.1", "curiosity=0.1",
                    "curiosity_scale=std", "wm_replay=2", "wm_use_z=True", "social_curiosity=0.1"],
    "moa expand": [*NAVIGATION, *PPO, *IMAGINED, "imagination=expand", "horizon=2", "continue_head=True"],
    "moa dyna": [*SPREAD, *PPO, *IMAGINED, "imagination=dyna", "policy_latent=sample", "--value-norm"],
    "moa student": [*SPREAD, *PPO, *MOA, "alpha_warmup=0.0", "ppo_latent=recompute", "rl_grad_to_phi=True",
                    "acting_tau=1.0", "soft_clamp=True"],
    "moa teacher": [*NAVIGATION, *PPO, *MOA, "alpha_warmup=0.0", "critic_z=teacher_no_action"],
    "moa joint": [*NAVIGATION, *PPO, *MOA, "alpha_warmup=0.0", "joint_update=True", "held_out=0.0"],
    "moa influence": [*SPREAD, *PPO, *MODELS, "influence=0.1", "influence_skill=0.01", "influence_decay=0"],
    "moa fading": [*SPREAD, *PPO, *MODELS, "influence=0.1", "influence_skill=0", "influence_decay=0.8"],
    "moa decentralised": [*SPREAD, *PPO, *IMAGINED, "imagination=decentralised", "horizon=4", "shared_reward=True"],
}
WHOLE = ["moa ramp", "moa fading"]  # a schedule of the whole run, which a longer run has another of


def main(*words, monkeypatch):
    """The command line in this process: a fresh environment, networks, optimisers."""
    with monkeypatch.context() as patch:
        patch.setattr(sys, "argv", ["recipes/cooperative.py", *words])
        run_cli(recipe.main)


@pytest.mark.parametrize("name", [name for name in RUNS if name not in WHOLE])
def test_extending_a_finished_run_equals_a_longer_run(name, tmp_path, monkeypatch):
    words = [*SMALL, *RUNS[name]]
    main(*words, "--frames", str(6 * FRAMES), "--run-dir", str(tmp_path / "whole"), monkeypatch=monkeypatch)
    main(*words, "--frames", str(3 * FRAMES), "--run-dir", str(tmp_path / "parts"), monkeypatch=monkeypatch)
    torch.manual_seed(999)  # what else this process draws must not matter
    main("--resume", str(tmp_path / "parts"), "--frames", str(6 * FRAMES), monkeypatch=monkeypatch)
    assert {"reward/task.csv", "episode/return.csv"} <= training(tmp_path / "whole").keys()
    assert training(tmp_path / "whole") == training(tmp_path / "parts")
    whole, parts = state(tmp_path / "whole"), state(tmp_path / "parts")
    assert whole["iteration"] == 6 and differences(whole, parts) == []


@pytest.mark.parametrize("name", ["smpe official", "smpe fixed"])
def test_a_state_model_was_busy_before_and_after_the_break(name, whole):
    """What the equalities of this file compare: clocks, counters, memory, a copied filter, both optimisers."""
    found = state(whole(name))
    [loss], extra = found["losses"], found["losses"][0]["_extra_state"]
    assert extra == {"frames": 6 * FRAMES, "calls": 4}
    rows = FRAMES * 6 + (4 * 6 if name == "smpe official" else 0)  # with the last observation of each row
    for table in ("visits.tables", "observation_visits.tables"):
        assert loss[table].sum() == rows * 2 * 6  # agents, tables
    [memory] = [source for source in found["sources"] if source]
    assert len(memory["frames"]["agents/observation"]) == 120 and len(found["estimators"]) == 2
    optimizers = {**found["updates"]["smpe"]["optimizers"], **found["updates"]["smpe_critic"]["optimizers"]}
    assert all(optimizer["state"] for optimizer in optimizers.values())
    trained = (whole(name) / "metrics" / "scalars" / "smpe" / "loss_rec.csv").read_text().splitlines()
    assert [int(row.split(",")[0]) for row in trained] == [k * FRAMES for k in (2, 3, 5, 6)]


@pytest.mark.parametrize("name", ["moa expand", "moa dyna", "moa decentralised"])
def test_imagination_counted_before_and_after_the_break(name, whole):
    rows = (whole(name) / "metrics" / "scalars" / "imagination" / "active.csv").read_text().splitlines()
    active = [float(row.split(",")[1]) for row in rows]
    assert len(active) == 6 and any(active[:3]) and any(active[3:])


def test_the_ramp_was_busy_before_and_after_the_break(whole):
    """Five sixths of the run have another weight of the KL each; every network has its optimiser's moments."""
    found = state(whole("moa ramp"))
    [loss] = found["losses"]
    assert loss["_extra_state"] == {"frames": 6 * FRAMES, "total_frames": 6 * FRAMES, "iterations": 6}
    optimizers = found["updates"]["moa"]["optimizers"]
    assert optimizers.keys() == {"moa", "world_model", "student", "teacher"}
    assert all(optimizer["state"] for optimizer in optimizers.values())
    text = (whole("moa ramp") / "metrics" / "scalars" / "moa" / "loss_kl.csv").read_text().splitlines()
    rows = [tuple(map(float, row.split(","))) for row in text]
    kl = (whole("moa ramp") / "metrics" / "scalars" / "moa" / "kl.csv").read_text().splitlines()
    weights = [value / float(row.split(",")[1]) for (_, value), row in zip(rows, kl, strict=True)]
    assert weights == pytest.approx([0.03 * min(1, k / (0.9 * 6)) for k in range(6)], rel=1e-3)


def test_the_comparison_sees_one_bit(tmp_path, monkeypatch):
    for seed in ("1", "2"):
        words = [*SMALL, *RUNS["mappo"], "--frames", str(FRAMES), "--seed", seed, "--run-dir", str(tmp_path / seed)]
        main(*words, monkeypatch=monkeypatch)
    assert metrics(tmp_path / "1") != metrics(tmp_path / "2")
    found = differences(state(tmp_path / "1"), state(tmp_path / "2"))
    assert any(path.startswith("/policy/") and path.endswith("out.bias") for path in found)
    a = {"x": [torch.tensor([1.0]), 3]}
    assert differences(a, {"x": [torch.nextafter(torch.tensor([1.0]), torch.tensor([2.0])), 3]}) == ["/x/0"]
    assert differences(a, {"x": [torch.tensor([1.0]), 4]}) == ["/x/1"] and differences(a, a) == []


def test_a_run_of_another_version_is_refused_by_its_commit(tmp_path, monkeypatch, capsys):
    """As if what this config builds had changed since: the file says so, and both configs agree."""
    main(*SMALL, *RUNS["mappo"], "--frames", str(FRAMES), "--run-dir", str(tmp_path / "r"), monkeypatch=monkeypatch)
    record = json.loads((tmp_path / "r" / "config.json").read_text())
    record["config"]["actor_cells"], record["commit"] = [7], "abc1234"
    (tmp_path / "r" / "config.json").write_text(json.dumps(record))
    with pytest.raises(SystemExit):
        main("--resume", str(tmp_path / "r"), monkeypatch=monkeypatch)
    said = capsys.readouterr().err
    assert "does not fit: it was saved at commit abc1234, this is" in said and "size mismatch" in said


def test_resuming_a_finished_run_changes_nothing_but_its_record(tmp_path, monkeypatch, capsys):
    main(*SMALL, *RUNS["mappo"], "--frames", str(2 * FRAMES), "--run-dir", str(tmp_path / "r"), monkeypatch=monkeypatch)
    before, rows = state(tmp_path / "r"), metrics(tmp_path / "r")
    capsys.readouterr()
    main("--resume", str(tmp_path / "r"), monkeypatch=monkeypatch)
    assert differences(before, state(tmp_path / "r")) == [] and rows == metrics(tmp_path / "r")
    assert "return   " in capsys.readouterr().out


@pytest.mark.parametrize("task", [["gymnasium/CartPole-v1"],
                                  ["pettingzoo/mpe2.simple_spread_v3", "continuous_actions=True"]], ids=str)
def test_other_families_resume_too(task, tmp_path, monkeypatch):
    words = [*SMALL, *PPO, "--task", task[0], *(["--task-options", *task[1:]] if task[1:] else [])]
    main(*words, "--frames", str(4 * FRAMES), "--run-dir", str(tmp_path / "whole"), monkeypatch=monkeypatch)
    main(*words, "--frames", str(2 * FRAMES), "--run-dir", str(tmp_path / "parts"), monkeypatch=monkeypatch)
    main("--resume", str(tmp_path / "parts"), "--frames", str(4 * FRAMES), monkeypatch=monkeypatch)
    assert training(tmp_path / "whole") == training(tmp_path / "parts")
    assert differences(state(tmp_path / "whole"), state(tmp_path / "parts")) == []


# ---------------------------------------------------------------------- a real SIGKILL of a real process

MOMENTS = {  # moment, which call of it
    "before the first checkpoint": ("half a checkpoint", 1),
    "in the first rollout": ("rollout", 5),
    "in a rollout": ("rollout", 33),
    "in an early update": ("update", 4),
    "in an update": ("update", 15),
    "in a row of the metrics": ("half a row", 60),
    "in a checkpoint": ("half a checkpoint", 3),
    "between checksum and checkpoint": ("checksum without checkpoint", 9),
}


def python(*words, **options):
    return subprocess.Popen([sys.executable, *words], cwd=ROOT, env=os.environ | {"PYTHONPATH": str(ROOT)},
                            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **options)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """Uninterrupted runs by name, made when first asked for."""
    folder, made = tmp_path_factory.mktemp("whole"), {}

    def get(name):
        if name not in made:
            made[name] = folder / name.replace(" ", "-")
            with pytest.MonkeyPatch.context() as patch:
                main(*SMALL, *RUNS[name], "--frames", str(6 * FRAMES), "--run-dir", str(made[name]), monkeypatch=patch)
        return made[name]

    return get


def killed(name, moment, folder):
    """Start the run in a process of its own, which is killed at the moment."""
    process = python(str(ROOT / "tests" / "scripts" / "killed.py"), *map(str, MOMENTS[moment]), "recipes.cooperative",
                     *SMALL,
                     *RUNS[name], "--frames", str(6 * FRAMES), "--run-dir", str(folder))
    _, errors = process.communicate(timeout=120)
    assert process.returncode == -signal.SIGKILL, errors
    assert Checkpoints(folder / "checkpoints").whole()[-1:] != [6]


@pytest.mark.parametrize("moment", MOMENTS)
def test_killed_and_resumed_equals_never_killed(moment, whole, tmp_path, monkeypatch):
    killed("mappo", moment, tmp_path)
    main("--resume", str(tmp_path), monkeypatch=monkeypatch)
    assert metrics(tmp_path) == metrics(whole("mappo"))
    assert differences(state(whole("mappo")), state(tmp_path)) == []
    leftovers = [path.name for path in tmp_path.rglob("*.tmp")]
    assert leftovers == []


@pytest.mark.parametrize("name", ["smpe official", "smpe fixed", "moa ramp", "moa fading"])
def test_a_state_model_killed_and_resumed_equals_never_killed(name, whole, tmp_path, monkeypatch):
    killed(name, "in an update", tmp_path)
    main("--resume", str(tmp_path), monkeypatch=monkeypatch)
    assert metrics(tmp_path) == metrics(whole(name))
    assert differences(state(whole(name)), state(tmp_path)) == []


@pytest.mark.slow
@pytest.mark.parametrize("moment", ["in a rollout", "in an early update", "in a checkpoint"])
@pytest.mark.parametrize("name", ["mappo gru", "maa2c epymarl", "qmix", "maddpg", "smpe official",
                                  "smpe fixed"])
def test_killed_and_resumed_equals_never_killed_for_every_algorithm(name, moment, whole, tmp_path, monkeypatch):
    killed(name, moment, tmp_path)
    main("--resume", str(tmp_path), monkeypatch=monkeypatch)
    assert metrics(tmp_path) == metrics(whole(name))
    assert differences(state(whole(name)), state(tmp_path)) == []


def test_killed_twice_from_outside_and_resumed_by_a_real_process(tmp_path, monkeypatch):
    """The whole way as a user goes it: start, kill, resume, kill, resume; the times of the kills are left to chance."""
    words = [*SMALL, *RUNS["mappo"], "--frames", str(40 * FRAMES)]
    main(*words, "--run-dir", str(tmp_path / "whole"), monkeypatch=monkeypatch)
    folder = tmp_path / "r"
    rows = folder / "metrics" / "scalars" / "reward" / "task.csv"
    for begin, enough in ((["--run-dir", str(folder), *words], 5), (["--resume", str(folder)], 25)):
        process = python("-m", "recipes.cooperative", *begin)
        deadline = time.monotonic() + 100
        while process.poll() is None and time.monotonic() < deadline:
            if rows.exists() and len(rows.read_text().splitlines()) >= enough:
                break
            time.sleep(0.002)
        process.kill()
        _, errors = process.communicate()
        assert process.returncode == -signal.SIGKILL, errors
        assert enough <= len(rows.read_text().splitlines()) < 40, "killed too late to show anything"
    process = python("-m", "recipes.cooperative", "--resume", str(folder))
    out, errors = process.communicate(timeout=120)
    assert process.returncode == 0, errors
    assert "return   " in out
    assert metrics(folder) == metrics(tmp_path / "whole")
    assert differences(state(tmp_path / "whole"), state(folder)) == []


def test_fresh_evaluations_are_the_same_after_a_break(tmp_path, monkeypatch):
    """Evaluations after iterations 0, 2, 4 and 6, a break behind the fourth; the training is that of same starts."""
    words = [*SMALL, *RUNS["mappo"], "--evaluations", "3", "--frames", str(6 * FRAMES)]
    for name, starts in (("whole", "fresh"), ("parts", "fresh"), ("same", "same")):
        main(*words, "--eval-starts", starts, "--run-dir", str(tmp_path / name), monkeypatch=monkeypatch)
    max((tmp_path / "parts" / "checkpoints").glob("*.pt")).unlink()
    main("--resume", str(tmp_path / "parts"), monkeypatch=monkeypatch)
    assert metrics(tmp_path / "parts") == metrics(tmp_path / "whole")
    assert training(tmp_path / "same") == training(tmp_path / "whole")
    fresh, same = (metrics(tmp_path / name)["eval/return.csv"].splitlines() for name in ("whole", "same"))
    assert len(fresh) == len(same) == 4 and all(a != b for a, b in zip(fresh, same, strict=True))


def test_an_altered_checkpoint_is_named_and_the_one_before_gives_the_same_end(whole, tmp_path, monkeypatch):
    folder = tmp_path / "r"
    main(*SMALL, *RUNS["mappo"], "--frames", str(6 * FRAMES), "--run-dir", str(folder), monkeypatch=monkeypatch)
    newest = max((folder / "checkpoints").glob("*.pt"))
    data = bytearray(newest.read_bytes())
    data[len(data) // 2] ^= 1
    newest.write_bytes(data)
    with pytest.warns(UserWarning, match=f"{newest.name} is broken"):
        main("--resume", str(folder), monkeypatch=monkeypatch)
    assert metrics(folder) == metrics(whole("mappo"))
    assert differences(state(whole("mappo")), state(folder)) == []
