"""Batched environments against the packages they follow, as `recipes.speed --environments` measures them.

Hybrid tasks have no package that installs: their rivals are the same rules stepped one by one with NumPy.

    python -m recipes.speed_envs compile foraging/2s-9x9-3p-2f-coop 4096 4.0    # one subject, 4 seconds; prints a rate

A step is one step of one environment, all its agents. Random actions are drawn beforehand. Foraging and warehouse
include the resets at the ends of episodes on both sides; the packages are stepped one environment at a time, as they
offer no other way. The particle world is stepped without resets on both sides, as raw VMAS is.
"""

from __future__ import annotations

import json
import sys
import warnings
from collections.abc import Callable
from importlib.util import find_spec
from statistics import median

import torch
from tqdm import tqdm

from envs import make_env
from recipes.speed_collect import timed
from recipes.speed_packages import POOL, SCALAR, STEPS, package
from recipes.speed_rounds import attempt, ratio

SECONDS = 4.0  # of measurement
GRIDS, PARTICLES = (4096,), (64, 512)  # numbers of environments; below, task -> package, numbers, options
TASKS: dict[str, tuple[str, tuple[int, ...], dict]] = {
    **dict.fromkeys(("foraging/2s-9x9-3p-2f-coop", "foraging/8x8-2p-2f-coop"), ("lbforaging", GRIDS, {})),
    **dict.fromkeys(("warehouse/tiny-2ag-hard", "warehouse/tiny-4ag-hard"), ("rware", GRIDS, {})),
    "particle/spread-3": ("vmas", PARTICLES, {"dialect": "vmas"}), "particle/navigation-4": ("vmas", PARTICLES, {}),
}
TASKS |= dict.fromkeys(SCALAR, ("numpy", GRIDS, {}))
SUBJECTS = ("package", "eager", "compile")


def batched(task: str, num_envs: int, compile: bool) -> Callable[[], int]:
    """Our environment: an episode per call with its reset, or `STEPS` steps of the particle world."""
    package, _, options = TASKS[task]
    env = make_env(task, num_envs=num_envs, **options | ({"compile": True} if compile else {}))
    resets, taken = package != "vmas", 0
    count = env.max_steps if resets and task not in SCALAR else STEPS
    actions = [{key: env.full_action_spec[key].rand() for key in env.action_keys} for _ in range(POOL)]
    env.reset_tensors()

    def run() -> int:
        nonlocal taken
        for _ in range(count):
            done = env.step_tensors(actions[taken % POOL])["done"]
            taken += 1
            if resets and (env.cheap_reset or done.any()):  # as the collector
                env.reset_tensors(done.squeeze(-1))
        return count * num_envs

    return run


def section(rounds: int, tasks: tuple[str, ...] = tuple(TASKS), sizes: tuple[int, ...] = (),
            seconds: float = SECONDS) -> list[str]:
    """Every subject takes its turn in each round, in a fresh process."""
    found = {(task, n): {subject: [] for subject in SUBJECTS} for task in tasks for n in sizes or TASKS[task][1]}
    bar = tqdm(total=rounds * len(found) * len(SUBJECTS), unit="process")
    for _ in range(rounds):
        for (task, n), by_subject in found.items():
            for subject, rates in by_subject.items():
                rates.append(attempt("-m", "recipes.speed_envs", subject, task, n, seconds))
                bar.update()
    bar.close()
    head = ["", "Environments, 1000 steps per CPU second of one thread (random actions)",
             f"{'task':27} {'envs':>5} {'package':>10} {'':>8} {'eager':>8} {'compiled':>8} {'eager/package':>24} "
             f"{'compiled/package':>24}"]
    return head + [row(task, n, by_subject) for (task, n), by_subject in found.items()]


def row(task: str, num_envs: int, by_subject: dict[str, list]) -> str:
    """One line: the package's rate and ours, and the ratios, or what went wrong."""
    name, rates = TASKS[task][0], by_subject["package"]
    cells, against = [], []
    for values in by_subject.values():
        good = [value for value in values if isinstance(value, float)]
        cells.append(f"{median(good) / 1000:8.1f}" if good else f"{'-':>8}")
        pairs = [(a, b) for a, b in zip(values, rates, strict=True) if isinstance(a, float) and isinstance(b, float)]
        against.append(f"{ratio([a / b for a, b in pairs]) if pairs else '-':>24}")
    remarks = dict.fromkeys(value for values in by_subject.values() for value in values if isinstance(value, str))
    line = f"{task:27} {num_envs:5} {name:>10} {' '.join(cells)} {' '.join(against[1:])}"
    return "  ".join([line, *remarks])


def worker(subject: str, task: str, num_envs: int, seconds: float) -> float | str:
    """Steps per CPU second, or that the package is not installed."""
    name = TASKS[task][0]
    if subject == "package" and find_spec(name) is None:
        return f"{name} is not installed"
    run = package(task, num_envs) if subject == "package" else batched(task, num_envs, subject == "compile")
    return timed(run, seconds=seconds)


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    torch.manual_seed(0)
    subject, task, num_envs, seconds = sys.argv[1:]
    print(json.dumps(worker(subject, task, int(num_envs), float(seconds))))
