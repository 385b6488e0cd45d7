"""Roll-outs of a world that is known exactly; whose actions are taken in whose world, and for how long."""

import pytest
import torch
from torch.testing import assert_close

from suite.losses import MOALoss
from suite.modules import make_actor
from suite.modules.simulator import GOES_ON, ModelledOthers, Simulator, own_rows, rollout_lengths
from suite.modules.state_model import LATENT, PAST
from suite.specs import ACTION, LOG_PROB, OBSERVATION, REWARD
from tests.batches import make_past_batch, make_specs, shaken
from tests.worlds import M, make_world

torch.set_num_threads(1)


# accuracies 0.9, 0.45, 0.3 with at most 10 steps
@pytest.mark.parametrize("horizon, accuracy, expected", [
    (10, [0.9, 0.45, 0.3], [10, 5, 3]), (10, [0.3, 0.3, 0.3], [10, 10, 10]), (4, [0.9, 0.45, 0.3], [4, 2, 1]),
    (10, [0.0, 0.0, 0.0], [0, 0, 0]), (10, [0.7, 0.0, 0.07], [10, 0, 1])])
def test_lengths_by_hand(horizon, accuracy, expected):
    assert rollout_lengths(horizon, torch.tensor([accuracy, accuracy])).tolist() == [expected, expected]


def start_of(loss, rows=6, seed=0):
    torch.manual_seed(seed)
    observation = torch.randn(rows, 2, 1)
    past = loss.model.previous(observation, torch.zeros(rows, 2, 1))
    return {OBSERVATION: observation, **dict(zip(PAST, past, strict=True))}


def test_an_exact_model_gives_the_true_future(monkeypatch):
    loss, learner = make_world(monkeypatch)
    simulator = Simulator(loss.model, [], learner.actor, loss.world_loss.unscaled)
    start = start_of(loss)
    steps, last = simulator.roll(start, 4)
    now = start[OBSERVATION]
    for k, step in enumerate(steps):
        assert_close(step[OBSERVATION], now, rtol=1e-5, atol=1e-6)
        assert_close(step[ACTION], -now / 2, rtol=1e-5, atol=1e-6)
        assert_close(step[LOG_PROB], now.squeeze(-1), rtol=1e-5, atol=1e-6)
        after = M @ now
        assert_close(step["next", *OBSERVATION], after, rtol=1e-5, atol=1e-6)
        assert_close(step["next", *REWARD], after, rtol=1e-5, atol=1e-6)
        assert (step[GOES_ON] == 1).all()
        assert_close(step["next", *PAST[0]], now, rtol=1e-5, atol=1e-6)  # the past of the next step
        joint = torch.cat([-now / 2, -now.flip(-2) / 2], -1) / 50
        assert_close(step["next", *PAST[1]], joint, rtol=1e-5, atol=1e-6)
        if k < 3:
            assert all(torch.equal(steps[k + 1][key], step["next", *key]) for key in PAST)
        now = after
    assert_close(last[OBSERVATION], now, rtol=1e-5, atol=1e-6)


def test_what_never_varied_stays_and_nothing_leaves_the_known_range(monkeypatch):
    loss, learner = make_world(monkeypatch)
    simulator = Simulator(loss.model, [], learner.actor, loss.world_loss.unscaled)
    start = start_of(loss)
    start[OBSERVATION] = start[OBSERVATION] * 1e4
    [step], _ = simulator.roll(start, 1)
    assert step["next", *OBSERVATION].abs().max() <= 10 * 2.0 + 0.3 + 1e-4
    loss.model.scaler.moments.var.fill_(0.0)
    [step], _ = simulator.roll(start, 1)
    assert torch.equal(step["next", *OBSERVATION], start[OBSERVATION])


@pytest.mark.parametrize("kind", ["discrete", "continuous"])
def test_latents_are_inferred_from_the_imagined_past(kind):
    specs = make_specs(kind)
    loss = shaken(MOALoss(specs, latent_dim=2, num_cells=8, depth=1))
    actor = make_actor(specs, loss.features, share="all", agent_id=True, cells=[8], activation="tanh", init="default",
                       recurrent_dim=0, head="normal", state_dependent_scale=False, device="cpu")
    td = make_past_batch(specs, 5, 3).reshape(-1)
    steps, last = Simulator(loss.model, loss.encoders, actor, loss.world_loss.unscaled).roll(
        {key: td[key] for key in (OBSERVATION, *PAST)}, 3)
    for now in (*steps, last):
        known = loss.acting.infer(now[OBSERVATION], *(now[key] for key in PAST))
        assert torch.equal(now[LATENT], known.mean)
    u, joint = loss.model.scaler(steps[1][OBSERVATION]), steps[1]["next", *PAST[1]]
    assert torch.equal(joint, loss.model.previous.joint(steps[1][ACTION]))
    after, reward = loss.model.world_model(u, joint)
    assert_close(loss.model.scaler(steps[2][OBSERVATION]), after.clamp(-10, 10), rtol=1e-4, atol=1e-4)
    assert_close(steps[1]["next", *REWARD], reward * loss.world_loss.reward_scale)


# ---------------------------------------------------------------------- worlds of one agent each


def test_own_rows():
    x = torch.arange(2 * 3 * 3 * 2).view(2, 3, 3, 2)
    assert torch.equal(own_rows(x, 1), torch.stack([x[:, i, i] for i in range(3)], 1))
    x = torch.arange(2 * 4 * 3 * 3).view(2, 4, 3, 3)
    assert torch.equal(own_rows(x, 2), torch.stack([x[:, :, i, i] for i in range(3)], 2))


def expecting(loss, monkeypatch, table):
    """Agent i is sure that its others do ``table[i]``."""
    logits = 99 * torch.nn.functional.one_hot(torch.tensor(table), 5).float()
    monkeypatch.setattr(loss.model, "predict_actions", lambda prev, joint, valid: (
        logits.expand(len(prev), -1, -1, -1), None))


def test_who_acts_by_which_model_and_how_long(monkeypatch):
    """Policies choose 0; agent 0 expects 1 2 of agents 1 2, agent 1 expects 3 4 of 0 2, agent 2 expects 1 3 of 0 1."""
    loss = MOALoss(make_specs("discrete"), latent_dim=2, num_cells=8, depth=1)
    expecting(loss, monkeypatch, [[1, 2], [3, 4], [1, 3]])
    others = ModelledOthers(loss.model, torch.tensor([[3, 2], [2, 1], [0, 3]]))
    step = {ACTION: torch.zeros(2, 3, 3, dtype=torch.int64), PAST[0]: torch.zeros(2, 3, 3, 4),
            PAST[1]: torch.zeros(2, 3, 3, 15), PAST[2]: torch.ones(2, 3, 3, 1)}
    step[PAST[2]][1] = 0  # the second row has no past yet
    expected = [[[0, 1, 2], [3, 0, 0], [0, 3, 0]], [[0, 1, 0], [0, 0, 0], [0, 3, 0]], [[0, 0, 0]] * 3]
    for k in range(3):
        taken = others(k, step)
        assert taken[0].tolist() == expected[k] and not taken[1].any()


def test_continuous_expectations_are_in_the_units_of_the_one_who_acts(monkeypatch):
    """Bounds of agent k are [-(k + 1), 2 (k + 1)]: an expected 0 is their middle, 1 the upper one."""
    specs = make_specs("continuous")
    loss = MOALoss(specs, latent_dim=2, num_cells=8, depth=1)
    mean = torch.tensor([[0.0, 1.0], [1.0, 0.0], [-1.0, 1.0]])[None, :, :, None].expand(4, -1, -1, 2)
    monkeypatch.setattr(loss.model, "predict_actions", lambda *past: ((mean, torch.full_like(mean, -50.0)), None))
    others = ModelledOthers(loss.model, torch.full((3, 2), 9))
    step = {ACTION: torch.full((4, 3, 3, 2), 0.25), PAST[0]: torch.zeros(4, 3, 3, 4), PAST[1]: torch.zeros(4, 3, 3, 6),
            PAST[2]: torch.ones(4, 3, 3, 1)}
    expected = torch.tensor([[0.25, 1.0, 6.0], [2.0, 0.25, 1.5], [-1.0, 4.0, 0.25]])
    assert_close(others(0, step), expected[None, :, :, None].expand(4, -1, -1, 2))
