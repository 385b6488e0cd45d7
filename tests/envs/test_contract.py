"""What every environment promises, whatever its family: append a task to a list and all of it is checked."""

import pytest
import torch
from torchrl.envs.utils import check_env_specs

from envs import make_env
from envs.base import (
    ACTION,
    ACTION_MASK,
    CHOICE,
    CONTROLLED,
    HIDDEN_VARIABLES,
    OBSERVATION,
    PARAMS,
    REWARD,
    SCRIPTED_ACTION,
    VISIBLE,
)

VMAS = [
    ("vmas/navigation", {}),
    ("vmas/navigation", {"continuous_actions": False, "n_agents": 3}),
    ("vmas/balance", {}),
    ("vmas/give_way", {}),
    ("vmas/give_way_pe", {"continuous_actions": False}),
    ("vmas/simple_spread", {}),
    ("vmas/simple_spread", {"continuous_actions": False}),
    ("vmas/simple_tag", {}),
    ("vmas/simple_tag", {"continuous_actions": False}),
    ("vmas/simple_speaker_listener", {}),
    ("vmas/simple_speaker_listener", {"continuous_actions": False}),
    ("vmas/simple_reference_pe", {}),
    ("vmas/simple_reference_pe", {"continuous_actions": False}),
    ("vmas/transport", {"continuous_actions": False}),
    ("vmas/football", {"ai_red_agents": False}),
    ("vmas/ball_trajectory", {}),
    ("vmas/wheel", {}),
    ("vmas/discovery", {"with_info": True}),
    ("vmas/wind_flocking", {}),
    ("vmas/hidden_leader", {}),
    ("vmas/hidden_leader", {"continuous_actions": False, "partner_types": True, "with_hidden": True}),
    ("vmas/navigation", {"with_hidden": True, "with_state": True}),
    ("vmas/give_way", {"with_state": True}),
    ("vmas/simple_speaker_listener_pe", {"with_hidden": True, "continuous_actions": False}),
]

OTHERS = [
    ("particle/spread-3", {}),
    ("particle/spread-2", {"dialect": "mpe2", "continuous_actions": True}),
    ("particle/spread-3", {"dialect": "vmas"}),
    ("particle/climbing_spread", {}),
    ("particle/doublespread-4", {}),
    ("particle/navigation-3", {}),
    ("particle/navigation-3", {"continuous_actions": False}),
    ("particle/navigation-3", {"with_hidden": True}),
    ("warehouse/tiny-4ag-hard", {}),
    ("warehouse/tiny-4ag-hard", {"with_visible": True, "with_hidden": True}),
    ("warehouse/tiny-3ag-easy", {"reward_type": "two_stage", "sensor_range": 2, "max_inactivity": 40}),
    ("gymnasium/CartPole-v1", {}),
    ("gymnasium/Pendulum-v1", {}),
    ("gymnasium/MountainCarContinuous-v0", {}),
    ("pettingzoo/simple_spread_v3", {}),
    ("pettingzoo/simple_spread_v3", {"continuous_actions": True}),
    ("pettingzoo/simple_speaker_listener_v4", {}),
    ("pettingzoo/simple_tag_v3", {}),
]
FORAGING = [
    ("foraging/2s-9x9-3p-2f-coop", {}),
    ("foraging/Foraging-8x8-2p-2f-v3", {"penalty": 0.1}),
    ("foraging/7s-20x20-5p-3f-coop", {"action_masks": False}),
    ("foraging/2s-9x9-3p-2f-coop", {"with_visible": True, "with_hidden": True}),
]
HYBRID = [
    *((f"hybrid/{name}", {}) for name in ("catch_point", "simple_move", "hard_move-4", "hard_move-10", "actuators-4",
                                          "actuators-10", "moving", "sliding", "vmas.navigation",
                                          "particle.spread-3", "vmas.simple_spread", "platform", "goal", "hard_goal")),
    ("hybrid/hard_move-4", {"compile": "eager"}),
    ("hybrid/vmas.navigation", {"modes": "actuators-4", "with_hidden": True}),
    ("hybrid/hard_goal", {"fixed_intervals": True}),
    ("hybrid/particle.spread-3", {"levels": 3}),
]
TASKS = [*VMAS, *OTHERS, *FORAGING, *HYBRID]

SAME_START = {"vmas/give_way": "its spawn noise is drawn once for all rows",
              "hybrid/platform": "its start has no randomness"}  # task -> why its rows start alike
N = 5


@pytest.fixture(params=TASKS, ids=lambda task: "-".join([task[0], *(f"{k}={v}" for k, v in task[1].items())]))
def task(request):
    return request.param


def make(task, seed=0, **more):
    name, options = task
    try:
        return make_env(name, **{"num_envs": N, "seed": seed, "max_steps": 50} | options | more)
    except ImportError as error:
        pytest.skip(f"{name}: {error}")


def draw(env, seen, generator):
    return {key: draw_one(env.full_action_spec[key], seen, generator) for key in env.action_keys}


def draw_one(spec, seen, generator):
    if spec.dtype == torch.int64:
        allowed = seen.get(ACTION_MASK, torch.ones(*spec.shape, spec.n))
        return torch.multinomial(allowed.flatten(0, 1).float(), 1, generator=generator).reshape(spec.shape)
    low, high = spec.space.low, spec.space.high
    return low + (high - low) * torch.rand(spec.shape, generator=generator)


def play(env, steps=4, seed=0, seen=None):
    """Outputs of a rollout with random actions, as handed out."""
    generator = torch.Generator().manual_seed(seed)
    outs = [env.reset_tensors() if seen is None else seen]
    for _ in range(steps):
        outs.append(env.step_tensors(draw(env, outs[-1], generator)))
    return outs


def same(one, two, rows=slice(None)):
    return all(torch.equal(a[key][rows], b[key][rows]) for a, b in zip(one, two, strict=True) for key in b)


def test_specs(task):
    check_env_specs(make(task))


def test_same_seed_same_numbers(task):
    torch.manual_seed(1)
    one = play(make(task, seed=3))
    torch.manual_seed(2)
    assert same(one, play(make(task, seed=3)))


def test_other_seed_other_numbers(task):
    assert not same(play(make(task, seed=3), steps=1), play(make(task, seed=4), steps=1))


def test_another_environment_changes_nothing(task):
    expected = play(make(task))
    env = make(task)
    state = torch.get_rng_state()
    other = make(task, seed=9)
    generator = torch.Generator().manual_seed(0)
    seen = [env.reset_tensors()]
    other.reset_tensors()
    for _ in range(4):
        seen.append(env.step_tensors(draw(env, seen[-1], generator)))
        other.step_tensors(draw(other, other._observe(), torch.Generator().manual_seed(1)))
        other.reset_tensors()
    assert same(expected, seen)
    assert torch.equal(torch.get_rng_state(), state)


def test_partial_reset_leaves_the_other_rows_exact(task):
    env, twin = make(task), make(task)
    play(env), play(twin)
    rows = torch.tensor([False, True, False, True, False])
    after = env.reset_tensors(rows)
    assert env.steps.tolist() == [4, 0, 4, 0, 4]
    seen = twin._observe()
    assert same([after], [seen], ~rows)
    if ACTION_MASK not in seen:  # else the rows that were reset may have other choices
        assert same(play(env, seen=seen)[1:], play(twin, seen=seen)[1:], ~rows)


def test_time_limit_is_truncation(task):
    unlimited = play(make(task, max_steps=1000), steps=3)
    limited = play(make(task, max_steps=3), steps=3)
    assert not limited[-2]["truncated"].any()
    assert limited[-1]["truncated"].all() and limited[-1]["done"].all()
    assert torch.equal(limited[-1]["terminated"], unlimited[-1]["terminated"])
    assert not unlimited[-1]["truncated"].any()


def test_time_limit_as_termination(task):
    last = play(make(task, max_steps=3, truncate=False), steps=3)[-1]
    assert last["terminated"].all() and last["done"].all() and not last["truncated"].any()


def test_finite(task):
    env = make(task)
    outs = play(env, steps=6)
    if ACTION_MASK not in outs[0]:  # else choice 0 may be forbidden
        outs.append(env.step_tensors({key: env.full_action_spec[key].zero() for key in env.action_keys}))
    for out in outs:
        assert torch.isfinite(out[OBSERVATION]).all()
        assert REWARD not in out or torch.isfinite(out[REWARD]).all()


def test_what_was_handed_out_does_not_change(task):
    env = make(task)
    generator = torch.Generator().manual_seed(0)
    outs, copies = [env.reset_tensors()], []
    for _ in range(3):
        copies.append({key: value.clone() for key, value in outs[-1].items()})
        outs.append(env.step_tensors(draw(env, outs[-1], generator)))
    env.reset_tensors()
    assert same(outs[:-1], copies)


def test_saved_state_has_the_same_future(task, tmp_path):
    env, other = make(task), make(task, seed=8)
    seen = play(env)[-1]
    torch.save(env.state_dict(), tmp_path / "state.pt")
    expected = play(env, seen=seen)[1:] + play(env, steps=2)
    play(other, steps=1)
    other.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    assert same([other._observe()], [{key: seen[key] for key in other._observe()}])
    assert same(expected, play(other, seen=seen)[1:] + play(other, steps=2))


def test_rows_start_differently(task):
    if task[0] in SAME_START:
        pytest.skip(SAME_START[task[0]])
    first = make(task).reset_tensors()[OBSERVATION]
    assert (first[0] != first[1:]).flatten(1).any(1).all()


def test_what_is_written_beside_the_observation(task):
    env = make(task)
    agents, keys = env.n_agents, env.observation_spec.keys(True, True)
    for out in play(env):
        assert {key for key in (VISIBLE, HIDDEN_VARIABLES, CONTROLLED) if key in keys} == {
            key for key in (VISIBLE, HIDDEN_VARIABLES, CONTROLLED) if key in out}
        if VISIBLE in out:
            assert out[VISIBLE].shape == (N, agents, agents - 1) and out[VISIBLE].dtype == torch.float32
            assert torch.isin(out[VISIBLE], torch.tensor([0.0, 1.0])).all()
        if CONTROLLED in out:
            assert out[CONTROLLED].shape == (N, agents) and out[CONTROLLED].dtype == torch.bool
            assert not out[CONTROLLED].all()
            spec = env.full_action_spec[ACTION]
            scripted = out[SCRIPTED_ACTION]
            assert scripted.shape == spec.shape and scripted.dtype == spec.dtype and spec.is_in(scripted)
            assert (scripted[out[CONTROLLED]] == 0).all()
        assert (HIDDEN_VARIABLES in out) == bool(env.hidden_parts)
        if HIDDEN_VARIABLES in out:
            hidden, widths = out[HIDDEN_VARIABLES], [width for _, width, _ in env.hidden_parts]
            assert hidden.shape == (N, agents, sum(widths)) and hidden.dtype == torch.float32
            assert torch.isfinite(hidden).all() and hidden.abs().max() <= 3  # near one, as networks like it
            for part, (_, _, is_one_hot) in zip(hidden.split(widths, -1), env.hidden_parts, strict=True):
                assert not is_one_hot or (((part == 0) | (part == 1)).all() and (part.sum(-1) == 1).all())


@pytest.mark.parametrize("task", [task for task in TASKS if any("with_" in option for option in task[1])], ids=str)
def test_options_that_write_more_change_nothing_else(task):
    more = [option for option in task[1] if "with_" in option]
    plain = play(make(task, **dict.fromkeys(more, False)))
    full = play(make(task))
    asked = ("visible", "hidden", "informed", "info")
    assert all(key in plain[-1] or key == "state" or key[1] in asked for key in full[-1])
    assert same(full, plain)


def test_padding_says_where_it_is(task):
    env = make(task)
    for out in play(env, steps=2):
        for agent, size in enumerate(env.obs_dims or ()):
            assert (out[OBSERVATION][:, agent, size:] == 0).all()
        if ACTION_MASK in out:
            for agent, size in enumerate(env.action_dims or ()):
                assert not out[ACTION_MASK][:, agent, size:].any() and out[ACTION_MASK][:, agent, :size].any(-1).all()
    if env.param_mask is not None:
        choices, params = env.full_action_spec[CHOICE], env.full_action_spec[PARAMS]
        assert env.param_mask.shape == (choices.n, params.shape[-1]) and env.param_mask.any(0).all()
        return
    spec = env.full_action_spec[ACTION]
    assert max(env.action_dims or (0,)) <= (spec.n if spec.dtype == torch.int64 else spec.shape[-1])
    if len(set(env.action_dims or ())) > 1 and spec.dtype == torch.int64:
        assert ACTION_MASK in env.observation_spec.keys(True, True)
