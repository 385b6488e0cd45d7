"""Running mean and variance as buffers, by batches; equal on all processes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from tensordict import NestedKey, TensorDictBase
from torch import Tensor, nn

from suite import distributed

LIMIT = 10.0  # of standardised inputs


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


class Scaler(nn.Module):
    """Standardises by running statistics, clipped; entries that never vary are padding: 0, and ``mask`` False there.

    ``unpadded`` bool [N, dim] is False where agents that see less than the largest one are padded. ``roles``: a number
    for each agent; each role has statistics of its own, because the same entry may be another thing there.
    """

    def __init__(self, dim: int, unpadded: Tensor | None = None, roles: Sequence[int] = ()):
        super().__init__()
        kinds = sorted(set(roles))
        self.moments = RunningMoments((dim,) if len(kinds) < 2 else (len(kinds), dim))
        role = torch.tensor([kinds.index(kind) for kind in roles]) if len(kinds) > 1 else None
        self.register_buffer("unpadded", unpadded, persistent=False)
        self.register_buffer("role", role, persistent=False)

    @property
    def mean(self) -> Tensor:
        """[dim], or [N, dim] with roles."""
        return self.moments.mean if self.role is None else self.moments.mean[self.role]

    @property
    def var(self) -> Tensor:
        """[dim], or [N, dim] with roles."""
        return self.moments.var if self.role is None else self.moments.var[self.role]

    @property
    def mask(self) -> Tensor:
        """bool [dim], or [N, dim] with padding or roles."""
        varies = self.var >= 1e-8
        return varies if self.unpadded is None else varies & self.unpadded

    def update(self, x: Tensor, alive: Tensor | None = None) -> None:
        """Take in [..., N, dim], but neither padding nor agents that are not ``alive`` (bool [..., N, 1])."""
        kept = self.unpadded if alive is None else alive if self.unpadded is None else alive & self.unpadded
        if self.role is not None:  # [..., N, R, dim]: every agent counts in its role
            mine = (self.role.unsqueeze(-1) == torch.arange(len(self.moments.mean), device=x.device)).unsqueeze(-1)
            x = x.unsqueeze(-2).expand(*x.shape[:-1], mine.shape[-2], -1)
            kept = mine if kept is None else kept.unsqueeze(-2) & mine
        self.moments.update(x, kept)

    def _load_from_state_dict(self, state_dict: dict[str, Tensor], prefix: str, *rest: Any) -> None:
        """Statistics that a version up to 0.4 pooled over the roles are where each role starts from."""
        for name, own in self.moments.named_buffers():
            if (key := f"{prefix}moments.{name}") in state_dict and state_dict[key].ndim < own.ndim:
                state_dict[key] = state_dict[key].expand_as(own)
        super()._load_from_state_dict(state_dict, prefix, *rest)

    def forward(self, x: Tensor) -> Tensor:
        """[..., dim]."""
        scaled = (x - self.mean) / (self.var + 1e-8).sqrt()
        return scaled.clamp(-LIMIT, LIMIT) * self.mask


def update_scalers(scalers: Mapping[NestedKey, Scaler], batch: TensorDictBase, *, mask: NestedKey | None) -> None:
    """Take in what a batch [N, T] holds under each key, by agents or for all of them.

    Agents do not count where the bool [N, T, A] under ``mask`` is False, and what is for all not where nobody does.
    """
    alive = None if mask is None else batch[mask].unsqueeze(-1)
    for key, scaler in scalers.items():
        by_agents = alive is None or batch[key].ndim == alive.ndim
        scaler.update(batch[key], alive if by_agents else alive.any(-2))
