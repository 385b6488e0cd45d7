import pytest
import torch
from tensordict import TensorDict
from torch.testing import assert_close

from suite.modules.q_networks import (
    ACTION_VALUE,
    CHOSEN_VALUE,
    STATE_ACTION_VALUE,
    make_deterministic_actor,
    make_joint_q,
    make_mixer,
    make_q_policy,
)
from suite.specs import ACTION, ACTION_MASK, GROUP, OBSERVATION, STATE
from tests.batches import make_batch, make_specs

torch.set_num_threads(1)
LATENT = (GROUP, "latent")
SIZES = dict(cells=[8], activation="tanh", init="default", device="cpu")
SHARING = [("all", False), ("all", True), ("roles", False), ("none", True)]


@pytest.mark.parametrize(("share", "agent_id"), SHARING)
@pytest.mark.parametrize("kind", ["discrete", "masked"])
def test_greedy_policy_takes_the_best_allowed_choice(share, agent_id, kind):
    specs = make_specs(kind, types=(0, 1, 0))
    policy = make_q_policy(specs, {LATENT: 2}, share=share, agent_id=agent_id, **SIZES)
    batch = make_batch(specs, shape=(50, 4))
    batch[LATENT] = torch.randn(50, 4, 3, 2)
    mask = batch[ACTION_MASK] if kind == "masked" else torch.ones(50, 4, 3, 5, dtype=torch.bool)
    out = policy(batch.select(*policy.in_keys))
    network = policy[0]
    values = network(batch.select(*network.in_keys))[ACTION_VALUE]
    best = values.masked_fill(~mask, -torch.inf)
    assert values.shape == (50, 4, 3, 5)
    assert torch.equal(out[ACTION], best.argmax(-1))
    assert_close(out[CHOSEN_VALUE].squeeze(-1), best.amax(-1))
    assert (ACTION_MASK in policy.in_keys) is (kind == "masked")


def test_agents_of_other_roles_have_other_values():
    specs = make_specs("discrete", types=(0, 1, 0))
    policy = make_q_policy(specs, {}, share="roles", agent_id=False, **SIZES)
    values = policy(TensorDict({OBSERVATION: torch.ones(1, 3, 4)}, batch_size=[1]))[ACTION_VALUE]
    assert_close(values[:, 0], values[:, 2])
    assert not torch.allclose(values[:, 0], values[:, 1])


def test_vdn_sums():
    mixer = make_mixer("vdn", make_specs("discrete"), embed_dim=4, device="cpu")
    chosen = torch.tensor([[[1.0], [2.0], [4.0]], [[0.0], [-1.0], [3.0]]])
    td = mixer(TensorDict({CHOSEN_VALUE: chosen}, batch_size=[2]))
    assert_close(td["chosen_action_value"], torch.tensor([[7.0], [2.0]]))


@pytest.mark.parametrize("state", [True, False])
def test_qmix_is_monotonic_and_conditioned(state):
    specs = make_specs("discrete", state=state)
    mixer = make_mixer("qmix", specs, embed_dim=8, device="cpu")
    assert list(mixer.in_keys) == [CHOSEN_VALUE, STATE if state else OBSERVATION]
    batch = make_batch(specs).reshape(-1)
    chosen = torch.randn(24, 3, 1, requires_grad=True)
    td = batch.select(*mixer.in_keys, strict=False)
    td[CHOSEN_VALUE] = chosen
    total = mixer(td)["chosen_action_value"]
    assert total.shape == (24, 1)
    slope = torch.autograd.grad(total.sum(), chosen)[0]
    assert (slope >= 0).all() and (slope > 0).any(0).all()  # every agent counts, none against the team
    td[mixer.in_keys[1]] = torch.randn_like(td[mixer.in_keys[1]])
    assert not torch.allclose(mixer(td)["chosen_action_value"], total)


def test_unknown_mixer_is_named():
    with pytest.raises(ValueError, match=r"'qtran'.*\['qmix', 'vdn'\]"):
        make_mixer("qtran", make_specs("discrete"), embed_dim=4, device="cpu")


@pytest.mark.parametrize(("share", "agent_id"), SHARING)
def test_deterministic_actor_stays_inside_and_reaches_its_bounds(share, agent_id):
    specs = make_specs("continuous", types=(0, 1, 0))
    actor = make_deterministic_actor(specs, {LATENT: 2}, share=share, agent_id=agent_id, **SIZES)
    with torch.no_grad():
        for parameter in actor.parameters():
            parameter.mul_(20)
    batch = make_batch(specs, shape=(200,))
    batch[LATENT] = torch.randn(200, 3, 2)
    action = actor(batch.select(*actor.in_keys))[ACTION]
    assert action.shape == (200, 3, 2)
    assert ((action >= specs.low) & (action <= specs.high)).all()
    assert_close(action.amax(0).amax(-1), specs.high[:, 0], rtol=0, atol=0.1)  # each agent its own bounds


def test_deterministic_actor_at_zero_is_the_middle():
    specs = make_specs("continuous")
    actor = make_deterministic_actor(specs, {}, share="all", agent_id=False, **SIZES)
    with torch.no_grad():
        for parameter in actor.parameters():
            parameter.zero_()
    action = actor(make_batch(specs).select(OBSERVATION))[ACTION]
    assert_close(action, ((specs.low + specs.high) / 2).expand_as(action))


@pytest.mark.parametrize("share", ["all", "roles", "none"])
def test_joint_value_depends_on_everybodys_observation_and_action(share):
    specs = make_specs("continuous", types=(0, 1, 0))
    critic = make_joint_q(specs, share=share, **SIZES)
    batch = make_batch(specs).reshape(-1)
    td = batch.select(*critic.in_keys)
    for key in (OBSERVATION, ACTION):
        td[key] = td[key].clone().requires_grad_()
    value = critic(td.copy())[STATE_ACTION_VALUE]
    assert value.shape == (24, 3, 1)
    for gradient in torch.autograd.grad(value[:, 1].sum(), [td[OBSERVATION], td[ACTION]]):
        assert (gradient.abs().amax((0, 2)) > 0).all()  # of all three agents
    for one, other in ((0, 1), (0, 2), (1, 2)):
        assert not torch.allclose(value[:, one], value[:, other]), "each row is of its agent, who is paid for itself"


@pytest.mark.parametrize("share", ["all", "roles", "none"])
def test_joint_values_of_agents_learn_rewards_of_their_own(share):
    """Agent i is paid i in each of two states that look alike: rows that could not differ would all say 1."""
    torch.manual_seed(0)
    specs = make_specs("continuous", types=(0, 0, 0) if share == "roles" else (0, 1, 0))
    critic = make_joint_q(specs, share=share, **SIZES)
    batch, target = make_batch(specs).reshape(-1).select(*critic.in_keys), torch.arange(3.0).view(1, 3, 1)
    adam = torch.optim.Adam(critic.parameters(), lr=0.05)
    for _ in range(300):
        adam.zero_grad()
        (critic(batch.copy())[STATE_ACTION_VALUE] - target).square().mean().backward()
        adam.step()
    assert_close(critic(batch.copy())[STATE_ACTION_VALUE].mean(0), target[0], rtol=0, atol=0.1)


def test_a_joint_value_needs_ids_only_where_parameters_are_shared():
    for share, types, ids in (("all", (0, 0, 0), 3), ("roles", (0, 1, 0), 3), ("roles", (0, 1, 2), 0),
                              ("none", (0, 0, 0), 0)):
        specs = make_specs("continuous", types=types)
        first = make_joint_q(specs, share=share, **SIZES).module.layers[0]
        assert first.weight.shape[-1] == 3 * (specs.obs_dim + specs.action_dim) + ids, (share, types)
