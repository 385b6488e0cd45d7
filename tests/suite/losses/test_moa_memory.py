"""The losses of the family over sequences: who learns from what, which data, and what the teacher knows."""

import pytest
import torch
from torch.testing import assert_close

from suite.data import Chunks, FirstRows, Minibatches, Replay, Sequences
from suite.losses import MOALoss
from suite.modules.state_model import ACTION_MEMORY, MEMORY, PAST
from suite.specs import ACTION, ALIVE, DONE, IS_INIT, LOGITS, OBSERVATION
from tests.batches import assert_unchanged, make_past_batch, make_specs, shaken

torch.set_num_threads(1)
SMALL = dict(latent_dim=2, num_cells=16, depth=1, memory="gru", memory_dim=5)
OWNERS = {"loss_moa": {"moa"}, "loss_obs": {"world_model"}, "loss_reward": {"world_model"}, "loss_rec": {"student"},
          "loss_kl": {"student", "teacher"}, "loss_teacher": {"teacher"}}


def make_rows(specs, *shape):
    """Rows with stored states, whose third step begins an episode."""
    td = make_past_batch(specs, *shape, memory=5)
    td[PAST[-1]][:] = 1
    for key in PAST:
        td[key][:, 2] = 0
    return td


@pytest.mark.parametrize("kind", ["discrete", "continuous"])
def test_each_network_learns_from_its_own_loss_only(kind):
    """The memories are part of the networks they serve."""
    specs = make_specs(kind, hidden_dim=2, alive=ALIVE)
    loss, td = shaken(MOALoss(specs, **SMALL, teacher_pull=0.1)), make_rows(specs, 3, 4)
    networks, before = loss.networks("moa"), td.clone()
    assert sum(len(group) for group in networks.values()) == sum(p.requires_grad for p in loss.parameters())
    for name, group in (("moa", loss.model.action_model), ("student", loss.model.student)):
        assert {id(p) for p in group.memory.parameters()} <= {id(p) for p in networks[name]}
    for name, expected in OWNERS.items():
        loss.zero_grad(set_to_none=True)
        loss(td)[name].backward()
        assert {part for part, group in networks.items() if any(p.grad is not None for p in group)} == expected, name
    loss(td)["loss_kl"].backward()
    assert all(p.grad is not None and p.grad.any() for p in loss.model.student.memory.parameters())
    assert_unchanged(td, before)


def test_all_that_is_read_is_named():
    specs = make_specs("discrete")
    loss, td = MOALoss(specs, **SMALL), make_rows(specs, 3, 4)
    assert set(MEMORY) <= set(loss.in_keys) and ACTION_MEMORY in loss.action_loss.in_keys
    torch.manual_seed(0)
    expected = loss(td)
    torch.manual_seed(0)
    out = loss(td.select(*loss.in_keys))
    assert all(torch.equal(out[key], value) for key, value in expected.items())
    for key in loss.in_keys:
        with pytest.raises(KeyError):
            loss(td.select(*loss.in_keys).exclude(key))


def test_the_losses_alone_give_what_the_family_gives():
    """Which infers the minibatch once for both."""
    specs = make_specs("discrete")
    loss, td = shaken(MOALoss(specs, **SMALL)), make_rows(specs, 3, 4)
    torch.manual_seed(0)
    whole = loss(td)
    torch.manual_seed(0)
    parts = dict(loss.action_loss(td).items()) | dict(loss.world_loss(td).items()) | dict(loss.cvae_loss(td).items())
    assert parts.keys() == set(whole.keys())
    for key, value in whole.items():
        assert_close(value, parts[key])


def test_the_teacher_knows_the_students_state_but_does_not_move_it():
    specs = make_specs("discrete")
    loss, td = shaken(MOALoss(specs, **SMALL)), make_rows(specs, 3, 4)
    known, y = loss.model.infer_batch(td), loss.cvae_loss.privileged(td)
    x, context, state = known.student_inputs
    assert torch.equal(x, known.x) and context is known.context and torch.equal(state, known.memory[1])
    assert not state.requires_grad and known.memory[1].requires_grad
    mean, _ = loss.cvae_loss.teacher(x, context, state, y)
    other, _ = loss.cvae_loss.teacher(x, context, state + 1, y)
    assert not torch.equal(mean, other) and loss.cvae_loss.teacher.memory is None
    assert loss.cvae_loss.teacher.net[0].in_features == x.shape[-1] + context.shape[-1] + 5 + y.shape[-1]


def test_the_order_of_rows_does_not_matter_and_that_of_steps_does(monkeypatch):
    monkeypatch.setattr(torch, "randn_like", torch.zeros_like)
    specs = make_specs("continuous", alive=ALIVE)
    loss, td = shaken(MOALoss(specs, **SMALL)), make_rows(specs, 4, 6)
    rows, steps = loss(td[torch.tensor([2, 0, 3, 1])]), loss(td[:, torch.tensor([3, 4, 5, 0, 1, 2])])
    for key, value in loss(td).items():
        assert_close(value, rows[key])
    assert not torch.isclose(steps["loss_moa"], loss(td)["loss_moa"])


def test_it_trains_on_whole_rows_or_chunks_of_them():
    specs = make_specs("discrete")
    for chunk, expected in ((0, Sequences(3, 6)), (2, Sequences(3, 6))):
        for given in (Minibatches(9, 6), Sequences(9, 6)):
            loss = MOALoss(specs, **SMALL, memory_chunk=chunk)
            [update] = loss.updates("moa", given, optimizer=None, max_grad_norm=5.0)
            assert isinstance(update.data, FirstRows)
            inner = update.data.source
            if chunk:
                assert isinstance(inner, Chunks) and inner.length == 2
                inner = inner.source
            assert isinstance(inner, Sequences) and vars(inner) == vars(expected)
            metrics = update.run(make_rows(specs, 3, 4))
            assert all(value.isfinite() for value in metrics.values())


def test_a_chunk_starts_from_the_state_that_was_stored_there():
    specs = make_specs("discrete")
    loss, td = shaken(MOALoss(specs, **SMALL)), make_rows(specs, 2, 4)
    chunks = td.select(*loss.in_keys).reshape(4, 2)
    whole, parts = loss.model.infer_batch(td).mean, loss.model.infer_batch(chunks).mean
    assert_close(parts[0], whole[0, :2])
    expected = loss.model.infer_batch(td[:, 2:]).mean
    assert_close(parts[1], expected[0])
    td[MEMORY[1]][:, :2] += 1
    assert torch.equal(loss.model.infer_batch(td[:, 2:]).mean, expected)


def test_replay_is_refused():
    specs = make_specs("discrete")
    replay = Replay(capacity=9, steps=1, size=2, warmup=4, keys=[OBSERVATION], device="cpu")
    with pytest.raises(ValueError, match=r"memory 'gru' of loss 'moa' .* or leave memory at 'none'"):
        MOALoss(specs, **SMALL).updates("moa", replay, optimizer=None, max_grad_norm=5.0)


def test_measurements_follow_the_memory_of_the_held_out_rows():
    torch.manual_seed(0)
    specs = make_specs("discrete")
    loss, td = shaken(MOALoss(specs, **SMALL, held_out=0.5)), make_rows(specs, 10, 6)
    td[IS_INIT] = torch.zeros(10, 6, 1, dtype=torch.bool)
    td[IS_INIT][:, 0] = True
    td["next", "agents", "done"].zero_()
    td[LOGITS] = torch.zeros(10, 6, 3, 5)
    found = loss.diagnose(td)
    with torch.no_grad():
        expected = loss.action_loss(td[5:])["loss_moa"].item()
    assert found["moa/ce"] == pytest.approx(expected, rel=1e-5)
    assert loss.diagnose(td) == found
    td[ACTION_MEMORY][5:, 0] += 1
    assert loss.diagnose(td)["moa/ce"] != found["moa/ce"]


@pytest.mark.parametrize("divergence", ["kl", "jsd"])
def test_influence_from_the_state_reached(divergence):
    """A loop over choices, each one step of the memory from the state after this step."""
    specs = make_specs("discrete")
    plain = dict(influence_skill=0, influence_decay=0, influence_scale="none")
    loss = shaken(MOALoss(specs, **SMALL, influence=0.1, influence_divergence=divergence, **plain))
    td = make_rows(specs, 2, 3)
    td["next", *DONE].zero_()
    td[LOGITS] = torch.randn(2, 3, 3, 5)
    model, actions = loss.model, loss.model.actions
    given, joint = [], actions.pack(actions.encode(td[ACTION]))
    for choice in range(5):
        own = torch.eye(5)[choice].expand(2, 3, 3, 5)
        inputs = model.scaler(td[OBSERVATION]), torch.cat([own, joint[..., 5:]], -1), torch.ones(2, 3, 3, 1)
        flat = [x.flatten(0, 1) for x in inputs]
        state = model.action_model.remember(*flat, td["next", *ACTION_MEMORY].flatten(0, 1))
        given.append(model.action_model(*flat, state).softmax(-1).unflatten(0, (2, 3)))
    given = torch.stack(given, 3)  # [2, 3, 3, 5, 2, 5]
    marginal = (td[LOGITS].softmax(-1)[..., None, None] * given).sum(3)
    actual = given.gather(3, td[ACTION][..., None, None, None].expand(2, 3, 3, 1, 2, 5)).squeeze(3)
    def kl(p, q):
        return (p * (p / q).log()).sum((-2, -1))

    middle = (actual + marginal) / 2
    expected = kl(actual, marginal) if divergence == "kl" else 0.5 * (kl(actual, middle) + kl(marginal, middle))
    term = loss.reward_terms(td)["influence"]
    assert_close(term.squeeze(-1), expected, rtol=1e-4, atol=1e-6)
