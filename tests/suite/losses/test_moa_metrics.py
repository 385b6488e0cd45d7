import math

import pytest
import torch

from suite.data import Changed, Minibatches, Replay
from suite.losses import MOALoss
from suite.losses.moa_metrics import ExpectedOthers
from suite.modules.state_model import PAST, PREV_VALID
from suite.specs import ACTION, CONTROLLED, DONE, IS_INIT, LOG_PROB, LOGITS, OBSERVATION, VISIBLE
from suite.state_figures import PANELS
from tests.batches import make_past_batch, make_specs, shaken

torch.set_num_threads(1)


def measured(kind, specs_options=(), **options):
    """A fresh loss and what it measures on 10 rows, of which 5 are held out."""
    torch.manual_seed(0)
    specs = make_specs(kind, **dict(specs_options))
    loss, batch = MOALoss(specs, latent_dim=3, num_cells=8, held_out=0.5, **options), make_past_batch(specs, 10, 6)
    batch[IS_INIT] = torch.zeros(10, 6, 1, dtype=torch.bool)
    batch[IS_INIT][:, 0] = True
    batch["next", "agents", "done"].zero_()
    batch["next", "done"] = torch.zeros(*batch.shape, 1, dtype=torch.bool)
    if specs.discrete:
        batch[LOGITS] = torch.zeros(10, 6, 3, 5)
    if specs.controlled:
        batch[CONTROLLED] = torch.ones(10, 6, 3, dtype=torch.bool)
    return loss, batch, loss.diagnose(batch)


@pytest.mark.parametrize("kind", ["discrete", "continuous"])
def test_every_metric_is_a_number_and_the_batch_stays(kind):
    loss, batch, found = measured(kind)
    assert all(math.isfinite(value) for value in found.values())
    before = batch.clone()
    again = loss.diagnose(batch)
    assert (batch == before).all() and again == found
    assert {"wm/obs_skill_1", "wm/rew_r2", "cvae/kl", "cvae/calibration", "cvae/active_units",
            "cvae/rec"} <= found.keys()


def test_an_eighth_of_64_environments_is_enough_to_probe():
    """One episode in each, as on most tasks of a hundred steps: eight are tested on, others are learned from."""
    loss, _, _ = measured("discrete")
    batch = make_past_batch(loss.specs, 64, 4)
    batch[IS_INIT] = torch.zeros(64, 4, 1, dtype=torch.bool)
    batch[IS_INIT][:, 0] = True
    batch["next", "agents", "done"].zero_()
    batch["next", "done"] = torch.zeros(*batch.shape, 1, dtype=torch.bool)
    batch[LOGITS] = torch.zeros(64, 4, 3, 5)
    loss.held_out = 0.125
    found = loss.diagnose(batch)
    assert {f"probe/others_{what}/{name}" for name in ("u", "uc", "uc_mlp", "z_teacher", "chance")
            for what in ("observation", "action")} <= found.keys()


def test_what_stands_in_the_place_of_agents_that_have_left_does_not_count():
    loss, batch, found = measured("discrete", specs_options={"alive": ("agents", "mask")})
    gone = ~batch["agents", "mask"]
    assert gone[5:].any() and found["cvae/rec"] > 0
    changed = batch.clone()
    changed[OBSERVATION][gone] = 5.0
    other = loss.diagnose(changed)
    for name in ("cvae/rec", "cvae/active_units"):
        assert other[name] == pytest.approx(found[name], rel=1e-5)


def test_the_picture_of_a_run_draws_no_kind_of_metric_that_nothing_measures():
    """A codec's metrics, and the policy's, are measured elsewhere."""
    drawn = {line.metric.split("/")[0] for panel in PANELS for line in panel.lines}
    assert drawn - {"codec", "policy"} == {name.split("/")[0] for name in measured("discrete")[2]} - {"probe"}


def test_an_untrained_world_model_copies_and_an_untrained_action_model_knows_nothing():
    _, _, found = measured("discrete")
    assert found["wm/obs_skill_1"] == pytest.approx(0, abs=1e-6)
    assert found["moa/ce"] == pytest.approx(math.log(5), abs=0.02)
    assert found["moa/ce_floor"] == pytest.approx(math.log(5), abs=1e-6)  # the acting policy was uniform


def test_one_agent_that_leaves_ends_nobodys_roll_out():
    """Whichever of the agents it is: the episode goes on."""
    loss, batch, _ = measured("discrete", specs_options={"alive": ("agents", "mask")})
    shaken(loss)
    batch["agents", "mask"].fill_(True)
    before = loss.diagnose(batch)["wm/obs_skill_3_true"]
    for agent in range(3):
        left = batch.clone()
        left["next", *DONE][:, 2, agent] = True
        assert loss.diagnose(left)["wm/obs_skill_3_true"] == before
    over = batch.clone()
    over["next", "done"][:, 2] = True
    assert loss.diagnose(over)["wm/obs_skill_3_true"] != before


def test_the_skill_of_continuous_actions_counts_from_the_density_of_what_was_done():
    """Minus its mean log-density is the entropy, as actions are encoded: by half the width of the bounds,
    1.5, 3 and 4.5, in both dimensions.
    """
    loss, batch, _ = measured("continuous")
    reach = torch.tensor([1.5, 3.0, 4.5])  # bounds are -1 and 2, -2 and 4, -3 and 6
    batch[LOG_PROB] = torch.full((10, 6, 3), -0.25)
    found = loss.diagnose(batch)
    assert found["moa/nll_floor"] == pytest.approx(0.25 - 2 * reach.log().mean().item(), abs=1e-5)
    expected = (found["moa/nll_marginal"] - found["moa/nll"]) / (found["moa/nll_marginal"] - found["moa/nll_floor"])
    assert found["moa/skill"] == pytest.approx(expected, rel=1e-4)


def test_what_was_done_before_a_batch_is_no_copy_of_what_it_begins_with():
    """Episodes that go on from batch to batch: the first column has a past, but not in the batch."""
    loss, batch, _ = measured("discrete")
    batch[PREV_VALID].fill_(1)
    batch[ACTION][5:] = torch.arange(6)[:, None].expand(5, 6, 3) % 5  # always another
    assert loss.diagnose(batch)["moa/acc_repeat"] == 0


@pytest.mark.parametrize(("kind", "names"), [("discrete", {"ce", "acc"}), ("continuous", {"nll", "mse"})])
def test_predictions_in_the_course_of_an_episode_have_the_whole_as_their_mean(kind, names):
    """Six steps of one episode: its first has no past, 1 is one step, 2 and 3 are two, 4 and 5 are two."""
    _, _, found = measured(kind)
    for name in names:
        parts = [found[f"moa/{name}_step_{k}"] for k in (1, 2, 4)]
        assert len(set(parts)) == 3
        assert (parts[0] + 2 * parts[1] + 2 * parts[2]) / 5 == pytest.approx(found[f"moa/{name}"], rel=1e-5)
    last = {f"moa/{name}_step_4" for name in (*names, "skill")}
    assert last == {name for name in found if name.endswith("_step_4")}
    assert not any(name.endswith("_step_8") for name in found)


def test_what_is_known_late_in_an_episode_shows_there():
    """Actions are those of the model's own guess from step 4 on, and others before."""
    loss, batch, _ = measured("discrete")
    loss = shaken(loss)
    batch[ACTION] = torch.zeros_like(batch[ACTION])
    best = loss.action_loss.predict(batch).argmax(-1)  # of agent 0 for its first other, agent 1
    batch[ACTION][:, :, 1] = torch.where(torch.arange(6) >= 4, best[:, :, 0, 0], (best[:, :, 0, 0] + 1) % 5)
    found = loss.diagnose(batch)
    assert found["moa/acc_step_4"] > max(found["moa/acc_step_1"], found["moa/acc_step_2"])


def test_a_script_has_no_entropy_and_one_step_no_future():
    """Two of three agents are scripted: the floor is a third of the network's."""
    loss, batch, _ = measured("discrete", specs_options={"controlled": CONTROLLED})
    batch[CONTROLLED] = torch.tensor([True, False, False]).expand(10, 6, 3)
    assert loss.diagnose(batch)["moa/ce_floor"] == pytest.approx(math.log(5) / 3, abs=1e-6)
    one = loss.diagnose(batch[:, :1])
    assert all(math.isfinite(value) for value in one.values()) and not any("_moa" in name for name in one)


def test_a_model_that_sees_the_present_is_not_rolled_ahead_of_it():
    """Its own metrics need the observation, which the loss then names."""
    loss, batch, found = measured("discrete", moa_inputs="prev+obs")
    assert "wm/obs_skill_1_true" in found and "wm/obs_skill_1_moa" not in found and "wm/obs_skill_1_moa" in measured(
        "discrete")[2]
    assert OBSERVATION in loss.action_loss.in_keys
    batch[OBSERVATION][5:] += 1
    with torch.no_grad():
        loss.model.action_model.net[0].weight.fill_(0.1)
        loss.model.action_model.net[-1].weight.normal_()
    first = loss.action_loss(batch)["loss_moa"]
    batch[OBSERVATION] += 1
    assert loss.action_loss(batch)["loss_moa"] != first


def test_held_out_rows_are_not_trained_on():
    loss, batch, _ = measured("discrete")
    seen = []

    class Source(Minibatches):
        def __call__(self, batch, keys):
            seen.append(len(batch))
            yield batch.select(*keys).reshape(-1)

        def with_epochs(self, epochs):
            return self

    [update] = loss.updates("moa", Source(1), optimizer=None, max_grad_norm=1.0)
    update.run(batch)
    assert seen == [5]


@pytest.mark.parametrize("changed", [False, True])
def test_beside_a_replay_buffer_it_learns_from_the_newest_batch_and_is_measured_as_ever(changed):
    """What others did long ago is no example of what they do (pitfall 10 of the specification)."""
    loss, batch, found = measured("discrete")
    batch["row"] = torch.arange(10).unsqueeze(1).expand(10, 6).clone()
    replay = Replay(capacity=60, steps=1, size=20, warmup=60, keys=[*loss.in_keys, "row"], device="cpu")
    data = Changed(replay, lambda frames: frames) if changed else replay
    [update] = loss.updates("moa", data, optimizer=None, max_grad_norm=1.0)
    old = batch.clone()
    old["row"] += 100
    replay.extend(old)
    minibatches = [*update.data(batch, [*loss.in_keys, "row"])]
    assert [len(frames) for frames in minibatches] == 3 * [20, 10]  # its epochs of the five rows not held out
    assert {row for frames in minibatches for row in frames["row"].tolist()} == {0, 1, 2, 3, 4}
    assert loss.diagnose(batch) == found


def test_controls_and_a_loss_without_held_out_rows_measure_nothing():
    assert measured("discrete", actor_inputs="obs+past")[2] == {}
    loss, batch, _ = measured("discrete")
    loss.held_out = 0.0
    assert loss.diagnose(batch) == {}


# ---------------------------------------------------------------------- open loop, with the others as they are expected


def sequence(specs, rows=6, steps=5, memory=0):
    """Rows that are one episode each, whose past is what happened before."""
    td = make_past_batch(specs, rows, steps, memory=memory)
    loss = shaken(MOALoss(specs, latent_dim=3, num_cells=8, **dict(memory="gru", memory_dim=memory) if memory else {}))
    with torch.no_grad():
        now = td[OBSERVATION], loss.model.joint_action(td)
    for key, value in zip(PAST[:2], now, strict=True):
        td[key] = torch.cat([torch.zeros_like(value[:, :1]), value[:, :-1]], 1)
    td["next", *DONE].zero_()
    td["next", "done"] = torch.zeros(rows, steps, 1, dtype=torch.bool)
    td["next", *OBSERVATION] = torch.cat([td[OBSERVATION][:, 1:], td["next", *OBSERVATION][:, -1:]], 1)
    return loss, td


@pytest.mark.parametrize("kind", ["discrete", "continuous"])
@pytest.mark.parametrize("memory", [0, 4])
@torch.no_grad()
def test_expected_others_follow_the_model_of_each_agent(kind, memory):
    """Fed with what really happened, it says at every step what the model says of the whole row."""
    specs = make_specs(kind)
    loss, td = sequence(specs, memory=memory)
    model, expect = loss.model, ExpectedOthers(loss, td)
    expected = model.action_model.likeliest(loss.action_loss.predict(td))
    e = model.actions.dim
    u, joint = model.scaler(td[OBSERVATION]), model.joint_action(td)
    own, others = joint[..., :e], joint[..., e:].unflatten(-1, (2, e))
    for ahead in (1, 2, 3):  # starts are 1, 2, ...; the step before the one that is ahead of each
        length = 5 - ahead
        found = expect(*(x[:, ahead - 1 : ahead - 1 + length] for x in (u, own, others)))
        assert torch.allclose(found, expected[:, ahead:], atol=1e-5)


@torch.no_grad()
def test_what_an_agent_is_not_told_stays_hidden_in_its_expectations():
    for others, fact in (("own", None), ("visible", VISIBLE)):
        specs = make_specs("discrete", **({fact[-1]: fact} if fact else {}))
        td = make_past_batch(specs, 4, 5)
        if fact == VISIBLE:
            td[VISIBLE] = (torch.rand(4, 5, 3, 2) < 0.5).float()
            told = td[VISIBLE]
        else:
            told = torch.zeros(4, 5, 3, 2)
        loss = MOALoss(specs, latent_dim=3, others_actions=others)
        found = ExpectedOthers(loss, td)(torch.randn(4, 3, 3, 4), torch.zeros(4, 3, 3, 5), torch.zeros(4, 3, 3, 2, 5))
        assert torch.equal(found.sum(-1), told[:, 1:4])


def test_true_and_expected_others_are_one_if_the_others_are_known(monkeypatch):
    """All others always do 3, and are expected to; the world model moves by what they do."""
    specs = make_specs("discrete")
    loss, td = sequence(specs, rows=8, steps=5)
    td[ACTION].fill_(3)
    td[LOGITS], td[IS_INIT] = torch.zeros(8, 5, 3, 5), torch.zeros(8, 5, 1, dtype=torch.bool)
    monkeypatch.setattr(loss.model.action_model, "forward", lambda u, joint, valid, state: (
        5.0 * torch.eye(5)[3].expand(*u.shape[:-1], 2, 5)))
    loss.held_out = 0.5
    whole, later = loss.diagnose(td), loss.diagnose(td[:, 1:])  # expected others need a step before the first start
    for k in (1, 3):
        assert whole[f"wm/obs_skill_{k}_moa"] == pytest.approx(later[f"wm/obs_skill_{k}_true"], abs=1e-5)
        assert whole[f"wm/obs_skill_{k}_moa"] != 0
    assert "wm/obs_skill_5_true" in whole and "wm/obs_skill_5_moa" not in whole
    assert whole["wm/gain_joint"] != 0 and measured("discrete")[2]["wm/gain_joint"] == 0  # it starts as a copy
