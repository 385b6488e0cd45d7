"""Cross-play: how well agents of separate trainings play together, against how well each training's own agents do.

Agents that only know their own partners agree on habits that nobody else shares; their returns fall as soon as one of
them comes from another training (Hu, Lerer, Peysakhovich, Foerster 2020, "Other-Play", arXiv 2003.02979).
"""

from __future__ import annotations

import csv
from collections.abc import Sequence
from copy import copy
from pathlib import Path

import matplotlib as mpl
import numpy as np
import torch
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from tensordict import NestedKey
from tensordict.nn import TensorDictModuleBase
from torch import Tensor
from torchrl.envs import EnvBase

from suite.evaluate import Evaluator
from suite.figures import COLOURS, INK, MUTED, SETTINGS, new_figure, save_png
from suite.modules.lowered import Lowered, Tensors
from suite.modules.policies import hidden_shapes
from suite.specs import ACTION

GUEST, HOSTS = "guest", "hosts"  # under these names each side hands its memory on to the next step


class Side:
    """A policy in two halves: what chooses the actions, and what is handed on once all have acted.

    Both run for all agents, whoever plays: a memory is an agent's own, and rows that others play are not read.
    """

    def __init__(self, name: str, policy: TensorDictModuleBase):
        whole = Lowered(policy)
        cut = 1 + max(k for k, (module, _) in enumerate(whole.steps) if ACTION in module.out_keys)
        self.choose, self.hand_on = copy(whole), copy(whole)
        self.choose.steps, self.hand_on.steps = whole.steps[:cut], whole.steps[cut:]
        self.keys = {(name, *_path(key)): key for key in hidden_shapes(policy)}
        self.carried = {(name, *_path(key)): shape for key, shape in hidden_shapes(policy).items()}

    def act(self, tensors: Tensors, deterministic: bool) -> Tensors:
        """What it makes of a step, with an action for every agent."""
        own = {self.keys.get(key, key): x for key, x in tensors.items()}
        return self.choose(own, deterministic=deterministic)

    def learn(self, made: Tensors, action: Tensor) -> Tensors:
        """What it hands on, told the action that was really taken [N, A, ...]."""
        made = self.hand_on(made | {ACTION: action})
        return {("next", *key): made["next", *_path(own)] for key, own in self.keys.items()}


class Mixed:
    """A team in which one agent comes from ``guest``, all others from ``hosts``.

    The guest takes another place in every environment, agent k mod A in environment k, so that each place counts
    alike. Called like a `Lowered` policy.
    """

    def __init__(self, guest: TensorDictModuleBase, hosts: TensorDictModuleBase, num_envs: int, n_agents: int,
                 device: torch.device):
        self.sides = [Side(GUEST, guest), Side(HOSTS, hosts)]
        self.carried: dict[NestedKey, tuple[int, ...]] = self.sides[0].carried | self.sides[1].carried
        place = torch.arange(num_envs, device=device) % n_agents
        self.is_guest = torch.arange(n_agents, device=device) == place[:, None]  # [N, A]

    def __call__(self, tensors: Tensors, *, deterministic: bool = False) -> Tensors:
        """The joint action, and what both sides hand on."""
        guest, hosts = (side.act(tensors, deterministic) for side in self.sides)
        chosen = self.is_guest.view(*self.is_guest.shape, *[1] * (guest[ACTION].ndim - 2))
        action = torch.where(chosen, guest[ACTION], hosts[ACTION])
        out: Tensors = {ACTION: action}
        for side, made in zip(self.sides, (guest, hosts), strict=True):
            out |= side.learn(made, action)
        return out


def _path(key: NestedKey) -> tuple[str, ...]:
    return (key,) if isinstance(key, str) else key


def cross_play(env: EnvBase, policies: Sequence[TensorDictModuleBase], *, seed: int, deterministic: bool = True,
               team: bool = False) -> np.ndarray:
    """Mean returns [R, R]: row r plays one agent, column c all others; on the diagonal a policy plays with itself.

    Every pair plays one episode in each copy of ``env``, from the same starts. ``team``: see `Evaluator`.

    Raises:
        ValueError: fewer than two policies, a single agent, or fewer environments than agents.
    """
    if len(policies) < 2:
        raise ValueError(f"cross-play is between the policies of at least two runs, got {len(policies)}")
    if not 2 <= env.n_agents <= env.num_envs:
        raise ValueError(f"cross-play needs at least two agents and an episode for each of their places, got "
                         f"{env.n_agents} agents and {env.num_envs} episodes")
    start, returns = env.state_dict(), np.zeros((len(policies), len(policies)))
    for row, guest in enumerate(policies):
        for column, hosts in enumerate(policies):
            env.load_state_dict(start)  # an evaluator begins from what it finds
            if row == column:
                evaluator = Evaluator(env, guest, seed=seed, team=team)
            else:
                mixed = Mixed(guest, hosts, env.num_envs, env.n_agents, env.device)
                evaluator = Evaluator(env, mixed, seed=seed, team=team, carried=mixed.carried)
            returns[row, column] = evaluator.play(deterministic=deterministic)["return"]
    return returns


def summary(returns: np.ndarray) -> tuple[float, float]:
    """Means of self-play (the diagonal) and cross-play (all else)."""
    own = np.eye(len(returns), dtype=bool)
    return float(returns[own].mean()), float(returns[~own].mean())


# ---------------------------------------------------------------------- on paper

def write(returns: np.ndarray, names: Sequence[str], folder: str | Path) -> tuple[Path, Path]:
    """crossplay.csv and crossplay.png in ``folder``; rows play one agent, columns the others."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    table = folder / "crossplay.csv"
    with table.open("w", newline="") as file:
        rows = csv.writer(file, lineterminator="\n")
        rows.writerow(["one agent of / others of", *names])
        rows.writerows([name, *map(repr, row)] for name, row in zip(names, returns.tolist(), strict=True))
    with mpl.rc_context(SETTINGS):
        return table, save_png(draw(returns, names), folder / "crossplay.png")


def draw(returns: np.ndarray, names: Sequence[str]) -> Figure:
    """Heat map: the darker, the higher the return; its number in every field."""
    size, low = len(names), float(returns.min())
    spread = float(returns.max()) - low
    longest = 0.075 * max(map(len, names))
    figure = new_figure(1.3 + longest + 0.8 * size, 1.5 + longest + 0.6 * size)
    axes = figure.add_subplot()
    axes.imshow(returns, cmap=LinearSegmentedColormap.from_list("returns", ["#ffffff", COLOURS[0]]), aspect="auto",
                vmin=low, vmax=low + (spread or 1.0))
    for row, column in np.ndindex(returns.shape):
        dark = spread > 0 and returns[row, column] - low > 0.7 * spread
        axes.text(column, row, f"{returns[row, column]:.2f}", ha="center", va="center",
                  color="white" if dark else INK, weight="bold" if row == column else "normal")
    axes.set_xticks(range(size), names, rotation=90)
    axes.set_yticks(range(size), names)
    axes.set(xlabel="all others of", ylabel="one agent of")
    axes.set_title("self-play {:.2f}, cross-play {:.2f}".format(*summary(returns)), loc="left", fontsize=9.5, color=INK)
    axes.tick_params(length=0, colors=MUTED, labelsize=8)
    for part in (axes.xaxis.label, axes.yaxis.label):
        part.set(color=INK, fontsize=8.5)
    for spine in axes.spines.values():
        spine.set_visible(False)
    return figure
