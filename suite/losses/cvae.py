"""A conditional VAE of the agent's features whose latent is aligned to that of a privileged teacher."""

from __future__ import annotations

from typing import Literal

import torch
from tensordict import TensorDict, TensorDictBase
from torch import Tensor, nn

from suite.losses.common import Loss
from suite.losses.world_model import Reduction, observation_error
from suite.modules.gaussian import (
    LOG_SQRT_2PI,
    Direction,
    alignment,
    free_bits,
    kl_to_unit,
    nll,
    reparameterise,
    weighted_mean,
)
from suite.modules.networks import AgentInput, mlp
from suite.modules.state_model import MASKED_LOGIT, PAST, GaussianEncoder, Inferred, StateModel
from suite.specs import ACTION, OBSERVATION, PRIVILEGED, Specs

Target = Literal["x", "y", "xy"]


class Decoder(nn.Module):
    """z and id -> what is reconstructed; nothing else, or the latent would be ignored."""

    def __init__(self, n_agents: int, latent_dim: int, out_dim: int, cells):
        super().__init__()
        self.assemble = AgentInput(n_agents, agent_id=True)
        self.net = mlp(latent_dim + n_agents, out_dim, None, cells=cells, activation="relu", init="orthogonal")

    def forward(self, z: Tensor) -> Tensor:
        """[..., N, k] -> [..., N, out]."""
        return self.net(self.assemble(z))


class CVAELoss(Loss):
    """L = L_rec + alpha L_KL, and for the teacher L_T = L_rec(x, y) + beta KL(teacher || N(0, 1)).

    - L_rec = mean |x^ - x|^2 (mean over features that vary, or with ``reduction`` sum their sum; x constant), x^
      decoded from z ~ N(student) and the id.
    - L_KL = KL(student || teacher) (or the reverse), summed over dimensions, w_s with the teacher fixed + w_t with the
      student fixed; without a teacher: KL(student || N(0, 1)).
    - The teacher also sees y, what the others see and do at this step and the task's hidden variables, and
      reconstructs x and y from its own latent, the actions with weight ``action_coef``; it exists in training only.
      It has no memory of its own, but sees the state of the student's, held fixed. ``action_in_y`` False leaves what
      the others do out of y.

    Means run over steps with a valid past and living agents, and as to the others, over those alive as well (for the
    teacher over pairs of both, as in `ActionModelLoss`); padding belongs to none. Gradients reach student, decoders and
    teacher; and the model of the others through the student's input x, if the state model lets them.

    Args:
        alpha: weight of L_KL, ramped up by the caller. beta_teacher: of the teacher's prior.
        kl_weights: (w_s, w_t). free_bits_dim, free_nats: see `free_bits`.
        rec_target: what the student reconstructs: ``x``, ``y`` or both.
        action_coef: 1 is the plain sum, in which the entropy of the others' actions outweighs the rest: the teacher
            becomes so sharp that the student cannot follow it (tens of nats), and forgets the hidden variables.
    """

    def __init__(self, specs: Specs, model: StateModel, *, latent_dim: int, cells=(128, 128), alpha: float = 0.03,
                 beta_teacher: float = 0.03, rec_coef: float = 1.0, teacher_coef: float = 1.0,
                 kl_direction: Direction = "student_to_teacher", kl_weights: tuple[float, float] = (1.0, 0.0),
                 free_bits_dim: float = 0.0, free_nats: float = 0.0, rec_target: Target = "x",
                 use_teacher: bool = True, action_coef: float = 0.1, action_in_y: bool = True,
                 soft_clamp: bool = False, reduction: Reduction = "mean"):
        optional = (ACTION if action_in_y else None, specs.alive, PRIVILEGED if specs.hidden_dim else None)
        super().__init__([*model.keys, *(key for key in optional if key)])
        n, d, e, h = specs.n_agents, specs.obs_dim, action_in_y * specs.action_dim, specs.hidden_dim
        self.model, self.alive, self.hidden, self.discrete = model, specs.alive, bool(h), specs.discrete
        self.alpha, self.beta_teacher = alpha, beta_teacher
        self.kl_weights, self.kl_direction = kl_weights, kl_direction
        self.rec_coef, self.teacher_coef, self.action_coef = rec_coef, teacher_coef, action_coef
        self.free = dict(per_dim=free_bits_dim, total=free_nats)
        self.rec_target, self.reduction, self.shape = rec_target, reduction, (n - 1, d, e, h)
        self._register_padding(model, n, d, specs.action_dim)
        y_dim = (n - 1) * (d + e) + h
        sizes = {"x": model.x_dim, "y": y_dim, "xy": model.x_dim + y_dim}
        self.decoder = Decoder(n, latent_dim, sizes[rec_target], cells)
        self.teacher = self.teacher_decoder = None
        if use_teacher:
            in_dim = model.x_dim + model.context_dim + model.memory_dim + y_dim
            self.teacher = GaussianEncoder(in_dim, latent_dim, cells, soft_clamp=soft_clamp)
            self.teacher_decoder = Decoder(n, latent_dim, sizes["xy"], cells)

    def _register_padding(self, model: StateModel, n: int, d: int, e: int) -> None:
        """``action_mask`` bool [N, P, E], as far as y has actions, and ``x_mask`` bool [N, X]: False where another's
        action is padded.
        """
        known = model.action_model.unpadded
        known = torch.ones(n, n - 1, e, dtype=torch.bool) if known is None else known
        predicted = model.action_model.feature_mask
        x_mask = torch.cat([predicted if part == "moa" else predicted.new_ones(n, d) for part in model.parts], -1)
        self.register_buffer("action_mask", known[..., :self.shape[2]], persistent=False)
        self.register_buffer("x_mask", x_mask, persistent=False)

    def privileged(self, td: TensorDictBase) -> Tensor:
        """y of a step; see `StateModel.privileged`."""
        return self.model.privileged(td[OBSERVATION], td[ACTION] if self.shape[2] else None,
                                     td[PRIVILEGED] if self.hidden else None)

    def forward(self, minibatch: TensorDictBase, known: Inferred | None = None) -> TensorDictBase:
        """``loss_rec``, ``loss_kl``, ``loss_teacher``; the KL in nats. ``known`` if it was inferred already."""
        known, y = self.model.infer_batch(minibatch) if known is None else known, self.privileged(minibatch)
        weight, living = self._weights(minibatch)
        student = known.mean, known.log_sigma
        z = reparameterise(*student, torch.randn_like(known.mean))
        out = {"loss_rec": self.rec_coef * self._reconstruction(known.x.detach(), y, z, weight, living)}
        if self.teacher is None:
            kl = kl_to_unit(*student)
        else:
            teacher = self.teacher(*known.student_inputs, y)
            kl = alignment(student, teacher, direction=self.kl_direction, weights=self.kl_weights)
            out["loss_teacher"] = self.teacher_coef * self._teacher_loss(known.x.detach(), y, teacher, weight, living)
        out["loss_kl"] = self.alpha * free_bits(kl, weight, **self.free)
        out["kl"] = weighted_mean(kl.detach().sum(-1), weight)
        return TensorDict(out)

    def reconstruction(self, td: TensorDictBase, known: Inferred) -> Tensor:
        """L_rec, 0-d, of the latents' means."""
        return self._reconstruction(known.x.detach(), self.privileged(td), known.mean, *self._weights(td))

    def _reconstruction(self, x: Tensor, y: Tensor, z: Tensor, weight: Tensor, living: Tensor) -> Tensor:
        target = {"x": x, "y": y, "xy": torch.cat([x, y], -1)}[self.rec_target]
        mask = self._target_mask(living)
        error = observation_error(self.decoder(z), target, mask, reduction=self.reduction)
        return weighted_mean(error, weight * mask.any(-1))

    def _weights(self, td: TensorDictBase) -> tuple[Tensor, Tensor]:
        """[..., N]: the past is valid and the agent alive; bool [..., N, P]: others that are alive."""
        valid = td[PAST[-1]].squeeze(-1)
        alive = td[self.alive] if self.alive else torch.ones_like(valid, dtype=torch.bool)
        return valid * alive, self.model.actions.of_others(alive.unsqueeze(-1)).squeeze(-1)

    def _target_mask(self, living: Tensor) -> Tensor:
        """bool [N, X], or [..., N, Y] or [..., N, X + Y]: what counts of the student's target.

        That is neither padding, nor what never varies, nor of others that are not ``living``, bool [..., N, P].
        """
        if self.rec_target == "x":
            return self._own_mask()
        parts = [(part & living.unsqueeze(-1)).flatten(-2) for part in (self._seen_mask(), self.action_mask)]
        mask = torch.cat([*parts, living.new_ones(*living.shape[:-1], self.shape[-1])], -1)
        return mask if self.rec_target == "y" else torch.cat([self._own_mask().expand(*mask.shape[:-1], -1), mask], -1)

    def _own_mask(self) -> Tensor:
        """bool [N, X]: features that vary and are no padding."""
        return self.model.x_scaler.mask & self.x_mask

    def _seen_mask(self) -> Tensor:
        """bool [P, D], or [N, P, D] with padding: entries of the others' observations that ever vary."""
        mask = self.model.scaler.mask
        return mask.expand(self.shape[0], -1) if mask.ndim == 1 else self.model.actions.of_others(mask)

    def _teacher_loss(self, x: Tensor, y: Tensor, teacher: tuple[Tensor, Tensor], weight: Tensor,
                      living: Tensor) -> Tensor:
        others, d, e, h = self.shape
        decoded = self.teacher_decoder(reparameterise(*teacher, torch.randn_like(teacher[0])))
        own, seen, did, hidden = decoded.split([self.model.x_dim, others * d, others * e, h], -1)
        y_seen, y_did, y_hidden = y.split([others * d, others * e, h], -1)
        error = observation_error(own, x, self._own_mask(), reduction="mean")
        if h:
            error = error + (hidden - y_hidden).square().mean(-1)
        seen, y_seen = (part.unflatten(-1, (others, d)) for part in (seen, y_seen))
        did, y_did = (part.unflatten(-1, (others, e)) for part in (did, y_did))
        of_others = observation_error(seen, y_seen, self._seen_mask(), reduction="mean")
        of_others = of_others + self.action_coef * self._action_nll(did, y_did)
        error = error + self.beta_teacher * kl_to_unit(*teacher).sum(-1)
        return weighted_mean(error, weight) + weighted_mean(of_others, weight.unsqueeze(-1) * living)

    def _action_nll(self, decoded: Tensor, did: Tensor) -> Tensor:
        """[..., N, P]: of encoded actions [..., N, P, E]; continuous ones have sigma 1, and padding costs nothing."""
        if self.discrete:
            return -(decoded.masked_fill(~self.action_mask, MASKED_LOGIT).log_softmax(-1) * did).sum(-1)
        return nll(decoded * self.action_mask, torch.where(self.action_mask, 0.0, -LOG_SQRT_2PI), did)

    def networks(self, part: str) -> dict[str, list]:
        """Student with its decoder under ``part``, and the teacher."""
        out = {part: [*self.model.student.parameters(), *self.decoder.parameters()]}
        if self.teacher is not None:
            out["teacher"] = [*self.teacher.parameters(), *self.teacher_decoder.parameters()]
        return out
