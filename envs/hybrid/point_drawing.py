"""Pictures of tasks with one body and one target in the plane."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from envs.particle_drawing import BLUE, GRID, TAIL
from envs.rendering import Canvas, Color, Point, frame_size, shaded, tinted

GOLD: Color = (0.88, 0.66, 0.20)
RED: Color = (0.80, 0.25, 0.20)
BODY = 0.05  # radius of the body that is drawn; in the rules it is a point


def draw_point(position: Sequence[float], target: Sequence[float], reach: float, size: tuple[int, int] | None = None, *,
               motion: Sequence[float] = (0.0, 0.0), tail: float = TAIL, heading: float | None = None,
               dots: tuple[int, int] | None = None, fenced: bool = False) -> np.ndarray:
    """Picture of one episode, uint8 [H, W, 3]: a body at ``position`` with a tail of its motion, and its target.

    The view is the square [-1.2, 1.2]², larger where body or target is outside.

    Args:
        reach: radius of the target. ``motion``: velocity; the tail shows ``tail`` seconds of it.
        heading: direction of the body's nose [rad], None for none.
        dots: (how many, of how many) are filled in the row of dots at the top. ``fenced``: [-1, 1]² ends in a wall.
    """
    x, y = position
    half = max(1.2, *(abs(c) + 0.1 for c in (*position, *target)))
    canvas = Canvas(frame_size(size, (half, half)), (0.0, 0.0), (half, half))
    _draw_ground(canvas, half, fenced)
    center = tuple(target)
    canvas.disc(center, reach, tinted(GOLD, 0.65), GOLD)
    canvas.disc(center, 0.012 * half, shaded(GOLD))
    canvas.line((x - tail * motion[0], y - tail * motion[1]), (x, y), tinted(BLUE, 0.55), 5)
    if heading is None:
        canvas.disc((x, y), BODY, BLUE, shaded(BLUE))
    else:
        corners = [_around((x, y), heading + turn, BODY * far) for turn, far in ((0.0, 1.5), (2.5, 1.2), (-2.5, 1.2))]
        canvas.polygon(corners, BLUE, shaded(BLUE))
    if dots is not None:
        _draw_dots(canvas, half, *dots)
    return canvas.frame()


def _draw_ground(canvas: Canvas, half: float, fenced: bool) -> None:
    for k in range(-int(2 * half), int(2 * half) + 1):
        canvas.line((k / 2, -half), (k / 2, half), GRID, 1)
        canvas.line((-half, k / 2), (half, k / 2), GRID, 1)
    color, width = (RED, 2) if fenced else (shaded(GRID, 0.15), 1)
    canvas.polygon([(-1, -1), (1, -1), (1, 1), (-1, 1)], None, color, width)


def _draw_dots(canvas: Canvas, half: float, filled: int, count: int) -> None:
    for k in range(count):
        at = ((k - (count - 1) / 2) * 0.06 * half, 0.93 * half)
        canvas.disc(at, 0.02 * half, RED if k < filled else None, shaded(GRID, 0.3), 1)


def _around(center: Point, angle: float, far: float) -> Point:
    return center[0] + far * math.cos(angle), center[1] + far * math.sin(angle)
