"""What the sections of `recipes.speed` share: a worker in a fresh process, and the ratio of rounds."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from statistics import median

ONE_THREAD = {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE"}


def measure(*command: str) -> object:
    """The last line that a worker prints, as JSON; ValueError with its output if it fails."""
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | ONE_THREAD)
    if done.returncode:
        raise ValueError(f"{' '.join(command)} failed:\n{done.stdout[-1000:]}{done.stderr[-2000:]}")
    return json.loads(done.stdout.strip().splitlines()[-1])


def attempt(*words: object) -> object:
    """What this Python prints given these words, or the last line of what went wrong: one failure costs no other."""
    try:
        return measure(sys.executable, *map(str, words))
    except ValueError as error:
        return str(error).strip().splitlines()[-1]


def ratio(rounds: list[float]) -> str:
    """Median and range of ratios."""
    return f"{median(rounds):5.2f} ({min(rounds):.2f}-{max(rounds):.2f})"
