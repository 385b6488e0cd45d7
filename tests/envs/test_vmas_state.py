"""The simulator state of every shipped scenario: exact partial resets, exact save and load."""

import pytest
import torch
import vmas

from envs import make_env
from envs.base import ACTION
from envs.vmas import OWN
from envs.vmas_state import RandomState, find_slots

torch.set_num_threads(1)

SCENARIOS = [*vmas.scenarios, *vmas.mpe_scenarios, *OWN, "asym_joint", "het_mass", "waterfall"]
OPTIONS = {"football": {"ai_red_agents": False}, "hidden_leader": {"partner_types": True}}
NOISY = {"road_traffic", "asym_joint"}  # draw random numbers in each step
N = 8


def equal(one, two, rows=slice(None)):
    return all(torch.equal(one[key][rows], two[key][rows]) for key in two)


@pytest.mark.parametrize("name", SCENARIOS)
def test_save_load_and_partial_reset_are_exact(name, tmp_path):
    env, twin = (make_env(f"vmas/{name}", num_envs=N, seed=seed, max_steps=100, **OPTIONS.get(name, {}))
                 for seed in (0, 1))
    env.reset_tensors()
    actions = [{ACTION: env.full_action_spec[ACTION].rand()} for _ in range(10)]
    for action in actions[:4]:
        env.step_tensors(action)
    torch.save(env.state_dict(), tmp_path / "state.pt")
    twin.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    for action in actions[4:6]:
        assert equal(env.step_tensors(action), twin.step_tensors(action))
    rows = torch.zeros(N, dtype=torch.bool)
    rows[[1, 5]] = True
    env._restart(rows)  # without a look at the state, which road_traffic keeps as history
    for action in actions[6:]:
        if name in NOISY:
            env.random.restore(twin.random.capture())
        assert equal(env.step_tensors(action), twin.step_tensors(action), ~rows)


def test_scripted_football_is_saved_exactly():
    env, twin = (make_env("vmas/football", num_envs=N, seed=seed) for seed in (0, 1))
    env.rollout(4)
    twin.load_state_dict(env.state_dict())
    for _ in range(3):
        action = {ACTION: env.full_action_spec[ACTION].rand()}
        assert equal(env.step_tensors(action), twin.step_tensors(action))


def test_scripted_football_keeps_the_state_of_other_rows():
    env = make_env("vmas/football", num_envs=N, seed=0)
    env.rollout(4)
    before = {path: value.clone() for path, (_, _, value) in find_slots(env.scenario, N).rows.items()}
    rows = torch.zeros(N, dtype=torch.bool)
    rows[[1, 5]] = True
    env._restart(rows)
    after = find_slots(env.scenario, N).rows
    assert all(torch.equal(after[path][2][~rows].nan_to_num(), value[~rows].nan_to_num())
               for path, value in before.items() if "team_disps" not in path)  # a cache that is emptied
    agent = next(path for path in before if path.endswith("_agents/0/_state/_pos"))
    assert not torch.equal(after[agent][2][rows], before[agent][rows])


def test_no_row_and_all_rows():
    env = make_env("vmas/simple_spread", num_envs=N, seed=0)
    seen = env.reset_tensors()
    assert equal(env.reset_tensors(torch.zeros(N, dtype=torch.bool)), seen)
    assert not equal(env.reset_tensors(torch.ones(N, dtype=torch.bool)), seen)


@pytest.mark.parametrize("num_envs", [1, 2, 3])
def test_as_many_rows_as_entries_of_a_colour(num_envs):
    env, twin = (make_env("vmas/simple_reference", num_envs=num_envs, seed=seed) for seed in (0, 1))
    twin.load_state_dict(env.state_dict())
    rows = torch.arange(num_envs) == 0
    env.reset_tensors(rows)
    for _ in range(3):
        action = {ACTION: env.full_action_spec[ACTION].rand()}
        assert equal(env.step_tensors(action), twin.step_tensors(action), ~rows)


def test_loading_a_foreign_state_is_refused():
    env = make_env("vmas/balance", num_envs=N)
    with pytest.raises(ValueError, match="saved state is of vmas/transport"):
        env.load_state_dict(make_env("vmas/transport", num_envs=N).state_dict())
    with pytest.raises(ValueError, match="other options"):
        env.load_state_dict(make_env("vmas/balance", num_envs=N, n_agents=5).state_dict())
    with pytest.raises(ValueError, match="has 3 environments"):
        env.load_state_dict(make_env("vmas/balance", num_envs=3).state_dict())


def test_a_saved_state_does_not_change_later():
    env = make_env("vmas/balance", num_envs=N)
    state = env.state_dict()
    copy = {path: value.clone() for path, value in state["simulator"]["rows"].items()}
    env.load_state_dict(state)
    env.rollout(3)
    env.reset_tensors(torch.arange(N) < 3)
    assert equal(state["simulator"]["rows"], copy)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_random_state_on_cuda():
    device = torch.device("cuda", torch.cuda.current_device())
    random, before = RandomState(0, device), torch.cuda.get_rng_state()
    with random.swapped_in():
        first = torch.rand(3, device=device)
    assert torch.equal(torch.cuda.get_rng_state(), before)
    random.seed(0)
    with random.swapped_in():
        assert torch.equal(torch.rand(3, device=device), first)


def test_a_store_of_initial_states_serves_many_partial_resets(monkeypatch):
    env = make_env("vmas/navigation", num_envs=4, seed=0)
    env.reset_tensors()
    calls, reset = [], env.scenario.env_reset_world_at
    monkeypatch.setattr(env.scenario, "env_reset_world_at", lambda index: (calls.append(index), reset(index)))
    seen = [env.reset_tensors(torch.arange(4) == row)[("agents", "observation")][row] for row in (0, 1, 2, 3, 1, 1, 0)]
    # rows 0-3 from one draw of all rows; row 1 again: a second draw; row 1 a third time: a third, which serves row 0
    assert len(calls) == 3
    assert all(not torch.equal(a, b) for k, a in enumerate(seen) for b in seen[:k])


def test_the_store_is_part_of_the_state_and_a_new_seed_empties_it():
    one, two = make_env("vmas/balance", num_envs=4, seed=0), make_env("vmas/balance", num_envs=4, seed=9)
    first = torch.tensor([True, False, False, False])
    for env in (one, two):
        env.reset_tensors()
        env.reset_tensors(first)
    two.load_state_dict(one.state_dict())
    second = ~first
    key = ("agents", "observation")
    assert torch.equal(one.reset_tensors(second)[key], two.reset_tensors(second)[key])
    one.set_seed(3), two.set_seed(3)
    assert torch.equal(one.reset_tensors(second)[key], two.reset_tensors(second)[key])
