"""The VMAS adapter against stock VMAS, and its own promises."""

from importlib import import_module
from typing import Any

import numpy as np
import pytest
import torch
import vmas

from envs import make_env
from envs.base import ACTION, ACTION_MASK, OBSERVATION, REWARD
from envs.vmas import HORIZONS, MODULES, TEAM_REWARD, available
from envs.vmas_scenarios import scenario_options
from envs.vmas_state import restore

torch.set_num_threads(1)

PARITY = [("simple_spread", {}), ("navigation", {"n_agents": 3}), ("balance", {}), ("transport", {}), ("wheel", {}),
          ("give_way", {}), ("discovery", {}), ("simple_tag", {}), ("simple_speaker_listener", {}),
          ("simple_reference", {}), ("simple_world_comm", {}), ("diff_drive", {}), ("passage", {}),
          ("football", {"ai_red_agents": False}), ("football", {})]


def stock(name, options, num_envs, continuous):
    scenario = import_module(MODULES[name]).Scenario()
    return vmas.make_env(scenario, num_envs=num_envs, seed=5, continuous_actions=continuous, clamp_actions=True,
                         **options)


@pytest.mark.parametrize("continuous", [True, False], ids=["continuous", "discrete"])
@pytest.mark.parametrize(("name", "options"), PARITY, ids=lambda value: value if isinstance(value, str) else "")
def test_equals_stock_to_the_last_bit(name, options, continuous):
    n = 6
    ours = make_env(f"vmas/{name}", num_envs=n, seed=1, continuous_actions=continuous, max_steps=100, **options)
    theirs = stock(name, options, n, continuous)
    ours.reset_tensors()
    restore(theirs.scenario, n, ours._capture())
    generator = torch.Generator().manual_seed(0)
    for _ in range(8):
        if continuous:  # also outside the box, which both clamp
            action = 1.2 * (2 * torch.rand(n, ours.n_agents, max(ours.action_dims), generator=generator) - 1)
            parts = [action[:, k, :size] for k, size in enumerate(ours.action_dims)]
        else:
            parts = [torch.randint(size, (n,), generator=generator) for size in ours.action_dims]
            action = torch.stack(parts, 1)
        vmas.simulator.environment.Environment.vmas_random_state[0] = ours.random.cpu.clone()
        observations, rewards, done, _ = theirs.step([part.clone() for part in parts])
        out = ours.step_tensors({ACTION: action})
        for k, (observation, reward) in enumerate(zip(observations, rewards, strict=True)):
            size = observation.shape[-1]
            assert torch.equal(out[OBSERVATION][:, k, :size], observation)
            assert (out[OBSERVATION][:, k, size:] == 0).all()
            assert torch.equal(out[REWARD][:, k, 0], reward.reshape(n))
        assert torch.equal(out["terminated"][:, 0], done)


def test_every_scenario_is_known():
    assert {*vmas.scenarios, *vmas.mpe_scenarios, *vmas.debug_scenarios} < set(available())
    assert set(HORIZONS) | TEAM_REWARD < set(available())


@pytest.mark.parametrize("name", sorted(TEAM_REWARD))
def test_team_rewards_are_shared(name):
    env = make_env(f"vmas/{name}", num_envs=16, seed=0)
    assert env.reward_is_shared
    reward = env.rollout(6, break_when_any_done=False)["next", "agents", "reward"]
    assert (reward == reward[:, :, :1]).all()


def test_names_and_options_are_checked():
    with pytest.raises(ValueError, match="did you mean 'navigation'"):
        make_env("vmas/navigatoin", num_envs=2)
    with pytest.raises(ValueError, match=r"no option 'n_agent'.*'n_agents'.*did you mean 'n_agents'"):
        make_env("vmas/balance", num_envs=2, n_agent=3)
    with pytest.raises(ValueError, match="refused the options"):
        make_env("vmas/simple_adversary", num_envs=2, n_agents=1, n_adversaries=2)
    with pytest.raises(ValueError, match=r"groups of vmas/balance must be one of \['padded', 'native'\], got 'one'"):
        make_env("vmas/balance", num_envs=2, groups="one")


@pytest.mark.parametrize("option, value, allowed", [
    ("continuous_actions", "no", "True or False"), ("with_hidden", "no", "True or False"),
    ("collisions", "off", "True or False"), ("collisions", 0, "True or False"),
    ("n_agents", "many", "a number, a list or None"), ("lidar_range", True, "a number, a list or None"),
])
def test_a_value_of_another_kind_than_the_default_is_refused(option, value, allowed):
    with pytest.raises(ValueError, match=f"{option} of vmas/navigation must be {allowed}, got {value!r}"):
        make_env("vmas/navigation", num_envs=2, **{option: value})


@pytest.mark.parametrize("name, options", [
    ("navigation", {"final_reward": 1}), ("sampling", {"cov": [0.05, 0.1, 0.05]}), ("football", {"max_speed": None}),
    ("buzz_wire", {"max_speed_1": 0.5}),
])
def test_numbers_may_be_of_either_kind_and_one_each_and_none(name, options):
    assert make_env(f"vmas/{name}", num_envs=1, **options).num_envs == 1


def test_options_are_found_in_the_source():
    options = {name: scenario_options(make_env(f"vmas/{name}", num_envs=1).scenario)
               for name in ("passage", "football", "give_way_pe", "simple_spread")}
    assert list(options["passage"]) == ["n_passages", "shared_reward"] and options["passage"]["shared_reward"] is bool
    assert options["football"]["dense_reward_ratio"] is options["football"]["shooting_angle"] is Any  # None, pi / 2
    assert "ai_red_agents" in options["football"] and len(options["football"]) > 30
    assert "spawn_pos_noise" not in options["give_way_pe"] and "mirror_passage" in options["give_way_pe"]
    assert make_env("vmas/simple_spread", num_envs=2, n_agents=5).n_agents == 5


def test_horizons():
    assert make_env("vmas/balance", num_envs=1).max_steps == 100
    assert make_env("vmas/simple_reference_pe", num_envs=1).max_steps == 25
    assert make_env("vmas/passage", num_envs=1).max_steps == 500
    assert make_env("vmas/passage", num_envs=1, max_steps=7).max_steps == 7


def test_padding_roles_and_mask():
    env = make_env("vmas/simple_speaker_listener", num_envs=3, continuous_actions=False)
    assert env.agent_types == (0, 1) and env.obs_dims == [3, 11] and env.action_dims == [27, 9]
    out = env.reset_tensors()
    assert (out[OBSERVATION][:, 0, 3:] == 0).all()
    assert out[ACTION_MASK].sum(-1).tolist() == [[27, 9]] * 3
    assert make_env("vmas/simple_tag", num_envs=1).agent_types == (0, 0, 0, 1)
    continuous = make_env("vmas/simple_speaker_listener", num_envs=3)
    space = continuous.full_action_spec[ACTION].space
    assert space.low[0].tolist() == [[-1, -1, 0, 0, 0], [-1, -1, -1, -1, -1]]
    assert ACTION_MASK not in continuous.reset_tensors()


def test_padded_action_dimensions_do_nothing():
    one, two = (make_env("vmas/simple_speaker_listener", num_envs=3, seed=0) for _ in range(2))
    one.reset_tensors(), two.reset_tensors()
    action = torch.rand(3, 2, 5)
    other = action.clone()
    other[:, 1, 2:] = -1.0
    one, two = one.step_tensors({ACTION: action}), two.step_tensors({ACTION: other})
    assert torch.equal(one[OBSERVATION], two[OBSERVATION])


def test_a_choice_that_an_agent_does_not_have_means_stay():
    one, two = (make_env("vmas/simple_speaker_listener", num_envs=3, continuous_actions=False) for _ in range(2))
    one.reset_tensors(), two.reset_tensors()
    one = one.step_tensors({ACTION: torch.tensor([[4, 20]] * 3)})
    assert torch.equal(one[OBSERVATION], two.step_tensors({ACTION: torch.tensor([[4, 0]] * 3)})[OBSERVATION])


def test_actions_are_clamped_and_left_alone():
    one, two = (make_env("vmas/give_way", num_envs=3) for _ in range(2))  # box [-0.5, 0.5]
    one.reset_tensors(), two.reset_tensors()
    action = torch.full((3, 2, 2), 3.0)
    out = one.step_tensors({ACTION: action})
    assert torch.equal(out[OBSERVATION], two.step_tensors({ACTION: torch.full((3, 2, 2), 0.5)})[OBSERVATION])
    assert (action == 3.0).all()


def test_infos_are_optional():
    env = make_env("vmas/navigation", num_envs=3, with_info=True)
    out = env.rollout(2)
    assert out["next", "agents", "info", "pos_rew"].shape == (3, 2, 4, 1)
    assert "info" not in make_env("vmas/navigation", num_envs=3).rollout(1)["agents"].keys()  # noqa: SIM118


@pytest.mark.parametrize("name", ["navigation", "het_mass", "discovery"])
def test_the_global_random_state_is_not_touched(name):
    def numbers():
        state = np.random.get_state()
        return [*torch.get_rng_state().tolist(), *state[1].tolist(), *state[2:]]

    before = numbers()
    env = make_env(f"vmas/{name}", num_envs=4, seed=0)
    env.reset_tensors(torch.tensor([True, False, False, True]))
    assert numbers() == before
    env.rollout(3, policy=lambda td: td.set(ACTION, torch.zeros(env.full_action_spec[ACTION].shape)))
    assert numbers() == before


def test_the_random_state_comes_back_after_an_error():
    env, before = make_env("vmas/balance", num_envs=2), torch.get_rng_state()
    with pytest.raises(RuntimeError), env.random.swapped_in():
        torch.rand(3)
        raise RuntimeError
    assert torch.equal(torch.get_rng_state(), before)


def test_set_seed_starts_the_random_state_again():
    env = make_env("vmas/simple_spread", num_envs=4, seed=3)
    first = env.reset_tensors()[OBSERVATION]
    env.reset_tensors()
    env.set_seed(3)
    assert torch.equal(env.reset_tensors()[OBSERVATION], first)


def test_partial_step():
    env = make_env("vmas/navigation", num_envs=4)
    td = env.reset()
    before = td[OBSERVATION].clone()
    td = td.set(ACTION, torch.ones(4, 4, 2)).set("_step", torch.tensor([True, False, True, False]))
    moved = (env._step(td)[OBSERVATION] != before).flatten(1).any(1)
    assert moved.tolist() == [True, False, True, False]
    assert env.steps.tolist() == [1, 0, 1, 0]


def test_render_frame():
    env = make_env("vmas/give_way", num_envs=2)
    frame = env.render_frame(1)
    assert frame.dtype == np.uint8 and frame.shape == (224, 512, 3)
    assert env.render_frame(0, size=(60, 80)).shape == (60, 80, 3)
    with pytest.raises(ValueError, match=r"env_index must be in \[0, 1\]"):
        env.render_frame(2)
