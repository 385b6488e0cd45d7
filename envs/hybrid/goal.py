"""Goal and Hard Goal as batches of tensors: ``make_env("hybrid/goal", num_envs=4096)``, ``"hybrid/hard_goal"``.

A player with the ball is to beat a keeper: it kicks the ball to a place and runs after it, or shoots at a height of the
goal line. A kick-to lasts until the player has the ball again; a shot lasts until it is decided.

The rules are those of gym-goal, equal to it to rounding from the same state with the same draws; Hard Goal is the
variant of HyAR (arXiv 2109.05490) with 11 actions. What is a defect there is reproduced: a kick-to ignores its second
parameter and goes to (p0, p0), both shots are the same, the distance below the goal behind its line is too large, and
Hard Goal's third interval is a point, so that its actions 3 and 8 have no parameter and the middle of the goal is out
of their reach. ``fixed_kick_to`` and ``fixed_intervals`` repair the first and the last. What differs:

- Random numbers are torch's: the same distribution, not the same draws.
- The package has no bound on a step; here one is truncated after 1000 sub-steps; 377 is the most that
  20,000 random games had.

The limit of 100 steps is a rule of the game with a reward of its own, and therefore a termination.

Sources: Masson, Ranchod, Konidaris (2016), "Reinforcement Learning with Parameterized Actions", arXiv 1509.01644; the
rules in detail as measured on the package.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from envs.hybrid import goal_rules as rules
from envs.hybrid.base import Step
from envs.hybrid.drawing import draw_goal
from envs.hybrid.goal_rules import Goal
from envs.hybrid.macro import MacroEnv, macro_options, uniforms


class GoalEnv(MacroEnv):
    """N games of Goal or Hard Goal. Made by `make_goal` and `make_hard_goal`.

    Actions of Goal: 0 kick to a place, with two parameters, 1 and 2 shoot, with one. Hard Goal: `goal_rules.harder`.
    Observations: `goal_rules.observe`. Reward: 50 for a goal, minus the ball's distance to it where the episode ends
    otherwise, 0 before; ``success`` for a goal.

    Args:
        intervals: of Hard Goal's shots, in their scaled parameter; None is Goal. ``fixed_kick_to``: a kick-to heeds
            both parameters. Other arguments: see `BatchedEnv`.
    """

    state: Goal

    def __init__(self, *, intervals: tuple[tuple[float, float], ...] | None, fixed_kick_to: bool, **options: Any):
        shots = 2 if intervals is None else 2 * len(intervals)
        super().__init__(observation_dim=17, param_sizes=(2, *[1] * shots), sub_step=_sub_step,
                         channels=rules.CHANNELS, **options)
        self.intervals, self.fixed_kick_to = intervals, fixed_kick_to

    def _begin(self, rows: int) -> Goal:
        return rules.start(torch.rand(rows, generator=self.generator, device=self.device))

    def _advance(self, state: Goal, choice: Tensor, params: Tensor) -> Step:
        if self.intervals is not None:
            choice, params = rules.harder(choice, params, self.intervals)
        out = rules.advance(state, choice, params, self.move, self.draw_keys(),
                            fixed_kick_to=self.fixed_kick_to)
        self.cut = out.ran.cut
        return Step(out.state, out.reward, out.over, out.success)

    def _see(self, state: Goal) -> Tensor:
        return rules.observe(state)

    def render_frame(self, env_index: int = 0, size: tuple[int, int] | None = None) -> np.ndarray:
        """Picture of one game, uint8 [H, W, 3]; ValueError if no such row."""
        return draw_goal(self.row(env_index), size)


def _sub_step(k: Tensor, work: Tensor, keys: Tensor) -> tuple[Tensor, Tensor]:
    return rules.sub_step(work, uniforms(k, keys, rules.PER_SUB_STEP))


def make_goal(name: str, *, num_envs: int, device: torch.device | str, seed: int, max_steps: int | None,
              truncate: bool = True, **options: Any) -> GoalEnv:
    """N games of Goal.

    Args:
        name: as it is registered. ``max_steps``: None takes the game's own limit of 100 alone.
        truncate: see `BatchedEnv`.
        options: ``fixed_kick_to`` (False): whether a kick-to heeds its second parameter. ``compile`` (False): True
            compiles the sub-step as one graph, a word names the backend.

    Raises:
        ValueError: an unknown option, or one that is not True or False.
    """
    return GoalEnv(intervals=None, num_envs=num_envs, seed=seed, device=device, max_steps=max_steps, truncate=truncate,
                   **macro_options(name, options, fixed_kick_to=False))


def make_hard_goal(name: str, *, num_envs: int, device: torch.device | str, seed: int, max_steps: int | None,
                   truncate: bool = True, **options: Any) -> GoalEnv:
    """N games of Hard Goal; arguments and errors are those of `make_goal`.

    ``options``: also ``fixed_intervals`` (False), whether the third interval of the shots is the middle fifth of the
    goal, [-0.2, 0.2], and no point.
    """
    given = macro_options(name, options, fixed_kick_to=False, fixed_intervals=False)
    intervals = rules.FIXED_INTERVALS if given.pop("fixed_intervals") else rules.INTERVALS
    return GoalEnv(intervals=intervals, num_envs=num_envs, seed=seed, device=device, max_steps=max_steps,
                   truncate=truncate, **given)
