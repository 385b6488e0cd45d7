"""A world model that also reads the latent of a step (``wm_use_z``): whose, from when, and what it is good for."""

import pytest
import torch
from tensordict.nn import TensorDictSequential
from torch.testing import assert_close

from suite.collector import make_collector
from suite.losses import MOALoss
from suite.losses.moa_metrics import measure
from suite.modules import make_actor
from suite.modules.policies import hidden_shapes
from suite.modules.simulator import Simulator
from suite.modules.state_model import LATENT, PAST, PREV_LATENT, PREV_OBSERVATION, PREV_VALID
from suite.specs import DONE, IS_INIT, LOGITS, OBSERVATION, Specs
from tests.batches import make_past_batch, make_specs, shaken
from tests.toy import ToyEnv

torch.set_num_threads(1)
K = 3  # of the latent


def make_loss(specs, **options):
    return MOALoss(specs, **dict(latent_dim=K, num_cells=8, depth=1, wm_use_z=True) | options)


def adds_latent(model, monkeypatch):
    """A world that moves the first feature by the latent's first number: u + z_0."""
    def each(u, joint, latent):
        after = u.clone()
        after[..., 0] += latent[..., 0]
        return after.unsqueeze(0), torch.zeros_like(u[..., :1]).unsqueeze(0), u[..., :0].unsqueeze(0)

    monkeypatch.setattr(model.world_model, "each", each)


@pytest.mark.parametrize("memory", ["none", "gru"])
def test_it_reads_one_latent_more_and_without_the_option_nothing(memory):
    specs, options = make_specs("discrete"), {"memory_dim": 4} if memory == "gru" else {}
    with_it, without = (make_loss(specs, wm_use_z=used, memory=memory, **options).model for used in (True, False))
    first, plain = (model.world_model.net[0].in_features for model in (with_it, without))
    assert first == plain + K and with_it.keys == [*without.keys, PREV_LATENT]
    assert with_it.carried == without.carried | {PREV_LATENT: (3, K)}
    assert ("next", *PREV_LATENT) in make_loss(specs).in_keys


def test_the_residual_is_of_the_prediction_with_the_latent_of_the_step_before(monkeypatch):
    """u_t - (u_{t-1} + z_{t-1}) in the first feature, u_t - u_{t-1} in the others, 0 where there is no step before."""
    specs = make_specs("continuous")
    loss, td = make_loss(specs, x_parts="wm_residual"), make_past_batch(specs, 5, 4, latent=K)
    adds_latent(loss.model, monkeypatch)
    x = loss.model.raw_features(*(td[key] for key in loss.model.keys))[1]
    expected = td[OBSERVATION] - td[PREV_OBSERVATION]
    expected[..., 0] -= td[PREV_LATENT][..., 0]
    assert_close(x, expected * td[PREV_VALID], atol=1e-5, rtol=1e-5)
    assert not x[:, 0].any() and x[:, 1:].any()


def test_its_loss_reads_the_latent_that_the_step_handed_on_as_a_constant(monkeypatch):
    specs = make_specs("continuous")
    loss, td = make_loss(specs), make_past_batch(specs, 5, 4, latent=K)
    adds_latent(loss.model, monkeypatch)
    after = td[OBSERVATION].clone()
    after[..., 0] += td["next", *PREV_LATENT][..., 0]
    td["next", *OBSERVATION] = after
    assert loss.world_loss(td)["loss_obs"] == pytest.approx(0, abs=1e-10)
    assert loss.world_loss.skill(td) == pytest.approx(1, abs=1e-6)
    td["next", *PREV_LATENT] = td["next", *PREV_LATENT] + 1  # an error of 1 in one of the features
    assert loss.world_loss(td)["loss_obs"].item() == pytest.approx(1 / specs.obs_dim, rel=1e-5)
    monkeypatch.undo()
    shaken(loss)
    sum(value for key, value in loss.world_loss(td).items()).backward()
    reached = {name.split(".")[0] for name, p in loss.model.named_parameters() if p.grad is not None}
    assert reached == {"world_model"}


def test_predictions_further_ahead_read_the_latent_of_their_start(monkeypatch):
    """u moves by a number of each row, which z is at every step: exact at every horizon.

    If it is right at a row's first step alone, one of the 9 - k starts of k steps ahead is exact, and takes its share
    of the error with it; of the starts with a step before them none is.
    """
    specs = make_specs("discrete")
    loss, td = make_loss(specs, held_out=0.5), make_past_batch(specs, 6, 8, latent=K)
    adds_latent(loss.model, monkeypatch)
    step = 0.2 * torch.randn(6, 1, 3, 1)  # standardised observations end at 10
    td[OBSERVATION] = torch.zeros_like(td[OBSERVATION])
    td[OBSERVATION][..., :1] = step * torch.arange(8.0).view(1, 8, 1, 1)
    after = td[OBSERVATION].clone()
    after[..., :1] += step
    td["next", *OBSERVATION] = after
    td["next", *PREV_LATENT] = step.expand(6, 8, 3, K).clone()
    td["next", *DONE], td["next", "done"] = (torch.zeros(6, 8, *size, 1, dtype=torch.bool) for size in ((3,), ()))
    td[IS_INIT], td[LOGITS] = torch.zeros(6, 8, 1, dtype=torch.bool), torch.zeros(6, 8, 3, 5)
    found = measure(loss, td, td, specs)
    assert all(found[f"wm/obs_skill_{k}_{name}"] == pytest.approx(1, abs=1e-5) for k in (1, 3, 5)
               for name in ("true", "moa"))
    td["next", *PREV_LATENT][:, 1:] = 0.0
    found = measure(loss, td, td, specs)
    for k in (1, 3, 5):
        assert found[f"wm/obs_skill_{k}_true"] == pytest.approx(1 / (9 - k), abs=1e-5)
        assert found[f"wm/obs_skill_{k}_moa"] == pytest.approx(0, abs=1e-5)


@pytest.mark.parametrize("options", [{"policy_latent": "sample"}, {"actor_inputs": "obs"}, {
    "policy_latent": "sample", "memory": "gru", "memory_dim": 4}], ids=str)
@pytest.mark.parametrize("fast", [True, False])
def test_collectors_hand_on_the_mean_that_acted_and_episodes_start_without_one(fast, options):
    env = ToyEnv(6, 2, max_steps=5, seed=3, arrive=0.9)
    loss = shaken(make_loss(specs := Specs.from_env(env), **options))
    actor = make_actor(specs, loss.features, share="all", agent_id=True, cells=(8,), activation="tanh", init="default",
                       recurrent_dim=0, head="tanh_normal", state_dependent_scale=True, device="cpu")
    policy = TensorDictSequential(*loss.encoders, *actor, *loss.recorders)
    assert hidden_shapes(policy)[PREV_LATENT] == (2, K)
    batches = [batch.clone() for batch in make_collector(env, policy, steps=7, total_frames=3 * 42, fast=fast)]
    whole = torch.cat(batches, 1)
    with torch.no_grad():
        known = torch.cat([loss.acting.infer_batch(batch).mean for batch in batches], 1)
    assert_close(whole["next", *PREV_LATENT], known, atol=1e-5, rtol=1e-5)
    before = torch.cat([torch.zeros_like(known[:, :1]), whole["next", *PREV_LATENT][:, :-1]], 1)
    assert torch.equal(whole[PREV_LATENT], before * whole[PREV_VALID])
    assert (whole[PREV_VALID][:, 1:] == 0).any() and before.std() > 0.01


@pytest.mark.parametrize("kind", ["discrete", "continuous"])
def test_imagined_steps_have_latents_of_their_own(kind):
    specs = make_specs(kind)
    loss = shaken(make_loss(specs))
    actor = make_actor(specs, loss.features, share="all", agent_id=True, cells=[8], activation="tanh", init="default",
                       recurrent_dim=0, head="normal", state_dependent_scale=False, device="cpu")
    td = make_past_batch(specs, 5, 3, latent=K).reshape(-1)
    simulator = Simulator(loss.model, loss.encoders, actor, loss.world_loss.unscaled)
    steps, last = simulator.roll({key: td[key] for key in simulator.keys}, 3)
    assert torch.equal(steps[0][PREV_LATENT], td[PREV_LATENT])
    for now, then in zip(steps, (*steps[1:], last), strict=True):
        known = loss.acting.infer(now[OBSERVATION], *(now[key] for key in (*PAST, PREV_LATENT)))
        assert torch.equal(now[LATENT], known.mean) and torch.equal(then[PREV_LATENT], known.mean)
        u, joint = loss.model.scaler(now[OBSERVATION]), then[PAST[1]]
        after, reward = loss.model.world_model(u, joint, known.mean)
        assert_close(loss.model.scaler(then[OBSERVATION]), after.clamp(-10, 10), rtol=1e-4, atol=1e-4)
        assert_close(now["next", "agents", "reward"], loss.world_loss.unscaled(reward))
