"""Latent actions: vectors in [-1, 1] that a continuous policy gives, decoded to a choice and its parameters.

`ActionCodec` is the learned representation of HyAR (Li et al., "HyAR: Addressing Discrete-Continuous Action
Reinforcement Learning via Hybrid Action Representation", ICLR 2022, arXiv 2109.05490): a table of embeddings and a
conditional VAE. `EmbeddingCodec` is its table alone, `DirectCodec` no representation at all. All have
``latent_width`` and ``act(obs, latent_action, cond=None) -> (choice, params)``, for any leading dimensions.

Sizes: K choices, P parameters (padded), S observations, C further conditions, d1 embedding, d2 latent. Parameters are
scaled to [-1, 1]; ``param_mask`` bool [K, P] is False for those that a choice does not have, which are 0.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from suite.modules.gaussian import reparameterise
from suite.modules.hybrid_networks import ParamSlots
from suite.modules.normalizer import RunningMoments

LOG_STD = -4.0, 15.0  # limits of the posterior's log standard deviation
FLOOR = 1e-6  # of half the width of the latent bounds

Fusion = Literal["multiply", "concat"]
Head = Literal["cascaded", "parallel"]


class DirectCodec(nn.Module):
    """No representation: a latent action is one value per choice, and after them all parameters of all choices.

    The highest value chooses (the lowest index on ties), with the parameters that stand in its own slice, as in
    parameterised-action DDPG (Hausknecht and Stone, ICLR 2016).
    """

    def __init__(self, param_mask: Tensor):
        super().__init__()
        self.choices, self.slots = len(param_mask), ParamSlots(param_mask)
        self.latent_width = self.choices + self.slots.width

    def act(self, obs: Tensor, latent_action: Tensor, cond: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Choice int64 [...] and parameters [..., P], 0 where it has none; the observation is not read."""
        choice = latent_action[..., :self.choices].argmax(-1)
        return choice, self.slots(choice, latent_action[..., self.choices:])


class EmbeddingCodec(nn.Module):
    """A fixed random table of embeddings for the choices; the parameters follow in the latent action as they are.

    A latent action is [e, x], of widths d1 and P. Its choice is the nearest row of tanh(table).
    """

    def __init__(self, param_mask: Tensor, *, embed_dim: int = 6):
        super().__init__()
        if embed_dim < 1:
            raise ValueError(f"embed_dim must be at least 1, got {embed_dim}")
        self.embed_dim, self.latent_width = embed_dim, embed_dim + param_mask.shape[-1]
        self.embeddings = nn.Parameter(2 * torch.rand(len(param_mask), embed_dim) - 1, requires_grad=False)
        self.padded = not bool(param_mask.all())
        self.register_buffer("mask", param_mask.clone(), persistent=False)

    def embed(self, choice: Tensor) -> Tensor:
        """Eq. (1): tanh(table[choice]), int64 [...] -> [..., d1]."""
        return F.embedding(choice, self.embeddings).tanh()

    @torch.no_grad()
    def distances(self, e: Tensor) -> Tensor:
        """Euclidean distances [..., K] of e [..., d1] to all embeddings.

        Differences are squared, none of |e|^2 - 2 e E + |E|^2, where cancellation would change ties.
        """
        flat = torch.cdist(e.reshape(-1, self.embed_dim), self.embeddings.tanh(),
                           compute_mode="donot_use_mm_for_euclid_dist")
        return flat.view(*e.shape[:-1], len(self.embeddings))

    @torch.no_grad()
    def choose(self, e: Tensor) -> Tensor:
        """Eq. (7): the nearest embedding of e [..., d1], int64 [...]; the lowest index on ties."""
        return self.distances(e).argmin(-1)

    def masked(self, choice: Tensor, params: Tensor) -> Tensor:
        """Parameters [..., P] with zeros where the choice has none."""
        return params * self.mask[choice] if self.padded else params

    def act(self, obs: Tensor, latent_action: Tensor, cond: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Choice int64 [...] and parameters [..., P], 0 where it has none; the observation is not read."""
        choice = self.choose(latent_action[..., :self.embed_dim])
        return choice, self.masked(choice, latent_action[..., self.embed_dim:])


class ActionCodec(EmbeddingCodec):
    """HyAR's representation: trainable embeddings, and a VAE of the parameters given observation and embedding.

    A latent action is [e, z_p], of widths d1 and d2: e chooses (eq. 7), and the decoder makes parameters of z, which is
    z_p moved from [-1, 1] to the range ``low`` .. ``high`` that data cover (eq. 9). The decoder also predicts the
    residual, by which the observation will change.

    Args:
        param_mask: bool [K, P]. obs_dim: S. embed_dim: d1. latent_dim: d2. num_cells: width h of every layer.
        residual: whether to predict residuals.
        cond_dim: C, width of ``cond``, which all methods then want, and which is read like a part of the observation.
        fusion: of observation and parameters (or latent), ``multiply`` or ``concat``.
        head: ``cascaded``: the residual's own layer follows the last one of the parameters; ``parallel``: it is beside
            it, after the layer before.
        embed_bounds: a policy's e in [-1, 1] covers the range of the embeddings in each dimension, as z_p covers that
            of the latents; else it is a place among the embeddings as it is, whose outer part is the outermost's.
        normalize_residual: residuals are divided by their running standard deviations, see `residual_of`, and
            predicted without the tanh, which could not reach beyond one of them.

    Attributes:
        low, high: [d2], where the latent of the data lies; -1 and 1 until `set_bounds`.
        residual_error: mean squared error of the predicted residual, then; inf before.

    Raises:
        ValueError: a width below 1, an unknown word.
    """

    def __init__(self, param_mask: Tensor, obs_dim: int, *, embed_dim: int = 6, latent_dim: int = 6,
                 num_cells: int = 256, residual: bool = True, cond_dim: int = 0, fusion: Fusion = "multiply",
                 head: Head = "cascaded", normalize_residual: bool = False, embed_bounds: bool = False):
        super().__init__(param_mask, embed_dim=embed_dim)
        for name, size in {"latent_dim": latent_dim, "num_cells": num_cells, "obs_dim": obs_dim}.items():
            if size < 1:
                raise ValueError(f"{name} must be at least 1, got {size}")
        for name, word, words in (("fusion", fusion, ("multiply", "concat")), ("head", head, ("cascaded", "parallel"))):
            if word not in words:
                raise ValueError(f"{name} must be one of {list(words)}, got {word!r}")
        self.embeddings.requires_grad_(True)
        self.embed_bounds = embed_bounds
        self.latent_dim, self.latent_width, self.cond_dim = latent_dim, embed_dim + latent_dim, cond_dim
        self.multiply, self.cascaded, self.residual = fusion == "multiply", head == "cascaded", residual
        given, width, params = obs_dim + cond_dim + embed_dim, num_cells, param_mask.shape[-1]
        fused = width if self.multiply else 2 * width
        self.encoder = nn.ModuleDict({
            "given": nn.Linear(given, width), "params": nn.Linear(params, width), "first": nn.Linear(fused, width),
            "second": nn.Linear(width, width), "mean": nn.Linear(width, latent_dim),
            "log_std": nn.Linear(width, latent_dim)})
        self.decoder = nn.ModuleDict({
            "given": nn.Linear(given, width), "latent": nn.Linear(latent_dim, width), "first": nn.Linear(fused, width),
            "second": nn.Linear(width, width), "params": nn.Linear(width, params)})
        if residual:
            self.decoder["third"], self.decoder["residual"] = nn.Linear(width, width), nn.Linear(width, obs_dim)
        self.moments = RunningMoments((obs_dim,)) if residual and normalize_residual else None
        self.register_buffer("low", -torch.ones(latent_dim))
        self.register_buffer("high", torch.ones(latent_dim))
        self.register_buffer("residual_error", torch.tensor(torch.inf))

    # ------------------------------------------------------------------ encoder and decoder

    def encode(self, obs: Tensor, choice: Tensor, params: Tensor, cond: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Eq. (2): mean and standard deviation [..., d2] of the latent of obs [..., S], choice [...], params [..., P].

        Parameters that the choice does not have are read as 0.
        """
        mean, log_std = self._encoded(self._given(obs, choice, cond), self.masked(choice, params))
        return mean, log_std.exp()

    def decode(self, obs: Tensor, choice: Tensor, z: Tensor, cond: Tensor | None = None
               ) -> tuple[Tensor, Tensor | None]:
        """Eq. (4) and (5): parameters [..., P] in [-1, 1], and the predicted residual [..., S] (None without one).

        ``z`` [..., d2] is a latent, not what a policy gives (`to_latent`). Nothing is masked: the loss wants zeros of
        the network where a choice has no parameters; `act` masks.
        """
        return self._decoded(self._given(obs, choice, cond), z)

    def reconstruct(self, obs: Tensor, choice: Tensor, params: Tensor, noise: Tensor | None = None,
                    cond: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
        """Eq. (2)-(5) at once: mean and log standard deviation, then what `decode` makes of z = mean + std * noise.

        ``noise`` [..., d2] is drawn if it is not given.
        """
        given = self._given(obs, choice, cond)
        mean, log_std = self._encoded(given, self.masked(choice, params))
        z = reparameterise(mean, log_std, torch.randn_like(mean) if noise is None else noise)
        return mean, log_std, *self._decoded(given, z)

    def residual_of(self, obs: Tensor, next_obs: Tensor) -> Tensor:
        """What the residual is to be, [..., S]: next_obs - obs, divided by running standard deviations if so asked."""
        change = next_obs - obs
        return change if self.moments is None else change / (self.moments.var.sqrt() + 1e-8)

    def _given(self, obs: Tensor, choice: Tensor, cond: Tensor | None) -> Tensor:
        if (0 if cond is None else cond.shape[-1]) != self.cond_dim:
            raise ValueError(f"the codec was built for a condition of width {self.cond_dim}, got "
                             f"{None if cond is None else tuple(cond.shape)}")
        return torch.cat([obs, *([] if cond is None else [cond]), self.embed(choice)], -1)

    def _fused(self, given: Tensor, other: Tensor) -> Tensor:
        given, other = given.relu_(), other.relu_()
        return given * other if self.multiply else torch.cat([given, other], -1)

    def _encoded(self, given: Tensor, params: Tensor) -> tuple[Tensor, Tensor]:
        layers = self.encoder
        u = self._fused(layers["given"](given), layers["params"](params))
        u = layers["second"](layers["first"](u).relu_()).relu_()
        return layers["mean"](u), layers["log_std"](u).clamp(*LOG_STD)

    def _trunk(self, given: Tensor, z: Tensor) -> tuple[Tensor, Tensor]:
        layers = self.decoder
        first = layers["first"](self._fused(layers["given"](given), layers["latent"](z))).relu_()
        return first, layers["second"](first).relu_()

    def _decoded(self, given: Tensor, z: Tensor) -> tuple[Tensor, Tensor | None]:
        first, second = self._trunk(given, z)
        params = self.decoder["params"](second).tanh()
        if not self.residual:
            return params, None
        residual = self.decoder["residual"](self.decoder["third"](second if self.cascaded else first).relu_())
        return params, residual if self.moments is not None else residual.tanh()

    # ------------------------------------------------------------------ what the policy gives

    @torch.no_grad()
    def act(self, obs: Tensor, latent_action: Tensor, cond: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Choice int64 [...] and parameters [..., P], 0 where it has none, of obs [..., S] and [..., d1 + d2]."""
        e, z = latent_action.split([self.embed_dim, self.latent_dim], -1)
        choice = self.choose(e)
        _, hidden = self._trunk(self._given(obs, choice, cond), self.to_latent(z))
        return choice, self.masked(choice, self.decoder["params"](hidden).tanh())

    @torch.no_grad()
    def latent_of(self, obs: Tensor, choice: Tensor, params: Tensor, cond: Tensor | None = None) -> Tensor:
        """The latent action [..., d1 + d2] of an action: its embedding and posterior mean, clipped to [-1, 1]."""
        mean, _ = self.encode(obs, choice, params, cond)
        return torch.cat([self.place(choice), self.to_policy(mean)], -1).clamp(-1, 1)

    @torch.no_grad()
    def choose(self, e: Tensor) -> Tensor:
        """Eq. (7) for what a policy gives [..., d1], see ``embed_bounds``."""
        if self.embed_bounds:
            half, mid = self._embedding_range()
            e = e * half + mid
        return super().choose(e)

    @torch.no_grad()
    def place(self, choice: Tensor) -> Tensor:
        """What a policy would have given for the middle of a choice, int64 [...] -> [..., d1]."""
        if not self.embed_bounds:
            return self.embed(choice)
        half, mid = self._embedding_range()
        return (self.embed(choice) - mid) / half

    def _embedding_range(self) -> tuple[Tensor, Tensor]:
        low, high = self.embeddings.tanh().aminmax(dim=0)
        return ((high - low) / 2).clamp_min(FLOOR), (high + low) / 2

    def to_latent(self, z_p: Tensor) -> Tensor:
        """Eq. (9): what a policy gives, [..., d2] in [-1, 1], as a latent."""
        half, mid = self._range()
        return z_p * half + mid

    def to_policy(self, z: Tensor) -> Tensor:
        """Eq. (9): a latent [..., d2] as what a policy would have given; beyond [-1, 1] out of the bounds."""
        half, mid = self._range()
        return (z - mid) / half

    def _range(self) -> tuple[Tensor, Tensor]:
        half = (self.high - self.low) / 2
        return half.clamp_min(FLOOR), self.high - half

    @torch.no_grad()
    def set_bounds(self, z: Tensor, residual_error: Tensor | float, *, range_percent: float = 96.0) -> None:
        """Eq. (8): the bounds are where the middle ``range_percent`` of z [n, d2] lie; and take note of the error.

        They are order statistics: int(r n / 100) values are left out at either end, r = (100 - range_percent) / 2.
        """
        if not 0 < range_percent <= 100:
            raise ValueError(f"range_percent must lie in (0, 100], got {range_percent}")
        if len(z) < 2:
            raise ValueError(f"bounds need at least 2 latents, got {len(z)}")
        ordered = z.sort(0).values
        border = int((100 - range_percent) / 2 * len(z) / 100 + 1e-9)  # 1e-9: 27 and not 26.999...
        self.low.copy_(ordered[border])
        self.high.copy_(ordered[len(z) - 1 - border])
        self.residual_error.fill_(residual_error)


class CodecAct(nn.Module):
    """``act`` of a codec as a policy's last module; its condition is the one-hot of one of ``agents``, or none (0)."""

    def __init__(self, codec: nn.Module, agents: int = 0):
        super().__init__()
        self.codec = codec
        self.register_buffer("ids", torch.eye(agents) if agents else None, persistent=False)

    def forward(self, obs: Tensor, latent_action: Tensor) -> tuple[Tensor, Tensor]:
        """[..., A, S] and [..., A, d1 + d2] -> choice [..., A] and parameters [..., A, P]."""
        cond = None if self.ids is None else self.ids.expand(*obs.shape[:-1], -1)
        return self.codec.act(obs, latent_action, cond)


class CodecAdam(torch.optim.Adam):
    """Adam for a codec, whose table of embeddings is a second parameter group if its rate is another.

    Args:
        params: among them the ``table``. lr, lr_table: rates of all others and of the table.
        rebuilt: forget moments and step count before every step, as HyAR's published program does by building a new
            optimiser: bias correction then makes each step lr g / (|g| + eps).
        sparse_table: rows of the table with zero gradient keep place and moments, as with SparseAdam; else their
            momentum moves them.
    """

    def __init__(self, params: Iterable[nn.Parameter], *, table: nn.Parameter, lr: float, lr_table: float,
                 rebuilt: bool = False, sparse_table: bool = False):
        params = list(params)
        apart = [{"params": [p for p in params if p is not table]}, {"params": [table], "lr": lr_table}]
        super().__init__(params if lr_table == lr else apart, lr=lr, fused=True)
        self.table, self.rebuilt, self.sparse_table = table, rebuilt, sparse_table

    @torch.no_grad()
    def step(self, closure=None):
        """One step."""
        if self.rebuilt:
            self.state.clear()
        if not self.sparse_table:
            return super().step(closure)
        state = self.state[self.table]
        before = self.table.clone(), *(state[name].clone() if name in state else torch.zeros_like(self.table)
                                       for name in ("exp_avg", "exp_avg_sq"))
        out = super().step(closure)
        absent = (self.table.grad == 0).all(-1, keepdim=True)
        for now, old in zip((self.table, state["exp_avg"], state["exp_avg_sq"]), before, strict=True):
            now.copy_(torch.where(absent, old, now))
        return out
