"""Foraging: who is in sight, and what agents are not told, against the observation and by hand."""

import pytest
import torch

from envs import make_env
from envs.base import ACTION, HIDDEN_VARIABLES, OBSERVATION, VISIBLE
from envs.foraging_rules import Board, Rules, hidden, hidden_parts, observe, visible

torch.set_num_threads(1)

N = 200


def rules_of(**changes):
    given = dict(rows=9, cols=9, players=3, foods=2, sight=2, force_coop=True, min_player_level=(1, 1, 1),
                 max_player_level=(3, 3, 3), min_food_level=(1, 1), max_food_level=None)
    return Rules(**given | changes)


def board_of(agents, foods):
    """One board from (row, column, level) of each agent and food."""
    def columns(entries):
        return [torch.tensor([[entry[k]] for entry in entries], dtype=torch.int32) for k in range(3)]

    return Board(*columns(agents), *columns(foods), torch.tensor([sum(food[2] for food in foods)], dtype=torch.int32))


def played(name, steps=6, **options):
    env = make_env(name, num_envs=N, seed=3, **options)
    outs = [env.reset_tensors()]
    for _ in range(steps):
        outs.append(env.step_tensors({ACTION: env.full_action_spec[ACTION].rand()}))
    return env, outs


# agents at (0, 0), (4, 1) and (5, 5); sight 2
BOARD = board_of([(0, 0, 1), (4, 1, 2), (5, 5, 3)], [(2, 2, 6), (6, 6, 3)])


def test_visible_by_hand():
    """At the upper left corner the view starts at cell 0, so that agents are seen up to 4 cells below and right."""
    assert visible(rules_of(), BOARD)[0].tolist() == [[1, 0], [0, 0], [0, 0]]
    near = BOARD._replace(row=torch.tensor([[3], [4], [5]], dtype=torch.int32),
                          col=torch.tensor([[4], [3], [5]], dtype=torch.int32))
    assert visible(rules_of(), near)[0].tolist() == [[1, 1], [1, 1], [1, 1]]
    assert visible(rules_of(sight=1), near)[0].tolist() == [[1, 0], [1, 0], [0, 0]]


@pytest.mark.parametrize("name", ["2s-9x9-3p-2f-coop", "1s-6x7-4p-2f-coop", "3s-8x8-2p-2f-coop", "8x8-3p-2f-coop"])
def test_as_many_are_visible_as_the_observation_shows(name):
    env, outs = played(f"foraging/{name}", with_visible=True)
    first = 3 * env.rules.foods + 3
    for out in outs:
        levels = out[OBSERVATION][..., first + 2::3]
        assert torch.equal((levels > 0).sum(-1).float(), out[VISIBLE].sum(-1))
    everyone = torch.ones_like(outs[-1][VISIBLE])
    assert torch.equal(outs[-1][VISIBLE], everyone) == ("s-" not in name)


def test_a_visible_agent_is_the_one_that_the_observation_describes():
    """Its level, which is unique here, is in the observation if and only if it is visible."""
    rules = rules_of()
    for seed in range(20):
        random = torch.Generator().manual_seed(seed)
        cells = torch.randperm(81, generator=random)[:3].tolist()
        board = board_of([(cell // 9, cell % 9, k + 1) for k, cell in enumerate(cells)], [(2, 2, 6), (6, 6, 3)])
        levels = observe(rules, board)[0, :, 11::3]
        for i in range(3):
            for k, j in enumerate([j for j in range(3) if j != i]):
                assert (j + 1 in levels[i].tolist()) == bool(visible(rules, board)[0, i, k])


def test_hidden_by_hand():
    rules = rules_of()
    assert hidden_parts(rules) == (("others", 4, False), ("levels", 2, False), ("foods", 6, False))
    found = hidden(rules, BOARD)[0] * torch.tensor([9.0] * 4 + [3.0] * 2 + [9.0] * 6)  # sides, levels
    assert found.shape == (3, 12)
    # row and column of each other one, their levels; row, column and level of each food that is out of sight
    torch.testing.assert_close(found[0], torch.tensor([4.0, 1, 5, 5, 2, 3, 0, 0, 0, 6, 6, 3]))
    torch.testing.assert_close(found[1], torch.tensor([-4.0, -1, 1, 4, 1, 3, 0, 0, 0, 2, 5, 3]))
    torch.testing.assert_close(found[2], torch.tensor([-5.0, -5, -1, -4, 1, 2, -3, -3, 6, 0, 0, 0]))


def test_food_that_is_gone_is_zero():
    gone = BOARD._replace(food_level=torch.zeros_like(BOARD.food_level))
    assert (hidden(rules_of(), gone)[..., 6:] == 0).all()


def test_seen_food_and_hidden_food_are_all_food():
    env, outs = played("foraging/2s-9x9-3p-3f-coop", with_hidden=True)
    foods = env.rules.foods
    seen = (outs[-1][OBSERVATION][..., 2:3 * foods:3] > 0).sum(-1)
    unseen = (outs[-1][HIDDEN_VARIABLES][..., 2 - 3 * foods::3] > 0).sum(-1)
    left = (env.board.food_level > 0).sum(0)
    assert torch.equal(seen + unseen, left[:, None].expand(-1, 3)) and unseen.sum() > 0 and seen.sum() > 0


@pytest.mark.parametrize(("changes", "names"), [
    ({}, ["others", "levels", "foods"]), ({"sight": 8}, []), ({"sight": 7}, ["others", "levels", "foods"]),
    ({"sight": 8, "observe_agent_levels": False}, ["levels"]),
    ({"max_player_level": (1, 1, 1)}, ["others", "foods"]),
    ({"max_player_level": (1, 1, 1), "sight": 8, "observe_agent_levels": False}, []),
    ({"players": 1, "min_player_level": (1,), "max_player_level": (3,)}, ["foods"]),
], ids=str)
def test_what_is_hidden_depends_on_the_settings(changes, names):
    rules = rules_of(**changes)
    assert [name for name, *_ in hidden_parts(rules)] == names
    if names:
        board = board_of([(4, 1, 1), (0, 0, 1), (5, 5, 1)][:rules.players], [(2, 2, 6), (6, 6, 3)])
        assert hidden(rules, board).shape == (1, rules.players, sum(width for _, width, _ in hidden_parts(rules)))


def test_refused_where_nothing_is_hidden_and_nobody_can_be_seen():
    with pytest.raises(ValueError, match=r"8x8-2p-2f-coop has no hidden variables.*sight 8"):
        make_env("foraging/8x8-2p-2f-coop", num_envs=2, with_hidden=True)
    with pytest.raises(ValueError, match=r"2s-8x8-1p-2f has a single agent"):
        make_env("foraging/2s-8x8-1p-2f", num_envs=2, with_visible=True)


def test_a_single_agent_has_hidden_food():
    _, outs = played("foraging/2s-9x9-1p-2f", with_hidden=True)
    assert outs[0][HIDDEN_VARIABLES].shape == (N, 1, 6)
