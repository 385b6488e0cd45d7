"""Pictures of the particle world: agents as discs with their motion, landmarks as targets, lidar rays that hit."""

from __future__ import annotations

import colorsys

import numpy as np
from torch import Tensor

from envs.particle_tasks import ClimbingSpread, Navigation, ParticleTask
from envs.rendering import Canvas, Color, Point, frame_size, shaded, tinted

BLUE: Color = (0.24, 0.47, 0.75)
GREY: Color = (0.36, 0.38, 0.42)
GRID: Color = (0.93, 0.93, 0.92)
# told apart by people with any kind of colour vision (Okabe and Ito), as far as they reach
PALETTE: list[Color] = [(0.00, 0.45, 0.70), (0.90, 0.62, 0.00), (0.00, 0.62, 0.45), (0.80, 0.40, 0.65),
                        (0.34, 0.71, 0.91), (0.84, 0.37, 0.00)]
PRICES: list[Color] = [(0.30, 0.60, 0.38), (0.88, 0.66, 0.20), (0.80, 0.30, 0.25)]  # climbing: safe, dear, dearest
TAIL = 0.25  # seconds of motion that an agent's tail shows


def draw_particles(task: ParticleTask, places: Tensor, velocity: Tensor, size: tuple[int, int] | None, *,
                   lidar: bool) -> np.ndarray:
    """Picture of one environment, uint8 [H, W, 3]; places [E, 2, 1], velocity [A, 2, 1].

    The view is the square [-1.2, 1.2]², larger where an agent or landmark is outside.
    """
    points: list[Point] = [tuple(point) for point in places[..., 0].tolist()]
    motion = velocity[..., 0].tolist()
    agents, landmarks = points[: task.n_agents], points[task.n_agents:]
    half = max(1.2, max(abs(c) for point in points for c in point) + 1.5 * task.radius)
    canvas = Canvas(frame_size(size, (half, half)), (0.0, 0.0), (half, half))
    _draw_grid(canvas, half)
    own_goals = isinstance(task, Navigation)
    colors = [_color(k) if own_goals else BLUE for k in range(task.n_agents)]
    if own_goals:
        for start, end, color in zip(agents, landmarks, colors, strict=True):
            canvas.line(start, end, tinted(color, 0.75), 1)
    targets = colors if own_goals else PRICES if isinstance(task, ClimbingSpread) else [GREY] * task.n_landmarks
    for center, color in zip(landmarks, targets, strict=True):
        _draw_target(canvas, center, task.landmark_radius, color)
    if lidar and own_goals and task.lidar is not None:
        _draw_rays(canvas, task, places, agents)
    for center, speed, color in zip(agents, motion, colors, strict=True):
        tail = tuple(c - TAIL * v for c, v in zip(center, speed, strict=True))
        canvas.line(tail, center, tinted(color, 0.55), 5)
    for center, color in zip(agents, colors, strict=True):
        canvas.disc(center, task.radius, color, shaded(color), 1.5)
        canvas.disc(center, 0.3 * task.radius, tinted(color, 0.6))
    return canvas.frame()


def _draw_grid(canvas: Canvas, half: float) -> None:
    lines = [k / 2 for k in range(-int(2 * half), int(2 * half) + 1)]
    for at in lines:
        canvas.line((at, -half), (at, half), GRID, 1)
        canvas.line((-half, at), (half, at), GRID, 1)
    canvas.polygon([(-1, -1), (1, -1), (1, 1), (-1, 1)], None, shaded(GRID, 0.15), 1)


def _draw_target(canvas: Canvas, center: Point, radius: float, color: Color) -> None:
    canvas.disc(center, 1.9 * radius, tinted(color, 0.82))
    canvas.disc(center, radius, tinted(color, 0.3), color, 1.5)


def _draw_rays(canvas: Canvas, task: Navigation, places: Tensor, agents: list[Point]) -> None:
    nearness = task.lidar.measure(task._offsets(places))[..., 0]  # [A, R]
    reach = task.lidar.reach
    directions = list(zip(task.lidar.cos[:, 0].tolist(), task.lidar.sin[:, 0].tolist(), strict=True))
    for (x, y), row in zip(agents, nearness.tolist(), strict=True):
        for (cos, sin), near in zip(directions, row, strict=True):
            if near > 0:
                end = (x + (reach - near) * cos, y + (reach - near) * sin)
                canvas.line((x, y), end, (0.90, 0.45, 0.35), 1)
                canvas.disc(end, 0.012, (0.85, 0.25, 0.15))


def _color(k: int) -> Color:
    return PALETTE[k] if k < len(PALETTE) else colorsys.hsv_to_rgb(0.618 * k % 1.0, 0.55, 0.75)
