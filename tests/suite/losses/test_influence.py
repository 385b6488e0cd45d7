"""When the reward for moving the others counts, and in what units."""

import pytest
import torch
from torch.testing import assert_close

from suite.losses import MOALoss
from suite.modules.normalizer import RunningMoments
from suite.specs import LOGITS
from tests.batches import make_past_batch, make_specs, shaken

SMALL = dict(latent_dim=2, num_cells=16, depth=1)
PLAIN = dict(influence_skill=0.0, influence_decay=0.0, influence_scale="none")


def make(kind="discrete", **options):
    """A loss whose model of the others says something, and a batch of a policy of 5 choices."""
    specs = make_specs(kind)
    torch.manual_seed(0)
    loss = shaken(MOALoss(specs, **SMALL, influence=0.1, **PLAIN | options))
    td = make_past_batch(specs, 8, 6)
    td[LOGITS] = torch.randn(8, 6, 3, 5)
    return loss, td


def test_without_a_schedule_it_is_what_was_measured():
    loss, td = make()
    expected = loss.action_loss.influence(td)
    assert expected.max() > 0.1
    assert torch.equal(loss.influence(td), expected) and loss.metrics() == {} and "influence.active" not in dict(
        loss.named_buffers())


def test_it_is_clipped():
    loss, td = make(influence_max=0.05)
    assert_close(loss.influence(td), loss.action_loss.influence(td).clamp_max(0.05))
    assert loss.influence(td).max() == torch.tensor(0.05)


# over the last half of the run: 1 until it begins, then 1 - 2 (done - 1 / 2)
@pytest.mark.parametrize("decay, factors", [(0.0, [1, 1, 1, 1, 1]), (0.5, [1, 1, 1, 0.5, 0.2]),
                                            (1.0, [1, 0.8, 0.5, 0.25, 0.1])])
def test_it_falls_to_zero_over_the_last_share(decay, factors):
    loss, td = make(influence_decay=decay)
    whole = loss.action_loss.influence(td)
    for done, factor in zip((0.0, 0.2, 0.5, 0.75, 0.9), factors, strict=True):
        loss.influence.schedule(done)
        assert_close(loss.influence(td), factor * whole)
    loss.influence.schedule(1.0)
    assert loss.influence(td).any() == (decay == 0)


def test_the_loss_tells_it_how_much_of_the_run_is_over():
    loss, td = make(influence_decay=0.5)
    loss.plan(8 * 6 * 4)
    found = []
    for _ in range(4):
        loss.receive(td)
        found.append(loss.influence.share)
    assert found == [1.0, 1.0, 1.0, 0.5]
    again = make(influence_decay=0.5)[0]
    again.load_state_dict(loss.state_dict())
    assert (again.frames, again.total_frames) == (192, 192)


def test_units_of_the_tasks_reward():
    loss, td = make(influence_scale="std")
    assert not loss.influence(td).any(), "unknown before the first statistics"
    loss.reward_moments.update(torch.tensor([[-3.0], [3.0], [-3.0], [3.0]]))
    std = (4 * 9 / 3) ** 0.5  # unbiased
    assert_close(loss.influence(td), std * loss.action_loss.influence(td), rtol=1e-3, atol=1e-6)
    assert isinstance(loss.influence.reward_moments, RunningMoments) and "influence" not in "".join(loss.state_dict())


def measured(loss, errors, monkeypatch):
    """Cross-entropies of the model, of the frequencies and of the policies, as if they had been measured."""
    seen = []

    def scores(train, held):
        seen.append((len(train), len(held)))
        return dict(zip(("ce", "ce_marginal", "ce_floor"), map(torch.tensor, errors), strict=True))

    monkeypatch.setattr(loss.action_loss, "scores", scores)
    return seen


# the model's errors are averaged with shares 1, 1/2, 1/3, 1/4: 1.5, 1.4, 1.3, 1.4; skill (1.5 - ce) / (1.5 - 1)
def test_it_waits_for_the_skill_and_then_stays(monkeypatch):
    loss, td = make(influence_skill=0.3, held_out=0.25)
    whole = loss.action_loss.influence(td)
    for ce, skill, active in ((1.5, 0.0, 0), (1.3, 0.2, 0), (1.1, 0.4, 1), (1.7, 0.2, 1)):
        seen = measured(loss, (ce, 1.5, 1.0), monkeypatch)
        assert_close(loss.influence(td), active * whole)
        assert seen == [(6, 2)], "measured on the last environments"
        noted = loss.metrics()
        assert noted["influence/active"] == active and noted["influence/skill"].item() == pytest.approx(skill, abs=1e-5)
    again = make(influence_skill=0.3)[0]
    again.load_state_dict(loss.state_dict())
    measured(again, (1.5, 1.5, 1.0), monkeypatch)
    assert_close(again.influence(td), whole)
    assert again.influence.batches == 5


def test_the_latest_ten_batches_or_so_count(monkeypatch):
    loss, td = make(influence_skill=0.3)
    for ce in [1.5] * 30 + [1.0]:
        measured(loss, (ce, 1.5, 1.0), monkeypatch)
        loss.influence(td)
    assert loss.metrics()["influence/skill"].item() == pytest.approx(0.1, abs=1e-5)


def test_the_skill_is_that_of_the_predictions():
    """The policy always takes the same choices, surely: a model that knows them has all the skill, a new one none."""
    loss, td = make(influence_skill=0.2, moa_coef=1.0)
    choice = torch.arange(6)[:, None].expand(6, 3) % 5  # each step another, so that no frequency tells
    td["agents", "action"] = choice.expand(8, 6, 3).clone()
    td[LOGITS] = 50 * torch.nn.functional.one_hot(td["agents", "action"], 5).float()
    scores = loss.action_loss.scores(td[:6], td[6:])
    assert scores["ce_floor"] < 1e-6 and scores["ce_marginal"] > 1
    perfect = 50 * loss.action_loss.model.actions.of_others(td[LOGITS] / 50)
    loss.action_loss.predict = lambda td: perfect[: len(td)]
    assert loss.action_loss.scores(td[:6], td[6:])["skill"] == pytest.approx(1, abs=1e-4)
    loss.action_loss.predict = lambda td: torch.zeros_like(perfect[: len(td)])
    assert loss.action_loss.scores(td[:6], td[6:])["skill"] < 0.05


def test_one_environment_has_none_to_hold_out():
    loss, td = make(influence_skill=0.2)
    with pytest.raises(ValueError, match="influence_skill of loss 'moa' is measured on held-out environments"):
        loss.influence(td[:1])
