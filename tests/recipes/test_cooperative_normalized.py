"""Actor and critic on standardised observations: frozen within an iteration, moved after it, the same everywhere."""

import pytest
import torch

import recipes.cooperative as recipe
from suite.modules.normalizer import RunningMoments, Scaler
from suite.modules.policies import Trunk
from suite.modules.state_model import PAST
from suite.run import MemoryRun
from suite.specs import ACTION, ALIVE, LOG_PROB, OBSERVATION, STATE
from tests.small import config, make_toy, timeless, train


@pytest.fixture(autouse=True)
def toy(monkeypatch):
    monkeypatch.setattr(recipe, "make_env", make_toy)


def make(algorithm="mappo", **changes):
    return recipe.make_trainer(config(algorithm, normalize_observation=True, **changes), MemoryRun())


def scaler_of(module):
    [scaler] = {part for part in module.modules() if isinstance(part, Scaler)}
    return scaler


def networks(trainer):
    """Policy loss, actor and critic."""
    parts = trainer.updates[0].parts
    return parts["actor"][0], parts["actor"][0].actor, parts["critic"][0].critic


@pytest.mark.parametrize("change", [
    {}, {"task_options": {"is_discrete": True}}, {"actor_recurrent_dim": 6, "critic_recurrent_dim": 5},
    {"loss": "moa", "loss_options": {"alpha_warmup": 0.0}}, {"loss": "smpe"}], ids=str)
def test_the_ratio_is_one_before_the_first_step_and_statistics_stay_until_the_last(change):
    trainer = make(frames=80, **change)
    batches = iter(trainer.collector)
    trainer.iterate(next(batches))
    batch = next(batches)
    loss, actor, critic = networks(trainer)
    with torch.no_grad():
        dist = loss.lowered.distribution({key: batch[key] for key in actor.in_keys})
    assert torch.allclose(dist.log_prob(batch[ACTION]), batch[LOG_PROB], atol=1e-5, rtol=0)

    def held():
        return [x.clone() for network in (actor, critic) for x in scaler_of(network).buffers()]

    seen, run = [held()], trainer.updates[0].run

    def spied(batch):
        seen.append(held())
        metrics = run(batch)
        seen.append(held())
        return metrics

    trainer.updates[0].run = spied
    trainer.iterate(batch)
    before, *during = seen
    assert len(during) == 2 and all(torch.equal(a, b) for now in during for a, b in zip(before, now, strict=True))
    assert not any(torch.equal(a, b) for a, b in zip(before, held(), strict=True)), "moved behind the updates"


@pytest.mark.parametrize("state", [True, False])
def test_the_statistics_are_those_of_all_batches(state):
    """Actor and critic share those of observations; the state has its own."""
    trainer = make(task_options={"state": state})
    _, actor, critic = networks(trainer)
    assert (scaler_of(actor) is scaler_of(critic)) == (not state)
    moments = {OBSERVATION: RunningMoments((4,)), STATE: RunningMoments((8,))}
    for batch in trainer.collector:
        for key in moments if state else [OBSERVATION]:
            moments[key].update(batch[key])
        trainer.iterate(batch)
        trainer.iteration += 1
    for network, key in ((actor, OBSERVATION), (critic, STATE if state else OBSERVATION)):
        assert scaler_of(network).moments.count.max() == pytest.approx(40 if key == STATE else 80, abs=1e-3)
        assert all(torch.equal(a, b) for a, b in zip(scaler_of(network).buffers(), moments[key].buffers(), strict=True))


def test_an_evaluation_reads_them_as_they_are():
    trainer = make()
    trainer.iterate(next(iter(trainer.collector)))
    _, actor, _ = networks(trainer)
    assert scaler_of(trainer.evaluate.lowered.policy) is scaler_of(actor)
    first = trainer.evaluate(0)
    assert trainer.evaluate(0) == first, "evaluating moves nothing"
    scaler_of(actor).moments.mean.add_(1.0)
    assert trainer.evaluate(0) != first


def test_the_target_critic_has_the_critics_statistics():
    trainer = make(target_tau=0.1)
    for batch in trainer.collector:
        trainer.iterate(batch)
        [returns] = trainer.estimators
        target, critic = scaler_of(returns.target), scaler_of(returns.value_network)
        assert target is not critic and critic.moments.count.min() >= 20 - 1e-3
        assert all(torch.equal(a, b) for a, b in zip(target.buffers(), critic.buffers(), strict=True))


def test_the_observation_before_is_standardised_as_the_present_one_is():
    """Control same_inputs, actor and critic: no statistics of its own, and none that count it twice."""
    trainer = make(loss="moa", loss_options={"actor_inputs": "obs+past"}, task_options={"state": False})
    batch = next(iter(trainer.collector))
    trainer.iterate(batch)
    _, actor, critic = networks(trainer)
    shared, read = scaler_of(actor), []
    assert shared is scaler_of(critic) and shared.moments.count.max() == pytest.approx(batch.numel() * 2, abs=1e-3)
    for network in (actor, critic):
        [trunk] = [part for part in network.modules() if isinstance(part, Trunk)]
        hook = trunk.assemble.register_forward_pre_hook(lambda _, inputs: read.append(inputs))
        network(batch.clone())
        hook.remove()
    for inputs in read:
        for seen, key in zip(inputs, (OBSERVATION, *PAST), strict=True):
            expected = shared(batch[key]) if key == OBSERVATION else batch[key]
            if key == PAST[0]:
                expected = shared(batch[key]) * batch[PAST[2]]
                assert (seen[:, 0] == 0).all() and not (shared(batch[key])[:, 0] == 0).all()
            assert torch.equal(seen, expected), key


@pytest.mark.parametrize("mask_padding", [True, False])
def test_padding_behind_an_episode_counts_as_mask_padding_says(mask_padding):
    trainer = make(whole_episodes=True, steps=None, frames=24, mask_padding=mask_padding, returns="padded_nstep",
                   task_options={"arrive": 0.9})
    batch = next(iter(trainer.collector))
    assert not batch[ALIVE].all() and batch[ALIVE].any()
    trainer.iterate(batch)
    _, actor, critic = networks(trainer)
    alive = batch[ALIVE] if mask_padding else torch.ones_like(batch[ALIVE])
    for network, count in ((actor, alive.sum()), (critic, alive.any(-1).sum())):
        assert scaler_of(network).moments.count.max() == pytest.approx(count.item(), abs=1e-3)


@pytest.mark.parametrize("algorithm, change", [
    ("ippo", {}), ("ia2c", {}), ("maa2c", {"preset": "epymarl"}), ("mappo", {"preset": "moa", "loss": "moa"}),
    ("maa2c", {"preset": "official", "loss": "smpe"}), ("mappo", {"loss": "next_observation"}),
    ("mappo", {"recompute_advantage": True, "value_norm": True}), ("mappo", {"share": "none", "agent_id": True}),
    ("mappo", {"loss": "moa", "loss_options": {"imagination": "dyna", "horizon": 3, "imagination_skill": 0.0,
                                               "imagination_reward_skill": -1e9},
               "task_options": {"state": False}})], ids=str)
def test_everything_on_policy_trains_with_them(algorithm, change):
    """The other numbers are not those of a run without."""
    change = dict(change)
    preset = change.pop("preset", "default")
    rows = [timeless(train(config(algorithm, preset, normalize_observation=flag, **change))) for flag in (True, False)]
    assert all(value == value for row in rows[0] for value in row.values())
    assert rows[0][-1]["eval/return_greedy"] != rows[1][-1]["eval/return_greedy"]


def test_both_collectors_train_alike():
    fast, stock = (train(config(frames=80, fast_collector=choice, normalize_observation=True))
                   for choice in (True, False))
    assert timeless(fast) == timeless(stock)


@pytest.mark.parametrize("algorithm", ["qmix", "vdn", "maddpg"])
def test_algorithms_that_replay_refuse_it(algorithm):
    message = f"algorithm '{algorithm}' does not use normalize_observation: leave it at False"
    with pytest.raises(ValueError, match=message):
        make(algorithm, task_options={"is_discrete": algorithm != "maddpg"})
