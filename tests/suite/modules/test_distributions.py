import math

import pytest
import torch
import torchrl.modules
from torch.distributions import AffineTransform, Independent, Normal, TanhTransform, TransformedDistribution
from torch.testing import assert_close

from suite.modules.distributions import Categorical, DiagonalNormal, TanhNormal

torch.set_num_threads(1)
LOW, HIGH = torch.tensor([[-1.0, -2.0], [0.0, -1.0]]), torch.tensor([[1.0, 3.0], [5.0, 0.0]])  # per agent and component


def params(*batch, seed=0):
    random = torch.Generator().manual_seed(seed)
    loc = torch.randn(*batch, 2, 2, generator=random)
    return loc, 0.3 + torch.rand(*batch, 2, 2, generator=random)


def test_normal_equals_torch():
    loc, scale = params(5)
    ours, stock = DiagonalNormal(loc, scale), Independent(Normal(loc, scale), 1)
    x = torch.randn(5, 2, 2)
    assert ours.log_prob(x).shape == (5, 2)  # one number per agent
    assert_close(ours.log_prob(x), stock.log_prob(x))
    assert_close(ours.entropy(), stock.entropy())
    assert torch.equal(ours.mean, loc) and torch.equal(ours.deterministic_sample, loc) and torch.equal(ours.mode, loc)


# loc 1, scale 2, value 2: -0.5 * 0.25 - ln 2 - 0.5 ln(2 pi) = -0.125 - 0.693147 - 0.918939
def test_normal_by_hand():
    dist = DiagonalNormal(torch.tensor([1.0]), torch.tensor([2.0]))
    assert_close(dist.log_prob(torch.tensor([2.0])), torch.tensor(-1.737086))
    assert_close(dist.entropy(), torch.tensor(0.5 + 0.918939 + 0.693147))


# tanh(0) = 0, low -1, high 3: a = mid = 1, log-density N(0; 0, 1) - ln(half = 2) - ln(1 - 0) = -0.918939 - 0.693147
def test_tanh_normal_by_hand():
    dist = TanhNormal(torch.tensor([0.0]), torch.tensor([1.0]), torch.tensor([-1.0]), torch.tensor([3.0]))
    assert_close(dist.mode, torch.tensor([1.0]))
    assert_close(dist.log_prob(torch.tensor([1.0])), torch.tensor(-1.612086))


def test_tanh_normal_equals_torch_and_torchrl():
    loc, scale = params(6)
    ours = TanhNormal(loc, scale, LOW, HIGH)
    mid, half = (HIGH + LOW) / 2, (HIGH - LOW) / 2
    torchs = Independent(TransformedDistribution(Normal(loc, scale), [TanhTransform(), AffineTransform(mid, half)]), 1)
    torchrls = torchrl.modules.TanhNormal(loc, scale, low=LOW, high=HIGH, tanh_loc=False, event_dims=1)
    x = LOW + (HIGH - LOW) * (0.02 + 0.96 * torch.rand(6, 2, 2))
    assert_close(ours.log_prob(x), torchs.log_prob(x), rtol=1e-4, atol=1e-4)
    assert_close(ours.log_prob(x), torchrls.log_prob(x), rtol=1e-4, atol=1e-4)
    assert_close(ours.deterministic_sample, mid + half * loc.tanh())


@pytest.mark.parametrize(("loc", "scale", "low", "high"), [(0.3, 0.5, -1.0, 1.0), (-1.0, 0.7, 0.0, 5.0),
                                                           (2.0, 1.0, -4.0, -3.0)])
def test_tanh_normal_integrates_to_one(loc, scale, low, high):
    u = torch.linspace(loc - 9 * scale, loc + 9 * scale, 200_001, dtype=torch.float64)
    keep = u.abs() < 7  # inside the largest action handed out
    a = ((high + low) / 2 + (high - low) / 2 * torch.tanh(u[keep])).unsqueeze(-1)
    as_tensor = [torch.tensor([x], dtype=torch.float64) for x in (loc, scale, low, high)]
    density = TanhNormal(*as_tensor).log_prob(a).exp()
    assert torch.trapezoid(density, a.squeeze(-1)).item() == pytest.approx(1, abs=1e-3)


def test_tanh_normal_samples_stay_inside_and_have_the_right_moments():
    torch.manual_seed(0)
    loc, scale = params()
    dist = TanhNormal(loc, scale, LOW, HIGH)
    a = dist.sample((40_000,))
    assert a.shape == (40_000, 2, 2) and ((a > LOW) & (a < HIGH)).all()
    u = torch.atanh((a - dist.mid) / dist.half)
    assert_close(u.mean(0), loc, rtol=0, atol=0.03)
    assert_close(u.std(0), scale, rtol=0, atol=0.03)


def test_normal_samples_have_the_right_moments():
    torch.manual_seed(0)
    loc, scale = params()
    a = DiagonalNormal(loc, scale).sample((40_000,))
    assert_close(a.mean(0), loc, rtol=0, atol=0.03)
    assert_close(a.std(0), scale, rtol=0, atol=0.03)


def test_entropy_estimate_of_tanh_normal_is_unbiased():
    torch.manual_seed(0)
    loc, scale = torch.tensor([[0.4]]), torch.tensor([[0.6]])
    dist = TanhNormal(loc.expand(100_000, 1), scale.expand(100_000, 1), torch.tensor([-2.0]), torch.tensor([2.0]))
    # H(a) = H(u) + ln half + E[ln(1 - tanh(u)^2)], the last by quadrature
    u = torch.linspace(0.4 - 6, 0.4 + 6, 20_001)
    weight = Normal(0.4, 0.6).log_prob(u).exp()
    slope = torch.trapezoid(weight * (1 - u.tanh().square()).log(), u)
    expected = 0.5 * math.log(2 * math.pi * math.e) + math.log(0.6) + math.log(2.0) + slope
    assert_close(dist.entropy().mean(), expected, rtol=0, atol=0.01)


def test_gradients_flow_through_rsample_only():
    loc, scale = (x.requires_grad_() for x in params())
    for dist in (DiagonalNormal(loc, scale), TanhNormal(loc, scale, LOW, HIGH)):
        assert not dist.sample().requires_grad
        torch.manual_seed(1)
        a = dist.rsample()
        grad_loc, grad_scale = torch.autograd.grad(a.sum(), (loc, scale))
        torch.manual_seed(1)
        noise = torch.randn(2, 2)
        slope = torch.ones(2, 2) if isinstance(dist, DiagonalNormal) else \
            dist.half * (1 - (loc + scale * noise).tanh().square())  # d a / d u
        assert_close(grad_loc, slope.detach())
        assert_close(grad_scale, (slope * noise).detach())


def test_sample_and_rsample_draw_the_same_numbers():
    loc, scale = params(3)
    for dist in (DiagonalNormal(loc, scale), TanhNormal(loc, scale, LOW, HIGH)):
        torch.manual_seed(4)
        first = dist.sample()
        torch.manual_seed(4)
        assert torch.equal(first, dist.rsample())


@pytest.mark.parametrize("loc", [-50.0, 50.0])
def test_saturated_actions_are_finite_and_score_the_same_again(loc):
    loc = torch.full((2, 2), loc, requires_grad=True)
    scale = torch.ones(2, 2, requires_grad=True)
    dist = TanhNormal(loc, scale, LOW, HIGH)
    for a in (dist.rsample(), dist.mode, HIGH, LOW):
        score = dist.log_prob(a.detach())
        gradient = torch.autograd.grad(score.sum(), (loc, scale))
        assert score.isfinite().all() and all(g.isfinite().all() for g in gradient)
    assert ((dist.mode >= LOW) & (dist.mode <= HIGH)).all()
    assert dist.entropy().isfinite().all()


def test_a_stored_action_scores_as_when_it_was_drawn():
    torch.manual_seed(0)
    loc, scale = params(1000)
    dist = TanhNormal(loc, scale, LOW, HIGH)
    u = loc + scale * torch.randn_like(loc)
    slope = dist.half * (1 - u.double().tanh().square()).float()
    exact = (Normal(loc, scale).log_prob(u) - slope.log()).sum(-1)
    usual = (u.abs() < 4).all(-1)  # beyond it float32 actions near the bound are too coarse
    assert usual.float().mean() > 0.9
    assert_close(dist.log_prob(dist._squash(u))[usual], exact[usual], rtol=2e-3, atol=2e-3)


def test_categorical_equals_torch():
    logits = torch.randn(4, 2, 5)
    ours, stock = Categorical(logits), torch.distributions.Categorical(logits=logits)
    x = torch.randint(5, (4, 2))
    assert_close(ours.log_prob(x), stock.log_prob(x))
    assert_close(ours.entropy(), stock.entropy())
    assert torch.equal(ours.deterministic_sample, logits.argmax(-1))
    assert_close(ours.log_prob(torch.arange(5).view(5, 1, 1).expand(5, 4, 2)).exp().sum(0), torch.ones(4, 2))


def test_categorical_frequencies_and_masked_choices():
    torch.manual_seed(0)
    dist = Categorical(torch.tensor([0.0, math.log(3.0), -1e10]))  # probabilities 1/4, 3/4, 0
    counts = torch.bincount(dist.sample((20_000,)), minlength=3) / 20_000
    assert_close(counts, torch.tensor([0.25, 0.75, 0.0]), rtol=0, atol=0.015)
    assert counts[2] == 0
    # -(1/4 ln 1/4 + 3/4 ln 3/4), and the masked choice adds nothing
    assert_close(dist.entropy(), torch.tensor(0.562335))


def test_nothing_is_validated_so_nothing_synchronises():
    for dist in (Categorical(torch.zeros(3)), DiagonalNormal(torch.zeros(2), torch.ones(2)),
                 TanhNormal(torch.zeros(2, 2), torch.ones(2, 2), LOW, HIGH)):
        assert dist._validate_args is False
