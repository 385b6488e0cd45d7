"""What the modules of the state model see, hand on, and start from."""

import math

import pytest
import torch
from torch.nn import functional as F
from torch.testing import assert_close

from suite.collector import make_collector
from suite.losses import MOALoss
from suite.modules import make_actor
from suite.modules.state_model import (
    LATENT,
    PARTS,
    PAST,
    PREV_ACTION,
    PREV_OBSERVATION,
    PREV_VALID,
    ActionModel,
    GaussianEncoder,
    JointActions,
    PreviousStep,
    StateModel,
    WorldModel,
    others_index,
)
from suite.specs import ACTION, OBSERVATION, VISIBLE, Specs
from tests.batches import make_specs, shaken
from tests.toy import ToyEnv

torch.set_num_threads(1)
KINDS = ["discrete", "continuous"]


def actions_of(specs, *shape):
    if specs.discrete:
        return torch.randint(specs.action_dim, (*shape, specs.n_agents))
    return specs.low + (specs.high - specs.low) * torch.rand(*shape, specs.n_agents, specs.action_dim)


def past_of(specs, *shape, valid=None):
    """Random past of ``shape`` steps; ``valid`` bool of that shape, zeros behind it as the collector writes them."""
    joint = JointActions(specs)
    valid = torch.ones(*shape, dtype=torch.bool) if valid is None else valid
    keep = valid[..., None, None].expand(*shape, specs.n_agents, 1).float()
    prev = torch.randn(*shape, specs.n_agents, specs.obs_dim)
    return prev * keep, joint.pack(joint.encode(actions_of(specs, *shape))) * keep, keep


def make_model(specs, **options):
    options = dict(latent_dim=3, cells=[8], parts=PARTS, others="all") | options
    return StateModel(specs, **options)


# ---------------------------------------------------------------------- actions


def test_others_index():
    assert others_index(2).tolist() == [[1], [0]]
    assert others_index(4).tolist() == [[1, 2, 3], [0, 2, 3], [0, 1, 3], [0, 1, 2]]


@pytest.mark.parametrize("n", [2, 3, 5])
def test_what_belongs_to_the_others_scattered_back_is_everything(n):
    specs = make_specs("discrete", n_agents=n)
    joint, x = JointActions(specs), torch.randn(2, 6, n, 3)
    others = joint.of_others(x)
    assert others.shape == (2, 6, n, n - 1, 3)
    for i in range(n):
        back = torch.full_like(x, torch.nan)
        back[..., i, :] = x[..., i, :]
        back[..., joint.others[i], :] = others[..., i, :, :]
        assert torch.equal(back, x)


@pytest.mark.parametrize("kind", KINDS)
def test_own_action_is_the_first_block_and_the_others_follow_in_order(kind):
    specs = make_specs(kind, n_agents=4)
    joint = JointActions(specs)
    encoded = joint.encode(actions_of(specs, 5))
    blocks = joint.pack(encoded).unflatten(-1, (4, specs.action_dim))
    for i in range(4):
        assert torch.equal(blocks[:, i, 0], encoded[:, i])
        for place, j in enumerate(others_index(4)[i].tolist()):
            assert torch.equal(blocks[:, i, 1 + place], encoded[:, j])


def test_encodings():
    assert JointActions(make_specs("discrete")).encode(torch.tensor([[0, 4, 2]])).tolist() == [
        [[1, 0, 0, 0, 0], [0, 0, 0, 0, 1], [0, 0, 1, 0, 0]]]
    specs = make_specs("continuous")  # bounds -1..2, -2..4, -3..6
    joint = JointActions(specs)
    assert_close(joint.encode(specs.low), -torch.ones(3, 2))
    assert_close(joint.encode(specs.high), torch.ones(3, 2))
    assert_close(joint.encode(torch.tensor([[0.5, 2.0], [1.0, -2.0], [1.5, 3.75]])),
                 torch.tensor([[0.0, 1.0], [0.0, -1.0], [0.0, 0.5]]))


# ---------------------------------------------------------------------- the step before


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("others", ["all", "own"])
def test_previous_step_writes_what_the_next_step_reads(kind, others):
    specs = make_specs(kind)
    joint = JointActions(specs)
    step, action, observation = PreviousStep(specs, joint, others), actions_of(specs, 7), torch.randn(7, 3, 4)
    seen, packed, valid = step(observation, action)
    assert torch.equal(seen, observation) and torch.equal(valid, torch.ones(7, 3, 1))
    whole = joint.pack(joint.encode(action))
    if others == "all":
        assert torch.equal(packed, whole)
    else:
        e = specs.action_dim
        assert torch.equal(packed[..., :e], whole[..., :e]) and not packed[..., e:].any()
    assert [tuple(x.shape[1:]) for x in (seen, packed, valid)] == list(step.carried.values())


def test_only_what_those_in_sight_did_is_seen():
    """Of agents 0, 1 and 2; blocks are the own action, then the others' in ascending order."""
    specs = make_specs("discrete", visible=VISIBLE)
    joint = JointActions(specs)
    step, action, observation = PreviousStep(specs, joint, "visible"), torch.tensor([[0, 1, 2]]), torch.randn(1, 3, 4)
    visible = torch.tensor([[[1.0, 0.0], [0.0, 0.0], [1.0, 1.0]]])
    assert step.keys == [ACTION, VISIBLE] and PreviousStep(specs, joint, "all").keys == [ACTION]
    _, packed, _ = step(observation, action, visible)
    rows = packed[0].unflatten(-1, (3, 5))
    names = [[block.argmax().item() if block.any() else None for block in row] for row in rows]
    assert names == [[0, 1, None], [1, None, None], [2, 0, 1]]


@pytest.mark.parametrize("kind", KINDS)
def test_the_likeliest_actions_are_encoded_as_actions_are(kind):
    specs = make_specs(kind)
    model = ActionModel(specs, [8])
    if kind == "discrete":
        logits = torch.tensor([0.0, 3.0, 1.0, 0.0, 0.0]).expand(4, 3, 2, 5)
        assert model.likeliest(logits)[0, 0, 0].tolist() == [0, 1, 0, 0, 0]
    else:
        mean = torch.tensor([0.5, 3.0]).expand(4, 3, 2, 2)
        assert torch.equal(model.likeliest((mean, mean)), torch.tensor([0.5, 1.0]).expand(4, 3, 2, 2))


def build(*, fast, is_discrete):
    torch.manual_seed(0)
    env = ToyEnv(6, 2, max_steps=5, seed=3, arrive=0.9, is_discrete=is_discrete)
    specs = Specs.from_env(env)
    loss = MOALoss(specs, latent_dim=3, num_cells=8, depth=1)
    shaken(loss)
    actor = make_actor(specs, loss.features, share="all", agent_id=True, cells=(8,), activation="tanh", init="default",
                       recurrent_dim=0, head="tanh_normal", state_dependent_scale=True, device="cpu")
    policy = type(actor)(*loss.encoders, *actor, *loss.recorders)
    return loss, make_collector(env, policy, steps=7, total_frames=3 * 6 * 7, fast=fast)


def collect(collector):
    torch.manual_seed(11)
    return [batch.clone() for batch in collector]


@pytest.mark.parametrize("fast", [True, False])
@pytest.mark.parametrize("is_discrete", [True, False])
def test_the_past_is_carried_through_resets(fast, is_discrete):
    """Valid unless the step before ended an episode; the observation before; the joint action before; else zeros."""
    loss, collector = build(fast=fast, is_discrete=is_discrete)
    whole = torch.cat(collect(collector), 1)
    done = whole["next", "done"].squeeze(-1)
    after = torch.cat([torch.ones(6, 1, dtype=torch.bool), done[:, :-1]], 1)
    ends = done.sum(1)
    assert len(set(ends.tolist())) > 1 and after[:, 1:].any() and not after[:, 1:].all()  # partial resets, early ends
    assert (whole["next", "terminated"] & ~whole["next", "truncated"]).any() and whole["next", "truncated"].any()
    expected = (~after).float()[..., None, None].expand(-1, -1, 2, 1)
    assert torch.equal(whole[PREV_VALID], expected)
    joint = loss.model.actions.pack(loss.model.actions.encode(whole[ACTION]))
    for key, now in ((PREV_OBSERVATION, whole[OBSERVATION]), (PREV_ACTION, joint)):
        before = torch.cat([torch.zeros_like(now[:, :1]), now[:, :-1]], 1)
        assert torch.equal(whole[key], before * expected)
        assert torch.equal(whole["next", *key], now)  # also where an episode ends: what a bootstrap needs
    assert torch.equal(whole["next", *PREV_VALID], torch.ones_like(expected))


def test_both_collectors_carry_the_same_past_and_latents():
    fast, stock = (collect(build(fast=fast, is_discrete=True)[1]) for fast in (True, False))
    for mine, theirs in zip(fast, stock, strict=True):
        keys = set(mine.keys(True, True))
        assert keys >= {*PAST, LATENT, *(("next", *key) for key in PAST)}
        for key in keys:
            assert torch.equal(mine[key], theirs[key]), key


def test_the_stored_latent_is_what_the_model_infers_from_the_batch():
    loss, collector = build(fast=True, is_discrete=True)
    batch = collect(collector)[1]
    with torch.no_grad():
        known = loss.acting.infer(batch[OBSERVATION], *(batch[key] for key in PAST))
    assert_close(batch[LATENT], known.mean)
    assert batch[LATENT].std() > 0.01


# ---------------------------------------------------------------------- networks


@pytest.mark.parametrize("n", [2, 4])
def test_the_action_model_starts_at_the_uniform_distribution(n):
    torch.manual_seed(0)
    specs = make_specs("discrete", n_agents=n)
    model, past = ActionModel(specs, [128, 128]), past_of(specs, 500)
    logits = model(*past)
    assert logits.shape == (500, n, n - 1, 5)
    target = torch.randint(5, (500, n, n - 1))
    error = F.cross_entropy(logits.flatten(0, -2), target.flatten())
    assert error.item() == pytest.approx(math.log(5), abs=0.02)
    assert_close(model.feature(logits).unflatten(-1, (n - 1, 5)).sum(-1), torch.ones(500, n, n - 1))


def test_the_continuous_action_model_clamps_its_deviation():
    specs = make_specs("continuous")
    model = ActionModel(specs, [8])
    mean, log_sigma = model(*past_of(specs, 9))
    assert mean.shape == log_sigma.shape == (9, 3, 2, 2)
    assert mean.abs().max() < 0.2 and log_sigma.abs().max() < 0.2  # near the unit Gaussian
    with torch.no_grad():
        model.net[-1].bias.copy_(torch.tensor([0.0, 0.0, -9.0, 9.0]).repeat(2))
    mean, log_sigma = model(*past_of(specs, 9))
    assert_close(log_sigma, torch.tensor([-3.0, 1.0]).expand_as(log_sigma))
    feature = model.feature((mean, log_sigma)).unflatten(-1, (2, 4))  # one end per pair, not per agent
    assert torch.equal(feature, torch.cat([mean, log_sigma], -1))


@pytest.mark.parametrize("kind", KINDS)
def test_the_world_model_starts_by_predicting_that_nothing_changes(kind):
    specs = make_specs(kind)
    model, (u, joint, _) = WorldModel(specs, [128, 128]), past_of(specs, 50)
    predicted, reward = model(u, joint)
    assert torch.equal(predicted, u) and torch.equal(reward, torch.zeros(50, 3, 1))
    after = u + torch.randn_like(u)
    skill = 1 - (predicted - after).square().mean() / (u - after).square().mean()
    assert abs(skill.item()) <= 1e-6


def test_the_encoder_starts_at_one_and_clamps():
    encoder = GaussianEncoder(6, 3, [16])
    mean, log_sigma = encoder(torch.randn(40, 2, 4), torch.randn(40, 2, 2))
    assert mean.shape == (40, 2, 3) and mean.std() > 0.01 and torch.equal(log_sigma.exp(), torch.ones(40, 2, 3))
    with torch.no_grad():
        encoder.net[-1].bias[3:] = torch.tensor([-9.0, 0.0, 4.0])
    mean, log_sigma = encoder(torch.randn(1, 6))
    assert_close(log_sigma.exp(), torch.tensor([[0.006737947, 1.0, 7.389056099]]), rtol=1e-6, atol=1e-8)
    log_sigma.sum().backward()
    assert encoder.net[-1].bias.grad[3:].tolist() == [0.0, 1.0, 0.0]  # a hard clamp


# -5 + 3.5 (tanh(raw) + 1): raw 0 is the middle, and its slope is 3.5 (1 - tanh^2)
def test_a_soft_clamp_by_hand():
    encoder = GaussianEncoder(6, 3, [16], soft_clamp=True)
    start = encoder(torch.randn(5, 6))[1]
    assert_close(start, torch.zeros(5, 3))  # sigma is 1 here too
    with torch.no_grad():
        encoder.net[-1].bias[3:] = torch.tensor([-40.0, 0.0, math.atanh(0.5)])
    log_sigma = encoder(torch.randn(1, 6))[1]
    assert_close(log_sigma, torch.tensor([[-5.0, -1.5, 0.25]]))
    log_sigma.sum().backward()
    assert_close(encoder.net[-1].bias.grad[3:], torch.tensor([0.0, 3.5, 3.5 * 0.75]))
    model = make_model(make_specs("discrete"), soft_clamp=True)
    assert model.student.soft_clamp and not make_model(make_specs("discrete")).student.soft_clamp


# ---------------------------------------------------------------------- features and context


@pytest.mark.parametrize("kind", KINDS)
def test_predictions_do_not_count_without_a_past(kind):
    specs = make_specs(kind)
    model, observation = shaken(make_model(specs)), torch.randn(4, 3, 4)
    valid = torch.tensor([True, False, True, False])
    past = past_of(specs, 4, valid=valid)
    u, x, *_ = model.raw_features(observation, *past)
    assert_close(u, observation, rtol=1e-6, atol=1e-6)  # statistics start at 0 and 1
    assert torch.equal(x[..., :4], u)
    assert not x[~valid][..., 4:].any() and (x[valid][..., 4:] != 0).all()
    known = model.infer(observation, *past)
    assert known.x.shape[-1] == model.x_dim and known.context.shape[-1] == model.context_dim
    d, joint = specs.obs_dim, 3 * specs.action_dim
    ids, flags = known.context[..., d + joint:-1], known.context[..., -1]
    assert torch.equal(ids, torch.eye(3).expand(4, 3, 3)) and torch.equal(flags, past[2].squeeze(-1))
    assert not known.context[~valid][..., :d + joint].any()


def test_past_observations_are_zero_in_standard_units_at_a_first_step():
    """Also where the mean of the observations is not zero."""
    specs = make_specs("discrete")
    model = make_model(specs)
    model.scaler.moments.mean.fill_(5.0)
    known = model.infer(torch.randn(2, 3, 4), *past_of(specs, 2, valid=torch.zeros(2, dtype=torch.bool)))
    assert not known.context[..., :4].any()


@pytest.mark.parametrize("parts", [("obs",), ("moa",), ("wm_residual", "obs"), PARTS])
def test_the_blocks_of_the_features(parts):
    specs = make_specs("discrete")
    torch.manual_seed(1)
    model, observation, past = shaken(make_model(specs, parts=parts)), torch.randn(5, 3, 4), past_of(specs, 5)
    u, x, prediction, _ = model.raw_features(observation, *past)
    blocks = {"obs": u, "moa": prediction.softmax(-1).flatten(-2),
              "wm_residual": u - model.world_model(model.scaler(past[0]), past[1])[0]}
    assert_close(x, torch.cat([blocks[part] for part in parts], -1).detach())
    assert not x.requires_grad and prediction.requires_grad


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("inputs", ["prev", "prev+obs"])
@pytest.mark.parametrize("memory_dim", [0, 5])
def test_whether_the_action_model_sees_the_present(kind, inputs, memory_dim):
    """Its agent's own present observation changes what it expects of the others; never another agent's."""
    specs = make_specs(kind)
    model = shaken(make_model(specs, action_inputs=inputs, memory_dim=memory_dim))
    observation, past = torch.randn(5, 3, 4), past_of(specs, 5)
    past = (*past, *([torch.randn(5, 3, 5)] * 2 if memory_dim else []))
    other = observation.clone()
    other[:, 1] += 1
    before, after = (model.action_model.feature(model.infer(x, *past).action) for x in (observation, other))
    assert torch.equal(before[:, [0, 2]], after[:, [0, 2]])
    assert torch.equal(before[:, 1], after[:, 1]) == (inputs == "prev")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("grad_to_actions", [False, True])
def test_a_gradient_reaches_the_action_model_through_its_feature_if_it_may(kind, grad_to_actions):
    specs = make_specs(kind)
    model = shaken(make_model(specs, grad_to_actions=grad_to_actions))
    known = model.infer(torch.randn(5, 3, 4), *past_of(specs, 5))
    known.mean.sum().backward()
    assert all((p.grad is not None) == grad_to_actions for p in model.action_model.parameters())
    assert all(p.grad is None for p in model.world_model.parameters()) and not known.student_inputs[0].requires_grad


def test_what_an_agent_infers_is_a_function_of_its_own_rows():
    """The others' observations and past change nothing of it; their actions only as its own joint action has them."""
    specs = make_specs("discrete")
    model, observation, past = shaken(make_model(specs)), torch.randn(5, 3, 4), past_of(specs, 5)
    before = model.infer(observation, *past)
    other = [x.clone() for x in (observation, *past)]
    for x, fresh in zip(other, (torch.randn(5, 3, 4), *past_of(specs, 5)), strict=True):
        x[:, 1:] = fresh[:, 1:]
    after = model.infer(*other)
    for a, b in ((before.mean, after.mean), (before.x, after.x), (before.action, after.action)):
        assert torch.equal(a[:, 0], b[:, 0]) and not torch.equal(a[:, 1:], b[:, 1:])


def test_two_agents_that_trade_places_with_their_ids_infer_the_same():
    specs = make_specs("discrete", n_agents=2)
    model, observation, past = shaken(make_model(specs)), torch.randn(5, 2, 4), past_of(specs, 5)
    before = model.infer(observation, *past)
    for ids in (model.ids, model.action_model.assemble.ids, model.world_model.assemble.ids):
        ids.copy_(ids.flip(0))
    after = model.infer(observation.flip(1), *(x.flip(1) for x in past))
    for a, b in ((before.mean, after.mean), (before.x, after.x), (before.log_sigma, after.log_sigma)):
        assert_close(a, b.flip(1))
