"""Algorithms, codecs and tasks of the hybrid-action recipe: what each word changes in the Config, as data.

The numbers are those of the HyAR program and its baselines (Li et al., ICLR 2022); the latter explore, discount and
clip otherwise than HyAR, and tuning ``equal`` gives them what HyAR-TD3 has. Order of precedence: flag given by the user
> tuning > task > algorithm with codec > default of the Config field.
"""

from __future__ import annotations

from typing import Any

from recipes.hybrid_config import Config
from suite.config import check_choice
from suite.losses.codecs import CODECS

_CONSTANT = {"exploration_start": 0.1, "exploration_end": 0.1}
_DDPG = {"policy_delay": 1, "smoothing": 0.0}
_PDQN = {"gamma": 0.95, "lr": 1e-4, "critic_lr": 1e-3, "tau": 0.001, "critic_tau": 0.01, "max_grad_norm": 1.0,
         "critic_max_grad_norm": 1.0, "exploration_end": 0.01, "policy_delay": 1, "smoothing": 0.0}
_PPO = {"num_envs": 16, "steps": 128, "minibatch_size": 256, "lr": 3e-4, "critic_lr": 1e-3, "max_grad_norm": 0.5,
        "critic_max_grad_norm": 0.5, "init": "orthogonal", "activation": "tanh", "checkpoint_every": 20}

# algorithm: (composition, what it changes with codec none)
ALGORITHMS: dict[str, tuple[str, dict[str, Any]]] = {
    "td3": ("deterministic", _CONSTANT | {"smoothing": 0.2}),
    "ddpg": ("deterministic", _CONSTANT | _DDPG | {"max_grad_norm": 1.0}),
    "hhqn": ("deterministic", _CONSTANT | _DDPG),
    "hhqn_td3": ("deterministic", _CONSTANT | _DDPG),
    "pdqn": ("pdqn", _PDQN),
    "pdqn_td3": ("pdqn", _PDQN),
    "ppo": ("on_policy", _PPO),
    "hppo": ("on_policy", _PPO | {"num_envs": 1, "steps": 50, "minibatch_size": 50, "lr": 1e-4, "entropy_coef": 0.0,
                                  "actor_epochs": 2, "critic_lambda": 1.0,
                                  "max_grad_norm": None, "critic_max_grad_norm": None, "init": "default",
                                  "activation": "relu", "checkpoint_every": 500}),
}
ANY_CODEC = ("td3", "ddpg")
LATENT = {"td3": {}, "ddpg": _DDPG | {"lr": 1e-4, "critic_lr": 1e-3, "max_grad_norm": 1.0}}  # with a learned codec

_MOVE = {"frames": 1_000_000, "eval_episodes": 50}
_GOAL = {"frames": 300_000}
TASKS: dict[str, dict[str, Any]] = {"platform": {"frames": 200_000}, "goal": _GOAL, "hard_goal": _GOAL,
                                    "catch_point": _MOVE, "simple_move": _MOVE, "hard_move": _MOVE}
_SLOW = {"gamma": 0.9, "lr": 1e-4, "tau": 0.001}
# of one algorithm on one task, besides
SPECIAL: dict[tuple[str, str, str], dict[str, Any]] = {
    ("hyar", "ddpg", "goal"): _SLOW | {"lr": 1e-5, "tau": 0.0001, "critic_tau": 0.001, "buffer_size": 1_000_000},
    ("hyar", "ddpg", "hard_goal"): _SLOW,
    ("hyar", "ddpg", "catch_point"): {"buffer_size": 1_000_000},
    ("hyar", "ddpg", "simple_move"): {"buffer_size": 1_000_000},
    ("hyar", "ddpg", "hard_move"): {"buffer_size": 1_000_000},
    ("hyar", "td3", "hard_move"): {"buffer_size": 1_000_000},
}
for _name in ("pdqn", "pdqn_td3"):
    SPECIAL["none", _name, "platform"] = {"gamma": 0.9, "max_grad_norm": 10.0, "critic_max_grad_norm": 10.0,
                                          "buffer_size": 10_000, "first_update": 500, "pass_through": True}
    for _task in ("goal", "hard_goal"):
        SPECIAL["none", _name, _task] = {"lr": 1e-5, "critic_tau": 0.1, "buffer_size": 20_000,
                                         "pass_through": _task == "goal"}

TUNINGS = ("paper", "equal")
# what HyAR-TD3 has on a task, and with tuning equal everything that replays
TUNED = ("gamma", "lr", "critic_lr", "max_grad_norm", "critic_max_grad_norm", "tau", "critic_tau", "buffer_size",
         "first_update", "exploration_start", "exploration_end", "exploration_episodes")

# warm-ups of the learned codec in frames: as many as its episodes of random actions had on average
_HYAR: dict[str, dict[str, Any]] = {
    "platform": {"warmup": 10_900}, "goal": {"warmup": 21_000, "memory": 2_000_000},
    "hard_goal": {"warmup": 20_200, "memory": 2_000_000},
    "catch_point": {"warmup": 105_500, "embed_dim": 4, "latent_dim": 4},
    "hard_move": {"warmup": 144_500}, "simple_move": {"warmup": 143_000, "refresh_every": 100},
}


def kind(task: str) -> str:
    """``hybrid/hard_move-4`` -> ``hard_move``: what its settings are listed under."""
    return task.partition("/")[2].partition("-")[0]


def overrides(algorithm: str, codec: str, task: str, tuning: str = "paper",
              codec_options: dict[str, Any] | None = None) -> dict[str, Any]:
    """What the four words change in the Config; ValueError for an unknown one, or a pair that does not fit.

    ``codec_options`` are those given by hand (none at all: the codec's own defaults); the frames follow their warm-up.
    """
    check_choice("algorithm", algorithm, ALGORITHMS)
    check_choice("codec", codec, CODECS)
    check_choice("tuning", tuning, TUNINGS)
    if codec != "none" and algorithm not in ANY_CODEC:
        raise ValueError(f"algorithm {algorithm!r} acts in the hybrid actions themselves: give --codec none, or one of "
                         f"{list(ANY_CODEC)} with codec {codec!r}")
    own = ALGORITHMS[algorithm][1] if codec == "none" else LATENT[algorithm]
    learned = _HYAR.get(kind(task), {})
    options: dict[str, Any] = {}
    if codec == "hyar":
        options["codec_options"] = learned
        usual, kept = CODECS[codec].option_defaults()["warmup"], {} if codec_options == {} else learned
        warmup = (kept | (codec_options or {})).get("warmup", usual)
        steps = TASKS[kind(task)]["frames"] if kind(task) in TASKS else Config.frames - usual
        if type(warmup) is int and warmup > 0:  # else the codec will refuse it
            options["frames"] = steps + warmup  # the published steps come after the warm-up
    elif codec == "embedding":  # HyAR without its VAE
        options["codec_options"] = {name: value for name, value in learned.items() if name == "embed_dim"}
    special = SPECIAL.get(("none" if codec == "none" else "hyar", algorithm, kind(task)), {})
    found = own | TASKS.get(kind(task), {}) | special | options
    if tuning == "equal":
        if ALGORITHMS[algorithm][0] == "on_policy":
            raise ValueError(f"tuning 'equal' is for algorithms that replay, not for {algorithm!r}")
        model = Config(**overrides("td3", "hyar", task))
        found |= {name: getattr(model, name) for name in TUNED}
        if algorithm == "td3":
            found["smoothing"] = model.smoothing
        if ALGORITHMS[algorithm][0] == "pdqn":  # a probability, where HyAR has a standard deviation
            found["exploration_end"] = _PDQN["exploration_end"]
    return found | {"algorithm": algorithm, "codec": codec, "task": task, "tuning": tuning}
