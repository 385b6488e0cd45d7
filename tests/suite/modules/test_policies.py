import itertools

import pytest
import torch
from tensordict import TensorDict
from tensordict.nn import TensorDictModule, TensorDictSequential
from torch import nn
from torch.testing import assert_close

from suite.modules import Lowered, make_actor, make_critic
from suite.modules.policies import CRITIC_RECURRENT, hidden_shapes, make_scalers
from suite.specs import ACTION, ACTION_MASK, GROUP, IS_INIT, LOG_PROB, OBSERVATION, RECURRENT, STATE, VALUE
from tests.batches import make_batch, make_specs

torch.set_num_threads(1)
SIZES = dict(cells=[8], activation="tanh", init="orthogonal", device="cpu")
HEADS = {"discrete": ("discrete", "normal", False), "masked": ("masked", "normal", False),
         "normal": ("continuous", "normal", False), "normal_state": ("continuous", "normal", True),
         "tanh": ("continuous", "tanh_normal", False), "tanh_state": ("continuous", "tanh_normal", True)}
FLAGS = [False, True]
MATRIX = list(itertools.product(["all", "roles", "none"], FLAGS, [0, 5]))  # sharing, agent ids, recurrent size
LATENT = (GROUP, "latent")


def actor_of(specs, *, features=None, head="normal", share="all", agent_id=False, recurrent_dim=0,
             state_dependent_scale=False, **sizes):
    return make_actor(specs, features or {}, share=share, agent_id=agent_id, recurrent_dim=recurrent_dim, head=head,
                      state_dependent_scale=state_dependent_scale, **SIZES | sizes)


def critic_of(specs, *, features=None, centralized=True, share="all", agent_id=False, recurrent_dim=0, **sizes):
    return make_critic(specs, features or {}, centralized=centralized, share=share, agent_id=agent_id,
                       recurrent_dim=recurrent_dim, **SIZES | sizes)


def spread(module, scale=1.0):
    """Far from its initial, nearly constant output."""
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.normal_(std=scale)
    return module


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize(("share", "agent_id", "recurrent"), MATRIX)
def test_actor_shapes_and_gradients(head, share, agent_id, recurrent):
    kind, distribution, state_scale = HEADS[head]
    specs = make_specs(kind, types=(0, 1, 0))
    actor = actor_of(specs, features={LATENT: 2}, head=distribution, share=share, agent_id=agent_id,
                     recurrent_dim=recurrent, state_dependent_scale=state_scale)
    batch = make_batch(specs, hidden=recurrent)
    batch[LATENT] = torch.randn(*batch.shape, 3, 2, requires_grad=True)
    for td in (batch, batch[:, 0]):  # sequences [N, T], and one step [N]
        out = actor(td.select(*actor.in_keys))
        assert out[ACTION].shape == ((*td.shape, 3) if specs.discrete else (*td.shape, 3, 2))
        assert out[ACTION].dtype == (torch.int64 if specs.discrete else torch.float32)
        assert out[LOG_PROB].shape == (*td.shape, 3)
        if recurrent:
            assert out["next", *RECURRENT].shape == (*td.shape, 3, 5)
    log_prob = actor.get_dist(batch.select(*actor.in_keys)).log_prob(batch[ACTION])
    gradients = torch.autograd.grad(log_prob.square().sum(), [*actor.parameters(), batch[LATENT]])
    assert all(g.isfinite().all() and g.any() for g in gradients)


def test_actor_input_keys():
    specs = make_specs("masked")
    actor = actor_of(specs, features={LATENT: 2}, recurrent_dim=5)
    assert list(actor.in_keys) == [OBSERVATION, LATENT, ACTION_MASK, RECURRENT, IS_INIT]
    assert ACTION_MASK not in actor_of(make_specs("discrete")).in_keys
    assert ACTION_MASK not in actor_of(make_specs("continuous", has_mask=True)).in_keys


def test_masked_actions_are_never_taken_and_the_others_are():
    torch.manual_seed(0)
    specs = make_specs("masked")
    actor = spread(actor_of(specs), 3.0)
    batch = make_batch(specs, shape=(64, 40))
    mask = batch[ACTION_MASK]
    lowered = Lowered(actor)
    inputs = {key: batch[key] for key in actor.in_keys}
    for deterministic in FLAGS:
        action = lowered(dict(inputs), deterministic=deterministic)[ACTION]
        assert mask.gather(-1, action.unsqueeze(-1)).all()
        assert len(action.unique()) == 5
    probs = lowered.distribution(inputs).probs
    assert not probs[~mask].any()
    assert_close(probs.sum(-1), torch.ones(64, 40, 3))


def test_mask_with_no_choice_left_gives_finite_numbers():
    specs = make_specs("masked")
    actor, batch = actor_of(specs), make_batch(specs)
    batch[ACTION_MASK] = torch.zeros_like(batch[ACTION_MASK])  # an agent that has left the episode
    out = actor(batch.select(*actor.in_keys))
    assert out[LOG_PROB].isfinite().all() and actor.get_dist(out).entropy().isfinite().all()


@pytest.mark.parametrize("head", ["normal", "tanh", "normal_state", "tanh_state"])
def test_continuous_heads_start_with_unit_scale_and_positive_stay(head):
    torch.manual_seed(0)
    kind, distribution, state_scale = HEADS[head]
    specs = make_specs(kind)
    actor = actor_of(specs, head=distribution, state_dependent_scale=state_scale)
    batch = make_batch(specs)
    out = actor(batch.select(*actor.in_keys))
    assert_close(out[GROUP, "scale"], torch.ones(4, 6, 3, 2), rtol=0, atol=0.05)
    spread(actor, 5.0)
    out = actor(batch.select(*actor.in_keys))
    assert (out[GROUP, "scale"] > 0).all() and ((out[GROUP, "scale"] - 1).abs() > 0.1).any()


def test_tanh_head_stays_inside_the_bounds_of_every_agent():
    specs = make_specs("continuous")
    actor, batch = spread(actor_of(specs, head="tanh_normal"), 3.0), make_batch(specs, shape=(50, 20))
    action = actor(batch.select(*actor.in_keys))[ACTION]
    assert ((action > specs.low) & (action < specs.high)).all()
    assert (action[..., 2, :].abs() > 1).any()  # the third agent's bounds are [-3, 3]


@pytest.mark.parametrize(("share", "agent_id", "differs"), [
    ("all", False, False), ("all", True, True), ("none", False, True)])
@pytest.mark.parametrize("recurrent", [0, 5])
def test_what_tells_agents_apart(share, agent_id, differs, recurrent):
    specs = make_specs("discrete")
    actor = spread(actor_of(specs, share=share, agent_id=agent_id, recurrent_dim=recurrent))
    batch = make_batch(specs, hidden=recurrent)
    batch[OBSERVATION] = batch[OBSERVATION][:, :, :1].expand(4, 6, 3, 4)
    if recurrent:
        batch[RECURRENT] = torch.zeros_like(batch[RECURRENT])
    logits = actor(batch.select(*actor.in_keys))[GROUP, "logits"]
    assert torch.allclose(logits[:, :, 0], logits[:, :, 1], atol=1e-6) is not differs


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("recurrent", [0, 5])
def test_agents_of_one_role_share_every_parameter(head, recurrent):
    kind, distribution, state_scale = HEADS[head]
    specs = make_specs(kind, types=(0, 1, 0))
    actor = spread(actor_of(specs, head=distribution, share="roles", state_dependent_scale=state_scale,
                            recurrent_dim=recurrent))
    batch = make_batch(specs, hidden=recurrent)
    batch[OBSERVATION] = batch[OBSERVATION][:, :, :1].expand(4, 6, 3, 4)
    batch[ACTION_MASK] = torch.ones_like(batch[ACTION_MASK])
    if recurrent:
        batch[RECURRENT] = torch.zeros_like(batch[RECURRENT])
    out = actor(batch.select(*actor.in_keys))
    for name in ("logits",) if specs.discrete else ("loc", "scale"):
        x = out[GROUP, name]
        assert_close(x[:, :, 0], x[:, :, 2])
        if not (name == "scale" and not state_scale):
            assert not torch.allclose(x[:, :, 0], x[:, :, 1], atol=1e-3)
    assert all(parameter.shape[0] == 2 for parameter in actor.parameters())  # two roles, two sets


@pytest.mark.parametrize("state", FLAGS)
@pytest.mark.parametrize(("share", "agent_id", "recurrent"), MATRIX)
@pytest.mark.parametrize("centralized", FLAGS)
def test_critic_shapes_rows_and_gradients(state, share, agent_id, recurrent, centralized):
    specs = make_specs("discrete", types=(0, 1, 0), state=state)
    critic = spread(critic_of(specs, features={LATENT: 2}, centralized=centralized, share=share, agent_id=agent_id,
                              recurrent_dim=recurrent))
    rows = 1 if centralized and share == "all" and not agent_id else 3
    batch = make_batch(specs, hidden=recurrent, critic_rows=rows if recurrent else 0)
    batch[LATENT] = torch.randn(*batch.shape, 3, 2, requires_grad=True)
    for td in (batch, batch[:, 0]):
        out = critic(td.select(*critic.in_keys))
        assert out[VALUE].shape == (*td.shape, 3, 1)
        if recurrent:
            assert out["next", CRITIC_RECURRENT].shape == (*td.shape, rows, 5)
    assert critic.module.trunk.assemble.rows == rows
    value = critic(batch.select(*critic.in_keys))[VALUE]
    same = torch.allclose(value[:, :, 0], value[:, :, 1], atol=1e-6)
    assert same is (rows == 1)
    gradients = torch.autograd.grad(value.square().sum(), [*critic.parameters(), batch[LATENT]])
    assert all(g.isfinite().all() and g.any() for g in gradients)


@pytest.mark.parametrize(("centralized", "state", "reads"), [
    (True, True, STATE), (True, False, OBSERVATION), (False, True, OBSERVATION)])
def test_what_a_critic_reads(centralized, state, reads):
    specs = make_specs("discrete", state=state)
    critic = spread(critic_of(specs, centralized=centralized, agent_id=True))
    assert list(critic.in_keys) == [reads]
    batch = make_batch(specs)
    before = critic(batch.select(reads))[VALUE]
    if reads == OBSERVATION:  # change agent 0's observation: a local critic of agent 1 must not notice
        batch[OBSERVATION][:, :, 0] += 1
        after = critic(batch.select(reads))[VALUE]
        assert not torch.allclose(before[:, :, 0], after[:, :, 0])
        assert torch.equal(before[:, :, 1], after[:, :, 1]) is not centralized


def test_hidden_shapes_of_what_the_collector_carries():
    specs = make_specs("discrete")
    actor = actor_of(specs, recurrent_dim=5)
    assert hidden_shapes(TensorDictSequential(actor)) == {RECURRENT: (3, 5)}
    assert hidden_shapes(actor_of(specs)) == {}


def test_any_module_may_declare_what_it_carries():
    class Carrying(nn.Identity):
        carried = {("agents", "previous"): (3, 2), "clock": (1,)}  # noqa: RUF012

    encoder = TensorDictModule(Carrying(), in_keys=["clock"], out_keys=[LATENT])
    both = TensorDictSequential(encoder, actor_of(make_specs("discrete"), recurrent_dim=5))
    assert hidden_shapes(both) == {("agents", "previous"): (3, 2), "clock": (1,), RECURRENT: (3, 5)}


def test_recurrent_actor_remembers_until_the_episode_ends():
    specs = make_specs("discrete")
    actor = spread(actor_of(specs, recurrent_dim=5))
    batch = make_batch(specs, hidden=5)
    batch[IS_INIT] = torch.zeros(4, 6, 1, dtype=torch.bool)
    batch[IS_INIT][:, 3] = True

    def logits(td):
        return actor(td.select(*actor.in_keys))[GROUP, "logits"]

    before = logits(batch)
    batch[OBSERVATION][:, 1] += 1
    moved = (logits(batch) - before).abs().amax((0, 2, 3)) > 1e-6
    assert moved.tolist() == [False, True, True, False, False, False]


@pytest.mark.parametrize(("options", "message"), [
    ({"head": "beta"}, r"'beta'.*\['normal', 'tanh_normal'\]"), ({"share": "few"}, "'few'"),
    ({"activation": "gelu"}, "'gelu'"), ({"init": "xavier"}, "'xavier'")])
def test_wrong_words_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        actor_of(make_specs("continuous"), **options)


def test_actor_works_with_flat_minibatches_as_in_the_rollout():
    specs = make_specs("continuous")
    actor, batch = actor_of(specs, head="tanh_normal"), make_batch(specs)
    scores = actor.get_dist(batch.select(*actor.in_keys)).log_prob(batch[ACTION])
    flat = batch.select(*actor.in_keys, ACTION).reshape(-1)
    assert isinstance(flat, TensorDict) and flat.shape == (24,)
    assert_close(actor.get_dist(flat).log_prob(flat[ACTION]), scores.flatten(0, 1))


# ---------------------------------------------------------------------- standardised inputs


def scalers_of(specs, *, centralized=True):
    """Means 1 and variances 4, 9, 16 ..., so that (x - 1) / 2, / 3 ... enters the network."""
    scalers = make_scalers(specs, centralized=centralized)
    for scaler in scalers.values():
        scaler.moments.mean.fill_(1.0)
        scaler.moments.var.copy_(torch.arange(2.0, 2 + len(scaler.moments.var)).square())
    return scalers


def scaled_by_hand(x):
    return ((x - 1) / torch.arange(2.0, 2 + x.shape[-1])).clamp(-10, 10)


@pytest.mark.parametrize("recurrent", [0, 5])
def test_an_actor_reads_standardised_observations_and_features_as_they_are(recurrent):
    specs = make_specs("discrete")
    scaled = actor_of(specs, features={LATENT: 2}, recurrent_dim=recurrent, scalers=scalers_of(specs))
    plain = actor_of(specs, features={LATENT: 2}, recurrent_dim=recurrent)
    plain.load_state_dict({name: x for name, x in scaled.state_dict().items() if ".scaler." not in name})
    batch = make_batch(specs, hidden=recurrent)
    batch[OBSERVATION] *= 20
    batch[LATENT] = 30 * torch.randn(*batch.shape, 3, 2)
    by_hand = batch.clone()
    by_hand[OBSERVATION] = scaled_by_hand(batch[OBSERVATION])
    assert (by_hand[OBSERVATION].abs() == 10).any()
    logits = [actor.get_dist(td.select(*actor.in_keys)).logits for actor, td in ((scaled, batch), (plain, by_hand))]
    assert_close(*logits)
    assert not torch.allclose(logits[0], plain.get_dist(batch.select(*plain.in_keys)).logits)


@pytest.mark.parametrize(("centralized", "state"), [(True, True), (True, False), (False, True)])
@pytest.mark.parametrize("recurrent", [0, 5])
def test_a_critic_reads_a_standardised_state_or_standardised_observations(centralized, state, recurrent):
    specs = make_specs("discrete", state=state)
    key = STATE if centralized and state else OBSERVATION
    scalers = scalers_of(specs, centralized=centralized)
    assert scalers.keys() == {OBSERVATION, key}
    scaled = critic_of(specs, centralized=centralized, recurrent_dim=recurrent, scalers=scalers)
    plain = critic_of(specs, centralized=centralized, recurrent_dim=recurrent)
    plain.load_state_dict({name: x for name, x in scaled.state_dict().items() if ".scaler." not in name})
    batch = make_batch(specs, hidden=recurrent, critic_rows=1 if centralized else 3)
    by_hand = batch.clone()
    by_hand[key] = scaled_by_hand(batch[key])
    value = scaled(batch.select(*scaled.in_keys))[VALUE]
    assert_close(value, plain(by_hand.select(*plain.in_keys))[VALUE])
    assert not torch.allclose(value, plain(batch.select(*plain.in_keys))[VALUE])


def test_the_padding_of_an_observation_reaches_no_network():
    mask = torch.tensor([[True] * 4, [True, True, False, False], [True] * 4])
    specs = make_specs("discrete", state=False, obs_mask=mask)
    scalers = scalers_of(specs)
    actor, critic = actor_of(specs, scalers=scalers), critic_of(specs, scalers=scalers)
    batch = make_batch(specs)
    other = batch.clone()
    other[OBSERVATION][..., 1, 2:] = 55.0
    assert torch.equal(actor.get_dist(batch).logits, actor.get_dist(other).logits)
    assert torch.equal(critic(batch)[VALUE], critic(other)[VALUE])
