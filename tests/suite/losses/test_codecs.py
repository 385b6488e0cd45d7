"""The codecs that nothing trains, with the interface of the one that is trained."""

import pytest
import torch
from torch.testing import assert_close

from suite.losses.codecs import CODECS, DirectActions, EmbeddedActions
from suite.specs import CHOICE, LATENT_ACTION, OBSERVATION, PARAMS
from tests.batches import make_specs

MASK = torch.tensor([[True, True], [True, False], [False, False]])


def specs(agents=2):
    return make_specs("discrete", n_agents=agents, state=False, param_mask=MASK)


def act(codec, latent):
    out = codec.decoder().module(torch.zeros(*latent.shape[:-1], 4), latent)
    return dict(zip(codec.decoder().out_keys, out, strict=True))


def test_a_value_per_choice_and_its_slice_of_the_parameters():
    """Three values, then x of choice 0 (two), of choice 1 (one); choice 2 has none."""
    codec = DirectActions(specs())
    assert codec.codec.latent_width == 6
    latent = torch.tensor([[[0.9, 0.1, 0.0, 1.0, 2.0, 3.0], [0.0, 0.5, 0.4, 1.0, 2.0, 3.0]],
                           [[0.0, 0.0, 0.1, 1.0, 2.0, 3.0], [0.5, 0.5, 0.5, 1.0, 2.0, 3.0]]])
    out = act(codec, latent)
    assert out[CHOICE].tolist() == [[0, 1], [2, 0]]
    assert out[PARAMS].tolist() == [[[1, 2], [3, 0]], [[0, 0], [1, 2]]]


def test_the_nearest_embedding_and_parameters_as_they_are():
    codec = EmbeddedActions(specs(), embed_dim=3)
    assert codec.codec.latent_width == 5
    e = codec.codec.embeddings.tanh()[[2, 0]]
    out = act(codec, torch.cat([e, torch.tensor([[0.3, 0.4], [0.5, 0.6]])], -1).unsqueeze(0))
    assert out[CHOICE].tolist() == [[2, 0]]
    assert_close(out[PARAMS], torch.tensor([[[0.0, 0.0], [0.5, 0.6]]]))


@pytest.mark.parametrize("name", ["none", "embedding"])
def test_nothing_trains_warms_up_or_is_relabelled(name):
    codec = CODECS[name](specs())
    assert not any(p.requires_grad for p in codec.parameters())
    assert codec.warming is None and codec.warmup == 0 and not codec.random_batch
    assert codec.relabel("anything") == "anything" and codec.in_keys == []
    assert codec.decoder().in_keys == [OBSERVATION, LATENT_ACTION]


def test_a_width_that_is_none():
    with pytest.raises(ValueError, match="embed_dim of codec 'embedding' must be positive, got 0"):
        EmbeddedActions(specs(), embed_dim=0)
