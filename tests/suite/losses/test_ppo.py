import math

import pytest
import torch
from tensordict import TensorDict
from tensordict.nn import ProbabilisticTensorDictModule, ProbabilisticTensorDictSequential, TensorDictModule
from torch import nn
from torch.testing import assert_close
from torchrl.objectives import A2CLoss, ClipPPOLoss

from suite.losses import PolicyLoss, ValueLoss
from suite.modules import make_actor, make_critic
from suite.modules.distributions import Categorical, DiagonalNormal
from suite.specs import (
    ACTION,
    ACTION_MASK,
    ADVANTAGE,
    ALIVE,
    CONTROLLED,
    GROUP,
    IS_INIT,
    LOG_PROB,
    OBSERVATION,
    RECURRENT,
    VALUE,
    VALUE_TARGET,
)
from tests.batches import make_batch, make_specs

torch.set_num_threads(1)
LATENT = (GROUP, "latent")
COMMON = dict(share="all", agent_id=False, cells=[16], activation="tanh", init="default", device="cpu")
# two agents, three frames, three choices with probabilities 1/2, 1/4, 1/4 whatever the observation
PROBS = [0.5, 0.25, 0.25]
ACTIONS = [[0, 0], [1, 0], [2, 1]]
RATIOS = [[1.0, 1.0], [1.5, 2.0], [0.5, 0.5]]
ADVANTAGES = [[1.0, -1.0], [2.0, -1.0], [-2.0, 4.0]]


class Table(nn.Module):
    """The same logits for everybody."""

    def __init__(self):
        super().__init__()
        self.logits = nn.Parameter(torch.tensor(PROBS).log())

    def forward(self, observation):
        return self.logits.expand(*observation.shape[:-1], 3)


class Constant(nn.Module):
    """The same value for everybody."""

    def __init__(self, value):
        super().__init__()
        self.value = nn.Parameter(torch.tensor(value))

    def forward(self, observation):
        return self.value.expand(*observation.shape[:-1], 1)


def table_actor():
    return ProbabilisticTensorDictSequential(
        TensorDictModule(Table(), in_keys=[OBSERVATION], out_keys=[(GROUP, "logits")]),
        ProbabilisticTensorDictModule(in_keys=[(GROUP, "logits")], out_keys=[ACTION], distribution_class=Categorical,
                                      return_log_prob=True, log_prob_key=LOG_PROB))


def critic_of(value):
    return TensorDictModule(Constant(value), in_keys=[OBSERVATION], out_keys=[VALUE])


def table_batch():
    action = torch.tensor(ACTIONS)
    td = TensorDict({OBSERVATION: torch.zeros(3, 2, 4), ACTION: action}, batch_size=[3])
    td[LOG_PROB] = torch.tensor(PROBS)[action].log() - torch.tensor(RATIOS).log()
    td[ADVANTAGE] = torch.tensor(ADVANTAGES).unsqueeze(-1)
    return td


# min(ratio A, clip(ratio, 0.8, 1.2) A):
# agent 0: 1, min(3, 2.4), min(-1, -1.6);  agent 1: -1, min(-2, -1.2), min(2, 3.2)
# = 1, 2.4, -1.6, -1, -2, 2; mean 0.8 / 6
# kl: ratio - 1 - ln ratio: 0, 0.0945349, 0.1931472; 0, 0.3068528, 0.1931472; mean 0.7876821 / 6
# entropy: 0.5 ln 2 + 0.5 ln 4 = 1.0397208
def test_clipped_loss_by_hand():
    out = PolicyLoss(table_actor(), clip=0.2, entropy_coef=0.1)(table_batch())
    expected = {"loss_policy": -0.8 / 6, "loss_entropy": -0.10397208, "entropy": 1.0397208, "kl": 0.7876821 / 6,
                "clip_fraction": 4 / 6, "first_step_ratio_error": 1.0}
    assert set(out.keys()) == set(expected)
    for key, value in expected.items():
        assert out[key].item() == pytest.approx(value, rel=1e-5), key


# ln 1/2 = -0.6931472, ln 1/4 = -1.3862944; A ln pi: agent 0: -0.6931472, -2.7725887, 2.7725887;
# agent 1: 0.6931472, 0.6931472, -5.5451774; sum -4.8520303
def test_a2c_loss_by_hand():
    loss = PolicyLoss(table_actor(), clip=None, entropy_coef=0.0)
    assert LOG_PROB not in loss.in_keys
    out = loss(table_batch())
    assert set(out.keys()) == {"loss_policy", "entropy"}
    assert out["loss_policy"].item() == pytest.approx(4.8520303 / 6, rel=1e-6)
    # without an entropy term: - mean log pi of the actions taken = (3 ln 2 + 3 ln 4) / 6
    assert out["entropy"].item() == pytest.approx((3 * math.log(2) + 3 * math.log(4)) / 6, rel=1e-6)


# d/d logits of - mean A ln pi(a) = - mean A (onehot(a) - pi)
# sums of A by choice: 0: 1 - 1 - 1, 1: 2 + 4, 2: -2; all: 3
# choice 0: -(-1 - 1.5) / 6; choice 1: -(6 - 0.75) / 6; choice 2: -(-2 - 0.75) / 6
def test_a2c_gradient_by_hand():
    actor = table_actor()
    PolicyLoss(actor, clip=None, entropy_coef=0.0)(table_batch())["loss_policy"].backward()
    assert_close(actor[0].module.logits.grad, torch.tensor([2.5, -5.25, 2.75]) / 6)


BY_MASKS = pytest.mark.parametrize("masks", [{"mask": ALIVE}, {"controlled": CONTROLLED},
                                             {"mask": ALIVE, "controlled": CONTROLLED}],
                                   ids=lambda masks: "+".join(masks))


def masked_batch(*, both):
    """Agent 1 does not count in frames 0 and 1; if ``both`` masks are read, each of them says so of one."""
    td = table_batch()
    td[ALIVE], td[CONTROLLED] = (torch.tensor([[True, False], [True, False], [True, True]]) for _ in range(2))
    if both:
        td[ALIVE][0, 1], td[CONTROLLED][1, 1] = True, True
    td[ADVANTAGE][:2, 1] = 1e6  # never seen
    return td


# agents that left: agent 1 in frames 0 and 1; kept 1, 2.4, -1.6, 2: 3.8 / 4;  a2c: -0.6931472 - 5.5451774 = -6.2383246
@BY_MASKS
def test_agents_that_left_or_follow_a_script_do_not_count(masks):
    td = masked_batch(both=len(masks) == 2)
    out = PolicyLoss(table_actor(), clip=0.2, entropy_coef=0.1, **masks)(td)
    assert out["loss_policy"].item() == pytest.approx(-0.95, rel=1e-5)
    assert out["clip_fraction"].item() == pytest.approx(3 / 4)
    assert out["first_step_ratio_error"].item() == pytest.approx(0.5)
    assert out["kl"].item() == pytest.approx((0.0945349 + 2 * 0.1931472) / 4, rel=1e-5)
    assert out["loss_entropy"].item() == pytest.approx(-0.10397208, rel=1e-5)
    out = PolicyLoss(table_actor(), clip=None, entropy_coef=0.0, **masks)(td)
    assert out["loss_policy"].item() == pytest.approx(6.2383246 / 4, rel=1e-6)


# what counts: 1, 2, -2 and 4, mean 1.25, unbiased variance 18.75 / 3 = 2.5 squared, so -0.1, 0.3, -1.3 and 1.1;
# ratios 1, 1.5, 0.5, 0.5: -0.1, min(0.45, 0.36), min(-0.65, -1.04), min(0.55, 0.88); sum -0.23
# a2c: -(-0.1 ln 1/2 + (0.3 - 1.3 + 1.1) ln 1/4) / 4 = -(0.1 - 0.2) ln 2 / 4
@BY_MASKS
@pytest.mark.parametrize("recomputed", [False, True])
def test_advantages_standardised_over_what_counts_of_a_minibatch_by_hand(masks, recomputed):
    td = masked_batch(both=len(masks) == 2)
    td[VALUE_TARGET], options = td[ADVANTAGE] + 10, masks | {"critic": critic_of(10.0) if recomputed else None}
    for clip, expected in ((0.2, 0.23 / 4), (None, 0.1 * math.log(2) / 4)):
        loss = PolicyLoss(table_actor(), clip=clip, entropy_coef=0.0, normalize=True, **options)
        assert loss(td)["loss_policy"].item() == pytest.approx(expected, rel=1e-5)
        halves = [loss(part)["loss_policy"].item() for part in (td[:2], td[2:])]  # a minibatch of its own each
        assert sum(halves) / 2 != pytest.approx(expected, rel=1e-2)


def test_a_minibatch_of_one_has_no_advantage():
    td = table_batch()[:1]
    td[ALIVE] = torch.tensor([[True, False]])
    assert PolicyLoss(table_actor(), clip=0.2, entropy_coef=0.0, mask=ALIVE, normalize=True)(td)["loss_policy"] == 0


@pytest.mark.parametrize("clip", [None, 0.2])
def test_a_scripted_action_that_the_policy_would_never_take_harms_nothing(clip):
    actor, td = table_actor(), table_batch()
    td[CONTROLLED] = torch.tensor([[True, False]]).expand(3, 2)
    with torch.no_grad():
        actor[0].module.logits[2] = -float("inf")
    td[ACTION] = torch.tensor([[0, 2]]).expand(3, 2)
    out = PolicyLoss(actor, clip=clip, entropy_coef=0.0, controlled=CONTROLLED)(td)
    out["loss_policy"].backward()
    assert out["loss_policy"].isfinite() and actor[0].module.logits.grad[:2].isfinite().all()


def test_advantage_may_be_recomputed_and_no_gradient_reaches_the_critic():
    td, critic = table_batch(), critic_of(10.0)
    stored = PolicyLoss(table_actor(), clip=0.2, entropy_coef=0.0)(td)["loss_policy"]
    td[VALUE_TARGET] = td[ADVANTAGE] + 10  # target - value = the same advantages
    loss = PolicyLoss(table_actor(), clip=0.2, entropy_coef=0.0, critic=critic)
    assert ADVANTAGE not in loss.in_keys and VALUE_TARGET in loss.in_keys
    out = loss(td)["loss_policy"]
    assert_close(out, stored)
    out.backward()
    assert critic.module.value.grad is None
    assert not any(p is critic.module.value for p in loss.parameters())  # it belongs to the value loss
    with torch.no_grad():
        critic.module.value.fill_(9.0)  # the critic's present value counts: every advantage grows by 1
    td[ADVANTAGE] += 1
    assert_close(loss(td)["loss_policy"], PolicyLoss(loss.actor, clip=0.2, entropy_coef=0.0)(td)["loss_policy"])


def test_recomputed_advantage_is_a_constant():
    td, critic = table_batch(), critic_of(1.0)
    td[VALUE_TARGET] = td[ADVANTAGE].clone().requires_grad_()
    loss = PolicyLoss(table_actor(), clip=0.2, entropy_coef=0.1, critic=critic)
    sum(v for k, v in loss(td).items() if k.startswith("loss_")).backward()
    assert td[VALUE_TARGET].grad is None and loss.actor[0].module.logits.grad.any()


def test_no_gradient_reaches_stored_features():
    specs = make_specs("discrete")
    actor = make_actor(specs, {LATENT: 2}, recurrent_dim=0, head="normal", state_dependent_scale=False, **COMMON)
    encoder = TensorDictModule(nn.Linear(4, 2), in_keys=[OBSERVATION], out_keys=[LATENT])
    td = make_batch(specs).reshape(-1)
    with torch.no_grad():
        encoder(td)  # as the collector does
    PolicyLoss(actor, clip=0.2, entropy_coef=0.0)(td)["loss_policy"].backward()
    assert all(p.grad is None for p in encoder.parameters())


@pytest.mark.parametrize("kind", ["discrete", "masked", "continuous"])
@pytest.mark.parametrize("clip", [0.2, None])
def test_value_and_gradients_equal_torchrl(kind, clip):
    torch.manual_seed(0)
    specs = make_specs(kind)
    actor = make_actor(specs, {}, recurrent_dim=0, head="tanh_normal", state_dependent_scale=True, **COMMON)
    td = make_batch(specs, shape=(64,))
    with torch.no_grad():
        td[LOG_PROB] = actor.get_dist(td.select(*actor.in_keys)).log_prob(td[ACTION]) + 0.3 * torch.randn(64, 3)
    ours = PolicyLoss(actor, clip=clip, entropy_coef=0.05)
    if clip is None:
        stock = A2CLoss(actor, critic_of(0.0), entropy_coeff=0.05, critic_coeff=None)
        stock.set_keys(action=ACTION, advantage=ADVANTAGE)
    else:
        stock = ClipPPOLoss(actor, None, clip_epsilon=clip, entropy_coeff=0.05, critic_coeff=None)
        stock.set_keys(action=ACTION, advantage=ADVANTAGE, sample_log_prob=LOG_PROB)
    torch.manual_seed(5)  # the entropy of a squashed normal is sampled
    out = ours(td)
    torch.manual_seed(5)
    expected = stock(td.clone())
    assert_close(out["loss_policy"], expected["loss_objective"], rtol=1e-5, atol=1e-6)
    assert_close(out["loss_entropy"], expected["loss_entropy"], rtol=1e-5, atol=1e-6)
    gradients = torch.autograd.grad(out["loss_policy"] + out["loss_entropy"], list(ours.actor.parameters()))
    theirs = torch.autograd.grad(expected["loss_objective"] + expected["loss_entropy"],
                                 [p for name, p in stock.named_parameters() if name.startswith("actor")])
    assert len(gradients) == len(theirs)
    for x, y in zip(gradients, theirs, strict=True):
        assert_close(x, y, rtol=1e-4, atol=1e-6)
    if clip is not None:
        assert_close(out["clip_fraction"], expected["clip_fraction"])


def test_recurrent_actor_is_run_along_its_row():
    specs = make_specs("discrete")
    actor = make_actor(specs, {}, recurrent_dim=5, head="normal", state_dependent_scale=False, **COMMON)
    batch = make_batch(specs, hidden=5)
    with torch.no_grad():
        hidden = batch[RECURRENT][:, 0]
        for t in range(6):  # the rollout
            td = batch[:, t].select(OBSERVATION, IS_INIT)
            td[RECURRENT] = hidden
            out = actor(td)
            batch[ACTION][:, t], batch[LOG_PROB][:, t] = out[ACTION], out[LOG_PROB]
            hidden = out["next", *RECURRENT]
    out = PolicyLoss(actor, clip=0.2, entropy_coef=0.0)(batch)
    assert out["kl"].abs() < 1e-6 and out["clip_fraction"] == 0  # ratio 1: the same policy scores the same
    assert_close(out["loss_policy"], -batch[ADVANTAGE].mean())


@pytest.mark.parametrize("clip", [0.0, -0.2])
def test_clip_must_be_positive(clip):
    with pytest.raises(ValueError, match=f"clip must be positive.*{clip}"):
        PolicyLoss(table_actor(), clip=clip, entropy_coef=0.0)


# --------------------------------------------------------------- the value loss


def value_batch(target, old=0.0):
    shape = (*torch.tensor(target).shape, 1)
    td = TensorDict({OBSERVATION: torch.zeros(*shape[:-1], 4), VALUE: torch.full(shape, old)}, batch_size=[shape[0]])
    td[VALUE_TARGET] = torch.tensor(target).unsqueeze(-1)
    return td


# V = 3 everywhere, targets 0 3 | 4 6: squares 9, 0, 1, 9
# clipped, old 1, clip 0.5: 1.5 - G = 1.5, -1.5, -2.5, -4.5: squares 2.25, 2.25, 6.25, 20.25;
# larger 9, 2.25, 6.25, 20.25
# Huber: 3 - 0.5, 0, 0.5, 3 - 0.5; clipped 1, 1, 2, 4: larger 2.5, 1, 2, 4; with threshold 10 half the squares
@pytest.mark.parametrize(("options", "expected"), [
    ({"clip": None, "kind": "l2"}, 19 / 4), ({"clip": 0.5, "kind": "l2"}, 37.75 / 4),
    ({"clip": None, "kind": "smooth_l1"}, 5.5 / 4), ({"clip": 0.5, "kind": "smooth_l1"}, 9.5 / 4),
    ({"clip": None, "kind": "huber"}, 19 / 8), ({"clip": 0.5, "kind": "huber"}, 37.75 / 8)])
def test_value_loss_by_hand(options, expected):
    td = value_batch([[0.0, 3.0], [4.0, 6.0]], old=1.0)
    loss = ValueLoss(critic_of(3.0), **options)
    assert (VALUE in loss.in_keys) is (options["clip"] is not None)
    out = loss(td)
    assert out["loss_value"].item() == pytest.approx(expected)
    # a constant explains nothing: 1 - var(target - 3) / var(target)
    assert out["explained_variance"].item() == pytest.approx(0.0, abs=1e-6)


def test_value_loss_without_agents_that_left():
    td = value_batch([[0.0, 3.0], [4.0, 6.0]])
    td[ALIVE] = torch.tensor([[True, False], [False, True]])  # squares 9 and 9
    critic = critic_of(3.0)
    out = ValueLoss(critic, clip=None, kind="l2", mask=ALIVE)(td)
    assert out["loss_value"].item() == pytest.approx(9.0)
    out["loss_value"].backward()
    assert critic.module.value.grad.item() == pytest.approx((2 * 3 - 2 * 3) / 2)


def test_explained_variance():
    specs = make_specs("discrete")
    critic = make_critic(specs, {}, centralized=False, recurrent_dim=0, **COMMON)
    td = make_batch(specs).reshape(-1)
    with torch.no_grad():
        value = critic(td.select(*critic.in_keys))[VALUE]
    td[VALUE_TARGET] = value + 1  # all but the mean
    assert ValueLoss(critic, clip=None, kind="l2")(td)["explained_variance"].item() == pytest.approx(1.0)
    td[VALUE_TARGET] = -value  # 1 - var(2 V) / var(V)
    assert ValueLoss(critic, clip=None, kind="l2")(td)["explained_variance"].item() == pytest.approx(-3.0, rel=1e-4)


def test_value_target_is_a_constant():
    td = value_batch([[0.0, 3.0]])
    td[VALUE_TARGET] = td[VALUE_TARGET].requires_grad_()
    critic = critic_of(1.0)
    ValueLoss(critic, clip=None, kind="l2")(td)["loss_value"].backward()
    assert critic.module.value.grad.item() == pytest.approx(1.0 - 2.0)  # mean of 2 (1 - 0) and 2 (1 - 3)


def test_wrong_value_losses_are_named():
    with pytest.raises(ValueError, match=r"'l1'.*\['l2', 'smooth_l1', 'huber'\]"):
        ValueLoss(critic_of(0.0), clip=None, kind="l1")


def test_a_large_value_error_counts_in_proportion():
    """V = 3, G = 23: 10 (20 - 5) with threshold 10, 20 - 0.5 with 1."""
    for kind, expected in (("huber", 150.0), ("smooth_l1", 19.5)):
        out = ValueLoss(critic_of(3.0), clip=None, kind=kind)(value_batch([[23.0]]))
        assert out["loss_value"].item() == pytest.approx(expected)


def test_entropies_and_the_sum_of_the_losses():
    """Uniform over nine choices, a unit Gaussian in two dimensions; - 1.2 - 0.01 ln 9 + 0.5 * 0.64."""
    uniform = Categorical(logits=torch.full((9,), 3.0)).entropy().item()
    assert uniform == pytest.approx(2.197224577, abs=1e-6)
    assert DiagonalNormal(torch.zeros(2), torch.ones(2)).entropy().item() == pytest.approx(2.837877066, abs=1e-6)
    assert -1.2 - 0.01 * uniform + 0.5 * 0.64 == pytest.approx(-0.901972246, abs=1e-6)


def test_choices_that_do_not_exist_count_for_nothing():
    """Logits 2, 1, 0 and 7 of which the last is padding: - ln p = 0.407605964, as if there were three."""
    specs = make_specs("masked")
    actor = make_actor(specs, {}, recurrent_dim=0, head="normal", state_dependent_scale=False, **COMMON)
    td = make_batch(specs).reshape(-1)
    with torch.no_grad():
        actor[0].module.out.weight.zero_()
        actor[0].module.out.bias.copy_(torch.tensor([2.0, 1.0, 0.0, 7.0, 7.0]))
    td[ACTION_MASK][:] = torch.tensor([True, True, True, False, False])
    dist = actor.get_dist(td.select(*actor.in_keys))
    assert_close(-dist.log_prob(torch.zeros_like(td[ACTION])), torch.full(td[ACTION].shape, 0.407605964))
    assert_close(dist.entropy(), torch.full(td[ACTION].shape, 0.832395582))
