"""Latent actions and back, by hand; the numbers of the published program are in the tests of loss 'hyar'."""

import copy
import math

import pytest
import torch
from torch.testing import assert_close

from suite.modules.action_codec import FLOOR, ActionCodec, CodecAdam, DirectCodec, EmbeddingCodec

torch.set_num_threads(1)
MASK = torch.tensor([[True, True], [False, False], [True, False]])  # two, no and one parameter


def codec(**options):
    torch.manual_seed(0)
    return ActionCodec(MASK, 4, **dict(num_cells=8, embed_dim=3, latent_dim=2) | options)


def made_of(network, **values):
    """Zeros everywhere, but some tensors, by names with __ for the dot."""
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.zero_()
        for name, value in values.items():
            parameter = network.get_parameter(name.replace("__", "."))
            parameter.copy_(torch.tensor(value).view(parameter.shape))
    return network


# ---------------------------------------------------------------------- one of everything, by hand

# one observation, embedding, latent, parameter and cell; tanh(table) = -1/2, 1/2
HAND = dict(embeddings=[-math.atanh(0.5), math.atanh(0.5)],
            encoder__given__weight=[1.0, 2.0], encoder__params__weight=[3.0], encoder__first__weight=[1.0],
            encoder__second__weight=[0.5], encoder__second__bias=[1.0], encoder__mean__weight=[-1.0],
            encoder__log_std__weight=[0.1], decoder__given__weight=[1.0, -2.0], decoder__latent__weight=[2.0],
            decoder__first__weight=[0.5], decoder__second__weight=[1.0], decoder__second__bias=[-1.0],
            decoder__params__weight=[0.25], decoder__third__weight=[2.0], decoder__third__bias=[0.5],
            decoder__residual__weight=[-0.1])


def by_hand(**options):
    return ActionCodec(torch.ones(2, 1, dtype=torch.bool), 1, embed_dim=1, latent_dim=1, num_cells=1, **options)


def test_encoder_and_decoder_by_hand():
    network = made_of(by_hand(), **HAND)
    obs, choice, params = torch.tensor([[2.0], [2.0]]), torch.tensor([0, 1]), torch.tensor([[1.0], [-1.0]])
    # first row: u1 = 2 - 1 = 1, u2 = 3, u = 3, then 3, then 1.5 + 1; second row: u2 = relu(-3) = 0, u = 0, then 1
    mean, std = network.encode(obs, choice, params)
    assert_close(mean.flatten(), torch.tensor([-2.5, -1.0]))
    assert_close(std.flatten(), torch.tensor([0.25, 0.1]).exp())
    # first row: v = (2 + 1) (2 * 1) = 6, then 3, then 2; third layer 4.5; second row: v = (2 - 1) 6 = 6
    params, residual = network.decode(obs, choice, torch.tensor([[1.0], [3.0]]))
    assert_close(params.flatten(), torch.tensor([0.5, 0.5]).tanh())
    assert_close(residual.flatten(), torch.tensor([-0.45, -0.45]).tanh())


def test_the_parallel_head_stands_beside_the_last_layer_of_the_parameters():
    network = made_of(by_hand(head="parallel"), **HAND)
    params, residual = network.decode(torch.tensor([[2.0]]), torch.tensor([0]), torch.tensor([[1.0]]))
    assert_close(params.item(), math.tanh(0.5))
    assert_close(residual.item(), math.tanh(-0.1 * (2 * 3 + 0.5)))


def test_concatenated_fusion():
    network = made_of(by_hand(fusion="concat"), **HAND | {"encoder__first__weight": [1.0, 2.0],
                                                          "decoder__first__weight": [1.0, 0.5]})
    obs, choice = torch.tensor([[2.0]]), torch.tensor([0])
    # u = 1 + 2 * 3, then 3.5 + 1; v = 3 + 0.5 * 2, then 3
    assert_close(network.encode(obs, choice, torch.tensor([[1.0]]))[0].item(), -4.5)
    assert_close(network.decode(obs, choice, torch.tensor([[1.0]]))[0].item(), math.tanh(0.75))


def test_the_log_standard_deviation_is_clamped():
    network = made_of(by_hand(), **HAND | {"encoder__log_std__weight": [0.0]})
    for bias, expected in ((-9.0, -4.0), (2.0, 2.0), (30.0, 15.0)):
        with torch.no_grad():
            network.encoder["log_std"].bias.fill_(bias)
        std = network.encode(torch.ones(1, 1), torch.tensor([0]), torch.ones(1, 1))[1].item()
        assert_close(std, math.exp(expected))


def test_a_normalized_residual_has_no_tanh():
    network = made_of(by_hand(normalize_residual=True), **HAND)
    _, residual = network.decode(torch.tensor([[2.0]]), torch.tensor([0]), torch.tensor([[1.0]]))
    assert_close(residual.item(), -0.45)
    network.moments.var.fill_(4.0)
    assert_close(network.residual_of(torch.ones(1, 1), torch.full((1, 1), 4.0)).item(), 1.5)
    assert by_hand().residual_of(torch.ones(1, 1), torch.full((1, 1), 4.0)).item() == 3.0


def test_without_a_residual_head():
    network = codec(residual=False)
    assert set(network.decoder) == {"given", "latent", "first", "second", "params"} and network.moments is None
    assert network.decode(torch.ones(5, 4), torch.zeros(5, dtype=torch.long), torch.ones(5, 2))[1] is None


def test_the_condition_is_read_like_a_part_of_the_observation():
    network = codec(cond_dim=2)
    obs, choice, params, z = torch.randn(5, 4), torch.tensor([0, 1, 2, 0, 1]), torch.rand(5, 2), torch.randn(5, 2)
    cond = torch.randn(5, 2)
    mean = network.encode(obs, choice, params, cond)[0]
    assert not torch.equal(mean, network.encode(obs, choice, params, cond + 1)[0])
    assert not torch.equal(network.decode(obs, choice, z, cond)[0], network.decode(obs, choice, z, cond + 1)[0])
    wide = torch.cat([obs, cond, network.embed(choice)], -1)
    assert_close(network.encoder["given"](wide), network.encoder["given"](network._given(obs, choice, cond)))
    with pytest.raises(ValueError, match="condition of width 2, got None"):
        network.encode(obs, choice, params)
    with pytest.raises(ValueError, match=r"condition of width 0, got \(5, 2\)"):
        codec().decode(obs, choice, z, cond)


# ---------------------------------------------------------------------- the table


def test_the_table_begins_uniform_and_is_used_through_tanh():
    torch.manual_seed(0)
    network = EmbeddingCodec(torch.ones(4000, 1, dtype=torch.bool), embed_dim=2)
    table = network.embeddings
    assert table.min() >= -1 and table.max() < 1
    assert_close(table.std().item(), 1 / math.sqrt(3), rtol=0.03, atol=0)
    assert_close(network.embed(torch.tensor([[3, 7]])), table[[3, 7]].tanh().unsqueeze(0))


def test_the_nearest_embedding_and_ties():
    network = made_of(EmbeddingCodec(torch.ones(4, 1, dtype=torch.bool), embed_dim=2),
                      embeddings=[0.5, 0.0, 0.0, 0.5, 0.5, 0.0, -0.5, 0.0])
    e = torch.tensor([[0.9, 0.1], [0.1, 0.9], [0.0, 0.0], [-0.1, -1.0], [0.3, 0.3]])
    assert network.choose(e).tolist() == [0, 1, 0, 3, 0]  # 2 equals 0; all but 3 and (0, 0) tie with others
    a = math.tanh(0.5)
    assert_close(network.distances(e[:1]).square(),
                 torch.tensor([[(0.9 - a) ** 2 + 0.01, 0.81 + (0.1 - a) ** 2, (0.9 - a) ** 2 + 0.01,
                                (0.9 + a) ** 2 + 0.01]]))


def test_the_box_of_a_policy_may_cover_the_embeddings():
    """Embeddings at -0.1, 0.1 and 0.3 of one dimension: middle 0.1, half 0.2. At 0.75 the policy means 0.25."""
    places = torch.tensor([-0.1, 0.1, 0.3])
    e = torch.tensor([[-1.0], [-0.4], [0.4], [0.75]])
    for bounds, chosen, middles in ((True, [0, 1, 1, 2], [-1.0, 0.0, 1.0]), (False, [0, 0, 2, 2], places.tolist())):
        network = codec(embed_dim=1, embed_bounds=bounds)
        with torch.no_grad():
            network.embeddings.copy_(places.atanh().unsqueeze(-1))
        assert network.choose(e).tolist() == chosen
        assert_close(network.place(torch.arange(3)).flatten(), torch.tensor(middles))
        obs, params = torch.zeros(3, 4), torch.zeros(3, 2)
        action = network.latent_of(obs, torch.arange(3), params)
        assert network.act(obs, action)[0].tolist() == [0, 1, 2]


def test_many_choices_are_looked_up_without_cancellation():
    torch.manual_seed(0)
    network = EmbeddingCodec(torch.ones(1024, 1, dtype=torch.bool))
    with torch.no_grad():
        network.embeddings[512:] = network.embeddings[:512]  # every nearest one is a tie
    e = 2 * torch.rand(3, 100, 6) - 1
    table = network.embeddings.detach().tanh()
    expected = (e.unsqueeze(-2).double() - table[:512].double()).square().sum(-1).argmin(-1)
    assert torch.equal(network.choose(e), expected) and expected.dtype == torch.int64
    assert torch.equal(network.choose(network.embed(torch.arange(1024))), torch.arange(1024) % 512)
    assert network.choose(e[:, :0]).shape == (3, 0)


# ---------------------------------------------------------------------- bounds and the affine map


@pytest.mark.parametrize("percent, low, high", [(100, 0, 99), (96, 2, 97), (90, 5, 94), (94.6, 2, 97), (1, 49, 50)])
def test_bounds_leave_a_share_out_at_either_end(percent, low, high):
    """int(r n / 100) values, n = 100; of dimensions apart."""
    network, order = codec(), torch.randperm(100)
    network.set_bounds(torch.stack([order, -2.0 * order], -1), 0.5, range_percent=percent)
    assert network.low.tolist() == [low, -2.0 * high] and network.high.tolist() == [high, -2.0 * low]
    assert network.residual_error.item() == 0.5


def test_the_border_is_not_cut_by_rounding():
    """r = 2.3: 2.3 * 1000 / 100 = 22.999... in floating point."""
    network = codec()
    network.set_bounds(torch.arange(1000.0).unsqueeze(-1).expand(-1, 2), 0.0, range_percent=95.4)
    assert network.low.tolist() == [23, 23] and network.high.tolist() == [976, 976]


@pytest.mark.parametrize("percent", [0, -1, 100.5])
def test_no_bounds_without_range(percent):
    with pytest.raises(ValueError, match=r"range_percent must lie in \(0, 100\], got"):
        codec().set_bounds(torch.randn(10, 2), 0.0, range_percent=percent)


def test_the_affine_map_by_hand():
    network = codec()
    z_p = torch.tensor([[0.5, -1.0]])
    assert torch.equal(network.to_latent(z_p), z_p)  # -1 and 1 until bounds are set
    assert math.isinf(network.residual_error)
    network.low.copy_(torch.tensor([-1.0, 2.0]))
    network.high.copy_(torch.tensor([3.0, 2.0]))  # half 2 and the floor, middle 1 and 2
    assert_close(network.to_latent(z_p), torch.tensor([[2.0, 2.0 - FLOOR]]))
    assert_close(network.to_policy(torch.tensor([[5.0, 2.0]])), torch.tensor([[2.0, 0.0]]))


# ---------------------------------------------------------------------- what acts


def test_act_masks_and_decode_does_not():
    network, obs = codec(), torch.randn(2, 3, 4)
    network.low.fill_(-3.0)
    latent = torch.cat([network.embed(torch.tensor([[0, 1, 2], [2, 1, 0]])), torch.rand(2, 3, 2) - 0.5], -1).detach()
    choice, params = network.act(obs, latent)
    assert choice.tolist() == [[0, 1, 2], [2, 1, 0]] and params.shape == (2, 3, 2)
    decoded = network.decode(obs, choice, network.to_latent(latent[..., 3:]))[0]
    assert torch.equal(params != 0, MASK[choice]) and (decoded != 0).all()
    assert_close(params, (decoded * MASK[choice]).detach())
    assert not params.requires_grad and params.abs().max() <= 1
    noisy = latent.clone()
    noisy[..., :3] += 0.01 * torch.randn(2, 3, 3)  # only the choice is read of e
    assert_close(network.act(obs, noisy)[1], params)


def test_the_encoder_does_not_read_parameters_that_a_choice_does_not_have():
    network, obs, choice = codec(), torch.randn(3, 4), torch.tensor([0, 1, 2])
    params = torch.rand(3, 2)
    changed = torch.where(MASK[choice], params, params + 5)
    for ours, same in zip(network.encode(obs, choice, params), network.encode(obs, choice, changed), strict=True):
        assert torch.equal(ours, same)
    assert not torch.equal(network.encode(obs, choice, params)[0], network.encode(obs, choice, params + 0.1)[0])


def test_the_latent_of_an_action():
    network, obs, choice, params = codec(), torch.randn(3, 4), torch.tensor([0, 1, 2]), torch.rand(3, 2)
    network.low.fill_(-0.01)
    network.high.fill_(0.01)
    latent = network.latent_of(obs, choice, params)
    assert_close(latent[:, :3], network.embed(choice).detach())
    assert_close(latent[:, 3:], (network.encode(obs, choice, params)[0] / 0.01).clamp(-1, 1).detach())
    assert latent[:, 3:].abs().max() == 1 and torch.equal(network.act(obs, latent)[0], choice)


@pytest.mark.parametrize("shape", [(), (7,), (2, 3, 4)])
def test_any_leading_dimensions(shape):
    network, torch_seed = codec(), torch.manual_seed(1)
    latent = 2 * torch.rand(*shape, 5, generator=torch_seed) - 1
    obs = torch.randn(*shape, 4)
    choice, params = network.act(obs, latent)
    assert choice.shape == shape and params.shape == (*shape, 2) and latent.shape[-1] == network.latent_width
    flat = network.act(obs.reshape(-1, 4), latent.reshape(-1, 5))
    assert torch.equal(choice.reshape(-1), flat[0])
    assert_close(params.reshape(-1, 2), flat[1])


def test_direct_by_hand():
    """Three values, then two parameters of choice 0 and one of choice 2."""
    network = DirectCodec(MASK)
    assert network.latent_width == 6
    latent = torch.tensor([[0.9, 0.1, 0.2, 0.3, 0.4, 0.5], [-0.5, 0.1, 0.1, 0.3, 0.4, 0.5],
                           [-0.5, -0.6, 0.1, 0.3, 0.4, 0.5], [0.7, 0.7, 0.7, -0.3, 0.4, 0.5]])
    choice, params = network.act(None, latent)
    assert choice.tolist() == [0, 1, 2, 0]
    assert_close(params, torch.tensor([[0.3, 0.4], [0.0, 0.0], [0.5, 0.0], [-0.3, 0.4]]))
    again = network.act(None, latent.view(2, 2, 1, 6))
    assert torch.equal(again[0].flatten(), choice) and torch.equal(again[1].flatten(0, 2), params)
    assert not list(network.parameters())


def test_embedding_alone_by_hand():
    network = EmbeddingCodec(MASK, embed_dim=3)
    assert network.latent_width == 5 and not any(p.requires_grad for p in network.parameters())
    latent = torch.cat([network.embed(torch.tensor([2, 0, 1])) + 0.01, torch.tensor([[0.1, 0.2]] * 3)], -1)
    choice, params = network.act(None, latent)
    assert choice.tolist() == [2, 0, 1]
    assert_close(params, torch.tensor([[0.1, 0.0], [0.1, 0.2], [0.0, 0.0]]))


@pytest.mark.parametrize("options, message", [
    ({"embed_dim": 0}, "embed_dim must be at least 1, got 0"),
    ({"latent_dim": 0}, "latent_dim must be at least 1, got 0"),
    ({"num_cells": -3}, "num_cells must be at least 1, got -3"),
    ({"fusion": "add"}, r"fusion must be one of \['multiply', 'concat'\], got 'add'"),
    ({"head": "none"}, r"head must be one of \['cascaded', 'parallel'\], got 'none'"),
])
def test_refusals(options, message):
    with pytest.raises(ValueError, match=message):
        codec(**options)


# ---------------------------------------------------------------------- its optimiser


def adam(network, **options):
    return CodecAdam(network.parameters(), table=network.embeddings,
                     **dict(lr=0.1, lr_table=0.1) | options)


def step(network, optimizer, choice):
    """One step on a loss that reads some rows of the table; how far each row went."""
    before = network.embeddings.detach().clone()
    optimizer.zero_grad()
    (network.embed(torch.tensor(choice)).sum() + network.decoder["params"].bias.square().sum()).backward()
    optimizer.step()
    return (network.embeddings.detach() - before).abs().amax(-1)


def test_momentum_moves_rows_that_a_batch_does_not_hold_unless_told_not_to():
    for sparse in (False, True):
        network = codec()
        optimizer = adam(network, sparse_table=sparse)
        first = step(network, optimizer, [0])
        assert_close(first[0].item(), 0.1, rtol=1e-3, atol=0)
        assert first[1:].tolist() == [0, 0]
        moments = copy.deepcopy(optimizer.state[network.embeddings])
        second = step(network, optimizer, [1])
        assert (second[0] == 0) == sparse and second[1] > 0.01
        for name in ("exp_avg", "exp_avg_sq"):
            now, old = optimizer.state[network.embeddings][name], moments[name]
            assert torch.equal(now[0], old[0]) == sparse and not torch.equal(now[1], old[1])


def test_the_table_has_a_rate_of_its_own():
    network = codec()
    optimizer = adam(network, lr_table=0.3)
    bias = network.decoder["params"].bias.detach().clone()
    assert_close(step(network, optimizer, [0])[0].item(), 0.3, rtol=1e-3, atol=0)
    assert_close((network.decoder["params"].bias - bias).abs(), torch.full((2,), 0.1), rtol=1e-3, atol=0)
    assert [len(group["params"]) for group in optimizer.param_groups] == [len(list(network.parameters())) - 1, 1]
    assert len(adam(network).param_groups) == 1


def test_another_rate_keeps_the_moments_and_rebuilding_forgets_them():
    for rebuilt in (False, True):
        network = codec()
        optimizer = adam(network, rebuilt=rebuilt)
        step(network, optimizer, [0, 1])
        before = copy.deepcopy(list(optimizer.state.values()))
        for group in optimizer.param_groups:
            group["lr"] = 0.01
        for old, now in zip(before, optimizer.state.values(), strict=True):
            assert all(torch.equal(old[name], now[name]) for name in ("step", "exp_avg", "exp_avg_sq"))
        moved = step(network, optimizer, [0, 2])
        assert optimizer.state[network.embeddings]["step"].item() == (1 if rebuilt else 2)
        assert_close(moved[0].item(), 0.01, rtol=0.05, atol=0)
        # the first step of row 2 after one of zeros: m / sqrt(v) of (1 - b1) g / (1 - b1^2) and its like
        late = (0.1 / 0.19) / math.sqrt(0.001 / (1 - 0.999 ** 2))
        assert_close(moved[2].item(), 0.01 * (1 if rebuilt else late), rtol=1e-3, atol=0)
