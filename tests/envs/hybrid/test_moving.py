"""Moving and Sliding against recorded trajectories (float64), their limit, what random play reaches, parameters."""

import math

import pytest
import torch

from envs import make_env
from envs.base import CHOICE, OBSERVATION, PARAMS, REWARD
from envs.hybrid.moving import ACCELERATE, BRAKING, LIMIT, TURN, Mover, moving, scaled, see, sliding, start
from tests.archives import Golden

torch.set_num_threads(1)

RULES = {"moving": moving, "sliding": sliding}
PREFIXES = [f"traj{k}_" for k in range(5)]


def mover(numbers):
    """States from recorded ones [N, 8]; Moving's own direction of motion is that of its nose."""
    x, y, speed, heading, drift, tx, ty, age = numbers.unbind(-1)
    return Mover(torch.stack([x, y]), speed, heading, torch.where(drift.isnan(), heading, drift),
                 torch.stack([tx, ty]), age)


def joined(parts):
    return Mover(*(torch.cat(columns, -1) for columns in zip(*parts, strict=True)))


def parameter(file, prefix):
    """The one parameter that the choice reads."""
    act = file[f"{prefix}act"]
    return file[f"{prefix}param"].gather(1, (act == TURN).long().unsqueeze(-1)).squeeze(-1)


def close(ours, theirs):
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-9)


def assert_same(step, file, prefix, rows, at):
    for ours, theirs in zip(step.state, mover(file[f"{prefix}state"][1:][at]), strict=True):
        close(ours[..., rows], theirs)
    close(see(LIMIT, step.state)[rows], file[f"{prefix}obs"][1:][at])
    close(step.reward[rows], file[f"{prefix}reward"][at])
    assert torch.equal(step.terminated[rows], file[f"{prefix}done"][at])
    assert torch.equal(step.success[rows], file[f"{prefix}reward"][at] > 0.9)


# ---------------------------------------------------------------------- recorded trajectories

@pytest.mark.parametrize("name", RULES)
def test_each_recorded_step(name):
    file = Golden("hyar", f"env_{name}")
    for prefix in PREFIXES:
        before = mover(file[f"{prefix}state"][:-1])
        close(see(LIMIT, before), file[f"{prefix}obs"][:-1])
        assert_same(RULES[name](before, file[f"{prefix}act"], parameter(file, prefix)), file, prefix, slice(None),
                    slice(None))


@pytest.mark.parametrize("name", RULES)
def test_recorded_trajectories_side_by_side(name):
    """All five from their own draws."""
    file = Golden("hyar", f"env_{name}")
    first = joined([mover(file[f"{prefix}state"][:1]) for prefix in PREFIXES])
    state = start(torch.stack([file[f"{prefix}u_reset"] for prefix in PREFIXES]))
    for field in ("position", "speed", "heading", "target", "age"):
        close(getattr(state, field), getattr(first, field))
    state = state._replace(drift=first.drift)  # theirs is left over from the episode before
    params = {prefix: parameter(file, prefix) for prefix in PREFIXES}
    lengths = [len(file[f"{prefix}act"]) for prefix in PREFIXES]
    assert max(lengths) == LIMIT + 1
    for t in range(max(lengths)):
        at = [min(t, length - 1) for length in lengths]
        step = RULES[name](state, torch.stack([file[f"{p}act"][k] for p, k in zip(PREFIXES, at, strict=True)]),
                           torch.stack([params[p][k] for p, k in zip(PREFIXES, at, strict=True)]))
        for row, prefix in enumerate(PREFIXES):
            if t < lengths[row]:
                assert_same(step, file, prefix, slice(row, row + 1), slice(t, t + 1))
        state = step.state


def test_the_direction_left_over_from_the_last_episode_makes_no_difference():
    file = Golden("hyar", "env_sliding")
    assert file["reset_phi_before"] == file["reset_phi_after"] != 0
    generator = torch.Generator().manual_seed(0)
    one = start(torch.rand(256, 6, dtype=torch.float64, generator=generator))
    two = one._replace(drift=one.drift + 7 * torch.rand(256, generator=generator))
    for _ in range(20):
        choice, param = torch.randint(3, (256,), generator=generator), torch.rand(256, generator=generator)
        first, second = sliding(one, choice, param), sliding(two, choice, param)
        close(see(LIMIT, first.state), see(LIMIT, second.state))
        close(first.reward, second.reward)
        one, two = first.state, second.state


# ---------------------------------------------------------------------- rules

def body(rows=1, **more):
    zero = torch.zeros(rows, dtype=torch.float64)
    fields = {"position": torch.zeros(2, rows, dtype=torch.float64), "speed": zero, "heading": zero, "drift": zero,
              "target": torch.full((2, rows), 0.5, dtype=torch.float64), "age": zero}
    return Mover(**(fields | more))


@pytest.mark.parametrize("rules", [moving, sliding])
def test_brakes_stop_below_a_tenth(rules):
    speed = torch.tensor([0.35, 0.1, 0.05], dtype=torch.float64)
    step = rules(body(3, speed=speed), torch.full((3,), BRAKING), torch.full((3,), math.nan))
    close(step.state.speed, torch.tensor([0.25, 0.0, 0.0], dtype=torch.float64))


def test_only_sliding_keeps_its_direction_in_a_turn():
    state, turn, half = body(speed=torch.ones(1, dtype=torch.float64)), torch.tensor([TURN]), torch.tensor([1.0])
    slid, drove = sliding(state, turn, half.double()).state, moving(state, turn, half.double()).state
    assert slid.heading.item() == drove.heading.item() == pytest.approx(math.pi / 2)
    close(slid.position, torch.tensor([[0.005], [0.0]], dtype=torch.float64))
    close(drove.position, torch.tensor([[0.0], [0.005]], dtype=torch.float64))


def test_stopping_in_the_target_is_success_and_leaving_the_field_is_not():
    places = torch.tensor([[0.45, 0.45, 0.999], [0.5, 0.5, 0.0]], dtype=torch.float64)
    speed = torch.tensor([0.05, 1.0, 1.0], dtype=torch.float64)
    step = moving(body(3, position=places, speed=speed), torch.full((3,), BRAKING), torch.zeros(3))
    assert step.terminated.tolist() == [True, False, True] and step.success.tolist() == [True, False, False]
    close(step.reward, torch.tensor([0.999, 0.9 * 0.005 - 0.001, -1.0], dtype=torch.float64))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_push_straight_back_by_the_whole_speed_stops_a_sliding_body(dtype):
    """Push, turn by half a turn in two steps, push as much: nothing is left of the speed, which is success."""
    push = torch.tensor([1.0, 0.6, 0.25, 0.1], dtype=dtype)
    state = Mover(*(x.to(dtype) for x in body(4, position=torch.full((2, 4), 0.5))))
    for choice, param in ((ACCELERATE, push), (TURN, torch.ones(4)), (TURN, torch.ones(4)), (ACCELERATE, push)):
        step = sliding(state, torch.full((4,), choice), param.to(dtype))
        state = step.state
    assert (state.speed == 0).all() and step.success.all() and step.terminated.all() and (step.reward > 0.9).all()


def test_success_counts_at_the_last_step_too():
    state = body(position=torch.tensor([[0.45], [0.5]], dtype=torch.float64), age=torch.tensor([float(LIMIT)]))
    step = moving(state, torch.tensor([BRAKING]), torch.zeros(1))
    assert step.success.item() and step.reward.item() == pytest.approx(0.999)


@pytest.mark.parametrize("rules", [moving, sliding])
def test_rows_do_not_know_their_place(rules):
    generator = torch.Generator().manual_seed(0)
    state = start(torch.rand(64, 6, generator=generator))._replace(speed=torch.rand(64, generator=generator))
    choice, param = torch.randint(3, (64,), generator=generator), torch.rand(64, generator=generator)
    order = torch.randperm(64, generator=generator)
    one = rules(state, choice, param)
    two = rules(Mover(*(x[..., order] for x in state)), choice[order], param[order])
    for a, b in zip([*one.state, *one[1:]], [*two.state, *two[1:]], strict=True):
        assert torch.equal(a[..., order], b)


def test_parameters_are_stretched_to_the_range_of_their_choice():
    choice, params = torch.tensor([ACCELERATE] * 3 + [TURN]), torch.tensor([[-1.0], [0.0], [1.0], [-0.5]]).double()
    step = scaled(moving, body(4), choice, params)
    close(step.state.speed, torch.tensor([0.0, 0.25, 0.5, 0.0], dtype=torch.float64))
    assert step.state.heading[3].item() == pytest.approx(2 * math.pi - math.pi / 4)


# ---------------------------------------------------------------------- environments

def still(rows):
    return {CHOICE: torch.full((rows, 1), BRAKING), PARAMS: torch.zeros(rows, 1, 1)}


@pytest.mark.parametrize("name", RULES)
def test_the_rules_end_an_episode_at_step_201(name):
    env = make_env(f"hybrid/{name}", num_envs=3, max_steps=1000)
    env.state = env.state._replace(target=env.state.position + 3)
    for t in range(1, LIMIT + 2):
        out = env.step_tensors(still(3))
        assert out["terminated"].all() == out["done"].all() == (t == LIMIT + 1)
    assert (out[REWARD] == -1).all() and not out["truncated"].any() and not out["success"].any()
    env.reset_tensors(torch.tensor([False, True, False]))
    assert env.state.age.tolist() == [201, 0, 201]
    assert make_env(f"hybrid/{name}", num_envs=1).max_steps == LIMIT + 1


@pytest.mark.parametrize(("name", "mean", "rate"), [("moving", -1.32, 0.006), ("sliding", -1.26, 0.007)])
def test_random_play_reaches_what_was_measured_in_1000_episodes(name, mean, rate):
    env = make_env(f"hybrid/{name}", num_envs=4096, seed=1)
    generator = torch.Generator().manual_seed(0)
    total, success, over = torch.zeros(4096), *torch.zeros(2, 4096, dtype=torch.bool)
    for _ in range(LIMIT + 1):
        out = env.step_tensors({CHOICE: torch.randint(3, (4096, 1), generator=generator),
                                PARAMS: 2 * torch.rand(4096, 1, 1, generator=generator) - 1})
        total = total + out[REWARD].flatten().masked_fill(over, 0)
        success, over = success | (out["success"].flatten() & ~over), over | out["done"].flatten()
    error = (1 / 1000 + 1 / 4096)**0.5
    assert over.all() and abs(success.float().mean().item() - rate) < 3 * error * (rate * (1 - rate))**0.5
    assert abs(total.mean().item() - mean) < 3 * error * total.std().item()


def test_float32_follows_the_recording():
    """The environment itself, in its own units, for a hundred steps."""
    file = Golden("hyar", "env_sliding")
    env = make_env("hybrid/sliding", num_envs=1)
    env.state = Mover(*(x.float() for x in mover(file["traj1_state"][:1])))
    act, param = file["traj1_act"], parameter(file, "traj1_")
    ours = torch.where(act == ACCELERATE, 2 * param.clamp(0, 1) - 1, param).float()
    for t in range(100):
        out = env.step_tensors({CHOICE: act[t].view(1, 1), PARAMS: ours[t].view(1, 1, 1)})
        torch.testing.assert_close(out[OBSERVATION][0, 0].double(), file["traj1_obs"][t + 1], rtol=0, atol=1e-4)


def test_new_episodes():
    env = make_env("hybrid/moving", num_envs=4096)
    assert env.param_mask.tolist() == [[True], [True], [False]]
    state = env.state
    assert 0.98 < state.position.abs().max() <= 1 and 0.88 < state.target.abs().max() <= 0.9
    assert state.heading.min() >= 0 and 6.2 < state.heading.max() <= 6.2832 and not state.speed.any()


@pytest.mark.parametrize("name", RULES)
def test_options(name):
    plain, whole = (make_env(f"hybrid/{name}", num_envs=4, compile=backend) for backend in (False, "eager"))
    one, two = plain.step_tensors(still(4)), whole.step_tensors(still(4))
    assert torch.equal(one[OBSERVATION], two[OBSERVATION]) and torch.equal(one[REWARD], two[REWARD])
    with pytest.raises(ValueError, match=rf"hybrid/{name} has no option 'delta'; it has \['compile'\]"):
        make_env(f"hybrid/{name}", num_envs=1, delta=1)
