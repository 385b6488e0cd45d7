"""SMPE2's rewards of novelty and its saved state."""

import pytest
import torch
from tensordict import TensorDict
from torch.testing import assert_close

from suite.losses import SMPELoss
from suite.losses.smpe import FILTERED, PRESETS
from suite.specs import ALIVE, OBSERVATION, REWARD
from tests.batches import compose_smpe, iterate_smpe, make_batch, make_specs

torch.set_num_threads(1)
HORIZON = 6
SPECS, PADDED = make_specs("discrete", state=False), make_specs("discrete", state=False, alive=ALIVE)


def make(specs=SPECS, **options):
    torch.manual_seed(0)
    return SMPELoss(specs, **options)


def same_rows(envs=2, steps=3):
    td = TensorDict(batch_size=[envs, steps])
    td[OBSERVATION] = torch.ones(envs, steps, 3, 4)
    return td


@pytest.mark.parametrize("bonus, value", [("rsqrt", [6 ** -0.5, 12 ** -0.5]), ("inverse", [1 / 6, 1 / 12])])
@pytest.mark.parametrize("options", [{}, {"novelty": 0.0, "observation_novelty": 1.0}])
def test_the_bonus_of_repeated_observations(bonus, value, options):
    """All six visits are counted before any is paid; the second batch finds them counted."""
    loss, [name] = make(bonus=bonus, **options), ["observation_novelty" if options else "novelty"]
    for expected in value:
        terms = loss.reward_terms(same_rows())
        assert set(terms) == {name} and terms[name].shape == (2, 3, 3, 1)
        assert_close(terms[name], torch.full((2, 3, 3, 1), expected))


def test_a_sampled_belief_varies_and_its_mean_does_not():
    mean, sample = make(bonus_belief="mean"), make(bonus_belief="sample")
    assert mean.reward_terms(same_rows())["novelty"].unique().numel() == 1
    assert (sample.reward_terms(same_rows(40, 5))["novelty"] > (200 ** -0.5) * 2).any()
    assert sample.reward_terms(same_rows())["novelty"].grad_fn is None


def test_the_bonus_belongs_to_the_observation_acted_upon():
    loss, batch = make(novelty=0.0, observation_novelty=1.0), same_rows(1, 4)
    batch[OBSERVATION][0, 2] = torch.tensor([-1.0, 2.0, -3.0, 4.0])
    out = loss.reward_terms(batch)["observation_novelty"][0, :, :, 0]
    assert_close(out[2], torch.ones(3))
    assert_close(out[[0, 1, 3]], torch.full((3, 3), 3 ** -0.5))


def padded_rows():
    """Two rows of three steps of ones; the second row ends after its first step; last observations of zeros."""
    td = same_rows()
    td["next", *OBSERVATION] = torch.zeros_like(td[OBSERVATION])
    td[ALIVE] = torch.tensor([[True] * 3, [True, False, False]]).unsqueeze(-1).expand(2, 3, 3)
    return td


def test_padding_earns_and_counts_nothing():
    loss = make(PADDED, mask_padding=True)
    out = loss.reward_terms(padded_rows())["novelty"]
    assert_close(out, padded_rows()[ALIVE].unsqueeze(-1) * 0.5)  # four visits
    assert loss.visits.tables.sum() == 4 * 3 * 6


def test_padding_and_last_observations_count_where_the_switch_says_so():
    loss = make(PADDED, mask_padding=False, bonus_belief="mean", novelty=0.0, observation_novelty=1.0)
    out = loss.reward_terms(padded_rows())["observation_novelty"]
    assert_close(out, torch.full((2, 3, 3, 1), 6 ** -0.5))
    assert loss.observation_visits.tables.sum() == 8 * 3 * 6


def test_statistics_with_and_without_padding():
    batch = padded_rows()
    batch[OBSERVATION] = torch.randn(2, 3, 3, 4, generator=torch.Generator().manual_seed(0))
    masked, counted, plain = make(PADDED, mask_padding=True), make(PADDED, mask_padding=False), make()
    for loss in (masked, counted, plain):
        loss.receive(batch)
    inside = batch[OBSERVATION][batch[ALIVE][..., 0]]  # [4, A, o]
    everything = torch.cat([batch[OBSERVATION].flatten(0, 1), torch.zeros(2, 3, 4)])
    for loss, seen in ((masked, inside), (counted, everything), (plain, batch[OBSERVATION].flatten(0, 1))):
        assert_close(loss.scaler.moments.mean, seen.mean((0, 1)), rtol=1e-3, atol=1e-3)
        assert_close(loss.joint_moments.mean, seen.mean(0), rtol=1e-3, atol=1e-3)
        assert_close(loss.joint_moments.var, seen.var(0), rtol=1e-2, atol=1e-3)


# ---------------------------------------------------------------------- saved state


def everything(loss, filtered, updates):
    """All that a checkpoint of the trainer holds of this loss."""
    return {"loss": dict(loss.state_dict()), "updates": [update.state_dict() for update in updates],
            "source": updates[0].data.owner.state_dict(), "estimators": [dict(e.state_dict()) for e in filtered]}


def flat(x, path=""):
    if isinstance(x, (dict, list, tuple)):
        items = x.items() if isinstance(x, dict) else enumerate(x)
        return {key: value for name, part in items for key, value in flat(part, f"{path}/{name}").items()}
    return {path: x}


@pytest.mark.parametrize("preset", PRESETS)
def test_the_state_decides_the_future(preset, tmp_path):
    """Clocks, counters, statistics, memory, slow filter, V_k, its target, and all optimisers, through a file."""
    def fresh(seed):
        torch.manual_seed(seed)
        return compose_smpe(PADDED, preset=preset, encode_every=6, copy_every=8, observation_novelty=0.1)[:3]

    def play(parts, seeds):
        return [iterate_smpe(*parts, make_batch(PADDED, seed=seed)) for seed in seeds]

    one, other = fresh(0), fresh(1)
    play(one, range(5))
    torch.save(everything(*one), tmp_path / "state.pt")
    saved = torch.load(tmp_path / "state.pt", weights_only=True)
    loss, filtered, updates = other
    loss.load_state_dict(saved["loss"])
    for part, state in zip(updates, saved["updates"], strict=True):
        part.load_state_dict(state)
    updates[0].data.owner.load_state_dict(saved["source"])
    for part, state in zip(filtered, saved["estimators"], strict=True):
        part.load_state_dict(state)
    assert (loss.frames, loss.calls) == (5 * 4 * HORIZON, 3)
    torch.manual_seed(7)
    expected = play(one, range(5, 12))
    torch.manual_seed(7)
    found = play(other, range(5, 12))
    assert [set(row) for row in expected] == [set(row) for row in found]
    assert any("smpe/loss_rec" in row for row in expected) and not all("smpe/loss_rec" in row for row in expected)
    assert all(torch.equal(a[key], b[key]) for a, b in zip(expected, found, strict=True) for key in a)
    a, b = flat(everything(*one)), flat(everything(*other))
    assert a.keys() == b.keys()
    assert all(torch.equal(a[key], b[key]) if isinstance(a[key], torch.Tensor) else a[key] == b[key] for key in a)
    names = set(saved["loss"])
    assert {"visits.tables", "visits.projection", "observation_visits.tables", "scaler.moments.mean",
            "joint_moments.count", "slow_filter.fc1.weight", "_extra_state"} <= names
    assert any(name.startswith("filtered.") for name in names)


def test_nothing_in_an_iteration_waits_for_the_device(monkeypatch):
    """No Python number is asked of a tensor: on a GPU each would be a synchronisation."""
    loss, filtered, updates, _, _ = compose_smpe(PADDED)
    batch, calls = make_batch(PADDED), []
    iterate_smpe(loss, filtered, updates, batch)  # the memory's first batch allocates
    for name in ("item", "tolist", "__bool__", "__int__", "__float__", "nonzero", "cpu"):
        original = getattr(torch.Tensor, name)
        monkeypatch.setattr(torch.Tensor, name, lambda self, *args, _name=name, _original=original, **kwargs:
                            (calls.append(_name), _original(self, *args, **kwargs))[1])
    iterate_smpe(loss, filtered, updates, batch)
    assert not calls
    torch.ones(()).item()
    assert calls == ["item"], "the count works"


def test_the_filtered_value_has_the_rewards_of_the_batch():
    """The estimator of V_k sees what `prepare` made of the reward, the bonus included."""
    torch.manual_seed(0)
    _, [filtered], _, _, _ = compose_smpe(SPECS)
    batch = make_batch(SPECS)
    low = filtered(batch.clone())[FILTERED[1]]
    batch["next", *REWARD] += 1.0
    assert (filtered(batch)[FILTERED[1]] > low).all()
