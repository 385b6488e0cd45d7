"""A short run on disk, and its rows read back: for the tests of the run folder."""

from __future__ import annotations

import torch

from suite.run import Run

CONFIG = {"task": "toy/x", "lr": 0.1, "cells": [4, 4], "frames": 100, "options": {"a": 1}}


def finished(path, **options):
    """A run with three rows and two checkpoints."""
    with Run(path, CONFIG, quiet=True, **options) as run:
        for iteration, frames in ((0, 0), (1, 50), (2, 100)):
            run.log({"episode/return": float(frames), "eval/return_greedy": float(iteration)}, frames=frames)
            run.save({"w": torch.full((2,), float(frames))}, iteration=iteration, frames=frames)
    return run


def rows(path, name="episode/return"):
    text = (path / "metrics" / "scalars" / f"{name}.csv").read_text()
    return [tuple(float(x) for x in line.split(",")) for line in text.splitlines()]
