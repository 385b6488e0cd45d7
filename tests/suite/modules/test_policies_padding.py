"""Actors of agents with fewer choices, or shorter actions, than the largest one."""

import math

import pytest
import torch
from tensordict import TensorDict
from torch.testing import assert_close

from suite.losses import PolicyLoss
from suite.modules import make_actor
from suite.modules.policies import ActorNetwork
from suite.specs import ACTION, ACTION_MASK, LOG_PROB, OBSERVATION, Specs

torch.set_num_threads(1)

COMMON = dict(n_agents=2, obs_dim=3, agent_types=(0, 1))
# agent 0 has the first of two dimensions only
SHORT = Specs(action_dim=2, discrete=False, low=-torch.ones(2, 2), high=torch.ones(2, 2),
              action_mask=torch.tensor([[True, False], [True, True]]), **COMMON)
FULL = Specs(action_dim=2, discrete=False, low=-torch.ones(2, 2), high=torch.ones(2, 2), **COMMON)
KINDS = [("normal", False), ("normal", True), ("tanh_normal", False), ("tanh_normal", True)]


def actor_of(specs, head="normal", state_dependent_scale=False, recurrent_dim=0):
    torch.manual_seed(0)
    return make_actor(specs, {}, share="none", agent_id=False, cells=[8], activation="tanh", init="default",
                      recurrent_dim=recurrent_dim, head=head, state_dependent_scale=state_dependent_scale,
                      device="cpu")


def batch_of(rows=16):
    td = TensorDict({}, [rows])
    td["agents"] = TensorDict({}, [rows, 2])
    td[OBSERVATION] = torch.randn(rows, 2, 3, generator=torch.Generator().manual_seed(1))
    return td


def test_a_choice_that_an_agent_does_not_have_by_hand():
    """C10 of the specification: logits [2, 1, 0, 7] of which the last is padding cost 0.407605964 at choice 0."""
    specs = Specs(n_agents=1, obs_dim=3, action_dim=4, discrete=True, agent_types=(0,), has_mask=True,
                  action_mask=torch.tensor([[True, True, True, False]]))
    actor = actor_of(specs)
    out = dict(network_of(actor).out.named_parameters())
    with torch.no_grad():
        out["weight"].zero_()
        out["bias"].copy_(torch.tensor([2.0, 1.0, 0.0, 7.0]).view_as(out["bias"]))
    td = TensorDict({OBSERVATION: torch.zeros(1, 1, 3), ACTION_MASK: specs.action_mask[None]}, [1])
    dist = actor.get_dist(td)
    assert_close(-dist.log_prob(torch.zeros(1, 1, dtype=torch.int64)), torch.full((1, 1), 0.407605964))
    assert dist.probs[0, 0, 3] == 0
    assert_close(dist.entropy(), torch.full((1, 1), 0.832395582))  # that of the three choices alone, C3


def network_of(actor):
    return next(module for module in actor.modules() if isinstance(module, ActorNetwork))


@pytest.mark.parametrize(("head", "state_scale"), KINDS)
def test_a_dimension_that_an_agent_does_not_have_leaves_the_ratio_alone(head, state_scale):
    actor, td = actor_of(SHORT, head, state_scale), batch_of()
    with torch.no_grad():
        actor(td)
        other = td.clone()
        other["agents", "action"][:, 0, 1] = 0.3  # another number where there is no action

        def log_probs():
            return torch.stack([actor.get_dist(x).log_prob(x[ACTION]) for x in (td, other)])

        before = log_probs()
        assert_close(before[0], td[LOG_PROB])
        random = torch.Generator().manual_seed(2)
        for parameter in actor.parameters():
            parameter.add_(0.3 * torch.randn(parameter.shape, generator=random))
        ratio = log_probs() - before
    assert_close(ratio[0], ratio[1], atol=1e-5, rtol=0)
    assert ratio.abs().mean() > 0.05


@pytest.mark.parametrize(("head", "state_scale"), KINDS)
def test_it_passes_no_gradient(head, state_scale):
    actor, td = actor_of(SHORT, head, state_scale), batch_of()
    with torch.no_grad():
        actor(td)
    td["agents", "advantage"] = torch.linspace(-1, 1, 16)[:, None, None].expand(16, 2, 1)
    loss = PolicyLoss(actor, clip=0.2, entropy_coef=0.1)
    terms = loss(td.select(*loss.in_keys))
    (terms["loss_policy"] + terms["loss_entropy"]).backward()
    network = network_of(actor)
    bias = dict(network.out.named_parameters())["bias"].grad.view(2, -1)  # [agents, outputs]
    assert (bias[0, 1::2] == 0).all() and (bias[0, ::2] != 0).all() and (bias[1] != 0).all()
    if not state_scale:
        assert network.log_scale.grad[0, 1] == 0 and network.log_scale.grad[0, 0] != 0


def test_it_adds_nothing_to_the_entropy_of_a_normal():
    td = batch_of()
    dist = actor_of(SHORT).get_dist(td)
    unit = 0.5 + 0.5 * math.log(2 * math.pi)  # of one dimension with deviation 1
    assert_close(dist.entropy()[0], torch.tensor([unit, 2 * unit]))


@pytest.mark.parametrize(("head", "state_scale"), KINDS)
def test_agents_that_have_all_act_as_without_padding(head, state_scale):
    td = batch_of()
    short, full = (actor_of(specs, head, state_scale).get_dist(td) for specs in (SHORT, FULL))
    assert torch.equal(short.loc[:, 1], full.loc[:, 1]) and torch.equal(short.scale[:, 1], full.scale[:, 1])
    assert torch.equal(short.loc[:, 0, 0], full.loc[:, 0, 0]) and (short.loc[:, 0, 1] == 0).all()


def test_a_recurrent_actor_has_it_too():
    actor, td = actor_of(SHORT, recurrent_dim=4), batch_of()
    td["agents", "memory"], td["is_init"] = torch.zeros(16, 2, 4), torch.ones(16, 1, dtype=torch.bool)
    assert (actor.get_dist(td).loc[:, 0, 1] == 0).all()
