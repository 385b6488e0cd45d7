"""Optimisers for networks of many small tensors."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


class FlatRMSprop(torch.optim.RMSprop):
    """RMSprop of each group as one vector: v <- alpha v + (1 - alpha) g^2, p <- p - lr g / (sqrt v + eps).

    Numbers and states are torch's; some operations on a long vector take a fraction of the time of as many on each
    small tensor. Where gradients are missing, torch takes the step. No momentum, centering or decay.
    """

    def __init__(self, params, *, lr: float, alpha: float = 0.99, eps: float = 1e-8):
        super().__init__(params, lr=lr, alpha=alpha, eps=eps)
        self.flat: dict[Tensor, tuple[Tensor, Tensor]] = {}  # of each first parameter: all v, and its own

    @torch.no_grad()
    def step(self) -> None:
        """One step of all groups."""
        if any(param.grad is None for group in self.param_groups for param in group["params"]):
            super().step()
            return
        for group in self.param_groups:
            params, sizes = group["params"], [param.numel() for param in group["params"]]
            gradient = torch.cat([param.grad.view(-1) for param in params])
            square = self._squares(params, sizes)
            square.mul_(group["alpha"]).addcmul_(gradient, gradient, value=1 - group["alpha"])
            change = gradient.div_(square.sqrt().add_(group["eps"])).split(sizes)
            torch._foreach_add_(params, [part.view_as(param) for part, param in zip(change, params, strict=True)],
                                alpha=-group["lr"])

    def _squares(self, params: Sequence[Tensor], sizes: Sequence[int]) -> Tensor:
        """All v end to end; the states are views of it, and are gathered again when they were replaced."""
        whole, first = self.flat.get(params[0], (None, None))
        if first is None or self.state[params[0]].get("square_avg") is not first:
            whole = torch.cat([self.state[param].get("square_avg", torch.zeros_like(param)).flatten()
                               for param in params])
            for param, part in zip(params, whole.split(sizes), strict=True):
                old = {"step": torch.zeros(())} | self.state[param]  # torch wants a step, and never reads it
                self.state[param] = old | {"square_avg": part.view_as(param)}
            self.flat[params[0]] = whole, self.state[params[0]]["square_avg"]
        return whole
