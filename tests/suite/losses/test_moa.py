"""The sum of the family's losses, its schedule, its rewards and its statistics."""

import math

import pytest
import torch
from tensordict import TensorDict
from torch.testing import assert_close

from suite.losses import MOALoss
from suite.losses.world_model import NEXT_OBSERVATION, TASK_REWARD
from suite.modules.state_model import PAST, PREV_ACTION, PREV_OBSERVATION, PREV_VALID
from suite.specs import ACTION, ALIVE, OBSERVATION, REWARD, Specs
from tests.batches import assert_unchanged, make_past_batch, make_specs, shaken

torch.set_num_threads(1)
LOGITS = [2.0, 1.0, 0.0]
SMALL = dict(latent_dim=2, num_cells=16, depth=1)
# two dimensions with KL(student || teacher) = 0.443147181 + 0.806852819 = 1.25
STUDENT = torch.tensor([0.0, 1.0]), torch.tensor([1.0, 2.0]).log()
TEACHER = torch.tensor([1.0, 1.0]), torch.tensor([2.0, 1.0]).log()


def hand_specs(**options):
    return Specs(n_agents=2, obs_dim=1, action_dim=3, discrete=True, agent_types=(0, 0), **options)


def hand_td(actions, valid):
    """Both agents do the same at every step."""
    rows = len(actions)
    td = TensorDict({ACTION: torch.tensor(actions)[:, None].expand(rows, 2).clone()}, batch_size=[rows])
    td[PREV_VALID] = torch.tensor(valid)[:, None, None].expand(rows, 2, 1).float()
    td[PREV_OBSERVATION], td[PREV_ACTION] = torch.zeros(rows, 2, 1), torch.zeros(rows, 2, 6)
    return td


# ---------------------------------------------------------------------- the whole family


def test_the_sum_of_the_losses(monkeypatch):
    """1.407605964 + 0.125 + 0.25 + (0.25 + 0.03 * 1.25) = 2.070105964, and the teacher's own."""
    specs = hand_specs()
    loss, td = MOALoss(specs, **SMALL), hand_td([2, 0, 1, 2], [0, 1, 1, 1])
    td[OBSERVATION] = torch.zeros(4, 2, 1)
    td[NEXT_OBSERVATION], td[TASK_REWARD] = torch.full((4, 2, 1), math.sqrt(0.125)), torch.ones(4, 2, 1)
    monkeypatch.setattr(loss.model.action_model, "forward", lambda u, joint, valid, state: (
        torch.tensor(LOGITS).expand(*u.shape[:-1], 1, 3)))
    monkeypatch.setattr(loss.model.world_model, "each", lambda u, joint: (
        u[None], torch.full_like(u[None, ..., :1], 0.5), u[None, ..., :0]))
    monkeypatch.setattr(loss.model.student, "forward", lambda x, c: tuple(p.expand(*x.shape[:-1], 2) for p in STUDENT))
    monkeypatch.setattr(loss.cvae_loss.teacher, "forward", lambda x, c, y: tuple(
        p.expand(*x.shape[:-1], 2) for p in TEACHER))
    known = loss.model.infer(td[OBSERVATION], *(td[key] for key in PAST))
    monkeypatch.setattr(loss.cvae_loss.decoder, "forward", lambda z: known.x + 0.5)
    out = loss(td)
    total = sum(out[name].item() for name in ("loss_moa", "loss_obs", "loss_reward", "loss_rec", "loss_kl"))
    assert total == pytest.approx(2.070105964, abs=1e-6)
    assert set(out.keys()) - {"loss_moa", "loss_obs", "loss_reward", "loss_rec", "loss_kl"} == {
        "loss_teacher", "accuracy", "kl"}


@pytest.mark.parametrize("name, off", [("moa_coef", ["loss_moa"]), ("obs_coef", ["loss_obs"]),
                                       ("reward_coef", ["loss_reward"]), ("teacher_coef", ["loss_teacher"]),
                                       ("cvae_coef", ["loss_rec"])])
def test_each_weight_scales_its_loss(name, off):
    specs, values = make_specs("discrete"), []
    for weight in (1.0, 0.25, 0.0):
        torch.manual_seed(0)
        loss, td = MOALoss(specs, **SMALL, **{name: weight}), make_past_batch(specs, 3, 4)
        torch.manual_seed(0)
        values.append(loss(td))
    for key in values[0].keys():  # noqa: SIM118
        factor = 0.25 if key in off or (name == "cvae_coef" and key == "loss_kl") else 1.0
        assert_close(values[1][key], factor * values[0][key])
        assert factor == 1 or values[2][key] == 0


@pytest.mark.parametrize("joined", [False, True])
@pytest.mark.parametrize("kind", ["discrete", "continuous"])
def test_each_network_learns_from_its_own_loss_only(kind, joined):
    """With ``cvae_grad_to_moa`` the model of the others also learns from what the student makes of it."""
    specs = make_specs(kind, hidden_dim=2, alive=ALIVE)
    loss = shaken(MOALoss(specs, **SMALL, teacher_pull=0.1, cvae_grad_to_moa=joined))
    td, more = make_past_batch(specs, 3, 4), {"moa"} if joined else set()
    networks, before = loss.networks("moa"), td.clone()
    learns = {"loss_moa": {"moa"}, "loss_obs": {"world_model"}, "loss_reward": {"world_model"},
              "loss_rec": {"student"} | more, "loss_kl": {"student", "teacher"} | more, "loss_teacher": {"teacher"}}
    assert networks.keys() == set().union(*learns.values())
    assert sum(len(group) for group in networks.values()) == sum(p.requires_grad for p in loss.parameters())
    for name, expected in learns.items():
        loss.zero_grad(set_to_none=True)
        loss(td)[name].backward()
        assert {part for part, group in networks.items() if any(p.grad is not None for p in group)} == expected, name
    assert_unchanged(td, before)


@pytest.mark.parametrize("kind", ["discrete", "continuous"])
def test_agents_that_trade_places_with_their_ids_change_no_loss(kind, monkeypatch):
    monkeypatch.setattr(torch, "randn_like", torch.zeros_like)
    specs = make_specs(kind, hidden_dim=2, alive=ALIVE)
    if not specs.discrete:
        specs.low[:], specs.high[:] = -1, 1
    loss, td = shaken(MOALoss(specs, **SMALL)), make_past_batch(specs, 3, 4)
    before, place = loss(td), torch.tensor([2, 0, 1])  # at k stands the agent that was at place[k]
    back = place.argsort()
    agents = td.select(*loss.in_keys).apply(lambda x: x[:, :, place])
    actions = loss.model.actions
    for index in (actions.others, actions.order):
        index.copy_(back[index[place]])
    for module in loss.modules():
        if "ids" in dict(module.named_buffers(recurse=False)):
            module.ids.copy_(torch.eye(3)[place])
    for key, value in loss(agents).items():
        assert_close(value, before[key], rtol=1e-5, atol=1e-6)


# ---------------------------------------------------------------------- schedule, reward, statistics


def received(loss, td, times):
    for _ in range(times):
        loss.receive(td)
    return loss.cvae_loss.alpha


@pytest.mark.parametrize("world", [1, 2])
def test_the_ramp_of_alpha(world, monkeypatch):
    """100 iterations of 12 frames in each process: iteration 0, 10, 20 and 99."""
    monkeypatch.setattr("suite.losses.moa.distributed.world_size", lambda: world)
    specs = make_specs("discrete")
    loss, td = MOALoss(specs, **SMALL, alpha=0.03), make_past_batch(specs, 3, 4)
    assert loss.plan(1200 * world) == []
    found = [received(loss, td, times) for times in (1, 10, 10, 79)]
    assert found == pytest.approx([0.0, 0.015, 0.03, 0.03])
    weighted = MOALoss(specs, **SMALL, alpha=0.03, cvae_coef=0.5, alpha_warmup=0.0)
    weighted.plan(1200)
    assert received(weighted, td, 1) == pytest.approx(0.015)
    state = loss.state_dict()
    again = MOALoss(specs, **SMALL, alpha=0.03)
    again.plan(600)
    again.load_state_dict(state)
    assert (again.frames, again.total_frames) == (1200 * world, 1200 * world)


def test_the_task_reward_is_kept_before_any_shaping():
    specs = make_specs("discrete")
    loss, td = MOALoss(specs, **SMALL, curiosity=0.1, curiosity_scale="none"), make_past_batch(specs, 3, 4)
    del td["next", "agents", "task_reward"]
    task = td["next", *REWARD].clone()
    loss.receive(td)
    td["next", *REWARD] += 100
    assert torch.equal(td[TASK_REWARD], task)


def test_curiosity_is_the_error_of_the_world_model():
    specs = make_specs("discrete")
    assert MOALoss(specs, **SMALL).reward_terms(make_past_batch(specs, 3, 4)) == {}
    loss, td = MOALoss(specs, **SMALL, curiosity=0.1, curiosity_scale="none"), make_past_batch(specs, 3, 4)
    assert loss.reward_weights == {"curiosity": 0.1}
    term = loss.reward_terms(td)["curiosity"]
    expected = (td[NEXT_OBSERVATION] - td[OBSERVATION]).square().mean(-1, keepdim=True)  # "nothing changes"
    assert_close(term, expected.clamp_max(5.0), rtol=1e-4, atol=1e-5)
    assert term.shape == (3, 4, 3, 1) and not term.requires_grad
    td[NEXT_OBSERVATION] += 9
    assert (loss.reward_terms(td)["curiosity"] == 5).all()


def test_curiosity_does_not_pay_for_padding():
    """Entries that never vary do not dilute it either."""
    specs = make_specs("discrete")
    loss, td = MOALoss(specs, **SMALL, curiosity=0.1, curiosity_scale="none"), make_past_batch(specs, 3, 4)
    whole = loss.reward_terms(td)["curiosity"]
    loss.model.scaler.moments.var[2:] = 0.0
    expected = (td[NEXT_OBSERVATION] - td[OBSERVATION])[..., :2].square().mean(-1, keepdim=True)
    assert_close(loss.reward_terms(td)["curiosity"], expected.clamp_max(5.0), rtol=1e-4, atol=1e-5)
    assert not torch.equal(whole, expected)


def test_statistics_move_once_per_batch():
    specs = make_specs("discrete")
    loss, td = shaken(MOALoss(specs, **SMALL)), make_past_batch(specs, 30, 40)
    td[TASK_REWARD] = 3 * td[TASK_REWARD] + 7
    still = {name: value.clone() for name, value in loss.named_buffers()}
    loss.receive(td)
    loss(td)
    loss.reward_terms(td)
    assert all(torch.equal(value, still[name]) for name, value in loss.named_buffers())
    loss.refresh(td)
    rows = td[OBSERVATION].flatten(0, 2)
    assert_close(loss.model.scaler.moments.mean, rows.mean(0), rtol=1e-3, atol=1e-3)
    # a reward is divided by its deviation, and not centred
    assert_close(loss.world_loss.reward_scale, td[TASK_REWARD].std(), rtol=1e-3, atol=1e-3)
    x = loss.model.raw_features(td[OBSERVATION], *(td[key] for key in PAST))[1]
    assert_close(loss.model.x_scaler.moments.var, x.flatten(0, 2).var(0), rtol=1e-3, atol=1e-3)
    td[TASK_REWARD] = torch.full_like(td[TASK_REWARD], 2.0)
    loss.reward_moments.count.fill_(1e-4)
    loss.reward_moments.mean.fill_(2.0)
    loss.reward_moments.var.fill_(0.0)
    loss.refresh(td)
    assert loss.world_loss.reward_scale.item() == pytest.approx(1e-3)  # never less
