"""Experiments without RL: the models of loss ``moa`` learn what frozen policies do, and are measured on fresh episodes.

The loop is the recipe's own (collector, the loss's updates, its statistics) with nothing that learns to act.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from tensordict import TensorDictBase
from tensordict.nn import TensorDictModule, TensorDictModuleBase, TensorDictSequential
from torch import Tensor, nn

from envs import make_env
from suite.collector import make_collector
from suite.data import Minibatches
from suite.losses.moa import MOALoss
from suite.losses.moa_metrics import measure
from suite.modules import make_actor
from suite.modules.state_model import PREV_ACTION
from suite.modules.taken_action import taken_action
from suite.run import MemoryRun
from suite.specs import ACTION, OBSERVATION, Specs
from suite.trainer import Trainer
from suite.update import Update

SHARPNESS = 400.0  # turns the small logits of a new actor into ones of about +-2: neither uniform nor one-hot
LR = 1e-3
SMOOTH = 0.85  # correlation of successive actions (section 5.3 of the specification)


@dataclass(frozen=True)
class Effort:
    """How much is collected and learned; tests take less."""

    iterations: int = 20
    num_envs: int = 64
    steps: int = 100
    epochs: int = 10
    minibatch: int = 800
    test_envs: int = 64


class SmoothActions(nn.Module):
    """Continuous actions without a purpose: a_t = 0.85 a_{t-1} + sqrt(1 - 0.85^2) uniform noise, inside the bounds."""

    def __init__(self, specs: Specs):
        super().__init__()
        self.register_buffer("middle", (specs.high + specs.low) / 2)
        self.register_buffer("reach", (specs.high - specs.low) / 2)

    def forward(self, before: Tensor) -> Tensor:
        """Previous joint action [B, A, A E], own first and in [-1, 1] -> action [B, A, E]."""
        own = before[..., : self.reach.shape[-1]]
        noise = 2 * torch.rand_like(own) - 1
        return self.middle + self.reach * (SMOOTH * own + (1 - SMOOTH**2) ** 0.5 * noise).clamp(-1, 1)


def smooth_actors(specs: Specs) -> TensorDictModuleBase:
    """Agents that do not look."""
    return TensorDictModule(SmoothActions(specs), in_keys=[PREV_ACTION], out_keys=[ACTION])


def uniform_actors(specs: Specs) -> TensorDictModuleBase:
    """Agents that do not look and choose among their discrete actions with equal probability."""
    return TensorDictModule(lambda seen: torch.randint(specs.action_dim, seen.shape[:-1], device=seen.device),
                            in_keys=[OBSERVATION], out_keys=[ACTION])


def random_partners(specs: Specs) -> TensorDictModuleBase:
    """Stochastic agents that act on what they see: one random network each, which never learns."""
    actor = make_actor(specs, {}, share="none", agent_id=False, cells=(64, 64), activation="tanh", init="orthogonal",
                       recurrent_dim=0, head="tanh_normal", state_dependent_scale=False, device="cpu")
    with torch.no_grad():
        actor[0].module.out.weight.mul_(SHARPNESS)
    return actor.requires_grad_(False)


@dataclass
class Learned:
    """Trained models, a batch from where they learned, and fresh episodes [N, T] that nothing was fitted to."""

    loss: MOALoss
    specs: Specs
    train: TensorDictBase
    test: TensorDictBase

    def numbers(self) -> dict[str, float]:
        """The metrics that a training run logs, of the fresh episodes."""
        return measure(self.loss, self.train, self.test, self.specs)


def learn(task: str, actors: Callable[[Specs], TensorDictModuleBase], *, seed: int, part: str | None = None,
          effort: Effort = Effort(), loss_options: dict[str, Any] | None = None, **options: Any) -> Learned:
    """Train the loss's models on what ``actors`` do.

    Args:
        part: train one of the losses inside only, ``action_loss`` or ``world_loss``; None: all.
        options: of the task.
    """
    torch.manual_seed(seed)
    make = partial(make_env, task, **options)
    env, test_env = make(num_envs=effort.num_envs, seed=seed), make(num_envs=effort.test_envs, seed=seed + 1_000_000)
    specs = Specs.from_env(env)
    loss = MOALoss(specs, **{"epochs": effort.epochs, "lr": LR, "held_out": 0.0} | (loss_options or {}))
    data = Minibatches(effort.epochs, effort.minibatch)
    updates = loss.updates("moa", data) if part is None else [_only(loss, part, data)]
    policy = TensorDictSequential(*([] if part else loss.encoders), actors(specs), *taken_action(specs),
                                  *loss.recorders)
    keep = [*loss.reward_keys, *(key for update in updates for key in update.keys)]
    collect = partial(make_collector, policy=policy, steps=effort.steps, keep=keep)
    collector = collect(env, total_frames=effort.iterations * effort.num_envs * effort.steps)
    trainer = Trainer(collector, policy, updates, reward_weights={"task": 1.0}, run=MemoryRun(), losses=[loss])
    loss.plan(collector.total_frames)
    trainer.train()
    test = collect(test_env, total_frames=effort.test_envs * effort.steps).rollout()
    trainer.receive(test)
    return Learned(loss, specs, collector.rollout(), test)


def _only(loss: MOALoss, part: str, data: Minibatches) -> Update:
    """An update of one of the losses inside; nothing else learns."""
    inner = loss.requires_grad_(False).get_submodule(part)
    for parameters in inner.networks("moa").values():
        for parameter in parameters:
            parameter.requires_grad_(True)
    adam = partial(torch.optim.Adam, lr=LR, eps=1e-5, fused=True)
    return Update("moa", {"moa": inner}, data, optimizer=adam, max_grad_norm=1.0)
