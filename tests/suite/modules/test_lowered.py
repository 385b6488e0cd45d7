import pytest
import torch
from tensordict import TensorDict
from tensordict.nn import TensorDictModule, TensorDictSequential
from torch import nn
from torch.testing import assert_close
from torchrl.envs.utils import ExplorationType, set_exploration_type
from torchrl.modules import AdditiveGaussianModule, EGreedyModule

from suite.modules import Lowered, make_actor, make_critic
from suite.modules.lowered import call
from suite.modules.q_networks import make_deterministic_actor, make_q_policy
from suite.specs import ACTION, ACTION_MASK, GROUP, LOG_PROB, OBSERVATION, VALUE, Specs
from tests.batches import make_batch, make_specs
from tests.toy import ToyEnv

torch.set_num_threads(1)
LATENT = (GROUP, "latent")
CASES = {"discrete": ("discrete", {}), "masked": ("masked", {}), "recurrent": ("masked", {"recurrent_dim": 5}),
         "normal": ("continuous", {"head": "normal"}), "tanh": ("continuous", {"head": "tanh_normal"}),
         "tanh_state": ("continuous", {"head": "tanh_normal", "state_dependent_scale": True}),
         "own_networks": ("continuous", {"share": "none", "agent_id": True, "recurrent_dim": 5})}
COMMON = dict(share="all", agent_id=False, cells=[8], activation="tanh", init="default", device="cpu")


def policy_and_inputs(case):
    """An encoder and an actor, nested as the recipes nest them, and a batch."""
    kind, options = CASES[case]
    specs = make_specs(kind)
    encoder = TensorDictModule(nn.Linear(4, 2), in_keys=[OBSERVATION], out_keys=[LATENT])
    options = COMMON | {"recurrent_dim": 0, "head": "normal", "state_dependent_scale": False} | options
    policy = TensorDictSequential(encoder, make_actor(specs, {LATENT: 2}, **options))
    batch = make_batch(specs, hidden=options["recurrent_dim"])
    return policy, batch.select(*policy.in_keys)


def as_dict(td):
    return {key: td[key] for key in td.keys(True, True)}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("deterministic", [False, True])
def test_lowered_equals_the_policy_for_the_same_random_state(case, deterministic):
    policy, td = policy_and_inputs(case)
    kind = ExplorationType.DETERMINISTIC if deterministic else ExplorationType.RANDOM
    torch.manual_seed(7)
    with set_exploration_type(kind):
        expected = policy(td.clone())
    torch.manual_seed(7)
    tensors = as_dict(td)
    out = Lowered(policy)(tensors, deterministic=deterministic)
    assert out is tensors  # extended in place
    assert {ACTION, LOG_PROB, LATENT} <= out.keys() and out.keys() == set(expected.keys(True, True))
    for key, value in out.items():
        assert torch.equal(value, expected[key]), key


def test_deterministic_draws_nothing_and_random_does():
    policy, td = policy_and_inputs("tanh")
    lowered, state = Lowered(policy), torch.get_rng_state()
    first = lowered(as_dict(td), deterministic=True)[ACTION]
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(first, lowered(as_dict(td), deterministic=True)[ACTION])
    assert not torch.equal(lowered(as_dict(td))[ACTION], lowered(as_dict(td))[ACTION])


def test_changed_parameters_are_seen():
    policy, td = policy_and_inputs("discrete")
    lowered = Lowered(policy)
    before = lowered(as_dict(td))[GROUP, "logits"]
    with torch.no_grad():
        next(policy.parameters()).add_(1.0)
    assert not torch.equal(before, lowered(as_dict(td))[GROUP, "logits"])


@pytest.mark.parametrize("case", CASES)
def test_distribution_carries_gradients_and_leaves_its_input_alone(case):
    policy, td = policy_and_inputs(case)
    tensors = as_dict(td)
    keys = list(tensors)
    dist = Lowered(policy).distribution(tensors)
    assert list(tensors) == keys
    action = dist.sample()
    encoder, actor = policy
    assert_close(dist.log_prob(action), actor.get_dist(encoder(td.clone())).log_prob(action))
    gradients = torch.autograd.grad(dist.log_prob(action).square().sum(), list(policy.parameters()))
    assert all(g.any() for g in gradients)


def test_without_a_probabilistic_module_there_is_no_distribution():
    module = TensorDictModule(nn.Linear(4, 2), in_keys=[OBSERVATION], out_keys=[LATENT])
    with pytest.raises(ValueError, match="no probabilistic module"):
        Lowered(module).distribution({OBSERVATION: torch.zeros(3, 4)})


def explorer(kind):
    """A policy that ends with one of TorchRL's exploration modules, and the inputs of 50 environments."""
    env = ToyEnv(50, 3, is_discrete=kind != "gaussian", mask=kind == "masked")
    specs = Specs.from_env(env)
    if kind == "gaussian":
        acting = TensorDictSequential(make_deterministic_actor(specs, {}, **COMMON))
        explore = AdditiveGaussianModule(spec=env.full_action_spec, sigma_init=0.5, sigma_end=0.5, action_key=ACTION,
                                         annealing_num_steps=1, safe=True, device="cpu")
    else:
        acting = make_q_policy(specs, {}, **COMMON)
        explore = EGreedyModule(spec=env.full_action_spec, eps_init=0.5, eps_end=0.5, annealing_num_steps=1,
                                action_key=ACTION, action_mask_key=ACTION_MASK if kind == "masked" else None)
    td = env.reset()
    if kind == "masked":
        td[ACTION_MASK][:, :, 1::2] = False
    return acting, TensorDictSequential(*acting, explore), td


@pytest.mark.parametrize("kind", ["discrete", "masked", "gaussian"])
def test_foreign_modules_run_as_they_are(kind):
    acting, policy, td = explorer(kind)
    torch.manual_seed(3)
    with set_exploration_type(ExplorationType.RANDOM):
        expected = policy(td.clone())[ACTION]
    torch.manual_seed(3)
    with set_exploration_type(ExplorationType.RANDOM):
        out = Lowered(policy)({key: td[key] for key in (OBSERVATION, ACTION_MASK) if key in td.keys(True)})
    assert torch.equal(out[ACTION], expected)
    greedy = Lowered(acting)({key: td[key] for key in (OBSERVATION, ACTION_MASK) if key in td.keys(True)})[ACTION]
    assert not torch.equal(out[ACTION], greedy)  # it does explore
    if kind == "masked":
        assert (out[ACTION] % 2 == 0).all() and (greedy % 2 == 0).all()


def test_a_wrapped_encoder_may_come_first():
    class Doubling(TensorDictModule):
        """Not a plain TensorDictModule: it must be run on a TensorDict."""

        def forward(self, tensordict):
            tensordict[LATENT] = 2 * tensordict[OBSERVATION]
            return tensordict

    actor = make_actor(make_specs("discrete"), {LATENT: 4}, recurrent_dim=0, head="normal",
                       state_dependent_scale=False, **COMMON)
    policy = TensorDictSequential(Doubling(nn.Identity(), in_keys=[OBSERVATION], out_keys=[LATENT]), actor)
    x = torch.randn(5, 3, 4)
    out = Lowered(policy)({OBSERVATION: x}, deterministic=True)
    assert torch.equal(out[LATENT], 2 * x)
    assert_close(Lowered(policy).distribution({OBSERVATION: x}).logits,
                 out[GROUP, "logits"] - out[GROUP, "logits"].logsumexp(-1, keepdim=True))


@pytest.mark.parametrize("recurrent", [0, 5])
def test_call_returns_the_first_output(recurrent):
    specs = make_specs("discrete")
    critic = make_critic(specs, {}, centralized=True, recurrent_dim=recurrent, **COMMON)
    batch = make_batch(specs, hidden=recurrent, critic_rows=1 if recurrent else 0)
    expected = critic(batch.select(*critic.in_keys))[VALUE]
    assert torch.equal(call(critic, batch), expected)
    assert torch.equal(call(critic, as_dict(batch)), expected)
    assert isinstance(batch, TensorDict)
