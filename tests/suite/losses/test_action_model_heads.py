"""Heads of the model of the other agents: one block of logits for each factor of a choice, and a fixed deviation."""

import pytest
import torch
import vmas
from tensordict import TensorDict
from torch.nn import functional as F
from torch.testing import assert_close

import recipes.cooperative as recipe
from envs import make_env
from suite.losses import MOALoss
from suite.losses.action_model import ActionModelLoss
from suite.modules.state_model import PARTS, PREV_ACTION, PREV_OBSERVATION, PREV_VALID, StateModel
from suite.specs import ACTION, Specs
from tests.batches import make_specs
from tests.small import config, make_toy, train

torch.set_num_threads(1)
BLOCKS = torch.tensor([1.0, 0.0, 2.0, 1.0, 0.0])  # two values, then three
TABLE = torch.tensor([[a == k for a in range(2) for b in range(3)] for k in range(2)]
                     + [[b == k for a in range(2) for b in range(3)] for k in range(3)]).float()


def hand_loss(specs, bias, **heads):
    loss = ActionModelLoss(specs, StateModel(specs, latent_dim=2, cells=[4], parts=PARTS, others="all", **heads))
    with torch.no_grad():
        loss.model.action_model.net[-1].weight.zero_()
        loss.model.action_model.net[-1].bias.copy_(bias)
    return loss


def frames(specs, action):
    """Frames [R] with a valid past, in which both agents do ``action``."""
    rows = len(action)
    td = TensorDict({ACTION: action.unsqueeze(1).expand(rows, 2, *action.shape[1:]).clone()}, batch_size=[rows])
    td[PREV_VALID], td[PREV_OBSERVATION] = torch.ones(rows, 2, 1), torch.zeros(rows, 2, specs.obs_dim)
    td[PREV_ACTION] = torch.zeros(rows, 2, 2 * specs.action_dim)
    return td


# -ln softmax([1, 0]) = 0.313261688, 1.313261688; -ln softmax([2, 1, 0]) = 0.407605964, 1.407605964, 2.407605964
@pytest.mark.parametrize("choice, expected", [(0, 0.720867652), (2, 2.720867652), (3, 1.720867652), (5, 3.720867652)])
def test_the_cross_entropy_is_the_sum_over_factors(choice, expected):
    specs = Specs(n_agents=2, obs_dim=1, action_dim=6, discrete=True, agent_types=(0, 0),
                  action_factors=TABLE.expand(2, -1, -1))
    loss = hand_loss(specs, BLOCKS, factorised_actions=True)
    td = frames(specs, torch.tensor([choice]))
    assert loss(td)["loss_moa"].item() == pytest.approx(expected, abs=1e-6)
    feature = loss.model.action_model.feature(loss.predict(td))
    values = torch.tensor([0.731058579, 0.268941421, 0.665240956, 0.244728471, 0.090030573])
    assert_close(feature[0, 0], values, rtol=0, atol=1e-6)
    assert feature.shape[-1] == loss.model.action_model.feature_dim == 5
    assert loss.model.x_dim == 1 + 5 + 1


def test_agents_with_other_factors():
    """The speaker has only messages (3 x 3 forces it does not use), the listener only moves."""
    specs = Specs.from_env(make_env("vmas/simple_speaker_listener_pe", num_envs=2, continuous_actions=False))
    torch.manual_seed(0)
    loss = ActionModelLoss(specs, StateModel(specs, latent_dim=2, cells=[4], parts=PARTS, others="all",
                                             factorised_actions=True))
    model = loss.model.action_model
    torch.nn.init.normal_(model.net[-1].weight)
    td = frames(specs, torch.arange(specs.action_mask.sum(-1).min()))
    td[PREV_OBSERVATION].normal_()
    logits, factors = loss.predict(td), specs.action_factors
    inputs = [loss.model.scaler(td[PREV_OBSERVATION]), td[PREV_ACTION], td[PREV_VALID]]
    blocks = model.net(model.assemble(*inputs)).unflatten(-1, model.shape)  # [R, N, P, S]
    env = make_env("vmas/simple_speaker_listener_pe", num_envs=2, continuous_actions=False)
    for me, other in ((0, 1), (1, 0)):
        found = F.cross_entropy(logits[:, me, 0], td[ACTION][:, other], reduction="none")
        values = factors[other].T[td[ACTION][:, other]].bool()  # [R, S], one of each factor
        start, expected = 0, 0.0
        for size in env.action_factors[other]:
            block = slice(start, start + size)
            assert (values[:, block].sum(-1) == 1).all()
            expected = expected - blocks[:, me, 0, block].log_softmax(-1)[values[:, block]]
            start += size
        assert_close(found, expected)
    assert (logits.softmax(-1)[:, 0, 0][..., ~specs.action_mask[1]] == 0).all()


@pytest.mark.parametrize("name", ["simple_reference", "simple_speaker_listener", "simple_tag"])
def test_factors_are_those_of_vmas(name):
    stock = vmas.make_env(name, num_envs=1, continuous_actions=False, multidiscrete_actions=True)
    env = make_env(f"vmas/{name}", num_envs=1, continuous_actions=False)
    assert [list(space.nvec) for space in stock.action_space] == [list(sizes) for sizes in env.action_factors]
    specs = Specs.from_env(env)
    assert specs.action_factors.sum(-2).amax(-1).tolist() == [len(sizes) for sizes in env.action_factors]
    nvec = env.action_factors[0]
    choice = sum(value * torch.tensor(nvec[k + 1:]).prod().long() for k, value in enumerate(n - 1 for n in nvec))
    last = [sum(nvec[:k]) + n - 1 for k, n in enumerate(nvec)]
    assert specs.action_factors[0, :, choice].nonzero().flatten().tolist() == last


def test_tasks_whose_choices_combine_nothing():
    assert Specs.from_env(make_env("vmas/navigation", num_envs=1)).action_factors is None
    assert Specs.from_env(make_env("foraging/2s-8x8-2p-2f-coop", num_envs=1)).action_factors is None
    with pytest.raises(ValueError, match="moa_factorised of loss 'moa' needs a task whose choices combine several"):
        MOALoss(make_specs("discrete"), moa_factorised=True)


# mean 0, 0.5 against actions 1, 0: (1 + 0.25) / (2 sigma^2)
@pytest.mark.parametrize("sigma, expected", [(0.5, 2.5), (1.0, 0.625)])
def test_a_fixed_deviation(sigma, expected):
    specs = Specs(n_agents=2, obs_dim=1, action_dim=2, discrete=False, agent_types=(0, 0), low=-torch.ones(2, 2),
                  high=torch.ones(2, 2))
    loss = hand_loss(specs, torch.tensor([0.0, 0.5]), action_sigma=sigma)
    td = frames(specs, torch.tensor([[1.0, 0.0]]))
    assert loss(td)["loss_moa"].item() == pytest.approx(expected, abs=1e-6)
    mean, log_sigma = loss.predict(td)
    assert_close(log_sigma.exp(), torch.full_like(mean, sigma))
    assert torch.equal(loss.model.action_model.feature((mean, log_sigma)), mean.flatten(-2))


def test_a_fixed_deviation_is_of_continuous_actions():
    with pytest.raises(ValueError, match="moa_sigma of loss 'moa' is of continuous actions: leave it out"):
        MOALoss(make_specs("discrete"), moa_sigma=0.5)
    with pytest.raises(ValueError, match=r"moa_sigma of loss 'moa' .* not be negative, got -0\.5"):
        MOALoss(make_specs("continuous"), moa_sigma=-0.5)


@pytest.mark.parametrize("options", [{}, {"influence": 0.1, "actor_inputs": "obs+z+moa"},
                                     {"memory": "gru", "memory_dim": 6, "cvae_grad_to_moa": True},
                                     {"imagination": "decentralised", "imagination_skill": 0.0,
                                      "imagination_reward_skill": -1e9}], ids=str)
def test_both_heads_train(options, monkeypatch):
    small = dict(latent_dim=3, num_cells=8, depth=1, alpha_warmup=0.0) | options
    task = "hidden_leader" if "imagination" in options else "simple_speaker_listener_pe"  # whose choices are masked
    factors = config("mappo", task=f"vmas/{task}", task_options={"continuous_actions": False}, loss="moa",
                     loss_options=small | {"moa_factorised": True})
    runs = [train(factors)]
    monkeypatch.setattr(recipe, "make_env", make_toy)
    runs.append(train(config("mappo", loss="moa", loss_options=small | {"moa_sigma": 0.5},
                             task_options={"state": False})))
    for trainer in runs:
        rows = [row for row in trainer.run.rows if "moa/loss_moa" in row]
        assert len(rows) > 1 and all(value == value for row in rows for value in row.values())
        assert rows[-1]["moa/grad_norm_moa"] > 0
