"""The memory of the state model: sequences equal single steps, starts are forgotten, nobody sees too much."""

import pytest
import torch
from tensordict.nn import TensorDictSequential
from torch.testing import assert_close

from suite.collector import make_collector
from suite.losses import MOALoss
from suite.modules import make_actor
from suite.modules.policies import hidden_shapes
from suite.modules.state_model import (
    ACTION_MEMORY,
    LATENT,
    LATENT_MEMORY,
    MEMORY,
    PARTS,
    PAST,
    PREV_VALID,
    GaussianEncoder,
    Memory,
    StateModel,
)
from suite.specs import ACTION, OBSERVATION, Specs
from tests.batches import make_past_batch, make_specs, shaken
from tests.toy import ToyEnv

torch.set_num_threads(1)
H = 5


def make_model(specs, **options):
    options = dict(latent_dim=3, cells=[8, 6], parts=PARTS, others="all", memory_dim=H) | options
    return shaken(StateModel(specs, **options))


def make_rows(specs, *shape, starts=(), seed=0):
    """Rows with stored states; the steps in ``starts`` begin an episode."""
    td = make_past_batch(specs, *shape, seed=seed, memory=H)
    td[PREV_VALID][:] = 1
    for t in starts:
        for key in PAST:
            td[key][:, t] = 0
    return td


# ---------------------------------------------------------------------- the memory itself


def test_a_step_of_the_memory_by_hand():
    """One input of 2, a layer that doubles it to 4; gates 1/2 (all zero) and new = tanh(0.1 * 4 + 0.5 * 0.3 h)."""
    memory = Memory(1, 1, 1)
    with torch.no_grad():
        for parameter in memory.parameters():
            parameter.zero_()
        memory.layer[0].weight.fill_(2.0)
        memory.gru.from_input.weight[2] = 0.1
        memory.gru.from_hidden.weight[2] = 0.3
    x, before = torch.full((1, 2, 1), 2.0), torch.tensor([[[0.8], [0.8]]])
    state = memory(x, torch.tensor([[[1.0], [0.0]]]), before)  # the second agent's episode begins
    fresh = 0.5 * torch.tensor(0.4).tanh()
    assert_close(state[0, 0, 0], 0.5 * torch.tensor(0.4 + 0.5 * 0.3 * 0.8).tanh() + 0.5 * 0.8)
    assert_close(state[0, 1, 0], fresh)


@pytest.mark.parametrize("kind", ["discrete", "continuous"])
@pytest.mark.parametrize("starts", [(), (0,), (2,), (0, 3, 4)])
def test_a_sequence_equals_its_steps(kind, starts):
    """From the first stored state on; those stored later are not read."""
    specs = make_specs(kind)
    model, td = make_model(specs), make_rows(specs, 4, 6, starts=starts)
    whole = model.infer_batch(td)
    states = [td[key][:, 0] for key in MEMORY]
    for t in range(6):
        known = model.infer(*(td[key][:, t] for key in model.keys[:-2]), *states)
        states = list(known.memory)
        for mine, theirs in zip((known.mean, known.log_sigma, *known.memory), (
                whole.mean, whole.log_sigma, *whole.memory), strict=True):
            assert_close(mine, theirs[:, t])
    spoilt = td.clone()
    for key in MEMORY:
        spoilt[key][:, 1:] = torch.nan
    assert torch.equal(model.infer_batch(spoilt).mean, whole.mean)


def test_an_episode_starts_without_memory():
    specs = make_specs("discrete")
    model, td = make_model(specs), make_rows(specs, 4, 6, starts=(3,))
    before, other = model.infer_batch(td), td.clone()
    for key in (OBSERVATION, *MEMORY):
        other[key][:, :3] += 1
    after = model.infer_batch(other)
    assert not torch.equal(before.mean[:, 2], after.mean[:, 2])
    for mine, theirs in ((before.mean, after.mean), (before.action, after.action), *zip(
            before.memory, after.memory, strict=True)):
        assert torch.equal(mine[:, 3:], theirs[:, 3:])


def test_each_memory_serves_its_own_network():
    """The student's state is none of the action model's business; what that predicts does reach the student."""
    specs = make_specs("discrete")
    model, td = make_model(specs), make_rows(specs, 4, 3)
    before, other = model.infer_batch(td), td.clone()
    other[LATENT_MEMORY] += 1
    after = model.infer_batch(other)
    assert torch.equal(before.action, after.action) and not torch.equal(before.mean, after.mean)
    other = td.clone()
    other[ACTION_MEMORY] += 1
    after = model.infer_batch(other)
    assert not torch.equal(before.action, after.action) and not torch.equal(before.mean, after.mean)
    alone = make_model(specs, parts=("obs",))
    assert torch.equal(alone.infer_batch(other).mean, alone.infer_batch(td).mean)


def test_the_latent_starts_at_one():
    encoder = GaussianEncoder(6, 3, [16, 8], memory_dim=H)
    state = encoder.remember(torch.randn(9, 2, 6), valid=torch.ones(9, 2, 1), before=torch.zeros(9, 2, H))
    mean, log_sigma = encoder(state)
    assert state.shape == (9, 2, H) and mean.std() > 0.001 and torch.equal(log_sigma, torch.zeros(9, 2, 3))


# ---------------------------------------------------------------------- acting


def build(*, fast, is_discrete, **options):
    torch.manual_seed(0)
    env = ToyEnv(6, 2, max_steps=5, seed=3, arrive=0.9, is_discrete=is_discrete)
    specs = Specs.from_env(env)
    loss = shaken(MOALoss(specs, latent_dim=3, num_cells=8, depth=1, memory="gru", memory_dim=H, **options))
    actor = make_actor(specs, loss.features, share="all", agent_id=True, cells=(8,), activation="tanh", init="default",
                       recurrent_dim=0, head="tanh_normal", state_dependent_scale=True, device="cpu")
    policy = TensorDictSequential(*loss.encoders, *actor, *loss.recorders)
    carried = hidden_shapes(policy)
    assert [carried[key] for key in MEMORY] == [(2, H)] * 2
    torch.manual_seed(11)
    return loss, [batch.clone() for batch in make_collector(env, policy, steps=7, total_frames=3 * 6 * 7, fast=fast)]


@pytest.mark.parametrize("is_discrete", [True, False])
def test_both_collectors_carry_the_same_states(is_discrete):
    fast, stock = (build(fast=fast, is_discrete=is_discrete)[1] for fast in (True, False))
    for mine, theirs in zip(fast, stock, strict=True):
        assert {*MEMORY, LATENT, *(("next", *key) for key in MEMORY)} <= set(mine.keys(True, True))
        for key in mine.keys(True, True):
            assert torch.equal(mine[key], theirs[key]), key


@pytest.mark.parametrize("options", [{}, {"actor_inputs": "obs"}, {"actor_inputs": "obs+z+moa"}], ids=str)
def test_what_acted_is_what_a_loss_infers_from_the_batch(options):
    """Over episode ends, and from one batch to the next: the first stored state is all that a row needs."""
    loss, batches = build(fast=True, is_discrete=True, **options)
    assert (loss.features == {}) == (options.get("actor_inputs") == "obs")
    for k, batch in enumerate(batches):
        with torch.no_grad():
            known = loss.acting.infer_batch(batch)
        assert_close(batch[LATENT][..., :3], known.mean, atol=1e-5, rtol=1e-5)
        for key, state in zip(MEMORY, known.memory, strict=True):
            assert_close(batch["next", *key], state, atol=1e-5, rtol=1e-5)
            started = batch[PREV_VALID] == 0
            assert not batch[key][started.expand_as(batch[key])].any() and started[:, 1:].any()
        assert batch[ACTION_MEMORY][:, 0].any() == (k > 0)
    keep = batches[1][PREV_VALID][:, :1]
    for key in MEMORY:
        assert torch.equal(batches[1][key][:, 0], (batches[0]["next", *key][:, -1:] * keep)[:, 0])


# ---------------------------------------------------------------------- who may see what


def test_no_gradient_from_an_agent_to_the_observations_of_the_others():
    specs = make_specs("discrete")
    model, td = make_model(specs), make_rows(specs, 2, 4)
    seen = td[PAST[0]].clone().requires_grad_()  # the features of the present one are constants
    mean = model.infer(td[OBSERVATION], seen, *(td[key] for key in model.keys[2:])).mean
    for i in range(3):
        [gradient] = torch.autograd.grad(mean[:, -1, i].sum(), seen, retain_graph=True)
        assert gradient[:, :, i].any(-1).all()  # of every step so far
        assert not gradient[:, :, [j for j in range(3) if j != i]].any()


def test_what_is_inferred_follows_from_earlier_steps_only():
    """An action is read one step later, and remembered from then on."""
    specs = make_specs("discrete")
    model, td = make_model(specs), make_rows(specs, 4, 6)
    before, other = model.infer_batch(td), td.clone()
    other[PAST[1]][:, 3] += 1  # what all did at step 2
    other[ACTION][:, 2] = (other[ACTION][:, 2] + 1) % 5
    after = model.infer_batch(other)
    for mine, theirs in ((before.mean, after.mean), (before.x, after.x), (before.action, after.action)):
        assert torch.equal(mine[:, :3], theirs[:, :3])
        differs = (mine != theirs).flatten(3).any(-1).all(0).all(-1)
        assert differs[3:].all()


def test_what_an_agent_infers_is_a_function_of_its_own_rows():
    """Of what it saw, was told and remembers; nothing else is read, so neither are privileged entries."""
    specs = make_specs("discrete", hidden_dim=2)
    model, td = make_model(specs), make_rows(specs, 4, 5)
    assert model.keys == [OBSERVATION, *PAST, *MEMORY]
    other = td.select(*model.keys).clone()
    for key in model.keys:
        if key != PREV_VALID:
            other[key][:, :, 1:] += 1
    before, after = model.infer_batch(td), model.infer_batch(other)
    for mine, theirs in ((before.mean, after.mean), (before.x, after.x), (before.action, after.action), *zip(
            before.memory, after.memory, strict=True)):
        assert torch.equal(mine[:, :, 0], theirs[:, :, 0]) and not torch.equal(mine[:, :, 1:], theirs[:, :, 1:])
