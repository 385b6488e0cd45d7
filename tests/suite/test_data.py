import itertools

import pytest
import torch
from tensordict import TensorDict
from torchrl.envs import EnvBase

from suite.data import Changed, Chunks, DataSource, Minibatches, PreviousBatches, Replay, ReplayView, Sequences
from suite.specs import ACTION, OBSERVATION
from tests.batches import assert_unchanged, frozen_copy, make_batch, make_specs

torch.set_num_threads(1)
N, T = 6, 5


def numbered(start=0, n=N, t=T):
    """A batch whose frames know their place: environment, time, and a number of their own."""
    batch = make_batch(make_specs("discrete"), shape=(n, t))
    batch["row"] = torch.arange(n).unsqueeze(1).expand(n, t).clone()
    batch["time"] = torch.arange(t).expand(n, t).clone()
    batch["frame"] = start + torch.arange(n * t).view(n, t)
    return batch


KEYS = ["frame", OBSERVATION, ("next", "done")]


def check_frames(minibatch, batch):
    """Every entry of a frame came along with it."""
    where = minibatch["frame"].flatten()
    for key in KEYS:
        assert torch.equal(minibatch[key].reshape(len(where), -1), batch[key].reshape(N * T, -1)[where])


# --------------------------------------------------------------- Minibatches


@pytest.mark.parametrize(("size", "sizes"), [(10, [10, 10, 10]), (7, [7, 7, 7, 7, 2]), (30, [30]), (99, [30]),
                                             (None, [30]), (1, [1] * 30)])
def test_minibatches_hold_every_frame_once_per_epoch(size, sizes):
    torch.manual_seed(0)
    batch = numbered()
    before = frozen_copy(batch)
    out = list(Minibatches(3, size)(batch, KEYS))
    assert [len(minibatch) for minibatch in out] == 3 * sizes
    for epoch in range(3):
        part = out[epoch * len(sizes):(epoch + 1) * len(sizes)]
        assert sorted(itertools.chain(*(m["frame"].tolist() for m in part))) == list(range(N * T))
        for minibatch in part:
            check_frames(minibatch, batch)
            assert set(minibatch.keys(True, True)) == set(KEYS)  # and nothing else
            assert minibatch.device == batch.device
    assert_unchanged(batch, before)


def test_minibatches_are_in_a_new_random_order_each_epoch():
    torch.manual_seed(0)
    out = [m["frame"].tolist() for m in Minibatches(2, 30 // 2)(numbered(), KEYS)]
    epochs = [out[0] + out[1], out[2] + out[3]]
    assert epochs[0] != epochs[1] and list(range(30)) not in epochs
    torch.manual_seed(0)
    assert out == [m["frame"].tolist() for m in Minibatches(2, 15)(numbered(), KEYS)]


def test_with_epochs_leaves_the_source_alone():
    for cls in (Minibatches, Sequences):
        source = cls(4, 10)
        other = source.with_epochs(1)
        assert type(other) is cls and (other.epochs, other.size) == (1, 10)
        assert (source.epochs, source.size) == (4, 10)


def test_sources_are_told_apart_by_identity_and_memory_is_the_exception():
    """The trainer collects each distinct source once; two of equal sizes are still two."""
    for cls in (Minibatches, Sequences):
        one, other = cls(4, 10), cls(4, 10)
        assert len({one, other}) == 2 and one.owner is one and isinstance(one, DataSource)
        one.extend(numbered())
        assert one.state_dict() == {} and one.load_state_dict({}) is None


@pytest.mark.parametrize("cls", [Minibatches, Sequences])
def test_a_missing_key_is_named(cls):
    with pytest.raises(KeyError, match="nonsense"):
        list(cls(1, 10)(numbered(), ["nonsense"]))


# --------------------------------------------------------------- Sequences


# size in frames, five steps: 12 // 5 = 2 rows, 20 // 5 = 4 rows and a rest of 2, never less than one row
@pytest.mark.parametrize(("size", "rows"), [(12, [2, 2, 2]), (20, [4, 2]), (1, [1] * 6), (30, [6]), (999, [6]),
                                            (None, [6])])
def test_sequences_are_whole_rows_once_per_epoch(size, rows):
    torch.manual_seed(0)
    batch = numbered()
    before = frozen_copy(batch)
    out = list(Sequences(2, size)(batch, [*KEYS, "row", "time"]))
    assert [m.shape for m in out] == 2 * [(k, T) for k in rows]
    for epoch in range(2):
        part = out[epoch * len(rows):(epoch + 1) * len(rows)]
        assert sorted(itertools.chain(*(m["row"][:, 0].tolist() for m in part))) == list(range(N))
    for minibatch in out:
        assert (minibatch["row"] == minibatch["row"][:, :1]).all()
        assert (minibatch["time"] == torch.arange(T)).all()  # in order
        check_frames(minibatch, batch)
    assert_unchanged(batch, before)


def test_sequences_are_in_random_order():
    torch.manual_seed(0)
    orders = [[m["row"][0, 0].item() for m in Sequences(1, 1)(numbered(), ["row"])] for _ in range(3)]
    assert len(set(map(tuple, orders))) == 3


@pytest.mark.parametrize(("length", "size", "shapes"), [(5, 10, [(2, 5)] * 3), (1, 10, [(10, 1)] * 3),
                                                        (5, None, [(6, 5)])])
def test_chunks_are_pieces_of_rows_in_order(length, size, shapes):
    batch = numbered()
    found = list(Chunks(Sequences(1, size), length)(batch, KEYS))
    assert [tuple(minibatch.shape) for minibatch in found] == shapes
    frames = torch.cat([minibatch["frame"] for minibatch in found])
    assert torch.equal(frames.flatten().sort().values, torch.arange(N * T))
    assert torch.equal(frames - frames[:, :1], torch.arange(length).expand_as(frames))  # consecutive
    assert not (frames[:, 0] % length).any()
    for minibatch in found:
        check_frames(minibatch, batch)


def test_chunks_divide_the_rows_and_follow_their_source():
    chunks = Chunks(Sequences(1, 10), 2)
    with pytest.raises(ValueError, match="chunks of 2 steps do not divide a batch of 5 steps"):
        list(chunks(numbered(), KEYS))
    more = chunks.with_epochs(3)
    assert (more.source.epochs, more.source.size, more.length) == (3, 10, 2) and chunks.source.epochs == 1
    assert chunks.owner is chunks.source


# --------------------------------------------------------------- Replay


def replay_of(capacity=50, steps=3, size=8, warmup=20, keys=("frame", ACTION, OBSERVATION, ("next", "done"))):
    return Replay(capacity=capacity, steps=steps, size=size, warmup=warmup, keys=keys, device="cpu")


def contents(replay):
    return replay.buffer.storage[:len(replay.buffer)]["frame"].tolist()


def test_replay_waits_for_its_warmup():
    replay = replay_of(warmup=20)
    replay.extend(numbered(n=3))
    assert list(replay(None, [])) == []  # 15 frames
    replay.extend(numbered(n=1))
    assert len(list(replay(None, []))) == 3  # 20


def test_samples_are_stored_frames_with_all_their_entries():
    torch.manual_seed(0)
    replay, batch = replay_of(), numbered()
    before = frozen_copy(batch)
    replay.extend(batch)
    assert_unchanged(batch, before)
    seen = set()
    for _ in range(20):
        for minibatch in replay(batch, KEYS):
            assert minibatch.shape == (8,) and minibatch.device == torch.device("cpu")
            check_frames(minibatch, batch)
            seen |= set(minibatch["frame"].tolist())
    assert seen == set(range(N * T))  # uniform over all


def test_samples_are_copies():
    replay = replay_of()
    replay.extend(numbered())
    next(iter(replay(None, [])))[OBSERVATION].fill_(7.0)
    assert not (replay.buffer.storage[:][OBSERVATION] == 7).any()


# capacity 12, batches of 2 rows x 4 steps stored time by time: rows of frames 0-3 and 4-7 give 0 4 1 5 2 6 3 7;
# the next batch (8-15) goes to positions 8-11 and then 0-3
def test_the_oldest_frames_leave_first():
    replay = replay_of(capacity=12, size=4, warmup=4)
    replay.extend(numbered(0, 2, 4))
    assert contents(replay) == [0, 4, 1, 5, 2, 6, 3, 7]
    replay.extend(numbered(8, 2, 4))
    assert contents(replay) == [10, 14, 11, 15, 2, 6, 3, 7, 8, 12, 9, 13]
    replay.extend(numbered(16, 1, 2))
    assert contents(replay) == [10, 14, 11, 15, 16, 17, 3, 7, 8, 12, 9, 13]


def test_a_batch_larger_than_the_capacity_leaves_its_last_frames():
    replay = replay_of(capacity=6, size=4, warmup=4)
    replay.extend(numbered(0, 2, 4))  # time by time 0 4 1 5 2 6 3 7
    assert sorted(contents(replay)) == [1, 2, 3, 5, 6, 7]
    assert len(replay.buffer) == 6
    replay.extend(numbered(8, 1, 1))
    assert 8 in contents(replay) and 1 not in contents(replay)  # the oldest of them left


@pytest.mark.parametrize("batches", [0, 1, 2, 3, 5])
def test_state_dict_goes_on_exactly(batches, tmp_path):
    """Same contents, same next samples, same place of the next frame; before and after the ring is full."""
    first, second = replay_of(), replay_of()
    for k in range(batches):
        first.extend(numbered(100 * k, 3, 7))
    torch.save(first.state_dict(), tmp_path / "replay.pt")
    second.extend(numbered(900, 5, 5))  # what was there before must go
    second.load_state_dict(torch.load(tmp_path / "replay.pt", weights_only=True))
    for k in range(4):
        assert len(first.buffer) == len(second.buffer)
        if batches or k:
            assert contents(first) == contents(second)
        samples = []
        for replay in (first, second):
            torch.manual_seed(k)
            samples.append([m.clone() for m in replay(None, [])])
        assert len(samples[0]) == len(samples[1]) == (3 if len(first.buffer) >= 20 else 0)
        for x, y in zip(*samples, strict=True):
            assert set(x.keys(True, True)) == set(y.keys(True, True))
            assert all(torch.equal(x[key], y[key]) for key in x.keys(True, True))
        for replay in (first, second):
            replay.extend(numbered(1000 + 100 * k, 3, 7))


def test_state_dict_is_a_copy():
    replay = replay_of()
    replay.extend(numbered(0, 3, 7))
    state = replay.state_dict()
    held = state["frames"]["frame"].tolist()
    replay.extend(numbered(100, 5, 10))
    assert state["frames"]["frame"].tolist() == held


def test_with_epochs_views_the_same_buffer_and_samples_more_often():
    replay = replay_of(steps=3, warmup=20)
    view = replay.with_epochs(7)
    assert isinstance(view, ReplayView) and view.replay is replay and view.owner is replay and replay.steps == 3
    assert list(view(None, [])) == []  # the warm-up holds for it too
    batch = numbered()
    view.extend(batch)
    assert len(replay.buffer) == 0 and view.state_dict() == {}  # only the buffer's own source fills and saves it
    replay.extend(batch)
    samples = list(view(batch, KEYS))
    assert len(samples) == 21 and len(list(replay(batch, KEYS))) == 3
    for minibatch in samples:
        assert minibatch.shape == (8,)
        check_frames(minibatch, batch)
    assert len(list(view.with_epochs(2)(batch, KEYS))) == 6  # of the replay's steps, not of the view's


@pytest.mark.parametrize("sizes", [(10, 9, 50), (8, 60, 50), (60, 60, 50), (0, 0, 50)])
def test_impossible_sizes_are_named(sizes):
    size, warmup, capacity = sizes
    with pytest.raises(ValueError, match=f"0 < size <= warmup <= capacity, got {size}, {warmup}, {capacity}"):
        replay_of(capacity=capacity, size=size, warmup=warmup)


@pytest.mark.parametrize("cls", [Minibatches, Sequences])
@pytest.mark.parametrize(("epochs", "size"), [(0, 5), (-1, None), (1, 0), (1, -3)])
def test_impossible_epochs_and_sizes_are_named(cls, epochs, size):
    with pytest.raises(ValueError, match=f"epochs and size must be positive, got {epochs}, {size}"):
        cls(epochs, size)


def test_sources_do_not_know_environments():
    assert not any(isinstance(x, EnvBase) for x in vars(replay_of()).values())
    assert isinstance(next(iter(Minibatches(1)(numbered(), KEYS))), TensorDict)


# ---------------------------------------------------------------------- batches before the present one


def frames_of(source, batch):
    return sorted(int(frame) for minibatch in source(batch, KEYS) for frame in minibatch["frame"])


def test_previous_batches_are_those_before_the_present_one():
    source, size = PreviousBatches(Minibatches(1, 7), 2), N * T
    batches = [numbered(start) for start in range(0, 5 * size, size)]
    first = [batch["frame"].flatten().tolist() for batch in batches]
    found = [frames_of(source, batch) for batch in batches]
    assert found == [[], first[0], first[0] + first[1], first[1] + first[2], first[2] + first[3]]


def test_previous_batches_save_and_load():
    source, batches = PreviousBatches(Minibatches(2, None), 3), [numbered(start) for start in range(0, 200, 30)]
    for batch in batches[:4]:
        list(source(batch, KEYS))
    again, empty = PreviousBatches(Minibatches(2, None), 3), PreviousBatches(Minibatches(2, None), 3)
    again.load_state_dict(source.state_dict())
    assert frames_of(again, batches[4]) == frames_of(source, batches[4])
    assert frames_of(again, batches[5]) == frames_of(source, batches[5])
    empty.load_state_dict(PreviousBatches(Minibatches(1), 3).state_dict())
    assert frames_of(empty, batches[0]) == []
    assert source.with_epochs(5).source.epochs == 5 and source.with_epochs(5).seen == 0


def test_previous_batches_come_back_to_the_device_of_the_batch():
    """A checkpoint is loaded to the host."""
    source, batch = PreviousBatches(Minibatches(1, None), 1), numbered()
    list(source(batch, KEYS))
    moved = []
    source.held.to = lambda device: moved.append(device) or source.held.clone()
    list(source(batch, KEYS))
    assert moved == [batch.device]


def test_previous_batches_are_copies():
    source, batch = PreviousBatches(Minibatches(1, None), 1), numbered()
    list(source(batch, KEYS))
    expected = batch["frame"].flatten().tolist()
    batch["frame"].fill_(-1)
    assert frames_of(source, numbered(30)) == expected


def test_a_warm_up_is_not_stored_and_the_rest_of_it_is_saved():
    """Batches of 6 frames; those that begin before 10 frames were collected are left out."""
    source = Replay(capacity=20, steps=1, size=2, warmup=2, keys=["x"], device="cpu", skip=10)
    batch = TensorDict({"x": torch.arange(6.0).view(2, 3)}, [2, 3])
    source.extend(batch)
    other = Replay(capacity=20, steps=1, size=2, warmup=2, keys=["x"], device="cpu", skip=10)
    other.load_state_dict(source.state_dict())
    for replay in (source, other):
        assert len(replay.buffer) == 0
        replay.extend(batch)
        assert len(replay.buffer) == 0
        replay.extend(batch)
        assert len(replay.buffer) == 6


def test_changed_samples_are_drawn_and_changed_at_once():
    replay = Replay(capacity=20, steps=3, size=2, warmup=2, keys=["x"], device="cpu")
    batch = TensorDict({"x": torch.arange(6.0).view(2, 3)}, [2, 3])
    seen = []

    def double(frames):
        seen.append(len(frames))
        return frames.copy().set("x", 2 * frames["x"])

    source = Changed(replay, double)
    assert source.owner is replay and not list(source(batch, ["x"]))
    replay.extend(batch)
    minibatches = list(source(batch, ["x"]))
    assert [len(m) for m in minibatches] == [2, 2, 2] and seen == [6]
    assert len(list(source.with_epochs(2)(batch, ["x"]))) == 6
    assert len(list(Changed(replay, double, lambda batch: batch.shape[0])(batch, ["x"]))) == 3 + 2
    assert {x.item() for m in minibatches for x in m["x"]} <= {0.0, 2.0, 4.0, 6.0, 8.0, 10.0}
    assert replay.buffer[:]["x"].sort().values.tolist() == [0, 1, 2, 3, 4, 5]
