"""Hidden variables: their values in every scenario that has any, and that they change nothing else."""

import pytest
import torch

from envs import make_env
from envs.base import ACTION, OBSERVATION, REWARD
from envs.vmas import available
from envs.vmas_hidden import STOCK, TASKS
from suite.collector import make_collector
from suite.modules import make_actor, make_critic
from suite.specs import Specs

torch.set_num_threads(1)

HIDDEN, INFORMED = ("agents", "hidden"), ("agents", "informed")
N = 16


def make(name, **options):
    env = make_env(f"vmas/{name}", num_envs=N, seed=0, **{"with_hidden": True} | options)
    return env, env.reset_tensors()


def noise(env):
    return {ACTION: torch.rand(env.full_action_spec[ACTION].shape) - 0.5}


def test_reference_is_the_goal_that_the_other_one_is_told():
    env, seen = make("simple_reference_pe")
    assert seen[HIDDEN].shape == (N, 2, 3) and env.hidden_parts == (("goal", 3, True),)
    told = seen[OBSERVATION][..., 8:11]  # velocity 2, three landmarks 6, then the colour of the other's goal
    colors = torch.stack([landmark.color for landmark in env.scenario.world.landmarks])
    for i in (0, 1):
        own = seen[HIDDEN][:, i].argmax(-1)
        assert torch.equal(told[:, 1 - i], colors[own])
    assert len(seen[HIDDEN].argmax(-1).unique(dim=0)) > 4
    # and it is what pays: both on the landmarks that they are to reach
    for i, agent in enumerate(env.scenario.world.agents):
        places = torch.stack([landmark.state.pos for landmark in env.scenario.world.landmarks], 1)
        agent.state.pos = places[torch.arange(N), seen[HIDDEN][:, i].argmax(-1)].clone()
    assert env.scenario.reward(env.scenario.world.agents[0]).abs().max() < 1e-6


def test_speaker_listener_is_the_goal_that_the_speaker_sees():
    env, seen = make("simple_speaker_listener_pe")
    assert seen[HIDDEN].shape == (N, 2, 3) and env.hidden_parts == (("goal", 3, True),)
    assert torch.equal(seen[HIDDEN].argmax(-1), seen[OBSERVATION][:, :1, :3].argmax(-1).expand(N, 2))
    assert (seen[HIDDEN].sum(-1) == 1).all() and len(seen[HIDDEN].unique(dim=0)) == 3


@pytest.mark.parametrize(("name", "good", "start"), [("simple_adversary_pe", 1, 0), ("simple_push_pe", 1, 2)])
def test_adversary_and_push_are_the_goal_that_good_agents_see(name, good, start):
    env, seen = make(name)
    world = env.scenario.world
    k = len(world.landmarks)
    assert seen[HIDDEN].shape == (N, env.n_agents, k) and env.hidden_parts == (("goal", k, True),)
    assert (seen[HIDDEN] == seen[HIDDEN][:, :1]).all() and len(seen[HIDDEN].unique(dim=0)) == k
    offset = seen[OBSERVATION][:, good, start:start + 2]
    places = torch.stack([landmark.state.pos for landmark in world.landmarks], 1)
    goal = places[torch.arange(N), seen[HIDDEN][:, good].argmax(-1)]
    assert torch.equal(offset, goal - world.agents[good].state.pos)


def test_give_way_is_the_other_agent():
    env, _ = make("give_way_pe")
    for _ in range(3):
        seen = env.step_tensors(noise(env))
    assert torch.equal(seen[HIDDEN], seen[OBSERVATION].flip(1))  # position and velocity
    assert env.hidden_parts == (("position", 2, False), ("velocity", 2, False))


def test_navigation_is_the_goals_of_the_others():
    env, seen = make("navigation", n_agents=3)
    agents = env.scenario.world.agents
    position, own = seen[OBSERVATION][..., :2], seen[OBSERVATION][..., 4:6]  # own: position minus goal
    goals = position - own
    for i in range(len(agents)):
        others = goals[:, [j for j in range(3) if j != i]].flatten(1)
        torch.testing.assert_close(seen[HIDDEN][:, i], others)
    assert env.hidden_parts == (("others_goals", 4, False),)


@pytest.mark.parametrize("name", TASKS)
def test_they_change_nothing_else_and_follow_partial_resets(name):
    (env, seen), (twin, _) = make(name), make(name, with_hidden=False)
    assert HIDDEN not in twin._observe() and twin.hidden_parts == ()
    assert HIDDEN not in set(twin.observation_spec.keys(True, True))
    assert Specs.from_env(env).obs_dim == Specs.from_env(twin).obs_dim
    sizes = sum(size for _, size, _ in env.hidden_parts)
    assert seen[HIDDEN].shape == (N, env.n_agents, sizes) and seen[HIDDEN].dtype == torch.float32
    for step in range(4):
        action = noise(env)
        one, two = env.step_tensors(action), twin.step_tensors(action)
        assert torch.equal(one[OBSERVATION], two[OBSERVATION]) and torch.equal(one[REWARD], two[REWARD])
        rows = torch.arange(N) % 3 == step % 3
        after, other = env.reset_tensors(rows), twin.reset_tensors(rows)
        assert torch.equal(after[OBSERVATION], other[OBSERVATION])
        assert torch.equal(after[HIDDEN][~rows], one[HIDDEN][~rows])
        assert not torch.equal(after[HIDDEN][rows], one[HIDDEN][rows])


def test_who_sees_them_anyway_is_told_where_somebody_does():
    expected = {"simple_speaker_listener_pe": [True, False], "simple_adversary_pe": [False, True, True],
                "simple_push_pe": [False, True]}
    for name, informed in expected.items():
        env, seen = make(name)
        assert seen[INFORMED].tolist() == [informed] * N and Specs.from_env(env).informed == INFORMED
    for name in ("simple_reference_pe", "give_way_pe", "navigation"):
        env, seen = make(name)
        assert INFORMED not in seen and Specs.from_env(env).informed is None
    env, seen = make("hidden_leader")
    leads = seen[OBSERVATION][..., -5] == 1  # the flag ahead of the goal's one-hot
    assert torch.equal(seen[INFORMED], leads) and (leads.sum(1) == 1).all() and leads.any(0).all()
    mask = torch.arange(N) < N // 2
    after = env.reset_tensors(mask)
    assert torch.equal(after[INFORMED], after[OBSERVATION][..., -5] == 1)
    assert torch.equal(after[INFORMED][~mask], seen[INFORMED][~mask])
    assert not torch.equal(after[INFORMED], seen[INFORMED])
    assert INFORMED not in make("hidden_leader", with_hidden=False)[1]


@pytest.mark.parametrize("recurrent_dim", [0, 5])
def test_actor_and_critic_do_not_read_them(recurrent_dim):
    env, twin = make("hidden_leader")[0], make("hidden_leader", with_hidden=False)[0]
    batches = []
    for each in (env, twin):
        torch.manual_seed(0)
        common = dict(share="all", agent_id=True, cells=(8,), activation="tanh", init="default",
                      recurrent_dim=recurrent_dim, device="cpu")
        actor = make_actor(Specs.from_env(each), {}, head="tanh_normal", state_dependent_scale=True, **common)
        critic = make_critic(Specs.from_env(each), {}, centralized=True, **common)
        for network in (actor, critic):
            assert HIDDEN not in network.in_keys
        torch.manual_seed(1)
        batches.append(make_collector(each, actor, steps=4, total_frames=4 * N).rollout())
    with_hidden, without = batches
    told = [key for name in (HIDDEN, INFORMED) for key in (name, ("next", *name))]
    assert (with_hidden.exclude(*told) == without).all()
    assert with_hidden[HIDDEN].shape == with_hidden["next", *HIDDEN].shape == (N, 4, 3, 7)
    assert torch.equal(with_hidden[HIDDEN][:, 1:], with_hidden["next", *HIDDEN][:, :-1])


@pytest.mark.parametrize("name", sorted({"balance", "simple_push", "simple_reference", "give_way", "simple_spread",
                                         "simple_world_comm_pe"}))
def test_scenarios_without_are_refused(name):
    with pytest.raises(ValueError, match=rf"vmas/{name} has no hidden variables.*'hidden_leader', 'navigation'"):
        make(name)


def test_the_list_of_tasks():
    assert set(STOCK) <= set(TASKS) <= set(available()) and len(TASKS) == 7
    with pytest.raises(ValueError, match="did you mean 'simple_push_pe'"):
        make("simple_push")
    with pytest.raises(ValueError, match="there is nobody else"):
        make("navigation", n_agents=1)
