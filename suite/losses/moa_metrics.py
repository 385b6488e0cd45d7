"""Does each part of the family predict? Measured on environments that its training left out."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from tensordict import TensorDictBase
from torch import Tensor

from suite.latent_probes import probe_latents
from suite.losses.world_model import TASK_REWARD
from suite.modules.state_model import LATENT, PAST
from suite.specs import ACTION, DONE, LOGITS, OBSERVATION, Specs
from suite.state_metrics import (
    action_frequencies,
    action_moments,
    action_prediction,
    as_floats,
    categorical_entropy,
    continuous_action_prediction,
    latent_statistics,
    observation_prediction,
    open_loop,
    reward_prediction,
)

if TYPE_CHECKING:
    from suite.losses.moa import MOALoss

HORIZONS = (1, 3, 5, 10)


@torch.no_grad()
def measure(loss: MOALoss, train: TensorDictBase, held: TensorDictBase, specs: Specs) -> dict[str, float]:
    """moa/..., wm/..., cvae/... and probe/... of ``held`` [n, T]; ``train`` gives the frequencies of the baselines."""
    out = as_floats(_actions(loss, train, held), "moa/") | as_floats(_world(loss, held), "wm/")
    known = loss.model.infer(held[OBSERVATION], *(held[key] for key in PAST))
    valid = held[PAST[-1]].squeeze(-1)
    representations = {"u": known.u, "uc": torch.cat([known.u, known.context], -1)}
    teacher = None
    if loss.cvae_loss.teacher is not None:
        teacher = loss.cvae_loss.teacher(known.x, known.context, loss.cvae_loss.privileged(held))
        representations["z_teacher"] = teacher[0]
    if LATENT in held.keys(True):
        representations["z"] = known.mean
    direction = loss.cvae_loss.kl_direction
    out |= as_floats(latent_statistics((known.mean, known.log_sigma), teacher, valid, direction=direction), "cvae/")
    return out | probe_latents(held, representations, specs, ceiling="uc")


def _actions(loss: MOALoss, train: TensorDictBase, held: TensorDictBase) -> dict[str, Tensor]:
    model = loss.action_loss
    target, weight, before = model.targets(held), model.weights(held), model.targets(train)
    previous = torch.cat([target[:, :1], target[:, :-1]], 1)  # unused where the past is not valid
    entropy = None
    if model.discrete:
        if LOGITS in held.keys(True):
            entropy = categorical_entropy(held[LOGITS]).unsqueeze(-1)
            entropy = model.model.actions.of_others(entropy).squeeze(-1)
        frequencies = action_frequencies(before, model.model.actions.dim, model.weights(train))
        return action_prediction(model.predict(held), target, weight, frequencies=frequencies, previous=previous,
                                 entropy=entropy)
    return continuous_action_prediction(model.predict(held), target, weight, marginal=action_moments(before),
                                        previous=previous)


def _world(loss: MOALoss, held: TensorDictBase) -> dict[str, Tensor]:
    world, model = loss.world_loss, loss.model
    predicted, reward = world.predict(held)
    u, after = model.scaler(held[OBSERVATION]), model.scaler(held["next", *OBSERVATION])
    alive = held[world.alive].to(u.dtype) if world.alive else None
    mask = model.scaler.mask
    out = observation_prediction(predicted, after, u, alive, dims=mask)
    out |= reward_prediction(reward.squeeze(-1), held[TASK_REWARD].squeeze(-1) / world.reward_scale,
                             alive)
    own = model.actions.encode(held[ACTION])
    others = model.actions.of_others(own)

    def step(observation: Tensor, mine: Tensor, theirs: Tensor) -> Tensor:
        joint = model.previous.visible(torch.cat([mine, theirs.flatten(-2)], -1))
        return model.world_model(observation, joint)[0]

    done = held["next", *DONE][..., 0, 0]
    horizons = [k for k in HORIZONS if k <= held.shape[1]]
    ahead = open_loop(step, u, after, own, others, done, alive, horizons=horizons, dims=mask)
    return out | {f"{name}_true": value for name, value in ahead.items()}
