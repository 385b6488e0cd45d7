"""One picture of all proof obligations: a panel per claim, a line per number, against its threshold."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from suite.figures import COLOURS, INK, LINE, MUTED, SETTINGS, new_figure, save_png
from suite.proofs import FAIL, NOT_RUN, ONE_SEED, PASS, Finding

COLOUR = {PASS: COLOURS[2], FAIL: COLOURS[1], ONE_SEED: COLOURS[7], NOT_RUN: COLOURS[7]}
ROW, HEAD = 0.3, 0.75  # inches of a line, and of a panel's title and axis
WIDTH = 11.5


def draw_proofs(findings: Sequence[Finding], path: Path) -> Path:
    """Write the picture."""
    with mpl.rc_context(SETTINGS):
        return save_png(make_figure(findings), path)


def make_figure(findings: Sequence[Finding]) -> Figure:
    """Two columns of panels, filled in order and about equally long."""
    panels: dict[str, list[Finding]] = {}
    for finding in findings:
        panels.setdefault(finding.obligation.claim, []).append(finding)
    columns = _columns({claim: HEAD + ROW * len(group) for claim, group in panels.items()})
    heights = [[HEAD + ROW * len(panels[claim]) for claim in column] for column in columns]
    figure = new_figure(WIDTH, max(map(sum, heights)) + 0.4)
    _legend(figure)
    grid = figure.add_gridspec(1, len(columns), wspace=0.06)
    for column, (claims, sizes) in enumerate(zip(columns, heights, strict=True)):
        spare = max(map(sum, heights)) - sum(sizes)
        inner = grid[column].subgridspec(len(claims) + (spare > 0), 1, hspace=0.1,
                                         height_ratios=[*sizes, *([spare] if spare > 0 else [])])
        for row, claim in enumerate(claims):
            draw_claim(figure.add_subplot(inner[row]), claim, panels[claim])
    return figure


def draw_claim(axes: Axes, claim: str, group: Sequence[Finding]) -> None:
    """Seeds as dots, their mean and interval as a bar with a diamond; the side that passes is shaded."""
    low, high = _limits(group)
    for y, finding in enumerate(reversed(group)):
        o, colour = finding.obligation, COLOUR[finding.verdict]
        good = (o.bound, high) if o.sense == ">" else (low, o.bound)
        axes.barh(y, good[1] - good[0], left=good[0], height=0.72, color=COLOUR[PASS], alpha=0.1, linewidth=0)
        axes.plot([o.bound] * 2, [y - 0.36, y + 0.36], color=MUTED, linewidth=1.2)
        if finding.estimate is None:
            further = low if o.bound - low > high - o.bound else high
            axes.text((o.bound + further) / 2, y, NOT_RUN, color=colour, fontsize=8, ha="center", va="center")
            continue
        value, start, end = finding.estimate
        if start is not None:
            axes.plot([start, end], [y, y], color=colour, linewidth=2.4, solid_capstyle="round")
        axes.plot(finding.values, [y] * len(finding.values), "o", color=colour, markersize=3.2, alpha=0.45,
                  markeredgewidth=0)
        axes.plot([value], [y], "D", color=colour, markersize=4.6, markeredgewidth=0)
    names = [_name(finding) for finding in reversed(group)]
    axes.set(yticks=range(len(group)), ylim=(-0.6, len(group) - 0.4), xlim=(low, high))
    axes.set_yticklabels(names, color=INK, fontsize=8)
    axes.set_title(claim, loc="left", fontsize=9.5, color=INK, pad=5, weight="bold")
    axes.grid(axis="x", color=LINE, linewidth=0.7)
    axes.set_axisbelow(True)
    axes.locator_params(axis="x", nbins=5)
    for side, spine in axes.spines.items():
        spine.set_visible(side == "bottom")
        spine.set_color(MUTED)
    axes.tick_params(length=0, colors=MUTED, labelsize=8)
    for label in axes.get_yticklabels():
        label.set_color(INK)


def _name(finding: Finding) -> str:
    return f"{finding.obligation.test}: {finding.obligation.label}"


def _limits(group: Sequence[Finding]) -> tuple[float, float]:
    """What the panel shows: all values, intervals and bounds, with a margin."""
    shown = [finding.obligation.bound for finding in group]
    for finding in group:
        shown += [*finding.values, *(x for x in finding.estimate or () if x is not None)]
    low, high = min(shown), max(shown)
    margin = 0.08 * (high - low) or max(0.1, abs(low))
    return low - margin, high + margin


def _columns(heights: dict[str, float]) -> list[list[str]]:
    """The claims in their order, cut in two where the longer part is shortest."""
    claims = list(heights)
    if len(claims) < 3:
        return [claims]
    sums = [max(sum(map(heights.get, claims[:k])), sum(map(heights.get, claims[k:]))) for k in range(1, len(claims))]
    cut = 1 + sums.index(min(sums, default=math.inf))
    return [claims[:cut], claims[cut:]]


def _legend(figure: Figure) -> None:
    marks = [Line2D([], [], color=COLOUR[verdict], marker="D", markersize=5, linewidth=2.4, label=verdict)
             for verdict in (PASS, FAIL)]
    marks += [Line2D([], [], color=MUTED, marker="o", markersize=3.4, linewidth=0, label="one seed"),
              Patch(color=COLOUR[PASS], alpha=0.16, linewidth=0,
                    label="meets the threshold (the mean must, or where the page says so the whole interval)")]
    figure.legend(handles=marks, loc="outside upper left", ncols=len(marks), frameon=False, labelcolor=INK,
                  fontsize=8.5, handlelength=1.8, columnspacing=1.6)
