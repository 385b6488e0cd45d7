"""HyAR's loss and relabelling by hand, its options and refusals."""

import math

import pytest
import torch
from tensordict import TensorDict
from torch.testing import assert_close

from suite.losses.common import Loss
from suite.losses.hyar import AGENT, NEXT_OBSERVATION, NOISE
from suite.specs import ALIVE, CHOICE, LATENT_ACTION, OBSERVATION, PARAMS
from tests.batches import assert_unchanged, frozen_copy, make_specs
from tests.codecs import MASK, make, run, specs_of, total, transitions

torch.set_num_threads(1)

# ---------------------------------------------------------------------- the loss


def test_the_three_losses_by_hand():
    """mean (d~ - d)^2 + 2 mean (x~ - x)^2 - 1/4 mean (1 + ln s^2 - m^2 - s^2), of two rows."""
    loss = make()
    with torch.no_grad():
        for parameter in loss.codec.parameters():
            parameter.zero_()
        loss.codec.encoder["mean"].bias.copy_(torch.tensor([1.0, -2.0]))
        loss.codec.encoder["log_std"].bias.copy_(torch.tensor([math.log(0.5), 0.0]))
        loss.codec.decoder["params"].bias.copy_(torch.tensor([0.5, -0.5]).atanh())
        loss.codec.decoder["residual"].bias.copy_(torch.tensor([0.1, 0.2, 0.3, 0.4]).atanh())
    td = TensorDict({OBSERVATION: torch.ones(2, 4), NEXT_OBSERVATION: torch.tensor([[2.0] * 4, [1.0] * 4]),
                     CHOICE: torch.tensor([0, 2]), PARAMS: torch.tensor([[1.0, -1.0], [-0.5, 9.0]])}, [2])
    out = loss(td)
    residual = (0.81 + 0.64 + 0.49 + 0.36 + 0.01 + 0.04 + 0.09 + 0.16) / 8
    params = (0.25 + 0.25 + 1.0 + 0.25) / 4  # the 9 is padding, a zero
    kl = -0.5 * ((1 + math.log(0.25) - 1 - 0.25) + (1 + 0 - 4 - 1)) / 2
    for name, weight, value in (("residual", 1.0, residual), ("params", 2.0, params), ("kl", 0.5, kl)):
        assert out[name].item() == pytest.approx(value)
        assert out[f"loss_{name}"].item() == pytest.approx(weight * value)
    assert out["active_dims"].item() == 1
    weighted = make(residual_coef=3.0, param_coef=5.0, kl_coef=0.0)
    weighted.codec.load_state_dict(loss.codec.state_dict())
    assert total(weighted(td)).item() == pytest.approx(3 * residual + 5 * params)
    plain = make(residual_coef=0.0, relabel="discrete")
    assert set(plain(td).keys()) == {"loss_params", "loss_kl", "params", "kl", "active_dims"}
    assert all(value.requires_grad is key.startswith("loss_") for key, value in out.items())


def test_it_is_a_loss_that_reads_its_keys_and_writes_nothing():
    loss, batch = make(), transitions(6, 5).reshape(-1)
    before = frozen_copy(batch)
    torch.manual_seed(1)
    out = loss(batch)
    assert isinstance(loss, Loss) and str(loss) and all(value.shape == () for value in out.values())
    assert_unchanged(batch, before)
    selected = batch.select(*loss.in_keys)
    torch.manual_seed(1)
    assert torch.equal(total(loss(selected)), total(out))
    for key in loss.in_keys:
        with pytest.raises(KeyError):
            loss(selected.exclude(key))
    assert not torch.equal(total(loss(batch)), total(out))  # other draws
    fixed = batch.copy().set(NOISE, torch.randn(30, 1, 2))
    assert torch.equal(total(loss(fixed)), total(loss(fixed)))


def test_gradients_reach_all_of_the_codec_but_absent_rows():
    loss, batch = make(), transitions(6, 5).reshape(-1)
    batch[CHOICE] = batch[CHOICE].clamp(max=1)
    total(loss(batch)).backward()
    for name, parameter in loss.named_parameters():
        assert parameter.grad is not None and parameter.grad.any(), name
    assert (loss.codec.embeddings.grad != 0).any(-1).tolist() == [True, True, False]


def test_padded_parameters_are_zeros():
    loss, batch = make(), transitions(6, 5).set(NOISE, torch.randn(6, 5, 1, 2))
    other = batch.clone()
    other[PARAMS] = torch.where(MASK[other[CHOICE]], other[PARAMS], 7.0)
    assert torch.equal(total(loss(batch)), total(loss(other)))


def test_agents_are_told_apart_only_if_asked():
    batch = transitions(6, 5, agents=3).set(NOISE, torch.zeros(6, 5, 3, 2))
    turned = batch.clone()
    for key in (OBSERVATION, CHOICE, PARAMS, NEXT_OBSERVATION):
        turned[key] = batch[key].roll(1, 2)
    plain, knowing = make(specs_of(3)), make(specs_of(3), agent_id=True)
    assert_close(total(plain(batch)), total(plain(turned)))
    assert not torch.allclose(total(knowing(batch)), total(knowing(turned)))
    assert torch.equal(knowing.read(batch).cond[2, 4], torch.eye(3)) and plain.read(batch).cond is None
    rows = TensorDict({key: batch[key].flatten(0, 2) for key in plain.in_keys}, [90])
    rows[AGENT], rows[NOISE] = torch.arange(90) % 3, torch.zeros(90, 2)
    for loss in (plain, knowing):
        assert_close(total(loss(rows)), total(loss(batch)))


# ---------------------------------------------------------------------- relabelling


def relabelled(loss, td, seed=3):
    torch.manual_seed(seed)
    noise = torch.randn_like(td[LATENT_ACTION][..., :3]), torch.randn_like(td[LATENT_ACTION][..., 3:])
    return loss.relabel(td, noise)[LATENT_ACTION].split([3, 2], -1), noise


def test_relabelled_embeddings():
    """Eq. (10): kept where they still choose the same, else the choice's own, with clipped noise."""
    loss, td = make(relabel_noise=0.5, relabel_clip=0.2), transitions(50, 4, agents=2)
    td[LATENT_ACTION] *= 1.2  # beyond the box
    (e, _), noise = relabelled(loss, td)
    stored, own = td[LATENT_ACTION][..., :3], loss.codec.embeddings[td[CHOICE]].tanh().detach()
    keep = loss.codec.choose(stored) == td[CHOICE]
    assert 0.1 < keep.float().mean() < 0.6 and loss.noted["codec/keep_discrete"] == keep.float().mean()
    assert torch.equal(e[keep], stored[keep].clamp(-1, 1))
    assert_close(e[~keep], (own + (0.5 * noise[0]).clamp(-0.2, 0.2))[~keep].clamp(-1, 1))
    assert ((e - own).abs()[~keep] <= 0.2001).all()


@pytest.mark.parametrize("legacy", [False, True])
def test_relabelled_latents(legacy):
    """Eq. (11), (12): the error of the stored latent against that many times the mean one, strictly below."""
    loss, td = make(legacy=legacy, relabel_threshold=2.0), transitions(50, 4, agents=2)
    codec = loss.codec
    codec.low.fill_(-3.0)
    codec.high.fill_(1.0)  # half 2, middle -1
    rows, stored = loss.read(td), td[LATENT_ACTION][..., 3:]
    predicted = codec.decode(rows.obs, rows.choice, stored if legacy else 2 * stored - 1)[1]
    errors = (predicted - rows.residual).square().mean(-1).detach()
    codec.residual_error.copy_(errors.flatten()[7] / 2)  # row 7 is not below
    (_, z), noise = relabelled(loss, td)
    keep = errors < errors.flatten()[7]
    assert 0.02 < keep.float().mean() < 0.98 and loss.noted["codec/keep_params"] == keep.float().mean()
    assert torch.equal(z[keep], stored[keep])
    mean, std = codec.encode(rows.obs, rows.choice, rows.params)
    assert_close(z[~keep], ((mean + std * noise[1] + 1) / 2)[~keep].clamp(-1, 1).detach())
    assert not z.requires_grad and z.abs().max() == 1


@pytest.mark.parametrize("what, changed", [("both", [True, True]), ("discrete", [True, False]),
                                           ("none", [False, False])])
def test_what_is_relabelled(what, changed):
    loss, td = make(relabel=what), transitions(50, 4)
    loss.codec.residual_error.fill_(1e-9)
    before = frozen_copy(td)
    out = loss.relabel(td)
    assert_unchanged(td, before)
    parts = [x.split([3, 2], -1) for x in (out[LATENT_ACTION], td[LATENT_ACTION])]
    assert [not torch.equal(a, b) for a, b in zip(*parts, strict=True)] == changed
    kept = [name for name, yes in zip(("discrete", "params"), changed, strict=True) if yes]
    assert set(loss.metrics()) - {"codec/table_movement"} == {f"codec/keep_{name}" for name in kept}


def test_before_any_calibration_latents_are_kept():
    loss, td = make(), transitions(50, 4)
    assert torch.equal(loss.relabel(td)[LATENT_ACTION][..., 3:], td[LATENT_ACTION][..., 3:])


def test_many_minibatches_at_once():
    loss, td = make(specs_of(2), agent_id=True), transitions(6, 32, agents=2)
    loss.codec.residual_error.fill_(0.02)
    noise = torch.randn(6, 32, 2, 3), torch.randn(6, 32, 2, 2)
    whole = loss.relabel(td, noise)[LATENT_ACTION]
    for k in range(6):
        part = loss.relabel(td[k], (noise[0][k], noise[1][k]))[LATENT_ACTION]
        assert_close(whole[k], part)


def test_only_lost_latents_are_resampled():
    """All at once, as on a GPU, gives what their own rows give."""
    loss, td = make(specs_of(2)), transitions(6, 5, agents=2)
    rows, noise, lost = loss.read(td), torch.randn(6, 5, 2, 2), torch.rand(6, 5, 2) < 0.5
    with torch.no_grad():
        whole = loss._resampled(rows, noise, torch.ones_like(lost))
        some, none = loss._resampled(rows, noise, lost), loss._resampled(rows, noise, torch.zeros_like(lost))
    assert_close(some, whole * lost.unsqueeze(-1))
    assert (none == 0).all() and (whole != 0).all()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
def test_a_gpu_relabels_and_trains_as_the_cpu_does():
    loss, td = make(specs_of(2), agent_id=True), transitions(6, 32, agents=2)
    loss.codec.residual_error.fill_(0.02)
    other = make(specs_of(2), agent_id=True).cuda()
    other.load_state_dict(loss.state_dict())
    noise = torch.randn(6, 32, 2, 3), torch.randn(6, 32, 2, 2)
    ours = other.relabel(td.cuda(), tuple(x.cuda() for x in noise))[LATENT_ACTION]
    assert_close(ours.cpu(), loss.relabel(td, noise)[LATENT_ACTION], rtol=1e-3, atol=1e-3)
    steps = [what.updates("hyar", None, optimizer=None)[0] for what in (loss, other)]
    fixed = td.clone().set(NOISE, torch.randn(6, 32, 2, 2))
    for _ in range(3):
        steps[0].step(fixed)
        steps[1].step(fixed.cuda())
    assert_close(other.last_total.cpu(), loss.last_total, rtol=1e-3, atol=1e-4)


# ---------------------------------------------------------------------- options and refusals


@pytest.mark.parametrize("options", [
    {"fusion": "concat"}, {"head": "parallel"}, {"normalize_residual": True}, {"embed_bounds": True},
    {"optimizer": "rebuilt"}, {"sparse_table": True}, {"lr_embeddings": 0.0}, {"legacy": True}, {"agent_id": True},
    {"residual_coef": 0.0, "relabel": "discrete"}, {"kl_coef": 0.0}, {"embed_dim": 1, "latent_dim": 4},
], ids=str)
def test_every_option_trains_and_relabels(options):
    loss = make(specs_of(2), **options)
    update, = loss.updates("hyar", None, optimizer=None)
    before = loss.codec.embeddings.detach().clone()
    _, metrics = run(loss, update, 8, 5)
    assert metrics and all(value.isfinite() for value in metrics.values())
    assert torch.equal(before, loss.codec.embeddings) is (options.get("lr_embeddings") == 0.0)
    td = transitions(4, 5, agents=2)
    td[LATENT_ACTION] = 2 * torch.rand(4, 5, 2, loss.codec.latent_width) - 1
    assert loss.relabel(td)[LATENT_ACTION].isfinite().all()
    assert all(math.isfinite(value) for value in loss.diagnose(td).values())
    assert ("hyar/loss_residual" in metrics) is (options.get("residual_coef") != 0.0)


def test_normalized_residuals_follow_the_batches():
    loss = make(normalize_residual=True)
    td = transitions(40, 10)
    td[NEXT_OBSERVATION] = td[OBSERVATION] + torch.tensor([0.01, 0.1, 1.0, 10.0]) * torch.randn(40, 10, 1, 4)
    loss.receive(td)
    assert_close(loss.read(td).residual.flatten(0, 2).std(0), torch.ones(4), rtol=0.01, atol=0)
    assert make().read(td).residual[..., 3].std() > 5


def test_a_run_that_ends_in_the_warm_up_is_warned_of():
    assert make(warmup=100).plan(101) == []
    sentence, = make(warmup=100).plan(100)
    assert "warmup of codec 'hyar' is 100 frames" in sentence


@pytest.mark.parametrize("specs, options, message", [
    (make_specs("discrete"), {}, "represents hybrid actions, but the task's actions are discrete: choose a hybrid"),
    (make_specs("continuous"), {}, "but the task's actions are continuous"),
    (specs_of(2, alive=ALIVE), {}, "does not know agents that leave early"),
    (None, {"embed_dim": 0}, "embed_dim of codec 'hyar' must be positive, got 0"),
    (None, {"latent_dim": 0}, "latent_dim of codec 'hyar' must be positive, got 0"),
    (None, {"bounds_rows": 41}, "bounds_rows of codec 'hyar' is 41, but the warm-up brings 40 rows only"),
    (None, {"batch": 64}, "batch of codec 'hyar' is 64, but the warm-up brings 40 rows only"),
    (None, {"memory": 39}, "memory of codec 'hyar' holds 39 rows, fewer than the 40 of the warm-up"),
    (specs_of(2), {"memory": 79}, "memory of codec 'hyar' holds 79 rows, fewer than the 80"),
    (None, {"range_percent": 0}, r"range_percent of codec 'hyar' must lie in \(0, 100\], got 0"),
    (None, {"range_percent": 101.0}, "range_percent .* got 101.0"),
    (None, {"legacy": True, "relabel": "discrete"}, "legacy .* about relabelled latents: relabel 'discrete' has none"),
    (None, {"normalize_residual": True, "residual_coef": 0.0, "relabel": "none"}, "whose residual_coef is 0"),
    (None, {"lr": 0.0}, "lr of codec 'hyar' must be positive, got 0.0"),
    (None, {"lr_embeddings": -1.0}, "lr_embeddings of codec 'hyar' must not be negative, got -1.0"),
    (None, {"kl_coef": -0.5}, "kl_coef of codec 'hyar' must not be negative, got -0.5"),
    (None, {"pretrain": -1}, "pretrain of codec 'hyar' must not be negative, got -1"),
    (None, {"refresh_every": 0}, "refresh_every of codec 'hyar' must be positive, got 0"),
    (None, {"optimizer": "sgd"}, r"optimizer of codec 'hyar' must be one of \['adam', 'rebuilt'\], got 'sgd'"),
    (None, {"relabel": "params"}, r"relabel .* must be one of \['both', 'discrete', 'none'\], got 'params'"),
    (None, {"fusion": "add"}, "fusion of codec 'hyar' must be one of"),
    (None, {"head": "none"}, "head of codec 'hyar' must be one of"),
    (None, {"residual_coef": 0.0}, "cannot tell which latents to relabel: give relabel=discrete or relabel=none"),
    (None, {"relabel_threshold": float("nan")}, "relabel_threshold of codec 'hyar' must be positive, got nan"),
])
def test_refusals(specs, options, message):
    with pytest.raises(ValueError, match=message):
        make(specs, **options)
