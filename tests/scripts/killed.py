"""Runs a program and kills it with SIGKILL at a chosen moment: python killed.py MOMENT COUNT MODULE ARGUMENTS..."""

import io
import os
import runpy
import signal
import sys

import torch
from torchrl.record import CSVLogger

from suite.collector import FastCollector
from suite.update import Update

moment, left, module = sys.argv[1], int(sys.argv[2]), sys.argv[3]
sys.argv = [module, *sys.argv[4:]]


def die():
    os.kill(os.getpid(), signal.SIGKILL)


def at(owner, name, die_here):
    """Let ``die_here(*args)`` happen at the call number COUNT of a function, in place of it."""
    original = getattr(owner, name)

    def wrapped(*args, **kwargs):
        global left
        left -= 1
        return die_here(*args, **kwargs) if left == 0 else original(*args, **kwargs)

    setattr(owner, name, wrapped)


def half_a_file(state, file):
    whole = io.BytesIO()
    save(state, whole)
    file.write(whole.getvalue()[: len(whole.getvalue()) // 2])
    file.flush()
    die()


def half_a_row(self, name, value, step=None):
    file = self.experiment.files[os.path.join(self.experiment.log_dir, "scalars", f"{name}.csv")]
    file.write(f"{step},{str(value)[:3]}")
    file.flush()
    die()


save = torch.save
moments = {
    "half a checkpoint": (torch, "save", half_a_file),
    "checksum without checkpoint": (os, "replace", lambda *args: die()),
    "rollout": (FastCollector, "_advance", lambda *args: die()),
    "update": (Update, "step", lambda *args: die()),
    "half a row": (CSVLogger, "log_scalar", half_a_row),
}
at(*moments[moment])
runpy.run_module(module, run_name="__main__", alter_sys=True)
