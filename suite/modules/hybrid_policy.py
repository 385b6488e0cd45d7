"""A stochastic policy over hybrid actions: a choice, and normal parameters of that choice. For PPO and A2C."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import torch
from tensordict import NestedKey, TensorDictBase
from tensordict.nn import ProbabilisticTensorDictModule, TensorDictModule, TensorDictSequential
from torch import Tensor, nn
from torch.distributions import Distribution

from suite.modules.distributions import Categorical
from suite.modules.gaussian import LOG_SQRT_2PI
from suite.modules.hybrid_networks import ParamSlots, take
from suite.modules.networks import AgentInput, Init, Sharing, mlp, sharing_index
from suite.modules.policies import MASKED_LOGIT, PADDED_SCALE
from suite.specs import ACTION_MASK, CHOICE, GROUP, LOG_PROB, OBSERVATION, PARAMS, Specs

PACKED = (GROUP, "packed_action")  # [N, T, A, 1 + P], what the distribution draws: the choice as a number, parameters
CHOICE_LOG_PROB = (GROUP, "choice_log_prob")  # [N, T, A], the share of the choice in the log-probability


class HybridDistribution(Distribution):
    """pi(k) N(x_k; loc_k, scale_k): a choice, and independent normals over the parameters that it has.

    The parameters of other choices are not drawn and do not count; environments clamp those drawn, and the density is
    that before the clamp, unless ``clamp`` limits samples to [-1, 1] already. A sample is one tensor [..., 1 + P], the
    choice first, zeros behind its parameters. `log_prob` also takes the action with the entries ``discrete`` [...] and
    ``params`` [..., P] that batches hold.

    Args:
        logits: [..., K]. loc, scale: [..., D], of all choices side by side. slots: [K, P], see `ParamSlots`.
    """

    arg_constraints: ClassVar[dict] = {}

    def __init__(self, logits: Tensor, loc: Tensor, scale: Tensor, slots: Tensor, clamp: bool = False):
        self.choices, self.loc, self.scale, self.slots, self.clamp = Categorical(logits), loc, scale, slots, clamp
        super().__init__(logits.shape[:-1], torch.Size([1 + slots.shape[-1]]), validate_args=False)

    @property
    def mode(self) -> Tensor:
        """The most probable choice with the means of its parameters [..., 1 + P]."""
        choice = self.choices.deterministic_sample
        return pack(choice, take(self.slots, choice, self.loc))

    mean = deterministic_sample = mode

    def sample(self, sample_shape: Sequence[int] = ()) -> Tensor:
        """Sample [..., 1 + P] without gradient."""
        with torch.no_grad():
            choice = self.choices.sample(torch.Size(sample_shape))
            loc, scale = self._chosen(choice)
            drawn = loc + scale * torch.randn_like(loc)
            drawn = drawn.clamp(-1.0, 1.0) if self.clamp else drawn
            return pack(choice, torch.where(self._has(choice), drawn, 0.0))

    def parts(self, value: Tensor | TensorDictBase) -> tuple[Tensor, Tensor]:
        """log pi(k) and log N(x_k), both [...]; the second is 0 for choices without parameters."""
        choice, params = unpack(value) if isinstance(value, Tensor) else (value["discrete"], value["params"])
        loc, scale = self._chosen(choice)
        each = -0.5 * ((params - loc) / scale).square() - scale.log() - LOG_SQRT_2PI
        return self.choices.log_prob(choice), torch.where(self._has(choice), each, 0.0).sum(-1)

    def log_prob(self, value: Tensor | TensorDictBase) -> Tensor:
        """Log-density [...] of the choice and its own parameters."""
        return sum(self.parts(value))

    def entropy(self) -> Tensor:
        """H(pi) + sum_k pi(k) H(N_k) [...], in nats; exact."""
        each = nn.functional.pad(0.5 + LOG_SQRT_2PI + self.scale.log(), (0, 1))[..., self.slots].sum(-1)
        return self.choices.entropy() + (self.choices.probs * each).sum(-1)

    def _chosen(self, choice: Tensor) -> tuple[Tensor, Tensor]:
        shape = (*choice.shape, self.loc.shape[-1])
        return (take(self.slots, choice, self.loc.expand(shape)),
                take(self.slots, choice, self.scale.expand(shape), padding=PADDED_SCALE))

    def _has(self, choice: Tensor) -> Tensor:
        return (self.slots < self.loc.shape[-1])[choice]


def pack(choice: Tensor, params: Tensor) -> Tensor:
    """int64 [...] and [..., P] -> [..., 1 + P]; exact for up to 2^24 choices in float32."""
    return torch.cat([choice.unsqueeze(-1).to(params.dtype), params], -1)


def unpack(packed: Tensor) -> tuple[Tensor, Tensor]:
    """[..., 1 + P] -> int64 [...] and [..., P]."""
    return packed[..., 0].long(), packed[..., 1:]


class HybridActorNetwork(nn.Module):
    """Two towers: logits of the choices, and tanh means of all parameters; standard deviations are free parameters.

    log scale = log_std + the sum of ``copies`` numbers that start at 0 and that an optimiser moves one by one: ten of
    them, as in the published HPPO program, take ten times Adam's step.
    """

    def __init__(self, assemble: nn.Module, choices: nn.Module, params: nn.Module, *, index: Sequence[int] | None,
                 n_agents: int, width: int, log_std: float, copies: int, num_features: int):
        super().__init__()
        rows = index or [0] * n_agents
        self.assemble, self.choices, self.params, self.log_std = assemble, choices, params, log_std
        self.num_inputs = 1 + num_features
        self.log_scale = nn.Parameter(torch.zeros(copies, max(rows) + 1, width))
        self.register_buffer("rows", torch.tensor(rows), persistent=False)

    def forward(self, *inputs: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Observation, features ..., [action mask] -> logits [..., A, K], mean and deviation [..., A, D]."""
        x = self.assemble(*inputs[:self.num_inputs])
        logits, loc = self.choices(x), self.params(x).tanh()
        if len(inputs) > self.num_inputs:
            logits = logits.masked_fill(~inputs[-1], MASKED_LOGIT)
        return logits, loc, (self.log_std + self.log_scale.sum(0)).exp()[self.rows].expand_as(loc)


class SplitAction(nn.Module):
    """What environment and losses read of a packed action."""

    def forward(self, packed: Tensor, logits: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """[..., A, 1 + P] and logits [..., A, K] -> choice, parameters [..., A, P], log-probability of the choice."""
        choice, params = unpack(packed)
        return choice, params, logits.log_softmax(-1).gather(-1, choice.unsqueeze(-1)).squeeze(-1)


def make_hybrid_actor(specs: Specs, features: dict[NestedKey, int], *, share: Sharing, agent_id: bool,
                      cells: Sequence[int], activation: str, init: Init, device: torch.device | str,
                      log_std: float = -0.5, log_std_copies: int = 1, clamp: bool = False) -> TensorDictSequential:
    """Stochastic hybrid policy with two towers of its own (H-PPO, Fan et al. 2019).

    Reads observation and ``features``; writes `CHOICE`, `PARAMS` [..., A, P] (zeros behind the choice's own), the joint
    log-probability `LOG_PROB` and its share `CHOICE_LOG_PROB` [..., A]. It serves `PolicyLoss` as it is (one ratio of
    choice and parameters together), and `HybridPolicyLoss` (one ratio each). TorchRL's exploration type and `Lowered`
    choose between samples and the most probable choice with its mean parameters.

    Args:
        log_std: initial log of the parameters' standard deviation, in units of the scaled range [-1, 1]: exp(-0.5) =
            0.6065 in the published program. log_std_copies: see `HybridActorNetwork`. clamp: see `HybridDistribution`.

    Raises:
        ValueError: the actions are not hybrid; unknown sharing, activation or init.
    """
    slots, index = ParamSlots(specs.param_mask), sharing_index(share, specs.agent_types)
    in_dim = specs.obs_dim + sum(features.values()) + (specs.n_agents if agent_id else 0)
    choices, params = (mlp(in_dim, width, index, cells=cells, activation=activation, init=init, out_gain=0.01)
                       for width in (len(slots.slots), slots.width))
    network = HybridActorNetwork(AgentInput(specs.n_agents, agent_id), choices, params, index=index, width=slots.width,
                                 n_agents=specs.n_agents, log_std=log_std, copies=log_std_copies,
                                 num_features=len(features))
    names = [(GROUP, name) for name in ("logits", "loc", "scale")]
    mask = [ACTION_MASK] if specs.has_mask else []
    return TensorDictSequential(
        TensorDictModule(network.to(device), in_keys=[OBSERVATION, *features, *mask], out_keys=names),
        ProbabilisticTensorDictModule(in_keys=names, out_keys=[PACKED], distribution_class=HybridDistribution,
                                      distribution_kwargs={"slots": slots.slots.to(device), "clamp": clamp},
                                      return_log_prob=True, log_prob_key=LOG_PROB, default_interaction_type="random"),
        TensorDictModule(SplitAction(), in_keys=[PACKED, names[0]], out_keys=[CHOICE, PARAMS, CHOICE_LOG_PROB]))
