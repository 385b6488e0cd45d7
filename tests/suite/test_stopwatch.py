import time

import pytest
import torch

from suite.stopwatch import Stopwatch


def test_times_of_one_name_add_up_and_are_forgotten_once_read(monkeypatch):
    ticks = iter([1.0, 1.5, 2.0, 4.0, 10.0, 10.25])
    monkeypatch.setattr(time, "perf_counter", lambda: next(ticks))
    watch = Stopwatch("cpu")
    for name in ("models", "policy", "models"):
        with watch(name):
            pass
    assert watch.read() == {"models": 0.75, "policy": 2.0} and watch.read() == {}


def test_a_section_that_fails_is_not_counted():
    watch = Stopwatch()
    with pytest.raises(RuntimeError, match="stop"), watch("models"):
        raise RuntimeError("stop")
    assert watch.read() == {}


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_on_cuda_the_work_is_timed_and_not_its_launch():
    watch, x = Stopwatch("cuda"), torch.randn(4096, 4096, device="cuda")
    start = time.perf_counter()
    with watch("product"):
        for _ in range(50):
            x = (x @ x).clamp(-1, 1)
    launched = time.perf_counter() - start
    assert watch.read()["product"] > 2 * launched
