"""Exploration modules: levels by hand, masks, bounds, every agent for itself."""

import pytest
import torch

from suite.modules.exploration import EpsilonGreedy, GaussianNoise, RandomHybrid


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


def test_impossible_and_undefined_levels_are_named_for_noise_too():
    bound = torch.ones(1, 2)
    for start, end in ((0.1, 0.5), (1.0, -0.1), (float("nan"), 0.0)):
        with pytest.raises(ValueError, match=f"0 <= end <= start is needed, got start {start}, end {end}"):
            GaussianNoise(-bound, bound, start=start, end=end, frames=10)


def test_state_dict_is_the_level_alone_and_goes_on():
    bound = torch.ones(1, 2)
    for make in (epsilon, lambda: GaussianNoise(-bound, bound, start=1.0, end=0.1, frames=100)):
        first, second = make(), make()
        first.anneal(30)
        assert list(first.state_dict()) == ["level"] and not list(first.parameters())
        second.load_state_dict(first.state_dict())
        for module in (first, second):
            module.anneal(10)
        assert torch.equal(first.level, second.level) and second.level.item() == pytest.approx(1 - 0.4 * 0.9)


def test_at_half_the_level_the_given_choice_stays_in_half_of_the_frames():
    torch.manual_seed(0)
    action = torch.zeros(20_000, 2, dtype=torch.int64)
    out = epsilon(start=0.5)(action)
    assert out.dtype == torch.int64 and not action.any()  # and the input is not written into
    shares = torch.bincount(out.flatten(), minlength=4) / out.numel()
    torch.testing.assert_close(shares, torch.tensor([0.625, 0.125, 0.125, 0.125]), atol=0.01, rtol=0)


def test_agents_draw_different_choices():
    torch.manual_seed(0)
    out = epsilon()(torch.zeros(20_000, 2, dtype=torch.int64))
    assert (out[:, 0] == out[:, 1]).float().mean().item() == pytest.approx(0.25, abs=0.015)


def test_bounds_hold_for_each_agent_and_number_and_noise_is_independent():
    torch.manual_seed(0)
    low, high = torch.tensor([[-1.0, 0.0], [-2.0, 3.0]]), torch.tensor([[1.0, 4.0], [2.0, 3.5]])
    middle = ((low + high) / 2).expand(20_000, 2, 2)
    wild = GaussianNoise(low, high, start=2.0, end=0.0, frames=10)(middle)
    assert (wild >= low).all() and (wild <= high).all()
    assert all((wild == bound).any(0).all() for bound in (low, high))  # and both are reached
    still = GaussianNoise(low, high, start=0.0, end=0.0, frames=10)
    assert torch.equal(still(middle), middle) and torch.equal(still(middle + 100), high.expand_as(middle))
    moved = GaussianNoise(low, high, start=0.1, end=0.0, frames=10)(middle) - middle
    torch.testing.assert_close(moved.std(0), 0.1 * (high - low) / 2, rtol=0.03, atol=0)
    assert (torch.corrcoef(moved.flatten(1).T) - torch.eye(4)).abs().max() < 0.03


def test_random_hybrid_actions_while_it_warms_up():
    """Uniform choices, uniform parameters where a choice has them; afterwards what was given, whoever ends it."""
    torch.manual_seed(0)
    mask, warming = torch.tensor([[True, True], [True, False]]), torch.tensor(True)
    module = RandomHybrid(mask, warming)
    choice, params = torch.zeros(4000, 1, dtype=torch.int64), torch.full((4000, 1, 2), 0.5)
    drawn, x = module(choice, params)
    assert abs(drawn.float().mean() - 0.5) < 0.03 and x.abs().max() <= 1
    assert (x[drawn == 1][:, 1] == 0).all() and abs(x[drawn == 0].mean()) < 0.05
    assert abs(x[drawn == 0].std() - 3 ** -0.5) < 0.03
    warming.fill_(False)
    for ours, given in zip(module(choice, params), (choice, params), strict=True):
        assert torch.equal(ours, given)


def test_agents_explore_independently_of_each_other():
    """Level 0.6 of three choices: each agent leaves choice 0 with probability 0.4, both do with 0.16."""
    torch.manual_seed(0)
    action = torch.zeros(20_000, 2, dtype=torch.int64)
    found = EpsilonGreedy(3, start=0.6, end=0.0, frames=10)(action)
    shares = torch.bincount(found.flatten(), minlength=3) / found.numel()
    torch.testing.assert_close(shares, torch.tensor([0.6, 0.2, 0.2]), atol=0.01, rtol=0)
    assert (found > 0).float().prod(-1).mean().item() == pytest.approx(0.16, abs=0.01)
    assert found.dtype == torch.int64 and not action.any()
