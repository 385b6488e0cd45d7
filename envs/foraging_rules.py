"""The rules of level-based foraging as pure functions of tensors, and the settings of a task; see `envs.foraging`.

Boards are the last dimension of every tensor: the pairs of agents and foods are few, and so every operation runs along
memory. No function waits for a value on the device, and `advance` and `observe` are one graph for torch.compile.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import NamedTuple

import torch
from torch import Tensor

NONE, NORTH, SOUTH, WEST, EAST, LOAD = range(6)
MAX_SIDE, MAX_LEVEL = 1000, 2000  # what one int32 holds in an entry of the observation


# ---------------------------------------------------------------------- the settings of a task

@dataclass(frozen=True)
class Rules:
    """Settings of a task; numbers of levels hold one entry per agent, or per food.

    Attributes:
        sight: cells an agent sees in each direction. ``force_coop``: food has the level ``max_food_level``, not a
        random one up to it. ``max_food_level``: None for the sum of the three lowest levels of the agents drawn.
        penalty: lost by each agent of a group that loads in vain. ``normalize_reward``: all the food of an episode is
        worth 1 together, else a load is worth the food's level times the agent's. ``observe_agent_levels``: False
        leaves the agents' levels out of the observation.
    """

    rows: int
    cols: int
    players: int
    foods: int
    sight: int
    force_coop: bool
    min_player_level: tuple[int, ...]
    max_player_level: tuple[int, ...]
    min_food_level: tuple[int, ...]
    max_food_level: tuple[int, ...] | None
    penalty: float = 0.0
    normalize_reward: bool = True
    observe_agent_levels: bool = True

    def __post_init__(self) -> None:
        """ValueError for settings that cannot be played."""
        board = f"a board of {self.rows}x{self.cols}"
        if min(self.rows, self.cols) < 3:
            raise ValueError(f"{board} is too small: food never lies at the border, 3x3 is the smallest")
        if max(self.rows, self.cols) > MAX_SIDE:
            raise ValueError(f"{board} is too large, a side has at most {MAX_SIDE} cells")
        if self.players > self.rows * self.cols:
            raise ValueError(f"{self.players} players do not fit on {board}, at most {self.rows * self.cols} do")
        room = capacity(self.rows, self.cols)
        if self.foods > room:
            raise ValueError(f"{self.foods} foods do not fit on {board}, at most {room} do: they stay away from the "
                             "border and at least 3 steps apart")
        if not 0 <= self.penalty < float("inf"):
            raise ValueError(f"penalty must be a finite number of at least 0, got {self.penalty}")
        _check_range("player_level", self.min_player_level, self.max_player_level)
        if sum(self.max_player_level) > MAX_LEVEL:
            raise ValueError(f"max_player_level must add up to at most {MAX_LEVEL}, got {sum(self.max_player_level)}")
        lowest = sum(sorted(self.min_player_level)[:3])
        if self.max_food_level is None:
            if not self.force_coop and max(self.min_food_level) > lowest:
                raise ValueError(f"min_food_level must be at most {lowest}, the least sum of the three lowest player "
                                 f"levels, got {max(self.min_food_level)}; or give max_food_level")
            return
        _check_range("food_level", self.min_food_level, self.max_food_level)
        if max(self.max_food_level) > MAX_LEVEL:
            raise ValueError(f"max_food_level must be at most {MAX_LEVEL}, got {max(self.max_food_level)}")
        name, least = (("max_food_level", min(self.max_food_level)) if self.force_coop
                       else ("min_food_level", min(self.min_food_level)))
        if least > sum(self.max_player_level):
            raise ValueError(f"{name} {least} can never be loaded: all players together reach at most "
                             f"{sum(self.max_player_level)}")

    @property
    def observation_dim(self) -> int:
        """Length of an agent's observation."""
        return 3 * self.foods + (3 if self.observe_agent_levels else 2) * self.players


def _check_range(name: str, low: tuple[int, ...], high: tuple[int, ...]) -> None:
    for a, b in zip(low, high, strict=True):
        if a > b:
            raise ValueError(f"min_{name} must be at most max_{name}, got {a} and {b}")


@cache
def capacity(rows: int, cols: int) -> int:
    """The most food that can lie on a board: exact up to 10 cells on the shorter side, a bound beyond.

    Foods are inside the border and at least 3 steps apart, so that crosses of five cells around them do not overlap.
    """
    width, height = sorted((rows - 2, cols - 2))
    if width > 8:
        return (rows * cols - 4) // 5  # no cross holds a corner
    lines = [line for line in range(1 << width) if not line & (line << 1 | line << 2)]
    best = {(0, 0): 0}  # food in the last two lines, as bits -> most food so far
    for _ in range(height):
        following: dict[tuple[int, int], int] = {}
        for (before, last), count in best.items():
            near = before | last | last << 1 | last >> 1
            for line in lines:
                if not line & near:
                    total = count + line.bit_count()
                    following[last, line] = max(following.get((last, line), 0), total)
        best = following
    return max(best.values())


# ---------------------------------------------------------------------- the rules, pure functions of tensors

class Board(NamedTuple):
    """N boards; int32. Food that was loaded, or never found a place, has level 0; food is in row-major order."""

    row: Tensor  # [n, N] of each agent
    col: Tensor
    level: Tensor
    food_row: Tensor  # [F, N]
    food_col: Tensor
    food_level: Tensor
    total: Tensor  # [N], sum of the food levels at the start


GONE = -(1 << 24)  # where food is that is gone: in nobody's sight, next to nobody
FEW = 4  # entries up to which moving them forward pair by pair is faster


def _equal(a: Tensor, b: Tensor | int) -> Tensor:
    """1 where equal, else 0, of the numbers' own type: a third of the time of ``a == b`` on a CPU."""
    return (a - b).eq_(0)


def _differs(a: Tensor, b: Tensor | int) -> Tensor:
    """1 where different, else 0; see `_equal`."""
    return (a - b).ne_(0)


def _nearby_food(rules: Rules, board: Board) -> tuple[Tensor, Tensor, int]:
    """Which food is next to which agent, 0 or 1 [F, n, N]; where that one is, [n, N]; the number of one row down.

    -stride, stride, -1 and 1 are the cells north, south, west and east; 0 is no food next to the agent. There is one at
    most, as food lies at least 3 steps apart.
    """
    stride = 2 * rules.cols  # so that no difference of columns looks like one of rows
    here = torch.add(board.col, board.row, alpha=stride)
    there = torch.where(board.food_level > 0, torch.add(board.food_col, board.food_row, alpha=stride), GONE)
    offset = there.unsqueeze(1) - here
    distance = offset.abs()
    near = _equal(distance, 1) + _equal(distance, stride)
    return near, (near * offset).sum(0, dtype=torch.int32), stride


def legal_actions(rules: Rules, board: Board) -> Tensor:
    """Which actions do something, bool [6, n, N]: moves on the board to cells without food, loading next to food."""
    _, offset, stride = _nearby_food(rules, board)
    to_edge = (board.row, rules.rows - 1 - board.row, board.col, rules.cols - 1 - board.col)
    moves = [room.clamp(max=1) * _differs(offset, step)
             for room, step in zip(to_edge, (-stride, stride, -1, 1), strict=True)]
    legal = torch.stack([torch.ones_like(offset), *moves, _differs(offset, 0)], 1).to(torch.int8)
    return legal.view(torch.bool).transpose(0, 1)  # in memory an agent's six are side by side, as they are handed out


def advance(rules: Rules, board: Board, action: Tensor) -> tuple[Board, Tensor, Tensor]:
    """One step with ``action`` integer [n, N]: the next board, reward float32 [n, N], and no food left, bool [N].

    An action that is not legal counts as none.
    """
    near, offset, stride = _nearby_food(rules, board)
    action = action.int()
    down = _equal(action, SOUTH) - _equal(action, NORTH)
    right = _equal(action, EAST) - _equal(action, WEST)
    free = 1 - _equal(offset, torch.add(right, down, alpha=stride))
    down = (board.row + down * free).clamp_(0, rules.rows - 1) - board.row
    right = (board.col + right * free).clamp_(0, rules.cols - 1) - board.col
    # who shares a target stays; only targets count, so an agent may enter the cell of one whose own move fails
    target = torch.add(board.col + right, board.row + down, alpha=rules.cols)
    alone = _equal(_equal(target.unsqueeze(0), target.unsqueeze(1)).sum(0, dtype=torch.int32), 1)  # but for itself
    row, col = board.row + down * alone, board.col + right * alone

    loads = near * _equal(action, LOAD)
    strength = (loads * board.level).sum(1, dtype=torch.int32)  # [F, N]
    taken = ((strength > 0) & (strength >= board.food_level)).int()
    value = (board.food_level.unsqueeze(1) * board.level).float()  # [F, n, N]
    if rules.normalize_reward:
        value = value / (strength * board.total).clamp(min=1).float().unsqueeze(1)
    reward = (value * (loads * taken.unsqueeze(1)).float()).sum(0)
    if rules.penalty:
        reward = reward - rules.penalty * (loads * (1 - taken).unsqueeze(1)).sum(0)
    food_level = board.food_level * (1 - taken)
    return board._replace(row=row, col=col, food_level=food_level), reward, food_level.amax(0) == 0


def observe(rules: Rules, board: Board) -> Tensor:
    """What each agent sees, float32 [N, n, 3F + 3n]: the food in sight, itself, then the other agents in sight.

    Each entry is (row, column, level), counted from the upper left cell of the view; (-1, -1, 0) fills what is left of
    the F, and of the n, entries. The view is cut at the border, its upper left cell is on the board. Agents are seen
    if they are at most twice the sight below and right of that cell: at the upper and left border that is farther
    than food is seen. Without levels of agents their entries are (row, column).
    """
    n, sight = rules.players, rules.sight
    top, left = (board.row - sight).clamp_(min=0), (board.col - sight).clamp_(min=0)
    corner = _packed(top, left, 0)
    food_row = torch.where(board.food_level > 0, board.food_row, GONE)
    food_seen = _in_sight(food_row, board.food_col, board.row.unsqueeze(1), board.col.unsqueeze(1), sight)
    food = (_packed(board.food_row, board.food_col, board.food_level, 1) - corner.unsqueeze(1)) * food_seen
    agents = _packed(board.row, board.col, board.level, 1)
    entries = [*_forward(food.unbind(1)), agents - corner]  # each [n, N]
    if n > 1:
        row, col, packed = _others(board.row, board.col, agents)
        seen = _in_sight(row, col, (top + sight).unsqueeze(1), (left + sight).unsqueeze(1), sight)
        entries += _forward(((packed - corner.unsqueeze(1)) * seen).unbind(1))
    entry = torch.stack(entries, 1)  # [n, F + n, N]
    planes = [((entry >> 21) - 1).float(), ((entry >> 11 & 1023) - 1).float(), (entry & 2047).float()]
    if rules.observe_agent_levels:
        seen = torch.stack(planes, 2).flatten(0, 2)
    else:
        food, own = (torch.stack([plane[:, part] for plane in planes[:kinds]], 2).flatten(1, 2)
                     for part, kinds in ((slice(rules.foods), 3), (slice(rules.foods, None), 2)))
        seen = torch.cat([food, own], 1).flatten(0, 1)
    return seen.t().contiguous().view(-1, n, rules.observation_dim)  # two dimensions of floats are turned fast


def visible(rules: Rules, board: Board) -> Tensor:
    """Which other agents each one sees, in ascending order: float32 [N, n, n - 1], 1 for those that `observe` shows."""
    sight = rules.sight
    top, left = (board.row - sight).clamp_(min=0), (board.col - sight).clamp_(min=0)
    row, col = _others(board.row, board.col)
    return _boards_first(_in_sight(row, col, (top + sight).unsqueeze(1), (left + sight).unsqueeze(1), sight))


def hidden_parts(rules: Rules) -> tuple[tuple[str, int, bool], ...]:
    """What `hidden` is made of: name, width, whether it is a one-hot; empty where the observation tells everything.

    ``others``: row and column of each other agent, in ascending order, relative to the own ones (the observation has
    those in sight alone, and does not say whose). ``levels``: theirs. ``foods``: relative row and column, and level,
    of the food out of sight; zeros for food that is seen or gone. Positions are in units of the board's longer side,
    levels in units of the highest.
    """
    others, limited = rules.players - 1, rules.sight < max(rules.rows, rules.cols) - 1
    differ = len({*rules.min_player_level, *rules.max_player_level}) > 1
    parts = [("others", 2 * others, False)] if limited else []
    if differ and (limited or not rules.observe_agent_levels):
        parts.append(("levels", others, False))
    if limited:
        parts.append(("foods", 3 * rules.foods, False))
    return tuple(part for part in parts if part[1])


def hidden(rules: Rules, board: Board) -> Tensor:
    """What decides the game and an agent is not told, float32 [N, n, D]; see `hidden_parts`."""
    side, parts = max(rules.rows, rules.cols), []
    at_row, at_col = board.row.unsqueeze(1), board.col.unsqueeze(1)
    for name, *_ in hidden_parts(rules):
        if name == "others":
            row, col = _others(board.row, board.col)
            parts.append(torch.stack([row - at_row, col - at_col], 2) / side)
        elif name == "levels":
            parts.append(_others(board.level)[0].unsqueeze(2) / max(rules.max_player_level))
        else:
            seen = _in_sight(board.food_row, board.food_col, at_row, at_col, rules.sight)  # [n, F, N]
            unseen = _differs(board.food_level, 0) * (1 - seen)
            highest = max(rules.max_food_level or [sum(sorted(rules.max_player_level)[-3:])])
            food = (board.food_row - at_row) / side, (board.food_col - at_col) / side, board.food_level / highest
            parts.append(torch.stack([value * unseen for value in food], 2))
    return _boards_first(torch.cat([part.flatten(1, 2) for part in parts], 1))


def _others(*values: Tensor) -> tuple[Tensor, ...]:
    """Numbers of agents [n, N] as [n, n - 1, N]: those of each agent's others, in ascending order."""
    facts, n = torch.stack(values, 1), len(values[0])
    # every pair but those of an agent with itself, which are the first and every n + 1st one on
    pairs = facts.expand(n, *facts.shape).flatten(0, 1)[1:].view(n - 1, n + 1, len(values), -1)[:, :-1]
    return pairs.reshape(n, n - 1, len(values), -1).unbind(2)


def _boards_first(values: Tensor) -> Tensor:
    """[n, D, N] to float32 [N, n, D]."""
    return values.permute(2, 0, 1).float().contiguous()


def _packed(row: Tensor, col: Tensor, level: Tensor | int, base: int = 0) -> Tensor:
    """An entry as one number while it moves; differences of them are entries counted from another cell."""
    return torch.add(col + base << 11, row + base, alpha=1 << 21) + level


def _in_sight(row: Tensor, col: Tensor, at_row: Tensor, at_col: Tensor, sight: int) -> Tensor:
    """1 where (row, col) is at most ``sight`` from the cell in each direction, else 0."""
    return torch.maximum((row - at_row).abs_(), (col - at_col).abs_()).le_(sight)


def _forward(entries: Sequence[Tensor]) -> list[Tensor]:
    """The entries that are not 0 move up to the front, in their order."""
    entries = list(entries)
    if len(entries) > FEW:
        entry = torch.stack(entries)
        there = entry != 0
        slot = torch.where(there, there.cumsum(0) - 1, len(entries))  # one more, which is dropped
        return list(entry.new_zeros(len(entries) + 1, *entry.shape[1:]).scatter(0, slot, entry)[:-1].unbind(0))
    for last in range(len(entries) - 1, 0, -1):
        for k in range(last):
            moved = _equal(entries[k], 0) * entries[k + 1]
            entries[k], entries[k + 1] = entries[k] + moved, entries[k + 1] - moved
    return entries


# ---------------------------------------------------------------------- where an episode starts

def start(rules: Rules, count: int, generator: torch.Generator) -> Board:
    """``count`` boards to start from: agents on any different cells; food inside the border, one by one uniform over
    the cells without agent that are at least 3 steps from other food, and none where no such cell is left.
    """
    level = _levels(rules.min_player_level, rules.max_player_level, count, generator)
    if rules.max_food_level is None:
        high = level.topk(min(3, rules.players), 0, largest=False).values.sum(0, dtype=torch.int32)
        low = high if rules.force_coop else _shuffled(count, generator, rules.min_food_level)[0]
        food_level = _between(low, high.expand(rules.foods, -1), generator)
    else:
        low = rules.max_food_level if rules.force_coop else rules.min_food_level
        food_level = _levels(low, rules.max_food_level, count, generator)
    agent, food = _cells(rules, count, generator)
    food, order = food.sort(0)
    food_level = torch.where(food < rules.rows * rules.cols, food_level.gather(0, order), 0)
    agent, food = agent.int(), food.clamp(max=rules.rows * rules.cols - 1).int()
    return Board(agent // rules.cols, agent % rules.cols, level, food // rules.cols, food % rules.cols, food_level,
                 food_level.sum(0, dtype=torch.int32))


def _cells(rules: Rules, count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Cells of the agents, [n, count], and of the food, [F, count]; one past the last cell for no food.

    All cells get a random rank at once. The highest one among the cells that are still free is uniform among them, so
    a loop over the few things to place needs one maximum each and no second try.
    """
    rows, cols, cells = rules.rows, rules.cols, rules.rows * rules.cols
    device, bits = generator.device, 31 if cells <= 2000 else 62  # so that equal ranks hardly ever decide
    dtype = torch.int32 if bits == 31 else torch.int64
    row, col = (torch.arange(side, dtype=torch.int32, device=device).unsqueeze(-1) for side in (rows, cols))
    rank = torch.randint(2**bits // cells, (rows, cols, count), dtype=dtype, generator=generator, device=device)
    rank.mul_(cells).add_(row.unsqueeze(1) * cols + col)  # the cell is the rank's remainder
    agents, foods = [], []
    for _ in range(rules.players):
        agents.append(rank.amax((0, 1)) % cells)
        rank.view(cells, count).scatter_(0, agents[-1].long().unsqueeze(0), -1)
    rank, row, col = rank[1:-1, 1:-1].contiguous(), row[1:-1], col[1:-1]  # a maximum over a part is slow
    for _ in range(rules.foods):
        best = rank.amax((0, 1))
        place = best % cells
        foods.append(torch.where(best < 0, cells, place))
        away = (row - place // cols).abs().unsqueeze(1) + (col - place % cols).abs()
        rank.masked_fill_(away <= 2, -1)
    return torch.stack(agents), torch.stack(foods)


def _levels(low: tuple[int, ...], high: tuple[int, ...], count: int, generator: torch.Generator) -> Tensor:
    """Random levels, int32 [k, count]; the k pairs of bounds are given out by chance."""
    return _between(*_shuffled(count, generator, low, high), generator)


def _between(low: Tensor, high: Tensor, generator: torch.Generator) -> Tensor:
    """Uniform integers from ``low`` to ``high``, both included, of the shape of ``high``."""
    uniform = torch.rand(high.shape, generator=generator, device=generator.device)
    return (low + (uniform * (high - low + 1)).floor()).int()


def _shuffled(count: int, generator: torch.Generator, *rows: tuple[int, ...]) -> list[Tensor]:
    """The rows of k numbers as tensors [k, count], all in the same random order, another one in each column."""
    device, k = generator.device, len(rows[0])
    # filled on the device: a tensor made from a list would be copied there, and wait
    filled = [torch.stack([torch.full((), x, dtype=torch.int32, device=device) for x in row]) for row in rows]
    if all(len(set(row)) == 1 for row in rows):
        return [row.unsqueeze(-1).expand(k, count) for row in filled]
    order = torch.rand(k, count, generator=generator, device=device).argsort(0)
    return [row[order] for row in filled]
