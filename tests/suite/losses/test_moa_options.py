"""Wrong options of the family are refused before training, by name and with what is allowed."""

import re
from dataclasses import replace

import pytest
import torch

from suite.data import Minibatches
from suite.losses import MOALoss
from suite.specs import CONTROLLED, VISIBLE
from tests.batches import make_specs


@pytest.mark.parametrize("option, message", [
    ({"kl_direction": "both"}, r"kl_direction .*'student_to_teacher', 'teacher_to_student'.*'both'"),
    ({"rec_target": "z"}, r"rec_target .*\['x', 'y', 'xy'\].*'z'"),
    ({"actor_inputs": "z"}, r"actor_inputs .*'obs\+moa'.*'z'"),
    ({"others_actions": "near"}, r"others_actions .*\['all', 'visible', 'own'\].*'near'"),
    ({"moa_inputs": "obs"}, r"moa_inputs .*\['prev', 'prev\+obs'\].*'obs'"),
    ({"moa_inputs": "prev+obs", "influence": 0.1}, r"influence of loss .* before .* leave moa_inputs at 'prev'"),
    ({"memory": "lstm"}, r"memory .*\['none', 'gru'\].*'lstm'"),
    ({"influence_divergence": "l2"}, r"influence_divergence .*\['kl', 'jsd'\].*'l2'"),
    ({"memory": "gru", "actor_inputs": "obs+past"}, r"obs\+past .* trains no model that could remember"),
    *(({name: 1, "actor_inputs": "obs+past", "ensemble": 2}, rf"obs\+past .* trains no model: leave {name} out")
      for name in ("curiosity", "disagreement", "influence", "wm_replay", "wm_use_z")),
    ({"critic_z": "teacher"}, r"critic_z .*\['student', 'none', 'teacher_no_action'\].*'teacher'"),
    ({"critic_z": False}, "critic_z .*'none'.*got False"), ({"critic_z": True}, "critic_z .*'student'.*got True"),
    ({"critic_latents": "none"}, r"critic_latents .*\['all', 'own'\].*'none'"),
    ({"ppo_latent": "new"}, r"ppo_latent .*\['stored', 'recompute'\].*'new'"),
    ({"influence_scale": "mean"}, r"influence_scale .*\['none', 'std'\].*'mean'"),
    ({"memory_chunk": 5}, "memory_chunk .* give memory=gru"), ({"acting_tau": 1.5}, "acting_tau .* share up to 1"),
    ({"alpha_warmup": 3}, "alpha_warmup .* share up to 1, got 3"),
    ({"reduction": "none"}, r"reduction .*\['mean', 'sum'\].*'none'"),
    *(({name: value}, f"{name} .* finite number, got {value}") for name, value in (
        ("alpha", float("nan")), ("obs_coef", float("inf")))),
    ({"others_actions": "visible"}, r"others_actions=visible .* who sees whom: --task-options with_visible=True"),
    ({"train_moa_only_when_visible": True}, r"train_moa_only_when_visible .* who sees whom"),
    ({"held_out": 1.0}, r"held_out .* below 1, got 1.0"), ({"memory_chunk": -1}, "memory_chunk .* not be negative"),
    ({"policy_latent": "mode"}, r"policy_latent .*'mean_logstd'.*'mode'"),
    ({"x_parts": "obs+u"}, r"x_parts .*\['u'\].*'wm_residual'"), ({"x_parts": ""}, r"x_parts .*\[''\]"),
    ({"x_parts": "obs+obs"}, r"x_parts .*twice"),
    *(({name: -1.0}, f"{name} .* must not be negative, got -1.0") for name in (
        "moa_coef", "obs_coef", "reward_coef", "cvae_coef", "teacher_coef", "alpha", "alpha_warmup", "beta_teacher",
        "student_pull", "teacher_pull", "free_bits_dim", "free_nats", "curiosity", "latent_dim", "lr")),
    *(({name: 0}, f"{name} .* must be positive, got 0") for name in (
        "latent_dim", "num_cells", "depth", "memory_dim", "lr", "epochs", "max_grad_norm"))], ids=str)
def test_wrong_options_are_named(option, message):
    with pytest.raises(ValueError, match=message) as error:
        MOALoss(make_specs("discrete"), **option)
    assert "loss 'moa'" in str(error.value)


TEACHER, RECOMPUTE = {"critic_z": "teacher_no_action"}, {"ppo_latent": "recompute"}
JOINT = {"joint_update": True, "held_out": 0.0}


@pytest.mark.parametrize("options, message", [
    ({"rl_grad_to_phi": True}, "rl_grad_to_phi .* ppo_latent 'stored': .* give ppo_latent=recompute"),
    (RECOMPUTE | {"rl_grad_to_phi": True}, r"rl_grad_to_phi .* acting_tau=0.05: .* give acting_tau=1"),
    *((RECOMPUTE | {"actor_inputs": inputs}, rf"ppo_latent 'recompute' .* actor_inputs '{re.escape(inputs)}'")
      for inputs in ("obs", "obs+moa", "obs+past")),
    (RECOMPUTE | {"policy_latent": "sample"}, "ppo_latent 'recompute' .* policy_latent 'sample'"),
    (RECOMPUTE | {"shuffle_z": True}, "ppo_latent 'recompute' .* shuffle_z"),
    *((RECOMPUTE | {"imagination": kind}, f"ppo_latent 'recompute' .* imagination '{kind}'")
      for kind in ("dyna", "decentralised")),
    (TEACHER | {"use_teacher": False}, "critic_z 'teacher_no_action' .* use_teacher=False"),
    (TEACHER | {"actor_inputs": "obs+past"}, r"critic_z 'teacher_no_action' .* 'obs\+past', which trains no model"),
    (TEACHER | {"imagination": "expand"}, "critic_z 'teacher_no_action' .* imagination 'expand'"),
    ({"joint_update": True}, "joint_update .* held-out environments: .* give held_out=0"),
    (JOINT | {"wm_replay": 1}, "joint_update .* wm_replay"),
    (JOINT | {"memory": "gru"}, "joint_update .* memory 'gru'"),
    (JOINT | {"actor_inputs": "obs+past"}, r"joint_update .* 'obs\+past', which trains no model"),
    ({"influence_skill": 0.1}, "influence_skill .* give influence a weight"),
    ({"influence_decay": 0.1}, "influence_decay .* give influence a weight"),
    ({"influence_scale": "none"}, "influence_scale .* give influence a weight"),
    ({"influence_divergence": "jsd"}, "influence_divergence .* give influence or social_curiosity a weight"),
    ({"curiosity_scale": "none", "disagreement": 0.1, "ensemble": 2}, "curiosity_scale .* give curiosity a weight"),
    ({"memory_dim": 7}, "memory_dim .* give memory=gru"),
    ({"horizon": 2}, "horizon .* give imagination"),
    ({"imagination": "dyna", "imagination_mix": 0.1}, "imagination_mix .* give imagination=expand"),
    ({"imagination": "expand", "imagination_weight": 3.0}, "imagination_weight .* give imagination=dyna or decentral"),
    ({"use_teacher": False, "kl_direction": "teacher_to_student"}, "kl_direction .* leave use_teacher at True"),
    ({"use_teacher": False, "teacher_pull": 0.1}, "teacher_pull .* leave use_teacher at True"),
    ({"free_bits_dim": 0.25, "free_nats": 9.0}, "free_nats .* leave free_bits_dim at 0"),
    ({"actor_inputs": "obs", "shuffle_z": True}, "shuffle_z .* give actor_inputs with z"),
    ({"actor_inputs": "obs+moa", "policy_latent": "sample"}, "policy_latent .* give actor_inputs with z"),
    ({"social_forward": 0.2}, "social_forward .* give social_curiosity a weight"),
    ({"social_curiosity": 0.1, "social_forward": 1.5}, "social_forward .* share up to 1, got 1.5"),
    ({"social_curiosity": 0.1, "moa_inputs": "prev+obs"}, "social_curiosity .* before the next observation is known"),
    ({"social_curiosity": 0.1, "actor_inputs": "obs+past"}, "obs.past .* trains no model: leave social_curiosity out"),
    ({"influence": 0.1, "influence_skill": 1.0}, "influence_skill .* below 1, got 1.0"),
    ({"influence": 0.1, "influence_skill": 0.2, "held_out": 0.0}, "influence_skill .* held_out a share above 0"),
    ({"influence": 0.1, "influence_decay": 1.5}, "influence_decay .* share up to 1, got 1.5"),
    ({"influence": 0.1, "influence_max": 0}, "influence_max .* must be positive, got 0")], ids=str)
def test_what_does_not_go_together_is_named(options, message):
    with pytest.raises(ValueError, match=message) as error:
        MOALoss(make_specs("discrete"), **options)
    assert "loss 'moa'" in str(error.value)


def test_what_the_task_can_give_is_accepted():
    specs = make_specs("discrete", visible=VISIBLE)
    loss = MOALoss(specs, others_actions="visible", train_moa_only_when_visible=True, memory="gru")
    assert loss.model.memory_dim == 128 and VISIBLE in loss.in_keys
    assert VISIBLE in loss.recorders[0].in_keys and VISIBLE not in MOALoss(specs).in_keys


def test_parts_of_influence_need_choices():
    with pytest.raises(ValueError, match="influence_divergence of loss 'moa' is for discrete actions: leave it out"):
        MOALoss(make_specs("continuous"), influence=0.1, influence_divergence="jsd")
    with pytest.raises(ValueError, match=r"influence_samples of loss 'moa' .* 2 or more, got 1"):
        MOALoss(make_specs("continuous"), influence=0.1, influence_samples=1)


def test_a_skill_needs_a_density():
    """Minus the log-density of what was done is the policies' entropy, but padding and scripts have none."""
    padded = replace(make_specs("continuous"), action_mask=torch.tensor([[True, False], [True, True], [True, True]]))
    for specs in (padded, make_specs("continuous", controlled=CONTROLLED)):
        with pytest.raises(ValueError, match=r"influence_skill of loss 'moa' needs the entropy .* give"):
            MOALoss(specs, influence=0.1)
        assert MOALoss(specs, influence=0.1, influence_skill=0).influence.active is None
    assert MOALoss(make_specs("continuous"), influence=0.1).influence.active == 0


def test_what_is_assumed_and_what_may_never_count_is_said():
    specs, seen = make_specs("discrete"), make_specs("discrete", visible=VISIBLE)
    (told,) = MOALoss(seen).plan(100)
    assert "told what all others did" in told and "others_actions=visible or own" in told
    assert MOALoss(seen, others_actions="own").plan(100) == MOALoss(specs).plan(100) == []
    dyna = MOALoss(specs, imagination="dyna", imagination_skill=0.25).plan(100)
    assert dyna == ["imagination counts in batches with wm/obs_skill_1 above 0.25 and wm/rew_r2 above 0.0, perhaps in "
                    "none: imagination/active tells"]


@pytest.mark.parametrize("options", [{"influence": 0.1}, {"imagination": "dyna"}], ids=str)
def test_skill_is_measured_on_environments_that_must_be_there(options):
    loss, name = MOALoss(make_specs("discrete"), **options), next(iter(options))
    loss.__dict__["imagination"] = "asked"  # the recipe has
    [update] = loss.updates("moa", Minibatches(1, 10), optimizer=None, max_grad_norm=1.0)
    with pytest.raises(ValueError, match=f"{name}.* of loss 'moa' is measured on environments that are held out: .* 1"):
        update.data.check(1, 10)
    update.data.check(2, 10)
    [plain] = MOALoss(make_specs("discrete")).updates("moa", Minibatches(1, 10), optimizer=None, max_grad_norm=1.0)
    plain.data.check(1, 10)


def test_a_single_agent_has_nobody_to_model():
    with pytest.raises(ValueError, match="single agent"):
        MOALoss(make_specs("discrete", n_agents=1))
