"""The inverting-gradient layer: eq. 16 of the official HyAR program, by hand, and inside TorchRL's losses."""

import pytest
import torch
from tensordict import TensorDict
from tensordict.nn import TensorDictModule
from torch import nn
from torch.testing import assert_close
from torchrl.data import Bounded
from torchrl.modules import ValueOperator
from torchrl.objectives import DDPGLoss, TD3Loss

from suite.modules.inverting import InvertingGradients
from tests.archives import Golden

torch.set_num_threads(1)


def through(action, gradient, **bounds):
    """The gradient that comes out below the layer."""
    action = action.clone().requires_grad_()
    out = InvertingGradients(**bounds)(action)
    assert torch.equal(out, action)
    out.backward(gradient)
    return action.grad


def test_official_numbers():
    """The file has the gradient of the value, which a loss has with the other sign."""
    golden = Golden("hyar", "relabel_td3")
    found = -through(golden["invgrad/val"], -golden["invgrad/grad"])
    golden.check("invgrad", found, golden["invgrad/out"], 1e-6)
    assert golden["invgrad/val"].abs().max() > 0.5 and (golden["invgrad/grad"] > 0).any()


# a step follows the loss downhill. Room upwards (1 - a) / 2, downwards (a + 1) / 2:
# a = 0.5: 0.25 and 0.75;  a = 1: 0 and 1;  a = 2: -0.5 and 1.5;  a = -3: 2 and -1;  a = 0: 0.5 and 0.5
@pytest.mark.parametrize(("action", "gradient", "expected"), [
    (0.5, -2.0, -0.5), (0.5, 2.0, 1.5), (1.0, -2.0, 0.0), (1.0, 2.0, 2.0), (2.0, -2.0, 1.0), (2.0, 2.0, 3.0),
    (-3.0, 2.0, -2.0), (-3.0, -2.0, -4.0), (0.0, -1.0, -0.5), (0.3, 0.0, 0.0)])
def test_by_hand(action, gradient, expected):
    assert_close(through(torch.tensor([action]), torch.tensor([gradient])), torch.tensor([expected]))


# bounds 0 and 4: at 1 three quarters of the room lie above
def test_other_bounds():
    found = through(torch.tensor([1.0, 1.0]), torch.tensor([-2.0, 2.0]), low=0.0, high=4.0)
    assert_close(found, torch.tensor([-1.5, 0.5]))


def test_a_parameter_pushed_outwards_stays_inside():
    bounded, free = nn.Parameter(torch.tensor([0.9, -0.9])), nn.Parameter(torch.tensor([0.9, -0.9]))
    layer = InvertingGradients()
    optimizer = torch.optim.SGD([bounded, free], lr=0.1)
    for _ in range(200):
        optimizer.zero_grad()
        outwards = torch.tensor([1.0, -1.0])
        (-(layer(bounded) * outwards).sum() - (free * outwards).sum()).backward()
        optimizer.step()
    assert (bounded.abs() <= 1).all() and (bounded.abs() > 0.99).all() and (free.abs() > 2).all()


def test_under_vmap_it_is_the_same():
    torch.manual_seed(0)
    action, gradient = 2 * torch.randn(3, 5, 2), torch.randn(3, 5, 2)
    layer = InvertingGradients()

    def pull(a, g):
        return torch.func.vjp(layer, a)[1](g)[0]

    assert_close(torch.vmap(pull)(action, gradient), through(action, gradient))
    assert_close(torch.vmap(torch.vmap(pull))(action, gradient), through(action, gradient))


class Value(nn.Module):
    """Q = 3 a_0 - 2 a_1, plus a number to train."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))

    def forward(self, observation, action):
        return (action * torch.tensor([3.0, -2.0])).sum(-1, keepdim=True) + self.weight


# the actor's output b = (0.5, 1): d(-Q)/da = (-3, 2): room (0.25, 1): d/db = (-0.75, 2)
@pytest.mark.parametrize("kind", ["ddpg", "td3"])
def test_torchrls_losses_take_the_inverted_gradient(kind):
    linear = nn.Linear(4, 2)
    with torch.no_grad():
        linear.weight.zero_()
        linear.bias.copy_(torch.tensor([0.5, 1.0]))
    actor = TensorDictModule(nn.Sequential(linear, InvertingGradients()), in_keys=["observation"], out_keys=["action"])
    critic = ValueOperator(Value(), in_keys=["observation", "action"], out_keys=["state_action_value"])
    loss = DDPGLoss(actor, critic) if kind == "ddpg" else TD3Loss(actor, critic, action_spec=Bounded(-1, 1, (2,)))
    td = TensorDict({"observation": torch.randn(8, 4), "action": torch.zeros(8, 2)}, batch_size=[8])
    td["next"] = TensorDict({"observation": torch.randn(8, 4), "reward": torch.ones(8, 1),
                             "done": torch.zeros(8, 1, dtype=torch.bool),
                             "terminated": torch.zeros(8, 1, dtype=torch.bool)}, batch_size=[8])
    loss(td)["loss_actor"].backward()
    assert_close(linear.bias.grad, torch.tensor([-0.75, 2.0]))


def test_it_runs_inside_torchrls_ensembles():
    """TD3 evaluates its targets under vmap over two critics, whose input this layer may be."""
    layer = InvertingGradients()

    def value(weight, action):
        return (layer(action) * weight).sum()

    weights, action = torch.tensor([[1.0, -1.0], [2.0, 4.0]]), torch.tensor([0.5, 0.5])
    grads = torch.vmap(torch.func.grad(value, argnums=1), in_dims=(0, None))(weights, action)
    assert_close(grads, torch.tensor([[0.75, -0.25], [1.5, 3.0]]))


@pytest.mark.parametrize("bounds", [(1.0, 1.0), (1.0, -1.0), (0.0, float("nan"))])
def test_bounds_must_hold_an_interval(bounds):
    with pytest.raises(ValueError, match=r"low < high"):
        InvertingGradients(*bounds)
