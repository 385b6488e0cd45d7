"""The option ``compile`` of the families whose step is a pure function of tensors."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx
from torch.fx.experimental.symbolic_shapes import DimDynamic, ShapeEnv, StatelessSymbolicContext
from torch.utils._pytree import tree_flatten, tree_unflatten


def backend_of(compile: bool | str) -> str | None:
    """The backend of ``torch.compile`` that ``compile`` asks for: None for False; ValueError if there is no such."""
    if not compile:
        return None
    backend = "inductor" if compile is True else compile
    known = torch._dynamo.list_backends(None)
    if backend not in known:
        raise ValueError(f"compile must be False, True or one of {known}, got {compile!r}")
    return backend


def one_graph(function: Callable[..., Any], backend: str | None, *example: Any,
              free: Sequence[int | None] = (), quick_bools: bool = False) -> Callable[..., Any]:
    """``function`` compiled as one graph, now, so that a failure shows here and not later; itself without a backend.

    Inputs are like ``example``, but for the sizes that ``free`` leaves open: a dimension of each tensor, or None. On a
    CPU inductor's code is called directly, see `_Direct`. There it writes bools to memory one by one; with
    ``quick_bools`` eight at a time, which it cannot do for every function: then it raises a compile error.
    """
    if backend is None:
        return function
    if backend == "inductor" and all(leaf.device.type == "cpu" for leaf in tree_flatten(example)[0]):
        return _Direct(function, example, free, quick_bools)
    for tensor, dim in zip(example, free, strict=False):  # dynamic=True would also make inputs of constants
        if dim is not None:
            torch._dynamo.maybe_mark_dynamic(tensor, dim % tensor.ndim)

    def graph(*inputs: Any) -> Any:
        return function(*inputs)

    # torch.compile refuses a ninth graph of one code object: each environment of a process needs its own
    graph.__code__ = graph.__code__.replace()
    compiled = torch.compile(graph, backend=backend, fullgraph=True, dynamic=None if free else False)
    with torch.no_grad():
        compiled(*example)
    return compiled


class _Direct:
    """``function`` compiled by inductor for a CPU, and called without what ``torch.compile`` does in each call.

    That is to look for the right graph and to rebuild views, in Python: 60 us, as much as a step of 4096 small
    environments takes; here it is 12. Inputs are checked instead: another shape or type is a ValueError, other
    strides are copied (so what the function writes into must be contiguous). No gradient passes; where one is asked
    for, the function itself is called.
    """

    def __init__(self, function: Callable[..., Any], example: tuple[Any, ...], free: Sequence[int | None],
                 quick_bools: bool):
        self.quick_bools = quick_bools
        self.function, self.plain = function, all(isinstance(part, Tensor) for part in example)
        leaves, self.form = tree_flatten(example)
        leaves = [leaf.contiguous() for leaf in leaves]
        free = [None if dim is None else dim % leaf.ndim
                for leaf, dim in zip(leaves, free or [None] * len(leaves), strict=True)]
        self.expected = [(leaf.dtype, leaf.ndim, leaf.shape if dim is None else None)
                         for leaf, dim in zip(leaves, free, strict=True)]
        mode = FakeTensorMode(shape_env=ShapeEnv(), allow_non_fake_inputs=True)
        fakes = [mode.from_tensor(like, static_shapes=True) if dim is None else mode.from_tensor(
            like, symbolic_context=StatelessSymbolicContext(dynamic_sizes=[
                DimDynamic.DYNAMIC if k == dim else DimDynamic.STATIC for k in range(like.ndim)]))
            for like, dim in zip(leaves, free, strict=True)]
        with torch.no_grad():
            with mode:
                graph = make_fx(self._flat)(*fakes)
            self.compiled = torch._inductor.standalone_compile(
                graph, fakes, dynamic_shapes="from_graph", options={"config_patches": {"cpp_wrapper": True}})

    def _flat(self, *leaves: Tensor) -> list[Tensor]:
        given = self.function(*tree_unflatten(leaves, self.form))
        self.flat = type(given) is tuple and all(isinstance(part, Tensor) for part in given)
        results, self.results = tree_flatten(given)
        if not self.quick_bools:
            return results
        return [result.to(torch.float32).to(torch.uint8).view(torch.bool) if result.dtype == torch.bool else result
                for result in results]

    def __call__(self, *inputs: Any) -> Any:
        leaves = inputs if self.plain else tree_flatten(inputs)[0]
        if torch.is_grad_enabled() and any(leaf.requires_grad for leaf in leaves):
            return self.function(*inputs)
        for leaf, (dtype, ndim, shape) in zip(leaves, self.expected, strict=True):
            if leaf.dtype is not dtype or leaf.ndim != ndim or shape not in (None, leaf.shape) or not leaf.is_cpu:
                raise ValueError(f"compiled for {dtype} {list(shape or [])} on a CPU, got {leaf.dtype} "
                                 f"{list(leaf.shape)} on {leaf.device}")
        results = self.compiled(*[leaf.contiguous() for leaf in leaves])
        return results if self.flat else tree_unflatten(results, self.results)
