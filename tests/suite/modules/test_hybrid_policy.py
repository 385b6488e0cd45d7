"""The hybrid policy head: densities and entropies by hand, gradients, masks, collectors, evaluation."""

import math

import pytest
import torch
from tensordict import TensorDict
from torch.testing import assert_close
from torchrl.envs.utils import ExplorationType, set_exploration_type

from suite.collector import make_collector
from suite.evaluate import Evaluator
from suite.losses import PolicyLoss
from suite.modules.hybrid_networks import ParamSlots
from suite.modules.hybrid_policy import (
    CHOICE_LOG_PROB,
    PACKED,
    HybridDistribution,
    make_hybrid_actor,
    pack,
    unpack,
)
from suite.modules.lowered import Lowered
from suite.specs import ACTION, ACTION_MASK, ADVANTAGE, CHOICE, GROUP, LOG_PROB, OBSERVATION, PARAMS, Specs
from tests.batches import shaken
from tests.slide import UNEVEN, Slide, make_hybrid_specs

torch.set_num_threads(1)
LATENT = (GROUP, "latent")
SHARING = [("all", False), ("all", True), ("roles", False), ("none", True)]
COMMON = dict(cells=[8], activation="tanh", init="default", device="cpu")
SLOTS = ParamSlots(UNEVEN).slots  # choices with two, no and one parameter
PROBS = torch.tensor([0.5, 0.25, 0.25])
LOC, SCALE = torch.tensor([0.0, 1.0, -1.0]), torch.tensor([1.0, 2.0, 0.5])
LOG_SQRT = 0.9189385332  # log sqrt(2 pi)


def table(*shape):
    return HybridDistribution(*(x.expand(*shape, 3) for x in (PROBS.log(), LOC, SCALE)), slots=SLOTS)


def action(choice, params):
    return TensorDict({"discrete": torch.tensor(choice), "params": torch.tensor(params)}, batch_size=[len(choice)])


# choice 0, x = (1, 3): ln 0.5 - 0.5 - 0.5 - ln 2 - 2 LS = -0.6931472 - 1 - 0.6931472 - 1.8378771
# choice 1: ln 0.25, whatever the params say
# choice 2, x = -0.5: ln 0.25 - 0.5 + ln 2 - LS = -1.3862944 - 0.5 + 0.6931472 - 0.9189385; its second one is padding
def test_log_prob_by_hand():
    value = action([0, 1, 2], [[1.0, 3.0], [4.0, 5.0], [-0.5, 9.0]])
    choice, params = table(3).parts(value)
    assert_close(choice, torch.tensor([-0.6931472, -1.3862944, -1.3862944]))
    assert_close(params, torch.tensor([-3.5310242, 0.0, -0.7257914]))
    assert_close(table(3).log_prob(value), choice + params)
    assert_close(table(3).log_prob(pack(value["discrete"], value["params"])), choice + params)


# H(pi) = 0.5 ln 2 + 0.5 ln 4 = 1.0397208; H(N_0) = 2 (0.5 + LS) + ln 2; H(N_1) = 0; H(N_2) = 0.5 + LS - ln 2
# 0.5 * 3.5310242 + 0.25 * 0.7257914
def test_entropy_by_hand_and_by_sampling():
    assert_close(table(2).entropy(), torch.full((2,), 1.0397208 + 1.7655121 + 0.1814478))
    torch.manual_seed(0)
    dist = table(50_000)
    assert -dist.log_prob(dist.sample()).mean().item() == pytest.approx(2.9866807, abs=0.02)


def test_samples_follow_the_density():
    torch.manual_seed(0)
    packed = table(60_000).sample()
    choice, params = unpack(packed)
    assert packed.shape == (60_000, 3) and choice.dtype == torch.int64
    assert_close(torch.bincount(choice) / 60_000, PROBS, atol=0.01, rtol=0)
    first, second, third = (params[choice == k] for k in range(3))
    assert_close(first.mean(0), torch.tensor([0.0, 1.0]), atol=0.04, rtol=0)
    assert_close(first.std(0), torch.tensor([1.0, 2.0]), atol=0.04, rtol=0)
    assert abs(torch.corrcoef(first.T)[0, 1]) < 0.02
    assert not second.any() and not third[:, 1].any()  # what a choice does not have is 0
    assert third[:, 0].mean().item() == pytest.approx(-1, abs=0.02)
    assert third[:, 0].std().item() == pytest.approx(0.5, abs=0.02)
    assert table(5).sample((4,)).shape == (4, 5, 3)


def test_deterministic_sample_is_the_best_choice_with_its_means():
    assert_close(table(2).deterministic_sample, torch.tensor([[0.0, 0.0, 1.0]] * 2))
    other = HybridDistribution(torch.tensor([0.0, 1.0, 2.0]), LOC, SCALE, slots=SLOTS)
    assert_close(other.mode, torch.tensor([2.0, -1.0, 0.0]))
    assert_close(other.mean, other.mode)


# the other choices' parameters neither count nor get a gradient: d/dloc = (x - loc) / scale^2
def test_gradients_reach_the_parameters_of_the_choice_alone():
    loc, scale = LOC.clone().requires_grad_(), SCALE.clone().requires_grad_()
    dist = HybridDistribution(PROBS.log().expand(1, 3), loc.expand(1, 3), scale.expand(1, 3), slots=SLOTS)
    dist.log_prob(action([2], [[0.0, 7.0]])).sum().backward()
    assert_close(loc.grad, torch.tensor([0.0, 0.0, 4.0]))
    assert_close(scale.grad, torch.tensor([0.0, 0.0, 1 / 0.125 - 1 / 0.5]))
    loc.grad = None
    HybridDistribution(PROBS.log(), loc, scale, slots=SLOTS).log_prob(action([1], [[3.0, 7.0]])).sum().backward()
    assert not loc.grad.any()


def test_packing_is_exact_for_many_choices():
    choice = torch.arange(2**24 - 100, 2**24)
    found, params = unpack(pack(choice, torch.ones(100, 2)))
    assert torch.equal(found, choice) and torch.equal(params, torch.ones(100, 2))


# --------------------------------------------------------------- the network


def make_actor(specs=None, features=None, *, share="all", agent_id=False, seed=0, **options):
    torch.manual_seed(seed)
    return make_hybrid_actor(specs or make_hybrid_specs(), features or {}, share=share, agent_id=agent_id,
                             **COMMON | options)


@pytest.mark.parametrize("fast", [False, True])
def test_samples_may_be_clamped_before_their_density_is_taken(fast):
    """With deviations of e they are mostly outside; the stored density is of what is stored either way."""
    td = TensorDict({OBSERVATION: torch.zeros(200, 2, 4)}, batch_size=[200])
    for clamp in (False, True):
        actor = make_actor(log_std=1.0, clamp=clamp)
        torch.manual_seed(0)
        with set_exploration_type(ExplorationType.RANDOM), torch.no_grad():
            out = Lowered(actor)({OBSERVATION: td[OBSERVATION]}) if fast else actor(td.clone())
            dist = Lowered(actor).distribution({OBSERVATION: td[OBSERVATION]})
        largest = out[PARAMS].abs().max().item()
        assert largest == 1.0 if clamp else largest > 3.0
        packed = pack(out[CHOICE], out[PARAMS])
        assert_close(dist.log_prob(packed), out[LOG_PROB])


@pytest.mark.parametrize(("share", "agent_id"), SHARING)
@pytest.mark.parametrize("mask", [False, True])
def test_it_writes_an_action_and_its_probability_for_any_agents(share, agent_id, mask):
    specs = make_hybrid_specs(3, has_mask=mask)
    actor = make_actor(specs, {LATENT: 2}, share=share, agent_id=agent_id)
    td = TensorDict({OBSERVATION: torch.randn(50, 3, 4), LATENT: torch.randn(50, 3, 2)}, batch_size=[50])
    td[ACTION_MASK] = torch.tensor([True, False, True]).expand(50, 3, 3)
    assert (ACTION_MASK in actor.in_keys) is mask
    torch.manual_seed(1)
    out = actor(td.clone())
    assert out[CHOICE].shape == (50, 3) and out[CHOICE].dtype == torch.int64 and out[PARAMS].shape == (50, 3, 2)
    assert set(out[CHOICE].unique().tolist()) == ({0, 2} if mask else {0, 1, 2})
    assert out[LOG_PROB].shape == out[CHOICE_LOG_PROB].shape == (50, 3)
    dist = Lowered(actor).distribution({key: td[key] for key in actor.in_keys})
    assert_close(dist.log_prob(out[ACTION]), out[LOG_PROB])
    assert_close(dist.parts(out[ACTION])[0], out[CHOICE_LOG_PROB])
    torch.manual_seed(1)
    lowered = Lowered(actor)({key: td[key] for key in actor.in_keys})
    for key in (CHOICE, PARAMS, LOG_PROB, CHOICE_LOG_PROB):
        assert torch.equal(lowered[key], out[key]), key


def test_deterministic_actions_are_the_same_for_torchrl_and_for_lowered_policies():
    actor = shaken(make_actor())
    td = TensorDict({OBSERVATION: torch.randn(20, 2, 4)}, batch_size=[20])
    found = Lowered(actor)({OBSERVATION: td[OBSERVATION]}, deterministic=True)
    with set_exploration_type(ExplorationType.DETERMINISTIC):
        stock = actor(td)
    logits, loc, _ = actor[0].module(td[OBSERVATION])
    assert torch.equal(found[CHOICE], logits.argmax(-1)) and len(found[CHOICE].unique()) > 1
    assert_close(found[PARAMS], ParamSlots(UNEVEN)(found[CHOICE], loc))
    assert torch.equal(stock[CHOICE], found[CHOICE]) and torch.equal(stock[PARAMS], found[PARAMS])


def test_towers_are_separate_means_bounded_and_deviations_free():
    actor = make_actor()
    network = actor[0].module
    s = torch.randn(30, 2, 4)
    with torch.no_grad():
        network.params[-1].weight.mul_(20)
    logits, loc, scale = network(s)
    assert (loc.abs() <= 1).all() and (loc.abs() > 0.9).any()
    assert_close(scale, torch.full((30, 2, 3), 0.6065307))
    assert {id(p) for p in network.choices.parameters()}.isdisjoint(id(p) for p in network.params.parameters())
    used = torch.autograd.grad(logits.sum(), list(network.parameters()), allow_unused=True, retain_graph=True)
    owned = {id(p) for p in network.choices.parameters()}
    assert [g is not None for g in used] == [id(p) in owned for p in network.parameters()]
    other = make_actor(log_std=math.log(0.1))[0].module(s)[2]
    assert_close(other, torch.full((30, 2, 3), 0.1))


def test_agents_without_shared_parameters_have_deviations_of_their_own():
    network = make_actor(make_hybrid_specs(3), share="roles")[0].module  # roles 0, 1, 0
    with torch.no_grad():
        network.log_scale[:, 1] = 0.5
    scale = network(torch.zeros(1, 3, 4))[2]
    assert_close(scale[0, :, 0], torch.tensor([-0.5, 0.0, -0.5]).exp())


# one step of Adam moves every number by its rate: ten copies move the logarithm by ten times that
@pytest.mark.parametrize(("copies", "moved"), [(1, 0.01), (10, 0.1)])
def test_copies_multiply_the_step_of_the_deviation(copies, moved):
    network = make_actor(log_std_copies=copies)[0].module
    optimizer = torch.optim.Adam([network.log_scale], lr=0.01)
    network(torch.zeros(1, 2, 4))[2].sum().backward()
    optimizer.step()
    assert_close(network(torch.zeros(1, 2, 4))[2].log(), torch.full((1, 2, 3), -0.5 - moved), atol=1e-5, rtol=0)


def test_actions_must_be_hybrid():
    with pytest.raises(ValueError, match="hybrid actions with parameters are needed"):
        make_actor(make_hybrid_specs(param_mask=None))


# --------------------------------------------------------------- with the suite's collector, evaluation and PPO


@pytest.mark.parametrize("fast", [True, False])
def test_policy_loss_takes_it_as_it_is(fast):
    env = Slide()
    actor = make_actor(Specs.from_env(env))
    collector = make_collector(env, actor, steps=6, total_frames=48, fast=fast)
    batch = next(iter(collector))
    collector.shutdown()
    assert batch[CHOICE].shape == batch[LOG_PROB].shape == (8, 6, 1) and batch[PARAMS].shape == (8, 6, 1, 2)
    batch[ADVANTAGE] = torch.randn(8, 6, 1, 1)
    loss = PolicyLoss(actor, clip=0.2, entropy_coef=0.01)
    td = batch.select(*loss.in_keys).reshape(-1)
    assert PACKED not in td.keys(True)
    out = loss(td)
    assert out["kl"].abs() < 1e-6 and out["clip_fraction"] == 0  # ratio 1: the same policy scores the same
    assert_close(out["loss_policy"], -batch[ADVANTAGE].mean())
    (out["loss_policy"] + out["loss_entropy"]).backward()
    assert all(p.grad is not None and p.grad.any() for p in actor.parameters())


# the joint ratio: choice 2 of logits all equal; the mean of its parameter moves from 0 to 0.5, deviation 1, x = 1:
# log ratio = -0.5 (0.5^2 - 1) = 0.375; A = 1: min(e^0.375, 1.2) = 1.2; A = -1: - e^0.375 = -1.4549914; mean -0.1274957
def test_joint_ratio_by_hand():
    actor = make_actor(log_std=0.0)
    network = actor[0].module
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.zero_()
        network.params[-1].bias.copy_(torch.tensor([0.3, -0.3, math.atanh(0.5)]))
    td = TensorDict({OBSERVATION: torch.zeros(1, 2, 4)}, batch_size=[1])
    td[CHOICE], td[PARAMS] = torch.tensor([[2, 2]]), torch.tensor([[[1.0, 0.0], [1.0, 0.0]]])
    td[LOG_PROB] = torch.full((1, 2), -math.log(3) - 0.5 - LOG_SQRT)
    td[ADVANTAGE] = torch.tensor([[[1.0], [-1.0]]])
    out = PolicyLoss(actor, clip=0.2, entropy_coef=0.0)(td)
    assert out["loss_policy"].item() == pytest.approx(0.1274957, abs=1e-6)
    assert out["kl"].item() == pytest.approx(math.exp(0.375) - 1.375, abs=1e-6)


def test_it_is_evaluated_by_samples_and_by_its_mode():
    env = Slide(num_envs=4)
    results = Evaluator(Slide(num_envs=4), shaken(make_actor(Specs.from_env(env))), seed=0)()
    assert results["return"] != results["return_greedy"] and math.isfinite(results["return_greedy"])
