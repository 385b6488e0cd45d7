"""What the family hands to actor and critic, its optimisers, and who may see what."""

import pytest
import torch
from tensordict import TensorDict
from torch.testing import assert_close

from suite.data import Minibatches
from suite.losses import MOALoss
from suite.losses.world_model import NEXT_OBSERVATION
from suite.modules import make_actor, make_critic
from suite.modules.state_model import LATENT, PAST
from suite.specs import ACTION, OBSERVATION, PRIVILEGED, STATE, Specs
from tests.batches import make_past_batch, make_specs, shaken

torch.set_num_threads(1)
SMALL = dict(latent_dim=2, num_cells=16, depth=1)



@pytest.mark.parametrize("kind, predicted", [("discrete", 2 * 5), ("continuous", 2 * 2 * 2)])
@pytest.mark.parametrize("inputs, latent, width", [
    ("obs+z", "mean", 2), ("obs+z", "sample", 2), ("obs+z", "mean_logstd", 4), ("obs+z+moa", "mean", 2),
    ("obs+z+moa", "mean_logstd", 4), ("obs+moa", "mean", 0)])
def test_what_actor_and_critic_get(kind, predicted, inputs, latent, width):
    specs = make_specs(kind)
    loss = MOALoss(specs, **SMALL, actor_inputs=inputs, policy_latent=latent)
    width += predicted if inputs.endswith("moa") else 0
    assert loss.features == {LATENT: width} and loss.critic_features is None
    td = make_past_batch(specs, 2, 3)
    assert loss.encoders[0](td)[LATENT].shape == (2, 3, 3, width)
    assert MOALoss(specs, **SMALL, actor_inputs=inputs, critic_z="none").critic_features == {}
    assert loss.reencode is False


def test_the_critic_of_an_agents_own_latent_has_the_size_of_the_specification():
    """Navigation with four agents: 4 x 18 + 16 + 4 inputs, two layers of 256 (section 2.3); all latents are 48 more."""
    bound = torch.ones(4, 2)
    specs = Specs(n_agents=4, obs_dim=18, action_dim=2, discrete=False, agent_types=(0,) * 4, low=-bound, high=bound)
    for latents, inputs in (("own", 92), ("all", 140)):
        loss = MOALoss(specs, critic_latents=latents)
        critic = make_critic(specs, loss.features, centralized=True, share="all", agent_id=True, cells=(256, 256),
                             activation="tanh", init="orthogonal", recurrent_dim=0, device="cpu",
                             own_features=loss.own_features)
        count = sum(p.numel() for p in critic.parameters())
        assert count == 256 * (inputs + 1) + 256 * 257 + 257 and (count == 89_857) == (latents == "own")


def test_an_actor_without_features_still_hands_the_past_on():
    loss = MOALoss(make_specs("discrete"), **SMALL, actor_inputs="obs")
    assert loss.features == {} and loss.encoders == [] and len(loss.recorders) == 1


def test_controls_get_plain_inputs_and_train_nothing():
    """The same entries that the state model reads, or the hidden variables, without any model."""
    specs = make_specs("discrete", hidden_dim=2)
    for inputs, features in (("obs+past", {PAST[0]: 4, PAST[1]: 15, PAST[2]: 1}), ("obs+hidden", {PRIVILEGED: 2})):
        loss = MOALoss(specs, **SMALL, actor_inputs=inputs)
        assert loss.features == features and loss.encoders == [] and len(loss.recorders) == 1
        assert not any(p.requires_grad for p in loss.parameters())
        assert loss.updates("moa", Minibatches(1)) == []
        td = make_past_batch(specs, 2, 3)
        actor, critic = make_policy(specs, loss)
        assert {*features} <= set(actor.in_keys) & set(critic.in_keys)
        assert actor(td.select(*actor.in_keys))[ACTION].shape == (2, 3, 3)
    with pytest.raises(ValueError, match=r"obs\+hidden of loss 'moa' needs a task that exports"):
        MOALoss(make_specs("discrete"), actor_inputs="obs+hidden")


def test_a_shuffled_latent_is_another_environments():
    specs = make_specs("discrete")
    td = make_past_batch(specs, 50, 2)[:, 1]
    plain, mixed = (shaken(MOALoss(specs, **SMALL, shuffle_z=shuffle)) for shuffle in (False, True))
    mixed.load_state_dict(plain.state_dict())
    own, other = (loss.encoders[0](td.clone())[LATENT] for loss in (plain, mixed))
    assert not torch.equal(own, other)
    rows = torch.cdist(own.flatten(1), other.flatten(1)).argmin(0)
    assert torch.equal(rows.sort().values, torch.arange(50)) and torch.equal(own[rows], other)
    assert (rows != torch.arange(50)).all(), "nobody keeps its own"
    assert torch.equal(mixed.encoders[0](td.clone())[LATENT], other), "the same one until it is turned"
    mixed.input.turn()
    assert not torch.equal(mixed.encoders[0](td.clone())[LATENT], other)


def test_each_network_has_its_own_optimiser_and_clipping():
    specs = make_specs("discrete")
    loss = MOALoss(specs, **SMALL, lr=0.02, epochs=4, max_grad_norm=0.7)
    [update] = loss.updates("moa", Minibatches(9, 6), optimizer=None, max_grad_norm=5.0)
    assert update.name == "moa" and update.data.share == 0.125 and vars(update.data.source) == vars(Minibatches(4, 6))
    assert update.optimizers.keys() == {"moa", "world_model", "student", "teacher"}
    assert all(optimizer.param_groups[0]["lr"] == 0.02 and optimizer.param_groups[0]["eps"] == 1e-5
               for optimizer in update.optimizers.values())
    assert set(update.max_grad_norm.values()) == {0.7}
    metrics = update.run(make_past_batch(specs, 3, 4))
    assert {f"moa/grad_norm_{part}" for part in update.optimizers} <= metrics.keys()
    loss = MOALoss(specs, **SMALL, held_out=0.0)
    [update] = loss.updates("moa", Minibatches(9, 6), optimizer=None, max_grad_norm=5.0)
    assert vars(update.data) == vars(Minibatches(3, 6))


@pytest.mark.parametrize("options, message", [
    ({"joint_update": True, "held_out": 0.0}, "joint_update .* shares the steps of mappo"),
    ({"imagination": "dyna"}, "imagination .* needs an on-policy algorithm")], ids=str)
def test_what_a_recipe_must_ask_for_is_not_left_out_in_silence(options, message):
    loss = MOALoss(make_specs("discrete"), **SMALL, **options)
    with pytest.raises(ValueError, match=message):
        loss.updates("moa", Minibatches(1), optimizer=None, max_grad_norm=5.0)


def test_held_out_environments_are_not_trained_on():
    specs, plain = make_specs("discrete"), []
    for spoil in (False, True):
        torch.manual_seed(0)
        loss, td = MOALoss(specs, **SMALL, held_out=0.5), make_past_batch(specs, 4, 3)
        if spoil:
            td[OBSERVATION][2:] += 100
        [update] = loss.updates("moa", Minibatches(1, 6), optimizer=None, max_grad_norm=5.0)
        update.run(td)
        plain.append([p.detach().clone() for p in loss.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*plain, strict=True))


# ---------------------------------------------------------------------- who may see what


def make_policy(specs, loss):
    torch.manual_seed(2)
    common = dict(share="all", agent_id=True, activation="tanh", init="default", device="cpu", cells=[16])
    actor = make_actor(specs, loss.features, recurrent_dim=0, head="normal", state_dependent_scale=False, **common)
    critic = make_critic(specs, loss.features, centralized=True, recurrent_dim=0, **common)
    return actor, critic


def acting(loss, actor, td):
    """What the policy infers and prefers at td: features, latents, predictions, logits."""
    td = td.select(OBSERVATION, *PAST)
    known = loss.acting.infer(td[OBSERVATION], *(td[key] for key in PAST))
    logits = actor[0](loss.encoders[0](td))["agents", "logits"]
    return known.x, td[LATENT], known.action, known.mean, logits


def test_privileged_entries_change_nothing_that_acts():
    """The others' rows, the state, hidden variables and present actions, seen from one agent."""
    specs = make_specs("discrete", hidden_dim=2)
    loss, td = shaken(MOALoss(specs, **SMALL, actor_inputs="obs+z+moa")), make_past_batch(specs, 2, 3)
    actor, _ = make_policy(specs, loss)
    allowed = {OBSERVATION, *PAST, LATENT}
    assert set(loss.encoders[0].in_keys) | set(actor.in_keys) <= allowed
    before, other = acting(loss, actor, td), td.clone()
    for key in (STATE, PRIVILEGED, NEXT_OBSERVATION):
        other[key] = torch.randn_like(other[key])
    other[ACTION] = (other[ACTION] + 1) % 5
    other[OBSERVATION][..., 1:, :] = torch.randn(2, 3, 2, 4)
    assert not torch.equal(loss.cvae_loss.privileged(td), loss.cvae_loss.privileged(other))
    for a, b in zip(before, acting(loss, actor, other), strict=True):
        assert torch.equal(a[..., 0, :] if a.ndim == 4 else a[..., 0, :, :],
                           b[..., 0, :] if b.ndim == 4 else b[..., 0, :, :])


def test_no_gradient_from_an_agent_to_the_observations_of_the_others():
    specs = make_specs("discrete")
    loss, td = shaken(MOALoss(specs, **SMALL)), make_past_batch(specs, 2, 3)
    actor, _ = make_policy(specs, loss)
    observation = td[OBSERVATION].clone().requires_grad_()
    known = loss.acting.infer(observation, *(td[key] for key in PAST))  # the policy's own way blocks every gradient
    read = TensorDict({OBSERVATION: observation, LATENT: known.mean}, batch_size=td.shape)
    logits = actor[0](read)["agents", "logits"]
    for i in range(3):
        [gradient] = torch.autograd.grad(logits[:, :, i].sum(), observation, retain_graph=True)
        others = [j for j in range(3) if j != i]
        assert gradient[:, :, i].any() and not gradient[:, :, others].any()


def test_actions_change_what_is_inferred_from_the_next_step_on():
    specs = make_specs("discrete")
    loss, td = shaken(MOALoss(specs, **SMALL, actor_inputs="obs+z+moa")), make_past_batch(specs, 4, 3)
    actor, _ = make_policy(specs, loss)

    def play(actions):
        """Two steps of which the first has these actions."""
        now = td[:, 1].clone()
        now[ACTION] = actions
        first = acting(loss, actor, now)
        now = loss.recorders[0](now)
        then = now["next"].select(*PAST)
        then[OBSERVATION] = td[:, 2][OBSERVATION]
        return first, acting(loss, actor, then)

    changed = td[:, 1][ACTION].clone()
    changed[:, 1:] = (changed[:, 1:] + 2) % 5
    (first, then), (other_first, other_then) = play(td[:, 1][ACTION]), play(changed)
    assert all(torch.equal(a, b) for a, b in zip(first, other_first, strict=True))
    assert not any(torch.equal(a[:, 0], b[:, 0]) for a, b in zip(then, other_then, strict=True))


def test_teacher_decoders_and_critic_are_no_part_of_what_acts():
    """A checkpoint without them still makes the same actions, to the last bit."""
    specs = make_specs("discrete", hidden_dim=2)
    loss, td = shaken(MOALoss(specs, **SMALL)), make_past_batch(specs, 2, 3)
    actor, _ = make_policy(specs, loss)
    loss.refresh(td)
    expected = acting(loss, actor, td)
    saved = {name: value for name, value in loss.state_dict().items() if name.startswith("acting.")}
    assert saved and not any("teacher" in name or "decoder" in name for name in saved)
    fresh = MOALoss(specs, **SMALL)
    fresh.acting.load_state_dict({name.removeprefix("acting."): value for name, value in saved.items()})
    for name in ("model", "cvae_loss", "world_loss", "action_loss", "curiosity"):
        delattr(fresh, name)
    assert all(torch.equal(a, b) for a, b in zip(expected, acting(fresh, actor, td), strict=True))


# 2 iterations: shares 1 and 1/2; then always tau
def test_what_acts_follows_what_learns():
    specs = make_specs("discrete")
    loss, td = MOALoss(specs, **SMALL, acting_tau=0.25), make_past_batch(specs, 2, 3)
    assert not any(p.requires_grad for p in loss.acting.parameters()) and loss.acting is not loss.model
    slow, fast = (dict(model.named_parameters()) for model in (loss.acting, loss.model))
    for share in (1.0, 0.5, 1 / 3, 0.25, 0.25):
        shaken(loss.model)
        old = {name: p.clone() for name, p in slow.items()}
        loss.refresh(td)
        for name, p in slow.items():
            assert_close(p, old[name] + share * (fast[name] - old[name]))
    assert_close(dict(loss.acting.named_buffers()), dict(loss.model.named_buffers()))
    assert_close(loss.encoders[0](td)[LATENT], loss.acting.infer(td[OBSERVATION], *(td[key] for key in PAST)).mean)
    again = MOALoss(specs, **SMALL, acting_tau=0.25)
    again.load_state_dict(loss.state_dict())
    assert again.iterations == 5
    plain = MOALoss(specs, **SMALL, acting_tau=1.0)
    assert plain.acting is plain.model and plain.encoders[0].module.model is plain.model


def test_ppo_moves_nothing_of_the_state_model():
    specs = make_specs("discrete")
    loss, td = shaken(MOALoss(specs, **SMALL)), make_past_batch(specs, 2, 3)
    actor, critic = make_policy(specs, loss)
    loss.encoders[0](td)
    logits = actor[0](td.select(*actor.in_keys))["agents", "logits"]
    (logits.sum() + critic(td.select(*critic.in_keys))["agents", "state_value"].sum()).backward()
    assert all(p.grad is not None for p in (*actor.parameters(), *critic.parameters()))
    assert all(p.grad is None for p in loss.parameters())
