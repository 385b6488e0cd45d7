"""The robot warehouse as batched tensors: ``make_env("warehouse/tiny-2ag-hard", num_envs=4096)``.

Robots fetch requested shelves, bring them to a goal and put them back where there is room; a delivered request is
replaced by a new one. The rules are those of rware 2.0.0, equal to it step by step from the same state and with the
same new requests. What differs:

- Random numbers are torch's: starts and requests have the same distribution, not the same draws.
- Where equally long queues want the same cell, the lowest index wins. The package takes the one that comes first in
  Python's order of a set, which ``conflicts="exact"`` reproduces (CPU, slow, for comparisons).
- The limits on steps and on steps without a delivery are truncations (``truncate=False`` for the package's
  termination). There are no messages and no pictures as observations.
- Impossible settings are refused, among them no request at all (``1ag-hard``, a registered id of the package).

Names are ``[size]-[agents]ag[-difficulty]``, for example ``small-4ag-hard``: sizes tiny, small, medium and large, or
rows x columns of shelf groups (``1x3``), or ``custom`` with the option ``layout``; difficulty ``easy``, none or
``hard`` for 2, 1 or 0.5 requests per agent. The package's long ids are understood too: ``rware-2s-tiny-4h-2ag-v2``
(sensor range, column height), ``1x3-8h-4ag-6req-global`` (requests, reward ``indiv``, ``global`` or ``twostage``).

Sources: Christianos, Schaefer, Albrecht (2020), "Shared Experience Actor-Critic", arXiv 2006.07169, appendix;
Papoudakis et al. (2021), arXiv 2006.07869; the rules in detail as measured on the package.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from tensordict import NestedKey
from torch import Tensor
from torchrl.data import Unbounded

from envs import check_options, suggestion
from envs.base import (
    ACTION,
    HIDDEN_VARIABLES,
    OBSERVATION,
    VISIBLE,
    BatchedEnv,
    Tensors,
    check_others,
    check_sizes,
    discrete,
)
from envs.compiling import backend_of, one_graph
from envs.grid_rendering import DARK, LIGHT, GridCanvas, agent_color
from envs.kinds import check_kinds, kinds_of
from envs.rendering import shaded
from envs.warehouse_conflicts import who_moves, who_moves_exact
from envs.warehouse_layout import SIZES, Layout, from_sizes, from_text
from envs.warehouse_rules import (
    HEADINGS,
    TOGGLE,
    Floor,
    Rules,
    Tables,
    advance,
    draw_requests,
    hidden,
    hidden_parts,
    make_tables,
    observe,
    start,
    visible,
)

HORIZON = 500
DIFFICULTIES = {"easy": 2.0, "normal": 1.0, "hard": 0.5}  # requests per agent
REWARDS = {"indiv": "individual", "global": "global", "twostage": "two_stage"}  # in names
FORM = re.compile(r"(?:rware-)?(?:(\d+)s-)?(\d+x\d+|[a-z]+)(?:-(\d+)h)?-(\d+)ag(?:-(easy|normal|hard)|-(\d+)req)?"
                  r"(?:-(indiv|global|twostage))?(?:-v[12])?")
KNOWN = [f"{size}-{agents}ag{end}" for size in SIZES for agents in (2, 4) for end in ("-easy", "", "-hard")]
OPTIONS = ["sensor_range", "reward_type", "request_queue_size", "max_inactivity", "shelf_rows", "shelf_columns",
           "column_height", "layout", "normalize_coordinates", "conflicts"]


def look(rules: Rules, tables: Tables, extras: Sequence[NestedKey], floor: Floor) -> Tensors:
    """What the robots are told: see `observe`; and of who is visible and hidden variables what ``extras`` names."""
    shown = {OBSERVATION: observe, VISIBLE: visible, HIDDEN_VARIABLES: hidden}
    return {key: shown[key](rules, tables, floor) for key in (OBSERVATION, *extras)}


def play(rules: Rules, tables: Tables, extras: Sequence[NestedKey], resolve: Callable[[Tensor, Tensor], Tensor],
         floor: Floor, action: Tensor, draws: Tensor) -> tuple[Floor, Tensor, Tensors]:
    """One step: the next floors, the reward [N, A], and what is seen then; see `advance` and `look`."""
    floor, reward = advance(rules, tables, floor, action, draws, resolve)
    return floor, reward, look(rules, tables, extras, floor)


class Warehouse(BatchedEnv):
    """N warehouses. Made by `make_warehouse`.

    Actions: 0 none, 1 forward, 2 turn left, 3 turn right, 4 pick up or put down. Observations: `observe`. There is no
    ``state``: a central critic takes the observations of all agents, as is usual for this task.

    Attributes:
        rules: the settings. ``tables``: what follows from them. ``floor``: the warehouses now.
    """

    def __init__(self, rules: Rules, *, num_envs: int, seed: int, device: torch.device | str, max_steps: int | None,
                 truncate: bool = True, with_visible: bool = False, with_hidden: bool = False,
                 backend: str | None = None):
        names = [f"agent_{k}" for k in range(rules.n_agents)]
        super().__init__(num_envs=num_envs, agent_names=names, agent_types=[0] * rules.n_agents, max_steps=max_steps,
                         seed=seed, device=device, truncate=truncate)
        self.rules, self.tables = rules, make_tables(rules, self.device)
        self.reward_is_shared = rules.n_agents == 1 or rules.reward_type == "global"
        # on a GPU a reset by mask costs less than waiting for the answer whether there is anything to reset
        self.cheap_reset = self.device.type != "cpu"
        self.generator = torch.Generator(self.device)
        resolve = who_moves
        if rules.conflicts == "exact":
            if self.device.type != "cpu":
                raise ValueError(f"conflicts='exact' works on the device 'cpu' only, got {str(self.device)!r}")
            if backend is not None:
                raise ValueError("conflicts='exact' cannot be compiled: it asks NetworkX; leave out compile")
            columns = rules.layout.cols + 2 * rules.sensor_range
            places = [(k % columns - rules.sensor_range, k // columns - rules.sensor_range)
                      for k in range(len(self.tables.shelves))]
            resolve = partial(who_moves_exact, places=places)
        self.hidden_parts = hidden_parts(rules) if with_hidden else ()
        wide = {VISIBLE: with_visible * (rules.n_agents - 1), HIDDEN_VARIABLES: sum(x[1] for x in self.hidden_parts)}
        more = {key: Unbounded((rules.n_agents, width)) for key, width in wide.items() if width}
        self._set_specs(observation_dim=rules.observation_dim, action=discrete(TOGGLE + 1, rules.n_agents),
                        observations=more)
        self._set_seed(seed)
        self.floor = start(rules, self.tables, num_envs, self.generator)
        self._seen: Tensors | None = None  # what the last step showed, computed along the way
        still = torch.zeros(num_envs, rules.n_agents, dtype=torch.int64, device=self.device)
        draws = torch.full((num_envs, len(self.tables.goals)), rules.requests, device=self.device)
        self._play = one_graph(partial(play, rules, self.tables, [*more], resolve), backend, self.floor, still, draws)
        self._look = one_graph(partial(look, rules, self.tables, [*more]), backend, self.floor)

    def _restart(self, mask: Tensor | None) -> None:
        self._seen = None
        if mask is None:
            self.floor = start(self.rules, self.tables, self.num_envs, self.generator)
        elif self.cheap_reset:
            self._merge(mask, start(self.rules, self.tables, self.num_envs, self.generator))
        else:
            rows = mask.nonzero().squeeze(-1)
            fresh = start(self.rules, self.tables, len(rows), self.generator)
            self.floor = Floor(*(old.index_copy(0, rows, new) for new, old in zip(fresh, self.floor, strict=True)))

    def _merge(self, mask: Tensor, fresh: Floor) -> None:
        self.floor = Floor(*(torch.where(mask.view(-1, *[1] * (old.ndim - 1)), new, old)
                             for new, old in zip(fresh, self.floor, strict=True)))

    def _simulate(self, actions: Tensors) -> tuple[Tensor, Tensor, Tensor]:
        self.floor, reward, self._seen = self._play(self.floor, actions[ACTION], self._draw())
        never = torch.zeros(self.num_envs, dtype=torch.bool, device=self.device)
        limit = self.rules.max_inactivity
        return reward, never, never if limit is None else self.floor.idle >= limit

    def _draw(self) -> Tensor:
        return draw_requests(self.rules, self.tables, self.num_envs, self.generator)

    def _observe(self) -> Tensors:
        seen, self._seen = self._seen, None
        return self._look(self.floor) if seen is None else seen

    def _capture(self) -> dict[str, Any]:
        return {"floor": {name: value.clone() for name, value in self.floor._asdict().items()},
                "random": {self.device.type: self.generator.get_state()}}

    def _restore(self, state: dict[str, Any], mask: Tensor | None = None) -> None:
        self._seen = None
        saved = Floor(**{name: value.to(self.device, copy=True) for name, value in state["floor"].items()})
        for name, value in self.floor._asdict().items():
            shape = getattr(saved, name).shape
            if shape != value.shape:
                raise ValueError(f"the saved {name} has the shape {list(shape)}, this environment has "
                                 f"{list(value.shape)}")
        if mask is not None:
            self._merge(mask, saved)
            return
        self.floor = saved
        if self.device.type in state["random"]:  # a state saved on another kind of device leaves the generator
            self.generator.set_state(state["random"][self.device.type].cpu())

    def _set_seed(self, seed: int | None) -> None:
        self.generator.manual_seed(0 if seed is None else seed)

    # ------------------------------------------------------------------ pictures

    def render_frame(self, env_index: int = 0, size: tuple[int, int] | None = None) -> np.ndarray:
        """Picture of one warehouse now, uint8 [H, W, 3]; ValueError if there is no such row.

        Shelves are brown, requested ones orange, the goals green; robots are discs with a tick for their heading, and
        a robot with a load carries it on top.
        """
        if not 0 <= env_index < self.num_envs:
            raise ValueError(f"env_index must be in [0, {self.num_envs - 1}], got {env_index}")
        floor = {name: value[env_index].tolist() for name, value in self.floor._asdict().items()}
        return draw_floor(self.rules, self.tables, floor, size)


FLOOR, ROAD, DELIVERY = (0.93, 0.91, 0.87), (1.0, 1.0, 1.0), (0.78, 0.90, 0.78)
WOOD, WANTED = (0.72, 0.60, 0.47), (0.93, 0.58, 0.10)


def draw_floor(rules: Rules, tables: Tables, floor: dict[str, Any], size: tuple[int, int] | None) -> np.ndarray:
    """Picture of one row of a `Floor`, given as lists."""
    layout = rules.layout
    canvas = GridCanvas(layout.rows, layout.cols, size, ROAD)
    cells = [(row, col) for row in range(layout.rows) for col in range(layout.cols)]
    for cell in cells:
        if not layout.is_highway(*cell):
            canvas.cell(cell, FLOOR, inset=0.02)
    for cell in layout.goals:
        canvas.cell(cell, DELIVERY, inset=0.02)
        canvas.label(cell, "G", shaded(DELIVERY, 0.45), 0.5)
    numbers = tables.cells.tolist()
    place = dict(zip(numbers, cells, strict=True))
    requested = set(floor["order"][:rules.requests])
    for number, cell in place.items():
        shelf = floor["shelves"][number]
        if shelf:
            color = WANTED if shelf in requested else WOOD
            canvas.cell(cell, color, shaded(color), 0.1)
    for k, (number, heading, load) in enumerate(zip(floor["cell"], floor["heading"], floor["load"], strict=True)):
        cell, color = place[number], agent_color(k)
        canvas.circle(cell, color, shaded(color), 0.4)
        canvas.heading(cell, HEADINGS[heading], DARK, 0.46)
        if load:
            canvas.cell(cell, WANTED if load in requested else WOOD, LIGHT, 0.29)
    return canvas.frame()


# ---------------------------------------------------------------------- the family

def make_warehouse(name: str, *, num_envs: int, device: torch.device | str, seed: int, max_steps: int | None,
                   truncate: bool = True, with_visible: bool = False, with_hidden: bool = False,
                   compile: bool | str = False, **options: Any) -> Warehouse:
    """N warehouses of the task ``name``, for example ``tiny-2ag-hard`` (see the module's docstring).

    Args:
        max_steps: None takes 500. ``truncate``: see `BatchedEnv`.
        with_visible: write ("agents", "visible") [N, A, A - 1], 1 for each other robot in sight, in ascending order.
        with_hidden: write ("agents", "hidden") [N, A, D], for teachers and probes only (`hidden_parts`).
        compile: True compiles the step as one graph, a word names the backend of ``torch.compile``; what cannot be
            compiled raises, at once.
        options: ``sensor_range``, ``reward_type``, ``max_inactivity``, ``normalize_coordinates``, ``conflicts`` as in
            `Rules`; ``request_queue_size``: number of requests instead of the difficulty's; ``shelf_rows``,
            ``shelf_columns``, ``column_height`` as in `from_sizes` instead of the size's; ``layout``: text as in
            `from_text`, for ``custom``.

    Raises:
        ValueError: unknown size, difficulty or option, or a task that cannot be played; lists what is allowed.
    """
    match = FORM.fullmatch(name)
    if match is None:
        raise ValueError(f"unknown warehouse task {name!r}: write '[size]-[agents]ag', with '-easy' or '-hard' after "
                         f"it if wanted; for example {KNOWN}" + suggestion(name, KNOWN))
    check_options("warehouse", options, OPTIONS, make_warehouse)
    check_kinds(f"warehouse/{name}", options, kinds_of(from_sizes) | kinds_of(Rules))
    sight, size, height, agents, difficulty, requests, reward = match.groups()
    n_agents = int(agents)
    check_sizes(n_agents=n_agents)
    given = {"sensor_range": int(sight or 1), "reward_type": REWARDS[reward or "indiv"],
             "requests": int(requests or n_agents * DIFFICULTIES[difficulty or "normal"])}
    given |= {"column_height": int(height)} if height else {}
    given |= {"requests" if key == "request_queue_size" else key: value for key, value in options.items()}
    plan = {key: given.pop(key) for key in ("shelf_rows", "shelf_columns", "column_height", "layout") if key in given}
    rules = Rules(layout=_layout(size, **plan), n_agents=n_agents, **given)
    if with_visible or with_hidden:
        check_others(f"warehouse/{name}", n_agents)
    return Warehouse(rules, num_envs=num_envs, seed=seed, device=device, max_steps=max_steps or HORIZON,
                     truncate=truncate, with_visible=with_visible, with_hidden=with_hidden,
                     backend=backend_of(compile))


def _layout(size: str, layout: str | None = None, **sizes: int) -> Layout:
    """The floor that a size, or the options that stand for one, ask for."""
    if size == "custom":
        if not isinstance(layout, str) or sizes:
            raise ValueError("the size 'custom' takes the option layout, a text, and neither shelf_rows nor "
                             f"shelf_columns nor column_height; got layout={layout!r} and {sizes}")
        return from_text(layout)
    if layout is not None:
        raise ValueError(f"the option layout needs the size 'custom', got the size {size!r}")
    if size not in SIZES and not size[0].isdigit():
        allowed = [*SIZES, "custom"]
        raise ValueError(f"unknown size {size!r}: choose from {allowed}, or rows x columns of shelf groups such as "
                         "'1x3'" + suggestion(size, allowed))
    rows, columns = SIZES.get(size) or map(int, size.split("x"))
    return from_sizes(**{"shelf_rows": rows, "shelf_columns": columns} | sizes)
