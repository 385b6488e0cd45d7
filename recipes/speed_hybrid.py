"""Training on hybrid actions as `recipes.speed --hybrid` measures it: updates of TD3, and frames of whole recipes.

    python -m recipes.speed_hybrid ours 4.0    # one subject, 4 seconds; prints a rate per CPU second of one thread

``ours`` and ``torchrl`` make the same TD3 update, of the size of HyAR on Platform, the latter by TorchRL's TD3Loss and
SoftUpdate. A recipe's frame is a step, its replay and its update, behind a short warm-up.
"""

from __future__ import annotations

import json
import sys
import warnings
from collections.abc import Callable
from functools import partial
from statistics import median

import torch
from tensordict import TensorDict
from tensordict.nn import TensorDictModule
from torch import nn
from torchrl.data import Bounded
from torchrl.objectives import SoftUpdate, TD3Loss, ValueEstimators
from tqdm import tqdm

from envs import make_env
from recipes.hybrid_actions import CHOOSERS, Config, configure, make_trainer, parse_cli
from recipes.speed_collect import timed
from recipes.speed_rounds import attempt, ratio
from suite.losses.deterministic import DeterministicPolicyLoss, QValueLoss, SoftTargets
from suite.modules.latent_control import make_box_actor, make_critics
from suite.run import MemoryRun
from suite.specs import LATENT_ACTION, OBSERVATION, REWARD, TERMINATED, Specs
from suite.update import Update

WIDTH, FRAMES, SECONDS, TAU = 12, 128, 4.0, 0.005
QUICK = {"hyar": ["warmup=1000", "pretrain=20", "bounds_rows=500"]}
RECIPES = {"hyar-td3": ("td3", "hyar"), "none-td3": ("td3", "none"), "none-pdqn": ("pdqn", "none")}
SUBJECTS = ("torchrl", "ours", *RECIPES)
adam = partial(torch.optim.Adam, lr=3e-4, fused=True)


def minibatch(specs: Specs) -> TensorDict:
    """Random frames."""
    td = TensorDict(batch_size=[FRAMES])
    td[OBSERVATION], td["next", *OBSERVATION] = torch.randn(2, FRAMES, 1, specs.obs_dim)
    td[LATENT_ACTION], td["next", *REWARD] = torch.rand(FRAMES, 1, WIDTH) * 2 - 1, torch.randn(FRAMES, 1, 1)
    td["next", *TERMINATED] = torch.rand(FRAMES, 1, 1) < 0.3
    return td


def networks(specs: Specs) -> tuple[nn.Module, nn.Module]:
    """Actor and twin critics."""
    sizes = dict(share="all", agent_id=False, cells=(256, 256), activation="relu", init="default", device="cpu")
    return make_box_actor(specs, WIDTH, **sizes), make_critics(specs, WIDTH, heads=2, centralized=False, **sizes)


def ours(specs: Specs) -> Callable[[], int]:
    """One update of the recipe."""
    actor, critic = networks(specs)
    value, td = QValueLoss(actor, critic, gamma=0.99, smoothing=0.1), minibatch(specs)
    slow = SoftTargets((actor, value.slow_actor, TAU), (critic, value.slow_critic, TAU))
    update = Update("td3", {"critic": value, "actor": DeterministicPolicyLoss(actor, critic)}, None, optimizer=adam,
                    max_grad_norm={"critic": None, "actor": 10.0}, delay={"actor": 2}, targets={"actor": [slow]})
    return lambda: len(update.step(td)) and 1


class _OneCritic(nn.Module):
    def __init__(self, critics: nn.Module):
        super().__init__()
        self.assemble, self.head = critics.assemble, critics.heads[0]

    def forward(self, observation, action):
        return self.head(self.assemble(observation, action))


def torchrls(specs: Specs) -> Callable[[], int]:
    """The same with TorchRL's loss."""
    (actor, critic), keys, value = networks(specs), [OBSERVATION, LATENT_ACTION], ("agents", "q")
    loss = TD3Loss(TensorDictModule(actor, in_keys=keys[:1], out_keys=keys[1:]),
                   TensorDictModule(_OneCritic(critic), in_keys=keys, out_keys=[value]),
                   action_spec=Bounded(-1, 1, (WIDTH,)), policy_noise=0.1, noise_clip=0.5, loss_function="l2")
    loss.set_keys(action=LATENT_ACTION, state_action_value=value, reward=REWARD, done=TERMINATED, terminated=TERMINATED)
    loss.make_value_estimator(ValueEstimators.TD0, gamma=0.99)
    parts = [list(params.values(True, True)) for params in (loss.qvalue_network_params, loss.actor_network_params)]
    (critic_adam, actor_adam), slow, td, steps = map(adam, parts), SoftUpdate(loss, tau=TAU), minibatch(specs), 0

    def run() -> int:
        nonlocal steps
        steps += 1
        critic_adam.zero_grad()
        loss.value_loss(td)[0].backward()
        critic_adam.step()
        if steps % 2 == 0:
            actor_adam.zero_grad()
            loss.actor_loss(td)[0].backward()
            nn.utils.clip_grad_norm_(parts[1], 10.0)
            actor_adam.step()
            slow.step()
        return 1

    return run


def recipe(algorithm: str, codec: str, seconds: float) -> float:
    """Frames per CPU second of a recipe on Platform, behind its warm-up."""
    words = ["--algorithm", algorithm, "--codec", codec, "--evaluations", "0"]
    words += ["--codec-options", *QUICK[codec]] if codec in QUICK else []
    trainer = make_trainer(parse_cli(configure, Config, choosers=CHOOSERS, prog="", args=words), MemoryRun())
    batches = iter(trainer.collector)

    def run() -> int:
        trainer.iterate(batch := next(batches))
        trainer.iteration += 1
        return batch.numel()

    while trainer.collector.frames < 1600:
        run()
    return timed(run, seconds=seconds)


def worker(subject: str, seconds: float) -> float:
    """A rate per CPU second."""
    if subject in RECIPES:
        return recipe(*RECIPES[subject], seconds)
    specs = Specs.from_env(make_env("hybrid/platform", num_envs=1))
    return timed({"ours": ours, "torchrl": torchrls}[subject](specs), seconds=seconds)


def section(rounds: int, seconds: float = SECONDS) -> list[str]:
    """Every subject takes its turn in each round, in a fresh process."""
    found: dict[str, list] = {subject: [] for subject in SUBJECTS}
    for subject in tqdm(SUBJECTS * rounds, unit="process"):
        found[subject].append(attempt("-m", "recipes.speed_hybrid", subject, seconds))
    lines = ["", "Training on hybrid actions (Platform sizes), per CPU second of one thread"]
    for subject, rates in found.items():
        good = [rate for rate in rates if isinstance(rate, float)]
        unit = "frames, each with an update" if subject in RECIPES else "TD3 updates"
        pairs = [a / b for a, b in zip(rates, found["torchrl"], strict=True)
                 if isinstance(a, float) and isinstance(b, float)]
        against = f", {ratio(pairs)} times torchrl" if subject == "ours" and pairs else ""
        wrong = "  ".join(dict.fromkeys(rate for rate in rates if isinstance(rate, str)))
        lines.append(f"{subject:10} {median(good):7.0f} {unit}{against}  {wrong}" if good else f"{subject:10} {wrong}")
    return [line.rstrip() for line in lines]


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    print(json.dumps(worker(sys.argv[1], float(sys.argv[2]))))
