"""PettingZoo games as batched environments: same numbers as alone, padding and masks, dying agents, resume, errors."""

from __future__ import annotations

from importlib import import_module

import numpy as np
import pytest
import torch
from gymnasium import spaces
from pettingzoo import ParallelEnv

from envs import make_env
from envs.base import ACTION, ACTION_MASK, ALIVE, OBSERVATION, REWARD
from envs.gymnasium import ReplayEnv
from envs.pettingzoo import ParallelAgents, available, make_parallel

torch.set_num_threads(1)


CHOICES = {"cat_0": 2, "cat_1": 2, "dog_0": 4}


class Dying(ParallelEnv):
    """Three agents: a cat that terminates at step 2 and one at step 4, and a dog that ends at step 4 or 5 as told."""

    metadata = {"name": "dying", "render_modes": []}  # noqa: RUF012
    possible_agents = ["cat_0", "cat_1", "dog_0"]  # noqa: RUF012

    def __init__(self, dog: str = "truncated", where: str = "observation"):
        self.dog, self.where = dog, where

    def observation_space(self, agent):
        box = spaces.Box(-9, 9, (2 if agent == "dog_0" else 3,))
        masked = spaces.Dict({"observation": box, "action_mask": spaces.MultiBinary(CHOICES[agent])})
        return masked if self.where == "observation" else box

    def action_space(self, agent):
        return spaces.Discrete(CHOICES[agent])

    def _seen(self, agents):
        values = {a: np.full(2 if a == "dog_0" else 3, self.time + self.start, dtype=np.float32) for a in agents}
        masks = {a: np.eye(CHOICES[a], dtype=np.int8)[self.time % 2] for a in agents}
        if self.where == "observation":
            return {a: {"observation": values[a], "action_mask": masks[a]} for a in agents}, {a: {} for a in agents}
        return values, {a: {"action_mask": masks[a]} for a in agents}

    def reset(self, seed=None, options=None):
        self.agents, self.time, self.taken = self.possible_agents[:], 0, []
        self.start = np.random.default_rng(seed).uniform()
        return self._seen(self.agents)

    def step(self, actions):
        assert list(actions) == self.agents  # nobody acts for the dead
        self.taken.append(actions)
        self.time += 1
        acting = self.agents
        ends = {"cat_0": self.time == 2, "cat_1": self.time == 4, "dog_0": self.dog == "terminated" and self.time == 4}
        late = {"cat_0": False, "cat_1": False, "dog_0": self.time == 5}
        self.agents = [a for a in acting if not (ends[a] or late[a])]
        observations, infos = self._seen(self.possible_agents)  # careless: goes on to show and reward the dead
        pick = {a: 1.0 + actions[a] for a in acting} | {"cat_0": 7.0}
        return observations, pick, {a: ends[a] for a in acting}, {a: late[a] for a in acting}, infos

    def state(self):
        return np.array([self.time, self.start])


def random_actions(env: ReplayEnv, generator: torch.Generator) -> dict:
    spec = env.full_action_spec[ACTION]
    if spec.dtype == torch.int64:
        return {ACTION: torch.randint(2, spec.shape, generator=generator)}
    return {ACTION: torch.rand(spec.shape, generator=generator)}


def roll(env: ReplayEnv, steps: int, generator: torch.Generator) -> list[dict]:
    """Step with random actions, restarting what is done, and keep everything seen."""
    seen = []
    for _ in range(steps):
        out = env.step_tensors(random_actions(env, generator))
        seen.append(out)
        if out["done"].any():
            seen.append(env.reset_tensors(out["done"][:, 0]))
    return seen


def assert_equal(first: list[dict], second: list[dict]) -> None:
    assert len(first) == len(second)
    for a, b in zip(first, second, strict=True):
        assert a.keys() == b.keys()
        assert all(torch.equal(a[key], b[key]) for key in a)


@pytest.mark.parametrize("name,options", [("simple_spread_v3", {"N": 2}), ("simple_speaker_listener_v4", {}),
                                          ("simple_tag_v3", {}), ("simple_spread_v3", {"continuous_actions": True}),
                                          ("simple_speaker_listener_v4", {"continuous_actions": True})])
def test_same_numbers_as_the_plain_game(name, options):
    env = make_env(f"pettingzoo/mpe2.{name}", num_envs=2, seed=4, max_steps=5, **options)
    generator = torch.Generator().manual_seed(0)
    games = [import_module(f"mpe2.{name}").parallel_env(max_cycles=5, **options) for _ in range(2)]
    seen = env.reset_tensors()
    first = [game.reset(seed=int(seed))[0] for game, seed in zip(games, env.episode_seeds, strict=True)]
    names = env.group_map["agents"]

    def assert_same(row, out, observations):
        for j, agent in enumerate(names):
            size = len(observations[agent])
            assert torch.equal(out[OBSERVATION][row, j, :size], torch.as_tensor(observations[agent]))
            assert not out[OBSERVATION][row, j, size:].any()
        assert torch.equal(out["state"][row], torch.as_tensor(games[row].state()))

    for row in range(2):
        assert_same(row, seen, first[row])
    for step in range(12):
        actions = random_actions(env, generator)
        out = env.step_tensors(actions)
        over = step % 5 == 4
        for row, game in enumerate(games):
            joint = {a: actions[ACTION][row, j].numpy() for j, a in enumerate(names)}
            joint = {a: v[:game.action_space(a).shape[0]] if v.ndim else int(v) for a, v in joint.items()}
            observations, rewards, _, truncations, _ = game.step(joint)
            assert_same(row, out, observations)  # also the last of an episode
            assert torch.equal(out[REWARD][row, :, 0], torch.tensor([rewards[a] for a in names], dtype=torch.float32))
            assert all(truncations.values()) == over
        assert out["truncated"].all() == over and out["truncated"].any() == over and not out["terminated"].any()
        if over:
            env.reset_tensors()
            for row, game in enumerate(games):
                game.reset(seed=int(env.episode_seeds[row]))


def test_sizes_roles_and_masks():
    spread = make_env("pettingzoo/simple_spread_v3", num_envs=2)
    assert spread.max_steps == 25 and spread.agent_types == (0, 0, 0)
    keys = set(spread.observation_spec.keys(True, True))
    # all agents are alike, and none leaves before the others
    assert "state" in keys and ACTION_MASK not in keys and ALIVE not in keys
    tag = make_env("pettingzoo/mpe2.simple_tag_v3", num_envs=1, num_good=2)
    assert tag.agent_types == (0, 0, 0, 1, 1) and tag.group_map["agents"][0] == "adversary_0"
    speaker = make_env("pettingzoo/simple_speaker_listener_v4", num_envs=2)
    assert speaker.agent_types == (0, 1) and speaker.full_action_spec[ACTION].space.n == 5
    mask = speaker.reset_tensors()[ACTION_MASK]
    assert mask[0].tolist() == [[True, True, True, False, False], [True] * 5]
    with_index_too_high = speaker.step_tensors({ACTION: torch.full((2, 2), 4)})
    assert torch.isfinite(with_index_too_high[REWARD]).all()


def test_continuous_bounds_and_padding():
    env = make_env("pettingzoo/simple_speaker_listener_v4", num_envs=2, continuous_actions=True)
    space = env.full_action_spec[ACTION].space
    assert space.low[0].tolist() == [[0, 0, 0, -1, -1], [0] * 5] and (space.high == 1).all()
    far, twin = (make_env("pettingzoo/simple_spread_v3", num_envs=2, continuous_actions=True) for _ in range(2))
    far.reset_tensors(), twin.reset_tensors()
    clamped = torch.tensor([0.0, 1, 0, 1, 0]).expand(2, 3, 5)
    assert_equal([far.step_tensors({ACTION: 9 * clamped - 3 * (clamped == 0)})], [twin.step_tensors({ACTION: clamped})])


@pytest.mark.parametrize("where", ["observation", "info"])
@pytest.mark.parametrize("dog,length", [("truncated", 5), ("terminated", 4)])
def test_dying_agents(dog, length, where):
    env = make_parallel(lambda: Dying(dog, where), num_envs=2, seed=0)
    assert env.agent_types == (0, 0, 1)
    seen = env.reset_tensors()
    assert seen[ALIVE].all() and seen[OBSERVATION].shape == (2, 3, 3) and not seen[OBSERVATION][:, 2, 2].any()
    assert seen[ACTION_MASK][0].tolist() == [[True, False, False, False]] * 3
    alive, rewards, done = [], [], []
    for step in range(length):
        out = env.step_tensors({ACTION: torch.tensor([[1, 1, 3]] * 2)})
        alive.append(out[ALIVE][0].tolist())
        rewards.append(out[REWARD][0, :, 0].tolist())
        done.append((out["terminated"][0].item(), out["truncated"][0].item()))
        if step == 1:  # the step in which it dies still shows what it saw and got
            assert torch.equal(out[OBSERVATION][0, 0], out[OBSERVATION][0, 1]) and out[OBSERVATION][0, 0].all()
        if step == 2:
            assert not out[OBSERVATION][0, 0].any() and out[ACTION_MASK][0, 0].tolist() == [True, True, False, False]
            assert out["state"][0, 0] == 3
    both = [True, True, True]
    last = {"truncated": [[False, False, True]] * 2, "terminated": [[False] * 3]}[dog]
    assert alive == [both, [False, True, True], [False, True, True], *last]
    assert rewards[:4] == [[7, 2, 4], [7, 2, 4], [0, 2, 4], [0, 2, 4]] and rewards[4:] in ([], [[0, 0, 4]])
    assert done == [(False, False)] * (length - 1) + [(dog == "terminated", dog == "truncated")]


def test_horizon_of_a_game_without_its_own():
    env = make_parallel(Dying, num_envs=2, max_steps=3, alive_mask=False, state=False)
    keys = set(env.observation_spec.keys(True, True))
    assert ALIVE not in keys and "state" not in keys
    env.reset_tensors()
    out = [env.step_tensors({ACTION: torch.zeros(2, 3, dtype=torch.int64)}) for _ in range(3)][-1]
    assert out["truncated"].all() and not out["terminated"].any()


@pytest.mark.parametrize("task,options", [("pettingzoo/simple_spread_v3", {"continuous_actions": True}),
                                          ("pettingzoo/simple_tag_v3", {}), ("dying", {})])
def test_resume_is_exact_through_a_file(task, options, tmp_path):
    def make(seed):
        return make_parallel(Dying, num_envs=3, seed=seed) if task == "dying" else make_env(
            task, num_envs=3, seed=seed, max_steps=6, **options)

    env, generator = make(3), torch.Generator().manual_seed(1)
    env.reset_tensors()
    roll(env, 3, generator)
    env.reset_tensors(torch.tensor([False, True, False]))  # rows of different ages
    roll(env, 1, generator)
    torch.save({"env": env.state_dict(), "generator": generator.get_state()}, tmp_path / "state.pt")
    expected = roll(env, 9, generator)
    saved = torch.load(tmp_path / "state.pt", weights_only=True)
    for other in (make(99), env):
        generator.set_state(saved["generator"])
        other.load_state_dict(saved["env"])
        assert_equal(roll(other, 9, generator), expected)


def test_partial_reset_leaves_other_rows_exact():
    env, twin = (make_env("pettingzoo/simple_spread_v3", num_envs=3, seed=7) for _ in range(2))
    env.reset_tensors(), twin.reset_tensors()
    generator, mask = torch.Generator().manual_seed(0), torch.tensor([True, False, False])
    for step in range(4):
        actions = random_actions(env, generator)
        a, b = env.step_tensors(actions), twin.step_tensors(actions)
        assert torch.equal(a[OBSERVATION][~mask], b[OBSERVATION][~mask])
        if step == 1:
            seen = env.reset_tensors(mask)
            assert torch.equal(seen[OBSERVATION][~mask], a[OBSERVATION][~mask])
            assert not torch.equal(seen[OBSERVATION][mask], a[OBSERVATION][mask])
    assert env.steps.tolist() == [2, 4, 4]


def test_frames_survive_the_end_of_another_environment():
    env, other = (make_env("pettingzoo/simple_speaker_listener_v4", num_envs=2) for _ in range(2))
    env.reset_tensors(), other.reset_tensors()
    frame = env.render_frame(1, size=(70, 80))
    assert frame.shape == (70, 80, 3) and frame.dtype == np.uint8
    other.render_frame()
    other.close()
    assert np.array_equal(env.render_frame(1, size=(70, 80)), frame)


def test_games_are_found_without_importing_them():
    names = available()
    assert "mpe2.simple_spread_v3" in names and any(name.startswith("sisl.pursuit_v") for name in names)
    assert not any(name.startswith("utils.") or "all_modules" in name for name in names)


@pytest.mark.parametrize("task,options,match", [
    ("simple_sprad_v3", {}, r"unknown PettingZoo game.*mpe2.simple_tag_v3.*did you mean 'mpe2.simple_spread_v3'"),
    ("mpe2.simple_spread_v2", {}, "did you mean 'mpe2.simple_spread_v3'"),
    ("simple_spread_v3", {"n": 4}, r"no option 'n'; it has \['N', 'local_ratio'"),
    ("simple_spread_v3", {"max_steps": 3, "max_cycles": 4}, "max_steps=3 and max_cycles=4 are the same limit"),
    ("simple_spread_v3", {"continuous_actions": "no"},
     "continuous_actions of pettingzoo/simple_spread_v3 must be True or False, got 'no'"),
    ("simple_spread_v3", {"N": 2.5}, "N of pettingzoo/simple_spread_v3 must be an integer, got 2.5"),
    ("simple_spread_v3", {"alive_mask": "no"}, "alive_mask of .* must be True, False or None, got 'no'"),
    ("classic.tictactoe_v3", {}, "turn-based")])
def test_wrong_names_and_options_are_told(task, options, match):
    with pytest.raises(ValueError, match=match):
        make_env(f"pettingzoo/{task}", num_envs=1, **options)


def test_max_cycles_is_the_horizon():
    env = make_env("pettingzoo/simple_spread_v3", num_envs=1, max_cycles=4)
    assert env.max_steps == 4


def test_mixed_actions_are_refused():
    class Mixed(Dying):
        def action_space(self, agent):
            return spaces.Discrete(2) if agent == "dog_0" else spaces.Box(0, 1, (2,))

    with pytest.raises(ValueError, match="all need Discrete actions, or all need Box actions"):
        ParallelAgents(Mixed(where="info"), state=True, mortal=True, closes=True)
