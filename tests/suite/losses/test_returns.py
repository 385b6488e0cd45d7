import copy

import pytest
import torch
from tensordict.nn import TensorDictModule, TensorDictSequential
from torch import nn
from torch.testing import assert_close
from torchrl.objectives.value import GAE, MultiAgentGAE, ValueEstimatorBase

from suite.losses import Returns
from suite.modules import make_critic
from suite.modules.functional import gae, nstep_returns
from suite.specs import ADVANTAGE, ALIVE, DONE, GROUP, OBSERVATION, REWARD, TERMINATED, VALUE, VALUE_TARGET
from tests.batches import make_batch, make_specs

torch.set_num_threads(1)
LATENT = (GROUP, "latent")
SPECS = make_specs("discrete")
OPTIONS = dict(kind="gae", gamma=0.9, lmbda=0.8, n=3, normalize="none")


def critic_of(features=None, **options):
    sizes = dict(share="all", agent_id=False, cells=[8], activation="tanh", init="default", device="cpu")
    return make_critic(SPECS, features or {}, **sizes | dict(centralized=False, recurrent_dim=0) | options)


def returns_of(critic, **options):
    return Returns(critic, **OPTIONS | options)


def values(critic, batch):
    """Values of this and of the next observation, the plain way."""
    keys = critic.in_keys
    with torch.no_grad():
        return critic(batch.select(*keys))[VALUE], critic(batch["next"].select(*keys))[VALUE]


def ends(batch):
    return batch["next", *REWARD], batch["next", *DONE], batch["next", *TERMINATED]


def test_batch_has_both_ends_inside():
    batch = make_batch(SPECS)
    done, terminated = batch["next", "done"][:, :-1], batch["next", "terminated"][:, :-1]
    assert terminated.any() and (done & ~terminated).any() and not done.all()


@pytest.mark.parametrize("centralized", [False, True])
@pytest.mark.parametrize("stock", [GAE, MultiAgentGAE])
def test_equal_to_torchrl(centralized, stock):
    critic, batch = critic_of(centralized=centralized), make_batch(SPECS, shape=(5, 12))
    theirs = stock(gamma=0.9, lmbda=0.8, value_network=critic)
    theirs.set_keys(advantage=ADVANTAGE, value_target=VALUE_TARGET, value=VALUE, reward=REWARD,
                    done=DONE, terminated=TERMINATED)
    expected = theirs(batch.exclude(VALUE, ADVANTAGE, VALUE_TARGET))
    ours = returns_of(critic)
    assert isinstance(ours, ValueEstimatorBase)
    out = ours(batch)
    assert out is batch
    for key in (ADVANTAGE, VALUE_TARGET):
        assert out[key].shape == (5, 12, 3, 1) and not out[key].requires_grad
        assert_close(out[key], expected[key], rtol=1e-5, atol=1e-5)
    assert_close(out[VALUE], values(critic, batch)[0])


# a critic that answers 4 everywhere; gamma = lambda = 0.5, so the carry is 0.25; rewards 1, 2, 3
# running:    delta = r + 2 - 4 = -1, 0, 1;  A_2 = 1, A_1 = 0.25, A_0 = -1 + 0.0625
# truncated at 1: A_1 = 0, A_0 = -1;   terminated at 1: A_1 = 2 - 4 = -2, A_0 = -1 - 0.5
@pytest.mark.parametrize(("end", "expected"), [(None, [-0.9375, 0.25, 1.0]), ("truncated", [-1.0, 0.0, 1.0]),
                                               ("terminated", [-1.5, -2.0, 1.0])])
def test_gae_by_hand(end, expected):
    class Four(nn.Module):
        def forward(self, observation):
            return torch.full((*observation.shape[:-1], 1), 4.0)

    batch = make_batch(SPECS, shape=(1, 3))
    batch["next", *REWARD] = torch.tensor([1.0, 2.0, 3.0]).view(1, 3, 1, 1).expand(1, 3, 3, 1)
    for key, flag in ((DONE, end is not None), (TERMINATED, end == "terminated")):
        batch["next", *key] = torch.zeros(1, 3, 3, 1, dtype=torch.bool)
        batch["next", *key][:, 1] = flag
    returns_of(TensorDictModule(Four(), in_keys=[OBSERVATION], out_keys=[VALUE]), gamma=0.5, lmbda=0.5)(batch)
    assert_close(batch[ADVANTAGE], torch.tensor(expected).view(1, 3, 1, 1).expand(1, 3, 3, 1))
    assert_close(batch[VALUE_TARGET], batch[ADVANTAGE] + 4)


def constant_batch():
    """A critic that answers 4 everywhere, and one row with rewards 1, 2, 3 that goes on."""
    class Four(nn.Module):
        def forward(self, observation):
            return torch.full((*observation.shape[:-1], 1), 4.0)

    batch = make_batch(SPECS, shape=(1, 3))
    batch["next", *REWARD] = torch.tensor([1.0, 2.0, 3.0]).view(1, 3, 1, 1).expand(1, 3, 3, 1)
    for key in (DONE, TERMINATED):
        batch["next", *key] = torch.zeros(1, 3, 3, 1, dtype=torch.bool)
    return TensorDictModule(Four(), in_keys=[OBSERVATION], out_keys=[VALUE]), batch


# mean 10, deviation 2: 4 stands for 18; delta = r + 9 - 18 = -8, -7, -6; A_2 = -6, A_1 = -7 - 1.5, A_0 = -8 - 2.125
def test_value_norm_by_hand():
    critic, batch = constant_batch()
    returns = returns_of(critic, gamma=0.5, lmbda=0.5, value_norm=True)
    returns.value_moments.mean.fill_(10.0)
    returns.value_moments.var.fill_(4.0)
    returns.value_moments.count.fill_(1e12)  # nothing moves them
    returns(batch)
    assert_close(batch[ADVANTAGE][0, :, 0, 0], torch.tensor([-10.125, -8.5, -6.0]))
    assert_close(batch[VALUE_TARGET][0, :, 0, 0], torch.tensor([-1.0625, -0.25, 1.0]))  # of 7.875, 9.5, 12
    assert_close(batch[VALUE][0, :, 0, 0], torch.full((3,), 4.0))


def test_value_norm_moves_with_living_agents_before_it_scales():
    critic, batch = constant_batch()
    batch[ALIVE] = torch.tensor([True, True, False]).expand(1, 3, 3)
    returns = returns_of(critic, gamma=0.5, lmbda=0.5, value_norm=True, mask=ALIVE)
    returns(batch)  # mean 0 and deviation 1 so far: targets are those of test_gae_by_hand, A + 4
    moments, targets = returns.value_moments, torch.tensor([3.0625, 4.25, 5.0])
    assert moments.count.item() == pytest.approx(6, abs=1e-3)
    assert moments.mean.item() == pytest.approx(targets.mean().item(), rel=1e-4)
    assert_close(batch[VALUE_TARGET][0, :, 0, 0], (targets - moments.mean) / moments.var.sqrt())
    assert_close(returns.in_reward_units(torch.ones(1)), torch.ones(1)), "the critic has not learned the new units"
    saved = {name: value.clone() for name, value in returns.state_dict().items() if torch.is_tensor(value)}
    other = returns_of(critic, gamma=0.5, lmbda=0.5, value_norm=True, mask=ALIVE)
    other.load_state_dict(returns.state_dict())
    for estimator in (returns, other):
        estimator(batch)
    assert_close(other.in_reward_units(torch.ones(1)), returns.in_reward_units(torch.ones(1)), rtol=0, atol=0)
    expected = saved["value_moments.var"].sqrt() + saved["value_moments.mean"]
    assert_close(other.in_reward_units(torch.ones(1)), expected)


def test_nstep_targets():
    critic, batch = critic_of(), make_batch(SPECS)
    value, next_value = values(critic, batch)
    returns_of(critic, kind="nstep")(batch)
    reward, done, terminated = ends(batch)
    assert_close(batch[VALUE_TARGET], nstep_returns(reward, next_value, done, terminated, gamma=0.9, n=3))
    assert_close(batch[ADVANTAGE], batch[VALUE_TARGET] - value)


@pytest.mark.parametrize("kind", ["gae", "nstep"])
def test_only_three_keys_are_written_and_the_reward_stays(kind):
    critic, batch = critic_of(), make_batch(SPECS)
    before = batch.clone()
    returns_of(critic, kind=kind, standardize_reward=1)(batch)
    assert set(map(str, batch.keys(True, True))) == set(map(str, before.keys(True, True)))
    for key in before.keys(True, True):
        assert torch.equal(batch[key], before[key]) is (key not in (VALUE, ADVANTAGE, VALUE_TARGET)), key


@pytest.mark.parametrize("kind", ["gae", "nstep"])
def test_bootstrap_comes_from_the_target_critic(kind):
    critic, batch = critic_of(), make_batch(SPECS)
    returns = returns_of(critic, kind=kind, target_tau=0.25)
    old = copy.deepcopy(critic)
    with torch.no_grad():
        for parameter in critic.parameters():
            parameter.add_(0.3)
    returns(batch)
    value, next_value = values(critic, batch)[0], values(old, batch)[1]
    reward, done, terminated = ends(batch)
    expected = gae(reward, value, next_value, done, terminated, gamma=0.9, lmbda=0.8)[1] if kind == "gae" else \
        nstep_returns(reward, next_value, done, terminated, gamma=0.9, n=3)
    assert_close(batch[VALUE], value)
    assert_close(batch[VALUE_TARGET], expected)
    assert not any(p.requires_grad for p in returns.target.parameters())
    returns.step_target(batch)
    for now, new, was in zip(returns.target.parameters(), critic.parameters(), old.parameters(), strict=True):
        assert_close(now, was + 0.25 * (new - was))  # theta' += tau (theta - theta')


def test_target_copies_what_is_not_trained():
    class Scaled(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(4, 1)
            self.register_buffer("scale", torch.ones(1))

        def forward(self, x):
            return self.layer(x) * self.scale

    critic = TensorDictModule(Scaled(), in_keys=[OBSERVATION], out_keys=[VALUE])
    returns = returns_of(critic, target_tau=0.01)
    critic.module.scale.fill_(3.0)  # running statistics of a normaliser, for instance
    returns.step_target(make_batch(SPECS))
    assert returns.target.module.scale == 3


# count 1e-4, mean 0, var 1; rewards -> mean and variance of the batch to 1e-4, and no epsilon
def test_rewards_are_standardised_with_the_batch_first():
    critic, batch = critic_of(), make_batch(SPECS)
    batch["next", *REWARD] = 5 + 3 * batch["next", *REWARD]
    returns = returns_of(critic, kind="nstep", n=1, gamma=0.0, standardize_reward=1)
    reward = batch["next", *REWARD]
    n, c = reward.numel(), 1e-4
    mean = reward.mean() * n / (n + c)
    var = (c + reward.var() * n + reward.mean() ** 2 * c * n / (n + c)) / (n + c)
    returns(batch)
    assert_close(batch[VALUE_TARGET], (reward - mean) / var.sqrt(), rtol=1e-4, atol=1e-5)
    assert_close(batch[VALUE_TARGET].mean(), torch.tensor(0.0), rtol=0, atol=1e-4)
    returns(make_batch(SPECS, seed=1))
    assert returns.reward_moments.count == pytest.approx(2 * n + c)


def test_each_agents_rewards_are_standardised_by_their_own_statistics():
    batch = make_batch(SPECS)
    scale, shift = torch.tensor([1.0, 10.0, 0.1]).view(3, 1), torch.arange(3).view(3, 1)
    batch["next", *REWARD] = scale * batch["next", *REWARD] + shift
    returns = returns_of(critic_of(), kind="nstep", n=1, gamma=0.0, standardize_reward=3)
    returns(batch)
    assert returns.reward_moments.mean.shape == (3, 1)
    for agent in range(3):
        reward, target = batch["next", *REWARD][:, :, agent], batch[VALUE_TARGET][:, :, agent]
        assert_close(target, (reward - reward.mean()) / reward.std(), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("counted", [True, False])
def test_rewards_of_padded_steps_count_where_the_switch_says_so(counted):
    batch = make_batch(SPECS)
    returns = returns_of(critic_of(), standardize_reward=1, mask=ALIVE, mask_rewards=not counted)
    returns(batch)
    reward = batch["next", *REWARD]
    seen = reward if counted else reward[batch[ALIVE]]
    assert returns.reward_moments.mean.item() == pytest.approx(seen.mean().item(), abs=1e-4)
    assert returns.reward_moments.count == pytest.approx(seen.numel() + 1e-4)


# one row of three steps, the episode ends after two; rewards 1, 2, 4; values 10, 20, 30 and 40 behind; gamma 1/2, n 2:
# G_0 = 1 + 2/2 + 0 (the value of step 2 is masked), G_1 = 2 + 0 + 40/4 (the last value is not), G_2 = 0 + 40/2
def test_padded_returns_by_hand():
    class Read(nn.Module):
        def forward(self, x):
            return x[..., :1]

    critic = TensorDictModule(Read(), in_keys=[OBSERVATION], out_keys=[VALUE])
    batch = make_batch(make_specs("discrete", n_agents=1), shape=(1, 3))
    for root, numbers in (((), (10.0, 20.0, 30.0)), (("next",), (20.0, 30.0, 40.0))):
        batch[(*root, *OBSERVATION)][..., 0] = torch.tensor(numbers).view(1, 3, 1)
    batch["next", *REWARD] = torch.tensor([1.0, 2.0, 4.0]).view(1, 3, 1, 1)
    batch[ALIVE] = torch.tensor([True, True, False]).view(1, 3, 1)
    Returns(critic, kind="padded_nstep", gamma=0.5, lmbda=1.0, n=2, normalize="none", mask=ALIVE)(batch)
    assert_close(batch[VALUE_TARGET].flatten(), torch.tensor([2.0, 12.0, 20.0]))
    assert_close(batch[ADVANTAGE].flatten(), torch.tensor([2.0 - 10, 12 - 20, 20 - 30]))


def test_a_target_network_and_keys_of_ones_own():
    """Bootstraps from the given network, which then moves towards the critic; the usual keys stay untouched."""
    torch.manual_seed(0)
    critic, target, batch = critic_of(), critic_of(), make_batch(SPECS)
    keys = tuple((GROUP, name) for name in ("other_value", "other_target", "other_advantage"))
    own = TensorDictModule(critic.module, in_keys=critic.in_keys, out_keys=[keys[0]])
    other = TensorDictModule(target.module, in_keys=critic.in_keys, out_keys=[keys[0]])
    returns = returns_of(own, kind="nstep", n=1, target_tau=0.25, target=other, keys=keys)
    assert returns.target is other
    expected = returns_of(critic, kind="nstep", n=1, target_tau=0.25, target=target)(batch.clone())
    before = batch.clone()
    returns(batch)
    for theirs, ours in zip((VALUE, VALUE_TARGET, ADVANTAGE), keys, strict=True):
        assert torch.equal(batch[ours], expected[theirs]) and torch.equal(batch[theirs], before[theirs])
    old = [p.clone() for p in target.parameters()]
    returns.step_target(batch)
    for start, now, new in zip(old, target.parameters(), critic.parameters(), strict=True):
        assert torch.equal(now, start.lerp(new, 0.25))


@pytest.mark.parametrize(("normalize", "dims"), [("batch", (0, 1, 2, 3)), ("agent", (0, 1, 3))])
def test_normalised_advantages(normalize, dims):
    critic, batch = critic_of(), make_batch(SPECS, shape=(6, 9))
    batch["next", *REWARD] = batch["next", *REWARD] * torch.tensor([[1.0], [10.0], [100.0]])
    raw = returns_of(critic)(batch.clone())
    returns_of(critic, normalize=normalize)(batch)
    x = raw[ADVANTAGE]
    expected = (x - x.mean(dims, keepdim=True)) / (x.std(dims, keepdim=True) + 1e-8)
    assert_close(batch[ADVANTAGE], expected, rtol=1e-4, atol=1e-5)
    assert torch.equal(batch[VALUE_TARGET], raw[VALUE_TARGET])  # from the advantage before


def test_advantages_by_the_deviation_of_the_numbers_themselves():
    """1, 1, 5, 9: mean 4, deviation sqrt((9 + 9 + 1 + 25) / 4) = sqrt 11; equal ones become 0; one left out."""
    returns = returns_of(critic_of(), normalize="population")
    x = torch.tensor([1.0, 1.0, 5.0, 9.0]).view(1, 4, 1, 1)
    expected = torch.tensor([-3.0, -3.0, 1.0, 5.0]).view_as(x) / 11**0.5
    assert_close(returns.normalized(x), expected)
    assert torch.equal(returns.normalized(torch.full_like(x, 3.0)), torch.zeros_like(x))
    alive = torch.tensor([True, False, True, True]).view_as(x)  # 1, 5, 9: deviation sqrt(32 / 3)
    assert_close(returns.normalized(x, alive)[alive], torch.tensor([-4.0, 0.0, 4.0]) / (32 / 3) ** 0.5)


@pytest.mark.parametrize("normalize", ["batch", "agent"])
def test_agents_that_have_left_count_in_no_statistic(normalize):
    batch, options = make_batch(SPECS), dict(normalize=normalize, standardize_reward=1, mask=ALIVE)
    alive = batch[ALIVE]
    assert not alive.all() and alive.any((0, 1)).all()
    returns = returns_of(critic_of(), **options)
    returns(batch)
    reward = batch["next", *REWARD].squeeze(-1)[alive]
    assert returns.reward_moments.count == pytest.approx(len(reward) + 1e-4)
    assert returns.reward_moments.mean.item() == pytest.approx(reward.mean().item(), abs=1e-4)
    found = batch[ADVANTAGE].squeeze(-1)
    kept = [found[alive]] if normalize == "batch" else [found[..., k][alive[..., k]] for k in range(found.shape[-1])]
    for part in kept:
        assert part.mean().item() == pytest.approx(0, abs=1e-5) and part.std().item() == pytest.approx(1, abs=1e-4)
    without = make_batch(SPECS)
    returns_of(critic_of(), **options | {"mask": None})(without)
    assert not torch.allclose(found[alive], without[ADVANTAGE].squeeze(-1)[alive])


def test_encoders_run_before_the_critic():
    encoder = TensorDictModule(nn.Linear(4, 2), in_keys=[OBSERVATION], out_keys=[LATENT])
    critic, batch = critic_of({LATENT: 2}), make_batch(SPECS)
    whole = TensorDictSequential(encoder, critic)
    returns_of(whole)(batch)
    assert LATENT not in batch.keys(True)
    encoded = whole(batch.clone()), whole(batch["next"].clone())
    reward, done, terminated = ends(batch)
    expected = gae(reward, *(td[VALUE].detach() for td in encoded), done, terminated, gamma=0.9, lmbda=0.8)
    assert_close(batch[ADVANTAGE], expected[0])


class Blurred(nn.Module):
    """A random encoder: its latent is another one each time it is asked."""

    def forward(self, x):
        return x[..., :2] + torch.randn_like(x[..., :2])


def test_both_values_of_a_step_are_of_the_same_latent():
    """Within an episode V(next of t) is V(t + 1), also where an encoder draws; only at its end it is encoded anew."""
    critic, batch = critic_of({LATENT: 2}), make_batch(SPECS)
    encoder = TensorDictModule(Blurred(), in_keys=[OBSERVATION], out_keys=[LATENT])
    batch[LATENT] = encoder(batch.clone())[LATENT]
    batch["next", *OBSERVATION][:, :-1] = batch[OBSERVATION][:, 1:]  # and all else that the critic reads
    for key in critic.in_keys:
        if key not in (LATENT, OBSERVATION):
            batch["next", *((key,) if isinstance(key, str) else key)][:, :-1] = batch[key][:, 1:]
    value, after = returns_of(critic, encoders=[encoder])._values(batch)
    inside = ~batch["next", *DONE][:, :-1].all(2, keepdim=True).expand_as(after[:, :-1])
    assert inside.any() and not inside.all()
    assert_close(after[:, :-1][inside], value[:, 1:][inside])
    assert (after[:, :-1][~inside] - value[:, 1:][~inside]).abs().min() > 1e-6


def test_targets_may_have_another_lambda():
    """lambda 1: discounted sums of rewards with a bootstrap; advantages keep theirs."""
    one, two, sums = make_batch(SPECS), make_batch(SPECS), make_batch(SPECS)
    critic = critic_of({})
    returns_of(critic)(one), returns_of(critic, target_lmbda=1.0)(two), returns_of(critic, lmbda=1.0)(sums)
    assert_close(two[ADVANTAGE], one[ADVANTAGE])
    assert_close(two[VALUE_TARGET], sums[VALUE_TARGET])
    assert not torch.equal(one[VALUE_TARGET], two[VALUE_TARGET])


@pytest.mark.parametrize(("options", "message"), [
    ({"kind": "td0"}, r"'td0'.*\['gae', 'nstep', 'padded_nstep'\]"),
    ({"gamma": 1.5}, "gamma must be between 0 and 1, got 1.5"),
    ({"kind": "padded_nstep"}, r"padded_nstep needs a mask of the steps inside each episode \(--whole-episodes\)"),
    ({"gamma": -0.1}, "gamma"), ({"lmbda": 2.0}, "gae_lambda must be .*got 2.0"), ({"n": 0}, "n >= 1, got 0"),
    ({"target_lmbda": 1.5}, "critic_lambda must be between 0 and 1, got 1.5"),
    ({"normalize": "env"}, r"'env'.*\['agent', 'batch', 'none', 'population'\]"), ({"target_tau": -1.0}, "target_tau"),
    ({"gamma": float("nan")}, "gamma")])
def test_wrong_options_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        returns_of(critic_of(), **options)
