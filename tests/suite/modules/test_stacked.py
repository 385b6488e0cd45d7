"""The hand-written passes against plain autograd over the same layers."""

from itertools import pairwise

import torch
from torch.testing import assert_close

from suite.modules import stacked
from suite.modules.networks import AgentLinear

torch.set_num_threads(1)


def chain(*widths, agents=3):
    torch.manual_seed(0)
    return [AgentLinear(a, b, range(agents)).double() for a, b in pairwise(widths)]


def plain(x, layers):
    """x [..., A, d], layer by layer as modules."""
    for k, layer in enumerate(layers):
        x = layer(x.relu() if k else x)
    return x


def test_apply_is_the_layers_one_after_the_other():
    layers, x = chain(5, 4, 6, 2), torch.randn(7, 2, 3, 5, dtype=torch.float64)
    assert_close(stacked.apply(x, layers), plain(x, layers))
    before = x.clone()
    stacked.apply(x, layers).sum().backward()
    assert torch.equal(x, before), "the input is not overwritten"
    assert all(layer.weight.grad.any() for layer in layers)


def test_backward_is_autograd():
    for widths in ((5, 2), (5, 4, 2), (5, 4, 6, 2)):
        layers = chain(*widths)
        params, rows = stacked.parameters(layers), torch.randn(3, 7, 5, dtype=torch.float64, requires_grad=True)
        out = plain(rows.transpose(0, 1), layers).transpose(0, 1)
        gradient = torch.randn_like(out)
        expected = torch.autograd.grad(out, [rows, *params], gradient)
        with torch.no_grad():
            *inputs, last = stacked.forward(rows, params)
            of_rows, found = stacked.backward(gradient, inputs, params, to_rows=True)
            nothing, same = stacked.backward(gradient, inputs, params, to_rows=False)
        assert_close(last, out)
        assert nothing is None
        for a, b, c in zip(expected, (of_rows, *found), (of_rows, *same), strict=True):
            assert_close(a, b)
            assert torch.equal(b, c)
