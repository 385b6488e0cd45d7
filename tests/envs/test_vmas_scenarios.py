"""The project's corrections of VMAS scenarios."""

import pytest
import torch

from envs import make_env
from envs.base import ACTION, OBSERVATION, REWARD

torch.set_num_threads(1)

N = 32


def goals(env):
    """Landmark of each row [N], of the agents that have one."""
    agents = env.scenario.world.agents
    if env.name.startswith(("simple_adversary", "simple_push")):
        return agents[-1].goal.index
    return agents[0].goal_b.index


@pytest.mark.parametrize("name", ["simple_reference", "simple_speaker_listener", "simple_adversary", "simple_push"])
def test_goals_are_drawn_per_environment(name):
    env = make_env(f"vmas/{name}_pe", num_envs=N, seed=0)
    env.reset_tensors()
    before = goals(env).clone()
    assert len(before.unique()) > 1
    rows = torch.arange(N) % 2 == 0
    env.reset_tensors(rows)
    after = goals(env)
    assert torch.equal(after[~rows], before[~rows]) and not torch.equal(after[rows], before[rows])
    env.reset_tensors()
    assert not torch.equal(goals(env)[~rows], before[~rows])


@pytest.mark.parametrize("name", ["simple_reference", "simple_speaker_listener", "simple_adversary", "simple_push"])
def test_with_one_goal_for_all_it_is_the_shipped_scenario(name):
    env, shipped = make_env(f"vmas/{name}_pe", num_envs=N, seed=0), make_env(f"vmas/{name}", num_envs=N, seed=0)
    env.reset_tensors(), shipped.reset_tensors()
    for ours, theirs in zip(env.scenario.world.entities, shipped.scenario.world.entities, strict=True):
        ours.state.pos = theirs.state.pos.clone()
    landmarks = shipped.scenario.world.landmarks
    for ours, theirs in zip(env.scenario.world.agents, shipped.scenario.world.agents, strict=True):
        for goal in ("goal", "goal_b"):
            target = getattr(theirs, goal, None)
            if target is not None:
                getattr(ours, goal).index.fill_(landmarks.index(target))
        ours.color = theirs.color if name != "simple_push" else theirs.color.expand(N, 3)
    action = {ACTION: torch.rand(env.full_action_spec[ACTION].shape)}
    one, two = env.step_tensors(action), shipped.step_tensors(action)
    assert torch.equal(one[OBSERVATION], two[OBSERVATION]) and torch.equal(one[REWARD], two[REWARD])


def test_the_shipped_goal_is_kept_until_all_rows_reset():
    env = make_env("vmas/simple_speaker_listener", num_envs=N, seed=0)
    for _ in range(10):
        env.reset_tensors(torch.arange(N) % 2 == 0)
        seen = env._observe()[OBSERVATION][:, 0, :3]
        assert (seen == seen[0]).all()
    colors = {tuple(env.reset_tensors(torch.ones(N, dtype=torch.bool))[OBSERVATION][0, 0].tolist()) for _ in range(20)}
    assert len(colors) == 3


def test_the_speaker_sees_the_landmark_that_pays():
    env = make_env("vmas/simple_speaker_listener_pe", num_envs=N, seed=0)
    speaker, listener = env.reset_tensors()[OBSERVATION].unbind(1)
    goal = speaker[:, :3].argmax(-1)  # landmarks are red, green and blue
    distance = listener[:, 2:8].reshape(N, 3, 2)[torch.arange(N), goal].norm(dim=-1)
    torch.testing.assert_close(env.step_tensors({ACTION: torch.zeros(N, 2, 5)})[REWARD][:, 0, 0], -2 * distance)


def test_ball_trajectory_pays_all_agents():
    reward = make_env("vmas/ball_trajectory", num_envs=N, seed=0).rollout(4)["next", "agents", "reward"]
    assert (reward[:, :, 0] == reward[:, :, 1]).all() and (reward != 0).any()


def test_passage_with_shared_reward_pays_all_the_same():
    env = make_env("vmas/passage", num_envs=N, seed=0, shared_reward=True)
    env.reset_tensors()
    agents = env.scenario.world.agents
    agents[0].state.pos = agents[1].state.pos + 0.01  # in contact
    reward = env.step_tensors({ACTION: torch.zeros(N, 5, 2)})[REWARD]
    assert (reward == reward[:, :1]).all() and (reward < -5).any()


def test_give_way_starts_differ():
    env = make_env("vmas/give_way_pe", num_envs=N, seed=0)
    start = env.reset_tensors()[OBSERVATION][:, :, :2]
    assert len(start[:, 0].unique(dim=0)) == N
    middle = start.mean(0)
    assert ((start - middle).abs() <= 2 * env.scenario.spawn_pos_noise).all()
    reward = env.step_tensors({ACTION: torch.zeros(N, 2, 2)})[REWARD]
    assert (reward.abs() < 1e-5).all()  # the shaping starts from the noisy position


def test_world_comm_follows_the_rules_of_visibility():
    env = make_env("vmas/simple_world_comm_pe", num_envs=3, seed=0)
    env.reset_tensors()
    world = env.scenario.world
    leader, hunter, prey = world.agents[0], world.agents[1], world.agents[4]
    for entity in world.entities:
        entity.state.pos = torch.full((3, 2), 5.0)
    first, second = world.forests
    first.state.pos, second.state.pos = torch.tensor([[0.0, 0.0]] * 3), torch.tensor([[1.0, 0.0]] * 3)
    for agent in world.agents:
        agent.state.pos = torch.tensor([[0.0, 0.9]] * 3)
    # row 0: both in the open; row 1: prey in the first forest; row 2: both in the first forest
    prey.state.pos = torch.tensor([[0.0, -0.9], [0.0, 0.1], [0.0, 0.1]])
    hunter.state.pos = torch.tensor([[0.0, 0.9], [0.0, 0.9], [0.0, -0.1]])
    offset = slice(4 + 10 + 2 * 3, 4 + 10 + 2 * 4)  # the fourth other: the prey
    expected = prey.state.pos - hunter.state.pos
    expected[1] = 0.0
    assert torch.equal(env.scenario.observation(hunter)[:, offset], expected)
    assert torch.equal(env.scenario.observation(leader)[:, offset], prey.state.pos - leader.state.pos)
    assert env.scenario.observation(hunter)[:, -6:-4].tolist() == [[-1, -1], [-1, -1], [1, -1]]
