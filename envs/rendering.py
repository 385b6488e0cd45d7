"""Pictures of flat worlds in software, with PIL, no window: `Canvas` draws, `draw_world` shows a VMAS world."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw

Color = tuple[float, float, float]
Point = tuple[float, float]

BACKGROUND: Color = (0.98, 0.98, 0.97)
SUPERSAMPLE = 2
LONG_SIDE = 512  # pixels of the longer side of a picture whose size is not given


class Canvas:
    """A picture of a rectangle of the plane; y points up. Colours are red, green, blue in [0, 1].

    Args:
        size: (H, W) in pixels. ``center``: point in the middle. ``half``: least half width and half height to show;
        one of them grows to fit the picture's shape, so that circles stay round.
    """

    def __init__(self, size: tuple[int, int], center: Point = (0.0, 0.0), half: Point = (1.0, 1.0),
                 background: Color = BACKGROUND):
        self.size = size
        height, width = (SUPERSAMPLE * pixels for pixels in size)
        self.scale = min(width / (2 * half[0]), height / (2 * half[1]))  # pixels of the large picture per unit
        self.origin = (width / 2 - center[0] * self.scale, height / 2 + center[1] * self.scale)
        self.image = Image.new("RGB", (width, height), _rgb(background))
        self.draw = ImageDraw.Draw(self.image)

    def _at(self, point: Point) -> Point:
        return self.origin[0] + point[0] * self.scale, self.origin[1] - point[1] * self.scale

    def disc(self, center: Point, radius: float, fill: Color | None, outline: Color | None = None,
             width: float = 1.5) -> None:
        """Circle; ``width`` of the outline in pixels of the final picture."""
        x, y = self._at(center)
        r = max(radius * self.scale, SUPERSAMPLE)
        self.draw.ellipse((x - r, y - r, x + r, y + r), fill=_rgb(fill), outline=_rgb(outline), width=_pixels(width))

    def polygon(self, points: Sequence[Point], fill: Color | None, outline: Color | None = None,
                width: float = 1.5) -> None:
        """Closed polygon; ``width`` of the outline in pixels."""
        corners = [self._at(point) for point in points]
        self.draw.polygon(corners, fill=_rgb(fill))
        if outline is not None:
            self.draw.line([*corners, corners[0], corners[1]], fill=_rgb(outline), width=_pixels(width), joint="curve")

    def box(self, center: Point, length: float, width: float, angle: float, fill: Color | None,
            outline: Color | None = None) -> None:
        """Rectangle turned by ``angle`` [rad], ``length`` along its own x axis."""
        self.polygon([_turned(center, angle, x * length / 2, y * width / 2)
                      for x, y in ((-1, -1), (1, -1), (1, 1), (-1, 1))], fill, outline)

    def line(self, start: Point, end: Point, color: Color, width: float = 2.0) -> None:
        """Straight line with round ends, ``width`` in pixels."""
        a, b, w = self._at(start), self._at(end), _pixels(width)
        self.draw.line([a, b], fill=_rgb(color), width=w)
        r = w / 2 - 0.5
        for x, y in (a, b) if r >= 1 else ():
            self.draw.ellipse((x - r, y - r, x + r, y + r), fill=_rgb(color))

    def frame(self) -> np.ndarray:
        """The picture, anti-aliased, uint8 [H, W, 3]."""
        return np.asarray(self.image.resize(self.size[::-1], Image.Resampling.BOX)).copy()


def tinted(color: Color, amount: float) -> Color:
    """The colour mixed with the background: 0 leaves it, 1 is the background."""
    return tuple(c + (b - c) * amount for c, b in zip(color, BACKGROUND, strict=True))


def shaded(color: Color, amount: float = 0.35) -> Color:
    """The colour made darker: 0 leaves it, 1 is black."""
    return tuple(c * (1 - amount) for c in color)


def frame_size(size: tuple[int, int] | None, half: Point) -> tuple[int, int]:
    """(H, W) as given, or with ``LONG_SIDE`` pixels on the longer side of a view of half extents ``half``."""
    if size is not None:
        return tuple(size)
    scale = LONG_SIDE / max(half)
    return max(1, round(half[1] * scale)), max(1, round(half[0] * scale))


def _rgb(color: Color | None) -> tuple[int, int, int] | None:
    return None if color is None else tuple(round(255 * min(max(c, 0.0), 1.0)) for c in color)


def _pixels(width: float) -> int:
    return max(1, round(width * SUPERSAMPLE))


def _turned(center: Point, angle: float, x: float, y: float) -> Point:
    cos, sin = math.cos(angle), math.sin(angle)
    return center[0] + x * cos - y * sin, center[1] + x * sin + y * cos


# ---------------------------------------------------------------------- VMAS worlds

def draw_world(scenario, row: int, size: tuple[int, int] | None = None, *, lidar: bool = False) -> np.ndarray:
    """Picture of one row of a VMAS scenario, uint8 [H, W, 3]: landmarks first, then agents, in the scenario's colours.

    Landmarks that nothing collides with are pale with an outline. The view is the scenario's camera, larger where an
    agent is outside.
    """
    world = scenario.world
    half = _view(scenario, row)
    canvas = Canvas(frame_size(size, half), tuple(scenario.render_origin), half)
    _draw_scenery(canvas, scenario)
    solids = [entity for entity in world.landmarks if entity.collide or entity.movable]
    for entity in [entity for entity in world.landmarks if entity not in solids] + solids:
        _draw_entity(canvas, entity, row, is_agent=False, is_solid=entity in solids)
    for agent in world.agents:
        if lidar:
            _draw_rays(canvas, agent, row)
    for constraint in world.joints:
        if constraint.dist > 0:
            ends = [_xy(constraint.pos_point(body), row) for body in (constraint.entity_a, constraint.entity_b)]
            canvas.line(*ends, (0.35, 0.35, 0.35), 1.5)
    for agent in world.agents:
        _draw_entity(canvas, agent, row, is_agent=True, is_solid=True)
    return canvas.frame()


def _xy(points, row: int) -> Point:
    return tuple(points[row].tolist())


def _view(scenario, row: int) -> Point:
    """Half extents: the scenario's zoom and window shape, enlarged to hold every agent and every disc nearby."""
    aspect = scenario.viewer_size[0] / scenario.viewer_size[1]
    zoom, (x0, y0) = scenario.viewer_zoom, scenario.render_origin
    half = (zoom, zoom / aspect) if aspect < 1 else (zoom * aspect, zoom)
    reach = 1.0
    for entity in scenario.world.entities:
        x, y = _xy(entity.state.pos, row)
        r = 1.2 * entity.shape.circumscribed_radius()
        needed = max((abs(x - x0) + r) / half[0], (abs(y - y0) + r) / half[1])
        disc = type(entity.shape).__name__ == "Sphere"
        if entity in scenario.world.agents or (disc and needed < 1.5):  # what is out of play is put far away
            reach = max(reach, needed)
    return half[0] * reach, half[1] * reach


def _draw_scenery(canvas: Canvas, scenario) -> None:
    for cls in type(scenario).__mro__:
        if cls.__module__ == "vmas.scenarios.football":
            _draw_pitch(canvas, scenario.pitch_length, scenario.pitch_width, scenario.goal_size)
            return
        if cls.__module__ == "vmas.scenarios.ball_trajectory":
            canvas.disc((0.0, 0.0), scenario.desired_radius, None, (0.6, 0.6, 0.6), 1)
    x, y = scenario.world.x_semidim, scenario.world.y_semidim
    if x is not None and y is not None:
        canvas.polygon([(-x, -y), (x, -y), (x, y), (-x, y)], None, (0.8, 0.8, 0.8), 1)


def _draw_pitch(canvas: Canvas, length: float, width: float, goal: float) -> None:
    grass, chalk = (0.80, 0.90, 0.78), (1.0, 1.0, 1.0)
    canvas.box((0.0, 0.0), length + 0.1, width + 0.1, 0.0, grass)
    canvas.box((0.0, 0.0), length, width, 0.0, None, chalk)
    canvas.line((0.0, -width / 2), (0.0, width / 2), chalk, 1.5)
    canvas.disc((0.0, 0.0), goal / 2, None, chalk)


def _color(entity, row: int) -> Color:
    color = entity.color
    if isinstance(color, tuple):
        return color[:3]
    return tuple((color[row] if color.ndim > 1 else color).tolist())[:3]


def _draw_entity(canvas: Canvas, entity, row: int, *, is_agent: bool, is_solid: bool) -> None:
    if not entity.is_rendering[row]:
        return
    color, center, angle = _color(entity, row), _xy(entity.state.pos, row), float(entity.state.rot[row])
    fill, outline = (color, shaded(color)) if is_solid else (tinted(color, 0.65), color)
    shape = type(entity.shape).__name__
    if shape == "Sphere":
        canvas.disc(center, entity.shape.radius, fill, outline)
        if is_agent and entity.rotatable and abs(angle) > 1e-6:
            canvas.line(center, _turned(center, angle, entity.shape.radius, 0.0), outline, 1.5)
    elif shape == "Box":
        canvas.box(center, entity.shape.length, entity.shape.width, angle, fill, outline)
    else:
        reach = entity.shape.length / 2
        canvas.line(_turned(center, angle, -reach, 0.0), _turned(center, angle, reach, 0.0),
                    color if is_solid else tinted(color, 0.4), 3 if is_solid else 2)


def _draw_rays(canvas: Canvas, agent, row: int) -> None:
    center = _xy(agent.state.pos, row)
    for sensor in agent.sensors:
        if sensor._last_measurement is None:
            continue
        angles = (sensor._angles[row] + agent.state.rot[row]).tolist()
        for angle, reach in zip(angles, sensor._last_measurement[row].tolist(), strict=True):
            end = _turned(center, angle, reach, 0.0)
            canvas.line(center, end, (0.88, 0.88, 0.88), 0.5)
            canvas.disc(end, 0.01, (0.5, 0.5, 0.5))
