"""One world model and several: the same numbers as networks on their own, their mean, and how far they disagree."""

import pytest
import torch
from torch.testing import assert_close

from suite.modules.world_model import WorldModel, disagreement, symexp, symlog
from tests.batches import make_specs, shaken

torch.set_num_threads(1)


def make(members=1, continues=False, kind="discrete"):
    specs = make_specs(kind)
    torch.manual_seed(0)
    model = shaken(WorldModel(specs, [16, 8], members=members, continues=continues))
    return model, torch.randn(7, 5, 3, 4), torch.randn(7, 5, 3, 3 * specs.action_dim)


def test_disagreement_by_hand():
    """0, 1 and 2 have the population variance 2/3."""
    predictions = torch.tensor([0.0, 1.0, 2.0])[:, None, None].expand(3, 5, 4)
    assert_close(disagreement(predictions, torch.ones(4, dtype=torch.bool)), torch.full((5,), 0.666666667))
    spread = torch.tensor([1.0, 1.0, 9.0, 9.0])  # the last two are padding
    assert_close(disagreement(predictions * spread, torch.tensor([True, True, False, False])),
                 torch.full((5,), 0.666666667))
    assert_close(disagreement(predictions * torch.tensor([1.0, 0, 0, 0]), torch.ones(4, dtype=torch.bool)),
                 torch.full((5,), 0.666666667 / 4))
    assert not disagreement(predictions[:1], torch.ones(4, dtype=torch.bool)).any()


def test_symlog_by_hand():
    x = torch.tensor([0.0, 1.0, -9.0, 100.0])
    expected = torch.tensor([0.0, 0.693147181, -2.302585093, 4.615120517])
    assert_close(symlog(x), expected, rtol=0, atol=1e-6)
    assert_close(symexp(expected), x, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("continues", [False, True])
def test_an_ensemble_is_so_many_networks(continues):
    model, u, joint = make(3, continues)
    observation, reward, logit = model.each(u, joint)
    assert observation.shape == (3, 7, 5, 3, 4) and reward.shape == (3, 7, 5, 3, 1)
    assert logit.shape == (3, 7, 5, 3, continues)
    for k in range(3):
        alone, *_ = make(1, continues)
        alone.load_state_dict({name: value[k] for name, value in model.state_dict().items()})
        for mine, its in zip((observation, reward, logit), alone.each(u, joint), strict=True):
            assert_close(mine[k], its[0], rtol=1e-5, atol=1e-6)
    mean = model(u, joint)
    assert_close(mean[0], observation.mean(0))
    assert_close(mean[1], reward.mean(0))


def test_members_begin_differently_and_agree_that_nothing_changes():
    model = WorldModel(make_specs("discrete"), [16], members=3)
    first = model.net[0].weight
    assert not torch.allclose(first[0], first[1]) and not torch.allclose(first[1], first[2])
    u, joint = torch.randn(5, 3, 4), torch.randn(5, 3, 15)
    assert_close(model(u, joint)[0], u)
    assert all(torch.equal(one, u) for one in model.each(u, joint)[0]) and not model(u, joint)[1].any()


def test_a_single_model_has_the_names_of_old_checkpoints():
    assert list(make()[0].state_dict()) == [f"net.{k}.{name}" for k in (0, 2, 4) for name in ("weight", "bias")]
    assert make()[0].net[-1].out_features == 5


def test_the_chance_to_go_on_is_the_members_mean():
    model, u, joint = make(2, True)
    assert_close(model.predict(u, joint).goes_on, model.each(u, joint)[2].sigmoid().mean(0))
    assert_close(model.predict(u, joint).observation, model(u, joint)[0])
    plain, *_ = make()
    assert torch.equal(plain.predict(u, joint).goes_on, torch.ones(7, 5, 3, 1))


def test_members_learn_from_their_own_errors_only():
    model, u, joint = make(2)
    model.each(u, joint)[0][1].square().mean().backward()
    for parameter in model.parameters():
        assert not parameter.grad[0].any() and parameter.grad[1].any()
