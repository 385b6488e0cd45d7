"""Optimisers for networks of many small tensors."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch._utils import _flatten_dense_tensors, _unflatten_dense_tensors


class FlatRMSprop(torch.optim.RMSprop):
    """RMSprop of each group as one vector: v <- alpha v + (1 - alpha) g^2, p <- p - lr g / (sqrt v + eps).

    Numbers and states are torch's; some operations on a long vector take a fraction of the time of as many on each
    small tensor. Where gradients are missing, torch takes the step. No momentum, centering or decay.
    """

    def __init__(self, params, *, lr: float, alpha: float = 0.99, eps: float = 1e-8):
        super().__init__(params, lr=lr, alpha=alpha, eps=eps)
        self.flat: dict[Tensor, tuple[Tensor, Tensor]] = {}  # of each first parameter: all v, and its own

    def __setstate__(self, state) -> None:
        """Of a copy, or of a loaded state: the vectors are gathered anew."""
        super().__setstate__(state)
        self.flat = {}

    @torch.no_grad()
    def step(self) -> None:
        """One step of all groups."""
        if any(param.grad is None for group in self.param_groups for param in group["params"]):
            super().step()
            return
        for group in self.param_groups:
            params = group["params"]
            gradient = _flatten_dense_tensors([param.grad for param in params])
            square = self._squares(params)
            square.mul_(group["alpha"]).addcmul_(gradient, gradient, value=1 - group["alpha"])
            change = gradient.div(square.sqrt().add_(group["eps"]))  # a lone gradient is no copy
            torch._foreach_add_(params, _unflatten_dense_tensors(change, params), alpha=-group["lr"])

    step.hooked = True  # nobody hangs hooks on it, and looking for them takes as long as two operations

    def _squares(self, params: Sequence[Tensor]) -> Tensor:
        """All v end to end; the states are views of it, and are gathered again when they were replaced."""
        whole, first = self.flat.get(params[0], (None, None))
        if first is None or self.state[params[0]].get("square_avg") is not first:
            whole = torch.cat([self.state[param].get("square_avg", torch.zeros_like(param)).flatten()
                               for param in params])
            for param, part in zip(params, _unflatten_dense_tensors(whole, params), strict=True):
                old = {"step": torch.zeros(())} | self.state[param]  # torch wants a step, and never reads it
                self.state[param] = old | {"square_avg": part}
            self.flat[params[0]] = whole, self.state[params[0]]["square_avg"]
        return whole
