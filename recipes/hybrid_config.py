"""Every number of the hybrid-action recipe, its default, and its meaning."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from recipes.run_flags import RunFlags
from suite.config import Options


@dataclass(frozen=True)
class Training:
    """Environment, networks and learning."""

    task: str = "hybrid/platform"
    """Environment as family/name: hybrid/platform, goal, hard_goal, catch_point, hard_move-4, vmas.navigation, ..."""
    codec: str = "hyar"
    """Which action vector the actor learns in: hyar (learned latent), embedding (its table alone), none (one value per
    choice and all parameters, side by side)."""
    algorithm: str = "td3"
    """td3, ddpg (any codec); hhqn, hhqn_td3, pdqn, pdqn_td3, ppo, hppo (codec none)."""
    tuning: Literal["paper", "equal"] = "paper"
    """paper: rates, discount, clipping, exploration and buffer as the paper's programs have them for each algorithm;
    equal: as HyAR-TD3's on this task, but for P-DQN's last probability (algorithms that replay)."""
    seed: int = 1
    """Seed of networks, sampling and environments."""
    frames: int = 200_000
    """Environment frames in all (one step of one environment is one frame), a codec's warm-up included; by default the
    published steps, with codec hyar behind its warm-up, also behind one that codec_options name."""
    device: str = "cpu"
    """cpu, cuda or cuda:<n>."""
    task_options: Options = field(default_factory=dict)
    """Options of the task by name, e.g. fixed_kick_to=True."""
    codec_options: Options = field(default_factory=dict)
    """Options of the codec by name, e.g. latent_dim=3 relabel=none warmup=20000."""

    # environment
    num_envs: int = 32
    """Parallel copies of the task."""
    steps: int = 1
    """Steps per batch and copy. A batch has num_envs * steps frames."""
    max_steps: int | None = None
    """Horizon of an episode; None takes the task's own."""
    truncate: bool = True
    """Time limits are truncations, which bootstrap; False treats them as terminations."""
    team_reward: bool = False
    """Train every agent on the sum of all agents' rewards; returns are then reported for the team."""

    # networks
    share: Literal["all", "roles", "none"] = "all"
    """One network for all agents, one per role, or one per agent."""
    agent_id: bool = False
    """Append a one-hot agent number to the networks' inputs."""
    centralized: bool = False
    """The critics see all agents' observations and actions."""
    actor_cells: tuple[int, ...] = (256, 256)
    """Widths of the actor's hidden layers (of pdqn: of the parameter network)."""
    critic_cells: tuple[int, ...] = (256, 256)
    """Widths of the critics' hidden layers (of pdqn: of the Q network)."""
    activation: Literal["tanh", "relu", "elu"] = "relu"
    """Activation of the hidden layers."""
    init: Literal["default", "orthogonal"] = "default"
    """Initial weights: torch's default, or orthogonal."""
    inverting: bool = True
    """Scale down gradients that would push actions out of their bounds."""
    multipass: bool = False
    """pdqn: each choice's value sees its own parameters only."""
    pass_through: bool = False
    """pdqn on platform and goal: start the parameters from the fixed linear maps of the MP-DQN programs."""

    # learning
    gamma: float = 0.99
    """Discount per step."""
    lr: float = 3e-4
    """Adam's rate of the actor (of pdqn: of the parameter network)."""
    critic_lr: float = 3e-4
    """Adam's rate of the critics."""
    max_grad_norm: float | None = 10.0
    """Gradient clipping of the actor; None for none."""
    critic_max_grad_norm: float | None = None
    """Gradient clipping of the critics; None for none."""

    # off-policy algorithms
    tau: float = 0.005
    """The actor's slow copy moves by this fraction per update."""
    critic_tau: float = 0.005
    """The critics' slow copies move by this fraction per update."""
    smoothing: float = 0.1
    """td3: noise on the target's action, limited to 0.5."""
    policy_delay: int = 2
    """td3: updates of the critics for one of the actor and the slow copies."""
    minibatch_size: int = 128
    """Frames per update (of ppo: per minibatch)."""
    buffer_size: int = 100_000
    """Frames in the replay buffer; those of a codec's warm-up are not in it."""
    first_update: int = 128
    """Frames in the replay buffer before the first update."""
    updates_per_frame: float = 1.0
    """Updates per frame; a batch's number of updates is rounded, to at least one."""
    update_at_reset: bool = False
    """One more update for each episode that ends, as the published HyAR program makes."""
    exploration_start: float = 1.0
    """Standard deviation of the noise on actions (of pdqn: probability of a random choice) in the first episode."""
    exploration_end: float = 0.1
    """... and after exploration_episodes."""
    exploration_episodes: int = 1000
    """Finished episodes, of all copies, over which exploration falls linearly."""

    # on-policy algorithms: ppo, hppo
    epochs: int = 10
    """Passes over each batch."""
    actor_epochs: int | None = None
    """Passes of the actor; None: epochs."""
    clip: float = 0.2
    """PPO's clipping."""
    gae_lambda: float = 0.95
    """Lambda of GAE."""
    critic_lambda: float | None = None
    """Lambda of the critic's targets; None: gae_lambda. 1 (hppo): discounted sums of rewards."""
    entropy_coef: float = 0.01
    """Weight of the entropy bonus."""
    clamp_samples: bool = False
    """Clamp drawn parameters to [-1, 1] before their density is taken, as the published HPPO does; else the density is
    that of the draw, and the task clamps."""


@dataclass(frozen=True)
class Config(RunFlags, Training):
    """Hybrid discrete-continuous actions: one codec of actions, one algorithm, one task."""

    evaluations: int = 20
    eval_episodes: int = 100
    checkpoint_every: int = 1000
