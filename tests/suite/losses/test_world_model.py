import pytest
import torch
from tensordict import TensorDict
from torch.testing import assert_close

from suite.losses.world_model import NEXT_OBSERVATION, TASK_REWARD, WorldModelLoss, observation_error
from suite.modules.state_model import PARTS, StateModel
from suite.specs import ACTION, ALIVE, OBSERVATION, REWARD, TERMINATED, Specs
from tests.batches import assert_unchanged, make_batch, make_specs, shaken

torch.set_num_threads(1)


def make_loss(specs, *, others="all", scale=1.0, members=1, continues=False, **options):
    torch.manual_seed(0)
    model = StateModel(specs, latent_dim=3, cells=[16], parts=PARTS, others=others, members=members,
                       continues=continues)
    return WorldModelLoss(specs, model, torch.tensor(scale), **options)


def hand_batch(rows=2):
    """Two agents with two observations 0, 0 that become 1, 2, and a reward of 1."""
    td = TensorDict({OBSERVATION: torch.zeros(rows, 2, 2), ACTION: torch.zeros(rows, 2, dtype=torch.int64),
                     NEXT_OBSERVATION: torch.tensor([1.0, 2.0]).repeat(rows, 2, 1)}, batch_size=[rows])
    td[TASK_REWARD] = torch.ones(rows, 2, 1)
    return td


def hand_specs(**options):
    return Specs(n_agents=2, obs_dim=2, action_dim=3, discrete=True, agent_types=(0, 0), **options)


def predicting(loss, monkeypatch, observation, reward):
    """The network's output, set by hand."""
    monkeypatch.setattr(loss.model.world_model, "each", lambda u, joint: (
        torch.tensor(observation).expand_as(u)[None], torch.as_tensor(reward).expand_as(u[None, ..., :1]),
        u[None, ..., :0]))


def test_observation_error_by_hand():
    u, none = torch.tensor([1.0, 2.0]), torch.zeros(2)
    both, first = torch.tensor([True, True]), torch.tensor([True, False])
    for mask, total, mean in ((both, 5, 2.5), (first, 1, 1), (~both, 0, 0)):  # of the last nothing varies
        assert observation_error(none, u, mask, reduction="sum") == total
        assert observation_error(none, u, mask, reduction="mean") == mean


@pytest.mark.parametrize("options, observation, reward", [
    ({}, 2.5, 0.25), ({"reduction": "sum"}, 5.0, 0.25), ({"huber": True}, 2.5, 0.125),
    ({"obs_coef": 2.0, "reward_coef": 3.0}, 5.0, 0.75),
    ({"scale": 2.0}, 2.5, 0.0)])  # a reward of 1 in units of 2 is the 0.5 predicted
def test_loss_by_hand(options, observation, reward, monkeypatch):
    loss = make_loss(hand_specs(), **options)
    predicting(loss, monkeypatch, [0.0, 0.0], 0.5)
    out = loss(hand_batch())
    assert set(out.keys()) == {"loss_obs", "loss_reward"}
    assert out["loss_obs"].item() == pytest.approx(observation, abs=1e-6)
    assert out["loss_reward"].item() == pytest.approx(reward, abs=1e-6)


def test_symlog_rewards_by_hand(monkeypatch):
    """0.693147181 is wanted of a reward of 1, whatever the scale; 0.5 was predicted."""
    loss = make_loss(hand_specs(), scale=7.0, symlog_reward=True)
    predicting(loss, monkeypatch, [1.0, 2.0], 0.5)
    assert loss(hand_batch())["loss_reward"].item() == pytest.approx(0.193147181**2, abs=1e-6)
    for options in ({"symlog_reward": True}, {}):
        loss = make_loss(hand_specs(), scale=7.0, **options)
        reward = torch.tensor([0.0, 1.0, -9.0, 100.0]).view(2, 2, 1)
        assert_close(loss.unscaled(loss.scaled(reward)), reward, rtol=1e-5, atol=1e-5)


def test_a_shared_reward_is_the_mean_of_the_agents(monkeypatch):
    """Agents get 1 and 0, and 0.5 was predicted of both."""
    for shared, expected in ((True, 0.0), (False, 0.25)):
        loss, td = make_loss(hand_specs(), shared_reward=shared), hand_batch()
        td[TASK_REWARD][:, 1] = 0
        predicting(loss, monkeypatch, [1.0, 2.0], 0.5)
        assert loss(td)["loss_reward"].item() == pytest.approx(expected, abs=1e-6)


def test_the_chance_to_go_on_by_hand(monkeypatch):
    """A logit of 1 costs ln(1 + e^-1) = 0.313261688 where the step goes on, 1.313261688 where it terminates."""
    loss, td = make_loss(hand_specs(), continues=True), hand_batch(4)
    monkeypatch.setattr(loss.model.world_model, "each", lambda u, joint: (
        u[None], torch.zeros_like(u[None, ..., :1]), torch.ones_like(u[None, ..., :1])))
    td["next", *TERMINATED] = torch.tensor([True, False, False, False])[:, None, None].expand(4, 2, 1)
    assert loss(td)["loss_continue"].item() == pytest.approx(0.313261688 + 0.25, abs=1e-6)
    assert ("next", *TERMINATED) in loss.in_keys
    plain = make_loss(hand_specs())
    assert ("next", *TERMINATED) not in plain.in_keys and "loss_continue" not in plain(td)


def test_the_loss_of_an_ensemble_is_the_mean_of_its_members():
    specs = make_specs("continuous", alive=ALIVE)
    loss, td = make_loss(specs, members=3, continues=True), make_batch(specs)
    td[TASK_REWARD] = td["next", *REWARD]
    shaken(loss.model.world_model)
    weights, alone = loss.model.world_model.state_dict(), make_loss(specs, continues=True)
    found = []
    for k in range(3):
        alone.model.world_model.load_state_dict({name: value[k] for name, value in weights.items()})
        found.append(alone(td))
    for key, value in loss(td).items():
        assert_close(value, torch.stack([out[key] for out in found]).mean())


def test_features_that_never_vary_do_not_count(monkeypatch):
    loss = make_loss(hand_specs())
    predicting(loss, monkeypatch, [0.0, 7.0], 0.5)
    loss.model.scaler.moments.var[1] = 0.0
    assert loss(hand_batch())["loss_obs"].item() == pytest.approx(1.0, abs=1e-6)


def test_targets_are_standardised(monkeypatch):
    loss = make_loss(hand_specs())
    predicting(loss, monkeypatch, [0.0, 0.0], 0.5)
    loss.model.scaler.moments.mean.fill_(1.0)
    loss.model.scaler.moments.var.fill_(4.0)
    assert loss(hand_batch())["loss_obs"].item() == pytest.approx((0.0 + 0.25) / 2, abs=1e-6)


def test_agents_that_left_do_not_count(monkeypatch):
    loss = make_loss(hand_specs(alive=ALIVE))
    predicting(loss, monkeypatch, [0.0, 0.0], 0.5)
    td = hand_batch()
    td[ALIVE] = torch.tensor([[True, False], [True, True]])
    td[NEXT_OBSERVATION][0, 1] = 1e6
    td[TASK_REWARD][0, 1] = 1e6
    out = loss(td)
    assert out["loss_obs"].item() == pytest.approx(2.5) and out["loss_reward"].item() == pytest.approx(0.25)
    assert ALIVE in loss.in_keys and ALIVE not in make_loss(hand_specs()).in_keys


def test_nobody_alive_is_zero_without_gradient():
    loss, td = make_loss(hand_specs(alive=ALIVE)), hand_batch()
    td[ALIVE] = torch.zeros(2, 2, dtype=torch.bool)
    out = loss(td)
    (out["loss_obs"] + out["loss_reward"]).backward()
    assert out["loss_obs"] == 0 and out["loss_reward"] == 0
    assert not any(p.grad.any() for p in loss.model.world_model.parameters())


@pytest.mark.parametrize("kind", ["discrete", "continuous"])
def test_only_the_world_model_learns_and_the_reward_is_the_tasks(kind):
    specs = make_specs(kind, alive=ALIVE)
    loss, td = make_loss(specs), make_batch(specs)
    td[TASK_REWARD] = td["next", *REWARD].clone()
    td["next", *REWARD] += 1e3  # shaped
    before = td.clone()
    out = loss(td.select(*loss.in_keys))
    assert out["loss_reward"] < 50
    (out["loss_obs"] + out["loss_reward"]).backward()
    trained = {id(p) for params in loss.networks("world_model").values() for p in params}
    assert trained == {id(p) for p in loss.model.world_model.parameters()}
    for p in loss.parameters():
        assert (p.grad is not None) == (id(p) in trained)
    assert_unchanged(td, before)


@pytest.mark.parametrize("others", ["all", "own"])
def test_unseen_actions_of_the_others_change_nothing(others):
    specs = make_specs("discrete")
    loss, td = make_loss(specs, others=others), make_batch(specs)
    with torch.no_grad():
        loss.model.world_model.net[-1].weight.normal_()
    first = loss.predict(td)[0]
    td[ACTION][..., 1:] = (td[ACTION][..., 1:] + 1) % 5
    second = loss.predict(td)[0]
    assert torch.equal(first[..., 0, :], second[..., 0, :]) == (others == "own")
    assert not torch.equal(first[..., 1, :], second[..., 1, :])  # its own


def test_order_of_frames_changes_nothing():
    specs = make_specs("continuous", alive=ALIVE)
    loss, td = make_loss(specs), make_batch(specs)
    td[TASK_REWARD] = td["next", *REWARD]
    flat = td.reshape(-1)
    mixed = flat[torch.randperm(len(flat))]
    for key, value in loss(td).items():
        assert_close(value, loss(mixed)[key])


@pytest.mark.parametrize("kind", ["discrete", "continuous"])
def test_one_batch_can_be_learned_by_heart(kind):
    """Known dynamics: every agent moves by its own action and is pushed by the others'."""
    torch.manual_seed(0)
    specs = make_specs(kind, n_agents=2)
    model = StateModel(specs, latent_dim=3, cells=[128, 128], parts=PARTS, others="all")
    loss = WorldModelLoss(specs, model, torch.ones(()))
    td = make_batch(specs, shape=(256,))
    move = model.actions.pack(model.actions.encode(td[ACTION])) @ torch.randn(2 * specs.action_dim, 4) * 0.3
    td[NEXT_OBSERVATION] = td[OBSERVATION] + move
    td[TASK_REWARD] = td[OBSERVATION][..., :1] * 0.5
    optimizer = torch.optim.Adam(model.world_model.parameters(), lr=1e-3)
    start = loss(td)["loss_obs"].item()
    for _ in range(500):
        out = loss(td)
        optimizer.zero_grad()
        (out["loss_obs"] + out["loss_reward"]).backward()
        optimizer.step()
        if out["loss_obs"] < 1e-3:
            break
    assert start > 0.05 and out["loss_obs"].item() < 1e-3
