"""The picture of a run's state modelling: which panels, which lines, which bars, read from the run's own files."""

import matplotlib as mpl
import numpy as np
import pytest

from suite import state_figures as sf

MOA = {"moa/ce": [1.6, 1.5], "moa/ce_marginal": [1.61, 1.61], "moa/ce_floor": [1.42, 1.43]}
SKILLS = {"wm/obs_skill_1": [0.0, 0.9], "wm/obs_skill_3_true": [0.0, 0.8], "wm/obs_skill_3_moa": [0.0, 0.7]}
PROBES = {"probe/goal/z": [0.5, 0.77], "probe/goal/u": [0.6, 0.61], "probe/goal/z_error": [0.1, 0.02],
          "probe/goal/chance": [0.25, 0.25]}


def curves(**metrics):
    return {name: (np.array([0.0, 1e6]), np.array(values)) for name, values in metrics.items()}


def write(run, metrics):
    for name, values in metrics.items():
        file = run / "metrics" / "scalars" / f"{name}.csv"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text("".join(f"{100 * i},{value}\n" for i, value in enumerate(values)))


def titles(figure):
    return [axes.get_title(loc="left") for axes in figure.axes]


def test_curves_are_read_in_order_and_without_what_is_no_number(tmp_path):
    write(tmp_path, {"moa/ce": [1.5, "nan", 1.25], "eval/return": [3.0], "moa/nll": ["nan"]})
    (tmp_path / "metrics/scalars/moa/acc.csv").write_text("200,0.5\n100,0.25\n300")  # the last row was cut off
    found = sf.read_curves(tmp_path)
    assert {name: (x.tolist(), y.tolist()) for name, (x, y) in found.items()} == {
        "eval/return": ([0], [3]), "moa/acc": ([100, 200], [0.25, 0.5]), "moa/ce": ([0, 200], [1.5, 1.25])}
    assert sf.read_curves(tmp_path / "none") == {}


@pytest.mark.parametrize(("metrics", "expected"), [
    ({}, None), ({"eval/return": [0, 1]}, None), ({"probe/chance": [0.2, 0.2]}, None),
    (MOA, ["Others' actions: cross-entropy"]),
    ({"wm/gain_joint": [0, 0.1], "cvae/kl": [3, 2]}, ["World model: gain from others' actions", "Latent: KL"]),
    (MOA | SKILLS | PROBES, ["Others' actions: cross-entropy", "World model: skill at k steps", "Probe: goal"]),
    ({"probe/z": [0.1, 0.2]}, ["Probe"])])
def test_panels_without_data_are_left_out(metrics, expected):
    figure = sf.draw_state(curves(**metrics))
    assert (None if figure is None else titles(figure)) == expected


def test_every_metric_of_a_panel_has_its_line_and_every_line_a_name():
    (axes,) = sf.draw_state(curves(**MOA)).axes
    assert [line.get_ydata().tolist() for line in axes.lines] == list(MOA.values())
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["model", "marginal", "floor"]
    assert len({(line.get_color(), line.get_linestyle()) for line in axes.lines}) == 3
    (without,) = sf.draw_state(curves(**{"moa/ce": MOA["moa/ce"]})).axes
    assert [text.get_text() for text in without.get_legend().get_texts()] == ["model"]


def test_horizons_have_colours_and_predicted_others_are_dashed():
    (axes,) = sf.draw_state(curves(**SKILLS)).axes
    zero, one, true, predicted = axes.lines
    assert list(zero.get_ydata()) == [0, 0]
    assert true.get_color() == predicted.get_color() != one.get_color()
    assert not true.is_dashed() and predicted.is_dashed()
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["1", "3", "others predicted"]


def test_the_course_of_an_episode_is_drawn_from_the_last_values_in_order_of_steps():
    found = curves(**{"moa/acc_step_16": [0.1, 0.9], "moa/acc_step_2": [0.1, 0.5], "moa/acc": [0.1, 0.7]})
    assert sf.step_scores(found, "moa/acc") == {2: 0.5, 16: 0.9} and sf.step_scores(found, "moa/skill") == {}
    _, course = sf.draw_state(found).axes
    assert titles(course.figure) == ["Others' actions: accuracy", "Others' actions: within an episode"]
    assert [label.get_text() for label in course.get_xticklabels()] == ["2", "16"]
    _, line = course.lines
    assert (line.get_xdata().tolist(), line.get_ydata().tolist()) == ([2, 16], [0.5, 0.9])
    assert [text.get_text() for text in course.get_legend().get_texts()] == ["accuracy"]


def test_probes_of_others_are_named_in_words():
    assert titles(sf.draw_state(curves(**{"probe/others_action/z": [0.1, 0.2]}))) == ["Probe: what others do"]


def test_probes_by_hand():
    found = sf.probe_scores(curves(**PROBES, **{"probe/z": [0.1, 0.2]}))
    assert found == {"goal": {"z": (0.77, 0.02), "u": (0.61, 0.0), "chance": (0.25, 0.0)}, "": {"z": (0.2, 0.0)}}
    (axes,) = sf.draw_state(curves(**PROBES)).axes
    assert [bar.get_height() for bar in axes.patches] == [0.61, 0.77]
    assert {"0.61", "0.77", "chance"} <= {text.get_text() for text in axes.texts}
    assert [label.get_text() for label in axes.get_xticklabels()] == ["present", "latent"]
    (below,) = sf.draw_state(curves(**{"probe/position/z": [0.0, -0.4]})).axes
    assert below.get_ylim()[0] == -0.4


def test_every_panel_can_be_drawn():
    names = {line.metric for panel in sf.PANELS for line in panel.lines}
    figure = sf.draw_state(curves(**{name: [0.0, 1.0] for name in names}))
    assert titles(figure) == [panel.title for panel in sf.PANELS]
    for panel in sf.PANELS:
        assert len({line.metric for line in panel.lines}) == len(panel.lines)


def test_a_run_gets_its_picture_and_nothing_else_changes(tmp_path):
    write(tmp_path, MOA | SKILLS | PROBES)
    before = dict(mpl.rcParams)
    path = sf.draw_run(tmp_path)
    first = path.read_bytes()
    assert path == tmp_path / "state.png" and first[:4] == b"\x89PNG"
    assert sf.draw_run(tmp_path).read_bytes() == first and dict(mpl.rcParams) == before
    write(tmp_path / "other", {"eval/return": [1.0]})
    assert sf.draw_run(tmp_path / "other") is None


def test_a_curve_of_many_points_is_drawn_by_means():
    """300 points in 150 pairs; what has no more points than that stays as it is."""
    frames, values = np.arange(300.0), np.tile([0.0, 1.0], 150)
    x, y = sf.thinned((frames, values))
    np.testing.assert_array_equal(x, np.arange(0.5, 300, 2))
    np.testing.assert_array_equal(y, np.full(150, 0.5))
    few = frames[:150], values[:150]
    assert sf.thinned(few) is few


def test_the_codec_has_panels_of_its_own():
    figure = sf.draw_state(curves(**{"codec/param_error": [0.1, 0.05], "codec/keep_params": [1.0, 0.98]}))
    assert [axes.get_title("left") for axes in figure.axes] == ["Codec: reconstruction error",
                                                                "Codec: kept in relabelling"]
