"""Curves and profiles: what is drawn, by hand, and that drawing leaves nothing behind."""

import json

import matplotlib as mpl
import numpy as np
import pytest

from suite import figures, report
from suite.results import Cell, Evaluation, append_rows, read_results


def cell(*series):
    """Runs given as [(frames, return), ...] per seed."""
    runs = {seed: [Evaluation(seed, frames, 0.0, float(value), 0.0, 1, 1.0, "c") for frames, value in points]
            for seed, points in enumerate(series)}
    return Cell(runs, "sampled", 100)


def contrast(colour, ground):
    """WCAG contrast ratio."""
    def luminance(text):
        c = np.array(mpl.colors.to_rgb(text))
        return np.where(c <= 0.04045, c / 12.92, ((c + 0.055) / 1.055) ** 2.4) @ [0.2126, 0.7152, 0.0722]
    low, high = sorted([luminance(colour), luminance(ground)])
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize("ground", ["#ffffff", "#fbfbf9", "#14171b", "#1b1f24"])
def test_colours_are_readable_on_both_pages(ground):
    assert all(contrast(colour, ground) >= 3 for colour in figures.COLOURS)


def test_styles_differ():
    styles = figures.make_styles([f"r{i}" for i in range(20)])
    assert len(set(styles.values())) == 20 and styles["r0"].dash == ()


def test_rows_of_one_table_differ_however_many_tables_there_are():
    """Thirty tables of five rows, one of which is in all: 121 rows, of 24 styles."""
    tables = [["all", *(f"{k}-{i}" for i in range(4))] for k in range(30)]
    styles = figures.make_styles(*tables)
    assert all(len({styles[row] for row in rows}) == 5 for rows in tables) and len(styles) == 121
    assert {style.dash for style in styles.values()} == {()}  # colours are enough


def test_learning_curve_by_hand():
    curve = figures.learning_curve(cell([(0, 0), (10, 4)], [(0, 2), (5, 2), (10, 2)]))
    np.testing.assert_allclose(curve.x, [0, 5, 10])
    np.testing.assert_allclose(curve.centre, [1, 2, 3])        # the first seed passes 2 at frame 5
    np.testing.assert_allclose(curve.low, [0, 2, 2])
    np.testing.assert_allclose(curve.high, [2, 2, 4])
    assert curve.tails == ()


def test_learning_curve_ends_where_the_first_seed_ends():
    curve = figures.learning_curve(cell([(0, 0), (10, 1), (20, 2)], [(0, 0), (10, 3)]))
    np.testing.assert_allclose(curve.x, [0, 10])
    ((x, y),) = curve.tails
    np.testing.assert_allclose(x, [10, 20])
    np.testing.assert_allclose(y, [1, 2])


def test_learning_curves_without_common_frames_or_with_one_seed():
    apart = figures.learning_curve(cell([(0, 0), (10, 1)], [(20, 0), (30, 3)]))
    assert len(apart.x) == 0 and len(apart.tails) == 2
    assert figures.learning_curve(cell([(0, 0), (10, 1)])).low is None


def test_profile_is_rliables_score_distribution():
    from rliable import library
    scores = np.random.default_rng(0).uniform(size=(5, 3))
    curve = figures.profile_curve(list(scores.T))
    np.testing.assert_allclose(curve.centre, library.score_distributions(scores, figures.TAUS))
    assert (curve.low <= curve.centre).all() and (curve.centre <= curve.high).all()


@pytest.mark.parametrize(("most", "unit"), [(500, "frames"), (5e4, "frames (thousands)"), (3e7, "frames (millions)")])
def test_frame_unit(most, unit):
    assert figures.frame_unit(most)[1] == unit


@pytest.mark.parametrize("tasks", [1, 2, 4, 5])
def test_one_panel_per_task_and_one_legend(tasks):
    curves = {f"t/{i}": {"x": figures.learning_curve(cell([(0, 0), (10, 4)], [(0, 2), (10, 2)]))} for i in range(tasks)}
    figure = figures.draw_curves(curves, figures.make_styles(["x"]), dict.fromkeys(curves, "return"))
    assert [axes.get_title(loc="left") for axes in figure.axes] == list(curves) and len(figure.legends) == 1


@pytest.fixture
def summaries(tmp_path, monkeypatch):
    """Two tables that share the row 'y'."""
    monkeypatch.setattr(report, "REPS", 50)
    info = {"title": "T", "command": "c", "hardware": "CPU", "mode": "sampled", "frames": 10}
    for table, rows in {"a": ("x", "y"), "b": ("y", "z")}.items():
        for row in rows:
            for task in ("t/a", "t/b"):
                lines = [Evaluation(s, f, 0.0, s + f, 0.0, 1, 1.0, "c") for s in range(3) for f in (0, 10)]
                append_rows(tmp_path, table, row, task, lines)
        (tmp_path / table / "table.json").write_text(json.dumps(info))
    return [report.summarise(table) for table in read_results(tmp_path)]


def test_a_row_has_one_style_in_every_table(summaries):
    first, second = figures.draw(summaries)
    assert list(first.styles) == ["x", "y"] and list(second.styles) == ["y", "z"]
    assert first.styles["y"] == second.styles["y"]
    assert len(set(first.styles.values())) == len(set(second.styles.values())) == 2  # x and z never meet


def test_drawing_changes_no_global_setting_and_opens_no_figure(summaries):
    import matplotlib.pyplot as plt
    before = dict(mpl.rcParams)
    figures.draw(summaries)
    assert dict(mpl.rcParams) == before and plt.get_fignums() == []


def test_svg_takes_its_colours_from_the_page(summaries):
    drawing = figures.draw(summaries)[0]
    for text in (*drawing.curves.values(), drawing.profile):
        assert text.startswith('<svg role="img" aria-label="') and text.endswith("</svg>")
        assert "var(--ink)" in text or "var(--muted)" in text
        assert not any(colour in text for colour in figures.THEME) and "<metadata" not in text and "#ffffff" not in text
    assert [path.read_bytes()[:4] for path in drawing.paths] == [b"\x89PNG"] * 2
