"""The cost of state models at the smallest size; what is printed, not how fast it is."""

import dataclasses
import re

import pytest

from recipes import speed_state_models
from recipes.presets import COST_STUDIES
from recipes.speed import speed

TASK = "foraging/2s-9x9-3p-2f-coop"


def test_an_iteration_is_ten_episodes():
    found = speed_state_models.run("smpe", TASK, "maa2c", 1, 1)
    assert found["frames"] == 500 and found["seconds"] > 0 and found["after"] >= found["before"] > 10


def test_a_line_of_a_study():
    result = {"seconds": 0.3, "frames": 500, "before": 300.0, "after": 301.0}
    line = speed_state_models.row("fixed", [result], [result | {"seconds": 0.2}], result)
    assert " ".join(line.split()) == "fixed 0.300 1.50 (1.50-1.50) 1.0 300 | 301"
    assert speed_state_models.row("fixed", ["it broke"], [result], result).split()[1:] == ["failed:", "it", "broke"]


def test_an_unknown_state_model_is_refused():
    with pytest.raises(ValueError, match=r"unknown state model 'mao'; choose from \['moa', 'smpe'\]"):
        speed(state_models=("mao",))


@pytest.mark.slow
def test_the_section_of_a_study(monkeypatch, capsys):
    short = dataclasses.replace(COST_STUDIES["smpe"], warm=1, measured=1, long=4)
    monkeypatch.setitem(COST_STUDIES, "smpe", short)
    speed(rounds=1, state_models=("smpe",))
    printed = capsys.readouterr().out
    for subject in short.subjects:
        assert re.search(rf"\n{subject} +\d\.\d+ +\d+\.\d\d \(\S+\) +\d+\.\d +\d+ \| \d+\n", printed), printed
