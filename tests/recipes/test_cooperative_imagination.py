"""The recipe with every use of the world model: two iterations each, the gate, ratios, and what is refused."""

import math

import pytest
import torch

import recipes.cooperative as recipe
from suite.losses.imagination import terminates
from suite.losses.world_model import WorldModelLoss
from suite.run import MemoryRun
from suite.specs import ACTION, LOG_PROB, VALUE_TARGET
from tests.small import config, make_toy, train, weights

pytestmark = pytest.mark.filterwarnings("ignore:.*imagination counts in batches")
KINDS = {"expand": {"imagination": "expand", "horizon": 2}, "dyna": {"imagination": "dyna"},
         "decentralised": {"imagination": "decentralised", "horizon": 4}}


@pytest.fixture(autouse=True)
def toy(monkeypatch):
    monkeypatch.setattr(recipe, "make_env", make_toy)


@pytest.fixture
def skilled(monkeypatch):
    """A world model that is said to be good enough, in observations and rewards."""
    monkeypatch.setattr(WorldModelLoss, "skill", lambda self, td: torch.tensor(0.9))
    monkeypatch.setattr("suite.losses.imagination.reward_skill", lambda world_loss, held: torch.tensor(0.9))


def moa(options, *, actions="discrete", **changes):
    task = {"is_discrete": actions == "discrete", "state": False, "n_agents": 3} | changes.pop("task_options", {})
    return config(loss="moa", loss_options=options, task_options=task, **changes)


def finite(trainer):
    assert all(math.isfinite(value) for row in trainer.run.rows for value in row.values())
    return [row for row in trainer.run.rows if "reward/task" in row]


@pytest.mark.parametrize("actions", ["discrete", "continuous"])
@pytest.mark.parametrize("change", [
    {}, {"algorithm": "ippo"}, {"algorithm": "maa2c"}, {"value_norm": True, "value_clip": 0.2}, {"team_reward": True},
    {"share": "none"}, {"reward_weights": {"task": 2.0}}], ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_every_use_trains(kind, change, actions, skilled):
    rows = finite(train(moa(KINDS[kind], actions=actions, **change)))
    assert [row["imagination/active"] for row in rows] == [1.0, 1.0]
    name = f"{change.get('algorithm', 'mappo')}/loss_value_imagined"
    assert [name in row for row in rows] == [kind != "expand"] * 2
    assert all("imagination/modelled_steps" in row for row in rows) == (kind == "decentralised")


@pytest.mark.parametrize("options", [
    {"ensemble": 3, "continue_head": True}, {"actor_inputs": "obs"}, {"actor_inputs": "obs+z+moa"},
    {"policy_latent": "sample"}, {"critic_z": "none"}, {"others_actions": "own"}, {"symlog_reward": True},
    {"shared_reward": True}, {"wm_use_z": True, "critic_latents": "own"}], ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_it_goes_with_the_other_options(kind, options, skilled):
    rows = finite(train(moa(KINDS[kind] | options)))
    assert all("moa/loss_continue" in row for row in rows) == ("continue_head" in options)


@pytest.mark.parametrize("actions", ["discrete", "continuous"])
@pytest.mark.parametrize("options", [
    {"ensemble": 3}, {"ensemble": 3, "disagreement": 0.1}, {"latent_surprise": 0.1}, {"symlog_reward": True},
    {"shared_reward": True}, {"continue_head": True, "huber": True}, {"wm_replay": 2},
    {"wm_replay": 1, "memory": "gru", "continue_head": True, "ensemble": 3},
    {"curiosity": 0.1, "curiosity_scale": "std", "memory": "gru", "latent_surprise": 0.1},
    {"social_curiosity": 0.1}, {"social_curiosity": 0.1, "social_forward": 0.2, "influence": 0.1, "memory": "gru"},
    {"social_curiosity": 0.1, "joint_update": True, "held_out": 0.0}], ids=str)
def test_the_other_uses_train(options, actions):
    rows = finite(train(moa(options, actions=actions)))
    for term in {"curiosity", "disagreement", "latent_surprise", "social_curiosity"} & options.keys():
        assert all(0 <= row[f"reward/{term}"] <= 5 for row in rows)
    assert "imagination/active" not in rows[0]
    assert [("moa_replay/loss_obs" in row) for row in rows] == [False, "wm_replay" in options]


def test_the_world_model_learns_from_earlier_batches_with_its_one_optimiser():
    trainer = train(moa({"wm_replay": 2}, frames=100))
    main, replay = (update for update in trainer.updates if update.name.startswith("moa"))
    assert replay.optimizers["world_model"] is main.optimizers["world_model"] and replay.shared == {"world_model"}
    assert replay.max_grad_norm == {"world_model": 1.0}
    held = replay.data.owner
    assert held.held.shape == (2, 3, 5) and held.seen == 5  # one of the four environments is held out
    steps = main.optimizers["world_model"].state_dict()["state"][0]["step"]
    assert steps == 3 * 5 * 2 + 3 * (2 + 3 * 3)  # 15 frames in minibatches of 10; then 1 2 2 2 earlier batches


def test_earlier_batches_train_the_world_model_beside_a_replay_buffer_too():
    trainer = train(moa({"wm_replay": 2}, algorithm="qmix"))
    main, replay = (update for update in trainer.updates if update.name.startswith("moa"))
    assert replay.data.owner.seen > 0 and replay.optimizers["world_model"] is main.optimizers["world_model"]
    finite(trainer)


def test_a_new_world_model_is_not_believed():
    trainer = train(moa(KINDS["expand"]))
    rows = finite(trainer)
    assert rows[0]["imagination/active"] == 0 and rows[0]["imagination/skill"] == pytest.approx(0, abs=1e-5)


def prepared(kind, **changes):
    """A trainer that has prepared its next batch, and the batch."""
    trainer = recipe.make_trainer(moa(KINDS[kind], frames=100, **changes), MemoryRun())
    batch = next(iter(trainer.collector))
    trainer.receive(batch)
    trainer.prepare(batch)
    return trainer, batch


@pytest.mark.parametrize("kind", ["dyna", "decentralised"])
def test_the_ratio_of_imagined_actions_starts_at_one(kind, skilled):
    trainer, batch = prepared(kind)
    loss = trainer.updates[0].parts["actor"][1].loss
    frames = batch["imagined"]
    with torch.no_grad():
        dist = loss.lowered.distribution({key: frames[key] for key in loss.actor.in_keys})
        assert (dist.log_prob(frames[ACTION]) - frames[LOG_PROB]).abs().max() < 1e-5
    assert frames[ACTION].shape == (4, 5, KINDS[kind].get("horizon", 3), 3)
    assert trainer.state_dict()["estimators"][1] == {}


@pytest.mark.parametrize("kind", KINDS)
def test_a_closed_gate_leaves_the_learner_as_it_would_be_without(kind, monkeypatch):
    """The same batch and minibatches: to the last bit the same actor and critic, although all is computed."""
    after = []
    monkeypatch.setattr("suite.losses.imagination.reward_skill", lambda world_loss, held: torch.tensor(0.9))
    for skill in (0.1, 0.9, None):
        monkeypatch.setattr(WorldModelLoss, "skill", lambda self, td, skill=skill: torch.tensor(skill or 0.0))
        trainer, batch = prepared(kind)
        if skill is None:  # what the plain recipe would see
            [real, _] = trainer.estimators
            real(batch)
            for part in ("actor", "critic"):
                trainer.updates[0].parts[part] = trainer.updates[0].parts[part][:1]
            trainer.updates[0].losses = [loss for group in trainer.updates[0].parts.values() for loss in group]
        torch.manual_seed(5)
        trainer.updates[0].run(batch)
        after.append(weights(trainer))
    closed, opened, plain = after
    assert all(torch.equal(closed[name], plain[name]) for name in plain if name.startswith("0."))
    assert not all(torch.equal(opened[name], plain[name]) for name in plain)


def test_expansion_moves_the_targets_of_open_frames_only(skilled):
    """Frames whose episode terminates within the horizon keep theirs; the toy's episodes end by their time limit."""
    trainer, batch = prepared("expand", steps=8)
    mixed = batch[VALUE_TARGET].clone()
    batch["next", "agents", "terminated"][0, 5] = True
    near = terminates(batch, trainer.losses[0].imagination.horizon)
    trainer.estimators[0](batch)
    plain = batch[VALUE_TARGET].clone()
    trainer.estimators[1](batch)
    assert torch.equal(plain[near], batch[VALUE_TARGET][near]) and near.any() and near.sum() < near.numel() / 2
    assert not (plain[~near] == batch[VALUE_TARGET][~near]).any() and not torch.equal(mixed, plain)


@pytest.mark.parametrize("change, message", [
    ({"actor_recurrent_dim": 6}, "does not go with recurrent"), ({"critic_recurrent_dim": 6}, "recurrent"),
    ({"task_options": {"state": True}}, "a critic of the task's own state"),
    ({"task_options": {"mask": True}}, "action masks"), ({"algorithm": "qmix"}, "needs an on-policy algorithm"),
    ({"options": {"curiosity": 0.1}}, r"the reward terms \['curiosity'\]")], ids=str)
def test_what_the_world_model_does_not_predict_is_refused(change, message):
    options = KINDS["dyna"] | change.pop("options", {})
    with pytest.raises(ValueError, match=message):
        recipe.make_trainer(moa(options, **change), MemoryRun())


def test_decentralised_imagination_has_no_joint_critic_for_the_actor():
    with pytest.raises(ValueError, match="--recompute-advantage"):
        recipe.make_trainer(moa(KINDS["decentralised"], recompute_advantage=True), MemoryRun())
    finite(train(moa(KINDS["dyna"], recompute_advantage=True)))
