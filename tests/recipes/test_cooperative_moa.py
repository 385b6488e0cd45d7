"""The recipe with the model of other agents, world model and CVAE: every switch, and what acts."""

import math

import pytest
import torch

import recipes.cooperative as recipe
from suite.losses.world_model import TASK_REWARD
from suite.modules.state_model import LATENT, PREV_VALID
from suite.run import MemoryRun
from suite.specs import ACTION, LOG_PROB, PRIVILEGED, REWARD
from tests.small import config, make_toy, train, weights

DISCRETE = {"is_discrete": True}


@pytest.fixture(autouse=True)
def toy(monkeypatch):
    monkeypatch.setattr(recipe, "make_env", make_toy)


def moa(*, actions="discrete", options=None, **changes):
    task = (DISCRETE if actions == "discrete" else {}) | changes.pop("task_options", {})
    return config(loss="moa", loss_options=options or {}, task_options=task, **changes)


def moved(cfg, *, still=()):
    """Train; every row is finite and every network but those of ``still`` has moved."""
    before, trainer = weights(recipe.make_trainer(cfg, MemoryRun())), train(cfg)
    assert all(math.isfinite(value) for row in trainer.run.rows for value in row.values())
    update = next(u for u in trainer.updates if u.name == "moa")
    fixed = {part for part, params in update.params.items() if all(torch.equal(p, q) for p, q in zip(
        params, _first(cfg, part), strict=True))}
    assert fixed == set(still)
    after = weights(trainer)
    assert any(not torch.equal(before[name], after[name]) for name in before if name.startswith("0."))
    return trainer


def _first(cfg, part):
    update = next(u for u in recipe.make_trainer(cfg, MemoryRun()).updates if u.name == "moa")
    return update.params[part]


@pytest.mark.parametrize("actions", ["discrete", "continuous"])
@pytest.mark.parametrize("options", [
    {"rec_target": "y"}, {"rec_target": "xy"}, {"x_parts": "obs"}, {"x_parts": "moa"}, {"x_parts": "wm_residual"},
    {"x_parts": "obs+moa"}, {"kl_direction": "teacher_to_student"}, {"student_pull": 0.8, "teacher_pull": 0.2},
    {"free_bits_dim": 0.1}, {"free_nats": 1.0}, {"actor_inputs": "obs"}, {"actor_inputs": "obs+z+moa"},
    {"actor_inputs": "obs+moa"}, {"policy_latent": "sample"}, {"policy_latent": "mean_logstd"}, {"critic_z": "none"},
    {"others_actions": "own"}, {"huber": True}, {"curiosity": 0.1}, {"alpha_warmup": 0.0},
    {"shuffle_z": True}, {"cvae_grad_to_moa": True}, {"moa_inputs": "prev+obs"},
    {"critic_z": "teacher_no_action"}, {"critic_z": "teacher_no_action", "rec_target": "xy", "acting_tau": 1.0},
    {"critic_z": "teacher_no_action", "memory": "gru", "memory_dim": 6, "actor_inputs": "obs"}, {"soft_clamp": True},
    {"ppo_latent": "recompute"}, {"ppo_latent": "recompute", "policy_latent": "mean_logstd", "critic_z": "none"},
    {"ppo_latent": "recompute", "rl_grad_to_phi": True, "acting_tau": 1.0, "actor_inputs": "obs+z+moa"},
    {"memory": "gru", "memory_dim": 6}, {"memory": "gru", "memory_dim": 6, "actor_inputs": "obs"},
    {"memory": "gru", "memory_dim": 6, "memory_chunk": 1, "use_teacher": False, "depth": 2},
    {"curiosity": 0.1, "policy_latent": "sample", "actor_inputs": "obs+z+moa", "others_actions": "own"},
    {"critic_latents": "own"}, {"critic_latents": "own", "critic_z": "teacher_no_action", "actor_inputs": "obs"},
    {"ppo_latent": "recompute", "memory": "gru", "memory_dim": 6}, {"wm_use_z": True, "policy_latent": "mean_logstd"},
    {"wm_use_z": True, "actor_inputs": "obs", "ensemble": 2, "curiosity": 0.1, "continue_head": True},
    {"wm_use_z": True, "memory": "gru", "memory_dim": 6, "memory_chunk": 1, "wm_replay": 1, "shuffle_z": True},
], ids=lambda options: ",".join(f"{k}={v}" for k, v in options.items()))
def test_every_switch_trains(options, actions):
    trainer = moved(moa(actions=actions, options=options))
    names = set().union(*trainer.run.rows)
    teacher = ("loss_teacher", "grad_norm_teacher") if options.get("use_teacher", True) else ()
    expected = {f"moa/{name}" for name in ("loss_moa", "loss_obs", "loss_reward", "loss_rec", "loss_kl", "kl",
                                           "grad_norm_moa", "grad_norm_world_model", "grad_norm_student", *teacher)}
    assert expected <= names and ("moa/accuracy" in names) == (actions == "discrete")
    assert ("reward/curiosity" in names) == ("curiosity" in options)


@pytest.mark.parametrize("change", [{}, {"actor_recurrent_dim": 6}, {"algorithm": "maa2c"}], ids=str)
@pytest.mark.parametrize("actions", ["discrete", "continuous"])
def test_influence_trains(actions, change):
    options = {"influence": 0.1, "curiosity": 0.1, "influence_samples": 3, "influence_skill": 0}
    trainer = moved(moa(actions=actions, options=options, **change))
    assert trainer.reward_weights == {"task": 1.0, "curiosity": 0.1, "influence": 0.1}
    paid = [row["reward/influence"] for row in trainer.run.rows if "reward/task" in row]
    assert all(value >= 0 for value in paid) and paid[-1] > 0


def test_a_schedule_of_influence_trains():
    scheduled = {"influence_skill": 0.01, "influence_decay": 0.5, "influence_scale": "std", "influence_max": 5.0}
    trainer = moved(moa(options={"influence": 0.1} | scheduled, frames=200))
    rows = [row for row in trainer.run.rows if "reward/influence" in row]
    assert len(rows) == 10 and all((row["reward/influence"] > 0) == (row["influence/active"] > 0) for row in rows[1:])
    assert rows[0]["reward/influence"] == 0 and 0 < rows[-1]["reward/influence"] < rows[4]["reward/influence"]


@pytest.mark.parametrize("change", [{}, {"actor_recurrent_dim": 6}, {"fast_collector": False}], ids=str)
def test_the_control_with_the_same_inputs_trains(change):
    trainer = train(moa(options={"actor_inputs": "obs+past"}, **change))
    assert [update.name for update in trainer.updates] == ["mappo"]
    assert all(math.isfinite(value) for row in trainer.run.rows for value in row.values())


@pytest.mark.parametrize("options, still", [
    ({"use_teacher": False}, []), ({"moa_coef": 0.0}, ["moa"]), ({"teacher_coef": 0.0}, ["teacher"]),
    ({"obs_coef": 0.0, "reward_coef": 0.0}, ["world_model"]), ({"cvae_coef": 0.0}, ["student"])], ids=str)
def test_networks_without_a_loss_stay(options, still):
    trainer = moved(moa(options=options), still=still)
    teacher = "moa/loss_teacher" in set().union(*trainer.run.rows)
    assert teacher == options.get("use_teacher", True)


@pytest.mark.parametrize("change", [
    {"actor_recurrent_dim": 6, "critic_recurrent_dim": 5}, {"algorithm": "ippo"}, {"algorithm": "maa2c"},
    {"critic_recurrent_dim": 5, "options": {"critic_latents": "own"}, "value_norm": True},
    {"fast_collector": False}, {"task_options": {"n_agents": 4}}, {"task_options": {"mask": True}},
    {"team_reward": True}, {"recompute_advantage": True}, {"target_tau": 0.5}, {"autocast": True},
    {"algorithm": "qmix"}, {"algorithm": "qmix", "options": {"curiosity": 0.1, "wm_use_z": True}},
    {"algorithm": "maddpg", "actions": "continuous"}], ids=str)
def test_it_goes_with_every_kind_of_learner(change):
    moved(moa(**change))


REMEMBERING = {"memory": "gru", "memory_dim": 6}


@pytest.mark.parametrize("change", [
    {"actor_recurrent_dim": 6, "critic_recurrent_dim": 5}, {"algorithm": "ippo"}, {"algorithm": "maa2c"},
    {"fast_collector": False}, {"task_options": {"mask": True}}, {"recompute_advantage": True}, {"target_tau": 0.5},
    {"autocast": True}, {"minibatch_size": None}], ids=str)
def test_a_memory_goes_with_every_learner_on_policy(change):
    moved(moa(options=REMEMBERING, **change))


@pytest.mark.parametrize("algorithm, actions", [("qmix", "discrete"), ("vdn", "discrete"), ("maddpg", "continuous")])
def test_a_memory_does_not_learn_from_replay(algorithm, actions):
    with pytest.raises(ValueError, match=r"memory 'gru' of loss 'moa' .* use mappo, ippo, maa2c or ia2c"):
        recipe.make_trainer(moa(options=REMEMBERING, algorithm=algorithm, actions=actions), MemoryRun())


# ---------------------------------------------------------------------- what acts


def trained(**changes):
    """A trainer after three iterations, with statistics and weights far from the start, and its next batch."""
    trainer = recipe.make_trainer(moa(frames=100, **changes), MemoryRun())
    for _ in range(3):
        trainer.iterate(next(iter(trainer.collector)))
    return trainer, next(iter(trainer.collector))


@pytest.mark.parametrize("actions", ["discrete", "continuous"])
@pytest.mark.parametrize("change", [{}, {"options": {"policy_latent": "sample"}}, {"actor_recurrent_dim": 6},
                                    {"options": REMEMBERING}, {"options": {"acting_tau": 1.0}},
                                    {"options": {"actor_inputs": "obs+z+moa", "curiosity": 1.0}}], ids=str)
def test_the_ratio_is_one_before_the_first_step(change, actions):
    """The latent that acted is stored and used again, whatever has become of its encoder meanwhile."""
    trainer, batch = trained(actions=actions, **change)
    trainer.receive(batch)
    trainer.prepare(batch)
    [loss] = trainer.updates[0].parts["actor"]
    latent = batch[LATENT].clone()
    with torch.no_grad():
        dist = loss.lowered.distribution({key: batch[key] for key in loss.actor.in_keys})
        ratio = (dist.log_prob(batch[ACTION]) - batch[LOG_PROB]).exp()
    assert (ratio - 1).abs().max() < 1e-5
    assert torch.equal(batch[LATENT], latent) and LATENT in loss.actor.in_keys
    assert 0 < batch[PREV_VALID].mean() < 1


@pytest.mark.parametrize("options", [{}, REMEMBERING], ids=str)
def test_the_critic_reads_the_latent_of_the_next_step_too(options):
    """What the return estimator computes at ("next", ...) is the latent that acts one step later.

    At an episode's end nobody acts on it: there it is one more step of that episode, from what is remembered of it.
    """
    trainer, batch = trained(options=options)
    [estimator], model = trainer.estimators, trainer.losses[0].acting
    assert set(estimator.next_keys) >= set(model.keys)
    after = estimator.encoder({key: batch["next", *key] for key in model.keys})[LATENT]
    running = ~batch["next", "done"][:, :-1, :, None].expand(-1, -1, 2, 3)
    assert torch.allclose(after[:, :-1][running], batch[LATENT][:, 1:][running], atol=1e-6)
    assert not torch.allclose(after[:, :-1][~running], batch[LATENT][:, 1:][~running], atol=1e-3)
    longer = torch.stack([batch.select(*model.keys)[:, -1], batch["next"].select(*model.keys)[:, -1]], 1)
    with torch.no_grad():
        assert torch.allclose(after[:, -1], model.infer_batch(longer).mean[:, 1], atol=1e-6)


def test_the_world_model_learns_the_tasks_reward_whatever_curiosity_adds():
    trainer, batch = trained(options={"curiosity": 1.0}, task_options=DISCRETE)
    task = batch["next", *REWARD].clone()
    trainer.receive(batch)
    trainer.prepare(batch)
    assert torch.equal(batch[TASK_REWARD], task) and not torch.allclose(batch["next", *REWARD], task)


@pytest.mark.parametrize("options", [{}, REMEMBERING], ids=str)
def test_acting_needs_neither_teacher_nor_decoders_nor_critic(options):
    trainer, batch = trained(options=options)
    state = trainer.state_dict()
    kept = {"policy": state["policy"]}
    assert not any(word in name for name in kept["policy"] for word in ("teacher", "decoder", "critic"))
    fresh = recipe.make_trainer(moa(frames=100, seed=9, options=options), MemoryRun()).policy
    fresh.load_state_dict(kept["policy"])
    td = batch.select(*trainer.losses[0].model.keys)
    with torch.no_grad():
        torch.manual_seed(0)
        expected = trainer.policy(td.clone())
        torch.manual_seed(0)
        found = fresh(td.clone())
    for key in (LATENT, ACTION, LOG_PROB):
        assert torch.equal(found[key], expected[key])
    assert PRIVILEGED not in trainer.policy.in_keys and "state" not in trainer.policy.in_keys


def test_alpha_ramps_over_the_run():
    cfg = moa(frames=200, options={"alpha_warmup": 0.4})
    trainer, found = recipe.make_trainer(cfg, MemoryRun()), []
    [loss] = trainer.losses
    trainer.refresh.append(lambda batch: found.append(loss.cvae_loss.alpha))
    trainer.train()
    assert found == pytest.approx([0.03 * k / 4 for k in (0, 1, 2, 3, 4, 4, 4, 4, 4, 4)])
