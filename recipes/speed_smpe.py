"""What SMPE² costs beside the MAA2C it extends, as `recipes.speed --state-models` measures it.

    python -m recipes.speed_smpe fixed 24 24      # a subject, iterations of warm-up, iterations measured

An iteration is 10 episodes in the paper's regime. Encoders are trained every 8 iterations, so whole rounds of 8 are
averaged. Seconds are CPU seconds of one thread, of collection and update together.
"""

from __future__ import annotations

import dataclasses
import json
import resource
import sys
import time
import warnings
from statistics import median

import torch
from tqdm import tqdm

from recipes.cooperative import configure, make_trainer
from recipes.speed_rounds import attempt, ratio
from suite.run import MemoryRun

TASK = "foraging/2s-9x9-3p-2f-coop"
SUBJECTS = {"maa2c": {"preset": "epymarl", "algorithm": "maa2c"}, "fixed": {"preset": "fixed", "loss": "smpe"},
            "official": {"preset": "official", "loss": "smpe"}}
ROUND, WARM, MEASURED, LONG = 8, 8, 24, 160  # iterations
STEPS = 100_000  # environment steps whose time is printed


def run(subject: str, warm: int, measured: int) -> dict[str, float]:
    """CPU seconds per iteration after ``warm`` of them, frames of an iteration, and the peak memory at both ends."""
    words = SUBJECTS[subject] | {"task": TASK}
    cfg = configure(words)
    frames = cfg.num_envs * 50
    cfg = dataclasses.replace(cfg, task=TASK, loss=words.get("loss", "none"), frames=frames * (warm + measured),
                              evaluations=0, checkpoint_every=0)
    trainer = make_trainer(cfg, MemoryRun())
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


def section(rounds: int, warm: int = WARM, measured: int = MEASURED, long: int = LONG) -> list[str]:
    """Every subject takes its turn in each round, in a fresh process; then a long run of each for its memory."""
    found: dict[str, list] = {subject: [] for subject in SUBJECTS}
    bar = tqdm(total=(rounds + 1) * len(SUBJECTS), unit="process")
    for _ in range(rounds):
        for subject, results in found.items():
            results.append(attempt("-m", "recipes.speed_smpe", subject, warm, measured))
            bar.update()
    memory = {}
    for subject in SUBJECTS:
        memory[subject] = attempt("-m", "recipes.speed_smpe", subject, long // 4, long - long // 4)
        bar.update()
    bar.close()
    lines = ["", f"SMPE² in the paper's regime on {TASK}: CPU seconds per iteration of 10 episodes "
                 f"(mean of {measured}), ratio to MAA2C, minutes of {STEPS:,} environment steps, peak memory",
             f"{'subject':10} {'seconds':>8} {'ratio':>24} {'minutes':>8}  MB after {long // 4} | {long} iterations"]
    for subject, results in found.items():
        lines.append(row(subject, results, found["maa2c"], memory[subject]))
    return lines


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
    subject, *numbers = sys.argv[1:]
    print(json.dumps(run(subject, *map(int, numbers))))
