"""What a run measured, out of its folder, as rows of results."""

from __future__ import annotations

import csv
import math
from pathlib import Path
from typing import Any

from suite.results import Evaluation
from suite.run import stored_run


def evaluations(folder: Path, seed: int) -> list[Evaluation]:
    """The evaluations a run wrote, as result rows; one in the midst of which it was killed is left out."""
    scalars = folder / "metrics" / "scalars"
    if not (scalars / "eval" / "return.csv").exists():
        return []
    info = stored_run(folder)

    def scalar(name: str) -> dict[int, float]:
        path = scalars / f"{name}.csv"
        if not path.exists():
            return {}
        whole = [line for line in path.read_text().splitlines(keepends=True) if line.endswith("\n")]
        return {int(step): float(value) for step, value in csv.reader(whole)}

    sampled, greedy, length, seconds, success, success_sampled = map(scalar, (
        "eval/return", "eval/return_greedy", "eval/length", "time/total", "eval/success", "eval/success_sampled"))
    return [
        Evaluation(
            seed=seed,
            frames=frames,
            seconds=round(seconds.get(frames, 0.0), 1),
            return_sampled=sampled[frames],
            return_greedy=greedy[frames],
            episodes=info["config"]["eval_episodes"],
            length=length[frames],
            commit=commit_of(info, frames),
            success=success.get(frames, math.nan),
            success_sampled=success_sampled.get(frames, math.nan),
        )
        for frames in sorted(sampled.keys() & greedy.keys() & length.keys())
    ]


def commit_of(info: dict[str, Any], frames: int) -> str:
    """The commit that a run measured its row of that frame with, out of its config.json.

    A resumed run measures again what is behind its checkpoint, and its first frame if it begins there.
    """
    since = [again for again in info.get("resumed", []) if again["frames"] < frames or again["frames"] == 0]
    return (since or [info])[-1]["commit"]
