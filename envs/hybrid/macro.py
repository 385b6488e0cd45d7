"""Macro steps: one action of the agent is many sub-steps of a simulator, and each row needs another number of them."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from envs import check_options
from envs.base import Tensors
from envs.compiling import backend_of, one_graph
from envs.hybrid.base import HybridEnv

ASK_EVERY = {"cpu": 4}  # sub-steps between two questions whether a row is still going; a device must be waited for: 16
FREE = (None, -1, -1, -1, -1)  # the rows of a `Move`
KEEP, FEW = 0.8, 16  # share of rows still going below which a CPU drops the others; fewer rows are not worth it

# sub-step int32 [], work [C, M], keys int32 [D, M] -> work, whether rows go on, bool [M]
SubStep = Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]
# the same with active bool [M] and count int32 [M] behind the keys and in the result; see `masked`
Move = Callable[[Tensor, Tensor, Tensor, Tensor, Tensor], tuple[Tensor, Tensor, Tensor]]


class Ran(NamedTuple):
    """What `run_sub_steps` gives: the work where each row stopped, sub-steps int32 [N], and who was cut, bool [N]."""

    work: Tensor
    count: Tensor
    cut: Tensor


# ---------------------------------------------------------------------- the loop

def masked(sub_step: SubStep) -> Move:
    """``sub_step`` for the active rows alone, which are counted; the others keep what they have."""
    def move(k: Tensor, work: Tensor, keys: Tensor, active: Tensor, count: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        following, going = sub_step(k, work, keys)
        return torch.where(active, following, work), active & going, count + active

    return move


def run_sub_steps(move: Move, work: Tensor, keys: Tensor, *, active: Tensor, limit: int) -> Ran:
    """Repeat ``move`` until no row is active; a row stops after the first sub-step that says so.

    Args:
        move: a `masked` sub-step. ``work``: [C, N] at the start, the numbers of a row in a column.
        keys: int32 [D, N], from which a row's chance is made; they say nothing of other rows, so that what a row meets
            does not depend on how long others take.
        active: bool [N]; the other rows make no sub-step.
        limit: rows that are still active after this many sub-steps are cut there.
    """
    device = work.device.type
    every, shrinks = ASK_EVERY.get(device, 16), device == "cpu"
    sub_steps, count = torch.arange(limit, dtype=torch.int32, device=work.device), active.to(torch.int32) * 0
    whole, rows = (work.clone(), active.clone(), count.clone()), None  # rows: of whole that are in work, None for all
    for k in range(limit):
        work, active, count = move(sub_steps[k], work, keys, active, count)
        if k % every != every - 1:
            continue
        left = int(active.sum())
        if not left:
            break
        if shrinks and FEW <= left < KEEP * len(active):
            kept = active.nonzero().squeeze(-1)
            rows = _put(whole, rows, (work, active, count))
            rows, work, keys, active, count = (x.index_select(-1, kept) for x in (rows, work, keys, active, count))
    _put(whole, rows, (work, active, count))
    return Ran(whole[0], whole[2], whole[1])


def _put(whole: tuple[Tensor, ...], rows: Tensor | None, parts: tuple[Tensor, ...]) -> Tensor:
    """Write ``parts`` to these rows of ``whole``, in place; the rows."""
    if rows is None:
        rows = torch.arange(len(parts[1]), device=parts[1].device)
    for out, part in zip(whole, parts, strict=True):
        out.index_copy_(-1, rows, part)
    return rows


# ---------------------------------------------------------------------- chance

def uniforms(sub_step: Tensor, keys: Tensor, count: int) -> Tensor:
    """Uniform numbers float32 [count, M] in [0, 1) of a sub-step (int32 []), from ``keys`` int32 [2, M] of the rows.

    Each number is a hash of the row's keys and of its own index: 24 bits of two rounds of multiplying and folding, as
    in the finalisers of SplitMix and MurmurHash, with the second key between the rounds.
    """
    index = torch.arange(count, dtype=torch.int32, device=keys.device) + sub_step * count
    bits = keys[0] ^ (index * -1640531527).unsqueeze(-1)  # the odd number nearest to 2**32 over the golden ratio
    bits = (bits ^ (bits >> 16 & 0xFFFF)) * 2146121005 + keys[1]
    bits = (bits ^ (bits >> 15 & 0x1FFFF)) * -2073254261
    return ((bits ^ (bits >> 15 & 0x1FFFF)) >> 8 & 0xFFFFFF).to(torch.float32) * 2.0**-24


def normals(sub_step: Tensor, keys: Tensor) -> Tensor:
    """Two independent normal numbers float32 [2, M] of a sub-step, by Box and Muller; see `uniforms`."""
    radius, angle = uniforms(sub_step, keys, 2)
    radius = (-2.0 * torch.log(radius + 2.0**-25)).sqrt()
    angle = 2.0 * math.pi * angle
    return torch.stack([radius * angle.cos(), radius * angle.sin()])


# ---------------------------------------------------------------------- the environment

class MacroEnv(HybridEnv):
    """A hybrid task whose steps are macro steps; ``_advance`` sets ``cut`` bool [N], and those rows are truncated.

    Starts are drawn from ``generator``. What happens in a step comes from ``keys``, which are drawn anew for every
    step, from the seed and the number of steps so far alone: the future of a row depends neither on how long the others
    took nor on which of them were reset.

    Args:
        sub_step: see `SubStep`; its work has ``channels`` numbers per row.
        backend: of ``torch.compile``, which makes one graph of the sub-step; or None.
        options: see `HybridEnv`.
    """

    def __init__(self, *, sub_step: SubStep, channels: int, backend: str | None, **options: Any):
        super().__init__(**options)
        self.noise = torch.Generator(self.device)
        self.cut = torch.zeros(self.num_envs, dtype=torch.bool, device=self.device)
        self.move = one_graph(masked(sub_step), backend, *example(channels, self.device),
                              free=FREE)

    def draw_keys(self) -> Tensor:
        """The keys of this step, int32 [2, N]."""
        # an odd constant's multiples are far apart in the upper half, and a generator reads 32 bits of its seed
        self.noise.manual_seed((self.turn * 0x9E3779B97F4A7C15 + self.seed * 0xBF58476D1CE4E5B9) >> 32 & 0xFFFFFFFF)
        keys = torch.empty(2, self.num_envs, dtype=torch.int64, device=self.device)
        return keys.random_(-2**31, 2**31, generator=self.noise).to(torch.int32)

    def _simulate(self, actions: Tensors) -> tuple[Tensor, ...]:
        reward, terminated = super()._simulate(actions)
        self.turn += 1
        return reward, terminated, self.cut & ~terminated

    def _capture(self) -> dict[str, Any]:
        return super()._capture() | {"turn": self.turn, "seed": self.seed}

    def _restore(self, state: dict[str, Any], mask: Tensor | None = None) -> None:
        super()._restore(state, mask)
        if mask is None:
            self.turn, self.seed = state["turn"], state["seed"]

    def _set_seed(self, seed: int | None) -> None:
        super()._set_seed(seed)
        self.turn, self.seed = 0, 0 if seed is None else seed


def example(channels: int, device: torch.device) -> tuple[Tensor, ...]:
    """Inputs of a `Move`: the sub-step, the work of `FEW` rows, their keys, who is active, sub-steps done."""
    return (torch.zeros((), dtype=torch.int32, device=device), torch.ones(channels, FEW, device=device),
            torch.zeros(2, FEW, dtype=torch.int32, device=device), torch.ones(FEW, dtype=torch.bool, device=device),
            torch.zeros(FEW, dtype=torch.int32, device=device))


def macro_options(name: str, options: dict[str, Any], **switches: bool) -> dict[str, Any]:
    """``switches`` with the values that ``options`` give, and the ``backend`` that their ``compile`` asks for.

    Raises:
        ValueError: an option of hybrid/``name`` that is not known, or is not True or False.
    """
    known = [*switches, "compile"]
    check_options(f"hybrid/{name}", options, known)
    given = switches | options
    backend = backend_of(given.pop("compile", False))
    for option, value in given.items():
        if not isinstance(value, bool):
            raise ValueError(f"{option} must be True or False, got {value!r}")
    return given | {"backend": backend}
