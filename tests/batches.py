"""Sizes and random batches for tests of networks and losses."""

from __future__ import annotations

from functools import partial

import torch
from tensordict import TensorDict

from suite.data import Sequences
from suite.losses import Learner, Returns, SMPELoss
from suite.losses.world_model import TASK_REWARD
from suite.modules import make_actor, make_critic
from suite.modules.policies import CRITIC_RECURRENT
from suite.modules.state_model import MEMORY, PREV_ACTION, PREV_LATENT, PREV_OBSERVATION, PREV_VALID
from suite.specs import (
    ACTION,
    ACTION_MASK,
    ADVANTAGE,
    ALIVE,
    DONE,
    IS_INIT,
    LOG_PROB,
    OBSERVATION,
    PRIVILEGED,
    RECURRENT,
    REWARD,
    STATE,
    TERMINATED,
    VALUE,
    VALUE_TARGET,
    Specs,
)

torch.set_num_threads(1)


def make_specs(kind: str = "continuous", *, n_agents: int = 3, types=None, state: bool = True, **options) -> Specs:
    """Sizes of a made-up task with 4 observations: 5 choices, or 2 numbers with bounds that differ between agents."""
    common = dict(n_agents=n_agents, obs_dim=4, horizon=6, agent_types=tuple(types or (0,) * n_agents),
                  state_dim=6 if state else None, **options)
    if kind == "continuous":
        low = -torch.arange(1.0, n_agents + 1).unsqueeze(-1).expand(-1, 2)
        return Specs(action_dim=2, discrete=False, low=low, high=-2 * low, **common)
    return Specs(action_dim=5, discrete=True, has_mask=kind == "masked", **common)


# options that bring a state model's rare trainings into a few frames
STATE_MODEL_OPTIONS = {"smpe": dict(encode_every=1, encode_steps=3, encode_rows=4, memory=20, latent_dim=3,
                                    copy_every=2),
                       "moa": dict(latent_dim=3, num_cells=8, depth=1)}


def make_batch(specs: Specs, *, shape=(4, 6), seed: int = 0, hidden: int = 0, critic_rows: int = 0) -> TensorDict:
    """Random numbers for every key that a loss of the suite may read; episodes end, and terminate, in the middle."""
    random = torch.Generator().manual_seed(seed)

    def normal(*size):
        return torch.randn(*shape, *size, generator=random)

    def choice(*size):
        return torch.rand(*shape, *size, generator=random)

    n = specs.n_agents
    batch = TensorDict(batch_size=shape, device="cpu")
    for root in ((), ("next",)):
        batch[(*root, *OBSERVATION)] = normal(n, specs.obs_dim)
        batch[(*root, STATE)] = normal(specs.state_dim or 6)
        mask = choice(n, 5) < 0.6
        mask[..., 2] = True
        batch[(*root, *ACTION_MASK)] = mask
    if specs.discrete:
        mask = batch[ACTION_MASK] if specs.has_mask else torch.ones_like(batch[ACTION_MASK])
        batch[ACTION] = (choice(n, 5) * mask).argmax(-1)
    else:
        batch[ACTION] = specs.low + (specs.high - specs.low) * (0.1 + 0.8 * choice(n, specs.action_dim))
    batch[LOG_PROB] = -1 + 0.3 * normal(n)
    for key in (ADVANTAGE, VALUE, VALUE_TARGET, ("next", *REWARD)):
        batch[key] = normal(n, 1)
    batch[ALIVE] = choice(n) < 0.8
    batch["next", "terminated"] = choice(1) < 0.2
    batch["next", "done"] = batch["next", "terminated"] | (choice(1) < 0.2)
    for source, key in (("done", DONE), ("terminated", TERMINATED)):
        batch["next", *key] = batch["next", source].unsqueeze(-2).expand(*shape, n, 1).clone()
    batch[IS_INIT] = torch.ones(*shape, 1, dtype=torch.bool)
    batch[IS_INIT][:, 1:] = batch["next", "done"][:, :-1]
    if hidden:
        batch[RECURRENT] = normal(n, hidden)
    if critic_rows:
        batch[CRITIC_RECURRENT] = normal(critic_rows, hidden)
    return batch


def make_past_batch(specs: Specs, *shape: int, seed: int = 0, memory: int = 0, latent: int = 0) -> TensorDict:
    """`make_batch` with the step before, which each row's first step does not have, and hidden variables if any.

    ``memory``: size of the states of a remembering state model, ``latent``: of the latent that a world model reads,
    both before and after each step.
    """
    td, random = make_batch(specs, shape=shape, seed=seed), torch.Generator().manual_seed(seed)
    n = specs.n_agents
    td[PREV_VALID] = torch.ones(*shape, n, 1)
    td[PREV_VALID][:, 0] = 0
    td[PREV_OBSERVATION] = torch.randn(*shape, n, specs.obs_dim, generator=random) * td[PREV_VALID]
    td[PREV_ACTION] = torch.rand(*shape, n, n * specs.action_dim, generator=random) * td[PREV_VALID]
    td[TASK_REWARD] = td["next", *REWARD].clone()
    for key, size in (*((key, memory) for key in MEMORY), (PREV_LATENT, latent)):
        for root in ((), ("next",)) if size else ():
            td[(*root, *key)] = torch.randn(*shape, n, size, generator=random)
    if specs.hidden_dim:
        td[PRIVILEGED] = torch.randn(*shape, n, specs.hidden_dim, generator=random)
    return td


def shaken(module, seed: int = 1):
    """The module with random numbers added to all weights, so that nothing is zero by its initialisation."""
    random = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(0.3 * torch.randn(parameter.shape, generator=random))
    return module


def frozen_copy(td: TensorDict) -> TensorDict:
    """A deep copy, to see later that nobody wrote into the original."""
    return td.clone()


def assert_unchanged(td: TensorDict, before: TensorDict) -> None:
    """Keys and values are what they were."""
    names = [set(map(str, x.keys(True, True))) for x in (td, before)]
    assert names[0] == names[1], f"keys were added or removed: {names[0] ^ names[1]}"
    for key in before.keys(True, True):
        assert torch.equal(td[key], before[key]), f"{key} was overwritten"


def make_learner(make_returns, make_critic, critic, *, actor=None, losses=None, returns=None, **options) -> Learner:
    """What a recipe tells a loss that it composed."""
    return Learner(actor, critic, losses or {}, returns, make_returns, make_critic,
                   **{"reward_weights": {"task": 1.0}} | options)


def compose_smpe(specs: Specs, **options):
    """An SMPE2 loss with its return estimators and updates, an actor that reads its belief, and a central critic."""
    options = dict(latent_dim=3, encode_every=1, encode_steps=2, encode_rows=4) | options
    loss = SMPELoss(specs, **options)
    common = dict(share="all", agent_id=True, activation="relu", init="default", device="cpu", cells=[8])
    new_critic = partial(make_critic, **common)
    actor = make_actor(specs, loss.features, recurrent_dim=0, head="normal", state_dependent_scale=False, **common)
    critic = new_critic(specs, {}, centralized=True, recurrent_dim=0)
    make_returns = partial(Returns, kind="nstep", gamma=0.9, lmbda=1.0, n=3, target_tau=0.1, mask=specs.alive)
    estimators = loss.estimators(make_learner(make_returns, new_critic, critic))
    adam = partial(torch.optim.Adam, lr=1e-3, fused=True)
    updates = loss.updates("smpe", Sequences(1), optimizer=adam, max_grad_norm=10.0)
    return loss, estimators, updates, actor, critic


def iterate_smpe(loss, filtered, updates, batch):
    """What the trainer does with a batch, in its order, as far as this loss takes part."""
    encode, *second = updates
    loss.receive(batch)
    encode.data.owner.extend(batch)
    metrics = encode.run(batch)
    for encoder in loss.encoders if loss.reencode else ():
        encoder(batch)
    terms = loss.reward_terms(batch)
    for estimator in filtered:
        estimator(batch)
    for update in second:
        metrics |= update.run(batch)
    for estimator in filtered:
        if estimator.target is not None:
            estimator.step_target(batch)
    return metrics | {name: value.mean() for name, value in terms.items()}
