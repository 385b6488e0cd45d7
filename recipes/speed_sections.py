"""The lines of `recipes.speed` about collection, and about training against BenchMARL."""

from __future__ import annotations

import subprocess
import sys
import venv
from pathlib import Path
from statistics import mean, median

from tqdm import tqdm

from recipes.speed_rounds import measure, ratio

COLLECT = [(scenario, num_envs, desynchronised) for scenario in ("simple_spread", "particle/spread-3", "balance")
           for num_envs in (64, 512) for desynchronised in (False, True)]
TRAIN = [(task, num_envs, minibatch) for task in ("navigation", "balance") for num_envs in (60, 300)
         for minibatch in (400, 4096)]


def collection(rounds: int) -> list[str]:
    """Frames per second of raw VMAS stepping, our collector, and TorchRL's."""
    found: dict[tuple, dict[str, list[float]]] = {case: {s: [] for s in ("raw", "ours", "stock")} for case in COLLECT}
    bar = tqdm(total=rounds * len(COLLECT) * 3, unit="process")
    for _ in range(rounds):
        for case, rates in found.items():
            for subject, list_of in rates.items():
                worker = ("-m", "recipes.speed_collect", subject, *map(str, case))
                list_of.append(measure(sys.executable, *worker))
                bar.update()
    bar.close()
    lines = [
        "",
        "Collection, frames per CPU second (2 x 64 actor; TorchRL with step counter and reward sum)",
        f"{'scenario':17} {'envs':>5} {'ends':>8} {'VMAS':>8} {'ours':>8} {'TorchRL':>8}  "
        f"{'ours/TorchRL':>18}  {'ours/VMAS':>18}",
    ]
    for (scenario, num_envs, desynchronised), rates in found.items():
        middle = [f"{median(rates[s]) / 1000:7.1f}k" for s in ("raw", "ours", "stock")]
        against = [
            ratio([a / b for a, b in zip(rates["ours"], rates[other], strict=True)]) for other in ("stock", "raw")
        ]
        ends = "spread" if desynchronised else "together"
        lines.append(f"{scenario:17} {num_envs:5} {ends:>8} {' '.join(middle)}  {against[0]:>18}  {against[1]:>18}")
    return lines


def training(rounds: int, python: str, epochs: int, iterations: int) -> list[str]:
    """CPU seconds per iteration of MAPPO here and in BenchMARL: same nets, optimiser, data, epochs, minibatches."""
    bar = tqdm(total=rounds * len(TRAIN) * 2, unit="process")
    script = str(Path(__file__).with_name("speed_benchmarl.py"))
    lines = [
        "",
        f"Training MAPPO, CPU seconds per iteration, {epochs} epochs (first iteration left out)",
        f"{'task':12} {'envs':>5} {'minibatch':>9} {'ours':>7} {'BenchMARL':>9}  {'speed-up':>18}  "
        f"mean return of ours | theirs in iteration {iterations}",
    ]
    for task, num_envs, minibatch in TRAIN:
        times: dict[str, list[float]] = {"ours": [], "theirs": []}
        returns: dict[str, list[float]] = {"ours": [], "theirs": []}
        for seed in range(rounds):
            numbers = [task, *map(str, (num_envs, minibatch, epochs, iterations, seed))]
            mine = measure(sys.executable, "-m", "recipes.speed_train", *numbers)
            bar.update()
            theirs = measure(python, script, *numbers)
            bar.update()
            for name, side in (("ours", mine), ("theirs", theirs)):
                times[name].append(median(side["seconds"][1:]))
                returns[name].append(side["returns"][-1])
        speed_up = ratio([b / a for a, b in zip(times["ours"], times["theirs"], strict=True)])
        lines.append(
            f"{task:12} {num_envs:5} {minibatch:9} {median(times['ours']):7.2f} {median(times['theirs']):9.2f}  "
            f"{speed_up:>18}  {mean(returns['ours']):.2f} | {mean(returns['theirs']):.2f}"
        )
    bar.close()
    return lines


def make_environment(folder: Path) -> str:
    """A virtual environment with BenchMARL 1.5.2 and this process's torch version; returns its Python."""
    python = folder / "bin" / "python"
    if not python.exists():
        import torch

        venv.create(folder, with_pip=True)
        install = [str(python), "-m", "pip", "install", "--quiet"]
        subprocess.run([*install, f"torch=={torch.__version__.split('+')[0]}"], check=True)
        subprocess.run([*install, "benchmarl==1.5.2", "torchrl<0.12", "vmas==1.5.2",
                        f"torch=={torch.__version__.split('+')[0]}"], check=True)
    return str(python)
