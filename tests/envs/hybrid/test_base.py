"""The base of hybrid tasks, on a task of three lines: it adds up what it is given."""

from typing import NamedTuple

import pytest
import torch
from torchrl.envs.utils import check_env_specs

from envs import check_options, make_env
from envs.base import CHOICE, OBSERVATION, PARAMS, REWARD
from envs.hybrid.base import HybridEnv, Step

torch.set_num_threads(1)

N = 4


class Sums(NamedTuple):
    start: torch.Tensor
    total: torch.Tensor


class Adding(HybridEnv):
    """Choice k adds k plus the sum of the parameters it has; 3 or more ends an episode, 4 or more is success."""

    def __init__(self, param_sizes=(2, 0, 1), num_envs=N, seed=0, **base):
        super().__init__(num_envs=num_envs, seed=seed, device="cpu", max_steps=10, observation_dim=2,
                         param_sizes=param_sizes, **base)

    def _begin(self, rows):
        start = torch.rand(rows, 1, generator=self.generator)
        return Sums(start, torch.zeros(rows))

    def _advance(self, state, choice, params):
        total = state.total + choice + (params * self.param_mask[choice]).sum(-1)
        return Step(Sums(state.start, total), total.double(), total >= 3, total >= 4)

    def _see(self, state):
        return torch.cat([state.start, state.total.unsqueeze(-1)], -1)


def actions(choice, params):
    return {CHOICE: torch.tensor(choice).unsqueeze(-1), PARAMS: torch.tensor(params).unsqueeze(1)}


def some():
    return actions([0, 1, 2, 2], [[0.5, 0.25], [0.5, 0.25], [0.5, 0.25], [1.0, 1.0]])


def test_specs():
    env = Adding()
    check_env_specs(env)
    assert env.n_agents == 1 and env.full_action_spec[CHOICE].shape == (N, 1)
    assert env.full_action_spec[PARAMS].shape == (N, 1, 2) and env.full_action_spec[CHOICE].n == 3


@pytest.mark.parametrize(("sizes", "mask"), [
    ((2, 0, 1), [[True, True], [False, False], [True, False]]), ((1, 0), [[True], [False]]), ((1,), [[True]])])
def test_a_choice_may_have_no_parameters(sizes, mask):
    env = Adding(sizes)
    assert env.param_mask.tolist() == mask and env.param_mask.dtype == torch.bool
    assert env.full_action_spec[PARAMS].shape[-1] == max(sizes)
    env.rollout(2)


def test_a_step():
    env = Adding()
    out = env.step_tensors(some())
    assert out[OBSERVATION][:, 0, 1].tolist() == [0.75, 1.0, 2.5, 3.0] == out[REWARD].flatten().tolist()
    assert out[OBSERVATION].shape == (N, 1, 2) and out[REWARD].shape == (N, 1, 1)
    assert out[REWARD].dtype == torch.float32  # whatever the rules count in
    assert out["terminated"].flatten().tolist() == [False, False, False, True] and not out["success"].any()
    out = env.step_tensors(some())
    assert out["success"].flatten().tolist() == [False, False, True, True] and out["success"].shape == (N, 1)


def test_parameters_are_clamped():
    wild, tame = Adding(), Adding()
    wild.step_tensors(actions([0] * N, [[3.0, -7.0], [0.5, 9.0], [-2.0, 0.0], [1.0, 1.0]]))
    tame.step_tensors(actions([0] * N, [[1.0, -1.0], [0.5, 1.0], [-1.0, 0.0], [1.0, 1.0]]))
    assert torch.equal(wild.state.total, tame.state.total)


@pytest.mark.parametrize("without_asking", [False, True])
def test_partial_resets(without_asking):
    env = Adding()
    env.cheap_reset = without_asking
    for _ in range(2):
        env.step_tensors(some())
    before, mask = env.state, torch.tensor([True, False, True, False])
    out = env.reset_tensors(mask)
    assert torch.equal(env.state.start[~mask], before.start[~mask])
    assert (env.state.start[mask] != before.start[mask]).all()
    assert env.state.total.tolist() == [0.0, 2.0, 0.0, 6.0] and env.steps.tolist() == [0, 2, 0, 2]
    assert out["success"].flatten().tolist() == [False, False, False, True]
    env.reset_tensors(torch.zeros(N, dtype=torch.bool))
    assert env.steps.tolist() == [0, 2, 0, 2]
    assert not env.reset_tensors()["success"].any() and not env.state.total.any()


def test_a_row_that_does_not_step_stays():
    env = Adding()
    step = env.reset().update({"_step": torch.tensor([[True], [False], [True], [False]])})
    for key, value in some().items():
        step[key] = value
    after = env.step(step)["next"]
    assert after[OBSERVATION][:, 0, 1].tolist() == [0.75, 0.0, 2.5, 0.0]


def test_saved_states_have_the_same_future(tmp_path):
    env, other = Adding(), Adding(seed=9)
    env.step_tensors(some())
    torch.save(env.state_dict(), tmp_path / "state.pt")
    other.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    mask = torch.tensor([True, True, False, False])
    for one, two in ((env.step_tensors(some()), other.step_tensors(some())),
                     (env.reset_tensors(mask), other.reset_tensors(mask))):
        assert one.keys() == two.keys() and all(torch.equal(one[key], two[key]) for key in one)


def test_what_was_saved_does_not_change():
    env = Adding()
    saved = env.state_dict()
    env.load_state_dict(saved)
    env.step_tensors(some())
    env.reset_tensors(torch.tensor([True, False, False, False]))
    assert not saved["simulator"]["state"]["total"].any()


def test_seeds():
    one, two, other = Adding(seed=1), Adding(seed=1), Adding(seed=2)
    assert torch.equal(one.state.start, two.state.start) and not torch.equal(one.state.start, other.state.start)
    one.set_seed(2)
    assert torch.equal(one.reset_tensors()[OBSERVATION], other._see(other.state).unsqueeze(1))


def test_options_that_do_not_exist_are_named():
    check_options("hybrid/adding", {"speed": 1}, ["speed"])
    with pytest.raises(ValueError, match=r"hybrid/adding has no option 'sped'; it has \['speed'\]; did you mean 'spee"):
        check_options("hybrid/adding", {"sped": 1}, ["speed"])


def test_one_row_of_a_state():
    env = make_env("hybrid/catch_point", num_envs=3)
    row = env.row(2)
    assert type(row) is type(env.state) and all(torch.equal(a, b[..., 2]) for a, b in zip(row, env.state, strict=True))
    for wrong in (3, -1):
        with pytest.raises(ValueError, match=rf"env_index must be in \[0, 2\], got {wrong}"):
            env.row(wrong)
