"""What is really done where an environment overrides the policy."""

from __future__ import annotations

import torch
from tensordict.nn import TensorDictModule
from torch import Tensor, nn

from suite.specs import ACTION, Specs


class TakenAction(nn.Module):
    """The policy's action, or the script's where the environment follows that instead.

    It stands between actor and recorders, so that the batch, and the next step, hold the joint action that was played.
    """

    def forward(self, action: Tensor, controlled: Tensor, scripted: Tensor) -> Tensor:
        """[..., A] or [..., A, d] actions; ``controlled`` bool [..., A]."""
        return torch.where(controlled.view(*controlled.shape, *[1] * (action.ndim - controlled.ndim)), action, scripted)


def taken_action(specs: Specs) -> list[TensorDictModule]:
    """The module, if the task overrides any action; the keys must be among its observations."""
    if specs.controlled is None:
        return []
    return [TensorDictModule(TakenAction(), in_keys=[ACTION, specs.controlled, specs.scripted_action],
                             out_keys=[ACTION])]
