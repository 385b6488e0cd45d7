"""Returns of recurrent critics, whose state goes on from batch to batch."""

import copy

import pytest
import torch
from torch.testing import assert_close

from suite.losses import ValueLoss
from suite.modules.functional import nstep_returns
from suite.modules.policies import CRITIC_RECURRENT
from suite.specs import ADVANTAGE, IS_INIT, VALUE, VALUE_TARGET
from tests.batches import make_batch
from tests.suite.losses.test_returns import SPECS, critic_of, ends, returns_of

torch.set_num_threads(1)


def two_batches(steps=6):
    """A rollout of 2 x steps in two batches: the second goes on where the first stops."""
    whole = make_batch(SPECS, shape=(4, 2 * steps), seed=3)
    return whole, [whole[:, :steps].clone(), whole[:, steps:].clone()]


def step_by_hand(critic, rollout, rows):
    """Values by the critic called once per step, its state carried on and zeroed where an episode begins."""
    hidden = torch.zeros(4, rows, 5)
    value, next_value = [], []
    for t in range(rollout.shape[1]):
        td = rollout[:, t].select(*(key for key in critic.in_keys if key != CRITIC_RECURRENT))
        td[CRITIC_RECURRENT] = hidden
        with torch.no_grad():
            out = critic(td)
        hidden = out["next", CRITIC_RECURRENT]
        value.append(out[VALUE])
        after = rollout["next"][:, t].select(*(k for k in critic.in_keys if k not in (CRITIC_RECURRENT, IS_INIT)))
        after[CRITIC_RECURRENT], after[IS_INIT] = hidden, torch.zeros(4, 1, dtype=torch.bool)
        with torch.no_grad():
            next_value.append(critic(after)[VALUE])
    return torch.stack(value, 1), torch.stack(next_value, 1)


@pytest.mark.parametrize(("options", "rows"), [({"centralized": False}, 3), ({"centralized": True}, 1),
                                               ({"centralized": True, "share": "none"}, 3)])
def test_recurrent_critic_equals_stepping_it_by_hand(options, rows):
    critic = critic_of(recurrent_dim=5, **options)
    whole, batches = two_batches()
    assert whole[IS_INIT][:, 6].any() and not whole[IS_INIT][:, 6].all()  # some rows go on, some start anew
    value, next_value = step_by_hand(critic, whole, rows)
    returns = returns_of(critic, kind="nstep", n=1)
    for k, batch in enumerate(batches):
        part = slice(6 * k, 6 * k + 6)
        returns(batch)
        assert_close(batch[VALUE], value[:, part], rtol=1e-5, atol=1e-6)
        reward, done, terminated = ends(batch)
        expected = nstep_returns(reward, next_value[:, part], done, terminated, gamma=0.9, n=1)
        assert_close(batch[VALUE_TARGET], expected, rtol=1e-5, atol=1e-6)
        out = ValueLoss(critic, clip=None, kind="l2")(batch)  # the loss starts from the same state
        assert_close(out["loss_value"], (batch[VALUE] - batch[VALUE_TARGET]).square().mean())


def test_recurrent_target_critic_has_its_own_memory():
    critic = critic_of(recurrent_dim=5)
    returns = returns_of(critic, kind="nstep", n=1, target_tau=0.5)
    old = copy.deepcopy(critic)
    with torch.no_grad():
        for parameter in critic.parameters():
            parameter.add_(0.3)
    whole, batches = two_batches()
    value, next_value = step_by_hand(critic, whole, 3)[0], step_by_hand(old, whole, 3)[1]
    for k, batch in enumerate(batches):
        part = slice(6 * k, 6 * k + 6)
        returns(batch)
        reward, done, terminated = ends(batch)
        assert_close(batch[VALUE], value[:, part], rtol=1e-5, atol=1e-6)
        expected = nstep_returns(reward, next_value[:, part], done, terminated, gamma=0.9, n=1)
        assert_close(batch[VALUE_TARGET], expected, rtol=1e-5, atol=1e-6)


def test_state_dict_continues_exactly():
    critic = critic_of(recurrent_dim=5)
    options = dict(kind="nstep", target_tau=0.1, standardize_reward=1)
    first, second = returns_of(critic, **options), returns_of(copy.deepcopy(critic), **options)
    with torch.no_grad():
        for parameter in critic.parameters():
            parameter.add_(0.1)
    _, batches = two_batches()
    first(batches[0])
    first.step_target(batches[0])
    second.load_state_dict(copy.deepcopy(first.state_dict()))
    second.value_network.load_state_dict(critic.state_dict())  # the value loss saves the critic
    expected, out = first(batches[1].clone()), second(batches[1].clone())
    for key in (VALUE, ADVANTAGE, VALUE_TARGET, CRITIC_RECURRENT):
        assert torch.equal(out[key], expected[key])
