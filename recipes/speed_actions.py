"""What drives environments when they are measured: random actions, or a policy."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torchrl.data import TensorSpec

from suite.modules import make_actor
from suite.modules.hybrid_policy import make_hybrid_actor
from suite.modules.lowered import Lowered
from suite.specs import Specs


def random_actions(env) -> Callable[[dict], dict]:
    """Uniform actions, drawn anew in every step."""
    specs = {key: env.full_action_spec[key] for key in env.action_keys}
    return lambda seen: {key: _uniform(spec, env.device) for key, spec in specs.items()}


def _uniform(spec: TensorSpec, device: torch.device) -> Tensor:
    if not spec.dtype.is_floating_point:
        return torch.randint(spec.space.n, spec.shape, device=device)
    return torch.rand(spec.shape, device=device) * (spec.space.high - spec.space.low) + spec.space.low


def policy_actions(env, compile: bool) -> Callable[[dict], dict]:
    """Actions sampled from the recipe's 2 x 64 actor, with their log-probabilities."""
    specs, sizes = Specs.from_env(env), dict(share="all", agent_id=False, cells=(64, 64), activation="tanh",
                                             init="default", device=env.device)
    act = Lowered(make_hybrid_actor(specs, {}, **sizes) if specs.param_mask is not None else make_actor(
        specs, {}, recurrent_dim=0, head="tanh_normal", state_dependent_scale=True, **sizes))
    return torch.compile(act) if compile else act
