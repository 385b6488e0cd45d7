"""The loss of the model of the other agents, and how much an agent's action moves what it predicts of them."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from tensordict import NestedKey, TensorDict, TensorDictBase
from torch import Tensor
from torch.nn import functional as F

from suite.losses.common import Loss
from suite.modules.functional import Divergence, gaussian_influence
from suite.modules.functional import influence as influence_of
from suite.modules.gaussian import nll, weighted_mean
from suite.modules.state_model import ACTION_MEMORY, PAST, Inferred, StateModel
from suite.specs import ACTION, DONE, IS_INIT, LOG_PROB, LOGITS, OBSERVATION, Specs
from suite.state_metrics import (
    action_frequencies,
    action_moments,
    action_prediction,
    categorical_entropy,
    continuous_action_prediction,
    steps_into_episodes,
)

BY_STEP = ("ce", "acc", "nll", "mse", "skill")
ROWS = {"cpu": 2**13, "cuda": 2**20}  # counterfactuals at a time: what a cache holds, what fills a GPU


def has_entropy(specs: Specs) -> bool:
    """Whether the entropy of the policies that act is known: padding and scripts have no density."""
    return specs.discrete or (specs.action_mask is None and specs.controlled is None)


class ActionModelLoss(Loss):
    """L_moa = mean over steps, agents i and others j of the cross-entropy (Gaussian NLL) of a_t^j given i's past.

    With a fixed sigma the NLL is |mean - a|^2 / (2 sigma^2), without its constants.

    Weights: the past is valid, i and j alive; the mean divides by their sum. Without a memory the
    past is one step; with one, a minibatch holds sequences [N, T]. A model that sees the present reads it too.

    Args:
        model: holds the network. coef: weight of the loss. only_visible: learn of those in sight only.
    """

    def __init__(self, specs: Specs, model: StateModel, *, coef: float = 1.0, only_visible: bool = False):
        past: list[NestedKey] = [*PAST, *([ACTION_MEMORY] if model.memory_dim else [])]
        visible = specs.visible if only_visible else None
        present = OBSERVATION if model.action_model.sees_present else None
        super().__init__([*past, ACTION, *(key for key in (present, specs.alive, visible) if key)])
        self.model, self.coef, self.discrete, self.past = model, coef, specs.discrete, past
        self.alive, self.controlled, self.visible, self.sight = specs.alive, specs.controlled, visible, specs.visible
        self.has_entropy = has_entropy(specs)

    def predict(self, td: TensorDictBase) -> Tensor | tuple[Tensor, Tensor]:
        """Logits [..., N, P, E], or mean and log-sigma."""
        return self.infer(td)[0]

    def infer(self, td: TensorDictBase) -> tuple[Tensor | tuple[Tensor, Tensor], Tensor | None]:
        """The prediction, and the memory's state after it."""
        observation = td[OBSERVATION] if self.model.action_model.sees_present else None
        return self.model.predict_actions(*(td[key] for key in self.past), observation=observation)

    def targets(self, td: TensorDictBase) -> Tensor:
        """What the others did: int64 [..., N, P], or [..., N, P, d] in [-1, 1]."""
        if self.discrete:
            return self._of_others(td[ACTION])
        return self.model.actions.of_others(self.model.actions.encode(td[ACTION]))

    def weights(self, td: TensorDictBase) -> Tensor:
        """[..., N, P]: valid past, both alive, and in sight if that is asked for."""
        valid = td[PAST[-1]]
        weight = valid.expand(*valid.shape[:-1], self.model.actions.others.shape[1])
        if self.alive is not None:
            here = td[self.alive].to(weight.dtype)
            weight = weight * self._of_others(here) * here.unsqueeze(-1)
        return weight * td[self.visible] if self.visible else weight

    def forward(self, minibatch: TensorDictBase, known: Inferred | None = None) -> TensorDictBase:
        """``loss_moa`` and, for discrete actions, the accuracy; ``known`` if the minibatch was inferred already."""
        prediction = self.predict(minibatch) if known is None else known.action
        target, weight = self.targets(minibatch), self.weights(minibatch)
        if not self.discrete:
            sigma = self.model.action_model.sigma
            error = ((prediction[0] - target) / sigma).square().sum(-1) / 2 if sigma else nll(*prediction, target)
            return TensorDict({"loss_moa": self.coef * weighted_mean(error, weight)})
        error = F.cross_entropy(prediction.flatten(0, -2), target.flatten(), reduction="none").view_as(target)
        right = (prediction.detach().argmax(-1) == target).to(weight.dtype)
        return TensorDict({"loss_moa": self.coef * weighted_mean(error, weight),
                           "accuracy": weighted_mean(right, weight)})

    @torch.no_grad()
    def scores(self, train: TensorDictBase, held: TensorDictBase) -> dict[str, Tensor]:
        """How well the others' actions in ``held`` [n, T] are predicted, see `suite.state_metrics`, as 0-d tensors.

        ``train`` gives the frequencies of the baselines; ``skill`` needs the logits of the policy that acted, of
        continuous actions the log-density of what it did.
        """
        weight = self.weights(held)
        repeats = weight.clone()
        repeats[:, 0] = 0  # what was done before the batch is not in it
        return self._scorer(train, held)(weight, repeats=repeats)

    @torch.no_grad()
    def scores_by_step(self, train: TensorDictBase, held: TensorDictBase) -> dict[str, Tensor]:
        """`BY_STEP` of `scores` in the course of an episode, ``<name>_step_<k>``: see `steps_into_episodes`."""
        score, weight, out = self._scorer(train, held), self.weights(held), {}
        for first, here in steps_into_episodes(held[IS_INIT].squeeze(-1)).items():
            found = score(weight * here[..., None, None])
            out |= {f"{name}_step_{first}": found[name] for name in BY_STEP if name in found}
        return out

    def _scorer(self, train: TensorDictBase, held: TensorDictBase) -> Callable[..., dict[str, Tensor]]:
        """The function of weights [n, T, N, P] that scores the predictions."""
        target, before, counts = self.targets(held), self.targets(train), self.weights(train)
        common = dict(previous=torch.cat([target[:, :1], target[:, :-1]], 1), entropy=self._entropy(held))
        if self.discrete:
            frequencies = action_frequencies(before, self.model.actions.dim, counts)
            return partial(action_prediction, self.predict(held), target, frequencies=frequencies, **common)
        dims = self.model.action_model.unpadded
        return partial(continuous_action_prediction, self.predict(held), target, dims=dims,
                       marginal=action_moments(before, counts, dims), **common)

    def _entropy(self, td: TensorDictBase) -> Tensor | None:
        """[..., N, P] of the others' policies, None where that is not known.

        Of continuous actions it is the one that was sampled, minus its log-density as actions are encoded, whose mean
        is the entropy. Where they are clamped instead of squashed, it is that of the policy before the clamp.
        """
        key = LOGITS if self.discrete else LOG_PROB
        if key not in td.keys(True) or not self.has_entropy:
            return None
        if not self.discrete:
            return self._of_others(-td[LOG_PROB] - self.model.actions.log_reach)
        entropy = categorical_entropy(td[LOGITS])
        if self.controlled is not None:  # a script is sure of itself
            entropy = entropy * td[self.controlled]
        return self._of_others(entropy)

    def networks(self, part: str) -> dict[str, list]:
        """The model of other agents."""
        return {part: list(self.model.action_model.parameters())}

    # ------------------------------------------------------------------ influence (Jaques et al. 2019)

    @torch.no_grad()
    def influence(self, batch: TensorDictBase, drawn: Tensor | None = None, *,
                  divergence: Divergence = "kl") -> Tensor:
        """[N, T, A, 1]: how far an agent's action moves the next actions that it expects of the others, summed.

        D(P(a_{t+1}^j | a_t) || sum_a' pi(a'^i) P(a_{t+1}^j | a', a_t^{-i})); counterfactuals replace the own action by
        every choice, with the same memory. Others out of sight do not count, nor does who acts no more after this
        step (so an episode's last step gives 0) or whose action the environment overrides.

        Args:
            drawn: further samples [K, N, T, A, d] of the policies, of continuous actions: counterfactuals are these
                and the action taken, the sum becomes their mean, the mixture a Gaussian of its moments, D the KL.
        """
        choices = self.model.actions.dim if self.discrete else 1 + len(drawn)
        rows = batch[OBSERVATION].shape[1:-1].numel() * choices
        size = max(1, ROWS.get(batch[ACTION].device.type, ROWS["cuda"]) // rows)
        parts = batch.split(size)
        instead = [None] * len(parts) if self.discrete else drawn.split(size, 1)
        moved = torch.cat([self._moved(*part, divergence) for part in zip(parts, instead, strict=True)])
        here = ~batch["next", *DONE].squeeze(-1)
        for key in (self.alive, self.controlled):
            if key is not None:
                here = here & batch[key].bool()
        counts = here.unsqueeze(-1) * self._of_others(here)
        if self.sight is not None:
            counts = counts * batch[self.sight]
        return (moved * counts).sum(-1, keepdim=True)

    def _moved(self, batch: TensorDictBase, drawn: Tensor | None, divergence: Divergence) -> Tensor:
        """[N, T, A, P], whoever counts."""
        if self.discrete:
            choices = torch.eye(self.model.actions.dim, device=batch[ACTION].device)
            own = choices[:, None].expand(*batch.shape, -1, batch[ACTION].shape[-1], -1)
            after = self._after(batch, own).softmax(-1)
            return influence_of(batch[LOGITS].softmax(-1), after, batch[ACTION], divergence=divergence)
        own = self.model.actions.encode(torch.cat([batch[ACTION].unsqueeze(0), drawn])).movedim(0, 2)
        return gaussian_influence(*self._after(batch, own).chunk(2, -1))

    @torch.no_grad()
    def expected(self, batch: TensorDictBase) -> Tensor:
        """[N, T, A, F]: what an agent expects of the others' next actions, once it has acted; `ActionModel.feature`."""
        after = self._after(batch, self.model.actions.encode(batch[ACTION]).unsqueeze(2)).squeeze(3)
        return self.model.action_model.feature(after if self.discrete else after.chunk(2, -1))

    def _after(self, batch: TensorDictBase, own: Tensor) -> Tensor:
        """What is predicted of the others' next actions after each of C encoded own actions [N, T, C, A, E].

        [N, T, A, C, P, E] logits, or [N, T, A, C, P, 2 E] means and log-sigmas.
        """
        model = self.model
        others = model.joint_action(batch)[..., model.actions.dim:].unsqueeze(2)  # [N, T, 1, A, P E]
        rows = own.shape[:-1]
        joint = torch.cat([own, others.expand(*rows, -1)], -1)
        u = model.scaler(batch[OBSERVATION]).unsqueeze(2).expand(*rows, -1)
        inputs = [x.flatten(0, 2) for x in (u, joint, torch.ones_like(u[..., :1]))]
        state = None
        if model.memory_dim:
            before = batch["next", *ACTION_MEMORY].unsqueeze(2).expand(*rows, -1)
            state = model.action_model.remember(*inputs, before.flatten(0, 2))
        after = model.action_model(*inputs, state)
        after = after if self.discrete else torch.cat(after, -1)
        return after.unflatten(0, rows[:3]).transpose(2, 3)

    def _of_others(self, x: Tensor) -> Tensor:
        """[..., N] -> [..., N, P]."""
        return self.model.actions.of_others(x.unsqueeze(-1)).squeeze(-1)
