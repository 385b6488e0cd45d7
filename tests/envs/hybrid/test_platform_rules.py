"""Platform's rules against recorded trajectories of gym-platform, with the recorded draws."""

import pytest
import torch

from envs.hybrid.macro import masked
from envs.hybrid.platform_rules import (
    HOP,
    LEAP,
    LENGTH,
    RUN,
    TOP,
    Platform,
    advance,
    is_over,
    observe,
    push,
    stands,
    start,
    sub_step,
)
from tests.archives import Golden

torch.set_num_threads(1)

GOLDEN = Golden("hyar", "env_platform")
RUNS = [f"traj{k}" for k in range(5)] + [f"zero{k}" for k in range(4)]
EXACT = 1e-9
NOISELESS = masked(lambda k, work, keys: sub_step(work, torch.zeros(2, work.shape[1], dtype=work.dtype)))


def close(ours, theirs, tolerance=EXACT):
    torch.testing.assert_close(ours, theirs, rtol=0, atol=tolerance)


def recorded(run):
    return lambda key: GOLDEN[f"{run}_{key}"]


def unpacked(states):
    """A state from the recorded rows [N, 8]."""
    return Platform(*states.t().clone())


def packed(state):
    return torch.stack(list(state), -1)


def injected(runs, times, dtype=torch.float64):
    """Jump numbers [2, N], a masked sub-step and its keys, which draw what step ``times[i]`` of run i drew."""
    parts = [(recorded(run), t) for run, t in zip(runs, times, strict=True)]
    longest = max(of("n_accel").shape[1] for of, _ in parts) + 4
    numbers = torch.zeros(longest, 2, len(parts), dtype=dtype)
    for i, (of, t) in enumerate(parts):
        numbers[:of("n_accel").shape[1], :, i] = torch.stack([of("n_accel")[t], of("n_enemy")[t]], -1)
    jump = torch.stack([of("n_jump")[t] for of, t in parts], -1).to(dtype)
    keys = torch.arange(len(parts), dtype=torch.int32).unsqueeze(0)
    return jump, masked(lambda k, work, rows: sub_step(work, numbers[k.clamp(max=longest - 1)][:, rows[0]])), keys


def step(state, runs, times):
    """The recorded step ``times[i]`` of run i from these states."""
    action = torch.stack([recorded(run)("act")[t] for run, t in zip(runs, times, strict=True)])
    param = torch.stack([recorded(run)("param_scaled")[t] for run, t in zip(runs, times, strict=True)])
    return advance(state, action, param.to(state.x.dtype), *injected(runs, times, state.x.dtype))


def check(out, runs, times):
    for i, (run, t) in enumerate(zip(runs, times, strict=True)):
        of = recorded(run)
        close(packed(out.state)[i], of("state")[t + 1])
        close(out.reward[i], of("reward")[t])
        close(observe(out.state)[i], of("obs_scaled")[t + 1])
        assert out.ran.count[i] == of("nsub")[t] and out.over[i] == of("done")[t]
        assert out.success[i] == (of("state")[t + 1, 0] >= LENGTH) and not out.ran.cut[i]


def test_start():
    state = start(3, dtype=torch.float64)
    for run in RUNS:
        close(packed(state), recorded(run)("state")[:1].expand(3, 8))
        close(observe(state), recorded(run)("obs_scaled")[:1].expand(3, 9))


@pytest.mark.parametrize("run", RUNS)
def test_every_recorded_step_at_once(run):
    """Each step from the recorded state: as many rows as steps."""
    steps = len(recorded(run)("act"))
    runs, times = [run] * steps, list(range(steps))
    check(step(unpacked(recorded(run)("state")[:-1]), runs, times), runs, times)


def test_all_recorded_episodes_run_free_in_one_batch():
    """From the start to their ends, which come at different times."""
    state, total = start(len(RUNS), dtype=torch.float64), torch.zeros(len(RUNS), dtype=torch.float64)
    lengths = torch.tensor([len(recorded(run)("act")) for run in RUNS])
    for t in range(max(lengths)):
        out = step(state, RUNS, torch.minimum(lengths - 1, torch.tensor(t)).tolist())
        state = out.state
        live = (t < lengths).nonzero().squeeze(-1)
        total[live] += out.reward[live]
        check(Outcome(out, live), [RUNS[i] for i in live], [t] * len(live))
    at_goal = [recorded(run)("state")[-1, 0] >= LENGTH for run in RUNS]
    assert any(at_goal)
    close(total[torch.tensor(at_goal)], torch.ones(sum(at_goal), dtype=torch.float64))


class Outcome:
    """Some rows of an outcome."""

    def __init__(self, out, rows):
        self.state, self.reward = Platform(*(x[rows] for x in out.state)), out.reward[rows]
        self.over, self.success, self.ran = out.over[rows], out.success[rows], self
        self.count, self.cut = out.ran.count[rows], out.ran.cut[rows]


@pytest.mark.parametrize("run", RUNS)
def test_every_recorded_sub_step(run):
    of = recorded(run)
    before = torch.cat([of("state")[:-1].unsqueeze(1), of("sub_state")[:, :-1]], 1)  # [T, S, 8]
    t, k = (torch.arange(before.shape[1]) < of("nsub").unsqueeze(-1)).nonzero().unbind(-1)
    state, after, begin = unpacked(before[t, k]), of("sub_state")[t, k], of("state")[t, 0]
    runs = of("act")[t] == RUN
    ax, ay = push(unpacked(of("state")[t]), of("act")[t], of("param")[t], of("n_jump")[t].t())
    left = torch.where(runs, 20.0 - k, 0.0)
    work = torch.stack([*state, ax, ay, left, stands(state.x, state.y).double()])
    following, _ = sub_step(work, torch.stack([of("n_accel")[t, k], of("n_enemy")[t, k]]))
    close(following[:8].t(), after)
    assert torch.equal(is_over(Platform(*following[:8])), of("sub_done")[t, k] != 0)
    close((following[0] - begin) / LENGTH, of("sub_reward")[t, k])


def test_rows_do_not_know_of_each_other():
    times = [0] * len(RUNS)
    state = start(len(RUNS), dtype=torch.float64)
    order = torch.tensor([4, 0, 8, 2, 1, 7, 3, 6, 5])
    one, two = step(state, RUNS, times), step(state, [RUNS[i] for i in order], times)
    assert torch.equal(packed(one.state)[order], packed(two.state)) and torch.equal(one.reward[order], two.reward)
    assert torch.equal(one.ran.count[order], two.ran.count)


def test_single_precision_is_near():
    """The equality that standing asks for holds in it: the same flags and the same numbers of sub-steps."""
    for run in RUNS:
        steps = len(recorded(run)("act"))
        exact = step(unpacked(recorded(run)("state")[:-1]), [run] * steps, range(steps))
        out = step(Platform(*(x.float() for x in unpacked(recorded(run)("state")[:-1]))), [run] * steps, range(steps))
        close(packed(out.state), packed(exact.state).float(), 2e-2)
        assert out.reward.dtype == torch.float32
        assert torch.equal(out.over, exact.over) and torch.equal(out.success, exact.success)
        assert (out.ran.count - exact.ran.count).abs().max() <= 1


def test_what_a_run_and_a_jump_are():
    state = start(3, dtype=torch.float64)
    action = torch.tensor([RUN, HOP, LEAP])
    scaled = torch.tensor([-0.8, -0.5, -0.5], dtype=torch.float64)
    out = advance(state, action, scaled, torch.zeros(2, 3, dtype=torch.float64), NOISELESS, torch.zeros(1, 3))
    assert out.ran.count[0] == 20 and not out.over[0]
    assert (out.ran.count[1:] > 20).all() and (out.state.y[1:][~out.over[1:]] == TOP).all()
    assert (out.reward > 0).all()


def test_who_falls_between_platforms_is_out():
    state = start(2, dtype=torch.float64)._replace(x=torch.tensor([249.9, 300.0], dtype=torch.float64))
    out = advance(state, torch.tensor([RUN, RUN]), torch.ones(2, dtype=torch.float64), torch.zeros(2, 2).double(),
                  NOISELESS, torch.zeros(1, 2))
    assert out.over.all() and not out.success.any() and (out.state.y < TOP).all() and out.ran.count[1] == 1
