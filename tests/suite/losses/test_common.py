"""The protocol, for every loss of the suite: a new entry of `STATE_MODELS` is tested without a line here."""

import copy
import inspect
from functools import partial

import pytest
import torch
from tensordict import TensorDict
from tensordict.nn import TensorDictModule, TensorDictSequential
from torch import nn
from torchrl.collectors import Collector
from torchrl.objectives import LossModule
from torchrl.objectives.value import GAE

from suite.collector import make_collector
from suite.data import Minibatches
from suite.losses import STATE_MODELS, MADDPGLoss, MixedQLoss, NoLoss, PolicyLoss, Returns, ValueLoss
from suite.losses.common import Loss
from suite.modules import make_actor, make_critic
from suite.modules.q_networks import make_deterministic_actor, make_joint_q, make_mixer, make_q_policy
from suite.specs import ADVANTAGE, ALIVE, DONE, GROUP, OBSERVATION, REWARD, TERMINATED, VALUE, VALUE_TARGET, Specs
from tests.batches import (
    STATE_MODEL_OPTIONS,
    assert_unchanged,
    frozen_copy,
    make_batch,
    make_learner,
    make_past_batch,
    make_specs,
)
from tests.toy import ToyEnv

torch.set_num_threads(1)
LATENT = (GROUP, "latent")
COMMON = dict(share="all", agent_id=False, cells=[16], activation="tanh", init="default", device="cpu")


def actor_for(specs, **options):
    return make_actor(specs, {}, **COMMON | dict(recurrent_dim=0, head="tanh_normal", state_dependent_scale=True)
                      | options)


def critic_for(specs, **options):
    return make_critic(specs, {}, **COMMON | dict(recurrent_dim=0, centralized=True) | options)


def policy_loss(specs, critic=None, **options):
    return PolicyLoss(actor_for(specs, recurrent_dim=options.pop("recurrent_dim", 0)), critic=critic,
                      **dict(clip=0.2, entropy_coef=0.01) | options)


def value_loss(specs, **options):
    return ValueLoss(critic_for(specs), **dict(clip=None, kind="l2") | options)


def encoder():
    return TensorDictModule(nn.Linear(4, 2), in_keys=[OBSERVATION], out_keys=[LATENT])


def mixed_q(specs, kind, features=None, **options):
    return MixedQLoss(make_q_policy(specs, features or {}, **COMMON), make_mixer(kind, specs, embed_dim=8,
                                                                               device="cpu"), gamma=0.9, **options)


def maddpg(specs, features=None, **options):
    critic = make_joint_q(specs, **{key: value for key, value in COMMON.items() if key != "agent_id"})
    return MADDPGLoss(make_deterministic_actor(specs, features or {}, **COMMON), critic, gamma=0.9, **options)


# name: (kind of action, loss of specs, flat minibatch or [N, T])
CASES = {
    "ppo continuous": ("continuous", policy_loss, True),
    "ppo masked choices": ("masked", policy_loss, True),
    "ppo some left": ("discrete", lambda s: policy_loss(s, mask=ALIVE), True),
    "ppo recomputed advantage": ("discrete", lambda s: policy_loss(s, critic=critic_for(s)), True),
    "ppo recurrent": ("discrete", lambda s: policy_loss(s, recurrent_dim=5), False),
    "a2c continuous": ("continuous", lambda s: policy_loss(s, clip=None), True),
    "a2c discrete": ("discrete", lambda s: policy_loss(s, clip=None), True),
    "value l2": ("discrete", value_loss, True),
    "value clipped": ("discrete", lambda s: value_loss(s, clip=0.2), True),
    "value smooth": ("discrete", lambda s: value_loss(s, kind="smooth_l1"), True),
    "value some left": ("discrete", lambda s: value_loss(s, mask=ALIVE), True),
    "value recurrent": ("discrete", lambda s: ValueLoss(critic_for(s, recurrent_dim=5), clip=None, kind="l2"), False),
    "qmix": ("masked", lambda s: mixed_q(s, "qmix"), True),
    "vdn": ("discrete", lambda s: mixed_q(s, "vdn"), True),
    "vdn encoded": ("discrete", lambda s: mixed_q(s, "vdn", {LATENT: 2}, encoders=[encoder()]), True),
    "maddpg": ("continuous", maddpg, True),
    "maddpg encoded": ("continuous", lambda s: maddpg(s, {LATENT: 2}, encoders=[encoder()]), True),
    **{f"{name} {kind}": (kind, cls, True)
       for name, cls in STATE_MODELS.items() for kind in ("discrete", "continuous")},
    **{f"moa recurrent {kind}": (kind, partial(STATE_MODELS["moa"], memory="gru", memory_dim=5), False)
       for kind in ("discrete", "continuous")},
}
TRAINED = {name: case for name, case in CASES.items() if case[1] is not NoLoss}


def make(name, seed=0):
    """A loss and a minibatch."""
    torch.manual_seed(seed)
    kind, factory, flat = CASES[name]
    specs = make_specs(kind)
    batch = make_batch(specs, hidden=0 if flat else 5, critic_rows=0 if flat else 1)
    batch.update(make_past_batch(specs, *batch.shape, memory=0 if flat else 5))
    return factory(specs), batch.reshape(-1) if flat else batch


def parameters(loss):
    return [parameter for parameter in loss.parameters() if parameter.requires_grad]


def total(out):
    return sum((value for key, value in out.items() if key.startswith("loss_")), torch.zeros(()))


def seeded(loss, minibatch):
    torch.manual_seed(11)  # some losses sample
    return loss(minibatch)


@pytest.mark.parametrize("name", CASES)
def test_forward_gives_scalars_and_is_a_torchrl_loss(name):
    loss, minibatch = make(name)
    out = loss(minibatch)
    assert isinstance(loss, Loss) and isinstance(loss, LossModule) and isinstance(out, TensorDict)
    assert out.batch_size == torch.Size([])
    for key, value in out.items():
        assert isinstance(key, str) and value.shape == () and value.isfinite(), key
        assert value.requires_grad is key.startswith("loss_"), key  # diagnostics carry no graph
    assert str(loss)  # printable


@pytest.mark.parametrize("name", CASES)
def test_a_method_of_the_protocol_means_the_same_in_every_loss(name):
    cls = type(make(name)[0])
    for method, function in vars(Loss).items():
        if callable(function) and method != "forward" and not method.startswith("_"):
            parameters = [list(inspect.signature(getattr(c, method)).parameters) for c in (cls, Loss)]
            assert parameters[0] == parameters[1], method


@pytest.mark.parametrize("name", TRAINED)
def test_every_parameter_gets_a_gradient(name):
    loss, minibatch = make(name)
    total(loss(minibatch)).backward()
    for parameter_name, parameter in loss.named_parameters():
        if parameter.requires_grad:
            assert parameter.grad is not None and parameter.grad.isfinite().all(), parameter_name
    assert any(parameter.grad.any() for parameter in parameters(loss))


@pytest.mark.parametrize("name", CASES)
def test_input_stays_as_it_was(name):
    loss, minibatch = make(name)
    before = frozen_copy(minibatch)
    total(loss(minibatch))
    assert_unchanged(minibatch, before)


@pytest.mark.parametrize("name", CASES)
def test_in_keys_are_all_that_is_read(name):
    loss, minibatch = make(name)
    assert len(set(loss.in_keys)) == len(loss.in_keys)
    expected, out = seeded(loss, minibatch), seeded(loss, minibatch.select(*loss.in_keys))
    assert set(out.keys()) == set(expected.keys())
    for key, value in expected.items():
        assert torch.equal(out[key], value), key


@pytest.mark.parametrize("name", TRAINED)
def test_each_in_key_is_needed_by_somebody(name):
    loss, minibatch = make(name)
    selected = minibatch.select(*loss.in_keys)
    for key in loss.in_keys:
        if "td" in dict(loss.named_children()) and key[-1] in ("done", "terminated"):
            continue  # TorchRL's target puts one in the place of the other
        with pytest.raises((KeyError, AttributeError)):  # the second is how TorchRL's losses fail
            loss(selected.exclude(key))


@pytest.mark.parametrize("name", TRAINED)
def test_loss_falls_on_a_fixed_batch(name):
    loss, minibatch = make(name)
    optimizer = torch.optim.Adam(parameters(loss), lr=3e-3)
    values = []
    for _ in range(51):
        optimizer.zero_grad()
        value = total(seeded(loss, minibatch))
        value.backward()
        optimizer.step()
        values.append(value.item())
    assert values[-1] < values[0] - 0.005 * abs(values[0]), (values[0], values[-1])


@pytest.mark.parametrize("name", CASES)
def test_state_dict_round_trip(name):
    loss, minibatch = make(name)
    other = make(name, seed=1)[0]
    for foreign in loss.__dict__.keys() & {"critic", "encode"}:  # another loss's modules, saved there
        other.__dict__[foreign] = loss.__dict__[foreign]
    state = copy.deepcopy(dict(loss.state_dict()))
    assert len(state) >= len(parameters(loss))
    other.load_state_dict(state)
    theirs = dict(other.state_dict())
    assert state.keys() == theirs.keys()
    expected, out = seeded(loss, minibatch), seeded(other, minibatch)
    for key, value in expected.items():
        assert torch.equal(out[key], value), key


def coefficients(factory):
    return [option for option in factory.option_names() if option == "coef" or option.endswith("_coef")]


@pytest.mark.parametrize("name", [n for n, cls in STATE_MODELS.items() if coefficients(cls)])
@pytest.mark.parametrize("kind", ["discrete", "continuous"])
def test_zero_coefficients_remove_a_state_models_terms(name, kind):
    specs = make_specs(kind)
    cls = STATE_MODELS[name]
    minibatch = make_past_batch(specs, 4, 6).reshape(-1)
    assert total(cls(specs)(minibatch)) != 0
    loss = cls(specs, **dict.fromkeys(coefficients(cls), 0.0))
    value = total(loss(minibatch))
    assert value == 0
    if value.requires_grad:
        value.backward()
        assert not any(p.grad is not None and p.grad.any() for p in parameters(loss))


@pytest.mark.parametrize("clip", [0.2, None])
def test_zero_entropy_coefficient_removes_the_entropy_term(clip):
    specs = make_specs("discrete")
    torch.manual_seed(0)
    loss, minibatch = policy_loss(specs, clip=clip, entropy_coef=0.0), make_batch(specs).reshape(-1)
    out = loss(minibatch)
    assert "loss_entropy" not in out and "entropy" in out
    weighted = PolicyLoss(loss.actor, clip=clip, entropy_coef=0.5)(minibatch)
    assert weighted["loss_entropy"] == -0.5 * weighted["entropy"]
    assert torch.equal(weighted["loss_policy"], out["loss_policy"])


@pytest.mark.parametrize(("name", "cls"), STATE_MODELS.items(), ids=STATE_MODELS)
@pytest.mark.parametrize("kind", ["discrete", "continuous"])
def test_what_a_state_model_brings_fits_the_recipe(name, cls, kind):
    specs = make_specs(kind)
    loss, batch = cls(specs, **STATE_MODEL_OPTIONS.get(name, {})), make_past_batch(specs, 4, 6)
    before = frozen_copy(batch)
    make_returns = partial(Returns, kind="nstep", gamma=0.9, lmbda=1.0, n=2, target_tau=None)
    new_critic = partial(make_critic, recurrent_dim=0, **COMMON)
    learner = make_learner(make_returns, new_critic, new_critic(specs, {}, centralized=True))
    estimators = loss.estimators(learner)
    assert loss.companions(learner) == {} and loss.metrics() == {}
    loss.receive(batch)
    terms = loss.reward_terms(batch)
    assert_unchanged(batch, before)
    for estimator in estimators:
        estimator(batch)
    assert terms.keys() == loss.reward_weights.keys()
    for value in terms.values():
        assert value.shape == batch["next", *REWARD].shape and value.isfinite().all()
    encoded = TensorDictSequential(*loss.encoders)(batch.copy()) if loss.encoders else batch
    for key, size in loss.features.items():
        assert encoded[key].shape == (*batch.shape, specs.n_agents, size)
    updates = loss.updates("name", Minibatches(2, 8), optimizer=torch.optim.Adam, max_grad_norm=1.0)
    assert bool(updates) is bool(parameters(loss))
    for source in dict.fromkeys(update.data.owner for update in updates):
        source.extend(batch)
    assert {p for u in updates for group in u.params.values() for p in group} == set(parameters(loss))
    for update in updates:
        metrics = update.run(batch)
        assert metrics and all(value.isfinite() for value in metrics.values())
    loss.refresh(batch)


def test_option_names_are_the_keywords():
    class Example(Loss):
        def __init__(self, specs, *, kl_coef=1.0, width=3):
            super().__init__()

    assert Example.option_names() == ["kl_coef", "width"] and NoLoss.option_names() == []
    assert Example(None).reward_terms(None) == {}


# --------------------------------------------------------------- in anyone's TorchRL loop: stock collector, plain Adam

LOOPS = {name: CASES[name] for name in CASES if "recurrent" not in name and "some left" not in name}


@pytest.mark.parametrize("name", LOOPS)
def test_usable_in_a_plain_torchrl_loop(name):
    torch.manual_seed(0)
    kind, factory, _ = CASES[name]
    env = ToyEnv(4, 3, is_discrete=kind != "continuous", mask=kind == "masked", max_steps=5)
    specs = Specs.from_env(env)
    loss = factory(specs)
    acting = loss.actor if isinstance(loss, PolicyLoss) else actor_for(specs)
    gae = GAE(gamma=0.9, lmbda=0.9, value_network=critic_for(specs))
    gae.set_keys(advantage=ADVANTAGE, value_target=VALUE_TARGET, value=VALUE, reward=REWARD, done=DONE,
                 terminated=TERMINATED)
    optimizer = torch.optim.Adam(parameters(loss), lr=1e-3) if parameters(loss) else None
    recorders = getattr(loss, "recorders", [])
    if recorders:  # carried from step to step, which needs a primer
        collector = make_collector(env, TensorDictSequential(acting, *recorders), steps=8, total_frames=64, fast=False)
    else:
        collector = Collector(env, acting, frames_per_batch=32, total_frames=64)
    before = [parameter.clone() for parameter in parameters(loss)]
    for batch in collector:
        for source, key in (("done", DONE), ("terminated", TERMINATED)):
            batch["next", *key] = batch["next", source].unsqueeze(-2).expand(batch["next", *REWARD].shape)
        if isinstance(loss, Loss):
            loss.receive(batch)
        with torch.no_grad():
            gae(batch)
        out = loss(batch.reshape(-1))
        if optimizer is not None:
            optimizer.zero_grad()
            total(out).backward()
            optimizer.step()
    collector.shutdown()
    after = parameters(loss)
    assert len(before) == len(after) and all(p.isfinite().all() for p in after)
    if optimizer is not None:
        assert any(not torch.equal(x, y) for x, y in zip(before, after, strict=True))
