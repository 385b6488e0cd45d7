"""What the actor reads of the state model."""

from __future__ import annotations

import torch
from tensordict import NestedKey
from torch import Tensor, nn

from suite.modules.state_model import LATENT, MEMORY, Inferred, PolicyLatent, StateModel


class PolicyInput(nn.Module):
    """The latent (and, if asked, the predicted actions) as the actor reads it; no gradient.

    ``shuffle`` hands every environment the latent of another one, the same one until `turn`: a control that has all but
    the information.

    Attributes:
        in_keys, out_keys: of its TensorDictModule; a memory is read and handed on to the next step.
    """

    def __init__(self, model: StateModel, latent: PolicyLatent, *, with_latent: bool = True,
                 with_actions: bool = False, shuffle: bool = False):
        super().__init__()
        self.model, self.latent, self.shuffle = model, latent, shuffle
        self.with_latent, self.with_actions = with_latent, with_actions
        self.register_buffer("shift", torch.zeros((), dtype=torch.int64) if shuffle else None)
        carried = MEMORY if model.memory_dim else ()
        self.carried: dict[NestedKey, tuple[int, ...]] = {key: (len(model.ids), model.memory_dim) for key in carried}
        self.in_keys, self.out_keys = model.keys, [LATENT, *(("next", *key) for key in carried)]

    def forward(self, *inputs: Tensor) -> Tensor | tuple[Tensor, ...]:
        """[..., N, k], or [..., N, 2 k] for ``mean_logstd``; predicted actions are appended; then both new states.

        With a memory too, every row is one step from the states given with it, whatever the leading dimensions.
        """
        with torch.no_grad():
            rows = inputs[0].shape[:-2]
            known = self.model.infer(*((x.flatten(0, -3) for x in inputs) if self.carried else inputs))
            out = [self._read(known), *known.memory]
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
            parts.append(self.model.action_model.feature(known.action) * valid)
        return torch.cat(parts, -1)
