"""A choice among fixed actions: what they stand for, that the inner task gets them, and what is refused."""

import pytest
import torch

from envs import make_env
from envs.base import ACTION, CHOICE, OBSERVATION, PARAMS, REWARD
from envs.hybrid.discretised import Discretised


def test_every_choice_with_every_value_of_its_parameters():
    """Catch Point: move with a parameter at -1, 0 and 1, and catch without."""
    env = make_env("hybrid/catch_point", num_envs=2, levels=3)
    assert env.full_action_spec[ACTION].space.n == 4 and env.param_mask is None
    assert env.choices.tolist() == [0, 0, 0, 1] and env.params.flatten().tolist() == [-1.0, 0.0, 1.0, 0.0]


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
