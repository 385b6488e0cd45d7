"""Pictures of boards: things are in their cells."""

import numpy as np
import pytest

from envs.grid_rendering import AGENT_COLORS, BOARD, DARK, GridCanvas, agent_color, spread

RED, BLUE = (1.0, 0.0, 0.0), (0.0, 0.0, 1.0)


def pixel(frame, canvas, cell):
    """Colour in the middle of a cell, in [0, 1]."""
    x, y = canvas._at(canvas.point(cell))
    return (frame[int(y) // 2, int(x) // 2] / 255).round(2).tolist()


def test_cells_are_where_they_should_be():
    canvas = GridCanvas(3, 5)
    canvas.cell((0, 4), RED)
    canvas.circle((2, 0), BLUE)
    canvas.area((1, 1), (1, 2), DARK)
    frame = canvas.frame()
    assert frame.dtype == np.uint8 and frame.shape[1] == 512 and frame.shape[0] < 400
    assert pixel(frame, canvas, (0, 4)) == list(RED) and pixel(frame, canvas, (2, 0)) == list(BLUE)
    assert pixel(frame, canvas, (1, 1)) == pixel(frame, canvas, (1, 2)) == list(DARK)
    for cell in ((0, 0), (1, 0), (1, 3), (2, 4), (0, 3)):
        assert pixel(frame, canvas, cell) == list(BOARD)


@pytest.mark.parametrize(("direction", "row", "col"), [("up", -0.2, 0), ("down", 0.2, 0), ("left", 0, -0.2),
                                                       ("right", 0, 0.2)])
def test_headings_point_the_right_way(direction, row, col):
    canvas = GridCanvas(3, 3)
    canvas.heading((1, 1), direction, RED)
    frame = canvas.frame()
    assert pixel(frame, canvas, (1 + row, 1 + col)) == list(RED)
    assert pixel(frame, canvas, (1 - row, 1 - col)) == list(BOARD)


def test_unknown_heading():
    with pytest.raises(ValueError, match=r"'up'.*north"):
        GridCanvas(2, 2).heading((0, 0), "north")


def test_labels_are_centred_and_left_out_where_too_small():
    canvas, empty = GridCanvas(2, 2), GridCanvas(2, 2)
    canvas.label((0, 1), "8")
    rows, cols = np.nonzero((canvas.frame() != empty.frame()).any(-1))
    x, y = (coordinate / 2 for coordinate in canvas._at(canvas.point((0, 1))))
    assert abs(rows.mean() - y) < 4 and abs(cols.mean() - x) < 4
    small, blank = GridCanvas(40, 40, (64, 64)), GridCanvas(40, 40, (64, 64))
    small.label((3, 3), "8")
    assert np.array_equal(small.frame(), blank.frame())


def test_size_and_colors():
    assert GridCanvas(4, 9, (60, 80)).frame().shape == (60, 80, 3)
    assert agent_color(0) == agent_color(len(AGENT_COLORS)) and len(set(AGENT_COLORS)) == len(AGENT_COLORS)
    assert spread(1) == [(0.0, 0.0)] and len(set(spread(4))) == 4 and len(spread(6)) == 6
