"""Tasks of the particle world against the trajectories of the particle environment shipped with SMPE², and mpe2."""

from pathlib import Path

import numpy as np
import pytest
import torch

from envs import make_env
from envs.base import ACTION, OBSERVATION, REWARD
from envs.particle_tasks import Navigation

torch.set_num_threads(1)

GOLDEN = Path(__file__).resolve().parents[1] / "golden" / "mpe"
TRAJECTORIES = {"simple_spread_3": "spread-3", "simple_spread_4": "spread-4", "simple_spread_5": "spread-5",
                "simple_spread_8": "spread-8", "climbing_spread": "climbing_spread", "doublespread_4": "doublespread-4"}


def place(env, agents, landmarks, velocity=None):
    """Put agents [N, A, 2] and landmarks [N, L, 2] there."""
    last = lambda points: torch.as_tensor(points).float().permute(1, 2, 0).contiguous()  # noqa: E731
    env.reset_tensors()
    env.places = torch.cat([last(agents), last(landmarks)])
    env.velocity = torch.zeros_like(last(agents)) if velocity is None else last(velocity)
    return env._observe()[OBSERVATION]


@pytest.mark.parametrize("file", TRAJECTORIES)
def test_follows_the_reference(file):
    """A random and two crowded starts, 25 steps; float64 there, float32 here, whose contacts amplify rounding."""
    saved = np.load(GOLDEN / f"{file}.npz")
    env = make_env(f"particle/{TRAJECTORIES[file]}", num_envs=3)
    seen = place(env, saved["agents"][:, 0], saved["landmarks"], saved["velocity"][:, 0])
    np.testing.assert_allclose(seen, saved["observation"][:, 0], atol=1e-6)
    for t in range(25):
        out = env.step_tensors({ACTION: torch.as_tensor(saved["action"][:, t]).long()})
        np.testing.assert_allclose(out[OBSERVATION], saved["observation"][:, t + 1], atol=1e-5)
        np.testing.assert_allclose(out[REWARD][..., 0], saved["reward"][:, t], rtol=2e-6, atol=5e-6)
        agents = env.places[: env.n_agents].permute(2, 0, 1)
        np.testing.assert_allclose(agents, saved["agents"][:, t + 1], atol=1e-5)
        np.testing.assert_allclose(env.velocity.permute(2, 0, 1), saved["velocity"][:, t + 1], atol=1e-5)
    assert out["truncated"].all() and not out["terminated"].any()


@pytest.mark.parametrize("n_agents", [2, 3, 5])
@pytest.mark.parametrize("is_continuous", [True, False], ids=["continuous", "discrete"])
@pytest.mark.parametrize("local_ratio", [0.5, 0.2])
def test_follows_mpe2(n_agents, is_continuous, local_ratio):
    simple_spread = pytest.importorskip("mpe2.simple_spread_v3")
    n, random = 12, np.random.default_rng(n_agents)
    theirs = [simple_spread.parallel_env(N=n_agents, local_ratio=local_ratio, continuous_actions=is_continuous)
              for _ in range(n)]
    worlds = [env.unwrapped.world for env in theirs]
    for k, (env, world) in enumerate(zip(theirs, worlds, strict=True)):
        env.reset(seed=k)
        for agent in world.agents:
            agent.state.p_pos = agent.state.p_pos * (1.0 if k % 2 else 0.3)  # every other one crowded
    ours = make_env(f"particle/spread-{n_agents}", num_envs=n, dialect="mpe2", continuous_actions=is_continuous,
                    local_ratio=local_ratio)
    place(ours, np.array([[agent.state.p_pos for agent in world.agents] for world in worlds]),
          np.array([[landmark.state.p_pos for landmark in world.landmarks] for world in worlds]))
    names = ours.group_map["agents"]
    for _ in range(25):
        action = (random.random((n, n_agents, 5), dtype=np.float32) if is_continuous
                  else random.integers(0, 5, (n, n_agents)))
        steps = [env.step(dict(zip(names, row, strict=True))) for env, row in zip(theirs, action, strict=True)]
        out = ours.step_tensors({ACTION: torch.as_tensor(action)})
        seen, paid = ([[step[k][name] for name in names] for step in steps] for k in (0, 1))
        np.testing.assert_allclose(out[OBSERVATION], seen, rtol=1e-5, atol=1e-5)
        np.testing.assert_allclose(out[REWARD][..., 0], paid, rtol=1e-5, atol=1e-5)
        assert out["truncated"].flatten().tolist() == [step[3][names[0]] for step in steps]
    assert out["truncated"].all() and not out["terminated"].any()


def test_climbing_pays_by_the_last_landmark():
    landmarks = [[[0.0, 0.0], [2.0, 0.0], [4.0, 0.0]]] * 7
    env = make_env("particle/climbing_spread", num_envs=7)
    place(env, [[[0.0, 0.0], [0.1, 0.0]], [[2.0, 0.0], [2.1, 0.0]], [[4.0, 0.0], [4.1, 0.0]],  # together
                [[0.0, 0.0], [9.0, 0.0]], [[2.0, 0.0], [9.0, 0.0]], [[4.0, 0.0], [9.0, 0.0]],  # alone
                [[2.0, 0.0], [4.0, 0.0]]], landmarks)
    reward = env.step_tensors({ACTION: torch.zeros(7, 2, dtype=torch.int64)})[REWARD][..., 0]
    assert reward.tolist() == [[r, r] for r in (10.0, 14.0, 22.0, 0.0, -5.0, -6.0, -11.0)]


def test_doublespread_pays_for_the_weaker_landmark():
    env = make_env("particle/doublespread-6", num_envs=2)
    place(env, [[[0.0, 0.0]] * 2 + [[1.0, 0.0]] * 4, [[0.0, 0.0]] * 5 + [[0.5, 0.0]]], [[[0.0, 0.0], [1.0, 0.0]]] * 2)
    reward = env.step_tensors({ACTION: torch.zeros(2, 6, dtype=torch.int64)})[REWARD][..., 0]
    assert reward.tolist() == [[12.0] * 6, [0.0] * 6]


@pytest.mark.parametrize(("dialect", "actions"), [("smpe", [(0, 0), (5, 0), (-5, 0), (0, 5), (0, -5)]),
                                                  ("mpe2", [(0, 0), (-5, 0), (5, 0), (0, -5), (0, 5)])])
def test_each_choice_pushes_its_way(dialect, actions):
    env = make_env("particle/spread-1", num_envs=5, dialect=dialect)
    env.reset_tensors()
    env.step_tensors({ACTION: torch.arange(5)[:, None]})
    assert env.velocity[0].T.tolist() == pytest.approx(np.array(actions) * 0.1)


def test_team_reward_of_the_fork_follows_from_vmas():
    """With the forces of the fork, team reward = A (r_vmas - A) per step."""
    fork, other = (make_env("particle/spread-4", num_envs=64, dialect=d) for d in ("smpe", "vmas"))
    fork.reset_tensors()
    other.places, other.velocity = fork.places, fork.velocity
    stay = fork.step_tensors({ACTION: torch.zeros(64, 4, dtype=torch.int64)})[REWARD]
    rest = other.step_tensors({ACTION: torch.zeros(64, 4, 2)})[REWARD]
    # but for the tail of the fork's contact force, which moves discs that almost touch by a thousandth
    torch.testing.assert_close(stay.sum(1), 4 * (rest[:, 0] - 4), rtol=0, atol=0.05)


# ---------------------------------------------------------------------- navigation's own rules

def test_navigation_ends_when_all_are_home():
    env = make_env("particle/navigation-2", num_envs=3)
    place(env, [[[0.0, 0.0], [1.0, 0.0]]] * 3, [[[0.0, 0.04], [1.0, 0.0]], [[0.0, 0.09], [1.0, 0.0]],
                                                [[0.0, 0.0], [1.0, 0.11]]])
    out = env.step_tensors({ACTION: torch.zeros(3, 2, 2)})
    assert out["terminated"].flatten().tolist() == [True, True, False]
    torch.testing.assert_close(out[REWARD][..., 0], torch.tensor([[0.01] * 2, [0.0] * 2, [0.0] * 2]))


def test_the_penalty_of_a_row_does_not_depend_on_other_rows():
    """0.203 apart: the surfaces do not touch, and are within the distance that is punished."""
    alone, together = (make_env("particle/navigation-2", num_envs=n) for n in (1, 2))
    near, touching, goals = [[0.0, 0.0], [0.203, 0.0]], [[0.0, 0.0], [0.19, 0.0]], [[0.0, 1.0], [1.0, 1.0]]
    place(alone, [near], [goals])
    place(together, [near, touching], [goals, goals])
    one = alone.step_tensors({ACTION: torch.zeros(1, 2, 2)})[REWARD]
    two = together.step_tensors({ACTION: torch.zeros(2, 2, 2)})[REWARD]
    assert (one == -1).all() and torch.equal(one[0], two[0])


def test_shared_and_split_goals():
    env = make_env("particle/navigation-4", num_envs=8, collisions=False, agents_with_same_goal=2, split_goals=True)
    goals = env.places[4:]
    assert torch.equal(goals[0], goals[1]) and torch.equal(goals[2], goals[3]) and not torch.equal(goals[0], goals[2])
    env = make_env("particle/navigation-4", num_envs=8, collisions=False, agents_with_same_goal=3)
    goals = env.places[4:]
    assert torch.equal(goals[0], goals[2]) and not torch.equal(goals[0], goals[3])


@pytest.mark.parametrize("n_agents", [1, 4, 10])
def test_starts_keep_their_distance(n_agents):
    env = make_env(f"particle/navigation-{n_agents}", num_envs=2000)
    points = env.places.permute(2, 0, 1)
    gaps = torch.cdist(points, points) + 9 * torch.eye(2 * n_agents)
    assert gaps.min() >= 0.25 - 1e-6 and points.abs().max() <= 1


def test_starts_where_there_is_no_room():
    env = make_env("particle/navigation-10", num_envs=50, world_spawning_x=0.2, world_spawning_y=0.1)
    assert env.places[:, 0].abs().max() <= 0.2 and env.places[:, 1].abs().max() <= 0.1
    assert isinstance(env.task, Navigation) and env.task.attempts == 64
    assert torch.isfinite(env.rollout(3)["next", "agents", "reward"]).all()
