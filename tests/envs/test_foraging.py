"""Foraging as an environment: names, options, bad input, resets, save and load, pictures."""

import numpy as np
import pytest
import torch

from envs import make_env
from envs.base import ACTION, ACTION_MASK, OBSERVATION, REWARD
from envs.foraging import KNOWN
from envs.foraging_rules import LOAD, Board

torch.set_num_threads(1)

SHORT = "foraging/2s-9x9-3p-2f-coop"


def play(env, steps, seed=0):
    generator, outs = torch.Generator().manual_seed(seed), []
    for _ in range(steps):
        action = torch.randint(6, (env.num_envs, env.n_agents), generator=generator)
        outs.append(env.step_tensors({ACTION: action}))
    return outs


def about_to_load(env, **more):
    """Put one board into row 0: agents of levels 1 and 2 left and right of the last food, of level 3."""
    values = {"row": [4, 4], "col": [3, 5], "level": [1, 2], "food_row": [4, 0], "food_col": [4, 0],
              "food_level": [3, 0]} | more
    board = {name: value.clone() for name, value in env.board._asdict().items()}
    for name, value in values.items():
        board[name][:, 0] = torch.tensor(value, dtype=torch.int32)
    board["total"][0] = 6
    env.board = Board(**board)


# ---------------------------------------------------------------------- names and options

@pytest.mark.parametrize("name", KNOWN)
def test_known_names(name):
    env = make_env(f"foraging/{name}", num_envs=2)
    rules, version3 = env.rules, name.endswith("-v3")
    assert env.max_steps == 50 and f"{rules.rows}x{rules.cols}-{rules.players}p-{rules.foods}f" in name
    assert rules.force_coop == ("-coop" in name)
    assert rules.sight == (int(name.split("s-")[0].rpartition("-")[2]) if "s-" in name else rules.rows)
    assert set(rules.max_player_level) == {2 if version3 else 3} and set(rules.min_player_level) == {1}
    assert env.observation_spec[OBSERVATION].shape == (2, rules.players, 3 * (rules.foods + rules.players))


def test_versions_of_a_name():
    def level(name):
        return make_env(f"foraging/{name}", num_envs=1).rules.max_player_level[0]

    assert level("2s-8x8-2p-2f-coop") == level("Foraging-2s-8x8-2p-2f-coop-v2") == level("8x8-2p-2f-coop-v2") == 3
    assert level("2s-8x8-2p-2f-coop-v3") == level("8x8-2p-2f-v3") == level("Foraging-8x8-2p-2f-v3") == 2


def test_options_replace_what_the_name_says():
    env = make_env(SHORT, num_envs=3, sight=4, force_coop=False, max_player_level=[1, 2, 5], min_food_level=2,
                   max_food_level=4, penalty=0.5, normalize_reward=False, observe_agent_levels=False, max_steps=7,
                   action_masks=False)
    rules = env.rules
    assert (rules.sight, rules.force_coop, rules.penalty, rules.normalize_reward) == (4, False, 0.5, False)
    assert rules.max_player_level == (1, 2, 5) and rules.min_food_level == (2, 2) and rules.max_food_level == (4, 4)
    assert env.max_steps == 7 and ACTION_MASK not in env.reset_tensors()
    assert env.reset_tensors()[OBSERVATION].shape == (3, 3, 12)


@pytest.mark.parametrize(("name", "message"), [
    ("2s-9x9-3p-2f-cop", r"did you mean '2s-9x9-3p-2f-coop'"), ("Foraging-8x8-2p-2f", "unknown foraging task"),
    ("8x8-2p-2f-v2", r"'-coop-v2'"), ("8x8-2p-2f-v4", "unknown"), ("8x8-2p", "unknown"),
    ("9x9-3p-2f-coop-coop", "unknown"),
    ("0s-8x8-2p-2f", "sight must be a positive integer, got 0"), ("8x8-0p-2f", "players must be"),
    ("8x8-2p-0f", "foods must be"), ("0x8-2p-2f", "rows must be"), ("2x8-2p-1f", "2x8 is too small"),
    ("5x5-2p-3f", "3 foods do not fit on a board of 5x5, at most 2 do"),
    ("3x3-10p-1f", "10 players do not fit .* most 9"),
    ("20x20-2p-80f", "80 foods do not fit .* most 79"), ("1001x9-2p-2f", "at most 1000"),
])
def test_bad_names(name, message):
    with pytest.raises(ValueError, match=message):
        make_env(f"foraging/{name}", num_envs=1)


@pytest.mark.parametrize(("options", "message"), [
    ({"sight": 0}, "sight must be a positive integer, got 0"), ({"sight": -2}, "got -2"), ({"sight": 1.5}, "got 1.5"),
    ({"site": 2}, r"no option 'site'.*did you mean 'sight'"),
    ({"with_hiden": True}, r"it has .*'with_visible', .*'sight'.*did you mean 'with_hidden'"),
    ({"max_player_level": 0}, "max_player_level must be a positive integer, or 3 of them, got 0"),
    ({"min_player_level": 4}, "min_player_level must be at most max_player_level, got 4 and 3"),
    ({"max_player_level": [1, 2]}, r"or 3 of them, got \[1, 2\]"), ({"max_player_level": None}, "got None"),
    ({"max_player_level": 1000}, "add up to at most 2000, got 3000"),
    ({"min_food_level": True}, "min_food_level must be a positive integer"),
    ({"max_food_level": 0}, "max_food_level must be"), ({"max_food_level": 1, "min_food_level": 2}, "got 2 and 1"),
    ({"max_food_level": 10}, "max_food_level 10 can never be loaded: all players together reach at most 9"),
    ({"max_food_level": 2001, "force_coop": False}, "at most 2000"),
    ({"max_food_level": 12, "min_food_level": 10, "force_coop": False}, "min_food_level 10 can never"),
    ({"min_food_level": 4, "force_coop": False}, "min_food_level must be at most 3"),
    ({"penalty": -0.1}, "penalty must be a finite number of at least 0, got -0.1"),
    ({"penalty": float("nan")}, "got nan"),
    ({"force_coop": "yes"}, "force_coop of foraging/.* must be True or False, got 'yes'"),
    ({"with_visible": "no"}, "with_visible of foraging/.* must be True or False, got 'no'"),
    ({"action_masks": 0}, "action_masks of foraging/.* must be True or False, got 0"),
    ({"penalty": "high"}, "penalty of foraging/.* must be a number, got 'high'"),
    ({"sight": None}, "sight of foraging/.* must be an integer, got None"),
])
def test_bad_options(options, message):
    with pytest.raises(ValueError, match=message):
        make_env(SHORT, num_envs=1, **options)


# ---------------------------------------------------------------------- rewards, ends, masks

@pytest.mark.parametrize(("options", "reward"), [({}, [1 / 6, 2 / 6]), ({"normalize_reward": False}, [3.0, 6.0])])
def test_a_joint_load_is_paid_by_level_and_ends_the_episode(options, reward):
    env = make_env("foraging/9x9-2p-2f-coop", num_envs=2, **options)
    about_to_load(env)
    out = env.step_tensors({ACTION: torch.full((2, 2), LOAD)})
    torch.testing.assert_close(out[REWARD][0, :, 0], torch.tensor(reward))
    assert out["terminated"][0] and not out["truncated"][0] and not out["done"][1]
    assert not env.reward_is_shared


def test_loading_in_vain_costs_the_penalty():
    env = make_env("foraging/9x9-2p-2f-coop", num_envs=1, penalty=0.25)
    about_to_load(env)
    out = env.step_tensors({ACTION: torch.tensor([[LOAD, 0]])})
    assert out[REWARD][0, :, 0].tolist() == [-0.25, 0.0] and not out["done"]


def test_the_end_by_food_at_the_last_step_is_a_termination_too():
    env = make_env("foraging/9x9-2p-2f-coop", num_envs=1, max_steps=1)
    about_to_load(env)
    out = env.step_tensors({ACTION: torch.full((1, 2), LOAD)})
    assert out["terminated"] and out["truncated"]


def test_the_mask_tells_what_can_be_done():
    env = make_env("foraging/9x9-2p-2f-coop", num_envs=1)
    about_to_load(env, row=[4, 0], col=[3, 0], food_row=[4, 8], food_level=[3, 0])
    mask = env._observe()[ACTION_MASK][0].tolist()
    assert mask == [[True, True, True, True, False, True], [True, False, True, False, True, False]]


# ---------------------------------------------------------------------- resets, saving, devices

@pytest.mark.parametrize("without_asking", [False, True])
def test_a_masked_reset_touches_only_its_rows(without_asking):
    env = make_env(SHORT, num_envs=64, seed=1)
    env.cheap_reset = without_asking  # as on a GPU
    play(env, 5)
    before, mask = env.board, torch.rand(64, generator=torch.Generator().manual_seed(0)) < 0.5
    env.reset_tensors(mask)
    for name, value in env.board._asdict().items():
        assert torch.equal(value[..., ~mask], getattr(before, name)[..., ~mask])
    moved = (env.board.row != before.row) | (env.board.col != before.col)
    assert moved.any(0)[mask].float().mean() > 0.9 and torch.equal(env.steps == 0, mask)
    before = env.board
    env.reset_tensors(torch.zeros(64, dtype=torch.bool))
    assert all(torch.equal(a, b) for a, b in zip(env.board, before, strict=True))


def test_both_kinds_of_masked_reset_have_the_same_starts():
    """Levels and positions alike, whether or not the host asks which rows restart."""
    seen = []
    for without_asking in (False, True):
        env = make_env(SHORT, num_envs=8000)
        env.cheap_reset = without_asking
        env.reset_tensors(torch.arange(8000) % 2 == 0)
        seen.append(torch.stack([x[..., ::2].float().mean() for x in env.board]))
    torch.testing.assert_close(*seen, rtol=0.02, atol=0.02)


def test_sight_beyond_the_board_shows_the_board():
    near, far = (make_env(SHORT, num_envs=8, sight=sight) for sight in (9, 10**9))
    assert all(torch.equal(a[OBSERVATION], b[OBSERVATION]) for a, b in zip(play(near, 3), play(far, 3), strict=True))


def test_a_saved_state_of_another_task_is_refused():
    saved = make_env("foraging/8x8-2p-2f-coop", num_envs=4).state_dict()
    with pytest.raises(ValueError, match=r"saved row has the shape \[2, 4\], this environment has \[3, 4\]"):
        make_env(SHORT, num_envs=4).load_state_dict(saved)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_gpu_plays_the_same_game_and_never_waits():
    cpu, gpu = make_env(SHORT, num_envs=256), make_env(SHORT, num_envs=256, device="cuda")
    gpu.board = Board(*(x.cuda() for x in cpu.board))
    actions = torch.randint(6, (30, 256, 3), generator=torch.Generator().manual_seed(0))
    expected = [cpu.step_tensors({ACTION: action}) for action in actions]
    actions = actions.cuda()
    torch.cuda.set_sync_debug_mode("error")
    try:
        seen = [gpu.step_tensors({ACTION: action}) for action in actions]
        gpu.reset_tensors(seen[-1]["done"].squeeze(-1))
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert all(torch.equal(one[key], two[key].cpu()) for one, two in zip(expected, seen, strict=True) for key in one)


# ---------------------------------------------------------------------- pictures

def test_frames():
    env = make_env(SHORT, num_envs=2)
    frames = [env.render_frame(row) for row in range(2)]
    assert frames[0].shape == (512, 512, 3) and frames[0].dtype == np.uint8 and frames[0].std() > 5
    assert not np.array_equal(*frames) and env.render_frame(0, (60, 90)).shape == (60, 90, 3)
    with pytest.raises(ValueError, match=r"env_index must be in \[0, 1\], got 2"):
        env.render_frame(2)


def test_agents_in_one_cell_and_loaded_food_in_a_frame():
    env = make_env("foraging/9x9-2p-2f-coop", num_envs=1)
    about_to_load(env)
    apart = env.render_frame()
    about_to_load(env, col=[3, 3])
    together = env.render_frame()
    about_to_load(env, col=[3, 3], food_level=[0, 0])
    empty = env.render_frame()
    cell = slice(512 * 4 // 9 + 12, 512 * 5 // 9 - 12)  # row 4 and column 4, without its lines
    assert not np.array_equal(apart, together)
    assert together[cell, cell].std() > 10 and empty[cell, cell].std() < 10
