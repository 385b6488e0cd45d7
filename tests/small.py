"""The cooperative recipe in a few dozen frames: on `ToyEnv` (the patched fixture), or on any task."""

from __future__ import annotations

import recipes.cooperative as recipe
from recipes.cooperative_config import Config
from recipes.presets import ALGORITHMS, overrides
from suite.run import MemoryRun
from tests.batches import STATE_MODEL_OPTIONS
from tests.toy import ToyEnv

TOY = "toy/walk"


def make_toy(task, *, num_envs, device, seed, max_steps, truncate, **options):
    assert task == TOY and str(device) == "cpu"
    return ToyEnv(num_envs, seed=seed, max_steps=max_steps or 6, truncate=truncate, **options)


def config(algorithm="mappo", preset="default", **changes):
    """Two iterations of 4 environments x 5 steps, small networks."""
    tiny = dict(task=TOY, num_envs=4, steps=5, frames=40, actor_cells=(8,), eval_episodes=2, evaluations=1, quiet=True)
    loss = changes.get("loss", "none")
    chosen = overrides(algorithm, preset, loss)
    if chosen.get("actor_recurrent_dim"):
        tiny["actor_recurrent_dim"] = 6
    replayed = ALGORITHMS[algorithm][0] != "on_policy"
    if replayed:
        tiny |= dict(buffer_size=60, warmup=10, minibatch_size=10, gradient_steps=2, exploration_frames=30)
    else:
        tiny["epochs"] = 2
        if chosen.get("minibatch_size", 1) is not None:
            tiny["minibatch_size"] = 10
    if algorithm not in ("qmix", "vdn"):
        tiny["critic_cells"] = (8,)
    if algorithm == "qmix":
        tiny["mixer_dim"] = 4
    if chosen.get("whole_episodes"):
        tiny |= dict(steps=None, frames=48)
    options = chosen.get("loss_options", {}) | STATE_MODEL_OPTIONS.get(loss, {}) | changes.pop("loss_options", {})
    if loss == "smpe" and replayed:
        options["filtered_critic"] = False
    if options.get("preset") == "official":  # its filtered critic needs a central one of all observations
        changes["task_options"] = {"state": False} | changes.get("task_options", {})
    return Config(**chosen | tiny | changes | {"loss_options": options})


def train(cfg, run=None):
    """A trained trainer; its rows are ``trainer.run.rows``."""
    trainer = recipe.make_trainer(cfg, run or MemoryRun())
    trainer.train()
    return trainer


def timeless(trainer):
    """The metrics that a seed decides."""
    return [{key: value for key, value in row.items() if not key.startswith("time/")} for row in trainer.run.rows]


def weights(trainer):
    """Copies of everything that was learned, by name."""
    modules = [trainer.policy, *(loss for update in trainer.updates for loss in update.losses)]
    return {f"{k}.{name}": p.detach().clone() for k, module in enumerate(modules) for name,
            p in module.named_parameters()}
