"""Proof obligations: claims, each with a number, a bound and a verdict, as a Markdown table.

Numbers are plain data, ``{experiment: {figure: {seed: value}}}``, or ``{"value", "low", "high"}`` in place of the seeds
where a statistic over runs has an interval of its own. An obligation without its number has not been run, one that asks
for an interval is open with one seed, and one that is not met stays in the table.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple, get_args

import numpy as np

from suite.page import mark
from suite.report import Estimate, bootstrap

Numbers = Mapping[str, Mapping[str, Mapping[str, float | None]]]
Verdict = Literal["pass", "FAIL", "one seed", "not run"]
PASS, FAIL, ONE_SEED, NOT_RUN = "pass", "FAIL", "one seed", "not run"


@dataclass(frozen=True)
class Obligation:
    """One number that has to lie on one side of a bound.

    Attributes:
        experiment: what measures it. figure: the number's name there.
        claim, test: what is claimed, and on which data.
        sense: the side of ``bound`` that passes.
        whole_interval: the interval must lie on that side, not only the mean over seeds.
        note: what is known about a failure; printed only if it fails.
    """

    experiment: str
    claim: str
    test: str
    figure: str
    sense: Literal[">", "<"]
    bound: float
    whole_interval: bool = False
    note: str = ""

    @property
    def label(self) -> str:
        """The figure's name without the test that stands before it."""
        return self.figure.rpartition(": ")[2]

    def meets(self, value: float) -> bool:
        """Whether a value lies on the right side."""
        return value > self.bound if self.sense == ">" else value < self.bound


class Finding(NamedTuple):
    """An obligation with what was measured: one value per seed, if there are seeds."""

    obligation: Obligation
    estimate: Estimate | None
    values: tuple[float, ...]
    verdict: Verdict


def judge(obligation: Obligation, numbers: Numbers) -> Finding:
    """Mean over seeds with its 95 % bootstrap interval, against the bound."""
    measured = numbers.get(obligation.experiment, {}).get(obligation.figure)
    if not measured:
        return Finding(obligation, None, (), NOT_RUN)
    if measured.get("value", 0.0) is None or not (known := [x for x in measured.values() if x is not None]):
        return Finding(obligation, None, (), NOT_RUN)
    if "value" in measured:
        values, estimate = (), Estimate(measured["value"], measured.get("low"), measured.get("high"))
    else:
        values = tuple(known)
        estimate = bootstrap([np.array(values)], np.mean)
    decisive = estimate.value
    if obligation.whole_interval:
        decisive = estimate.low if obligation.sense == ">" else estimate.high
        if decisive is None:  # a single run has no interval
            return Finding(obligation, estimate, values, ONE_SEED)
    return Finding(obligation, estimate, values, PASS if obligation.meets(decisive) else FAIL)


def read_numbers(path: Path) -> dict[str, dict[str, dict[str, float]]]:
    """What earlier runs measured; nothing if there were none."""
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}


def write_numbers(path: Path, numbers: Numbers) -> None:
    """Sorted, so that a repeated run changes only what it measured."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(numbers, indent=1, sort_keys=True) + "\n", encoding="utf-8")


def markdown(title: str, findings: Sequence[Finding], *, command: str, picture: str = "",
             remarks: Sequence[str] = ()) -> str:
    """The page: verdicts in short, the table, and why what fails does.

    ``command`` is the one of an obligation, in which {experiment} is replaced.
    """
    verdicts = Counter(finding.verdict for finding in findings)
    counts = ", ".join(f"{verdicts[verdict]} {'with ' * (verdict == ONE_SEED)}{verdict}"
                       for verdict in get_args(Verdict) if verdicts[verdict] or verdict != ONE_SEED)
    lines = [f"# {title}", "", f"Written by `{command.split(' --only')[0]}` from `numbers.json`; do not edit.", "",
             f"{counts}. A figure is the mean over seeds with its 95 % bootstrap interval, which cannot leave the "
             "range of few seeds; it passes if the mean meets the threshold, or, where the threshold says so, the "
             "whole interval.", "", *(f"- {remark}" for remark in remarks), *([""] if remarks else []),
             "| claim | test | figure | measured | threshold | verdict | command |", "|:--|:--|:--|--:|--:|:--|:--|"]
    for finding in findings:
        o = finding.obligation
        verdict = f"**{FAIL}**" if finding.verdict == FAIL else finding.verdict
        cells = [mark(o.claim), mark(o.test), mark(o.label), measured_text(finding), threshold_text(o), verdict,
                 f"`{command.format(experiment=o.experiment)}`"]
        lines.append(f"| {' | '.join(cells)} |")
    failed: dict[str, dict[str, dict[str, None]]] = {}  # why: {claim: tests}
    for finding in findings:
        if finding.verdict == FAIL and finding.obligation.note:
            o = finding.obligation
            failed.setdefault(o.note, {}).setdefault(o.claim, {})[o.test] = None
    if failed:
        lines += ["", "## What fails, and why", ""]
    for note, claims in failed.items():
        named = "; ".join(f"{mark(claim)} ({mark(', '.join(tests))})" for claim, tests in claims.items())
        lines.append(f"- {named}: {mark(note)}")
    if picture:
        lines += ["", f"![{mark(title)}]({picture})"]
    return "\n".join(lines) + "\n"


def measured_text(finding: Finding) -> str:
    """value [low, high] (seeds), with three significant digits."""
    if finding.estimate is None:
        return "\u2013"
    value, low, high = finding.estimate
    interval = "" if low is None else f" [{_digits(low)}, {_digits(high)}]"
    n = len(finding.values)
    return _digits(value) + interval + (f" ({n} seed{'s' * (n > 1)})" if n else "")


def threshold_text(obligation: Obligation) -> str:
    """Such as ``\\> 0.5``."""
    sense = {">": "\\>", "<": "\\<"}[obligation.sense]  # Markdown reads a bare sign as a quotation or a tag
    return f"{sense} {_digits(obligation.bound)}" + ", whole interval" * obligation.whole_interval


def _digits(value: float) -> str:
    text = f"{value:.3f}" if abs(value) < 10 else f"{value:.1f}"
    text = text.rstrip("0").rstrip(".") if "." in text else text
    return text.replace("-", "\u2212") if float(text) else "0"
