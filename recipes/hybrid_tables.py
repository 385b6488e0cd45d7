"""The tables of hybrid actions as data: rows and tasks, and the numbers of the paper beside them."""

from __future__ import annotations

from typing import Any

from recipes.hybrid_presets import overrides
from recipes.table import Table

ROWS = {name: ["--algorithm", algorithm, "--codec", codec] for name, algorithm, codec in (
    ("HPPO", "hppo", "none"), ("PADDPG", "ddpg", "none"), ("PDQN", "pdqn", "none"), ("HHQN", "hhqn", "none"),
    ("HyAR-DDPG", "ddpg", "hyar"), ("PATD3", "td3", "none"), ("PDQN-TD3", "pdqn_td3", "none"),
    ("HHQN-TD3", "hhqn_td3", "none"), ("HyAR-TD3", "td3", "hyar"), ("PPO", "ppo", "none"))}
ROWS |= {f"{name}-equal": [*ROWS[name], "--tuning", "equal"] for name in ("PATD3", "PDQN-TD3")}  # behind the paper's
_COMPILED = ("goal", "hard_goal", "platform")  # a step of theirs is a loop of sub-steps
TASKS = {f"hybrid/{name}": [*(["--task-options", "compile=True"] if name in _COMPILED else []),
                            *([] if name == "platform" else ["--eval-starts", "fresh"])]
         for name in ("goal", "hard_goal", "platform", "catch_point", "hard_move-4", "hard_move-6", "hard_move-8",
                      "hard_move-10")}
# the published steps and, before them, HyAR's warm-up with random actions; as many for every row
FRAMES = {task: overrides("td3", "hyar", task)["frames"] for task in TASKS}
NOTES = ["Success is the share of 100 (Platform, Goal) or 50 greedy episodes that reach the goal, mean of the last "
         "five evaluations; of Platform the return is shown, as in the paper: below 1 for an episode that falls short.",
         "100 evaluations of a run, each on fresh episodes, as in the published program, but for Platform, where all "
         "have the same starts and draws; that program evaluates every 500 steps (Catch Point, Hard Move: 2,500).",
         "All rows have the same frames: the published steps and HyAR's warm-up with random actions, in which "
         "baselines learn. Baselines have the tuning of the published programs, '-equal' rows HyAR's; HPPO does not "
         "clamp samples before it takes their density, as the published program does (--clamp-samples). That program "
         "also evaluates HPPO with sampled actions: here that is the column success_sampled of the files, and what a "
         "table of mode success_sampled shows.",
         "Published numbers: Table 2 of Li et al. (ICLR 2022), five runs each. Which evaluations it averages is not "
         "said.",
         "Others report: nnabla-rl, HyAR-TD3 on Platform .978 at 200,000 steps, three runs (Goal: return 26 of a "
         "reported 35). CHDP's paper, as others quote it, success of HPPO, PATD3, PDQN-TD3, HyAR-TD3: Goal 0, 0, .71, "
         ".77; Hard Goal 0, .43, 0, .60; Platform .66, .95, .97, .97; Catch Point .56, .87, .90, .87; Hard Move n=4 "
         ".03, .64, .80, .91; n=6 .03, .10, .31, .92; n=8 .02, .05, .07, .88; n=10 .03, .10, .03, .69. MP-DQN's paper: "
         "Platform .987, Goal .789."]
MODES = {task: "greedy" if task == "hybrid/platform" else "success" for task in TASKS}  # as in the paper
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


# several agents: one codec or one hybrid head for all, or a choice among fixed actions, all with a central critic
AGENT_TASKS = {task: ["--max-steps", "50", "--eval-episodes", "32"] for task in ("hybrid/vmas.navigation",
                                                                                   "hybrid/particle.spread-3")}
_SHARED = ["--centralized", "--agent-id"]
_REPLAYED = ["--algorithm", "td3", "--updates-per-frame", "0.25", *_SHARED]
AGENT_ROWS = {"HyAR-TD3": [*_REPLAYED, "--codec", "hyar", "--codec-options", "agent_id=True"],
              "PATD3": [*_REPLAYED, "--codec", "none"], "PPO-hybrid": ["--algorithm", "ppo", *_SHARED],
              "MAPPO-discretised": ["--algorithm", "mappo", "--agent-id", "--task-options", "levels=8", "--num-envs",
                                    "16", "--steps", "128", "--minibatch-size", "256", "--actor-cells", "256", "256",
                                    "--critic-cells", "256", "256"]}
AGENT_RECIPES = {"MAPPO-discretised": "recipes.cooperative"}
AGENT_NOTES = ["Four modes for each agent: stay, push along an axis with a signed strength, push in a direction. "
               "Discretised: eight values of every parameter, 20 pushes and rest in all. HyAR's frames include "
               "10,000 of random actions. Return is the mean over agents, greedy actions."]

# an update for every fourth frame, a shorter warm-up and a third of the steps: minutes in place of hours
_FEWER = ["--updates-per-frame", "0.25"]
SMALL_ROWS = {"HyAR-TD3": [*ROWS["HyAR-TD3"], *_FEWER, "--codec-options", "warmup=50000"],
              "HyAR-DDPG": [*ROWS["HyAR-DDPG"], *_FEWER, "--codec-options", "warmup=50000"],
              "PATD3": [*ROWS["PATD3"], *_FEWER]}
SMALL_TASKS = ("hybrid/hard_move-4", "hybrid/hard_move-6", "hybrid/catch_point")
SMALL_NOTES = [NOTES[0], "350,000 frames with an update for every fourth; HyAR's include 50,000 of random actions. The "
               "published numbers beside them are of a million steps with an update for each."]

HYBRID = {
    "hybrid": Table(title="Hybrid discrete-continuous actions (HyAR)", recipe="recipes.hybrid_actions", rows=ROWS,
                    tasks=TASKS, frames=FRAMES, mode=MODES, evaluations=100, last=5, notes=NOTES,
                    reference=reference()),
    "hybrid_small": Table(
        title="Hybrid actions in a twelfth of the published updates", recipe="recipes.hybrid_actions", rows=SMALL_ROWS,
        tasks={task: [] for task in SMALL_TASKS}, frames=350_000, mode="success", evaluations=35, last=5,
        notes=SMALL_NOTES, reference={task: {row: numbers for row, numbers in reference()[task].items()
                                             if row in SMALL_ROWS} for task in SMALL_TASKS}),
    "hybrid_agents": Table(
        title="Hybrid actions of several agents: a learned latent, a hybrid head, a choice among fixed actions",
        recipe="recipes.hybrid_actions", recipes=AGENT_RECIPES, rows=AGENT_ROWS, tasks=AGENT_TASKS, frames=120_000,
        notes=AGENT_NOTES),
}
