"""Hybrid tasks whose step and view are pure functions of tensors: one graph if compiled, one tensor as their state."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from envs.base import CHOICE, OBSERVATION, PARAMS, REWARD, SUCCESS, Tensors, count
from envs.compiling import one_graph
from envs.hybrid.base import HybridEnv, Step

AHEAD = 1024  # least number of starts that a CPU draws at once


class PureRules(HybridEnv):
    """A task of small pure functions; rows are the last dimension of its states.

    All numbers of a row stand in a column of one tensor. What agents see is made by the step itself, and a reset writes
    what the new episodes show. On a CPU new episodes are drawn ahead of use, because many at once cost what few do. A
    step is one graph and a reset another: at 4096 rows each call of torch costs 5 to 15 us, cold caches included, and
    all numbers of a step 50. A subclass implements ``_begin``, and calls `_set_rules` when it is constructed.

    Attributes:
        numbers: float32 [C, N], the state. ``state`` shows it as a NamedTuple of views [N] or [d, N], and can be set.
        seen: observations [N, 1, S] of it. ``success``: the same as float32 [N, 1].
    """

    ahead: Ahead | None = None
    look: Callable[[Any], Tensor] | None = None  # a state is set before the rules are

    def _set_rules(self, rules: Callable[[Any, Tensor, Tensor], Step], look: Callable[[Any], Tensor],
                   backend: str | None) -> None:
        """``rules`` takes states, choices [N] and parameters [N, P] in [-1, 1]; ``look`` makes observations [N, S]."""
        kind, sizes = self.kind, self.sizes  # a graph that knew the environment would look after it in every step
        limits = {"max_steps": self.max_steps, "truncate": self.truncate}

        def play(numbers: Tensor, seen: Tensor, success: Tensor, steps: Tensor, choice: Tensor,
                 params: Tensor) -> tuple[Tensor, ...]:
            step = rules(_unpack(numbers, kind, sizes), choice.squeeze(1), params.squeeze(1).clamp(-1.0, 1.0))
            counted, *flags = count(steps, step.terminated, **limits)
            shown, succeeds = look(step.state).unsqueeze(1), step.success.unsqueeze(-1)
            # in place: to set an attribute of an environment is as slow as to add two tensors
            seen.copy_(shown), success.copy_(succeeds), steps.copy_(counted)
            return (_pack(step.state), shown, succeeds.clone(), step.reward.view(-1, 1, 1),
                    *(flag.unsqueeze(-1) for flag in flags))

        self.rules, self.look = rules, look
        self._see_again()
        self.success = torch.zeros(self.num_envs, 1, device=self.device)
        # a reset of no row costs what it costs to ask whether there is one; with many rows the answer is known
        self.cheap_reset = self.cheap_reset or self.num_envs >= (self.max_steps or torch.inf)
        choice = torch.zeros(self.num_envs, 1, dtype=torch.int64, device=self.device)
        params = torch.zeros(self.num_envs, 1, self.param_mask.shape[-1], device=self.device)
        self.ahead = Ahead(self.numbers.new_zeros(len(self.numbers), max(self.num_envs, AHEAD)), self.look(self.state))
        parts = [part.clone() for part in self._parts()]
        self.play = one_graph(play, backend, *parts, choice, params, quick_bools=True)
        rows = torch.arange(2, device=self.device).unsqueeze(-1)
        backend = backend if self.device.type == "cpu" else None  # elsewhere nothing is drawn ahead
        self.put = one_graph(put, backend, *parts, *self.ahead.tensors, rows, free=(*[None] * 7, 0),
                             quick_bools=True)

    def _parts(self) -> tuple[Tensor, ...]:
        return self.numbers, self.seen, self.success, self.steps

    def _see_again(self) -> None:
        self.seen = self.look(self.state).unsqueeze(1)

    # ------------------------------------------------------------------ the state

    @property
    def state(self) -> NamedTuple:
        """The state, as views of ``numbers``."""
        return _unpack(self.numbers, self.kind, self.sizes)

    @state.setter
    def state(self, state: NamedTuple) -> None:
        self.kind, self.sizes = type(state), tuple(1 if part.ndim == 1 else len(part) for part in state)
        self.numbers = _pack(state)
        if self.look is not None:
            self._see_again()

    def row(self, env_index: int) -> NamedTuple:
        """One row's state on the CPU; ValueError if there is no such row."""
        self._check_row(env_index)
        return self.kind(*(part[..., env_index].cpu() for part in self.state))

    # ------------------------------------------------------------------ the base's methods

    # the plain rules, which the environment itself does not call

    def _advance(self, state: NamedTuple, choice: Tensor, params: Tensor) -> Step:
        return self.rules(state, choice, params)

    def _see(self, state: NamedTuple) -> Tensor:
        return self.look(state)

    def reset_tensors(self, mask: Tensor | None = None) -> Tensors:
        """As in the base; of some rows of a CPU in one graph."""
        if mask is None or self.device.type != "cpu":
            return super().reset_tensors(mask)
        return self._begin_again(mask)

    def _restart(self, mask: Tensor | None) -> None:
        if mask is None:
            self.state, self.success = self._begin(self.num_envs), torch.zeros_like(self.success)
        elif self.device.type == "cpu":
            self._begin_again(mask)
        else:  # draw for all rows: to ask which ones would stop the device
            self.numbers = torch.where(mask, _pack(self._begin(self.num_envs)), self.numbers)
            self.success = self.success.masked_fill(mask.unsqueeze(-1), 0.0)
            self._see_again()

    def _begin_again(self, mask: Tensor) -> Tensors:
        rows, ahead = mask.nonzero(), self.ahead
        if len(rows) > ahead.left:
            drawn = self._begin(ahead.tensors[0].shape[1])
            ahead.fill(_pack(drawn), self.look(drawn).unsqueeze(1))
        ahead.left -= len(rows)
        seen, success = self.put(*self._parts(), *ahead.tensors, rows)
        return {OBSERVATION: seen, SUCCESS: success}

    def _set_seed(self, seed: int | None) -> None:
        super()._set_seed(seed)
        if self.ahead is not None:
            self.ahead.left = 0

    def step_tensors(self, actions: Tensors) -> Tensors:
        """As in the base, with counters and flags in the same graph as the rules."""
        seen, success, reward, done, terminated, truncated = self._play(actions)
        return {OBSERVATION: seen, SUCCESS: success, REWARD: reward, "done": done, "terminated": terminated,
                "truncated": truncated}

    def _simulate(self, actions: Tensors) -> tuple[Tensor, Tensor]:
        steps = self.steps.clone()  # who asks for a step alone counts
        _, _, reward, _, terminated, _ = self._play(actions)
        self.steps = steps
        return reward.squeeze(-1), terminated.squeeze(-1)

    def _play(self, actions: Tensors) -> list[Tensor]:
        self.numbers, *rest = self.play(*self._parts(), actions[CHOICE], actions[PARAMS])
        return rest

    def _observe(self) -> Tensors:
        # fresh tensors: the state must not change with what others do to what they were shown
        return {OBSERVATION: self.seen.clone(), SUCCESS: self.success.bool()}

    def _capture(self) -> dict[str, Any]:
        left = self.ahead.left
        ahead = {"ahead": self.ahead.tensors[0][:, -left:].clone()} if left else {}
        return {"numbers": self.numbers.clone(), "success": self.success.flatten().bool(),
                "random": self.generator.get_state()} | ahead

    def _restore(self, state: dict[str, Any], mask: Tensor | None = None) -> None:
        numbers = state["numbers"].to(self.device).clone()
        success = state["success"].to(self.device, torch.float32).view(-1, 1)
        if mask is None:
            self.generator.set_state(state["random"].cpu())
            self.ahead.left = 0
            if (ahead := state.get("ahead")) is not None and ahead.shape[1]:
                ahead = ahead.to(self.device)
                self.ahead.fill(ahead, self.look(_unpack(ahead, self.kind, self.sizes)).unsqueeze(1))
        else:
            numbers = torch.where(mask, numbers, self.numbers)
            success = torch.where(mask.unsqueeze(-1), success, self.success)
        self.numbers, self.success = numbers, success
        self._see_again()


class Ahead:
    """Starts that are drawn ahead of use, of which the last ``left`` are.

    ``tensors``: their numbers [C, M], observations [M, 1, S], and how many of them are used, int64 [1].
    """

    def __init__(self, numbers: Tensor, seen: Tensor):
        self.tensors = (numbers, seen.new_zeros(numbers.shape[1], 1, seen.shape[-1]),
                        torch.zeros(1, dtype=torch.int64, device=seen.device))
        self.left = 0

    def fill(self, numbers: Tensor, seen: Tensor) -> None:
        """Put these in the place of what is left; they may be less than all."""
        self.left = len(seen)
        self.tensors[0][:, -self.left:], self.tensors[1][-self.left:] = numbers, seen
        self.tensors[2].fill_(len(self.tensors[1]) - self.left)


def put(numbers: Tensor, seen: Tensor, success: Tensor, steps: Tensor, ahead: Tensor, ahead_seen: Tensor,
        used: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
    """Put the next of the starts `Ahead` into ``rows`` [k, 1], and count them, in place.

    What all rows show then, fresh: observations [N, 1, S] and success bool [N, 1].
    """
    k = rows.shape[0]  # len() would be a number that a graph takes for granted
    places, rows = used + torch.arange(k, device=rows.device), rows.squeeze(-1)
    numbers.index_copy_(1, rows, ahead.index_select(1, places))
    seen.index_copy_(0, rows, ahead_seen.index_select(0, places))
    success.index_fill_(0, rows, 0.0)
    steps.index_fill_(0, rows, 0)
    used.add_(k)
    return seen.clone(), success.bool()


def _pack(state: NamedTuple) -> Tensor:
    return torch.cat([part.view(-1, part.shape[-1]) for part in state])


def _unpack(numbers: Tensor, kind: type[NamedTuple], sizes: tuple[int, ...]) -> NamedTuple:
    return kind(*(part[0] if size == 1 else part for part, size in zip(numbers.split(sizes), sizes, strict=True)))
