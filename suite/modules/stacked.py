"""ReLU networks of agents with parameters of their own, as plain functions: forward pass and its gradients.

``params`` are weight [A, out, in] and bias [A, out] of each layer in turn; a ReLU follows every layer but the last.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from suite.modules.networks import AgentLinear, rows_first, rows_last


def parameters(layers: Sequence[AgentLinear]) -> list[Tensor]:
    """Weight and bias of each layer; agent a uses set a."""
    return [param for layer in layers for param in (layer.weight, layer.bias)]


def apply(x: Tensor, layers: Sequence[AgentLinear]) -> Tensor:
    """[..., A, in] -> [..., A, out], with plain autograd."""
    return rows_last(forward(rows_first(x), parameters(layers))[-1], x.shape[:-1])


def forward(rows: Tensor, params: Sequence[Tensor]) -> list[Tensor]:
    """[A, R, in] -> the input of every layer, and the output [A, R, out] at the end."""
    found = [rows]
    for k in range(0, len(params), 2):
        inputs = found[-1].relu_() if k else rows  # nothing needs the values before a ReLU
        found.append(torch.baddbmm(params[k + 1].unsqueeze(1), inputs, params[k].transpose(1, 2)))
    return found


def backward(gradient: Tensor, inputs: Sequence[Tensor], params: Sequence[Tensor], *,
             to_rows: bool) -> tuple[Tensor | None, list[Tensor]]:
    """From the output's gradient [A, R, out], those of ``rows`` (if asked) and of each of ``params``."""
    found: list[Tensor] = []
    for k in reversed(range(len(inputs))):
        found += [gradient.sum(1), torch.bmm(gradient.transpose(1, 2), inputs[k])]
        if k or to_rows:
            gradient = torch.bmm(gradient, params[2 * k])
        if k:  # a ReLU's output is positive where its input was
            gradient = torch.ops.aten.threshold_backward(gradient, inputs[k], 0)
    return gradient if to_rows else None, found[::-1]
