import pytest
import torch
from torch import nn
from torch.testing import assert_close

from suite.modules.networks import (
    ACTIVATIONS,
    AgentGRU,
    AgentInput,
    AgentLinear,
    JointInput,
    linear,
    mlp,
    sharing_index,
)

torch.set_num_threads(1)
INDICES = {"shared": None, "roles": [0, 1, 0], "own": [0, 1, 2]}


def loop_of_linears(layer, x):
    """The same numbers, one agent after the other with torch's own layer."""
    out = []
    for agent, which in enumerate(layer.index.tolist()):
        one = nn.Linear(x.shape[-1], layer.bias.shape[-1])
        one.weight, one.bias = nn.Parameter(layer.weight[which]), nn.Parameter(layer.bias[which])
        out.append(one(x[..., agent, :]))
    return torch.stack(out, -2)


@pytest.mark.parametrize("index", [[0, 1, 2], [0, 1, 0], [1, 0, 1], [0, 0, 1]])
@pytest.mark.parametrize("batch", [(), (4,), (4, 5), (2, 3, 4)])
def test_agent_linear_equals_a_loop(index, batch):
    layer, x = AgentLinear(6, 7, index), torch.randn(*batch, 3, 6)
    out = layer(x)
    assert out.shape == (*batch, 3, 7)
    assert_close(out, loop_of_linears(layer, x))


def test_gradients_land_in_the_right_set():
    layer = AgentLinear(4, 2, [0, 1, 0, 2])
    layer(torch.randn(5, 4, 4))[:, 1].sum().backward()  # agent 1 uses set 1
    touched = layer.weight.grad.abs().sum((1, 2)) > 0
    assert touched.tolist() == [False, True, False]
    assert layer.bias.grad.abs().sum(1).tolist() == [0.0, 10.0, 0.0]  # 5 rows x 2 outputs
    layer.zero_grad()
    layer(torch.randn(5, 4, 4)).sum().backward()
    assert layer.bias.grad[:, 0].tolist() == [10.0, 5.0, 5.0]  # agents 0 and 2 share set 0


@pytest.mark.parametrize(("share", "types", "expected"), [
    ("all", (0, 1, 1), None), ("roles", (0, 1, 1), [0, 1, 1]), ("none", (0, 0, 0), [0, 1, 2]),
    ("roles", (0, 0, 0), None), ("roles", (2, 2), None), ("none", (0,), None)])
def test_sharing_index(share, types, expected):
    assert sharing_index(share, types) == expected


@pytest.mark.parametrize(("types", "sets"), [((1, 1, 3), 2), ((5, 2, 5), 2)])
def test_role_numbers_need_not_start_at_zero(types, sets):
    index = sharing_index("roles", types)
    layer = AgentLinear(3, 2, index)
    layer(torch.randn(2, 3, 3)).sum().backward()
    assert len(layer.weight) == sets  # no parameters that nobody uses
    assert (layer.bias.grad != 0).all()
    assert (index[0] == index[1]) == (types[0] == types[1]) and (index[0] == index[2]) == (types[0] == types[2])


@pytest.mark.parametrize("index", INDICES.values(), ids=INDICES)
@pytest.mark.parametrize("gain", [1.0, 0.01, 2**0.5])
def test_orthogonal_init_is_orthogonal_in_every_set(index, gain):
    for in_dim, out_dim in ((5, 8), (8, 5)):
        layer = linear(in_dim, out_dim, index, init="orthogonal", gain=gain)
        for weight in layer.weight.detach().view(-1, out_dim, in_dim):
            product = weight.T @ weight if out_dim > in_dim else weight @ weight.T
            assert_close(product, gain**2 * torch.eye(5), rtol=0, atol=1e-5 * gain**2)
        assert not layer.bias.any()


def test_sets_start_different():
    for init in ("default", "orthogonal"):
        weight = linear(4, 4, [0, 1], init=init).weight
        assert not torch.equal(weight[0], weight[1])


@pytest.mark.parametrize("index", INDICES.values(), ids=INDICES)
def test_mlp_shapes_and_activations(index):
    net = mlp(4, 2, index, cells=[8, 6], activation="relu", init="orthogonal", out_gain=0.01)
    assert net(torch.randn(7, 3, 4)).shape == (7, 3, 2)
    assert [type(layer).__name__ for layer in net][1::2] == ["ReLU", "ReLU"]
    assert (mlp(4, None, index, cells=[8], activation="relu", init="default")(torch.randn(7, 3, 4)) >= 0).all()
    x = torch.randn(2, 3, 4)
    assert torch.equal(mlp(4, None, index, cells=[], activation="tanh", init="default")(x), x)


@pytest.mark.parametrize(("options", "message"), [
    ({"activation": "swish"}, r"'swish'.*\['elu', 'relu', 'tanh'\]"),
    ({"init": "zeros"}, r"'zeros'.*\['default', 'orthogonal'\]")])
def test_wrong_words_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        mlp(4, 2, None, **dict(cells=[3], activation="tanh", init="default") | options)


def test_wrong_sharing_is_named():
    with pytest.raises(ValueError, match=r"'some'.*\['all', 'none', 'roles'\]"):
        sharing_index("some", (0, 0))


def test_agent_input_appends_ids():
    x, y = torch.randn(5, 2, 3), torch.randn(5, 2, 1)
    out = AgentInput(2, True)(x, y)
    assert_close(out, torch.cat([x, y, torch.eye(2).expand(5, 2, 2)], -1))
    assert torch.equal(AgentInput(2, False)(x), x)


def test_joint_input_of_observations():
    x, y = torch.arange(12.0).view(2, 2, 3), torch.arange(4.0).view(2, 2, 1)
    one = JointInput(2, agent_id=False, per_agent=False, has_state=False)
    assert one.rows == 1
    assert_close(one(x, y), torch.cat([x.view(2, 1, 6), y.view(2, 1, 2)], -1))
    rows = JointInput(2, agent_id=True, per_agent=True, has_state=False)
    assert rows.rows == 2
    # env 0: both agents' observations 0..5, both features 0 and 1, then the id
    assert rows(x, y)[0].tolist() == [[0, 1, 2, 3, 4, 5, 0, 1, 1, 0], [0, 1, 2, 3, 4, 5, 0, 1, 0, 1]]
    plain = JointInput(2, agent_id=False, per_agent=True, has_state=False)
    assert_close(plain(x), x.view(2, 1, 6).expand(2, 2, 6))


def test_joint_input_with_an_agents_own_features():
    x, y = torch.arange(12.0).view(2, 2, 3), torch.arange(4.0).view(2, 2, 1)
    rows = JointInput(2, agent_id=True, per_agent=False, has_state=False, own=True)
    assert rows.rows == 2
    # env 1: both agents' observations 6..11, the own feature 2 or 3, then the id
    assert rows(x, y)[1].tolist() == [[6, 7, 8, 9, 10, 11, 2, 1, 0], [6, 7, 8, 9, 10, 11, 3, 0, 1]]
    state = torch.arange(8.0).view(2, 4)
    assert JointInput(2, agent_id=False, per_agent=True, has_state=True, own=True)(state, y)[0].tolist() == [
        [0, 1, 2, 3, 0], [0, 1, 2, 3, 1]]


def test_joint_input_of_a_state():
    state, y = torch.randn(4, 3, 5), torch.randn(4, 3, 2, 1)  # [N, T, S] and [N, T, A, d]
    out = JointInput(2, agent_id=False, per_agent=True, has_state=True)(state, y)
    assert out.shape == (4, 3, 2, 7)
    assert_close(out[..., 0, :], torch.cat([state, y.flatten(-2)], -1))
    assert_close(out[..., 0, :], out[..., 1, :])


def cells_of(gru, index):
    """torch's GRUCells with the same numbers, one per agent."""
    cells = []
    for agent in range(3):
        which = 0 if index is None else index[agent]
        cell = nn.GRUCell(gru.from_input.weight.shape[-1], gru.hidden_dim)
        for name, layer in (("ih", gru.from_input), ("hh", gru.from_hidden)):
            weight, bias = (x.detach().view(-1, *x.shape[x.ndim - d:])[which]
                            for x, d in ((layer.weight, 2), (layer.bias, 1)))
            setattr(cell, f"weight_{name}", nn.Parameter(weight))
            setattr(cell, f"bias_{name}", nn.Parameter(bias))
        cells.append(cell)
    return cells


@pytest.mark.parametrize("index", INDICES.values(), ids=INDICES)
def test_gru_equals_torch_with_resets_and_stepwise_equals_sequence(index):
    torch.manual_seed(0)
    n, steps, agents, hidden_dim = 4, 7, 3, 5
    gru = AgentGRU(6, hidden_dim, index, init="default")
    x, start = torch.randn(n, steps, agents, 6), torch.randn(n, agents, hidden_dim)
    is_init = torch.rand(n, steps, 1) < 0.3
    is_init[0, 0], is_init[1, 0] = True, False
    hidden = torch.full((n, steps, agents, hidden_dim), float("nan"))  # only the first state may be read
    hidden[:, 0] = start
    sequence, states = gru(x, hidden, is_init)
    assert torch.equal(sequence, states)
    cells, by_hand, stepwise = cells_of(gru, index), start, start
    for t in range(steps):
        by_hand = torch.where(is_init[:, t, :, None], 0.0, by_hand)
        by_hand = torch.stack([cells[a](x[:, t, a], by_hand[:, a]) for a in range(agents)], 1)
        out, stepwise = gru(x[:, t], stepwise, is_init[:, t])
        assert torch.equal(out, stepwise)
        assert_close(sequence[:, t], by_hand, rtol=1e-5, atol=1e-6)
        assert_close(stepwise, by_hand, rtol=1e-5, atol=1e-6)


def test_no_gradient_passes_an_episode_start():
    gru = AgentGRU(3, 4, None, init="default")
    x = torch.randn(1, 5, 2, 3, requires_grad=True)
    hidden = torch.randn(1, 5, 2, 4, requires_grad=True)
    is_init = torch.zeros(1, 5, 1, dtype=torch.bool)
    is_init[:, 3] = True
    gru(x, hidden, is_init)[0][:, -1].sum().backward()
    assert not x.grad[:, :3].any() and x.grad[:, 3:].abs().sum((0, 2, 3)).gt(0).all()
    assert not hidden.grad.any()


def test_tanh_equals_torch():
    x = torch.cat([torch.linspace(-12, 12, 4001), torch.tensor([-1e4, 0.0, 1e4])]).requires_grad_()
    ours, stock = ACTIVATIONS["tanh"]()(x), torch.tanh(x)
    assert_close(ours, stock, rtol=0, atol=3e-7)
    assert ours.abs().max() <= 1 and ours[-2] == 0
    slopes = [torch.autograd.grad(y.sum(), x)[0] for y in (ours, stock)]
    assert_close(*slopes, rtol=0, atol=1e-6)
    assert ACTIVATIONS["tanh"]()(torch.tensor(float("nan"))).isnan()  # a broken network must not look healthy


def test_networks_run_under_vmap_as_torchrl_calls_them():
    net = mlp(4, 2, [0, 1, 2], cells=[8], activation="tanh", init="default")
    x = torch.randn(5, 3, 4)
    doubled = {name: torch.stack([p, 2 * p]).detach() for name, p in net.named_parameters()}
    out = torch.vmap(lambda params: torch.func.functional_call(net, params, x))(doubled)
    assert out.shape == (2, 5, 3, 2)
    assert_close(out[0], net(x))
    assert_close(out[1], torch.func.functional_call(net, {k: 2 * p for k, p in net.named_parameters()}, x))


def test_layers_are_those_of_a_sequential_without_copies_in_the_backward_pass():
    torch.manual_seed(0)
    net = mlp(3, 2, None, cells=[5, 4], activation="relu", init="default")
    plain, x = torch.nn.Sequential(*net), torch.randn(6, 2, 3, requires_grad=True)
    out = net(x)
    assert out.shape == (6, 2, 2)
    gradients = torch.autograd.grad(out.square().sum(), [x, *net.parameters()])
    expected = torch.autograd.grad(plain(x).square().sum(), [x, *net.parameters()])
    for found, wanted in zip(gradients, expected, strict=True):
        torch.testing.assert_close(found, wanted, rtol=0, atol=0)
    assert "CopySlices" in _nodes(plain(x)) and "CopySlices" not in _nodes(net(x))


def _nodes(out):
    """Names of the nodes behind a tensor in the graph of autograd."""
    names, left = set(), [out.grad_fn]
    while left:
        node = left.pop()
        names.add(node.name().rpartition(":")[2])
        left += [following for following, _ in node.next_functions if following is not None]
    return names
