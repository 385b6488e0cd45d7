"""Environments on a device as `recipes.speed --environments --device cuda` measures them: eager, compiled, CUDA graphs.

    python -m recipes.speed_graphs foraging/2s-9x9-3p-2f-coop graphs cuda 1.0 4096 32768    # one task, one process

A step is what a collector does: actions, one step of all environments, and a restart of those that are done. Actions
are random or sampled from a 2 x 64 actor. Rates are steps of single environments per second of wall time on a GPU, and
per CPU second of one thread on a CPU.
"""

from __future__ import annotations

import json
import sys
import time
import warnings
from collections.abc import Callable

import torch
from torch import Tensor

from envs import make_env
from recipes.speed_actions import policy_actions, random_actions
from recipes.speed_envs import TASKS as SECTION

DRIVES = ("random", "policy")
WARM = 5  # steps


class Loop:
    """``step`` advances ``env``; what it carries from step to step stays in the same tensors, as a graph needs it."""

    def __init__(self, env, act: Callable[[dict], dict]):
        self.env, self.act = env, act
        self.seen = env.reset_tensors()

    def advance(self) -> None:
        """One step of a collector."""
        tensors = self.act(dict(self.seen))
        out = self.env.step_tensors({key: tensors[key] for key in self.env.action_keys})
        done = out["done"]
        if self.env.cheap_reset or done.any():
            out = self.env.reset_tensors(done.squeeze(-1))
        self.seen = {key: out[key] for key in self.seen}

    def in_place(self) -> None:
        """One step whose results are copied over what it started from."""
        before = carried(self)
        self.advance()
        for name, new in carried(self).items():
            if new is not before[name]:
                before[name].copy_(new)
        put_back(self, before)

    def captured(self) -> Callable[[], None]:
        """`in_place` as one CUDA graph; the random numbers go on from replay to replay."""
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(WARM):
                self.in_place()
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        for value in vars(self.env).values():
            if isinstance(value, torch.Generator):
                graph.register_generator_state(value)
        with torch.cuda.graph(graph):
            self.in_place()
        return graph.replay


def carried(loop: Loop) -> dict[str | tuple, Tensor]:
    """The observation and every tensor that the environment holds, alone or in a named tuple."""
    found: dict[str | tuple, Tensor] = {("seen", key): value for key, value in loop.seen.items()}
    for name, value in vars(loop.env).items():
        if isinstance(value, Tensor):
            found[name] = value
        elif hasattr(value, "_fields"):
            found |= {(name, field): x for field, x in value._asdict().items() if isinstance(x, Tensor)}
    return found


def put_back(loop: Loop, tensors: dict[str | tuple, Tensor]) -> None:
    """Let observation and environment hold these tensors."""
    for name, value in tensors.items():
        if isinstance(name, str):
            setattr(loop.env, name, value)
        elif name[0] == "seen":
            loop.seen[name[1]] = value
        else:
            setattr(loop.env, name[0], getattr(loop.env, name[0])._replace(**{name[1]: value}))


@torch.no_grad()
def rate(task: str, num_envs: int, mode: str, device: str, drive: str, seconds: float) -> float:
    """Steps per second of one task and size."""
    compiled = {"compile": True} if mode != "eager" else {}
    env = make_env(task, num_envs=num_envs, device=device, **SECTION.get(task, ("", (), {}))[2] | compiled)
    loop = Loop(env, policy_actions(env, bool(compiled)) if drive == "policy" else random_actions(env))
    cuda = env.device.type == "cuda"
    step = loop.captured() if mode == "graphs" and cuda else loop.in_place if mode == "graphs" else loop.advance
    clock, wait = (time.perf_counter, torch.cuda.synchronize) if cuda else (time.process_time, lambda: None)
    for _ in range(WARM):
        step()
    wait()
    start, steps, burst = clock(), 0, 1
    while clock() - start < seconds:
        for _ in range(burst):
            step()
        wait()
        steps, burst = steps + burst, min(2 * burst, 128)
    return steps * num_envs / (clock() - start)


def worker(task: str, mode: str, device: str, seconds: float, *sizes: int) -> list[list[float | str]]:
    """Steps per second for each size with random actions and with the policy; a size that fails says why."""
    out = []
    for num_envs in sizes:
        try:
            out.append([rate(task, num_envs, mode, device, drive, seconds) for drive in DRIVES])
        except (RuntimeError, ValueError) as error:
            out.append([str(error).strip().splitlines()[0][:200]] * len(DRIVES))
    return out


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    task, mode, device, seconds, *sizes = sys.argv[1:]
    torch.set_num_threads(1)
    print(json.dumps(worker(task, mode, device, float(seconds), *map(int, sizes))))
