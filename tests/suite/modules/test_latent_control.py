"""Actors into a box, hierarchical ones, and critics of observation and action."""

import pytest
import torch
from torch.testing import assert_close

from suite.modules.latent_control import make_box_actor, make_critics, make_hierarchical_actor
from tests.batches import make_specs

SIZES = dict(share="all", agent_id=False, cells=(8,), activation="relu", init="default", device="cpu")


def hybrid_specs(agents=2):
    return make_specs("discrete", n_agents=agents, state=False, param_mask=torch.tensor([[True], [True], [False]]))


def test_outputs_are_in_the_box_and_gradients_shrink_towards_its_sides():
    """d out / d x = (1 - a^2) of tanh, times the room that is left for a step downhill: (1 + a) / 2 for a growing
    loss; without inverting it is tanh alone."""
    x = torch.randn(5, 2, 4) * 50
    actor = make_box_actor(hybrid_specs(), 3, **SIZES)
    assert actor(x).shape == (5, 2, 3) and (actor(x).abs() <= 1).all()
    x = torch.randn(5, 2, 4)
    plain = make_box_actor(hybrid_specs(), 3, inverting=False, **SIZES)
    plain.load_state_dict(actor.state_dict())
    a = actor(x)
    assert torch.equal(a, plain(x))
    grads = [torch.autograd.grad(net(x).sum(), net.layers[-1].bias)[0] for net in (actor, plain)]
    slope = 1 - a ** 2
    assert_close(grads[1], slope.sum((0, 1)))
    assert_close(grads[0], (slope * (a + 1) / 2).sum((0, 1)))


def test_the_lower_actor_reads_the_values_of_the_upper_one():
    actor = make_hierarchical_actor(hybrid_specs(), 5, **SIZES)
    x = torch.randn(4, 2, 4)
    out = actor(x)
    assert out.shape == (4, 2, 5)
    assert_close(out[..., :3], actor.upper(x))
    assert_close(out[..., 3:], actor.lower(torch.cat([x, out[..., :3]], -1)))
    slopes = torch.autograd.grad(out[..., 3:].sum(), list(actor.upper.parameters()))
    assert all(slope.any() for slope in slopes)


@pytest.mark.parametrize("centralized", [False, True])
def test_what_a_critic_reads(centralized):
    critics = make_critics(hybrid_specs(), 3, heads=2, centralized=centralized, **SIZES)
    x, a = torch.randn(4, 2, 4), torch.rand(4, 2, 3)
    values = critics(x, a)
    assert values.shape == (2, 4, 2, 1) and not torch.equal(values[0], values[1])
    assert_close(critics.first(x, a), values[0])
    for changed in ((x + torch.tensor([[0.0], [1.0]]), a), (x, a * torch.tensor([[1.0], [0.5]]))):
        moved = critics(*changed) != values
        assert moved[..., 1, :].all() and bool(moved[..., 0, :].any()) == centralized  # the first sees the second


def test_agents_differ_by_their_number_or_their_networks():
    x = torch.randn(1, 1, 4).expand(3, 2, 4)
    for options, differ in ((dict(), False), (dict(agent_id=True), True), (dict(share="none"), True)):
        out = make_box_actor(hybrid_specs(), 3, **SIZES | options)(x)
        assert torch.equal(out[:, 0], out[:, 1]) != differ


def test_the_gradients_of_a_hierarchical_actor_are_inverted_at_its_outputs_alone():
    """What flows back through the lower actor's reading of the values is not scaled once more."""
    actor = make_hierarchical_actor(hybrid_specs(), 5, **SIZES)
    plain = make_hierarchical_actor(hybrid_specs(), 5, inverting=False, **SIZES)
    plain.load_state_dict(actor.state_dict())
    x = torch.randn(4, 2, 4)
    out = actor(x)
    room = (out.detach() + 1) / 2  # of a step downhill
    found = torch.autograd.grad(out.sum(), list(actor.parameters()))
    for ours, theirs in zip(found, torch.autograd.grad((plain(x) * room).sum(), list(plain.parameters())), strict=True):
        assert_close(ours, theirs)
