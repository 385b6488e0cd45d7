import os
import pickle

import pytest
import torch

from suite.checkpoint import CheckpointError, Checkpoints, _digest, broken


def state(value):
    return {"weights": {"w": torch.full((3,), float(value))}, "nested": [1, 2.5, "x", None, (True,)], "value": value}


@pytest.fixture
def checkpoints(tmp_path):
    store = Checkpoints(tmp_path / "checkpoints")
    for iteration in (3, 7):
        store.save(state(iteration), iteration)
    return store


def test_saved_and_loaded_are_equal(checkpoints):
    loaded = checkpoints.load()
    assert loaded["value"] == 7 and loaded["nested"] == [1, 2.5, "x", None, (True,)]
    assert torch.equal(loaded["weights"]["w"], torch.full((3,), 7.0))
    assert checkpoints.load(3)["value"] == 3
    assert checkpoints.whole() == [3, 7]


def test_order_is_by_number_not_by_spelling(tmp_path):
    store = Checkpoints(tmp_path, keep=9)
    for iteration in (10, 9, 100):
        store.save(state(iteration), iteration)
    assert store.whole() == [9, 10, 100] and store.load()["value"] == 100


def truncate(path):
    path.write_bytes(path.read_bytes()[:-100])


def alter(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def empty(path):
    path.write_bytes(b"")


def lose_checksum(path):
    path.with_suffix(".sha256").unlink()


@pytest.mark.parametrize("damage", [truncate, alter, empty, lose_checksum])
def test_a_broken_one_is_named_and_the_one_before_is_used(checkpoints, damage):
    newest = checkpoints.paths()[-1]
    damage(newest)
    assert broken(newest) is not None
    with pytest.warns(UserWarning, match=newest.name):
        assert checkpoints.load()["value"] == 3
    assert checkpoints.whole() == [3]


@pytest.mark.filterwarnings("ignore:checkpoint")
def test_without_any_whole_one_the_error_names_the_folder(checkpoints, tmp_path):
    for path in checkpoints.paths():
        truncate(path)
    with pytest.raises(CheckpointError, match=r"no whole checkpoint.*checkpoints"):
        checkpoints.load()
    with pytest.raises(CheckpointError, match="no whole checkpoint"):
        Checkpoints(tmp_path / "nowhere").load()


def test_leftovers_of_a_killed_save_are_ignored_and_replaced(checkpoints):
    for name in ("000000009.rank0.tmp", "000000009.rank0.sha256.tmp", "000000009.rank0.sha256"):
        (checkpoints.folder / name).write_bytes(b"half")
    assert checkpoints.load()["value"] == 7 and checkpoints.whole() == [3, 7]
    checkpoints.save(state(9), 9)
    assert checkpoints.load()["value"] == 9
    assert not list(checkpoints.folder.glob("*.tmp"))


class Bomb:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (self.path,)


def test_code_in_a_checkpoint_is_refused_and_not_run(checkpoints, tmp_path):
    """Even with a matching checksum: both torch's format and a bare pickle."""
    boom = tmp_path / "boom"
    for iteration, write in ((8, lambda file: torch.save(state(8) | {"bomb": Bomb(str(boom))}, file)),
                             (9, lambda file: file.write_bytes(pickle.dumps(Bomb(str(boom)))))):
        path = checkpoints.folder / f"{iteration:09d}.rank0.pt"
        write(path)
        path.with_suffix(".sha256").write_text(_digest(path))
    with pytest.warns(UserWarning, match="refused") as caught:
        assert checkpoints.load()["value"] == 7
    assert not boom.exists()
    assert any("000000008" in str(w.message) for w in caught) and any("000000009" in str(w.message) for w in caught)
    torch.load(checkpoints.folder / "000000008.rank0.pt", weights_only=False)  # the bomb was real
    assert boom.exists()


def disk_full(*args, **kwargs):
    raise OSError(28, "No space left on device")


def writer_failed(*args, **kwargs):
    raise RuntimeError("PytorchStreamWriter failed writing file data/0: file write failed")


@pytest.mark.parametrize("what, how", [("os.fsync", disk_full), ("os.replace", disk_full), ("torch.save", disk_full),
                                       ("torch.save", writer_failed), ("pathlib.Path.mkdir", disk_full)])
def test_a_full_disk_gives_a_clear_error_and_keeps_the_earlier_ones(checkpoints, monkeypatch, what, how):
    before = {path: path.read_bytes() for path in checkpoints.folder.iterdir() if path.suffix == ".pt"}
    with monkeypatch.context() as patch:
        patch.setattr(what, how)
        with pytest.raises(CheckpointError, match=r"could not write .*000000011.*Still there: .*000000007"):
            checkpoints.save(state(11), 11)
    assert {path: path.read_bytes() for path in checkpoints.folder.iterdir() if path.suffix == ".pt"} == before
    assert checkpoints.load()["value"] == 7
    checkpoints.save(state(11), 11)  # the disk has room again
    assert checkpoints.load()["value"] == 11


def test_a_read_only_folder_gives_a_clear_error(tmp_path):
    (tmp_path / "checkpoints").write_text("a file where the folder should be: no user can write into it")
    with pytest.raises(CheckpointError, match=r"could not write .*Still there: no checkpoint"):
        Checkpoints(tmp_path / "checkpoints").save(state(1), 1)


@pytest.mark.parametrize("keep, left", [(2, [4, 5]), (3, [3, 4, 5])])
def test_keep(tmp_path, keep, left):
    store = Checkpoints(tmp_path, keep=keep)
    for iteration in range(1, 6):
        store.save(state(iteration), iteration)
    assert store.whole() == left
    assert len(list(tmp_path.iterdir())) == 2 * len(left)  # checksums go with their files


def test_one_alone_is_refused_since_a_broken_one_would_have_none_before(tmp_path):
    for keep in (1, 0):
        with pytest.raises(ValueError, match=f"keep_checkpoints must be at least 2, got {keep}: of a broken one the"):
            Checkpoints(tmp_path, keep=keep)


@pytest.mark.filterwarnings("ignore:checkpoint")
def test_keep_never_drops_what_was_just_written(tmp_path):
    """Broken later files must not push out a whole earlier one."""
    store = Checkpoints(tmp_path, keep=3)
    for iteration in (1, 20, 30):
        store.save(state(iteration), iteration)
    for path in store.paths()[1:]:
        truncate(path)
    fewer = Checkpoints(tmp_path, keep=2)
    assert fewer.save(state(5), 5).exists()
    assert fewer.load()["value"] == 5 and 1 in fewer.whole()


def test_processes_do_not_see_each_others_files(tmp_path):
    first, second = Checkpoints(tmp_path, rank=0), Checkpoints(tmp_path, rank=1)
    first.save(state(1), 1)
    second.save(state(2), 2)
    assert first.whole() == [1] and second.whole() == [2]
