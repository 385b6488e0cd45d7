"""A loss that runs the encoders itself: what it reads, computes and trains."""

import torch
from tensordict import TensorDict
from tensordict.nn import TensorDictModule
from torch import nn
from torch.testing import assert_close

from suite.losses import ValueLoss
from suite.losses.encoded import ENCODERS, Encoded
from suite.specs import OBSERVATION, VALUE, VALUE_TARGET
from tests.batches import assert_unchanged

FEATURE = ("agents", "feature")


def make(trained=()):
    """V = 3 z with z = 2 o, and a target of 0."""
    encoder, critic = nn.Linear(1, 1, bias=False), nn.Linear(1, 1, bias=False)
    with torch.no_grad():
        encoder.weight.fill_(2.0)
        critic.weight.fill_(3.0)
    plain = ValueLoss(TensorDictModule(critic, in_keys=[FEATURE], out_keys=[VALUE]), clip=None, kind="l2")
    encoders = [TensorDictModule(encoder, in_keys=[OBSERVATION], out_keys=[FEATURE])]
    return Encoded(plain, encoders, [encoder.weight] if trained else ()), plain, encoder, critic


def minibatch(stored):
    td = TensorDict(batch_size=[4])
    td[OBSERVATION], td[VALUE_TARGET] = torch.ones(4, 2, 1), torch.zeros(4, 2, 1)
    td[FEATURE] = torch.full((4, 2, 1), stored)
    return td


def test_features_are_computed_and_stored_ones_ignored():
    """(3 * 2 * 1)^2 = 36, whatever was stored; as it was stored, (3 * 5)^2."""
    loss, plain, *_ = make()
    td = minibatch(5.0)
    before = td.clone()
    assert loss(td)["loss_value"].item() == 36 and plain(td)["loss_value"].item() == 225
    assert_unchanged(td, before)
    assert FEATURE not in loss.in_keys and {OBSERVATION, VALUE_TARGET} == set(loss.in_keys)
    assert loss(td.select(*loss.in_keys))["loss_value"].item() == 36


def test_a_gradient_reaches_both_networks():
    """d (c e)^2 / d e = 2 c^2 e = 36, d / d c = 2 c e^2 = 24."""
    loss, _, encoder, critic = make(trained=True)
    loss(minibatch(5.0))["loss_value"].backward()
    assert_close(encoder.weight.grad, torch.tensor([[36.0]]))
    assert_close(critic.weight.grad, torch.tensor([[24.0]]))


def test_what_is_trained_is_a_part_of_its_own_and_no_submodule():
    loss, _, encoder, critic = make(trained=True)
    assert loss.networks("critic") == {"critic": [critic.weight], ENCODERS: [encoder.weight]}
    assert [id(p) for p in loss.parameters()] == [id(critic.weight)]
    assert make()[0].networks("critic").keys() == {"critic"}
