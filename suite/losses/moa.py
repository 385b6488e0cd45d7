"""Model of other agents, world model, and a teacher-aligned CVAE whose latent feeds actor and critic.

L_WM = moa_coef L_moa + obs_coef L_obs + reward_coef L_reward + cvae_coef (L_rec + alpha L_KL), and the teacher's own
loss. PPO's value V(s, z) and policy pi(a | o, z) read the latent as it acted.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from tensordict import TensorDict, TensorDictBase
from tensordict.nn import TensorDictModule
from torch import Tensor, nn

from suite import distributed
from suite.data import Chunks, DataSource, FirstRows, Minibatches, PreviousBatches, Sequences
from suite.latent_use import latent_sensitivity
from suite.losses.action_model import ActionModelLoss
from suite.losses.common import Learner, Loss
from suite.losses.curiosity import Curiosity, Scale
from suite.losses.cvae import CVAELoss, Target
from suite.losses.encoded import Encoded
from suite.losses.imagination import DecentralisedDyna, Dyna, Imagination, Kind, ValueExpansion, check_learner
from suite.losses.influence import Influence, InfluenceScale
from suite.losses.moa_metrics import measure
from suite.losses.moa_options import (
    CONTROLS,
    REWARD_TERMS,
    ActorInputs,
    CriticLatent,
    CriticLatents,
    MemoryKind,
    PPOLatent,
    check_options,
    needs_held_out,
    refuse_replay,
    remarks,
)
from suite.losses.social_curiosity import SocialCuriosityLoss
from suite.losses.world_model import TASK_REWARD, Reduction, WorldModelLoss
from suite.modules.functional import Divergence
from suite.modules.gaussian import Direction
from suite.modules.normalizer import RunningMoments
from suite.modules.policy_input import TEACHER_LATENT, PolicyInput, TeacherInput
from suite.modules.simulator import Simulator
from suite.modules.state_model import LATENT, PAST, ActionInputs, OthersActions, PolicyLatent, StateModel
from suite.specs import LOGITS, OBSERVATION, PRIVILEGED, REWARD, Specs
from suite.update import Update


class MOALoss(Loss):
    """The whole family as one state-modelling loss; see the module's text and the three losses it is made of.

    The latent is a feature of actor and critic, stored when it acts (``reencode`` False), so PPO's ratio is exact. It
    trains after PPO on the same batch, with one Adam and one clipping per network; statistics move afterwards. No
    gradient of PPO reaches the models, but with ``rl_grad_to_phi`` the student.

    Args:
        latent_dim: size of z. num_cells, depth: hidden layers of every network.
        moa_coef, obs_coef, reward_coef, cvae_coef, teacher_coef: weights of the losses.
        alpha, alpha_warmup: weight of the KL, reached linearly after that share of the run.
        beta_teacher, teacher_action_coef: see `CVAELoss`. kl_direction, student_pull, teacher_pull, free_bits_dim,
            free_nats: of the KL; the pulls are its two weights. reduction: of squared errors in L_obs and L_rec over
            features, ``mean`` or ``sum``, the squared norm as it is written.
        rec_target: ``x``, ``y`` or ``xy``. use_teacher: False aligns to N(0, 1). soft_clamp: log-sigma of student and
            teacher by a tanh instead of a clamp, see `GaussianEncoder`.
        x_parts: blocks of the features, joined by "+": obs, moa, wm_residual.
        actor_inputs: ``obs``, ``obs+z``, ``obs+z+moa``, ``obs+moa``; controls without any model: ``obs+past`` (what the
            models read) and ``obs+hidden`` (the task's hidden variables: an oracle).
        policy_latent: ``mean``, ``sample`` or ``mean_logstd``. shuffle_z: give every environment another's latent.
        critic_z: what latent the critic reads: the ``student``'s, ``none``, or ``teacher_no_action``, that of the
            teacher, which then does not see what the others do at this step (nor is that part of y).
        critic_latents: a central critic reads an agent's ``own``, V(s, z^i), or those of ``all`` agents.
        acting_tau: what acts is a copy of the models, which moves by this share towards them after each iteration (the
            k-th by at least 1/k); 1: no copy. Trained models move a latent by half its spread in an iteration, faster
            than a policy learns what it means. The teacher of ``critic_z`` follows likewise.
        ppo_latent: ``stored``: PPO's losses read the latent as it acted; ``recompute``: they compute it from what acts,
            which comes to the same unless that moves in the meantime, by one of the next two (mean, mean_logstd only).
        rl_grad_to_phi: PPO's losses train the student too, with an Adam of the recipe's rate, as a part ``encoders``
            (with joint_update in the steps that it takes anyway), through the present step of a memory; needs
            ppo_latent=recompute and acting_tau=1.
        joint_update: the models train in PPO's own steps, on its minibatches and epochs, instead of after it (as the
            program of Jaques et al. 2019 does), with rates and clippings of their own; needs held_out=0.
        others_actions: whose last actions an agent is told, at execution too: ``all``, ``visible`` (those in sight,
            where the task says who that is), or its ``own`` only. train_moa_only_when_visible: learn of those in sight.
        memory, memory_dim: ``gru`` gives the model of the others and the student a memory of that size each (on-policy
            algorithms only), trained on whole rows of the batch, or on chunks of ``memory_chunk`` steps.
        moa_inputs: of the model of the others: the step before (``prev``), or also what is seen now (``prev+obs``).
        moa_factorised: it has logits for each factor of choices that combine several (a move and a message), see
            `ActionModel`. moa_sigma: standard deviation of its prediction of continuous actions, instead of a learned
            one (0); the specification's is 0.5.
        cvae_grad_to_moa: L_rec and L_KL also teach the model of the others, whose prediction the student reads.
        lr, epochs, max_grad_norm: of this loss. huber: Huber error for rewards.
        curiosity, disagreement, latent_surprise: weights of the reward terms of `Curiosity`. curiosity_scale: ``none``
            pays the world model's error as it is, ``std`` divides it by its running deviation first.
        influence: weight of the reward term, how much an agent's action moves the others' predicted next actions
            (clipped at influence_max), as `ActionModelLoss.influence` measures it with influence_divergence, ``kl`` or
            ``jsd`` (discrete actions only), or of continuous ones with influence_samples.
        social_curiosity: weight of the reward term of `SocialCuriosityLoss`, 0.001 in its program, whose model learns
            with the others; social_forward: share of its forward error in what it learns from.
        influence_skill: what moa/skill must have exceeded once, influence_decay: share of the run, at its end, over
            which it falls to 0, influence_scale: ``std`` counts in deviations of the task's reward; see `Influence`.
            For cooperative tasks they are right with a weight of 0.01; 0, 0 and ``none`` pay what is measured.
        ensemble: world models, whose mean predicts. continue_head: they also predict whether the episode goes on.
        symlog_reward, shared_reward: see `WorldModelLoss`. wm_use_z: the world model also reads the latent of the step
            (its mean as it acted, a constant; for predictions further ahead that of their start).
        wm_replay: that many batches before the present one train the world model too, in steps of their own.
        imagination: use of the world model (on-policy algorithms without recurrent networks only): ``expand`` value
            targets by imagination_mix (`ValueExpansion`), ``dyna`` adds imagined experience with imagination_weight
            (`Dyna`, from every imagination_every-th frame), ``decentralised`` by each agent's own model of the others.
            horizon: imagined steps, 1 to 3 for ``expand``, else 3 or more. imagination_skill: what wm/obs_skill_1 must
            exceed, measured on each batch. imagination_reward_skill: what wm/rew_r2 must; the specification has none.
        held_out: share of the environments that this loss does not train on, but is measured on.

    Raises:
        ValueError: a single agent, a negative weight, an unknown word, an option that the task has nothing for.
    """

    def __init__(self, specs: Specs, *, latent_dim: int = 16, num_cells: int = 128, depth: int = 2,
                 moa_coef: float = 1.0, obs_coef: float = 1.0, reward_coef: float = 1.0, cvae_coef: float = 1.0,
                 teacher_coef: float = 1.0, alpha: float = 0.03, alpha_warmup: float = 0.2, beta_teacher: float = 0.03,
                 kl_direction: Direction = "student_to_teacher", student_pull: float = 1.0, teacher_pull: float = 0.0,
                 free_bits_dim: float = 0.0, free_nats: float = 0.0, reduction: Reduction = "mean",
                 rec_target: Target = "x", use_teacher: bool = True,
                 teacher_action_coef: float = 0.1, soft_clamp: bool = False,
                 x_parts: str = "obs+moa+wm_residual", actor_inputs: ActorInputs = "obs+z",
                 policy_latent: PolicyLatent = "mean", critic_z: CriticLatent = "student",
                 critic_latents: CriticLatents = "own", acting_tau: float = 0.05,
                 ppo_latent: PPOLatent = "stored", rl_grad_to_phi: bool = False, joint_update: bool = False,
                 others_actions: OthersActions = "all",
                 lr: float = 5e-4, epochs: int = 3, max_grad_norm: float = 1.0, huber: bool = False,
                 curiosity: float = 0.0, influence: float = 0.0, shuffle_z: bool = False, held_out: float = 0.125,
                 memory: MemoryKind = "none", memory_dim: int = 128, memory_chunk: int = 0,
                 influence_divergence: Divergence = "kl", influence_samples: int = 16, influence_max: float = 10.0,
                 influence_skill: float = 0.2, influence_decay: float = 0.5, influence_scale: InfluenceScale = "std",
                 train_moa_only_when_visible: bool = False,
                 cvae_grad_to_moa: bool = False, moa_inputs: ActionInputs = "prev", moa_factorised: bool = False,
                 moa_sigma: float = 0.0,
                 ensemble: int = 1, disagreement: float = 0.0, latent_surprise: float = 0.0,
                 social_curiosity: float = 0.0, social_forward: float = 0.5, curiosity_scale: Scale = "std",
                 continue_head: bool = False, symlog_reward: bool = False,
                 shared_reward: bool = False, wm_use_z: bool = False, wm_replay: int = 0, imagination: Kind = "none",
                 horizon: int = 3, imagination_mix: float = 0.5, imagination_weight: float = 0.25,
                 imagination_every: int = 1, imagination_skill: float = 0.5, imagination_reward_skill: float = 0.0):
        options = {name: value for name, value in locals().items() if name in self.option_names()}
        check_options(specs, options, self.option_defaults())
        super().__init__()
        self.specs, self.options, self.held_out, self.acting_tau = specs, options, held_out, acting_tau
        self.total_frames = self.frames = self.iterations = 0
        cells = [num_cells] * depth
        self.model = StateModel(specs, latent_dim=latent_dim, cells=cells, parts=x_parts.split("+"),
                                others=others_actions, action_inputs=moa_inputs, grad_to_actions=cvae_grad_to_moa,
                                memory_dim=memory_dim if memory == "gru" else 0, members=ensemble,
                                continues=continue_head, soft_clamp=soft_clamp, world_latent=wm_use_z,
                                factorised_actions=moa_factorised, action_sigma=moa_sigma)
        self.acting = self._acting_copy(self.model)
        self.reward_moments = RunningMoments((1,))
        self.action_loss = ActionModelLoss(specs, self.model, coef=moa_coef, only_visible=train_moa_only_when_visible)
        self.world_loss = WorldModelLoss(specs, self.model, torch.ones(()), obs_coef=obs_coef, reward_coef=reward_coef,
                                         reduction=reduction, huber=huber, symlog_reward=symlog_reward,
                                         shared_reward=shared_reward)
        self.cvae_loss = CVAELoss(specs, self.model, latent_dim=latent_dim, cells=cells, alpha=alpha * cvae_coef,
                                  rec_coef=cvae_coef, teacher_coef=teacher_coef, beta_teacher=beta_teacher,
                                  kl_direction=kl_direction, kl_weights=(student_pull, teacher_pull),
                                  free_bits_dim=free_bits_dim, free_nats=free_nats, rec_target=rec_target,
                                  use_teacher=use_teacher, action_coef=teacher_action_coef, soft_clamp=soft_clamp,
                                  action_in_y=critic_z != "teacher_no_action", reduction=reduction)
        self._pay(options)
        self.in_keys = list(dict.fromkeys(key for loss in self._losses().values() for key in loss.in_keys))
        self.__dict__.update(imagination=None, actor=None)  # set by `estimators`; they are no part of this loss
        self._feed_actor(options)
        self._feed_critic(options)

    def _acting_copy(self, network: nn.Module) -> nn.Module:
        """The network itself, or what follows it slowly."""
        return network if self.acting_tau == 1 else copy.deepcopy(network).requires_grad_(False)

    def _pay(self, options: dict[str, Any]) -> None:
        """Reward terms."""
        self.reward_weights = {name: options[name] for name in REWARD_TERMS if options[name]}
        self.social = None
        if options["social_curiosity"]:
            self.social = SocialCuriosityLoss(self.specs, self.action_loss, forward_share=options["social_forward"])
        self.curiosity = Curiosity(self.reward_weights, self.model, self.world_loss, scale=options["curiosity_scale"],
                                   alive=self.specs.alive)
        self.influence = Influence(self.action_loss, self.reward_moments, held_out=self.held_out,
                                   divergence=options["influence_divergence"], limit=options["influence_max"],
                                   least_skill=options["influence_skill"] if options["influence"] else 0.0,
                                   decay=options["influence_decay"],
                                   scale=options["influence_scale"], samples=options["influence_samples"])
        self.reward_keys = [LOGITS] if self.specs.discrete else []

    def _feed_actor(self, options: dict[str, Any]) -> None:
        """What the actor gets, and what is handed on to the next step."""
        specs, actor_inputs, latent = self.specs, options["actor_inputs"], options["policy_latent"]
        self.recorders = [TensorDictModule(self.model.previous, in_keys=[OBSERVATION, *self.model.previous.keys],
                                           out_keys=[("next", *key) for key in PAST])]
        self.trains = actor_inputs not in CONTROLS
        self.__dict__["input"] = None  # not a submodule: the policy has it
        if not self.trains:  # plain inputs, nothing to learn
            self.requires_grad_(False)
            past = dict(zip(PAST, (specs.obs_dim, specs.n_agents * specs.action_dim, 1), strict=True))
            self.features = past if actor_inputs == "obs+past" else {PRIVILEGED: specs.hidden_dim}
            self.past = {PAST[0]: PAST[2]} if actor_inputs == "obs+past" else {}
            return
        with_latent, with_actions = "z" in actor_inputs, actor_inputs.endswith("moa")
        width = with_latent * options["latent_dim"] * (2 if latent == "mean_logstd" else 1)
        width += with_actions * self.model.action_model.feature_dim
        if width or self.model.carried:  # that runs also where the actor does not read what it makes
            network = PolicyInput(self.acting, latent, with_actions=with_actions, with_latent=with_latent or not width,
                                  shuffle=options["shuffle_z"], learns=options["rl_grad_to_phi"])
            self.__dict__["input"] = network
            self.encoders = [TensorDictModule(network, in_keys=network.in_keys, out_keys=network.out_keys)]
        self.features = {LATENT: width} if width else {}

    def _feed_critic(self, options: dict[str, Any]) -> None:
        """What the critic gets, if that is something else."""
        self.acting_teacher, self.own_features = None, options["critic_latents"] == "own"
        if options["critic_z"] == "none":
            self.critic_features = {}
        elif options["critic_z"] == "teacher_no_action":
            self.acting_teacher = self._acting_copy(self.cvae_loss.teacher)
            network = TeacherInput(self.acting, self.acting_teacher, hidden=bool(self.specs.hidden_dim))
            self.critic_encoders = [TensorDictModule(network, in_keys=network.in_keys, out_keys=network.out_keys)]
            self.critic_features = {TEACHER_LATENT: options["latent_dim"]}

    def _losses(self) -> dict[str, Loss]:
        """{network: loss}."""
        out = {"moa": self.action_loss, "world_model": self.world_loss, "student": self.cvae_loss}
        return out if self.social is None else out | {"social": self.social}

    def forward(self, minibatch: TensorDictBase) -> TensorDictBase:
        """The terms of all losses."""
        known = self.model.infer_batch(minibatch)
        out = dict(self.action_loss(minibatch, known).items()) | dict(self.world_loss(minibatch).items())
        out |= {} if self.social is None else dict(self.social(minibatch).items())
        return TensorDict(out | dict(self.cvae_loss(minibatch, known).items()))

    # ------------------------------------------------------------------ statistics, schedule, reward

    def plan(self, frames: int) -> list[str]:
        """The schedules need the length; what is assumed, and what may never count."""
        self.total_frames = frames
        return remarks(self.specs, self.options)

    def receive(self, batch: TensorDictBase) -> None:
        """Keep the task's reward as it is, before any shaping, write what only the critic reads; set the schedules."""
        batch[TASK_REWARD] = batch["next", *REWARD].clone()
        for encoder in self.critic_encoders or ():
            encoder(batch)
        ramp = self.options["alpha_warmup"] * self.total_frames
        share = min(1.0, self.frames / ramp if ramp else 1.0)
        self.cvae_loss.alpha = self.options["cvae_coef"] * self.options["alpha"] * share
        self.influence.schedule(self.frames / self.total_frames if self.total_frames else 0.0)
        self.frames += batch.numel() * distributed.world_size()

    @torch.no_grad()
    def reward_terms(self, batch: TensorDictBase) -> dict[str, Tensor]:
        """The terms of `Curiosity`, of `Influence` and of `SocialCuriosityLoss`."""
        out, moved = self.curiosity(batch), None
        if self.social is not None:
            moved = self.influence.moved(batch)
            out["social_curiosity"] = self.social.pay(batch, moved)
        if "influence" in self.reward_weights:
            out["influence"] = self.influence(batch, moved)
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
        share = max(self.acting_tau, 1 / self.iterations)
        for slow, fast in ((self.acting, self.model), (self.acting_teacher, self.cvae_loss.teacher)):
            if slow is not None and slow is not fast:
                torch._foreach_lerp_(list(slow.parameters()), list(fast.parameters()), share)
                if buffers := list(slow.buffers()):
                    torch._foreach_copy_(buffers, list(fast.buffers()))

    # ------------------------------------------------------------------ imagination

    def estimators(self, learner: Learner) -> list[Imagination]:
        """What imagines on each batch, after the recipe's estimates."""
        self.__dict__["actor"] = learner.actor
        self.influence.ask(learner.actor)
        options, kind = self.options, self.options["imagination"]
        if kind == "none":
            return []
        check_learner(kind, self.specs, self.model.previous.keys, learner)
        simulator = Simulator(self.model, self.encoders, learner.actor, self.world_loss.unscaled)
        experience = dict(weight=options["imagination_weight"], every=options["imagination_every"])
        make = {"expand": partial(ValueExpansion, mix=options["imagination_mix"]), "dyna": partial(Dyna, **experience),
                "decentralised": partial(DecentralisedDyna, action_loss=self.action_loss, **experience)}[kind]
        self.__dict__["imagination"] = make(
            simulator, self.world_loss, learner, held_out=self.held_out, horizon=options["horizon"],
            least_skill=options["imagination_skill"], least_reward_skill=options["imagination_reward_skill"])
        return [self.imagination]

    def metrics(self) -> dict[str, Tensor]:
        """Whether imagination and influence count, and the skills that decide it."""
        return self.influence.noted | ({} if self.imagination is None else self.imagination.noted)

    # ------------------------------------------------------------------ in the recipe's update

    def encoded(self, loss: Loss) -> Loss:
        """With ``ppo_latent`` "recompute", a loss of the recipe that reads the latent makes it itself."""
        if self.options["ppo_latent"] == "stored" or LATENT not in loss.in_keys:
            return loss
        apart = self.options["rl_grad_to_phi"] and not self.options["joint_update"]  # else they are trained here anyway
        return Encoded(loss, self.encoders, self.model.student.parameters() if apart else ())

    def companions(self, learner: Learner) -> dict[str, list[Loss]]:
        """The recipe's losses on imagined experience, or with ``joint_update`` this one."""
        if self.options["joint_update"]:
            self.companion_optimisation = dict.fromkeys(self.networks("moa"), self._optimisation())
            return {"moa": [self]}
        return {} if self.imagination is None else self.imagination.companions()

    # ------------------------------------------------------------------ training

    def networks(self, part: str) -> dict[str, list[nn.Parameter]]:
        """One entry for each network."""
        out: dict[str, list[nn.Parameter]] = {}
        for name, loss in self._losses().items():
            out |= loss.networks(name)
        return out

    def updates(self, name: str, data: DataSource, **optimisation: Any) -> list[Update]:
        """One update on each batch, with own epochs, rate, and clipping of each network.

        Frames that a recipe replays are no data for it: the others do not act like that any more.
        """
        if not self.trains:
            return []
        unasked = self.options["imagination"] != "none" and self.imagination is None
        unasked |= self.options["joint_update"] and not self.companion_optimisation
        fresh = isinstance(data, (Minibatches, Sequences))
        if unasked or not fresh:
            refuse_replay(self.options)
        if self.options["joint_update"]:
            return []
        own = dict(zip(("optimizer", "max_grad_norm"), self._optimisation(), strict=True))
        batches = Minibatches(self.options["epochs"], (data if fresh else data.owner).size)
        present = self._in_order(data.with_epochs(batches.epochs) if fresh else batches)
        update = Update(name, {"moa": self}, self._without_held_out(present), **optimisation | own)
        return [update, self._again(update, batches, optimisation | own)] if self.options["wm_replay"] else [update]

    def _optimisation(self) -> tuple[Callable, float]:
        """Optimiser and clipping of each network."""
        adam = partial(torch.optim.Adam, lr=self.options["lr"], eps=1e-5, fused=True)
        return adam, self.options["max_grad_norm"]

    def _without_held_out(self, data: DataSource) -> DataSource:
        return FirstRows(data, self.held_out, needs_held_out(self.options)) if self.held_out else data

    def _again(self, update: Update, batches: Minibatches, optimisation: dict[str, Any]) -> Update:
        """The world model on earlier batches, with the optimiser that it has, in steps of its own."""
        earlier = PreviousBatches(batches, self.options["wm_replay"])
        mine = {"optimizer": {"world_model": update.optimizers["world_model"]}}
        return Update(f"{update.name}_replay", {"world_model": self.world_loss}, self._without_held_out(earlier),
                      shared={"world_model"}, **optimisation | mine)

    def _in_order(self, data: DataSource) -> DataSource:
        """The same frames as sequences, if there is a memory."""
        if not self.model.memory_dim:
            return data
        sequences, chunk = Sequences(data.epochs, data.size), self.options["memory_chunk"]
        return Chunks(sequences, chunk) if chunk else sequences

    def diagnose(self, batch: TensorDictBase) -> dict[str, float]:
        """Metrics of the environments that were held out, see `moa_metrics`."""
        out = FirstRows.kept_out(len(batch), self.held_out)
        if not self.trains or not out:
            return {}
        found = measure(self, batch[:-out], batch[-out:], self.specs)
        if self.actor is not None and LATENT in self.actor.in_keys:
            found["policy/z_sensitivity"] = latent_sensitivity(self.actor, batch[-out:], LATENT, alive=self.specs.alive)
        return found

    def get_extra_state(self) -> dict[str, Any]:
        """The clocks."""
        return {"frames": self.frames, "total_frames": self.total_frames, "iterations": self.iterations}

    def set_extra_state(self, state: dict[str, Any]) -> None:
        """Put the clocks back; the length of the run is the new one's, if it is longer."""
        self.iterations = state["iterations"]
        self.frames, self.total_frames = state["frames"], max(self.total_frames, state["total_frames"])
