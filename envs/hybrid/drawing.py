"""Pictures of Platform and Goal."""

from __future__ import annotations

import math

import numpy as np

from envs.hybrid import goal_rules, platform_rules
from envs.hybrid.goal_rules import Goal
from envs.hybrid.platform_rules import Platform
from envs.particle_drawing import BLUE
from envs.rendering import Canvas, Color, Point, frame_size, shaded

SKY: Color = (0.78, 0.88, 0.95)
HILLS: tuple[Color, ...] = ((0.70, 0.82, 0.86), (0.62, 0.77, 0.74))
EARTH, GRASS, WATER = (0.55, 0.40, 0.28), (0.38, 0.62, 0.30), (0.36, 0.60, 0.78)
RED, ORANGE, WHITE, INK, GOLD = (0.80, 0.25, 0.20), (0.93, 0.58, 0.15), (1.0, 1.0, 1.0), (0.12, 0.12, 0.14), (
    0.95, 0.76, 0.20)
PITCH: tuple[Color, Color] = ((0.37, 0.62, 0.34), (0.41, 0.66, 0.37))
PLATFORM_SIZE, GOAL_SIZE = (200, 800), (576, 448)  # (H, W) of pictures whose size is not given


# ---------------------------------------------------------------------- Platform

def draw_platform(state: Platform, size: tuple[int, int] | None = None) -> np.ndarray:
    """Picture of one game, uint8 [H, W, 3]; the state's tensors have no rows. The whole way is in view."""
    x, y, vx, vy, *enemies = (value.item() for value in state)
    center, half = (platform_rules.LENGTH / 2, 75.0), (560.0, 140.0)
    canvas = Canvas(frame_size(size or PLATFORM_SIZE, half), center, half, SKY)
    _draw_landscape(canvas)
    for left, width in zip(platform_rules.LEFTS, platform_rules.WIDTHS, strict=True):
        top, right = platform_rules.TOP, left + width
        _rectangle(canvas, left, -300.0, right, top, EARTH)
        _rectangle(canvas, left - 3.0, top - 9.0, right + 3.0, top, GRASS)
        for k in range(int(width // 12)):
            at = left + 6.0 + 12.0 * k
            canvas.polygon([(at - 5.0, top - 9.0), (at + 5.0, top - 9.0), (at, top - 15.0 - 3 * (k % 2))], GRASS)
    end = platform_rules.LENGTH - 4.0
    canvas.line((end, platform_rules.TOP - 3), (end, platform_rules.TOP + 75), INK, 2)
    canvas.polygon([(end, platform_rules.TOP + 75), (end - 34, platform_rules.TOP + 63),
                    (end, platform_rules.TOP + 51)], GOLD, shaded(GOLD), 1)
    for enemy_x, enemy_vx in (enemies[:2], enemies[2:]):
        _draw_enemy(canvas, enemy_x, enemy_vx)
    _draw_hero(canvas, x, y, vx, vy)
    return canvas.frame()


def _draw_landscape(canvas: Canvas) -> None:
    for color, (step, height, shift) in zip(HILLS, ((260.0, 95.0, -60.0), (170.0, 50.0, 30.0)), strict=True):
        for k in range(-1, 9):
            canvas.disc((shift + k * step, -180.0 + height), 0.95 * step, color)
    canvas.disc((880.0, 185.0), 18.0, (1.0, 0.94, 0.70))
    _rectangle(canvas, -3000.0, -3000.0, 4000.0, 2.0, WATER)
    for k in range(40):
        canvas.line((-200.0 + 38.0 * k, -14.0 - 9 * (k % 3)), (-184.0 + 38.0 * k, -14.0 - 9 * (k % 3)),
                    (0.55, 0.75, 0.88), 1)


def _draw_hero(canvas: Canvas, x: float, y: float, vx: float, vy: float) -> None:
    wide, high = platform_rules.WIDE, platform_rules.HIGH
    stride = 4.0 * math.sin(x / 6.0) if vy == 0.0 else 5.0
    for side in (-1, 1):
        foot = x + wide / 2 + side * (3.0 + (stride if vx > 0 else 0.0))
        canvas.line((x + wide / 2 + 3 * side, y + 9), (foot, y + 2), shaded(BLUE, 0.5), 3.5)
    _rectangle(canvas, x + 2, y + 7, x + wide - 2, y + 19, BLUE, shaded(BLUE))
    center = (x + wide / 2 + 1, y + high - 7.5)
    canvas.disc(center, 7.5, (0.97, 0.83, 0.69), shaded((0.97, 0.83, 0.69)), 1)
    canvas.polygon([(center[0] - 7.5, center[1] + 2), (center[0] + 10, center[1] + 2), (center[0] + 6, center[1] + 6),
                    (center[0], center[1] + 7.5), (center[0] - 6, center[1] + 6)], RED)
    canvas.disc((center[0] + 4, center[1] - 1), 1.3, INK)


def _draw_enemy(canvas: Canvas, x: float, vx: float) -> None:
    wide, top, color = platform_rules.WIDE, platform_rules.TOP, (0.45, 0.25, 0.55)
    middle, look = x + wide / 2, math.copysign(2.5, vx)
    for side in (-1, 1):
        canvas.disc((middle + 5 * side, top + 2.5), 4.0, shaded(color, 0.5))
    _rectangle(canvas, x + 1, top + 3, x + wide - 1, top + 20, color, shaded(color))
    canvas.disc((middle, top + 19.5), 9.0, color, shaded(color))
    _rectangle(canvas, x + 2, top + 10, x + wide - 2, top + 19.5, color)
    for side in (-1, 1):
        eye = (middle + 4 * side + look, top + 18.0)
        canvas.disc(eye, 2.9, WHITE)
        canvas.disc((eye[0] + 0.4 * look, eye[1]), 1.4, INK)
        canvas.line((eye[0] - 3 * side, eye[1] + 2), (eye[0] + 3 * side, eye[1] + 5), INK, 1.5)


def _rectangle(canvas: Canvas, left: float, bottom: float, right: float, top: float, fill: Color | None,
               outline: Color | None = None) -> None:
    canvas.polygon([(left, bottom), (right, bottom), (right, top), (left, top)], fill, outline, 1.5)


# ---------------------------------------------------------------------- Goal

def draw_goal(state: Goal, size: tuple[int, int] | None = None) -> np.ndarray:
    """Picture of one game, uint8 [H, W, 3]; the state's tensors have no rows. The attacked half is in view."""
    places, facing = [tuple(point) for point in state.place.tolist()], state.facing.tolist()
    moving = state.velocity.tolist()
    half = (12.5, 16.3)
    canvas = Canvas(frame_size(size or GOAL_SIZE, half), (11.0, 0.0), half, shaded(PITCH[0], 0.12))
    _draw_pitch(canvas)
    for body, color in ((goal_rules.PLAYER, BLUE), (goal_rules.KEEPER, ORANGE)):
        _draw_footballer(canvas, places[body], facing[body], goal_rules.SIZES[body], color)
    (x, y), (vx, vy), radius = places[goal_rules.BALL], moving[goal_rules.BALL], goal_rules.SIZES[goal_rules.BALL]
    canvas.line((x - vx, y - vy), (x, y), (0.72, 0.84, 0.68), 4)
    canvas.disc((x + 0.08, y - 0.10), radius, shaded(PITCH[0], 0.4))
    canvas.disc((x, y), radius, WHITE, INK, 1.5)
    canvas.disc((x, y), 0.4 * radius, INK)
    return canvas.frame()


def _draw_pitch(canvas: Canvas) -> None:
    length, wide, post, deep = goal_rules.LENGTH, goal_rules.HALF_WIDTH, goal_rules.POST, goal_rules.DEPTH
    for k in range(8):
        _rectangle(canvas, k * length / 8, -wide, (k + 1) * length / 8, wide, PITCH[k % 2])
    canvas.disc((0.0, 0.0), 3.66, None, WHITE, 2)
    _rectangle(canvas, -30.0, -wide, 0.0, wide, shaded(PITCH[0], 0.12))
    _rectangle(canvas, 0.0, -wide, length, wide, None, WHITE)
    _rectangle(canvas, goal_rules.AREA[0], -goal_rules.AREA[1], length, goal_rules.AREA[1], None, WHITE)
    net = (0.80, 0.84, 0.80)
    _rectangle(canvas, length, -post, length + deep, post, shaded(PITCH[0], 0.25))
    for k in range(int(2 * post / 0.5) + 1):
        canvas.line((length, -post + 0.5 * k), (length + deep, -post + 0.5 * k), net, 0.5)
    for k in range(1, 5):
        canvas.line((length + 0.5 * k, -post), (length + 0.5 * k, post), net, 0.5)
    _rectangle(canvas, length, -post, length + deep, post, None, WHITE)
    for y in (-post, post):
        canvas.disc((length, y), 0.28, WHITE, INK, 1)


def _draw_footballer(canvas: Canvas, center: Point, angle: float, radius: float, color: Color) -> None:
    cos, sin = math.cos(angle), math.sin(angle)

    def around(ahead: float, left: float) -> Point:
        return center[0] + ahead * cos - left * sin, center[1] + ahead * sin + left * cos

    canvas.disc((center[0] + 0.10, center[1] - 0.14), radius, shaded(PITCH[0], 0.35))
    for side in (-1, 1):
        canvas.line(around(0.1, 0.75 * side * radius), around(0.7 * radius, 0.8 * side * radius), shaded(color), 4)
    canvas.disc(center, radius, color, shaded(color))
    canvas.polygon([around(1.25 * radius, 0.0), around(0.8 * radius, 0.35 * radius),
                    around(0.8 * radius, -0.35 * radius)], shaded(color))
    canvas.disc(center, 0.45 * radius, (0.97, 0.83, 0.69), shaded((0.97, 0.83, 0.69)), 1)
