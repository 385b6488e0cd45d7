"""The numbers of SMPE2's losses by hand, and where their gradients go."""

import math

import pytest
import torch
from tensordict import TensorDict
from torch.testing import assert_close

from suite.losses import PolicyLoss, SMPELoss
from suite.losses.smpe import BELIEF, FILTERED
from suite.specs import ALIVE, GROUP, OBSERVATION, Specs
from tests.batches import assert_unchanged, compose_smpe, frozen_copy, make_batch, make_specs

torch.set_num_threads(1)
PRESETS = ["official", "paper", "fixed"]


def grads(*modules):
    """Whether any gradient but 0 arrived."""
    return any(p.grad is not None and p.grad.any() for module in modules for p in module.parameters())


# ---------------------------------------------------------------------- two agents, one feature, one latent, by hand


def set_to(network, **values):
    """Zeros everywhere, but some tensors."""
    with torch.no_grad():
        for param in network.parameters():
            param.zero_()
        for name, value in values.items():
            param = network.get_parameter(name.replace("__", "."))
            param.copy_(torch.tensor(value).view(param.shape))


def hand(**options):
    """Belief N(3, 2^2) of both agents, decoders that say 2 and -1, w = 1/2, w~ = 3/4; statistics 0 and 1."""
    specs = Specs(n_agents=2, obs_dim=1, action_dim=2, discrete=True, agent_types=(0, 0), alive=ALIVE, horizon=5)
    loss = SMPELoss(specs, **{"latent_dim": 1, "encode_rows": 2, "rec_coef": 0.1, "kl_coef": 0.01, "norm_coef": 10.0}
                    | options)
    set_to(loss.encoder, heads__bias=[3.0, 2 * math.log(2), 3.0, 2 * math.log(2)])
    set_to(loss.decoder, fc3__bias=[2.0, -1.0])
    if loss.filters:
        spare = {"fc2__weight": [-2.0, 2.0], "fc2__bias": [5.0, 5.0]} if loss.norm_loss == "parameters" else {}
        set_to(loss.am_filter, **spare)
        set_to(loss.slow_filter, fc1__bias=[math.log(3)] * 2)
    return loss


def rows(*pairs, alive=None):
    """A minibatch of frames of two agents."""
    td = TensorDict({OBSERVATION: torch.tensor(pairs).unsqueeze(-1)}, [len(pairs)])
    td[ALIVE] = torch.ones(len(pairs), 2, dtype=torch.bool) if alive is None else torch.tensor(alive)
    return td


FRAMES = (1.0, 2.0), (3.0, -4.0)
# agent 0: w d = 1, w~ y = 3/2 and -3; agent 1: w d = -1/2, w~ y = 3/4 and 9/4
REC = 0.25 + 16 + 1.5625 + 7.5625
KL = 4 * ((9 + 4) / 2 - math.log(2) - 0.5)


@pytest.mark.parametrize("norm_loss, norm", [("parameters", 2 + 2 + 5 + 5), ("output", -(0.25 + 0.25)), ("none", None)])
def test_the_three_losses(norm_loss, norm):
    out = hand(norm_loss=norm_loss)(rows(*FRAMES))
    assert out["loss_rec"].item() == pytest.approx(0.1 * REC)
    assert out["loss_kl"].item() == pytest.approx(0.01 * KL)
    assert ("loss_norm" in out) == (norm is not None)
    assert norm is None or out["loss_norm"].item() == pytest.approx(10 * norm)
    assert out["filter"].item() == 0.5 and out["kl_per_unit"].item() == pytest.approx(KL / 4)
    # (d - y)^2 = 0, 36, 4, 16
    assert out["reconstruction"].item() == pytest.approx(14.0)


def test_the_reconstruction_without_filters():
    loss = hand(filters=False)
    out = loss(rows(*FRAMES))
    assert out["loss_rec"].item() == pytest.approx(0.1 * 56)
    assert set(out.keys()) == {"loss_rec", "loss_kl", "reconstruction", "kl_per_unit"}
    assert loss.am_filter is None and loss.slow_filter is None and set(loss.networks("p")) == {"p"}


def test_gradients_by_hand():
    loss = hand(norm_coef=0.0)
    out = loss(rows(*FRAMES))
    (out["loss_rec"] + out["loss_kl"]).backward()
    # d/dd sum (w d - w~ y)^2 = 2 w sum(error): sums of errors 3.5 and -4
    assert_close(loss.decoder.fc3.bias.grad.flatten(), 0.1 * torch.tensor([3.5, -4.0]))
    # d/db of the filter: 2 d w (1 - w) sum(error)
    assert_close(loss.am_filter.fc1.bias.grad.flatten(), 0.1 * 2 * 0.25 * torch.tensor([2 * 3.5, -1 * -4.0]))
    # KL over two rows: d/dmu = mu, d/dlogvar = (sigma^2 - 1) / 2
    assert_close(loss.encoder.heads.bias.grad, 0.01 * 2 * torch.tensor([[3.0, 1.5], [3.0, 1.5]]))
    assert all(p.grad is None for p in loss.slow_filter.parameters())


def test_the_output_norm_pushes_the_filter_up_and_the_parameter_norm_shrinks_it():
    loss = hand(norm_loss="output", norm_coef=1.0, rec_coef=0.0)
    loss(rows(*FRAMES))["loss_norm"].backward()
    assert_close(loss.am_filter.fc1.bias.grad.flatten(), torch.full((2,), -2 * 0.5 * 0.25))  # -dw^2/db, mean of rows
    loss = hand(norm_loss="parameters", norm_coef=1.0)
    loss(rows(*FRAMES))["loss_norm"].backward()
    assert_close(loss.am_filter.fc2.weight.grad.flatten(), torch.tensor([-1.0, 1.0]))


@pytest.mark.parametrize("norm_loss", ["parameters", "output"])
def test_a_minibatch_of_another_size_weighs_the_same(norm_loss):
    loss = hand(norm_loss=norm_loss)
    once, thrice, twice = loss(rows(*FRAMES)), loss(rows(*FRAMES * 3)), hand(norm_loss=norm_loss, encode_rows=4)
    for key in ("loss_rec", "loss_kl", "loss_norm"):
        assert_close(once[key], thrice[key])
        factor = 1 if key == "loss_norm" else 2
        assert_close(twice(rows(*FRAMES))[key], factor * once[key])
    assert_close(loss(rows(*FRAMES).reshape(1, 2))["loss_rec"], once["loss_rec"])


def test_statistics_of_observation_and_joint_observation_are_apart():
    """The belief sees (o - 1) / 2; the target is (o - mean_i) / 4 with a mean of each agent's own."""
    loss = hand(filters=False)
    loss.scaler.moments.mean.fill_(1.0)
    loss.scaler.moments.var.fill_(4.0)
    loss.joint_moments.mean.copy_(torch.tensor([[1.0], [2.0]]))
    loss.joint_moments.var.fill_(16.0)
    assert_close(loss.scaler(rows((5.0, 3.0))[OBSERVATION]).flatten(), torch.tensor([2.0, 1.0]))
    # targets (3 - 2) / 4 and (5 - 1) / 4; decoders 2 and -1; one row counts as two
    out = loss(rows((5.0, 3.0)))
    assert out["loss_rec"].item() == pytest.approx(0.1 * 2 * ((2 - 0.25) ** 2 + (-1 - 1) ** 2))


@pytest.mark.parametrize("limit, target", [(10.0, 10.0), (0, 1000.0)])
def test_clipped_targets(limit, target):
    loss = hand(filters=False, clip_inputs=limit)
    loss.joint_moments.var.fill_(1e-4)
    out = loss(rows((10.0, 10.0), (10.0, 10.0)))
    assert out["loss_rec"].item() == pytest.approx(0.1 * 2 * ((2 - target) ** 2 + (-1 - target) ** 2), rel=1e-3)


def test_the_latent_is_sampled():
    loss = hand(filters=False)
    with torch.no_grad():
        for layer in (loss.decoder.fc1, loss.decoder.fc2, loss.decoder.fc3):
            layer.weight.fill_(1.0)  # the decoder adds relu(z)
    torch.manual_seed(0)
    many = rows(*[(0.0, 0.0)] * 4000)
    first, second = loss(many)["reconstruction"], loss(many)["reconstruction"]
    assert first != second
    z = 3 + 2 * torch.randn(400_000).double()
    expected = ((2 + z.relu()).square().mean() + (-1 + z.relu()).square().mean()) / 2
    assert first.item() == pytest.approx(expected.item(), rel=0.1)


# ---------------------------------------------------------------------- padding


@pytest.mark.parametrize("norm_loss", ["parameters", "output"])
def test_padding_is_left_out(norm_loss):
    loss = hand(mask_padding=True, norm_loss=norm_loss)
    assert loss.in_keys == [OBSERVATION, ALIVE]
    whole = loss(rows(*FRAMES))
    padded = loss(rows(*FRAMES, (90.0, -70.0), (50.0, 60.0), alive=[[True] * 2] * 2 + [[False] * 2] * 2))
    for key in ("loss_rec", "loss_kl", "loss_norm"):
        assert_close(whole[key], padded[key])


def test_padding_counts_where_the_switch_says_so():
    loss = hand(mask_padding=False)
    assert loss.in_keys == [OBSERVATION] and loss.mask is None
    # further rows of zeros: (w d)^2 = 1 and 1/4; four rows count as two
    out = loss(rows(*FRAMES, (0.0, 0.0), (0.0, 0.0), alive=[[True] * 2] * 2 + [[False] * 2] * 2))
    assert out["loss_rec"].item() == pytest.approx(0.1 * (REC + 2 * 1.25) / 2)


def test_a_single_agent_that_left():
    """Its terms are left out, and the rows that count are 1.5 of two."""
    out = hand(mask_padding=True)(rows(*FRAMES, alive=[[True, True], [True, False]]))
    assert out["loss_rec"].item() == pytest.approx(0.1 * (REC - 7.5625) * 2 / 1.5)
    assert out["loss_kl"].item() == pytest.approx(0.01 * 0.75 * KL * 2 / 1.5)


def test_a_minibatch_of_padding_alone_is_no_loss_and_no_gradient():
    loss = hand(mask_padding=True, norm_loss="output")
    out = loss(rows(*FRAMES, alive=[[False] * 2] * 2))
    sum(out[key] for key in ("loss_rec", "loss_kl", "loss_norm")).backward()
    assert not grads(loss)


# ---------------------------------------------------------------------- where gradients go


def test_forward_writes_nothing_and_reads_what_it_says():
    torch.manual_seed(0)
    loss, batch = SMPELoss(make_specs("discrete", alive=ALIVE)), make_batch(make_specs("discrete"))
    before = frozen_copy(batch)
    out = loss(batch)
    assert_unchanged(batch, before)
    assert all(value.ndim == 0 for value in out.values())
    assert loss.in_keys == [OBSERVATION, ALIVE]
    assert SMPELoss(make_specs("discrete")).in_keys == [OBSERVATION]


@pytest.mark.parametrize("preset", PRESETS)
def test_state_modelling_trains_encoder_decoder_and_filter_and_nothing_else(preset):
    torch.manual_seed(0)
    loss = compose_smpe(make_specs("discrete", state=False), preset=preset)[0]
    out = loss(make_batch(make_specs("discrete")))
    sum(value for key, value in out.items() if key.startswith("loss_")).backward()
    trained = [*loss.encoder.parameters(), *loss.decoder.parameters(), *loss.am_filter.parameters()]
    assert all(p.grad is not None and p.grad.any() for p in trained)
    others = {id(p) for p in loss.parameters()} - {id(p) for p in trained}
    assert others and all(p.grad is None for p in loss.parameters() if id(p) in others)


def test_the_slow_filter_and_the_target_are_constants_that_count():
    """No gradient reaches them, even where the slow filter could take one; but the loss depends on both."""
    loss, td = hand(), rows(*FRAMES)
    loss.slow_filter.requires_grad_(True)
    out = loss(td)["loss_rec"]
    out.backward()
    assert all(p.grad is None for p in loss.slow_filter.parameters())
    assert not any(buffer.requires_grad for buffer in loss.buffers())
    with torch.no_grad():
        loss.slow_filter.fc1.bias.zero_()
    assert loss(td)["loss_rec"] != out
    td[OBSERVATION] += 1  # the belief, the filter and the decoder of `hand` do not read it: the target alone
    assert loss(td)["loss_rec"] not in (out, loss(rows(*FRAMES))["loss_rec"])


def test_the_belief_feeds_the_actor_and_no_policy_gradient_comes_back():
    torch.manual_seed(0)
    specs = make_specs("discrete")
    loss, _, _, actor, _ = compose_smpe(specs)
    batch = make_batch(specs).reshape(-1)
    assert loss.features == {BELIEF: 3} and loss.critic_features == {} and (GROUP, "belief") == BELIEF
    loss.encoders[0](batch)  # with gradients enabled
    assert batch[BELIEF].shape == (24, 3, 3) and not batch[BELIEF].requires_grad
    policy = PolicyLoss(actor, clip=0.2, entropy_coef=0.01)
    assert BELIEF in policy.in_keys
    out = policy(batch)
    (out["loss_policy"] + out["loss_entropy"]).backward()
    assert all(p.grad is None for p in loss.parameters())
    assert actor[0].module.trunk.hidden[0].weight.grad[:, 4:7].any()  # but it does use the belief


@pytest.mark.parametrize("preset", PRESETS)
def test_the_filtered_critic_trains_the_filter_and_itself_only_where_the_preset_says_so(preset):
    torch.manual_seed(0)
    specs = make_specs("discrete", alive=ALIVE, state=False)
    loss, [filtered], [_, second], _, _ = compose_smpe(specs, preset=preset)
    batch = make_batch(specs)
    filtered(batch)
    own = loss.filtered.module.critic
    before = [p.clone() for p in own.parameters()], [p.clone() for p in loss.am_filter.parameters()]
    metrics = second.step(batch.select(*second.keys))
    moved = [any(not torch.equal(a, b) for a, b in zip(old, new.parameters(), strict=True))
             for old, new in zip(before, (own, loss.am_filter), strict=True)]
    assert moved == [preset != "official", True]
    assert not grads(loss.encoder, loss.decoder, loss.slow_filter)
    assert not grads(own) if preset == "official" else grads(own)
    error = (batch[FILTERED[1]] - batch[FILTERED[0]]).squeeze(-1)[batch[ALIVE]]
    assert_close(metrics["loss_value"], error.square().mean())


@pytest.mark.parametrize("preset", PRESETS)
def test_the_target_of_the_filtered_critic(preset):
    """Of its own and slow, or the frozen central critic; always through the present filter."""
    torch.manual_seed(0)
    specs = make_specs("discrete", state=False)
    loss, [filtered], [_, second], _, critic = compose_smpe(specs, preset=preset)
    own, target = loss.filtered.module.critic, filtered.target.module.critic
    start = critic.module if preset == "official" else own
    assert all(torch.equal(a, b) for a, b in zip(target.parameters(), start.parameters(), strict=True))
    assert filtered.target.module.am_filter is loss.am_filter and filtered.target.module.scaler is loss.scaler
    assert not any(p.requires_grad for p in target.parameters())
    old, batch = [p.clone() for p in target.parameters()], make_batch(specs)
    filtered(batch)
    second.step(batch)
    filter_before = [p.clone() for p in loss.am_filter.parameters()]
    filtered.step_target(batch)
    for before, after, source in zip(old, target.parameters(), own.parameters(), strict=True):
        expected = before if preset == "official" else before.lerp(source, 0.1)
        assert torch.equal(after, expected)
        assert preset == "official" or not torch.equal(after, before)
    assert all(torch.equal(a, b) for a, b in zip(filter_before, loss.am_filter.parameters(), strict=True))


def test_the_filtered_returns_have_keys_of_their_own():
    torch.manual_seed(0)
    specs = make_specs("discrete")
    _, [filtered], _, _, _ = compose_smpe(specs)
    batch = make_batch(specs)
    before = frozen_copy(batch)
    filtered(batch)
    assert_unchanged(batch.exclude(*FILTERED), before)
    assert all(batch[key].shape == (4, 6, 3, 1) for key in FILTERED)


def test_the_filter_has_its_own_optimiser_for_the_critic_or_the_one_of_the_reconstruction():
    _, _, [encode, second], _, _ = compose_smpe(make_specs("discrete", state=False), preset="official", lr_filter=0.02)
    assert second.optimizers == {"filter": encode.optimizers["filter"]}
    assert encode.optimizers["filter"].param_groups[0]["lr"] == 0.02
    options = dict(lr=0.01, lr_filter=0.02, lr_filtered_critic=0.03)
    _, _, [encode, second], _, _ = compose_smpe(make_specs("discrete"), **options)
    assert isinstance(second.optimizers["filter"], torch.optim.RMSprop)
    assert second.optimizers["filter"] is not encode.optimizers["filter"]
    rates = [o.param_groups[0]["lr"] for o in (*encode.optimizers.values(), *second.optimizers.values())]
    assert rates == [0.01, 0.02, 0.001, 0.03] and list(second.optimizers) == ["critic", "filter"]
    for group in (group for o in encode.optimizers.values() for group in o.param_groups):
        assert (group["alpha"], group["eps"], group["momentum"], group["weight_decay"]) == (0.99, 1e-8, 0, 0)
    assert encode.max_grad_norm == {"codec": None, "filter": None}
    assert second.max_grad_norm == {"critic": 10.0, "filter": None} and second.shared == {"filter"}
    assert encode.early and not second.early


def test_one_optimiser_where_nothing_distinguishes_that_of_the_filter():
    """Some operations on one vector instead of two; a filter that rests sometimes, or is lent, has its own."""
    for options, parts in (({}, {"codec"}), ({"lr_filter": 0.1}, {"codec", "filter"}),
                           ({"filter_every": 2}, {"codec", "filter"}), ({"preset": "official"}, {"codec", "filter"}),
                           ({"preset": "official", "filtered_critic": False}, {"codec"})):
        loss, _, [encode, *_], _, _ = compose_smpe(make_specs("discrete", state=False), **options)
        assert set(encode.optimizers) == parts
        owned = [p for params in encode.params.values() for p in params]
        assert set(owned) == {*loss.encoder.parameters(), *loss.decoder.parameters(), *loss.am_filter.parameters()}
