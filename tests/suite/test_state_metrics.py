"""Metrics of state modelling against numbers worked out by hand, and what must hold for every table."""

import math

import pytest
import torch
from torch.nn import functional as F

from suite import state_metrics as sm

LN2 = math.log(2)
LOGITS = torch.tensor([2.0, 1.0, 0.0], dtype=torch.double)  # cross-entropy 0.4076, 1.4076, 2.4076
FLAT = torch.full((1, 1, 3), 1 / 3, dtype=torch.double)


def predict(logits, target, weight=None, **options):
    options.setdefault("frequencies", FLAT)
    found = sm.action_prediction(logits, torch.tensor(target), None if weight is None else torch.tensor(weight),
                                 **options)
    return {name: value.tolist() for name, value in found.items()}


def per_step(logits=LOGITS):
    """[4 steps, 1 agent, 1 other, 3 actions]."""
    return logits.expand(4, 1, 1, -1)


# ---------------------------------------------------------------------- actions


@pytest.mark.parametrize(("weights", "value"), [((0, 1, 1, 1), 1.407605964), ((0, 1, 1, 0), 0.907605964),
                                                ((0, 0, 0, 0), 0.0), ((0, 0.1, 0, 0), 0.407605964)])
def test_cross_entropy_over_the_sum_of_weights(weights, value):
    found = predict(per_step(), [[[2]], [[0]], [[1]], [[2]]], [[[float(w)]] for w in weights])
    assert found["ce"] == pytest.approx(value, abs=1e-8)


def test_what_has_no_weight_may_be_anything():
    logits = per_step().clone()
    logits[0] = torch.tensor([-math.inf, 0.0, math.nan])
    found = predict(logits, [[[0]], [[0]], [[0]], [[0]]], [[[0.0]], [[1.0]], [[1.0]], [[1.0]]])
    assert found["ce"] == pytest.approx(0.407605964) and found["acc"] == 1
    assert math.isfinite(found["ece"])


def test_impossible_actions_cost_nothing():
    padded = torch.cat([LOGITS, torch.tensor([-math.inf])]).expand(1, 1, 1, 4)
    found = predict(padded, [[[0]]], frequencies=torch.full((1, 1, 4), 0.25), entropy=sm.categorical_entropy(padded))
    assert found["ce"] == pytest.approx(0.407605964) and found["ce_floor"] == pytest.approx(0.832395582)


def test_baselines_by_hand():
    frequencies = torch.tensor([[[0.5, 0.25, 0.25]]], dtype=torch.double)
    found = predict(per_step(), [[[0]], [[0]], [[1]], [[2]]], frequencies=frequencies,
                    previous=torch.tensor([[[2]], [[0]], [[0]], [[2]]]), entropy=torch.full((4, 1, 1), LN2).double())
    mean = (2 * 0.407605964 + 1.407605964 + 2.407605964) / 4
    assert found == pytest.approx({
        "ce": mean, "acc": 0.5, "ce_marginal": 1.5 * LN2, "acc_marginal": 0.5, "acc_repeat": 0.5, "ce_floor": LN2,
        "skill": (1.5 * LN2 - mean) / (0.5 * LN2), "ece": 0.665240956 - 0.5}, abs=1e-8)


def test_each_pair_has_its_own_frequencies():
    """Two agents: what agent 1 does, seen from agent 0, and the reverse."""
    target = torch.tensor([[[0], [1]], [[0], [1]], [[0], [0]]])  # [3, N, P]
    exact = sm.action_frequencies(target, 2, smoothing=0)
    torch.testing.assert_close(exact, torch.tensor([[[1, 0]], [[1 / 3, 2 / 3]]], dtype=torch.double))
    smooth = sm.action_frequencies(target, 2, torch.tensor([[[1.0], [1]], [[1], [0]], [[0], [0]]]))
    torch.testing.assert_close(smooth, torch.tensor([[[0.75, 0.25]], [[1 / 3, 2 / 3]]], dtype=torch.double))
    found = sm.action_prediction(torch.zeros(3, 2, 1, 2), target, frequencies=exact)
    assert found["acc_marginal"].item() == pytest.approx(5 / 6)


def test_averages_over_some_dimensions_make_curves():
    found = predict(per_step(), [[[0]], [[1]], [[1]], [[2]]], dim=(1, 2))
    assert found["ce"] == pytest.approx([0.407605964, 1.407605964, 1.407605964, 2.407605964])
    assert found["acc"] == [1, 0, 0, 0] and "ece" not in found


def sampled(seed, rows=40000, choices=4):
    """Random policies that depend on the situation, and what they did [rows, 1, 1]."""
    generator = torch.Generator().manual_seed(seed)
    logits = 1.5 * torch.randn(50, choices, generator=generator, dtype=torch.double)
    logits = logits[torch.randint(50, (rows,), generator=generator)]
    action = torch.multinomial(logits.softmax(-1), 1, generator=generator)
    return logits[:, None, None], action[:, :, None]


def test_steps_into_episodes_by_hand():
    """Two rows of 6: one episode from the start and one from step 4; one that began before, and one from step 1."""
    start = torch.tensor([[1, 0, 0, 0, 1, 0], [0, 1, 0, 0, 0, 0]], dtype=torch.bool)
    found = sm.steps_into_episodes(start)
    assert {k: here.int().tolist() for k, here in found.items()} == {
        1: [[0, 1, 0, 0, 0, 1], [0, 0, 1, 0, 0, 0]], 2: [[0, 0, 1, 1, 0, 0], [0, 0, 0, 1, 1, 0]],
        4: [[0, 0, 0, 0, 0, 0], [0, 0, 0, 0, 0, 1]]}
    assert sm.steps_into_episodes(torch.zeros(2, 6, dtype=torch.bool)) == {}
    assert list(sm.steps_into_episodes(torch.eye(1, 9, dtype=torch.bool))) == [1, 2, 4, 8]
    assert list(sm.steps_into_episodes(torch.eye(1, 8, dtype=torch.bool))) == [1, 2, 4]


def test_skill_and_calibration_of_the_true_policy_and_of_the_marginal():
    logits, action = sampled(0)
    frequencies, entropy = sm.action_frequencies(action, 4, smoothing=0), sm.categorical_entropy(logits)
    def scores(x):
        return sm.action_prediction(x, action, frequencies=frequencies, entropy=entropy)

    true, marginal = scores(logits), scores(frequencies.log().expand_as(logits))
    assert true["skill"].item() == pytest.approx(1, abs=0.03) and true["ece"] < 0.01
    assert true["ce"].item() == pytest.approx(true["ce_floor"].item(), abs=0.02)
    assert marginal["skill"].item() == pytest.approx(0, abs=1e-12) and marginal["ece"] < 1e-6
    assert scores(3 * logits)["ece"] > 0.1  # over-confident


def test_no_skill_where_there_is_nothing_to_predict():
    target = torch.zeros(5, 1, 1, dtype=torch.long)
    certain = torch.tensor([30.0, 0, 0]).expand(5, 1, 1, 3)
    found = sm.action_prediction(certain, target, frequencies=sm.action_frequencies(target, 3, smoothing=0),
                                 entropy=sm.categorical_entropy(certain))
    assert found["skill"] == 0
    assert sm.skill(torch.tensor(1.0), torch.tensor(1.5), torch.tensor(1.4995), least=1e-3) == 0
    assert sm.skill(torch.tensor(0.2), torch.tensor(0.5), least=1e-8).item() == pytest.approx(0.6)


def test_calibration_error_by_hand():
    """Two in the bin of 0.8 (one right), one in the bin of 0.6 (right): (|1 - 1.6| + |1 - 0.6|) / 3."""
    probabilities = torch.tensor([[0.8, 0.2], [0.2, 0.8], [0.4, 0.6]])
    found = sm.calibration_error(probabilities, torch.tensor([0, 0, 1]))
    assert found.item() == pytest.approx((0.6 + 0.4) / 3, abs=1e-6)
    weighted = sm.calibration_error(probabilities, torch.tensor([0, 0, 1]), torch.tensor([1.0, 0.0, 1.0]))
    assert weighted.item() == pytest.approx((0.2 + 0.4) / 2, abs=1e-6)
    assert sm.calibration_error(probabilities, torch.tensor([0, 0, 1]), torch.zeros(3)) == 0
    edge = torch.tensor([[0.5, 0.5], [0.75, 0.25]])  # a bin holds its upper edge
    assert sm.calibration_error(edge, torch.tensor([1, 0]), bins=2).item() == pytest.approx((0.5 + 0.25) / 2)


def test_continuous_actions_by_hand():
    mean, log_sigma = torch.tensor([[[[0.0, 0.5]]]]), torch.tensor([[[[0.0, math.log(0.5)]]]])
    target = torch.tensor([[[[1.0, 0.0]]]])
    unit = (torch.zeros(1, 1, 2), torch.zeros(1, 1, 2))
    found = sm.as_floats(sm.continuous_action_prediction((mean, log_sigma), target, marginal=unit,
                                                         previous=torch.zeros(1, 1, 1, 2),
                                                         entropy=torch.full((1, 1, 1), 1.5)))
    marginal = 1.418938533 + 0.918938533
    assert found == pytest.approx({"nll": 2.144729886, "mse": (1 + 0.25) / 2, "nll_marginal": marginal,
                                   "mse_marginal": 0.5, "mse_repeat": 0.5, "nll_floor": 1.5,
                                   "skill": (marginal - 2.144729886) / (marginal - 1.5)}, abs=1e-6)
    assert sm.gaussian_entropy(torch.zeros(2)).item() == pytest.approx(2.837877066)


def test_padding_of_continuous_actions_costs_nothing_and_counts_in_no_mean():
    """The other has the first of two dimensions, of which 1 and -1 are seen and 0, deviation 1, are said."""
    dims, target = torch.tensor([[[True, False]]]), torch.tensor([1.0, 0.0, -1.0, 0.0]).view(2, 1, 1, 2)
    marginal = sm.action_moments(target, dims=dims)
    assert marginal[0].flatten().tolist() == [0, 0] and marginal[1][0, 0, 1] == pytest.approx(-0.918938533)
    said = torch.zeros_like(target), torch.tensor([0.0, -0.918938533]).expand_as(target)
    found = sm.as_floats(sm.continuous_action_prediction(said, target, marginal=marginal, previous=torch.zeros_like(
        target), dims=dims))
    assert found == pytest.approx({"nll": 1.418938533, "nll_marginal": 1.418938533, "mse": 1.0, "mse_marginal": 1.0,
                                   "mse_repeat": 1.0}, abs=1e-6)


def test_a_repeat_has_weights_of_its_own():
    logits, target = torch.zeros(2, 1, 1, 2), torch.tensor([0, 1]).view(2, 1, 1)
    common = dict(frequencies=torch.full((1, 1, 2), 0.5), previous=torch.tensor([0, 0]).view(2, 1, 1))
    assert sm.action_prediction(logits, target, **common)["acc_repeat"] == 0.5
    later = torch.tensor([0.0, 1.0]).view(2, 1, 1)
    assert sm.action_prediction(logits, target, repeats=later, **common)["acc_repeat"] == 0


def test_moments_of_actions_by_hand():
    target = torch.tensor([1.0, 3.0, 99.0]).view(3, 1, 1, 1)
    mean, log_sigma = sm.action_moments(target, torch.tensor([1.0, 1.0, 0.0]).view(3, 1, 1))
    assert mean.item() == 2 and log_sigma.item() == pytest.approx(0)
    assert sm.action_moments(torch.ones(4, 1, 1, 1))[1].isfinite().all()  # a constant action has no spread


# ---------------------------------------------------------------------- world model


def test_observation_prediction_by_hand():
    target, last = torch.tensor([[1.0, 2.0]]), torch.zeros(1, 2)
    found = sm.as_floats(sm.observation_prediction(torch.tensor([[1.0, 1.0]]), target, last), "wm/")
    assert found == pytest.approx({"wm/obs_mse": 0.5, "wm/obs_mse_copy": 2.5, "wm/obs_skill_1": 0.8})
    first = sm.observation_prediction(torch.zeros(1, 2), target, last, dims=torch.tensor([True, False]))
    assert first["obs_mse"] == 1 and first["obs_skill_1"] == 0
    assert sm.varying(torch.tensor([[0.0, 1.0], [0.0, 2.0]])).tolist() == [False, True]


def walk(batch=3, steps=12, seed=0):
    """o' = o + own + the sum of the others' for N = 3, and others who repeat their own last action negated."""
    generator = torch.Generator().manual_seed(seed)
    first = torch.randn(batch, 1, 3, 1, generator=generator)
    action = first * (-1.0) ** torch.arange(steps)[:, None, None]
    others = torch.tensor([[1, 2], [0, 2], [0, 1]])
    of_others = action[:, :, others]  # [B, T, N, P, 1]
    moves = action + of_others.sum(-2) + torch.tensor([0.5, -0.25, 1.0])[:, None]
    start = torch.randn(batch, 1, 3, 1, generator=generator)
    path = torch.cat([start, start + moves.cumsum(1)], 1)
    return path[:, :-1], path[:, 1:], action, of_others


def true_model(observation, own, others):
    return observation + own + others.sum(-2) + torch.tensor([0.5, -0.25, 1.0])[:, None]


def test_open_loop_skill_of_the_true_model_of_copying_and_with_predicted_others():
    observation, following, own, others = walk()
    done = torch.zeros(3, 12, dtype=torch.bool)
    data = (observation, following, own, others, done)
    for k, value in sm.open_loop(true_model, *data).items():
        assert value.item() == pytest.approx(1, abs=1e-5), k
    assert set(sm.open_loop(true_model, *data)) == {f"obs_skill_{k}" for k in (1, 3, 5, 10)}
    assert all(value == 0 for value in sm.open_loop(lambda o, own, others: o, *data).values())
    assert sm.open_loop(true_model, *data, horizons=(12,))["obs_skill_12"].item() == pytest.approx(1, abs=1e-5)
    right = sm.open_loop(true_model, *data, predict_others=lambda o, own, others: -others)
    wrong = sm.open_loop(true_model, *data, predict_others=lambda o, own, others: others)
    assert all(value.item() == pytest.approx(1, abs=1e-5) for value in right.values())
    assert wrong["obs_skill_1"] < 0.9 and set(wrong) == set(right)


def test_open_loop_stays_inside_episodes():
    """A jump between two episodes must not count, nor the step that the model cannot know of."""
    observation, following, own, others = (torch.cat([a, b], 1) for a, b in zip(walk(seed=1), walk(seed=2),
                                                                                strict=True))
    done = torch.zeros(3, 24, dtype=torch.bool)
    done[:, 11] = True
    found = sm.open_loop(true_model, observation, following, own, others, done, horizons=(2, 5))
    blind = sm.open_loop(true_model, observation, following, own, others, torch.zeros_like(done), horizons=(2, 5))
    assert all(value.item() == pytest.approx(1, abs=1e-5) for value in found.values())
    assert all(value < 0.99 for value in blind.values())
    predicted = {"predict_others": lambda o, own, others: -others}
    found = sm.open_loop(true_model, observation, following, own, others, done, horizons=(1, 5), **predicted)
    assert all(value.item() == pytest.approx(1, abs=1e-5) for value in found.values())


def test_open_loop_leaves_dead_agents_out():
    observation, following, own, others = walk()
    weight = torch.ones(3, 12, 3)
    weight[:, 4:, 1] = 0
    following, done = following.clone(), torch.zeros(3, 12, dtype=torch.bool)
    following[:, 4:, 1] = 77.0
    found = sm.open_loop(true_model, observation, following, own, others, done, weight, horizons=(1, 3))
    assert all(value.item() == pytest.approx(1, abs=1e-5) for value in found.values())


@pytest.mark.parametrize(("horizon", "predict"), [(13, None), (12, lambda o, own, others: others)])
def test_a_batch_can_be_too_short(horizon, predict):
    with pytest.raises(ValueError, match=f"horizon of {horizon} steps"):
        sm.open_loop(true_model, *walk(), torch.zeros(3, 12, dtype=torch.bool), horizons=(horizon,),
                     predict_others=predict)


def test_gain_of_the_others_actions_by_hand():
    """Observations move by own + others = 1 + 2; a model told no others is off by 2: skills 1 and 1 - 4 / 9."""
    o, ones = torch.zeros(1, 1, 2, 1), torch.ones(1, 1, 2, 1)
    def model(o, own, others):
        return o + own + others.sum(-2)

    assert sm.joint_gain(model, o, o + 3, ones, 2 * ones[..., None, :]).item() == pytest.approx(4 / 9)


def test_reward_prediction_by_hand():
    reward, guess = torch.tensor([0.0, 0.0, 1.0, -1.0]), torch.tensor([0.5, 0.0, 0.5, -0.25])
    found = sm.reward_prediction(guess, reward)
    assert found["rew_r2"].item() == pytest.approx(1 - (0.25 + 0.25 + 0.5625) / 2)
    assert found["rew_auc_event"].item() == pytest.approx((0.5 + 1 + 0 + 1) / 4)  # pairs: tie, win, loss, win
    weighted = sm.reward_prediction(guess, reward, torch.tensor([0.0, 1.0, 1.0, 1.0]))
    assert weighted["rew_auc_event"] == 1
    nothing = sm.as_floats(sm.reward_prediction(guess, torch.zeros(4)))
    assert nothing == {"rew_r2": 0.0, "rew_auc_event": 0.5}


def test_rank_auc_counts_pairs():
    generator = torch.Generator().manual_seed(0)
    score = torch.randint(6, (200,), generator=generator).float()
    event, weight = torch.rand(2, 200, generator=generator) < 0.4
    weight = weight.float() + 0.5
    win = (score[:, None] > score).float() + 0.5 * (score[:, None] == score)
    pairs = (weight * event)[:, None] * (weight * ~event)
    assert sm.rank_auc(score, event, weight).item() == pytest.approx(((win * pairs).sum() / pairs.sum()).item())


# ---------------------------------------------------------------------- latent


def test_latent_statistics_by_hand():
    zeros = torch.zeros(1, 2)
    student = torch.tensor([[0.0, 1.0]]), torch.tensor([[0.0, LN2]])
    found = sm.as_floats(sm.latent_statistics(student, (torch.tensor([[1.0, 1.0]]), torch.tensor([[LN2, 0.0]]))))
    assert found["kl"] == pytest.approx(1.25)  # 0.443147 + 0.806853
    assert found["calibration"] == pytest.approx(((1 + 4) / 1 + (0 + 1) / 4) / 2)
    assert found["kl_prior"] == pytest.approx(0.5 * (4 + 1 - 1) - LN2 + 0.5)
    assert found["active_units"] == 0
    turned = sm.latent_statistics((zeros, zeros + LN2), (zeros, zeros), direction="teacher_to_student")
    assert turned["kl"].item() == pytest.approx(2 * 0.318147181)
    assert set(sm.latent_statistics(student)) == {"active_units"}


def test_active_units_by_hand():
    mean = torch.tensor([[0.0, 0.0, 5.0], [0.3, 0.1, 5.0], [9.0, 9.0, 9.0]])  # variances 0.0225, 0.0025, 0
    assert sm.active_units(mean, torch.tensor([1.0, 1.0, 0.0])) == 1
    assert sm.active_units(mean) == 3


def test_a_student_that_knows_its_own_spread_is_calibrated():
    generator = torch.Generator().manual_seed(0)
    goal = torch.randn(20000, 3, generator=generator)
    student = torch.zeros(20000, 3), torch.full((20000, 3), 0.5 * math.log(1.25))
    found = sm.latent_statistics(student, (goal, torch.full_like(goal, math.log(0.5))))
    assert found["calibration"].item() == pytest.approx(1, abs=0.03)


# ---------------------------------------------------------------------- the whole


def test_floats_in_one_piece():
    assert sm.as_floats({"ce": torch.tensor(1.5), "active_units": torch.tensor(3)}, "moa/") == {
        "moa/ce": 1.5, "moa/active_units": 3.0}
    assert sm.as_floats({}) == {}


def test_agents_and_environments_may_change_places():
    generator = torch.Generator().manual_seed(0)
    logits, target = torch.randn(4, 6, 3, 2, 5, generator=generator), torch.randint(5, (4, 6, 3, 2),
                                                                                    generator=generator)
    weight = (torch.rand(4, 6, 3, 2, generator=generator) < 0.7).float()
    frequencies = sm.action_frequencies(target, 5, weight)
    one = sm.as_floats(sm.action_prediction(logits, target, weight, frequencies=frequencies))
    rows, agents = torch.tensor([2, 0, 3, 1]), torch.tensor([1, 2, 0])
    two = sm.as_floats(sm.action_prediction(logits[rows][:, :, agents], target[rows][:, :, agents],
                                            weight[rows][:, :, agents], frequencies=frequencies[agents]))
    assert one == pytest.approx(two, abs=1e-6)


@pytest.mark.gpu
def test_nothing_waits_for_the_gpu():
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    logits, action = (x.cuda() for x in sampled(0, rows=100))
    observation, following, own, others = (x.cuda() for x in walk())
    done, weight = torch.zeros(3, 12, dtype=torch.bool, device="cuda"), torch.ones(100, 1, 1, device="cuda")
    gaussian = F.one_hot(action.squeeze(), 4).double(), torch.zeros(100, 4, device="cuda").double()
    torch.cuda.set_sync_debug_mode("error")
    try:
        frequencies = sm.action_frequencies(action, 4, weight)
        found = sm.action_prediction(logits, action, weight, frequencies=frequencies,
                                     entropy=sm.categorical_entropy(logits), previous=action)
        found |= sm.open_loop(lambda o, own, others: o + own, observation, following, own, others, done)
        found |= sm.reward_prediction(own, own) | sm.latent_statistics(gaussian, gaussian, weight.flatten())
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert all(math.isfinite(value) for value in sm.as_floats(found).values())
