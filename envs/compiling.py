"""The option ``compile`` of the families whose step is a pure function of tensors."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.fx.experimental.proxy_tensor import make_fx
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
              any_rows: bool = False) -> Callable[..., Any]:
    """``function`` compiled as one graph, now, so that a failure shows here and not later; itself without a backend.

    On a CPU inductor's code is called directly, see `_Direct`. ``any_rows``: for any size, at least 2, of the last
    dimension of its tensors, instead of those of ``example`` alone.
    """
    if backend is None:
        return function
    if backend == "inductor" and not any_rows and all(x.device.type == "cpu" for x in tree_flatten(example)[0]):
        return _Direct(function, example)
    if any_rows:  # dynamic=True would also make inputs of constants
        for tensor in example:
            if tensor.ndim:
                torch._dynamo.maybe_mark_dynamic(tensor, tensor.ndim - 1)

    def graph(*inputs: Any) -> Any:
        return function(*inputs)

    # torch.compile refuses a ninth graph of one code object: each environment of a process needs its own
    graph.__code__ = graph.__code__.replace()
    compiled = torch.compile(graph, backend=backend, fullgraph=True, dynamic=None if any_rows else False)
    with torch.no_grad():
        compiled(*example)
    return compiled


class _Direct:
    """``function`` compiled by inductor for a CPU and for inputs like ``example``, and called without ``torch.compile``.

    What that does in each call, looking for the right graph and rebuilding views in Python, costs 60 us, as much as a
    step of 4096 small environments; here it is 12. Inputs are checked instead: another shape, type or device is a
    ValueError, other strides are copied. Where gradients are asked for, the function itself is called.
    """

    def __init__(self, function: Callable[..., Any], example: tuple[Any, ...]):
        self.function = function
        leaves, self.form = tree_flatten(example)
        leaves = [leaf.contiguous() for leaf in leaves]
        self.expected = [(leaf.shape, leaf.dtype, leaf.device) for leaf in leaves]
        with torch.no_grad():
            graph = make_fx(self._flat, tracing_mode="fake", _allow_non_fake_inputs=True)(*leaves)
            self.compiled = torch._inductor.standalone_compile(
                graph, leaves, dynamic_shapes="from_example_inputs", options={"config_patches": {"cpp_wrapper": True}})
            self.compiled(*leaves)

    def _flat(self, *leaves: Tensor) -> list[Tensor]:
        """The graph: its results in one list, bools as bytes, those of one shape in one tensor at the end.

        Inductor writes bools to memory one by one, and bytes made of floats eight at a time.
        """
        results, self.results = tree_flatten(self.function(*tree_unflatten(leaves, self.form)))
        alike: dict[torch.Size, list[int]] = {}
        for k, result in enumerate(results):
            if result.dtype == torch.bool:
                alike.setdefault(result.shape, []).append(k)
        self.bools = list(alike.values())
        self.others = [k for k, result in enumerate(results) if result.dtype != torch.bool]
        return [results[k] for k in self.others] + [
            torch.stack([results[k].to(torch.float32).to(torch.uint8) for k in group]) for group in self.bools]

    def __call__(self, *inputs: Any) -> Any:
        leaves = tree_flatten(inputs)[0]
        if torch.is_grad_enabled() and any(leaf.requires_grad for leaf in leaves):
            return self.function(*inputs)
        for leaf, expected in zip(leaves, self.expected, strict=True):
            if (leaf.shape, leaf.dtype, leaf.device) != expected:
                raise ValueError(f"compiled for {expected}, got {(leaf.shape, leaf.dtype, leaf.device)}")
        given = self.compiled(*[leaf.contiguous() for leaf in leaves])
        results: list[Any] = [None] * (len(self.others) + sum(map(len, self.bools)))
        for k, result in zip(self.others, given[:len(self.others)], strict=True):
            results[k] = result
        for group, result in zip(self.bools, given[len(self.others):], strict=True):
            for k, row in zip(group, result.view(torch.bool).unbind(), strict=True):
                results[k] = row
        return tree_unflatten(results, self.results)
