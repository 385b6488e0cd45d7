import pytest
import torch
from tensordict.nn import TensorDictModule
from torchrl.data import Binary
from torchrl.envs.utils import check_env_specs

from envs.base import ACTION, ACTION_MASK, ALIVE, OBSERVATION, REWARD, BatchedEnv, discrete
from envs.whole_episodes import WholeEpisodes
from suite.collector import FastCollector
from suite.specs import TERMINATED, Specs
from suite.trainer import Trainer
from tests.toy import ToyEnv

HORIZON, N, A = 6, 5, 2
LENGTHS = (1, 3, 5, 6, 9)  # the last one meets the time limit


class Countdown(BatchedEnv):
    """Row k terminates after LENGTHS[k] steps, and goes on terminating; numbers are episode, row, agent and step."""

    reward_is_shared = True

    def __init__(self, lengths=LENGTHS, *, max_steps=HORIZON, truncate=True, alive=False, cut=False):
        super().__init__(num_envs=len(lengths), agent_names=["a", "b"], agent_types=[0, 1], max_steps=max_steps,
                         truncate=truncate, seed=0, device="cpu")
        self._set_specs(observation_dim=3, action=discrete(4, A), action_mask=4, state_dim=1)
        if alive:
            self.observation_spec[ALIVE] = Binary(A, shape=(len(lengths), A), dtype=torch.bool)
        self.lengths, self.cut = torch.tensor(lengths), cut
        self.count = torch.zeros(len(lengths), dtype=torch.int64)
        self.episode = torch.zeros(len(lengths), dtype=torch.int64)
        self.offset = 0

    def _restart(self, mask):
        mask = torch.ones_like(self.count, dtype=torch.bool) if mask is None else mask
        self.count, self.episode = torch.where(mask, 0, self.count), self.episode + mask

    def _simulate(self, actions):
        self.count = self.count + 1
        ended = self.count >= self.lengths
        reward = (self.count.unsqueeze(-1) + 10 * actions[ACTION]).float()
        return (reward, torch.zeros_like(ended), ended) if self.cut else (reward, ended)

    def _observe(self):
        row, agent = torch.arange(self.num_envs).unsqueeze(-1), torch.arange(A).unsqueeze(0)
        numbers = [self.count.unsqueeze(-1) + 1, 1 + row, self.episode.unsqueeze(-1)]
        mask = torch.zeros(self.num_envs, A, 4, dtype=torch.bool)
        mask[..., 1] = True
        observation = torch.stack([x.expand(-1, A) for x in numbers], -1) * (1 + agent).unsqueeze(-1)
        return {OBSERVATION: observation.float(), ACTION_MASK: mask, "state": self.count.float().unsqueeze(-1) + 1}

    def _capture(self):
        return {"count": self.count.clone(), "episode": self.episode.clone(), "offset": self.offset}

    def _restore(self, state, mask=None):
        mask = torch.ones_like(self.count, dtype=torch.bool) if mask is None else mask
        for name in ("count", "episode"):
            setattr(self, name, torch.where(mask, state[name], getattr(self, name)))
        self.offset = self.offset if not mask.all() else state["offset"]

    def _set_seed(self, seed):
        self.offset = seed


def act(env, choice=1):
    return {ACTION: torch.full((env.num_envs, A), choice)}


def play(env, steps=HORIZON, begin=True):
    """What it hands out at a reset (if asked) and in so many steps."""
    return [*([env.reset_tensors()] if begin else []), *(env.step_tensors(act(env)) for _ in range(steps))]


def stacked(outs, key):
    return torch.stack([out[key] for out in outs], 1)


def same(one, two, rows=slice(None)):
    return all(torch.equal(a[key][rows], b[key][rows]) for a, b in zip(one, two, strict=True) for key in b)


def test_the_mask_is_true_inside_an_episode_and_false_behind():
    alive = stacked(play(WholeEpisodes(Countdown())), ALIVE)
    assert alive.shape == (N, HORIZON + 1, A) and alive.dtype == torch.bool
    for row, length in enumerate(LENGTHS[:4]):
        assert alive[row, :length].all() and not alive[row, length:].any()
    assert alive[4].all()  # its time ran out, but it did not end: value estimates go on behind it


def test_the_last_observation_is_shown_once_and_then_zeros():
    outs, plain = play(WholeEpisodes(Countdown())), play(Countdown())
    for key in (OBSERVATION, "state"):
        ours, inner = stacked(outs, key), stacked(plain, key)
        for row, length in enumerate(LENGTHS):
            assert torch.equal(ours[row, : length + 1], inner[row, : length + 1])
            assert ours[row, : length + 1].all() and not ours[row, length + 1:].any()


def test_every_action_is_allowed_behind_the_end():
    allowed = stacked(play(WholeEpisodes(Countdown())), ACTION_MASK)
    for row, length in enumerate(LENGTHS):
        assert torch.equal(allowed[row, : length + 1], torch.tensor([False, True, False, False]).expand_as(
            allowed[row, : length + 1]))
        assert allowed[row, length + 1:].all()


def test_rewards_are_zero_behind_the_end():
    reward = stacked(play(WholeEpisodes(Countdown()))[1:], REWARD)
    for row, length in enumerate(LENGTHS):
        expected = torch.arange(1.0, HORIZON + 1) + 10
        expected[length:] = 0
        assert torch.equal(reward[row], expected.view(-1, 1, 1).expand(HORIZON, A, 1))


@pytest.mark.parametrize("truncate", [True, False])
def test_all_rows_are_done_together_and_terminated_only_if_the_true_end_is_there(truncate):
    outs = play(WholeEpisodes(Countdown(truncate=truncate)))
    for out in outs[1:-1]:
        assert not out["done"].any() and not out["terminated"].any() and not out["truncated"].any()
    assert outs[-1]["done"].all()
    # row 3 ends with the horizon; rows 0 to 2 ended before, and their task still says so
    assert outs[-1]["terminated"].flatten().tolist() == ([False, False, False, True, False] if truncate else [True] * 5)
    assert outs[-1]["truncated"].all() == truncate and outs[-1]["truncated"].any() == truncate


def test_an_episode_that_its_task_cuts_is_over_too():
    outs = play(WholeEpisodes(Countdown(cut=True)))
    alive = stacked(outs, ALIVE)
    for row, length in enumerate(LENGTHS[:3]):
        assert alive[row, :length].all() and not alive[row, length:].any()
    assert not outs[-1]["terminated"].any() and outs[-1]["done"].all()


def test_the_trainer_reads_a_termination_from_the_mask_and_none_from_the_time_limit():
    batch = next(iter(collector(WholeEpisodes(Countdown()))))
    Trainer.receive(type("Told", (), {"losses": [], "early_sources": [], "_extend": Trainer._extend})(), batch)
    terminated = batch["next", *TERMINATED][..., 0]
    for row, length in enumerate(LENGTHS):
        at = [step for step in range(HORIZON) if terminated[row, step].all()]
        assert at == ([length - 1] if length <= HORIZON else [])
        assert terminated[row].any(-1).sum() == len(at)


def test_a_reset_begins_all_rows_anew():
    env = WholeEpisodes(Countdown())
    first, second = play(env), play(env)
    assert torch.equal(stacked(first, ALIVE), stacked(second, ALIVE))
    assert torch.equal(stacked(second, OBSERVATION)[:, 0, 0, 2], torch.full((N,), 2.0))


def test_a_partial_reset_leaves_the_other_rows_exact():
    env, twin = WholeEpisodes(Countdown()), WholeEpisodes(Countdown())
    play(env, 4), play(twin, 4)
    rows = torch.tensor([True, False, True, False, False])
    after = env.reset_tensors(rows)
    assert env.steps.tolist() == env.env.steps.tolist() == [0, 4, 0, 4, 4]
    assert after[ALIVE].all(-1).tolist() == [True, False, True, True, True]
    assert after[OBSERVATION][rows].all() and not after[OBSERVATION][1].any()
    assert same([after], [twin._observe()], ~rows)
    one, two = play(env, 2, begin=False), play(twin, 2, begin=False)
    assert same(one, two, ~rows)
    assert one[0][ALIVE][0].tolist() == [False] * 2 and one[0][OBSERVATION][0].all()  # row 0 ends after one step again


@pytest.mark.parametrize("steps", [0, 2, 4, 6])
def test_a_saved_state_has_the_same_future(steps, tmp_path):
    env, other = WholeEpisodes(Countdown()), WholeEpisodes(Countdown())
    seen = play(env, steps)[-1]
    torch.save(env.state_dict(), tmp_path / "state.pt")
    expected = [*play(env, HORIZON - steps, begin=False), *play(env)]
    play(other, 3)
    other.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    assert same([other._observe()], [{key: seen[key] for key in other._observe()}])
    assert same(expected, [*play(other, HORIZON - steps, begin=False), *play(other)])


def test_a_loaded_state_is_a_copy():
    env = WholeEpisodes(Countdown())
    play(env, 3)
    saved = env.state_dict()
    before = {key: value.clone() for key, value in saved["simulator"]["seen"].items()}
    env.load_state_dict(saved)
    play(env, 3, begin=False)
    assert all(torch.equal(saved["simulator"]["seen"][key], value) for key, value in before.items())
    assert saved["simulator"]["over"].tolist() == [True, True, False, False, False]


def test_what_was_handed_out_does_not_change():
    env = WholeEpisodes(Countdown())
    out = env.reset_tensors()
    copies = {key: value.clone() for key, value in out.items()}
    for value in play(env, 4, begin=False)[-1].values():
        value.zero_()
    assert same([out], [copies])
    again = WholeEpisodes(Countdown())
    play(again, 4)
    assert same(play(env, 2, begin=False), play(again, 2, begin=False))


@pytest.mark.parametrize("make, message", [
    (lambda: Countdown(max_steps=None), "whole episodes need a horizon: give max_steps"),
    (lambda: Countdown(alive=True), "whole episodes need agents that all stay to the end"),
])
def test_what_cannot_be_wrapped_is_refused(make, message):
    with pytest.raises(ValueError, match=message):
        WholeEpisodes(make())


def test_it_looks_like_its_task():
    inner = Countdown()
    env = WholeEpisodes(inner)
    assert (env.num_envs, env.n_agents, env.max_steps, env.truncate) == (N, A, HORIZON, True)
    assert env.agent_types == (0, 1) and env.group_map == {"agents": ["a", "b"]} and env.reward_is_shared
    specs = Specs.from_env(env)
    assert (specs.alive, specs.horizon, specs.has_mask, specs.state_dim) == (ALIVE, HORIZON, True, 1)
    assert Specs.from_env(inner).alive is None, "the task's own specs are left alone"
    env.set_seed(7)
    assert inner.offset == 7
    with pytest.raises(ValueError, match="Countdown cannot be drawn"):
        env.render_frame()


@pytest.mark.parametrize("make", [
    Countdown, lambda: ToyEnv(4, arrive=0.8, max_steps=5), lambda: ToyEnv(4, is_discrete=True, mask=True, state=False),
])
def test_the_contract(make):
    check_env_specs(WholeEpisodes(make()))


# ---------------------------------------------------------------------- collection


def collector(env, total=2):
    def choose(observation):
        return torch.ones(observation.shape[:-1], dtype=torch.int64)

    policy = TensorDictModule(choose, in_keys=[OBSERVATION], out_keys=[ACTION])
    return FastCollector(env, policy, steps=HORIZON, total_frames=total * env.num_envs * HORIZON)


def test_every_batch_of_the_collector_is_one_episode_per_row():
    inside = torch.arange(HORIZON) < torch.tensor(LENGTHS).unsqueeze(-1)
    count = 0
    for k, batch in enumerate(collector(WholeEpisodes(Countdown()))):
        assert torch.equal(batch[ALIVE], inside.unsqueeze(-1).expand(N, HORIZON, A))
        assert batch["is_init"][:, 0].all() and not batch["is_init"][:, 1:].any()
        assert batch["next", "done"][:, -1].all() and not batch["next", "done"][:, :-1].any()
        assert (batch[OBSERVATION][:, 0, 0, 2] == k + 1).all()
        # the last observation of an episode is "next" where it ends, and the next step's own
        for row, length in enumerate(LENGTHS[:3]):
            last = batch["next", *OBSERVATION][row, length - 1]
            assert last.all() and torch.equal(batch[OBSERVATION][row, length], last)
            assert not batch["next", *OBSERVATION][row, length:].any()
        assert torch.equal(batch["next", *REWARD].squeeze(-1) > 0, batch[ALIVE])
        count += 1
    assert count == 2
