"""The TensorDict keys that environments, losses and networks meet in, and the few sizes that networks need.

Shapes: N environments, T steps, A agents of the one group ``agents``; time is dimension 1.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product

import torch
from torch import Tensor
from torchrl.data import Bounded, Categorical, MultiCategorical, TensorSpec
from torchrl.envs import EnvBase

GROUP = "agents"
OBSERVATION = (GROUP, "observation")  # [N, T, A, obs]
ACTION = (GROUP, "action")  # [N, T, A, act], or int64 [N, T, A]
CHOICE = (GROUP, "action", "discrete")  # int64 [N, T, A] of a hybrid action
PARAMS = (GROUP, "action", "params")  # [N, T, A, P] in [-1, 1] of a hybrid action
LATENT_ACTION = (GROUP, "latent_action")  # [N, T, A, L] in [-1, 1], what an actor outputs before a codec decodes it
ACTION_MASK = (GROUP, "action_mask")  # bool [N, T, A, n], optional
ALIVE = (GROUP, "mask")  # bool [N, T, A], optional, False for agents that have left the episode
LOGITS = (GROUP, "logits")  # [N, T, A, n], of a discrete policy, stored if a loss reads them
LOG_PROB = (GROUP, "action_log_prob")  # [N, T, A]
REWARD = (GROUP, "reward")  # [N, T, A, 1], under "next"
DONE = (GROUP, "done")  # bool [N, T, A, 1], under "next", written by prepare
TERMINATED = (GROUP, "terminated")
VALUE = (GROUP, "state_value")  # [N, T, A, 1]
ADVANTAGE = (GROUP, "advantage")
VALUE_TARGET = (GROUP, "value_target")
RECURRENT = (GROUP, "memory")  # [N, T, A, H], recurrent state before the step
PRIVILEGED = (GROUP, "hidden")  # [N, T, A, d], optional, hidden variables of the task: teachers and probes only
INFORMED = (GROUP, "informed")  # bool [N, T, A], optional, True for agents whose observation holds those anyway
VISIBLE = (GROUP, "visible")  # [N, T, A, A - 1] 0 or 1, optional, which others (ascending index) an agent sees now
CONTROLLED = (GROUP, "controlled")  # bool [N, T, A], optional, False where the environment overrides the action
SCRIPTED_ACTION = (GROUP, "scripted_action")  # like ACTION, optional, what the environment does instead there
SUCCESS = "success"  # bool [N, T, 1], optional, under "next": this step reached the task's goal
STATE = "state"  # [N, T, S], optional, critics and teachers only
IS_INIT = "is_init"  # bool [N, T, 1], first step of an episode
OPTIONAL = {"alive": ALIVE, "informed": INFORMED, "visible": VISIBLE, "controlled": CONTROLLED,
            "scripted_action": SCRIPTED_ACTION}


@dataclass(frozen=True)
class Specs:
    """What networks must know about an environment.

    ``action_dim`` is the number of choices of a discrete action, else the length of a continuous one; ``low`` and
    ``high`` are the bounds [A, act] of a continuous action; ``agent_types`` holds one role number per agent; ``alive``
    is the key of a bool [..., A] where agents can die early; ``horizon`` is the time limit of an episode in steps;
    ``hidden_dim`` the length of the hidden variables that the environment exports for teachers and probes, and
    ``hidden_parts`` their (name, width, is one-hot). ``informed``, ``visible``, ``controlled`` and ``scripted_action``
    are the keys of what their constants say, None where nobody is informed, everybody is seen, everybody acts.
    ``action_mask`` bool [A, action_dim] and ``obs_mask`` bool [A, obs_dim] are False in the padding of agents that have
    fewer choices, action dimensions or observations than the largest one, None without padding; unlike the mask under
    `ACTION_MASK` they never change.
    ``action_factors`` float [A, S, action_dim] belongs to discrete actions that combine several: 1 where a choice has
    the s-th of all the values of its factors, which stand one after the other; None for all other actions.
    ``param_mask`` bool [K, P] belongs to hybrid actions, a choice among K and P parameters (``action_dim``), and is
    False for parameters that a choice does not have; None for all other actions.
    """

    n_agents: int
    obs_dim: int
    action_dim: int
    discrete: bool
    agent_types: tuple[int, ...]
    has_mask: bool = False
    alive: tuple[str, str] | None = None
    informed: tuple[str, str] | None = None
    visible: tuple[str, str] | None = None
    controlled: tuple[str, str] | None = None
    scripted_action: tuple[str, str] | None = None
    state_dim: int | None = None
    horizon: int | None = None
    hidden_dim: int = 0
    hidden_parts: tuple[tuple[str, int, bool], ...] = ()
    low: Tensor | None = None
    high: Tensor | None = None
    action_mask: Tensor | None = None
    obs_mask: Tensor | None = None
    param_mask: Tensor | None = None
    action_factors: Tensor | None = None

    @classmethod
    def from_env(cls, env: EnvBase) -> Specs:
        """Read the sizes from an environment's specs; ValueError if its actions are of no supported kind."""
        observations, batch = env.observation_spec, env.batch_size
        keys = set(observations.keys(True, True))
        if OBSERVATION not in keys:
            raise ValueError(
                f"the environment writes {sorted(map(str, keys))}; a group {GROUP!r} with 'observation' is needed"
            )
        action = env.full_action_spec[ACTION]
        params = getattr(env, "param_mask", None)
        action = action if params is None else _scaled(env.full_action_spec[PARAMS])
        n_agents, obs_dim = observations[OBSERVATION].shape[-2:]
        common = dict(n_agents=n_agents, obs_dim=obs_dim, has_mask=ACTION_MASK in keys, param_mask=params,
                      agent_types=tuple(getattr(env, "agent_types", (0,) * n_agents)),
                      **{name: key if key in keys else None for name, key in OPTIONAL.items()},
                      obs_mask=_unpadded(getattr(env, "obs_dims", None), obs_dim, observations.device),
                      state_dim=observations[STATE].shape[-1] if STATE in keys else None,
                      horizon=getattr(env, "max_steps", None),
                      hidden_dim=observations[PRIVILEGED].shape[-1] if PRIVILEGED in keys else 0,
                      hidden_parts=tuple(getattr(env, "hidden_parts", ())) if PRIVILEGED in keys else ())
        sizes = getattr(env, "action_dims", None)
        if isinstance(action, Categorical) and not isinstance(action, MultiCategorical):
            n = action.space.n
            factors = _factors(getattr(env, "action_factors", None), n, action.device)
            return cls(action_dim=n, discrete=True, action_mask=_unpadded(sizes, n, action.device),
                       action_factors=factors if params is None else None, **common)
        if isinstance(action, Bounded):
            low, high = (
                bound.reshape(*batch, n_agents, -1)[(0,) * len(batch)]
                for bound in (action.space.low, action.space.high)
            )
            width = action.shape[-1]
            return cls(action_dim=width, discrete=False, low=low, high=high,
                       action_mask=_unpadded(sizes, width, action.device), **common)
        raise ValueError(f"unsupported action spec {type(action).__name__}; Categorical and Bounded are supported")


def _scaled(params: TensorSpec) -> TensorSpec:
    """The spec of a hybrid action's parameters; ValueError unless they are bounded by -1 and 1."""
    low, high = (getattr(params.space, name, None) for name in ("low", "high"))
    if low is None or (low != -1).any() or (high != 1).any():
        found = "none" if low is None else f"{low.unique().tolist()} and {high.unique().tolist()}"
        raise ValueError("the parameters of hybrid actions must be scaled to [-1, 1] by the environment, with -1 as "
                         f"the lower bound and 1 as the upper one; the bounds of this task are {found}"
                         + ("" if low is None or (low < high).all() else ", which are inverted"))
    return params


def _factors(sizes: Sequence[Sequence[int]] | None, choices: int, device: torch.device | None) -> Tensor | None:
    """What ``action_factors`` says from the sizes of each agent's factors; None if no choice has more than one."""
    if sizes is None or max(map(len, sizes)) < 2:
        return None
    out = torch.zeros(len(sizes), max(map(sum, sizes)), choices, device=device)
    for agent, factors in enumerate(sizes):
        for choice, values in enumerate(product(*map(range, factors))):
            for k, value in enumerate(values):
                out[agent, sum(factors[:k]) + value, choice] = 1
    return out


def _unpadded(sizes: Sequence[int] | None, width: int, device: torch.device | None) -> Tensor | None:
    """bool [A, width], False behind each agent's own size; None if all fill the width."""
    if sizes is None or min(sizes) == width:
        return None
    return torch.arange(width, device=device) < torch.tensor(sizes, device=device)[:, None]
