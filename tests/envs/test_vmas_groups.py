"""Native groups against TorchRL's own VMAS wrapper."""

from importlib import import_module

import pytest
import torch
import vmas
from torchrl.envs import VmasEnv
from torchrl.envs.utils import check_env_specs

from envs import make_env
from envs.vmas import MODULES
from envs.vmas_groups import NativeGroups
from envs.vmas_state import restore

torch.set_num_threads(1)

N = 6


@pytest.mark.parametrize("continuous", [True, False], ids=["continuous", "discrete"])
@pytest.mark.parametrize("name", ["simple_tag", "simple_world_comm", "simple_speaker_listener", "navigation",
                                  "simple_spread", "kinematic_bicycle", "simple_crypto"])
def test_equals_the_wrapper_of_torchrl(name, continuous):
    ours = make_env(f"vmas/{name}", num_envs=N, seed=1, continuous_actions=continuous, groups="native", max_steps=100)
    theirs = VmasEnv(import_module(MODULES[name]).Scenario(), num_envs=N, seed=0, continuous_actions=continuous,
                     device="cpu")
    assert {group: len(names) for group, names in ours.group_map.items()} == {
        group: len(names) for group, names in theirs.group_map.items()}
    for key in ours.action_keys:
        assert ours.full_action_spec[key].shape == theirs.full_action_spec[key].shape
    seen, other = ours.reset(), theirs.reset()
    restore(theirs._env.scenario, N, ours.env._capture())
    for _ in range(5):
        for group in ours.group_map:
            action = ours.full_action_spec[group, "action"].rand()
            seen[group, "action"], other[group, "action"] = action, action.clone()
        vmas.simulator.environment.Environment.vmas_random_state[0] = ours.env.random.cpu.clone()
        seen, other = ours.step(seen), theirs.step(other)
        for group in ours.group_map:
            for key in ("observation", "reward"):
                assert torch.equal(seen["next", group, key], other["next", group, key])
        for key in ("done", "terminated"):
            assert torch.equal(seen["next", key], other["next", key])
        seen, other = seen["next"].clone(), other["next"].clone()


@pytest.mark.parametrize(("name", "options"), [("simple_tag", {}), ("simple_speaker_listener", {"with_info": True}),
                                               ("navigation", {"with_info": True, "continuous_actions": False})])
def test_specs_and_time_limit(name, options):
    env = make_env(f"vmas/{name}", num_envs=N, groups="native", max_steps=3, **options)
    check_env_specs(env)
    out = env.rollout(5)
    assert out.batch_size == (N, 3) and out["next", "truncated"][:, -1].all()


def test_hidden_variables_are_split_too():
    env = make_env("vmas/simple_speaker_listener_pe", num_envs=N, groups="native", with_hidden=True)
    check_env_specs(env)
    out = env.rollout(2)["next"]
    assert out["speaker", "hidden"].shape == out["listener", "hidden"].shape == (N, 2, 1, 3)
    assert torch.equal(out["speaker", "hidden"], out["listener", "hidden"])
    assert out["speaker", "informed"].all() and not out["listener", "informed"].any()


def test_the_state_of_the_world_stays_whole():
    env = make_env("vmas/simple_speaker_listener_pe", num_envs=N, groups="native", with_state=True)
    check_env_specs(env)
    out = env.rollout(2)
    assert out["state"].shape == (N, 2, env.env.observation_spec["state"].shape[-1]) and out["next", "state"].any()


def test_save_and_load():
    env, other = (make_env("vmas/simple_tag", num_envs=N, seed=seed, groups="native") for seed in (0, 1))
    env.rollout(3)
    other.load_state_dict(env.state_dict())
    torch.manual_seed(0)
    one = env.env.rollout(3)
    torch.manual_seed(0)
    assert (one == other.env.rollout(3)).all()
    assert env.rollout(3, break_when_all_done=True).shape == (N, 3)
    assert env.render_frame(0, size=(32, 32)).shape == (32, 32, 3)


def test_unequal_agents_in_a_group_are_refused():
    env = make_env("vmas/wind_flocking", num_envs=2)
    env.obs_dims = [4, 5]
    with pytest.raises(ValueError, match=r"different spaces; use groups='padded'"):
        NativeGroups(env)


def test_who_is_controlled_is_split_too():
    env = make_env("vmas/hidden_leader", num_envs=N, partner_types=True, groups="native")
    check_env_specs(env)
    seen = env.reset()
    assert seen["agents", "controlled"].sum(-1).tolist() == [2] * N
