"""What actor and critic read of the state model."""

from __future__ import annotations

from contextlib import nullcontext

import torch
from tensordict import NestedKey
from torch import Tensor, nn

from suite.modules.state_model import LATENT, GaussianEncoder, Inferred, PolicyLatent, StateModel
from suite.specs import GROUP, OBSERVATION, PRIVILEGED

TEACHER_LATENT = (GROUP, "z_teacher")  # [N, T, A, k], the mean; in training only


class PolicyInput(nn.Module):
    """The latent (and, if asked, the predicted actions) as the actor reads it.

    It has no gradient, unless it ``learns``: then one reaches the student, and nothing else, where gradients are wanted
    at all (a loss wants them, what acts does not).

    ``shuffle`` hands every environment the latent of another one, the same one until `turn`: a control that has all but
    the information.

    Attributes:
        in_keys, out_keys: of its TensorDictModule; what `StateModel` carries is read and handed on to the next step.
    """

    def __init__(self, model: StateModel, latent: PolicyLatent, *, with_latent: bool = True,
                 with_actions: bool = False, shuffle: bool = False, learns: bool = False):
        super().__init__()
        self.model, self.latent, self.shuffle, self.learns = model, latent, shuffle, learns
        self.with_latent, self.with_actions = with_latent, with_actions
        self.register_buffer("shift", torch.zeros((), dtype=torch.int64) if shuffle else None)
        self.carried: dict[NestedKey, tuple[int, ...]] = model.carried
        self.in_keys, self.out_keys = model.keys, [LATENT, *(("next", *key) for key in model.carried)]

    def forward(self, *inputs: Tensor) -> Tensor | tuple[Tensor, ...]:
        """[..., N, k], or [..., N, 2 k] for ``mean_logstd``; predicted actions are appended; then what is carried.

        With a memory too, every row is one step from the states given with it, whatever the leading dimensions.
        """
        with nullcontext() if self.learns else torch.no_grad():
            rows = inputs[0].shape[:-2]
            known = self.model.infer(*((x.flatten(0, -3) for x in inputs) if self.carried else inputs),
                                     student_only=True)
            out = [self._read(known), *known.memory, *([known.mean.detach()] if self.model.carried_latent else [])]
            if self.carried:
                out = [x.unflatten(0, rows) for x in out]
            if self.shuffle:
                out[0] = out[0][self._others_rows(len(out[0]), out[0].device)]
            return tuple(out) if self.carried else out[0]

    def turn(self) -> None:
        """Draw anew whose latent each environment gets."""
        if self.shuffle:
            self.shift.random_(2**31)

    def _others_rows(self, rows: int, device: torch.device) -> Tensor:
        """[rows] numbers of other rows: all turned by one distance, so that nobody keeps its own."""
        return (torch.arange(rows, device=device) + 1 + self.shift % max(1, rows - 1)) % rows

    def _read(self, known: Inferred) -> Tensor:
        parts = []
        if self.with_latent:
            parts = {"mean": [known.mean], "mean_logstd": [known.mean, known.log_sigma]}.get(self.latent) or [
                known.mean + known.log_sigma.exp() * torch.randn_like(known.mean)]
        if self.with_actions:
            valid = known.context[..., -1:]
            parts.append(self.model.action_model.feature(known.action).detach() * valid)
        return torch.cat(parts, -1)


class TeacherInput(nn.Module):
    """The mean of the teacher's latent, as a critic may read it in training; no gradient.

    The teacher must not see the others' present actions: V(s, z) would be the value of these actions, and those of the
    next step are not known when its value is asked for.

    Attributes:
        in_keys, out_keys: of its TensorDictModule.
    """

    def __init__(self, model: StateModel, teacher: GaussianEncoder, *, hidden: bool):
        super().__init__()
        self.model, self.teacher = model, teacher
        self.in_keys: list[NestedKey] = [*model.keys, *([PRIVILEGED] if hidden else [])]
        self.out_keys = [TEACHER_LATENT]

    @torch.no_grad()
    def forward(self, *inputs: Tensor) -> Tensor:
        """[..., N, k]; every row is one step, with a memory from the states given with it, as in `PolicyInput`."""
        rows, count = inputs[0].shape[:-2], len(self.model.keys)
        steps = [x.flatten(0, -3) for x in inputs]
        known = self.model.infer(*steps[:count])
        y = self.model.privileged(steps[self.model.keys.index(OBSERVATION)], hidden=next(iter(steps[count:]), None))
        return self.teacher(*known.student_inputs, y)[0].unflatten(0, rows)
