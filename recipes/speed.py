"""How fast it is, as ratios against TorchRL's own collector, raw VMAS, and BenchMARL, on this machine.

    python -m recipes.speed                                  # collection
    python -m recipes.speed --benchmarl <python with it>     # and training against BenchMARL 1.5.2
    python -m recipes.speed --benchmarl make                 # makes that environment first (it needs torchrl < 0.12)
    python -m recipes.speed --device cuda                    # the whole loop on a GPU, eager, compiled, graphs

Every measurement runs in a fresh process with one thread; subjects take turns in rounds, and a ratio is taken inside
one round. Printed: median of the rounds' ratios, with the smallest and largest.
"""

from __future__ import annotations

import subprocess
import sys
import venv
from pathlib import Path
from statistics import mean, median

import tyro
from tqdm import tqdm

from envs import resolve_device
from recipes.speed_loop import MODES, TASKS, loop
from recipes.speed_rounds import measure, ratio
from suite.config import check_names, check_positive, run_cli

COLLECT = [(scenario, num_envs, desynchronised) for scenario in ("simple_spread", "balance")
           for num_envs in (64, 512) for desynchronised in (False, True)]
TRAIN = [(task, num_envs, minibatch) for task in ("navigation", "balance") for num_envs in (60, 300)
         for minibatch in (400, 4096)]


def collection(rounds: int, bar: tqdm) -> list[str]:
    """Frames per second of raw VMAS stepping, our collector, and TorchRL's."""
    found: dict[tuple, dict[str, list[float]]] = {case: {s: [] for s in ("raw", "ours", "stock")} for case in COLLECT}
    for _ in range(rounds):
        for case, rates in found.items():
            for subject, list_of in rates.items():
                worker = ("-m", "recipes.speed_collect", subject, *map(str, case))
                list_of.append(measure(sys.executable, *worker))
                bar.update()
    lines = [
        "",
        "Collection, frames per CPU second (2 x 64 actor; TorchRL with step counter and reward sum)",
        f"{'scenario':14} {'envs':>5} {'ends':>8} {'VMAS':>8} {'ours':>8} {'TorchRL':>8}  "
        f"{'ours/TorchRL':>18}  {'ours/VMAS':>18}",
    ]
    for (scenario, num_envs, desynchronised), rates in found.items():
        middle = [f"{median(rates[s]) / 1000:7.1f}k" for s in ("raw", "ours", "stock")]
        against = [
            ratio([a / b for a, b in zip(rates["ours"], rates[other], strict=True)]) for other in ("stock", "raw")
        ]
        ends = "spread" if desynchronised else "together"
        lines.append(f"{scenario:14} {num_envs:5} {ends:>8} {' '.join(middle)}  {against[0]:>18}  {against[1]:>18}")
    return lines


def training(rounds: int, python: str, epochs: int, iterations: int, bar: tqdm) -> list[str]:
    """CPU seconds per iteration of MAPPO here and in BenchMARL: same nets, optimiser, data, epochs, minibatches."""
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


def speed(*, rounds: int = 3, benchmarl: str | None = None, epochs: int = 4, iterations: int = 5,
          collect: bool = True, device: str | None = None, tasks: tuple[str, ...] = TASKS,
          envs: tuple[int, ...] = (4096, 32768), steps: int = 100, modes: tuple[str, ...] = ()) -> None:
    """Measure and print.

    Args:
        rounds: interleaved repetitions.
        benchmarl: a Python with BenchMARL 1.5.2, or 'make'; None leaves the training comparison out.
        epochs: epochs of the training comparison, and of the loop.
        iterations: training iterations per run.
        collect: measure collection; not with a device.
        device: measure the whole loop on this device: cuda, or cpu with small sizes.
        tasks: tasks of the loop.
        envs: numbers of environments of the loop.
        steps: steps per batch of the loop.
        modes: eager, compile, graphs; none given takes all that the device can do.
    """
    check_positive({"rounds": rounds, "iterations": iterations})
    check_names("mode", modes, MODES)
    if device is not None:
        kind = resolve_device(device).type
        modes = modes or tuple(mode for mode in MODES if kind == "cuda" or mode != "graphs")
        with tqdm(total=rounds * len(tasks) * len(envs) * len(modes), unit="process") as bar:
            lines = loop(rounds, device, tasks, envs, modes, steps, epochs, iterations, bar)
        print("\n".join(lines))
        return
    if benchmarl == "make":
        benchmarl = make_environment(Path("runs") / "benchmarl-env")
    workers = rounds * (len(COLLECT) * 3 * collect + len(TRAIN) * 2 * (benchmarl is not None))
    with tqdm(total=workers, unit="process") as bar:
        lines = collection(rounds, bar) if collect else []
        lines += training(rounds, benchmarl, epochs, iterations, bar) if benchmarl else []
    print("\n".join(lines))


if __name__ == "__main__":
    run_cli(lambda: tyro.cli(speed, prog="python -m recipes.speed"))
