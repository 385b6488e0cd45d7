"""Metrics of state modelling: how well agents predict the others' actions, the next observation and the reward, and
what their latent is worth.

Pure functions of tensors for any loss that models the others; nothing here knows one. N agents, P = N - 1 others of
each, A choices, D observation features; "..." are any leading dimensions, such as environments and steps. A weight
counts every entry (validity times both agents being alive), and all means are over the sum of weights: no weight at all
gives 0. Results are 0-d tensors on the data's device; `as_floats` fetches them in one transfer. Names are logging keys
without their prefix.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from suite.modules.gaussian import LOG_SQRT_2PI, Direction, kl_divergence, kl_to_unit, nll

Gaussian = tuple[Tensor, Tensor]  # mean and log-sigma
Model = Callable[[Tensor, Tensor, Tensor], Tensor]
LEAST_GAP = 1e-3  # nats between marginal and floor below which there is nothing to predict
LEAST_VARIANCE = 1e-8  # of standardised features and rewards
ACTIVE = 1e-2  # variance of a latent's mean (Burda et al. 2016, section 2)


def as_floats(metrics: Mapping[str, Tensor], prefix: str = "") -> dict[str, float]:
    """Metrics as plain numbers, named with a prefix such as "moa/"."""
    if not metrics:
        return {}
    values = torch.stack([value.detach().double() for value in metrics.values()]).tolist()
    return {prefix + name: value for name, value in zip(metrics, values, strict=True)}


def skill(error: Tensor, baseline: Tensor, floor: Tensor | float = 0.0, *, least: float) -> Tensor:
    """(baseline - error) / (baseline - floor): 0 as good as the baseline, 1 the best there is.

    0 by definition where the baseline is less than ``least`` above the floor.
    """
    gap = baseline - floor
    return torch.where(gap < least, 0.0, (baseline - error) / gap.clamp_min(least))


def steps_into_episodes(start: Tensor) -> dict[int, Tensor]:
    """{k: bool [B, T], steps k to 2 k - 1 of an episode}, k = 1, 2, 4, ..., from first steps bool [B, T], which are 0.

    Episodes that began before are in none, since how long ago is not known, and k that no episode reaches are left out
    (which asks the host).
    """
    time = torch.arange(start.shape[1], device=start.device)
    began = torch.where(start, time, -start.shape[1]).cummax(1).values
    step = torch.where(began < 0, 0, time - began)
    bins = {k: (step >= k) & (step < 2 * k) for k in (2**i for i in range(start.shape[1].bit_length()))}
    return {k: here for k, here in bins.items() if here.any()}


# ---------------------------------------------------------------------- actions of the others


def action_frequencies(target: Tensor, n: int, weight: Tensor | None = None, *, smoothing: float = 1.0) -> Tensor:
    """How often each other agent took each of its ``n`` actions [N, P, n], from training actions [..., N, P].

    ``smoothing`` is added to every count (Laplace), so that an action seen only later costs a finite number of nats.
    """
    counts = _one_hot(target, n, torch.float64)
    if weight is not None:
        counts = counts * weight.unsqueeze(-1)
    counts = counts.flatten(0, -4).sum(0) + smoothing
    return counts / counts.sum(-1, keepdim=True)


def categorical_entropy(logits: Tensor) -> Tensor:
    """Entropy [...] in nats of a categorical distribution [..., A]; impossible actions (-inf) contribute nothing."""
    return torch.special.entr(logits.softmax(-1)).sum(-1)


def action_prediction(logits: Tensor, target: Tensor, weight: Tensor | None = None, *, frequencies: Tensor,
                      previous: Tensor | None = None, repeats: Tensor | None = None, entropy: Tensor | None = None,
                      dim: Sequence[int] | None = None) -> dict[str, Tensor]:
    """Predictions of the others' discrete actions against what needs no model.

    Args:
        logits: [..., N, P, A] of agent i for its other j; impossible actions hold -inf or a large negative number.
        target: int64 [..., N, P], what j did.
        weight: [..., N, P].
        frequencies: [N, P, A] of the training actions, from `action_frequencies`.
        previous: int64 [..., N, P], what j did one step before; repeats: the weight of its comparison, where that is
            not known of all; None: ``weight``.
        entropy: [..., N, P] of the policy that acted: no model can be below its mean, except by sampling noise.
        dim: average over these dimensions only, for curves over time steps or pairs; None: all.

    Returns:
        ce, acc, ce_marginal, acc_marginal; acc_repeat with ``previous``; ce_floor and skill with ``entropy``; ece,
        unless ``dim`` is given.
    """
    frequencies = frequencies.to(logits.dtype)
    log_prob = logits.log_softmax(-1)
    marginal = frequencies.log().expand_as(logits)
    found = {
        "ce": _mean(-_pick(log_prob, target), weight, dim),
        "acc": _mean(_same(logits.argmax(-1), target, logits), weight, dim),
        "ce_marginal": _mean(-_pick(marginal, target), weight, dim),
        "acc_marginal": _mean(_same(frequencies.argmax(-1), target, logits), weight, dim),
    }
    if previous is not None:
        found["acc_repeat"] = _mean(_same(previous, target, logits), weight if repeats is None else repeats, dim)
    if entropy is not None:
        found["ce_floor"] = _mean(entropy.to(logits.dtype), weight, dim)
        found["skill"] = skill(found["ce"], found["ce_marginal"], found["ce_floor"], least=LEAST_GAP)
    if dim is None:
        found["ece"] = calibration_error(log_prob.exp(), target, weight)
    return found


def calibration_error(probabilities: Tensor, target: Tensor, weight: Tensor | None = None, *, bins: int = 15) -> Tensor:
    """Expected calibration error (Guo et al. 2017, eq. 5) of probabilities [..., A] for targets int64 [...].

    Bins ((m - 1) / 15, m / 15] of the highest probability; sum of |accuracy - confidence| by each bin's weight.
    """
    confidence, guess = probabilities.max(-1)
    bin_of = ((confidence * bins).ceil().long() - 1).clamp(0, bins - 1)
    gap = _same(guess, target, probabilities) - confidence
    weight = torch.ones_like(gap) if weight is None else weight.to(gap.dtype).expand_as(gap)
    gap = torch.where(weight > 0, gap * weight, 0.0)
    per_bin = (gap.unsqueeze(-1) * _one_hot(bin_of, bins, gap.dtype)).flatten(0, -2).sum(0)
    total = weight.sum()
    return torch.where(total > 0, per_bin.abs().sum() / total, 0.0)


def action_moments(target: Tensor, weight: Tensor | None = None, dims: Tensor | None = None) -> Gaussian:
    """Mean and log-sigma [N, P, d] of each other agent's continuous actions [..., N, P, d], as a marginal baseline.

    Where ``dims`` bool [N, P, d] is False there is no action, but padding of zeros, which has a likelihood of 1.
    """
    rows = target.flatten(0, -4)
    weight = None if weight is None else weight.unsqueeze(-1).expand_as(target).flatten(0, -4)
    mean = _mean(rows, weight, (0,))
    variance = _mean((rows - mean).square(), weight, (0,))
    log_sigma = 0.5 * variance.clamp_min(LEAST_VARIANCE).log()
    return mean, log_sigma if dims is None else torch.where(dims, log_sigma, -LOG_SQRT_2PI)


def gaussian_entropy(log_sigma: Tensor) -> Tensor:
    """Differential entropy [...] of diagonal Gaussians [..., d], in nats."""
    return (log_sigma + 0.5 * math.log(2 * math.pi * math.e)).sum(-1)


def continuous_action_prediction(prediction: Gaussian, target: Tensor, weight: Tensor | None = None, *,
                                 marginal: Gaussian, previous: Tensor | None = None, repeats: Tensor | None = None,
                                 entropy: Tensor | None = None, dims: Tensor | None = None,
                                 dim: Sequence[int] | None = None) -> dict[str, Tensor]:
    """The same for continuous actions: mean and log-sigma [..., N, P, d] for targets [..., N, P, d].

    ``dims`` bool [N, P, d] is False in padding, which no squared error counts; predictions and ``marginal`` give it a
    likelihood of 1.

    Returns:
        nll (summed over d), mse (mean over d), nll_marginal, mse_marginal; mse_repeat with ``previous``; nll_floor and
        skill with ``entropy`` [..., N, P], the differential entropy of the policy that acted, or an estimate of it such
        as minus the log-density of what it did.
    """
    def error(guess: Tensor, weight: Tensor | None = weight) -> Tensor:
        return _mean(_feature_error(guess, target, dims), weight, dim)

    found = {"nll": _mean(nll(*prediction, target), weight, dim), "mse": error(prediction[0]),
             "nll_marginal": _mean(nll(*marginal, target), weight, dim), "mse_marginal": error(marginal[0])}
    if previous is not None:
        found["mse_repeat"] = error(previous, weight if repeats is None else repeats)
    if entropy is not None:
        found["nll_floor"] = _mean(entropy, weight, dim)
        found["skill"] = skill(found["nll"], found["nll_marginal"], found["nll_floor"], least=LEAST_GAP)
    return found


# ---------------------------------------------------------------------- next observation and reward


def varying(x: Tensor) -> Tensor:
    """bool [D]: which features [..., D] are not constant; the others are padding and belong to no mean."""
    return x.flatten(0, -2).var(0, correction=0) > LEAST_VARIANCE


def observation_prediction(prediction: Tensor, target: Tensor, last: Tensor, weight: Tensor | None = None, *,
                           dims: Tensor | None = None) -> dict[str, Tensor]:
    """obs_mse, obs_mse_copy (nothing changes) and obs_skill_1 of next observations [..., N, D], ``last`` the present.

    ``weight`` [..., N]; ``dims`` bool [D] or [N, D] chooses the features that count.
    """
    error = _mean(_feature_error(prediction, target, dims), weight)
    copy = _mean(_feature_error(last, target, dims), weight)
    return {"obs_mse": error, "obs_mse_copy": copy, "obs_skill_1": skill(error, copy, least=LEAST_VARIANCE)}


def open_loop(model: Model, observation: Tensor, following: Tensor, own: Tensor, others: Tensor, done: Tensor,
              weight: Tensor | None = None, *, horizons: Sequence[int] = (1, 3, 5, 10), dims: Tensor | None = None,
              predict_others: Model | None = None) -> dict[str, Tensor]:
    """Skill of predictions k steps ahead that see no observation on the way, against copying the last one seen.

    Every step of the batch is a start, as long as the horizon stays inside its episode; own actions are those taken.
    The models have no memory but their inputs.

    Args:
        model: (observation [B, S, N, D], own actions [B, S, N, E], others' [B, S, N, P, E]) -> next observation.
        observation: [B, T, N, D].
        following: [B, T, N, D], observation after the step: at an episode's end the last one, not the next episode's.
        own: encoded actions [B, T, N, E].
        others: encoded actions of the others [B, T, N, P, E].
        done: bool [B, T], the episode ends with this step.
        weight: [B, T, N].
        horizons: steps ahead.
        dims: bool [D] or [N, D], features that count.
        predict_others: the same inputs of the step before -> others' actions of this one [B, S, N, P, E]; None: the
            true ones. Starts then need a step before them.

    Returns:
        obs_skill_<k> for every horizon.

    Raises:
        ValueError: the batch is too short for a horizon.
    """
    first, steps = (0 if predict_others is None else 1), observation.shape[1]
    if max(horizons) > steps - first:
        raise ValueError(f"a horizon of {max(horizons)} steps needs more than {steps - 1 + first} steps, got {steps}")
    weight = torch.ones_like(observation[..., 0]) if weight is None else weight.to(observation.dtype)
    goes_on = (~done).to(weight.dtype).unsqueeze(-1)
    start, counts = observation[:, first:], torch.ones_like(weight[:, first:])
    before = tuple(x[:, : steps - first] for x in (observation, own, others))
    state, found = start, {}
    for k in range(1, max(horizons) + 1):
        length, now = steps - first - k + 1, first + k - 1
        counts = counts[:, :length] * weight[:, now:]
        if now:
            counts = counts * goes_on[:, now - 1 : -1]
        state, before = state[:, :length], tuple(x[:, :length] for x in before)
        acts = others[:, now:] if predict_others is None else predict_others(*before)
        before = state, own[:, now:], acts
        state = model(*before)
        if k in horizons:
            scores = observation_prediction(state, following[:, now:], start[:, :length], counts, dims=dims)
            found[f"obs_skill_{k}"] = scores["obs_skill_1"]
    return found


def joint_gain(model: Model, observation: Tensor, following: Tensor, own: Tensor, others: Tensor,
               weight: Tensor | None = None, *, dims: Tensor | None = None) -> Tensor:
    """gain_joint: skill_1 with the others' actions minus that of the same model told zeros; shapes of `open_loop`."""
    with_them, without = (
        observation_prediction(model(observation, own, acts), following, observation, weight, dims=dims)["obs_skill_1"]
        for acts in (others, torch.zeros_like(others)))
    return with_them - without


def reward_prediction(prediction: Tensor, target: Tensor, weight: Tensor | None = None) -> dict[str, Tensor]:
    """rew_r2 (0 if the reward is constant) and rew_auc_event of predicted rewards, all shapes equal.

    The latter is the probability that |r_hat| ranks a step with reward above one without, ties counting half (0.5 if
    one of the two never happens): for sparse rewards, where the variance explained says little.
    """
    weight = torch.ones_like(target) if weight is None else weight.to(target.dtype).expand_as(target)
    spread = _mean((target - _mean(target, weight)).square(), weight)
    error = _mean((prediction - target).square(), weight)
    return {"rew_r2": skill(error, spread, least=LEAST_VARIANCE),
            "rew_auc_event": rank_auc(prediction.abs(), target != 0, weight).to(target.dtype)}


def rank_auc(score: Tensor, event: Tensor, weight: Tensor | None = None) -> Tensor:
    """Area under the ROC curve (Mann-Whitney U) of ``score`` for bool ``event``, same shapes; 0.5 lacking a kind."""
    score, event = score.flatten(), event.flatten()
    weight = torch.ones_like(score) if weight is None else weight.flatten()
    score, order = torch.where(weight > 0, score, 0.0).sort()
    weight, event = weight[order].double(), event[order]
    negatives = torch.cat([weight.new_zeros(1), (weight * ~event).cumsum(0)])  # below each rank
    low, high = torch.searchsorted(score, score), torch.searchsorted(score, score, right=True)
    wins = (weight * event * 0.5 * (negatives[low] + negatives[high])).sum()
    pairs = (weight * event).sum() * negatives[-1]
    return torch.where(pairs > 0, wins / pairs, 0.5)


# ---------------------------------------------------------------------- latent


def active_units(mean: Tensor, weight: Tensor | None = None) -> Tensor:
    """Number of latent dimensions whose mean [..., d] varies over the data by more than 0.01 (Burda et al. 2016)."""
    rows = mean.flatten(0, -2)
    weight = None if weight is None else weight.flatten().unsqueeze(-1)
    centred = rows - _mean(rows, weight, (0,))
    return (_mean(centred.square(), weight, (0,)) > ACTIVE).sum()


def latent_statistics(student: Gaussian, teacher: Gaussian | None = None, weight: Tensor | None = None, *,
                      direction: Direction = "student_to_teacher") -> dict[str, Tensor]:
    """What a latent carries; Gaussians are (mean, log-sigma) [..., d], ``weight`` [...].

    Returns:
        active_units; with a teacher kl in the given direction, kl_prior of the teacher to the unit Gaussian (both
        summed over d) and calibration, mean_d ((mu_t - mu_s)^2 + sigma_t^2) / sigma_s^2, which is 1 where the
        student's spread is what it does not know of the teacher.
    """
    found = {"active_units": active_units(student[0], weight)}
    if teacher is not None:
        pair = (*student, *teacher) if direction == "student_to_teacher" else (*teacher, *student)
        distance = (teacher[0] - student[0]).square() + (2 * teacher[1]).exp()
        found |= {"kl": _mean(kl_divergence(*pair).sum(-1), weight),
                  "kl_prior": _mean(kl_to_unit(*teacher).sum(-1), weight),
                  "calibration": _mean((distance * (-2 * student[1]).exp()).mean(-1), weight)}
    return found


# ---------------------------------------------------------------------- means


def _mean(x: Tensor, weight: Tensor | None = None, dim: Sequence[int] | None = None) -> Tensor:
    """Weighted mean over ``dim`` (None: all); entries without weight may be anything, also inf or NaN."""
    dim = tuple(range(x.ndim)) if dim is None else tuple(dim)
    if weight is None:
        return x.mean(dim)
    weight = weight.to(x.dtype).expand_as(x)
    total = (torch.where(weight > 0, x, 0.0) * weight).sum(dim)
    count = weight.sum(dim)
    return torch.where(count > 0, total / count, 0.0)


def _feature_error(prediction: Tensor, target: Tensor, dims: Tensor | None) -> Tensor:
    error = (prediction - target).square()
    return error.mean(-1) if dims is None else _mean(error, dims, (-1,))


def _one_hot(index: Tensor, n: int, dtype: torch.dtype) -> Tensor:
    return (index.unsqueeze(-1) == torch.arange(n, device=index.device)).to(dtype)


def _pick(table: Tensor, index: Tensor) -> Tensor:
    return table.gather(-1, index.unsqueeze(-1)).squeeze(-1)


def _same(guess: Tensor, target: Tensor, like: Tensor) -> Tensor:
    return (guess == target).to(like.dtype)
