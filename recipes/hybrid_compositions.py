"""What an algorithm for hybrid actions is: networks, updates, exploration. One function per composition."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from tensordict import TensorDictBase
from tensordict.nn import TensorDictModule, TensorDictSequential

from recipes.hybrid_config import Config
from recipes.hybrid_presets import kind
from recipes.running import Parts
from suite.data import Changed, Minibatches, Replay
from suite.distributed import total
from suite.losses import Loss, PolicyLoss, Returns, ValueLoss
from suite.losses.deterministic import DeterministicPolicyLoss, QValueLoss, SoftTargets
from suite.losses.hybrid_ppo import HybridPolicyLoss
from suite.losses.pdqn import PDQNParamsLoss, PDQNValueLoss
from suite.modules import make_critic
from suite.modules.exploration import EpsilonGreedy, Exploration, GaussianNoise, RandomHybrid
from suite.modules.hybrid_networks import (
    PASS_THROUGHS,
    make_hybrid_q,
    make_param_network,
    make_pdqn_policy,
)
from suite.modules.hybrid_policy import make_hybrid_actor
from suite.modules.latent_control import make_box_actor, make_critics, make_hierarchical_actor
from suite.specs import CHOICE, LATENT_ACTION, OBSERVATION, PARAMS, Specs
from suite.update import Update


def deterministic(cfg: Config, specs: Specs, codec: Loss) -> Parts:
    """DDPG, TD3 and the two-level HHQN: an actor in the codec's box, slow copies, replay with relabelled actions."""
    width, two_level = codec.codec.latent_width, cfg.algorithm.startswith("hhqn")
    sizes = _sizes(cfg)
    actor = (make_hierarchical_actor if two_level else make_box_actor)(specs, width, cells=cfg.actor_cells,
                                                                       inverting=cfg.inverting, **sizes)
    critic = make_critics(specs, width, heads=2 if "td3" in cfg.algorithm else 1, centralized=cfg.centralized,
                          cells=cfg.critic_cells, **sizes)
    value = QValueLoss(actor, critic, gamma=cfg.gamma, smoothing=cfg.smoothing)
    levels = {"upper": actor.upper, "lower": actor.lower} if two_level else None
    policy = DeterministicPolicyLoss(actor, critic, levels)
    slow = SoftTargets((actor, value.slow_actor, cfg.tau), (critic, value.slow_critic, cfg.critic_tau))
    replay = _replay(cfg, [*value.in_keys, *codec.in_keys], codec)
    updates = _updates(cfg, {"critic": value.to(cfg.device), "actor": policy},
                       Changed(replay, codec.relabel, _episodes if cfg.update_at_reset else None), {"actor": [slow]},
                       codec)
    explore = GaussianNoise(torch.tensor(-1.0), torch.tensor(1.0), **_exploration(cfg)).to(cfg.device)
    act = TensorDictModule(actor, in_keys=[OBSERVATION], out_keys=[LATENT_ACTION])
    noise = TensorDictModule(explore, in_keys=[LATENT_ACTION], out_keys=[LATENT_ACTION])
    steps = [act, noise, codec.decoder()]
    if codec.warming is not None:
        warm = RandomHybrid(specs.param_mask, codec.warming)
        steps.append(TensorDictModule(warm, in_keys=[CHOICE, PARAMS], out_keys=[CHOICE, PARAMS]))
    return Parts(TensorDictSequential(*steps), TensorDictSequential(act, codec.decoder()), updates,
                 refresh=[_anneal(explore, codec)])


def pdqn(cfg: Config, specs: Specs, codec: Loss) -> Parts:
    """P-DQN, also with two heads: a network for the parameters of all choices, and one for their values."""
    if cfg.pass_through and kind(cfg.task) not in PASS_THROUGHS:
        raise ValueError(f"pass_through is for {sorted(PASS_THROUGHS)}, not for {cfg.task!r}")
    fixed, sizes = PASS_THROUGHS[kind(cfg.task)] if cfg.pass_through else None, _sizes(cfg)
    params = make_param_network(specs, {}, cells=cfg.actor_cells, pass_through=fixed, **sizes)
    q = make_hybrid_q(specs, {}, cells=cfg.critic_cells, heads=2 if "td3" in cfg.algorithm else 1,
                      multipass=cfg.multipass, **sizes)
    value = PDQNValueLoss(params, q, gamma=cfg.gamma, has_mask=specs.has_mask).to(cfg.device)
    policy = PDQNParamsLoss(params, q, inverting=cfg.inverting)
    updates = _updates(cfg, {"critic": value, "actor": policy}, _replay(cfg, [*value.in_keys, *policy.in_keys], codec),
                       value.targets(tau_q=cfg.critic_tau, tau_params=cfg.tau), codec)
    explore = EpsilonGreedy(len(specs.param_mask), **_exploration(cfg)).to(cfg.device)
    return Parts(make_pdqn_policy(specs, params, q, explore, device=cfg.device),
                 make_pdqn_policy(specs, params, q, device=cfg.device), updates,
                 refresh=[_anneal(explore, codec)])


def on_policy(cfg: Config, specs: Specs, codec: Loss) -> Parts:
    """PPO with a hybrid head: one ratio for the whole action, or (hppo) one for the choice and one for parameters."""
    sizes, factorised = _sizes(cfg), cfg.algorithm == "hppo"
    actor = make_hybrid_actor(specs, {}, cells=cfg.actor_cells, log_std_copies=10 if factorised else 1,
                              clamp=cfg.clamp_samples, **sizes)
    critic = make_critic(specs, {}, centralized=cfg.centralized, cells=cfg.critic_cells, recurrent_dim=0, **sizes)
    returns = Returns(critic, kind="gae", gamma=cfg.gamma, lmbda=cfg.gae_lambda, n=1, target_tau=None,
                      target_lmbda=cfg.critic_lambda,
                      standardize_reward=0, mask=None, mask_rewards=False, value_norm=False,
                      normalize="population" if factorised else "batch", encoders=()).to(cfg.device)
    trust = dict(clip=cfg.clip, entropy_coef=cfg.entropy_coef)
    policy = HybridPolicyLoss(actor, **trust) if factorised else PolicyLoss(actor, **trust)
    losses = {"actor": policy, "critic": ValueLoss(critic, clip=None, kind="l2")}
    passes = {"actor": cfg.actor_epochs or cfg.epochs, "critic": cfg.epochs}
    updates = [Update(f"{cfg.algorithm}_{part}", {part: losses[part]}, Minibatches(count, cfg.minibatch_size),
                      **_optimisation(cfg)) for part, count in passes.items()]
    return Parts(actor, actor, updates, estimators=[returns])


def _sizes(cfg: Config) -> dict[str, Any]:
    return dict(share=cfg.share, agent_id=cfg.agent_id, activation=cfg.activation, init=cfg.init, device=cfg.device)


def _optimisation(cfg: Config) -> dict[str, Any]:
    adam, actors = partial(torch.optim.Adam, fused=True), ("actor", "actor_upper", "actor_lower")
    return dict(optimizer={"critic": partial(adam, lr=cfg.critic_lr)} | dict.fromkeys(actors, partial(adam, lr=cfg.lr)),
                max_grad_norm={"critic": cfg.critic_max_grad_norm} | dict.fromkeys(actors, cfg.max_grad_norm),
                compile={} if cfg.compile else None)


def _replay(cfg: Config, keys: list, codec: Loss) -> Replay:
    steps = max(1, round(cfg.num_envs * cfg.steps * cfg.updates_per_frame))
    return Replay(capacity=cfg.buffer_size, steps=steps, size=cfg.minibatch_size, warmup=cfg.first_update,
                  keys=list(dict.fromkeys(keys)), device=cfg.device, skip=codec.warmup)


def _updates(cfg: Config, losses: dict[str, Loss], data: Any, targets: dict[str, list], codec: Loss) -> list[Update]:
    own = Update(cfg.algorithm, losses, data, delay={"actor": cfg.policy_delay}, targets=targets, **_optimisation(cfg))
    return [own, *codec.updates(cfg.codec, data, **_optimisation(cfg))]


def _exploration(cfg: Config) -> dict[str, Any]:
    return dict(start=cfg.exploration_start, end=cfg.exploration_end, frames=cfg.exploration_episodes)


def _episodes(batch: TensorDictBase) -> int:
    return int(total(batch["next", "done"].sum()))


def _anneal(explore: Exploration, codec: Loss) -> Callable:
    def anneal(batch):
        if not codec.random_batch:
            explore.anneal(total(batch["next", "done"].sum()))

    return anneal


COMPOSITIONS = {"deterministic": deterministic, "pdqn": pdqn, "on_policy": on_policy}
