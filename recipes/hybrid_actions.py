"""Hybrid discrete-continuous actions: an algorithm in the action space that a codec gives it, on any hybrid task.

    python -m recipes.hybrid_actions --task hybrid/platform --codec hyar --algorithm td3
"""

from __future__ import annotations

import dataclasses
import os
import shlex
import warnings

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # spinning OpenMP threads stall a shared CPU; before torch

import torch

from envs import make_env
from recipes.hybrid_checks import check_config, check_specs, check_used, never_learns, unread
from recipes.hybrid_compositions import COMPOSITIONS
from recipes.hybrid_config import Config
from recipes.hybrid_presets import ALGORITHMS, ANY_CODEC, overrides
from recipes.run_checks import check_options, check_resume
from recipes.running import assemble, launch
from recipes.stored_config import stored_config
from suite import distributed
from suite.config import as_flags, parse_cli, parse_options, run_cli
from suite.losses import Loss
from suite.losses.codecs import CODECS
from suite.run import MemoryRun, Run
from suite.specs import Specs
from suite.trainer import Trainer

# the flags whose words decide other defaults
CHOOSERS = ("algorithm", "codec", "codec_options", "task", "tuning", "resume")


def configure(chosen: dict[str, str]) -> Config:
    """The Config that algorithm, codec and its options, task and tuning, or a run to resume, stand for."""
    if "resume" in chosen:
        stored = stored_config(Config, chosen["resume"], task=chosen.get("task"))
        return dataclasses.replace(stored, resume=chosen["resume"], overwrite=False)
    algorithm = chosen.get("algorithm", Config.algorithm)
    usual = Config.codec if algorithm in ANY_CODEC else "none"
    options = parse_options(chosen["codec_options"].splitlines()) if "codec_options" in chosen else None
    return Config(**overrides(algorithm, chosen.get("codec", usual), chosen.get("task", Config.task),
                              chosen.get("tuning", Config.tuning), options))


def untouched(cfg: Config) -> Config:
    """What the algorithm, codec (with its warm-up), task and tuning of a config stand for."""
    return Config(**overrides(cfg.algorithm, cfg.codec, cfg.task, cfg.tuning, cfg.codec_options))


def make_trainer(cfg: Config, run: Run | MemoryRun) -> Trainer:
    """Everything the run needs, composed in the order in which it is used."""
    untouched(cfg)  # refuses what does not fit together
    check_config(cfg)
    torch.set_num_threads(cfg.threads)
    torch.manual_seed(cfg.seed)
    common = dict(device=cfg.device, max_steps=cfg.max_steps, truncate=cfg.truncate, **cfg.task_options)
    env = make_env(cfg.task, num_envs=cfg.num_envs, seed=cfg.seed + 1000 * distributed.rank(), **common)
    specs = Specs.from_env(env)
    check_specs(cfg, specs)
    check_used(cfg, untouched(cfg))
    codec = make_codec(cfg, specs)
    parts = COMPOSITIONS[ALGORITHMS[cfg.algorithm][0]](cfg, specs, codec)
    for remark in (*codec.plan(cfg.frames), *never_learns(cfg, codec.warmup)):
        warnings.warn(remark, stacklevel=2)
    return assemble(cfg, run, env, lambda episodes, seed: make_env(cfg.task, num_envs=episodes, seed=seed, **common),
                    parts, [codec], steps=cfg.steps, frames=cfg.frames, weights={"task": 1.0}, team=cfg.team_reward)


def make_codec(cfg: Config, specs: Specs) -> Loss:
    """The codec by name, with its options; a wrong option is refused with the right ones."""
    codec = CODECS[cfg.codec]
    check_options(f"codec {cfg.codec!r}", cfg.codec_options, codec)
    return codec(specs, **cfg.codec_options).to(cfg.device)


def swap_flags(cfg: Config) -> str:
    """The flags of this run with another codec, quoted for a shell."""
    other = "none" if cfg.codec != "none" else "hyar"
    algorithm = cfg.algorithm if other == "none" or cfg.algorithm in ("td3", "ddpg") else "td3"
    default = untouched(cfg)
    lost = {"codec", "algorithm", "codec_options", "run_dir", "resume", "overwrite", *unread(algorithm)}
    kept = {name: value for name, value in vars(cfg).items() if name not in lost and value != getattr(default, name)}
    words = overrides(algorithm, other, cfg.task, cfg.tuning)
    swapped = Config(**words | kept)
    try:
        check_config(swapped)
    except ValueError:  # what was given does not fit the other's own numbers
        swapped = Config(**words | {"seed": cfg.seed, "task_options": cfg.task_options})
    always = ("task", "codec", "algorithm", *(["tuning"] if cfg.tuning != Config.tuning else []))
    return shlex.join(as_flags(swapped, untouched(swapped), always=always))


def main() -> None:
    """The command line."""
    cfg = parse_cli(configure, Config, choosers=CHOOSERS, prog="python -m recipes.hybrid_actions")
    check_resume(cfg, configure)
    launch(cfg, make_trainer, module="recipes.hybrid_actions", swap=swap_flags,
           name=f"hybrid_actions/{cfg.task.replace('/', '.')}/{cfg.codec}-{cfg.algorithm}")


if __name__ == "__main__":
    run_cli(main)
