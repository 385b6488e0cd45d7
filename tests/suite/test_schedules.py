import pytest
import torch
from torch import nn

from suite.losses import Loss
from suite.schedules import LinearDecay
from suite.trainer import Update


class Dot(Loss):
    def __init__(self):
        super().__init__()
        self.net = nn.Linear(2, 1)


class Collector:
    frames, total_frames = 0, 100


def make(lr):
    return Update("u", {"a": Dot(), "b": Dot()}, None, max_grad_norm=None,
                  optimizer={"a": lambda p: torch.optim.Adam(p, lr=lr), "b": lambda p: torch.optim.Adam(p, lr=10 * lr)})


def rates(update):
    return [group["lr"] for optimizer in update.optimizers.values() for group in optimizer.param_groups]


def test_rates_fall_linearly_to_zero_and_not_below():
    update, collector = make(0.1), Collector()
    decay = LinearDecay(collector, [update])
    for frames, left in ((0, 1.0), (25, 0.75), (50, 0.5), (100, 0.0), (125, 0.0)):
        collector.frames = frames
        decay(None)
        assert rates(update) == pytest.approx([0.1 * left, 1.0 * left])


def test_the_schedule_goes_on_after_the_optimisers_state_was_loaded():
    update, collector = make(0.1), Collector()
    decay = LinearDecay(collector, [update])
    collector.frames = 50
    decay(None)
    saved = update.state_dict()

    other, collector = make(0.7), Collector()  # the initial rate is the saved one, not the one of this process
    decay = LinearDecay(collector, [other])
    other.load_state_dict(saved)
    assert rates(other) == pytest.approx([0.05, 0.5])
    collector.frames = 75
    decay(None)
    assert rates(other) == pytest.approx([0.025, 0.25])
