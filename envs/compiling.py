"""The option ``compile`` of the families whose step is a pure function of tensors."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch


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

    ``any_rows``: for any size, at least 2, of the last dimension of its tensors, instead of those of ``example`` alone.
    """
    if backend is None:
        return function
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
