"""What an agent infers from its own past: a model of the others' actions, a world model, and a latent of both.

At step t agent i has seen o_{t-1}, the joint action a_{t-1} and o_t. N agents, observations of size D, encoded actions
of size E (choices, or the length of a continuous action), P = N - 1 others; u is the standardised observation. All
parameters are shared between agents, which are told apart by a one-hot id.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from tensordict import NestedKey
from torch import Tensor, nn
from torch.nn import functional as F

from suite.modules.networks import AgentInput, mlp, others_index
from suite.modules.normalizer import RunningMoments
from suite.specs import GROUP, Specs

PREV_OBSERVATION = (GROUP, "prev_observation")  # [N, T, A, D], zeros at an episode's first step
PREV_ACTION = (GROUP, "prev_joint_action")  # [N, T, A, A E], own action first, then the others' in ascending order
PREV_VALID = (GROUP, "prev_valid")  # [N, T, A, 1], 1 if the step before lies in the same episode
PAST = (PREV_OBSERVATION, PREV_ACTION, PREV_VALID)
LATENT = (GROUP, "z")

OthersActions = Literal["all", "own"]
PolicyLatent = Literal["mean", "sample", "mean_logstd"]
PARTS = ("obs", "moa", "wm_residual")
LIMIT = 10.0  # of standardised observations
LOG_SIGMA = (-5.0, 2.0)
ACTION_LOG_SIGMA = (-3.0, 1.0)


class JointActions(nn.Module):
    """Encodes actions (one-hot, or mapped from their bounds to [-1, 1]) and arranges them as each agent sees them."""

    def __init__(self, specs: Specs):
        super().__init__()
        n = specs.n_agents
        self.choices, self.dim = (specs.action_dim if specs.discrete else None), specs.action_dim
        index = others_index(n)
        self.register_buffer("others", index, persistent=False)
        self.register_buffer("order", torch.cat([torch.arange(n)[:, None], index], 1), persistent=False)
        if not specs.discrete:
            self.register_buffer("middle", (specs.high + specs.low) / 2, persistent=False)
            self.register_buffer("reach", (specs.high - specs.low) / 2, persistent=False)

    def encode(self, action: Tensor) -> Tensor:
        """int64 [..., N] or float [..., N, d] -> float [..., N, E]."""
        if self.choices is not None:
            return F.one_hot(action, self.choices).float()
        return (action - self.middle) / self.reach

    def of_others(self, x: Tensor) -> Tensor:
        """[..., N, d] -> [..., N, P, d]: what belongs to the others of each agent."""
        return x.index_select(-2, self.others.flatten()).unflatten(-2, tuple(self.others.shape))

    def pack(self, encoded: Tensor) -> Tensor:
        """[..., N, E] -> [..., N, N E]: own first, then the others in ascending order."""
        return encoded.index_select(-2, self.order.flatten()).unflatten(-2, tuple(self.order.shape)).flatten(-2)


class PreviousStep(nn.Module):
    """Hands observation and joint action on to the next step: the last module of a policy whose encoders read them.

    ``others`` "own" hides the other agents' actions.
    """

    def __init__(self, specs: Specs, actions: JointActions, others: OthersActions):
        super().__init__()
        n, e = specs.n_agents, actions.dim
        self.actions, self.others = actions, others
        self.carried: dict[NestedKey, tuple[int, ...]] = {PREV_OBSERVATION: (n, specs.obs_dim), PREV_ACTION: (n, n * e),
                                                         PREV_VALID: (n, 1)}

    def forward(self, observation: Tensor, action: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The three entries of `PAST` as the next step will read them."""
        joint = self.visible(self.actions.pack(self.actions.encode(action)))
        return observation, joint, torch.ones_like(observation[..., :1])

    def visible(self, joint: Tensor) -> Tensor:
        """The joint action with what the agent cannot see as zeros."""
        if self.others == "all":
            return joint
        own = torch.arange(joint.shape[-1], device=joint.device) < self.actions.dim
        return joint * own


class Scaler(nn.Module):
    """Standardises by running statistics, clipped; entries that never vary are padding: 0, and ``mask`` False there."""

    def __init__(self, dim: int):
        super().__init__()
        self.moments = RunningMoments((dim,))

    @property
    def mask(self) -> Tensor:
        """bool [dim]."""
        return self.moments.var >= 1e-8

    def forward(self, x: Tensor) -> Tensor:
        """[..., dim]."""
        scaled = (x - self.moments.mean) / (self.moments.var + 1e-8).sqrt()
        return scaled.clamp(-LIMIT, LIMIT) * self.mask


class ActionModel(nn.Module):
    """Predicts each other agent's present action from the step before (the "model of other agents", MOA).

    Discrete actions: logits [..., N, P, E]. Continuous ones: mean and log-sigma, the latter in [-3, 1].
    """

    def __init__(self, specs: Specs, cells: Sequence[int]):
        super().__init__()
        n, e = specs.n_agents, specs.action_dim
        self.discrete, self.shape = specs.discrete, (n - 1, e if specs.discrete else 2 * e)
        self.assemble = AgentInput(n, agent_id=True)
        self.net = mlp(specs.obs_dim + n * e + 1 + n, (n - 1) * self.shape[1], None, cells=cells, activation="relu",
                       init="orthogonal", out_gain=0.01)

    def forward(self, u_prev: Tensor, joint: Tensor, valid: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        """From u_{t-1} [..., N, D], a_{t-1} [..., N, N E] and validity [..., N, 1]."""
        out = self.net(self.assemble(u_prev, joint, valid)).unflatten(-1, self.shape)
        if self.discrete:
            return out
        mean, log_sigma = out.chunk(2, -1)
        return mean, log_sigma.clamp(*ACTION_LOG_SIGMA)

    def feature(self, prediction: Tensor | tuple[Tensor, Tensor]) -> Tensor:
        """[..., N, P E] probabilities, or [..., N, 2 P E] means and log-sigmas."""
        return (prediction.softmax(-1) if self.discrete else torch.cat(prediction, -1)).flatten(-2)


class WorldModel(nn.Module):
    """Predicts an agent's next standardised observation (as a change) and its reward from the joint action.

    Its output layer starts at zero: the first prediction is that nothing changes.
    """

    def __init__(self, specs: Specs, cells: Sequence[int]):
        super().__init__()
        n = specs.n_agents
        self.assemble = AgentInput(n, agent_id=True)
        self.net = mlp(specs.obs_dim + n * specs.action_dim + n, specs.obs_dim + 1, None, cells=cells,
                       activation="relu", init="orthogonal", out_gain=0.0)

    def forward(self, u: Tensor, joint: Tensor) -> tuple[Tensor, Tensor]:
        """From u_t [..., N, D] and a_t [..., N, N E]: u_{t+1} and reward [..., N, 1]."""
        change, reward = self.net(self.assemble(u, joint)).tensor_split([-1], -1)
        return u + change, reward


class GaussianEncoder(nn.Module):
    """Mean and clamped log-sigma [..., N, k] of a latent; starts at sigma = 1."""

    def __init__(self, in_dim: int, latent_dim: int, cells: Sequence[int]):
        super().__init__()
        self.net = mlp(in_dim, 2 * latent_dim, None, cells=cells, activation="relu", init="orthogonal", out_gain=0.1)
        with torch.no_grad():
            self.net[-1].weight[latent_dim:] = 0

    def forward(self, *inputs: Tensor) -> tuple[Tensor, Tensor]:
        """Concatenates its inputs."""
        mean, log_sigma = self.net(torch.cat(inputs, -1)).chunk(2, -1)
        return mean, log_sigma.clamp(*LOG_SIGMA)


@dataclass
class Inferred:
    """What the state model makes of one step: features x and context c, predictions, and the latent's Gaussian."""

    u: Tensor
    x: Tensor
    context: Tensor
    action: Tensor | tuple[Tensor, Tensor]
    mean: Tensor
    log_sigma: Tensor


class StateModel(nn.Module):
    """Observation, past and id -> latent: everything of the method that acts.

    x = [u; predicted actions of the others; u - predicted u], standardised; c = [u_{t-1}; a_{t-1}; id; valid];
    z ~ N(student(x, c)). Predictions count only where the past is valid. ``parts`` chooses the blocks of x;
    No gradient passes from x into the models that made it.
    """

    def __init__(self, specs: Specs, *, latent_dim: int, cells: Sequence[int], parts: Sequence[str],
                 others: OthersActions):
        super().__init__()
        n, d, e = specs.n_agents, specs.obs_dim, specs.action_dim
        self.parts, self.actions = tuple(parts), JointActions(specs)
        self.previous = PreviousStep(specs, self.actions, others)
        self.scaler = Scaler(d)
        self.action_model = ActionModel(specs, cells)
        self.world_model = WorldModel(specs, cells)
        sizes = {"obs": d, "moa": (n - 1) * e * (1 if specs.discrete else 2), "wm_residual": d}
        self.x_dim, self.context_dim = sum(sizes[part] for part in parts), d + n * e + n + 1
        self.x_scaler = Scaler(self.x_dim)
        self.student = GaussianEncoder(self.x_dim + self.context_dim, latent_dim, cells)
        self.register_buffer("ids", torch.eye(n), persistent=False)

    def raw_features(self, observation: Tensor, prev: Tensor, joint: Tensor, valid: Tensor) -> tuple[Tensor, ...]:
        """u, unscaled x, and the prediction of the others' actions (with gradient)."""
        u, u_prev = self.scaler(observation), self.scaler(prev) * valid
        prediction = self.action_model(u_prev, joint, valid)
        blocks = {"obs": u}
        with torch.no_grad():
            if "moa" in self.parts:
                blocks["moa"] = self.action_model.feature(prediction) * valid
            if "wm_residual" in self.parts:
                blocks["wm_residual"] = (u - self.world_model(u_prev, joint)[0]) * valid
        return u, torch.cat([blocks[part] for part in self.parts], -1), prediction

    def infer(self, observation: Tensor, prev: Tensor, joint: Tensor, valid: Tensor) -> Inferred:
        """Everything known at a step; gradients reach the student, and the action model through its prediction."""
        u, x, prediction = self.raw_features(observation, prev, joint, valid)
        x = self.x_scaler(x.detach())
        ids = self.ids.expand(*u.shape[:-1], -1)
        context = torch.cat([self.scaler(prev) * valid, joint, ids, valid], -1)
        return Inferred(u, x, context, prediction, *self.student(x, context))


class PolicyInput(nn.Module):
    """The latent (and, if asked, the predicted actions) as the actor reads it; no gradient.

    ``shuffle`` hands every environment the latent of another one: a control that has all but the information.
    """

    def __init__(self, model: StateModel, latent: PolicyLatent, *, with_latent: bool = True,
                 with_actions: bool = False, shuffle: bool = False):
        super().__init__()
        self.model, self.latent, self.shuffle = model, latent, shuffle
        self.with_latent, self.with_actions = with_latent, with_actions

    def forward(self, observation: Tensor, prev: Tensor, joint: Tensor, valid: Tensor) -> Tensor:
        """[..., N, k], or [..., N, 2 k] for ``mean_logstd``; predicted actions are appended."""
        with torch.no_grad():
            known = self.model.infer(observation, prev, joint, valid)
            parts = []
            if self.with_latent:
                parts = {"mean": [known.mean], "mean_logstd": [known.mean, known.log_sigma]}.get(self.latent) or [
                    known.mean + known.log_sigma.exp() * torch.randn_like(known.mean)]
            if self.with_actions:
                parts.append(self.model.action_model.feature(known.action) * valid)
            out = torch.cat(parts, -1)
            return out[torch.randperm(len(out), device=out.device)] if self.shuffle else out
