"""Exploration modules: levels by hand, masks, bounds, every agent for itself."""

import pytest
import torch

from suite.modules.exploration import EpsilonGreedy, GaussianNoise


def epsilon(start=1.0, end=0.1, frames=100, choices=4):
    return EpsilonGreedy(choices, start=start, end=end, frames=frames)


def test_the_level_falls_linearly_and_stays_at_its_end():
    explore = epsilon()
    for frames, level in ((0, 1.0), (50, 0.55), (25, 0.325), (25, 0.1), (1000, 0.1)):
        explore.anneal(frames)
        assert float(explore.level) == pytest.approx(level)
    other = epsilon()
    other.load_state_dict(explore.state_dict())
    assert float(other.level) == pytest.approx(0.1)


def test_level_one_is_uniform_over_allowed_choices_and_level_zero_changes_nothing():
    torch.manual_seed(0)
    action = torch.zeros(20_000, 2, dtype=torch.int64)
    mask = torch.tensor([[True, True, True, True], [False, True, False, True]]).expand(20_000, -1, -1)
    drawn = epsilon(end=0.0)(action, mask)
    shares = [torch.bincount(drawn[:, agent], minlength=4) / len(action) for agent in range(2)]
    torch.testing.assert_close(shares[0], torch.full((4,), 0.25), atol=0.015, rtol=0)
    torch.testing.assert_close(shares[1], torch.tensor([0.0, 0.5, 0.0, 0.5]), atol=0.015, rtol=0)
    assert torch.equal(epsilon(start=0.0, end=0.0)(action, mask), action)


def test_agents_explore_independently():
    torch.manual_seed(0)
    action = torch.full((10_000, 2), -1)
    explored = epsilon(start=0.5, end=0.0)(action) >= 0
    # both, one, none: 1/4, 1/2, 1/4
    torch.testing.assert_close(
        torch.bincount(explored.sum(1)) / 10_000, torch.tensor([0.25, 0.5, 0.25]), atol=0.02, rtol=0
    )


def test_noise_is_scaled_by_the_range_and_kept_inside():
    torch.manual_seed(0)
    low, high = torch.tensor([[-1.0, -10.0]]), torch.tensor([[1.0, 10.0]])
    noise = GaussianNoise(low, high, start=0.1, end=0.0, frames=10)
    action = torch.zeros(20_000, 1, 2)
    spread = noise(action).std(0)[0]
    torch.testing.assert_close(spread, torch.tensor([0.1, 1.0]), rtol=0.03, atol=0)
    edge = noise(high.expand(1000, 1, 2))
    assert (edge <= high).all() and (edge < high).any()


@pytest.mark.parametrize("schedule", [(0.1, 0.5), (-0.1, -0.2), (1.0, -0.1)])
def test_impossible_schedules_are_named(schedule):
    start, end = schedule
    with pytest.raises(ValueError, match=f"start {start}, end {end}"):
        epsilon(start=start, end=end)
