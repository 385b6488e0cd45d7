"""HyAR: a learned representation of hybrid actions, trained beside the policy that acts in it.

Li et al., "HyAR: Addressing Discrete-Continuous Action Reinforcement Learning via Hybrid Action Representation",
ICLR 2022, arXiv 2109.05490. Where paper and published program differ, the defaults are the program's, but for two
defects of it that have their switches: ``legacy`` and ``optimizer``.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any, Literal, NamedTuple

import torch
from tensordict import NestedKey, TensorDict, TensorDictBase
from tensordict.nn import TensorDictModule
from torch import Tensor
from torch.nn.functional import mse_loss, one_hot

from suite import distributed
from suite.data import DataSource, Replay
from suite.losses.common import Loss
from suite.modules.action_codec import ActionCodec, CodecAct, CodecAdam
from suite.modules.gaussian import kl_to_unit
from suite.specs import CHOICE, GROUP, LATENT_ACTION, OBSERVATION, PARAMS, Specs
from suite.update import Update

NEXT_OBSERVATION = ("next", *OBSERVATION)
AGENT = (GROUP, "number")  # int64 [rows], of the loss's memory, in which agents are rows
NOISE = "noise"  # [..., d2], optional in `HyARLoss.forward`: the normal draws

PART = 100  # minibatches that are drawn from the memory at once
RECENT, EXTRA = 10, 10  # losses that the end of the pretraining is judged by, and steps that it may add
TOLERANCE = 1e-5
ACTIVE = 0.9  # a latent dimension of smaller posterior standard deviation says something of the parameters


class Rows(NamedTuple):
    """What the loss reads of transitions: parameters are 0 where a choice has none."""

    obs: Tensor
    choice: Tensor
    params: Tensor
    residual: Tensor
    cond: Tensor | None


class HyARLoss(Loss):
    """Trains an `ActionCodec` on transitions: latents that reconstruct parameters and predict what actions change.

    L = residual_coef mean (d~ - d)^2 + param_coef mean (x~ - x)^2 + kl_coef KL (eq. 6), with d = next observation -
    observation, x the padded parameters, and KL = -1/2 mean (1 + ln sigma^2 - mu^2 - sigma^2); all are means over rows
    and dimensions. No reward and no gradient of the policy reaches the codec.

    It trains early in an iteration, on its own memory of all transitions, each agent's a row: while ``warming``, the
    policy shall act at random; the iteration that brings ``warmup`` frames trains ``pretrain`` steps (up to 10 more,
    until the mean of the last 5 losses is no longer 1e-5 below that of the last 10) and sets the codec's bounds. From
    then on each multiple of ``refresh_every`` finished episodes, from ``refresh_after`` on, brings one step; after the
    steps of an iteration the bounds are set anew. Episodes are counted after the warm-up, over all environments.

    `relabel` corrects the latent actions of old transitions for the present codec; `decoder` is the policy's last
    module.

    Args:
        embed_dim, latent_dim, num_cells, fusion, head, normalize_residual, embed_bounds: see `ActionCodec`.
        residual_coef, param_coef, kl_coef: weights; residual_coef 0 builds no residual head.
        agent_id: condition the codec on a one-hot of the agent.
        lr: Adam's rate. lr_embeddings: that of the table; None: the same.
        optimizer: ``adam``, one for the loss's life; ``rebuilt``: its state is forgotten before every step, as in the
            published program, which makes each step lr times the gradient's sign.
        sparse_table: rows of the table that a minibatch does not hold keep place and moments (as with SparseAdam);
            else momentum moves them.
        batch: rows of a minibatch. memory: rows to draw from. warmup: frames of random actions, of all processes.
        pretrain, refresh_every, refresh_after: see above.
        bounds_rows: rows, drawn from the memory, that `calibrate` reads. range_percent: share of their latents that
            lies within the bounds.
        relabel: what `relabel` corrects: ``both``, only the ``discrete`` part, or ``none``.
        relabel_threshold: a stored latent is kept while its squared error is below that many times the mean one.
        relabel_noise, relabel_clip: standard deviation and limit of the noise on a replaced embedding.
        legacy: the published test decodes what the policy gave, without moving it into the bounds.

    Raises:
        ValueError: a task without hybrid actions, or with agents that leave early; an unknown word; a number out of
            range.
    """

    def __init__(self, specs: Specs, *, embed_dim: int = 6, latent_dim: int = 6, num_cells: int = 256,
                 fusion: Literal["multiply", "concat"] = "multiply",
                 head: Literal["cascaded", "parallel"] = "cascaded", normalize_residual: bool = False,
                 embed_bounds: bool = False,
                 residual_coef: float = 1.0, param_coef: float = 2.0, kl_coef: float = 0.5, agent_id: bool = False,
                 lr: float = 1e-4, lr_embeddings: float | None = None, optimizer: Literal["adam", "rebuilt"] = "adam",
                 sparse_table: bool = False, batch: int = 64, memory: int = 1_000_000, warmup: int = 10_000,
                 pretrain: int = 5000, refresh_every: int = 10, refresh_after: int = 1000, bounds_rows: int = 5000,
                 range_percent: float = 96.0, relabel: Literal["both", "discrete", "none"] = "both",
                 relabel_threshold: float = 5.0, relabel_noise: float = 0.1, relabel_clip: float = 0.5,
                 legacy: bool = False):
        _check(specs, {name: value for name, value in locals().items() if name in self.option_names()})
        super().__init__([OBSERVATION, CHOICE, PARAMS, NEXT_OBSERVATION])
        self.n_agents, self.agent_id = specs.n_agents, agent_id
        self.residual_coef, self.param_coef, self.kl_coef = residual_coef, param_coef, kl_coef
        self.lr, self.lr_embeddings = lr, lr if lr_embeddings is None else lr_embeddings
        self.rebuilt, self.sparse_table = optimizer == "rebuilt", sparse_table
        self.batch, self.memory, self.warmup, self.pretrain = batch, memory, warmup, pretrain
        self.refresh_every, self.refresh_after = refresh_every, refresh_after
        self.bounds_rows, self.range_percent, self.what, self.legacy = bounds_rows, range_percent, relabel, legacy
        self.threshold, self.noise, self.clip = relabel_threshold, relabel_noise, relabel_clip
        self.frames = self.episodes = self.due = 0
        self.random_batch, self.complete = True, False  # of the latest batch: see `receive`
        self.noted: dict[str, Tensor] = {}
        self.last_total: Tensor | None = None  # of the latest minibatch
        self.codec = ActionCodec(specs.param_mask, specs.obs_dim, embed_dim=embed_dim, latent_dim=latent_dim,
                                 num_cells=num_cells, residual=residual_coef > 0, fusion=fusion, head=head,
                                 cond_dim=specs.n_agents if agent_id else 0, normalize_residual=normalize_residual,
                                 embed_bounds=embed_bounds)
        self.register_buffer("warming", torch.tensor(True))
        self.register_buffer("start", self.codec.embeddings.detach().tanh())

    # ------------------------------------------------------------------ the loss

    def forward(self, minibatch: TensorDictBase) -> TensorDictBase:
        """``loss_residual``, ``loss_params``, ``loss_kl``, the same without weights, and the active latent dimensions.

        ``noise`` [..., d2] is drawn unless the minibatch brings it.
        """
        rows = self.read(minibatch)
        mean, log_std, params, residual = self.codec.reconstruct(rows.obs, rows.choice, rows.params,
                                                                 minibatch.get(NOISE, None), rows.cond)
        parts = {"params": (self.param_coef, mse_loss(params, rows.params)),
                 "kl": (self.kl_coef, kl_to_unit(mean, log_std).mean())}
        if residual is not None:
            parts["residual"] = self.residual_coef, mse_loss(residual, rows.residual)
        out = {f"loss_{name}": weight * value for name, (weight, value) in parts.items()}
        self.last_total = sum(value.detach() for value in out.values())
        return TensorDict(out | {name: value.detach() for name, (_, value) in parts.items()}
                          | {"active_dims": _active(log_std.detach().exp())})

    def read(self, td: TensorDictBase) -> Rows:
        """Of transitions with agents as the last dimension, or as rows of the loss's memory."""
        obs, choice = td[OBSERVATION], td[CHOICE]
        cond = None
        if self.agent_id:
            number = td.get(AGENT, None)
            number = torch.arange(self.n_agents, device=obs.device).expand(obs.shape[:-1]) if number is None else number
            cond = one_hot(number, self.n_agents).to(obs.dtype)
        return Rows(obs, choice, self.codec.masked(choice, td[PARAMS]),
                    self.codec.residual_of(obs, td[NEXT_OBSERVATION]), cond)

    @torch.no_grad()
    def calibrate(self, transitions: TensorDictBase, noise: Tensor | None = None) -> None:
        """Set the codec's bounds (eq. 8) and mean residual error from transitions [n].

        ``noise`` [2, n, d2]: of the latents that predict residuals, and of those whose order statistics are the bounds.
        """
        rows, codec = self.read(transitions), self.codec
        mean, std = codec.encode(rows.obs, rows.choice, rows.params, rows.cond)
        first, second = torch.randn(2, *mean.shape, dtype=mean.dtype, device=mean.device) if noise is None else noise
        error = codec.residual_error
        if codec.residual:
            predicted = codec.decode(rows.obs, rows.choice, mean + std * first, rows.cond)[1]
            error = distributed.average((predicted - rows.residual).square().mean())
        codec.set_bounds((mean + std * second).flatten(0, -2), error, range_percent=self.range_percent)
        for bound in (codec.low, codec.high):
            bound.copy_(distributed.average(bound))
        self.noted |= {"codec/active_dims": distributed.average(_active(std)),
                       "codec/bounds_width": (codec.high - codec.low).mean()}
        if codec.residual:
            self.noted["codec/residual_error"] = codec.residual_error.clone()

    # ------------------------------------------------------------------ acting, and what has been acted

    def decoder(self) -> TensorDictModule:
        """The policy's last module: observation and latent action -> choice and parameters."""
        decoder = CodecAct(self.codec, self.n_agents if self.agent_id else 0).to(self.start.device)
        return TensorDictModule(decoder, in_keys=[OBSERVATION, LATENT_ACTION], out_keys=[CHOICE, PARAMS])

    @torch.no_grad()
    def relabel(self, minibatch: TensorDictBase, noise: tuple[Tensor, Tensor] | None = None) -> TensorDictBase:
        """A shallow copy of transitions [...] with latent actions [..., A, d1 + d2] that fit the present codec.

        Eq. (10): the stored embedding, if it still decodes to the choice, else that of the choice, with noise.
        Eq. (11), (12): the stored latent, if the residual that it predicts (with the choice's embedding) has a squared
        error below ``relabel_threshold`` times the mean error at the last calibration, else a sample of the posterior.
        Everything is clipped to [-1, 1]; many minibatches at once take a fraction of the time of one after the other.

        ``noise``: the normal draws [..., A, d1] and [..., A, d2].
        """
        out = minibatch.copy()
        if self.what == "none":
            return out
        rows, codec = self.read(minibatch), self.codec
        e, z = minibatch[LATENT_ACTION].split([codec.embed_dim, codec.latent_dim], -1)
        drawn = (torch.randn_like(e), torch.randn_like(z)) if noise is None else noise
        keep = codec.choose(e) == rows.choice
        moved = codec.place(rows.choice) + (self.noise * drawn[0]).clamp(-self.clip, self.clip)
        e = torch.where(keep.unsqueeze(-1), e, moved).clamp(-1, 1)
        self.noted["codec/keep_discrete"] = keep.float().mean()
        if self.what == "both":
            keep = self.residual_errors(rows, z) < self.threshold * codec.residual_error
            z = torch.where(keep.unsqueeze(-1), z, self._resampled(rows, drawn[1], ~keep)).clamp(-1, 1)
            self.noted["codec/keep_params"] = keep.float().mean()
        return out.set(LATENT_ACTION, torch.cat([e, z], -1))

    def residual_errors(self, rows: Rows, z_p: Tensor) -> Tensor:
        """Squared errors [...] of the residuals that the policy's z_p [..., d2] predict, means over dimensions."""
        z = z_p if self.legacy else self.codec.to_latent(z_p)
        return (self.codec.decode(rows.obs, rows.choice, z, rows.cond)[1] - rows.residual).square().mean(-1)

    def _resampled(self, rows: Rows, noise: Tensor, lost: Tensor) -> Tensor:
        """Samples of the posterior [..., d2] where latents are ``lost``; a GPU, which would wait, makes all of them."""
        at = lost if lost.device.type == "cpu" else ...
        mean, std = self.codec.encode(*(x if x is None else x[at] for x in (rows.obs, rows.choice, rows.params,
                                                                            rows.cond)))
        out = torch.zeros_like(noise)
        out[at] = self.codec.to_policy(mean + std * noise[at])
        return out

    # ------------------------------------------------------------------ clocks, updates, measurements

    @torch.no_grad()
    def receive(self, batch: TensorDictBase) -> None:
        """Count frames and finished episodes, and see what is due; after the warm-up the host waits for the count.

        Afterwards ``random_batch`` says whether the batch was collected with random actions, ``complete`` whether it
        completes the warm-up, and the buffer ``warming`` whether the next one shall be.
        """
        if self.codec.moments is not None:
            self.codec.moments.update(batch[NEXT_OBSERVATION] - batch[OBSERVATION])
        self.random_batch, self.complete, self.due = self.frames < self.warmup, False, 0
        self.frames += batch.numel() * distributed.world_size()
        if self.random_batch:
            self.complete = self.frames >= self.warmup
            self.warming.fill_(not self.complete)
            return
        before = self.episodes
        self.episodes += int(distributed.total(batch["next", "done"].sum()))
        last = max(before, self.refresh_after - 1)  # multiples up to here do not count
        self.due = max(0, self.episodes // self.refresh_every - last // self.refresh_every)

    def updates(self, name: str, data: DataSource, **optimisation: Any) -> list[Update]:
        """One early update, on the loss's own memory and with its own optimiser; no clipping."""
        store = _AgentRows(capacity=self.memory, steps=1, size=self.batch, warmup=self.batch, keys=self.in_keys,
                           device=self.start.device)
        adam = partial(CodecAdam, table=self.codec.embeddings, lr=self.lr, lr_table=self.lr_embeddings,
                       rebuilt=self.rebuilt, sparse_table=self.sparse_table)
        return [Update(name, {"codec": self}, _WhenDue(store, self), early=True,
                       **optimisation | {"optimizer": {"codec": adam}, "max_grad_norm": None})]

    def metrics(self) -> dict[str, Tensor]:
        """Of this iteration: the shares that relabelling kept; error, mean width of the bounds, active dimensions.

        The latter three if it calibrated. And how far embeddings are from where they began, on average.
        """
        noted, self.noted = self.noted, {}
        if not noted:
            return {}
        movement = (self.codec.embeddings.detach().tanh() - self.start).abs().mean()
        return {"codec/table_movement": movement, **noted}

    @torch.no_grad()
    def diagnose(self, batch: TensorDictBase) -> dict[str, float]:
        """How well the posterior's mean reconstructs this batch, and distances between embeddings.

        ``param_error``: mean absolute error of the parameters that choices have. ``residual_share``: mean squared error
        of the residual, over its variance; 1 is no better than a constant. Distances: to the nearest other, and mean.
        """
        rows, codec = self.read(batch), self.codec
        mean, _ = codec.encode(rows.obs, rows.choice, rows.params, rows.cond)
        params, residual = codec.decode(rows.obs, rows.choice, mean, rows.cond)
        mask = codec.mask[rows.choice]
        out = {"param_error": ((params - rows.params).abs() * mask).sum() / mask.sum().clamp_min(1)}
        if residual is not None:
            spread = rows.residual.flatten(0, -2).var(0, unbiased=False).mean()
            out["residual_share"] = (residual - rows.residual).square().mean() / spread.clamp_min(1e-12)
        apart = torch.pdist(codec.embeddings.tanh())
        if len(apart):
            out |= {"embedding_distance_min": apart.min(), "embedding_distance": apart.mean()}
        return {f"codec/{name}": value.item() for name, value in out.items()}

    def plan(self, frames: int) -> list[str]:
        """A warm-up that the run does not survive."""
        if self.warmup < frames:
            return []
        return [f"warmup of codec 'hyar' is {self.warmup} frames of random actions, but the run has {frames}: no "
                f"policy is trained; give it more frames, or a shorter warmup"]

    def get_extra_state(self) -> dict[str, int]:
        """The clocks."""
        return {"frames": self.frames, "episodes": self.episodes}

    def set_extra_state(self, state: dict[str, int]) -> None:
        """Put the clocks back."""
        self.frames, self.episodes = state["frames"], state["episodes"]


class _AgentRows(Replay):
    """A memory in which each agent's transition is a row, with the agent's number."""

    def extend(self, batch: TensorDictBase) -> None:
        """Append all frames of a batch [N, T], time by time."""
        frames = batch.select(*self.keys).transpose(0, 1).reshape(-1)
        count, agents = frames[OBSERVATION].shape[:2]
        rows = TensorDict({key: frames[key].flatten(0, 1) for key in self.keys}, [count * agents])
        rows[AGENT] = torch.arange(agents, device=rows[OBSERVATION].device).repeat(count)
        self.buffer.extend(rows[-self.capacity:])


class _WhenDue(DataSource):
    """Samples of the loss's memory in the iterations in which steps are due; after the last one the bounds are set."""

    def __init__(self, store: _AgentRows, loss: HyARLoss):
        self.store, self.loss = store, loss

    @property
    def owner(self) -> Replay:
        return self.store

    def __call__(self, batch: TensorDictBase, keys: Sequence[NestedKey]) -> Iterator[TensorDictBase]:
        loss = self.loss
        if loss.complete:
            yield from self.pretraining()
        elif loss.due:
            yield from self.store.samples(loss.due)
        if loss.complete or loss.due:
            loss.calibrate(next(self.store.samples(1, loss.bounds_rows)))

    def pretraining(self) -> Iterator[TensorDictBase]:
        """The host is asked for losses only after ``pretrain`` steps."""
        recent: deque[Tensor] = deque(maxlen=RECENT)
        steps = self.loss.pretrain
        for begin in range(0, steps, PART):
            for minibatch in self.store.samples(min(PART, steps - begin)):
                yield minibatch
                recent.append(self.loss.last_total.clone())
        for _ in range(EXTRA if steps else 0):
            losses = distributed.average(torch.stack([*recent]))
            if losses[-RECENT // 2:].mean() + TOLERANCE >= losses.mean():
                return
            yield from self.store.samples(1)
            recent.append(self.loss.last_total.clone())


def _active(std: Tensor) -> Tensor:
    """How many dimensions have a mean posterior standard deviation below `ACTIVE`."""
    return (std.flatten(0, -2).mean(0) < ACTIVE).sum().to(std.dtype)


def _check(specs: Specs, options: dict[str, Any]) -> None:
    if specs.param_mask is None:
        raise ValueError("codec 'hyar' represents hybrid actions, but the task's actions are "
                         f"{'discrete' if specs.discrete else 'continuous'}: choose a hybrid task, hybrid/platform ...")
    if specs.alive is not None:
        raise ValueError("codec 'hyar' does not know agents that leave early, but the task has such")
    words = {"fusion": ("multiply", "concat"), "head": ("cascaded", "parallel"), "optimizer": ("adam", "rebuilt"),
             "relabel": ("both", "discrete", "none")}
    for name, allowed in words.items():
        if options[name] not in allowed:
            raise ValueError(f"{name} of codec 'hyar' must be one of {list(allowed)}, got {options[name]!r}")
    for name in ("embed_dim", "latent_dim", "num_cells", "lr", "batch", "memory", "warmup", "refresh_every",
                 "bounds_rows", "relabel_threshold"):
        if not options[name] > 0:
            raise ValueError(f"{name} of codec 'hyar' must be positive, got {options[name]}")
    if type(options["lr_embeddings"]) not in (int, float, type(None)):
        raise ValueError(f"lr_embeddings of codec 'hyar' must be a number or None, got {options['lr_embeddings']!r}")
    for name in ("residual_coef", "param_coef", "kl_coef", "pretrain", "refresh_after", "relabel_noise", "relabel_clip",
                 "lr_embeddings"):
        if not (options[name] or 0) >= 0:
            raise ValueError(f"{name} of codec 'hyar' must not be negative, got {options[name]}")
    if options["bounds_rows"] < 2:
        raise ValueError("bounds_rows of codec 'hyar' must be at least 2: one row has no range")
    if options["legacy"] and options["relabel"] != "both":
        raise ValueError(f"legacy of codec 'hyar' is about relabelled latents: relabel {options['relabel']!r} has none")
    if options["normalize_residual"] and not options["residual_coef"]:
        raise ValueError("normalize_residual of codec 'hyar' is about the residual, whose residual_coef is 0")
    if not 0 < options["range_percent"] <= 100:
        raise ValueError(f"range_percent of codec 'hyar' must lie in (0, 100], got {options['range_percent']}")
    if options["residual_coef"] == 0 and options["relabel"] == "both":
        raise ValueError("without a residual head (residual_coef 0) codec 'hyar' cannot tell which latents to relabel: "
                         "give relabel=discrete or relabel=none")
    rows = options["warmup"] * specs.n_agents // distributed.world_size()
    for name in ("batch", "bounds_rows"):
        if options[name] > rows:
            raise ValueError(f"{name} of codec 'hyar' is {options[name]}, but the warm-up brings {rows} rows only")
    if options["memory"] < rows:
        raise ValueError(f"memory of codec 'hyar' holds {options['memory']} rows, fewer than the {rows} of the warm-up")
