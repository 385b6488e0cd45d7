"""Probes on made-up representations whose content is known, and their standard errors by hand."""

import math

import pytest
import torch

from suite import probes
from suite.probes import episode_ids, linear_probe, mlp_probe, split_episodes


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def episodes(count, steps):
    return torch.arange(count).repeat_interleave(steps)


def test_a_linear_map_is_recovered():
    x = normal(600, 4)
    y = x @ normal(4, 3, seed=1) + 5
    found = linear_probe(x, y, ridge=0.0, episode=episodes(60, 10))
    assert found.score == pytest.approx(1, abs=1e-10) and found.baseline == 0
    assert found.error == pytest.approx(0, abs=1e-10)
    torch.testing.assert_close(found.prediction.float(), y)
    assert linear_probe(x, y).score == pytest.approx(1, abs=1e-5)


def test_ridge_by_hand():
    """Training x = -1, 1 and y = -2, 2: w = 2 / (1 + ridge); tested on x = 3, 1 with y = 4, 0 of mean 2."""
    x, y = torch.tensor([[-1.0], [1.0], [3.0], [1.0]]), torch.tensor([-2.0, 2.0, 4.0, 0.0])
    found = linear_probe(x, y, ridge=1.0, train=torch.tensor([True, True, False, False]))
    assert found.prediction[:, 0].tolist() == pytest.approx([-1, 1, 3, 1])
    assert found.score == pytest.approx(1 - 2 / 8) and found.test.tolist() == [False, False, True, True]


def test_classes_by_hand():
    """Centres far apart are told apart; a class that the training rows lack is never guessed."""
    y = torch.arange(300) % 3
    x = 5.0 * torch.eye(3)[y] + 0.5 * normal(300, 3)
    found = linear_probe(x, y, classes=4, episode=episodes(100, 3))
    assert found.score == 1 and found.error == 0 and found.by_dimension is None
    assert found.baseline == pytest.approx(1 / 3) and found.prediction.dtype == torch.int64


def test_the_logistic_fit_is_the_minimum():
    """At the optimum the gradient of mean cross-entropy is minus ridge times the weights."""
    x, y = normal(200, 3).double(), torch.randint(3, (200,), generator=torch.Generator().manual_seed(1))
    weight, bias = probes._fit_logistic(x, y[:, None], 3, 0.1)
    gap = (x @ weight + bias).softmax(-1) - torch.eye(3, dtype=torch.double)[y]
    torch.testing.assert_close(x.T @ gap / 200, -0.1 * weight, atol=1e-5, rtol=0)
    assert gap.mean(0).abs().max() < 1e-5


@pytest.mark.parametrize("probe", [linear_probe, mlp_probe])
def test_several_targets_are_probed_apart(probe):
    """Two labels, one of which the features hold: scores and chance are the means of each alone."""
    label, noise = torch.arange(600) % 3, torch.randint(3, (600,), generator=torch.Generator().manual_seed(1))
    x = 5.0 * torch.eye(3)[label] + 0.5 * normal(600, 3)
    options = dict(classes=3, episode=episodes(60, 10))
    both = probe(x, torch.stack([label, noise], -1), **options)
    one, other = probe(x, label, **options), probe(x, noise, **options)
    assert both.prediction.shape == (600, 2) and both.baseline == pytest.approx((one.baseline + other.baseline) / 2)
    assert one.score == 1 and both.score == pytest.approx((one.score + other.score) / 2, abs=0.05)
    if probe is linear_probe:  # the problems are separate: the same guesses
        assert torch.equal(both.prediction, torch.stack([one.prediction, other.prediction], -1))
        assert both.error == pytest.approx(other.error / 2)


@pytest.mark.parametrize("probe", [linear_probe, mlp_probe])
def test_noise_tells_nothing(probe):
    x, y = normal(2000, 5), torch.randint(4, (2000,), generator=torch.Generator().manual_seed(3))
    options = {} if probe is linear_probe else {"steps": 300}
    found = probe(x, y, classes=4, episode=episodes(200, 10), **options)
    assert found.score == pytest.approx(0.25, abs=0.08) and abs(found.score - 0.25) < 4 * found.error
    assert abs(probe(x, normal(2000, 2, seed=5), episode=episodes(200, 10), **options).score) < 0.1


def test_only_the_network_sees_a_parity():
    x = normal(3000, 2)
    y = (x[:, 0] * x[:, 1] > 0).long()
    assert linear_probe(x, y, classes=2).score < 0.6
    assert mlp_probe(x, y, classes=2, steps=600).score > 0.93
    square = mlp_probe(x, x[:, 0].square(), steps=600)
    assert square.score > 0.9 and linear_probe(x, x[:, 0].square()).score < 0.1


def test_few_episodes_train_a_network_without_choosing():
    x = normal(40, 2)
    assert mlp_probe(x, x, episode=episodes(4, 10), steps=400).score > 0.8


def test_a_network_is_chosen_on_episodes_that_it_was_not_fitted_to():
    """Of noise it would learn everything by heart, and guess worse than the mean."""
    x, y, episode = normal(120, 6), normal(120, seed=1), episodes(12, 10)
    chosen = mlp_probe(x, y, episode=episode, steps=800)
    train = split_episodes(episode)
    few = mlp_probe(x, y, episode=torch.where(train, episode % 2, episode + 2), train=train, steps=800)  # two to fit
    assert chosen.score > -0.5 and few.score < chosen.score - 0.3


def test_constant_dimensions_do_not_count():
    x = normal(200, 2)
    y = torch.stack([x[:, 0], torch.full((200,), 3.0), x[:, 1]], -1)
    found = linear_probe(x, y, ridge=0.0)
    assert found.score == pytest.approx(1) and found.by_dimension.isnan().tolist() == [False, True, False]
    nothing = linear_probe(x, torch.ones(200))
    assert math.isnan(nothing.score) and math.isnan(nothing.error)
    constant = linear_probe(torch.ones(200, 2), x[:, 0])  # of no use, and no division by zero
    assert constant.score == pytest.approx(0, abs=0.2)


def test_standard_error_of_an_accuracy_by_hand():
    """Test episodes of two steps with 2, 1, 0 right: means 1, 0.5, 0 with variance 0.25 and error sqrt(0.25 / 3)."""
    train = torch.tensor([True] * 4 + [False] * 6)
    x = torch.tensor([-1.0, 1, -1, 1, -1, 1, -1, 1, -1, 1])[:, None]
    y = torch.tensor([0, 1, 0, 1, 0, 1, 0, 0, 1, 0])
    found = linear_probe(x, y, classes=2, train=train, episode=torch.tensor([0, 0, 0, 0, 1, 1, 2, 2, 3, 3]))
    assert found.score == 0.5 and found.error == pytest.approx(math.sqrt(0.25 / 3))
    alone = linear_probe(x, y, classes=2, train=train, episode=torch.tensor([0] * 4 + [1] * 6))
    assert alone.score == 0.5 and math.isnan(alone.error)


def test_standard_error_is_that_of_many_repetitions():
    """The spread of scores over fresh test episodes, whose steps share a disturbance."""
    scores, errors = [], []
    for seed in range(60):
        x = normal(400, 1, seed=seed)
        y = x + normal(40, seed=1000 + seed).repeat_interleave(10)[:, None]
        found = linear_probe(x, y, train=torch.arange(400) < 100, episode=episodes(40, 10))
        scores.append(found.score)
        errors.append(found.error)
    assert torch.tensor(errors).mean().item() == pytest.approx(torch.tensor(scores).std().item(), rel=0.3)


def test_episodes_are_split_whole():
    episode = episodes(50, 7)[torch.randperm(350, generator=torch.Generator().manual_seed(0))]
    train = split_episodes(episode)
    assert not set(episode[train].tolist()) & set(episode[~train].tolist())
    assert len(set(episode[train].tolist())) == 40
    assert torch.equal(split_episodes(episode), train) and not torch.equal(split_episodes(episode, seed=1), train)
    assert split_episodes(torch.tensor([3, 3, 8])).sum() in (1, 2)


def test_episode_numbers():
    is_init = torch.tensor([[1, 0, 1, 0], [0, 0, 0, 1]], dtype=torch.bool)
    assert episode_ids(is_init).tolist() == [[1, 1, 2, 2], [5, 5, 5, 6]]
    every = episode_ids(torch.ones(3, 5, dtype=torch.bool))
    assert len(every.unique()) == 15


@pytest.mark.parametrize(("train", "episode", "match"), [
    ([True, True], [0, 1], "rows to train on"), ([False, False], [0, 1], "rows to train on"),
    ([True, False], [4, 4], "both sides"), (None, [4, 4], "two episodes")])
def test_bad_splits(train, episode, match):
    with pytest.raises(ValueError, match=match):
        linear_probe(normal(2, 1), normal(2), train=None if train is None else torch.tensor(train),
                     episode=torch.tensor(episode))


def test_the_same_twice_and_the_random_state_is_left_alone():
    x, y = normal(300, 3), torch.arange(300) % 3
    before = torch.get_rng_state()
    with torch.no_grad():
        first = linear_probe(x, y, classes=3), mlp_probe(x, y, classes=3, steps=50), mlp_probe(x, x, steps=50)
    torch.manual_seed(77)
    with torch.inference_mode():
        second = (linear_probe(x.clone(), y, classes=3), mlp_probe(x, y, classes=3, steps=50),
                  mlp_probe(x.clone(), x, steps=50))
    torch.set_rng_state(before)
    for one, two in zip(first, second, strict=True):
        assert (one.score, one.error) == (two.score, two.error) and torch.equal(one.prediction, two.prediction)
    mlp_probe(x, y, classes=3, steps=50)
    linear_probe(x, y, classes=3)
    assert torch.equal(torch.get_rng_state(), before)
    assert not torch.equal(mlp_probe(x, x, steps=50, seed=1).prediction, first[2].prediction)
