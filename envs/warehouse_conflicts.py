"""Who moves when several robots want the same cell: one rule as tensor operations, and the published program's own.

A robot that wants to enter a cell waits for the robot on it. Chains of robots that end on a free cell move together;
where chains meet, the longest one moves and the others fail. A ring of four or more moves as a whole, a swap of two
fails, and whoever waits behind a ring, a swap or a robot that stays fails too.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def who_moves(cell: Tensor, target: Tensor) -> Tensor:
    """Which robots enter the cell they want, bool [N, A]; of equally long chains the lowest index wins.

    Args:
        cell: int64 [N, A], a number for the cell of each robot, all different in a row.
        target: int64 [N, A], the cell that each wants; its own one if it stays.
    """
    count, n = cell.shape
    cell, target = cell.t().contiguous(), target.t().contiguous()  # robots first: long inner loops over N
    small = torch.int16 if n < 180 else torch.int32  # holds n * n; products and maxima of these are fast
    index = torch.arange(n, device=cell.device, dtype=small).unsqueeze(-1)
    wants = target != cell
    follows = ((target.unsqueeze(1) == cell) & wants.unsqueeze(1)).to(small)  # [A, A, N]: the first behind the second

    length = torch.zeros_like(index).expand(-1, count)  # of the longest chain behind each robot
    for _ in range(n):
        length = (follows * (length + 1).unsqueeze(1)).amax(0)
    swap = (follows * follows.transpose(0, 1)).amax(1) > 0
    ring = (length == n) & ~swap  # only on a circle there is always one more behind

    rank = ((length + 1) * n - index) * wants
    best = ((target.unsqueeze(1) == target) * rank).amax(1)
    free = wants & (best == rank) & (length < n)
    # free only if all ahead are: look at the next one, then at the second, the fourth ...; row n is for nobody
    leader = torch.cat([(follows * (index - n)).amin(1), torch.zeros_like(follows[0, :1])]).int() + n
    leader = (leader * count + torch.arange(count, device=cell.device, dtype=torch.int32)).flatten()
    free = torch.cat([free, torch.ones_like(free[:1])]).flatten()
    for _ in range((n - 1).bit_length()):
        free = free & free.index_select(0, leader)
        leader = leader.index_select(0, leader)
    return (free.view(n + 1, count)[:n] | ring).t().contiguous()


def who_moves_exact(cell: Tensor, target: Tensor, places: Sequence[tuple[int, int]]) -> Tensor:
    """As `who_moves`, but of equally long chains the one that the published program happens to take (rware 2.0.0).

    The program asks NetworkX for the longest path, which depends on the order of the nodes in a copy of a part of the
    graph, that is on how Python's sets order pairs of numbers. Row by row on the CPU, for comparisons, not training.

    Args:
        cell, target: as for `who_moves`. ``places``: (column, row) of each cell number.
    """
    starts, ends = ([[places[k] for k in row] for row in cells.tolist()] for cells in (cell, target))
    rows = [_movers(start, end) for start, end in zip(starts, ends, strict=True)]
    return torch.tensor(rows, device=cell.device) & (target != cell)


def _movers(starts: list[tuple[int, int]], ends: list[tuple[int, int]]) -> list[bool]:
    import networkx  # torch brings it

    graph = networkx.DiGraph()
    for start, end in zip(starts, ends, strict=True):
        graph.add_edge(start, end)
    moving: set[tuple[int, int]] = set()
    for nodes in networkx.weakly_connected_components(graph):
        part = graph.subgraph(nodes).copy()
        try:
            circle = [edge[0] for edge in networkx.find_cycle(part)]
        except networkx.NetworkXNoCycle:
            moving.update(networkx.dag_longest_path(part))
        else:
            moving.update(circle if len(circle) != 2 else [])
    return [start in moving for start in starts]
