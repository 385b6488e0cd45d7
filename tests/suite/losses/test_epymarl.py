"""One update of the EPyMARL baselines, reproduced with our networks, losses, statistics and optimiser loop.

The golden files hold what the official program made of a batch of padded episodes: B episodes, T steps, a mask.
"""

from functools import partial

import pytest
import torch
from tensordict import TensorDict

from suite.losses import PolicyLoss, Returns, ValueLoss
from suite.modules import make_actor, make_critic
from suite.modules.functional import padded_nstep_returns
from suite.modules.lowered import Lowered
from suite.modules.normalizer import RunningMoments
from suite.specs import (
    ACTION,
    ACTION_MASK,
    ALIVE,
    IS_INIT,
    LOG_PROB,
    OBSERVATION,
    RECURRENT,
    STATE,
    VALUE,
    VALUE_TARGET,
    Specs,
)
from suite.update import Update
from tests.archives import Golden

torch.set_num_threads(1)
A, ACTIONS, WIDTH, T = 3, 6, 16, 12
ACTOR = {"fc1": "trunk.hidden.0", "rnn.ih": "trunk.gru.from_input", "rnn.hh": "trunk.gru.from_hidden", "fc2": "out"}
CRITIC = {"fc1": "trunk.hidden.0", "fc2": "trunk.hidden.2", "fc3": "out"}
SPECS = Specs(n_agents=A, obs_dim=15, action_dim=ACTIONS, discrete=True, agent_types=(0,) * A, has_mask=True,
              state_dim=45)
COMMON = dict(share="all", agent_id=True, activation="relu", init="default", device="cpu")


def load(module, weights):
    network = module.module
    assert network.state_dict().keys() == weights.keys()
    network.load_state_dict(weights)


def networks(golden):
    """Actor, critic and return estimator (which holds the target critic) with the file's weights."""
    torch.manual_seed(0)
    actor = make_actor(SPECS, {}, cells=[WIDTH], recurrent_dim=WIDTH, head="normal", state_dependent_scale=False,
                       **COMMON)
    critic = make_critic(SPECS, {}, cells=[WIDTH, WIDTH], recurrent_dim=0, centralized=True, **COMMON)
    returns = Returns(critic, kind="nstep", gamma=float(golden["cfg.gamma"]), lmbda=1.0, n=int(golden["cfg.q_nstep"]),
                      normalize="none", target_tau=float(golden["cfg.target_update_interval_or_tau"]))
    load(actor[0], golden.weights("before.actor", ACTOR))
    load(critic, golden.weights("before.critic", CRITIC))
    load(returns.target, golden.weights("before.target_critic", CRITIC))
    return actor, critic, returns


def make_padded_batch(golden):
    """The T transitions under our keys; ALIVE is the mask of the padded episodes."""
    batch = TensorDict(batch_size=[10, T], device="cpu")
    batch[OBSERVATION], batch[STATE] = golden["batch.obs"][:, :T], golden["batch.state"][:, :T]
    batch[ACTION] = golden["batch.actions"][:, :T].squeeze(-1)
    batch[ACTION_MASK] = golden["batch.avail_actions"][:, :T].bool()
    batch[RECURRENT] = torch.zeros(10, T, A, WIDTH)
    batch[IS_INIT] = torch.zeros(10, T, 1, dtype=torch.bool)
    batch[IS_INIT][:, 0] = True
    mask = golden["batch.filled"][:, :T].float()
    mask[:, 1:] *= 1 - golden["batch.terminated"][:, : T - 1].float()
    golden.check("mask", mask.expand(10, T, A), golden["mask"], 0)
    batch[ALIVE] = mask.expand(10, T, A).bool()
    return batch


def write_targets(golden, batch, returns):
    """Standardised rewards and n-step targets, as the program computes them on padded episodes."""
    reward = golden["batch.reward"][:, :T]
    moments = RunningMoments((1,))
    moments.update(reward)
    reward = ((reward - moments.mean) / moments.var.sqrt()).expand(10, T, A)
    golden.check("rewards", reward, golden["rewards_standardised"], 1e-4)
    values = returns.lowered_target({STATE: golden["batch.state"]})[VALUE].squeeze(-1)
    golden.check("target values", values, golden["target_values"], 1e-4)
    target = padded_nstep_returns(reward, values, golden["mask"], gamma=returns.gamma, n=returns.n,
                                  bootstrap_last=bool(golden["cfg.add_value_last_step"]))
    golden.check("n-step returns", target, golden["nstep_returns"], 1e-4)
    batch[VALUE_TARGET] = target.detach().unsqueeze(-1)


def old_log_prob(golden, actor, batch):
    """Score of the stored actions under the file's old actor."""
    load(actor[0], golden.weights("before.old_actor", ACTOR))
    with torch.no_grad():
        dist = Lowered(actor).distribution({key: batch[key] for key in actor.in_keys})
        batch[LOG_PROB] = dist.log_prob(batch[ACTION])
    load(actor[0], golden.weights("before.actor", ACTOR))


@pytest.mark.parametrize("name", ["maa2c_update", "mappo_update"])
def test_update_equals_the_official_program(name):
    golden = Golden("smpe", name)
    ppo = name == "mappo_update"
    actor, critic, returns = networks(golden)
    batch = make_padded_batch(golden)
    with torch.no_grad():
        write_targets(golden, batch, returns)
    if ppo:
        old_log_prob(golden, actor, batch)
    clip = float(golden["cfg.eps_clip"]) if ppo else None
    policy = PolicyLoss(actor, clip=clip, entropy_coef=float(golden["cfg.entropy_coef"]), critic=critic, mask=ALIVE)
    value = ValueLoss(critic, clip=None, kind="l2", mask=ALIVE)
    update = Update("update", {"critic": value, "actor": policy}, None,
                    optimizer=partial(torch.optim.Adam, lr=float(golden["cfg.lr"])),
                    max_grad_norm=float(golden["cfg.grad_norm_clip"]))
    norms, epochs = golden["grad_norms"].tolist(), golden["advantages"]
    assert len(epochs) == (4 if ppo else 1)
    for epoch, advantages in enumerate(epochs):
        golden.check("advantages", policy._advantage(batch) * golden["mask"], advantages, 1e-4)
        metrics = update.step(batch.select(*update.keys))
        for k, part in enumerate(("critic", "actor")):
            assert norms[2 * epoch + k] < update.max_grad_norm[part]  # nothing was clipped
            golden.check("gradient norms", metrics[f"grad_norm_{part}"],
                         torch.tensor(norms[2 * epoch + k], dtype=torch.float32), 1e-4)
    returns.step_target(batch)
    golden.check("critic loss", metrics["loss_value"], golden["stat.critic_loss"].float(), 1e-4)
    pg_loss = metrics["loss_policy"] + metrics["loss_entropy"]
    golden.check("policy loss", pg_loss, golden["stat.pg_loss"].float(), 1e-4)
    for module, prefix, names in ((actor[0], "after.actor", ACTOR), (critic, "after.critic", CRITIC),
                                  (returns.target, "after.target_critic", CRITIC)):
        before = golden.weights(prefix.replace("after", "before"), names)
        for key, expected in golden.weights(prefix, names).items():
            now = module.module.state_dict()[key]
            golden.check(prefix, now, expected, 5e-4)
            golden.check("step of " + prefix[6:], now - before[key], expected - before[key], 1e-2)  # much stricter
    print(name, {key: f"{value:.1e}" for key, value in golden.largest.items()})
