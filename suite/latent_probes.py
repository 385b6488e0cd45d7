"""What a latent tells about what its agent cannot see: the same probes for every state-modelling loss."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import NamedTuple

import torch
from tensordict import TensorDictBase
from torch import Tensor

from suite.modules.state_model import JointActions
from suite.probes import Probe, episode_ids, linear_probe, mlp_probe, split_episodes
from suite.specs import ACTION, IS_INIT, OBSERVATION, PRIVILEGED, Specs

ROWS = 3000  # of a batch, at most: a probe needs no more
EPISODES = 12  # at least, to train on most and test on some; fewer give scores that mean nothing


class Variable(NamedTuple):
    """What a probe looks for: ``values`` [N, T, A, D], classes if their number is given, where ``counts`` [N, T, A]."""

    name: str
    values: Tensor
    classes: int | None
    counts: Tensor


@torch.no_grad()
def probe_latents(batch: TensorDictBase, representations: Mapping[str, Tensor], specs: Specs, *,
                  ceiling: str | None = None, held_out: int = 0) -> dict[str, float]:
    """Scores of linear probes, ``probe/<variable>/<representation>`` and ``..._error``, on a batch [N, T].

    Variables are the hidden ones that the task exports, what the others see and what they do at this step: accuracy of
    classes, R^2 of numbers, means over the others. A row is one living agent at one step that is not an episode's
    first, unless it sees the hidden variables itself; of the others where all of them live. Whole episodes are kept for
    testing. Fewer than `EPISODES` give no numbers.

    Args:
        representations: {name: [N, T, A, d]}.
        ceiling: the representation that an MLP probes as well, ``<name>_mlp``: what any memory-less student can know.
        held_out: so many of the last environments are what probes are tested on; 0: a random share of the episodes.
    """
    start = batch[IS_INIT].squeeze(-1)
    kept, episode, tested = ~start, episode_ids(start), torch.zeros_like(start)
    tested[len(batch) - held_out:] = held_out > 0
    order = torch.randperm(int(kept.sum()), generator=torch.Generator().manual_seed(0))
    order = order[: max(1, ROWS // specs.n_agents)].to(episode.device)
    if len(torch.unique(episode[kept])) < EPISODES:
        return {}
    everywhere = (-1, -1, specs.n_agents)
    out: dict[str, float] = {}
    for variable in _variables(batch, specs):
        counts = variable.counts[kept][order]

        def rows(x: Tensor, counts: Tensor = counts) -> Tensor:
            return x[kept][order][counts]

        of, test = (rows(x.unsqueeze(-1).expand(everywhere)) for x in (episode, tested))
        if len(torch.unique(of)) < EPISODES or (held_out and (test.all() or not test.any())):
            continue
        common = dict(classes=variable.classes, episode=of, train=~test if held_out else split_episodes(of))
        target, prefix = rows(variable.values), f"probe/{variable.name}/"
        for name, x in representations.items():
            found = linear_probe(rows(x), target, **common)
            out |= _named(prefix + name, found)
        out[f"{prefix}chance"] = float(found.baseline)
        if ceiling is not None:
            out |= _named(f"{prefix}{ceiling}_mlp", mlp_probe(rows(representations[ceiling]), target, steps=500,
                                                               **common))
    return out


def _variables(batch: TensorDictBase, specs: Specs) -> Iterator[Variable]:
    alive = batch[specs.alive] if specs.alive else torch.ones_like(batch[OBSERVATION][..., 0], dtype=torch.bool)
    asked = alive & ~batch[specs.informed] if specs.informed else alive
    if PRIVILEGED in batch.keys(True):
        parts = batch[PRIVILEGED].split([width for _, width, _ in specs.hidden_parts], -1)
        for part, (name, width, is_one_hot) in zip(parts, specs.hidden_parts, strict=True):
            yield Variable(name, part.argmax(-1, keepdim=True) if is_one_hot else part, width if is_one_hot else None,
                           asked)
    if specs.n_agents == 1:
        return
    actions, asked = JointActions(specs).to(batch.device), asked & alive.all(-1, keepdim=True)
    yield Variable("others_observation", actions.of_others(batch[OBSERVATION]).flatten(-2), None, asked)
    if specs.param_mask is not None:  # a hybrid action is neither a class nor a vector
        return
    done = batch[ACTION].unsqueeze(-1) if specs.discrete else actions.encode(batch[ACTION])
    yield Variable("others_action", actions.of_others(done).flatten(-2), actions.choices, asked)


def _named(name: str, found: Probe) -> dict[str, float]:
    numbers = {name: float(found.score), f"{name}_error": float(found.error)}
    return {key: value for key, value in numbers.items() if math.isfinite(value)}  # one test episode has no error
