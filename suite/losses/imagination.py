"""What a learner can do with a world model: better value targets, and more experience to learn from.

All of it waits for a world model that predicts observations and rewards: both are measured on the held-out
environments of each batch, and below the thresholds nothing imagined counts (it is computed all the same: no question
is put to the device).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch
from tensordict import NestedKey, TensorDict, TensorDictBase
from torch import Tensor, nn
from torch.nn import functional as F

from suite import distributed
from suite.data import FirstRows
from suite.losses.action_model import ActionModelLoss
from suite.losses.common import Learner, Loss
from suite.losses.world_model import TASK_REWARD, WorldModelLoss
from suite.modules.lowered import Tensors
from suite.modules.policies import CRITIC_RECURRENT
from suite.modules.simulator import GOES_ON, ModelledOthers, Simulator, own_rows, rollout_lengths
from suite.specs import (
    ACTION,
    ACTION_MASK,
    ADVANTAGE,
    DONE,
    LOG_PROB,
    RECURRENT,
    REWARD,
    STATE,
    TERMINATED,
    VALUE,
    VALUE_TARGET,
    Specs,
)
from suite.state_metrics import reward_prediction

Kind = Literal["none", "expand", "dyna", "decentralised"]
HORIZONS = {"expand": (1, 3), "dyna": (3, 5), "decentralised": (3, 15)}


def value_expansion(reward: Tensor, bootstrap: Tensor, goes_on: Tensor, *, gamma: float) -> Tensor:
    """R^(H) = sum_{k<H} gamma^k r_k + gamma^H V, each term times the chance of getting there (Feinberg et al. 2018).

    ``reward``, ``goes_on`` [R, H, ..., 1] of the imagined steps, ``bootstrap`` [R, ..., 1] behind the last one.
    """
    total = bootstrap
    for k in range(reward.shape[1] - 1, -1, -1):
        total = reward[:, k] + gamma * goes_on[:, k] * total
    return total


def imagined_gae(reward: Tensor, value: Tensor, next_value: Tensor, goes_on: Tensor, *, gamma: float,
                 lmbda: float) -> tuple[Tensor, Tensor]:
    """`gae` on roll-outs [R, H, ..., 1] that end by a chance: advantage, and value target = A + V.

    delta_k = r_k + gamma c_k V(s_{k+1}) - V(s_k);  A_k = delta_k + gamma lambda c_k A_{k+1}, c the chance to go on.
    """
    delta = reward + gamma * goes_on * next_value - value
    advantages, running = [], torch.zeros_like(value[:, 0])
    for k in range(reward.shape[1] - 1, -1, -1):
        running = delta[:, k] + gamma * lmbda * goes_on[:, k] * running
        advantages.append(running)
    advantage = torch.stack(advantages[::-1], 1)
    return advantage, advantage + value


class Imagination(nn.Module):
    """Rolls the world model out from every frame of a batch, after the recipe's estimates, and makes use of it.

    What was imagined counts only if, on the held-out environments of the batch, observations are predicted with a skill
    (wm/obs_skill_1) above ``least_skill``, and rewards with a share of their variance (wm/rew_r2) above
    ``least_reward_skill``; at 0 better than by a constant. Rewards that are constant there count as 0.

    Args:
        simulator, world_loss: of the world model, which remains its owner's. learner: what it works for.
        horizon: imagined steps H. least_skill, least_reward_skill: what the skills must exceed.
        held_out: see `FirstRows`.

    Attributes:
        gate: 0-d, 1 if what was imagined of this batch counts, else 0.
        noted: metrics of the latest batch.
    """

    target = None  # no target critic of its own

    def __init__(self, simulator: Simulator, world_loss: WorldModelLoss, learner: Learner, *, horizon: int,
                 least_skill: float, least_reward_skill: float, held_out: float):
        super().__init__()
        self.simulator, self.learner, self.horizon = simulator, learner, horizon
        self.least_skill, self.least_reward_skill, self.held_out = least_skill, least_reward_skill, held_out
        self.__dict__["world_loss"] = world_loss
        self.register_buffer("gate", torch.zeros(()), persistent=False)
        self.noted: dict[str, Tensor] = {}

    @torch.no_grad()
    def forward(self, batch: TensorDictBase) -> TensorDictBase:
        """Measure, roll out, and write into a batch [N, T] what the losses read."""
        out = FirstRows.kept_out(len(batch), self.held_out)
        if not out:
            raise ValueError("imagination of loss 'moa' is measured on held-out environments: it needs --num-envs 2")
        held = batch[-out:]
        measured = torch.stack([self.world_loss.skill(held), reward_skill(self.world_loss, held)])
        skill, explained = distributed.average(measured)
        self.gate.copy_((skill > self.least_skill) & (explained > self.least_reward_skill))
        self.noted = {"imagination/active": self.gate.clone(), "imagination/skill": skill,
                      "imagination/rew_r2": explained}
        self.imagine(batch, held)
        return batch

    def imagine(self, batch: TensorDictBase, held: TensorDictBase) -> None:
        """Roll out and write; ``held``: the held-out environments."""
        raise NotImplementedError

    def companions(self) -> dict[str, list[Loss]]:
        """See `Loss.companions`."""
        return {}

    def start(self, batch: TensorDictBase) -> Tensors:
        """[N T, A, ...]: where roll-outs branch off."""
        return {key: batch[key].flatten(0, 1) for key in self.simulator.keys}

    def paid(self, steps: Sequence[Tensors]) -> Tensor:
        """[R, H, ..., A, 1]: predicted task rewards, summed, weighted and scaled as the learner's are."""
        task = stacked(steps, ("next", *REWARD))
        if self.learner.team_reward:
            task = task.sum(-2, keepdim=True).expand_as(task)
        return self.learner.returns.scaled(self.learner.reward_weights["task"] * task)


class ValueExpansion(Imagination):
    """Value targets R = (1 - mix) R_GAE + mix R^(H); see `value_expansion`. Advantages stay what they were.

    Where an episode terminates within the horizon, as far as the batch shows, the target stays that of the recipe,
    unless the world model predicts ends itself. With --recompute-advantage the actor reads these targets too.

    Args: see `Imagination`; mix: share of R^(H).
    """

    def __init__(self, *parts: Any, mix: float, **options: Any):
        super().__init__(*parts, **options)
        self.mix = mix

    def imagine(self, batch: TensorDictBase, held: TensorDictBase) -> None:
        """Rewrite the value targets."""
        returns = self.learner.returns
        steps, last = self.simulator.roll(self.start(batch), self.horizon)
        expanded = value_expansion(self.paid(steps), returns.bootstrap(last), stacked(steps, GOES_ON),
                                   gamma=returns.gamma)
        expanded = returns.in_critic_units(expanded).unflatten(0, batch.shape)
        target, use = batch[VALUE_TARGET], self.gate > 0
        if not self.simulator.model.world_model.continues:
            use = use & ~terminates(batch, self.horizon)
        batch[VALUE_TARGET] = torch.where(use, torch.lerp(target, expanded, self.mix), target)


class Dyna(Imagination):
    """Experience: the recipe's losses also on one roll-out from every frame, ``weight`` times, in the same steps.

    Roll-outs go on where the real episode terminated, unless the world model predicts ends.
    A frame of the batch carries its roll-out with it, under a key of its own. Advantages are GAE's with a bootstrap at
    the end, normalised among themselves; old log-probabilities are those of the roll-out, so the ratio starts at one.

    Args: see `Imagination`; weight: of the losses. every: learn from the roll-out of every so-many-th frame of a
    minibatch, which are in random order there.
    """

    def __init__(self, *parts: Any, weight: float, every: int = 1, **options: Any):
        super().__init__(*parts, **options)
        self.weight, self.every = weight, every
        self.roots = {"actor": "imagined", "critic": "imagined"}

    def companions(self) -> dict[str, list[Loss]]:
        """The recipe's losses on what was imagined."""
        return {part: [Imagined(loss, self, self.roots[part])] for part, loss in self.learner.losses.items()}

    def imagine(self, batch: TensorDictBase, held: TensorDictBase) -> None:
        """Store the roll-outs."""
        frames = self.frames(*self.simulator.roll(self.start(batch), self.horizon))
        frames[ADVANTAGE] = self.learner.returns.normalized(frames[ADVANTAGE])
        self.store(batch, "imagined", frames)

    def frames(self, steps: Sequence[Tensors], last: Tensors) -> Tensors:
        """All that the losses read of the imagined steps, [R, H, ...]."""
        actor, critic, returns = self.learner.actor, self.learner.critic, self.learner.returns
        keys = dict.fromkeys([*actor.in_keys, *critic.in_keys, ACTION, LOG_PROB])
        frames = {key: stacked(steps, key) for key in keys}
        seen = {key: frames[key] for key in critic.in_keys}
        given = returns.lowered(dict(seen))[VALUE]
        after = {key: torch.cat([x[:, 1:], last[key].unsqueeze(1)], 1) for key, x in seen.items()}
        advantage, target = imagined_gae(self.paid(steps), returns.in_reward_units(given), returns.bootstrap(after),
                                         stacked(steps, GOES_ON), gamma=returns.gamma, lmbda=returns.lmbda)
        return frames | {VALUE: given, VALUE_TARGET: returns.in_critic_units(target), ADVANTAGE: advantage}

    def store(self, batch: TensorDictBase, root: str, frames: Tensors) -> None:
        """Hang roll-outs [N T, H, ...] on the frames of the batch."""
        held = TensorDict({}, batch_size=batch.shape, device=batch.device)
        for key, x in frames.items():
            held[key] = x.unflatten(0, batch.shape)
        batch[root] = held


class DecentralisedDyna(Dyna):
    """`Dyna` where each agent imagines alone: the others do what its own model of them expects.

    Agent i's roll-outs form the i-th of A worlds; see `ModelledOthers`. How long the others are simulated depends on
    how well they are predicted on the held-out environments. Agent i's policy learns from its own world, the critic
    from everything in every world.
    """

    def __init__(self, *parts: Any, action_loss: ActionModelLoss, **options: Any):
        super().__init__(*parts, **options)
        self.__dict__["action_loss"] = action_loss
        self.roots = {"actor": "imagined", "critic": "imagined_worlds"}

    def imagine(self, batch: TensorDictBase, held: TensorDictBase) -> None:
        """Store each agent's own roll-outs for the actor, and all worlds for the critic."""
        lengths = rollout_lengths(self.horizon, predictability(self.action_loss, held))
        self.noted["imagination/modelled_steps"] = lengths.float().mean()
        others = ModelledOthers(self.simulator.model, lengths)
        frames = self.frames(*self.simulator.roll(self.start(batch), self.horizon, others))
        actor, critic = self.learner.actor, self.learner.critic
        own = {key: own_rows(frames[key], 2) for key in dict.fromkeys([*actor.in_keys, ACTION, LOG_PROB, ADVANTAGE])}
        own[ADVANTAGE] = self.learner.returns.normalized(own[ADVANTAGE])
        self.store(batch, "imagined", own)
        self.store(batch, "imagined_worlds", {key: frames[key] for key in [*critic.in_keys, VALUE, VALUE_TARGET]})

    def start(self, batch: TensorDictBase) -> Tensors:
        """[N T, W, A, ...]: every world begins as it is."""
        return {key: x.unsqueeze(1).expand(-1, x.shape[1], *x.shape[1:]) for key, x in super().start(batch).items()}


class Imagined(Loss):
    """Another loss on what was imagined, times the weight of imagination, and times 0 while its gate is closed.

    The other loss and its parameters remain where they are. Names get ``_imagined`` appended.
    """

    def __init__(self, loss: Loss, imagination: Dyna, root: str):
        super().__init__([(root, *key) for key in loss.in_keys])
        self.__dict__.update(loss=loss, imagination=imagination)
        self.root = root

    def forward(self, minibatch: TensorDictBase) -> TensorDictBase:
        """The other loss's entries."""
        factor = self.imagination.weight * self.imagination.gate
        out = self.loss(minibatch[self.root][:: self.imagination.every])
        return TensorDict({f"{name}_imagined": factor * value if name.startswith("loss_") else value
                           for name, value in out.items()})


def terminates(batch: TensorDictBase, horizon: int) -> Tensor:
    """bool [N, T, A, 1]: the episode terminates with one of the next ``horizon`` steps, as far as the batch goes."""
    ends = found = batch["next", *TERMINATED]
    for _ in range(horizon - 1):  # what lies behind another end is not this episode's
        ends = F.pad(ends[:, 1:], (0, 0, 0, 0, 0, 1)) & ~batch["next", *DONE]
        found = found | ends
    return found


def stacked(steps: Sequence[Tensors], key: NestedKey) -> Tensor:
    """[R, H, ...]: one entry of all imagined steps."""
    return torch.stack([step[key] for step in steps], 1)


def reward_skill(world_loss: WorldModelLoss, held: TensorDictBase) -> Tensor:
    """0-d: share of the variance of the task's reward that is predicted, 0 if it is constant (wm/rew_r2)."""
    reward = world_loss.predict(held)[1]
    return reward_prediction(reward, world_loss.scaled(held[TASK_REWARD]))["rew_r2"]


def predictability(action_loss: ActionModelLoss, held: TensorDictBase) -> Tensor:
    """[A, P]: how well each agent predicts each other; accuracy, or explained variance of continuous actions."""
    prediction, target = action_loss.predict(held), action_loss.targets(held)
    weight = action_loss.weights(held)

    def mean(x: Tensor) -> Tensor:
        return (x * weight).flatten(0, -3).sum(0) / weight.flatten(0, -3).sum(0).clamp_min(1)

    if action_loss.discrete:
        return mean((prediction.argmax(-1) == target).to(weight.dtype))
    centre = torch.stack([mean(x) for x in target.unbind(-1)], -1)
    spread, error = mean((target - centre).square().sum(-1)), mean((target - prediction[0]).square().sum(-1))
    return (1 - error / spread.clamp_min(1e-8)).clamp_min(0)


# ---------------------------------------------------------------------- what is refused


def check_imagination(options: dict[str, Any]) -> None:
    """ValueError for options of `MOALoss` that do not go together with imagination."""
    kind = options["imagination"]
    if not options["imagination_mix"] <= 1:
        raise ValueError(f"imagination_mix of loss 'moa' is a share between 0 and 1, got {options['imagination_mix']}")
    if kind == "none":
        return
    low, high = HORIZONS[kind]
    if not low <= options["horizon"] <= high:
        raise ValueError(f"imagination {kind!r} of loss 'moa' looks {low} to {high} steps ahead, got horizon="
                         f"{options['horizon']}")
    wrong = {"held_out=0 (its skill is measured there)": not options["held_out"],
             "obs_coef=0 (the world model must learn)": not options["obs_coef"],
             "reward_coef=0 (the world model must learn)": not options["reward_coef"],
             "memory='gru' (imagined steps have none)": options["memory"] != "none",
             "an untrained state model (actor_inputs obs+past, obs+hidden)": options["actor_inputs"] in (
                 "obs+past", "obs+hidden")}
    refuse(f"imagination {kind!r}", wrong)


def check_learner(kind: str, specs: Specs, previous_keys: Sequence[NestedKey], learner: Learner) -> None:
    """ValueError for a learner or task whose inputs the world model does not predict."""
    actor, critic = learner.actor.in_keys, learner.critic.in_keys
    shaped = sorted(name for name, weight in learner.reward_weights.items() if weight and name != "task")
    wrong = {"recurrent actors and critics": RECURRENT in actor or CRITIC_RECURRENT in critic,
             "action masks": ACTION_MASK in actor, "agents that leave early": specs.alive is not None,
             "agents that the task plays itself": specs.controlled is not None,
             "a critic of the task's own state": STATE in critic,
             f"what this task says of each step, {sorted(set(previous_keys) - {ACTION})}": len(previous_keys) > 1,
             f"the reward terms {shaped}, which are not predicted": bool(shaped),
             "--recompute-advantage": kind == "decentralised" and ADVANTAGE not in learner.losses["actor"].in_keys}
    refuse(f"imagination {kind!r}", wrong)


def refuse(what: str, wrong: dict[str, bool]) -> None:
    """ValueError for the first that is found of what an option of `MOALoss` does not go with."""
    for name, found in wrong.items():
        if found:
            raise ValueError(f"{what} of loss 'moa' does not go with {name}")
