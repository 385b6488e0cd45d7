import math

import pytest
import torch

from suite.data import Minibatches
from suite.losses import MOALoss
from suite.specs import IS_INIT, LOGITS
from tests.batches import make_past_batch, make_specs

torch.set_num_threads(1)


def measured(kind, **options):
    """A fresh loss and what it measures on 10 rows, of which 5 are held out."""
    torch.manual_seed(0)
    specs = make_specs(kind)
    loss, batch = MOALoss(specs, latent_dim=3, num_cells=8, held_out=0.5, **options), make_past_batch(specs, 10, 6)
    batch[IS_INIT] = torch.zeros(10, 6, 1, dtype=torch.bool)
    batch[IS_INIT][:, 0] = True
    batch["next", "agents", "done"].zero_()
    if specs.discrete:
        batch[LOGITS] = torch.zeros(10, 6, 3, 5)
    return loss, batch, loss.diagnose(batch)


@pytest.mark.parametrize("kind", ["discrete", "continuous"])
def test_every_metric_is_a_number_and_the_batch_stays(kind):
    loss, batch, found = measured(kind)
    assert all(math.isfinite(value) for value in found.values())
    before = batch.clone()
    again = loss.diagnose(batch)
    assert (batch == before).all() and again == found
    assert {"wm/obs_skill_1", "wm/rew_r2", "cvae/kl", "cvae/calibration", "cvae/active_units"} <= found.keys()


def test_an_untrained_world_model_copies_and_an_untrained_action_model_knows_nothing():
    _, _, found = measured("discrete")
    assert found["wm/obs_skill_1"] == pytest.approx(0, abs=1e-6)
    assert found["moa/ce"] == pytest.approx(math.log(5), abs=0.02)
    assert found["moa/ce_floor"] == pytest.approx(math.log(5), abs=1e-6)  # the acting policy was uniform


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


def test_controls_and_a_loss_without_held_out_rows_measure_nothing():
    assert measured("discrete", actor_inputs="obs+past")[2] == {}
    loss, batch, _ = measured("discrete")
    loss.held_out = 0.0
    assert loss.diagnose(batch) == {}
