"""Hybrid actions in place of pushes: what the inner environment gets, resume, and what is refused."""

import math

import pytest
import torch
from torchrl.envs.utils import check_env_specs

from envs import make_env
from envs.base import ACTION, CHOICE, OBSERVATION, PARAMS, REWARD, BatchedEnv, continuous
from envs.hybrid.modes import HybridModes, Modes, modes_named, planar
from envs.hybrid.point_mass import hard_motions
from tests.toy import ToyEnv

torch.set_num_threads(1)

N = 4
TASKS = {"vmas.navigation": ("vmas/navigation", {}), "vmas.simple_spread": ("vmas/simple_spread", {}),
         "particle.spread-3": ("particle/spread-3", {"dialect": "vmas"}), "particle.navigation-2":
         ("particle/navigation-2", {})}


def draw(env, generator):
    choice, params = env.full_action_spec[CHOICE], env.full_action_spec[PARAMS]
    return {CHOICE: torch.randint(choice.n, choice.shape, generator=generator),
            PARAMS: 3 * torch.rand(params.shape, generator=generator) - 1.5}


# ---------------------------------------------------------------------- modes

def test_planar_modes():
    choice = torch.tensor([[0, 1, 2, 3, 3]])
    params = torch.tensor([[[0.7], [-0.5], [0.25], [0.5], [-1.0]]])
    pushes = torch.tensor([[[0.0, 0.0], [-0.5, 0.0], [0.0, 0.25], [0.0, 1.0], [-1.0, 0.0]]])
    torch.testing.assert_close(planar(choice, params), pushes, rtol=0, atol=1e-6)
    assert modes_named("planar", "cpu").param_sizes == (0, 1, 1, 1)


@pytest.mark.parametrize("n", [4, 10])
def test_actuator_modes_are_the_motions_of_hard_move(n):
    modes = modes_named(f"actuators-{n}", "cpu")
    choice, strength = torch.arange(2**n).view(-1, 1), torch.full((2**n, 1, 1), -0.5)
    torch.testing.assert_close(modes.motion(choice, strength).squeeze(1), -0.5 * hard_motions(n).float())
    assert modes.param_sizes == (1,) * 2**n


@pytest.mark.parametrize("name", ["planar", "actuators-6"])
def test_modes_stay_within_a_full_push(name):
    modes, generator = modes_named(name, "cpu"), torch.Generator().manual_seed(0)
    choice = torch.randint(len(modes.param_sizes), (500, 3), generator=generator)
    motion = modes.motion(choice, 2 * torch.rand(500, 3, 1, generator=generator) - 1)
    assert motion.shape == (500, 3, 2) and 0.9 < motion.norm(dim=-1).max() < 1 + 1e-6


# ---------------------------------------------------------------------- the wrapper

@pytest.mark.parametrize("name", TASKS)
@pytest.mark.parametrize("modes", ["planar", "actuators-4"])
def test_it_is_the_inner_task_pushed(name, modes):
    task, options = TASKS[name]
    env, inner = make_env(f"hybrid/{name}", num_envs=N, modes=modes), make_env(task, num_envs=N, **options)
    assert (env.max_steps, env.n_agents, env.agent_types) == (inner.max_steps, inner.n_agents, inner.agent_types)
    assert env.reward_is_shared == inner.reward_is_shared and env.cheap_reset == inner.cheap_reset
    generator = torch.Generator().manual_seed(0)
    seen = [(env.reset_tensors(), inner.reset_tensors())]
    for t in range(5):
        actions = draw(env, generator)
        push = env.modes.motion(actions[CHOICE], actions[PARAMS].clamp(-1, 1)) * inner.full_action_spec[ACTION].high
        assert torch.equal(env.pushes(actions), push) and push.abs().max() > 0
        seen.append((env.step_tensors(actions), inner.step_tensors({ACTION: push})))
        if t == 2:
            mask = torch.tensor([True, False, False, True])
            seen.append((env.reset_tensors(mask), inner.reset_tensors(mask)))
    for one, two in seen:
        assert one.keys() == two.keys() and all(torch.equal(one[key], two[key]) for key in two)
    assert (env.render_frame(1, (60, 60)) == inner.render_frame(1, (60, 60))).all()


@pytest.mark.parametrize("name", TASKS)
def test_specs(name):
    env = make_env(f"hybrid/{name}", num_envs=N)
    check_env_specs(env)
    assert env.param_mask.tolist() == [[False], [True], [True], [True]]
    assert env.full_action_spec[CHOICE].shape == (N, env.n_agents)
    assert env.full_action_spec[PARAMS].shape == (N, env.n_agents, 1)


def test_more_that_is_written_passes_through():
    env = make_env("hybrid/vmas.navigation", num_envs=N, n_agents=3, with_hidden=True, max_steps=2, truncate=False)
    check_env_specs(env)
    assert env.hidden_parts and env.n_agents == 3 and env.max_steps == 2
    out = [env.step_tensors(draw(env, torch.Generator())) for _ in range(2)][-1]
    assert out["terminated"].all() and not out["truncated"].any()


def test_limits_are_truncations():
    env = make_env("hybrid/particle.spread-3", num_envs=N, max_steps=3)
    outs = [env.step_tensors(draw(env, torch.Generator())) for _ in range(3)]
    assert [bool(out["truncated"].all()) for out in outs] == [False, False, True]


@pytest.mark.parametrize("name", TASKS)
def test_saved_states_have_the_same_future(name, tmp_path):
    env, other = (make_env(f"hybrid/{name}", num_envs=N, seed=seed) for seed in (0, 8))
    generator = torch.Generator().manual_seed(0)
    for _ in range(3):
        env.step_tensors(draw(env, generator))
    torch.save(env.state_dict(), tmp_path / "state.pt")
    other.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    for _ in range(3):
        actions = draw(env, generator)
        one, two = env.step_tensors(actions), other.step_tensors(actions)
        assert all(torch.equal(one[key], two[key]) for key in two)
    assert torch.equal(env.reset_tensors()[OBSERVATION], other.reset_tensors()[OBSERVATION])


def test_modes_of_ones_own():
    """Brake at a strength, or thrust with a strength and an angle."""
    def motion(choice, params):
        length = (params[..., 0] + 1) / 2 * (choice == 1)
        return torch.stack([length * (math.pi * params[..., 1]).cos(), length * (math.pi * params[..., 1]).sin()], -1)

    env = HybridModes(ToyEnv(N, 2), Modes((0, 2), motion))
    check_env_specs(env)
    assert env.param_mask.tolist() == [[False, False], [True, True]]
    before = env.reset_tensors()[OBSERVATION]
    thrust = {CHOICE: torch.ones(N, 2, dtype=torch.int64), PARAMS: torch.tensor([1.0, 0.5]).expand(N, 2, 2)}
    torch.testing.assert_close(env.pushes(thrust), torch.tensor([0.0, 1.0]).expand(N, 2, 2), rtol=0, atol=1e-6)
    out = env.step_tensors(thrust)
    assert (out[OBSERVATION] != before).any() and torch.isfinite(out[REWARD]).all()


# ---------------------------------------------------------------------- what is refused

@pytest.mark.parametrize(("name", "options", "message"), [
    ("vmas.navigation", {"continuous_actions": False}, "hybrid/vmas.navigation: .*2 dimensions; .* discrete"),
    ("foraging.8x8-2p-2f-coop", {}, "modes are for continuous actions .* discrete"),
    ("vmas.simple_speaker_listener", {}, r"actions with 2 dimensions, a push in the plane; this task has \[2, 5\]"),
    ("vmas.football", {"enable_shooting": True, "ai_red_agents": False}, "2 dimensions"),
    ("pettingzoo.simple_spread_v3", {"continuous_actions": True}, r"this task has \[5\]"),
    ("gymnasium.Pendulum-v1", {}, r"this task has \[1\]"),
    ("vmas.hidden_leader", {"partner_types": True}, "moves agents itself"),
    ("vmas.simple_tag", {"groups": "native"}, r"modes need all agents in one group 'agents'; this task has \['"),
    ("hybrid.moving", {}, "has hybrid actions already"),
    ("particle.climbing_spread", {}, r"has no dialect 'vmas'; it has \['smpe'\].*asked with .*'dialect': 'vmas'"),
    ("particle.spread-3", {"dialect": "mpe2", "continuous_actions": True}, r"with 2 dimensions"),
    ("vmas.navigatoin", {}, "hybrid/vmas.navigatoin: unknown VMAS scenario.*did you mean 'navigation'"),
    ("vams.navigation", {}, "unknown task 'vams/navigation'.*did you mean 'vmas'"),
    ("vmas.", {}, "unknown task 'vmas/'"),
    ("vmas.navigation", {"agents": 3}, "vmas/navigation has no option 'agents'"),
    ("vmas.navigation", {"modes": "planer"}, r"modes must be one of \['planar', 'actuators-4'.*did you mean 'planar'"),
    ("vmas.navigation", {"modes": 3}, "modes must be one of .* got 3"),
    ("navigation", {}, "unknown hybrid task 'navigation'.*as in 'vmas.navigation'"),
])
def test_refused(name, options, message):
    with pytest.raises(ValueError, match=message):
        make_env(f"hybrid/{name}", num_envs=1, **options)


def test_lopsided_boxes_are_refused():
    class Lopsided(BatchedEnv):
        def __init__(self):
            super().__init__(num_envs=1, agent_names=["a"], agent_types=[0], max_steps=1, seed=0, device="cpu")
            self._set_specs(observation_dim=1, action=continuous(torch.zeros(1, 2), torch.ones(1, 2)))

        _restart = _simulate = _observe = _capture = _restore = _set_seed = lambda self, *_: None

    with pytest.raises(ValueError, match=r"as much room one way as the other.*\[\[0.0, 0.0\]\] and \[\[1.0, 1.0\]\]"):
        HybridModes(Lopsided())
