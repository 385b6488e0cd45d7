"""Pure functions of tensors: returns, advantages, clipped objectives. Time is dimension 1; every shape is [N, T, ...].

``done`` cuts the accumulation; ``terminated`` also removes the bootstrap: a truncated episode still bootstraps from
the value of its last observation (``next_value``).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor

from suite.modules.gaussian import kl_divergence

Divergence = Literal["kl", "jsd"]


def gae(reward: Tensor, value: Tensor, next_value: Tensor, done: Tensor, terminated: Tensor, *, gamma: float,
        lmbda: float) -> tuple[Tensor, Tensor]:
    """Generalised advantage estimation (Schulman et al. 2016, eq. 16): advantage and value target = A + V.

    delta_t = r_t + gamma V(s_{t+1}) (1 - terminated_t) - V(s_t);  A_t = delta_t + gamma lambda (1 - done_t) A_{t+1}.
    """
    delta = (reward + gamma * next_value * ~terminated - value).transpose(0, 1).contiguous()
    carry = (gamma * lmbda * ~done).expand_as(value).transpose(0, 1).contiguous()
    running = torch.zeros_like(delta[0])
    for t in range(len(delta) - 1, -1, -1):
        running = torch.addcmul(delta[t], carry[t], running)
        delta[t] = running
    advantage = delta.transpose(0, 1)
    return advantage, advantage + value


def nstep_returns(
    reward: Tensor, next_value: Tensor, done: Tensor, terminated: Tensor, *, gamma: float, n: int
) -> Tensor:
    """N-step returns inside episodes: rewards until step n, the end of the episode or of the batch, then a bootstrap.

    G_t = sum_{j<m} gamma^j r_{t+j} + gamma^m V(s_{t+m}) (1 - terminated_{t+m-1}), m the first of the three.
    """
    steps = reward.shape[1]
    total = torch.zeros_like(reward)
    alive = torch.ones_like(reward)  # the episode that t belongs to is still running at t + j
    bootstrap = next_value * ~terminated
    for j in range(min(n, steps)):
        here = slice(j, None)
        last = done[:, here].expand(alive.shape) | (j == n - 1)
        last = last.clone()
        last[:, -1] = True  # the batch ends
        step = reward[:, here] + gamma * bootstrap[:, here] * last
        total[:, : steps - j] += gamma**j * alive * step
        alive = (alive * ~last)[:, :-1]
    return total


def padded_nstep_returns(reward: Tensor, values: Tensor, mask: Tensor, *, gamma: float, n: int,
                         bootstrap_last: bool = True) -> Tensor:
    """N-step returns of whole padded episodes as the EPyMARL program computes them.

    ``reward`` [B, T, n], ``values`` [B, T+1, n] of the target critic, ``mask`` [B, T, n] is 1 inside the episode.
    G_t = sum_{j<n} gamma^j r_{t+j} m_{t+j} + gamma^n V_{t+n} m_{t+n}; terms at or after T are dropped, and wherever
    the window reaches the last stored step, gamma^{j+1} V_T is added without a mask (``bootstrap_last``), even if
    the episode terminated there. `nstep_returns` is the correct version for data with episode ends.
    """
    steps = reward.shape[1]
    total = torch.zeros_like(values[:, :steps])
    for j in range(n):
        total[:, : max(steps - j, 0)] += gamma**j * (reward * mask)[:, j:]
        if bootstrap_last and steps - 1 - j >= 0:
            total[:, steps - 1 - j] += gamma ** (j + 1) * values[:, steps]
    total[:, : max(steps - n, 0)] += gamma**n * (values[:, :steps] * mask)[:, n:]
    return total


def clipped_surrogate(log_prob: Tensor, old_log_prob: Tensor, advantage: Tensor, *, clip: float) -> Tensor:
    """Element-wise PPO objective min(rho A, clip(rho, 1 +- clip) A), rho = exp(log_prob - old_log_prob)."""
    ratio = (log_prob - old_log_prob).exp()
    return torch.minimum(ratio * advantage, ratio.clamp(1 - clip, 1 + clip) * advantage)


def clipped_value_error(value: Tensor, old_value: Tensor, target: Tensor, *, clip: float,
                        error: Callable[[Tensor], Tensor] = torch.square) -> Tensor:
    """Element-wise max(error(V - G), error(V_old + clip(V - V_old, +-clip) - G))."""
    limited = old_value + (value - old_value).clamp(-clip, clip)
    return torch.maximum(error(value - target), error(limited - target))


def huber(x: Tensor, threshold: float) -> Tensor:
    """Element-wise x^2 / 2 up to the threshold, threshold (|x| - threshold / 2) beyond."""
    return torch.nn.functional.huber_loss(x, torch.zeros_like(x), reduction="none", delta=threshold)


def influence(own: Tensor, given: Tensor, taken: Tensor, *, divergence: Divergence = "kl") -> Tensor:
    """How much an agent's action moved another's: D(P(. | a) || sum_a' pi(a') P(. | a')) (Jaques et al. 2019).

    ``own`` [..., A] is pi, ``given`` [..., A, P, B] what each of P others would do after each own action, ``taken``
    int64 [...] the action; D is the KL divergence, or that of Jensen and Shannon. Returns [..., P].
    """
    marginal = (own[..., None, None] * given).sum(-3)
    index = taken[..., None, None, None].expand(*taken.shape, 1, *given.shape[-2:])
    actual = given.gather(-3, index).squeeze(-3)
    if divergence == "kl":
        return _categorical_kl(actual, marginal)
    middle = 0.5 * (actual + marginal)
    return 0.5 * (_categorical_kl(actual, middle) + _categorical_kl(marginal, middle))


def gaussian_influence(mean: Tensor, log_sigma: Tensor) -> Tensor:
    """The same for continuous actions, from what others would do after K own actions of the policy, the first taken.

    KL(N_0 || N(m, v)), where m and v are mean and variance of the mixture of all K; summed over dimensions: the inputs
    [..., K, P, d] give [..., P].
    """
    centre = mean.mean(-3)
    spread = ((2 * log_sigma).exp() + (mean - centre.unsqueeze(-3)).square()).mean(-3)
    return kl_divergence(mean[..., 0, :, :], log_sigma[..., 0, :, :], centre, 0.5 * spread.log()).sum(-1)


def _categorical_kl(p: Tensor, q: Tensor) -> Tensor:
    return (p * (p.clamp_min(1e-12).log() - q.clamp_min(1e-12).log())).sum(-1)


def masked_mean(x: Tensor, mask: Tensor | None) -> Tensor:
    """Mean over all elements, or over those where ``mask`` (broadcastable bool) is True."""
    if mask is None:
        return x.mean()
    weight = mask.to(x.dtype).expand_as(x)
    return (x * weight).sum() / weight.sum().clamp_min(1)
