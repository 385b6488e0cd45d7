"""The whole state of a VMAS simulator: find it, copy it, put it back, and reset some rows without touching the others.

Everything a VMAS simulator knows hangs off its scenario object. `find_slots` walks that graph breadth first and names
every entry by its path, so that a state saved from one simulator fits into another of the same scenario.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from enum import Enum
from functools import cache
from types import FunctionType, MethodType
from typing import Any

import numpy as np
import torch
from torch import Tensor
from vmas.simulator.core import Entity
from vmas.simulator.scenario import BaseScenario
from vmas.simulator.utils import Color

WALKED = ("vmas.", "envs.vmas", "torch.distributions.")  # packages whose objects hold simulator state
# one vector for all rows; named, because with as many rows as entries it would look like one number per row
FLAT = ("_color", "_gravity", "_u_range_tensor", "_u_multiplier_tensor", "_u_noise_tensor")
# tables that the world makes anew in every step before it reads them
SCRATCH = ("forces_dict", "torques_dict", "entity_index_map")

Entry = tuple[Any, Any, Any]  # container, key, value


@dataclass
class Slots:
    """Entries of the object graph by path, each as (container, key, value).

    Attributes:
        rows: tensors with one row per environment. ``shared``: other tensors.
        plain: numbers, strings, None and colours. ``links``: objects that have another, earlier path as their home.
        boxes: home path -> object. ``homes``: id of an object -> home path.
        nested: where each box hangs, as (container, key, box, number of entries).
    """

    rows: dict[str, Entry] = field(default_factory=dict)
    shared: dict[str, Entry] = field(default_factory=dict)
    plain: dict[str, Entry] = field(default_factory=dict)
    links: dict[str, Entry] = field(default_factory=dict)
    boxes: dict[str, Any] = field(default_factory=dict)
    homes: dict[int, str] = field(default_factory=dict)
    nested: list[tuple[Any, Any, Any, int]] = field(default_factory=list)

    def stands(self) -> bool:
        """Whether every container still hangs where it hung, with as many entries."""
        return all(container[key] is box and len(_items(box)[0]) == size for container, key, box, size in self.nested)

    def again(self) -> Slots | None:
        """The same entries with their present values, five times as fast as a walk; None if the graph has changed."""
        if not self.stands():
            return None
        now = Slots(boxes=self.boxes, homes=self.homes, nested=self.nested)
        for old, new in ((self.rows, now.rows), (self.shared, now.shared)):
            for path, (container, key, value) in old.items():
                present = container.get(key) if isinstance(container, dict) else container[key]
                if not isinstance(present, Tensor) or present.shape != value.shape:
                    return None
                new[path] = (container, key, present)
        for path, (container, key, _) in self.plain.items():
            present = container.get(key, Tensor) if isinstance(container, dict) else container[key]
            if _kind(type(present)) != "plain":
                return None
            now.plain[path] = (container, key, present)
        for path, (container, key, value) in self.links.items():
            if container[key] is not value:
                return None
            now.links[path] = (container, key, value)
        return now

    def entry(self, path: str) -> tuple[Any, Any] | None:
        """Container and key of a path, also of one that does not exist yet; None if nothing can be put there."""
        for entries in (self.rows, self.shared, self.plain, self.links):
            if path in entries:
                return entries[path][:2]
        parent, _, name = path.rpartition("/")
        box = self.boxes.get(parent)
        if box is None and name.startswith("@") and (place := self.entry(parent)):
            box = place[0][place[1]] = self.boxes[parent] = {}  # a table that appears with the first step
        if box is None or isinstance(box, (list, tuple)):
            return None
        if not isinstance(box, dict):
            return box.__dict__, name
        return box, self.boxes[""].world.entities[int(name[1:])] if name.startswith("@") else name


@cache
def _kind(cls: type) -> str:
    if issubclass(cls, Tensor):
        return "tensor"
    if issubclass(cls, (bool, int, float, str, type(None), Color)):
        return "plain"
    if issubclass(cls, (dict, list, tuple)):
        return "box"
    leaf = issubclass(cls, (type, Enum, FunctionType, MethodType))
    return "box" if not leaf and f"{cls.__module__}.".startswith(WALKED) else "leaf"


def _items(box: Any) -> tuple[Any, Any]:
    if isinstance(box, dict):
        return box, box.items()
    if isinstance(box, (list, tuple)):
        return box, enumerate(box)
    return box.__dict__, box.__dict__.items()


def _name(key: Any, bodies: dict[int, str]) -> str:
    if isinstance(key, str):
        return key
    if isinstance(key, Entity):  # tables with an entry per body
        return bodies[id(key)]
    return "+".join(sorted(key)) if isinstance(key, frozenset) else str(key)  # joints: names of the two bodies


def find_slots(scenario: BaseScenario, num_envs: int) -> Slots:
    """Every entry reachable from ``scenario``; breadth first, so that bodies are at home in the world's own lists."""
    slots = Slots(boxes={"": scenario}, homes={id(scenario): ""})
    bodies = {id(entity): f"@{k}" for k, entity in enumerate(scenario.world.entities)}
    queue = deque([("", scenario)])
    while queue:
        path, box = queue.popleft()
        container, items = _items(box)
        fixed = isinstance(container, tuple)
        for key, value in items:
            kind = _kind(type(value))
            if kind == "leaf" or (kind == "box" and key in SCRATCH):
                continue
            here = f"{path}/{_name(key, bodies)}"
            if kind == "box":
                if id(value) not in slots.homes:
                    slots.homes[id(value)], slots.boxes[here] = here, value
                    slots.nested.append((container, key, value, len(_items(value)[0])))
                    queue.append((here, value))
                elif not fixed:
                    slots.links[here] = (container, key, value)
            elif fixed:
                continue
            elif kind == "plain":
                slots.plain[here] = (container, key, value)
            elif value.ndim and value.shape[0] == num_envs and not (value.ndim == 1 and key in FLAT):
                slots.rows[here] = (container, key, value)
            else:
                slots.shared[here] = (container, key, value)
    return slots


class SlotFinder:
    """`find_slots` for one scenario, again and again: walks the graph only when it has changed."""

    def __init__(self, scenario: BaseScenario, num_envs: int):
        self.scenario, self.num_envs, self.last = scenario, num_envs, None

    def __call__(self) -> Slots:
        """The present entries."""
        size = len(self.scenario.__dict__)
        known = self.last.again() if self.last is not None and size == self.size else None
        self.last, self.size = known or find_slots(self.scenario, self.num_envs), size
        return self.last

    def rows(self, paths: Collection[str]) -> Iterator[tuple[str, Any, Any, Tensor]]:
        """Path, container, key and present value of those of ``paths`` that are rows now; cheaper than a call."""
        known = self.last is not None and len(self.scenario.__dict__) == self.size and self.last.stands()
        entries = self.last.rows if known else self().rows
        for path in paths:
            if path in entries:
                container, key, _ = entries[path]
                now = container.get(key) if isinstance(container, dict) else container[key]
                if isinstance(now, Tensor):
                    yield path, container, key, now


class FreshRows:
    """Initial states in store: one vectorised reset of all rows serves many partial ones.

    Row k of the store is an independent draw of an initial state and is handed out once, to row k; the store is
    filled anew when a row is asked for twice. A partial reset then costs a selection per tensor.
    """

    def __init__(self, find: SlotFinder, reset: Callable[[], None]):
        self.find, self.reset = find, reset
        self.rows: dict[str, Tensor] = {}
        self.left: Tensor | None = None  # [N], True where the stored row was not handed out

    def put(self, mask: Tensor) -> None:
        """Start new episodes in the rows where ``mask`` [N] is True; the others stay exact.

        What all rows share (a goal drawn once for the whole batch, a colour) keeps its value.
        """
        if self.left is None or (mask & ~self.left).any():
            self._fill(mask)
        merged, masks = {}, _Masks(mask)
        for path, container, key, now in self.find.rows(self.rows):
            new = self.rows[path]
            if new.shape == now.shape:
                pair = (id(now), id(new))  # entries that are one tensor stay one tensor
                if pair not in merged:
                    merged[pair] = torch.where(masks[new.ndim], new, now)
                container[key] = merged[pair]
        self.left = self.left & ~mask

    def _fill(self, mask: Tensor) -> None:
        before = self.find()
        copies = _clones(before.rows, {}) | _clones(before.shared, {})
        self.reset()
        after = self.find()
        self.rows, self.left = _clones(after.rows, {}), torch.ones_like(mask)
        _put_back(before, after, copies)

    def forget(self) -> None:
        """Empty the store."""
        self.rows, self.left = {}, None

    def state_dict(self) -> dict[str, Any]:
        """The store, for exact resume."""
        return {} if self.left is None else {"rows": dict(self.rows), "left": self.left.clone()}

    def load_state_dict(self, state: dict[str, Any], device: torch.device) -> None:
        """Put back what `state_dict` returned."""
        self.rows = {path: value.to(device) for path, value in state.get("rows", {}).items()}
        self.left = state["left"].to(device) if "left" in state else None


def _put_back(before: Slots, after: Slots, copies: dict[str, Tensor]) -> None:
    """Undo a reset: every entry that was there before gets its value back."""
    for path, (container, key, _) in (after.rows | after.shared).items():
        if path in copies:
            container[key] = copies[path]
    for path, (container, key, new) in after.plain.items():
        if path in before.plain and before.plain[path][2] is not new:
            container[key] = before.plain[path][2]
    for path, (container, key, new) in after.links.items():
        if path in before.links:
            home = before.homes[id(before.links[path][2])]
            if home != after.homes[id(new)] and home in after.boxes:
                container[key] = after.boxes[home]


class _Masks(dict):
    """A mask [N] by number of dimensions, with ones behind."""

    def __init__(self, mask: Tensor):
        super().__init__()
        self.mask = mask

    def __missing__(self, ndim: int) -> Tensor:
        self[ndim] = self.mask.view(-1, *[1] * (ndim - 1))
        return self[ndim]


def _clones(entries: dict[str, Entry], memo: dict[int, Tensor]) -> dict[str, Tensor]:
    for _, _, value in entries.values():
        if id(value) not in memo:
            memo[id(value)] = value.detach().clone()
    return {path: memo[id(value)] for path, (_, _, value) in entries.items()}


def capture(scenario: BaseScenario, num_envs: int) -> dict[str, dict[str, Any]]:
    """The state as nested dicts of tensors, numbers and strings; survives ``torch.load(weights_only=True)``."""
    slots, memo = find_slots(scenario, num_envs), {}
    plain = {path: {"color": value.name} if isinstance(value, Color) else value
             for path, (_, _, value) in slots.plain.items()}
    return {"rows": _clones(slots.rows, memo), "shared": _clones(slots.shared, memo), "plain": plain,
            "links": {path: slots.homes[id(value)] for path, (_, _, value) in slots.links.items()}}


def restore(scenario: BaseScenario, num_envs: int, state: dict[str, dict[str, Any]],
            mask: Tensor | None = None) -> None:
    """Put a captured state back; with ``mask`` [N] only into the rows where it is True. Missing entries are created.

    Raises ValueError if the state has an entry that this simulator has no place for.
    """
    slots, memo = find_slots(scenario, num_envs), {}
    device = scenario.world.device
    if mask is not None:
        masks = _Masks(mask)
        for path, saved in state["rows"].items():
            if path in slots.rows and slots.rows[path][2].shape == saved.shape:
                container, key, now = slots.rows[path]
                pair = (id(now), id(saved))
                if pair not in memo:
                    memo[pair] = torch.where(masks[now.ndim], saved.to(device), now)
                container[key] = memo[pair]
        return
    for path, saved in (state["rows"] | state["shared"]).items():
        if id(saved) not in memo:
            memo[id(saved)] = saved.to(device, copy=True)
        _put(slots, path, memo[id(saved)])
    for path, saved in state["plain"].items():
        _put(slots, path, Color[saved["color"]] if isinstance(saved, dict) else saved)
    for path, home in state["links"].items():
        if home in slots.boxes:
            _put(slots, path, slots.boxes[home])


def _put(slots: Slots, path: str, value: Any) -> None:
    place = slots.entry(path)
    if place is not None:
        container, key = place
        container[key] = value
    else:
        raise ValueError(f"the saved simulator state has {path!r}, which this simulator does not: "
                         "it was saved with another scenario or other options")


class RandomState:
    """A random state of one's own for a simulator that draws from the global generators.

    Args:
        seed: any integer. ``device``: the simulator's; on CUDA both the CPU and the device generator are separated.
        numpy: the simulator draws from numpy's global generator too.
    """

    def __init__(self, seed: int, device: torch.device, *, numpy: bool = False):
        self.device, self.numpy = device, numpy
        self.seed(seed)

    def seed(self, seed: int) -> None:
        """Start again from ``seed``."""
        self.cpu = torch.Generator().manual_seed(seed).get_state()
        cuda = self.device.type == "cuda"
        self.cuda = torch.Generator(self.device).manual_seed(seed).get_state() if cuda else None

    @contextmanager
    def swapped_in(self) -> Iterator[None]:
        """Inside, global draws come from this state; afterwards the global generators are as they were."""
        cpu, cuda, arrays = torch.get_rng_state(), None, np.random.get_state() if self.numpy else None
        if self.cuda is not None:
            cuda = torch.cuda.get_rng_state(self.device)
            torch.cuda.set_rng_state(self.cuda, self.device)
        torch.set_rng_state(self.cpu)
        try:
            if self.numpy:  # tied to this state, so that there is nothing further to save
                np.random.seed(int(torch.randint(2**31, ())))
            yield
        finally:
            self.cpu = torch.get_rng_state()
            torch.set_rng_state(cpu)
            if cuda is not None:
                self.cuda = torch.cuda.get_rng_state(self.device)
                torch.cuda.set_rng_state(cuda, self.device)
            if arrays is not None:
                np.random.set_state(arrays)

    def capture(self) -> dict[str, Tensor]:
        """The state as tensors on the CPU (clones)."""
        out = {"cpu": self.cpu.clone()}
        return out if self.cuda is None else out | {"cuda": self.cuda.clone()}

    def restore(self, state: dict[str, Tensor]) -> None:
        """Put back what `capture` returned; a state saved on the CPU leaves the device generator as it is."""
        self.cpu = state["cpu"].cpu().clone()
        if self.cuda is not None and "cuda" in state:
            self.cuda = state["cuda"].cpu().clone()
