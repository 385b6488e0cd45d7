"""Warehouse: which robots are in sight, and what they are not told of each other."""

import pytest
import torch

from envs import make_env
from envs.base import ACTION, HIDDEN_VARIABLES, OBSERVATION, VISIBLE
from envs.warehouse_rules import FORWARD, OWN, PER_CELL, TOGGLE

torch.set_num_threads(1)

N = 64


def made(name="warehouse/tiny-3ag", **options):
    env = make_env(name, num_envs=N, seed=1, **{"with_visible": True, "with_hidden": True} | options)
    return env, env.reset_tensors()


def put(env, cells, **more):
    """Robots of all rows on (row, column) each."""
    reach = env.rules.sensor_range
    columns = env.rules.layout.cols + 2 * reach
    numbers = torch.tensor([(row + reach) * columns + col + reach for row, col in cells])
    env.floor = env.floor._replace(cell=numbers.expand(N, -1).clone(), **more)
    env._seen = None
    return env._observe()


def test_visible_by_hand():
    env, _ = made()
    seen = put(env, [(0, 0), (1, 1), (3, 1)])
    assert seen[VISIBLE][0].tolist() == [[1, 0], [1, 0], [0, 0]]
    env, _ = made(sensor_range=2)
    assert put(env, [(0, 0), (1, 1), (3, 1)])[VISIBLE][0].tolist() == [[1, 0], [1, 1], [0, 1]]


@pytest.mark.parametrize("reach", [1, 2])
def test_as_many_are_visible_as_the_sensors_show(reach):
    env, _ = made("warehouse/tiny-8ag", sensor_range=reach)
    for _ in range(5):
        out = env.step_tensors({ACTION: env.full_action_spec[ACTION].rand()})
        robots = out[OBSERVATION][..., OWN::PER_CELL].sum(-1) - 1  # but for itself
        assert torch.equal(robots, out[VISIBLE].sum(-1))
    assert 0 < out[VISIBLE].mean() < 1


def test_hidden_by_hand():
    env, _ = made()
    layout, floor = env.rules.layout, env.floor
    wanted, other = floor.order[:, 0], floor.order[:, -1]
    load = torch.stack([torch.zeros_like(wanted), wanted, other], 1)
    nowhere = torch.zeros_like(floor.shelves)
    found = put(env, [(0, 0), (1, 1), (3, 1)], load=load, shelves=nowhere)[HIDDEN_VARIABLES][0]
    side = max(layout.rows, layout.cols)
    assert env.hidden_parts == (("others", 4, False), ("loads", 2, False))
    expected = [[1, 1, 3, 1, 1, 0.5], [-1, -1, 2, 0, 0, 0.5], [-3, -1, -2, 0, 0, 1]]
    torch.testing.assert_close(found * torch.tensor([side] * 4 + [1] * 2), torch.tensor(expected))


def test_it_changes_when_a_robot_moves_and_picks_up():
    env, _ = made()
    row, col = env.rules.layout.shelves[0]
    before = put(env, [(row, col), (0, 0), (0, 1)], heading=torch.zeros(N, 3, dtype=torch.int64))
    out = env.step_tensors({ACTION: torch.tensor([TOGGLE, 0, 0]).expand(N, -1)})
    loads = out[HIDDEN_VARIABLES][:, 1, -2]
    assert (before[HIDDEN_VARIABLES][:, 1, -2] == 0).all() and (loads >= 0.5).all()
    requested = (env.floor.load[:, :1] == env.floor.order[:, :env.rules.requests]).any(-1)
    assert torch.equal(loads == 1, requested)
    assert FORWARD == 1


def test_a_single_robot_has_nobody_to_see():
    for option in ("with_visible", "with_hidden"):
        with pytest.raises(ValueError, match="tiny-1ag has a single agent"):
            make_env("warehouse/tiny-1ag", num_envs=2, **{option: True})
