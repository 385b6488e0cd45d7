"""Curves and performance profiles of a table, as PNG files and as SVG for the page; no pyplot, no global state."""

from __future__ import annotations

import io
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from suite.report import Summary, bootstrap
from suite.results import Cell

if TYPE_CHECKING:
    from numpy.typing import NDArray

# Each has a contrast above 3 on the white of the PNG and on the dark page; neighbours differ in lightness too.
COLOURS = ("#2f7bd6", "#d4691e", "#2a9d74", "#b9529f", "#8b6fd1", "#a3841c", "#1d9cb5", "#7c858f")
DASHES: tuple[tuple[float, ...], ...] = ((), (5, 2), (1.5, 1.5))
INK, MUTED, LINE = "#1d2126", "#646b75", "#e2e3e0"
THEME = {INK: "var(--ink)", MUTED: "var(--muted)", LINE: "var(--line)"}
TAUS = np.linspace(0, 1, 201)
SETTINGS = {"font.family": "DejaVu Sans", "font.size": 9, "svg.fonttype": "none", "axes.formatter.useoffset": False}


class Style(NamedTuple):
    """How a row is drawn, everywhere."""

    colour: str
    dash: tuple[float, ...]


@dataclass(frozen=True)
class Curve:
    """One line: ``centre`` and its band over ``x``, and the ``tails`` of runs that went further."""

    x: NDArray
    centre: NDArray
    low: NDArray | None = None
    high: NDArray | None = None
    tails: tuple[tuple[NDArray, NDArray], ...] = ()


@dataclass(frozen=True)
class Drawing:
    """What was drawn of a table: files, and SVG texts for the page."""

    styles: dict[str, Style]
    curves: dict[str, str]
    profile: str
    paths: list[Path]


def make_styles(*tables: Sequence[str]) -> dict[str, Style]:
    """A style per row of the tables, the same in all of them; no two rows of one table share it, up to 24.

    A row takes the first style that is free in all its tables: colours first, then dashes.
    """
    choices = [Style(colour, dash) for dash in DASHES for colour in COLOURS]
    styles: dict[str, Style] = {}
    for row in dict.fromkeys(row for rows in tables for row in rows):
        taken = {styles[other] for rows in tables if row in rows for other in rows if other in styles}
        styles[row] = next((style for style in choices if style not in taken), choices[len(styles) % len(choices)])
    return styles


def learning_curve(cell: Cell) -> Curve:
    """IQM over seeds with its pointwise interval.

    A seed is interpolated linearly between its own evaluations, never beyond them: the line covers the frames that
    every seed has reached, and the seeds that went further go on as tails.
    """
    series = [cell.series(seed) for seed in cell.runs]
    start, end = max(x[0] for x, _ in series), min(x[-1] for x, _ in series)
    grid = np.unique(np.concatenate([x for x, _ in series]))
    grid = grid[(grid >= start) & (grid <= end)]
    if not len(grid):
        return Curve(grid, grid, tails=tuple(series))
    estimate = bootstrap([np.stack([np.interp(grid, x, y) for x, y in series])])
    tails = tuple((x[max(0, np.searchsorted(x, end, "right") - 1):], y[max(0, np.searchsorted(x, end, "right") - 1):])
                  for x, y in series if x[-1] > end)
    return Curve(grid, *estimate, tails=tails)


def profile_curve(scores: Sequence[NDArray]) -> Curve:
    """Share of the pooled runs whose normalised score is above each threshold (rliable's score distribution)."""
    return Curve(TAUS, *bootstrap(scores, lambda runs: (runs[:, None] > TAUS).mean(axis=0)))


def frame_unit(most: float) -> tuple[float, str]:
    """Divisor and axis label for frames up to ``most``."""
    if most >= 1e6:
        return 1e6, "frames (millions)"
    return (1e3, "frames (thousands)") if most >= 1e3 else (1.0, "frames")


def draw_curves(curves: Mapping[str, Mapping[str, Curve]], styles: Mapping[str, Style],
                labels: Mapping[str, str]) -> Figure:
    """Small multiples: one panel per task, at most 3 in a line, one legend on top; ``labels``: of a task's scores."""
    columns = 2 if len(curves) == 4 else min(3, len(curves))
    lines = math.ceil(len(curves) / columns)
    width, height = max(3.3 * columns, 4.6), 2.7 * lines + 0.55
    figure = new_figure(width, height)
    for i, (task, by_row) in enumerate(curves.items()):
        axes = figure.add_subplot(lines, columns, i + 1)
        same = len({labels[name] for name in curves}) == 1
        draw_panel(axes, by_row, styles, labels[task] if i % columns == 0 or not same else "")
        axes.set_title(task, loc="left", fontsize=9.5, color=INK, pad=6)
    _legend(figure, styles, width)
    return figure


def draw_profile(profiles: Mapping[str, Curve], styles: Mapping[str, Style], legend: bool = True) -> Figure:
    """Performance profile with pointwise intervals."""
    figure = new_figure(*((5.2, 3.4) if legend else (3.6, 2.5)))
    axes = figure.add_subplot()
    _lines(axes, profiles, styles, 1.0)
    axes.set(xlim=(0, 1), ylim=(-0.02, 1.02), xlabel="normalised score \u03c4", ylabel="share of runs above \u03c4")
    tidy_axes(axes)
    if legend:
        _legend(figure, {row: styles[row] for row in profiles}, 5.2)
    return figure


def draw(summaries: Sequence[Summary]) -> list[Drawing]:
    """Write curves.png and profile.png beside every table; a row has one style in all of them."""
    styles = make_styles(*(summary.table.rows for summary in summaries))
    with mpl.rc_context(SETTINGS):
        return [_draw_table(summary, {row: styles[row] for row in summary.table.rows}) for summary in summaries]


def _draw_table(summary: Summary, styles: dict[str, Style]) -> Drawing:
    table, paths = summary.table, []
    labels = {task: {"success": "success", "success_sampled": "success (sampled)"}.get(mode, f"return ({mode})")
              for task, mode in ((task, table.info.mode_of(task)) for task in table.tasks)}
    curves = {task: {row: learning_curve(table.cells[task, row]) for row in table.rows if (task, row) in table.cells}
              for task in table.tasks}
    curves = {task: by_row for task, by_row in curves.items() if by_row}
    if curves:
        there = {row: style for row, style in styles.items() if any(row in by_row for by_row in curves.values())}
        paths.append(save_png(draw_curves(curves, there, labels), table.folder / "curves.png"))
    svgs = {}
    for task, by_row in curves.items():
        figure = new_figure(3.6, 2.5)
        draw_panel(figure.add_subplot(), by_row, styles, labels[task])
        svgs[task] = svg(figure, f"Learning curves on {task}")
    profiles = {row: profile_curve(scores) for row, scores in summary.scores.items()}
    profile = ""
    if len(profiles) > 1:  # of one row there is nothing to compare
        paths.append(save_png(draw_profile(profiles, styles), table.folder / "profile.png"))
        profile = svg(draw_profile(profiles, styles, legend=False), "Performance profile")
    return Drawing(styles, svgs, profile, paths)


def save_png(figure: Figure, path: Path) -> Path:
    """Write a figure with the same bytes on every run."""
    figure.savefig(path, dpi=160, facecolor="white", metadata={"Software": None})
    return path


def svg(figure: Figure, title: str) -> str:
    """A figure as an inline SVG element that takes its colours of text and grid from the page."""
    file = io.StringIO()
    with mpl.rc_context({"svg.hashsalt": title}):  # ids of one page's figures must differ
        figure.savefig(file, format="svg", transparent=True, metadata={"Date": None})
    text = file.getvalue()
    text = re.sub(r"<metadata>.*?</metadata>", "", text[text.index("<svg"):], flags=re.DOTALL)
    text = re.sub(r'<g id="[^"]*"', "<g", text)
    for colour, variable in THEME.items():
        text = text.replace(colour, variable)
    text = re.sub(r'^<svg (.*?)width="[^"]*"', r"<svg \1", text, count=1, flags=re.DOTALL)
    text = re.sub(r'^<svg (.*?)height="[^"]*"', r"<svg \1", text, count=1, flags=re.DOTALL)
    label = title.replace("&", "&amp;").replace('"', "&quot;").replace("<", "&lt;")
    return text.replace("<svg ", f'<svg role="img" aria-label="{label}" ', 1).strip()


def new_figure(width: float, height: float) -> Figure:
    """An empty figure in inches, outside pyplot."""
    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def draw_panel(axes: Axes, by_row: Mapping[str, Curve], styles: Mapping[str, Style], label: str) -> None:
    """Curves over frames in one panel."""
    ends = [x[-1] for curve in by_row.values() for x in (curve.x, *(tail for tail, _ in curve.tails)) if len(x)]
    divisor, unit = frame_unit(max(ends))
    _lines(axes, by_row, styles, divisor)
    axes.set(xlabel=unit, ylabel=label)
    axes.set_xlim(left=0, right=max(max(ends) / divisor, 1e-9))
    axes.locator_params(axis="x", nbins=5)
    axes.locator_params(axis="y", nbins=5)
    tidy_axes(axes)


def _lines(axes: Axes, curves: Mapping[str, Curve], styles: Mapping[str, Style], divisor: float) -> None:
    for row, curve in curves.items():
        colour, dash = styles[row]
        if curve.low is not None and curve.high is not None:
            axes.fill_between(curve.x / divisor, curve.low, curve.high, color=colour, alpha=0.16, linewidth=0)
        for x, y in curve.tails:
            axes.plot(x / divisor, y, color=colour, linewidth=0.7, alpha=0.6)
        (line,) = axes.plot(curve.x / divisor, curve.centre, color=colour, linewidth=1.7, solid_capstyle="round",
                            marker="o" if len(curve.x) == 1 else None, markersize=4,
                            clip_on=len(curve.x) > 1)
        if dash:
            line.set_dashes(dash)


def tidy_axes(axes: Axes) -> None:
    """Only the lower edge and a quiet grid of heights."""
    axes.grid(axis="y", color=LINE, linewidth=0.8)
    axes.set_axisbelow(True)
    for side, spine in axes.spines.items():
        spine.set_visible(side == "bottom")
        spine.set_color(MUTED)
    axes.tick_params(length=0, colors=MUTED, labelsize=8)
    for part in (axes.xaxis.label, axes.yaxis.label):
        part.set(color=MUTED, fontsize=8.5)


def _legend(figure: Figure, styles: Mapping[str, Style], width: float) -> None:
    handles = [Line2D([], [], color=style.colour, linewidth=1.7) for style in styles.values()]
    for handle, style in zip(handles, styles.values(), strict=True):
        if style.dash:
            handle.set_dashes(style.dash)
    inches = [0.075 * len(row) + 0.62 for row in styles]  # of a name at this size, with its line
    columns = len(styles) if sum(inches) <= width else max(1, int(width / max(inches)))
    figure.legend(handles, list(styles), loc="outside upper left", ncols=columns, frameon=False, labelcolor=INK,
                  fontsize=9, handlelength=2.3, columnspacing=1.6)  # two dashes of each kind
