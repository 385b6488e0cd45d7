"""What an agent infers from its own past: a model of the others' actions, a world model, and a latent of both.

At step t agent i has seen o_{t-1}, the joint action a_{t-1} and o_t. N agents, observations of size D, encoded actions
of size E (choices, or the length of a continuous action), P = N - 1 others; u is the standardised observation. All
parameters are shared between agents, which are told apart by a one-hot id.

With a memory of size H, the model of the others and the student each have a GRU after their first layer. Its state is
carried by the collector like the step before; a loss runs whole sequences from the first stored state, a constant.
A world model that reads the latent of a step is carried that of the step before, as it acted.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from tensordict import NestedKey, TensorDictBase
from torch import Tensor, nn
from torch.nn import functional as F

from suite.modules.gaussian import LOG_SQRT_2PI
from suite.modules.networks import AgentGRU, AgentInput, mlp, others_index
from suite.modules.normalizer import Scaler
from suite.modules.world_model import WorldModel
from suite.specs import ACTION, GROUP, OBSERVATION, Specs

PREV_OBSERVATION = (GROUP, "prev_observation")  # [N, T, A, D], zeros at an episode's first step
PREV_ACTION = (GROUP, "prev_joint_action")  # [N, T, A, A E], own action first, then the others' in ascending order
PREV_VALID = (GROUP, "prev_valid")  # [N, T, A, 1], 1 if the step before lies in the same episode
PAST = (PREV_OBSERVATION, PREV_ACTION, PREV_VALID)
ACTION_MEMORY = (GROUP, "action_memory")  # [N, T, A, H], of the model of the others, before the step
LATENT_MEMORY = (GROUP, "latent_memory")  # [N, T, A, H], of the student
MEMORY = (ACTION_MEMORY, LATENT_MEMORY)
PREV_LATENT = (GROUP, "prev_z")  # [N, T, A, k], the latent's mean at the step before, for a world model that reads it
LATENT = (GROUP, "z")

OthersActions = Literal["all", "visible", "own"]
ActionInputs = Literal["prev", "prev+obs"]
PolicyLatent = Literal["mean", "sample", "mean_logstd"]
PARTS = ("obs", "moa", "wm_residual")
LOG_SIGMA = (-5.0, 2.0)
ACTION_LOG_SIGMA = (-3.0, 1.0)
MASKED_LOGIT = -1e9


class JointActions(nn.Module):
    """Encodes actions (one-hot, or mapped from their bounds to [-1, 1]) and arranges them as each agent sees them.

    Dimensions that an agent does not have are zeros.
    """

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
            self.register_buffer("log_reach", self.reach.log().sum(-1), persistent=False)  # what encoding adds to it
        self.register_buffer("unpadded", specs.action_mask, persistent=False)

    def encode(self, action: Tensor) -> Tensor:
        """int64 [..., N] or float [..., N, d] -> float [..., N, E]."""
        if self.choices is not None:
            return F.one_hot(action, self.choices).float()
        encoded = ((action - self.middle) / self.reach).clamp(-1, 1)  # as environments take it
        return encoded if self.unpadded is None else encoded * self.unpadded

    def of_others(self, x: Tensor) -> Tensor:
        """[..., N, d] -> [..., N, P, d]: what belongs to the others of each agent."""
        return x.index_select(-2, self.others.flatten()).unflatten(-2, tuple(self.others.shape))

    def pack(self, encoded: Tensor) -> Tensor:
        """[..., N, E] -> [..., N, N E]: own first, then the others in ascending order."""
        return encoded.index_select(-2, self.order.flatten()).unflatten(-2, tuple(self.order.shape)).flatten(-2)


class PreviousStep(nn.Module):
    """Hands observation and joint action on to the next step: the last module of a policy whose encoders read them.

    ``others`` "own" hides the other agents' actions, "visible" those of agents out of sight.

    Attributes:
        keys: what `joint` reads.
    """

    def __init__(self, specs: Specs, actions: JointActions, others: OthersActions):
        super().__init__()
        n, e = specs.n_agents, actions.dim
        self.actions, self.others = actions, others
        self.carried: dict[NestedKey, tuple[int, ...]] = {PREV_OBSERVATION: (n, specs.obs_dim), PREV_ACTION: (n, n * e),
                                                         PREV_VALID: (n, 1)}
        self.keys: list[NestedKey] = [ACTION, *([specs.visible] if others == "visible" else [])]

    def forward(self, observation: Tensor, *acted: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The three entries of `PAST` as the next step will read them."""
        return observation, self.joint(*acted), torch.ones_like(observation[..., :1])

    def joint(self, action: Tensor, *known: Tensor) -> Tensor:
        """What each agent knows of the joint action [..., N, N E]; the inputs are those of `keys`."""
        return self.arrange(self.actions.encode(action), *known)

    def arrange(self, encoded: Tensor, *known: Tensor) -> Tensor:
        """The same from encoded actions [..., N, E]; ones give the mask of what is known."""
        joint = self.actions.pack(encoded)
        if self.others == "all":
            return joint
        if self.others == "own":
            return joint * (torch.arange(joint.shape[-1], device=joint.device) < self.actions.dim)
        (visible,) = known
        return joint * F.pad(visible, (1, 0), value=1.0).repeat_interleave(self.actions.dim, -1)


class Memory(nn.Module):
    """A layer and a GRU over an agent's steps, whose state starts from zero where the past is not valid.

    Inputs [R, A, d] are one step each, from their own states [R, A, H]; [N, T, A, d] are sequences, of whose stored
    states [N, T, A, H] only the first is read.
    """

    def __init__(self, in_dim: int, cell: int, memory_dim: int):
        super().__init__()
        self.layer = mlp(in_dim, None, None, cells=[cell], activation="relu", init="orthogonal")
        self.gru = AgentGRU(cell, memory_dim, None, init="orthogonal")

    def forward(self, x: Tensor, valid: Tensor, before: Tensor) -> Tensor:
        """The state after each step, [..., A, H]; ``valid`` [..., A, 1] is zero at an episode's first step."""
        return self.gru(self.layer(x), before, valid.squeeze(-1) == 0)[0]


class ActionModel(nn.Module):
    """Predicts each other agent's present action from the step before (the "model of other agents", MOA).

    "prev+obs" as ``inputs`` also shows it the present observation, which ``seen`` then has behind the one before.

    Discrete actions: logits [..., N, P, E]. Continuous ones: mean and log-sigma, the latter in [-3, 1]. Choices that
    an agent does not have are impossible; dimensions that it does not have are known, and cost nothing.

    Args:
        factorised: of choices that combine several (`Specs.action_factors`), the network has logits for the values of
            each factor; a choice's logit is their sum, so that its cross-entropy is the sum of theirs.
        sigma: standard deviation of continuous actions, which then is not learned; 0 is learned.

    Attributes:
        feature_dim: length of `feature`.
    """

    def __init__(self, specs: Specs, cells: Sequence[int], memory_dim: int = 0, inputs: ActionInputs = "prev", *,
                 factorised: bool = False, sigma: float = 0.0):
        super().__init__()
        n, e, others = specs.n_agents, specs.action_dim, others_index(specs.n_agents)
        self.sees_present, self.discrete, self.sigma = inputs == "prev+obs", specs.discrete, sigma
        self.register_buffer("factors", specs.action_factors[others] if factorised else None,
                             persistent=False)  # [N, P, S, E]
        width = self.factors.shape[-2] if factorised else e if specs.discrete or sigma else 2 * e
        self.shape, self.feature_dim = (n - 1, width), (n - 1) * width
        self.assemble = AgentInput(n, agent_id=True)
        self.register_buffer("unpadded", None if specs.action_mask is None else specs.action_mask[others],
                             persistent=False)  # [N, P, E]
        in_dim = specs.obs_dim * (1 + self.sees_present) + n * e + 1 + n
        self.memory = Memory(in_dim, cells[0], memory_dim) if memory_dim else None
        self.net = mlp(memory_dim or in_dim, (n - 1) * self.shape[1], None, cells=cells[1:] if memory_dim else cells,
                       activation="relu", init="orthogonal", out_gain=0.01)

    @property
    def feature_mask(self) -> Tensor:
        """bool [N, F]: False in the entries of `feature` for what another agent does not have."""
        if self.factors is not None:
            return self.factors.any(-1).flatten(1)
        if self.unpadded is None:
            return torch.ones(self.shape[0] + 1, self.feature_dim, dtype=torch.bool)
        parts = [self.unpadded] * (self.shape[1] // self.unpadded.shape[-1])  # means and log-sigmas, or one of them
        return torch.cat(parts, -1).flatten(1)

    def remember(self, seen: Tensor, joint: Tensor, valid: Tensor, before: Tensor | None = None) -> Tensor | None:
        """The memory's state after the step before, from the one ahead of it; None without a memory."""
        if self.memory is None:
            return None
        return self.memory(self.assemble(seen, joint, valid), valid, before)

    def forward(self, seen: Tensor, joint: Tensor, valid: Tensor,
                state: Tensor | None = None) -> Tensor | tuple[Tensor, Tensor]:
        """From u_{t-1} [..., N, D], a_{t-1} [..., N, N E], validity [..., N, 1] and what `remember` made of them."""
        x = self.assemble(seen, joint, valid) if state is None else state
        out = self.net(x).unflatten(-1, self.shape)
        if self.factors is not None:
            out = torch.einsum("...nps,npse->...npe", out, self.factors)
        if self.discrete:
            return out if self.unpadded is None else out.masked_fill(~self.unpadded, MASKED_LOGIT)
        if self.sigma:
            mean, log_sigma = out, torch.full_like(out, math.log(self.sigma))
        else:
            mean, log_sigma = out.chunk(2, -1)
            log_sigma = log_sigma.clamp(*ACTION_LOG_SIGMA)
        if self.unpadded is None:
            return mean, log_sigma
        return torch.where(self.unpadded, mean, 0.0), torch.where(self.unpadded, log_sigma, -LOG_SQRT_2PI)

    def likeliest(self, prediction: Tensor | tuple[Tensor, Tensor]) -> Tensor:
        """[..., N, P, E]: one-hot choices, or means inside the bounds, as actions are encoded."""
        if self.discrete:
            return F.one_hot(prediction.argmax(-1), prediction.shape[-1]).float()
        return prediction[0].clamp(-1, 1)

    def feature(self, prediction: Tensor | tuple[Tensor, Tensor]) -> Tensor:
        """[..., N, P E] probabilities (of each factor's values: P S), or [..., N, 2 P E] means and log-sigmas, which
        fixed ones are left out of.
        """
        if self.factors is not None:
            return torch.einsum("...npe,npse->...nps", prediction.softmax(-1), self.factors).flatten(-2)
        if self.discrete:
            return prediction.softmax(-1).flatten(-2)
        return (prediction[0] if self.sigma else torch.cat(prediction, -1)).flatten(-2)


class GaussianEncoder(nn.Module):
    """Mean and log-sigma [..., N, k] of a latent; starts at sigma = 1.

    Log-sigma is clamped to [-5, 2], or with ``soft_clamp`` -5 + 3.5 (tanh(raw) + 1): its gradient never ends.
    """

    def __init__(self, in_dim: int, latent_dim: int, cells: Sequence[int], memory_dim: int = 0, *,
                 soft_clamp: bool = False):
        super().__init__()
        self.soft_clamp = soft_clamp
        self.memory = Memory(in_dim, cells[0], memory_dim) if memory_dim else None
        self.net = mlp(memory_dim or in_dim, 2 * latent_dim, None, cells=cells[1:] if memory_dim else cells,
                       activation="relu", init="orthogonal", out_gain=0.1)
        with torch.no_grad():
            self.net[-1].weight[latent_dim:] = 0
            if soft_clamp:
                low, high = LOG_SIGMA
                self.net[-1].bias[latent_dim:] = math.atanh((high + low) / (low - high))

    def remember(self, *inputs: Tensor, valid: Tensor, before: Tensor | None) -> Tensor | None:
        """The memory's state after these inputs, from the one before them; None without a memory."""
        return None if self.memory is None else self.memory(torch.cat(inputs, -1), valid, before)

    def forward(self, *inputs: Tensor) -> tuple[Tensor, Tensor]:
        """Concatenates its inputs; with a memory, its state is the only one."""
        mean, log_sigma = self.net(torch.cat(inputs, -1)).chunk(2, -1)
        low, high = LOG_SIGMA
        if self.soft_clamp:
            return mean, low + 0.5 * (high - low) * (log_sigma.tanh() + 1)
        return mean, log_sigma.clamp(low, high)


@dataclass
class Inferred:
    """What the state model makes of one step: features x and context c, predictions, and the latent's Gaussian.

    ``memory``: the states after the step, of the model of the others and of the student; empty without a memory.
    """

    u: Tensor
    x: Tensor
    context: Tensor
    action: Tensor | tuple[Tensor, Tensor]
    mean: Tensor
    log_sigma: Tensor
    memory: tuple[Tensor, ...] = ()

    @property
    def student_inputs(self) -> tuple[Tensor, ...]:
        """All that the student's latent follows from, for a teacher that must know no less: x, c, its state; fixed."""
        return self.x.detach(), self.context, *(state.detach() for state in self.memory[1:])


class StateModel(nn.Module):
    """Observation, past and id -> latent: everything of the method that acts.

    x = [u; predicted actions of the others; u - predicted u], standardised; c = [u_{t-1}; a_{t-1}; id; valid];
    z ~ N(student(x, c)). Predictions count only where the past is valid. ``parts`` chooses the blocks of x. No gradient
    passes from x into the models that made it, unless ``grad_to_actions`` lets it into the model of the others.

    Args:
        world_latent: the world model also reads the latent of a step, as a constant.
        factorised_actions, action_sigma: of the `ActionModel`.

    Attributes:
        keys: what `infer` reads. carried: {key: shape} of those that `PolicyInput` hands on.
    """

    def __init__(self, specs: Specs, *, latent_dim: int, cells: Sequence[int], parts: Sequence[str],
                 others: OthersActions, action_inputs: ActionInputs = "prev", memory_dim: int = 0,
                 grad_to_actions: bool = False, members: int = 1, continues: bool = False, soft_clamp: bool = False,
                 world_latent: bool = False, factorised_actions: bool = False, action_sigma: float = 0.0):
        super().__init__()
        n, d, e = specs.n_agents, specs.obs_dim, specs.action_dim
        self.parts, self.actions, self.memory_dim = tuple(parts), JointActions(specs), memory_dim
        self.grad_to_actions = grad_to_actions
        self.previous = PreviousStep(specs, self.actions, others)
        self.scaler = Scaler(d, specs.obs_mask, specs.agent_types)
        self.action_model = ActionModel(specs, cells, memory_dim, action_inputs, factorised=factorised_actions,
                                        sigma=action_sigma)
        self.world_model = WorldModel(specs, cells, members=members, continues=continues,
                                      latent_dim=latent_dim * world_latent)
        sizes = {"obs": d, "moa": self.action_model.feature_dim, "wm_residual": d}
        self.x_dim, self.context_dim = sum(sizes[part] for part in parts), d + n * e + n + 1
        unpadded = None
        if specs.obs_mask is not None:
            unpadded = torch.cat([specs.obs_mask.new_ones(n, sizes[part]) if part == "moa" else specs.obs_mask
                                  for part in parts], -1)
        self.x_scaler = Scaler(self.x_dim, unpadded, specs.agent_types)
        self.student = GaussianEncoder(self.x_dim + self.context_dim, latent_dim, cells, memory_dim,
                                       soft_clamp=soft_clamp)
        self.register_buffer("ids", torch.eye(n), persistent=False)
        # what one step hands on to the next beside the past
        self.carried: dict[NestedKey, tuple[int, int]] = dict.fromkeys(MEMORY if memory_dim else (), (n, memory_dim))
        self.carried_latent = [PREV_LATENT] * world_latent
        self.carried |= dict.fromkeys(self.carried_latent, (n, latent_dim))
        self.keys: list[NestedKey] = [OBSERVATION, *PAST, *self.carried]

    def joint_action(self, td: TensorDictBase) -> Tensor:
        """What each agent knows of the joint action of a step [..., N, N E]."""
        return self.previous.joint(*(td[key] for key in self.previous.keys))

    def predict_actions(self, prev: Tensor, joint: Tensor, valid: Tensor, before: Tensor | None = None, *,
                        observation: Tensor | None = None) -> tuple[Tensor | tuple[Tensor, Tensor], Tensor | None]:
        """The others' present actions from the step before, and the state of the memory after it.

        ``observation``: the present one, which is read if the model of the others sees it.
        """
        seen = self.scaler(prev) * valid
        if self.action_model.sees_present:
            seen = torch.cat([seen, self.scaler(observation)], -1)
        state = self.action_model.remember(seen, joint, valid, before)
        return self.action_model(seen, joint, valid, state), state

    def raw_features(self, observation: Tensor, prev: Tensor, joint: Tensor, valid: Tensor,
                     *carried: Tensor) -> tuple[Tensor, ...]:
        """u, unscaled x, the prediction of the others' actions (with gradient), and its memory's state."""
        u, (memory, latent) = self.scaler(observation), self._parted(carried)
        prediction, state = self.predict_actions(prev, joint, valid, *memory[:1], observation=observation)
        blocks = {"obs": u}
        if "moa" in self.parts:
            feature = self.action_model.feature(prediction) * valid
            blocks["moa"] = feature if self.grad_to_actions else feature.detach()
        if "wm_residual" in self.parts:
            with torch.no_grad():
                read = [x * valid for x in (self.scaler(prev), *latent)]
                blocks["wm_residual"] = (u - self.world_model(read[0], joint, *read[1:])[0]) * valid
        return u, torch.cat([blocks[part] for part in self.parts], -1), prediction, state

    def privileged(self, observation: Tensor, action: Tensor | None = None, hidden: Tensor | None = None) -> Tensor:
        """y [..., N, P D + P E + h]: the others' standardised observations, and, if given, what they do at this step
        and hidden variables.
        """
        seen = [self.scaler(observation)] if action is None else [self.scaler(observation), self.actions.encode(action)]
        parts = [self.actions.of_others(x).flatten(-2) for x in seen]
        return torch.cat(parts if hidden is None else [*parts, hidden], -1)

    def infer(self, observation: Tensor, prev: Tensor, joint: Tensor, valid: Tensor, *carried: Tensor,
              student_only: bool = False) -> Inferred:
        """Everything known at a step; gradients reach the student, and the action model through its prediction.

        ``carried``: what the step before handed on beside the past, see `carried`: both states of the memory (see
        `Memory` for sequences), its latent. ``student_only``: from the latent gradients reach nothing else, whatever
        `grad_to_actions` says.
        """
        u, x, prediction, state = self.raw_features(observation, prev, joint, valid, *carried)
        x = self.x_scaler(x.detach() if student_only else x)
        ids = self.ids.expand(*u.shape[:-1], -1)
        context = torch.cat([self.scaler(prev) * valid, joint, ids, valid], -1)
        memory, _ = self._parted(carried)
        if not memory:
            return Inferred(u, x, context, prediction, *self.student(x, context))
        reached = self.student.remember(x, context, valid=valid, before=memory[1])
        return Inferred(u, x, context, prediction, *self.student(reached), memory=(state, reached))

    def _parted(self, carried: Sequence[Tensor]) -> tuple[Sequence[Tensor], Sequence[Tensor]]:
        """The memory's two states and the latent that are carried, as far as there is either."""
        size = len(carried) - len(self.carried_latent)
        return carried[:size], carried[size:]

    def infer_batch(self, td: TensorDictBase) -> Inferred:
        """`infer` for frames [...], or with a memory for sequences [N, T]."""
        return self.infer(*(td[key] for key in self.keys))
