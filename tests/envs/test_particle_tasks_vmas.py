"""Spread and navigation against VMAS: the same start, the same actions, 25 steps, and crowded starts step by step."""

from importlib import import_module

import pytest
import torch
import vmas

from envs import make_env
from envs.base import ACTION, OBSERVATION, REWARD
from envs.particle_world import length

torch.set_num_threads(1)

N, STEPS = 256, 25
NAVIGATION = [("navigation-4", {}), ("navigation-3", {"shared_rew": False, "observe_all_goals": True}),
              ("navigation-5", {"lidar_range": 0.6, "n_lidar_rays": 7, "agent_radius": 0.12, "pos_shaping_factor": 3.0,
                                "final_reward": 0.5, "agent_collision_penalty": -2.0}),
              ("navigation-4", {"collisions": False, "agents_with_same_goal": 2, "split_goals": True}),
              ("navigation-2", {"enforce_bounds": True, "world_spawning_x": 0.5, "world_spawning_y": 0.4})]


class Oracle:
    """VMAS, started from our state; row N is one more, in which all agents stay at one place.

    VMAS pays navigation's collision penalties only while some pair touches in some row: in row N all do, always.
    """

    def __init__(self, ours, module, options):
        scenario = import_module(module).Scenario()
        self.env = vmas.make_env(scenario, num_envs=N + 1, seed=0, continuous_actions=ours.continuous_actions,
                                 n_agents=ours.n_agents, **options)
        self.env.reset(seed=0)
        self.ours, self.scenario = ours, scenario

    def put(self):
        """Copy our state."""
        places, velocity = (torch.nn.functional.pad(x, (0, 1)) for x in (self.ours.places, self.ours.velocity))
        agents, landmarks = self.env.agents, self.env.world.landmarks
        for entity, place in zip([*agents, *landmarks], places, strict=True):
            entity.state.pos = place.T.clone()
        starts, goals = places[: len(agents)], places[len(agents):]
        for agent, speed, start, goal in zip(agents, velocity, starts, goals, strict=True):
            agent.state.vel = speed.T.clone()
            if hasattr(agent, "pos_shaping"):
                agent.pos_shaping = length(start - goal) * self.scenario.pos_shaping_factor

    def step(self, action):
        """Observation, reward, terminated of rows 0 to N."""
        action = torch.cat([action, torch.zeros_like(action[:1])])
        observation, reward, done, _ = self.env.step([part.clone().reshape(N + 1, -1) for part in action.unbind(1)])
        return torch.stack(observation, 1)[:N], torch.stack(reward, 1)[:N], done[:N]


def pair(name, seed=0, is_continuous=True, **options):
    module = "vmas.scenarios.mpe.simple_spread" if name.startswith("spread") else "vmas.scenarios.navigation"
    ours = make_env(f"particle/{name}", num_envs=N, seed=seed, dialect="vmas", continuous_actions=is_continuous,
                    **options)
    return ours, Oracle(ours, module, options)


def draw(ours, generator):
    if ours.continuous_actions:
        return 2 * torch.rand(N, ours.n_agents, 2, generator=generator) - 1
    return torch.randint(9, (N, ours.n_agents), generator=generator)


def follow(ours, oracle, *, every_step=False):
    """Compare 25 steps to 1e-5; ``every_step``: from our state each time, so that nothing is amplified over steps.

    Else one row in a hundred may be off by 1e-4: where several discs collide, contacts amplify the last bit of
    float32. VMAS itself is as far from the same trajectory in float64 as this world is.
    """
    generator, off = torch.Generator().manual_seed(0), torch.zeros(N)
    oracle.put()
    for _ in range(STEPS):
        if every_step:
            oracle.put()
        action = draw(ours, generator)
        out, (observation, reward, done) = ours.step_tensors({ACTION: action}), oracle.step(action)
        off = torch.maximum(off, (out[OBSERVATION] - observation).abs().flatten(1).amax(1))
        assert off.max() <= 1e-4
        torch.testing.assert_close(out[REWARD][..., 0], reward, rtol=2e-6, atol=1e-5)
        assert torch.equal(out["terminated"][:, 0], done)
    assert (off > 1e-5).sum() <= (0 if every_step else N // 100)


@pytest.mark.parametrize("is_continuous", [True, False], ids=["continuous", "discrete"])
@pytest.mark.parametrize("name", ["spread-1", "spread-3", "spread-5"])
def test_spread(name, is_continuous):
    follow(*pair(name, is_continuous=is_continuous))


@pytest.mark.parametrize("is_continuous", [True, False], ids=["continuous", "discrete"])
@pytest.mark.parametrize(("name", "scale"), [("spread-3", 0.2), ("spread-8", 0.5)])
def test_crowded_spread(name, scale, is_continuous):
    """Many discs on top of each other: forces of tens, directions from offsets of hundredths."""
    ours, oracle = pair(name, is_continuous=is_continuous)
    ours.places = ours.places * scale
    follow(ours, oracle, every_step=True)


def test_spread_without_others():
    ours, oracle = pair("spread-3", obs_agents=False)
    assert ours.full_observation_spec[OBSERVATION].shape == (N, 3, 10)
    follow(ours, oracle)


@pytest.mark.parametrize(("name", "options"), NAVIGATION, ids=lambda value: value if isinstance(value, str) else "")
def test_navigation(name, options):
    follow(*pair(name, **options))


def test_discrete_navigation():
    follow(*pair("navigation-3", is_continuous=False))


@pytest.mark.parametrize(("name", "options"), NAVIGATION[:3], ids=lambda value: value if isinstance(value, str) else "")
def test_crowded_navigation(name, options):
    ours, oracle = pair(name, **options)
    ours.places = ours.places * 0.35
    follow(ours, oracle, every_step=True)


def test_actions_outside_the_box_are_clamped():
    ours, _ = pair("spread-3")
    other, _ = pair("spread-3")
    other.places, action = ours.places, torch.full((N, 3, 2), 3.0)
    one, two = ours.step_tensors({ACTION: action}), other.step_tensors({ACTION: action.clamp(-1, 1)})
    assert torch.equal(one[OBSERVATION], two[OBSERVATION])


@pytest.mark.parametrize("name", ["spread-3", "navigation-4"])
def test_starts_have_the_distribution_of_vmas(name):
    """Quantiles of coordinates and of the distances between entities, 8 x 256 starts of each."""
    ours, oracle = pair(name, seed=11)
    entities = [*oracle.env.agents, *oracle.env.world.landmarks]
    mine, theirs = [], []
    for _ in range(8):
        ours.reset_tensors()
        mine.append(ours.places.permute(2, 0, 1))
        oracle.env.reset()
        theirs.append(torch.stack([entity.state.pos for entity in entities], 1)[:N])
    share = torch.linspace(0.02, 0.98, 21)
    first, second = torch.triu_indices(len(entities), len(entities), 1)
    mine, theirs = torch.cat(mine), torch.cat(theirs)
    torch.testing.assert_close(mine.flatten().quantile(share), theirs.flatten().quantile(share), rtol=0, atol=0.03)
    mine, theirs = (torch.cdist(points, points)[:, first, second].flatten() for points in (mine, theirs))
    torch.testing.assert_close(mine.quantile(share), theirs.quantile(share), rtol=0, atol=0.03)
