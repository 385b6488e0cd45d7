"""The CVAE loss with hand-set Gaussians and reconstructions, and who learns from what."""

import math

import pytest
import torch
from tensordict import TensorDict
from torch.testing import assert_close

from suite.losses.cvae import CVAELoss
from suite.modules.state_model import PARTS, PAST, PREV_ACTION, PREV_OBSERVATION, PREV_VALID, StateModel
from suite.specs import ACTION, ALIVE, OBSERVATION, PRIVILEGED
from tests.batches import assert_unchanged, make_specs

torch.set_num_threads(1)
# two dimensions with KL(student || teacher) = 0.443147181 + 0.806852819 = 1.25
STUDENT = torch.tensor([0.0, 1.0]), torch.tensor([1.0, 2.0]).log()
TEACHER = torch.tensor([1.0, 1.0]), torch.tensor([2.0, 1.0]).log()


def make_loss(specs, *, parts=PARTS, latent_dim=2, **options):
    torch.manual_seed(0)
    model = StateModel(specs, latent_dim=latent_dim, cells=[16], parts=parts, others="all")
    return CVAELoss(specs, model, latent_dim=latent_dim, **{"cells": [16]} | options)


def make_td(specs, *shape, seed=0, valid=None):
    torch.manual_seed(seed)
    n, e = specs.n_agents, specs.action_dim
    td = TensorDict({OBSERVATION: torch.randn(*shape, n, specs.obs_dim)}, batch_size=shape)
    valid = torch.ones(*shape, dtype=torch.bool) if valid is None else valid
    td[PREV_VALID] = valid[..., None, None].expand(*shape, n, 1).float()
    td[PREV_OBSERVATION] = torch.randn(*shape, n, specs.obs_dim) * td[PREV_VALID]
    td[PREV_ACTION] = torch.rand(*shape, n, n * e) * td[PREV_VALID]
    td[ACTION] = torch.randint(e, (*shape, n)) if specs.discrete else 0.5 * torch.randn(*shape, n, e)
    if specs.hidden_dim:
        td[PRIVILEGED] = torch.randn(*shape, n, specs.hidden_dim)
    td[ALIVE] = torch.ones(*shape, n, dtype=torch.bool)
    return td


def silent(network, says=0.0):
    """The same network with an output that depends on nothing."""
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.zero_()
        network.net[-1].bias.fill_(says)


def setting(loss, monkeypatch, *, student=STUDENT, teacher=TEACHER, miss=0.5):
    """Encoders and the student's decoder by hand; the decoder misses x by that much everywhere."""
    seen = {}

    def infer(observation, *past):
        known = type(loss.model).infer(loss.model, observation, *past)
        known.mean, known.log_sigma = (part.expand(*known.x.shape[:-1], 2) for part in student)
        seen["x"] = known.x
        return known

    monkeypatch.setattr(loss.model, "infer", infer)
    monkeypatch.setattr(loss.decoder, "forward", lambda z: seen["x"] + miss)
    if loss.teacher is not None:
        monkeypatch.setattr(loss.teacher, "forward", lambda x, c, y: tuple(
            part.expand(*x.shape[:-1], 2) for part in teacher))
    return loss


# 0.5^2 + 0.03 * 1.25; the other direction: ln 2 + (1/4 + 1/4 - 1) / 2 in reverse: -ln 2 + (4 + 1 - 1) / 2 and
# -ln 2 + (4 - 1) / 2 with the roles exchanged
@pytest.mark.parametrize("options, rec, kl", [
    ({}, 0.25, 1.25), ({"kl_weights": (0.8, 0.2)}, 0.25, 1.25), ({"kl_weights": (1.0, 0.1)}, 0.25, 1.375),
    ({"kl_direction": "teacher_to_student"}, 0.25, (-math.log(2) + 2) + (math.log(2) + 0.5 * (0.25 - 1))),
    ({"rec_coef": 3.0}, 0.75, 1.25), ({"reduction": "sum"}, 0.25 * (4 + 5 + 4), 1.25),  # observed, predicted, missed
    ({"free_bits_dim": 0.6}, 0.25, 0.6 + 0.806852819),
    ({"free_nats": 1.5}, 0.25, 1.5), ({"use_teacher": False}, 0.25, 0.5 * 3 - math.log(2) + 0.5)])
def test_reconstruction_and_kl_by_hand(options, rec, kl, monkeypatch):
    specs = make_specs("discrete", n_agents=2)
    loss = setting(make_loss(specs, **options), monkeypatch)
    out = loss(make_td(specs, 6))
    assert out["loss_rec"].item() == pytest.approx(rec, abs=1e-6)
    assert out["loss_kl"].item() == pytest.approx(0.03 * kl, abs=1e-6)
    if not options:
        assert (out["loss_rec"] + out["loss_kl"]).item() == pytest.approx(0.2875, abs=1e-6)
        assert out["kl"].item() == pytest.approx(1.25, abs=1e-6)
    assert ("loss_teacher" in set(out.keys())) == options.get("use_teacher", True)


def test_first_steps_and_agents_that_left_do_not_count(monkeypatch):
    specs = make_specs("discrete", n_agents=2, alive=ALIVE)
    loss = setting(make_loss(specs, parts=("obs",)), monkeypatch)
    td = make_td(specs, 4, valid=torch.tensor([False, True, True, True]))
    td[ALIVE][1, 0] = td[ALIVE][2] = False
    kl = torch.full((4, 2), 1e6)
    kl[1, 1], kl[3] = 1.0, 2.5  # what counts
    student = torch.stack([(2 * kl).sqrt(), torch.zeros(4, 2)], -1), torch.zeros(4, 2, 2)
    setting(loss, monkeypatch, student=student, teacher=(torch.zeros(2), torch.zeros(2)))
    out = loss(td)
    assert out["kl"].item() == pytest.approx(2.0) and out["loss_kl"].item() == pytest.approx(0.06)
    assert out["loss_rec"].item() == pytest.approx(0.25, abs=1e-6)


def test_without_any_valid_step_there_is_nothing_to_learn():
    specs = make_specs("discrete", n_agents=2)
    loss = make_loss(specs)
    out = loss(make_td(specs, 4, valid=torch.zeros(4, dtype=torch.bool)))
    total = sum(value for key, value in out.items() if key.startswith("loss_"))
    total.backward()
    assert total == 0 and not any(p.grad is not None and p.grad.any() for p in loss.parameters())


@pytest.mark.parametrize("kind", ["discrete", "continuous"])
@pytest.mark.parametrize("hidden", [0, 3])
def test_what_the_teacher_sees(kind, hidden):
    """The others' standardised observations, what they do at this step, and the task's hidden variables."""
    specs = make_specs(kind, hidden_dim=hidden)
    loss, td = make_loss(specs), make_td(specs, 5)
    loss.model.scaler.moments.mean.fill_(0.5)
    y = loss.privileged(td)
    e, u = specs.action_dim, td[OBSERVATION] - 0.5
    did = loss.model.actions.encode(td[ACTION])
    assert y.shape == (5, 3, 2 * (4 + e) + hidden)
    for i, (j, k) in enumerate([(1, 2), (0, 2), (0, 1)]):
        parts = [u[:, j], u[:, k], did[:, j], did[:, k]] + ([td[PRIVILEGED][:, i]] if hidden else [])
        assert_close(y[:, i], torch.cat(parts, -1), rtol=1e-6, atol=1e-6)
    assert (PRIVILEGED in loss.in_keys) == bool(hidden)


# decoder of the teacher silent: errors are the squares of the targets; uniform over 5 actions; Gaussian prior term
# (1/4 + 1 - 1) / 2 + ln 2 = 0.818147181 in each of two dimensions
@pytest.mark.parametrize("coef", [0.1, 1.0])
@pytest.mark.parametrize("hidden", [0, 3])
@pytest.mark.parametrize("kind", ["discrete", "continuous"])
def test_teacher_loss_by_hand(kind, hidden, coef, monkeypatch):
    specs = make_specs(kind, hidden_dim=hidden)
    loss, td = make_loss(specs, beta_teacher=0.1, teacher_coef=2.0, action_coef=coef), make_td(specs, 5)
    setting(loss, monkeypatch, teacher=(torch.ones(2), torch.full((2,), 0.5).log()))
    with torch.no_grad():
        for parameter in loss.teacher_decoder.parameters():
            parameter.zero_()
    known, y = loss.model.infer(td[OBSERVATION], *(td[key] for key in PAST)), loss.privileged(td)
    e = 2 * specs.action_dim
    expected = known.x.square().mean() + y[..., :8].square().mean() + 0.1 * 2 * 0.818147181
    if kind == "discrete":
        expected += coef * math.log(5)
    else:  # two actions of each other: 0.5 a^2 + log sqrt(2 pi)
        expected += coef * 2 * (0.5 * y[..., 8:8 + e].square().mean() + 0.5 * math.log(2 * math.pi))
    if hidden:
        expected += y[..., 8 + e:].square().mean()
    assert loss(td)["loss_teacher"].item() == pytest.approx(2 * expected.item(), rel=1e-5)


@pytest.mark.parametrize("kind", ["discrete", "continuous"])
@pytest.mark.parametrize("target", ["x", "y", "xy"])
@pytest.mark.parametrize("hidden", [0, 3])
def test_y_without_what_the_others_do(kind, target, hidden, monkeypatch):
    """Silent decoders: all errors are the mean squares of what is left; the teacher's prior is met by sigma 1."""
    specs = make_specs(kind, hidden_dim=hidden)
    loss, td = make_loss(specs, action_in_y=False, rec_target=target), make_td(specs, 5)
    other = td.clone()
    other[ACTION] = 1 - other[ACTION].clamp(0, 1)
    y = loss.privileged(td)
    assert y.shape == (5, 3, 2 * 4 + hidden) and torch.equal(y, loss.privileged(other)) and ACTION not in loss.in_keys
    monkeypatch.setattr(loss.teacher, "forward", lambda x, *rest: (torch.zeros(*x.shape[:-1], 2),) * 2)
    silent(loss.decoder)
    silent(loss.teacher_decoder)
    out, x = loss(td), loss.model.infer_batch(td).x
    wanted = {"x": x, "y": y, "xy": torch.cat([x, y], -1)}[target]
    assert out["loss_rec"].item() == pytest.approx(wanted.square().mean().item(), rel=1e-5)
    expected = x.square().mean() + y[..., :8].square().mean() + (y[..., 8:].square().mean() if hidden else 0)
    assert out["loss_teacher"].item() == pytest.approx(expected.item(), rel=1e-5)


# observations 1, 2, 3 and actions 0, 0.5, 1 of agents 0, 1, 2 in all 4 and 2 entries. Alive are 0 and 1 (agent 2 is 9
# and -1 then), all, 0 alone. Decoders say 0, so that errors are squares, and 0.5 |a|^2 + ln 2 pi of actions
# pairs: 0-1, 1-0 and twice each of three: seen (4 + 1 + 2 * 14) / 8, did (0.25 + 0 + 2 * 1.25) / 8
# own: (1 + 4 + 1 + 4 + 9 + 1) / 6; the student's targets have 4 and 2 entries of each living other, and 4 own ones
@pytest.mark.parametrize("target, rec", [
    ("x", 20 / 6), ("y", (16.5 / 6 + 4 / 6 + 54.5 / 12 + 42 / 12 + 20.5 / 12) / 5),
    ("xy", (20.5 / 10 + 20 / 10 + 58.5 / 16 + 58 / 16 + 56.5 / 16 + 4 / 4) / 6)])
def test_others_that_left_are_no_targets(target, rec, monkeypatch):
    specs = make_specs("continuous", alive=ALIVE)
    loss, td = make_loss(specs, parts=("obs",), rec_target=target, action_coef=1.0), make_td(specs, 3)
    monkeypatch.setattr(loss.teacher, "forward", lambda x, *rest: (torch.zeros(*x.shape[:-1], 2),) * 2)
    td[ALIVE] = torch.tensor([[True, True, False], [True, True, True], [True, False, False]])
    seen, did = torch.tensor([1.0, 2.0, 3.0]).expand(3, 3).clone(), torch.tensor([0.0, 0.5, 1.0]).expand(3, 3).clone()
    seen[~td[ALIVE]], did[~td[ALIVE]] = 9.0, -1.0
    actions = loss.model.actions
    td[OBSERVATION] = seen.unsqueeze(-1).expand(3, 3, 4)
    td[ACTION] = actions.middle + actions.reach * did.unsqueeze(-1)
    silent(loss.decoder)
    silent(loss.teacher_decoder)
    out = loss(td)
    assert out["loss_rec"].item() == pytest.approx(rec, abs=1e-5)
    assert out["loss_teacher"].item() == pytest.approx(20 / 6 + 33 / 8 + 2.75 / 8 + math.log(2 * math.pi), abs=1e-5)


# decoders say 1; agent 1 has one action of two, which is 1, agent 0 did 0.5 and 0; or two of five choices. So agent 0
# is told 0 + ln sqrt(2 pi) of it, and agent 1 is told 0.125 + 0.5 + 2 ln sqrt(2 pi); or ln 2 and ln 5. Observations are
# 0: the student's 4 entries of each other cost 1, and its actions 0 of 1, and 0.25 + 1 of 2; a choice's 1 or 0 are
# missed by 0 and 1: 1 of 2, and 4 of 5
@pytest.mark.parametrize("kind, teacher, rec", [
    ("continuous", (0.625 + 1.5 * math.log(2 * math.pi)) / 2, (4 / 5 + 5.25 / 6) / 2),
    ("discrete", math.log(10) / 2, (5 / 6 + 8 / 9) / 2)])
def test_padded_actions_cost_nothing(kind, teacher, rec, monkeypatch):
    mask = torch.ones(2, 2 if kind == "continuous" else 5, dtype=torch.bool)
    mask[1, 1 if kind == "continuous" else 2:] = False
    specs = make_specs(kind, n_agents=2, action_mask=mask)
    loss, td = make_loss(specs, parts=("obs",), rec_target="y", action_coef=1.0), make_td(specs, 3)
    monkeypatch.setattr(loss.teacher, "forward", lambda x, *rest: (torch.zeros(*x.shape[:-1], 2),) * 2)
    td[OBSERVATION].zero_()
    if kind == "continuous":
        actions = loss.model.actions
        td[ACTION] = actions.middle + actions.reach * torch.tensor([[0.5, 0.0], [1.0, 0.7]]).expand(3, 2, 2)
    else:
        td[ACTION] = torch.tensor([4, 1]).expand(3, 2)
    silent(loss.decoder, 1.0)
    silent(loss.teacher_decoder, 1.0)
    out = loss(td)
    assert out["loss_teacher"].item() == pytest.approx(1 + 1 + teacher, abs=1e-5)
    assert out["loss_rec"].item() == pytest.approx(rec, abs=1e-5)


def test_padded_predictions_are_no_features_to_reconstruct(monkeypatch):
    """Means and log-sigmas are 0, and a decoder says 1; the padded log-sigma is a constant, far from 0."""
    specs = make_specs("continuous", n_agents=2, action_mask=torch.tensor([[True, True], [True, False]]))
    loss, td = make_loss(specs, parts=("moa",)), make_td(specs, 3)
    monkeypatch.setattr(loss.teacher, "forward", lambda x, *rest: (torch.zeros(*x.shape[:-1], 2),) * 2)
    silent(loss.model.action_model)
    silent(loss.decoder, 1.0)
    silent(loss.teacher_decoder, 1.0)
    td[OBSERVATION], td[ACTION] = torch.ones(3, 2, 4), loss.model.actions.middle.expand(3, 2, 2)
    out = loss(td)
    assert out["loss_rec"].item() == pytest.approx(1.0, abs=1e-6)
    did = 0.1 * (0.5 + 1.0 + 1.5 * math.log(2 * math.pi)) / 2
    assert out["loss_teacher"].item() == pytest.approx(1 + 0 + did, abs=1e-5)


@pytest.mark.parametrize("target", ["x", "y", "xy"])
def test_what_the_student_reconstructs(target, monkeypatch):
    specs = make_specs("discrete", hidden_dim=2)
    loss, td = make_loss(specs, rec_target=target), make_td(specs, 5)
    with torch.no_grad():
        for parameter in loss.decoder.parameters():
            parameter.zero_()
    known, y = loss.model.infer(td[OBSERVATION], *(td[key] for key in PAST)), loss.privileged(td)
    wanted = {"x": known.x, "y": y, "xy": torch.cat([known.x, y], -1)}[target]
    assert loss(td)["loss_rec"].item() == pytest.approx(wanted.square().mean().item(), rel=1e-5)
    # features that never vary are padding
    loss.model.scaler.moments.var[0] = 0.0
    loss.model.x_scaler.moments.var[0] = 0.0
    known, y = loss.model.infer(td[OBSERVATION], *(td[key] for key in PAST)), loss.privileged(td)
    x_mask, y_mask = torch.ones(known.x.shape[-1]), torch.ones(y.shape[-1])
    x_mask[0] = y_mask[0] = y_mask[4] = 0
    wanted = {"x": known.x, "y": y, "xy": torch.cat([known.x, y], -1)}[target]
    mask = {"x": x_mask, "y": y_mask, "xy": torch.cat([x_mask, y_mask])}[target]
    assert not wanted[..., mask == 0].any()
    expected = (wanted.square().sum(-1) / mask.sum()).mean().item()
    assert loss(td)["loss_rec"].item() == pytest.approx(expected, rel=1e-5)


# ---------------------------------------------------------------------- who learns from what

NETWORKS = ("action_model", "world_model", "student", "decoder", "teacher", "teacher_decoder")


def learning(loss, total):
    """Names of the networks that a loss moves."""
    loss.zero_grad(set_to_none=True)
    total.backward()
    found = {name: getattr(loss.model, name, None) or getattr(loss, name) for name in NETWORKS}
    grads = {name: [p.grad for p in network.parameters()] for name, network in found.items()}
    for name, group in grads.items():
        assert len({grad is None for grad in group}) == 1, f"{name} learns in parts"
    return {name for name, group in grads.items() if group[0] is not None}


@pytest.mark.parametrize("options, kl, rec", [
    ({}, {"student"}, {"student", "decoder"}),
    ({"kl_weights": (0.8, 0.2)}, {"student", "teacher"}, {"student", "decoder"}),
    ({"kl_weights": (0.0, 1.0)}, {"teacher"}, {"student", "decoder"}),
    ({"kl_direction": "teacher_to_student"}, {"student"}, {"student", "decoder"}),
    ({"rec_target": "xy"}, {"student"}, {"student", "decoder"})])
def test_who_learns_from_what(options, kl, rec):
    specs = make_specs("discrete", hidden_dim=2)
    loss, td = make_loss(specs, **options), make_td(specs, 6)
    before = td.clone()
    assert learning(loss, loss(td)["loss_rec"]) == rec
    assert learning(loss, loss(td)["loss_kl"]) == kl
    assert learning(loss, loss(td)["loss_teacher"]) == {"teacher", "teacher_decoder"}
    assert_unchanged(td, before)
    owned = {name: {id(p) for p in params} for name, params in loss.networks("student").items()}
    assert owned["student"] == {id(p) for net in (loss.model.student, loss.decoder) for p in net.parameters()}
    assert owned["teacher"] == {id(p) for net in (loss.teacher, loss.teacher_decoder) for p in net.parameters()}


def test_without_a_teacher_there_is_none():
    specs = make_specs("discrete")
    loss = make_loss(specs, use_teacher=False)
    assert loss.teacher is None and loss.networks("student").keys() == {"student"}
    assert set(loss(make_td(specs, 4)).keys()) == {"loss_rec", "loss_kl", "kl"}


def test_free_bits_stop_the_pull():
    specs = make_specs("discrete")
    for options in ({"free_bits_dim": 50.0}, {"free_nats": 100.0}):
        loss = make_loss(specs, **options)
        out = loss(make_td(specs, 4))
        out["loss_kl"].backward()
        assert out["loss_kl"].item() == pytest.approx(0.03 * 100) and out["kl"] < 1
        assert not any(p.grad.any() for p in loss.model.student.parameters())


def test_a_teacher_without_privilege_can_be_copied(monkeypatch):
    """y masked to zero: the KL falls below 0.05 nats on one batch, from well above."""
    specs = make_specs("discrete", n_agents=2)
    loss, td = make_loss(specs, alpha=1.0, latent_dim=4, cells=[64]), make_td(specs, 128)
    y = loss.privileged(td)
    monkeypatch.setattr(loss, "privileged", lambda td: torch.zeros_like(y))
    with torch.no_grad():
        loss.teacher.net[-1].weight.mul_(5.0)
        loss.teacher.net[-1].bias.fill_(-0.5)
    start = loss(td)["kl"].item()
    optimizer = torch.optim.Adam([p for params in loss.networks("s").values() for p in params], lr=3e-3)
    for _ in range(1500):
        out = loss(td)
        optimizer.zero_grad()
        out["loss_kl"].backward()
        optimizer.step()
        if out["kl"] < 0.05:
            break
    assert start > 0.5 and out["kl"].item() < 0.05


def test_reconstruction_needs_the_latent():
    """The decoder sees z and id only, so the error falls as the student learns to say what it saw."""
    specs = make_specs("discrete", n_agents=2)
    loss, td = make_loss(specs, alpha=0.0, parts=("obs",), latent_dim=8, cells=[32]), make_td(specs, 128)
    optimizer = torch.optim.Adam([*loss.model.student.parameters(), *loss.decoder.parameters()], lr=3e-3)
    for _ in range(300):
        out = loss(td)
        optimizer.zero_grad()
        out["loss_rec"].backward()
        optimizer.step()
    assert out["loss_rec"].item() < 0.4  # of a variance of 1


def test_order_of_frames_changes_nothing(monkeypatch):
    monkeypatch.setattr(torch, "randn_like", torch.ones_like)
    specs = make_specs("continuous", alive=ALIVE)
    loss, td = make_loss(specs), make_td(specs, 4, 6)
    td[ALIVE] = torch.rand(4, 6, 3) < 0.8
    flat = td.reshape(-1)
    mixed = flat[torch.randperm(len(flat))]
    for key, value in loss(td).items():
        assert_close(value, loss(mixed)[key])
