"""The option ``compile`` of the tensor families: the same game, a failure at once, bad words refused."""

from functools import partial
from typing import NamedTuple

import pytest
import torch

from envs import make_env
from envs.base import ACTION
from envs.compiling import backend_of, one_graph

torch.set_num_threads(1)

TASKS = ["foraging/2s-9x9-3p-2f-coop", "warehouse/tiny-4ag-hard", "particle/spread-3"]


MORE = {"with_visible": True, "with_hidden": True}


@pytest.mark.parametrize(("task", "options"), [*((task, {}) for task in TASKS), (TASKS[0], MORE), (TASKS[1], MORE),
                                               ("particle/navigation-3", {"with_hidden": True})], ids=str)
def test_a_compiled_environment_plays_the_same_game(task, options):
    eager, compiled = (make_env(task, num_envs=8, max_steps=6, compile=backend, **options)
                       for backend in (False, "aot_eager"))
    one, two = eager.reset_tensors(), compiled.reset_tensors()
    for _ in range(14):
        assert one.keys() == two.keys() and all(torch.equal(one[key], two[key]) for key in one)
        action = {ACTION: eager.full_action_spec[ACTION].rand()}
        one, two = eager.step_tensors(action), compiled.step_tensors(action)
        done = one["done"].squeeze(-1)
        if done.any():
            assert torch.equal(done, two["done"].squeeze(-1))
            one, two = eager.reset_tensors(done), compiled.reset_tensors(done)


@pytest.mark.parametrize("task", TASKS)
def test_a_state_put_back_is_seen_at_once(task):
    """What a step showed is not shown again after a reset or a restored state."""
    env = make_env(task, num_envs=4)
    env.reset_tensors()
    saved, before = env.state_dict(), env._observe()
    env._simulate({ACTION: env.full_action_spec[ACTION].rand()})
    env.load_state_dict(saved)
    after = env._observe()
    assert all(torch.equal(before[key], after[key]) for key in before)


def test_words():
    assert backend_of(False) is None and backend_of(True) == "inductor" and backend_of("aot_eager") == "aot_eager"
    with pytest.raises(ValueError, match=r"compile must be False, True or one of \[.*'inductor'.*\], got 'inductr'"):
        backend_of("inductr")
    for task in TASKS:
        with pytest.raises(ValueError, match="compile must be"):
            make_env(task, num_envs=2, compile="inductr")


def test_what_cannot_be_compiled_raises_at_once():
    def asks_the_host(x):
        return x + 1 if x.sum().item() > 0 else x

    assert one_graph(asks_the_host, None, torch.ones(2)) is asks_the_host
    with pytest.raises((torch._dynamo.exc.Unsupported, torch._dynamo.exc.UserError)):
        one_graph(asks_the_host, "aot_eager", torch.ones(2))
    with pytest.raises(torch.fx.experimental.symbolic_shapes.GuardOnDataDependentSymNode):
        one_graph(asks_the_host, "inductor", torch.ones(2))


def test_conflicts_by_networkx_are_not_compiled():
    with pytest.raises(ValueError, match="conflicts='exact' cannot be compiled"):
        make_env("warehouse/tiny-2ag-hard", num_envs=2, conflicts="exact", compile="aot_eager")


def test_one_process_has_room_for_many():
    doubled = [one_graph(partial(torch.mul, float(k)), "aot_eager", torch.ones(2)) for k in range(12)]
    for k, function in enumerate(doubled):
        assert function(torch.ones(2)).tolist() == [k, k]


# ---------------------------------------------------------------------- inductor's code, called directly

class Pair(NamedTuple):
    one: torch.Tensor
    two: torch.Tensor


@pytest.mark.parametrize("quick", [False, True])
def test_nested_inputs_and_results_and_bools(quick):
    def both(pair, scale):
        return Pair(pair.one * scale, pair.one > pair.two), pair.two >= scale, pair.two.unsqueeze(-1)

    graph = one_graph(both, "inductor", Pair(torch.zeros(20), torch.zeros(20)), torch.ones(20),
                      quick_bools=quick)
    for seed in range(3):
        one, two, scale = torch.randn(3, 20, generator=torch.Generator().manual_seed(seed))
        (product, more), least, column = graph(Pair(one, two), scale)
        assert torch.equal(product, one * scale) and torch.equal(more, one > two) and torch.equal(least, two >= scale)
        assert more.dtype == least.dtype == torch.bool and torch.equal(column, two.unsqueeze(-1))


def test_other_inputs_are_refused_and_other_strides_copied():
    graph = one_graph(lambda x: x + 1, "inductor", torch.zeros(2, 3))
    assert torch.equal(graph(torch.arange(6.0).view(3, 2).t()), torch.arange(6.0).view(3, 2).t() + 1)
    for wrong in (torch.zeros(3, 2), torch.zeros(2, 3, dtype=torch.float64), torch.zeros(6)):
        with pytest.raises(ValueError, match=r"compiled for torch.float32 \[2, 3\] on a CPU, got torch.float"):
            graph(wrong)


def test_where_a_gradient_is_asked_for_there_is_one():
    graph, x = one_graph(lambda x: x * x, "inductor", torch.zeros(3)), torch.tensor([1.0, 2.0, 3.0], requires_grad=True)
    assert torch.autograd.grad(graph(x).sum(), x)[0].tolist() == [2.0, 4.0, 6.0]


@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
def test_a_size_may_be_free_and_an_input_written_to(backend):
    def put(into, rows):
        return into.index_fill_(0, rows, rows.shape[0]).clone()

    graph = one_graph(put, backend, torch.zeros(50), torch.arange(5), free=(None, 0))
    for k in (5, 1, 0, 37):
        into, rows = torch.zeros(50), torch.arange(k) + 3
        assert torch.equal(graph(into, rows), into) and into.sum() == k * k and (into[rows] == k).all()
