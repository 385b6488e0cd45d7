"""Gymnasium environments as batched ones: the same numbers as alone, partial resets, exact resume, clear errors."""

from __future__ import annotations

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium import spaces

from envs import make_env
from envs.base import ACTION, ACTION_MASK, OBSERVATION, REWARD
from envs.gymnasium import AgentSpaces, ReplayEnv, SingleAgent

torch.set_num_threads(1)


class Counter(gymnasium.Env):
    """Counts its steps and adds a random start; Dict observation with a mask; cuts itself when the action is 2."""

    metadata = {"render_modes": []}  # noqa: RUF012
    observation_space = spaces.Dict({"count": spaces.Box(-9, 999, (2,)), "kind": spaces.Discrete(3, start=1),
                                     "action_mask": spaces.MultiBinary(3)})
    action_space = spaces.Discrete(3, start=5)

    def __init__(self, deterministic: bool = True):
        self.deterministic = deterministic

    def _observation(self) -> dict:
        count = np.array([self.count, self.start], dtype=np.float32)
        return {"count": count, "kind": np.int64(2), "action_mask": np.array([1, self.count % 2, 1], dtype=np.int8)}

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed if self.deterministic else None)
        self.count, self.start = 0, self.np_random.uniform()
        return self._observation(), {}

    def step(self, action):
        self.count += 1
        return self._observation(), float(action), False, action == 7, {}


def counter(render_mode: str | None = None) -> SingleAgent:
    return SingleAgent(Counter())


def chance(render_mode: str | None = None) -> SingleAgent:
    return SingleAgent(Counter(deterministic=False))


def plain_observation(env: gymnasium.Env, observation) -> torch.Tensor:
    return torch.as_tensor(np.asarray(spaces.flatten(env.observation_space, observation), dtype=np.float32))


def random_actions(env: ReplayEnv, generator: torch.Generator) -> dict:
    spec = env.full_action_spec[ACTION]
    if spec.dtype == torch.int64:
        return {ACTION: torch.randint(spec.space.n, spec.shape, generator=generator)}
    low, high = spec.space.low, spec.space.high
    return {ACTION: low + (high - low) * torch.rand(spec.shape, generator=generator)}


def done_rows(out: dict) -> torch.Tensor:
    return out["done"][:, 0]


def roll(env: ReplayEnv, steps: int, generator: torch.Generator) -> list[dict]:
    """Step with random actions, restarting what is done, and keep everything seen."""
    seen = []
    for _ in range(steps):
        out = env.step_tensors(random_actions(env, generator))
        seen.append(out)
        if done_rows(out).any():
            seen.append(env.reset_tensors(done_rows(out)))
    return seen


def assert_equal(first: list[dict], second: list[dict]) -> None:
    assert len(first) == len(second)
    for a, b in zip(first, second, strict=True):
        assert a.keys() == b.keys()
        assert all(torch.equal(a[key], b[key]) for key in a)


@pytest.mark.parametrize("name,max_steps", [("CartPole-v1", None), ("Pendulum-v1", 7), ("MountainCarContinuous-v0", 9),
                                            ("FrozenLake-v1", None), ("Taxi-v4", 6), ("Blackjack-v1", None)])
def test_same_numbers_as_the_plain_environment(name, max_steps):
    env = make_env(f"gymnasium/{name}", num_envs=3, seed=4, max_steps=max_steps)
    generator = torch.Generator().manual_seed(0)
    plain = [gymnasium.make(name, max_episode_steps=max_steps) for _ in range(3)]
    seen = env.reset_tensors()
    first = [row.reset(seed=int(seed)) for row, seed in zip(plain, env.episode_seeds, strict=True)]
    assert all(torch.equal(seen[OBSERVATION][i, 0], plain_observation(plain[i], first[i][0])) for i in range(3))
    ends = 0
    for _ in range(40):
        actions = random_actions(env, generator)
        out = env.step_tensors(actions)
        for i, row in enumerate(plain):
            action = actions[ACTION][i, 0].numpy()
            observation, reward, terminated, truncated, info = row.step(action if action.ndim else int(action))
            # also at the end of an episode: the last observation, not the first of the next one
            assert torch.equal(out[OBSERVATION][i, 0], plain_observation(row, observation))
            assert out[REWARD][i, 0, 0] == np.float32(reward)
            assert (out["terminated"][i], out["truncated"][i]) == (terminated, truncated)
            if "action_mask" in info and info["action_mask"].any():
                assert torch.equal(out[ACTION_MASK][i, 0], torch.as_tensor(info["action_mask"]).bool())
        if done_rows(out).any():
            ends += 1
            env.reset_tensors(done_rows(out))
            for i in torch.nonzero(done_rows(out))[:, 0].tolist():
                plain[i].reset(seed=int(env.episode_seeds[i]))
    assert ends > 0


def test_sizes_and_specs():
    cartpole = make_env("gymnasium/CartPole-v1", num_envs=2)
    assert cartpole.max_steps == 500 and cartpole.full_action_spec[ACTION].space.n == 2 and cartpole.agent_types == (0,)
    assert cartpole.observation_spec[OBSERVATION].shape == (2, 1, 4)
    pendulum = make_env("gymnasium/Pendulum-v1", num_envs=2).full_action_spec[ACTION]
    assert pendulum.shape == (2, 1, 1) and (pendulum.space.high == 2).all() and (pendulum.space.low == -2).all()
    assert make_env("gymnasium/FrozenLake-v1", num_envs=2).observation_spec[OBSERVATION].shape == (2, 1, 16)
    assert make_env("gymnasium/FrozenLake-v1", num_envs=1, map_name="8x8").observation_spec[OBSERVATION].shape[-1] == 64
    assert make_env("gymnasium/Blackjack-v1", num_envs=2).max_steps is None


def test_time_limit_is_truncation_unless_told_otherwise():
    for truncate in (True, False):
        env = make_env("gymnasium/Pendulum-v1", num_envs=2, max_steps=3, truncate=truncate)
        env.reset_tensors()
        for step in range(3):
            out = env.step_tensors({ACTION: torch.zeros(2, 1, 1)})
            assert out["done"].all() == (step == 2)
        assert out["truncated"].all() == truncate and out["terminated"].all() != truncate


def test_actions_are_clamped():
    env, far = (make_env("gymnasium/Pendulum-v1", num_envs=2, seed=1) for _ in range(2))
    env.reset_tensors(), far.reset_tensors()
    highest, beyond = torch.full((2, 1, 1), 2.0), torch.full((2, 1, 1), 50.0)
    assert_equal([env.step_tensors({ACTION: highest})], [far.step_tensors({ACTION: beyond})])


def test_mask_offset_and_own_truncation():
    env = ReplayEnv(counter, num_envs=2, device="cpu", seed=0, max_steps=None)
    seen = env.reset_tensors()
    assert seen[OBSERVATION].shape == (2, 1, 2 + 3) and seen[OBSERVATION][0, 0, 2:].tolist() == [0, 1, 0]
    assert torch.equal(seen[ACTION_MASK][:, 0], torch.tensor([[True, False, True]] * 2))
    out = env.step_tensors({ACTION: torch.tensor([[0], [2]])})
    assert torch.equal(out[REWARD][:, 0, 0], torch.tensor([5.0, 7.0]))  # the choices of this Discrete begin at 5
    assert torch.equal(out["truncated"][:, 0], torch.tensor([False, True])) and not out["terminated"].any()
    assert out[ACTION_MASK][:, 0, 1].all()


def test_a_finished_row_waits_for_its_reset():
    env = ReplayEnv(counter, num_envs=2, device="cpu", seed=0, max_steps=None)
    env.reset_tensors()
    first = env.step_tensors({ACTION: torch.tensor([[0], [2]])})
    second = env.step_tensors({ACTION: torch.tensor([[0], [0]])})
    assert torch.equal(first[OBSERVATION][1], second[OBSERVATION][1]) and second[REWARD][1] == 0
    assert second["truncated"][1] and second[OBSERVATION][0, 0, 0] == 2


def test_partial_reset_leaves_other_rows_exact():
    env, twin = (make_env("gymnasium/CartPole-v1", num_envs=4, seed=7) for _ in range(2))
    env.reset_tensors(), twin.reset_tensors()
    mask = torch.tensor([False, True, False, True])
    generator = torch.Generator().manual_seed(0)
    for step in range(6):
        actions = random_actions(env, generator)
        a, b = env.step_tensors(actions), twin.step_tensors(actions)
        assert torch.equal(a[OBSERVATION][~mask], b[OBSERVATION][~mask])
        if step == 2:
            seeds = env.episode_seeds.copy()
            seen = env.reset_tensors(mask)
            assert torch.equal(seen[OBSERVATION][~mask], a[OBSERVATION][~mask])
            assert (seen[OBSERVATION][mask].abs() <= 0.05).all()  # as CartPole begins
            assert (seeds != env.episode_seeds).tolist() == mask.tolist()
    assert env.steps.tolist() == [6, 3, 6, 3]
    before = env.reset_tensors(torch.zeros(4, dtype=torch.bool))
    assert torch.equal(before[OBSERVATION], a[OBSERVATION])


@pytest.mark.parametrize("name,steps", [("CartPole-v1", 45), ("Pendulum-v1", 10), ("FrozenLake-v1", 12),
                                        ("Blackjack-v1", 3)])
def test_resume_is_exact_through_a_file(name, steps, tmp_path):
    env = make_env(f"gymnasium/{name}", num_envs=4, seed=3)
    generator = torch.Generator().manual_seed(1)
    env.reset_tensors()
    roll(env, steps, generator)
    torch.save({"env": env.state_dict(), "generator": generator.get_state()}, tmp_path / "state.pt")
    expected = roll(env, 30, generator)
    saved = torch.load(tmp_path / "state.pt", weights_only=True)
    for other in (make_env(f"gymnasium/{name}", num_envs=4, seed=99), env):
        generator.set_state(saved["generator"])
        other.load_state_dict(saved["env"])
        assert_equal(roll(other, 30, generator), expected)
    with pytest.raises(ValueError, match="4 environments"):
        make_env(f"gymnasium/{name}", num_envs=3).load_state_dict(saved["env"])


def test_resume_keeps_a_finished_row_finished():
    env, other = (ReplayEnv(counter, num_envs=3, device="cpu", seed=seed, max_steps=None) for seed in (0, 1))
    env.reset_tensors()
    env.step_tensors({ACTION: torch.tensor([[0], [2], [0]])})
    env.step_tensors({ACTION: torch.tensor([[0], [0], [2]])})
    other.load_state_dict(env.state_dict())
    actions = {ACTION: torch.zeros(3, 1, dtype=torch.int64)}
    a, b = env.step_tensors(actions), other.step_tensors(actions)
    assert_equal([a], [b])
    assert a["done"][:, 0].tolist() == [False, True, True] and other.taken.tolist() == [3, 1, 2]


def test_record_grows_without_a_horizon():
    env, other = (ReplayEnv(counter, num_envs=2, device="cpu", seed=seed, max_steps=None) for seed in (0, 1))
    env.reset_tensors()
    for _ in range(600):
        env.step_tensors({ACTION: torch.zeros(2, 1, dtype=torch.int64)})
    other.load_state_dict(env.state_dict())
    assert other._observe()[OBSERVATION][:, 0, 0].tolist() == [600, 600]


def test_restored_rows_only():
    env = make_env("gymnasium/Pendulum-v1", num_envs=3, seed=3)
    generator = torch.Generator().manual_seed(1)
    env.reset_tensors()
    roll(env, 3, generator)
    before, then = env._capture(), env._observe()[OBSERVATION]
    after = roll(env, 2, generator)[-1][OBSERVATION]
    env._restore(before, torch.tensor([True, False, True]))
    now = env._observe()[OBSERVATION]
    assert torch.equal(now[[0, 2]], then[[0, 2]]) and torch.equal(now[1], after[1])
    assert env.taken.tolist() == [3, 5, 3]
    one_way, other_way = (torch.full((3, 1, 1), force) for force in (2.0, -2.0))
    out = env.step_tensors({ACTION: one_way})
    branch = env._capture()
    env._restore(before)
    env.step_tensors({ACTION: other_way})  # the same seed and as many steps, but another way
    env._restore(branch)
    assert torch.equal(env._observe()[OBSERVATION], out[OBSERVATION])


def test_partial_steps_of_torchrl():
    env = make_env("gymnasium/CartPole-v1", num_envs=3, seed=3)
    out = env.rollout(60, break_when_all_done=True)
    first = out["next", "done"][:, :, 0].int().argmax(1)
    for row in range(3):
        last = out["next", "agents", "observation"][row, first[row]:]
        assert torch.equal(last, last[:1].expand_as(last))


def test_simulator_that_ignores_its_seed_is_named():
    env, other = (ReplayEnv(chance, num_envs=2, device="cpu", seed=seed, max_steps=5) for seed in (0, 1))
    env.reset_tensors()
    with pytest.warns(UserWarning, match=r"rows \[0, 1\].*not deterministic"):
        other.load_state_dict(env.state_dict())


def test_own_random_state():
    env, twin, disturbed = (make_env("gymnasium/CartPole-v1", num_envs=2, seed=5) for _ in range(3))
    torch.manual_seed(0), np.random.seed(0)
    a = env.reset_tensors()[OBSERVATION]
    make_env("gymnasium/CartPole-v1", num_envs=2, seed=6).reset_tensors()
    torch.rand(3), np.random.rand(3)
    assert torch.equal(disturbed.reset_tensors()[OBSERVATION], a) and torch.equal(twin.reset_tensors()[OBSERVATION], a)
    twin.set_seed(8), env.set_seed(8)
    assert torch.equal(env.reset_tensors()[OBSERVATION], twin.reset_tensors()[OBSERVATION])


def test_parallel_processes_give_the_same_and_resume(tmp_path):
    env, parallel = (make_env("gymnasium/Pendulum-v1", num_envs=2, seed=2, max_steps=4, parallel=parallel)
                     for parallel in (False, True))
    a, b = torch.Generator().manual_seed(1), torch.Generator().manual_seed(1)
    assert_equal([env.reset_tensors()], [parallel.reset_tensors()])
    assert_equal(roll(env, 6, a), roll(parallel, 6, b))
    torch.save(parallel.state_dict(), tmp_path / "state.pt")
    expected = roll(env, 5, a)
    parallel.reset_tensors()
    parallel.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    assert_equal(roll(parallel, 5, b), expected)
    parallel.close()


def test_frames_follow_the_episode():
    env = make_env("gymnasium/CartPole-v1", num_envs=2, seed=2)
    env.reset_tensors()
    first = env.render_frame(1)
    assert first.dtype == np.uint8 and first.shape == (400, 600, 3)
    assert env.render_frame(1, size=(40, 60)).shape == (40, 60, 3)
    for _ in range(6):
        env.step_tensors({ACTION: torch.ones(2, 1, dtype=torch.int64)})
    later = env.render_frame(1)
    alone = gymnasium.make("CartPole-v1", render_mode="rgb_array")
    alone.reset(seed=int(env.episode_seeds[1]))
    for _ in range(6):
        alone.step(1)
    assert (later != first).any() and np.array_equal(later, alone.render())
    with pytest.raises(ValueError, match="env_index must be"):
        env.render_frame(2)
    with pytest.raises(ValueError, match="rgb_array"):
        ReplayEnv(counter, num_envs=1, device="cpu", seed=0, max_steps=3).render_frame()


def test_wrong_names_and_options_are_told():
    with pytest.raises(ValueError, match="did you mean 'CartPole-v1'"):
        make_env("gymnasium/CartPol-v1", num_envs=1)
    with pytest.raises(ValueError, match=r"no option 'sutton'.*sutton_barto_reward"):
        make_env("gymnasium/CartPole-v1", num_envs=1, sutton=True)
    with pytest.raises(ValueError, match="no option 'render_mode'"):
        make_env("gymnasium/CartPole-v1", num_envs=1, render_mode="human")
    with pytest.raises(ValueError, match="sutton_barto_reward of gymnasium/CartPole-v1 must be True or False, got"):
        make_env("gymnasium/CartPole-v1", num_envs=1, sutton_barto_reward="no")
    make_env("gymnasium/FrozenLake-v1", num_envs=1, map_name=None).close()  # annotated as a word, documented as this


@pytest.mark.parametrize("action", [spaces.MultiDiscrete([2, 3]), spaces.Box(-np.inf, np.inf, (2,)),
                                    spaces.Box(0, 9, (2,), np.int64), spaces.Tuple([spaces.Discrete(2)])])
def test_unsupported_actions_are_named(action):
    with pytest.raises(ValueError, match=rf"action space {type(action).__name__}.* of agent 'agent'.*Discrete and Box"):
        AgentSpaces("agent", spaces.Discrete(2), action)
    with pytest.raises(ValueError, match=r"observation space Sequence.* no fixed flat size"):
        AgentSpaces("agent", spaces.Sequence(spaces.Discrete(2)), spaces.Discrete(2))
