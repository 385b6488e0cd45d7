"""The base class alone, on a task made of plain tensors; what families add is in the contract test."""

import pytest
import torch
from torchrl.envs import check_env_specs

from envs import FAMILIES, make_env, suggestion
from envs.base import ACTION, OBSERVATION, REWARD, check_sizes
from tests.toy import ToyEnv


def stay(env):
    return {ACTION: torch.zeros(env.num_envs, env.n_agents, 2)}


@pytest.mark.parametrize("options", [{}, {"is_discrete": True, "mask": True}, {"state": False}])
def test_toy_passes_torchrl_spec_check(options):
    check_env_specs(ToyEnv(**options))


def test_time_limit_truncates_and_the_switch_terminates():
    for truncate, key in ((True, "truncated"), (False, "terminated")):
        env = ToyEnv(num_envs=2, max_steps=3, truncate=truncate)
        env.reset_tensors()
        flags = [env.step_tensors(stay(env)) for _ in range(3)]
        assert [bool(out["done"].any()) for out in flags] == [False, False, True]
        other = "terminated" if truncate else "truncated"
        assert flags[-1][key].all() and not flags[-1][other].any()


def test_no_limit_never_ends():
    env = ToyEnv(num_envs=2, max_steps=None)
    env.reset_tensors()
    assert not any(env.step_tensors(stay(env))["done"].any() for _ in range(40))


def test_rows_restart_alone_and_count_from_zero():
    env = ToyEnv(num_envs=3, max_steps=4)
    first = env.reset_tensors()[OBSERVATION]
    env.step_tensors(stay(env))
    again = env.reset_tensors(torch.tensor([False, True, False]))[OBSERVATION]
    assert torch.equal(again[[0, 2]], first[[0, 2]]) and not torch.equal(again[1], first[1])
    assert env.steps.tolist() == [1, 0, 1]


def test_step_mask_leaves_the_other_rows_where_they_were():
    env = ToyEnv(num_envs=3)
    td = env.reset()
    td[ACTION] = torch.ones(3, 2, 2)
    td["_step"] = torch.tensor([True, False, True]).unsqueeze(-1)
    before = td[OBSERVATION].clone()
    after = env.step(td)["next", *OBSERVATION]
    assert torch.equal(after[1], before[1]) and not torch.equal(after[0], before[0]) and env.steps.tolist() == [1, 0, 1]


def test_state_dict_continues_exactly_and_refuses_another_size():
    env, twin = ToyEnv(num_envs=4, max_steps=3), ToyEnv(num_envs=4, max_steps=3, seed=5)
    env.reset_tensors()
    env.step_tensors(stay(env))
    twin.load_state_dict(env.state_dict())
    for _ in range(4):
        one, two = env.step_tensors(stay(env)), twin.step_tensors(stay(twin))
        assert torch.equal(one[REWARD], two[REWARD]) and torch.equal(one["done"], two["done"])
        first, second = (e.reset_tensors(out["done"][:, 0])[OBSERVATION] for e, out in ((env, one), (twin, two)))
        assert torch.equal(first, second)
    with pytest.raises(ValueError, match="4 environments, this one has 2"):
        ToyEnv(num_envs=2).load_state_dict(env.state_dict())


def test_without_a_renderer_the_error_says_so():
    with pytest.raises(ValueError, match="ToyEnv cannot be drawn"):
        ToyEnv().render_frame()


@pytest.mark.parametrize("value", [0, -1, 2.0, True, "3"])
def test_sizes_must_be_positive_integers(value):
    with pytest.raises(ValueError, match="num_envs must be a positive integer, got"):
        check_sizes(num_envs=value)


@pytest.mark.parametrize("task", ["vmass/navigation", "navigation", "vmas/", ""])
def test_unknown_families_are_refused_with_the_known_ones(task):
    with pytest.raises(ValueError, match=r"pettingzoo.*vmas"):
        make_env(task, num_envs=1)
    assert suggestion("vmass", FAMILIES) == "; did you mean 'vmas'?" and suggestion("zzz", FAMILIES) == ""


@pytest.mark.parametrize(("device", "message"), [("tpu9", "unknown device 'tpu9'"), ("cuda", "no CUDA device")])
def test_devices_are_checked(device, message):
    if device == "cuda" and torch.cuda.is_available():
        pytest.skip("a CUDA device is present")
    with pytest.raises(ValueError, match=message):
        make_env("vmas/navigation", num_envs=1, device=device)


@pytest.mark.parametrize("family", FAMILIES)
def test_options_of_every_family_have_a_kind(family):
    with pytest.raises(ValueError, match=rf"truncate of {family}/x must be True or False, got 'no'"):
        make_env(f"{family}/x", num_envs=1, truncate="no")
