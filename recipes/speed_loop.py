"""The whole loop of MAPPO as `recipes.speed --device` measures it: collection, update, both, and what waits for whom.

    python -m recipes.speed_loop vmas/navigation 4096 100 4 5 cuda compile    # one measurement in this process

A worker warms up, times collection and update apart (the device is waited for in between), times whole iterations as
they are, and counts in further ones, on a GPU, the calls that make the host wait for it and the source lines they
come from. Seconds are wall time on a GPU and CPU seconds of the one thread on a CPU.
"""

from __future__ import annotations

import dataclasses
import json
import sys
import time
import warnings
from collections import Counter
from contextlib import nullcontext
from statistics import median

import torch
from tqdm import tqdm

from recipes.cooperative import configure, make_trainer
from recipes.speed_rounds import attempt, ratio
from recipes.speed_syncs import recorded
from suite.run import MemoryRun

TASKS = ("vmas/simple_spread", "vmas/navigation")
MODES = {"eager": {}, "compile": {"compile": True}, "graphs": {"compile": True, "cuda_graphs": True}}
FLAGS = {"eager": "eager", "compile": "--compile", "graphs": "--compile --cuda-graphs"}
PARTS = ("collect", "update", "loop")
WARM, COUNTED = 3, 2  # iterations; a captured graph is recorded in the second


class Stopwatch(MemoryRun):
    """A run that looks at the clock where collection ends and where an iteration ends."""

    def __init__(self, device: torch.device, iterations: int):
        super().__init__()
        self.cuda, self.iterations, self.done = device.type == "cuda", iterations, 0
        self.clock = time.perf_counter if self.cuda else time.process_time
        self.seconds: dict[str, list[float]] = {part: [] for part in PARTS}
        self.waits: list[str] = []
        self.syncs: dict[str, Counter[str]] = {"collect": Counter(), "update": Counter()}
        self.now = 0.0

    def attach(self, trainer) -> None:
        """Put the mark between collection and update."""
        inner = trainer.iterate

        def iterate(batch):
            self._mark("collect")
            return inner(batch)

        trainer.iterate = iterate

    def log(self, row: dict[str, float], *, frames: int) -> None:
        """The end of an iteration: its metrics have just come to the host."""
        self._mark("update")
        self.done += 1
        if self.cuda:
            counting = 0 <= self.done - WARM - 2 * self.iterations < COUNTED
            torch.cuda.set_sync_debug_mode("warn" if counting else "default")

    def _mark(self, phase: str) -> None:
        apart = self.done - WARM < self.iterations
        if self.cuda and (apart or phase == "update") and self.done < WARM + 2 * self.iterations:
            torch.cuda.synchronize()
        before, now = self.now, self.clock()
        if apart or phase == "update":
            self.now = now
        if self.done >= WARM + 2 * self.iterations:
            self.syncs[phase].update(self.waits)
        elif self.done >= WARM and (apart or phase == "update"):
            self.seconds[phase if apart else "loop"].append(now - before)
        self.waits.clear()


def worker(task: str, num_envs: int, steps: int, epochs: int, iterations: int, device: str, mode: str) -> dict:
    """Frames per second of each part, and per iteration the synchronisations by place (None on a CPU)."""
    frames = num_envs * steps
    cfg = dataclasses.replace(configure({}), task=task, num_envs=num_envs, steps=steps, epochs=epochs, device=device,
                              minibatch_size=-(-frames // 4), frames=frames * (WARM + 2 * iterations + COUNTED),
                              evaluations=0, checkpoint_every=0, **MODES[mode])
    run = Stopwatch(torch.device(device), iterations)
    trainer = make_trainer(cfg, run)
    run.attach(trainer)
    with recorded(run.waits) if run.cuda else nullcontext():
        trainer.train()
    syncs = {phase: {where: count / COUNTED for where, count in places.items()} for phase, places in run.syncs.items()}
    return {name: frames / median(seconds) for name, seconds in run.seconds.items()} | {
        "syncs": syncs if run.cuda else None}


def loop(rounds: int, device: str, tasks: tuple[str, ...], sizes: tuple[int, ...], modes: tuple[str, ...], steps: int,
         epochs: int, iterations: int) -> list[str]:
    """The section: every mode of every task and size takes its turn in each round."""
    found: dict[tuple, dict[str, list]] = {(t, n): {mode: [] for mode in modes} for t in tasks for n in sizes}
    bar = tqdm(total=rounds * len(found) * len(modes), unit="process")
    for _ in range(rounds):
        for (task, num_envs), by_mode in found.items():
            for mode, results in by_mode.items():
                results.append(attempt(
                    "-m", "recipes.speed_loop", task, num_envs, steps, epochs, iterations, device, mode))
                bar.update()
    bar.close()
    name = torch.cuda.get_device_name(device) if torch.device(device).type == "cuda" else "one thread"
    lines = ["", f"MAPPO on {device} ({name}): 1000 frames per second and ratio to {FLAGS[modes[0]]}; {steps} steps, "
                 f"{epochs} epochs of 4 minibatches; host synchronisations per iteration in collection + update",
             f"{'task':18} {'envs':>6} {'mode':23} {''.join(f'{part:>28}' for part in PARTS)}  syncs"]
    for (task, num_envs), by_mode in found.items():
        for mode, results in by_mode.items():
            lines += rows(f"{task:18} {num_envs:6} {FLAGS[mode]:23} ", results, by_mode[modes[0]])
    return lines


def rows(head: str, results: list, base: list) -> list[str]:
    """One line of a mode, and one for each place where its first round waited most."""
    pairs = [(r, b) for r, b in zip(results, base, strict=True) if isinstance(r, dict) and isinstance(b, dict)]
    if not pairs:
        return [head + "failed: " + next((r for r in results if isinstance(r, str)), "its base has no numbers")]
    cells = [f"{median(r[part] for r, _ in pairs) / 1000:9.1f} " + ratio([r[part] / b[part] for r, b in pairs])
             for part in PARTS]
    syncs = pairs[0][0]["syncs"] or {}
    counts = " + ".join(f"{sum(places.values()):.0f}" for places in syncs.values()) or "n/a"
    lines = [head + "".join(f"{cell:>28}" for cell in cells) + f"  {counts}"]
    lines += [f"{count:30.1f} in {phase} at {where}" for phase, places in syncs.items()
              for where, count in Counter(places).most_common(5)]
    return lines


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    task, *numbers, device, mode = sys.argv[1:]
    print(json.dumps(worker(task, *map(int, numbers), device, mode)))
