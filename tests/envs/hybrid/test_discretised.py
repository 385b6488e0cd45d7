"""A choice among fixed actions: what they stand for, that the inner task gets them, and what is refused."""

import pytest
import torch
from torch.testing import assert_close

from envs import make_env
from envs.base import ACTION, CHOICE, OBSERVATION, PARAMS, REWARD
from envs.hybrid.discretised import Discretised


def test_every_choice_with_every_value_of_its_parameters():
    """Moving: accelerate and turn with a parameter at -1, 0 and 1, and brake without."""
    env = make_env("hybrid/moving", num_envs=2, levels=3)
    assert env.full_action_spec[ACTION].space.n == 7 and env.param_mask is None
    assert env.choices.tolist() == [0, 0, 0, 1, 1, 1, 2]
    assert env.params.flatten().tolist() == [-1.0, 0.0, 1.0, -1.0, 0.0, 1.0, 0.0]


def test_two_parameters_make_a_grid():
    env = make_env("hybrid/goal", num_envs=2, levels=2)
    assert env.choices.tolist() == [0] * 4 + [1] * 2 + [2] * 2
    assert env.params.tolist() == [[-1, -1], [-1, 1], [1, -1], [1, 1], [-1, 0], [1, 0], [-1, 0], [1, 0]]


def test_the_inner_task_gets_what_the_action_stands_for():
    env = make_env("hybrid/hard_move-4", num_envs=5, seed=3, levels=5)
    inner = make_env("hybrid/hard_move-4", num_envs=5, seed=3)
    assert torch.equal(env.reset_tensors()[OBSERVATION], inner.reset_tensors()[OBSERVATION])
    action = torch.tensor([[0], [7], [33], [62], [79]])
    ours = env.step_tensors({ACTION: action})
    theirs = inner.step_tensors({CHOICE: action // 5, PARAMS: (action % 5).unsqueeze(-1) / 2.0 - 1})
    for key in (OBSERVATION, REWARD, "done", "success"):
        assert torch.equal(ours[key], theirs[key])
    assert env.render_frame(0).ndim == 3


@pytest.mark.parametrize(("task", "levels", "message"), [
    ("hybrid/catch_point", 1, "levels must be an integer of at least 2, got 1"),
    ("hybrid/actuators-8", 9, "levels 9 make .* actions of this task's choices, more than 4,096"),
])
def test_levels_that_cannot_be(task, levels, message):
    with pytest.raises(ValueError, match=message):
        make_env(task, num_envs=2, levels=levels)


def test_only_hybrid_actions_have_levels():
    with pytest.raises(ValueError, match="levels are for hybrid actions"):
        Discretised(make_env("vmas/navigation", num_envs=2), 3)


def test_angles_take_steps_of_a_full_turn():
    """-1 and 1 are the same angle: five values are five directions, 72 degrees apart."""
    env = make_env("hybrid/catch_point", num_envs=1, levels=5)
    assert env.choices.tolist() == [0, 0, 0, 0, 0, 1]
    assert_close(env.params.flatten(), torch.tensor([0.0, 0.4, 0.8, -0.8, -0.4, 0.0]))
    env = make_env("hybrid/vmas.navigation", num_envs=1, levels=8)
    pushes = env.env.modes.motion(env.choices, env.params)
    assert len(pushes.round(decimals=3).add(0.0).unique(dim=0)) == 21
    assert (env.params[env.choices == 1].flatten().diff() - 2 / 7).abs().max() < 1e-6
