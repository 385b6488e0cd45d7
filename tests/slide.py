"""A tiny hybrid task, and sizes of hybrid actions, for tests of the learning side."""

from __future__ import annotations

import torch

from envs.hybrid.base import HybridEnv, Step
from suite.specs import Specs

UNEVEN = torch.tensor([[True, True], [False, False], [True, False]])  # choices with two, no and one parameter


def make_hybrid_specs(n_agents=2, obs_dim=4, *, has_mask=False, param_mask=UNEVEN) -> Specs:
    """Sizes of a made-up task; agents have the roles 0, 1, 0."""
    width = 0 if param_mask is None else param_mask.shape[-1]
    return Specs(n_agents=n_agents, obs_dim=obs_dim, action_dim=width, discrete=False, has_mask=has_mask,
                 agent_types=(0, 1, 0)[:n_agents], param_mask=param_mask)


class Slide(HybridEnv):
    """A point on a line: choice 0 moves it by the sum of both parameters, choice 2 by minus its one, choice 1 rests.

    Reward is minus the distance to the middle; the episode terminates far away from it.
    """

    def __init__(self, num_envs=8, seed=0):
        super().__init__(num_envs=num_envs, seed=seed, device="cpu", max_steps=5, observation_dim=4,
                         param_sizes=[2, 0, 1])

    def _begin(self, rows):
        return Step(2 * torch.rand(rows, generator=self.generator) - 1, *torch.zeros(3, rows).bool())

    def _advance(self, state, choice, params):
        moves = torch.stack([params.sum(-1), torch.zeros_like(params[:, 0]), -params[:, 0]], -1)
        at = state.state + 0.3 * moves.gather(-1, choice.unsqueeze(-1)).squeeze(-1)
        return Step(state._replace(state=at), -at.abs(), at.abs() > 2, at.abs() < 0.05)

    def _see(self, state):
        return torch.stack([state.state, state.state.square(), state.state.sin(), torch.ones_like(state.state)], -1)
