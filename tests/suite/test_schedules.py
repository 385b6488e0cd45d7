import pytest
import torch
from torch import nn

from suite.losses import Loss
from suite.schedules import LinearDecay
from suite.update import Update


class Dot(Loss):
    def __init__(self):
        super().__init__()
        self.net = nn.Linear(2, 1)


def make(lr):
    return Update("u", {"a": Dot(), "b": Dot()}, None, max_grad_norm=None,
                  optimizer={"a": lambda p: torch.optim.Adam(p, lr=lr), "b": lambda p: torch.optim.Adam(p, lr=10 * lr)})


def rates(update):
    return [group["lr"] for optimizer in update.optimizers.values() for group in optimizer.param_groups]


def test_rates_fall_linearly_to_zero():
    update = make(0.1)
    decay = LinearDecay([update])
    for progress in (0.0, 0.25, 0.5, 1.0):
        decay(progress)
        assert rates(update) == pytest.approx([0.1 * (1 - progress), 1.0 * (1 - progress)])


def test_the_schedule_goes_on_after_the_optimisers_state_was_loaded():
    update = make(0.1)
    decay = LinearDecay([update])
    decay(0.5)
    saved = update.state_dict()

    other = make(0.7)  # the initial rate is the saved one, not the one of this process
    decay = LinearDecay([other])
    other.load_state_dict(saved)
    assert rates(other) == pytest.approx([0.05, 0.5])
    decay(0.75)
    assert rates(other) == pytest.approx([0.025, 0.25])
    decay(0.2)  # extended: the same frames are a smaller share now
    assert rates(other) == pytest.approx([0.08, 0.8])
