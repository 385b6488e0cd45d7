"""The metrics on the toy of hidden goals: the numbers that a model of it must lie between.

Everything over t >= 1 of 1,000 test episodes after 2,000 training episodes; the tolerances are a few standard errors
over episodes, so that other random numbers would do as well.
"""

import pytest
import torch

from envs.toy_belief import STEPS, belief, play, predict
from suite.probes import linear_probe
from suite.state_metrics import action_frequencies, action_prediction, as_floats, categorical_entropy


@pytest.fixture(scope="module")
def train():
    return play(2000, seed=1)


@pytest.fixture(scope="module")
def data():
    return play(1000, seed=2)


@pytest.fixture(scope="module")
def scores(train, data):
    """What marginal, repetition, Bayes filter and the true policy reach, by the suite's own metrics."""
    action = data.action[:, :, :1, None]  # [E, T, 1, 1]: one modeller, one other
    frequencies = action_frequencies(train.action[:, 1:, :1, None], 5, smoothing=0)

    def found(probabilities):
        logits, true = probabilities.log()[:, 1:, None, None], data.policy.log()[:, 1:, None, None]
        return as_floats(action_prediction(logits, action[:, 1:], frequencies=frequencies, previous=action[:, :-1],
                                           entropy=categorical_entropy(true)))

    return {"bayes": found(predict(data, belief(data))), "true": found(data.policy)}


def test_numbers_of_the_predictions(scores):
    bayes, true = scores["bayes"], scores["true"]
    assert bayes["ce_marginal"] == pytest.approx(1.6075, abs=0.004)
    assert bayes["acc_marginal"] == pytest.approx(0.213, abs=0.01)
    assert bayes["acc_repeat"] == pytest.approx(0.263, abs=0.01)
    assert bayes["ce"] == pytest.approx(1.4793, abs=0.01) and bayes["acc"] == pytest.approx(0.366, abs=0.01)
    assert bayes["ce_floor"] == pytest.approx(1.4241, abs=0.003)
    assert bayes["skill"] == pytest.approx(0.699, abs=0.05)
    assert true["acc"] == pytest.approx(0.422, abs=0.01) and true["skill"] == pytest.approx(1, abs=0.05)
    assert bayes["ece"] < 0.02 and true["ece"] < 0.02


def test_numbers_of_the_goal_inference(data):
    right = (belief(data).argmax(-1) == data.goal[:, None]).float()
    assert right[:, 1:].mean().item() == pytest.approx(0.814, abs=0.02)
    assert right[:, 10:].mean().item() == pytest.approx(0.922, abs=0.02)
    assert right[:, 19].mean().item() == pytest.approx(0.957, abs=0.02)


def test_a_linear_probe_of_the_present_observation(train, data):
    """Against the same probe of the exact belief, which knows the whole history."""
    episode = torch.arange(3000)[:, None].expand(-1, STEPS - 1).flatten()
    goal = torch.cat([train.goal, data.goal])[episode]

    def probe(*features):
        return linear_probe(torch.cat(features)[:, 1:].flatten(0, 1), goal, classes=4, episode=episode,
                            train=episode < 2000)

    seen, known = probe(train.observation, data.observation), probe(belief(train), belief(data))
    assert seen.score == pytest.approx(0.612, abs=0.02) and seen.baseline == pytest.approx(0.25, abs=0.04)
    assert 0.005 < seen.error < 0.02
    assert known.score == pytest.approx(0.814, abs=0.03)
