"""Reward terms by hand: error, disagreement and change of belief; their scale, limit and masks."""

import math

import pytest
import torch
from torch.testing import assert_close

from suite.losses import MOALoss
from suite.losses.curiosity import Curiosity
from suite.modules.state_model import MEMORY, PAST
from suite.specs import ALIVE, OBSERVATION
from tests.batches import make_past_batch, make_specs, shaken

SMALL = dict(latent_dim=2, num_cells=16, depth=1)


def make(name, *, scale="std", alive=None, **options):
    specs = make_specs("discrete", alive=alive)
    loss = shaken(MOALoss(specs, **SMALL, **options))
    return Curiosity([name], loss.model, loss.world_loss, scale=scale, alive=alive), loss, make_batch(specs)


def make_batch(specs, *shape):
    td = make_past_batch(specs, *(shape or (3, 4)))
    for key in PAST:  # what a collector hands on; one step later it is the past
        td["next", *key] = torch.cat([td[key][:, 1:], td[key][:, :1]], 1)
    td["next", *PAST[2]].fill_(1)
    return td


def predicting(loss, monkeypatch, values):
    """Members that predict these numbers for every feature."""
    monkeypatch.setattr(loss.model.world_model, "each", lambda u, joint: (
        torch.tensor(values).view(-1, *[1] * u.ndim).expand(-1, *u.shape), torch.zeros(len(values), *u.shape[:-1], 1),
        torch.zeros(len(values), *u.shape[:-1], 0)))


def test_disagreement_is_paid_in_units_of_its_running_deviation(monkeypatch):
    """Members that say 0, 1 and 2 disagree by 2/3 everywhere; a batch of which half says 0 has the deviation 1/3."""
    term, loss, td = make("disagreement", ensemble=3)
    predicting(loss, monkeypatch, [0.0, 1.0, 2.0])
    assert_close(term._disagreement(td), torch.full((3, 4, 3), 2 / 3))
    values = torch.tensor([0.0, 2 / 3]).repeat(18).view(3, 4, 3)
    monkeypatch.setattr(term, "_disagreement", lambda batch: values)
    paid = term(td)["disagreement"]
    assert_close(paid, (values / values.std()).unsqueeze(-1), rtol=1e-3, atol=1e-4)
    assert_close(term.moments["disagreement"].var, values.var().view(1), rtol=1e-3, atol=1e-4)
    monkeypatch.setattr(term, "_disagreement", lambda batch: 100 * values)
    term.moments["disagreement"].count.fill_(1e9)  # what one batch adds does not move it any more
    assert_close(term(td)["disagreement"], torch.where(values > 0, 5.0, 0.0).unsqueeze(-1))


def test_features_that_never_vary_are_not_disputed(monkeypatch):
    term, loss, td = make("disagreement", ensemble=3)
    monkeypatch.setattr(loss.model.world_model, "each", lambda u, joint: (
        torch.arange(3.0).view(3, 1, 1, 1, 1) * torch.tensor([1.0, 1, 7, 7]), u, u))
    loss.model.scaler.moments.var[2:] = 0.0
    assert_close(term._disagreement(td), torch.full((1, 1, 1), 2 / 3))


def test_a_new_ensemble_does_not_disagree():
    specs = make_specs("discrete")
    loss, td = MOALoss(specs, **SMALL, ensemble=4, disagreement=0.1), make_past_batch(specs, 3, 4)
    assert loss.reward_weights == {"disagreement": 0.1}
    term = loss.reward_terms(td)["disagreement"]
    assert term.shape == (3, 4, 3, 1) and not term.any()


@pytest.mark.parametrize("scale", ["none", "std"])
def test_curiosity_and_its_scale(scale):
    term, loss, td = make("curiosity", scale=scale)
    error = term._curiosity(td).unsqueeze(-1)
    predicted = loss.world_loss.predict(td)[0]
    assert_close(error[..., 0], (predicted - loss.model.scaler(td["next", *OBSERVATION])).square().mean(-1))
    expected = error if scale == "none" else error / error.std()
    assert_close(term(td)["curiosity"], expected.clamp_max(5.0), rtol=1e-3, atol=1e-4)
    assert (scale == "std") == ("curiosity" in term.moments)


def test_agents_that_left_do_not_count_in_the_deviation(monkeypatch):
    term, _, td = make("curiosity", alive=ALIVE)
    values = torch.arange(36.0).view(3, 4, 3)
    values[~td[ALIVE]] = 1e6
    monkeypatch.setattr(term, "_curiosity", lambda batch: values)
    term(td)
    assert_close(term.moments["curiosity"].var, values[td[ALIVE]].var().view(1), rtol=1e-3, atol=1e-3)


def test_latent_surprise_by_hand(monkeypatch):
    """From N(0, 1) to N(1, 1) are 0.5 nats, to N(0, 2^2) 0.806852819."""
    term, _, td = make("latent_surprise")
    beliefs = {(): ([0.0, 0.0], [0.0, 0.0]), ("next",): ([1.0, 0.0], [0.0, math.log(2)])}
    monkeypatch.setattr(term, "_belief", lambda batch, *root: tuple(map(torch.tensor, beliefs[root])))
    assert term._latent_surprise(td).item() == pytest.approx(0.5 + 0.806852819, abs=1e-6)


def test_latent_surprise_compares_each_step_with_the_one_after_it():
    term, loss, td = make("latent_surprise")
    now = loss.model.infer(*(td[key] for key in loss.model.keys))
    after = loss.model.infer(*(td["next", *key] for key in loss.model.keys))
    found = term._latent_surprise(td)
    by_hand = (now.log_sigma - after.log_sigma + ((2 * after.log_sigma).exp() + (after.mean - now.mean).square())
               / (2 * (2 * now.log_sigma).exp()) - 0.5).sum(-1)
    assert_close(found, by_hand, rtol=1e-4, atol=1e-5)
    for key in loss.model.keys:  # nothing new, no change of mind
        td["next", *key] = td[key]
    assert_close(term._latent_surprise(td), torch.zeros(3, 4, 3))


def test_latent_surprise_reads_the_stored_memory():
    specs = make_specs("discrete")
    loss, td = shaken(MOALoss(specs, **SMALL, memory="gru", memory_dim=6)), make_batch(specs)
    for key in MEMORY:
        td[key], td["next", *key] = torch.randn(3, 4, 3, 6), torch.randn(3, 4, 3, 6)
    term = Curiosity(["latent_surprise"], loss.model, loss.world_loss, scale="none")
    assert term(td)["latent_surprise"].shape == (3, 4, 3, 1)
    steps = [loss.model.infer(*(td[:, t][key] for key in loss.model.keys)).mean for t in range(4)]
    assert_close(term._belief(td)[0], torch.stack(steps, 1))
