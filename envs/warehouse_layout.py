"""Floor plans of the robot warehouse: where shelves start, where the highways and the goals are."""

from __future__ import annotations

from dataclasses import dataclass

from envs.base import check_sizes

# size -> rows and columns of shelf groups, as in the registered tasks; a column is 8 shelves high there
SIZES = {"tiny": (1, 3), "small": (2, 3), "medium": (2, 5), "large": (3, 5)}
COLUMN_HEIGHT = 8
SHELF, HIGHWAY, GOAL = "x", ".", "g"


@dataclass(frozen=True)
class Layout:
    """A rectangular floor; row 0 is the top.

    Attributes:
        lines: one text per row with "x" where a shelf starts, "." for a highway and "g" for a goal, a highway too.
    """

    lines: tuple[str, ...]

    def __post_init__(self) -> None:
        """ValueError for a floor that is not rectangular, has other signs, or no goal."""
        unknown = sorted(set("".join(self.lines)) - {SHELF, HIGHWAY, GOAL})
        if unknown:
            raise ValueError(f"a layout is written with 'x' (shelf), '.' (highway) and 'g' (goal), got {unknown}")
        if not self.goals:
            raise ValueError("a layout needs at least one goal 'g', got none")
        widths = {len(line) for line in self.lines}
        if len(widths) != 1:
            raise ValueError(f"the lines of a layout must be equally long, got lengths {sorted(widths)}")

    @property
    def rows(self) -> int:
        """Number of rows H."""
        return len(self.lines)

    @property
    def cols(self) -> int:
        """Number of columns W."""
        return len(self.lines[0])

    @property
    def shelves(self) -> list[tuple[int, int]]:
        """Cells (row, column) where shelves start, row by row: shelf k + 1 starts on the k-th."""
        return self._cells(SHELF)

    @property
    def goals(self) -> list[tuple[int, int]]:
        """Cells (row, column) of the goals, in the order in which deliveries of one step count."""
        return self._cells(GOAL)

    def is_highway(self, row: int, col: int) -> bool:
        """True where nothing can be put down."""
        return self.lines[row][col] != SHELF

    def _cells(self, sign: str) -> list[tuple[int, int]]:
        return [(row, col) for row, line in enumerate(self.lines) for col, at in enumerate(line) if at == sign]


def from_text(text: str) -> Layout:
    """Layout from lines of "x", "." and "g" (capitals too); spaces and empty lines around are dropped."""
    return Layout(tuple(line.replace(" ", "").lower() for line in text.strip().splitlines()))


def from_sizes(shelf_rows: int, shelf_columns: int, column_height: int = COLUMN_HEIGHT) -> Layout:
    """The usual floor: groups of shelves two cells wide between highways one cell wide.

    The two goals are in the middle of the last row, and the lowest group of the middle column makes room for a queue.

    Args:
        shelf_rows, shelf_columns: number of groups; ``shelf_columns`` is odd (ValueError). ``column_height``: shelves
        one above the other in a group.
    """
    check_sizes(shelf_rows=shelf_rows, shelf_columns=shelf_columns, column_height=column_height)
    if shelf_columns % 2 == 0:
        raise ValueError(f"shelf_columns must be odd, with a column above the goals, got {shelf_columns}")
    period = column_height + 1
    rows, cols = period * shelf_rows + 2, 3 * shelf_columns + 1
    middle = (cols // 2 - 1, cols // 2)

    def sign(row: int, col: int) -> str:
        if row == rows - 1:
            return GOAL if col in middle else HIGHWAY
        queue = col in middle and row > rows - column_height - 3
        return HIGHWAY if col % 3 == 0 or row % period == 0 or queue else SHELF

    return Layout(tuple("".join(sign(row, col) for col in range(cols)) for row in range(rows)))
