"""Tasks of pure rules: starts that are drawn ahead of use, and what is shown, which nobody can spoil."""

import pytest
import torch

from envs import make_env
from envs.base import CHOICE, OBSERVATION, PARAMS
from envs.hybrid.pure_rules import AHEAD

torch.set_num_threads(1)

TASKS = ["catch_point", "hard_move-4", "moving", "actuators-4"]


def make(task, num_envs=4, seed=0):
    return make_env(f"hybrid/{task}", num_envs=num_envs, seed=seed)


def act(env, seed):
    generator = torch.Generator().manual_seed(seed)
    choice, params = env.full_action_spec[CHOICE], env.full_action_spec[PARAMS]
    return {CHOICE: torch.randint(choice.n, choice.shape, generator=generator),
            PARAMS: 2 * torch.rand(params.shape, generator=generator) - 1}


@pytest.mark.parametrize("task", TASKS)
def test_what_is_seen_is_of_the_state(task):
    env = make(task)
    for k in range(5):
        env.step_tensors(act(env, k))
        seen = env.reset_tensors(torch.tensor([k == 2, False, k % 2 == 1, False]))[OBSERVATION]
        assert torch.equal(seen.squeeze(1), env.look(env.state))
    env.state = env.state._replace(**{env.state._fields[0]: env.state[0] * 0.5})
    assert torch.equal(env._observe()[OBSERVATION].squeeze(1), env.look(env.state))


def test_what_was_shown_may_be_written_to():
    one, two = make("catch_point"), make("catch_point")
    one.reset_tensors()[OBSERVATION].fill_(7.0)
    two.reset_tensors()
    some = torch.tensor([True, False, False, False])
    assert torch.equal(one.reset_tensors(some)[OBSERVATION], two.reset_tensors(some)[OBSERVATION])


@pytest.mark.parametrize("task", TASKS)
def test_starts_are_drawn_once_and_never_twice(task):
    env, every = make(task, num_envs=300), torch.ones(300, dtype=torch.bool)
    seen = torch.cat([env.reset_tensors(every)[OBSERVATION].flatten(1) for _ in range(2 * AHEAD // 300 + 2)])
    assert len(seen.unique(dim=0)) == len(seen)


@pytest.mark.parametrize("resets", [0, 3])
@pytest.mark.parametrize("task", TASKS)
def test_starts_that_are_left_belong_to_what_is_saved(task, resets):
    """Also where nothing was drawn yet, and beyond the last one that is left."""
    one, two, some = make(task, seed=1), make(task, seed=2), torch.tensor([True, False, True, True])
    for _ in range(resets):
        one.reset_tensors(some)
    two.reset_tensors(some)
    two.load_state_dict(one.state_dict())
    for k in range(AHEAD // 3 + 2):
        a, b = (env.reset_tensors(some)[OBSERVATION] for env in (one, two))
        assert torch.equal(a, b), k


def test_another_seed_forgets_what_was_drawn():
    one, two, some = make("moving", seed=1), make("moving", seed=2), torch.tensor([True, False, True, True])
    one.reset_tensors(some)
    one.set_seed(5), two.set_seed(5)
    assert torch.equal(one.reset_tensors(some)[OBSERVATION][some], two.reset_tensors(some)[OBSERVATION][some])


@pytest.mark.parametrize("task", TASKS)
def test_a_reset_of_some_rows_changes_nothing_that_was_handed_out(task):
    env = make(task)
    for k in range(3):
        out = env.step_tensors(act(env, k))
        copies = {key: value.clone() for key, value in out.items()}
        shown = env.reset_tensors(torch.tensor([k == 1, True, False, True]))
        again = {key: value.clone() for key, value in shown.items()}
        env.step_tensors(act(env, k))
        assert all(torch.equal(out[key], copies[key]) for key in out)
        assert all(torch.equal(shown[key], again[key]) for key in shown)


@pytest.mark.parametrize("task", ["catch_point", "hard_move-4", "moving", "sliding", "actuators-4"])
@pytest.mark.parametrize("truncate", [True, False])
def test_a_compiled_environment_plays_the_same_game(task, truncate):
    """By inductor's code, over its ends, with resets of none, one and many rows."""
    eager, compiled = (make_env(f"hybrid/{task}", num_envs=40, seed=1, max_steps=7, truncate=truncate, compile=compile)
                       for compile in (False, True))
    eager.steps, compiled.steps = torch.arange(40) % 7, torch.arange(40) % 7
    for k in range(30):
        one, two = (env.step_tensors(act(eager, k)) for env in (eager, compiled))
        done = torch.zeros(40, dtype=torch.bool) if k == 8 else one["done"].squeeze(-1)
        for a, b in ((one, two), (eager.reset_tensors(done), compiled.reset_tensors(done))):
            assert a.keys() == b.keys() and all(a[key].shape == b[key].shape for key in a)
            assert all(torch.equal(a[key], b[key]) for key in a if a[key].dtype == torch.bool)
            torch.testing.assert_close(a, b, rtol=0, atol=1e-4)
        assert torch.equal(eager.steps, compiled.steps)


def test_many_rows_are_reset_without_asking():
    assert make("hard_move-4", num_envs=30).cheap_reset and not make("hard_move-4", num_envs=29).cheap_reset
