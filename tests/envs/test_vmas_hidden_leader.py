"""The hidden leader: its geometry, reward and observation by hand, its draws, its scripted leaders, its picture."""

import math

import pytest
import torch

from envs import make_env
from envs.base import ACTION, CONTROLLED, OBSERVATION, REWARD, SCRIPTED_ACTION
from envs.vmas_hidden_leader import GOAL, LEADER, NEAR, PARTNERS
from envs.vmas_scenarios import scenario_options

torch.set_num_threads(1)

HIDDEN = ("agents", "hidden")
N = 64


def make(num_envs=N, seed=0, **options):
    env = make_env("vmas/hidden_leader", num_envs=num_envs, seed=seed, **options)
    env.reset_tensors()
    return env


def still(env):
    spec = env.full_action_spec[ACTION]
    return {ACTION: torch.zeros(spec.shape, dtype=spec.dtype)}


def places(env, kind="agents"):
    return torch.stack([entity.state.pos for entity in getattr(env.scenario.world, kind)], 1)


def at(values, index):
    """The entry [N, ...] that each row's index names."""
    return values[torch.arange(len(values)), index]


def test_landmarks_stand_evenly_on_a_circle_turned_at_random():
    for k in (4, 3):
        env = make(n_landmarks=k)
        x, y = places(env, "landmarks").unbind(-1)
        torch.testing.assert_close(torch.hypot(x, y), torch.full((N, k), 0.8))
        angle = torch.atan2(y, x)
        step = (angle.roll(-1, 1) - angle) % (2 * math.pi)
        torch.testing.assert_close(step, torch.full((N, k), 2 * math.pi / k))
        assert len(angle[:, 0].unique()) == N and angle[:, 0].min() < -2 and angle[:, 0].max() > 2


def test_agents_start_anywhere_in_the_square_and_stay_in_it():
    env = make(1000)
    start = places(env)
    assert start.abs().max() <= 1 and start.amin() < -0.99 and start.amax() > 0.99
    assert abs(start.mean()) < 0.03 and abs(start.std() - 1 / math.sqrt(3)) < 0.02
    push = torch.ones(env.full_action_spec[ACTION].shape)
    for _ in range(80):
        env.step_tensors({ACTION: push})
    assert (places(env) == 1).all()


def test_agents_do_not_collide():
    env = make()
    for agent in env.scenario.world.agents:
        agent.state.pos = torch.zeros(N, 2)
    env.step_tensors(still(env))
    assert (places(env) == 0).all()


def test_reward_by_hand():
    env = make(3)
    env.scenario.goal = torch.tensor([0, 1, 2])
    goal = at(places(env, "landmarks"), env.scenario.goal)
    first, second, third = env.scenario.world.agents
    # row 0: at 0.3, 0.4, 0.5; row 1: all within 0.15; row 2: one of them at 0.16
    first.state.pos = goal + torch.tensor([[0.3, 0.0], [0.1, 0.0], [0.0, 0.0]])
    second.state.pos = goal + torch.tensor([[0.0, 0.4], [0.0, -0.149], [0.0, 0.1]])
    third.state.pos = goal + torch.tensor([[-0.3, 0.4], [0.0, 0.0], [0.16, 0.0]])
    env.scenario.world._x_semidim = env.scenario.world._y_semidim = None  # some of these places are outside
    reward = env.step_tensors(still(env))[REWARD][..., 0]
    expected = torch.tensor([-0.4, 1 - 0.249 / 3, -0.26 / 3])
    torch.testing.assert_close(reward, expected[:, None].expand(3, 3))
    assert env.reward_is_shared and NEAR == 0.15


def test_observation_layout():
    env = make()
    torch.manual_seed(0)
    for _ in range(3):
        seen = env.step_tensors({ACTION: env.full_action_spec[ACTION].rand()})[OBSERVATION]
    assert env.obs_dims == [21, 21, 21] and env.agent_types == (0, 0, 0)
    agents, landmarks, world = places(env), places(env, "landmarks"), env.scenario.world
    for i in range(3):
        position, velocity, to_landmarks, to_others, rest = seen[:, i].split([2, 2, 8, 4, 5], -1)
        assert torch.equal(position, agents[:, i]) and torch.equal(velocity, world.agents[i].state.vel)
        assert torch.equal(to_landmarks.reshape(N, 4, 2), landmarks - agents[:, i, None])
        assert torch.equal(to_others.reshape(N, 2, 2), agents[:, [j for j in range(3) if j != i]] - agents[:, i, None])
        leads = env.scenario.leader == i
        assert torch.equal(rest[:, 0], leads.float())
        assert torch.equal(rest[leads, 1:].argmax(1), env.scenario.goal[leads]) and (rest[leads, 1:].sum(1) == 1).all()
        assert (rest[~leads] == 0).all()
    assert (seen[..., 16].sum(1) == 1).all()  # one leader


def test_followers_see_nothing_of_leader_and_goal():
    one, two = make(), make()
    two.scenario.goal = (one.scenario.goal + 1) % 4
    two.scenario.leader = (one.scenario.leader + 1) % 3
    before, after = (env._observe()[OBSERVATION] for env in (one, two))
    neither = (one.scenario.leader + 2) % 3
    assert torch.equal(at(before, neither), at(after, neither))
    assert (at(before, one.scenario.leader) != at(after, one.scenario.leader)).any(1).all()


def test_sizes_options_and_horizon():
    env = make(2, n_agents=5, n_landmarks=3)
    assert env.n_agents == 5 and env.obs_dims == [4 + 6 + 8 + 1 + 3] * 5 and env.max_steps == 100
    assert list(scenario_options(env.scenario)) == ["n_agents", "n_landmarks", "partner_types"]
    assert make(2).action_dims == [2, 2, 2] and make(2, continuous_actions=False).action_dims == [9, 9, 9]
    for options, message in (({"n_agents": 1}, "n_agents >= 2"), ({"n_landmarks": 1}, "n_landmarks >= 2"),
                             ({"n_agents": 2.5}, "positive integer"), ({"n_agent": 3}, "did you mean 'n_agents'"),
                             ({"partner_types": [0, 10]}, "0 to 9"), ({"partner_types": []}, "0 to 9"),
                             ({"partner_types": [True]}, "0 to 9"), ({"partner_types": 3}, "0 to 9")):
        with pytest.raises(ValueError, match=message):
            make(2, **options)


def test_only_the_horizon_ends_an_episode():
    env = make(4, max_steps=3)
    goal = at(places(env, "landmarks"), env.scenario.goal)
    for agent in env.scenario.world.agents:
        agent.state.pos = goal.clone()
    outs = [env.step_tensors(still(env)) for _ in range(3)]
    assert all((out[REWARD] == 1).all() and not out["terminated"].any() for out in outs)
    assert [out["truncated"].all().item() for out in outs] == [False, False, True]


def test_a_partial_reset_draws_anew_in_its_rows_and_leaves_the_others_exact():
    env = make(partner_types=True)
    for _ in range(2):
        env.step_tensors(still(env))
    rows = torch.arange(N) % 2 == 0

    def now():
        s = env.scenario
        return {"leader": s.leader, "goal": s.goal, "partner": s.partner, "clock": s.clock, "agents": places(env),
                "landmarks": places(env, "landmarks"), "colour": s.world.landmarks[0].color}

    before = {name: value.clone() for name, value in now().items()}
    env.reset_tensors(rows)
    for name, value in now().items():
        assert torch.equal(value[~rows], before[name][~rows]), name
        assert not torch.equal(value[rows], before[name][rows]), name
    assert (env.scenario.clock[rows] == 0).all() and (env.scenario.clock[~rows] == 2).all()


def test_one_environment_can_be_reset_as_vmas_does():
    env = make(8)
    before = env.scenario.goal.clone(), env.scenario.leader.clone(), places(env).clone()
    drawn = set()
    for _ in range(30):
        env.scenario.env_reset_world_at(3)
        drawn.add((int(env.scenario.goal[3]), int(env.scenario.leader[3])))
    rest = torch.arange(8) != 3
    for old, new in zip(before, (env.scenario.goal, env.scenario.leader, places(env)), strict=True):
        assert torch.equal(old[rest], new[rest])
    assert len(drawn) > 6 and not torch.equal(places(env)[3], before[2][3])


@pytest.mark.parametrize("partial", [False, True])
def test_leader_goal_and_partner_are_uniform_and_independent(partial):
    env, rounds = make(1000, seed=5, partner_types=True), 12
    torch.manual_seed(0)
    pairs, partners = torch.zeros(12), torch.zeros(10)
    for _ in range(rounds):
        rows = torch.rand(1000) < 0.3 if partial else torch.ones(1000, dtype=torch.bool)
        env.reset_tensors(rows)
        scenario = env.scenario
        pairs += torch.bincount((scenario.leader * 4 + scenario.goal)[rows], minlength=12)
        partners += torch.bincount(scenario.partner[rows], minlength=10)
    for counts, bound in ((pairs, 31.26), (partners, 27.88)):  # chi-square at 0.999, of 11 and 9 degrees of freedom
        assert ((counts - counts.mean()).square() / counts.mean()).sum() < bound


# ---------------------------------------------------------------------- scripted leaders

def leading(env):
    """Distance of the leader to the goal [N], and to the landmark after it [N]."""
    scenario = env.scenario
    place, landmarks = at(places(env), scenario.leader), places(env, "landmarks")
    return [torch.linalg.vector_norm(place - at(landmarks, k % 4), dim=1) for k in (scenario.goal, scenario.goal + 1)]


@pytest.mark.parametrize("kind", range(10))
def test_every_partner_reaches_the_goal_and_stays(kind):
    env = make(512, seed=2, partner_types=[kind])
    assert (env.scenario.partner == kind).all()
    for _ in range(94):
        env.step_tensors(still(env))
    for _ in range(6):
        env.step_tensors(still(env))
        assert (leading(env)[0] < NEAR).all()


def test_partners_differ():
    arrival = {}
    for kind, partner in enumerate(PARTNERS):
        env = make(256, seed=2, partner_types=[kind])  # the same starts for all
        start, near, aside = places(env), torch.zeros(256), []
        for step in range(100):
            env.step_tensors(still(env))
            goal, other = leading(env)
            near += goal >= NEAR
            aside.append(other)
            if step == partner.wait - 1:
                assert torch.equal(places(env), start)
        arrival[kind] = near.mean()
        reached = (torch.stack(aside).amin(0) < NEAR).float().mean()
        assert reached > 0.2 if partner.decoy else reached < 0.2
    assert len(PARTNERS) == len(set(PARTNERS)) == 10
    assert all(arrival[k + 5] > arrival[k] + 5 for k in range(5))  # the slow ones
    assert all(arrival[0] < arrival[k] for k in range(1, 5))  # detours


def test_forces_of_scripted_leaders_by_hand():
    env = make(5, partner_types=[0, 1, 2])
    scenario = env.scenario
    scenario.partner = torch.tensor([0, 1, 2, 1, 0])  # straight, left, right, left, straight
    scenario.goal = torch.zeros(5, dtype=torch.int64)
    agent, landmark = scenario.world.agents[0], scenario.world.landmarks[0]
    agent.state.pos = torch.zeros(5, 2)
    agent.state.vel = torch.tensor([[0.0, 0.0]] * 4 + [[0.02, -0.01]])
    landmark.state.pos = torch.tensor([[0.8, 0.0], [0.8, 0.0], [0.8, 0.0], [0.0, 0.8], [0.02, 0.03]])
    half, most = 0.5, math.sqrt(0.75)
    expected = torch.tensor([[1, 0], [most, half], [most, -half], [-half, most],
                             [5 * 0.02 - 2 * 0.02, 5 * 0.03 + 2 * 0.01]])  # near the goal less than full force
    torch.testing.assert_close(scenario.script(agent), expected)


@pytest.mark.parametrize("continuous_actions", [True, False])
def test_a_scripted_leader_takes_no_orders_and_followers_do(continuous_actions):
    one, two, free = (make(continuous_actions=continuous_actions, partner_types=types) for types in (True, True, False))
    for _ in range(10):
        one.step_tensors(still(one))
        spec = two.full_action_spec[ACTION]
        two.step_tensors({ACTION: torch.full(spec.shape, 1, dtype=spec.dtype)})
        free.step_tensors(still(free))
    scenario = one.scenario
    leaders = torch.nn.functional.one_hot(scenario.leader, 3).bool()
    assert torch.equal(places(one)[leaders], places(two)[leaders])
    assert (places(one)[~leaders] != places(two)[~leaders]).any(1).all()
    twin = make(continuous_actions=continuous_actions, partner_types=True)
    assert torch.equal(places(one)[~leaders], places(twin)[~leaders])  # nobody moved them
    assert torch.equal(places(free), places(make(continuous_actions=continuous_actions)))


# ---------------------------------------------------------------------- hidden variables and the picture

def test_hidden_variables_are_leader_goal_and_partner():
    for types, width in ((False, 7), (True, 17)):
        env = make(with_hidden=True, partner_types=types)
        hidden, scenario = env._observe()[HIDDEN], env.scenario
        assert hidden.shape == (N, 3, width) and hidden.dtype == torch.float32
        assert (hidden == hidden[:, :1]).all()
        names = [name for name, _, is_one_hot in env.hidden_parts if is_one_hot]
        parts = hidden[:, 0].split([size for _, size, _ in env.hidden_parts], -1)
        assert names == ["leader", "goal", "partner"][:len(parts)] and len(parts) == (3 if types else 2)
        for name, part in zip(names, parts, strict=True):
            assert torch.equal(part, torch.nn.functional.one_hot(getattr(scenario, name), part.shape[-1]).float())


def test_the_picture_tells_leader_and_goal_from_the_rest():
    env = make()
    scenario = env.scenario
    world = scenario.world
    goal = torch.stack([landmark.color for landmark in world.landmarks], 1)
    leader = torch.stack([agent.color for agent in world.agents], 1)
    for colors, index, color in ((goal, scenario.goal, GOAL), (leader, scenario.leader, LEADER)):
        marked = (colors == torch.tensor(color)).all(-1)
        assert torch.equal(marked, torch.nn.functional.one_hot(index, colors.shape[1]).bool())
    frame = env.render_frame(3)
    assert frame.shape == (512, 512, 3)
    assert len({tuple(pixel) for pixel in frame.reshape(-1, 3).tolist()}) > 6


def test_who_is_controlled():
    """All but the scripted leader of each row, before the step that its script decides and in every later one."""
    env = make(partner_types=True)
    out = env.reset_tensors()
    for _ in range(3):
        assert torch.equal(out[CONTROLLED], torch.arange(3) != env.scenario.leader[:, None])
        out = env.step_tensors(still(env))
    rows = torch.arange(N) % 2 == 0
    before, out = out, env.reset_tensors(rows)
    assert torch.equal(out[CONTROLLED], torch.arange(3) != env.scenario.leader[:, None])
    assert torch.equal(out[CONTROLLED][~rows], before[CONTROLLED][~rows])
    assert not torch.equal(out[CONTROLLED][rows], before[CONTROLLED][rows])
    assert CONTROLLED not in make().reset_tensors()


def test_the_action_of_an_agent_that_is_not_controlled_does_nothing():
    env, twin = make(partner_types=True), make(partner_types=True)
    for _ in range(5):
        action = env.full_action_spec[ACTION].rand()
        other = torch.where(env._observe()[CONTROLLED].unsqueeze(-1), action, -action)
        one, two = env.step_tensors({ACTION: action}), twin.step_tensors({ACTION: other})
        assert torch.equal(one[OBSERVATION], two[OBSERVATION]) and torch.equal(one[REWARD], two[REWARD])


def test_the_scripted_action_is_what_the_leader_does():
    """A leader of the policy's that takes it, in a twin without scripts, moves the same way."""
    env, free = make(partner_types=True), make()
    for name in ("leader", "goal"):
        setattr(free.scenario, name, getattr(env.scenario, name).clone())
    for own, other in zip(env.scenario.world.entities, free.scenario.world.entities, strict=True):
        other.state.pos = own.state.pos.clone()
    out, moved = env._observe(), 0.0
    for _ in range(30):
        action = env.full_action_spec[ACTION].rand()
        done = torch.where(out[CONTROLLED].unsqueeze(-1), action, out[SCRIPTED_ACTION])
        out, twin = env.step_tensors({ACTION: action}), free.step_tensors({ACTION: done})
        torch.testing.assert_close(out[OBSERVATION], twin[OBSERVATION], rtol=1e-5, atol=1e-5)
        moved = max(moved, float(out[SCRIPTED_ACTION].abs().max()))
    assert moved > 0.6


def test_the_scripted_choice_points_where_the_leader_goes():
    env = make(partner_types=True, continuous_actions=False)
    out = env._observe()
    script = torch.stack([env.scenario.script(agent) for agent in env.scenario.world.agents], 1)
    chosen = env.actions.table[0][out[SCRIPTED_ACTION]]  # forces; the same table for all
    leader = ~out[CONTROLLED]
    apart = (chosen[leader] - script[leader]).norm(dim=-1)
    assert (apart[:, None] <= (env.actions.table[0] - script[leader].unsqueeze(1)).norm(dim=-1) + 1e-6).all()
    assert (out[SCRIPTED_ACTION][~leader] == 0).all() and (out[SCRIPTED_ACTION][leader] > 0).any()
