"""A small HyAR loss and random transitions of hybrid actions, for its tests."""

from unittest import mock

import torch
from tensordict import TensorDict

from suite.losses.hyar import NEXT_OBSERVATION, HyARLoss
from suite.specs import CHOICE, LATENT_ACTION, OBSERVATION, PARAMS, Specs

torch.set_num_threads(1)
MASK = torch.tensor([[True, True], [False, False], [True, False]])  # two, no and one parameter
SMALL = dict(num_cells=16, embed_dim=3, latent_dim=2, warmup=40, bounds_rows=30, pretrain=6, batch=8, memory=300,
             refresh_every=2, refresh_after=4)


def specs_of(n_agents=1, mask=MASK, **options):
    """Sizes of a made-up task with 4 observations."""
    return Specs(n_agents=n_agents, obs_dim=4, action_dim=mask.shape[-1], discrete=False, agent_types=(0,) * n_agents,
                 param_mask=mask, **options)


def make(specs=None, seed=0, **options):
    """A loss with few cells, whose warm-up is 40 frames."""
    torch.manual_seed(seed)
    return HyARLoss(specs or specs_of(), **SMALL | options)


def transitions(*shape, agents=1, params=2, seed=0):
    """A batch [N, T] of hybrid actions in which no episode ends; parameters that choices do not have are no zeros."""
    random = torch.Generator().manual_seed(seed)
    td = TensorDict(batch_size=shape)
    td[OBSERVATION] = torch.randn(*shape, agents, 4, generator=random)
    td[CHOICE] = torch.randint(3, (*shape, agents), generator=random)
    td[PARAMS] = 2 * torch.rand(*shape, agents, params, generator=random) - 1
    td[LATENT_ACTION] = 2 * torch.rand(*shape, agents, 5, generator=random) - 1
    td[NEXT_OBSERVATION] = td[OBSERVATION] + 0.3 * torch.randn(*shape, agents, 4, generator=random)
    td["next", "done"] = torch.zeros(*shape, 1, dtype=torch.bool)
    return td


def total(out):
    """The sum that is minimised."""
    return sum(value for key, value in out.items() if key.startswith("loss_"))


def receive(loss, *shape, done=0):
    """A batch in which that many episodes end; how many steps are due."""
    td = transitions(*shape)
    td["next", "done"].view(-1)[:done] = True
    loss.receive(td)
    return loss.due


def run(loss, update, *shape, done=0, seed=0):
    """One iteration: the totals of the steps that were taken, and the update's metrics."""
    td = transitions(*shape, agents=loss.n_agents, seed=seed)
    td["next", "done"].view(-1)[:done] = True
    loss.receive(td)
    update.data.owner.extend(td)
    totals, forward = [], loss.forward

    def noting(minibatch):
        out = forward(minibatch)
        totals.append(total(out).item())
        return out

    with mock.patch.object(loss, "forward", noting):
        metrics = update.run(td)
    return totals, metrics
