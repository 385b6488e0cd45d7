"""The state of a VMAS world: what stands in it, by hand, in every scenario, and that it changes nothing else."""

import pytest
import torch

from envs import make_env
from envs.base import ACTION, OBSERVATION
from envs.vmas import available

torch.set_num_threads(1)

N = 5


def make(name, **options):
    env = make_env(f"vmas/{name}", num_envs=N, seed=0, **{"with_state": True} | options)
    return env, env.reset_tensors()


def noise(env):
    return {ACTION: torch.rand(env.full_action_spec[ACTION].shape) - 0.5}


def test_speaker_and_listener_by_hand():
    """Three round landmarks that rest; a speaker that stays and turns; a listener that moves; the goal, for both.

    Behind them what the two observe, 11 numbers each with padding.
    """
    env, _ = make("simple_speaker_listener_pe")
    for _ in range(3):
        out = env.step_tensors(noise(env))
    state, observed = out["state"].split([25, 22], -1)
    assert torch.equal(observed, out[OBSERVATION].flatten(1))
    speaker, listener = env.scenario.world.agents
    said, s, goal = speaker.state.c, listener.state, env.scenario.hidden(listener)
    parts = [*(landmark.state.pos for landmark in env.scenario.world.landmarks),
             speaker.state.pos, speaker.state.rot, speaker.state.ang_vel, said,
             s.pos, s.vel, s.rot, s.ang_vel, goal, goal]
    assert torch.equal(state, torch.cat(parts, -1)) and state.shape == (N, 3 * 2 + 2 + 2 + 3 + 2 + 2 + 2 + 2 * 3)
    assert said.any() and s.vel.any()


def test_a_wall_has_an_angle_and_scripted_agents_are_in_it():
    env, _ = make("football", ai_red_agents=True)
    world = env.scenario.world
    sizes = [2 + 2 * e.movable + (e.rotatable or "Sphere" not in type(e.shape).__name__) + e.rotatable
             for e in world.entities]
    assert len(world.policy_agents) < len(world.agents)
    assert env.observation_spec["state"].shape == (N, sum(sizes) + env.n_agents * max(env.obs_dims))
    assert any(size == 3 for size in sizes)  # walls: position and angle


@pytest.mark.filterwarnings("ignore:Force limits not specified")  # vel_control's own
@pytest.mark.parametrize("name", available())
def test_every_scenario_has_one(name):
    env, seen = make(name, continuous_actions=False)
    after = env.step_tensors({ACTION: torch.randint(min(env.action_dims), (N, env.n_agents))})
    for out in (seen, after):
        assert out["state"].dtype == torch.float32 and out["state"].shape == env.observation_spec["state"].shape
        assert out["state"].isfinite().all()
    assert not torch.equal(seen["state"], after["state"])


@pytest.mark.parametrize("name", ["simple_world_comm", "navigation", "road_traffic", "hidden_leader"])
def test_it_changes_nothing_else(name):
    (env, seen), (twin, other) = make(name), make(name, with_state=False)
    assert "state" not in set(twin.observation_spec.keys()) and "state" not in other
    for _ in range(3):
        assert torch.equal(seen[OBSERVATION], other[OBSERVATION])
        action = noise(env)
        seen, other = env.step_tensors(dict(action)), twin.step_tensors(dict(action))


def test_it_is_no_view_of_the_world():
    env, seen = make("navigation")
    before = seen["state"].clone()
    env.step_tensors(noise(env))
    assert torch.equal(seen["state"], before)
