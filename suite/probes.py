"""Probes: how much of a hidden variable can be read off a representation, on episodes that the reader has not seen.

Rows are steps, M of them; a row's episode decides on which side of the split it lies, because steps of one episode are
no independent samples. Everything is deterministic and leaves the global random state alone.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

CONSTANT = 1e-8  # variance below which a target has nothing to predict


class Probe(NamedTuple):
    """What a probe found on its test rows.

    Attributes:
        score: accuracy of classes (mean over several targets), or R^2 averaged over the target's dimensions that vary;
            NaN if none does.
        error: standard error of the score over test episodes; NaN with a single one.
        baseline: score without any features: accuracy of the most frequent training class, or 0.
        by_dimension: R^2 [D], NaN for dimensions that do not vary; None for classes.
        prediction: int64 or float, shaped as the target (R^2: [M, D]), for all rows.
        test: bool [M], the rows that count.
    """

    score: float
    error: float
    baseline: float
    by_dimension: Tensor | None
    prediction: Tensor
    test: Tensor


def episode_ids(is_init: Tensor) -> Tensor:
    """int64 [B, T]: a number per episode, from bool [B, T] of first steps; what runs on from before is one too."""
    batch, steps = is_init.shape
    return is_init.long().cumsum(1) + (steps + 1) * torch.arange(batch, device=is_init.device)[:, None]


def split_episodes(episode: Tensor, *, share: float = 0.8, seed: int = 0) -> Tensor:
    """bool [M]: rows of a random ``share`` of the episodes [M], at least one on either side."""
    names, index = torch.unique(episode, return_inverse=True)
    if len(names) < 2:
        raise ValueError("rows of two episodes at least are needed: one to train a probe, one to test it")
    rank = torch.randperm(len(names), generator=torch.Generator().manual_seed(seed)).to(episode.device)
    return rank[index] < min(max(round(share * len(names)), 1), len(names) - 1)


@torch.no_grad()
def linear_probe(features: Tensor, target: Tensor, *, classes: int | None = None, ridge: float = 1e-3,
                 train: Tensor | None = None, episode: Tensor | None = None) -> Probe:
    """Ridge regression, or multinomial logistic regression where ``classes`` is given, in double precision.

    Features are standardised by the training rows. Regression minimises mean |y - x w|^2 + ridge |w|^2, and the
    logistic probe mean cross-entropy + ridge / 2 |w|^2, by L-BFGS from zero; intercepts are free.

    Args:
        features: [M, F].
        target: float [M] or [M, D]; int64 [M] if ``classes`` is given, or [M, K] for K independent targets.
        classes: number of classes of each; None for regression.
        ridge: strength of the penalty, independent of the number of rows.
        train: bool [M], rows to fit; the others are tested. None: those of 80 % of the episodes.
        episode: int64 [M]; None: every row is its own.

    Raises:
        ValueError: no rows on one side of the split, or an episode on both.
    """
    train, episode = _split(features, train, episode)
    x = _standardised(features.double(), train)
    if classes is not None:
        weight, bias = _fit_logistic(x[train], _columns(target)[train], classes, ridge)
        return _accuracy(_by_target(x @ weight + bias, classes).argmax(-1), target, classes, train, episode)
    y = _columns(target).double()
    centre, rows = y[train].mean(0), x[train]
    gram = rows.T @ rows / len(rows) + ridge * torch.eye(rows.shape[1], dtype=x.dtype, device=x.device)
    weight = torch.linalg.solve(gram, rows.T @ (y[train] - centre) / len(rows))
    return _variance_explained(x @ weight + centre, y, train, episode)


@torch.no_grad()
def mlp_probe(features: Tensor, target: Tensor, *, classes: int | None = None, train: Tensor | None = None,
              episode: Tensor | None = None, cells: Sequence[int] = (64, 64), steps: int = 2000, batch: int = 1024,
              lr: float = 1e-3, seed: int = 0) -> Probe:
    """The same with a ReLU network, as a ceiling of what the features hold; see `linear_probe`.

    Adam on standardised features and targets. With five training episodes or more, a fifth of them is kept aside to
    choose the step whose network is tested.
    """
    train, episode = _split(features, train, episode)
    x = _standardised(features.float(), train)
    y = _columns(target) if classes is not None else _standardised(_columns(target).float(), train)
    fit = train
    if len(torch.unique(episode[train])) >= 5:
        fit = train.clone()
        fit[train] = split_episodes(episode[train], seed=seed)
    kept = train & ~fit if (fit != train).any() else train
    out = y.shape[1] * (1 if classes is None else classes)
    network = _fit_network((x[fit], y[fit]), (x[kept], y[kept]), (x.shape[1], *cells, out), steps, batch, lr, seed)
    guess = network(x)
    if classes is not None:
        return _accuracy(_by_target(guess, classes).argmax(-1), target, classes, train, episode)
    y = _columns(target).double()
    mean, scale = _moments(y, train)
    return _variance_explained(guess.double() * scale + mean, y, train, episode)


# ---------------------------------------------------------------------- fitting


def _fit_logistic(x: Tensor, y: Tensor, classes: int, ridge: float) -> tuple[Tensor, Tensor]:
    """Weights [F, K classes] and biases for labels [M, K]: the sum of K problems, none of which knows the others."""
    with torch.inference_mode(False), torch.enable_grad():
        x, y = x.clone(), y.clone()  # tensors of inference mode cannot be differentiated through
        out = y.shape[1] * classes
        weight = torch.zeros(x.shape[1], out, dtype=x.dtype, device=x.device, requires_grad=True)
        bias = torch.zeros(out, dtype=x.dtype, device=x.device, requires_grad=True)
        optimizer = torch.optim.LBFGS([weight, bias], max_iter=200, tolerance_grad=1e-7, line_search_fn="strong_wolfe")

        def closure() -> Tensor:
            optimizer.zero_grad()
            loss = y.shape[1] * _cross_entropy(x @ weight + bias, y) + 0.5 * ridge * weight.square().sum()
            loss.backward()
            return loss

        optimizer.step(closure)
    return weight.detach(), bias.detach()


def _cross_entropy(logits: Tensor, y: Tensor) -> Tensor:
    """Mean over rows and targets, of logits [M, K C] for labels [M, K]."""
    return F.cross_entropy(logits.view(y.numel(), -1), y.flatten())


def _by_target(logits: Tensor, classes: int) -> Tensor:
    """[M, K C] -> [M, K, C]."""
    return logits.unflatten(-1, (-1, classes))


def _fit_network(data: tuple[Tensor, Tensor], kept: tuple[Tensor, Tensor], sizes: Sequence[int], steps: int, batch: int,
                 lr: float, seed: int) -> Callable[[Tensor], Tensor]:
    with torch.inference_mode(False), torch.enable_grad():
        generator = torch.Generator().manual_seed(seed)  # on the CPU: the same draws on every device
        (x, y), kept = (part.clone() for part in data), tuple(part.clone() for part in kept)
        weights = [weight.to(x.device).requires_grad_() for weight in _initial(sizes, generator)]
        error = F.mse_loss if y.is_floating_point() else _cross_entropy
        optimizer = torch.optim.Adam(weights, lr=lr)
        best, chosen = math.inf, weights
        for step in range(1, steps + 1):
            rows = torch.randint(len(x), (min(batch, len(x)),), generator=generator).to(x.device)
            optimizer.zero_grad()
            error(_forward(weights, x[rows]), y[rows]).backward()
            optimizer.step()
            if step % max(steps // 40, 1) == 0 or step == steps:
                with torch.no_grad():
                    loss = error(_forward(weights, kept[0]), kept[1]).item()
                if loss < best:
                    best, chosen = loss, [weight.detach().clone() for weight in weights]
    return lambda inputs: _forward(chosen, inputs)


def _initial(sizes: Sequence[int], generator: torch.Generator) -> list[Tensor]:
    """Weights and biases from U(+-1 / sqrt(fan-in)), as nn.Linear draws them, but from a generator."""
    return [(2 * torch.rand(shape, generator=generator) - 1) / math.sqrt(fan_in)
            for fan_in, fan_out in pairwise(sizes) for shape in ((fan_in, fan_out), (fan_out,))]


def _forward(weights: Sequence[Tensor], x: Tensor) -> Tensor:
    for i in range(0, len(weights), 2):
        x = x @ weights[i] + weights[i + 1]
        if i < len(weights) - 2:
            x = x.relu()
    return x


# ---------------------------------------------------------------------- scoring


def _accuracy(guess: Tensor, target: Tensor, classes: int, train: Tensor, episode: Tensor) -> Probe:
    test, labels = ~train, _columns(target)
    right = (guess == labels)[test].double().mean(-1)
    common = F.one_hot(labels[train], classes).sum(0).argmax(-1)
    score = right.mean()
    error = _standard_error((right - score) / len(right), episode[test])
    baseline = (labels[test] == common).double().mean()
    return Probe(score.item(), error, baseline.item(), None, guess.view_as(target), test)


def _variance_explained(guess: Tensor, y: Tensor, train: Tensor, episode: Tensor) -> Probe:
    """R^2 per dimension; its standard error by linearisation of the ratio of two sums over episodes."""
    test = ~train
    varies = (y[train].var(0, correction=0) > CONSTANT) & (y[test].var(0, correction=0) > CONSTANT)
    left = (guess - y)[test].square()
    spread = (y[test] - y[test].mean(0)).square()
    total = spread.sum(0)
    r2 = torch.where(varies, 1 - left.sum(0) / total, torch.nan)
    if not varies.any():
        return Probe(math.nan, math.nan, 0.0, r2, guess, test)
    influence = ((left - (1 - r2) * spread) / total)[:, varies].mean(-1)
    return Probe(r2[varies].mean().item(), _standard_error(influence, episode[test]), 0.0, r2, guess, test)


def _standard_error(influence: Tensor, episode: Tensor) -> float:
    """Of a statistic whose rows have this influence on it [M], when whole episodes are the independent samples."""
    names, index = torch.unique(episode.cpu(), return_inverse=True)
    n = len(names)
    if n < 2:
        return math.nan
    sums = torch.zeros(n, dtype=influence.dtype).index_add_(0, index, influence.cpu())
    return math.sqrt(n / (n - 1) * sums.square().sum().item())


def _split(features: Tensor, train: Tensor | None, episode: Tensor | None) -> tuple[Tensor, Tensor]:
    if episode is None:
        episode = torch.arange(len(features), device=features.device)
    if train is None:
        return split_episodes(episode), episode
    if train.all() or not train.any():
        raise ValueError("a probe needs rows to train on and rows to be tested on")
    if torch.isin(episode[train], episode[~train]).any():
        raise ValueError("an episode has rows on both sides of the split; its steps are no independent samples")
    return train, episode


def _columns(target: Tensor) -> Tensor:
    return target.unsqueeze(-1) if target.ndim == 1 else target


def _moments(x: Tensor, train: Tensor) -> tuple[Tensor, Tensor]:
    variance = x[train].var(0, correction=0)
    return x[train].mean(0), torch.where(variance > CONSTANT, variance, 1.0).sqrt()


def _standardised(x: Tensor, train: Tensor) -> Tensor:
    mean, scale = _moments(x, train)
    return (x - mean) / scale
