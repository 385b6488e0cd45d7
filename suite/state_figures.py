"""One picture of what a run represents: what its models predict, what its latent holds, how its action codec does.

Drawn from the metrics that the run has logged, metrics/scalars/<name>.csv; panels without data are left out.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import NamedTuple

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from suite.figures import (
    COLOURS,
    INK,
    MUTED,
    SETTINGS,
    Curve,
    Style,
    draw_panel,
    new_figure,
    save_png,
    tidy_axes,
)

Series = tuple[np.ndarray, np.ndarray]  # frames and values

BLUE, ORANGE, GREEN, PURPLE = COLOURS[:4]
GREY = COLOURS[7]
MODEL, OTHER = Style(BLUE, ()), Style(ORANGE, ())
MARGINAL, REPEAT, FLOOR = Style(GREY, (5, 2)), Style(ORANGE, (5, 2)), Style(GREEN, (1.5, 1.5))


class Line(NamedTuple):
    """A metric, its name in the legend, and how it is drawn."""

    metric: str
    name: str
    style: Style


class Panel(NamedTuple):
    """One set of axes: drawn if the run has logged any of its lines."""

    title: str
    label: str
    lines: tuple[Line, ...]
    level: float | None = None  # a horizontal line, where the value of an ideal or of chance is fixed


def _skills(kind: str, dash: tuple[float, ...]) -> tuple[Line, ...]:
    return tuple(Line(f"wm/obs_skill_{k}{kind}", f"{k}", Style(colour, dash))
                 for k, colour in zip((1, 3, 5, 10), (BLUE, ORANGE, GREEN, PURPLE), strict=True))


PANELS = (
    Panel("Others' actions: cross-entropy", "nats", (
        Line("moa/ce", "model", MODEL), Line("moa/ce_marginal", "marginal", MARGINAL),
        Line("moa/ce_floor", "floor", FLOOR))),
    Panel("Others' actions: likelihood", "negative log-likelihood", (
        Line("moa/nll", "model", MODEL), Line("moa/nll_marginal", "marginal", MARGINAL),
        Line("moa/nll_floor", "floor", FLOOR))),
    Panel("Others' actions: accuracy", "accuracy", (
        Line("moa/acc", "model", MODEL), Line("moa/acc_marginal", "marginal", MARGINAL),
        Line("moa/acc_repeat", "repeat", REPEAT))),
    Panel("Others' actions: squared error", "mean squared error", (
        Line("moa/mse", "model", MODEL), Line("moa/mse_marginal", "marginal", MARGINAL),
        Line("moa/mse_repeat", "repeat", REPEAT))),
    Panel("Others' actions: skill", "share of what can be known", (
        Line("moa/skill", "skill", MODEL), Line("moa/ece", "calibration error", OTHER)), level=0.0),
    Panel("World model: skill at k steps", "skill against copying", (
        *_skills("", ()), *_skills("_true", ()), *_skills("_moa", (5, 2))), level=0.0),
    Panel("World model: reward", "score", (
        Line("wm/rew_r2", "R\u00b2", MODEL), Line("wm/rew_auc_event", "event AUC", OTHER)), level=0.0),
    Panel("World model: gain from others' actions", "difference in skill", (
        Line("wm/gain_joint", "gain", MODEL),), level=0.0),
    Panel("Latent: KL", "nats", (
        Line("cvae/kl", "student, teacher", MODEL), Line("cvae/kl_prior", "teacher, prior", OTHER))),
    Panel("Latent: active units", "dimensions", (Line("cvae/active_units", "active", MODEL),)),
    Panel("Latent: calibration", "spread missed / spread claimed", (
        Line("cvae/calibration", "student", MODEL),), level=1.0),
    Panel("Latent: use", "return lost with another's", (Line("policy/z_use", "return", MODEL),), level=0.0),
    Panel("Latent: weight in the policy", "|d output / d z| std(z)", (
        Line("policy/z_sensitivity", "mean", MODEL),), level=0.0),
    Panel("Codec: reconstruction error", "error", (
        Line("codec/param_error", "parameters, absolute", MODEL),
        Line("codec/residual_share", "residual, of its variance", OTHER)), level=0.0),
    Panel("Codec: residual error at calibration", "mean squared error", (
        Line("codec/residual_error", "residual", MODEL),)),
    Panel("Codec: latent", "dimensions", (Line("codec/active_dims", "active", MODEL),), level=0.0),
    Panel("Codec: bounds of the latent", "mean width", (Line("codec/bounds_width", "bounds", MODEL),)),
    Panel("Codec: embeddings", "distance", (
        Line("codec/embedding_distance", "mean", MODEL), Line("codec/embedding_distance_min", "nearest", OTHER),
        Line("codec/table_movement", "moved since the start", MARGINAL)), level=0.0),
    Panel("Codec: kept in relabelling", "share of samples", (
        Line("codec/keep_discrete", "embedding", MODEL), Line("codec/keep_params", "latent", OTHER)), level=1.0),
)

# drawn over the steps of an episode
COURSE = (Line("moa/skill", "skill", MODEL), Line("moa/acc", "accuracy", OTHER))
STEP = "_step_"  # moa/skill_step_4 is of steps 4 to 7
VARIABLES = {"others_observation": "what others see", "others_action": "what others do"}  # hidden ones have their names

# representations in the order of what they may know; the latents in colour, what needs none in grey
BARS = {"u": ("present", GREY), "uc": ("+ past", GREY), "uc_mlp": ("+ past,\nMLP", GREY), "z": ("latent", BLUE),
        "z_teacher": ("teacher's\nlatent", ORANGE)}
POINTS = 150  # of a curve
CHANCE, ERROR = "chance", "_error"


def read_curves(run: str | Path) -> dict[str, Series]:
    """{metric: (frames, values)} of a run folder, in order of frames; rows that are no finite number are left out."""
    folder, curves = Path(run) / "metrics" / "scalars", {}
    for file in sorted(folder.rglob("*.csv")):
        rows = [line.split(",") for line in file.read_text().splitlines()]
        points = sorted((int(row[0]), float(row[1])) for row in rows if len(row) == 2)
        points = [(frames, value) for frames, value in points if math.isfinite(value)]
        if points:
            x, y = zip(*points, strict=True)
            curves[file.relative_to(folder).with_suffix("").as_posix()] = np.array(x, float), np.array(y)
    return curves


def draw_state(curves: Mapping[str, Series]) -> Figure | None:
    """A panel per group of metrics, one over an episode's steps and one per probed variable; None without any.

    Curves are named as `suite.state_metrics` names them, under moa/, wm/ and cvae/, and as `HyARLoss` does, under
    codec/. Probes are named probe/<representation> or probe/<variable>/<representation>, with _error for the standard
    error and "chance" for the score without features. Of steps, <metric>_step_<k>, and of probes the last values count.
    """
    panels = [partial(_draw_lines, panel=panel, curves=curves) for panel in PANELS
              if any(line.metric in curves for line in panel.lines)]
    if course := {line: found for line in COURSE if (found := step_scores(curves, line.metric))}:
        panels.append(partial(_draw_course, course=course))
    panels += [partial(_draw_bars, variable=variable, scores=scores)
               for variable, scores in probe_scores(curves).items()]
    count = len(panels)
    if not count:
        return None
    columns = 2 if count == 4 else min(3, count)
    rows = math.ceil(count / columns)
    figure = new_figure(max(3.5 * columns, 4.6), 2.8 * rows + 0.1)
    for i, draw in enumerate(panels):
        draw(figure.add_subplot(rows, columns, i + 1))
    return figure


def draw_run(run: str | Path) -> Path | None:
    """Write state.png into a run folder; None if the run has logged nothing of the kind."""
    with mpl.rc_context(SETTINGS):
        figure = draw_state(read_curves(run))
        return None if figure is None else save_png(figure, Path(run) / "state.png")


def step_scores(curves: Mapping[str, Series], metric: str) -> dict[int, float]:
    """{first step: last value} of a metric that is also measured in the course of an episode."""
    found = {name.removeprefix(metric + STEP): float(values[-1]) for name, (_, values) in curves.items()
             if name.startswith(metric + STEP)}
    return {int(step): found[step] for step in sorted(found, key=int)}


def probe_scores(curves: Mapping[str, Series]) -> dict[str, dict[str, tuple[float, float]]]:
    """{variable: {representation: (last score, last standard error or 0)}}; "" where the names hold no variable."""
    found: dict[str, dict[str, tuple[float, float]]] = {}
    for name, (_, values) in curves.items():
        family, *variable, representation = name.split("/")
        if family == "probe" and len(variable) <= 1 and representation in (*BARS, CHANCE):
            _, errors = curves.get(name + ERROR, (None, (0.0,)))
            found.setdefault("".join(variable), {})[representation] = float(values[-1]), float(errors[-1])
    return {variable: scores for variable, scores in found.items() if scores.keys() - {CHANCE}}


def _draw_lines(axes: Axes, panel: Panel, curves: Mapping[str, Series]) -> None:
    lines = [line for line in panel.lines if line.metric in curves]
    if panel.level is not None:
        axes.axhline(panel.level, color=MUTED, linewidth=0.8)
    draw_panel(axes, {line.metric: Curve(*thinned(curves[line.metric])) for line in lines},
               {line.metric: line.style for line in lines}, panel.label)
    _set_title(axes, panel.title)
    names = {line.name: line.style for line in reversed(lines)}  # one entry for a name drawn in two ways: the first
    dashed = any(line.metric.endswith("_moa") for line in lines)
    handles = [_handle(style) for style in reversed(names.values())]
    labels = list(reversed(names))
    if dashed and not all(line.metric.endswith("_moa") for line in lines):
        handles.append(_handle(Style(MUTED, (5, 2))))
        labels.append("others predicted")
    _add_legend(axes, handles, labels)


def _draw_course(axes: Axes, course: Mapping[Line, Mapping[int, float]]) -> None:
    axes.axhline(0, color=MUTED, linewidth=0.8)
    for line, scores in course.items():
        axes.plot(list(scores), list(scores.values()), color=line.style.colour, linewidth=1.7, marker="o", markersize=4,
                  clip_on=False)
    steps = sorted({step for scores in course.values() for step in scores})
    axes.set_xscale("log", base=2)
    axes.set_xticks(steps, [str(step) for step in steps])
    axes.minorticks_off()
    axes.set(xlabel="steps into the episode, from", ylabel="score at the end of training")
    axes.locator_params(axis="y", nbins=5)
    _set_title(axes, "Others' actions: within an episode")
    _add_legend(axes, [_handle(line.style) for line in course], [line.name for line in course])
    tidy_axes(axes)


def _set_title(axes: Axes, title: str) -> None:
    axes.set_title(title, loc="left", fontsize=9.5, color=INK, pad=20)


def _add_legend(axes: Axes, handles: list[Line2D], labels: list[str]) -> None:
    axes.legend(handles, labels, loc="lower left", bbox_to_anchor=(0, 1), ncols=len(labels), frameon=False,
                labelcolor=INK, fontsize=8, handlelength=1.9, handletextpad=0.4, columnspacing=0.9, borderaxespad=0.1,
                borderpad=0.1)


def thinned(series: Series) -> Series:
    """Means of at most `POINTS` runs of equal length of the curve's points: more would be a band of noise."""
    frames, values = series
    if len(frames) <= POINTS:
        return series
    parts = [np.array_split(part, POINTS) for part in (frames, values)]
    return tuple(np.array([part.mean() for part in group]) for group in parts)


def _handle(style: Style) -> Line2D:
    handle = Line2D([], [], color=style.colour, linewidth=1.9)
    if style.dash:
        handle.set_dashes([min(part, 2.6) for part in style.dash])  # so that two of them fit into a legend
    return handle


def _draw_bars(axes: Axes, variable: str, scores: Mapping[str, tuple[float, float]]) -> None:
    shown = [name for name in BARS if name in scores]
    values, errors = zip(*(scores[name] for name in shown), strict=True)
    axes.bar(range(len(shown)), values, width=0.62, color=[BARS[name][1] for name in shown])
    axes.errorbar(range(len(shown)), values, yerr=errors, fmt="none", ecolor=INK, elinewidth=1.0, capsize=2.5)
    for x, (value, error) in enumerate(zip(values, errors, strict=True)):
        axes.annotate(f"{value:.2f}", (x, max(value, 0) + error), (0, 3), textcoords="offset points", ha="center",
                      color=INK, fontsize=8)
    if CHANCE in scores:
        axes.axhline(scores[CHANCE][0], color=MUTED, linewidth=1.0, dashes=(5, 2))
        axes.annotate("chance", (1, scores[CHANCE][0]), (0, 3), xycoords=("axes fraction", "data"),
                      textcoords="offset points", ha="right", color=MUTED, fontsize=8)
    axes.set_xticks(range(len(shown)), [BARS[name][0] for name in shown])
    axes.text(0, 1.03, "of representations, on unseen episodes", transform=axes.transAxes, color=MUTED, fontsize=8)
    axes.set(ylabel="accuracy or R\u00b2", xlim=(-0.6, len(shown) - 0.4 + 0.6 * (CHANCE in scores)),
             ylim=(min(0.0, *values), max(1.0, *values) * 1.08))
    _set_title(axes, f"Probe: {VARIABLES.get(variable, variable)}" if variable else "Probe")
    tidy_axes(axes)
