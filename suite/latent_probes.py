"""What a latent tells about what its agent cannot see: the same probes for every state-modelling loss."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from tensordict import TensorDictBase
from torch import Tensor

from suite.modules.state_model import JointActions
from suite.probes import Probe, episode_ids, linear_probe, mlp_probe, split_episodes
from suite.specs import IS_INIT, OBSERVATION, PRIVILEGED, Specs

ROWS = 3000  # of a batch, at most: a probe needs no more
EPISODES = 12  # at least, to train on most and test on some; fewer give scores that mean nothing


@torch.no_grad()
def probe_latents(batch: TensorDictBase, representations: Mapping[str, Tensor], specs: Specs, *,
                  ceiling: str | None = None, held_out: int = 0) -> dict[str, float]:
    """Scores of linear probes, ``probe/<variable>/<representation>`` and ``..._error``, on a batch [N, T].

    Variables are the task's hidden ones where it exports them (accuracy of classes, R^2 of numbers), else the others'
    observations. A row is one living agent at one step that is not an episode's first, unless the agent sees the
    hidden variables itself; whole episodes are kept for testing. Fewer than `EPISODES` give no numbers.

    Args:
        representations: {name: [N, T, A, d]}.
        ceiling: the representation that an MLP probes as well, ``<name>_mlp``: what any memory-less student can know.
        held_out: so many of the last environments are what probes are tested on; 0: a random share of the episodes.
    """
    start = batch[IS_INIT].squeeze(-1)
    kept, episode, tested = ~start, episode_ids(start), torch.zeros_like(start)
    tested[len(batch) - held_out:] = held_out > 0
    if len(torch.unique(episode[kept])) < EPISODES:
        return {}
    order = torch.randperm(int(kept.sum()), generator=torch.Generator().manual_seed(0))
    order = order[: max(1, ROWS // specs.n_agents)].to(episode.device)
    here = batch[specs.alive] if specs.alive else torch.ones_like(batch[OBSERVATION][..., 0], dtype=torch.bool)
    if specs.informed:
        here = here & ~batch[specs.informed]
    here = here[kept][order].flatten()

    def rows(x: Tensor) -> Tensor:
        return x[kept][order].flatten(0, 1)[here]

    episode, tested = (rows(x.unsqueeze(-1).expand(-1, -1, specs.n_agents)) for x in (episode, tested))
    train = ~tested if held_out else split_episodes(episode)
    known = {name: rows(x) for name, x in representations.items()}
    out: dict[str, float] = {}
    for variable, (target, classes) in _variables(batch, specs).items():
        wanted = rows(target)
        for name, x in known.items():
            found = linear_probe(x, wanted, classes=classes, train=train, episode=episode)
            out |= _named(variable, name, found)
        if ceiling is not None:
            out |= _named(variable, f"{ceiling}_mlp", mlp_probe(known[ceiling], wanted, classes=classes, train=train,
                                                               episode=episode, steps=500))
        out[f"probe/{variable}/chance"] = float(found.baseline)
    return out


def _variables(batch: TensorDictBase, specs: Specs) -> dict[str, tuple[Tensor, int | None]]:
    if PRIVILEGED not in batch.keys(True):
        return {"others": (JointActions(specs).to(batch.device).of_others(batch[OBSERVATION]).flatten(-2), None)}
    parts = batch[PRIVILEGED].split([width for _, width, _ in specs.hidden_parts], -1)
    return {name: (part.argmax(-1), width) if is_one_hot else (part, None)
            for part, (name, width, is_one_hot) in zip(parts, specs.hidden_parts, strict=True)}


def _named(variable: str, name: str, found: Probe) -> dict[str, float]:
    numbers = {f"probe/{variable}/{name}": float(found.score), f"probe/{variable}/{name}_error": float(found.error)}
    return {key: value for key, value in numbers.items() if math.isfinite(value)}  # one test episode has no error
