"""Training as `recipes.speed` measures it, in a fresh process; prints CPU seconds and returns of every iteration.

    python -m recipes.speed_train navigation 60 400 4 5 1
"""

from __future__ import annotations

import dataclasses
import json
import sys
import time
import warnings

from recipes.cooperative import configure, make_trainer
from suite.run import MemoryRun

HORIZON = 100
# the same nets, optimiser and data on both sides of the comparison with BenchMARL
TRAINING = dict(
    actor_cells=(64, 64),
    critic_cells=(64, 64),
    gamma=0.9,
    gae_lambda=0.9,
    lr=3e-4,
    adam_eps=1e-6,
    max_grad_norm=5.0,
    entropy_coef=0.0,
    clip=0.2,
    normalize_advantage="none",
    truncate=False,
    steps=HORIZON,
    max_steps=HORIZON,
    evaluations=0,
    checkpoint_every=0,
)
TASK_OPTIONS = {"navigation": {"n_agents": 3, "shared_rew": False, "collisions": True}, "balance": {"n_agents": 4}}


def train(task: str, num_envs: int, minibatch: int, epochs: int, iterations: int, seed: int) -> dict[str, list[float]]:
    """MAPPO of the cooperative recipe: CPU seconds and mean episode return of every iteration."""
    cfg = dataclasses.replace(configure({}), **TRAINING, task=f"vmas/{task}", task_options=TASK_OPTIONS[task],
                              num_envs=num_envs, minibatch_size=minibatch, epochs=epochs,
                              frames=num_envs * HORIZON * iterations, seed=seed)
    trainer = make_trainer(cfg, MemoryRun())
    seconds, start = [], time.process_time()
    inner = trainer.iterate

    def iterate(batch):
        nonlocal start
        metrics = inner(batch)
        now = time.process_time()
        seconds.append(now - start)
        start = now
        return metrics

    trainer.iterate = iterate
    trainer.train()
    return {
        "seconds": seconds,
        "returns": [row["episode/return"] for row in trainer.run.rows if "episode/return" in row],
    }


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    print(json.dumps(train(sys.argv[1], *map(int, sys.argv[2:]))))
