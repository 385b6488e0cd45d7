"""The family of particle tasks: names, options, partial resets, saved states, compiled steps."""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from envs import make_env
from envs.base import ACTION, OBSERVATION, REWARD
from envs.particle import TASKS, available

torch.set_num_threads(1)

EVERY = [("spread-3", {"dialect": "smpe"}), ("spread-3", {"dialect": "mpe2"}),
         ("spread-3", {"dialect": "mpe2", "continuous_actions": True}), ("spread-3", {"dialect": "vmas"}),
         ("spread-1", {}), ("climbing_spread", {}), ("doublespread-3", {}), ("navigation-3", {}), ("navigation-1", {}),
         ("navigation-3", {"continuous_actions": False, "enforce_bounds": True})]


def actions(env, seed=0):
    spec, generator = env.full_action_spec[ACTION], torch.Generator().manual_seed(seed)
    if spec.dtype == torch.int64:
        return {ACTION: torch.randint(spec.n, spec.shape, generator=generator)}
    return {ACTION: spec.space.low + (spec.space.high - spec.space.low) * torch.rand(spec.shape, generator=generator)}


@pytest.fixture(params=EVERY, ids=lambda task: "-".join([task[0], *map(str, task[1].values())]))
def make(request):
    name, options = request.param
    return lambda n=4, **more: make_env(f"particle/{name}", num_envs=n, **options | more)


def test_names_and_defaults():
    assert available() == ["spread-A", "navigation-A", "climbing_spread", "doublespread-A"]
    sizes = {"spread": (3, 18, 25), "spread-5": (5, 30, 25), "navigation": (4, 18, 100), "climbing_spread": (2, 14, 25),
             "climbing_spread-2": (2, 14, 25), "doublespread": (4, 14, 25), "doublespread-2": (2, 10, 25)}
    for name, (n_agents, width, horizon) in sizes.items():
        env = make_env(f"particle/{name}", num_envs=2)
        assert env.full_observation_spec[OBSERVATION].shape == (2, n_agents, width)
        assert env.max_steps == horizon and env.agent_types == (0,) * n_agents
    assert make_env("particle/spread-2", num_envs=1, max_steps=7).max_steps == 7


def test_kinds_of_actions():
    specs = {("spread", None, None): 5, ("spread", "mpe2", None): 5, ("spread", "vmas", False): 9,
             ("navigation", None, False): 9, ("spread", "vmas", None): 2, ("navigation", None, None): 2,
             ("spread", "mpe2", True): -5}
    for (name, dialect, is_continuous), size in specs.items():
        env = make_env(f"particle/{name}", num_envs=1, dialect=dialect, continuous_actions=is_continuous)
        spec = env.full_action_spec[ACTION]
        assert env.continuous_actions == (spec.dtype == torch.float32)
        assert (spec.shape[-1] if env.continuous_actions else spec.n) == abs(size)
        assert not env.continuous_actions or (spec.space.low == (0 if size < 0 else -1)).all()


@pytest.mark.parametrize(("name", "options", "match"), [
    ("sprad-3", {}, r"unknown particle task 'sprad-3'.*'spread-A'.*did you mean 'spread'"),
    ("spread-0", {}, "a positive integer, got '0'"),
    ("spread-", {}, "a positive integer, got ''"),
    ("spread-x", {}, "a positive integer, got 'x'"),
    ("spread--3", {}, "a positive integer, got '-3'"),
    ("climbing_spread-3", {}, r"must be \(2,\), got '3'"),
    ("spread-3", {"dialect": "vams"}, r"no dialect 'vams'; it has \['smpe', 'mpe2', 'vmas'\]; did you mean 'vmas'"),
    ("navigation-3", {"dialect": "smpe"}, r"no dialect 'smpe'; it has \['vmas'\]"),
    ("spread-3", {"n_agents": 5}, "in the name: 'particle/spread-5'"),
    ("spread-3", {"local_ratio": 0.5}, r"dialect 'smpe' has no option 'local_ratio'; it has \['dialect', "),
    ("spread-3", {"dialect": "mpe2", "local_ratio": 1.5}, r"in \[0, 1\], got 1.5"),
    ("spread-3", {"continuous_actions": True}, r"no continuous_actions=True; it has \[False\]"),
    ("navigation-3", {"lidar_rang": 0.5}, "did you mean 'lidar_range'"),
    ("navigation-3", {"lidar_range": 0.0}, "lidar_range must be positive, got 0.0"),
    ("navigation-3", {"n_lidar_rays": 0}, "n_lidar_rays must be a positive integer, got 0"),
    ("navigation-3", {"agents_with_same_goal": 2}, "needs collisions=False"),
    ("navigation-3", {"agents_with_same_goal": 4, "collisions": False}, "at most the number of agents 3, got 4"),
    ("navigation-4", {"agents_with_same_goal": 1, "split_goals": True}, "half of 4 agents, got 1"),
    ("navigation-3", {"observe_all_goals": "no"}, "observe_all_goals of particle/navigation in dialect 'vmas' must be "
                                                  "True or False, got 'no'"),
    ("navigation-3", {"lidar_range": "far"}, "lidar_range of particle/navigation .* must be a number, got 'far'"),
    ("spread-3", {"continuous_actions": 0}, "continuous_actions of .* must be True, False or None, got 0"),
    ("spread-3", {"compile": "inductr"}, r"compile must be False, True or one of \[.*'inductor'.*\], got 'inductr'"),
])
def test_bad_input(name, options, match):
    with pytest.raises(ValueError, match=match):
        make_env(f"particle/{name}", num_envs=2, **options)


def test_shared_rewards(make):
    env = make(32)
    env.reset_tensors()
    rewards = torch.cat([env.step_tensors(actions(env, t))[REWARD] for t in range(10)])
    assert env.reward_is_shared <= (rewards == rewards[:, :1]).all()


def test_which_rewards_are_shared():
    shared = {"spread-3": True, "climbing_spread": True, "doublespread-4": True, "navigation-3": False}
    for name, expected in shared.items():
        assert make_env(f"particle/{name}", num_envs=1).reward_is_shared == expected
    assert not make_env("particle/spread-3", num_envs=1, dialect="mpe2").reward_is_shared
    assert make_env("particle/navigation-3", num_envs=1, collisions=False).reward_is_shared


def test_partial_reset(make):
    env = make(6)
    env.reset_tensors()
    seen = env.step_tensors(actions(env))[OBSERVATION]
    mask = torch.tensor([True, False, False, True, False, False])
    places, velocity = env.places, env.velocity
    after = env.reset_tensors(mask)[OBSERVATION]
    assert torch.equal(after[~mask], seen[~mask]) and (after[mask] != seen[mask]).flatten(1).any(1).all()
    assert torch.equal(env.places[..., ~mask], places[..., ~mask])
    assert (env.velocity[..., mask] == 0).all() and torch.equal(env.velocity[..., ~mask], velocity[..., ~mask])
    assert torch.equal(env.reset_tensors(torch.zeros(6, dtype=torch.bool))[OBSERVATION], after)


def test_saved_state(make):
    env, other = make(seed=1), make(seed=2)
    env.reset_tensors()
    env.step_tensors(actions(env))
    other.load_state_dict(env.state_dict())
    for t in range(3):
        one, two = env.step_tensors(actions(env, t)), other.step_tensors(actions(env, t))
        assert all(torch.equal(one[key], two[key]) for key in one)
    assert torch.equal(env.reset_tensors()[OBSERVATION], other.reset_tensors()[OBSERVATION])


def test_a_state_of_another_task_is_refused():
    state = make_env("particle/spread-3", num_envs=2).state_dict()
    with pytest.raises(ValueError, match=r"of particle/spread-3 smpe, this environment is particle/spread-3 vmas"):
        make_env("particle/spread-3", num_envs=2, dialect="vmas").load_state_dict(state)


def test_partial_step():
    env = make_env("particle/navigation-3", num_envs=4)
    td = env.reset()
    before = td[OBSERVATION].clone()
    td = td.set(ACTION, torch.ones(4, 3, 2)).set("_step", torch.tensor([True, False, True, False]))
    moved = (env._step(td)[OBSERVATION] != before).flatten(1).any(1)
    assert moved.tolist() == [True, False, True, False]


def test_reset_by_mask_on_a_device_that_must_not_wait(make):
    """The branch that accelerators take: all rows are drawn, the mask chooses."""
    env = make(6)
    env.reset_tensors()
    env.step_tensors(actions(env))
    before, mask = env.places, torch.tensor([False, True, True, False, False, False])
    env._merge(mask, *env.task.spawn(6, env.random))
    assert torch.equal(env.places[..., ~mask], before[..., ~mask])
    assert (env.places[..., mask] != before[..., mask]).any(0).any(0).all()


class NoWaiting(TorchDispatchMode):
    """Refuses operations whose result or shape the host would have to wait for on an accelerator."""

    forbidden = ("_local_scalar_dense", "nonzero", "masked_select", "equal.default", "index_put", "index.Tensor")

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        assert not any(word in str(func) for word in self.forbidden), func
        return func(*args, **kwargs or {})


def test_a_step_does_not_wait_for_the_device(make):
    env = make()
    env.reset_tensors()
    action = actions(env)
    with NoWaiting():
        env.step_tensors(action)
        env._merge(torch.zeros(4, dtype=torch.bool), *env.task.spawn(4, env.random))


def test_compiled_as_one_graph(make):
    torch._dynamo.reset()
    plain, compiled = make(), make(compile="aot_eager")
    plain.reset_tensors(), compiled.reset_tensors()
    for t in range(3):
        one, two = plain.step_tensors(actions(plain, t)), compiled.step_tensors(actions(plain, t))
        for key in one:
            torch.testing.assert_close(one[key], two[key], rtol=0, atol=1e-6)


def test_what_cannot_be_compiled_raises(monkeypatch):
    def judge(self, before, places, distance):
        return distance[:1, 0] if distance.sum() > 0 else -distance[:1, 0], places[0, 0] > 9

    monkeypatch.setattr(TASKS["spread"]["vmas"], "judge", judge)
    with pytest.raises(torch._dynamo.exc.Unsupported):
        make_env("particle/spread-2", num_envs=2, dialect="vmas", compile="aot_eager")
    torch._dynamo.reset()


@pytest.mark.slow
@pytest.mark.parametrize("name", ["spread-3", "navigation-4"])
def test_compiled_for_this_machine(name):
    torch._dynamo.reset()
    plain, compiled = (make_env(f"particle/{name}", num_envs=64, dialect="vmas", compile=c) for c in (False, True))
    for t in range(25):
        compiled.places, compiled.velocity = plain.places.clone(), plain.velocity.clone()  # nothing is amplified
        one, two = plain.step_tensors(actions(plain, t)), compiled.step_tensors(actions(plain, t))
        torch.testing.assert_close(one[OBSERVATION], two[OBSERVATION], rtol=0, atol=1e-5)
        torch.testing.assert_close(one[REWARD], two[REWARD], rtol=1e-5, atol=1e-5)
