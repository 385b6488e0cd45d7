import pytest
import torch
from tensordict import TensorDict
from tensordict.nn import TensorDictModule
from torch import nn
from torch.testing import assert_close
from torchrl.objectives import SoftUpdate

from suite.losses import MADDPGLoss, MixedQLoss
from suite.modules.q_networks import (
    STATE_ACTION_VALUE,
    make_deterministic_actor,
    make_joint_q,
    make_mixer,
    make_q_policy,
)
from suite.specs import ACTION, ACTION_MASK, DONE, GROUP, OBSERVATION, REWARD, TERMINATED, Specs
from tests.batches import make_batch, make_specs

torch.set_num_threads(1)
LATENT = (GROUP, "latent")
COMMON = dict(share="all", agent_id=False, cells=[8], activation="tanh", init="default", device="cpu")
JOINT = {key: value for key, value in COMMON.items() if key != "agent_id"}
ENDS = {"running": (False, False), "truncated": (True, False), "terminated": (True, True)}


def identity_q(has_mask):
    """Two agents whose action values are their two observations, and VDN on top."""
    specs = Specs(n_agents=2, obs_dim=2, action_dim=2, discrete=True, agent_types=(0, 0), has_mask=has_mask)
    policy = make_q_policy(specs, {}, **COMMON | {"cells": []})
    layer = policy[0].module.layers[0]
    with torch.no_grad():
        layer.weight.copy_(torch.eye(2))
        layer.bias.zero_()
    return MixedQLoss(policy, make_mixer("vdn", specs, embed_dim=4, device="cpu"), gamma=0.5)


def hand_batch(end):
    done, terminated = ENDS[end]
    td = TensorDict(batch_size=[1])
    td[OBSERVATION] = torch.tensor([[[1.0, 2.0], [3.0, 4.0]]])
    td[ACTION] = torch.tensor([[0, 1]])  # Q_tot = 1 + 4 = 5
    td["next", *OBSERVATION] = torch.tensor([[[6.0, 5.0], [7.0, 8.0]]])  # max Q_tot' = 6 + 8 = 14
    td["next", *REWARD] = torch.tensor([[[1.0], [3.0]]])  # mean 2
    for root in ((), ("next",)):
        td[(*root, *ACTION_MASK)] = torch.ones(1, 2, 2, dtype=torch.bool)
    td["next", "done"], td["next", "terminated"] = torch.tensor([[done]]), torch.tensor([[terminated]])
    return td


# target 2 + 0.5 * 14 = 9, or 2 when terminated; (5 - 9)^2 = 16, (5 - 2)^2 = 9
@pytest.mark.parametrize("has_mask", [False, True])
@pytest.mark.parametrize(("end", "expected"), [("running", 16.0), ("truncated", 16.0), ("terminated", 9.0)])
def test_vdn_target_by_hand(end, expected, has_mask):
    loss = identity_q(has_mask)
    assert loss(hand_batch(end))["loss_q"].item() == pytest.approx(expected)


# the best next choice of agent 0 is forbidden: max Q_tot' = 5 + 8; target 2 + 6.5 = 8.5
def test_forbidden_choices_are_no_target():
    td = hand_batch("running")
    td["next", *ACTION_MASK] = torch.tensor([[[False, True], [True, True]]])
    assert identity_q(True)(td)["loss_q"].item() == pytest.approx((5 - 8.5) ** 2)


# the loss of action 0 or 1 alone: dL/dQ_tot = 2 (5 - 9) = -8, so the weight of the chosen output's own input gets
# -8 * observation: row 0 (agent 0's choice): (1, 2); row 1 (agent 1's choice): (3, 4)
def test_gradient_reaches_chosen_values_and_not_the_target():
    loss = identity_q(False)
    trained = dict(loss.named_parameters())
    loss(hand_batch("running"))["loss_q"].backward()
    weight = [p for p in trained.values() if p.shape == (2, 2)]
    assert len(weight) == 1
    assert_close(weight[0].grad, -8 * torch.tensor([[1.0, 2.0], [3.0, 4.0]]))


def test_mixed_target_is_a_lagging_copy():
    loss = identity_q(False)
    soft = SoftUpdate(loss.td, tau=0.25)
    with torch.no_grad():
        for p in loss.parameters():
            p.mul_(2.0)  # Q_tot = 10, the target network still says 14
    assert loss(hand_batch("running"))["loss_q"].item() == pytest.approx((10 - 9) ** 2)
    soft.step()  # weights 1 + 0.25 * (2 - 1): max Q_tot' = 1.25 * 14 = 17.5, target 2 + 8.75
    assert loss(hand_batch("running"))["loss_q"].item() == pytest.approx((10 - 10.75) ** 2)


@pytest.mark.parametrize("kind", ["qmix", "vdn"])
def test_mixed_reads_what_it_must(kind):
    specs = make_specs("masked")
    loss = MixedQLoss(make_q_policy(specs, {}, **COMMON), make_mixer(kind, specs, embed_dim=4, device="cpu"), gamma=0.9)
    expected = {OBSERVATION, ACTION_MASK, ACTION, *([] if kind == "vdn" else ["state"])}
    after = {OBSERVATION, ACTION_MASK, REWARD, "done", "terminated", *([] if kind == "vdn" else ["state"])}
    assert set(loss.in_keys) == expected | {("next", k) if isinstance(k, str) else ("next", *k) for k in after}


# --------------------------------------------------------------- MADDPG


class JointSum(nn.Module):
    """Q_i = i + 1 times the sum of all agents' actions, plus a trainable number."""

    def __init__(self):
        super().__init__()
        self.bias = nn.Parameter(torch.tensor(0.0))

    def forward(self, observation, action):
        total = action.sum((-1, -2)).unsqueeze(-1)
        scale = torch.arange(1.0, action.shape[-2] + 1)
        return (total * scale).unsqueeze(-1) + self.bias


class Scale(nn.Module):
    """Action = weight times the observation."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.tensor(1.0))

    def forward(self, observation):
        return self.weight * observation


def hand_maddpg():
    actor = TensorDictModule(Scale(), in_keys=[OBSERVATION], out_keys=[ACTION])
    critic = TensorDictModule(JointSum(), in_keys=[OBSERVATION, ACTION], out_keys=[STATE_ACTION_VALUE])
    return MADDPGLoss(actor, critic, gamma=0.5)


def maddpg_batch(end):
    done, terminated = ENDS[end]
    td = TensorDict(batch_size=[1])
    td[OBSERVATION] = torch.tensor([[[1.0], [2.0]]])  # current policy: actions 1 and 2
    td[ACTION] = torch.tensor([[[0.5], [0.5]]])  # Q = 1, 2
    td["next", *OBSERVATION] = torch.tensor([[[4.0], [2.0]]])  # target policy: Q' = 6, 12
    td["next", *REWARD] = torch.tensor([[[1.0], [-1.0]]])
    td["next", *DONE], td["next", *TERMINATED] = (torch.full((1, 2, 1), flag) for flag in (done, terminated))
    return td


# targets 1 + 3 = 4 and -1 + 6 = 5: errors 1 - 4, 2 - 5: mean 9;  terminated: 1 and -1: errors 0, 3: mean 4.5
# actor: all agents act anew: sum 3, Q = 3, 6: - mean = -4.5
@pytest.mark.parametrize(("end", "expected"), [("running", 9.0), ("truncated", 9.0), ("terminated", 4.5)])
def test_maddpg_by_hand(end, expected):
    loss = hand_maddpg()
    out = loss(maddpg_batch(end))
    assert out["loss_value"].item() == pytest.approx(expected)
    assert out["loss_actor"].item() == pytest.approx(-4.5)
    assert out["pred_value"].item() == pytest.approx(1.5)


# d(-mean Q_i)/d weight = - mean(1, 2) * (1 + 2) = -4.5; d loss_value / d bias = 2 * mean(-3, -3) = -6
def test_maddpg_gradients_reach_one_network_each():
    loss = hand_maddpg()
    out = loss(maddpg_batch("running"))
    trained = dict(loss.named_parameters())
    weight = next(p for name, p in trained.items() if "weight" in name and p.requires_grad)
    bias = next(p for name, p in trained.items() if "bias" in name and p.requires_grad)
    by_actor = torch.autograd.grad(out["loss_actor"], (weight, bias), allow_unused=True, retain_graph=True)
    by_value = torch.autograd.grad(out["loss_value"], (weight, bias), allow_unused=True)
    assert by_actor[0].item() == pytest.approx(-4.5) and by_actor[1] is None
    assert by_value[0] is None and by_value[1].item() == pytest.approx(-6.0)


def test_maddpg_targets_lag_on_both_networks():
    loss = hand_maddpg()
    soft = SoftUpdate(loss.td, tau=0.5)
    with torch.no_grad():
        for parameter in loss.parameters():
            parameter.add_(1.0)  # weight 2, bias 1: Q = 2, 3; targets still 4 and 5
    assert loss(maddpg_batch("running"))["loss_value"].item() == pytest.approx((2**2 + 2**2) / 2)
    soft.step()  # weight 1.5, bias 0.5: Q' = 9.5, 18.5; targets 1 + 4.75, -1 + 9.25
    assert loss(maddpg_batch("running"))["loss_value"].item() == pytest.approx((3.75**2 + 5.25**2) / 2)


def test_maddpg_names_its_two_networks_apart():
    specs = make_specs("continuous")
    loss = MADDPGLoss(make_deterministic_actor(specs, {}, **COMMON), make_joint_q(specs, **JOINT), gamma=0.9)
    found = loss.networks("whatever")
    assert list(found) == ["actor", "critic"]
    groups = [{id(p) for p in params} for params in found.values()]
    assert groups == [{id(p) for p in params.parameters()} for params in (loss.td.actor_network_params,
                                                                          loss.td.value_network_params)]
    assert not groups[0] & groups[1]
    assert groups[0] | groups[1] == {id(p) for p in loss.parameters() if p.requires_grad}  # no target among them
    td = make_batch(specs).reshape(-1)
    for name, key in (("actor", "loss_actor"), ("critic", "loss_value")):
        loss.zero_grad()
        loss(td)[key].backward()
        reached = {id(p) for p in loss.parameters() if p.grad is not None and p.grad.any()}
        assert reached and reached <= {id(p) for p in found[name]}


def test_mixed_q_is_one_network():
    specs = make_specs("discrete")
    loss = MixedQLoss(make_q_policy(specs, {}, **COMMON), make_mixer("qmix", specs, embed_dim=4, device="cpu"),
                      gamma=0.9)
    [(part, params)] = loss.networks("qmix").items()
    assert part == "qmix" and {id(p) for p in params} == {id(p) for p in loss.parameters() if p.requires_grad}


# --------------------------------------------------------------- encoders


def encoder():
    return TensorDictModule(nn.Linear(4, 2), in_keys=[OBSERVATION], out_keys=[LATENT])


def encoded_loss(kind, encode):
    torch.manual_seed(0)
    if kind == "maddpg":
        specs = make_specs("continuous")
        actor = make_deterministic_actor(specs, {LATENT: 2}, **COMMON)
        critic = make_joint_q(specs, **JOINT)
        return MADDPGLoss(actor, critic, gamma=0.9, encoders=encode), make_batch(specs).reshape(-1)
    specs = make_specs("masked")
    policy, mixer = make_q_policy(specs, {LATENT: 2}, **COMMON), make_mixer(kind, specs, embed_dim=4, device="cpu")
    return MixedQLoss(policy, mixer, gamma=0.9, encoders=encode), make_batch(specs).reshape(-1)


@pytest.mark.parametrize("kind", ["qmix", "vdn", "maddpg"])
def test_observations_are_encoded_anew_without_gradient(kind):
    first = encoder()
    loss, td = encoded_loss(kind, [first])
    assert LATENT not in loss.in_keys and ("next", *LATENT) not in loss.in_keys
    plain, _ = encoded_loss(kind, [])  # the same networks, features given
    with torch.no_grad():
        given = first(td.clone())
        given["next"] = first(td["next"].clone())
    td[LATENT], td["next", *LATENT] = torch.full((24, 3, 2), 1e3), torch.full((24, 3, 2), 1e3)  # stale
    out, expected = loss(td), plain(given)
    for key, value in expected.items():
        assert_close(out[key], value)
    sum(value for key, value in out.items() if key.startswith("loss_")).backward()
    assert all(p.grad is None for p in first.parameters())
    assert not {id(p) for p in first.parameters()} & {id(p) for p in loss.parameters()}  # no second owner


def test_chained_encoders_read_only_what_nobody_writes():
    second = TensorDictModule(nn.Linear(2, 2), in_keys=[LATENT], out_keys=[(GROUP, "deeper")])
    specs = make_specs("discrete")
    policy = make_q_policy(specs, {(GROUP, "deeper"): 2}, **COMMON)
    loss = MixedQLoss(policy, make_mixer("vdn", specs, embed_dim=4, device="cpu"), gamma=0.9,
                      encoders=[encoder(), second])
    td = make_batch(specs).reshape(-1).select(*loss.in_keys)
    assert loss(td)["loss_q"].isfinite()
    assert set(map(str, loss.in_keys)) == set(map(str, [OBSERVATION, ACTION, *(("next", *k) for k in (
        OBSERVATION, REWARD, ("done",), ("terminated",)))]))
