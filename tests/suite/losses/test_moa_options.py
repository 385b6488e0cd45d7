"""Wrong options of the family are refused before training, by name and with what is allowed."""

import pytest

from suite.losses import MOALoss
from suite.specs import VISIBLE
from tests.batches import make_specs


@pytest.mark.parametrize("option, message", [
    ({"kl_direction": "both"}, r"kl_direction .*'student_to_teacher', 'teacher_to_student'.*'both'"),
    ({"rec_target": "z"}, r"rec_target .*\['x', 'y', 'xy'\].*'z'"),
    ({"actor_inputs": "z"}, r"actor_inputs .*'obs\+moa'.*'z'"),
    ({"others_actions": "near"}, r"others_actions .*\['all', 'visible', 'own'\].*'near'"),
    ({"moa_inputs": "obs"}, r"moa_inputs .*\['prev', 'prev\+obs'\].*'obs'"),
    ({"moa_inputs": "prev+obs", "influence": 0.1}, r"influence and decentralised .* leave moa_inputs at 'prev'"),
    ({"memory": "lstm"}, r"memory .*\['none', 'gru'\].*'lstm'"),
    ({"influence_divergence": "l2"}, r"influence_divergence .*\['kl', 'jsd'\].*'l2'"),
    ({"memory": "gru", "actor_inputs": "obs+past"}, r"obs\+past .* trains no model that could remember"),
    *(({name: 1, "actor_inputs": "obs+past", "ensemble": 2}, rf"obs\+past .* trains no model: leave {name} at 0")
      for name in ("curiosity", "disagreement", "influence", "wm_replay")),
    ({"memory_chunk": 5}, "memory_chunk .* give memory=gru"), ({"acting_tau": 1.5}, "acting_tau .* share up to 1"),
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


def test_what_the_task_can_give_is_accepted():
    specs = make_specs("discrete", visible=VISIBLE)
    loss = MOALoss(specs, others_actions="visible", train_moa_only_when_visible=True, memory="gru")
    assert loss.model.memory_dim == 128 and VISIBLE in loss.in_keys
    assert VISIBLE in loss.recorders[0].in_keys and VISIBLE not in MOALoss(specs).in_keys


@pytest.mark.parametrize("inputs", ["obs+z", "obs+past"])
def test_influence_needs_choices(inputs):
    with pytest.raises(ValueError, match=r"influence of loss 'moa' .* needs discrete actions"):
        MOALoss(make_specs("continuous"), influence=0.1, actor_inputs=inputs)


def test_a_single_agent_has_nobody_to_model():
    with pytest.raises(ValueError, match="single agent"):
        MOALoss(make_specs("discrete", n_agents=1))
