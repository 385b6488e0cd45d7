"""The published tables as data: rows, tasks, frames. ``recipes.benchmark`` runs them."""

from __future__ import annotations

from recipes.hybrid_tables import HYBRID
from recipes.moa_tables import MOA_TABLES
from recipes.table import Table

_FORAGING = ["foraging/2s-9x9-3p-2f-coop", "foraging/4s-11x11-3p-2f-coop", "foraging/2s-12x12-2p-2f-coop",
             "foraging/7s-20x20-5p-3f-coop"]
_WAREHOUSE = ["warehouse/tiny-2ag-hard", "warehouse/tiny-4ag-hard", "warehouse/small-4ag-hard"]
_SPREAD = [f"particle/spread-{n}" for n in (3, 4, 5, 8)]
_SMPE = ["--loss", "smpe", "--preset"]
_TEAM = ("Return is the team's (sum over agents) undiscounted return of 100 fresh episodes with sampled actions, as "
         "the paper reports it.")
_PARALLEL = ["--num-envs", "128", "--steps", "50", "--minibatch-size", "1600", "--team-reward"]
_STANDARD = [*_PARALLEL, "--standardize-reward"]
_SMALL = ["foraging/2s-8x8-2p-2f-coop", "foraging/2s-9x9-3p-2f-coop"]


TABLES = {
    "cooperative": Table(
        title="Cooperative control",
        recipe="recipes.cooperative",
        rows={name: ["--algorithm", name.lower()] for name in ("MAPPO", "IPPO", "MAA2C", "MADDPG")},
        tasks={"vmas/navigation": [], "vmas/balance": [], "vmas/give_way": [], "vmas/simple_spread": []},
        frames=300_000,
        notes=["Default settings of the recipe for every cell; no number was tuned to a task.",
               "Return is the mean over agents of the undiscounted sum of rewards, greedy actions, 32 fresh episodes "
               "of the final policy.", "On simple_spread agents see each other and all landmarks, so that a central "
               "critic changes little: the curves of IPPO and MAPPO cover each other.",
               "MADDPG's critic did not yet know whose value it gives: where rewards are each agent's own (navigation, "
               "give_way) it learned the mean of all agents' values."]),
    # the paper's protocol; --rows, --tasks and --seeds choose a part of it
    "smpe": Table(
        title="State modelling (SMPE²), the paper's protocol",
        recipe="recipes.cooperative",
        rows={"MAA2C": ["--preset", "epymarl", "--algorithm", "maa2c"],
              "MAPPO": ["--preset", "epymarl", "--algorithm", "mappo"],
              "SMPE2-official": [*_SMPE, "official"], "SMPE2-paper": [*_SMPE, "paper"],
              "SMPE2-fixed": [*_SMPE, "fixed"], "SMPE2-PPO": [*_SMPE, "fixed", "--algorithm", "mappo"]},
        tasks={task: ["--eval-episodes", "100"] for task in (*_FORAGING, *_WAREHOUSE, *_SPREAD)},
        frames={task: 40_050_000 if task in _WAREHOUSE else 10_050_000 for task in (*_FORAGING, *_WAREHOUSE, *_SPREAD)},
        evaluations=200, mode="sampled", notes=[_TEAM]),
    "smpe_small": Table(
        title="State modelling (SMPE²) in two regimes, as far as two cores go",
        recipe="recipes.cooperative",
        rows={"MAA2C": ["--preset", "epymarl", "--algorithm", "maa2c"], "SMPE2-official": [*_SMPE, "official"],
              "SMPE2-fixed": [*_SMPE, "fixed"], "MAPPO-128": _PARALLEL,
              "MAPPO-128-std": _STANDARD,
              "SMPE2-PPO-128": [*_PARALLEL, "--loss", "smpe"],
              "SMPE2-PPO-128-std": [*_STANDARD, "--loss", "smpe"]},
        tasks={task: ["--eval-episodes", "100"] for task in _SMALL},
        frames=500_000, mode="sampled",
        notes=[_TEAM, "The first three rows update after every 10 episodes with GRU actors (the paper's regime), the "
               "others after every 6,400 frames of 128 environments with feed-forward actors.",
               "SMPE2-PPO-128 adds the novelty bonus, which is never negative, to raw rewards: an episode that ends "
               "early earns less of it. '-std' standardises rewards, as the A2C rows do.",
               "In SMPE2-official padded steps behind an episode's end count as frames."]),
    "smpe_ablations": Table(
        title="What each part of SMPE² contributes",
        recipe="recipes.cooperative",
        rows={"SMPE2-PPO": [*_STANDARD, "--loss", "smpe"]} | {
            f"without-{what}": [*_STANDARD, "--loss", "smpe", "--loss-options", option] for what, option in {
                "novelty": "novelty=0.0", "filters": "filters=False", "KL": "kl_coef=0.0",
                "filter-norm": "norm_coef=0.0", "filtered-critic": "filtered_critic=False",
                "belief": "use_belief=False"}.items()} | {
            "observation-novelty": [*_STANDARD, "--loss", "smpe", "--loss-options", "novelty=0.0",
                                        "observation_novelty=0.1"]},
        tasks={task: ["--eval-episodes", "100"] for task in _SMALL},
        frames=500_000, mode="sampled", notes=[_TEAM]),
} | MOA_TABLES | HYBRID
