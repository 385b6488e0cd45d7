"""The model of the other agents with hand-set predictions: its loss, who counts in it, and influence."""

import math

import pytest
import torch
from tensordict import TensorDict
from torch.testing import assert_close

from suite.losses import MOALoss
from suite.losses.action_model import ROWS, ActionModelLoss
from suite.modules.state_model import PARTS, PREV_ACTION, PREV_OBSERVATION, PREV_VALID, StateModel
from suite.specs import ACTION, ALIVE, CONTROLLED, DONE, OBSERVATION, VISIBLE, Specs
from suite.specs import LOGITS as ACTING_LOGITS
from tests.batches import make_past_batch, make_specs, shaken

torch.set_num_threads(1)
LOGITS = [2.0, 1.0, 0.0]


def hand_specs(**options):
    return Specs(n_agents=2, obs_dim=1, action_dim=3, discrete=True, agent_types=(0, 0), **options)


def hand_loss(specs, monkeypatch, logits=LOGITS, **options):
    loss = ActionModelLoss(specs, StateModel(specs, latent_dim=2, cells=[4], parts=PARTS, others="all"), **options)
    out = torch.tensor(logits, requires_grad=True)
    monkeypatch.setattr(loss.model.action_model, "forward", lambda u, joint, valid, state: (
        out.expand(*u.shape[:-1], 1, 3)))
    return loss, out


def hand_td(actions, valid):
    """Both agents do the same at every step."""
    rows = len(actions)
    td = TensorDict({ACTION: torch.tensor(actions)[:, None].expand(rows, 2).clone()}, batch_size=[rows])
    td[PREV_VALID] = torch.tensor(valid)[:, None, None].expand(rows, 2, 1).float()
    td[PREV_OBSERVATION], td[PREV_ACTION] = torch.zeros(rows, 2, 1), torch.zeros(rows, 2, 6)
    return td


# -ln softmax([2, 1, 0]) = 0.407605964, 1.407605964, 2.407605964; the step without a past does not count
@pytest.mark.parametrize("actions, valid, expected", [
    ([0], [1], 0.407605964), ([1], [1], 1.407605964), ([2], [1], 2.407605964),
    ([2, 0, 1, 2], [0, 1, 1, 1], 1.407605964), ([2, 0, 1, 2], [0, 1, 1, 0], 0.907605964),
    ([2, 0, 1, 2], [0, 0, 0, 0], 0.0)])
def test_cross_entropy_by_hand(actions, valid, expected, monkeypatch):
    loss, logits = hand_loss(hand_specs(), monkeypatch)
    out = loss(hand_td(actions, valid))
    assert out["loss_moa"].item() == pytest.approx(expected, abs=1e-6)
    assert out["accuracy"].item() == pytest.approx(sum(v for a, v in zip(actions, valid, strict=True) if a == 0)
                                                   / max(sum(valid), 1))
    out["loss_moa"].backward()
    assert any(valid) == bool(logits.grad.any()) and logits.grad.isfinite().all()


def test_probabilities_uniform_logits_and_coefficient(monkeypatch):
    loss, logits = hand_loss(hand_specs(), monkeypatch, coef=0.5)
    assert loss(hand_td([1], [1]))["loss_moa"].item() == pytest.approx(0.703802982, abs=1e-6)
    feature = loss.model.action_model.feature(logits.expand(1, 2, 1, 3))
    assert_close(feature[0, 0], torch.tensor([0.665240956, 0.244728471, 0.090030573]), rtol=0, atol=1e-6)
    loss, _ = hand_loss(hand_specs(), monkeypatch, logits=[7.0, 7.0, 7.0])
    assert loss(hand_td([2], [1]))["loss_moa"].item() == pytest.approx(math.log(3), abs=1e-6)


def test_an_agent_that_left_is_neither_modelled_nor_models(monkeypatch):
    specs = make_specs("discrete", alive=ALIVE)
    loss = ActionModelLoss(specs, StateModel(specs, latent_dim=2, cells=[4], parts=PARTS, others="all"))
    td = make_past_batch(specs, 1, 2)
    td[ALIVE] = torch.tensor([[[True, True, True], [True, False, True]]])
    # others of 0: 1 2; of 1: 0 2; of 2: 0 1
    assert loss.weights(td)[0].tolist() == [[[0, 0]] * 3, [[0, 1], [0, 0], [1, 0]]]
    logits = torch.zeros(1, 2, 3, 2, 5)
    logits[:, 0] = torch.tensor([50.0, 0, 0, 0, 0])
    logits[0, 1, 0, 0] = logits[0, 1, 1, :] = logits[0, 1, 2, 1] = torch.tensor([50.0, 0, 0, 0, 0])
    td[ACTION].fill_(3)
    monkeypatch.setattr(loss.model.action_model, "forward", lambda u, joint, valid, state: logits)
    assert loss(td)["loss_moa"].item() == pytest.approx(math.log(5), abs=1e-6)


@pytest.mark.parametrize("only_visible", [False, True])
def test_learning_only_of_those_in_sight(only_visible):
    specs = make_specs("discrete", visible=VISIBLE)
    model = StateModel(specs, latent_dim=2, cells=[4], parts=PARTS, others="all")
    loss, td = ActionModelLoss(specs, model, only_visible=only_visible), make_past_batch(specs, 1, 2)
    td[VISIBLE] = torch.tensor([[1.0, 0.0], [0.0, 0.0], [1.0, 1.0]]).expand(1, 2, 3, 2).clone()
    expected = td[VISIBLE][0, 1].tolist() if only_visible else [[1, 1]] * 3
    assert (VISIBLE in loss.in_keys) == only_visible and loss.weights(td)[0, 1].tolist() == expected


def test_targets_are_what_the_others_do_now():
    for kind in ("discrete", "continuous"):
        specs = make_specs(kind)
        loss = ActionModelLoss(specs, StateModel(specs, latent_dim=2, cells=[4], parts=PARTS, others="all"))
        td = make_past_batch(specs, 2, 3)
        target = loss.targets(td)
        now = td[ACTION] if kind == "discrete" else loss.model.actions.encode(td[ACTION])
        for i, others in enumerate([(1, 2), (0, 2), (0, 1)]):
            for place, j in enumerate(others):
                assert torch.equal(target[:, :, i, place], now[:, :, j])


# mean 0, 0.5 and deviations 1, 0.5 against actions 1, 0: 2.144729886
def test_gaussian_likelihood_by_hand(monkeypatch):
    specs = Specs(n_agents=2, obs_dim=1, action_dim=2, discrete=False, agent_types=(0, 0), low=-torch.ones(2, 2),
                  high=torch.ones(2, 2))
    loss = ActionModelLoss(specs, StateModel(specs, latent_dim=2, cells=[4], parts=PARTS, others="all"))
    out = torch.tensor([0.0, 0.5]), torch.tensor([1.0, 0.5]).log()
    monkeypatch.setattr(loss.model.action_model, "forward", lambda u, joint, valid, state: tuple(
        part.expand(*u.shape[:-1], 1, 2) for part in out))
    td = TensorDict({ACTION: torch.tensor([1.0, 0.0]).expand(3, 2, 2)}, batch_size=[3])
    td[PREV_VALID], td[PREV_OBSERVATION] = torch.ones(3, 2, 1), torch.zeros(3, 2, 1)
    td[PREV_ACTION] = torch.zeros(3, 2, 4)
    out = loss(td)
    assert set(out.keys()) == {"loss_moa"} and out["loss_moa"].item() == pytest.approx(2.144729886, abs=1e-6)


def test_choices_that_the_other_does_not_have_are_impossible(monkeypatch):
    """Logits [2, 1, 0, 7] of which the last is padding: 0.407605964 for choice 0."""
    unpadded = torch.tensor([[True, True, True, False], [True] * 4])
    specs = Specs(n_agents=2, obs_dim=1, action_dim=4, discrete=True, agent_types=(0, 1), action_mask=unpadded)
    loss = ActionModelLoss(specs, StateModel(specs, latent_dim=2, cells=[4], parts=PARTS, others="all"))
    with torch.no_grad():
        loss.model.action_model.net[-1].weight.zero_()
        loss.model.action_model.net[-1].bias.copy_(torch.tensor([*LOGITS, 7.0]))
    td = hand_td([0], [1])
    td[PREV_ACTION] = torch.zeros(1, 2, 8)
    logits = loss.predict(td)
    full = torch.tensor([0.0066704, 0.0024539, 0.0009027, 0.9899730])  # of the other, who has all four
    assert_close(logits[0, 0, 0].softmax(-1), full, rtol=0, atol=1e-6)
    assert_close(-logits[0, 1, 0].log_softmax(-1)[0], torch.tensor(0.407605964), rtol=0, atol=1e-6)
    assert logits[0, 1, 0].softmax(-1)[3] == 0


def test_dimensions_that_the_other_does_not_have_cost_nothing():
    """mean 0, deviation 1 and action 1: 1.418938533 for each dimension that there is."""
    unpadded = torch.tensor([[True, False], [True, True]])
    specs = Specs(n_agents=2, obs_dim=1, action_dim=2, discrete=False, agent_types=(0, 1), low=-torch.ones(2, 2),
                  high=torch.ones(2, 2), action_mask=unpadded)
    loss = ActionModelLoss(specs, StateModel(specs, latent_dim=2, cells=[4], parts=PARTS, others="all"))
    with torch.no_grad():
        for parameter in loss.model.action_model.net[-1].parameters():
            parameter.zero_()
    td = hand_td([0], [1])
    td[ACTION], td[PREV_ACTION] = torch.ones(1, 2, 2), torch.zeros(1, 2, 4)
    assert loss.model.actions.encode(td[ACTION])[0].tolist() == [[1, 0], [1, 1]]
    assert loss(td)["loss_moa"].item() == pytest.approx((2 + 1) / 2 * 1.418938533, abs=1e-6)


@pytest.mark.parametrize("n", [2, 3])
def test_deterministic_others_can_be_learned_by_heart(n):
    torch.manual_seed(0)
    specs = make_specs("discrete", n_agents=n)
    loss = ActionModelLoss(specs, StateModel(specs, latent_dim=2, cells=[128, 128], parts=PARTS, others="all"))
    td = make_past_batch(specs, 256, 2)[:, 1]
    table = torch.randint(5, (5, 5))  # what each does follows from what it and its neighbour did
    did = td[ACTION]
    td[PREV_ACTION] = loss.model.actions.pack(loss.model.actions.encode(did))
    td[ACTION] = table[did, did.roll(1, -1)]
    optimizer = torch.optim.Adam(loss.model.action_model.parameters(), lr=1e-3)
    start = loss(td)["loss_moa"].item()
    for _ in range(500):
        out = loss(td)
        optimizer.zero_grad()
        out["loss_moa"].backward()
        optimizer.step()
        if out["loss_moa"] < 0.05:
            break
    assert start == pytest.approx(math.log(5), abs=0.05) and out["loss_moa"].item() < 0.05


# ---------------------------------------------------------------------- influence

GIVEN = torch.tensor([[0.9, 0.1], [0.1, 0.9]])  # the other's next action, after each of the own two
KL, JSD = (0.080618975, 0.917393819), (0.022323542, 0.231222055)  # of choice 0 and 1 of a policy (0.8, 0.2)


def influencing(monkeypatch, taken, **options):
    """Two agents with two choices that do ``taken`` [T]; either's next action follows the other's as `GIVEN`."""
    specs = Specs(n_agents=2, obs_dim=1, action_dim=2, discrete=True, agent_types=(0, 0), **options)
    loss = ActionModelLoss(specs, StateModel(specs, latent_dim=2, cells=[4], parts=PARTS, others="all"))
    monkeypatch.setattr(loss.model.action_model, "forward", lambda u, joint, valid, state: (
        (joint[..., :2] @ GIVEN).log().unsqueeze(-2)))
    steps = len(taken)
    td = TensorDict({ACTION: torch.tensor(taken)[None, :, None].expand(1, steps, 2).clone()}, batch_size=[1, steps])
    td[OBSERVATION] = torch.zeros(1, steps, 2, 1)
    td[ACTING_LOGITS] = torch.tensor([0.8, 0.2]).log().expand(1, steps, 2, 2).clone()
    td["next", *DONE] = torch.zeros(1, steps, 2, 1, dtype=torch.bool)
    return loss, td


@pytest.mark.parametrize("divergence, expected", [("kl", KL), ("jsd", JSD)])
def test_influence_by_hand(divergence, expected, monkeypatch):
    loss, td = influencing(monkeypatch, [0, 1])
    found = loss.influence(td, divergence=divergence)
    assert found.shape == (1, 2, 2, 1) and not found.requires_grad
    assert_close(found[0, :, :, 0], torch.tensor(expected)[:, None].expand(2, 2), rtol=0, atol=1e-6)


def test_influence_of_continuous_actions_by_hand(monkeypatch):
    """The other's next action is expected at the own one, with deviation 1/2: 0 taken, against 1, the box's bound."""
    specs = Specs(n_agents=2, obs_dim=1, action_dim=1, discrete=False, agent_types=(0, 0), low=torch.full((2, 1), -2.0),
                  high=torch.full((2, 1), 2.0))
    loss = ActionModelLoss(specs, StateModel(specs, latent_dim=2, cells=[4], parts=PARTS, others="all"))
    monkeypatch.setattr(loss.model.action_model, "forward", lambda u, joint, valid, state: (
        joint[..., :1].unsqueeze(-2), torch.full_like(joint[..., :1], math.log(0.5)).unsqueeze(-2)))
    td = TensorDict({ACTION: torch.zeros(1, 3, 2, 1), OBSERVATION: torch.zeros(1, 3, 2, 1)}, batch_size=[1, 3])
    td["next", *DONE] = torch.zeros(1, 3, 2, 1, dtype=torch.bool)
    td["next", *DONE][0, 2] = True
    found = loss.influence(td, drawn=torch.full((1, 1, 3, 2, 1), 2.0))
    assert_close(found[0, :, :, 0], torch.tensor([[0.346573590] * 2] * 2 + [[0.0] * 2]), rtol=0, atol=1e-6)
    assert not loss.influence(td, drawn=torch.zeros(4, 1, 3, 2, 1)).any()


def test_the_last_step_of_an_episode_influences_nothing(monkeypatch):
    """There is no next action; the batch's own end does not matter."""
    loss, td = influencing(monkeypatch, [0, 1, 1])
    td["next", *DONE][:, 1] = True
    assert_close(loss.influence(td)[0, :, 0, 0], torch.tensor([KL[0], 0.0, KL[1]]), rtol=0, atol=1e-6)


@pytest.mark.parametrize("key, name", [(ALIVE, "alive"), (CONTROLLED, "controlled")])
def test_agents_that_left_or_are_overridden_neither_pay_nor_count(key, name):
    torch.manual_seed(0)
    specs = make_specs("discrete", **{name: key})
    model = StateModel(specs, latent_dim=2, cells=[32], parts=PARTS, others="all")
    loss, td = ActionModelLoss(specs, model), make_past_batch(specs, 1, 2)
    torch.nn.init.normal_(model.action_model.net[-1].weight)
    td["next", *DONE].zero_()
    td[ACTING_LOGITS] = torch.randn(1, 2, 3, 5)
    td[key] = torch.ones(1, 2, 3, dtype=torch.bool)
    full = loss.influence(td).squeeze(-1)
    td[key][0, 1, 1] = False
    # what 0 and 2 say of each other alone: the sum without 1, whose weight is taken from both sides
    found = loss.influence(td).squeeze(-1)
    assert torch.equal(found[0, 0], full[0, 0]) and found[0, 1, 1] == 0
    assert (found[0, 1, [0, 2]] > 0).all() and (found[0, 1, [0, 2]] < full[0, 1, [0, 2]]).all()


def test_an_agent_that_leaves_with_this_step_acts_no_more(monkeypatch):
    loss, td = influencing(monkeypatch, [0, 1], alive=ALIVE)
    td[ALIVE] = torch.ones(1, 2, 2, dtype=torch.bool)
    td["next", *DONE][0, 1, 0] = True  # its own end; the other goes on
    assert_close(loss.influence(td)[0, :, :, 0], torch.tensor([[KL[0], KL[0]], [0.0, 0.0]]), rtol=0, atol=1e-6)


def test_influence_counts_the_others_in_sight(monkeypatch):
    loss, td = influencing(monkeypatch, [0, 1], visible=VISIBLE)
    td[VISIBLE] = torch.tensor([[[[1.0], [0.0]], [[0.0], [1.0]]]])
    assert_close(loss.influence(td)[0, :, :, 0], torch.tensor([[KL[0], 0.0], [0.0, KL[1]]]), rtol=0, atol=1e-6)
    assert MOALoss(make_specs("discrete"), influence=0.1).reward_weights == {"influence": 0.1}


@pytest.mark.parametrize("kind, memory, samples", [("discrete", 0, 0), ("discrete", 8, 0), ("continuous", 0, 3)])
def test_influence_is_computed_in_pieces_of_a_bounded_size(kind, memory, samples, monkeypatch):
    """Nothing grows with the batch but what is returned, and the size of a piece changes nothing."""
    torch.manual_seed(0)
    specs = make_specs(kind)
    model = shaken(StateModel(specs, latent_dim=2, cells=[32], parts=PARTS, others="all", memory_dim=memory))
    loss, td = ActionModelLoss(specs, model), make_past_batch(specs, 5, 4, memory=memory)
    td[ACTING_LOGITS] = torch.randn(5, 4, 3, 5)
    drawn = torch.randn(samples, *td[ACTION].shape) if samples else None
    whole, seen, after = loss.influence(td, drawn), [], loss._after
    monkeypatch.setattr(loss, "_after", lambda batch, own: seen.append(own.shape[:-1].numel()) or after(batch, own))
    row = 4 * 3 * (1 + samples if samples else 5)  # of one environment
    monkeypatch.setitem(ROWS, "cpu", 2 * row + 1)
    assert_close(loss.influence(td, drawn), whole)
    assert seen == [2 * row, 2 * row, row]
    monkeypatch.setitem(ROWS, "cpu", 1)
    assert_close(loss.influence(td, drawn), whole)
    assert seen[3:] == [row] * 5 and whole.any()
