"""Level-based foraging against recorded trajectories and against the package itself; where episodes start."""

from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.stats import chi2

from envs.foraging_rules import LOAD, Board, Rules, advance, capacity, legal_actions, observe, start

torch.set_num_threads(1)

GOLDEN = Path(__file__).parents[1] / "golden" / "lbf"
RECORDED = sorted(path.stem for path in GOLDEN.glob("*-*.npz"))
CORNERS = np.load(GOLDEN / "corner_cases.npz")


def rules(rows=9, cols=9, players=3, foods=2, *, sight=2, force_coop=True, max_player_level=3, **more):
    fixed = {"min_player_level": 1, "max_player_level": max_player_level, "min_food_level": 1, "max_food_level": None}
    counts = dict.fromkeys(fixed, players) | {"min_food_level": foods, "max_food_level": foods}
    levels = {key: (value,) * counts[key] if isinstance(value, int) else value
              for key, value in (fixed | {key: more.pop(key) for key in fixed if key in more}).items()}
    return Rules(rows, cols, players, foods, sight, force_coop, **levels, **more)


def board_of(field, pos, level, total, foods):
    """One board from arrays: field [H, W], pos [n, 2], level [n]."""
    where = np.argwhere(field)
    food = np.zeros((foods, 3), dtype=np.int64)
    food[:len(where)] = [(r, c, field[r, c]) for r, c in where]
    return Board(*(torch.as_tensor(np.asarray(x), dtype=torch.int32).unsqueeze(-1)
                   for x in (*pos.T, level, *food.T)), torch.tensor([int(total)], dtype=torch.int32))


def joined(boards):
    return Board(*(torch.cat(parts, -1) for parts in zip(*boards, strict=True)))


def field_of(board, row, shape):
    field = np.zeros(shape, dtype=np.int64)
    field[board.food_row[:, row], board.food_col[:, row]] += board.food_level[:, row].numpy()
    return field


def assert_same(rule, board, row, field, pos, obs, valid):
    """Exactly what was recorded."""
    np.testing.assert_array_equal(field_of(board, row, field.shape), field)
    np.testing.assert_array_equal(torch.stack([board.row[:, row], board.col[:, row]], -1), pos)
    np.testing.assert_array_equal(observe(rule, board)[row], obs)
    np.testing.assert_array_equal(legal_actions(rule, board)[..., row].T, valid)


# ---------------------------------------------------------------------- recorded trajectories

def test_all_recordings_are_here():
    assert len(RECORDED) == 5


@pytest.mark.parametrize("name", RECORDED)
def test_recorded_trajectories(name):
    data = np.load(GOLDEN / f"{name}.npz")
    levels, foods = data["const.max_player_level"], int(data["const.max_num_food"])
    rule = rules(*data["const.field_size"].tolist(), len(levels), foods, sight=int(data["const.sight"]),
                 force_coop=bool(data["const.force_coop"]), max_player_level=tuple(levels.tolist()))
    keys = ("field", "pos", "level", "obs", "valid", "actions", "rewards", "done", "food_spawned")
    runs = [{key: data[f"traj{k}.{key}"] for key in keys} for k in range(8)]
    board = joined(board_of(run["field"][0], run["pos"][0], run["level"][0], run["food_spawned"], foods)
                   for run in runs)
    for t in range(max(len(run["actions"]) for run in runs) + 1):
        for row, run in enumerate(runs):
            if t < len(run["field"]):
                assert_same(rule, board, row, *(run[key][t] for key in ("field", "pos", "obs", "valid")))
        actions = [run["actions"][t] if t < len(run["actions"]) else np.zeros(len(levels), int) for run in runs]
        board, reward, empty = advance(rule, board, torch.tensor(np.stack(actions, -1)))
        for row, run in enumerate(runs):
            if t < len(run["actions"]):
                np.testing.assert_array_equal(reward[:, row], run["rewards"][t].astype(np.float32))
                assert (bool(empty[row]) or t + 1 == 50) == run["done"][t]


@pytest.mark.parametrize("case", range(11), ids=lambda k: str(CORNERS[f"case{k}.description"]).replace(" ", "_")[:60])
def test_corner_cases(case):
    get = {key.split(".", 1)[1]: CORNERS[key] for key in CORNERS.files if key.startswith(f"case{case}.")}
    rule = rules(sight=int(get["init.sight"]), foods=get["obs"].shape[-1] // 3 - 3)
    board = board_of(get["init.field"], get["init.pos"], get["init.level"], get["init.food_spawned"], rule.foods)
    for t, action in enumerate(get["actions"]):
        board, reward, empty = advance(rule, board, torch.tensor(action).unsqueeze(-1))
        np.testing.assert_array_equal(reward[:, 0], get["rewards"][t].astype(np.float32))
        assert bool(empty) == get["done"][t]
        assert_same(rule, board, 0, *(get[key][t] for key in ("field", "pos", "obs", "valid")))


# ---------------------------------------------------------------------- side by side with the package

CONFIGS = {
    "small": dict(rows=5, cols=5, players=3, foods=2, sight=1),
    "blind": dict(rows=6, cols=6, players=2, foods=3, sight=1, force_coop=False),
    "full": dict(rows=8, cols=8, players=2, foods=2, sight=8, max_player_level=2),
    "wide": dict(rows=6, cols=9, players=4, foods=3, sight=2, force_coop=False),
    "crowd": dict(rows=6, cols=6, players=9, foods=4, sight=3),
    "penalty": dict(rows=7, cols=7, players=3, foods=3, sight=7, penalty=0.1),
    "raw": dict(rows=7, cols=7, players=3, foods=3, sight=4, normalize_reward=False, force_coop=False),
    "hidden": dict(rows=7, cols=7, players=3, foods=2, sight=2, observe_agent_levels=False),
    "levels": dict(rows=8, cols=8, players=3, foods=3, sight=5, force_coop=False, min_player_level=(1, 2, 3),
                   max_player_level=(1, 2, 5), min_food_level=(1, 2, 3), max_food_level=(1, 4, 5)),
    "smpe": dict(rows=20, cols=20, players=5, foods=3, sight=7),
}


def package_env(rule):
    lbf = pytest.importorskip("lbforaging.foraging", reason="lbforaging is not installed")
    return lbf.ForagingEnv(
        rule.players, rule.min_player_level, rule.max_player_level, rule.min_food_level, rule.max_food_level,
        (rule.rows, rule.cols), rule.foods, rule.sight, 10**6, rule.force_coop,
        normalize_reward=rule.normalize_reward, observe_agent_levels=rule.observe_agent_levels, penalty=rule.penalty)


def put(env, board, row):
    """Put one board into the package's environment."""
    env.field = field_of(board, row, env.field.shape).astype(np.int32)
    for i, player in enumerate(env.players):
        player.setup((int(board.row[i, row]), int(board.col[i, row])), int(board.level[i, row]), env.field_size)
        player.reward = 0
    env._food_spawned, env.current_step, env._game_over = int(board.total[row]), 0, False
    env._gen_valid_moves()


def greedy(board, generator):
    """Random actions in one case of six, else go to the first food and load it; int64 [n, N]."""
    shape = board.row.shape
    chance = torch.multinomial(torch.ones(6), shape.numel(), replacement=True, generator=generator).view(shape)
    left = (board.food_level > 0).int()
    first = left.argmax(0, keepdim=True)
    down = board.food_row.gather(0, first) - board.row
    right = board.food_col.gather(0, first) - board.col
    vertical = (right == 0) | ((down != 0) & (torch.rand(shape, generator=generator) < 0.5))
    walk = torch.where(vertical, torch.where(down < 0, 1, 2), torch.where(right < 0, 3, 4))
    goal = torch.where(down.abs() + right.abs() == 1, LOAD, walk)
    return torch.where(torch.rand(shape, generator=generator) < 0.17, chance, goal)


@pytest.mark.parametrize("name", CONFIGS)
def test_every_step_equals_the_package(name):
    rule, rows = rules(**CONFIGS[name]), 8
    envs, generator = [package_env(rule) for _ in range(rows)], torch.Generator().manual_seed(7)
    loaded = 0
    for policy, steps in (("random", 20), ("greedy", 50)):
        board = start(rule, rows, generator)
        for row, env in enumerate(envs):
            put(env, board, row)
        for _ in range(steps):
            action = (greedy(board, generator) if policy == "greedy"
                      else torch.randint(6, board.row.shape, generator=generator))
            board, reward, empty = advance(rule, board, action)
            seen = observe(rule, board)
            for row, env in enumerate(envs):
                obs, expected, done, _, _ = env.step(action[:, row].tolist())
                valid = [[a in env._valid_actions[p] for a in type(env.action_set[0])] for p in env.players]
                assert_same(rule, board, row, env.field, np.array([p.position for p in env.players]), np.stack(obs),
                            np.array(valid))
                np.testing.assert_array_equal(reward[:, row], np.float32(expected))
                assert done == bool(empty[row])
            assert torch.equal(observe(rule, board), seen)
            loaded += int((reward > 0).any(0).sum())
    assert loaded > 3, "food was loaded"


# ---------------------------------------------------------------------- where episodes start

def counts(board, rule):
    """How often each cell holds the first agent, the second, the first food, and how often each level appears."""
    def histogram(x, size):
        return torch.bincount(x.flatten().long(), minlength=size)[:size].numpy()

    cells = rule.rows * rule.cols
    food = torch.where(board.food_level > 0, board.food_row * rule.cols + board.food_col, cells)
    agent = board.row * rule.cols + board.col
    apart = (board.row[0] - board.row[1]).abs() + (board.col[0] - board.col[1]).abs()
    return {
        "first agent": histogram(agent[0], cells), "last agent": histogram(agent[-1], cells),
        "distance of agents": histogram(apart, rule.rows + rule.cols), "food": histogram(food, cells),
        "first food in reading order": histogram(food[0], cells),
        "foods": histogram((food < cells).sum(0), rule.foods + 1),
        "agent levels": histogram(board.level, 9), "last agent's level": histogram(board.level[-1], 9),
        "least level": histogram(board.level.amin(0), 9), "food levels": histogram(board.food_level, 20),
        "total": histogram(board.total, 50),
    }


def package_starts(rule, number):
    env, boards = package_env(rule), []
    for k in range(number):
        for player in env.players:
            player.position = None  # else an old position blocks a cell
        env.reset(seed=k if k == 0 else None)
        boards.append(board_of(env.field, np.array([p.position for p in env.players]),
                               np.array([p.level for p in env.players]), env._food_spawned, rule.foods))
    return joined(boards)


@pytest.mark.parametrize(("name", "number"), [("small", 1500), ("crowd", 200), ("blind", 1500), ("levels", 1500)])
def test_starts_are_distributed_as_in_the_package(name, number):
    rule = rules(**CONFIGS[name])
    ours = counts(start(rule, 30_000, torch.Generator().manual_seed(0)), rule)
    theirs = counts(package_starts(rule, number), rule)
    for key, a in ours.items():
        b = theirs[key]
        common = (a + b) * b.sum() / (a + b).sum() >= 5  # a few observations of a rare outcome say nothing
        a, b = a[common].astype(float), b[common].astype(float)
        share = (a + b) / (a.sum() + b.sum())
        statistic = sum((((x - x.sum() * share) ** 2) / (x.sum() * share)).sum() for x in (a, b))
        assert len(a) == 1 or chi2.sf(statistic, len(a) - 1) > 1e-4, (key, a, b)


def test_starts_obey_the_rules():
    rule = rules(6, 7, 9, 4, sight=2)
    board = start(rule, 500, torch.Generator().manual_seed(1))
    agent = board.row * 7 + board.col
    assert all(len(set(column.tolist())) == 9 for column in agent.T)
    present = board.food_level > 0
    assert present[0].all() and not present[-1].all(), "some boards are too crowded for the last food"
    assert ((board.food_row > 0) & (board.food_row < 5) & (board.food_col > 0) & (board.food_col < 6))[present].all()
    for i in range(4):
        food = board.food_row[i] * 7 + board.food_col[i]
        assert not ((food == agent).any(0) & present[i]).any()
        for j in range(i):
            apart = (board.food_row[i] - board.food_row[j]).abs() + (board.food_col[i] - board.food_col[j]).abs()
            assert (apart >= 3)[present[i] & present[j]].all()
    least = board.level.sort(0).values[:3].sum(0)
    assert torch.equal(board.food_level, torch.where(present, least, 0).int())
    assert torch.equal(board.total, board.food_level.sum(0).int())


def test_a_board_without_food_is_over_and_pays_nothing():
    rule = rules(3, 3, 9, 1)
    board = start(rule, 4, torch.Generator().manual_seed(0))
    assert not board.food_level.any()
    board, reward, empty = advance(rule, board, torch.full((9, 4), LOAD))
    assert empty.all() and not reward.any() and torch.isfinite(observe(rule, board)).all()


@pytest.mark.parametrize(("size", "most"), [((3, 3), 1), ((5, 5), 2), ((6, 6), 4), ((7, 7), 6), ((8, 8), 8),
                                            ((9, 9), 10), ((10, 10), 13), ((3, 6), 2), ((6, 3), 2), ((12, 12), 28)])
def test_capacity(size, most):
    assert capacity(*size) == most


# ---------------------------------------------------------------------- no branch on data, any compiler

def test_the_step_is_one_graph():
    rule = rules(sight=2, penalty=0.1)

    def step(board, action):
        board, reward, empty = advance(rule, board, action)
        return board, reward, empty, observe(rule, board), legal_actions(rule, board)

    compiled = torch.compile(step, backend="aot_eager", fullgraph=True)
    generator = torch.Generator().manual_seed(0)
    one = two = start(rule, 16, generator)
    for _ in range(20):
        action = greedy(one, generator)
        one, *expected = step(one, action)
        two, *got = compiled(two, action)
        assert all(torch.equal(a, b) for a, b in zip([*one, *expected], [*two, *got], strict=True))


def test_illegal_and_unknown_actions_count_as_none():
    rule = rules()
    board = start(rule, 64, torch.Generator().manual_seed(0))
    legal = legal_actions(rule, board)
    for action in range(8):
        chosen = torch.full_like(board.row, action)
        allowed = legal[action] if action < 6 else torch.zeros_like(legal[0])
        one, two = (advance(rule, board, a) for a in (chosen, torch.where(allowed, chosen, 0)))
        assert all(torch.equal(a, b) for a, b in zip([*one[0], *one[1:]], [*two[0], *two[1:]], strict=True))
