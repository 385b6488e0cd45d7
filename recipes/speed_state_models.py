"""What state models cost beside their baselines, as `recipes.speed --state-models` measures it.

    python -m recipes.speed_state_models NAME TASK SUBJECT 24 24   # a study's; iterations of warm-up, and measured

Seconds are CPU seconds of one thread, of collection and update together.
"""

from __future__ import annotations

import dataclasses
import json
import resource
import sys
import time
import warnings
from collections.abc import Sequence
from statistics import median

import torch
from tqdm import tqdm

from recipes.cooperative import configure, make_trainer
from recipes.presets import COST_STUDIES
from recipes.speed_rounds import attempt, ratio
from suite.run import MemoryRun

STEPS = 100_000  # environment steps whose time is printed


def run(name: str, task: str, subject: str, warm: int, measured: int) -> dict[str, float]:
    """CPU seconds per iteration after ``warm`` of them, frames of an iteration, and the peak memory at both ends."""
    cfg = configure(COST_STUDIES[name].subjects[subject] | {"task": task})
    cfg = dataclasses.replace(cfg, task=task, frames=1, evaluations=0, checkpoint_every=0)
    trainer = make_trainer(cfg, MemoryRun())  # of one iteration, to learn its length
    frames = trainer.collector.total_frames
    trainer = make_trainer(dataclasses.replace(cfg, frames=frames * (warm + measured)), MemoryRun())
    ends: list[tuple[float, float]] = []
    inner = trainer.iterate

    def iterate(batch):
        metrics = inner(batch)
        ends.append((time.process_time(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024))
        return metrics

    trainer.iterate = iterate
    trainer.train()
    (start, before), (end, after) = ends[warm - 1], ends[-1]
    return {"seconds": (end - start) / measured, "frames": frames, "before": before, "after": after}


def section(rounds: int, names: Sequence[str] = ()) -> list[str]:
    """Every study on every one of its tasks."""
    return [line for name in names or COST_STUDIES for task in COST_STUDIES[name].tasks
            for line in study(name, task, rounds)]


def study(name: str, task: str, rounds: int) -> list[str]:
    """Every subject takes its turn in each round, in a fresh process; then a long run of each for its memory."""
    it = COST_STUDIES[name]
    found: dict[str, list] = {subject: [] for subject in it.subjects}
    bar = tqdm(total=(rounds + 1) * len(found), unit="process")

    def measure(subject: str, warm: int, measured: int):
        result = attempt("-m", "recipes.speed_state_models", name, task, subject, warm, measured)
        bar.update()
        return result

    for _ in range(rounds):
        for subject, results in found.items():
            results.append(measure(subject, it.warm, it.measured))
    memory = {subject: measure(subject, it.long // 4, it.long - it.long // 4) for subject in found}
    bar.close()
    base = next(iter(found))
    lines = ["", f"{it.title} on {task}: CPU seconds per iteration (mean of {it.measured}), ratio to {base}, minutes "
                 f"of {STEPS:,} environment steps, peak memory",
             f"{'subject':10} {'seconds':>8} {'ratio':>24} {'minutes':>8}  MB after {it.long // 4} | {it.long} "
             "iterations"]
    return lines + [row(subject, results, found[base], memory[subject]) for subject, results in found.items()]


def row(subject: str, results: list, base: list, memory: dict | str) -> str:
    """One line of a subject, or what went wrong."""
    pairs = [(r, b) for r, b in zip(results, base, strict=True) if isinstance(r, dict) and isinstance(b, dict)]
    if not pairs or isinstance(memory, str):
        wrong = [x for x in (*results, memory) if isinstance(x, str)]
        return f"{subject:10} failed: {wrong[0] if wrong else 'its base has no numbers'}"
    seconds = median(r["seconds"] for r, _ in pairs)
    against = ratio([r["seconds"] / b["seconds"] for r, b in pairs])
    minutes = seconds * STEPS / pairs[0][0]["frames"] / 60
    return (f"{subject:10} {seconds:8.3f} {against:>24} {minutes:8.1f}  "
            f"{memory['before']:.0f} | {memory['after']:.0f}")


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    *subject, warm, measured = sys.argv[1:]
    print(json.dumps(run(*subject, int(warm), int(measured))))
