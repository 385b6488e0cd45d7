"""The loss of beliefs and AM filters as one node of autograd, with its gradients by hand.

The networks are small: on a CPU autograd's bookkeeping took longer than the arithmetic. The tests compare it with
plain autograd over the same networks.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from suite.modules import stacked
from suite.modules.beliefs import AMFilter, BeliefDecoder, BeliefEncoder

DIVISOR = 2 + 1e-8  # of the squares in the divergence, as the published program has it


class BeliefSums(NamedTuple):
    """Sums over rows, agents and features, each times a factor: see `belief_loss`."""

    rec: Tensor
    kl: Tensor
    power: Tensor | None
    plain: Tensor
    divergence: Tensor
    filter: Tensor | None


def belief_loss(x: Tensor, target: Tensor, noise: Tensor, inside: Tensor | None, factors: Tensor, *,
                encoder: BeliefEncoder, decoder: BeliefDecoder, am_filter: AMFilter | None, slow: Tensor | None,
                train_filter: bool = True) -> BeliefSums:
    """Of z = mu + sigma * noise, d = decoder(z), w = filter(x), with all of the data constant and agents first:

    ``rec`` = sum (w d - w~ y)^2, ``kl`` = sum KL(N(mu, sigma^2) || N(0, 1)), ``power`` = sum w^2; and, without
    gradients, ``plain`` = sum (d - y)^2, ``divergence``: as ``kl``, ``filter``: mean of w. Without a filter ``rec`` is
    sum (d - y)^2, and what is about w is None.

    Args:
        x: [A, R, o]; target: y [A, R, p]; noise: [A, R, k]; slow: w~ [A, R, p].
        inside: [A, R, 1], 0 where a row does not count (but in ``filter``), else 1; None: all do.
        factors: [5], of the first five.
        train_filter: False keeps gradients from the filter.
    """
    sizes = 2 * len(encoder.layers), 2 * (len(encoder.layers) + len(decoder.layers))
    params = [*stacked.parameters(encoder.layers), *stacked.parameters(decoder.layers)]
    bounds = None
    if am_filter is not None:
        bounds = am_filter.low, am_filter.high
        params += [p if train_filter else p.detach() for p in stacked.parameters(am_filter.layers)]
    with _without_autocast(x.device.type):
        return BeliefSums(*_BeliefLoss.apply(x, target, noise, inside, factors, slow, bounds, sizes, *params))


class _BeliefLoss(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, target, noise, inside, factors, slow, bounds, sizes, *params):
        ctx.bounds, ctx.sizes = bounds, sizes
        *encoder, head = stacked.forward(x, params[:sizes[0]])
        mu, log_sigma = BeliefEncoder.halves(head)
        sigma = log_sigma.exp()
        *decoder, decoded = stacked.forward(torch.addcmul(mu, sigma, noise), params[sizes[0]:sizes[1]])
        kl = (mu * mu).addcmul_(sigma, sigma).div_(DIVISOR).sub_(log_sigma).sub_(0.5)
        kl = _times(kl, inside).sum()
        decoded, target = _times(decoded, inside), _times(target, inside)
        error = decoded - target
        rec = plain = _squares(error)
        power, filtered, w, mean = torch.zeros_like(rec), [], None, None
        if bounds is not None:
            *filtered, gate = stacked.forward(x, params[sizes[1]:])
            w = AMFilter.squash(gate, *bounds)
            error = (w * decoded).addcmul_(slow, target, value=-1)
            rec, power, mean = _squares(error), _squares(_times(w, inside)), w.mean()
        ctx.save_for_backward(noise, inside, factors, mu, sigma, decoded, error, w, *encoder, *decoder, *filtered,
                              *params)
        rec, kl, power, *measured = (torch.stack([rec, kl, power, plain, kl]) * factors).unbind()
        ctx.mark_non_differentiable(*measured, *([] if w is None else [mean]))
        return rec, kl, None if w is None else power, *measured, mean

    @staticmethod
    @once_differentiable
    def backward(ctx, of_rec, of_kl, of_power, *_):
        with torch.autocast(of_rec.device.type, enabled=False):  # a traced one runs under the forward pass's
            noise, inside, factors, mu, sigma, decoded, error, w, *rest = ctx.saved_tensors
            factors = factors.unbind()
            inputs, params = rest[:len(rest) // 3], rest[len(rest) // 3:]
            first, second = ctx.sizes
            of_error, of_filter = error * (2 * of_rec * factors[0]), [None] * (len(params) - second)
            of_decoded = of_error if w is None else of_error * w
            if w is not None and ctx.needs_input_grad[-1]:
                of_w = (of_error * decoded).addcmul_(_times(w, inside), 2 * of_power * factors[2])
                of_gate = AMFilter.squash_backward(of_w, w, *ctx.bounds)
                _, of_filter = stacked.backward(of_gate, inputs[second // 2:], params[second:], to_rows=False)
            of_z, of_decoder = stacked.backward(of_decoded, inputs[first // 2:second // 2],
                                                params[first:second], to_rows=True)
            of_kl = _times(of_kl * factors[1] * (2 / DIVISOR), inside)
            of_mu = torch.addcmul(of_z, mu, of_kl)
            of_log_sigma = (of_z * noise).addcmul_(sigma, of_kl).mul_(sigma).sub_(of_kl * (DIVISOR / 2))
            of_head = torch.cat([of_mu, 0.5 * of_log_sigma], -1)  # log sigma is half of it
            _, of_encoder = stacked.backward(of_head, inputs[:first // 2], params[:first], to_rows=False)
            return *[None] * 8, *of_encoder, *of_decoder, *of_filter


def _squares(x: Tensor) -> Tensor:
    return torch.dot(x.view(-1), x.view(-1))


def _times(x: Tensor, inside: Tensor | None) -> Tensor:
    return x if inside is None else x * inside


def _without_autocast(device: str) -> AbstractContextManager:
    return torch.autocast(device, enabled=False) if torch.is_autocast_enabled(device) else nullcontext()
