"""Inverting gradients: how a deterministic policy is kept inside its bounds without squashing it."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class _Invert(torch.autograd.Function):
    generate_vmap_rule = True  # TorchRL's losses call actor and critic under vmap

    @staticmethod
    def forward(action: Tensor, low: float, high: float) -> Tensor:
        return action.clone()

    @staticmethod
    def setup_context(ctx, inputs: tuple[Tensor, float, float], output: Tensor) -> None:
        action, ctx.low, ctx.high = inputs
        ctx.save_for_backward(action)

    @staticmethod
    def backward(ctx, gradient: Tensor) -> tuple[Tensor, None, None]:
        (action,) = ctx.saved_tensors
        room = torch.where(gradient < 0, ctx.high - action, action - ctx.low)
        return gradient * room / (ctx.high - ctx.low), None, None


class InvertingGradients(nn.Module):
    """Hands an action on as it is, and scales its gradient by the room left in the direction of the step.

    With g the gradient of the loss, which a step follows downhill: g (high - a) / (high - low) where g < 0, so that the
    action would grow, else g (a - low) / (high - low) (Hausknecht and Stone 2016, "Deep Reinforcement Learning in
    Parameterized Action Space", section on bounded parameter space learning). At a bound nothing pushes outwards, and
    outside the bounds the sign turns, so that every step leads back.

    Raises:
        ValueError: the bounds hold no interval.
    """

    def __init__(self, low: float = -1.0, high: float = 1.0):
        super().__init__()
        if not low < high:
            raise ValueError(f"inverting gradients needs low < high, got {low} and {high}")
        self.low, self.high = low, high

    def forward(self, action: Tensor) -> Tensor:
        """Action of any shape, the same for every bound -> a copy of it."""
        return _Invert.apply(action, self.low, self.high)
