"""P-DQN's networks, policy and exploration, by hand and inside a collector."""

import pytest
import torch
from tensordict import TensorDict
from tensordict.nn import TensorDictModule
from torch import nn
from torch.testing import assert_close

from suite.collector import make_collector
from suite.evaluate import Evaluator
from suite.modules.exploration import EpsilonGreedy
from suite.modules.hybrid_networks import (
    ALL_PARAMS,
    PASS_THROUGHS,
    BestChoice,
    HybridQNetwork,
    ParamSlots,
    PassThrough,
    make_hybrid_q,
    make_param_network,
    make_pdqn_policy,
)
from suite.modules.lowered import Lowered
from suite.modules.q_networks import ACTION_VALUE
from suite.specs import ACTION_MASK, CHOICE, GROUP, OBSERVATION, PARAMS, Specs
from tests.slide import UNEVEN, Slide, make_hybrid_specs

torch.set_num_threads(1)
LATENT = (GROUP, "latent")
COMMON = dict(cells=[8], activation="relu", init="default", device="cpu")
SHARING = [("all", False), ("all", True), ("roles", False), ("none", True)]


# --------------------------------------------------------------- slots


def test_slots_by_hand():
    slots = ParamSlots(UNEVEN)
    assert slots.width == 3 and slots.slots.tolist() == [[0, 1], [3, 3], [2, 3]]
    assert slots.owned.tolist() == [[True, True, False], [False] * 3, [False, False, True]]
    every = torch.tensor([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0], [7.0, 8.0, 9.0]])
    found = slots(torch.tensor([2, 0, 1]), every)
    assert_close(found, torch.tensor([[3.0, 0.0], [4.0, 5.0], [0.0, 0.0]]))
    assert slots.slots.tolist() == ParamSlots(UNEVEN).slots.tolist() and not dict(slots.state_dict())


@pytest.mark.parametrize("mask", [None, torch.zeros(3, 2, dtype=torch.bool)])
def test_actions_must_be_hybrid(mask):
    with pytest.raises(ValueError, match="hybrid actions with parameters are needed"):
        make_param_network(make_hybrid_specs(param_mask=mask), {}, share="all", agent_id=False, **COMMON)


# --------------------------------------------------------------- the parameter network


@pytest.mark.parametrize(("share", "agent_id"), SHARING)
def test_parameters_are_a_network_plus_a_fixed_line(share, agent_id):
    specs, fixed = make_hybrid_specs(3), PassThrough((0.1, 0.2, 0.3), {(0, 1): 2.0, (2, 3): -1.0})
    network = make_param_network(specs, {LATENT: 2}, share=share, agent_id=agent_id, pass_through=fixed, **COMMON)
    td = TensorDict({OBSERVATION: torch.randn(7, 5, 3, 4), LATENT: torch.randn(7, 5, 3, 2)}, batch_size=[7, 5])
    out = network(td.clone())[ALL_PARAMS]
    assert out.shape == (7, 5, 3, 3)
    assert not {"weight", "bias"} & dict(network.module.named_parameters()).keys()  # nobody trains the line
    s = td[OBSERVATION]
    line = torch.stack([2 * s[..., 1] + 0.1, torch.full_like(s[..., 0], 0.2), 0.3 - s[..., 3]], -1)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.zero_()
    assert_close(network(td)[ALL_PARAMS], line)
    assert not torch.allclose(out, line)


def test_without_initialisation_the_line_is_zero_and_outputs_are_not_squashed():
    network = make_param_network(make_hybrid_specs(), {}, share="all", agent_id=False, **COMMON)
    assert not network.module.weight.any() and not network.module.bias.any()
    with torch.no_grad():
        network.module.layers[-1].bias.fill_(5.0)
    assert (network(TensorDict({OBSERVATION: torch.zeros(1, 2, 4)}, batch_size=[1]))[ALL_PARAMS] > 3).all()


# the spec's numbers: 3, 10 and 400 of 30, 720 and 430; the goal's rows read the ball's position and velocity
def test_published_pass_throughs():
    options = dict(share="all", agent_id=False, **COMMON)
    platform = make_param_network(make_hybrid_specs(1, 9, param_mask=torch.ones(3, 1, dtype=torch.bool)), {},
                                  pass_through=PASS_THROUGHS["platform"], **options).module
    assert_close(platform.bias, torch.tensor([-0.8, -0.97222, 0.86047]), atol=5e-6, rtol=0)
    assert not platform.weight.any() and platform.weight.shape == (3, 9)
    mask = torch.tensor([[True, True], [True, False], [True, False]])
    goal = make_param_network(make_hybrid_specs(1, 17, param_mask=mask), {}, pass_through=PASS_THROUGHS["goal"],
                              **options).module
    assert_close(goal.bias, torch.tensor([-0.375, 0.0, 0.857346647646, -0.857346647646]))
    expected = torch.zeros(4, 17)
    expected[0, 10], expected[0, 14], expected[1, 11], expected[1, 15] = 0.5, 0.0625, 0.833333, 0.111111
    assert_close(goal.weight, expected, atol=1e-6, rtol=0)


@pytest.mark.parametrize("fixed", [PassThrough((0.0,), {}), PassThrough((0.0,) * 3, {(3, 0): 1.0}),
                                   PassThrough((0.0,) * 3, {(0, 4): 1.0})])
def test_pass_throughs_must_fit(fixed):
    with pytest.raises(ValueError, match="but there are 3 and 4"):
        make_param_network(make_hybrid_specs(), {}, share="all", agent_id=False, pass_through=fixed, **COMMON)


# --------------------------------------------------------------- values


@pytest.mark.parametrize("multipass", [False, True])
@pytest.mark.parametrize(("share", "agent_id"), SHARING)
def test_values_of_all_choices(share, agent_id, multipass):
    torch.manual_seed(0)
    q = make_hybrid_q(make_hybrid_specs(3), {LATENT: 2}, share=share, agent_id=agent_id, multipass=multipass, **COMMON)
    td = TensorDict({OBSERVATION: torch.randn(6, 3, 4), LATENT: torch.randn(6, 3, 2)}, batch_size=[6])
    td[ALL_PARAMS] = torch.randn(6, 3, 3, requires_grad=True)
    values = q(td)[ACTION_VALUE]
    assert values.shape == (6, 3, 3)
    slopes = torch.stack([torch.autograd.grad(values[..., j].sum(), td[ALL_PARAMS], retain_graph=True)[0]
                          for j in range(3)])  # [choice, rows, agents, parameter]
    moved = (slopes != 0).flatten(1, 2).any(1)
    assert torch.equal(moved, ParamSlots(UNEVEN).owned if multipass else torch.ones(3, 3, dtype=torch.bool))


def test_multipass_is_the_network_on_inputs_with_the_others_zeroed():
    torch.manual_seed(0)
    options = dict(share="none", agent_id=True, **COMMON)
    many = make_hybrid_q(make_hybrid_specs(3), {}, multipass=True, **options)
    once = make_hybrid_q(make_hybrid_specs(3), {}, **options)
    once.load_state_dict(many.state_dict())
    s, x = torch.randn(5, 2, 3, 4), torch.randn(5, 2, 3, 3)
    copies = [x * torch.tensor(keep) for keep in ([1.0, 1, 0], [0.0, 0, 0], [0.0, 0, 1])]
    expected = torch.stack([once.module(s, copy)[..., j] for j, copy in enumerate(copies)], -1)
    assert_close(many.module(s, x), expected)
    assert not torch.allclose(once.module(s, x), expected)


def test_heads_share_nothing_and_the_first_one_acts():
    torch.manual_seed(0)
    q = make_hybrid_q(make_hybrid_specs(), {}, share="all", agent_id=False, heads=2, **COMMON).module
    s, x = torch.randn(5, 2, 4), torch.randn(5, 2, 3)
    every = q.every(s, x)
    assert every.shape == (2, 5, 2, 3) and torch.equal(every[0], q(s, x)) and not torch.allclose(every[0], every[1])
    grads = torch.autograd.grad(every[1].sum(), [*q.heads[0].parameters(), *q.heads[1].parameters()])
    assert not any(g.any() for g in grads[:4]) and all(g.any() for g in grads[4:])
    legacy = HybridQNetwork(q.assemble, q.heads, owned=None, legacy=True)
    assert torch.equal(legacy(s, x), every[0])
    assert_close(legacy.every(s, x)[1], q.heads[0][-1](q.heads[1][:-1](torch.cat([s, x], -1))))
    with pytest.raises(ValueError, match="heads must be positive, got 0"):
        make_hybrid_q(make_hybrid_specs(), {}, share="all", agent_id=False, heads=0, **COMMON)


# --------------------------------------------------------------- exploration


def test_best_allowed_choice():
    values = torch.tensor([[1.0, 3.0, 2.0], [5.0, 4.0, 4.5]])
    assert BestChoice()(values).tolist() == [1, 0]
    assert BestChoice()(values, torch.tensor([[True, False, True], [False, True, True]])).tolist() == [2, 2]


def explore(start):
    torch.manual_seed(0)
    return EpsilonGreedy(3, start=start, end=0.0, frames=10)


# --------------------------------------------------------------- the policy


class Fixed(nn.Module):
    """Its tensor for every row."""

    def __init__(self, values):
        super().__init__()
        self.values = torch.tensor(values)

    def forward(self, observation, *rest):
        return self.values.expand(*observation.shape[:-1], -1)


def fixed_policy(values, params=(0.1, 0.2, 3.0), mask=False, exploration=None):
    network = TensorDictModule(Fixed(params), in_keys=[OBSERVATION], out_keys=[ALL_PARAMS])
    q = TensorDictModule(Fixed(values), in_keys=[OBSERVATION, ALL_PARAMS], out_keys=[ACTION_VALUE])
    return make_pdqn_policy(make_hybrid_specs(has_mask=mask), network, q, exploration, device="cpu")


@pytest.mark.parametrize(("values", "choice", "params"), [
    ((3.0, 1.0, 2.0), 0, [0.1, 0.2]), ((1.0, 3.0, 2.0), 1, [0.0, 0.0]), ((1.0, 2.0, 3.0), 2, [3.0, 0.0])])
def test_policy_takes_the_best_choice_with_its_own_parameters(values, choice, params):
    td = fixed_policy(values)(TensorDict({OBSERVATION: torch.zeros(4, 2, 4)}, batch_size=[4]))
    assert td[CHOICE].dtype == torch.int64 and (td[CHOICE] == choice).all() and td[CHOICE].shape == (4, 2)
    assert_close(td[PARAMS], torch.tensor(params).expand(4, 2, 2))
    assert_close(td[ALL_PARAMS], torch.tensor([0.1, 0.2, 3.0]).expand(4, 2, 3))


def test_policy_respects_masks_and_explores():
    tensors = {OBSERVATION: torch.zeros(4, 2, 4), ACTION_MASK: torch.tensor([False, True, True]).expand(4, 2, 3)}
    assert (Lowered(fixed_policy((3.0, 1.0, 2.0), mask=True))(dict(tensors))[CHOICE] == 2).all()
    policy = fixed_policy((3.0, 1.0, 2.0), mask=True, exploration=explore(1.0))
    out = Lowered(policy)(dict(tensors))
    assert set(out[CHOICE].unique().tolist()) == {1, 2}
    assert_close(out[ALL_PARAMS], torch.tensor([0.1, 0.2, 3.0]).expand(4, 2, 3))  # random choices keep the network's
    assert_close(out[PARAMS], ParamSlots(UNEVEN)(out[CHOICE], out[ALL_PARAMS]))


def pdqn(specs, exploration=None):
    torch.manual_seed(0)
    options = dict(share="all", agent_id=False, **COMMON)
    return make_pdqn_policy(specs, make_param_network(specs, {}, **options), make_hybrid_q(specs, {}, **options),
                            exploration, device="cpu")


def test_both_collectors_store_what_the_losses_read():
    batches = []
    for fast in (True, False):
        env = Slide()
        policy = pdqn(Specs.from_env(env), explore(0.5))
        collector = make_collector(env, policy, steps=6, total_frames=48, fast=fast)
        torch.manual_seed(1)
        batches.append(next(iter(collector)))
        collector.shutdown()
    for batch in batches:
        assert batch[CHOICE].shape == (8, 6, 1) and batch[PARAMS].shape == (8, 6, 1, 2)
        assert batch[ALL_PARAMS].shape == (8, 6, 1, 3) and len(batch[CHOICE].unique()) > 1
        assert_close(batch[PARAMS], ParamSlots(UNEVEN)(batch[CHOICE], batch[ALL_PARAMS]))
    for key in (OBSERVATION, CHOICE, PARAMS, ALL_PARAMS, ("next", GROUP, "reward")):
        assert_close(batches[0][key], batches[1][key])


def test_it_is_evaluated_without_exploration():
    env = Slide(num_envs=4)
    results = Evaluator(Slide(num_envs=4), pdqn(Specs.from_env(env)), seed=0)()
    assert results["return"] == results["return_greedy"]
