import pytest
import torch
from tensordict import TensorDict
from torchrl.collectors import Collector
from torchrl.data import Categorical

from suite.collector import EpisodeStatistics, FastCollector, make_collector
from suite.evaluate import Evaluator
from suite.modules import make_actor
from suite.specs import (
    ACTION,
    ACTION_MASK,
    GROUP,
    IS_INIT,
    LOG_PROB,
    OBSERVATION,
    RECURRENT,
    REWARD,
    STATE,
    SUCCESS,
    Specs,
)
from tests.toy import ToyEnv

N, T, A = 6, 7, 2
KINDS = {
    "continuous": {},
    "discrete": {"is_discrete": True},
    "masked": {"is_discrete": True, "mask": True},
    "recurrent": {"recurrent": 5},
    "recurrent masked": {"is_discrete": True, "mask": True, "recurrent": 5},
}


class DesynchronisedEnv(ToyEnv):
    """Row k starts k steps into its first episode, so that truncations are spread over the batch."""

    def reset_tensors(self, mask=None):
        out = super().reset_tensors(mask)
        if mask is None:
            self.steps = torch.arange(self.num_envs) % self.max_steps
        return out


def make_policy(env, recurrent=0):
    torch.manual_seed(0)
    return make_actor(Specs.from_env(env), {}, share="all", agent_id=True, cells=(8,), activation="tanh",
                      init="default", recurrent_dim=recurrent, head="tanh_normal", state_dependent_scale=True,
                      device="cpu")


def build(kind, *, fast=True, steps=T, batches=4, seed=3, arrive=0.9, total=None):
    options = dict(KINDS[kind])
    recurrent = options.pop("recurrent", 0)
    env = DesynchronisedEnv(N, A, max_steps=5, seed=seed, arrive=arrive, **options)
    policy = make_policy(env, recurrent)
    return make_collector(env, policy, steps=steps, total_frames=total or N * steps * batches, fast=fast)


def collect(collector, seed=11):
    torch.manual_seed(seed)
    return [batch.clone() for batch in collector]


@pytest.mark.parametrize("kind", KINDS)
def test_both_collectors_give_the_same_batches(kind):
    fast, stock = collect(build(kind)), collect(build(kind, fast=False))
    assert len(fast) == len(stock) == 4
    ends = torch.cat([b["next", "terminated"] for b in fast]), torch.cat([b["next", "truncated"] for b in fast])
    assert all(flag.any() and not flag.all() for flag in ends), "the comparison needs both kinds of ends"
    for mine, theirs in zip(fast, stock, strict=True):
        for key in mine.keys(True, True):
            assert mine[key].dtype == theirs[key].dtype and torch.equal(mine[key], theirs[key]), key


@pytest.mark.parametrize("fast", [True, False])
def test_both_are_iterables_of_the_same_interface(fast):
    collector = build("continuous", fast=fast)
    assert isinstance(collector, FastCollector if fast else Collector)
    seen = []
    for batch in collector:
        collector.update_policy_weights_()
        seen.append((collector.frames, batch.shape))
    assert seen == [(N * T * k, torch.Size([N, T])) for k in (1, 2, 3, 4)]
    assert collector.total_frames == N * T * 4


@pytest.mark.parametrize("kind", KINDS)
def test_keys_shapes_and_types(kind):
    batch = next(iter(build(kind)))
    discrete, masked, recurrent = KINDS[kind].get("is_discrete", False), "masked" in kind, "recurrent" in kind
    expected = {
        OBSERVATION: ((N, T, A, 4), torch.float32), STATE: ((N, T, 4 * A), torch.float32),
        ACTION: ((N, T, A), torch.int64) if discrete else ((N, T, A, 2), torch.float32),
        LOG_PROB: ((N, T, A), torch.float32), IS_INIT: ((N, T, 1), torch.bool),
        ("next", *OBSERVATION): ((N, T, A, 4), torch.float32), ("next", STATE): ((N, T, 4 * A), torch.float32),
        ("next", *REWARD): ((N, T, A, 1), torch.float32),
    } | {("next", name): ((N, T, 1), torch.bool) for name in ("done", "terminated", "truncated")}
    if masked:
        expected |= {ACTION_MASK: ((N, T, A, 5), torch.bool), ("next", *ACTION_MASK): ((N, T, A, 5), torch.bool)}
    if recurrent:
        expected[RECURRENT] = ((N, T, A, 5), torch.float32)
    assert {key: (tuple(batch[key].shape), batch[key].dtype) for key in batch.keys(True, True)} == expected
    assert batch.batch_size == batch["next"].batch_size == (N, T)
    assert batch[GROUP].batch_size == batch["next", GROUP].batch_size == (N, T, A)


def test_every_step_is_the_policys_and_the_environments():
    """Follow one collector by hand: the next observation at an end is the final one, the one after is the reset."""
    collector = build("continuous")
    env = DesynchronisedEnv(N, A, max_steps=5, seed=3, arrive=0.9)
    observation, init = env.reset_tensors()[OBSERVATION], torch.ones(N, 1, dtype=torch.bool)
    torch.manual_seed(11)
    ended = 0
    for batch in collector:
        for t in range(T):
            row = batch[:, t]
            assert torch.equal(row[OBSERVATION], observation) and torch.equal(row[IS_INIT], init)
            out = env.step_tensors({ACTION: row[ACTION]})
            final, init = out[OBSERVATION], out["done"]
            assert torch.equal(row["next", *OBSERVATION], final) and torch.equal(row["next", *REWARD], out[REWARD])
            assert torch.equal(row["next", "done"], init)
            observation = env.reset_tensors(init.squeeze(-1))[OBSERVATION] if init.any() else final
            assert (final != observation).flatten(1).any(1).tolist() == init.squeeze(-1).tolist()
            ended += int(init.sum())
    assert ended > 20


def test_masked_choices_are_never_taken():
    for batch in build("masked", arrive=0.0, batches=8):
        assert not batch[ACTION_MASK].all()
        assert batch[ACTION_MASK].gather(-1, batch[ACTION].unsqueeze(-1)).all()


def test_recurrent_state_is_carried_across_batches_and_zero_at_starts():
    first, second, *_ = collect(build("recurrent"))
    start = second[IS_INIT].squeeze(-1)
    assert start.any() and second[RECURRENT][start].eq(0).all()
    going = ~start[:, 0]
    assert going.any() and second[RECURRENT][going, 0].ne(0).any(-1).all()
    assert not torch.equal(second[RECURRENT][going, 0], first[RECURRENT][going, -1])


def test_the_storage_is_reused_but_pending_observations_do_not_alias_it():
    batches = iter(build("continuous"))
    first = next(batches)
    kept = first.clone()
    second = next(batches)
    assert second[OBSERVATION].data_ptr() == first[OBSERVATION].data_ptr()
    assert torch.equal(second[OBSERVATION][:, 0][~second[IS_INIT][:, 0, 0]],
                       kept["next", *OBSERVATION][:, -1][~kept["next", "done"][:, -1, 0]])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("done", [0, 2])
def test_a_restored_collector_continues_to_the_last_bit(kind, done, tmp_path):
    whole = collect(build(kind))
    collector = build(kind)
    torch.manual_seed(11)
    batches = iter(collector)
    for _ in range(done):
        next(batches)
    torch.save({"collector": collector.state_dict(), "random": torch.get_rng_state()}, tmp_path / "state")
    for _ in batches:
        pass  # what happens after the save must not reach what was saved

    saved = torch.load(tmp_path / "state", weights_only=True)
    again = build(kind, seed=99)  # its own seed must not matter
    again.load_state_dict(saved["collector"])
    torch.set_rng_state(saved["random"])
    rest = [batch.clone() for batch in again]
    assert again.frames == again.total_frames and len(rest) == 4 - done
    if done == 0:
        return  # before its first step nothing but the environment's random state was saved; `rest` is a fresh start
    for expected, found in zip(whole[done:], rest, strict=True):
        assert (expected == found).all()


def test_a_collector_saved_before_its_first_step_starts_alike(tmp_path):
    saved = build("continuous").state_dict()
    other = build("continuous", seed=99)
    other.load_state_dict(saved)
    for expected, found in zip(collect(build("continuous")), collect(other), strict=True):
        assert (expected == found).all()


def test_what_an_environment_shows_since_a_state_was_saved_is_asked_of_it():
    """As if the mask had come with a later version: the state that was saved then lacks it."""
    whole, collector = collect(build("continuous")), build("continuous")
    torch.manual_seed(11)
    next(batches := iter(collector))
    state, random = collector.state_dict(), torch.get_rng_state()
    for _ in batches:
        pass
    newer = [name for name in state["current"] if name.startswith("agents/")][:1]
    assert newer
    again = build("continuous", seed=99)
    again.load_state_dict(state | {"current": {k: x for k, x in state["current"].items() if k not in newer}})
    torch.set_rng_state(random)
    for expected, found in zip(whole[1:], again, strict=True):
        assert (expected == found).all()


def test_saving_changes_nothing():
    collector = build("recurrent")
    torch.manual_seed(11)
    batches = []
    for batch in collector:
        batches.append(batch.clone())
        collector.state_dict()
    for expected, found in zip(collect(build("recurrent")), batches, strict=True):
        assert (expected == found).all()


def test_iteration_ends_at_total_frames_and_can_be_extended():
    collector = build("continuous", total=N * T * 2)
    assert len(list(collector)) == 2 and list(collector) == []
    collector.total_frames = N * T * 3
    assert len(list(collector)) == 1


def test_a_state_of_another_number_of_environments_is_refused():
    saved = build("continuous").state_dict()
    env = ToyEnv(N + 1, A)
    with pytest.raises(ValueError, match=f"{N} environments, this one has {N + 1}"):
        FastCollector(env, make_policy(env), steps=T, total_frames=100).load_state_dict(saved)


# ---------------------------------------------------------------------- statistics


def by_hand(batches):
    """Returns (mean over agents) and lengths of the episodes that ended in each batch, one loop over frames."""
    running, length = [0.0] * N, [0] * N
    for batch in batches:
        total = {"return": 0.0, "length": 0, "count": 0}
        reward, done = batch["next", *REWARD].double(), batch["next", "done"]
        for n in range(N):
            for t in range(reward.shape[1]):
                running[n] += reward[n, t].mean().item()
                length[n] += 1
                if done[n, t]:
                    total["return"] += running[n]
                    total["length"] += length[n]
                    total["count"] += 1
                    running[n], length[n] = 0.0, 0
        yield total


def random_batches(probability, steps, count=6):
    generator = torch.Generator().manual_seed(int(100 * probability) + steps)
    for _ in range(count):
        reward = torch.randn(N, steps, A, 1, generator=generator)
        done = torch.rand(N, steps, 1, generator=generator) < probability
        yield TensorDict({"next": {GROUP: {"reward": reward}, "done": done}}, batch_size=[N, steps])


@pytest.mark.parametrize("probability", [0.0, 0.05, 0.5, 1.0])
@pytest.mark.parametrize("steps", [1, 9])
def test_statistics_equal_a_loop_over_frames(probability, steps):
    batches = list(random_batches(probability, steps))
    statistics = EpisodeStatistics()
    for batch, expected in zip(batches, by_hand(batches), strict=True):
        found = statistics(batch)
        assert {key: value.item() for key, value in found.items()} == pytest.approx(expected, abs=1e-4)


def successes_by_hand(batches):
    """How many of the episodes that ended in each batch had a step that was a success, one loop over frames."""
    reached = [False] * N
    for batch in batches:
        ended = 0
        for n in range(N):
            for t in range(batch.shape[1]):
                reached[n] |= batch["next", SUCCESS][n, t].item()
                if batch["next", "done"][n, t]:
                    ended, reached[n] = ended + reached[n], False
        yield ended


@pytest.mark.parametrize("steps", [1, 9])
def test_an_episode_with_a_step_that_is_a_success_is_one_wherever_the_step_is(steps):
    """As in evaluation; also in an earlier batch, and beyond a save."""
    generator, batches = torch.Generator().manual_seed(steps), list(random_batches(0.15, steps, count=80 // steps))
    for batch in batches:
        batch["next", SUCCESS] = torch.rand(N, steps, 1, generator=generator) < 0.1
    expected = list(successes_by_hand(batches))
    last = [(batch["next", SUCCESS] & batch["next", "done"]).sum().item() for batch in batches]
    assert sum(expected) > sum(last) > 0, "the case is the one meant"
    statistics, plain = EpisodeStatistics(), EpisodeStatistics()
    for k, batch in enumerate(batches):
        found, without = statistics(batch), plain(batch.exclude(("next", SUCCESS)))
        assert found["success"] == expected[k] and "success" not in without
        assert all(torch.equal(found[key], without[key]) for key in ("return", "length", "count"))
        saved, statistics = statistics.state_dict(), EpisodeStatistics()
        statistics.load_state_dict(saved)


def test_training_and_evaluation_count_the_same_successes():
    """Copy k reaches its goal at step k, and only there; all episodes end at step 3."""
    class Reaches(ToyEnv):
        def __init__(self, *args, **kwargs):
            super().__init__(*args, **kwargs)
            self.observation_spec[SUCCESS] = Categorical(2, shape=(self.num_envs, 1), dtype=torch.bool)

        def _observe(self):
            return super()._observe() | {SUCCESS: (self.steps == torch.arange(self.num_envs)).unsqueeze(-1)}

        def step_tensors(self, actions):
            out = super().step_tensors(actions)
            return out | {SUCCESS: (self.steps == torch.arange(self.num_envs)).unsqueeze(-1)}

    env = Reaches(N, A, max_steps=3)
    batch = FastCollector(env, make_policy(env), steps=3, total_frames=N * 3).rollout()
    found = EpisodeStatistics()(batch)
    evaluated = Evaluator(Reaches(N, A, max_steps=3), make_policy(env), seed=3)()["success"]
    assert (found["success"] / found["count"]).item() == pytest.approx(evaluated) == pytest.approx(3 / N)


def test_statistics_continue_where_they_were_saved():
    batches = list(random_batches(0.1, 9))
    statistics, resumed = EpisodeStatistics(), EpisodeStatistics()
    resumed.load_state_dict(statistics.state_dict())  # nothing seen yet
    for batch in batches[:3]:
        statistics(batch)
    resumed.load_state_dict(statistics.state_dict())
    for batch in batches[3:]:
        expected, found = statistics(batch), resumed(batch)
        assert all(torch.equal(expected[key], found[key]) for key in ("return", "length", "count"))
