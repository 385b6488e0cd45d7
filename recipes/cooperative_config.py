"""Every number of the cooperative recipe, its default, and its meaning."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from recipes.run_flags import RunFlags
from suite.config import Options


@dataclass(frozen=True)
class Training:
    """Environment, networks and learning."""

    task: str = "vmas/navigation"
    """Environment as family/name; families: vmas, particle, foraging, warehouse, pettingzoo, gymnasium."""
    algorithm: str = "mappo"
    """mappo, ippo, maa2c, ia2c (on-policy); qmix, vdn (discrete actions); maddpg (continuous actions)."""
    loss: str = "none"
    """State-modelling loss that trains beside the algorithm: none, next_observation, moa, smpe."""
    preset: str = "default"
    """Settings of a benchmark (epymarl, benchmarl); of loss smpe as published, printed, repaired (official, paper,
    fixed); the reference of loss moa (moa) and its controls (same_inputs, matched, gru, shuffled, oracle)."""
    seed: int = 1
    """Seed of networks, sampling and environments."""
    frames: int = 800_000
    """Environment frames in all (one step of one environment is one frame)."""
    device: str = "cpu"
    """cpu, cuda or cuda:<n>."""
    task_options: Options = field(default_factory=dict)
    """Options of the scenario by name, e.g. n_agents=3 shared_rew=False."""
    loss_options: Options = field(default_factory=dict)
    """Options of the loss by name, e.g. curiosity=0.01 latent_dim=32."""
    reward_weights: Options = field(default_factory=dict)
    """Weights of reward terms, e.g. task=1 curiosity=0.01; terms not named keep their default."""

    # environment
    num_envs: int = 96
    """Parallel copies of the task."""
    steps: int | None = 100
    """Steps per batch and copy; None takes max_steps. A batch has num_envs * steps frames."""
    max_steps: int | None = None
    """Horizon of an episode; None takes the task's own."""
    truncate: bool = True
    """Time limits are truncations, which bootstrap; False treats them as terminations (some published numbers do)."""
    whole_episodes: bool = False
    """One episode per batch row, padded behind its end (EPyMARL's regime), instead of starting the next one at once."""
    mask_padding: bool = True
    """Leave padded steps out of running statistics and hash counts; False counts them, as published programs do."""
    team_reward: bool = False
    """Train every agent on the sum of all agents' rewards; returns are then reported for the team."""

    # networks
    share: Literal["all", "roles", "none"] = "all"
    """One network for all agents, one per role, or one per agent."""
    agent_id: bool = False
    """Append a one-hot agent number to the networks' inputs."""
    actor_cells: tuple[int, ...] = (64, 64)
    """Widths of the actor's hidden layers (also of Q networks)."""
    critic_cells: tuple[int, ...] = (64, 64)
    """Widths of the critic's hidden layers."""
    actor_recurrent_dim: int = 0
    """Size of the actor's GRU, 0 for none."""
    critic_recurrent_dim: int = 0
    """Size of the critic's GRU, 0 for none."""
    activation: Literal["tanh", "relu", "elu"] = "tanh"
    """Activation of the hidden layers."""
    init: Literal["default", "orthogonal"] = "default"
    """Initial weights: torch's default, or orthogonal with a small actor head."""
    centralized: bool = True
    """The critic sees the state or all observations (mappo, maa2c) or its own (ippo, ia2c); set by the algorithm."""
    head: Literal["tanh_normal", "normal"] = "tanh_normal"
    """Continuous actions: squashed into their bounds, or plain Gaussian and clamped by the environment."""
    state_dependent_scale: bool = True
    """The network predicts the standard deviation; False learns one number per action."""

    # returns
    gamma: float = 0.99
    """Discount per step."""
    returns: Literal["gae", "nstep", "padded_nstep"] = "gae"
    """Advantages by GAE, by n-step returns, or by those of the EPyMARL program (which needs whole_episodes)."""
    gae_lambda: float = 0.95
    """Lambda of GAE."""
    n_step: int = 5
    """Steps of n-step returns."""
    normalize_advantage: Literal["none", "batch", "agent"] = "batch"
    """Standardise advantages over the batch, per agent, or not."""
    standardize_reward: bool = False
    """Standardise rewards by each agent's running mean and deviation."""
    value_norm: bool = False
    """Let the critic predict returns in units of their running mean and deviation; value_clip is then in these."""
    target_tau: float | None = None
    """Bootstrap from a target critic that moves by this fraction per iteration; None uses the critic itself."""
    recompute_advantage: bool = False
    """Take the advantage from the present critic in every epoch instead of once per batch."""

    # optimisation
    lr: float = 1e-3
    """Learning rate of Adam, for every network of the algorithm."""
    critic_lr: float | None = None
    """Learning rate of the critic; None takes lr."""
    lr_decay: Literal["none", "linear"] = "none"
    """Constant, or linearly to zero at the last frame."""
    adam_eps: float = 1e-5
    """Epsilon of Adam."""
    max_grad_norm: float | None = 1.0
    """Gradient clipping per network; None for none."""
    epochs: int = 10
    """Passes over each batch."""
    minibatch_size: int | None = 2400
    """Frames per minibatch; None takes the whole batch at once."""
    clip: float | None = 0.2
    """PPO's clipping; None is the A2C objective."""
    value_clip: float | None = None
    """Clip value updates to this distance from the old value."""
    value_loss: Literal["l2", "smooth_l1"] = "l2"
    """Squared or Huber value error."""
    entropy_coef: float = 0.01
    """Weight of the entropy bonus."""

    # off-policy algorithms only
    buffer_size: int = 200_000
    """Frames in the replay buffer."""
    warmup: int = 5_000
    """Frames collected before the first update."""
    gradient_steps: int = 10
    """Optimiser steps per batch."""
    tau: float = 0.005
    """Target networks move by this fraction per optimiser step."""
    mixer_dim: int = 32
    """Width of QMIX's mixing network."""
    exploration_start: float = 1.0
    """Random actions (qmix, vdn: probability; maddpg: noise scale) at the first frame."""
    exploration_end: float = 0.05
    """... and after exploration_frames."""
    exploration_frames: int = 100_000
    """Frames over which exploration falls linearly."""


@dataclass(frozen=True)
class Config(RunFlags, Training):
    """Cooperative multi-agent learning: one algorithm, one optional state-modelling loss, one task."""

    cuda_graphs: bool = False
    """With compile on a GPU: capture the compiled losses in CUDA graphs."""
    autocast: bool = False
    """Losses in bfloat16 autocast."""
