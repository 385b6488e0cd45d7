"""The loop's speed at the smallest size; what it prints, not how fast it is."""

import re
import warnings

import pytest
import torch

from recipes import speed_loop, speed_rounds
from recipes.speed import speed
from recipes.speed_loop import COUNTED, PARTS, WARM, Stopwatch, rows, worker
from recipes.speed_syncs import place, recorded

SMALL = dict(num_envs=2, steps=3, epochs=1, iterations=2, device="cpu", mode="eager")


def test_a_worker_measures_every_part_and_no_synchronisation_on_a_cpu():
    found = worker("vmas/simple_spread", **SMALL)
    assert found.keys() == {*PARTS, "syncs"} and found["syncs"] is None
    assert all(found[part] > 0 for part in PARTS)


def test_the_stopwatch_counts_its_iterations(monkeypatch):
    run, now = Stopwatch(torch.device("cpu"), 2), iter(range(99))
    monkeypatch.setattr(run, "clock", lambda: float(next(now)))
    for _ in range(WARM + 2 * 2 + COUNTED):
        run._mark("collect")
        run.log({}, frames=0)
    assert {part: len(seconds) for part, seconds in run.seconds.items()} == {"collect": 2, "update": 2, "loop": 2}


def test_on_a_gpu_the_last_iterations_count_and_only_the_parts_wait(monkeypatch):
    modes, waited = [], []
    monkeypatch.setattr(torch.cuda, "set_sync_debug_mode", modes.append)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: waited.append(run.done))
    run = Stopwatch(torch.device("cuda"), 1)
    for _ in range(WARM + 2 + COUNTED):
        run.waits.append("a")
        run._mark("collect")
        run.waits += ["b", "c", "b"]
        run.log({}, frames=0)
    assert run.syncs == {"collect": {"a": COUNTED}, "update": {"b": 2 * COUNTED, "c": COUNTED}}
    assert modes == ["default"] * (WARM + 1) + ["warn"] * COUNTED + ["default"]
    assert waited.count(WARM) == 2 and waited.count(WARM + 1) == 1 and max(waited) == WARM + 1


@pytest.mark.slow
def test_the_section_prints_a_line_for_every_mode(capsys):
    speed(rounds=1, epochs=1, iterations=1, device="cpu", envs=(2,), steps=2, modes=("eager",))
    printed = capsys.readouterr().out
    assert "MAPPO on cpu (one thread): 1000 frames per second and ratio to eager; 2 steps, 1 epochs" in printed
    for task in speed_loop.TASKS:
        assert re.search(rf"{task} +2 eager( +\d+\.\d  1\.00 \(1\.00-1\.00\)){{3}}  n/a\n", printed)


def test_a_mode_that_fails_costs_no_other(monkeypatch):
    good = {"collect": 2000.0, "update": 4000.0, "loop": 1000.0, "syncs": None}
    assert rows("a ", ["it broke"], [good]) == ["a failed: it broke"]
    assert rows("a ", [good], ["it broke"]) == ["a failed: its base has no numbers"]

    def broken(*command):
        raise ValueError("python failed:\nTraceback\nRuntimeError: out of memory")

    monkeypatch.setattr(speed_rounds, "measure", broken)
    assert speed_rounds.attempt("vmas/navigation", 2) == "RuntimeError: out of memory"


def test_synchronisations_are_named_by_their_lines_the_most_first():
    places = {f"envs/x.py:{k}": float(k) for k in range(1, 8)}
    fast = {"collect": 4000.0, "update": 4000.0, "loop": 2000.0, "syncs": {"collect": places, "update": {"b.py:1": 1}}}
    slow = fast | {"collect": 2000.0}
    lines = rows("a", [fast], [slow])
    assert "4.0  2.00 (2.00-2.00)" in lines[0] and lines[0].endswith("  28 + 1")
    assert [line.split() for line in lines[1:]] == [
        *([f"{k}.0", "in", "collect", "at", f"envs/x.py:{k}"] for k in (7, 6, 5, 4, 3)),
        ["1.0", "in", "update", "at", "b.py:1"]]


def test_a_warning_is_noted_with_the_line_that_caused_it_each_time():
    found = []
    with recorded(found):
        for _ in range(2):
            warnings.warn("called a synchronizing CUDA operation", stacklevel=1)
        warnings.warn("something else", stacklevel=1)
    assert len(found) == 2 and found[0] == found[1] and re.fullmatch(r"recipes/test_speed_loop\.py:\d+", found[0])


def test_lines_of_the_libraries_give_way_to_who_called_them():
    torch_line = ("/x/site-packages/torch/nn/utils/clip_grad.py", 3)
    assert place([torch_line, ("/x/suite/update.py", 80), ("/x/suite/trainer.py", 9)]) == "suite/update.py:80"
    assert place([torch_line]) == "utils/clip_grad.py:3"
    assert place([("/x/site-packages/vmas/core.py", 5), ("/x/envs/vmas.py", 9)]) == "vmas/core.py:5"


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_synchronisations_are_counted_on_a_gpu():
    syncs = worker("vmas/simple_spread", **SMALL | {"device": "cuda"})["syncs"]
    assert sum(syncs["update"].values()) >= 1  # the metrics come to the host


@pytest.mark.parametrize("options, message", [
    ({"device": "tpu9"}, "unknown device 'tpu9'"), ({"rounds": 0}, "rounds must be positive, got 0"),
    ({"device": "cpu", "modes": ("egaer",)}, r"unknown mode 'egaer'; choose from \['compile', 'eager', 'graphs'\]"),
])
def test_wrong_options_are_refused_at_once(options, message):
    with pytest.raises(ValueError, match=message):
        speed(**options)
