"""HyAR's clocks, memory, checkpoints and measurements."""

import copy
import math
from unittest import mock

import pytest
import torch
from torch.testing import assert_close

from suite import distributed
from suite.losses import hyar
from suite.losses.hyar import AGENT, NEXT_OBSERVATION
from suite.specs import CHOICE, LATENT_ACTION, OBSERVATION, PARAMS
from tests.batches import assert_unchanged, frozen_copy
from tests.codecs import MASK, make, receive, run, specs_of, transitions

torch.set_num_threads(1)

# ---------------------------------------------------------------------- clocks


def test_the_warm_up():
    loss = make()
    seen = []
    for _ in range(4):
        receive(loss, 4, 5, done=20)
        seen.append((loss.random_batch, loss.complete, loss.warming.item(), loss.due, loss.episodes))
    assert seen[:2] == [(True, False, True, 0, 0), (True, True, False, 0, 0)]
    assert seen[2] == (False, False, False, 9, 20) and seen[3] == (False, False, False, 10, 40)


def test_refreshes_come_with_multiples_of_finished_episodes_from_some_number_on():
    loss = make(refresh_every=3, refresh_after=7)
    receive(loss, 8, 5, done=40)
    due = [receive(loss, 4, 5, done=done) for done in (0, 3, 3, 2, 1, 0, 2, 7, 1)]
    #             episodes                              0  3  6  8  9  9 11 18 19: 9, 12, 15 and 18 count
    assert loss.episodes == 19 and due == [0, 0, 0, 0, 1, 0, 0, 3, 0]
    loss = make(refresh_every=3, refresh_after=9)
    receive(loss, 8, 5)
    assert [receive(loss, 4, 5, done=done) for done in (8, 1, 2, 1)] == [0, 1, 0, 1]


def test_frames_and_episodes_of_all_processes_count():
    loss = make()
    with (mock.patch.object(distributed, "world_size", lambda: 2),
          mock.patch.object(distributed, "total", lambda x: 2 * x)):
        receive(loss, 4, 5)
        assert loss.complete and loss.frames == 40
        assert receive(loss, 4, 5, done=2) == 1 and loss.episodes == 4


def test_pretraining_then_refreshes_then_bounds_after_the_last_step():
    loss = make()
    update, = loss.updates("hyar", None, optimizer=None)
    assert update.early and update.max_grad_norm == {"codec": None}
    codec = loss.codec
    assert run(loss, update, 4, 5) == ([], {}) and math.isinf(codec.residual_error)
    with mock.patch.object(hyar, "TOLERANCE", math.inf):
        totals, metrics = run(loss, update, 4, 5, seed=1)
    assert len(totals) == 6 and not torch.equal(codec.high, torch.ones(2)) and (codec.high > codec.low).all()
    assert all(value.isfinite() for value in metrics.values()) and "hyar/loss_params" in metrics
    assert run(loss, update, 4, 5, done=3, seed=2) == ([], {})
    before, weights = codec.high.clone(), codec.embeddings.detach().clone()
    calibrated = []
    with mock.patch.object(loss, "calibrate", lambda td: calibrated.append((td.shape, codec.embeddings.clone()))):
        assert len(run(loss, update, 4, 5, done=4, seed=3)[0]) == 2  # episodes 4 and 6
    (shape, then), = calibrated
    assert shape == (30,) and torch.equal(then, codec.embeddings) and not torch.equal(then, weights)
    assert torch.equal(codec.high, before)
    assert len(run(loss, update, 4, 5, done=1, seed=4)[0]) == 1 and not torch.equal(codec.high, before)
    assert update.optimizers["codec"].state[codec.embeddings]["step"].item() == 6 + 2 + 1


@pytest.mark.parametrize("values, steps", [
    ([5.0] * 20, 12),  # as flat as can be: at once
    ([*range(40, 16, -1)], 22),  # ever falling: the limit
    ([*range(40, 26, -1), *[26.0] * 8], None),
])
def test_the_stopping_rule(values, steps):
    """At least ``pretrain`` steps; then until mean(last 5) + 1e-5 >= mean(last 10), at most 10 more."""
    loss = make(pretrain=12)
    update, = loss.updates("hyar", None, optimizer=None)
    run(loss, update, 4, 5)
    td = transitions(4, 5)
    loss.receive(td)
    update.data.owner.extend(td)
    taken = []
    for _ in update.data(td, loss.in_keys):
        loss.last_total = torch.tensor(float(values[len(taken)]))
        taken.append(values[len(taken)])
    if steps is None:
        recent = [values[:n] for n in range(12, 23)]
        steps = next((len(v) for v in recent if sum(v[-5:]) / 5 + 1e-5 >= sum(v[-10:]) / 10), 22)
    assert len(taken) == steps


def test_without_pretraining_the_bounds_are_set_all_the_same():
    loss = make(pretrain=0)
    update, = loss.updates("hyar", None, optimizer=None)
    assert run(loss, update, 8, 5)[0] == [] and loss.codec.residual_error.isfinite()


def test_calibration_by_hand():
    """The first draws make the error, the second ones the bounds."""
    loss, td = make(range_percent=80.0), transitions(20)
    noise = torch.randn(2, 20, 1, 2)
    loss.calibrate(td, noise)
    rows, codec = loss.read(td), loss.codec
    mean, std = codec.encode(rows.obs, rows.choice, rows.params)
    predicted = codec.decode(rows.obs, rows.choice, mean + std * noise[0])[1]
    assert_close(codec.residual_error, (predicted - rows.residual).square().mean().detach())
    ordered = (mean + std * noise[1]).squeeze(1).sort(0).values.detach()
    assert_close(codec.low, ordered[2])
    assert_close(codec.high, ordered[17])
    assert loss.metrics()["codec/bounds_width"] == (codec.high - codec.low).mean()
    loss.calibrate(td)
    assert not torch.equal(codec.low, ordered[2])


# ---------------------------------------------------------------------- memory, saving, measurements


def test_every_agents_transition_is_a_row_of_the_memory():
    loss = make(specs_of(3), agent_id=True)
    update, = loss.updates("hyar", None, optimizer=None)
    td = transitions(4, 5, agents=3)
    update.data.owner.extend(td)
    held = update.data.owner.buffer.storage[:60]
    assert held[OBSERVATION].shape == (60, 4) and held[CHOICE].shape == (60,)
    expected = td[OBSERVATION].transpose(0, 1).reshape(60, 4)  # time by time
    assert torch.equal(held[OBSERVATION], expected) and held[AGENT].tolist() == [0, 1, 2] * 20
    assert (LATENT_ACTION in held.keys(True)) is False
    run(loss, update, 4, 5)
    assert len(run(loss, update, 4, 5)[0]) >= 6


def test_a_batch_larger_than_the_memory_leaves_its_last_rows():
    loss = make(memory=40)
    update, = loss.updates("hyar", None, optimizer=None)
    td = transitions(4, 20)
    update.data.owner.extend(td)
    assert len(update.data.owner.buffer) == 40
    last = td[OBSERVATION][:, 10:].transpose(0, 1).reshape(40, 4)
    assert torch.equal(update.data.owner.buffer.storage[:40][OBSERVATION], last)


def test_resuming_goes_on_as_if_nothing_had_happened():
    def iterate(loss, update, seeds):
        out = []
        for seed in seeds:
            torch.manual_seed(seed)
            out.append(run(loss, update, 4, 5, done=2, seed=seed))
        return out

    first = make(specs_of(2), optimizer="adam", normalize_residual=True)
    update, = first.updates("hyar", None, optimizer=None)
    iterate(first, update, range(4))
    saved = copy.deepcopy([dict(first.state_dict()), update.state_dict(), update.data.owner.state_dict()])
    second = make(specs_of(2), seed=9, normalize_residual=True)
    other, = second.updates("hyar", None, optimizer=None)
    for what, state in zip((second, other, other.data.owner), saved, strict=True):
        what.load_state_dict(state)
    assert (second.frames, second.episodes) == (80, 4) == (first.frames, first.episodes)
    assert not second.warming and torch.equal(second.codec.low, first.codec.low)
    assert torch.equal(second.start, first.start)
    expected, out = iterate(first, update, range(4, 8)), iterate(second, other, range(4, 8))
    assert [x[0] for x in out] == [x[0] for x in expected] and any(x[0] for x in out)
    for ours, theirs in zip(second.codec.state_dict().values(), first.codec.state_dict().values(), strict=True):
        assert torch.equal(ours, theirs)


def test_the_learning_rate_changes_without_a_new_optimiser():
    loss = make()
    update, = loss.updates("hyar", None, optimizer=None)
    run(loss, update, 8, 5)
    optimizer = update.optimizers["codec"]
    before = copy.deepcopy(list(optimizer.state.values()))
    optimizer.param_groups[0]["lr"] = 1e-9
    assert all(torch.equal(a[key], b[key]) for a, b in zip(before, optimizer.state.values(), strict=True) for key in a)
    weights = loss.codec.embeddings.detach().clone()
    run(loss, update, 4, 5, done=20)
    assert (loss.codec.embeddings - weights).abs().max() < 1e-7
    assert optimizer is update.optimizers["codec"]


def test_measurements():
    loss = make(lr=0.01, lr_embeddings=0.02)
    update, = loss.updates("hyar", None, optimizer=None)
    assert loss.metrics() == {}
    start = loss.codec.embeddings.detach().tanh()
    run(loss, update, 8, 5)
    metrics = loss.metrics()
    assert set(metrics) == {f"codec/{name}" for name in ("table_movement", "residual_error", "bounds_width",
                                                         "active_dims")}
    assert all(value.shape == () and not value.requires_grad for value in metrics.values())
    moved = (loss.codec.embeddings.detach().tanh() - start).abs().mean()
    assert_close(metrics["codec/table_movement"], moved)
    assert moved > 0.01 and [group["lr"] for group in update.optimizers["codec"].param_groups] == [0.01, 0.02]
    assert metrics["codec/residual_error"] == loss.codec.residual_error


def test_diagnosis_by_hand():
    loss = make(specs_of(mask=torch.tensor([[True, True], [True, False]])))
    with torch.no_grad():
        for parameter in loss.codec.parameters():
            parameter.zero_()
        loss.codec.embeddings.copy_(torch.tensor([[0.0, 0.0, 0.0], [math.atanh(0.6), math.atanh(0.8), 0.0]]))
        loss.codec.decoder["params"].bias.fill_(math.atanh(0.5))
    td = transitions(1, 2)
    td[CHOICE] = torch.tensor([[[0], [1]]])
    td[PARAMS] = torch.tensor([[[[0.25, 1.0]], [[-0.5, 0.0]]]])
    td[NEXT_OBSERVATION] = td[OBSERVATION] + torch.tensor([[[[1.0] * 4], [[0.0] * 4]]])
    out = loss.diagnose(td)
    assert out == pytest.approx({"codec/param_error": (0.25 + 0.5 + 1.0) / 3, "codec/residual_share": 0.5 / 0.25,
                                 "codec/embedding_distance_min": 1.0, "codec/embedding_distance": 1.0}, rel=1e-4)


def test_what_the_policy_ends_with():
    for agent_id in (False, True):
        loss, td = make(specs_of(3), agent_id=agent_id), transitions(4, 5, agents=3)
        expected = loss.codec.act(td[OBSERVATION], td[LATENT_ACTION],
                                  torch.eye(3).expand(4, 5, 3, 3) if agent_id else None)
        before = frozen_copy(td)
        out = loss.decoder()(td.exclude(CHOICE, PARAMS))
        assert torch.equal(out[CHOICE], expected[0]) and torch.equal(out[PARAMS], expected[1])
        assert_unchanged(td, before)
        assert {id(p) for p in loss.decoder().parameters()} == {id(p) for p in loss.parameters()}
        assert "warming" in dict(loss.named_buffers())


def test_a_short_pretraining_reconstructs_the_parameters():
    """And the predicted residual depends on them; three actions, of one, no and one parameter."""
    mask = MASK[:, :1]
    loss = make(specs_of(mask=mask), num_cells=64, pretrain=700, lr=2e-3, warmup=4000, batch=64, bounds_rows=1000,
                memory=4000)
    update, = loss.updates("hyar", None, optimizer=None)
    td = transitions(40, 100, params=1)
    td[PARAMS] *= mask[td[CHOICE]]
    push = td[PARAMS].sum(-1, keepdim=True) * 0.4 + 0.2 * td[CHOICE].unsqueeze(-1)
    td[NEXT_OBSERVATION] = td[OBSERVATION] + torch.cat([push, torch.zeros_like(push.expand(-1, -1, -1, 3))], -1)
    untrained = loss.diagnose(td)
    loss.receive(td)
    update.data.owner.extend(td)
    update.run(td)
    fresh = transitions(10, 10, params=1, seed=5)
    fresh[PARAMS] *= mask[fresh[CHOICE]]
    latent = loss.codec.latent_of(fresh[OBSERVATION], fresh[CHOICE], fresh[PARAMS])
    choice, params = loss.codec.act(fresh[OBSERVATION], latent)
    assert torch.equal(choice, fresh[CHOICE])
    error = (params - fresh[PARAMS]).abs().sum() / mask[choice].sum()
    assert error < 0.1 < untrained["codec/param_error"], error
    assert loss.diagnose(td)["codec/residual_share"] < 0.1 < untrained["codec/residual_share"]
