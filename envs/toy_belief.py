"""A toy task of hidden goals with everything known: what a model of the other agent can reach, in numbers.

Two agents on the grid {-1, -0.9, .., 1}^2 with four goals on the unit circle. The leader (agent 0) knows the goal and
walks to it by a softmax policy; the follower (agent 1) acts uniformly and sees both positions, never the goal. Its
Bayes filter over goals is the upper bound of every belief learned from the follower's own history. Nobody's policy
learns here, so whole episodes are played at once; `make_env` does not know it.

    data = play(2000, seed=0)
    data.observation   float [E, T, 4]     follower: own position, leader's position relative to it
    data.action        int64 [E, T, 2]     leader, follower; 0..4 = stay, +x, -x, +y, -y
    data.goal          int64 [E]           hidden; the same for the whole episode
    data.policy        float [E, T, 5]     the leader's true action probabilities: their entropy is the floor
    data.position      float [E, T, 2, 2]  leader, follower
    history(data)      float [E, T, 14]    o_{t-1} and one-hot a_{t-1} of both agents, zeros at t = 0
    belief(data)       float [E, T, 4]     P(goal | follower's history before a_t); the last axis sums to 1
    predict(data, b)   float [E, T, 5]     P(a_t of the leader | belief b)

A model of the leader reads history(data) (one step) or whole sequences of it and predicts data.action[..., 0]; a latent
reads observation, prediction and history. Every number is taken over t >= 1; the random states are the data's own.
Reference numbers are of play(2000, seed=1) for training and play(1000, seed=2) for testing, and in brackets of 40,000
episodes where these differ in the third digit:

    cross-entropy, accuracy of the leader's action    marginal 1.6075, 0.213 (0.207); repeating the last one -, 0.263;
        a one-step model, MLP 64-64, 1.557, 0.304; Bayes filter 1.479, 0.366 (1.483, 0.368); true policy 1.424, 0.422
    accuracy of the goal    linear probe of the observation 0.612; of observation, prediction and history 0.656; Bayes
        filter 0.814, t >= 10 0.922, t = 19 0.957 (0.804, 0.914, 0.957)
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

STEPS = 20
MOVES = torch.tensor([[0, 0], [1, 0], [-1, 0], [0, 1], [0, -1]])  # in cells of 0.1: whole numbers stay exact
GOALS = torch.tensor([[10, 0], [0, 10], [-10, 0], [0, -10]])
EDGE, START, SHARPNESS = 10, 5, 10.0


@dataclass(frozen=True)
class Episodes:
    """E episodes of T steps; see the head of this file."""

    observation: Tensor
    action: Tensor
    goal: Tensor
    policy: Tensor
    position: Tensor


def play(episodes: int, *, seed: int, steps: int = STEPS) -> Episodes:
    """Episodes from random states of their own; the leader starts within 0.5 of the centre, like the follower."""
    generator = torch.Generator().manual_seed(seed)
    goal = torch.randint(4, (episodes,), generator=generator)
    cell = torch.randint(-START, START + 1, (episodes, 2, 2), generator=generator)
    table, rows = leader_policy(), torch.arange(episodes)
    cells, actions, policies = [], [], []
    for _ in range(steps):
        policy = table[cell[:, 0, 0] + EDGE, cell[:, 0, 1] + EDGE][rows, goal]
        leader = torch.multinomial(policy, 1, generator=generator).squeeze(-1)
        follower = torch.randint(5, (episodes,), generator=generator)
        cells.append(cell)
        policies.append(policy)
        actions.append(torch.stack([leader, follower], -1))
        cell = (cell + MOVES[actions[-1]]).clamp(-EDGE, EDGE)
    position = torch.stack(cells, 1) / EDGE
    observation = torch.cat([position[:, :, 1], position[:, :, 0] - position[:, :, 1]], -1)
    return Episodes(observation, torch.stack(actions, 1), goal, torch.stack(policies, 1), position)


def leader_policy() -> Tensor:
    """pi(a | position, goal) [21, 21, 4, 5]: softmax of -10 times the distance to the goal after the move."""
    line = torch.arange(-EDGE, EDGE + 1)
    cell = torch.stack(torch.meshgrid(line, line, indexing="ij"), -1)  # [21, 21, 2]
    after = (cell[:, :, None] + MOVES).clamp(-EDGE, EDGE)  # [21, 21, 5, 2]
    distance = (after[:, :, None] - GOALS[:, None]).float().norm(dim=-1) / EDGE  # [21, 21, 4, 5]
    return (-SHARPNESS * distance).softmax(-1)


def history(data: Episodes) -> Tensor:
    """o_{t-1} and the one-hot actions of leader and follower at t - 1 [E, T, 14]; zeros at t = 0."""
    step = torch.cat([data.observation, F.one_hot(data.action, 5).flatten(-2).float()], -1)
    return F.pad(step, (0, 0, 1, 0))[:, :-1]


def belief(data: Episodes) -> Tensor:
    """The follower's exact posterior over goals before it sees a_t [E, T, 4]; uniform at t = 0."""
    taken = data.action[:, :, :1, None].expand(-1, -1, 4, 1)  # the leader's action, for every goal
    likelihood = _by_goal(data).gather(-1, taken).squeeze(-1).log()
    return F.pad(likelihood.cumsum(1), (0, 0, 1, 0))[:, :-1].softmax(-1)


def predict(data: Episodes, goals: Tensor) -> Tensor:
    """The leader's action probabilities [E, T, 5] under a distribution over goals [E, T, 4]."""
    return (goals.unsqueeze(-2) @ _by_goal(data)).squeeze(-2)


def _by_goal(data: Episodes) -> Tensor:
    cell = (data.position[:, :, 0] * EDGE).round().long() + EDGE
    return leader_policy()[cell[..., 0], cell[..., 1]]  # [E, T, 4, 5]
