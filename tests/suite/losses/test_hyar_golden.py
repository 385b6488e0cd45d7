"""HyAR's representation against numbers that the published program computed.

Not there: the archives of the Goal task and of the DDPG learner that the archives' description names.
"""

import pytest
import torch
from tensordict import TensorDict
from torch.testing import assert_close

from suite.losses.hyar import NEXT_OBSERVATION, NOISE, HyARLoss
from suite.specs import CHOICE, LATENT_ACTION, OBSERVATION, PARAMS, Specs
from tests.archives import Golden

torch.set_num_threads(1)
NAMES = ["vae_platform", "vae_hardmove4", "vae_catch"]
LAYERS = {"e0_0": "encoder.given", "e0_1": "encoder.params", "e1": "encoder.first", "e2": "encoder.second",
          "mean": "encoder.mean", "log_std": "encoder.log_std", "d0_0": "decoder.given", "d0_1": "decoder.latent",
          "d1": "decoder.first", "d2": "decoder.second", "parameter_action_output": "decoder.params",
          "d3": "decoder.third", "delta_state_output": "decoder.residual"}
PARAMETERS = {"embeddings": "embeddings", **{f"{theirs}.{kind}": f"{ours}.{kind}" for theirs, ours in LAYERS.items()
                                             for kind in ("weight", "bias")}}
LR = 1e-4


def make(golden, prefix="param", **options):
    """A loss whose codec has the file's sizes and weights."""
    obs_dim, choices, embed_dim, params, latent_dim, cells = golden["dims"][:6].tolist()
    mask = torch.ones(choices, params, dtype=torch.bool)  # the program reconstructs padding as it finds it
    specs = Specs(n_agents=1, obs_dim=obs_dim, action_dim=params, discrete=False, agent_types=(0,), param_mask=mask)
    loss = HyARLoss(specs, embed_dim=embed_dim, latent_dim=latent_dim, num_cells=cells, **options)
    named = dict(loss.codec.named_parameters())
    assert set(PARAMETERS.values()) == set(named)
    with torch.no_grad():
        for theirs, ours in PARAMETERS.items():
            assert named[ours].shape == golden[f"{prefix}/{theirs}"].shape
            named[ours].copy_(golden[f"{prefix}/{theirs}"])
    return loss


def inputs(golden, prefix="in"):
    return golden[f"{prefix}/state"], golden[f"{prefix}/action"], golden[f"{prefix}/param"]


def transitions(golden, prefix="in", noise=None):
    """A minibatch of rows, as the loss's memory hands it over."""
    obs, choice, params = inputs(golden, prefix)
    td = TensorDict({OBSERVATION: obs, CHOICE: choice, PARAMS: params,
                     NEXT_OBSERVATION: obs + golden[f"{prefix}/delta_state"]}, [len(obs)])
    return td if noise is None else td.set(NOISE, noise)


def total(out):
    return out["loss_residual"] + out["loss_params"] + out["loss_kl"]


@pytest.fixture(params=NAMES)
def golden(request):
    file = Golden("hyar", request.param)
    yield file
    print(file.name, {key: f"{value:.1e}" for key, value in file.largest.items()})


def test_forward(golden):
    """Eq. (1) to (5)."""
    codec, (obs, choice, params) = make(golden).codec, inputs(golden)
    golden.check("embedding", codec.embed(choice), golden["out/embedding"], 1e-6)
    mean, std = codec.encode(obs, choice, params)
    golden.check("mean", mean, golden["out/mean"], 1e-6)
    golden.check("std", std, golden["out/std"], 1e-6)
    decoded = codec.decode(obs, choice, golden["out/z"])
    both = codec.reconstruct(obs, choice, params, golden["in/eps"])
    golden.check("log std", both[1].exp(), golden["out/std"], 1e-6)
    for ours, same, theirs in zip(decoded, both[2:], ("param_recon", "delta_state_pred"), strict=True):
        golden.check(theirs, ours, golden[f"out/{theirs}"], 1e-6)
        golden.check(theirs, same, golden[f"out/{theirs}"], 1e-6)
        assert_close(ours.atanh(), golden[f"out/{theirs}_raw"], rtol=1e-4, atol=1e-5)


def test_losses_and_gradients(golden):
    """Eq. (6)."""
    loss = make(golden)
    out = loss(transitions(golden, noise=golden["in/eps"]))
    for ours, theirs in (("loss_residual", "loss_state"), ("loss_params", "loss_param_x2"), ("loss_kl", "loss_kl_x0.5"),
                         ("residual", "loss_state")):
        golden.check(ours, out[ours].double(), golden[f"out/{theirs}"], 1e-6)
    golden.check("total", total(out).double(), golden["out/loss_total"], 1e-6)
    assert_close(loss.last_total, total(out))
    total(out).backward()
    for theirs, ours in PARAMETERS.items():
        golden.check("gradient", loss.codec.get_parameter(ours).grad, golden[f"grad/{theirs}"], 1e-6)


def test_clamp(golden):
    """The standard deviation stays within e^-4 and e^15."""
    codec = make(golden).codec
    with torch.no_grad():
        codec.encoder["log_std"].bias.copy_(golden["clamp/log_std_bias"])
    std = codec.encode(*inputs(golden))[1].detach()
    assert_close(std, golden["clamp/std"], rtol=1e-5, atol=0)
    ends = torch.tensor([-4.0, 15.0]).exp()
    assert (std[:, 0] == ends[0]).all() and (std[:, -1] == ends[1]).all()


def test_lookup(golden):
    """Eq. (7), also for other leading dimensions."""
    codec, query = make(golden).codec, golden["nn/query"]
    golden.check("score", -codec.distances(query).square(), golden["nn/score"], 1e-6)
    assert torch.equal(codec.choose(query), golden["nn/index"]) and len(golden["nn/index"].unique()) > 1
    assert torch.equal(codec.choose(query.view(4, 8, 1, -1)), golden["nn/index"].view(4, 8, 1))


def test_bounds_are_order_statistics(golden):
    """Eq. (8), exactly."""
    codec = make(golden).codec
    cases = [("z", "border_rate2_n200", 96), ("z", "border_rate5_n200", 90), ("z5000", "bounds_rate2_n5000", 96)]
    for source, bounds, percent in cases[:2] if golden.name != "vae_platform" else cases:
        codec.set_bounds(golden[f"zrange/{source}"], 0.25, range_percent=percent)
        assert torch.equal(torch.stack([codec.high, codec.low], -1), golden[f"zrange/{bounds}"])
    assert codec.residual_error == 0.25


def test_calibration_and_the_affine_map(golden):
    """The pass over a batch, and eq. (9)."""
    loss = make(golden)
    loss.calibrate(transitions(golden, "crate_in"), golden["crate_in/eps"])
    codec = loss.codec
    golden.check("bounds", torch.stack([codec.high, codec.low], -1), golden["crate_out/bounds_up_down"], 1e-6)
    golden.check("residual error", codec.residual_error.double(), golden["crate_out/recon_s"], 1e-6)
    exact = codec.double()
    exact.high.copy_(golden["crate_out/bounds_up_down"][:, 0])
    exact.low.copy_(golden["crate_out/bounds_up_down"][:, 1])
    golden.check("latent", exact.to_latent(golden["map/action"]), golden["map/latent"], 1e-7)
    golden.check("back", exact.to_policy(golden["map/latent"]), golden["map/back"], 1e-6)
    assert_close(exact.to_policy(exact.to_latent(golden["map/action"])), golden["map/action"])


@pytest.mark.parametrize("optimizer, after", [("adam", "persistent_adam_3"), ("rebuilt", "rebuilt_adam_3")])
def test_three_steps(golden, optimizer, after):
    """One Adam for all, and one that is rebuilt before each step, whose steps are the gradient's signs."""
    loss = make(golden, optimizer=optimizer, lr=LR)
    update, = loss.updates("hyar", None, optimizer=None)
    named = dict(loss.codec.named_parameters())
    for k, noise in enumerate(golden["in/eps_train"]):
        before = {name: parameter.detach().clone() for name, parameter in named.items()}
        update.step(transitions(golden, noise=noise))
        if optimizer == "adam":
            golden.check("losses", loss.last_total.double(), golden["persistent_losses"][k], 1e-6)
            continue
        for name, parameter in named.items():
            expected = -LR * parameter.grad / (parameter.grad.abs() + 1e-8)
            assert_close(parameter.detach() - before[name], expected, rtol=0, atol=LR * 2e-3)
            assert (expected.abs()[parameter.grad.abs() > 1e-5] > 0.998 * LR).all()
    for theirs, ours in PARAMETERS.items():
        golden.check(after, named[ours].detach(), golden[f"{after}/{theirs}"], 1e-6)


# ---------------------------------------------------------------------- relabelling


@pytest.fixture
def relabelling():
    file = Golden("hyar", "relabel_td3")
    yield file
    print(file.name, {key: f"{value:.1e}" for key, value in file.largest.items()})


def stored(golden):
    """Transitions [16, 1 agent], with the latent actions that the program stored."""
    action = torch.cat([golden["batch/discrete_emb"], golden["batch/parameter_emb"]], -1)
    td = TensorDict({OBSERVATION: golden["batch/state"], CHOICE: golden["batch/action"].squeeze(-1).long(),
                     PARAMS: golden["batch/param"], NEXT_OBSERVATION: golden["batch/next_state"],
                     LATENT_ACTION: action}, [16])
    return TensorDict({key: td[key].unsqueeze(1) for key in td.keys(True, True)}, [16])


def prepared(golden, **options):
    loss = make(golden, "vae", **options)
    loss.codec.high.copy_(golden["bounds_up_down"][:, 0])
    loss.codec.low.copy_(golden["bounds_up_down"][:, 1])
    loss.codec.residual_error.copy_(golden["recon_s"])
    return loss


def draws(golden, call="it1"):
    return golden[f"{call}/noise0"].unsqueeze(1), golden[f"{call}/noise2"].unsqueeze(1)


@pytest.mark.parametrize("call", ["it1", "it2"])
def test_relabelling_as_published(relabelling, call):
    """Eq. (10) to (12), with the published test of the stored latent."""
    golden, loss = relabelling, prepared(relabelling, legacy=True)
    td = stored(golden)
    out = loss.relabel(td, draws(golden, call))
    e, z = out[LATENT_ACTION].squeeze(1).split([6, 6], -1)
    golden.check("e", e, golden[f"{call}/discrete_emb_used"], 1e-6)
    golden.check("z", z, golden[f"{call}/parameter_emb_used"], 1e-6)
    noted = loss.metrics()
    for ours, theirs in (("discrete", "discrete"), ("params", "param")):
        kept, expected = noted[f"codec/keep_{ours}"].double(), golden[f"{call}/keep_rate_{theirs}"]
        assert_close(kept, expected)
        assert 0 < expected < 1
    assert not torch.equal(out[LATENT_ACTION], td[LATENT_ACTION])


def test_errors_of_the_stored_latent(relabelling):
    """With the policy's numbers, as published, and with the latent that they stand for."""
    golden = relabelling
    for legacy, name in ((True, "err_official"), (False, "err_with_latent_rescale")):
        loss, td = prepared(golden, legacy=legacy), stored(golden)
        errors = loss.residual_errors(loss.read(td), td[LATENT_ACTION][..., 6:]).detach()
        golden.check(name, errors.squeeze(1), golden[f"aux/{name}"], 1e-6)
    assert not torch.allclose(golden["aux/err_official"], golden["aux/err_with_latent_rescale"])


def test_corrected_relabelling(relabelling):
    """Kept is what the corrected errors say; a threshold between the two tests' errors tells them apart."""
    golden, td = relabelling, stored(relabelling)
    official, corrected = golden["aux/err_official"], golden["aux/err_with_latent_rescale"]
    row = (official - corrected).abs().argmax()
    threshold = (official[row] + corrected[row]) / 2
    keep = {}
    for legacy, errors in ((True, official), (False, corrected)):
        loss = prepared(golden, legacy=legacy, relabel_threshold=2.0)
        loss.codec.residual_error.copy_(threshold / 2)
        z = loss.relabel(td, draws(golden))[LATENT_ACTION].squeeze(1)[:, 6:]
        keep[legacy] = errors < threshold
        mean, std = loss.codec.encode(*(td[key].squeeze(1) for key in (OBSERVATION, CHOICE, PARAMS)))
        drawn = loss.codec.to_policy(mean + std * golden["it1/noise2"]).clamp(-1, 1).detach()
        assert_close(z, torch.where(keep[legacy].unsqueeze(-1), golden["batch/parameter_emb"].clamp(-1, 1), drawn))
    assert keep[True][row] != keep[False][row] and 0 < keep[False].sum() < 16
