"""Hybrid tasks with a choice among fixed actions: the baseline that gives the continuous part up."""

from __future__ import annotations

from collections.abc import Collection
from itertools import product

import torch
from torch import Tensor

from envs.base import ACTION, CHOICE, PARAMS, BatchedEnv, Tensors, discrete
from envs.hybrid.base import OtherActions


class Discretised(OtherActions):
    """A hybrid environment whose every parameter takes one of ``levels`` values, -1 to 1 in equal steps.

    A parameter that is an angle, -1 and 1 the same (`BatchedEnv.periodic`), takes steps of a full turn over ``levels``
    from 0 on.

    Actions: ("agents", "action") int64 [N, A], one of the sum over choices k of levels^P_k pairs of a choice and values
    of its parameters, in the order of the choices. All else is the inner environment's, which this one alone steps.

    Attributes:
        choices: int64 [M], params: float32 [M, P], what the M actions stand for.

    Raises:
        ValueError: no hybrid actions, fewer than two levels, or more than ``LIMIT`` actions.
    """

    LIMIT = 4096

    def __init__(self, env: BatchedEnv, levels: int):
        if env.param_mask is None:
            raise ValueError("levels are for hybrid actions, which this task does not have")
        if isinstance(levels, bool) or not isinstance(levels, int) or levels < 2:
            raise ValueError(f"levels must be an integer of at least 2, got {levels!r}")
        choices, params = _actions(env.param_mask.cpu(), levels, self.LIMIT, env.periodic)
        super().__init__(env, discrete(len(choices), env.n_agents))
        self.choices, self.params = choices.to(self.device), params.to(self.device)

    def _translate(self, actions: Tensors) -> Tensors:
        action = actions[ACTION]
        return {CHOICE: self.choices[action], PARAMS: self.params[action]}


def _actions(mask: Tensor, levels: int, limit: int, periodic: Collection[tuple[int, int]]) -> tuple[Tensor, Tensor]:
    count = sum(levels ** int(size) for size in mask.sum(-1))
    if count > limit:
        raise ValueError(f"levels {levels} make {count:,} actions of this task's choices, more than {limit:,}")
    plain, turn = torch.linspace(-1.0, 1.0, levels).tolist(), [2 * k / levels for k in range(levels)]
    turn = [value - 2 * (value > 1) for value in turn]
    rows = [(k, [dict(zip(own, chosen, strict=True)).get(p, 0.0) for p in range(mask.shape[-1])])
            for k, own in enumerate(row.nonzero().flatten().tolist() for row in mask)
            for chosen in product(*(turn if (k, p) in periodic else plain for p in own))]
    choices, params = zip(*rows, strict=True)
    return torch.tensor(choices), torch.tensor(params)
