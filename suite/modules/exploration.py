"""Exploration as plain modules behind a deterministic policy: no host synchronisation, closed-form schedules.

TorchRL's EGreedyModule and AdditiveGaussianModule anneal in a Python loop with one pass per frame (24 ms for 960
frames) and test their bounds on the host.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn


class Exploration(nn.Module):
    """Base: a level that falls linearly from ``start`` to ``end`` over ``frames`` frames of all processes."""

    def __init__(self, *, start: float, end: float, frames: int):
        super().__init__()
        if not 0 <= end <= start:
            raise ValueError(f"exploration must fall: 0 <= end <= start is needed, got start {start}, end {end}")
        self.start, self.end, self.frames = start, end, frames
        self.register_buffer("level", torch.tensor(float(start)))

    def anneal(self, frames: int | Tensor) -> None:
        """Move on by that many frames (or whatever the schedule counts, such as finished episodes)."""
        self.level.sub_((self.start - self.end) * frames / self.frames).clamp_(min=self.end)


class EpsilonGreedy(Exploration):
    """With probability ``level``, each agent for itself takes a uniformly random allowed choice."""

    def __init__(self, choices: int, **schedule):
        super().__init__(**schedule)
        self.choices = choices

    def forward(self, action: Tensor, mask: Tensor | None = None) -> Tensor:
        """Action int64 [..., A] and optional mask [..., A, n] -> action."""
        score = torch.rand(*action.shape, self.choices, device=action.device)
        chosen = (score if mask is None else score.masked_fill(~mask, -1.0)).argmax(-1)
        return torch.where(torch.rand(action.shape, device=action.device) < self.level, chosen, action)


class GaussianNoise(Exploration):
    """Adds independent normal noise of standard deviation ``level`` times half the range, and clamps to the bounds."""

    def __init__(self, low: Tensor, high: Tensor, **schedule):
        super().__init__(**schedule)
        self.register_buffer("low", low, persistent=False)
        self.register_buffer("high", high, persistent=False)

    def forward(self, action: Tensor) -> Tensor:
        """Action [..., A, d] -> action."""
        noise = self.level * (self.high - self.low) / 2 * torch.randn_like(action)
        return torch.minimum(torch.maximum(action + noise, self.low), self.high)


class RandomHybrid(nn.Module):
    """While ``warming`` (a bool tensor, shared with whoever decides it): uniform choices and uniform parameters."""

    def __init__(self, param_mask: Tensor, warming: Tensor):
        super().__init__()
        self.register_buffer("mask", param_mask, persistent=False)
        self.register_buffer("warming", warming, persistent=False)

    def forward(self, choice: Tensor, params: Tensor) -> tuple[Tensor, Tensor]:
        """Choice int64 [..., A] and parameters [..., A, P] -> the same, or random ones, 0 where a choice has none."""
        drawn = torch.randint(len(self.mask), choice.shape, device=choice.device)
        uniform = (2 * torch.rand_like(params) - 1) * self.mask[drawn]
        return torch.where(self.warming, drawn, choice), torch.where(self.warming, uniform, params)
