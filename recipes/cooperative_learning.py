"""Returns and optimisation of the cooperative recipe: every number, its default, and its meaning."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from suite.losses.ppo import ValueKind


@dataclass(frozen=True)
class Learning:
    """Fields of the recipe's Config, which follow those of environment and networks."""

    # returns
    gamma: float = 0.99
    """Discount per step."""
    returns: Literal["gae", "nstep", "padded_nstep"] = "gae"
    """Advantages by GAE, by n-step returns, or by those of the EPyMARL program (which needs whole_episodes)."""
    gae_lambda: float = 0.95
    """Lambda of GAE."""
    n_step: int = 5
    """Steps of n-step returns."""
    normalize_advantage: Literal["none", "batch", "agent", "minibatch"] = "batch"
    """Standardise advantages over the batch, per agent, over what counts of each minibatch, or not."""
    standardize_reward: bool = False
    """Standardise rewards by each agent's running mean and deviation."""
    value_norm: bool = False
    """Let the critic predict returns in units of their running mean and deviation; value_clip is then in these."""
    target_tau: float | None = None
    """Bootstrap from a target critic that moves by this fraction per iteration; None uses the critic itself."""
    recompute_advantage: bool = False
    """Take the advantage from the present critic in every epoch instead of once per batch; it is standardised over
    minibatches (normalize_advantage) or not at all."""

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
    value_loss: ValueKind = "l2"
    """Squared value error, or Huber's with threshold 1 or (as MAPPO's program) 10."""
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
