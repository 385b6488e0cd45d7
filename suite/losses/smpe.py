"""SMPE2: state modelling with variational beliefs, AM filters, a filtered critic, and adversarial exploration.

Kontogiannis et al., "Enhancing Cooperative Multi-Agent Reinforcement Learning with State Modelling and Adversarial
Exploration", ICML 2025, arXiv 2505.05262. The published program and the printed equations differ; every difference is
an option here, and three presets bundle them: ``official`` (the program), ``paper`` (the equations), ``fixed``.
"""

from __future__ import annotations

import copy
from collections.abc import Collection, Iterator, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from tensordict import NestedKey, TensorDict, TensorDictBase
from tensordict.nn import TensorDictModule
from torch import Tensor, nn

from suite import distributed
from suite.data import DataSource, Replay
from suite.latent_probes import probe_latents
from suite.latent_use import latent_sensitivity
from suite.losses.common import Learner, Loss, refuse_unread
from suite.losses.ppo import ValueLoss
from suite.losses.returns import Returns
from suite.losses.smpe_options import (
    PRESETS,
    READ_BY_PARTS,
    Bonus,
    BonusBelief,
    FilteredTarget,
    NormLoss,
    Preset,
    check_options,
)
from suite.modules.belief_loss import belief_loss
from suite.modules.beliefs import (
    AMFilter,
    BeliefDecoder,
    BeliefEncoder,
    BeliefMean,
    FilteredCritic,
    ObservationScaler,
    Others,
)
from suite.modules.normalizer import RunningMoments
from suite.modules.simhash import SimHash
from suite.optimizers import FlatRMSprop
from suite.specs import GROUP, OBSERVATION, Specs
from suite.update import Update

BELIEF = (GROUP, "belief")  # [N, T, A, k], the mean
FILTERED = tuple((GROUP, f"filtered_{name}") for name in ("state_value", "value_target", "advantage"))

READY = 25  # minibatches that are made ready at once


class SMPELoss(Loss):
    """Beliefs z ~ q(z | o) about the others' observations, reconstructed where the AM filter says they matter.

    L = rec_coef L_rec + kl_coef L_KL + norm_coef L_norm, each summed over agents, and over ``encode_rows`` rows
    (minibatches of another size are rescaled to that number):

    - L_rec = sum (w * decoder(z) - w~ * y)^2 with z sampled, w the filter, w~ its slow copy, y the others' standardised
      observations; constants: w~, y. With ``filters`` False: sum (decoder(z) - y)^2.
    - L_KL = sum (mu^2 + sigma^2) / 2 - ln sigma - 1/2.
    - L_norm: ``parameters``: sum of the Euclidean norms of the filter's tensors; ``output``: -|w|^2, mean over rows.

    It trains early in an iteration, every ``encode_every`` episodes, on its own memory of observations. A second
    update trains filter and filtered critic on L^w_critic = mean (G^w - V_k(w * s))^2 with the recipe's data. The mean
    belief is a feature of the actor alone; no policy gradient reaches it. The reward term ``novelty`` is
    1 / sqrt(visits of the belief's hash code): a new observation is a novelty for its agent and a target that the
    others cannot reconstruct yet. Episodes are counted as ``horizon`` frames each, whatever the number of environments.

    Args:
        preset: ``official``, ``paper`` or ``fixed``: values of the options below whose default is None.
        latent_dim: size k of the belief. encode_every: episodes between two trainings, of ``encode_steps`` steps with
            ``encode_rows`` rows each (more rows if one batch brings several trainings); memory: episodes to draw from.
        lr, lr_filter: RMSprop's rates of encoder and decoder, and of the filter.
        filters, filter_layers, clip_min, clip_max: the AM filter; see `AMFilter`.
        filter_every: reconstruction moves the filter in every that many of the iterations that train; 0: never.
        copy_every: episodes between two copies of the filter to its slow copy.
        filtered_critic: train the filter by L^w_critic too. train_filtered_critic: False leaves V_k at its random
            weights. filtered_target: bootstrap from V_k's ``own`` target, or from the ``central`` critic's frozen
            initial weights. lr_filtered_critic: the filter's rate for this loss, with an optimiser of its own; 0 or
            less, or None in ``official``: the one of the reconstruction.
        norm_loss: ``parameters``, ``output`` or ``none``.
        novelty, observation_novelty: weights of the reward terms; 0 and 0 switch counting off.
        bonus_belief: hash a ``sample`` of the belief, or its ``mean``. bonus: ``rsqrt`` or ``inverse`` of the count.
        use_belief: False keeps the belief from the actor. clip_inputs: limit of standardised observations; 0: none.
        reencode: see `Loss`. mask_padding: leave padded steps out of statistics and counts, and give them no
            weight in the loss.

    Raises:
        ValueError: a single agent, a task without horizon, an unknown word, a number out of range.
    """

    def __init__(self, specs: Specs, *, preset: Preset = "fixed", latent_dim: int = 32, rec_coef: float = 0.1,
                 kl_coef: float = 0.1, norm_coef: float = 0.5, lr: float = 5e-4, lr_filter: float = 5e-4,
                 encode_every: int = 80, encode_steps: int = 225, encode_rows: int = 32, memory: int = 500,
                 filters: bool = True, filter_layers: int = 1, clip_min: float = 0.3, clip_max: float = 1.0,
                 filter_every: int = 1, copy_every: int = 2000, filtered_critic: bool = True,
                 train_filtered_critic: bool | None = None, filtered_target: FilteredTarget | None = None,
                 lr_filtered_critic: float | None = None, norm_loss: NormLoss | None = None, novelty: float = 0.1,
                 observation_novelty: float = 0.0, bonus_belief: BonusBelief | None = None, bonus: Bonus = "rsqrt",
                 use_belief: bool = True, clip_inputs: float | None = None, reencode: bool | None = None,
                 mask_padding: bool | None = None):
        chosen = {name: value for name, value in locals().items() if name in self.option_names()}
        if preset not in PRESETS:
            raise ValueError(f"unknown preset {preset!r} of loss 'smpe'; choose from {sorted(PRESETS)}")
        options = {name: value if chosen[name] is None else chosen[name] for name, value in PRESETS[preset].items()}
        check_options(specs, chosen | options)
        super().__init__([OBSERVATION, *([specs.alive] if specs.alive and options["mask_padding"] else [])])
        self.specs, self.mask = specs, specs.alive if options["mask_padding"] else None
        self.rec_coef, self.kl_coef, self.norm_coef, self.norm_loss = rec_coef, kl_coef, norm_coef, options["norm_loss"]
        self.lr, self.lr_filter, self.lr_filtered_critic = lr, lr_filter, options["lr_filtered_critic"] or 0.0
        self.encode_every, self.copy_every = encode_every * specs.horizon, copy_every * specs.horizon
        self.encode_steps, self.encode_rows, self.memory = encode_steps, encode_rows, memory * specs.horizon
        self.filter_every, self.filters, self.filtered_critic = filter_every, filters, filters and filtered_critic
        self.latent_dim = latent_dim
        self.train_filtered_critic, self.filtered_target = options["train_filtered_critic"], options["filtered_target"]
        self.sampled_bonus, self.bonus = options["bonus_belief"] == "sample", bonus
        self.frames = self.calls = self.due = 0
        self.train_filter = True

        n, o = specs.n_agents, specs.obs_dim
        self.others = Others(n, o)
        self.scaler, self.joint_moments = ObservationScaler(o, options["clip_inputs"] or None), RunningMoments((n, o))
        self.encoder, self.decoder = BeliefEncoder(n, o, latent_dim), BeliefDecoder(n, o, latent_dim)
        self.am_filter = self.slow_filter = None
        if filters:
            self.am_filter = AMFilter(n, o, layers=filter_layers, low=clip_min, high=clip_max,
                                      spare=self.norm_loss == "parameters")
            self.slow_filter = copy.deepcopy(self.am_filter).requires_grad_(False)
        self.visits = SimHash(n, latent_dim) if novelty else None
        self.observation_visits = SimHash(n, o) if observation_novelty else None
        self.reward_weights = {name: weight for name, weight in
                               (("novelty", novelty), ("observation_novelty", observation_novelty)) if weight}
        acting = TensorDictModule(BeliefMean(self.scaler, self.encoder), in_keys=[OBSERVATION], out_keys=[BELIEF])
        if use_belief:
            self.encoders, self.features, self.reencode = [acting], {BELIEF: latent_dim}, options["reencode"]
        self.critic_features = {}
        self.__dict__["actor"] = None  # set by `estimators`
        self.filtered: TensorDictModule | None = None  # built by `estimators`

    # ------------------------------------------------------------------ state modelling

    def forward(self, minibatch: TensorDictBase) -> TensorDictBase:
        """``loss_rec``, ``loss_kl``, ``loss_norm``; the plain reconstruction error, KL per unit and mean filter."""
        ready = self.ready(minibatch.reshape(-1))[0] if minibatch.get("target", None) is None else minibatch
        sums = belief_loss(ready["x"], ready["target"], ready["noise"], ready.get("inside"), ready["factors"],
                           encoder=self.encoder, decoder=self.decoder, slow=ready.get("slow"),
                           am_filter=self.am_filter if self.filters else None, train_filter=self.train_filter)
        out = {"loss_rec": sums.rec, "loss_kl": sums.kl, "reconstruction": sums.plain, "kl_per_unit": sums.divergence}
        if self.filters:
            out["filter"] = sums.filter
            if self.norm_coef and self.norm_loss != "none" and self.train_filter:
                out["loss_norm"] = (sums.power if self.norm_loss == "output" else
                                    self.am_filter.parameter_norm() * self.norm_coef)
        return TensorDict(out)

    @torch.no_grad()
    def ready(self, frames: TensorDictBase, rows: int | None = None) -> TensorDictBase:
        """All that is constant in minibatches of ``rows`` (None: one of all) frames, [S, A, rows, size], agents first.

        ``x`` and ``target``, standardised observations and those of the others; ``noise``; ``slow``, the slow filter;
        ``inside``, where rows count; ``factors`` [S, 5] of the sums. Many minibatches at once take a fraction of the
        time of one after the other.
        """
        observation = frames[OBSERVATION]
        x = self.scaler(observation)
        out = {"x": x, "target": self.others(self._clip(self.joint_moments(observation))),
               "noise": torch.randn_like(x.new_empty(*x.shape[:2], self.latent_dim))}
        if self.filters:
            out["slow"] = self.slow_filter(x)
        if self.mask is not None:
            out["inside"] = frames[self.mask].unsqueeze(-1).to(x.dtype)
        shape = -1, rows or len(x), self.specs.n_agents
        out = {name: value.reshape(*shape, value.shape[-1]).transpose(1, 2).contiguous() for name, value in out.items()}
        sizes = self.encode_rows, self.encode_rows, 1, 1 / self.others.slots.numel(), 1 / (shape[-1] * self.latent_dim)
        coefs = self.rec_coef, self.kl_coef, -self.norm_coef, 1, 1
        count = (out["inside"].sum((1, 2, 3)) / shape[-1]).clamp_min(1) if "inside" in out else x.new_full(
            (len(out["x"]),), shape[1])
        out["factors"] = x.new_tensor([a * b for a, b in zip(sizes, coefs, strict=True)]) / count.unsqueeze(-1)
        return TensorDict(out, out["x"].shape[:1])

    def _clip(self, x: Tensor) -> Tensor:
        return x if self.scaler.limit is None else x.clamp(-self.scaler.limit, self.scaler.limit)

    # ------------------------------------------------------------------ statistics, clocks, exploration

    def receive(self, batch: TensorDictBase) -> None:
        """Running statistics of the observations; which trainings and copies of the filter are due."""
        observation, mask = self._visited(batch)
        elements = None if mask is None else mask.unsqueeze(-1)
        self.scaler.moments.update(observation, elements)
        self.joint_moments.update(observation, elements)
        before, self.frames = self.frames, self.frames + batch.numel() * distributed.world_size()
        self.due = self.frames // self.encode_every - before // self.encode_every
        self.calls += self.due > 0
        self.train_filter = bool(self.filter_every) and self.calls % self.filter_every == 0
        if self.filters and self.frames // self.copy_every > before // self.copy_every:
            self.slow_filter.load_state_dict(self.am_filter.state_dict())

    def _visited(self, batch: TensorDictBase) -> tuple[Tensor, Tensor | None]:
        """Observations that count, and which of them do; with padding counted, each row's last one is too."""
        observation = batch[OBSERVATION]
        if self.specs.alive is None:
            return observation, None
        if self.mask is None:
            return torch.cat([observation, batch["next", *OBSERVATION][:, -1:]], 1), None
        return observation, batch[self.mask]

    @torch.no_grad()
    def reward_terms(self, batch: TensorDictBase) -> dict[str, Tensor]:
        """``novelty`` of the beliefs (and ``observation_novelty``): all of the batch is counted before any is paid."""
        if self.visits is None and self.observation_visits is None:
            return {}
        steps = batch.shape[1]
        observation, mask = self._visited(batch)
        x, out = self.scaler(observation), {}
        if self.visits is not None:
            z, sigma = self.encoder(x)
            if self.sampled_bonus:
                z = z + sigma * torch.randn_like(sigma.contiguous())  # other strides draw several times slower
            out["novelty"] = self._novelty(self.visits, z, mask)[:, :steps]
        if self.observation_visits is not None:
            out["observation_novelty"] = self._novelty(self.observation_visits, x, mask)[:, :steps]
        return out

    def _novelty(self, visits: SimHash, x: Tensor, mask: Tensor | None) -> Tensor:
        count = visits.count(x, mask).clamp_min(1).to(x.dtype).unsqueeze(-1)
        bonus = count.rsqrt() if self.bonus == "rsqrt" else count.reciprocal()
        return bonus if mask is None else bonus * mask.unsqueeze(-1)

    @torch.no_grad()
    def diagnose(self, batch: TensorDictBase) -> dict[str, float]:
        """What linear probes find of the others' observations (or of hidden variables) in belief and observation."""
        x = self.scaler(batch[OBSERVATION])
        found = probe_latents(batch, {"z": self.encoder(x)[0], "u": x}, self.specs)
        if self.actor is not None and BELIEF in self.actor.in_keys:
            found["policy/z_sensitivity"] = latent_sensitivity(self.actor, batch, BELIEF, alive=self.specs.alive)
        return found

    # ------------------------------------------------------------------ filtered critic and updates

    def estimators(self, learner: Learner) -> list[Returns]:
        """Returns of the filtered critic V_k, which has the recipe's critic layers and sees w * s."""
        self.__dict__["actor"] = learner.actor
        if not self.filtered_critic:
            return []
        joint = replace(self.specs, obs_dim=self.specs.n_agents * self.specs.obs_dim, state_dim=None)
        own = learner.make_critic(joint, {}, centralized=False, recurrent_dim=0).module
        target = copy.deepcopy(own).requires_grad_(False)
        if self.filtered_target == "central":
            try:
                # what scales its inputs apart: V_k's are standardised already
                target.load_state_dict(dict(learner.critic.module.named_parameters()))
            except RuntimeError as error:
                raise ValueError("filtered_target 'central' needs a feed-forward central critic of all observations "
                                 "(mappo or maa2c, a task without a state of its own): give filtered_target=own"
                                 ) from error
        if not self.train_filtered_critic:
            own.requires_grad_(False)
        self.filtered = self._filtered(own)
        frozen = {"target_tau": 0.0} if self.filtered_target == "central" else {}
        return [learner.make_returns(self.filtered, normalize="none", target=self._filtered(target), keys=FILTERED,
                                     **frozen)]

    def _filtered(self, critic: nn.Module) -> TensorDictModule:
        network = FilteredCritic(self.scaler, self.am_filter, self.others, critic)
        return TensorDictModule(network, in_keys=[OBSERVATION], out_keys=[FILTERED[0]])

    def networks(self, part: str) -> dict[str, list[nn.Parameter]]:
        """Encoder and decoder under ``part``; the filter apart, if anything distinguishes its optimiser."""
        codec = [*self.encoder.parameters(), *self.decoder.parameters()]
        gate = list(self.am_filter.parameters()) if self.filters else []
        lent = self.filtered_critic and not self.lr_filtered_critic > 0  # to the other update
        if self.lr == self.lr_filter and self.filter_every == 1 and not lent:
            return {part: codec + gate}
        return {part: codec} | ({"filter": gate} if gate else {})

    def updates(self, name: str, data: DataSource, **optimisation: Any) -> list[Update]:
        """State modelling on the loss's own memory, early and when due; then filter and filtered critic on ``data``."""
        rmsprop = partial(FlatRMSprop, alpha=0.99, eps=1e-8)
        store = Replay(capacity=self.memory, steps=self.encode_steps, size=self.encode_rows, warmup=self.encode_rows,
                       keys=self.in_keys, device=next(self.parameters()).device)
        rates = {part: rmsprop(params, lr=self.lr_filter if part == "filter" else self.lr)
                 for part, params in self.networks("codec").items()}
        encode = Update(name, {"codec": self}, _WhenDue(store, self), early=True,
                        **optimisation | {"optimizer": rates, "max_grad_norm": None})
        if not self.filtered_critic:
            return [encode]
        if self.filtered is None:
            raise ValueError("the filtered critic of loss 'smpe' needs an on-policy algorithm (mappo, ippo, maa2c, "
                             "ia2c); for this one give --loss-options filtered_critic=False")
        rates = {"critic": optimisation["optimizer"],
                 "filter": partial(rmsprop, lr=self.lr_filtered_critic) if self.lr_filtered_critic > 0 else
                 rates["filter"]}
        clipping = {"critic": optimisation["max_grad_norm"], "filter": None}
        loss = FilteredValueLoss(self.filtered, mask=self.specs.alive)
        return [encode, Update(f"{name}_critic", {"critic": loss}, data, shared={"filter"},
                               **optimisation | {"optimizer": rates, "max_grad_norm": clipping})]

    @classmethod
    def check_given(cls, options: dict[str, Any], given: Collection[str]) -> None:
        """Options of the filter, of its critic, of reward terms and of the belief are read where these are."""
        refuse_unread("smpe", READ_BY_PARTS, cls.option_defaults() | options, given)

    def plan(self, frames: int) -> list[str]:
        """Schedules that a run of that many frames never reaches."""
        horizon, out = self.specs.horizon, []
        for what, every in (("encode_every", self.encode_every), ("copy_every", self.copy_every)):
            if every > frames and (what == "encode_every" or self.filters):
                out.append(f"{what} is {every // horizon} episodes of {horizon} steps, {every} frames, but the run has "
                           f"{frames}: it never comes due")
        return out

    def get_extra_state(self) -> dict[str, int]:
        """The clocks."""
        return {"frames": self.frames, "calls": self.calls}

    def set_extra_state(self, state: dict[str, int]) -> None:
        """Put the clocks back."""
        self.frames, self.calls = state["frames"], state["calls"]


class FilteredValueLoss(ValueLoss):
    """L^w_critic = mean (G^w - V_k(w * s))^2; gradients reach V_k and, through w, the filter; the encoder none."""

    def __init__(self, critic: TensorDictModule, *, mask: NestedKey | None = None):
        super().__init__(critic, clip=None, kind="l2", mask=mask, target=FILTERED[1], old=FILTERED[0])

    def networks(self, part: str) -> dict[str, list[nn.Parameter]]:
        """V_k under ``part``, unless it is frozen, and the filter."""
        network = self.critic.module
        return {part: [p for p in network.critic.parameters() if p.requires_grad],
                "filter": list(network.am_filter.parameters())}


class _WhenDue(DataSource):
    """Samples of the loss's memory in the iterations in which a training is due; more rows if several are."""

    def __init__(self, store: Replay, loss: SMPELoss):
        self.store, self.loss = store, loss

    @property
    def owner(self) -> Replay:
        return self.store

    def __call__(self, batch: TensorDictBase, keys: Sequence[NestedKey]) -> Iterator[TensorDictBase]:
        size = self.loss.encode_rows * self.loss.due
        for frames in self.store.samples(1, self.store.steps * size) if size else ():
            for part in frames.split(READY * size):
                yield from self.loss.ready(part, size).unbind(0)
