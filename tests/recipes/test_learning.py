"""The default settings learn: what the README promises, in a twelfth of its frames."""

import pytest

from recipes.cooperative import make_trainer
from recipes.cooperative_config import Config
from suite.run import MemoryRun


@pytest.mark.slow
@pytest.mark.parametrize("seed", [1])
def test_mappo_learns_to_navigate(seed):
    """12 iterations of 96 environments x 100 steps; the greedy return starts near -4."""
    cfg = Config(frames=115_200, seed=seed)
    trainer = make_trainer(cfg, MemoryRun())
    trainer.train()
    returns = [row["eval/return_greedy"] for row in trainer.run.rows if "eval/return_greedy" in row]
    assert trainer.frames == 115_200 and trainer.iteration == 12
    assert returns[0] < -1, "an untrained policy"
    assert returns[-1] > 3.0
