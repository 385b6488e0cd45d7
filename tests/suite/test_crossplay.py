"""Cross-play: who plays where, what is handed on, returns by hand, the table and the figure."""

import csv

import numpy as np
import pytest
import torch
from PIL import Image
from tensordict.nn import TensorDictModule, TensorDictSequential
from torch import nn

from suite.crossplay import Mixed, cross_play, draw, summary, write
from suite.evaluate import Evaluator
from suite.modules import make_actor
from suite.specs import ACTION, GROUP, OBSERVATION, Specs
from tests.toy import ToyEnv

torch.set_num_threads(1)

N, A, T = 6, 3, 4
PREVIOUS = (GROUP, "previous")


def made(env=ToyEnv, **options):
    return env(N, A, **{"max_steps": T, "seed": 5} | options)


def network(env, seed=0, recurrent=0):
    torch.manual_seed(seed)
    return make_actor(Specs.from_env(env), {}, share="all", agent_id=True, cells=(8,), activation="tanh",
                      init="default", recurrent_dim=recurrent, head="tanh_normal", state_dependent_scale=True,
                      device="cpu")


def constant(value):
    return TensorDictModule(lambda x: torch.full(x.shape[:2], value), in_keys=[OBSERVATION], out_keys=[ACTION])


class Convention(ToyEnv):
    """Pays every agent 1 in a step in which all make the same choice."""

    def _simulate(self, actions):
        same = (actions[ACTION] == actions[ACTION][:, :1]).all(1)
        return same[:, None].expand(N, A).float(), torch.zeros(N, dtype=torch.bool)


class OfTheFirst(ToyEnv):
    """Pays every agent the first one's choice."""

    def _simulate(self, actions):
        return actions[ACTION][:, :1].expand(N, A).float(), torch.zeros(N, dtype=torch.bool)


# ---------------------------------------------------------------------- returns

@pytest.mark.parametrize("recurrent", [0, 5])
@pytest.mark.parametrize("is_discrete", [False, True])
def test_identical_policies_play_as_well_with_each_other(is_discrete, recurrent):
    env = made(is_discrete=is_discrete)
    policies = [network(env, recurrent=recurrent) for _ in range(3)]
    alone = Evaluator(made(is_discrete=is_discrete), policies[0], seed=1).play(deterministic=True)["return"]
    returns = cross_play(env, policies, seed=1)
    assert (returns == alone).all() and summary(returns) == (pytest.approx(alone), pytest.approx(alone))


def test_conventions_that_nobody_shares_by_hand():
    """Everyone chooses 1, or everyone 2: a guest among others never agrees with them."""
    returns = cross_play(made(Convention, is_discrete=True), [constant(1), constant(2), constant(1)], seed=0)
    assert returns.tolist() == [[T, 0, T], [0, T, 0], [T, 0, T]]
    assert summary(returns) == (T, pytest.approx(T / 3))


def test_every_place_counts_alike_by_hand():
    """The first agent's choice pays: it is the guest's in a third of the environments, else the hosts'."""
    returns = cross_play(made(OfTheFirst, is_discrete=True), [constant(3), constant(0)], seed=0)
    assert returns == pytest.approx(np.array([[3 * T, T], [2 * T, 0]]))
    team = cross_play(made(OfTheFirst, is_discrete=True), [constant(3), constant(0)], seed=0, team=True)
    assert team == pytest.approx(A * returns)


def test_networks_that_were_not_trained_together_differ():
    env = made(is_discrete=True)
    policies = [network(env, seed) for seed in (1, 2)]
    returns = cross_play(env, policies, seed=1)
    assert len(np.unique(returns)) == 4
    assert np.array_equal(returns, cross_play(env, policies, seed=1))  # and nothing is left behind
    assert np.array_equal(returns[::-1, ::-1], cross_play(env, policies[::-1], seed=1))
    assert not np.array_equal(returns, cross_play(env, policies, seed=1, deterministic=False))


def test_training_sees_nothing_of_it():
    env = made(is_discrete=True)
    state = torch.get_rng_state()
    cross_play(env, [constant(0), constant(1)], seed=1, deterministic=False)
    assert torch.equal(torch.get_rng_state(), state)


# ---------------------------------------------------------------------- memory

class Recorder(nn.Module):
    """Hands on what everybody did, as a state model's recorder does, and keeps a list of it."""

    def __init__(self):
        super().__init__()
        self.carried, self.heard = {PREVIOUS: (A,)}, []

    def forward(self, action):
        self.heard.append(action)
        return action.float()


class Follow(nn.Module):
    """Chooses ``first`` at first, and then what the next agent did a step before."""

    def __init__(self, first):
        super().__init__()
        self.first = first

    def forward(self, previous, is_init):
        return torch.where(is_init, self.first, previous.roll(-1, 1).long())


def follower(first):
    return TensorDictSequential(
        TensorDictModule(Follow(first), in_keys=[PREVIOUS, "is_init"], out_keys=[ACTION]),
        TensorDictModule(Recorder(), in_keys=[ACTION], out_keys=[("next", *PREVIOUS)]))


def test_both_sides_are_told_what_was_really_done():
    """Guest 3 among hosts 1: what is handed on goes round, from both sides' memories alike."""
    env, sides = made(is_discrete=True), [follower(3), follower(1)]
    mixed = Mixed(*sides, N, A, env.device)
    Evaluator(env, mixed, seed=0, carried=mixed.carried).play(deterministic=True)
    guest, hosts = (side[1].module.heard for side in sides)
    assert len(guest) == T and all(torch.equal(a, b) for a, b in zip(guest, hosts, strict=True))
    start = torch.where(torch.arange(A) == (torch.arange(N) % A)[:, None], 3, 1)
    for step, action in enumerate(guest):
        assert torch.equal(action, start.roll(-step, 1))


def test_each_side_has_its_own_memory():
    env = made()
    mixed = Mixed(network(env, 0, 5), network(env, 1, 4), N, A, env.device)
    assert mixed.carried == {("guest", GROUP, "memory"): (A, 5), ("hosts", GROUP, "memory"): (A, 4)}
    evaluator = Evaluator(env, mixed, seed=0, carried=mixed.carried)
    assert evaluator.play(deterministic=True) == evaluator.play(deterministic=True)


# ---------------------------------------------------------------------- refusals and paper

def test_what_cannot_be_played():
    with pytest.raises(ValueError, match="at least two runs, got 1"):
        cross_play(made(), [constant(0)], seed=0)
    with pytest.raises(ValueError, match="got 1 agents and 6 episodes"):
        cross_play(ToyEnv(N, 1), [constant(0), constant(1)], seed=0)
    with pytest.raises(ValueError, match="got 3 agents and 2 episodes"):
        cross_play(ToyEnv(2, A), [constant(0), constant(1)], seed=0)


def test_table_and_figure(tmp_path):
    returns = np.array([[2.5, 1.0], [0.125, 3.0]])
    table, figure = write(returns, ["seed1", "seed2"], tmp_path / "new")
    rows = list(csv.reader(table.read_text().splitlines()))
    assert rows == [["one agent of / others of", "seed1", "seed2"], ["seed1", "2.5", "1.0"], ["seed2", "0.125", "3.0"]]
    assert summary(returns) == (2.75, 0.5625)
    with Image.open(figure) as picture:
        assert min(picture.size) > 200
    again = figure.read_bytes()
    write(returns, ["seed1", "seed2"], tmp_path / "new")
    assert figure.read_bytes() == again


def test_the_figure_says_it_in_numbers():
    axes = draw(np.array([[2.5, 1.0], [0.125, 3.0]]), ["a", "b"]).axes[0]
    assert [text.get_text() for text in axes.texts] == ["2.50", "1.00", "0.12", "3.00"]
    assert axes.get_title(loc="left") == "self-play 2.75, cross-play 0.56"
    assert [label.get_text() for label in axes.get_yticklabels()] == ["a", "b"]
    draw(np.zeros((3, 3)), ["a", "b", "c"])  # nothing to tell apart
