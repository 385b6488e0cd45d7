"""P-DQN's losses: the official program's numbers, every equation by hand, and where gradients go."""

import copy
from functools import partial

import pytest
import torch
from tensordict import TensorDict
from tensordict.nn import TensorDictModule
from torch import nn
from torch.testing import assert_close

from suite.data import Minibatches
from suite.losses.pdqn import PDQNParamsLoss, PDQNValueLoss
from suite.modules.hybrid_networks import ALL_PARAMS, make_hybrid_q, make_param_network
from suite.modules.q_networks import ACTION_VALUE
from suite.specs import ACTION_MASK, ALIVE, CHOICE, DONE, GROUP, OBSERVATION, PARAMS, REWARD, TERMINATED
from suite.update import Update, check_ownership
from tests.archives import Golden
from tests.batches import assert_unchanged, frozen_copy
from tests.slide import make_hybrid_specs

torch.set_num_threads(1)
LATENT = (GROUP, "latent")
COMMON = dict(share="all", agent_id=False, activation="relu", init="default", device="cpu")
PLATFORM = make_hybrid_specs(1, 9, param_mask=torch.ones(3, 1, dtype=torch.bool))


OPTIMIZERS = {"critic": partial(torch.optim.Adam, lr=1e-3), "actor": partial(torch.optim.Adam, lr=1e-4)}


def make_update(value, params, optimizer=OPTIMIZERS):
    """The turns of the official program: the values, then the parameters with the new values, each with its target."""
    return Update("pdqn", {"critic": value, "actor": params}, Minibatches(1), optimizer=optimizer, max_grad_norm=10.0,
                  delay={}, targets=value.targets(tau_q=0.01, tau_params=0.001))


# --------------------------------------------------------------- the official program

LAYERS = ("0", "2", "4")


def q_weights(golden, prefix, heads):
    theirs = ("layers",) if heads == 1 else ("layers_1", "layers_2")
    return {f"heads.{head}.{ours}.{kind}": golden[f"{prefix}/{name}.{k}.{kind}"]
            for head, name in enumerate(theirs) for k, ours in enumerate(LAYERS) for kind in ("weight", "bias")}


def param_weights(golden, prefix):
    names = ("layers.0", "layers.1", "action_parameters_output_layer")
    out = {f"layers.{ours}.{kind}": golden[f"{prefix}/{name}.{kind}"]
           for ours, name in zip(LAYERS, names, strict=True) for kind in ("weight", "bias")}
    return out | {kind: golden[f"{prefix}/action_parameters_passthrough_layer.{kind}"] for kind in ("weight", "bias")}


def official(name, legacy=True):
    """Losses with the file's networks, its minibatch, and all networks by the file's names."""
    golden, heads = Golden("hyar", "baselines"), 1 if name == "pdqn" else 2
    network = make_param_network(PLATFORM, {}, cells=[16, 16], **COMMON)
    q = make_hybrid_q(PLATFORM, {}, cells=[16, 16], heads=heads, legacy=legacy and heads == 2, **COMMON)
    value, params = PDQNValueLoss(network, q, gamma=0.9), PDQNParamsLoss(network, q)
    networks = {"q": q, "q_target": value.slow_q, "param": network, "param_target": value.slow_params}

    def expected(when, key):
        prefix = f"{name}/{when}/{key}"
        return q_weights(golden, prefix, heads) if key.startswith("q") else param_weights(golden, prefix)

    for key, module in networks.items():
        module.module.load_state_dict(expected("before", key))
    batch = {key: golden[f"{name}/batch/{key}"].unsqueeze(1) for key in (
        "state", "action_and_params", "reward", "next_state", "terminal")}
    td = TensorDict(batch_size=[16])
    td[OBSERVATION], td["next", *OBSERVATION] = batch["state"], batch["next_state"]
    td[CHOICE], td[ALL_PARAMS] = batch["action_and_params"][..., 0].long(), batch["action_and_params"][..., 1:]
    td["next", *REWARD], td["next", *TERMINATED] = batch["reward"], batch["terminal"].bool()
    return golden, value, params, networks, expected, td


@pytest.mark.parametrize("name", ["pdqn", "pdqn_td3"])
def test_two_updates_of_the_official_program(name):
    golden, value, params, networks, expected, td = official(name)
    with torch.no_grad():
        x = networks["param_target"].module(td["next", *OBSERVATION])
    golden.check("next_params", x.squeeze(1), golden[f"{name}/next_params"], 1e-6)
    golden.check("y", value._target(td).squeeze(1), golden[f"{name}/y"], 1e-6)
    update = make_update(value, params)
    for when in ("after1", "after2"):
        update.step(td)
        for key, module in networks.items():
            found = module.module.state_dict()
            assert found.keys() == expected(when, key).keys()
            for layer, theirs in expected(when, key).items():
                assert_close(found[layer], theirs, rtol=1e-6, atol=1e-6)
                golden.largest[key] = max(golden.largest.get(key, 0.0), (found[layer] - theirs).abs().max().item())
    assert max(golden.largest.values()) < 1e-6


def test_separate_heads_are_not_the_official_ones():
    """Defect B3: the published second head ends in the first one's last layer."""
    golden, value, *_, td = official("pdqn_td3", legacy=False)
    assert (value._target(td).squeeze(1) - golden["pdqn_td3/y"]).abs().max() > 1e-3
    value(td)["loss_value"].backward()
    assert all(p.grad.any() for p in value.q.module.heads[1][-1].parameters())
    golden, value, *_, td = official("pdqn_td3")
    value(td)["loss_value"].backward()
    assert all(p.grad is None for p in value.q.module.heads[1][-1].parameters())


def test_the_order_of_the_turns_matters():
    """The official parameters step on the new values; on the old ones they end elsewhere."""
    _, value, params, networks, expected, td = official("pdqn")
    optimizers = {key: make(list(loss.networks(key)[key])) for (key, make), loss in zip(
        OPTIMIZERS.items(), (value, params), strict=True)}
    for key, loss in (("actor", params), ("critic", value)):
        optimizers[key].zero_grad()
        sum(x for name, x in loss(td).items() if name.startswith("loss_")).backward()
        optimizers[key].step()
    found, theirs = networks["param"].module.state_dict(), expected("after1", "param")
    assert max((found[key] - theirs[key]).abs().max() for key in theirs) > 1e-6


# --------------------------------------------------------------- by hand


class Line(nn.Module):
    """x(s) = weight * s for three parameters, whatever the features."""

    def __init__(self, weight=(1.0, 2.0, -1.0)):
        super().__init__()
        self.weight = nn.Parameter(torch.tensor(weight))

    def forward(self, observation, *features):
        return self.weight * observation


class Table(nn.Module):
    """Q_j = scale_j * (x_j + s); a second head, if any, has other scales."""

    def __init__(self, *scales):
        super().__init__()
        self.scales = nn.ParameterList([torch.tensor(scale) for scale in scales])

    def forward(self, observation, params):
        return self.every(observation, params)[0]

    def every(self, observation, params):
        return torch.stack([scale * (params + observation) for scale in self.scales])


def hand_networks(*scales, weight=(1.0, 2.0, -1.0)):
    return (TensorDictModule(Line(weight), in_keys=[OBSERVATION], out_keys=[ALL_PARAMS]),
            TensorDictModule(Table(*scales), in_keys=[OBSERVATION, ALL_PARAMS], out_keys=[ACTION_VALUE]))


ENDS = {"running": (False, False), "truncated": (True, False), "terminated": (True, True)}


def hand_batch(end="running"):
    done, terminated = ENDS[end]
    td = TensorDict(batch_size=[1])
    td[OBSERVATION] = torch.tensor([[[0.5], [1.0]]])
    td[CHOICE] = torch.tensor([[0, 2]])
    td[ALL_PARAMS] = torch.tensor([[[0.5, 9.0, 9.0], [9.0, 9.0, -3.0]]])
    td["next", *OBSERVATION] = torch.tensor([[[2.0], [-1.0]]])
    td["next", *REWARD] = torch.tensor([[[1.0], [-1.0]]])
    td["next", *DONE], td["next", *TERMINATED] = (torch.full((1, 2, 1), flag) for flag in (done, terminated))
    td[ALIVE] = torch.tensor([[True, False]])
    td["next", *ACTION_MASK] = torch.tensor([[[True, False, True], [True, True, False]]])
    return td


# scales 1, 1, 2: Q of what was played: 0.5 + 0.5 = 1;  2 (-3 + 1) = -4
# next: agent 0: x' = 2, 4, -2, Q' = 4, 6, 0, max 6;  agent 1: x' = -1, -2, 1, Q' = -2, -3, 0, max 0
# targets 1 + 0.5 * 6 = 4 and -1 + 0: errors -3 and -3;  terminated: 1 and -1: errors 0 and -3
@pytest.mark.parametrize(("end", "expected", "target"), [("running", 9.0, 1.5), ("truncated", 9.0, 1.5),
                                                        ("terminated", 4.5, 0.0)])
def test_value_loss_by_hand(end, expected, target):
    network, q = hand_networks((1.0, 1.0, 2.0))
    out = PDQNValueLoss(network, q, gamma=0.5)(hand_batch(end))
    assert out["loss_value"].item() == pytest.approx(expected)
    assert out["pred_value"].item() == pytest.approx(-1.5) and out["target_value"].item() == pytest.approx(target)


# forbidden: agent 0's best, so that max is 4; agent 1's best, so that max is -2: targets 3 and -2, errors -2 and -2
def test_forbidden_choices_are_no_target():
    network, q = hand_networks((1.0, 1.0, 2.0))
    loss = PDQNValueLoss(network, q, gamma=0.5, has_mask=True)
    assert ("next", *ACTION_MASK) in loss.in_keys
    assert loss(hand_batch())["loss_value"].item() == pytest.approx(4.0)


def test_agents_that_left_do_not_count():
    network, q = hand_networks((1.0, 1.0, 2.0))
    td = hand_batch("terminated")  # errors 0 and -3: the second one left
    assert PDQNValueLoss(network, q, gamma=0.5, mask=ALIVE)(td)["loss_value"].item() == 0.0
    assert PDQNParamsLoss(network, q, mask=ALIVE)(td)["loss_params"].item() == pytest.approx(-2.5)


# head 2 with scales 2, 0.5, 2: next values agent 0: 8, 3, 0; agent 1: -4, -1.5, 0
# maxima of head 1: 6, 0; head 2: 8, 0; the smaller: 6, 0. Minimum first, maximum then would be 4, 0
# targets 4, -1; head 1: errors -3, -3; head 2: Q = 2, -4: errors -2, -3: (9 + 9) / 2 + (4 + 9) / 2 = 15.5
def test_the_smaller_of_the_two_heads_maxima():
    network, q = hand_networks((1.0, 1.0, 2.0), (2.0, 0.5, 2.0))
    out = PDQNValueLoss(network, q, gamma=0.5)(hand_batch())
    assert out["loss_value"].item() == pytest.approx(15.5) and out["target_value"].item() == pytest.approx(1.5)
    network, q = hand_networks((2.0, 2.0, 2.0), (1.0, 1.0, 2.0))  # the smaller one is the second: 12, 0 and 6, 0
    assert PDQNValueLoss(network, q, gamma=0.5)(hand_batch())["target_value"].item() == pytest.approx(1.5)


# x = 0.5, 1, -0.5 and 1, 2, -1; sum_j Q_j = 1 + 1.5 + 0 = 2.5 and 2 + 3 + 0 = 5: - mean = -3.75; outside: one of six
# d loss / d x = - scale / 2 = -0.5, -0.5, -1 for both agents, all to be raised: room (1 - x) / 2
# agent 0: 0.25, 0, 0.75 -> -0.125, 0, -0.75; agent 1: 0, -0.5, 1 -> 0, 0.25, -1
# d x / d weight = s = 0.5, 1: -0.0625, 0.25, -1.375
def test_params_loss_by_hand():
    network, q = hand_networks((1.0, 1.0, 2.0))
    out = PDQNParamsLoss(network, q)(hand_batch().select(OBSERVATION))
    assert out["loss_params"].item() == pytest.approx(-3.75) and out["outside"].item() == pytest.approx(1 / 6)
    out["loss_params"].backward()
    assert_close(network.module.weight.grad, torch.tensor([-0.0625, 0.25, -1.375]))


# not inverted: - (0.5 + 1) * scale / 2
def test_params_loss_without_inversion():
    network, q = hand_networks((1.0, 1.0, 2.0), (9.0, 9.0, 9.0))  # and the first head alone is asked
    PDQNParamsLoss(network, q, inverting=False)(hand_batch())["loss_params"].backward()
    assert_close(network.module.weight.grad, torch.tensor([-0.75, -0.75, -1.5]))


# d loss / d Q = 2 (Q - y) / 2 = -3 for both: scales get -3 (x + s): choice 0: -3 * 1; choice 2: -3 * (-3 + 1)
def test_each_loss_has_gradients_of_its_own_network_alone():
    network, q = hand_networks((1.0, 1.0, 2.0))
    value, params = PDQNValueLoss(network, q, gamma=0.5), PDQNParamsLoss(network, q)
    value(hand_batch())["loss_value"].backward()
    assert_close(q.module.scales[0].grad, torch.tensor([-3.0, 0.0, 6.0]))
    assert network.module.weight.grad is None
    q.module.scales[0].grad = None
    params(hand_batch())["loss_params"].backward()
    assert q.module.scales[0].grad is None and network.module.weight.grad.any()
    assert value.networks("critic") == {"critic": list(q.parameters())}
    assert params.networks("actor") == {"actor": list(network.parameters())}
    slow = [*value.slow_q.parameters(), *value.slow_params.parameters()]
    assert slow and all(p.grad is None and not p.requires_grad for p in slow)


# after doubling all: x = twice, Q of what was played 2 and -8; slow copies still give the targets 4 and -1
def test_slow_copies_move_at_their_own_rates():
    network, q = hand_networks((1.0, 1.0, 2.0))
    value = PDQNValueLoss(network, q, gamma=0.5)
    with torch.no_grad():
        for parameter in (*network.parameters(), *q.parameters()):
            parameter.mul_(2)
    assert value(hand_batch())["loss_value"].item() == pytest.approx((2**2 + 7**2) / 2)
    targets = value.targets(tau_q=0.5, tau_params=0.25)
    assert list(targets) == ["critic", "actor"]
    for group in targets.values():
        for target in group:
            target.step()
    assert_close(value.slow_q.module.scales[0].data, torch.tensor([1.5, 1.5, 3.0]))
    assert_close(value.slow_params.module.weight.data, torch.tensor([1.25, 2.5, -1.25]))
    assert_close(q.module.scales[0].data, torch.tensor([2.0, 2.0, 4.0]))  # those lead, and do not follow


# --------------------------------------------------------------- the protocol, with real networks


def make_losses(seed=0, features=None, encoders=(), *, agents=3, q_options=None, **options):
    torch.manual_seed(seed)
    specs = make_hybrid_specs(agents)
    network = make_param_network(specs, features or {}, cells=[8], **COMMON)
    q = make_hybrid_q(specs, features or {}, **{"cells": [8]} | COMMON | (q_options or {}))
    return (PDQNValueLoss(network, q, gamma=0.9, encoders=encoders, **options),
            PDQNParamsLoss(network, q, encoders=encoders, **{k: v for k, v in options.items() if k == "mask"}))


def make_minibatch(agents=3, rows=32):
    torch.manual_seed(1)
    td = TensorDict(batch_size=[rows])
    for root in ((), ("next",)):
        td[(*root, *OBSERVATION)] = torch.randn(rows, agents, 4)
        td[(*root, *ACTION_MASK)] = torch.rand(rows, agents, 3) < 0.7
        td[(*root, *ACTION_MASK)][..., 0] = True
    td[CHOICE], td[ALL_PARAMS] = torch.randint(3, (rows, agents)), torch.randn(rows, agents, 3)
    td[PARAMS] = torch.randn(rows, agents, 2)
    td["next", *REWARD], td["next", *TERMINATED] = torch.randn(rows, agents, 1), torch.rand(rows, agents, 1) < 0.3
    td[ALIVE] = torch.rand(rows, agents) < 0.8
    return td


CASES = {"plain": {}, "some left": {"mask": ALIVE}, "masked": {"has_mask": True}, "twin": {"q_options": {"heads": 2}},
         "multipass": {"q_options": {"multipass": True}}, "one agent": {"agents": 1},
         "multipass twin": {"q_options": {"multipass": True, "heads": 2}}}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("which", [0, 1], ids=["value", "params"])
def test_protocol(case, which):
    loss, td = make_losses(**CASES[case])[which], make_minibatch(CASES[case].get("agents", 3))
    before = frozen_copy(td)
    out = loss(td)
    assert_unchanged(td, before)
    for key, value in out.items():
        assert value.shape == () and value.isfinite() and value.requires_grad is key.startswith("loss_"), key
    assert len(set(loss.in_keys)) == len(loss.in_keys) and str(loss)
    selected = td.select(*loss.in_keys)
    assert all(torch.equal(value, out[key]) for key, value in loss(selected).items())
    for key in loss.in_keys:
        with pytest.raises(KeyError):
            loss(selected.exclude(key))
    [total] = [value for key, value in out.items() if key.startswith("loss_")]
    total.backward()
    trained = [p for p in loss.parameters() if p.requires_grad]
    assert all(p.grad is not None and p.grad.isfinite().all() for p in trained) and any(p.grad.any() for p in trained)
    other = make_losses(seed=3, **CASES[case])[which]
    for foreign in loss.__dict__.keys() & {"q", "params"}:  # the other loss's, saved there
        other.__dict__[foreign] = loss.__dict__[foreign]
    other.load_state_dict(dict(loss.state_dict()))
    assert all(torch.equal(value, out[key]) for key, value in other(td).items())


@pytest.mark.parametrize("which", [0, 1], ids=["value", "params"])
def test_losses_fall_on_a_fixed_batch(which):
    loss, td = make_losses()[which], make_minibatch()
    optimizer = torch.optim.Adam([p for p in loss.parameters() if p.requires_grad], lr=3e-3)
    values = []
    for _ in range(51):
        optimizer.zero_grad()
        total = sum(value for key, value in loss(td).items() if key.startswith("loss_"))
        total.backward()
        optimizer.step()
        values.append(total.item())
    assert values[-1] < values[0] - 0.02 * abs(values[0])


def test_both_losses_share_one_update_and_own_every_parameter():
    value, params = make_losses()
    update = make_update(value, params)
    check_ownership([update], [value.q, params.params])
    before = copy.deepcopy(dict(value.state_dict())) | copy.deepcopy(dict(params.state_dict()))
    metrics = update.step(make_minibatch())
    assert {"loss_value", "loss_params", "outside", "grad_norm_critic", "grad_norm_actor"} <= metrics.keys()
    after = dict(value.state_dict()) | dict(params.state_dict())
    still = {key for key, old in before.items() if torch.equal(old, after[key])}
    assert all(key.endswith(("module.weight", "module.bias")) for key in still), still  # the pass-through alone


def test_observations_are_encoded_anew_without_gradient():
    encoder = TensorDictModule(nn.Linear(4, 2), in_keys=[OBSERVATION], out_keys=[LATENT])
    td = make_minibatch()
    with torch.no_grad():
        given = encoder(td.clone())
        given["next"] = encoder(td["next"].clone())
    td[LATENT], td["next", *LATENT] = torch.full((32, 3, 2), 1e3), torch.full((32, 3, 2), 1e3)  # stale
    for loss, plain in zip(make_losses(features={LATENT: 2}, encoders=[encoder]), make_losses(features={LATENT: 2}),
                           strict=True):
        assert LATENT not in loss.in_keys and ("next", *LATENT) not in loss.in_keys
        out = loss(td.select(*loss.in_keys))
        for key, value in plain(given).items():
            assert_close(out[key], value)
        sum(value for key, value in out.items() if key.startswith("loss_")).backward()
        assert all(p.grad is None for p in encoder.parameters())
        assert not {id(p) for p in encoder.parameters()} & {id(p) for p in loss.parameters()}


@pytest.mark.parametrize("q_options", [{}, {"heads": 2, "multipass": True}], ids=["plain", "twin multipass"])
def test_it_learns_a_choice_and_its_parameter(q_options):
    """Reward x for choice 2, else 0, from random actions; the inverted gradient stops x at its bound."""
    value, params = make_losses(agents=1, q_options={"cells": [32]} | q_options)
    adam = partial(torch.optim.Adam, lr=0.01)
    update = make_update(value, params, optimizer={"critic": adam, "actor": adam})
    td = make_minibatch(1, rows=128)
    td[OBSERVATION], td["next", *TERMINATED] = torch.ones(128, 1, 4), torch.ones(128, 1, 1, dtype=torch.bool)
    td[ALL_PARAMS] = 2 * torch.rand(128, 1, 3) - 1
    td["next", *REWARD] = ((td[CHOICE] == 2) * td[ALL_PARAMS][..., 2]).unsqueeze(-1)
    for _ in range(100):
        update.step(td)
    s = torch.ones(1, 1, 4)
    x = params.params.module(s)
    assert value.q.module(s, x).argmax(-1) == 2 and 0.8 < x[0, 0, 2].item() < 1.1
