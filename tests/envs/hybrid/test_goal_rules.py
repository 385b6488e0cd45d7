"""The rules of Goal and Hard Goal against recorded trajectories of gym-goal, with the recorded draws."""

import pytest
import torch

from envs.hybrid import goal_rules
from envs.hybrid.goal_rules import (
    FIXED_INTERVALS,
    INTERVALS,
    PER_SUB_STEP,
    POST,
    SCORE,
    TIME_LIMIT,
    Goal,
    advance,
    aim,
    goal_distance,
    harder,
    observe,
    start,
    sub_step,
)
from envs.hybrid.macro import masked
from tests.archives import Golden

torch.set_num_threads(1)

FILES = {name: Golden("hyar", f"env_{name}") for name in ("goal", "hard_goal")}
RUNS = [("goal", f"traj{k}") for k in range(5)] + [("goal", f"mid{k}") for k in range(5)]
HARD = [("hard_goal", f"traj{k}") for k in range(5)]
EXACT = 1e-9
SEEN = 1e-7  # the recorded scale of observations is in single precision
F64 = torch.float64


def close(ours, theirs, tolerance=EXACT):
    torch.testing.assert_close(ours, theirs, rtol=0, atol=tolerance)


def recorded(run):
    file, prefix = run
    return lambda key: FILES[file][f"{prefix}_{key}"]


def unpacked(states, time=0):
    """A state from recorded rows [N, 14]."""
    player, keeper, ball = states[:, :5], states[:, 5:10], states[:, 10:]
    return Goal(torch.stack([x[:, :2] for x in (player, keeper, ball)], 1),
                torch.stack([x[:, 2:4] for x in (player, keeper, ball)], 1),
                torch.stack([player[:, 4], keeper[:, 4]], -1),
                torch.full((len(states),), time))


def packed(state):
    (p, k, b), (pv, kv, bv) = state.place.unbind(1), state.velocity.unbind(1)
    return torch.cat([p, pv, state.facing[:, :1], k, kv, state.facing[:, 1:], b, bv], -1)


def drawn(run):
    """Uniform numbers [T, S, 6]; trajectories in the middle have no noise."""
    of = recorded(run)
    if run[1].startswith("mid"):
        return torch.full((*of("sub_state").shape[:2], PER_SUB_STEP), 0.5, dtype=F64)
    return torch.cat([of("u_player"), of("u_goalie")], -1)


def step(state, runs, times, **options):
    """The recorded step ``times[i]`` of run i from these states, in their precision."""
    of = [recorded(run) for run in runs]
    action = torch.stack([x("act")[t] for x, t in zip(of, times, strict=True)])
    param = torch.stack([x("param_scaled")[t] for x, t in zip(of, times, strict=True)]).to(state.place.dtype)
    parts = [drawn(run)[t] for run, t in zip(runs, times, strict=True)]
    numbers = torch.full((max(map(len, parts)) + 4, PER_SUB_STEP, len(runs)), 0.5, dtype=state.place.dtype)
    for i, part in enumerate(parts):
        numbers[:len(part), :, i] = part
    move = masked(lambda k, work, rows: sub_step(work, numbers[k.clamp(max=len(numbers) - 1)][:, rows[0]]))
    return advance(state, action, param, move, torch.arange(len(runs), dtype=torch.int32).unsqueeze(0), **options)


def check(out, rows, runs, times):
    """These rows of an outcome are as recorded."""
    for i, run, t in zip(rows, runs, times, strict=True):
        of = recorded(run)
        close(packed(out.state)[i], of("state")[t + 1])
        close(out.reward[i], of("reward")[t])
        close(observe(out.state)[i], of("obs_scaled")[t + 1], SEEN)
        assert out.ran.count[i] == of("nsub")[t] and out.over[i] == of("done")[t] and not out.ran.cut[i]
        assert out.success[i] == (of("reward")[t] == SCORE)


@pytest.mark.parametrize("run", RUNS + HARD, ids=str)
def test_start(run):
    of = recorded(run)
    state = start(of("u_reset") if run[1].startswith("traj") else torch.full((1,), 0.5, dtype=F64))
    if run[1].startswith("traj"):
        close(packed(state), of("state")[:1])
        close(observe(state), of("obs_scaled")[:1], SEEN)
    assert state.time.tolist() == [0] and (state.velocity == 0).all()


@pytest.mark.parametrize("run", RUNS + HARD, ids=str)
def test_every_recorded_step_at_once(run):
    """Each step from the recorded state: as many rows as steps."""
    steps = range(len(recorded(run)("act")))
    check(step(unpacked(recorded(run)("state")[:-1]), [run] * len(steps), steps), steps, [run] * len(steps), steps)


@pytest.mark.parametrize("runs", [RUNS, HARD], ids=["goal", "hard_goal"])
def test_all_recorded_episodes_run_free_in_one_batch(runs):
    """From the start to their ends, which come at different times."""
    state = unpacked(torch.stack([recorded(run)("state")[0] for run in runs]))
    lengths = torch.tensor([len(recorded(run)("act")) for run in runs])
    for t in range(max(lengths)):
        out = step(state, runs, torch.minimum(lengths - 1, torch.tensor(t)).tolist())
        state = out.state
        live = (t < lengths).nonzero().squeeze(-1).tolist()
        check(out, live, [runs[i] for i in live], [t] * len(live))


@pytest.mark.parametrize("run", RUNS + HARD, ids=str)
def test_every_recorded_sub_step(run):
    of = recorded(run)
    before = torch.cat([of("state")[:-1].unsqueeze(1), of("sub_state")[:, :-1]], 1)  # [T, S, 14]
    t, k = (torch.arange(before.shape[1]) < of("nsub").unsqueeze(-1)).nonzero().unbind(-1)
    state = unpacked(before[t, k])
    to, kick = aim(of("act")[t], of("param_scaled")[t], fixed_kick_to=False), (of("act")[t] == 0).to(F64)
    work = torch.cat([state.place.flatten(1), state.velocity.flatten(1), state.facing, to, kick.unsqueeze(-1)], -1).t()
    after, going = sub_step(work, drawn(run)[t, k].t())
    after = after.t()
    places, velocities = after[:, :6].reshape(-1, 3, 2), after[:, 6:12].reshape(-1, 3, 2)
    close(packed(Goal(places, velocities, after[:, 12:14], state.time)), of("sub_state")[t, k])
    assert torch.equal(going, k + 1 < of("nsub")[t])


def test_at_the_time_limit_nothing_moves():
    data = FILES["goal"]
    state = unpacked(data["tl_state_before"].unsqueeze(0), int(data["tl_time_before"]))
    assert state.time.item() == TIME_LIMIT - 1
    numbers = torch.full((6, 1), 0.5, dtype=F64)
    out = advance(state, torch.tensor([1]), torch.zeros(1, 2, dtype=F64),
                  masked(lambda k, work, keys: sub_step(work, numbers)), torch.zeros(1, 1, dtype=torch.int32))
    close(packed(out.state)[0], data["tl_state_after"])
    close(out.reward[0], data["tl_reward"])
    assert out.over.item() == data["tl_done"] and out.ran.count.item() == data["tl_nsub"] == 0
    assert not out.success.item()


# ---------------------------------------------------------------------- actions

def test_the_table_of_hard_goal():
    data = FILES["hard_goal"]
    action, scaled = harder(data["map_act"], data["map_param"], INTERVALS)
    assert torch.equal(action, data["map_env_act"])
    used = torch.where((action == 0).unsqueeze(-1), scaled, torch.stack([scaled[:, 0], data["map_env_param_scaled"][
        :, 1]], -1))
    close(used, data["map_env_param_scaled"])


def test_hard_goal_replays_its_own_actions():
    for run in HARD:
        of = recorded(run)
        action, scaled = harder(of("hard_act"), of("hard_param"), INTERVALS)
        assert torch.equal(action, of("act"))
        close(scaled[:, 0], of("param_scaled")[:, 0])


def test_fixed_intervals_cover_the_goal():
    action = torch.arange(1, 11).repeat_interleave(2)
    ends = torch.tensor([[1.0, 0.0], [-1.0, 0.0]], dtype=F64).repeat(10, 1)
    ends = harder(action, ends, FIXED_INTERVALS)[1][:10, 0]
    close(ends, torch.tensor([-1.0, -0.6, -0.6, -0.2, -0.2, 0.2, 0.2, 0.6, 0.6, 1.0], dtype=F64))
    stuck = harder(torch.tensor([3, 8]), torch.tensor([[1.0, 0.0], [-1.0, 0.0]], dtype=F64), INTERVALS)[1][:, 0]
    close(stuck, torch.full((2,), 0.2, dtype=F64))


def test_a_kick_to_ignores_its_second_parameter_unless_that_is_fixed():
    scaled = torch.tensor([[0.0, -1.0], [0.0, 1.0]], dtype=F64)
    kick = torch.zeros(2, dtype=torch.int64)
    close(aim(kick, scaled, fixed_kick_to=False), torch.full((2, 2), 20.0, dtype=F64))
    close(aim(kick, scaled, fixed_kick_to=True), torch.tensor([[20.0, -15.0], [20.0, 15.0]], dtype=F64))
    close(aim(kick + 1, scaled, fixed_kick_to=True), aim(kick + 2, scaled, fixed_kick_to=False))
    assert aim(kick + 1, 5 * scaled + 5, fixed_kick_to=False)[:, 1].abs().max() <= POST


def test_distance_to_the_goal():
    ball = torch.tensor([[10.0, 2.0], [17.0, 11.01], [17.0, -11.01], [21.0, 9.01], [21.0, -9.01], [21.0, 0.0]],
                        dtype=F64)
    close(goal_distance(ball), torch.tensor([10.0, 5.0, 5.0, 2.0, 16.02, 0.0], dtype=F64))  # 16.02: as published


# ---------------------------------------------------------------------- batches and precision

def test_rows_do_not_know_of_each_other():
    state = unpacked(torch.stack([recorded(run)("state")[0] for run in RUNS]))
    order = torch.tensor([4, 0, 9, 8, 2, 1, 7, 3, 6, 5])
    one = step(state, RUNS, [0] * 10)
    two = step(Goal(*(x[order] for x in state)), [RUNS[i] for i in order], [0] * 10)
    # the last rows of a tensor are not computed in vectors of the processor, and may round otherwise
    close(packed(one.state)[order], packed(two.state), 1e-12)
    close(one.reward[order], two.reward, 1e-12)
    assert torch.equal(one.ran.count[order], two.ran.count)


@pytest.mark.parametrize("run", RUNS[:3], ids=str)
def test_without_picking_rows_it_is_the_same(monkeypatch, run):
    """As on a device, or compiled."""
    monkeypatch.setattr(goal_rules, "_picks_rows", lambda like: False)
    steps = range(len(recorded(run)("act")))
    check(step(unpacked(recorded(run)("state")[:-1]), [run] * len(steps), steps), steps, [run] * len(steps), steps)


def test_single_precision_is_near():
    for run in RUNS:
        steps = range(len(recorded(run)("act")))
        state = unpacked(recorded(run)("state")[:-1])
        single = Goal(*(x.float() for x in state[:3]), state.time)
        ahead = single.place[0, 2] - single.place[0, 0]
        single.place[0, 2] -= 1e-5 / 1.6 * ahead  # as `start` does: recorded starts are within reach by 1e-12
        out = step(single, [run] * len(steps), steps)
        close(packed(out.state), recorded(run)("state")[1:].float(), 2e-3)
        assert out.reward.dtype == torch.float32 and torch.equal(out.over, recorded(run)("done"))
        assert (out.ran.count - recorded(run)("nsub")).abs().max() <= 1


def test_a_ball_at_the_start_is_within_reach_in_single_precision():
    state = start(torch.rand(10000, generator=torch.Generator().manual_seed(0)))
    assert (state.place[:, 2] - state.place[:, 0]).norm(dim=-1).max() <= 1.6
