"""Hard Move with a parameter per actuator against recorded trajectories (float64); its mask, limit and options."""

from functools import partial

import pytest
import torch

from envs import make_env
from envs.base import CHOICE, PARAMS, REWARD
from envs.hybrid.actuators import LIMIT, jump
from envs.hybrid.moving import Mover, see, start
from envs.hybrid.point_mass import actuators, switches
from tests.archives import Golden

torch.set_num_threads(1)

COUNTS = (4, 6, 8, 10)


def rules(n):
    return partial(jump, switches(n).double(), actuators(n).t())


def mover(numbers):
    x, y, speed, heading, _, tx, ty, age = numbers.unbind(-1)
    return Mover(torch.stack([x, y]), speed, heading, heading, torch.stack([tx, ty]), age)


def close(ours, theirs):
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-9)


def assert_same(step, file, prefix, at):
    for ours, theirs in zip(step.state, mover(file[f"{prefix}state"][1:][at]), strict=True):
        close(ours, theirs)
    close(see(LIMIT, step.state), file[f"{prefix}obs"][1:][at])
    close(step.reward, file[f"{prefix}reward"][at])
    assert torch.equal(step.terminated, file[f"{prefix}done"][at])
    assert torch.equal(step.success, file[f"{prefix}done"][at] & (file[f"{prefix}reward"][at] > 0))


@pytest.mark.parametrize("n", COUNTS)
def test_each_recorded_step(n):
    file = Golden("hyar", "env_hard_move_di")
    for prefix in (f"n{n}_traj{k}_" for k in range(5)):
        before = mover(file[f"{prefix}state"][:-1])
        close(see(LIMIT, before), file[f"{prefix}obs"][:-1])
        assert_same(rules(n)(before, file[f"{prefix}act"], file[f"{prefix}param"]), file, prefix, slice(None))


@pytest.mark.parametrize("n", COUNTS)
def test_recorded_trajectories_from_their_draws(n):
    file = Golden("hyar", "env_hard_move_di")
    for prefix in (f"n{n}_traj{k}_" for k in range(5)):
        state, act, param = start(file[f"{prefix}u_reset"].unsqueeze(0)), file[f"{prefix}act"], file[f"{prefix}param"]
        close(see(LIMIT, state), file[f"{prefix}obs"][:1])
        for t in range(len(act)):
            step = rules(n)(state, act[t:t + 1], param[t:t + 1])
            assert_same(step, file, prefix, slice(t, t + 1))
            state = step.state


@pytest.mark.parametrize("n", COUNTS)
def test_parameters_of_actuators_that_are_off_are_not_read(n):
    env = make_env(f"hybrid/actuators-{n}", num_envs=64)
    assert env.param_mask.shape == (2**n, n) and not env.param_mask[0].any() and env.param_mask[-1].all()
    assert env.param_mask[1].tolist() == [False] * (n - 1) + [True]
    choice = torch.randint(2**n, (64,), generator=torch.Generator().manual_seed(0))
    params = 2 * torch.rand(64, n, generator=torch.Generator().manual_seed(1)) - 1
    one, two = (env._advance(env.state, choice, x) for x in (params, params * env.param_mask[choice]))
    assert torch.equal(one.state.position, two.state.position)


def test_every_actuator_moves_its_own_way():
    env = make_env("hybrid/actuators-4", num_envs=3)
    env.state = env.state._replace(position=torch.zeros(2, 3), target=torch.full((2, 3), 0.9))
    params = torch.tensor([[[0.1, 0.2, 0.3, 0.4]]]).expand(3, 1, 4)
    out = env.step_tensors({CHOICE: torch.tensor([[0b1000], [0b0110], [0b1111]]), PARAMS: params})
    torch.testing.assert_close(env.state.position, torch.tensor([[0.1, -0.3, -0.2], [0.0, 0.2, -0.2]]))
    assert not out["done"].any()


def test_entering_the_target_is_success_leaving_the_field_is_not():
    env = make_env("hybrid/actuators-4", num_envs=2)
    env.state = env.state._replace(position=torch.tensor([[0.5, 0.9], [0.5, 0.5]]), target=torch.full((2, 2), 0.5))
    out = env.step_tensors({CHOICE: torch.full((2, 1), 0b1000), PARAMS: torch.tensor([[[0.05] * 4], [[0.5] * 4]])})
    torch.testing.assert_close(out[REWARD].flatten(), torch.tensor([1 - 0.05 - 0.001, -1.0]))
    assert out["terminated"].all() and out["success"].flatten().tolist() == [True, False]


def test_the_rules_end_an_episode_at_step_26():
    env = make_env("hybrid/actuators-6", num_envs=2, max_steps=100)
    env.state = env.state._replace(target=env.state.position + 3)
    for t in range(1, LIMIT + 2):
        out = env.step_tensors({CHOICE: torch.zeros(2, 1, dtype=torch.int64), PARAMS: torch.ones(2, 1, 6)})
        assert out["terminated"].all() == out["done"].all() == (t == LIMIT + 1)
    assert (out[REWARD] == -1).all() and not out["truncated"].any()
    assert make_env("hybrid/actuators-6", num_envs=1).max_steps == LIMIT + 1


def test_options():
    make_env("hybrid/actuators-10", num_envs=2, compile="eager").rollout(2)
    with pytest.raises(ValueError, match=r"hybrid/actuators-8 has no option 'n'; it has \['compile'\]"):
        make_env("hybrid/actuators-8", num_envs=1, n=3)
    with pytest.raises(ValueError, match=r"unknown hybrid task 'actuators-5'"):
        make_env("hybrid/actuators-5", num_envs=1)
