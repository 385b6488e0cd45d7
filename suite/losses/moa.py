"""Model of other agents, world model, and a teacher-aligned CVAE whose latent feeds actor and critic.

L_WM = moa_coef L_moa + obs_coef L_obs + reward_coef L_reward + cvae_coef (L_rec + alpha L_KL), and the teacher's own
loss. PPO's value V(s, z) and policy pi(a | o, z) read the latent as it acted.
"""

from __future__ import annotations

from functools import partial
from typing import Any, Literal, get_args

import torch
from tensordict import TensorDict, TensorDictBase
from tensordict.nn import TensorDictModule
from torch import Tensor, nn
from torch.nn import functional as F

from suite import distributed
from suite.data import DataSource, FirstRows, ReplayView
from suite.losses.common import Loss
from suite.losses.cvae import CVAELoss, Target
from suite.losses.moa_metrics import measure
from suite.losses.world_model import TASK_REWARD, WorldModelLoss, observation_error
from suite.modules.functional import influence as influence_of
from suite.modules.gaussian import Direction, nll, weighted_mean
from suite.modules.normalizer import RunningMoments
from suite.modules.state_model import (
    LATENT,
    PARTS,
    PAST,
    OthersActions,
    PolicyInput,
    PolicyLatent,
    StateModel,
)
from suite.specs import ACTION, LOGITS, OBSERVATION, PRIVILEGED, REWARD, Specs
from suite.update import Update

ActorInputs = Literal["obs", "obs+z", "obs+z+moa", "obs+moa", "obs+past", "obs+hidden"]


class ActionModelLoss(Loss):
    """L_moa = mean over steps, agents i and others j of the cross-entropy (Gaussian NLL) of a_t^j given i's last step.

    Weights: the past is valid, i and j alive; the mean divides by their sum.
    """

    def __init__(self, specs: Specs, model: StateModel, *, coef: float = 1.0):
        super().__init__([*PAST, ACTION, *([specs.alive] if specs.alive else [])])
        self.model, self.alive, self.coef, self.discrete = model, specs.alive, coef, specs.discrete

    def predict(self, td: TensorDictBase) -> Tensor | tuple[Tensor, Tensor]:
        """Logits [..., N, P, E], or mean and log-sigma."""
        prev, joint, valid = (td[key] for key in PAST)
        return self.model.action_model(self.model.scaler(prev) * valid, joint, valid)

    def targets(self, td: TensorDictBase) -> Tensor:
        """What the others did: int64 [..., N, P], or [..., N, P, d] in [-1, 1]."""
        actions = self.model.actions
        if self.discrete:
            return actions.of_others(td[ACTION].unsqueeze(-1)).squeeze(-1)
        return actions.of_others(actions.encode(td[ACTION]))

    def weights(self, td: TensorDictBase) -> Tensor:
        """[..., N, P]: valid past, both alive."""
        weight = td[PAST[-1]].expand(*td[PAST[-1]].shape[:-1], self.model.actions.others.shape[1])
        if self.alive is None:
            return weight
        alive = td[self.alive].to(weight.dtype)
        return weight * alive.unsqueeze(-1) * self.model.actions.of_others(alive.unsqueeze(-1)).squeeze(-1)

    def forward(self, minibatch: TensorDictBase) -> TensorDictBase:
        """``loss_moa`` and, for discrete actions, the accuracy."""
        prediction, target, weight = self.predict(minibatch), self.targets(minibatch), self.weights(minibatch)
        if not self.discrete:
            return TensorDict({"loss_moa": self.coef * weighted_mean(nll(*prediction, target), weight)})
        error = F.cross_entropy(prediction.flatten(0, -2), target.flatten(), reduction="none").view_as(target)
        right = (prediction.detach().argmax(-1) == target).to(weight.dtype)
        return TensorDict({"loss_moa": self.coef * weighted_mean(error, weight),
                           "accuracy": weighted_mean(right, weight)})

    def networks(self, part: str) -> dict[str, list]:
        """The model of other agents."""
        return {part: list(self.model.action_model.parameters())}


class MOALoss(Loss):
    """The whole family as one state-modelling loss; see the module's text and the three losses it is made of.

    The latent is a feature of actor and critic, stored when it acts (``reencode`` False), so PPO's ratio is exact. It
    trains after PPO on the same batch, with one Adam and one clipping per network; statistics move afterwards.

    Args:
        latent_dim: size of z. num_cells, depth: hidden layers of every network.
        moa_coef, obs_coef, reward_coef, cvae_coef, teacher_coef: weights of the losses; 0 removes one.
        alpha, alpha_warmup: weight of the KL, reached linearly after that share of the run.
        beta_teacher: see `CVAELoss`. kl_direction, student_pull, teacher_pull, free_bits_dim, free_nats: of the KL;
            the pulls are its two weights.
        rec_target: ``x``, ``y`` or ``xy``. use_teacher: False aligns to N(0, 1).
        x_parts: blocks of the features, joined by "+": obs, moa, wm_residual.
        actor_inputs: ``obs``, ``obs+z``, ``obs+z+moa``, ``obs+moa``; controls without any model: ``obs+past`` (what the
            models read, as it is) and ``obs+hidden`` (the task's hidden variables: an oracle).
        policy_latent: ``mean``, ``sample`` or ``mean_logstd``. shuffle_z: give every environment another's latent.
        critic_z: False keeps the latent from the critic.
        others_actions: ``all``, or ``own`` where an agent cannot see what the others did.
        lr, epochs, max_grad_norm: of this loss. huber: Huber error for rewards.
        curiosity: weight of the reward term, the world model's error of each agent, clipped at 5.
        influence: weight of the reward term, how much an agent's action moves the others' predicted next actions
            (discrete actions; summed over the others, clipped at 10).
        held_out: share of the environments that this loss does not train on, but is measured on (on-policy only).

    Raises:
        ValueError: a single agent, a negative weight, an unknown word.
    """

    def __init__(self, specs: Specs, *, latent_dim: int = 16, num_cells: int = 128, depth: int = 2,
                 moa_coef: float = 1.0, obs_coef: float = 1.0, reward_coef: float = 1.0, cvae_coef: float = 1.0,
                 teacher_coef: float = 1.0, alpha: float = 0.03, alpha_warmup: float = 0.2, beta_teacher: float = 0.03,
                 kl_direction: Direction = "student_to_teacher", student_pull: float = 1.0, teacher_pull: float = 0.0,
                 free_bits_dim: float = 0.0, free_nats: float = 0.0, rec_target: Target = "x", use_teacher: bool = True,
                 x_parts: str = "obs+moa+wm_residual", actor_inputs: ActorInputs = "obs+z",
                 policy_latent: PolicyLatent = "mean", critic_z: bool = True, others_actions: OthersActions = "all",
                 lr: float = 5e-4, epochs: int = 3, max_grad_norm: float = 1.0, huber: bool = False,
                 curiosity: float = 0.0, influence: float = 0.0, shuffle_z: bool = False, held_out: float = 0.125):
        _check(specs, {name: value for name, value in locals().items() if name in self.option_names()})
        super().__init__()
        self.lr, self.epochs, self.max_grad_norm = lr, epochs, max_grad_norm
        self.alpha, self.alpha_warmup, self.total_frames, self.frames = alpha, alpha_warmup, 0, 0
        cells = [num_cells] * depth
        self.model = StateModel(specs, latent_dim=latent_dim, cells=cells, parts=x_parts.split("+"),
                                others=others_actions)
        self.reward_moments = RunningMoments((1,))
        self.action_loss = ActionModelLoss(specs, self.model, coef=moa_coef)
        self.world_loss = WorldModelLoss(specs, self.model, torch.ones(()), obs_coef=obs_coef, reward_coef=reward_coef,
                                         huber=huber)
        self.cvae_loss = CVAELoss(specs, self.model, latent_dim=latent_dim, cells=cells, alpha=alpha * cvae_coef,
                                  rec_coef=cvae_coef, teacher_coef=teacher_coef, beta_teacher=beta_teacher,
                                  kl_direction=kl_direction, kl_weights=(student_pull, teacher_pull),
                                  free_bits_dim=free_bits_dim, free_nats=free_nats, rec_target=rec_target,
                                  use_teacher=use_teacher)
        self.cvae_coef = cvae_coef
        self.in_keys = list(dict.fromkeys(key for loss in self._losses() for key in loss.in_keys))
        self.reward_weights = {name: weight for name, weight in (("curiosity", curiosity), ("influence", influence))
                               if weight}
        self.reward_keys = [LOGITS] if specs.discrete else []
        self.specs, self.held_out = specs, held_out
        self._feed(specs, latent_dim, actor_inputs, policy_latent, shuffle_z)
        if not critic_z:
            self.critic_features = {}

    def _feed(self, specs: Specs, latent_dim: int, actor_inputs: str, latent: PolicyLatent, shuffle: bool) -> None:
        """What actor and critic get, and what is handed on to the next step."""
        keys = [OBSERVATION, *PAST]
        self.recorders = [TensorDictModule(self.model.previous, in_keys=[OBSERVATION, ACTION],
                                           out_keys=[("next", *key) for key in PAST])]
        size = latent_dim * (2 if latent == "mean_logstd" else 1)
        predicted = (specs.n_agents - 1) * specs.action_dim * (1 if specs.discrete else 2)
        widths = {"obs": 0, "obs+z": size, "obs+z+moa": size + predicted, "obs+moa": predicted}
        self.trains = actor_inputs in widths
        if not self.trains:  # controls: plain inputs, nothing to learn
            self.requires_grad_(False)
            past = dict(zip(PAST, (specs.obs_dim, specs.n_agents * specs.action_dim, 1), strict=True))
            self.features = past if actor_inputs == "obs+past" else {PRIVILEGED: specs.hidden_dim}
            return
        if not widths[actor_inputs]:
            return
        network = PolicyInput(self.model, latent, with_actions=actor_inputs.endswith("moa"),
                              with_latent="z" in actor_inputs, shuffle=shuffle)
        self.encoders = [TensorDictModule(network, in_keys=keys, out_keys=[LATENT])]
        self.features = {LATENT: widths[actor_inputs]}

    def _losses(self) -> tuple[Loss, Loss, Loss]:
        return self.action_loss, self.world_loss, self.cvae_loss

    def forward(self, minibatch: TensorDictBase) -> TensorDictBase:
        """The terms of all three losses."""
        out = {}
        for loss in self._losses():
            out |= dict(loss(minibatch).items())
        return TensorDict(out)

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
        """``curiosity``: the world model's mean squared error, at most 5. ``influence``: see the class."""
        out = {}
        if "curiosity" in self.reward_weights:
            predicted, _ = self.world_loss.predict(batch)
            scaler = self.model.scaler
            error = observation_error(predicted, scaler(batch["next", *OBSERVATION]), scaler.mask)
            out["curiosity"] = error.clamp_max(5.0).unsqueeze(-1)
        if "influence" in self.reward_weights:
            out["influence"] = self._influence(batch).clamp_max(10.0)
        return out

    def _influence(self, batch: TensorDictBase) -> Tensor:
        """[N, T, A, 1]: summed over the others; counterfactuals replace the own action by every choice."""
        model = self.model
        joint = model.actions.pack(model.actions.encode(batch[ACTION])).unsqueeze(2)  # [N, T, 1, A, A E]
        choices = model.actions.dim
        own = torch.eye(choices, device=joint.device).view(1, 1, choices, 1, choices)
        own = own.expand(*batch.shape, -1, joint.shape[-2], -1)
        joint = torch.cat([own, joint[..., choices:].expand(*own.shape[:-1], -1)], -1)
        u = model.scaler(batch[OBSERVATION]).unsqueeze(2).expand(*joint.shape[:-1], -1)
        after = model.action_model(u, model.previous.visible(joint), torch.ones_like(u[..., :1])).softmax(-1)
        moved = influence_of(batch[LOGITS].softmax(-1), after.transpose(2, 3), batch[ACTION])
        return moved.sum(-1, keepdim=True)

    @torch.no_grad()
    def refresh(self, batch: TensorDictBase) -> None:
        """Move the statistics of observations, features and rewards on; they stand still within an iteration."""
        self.model.scaler.moments.update(batch[OBSERVATION])
        x = self.model.raw_features(batch[OBSERVATION], *(batch[key] for key in PAST))[1]
        self.model.x_scaler.moments.update(x)
        self.reward_moments.update(batch[TASK_REWARD])
        self.world_loss.reward_scale.copy_(self.reward_moments.var.sqrt().clamp_min(1e-3).squeeze())

    # ------------------------------------------------------------------ training

    def networks(self, part: str) -> dict[str, list[nn.Parameter]]:
        """One entry for each network that has a weight."""
        out: dict[str, list[nn.Parameter]] = {}
        for name, loss in zip(("moa", "world_model", "student"), self._losses(), strict=True):
            out |= loss.networks(name)
        return out

    def updates(self, name: str, data: DataSource, **optimisation: Any) -> list[Update]:
        """One update on the recipe's data, with own epochs, rate, and clipping of each network."""
        if not self.trains:
            return []
        own = {"optimizer": partial(torch.optim.Adam, lr=self.lr, eps=1e-5, fused=True),
               "max_grad_norm": self.max_grad_norm}
        data = data.with_epochs(self.epochs)
        if self.held_out and not isinstance(data, ReplayView):
            data = FirstRows(data, self.held_out)
        return [Update(name, {"moa": self}, data, **optimisation | own)]

    def diagnose(self, batch: TensorDictBase) -> dict[str, float]:
        """Metrics of the environments that were held out; see `moa_metrics`."""
        out = FirstRows.kept_out(len(batch), self.held_out)
        if not self.trains or not out:
            return {}
        return measure(self, batch[:-out], batch[-out:], self.specs)

    def get_extra_state(self) -> dict[str, Any]:
        """The clock of the ramp."""
        return {"frames": self.frames, "total_frames": self.total_frames}

    def set_extra_state(self, state: dict[str, Any]) -> None:
        """Put the clock back; the length of the run is the new one's, if it is longer."""
        self.frames, self.total_frames = state["frames"], max(self.total_frames, state["total_frames"])


def _check(specs: Specs, options: dict[str, Any]) -> None:
    if specs.n_agents < 2:
        raise ValueError("loss 'moa' models other agents, but the task has a single agent")
    for name, value in options.items():
        if isinstance(value, (int, float)) and not isinstance(value, bool) and value < 0:
            raise ValueError(f"{name} of loss 'moa' must not be negative, got {value}")
    words = {"kl_direction": ("student_to_teacher", "teacher_to_student"), "rec_target": ("x", "y", "xy"),
             "actor_inputs": get_args(ActorInputs), "others_actions": ("all", "own"),
             "policy_latent": ("mean", "sample", "mean_logstd")}
    for name, allowed in words.items():
        if options[name] not in allowed:
            raise ValueError(f"{name} of loss 'moa' must be one of {list(allowed)}, got {options[name]!r}")
    if options["influence"] and not specs.discrete:
        raise ValueError("influence of loss 'moa' enumerates an agent's choices: it needs discrete actions")
    if options["actor_inputs"] == "obs+hidden" and not specs.hidden_dim:
        raise ValueError("actor_inputs obs+hidden of loss 'moa' needs a task that exports its hidden variables: "
                         "--task-options with_hidden=True")
    if not options["held_out"] < 1:
        raise ValueError(f"held_out of loss 'moa' is a share below 1, got {options['held_out']}")
    parts = options["x_parts"].split("+")
    if unknown := sorted(set(parts) - set(PARTS)):
        raise ValueError(f"x_parts of loss 'moa' has {unknown}; join some of {list(PARTS)} by '+'")
    if len(set(parts)) < len(parts):
        raise ValueError(f"x_parts of loss 'moa' names a part twice, got {options['x_parts']!r}")
    for name in ("latent_dim", "num_cells", "depth", "lr", "epochs", "max_grad_norm"):
        if not options[name] > 0:
            raise ValueError(f"{name} of loss 'moa' must be positive, got {options[name]}")
