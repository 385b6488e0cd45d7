"""Pictures of boards in software: `GridCanvas` draws cells, circles, labels and headings by (row, column)."""

from __future__ import annotations

from functools import lru_cache

from PIL import ImageFont

from envs.rendering import SUPERSAMPLE, Canvas, Color, Point, frame_size, shaded

Cell = tuple[float, float]

# fills that stay apart from each other, also for the colour-blind (Okabe and Ito), for agents in order
AGENT_COLORS: tuple[Color, ...] = (
    (0.00, 0.45, 0.70), (0.84, 0.37, 0.00), (0.00, 0.62, 0.45), (0.80, 0.47, 0.65), (0.34, 0.71, 0.91),
    (0.90, 0.62, 0.00), (0.55, 0.45, 0.35), (0.35, 0.35, 0.65))
BOARD: Color = (1.0, 1.0, 1.0)
LINES: Color = (0.87, 0.87, 0.85)
DARK, LIGHT = (0.15, 0.15, 0.17), (1.0, 1.0, 1.0)
MARGIN = 0.25  # cells around the board
HEADINGS = {"up": (0.0, 1.0), "down": (0.0, -1.0), "left": (-1.0, 0.0), "right": (1.0, 0.0)}


class GridCanvas(Canvas):
    """A board of ``rows`` by ``cols`` unit cells; row 0 is at the top, and (row, column) is the middle of a cell.

    Lengths are in cells, line widths in pixels, colours red, green, blue in [0, 1]. What is drawn later lies above.
    `Canvas.frame` returns the picture; the methods of `Canvas` take points of `point`.

    Args:
        rows, cols: at least 1. ``size``: (H, W) of the picture in pixels; None takes 512 on the longer side.
        board, lines: colour of the cells and of the lines between them.
    """

    def __init__(self, rows: int, cols: int, size: tuple[int, int] | None = None, board: Color = BOARD,
                 lines: Color = LINES):
        half = (cols / 2 + MARGIN, rows / 2 + MARGIN)
        super().__init__(frame_size(size, half), (cols / 2, -rows / 2), half)
        self.rows, self.cols = rows, cols
        corners = [(0, 0), (cols, 0), (cols, -rows), (0, -rows)]
        self.polygon(corners, board)
        for row in range(1, rows):
            self.line((0, -row), (cols, -row), lines, 1)
        for col in range(1, cols):
            self.line((col, 0), (col, -rows), lines, 1)
        self.polygon(corners, None, shaded(lines, 0.3), 1.5)

    @staticmethod
    def point(cell: Cell) -> Point:
        """The middle of a cell (row, column) in the coordinates of `Canvas`; fractions lie between cells."""
        return cell[1] + 0.5, -(cell[0] + 0.5)

    def cell(self, at: Cell, fill: Color | None, outline: Color | None = None, inset: float = 0.0) -> None:
        """Fill a cell, or a square in it that leaves ``inset`` cells free on each side."""
        side = 1 - 2 * inset
        self.box(self.point(at), side, side, 0.0, fill, outline)

    def area(self, top_left: Cell, bottom_right: Cell, fill: Color | None, outline: Color | None = None) -> None:
        """Fill the rectangle of cells between two corner cells, both included."""
        (top, left), (bottom, right) = top_left, bottom_right
        self.polygon([(left, -top), (right + 1, -top), (right + 1, -bottom - 1), (left, -bottom - 1)], fill, outline)

    def circle(self, at: Cell, fill: Color | None, outline: Color | None = None, radius: float = 0.36,
               offset: Point = (0.0, 0.0)) -> None:
        """Circle in a cell, moved by ``offset`` (right, up) in cells."""
        x, y = self.point(at)
        self.disc((x + offset[0], y + offset[1]), radius, fill, outline)

    def label(self, at: Cell, text: str, color: Color = DARK, height: float = 0.42,
              offset: Point = (0.0, 0.0)) -> None:
        """Text centred in a cell, ``height`` the size of its letters in cells; nothing if it would be unreadable."""
        pixels = round(height * self.scale)
        if pixels < 5 * SUPERSAMPLE:
            return
        x, y = self.point(at)
        ink = tuple(round(255 * c) for c in color)
        self.draw.text(self._at((x + offset[0], y + offset[1])), text, fill=ink, font=_font(pixels), anchor="mm")

    def heading(self, at: Cell, direction: str, color: Color = LIGHT, length: float = 0.36,
                width: float = 3.0) -> None:
        """Tick from the middle of a cell towards "up", "down", "left" or "right" (ValueError otherwise)."""
        if direction not in HEADINGS:
            raise ValueError(f"direction must be one of {list(HEADINGS)}, got {direction!r}")
        x, y = self.point(at)
        dx, dy = HEADINGS[direction]
        self.line((x, y), (x + length * dx, y + length * dy), color, width)


@lru_cache(maxsize=16)
def _font(pixels: int) -> ImageFont.FreeTypeFont:
    return ImageFont.load_default(pixels)


def agent_color(index: int) -> Color:
    """Colour of the agent with this index; repeats after `AGENT_COLORS`."""
    return AGENT_COLORS[index % len(AGENT_COLORS)]


def spread(count: int) -> list[Point]:
    """Offsets for ``count`` things that share a cell: the middle for one, a small ring for more (up to four apart)."""
    ring = [(-0.17, 0.17), (0.17, -0.17), (0.17, 0.17), (-0.17, -0.17)]
    return [(0.0, 0.0)] if count == 1 else [ring[k % 4] for k in range(count)]
