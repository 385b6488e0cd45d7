"""Imagination in a world that is known exactly: targets, advantages, what is stored, the gate, what is refused."""

import pytest
import torch
from tensordict import TensorDict
from torch.testing import assert_close

from suite.losses import MOALoss, PolicyLoss, ValueLoss
from suite.losses.imagination import (
    Imagined,
    imagined_gae,
    predictability,
    stacked,
    terminates,
    value_expansion,
)
from suite.losses.world_model import TASK_REWARD, WorldModelLoss
from suite.modules.functional import gae
from suite.modules.state_model import PAST
from suite.specs import ACTION, ADVANTAGE, ALIVE, DONE, LOG_PROB, OBSERVATION, TERMINATED, VALUE, VALUE_TARGET
from tests.batches import make_past_batch, make_specs, shaken
from tests.worlds import GAMMA, M, make_world, true_values

torch.set_num_threads(1)
CLOSE = dict(rtol=1e-4, atol=1e-5)


# ---------------------------------------------------------------------- equations


def steps_of(*values):
    return torch.tensor(values).view(1, -1, 1, 1)


@pytest.mark.parametrize("goes_on, expected", [
    ([1.0, 1.0], 10.9),  # 1 + 0.9 * 2 + 0.81 * 10
    ([0.5, 1.0], 5.95),  # 1 + 0.45 * (2 + 9)
    ([1.0, 0.0], 2.8), ([0.0, 1.0], 1.0)])
def test_value_expansion_by_hand(goes_on, expected):
    found = value_expansion(steps_of(1.0, 2.0), torch.tensor([[[10.0]]]), steps_of(*goes_on), gamma=0.9)
    assert found.shape == (1, 1, 1) and found.item() == pytest.approx(expected, abs=1e-6)


def test_advantages_are_those_of_gae_where_every_step_goes_on():
    torch.manual_seed(0)
    reward, value, after = torch.randn(3, 5, 4, 2, 1)
    never = torch.zeros(5, 4, 2, 1, dtype=torch.bool)
    found = imagined_gae(reward, value, after, torch.ones_like(reward), gamma=0.9, lmbda=0.8)
    for mine, its in zip(found, gae(reward, value, after, never, never, gamma=0.9, lmbda=0.8), strict=True):
        assert_close(mine, its)
    end = torch.rand(5, 4, 2, 1) < 0.3  # a certain end is a termination
    found = imagined_gae(reward, value, after, (~end).float(), gamma=0.9, lmbda=0.8)
    for mine, its in zip(found, gae(reward, value, after, end, end, gamma=0.9, lmbda=0.8), strict=True):
        assert_close(mine, its)


def test_advantages_by_hand():
    """gamma 0.9, lambda 0.8, r = 1 1, all V = 0.5, a half chance behind the first step.

    delta = 1 + 0.225 - 0.5 = 0.725 and 1 + 0.45 - 0.5 = 0.95; A_0 = 0.725 + 0.36 * 0.95 = 1.067.
    """
    half = torch.full((1, 2, 1, 1), 0.5)
    advantage, target = imagined_gae(torch.ones_like(half), half, half, steps_of(0.5, 1.0), gamma=0.9, lmbda=0.8)
    assert advantage.flatten().tolist() == pytest.approx([1.067, 0.95], abs=1e-6)
    assert_close(target, advantage + 0.5)


# ---------------------------------------------------------------------- the exact world


def batch_of(rows=8, steps=3, seed=0):
    """Frames with made-up targets, paid where they arrive; rows 0 and 1 end with their second step, by termination and
    by truncation."""
    torch.manual_seed(seed)
    batch = TensorDict({}, batch_size=[rows, steps])
    batch[OBSERVATION] = torch.randn(rows, steps, 2, 1)
    batch[ACTION] = -batch[OBSERVATION] / 2
    batch["next", *OBSERVATION] = M @ batch[OBSERVATION]
    for key, width in zip(PAST, (1, 2, 1), strict=True):
        batch[key] = torch.ones(rows, steps, 2, width)
    batch[VALUE_TARGET] = torch.randn(rows, steps, 2, 1)
    batch[TASK_REWARD] = batch["next", *OBSERVATION].clone()
    batch["next", *DONE] = torch.zeros(rows, steps, 2, 1, dtype=torch.bool)
    batch["next", *DONE][:2, 1] = True
    batch["next", *TERMINATED] = batch["next", *DONE].clone()
    batch["next", *TERMINATED][1] = False
    return batch


def near_an_end(horizon, rows=8, steps=3):
    """Where `batch_of` shows a termination within the horizon: row 0, up to its second step."""
    found = torch.zeros(rows, steps, 2, 1, dtype=torch.bool)
    found[0, max(0, 2 - horizon) : 2] = True
    return found


def imagine(monkeypatch, kind, horizon, *, skill=0.9, batch=None, **options):
    """The batch after imagination with a world model of that skill, and who imagined."""
    monkeypatch.setattr(WorldModelLoss, "skill", lambda self, td: torch.tensor(skill))
    loss_options = {"imagination": kind, "horizon": horizon} | options.pop("options", {})
    loss, learner = make_world(monkeypatch, options=loss_options, **options)
    [imagination] = loss.estimators(learner)
    return imagination(batch_of() if batch is None else batch), imagination, loss, learner


@pytest.mark.parametrize("horizon", [1, 2, 3])
def test_expansion_with_the_true_critic_gives_the_true_value(monkeypatch, horizon):
    batch, *_ = imagine(monkeypatch, "expand", horizon)
    before = batch_of()
    expected = (before[VALUE_TARGET] + true_values() @ before[OBSERVATION]) / 2
    expected = torch.where(near_an_end(horizon), before[VALUE_TARGET], expected)
    assert_close(batch[VALUE_TARGET], expected, **CLOSE)
    assert set(batch.keys(True, True)) == set(before.keys(True, True))


@pytest.mark.parametrize("mix, horizon", [(0.5, 2), (1.0, 3), (0.0, 3)])
def test_expansion_with_no_critic_is_the_sum_of_imagined_rewards(monkeypatch, mix, horizon):
    batch, *_ = imagine(monkeypatch, "expand", horizon, matrix=torch.zeros(2, 2), options={"imagination_mix": mix})
    before, now, total = batch_of(), batch_of()[OBSERVATION], 0.0
    for k in range(horizon):
        now = M @ now
        total = total + GAMMA**k * now
    expected = (1 - mix) * before[VALUE_TARGET] + mix * total
    expected = torch.where(near_an_end(horizon), before[VALUE_TARGET], expected)
    assert_close(batch[VALUE_TARGET], expected, **CLOSE)


def test_an_end_behind_another_episodes_end_does_not_count():
    batch = batch_of(rows=2, steps=4)[:1]
    for key, ends in ((TERMINATED, [0, 0, 1, 0]), (DONE, [1, 0, 1, 0])):
        batch["next", *key] = torch.tensor(ends, dtype=torch.bool).view(1, 4, 1, 1).expand(1, 4, 2, 1)
    assert terminates(batch, 3)[0, :, 0, 0].tolist() == [False, True, True, False]
    assert terminates(batch, 1)[0, :, 0, 0].tolist() == [False, False, True, False]


def test_a_predicted_end_weighs_the_tail_and_replaces_the_known_one(monkeypatch):
    batch, *_ = imagine(monkeypatch, "expand", 3, goes_on=0.5, matrix=true_values(0.5),
                        options={"continue_head": True, "imagination_mix": 1.0})
    assert_close(batch[VALUE_TARGET], true_values(0.5) @ batch_of()[OBSERVATION], **CLOSE)


def test_below_the_threshold_nothing_changes(monkeypatch):
    for skill, active in ((0.5, 0.0), (0.500001, 1.0), (-3.0, 0.0)):
        batch, imagination, loss, _ = imagine(monkeypatch, "expand", 2, skill=skill)
        assert torch.equal(batch[VALUE_TARGET], batch_of()[VALUE_TARGET]) == (not active)
        noted = loss.metrics()
        assert noted.keys() == {"imagination/active", "imagination/skill", "imagination/rew_r2"}
        assert noted["imagination/active"] == imagination.gate == active
        assert noted["imagination/skill"] == torch.tensor(skill)
    batch, *_ = imagine(monkeypatch, "expand", 2, skill=0.4, options={"imagination_skill": 0.3})
    assert not torch.equal(batch[VALUE_TARGET], batch_of()[VALUE_TARGET])


# the exact world says r, of mean 0 and variance 1, and is paid factor * r + shift: R^2 is
# 1 - ((1 - factor)^2 + shift^2) / factor^2, and 0 by definition where the reward never changes
@pytest.mark.parametrize("factor, shift, expected", [
    (1.0, 0.0, 1.0), (1.0, 0.7, 0.51), (1.0, 1.4, -0.96), (-1.0, 0.0, -3.0), (0.0, 5.0, 0.0)])
@pytest.mark.parametrize("kind", ["expand", "dyna", "decentralised"])
def test_rewards_must_be_predicted_better_than_by_a_constant(monkeypatch, kind, factor, shift, expected):
    """On the two held-out rows; those before them, whose rewards nobody could predict, do not count."""
    batch = batch_of()
    reward = batch["next", *OBSERVATION][6:]
    reward = (reward - reward.mean()) / reward.std(correction=0)
    batch[OBSERVATION][6:] = torch.linalg.inv(M) @ reward
    batch[ACTION] = -batch[OBSERVATION] / 2
    batch[TASK_REWARD] = torch.cat([torch.randn(6, 3, 2, 1), factor * reward + shift])
    before, active = batch[VALUE_TARGET].clone(), expected > 0
    batch, imagination, loss, _ = imagine(monkeypatch, kind, 3, batch=batch, losses={"actor": Constant()})
    assert loss.metrics()["imagination/rew_r2"].item() == pytest.approx(expected, abs=1e-4)
    assert loss.metrics()["imagination/active"] == imagination.gate == active
    assert torch.equal(batch[VALUE_TARGET], before) == (kind != "expand" or not active)


def test_the_skill_is_that_of_the_held_out_environments():
    specs = make_specs("continuous")
    loss, td = shaken(MOALoss(specs, latent_dim=2, num_cells=8, depth=1)), make_past_batch(specs, 8, 3)
    u, after = (loss.model.scaler(td[key]) for key in (OBSERVATION, ("next", *OBSERVATION)))
    predicted, _ = loss.world_loss.predict(td)
    expected = 1 - (predicted - after)[6:].square().mean() / (u - after)[6:].square().mean()
    assert_close(loss.world_loss.skill(td[6:]), expected)


@pytest.mark.parametrize("returns", [{}, {"value_norm": True}, {"target_tau": 0.0}, {"standardize_reward": 2}], ids=str)
def test_units_of_the_learner(monkeypatch, returns):
    """What a critic in its own units, a target critic and standardised rewards make of the same future."""
    monkeypatch.setattr(WorldModelLoss, "skill", lambda self, td: torch.tensor(0.9))
    loss, learner = make_world(monkeypatch, matrix=torch.eye(2), returns=returns, reward_weights={"task": 2.0},
                               team_reward=True, options={"imagination": "expand", "horizon": 2,
                                                          "imagination_mix": 1.0, "continue_head": True})
    estimate = learner.returns
    critic = torch.eye(2)
    if "value_norm" in returns:
        estimate.value_moments.mean.fill_(5.0)
        estimate.value_moments.var.fill_(4.0)
        estimate.learned = torch.tensor([5.0]), torch.tensor([2.0])
    if "standardize_reward" in returns:
        estimate.reward_moments.mean.copy_(torch.tensor([[1.0], [2.0]]))
        estimate.reward_moments.var.copy_(torch.tensor([[4.0], [9.0]]))
    if "target_tau" in returns:
        with torch.no_grad():
            estimate.target.module.matrix.copy_(3 * critic)
    batch = loss.estimators(learner)[0](batch_of())
    one = M @ batch_of()[OBSERVATION]
    two = M @ one
    paid = [2 * x.sum(-2, keepdim=True).expand_as(x) for x in (one, two)]  # the team's reward, twice
    value = {"value_norm": 2 * two + 5, "target_tau": 3 * two}.get(next(iter(returns), ""), two)
    if "standardize_reward" in returns:
        paid = [(x - torch.tensor([[1.0], [2.0]])) / torch.tensor([[2.0], [3.0]]) for x in paid]
    expected = paid[0] + GAMMA * paid[1] + GAMMA**2 * value
    expected = (expected - 5) / 2 if "value_norm" in returns else expected
    assert_close(batch[VALUE_TARGET], expected, **CLOSE)


# ---------------------------------------------------------------------- experience


def test_imagined_experience_of_the_exact_world(monkeypatch):
    """The true critic is never surprised, and its targets are what it says."""
    batch, *_ = imagine(monkeypatch, "dyna", 3)
    found, now = batch["imagined"], batch_of()[OBSERVATION]
    for k in range(3):
        step = {key: found[key][:, :, k] for key in (OBSERVATION, ACTION, LOG_PROB, VALUE, VALUE_TARGET, ADVANTAGE)}
        assert_close(step[OBSERVATION], now, **CLOSE)
        assert_close(step[ACTION], -now / 2, **CLOSE)
        assert_close(step[LOG_PROB], now.squeeze(-1), **CLOSE)
        assert_close(step[VALUE], true_values() @ now, **CLOSE)
        assert_close(step[VALUE_TARGET], true_values() @ now, **CLOSE)
        assert_close(step[ADVANTAGE], torch.zeros_like(now), rtol=0, atol=1e-4)
        now = M @ now
    assert torch.equal(batch[VALUE_TARGET], batch_of()[VALUE_TARGET])  # what was real stays


def test_advantages_of_what_was_imagined_are_normalised_among_themselves(monkeypatch):
    plain, *_ = imagine(monkeypatch, "dyna", 3, matrix=torch.zeros(2, 2))
    batch, *_ = imagine(monkeypatch, "dyna", 3, matrix=torch.zeros(2, 2), returns={"normalize": "batch"})
    raw, found = plain["imagined"][ADVANTAGE], batch["imagined"][ADVANTAGE]
    assert_close(found, (raw - raw.mean()) / (raw.std() + 1e-8), **CLOSE)
    rewards, now = [], batch_of()[OBSERVATION]
    for _ in range(3):
        now = M @ now
        rewards.append(now)
    assert_close(raw[:, :, 0], rewards[0] + 0.72 * rewards[1] + 0.72**2 * rewards[2], **CLOSE)
    assert_close(plain["imagined"][VALUE_TARGET], raw, **CLOSE)


class Constant(PolicyLoss):
    """Reads two keys and returns what it read."""

    def __init__(self):
        torch.nn.Module.__init__(self)
        self.in_keys, self.critic = [OBSERVATION, ADVANTAGE], None
        self.scale = torch.nn.Parameter(torch.ones(()))

    def forward(self, minibatch):
        return TensorDict({"loss_policy": self.scale * minibatch[ADVANTAGE].sum(), "entropy": torch.tensor(2.0)})


@pytest.mark.parametrize("skill, weight, every, expected", [
    (0.9, 0.25, 1, 1.5), (0.9, 1.0, 1, 6.0), (0.1, 0.25, 1, 0.0), (0.9, 1.0, 2, 3.0)])
def test_the_weight_and_the_gate_of_a_companion(monkeypatch, skill, weight, every, expected):
    loss = Constant()
    _, imagination, owner, learner = imagine(monkeypatch, "dyna", 3, skill=skill, losses={"actor": loss},
                                             options={"imagination_weight": weight, "imagination_every": every})
    [companion] = owner.companions(learner)["actor"]
    assert isinstance(companion, Imagined) and companion.imagination is imagination
    assert companion.in_keys == [("imagined", *OBSERVATION), ("imagined", *ADVANTAGE)]
    assert list(companion.parameters()) == [] and companion.networks("actor") == {"actor": []}
    out = companion(TensorDict({"imagined": TensorDict({ADVANTAGE: torch.ones(2, 3)}, batch_size=[2])}, batch_size=[2]))
    assert out["loss_policy_imagined"].item() == pytest.approx(expected) and out["entropy_imagined"] == 2
    out["loss_policy_imagined"].backward()
    assert loss.scale.grad == expected


# ---------------------------------------------------------------------- every agent in a world of its own


def test_worlds_without_anybody_to_simulate_are_all_alike(monkeypatch):
    """Nobody is predictable: the policies act in every world, as in the joint one."""
    monkeypatch.setattr("suite.losses.imagination.predictability", lambda loss, held: torch.zeros(2, 1))
    joint, *_ = imagine(monkeypatch, "dyna", 3, matrix=torch.zeros(2, 2))
    batch, imagination, *_ = imagine(monkeypatch, "decentralised", 3, matrix=torch.zeros(2, 2),
                                        losses={"actor": Constant()})
    assert imagination.noted["imagination/modelled_steps"] == 0
    for key in (OBSERVATION, ACTION, LOG_PROB, ADVANTAGE):
        assert_close(batch["imagined"][key], joint["imagined"][key], **CLOSE)
    for world in range(2):
        for key in (OBSERVATION, VALUE, VALUE_TARGET):
            assert_close(batch["imagined_worlds"][key][:, :, :, world], joint["imagined"][key], **CLOSE)


def test_an_agent_plans_with_what_it_expects_of_the_others(monkeypatch):
    """Both expect the other to stand still while they simulate it: k + 1 < 3, so in the first two of three steps."""
    monkeypatch.setattr("suite.losses.imagination.predictability", lambda loss, held: torch.ones(2, 1))
    monkeypatch.setattr("suite.modules.state_model.StateModel.predict_actions", lambda self, prev, joint, valid: (
        (torch.zeros(*prev.shape[:-1], 1, 1), torch.full((*prev.shape[:-1], 1, 1), -50.0)), None))
    batch, imagination, *_ = imagine(monkeypatch, "decentralised", 3, matrix=torch.zeros(2, 2),
                                        losses={"actor": Constant()})
    assert imagination.noted["imagination/modelled_steps"] == 3
    now = batch_of()[OBSERVATION]
    worlds = [now, now]  # of agent 0 and of agent 1
    for k in range(3):
        own = torch.stack([worlds[i][..., i, :] for i in range(2)], -2)
        assert_close(batch["imagined"][OBSERVATION][:, :, k], own, **CLOSE)
        assert_close(batch["imagined"][ACTION][:, :, k], -own / 2, **CLOSE)
        assert_close(batch["imagined_worlds"][OBSERVATION][:, :, k], torch.stack(worlds, -3), **CLOSE)
        for i in range(2):
            action = -worlds[i] / 2
            if k < 2:
                action = action * torch.eye(2)[i].unsqueeze(-1)
            worlds[i] = worlds[i] + action / 2 + action.flip(-2) / 4
    assert "value" not in " ".join(map(str, batch["imagined"].keys(True, True)))


@pytest.mark.parametrize("kind", ["discrete", "continuous"])
def test_predictability_by_hand(kind, monkeypatch):
    specs = make_specs(kind, alive=ALIVE)
    loss, td = MOALoss(specs, latent_dim=2, num_cells=8, depth=1).action_loss, make_past_batch(specs, 40, 5)
    target, weight = loss.targets(td), loss.weights(td)
    if kind == "discrete":
        guess = torch.zeros(40, 5, 3, 2, 5)
        guess[..., 1] = 1.0
        monkeypatch.setattr(loss, "predict", lambda held: guess)
        expected = ((target == 1) * weight).sum((0, 1)) / weight.sum((0, 1))
    else:
        guess = 0.5 * target
        monkeypatch.setattr(loss, "predict", lambda held: (guess, None))
        centre = (target * weight[..., None]).sum((0, 1)) / weight.sum((0, 1))[..., None]
        error, spread = ((((target - x).square().sum(-1)) * weight).sum((0, 1)) for x in (guess, centre))
        expected = (1 - error / spread).clamp_min(0)
    found = predictability(loss, td)
    assert found.shape == (3, 2)
    assert_close(found, expected, **CLOSE)


def test_stacked():
    steps = [{"x": torch.full((2, 3), float(k))} for k in range(4)]
    assert torch.equal(stacked(steps, "x"), torch.arange(4.0)[None, :, None].expand(2, -1, 3))


# ---------------------------------------------------------------------- what is refused


@pytest.mark.parametrize("options, message", [
    ({"imagination": "dream"}, r"imagination of loss 'moa' .*'none', 'expand', 'dyna', 'decentralised'.*'dream'"),
    ({"imagination": "expand", "horizon": 4}, "1 to 3 steps ahead, got horizon=4"),
    ({"imagination": "expand", "horizon": 0}, "1 to 3 steps ahead, got horizon=0"),
    ({"imagination": "dyna", "horizon": 2}, "3 to 5 steps ahead, got horizon=2"),
    ({"imagination": "decentralised", "horizon": 16}, "3 to 15 steps ahead, got horizon=16"),
    ({"imagination": "expand", "held_out": 0.0}, "does not go with held_out=0"),
    ({"imagination": "expand", "memory": "gru"}, "does not go with memory='gru'"),
    ({"imagination": "dyna", "obs_coef": 0.0}, "does not go with obs_coef=0"),
    ({"imagination": "dyna", "reward_coef": 0.0}, "does not go with reward_coef=0"),
    ({"imagination": "dyna", "actor_inputs": "obs+past"}, "untrained state model"),
    ({"imagination_mix": 1.5}, "imagination_mix .* between 0 and 1, got 1.5"),
    ({"imagination_mix": -0.5}, "imagination_mix .* negative"), ({"imagination_weight": -1.0}, "negative"),
    ({"imagination_skill": -0.1}, "negative"), ({"disagreement": 0.1}, "ensemble=2 or more, got 1"),
    ({"imagination_every": 0}, "imagination_every .* must be positive, got 0"),
    ({"ensemble": 0}, "ensemble .* must be positive, got 0")], ids=str)
def test_wrong_options_are_named(options, message):
    with pytest.raises(ValueError, match=message) as error:
        MOALoss(make_specs("discrete"), **options)
    assert "loss 'moa'" in str(error.value)


def test_a_batch_of_one_environment_has_nothing_to_measure_on(monkeypatch):
    with pytest.raises(ValueError, match="needs --num-envs 2"):
        imagine(monkeypatch, "expand", 2, batch=batch_of()[:1])


def test_the_value_loss_keeps_its_kind_and_clipping(monkeypatch):
    """A companion is the recipe's own loss, so every option of it holds for what is imagined."""
    loss, learner = make_world(monkeypatch, options={"imagination": "dyna", "horizon": 3})
    value = ValueLoss(learner.critic, clip=0.2, kind="l2")
    learner = type(learner)(**vars(learner) | {"losses": {"critic": value}})
    loss.estimators(learner)
    [companion] = loss.companions(learner)["critic"]
    assert companion.loss is value
    assert set(companion.in_keys) == {("imagined", *key) for key in (OBSERVATION, VALUE, VALUE_TARGET)}
