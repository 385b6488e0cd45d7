"""The rules of the robot warehouse as pure functions of tensors: `start`, `advance`, `observe`.

A step is some eighty operations on all N warehouses and A robots at once, whatever happens in them, without host
synchronisation.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from envs import suggestion
from envs.base import check_sizes
from envs.warehouse_conflicts import who_moves
from envs.warehouse_layout import Layout

NOOP, FORWARD, LEFT, RIGHT, TOGGLE = range(5)
HEADINGS = ("up", "down", "left", "right")  # up is towards row 0
ID_BITS = 12  # shelf ids fit; the bits above hold the heading of a robot
OWN, PER_CELL = 8, 7  # numbers of an observation about the robot itself, and about each cell around it
REWARDS = ("individual", "global", "two_stage")


# ---------------------------------------------------------------------- the settings of a task

@dataclass(frozen=True)
class Rules:
    """Settings of a task.

    Attributes:
        requests: number Q of shelves requested at any time. ``sensor_range``: cells seen in each direction.
        reward_type: "individual" pays 1 to the robot that delivers, "global" to all, "two_stage" 0.5 at the delivery
        and 0.5 when the robot puts the shelf down again. ``max_inactivity``: steps without a delivery that cut an
        episode, None for no limit. ``normalize_coordinates``: own position in [0, 1] instead of cells.
        conflicts: "index" (`who_moves`) or "exact" (`who_moves_exact`).
    """

    layout: Layout
    n_agents: int
    requests: int
    sensor_range: int = 1
    reward_type: str = "individual"
    max_inactivity: int | None = None
    normalize_coordinates: bool = False
    conflicts: str = "index"

    def __post_init__(self) -> None:
        """ValueError for settings that cannot be played."""
        check_sizes(n_agents=self.n_agents, sensor_range=self.sensor_range, max_inactivity=self.max_inactivity)
        for name, allowed in (("reward_type", REWARDS), ("conflicts", ("index", "exact"))):
            value = getattr(self, name)
            if value not in allowed:
                raise ValueError(f"{name} must be one of {list(allowed)}, got {value!r}"
                                 + suggestion(str(value), allowed))
        if not isinstance(self.normalize_coordinates, bool):
            raise ValueError(f"normalize_coordinates must be True or False, got {self.normalize_coordinates!r}")
        cells, shelves = self.layout.rows * self.layout.cols, len(self.layout.shelves)
        if self.n_agents > cells:
            raise ValueError(f"{self.n_agents} agents do not fit on {cells} cells")
        if not 2 <= shelves < 1 << ID_BITS:
            raise ValueError(f"a layout needs 2 to {(1 << ID_BITS) - 1} shelves, got {shelves}")
        if type(self.requests) is not int or not 1 <= self.requests < shelves:
            raise ValueError(f"the request queue must hold 1 to {shelves - 1} of the {shelves} shelves, so that there "
                             f"is a next one to request, got {self.requests}")

    @property
    def observation_dim(self) -> int:
        """Length of an agent's observation, 71 for a sensor range of 1."""
        return OWN + PER_CELL * (2 * self.sensor_range + 1) ** 2


class Tables(NamedTuple):
    """What the rules look up instead of computing. Cells are numbered row by row over the floor with a border.

    The border is as wide as the sensors reach, so that every cell in sight has a number; P cells in all.
    """

    cells: Tensor  # int64 [H * W], numbers of the cells of the floor
    ahead: Tensor  # int64 [P * 4], the cell in front for each cell and heading; the cell itself at a wall
    turned: Tensor  # int64 [5 * 4], the next heading for each action and heading
    highway: Tensor  # bool [P]
    goals: tuple[int, ...]  # numbers of the goal cells
    shelves: Tensor  # int16 [P], the shelf that starts on each cell, 0 for none
    slots: Tensor  # int64 [Q], 0 to Q - 1
    window: Tensor  # int64 [K], the cells in sight relative to a robot's own, row by row
    own: Tensor  # float32 [P * 8, 8], what a robot sees of itself for each cell, heading and load
    seen: Tensor  # float32 [15 ** g, 7 * g], what it sees of g cells in a row for each of their contents


class Floor(NamedTuple):
    """N warehouses; shelves have the ids 1 to M, row by row where they start."""

    cell: Tensor  # int64 [N, A] of each robot
    heading: Tensor  # int64 [N, A], see HEADINGS
    load: Tensor  # int16 [N, A], shelf that it carries, 0 for none
    delivered: Tensor  # bool [N, A], what it carries was delivered (two-stage reward only)
    shelves: Tensor  # int16 [N, P], the shelf that stands on each cell, 0 for none; not those that are carried
    order: Tensor  # int16 [N, M], all shelves: the Q requested ones, then the others in any order
    idle: Tensor  # int64 [N], steps since the last delivery


def make_tables(rules: Rules, device: torch.device | str) -> Tables:
    """Look-up tables of a task."""
    layout, reach = rules.layout, rules.sensor_range
    columns = layout.cols + 2 * reach
    total = columns * (layout.rows + 2 * reach)

    def number(row: int, col: int) -> int:
        return (row + reach) * columns + col + reach

    inside = [(row, col) for row in range(layout.rows) for col in range(layout.cols)]
    ahead = np.tile(np.arange(total)[:, None], 4)
    highway = np.ones(total, dtype=bool)
    own = np.zeros((total, 4, 2, OWN))
    scale = (max(layout.cols - 1, 1), max(layout.rows - 1, 1)) if rules.normalize_coordinates else (1, 1)
    for row, col in inside:
        at = number(row, col)
        highway[at] = layout.is_highway(row, col)
        own[at, :, :, :2] = col / scale[0], row / scale[1]
        for heading, (down, right) in enumerate(((-1, 0), (1, 0), (0, -1), (0, 1))):
            if 0 <= row + down < layout.rows and 0 <= col + right < layout.cols:
                ahead[at, heading] = number(row + down, col + right)
    own[:, :, 1, 2] = 1
    own[:, :, :, 3:7] = np.eye(4)[:, None]
    own[:, :, :, 7] = highway[:, None, None]
    shelves = np.zeros(total, dtype=np.int16)
    shelves[[number(*cell) for cell in layout.shelves]] = np.arange(len(layout.shelves)) + 1
    turned = np.tile(np.arange(4), (5, 1))
    turned[LEFT], turned[RIGHT] = (2, 3, 1, 0), (3, 2, 0, 1)
    window = [down * columns + right for down in range(-reach, reach + 1) for right in range(-reach, reach + 1)]

    def tensor(values, dtype: torch.dtype = torch.int64) -> Tensor:
        return torch.as_tensor(values).to(device, dtype)

    return Tables(
        cells=tensor([number(*cell) for cell in inside]), ahead=tensor(ahead.reshape(-1)),
        turned=tensor(turned.reshape(-1)), highway=tensor(highway, torch.bool),
        goals=tuple(number(*cell) for cell in layout.goals), shelves=tensor(shelves, torch.int16),
        slots=tensor(range(rules.requests)), window=tensor(window), own=tensor(own.reshape(-1, OWN), torch.float32),
        seen=tensor(_contents(3 if len(window) % 3 == 0 else 1), torch.float32))


def _contents(cells: int) -> np.ndarray:
    """What is seen of some cells in a row, [15 ** cells, 7 * cells]; three need a third of the look-ups of one.

    A cell has the number 3 r + s: no robot or one with a heading, r from 0 to 4; no shelf, a shelf, a requested one.
    """
    one = np.zeros((5, 3, PER_CELL))
    one[1:, :, 0] = 1
    one[:, :, 1:5] = np.eye(4)[[0, 0, 1, 2, 3]][:, None]  # no robot looks like heading up
    one[:, 1:, 5] = one[:, 2:, 6] = 1
    numbers = np.indices((15,) * cells).reshape(cells, -1).T
    return one.reshape(15, PER_CELL)[numbers].reshape(len(numbers), -1)


# ---------------------------------------------------------------------- the rules, pure functions of tensors

def advance(rules: Rules, tables: Tables, floor: Floor, action: Tensor, draws: Tensor,
            resolve: Callable[[Tensor, Tensor], Tensor] = who_moves) -> tuple[Floor, Tensor]:
    """One step with ``action`` int64 [N, A]: the next floors and the reward float32 [N, A].

    Args:
        draws: int64 [N, goals], the place in ``order``, Q to M - 1, of the shelf to request if that goal gets one.
        resolve: who moves, see `who_moves`.
    """
    loaded = floor.load > 0
    target = torch.where(action == FORWARD, _look_up(tables.ahead, floor.cell * 4 + floor.heading), floor.cell)
    blocked = loaded & (floor.shelves.gather(1, target) > 0)  # a load does not pass under a shelf
    target = torch.where(blocked, floor.cell, target)
    cell = torch.where(resolve(floor.cell, target), target, floor.cell)

    toggles = action == TOGGLE
    below = floor.shelves.gather(1, cell)
    picks_up = toggles & ~loaded & (below > 0)
    puts_down = toggles & loaded & ~_look_up(tables.highway, cell)
    load = torch.where(picks_up, below, torch.where(puts_down, 0, floor.load))
    # cell number 0 is in the border: what concerns nobody is written there, as zeros
    changed = torch.where(picks_up | puts_down, cell, 0)
    shelves = floor.shelves.scatter(1, changed, floor.load * puts_down)
    reward = torch.zeros_like(cell, dtype=torch.float32)
    if rules.reward_type == "two_stage":
        reward = 0.5 * (puts_down & floor.delivered)

    order, delivered, late = floor.order, floor.delivered & ~puts_down, torch.ones_like(floor.idle, dtype=torch.bool)
    for k, goal in enumerate(tables.goals):  # in order: a request drawn at one goal may already wait at the next
        arrived = (cell == goal) & (load > 0)
        shelf = (load * arrived).sum(-1, keepdim=True, dtype=load.dtype)
        match = order[:, :rules.requests] == shelf
        hit = match.sum(-1, keepdim=True) > 0
        slot = (match * tables.slots).sum(-1, keepdim=True)
        place = torch.where(hit, draws[:, k:k + 1], slot)
        fresh = order.gather(1, place)
        order = order.scatter(1, slot, fresh).scatter(1, place, torch.where(hit, shelf, fresh))
        brought = hit & arrived
        if rules.reward_type == "two_stage":
            reward, delivered = reward + 0.5 * brought, delivered | brought
        else:
            reward = reward + (brought if rules.reward_type == "individual" else hit)
        late = late & ~hit.squeeze(-1)
    heading = _look_up(tables.turned, action * 4 + floor.heading)
    idle = torch.where(late, floor.idle + 1, 0)
    return Floor(cell, heading, load, delivered, shelves, order, idle), reward


def observe(rules: Rules, tables: Tables, floor: Floor) -> Tensor:
    """What each robot sees, float32 [N, A, 8 + 7 K] with K = (2 sensor_range + 1) ** 2 cells.

    Column, row, loaded, heading (one of four: up, down, left, right), on a highway; then for each cell in sight, row
    by row from the upper left: a robot is there, its heading (up if there is none), a shelf is there, it is requested.
    Outside the floor there is nothing. The directions are the floor's, not the robot's.
    """
    rows, n = floor.cell.shape
    own = _look_up(tables.own, (floor.cell * 4 + floor.heading) * 2 + (floor.load > 0))
    kind = torch.ones(rows, floor.order.shape[1] + 1, dtype=torch.int16, device=floor.cell.device)
    kind[:, 0] = 0
    kind = kind.scatter(1, floor.order[:, :rules.requests].long(), 2)
    robots = ((floor.heading + 1) << ID_BITS).short() + floor.load  # nothing stands where a load is
    content = floor.shelves.scatter_add(1, floor.cell, robots)
    window = (floor.cell.unsqueeze(-1) + tables.window).flatten(1)
    inside = content.gather(1, window)
    code = kind.gather(1, (inside & ((1 << ID_BITS) - 1)).long()) + 3 * (inside >> ID_BITS)
    if len(tables.seen) > 15:
        code = (code[:, 0::3] * 15 + code[:, 1::3]) * 15 + code[:, 2::3]
    return torch.cat([own, _look_up(tables.seen, code.int()).view(rows, n, -1)], -1)


def visible(rules: Rules, tables: Tables, floor: Floor) -> Tensor:
    """Which other robots stand on cells in sight, in ascending order: float32 [N, A, A - 1]."""
    offset = _to_others(rules, floor)
    return (offset.abs().amax(-1) <= rules.sensor_range).float()


def hidden_parts(rules: Rules) -> tuple[tuple[str, int, bool], ...]:
    """What `hidden` is made of: name, width, whether it is a one-hot; empty for a single robot.

    ``others``: row and column of each other robot, in ascending order, relative to the own ones, in units of the
    floor's longer side. ``loads``: whether each carries nothing (0), a shelf (0.5) or a requested one (1).
    """
    others = rules.n_agents - 1
    return (("others", 2 * others, False), ("loads", others, False)) if others else ()


def hidden(rules: Rules, tables: Tables, floor: Floor) -> Tensor:
    """Where the others are and what they do, which robots out of sight do not know: float32 [N, A, D]."""
    offset = _to_others(rules, floor) / max(rules.layout.rows, rules.layout.cols)
    wanted = (floor.load.unsqueeze(-1) == floor.order[:, None, :rules.requests]).any(-1)
    loads = ((floor.load > 0).float() + wanted) / 2
    return torch.cat([offset.flatten(2), _of_others(loads)], -1)


def _to_others(rules: Rules, floor: Floor) -> Tensor:
    """Rows and columns from each robot to the others, int64 [N, A, A - 1, 2]."""
    columns = rules.layout.cols + 2 * rules.sensor_range
    place = torch.stack([floor.cell // columns, floor.cell % columns], -1)
    return torch.stack([_of_others(place[..., k]) - place[..., k].unsqueeze(-1) for k in range(2)], -1)


def _of_others(values: Tensor) -> Tensor:
    """[N, A] -> [N, A, A - 1]: what belongs to the others of each robot, in ascending order."""
    rows, n = values.shape
    # every pair but those of a robot with itself, which are the first and every n + 1st one on
    pairs = values.unsqueeze(1).expand(-1, n, -1).flatten(1)[:, 1:].view(rows, n - 1, n + 1)[..., :-1]
    return pairs.reshape(rows, n, n - 1)


def _look_up(table: Tensor, index: Tensor) -> Tensor:
    """``table[index]``, four times as fast on a CPU."""
    return table.index_select(0, index.flatten()).view(*index.shape, *table.shape[1:])


def start(rules: Rules, tables: Tables, count: int, generator: torch.Generator) -> Floor:
    """``count`` floors to start from: robots on any different cells, under shelves too, any headings, any requests."""
    device, shape = generator.device, (count, rules.n_agents)

    def shuffled(items: int) -> Tensor:
        return torch.rand(count, items, generator=generator, device=device)

    cell = _look_up(tables.cells, shuffled(len(tables.cells)).topk(rules.n_agents).indices)
    return Floor(
        cell=cell, heading=torch.randint(4, shape, generator=generator, device=device),
        load=torch.zeros(shape, dtype=torch.int16, device=device),
        delivered=torch.zeros(shape, dtype=torch.bool, device=device),
        shelves=tables.shelves.expand(count, -1).clone(),
        order=(shuffled(len(rules.layout.shelves)).argsort(-1) + 1).to(torch.int16),
        idle=torch.zeros(count, dtype=torch.int64, device=device))


def draw_requests(rules: Rules, tables: Tables, count: int, generator: torch.Generator) -> Tensor:
    """What `advance` draws: any shelf that is not requested, for each goal; int64 [count, goals]."""
    return torch.randint(rules.requests, len(rules.layout.shelves), (count, len(tables.goals)), generator=generator,
                         device=generator.device)


def shelf_cells(tables: Tables, floor: Floor) -> Tensor:
    """Cell number of each shelf 1 to M, int64 [N, M]."""
    number = torch.arange(floor.shelves.shape[1], device=floor.shelves.device).expand(len(floor.shelves), -1)
    cells = torch.zeros(len(number), floor.order.shape[1] + 1, dtype=torch.int64, device=number.device)
    return cells.scatter(1, floor.shelves.long(), number).scatter(1, floor.load.long(), floor.cell)[:, 1:]
