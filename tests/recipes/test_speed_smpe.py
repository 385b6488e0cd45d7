"""The cost of SMPE² at the smallest size; what is printed, not how fast it is."""

import re

import pytest

from recipes import speed_smpe
from recipes.speed import speed


def test_an_iteration_is_ten_episodes():
    found = speed_smpe.run("maa2c", 1, 1)
    assert found["frames"] == 500 and found["seconds"] > 0 and found["after"] >= found["before"] > 10


def test_a_line_of_the_state_model():
    result = {"seconds": 0.3, "frames": 500, "before": 300.0, "after": 301.0}
    line = speed_smpe.row("fixed", [result], [result | {"seconds": 0.2}], result)
    assert " ".join(line.split()) == "fixed 0.300 1.50 (1.50-1.50) 1.0 300 | 301"
    assert speed_smpe.row("fixed", ["it broke"], [result], result).split()[1:] == ["failed:", "it", "broke"]


@pytest.mark.slow
def test_the_section_of_the_state_model(monkeypatch, capsys):
    monkeypatch.setattr(speed_smpe.section, "__defaults__", (1, 1, 4))
    speed(rounds=1, state_models=True)
    printed = capsys.readouterr().out
    for subject in speed_smpe.SUBJECTS:
        assert re.search(rf"\n{subject} +\d\.\d+ +\d+\.\d\d \(\S+\) +\d+\.\d +\d+ \| \d+\n", printed), printed
