"""Every number of the cooperative recipe, its default, and its meaning; those of learning have a file of their own."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from recipes.cooperative_learning import Learning
from recipes.run_flags import RunFlags
from suite.config import Options


@dataclass(frozen=True)
class Training:
    """Algorithm, environment and networks."""

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
    """Append a one-hot agent number to the networks' inputs (maddpg: the actor's; its critic knows it anyway)."""
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
    normalize_observation: bool = False
    """Actor and critic read observations (the critic the state) standardised by running statistics, clipped at 10; also
    those of the step before that a loss hands on."""
    centralized: bool = True
    """The critic sees the state or all observations (mappo, maa2c) or its own (ippo, ia2c); set by the algorithm."""
    head: Literal["tanh_normal", "normal"] = "tanh_normal"
    """Continuous actions: squashed into their bounds, or plain Gaussian and clamped by the environment."""
    state_dependent_scale: bool = True
    """The network predicts the standard deviation; False learns one number per action."""


@dataclass(frozen=True)
class Config(RunFlags, Learning, Training):
    """Cooperative multi-agent learning: one algorithm, one optional state-modelling loss, one task."""

    cuda_graphs: bool = False
    """With compile on a GPU: capture the compiled losses in CUDA graphs."""
    autocast: bool = False
    """Losses in bfloat16 autocast."""
