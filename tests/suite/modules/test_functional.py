import math
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.testing import assert_close
from torchrl.objectives.value.functional import generalized_advantage_estimate

from suite.modules.functional import (
    clipped_surrogate,
    clipped_value_error,
    gae,
    gaussian_influence,
    influence,
    masked_mean,
    nstep_returns,
    padded_nstep_returns,
)

torch.set_num_threads(1)
GOLDEN = Path(__file__).parents[2] / "golden" / "smpe"
REWARD, VALUE, NEXT_VALUE = [1.0, 2.0, 3.0], [1.0, 2.0, 3.0], [2.0, 3.0, 4.0]
NEVER = [False, False, False]
MIDDLE = [False, True, False]


def column(values, dtype=torch.float32):
    """One environment, three steps, one agent: [1, 3, 1, 1]."""
    return torch.tensor(values, dtype=dtype).reshape(1, -1, 1, 1)


def flags(values):
    return column(values, torch.bool)


def random_rollout(n, t, a, seed, done_prob=0.25):
    random = torch.Generator().manual_seed(seed)
    reward, value, next_value = torch.randn(3, n, t, a, 1, generator=random)
    done = torch.rand(n, t, a, 1, generator=random) < done_prob
    terminated = done & (torch.rand(n, t, a, 1, generator=random) < 0.5)
    return reward, value, next_value, done, terminated


# gamma = lambda = 0.5, so the carry is 0.25.
# running:    delta = 1 + 1 - 1, 2 + 1.5 - 2, 3 + 2 - 3 = 1, 1.5, 2;  A = 1 + 0.25 * 2, 1.5 + 0.25 * 2, 2
# truncated:  the same deltas; A_1 = 1.5 takes nothing from A_2; A_0 = 1 + 0.25 * 1.5
# terminated: delta_1 = 2 - 2 = 0 loses its bootstrap;          A_0 = 1 + 0.25 * 0
@pytest.mark.parametrize(("done", "terminated", "expected"), [
    (NEVER, NEVER, [1.5, 2.0, 2.0]), (MIDDLE, NEVER, [1.375, 1.5, 2.0]), (MIDDLE, MIDDLE, [1.0, 0.0, 2.0])])
def test_gae_by_hand(done, terminated, expected):
    advantage, target = gae(column(REWARD), column(VALUE), column(NEXT_VALUE), flags(done), flags(terminated),
                            gamma=0.5, lmbda=0.5)
    assert_close(advantage, column(expected))
    assert_close(target, column(expected) + column(VALUE))


@pytest.mark.parametrize(("gamma", "lmbda"), [(0.99, 0.95), (0.9, 1.0), (1.0, 0.0), (0.5, 0.5)])
def test_gae_equals_torchrl(gamma, lmbda):
    reward, value, next_value, done, terminated = random_rollout(5, 17, 1, seed=3)
    ours = gae(reward, value, next_value, done, terminated, gamma=gamma, lmbda=lmbda)
    stock = generalized_advantage_estimate(gamma, lmbda, *(x[:, :, 0] for x in
                                           (value, next_value, reward, done, terminated)))
    for x, y in zip(ours, stock, strict=True):
        assert_close(x[:, :, 0], y, rtol=1e-5, atol=1e-5)


def test_gae_treats_agents_and_environments_apart_and_keeps_its_inputs():
    inputs = random_rollout(4, 9, 3, seed=0)
    before = [x.clone() for x in inputs]
    whole = gae(*inputs, gamma=0.9, lmbda=0.8)[0]
    for n in range(4):
        for a in range(3):
            one = gae(*(x[n:n + 1, :, a:a + 1] for x in inputs), gamma=0.9, lmbda=0.8)[0]
            assert_close(whole[n:n + 1, :, a:a + 1], one)
    assert all(torch.equal(x, y) for x, y in zip(inputs, before, strict=True))


def test_gae_accepts_one_done_for_all_agents():
    reward, value, next_value, _, _ = random_rollout(2, 5, 3, seed=1)
    done = torch.rand(2, 5, 1, 1) < 0.4
    small = gae(reward, value, next_value, done, done, gamma=0.9, lmbda=0.9)[0]
    wide = done.expand(2, 5, 3, 1)
    assert_close(small, gae(reward, value, next_value, wide, wide, gamma=0.9, lmbda=0.9)[0])


# gamma = 0.5, next values 2, 3, 4.
# n = 2 running:    1 + 0.5 * 2 + 0.25 * 3;  2 + 0.5 * 3 + 0.25 * 4;  3 + 0.5 * 4 (the batch ends)
# n = 2 truncated:  as before;               2 + 0.5 * 3;             as before
# n = 2 terminated: 1 + 0.5 * 2;             2;                       as before
# n = 1:            1 + 0.5 * 2;             2 + 0.5 * 3;             3 + 0.5 * 4
# n = 9:            1 + 0.5 * 2 + 0.25 * 3 + 0.125 * 4; ...
@pytest.mark.parametrize(("n", "done", "terminated", "expected"), [
    (2, NEVER, NEVER, [2.75, 4.5, 5.0]), (2, MIDDLE, NEVER, [2.75, 3.5, 5.0]), (2, MIDDLE, MIDDLE, [2.0, 2.0, 5.0]),
    (1, NEVER, NEVER, [2.0, 3.5, 5.0]), (9, NEVER, NEVER, [3.25, 4.5, 5.0])])
def test_nstep_by_hand(n, done, terminated, expected):
    out = nstep_returns(column(REWARD), column(NEXT_VALUE), flags(done), flags(terminated), gamma=0.5, n=n)
    assert_close(out, column(expected))


def brute_force_nstep(reward, next_value, done, terminated, gamma, n):
    out = torch.zeros_like(reward)
    rows, steps, agents = reward.shape[:3]
    for b in range(rows):
        for a in range(agents):
            for t in range(steps):
                for j in range(n):
                    k = t + j
                    out[b, t, a] += gamma**j * reward[b, k, a]
                    if j == n - 1 or done[b, k, a] or k == steps - 1:
                        out[b, t, a] += gamma ** (j + 1) * next_value[b, k, a] * (not terminated[b, k, a])
                        break
    return out


@pytest.mark.parametrize("n", [1, 2, 5, 20])
@pytest.mark.parametrize("done_prob", [0.0, 0.3, 1.0])
def test_nstep_equals_a_loop(n, done_prob):
    reward, _, next_value, done, terminated = random_rollout(3, 8, 2, seed=n, done_prob=done_prob)
    out = nstep_returns(reward, next_value, done, terminated, gamma=0.9, n=n)
    assert_close(out, brute_force_nstep(reward, next_value, done, terminated, 0.9, n))


def test_one_step_returns_are_gae_without_lambda():
    reward, value, next_value, done, terminated = random_rollout(3, 8, 2, seed=5)
    target = gae(reward, value, next_value, done, terminated, gamma=0.9, lmbda=0.0)[1]
    assert_close(nstep_returns(reward, next_value, done, terminated, gamma=0.9, n=1), target)


# rewards 1 2 3, values 10 20 30 | 40, gamma 0.5, n = 2
# whole episode: 1 + 1 + 0.25 * 30;  2 + 1.5 + 0.25 * 40;  3 + 0.5 * 40
# mask 1 1 0:    1 + 1 (V_2 is masked);  2 + 0.25 * 40 (last step, never masked);  0.5 * 40
@pytest.mark.parametrize(("mask", "last", "expected"), [
    ([1, 1, 1], True, [9.5, 13.5, 23.0]), ([1, 1, 0], True, [2.0, 12.0, 20.0]),
    ([1, 1, 1], False, [9.5, 3.5, 3.0]), ([1, 1, 0], False, [2.0, 2.0, 0.0])])
def test_padded_nstep_by_hand(mask, last, expected):
    reward = torch.tensor([1.0, 2.0, 3.0]).view(1, 3, 1)
    values = torch.tensor([10.0, 20.0, 30.0, 40.0]).view(1, 4, 1)
    out = padded_nstep_returns(reward, values, torch.tensor(mask).view(1, 3, 1), gamma=0.5, n=2, bootstrap_last=last)
    assert_close(out.flatten(), torch.tensor(expected))


@pytest.mark.parametrize("n", [1, 2, 5, 20])
@pytest.mark.parametrize("last", [0, 1])
def test_padded_nstep_equals_the_golden_file(n, last):
    golden = np.load(GOLDEN / "nstep_returns.npz")
    reward, values, mask = (torch.from_numpy(golden[name]) for name in ("rewards", "values", "mask"))
    out = padded_nstep_returns(reward, values, mask, gamma=float(golden["gamma"]), n=n, bootstrap_last=bool(last))
    assert_close(out, torch.from_numpy(golden[f"returns_q{n}_last{last}"]), rtol=1e-5, atol=1e-6)


# clip 0.2; (ratio, advantage) -> min(ratio A, clip(ratio) A)
@pytest.mark.parametrize(("ratio", "advantage", "expected", "slope"), [
    (1.5, 2.0, 2.4, 0.0), (1.5, -2.0, -3.0, -3.0), (0.5, 2.0, 1.0, 1.0), (0.5, -2.0, -1.6, 0.0), (1.1, 2.0, 2.2, 2.2)])
def test_clipped_surrogate_and_its_gradient(ratio, advantage, expected, slope):
    log_prob = torch.tensor(-1.0 + math.log(ratio), requires_grad=True)
    out = clipped_surrogate(log_prob, torch.tensor(-1.0), torch.tensor(advantage), clip=0.2)
    out.backward()
    assert_close(out.detach(), torch.tensor(expected))
    assert_close(log_prob.grad, torch.tensor(slope))  # d(ratio A)/d log_prob = ratio A where it is not clipped


# clip 0.5, old value 1; (V, G) -> max((V - G)^2, (1 + clip(V - 1) - G)^2)
@pytest.mark.parametrize(("value", "target", "expected", "slope"), [
    (3.0, 0.0, 9.0, 6.0), (3.0, 4.0, 6.25, 0.0), (1.2, 4.0, 7.84, -5.6), (-1.0, 4.0, 25.0, -10.0)])
def test_clipped_value_error_and_its_gradient(value, target, expected, slope):
    value = torch.tensor(value, requires_grad=True)
    out = clipped_value_error(value, torch.tensor(1.0), torch.tensor(target), clip=0.5)
    out.backward()
    assert_close(out.detach(), torch.tensor(expected))
    assert_close(value.grad, torch.tensor(slope))


# clip 0.2, loss = - min(rho A, clip(rho) A), and its derivative with respect to rho
@pytest.mark.parametrize(("ratio", "advantage", "loss", "slope"), [
    (1.5, 1.0, -1.2, 0.0), (1.5, -1.0, 1.5, 1.0), (0.5, 1.0, -0.5, -1.0), (0.5, -1.0, 0.8, 0.0), (1.1, 1.0, -1.1, -1.0),
    (1.0, 2.0, -2.0, -2.0)])
def test_policy_loss_and_its_gradient_by_the_ratio(ratio, advantage, loss, slope):
    ratio = torch.tensor(ratio, dtype=torch.float64, requires_grad=True)
    out = -clipped_surrogate(ratio.log(), torch.zeros((), dtype=torch.float64), torch.tensor(advantage), clip=0.2)
    out.backward()
    assert out.item() == pytest.approx(loss, abs=1e-6) and ratio.grad.item() == pytest.approx(slope, abs=1e-6)


# clip 0.2, old value 1: inside the clip; above, towards the target; below, away; above, beyond the target; above, away;
# below, towards the target
@pytest.mark.parametrize(("value", "target", "loss", "slope"), [
    (1.1, 2.0, 0.81, -1.8), (1.5, 2.0, 0.64, 0.0), (0.5, 2.0, 2.25, -3.0), (2.5, 2.0, 0.64, 0.0), (1.5, 0.0, 2.25, 3.0),
    (0.5, 0.0, 0.64, 0.0)])
def test_clipped_value_error_moves_only_where_it_may(value, target, loss, slope):
    value = torch.tensor(value, dtype=torch.float64, requires_grad=True)
    out = clipped_value_error(value, torch.tensor(1.0), torch.tensor(target), clip=0.2)
    out.backward()
    assert out.item() == pytest.approx(loss, abs=1e-6) and value.grad.item() == pytest.approx(slope, abs=1e-6)


# gamma 0.9, lambda 0.8, carry 0.72, rewards 1, values 0.5: delta 1 + 0.45 - 0.5 = 0.95, or 0.5 where terminated
@pytest.mark.parametrize(("ended", "expected"), [(NEVER, [2.12648, 1.634, 0.95]), (MIDDLE, [1.31, 0.5, 0.95])])
def test_gae_of_equal_values(ended, expected):
    half = column([0.5] * 3, torch.float64)
    advantage, _ = gae(column([1.0] * 3, torch.float64), half, half, flags(ended), flags(ended), gamma=0.9, lmbda=0.8)
    assert_close(advantage, column(expected, torch.float64), rtol=0, atol=1e-6)


def test_masked_mean():
    x = torch.tensor([[1.0, 2.0], [3.0, 4.0]])
    assert masked_mean(x, None) == 2.5
    assert masked_mean(x, torch.tensor([[True, False], [True, True]])) == 8 / 3
    assert masked_mean(x, torch.tensor([[True], [False]])) == 1.5  # broadcast over the last dimension
    assert masked_mean(x, torch.zeros(2, 2, dtype=torch.bool)) == 0  # nobody counts


# two choices of one other agent, given each own action; KL(P(. | taken) || sum of pi P)
@pytest.mark.parametrize(("own", "given", "taken", "expected"), [
    ([0.5, 0.5], [[0.9, 0.1], [0.1, 0.9]], 0, 0.368064207), ([0.8, 0.2], [[0.9, 0.1], [0.1, 0.9]], 0, 0.080618975),
    ([0.8, 0.2], [[0.9, 0.1], [0.1, 0.9]], 1, 0.917393819), ([0.3, 0.7], [[0.6, 0.4], [0.6, 0.4]], 0, 0.0),
    ([0.3, 0.7], [[0.6, 0.4], [0.6, 0.4]], 1, 0.0)])
def test_influence_by_hand(own, given, taken, expected):
    own, given = (torch.tensor(x, dtype=torch.float64) for x in (own, given))
    out = influence(own.view(1, 2), given.view(1, 2, 1, 2), torch.tensor([taken]))
    assert_close(out, torch.tensor([[expected]], dtype=torch.float64), rtol=0, atol=1e-6)


@pytest.mark.parametrize(("own", "taken", "expected"), [([0.5, 0.5], 0, 0.101749225), ([0.8, 0.2], 0, 0.022323542),
                                                        ([0.8, 0.2], 1, 0.231222055)])
def test_influence_as_jensen_shannon_divergence(own, taken, expected):
    given = torch.tensor([[0.9, 0.1], [0.1, 0.9]], dtype=torch.float64).view(1, 2, 1, 2)
    own = torch.tensor([own], dtype=torch.float64)
    out = influence(own, given, torch.tensor([taken]), divergence="jsd")
    assert_close(out, torch.tensor([[expected]], dtype=torch.float64), rtol=0, atol=1e-6)


def test_influence_of_a_continuous_action_by_hand():
    """After the own action N(0, 1/4), after another N(1, 1/4): their mixture has the moments of N(1/2, 1/2)."""
    mean = torch.tensor([0.0, 1.0]).view(2, 1, 1)
    log_sigma = torch.full((2, 1, 1), math.log(0.5))
    assert gaussian_influence(mean, log_sigma).item() == pytest.approx(0.346573590, abs=1e-6)
    two = gaussian_influence(mean.expand(2, 3, 2), log_sigma.expand(2, 3, 2))  # three others, two dimensions each
    assert_close(two, torch.full((3,), 2 * 0.346573590), rtol=0, atol=1e-6)
    assert gaussian_influence(mean[:1].expand(5, 1, 1), log_sigma[:1].expand(5, 1, 1)).item() == pytest.approx(0)


def test_mean_influence_is_the_mutual_information():
    generator = torch.Generator().manual_seed(0)
    own = torch.rand(7, 4, generator=generator, dtype=torch.float64).softmax(-1)
    given = torch.randn(7, 4, 3, 5, generator=generator, dtype=torch.float64).softmax(-1)
    each = torch.stack([influence(own, given, torch.full((7,), k)) for k in range(4)], 1)  # [7, A, P]
    joint = own[..., None, None] * given
    product = own[..., None, None] * joint.sum(1, keepdim=True)
    assert_close((own.unsqueeze(-1) * each).sum(1), (joint * (joint / product).log()).sum((1, 3)))
