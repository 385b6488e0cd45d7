"""DDPG and TD3 against the numbers of the HyAR program, TorchRL's losses, and arithmetic by hand."""

from copy import deepcopy
from functools import partial

import pytest
import torch
from tensordict import TensorDict
from tensordict.nn import TensorDictModule
from torch import nn
from torch.testing import assert_close
from torchrl.data import Bounded
from torchrl.objectives import DDPGLoss, TD3Loss, ValueEstimators

from suite.losses.deterministic import DeterministicPolicyLoss, QValueLoss, SoftTargets
from suite.modules.latent_control import make_box_actor, make_critics
from suite.specs import LATENT_ACTION, OBSERVATION, REWARD, TERMINATED
from suite.update import Update
from tests.archives import Golden
from tests.batches import make_specs

GOLDEN = Golden("hyar", "relabel_td3")
SIZES = dict(share="all", agent_id=False, activation="relu", init="default", device="cpu")


def networks(obs, width, *, cells=(16, 16), heads=2, agents=1, centralized=False):
    torch.manual_seed(0)
    specs = make_specs("discrete", n_agents=agents, state=False)
    object.__setattr__(specs, "obs_dim", obs)
    return (make_box_actor(specs, width, cells=cells, **SIZES),
            make_critics(specs, width, heads=heads, centralized=centralized, cells=cells, **SIZES))


def load_actor(actor, prefix):
    names = [("l1",), ("l2",), ("l3_1", "l3_2")]
    with torch.no_grad():
        for layer, parts in zip([m for m in actor.layers if isinstance(m, nn.Linear)], names, strict=True):
            for kind in ("weight", "bias"):
                getattr(layer, kind).copy_(torch.cat([GOLDEN[f"{prefix}/{part}.{kind}"] for part in parts]))


def load_critics(critics, prefix):
    with torch.no_grad():
        for head, first in zip(critics.heads, (1, 4), strict=True):
            for k, layer in enumerate(m for m in head if isinstance(m, nn.Linear)):
                for kind in ("weight", "bias"):
                    getattr(layer, kind).copy_(GOLDEN[f"{prefix}/l{first + k}.{kind}"])


def batch(call):
    latent = torch.cat([GOLDEN[f"{call}/discrete_emb_used"], GOLDEN[f"{call}/parameter_emb_used"]], -1)
    td = TensorDict(batch_size=[16])
    td[OBSERVATION], td["next", *OBSERVATION] = (GOLDEN[f"batch/{k}"].unsqueeze(1) for k in ("state", "next_state"))
    td[LATENT_ACTION] = latent.unsqueeze(1)
    td["next", *REWARD] = GOLDEN["batch/reward"].unsqueeze(1)
    td["next", *TERMINATED] = ~GOLDEN["batch/not_done"].bool().unsqueeze(1)
    return td


class Noisy(QValueLoss):
    """With the smoothing noise of the file."""

    call = "it1"

    def forward(self, minibatch):
        noise = torch.cat([GOLDEN[f"{self.call}/noise3"], GOLDEN[f"{self.call}/noise4"]], -1).unsqueeze(1)
        return super().forward(minibatch, noise)


def test_two_updates_of_td3_as_the_program_makes_them():
    """Critics at every call; actor, with the new critic, and all slow copies at the second one."""
    actor, critic = networks(9, 12)
    load_actor(actor, "before/actor"), load_critics(critic, "before/critic")
    value = Noisy(actor, critic, gamma=0.99, smoothing=0.1)
    load_actor(value.slow_actor, "before/actor_target"), load_critics(value.slow_critic, "before/critic_target")
    slow = SoftTargets((actor, value.slow_actor, 0.005), (critic, value.slow_critic, 0.005))
    adam = partial(torch.optim.Adam, lr=3e-4)
    update = Update("td3", {"critic": value, "actor": DeterministicPolicyLoss(actor, critic)}, None, optimizer=adam,
                    max_grad_norm={"critic": None, "actor": 10.0}, delay={"actor": 2}, targets={"actor": [slow]})
    for call in (1, 2):
        value.call, td = f"it{call}", batch(f"it{call}")
        noise = torch.cat([GOLDEN[f"it{call}/noise3"], GOLDEN[f"it{call}/noise4"]], -1).unsqueeze(1)
        assert_close(value.target(td, noise).squeeze(1), GOLDEN[f"it{call}/y"], rtol=1e-6, atol=1e-6)
        for head, name in zip(critic(td[OBSERVATION], td[LATENT_ACTION]), ("q1", "q2"), strict=True):
            assert_close(head.squeeze(1), GOLDEN[f"it{call}/{name}"], rtol=1e-6, atol=1e-6)
        found = update.step(td)
        assert_close(found["loss_value"], GOLDEN[f"it{call}/critic_loss"], rtol=1e-6, atol=1e-6)
        assert ("loss_actor" in found) == (call == 2)
        expected = networks(9, 12)
        for net, part, loader in ((actor, "actor", load_actor), (critic, "critic", load_critics),
                                  (value.slow_actor, "actor_target", load_actor),
                                  (value.slow_critic, "critic_target", load_critics)):
            theirs = deepcopy(expected["critic" in part])
            loader(theirs, f"after{call}/{part}")
            for ours, other in zip(net.parameters(), theirs.parameters(), strict=True):
                assert_close(ours.detach(), other.detach(), rtol=0, atol=1e-6)


def random_batch(agents, obs=5, width=3):
    torch.manual_seed(1)
    td = TensorDict(batch_size=[32])
    for key in (OBSERVATION, ("next", *OBSERVATION)):
        td[key] = torch.randn(32, agents, obs)
    td[LATENT_ACTION] = torch.rand(32, agents, width) * 2 - 1
    td["next", *REWARD] = torch.randn(32, agents, 1)
    td["next", *TERMINATED] = torch.rand(32, agents, 1) < 0.3
    return td


@pytest.mark.filterwarnings("ignore:No target network updater")
@pytest.mark.parametrize("centralized", [False, True])
def test_torchrl_has_the_same_losses_and_gradients(centralized):
    """Two agents, both losses; the twin critics of TorchRL are given our weights."""
    actor, critic = networks(5, 3, agents=2, centralized=centralized)
    td = random_batch(2)
    keys = [OBSERVATION, LATENT_ACTION]

    class One(nn.Module):
        def __init__(self):
            super().__init__()
            self.assemble, self.head = critic.assemble, deepcopy(critic.heads[0])

        def forward(self, observation, action):
            return self.head(self.assemble(observation, action))

    theirs = TD3Loss(TensorDictModule(actor, in_keys=keys[:1], out_keys=keys[1:]),
                     TensorDictModule(One(), in_keys=keys, out_keys=[("agents", "q")]),
                     action_spec=Bounded(-1, 1, (3,)), policy_noise=0.1, noise_clip=0.5, loss_function="l2")
    theirs.set_keys(action=LATENT_ACTION, state_action_value=("agents", "q"), reward=REWARD,
                    done=TERMINATED, terminated=TERMINATED)
    theirs.make_value_estimator(ValueEstimators.TD0, gamma=0.9)
    with torch.no_grad():
        for params in (theirs.qvalue_network_params, theirs.target_qvalue_network_params):
            for name, stacked in params["module", "head"].flatten_keys(".").items():
                stacked.copy_(torch.stack([head.get_parameter(name) for head in critic.heads]))
    value = QValueLoss(actor, critic, gamma=0.9, smoothing=0.1)
    torch.manual_seed(5)
    ours = value(td)["loss_value"]
    torch.manual_seed(5)
    expected, _ = theirs.value_loss(td)
    assert_close(ours, expected)
    found = torch.autograd.grad(ours, [head[0].weight for head in critic.heads])
    [other] = torch.autograd.grad(expected, [theirs.qvalue_network_params["module", "head", "0", "weight"]])
    assert_close(torch.stack(found), other)
    ours, (expected, _) = DeterministicPolicyLoss(actor, critic)(td)["loss_actor"], theirs.actor_loss(td)
    assert_close(ours, expected)
    other = theirs.actor_network_params["module", "layers", "0", "weight"]
    assert_close(*(torch.autograd.grad(*pair)[0] for pair in ((ours, actor.layers[0].weight), (expected, other))))


@pytest.mark.filterwarnings("ignore:No target network updater")
def test_torchrls_ddpg_is_the_case_of_one_critic_without_smoothing():
    actor, critic = networks(5, 3, heads=1)
    td, keys = random_batch(1), [OBSERVATION, LATENT_ACTION]

    class One(nn.Module):
        def __init__(self):
            super().__init__()
            self.critics = deepcopy(critic)

        def forward(self, observation, action):
            return self.critics.first(observation, action)

    theirs = DDPGLoss(TensorDictModule(deepcopy(actor), in_keys=keys[:1], out_keys=keys[1:]),
                      TensorDictModule(One(), in_keys=keys, out_keys=[("agents", "q")]), loss_function="l2",
                      delay_actor=True, delay_value=True)
    theirs.set_keys(state_action_value=("agents", "q"), reward=REWARD, done=TERMINATED, terminated=TERMINATED)
    theirs.make_value_estimator(ValueEstimators.TD0, gamma=0.9)
    expected = theirs(td)
    ours = QValueLoss(actor, critic, gamma=0.9)(td)["loss_value"]
    assert_close(ours, expected["loss_value"])
    policy = DeterministicPolicyLoss(actor, critic)(td)["loss_actor"]
    assert_close(policy, expected["loss_actor"])
    for own, other, part in ((ours, expected["loss_value"], "value"), (policy, expected["loss_actor"], "actor")):
        params = list((critic if part == "value" else actor).parameters())
        names = theirs.value_network_params if part == "value" else theirs.actor_network_params
        found = torch.autograd.grad(other, [p for p in names.values(True, True) if p.requires_grad], retain_graph=True)
        by_shape = sorted((g.shape, g.sum().item()) for g in found)
        for (shape, total), g in zip(by_shape, sorted(torch.autograd.grad(own, params, retain_graph=True),
                                                      key=lambda g: (g.shape, g.sum().item())), strict=True):
            assert shape == g.shape and total == pytest.approx(g.sum().item(), abs=1e-6)


class Line(nn.Module):
    """Q_i(s, a) = scale_i sum a, mu(s) = clip(first observation)."""

    def __init__(self, *scales):
        super().__init__()
        self.scales = nn.Parameter(torch.tensor(scales))

    def forward(self, observation, action):
        return self.scales.view(-1, *[1] * action.ndim) * action.sum(-1, keepdim=True)

    def first(self, observation, action):
        return self(observation, action)[0]


class Copy(nn.Module):
    def __init__(self):
        super().__init__()
        self.gain = nn.Parameter(torch.ones(()))

    def forward(self, observation):
        return self.gain * observation


def test_the_target_by_hand():
    """r + 0.5 min(1 a', 3 a'); a' = clip(-0.8 + clip(1 * n, +-0.3)): n = -2 gives -1, n = 0.2 gives -0.6."""
    loss = QValueLoss(Copy(), Line(1.0, 3.0), gamma=0.5, smoothing=1.0, smoothing_clip=0.3)
    td = TensorDict(batch_size=[3])
    td[OBSERVATION] = torch.zeros(3, 1, 1)
    td["next", *OBSERVATION] = torch.full((3, 1, 1), -0.8)
    td["next", *REWARD] = torch.full((3, 1, 1), 2.0)
    td["next", *TERMINATED] = torch.tensor([False, False, True]).view(3, 1, 1)
    td[LATENT_ACTION] = torch.full((3, 1, 1), 0.5)
    noise = torch.tensor([-2.0, 0.2, 0.0]).view(3, 1, 1)
    assert_close(loss.target(td, noise).flatten(), torch.tensor([2 - 0.5 * 3.0, 2 - 0.5 * 1.8, 2.0]))
    # Q = 0.5 and 1.5; the sum over critics of the mean squared error
    errors = [((q - torch.tensor([0.5, 1.1, 2.0])) ** 2).mean() for q in (0.5, 1.5)]
    assert_close(loss(td, noise)["loss_value"], errors[0] + errors[1])
    assert_close(loss(td, noise)["value"], torch.tensor(1.0))


def test_the_policy_loss_moves_the_actor_alone():
    actor, critic = Copy(), Line(2.0, 5.0)
    td = TensorDict({OBSERVATION: torch.tensor([0.5, 1.0]).view(2, 1, 1)}, [2])
    out = DeterministicPolicyLoss(actor, critic)(td)
    out["loss_actor"].backward()
    assert out["loss_actor"].item() == -1.5 and actor.gain.grad.item() == -1.5  # the first critic's
    assert critic.scales.grad is None and critic.scales.requires_grad
    assert out["saturated"].item() == 0.5


def test_levels_of_an_actor_have_optimisers_and_clipping_of_their_own():
    """Gradients (3, 4) and (6, 8): each level is clipped to length 1 by itself."""
    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.upper, self.lower = nn.Linear(1, 2, bias=False), nn.Linear(1, 2, bias=False)

        def forward(self, observation):
            return torch.cat([self.upper(observation), self.lower(observation)], -1)

    class Slope(nn.Module):
        def first(self, observation, action):
            return (action * action.new_tensor([3.0, 4.0, 6.0, 8.0])).sum(-1, keepdim=True)

    actor = Two()
    before = [actor.upper.weight.detach().clone(), actor.lower.weight.detach().clone()]
    loss = DeterministicPolicyLoss(actor, Slope(), {"upper": actor.upper, "lower": actor.lower})
    names, sgd = ("actor_upper", "actor_lower"), partial(torch.optim.SGD, lr=1.0)
    update = Update("two", {"actor": loss}, None, optimizer=dict.fromkeys(names, sgd),
                    max_grad_norm=dict.fromkeys(names, 1.0), delay={})
    out = update.step(TensorDict({OBSERVATION: torch.ones(1, 1, 1)}, [1]))
    assert (out["grad_norm_actor_upper"].item(), out["grad_norm_actor_lower"].item()) == (5.0, 10.0)
    for level, old in zip((actor.upper, actor.lower), before, strict=True):
        torch.testing.assert_close(level.weight - old, torch.tensor([[0.6], [0.8]]))


def test_soft_targets_have_a_rate_each():
    nets = [nn.Linear(2, 1) for _ in range(4)]
    before = [deepcopy(net) for net in nets]
    SoftTargets((nets[0], nets[1], 0.1), (nets[2], nets[3], 0.5)).step()
    for (fast, slow), tau in zip(((0, 1), (2, 3)), (0.1, 0.5), strict=True):
        for new, old, aim in zip(nets[slow].parameters(), before[slow].parameters(), before[fast].parameters(),
                                 strict=True):
            assert_close(new, old + tau * (aim - old))
        assert all(map(torch.equal, nets[fast].parameters(), before[fast].parameters()))
    with pytest.raises(ValueError, match=r"tau must be between 0 and 1, got 1\.5"):
        SoftTargets((nets[0], nets[1], 1.5))
