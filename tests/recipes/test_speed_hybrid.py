"""The speed of training on hybrid actions: every subject runs, and what is printed."""

import pytest

from recipes import speed_hybrid
from recipes.speed_hybrid import section, worker


@pytest.mark.parametrize("subject", ["torchrl", "ours", "none-pdqn"])
@pytest.mark.filterwarnings("ignore:No target network updater")
def test_every_kind_of_subject_has_a_rate(subject):
    assert worker(subject, 0.05) > 0


def test_what_is_printed(monkeypatch):
    rates = {"torchrl": 100.0, "ours": 150.0, "hyar-td3": 90.0, "none-td3": "it broke", "none-pdqn": 80.0}
    monkeypatch.setattr(speed_hybrid, "attempt", lambda *words: rates[words[2]])
    lines = [" ".join(line.split()) for line in section(2)]
    assert lines[2:] == ["torchrl 100 TD3 updates", "ours 150 TD3 updates, 1.50 (1.50-1.50) times torchrl",
                         "hyar-td3 90 frames, each with an update", "none-td3 it broke",
                         "none-pdqn 80 frames, each with an update"]
