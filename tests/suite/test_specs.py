import dataclasses

import pytest
import torch
from torchrl.data import Binary, Bounded, Composite, MultiCategorical, OneHot, Unbounded

from envs import base, make_env
from envs.whole_episodes import WholeEpisodes
from suite import specs as keys
from suite.specs import ALIVE, CONTROLLED, GROUP, SCRIPTED_ACTION, VISIBLE, Specs
from tests.toy import ToyEnv

torch.set_num_threads(1)


def test_keys_are_named_alike_on_both_sides():
    """Neither package imports the other, so what they meet in stands in both."""
    names = [name for name in vars(base) if name.isupper() and name in vars(keys)]
    assert {"ACTION", "ACTION_MASK", "ALIVE", "CHOICE", "CONTROLLED", "GROUP", "INFORMED", "OBSERVATION", "PARAMS",
            "REWARD", "SCRIPTED_ACTION", "SUCCESS", "VISIBLE"} <= {*names}
    assert all(getattr(base, name) == getattr(keys, name) for name in names)
    assert base.HIDDEN_VARIABLES == keys.PRIVILEGED


def test_continuous():
    specs = Specs.from_env(ToyEnv(5, 3, agent_types=[0, 1, 0]))
    assert (specs.n_agents, specs.obs_dim, specs.action_dim, specs.state_dim) == (3, 4, 2, 12)
    assert specs.discrete is False and specs.has_mask is False and specs.alive is None
    assert specs.agent_types == (0, 1, 0)
    assert torch.equal(specs.low, -torch.ones(3, 2)) and torch.equal(specs.high, torch.ones(3, 2))  # no env dimension


@pytest.mark.parametrize("mask", [False, True])
@pytest.mark.parametrize("state", [False, True])
def test_discrete(mask, state):
    specs = Specs.from_env(ToyEnv(5, 2, is_discrete=True, mask=mask, state=state))
    assert specs.discrete is True and specs.action_dim == 5 and specs.has_mask is mask
    assert specs.state_dim == (8 if state else None)
    assert specs.low is None and specs.high is None and specs.agent_types == (0, 0)


@pytest.mark.parametrize(("n_agents", "num_envs"), [(1, 1), (1, 4), (4, 1)])
def test_single_agents_and_single_environments(n_agents, num_envs):
    for discrete in (False, True):
        specs = Specs.from_env(ToyEnv(num_envs, n_agents, is_discrete=discrete))
        assert specs.n_agents == n_agents and specs.action_dim == (5 if discrete else 2)
        assert discrete or specs.low.shape == (n_agents, 2)


def test_bounds_of_every_agent_and_component():
    env = ToyEnv(4, 2)
    low, high = torch.tensor([[-1.0, -2.0], [-3.0, 0.0]]), torch.tensor([[1.0, 2.0], [0.0, 9.0]])
    spec = Bounded(low=low.expand(4, 2, 2), high=high.expand(4, 2, 2), shape=(4, 2, 2), dtype=torch.float32)
    env.action_spec = env._in_group("action", spec)
    specs = Specs.from_env(env)
    assert torch.equal(specs.low, low) and torch.equal(specs.high, high)


def test_agents_that_can_die():
    env = ToyEnv(4, 2)
    observation = env.observation_spec.clone()
    observation[ALIVE] = Binary(shape=(4, 2), dtype=torch.bool)
    env.observation_spec = observation
    assert Specs.from_env(env).alive == ALIVE


@pytest.mark.parametrize("spec", [Unbounded((4, 2, 3)), OneHot(3, shape=(4, 2, 3)),
                                  MultiCategorical([3, 2], shape=(4, 2, 2))], ids=lambda spec: type(spec).__name__)
def test_other_actions_are_refused_by_name(spec):
    env = ToyEnv(4, 2)
    env.action_spec = env._in_group("action", spec)
    with pytest.raises(ValueError, match=f"{type(spec).__name__}; Categorical and Bounded"):
        Specs.from_env(env)


def test_another_group_is_refused_with_what_was_found():
    env = ToyEnv(4, 2)
    group = Composite({"observation": Unbounded((4, 2, 3))}, shape=(4, 2))
    env.observation_spec = Composite({"walkers": group}, shape=(4,))
    with pytest.raises(ValueError, match=rf"walkers.*{GROUP}.*observation"):
        Specs.from_env(env)


def test_specs_cannot_be_changed():
    specs = Specs.from_env(ToyEnv(4, 2))
    with pytest.raises(dataclasses.FrozenInstanceError):
        specs.n_agents = 3


def test_spaces_of_the_environment_stay_as_they_were():
    env = ToyEnv(4, 2)
    before = env.full_action_spec.clone()
    Specs.from_env(env).low.fill_(7.0)
    assert env.full_action_spec == before


# ---------------------------------------------------------------------- agents that differ, are seen, are overridden


def test_choices_and_observations_that_an_agent_does_not_have():
    env = make_env("vmas/simple_speaker_listener_pe", num_envs=2, continuous_actions=False)
    specs = Specs.from_env(env)
    assert specs.has_mask and specs.action_mask.tolist() == [
        [k < size for k in range(specs.action_dim)] for size in env.action_dims]
    assert specs.obs_mask.tolist() == [[k < size for k in range(specs.obs_dim)] for size in env.obs_dims]
    assert len(set(env.action_dims)) == len(set(env.obs_dims)) == 2


@pytest.mark.parametrize("name", ["vmas/simple_speaker_listener_pe", "pettingzoo/simple_speaker_listener_v4"])
def test_action_dimensions_that_an_agent_does_not_have(name):
    env = make_env(name, num_envs=2, continuous_actions=True)
    specs = Specs.from_env(env)
    assert specs.action_mask.shape == specs.low.shape
    assert specs.action_mask.sum(-1).tolist() == list(env.action_dims)
    assert torch.equal(Specs.from_env(WholeEpisodes(env)).action_mask, specs.action_mask)


@pytest.mark.parametrize("name", ["vmas/navigation", "foraging/2s-8x8-2p-2f-coop", "pettingzoo/simple_spread_v3"])
def test_no_masks_where_agents_are_alike(name):
    specs = Specs.from_env(make_env(name, num_envs=2))
    assert specs.action_mask is None and specs.obs_mask is None
    assert specs.visible is None and specs.controlled is None and specs.hidden_dim == 0


def test_who_is_visible_and_who_acts():
    specs = Specs.from_env(make_env("foraging/2s-8x8-3p-2f-coop", num_envs=2, with_visible=True, with_hidden=True))
    assert specs.visible == VISIBLE and specs.controlled is None
    assert specs.hidden_dim == sum(width for _, width, _ in specs.hidden_parts) == 4 + 2 + 6
    specs = Specs.from_env(make_env("vmas/hidden_leader", num_envs=2, partner_types=True))
    assert specs.controlled == CONTROLLED and specs.scripted_action == SCRIPTED_ACTION and specs.visible is None
    assert Specs.from_env(make_env("vmas/hidden_leader", num_envs=2)).controlled is None


def test_whole_episodes_have_the_hidden_parts_of_what_they_hold():
    env = make_env("foraging/2s-8x8-3p-2f-coop", num_envs=2, with_hidden=True)
    assert Specs.from_env(WholeEpisodes(env)).hidden_parts == env.hidden_parts != ()


@pytest.mark.parametrize("low, high, words", [(-1.0, 2.0, r"are \[-1.0\] and \[2.0\]$"), (0.0, 1.0, r"\[0.0\] and"),
                                              (1.0, -1.0, r"\[1.0\] and \[-1.0\], which are inverted")])
def test_hybrid_parameters_that_are_not_scaled(low, high, words):
    env = make_env("hybrid/catch_point", num_envs=2)
    spec = env.full_action_spec.clone()
    spec["agents", "action", "params"] = Bounded(low, high, spec["agents", "action", "params"].shape)
    env.action_spec = spec
    with pytest.raises(ValueError, match=words):
        Specs.from_env(env)


def test_hybrid_specs():
    specs = Specs.from_env(make_env("hybrid/goal", num_envs=2))
    assert specs.param_mask.tolist() == [[True, True], [True, False], [True, False]]
    assert specs.action_dim == 2 and not specs.discrete and specs.low.tolist() == [[-1.0, -1.0]]
