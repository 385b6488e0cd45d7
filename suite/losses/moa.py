"""Model of other agents, world model, and a teacher-aligned CVAE whose latent feeds actor and critic.

L_WM = moa_coef L_moa + obs_coef L_obs + reward_coef L_reward + cvae_coef (L_rec + alpha L_KL), and the teacher's own
loss. PPO's value V(s, z) and policy pi(a | o, z) read the latent as it acted.
"""

from __future__ import annotations

import copy
from functools import partial
from typing import Any

import torch
from tensordict import TensorDict, TensorDictBase
from tensordict.nn import TensorDictModule
from torch import Tensor, nn

from suite import distributed
from suite.data import Chunks, DataSource, FirstRows, Minibatches, PreviousBatches, Replay, Sequences
from suite.losses.action_model import ActionModelLoss
from suite.losses.common import Learner, Loss
from suite.losses.curiosity import Curiosity, Scale
from suite.losses.cvae import CVAELoss, Target
from suite.losses.imagination import DecentralisedDyna, Dyna, Imagination, Kind, ValueExpansion, check_learner
from suite.losses.moa_metrics import measure
from suite.losses.moa_options import CONTROLS, ActorInputs, MemoryKind, check_options
from suite.losses.world_model import TASK_REWARD, WorldModelLoss
from suite.modules.functional import Divergence
from suite.modules.gaussian import Direction
from suite.modules.normalizer import RunningMoments
from suite.modules.policy_input import PolicyInput
from suite.modules.simulator import Simulator
from suite.modules.state_model import LATENT, PAST, ActionInputs, OthersActions, PolicyLatent, StateModel
from suite.specs import LOGITS, OBSERVATION, PRIVILEGED, REWARD, Specs
from suite.update import Update


class MOALoss(Loss):
    """The whole family as one state-modelling loss; see the module's text and the three losses it is made of.

    The latent is a feature of actor and critic, stored when it acts (``reencode`` False), so PPO's ratio is exact. It
    trains after PPO on the same batch, with one Adam and one clipping per network; statistics move afterwards.

    Args:
        latent_dim: size of z. num_cells, depth: hidden layers of every network.
        moa_coef, obs_coef, reward_coef, cvae_coef, teacher_coef: weights of the losses.
        alpha, alpha_warmup: weight of the KL, reached linearly after that share of the run.
        beta_teacher, teacher_action_coef: see `CVAELoss`. kl_direction, student_pull, teacher_pull, free_bits_dim,
            free_nats: of the KL; the pulls are its two weights.
        rec_target: ``x``, ``y`` or ``xy``. use_teacher: False aligns to N(0, 1).
        x_parts: blocks of the features, joined by "+": obs, moa, wm_residual.
        actor_inputs: ``obs``, ``obs+z``, ``obs+z+moa``, ``obs+moa``; controls without any model: ``obs+past`` (what the
            models read, as it is) and ``obs+hidden`` (the task's hidden variables: an oracle).
        policy_latent: ``mean``, ``sample`` or ``mean_logstd``. shuffle_z: give every environment another's latent.
        critic_z: False keeps the latent from the critic.
        acting_tau: what acts is a copy of the models, which moves by this share towards them after each iteration (the
            k-th by at least 1/k); 1: no copy. Trained models move a latent by half its spread in an iteration, faster
            than a policy learns what it means.
        others_actions: ``all``, ``visible`` (of those in sight, where the task says who that is), or ``own`` where an
            agent cannot see what the others did. train_moa_only_when_visible: learn of those in sight only.
        memory, memory_dim: ``gru`` gives the model of the others and the student a memory of that size each (on-policy
            algorithms only), trained on whole rows of the batch, or on chunks of ``memory_chunk`` steps.
        moa_inputs: of the model of the others: the step before (``prev``), or also what is seen now (``prev+obs``).
        cvae_grad_to_moa: L_rec and L_KL also teach the model of the others, whose prediction the student reads.
        lr, epochs, max_grad_norm: of this loss. huber: Huber error for rewards.
        curiosity, disagreement, latent_surprise: weights of the reward terms of `Curiosity`. curiosity_scale: ``none``
            pays the world model's error as it is, ``std`` divides it by its running deviation first.
        influence: weight of the reward term, how much an agent's action moves the others' predicted next actions
            (discrete actions; clipped at 10), as `ActionModelLoss.influence` measures it with influence_divergence,
            ``kl`` or ``jsd``.
        ensemble: world models, whose mean predicts. continue_head: they also predict whether the episode goes on.
        symlog_reward, shared_reward: see `WorldModelLoss`. wm_replay: that many batches before the present one train
            the world model too, in steps of their own.
        imagination: use of the world model (on-policy algorithms without recurrent networks only): ``expand`` value
            targets by imagination_mix (`ValueExpansion`), ``dyna`` adds imagined experience with imagination_weight
            (`Dyna`, from every imagination_every-th frame), ``decentralised`` by each agent's own model of the others.
            horizon: imagined steps, 1 to 3 for ``expand``, else 3 or more. imagination_skill: what wm/obs_skill_1 must
            exceed, measured on each batch. imagination_reward_skill: what wm/rew_r2 must; the specification has none.
        held_out: share of the environments that this loss does not train on, but is measured on (on-policy only).

    Raises:
        ValueError: a single agent, a negative weight, an unknown word, an option that the task has nothing for.
    """

    def __init__(self, specs: Specs, *, latent_dim: int = 16, num_cells: int = 128, depth: int = 2,
                 moa_coef: float = 1.0, obs_coef: float = 1.0, reward_coef: float = 1.0, cvae_coef: float = 1.0,
                 teacher_coef: float = 1.0, alpha: float = 0.03, alpha_warmup: float = 0.2, beta_teacher: float = 0.03,
                 kl_direction: Direction = "student_to_teacher", student_pull: float = 1.0, teacher_pull: float = 0.0,
                 free_bits_dim: float = 0.0, free_nats: float = 0.0, rec_target: Target = "x", use_teacher: bool = True,
                 teacher_action_coef: float = 0.1,
                 x_parts: str = "obs+moa+wm_residual", actor_inputs: ActorInputs = "obs+z",
                 policy_latent: PolicyLatent = "mean", critic_z: bool = True, acting_tau: float = 0.05,
                 others_actions: OthersActions = "all",
                 lr: float = 5e-4, epochs: int = 3, max_grad_norm: float = 1.0, huber: bool = False,
                 curiosity: float = 0.0, influence: float = 0.0, shuffle_z: bool = False, held_out: float = 0.125,
                 memory: MemoryKind = "none", memory_dim: int = 128, memory_chunk: int = 0,
                 influence_divergence: Divergence = "kl", train_moa_only_when_visible: bool = False,
                 cvae_grad_to_moa: bool = False, moa_inputs: ActionInputs = "prev",
                 ensemble: int = 1, disagreement: float = 0.0, latent_surprise: float = 0.0,
                 curiosity_scale: Scale = "none", continue_head: bool = False, symlog_reward: bool = False,
                 shared_reward: bool = False, wm_replay: int = 0, imagination: Kind = "none", horizon: int = 3,
                 imagination_mix: float = 0.5, imagination_weight: float = 0.25, imagination_every: int = 1,
                 imagination_skill: float = 0.5, imagination_reward_skill: float = 0.0):
        check_options(specs, {name: value for name, value in locals().items() if name in self.option_names()})
        super().__init__()
        self.lr, self.epochs, self.max_grad_norm = lr, epochs, max_grad_norm
        self.alpha, self.alpha_warmup, self.total_frames, self.frames = alpha, alpha_warmup, 0, 0
        cells = [num_cells] * depth
        self.model = StateModel(specs, latent_dim=latent_dim, cells=cells, parts=x_parts.split("+"),
                                others=others_actions, action_inputs=moa_inputs, grad_to_actions=cvae_grad_to_moa,
                                memory_dim=memory_dim if memory == "gru" else 0, members=ensemble,
                                continues=continue_head)
        self.acting_tau, self.iterations = acting_tau, 0
        self.acting = self.model if acting_tau == 1 else copy.deepcopy(self.model).requires_grad_(False)
        self.reward_moments = RunningMoments((1,))
        self.action_loss = ActionModelLoss(specs, self.model, coef=moa_coef, only_visible=train_moa_only_when_visible)
        self.world_loss = WorldModelLoss(specs, self.model, torch.ones(()), obs_coef=obs_coef, reward_coef=reward_coef,
                                         huber=huber, symlog_reward=symlog_reward, shared_reward=shared_reward)
        self.cvae_loss = CVAELoss(specs, self.model, latent_dim=latent_dim, cells=cells, alpha=alpha * cvae_coef,
                                  rec_coef=cvae_coef, teacher_coef=teacher_coef, beta_teacher=beta_teacher,
                                  kl_direction=kl_direction, kl_weights=(student_pull, teacher_pull),
                                  free_bits_dim=free_bits_dim, free_nats=free_nats, rec_target=rec_target,
                                  use_teacher=use_teacher, action_coef=teacher_action_coef)
        self.cvae_coef = cvae_coef
        self.in_keys = list(dict.fromkeys(key for loss in self._losses() for key in loss.in_keys))
        paid = {"curiosity": curiosity, "disagreement": disagreement, "latent_surprise": latent_surprise}
        self.reward_weights = {name: weight for name, weight in (*paid.items(), ("influence", influence)) if weight}
        self.curiosity = Curiosity(self.reward_weights, self.model, self.world_loss, scale=curiosity_scale,
                                   alive=specs.alive)
        self.reward_keys = [LOGITS] if specs.discrete else []
        self.specs, self.held_out = specs, held_out
        self.imagining = dict(kind=imagination, horizon=horizon, mix=imagination_mix, least_skill=imagination_skill,
                              least_reward_skill=imagination_reward_skill,
                              experience=dict(weight=imagination_weight, every=imagination_every))
        self.__dict__["imagination"] = None  # made by `estimators`; it is no part of this loss
        self.memory_chunk, self.influence_divergence, self.wm_replay = memory_chunk, influence_divergence, wm_replay
        self._feed(specs, latent_dim, actor_inputs, policy_latent, shuffle_z)
        if not critic_z:
            self.critic_features = {}

    def _feed(self, specs: Specs, latent_dim: int, actor_inputs: str, latent: PolicyLatent, shuffle: bool) -> None:
        """What actor and critic get, and what is handed on to the next step."""
        self.recorders = [TensorDictModule(self.model.previous, in_keys=[OBSERVATION, *self.model.previous.keys],
                                           out_keys=[("next", *key) for key in PAST])]
        self.trains = actor_inputs not in CONTROLS
        self.__dict__["input"] = None  # not a submodule: the policy has it
        if not self.trains:  # plain inputs, nothing to learn
            self.requires_grad_(False)
            past = dict(zip(PAST, (specs.obs_dim, specs.n_agents * specs.action_dim, 1), strict=True))
            self.features = past if actor_inputs == "obs+past" else {PRIVILEGED: specs.hidden_dim}
            return
        with_latent, with_actions = "z" in actor_inputs, actor_inputs.endswith("moa")
        width = with_latent * latent_dim * (2 if latent == "mean_logstd" else 1)
        width += with_actions * (specs.n_agents - 1) * specs.action_dim * (1 if specs.discrete else 2)
        if width or self.model.memory_dim:  # a memory runs also where nobody reads what it makes
            network = PolicyInput(self.acting, latent, with_actions=with_actions, with_latent=with_latent or not width,
                                  shuffle=shuffle)
            self.__dict__["input"] = network
            self.encoders = [TensorDictModule(network, in_keys=network.in_keys, out_keys=network.out_keys)]
        self.features = {LATENT: width} if width else {}

    def _losses(self) -> tuple[Loss, Loss, Loss]:
        return self.action_loss, self.world_loss, self.cvae_loss

    def forward(self, minibatch: TensorDictBase) -> TensorDictBase:
        """The terms of all three losses."""
        known = self.model.infer_batch(minibatch)
        out = dict(self.action_loss(minibatch, known).items()) | dict(self.world_loss(minibatch).items())
        return TensorDict(out | dict(self.cvae_loss(minibatch, known).items()))

    # ------------------------------------------------------------------ statistics, schedule, reward

    def plan(self, frames: int) -> list[str]:
        """The ramp of alpha needs the length; no warnings."""
        self.total_frames = frames
        return []

    def receive(self, batch: TensorDictBase) -> None:
        """Keep the task's reward as it is, before any shaping; set alpha."""
        batch[TASK_REWARD] = batch["next", *REWARD].clone()
        ramp = self.alpha_warmup * self.total_frames
        self.cvae_loss.alpha = self.cvae_coef * self.alpha * min(1.0, self.frames / ramp if ramp else 1.0)
        self.frames += batch.numel() * distributed.world_size()

    @torch.no_grad()
    def reward_terms(self, batch: TensorDictBase) -> dict[str, Tensor]:
        """The terms of `Curiosity`, and ``influence``: see the class."""
        out = self.curiosity(batch)
        if "influence" in self.reward_weights:
            moved = self.action_loss.influence(batch, divergence=self.influence_divergence)
            out["influence"] = moved.clamp_max(10.0)
        return out

    @torch.no_grad()
    def refresh(self, batch: TensorDictBase) -> None:
        """Move statistics, and what acts, on; they stand still within an iteration."""
        if not self.trains:
            return
        alive = None if self.specs.alive is None else batch[self.specs.alive].unsqueeze(-1)
        self.model.scaler.update(batch[OBSERVATION], alive)
        self.model.x_scaler.update(self.model.raw_features(*(batch[key] for key in self.model.keys))[1], alive)
        self.reward_moments.update(batch[TASK_REWARD], alive)
        self.world_loss.reward_scale.copy_(self.reward_moments.var.sqrt().clamp_min(1e-3).squeeze())
        self.iterations += 1
        if self.input is not None:
            self.input.turn()
        if self.acting is not self.model:
            share = max(self.acting_tau, 1 / self.iterations)
            torch._foreach_lerp_(list(self.acting.parameters()), list(self.model.parameters()), share)
            torch._foreach_copy_(list(self.acting.buffers()), list(self.model.buffers()))

    # ------------------------------------------------------------------ imagination

    def estimators(self, learner: Learner) -> list[Imagination]:
        """What imagines on each batch, after the recipe's estimates."""
        options = dict(self.imagining)
        kind, mix, experience = (options.pop(name) for name in ("kind", "mix", "experience"))
        if kind == "none":
            return []
        check_learner(kind, self.specs, self.model.previous.keys, learner)
        simulator = Simulator(self.model, self.encoders, learner.actor, self.world_loss.unscaled)
        make = {"expand": partial(ValueExpansion, mix=mix), "dyna": partial(Dyna, **experience),
                "decentralised": partial(DecentralisedDyna, action_loss=self.action_loss, **experience)}[kind]
        self.__dict__["imagination"] = make(simulator, self.world_loss, learner, held_out=self.held_out, **options)
        return [self.imagination]

    def companions(self, learner: Learner) -> dict[str, list[Loss]]:
        """The recipe's losses on imagined experience."""
        return {} if self.imagination is None else self.imagination.companions()

    def metrics(self) -> dict[str, Tensor]:
        """Whether imagination counts, and the skills that decide it."""
        return {} if self.imagination is None else self.imagination.noted

    # ------------------------------------------------------------------ training

    def networks(self, part: str) -> dict[str, list[nn.Parameter]]:
        """One entry for each network."""
        out: dict[str, list[nn.Parameter]] = {}
        for name, loss in zip(("moa", "world_model", "student"), self._losses(), strict=True):
            out |= loss.networks(name)
        return out

    def updates(self, name: str, data: DataSource, **optimisation: Any) -> list[Update]:
        """One update on the recipe's data, with own epochs, rate, and clipping of each network."""
        if not self.trains:
            return []
        if "influence" in self.reward_weights and not isinstance(data, (Minibatches, Sequences)):
            raise ValueError("influence of loss 'moa' reads the distribution of a stochastic policy: use mappo, ippo, "
                             "maa2c or ia2c")
        if self.imagining["kind"] != "none" and self.imagination is None:
            raise ValueError("imagination of loss 'moa' needs an on-policy algorithm: mappo, ippo, maa2c or ia2c")
        own = {"optimizer": partial(torch.optim.Adam, lr=self.lr, eps=1e-5, fused=True),
               "max_grad_norm": self.max_grad_norm}
        present = self._in_order(data.with_epochs(self.epochs))
        update = Update(name, {"moa": self}, self._without_held_out(present), **optimisation | own)
        return [update, self._again(update, data, optimisation | own)] if self.wm_replay else [update]

    def _without_held_out(self, data: DataSource) -> DataSource:
        if isinstance(data.owner, Replay):
            self.held_out = 0.0  # frames of all environments are replayed, so `diagnose` has none left to measure on
        return FirstRows(data, self.held_out) if self.held_out else data

    def _again(self, update: Update, data: DataSource, optimisation: dict[str, Any]) -> Update:
        """The world model on earlier batches, with the optimiser that it has, in steps of its own."""
        if not isinstance(data, (Minibatches, Sequences)):
            raise ValueError("wm_replay of loss 'moa' keeps batches of mappo, ippo, maa2c or ia2c; an off-policy "
                             "algorithm replays them anyway: leave it at 0")
        earlier = PreviousBatches(Minibatches(self.epochs, data.size), self.wm_replay)
        mine = {"optimizer": {"world_model": update.optimizers["world_model"]}}
        return Update(f"{update.name}_replay", {"world_model": self.world_loss}, self._without_held_out(earlier),
                      shared={"world_model"}, **optimisation | mine)

    def _in_order(self, data: DataSource) -> DataSource:
        """The same frames as sequences, if there is a memory."""
        if not self.model.memory_dim:
            return data
        if not isinstance(data, (Minibatches, Sequences)):
            raise ValueError("memory 'gru' of loss 'moa' learns from sequences of the present policy: use mappo, ippo, "
                             "maa2c or ia2c, or leave memory at 'none'")
        sequences = Sequences(data.epochs, data.size)
        return Chunks(sequences, self.memory_chunk) if self.memory_chunk else sequences

    def diagnose(self, batch: TensorDictBase) -> dict[str, float]:
        """Metrics of the environments that were held out, see `moa_metrics`; a replay buffer leaves none out."""
        out = FirstRows.kept_out(len(batch), self.held_out)
        if not self.trains or not out:
            return {}
        return measure(self, batch[:-out], batch[-out:], self.specs)

    def get_extra_state(self) -> dict[str, Any]:
        """The clocks."""
        return {"frames": self.frames, "total_frames": self.total_frames, "iterations": self.iterations}

    def set_extra_state(self, state: dict[str, Any]) -> None:
        """Put the clocks back; the length of the run is the new one's, if it is longer."""
        self.iterations = state["iterations"]
        self.frames, self.total_frames = state["frames"], max(self.total_frames, state["total_frames"])
