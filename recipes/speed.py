"""How fast it is, as ratios against TorchRL's own collector, raw VMAS, BenchMARL and the environments' packages.

    python -m recipes.speed                                  # collection
    python -m recipes.speed --benchmarl <python with it>     # and training against BenchMARL 1.5.2
    python -m recipes.speed --benchmarl make                 # makes that environment first (it needs torchrl < 0.12)
    python -m recipes.speed --device cuda                    # the whole loop on a GPU, eager, compiled, graphs
    python -m recipes.speed --environments                   # batched environments against lbforaging, rware, VMAS
    python -m recipes.speed --environments --device cuda     # the same on a GPU, eager, compiled, graphs
    python -m recipes.speed --state-models smpe moa          # what state models cost beside their baselines
    python -m recipes.speed --hybrid                         # training on hybrid actions, against TorchRL's TD3Loss

Every measurement runs in a fresh process with one thread; subjects take turns in rounds, and a ratio is taken inside
one round. Printed: median of the rounds' ratios, with the smallest and largest.
"""

from __future__ import annotations

from pathlib import Path

import tyro

from envs import resolve_device
from recipes import speed_devices, speed_envs, speed_hybrid, speed_state_models
from recipes.presets import COST_STUDIES
from recipes.speed_loop import MODES, TASKS, loop
from recipes.speed_sections import collection, make_environment, training
from suite.config import check_names, check_positive, run_cli


def speed(*, rounds: int = 3, benchmarl: str | None = None, epochs: int = 4, iterations: int = 5,
          collect: bool = True, device: str | None = None, environments: bool = False,
          state_models: tuple[str, ...] = (), hybrid: bool = False, tasks: tuple[str, ...] = (),
          envs: tuple[int, ...] = (), steps: int = 100, modes: tuple[str, ...] = (),
          seconds: float | None = None) -> None:
    """Measure and print.

    Args:
        rounds: interleaved repetitions.
        benchmarl: a Python with BenchMARL 1.5.2, or 'make'; None leaves the training comparison out.
        epochs: epochs of the training comparison, and of the loop.
        iterations: training iterations per run.
        collect: measure collection; not with a device, environments or state models.
        device: measure the whole loop, or the environments, on this device: cuda, or cpu with small sizes.
        environments: measure environments alone: against their packages, or on a device.
        state_models: measure the training of these losses against their baselines, time and memory.
        hybrid: measure training on hybrid actions.
        tasks: tasks of the loop or of the environments; none given takes the section's own.
        envs: numbers of environments; none given takes the section's own (the loop: 4096 and 32768).
        steps: steps per batch of the loop.
        modes: eager, compile, graphs; none given takes all that the device can do.
        seconds: length of one measurement of environments; None takes the section's own.
    """
    check_positive({"rounds": rounds, "iterations": iterations})
    check_names("mode", modes, MODES)
    check_names("state model", state_models, COST_STUDIES)
    if state_models:
        lines = speed_state_models.section(rounds, state_models)
    elif hybrid:
        lines = speed_hybrid.section(rounds, seconds or speed_hybrid.SECONDS)
    elif device is not None:
        kind = resolve_device(device).type
        modes = modes or tuple(mode for mode in MODES if kind == "cuda" or mode != "graphs")
        if environments:
            lines = speed_devices.section(rounds, device, modes, tasks or speed_devices.TASKS,
                                          envs or speed_devices.SIZES, seconds or speed_devices.SECONDS)
        else:
            lines = loop(rounds, device, tasks or TASKS, envs or (4096, 32768), modes, steps, epochs, iterations)
    elif environments:
        check_names("task", tasks, speed_envs.TASKS)
        lines = speed_envs.section(rounds, tasks or tuple(speed_envs.TASKS), envs, seconds or speed_envs.SECONDS)
    else:
        if benchmarl == "make":
            benchmarl = make_environment(Path("runs") / "benchmarl-env")
        lines = collection(rounds) if collect else []
        lines += training(rounds, benchmarl, epochs, iterations) if benchmarl else []
    print("\n".join(lines))


if __name__ == "__main__":
    run_cli(lambda: tyro.cli(speed, prog="python -m recipes.speed"))
