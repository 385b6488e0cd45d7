"""Roll-outs in the imagination: every agent's world model, rolled ahead jointly under the present policies.

R starts, A agents, P = A - 1 others. A step is a dict of tensors under the keys that a collector would write; the next
observation of everybody comes from everybody's own prediction. With worlds, one per agent, tensors are [R, W, A, ...].
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from tensordict.nn import TensorDictModuleBase, TensorDictSequential
from torch import Tensor

from suite.modules.lowered import Lowered, Tensors
from suite.modules.normalizer import LIMIT
from suite.modules.state_model import PAST, StateModel
from suite.specs import ACTION, OBSERVATION, REWARD

GOES_ON = ("next", "agents", "goes_on")  # [..., A, 1], the predicted chance that the episode does


class Simulator:
    """Runs encoders, actor and world model in turn.

    Args:
        model: world model, scaler and what hands the past on; without a memory.
        encoders, actor: what acts. unscaled: predicted rewards -> rewards of the task.
    """

    def __init__(self, model: StateModel, encoders: Sequence[TensorDictModuleBase], actor: TensorDictModuleBase,
                 unscaled: Callable[[Tensor], Tensor]):
        self.model, self.unscaled, self.keys = model, unscaled, model.keys
        self.encoder = Lowered(TensorDictSequential(*encoders)) if encoders else None
        self.act = Lowered(actor)

    @torch.no_grad()
    def roll(self, start: Tensors, horizon: int,
             others: Callable[[int, Tensors], Tensor] | None = None) -> tuple[list[Tensors], Tensors]:
        """The steps from what `keys` name in ``start``, and what actor and critic would read after the last.

        ``others``: (k, step k with the policies' actions) -> the actions that are taken instead.
        """
        steps, now = [], self.encode(start)
        for k in range(horizon):
            step = self.act(dict(now))
            if others is not None:
                step[ACTION] = others(k, step)
            step |= self.advance(step)
            steps.append(step)
            now = self.encode({key: step["next", *key] for key in self.keys})
        return steps, now

    def encode(self, tensors: Tensors) -> Tensors:
        """Observation and past with the features of actor and critic."""
        return dict(tensors) if self.encoder is None else self.encoder(dict(tensors))

    def advance(self, step: Tensors) -> Tensors:
        """What follows from observations and actions: raw observation, past, task reward, `GOES_ON`."""
        observation, scaler = step[OBSERVATION], self.model.scaler
        past = self.model.previous(observation, step[ACTION])
        latent = [step["next", *key] for key in self.model.carried_latent]
        predicted = self.model.world_model.predict(scaler(observation), past[1], *latent)
        after = predicted.observation.clamp(-LIMIT, LIMIT) * (scaler.var + 1e-8).sqrt() + scaler.mean
        after = torch.where(scaler.mask, after, observation)  # what never varied does not now
        return dict(zip([("next", *key) for key in PAST], past, strict=True)) | {
            ("next", *OBSERVATION): after, ("next", *REWARD): self.unscaled(predicted.reward),
            GOES_ON: predicted.goes_on}


class ModelledOthers:
    """In agent i's world i, the others act as agent i's model of them expects, for as long as that can be trusted.

    Other j is simulated at steps k with k + 1 < ``lengths[i, j]`` and acts by its own policy from then on, and where
    agent i has no past yet (as AORPO does, Zhang et al. 2021).

    Args:
        lengths: [A, P], of each agent's others in ascending order; see `rollout_lengths`.
    """

    def __init__(self, model: StateModel, lengths: Tensor):
        self.model = model
        agents = torch.arange(len(lengths), device=lengths.device)
        world, agent = agents[:, None], agents
        self.place = (agent - (agent > world).long()).clamp_max(lengths.shape[1] - 1)  # [W, A]: which other of w is a
        self.lengths = lengths.gather(1, self.place).masked_fill(world == agent, 0)  # [W, A], own actions are own

    def __call__(self, k: int, step: Tensors) -> Tensor:
        """Actions [R, W, A(, d)] at step k."""
        taken = step[ACTION]
        valid = step[PAST[-1]][..., 0]  # [R, W, A], the same for all agents
        simulated = (k + 1 < self.lengths) & (valid > 0)
        expected = self.expected(step)
        return torch.where(simulated if taken.ndim == simulated.ndim else simulated.unsqueeze(-1), expected, taken)

    def expected(self, step: Tensors) -> Tensor:
        """[R, W, A(, d)]: in world i samples of what agent i expects; own entries mean nothing."""
        prediction, _ = self.model.predict_actions(*(own_rows(step[key], 1) for key in PAST))
        if self.model.action_model.discrete:
            sampled = torch.distributions.Categorical(logits=prediction, validate_args=False).sample()  # [R, A, P]
            return sampled.gather(2, self.place.expand(len(sampled), -1, -1))
        mean, log_sigma = prediction
        sampled = (mean + log_sigma.exp() * torch.randn_like(mean)).clamp(-1, 1)  # [R, A, P, d], of [-1, 1]
        place = self.place[..., None].expand(len(sampled), -1, -1, sampled.shape[-1])
        actions = self.model.actions
        return actions.middle + actions.reach * sampled.gather(2, place)


def own_rows(x: Tensor, dim: int) -> Tensor:
    """[..., W, A, ...] -> [..., A, ...]: agent i in its own world i; ``dim`` is that of the worlds."""
    return x.diagonal(dim1=dim, dim2=dim + 1).movedim(-1, dim)


def rollout_lengths(horizon: int, accuracy: Tensor) -> Tensor:
    """How long each other can be simulated: floor(horizon acc_j / max_j acc_j), int64 [..., P] of [..., P].

    Zhang et al. 2021 (AORPO), section 4.2; nobody at all if nothing is predicted.
    """
    best = accuracy.amax(-1, keepdim=True)
    share = torch.where(best > 0, accuracy / best.clamp_min(1e-8), 0.0)
    return (horizon * share + 1e-4).floor().long()  # 10 * 0.3 / 0.3 is not quite 10 in float32
