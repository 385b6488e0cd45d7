"""Social curiosity with hand-set networks: both errors, who counts, what each network reads, gradients."""

import pytest
import torch
from torch.testing import assert_close

from suite.losses import MOALoss
from suite.losses.action_model import ActionModelLoss
from suite.losses.social_curiosity import EXPECTED, MOVED, SocialCuriosityLoss
from suite.modules.state_model import MEMORY, PARTS, PAST, StateModel
from suite.specs import ACTION, ALIVE, DONE, LOGITS, OBSERVATION
from tests.batches import make_past_batch, make_specs, shaken

SMALL = dict(latent_dim=2, num_cells=16, depth=1)


def make(kind="discrete", *, alive=None, memory=0, **options):
    specs = make_specs(kind, alive=alive)
    torch.manual_seed(0)
    model = StateModel(specs, latent_dim=2, cells=[8], parts=PARTS, others="all", memory_dim=memory)
    action_loss = shaken(ActionModelLoss(specs, model))
    td = make_past_batch(specs, 3, 4, memory=memory)
    td["next", *DONE] = torch.zeros(3, 4, 3, 1, dtype=torch.bool)
    return shaken(SocialCuriosityLoss(specs, action_loss, **options)), td


def by_hand(loss, monkeypatch):
    """e is the first two features, f says 0 and 0, g says 1."""
    monkeypatch.setattr(loss.code, "forward", lambda x: x[..., :2])
    monkeypatch.setattr(loss.foresight, "forward", lambda x: torch.zeros(*x.shape[:-1], 2))
    monkeypatch.setattr(loss.hindsight, "forward", lambda x: torch.ones(*x.shape[:-1], 1))


def hand_batch(td):
    td["next", *OBSERVATION] = torch.zeros(3, 4, 3, 4)
    td["next", *OBSERVATION][..., 0], td["next", *OBSERVATION][..., 1] = 2.0, 4.0
    td[MOVED], td[EXPECTED] = torch.full((3, 4, 3, 1), 0.4), torch.zeros(3, 4, 3, 10)
    return td


# F = 1/2 (2^2 + 4^2) / 2 = 5; I = 1/2 (1 - 0.4)^2 = 0.18; the statistics of the observations are 0 and 1 as yet
@pytest.mark.parametrize("share", [0.5, 0.2, 1.0])
def test_both_errors_by_hand(share, monkeypatch):
    loss, td = make(forward_share=share)
    by_hand(loss, monkeypatch)
    out = loss(hand_batch(td))
    assert set(out.keys()) == {"loss_foresight", "loss_hindsight"}
    assert out["loss_foresight"].item() == pytest.approx(share * 5, rel=1e-6)
    assert out["loss_hindsight"].item() == pytest.approx((1 - share) * 0.18, rel=1e-5)


# pay: 5, or 1/2 (8^2 + 4^2) / 2 = 20, of which 10 are paid
def test_the_reward_is_the_forward_error_up_to_a_limit(monkeypatch):
    loss, td = make()
    by_hand(loss, monkeypatch)
    td, moved = hand_batch(td), torch.rand(3, 4, 3, 1)
    td["next", *OBSERVATION][0, 1, 2, 0] = 8.0
    expected = torch.full((3, 4, 3, 1), 5.0)
    expected[0, 1, 2] = 10.0
    assert_close(loss.pay(td, moved), expected)
    assert torch.equal(td[MOVED], moved) and torch.equal(td[EXPECTED], loss.action_loss.expected(td))


# one of 36 agents left, and does not count; two of the 35 others end an episode, where nobody is moved: I would be
# 1/2 there, and does not count, so that its mean stays 0.18
def test_agents_that_left_do_not_count_nor_does_influence_at_the_end(monkeypatch):
    loss, td = make(alive=ALIVE)
    by_hand(loss, monkeypatch)
    td = hand_batch(td)
    td[ALIVE] = torch.ones(3, 4, 3, dtype=torch.bool)
    td[ALIVE][2, 2, 1] = False
    td["next", *OBSERVATION][2, 2, 1] = 50.0
    td[MOVED][2, 2, 1] = 100.0
    td["next", *DONE][1, 3, :2], td[MOVED][1, 3, :2] = True, 0.0
    out = loss(td)
    assert out["loss_foresight"].item() == pytest.approx(2.5, rel=1e-6)
    assert out["loss_hindsight"].item() == pytest.approx(0.09, rel=1e-5)


@pytest.mark.parametrize("kind", ["discrete", "continuous"])
def test_what_each_network_reads(kind):
    loss, td = make(kind)
    loss.pay(td, torch.rand(3, 4, 3, 1))
    seen = {}
    for name in ("foresight", "hindsight"):
        getattr(loss, name).register_forward_pre_hook(lambda net, args, name=name: seen.update({name: args[0].clone()}))
    loss(td)
    before = dict(seen)
    changes = {OBSERVATION: (True, True), ACTION: (True, True), EXPECTED: (True, True), MOVED: (True, False),
               ("next", *OBSERVATION): (False, True)}
    for key, (foresees, infers) in changes.items():
        changed = td.clone()
        changed[key] = (td[key] + 1) % 5 if key == ACTION and kind == "discrete" else 0.5 * td[key] + 0.1
        loss(changed)
        assert torch.equal(seen["foresight"], before["foresight"]) != foresees, key
        assert torch.equal(seen["hindsight"], before["hindsight"]) != infers, key


def test_where_gradients_stop():
    loss, td = make()
    loss.pay(td, torch.rand(3, 4, 3, 1))
    params = dict(loss.named_parameters())
    assert not any("action_model" in name for name in params) and len(list(loss.networks("social")["social"])) == len(
        params)
    reached = {}
    for name in ("loss_foresight", "loss_hindsight"):
        grads = torch.autograd.grad(loss(td)[name], list(params.values()), allow_unused=True)
        reached[name] = {key.split(".")[0] for key, grad in zip(params, grads, strict=True) if grad is not None}
    assert reached == {"loss_foresight": {"code", "foresight"}, "loss_hindsight": {"code", "hindsight"}}
    # the target of the forward model is a constant: its gradient at the encoder is that with a frozen target
    with torch.no_grad():
        after = loss._codes(td)[1]
    frozen = loss._surprise(td, loss._codes(td)[0], after).mean() * 0.5
    for ours, expected in zip(*(torch.autograd.grad(x, list(loss.code.parameters())) for x in (
            loss(td)["loss_foresight"], frozen)), strict=True):
        assert_close(ours, expected)


@pytest.mark.parametrize("memory", [0, 6])
@pytest.mark.parametrize("kind", ["discrete", "continuous"])
def test_what_is_expected_is_the_next_steps_prediction(kind, memory):
    """The step after it reads this step as its past, and its model the state that this step left."""
    loss, td = make(kind, memory=memory)
    action_loss, model = loss.action_loss, loss.action_loss.model
    later = td.clone()
    later[PAST[0]], later[PAST[1]] = td[OBSERVATION], model.joint_action(td)
    later[PAST[2]] = torch.ones(3, 4, 3, 1)
    if memory:
        later[MEMORY[0]] = td["next", *MEMORY[0]]
        later = later.reshape(12, 1)  # sequences of one step, from the state that is stored
    expected = model.action_model.feature(action_loss.predict(later)).view(3, 4, 3, -1)
    assert_close(action_loss.expected(td), expected)


def test_influence_is_measured_once_for_both_terms(monkeypatch):
    specs = make_specs("discrete")
    plain = dict(influence_skill=0, influence_decay=0, influence_scale="none")
    loss = shaken(MOALoss(specs, **SMALL, influence=0.1, **plain, social_curiosity=0.001))
    td = make_past_batch(specs, 3, 4)
    td[LOGITS], td["next", *DONE] = torch.randn(3, 4, 3, 5), torch.zeros(3, 4, 3, 1, dtype=torch.bool)
    calls, measured = [], ActionModelLoss.influence
    monkeypatch.setattr(ActionModelLoss, "influence",
                        lambda *args, **kwargs: calls.append(1) or measured(*args, **kwargs))
    found = loss.reward_terms(td)
    assert calls == [1] and set(found) == {"influence", "social_curiosity"}
    assert_close(found["influence"], td[MOVED].clamp_max(10.0)) and loss.reward_weights["social_curiosity"] == 0.001
    assert {MOVED, EXPECTED} <= set(loss.in_keys) and "social" in loss.networks("moa")
    assert {"loss_foresight", "loss_hindsight"} <= set(loss(td).keys())


def test_what_is_familiar_is_paid_less():
    loss, td = make()
    moved = torch.rand(3, 4, 3, 1)
    before = loss.pay(td, moved).mean()
    optimizer = torch.optim.Adam(loss.parameters(), lr=1e-2)
    first = {key: value.item() for key, value in loss(td).items()}
    for _ in range(200):
        optimizer.zero_grad()
        sum(loss(td).values()).backward()
        optimizer.step()
    assert loss.pay(td, moved).mean() < 0.5 * before
    assert all(value.item() < 0.5 * first[key] for key, value in loss(td).items())
