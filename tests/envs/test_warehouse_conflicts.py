"""Who moves where several robots want the same cell: drawn situations, and a slow rule robot by robot."""

import pytest
import torch

from envs.warehouse_conflicts import who_moves, who_moves_exact

torch.set_num_threads(1)

COLUMNS = 5
PLACES = [(k % COLUMNS, k // COLUMNS) for k in range(25)]
STEPS = {"^": -COLUMNS, "v": COLUMNS, "<": -1, ">": 1, "o": 0}


def situation(text):
    """Cells and targets of robots, in reading order; ^v<> want to move, o stays."""
    signs = [(k, sign) for k, sign in enumerate("".join(text.split())) if sign in STEPS]
    return (torch.tensor([[k for k, _ in signs]]), torch.tensor([[k + STEPS[sign] for k, sign in signs]]))


def slow(cell, target):
    """Which of the robots move, and whether equally long chains met; for one row of lists."""
    n, moves, tie = len(cell), set(), False
    behind = [[j for j in range(n) if target[j] == cell[i] and j != i] for i in range(n)]

    def chain(i, seen=()):
        return float("inf") if i in seen else 1 + max((chain(j, (*seen, i)) for j in behind[i]), default=0)

    def win(candidates):
        nonlocal tie
        while candidates:
            longest = max(map(chain, candidates))
            best = [i for i in candidates if chain(i) == longest]
            tie |= len(best) > 1
            moves.add(best[0])
            candidates = behind[best[0]]

    for free in set(target) - set(cell):
        win([i for i in range(n) if target[i] == free])
    for i in range(n):
        circle = [i]
        while target[circle[-1]] in cell and (following := cell.index(target[circle[-1]])) not in circle:
            circle.append(following)
        if target[circle[-1]] == cell[i] and len(circle) > 2:
            moves.update(circle)
    return [i in moves for i in range(n)], tie


@pytest.mark.parametrize(("text", "expected"), [
    (">.... ..... ..... ..... .....", [1]),
    ("><... ..... ..... ..... .....", [0, 0]),  # a swap
    (">><.. ..... ..... ..... .....", [0, 0, 0]),  # behind a swap
    (">>>.. ..... ..... ..... .....", [1, 1, 1]),
    (">>o.. ..... ..... ..... .....", [0, 0, 0]),  # the last one stays
    (">v... ^<... ..... ..... .....", [1, 1, 1, 1]),  # a ring
    (">>v.. .^<.. .^... ..... .....", [0, 1, 1, 1, 1, 0]),  # behind a ring
    (">.<.. ..... ..... ..... .....", [1, 0]),  # a tie: the lower index
    (">.<<. ..... ..... ..... .....", [0, 1, 1]),  # the longer chain
    ("..v.. .>.<. ..^.. ..... .....", [1, 0, 0, 0]),
    ("..v.. .>.<. ..^.. ..^.. .....", [0, 0, 0, 1, 1]),
    (">>.<. .^.^. ..... ..... .....", [1, 1, 0, 0, 0]),  # a tie, and another one behind the winner
    (">>.<. .^.^. ...^. ..... .....", [0, 0, 1, 0, 1, 1]),
    (">>.<. .^.^. .^... ..... .....", [0, 1, 0, 1, 0, 1]),
    (".v... >.<.. .^... .^... .....", [0, 0, 0, 1, 1]),
])
def test_situations(text, expected):
    cell, target = situation(text)
    for rule in (who_moves, lambda cell, target: who_moves_exact(cell, target, PLACES)):
        moves = rule(cell, target)
        assert moves.dtype == torch.bool and moves.is_contiguous() and moves.tolist() == [[bool(x) for x in expected]]


@pytest.mark.parametrize("n", [1, 2, 3, 4, 7, 12, 20])
def test_equal_to_the_slow_rule(n):
    """Random crowds on 25 cells; the exact rule differs at ties only."""
    generator = torch.Generator().manual_seed(n)
    rows = 400
    cell = torch.rand(rows, 25, generator=generator).argsort(1)[:, :n]
    step = torch.tensor([-COLUMNS, COLUMNS, -1, 1, 0])[
        torch.multinomial(torch.tensor([1.0, 1, 1, 1, 0.3]), rows * n, True, generator=generator)].view(rows, n)
    target = cell + step
    sideways = (step.abs() == 1) & (target.div(COLUMNS, rounding_mode="floor") != cell // COLUMNS)
    target = torch.where((target < 0) | (target > 24) | sideways, cell, target)
    moves, exact = who_moves(cell, target), who_moves_exact(cell, target, PLACES)
    expected, ties = zip(*(slow(*row) for row in zip(cell.tolist(), target.tolist(), strict=True)), strict=True)
    assert moves.tolist() == list(expected)
    differs = (moves != exact).any(1)
    assert not differs[~torch.tensor(ties)].any()
    assert n < 4 or moves.any(1).all() or differs.any()
    after = torch.where(moves, target, cell)
    assert (after.sort(1).values.diff() > 0).all()


def test_many_robots_and_large_numbers():
    """One chain of 200 robots on cells with numbers beyond int16."""
    cell = torch.arange(200).expand(2, -1) + 100_000
    moves = who_moves(cell, torch.stack([cell[0] + 1, torch.where(cell[1] == 100_120, cell[1], cell[1] + 1)]))
    assert moves[0].all() and moves[1].tolist() == [False] * 121 + [True] * 79
