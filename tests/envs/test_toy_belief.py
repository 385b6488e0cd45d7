"""The rules of the toy of hidden goals, by hand; what models of it reach stands in suite/test_state_metrics_toy.py."""

import pytest
import torch
from torch.nn import functional as F

from envs.toy_belief import GOALS, MOVES, STEPS, belief, history, leader_policy, play, predict


@pytest.fixture(scope="module")
def data():
    return play(1000, seed=2)


def test_rules(data):
    """Moves of 0.1 that end at the walls, from starts within 0.5; the follower sees where both are."""
    assert data.observation.shape == (1000, STEPS, 4) and data.action.shape == (1000, STEPS, 2)
    cell = (10 * data.position).round().long()
    assert cell[:, 0].abs().max() == 5 and cell.abs().max() == 10
    torch.testing.assert_close(cell[:, 1:], (cell + MOVES[data.action]).clamp(-10, 10)[:, :-1])
    torch.testing.assert_close(data.observation[..., :2] + data.observation[..., 2:], data.position[:, :, 0])
    assert data.action[..., 1].flatten().bincount().float().div(1000 * STEPS).sub(0.2).abs().max() < 0.01
    assert data.goal.bincount().float().div(1000).sub(0.25).abs().max() < 0.04


def test_leader_policy_by_hand():
    """In the centre with the goal at (1, 0): distances 1, 0.9, 1.1 and twice sqrt(1.01)."""
    distance = torch.tensor([1.0, 0.9, 1.1, 1.01**0.5, 1.01**0.5])
    torch.testing.assert_close(leader_policy()[10, 10, 0], (-10 * distance).softmax(-1))
    corner = leader_policy()[20, 10, 0]  # on the goal: staying and walking into the wall are the same
    assert corner[0] == corner[1] and corner.argmax() == 0
    assert GOALS.float().norm(dim=-1).tolist() == [10] * 4


def test_history_is_the_step_before(data):
    past = history(data)
    assert past.shape == (1000, STEPS, 14) and (past[:, 0] == 0).all()
    torch.testing.assert_close(past[:, 1:, :4], data.observation[:, :-1])
    torch.testing.assert_close(past[:, 1:, 4:9], F.one_hot(data.action[:, :-1, 0], 5).float())
    torch.testing.assert_close(past[:, 1:, 9:], F.one_hot(data.action[:, :-1, 1], 5).float())


def test_belief_by_bayes_rule(data):
    """Step by step instead of all at once, and blind to the present action."""
    found, table = belief(data), leader_policy()
    cell = (10 * data.position[:, :, 0]).round().long() + 10
    posterior = torch.full((1000, 4), 0.25)
    for t in range(STEPS):
        torch.testing.assert_close(found[:, t], posterior, atol=1e-4, rtol=1e-3)
        likelihood = table[cell[:, t, 0], cell[:, t, 1], :, data.action[:, t, 0]]
        posterior = posterior * likelihood / (posterior * likelihood).sum(-1, keepdim=True)
    torch.testing.assert_close(predict(data, F.one_hot(data.goal, 4)[:, None].float().expand(-1, STEPS, -1)),
                               data.policy)


def test_the_same_twice_and_the_random_state_is_left_alone(data):
    before = torch.get_rng_state()
    again, other = play(1000, seed=2), play(1000, seed=5)
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(again.action, data.action) and not torch.equal(other.action, data.action)
