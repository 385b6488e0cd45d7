"""Deterministic policy gradients on a continuous (often latent) action: DDPG and TD3, as two losses that take turns.

They are `torchrl.objectives.DDPGLoss` and ``TD3Loss`` on plain tensors (the tests compare them): in the small batches
of these algorithms TorchRL's bookkeeping takes longer than the arithmetic.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from tensordict import NestedKey, TensorDict, TensorDictBase
from torch import Tensor, nn

from suite.losses.common import Loss
from suite.specs import LATENT_ACTION, OBSERVATION, REWARD, TERMINATED


class QValueLoss(Loss):
    """L = sum_i mean (Q_i(s, a) - y)^2 of one critic (DDPG, Lillicrap et al. 2016) or two (TD3, Fujimoto et al. 2018).

    y = r + gamma (1 - terminated) min_i Q_i'(s', a'), a' = clip(mu'(s') + clip(smoothing n, +-smoothing_clip), -1, 1),
    n ~ N(0, 1), with slow copies mu' and Q'; they are ``slow_actor`` and ``slow_critic``, which `SoftTargets` moves.

    Args:
        actor: observations [..., A, S] -> actions [..., A, d] in [-1, 1].
        critic: (observations, actions) -> values [E, ..., A, 1] of E critics.
        action: key of the stored action.
    """

    def __init__(self, actor: nn.Module, critic: nn.Module, *, gamma: float, smoothing: float = 0.0,
                 smoothing_clip: float = 0.5, action: NestedKey = LATENT_ACTION):
        super().__init__([OBSERVATION, action, *(("next", *key) for key in (OBSERVATION, REWARD, TERMINATED))])
        self.critic, self.action = critic, action
        self.slow_actor, self.slow_critic = (copy.deepcopy(net).requires_grad_(False) for net in (actor, critic))
        self.gamma, self.smoothing, self.smoothing_clip = gamma, smoothing, smoothing_clip

    def networks(self, part: str) -> dict[str, list[nn.Parameter]]:
        """The critics."""
        return {part: list(self.critic.parameters())}

    def forward(self, minibatch: TensorDictBase, noise: Tensor | None = None) -> TensorDictBase:
        """``loss_value`` and the mean value; ``noise``: n, in place of a draw."""
        target = self.target(minibatch, noise)
        value = self.critic(minibatch[OBSERVATION], minibatch[self.action])
        error = (value - target).square()
        return TensorDict({"loss_value": error.mean() * len(error), "value": value.detach().mean()})

    @torch.no_grad()
    def target(self, minibatch: TensorDictBase, noise: Tensor | None = None) -> Tensor:
        """y [..., A, 1]."""
        after = minibatch["next", *OBSERVATION]
        action = self.slow_actor(after)
        if self.smoothing:
            noise = torch.randn_like(action) if noise is None else noise
            limit = self.smoothing_clip
            action = (action + (self.smoothing * noise).clamp_(-limit, limit)).clamp_(-1.0, 1.0)
        best = self.slow_critic(after, action).amin(0)
        return minibatch["next", *REWARD] + self.gamma * best * ~minibatch["next", *TERMINATED]


class DeterministicPolicyLoss(Loss):
    """L = - mean Q_1(s, mu(s)); no gradient reaches the critic.

    With a central critic all agents' actions come from the present policy; Lowe et al. (2017) replay those of others.

    Args:
        actor, critic: see `QValueLoss`. levels: {name: module} of an actor whose parts have optimisers and clipping of
            their own; None: it has one.
    """

    def __init__(self, actor: nn.Module, critic: nn.Module, levels: dict[str, nn.Module] | None = None):
        super().__init__([OBSERVATION])
        self.actor = actor
        self.__dict__["levels"] = levels
        self.__dict__["critic"] = critic  # the other loss has it

    def networks(self, part: str) -> dict[str, list[nn.Parameter]]:
        """The actor, or ``part_level`` for each of its levels."""
        if self.levels is None:
            return {part: list(self.actor.parameters())}
        return {f"{part}_{name}": list(module.parameters()) for name, module in self.levels.items()}

    def forward(self, minibatch: TensorDictBase) -> TensorDictBase:
        """``loss_actor``, and how much of the action's box is used: the share of outputs beyond 0.95."""
        action = self.actor(minibatch[OBSERVATION])
        with _constant(self.critic):
            value = self.critic.first(minibatch[OBSERVATION], action)
        saturated = (action.detach().abs() > 0.95).to(action.dtype).mean()
        return TensorDict({"loss_actor": -value.mean(), "saturated": saturated})


@contextmanager
def _constant(network: nn.Module) -> Iterator[None]:
    params = [param for param in network.parameters() if param.requires_grad]
    for param in params:
        param.requires_grad_(False)
    try:
        yield
    finally:
        for param in params:
            param.requires_grad_(True)


class SoftTargets:
    """Moves slow copies: slow <- slow + tau (network - slow) for each pair (network, slow), each with its own tau.

    Buffers are constants of these networks, and stay.

    Raises:
        ValueError: a tau is not between 0 and 1.
    """

    def __init__(self, *pairs: tuple[nn.Module, nn.Module, float]):
        for _, _, tau in pairs:
            if not 0 <= tau <= 1:
                raise ValueError(f"tau must be between 0 and 1, got {tau}")
        self.pairs = [(list(network.parameters()), list(slow.parameters()), tau) for network, slow, tau in pairs]

    @torch.no_grad()
    def step(self) -> None:
        """Once."""
        for network, slow, tau in self.pairs:
            torch._foreach_lerp_(slow, network, tau)

