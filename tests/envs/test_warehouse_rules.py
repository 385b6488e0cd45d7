"""The robot warehouse against recorded trajectories and against the package itself; where episodes start."""

from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.stats import chi2_contingency

from envs.warehouse_conflicts import who_moves, who_moves_exact
from envs.warehouse_layout import SIZES, from_sizes, from_text
from envs.warehouse_rules import (
    FORWARD,
    LEFT,
    NOOP,
    RIGHT,
    TOGGLE,
    Floor,
    Rules,
    advance,
    draw_requests,
    make_tables,
    observe,
    shelf_cells,
    start,
)

torch.set_num_threads(1)

GOLDEN = Path(__file__).parents[1] / "golden" / "rware"
RECORDED = sorted(path.stem for path in GOLDEN.glob("rware-*.npz"))
CORNERS = np.load(GOLDEN / "corner_cases.npz")
CORNER_CASES = sorted({int(key[4:].split(".")[0]) for key in CORNERS.files})
STATE = ("x", "y", "dir", "carry", "has_delivered", "sx", "sy", "queue", "inactive")


class Game:
    """Rules with their tables, floors from plain arrays, and arrays from floors."""

    def __init__(self, layout, n_agents, requests, **more):
        self.rules = Rules(layout=layout, n_agents=n_agents, requests=requests, **more)
        self.tables = make_tables(self.rules, "cpu")
        self.reach = self.rules.sensor_range
        self.columns = layout.cols + 2 * self.reach
        self.places = [(k % self.columns - self.reach, k // self.columns - self.reach)
                       for k in range(len(self.tables.shelves))]

    def exact(self, cell, target):
        return who_moves_exact(cell, target, self.places)

    def number(self, x, y):
        return (y + self.reach) * self.columns + x + self.reach

    def floor(self, arrays):
        """Floors from arrays x, y, dir, carry, has_delivered [N, A], sx, sy [N, M], queue [N, Q], inactive [N]."""
        s = {key: torch.as_tensor(np.asarray(value)).long() for key, value in arrays.items()}
        count, m = s["sx"].shape
        ids = torch.arange(1, m + 1).expand(count, m)
        shelves = torch.zeros(count, len(self.places), dtype=torch.int64)
        shelves = shelves.scatter(1, self.number(s["sx"], s["sy"]), ids)
        cell = self.number(s["x"], s["y"])
        rows = torch.arange(count).unsqueeze(-1).expand_as(cell)
        shelves[rows[s["carry"] > 0], cell[s["carry"] > 0]] = 0
        order = torch.stack([torch.cat([q, row[~torch.isin(row, q)]]) for q, row in zip(s["queue"], ids, strict=True)])
        return Floor(cell, s["dir"], s["carry"].short(), s["has_delivered"].bool(), shelves.short(), order.short(),
                     s["inactive"])

    def arrays(self, floor):
        cell, shelf = floor.cell.numpy(), shelf_cells(self.tables, floor).numpy()
        return {"x": cell % self.columns - self.reach, "y": cell // self.columns - self.reach,
                "dir": floor.heading.numpy(), "carry": floor.load.numpy(), "has_delivered": floor.delivered.numpy(),
                "sx": shelf % self.columns - self.reach, "sy": shelf // self.columns - self.reach,
                "queue": floor.order[:, :self.rules.requests].numpy(), "inactive": floor.idle.numpy()}

    def draws(self, floor, after, drawn):
        """Places to draw so that each row's ids ``drawn`` [N, k] are requested in this order; 0 is no draw."""
        out = np.full((len(drawn), len(self.tables.goals)), self.rules.requests)
        for row, (order, ids) in enumerate(zip(floor.order.tolist(), drawn, strict=True)):
            left = [int(shelf) for shelf in ids if shelf]
            cells = self.number(after["sx"][row].astype(int), after["sy"][row].astype(int)).tolist()
            at = dict(zip(cells, range(1, len(order) + 1), strict=True))
            for k, goal in enumerate(self.tables.goals):
                if at.get(goal) in order[:self.rules.requests]:
                    slot, place = order.index(at[goal]), order.index(left.pop(0))
                    order[slot], order[place], out[row, k] = order[place], order[slot], place
            assert not left, "a request was drawn for a delivery that these rules do not see"
        return torch.from_numpy(out)


def assert_same(found, expected, rows=slice(None)):
    for key in STATE:
        np.testing.assert_array_equal(found[key][rows], expected[key][rows], err_msg=key)


def of_id(name, **more):
    """The game of a registered id without its first and last word."""
    _, size, agents, *rest = name.split("-")
    n = int(agents[:-2])
    return Game(from_sizes(*SIZES[size]), n, int(n * {"hard": 0.5, "easy": 2}.get(rest[0], 1)), **more)


# ---------------------------------------------------------------------- recorded trajectories

def test_all_recordings_are_here():
    assert len(RECORDED) == 4 and len(CORNER_CASES) == 13


@pytest.mark.parametrize("name", RECORDED)
def test_constants(name):
    file, game = np.load(GOLDEN / f"{name}.npz"), of_id(name)
    layout = game.rules.layout
    assert [layout.rows, layout.cols] == file["const.grid_size_hw"].tolist()
    highways = [[layout.is_highway(row, col) for col in range(layout.cols)] for row in range(layout.rows)]
    np.testing.assert_array_equal(highways, file["const.highways"])
    assert [[col, row] for row, col in layout.goals] == file["const.goals_xy"].tolist()
    assert [[col, row] for row, col in layout.shelves] == file["const.initial_shelf_xy"].tolist()
    assert game.rules.requests == file["const.request_queue_size"]
    assert game.rules.sensor_range == file["const.sensor_range"]


@pytest.mark.parametrize("rule", ["index", "exact"])
@pytest.mark.parametrize("name", RECORDED)
def test_recorded_trajectories(name, rule):
    """Every step of every trajectory, each from the recorded state: all are rows of one batch."""
    file, game = np.load(GOLDEN / f"{name}.npz"), of_id(name)
    steps = 0
    for k in range(8):
        t = {key.partition(".")[2]: file[key] for key in file.files if key.startswith(f"traj{k}.")}
        np.testing.assert_array_equal(observe(game.rules, game.tables, game.floor({key: t[key] for key in STATE})),
                                      t["obs"])
        before, after = ({key: t[key][part] for key in STATE} for part in (slice(None, -1), slice(1, None)))
        floor, actions = game.floor(before), torch.from_numpy(t["actions"]).long()
        resolve = who_moves if rule == "index" else game.exact
        found, reward = advance(game.rules, game.tables, floor, actions,
                                game.draws(floor, after, t["request_draws"]), resolve)
        rows = ~t["index_rule_differs"] if rule == "index" else slice(None)
        assert_same(game.arrays(found), after, rows)
        np.testing.assert_array_equal(reward[rows], t["rewards"][rows])
        steps += len(actions[rows])
    assert steps >= 980


@pytest.mark.parametrize("rule", ["index", "exact"])
@pytest.mark.parametrize("case", CORNER_CASES, ids=lambda k: CORNERS[f"case{k}.description"].item()[:40])
def test_corner_cases(case, rule):
    game = of_id(CORNERS[f"case{case}.env"].item())
    floor = game.floor({key: CORNERS[f"case{case}.init.{key}"][None] for key in STATE})
    np.testing.assert_array_equal(observe(game.rules, game.tables, floor)[0], CORNERS[f"case{case}.init.obs"])
    for t, action in enumerate(CORNERS[f"case{case}.actions"]):
        after = {key: CORNERS[f"case{case}.{key}"][t:t + 1] for key in STATE}
        draws = game.draws(floor, after, CORNERS[f"case{case}.draws"][t:t + 1])
        floor, reward = advance(game.rules, game.tables, floor, torch.as_tensor(action).long()[None], draws,
                                who_moves if rule == "index" else game.exact)
        assert_same(game.arrays(floor), after)
        np.testing.assert_array_equal(observe(game.rules, game.tables, floor)[0], CORNERS[f"case{case}.obs"][t])
        np.testing.assert_array_equal(reward[0], CORNERS[f"case{case}.rewards"][t])


# ---------------------------------------------------------------------- side by side with the package

ISLANDS = """
    g....g
    .xx.x.
    .xx.x.
    ......
    .x.g..
"""
CASES = {
    "tiny, 2 agents, hard": dict(layout=from_sizes(1, 3), n_agents=2, requests=1),
    "tiny, 4 agents": dict(layout=from_sizes(1, 3), n_agents=4, requests=4),
    "small, 4 agents, two-stage, far sight": dict(layout=from_sizes(2, 3), n_agents=4, requests=2, sensor_range=2,
                                                  reward_type="two_stage"),
    "8 agents, global reward, far sight": dict(layout=from_sizes(1, 3, 2), n_agents=8, requests=2, sensor_range=4,
                                               reward_type="global", normalize_coordinates=True, max_inactivity=6),
    "a crowd of 19": dict(layout=from_sizes(1, 3), n_agents=19, requests=20),
    "own layout, two-stage": dict(layout=from_text(ISLANDS), n_agents=5, requests=4, reward_type="two_stage",
                                  sensor_range=3),
    "alone": dict(layout=from_sizes(1, 3, 3), n_agents=1, requests=3),
}
REWARD_NAMES = {"individual": "INDIVIDUAL", "global": "GLOBAL", "two_stage": "TWO_STAGE"}


class Draws:
    """Stands for the package's generator during a step: chooses and takes note."""

    def __init__(self, seed):
        self.random, self.drawn = np.random.default_rng(seed), []

    def choice(self, shelves):
        shelf = shelves[self.random.integers(len(shelves))]
        self.drawn.append(shelf.id)
        return shelf


def original(game):
    """The package's environment of a game."""
    warehouse = pytest.importorskip("rware.warehouse", reason="rware is not installed")
    rules = game.rules
    return warehouse.Warehouse(
        shelf_columns=1, column_height=1, shelf_rows=1, n_agents=rules.n_agents, msg_bits=0,
        sensor_range=rules.sensor_range, request_queue_size=rules.requests, max_inactivity_steps=rules.max_inactivity,
        max_steps=None, reward_type=warehouse.RewardType[REWARD_NAMES[rules.reward_type]],
        layout="\n".join(rules.layout.lines), normalised_coordinates=rules.normalize_coordinates)


def state(env):
    """What the package's environment holds, with a leading dimension of one row."""
    agents, shelves = env.agents, env.shelfs
    values = {"x": [a.x for a in agents], "y": [a.y for a in agents], "dir": [a.dir.value for a in agents],
              "carry": [a.carrying_shelf.id if a.carrying_shelf else 0 for a in agents],
              "has_delivered": [a.has_delivered for a in agents], "sx": [s.x for s in shelves],
              "sy": [s.y for s in shelves], "queue": [s.id for s in env.request_queue],
              "inactive": env._cur_inactive_steps}
    return {key: np.asarray(value)[None] for key, value in values.items()}


def load_up(env, random):
    """Give some robots a shelf, more often a requested one, so that deliveries and blocked loads happen soon."""
    for agent in env.agents:
        pool = env.request_queue if random.random() < 0.7 else env.shelfs
        shelf = pool[random.integers(len(pool))]
        taken = {a.carrying_shelf for a in env.agents}
        if random.random() < 0.6 and shelf not in taken and not env.grid[1, agent.y, agent.x]:
            agent.carrying_shelf = shelf
            shelf.x, shelf.y = agent.x, agent.y
            env._recalc_grid()


def scripted(env, random):
    """Loads go to a goal, the others to a requested shelf, straight ahead; some actions are random."""
    actions = []
    for agent in env.agents:
        if agent.carrying_shelf:
            wanted = agent.carrying_shelf in env.request_queue
            x, y = env.goals[agent.id % len(env.goals)] if wanted else (1, 1)
        else:
            shelf = env.request_queue[agent.id % len(env.request_queue)]
            x, y = shelf.x, shelf.y
        dx, dy = x - agent.x, y - agent.y
        heading = (0 if dy < 0 else 1) if dy and (not dx or agent.id % 2) else (2 if dx < 0 else 3)
        if random.random() < 0.25:
            action = random.integers(5)
        elif not dx and not dy:
            action = TOGGLE
        else:
            action = FORWARD if agent.dir.value == heading else random.choice([LEFT, RIGHT])
        actions.append(int(action))
    return actions


@pytest.mark.filterwarnings("ignore:.*precision lowered by casting")  # of the package's spaces
@pytest.mark.parametrize("case", CASES)
def test_side_by_side_with_the_package(case):
    """From shared starts, stepping on our own: always the same with the exact rule, with ours except at ties."""
    game = Game(**CASES[case])
    env, random = original(game), np.random.default_rng(5)
    resolve = game.exact
    steps = ties = deliveries = 0
    for episode in range(12):
        env.reset(seed=episode)
        load_up(env, random)
        env._np_random = Draws(episode)
        floor = game.floor(state(env))
        for _ in range(60):
            action = scripted(env, random) if episode % 3 else [
                int(a) for a in random.choice(5, game.rules.n_agents, p=[0.05, 0.55, 0.15, 0.15, 0.1])]
            env._np_random.drawn.clear()
            seen, rewards, done, *_ = env.step(action)
            after, actions = state(env), torch.tensor([action])
            draws = game.draws(floor, after, [env._np_random.drawn])
            simple, _ = advance(game.rules, game.tables, floor, actions, draws)
            before = floor
            floor, reward = advance(game.rules, game.tables, before, actions, draws, resolve)
            assert_same(game.arrays(floor), after)
            np.testing.assert_array_equal(observe(game.rules, game.tables, floor)[0], seen)
            np.testing.assert_array_equal(reward[0], rewards)
            limit = game.rules.max_inactivity
            assert done == (limit is not None and floor.idle.item() >= limit)
            if not torch.equal(simple.cell, floor.cell):
                highest = advance(game.rules, game.tables, before, actions, draws,
                                  lambda cell, target: who_moves(cell.flip(1), target.flip(1)).flip(1))[0]
                assert not torch.equal(simple.cell, highest.cell), "the index rule differs where nothing is tied"
                ties += 1
            else:
                assert all(torch.equal(a, b) for a, b in zip(simple, floor, strict=True))
            steps, deliveries = steps + 1, deliveries + len(env._np_random.drawn)
    assert steps == 720 and deliveries > 0 and ties < 0.5 * steps
    assert game.rules.n_agents < 8 or ties > 0


# ---------------------------------------------------------------------- starts and draws

def counts(game, x, y, heading, queue):
    layout = game.rules.layout
    return [np.bincount((y * layout.cols + x).ravel(), minlength=layout.rows * layout.cols),
            np.bincount(np.asarray(heading).ravel(), minlength=4),
            np.bincount(np.asarray(queue).ravel(), minlength=len(layout.shelves) + 1)[1:]]


def test_starts_have_the_distribution_of_the_package():
    game = Game(from_sizes(1, 3, 2), 3, 2)
    env = original(game)
    env.reset(seed=0)
    theirs = []
    for _ in range(2500):
        env.reset()
        theirs.append(state(env))
    theirs = {key: np.concatenate([row[key] for row in theirs]) for key in STATE}
    ours = game.arrays(start(game.rules, game.tables, 20000, torch.Generator().manual_seed(0)))
    columns = ("x", "y", "dir", "queue")
    for one, two in zip(counts(game, *(ours[key] for key in columns)), counts(game, *(theirs[key] for key in columns)),
                        strict=True):
        assert (one > 0).all() and chi2_contingency([one, two]).pvalue > 0.001
    for agent in range(3):  # each of them, not only all together
        one, two = (counts(game, *(s[key][:, agent:agent + 1] for key in columns[:3]), s["queue"])[0]
                    for s in (ours, theirs))
        assert chi2_contingency([one, two]).pvalue > 0.001
    places = np.sort(game.number(ours["x"], ours["y"]), axis=1)
    assert (np.diff(places, axis=1) > 0).all()  # one robot per cell
    for key in ("carry", "has_delivered", "inactive"):
        assert not ours[key].any()
    np.testing.assert_array_equal(ours["sx"][0], theirs["sx"][0])


def test_new_requests_are_uniform_over_the_others():
    """A robot with a requested shelf steps onto a goal in every row."""
    game, count = Game(from_sizes(1, 3, 2), 1, 3), 7000
    layout = game.rules.layout
    (row, col), m = layout.goals[0], len(layout.shelves)
    one = {"x": [col], "y": [row - 1], "dir": [1], "carry": [2], "has_delivered": [False], "queue": [5, 2, 1],
           "sx": [x for _, x in layout.shelves], "sy": [y for y, _ in layout.shelves], "inactive": 7}
    one["sx"][1], one["sy"][1] = col, row - 1
    floor = game.floor({key: np.asarray(value)[None].repeat(count, 0) for key, value in one.items()})
    draws = draw_requests(game.rules, game.tables, count, torch.Generator().manual_seed(0))
    floor, reward = advance(game.rules, game.tables, floor, torch.full((count, 1), FORWARD), draws)
    queue = game.arrays(floor)["queue"]
    assert (reward == 1).all() and (floor.idle == 0).all()
    assert (queue[:, 0] == 5).all() and (queue[:, 2] == 1).all()
    drawn = np.bincount(queue[:, 1], minlength=m + 1)
    others = [shelf for shelf in range(1, m + 1) if shelf not in (5, 2, 1)]
    assert drawn[[0, 5, 2, 1]].sum() == 0 and (drawn[others] > 0).all()
    assert chi2_contingency([drawn[others], np.full(len(others), count // len(others))]).pvalue > 0.001
    assert (floor.order.sort(1).values == torch.arange(1, m + 1)).all()


def test_every_shelf_stays_one_shelf():
    """Whatever happens, no shelf and no robot is lost or doubled."""
    game, count = Game(from_sizes(1, 3, 3), 6, 3), 64
    generator = torch.Generator().manual_seed(1)
    floor = start(game.rules, game.tables, count, generator)
    m = len(game.rules.layout.shelves)
    for _ in range(300):
        action = torch.tensor([NOOP, FORWARD, FORWARD, LEFT, RIGHT, TOGGLE])[
            torch.randint(6, (count, 6), generator=generator)]
        floor, _ = advance(game.rules, game.tables, floor, action,
                           draw_requests(game.rules, game.tables, count, generator))
    held = torch.cat([floor.shelves, floor.load], 1)
    assert (floor.load > 0).any() and ((held > 0).sum(1) == m).all()
    assert (held.sort(1).values[:, -m:] == torch.arange(1, m + 1)).all()
    assert (floor.cell.sort(1).values.diff() > 0).all()
    assert torch.isin(floor.cell, game.tables.cells).all() and (floor.shelves[:, 0] == 0).all()


def test_far_sight_sees_far():
    """The nearer view is the middle of the farther one."""
    near, far = (Game(from_sizes(1, 3), 4, 4, sensor_range=reach) for reach in (1, 2))
    floor = start(near.rules, near.tables, 50, torch.Generator().manual_seed(2))
    one = observe(near.rules, near.tables, floor)
    two = observe(far.rules, far.tables, far.floor(near.arrays(floor)))
    assert one.shape == (50, 4, 71) and two.shape == (50, 4, 183)
    assert torch.equal(one[..., :8], two[..., :8])
    middle = two[..., 8:].unflatten(-1, (5, 5, 7))[..., 1:4, 1:4, :]
    assert torch.equal(one[..., 8:], middle.flatten(-3))
