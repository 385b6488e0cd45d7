"""Does each part of the family predict? Measured on environments that its training left out."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import torch
from tensordict import TensorDictBase
from torch import Tensor

from suite.latent_probes import probe_latents
from suite.losses.world_model import TASK_REWARD
from suite.modules.state_model import LATENT, PAST
from suite.specs import ACTION, IS_INIT, OBSERVATION, PRIVILEGED, Specs
from suite.state_metrics import (
    as_floats,
    joint_gain,
    latent_statistics,
    observation_prediction,
    open_loop,
    reward_prediction,
)

if TYPE_CHECKING:
    from suite.losses.moa import MOALoss

HORIZONS = (1, 3, 5, 10)
PROBED = 4  # as many environments as were held out are enough for probes to learn from


@torch.no_grad()
def measure(loss: MOALoss, train: TensorDictBase, held: TensorDictBase, specs: Specs) -> dict[str, float]:
    """moa/..., wm/..., cvae/... and probe/... of ``held`` [n, T]; ``train`` gives the frequencies of the baselines."""
    actions = loss.action_loss.scores(train, held) | loss.action_loss.scores_by_step(train, held)
    out = as_floats(actions, "moa/") | as_floats(_world(loss, held), "wm/") | as_floats(_latent(loss, held), "cvae/")
    optional = {PRIVILEGED: specs.hidden_dim, specs.alive: specs.alive, specs.informed: specs.informed}
    told = [IS_INIT, OBSERVATION, ACTION, *(key for key, there in optional.items() if there)]
    both = [train[: PROBED * len(held)], held]  # probes learn where the models did, and are tested on what these left
    found = [_representations(loss, td) for td in both]
    representations = {name: torch.cat([parts[name] for parts in found]) for name in found[0]}
    return out | probe_latents(torch.cat([td.select(*told) for td in both]), representations, specs, ceiling="uc",
                               held_out=len(held))


def _latent(loss: MOALoss, held: TensorDictBase) -> dict[str, Tensor]:
    known, cvae = loss.model.infer_batch(held), loss.cvae_loss
    teacher = None if cvae.teacher is None else cvae.teacher(*known.student_inputs, cvae.privileged(held))
    weight = held[PAST[-1]].squeeze(-1) * (held[cvae.alive] if cvae.alive else 1)
    out = latent_statistics((known.mean, known.log_sigma), teacher, weight, direction=cvae.kl_direction)
    return out | {"rec": cvae.reconstruction(held, known)}


def _representations(loss: MOALoss, td: TensorDictBase) -> dict[str, Tensor]:
    """[N, T, A, d] by name: what an agent sees, what the student reads, the teacher's mean, what the actor reads."""
    known = loss.model.infer_batch(td)
    out = {"u": known.u, "uc": torch.cat([known.u, known.context], -1)}
    if loss.cvae_loss.teacher is not None:
        out["z_teacher"] = loss.cvae_loss.teacher(*known.student_inputs, loss.cvae_loss.privileged(td))[0]
    return out | ({"z": loss.acting.infer_batch(td).mean} if LATENT in td.keys(True) else {})


def _world(loss: MOALoss, held: TensorDictBase) -> dict[str, Tensor]:
    world, model = loss.world_loss, loss.model
    predicted, reward = world.predict(held)
    u, after = model.scaler(held[OBSERVATION]), model.scaler(held["next", *OBSERVATION])
    alive = held[world.alive].to(u.dtype) if world.alive else None
    mask = model.scaler.mask
    out = observation_prediction(predicted, after, u, alive, dims=mask)
    out |= reward_prediction(reward.squeeze(-1), world.scaled(held[TASK_REWARD]).squeeze(-1), alive)
    own, others = model.joint_action(held).tensor_split([model.actions.dim], -1)
    others = others.unflatten(-1, (-1, model.actions.dim))

    latent = world.latent(held)

    def step(observation: Tensor, mine: Tensor, theirs: Tensor, *, first: int = 0) -> Tensor:
        joint, starts = torch.cat([mine, theirs.flatten(-2)], -1), slice(first, first + observation.shape[1])
        known = (z[:, starts] for z in latent)  # that of the start: later ones have seen what is predicted
        return model.world_model(observation, joint, *known)[0] * mask  # what it says of padding is not learned

    out["gain_joint"] = joint_gain(step, u, after, own, others, alive, dims=mask)
    done = held["next", "done"].squeeze(-1)  # an agent's own flag also says that it has left
    guesses: dict[str, ExpectedOthers | None] = {"true": None}
    if not model.action_model.sees_present:  # it would have to be shown the observation that is predicted
        guesses["moa"] = ExpectedOthers(loss, held)
    for name, guess in guesses.items():
        horizons = [k for k in HORIZONS if k <= held.shape[1] - (guess is not None)]
        if not horizons:
            continue
        ahead = open_loop(partial(step, first=int(guess is not None)), u, after, own, others, done, alive,
                          horizons=horizons, dims=mask, predict_others=guess)
        out |= {f"{key}_{name}": value for key, value in ahead.items()}
    return out


class ExpectedOthers:
    """The others' likeliest actions by an agent's own model of them, for `open_loop` on a batch [B, T].

    It is called once for each step ahead, in order; a memory goes on from the state that it had at each start.
    """

    def __init__(self, loss: MOALoss, batch: TensorDictBase):
        previous, actions = loss.model.previous, loss.model.actions
        self.model, self.ahead = loss.model, 0
        self.reached = loss.action_loss.infer(batch)[1]
        encoded = actions.encode(batch[ACTION])
        known = previous.arrange(torch.ones_like(encoded), *(batch[key] for key in previous.keys[1:]))
        self.known = known[..., actions.dim :].unflatten(-1, (-1, actions.dim))  # hidden actions stay hidden

    def __call__(self, u: Tensor, own: Tensor, others: Tensor) -> Tensor:
        """From observation [B, S, N, D], own [B, S, N, E] and others' actions [B, S, N, P, E] of the step before."""
        rows, network, state = u.shape[:2], self.model.action_model, None
        joint = torch.cat([own, others.flatten(-2)], -1)
        inputs = [x.flatten(0, 1) for x in (u, joint, torch.ones_like(u[..., :1]))]
        if self.reached is not None:
            state = network.remember(*inputs, self.reached[:, : rows[1]].flatten(0, 1))
            self.reached = state.unflatten(0, rows)
        self.ahead += 1
        likeliest = network.likeliest(network(*inputs, state)).unflatten(0, rows)
        return likeliest * self.known[:, self.ahead : self.ahead + rows[1]]
