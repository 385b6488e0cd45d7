"""The BenchMARL side of `recipes.speed`: run by a Python that has BenchMARL (torchrl < 0.12), not by the project's.

    <python of that environment> recipes/speed_benchmarl.py navigation 60 400 4 5 1
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
import warnings

warnings.simplefilter("ignore")  # before the imports, which warn

import torch  # noqa: E402
from benchmarl.algorithms import MappoConfig  # noqa: E402
from benchmarl.environments import VmasTask  # noqa: E402
from benchmarl.experiment import Callback, Experiment, ExperimentConfig  # noqa: E402
from benchmarl.models import MlpConfig  # noqa: E402

OPTIONS = {"navigation": {"n_agents": 3, "shared_rew": False, "collisions": True}, "balance": {"n_agents": 4}}


class Clock(Callback):
    """CPU seconds and mean episode return of every iteration."""

    def __init__(self):
        super().__init__()
        self.start, self.seconds, self.returns = time.process_time(), [], []

    def on_batch_collected(self, batch):
        """Returns of the episodes that ended in the batch."""
        done = batch["next", "done"].squeeze(-1)
        self.returns.append(batch["next", "agents", "episode_reward"].mean((-2, -1))[done].mean().item())

    def on_train_end(self, training_td, group):
        """One iteration is over."""
        now = time.process_time()
        self.seconds.append(now - self.start)
        self.start = now


def main(task: str, num_envs: int, minibatch: int, epochs: int, iterations: int, seed: int) -> None:
    """Train MAPPO with the settings of `recipes.speed_train.TRAINING`, without logging or evaluation."""
    torch.set_num_threads(1)
    config = ExperimentConfig.get_from_yaml()
    for name, value in dict(
        gamma=0.9,
        lr=3e-4,
        adam_eps=1e-6,
        clip_grad_val=5.0,
        max_n_iters=iterations,
        max_n_frames=None,
        on_policy_collected_frames_per_batch=num_envs * 100,
        on_policy_n_envs_per_worker=num_envs,
        on_policy_n_minibatch_iters=epochs,
        on_policy_minibatch_size=minibatch,
        evaluation=False,
        render=False,
        loggers=[],
        create_json=False,
        save_folder=tempfile.mkdtemp(),
    ).items():
        setattr(config, name, value)
    model = MlpConfig(num_cells=[64, 64], activation_class=torch.nn.Tanh, layer_class=torch.nn.Linear)
    vmas_task = {"navigation": VmasTask.NAVIGATION, "balance": VmasTask.BALANCE}[task].get_from_yaml()
    vmas_task.config |= OPTIONS[task]
    algorithm = MappoConfig.get_from_yaml()
    algorithm.lmbda, algorithm.entropy_coef = 0.9, 0.0
    clock = Clock()
    experiment = Experiment(task=vmas_task, algorithm_config=algorithm, model_config=model, critic_model_config=model,
                            seed=seed, config=config, callbacks=[clock])
    clock.start = time.process_time()
    experiment.run()
    print(json.dumps({"seconds": clock.seconds, "returns": clock.returns}))


if __name__ == "__main__":
    name, *numbers = sys.argv[1:]
    main(name, *map(int, numbers))
