"""The lines of `recipes.speed --environments --device ...`: the batched families by size and mode."""

from __future__ import annotations

from statistics import median

import torch
from tqdm import tqdm

from recipes.speed_graphs import DRIVES
from recipes.speed_rounds import attempt, ratio

TASKS = ("foraging/2s-9x9-3p-2f-coop", "warehouse/tiny-2ag-hard", "particle/spread-3", "particle/navigation-4",
         "hybrid/platform", "hybrid/hard_move-4")
SIZES = (4096, 32768, 262144)
SECONDS = 2.0  # of each measurement


def section(rounds: int, device: str, modes: tuple[str, ...], tasks: tuple[str, ...] = TASKS,
            sizes: tuple[int, ...] = SIZES, seconds: float = SECONDS) -> list[str]:
    """Every mode of every task takes its turn in each round, in a fresh process that goes through the sizes."""
    found = {task: {mode: [] for mode in modes} for task in tasks}
    bar = tqdm(total=rounds * len(tasks) * len(modes), unit="process")
    for _ in range(rounds):
        for task, by_mode in found.items():
            for mode, results in by_mode.items():
                result = attempt("-m", "recipes.speed_graphs", task, mode, device, seconds, *sizes)
                results.append([[result] * len(DRIVES)] * len(sizes) if isinstance(result, str) else result)
                bar.update()
    bar.close()
    name = torch.cuda.get_device_name(device) if torch.device(device).type == "cuda" else "one thread"
    lines = ["", f"Environments on {device} ({name}), million steps per second and ratio to {modes[0]}",
             f"{'task':27} {'envs':>7} {'mode':8} {'random actions':>30} {'2 x 64 actor in the loop':>30}"]
    for task, by_mode in found.items():
        for at, num_envs in enumerate(sizes):
            for mode, results in by_mode.items():
                cells = [cell([r[at][k] for r in results], [b[at][k] for b in by_mode[modes[0]]])
                         for k in range(len(DRIVES))]
                lines.append(f"{task:27} {num_envs:7} {mode:8} {cells[0]:>30} {cells[1]:>30}")
    return lines


def cell(values: list, base: list) -> str:
    """Median rate and ratio, or what went wrong."""
    pairs = [(a, b) for a, b in zip(values, base, strict=True) if isinstance(a, float) and isinstance(b, float)]
    if not pairs:
        return next((value for value in values if isinstance(value, str)), "its base has no numbers")
    return f"{median(a for a, _ in pairs) / 1e6:9.2f} " + ratio([a / b for a, b in pairs])
