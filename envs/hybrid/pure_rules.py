"""Hybrid tasks whose step and view are pure functions of tensors: one graph if compiled, one tensor as their state."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from envs.base import CHOICE, DONE_KEYS, OBSERVATION, PARAMS, REWARD, SUCCESS, Tensors, count
from envs.compiling import one_graph
from envs.hybrid.base import HybridEnv, Step

AHEAD = 1024  # least number of starts that a CPU draws at once


class PureRules(HybridEnv):
    """A task of small pure functions; rows are the last dimension of its states.

    All numbers of a row stand in a column of one tensor, so that a reset writes once. What agents see is made by the
    step itself, and a reset writes what the new episodes show. On a CPU new episodes are drawn ahead of use, because
    many at once cost what few do. A subclass implements ``_begin``, and calls `_set_rules` when it is constructed.

    Attributes:
        numbers: float32 [C, N], the state. ``state`` shows it as a NamedTuple of views [N] or [d, N], and can be set.
        seen: observations [N, 1, S] of it. ``success``: bool [N, 1].
    """

    def _set_rules(self, rules: Callable[[Any, Tensor, Tensor], Step], look: Callable[[Any], Tensor],
                   backend: str | None) -> None:
        """``rules`` takes states, choices [N] and parameters [N, P] in [-1, 1]; ``look`` makes observations [N, S]."""
        kind, sizes = self.kind, self.sizes  # a graph that knew the environment would look after it in every step
        limits = {"max_steps": self.max_steps, "truncate": self.truncate}

        def play(numbers: Tensor, steps: Tensor, choice: Tensor, params: Tensor) -> tuple[Tensor, ...]:
            step = rules(_unpack(numbers, kind, sizes), choice.squeeze(1), params.squeeze(1).clamp(-1.0, 1.0))
            steps, *flags = count(steps, step.terminated, **limits)
            return (_pack(step.state), steps, look(step.state).unsqueeze(1), step.reward.view(-1, 1, 1),
                    *(flag.unsqueeze(-1) for flag in (*flags, step.success)))

        self.rules, self.look = rules, look
        self.success = self.success.view(-1, 1)
        choice = torch.zeros(self.num_envs, 1, dtype=torch.int64, device=self.device)
        params = torch.zeros(self.num_envs, 1, self.param_mask.shape[-1], device=self.device)
        self.play = one_graph(play, backend, self.numbers, self.steps, choice, params)
        self._see_again()

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
        if hasattr(self, "look"):
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

    def _restart(self, mask: Tensor | None) -> None:
        if mask is None:
            self.state, self.success = self._begin(self.num_envs), torch.zeros_like(self.success)
            return
        if self.cheap_reset:  # draw for all rows: to ask which ones would stop the device
            self.numbers = torch.where(mask, _pack(self._begin(self.num_envs)), self.numbers)
            self._see_again()
            self.success = self.success & ~mask.unsqueeze(-1)
        else:
            rows = mask.nonzero().squeeze(-1)
            numbers, seen = self._starts(len(rows))
            self.numbers.index_copy_(1, rows, numbers)
            self.seen.index_copy_(0, rows, seen)
            self.success = self.success.index_fill(0, rows, 0)  # may be what a step handed out as terminated

    def _starts(self, rows: int) -> tuple[Tensor, Tensor]:
        """The next new episodes: numbers [C, rows], observations [rows, 1, S]."""
        if self.ahead is None or self.used + rows > len(self.ahead[1]):
            drawn = self._begin(max(self.num_envs, AHEAD))
            self.ahead, self.used = (_pack(drawn), self.look(drawn).unsqueeze(1)), 0
        numbers, seen = self.ahead
        self.used += rows
        return numbers[:, self.used - rows:self.used], seen[self.used - rows:self.used]

    def _set_seed(self, seed: int | None) -> None:
        super()._set_seed(seed)
        self.ahead, self.used = None, 0  # starts that are drawn, and how many are in use

    def step_tensors(self, actions: Tensors) -> Tensors:
        """As in the base, with counters and flags in the same graph as the rules."""
        self.steps, reward, *flags = self._played(actions)
        return self._observe() | {REWARD: reward} | dict(zip(DONE_KEYS, flags, strict=True))

    def _simulate(self, actions: Tensors) -> tuple[Tensor, Tensor]:
        _, reward, _, terminated, _ = self._played(actions)
        return reward.squeeze(-1), terminated.squeeze(-1)

    def _played(self, actions: Tensors) -> tuple[Tensor, ...]:
        self.numbers, steps, self.seen, *rest, self.success = self.play(self.numbers, self.steps, actions[CHOICE],
                                                                        actions[PARAMS])
        return steps, *rest

    def _observe(self) -> Tensors:
        # clones: the state must not change with what others do to what they were shown
        return {OBSERVATION: self.seen.clone(), SUCCESS: self.success.clone()}

    def _capture(self) -> dict[str, Any]:
        ahead = {} if self.ahead is None else {"ahead": self.ahead[0][:, self.used:].clone()}
        return {"numbers": self.numbers.clone(), "success": self.success.flatten().clone(),
                "random": self.generator.get_state()} | ahead

    def _restore(self, state: dict[str, Any], mask: Tensor | None = None) -> None:
        numbers, success = (state[name].to(self.device).clone() for name in ("numbers", "success"))
        success = success.view(-1, 1)
        if mask is None:
            self.generator.set_state(state["random"].cpu())
            self.ahead, self.used = None, 0
            if (ahead := state.get("ahead")) is not None:
                ahead = ahead.to(self.device).clone()
                self.ahead = ahead, self.look(_unpack(ahead, self.kind, self.sizes)).unsqueeze(1)
        else:
            numbers, success = torch.where(mask, numbers, self.numbers), torch.where(mask.unsqueeze(-1), success, self.success)
        self.numbers, self.success = numbers, success
        self._see_again()


def _pack(state: NamedTuple) -> Tensor:
    return torch.cat([part.view(-1, part.shape[-1]) for part in state])


def _unpack(numbers: Tensor, kind: type[NamedTuple], sizes: tuple[int, ...]) -> NamedTuple:
    return kind(*(part[0] if size == 1 else part for part, size in zip(numbers.split(sizes), sizes, strict=True)))
