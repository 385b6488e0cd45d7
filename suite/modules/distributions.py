"""Action distributions with little overhead: the log-probability of an agent's whole action vector, one number.

They follow ``torch.distributions`` so that TorchRL's probabilistic modules and losses accept them. Measured: building,
sampling and scoring TorchRL's TanhNormal costs 0.18 ms per step, as much as the actor network itself.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor
from torch.distributions import Distribution
from torch.nn import functional as F

from suite.modules.gaussian import LOG_SQRT_2PI

LIMIT = 1 - 1e-6  # the largest |tanh| handed out, so that its inverse is finite in float32


class DiagonalNormal(Distribution):
    """Independent normals over the last dimension; actions outside the bounds are clamped by the environment."""

    has_rsample = True
    arg_constraints: ClassVar[dict] = {}

    def __init__(self, loc: Tensor, scale: Tensor):
        self.loc, self.scale = loc, scale
        super().__init__(loc.shape[:-1], loc.shape[-1:], validate_args=False)

    @property
    def mean(self) -> Tensor:
        """Location [..., d]."""
        return self.loc

    mode = deterministic_sample = mean

    def rsample(self, sample_shape: Sequence[int] = ()) -> Tensor:
        """Reparameterised sample [..., d]."""
        return self.loc + self.scale * torch.randn(
            *sample_shape, *self.loc.shape, device=self.loc.device, dtype=self.loc.dtype
        )

    def sample(self, sample_shape: Sequence[int] = ()) -> Tensor:
        """Sample without gradient."""
        with torch.no_grad():
            return self.rsample(sample_shape)

    def log_prob(self, value: Tensor) -> Tensor:
        """Log-density [...] summed over the last dimension."""
        return (-0.5 * ((value - self.loc) / self.scale).square() - self.scale.log() - LOG_SQRT_2PI).sum(-1)

    def entropy(self) -> Tensor:
        """0.5 + log sqrt(2 pi) + log scale, summed over the last dimension."""
        return (0.5 + LOG_SQRT_2PI + self.scale.log()).sum(-1)


class TanhNormal(Distribution):
    """Normals squashed by tanh into [low, high]: a = mid + half * tanh(u), u ~ N(loc, scale).

    log p(a) = sum_k log N(u_k) - log half_k - log(1 - tanh(u_k)^2), with u recovered from a, so that a stored action
    scores the same in the rollout and in the update. The entropy has no closed form: `entropy` is a one-sample
    reparameterised estimate (it draws random numbers).
    """

    has_rsample = True
    arg_constraints: ClassVar[dict] = {}

    def __init__(self, loc: Tensor, scale: Tensor, low: Tensor, high: Tensor):
        self.loc, self.scale = loc, scale
        self.mid, self.half = (high + low) / 2, (high - low) / 2
        super().__init__(loc.shape[:-1], loc.shape[-1:], validate_args=False)

    def _squash(self, u: Tensor) -> Tensor:
        return self.mid + self.half * torch.tanh(u).clamp(-LIMIT, LIMIT)

    @property
    def mode(self) -> Tensor:
        """The squashed location (the median), used for deterministic actions."""
        return self._squash(self.loc)

    mean = deterministic_sample = mode

    def rsample(self, sample_shape: Sequence[int] = ()) -> Tensor:
        """Reparameterised sample [..., d] inside the bounds."""
        noise = torch.randn(*sample_shape, *self.loc.shape, device=self.loc.device, dtype=self.loc.dtype)
        return self._squash(self.loc + self.scale * noise)

    def sample(self, sample_shape: Sequence[int] = ()) -> Tensor:
        """Sample without gradient."""
        with torch.no_grad():
            return self.rsample(sample_shape)

    def log_prob(self, value: Tensor) -> Tensor:
        """Log-density [...] summed over the last dimension."""
        u = torch.atanh(((value - self.mid) / self.half).clamp(-LIMIT, LIMIT))
        log_normal = -0.5 * ((u - self.loc) / self.scale).square() - self.scale.log() - LOG_SQRT_2PI
        log_slope = 2 * (math.log(2) - u - F.softplus(-2 * u)) + self.half.log()
        return (log_normal - log_slope).sum(-1)

    def entropy(self) -> Tensor:
        """One-sample estimate -log p(a), a reparameterised."""
        return -self.log_prob(self.rsample())


class Categorical(torch.distributions.Categorical):
    """Categorical over logits without argument checks (they synchronise with the host)."""

    def __init__(self, logits: Tensor):
        super().__init__(logits=logits, validate_args=False)

    @property
    def deterministic_sample(self) -> Tensor:
        """The most probable choice."""
        return self.logits.argmax(-1)
