"""The flat optimiser takes torch's steps."""

import copy

import pytest
import torch
from torch.testing import assert_close

from suite.optimizers import FlatRMSprop

torch.set_num_threads(1)
SHAPES = (3, 4), (5,), (2, 3, 2)


def tensors(seed):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(*shape, generator=generator) for shape in SHAPES]


def pair():
    """The same parameters twice, ours and torch's optimiser."""
    sets = [[torch.nn.Parameter(x) for x in tensors(0)] for _ in range(2)]
    return sets, [make(params, lr=0.01, alpha=0.9, eps=1e-3)
                  for make, params in zip((FlatRMSprop, torch.optim.RMSprop), sets, strict=True)]


def step(sets, optimizers, seed, missing=()):
    for params, optimizer in zip(sets, optimizers, strict=True):
        for k, (param, gradient) in enumerate(zip(params, tensors(seed), strict=True)):
            param.grad = None if k in missing else gradient
        optimizer.step()
    for ours, theirs in zip(*sets, strict=True):
        assert_close(ours, theirs, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("missing", [(), (1,), (0, 2), (0, 1, 2)])
def test_steps_are_those_of_torch_also_where_gradients_are_missing(missing):
    sets, optimizers = pair()
    for seed in range(1, 9):
        step(sets, optimizers, seed, missing if seed in (1, 4, 5) else ())


def test_groups_and_rates():
    params = [torch.nn.Parameter(x) for x in tensors(0)]
    before = [param.detach().clone() for param in params]
    optimizer = FlatRMSprop([{"params": params[:1], "lr": 0.0}, {"params": params[1:]}], lr=0.1)
    for param in params:
        param.grad = torch.ones_like(param)
    optimizer.step()
    assert torch.equal(params[0], before[0])
    # v = 0.01, so each step is 0.1 / 0.1
    for param, start in zip(params[1:], before[1:], strict=True):
        assert_close(param, start - 1)


@pytest.mark.parametrize("swap", [False, True])
def test_states_are_torchs_and_go_back_and_forth(swap):
    sets, optimizers = pair()
    for seed in range(1, 4):
        step(sets, optimizers, seed)
    ours, theirs = (optimizer.state_dict() for optimizer in optimizers)
    assert ours["state"].keys() == theirs["state"].keys() and ours["param_groups"] == theirs["param_groups"]
    for k, state in ours["state"].items():
        assert state.keys() == theirs["state"][k].keys()
        assert_close(state["square_avg"], theirs["state"][k]["square_avg"], rtol=1e-6, atol=1e-8)
    optimizers[0].load_state_dict(theirs if swap else ours)
    for seed in range(4, 8):
        step(sets, optimizers, seed)


def test_a_copy_goes_on_like_the_first():
    """Also from a loaded state of which only a later tensor is new."""
    sets, optimizers = pair()
    for seed in range(1, 4):
        step(sets, optimizers, seed)
    params, mine = copy.deepcopy((sets[0], optimizers[0]))
    step([params, sets[1]], [mine, optimizers[1]], 4)
    for part in (mine, optimizers[1]):
        state = part.state_dict()
        state["state"][1]["square_avg"] = torch.full((5,), 100.0)
        part.load_state_dict(state)
    step([params, sets[1]], [mine, optimizers[1]], 5)
