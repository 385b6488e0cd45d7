"""Verdicts and their table, from numbers worked out by hand."""

from dataclasses import replace

import pytest

from suite.proofs import Obligation, judge, markdown, measured_text, read_numbers, threshold_text, write_numbers

MORE = Obligation("e", "It predicts", "task", "task: skill", ">", 0.5, note="because.")
LESS = Obligation("e", "It is close", "task", "gap", "<", 0.02)
WHOLE = Obligation("r", "It helps", "tasks", "difference", ">", 0, whole_interval=True)


@pytest.mark.parametrize(("obligation", "values", "verdict"), [
    (MORE, (0.4, 0.5, 0.7), "pass"),  # mean 0.5333
    (MORE, (0.4, 0.4, 0.7), "FAIL"),  # mean 0.5: not above it
    (LESS, (0.01, 0.02, 0.02), "pass"),
    (LESS, (0.03,), "FAIL"),
])
def test_the_mean_over_seeds_is_held_against_the_bound(obligation, values, verdict):
    numbers = {"e": {obligation.figure: {str(seed): value for seed, value in enumerate(values)}}}
    found = judge(obligation, numbers)
    assert found.verdict == verdict and found.values == values
    assert found.estimate.value == pytest.approx(sum(values) / len(values))
    if len(values) > 1:
        assert min(values) <= found.estimate.low <= found.estimate.value <= found.estimate.high <= max(values)
    else:
        assert found.estimate.low is None


@pytest.mark.parametrize(("low", "verdict"), [(0.01, "pass"), (-0.01, "FAIL"), (None, "one seed")])
def test_the_whole_interval_where_that_is_asked_for(low, verdict):
    numbers = {"r": {"difference": {"value": 0.2, "low": low, "high": None if low is None else 0.4}}}
    assert judge(WHOLE, numbers).verdict == verdict


@pytest.mark.parametrize("numbers", [{}, {"e": {}}, {"e": {"task: skill": {}}}])
def test_what_was_not_measured_is_not_run(numbers):
    found = judge(MORE, numbers)
    assert found.verdict == "not run" and found.estimate is None and measured_text(found) == "\u2013"


def test_the_table_keeps_failures_and_says_why():
    numbers = {"e": {"task: skill": {"1": 0.25}, "gap": {"1": -0.0123, "2": 0.0023}}}
    text = markdown("Proofs", [judge(o, numbers) for o in (MORE, LESS, WHOLE)], command="run --only {experiment}",
                    picture="p.png", remarks=["A remark."])
    assert "1 pass, 1 FAIL, 1 not run" in text and "Written by `run`" in text and "- A remark." in text
    assert "| It predicts | task | skill | 0.25 (1 seed) | \\> 0.5 | **FAIL** | `run --only e` |" in text
    assert "| It is close | task | gap | \u22120.005 [\u22120.012, 0.002] (2 seeds) | \\< 0.02 | pass |" in text
    assert "| \\> 0, whole interval | not run |" in text
    assert "- It predicts (task): because." in text and "![Proofs](p.png)" in text
    assert threshold_text(LESS) == "\\< 0.02"


def test_a_reason_names_all_tests_that_it_is_of():
    both = [replace(MORE, test=test, figure=f"{test}: skill") for test in ("one", "two")]
    numbers = {"e": {"one: skill": {"1": 0.1}, "two: skill": {"1": 0.2}}, "r": {"difference": {"value": 0.2}}}
    text = markdown("Proofs", [judge(o, numbers) for o in (*both, WHOLE)], command="c")
    assert "- It predicts (one, two): because." in text and "0 pass, 2 FAIL, 1 with one seed, 0 not run" in text


def test_no_failure_needs_no_explanation():
    assert "What fails" not in markdown("t", [judge(MORE, {})], command="c")


def test_numbers_survive_a_restart(tmp_path):
    path = tmp_path / "deep" / "numbers.json"
    assert read_numbers(path) == {}
    numbers = {"e": {"f": {"1": 0.5}}, "r": {"d": {"value": 1.0, "low": None, "high": None}}}
    write_numbers(path, numbers)
    assert read_numbers(path) == numbers
