"""The experiments at the size of two seconds, what is read from runs, and the page they make."""

import json

import numpy as np
import pytest
import torch

from recipes import moa_latents, moa_predictions, moa_runs
from recipes.moa_experiments import Effort, SmoothActions, learn, random_partners
from recipes.moa_latents import ToyEffort
from recipes.moa_obligations import OBLIGATIONS
from recipes.moa_proofs import EXPERIMENTS, FROM_RUNS, claims, prove, updated
from suite.config import as_plain
from suite.results import Evaluation, append_rows
from suite.run import Run
from suite.specs import ACTION, CONTROLLED, LOGITS, SCRIPTED_ACTION, Specs
from tests.small import config, train

torch.set_num_threads(1)
TINY = Effort(iterations=1, num_envs=12, steps=25, epochs=1, minibatch=150, test_envs=12)
TINY_TOY = ToyEffort(train=60, test=60, action_steps=3, latent_steps=3, memory_steps=3, probe_steps=3)


def test_partners_are_stochastic_but_not_uniform():
    found = learn("particle/spread-3", random_partners, seed=1, part="action_loss", effort=TINY)
    spread = found.test[LOGITS].std(-1).mean().item()
    assert 0.5 < spread < 5
    numbers = found.numbers()
    assert numbers["moa/ce_floor"] < numbers["moa/ce_marginal"]
    assert all(torch.isfinite(torch.tensor(value)) for value in numbers.values())


def test_only_the_part_that_is_asked_for_learns():
    found = learn("particle/spread-3", random_partners, seed=1, part="action_loss", effort=TINY)
    learning = {name for name, p in found.loss.named_parameters() if p.requires_grad}
    assert learning and all("action_model" in name for name in learning)


def test_smooth_actions_by_hand():
    """Without noise, 0.85 of the step before; always inside the bounds."""
    specs = Specs(n_agents=2, obs_dim=1, action_dim=1, discrete=False, agent_types=(0, 0),
                  low=torch.tensor([[-1.0], [0.0]]), high=torch.tensor([[1.0], [4.0]]))
    actors, before = SmoothActions(specs), torch.tensor([[[0.5, 0.1], [-1.0, 0.3]]]).expand(4000, 2, 2)
    out = actors(before)
    assert out.shape == (4000, 2, 1)
    torch.testing.assert_close(out[:, 0].mean(), torch.tensor(0.85 * 0.5), atol=0.02, rtol=0)
    assert out[:, 0].abs().max() <= 1 and out[:, 1].min() >= 0 and out[:, 1].max() <= 4


def test_skill_by_feature_of_a_new_world_model_is_zero():
    """Its first prediction is that nothing changes."""
    found = learn("vmas/simple_spread", moa_predictions.smooth_actors, seed=1, part="world_loss", effort=TINY)
    torch.nn.init.zeros_(_last_layer(found.loss.model.world_model).weight)
    torch.nn.init.zeros_(_last_layer(found.loss.model.world_model).bias)
    assert moa_predictions.feature_skill(found) == pytest.approx(0, abs=1e-6)


def _last_layer(network):
    return [module for module in network.modules() if isinstance(module, torch.nn.Linear)][-1]


@pytest.mark.parametrize("options", [{}, {"direction": "teacher_to_student"}, {"memory": True}], ids=str)
def test_the_toy_gives_every_number(options):
    found = moa_latents.toy(0, effort=TINY_TOY, **options)
    assert {*moa_latents.PROBED, "kl", "calibration", "bayes", "bayes_late", "z_late"} <= set(found)
    assert 0.7 < found["bayes"] < 0.9 and found["bayes_late"] > found["bayes"]


def test_the_past_of_followers_holds_what_the_script_played():
    found = learn("vmas/hidden_leader", moa_latents.uniform_actors, seed=1, part="action_loss", effort=TINY,
                  continuous_actions=False, partner_types=True)
    overridden = ~found.test[CONTROLLED]
    assert overridden.any() and torch.equal(found.test[ACTION][overridden], found.test[SCRIPTED_ACTION][overridden])


def test_skill_by_feature_leaves_padding_out():
    """The speaker sees 3 of 11 features; whatever is said of the others changes nothing."""
    found = learn("vmas/simple_speaker_listener_pe", moa_predictions.smooth_actors, seed=1, part="world_loss",
                  effort=TINY)
    padding = ~found.specs.obs_mask
    before, world = moa_predictions.feature_skill(found), found.loss.model.world_model
    ask = world.forward
    world.forward = lambda u, joint: (ask(u, joint)[0] + 50.0 * padding, None)
    assert padding.any() and moa_predictions.feature_skill(found) == pytest.approx(before, abs=1e-6)


def test_followers_of_a_scripted_leader():
    found = moa_latents.leader(0, effort=Effort(1, 12, 100, 1, 400, 12), steps=3)
    assert {*moa_latents.PROBED, "kl", "calibration"} <= set(found)


def test_claims_by_hand():
    found = claims({"u": 0.6, "uc": 0.6, "uc_mlp": 0.66, "z": 0.65, "z_mlp": 0.7, "z_teacher": 0.9, "kl": 16.0}, 8)
    assert found["probe/uc_mlp - probe/z"] == pytest.approx(0.01)
    assert found["probe/uc_mlp - probe/z_mlp"] == pytest.approx(-0.04)
    assert found["probe/z_teacher - probe/z"] == pytest.approx(0.25)
    assert found["kl / d_z"] == 2 and "Bayes filter - probe/z" not in found


def test_every_obligation_is_measured_by_an_experiment():
    assert {o.experiment for o in OBLIGATIONS} <= {*EXPERIMENTS, *FROM_RUNS}
    keys = [(o.experiment, o.figure) for o in OBLIGATIONS]
    assert len(set(keys)) == len(keys)


# ---------------------------------------------------------------------- runs


def test_a_model_must_beat_both_baselines():
    curves = {f"moa/{name}": (np.array([1.0]), np.array([value])) for name, value in (
        ("acc", 0.5), ("acc_marginal", 0.4), ("acc_repeat", 0.45))}
    assert moa_runs.beats_baselines(curves)
    curves["moa/acc_repeat"][1][0] = 0.5
    assert not moa_runs.beats_baselines(curves)


def test_improvement_by_hand():
    """Of six pairs, 3 wins and 1 tie."""
    assert moa_runs.improvement(np.array([1.0, 3.0]), np.array([0.0, 1.0, 4.0])) == pytest.approx(3.5 / 6)


def test_learning_reads_the_logged_metrics(tmp_path):
    """Seed 1: skills 0.2 and -0.1; one of two tasks beats the baselines."""
    for task, skill, acc in (("vmas.give_way", "0.2", "0.9"), ("vmas.navigation", "-0.1", "0.1")):
        scalars = tmp_path / "moa" / f"MOA__{task}" / "seed1" / "metrics" / "scalars" / "moa"
        scalars.mkdir(parents=True)
        (scalars.parents[2] / "config.json").write_text("{}")
        for name, value in (("skill", skill), ("acc", acc), ("acc_marginal", "0.3"), ("acc_repeat", "0.4")):
            (scalars / f"{name}.csv").write_text(f"100,{value}\n")
    found = moa_runs.learning("moa", str(tmp_path), 3)
    assert found["lowest skill"] == {"1": -0.1}
    assert found["tasks with acc > baselines"] == {"1": 0.5}


def test_returns_against_the_controls(tmp_path):
    """MOA 3, 4, 5 against MAPPO 1, 2, 3 on one hidden task; on give_way 9 against 10: a loss of 10 %."""
    for row, task, finals in (("MOA", "vmas/hidden_leader", (3, 4, 5)), ("MAPPO", "vmas/hidden_leader", (1, 2, 3)),
                              ("MOA", "vmas/give_way", (9, 9, 9)), ("MAPPO", "vmas/give_way", (10, 10, 10))):
        append_rows(tmp_path, "moa", row, task, [Evaluation(seed, 100, 1.0, x, x, 32, 100.0, "abc")
                                                 for seed, x in enumerate(finals)])
    (tmp_path / "moa" / "table.json").write_text(json.dumps(
        {"title": "t", "command": "c", "hardware": "h", "mode": "greedy", "frames": 100,
         "random": {"vmas/hidden_leader": 0.0}}))
    found = moa_runs.returns("moa", str(tmp_path))
    assert found["IQM - IQM of MAPPO"]["value"] == pytest.approx(2 / 5)  # normalised by the best run
    assert found["IQM - IQM of MAPPO"]["low"] > 0
    assert found["P: better than MAPPO"]["value"] == pytest.approx(8.5 / 9)
    assert found["worst difference / |MAPPO|"]["value"] == pytest.approx(-0.1)
    assert "IQM - IQM of MAPPO-GRU" not in found


def test_a_task_with_one_seed_does_not_take_the_interval_of_the_others(tmp_path):
    for task, seeds in (("vmas/hidden_leader", 3), ("vmas/simple_reference_pe", 1)):
        for row, best in (("MOA", 5.0), ("MAPPO", 3.0)):
            runs = [(seed, best - seed) for seed in range(seeds)]
            append_rows(tmp_path, "moa", row, task, [Evaluation(seed, 100, 1.0, x, x, 32, 100.0, "a")
                                                     for seed, x in runs])
    (tmp_path / "moa" / "table.json").write_text(json.dumps(
        {"title": "t", "command": "c", "hardware": "h", "mode": "greedy", "frames": 100,
         "random": {"vmas/hidden_leader": 0.0, "vmas/simple_reference_pe": 0.0}}))
    found = moa_runs.returns("moa", str(tmp_path))["IQM - IQM of MAPPO"]
    assert found["value"] == pytest.approx(2 / 5) and found["low"] is not None


def test_figures_of_runs_that_are_gone_stay():
    before = {"z_use": {"1": 0.1, "2": 0.2}, "other": {"1": 1.0}}
    found = {"z_use": {"2": 0.3, "3": 0.4}, "none": {}}
    assert updated(before, found, fresh=False) == {"z_use": {"1": 0.1, "2": 0.3, "3": 0.4}, "other": {"1": 1.0}}
    assert updated(before, found, fresh=True) == {"z_use": {"2": 0.3, "3": 0.4}}
    assert updated(before, {"none": {}}, fresh=True) == before


def test_the_command_writes_page_and_picture(tmp_path, monkeypatch):
    monkeypatch.setitem(EXPERIMENTS, "partners", lambda seed: {"particle/spread-3: skill": 0.6 + 0.1 * seed})
    where = dict(runs=str(tmp_path), tables=str(tmp_path), results=str(tmp_path / "proofs"))
    prove(seeds=2, only=("partners", "learning", "returns"), **where)
    text = (tmp_path / "proofs" / "README.md").read_text()
    assert "| particle/spread-3 | skill | 0.75 [0.7, 0.8] (2 seeds) | \\> 0.5 | pass |" in text and "not run" in text
    assert (tmp_path / "proofs" / "proofs.png").exists()
    with pytest.raises(ValueError, match="partners"):
        prove(only=("patners",), **where)


def test_the_latent_of_a_run_can_be_shuffled(tmp_path):
    """Of the newest checkpoint; the policy has not learned to use it, so only the numbers' order is known."""
    cfg = config(loss="moa", task="vmas/hidden_leader", task_options={"continuous_actions": False}, max_steps=5)
    run = Run(tmp_path / "run", as_plain(cfg), loggers=("csv",), quiet=True)
    with run:
        train(cfg, run)
    found = moa_runs.latent_use_of(tmp_path / "run", episodes=4)
    assert found["z_use"] == pytest.approx(found["return"] - found["return_shuffled"])
    assert found["z_use_share"] == pytest.approx(found["z_use"] / abs(found["return"]))
