"""Hybrid PPO with a ratio for the choice and one for its parameters, by hand; advantages of the official program."""

import math

import pytest
import torch
from tensordict import TensorDict
from tensordict.nn import TensorDictModule
from torch import nn
from torch.testing import assert_close

from suite.losses import PolicyLoss, Returns
from suite.losses.hybrid_ppo import HybridPolicyLoss
from suite.modules.hybrid_policy import CHOICE_LOG_PROB, make_hybrid_actor
from suite.specs import (
    ACTION,
    ADVANTAGE,
    ALIVE,
    CHOICE,
    DONE,
    LOG_PROB,
    OBSERVATION,
    PARAMS,
    REWARD,
    TERMINATED,
    VALUE,
    VALUE_TARGET,
)
from tests.archives import Golden
from tests.batches import assert_unchanged, frozen_copy, shaken
from tests.slide import make_hybrid_specs

torch.set_num_threads(1)
LN3, LOG_SQRT = math.log(3), 0.5 * math.log(2 * math.pi)


def make_actor(agents=2, log_std=0.0, seed=0):
    torch.manual_seed(seed)
    return make_hybrid_actor(make_hybrid_specs(agents), {}, share="all", agent_id=False, cells=[8], activation="tanh",
                             init="default", device="cpu", log_std=log_std)


def flat_actor():
    """All choices equally likely, all means 0, all deviations 1."""
    actor = make_actor()
    with torch.no_grad():
        for parameter in actor.parameters():
            parameter.zero_()
    return actor


# agent 0: choice 2, x = 1, one frame; agent 1: choice 1, which has no parameters; A = 1 and -2
# now ln pi = -ln 3, ln N(1) = -0.5 - LS; when taken, pi was 1/6 and 2/3, and ln N lower by 0.1
# rho_k = 2, 0.5: min(2, 1.2) = 1.2; min(0.5 * -2, 0.8 * -2) = -1.6: mean -0.2
# rho_x = e^0.1 = 1.1051709, 1: 1.1051709 and -2: mean -0.4474146
# kl_k: 2 - 1 - ln 2 = 0.3068528; 0.5 - 1 + ln 2 = 0.1931472; kl_x: e^0.1 - 1.1 = 0.0051709, 0
def hand_batch():
    td = TensorDict({OBSERVATION: torch.zeros(1, 2, 4)}, batch_size=[1])
    td[CHOICE], td[PARAMS] = torch.tensor([[2, 1]]), torch.tensor([[[1.0, 0.0], [0.0, 0.0]]])
    td[CHOICE_LOG_PROB] = torch.tensor([[1 / 6, 2 / 3]]).log()
    td[LOG_PROB] = td[CHOICE_LOG_PROB] + torch.tensor([[-0.6 - LOG_SQRT, 0.0]])
    td[ADVANTAGE] = torch.tensor([[[1.0], [-2.0]]])
    td[ALIVE] = torch.tensor([[True, False]])
    return td


def test_two_surrogates_by_hand():
    out = HybridPolicyLoss(flat_actor(), clip=0.2, entropy_coef=0.1)(hand_batch())
    entropy = LN3 + (2 + 1) / 3 * (0.5 + LOG_SQRT)
    expected = {"loss_choice": 0.2, "loss_params": 0.4474146, "loss_entropy": -0.1 * entropy, "entropy": entropy,
                "kl_choice": 0.25, "kl_params": 0.0051709 / 2, "clip_fraction_choice": 1.0, "clip_fraction_params": 0.0,
                "first_step_ratio_error_choice": 1.0, "first_step_ratio_error_params": 0.1051709}
    assert set(out.keys()) == set(expected)
    for key, value in expected.items():
        assert out[key].item() == pytest.approx(value, abs=1e-6), key


# the product of both: e^0.1 * 2 and 0.5
def test_the_joint_ratio_is_the_product():
    td = hand_batch()
    joint = PolicyLoss(flat_actor(), clip=0.2, entropy_coef=0.0)
    assert joint(td)["loss_policy"].item() == pytest.approx(0.2, abs=1e-6)  # clipped in both frames
    wide = PolicyLoss(flat_actor(), clip=5.0, entropy_coef=0.0)(td)["loss_policy"].item()
    assert wide == pytest.approx(-(2 * math.exp(0.1) - 1) / 2, abs=1e-6)


# agent 0 alone
def test_agents_that_left_do_not_count():
    out = HybridPolicyLoss(flat_actor(), clip=0.2, entropy_coef=0.0, mask=ALIVE)(hand_batch())
    assert out["loss_choice"].item() == pytest.approx(-1.2, abs=1e-6) and "loss_entropy" not in out
    assert out["loss_params"].item() == pytest.approx(-1.1051709, abs=1e-6)
    assert out["kl_choice"].item() == pytest.approx(0.3068528, abs=1e-6)


# the choice is clipped away, the parameters are not: d/dloc of - rho_x A / 2 = - e^0.1 (x - loc) / 2, by tanh' = 1
def test_one_ratio_may_be_clipped_and_the_other_learns():
    actor = flat_actor()
    network = actor[0].module
    out = HybridPolicyLoss(actor, clip=0.2, entropy_coef=0.0)(hand_batch())
    (out["loss_choice"] + out["loss_params"]).backward()
    assert not network.choices[-1].bias.grad.any()
    assert_close(network.params[-1].bias.grad, torch.tensor([0.0, 0.0, -math.exp(0.1) / 2]))


def make_minibatch(actor, rows=40, agents=2):
    torch.manual_seed(1)
    td = TensorDict({OBSERVATION: torch.randn(rows, agents, 4)}, batch_size=[rows])
    with torch.no_grad():
        td = actor(td)
    td[ADVANTAGE] = torch.randn(rows, agents, 1)
    return td


def test_protocol():
    actor = shaken(make_actor())
    td = make_minibatch(actor)
    loss = HybridPolicyLoss(actor, clip=0.2, entropy_coef=0.01)
    first = loss(td)
    assert first["kl_choice"].abs() < 1e-6 and first["kl_params"].abs() < 1e-6  # the same policy scores the same
    assert_close(first["loss_choice"], -td[ADVANTAGE].mean())
    shaken(actor, seed=2)
    before, out = frozen_copy(td), loss(td)
    assert_unchanged(td, before)
    for key, value in out.items():
        assert value.shape == () and value.isfinite() and value.requires_grad is key.startswith("loss_"), key
    selected = td.select(*loss.in_keys)
    assert {ACTION, LOG_PROB, CHOICE_LOG_PROB, ADVANTAGE} <= set(loss.in_keys) and str(loss)
    assert all(torch.equal(value, out[key]) for key, value in loss(selected).items())
    for key in loss.in_keys:
        with pytest.raises(KeyError):
            loss(selected.exclude(key))
    sum(value for key, value in out.items() if key.startswith("loss_")).backward()
    assert all(p.grad is not None and p.grad.any() for p in loss.parameters())
    assert {id(p) for p in loss.networks("actor")["actor"]} == {id(p) for p in actor.parameters()}


@pytest.mark.parametrize("kind", [PolicyLoss, HybridPolicyLoss])
def test_a_policy_learns_a_choice_and_its_parameter(kind):
    """Reward 1 - (x - 0.5)^2 for choice 2, else 0: a bandit that both losses solve."""
    actor = make_actor(agents=1, log_std=-0.5)
    loss = kind(actor, clip=0.2, entropy_coef=0.0)
    optimizer = torch.optim.Adam(actor.parameters(), lr=0.01)
    td = TensorDict({OBSERVATION: torch.ones(256, 1, 4)}, batch_size=[256])
    for _ in range(60):
        with torch.no_grad():
            batch = actor(td.clone())
        reward = (batch[CHOICE] == 2) * (1 - (batch[PARAMS][..., 0].clamp(-1, 1) - 0.5).square())
        batch[ADVANTAGE] = ((reward - reward.mean()) / (reward.std() + 1e-8)).unsqueeze(-1)
        for _ in range(4):
            optimizer.zero_grad()
            sum(value for key, value in loss(batch).items() if key.startswith("loss_")).backward()
            optimizer.step()
    logits, loc, _ = actor[0].module(torch.ones(1, 1, 4))
    assert logits.softmax(-1)[0, 0, 2] > 0.9 and abs(loc[0, 0, 2].item() - 0.5) < 0.2


@pytest.mark.parametrize("clip", [0.0, -0.2])
def test_clip_must_be_positive(clip):
    with pytest.raises(ValueError, match=f"clip must be positive, got {clip}"):
        HybridPolicyLoss(flat_actor(), clip=clip, entropy_coef=0.0)


# --------------------------------------------------------------- advantages of the official program


class Shown(nn.Module):
    """The value is what is observed."""

    def forward(self, observation):
        return observation


def official_advantages(*, terminated, **options):
    """Two segments in a row; the program bootstraps at both ends, also where the task ended (defect B6)."""
    golden = Golden("hyar", "baselines")
    ends = golden["gae/segment_ends"]
    after = torch.cat([golden["gae/value"][1:], torch.zeros(1)])
    after[ends] = golden["gae/boot"]
    done = torch.zeros(20, dtype=torch.bool)
    done[ends] = True
    over = torch.zeros(20, dtype=torch.bool)
    over[ends[0]] = terminated
    td = TensorDict(batch_size=[1, 20])
    for key, value in ((OBSERVATION, golden["gae/value"]), (("next", *OBSERVATION), after), (("next", *DONE), done),
                       (("next", *REWARD), golden["gae/reward"]), (("next", *TERMINATED), over)):
        td[key] = value.view(1, 20, 1, 1)
    critic = TensorDictModule(Shown(), in_keys=[OBSERVATION], out_keys=[VALUE])
    settings = dict(kind="gae", gamma=0.99, lmbda=0.95, n=1, normalize="none")
    return golden, Returns(critic, **settings | options)(td)


def test_advantages_and_returns_of_the_official_program():
    golden, td = official_advantages(terminated=False)
    golden.check("advantage", td[ADVANTAGE].flatten(), golden["gae/adv_raw"], 1e-6)
    golden, td = official_advantages(terminated=False, normalize="population")
    golden.check("normalised", td[ADVANTAGE].flatten(), golden["gae/adv_norm"], 1e-6)
    golden, td = official_advantages(terminated=False, kind="nstep", n=20)
    golden.check("return", td[VALUE_TARGET].flatten(), golden["gae/ret"], 1e-6)


def test_a_task_that_ended_does_not_bootstrap():
    """The official segment end bootstraps with its last reward; without, A_t falls by gamma (gamma lambda)^(7-t) r."""
    golden, td = official_advantages(terminated=True)
    surplus = torch.zeros(20, dtype=torch.float64)
    surplus[:8] = 0.99 * (0.99 * 0.95) ** torch.arange(7, -1, -1) * golden["gae/reward"][7]
    assert golden["gae/boot"][0] == golden["gae/reward"][7]
    golden.check("advantage", td[ADVANTAGE].flatten() + surplus, golden["gae/adv_raw"], 1e-6)
