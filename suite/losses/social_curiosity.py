"""The reward for what an agent could not foresee with the others in mind (social curiosity, Heemskerk 2020)."""

from __future__ import annotations

import torch
from tensordict import TensorDict, TensorDictBase
from torch import Tensor, nn

from suite.losses.action_model import ActionModelLoss
from suite.losses.common import Loss
from suite.losses.world_model import NEXT_OBSERVATION
from suite.modules.gaussian import weighted_mean
from suite.modules.networks import AgentInput, mlp
from suite.specs import DONE, GROUP, OBSERVATION, Specs

MOVED = (GROUP, "influence")  # [N, T, A, 1], how far the agent's action moves what it expects of the others
EXPECTED = (GROUP, "expected_actions")  # [N, T, A, F], what it expects of their next actions, see `ActionModel.feature`
LIMIT = 10.0


class SocialCuriosityLoss(Loss):
    """L = mean over living agents of forward_share F + (1 - forward_share) I, and the reward term min(F_t, 10).

    F_t = 1/2 mean |f(e_t, a_t, h_t, i_t) - e_{t+1}|^2,  I_t = 1/2 (g(e_t, e_{t+1}, a_t, h_t) - i_t)^2,  e_t = phi(u_t)

    u is the standardised observation, a the joint action as the agent knows it, h what it then expects of the others'
    next actions, i its influence on them (`ActionModelLoss.influence`); h and i are constants, as they were when the
    reward was paid. So is the target of F: else f would be served best by an encoding in which nothing differs. What
    makes phi hold what counts is I, the inverse model's error, as in Pathak et al. (2017), except that it infers the
    influence instead of the action; after an episode's last step there is none, and I has no weight there.

    The program of the thesis has f read the memory of its model of the others, which ours need not have, pays with
    weight 0.001, and has a ReLU behind each output; ours are linear.

    Args:
        action_loss: the model of the others; it remains its owner's. forward_share: 0.5 in the program's scripts, 0.2
            is its default. code_dim: size of e.
    """

    def __init__(self, specs: Specs, action_loss: ActionModelLoss, *, forward_share: float = 0.5, code_dim: int = 32,
                 cells=(32,)):
        model = action_loss.model
        super().__init__([OBSERVATION, *model.previous.keys, NEXT_OBSERVATION, ("next", *DONE), MOVED, EXPECTED,
                          *([specs.alive] if specs.alive else [])])
        self.__dict__.update(action_loss=action_loss, model=model)
        self.alive, self.forward_share = specs.alive, forward_share
        n, context = specs.n_agents, specs.n_agents * specs.action_dim + model.action_model.feature_dim
        self.assemble = AgentInput(n, agent_id=True)
        like = dict(cells=cells, activation="relu", init="orthogonal")
        self.code = mlp(specs.obs_dim + n, code_dim, None, **like)
        self.foresight = mlp(code_dim + context + 1 + n, code_dim, None, **like)
        self.hindsight = mlp(2 * code_dim + context + n, 1, None, **like)

    @torch.no_grad()
    def pay(self, batch: TensorDictBase, moved: Tensor) -> Tensor:
        """The reward term [N, T, A, 1] of a batch, to which it adds what `forward` reads; ``moved``: i."""
        batch[MOVED], batch[EXPECTED] = moved, self.action_loss.expected(batch)
        before, after = self._codes(batch)
        return self._surprise(batch, before, after).clamp_max(LIMIT).unsqueeze(-1)

    def forward(self, minibatch: TensorDictBase) -> TensorDictBase:
        """``loss_foresight`` and ``loss_hindsight``."""
        before, after = self._codes(minibatch)
        surprise = self._surprise(minibatch, before, after.detach())
        guess = self.hindsight(self.assemble(before, after, *self._context(minibatch)))
        miss = (guess - minibatch[MOVED]).square().squeeze(-1) / 2
        alive = minibatch[self.alive].to(miss.dtype) if self.alive else torch.ones_like(miss)
        goes_on = alive * ~minibatch["next", *DONE].squeeze(-1)
        return TensorDict({"loss_foresight": self.forward_share * weighted_mean(surprise, alive),
                           "loss_hindsight": (1 - self.forward_share) * weighted_mean(miss, goes_on)})

    def networks(self, part: str) -> dict[str, list[nn.Parameter]]:
        """Encoder, forward and inverse model."""
        return {part: list(self.parameters())}

    def _codes(self, td: TensorDictBase) -> tuple[Tensor, Tensor]:
        """e_t and e_{t+1} [..., A, k]."""
        return tuple(self.code(self.assemble(self.model.scaler(td[key]))) for key in (OBSERVATION, NEXT_OBSERVATION))

    def _context(self, td: TensorDictBase) -> tuple[Tensor, Tensor]:
        return self.model.joint_action(td), td[EXPECTED]

    def _surprise(self, td: TensorDictBase, before: Tensor, after: Tensor) -> Tensor:
        """F [..., A]."""
        foreseen = self.foresight(self.assemble(before, *self._context(td), td[MOVED]))
        return (foreseen - after).square().mean(-1) / 2
