"""Running mean and variance as buffers, by batches; equal on all processes."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from suite import distributed


class RunningMoments(nn.Module):
    """Mean and variance of everything seen, over all leading dimensions.

    The count starts at 1e-4 with mean 0 and variance 1; a batch of N rows with mean b and unbiased variance v moves
    them by delta = b - mean: mean += delta N / (c + N); var = (var c + v N + delta^2 c N / (c + N)) / (c + N)
    (the rule of EPyMARL and of the SMPE2 program).
    """

    def __init__(self, shape: Sequence[int]):
        super().__init__()
        self.register_buffer("mean", torch.zeros(*shape))
        self.register_buffer("var", torch.ones(*shape))
        self.register_buffer("count", torch.full(tuple(shape), 1e-4, dtype=torch.float64))

    @torch.no_grad()
    def update(self, x: Tensor, mask: Tensor | None = None) -> None:
        """Take in a batch [..., *shape]; ``mask`` (bool, broadcastable to x) leaves elements out."""
        rows = x.reshape(-1, *self.mean.shape)
        kept = None if mask is None else mask.expand_as(x).reshape(rows.shape)
        mean, var, n = distributed.moments(rows, (0,), kept)
        total = self.count + n
        delta = mean - self.mean
        self.mean.copy_(self.mean + delta * (n / total))
        self.var.copy_((self.var * self.count + var * n + delta.square() * (self.count * n / total)) / total)
        self.count.copy_(total)

    def forward(self, x: Tensor, eps: float = 1e-8) -> Tensor:
        """(x - mean) / (std + eps)."""
        return (x - self.mean) / (self.var.sqrt() + eps)
