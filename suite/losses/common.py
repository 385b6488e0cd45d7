"""The protocol that every loss of the suite follows."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

from tensordict import NestedKey, TensorDict, TensorDictBase
from tensordict.nn import TensorDictModule
from torch import Tensor, nn
from torchrl.objectives import LossModule

from suite.data import DataSource
from suite.update import Update

if TYPE_CHECKING:
    from suite.losses.returns import Returns


@dataclass(frozen=True)
class Learner:
    """What an on-policy recipe composed, for a loss that adds to it.

    Attributes:
        actor, critic: its networks. losses: {part: loss} of its update.
        returns: its return estimator. make_returns(critic, ...) and make_critic(specs, features, centralized=...) have
            its settings.
        reward_weights: {term: weight}, among them ``task``. team_reward: every agent is paid the team's task reward.
    """

    actor: TensorDictModule
    critic: TensorDictModule
    losses: Mapping[str, Loss]
    returns: Returns
    make_returns: Callable[..., Returns]
    make_critic: Callable[..., TensorDictModule]
    reward_weights: Mapping[str, float]
    team_reward: bool = False


class Loss(LossModule):
    """A TorchRL loss that may also feed the actor and the reward.

    ``forward(minibatch)`` returns a TensorDict of scalars: entries named ``loss_*`` are summed and minimised, every
    other entry is logged: the mean of an iteration's optimiser steps, or if it is named ``first_step_*`` that of the
    first. It reads ``in_keys``, writes nothing into its input, and its stop-gradients stand in it.

    Attributes:
        in_keys: what `forward` reads; a data source hands over nothing else.
        encoders: TensorDictModules to run, in order, before actor and critic.
        recorders: TensorDictModules to run after the actor, to hand on to the next step what the encoders read there.
        features: {key: size of the last dimension} of what the encoders write for actor and critic.
        past: {one of them that is the observation of another step: one that is 1 where there is such a step, else 0};
            it is standardised where observations are.
        critic_features: those of them that the critic reads; None: all. own_features: a central critic reads each
            agent's own of them, instead of everybody's.
        critic_encoders: what writes the features of the critic; None: `encoders`. Others never act: the loss writes
            those of a batch itself, in `receive`, and estimators run them at the next observations.
        reencode: run the encoders over each batch again before rewards and updates, so that these see the present
            encoder instead of the one that acted (the A2C programs that recompute their policy inputs do).
        companion_optimisation: {part: (function of parameters that makes an optimiser, clipping)} of the parts that
            `companions` adds to those of the recipe.
        reward_keys: what `reward_terms` reads of the policy's distribution parameters, which are else not stored.
        reward_weights: default weight of each reward term.
    """

    def __init__(self, in_keys: Sequence[NestedKey] = ()):
        super().__init__()
        self.in_keys = list(in_keys)
        self.out_keys: list = []  # names are known after a forward pass only; printing a LossModule needs the list
        self.encoders: list = []
        self.recorders: list = []
        self.features: dict[NestedKey, int] = {}
        self.past: dict[NestedKey, NestedKey] = {}
        self.critic_features: dict[NestedKey, int] | None = None
        self.own_features = False
        self.critic_encoders: list | None = None
        self.reencode = False
        self.companion_optimisation: dict[str, tuple[Callable, float | None]] = {}
        self.reward_keys: list[NestedKey] = []
        self.reward_weights: dict[str, float] = {}

    def receive(self, batch: TensorDictBase) -> None:
        """Take note of a new batch [N, T], before any update or reward: statistics, clocks, slow copies."""

    def reward_terms(self, batch: TensorDictBase) -> dict[str, Tensor]:
        """Extra rewards by name, [N, T, A, 1]; called once per batch, without gradients, before the updates."""
        return {}

    def estimators(self, learner: Learner) -> list[Returns]:
        """Return estimators of the loss's own, run on each batch after the recipe's; on-policy recipes ask once."""
        return []

    def encoded(self, loss: Loss) -> Loss:
        """A policy or value loss of the recipe as it reads this one's features: as stored, or see `Encoded`."""
        return loss

    def companions(self, learner: Learner) -> dict[str, list[Loss]]:
        """{part: losses} that train the recipe's networks, or others, in the very steps of its update.

        Asked after `estimators`; for parts of their own see ``companion_optimisation``.
        """
        return {}

    def metrics(self) -> dict[str, Tensor]:
        """What the loss noted in this iteration, by full name, as 0-d tensors; asked after `refresh`."""
        return {}

    def diagnose(self, batch: TensorDictBase) -> dict[str, float]:
        """Measurements by full name, on the latest batch, whenever the policy is evaluated; they change nothing."""
        return {}

    def refresh(self, batch: TensorDictBase) -> None:
        """Move statistics and schedules on, once per batch, after the updates."""

    def plan(self, frames: int) -> list[str]:
        """Take note of the run's length before it begins; sentences of warning (a schedule never due)."""
        return []

    @classmethod
    def check_given(cls, options: dict[str, Any], given: Collection[str]) -> None:
        """ValueError for an option among those ``given`` by the user that nobody reads with these ``options``.

        For losses of which a recipe's presets set options of parts that an ablation switches off.
        """

    @classmethod
    def option_names(cls) -> list[str]:
        """Names of the constructor's options, all keyword-only."""
        return list(cls.option_defaults())

    @classmethod
    def option_defaults(cls) -> dict[str, Any]:
        """{option: its default}."""
        parameters = inspect.signature(cls.__init__).parameters.values()
        return {parameter.name: parameter.default for parameter in parameters
                if parameter.kind is parameter.KEYWORD_ONLY}

    def networks(self, part: str) -> dict[str, list[nn.Parameter]]:
        """{part: trainable parameters}: what gets an optimiser and a gradient clipping of its own."""
        return {part: [param for param in self.parameters() if param.requires_grad]}

    def updates(self, name: str, data: DataSource, **optimisation: Any) -> list[Update]:
        """The updates that train this loss: by default one, on the recipe's data with the recipe's optimiser.

        A loss with optimisers, data or schedules of its own overrides this.
        """
        return (
            [Update(name, {name: self}, data, **optimisation)]
            if any(p.requires_grad for p in self.parameters())
            else []
        )


class NoLoss(Loss):
    """Nothing to minimise and nothing to add: the recipe's plain baseline."""

    def __init__(self, specs):
        super().__init__()

    def forward(self, minibatch: TensorDictBase) -> TensorDictBase:
        """An empty TensorDict."""
        return TensorDict()


class OptionsOf(NamedTuple):
    """Options that a part of a loss alone reads: whether the options choose that part, and how to have it."""

    remedy: str
    chosen: Callable[[dict[str, Any]], Any]
    names: tuple[str, ...]


def refuse_unread(loss: str, parts: Sequence[OptionsOf], options: dict[str, Any], given: Collection[str]) -> None:
    """ValueError for a ``given`` option whose part the ``options`` leave out."""
    for remedy, chosen, names in parts:
        unread = [name for name in names if name in given]
        if unread and not chosen(options):
            raise ValueError(f"{unread[0]} of loss {loss!r} is read by nobody here: {remedy}, or leave it out")
