"""Floor plans of the robot warehouse."""

import pytest

from envs.warehouse_layout import SIZES, Layout, from_sizes, from_text

TINY = """
    ..........
    .xx.xx.xx.
    .xx.xx.xx.
    ..........
    .xx....xx.
    .xx....xx.
    ..........
    ....gg....
"""


def test_from_sizes():
    assert from_sizes(2, 3, 2) == from_text(TINY)


@pytest.mark.parametrize(("size", "rows", "cols", "shelves"), [
    ("tiny", 11, 10, 32), ("small", 20, 10, 80), ("medium", 20, 16, 144), ("large", 29, 16, 224)])
def test_sizes(size, rows, cols, shelves):
    layout = from_sizes(*SIZES[size])
    assert (layout.rows, layout.cols, len(layout.shelves)) == (rows, cols, shelves)
    assert layout.goals == [(rows - 1, cols // 2 - 1), (rows - 1, cols // 2)]


def test_text_is_forgiving():
    layout = from_text("\n  X . G \n  . x .\n\n")
    assert layout.lines == ("x.g", ".x.") and (layout.rows, layout.cols) == (2, 3)
    assert layout.shelves == [(0, 0), (1, 1)] and layout.goals == [(0, 2)]
    assert [layout.is_highway(0, col) for col in range(3)] == [False, True, True]


@pytest.mark.parametrize(("text", "match"), [
    ("x.g\nx.", r"equally long, got lengths \[2, 3\]"),
    ("x.g\nx#?", r"written with 'x' .*'\.' .*'g' .*got \['#', '\?'\]"),
    ("xx.\n...", "at least one goal 'g', got none"),
    ("", "at least one goal"),
])
def test_bad_texts(text, match):
    with pytest.raises(ValueError, match=match):
        from_text(text)


@pytest.mark.parametrize(("sizes", "match"), [
    ((1, 2), "shelf_columns must be odd, .*got 2"),
    ((0, 3), "shelf_rows must be a positive integer, got 0"),
    ((1, 3, 0), "column_height must be a positive integer, got 0"),
    ((1.5, 3), "shelf_rows must be a positive integer, got 1.5"),
])
def test_bad_sizes(sizes, match):
    with pytest.raises(ValueError, match=match):
        from_sizes(*sizes)


def test_no_lines():
    with pytest.raises(ValueError, match="at least one goal"):
        Layout(())
