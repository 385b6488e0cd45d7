"""Goal and Hard Goal as environments: what random play gives, limits, options, pictures."""

import pytest
import torch

from envs import make_env
from envs.base import CHOICE, OBSERVATION, PARAMS, REWARD
from envs.hybrid import goal_rules

torch.set_num_threads(1)

TASKS = ["hybrid/goal", "hybrid/hard_goal"]


def make(task="hybrid/goal", num_envs=5, **options):
    return make_env(task, **{"num_envs": num_envs, "seed": 0} | options)


def actions(env, choice, *params):
    n = env.num_envs
    return {CHOICE: torch.full((n, 1), choice), PARAMS: torch.tensor(params, dtype=torch.float32).expand(n, 1, 2)}


def random_play(env, steps):
    """Return, length and success of the first episodes of all rows; all must end."""
    generator = torch.Generator().manual_seed(1)
    n = env.num_envs
    total, length, success = torch.zeros(n), torch.zeros(n), torch.zeros(n, dtype=torch.bool)
    live = torch.ones(n, dtype=torch.bool)
    env.reset_tensors()
    for _ in range(steps):
        choice = torch.randint(env.full_action_spec[CHOICE].n, (n, 1), generator=generator)
        out = env.step_tensors({CHOICE: choice, PARAMS: 2 * torch.rand(n, 1, 2, generator=generator) - 1})
        total, length = total + live * out[REWARD].flatten(), length + live
        success |= live & out["success"].flatten()
        live = live & ~out["done"].flatten()
        if not live.any():
            return total, length, success
    raise AssertionError(f"{int(live.sum())} episodes are not over")


@pytest.mark.parametrize(("task", "mean", "deviation", "steps"),
                         [("hybrid/goal", -8.14, 2.00, 1.05), ("hybrid/hard_goal", -7.50, 1.35, 1.01)])
def test_random_play(task, mean, deviation, steps):
    """The published anchors: of 2000 episodes, in which no goal was seen."""
    total, length, success = random_play(make(task, 4000), 20)
    missed = total[~success]
    share = (1 / 2000 + 1 / 4000) ** 0.5
    assert abs(missed.mean() - mean) < 3 * deviation * share and abs(missed.std() - deviation) < 0.15 * deviation
    assert abs(length.mean() - steps) < 3 * length.std() * share + 0.005  # two digits are published
    assert success.float().mean() < 0.003


@pytest.mark.parametrize("task", TASKS)
def test_the_shapes_of_actions_and_observations(task):
    env = make(task)
    shots = 2 if task == "hybrid/goal" else 10
    assert env.param_mask.tolist() == [[True, True], *[[True, False]] * shots] and env.max_steps is None
    seen = env.reset_tensors()[OBSERVATION]
    assert seen.shape == (5, 1, 17) and seen.dtype == torch.float32 and seen.abs().max() <= 1


def test_the_limit_of_the_game_is_a_termination_with_its_reward():
    env = make()
    env.reset_tensors()
    env.state = env.state._replace(time=torch.tensor([99, 98, 99, 0, 0]))
    before = env.state.place.clone()
    out = env.step_tensors(actions(env, 0, -0.5, 0.0))
    over = torch.tensor([True, False, True])
    assert torch.equal(out["terminated"][:3, 0] & (env.state.place == before).flatten(1).all(1)[:3], over)
    assert not out["truncated"].any()
    distance = goal_rules.goal_distance(before[:, 2])
    torch.testing.assert_close(out[REWARD].flatten()[[0, 2]], -distance[[0, 2]])


def test_a_goal_is_a_success():
    env = make()
    env.reset_tensors()
    place, velocity = env.state.place.clone(), env.state.velocity.clone()
    place[:, 2], velocity[:, 2] = torch.tensor([19.0, 0.0]), torch.tensor([2.0, 0.0])
    place[:, 1] = torch.tensor([15.0, 9.0])
    env.state = env.state._replace(place=place, velocity=velocity)
    out = env.step_tensors(actions(env, 1, 0.0, 0.0))
    assert (out[REWARD] == 50).all() and out["success"].all() and out["terminated"].all()


def test_a_step_without_end_is_cut(monkeypatch):
    monkeypatch.setattr(goal_rules, "SUB_STEPS", 4)
    env = make()
    env.reset_tensors()
    out = env.step_tensors(actions(env, 0, -0.5, 0.0))
    assert out["truncated"].all() and not out["terminated"].any() and (out[REWARD] == 0).all()


def after(task, choice, *params, **options):
    """What is seen after the first step of the same 50 games."""
    env = make(task, num_envs=50, **options)
    return env.step_tensors(actions(env, choice, *params))[OBSERVATION]


def test_options():
    for task in TASKS:
        assert torch.equal(after(task, 0, -0.6, 0.5), after(task, 0, -0.6, -0.5))
        fixed = [after(task, 0, -0.6, p, fixed_kick_to=True) for p in (0.5, -0.5)]
        assert (fixed[0] != fixed[1]).any(-1).all()
    assert torch.equal(*(after("hybrid/hard_goal", 3, p, 0.0) for p in (-1.0, 1.0)))
    assert not torch.equal(*(after("hybrid/hard_goal", 3, p, 0.0, fixed_intervals=True) for p in (-1.0, 1.0)))


def test_wrong_options():
    with pytest.raises(ValueError, match=r"hybrid/goal has no option 'fixed_intervals'; it has \['fixed_kick_to',"):
        make(fixed_intervals=True)
    with pytest.raises(ValueError, match="fixed_intervals must be True or False, got 'yes'"):
        make("hybrid/hard_goal", fixed_intervals="yes")


def test_compiled_is_the_same():
    one, two = make(num_envs=30), make(num_envs=30, compile="aot_eager")
    a, b = (env.step_tensors(actions(env, 0, -0.5, 0.0)) for env in (one, two))
    torch.testing.assert_close(a[OBSERVATION], b[OBSERVATION], rtol=0, atol=1e-3)
    assert torch.equal(a["done"], b["done"])


def test_picture():
    env = make()
    before = env.render_frame(0)
    env.step_tensors(actions(env, 0, -0.5, 0.0))
    assert before.shape[2] == 3 and before.dtype == "uint8" and (env.render_frame(0) != before).any()
    assert env.render_frame(4, size=(120, 100)).shape == (120, 100, 3)
    with pytest.raises(ValueError, match=r"env_index must be in \[0, 4\], got -1"):
        env.render_frame(-1)
