"""The loss written by hand against plain autograd over the same networks, values and gradients."""

import pytest
import torch
from torch.testing import assert_close

from suite.modules.belief_loss import belief_loss
from suite.modules.beliefs import AMFilter, BeliefDecoder, BeliefEncoder

torch.set_num_threads(1)
A, R, OBS, K = 3, 7, 4, 5
P = (A - 1) * OBS


def networks(layers=1, spare=False):
    torch.manual_seed(0)
    made = (BeliefEncoder(A, OBS, K), BeliefDecoder(A, OBS, K),
            AMFilter(A, OBS, layers=layers, low=0.4, high=0.6, spare=spare))
    return [network.double() for network in made]


def data(masked):
    torch.manual_seed(1)
    x, target, noise = (torch.randn(A, R, size, dtype=torch.float64) for size in (OBS, P, K))
    slow = torch.rand(A, R, P, dtype=torch.float64)
    inside = (torch.rand(A, R, 1) > 0.3).double() if masked else None
    return x, target, noise, inside, torch.tensor([0.5, 2.0, -3.0, 0.1, 0.2], dtype=torch.float64), slow


def plain(x, target, noise, inside, factors, slow, encoder, decoder, am_filter):
    """The formulas with the networks' own forward passes; rows first, as these want them."""
    a, b, c, d, e = factors
    count = 1 if inside is None else inside.transpose(0, 1)
    x, target, noise, slow = (part.transpose(0, 1) for part in (x, target, noise, slow))
    mu, log_sigma = encoder.gaussian(x)
    decoded = decoder(mu + log_sigma.exp() * noise)
    kl = (((mu ** 2 + (2 * log_sigma).exp()) / (2 + 1e-8) - log_sigma - 0.5) * count).sum()
    error = ((decoded - target) ** 2 * count).sum()
    if am_filter is None:
        return a * error, b * kl, None, d * error, e * kl, None
    w = am_filter(x)
    rec, power = ((w * decoded - slow * target) ** 2 * count).sum(), (w ** 2 * count).sum()
    return a * rec, b * kl, c * power, d * error, e * kl, w.mean()


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("layers, spare", [(1, False), (1, True), (2, False)])
def test_values_and_gradients(masked, layers, spare):
    made, (*rest, slow) = networks(layers, spare), data(masked)
    found = belief_loss(*rest, slow=slow, **dict(zip(("encoder", "decoder", "am_filter"), made, strict=True)))
    expected = plain(*rest, slow, *made)
    params = [param for network in made for param in network.parameters()]
    for a, b in zip(found, expected, strict=True):
        assert_close(a, b)
    for weights in ((1.0, 0.0, 0.0), (0.0, 1.0, 0.0), (0.0, 0.0, 1.0), (0.3, -2.0, 0.7)):
        total = (sum(c * s for c, s in zip(weights, sums[:3], strict=True)) for sums in (found, expected))
        for a, b in zip(*(torch.autograd.grad(x, params, retain_graph=True, materialize_grads=True) for x in total),
                        strict=True):
            assert_close(a, b)
    w = made[2](rest[0].transpose(0, 1))
    assert (w == 0.4).any() and (w == 0.6).any() and ((w > 0.4) & (w < 0.6)).any(), "both sides of the clamp are met"
    assert not any(x.requires_grad for x in (found.plain, found.divergence, found.filter))


@pytest.mark.parametrize("masked", [False, True])
def test_without_a_filter(masked):
    (encoder, decoder, _), (*rest, slow) = networks(), data(masked)
    found = belief_loss(*rest, slow=None, encoder=encoder, decoder=decoder, am_filter=None)
    expected = plain(*rest, slow, encoder, decoder, None)
    assert found.power is None and found.filter is None
    params = [*encoder.parameters(), *decoder.parameters()]
    for a, b in zip(torch.autograd.grad(found.rec + 2 * found.kl, params),
                    torch.autograd.grad(expected[0] + 2 * expected[1], params), strict=True):
        assert_close(a, b)
    assert_close((found.plain, found.divergence), expected[3:5])
    assert not found.plain.requires_grad and not found.divergence.requires_grad


def test_a_filter_at_rest_gets_no_gradient():
    (encoder, decoder, am_filter), (*rest, slow) = networks(), data(masked=True)
    found = belief_loss(*rest, slow=slow, encoder=encoder, decoder=decoder, am_filter=am_filter, train_filter=False)
    (found.rec + found.kl + found.power).backward()
    assert all(param.grad is None for param in am_filter.parameters())
    assert all(param.grad is not None for network in (encoder, decoder) for param in network.parameters())


def test_autocast_changes_nothing_and_it_can_be_traced():
    made, (*rest, slow) = networks(), data(masked=True)
    names = dict(zip(("encoder", "decoder", "am_filter"), [network.float() for network in made], strict=True))
    rest, slow = [part.float() for part in rest], slow.float()

    def gradients(function, **options):
        for network in made:
            network.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, **options):
            sums = function(*rest, slow=slow, **names)
        (sums.rec + sums.kl + sums.power).backward()
        return [param.grad for network in made for param in network.parameters()]

    plain_ones = gradients(belief_loss, enabled=False)
    for a, b in zip(plain_ones, gradients(belief_loss), strict=True):
        assert torch.equal(a, b)
    traced = torch.compile(belief_loss, backend="aot_eager", fullgraph=True)
    for options in ({"enabled": False}, {}):
        for a, b in zip(plain_ones, gradients(traced, **options), strict=True):
            assert_close(a, b)
