import pytest
import torch
from torch import nn
from torch.testing import assert_close

from suite.modules.beliefs import (
    AMFilter,
    BeliefDecoder,
    BeliefEncoder,
    BeliefMean,
    FilteredCritic,
    ObservationScaler,
    Others,
)

torch.set_num_threads(1)
JOINT = torch.tensor([[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]])  # 3 agents x 2 features


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def fill(module, weight, bias=0.0):
    """Every weight and every bias of a network is one number."""
    with torch.no_grad():
        for name, param in module.named_parameters():
            param.fill_(bias if name.endswith("bias") else weight)
    return module


# ---------------------------------------------------------------------- the others


def test_others_keep_their_order():
    expected = torch.tensor([[3.0, 4.0, 5.0, 6.0], [1.0, 2.0, 5.0, 6.0], [1.0, 2.0, 3.0, 4.0]])
    assert torch.equal(Others(3, 2)(JOINT), expected)
    many = torch.stack([JOINT, 10 * JOINT]).unsqueeze(0)  # [1, 2, A, o]
    assert torch.equal(Others(3, 2)(many), torch.stack([expected, 10 * expected]).unsqueeze(0))


def test_spread_weighs_the_others_and_leaves_the_own_slot():
    weights = torch.tensor([[0.5, 0.0, 1.0, 2.0], [0.1, 0.2, 0.3, 0.4], [0.0, 0.0, 0.0, 1.0]])
    expected = torch.tensor([[1, 2, 3 * 0.5, 0, 5, 6 * 2],
                             [1 * 0.1, 2 * 0.2, 3, 4, 5 * 0.3, 6 * 0.4],
                             [0, 0, 0, 4, 5, 6]])
    assert_close(Others(3, 2).spread(weights, JOINT), expected)
    rows = Others(3, 2).spread(torch.stack([weights, 2 * weights]), torch.stack([JOINT, JOINT]))
    assert rows.shape == (2, 3, 6) and torch.equal(rows[0], Others(3, 2).spread(weights, JOINT))
    assert_close(rows[1, 0], torch.tensor([1.0, 2, 3, 0, 10, 24]))


def test_weights_of_one_spread_the_joint_observation_and_the_two_maps_agree():
    others, joint, weights = Others(4, 3), normal(5, 4, 3), normal(5, 4, 9, seed=1)
    assert torch.equal(others.spread(torch.ones(5, 4, 9), joint), joint.flatten(-2).unsqueeze(-2).expand(5, 4, 12))
    spread = others.spread(weights, joint)
    for agent in range(4):
        rows = spread[:, agent].view(5, 4, 3)
        assert torch.equal(rows[:, agent], joint[:, agent])
        rest = torch.cat([rows[:, :agent], rows[:, agent + 1:]], 1).flatten(1)
        assert_close(rest, weights[:, agent] * others(joint)[:, agent])


def test_spread_hands_on_the_gradient_of_the_weights_only_where_they_apply():
    weights = torch.ones(3, 4, requires_grad=True)
    Others(3, 2).spread(weights, JOINT).sum().backward()
    assert torch.equal(weights.grad, Others(3, 2)(JOINT))
    assert not Others(3, 2).state_dict(), "the slots follow from the sizes"


# ---------------------------------------------------------------------- standardisation


def test_the_scaler_standardises_with_statistics_of_all_agents():
    scaler = ObservationScaler(2, None)
    assert_close(scaler(JOINT), JOINT)  # mean 0 and variance 1 before the first batch
    scaler.moments.update(JOINT)  # means 3, 4; variances 4, 4 over the three agents
    assert_close(scaler(JOINT), torch.tensor([[-1.0, -1], [0, 0], [1, 1]]), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("limit, expected", [(None, [-20.0, 0, 30]), (10.0, [-10.0, 0, 10]), (25.0, [-20.0, 0, 25])])
def test_the_scaler_clips_at_its_limit(limit, expected):
    scaler = ObservationScaler(1, limit)
    scaler.moments.mean.fill_(2.0)
    scaler.moments.var.fill_(0.01)  # deviation 0.1
    assert_close(scaler(torch.tensor([[0.0], [2.0], [5.0]])).squeeze(-1), torch.tensor(expected), rtol=1e-5, atol=1e-4)


# ---------------------------------------------------------------------- encoder and decoder


def test_shapes():
    encoder, decoder = BeliefEncoder(3, 5, 4), BeliefDecoder(3, 5, 4)
    for rows in ((), (7,), (2, 6)):
        mu, sigma = encoder(normal(*rows, 3, 5))
        assert mu.shape == sigma.shape == (*rows, 3, 4) and (sigma > 0).all()
        assert decoder(mu).shape == (*rows, 3, 10)


# one feature, one latent, all weights 1: hidden relu(o), head (o, o), so mean o and deviation exp(o / 2); a bias of -2
# everywhere: relu(3 - 2) = 1, relu(1 - 2) = 0, heads -2
def test_encoder_by_hand():
    encoder = fill(BeliefEncoder(2, 1, 1), 1.0)
    mu, sigma = encoder(torch.tensor([[3.0], [-1.0]]))
    assert_close(mu, torch.tensor([[3.0], [0.0]]))
    assert_close(sigma, torch.tensor([[1.5], [0.0]]).exp())
    mu, sigma = fill(encoder, 1.0, -2.0)(torch.tensor([[3.0], [-1.0]]))
    assert_close(mu, torch.full((2, 1), -2.0))
    assert_close(sigma, torch.full((2, 1), -1.0).exp())


# 3 agents x 1 feature, k = 2, all weights 1: relu(sum z) = 3, twice; then 6 in each unit, and 12 in each output
def test_decoder_by_hand():
    out = fill(BeliefDecoder(3, 1, 2), 1.0)(torch.tensor([[1.0, 2.0], [1.0, -4.0], [0.0, 1.0]]))
    assert_close(out, torch.tensor([[12.0, 12.0], [0.0, 0.0], [4.0, 4.0]]))


@pytest.mark.parametrize("make", [
    lambda: BeliefEncoder(3, 4, 2), lambda: BeliefDecoder(3, 2, 4),
    lambda: AMFilter(3, 4, layers=1, low=0.0, high=1.0), lambda: AMFilter(3, 4, layers=2, low=0.0, high=1.0),
])
def test_agents_have_parameters_of_their_own(make):
    """Another weight of agent 1, in any tensor, is another output of agent 1 alone; and they start differently."""
    torch.manual_seed(0)
    network, x = make(), normal(40, 1, 4).expand(40, 3, 4)

    def outputs():
        out = network(x)
        return torch.cat(out, -1) if isinstance(out, tuple) else out

    before = outputs()
    assert not torch.allclose(before[:, 0], before[:, 1])
    for name, param in network.named_parameters():
        with torch.no_grad():
            param[1] += normal(*param[1].shape, seed=3)
        after = outputs()
        assert torch.equal(after[:, [0, 2]], before[:, [0, 2]]), name
        assert not torch.allclose(after[:, 1], before[:, 1]), name
        before = after


def test_the_acting_belief_is_the_mean_of_the_standardised_observation_without_gradient():
    scaler, encoder = ObservationScaler(4, 1.5), BeliefEncoder(3, 4, 2)
    scaler.moments.mean.fill_(1.0)
    acting, x = BeliefMean(scaler, encoder), normal(5, 3, 4).requires_grad_()
    z = acting(x)
    assert not z.requires_grad and torch.equal(z, encoder((x.detach() - 1).clamp(-1.5, 1.5))[0])
    assert torch.equal(z, acting(x)), "no sample"


# ---------------------------------------------------------------------- filter


# all weights 1 and 2 agents x 2 features: one layer sigmoid(x1 + x2); two layers sigmoid(2 relu(x1 + x2))
@pytest.mark.parametrize("layers, factor", [(1, 1.0), (2, 2.0)])
def test_filter_by_hand(layers, factor):
    am_filter = fill(AMFilter(2, 2, layers=layers, low=0.0, high=1.0), 1.0)
    w = am_filter(torch.tensor([[0.5, 0.25], [-3.0, 1.0]]))
    negative = torch.tensor(-2.0 if layers == 1 else 0.0)
    expected = torch.stack([torch.tensor(0.75 * factor), negative]).sigmoid()
    assert w.shape == (2, 2) and torch.equal(w[:, 0], w[:, 1])
    assert_close(w[:, 0], expected)


@pytest.mark.parametrize("layers", [1, 2])
def test_the_filter_stays_in_its_range_and_reaches_its_ends(layers):
    torch.manual_seed(0)
    w = AMFilter(3, 4, layers=layers, low=0.3, high=0.9)(20 * normal(200, 3, 4))
    assert w.shape == (200, 3, 8)
    assert (w >= 0.3).all() and (w <= 0.9).all()
    assert (w == 0.3).any() and (w == 0.9).any() and ((w > 0.3) & (w < 0.9)).any()


def test_no_gradient_outside_the_clamp():
    am_filter = fill(AMFilter(2, 1, layers=1, low=0.3, high=0.8), 1.0)
    x = torch.tensor([[[-4.0], [-4.0]], [[4.0], [4.0]], [[0.5], [-0.5]]], requires_grad=True)
    w = am_filter(x)
    assert_close(w[:2, 0, 0], torch.tensor([0.3, 0.8]))
    w.sum().backward()
    assert not x.grad[:2].any()
    inside = torch.tensor([0.5, -0.5]).sigmoid()
    assert_close(x.grad[2, :, 0], inside * (1 - inside))
    assert_close(am_filter.fc1.bias.grad.flatten(), inside * (1 - inside))  # of row 2 only


# two agents, weights 2 x 1 and biases of 2: agent 0 has (3, 4) and (0, 5), agent 1 has (0, 1) and (6, 8)
def test_parameter_norm_by_hand():
    am_filter = AMFilter(2, 2, layers=1, low=0.0, high=1.0)
    assert am_filter.fc2 is None
    with torch.no_grad():
        am_filter.fc1.weight.zero_()
        am_filter.fc1.weight[0, 0] = torch.tensor([3.0, 4.0])
        am_filter.fc1.weight[1, 1] = torch.tensor([0.0, 1.0])
        am_filter.fc1.bias.copy_(torch.tensor([[0.0, 5.0], [6.0, 8.0]]))
    assert am_filter.parameter_norm().item() == pytest.approx(5 + 5 + 1 + 10)


def test_a_spare_layer_counts_in_the_norm_and_nowhere_else():
    torch.manual_seed(0)
    am_filter, x = AMFilter(3, 2, layers=1, low=0.0, high=1.0, spare=True), normal(5, 3, 2)
    before, norm = am_filter(x), am_filter.parameter_norm().item()
    with torch.no_grad():
        for param in am_filter.fc2.parameters():
            param.mul_(2)
    assert torch.equal(am_filter(x), before) and am_filter.parameter_norm().item() > norm
    am_filter.parameter_norm().backward()
    for param in am_filter.parameters():  # the derivative of |theta| is theta / |theta|
        rows = param.detach().flatten(1)
        assert_close(param.grad.flatten(1), rows / rows.norm(dim=1, keepdim=True))


# ---------------------------------------------------------------------- filtered critic


class Sums(nn.Module):
    """A linear critic of joint observations with known weights."""

    def __init__(self, *weights):
        super().__init__()
        self.weight = nn.Parameter(torch.tensor(weights, dtype=torch.float32))

    def forward(self, x):
        return (x * self.weight).sum(-1, keepdim=True)


# two agents with one feature (2 and 3), mean 1, deviation 0.5: standardised 2 and 4; filter sigmoid(x / 2) =
# sigmoid(1), sigmoid(2) of the standardised; V = 10 s_1 + s_2 of the raw: agent 0 sees (2, w 3), agent 1 (w 2, 3)
def test_filtered_critic_by_hand():
    scaler, am_filter = ObservationScaler(1, None), fill(AMFilter(2, 1, layers=1, low=0.0, high=1.0), 0.5)
    scaler.moments.mean.fill_(1.0)
    scaler.moments.var.fill_(0.25)
    critic = FilteredCritic(scaler, am_filter, Others(2, 1), Sums(10.0, 1.0))
    w = torch.tensor([1.0, 2.0]).sigmoid()
    observation = torch.tensor([[[2.0], [3.0]]])
    expected = torch.stack([20 + 3 * w[0], 20 * w[1] + 3]).view(1, 2, 1)
    assert_close(critic(observation), expected)
    critic(observation).sum().backward()
    # dV_0 / dw_0 = 3, dV_1 / dw_1 = 20; and dw / dbias = w (1 - w)
    assert_close(am_filter.fc1.bias.grad.flatten(), torch.tensor([3.0, 20.0]) * w * (1 - w))
    assert_close(critic.critic.weight.grad, torch.stack([2 + 2 * w[1], 3 * w[0] + 3]))


def test_a_filter_clamped_shut_hides_the_others():
    scaler, am_filter = ObservationScaler(2, None), fill(AMFilter(3, 2, layers=1, low=0.0, high=1.0), 0.0, -200.0)
    critic = FilteredCritic(scaler, am_filter, Others(3, 2), Sums(*range(1, 7)))
    x = normal(4, 3, 2)
    own = torch.stack([(x[:, k] * torch.tensor([2.0 * k + 1, 2.0 * k + 2])).sum(-1) for k in range(3)], 1)
    assert_close(critic(x).squeeze(-1), own)
