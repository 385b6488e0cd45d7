"""Hidden variables of the particle tasks: the others' goals in navigation, as VMAS' navigation has them."""

import pytest
import torch

from envs import make_env
from envs.base import ACTION, HIDDEN_VARIABLES

torch.set_num_threads(1)

N = 8


def test_the_goals_of_the_others_in_ascending_order():
    env = make_env("particle/navigation-3", num_envs=N, seed=2, with_hidden=True)
    assert env.hidden_parts == (("others_goals", 4, False),)
    env.reset_tensors()
    out = env.step_tensors({ACTION: env.full_action_spec[ACTION].rand()})
    goals = env.places[3:].permute(2, 0, 1)  # [N, A, 2]
    for i, others in enumerate([(1, 2), (0, 2), (0, 1)]):
        assert torch.equal(out[HIDDEN_VARIABLES][:, i], goals[:, others].flatten(1))


def test_the_same_names_and_order_as_vmas():
    ours, theirs = (make_env(name, num_envs=N, with_hidden=True, **options) for name, options in (
        ("particle/navigation-4", {}), ("vmas/navigation", {"n_agents": 4})))
    assert ours.hidden_parts == theirs.hidden_parts
    seen = theirs.reset_tensors()
    goals = torch.stack([agent.goal.state.pos for agent in theirs.scenario.world.agents], 1)
    assert torch.equal(seen[HIDDEN_VARIABLES][:, 1], goals[:, [0, 2, 3]].flatten(1))


@pytest.mark.parametrize(("name", "options"), [
    ("navigation-1", {}), ("navigation-3", {"observe_all_goals": True}), ("spread-3", {}), ("doublespread", {})])
def test_refused_where_nothing_is_hidden(name, options):
    with pytest.raises(ValueError, match=rf"particle/{name} has no hidden variables.*navigation"):
        make_env(f"particle/{name}", num_envs=2, with_hidden=True, **options)
