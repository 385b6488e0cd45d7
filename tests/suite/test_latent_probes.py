from dataclasses import replace

import pytest
import torch
from tensordict import TensorDict

from suite.latent_probes import EPISODES, probe_latents
from suite.specs import ACTION, IS_INIT, OBSERVATION, PRIVILEGED
from tests.batches import make_specs

torch.set_num_threads(1)
N, T, A = 12, 10, 3


def make(hidden=True):
    """Rows of one episode each; the goal is one of 3 per episode, the position a number."""
    random = torch.Generator().manual_seed(0)
    batch = TensorDict(batch_size=[N, T])
    batch[OBSERVATION] = torch.randn(N, T, A, 4, generator=random)
    batch[IS_INIT] = torch.zeros(N, T, 1, dtype=torch.bool)
    batch[IS_INIT][:, 0] = True
    goal = torch.arange(N) % 3
    one_hot = torch.nn.functional.one_hot(goal, 3).float()[:, None, None].expand(N, T, A, 3)
    position = torch.randn(N, T, A, 1, generator=random)
    batch[ACTION] = torch.randint(5, (N, T, A), generator=random)
    if hidden:
        batch[PRIVILEGED] = torch.cat([one_hot, position], -1)
    return batch, one_hot, position


def specs(hidden=True):
    parts = (("goal", 3, True), ("position", 1, False)) if hidden else ()
    return make_specs("discrete", hidden_dim=4 if hidden else 0, hidden_parts=parts)


def test_what_a_representation_holds_is_found_and_what_it_lacks_is_not():
    batch, one_hot, position = make()
    found = probe_latents(batch, {"z": torch.cat([one_hot, 2 * position], -1), "u": batch[OBSERVATION]}, specs())
    assert found["probe/goal/z"] == 1.0 and found["probe/position/z"] > 0.99
    assert found["probe/goal/u"] < 0.7 and found["probe/position/u"] < 0.1
    assert found["probe/goal/chance"] < 0.6 and found["probe/position/chance"] == 0


def test_the_ceiling_is_probed_by_a_network_too():
    batch, _, position = make()
    curved = torch.cat([position.square(), position.sign()], -1)  # no linear map of it is the position
    found = probe_latents(batch, {"uc": curved}, specs(), ceiling="uc")
    assert found["probe/position/uc_mlp"] > found["probe/position/uc"] + 0.05


def of_others(x):
    """[N, T, A, d] -> [N, T, A, P d] of each agent's others."""
    return torch.stack([x[:, :, [j for j in range(A) if j != i]].flatten(-2) for i in range(A)], 2)


@pytest.mark.parametrize("hidden", [True, False])
def test_what_others_see_is_probed_with_and_without_hidden_variables(hidden):
    batch, *_ = make(hidden)
    found = probe_latents(batch, {"z": of_others(batch[OBSERVATION]), "u": batch[OBSERVATION]}, specs(hidden))
    assert found["probe/others_observation/z"] > 0.99 and found["probe/others_observation/u"] < 0.1
    assert ("probe/goal/z" in found) == hidden


@pytest.mark.parametrize("kind", ["discrete", "continuous"])
def test_what_others_do_is_probed(kind):
    """Of discrete actions the mean accuracy over the others, of continuous ones R^2."""
    batch, *_ = make(hidden=False)
    task = make_specs(kind, state=False)
    if kind == "discrete":
        done = torch.nn.functional.one_hot(batch[ACTION], 5).float()
    else:
        done = 2 * torch.rand(N, T, A, 2, generator=torch.Generator().manual_seed(2)) - 1
        batch[ACTION] = (task.low + task.high) / 2 + done * (task.high - task.low) / 2  # each by its own bounds
    half = of_others(done).clone()
    half[..., half.shape[-1] // 2:] = 0  # says nothing of the second other
    found = probe_latents(batch, {"z": of_others(done), "half": half, "u": batch[OBSERVATION]}, task, ceiling="u")
    chance = found["probe/others_action/chance"]
    assert chance == 0 if kind == "continuous" else chance < 0.35
    assert found["probe/others_action/z"] > 0.99 and found["probe/others_action/u"] < 0.4
    assert 0.4 < found["probe/others_action/half"] < 0.7
    assert "probe/others_action/u_mlp" in found and found["probe/others_action/u_error"] > 0


def test_a_lone_agent_has_no_others():
    batch, *_ = make()
    alone = replace(make_specs("discrete", n_agents=1, state=False), hidden_dim=4, hidden_parts=specs().hidden_parts)
    batch = TensorDict({key: batch[key] if key == IS_INIT else batch[key][:, :, :1]
                        for key in (IS_INIT, OBSERVATION, ACTION, PRIVILEGED)}, [N, T])
    found = probe_latents(batch, {"u": batch[OBSERVATION]}, alone)
    assert {name.split("/")[1] for name in found} == {"goal", "position"}


def test_first_steps_are_left_out_and_nothing_random_is_drawn():
    batch, _, position = make()
    wrong = position.clone()
    wrong[:, 0] = 1e6
    state = torch.get_rng_state()
    found = probe_latents(batch, {"z": wrong}, specs())
    assert torch.equal(torch.get_rng_state(), state)
    assert found["probe/position/z"] > 0.99
    assert found == probe_latents(batch, {"z": wrong}, specs())


def test_held_out_environments_are_what_probes_are_tested_on():
    """A representation that holds the number where a probe learns, and its opposite where it is tested."""
    batch, _, position = make()
    turned = position.clone()
    turned[-3:] *= -1
    assert probe_latents(batch, {"z": turned}, specs(), held_out=3)["probe/position/z"] < -1
    assert probe_latents(batch, {"z": position}, specs(), held_out=3)["probe/position/z"] > 0.99
    assert probe_latents(batch, {"z": turned}, specs())["probe/position/z"] < 0.99  # some of both


def test_agents_that_have_left_are_no_rows():
    """An agent that is gone has zeros in its place, also as hidden variables: counted, they would spoil the probe."""
    batch, one_hot, position = make()
    alive = torch.ones(N, T, A, dtype=torch.bool)
    alive[:, 5:, 2] = False
    z = torch.cat([one_hot, position], -1)
    batch[PRIVILEGED] = torch.where(alive.unsqueeze(-1), batch[PRIVILEGED], 0.0)
    counted = probe_latents(batch, {"z": z}, specs())
    batch["agents", "mask"] = alive
    found = probe_latents(batch, {"z": z}, replace(specs(), alive=("agents", "mask")))
    assert found["probe/goal/z"] == 1.0 and found["probe/position/z"] > 0.99
    assert counted["probe/goal/z"] < 0.95 and counted["probe/position/z"] < 0.95


def test_of_others_only_where_all_of_them_live():
    """What stands in the place of one that has left says nothing, and would spoil the others' numbers."""
    batch, *_ = make(hidden=False)
    alive = torch.ones(N, T, A, dtype=torch.bool)
    alive[:, 5:, 2] = False
    z = of_others(batch[OBSERVATION])
    batch[OBSERVATION] = torch.where(alive.unsqueeze(-1), batch[OBSERVATION], 0.0)
    counted = probe_latents(batch, {"z": z}, specs(hidden=False))
    batch["agents", "mask"] = alive
    found = probe_latents(batch, {"z": z}, replace(specs(hidden=False), alive=("agents", "mask")))
    assert found["probe/others_observation/z"] > 0.99 > counted["probe/others_observation/z"]


def test_agents_that_see_the_hidden_variables_are_no_rows():
    """The first agent's latent, which need not say what it sees, is not asked."""
    batch, one_hot, _ = make()
    z = torch.where((torch.arange(A) == 0)[:, None], torch.zeros_like(one_hot), one_hot)
    batch["agents", "informed"] = (torch.arange(A) == 0).expand(N, T, A)
    asked = replace(specs(), informed=("agents", "informed"))
    found, mixed = (probe_latents(batch, {"z": z}, each)["probe/goal/z"] for each in (asked, specs()))
    assert found == 1.0 and mixed < 0.95


def test_too_few_episodes_give_no_numbers():
    batch, one_hot, _ = make()
    assert probe_latents(batch[: EPISODES - 1], {"z": one_hot[: EPISODES - 1]}, specs()) == {}
