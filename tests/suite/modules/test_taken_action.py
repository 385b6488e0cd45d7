"""The batch holds the joint action that was played."""

import pytest
import torch

from recipes.cooperative import make_trainer
from suite.modules.state_model import PREV_ACTION
from suite.modules.taken_action import TakenAction, taken_action
from suite.run import MemoryRun
from suite.specs import ACTION, CONTROLLED, SCRIPTED_ACTION
from tests.batches import make_specs
from tests.small import config


@pytest.mark.parametrize("trailing", [(), (2,)])
def test_the_script_acts_where_the_policy_does_not(trailing):
    action, scripted = torch.full((4, 3, *trailing), 1.0), torch.full((4, 3, *trailing), 2.0)
    controlled = torch.tensor([True, False, True]).expand(4, 3)
    out = TakenAction()(action, controlled, scripted)
    assert out.shape == action.shape and out.flatten(2).amin(-1)[0].tolist() == [1, 2, 1] if trailing else \
        out[0].tolist() == [1, 2, 1]


def test_only_where_a_task_overrides():
    assert taken_action(make_specs("discrete")) == []
    (module,) = taken_action(make_specs("discrete", controlled=CONTROLLED, scripted_action=SCRIPTED_ACTION))
    assert module.in_keys == [ACTION, CONTROLLED, SCRIPTED_ACTION] and module.out_keys == [ACTION]


@pytest.mark.parametrize("continuous", [False, True])
@pytest.mark.parametrize("algorithm", ["mappo", "ia2c"])
def test_followers_are_told_what_a_scripted_leader_did(algorithm, continuous):
    options = {"partner_types": True, "continuous_actions": continuous}
    cfg = config(algorithm, loss="moa", task="vmas/hidden_leader", task_options=options)
    trainer = make_trainer(cfg, MemoryRun())
    batch = next(iter(trainer.collector))
    over = ~batch[CONTROLLED]
    assert over.any() and torch.equal(batch[ACTION][over], batch[SCRIPTED_ACTION][over])
    own = batch[PREV_ACTION][..., :trainer.losses[0].model.actions.dim]
    encoded = trainer.losses[0].model.actions.encode(batch[ACTION])
    assert torch.allclose(own[:, 1:], encoded[:, :-1])
    metrics = trainer.iterate(batch)
    assert all(value.isfinite() for value in metrics.values())
