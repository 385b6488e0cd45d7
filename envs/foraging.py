"""Level-based foraging as batched tensors: ``make_env("foraging/2s-9x9-3p-2f-coop", num_envs=4096)``.

Agents walk on a board and load food together: it is theirs when the levels of those who load it add up to its own.
The rules are those of lbforaging 2.0.0, equal to it step by step from the same board. What differs:

- Random numbers are torch's: starts have the same distribution, not the same draws. The package gives up placing food
  after 1000 tries; here food is placed as long as any cell is allowed, so crowded boards miss food less often.
- The time limit is a truncation (``truncate=False`` for the package's termination).
- Impossible settings are refused, among them more food than can lie on the board (5x5 with 3 or 4, which are
  registered ids of the package).

Names are ``[sight]s-[rows]x[columns]-[players]p-[foods]f[-coop]``; without sight the whole board is seen. Agents have
levels 1 to 3, as in the ids of version 2 and the results published with them; ``-v3`` at the end, also in full ids
such as ``Foraging-2s-8x8-2p-2f-coop-v3``, limits them to 2, as the ids of version 3 do, and ``-coop-v2`` may be written
for 3. (Without ``-coop`` version 2 drew food levels from another range: there is no ``-v2`` for these.)

Sources: Christianos, Schaefer, Albrecht (2020), "Shared Experience Actor-Critic", arXiv 2006.07169;
Papoudakis et al. (2021), arXiv 2006.07869; the rules in detail as measured on the package.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
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
    ACTION_MASK,
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
from envs.foraging_rules import (
    LOAD,
    Board,
    Rules,
    advance,
    hidden,
    hidden_parts,
    legal_actions,
    observe,
    start,
    visible,
)
from envs.grid_rendering import LIGHT, GridCanvas, agent_color, spread
from envs.kinds import check_kinds, kinds_of
from envs.rendering import shaded

HORIZON = 50
FORM = re.compile(r"(Foraging-)?(?:(\d+)s-)?(\d+)x(\d+)-(\d+)p-(\d+)f(-coop)?(?:-v([23]))?")
KNOWN = ["2s-9x9-3p-2f-coop", "4s-11x11-3p-2f-coop", "2s-11x11-3p-2f-coop", "2s-12x12-2p-2f-coop",
         "7s-20x20-5p-3f-coop", "7s-30x30-7p-4f-coop", "2s-8x8-3p-2f-coop", "Foraging-8x8-2p-2f-coop-v3",
         "Foraging-2s-8x8-2p-2f-coop-v3", "Foraging-10x10-3p-3f-v3", "Foraging-2s-10x10-3p-3f-v3",
         "Foraging-15x15-3p-5f-v3", "Foraging-15x15-4p-3f-v3", "Foraging-15x15-4p-5f-v3"]


# ---------------------------------------------------------------------- a step, with the boards first

def look(rules: Rules, extras: Sequence[NestedKey], board: Board) -> Tensors:
    """What the agents are told: observation [N, n, O], and what else is wanted by its key.

    ``extras``: the mask of legal actions bool [N, n, 6], who is visible, hidden variables.
    """
    out: Tensors = {OBSERVATION: observe(rules, board)}
    if VISIBLE in extras:
        out[VISIBLE] = visible(rules, board)
    if HIDDEN_VARIABLES in extras:
        out[HIDDEN_VARIABLES] = hidden(rules, board)
    if ACTION_MASK in extras:
        legal = legal_actions(rules, board).transpose(0, 1).flatten(0, 1).view(torch.int8)  # compiled bytes are faster
        out[ACTION_MASK] = legal.t().contiguous().view(torch.bool).view(-1, rules.players, LOAD + 1)
    return out


def play(rules: Rules, extras: Sequence[NestedKey], board: Board,
         action: Tensor) -> tuple[Board, Tensor, Tensor, Tensors]:
    """One step with ``action`` int64 [N, n]: board, reward float32 [N, n], no food left, and what is seen then."""
    board, reward, empty = advance(rules, board, torch.stack(action.unbind(1)))
    return board, reward.t().contiguous(), empty, look(rules, extras, board)


# ---------------------------------------------------------------------- the environment

class Foraging(BatchedEnv):
    """N boards of level-based foraging. Made by `make_foraging`.

    Actions: 0 none, 1 north, 2 south, 3 west, 4 east, 5 load; an action that is not in the mask counts as none.
    Observations: `observe`. Each agent has its own reward; terminated when no food is left. There is no ``state``:
    a central critic takes the observations of all agents, as is usual for this task.

    Attributes:
        rules: the settings. ``board``: the boards now. ``action_masks``: False leaves the mask out.
    """

    def __init__(self, rules: Rules, *, num_envs: int, seed: int, device: torch.device | str, max_steps: int | None,
                 truncate: bool = True, action_masks: bool = True, with_visible: bool = False,
                 with_hidden: bool = False, backend: str | None = None):
        names = [f"agent_{i}" for i in range(rules.players)]
        super().__init__(num_envs=num_envs, agent_names=names, agent_types=[0] * rules.players, max_steps=max_steps,
                         seed=seed, device=device, truncate=truncate)
        self.rules, self.action_masks, self.reward_is_shared = rules, action_masks, rules.players == 1
        self.cheap_reset = self.device.type != "cpu"
        self.generator = torch.Generator(self.device)
        self.hidden_parts = hidden_parts(rules) if with_hidden else ()
        wide = {VISIBLE: with_visible * (rules.players - 1), HIDDEN_VARIABLES: sum(x[1] for x in self.hidden_parts)}
        more = {key: Unbounded((rules.players, width)) for key, width in wide.items() if width}
        extras = [*more, *([ACTION_MASK] if action_masks else [])]
        self._set_specs(observation_dim=rules.observation_dim, action=discrete(LOAD + 1, rules.players),
                        action_mask=LOAD + 1 if action_masks else None, observations=more)
        self._set_seed(seed)
        self.board = start(rules, num_envs, self.generator)
        self._seen: Tensors | None = None  # what the last step showed, computed along the way
        self._play = one_graph(partial(play, rules, extras), backend, self.board,
                               torch.zeros(num_envs, rules.players, dtype=torch.int64, device=self.device))
        self._look = one_graph(partial(look, rules, extras), backend, self.board)

    def _restart(self, mask: Tensor | None) -> None:
        self._seen = None
        if mask is None:
            self.board = start(self.rules, self.num_envs, self.generator)
        elif self.cheap_reset:  # draw for all rows: to ask which ones would stop the device
            fresh = start(self.rules, self.num_envs, self.generator)
            self.board = Board(*(torch.where(mask, new, old) for new, old in zip(fresh, self.board, strict=True)))
        else:
            rows = mask.nonzero().squeeze(-1)
            fresh = start(self.rules, len(rows), self.generator)
            self.board = Board(*(old.index_copy(-1, rows, new) for new, old in zip(fresh, self.board, strict=True)))

    def _simulate(self, actions: Tensors) -> tuple[Tensor, Tensor]:
        self.board, reward, terminated, self._seen = self._play(self.board, actions[ACTION])
        return reward, terminated

    def _observe(self) -> Tensors:
        seen, self._seen = self._seen, None
        return self._look(self.board) if seen is None else seen

    def _capture(self) -> dict[str, Any]:
        return {"board": {name: value.clone() for name, value in self.board._asdict().items()},
                "random": self.generator.get_state()}

    def _restore(self, state: dict[str, Any], mask: Tensor | None = None) -> None:
        saved = {name: value.to(self.device) for name, value in state["board"].items()}
        for name, value in self.board._asdict().items():
            if saved[name].shape != value.shape:
                raise ValueError(f"the saved {name} has the shape {list(saved[name].shape)}, this environment has "
                                 f"{list(value.shape)}")
        self._seen = None
        if mask is None:
            self.board = Board(**{name: value.clone() for name, value in saved.items()})
            self.generator.set_state(state["random"].cpu())
        else:
            self.board = Board(*(torch.where(mask, saved[name], getattr(self.board, name)) for name in Board._fields))

    def _set_seed(self, seed: int | None) -> None:
        self.generator.manual_seed(0 if seed is None else seed)

    def render_frame(self, env_index: int = 0, size: tuple[int, int] | None = None) -> np.ndarray:
        """Picture of one board, uint8 [H, W, 3]: agents and apples with their levels; ValueError if no such row."""
        if not 0 <= env_index < self.num_envs:
            raise ValueError(f"env_index must be in [0, {self.num_envs - 1}], got {env_index}")
        board = {name: value[..., env_index].tolist() for name, value in self.board._asdict().items()}
        canvas = GridCanvas(self.rules.rows, self.rules.cols, size)
        for row, col, level in zip(board["food_row"], board["food_col"], board["food_level"], strict=True):
            if level:
                _draw_apple(canvas, row, col, level)
        cells = list(zip(board["row"], board["col"], strict=True))
        for i, (cell, level) in enumerate(zip(cells, board["level"], strict=True)):
            offset, color = spread(cells.count(cell))[cells[:i].count(cell)], agent_color(i)
            scale = 0.7 if cells.count(cell) > 1 else 1.0
            canvas.circle(cell, color, shaded(color), 0.36 * scale, offset)
            canvas.label(cell, str(level), LIGHT, 0.44 * scale, offset)
        return canvas.frame()


def _draw_apple(canvas: GridCanvas, row: int, col: int, level: int) -> None:
    red = (0.80, 0.16, 0.18)
    x, y = canvas.point((row, col))
    canvas.disc((x - 0.11, y - 0.05), 0.25, red)
    canvas.disc((x + 0.11, y - 0.05), 0.25, red)
    canvas.disc((x, y - 0.09), 0.25, red)
    canvas.line((x, y + 0.14), (x + 0.04, y + 0.33), (0.40, 0.26, 0.15), 2.5)
    canvas.polygon([(x + 0.05, y + 0.22), (x + 0.15, y + 0.36), (x + 0.30, y + 0.36), (x + 0.20, y + 0.23)],
                   (0.33, 0.60, 0.24))
    canvas.label((row, col), str(level), LIGHT, 0.40, (0.0, -0.07))


# ---------------------------------------------------------------------- the family

LEVELS = ["min_player_level", "max_player_level", "min_food_level", "max_food_level"]
OPTIONS = ["sight", "force_coop", *LEVELS, "penalty", "normalize_reward", "observe_agent_levels"]


def make_foraging(name: str, *, num_envs: int, device: torch.device | str, seed: int, max_steps: int | None,
                  truncate: bool = True, action_masks: bool = True, with_visible: bool = False,
                  with_hidden: bool = False, compile: bool | str = False, **options: Any) -> Foraging:
    """N boards of the task ``name``, for example ``2s-9x9-3p-2f-coop`` (see the module's docstring).

    Args:
        max_steps: None takes 50. ``truncate``: see `BatchedEnv`. ``action_masks``: False does not tell the agents
            which actions count as none, as in the published runs.
        with_visible: write ("agents", "visible") [N, n, n - 1], 1 for each other agent in sight, in ascending order.
        with_hidden: write ("agents", "hidden") [N, n, D], for teachers and probes only (`foraging_rules.hidden_parts`).
        compile: True compiles the step as one graph, a word names the backend of ``torch.compile``; what cannot be
            compiled raises, at once.
        options: of `Rules`, in place of what the name says; levels are an integer, or one per agent or food, which
            are given out by chance.

    Raises:
        ValueError: unknown name or option, settings that cannot be played, or what is hidden or visible where nothing
            and nobody is.
    """
    found = FORM.fullmatch(name)
    prefix, sight, *sizes, coop, version = found.groups() if found else (None,) * 8
    if not found or (prefix and not version) or (version == "2" and not coop):
        raise ValueError(f"unknown foraging task {name!r}: write '[sight]s-[rows]x[columns]-[players]p-[foods]f', with "
                         "'-coop' and '-v3' after it if wanted, or '-coop-v2'; 'Foraging-' before it needs a version; "
                         f"for example {KNOWN}" + suggestion(name, KNOWN))
    check_options("foraging", options, OPTIONS, make_foraging)
    kinds = kinds_of(Rules)
    check_kinds(f"foraging/{name}", options, {key: kinds[key] for key in OPTIONS if key not in LEVELS})
    rows, cols, players, foods = map(int, sizes)
    given = {"sight": max(rows, cols) if sight is None else int(sight), "force_coop": coop is not None,
             "min_player_level": 1, "max_player_level": 2 if version == "3" else 3, "min_food_level": 1,
             "max_food_level": None} | options
    check_sizes(rows=rows, columns=cols, players=players, foods=foods, sight=given["sight"])
    for key, count in zip(LEVELS, (players, players, foods, foods), strict=True):
        given[key] = _levels(key, given[key], count)
    given["sight"] = min(given["sight"], max(rows, cols))  # more shows no more
    rules = Rules(rows=rows, cols=cols, players=players, foods=foods, **given)
    if with_visible:
        check_others(f"foraging/{name}", players)
    if with_hidden and not hidden_parts(rules):
        raise ValueError(f"foraging/{name} has no hidden variables: with sight {rules.sight} agents see the whole "
                         "board; with_hidden is for a shorter sight, or for observe_agent_levels=False")
    return Foraging(rules, num_envs=num_envs, seed=seed, device=device, max_steps=max_steps or HORIZON,
                    truncate=truncate, action_masks=action_masks, with_visible=with_visible, with_hidden=with_hidden,
                    backend=backend_of(compile))


def _levels(name: str, value: int | Sequence[int] | None, count: int) -> tuple[int, ...] | None:
    """One level for each of ``count``; None only where the rules have a level of their own."""
    if value is None and name == "max_food_level":
        return None
    levels = tuple(value) if isinstance(value, (list, tuple)) else (value,) * count
    if len(levels) != count or not all(isinstance(x, int) and not isinstance(x, bool) and x >= 1 for x in levels):
        raise ValueError(f"{name} must be a positive integer, or {count} of them, got {value!r}")
    return levels
