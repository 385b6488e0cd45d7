"""Golden archives: arrays that reference programs computed, and how far ours are from them."""

from pathlib import Path

import numpy as np
import torch
from torch.testing import assert_close

FOLDER = Path(__file__).parent / "golden"


class Golden:
    """One file: arrays as tensors, weights of a network under our names, and the largest deviation met."""

    def __init__(self, folder, name):
        with np.load(FOLDER / folder / f"{name}.npz") as file:
            arrays = {key: np.asarray(file[key]) for key in file.files}
        self.arrays = {key: torch.from_numpy(x) for key, x in arrays.items() if x.dtype.kind != "U"}  # not the words
        self.name, self.largest = name, {}

    def __getitem__(self, key):
        return self.arrays[key]

    def weights(self, prefix, names):
        """State dict of our network from the file's ``fc1.weight``, ``rnn.weight_ih`` ..."""
        out = {}
        for theirs, ours in names.items():
            layer, _, gate = theirs.partition(".")
            for kind in ("weight", "bias"):
                out[f"{ours}.{kind}"] = self[f"{prefix}.{layer}.{kind}{'_' + gate if gate else ''}"]
        return out

    def check(self, what, ours, theirs, tolerance):
        """Compare; the deviation is relative to the largest number of the array."""
        deviation = ((ours - theirs).abs().max() / theirs.abs().max()).item()
        self.largest[what] = max(self.largest.get(what, 0.0), deviation)
        assert_close(ours.to(theirs.dtype), theirs, rtol=tolerance, atol=tolerance * theirs.abs().max().item())

    def stacked(self, prefix, names, n, suffix=""):
        """The same for n agents with stacked parameters; ``prefix`` has a {} for the agent's number."""
        each = [self.weights(prefix.format(k) + suffix, names) for k in range(n)]
        return {key: torch.stack([weights[key] for weights in each]) for key in each[0]}
