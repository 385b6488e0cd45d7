"""Diagonal Gaussians by mean and log-sigma: divergences, likelihood, clamps, and what a KL term is usually made of."""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor

LOG_SQRT_2PI = 0.5 * math.log(2 * math.pi)
Direction = Literal["student_to_teacher", "teacher_to_student"]


def kl_divergence(mu_p: Tensor, log_p: Tensor, mu_q: Tensor, log_q: Tensor) -> Tensor:
    """KL(p || q) per dimension: log_q - log_p + (exp(2 log_p - 2 log_q) + (mu_p - mu_q)^2 exp(-2 log_q) - 1) / 2."""
    ratio, distance = (2 * (log_p - log_q)).exp(), (mu_p - mu_q).square() * (-2 * log_q).exp()
    return log_q - log_p + 0.5 * (ratio + distance - 1)


def kl_to_unit(mu: Tensor, log_sigma: Tensor) -> Tensor:
    """KL(N(mu, sigma^2) || N(0, 1)) per dimension: (exp(2 l) + mu^2 - 1) / 2 - l."""
    return 0.5 * ((2 * log_sigma).exp() + mu.square() - 1) - log_sigma


def alignment(student: tuple[Tensor, Tensor], teacher: tuple[Tensor, Tensor], *, direction: Direction,
              weights: tuple[float, float]) -> Tensor:
    """Two-sided KL per dimension: w_s KL with the teacher held fixed + w_t KL with the student held fixed.

    ``student`` and ``teacher`` are (mean, log-sigma); ``direction`` says which of them comes first in the KL. Weights
    (1, 0) align the student to a detached teacher; (0.8, 0.2) is the usual balance.
    """
    def term(first: tuple[Tensor, Tensor], second: tuple[Tensor, Tensor]) -> Tensor:
        pair = (*first, *second) if direction == "student_to_teacher" else (*second, *first)
        return kl_divergence(*pair)

    total = weights[0] * term(student, _fixed(teacher)) if weights[0] else torch.zeros_like(student[0])
    return total + weights[1] * term(_fixed(student), teacher) if weights[1] else total


def _fixed(gaussian: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    return gaussian[0].detach(), gaussian[1].detach()


def free_bits(kl: Tensor, weight: Tensor, *, per_dim: float = 0.0, total: float = 0.0) -> Tensor:
    """Mean KL over samples, summed over the last dimension, with no gradient below a threshold (in nats).

    ``per_dim``: sum_d max(mean KL_d, per_dim). ``total``: mean max(sum_d KL_d, total). ``weight`` [...] of the samples.
    """
    if per_dim:
        leading = tuple(range(kl.ndim - 1))
        mean = (kl * weight.unsqueeze(-1)).sum(leading) / weight.sum().clamp_min(1)
        return mean.clamp_min(per_dim).sum()
    summed = kl.sum(-1)
    return weighted_mean(summed.clamp_min(total) if total else summed, weight)


def nll(mu: Tensor, log_sigma: Tensor, value: Tensor) -> Tensor:
    """Negative log-likelihood [...], summed over the last dimension."""
    return (0.5 * ((value - mu) * (-log_sigma).exp()).square() + log_sigma + LOG_SQRT_2PI).sum(-1)


def reparameterise(mu: Tensor, log_sigma: Tensor, noise: Tensor) -> Tensor:
    """mu + sigma * noise."""
    return mu + log_sigma.exp() * noise


def weighted_mean(x: Tensor, weight: Tensor) -> Tensor:
    """sum(w x) / max(sum(w), 1); no weight at all gives 0 without gradient."""
    weight = weight.expand_as(x)
    return (x * weight).sum() / weight.sum().clamp_min(1)
