"""What the actor reads of the state model: a latent, of steps that may carry a memory, or somebody else's."""

import pytest
import torch
from torch.testing import assert_close

from suite.modules.policy_input import PolicyInput
from suite.modules.state_model import LATENT, PARTS, PAST, PREV_VALID, StateModel
from suite.specs import OBSERVATION
from tests.batches import make_past_batch, make_specs, shaken

torch.set_num_threads(1)
KINDS = ["discrete", "continuous"]
H = 5


def make_model(specs, **options):
    return shaken(StateModel(specs, **dict(latent_dim=3, cells=[8, 6], parts=PARTS, others="all") | options))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("latent", ["mean", "sample", "mean_logstd"])
@pytest.mark.parametrize("with_latent, with_actions", [(True, False), (True, True), (False, True)])
def test_what_the_actor_reads(kind, latent, with_latent, with_actions):
    specs = make_specs(kind)
    model, td = make_model(specs), make_past_batch(specs, 3, 2)  # of whose first steps the past is not valid
    known = model.infer_batch(td)
    torch.manual_seed(3)
    parts = {"mean": [known.mean], "mean_logstd": [known.mean, known.log_sigma],
             "sample": [known.mean + known.log_sigma.exp() * torch.randn(3, 2, 3, 3)]}[latent] if with_latent else []
    if with_actions:
        parts.append(model.action_model.feature(known.action) * td[PREV_VALID])
    torch.manual_seed(3)
    network = PolicyInput(model, latent, with_latent=with_latent, with_actions=with_actions)
    out = network(*(td[key] for key in model.keys))
    assert_close(out, torch.cat(parts, -1).detach())
    assert not out.requires_grad


def test_without_a_memory_nothing_is_carried():
    specs = make_specs("discrete")
    model = make_model(specs)
    network = PolicyInput(model, "mean")
    assert model.keys == [OBSERVATION, *PAST] == network.in_keys and network.out_keys == [LATENT]
    assert network.carried == {} and model.infer_batch(make_past_batch(specs, 2, 3)).memory == ()


@pytest.mark.parametrize("shape", [(7,), (4, 6)])
@pytest.mark.parametrize("with_latent, with_actions", [(True, False), (True, True), (False, True)])
def test_the_policy_takes_single_steps_from_the_states_given(shape, with_latent, with_actions):
    """Also over [N, T], as the value of the next observations needs it."""
    specs = make_specs("discrete")
    model = make_model(specs, memory_dim=H)
    td = make_past_batch(specs, *(shape if len(shape) == 2 else (7, 2)), memory=H)
    td = td if len(shape) == 2 else td[:, 1]
    network = PolicyInput(model, "mean", with_latent=with_latent, with_actions=with_actions)
    latent, *states = network(*(td[key] for key in network.in_keys))
    single = td.reshape(-1)
    known = model.infer(*(single[key] for key in model.keys))
    parts = [known.mean] * with_latent + [known.action.softmax(-1).flatten(-2) * single[PREV_VALID]] * with_actions
    assert_close(latent, torch.cat(parts, -1).unflatten(0, shape))
    for mine, theirs in zip(states, known.memory, strict=True):
        assert torch.equal(mine, theirs.unflatten(0, shape)) and not mine.requires_grad


def test_a_shuffled_latent_leaves_the_memories_alone():
    specs = make_specs("discrete")
    model, td = make_model(specs, memory_dim=H), make_past_batch(specs, 8, 3, memory=H)[:, 1]
    own, *states = PolicyInput(model, "mean")(*(td[key] for key in model.keys))
    other, *same = PolicyInput(model, "mean", shuffle=True)(*(td[key] for key in model.keys))
    rows = torch.cdist(own.flatten(1), other.flatten(1)).argmin(0)
    assert torch.equal(own[rows], other) and not torch.equal(own, other)
    assert all(torch.equal(a, b) for a, b in zip(states, same, strict=True))
