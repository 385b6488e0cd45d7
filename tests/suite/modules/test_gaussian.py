"""Diagonal Gaussians against values worked out by hand (natural logarithms), their gradients, and stock PyTorch."""

import math

import pytest
import torch
from torch.distributions import Normal
from torch.distributions import kl_divergence as stock_kl
from torch.testing import assert_close

from suite.modules.gaussian import alignment, free_bits, kl_divergence, kl_to_unit, nll, reparameterise, weighted_mean

torch.set_num_threads(1)
LN2 = math.log(2)
CE = [9.0, 0.407605964, 1.407605964, 2.407605964]  # cross-entropies of logits 2, 1, 0 behind a step that is not valid


def vector(*values):
    return torch.tensor(values, dtype=torch.float64)


def close(x, expected):
    assert_close(x, torch.as_tensor(expected, dtype=torch.float64), rtol=0, atol=1e-6)


def gaussians(*values):
    """(mean, log-sigma), ... as leaves [1] that ask for gradients."""
    leaves = [vector(value).requires_grad_() for value in values]
    return list(zip(leaves[::2], leaves[1::2], strict=True))


# ---------------------------------------------------------------------- divergences


# 0.5 (1 + 1 - 1); -ln 2 + (4 - 1) / 2; ln 2 + (1/4 - 1) / 2; ln 2 + (1/4 + 1/4 - 1) / 2 and -ln 2 + (4 - 1) / 2
@pytest.mark.parametrize(("mu_p", "sigma_p", "mu_q", "sigma_q", "expected"), [
    ([0.0], [1.0], [0.0], [1.0], [0.0]), ([1.0], [1.0], [0.0], [1.0], [0.5]),
    ([0.0], [2.0], [0.0], [1.0], [0.806852819]),
    ([0.0], [1.0], [0.0], [2.0], [0.318147181]),
    ([0.0, 1.0], [1.0, 2.0], [1.0, 1.0], [2.0, 1.0], [0.443147181, 0.806852819])])
def test_kl_by_hand(mu_p, sigma_p, mu_q, sigma_q, expected):
    p, q = (vector(*mu_p), vector(*sigma_p).log()), (vector(*mu_q), vector(*sigma_q).log())
    kl = kl_divergence(*p, *q)
    close(kl, expected)
    if len(expected) == 2:
        close(kl.sum(), 1.25)
        close(kl.mean(), 0.625)


def test_kl_to_the_unit_gaussian():
    close(kl_to_unit(vector(1.0), vector(0.5).log()), [0.818147181])  # (1/4 + 1 - 1) / 2 + ln 2
    mu, log = torch.randn(2, 50, dtype=torch.float64)
    close(kl_to_unit(mu, log), kl_divergence(mu, log, torch.zeros_like(mu), torch.zeros_like(mu)))


def test_kl_and_likelihood_equal_torch():
    generator = torch.Generator().manual_seed(0)
    mu_p, log_p, mu_q, log_q, value = torch.randn(5, 40, 3, generator=generator, dtype=torch.float64)
    p, q = Normal(mu_p, log_p.exp()), Normal(mu_q, log_q.exp())
    close(kl_divergence(mu_p, log_p, mu_q, log_q), stock_kl(p, q))
    close(nll(mu_p, log_p, value), -p.log_prob(value).sum(-1))
    assert (kl_divergence(mu_p, log_p, mu_q, log_q) >= 0).all()


# KL of N(0.5, 2^2) from N(0, 1) = -ln 2 + (4 + 1/4 - 1) / 2; its derivatives: mu_p = 0.5, l_p = sigma^2 - 1 = 3,
# mu_q = -0.5, l_q = 1 - 4 - 1/4
STUDENT, TEACHER = (0.5, LN2), (0.0, 0.0)


def test_kl_gradients():
    (student, teacher) = gaussians(*STUDENT, *TEACHER)
    kl = kl_divergence(*student, *teacher)
    kl.backward()
    close(kl, [0.931852819])
    close(torch.cat([x.grad for x in (*student, *teacher)]), [0.5, 3.0, -0.5, -3.25])


@pytest.mark.parametrize(("weights", "value", "gradients"), [
    ((1.0, 0.0), 0.931852819, [0.5, 3.0, None, None]), ((0.8, 0.2), 0.931852819, [0.4, 2.4, -0.1, -0.65]),
    ((1.0, 0.1), 1.025038101, [0.5, 3.0, -0.05, -0.325]), ((0.0, 1.0), 0.931852819, [None, None, -0.5, -3.25])])
def test_each_side_is_pulled_by_its_own_weight(weights, value, gradients):
    student, teacher = gaussians(*STUDENT, *TEACHER)
    total = alignment(student, teacher, direction="student_to_teacher", weights=weights)
    total.backward()
    close(total, [value])
    for leaf, expected in zip((*student, *teacher), gradients, strict=True):
        assert leaf.grad is None if expected is None else leaf.grad.item() == pytest.approx(expected, abs=1e-6)


def test_without_weights_nothing_is_aligned():
    student, teacher = gaussians(*STUDENT, *TEACHER)
    total = alignment(student, teacher, direction="student_to_teacher", weights=(0.0, 0.0))
    close(total, [0.0])
    assert not total.requires_grad


def test_the_other_direction_swaps_the_arguments():
    student, teacher = gaussians(*STUDENT, *TEACHER)
    total = alignment(student, teacher, direction="teacher_to_student", weights=(1.0, 0.0))
    total.backward()
    # KL(N(0, 1) || N(0.5, 2^2)) = ln 2 + (1/4 + 1/16 - 1) / 2; mu: 0.5 / 4; l: 1 - 1/4 - 1/16
    close(total, [LN2 + (0.25 + 0.0625 - 1) / 2])
    close(torch.cat([x.grad for x in student]), [0.125, 0.6875])
    assert teacher[0].grad is None and teacher[1].grad is None


# the best student of a teacher that is one of two Gaussians with equal chances
@pytest.mark.parametrize(("teachers", "direction", "mean", "sigma", "value"), [
    (((-1.0, 1.0), (1.0, 1.0)), "student_to_teacher", 0.0, 1.0, 0.5),
    (((-1.0, 1.0), (1.0, 1.0)), "teacher_to_student", 0.0, math.sqrt(2), 0.346574),
    (((0.0, 1.0), (3.0, 2.0)), "student_to_teacher", 0.6, 1.264911, 0.561572),
    (((0.0, 1.0), (3.0, 2.0)), "teacher_to_student", 1.5, 2.179449, 0.432499)])
def test_the_optimum_of_the_student(teachers, direction, mean, sigma, value):
    mu, log = (torch.full((1,), start, dtype=torch.float64, requires_grad=True) for start in (0.3, -0.2))
    teacher = vector(*(t[0] for t in teachers)), vector(*(t[1] for t in teachers)).log()
    for _ in range(3000):
        student = mu.expand(2), log.expand(2)
        loss = alignment(student, teacher, direction=direction, weights=(1.0, 0.0)).mean()
        gradients = torch.autograd.grad(loss, (mu, log))
        with torch.no_grad():
            for leaf, gradient in zip((mu, log), gradients, strict=True):
                leaf -= 0.1 * gradient
    assert mu.item() == pytest.approx(mean, abs=1e-3)
    assert log.exp().item() == pytest.approx(sigma, abs=1e-3) and loss.item() == pytest.approx(value, abs=1e-3)


# ---------------------------------------------------------------------- free bits


@pytest.mark.parametrize(("options", "expected", "gradient"), [
    ({}, 2.4, [1, 1, 1]), ({"per_dim": 0.25}, 2.55, [0, 1, 1]), ({"total": 1.0}, 2.4, [1, 1, 1]),
    ({"total": 3.0}, 3.0, [0, 0, 0])])
def test_free_bits(options, expected, gradient):
    kl = vector(0.1, 0.3, 2.0).unsqueeze(0).requires_grad_()
    out = free_bits(kl, torch.ones(1, dtype=torch.float64), **options)
    out.backward()
    close(out, expected)
    assert torch.equal(kl.grad, vector(*gradient).unsqueeze(0))  # exactly zero below the threshold


def test_free_bits_per_dimension_are_of_the_mean_over_samples_that_count():
    kl = torch.stack([vector(0.0, 1.0), vector(0.6, 1.0), vector(9.0, 9.0)]).view(1, 3, 2).requires_grad_()
    out = free_bits(kl, vector(1.0, 1.0, 0.0).view(1, 3), per_dim=0.2)
    close(out, 1.3)  # (0 + 0.6) / 2 + 1: the mean is above the threshold although one sample is below
    out.backward()
    close(kl.grad, [[[0.5, 0.5], [0.5, 0.5], [0.0, 0.0]]])
    close(free_bits(kl, vector(1.0, 1.0, 0.0).view(1, 3), total=1.2), 1.4)  # max(1, 1.2) and 1.6


# ---------------------------------------------------------------------- likelihood, samples, means


@pytest.mark.parametrize(("mu", "sigma", "action", "expected"), [
    ([0.0], [1.0], [1.0], 1.418938533), ([0.0], [2.0], [1.0], 1.737085714),
    ([0.0, 0.5], [1.0, 0.5], [1.0, 0.0], 2.144729886)])
def test_negative_log_likelihood(mu, sigma, action, expected):
    close(nll(vector(*mu), vector(*sigma).log(), vector(*action)), expected)


def test_reparameterisation():
    mu, log = vector(1.0, -1.0).requires_grad_(), vector(0.0, -LN2).requires_grad_()
    z = reparameterise(mu, log, vector(0.5, 2.0))
    close(z, [1.5, 0.0])
    z.sum().backward()
    close(mu.grad, [1.0, 1.0])
    close(log.grad, [0.5, 1.0])  # sigma eps


@pytest.mark.parametrize(("weight", "expected"), [([0, 1, 1, 1], 1.407605964), ([0, 1, 1, 0], 0.907605964)])
def test_weighted_mean_divides_by_the_weights(weight, expected):
    x = vector(*CE).requires_grad_()
    out = weighted_mean(x, vector(*weight))
    close(out, expected)
    assert abs(out.item() - 1.055704473) > 0.1  # what dividing by all four entries would give
    out.backward()
    close(x.grad, vector(*weight) / sum(weight))


def test_no_weight_at_all_is_zero_without_gradient():
    x = vector(*CE).requires_grad_()
    for out in (weighted_mean(x, torch.zeros(4)), free_bits(x.unsqueeze(-1), torch.zeros(4)),
                free_bits(x.unsqueeze(-1), torch.zeros(4), total=0.5)):
        [gradient] = torch.autograd.grad(out, x)
        assert out.item() == 0 and torch.equal(gradient, torch.zeros_like(x))


def test_weights_broadcast_and_few_of_them_count_as_one():
    x = torch.tensor([[1.0, 3.0], [5.0, 7.0]])
    assert weighted_mean(x, torch.tensor([[1.0], [0.0]])) == 2.0
    assert weighted_mean(torch.tensor([4.0]), torch.tensor([0.5])) == 2.0  # at least 1 in the denominator
