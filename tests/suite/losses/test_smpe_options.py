"""SMPE2's switches, refusals and clocks."""

import dataclasses
from functools import partial

import pytest
import torch
from tensordict import TensorDict

from suite.data import Replay, Sequences
from suite.losses import Returns, SMPELoss
from suite.losses.smpe_options import PRESETS
from suite.modules import make_critic
from suite.specs import ALIVE, OBSERVATION
from tests.batches import compose_smpe, iterate_smpe, make_batch, make_learner, make_specs

torch.set_num_threads(1)
HORIZON = 6
SPECS, PADDED = make_specs("discrete", state=False), make_specs("discrete", state=False, alive=ALIVE)


def make(specs=SPECS, **options):
    torch.manual_seed(0)
    return SMPELoss(specs, **options)


def frames(envs, steps=HORIZON, seed=0):
    """A batch of observations alone."""
    td = TensorDict(batch_size=[envs, steps])
    td[OBSERVATION] = torch.randn(envs, steps, 3, 4, generator=torch.Generator().manual_seed(seed))
    return td


# ---------------------------------------------------------------------- every option is a switch of its own


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("options, gone, there", [
    ({}, [], ["loss_rec", "loss_kl", "loss_norm", "loss_value", "novelty"]),
    ({"novelty": 0.0}, ["novelty"], ["loss_rec", "loss_kl", "loss_norm", "loss_value"]),
    ({"filters": False}, ["loss_norm", "loss_value", "filter"], ["loss_rec", "loss_kl", "novelty"]),
    ({"norm_coef": 0.0}, ["loss_norm"], ["loss_rec", "loss_kl", "loss_value"]),
    ({"norm_loss": "none"}, ["loss_norm"], ["loss_rec", "loss_kl", "loss_value"]),
    ({"kl_coef": 0.0}, [], ["loss_rec", "loss_norm", "loss_value"]),
    ({"novelty": 0.0, "observation_novelty": 0.1}, ["novelty"], ["observation_novelty", "loss_rec", "loss_value"]),
    ({"observation_novelty": 0.1}, [], ["observation_novelty", "novelty"]),
    ({"filtered_critic": False}, ["loss_value"], ["loss_rec", "loss_norm", "filter", "novelty"]),
    ({"use_belief": False}, [], ["loss_rec", "loss_kl", "loss_value", "novelty"]),
    ({"filter_layers": 2}, [], ["loss_rec", "loss_norm", "loss_value"]),
    ({"filter_every": 0}, ["loss_norm"], ["loss_rec", "loss_value"]),
    ({"train_filtered_critic": True, "filtered_target": "central"}, [], ["loss_value"]),
    ({"train_filtered_critic": False, "filtered_target": "own"}, [], ["loss_value"]),
], ids=str)
def test_ablations(preset, options, gone, there):
    """Every one runs in every preset; what it switches off is gone, the rest is there and finite."""
    torch.manual_seed(0)
    loss, filtered, updates, _, _ = compose_smpe(PADDED, preset=preset, **options)
    metrics = iterate_smpe(loss, filtered, updates, make_batch(PADDED))
    names = {name.partition("/")[2] or name for name in metrics}
    assert not names & set(gone) and set(there) <= names, names
    assert all(torch.isfinite(value) for value in metrics.values())
    assert ("loss_value" in names) == bool(filtered) == (len(updates) == 2)
    assert (loss.encoders == [] and loss.features == {}) == (options.get("use_belief") is False)
    if options.get("kl_coef") == 0.0:
        assert metrics["smpe/loss_kl"] == 0 < metrics["smpe/kl_per_unit"]


def test_switched_off_parts_are_not_built():
    assert make(novelty=0.0).visits is None and make(novelty=0.0).observation_visits is None
    assert make(observation_novelty=0.5).observation_visits.projection.shape == (3, 4, 16)
    assert make().visits.projection.shape == (3, 32, 16)
    plain = make(novelty=0.0, filters=False)
    assert plain.reward_weights == {} and plain.reward_terms(frames(2)) == {} and plain.am_filter is None
    assert make(novelty=0.2, observation_novelty=0.1).reward_weights == {"novelty": 0.2, "observation_novelty": 0.1}
    assert make(filter_layers=2).am_filter.fc2 is not None and make().am_filter.fc2 is None
    assert make(preset="official").am_filter.fc2 is not None  # spare: the norm counts it


def test_presets_and_what_overrules_them():
    official, paper, fixed = (make(PADDED, preset=name) for name in ("official", "paper", "fixed"))
    assert [loss.scaler.limit for loss in (official, paper, fixed)] == [None, None, 10.0]
    assert [loss.mask for loss in (official, paper, fixed)] == [None, ALIVE, ALIVE]
    assert [loss.sampled_bonus for loss in (official, paper, fixed)] == [True, True, False]
    assert [loss.reencode for loss in (official, paper, fixed)] == [True, True, False]
    assert [loss.lr_filtered_critic for loss in (official, paper, fixed)] == [0.0, 5e-5, 5e-5]
    changed = make(PADDED, preset="official", clip_inputs=3.0, mask_padding=True, bonus_belief="mean", reencode=False,
                   lr_filtered_critic=1.0, norm_loss="none", train_filtered_critic=True, filtered_target="own")
    assert (changed.scaler.limit, changed.mask, changed.sampled_bonus) == (3.0, ALIVE, False)
    assert (changed.reencode, changed.lr_filtered_critic, changed.norm_loss) == (False, 1.0, "none")
    assert (changed.train_filtered_critic, changed.filtered_target) == (True, "own")
    back = make(PADDED, clip_inputs=0, lr_filtered_critic=0, mask_padding=False)  # falsy, but given
    assert (back.scaler.limit, back.lr_filtered_critic, back.mask) == (None, 0.0, None)
    assert make(use_belief=False, preset="official").reencode is False


@pytest.mark.parametrize("options", [{"lr_filtered_critic": 0.0}, {"preset": "official"}])
def test_without_a_rate_of_its_own_the_filter_has_one_optimiser(options):
    _, _, [encode, second], _, _ = compose_smpe(SPECS, **options)
    assert second.optimizers["filter"] is encode.optimizers["filter"]


# ---------------------------------------------------------------------- refusals


@pytest.mark.parametrize("specs, options, message", [
    (make_specs("discrete", n_agents=1), {}, "models other agents, but the task has a single agent"),
    (None, {}, "counts episodes of the task's horizon, but the task has none: give --max-steps"),
    (SPECS, {"preset": "oficial"}, r"preset 'oficial' of loss 'smpe'; choose from \['fixed', 'official', 'paper'\]"),
    (SPECS, {"filtered_target": "centre"}, r"filtered_target .* must be one of \['own', 'central'\], got 'centre'"),
    (SPECS, {"norm_loss": "l2"}, r"norm_loss .* must be one of \['parameters', 'output', 'none'\], got 'l2'"),
    (SPECS, {"bonus_belief": "mode"}, r"bonus_belief .* must be one of \['sample', 'mean'\], got 'mode'"),
    (SPECS, {"bonus": "sqrt"}, r"bonus .* must be one of \['rsqrt', 'inverse'\], got 'sqrt'"),
    (SPECS, {"clip_min": 0.5, "clip_max": 0.5}, "0 <= clip_min < clip_max <= 1, got 0.5 and 0.5"),
    (SPECS, {"clip_min": 0.9, "clip_max": 0.4}, "clip_min < clip_max"),
    (SPECS, {"clip_min": -0.1}, "clip_min"), (SPECS, {"clip_max": 1.1}, "clip_max"),
    (SPECS, {"filter_layers": 3}, "filter_layers of loss 'smpe' must be 1 or 2, got 3"),
    *[(SPECS, {name: 0}, f"{name} of loss 'smpe' must be positive, got 0")
      for name in ("latent_dim", "encode_every", "encode_steps", "encode_rows", "memory", "copy_every", "lr",
                   "lr_filter")],
    *[(SPECS, {name: -1}, f"{name} of loss 'smpe' must not be negative, got -1")
      for name in ("rec_coef", "kl_coef", "norm_coef", "filter_every", "novelty", "observation_novelty")],
    (SPECS, {"lr": float("nan")}, "lr of loss 'smpe' must be positive, got nan"),
], ids=str)
def test_what_cannot_work_is_refused(specs, options, message):
    if specs is None:
        specs = dataclasses.replace(SPECS, horizon=None)
    with pytest.raises(ValueError, match=message):
        SMPELoss(specs, **options)


NO_FILTERS, NO_CRITIC = {"filters": False}, {"filtered_critic": False}


@pytest.mark.parametrize("off, names, what", [
    (NO_FILTERS, ["filter_layers", "clip_min", "clip_max", "lr_filter", "filter_every", "copy_every", "norm_coef",
                  "norm_loss"], "give filters=True"),
    *((off, ["train_filtered_critic", "filtered_target", "lr_filtered_critic"],
       "give filters=True and filtered_critic=True") for off in (NO_FILTERS, NO_CRITIC)),
    ({"novelty": 0.0}, ["bonus_belief"], "give novelty a weight"),
    ({"novelty": 0.0}, ["bonus"], "give novelty or observation_novelty a weight"),
    ({"use_belief": False}, ["reencode"], "give use_belief=True"),
], ids=str)
def test_an_option_of_a_part_that_is_off_is_refused_if_it_was_given(off, names, what):
    for name in names:
        assert name in SMPELoss.option_names()
        SMPELoss.check_given({name: 1}, [name])
        SMPELoss.check_given(off | {name: 1}, list(off))  # a preset's
        with pytest.raises(ValueError, match=f"{name} of loss 'smpe' is read by nobody here: {what}, or leave it out"):
            SMPELoss.check_given(off | {name: 1}, [*off, name])
    SMPELoss.check_given({"novelty": 0.0, "observation_novelty": 0.1, "bonus": "inverse"}, ["bonus"])


def test_off_policy_only_without_the_filtered_critic():
    """No estimators are asked for there."""
    replay = Replay(capacity=50, steps=2, size=4, warmup=4, keys=[OBSERVATION], device="cpu")
    common = dict(optimizer=torch.optim.SGD, max_grad_norm=None)
    with pytest.raises(ValueError, match=r"needs an on-policy algorithm \(mappo, .*\); .* filtered_critic=False"):
        make().updates("smpe", replay, **common)
    [update] = make(filtered_critic=False).updates("smpe", replay, **common)
    assert update.data.owner is not replay and update.early
    assert len(make(filters=False).updates("smpe", replay, **common)) == 1


@pytest.mark.parametrize("centralized, state, recurrent", [(False, False, 0), (True, True, 0), (True, False, 5)])
def test_the_central_target_needs_a_central_critic_of_all_observations(centralized, state, recurrent):
    specs = make_specs("discrete", state=state)
    loss = make(specs, filtered_target="central")
    new_critic = partial(make_critic, share="all", agent_id=True, activation="relu", init="default", device="cpu",
                         cells=[8])
    critic = new_critic(specs, {}, centralized=centralized, recurrent_dim=recurrent)
    make_returns = partial(Returns, kind="gae", gamma=0.9, lmbda=0.9, n=1, target_tau=None)
    with pytest.raises(ValueError, match=r"'central' needs a feed-forward central critic of all observations .*=own"):
        loss.estimators(make_learner(make_returns, new_critic, critic))


# ---------------------------------------------------------------------- clocks


def rows_trained(envs, steps, batches, **options):
    """Rows that the trainings of so many batches draw, and the batches in which they do."""
    loss = make(**{"encode_every": 20, "encode_steps": 3, "encode_rows": 8, "filtered_critic": False} | options)
    encode, = loss.updates("smpe", Sequences(1), optimizer=torch.optim.Adam, max_grad_norm=None)
    rows, when = 0, []
    for k in range(batches):
        batch = frames(envs, steps)
        loss.receive(batch)
        encode.data.owner.extend(batch)
        sizes = [minibatch["x"].shape[1] for minibatch in encode.data(batch, encode.keys)]
        assert len(sizes) in (0, 3) and len(set(sizes)) <= 1
        rows += sum(sizes)
        when += [k] if sizes else []
    return rows, when


@pytest.mark.parametrize("envs, steps, batches", [(10, HORIZON, 20), (1000, HORIZON, 2), (50, HORIZON, 6),
                                                  (4, 3, 100), (10, 60, 2), (7, 5, 36)])
def test_rows_per_episode_do_not_depend_on_the_shape_of_the_batches(envs, steps, batches):
    """3 x 8 rows for every 20 episodes of 6 steps: one more training than not would be 24 rows."""
    rows, _ = rows_trained(envs, steps, batches)
    assert rows == 24 * (envs * steps * batches // HORIZON // 20)


def test_a_training_is_due_after_encode_every_episodes_and_several_make_larger_minibatches():
    assert rows_trained(10, HORIZON, 6) == (3 * 24, [1, 3, 5])
    assert rows_trained(10, HORIZON, 6, encode_every=30) == (2 * 24, [2, 5])
    assert rows_trained(30, HORIZON, 4) == (6 * 24, [0, 1, 2, 3])  # 1, 2, 1, 2 trainings
    loss = make(encode_every=20)
    due = []
    for _ in range(4):
        loss.receive(frames(30))
        due.append(loss.due)
    assert due == [1, 2, 1, 2] and loss.frames == 120 * HORIZON and loss.calls == 4


def test_nothing_is_drawn_before_the_memory_holds_a_minibatch():
    assert rows_trained(1, HORIZON, 3, encode_every=1, encode_rows=13) == (3 * 13, [2])


def test_the_memory_holds_the_last_episodes():
    loss = make(memory=5, encode_rows=4, filtered_critic=False)
    encode, = loss.updates("smpe", Sequences(1), optimizer=torch.optim.Adam, max_grad_norm=None)
    store = encode.data.owner
    assert store.capacity == 5 * HORIZON and store.keys == [OBSERVATION]
    old, new = frames(4, seed=1), frames(4, seed=2)
    for batch in (old, new):
        store.extend(batch)
    held = {tuple(row.flatten().tolist()) for row in store.buffer.storage[:][OBSERVATION]}
    assert len(held) == 30 and {tuple(row.flatten().tolist()) for row in new[OBSERVATION].flatten(0, 1)} <= held


@pytest.mark.parametrize("every, moves", [(0, []), (1, [1, 2, 3, 4, 5, 6]), (2, [2, 4, 6]), (5, [5])])
def test_reconstruction_moves_the_filter_in_every_so_many_trainings(every, moves):
    loss, filtered, updates, _, _ = compose_smpe(SPECS, filter_every=every, filtered_critic=False, encode_every=8)
    seen = []
    for k in range(12):  # a training in every second
        before = [p.clone() for network in (loss.am_filter, loss.encoder) for p in network.parameters()]
        metrics = iterate_smpe(loss, filtered, updates, frames(4, seed=k))
        after = [p for network in (loss.am_filter, loss.encoder) for p in network.parameters()]
        moved = [not torch.equal(a, b) for a, b in zip(before, after, strict=True)]
        assert moved[2:] == [k % 2 == 1] * len(moved[2:]) and moved[0] == moved[1]
        assert moved[0] == ("smpe/loss_norm" in metrics)
        seen += [loss.calls] if moved[0] else []
    assert seen == moves and loss.calls == 6


def test_the_slow_filter_is_copied_every_so_many_episodes_and_at_no_other_time():
    loss, filtered, updates, _, _ = compose_smpe(SPECS, copy_every=12)
    copied = []
    for k in range(7):
        filter_before = {key: value.clone() for key, value in loss.am_filter.state_dict().items()}
        slow_before = {key: value.clone() for key, value in loss.slow_filter.state_dict().items()}
        iterate_smpe(loss, filtered, updates, frames_with_rewards(4, k))
        slow = loss.slow_filter.state_dict()
        if any(not torch.equal(slow[key], slow_before[key]) for key in slow):
            copied.append(k)
            assert all(torch.equal(slow[key], filter_before[key]) for key in slow)  # before the training moves it
    assert copied == [2, 5]
    assert not any(p.requires_grad for p in loss.slow_filter.parameters())


def frames_with_rewards(envs, seed):
    return make_batch(SPECS, shape=(envs, HORIZON), seed=seed)


@pytest.mark.parametrize("asked, said", [(100, ["encode_every is 80 episodes of 6 steps, 480 frames, but the run has "
                                                "100: it never comes due", "copy_every is 2000 episodes"]),
                                         (480, ["copy_every is 2000 episodes of 6 steps, 12000 frames, but the run "
                                                "has 480: it never comes due"]), (12000, [])])
def test_remarks_name_the_schedules_that_never_come_due(asked, said):
    remarks = make().plan(asked)
    assert len(remarks) == len(said) and all(text in remark for text, remark in zip(said, remarks, strict=True))
    without = [remark for remark in make(filters=False).plan(asked) if "copy_every" in remark]
    assert not without
