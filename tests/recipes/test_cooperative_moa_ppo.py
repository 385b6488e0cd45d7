"""The recipe with the model of other agents where PPO's losses make the latent, train it, or read the teacher's."""

import math

import pytest
import torch

import recipes.cooperative as recipe
from suite.losses.encoded import Encoded
from suite.modules.policy_input import TEACHER_LATENT
from suite.modules.state_model import LATENT
from suite.run import MemoryRun
from suite.specs import ACTION, LOG_PROB, VALUE
from tests.small import config, make_toy, timeless, train, weights

RECOMPUTE = {"ppo_latent": "recompute"}
LEARNING = RECOMPUTE | {"rl_grad_to_phi": True, "acting_tau": 1.0}
MEMORY = {"memory": "gru", "memory_dim": 6}
JOINT = {"joint_update": True, "held_out": 0.0}
TEACHER = {"critic_z": "teacher_no_action"}


@pytest.fixture(autouse=True)
def toy(monkeypatch):
    monkeypatch.setattr(recipe, "make_env", make_toy)


def moa(options=None, *, is_discrete=True, **changes):
    changes = {"task_options": {"is_discrete": is_discrete}} | changes
    return config(loss="moa", loss_options=options or {}, **changes)


def ready(options, **changes):
    """A trainer after three iterations, and its next batch, ready for PPO."""
    trainer = recipe.make_trainer(moa(options, frames=100, **changes), MemoryRun())
    for _ in range(3):
        trainer.iterate(next(iter(trainer.collector)))
    batch = next(iter(trainer.collector))
    trainer.receive(batch)
    trainer.prepare(batch)
    return trainer, batch


def ratio(trainer, batch):
    """Probabilities of the actions, over those when they were taken, as the policy loss sees them."""
    [loss] = trainer.updates[0].parts["actor"]
    with torch.no_grad():
        tensors = {key: batch[key] for key in batch.keys(True, True)}
        if isinstance(loss, Encoded):
            tensors[LATENT] = torch.full_like(tensors[LATENT], torch.nan)  # what was stored is not read
            tensors, loss = loss.encode(tensors), loss.loss
        return (loss.lowered.distribution(tensors).log_prob(batch[ACTION]) - batch[LOG_PROB]).exp()


@pytest.mark.parametrize("is_discrete", [True, False])
@pytest.mark.parametrize("options", [{}, {"acting_tau": 1.0}, RECOMPUTE, RECOMPUTE | {"acting_tau": 1.0}, LEARNING,
                                     LEARNING | {"policy_latent": "mean_logstd", "actor_inputs": "obs+z+moa"},
                                     JOINT, JOINT | LEARNING, MEMORY, RECOMPUTE | MEMORY, LEARNING | MEMORY,
                                     JOINT | LEARNING | {"wm_use_z": True}], ids=str)
def test_the_ratio_is_one_before_the_first_step(options, is_discrete):
    trainer, batch = ready(options, is_discrete=is_discrete)
    assert (ratio(trainer, batch) - 1).abs().max() < 1e-5
    trainer.updates[0].run(batch)
    assert (ratio(trainer, batch) - 1).abs().max() > 1e-4


@pytest.mark.parametrize("change", [{}, {"acting_tau": 1.0}, {"policy_latent": "mean_logstd"}, {"critic_z": "none"},
                                    MEMORY, {"wm_use_z": True}], ids=str)
def test_recomputing_what_stands_still_changes_nothing(change):
    stored, again = (train(moa(options | change, frames=100)) for options in ({}, RECOMPUTE))
    for row, other in zip(timeless(stored), timeless(again), strict=True):
        assert row == pytest.approx(other, rel=1e-4, abs=1e-6)
    before, after = ({name.split(".", 1)[1].removeprefix("loss."): p for name, p in weights(trainer).items()}
                     for trainer in (stored, again))
    assert before.keys() == after.keys()
    assert all(torch.allclose(before[name], after[name], rtol=1e-5, atol=1e-7) for name in before)


def gradients(trainer, batch, part):
    """Names of the parameters of the state model that one loss of PPO reaches."""
    [model], [loss] = ([trainer.losses[0].model], trainer.updates[0].parts[part])
    model.zero_grad(set_to_none=True)
    out = loss(batch.select(*loss.in_keys).reshape(-1))
    sum(value for key, value in out.items() if key.startswith("loss_")).backward()
    return {name for name, p in model.named_parameters() if p.grad is not None and p.grad.any()}


@pytest.mark.parametrize("extra", [{}, {"cvae_grad_to_moa": True}, MEMORY, {"wm_use_z": True}], ids=str)
@pytest.mark.parametrize("part", ["actor", "critic"])
def test_ppos_gradients_reach_the_student_alone_and_only_if_they_may(part, extra):
    """Also where the student's own losses reach the model of the others through its input."""
    for options, expected in (({}, False), (RECOMPUTE | {"acting_tau": 1.0}, False), (LEARNING, True)):
        trainer, batch = ready(options | {"actor_inputs": "obs+z+moa"} | extra)
        reached = gradients(trainer, batch, part)
        assert {name.split(".")[0] for name in reached} == ({"student"} if expected else set())


def test_ppo_moves_the_student_with_an_optimiser_of_the_recipes_rate():
    trainer, batch = ready(LEARNING, lr=0.01)
    update, model, [loss] = trainer.updates[0], trainer.losses[0].model, trainer.losses
    assert update.params.keys() == {"actor", "encoders", "critic"} and update.shared == {"encoders"}
    assert [id(p) for p in update.params["encoders"]] == [id(p) for p in model.student.parameters()]
    assert update.optimizers["encoders"].param_groups[0]["lr"] == 0.01
    before = {name: p.clone() for name, p in model.named_parameters()}
    metrics = update.run(batch)
    moved = {name.split(".")[0] for name, p in model.named_parameters() if not torch.equal(p, before[name])}
    assert moved == {"student"} and metrics["mappo/grad_norm_encoders"] > 0
    assert loss.acting is model, "what acts is what learned"
    plain, batch = ready(RECOMPUTE)
    assert plain.updates[0].params.keys() == {"actor", "critic"}


@pytest.mark.parametrize("change", [{"algorithm": "ippo"}, {"algorithm": "maa2c"}, {"recompute_advantage": True},
                                    {"actor_recurrent_dim": 6, "critic_recurrent_dim": 5}, {"fast_collector": False},
                                    {"autocast": True}, {"value_norm": True}, {"task_options": {"mask": True}}],
                         ids=str)
@pytest.mark.parametrize("options", [LEARNING, TEACHER, JOINT, JOINT | LEARNING | TEACHER], ids=str)
def test_they_go_with_every_learner_on_policy(options, change):
    change = dict(change)
    task = {"is_discrete": True} | change.pop("task_options", {})
    trainer = train(moa(options, task_options=task, **change))
    assert all(math.isfinite(value) for row in trainer.run.rows for value in row.values())


@pytest.mark.parametrize("options, message", [
    (RECOMPUTE, "ppo_latent 'recompute' .* policy loss"), (TEACHER, "critic_z 'teacher_no_action' .* critic"),
    (JOINT, "joint_update .* steps")], ids=str)
def test_replay_has_none_of_it(options, message):
    with pytest.raises(ValueError, match=f"{message} of mappo, ippo, maa2c or ia2c"):
        recipe.make_trainer(moa(options, algorithm="qmix"), MemoryRun())


# ---------------------------------------------------------------------- the teacher's latent for the critic


@pytest.mark.parametrize("options", [TEACHER, TEACHER | {"memory": "gru", "memory_dim": 6},
                                     TEACHER | {"acting_tau": 1.0}], ids=str)
def test_the_critic_reads_the_teacher_now_and_at_the_next_observation(options):
    trainer, batch = ready(options)
    [loss], [estimator] = trainer.losses, trainer.estimators
    [critic] = trainer.updates[0].parts["critic"]
    assert TEACHER_LATENT in critic.in_keys and LATENT not in critic.in_keys and ACTION not in critic.critic.in_keys
    assert LATENT in trainer.policy.out_keys and TEACHER_LATENT not in trainer.policy.out_keys
    assert not any("teacher" in name for name in trainer.policy.state_dict())
    known = loss.acting.infer_batch(batch)
    with torch.no_grad():
        expected = loss.acting_teacher(*known.student_inputs, loss.cvae_loss.privileged(batch))[0]
    assert torch.allclose(batch[TEACHER_LATENT], expected, atol=1e-6) and expected.std() > 0.01
    after = estimator.encoder({key: batch["next", *key] for key in loss.critic_encoders[0].in_keys})[TEACHER_LATENT]
    running = ~batch["next", "done"][:, :-1, :, None].expand(-1, -1, 2, 3)
    assert torch.allclose(after[:, :-1][running], batch[TEACHER_LATENT][:, 1:][running], atol=1e-6)
    assert not torch.allclose(after[:, :-1][~running], batch[TEACHER_LATENT][:, 1:][~running], atol=1e-3)
    read = {key: batch[key] for key in critic.critic.in_keys}
    assert torch.allclose(estimator.lowered(read)[VALUE], batch[VALUE])


def test_the_teacher_that_the_critic_reads_follows_slowly():
    trainer, _ = ready(TEACHER | {"acting_tau": 0.25})
    [loss] = trainer.losses
    slow, fast = (dict(network.named_parameters()) for network in (loss.acting_teacher, loss.cvae_loss.teacher))
    before = {name: p.clone() for name, p in slow.items()}
    assert not any(p.requires_grad for p in slow.values()) and loss.iterations == 3
    batch = next(iter(trainer.collector))
    trainer.iterate(batch)
    assert all(torch.allclose(p, before[name] + 0.25 * (fast[name] - before[name]), atol=1e-6)
               for name, p in slow.items())


# ---------------------------------------------------------------------- one step for all


def test_joint_steps_are_those_of_both_alone():
    """Disjoint parameters and one backward pass: each network steps as it would alone, with the same noise."""
    found = []
    for options, names in ((JOINT, ["mappo"]), ({"held_out": 0.0}, ["mappo", "moa"])):
        trainer = recipe.make_trainer(moa(options), MemoryRun())
        assert [update.name for update in trainer.updates] == names
        batch = next(iter(trainer.collector))
        trainer.receive(batch)
        trainer.prepare(batch)
        for update in trainer.updates:
            torch.manual_seed(5)
            update.step(batch.select(*update.keys).reshape(-1))
        found.append({name: p for module in (trainer.policy, *trainer.losses) for name, p in module.named_parameters()})
    joint, apart = found
    assert joint.keys() == apart.keys() and all(torch.allclose(joint[name], apart[name], atol=1e-7) for name in joint)


def test_joint_networks_keep_their_rates_and_clippings():
    trainer, batch = ready(JOINT | {"max_grad_norm": 2.0})
    update = trainer.updates[0]
    assert update.params.keys() == {"actor", "critic", "moa", "world_model", "student", "teacher"}
    assert update.optimizers["moa"].param_groups[0]["lr"] == 5e-4 != update.optimizers["actor"].param_groups[0]["lr"]
    assert update.max_grad_norm["moa"] == 2.0 != update.max_grad_norm["actor"]
    assert {f"mappo/{name}" for name in ("loss_policy", "loss_moa", "kl", "kl_moa", "grad_norm_student")} <= set(
        update.run(batch))
    learning = ready(JOINT | LEARNING)[0].updates[0]
    assert "encoders" not in learning.params, "one optimiser where there is one step"
