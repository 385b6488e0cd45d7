"""A TensorDictSequential executed on a plain dict of tensors: same modules, same parameters, no TensorDict in the loop.

A TensorDictModule call costs 60 microseconds of bookkeeping before any arithmetic; a rollout makes thousands.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from tensordict import NestedKey, TensorDict
from tensordict.nn import ProbabilisticTensorDictModule, TensorDictModule, TensorDictModuleBase, TensorDictSequential
from torch import Tensor
from torch.distributions import Distribution

from suite.specs import GROUP, OBSERVATION

Tensors = dict[NestedKey, Tensor]
Plan = tuple[Callable[..., Any], tuple[NestedKey, ...], tuple[NestedKey, ...]]


class Lowered:
    """Runs ``policy`` on a dict {key: tensor}, which it extends in place and returns.

    Plain TensorDictModules and probabilistic ones are called directly; any other TensorDict module (exploration
    noise, a foreign wrapper) still runs, on a TensorDict made for the occasion.
    """

    def __init__(self, policy: TensorDictModuleBase):
        self.policy = policy
        self.steps = [(module, _plan(module)) for module in _flatten(policy)]
        self.samples = any(isinstance(module, ProbabilisticTensorDictModule) for module, _ in self.steps)

    def __call__(self, tensors: Tensors, *, deterministic: bool = False) -> Tensors:
        """Run all modules; a probabilistic one samples, or takes its deterministic value, and writes its log-prob."""
        for module, plan in self.steps:
            if plan is not None:
                _run(plan, tensors)
            elif isinstance(module, ProbabilisticTensorDictModule):
                dist = _distribution(module, tensors)
                value = dist.deterministic_sample if deterministic else dist.sample()
                tensors[module.out_keys[0]] = value
                if module.return_log_prob:
                    tensors[module.log_prob_key] = dist.log_prob(value)
            else:
                _call_wrapped(module, tensors)
        return tensors

    def distribution(self, tensors: Tensors) -> Distribution:
        """The action distribution given the inputs; gradients flow to everything before it."""
        tensors = dict(tensors)
        for module, plan in self.steps:
            if isinstance(module, ProbabilisticTensorDictModule):
                return _distribution(module, tensors)
            if plan is None:
                _call_wrapped(module, tensors)
            else:
                _run(plan, tensors)
        raise ValueError("this policy has no probabilistic module, so it has no action distribution")


def call(module: TensorDictModule, tensors: Tensors) -> Tensor:
    """First output of one plain TensorDictModule on a dict (or TensorDict) of its inputs."""
    out = module.module(*[tensors[key] for key in module.in_keys])
    return out[0] if isinstance(out, tuple) else out


def _flatten(module: TensorDictModuleBase) -> Iterator[TensorDictModuleBase]:
    if isinstance(module, TensorDictSequential):
        for part in module:
            yield from _flatten(part)
    else:
        yield module


def _distribution(module: ProbabilisticTensorDictModule, tensors: Tensors) -> Distribution:
    params = {name[-1] if isinstance(name, tuple) else name: tensors[key]
              for name, key in zip(module.dist_keys, module.in_keys, strict=True)}
    return module.distribution_class(**params, **module.distribution_kwargs)


def _plan(module: TensorDictModuleBase) -> Plan | None:
    """What a plain module calls, reads and writes, looked up once; None for any other module."""
    if type(module) is not TensorDictModule:
        return None
    return module.module, tuple(module.in_keys), tuple(module.out_keys)


def _run(plan: Plan, tensors: Tensors) -> None:
    network, in_keys, out_keys = plan
    out = network(*[tensors[key] for key in in_keys])
    tensors.update(zip(out_keys, out if isinstance(out, tuple) else (out,), strict=True))


def _call_wrapped(module: TensorDictModuleBase, tensors: Tensors) -> None:
    wanted = [key for key in module.in_keys if key in tensors] if module.in_keys else list(tensors)
    first = tensors[wanted[0]]
    td = TensorDict({}, batch_size=first.shape[:1], device=first.device)
    if OBSERVATION in tensors:  # [N, A]: exploration modules draw one number per element of the group's batch size
        rows = tensors[OBSERVATION].shape[:-1]
        td = TensorDict({GROUP: TensorDict({}, rows, device=first.device)}, rows[:-1], device=first.device)
    for key in wanted:
        td[key] = tensors[key]
    td = module(td)
    for key in td.keys(True, True):
        tensors[key] = td[key]


