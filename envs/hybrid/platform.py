"""Platform as a batch of tensors: ``make_env("hybrid/platform", num_envs=4096)``.

A player runs, hops and leaps over three platforms with two enemies on its way to the right end; how far each of these
goes is a continuous parameter. A step lasts until the player stands again: up to 144 sub-steps of 0.05 s were seen.

The rules are those of gym-platform, equal to it in every number from the same state with the same draws. What differs:

- Random numbers are torch's: the same distribution, not the same draws.
- The limit of 200 steps is a truncation (``truncate=False`` for the package's termination).
- A jump that has not ended after 150 sub-steps would be truncated there; none that long is known.

Sources: Masson, Ranchod, Konidaris (2016), "Reinforcement Learning with Parameterized Actions", arXiv 1509.01644; the
rules in detail as measured on the package.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from envs.hybrid import platform_rules as rules
from envs.hybrid.base import Step
from envs.hybrid.drawing import draw_platform
from envs.hybrid.macro import MacroEnv, macro_options, normals
from envs.hybrid.platform_rules import Platform

HORIZON = 200


class PlatformEnv(MacroEnv):
    """N games of Platform. Made by `make_platform`.

    Actions: 0 run, 1 hop, 2 leap, each with one parameter. Observations: `platform_rules.observe`. Reward: the share
    of the whole way that a step went, so that a complete way gives 1; ``success`` when the right end is reached.
    """

    state: Platform

    def __init__(self, **options: Any):
        super().__init__(observation_dim=9, param_sizes=(1, 1, 1), sub_step=_sub_step,
                         channels=rules.CHANNELS, **options)

    def _begin(self, rows: int) -> Platform:
        return rules.start(rows, device=self.device)

    def _advance(self, state: Platform, choice: Tensor, params: Tensor) -> Step:
        keys = self.draw_keys()
        jump = normals(keys.new_tensor(rules.SUB_STEPS), keys)  # a sub-step that none of the others is
        out = rules.advance(state, choice, params[:, 0], jump, self.move, keys)
        self.cut = out.ran.cut
        return Step(out.state, out.reward, out.over, out.success)

    def _see(self, state: Platform) -> Tensor:
        return rules.observe(state)

    def render_frame(self, env_index: int = 0, size: tuple[int, int] | None = None) -> np.ndarray:
        """Picture of one game, uint8 [H, W, 3]; ValueError if no such row."""
        return draw_platform(self.row(env_index), size)


def _sub_step(k: Tensor, work: Tensor, keys: Tensor) -> tuple[Tensor, Tensor]:
    return rules.sub_step(work, normals(k, keys))


def make_platform(name: str, *, num_envs: int, device: torch.device | str, seed: int, max_steps: int | None,
                  truncate: bool = True, **options: Any) -> PlatformEnv:
    """N games of Platform.

    Args:
        name: as it is registered. ``max_steps``: None takes 200. ``truncate``: see `BatchedEnv`.
        options: ``compile`` (False): True compiles the sub-step as one graph, a word names the backend.

    Raises:
        ValueError: an unknown option.
    """
    return PlatformEnv(num_envs=num_envs, seed=seed, device=device, truncate=truncate,
                       max_steps=HORIZON if max_steps is None else max_steps, **macro_options(name, options))
