"""The rivals of the batched environments: the packages that they follow, or the same rules one by one with NumPy."""

from __future__ import annotations

from collections.abc import Callable

import torch

from envs import make_env
from envs.base import ACTION
from recipes.speed_hybrid_points import catch_point_steps, hard_move_steps, moving_steps
from recipes.speed_hybrid_reference import goal_episode_steps, platform_episode_steps

POOL, STEPS = 16, 64  # action batches in turn; steps per call where nothing ends
SCALAR = {f"hybrid/{name}": steps for name, steps in (
    ("platform", platform_episode_steps), ("goal", goal_episode_steps), ("catch_point", catch_point_steps),
    ("hard_move-4", hard_move_steps), ("moving", moving_steps))}  # (number of steps, seed) -> that number


def package(task: str, num_envs: int) -> Callable[[], int]:
    """The package's environment: VMAS with the whole batch, the others one at a time with resets."""
    if task in SCALAR:
        return lambda: SCALAR[task](500, 0)
    ours = make_env(task, num_envs=1)
    if task.startswith("particle"):
        return _vmas({"spread": "simple_spread"}.get(name := task.split("/")[1].split("-")[0], name), num_envs)
    env = _foraging(ours.rules, ours.max_steps) if task.startswith("foraging") else _warehouse(task)
    actions = [ours.full_action_spec[ACTION].rand()[0].tolist() for _ in range(POOL)]
    env.reset(seed=0)

    def run() -> int:
        for k in range(ours.max_steps):
            *_, terminated, truncated, _ = env.step(actions[k % POOL])
            if terminated or truncated:
                env.reset()
        return ours.max_steps

    return run


def _vmas(scenario: str, num_envs: int) -> Callable[[], int]:
    import vmas

    env = vmas.make_env(scenario, num_envs=num_envs, seed=0)
    env.reset()
    actions = [[torch.rand(num_envs, agent.action_size) * 2 - 1 for agent in env.agents] for _ in range(POOL)]

    def run() -> int:
        for k in range(STEPS):
            env.step([action.clone() for action in actions[k % POOL]])
        return STEPS * num_envs

    return run


def _foraging(rules, max_steps: int):
    from lbforaging.foraging import ForagingEnv

    return ForagingEnv(rules.players, rules.min_player_level, rules.max_player_level, rules.min_food_level, None,
                       (rules.rows, rules.cols), rules.foods, rules.sight, max_steps, rules.force_coop)


def _warehouse(task: str):
    import gymnasium
    import rware  # noqa: F401  (registers its tasks)

    return gymnasium.make(f"rware-{task.split('/')[1]}-v2").unwrapped
