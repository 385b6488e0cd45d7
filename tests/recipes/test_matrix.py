"""Every state model on every family of environments, for both kinds of action: two iterations that learn something."""

import math

import pytest
import torch

import recipes.cooperative as recipe
from suite.run import MemoryRun
from suite.specs import ACTION, CONTROLLED, PRIVILEGED, STATE, VISIBLE
from tests.small import config, train, weights

pytestmark = pytest.mark.filterwarnings("ignore:.*the task says who sees whom")

DISCRETE, CONTINUOUS = {"continuous_actions": False}, {"continuous_actions": True}
TASKS = {
    "vmas discrete": ("vmas/navigation", DISCRETE | {"n_agents": 3}),
    "vmas continuous": ("vmas/navigation", CONTINUOUS | {"n_agents": 3}),
    "mpe discrete": ("particle/spread-3", DISCRETE | {"dialect": "mpe2"}),
    "mpe continuous": ("particle/spread-3", CONTINUOUS | {"dialect": "mpe2"}),
    "foraging": ("foraging/2s-8x8-3p-2f-coop", {}),
    "warehouse": ("warehouse/tiny-2ag-hard", {}),
    "pettingzoo discrete": ("pettingzoo/simple_spread_v3", {}),
    "pettingzoo continuous": ("pettingzoo/simple_spread_v3", CONTINUOUS),
}
# agents that differ in their observations, and in the number of choices or the length of an action
MIXED = {
    "speaker discrete": ("vmas/simple_speaker_listener_pe", DISCRETE),
    "speaker continuous": ("vmas/simple_speaker_listener_pe", CONTINUOUS),
    "world comm discrete": ("vmas/simple_world_comm_pe", DISCRETE),
    "world comm continuous": ("vmas/simple_world_comm_pe", CONTINUOUS),
    "pettingzoo speaker discrete": ("pettingzoo/simple_speaker_listener_v4", {}),
    "pettingzoo speaker continuous": ("pettingzoo/simple_speaker_listener_v4", CONTINUOUS),
}
# entries beside observation and action: who is in sight, hidden variables, agents that a script moves
RICH = {
    "foraging in sight": ("foraging/2s-8x8-3p-2f-coop", {"with_visible": True, "with_hidden": True}),
    "warehouse in sight": ("warehouse/tiny-3ag-hard", {"with_visible": True, "with_hidden": True}),
    "scripted partner": ("vmas/hidden_leader", {"partner_types": True, "with_hidden": True}),
}
LOSSES = ("none", "smpe", "moa")


def learn(task, algorithm="mappo", **changes):
    """Train for two iterations: every number is finite, ratios are 1 before the first step, every parameter moves."""
    name, options = task
    cfg = config(algorithm, task=name, task_options=options, max_steps=5, **changes)
    before, trainer = weights(recipe.make_trainer(cfg, MemoryRun())), train(cfg)
    assert trainer.iteration == 2
    bad = {key for row in trainer.run.rows for key, value in row.items() if not math.isfinite(value)}
    assert not bad, f"not finite: {sorted(bad)}"
    ratios = [row[key] for row in trainer.run.rows for key in row if key.endswith("/first_step_ratio_error")]
    assert len(ratios) == (2 if algorithm == "mappo" else 0) and max(ratios, default=0.0) < 1e-5
    after = weights(trainer)
    modules = [trainer.policy, *(loss for update in trainer.updates for loss in update.losses)]
    owned = {id(p) for update in trainer.updates for params in update.params.values() for p in params}
    learned = {f"{k}.{key}" for k, module in enumerate(modules) for key, p in module.named_parameters()
               if id(p) in owned}
    still = sorted(key for key in learned if torch.equal(before[key], after[key]))
    assert learned and not still, f"did not move: {still}"
    return trainer


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("task", TASKS)
def test_every_state_model_learns_on_every_family(task, loss):
    learn(TASKS[task], loss=loss)


@pytest.mark.parametrize(("algorithm", "task"), [("qmix", "foraging"), ("maddpg", "mpe continuous")])
def test_off_policy_with_a_model_of_the_others(algorithm, task):
    learn(TASKS[task], algorithm, loss="moa")


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("task", MIXED)
def test_agents_with_different_observations_and_actions(task, loss):
    trainer = learn(MIXED[task], loss=loss, share="roles")
    batch, env = trainer.collector.rollout(), trainer.collector.env
    assert len(set(env.obs_dims)) > 1 and len(set(env.action_dims)) > 1
    if batch[ACTION].dtype == torch.int64:  # no agent takes a choice that it does not have
        assert (batch[ACTION] < torch.tensor(env.action_dims)).all()


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("task", RICH)
def test_tasks_that_tell_more_than_agents_see(task, loss):
    trainer = learn(RICH[task], loss=loss)
    assert {PRIVILEGED, VISIBLE if "sight" in task else CONTROLLED} <= set(trainer.collector.observed)
    assert PRIVILEGED not in trainer.policy.in_keys


@pytest.mark.parametrize("change", [*({"loss": loss} for loss in LOSSES), {"algorithm": "qmix"},
                                    {"loss": "moa", "normalize_observation": True}], ids=str)
def test_central_critics_and_mixers_read_the_state_of_the_world_and_nobody_who_acts_does(change):
    task = ("vmas/simple_speaker_listener_pe", DISCRETE | {"with_state": True})
    trainer = learn(task, **{"share": "roles"} | change)
    reading = [key for update in trainer.updates for loss in update.losses for key in loss.in_keys]
    assert STATE in reading and STATE not in trainer.policy.in_keys
    assert trainer.collector.env.observation_spec[STATE].shape == (trainer.collector.env.num_envs, 47)


@pytest.mark.parametrize("options", [
    {"critic_z": "teacher_no_action", "rec_target": "xy", "soft_clamp": True},
    {"ppo_latent": "recompute", "rl_grad_to_phi": True, "acting_tau": 1.0, "joint_update": True, "held_out": 0.0}],
    ids=str)
@pytest.mark.parametrize("task", ["speaker discrete", "speaker continuous", "foraging in sight", "scripted partner"])
def test_ppo_on_other_latents_with_padding_and_hidden_variables(task, options):
    trainer = learn((MIXED | RICH)[task], loss="moa", loss_options=options)
    [estimator] = trainer.estimators
    assert (PRIVILEGED in estimator.next_keys) == (task in RICH and "critic_z" in options)
    assert PRIVILEGED not in trainer.policy.in_keys
