"""Point-mass tasks against recorded trajectories (float64), what random play reaches, limits, resets, options."""

from functools import partial

import pytest
import torch

from envs import make_env
from envs.base import CHOICE, OBSERVATION, PARAMS, REWARD
from envs.hybrid.point_mass import (
    MISSES,
    Point,
    actuators,
    catch,
    hard_motions,
    move,
    see,
    simple_motions,
    start,
    switches,
)
from tests.archives import Golden

torch.set_num_threads(1)

TASKS = ["catch_point", "simple_move", *(f"hard_move-{n}" for n in (4, 6, 8, 10))]


def recorded(task):
    """The file, the prefixes of its five trajectories, and the rules that they obey."""
    base, _, n = task.partition("-")
    rules = {"catch_point": catch, "simple_move": partial(move, simple_motions().t())}
    prefix = f"n{n}_traj" if n else "traj"
    return (Golden("hyar", f"env_{base}"), [f"{prefix}{k}_" for k in range(5)],
            partial(move, hard_motions(int(n)).t()) if n else rules[base])


def states(file, prefix, rows):
    numbers = file[f"{prefix}state"][rows].t()
    return Point(*numbers.split(2), file[f"{prefix}valid"][rows])


def joined(parts):
    return Point(*(torch.cat(columns, -1) for columns in zip(*parts, strict=True)))


def close(ours, theirs):
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-9)


def assert_same(step, file, prefix, row, t, *, misses):
    """Row ``row`` of a step is what was recorded at t."""
    close(torch.cat([x[:, row] for x in step.state[:3]]), file[f"{prefix}state"][t + 1])
    close(see(step.state)[row], file[f"{prefix}obs"][t + 1])
    close(step.reward[row], file[f"{prefix}reward"][t])
    assert bool(step.terminated[row]) == bool(file[f"{prefix}runner_done"][t])
    assert bool(step.success[row]) == (file[f"{prefix}reward"][t].item() > 4)
    assert not misses or step.state.misses[row] == file[f"{prefix}valid"][t + 1]


# ---------------------------------------------------------------------- recorded trajectories

@pytest.mark.parametrize("task", TASKS)
def test_each_recorded_step(task):
    file, prefixes, rules = recorded(task)
    for prefix in prefixes:
        count = len(file[f"{prefix}act"])
        before = states(file, prefix, slice(0, count))
        step = rules(before, file[f"{prefix}act"], file[f"{prefix}param"])
        close(see(before), file[f"{prefix}obs"][:count])
        for t in range(count):
            assert_same(step, file, prefix, t, t, misses=task == "catch_point")


@pytest.mark.parametrize("task", TASKS)
def test_recorded_trajectories_side_by_side(task):
    file, prefixes, rules = recorded(task)
    state = joined([states(file, prefix, slice(0, 1)) for prefix in prefixes])
    lengths = [len(file[f"{prefix}act"]) for prefix in prefixes]
    for t in range(max(lengths)):
        at = [min(t, length - 1) for length in lengths]
        step = rules(state, *(torch.stack([file[f"{prefix}{key}"][k] for prefix, k in zip(prefixes, at, strict=True)])
                              for key in ("act", "param")))
        for row, prefix in enumerate(prefixes):
            if t < lengths[row]:
                assert_same(step, file, prefix, row, t, misses=task == "catch_point")
        state = step.state


@pytest.mark.parametrize(("n", "distinct", "still", "longest"), [
    (4, 9, 4, 1.4142), (6, 19, 10, 2.0), (8, 81, 16, 2.6129), (10, 211, 34, 3.2364)])
def test_motion_tables(n, distinct, still, longest):
    file, table = Golden("hyar", "env_hard_move"), hard_motions(n)
    close(actuators(n, digits=3), file[f"n{n}_movement"])
    close(table, file[f"n{n}_motions"])
    sums = switches(n).double() @ actuators(n, digits=3)
    assert sums.norm(dim=-1).max().item() == pytest.approx(longest, abs=1e-4)
    assert len(sums.round(decimals=6).add(0.0).unique(dim=0)) == distinct
    assert (sums.abs() < 1e-6).all(-1).sum() == still


def test_the_first_actuator_is_the_highest_bit():
    assert switches(4)[0b1000].tolist() == [True, False, False, False]
    close(hard_motions(4)[[0b1000, 0b0100, 0b1010]], torch.tensor([[1, 0], [0, 1], [0, 0]]).double() / 2**0.5)


# ---------------------------------------------------------------------- rules

@pytest.mark.parametrize("task", TASKS)
def test_rows_do_not_know_their_place(task):
    _, _, rules = recorded(task)
    generator = torch.Generator().manual_seed(0)
    state = start(torch.rand(64, 4, generator=generator))
    state = state._replace(misses=torch.randint(13, (64,), generator=generator).float())
    choice, param = torch.randint(2, (64,), generator=generator), torch.rand(64, generator=generator)
    order = torch.randperm(64, generator=generator)
    one = rules(state, choice, param)
    two = rules(Point(*(x[..., order] for x in state)), choice[order], param[order])
    for a, b in zip([*one.state, *one[1:]], [*two.state, *two[1:]], strict=True):
        assert torch.equal(a[..., order], b)


def test_a_catch_that_is_lost_already_pays_nothing():
    at = torch.zeros(2, 2, dtype=torch.float64)
    step = catch(Point(at, at, at, torch.tensor([MISSES, MISSES + 1])), torch.ones(2, dtype=torch.int64), at[0])
    assert step.reward.tolist() == [20.0, 0.0] and step.terminated.all() and step.success.tolist() == [True, False]
    assert step.state.misses.tolist() == [MISSES, MISSES + 1]


def test_angles_are_measured_from_the_y_axis():
    at = torch.zeros(2, 3, dtype=torch.float64)
    step = catch(Point(at, at, at, torch.zeros(3)), torch.zeros(3, dtype=torch.int64),
                 torch.tensor([0.0, 0.5, -1.0], dtype=torch.float64))
    close(step.state.velocity, torch.tensor([[0.0, 0.2, 0.0], [0.2, 0.0, -0.2]], dtype=torch.float64))


def test_the_fastest_is_eight_hundredths_a_step():
    state, motions = start(torch.full((1, 4), 0.5, dtype=torch.float64)), simple_motions().t()
    for _ in range(100):
        before, state = state, move(motions, state, torch.tensor([1]), torch.ones(1, dtype=torch.float64))[0]
    close(state.position - before.position, torch.tensor([[0.08], [0.0]], dtype=torch.float64))


# ---------------------------------------------------------------------- environments

def draw(env, generator):
    choice, params = env.full_action_spec[CHOICE], env.full_action_spec[PARAMS]
    return {CHOICE: torch.randint(choice.n, choice.shape, generator=generator),
            PARAMS: 2 * torch.rand(params.shape, generator=generator) - 1}


def random_episodes(env, steps):
    """Returns [N] and success [N] of one episode of random actions in each row."""
    generator = torch.Generator().manual_seed(0)
    env.reset_tensors()
    total, success, over = torch.zeros(env.num_envs), *torch.zeros(2, env.num_envs, dtype=torch.bool)
    for _ in range(steps):
        out = env.step_tensors(draw(env, generator))
        total = total + out[REWARD].flatten().masked_fill(over, 0)
        success, over = success | (out["success"].flatten() & ~over), over | out["done"].flatten()
    assert over.all()
    return total, success


@pytest.mark.parametrize(("task", "mean", "rate"), [
    ("catch_point", -28.2, 0.048), ("hard_move-4", -40.3, 0.047), ("hard_move-6", -40.3, 0.039),
    ("hard_move-8", -40.3, 0.040), ("hard_move-10", -40.3, 0.041), ("simple_move", None, 0.062)])
def test_random_play_reaches_what_was_measured_in_1000_episodes(task, mean, rate):
    env = make_env(f"hybrid/{task}", num_envs=8192, seed=1)
    total, success = random_episodes(env, env.max_steps)
    error = (1 / 1000 + 1 / 8192)**0.5
    assert abs(success.float().mean().item() - rate) < 3 * error * (rate * (1 - rate))**0.5
    assert mean is None or abs(total.mean().item() - mean) < 3 * error * total.std().item()


@pytest.mark.parametrize(("task", "limit"), [("catch_point", 25), ("simple_move", 30), ("hard_move-6", 30)])
def test_the_limit_truncates_only(task, limit):
    env = make_env(f"hybrid/{task}", num_envs=2)
    env.state = env.state._replace(landmark=env.state.position + 50)
    still = {CHOICE: torch.zeros(2, 1, dtype=torch.int64), PARAMS: torch.zeros(2, 1, 1)}
    for t in range(1, limit + 1):
        out = env.step_tensors(still)
        assert out["truncated"].all() == out["done"].all() == (t == limit) and not out["terminated"].any()


def test_a_catch_in_the_environment():
    env = make_env("hybrid/catch_point", num_envs=3)
    assert env.param_mask.tolist() == [[True], [False]]
    env.state = env.state._replace(landmark=env.state.position + torch.tensor([[0.1, 1, 1], [0, 0, 0]]),
                                   misses=torch.tensor([0.0, 0.0, MISSES + 1]))
    out = env.step_tensors({CHOICE: torch.ones(3, 1, dtype=torch.int64), PARAMS: torch.zeros(3, 1, 1)})
    torch.testing.assert_close(out[REWARD].flatten(), torch.tensor([20 - 0.01, -1.0, 0.0]))
    assert out["terminated"].flatten().tolist() == [True, False, True] and not out["truncated"].any()
    assert out["success"].flatten().tolist() == [True, False, False]
    again = env.reset_tensors(torch.tensor([True, False, True]))
    assert env.state.misses.tolist() == [0, 1, 0] and not again["success"].any()


def test_new_episodes_fill_the_square():
    state = make_env("hybrid/simple_move", num_envs=4096).state
    for places in (state.position, state.landmark):
        assert places.abs().max() <= 1 and places.abs().max() > 0.99
        assert places.mean().abs() < 0.03 and abs(places.var().item() - 1 / 3) < 0.02
    assert not state.velocity.any()


def test_a_compiled_step_is_the_same():
    plain, whole = (make_env("hybrid/hard_move-4", num_envs=16, compile=backend) for backend in (False, "eager"))
    generator = torch.Generator().manual_seed(0)
    for _ in range(3):
        actions = draw(plain, generator)
        one, two = plain.step_tensors(actions), whole.step_tensors(actions)
        assert torch.equal(one[OBSERVATION], two[OBSERVATION]) and torch.equal(one[REWARD], two[REWARD])


@pytest.mark.parametrize("task", ["catch_point", "simple_move", "hard_move-8"])
def test_options_are_refused(task):
    with pytest.raises(ValueError, match=rf"hybrid/{task} has no option 'compil'.*\['compile'\].*did you mean"):
        make_env(f"hybrid/{task}", num_envs=1, compil=True)
    with pytest.raises(ValueError, match="compile must be False, True or one of"):
        make_env(f"hybrid/{task}", num_envs=1, compile="nothing")
    with pytest.raises(ValueError, match=r"unknown hybrid task 'hard_move-5'.*'hard_move-4'"):
        make_env("hybrid/hard_move-5", num_envs=1)
