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


def test_rates_fall_linearly_by_the_share_of_frames_done():
    update, other = make(0.1), make(0.1)
    decay = LinearDecay([update])
    assert rates(update) == pytest.approx([0.1, 1.0])  # until it is called
    for progress, left in ((0, 1.0), (0.25, 0.75), (0.5, 0.5), (0.9, 0.1), (1.0, 0.0), (0.5, 0.5)):
        decay(progress)  # of the initial rate, not of the last one
        assert rates(update) == pytest.approx([0.1 * left, 1.0 * left])
    assert rates(other) == [0.1, 1.0]  # an update that was not named


def test_several_updates_keep_their_own_rates():
    updates = [make(0.1), make(0.3)]
    LinearDecay(updates)(0.75)
    assert [rates(update) for update in updates] == [pytest.approx([0.025, 0.25]), pytest.approx([0.075, 0.75])]


def test_the_schedule_goes_on_after_the_optimisers_state_was_loaded():
    update = make(0.1)
    LinearDecay([update])(0.5)
    saved = update.state_dict()

    other = make(0.7)  # the initial rate is the saved one, not the one of this process
    decay = LinearDecay([other])
    other.load_state_dict(saved)
    assert rates(other) == pytest.approx([0.05, 0.5])
    decay(0.75)
    assert rates(other) == pytest.approx([0.025, 0.25])
    decay(0.2)  # extended: the same frames are a smaller share now
    assert rates(other) == pytest.approx([0.08, 0.8])
