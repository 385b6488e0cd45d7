"""Runs on disk, and what is in them read back and compared: for the tests of run folders and of resuming."""

from __future__ import annotations

import torch

from suite.checkpoint import Checkpoints
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


def metrics(folder):
    """Every row of every metric but the times, as written."""
    scalars = folder / "metrics" / "scalars"
    return {str(file.relative_to(scalars)): file.read_text() for file in sorted(scalars.rglob("*.csv"))
            if file.relative_to(scalars).parts[0] != "time"}


def training(folder):
    """Without the evaluations, whose interval depends on the frames asked for."""
    found = metrics(folder)

    def frames(name):
        return {row.split(",")[0] for row in found[name].splitlines()}

    return {name: text for name, text in found.items() if not frames(name) <= frames("eval/return.csv")}


def state(folder):
    """The newest checkpoint, without what a clock or an evaluation decides."""
    found = Checkpoints(folder / "checkpoints").load()
    return {key: value for key, value in found.items() if key not in ("seconds", "evaluations")}


def differences(a, b, path=""):
    """Where two nested structures differ in a bit."""
    if isinstance(a, torch.Tensor):
        return [] if a.dtype == b.dtype and torch.equal(a, b) else [path]
    if isinstance(a, dict):
        keys = [f"{path}/{key}" for key in a.keys() ^ b.keys()]
        return keys + [d for key in a.keys() & b.keys() for d in differences(a[key], b[key], f"{path}/{key}")]
    if isinstance(a, (list, tuple)):
        if len(a) != len(b):
            return [path]
        return [d for k in range(len(a)) for d in differences(a[k], b[k], f"{path}/{k}")]
    return [] if a == b else [path]
