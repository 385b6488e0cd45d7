"""What an algorithm is: networks, updates, returns or replay. One function per composition, in plain sight."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from tensordict.nn import TensorDictModule, TensorDictSequential
from torchrl.objectives import SoftUpdate

from recipes.cooperative_config import Config
from recipes.running import Parts
from suite.data import Minibatches, Replay, Sequences
from suite.distributed import world_size
from suite.losses import Learner, Loss, MADDPGLoss, MixedQLoss, PolicyLoss, Returns, ValueLoss
from suite.losses.encoded import ENCODERS
from suite.losses.off_policy import OffPolicyLoss
from suite.modules import make_actor, make_critic
from suite.modules.exploration import EpsilonGreedy, Exploration, GaussianNoise
from suite.modules.normalizer import update_scalers
from suite.modules.policies import make_scalers
from suite.modules.q_networks import make_deterministic_actor, make_joint_q, make_mixer, make_q_policy
from suite.modules.taken_action import taken_action
from suite.specs import ACTION, ACTION_MASK, Specs
from suite.update import Update


def _optimisation(cfg: Config) -> dict[str, Any]:
    adam = partial(torch.optim.Adam, lr=cfg.lr, eps=cfg.adam_eps, fused=True)
    compiled = {"mode": "reduce-overhead"} if cfg.cuda_graphs else {}
    return dict(optimizer=adam, max_grad_norm=cfg.max_grad_norm, compile=compiled if cfg.compile else None,
                autocast=torch.bfloat16 if cfg.autocast else None)


def on_policy(cfg: Config, specs: Specs, aux: Loss) -> Parts:
    """MAPPO, IPPO, MAA2C, IA2C: actor and critic on the batch, advantages from the critic or its target."""
    sizes = dict(share=cfg.share, agent_id=cfg.agent_id, activation=cfg.activation, init=cfg.init, device=cfg.device)
    scalers = make_scalers(specs, centralized=cfg.centralized) if cfg.normalize_observation else {}
    actor = make_actor(specs, aux.features, cells=cfg.actor_cells, recurrent_dim=cfg.actor_recurrent_dim, head=cfg.head,
                       state_dependent_scale=cfg.state_dependent_scale, scalers=scalers, past=aux.past, **sizes)
    seen = aux.features if aux.critic_features is None else aux.critic_features
    new_critic = partial(make_critic, cells=cfg.critic_cells, recurrent_dim=cfg.critic_recurrent_dim, **sizes)
    critic = new_critic(specs, seen, centralized=cfg.centralized, scalers=scalers, past=aux.past,
                        own_features=aux.own_features)
    returns = partial(Returns, kind=cfg.returns, gamma=cfg.gamma, lmbda=cfg.gae_lambda, n=cfg.n_step,
                      target_tau=cfg.target_tau, standardize_reward=specs.n_agents * cfg.standardize_reward,
                      mask=specs.alive, mask_rewards=cfg.mask_padding, value_norm=cfg.value_norm)
    late = cfg.normalize_advantage == "minibatch"  # by the loss
    encoders = aux.encoders if aux.critic_encoders is None else aux.critic_encoders
    own = returns(critic, normalize="none" if late else cfg.normalize_advantage, encoders=encoders if seen else ())
    recurrent = cfg.actor_recurrent_dim or cfg.critic_recurrent_dim
    data = (Sequences if recurrent else Minibatches)(cfg.epochs, cfg.minibatch_size)
    losses = {"actor": PolicyLoss(actor, clip=cfg.clip, entropy_coef=cfg.entropy_coef, mask=specs.alive,
                                  controlled=specs.controlled, normalize=late,
                                  critic=critic if cfg.recompute_advantage else None),
              "critic": ValueLoss(critic, clip=cfg.value_clip, kind=cfg.value_loss, mask=specs.alive)}
    losses = {part: aux.encoded(loss) for part, loss in losses.items()}
    learner = Learner(actor, critic, losses, own, returns, new_critic, team_reward=cfg.team_reward,
                      reward_weights={"task": 1.0} | aux.reward_weights | cfg.reward_weights)
    estimators = [estimator.to(cfg.device) for estimator in (own, *aux.estimators(learner))]
    companions = aux.companions(learner)
    trained = {part: [loss] for part, loss in losses.items()}
    for part, more in companions.items():
        trained.setdefault(part, []).extend(more)
    optimisation = _optimisation(cfg)
    adam = optimisation["optimizer"]
    rates = {"actor": adam, "critic": adam if cfg.critic_lr is None else partial(adam, lr=cfg.critic_lr),
             ENCODERS: adam}
    limits = dict.fromkeys(rates, cfg.max_grad_norm)
    for part, (make, limit) in aux.companion_optimisation.items():
        rates[part], limits[part] = make, limit
    updates = [Update(cfg.algorithm, trained, data, shared={ENCODERS},
                      **optimisation | {"optimizer": rates, "max_grad_norm": limits}),
               *aux.updates(cfg.loss, data, **optimisation)]
    policy = TensorDictSequential(*aux.encoders, actor, *taken_action(specs), *aux.recorders)
    scale = partial(update_scalers, scalers, mask=specs.alive if cfg.mask_padding else None)
    # targets last: they copy the statistics
    refresh = [scale, *(estimator.step_target for estimator in estimators if estimator.target is not None)]
    return Parts(policy, policy, updates, estimators=estimators, refresh=refresh)


def mixed_q(cfg: Config, specs: Specs, aux: Loss) -> Parts:
    """QMIX and VDN: per-agent action values, a mixer, epsilon-greedy exploration, replay, soft targets."""
    greedy = make_q_policy(specs, aux.features, share=cfg.share, agent_id=cfg.agent_id, cells=cfg.actor_cells,
                           activation=cfg.activation, init=cfg.init, device=cfg.device)
    mixer = make_mixer(cfg.algorithm, specs, embed_dim=cfg.mixer_dim, device=cfg.device)
    explore = EpsilonGreedy(specs.action_dim, **_exploration(cfg))
    loss = MixedQLoss(greedy, mixer, gamma=cfg.gamma, encoders=aux.encoders)
    return _replayed(cfg, TensorDictSequential(*aux.encoders, *greedy), explore, loss, aux, specs)


def maddpg(cfg: Config, specs: Specs, aux: Loss) -> Parts:
    """MADDPG: deterministic actors, joint critics, Gaussian noise, replay, soft targets.

    ``agent_id`` concerns the actor; the critic knows whose value it gives in any case.
    """
    common = dict(share=cfg.share, activation=cfg.activation, init=cfg.init, device=cfg.device)
    actor = make_deterministic_actor(specs, aux.features, agent_id=cfg.agent_id, cells=cfg.actor_cells, **common)
    critic = make_joint_q(specs, cells=cfg.critic_cells, **common)
    explore = GaussianNoise(specs.low, specs.high, **_exploration(cfg))
    loss = MADDPGLoss(actor, critic, gamma=cfg.gamma, encoders=aux.encoders)
    return _replayed(cfg, TensorDictSequential(*aux.encoders, actor), explore, loss, aux, specs)


def _exploration(cfg: Config) -> dict[str, Any]:
    return dict(start=cfg.exploration_start, end=cfg.exploration_end, frames=cfg.exploration_frames)


def _replayed(cfg: Config, acting: TensorDictSequential, explore: Exploration, loss: OffPolicyLoss, aux: Loss,
              specs: Specs) -> Parts:
    keys = list(dict.fromkeys([*loss.in_keys, *aux.in_keys]))
    replay = Replay(capacity=cfg.buffer_size, steps=cfg.gradient_steps, size=cfg.minibatch_size, warmup=cfg.warmup,
                    keys=keys, device=cfg.device)
    optimisation = _optimisation(cfg)
    updates = [
        Update(
            cfg.algorithm, {cfg.algorithm: loss}, replay, targets=[SoftUpdate(loss.td, tau=cfg.tau)], **optimisation
        ),
        *aux.updates(cfg.loss, replay, **optimisation),
    ]
    mask = [ACTION_MASK] if specs.has_mask else []
    explored = TensorDictModule(explore.to(cfg.device), in_keys=[ACTION, *mask], out_keys=[ACTION])
    taken = taken_action(specs)
    policy = TensorDictSequential(*acting, explored, *taken, *aux.recorders)
    acting = TensorDictSequential(*acting, *taken, *aux.recorders)
    return Parts(policy, acting, updates, refresh=[lambda batch: explore.anneal(batch.numel() * world_size())])


COMPOSITIONS = {"on_policy": on_policy, "mixed_q": mixed_q, "maddpg": maddpg}
