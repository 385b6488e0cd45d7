"""A world whose future is known in closed form, predicted without error: for tests of imagination.

Two agents with one observation each; agent i moves by a_i / 2 + a_j / 4, is paid where it arrives, and acts by
a_i = -o_i / 2. So o' = M o with M = [[0.75, -0.125], [-0.125, 0.75]], r = M o, and V = M (1 - gamma M)^-1 o.
"""

from __future__ import annotations

import torch
from tensordict.nn import TensorDictModule
from torch import Tensor, nn

from suite.losses import MOALoss, Returns
from suite.modules.world_model import Prediction
from suite.specs import ACTION, LOG_PROB, OBSERVATION, VALUE, Specs
from tests.batches import make_learner

M = torch.tensor([[0.75, -0.125], [-0.125, 0.75]])
GAMMA = 0.9
MEAN, SCALE, REWARD_SCALE = 0.3, 2.0, 3.0  # of the standardised units in which the world model works


class Acting(nn.Module):
    """a = -o / 2, with a made-up log-probability that tells which step it belongs to."""

    def forward(self, observation: Tensor) -> tuple[Tensor, Tensor]:
        """Action [..., A, 1] and log-probability [..., A]."""
        return -observation / 2, observation.squeeze(-1)


class Valuing(nn.Module):
    """V = K o of all agents; K is a parameter."""

    def __init__(self, matrix: Tensor):
        super().__init__()
        self.matrix = nn.Parameter(matrix)

    def forward(self, observation: Tensor) -> Tensor:
        """[..., A, 1] of [..., A, 1]."""
        return self.matrix @ observation


def true_values(goes_on: float = 1.0) -> Tensor:
    """K of the true value function, where every step goes on with this chance."""
    return M @ torch.linalg.inv(torch.eye(2) - GAMMA * goes_on * M)


def exactly(u: Tensor, joint: Tensor, goes_on: float = 1.0) -> Prediction:
    """What the world model would say if it knew everything; u standardised, own action first."""
    observation = u * SCALE + MEAN
    after = observation + joint[..., :1] / 2 + joint[..., 1:] / 4
    return Prediction((after - MEAN) / SCALE, after / REWARD_SCALE, torch.full_like(after, goes_on))


def make_world(monkeypatch, *, matrix: Tensor | None = None, goes_on: float = 1.0, options=None, returns=None,
               **learner):
    """Loss, learner: with this critic (the true one by default), and a world model that is exact."""
    bound = torch.full((2, 1), 50.0)
    specs = Specs(n_agents=2, obs_dim=1, action_dim=1, discrete=False, agent_types=(0, 0), low=-bound, high=bound)
    loss = MOALoss(specs, latent_dim=2, num_cells=8, depth=1, actor_inputs="obs", held_out=0.25, **options or {})
    loss.model.scaler.moments.mean.fill_(MEAN)
    loss.model.scaler.moments.var.fill_(SCALE**2)
    loss.world_loss.reward_scale.fill_(REWARD_SCALE)
    monkeypatch.setattr(loss.model.world_model, "predict",
                        lambda u, joint: exactly(u, joint * 50, goes_on))  # actions are encoded to [-1, 1]
    actor = TensorDictModule(Acting(), in_keys=[OBSERVATION], out_keys=[ACTION, LOG_PROB])
    critic = TensorDictModule(Valuing(true_values() if matrix is None else matrix), in_keys=[OBSERVATION],
                              out_keys=[VALUE])
    estimate = Returns(critic, **dict(kind="gae", gamma=GAMMA, lmbda=0.8, n=1, normalize="none") | (returns or {}))
    return loss, make_learner(None, None, critic, actor=actor, returns=estimate, **learner)
