"""Data-parallel training under torchrun: one process per device, own environments, averaged gradients.

    python -m torch.distributed.run --nproc_per_node 2 -m recipes.cooperative --task vmas/navigation

Without torchrun every function here is the identity.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence

import torch
import torch.distributed as dist
from torch import Tensor, nn


def start(device: torch.device | str) -> torch.device:
    """Join the process group if torchrun started us (NCCL on CUDA, gloo on CPU); returns this process's device."""
    device = torch.device(device)
    if int(os.environ.get("WORLD_SIZE", "1")) == 1 or dist.is_initialized():
        return device
    if device.type == "cuda":
        device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
        torch.cuda.set_device(device)
    dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
    return device


def stop() -> None:
    """Leave the process group."""
    if dist.is_initialized():
        dist.destroy_process_group()


def rank() -> int:
    """Number of this process, 0 without torchrun."""
    return dist.get_rank() if dist.is_initialized() else 0


def world_size() -> int:
    """Number of processes, 1 without torchrun."""
    return dist.get_world_size() if dist.is_initialized() else 1


def average_gradients(params: Sequence[nn.Parameter]) -> None:
    """Average gradients over processes with one collective; a missing gradient counts as zero on every process."""
    if world_size() == 1:
        return
    flat = torch.cat([(torch.zeros_like(p) if p.grad is None else p.grad).flatten() for p in params])
    dist.all_reduce(flat)
    flat /= world_size()
    for param, part in zip(params, flat.split([p.numel() for p in params]), strict=True):
        param.grad = part.view_as(param).clone()


def total(x: Tensor) -> Tensor:
    """Sum of a tensor over processes."""
    if world_size() == 1:
        return x
    x = x.clone()
    dist.all_reduce(x)
    return x


def average(x: Tensor) -> Tensor:
    """Mean of a tensor over processes."""
    return x if world_size() == 1 else total(x) / world_size()


def moments(x: Tensor, dims: Sequence[int], mask: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
    """Mean, unbiased variance and number of elements over ``dims`` and all processes.

    ``mask`` (bool, broadcastable) leaves out the elements where it is False. A single element has variance 0.
    """
    dims = tuple(dims)
    weight = torch.ones_like(x, dtype=torch.float64) if mask is None else mask.expand_as(x).double()
    exact = x.double()  # squares of large means cancel in float32
    sums = torch.stack([(weight * exact).sum(dims), (weight * exact.square()).sum(dims), weight.sum(dims)])
    if world_size() > 1:
        dist.all_reduce(sums)
    count = sums[2].clamp_min(1)  # nothing left in: mean and variance 0
    mean = sums[0] / count
    var = (sums[1] / count - mean.square()).clamp_min(0) * count / (count - 1).clamp_min(1)
    return mean.to(x.dtype), var.to(x.dtype), sums[2]


def broadcast(modules: Iterable[nn.Module]) -> None:
    """Give every process the parameters and buffers of process 0."""
    if world_size() == 1:
        return
    with torch.no_grad():
        for module in modules:
            for tensor in (*module.parameters(), *module.buffers()):
                dist.broadcast(tensor.data, 0)


def any_process(flag: bool) -> bool:
    """True everywhere if it is True in some process."""
    if world_size() == 1:
        return flag
    x = torch.tensor(float(flag), device="cuda" if dist.get_backend() == "nccl" else "cpu")
    dist.all_reduce(x, dist.ReduceOp.MAX)
    return bool(x > 0)


def largest_common(values: set[int]) -> int:
    """The largest number that every process holds; ValueError if there is none."""
    gathered: list[set[int]] = [set() for _ in range(world_size())]
    dist.all_gather_object(gathered, values)
    common = set.intersection(*gathered)
    if not common:
        raise ValueError(f"the processes have no whole checkpoint in common: {[sorted(v) for v in gathered]}")
    return max(common)
