"""The table of hybrid actions as data: its rows and tasks, and the numbers of the paper beside them."""

from __future__ import annotations

from typing import Any

ROWS = {name: ["--algorithm", algorithm, "--codec", codec] for name, algorithm, codec in (
    ("HPPO", "hppo", "none"), ("PADDPG", "ddpg", "none"), ("PDQN", "pdqn", "none"), ("HHQN", "hhqn", "none"),
    ("HyAR-DDPG", "ddpg", "hyar"), ("PATD3", "td3", "none"), ("PDQN-TD3", "pdqn_td3", "none"),
    ("HHQN-TD3", "hhqn_td3", "none"), ("HyAR-TD3", "td3", "hyar"), ("PPO", "ppo", "none"))}
TASKS = {f"hybrid/{name}": [] for name in ("goal", "hard_goal", "platform", "catch_point", "hard_move-4", "hard_move-6",
                                           "hard_move-8", "hard_move-10")}
FRAMES = {task: 200_000 if "platform" in task else 300_000 if "goal" in task else 1_000_000 for task in TASKS}
NOTES = ["Success is the share of 100 (Platform, Goal) or 50 fresh greedy episodes that reach the goal, of the final "
         "policy. Frames are those of learning; HyAR's warm-up with random actions comes before (Platform 10,900, Goal "
         "21,000, Catch Point 110,000, Hard Move 147,000 frames).",
         "Published numbers: Table 2 of Li et al. (ICLR 2022), five runs each; of Platform its mean return, which is "
         "below 1 for every episode that falls short of the end. Which evaluations it averages is not said."]
SOURCE = "HyAR, ICLR 2022, Table 2"

# Table 2 of the paper, in the order of ROWS; it has no PPO
PUBLISHED = {
    "hybrid/goal": (0.0, 0.05, 0.70, 0.0, 0.53, 0.0, 0.71, 0.0, 0.78),
    "hybrid/hard_goal": (0.0, 0.0, 0.0, 0.0, 0.30, 0.44, 0.06, 0.01, 0.60),
    "hybrid/platform": (0.80, 0.36, 0.93, 0.46, 0.87, 0.94, 0.93, 0.62, 0.98),
    "hybrid/catch_point": (0.69, 0.82, 0.77, 0.31, 0.89, 0.82, 0.89, 0.27, 0.90),
    "hybrid/hard_move-4": (0.09, 0.03, 0.69, 0.39, 0.91, 0.66, 0.85, 0.52, 0.93),
    "hybrid/hard_move-6": (0.05, 0.04, 0.41, 0.32, 0.91, 0.04, 0.74, 0.29, 0.92),
    "hybrid/hard_move-8": (0.04, 0.06, 0.04, 0.05, 0.85, 0.06, 0.05, 0.05, 0.89),
    "hybrid/hard_move-10": (0.05, 0.04, 0.06, 0.04, 0.82, 0.07, 0.05, 0.05, 0.75),
}


def reference() -> dict[str, dict[str, dict[str, Any]]]:
    """{task: {row: value and source}} of the published numbers."""
    return {task: {row: {"value": value, "source": SOURCE} for row, value in zip(ROWS, values, strict=False)}
            for task, values in PUBLISHED.items()}


# several agents: one codec for all, a hybrid head, and a choice among fixed actions, on a task that all three can play
_AGENTS = ["--max-steps", "50", "--eval-episodes", "32"]
AGENT_TASKS = {"hybrid/vmas.navigation": [*_AGENTS, "--task-options", "n_agents=3"],
               "hybrid/particle.spread-3": _AGENTS}
AGENT_ROWS = {"HyAR-TD3": ["--algorithm", "td3", "--codec", "hyar", "--centralized", "--agent-id"],
              "PATD3": ["--algorithm", "td3", "--codec", "none", "--centralized", "--agent-id"],
              "PPO-hybrid": ["--algorithm", "ppo", "--codec", "none", "--centralized", "--agent-id"],
              "PPO-discrete": ["--algorithm", "ppo", "--codec", "none", "--centralized", "--agent-id"]}
