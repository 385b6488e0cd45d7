"""What a policy hands on from step to step besides its hidden state, and which of its outputs are stored."""

import pytest
import torch
from tensordict.nn import TensorDictModule, TensorDictSequential
from torch import nn

from suite.collector import make_collector
from suite.modules import make_actor
from suite.specs import ACTION, GROUP, IS_INIT, OBSERVATION, Specs
from tests.toy import ToyEnv

N, T, A = 6, 7, 2
PREVIOUS, FEATURE = (GROUP, "previous"), (GROUP, "feature")


class Previous(nn.Module):
    """The previous action is a feature of the actor; declared here, written by the module after the actor."""

    carried = {PREVIOUS: (A, 2)}  # noqa: RUF012

    def forward(self, previous):
        return 2 * previous


def build(*, fast=True, carried=True, **options):
    torch.manual_seed(0)
    env = ToyEnv(N, A, max_steps=5, seed=3, arrive=0.9)
    features = {FEATURE: 2} if carried else {}
    actor = make_actor(Specs.from_env(env), features, share="all", agent_id=True, cells=(8,), activation="tanh",
                       init="default", recurrent_dim=0, head="tanh_normal", state_dependent_scale=True, device="cpu")
    if carried:
        actor = TensorDictSequential(TensorDictModule(Previous(), in_keys=[PREVIOUS], out_keys=[FEATURE]), actor,
                                     TensorDictModule(nn.Identity(), in_keys=[ACTION], out_keys=[("next", *PREVIOUS)]))
    return make_collector(env, actor, steps=T, total_frames=3 * N * T, fast=fast, **options)


def collect(collector):
    torch.manual_seed(11)
    return [batch.clone() for batch in collector]


@pytest.mark.parametrize("fast", [True, False])
def test_a_carried_key_is_the_value_of_the_step_before_and_zero_after_an_end(fast):
    batches = collect(build(fast=fast))
    whole = torch.cat(batches, 1)
    assert whole[PREVIOUS].shape == (N, 3 * T, A, 2)
    start = whole[IS_INIT].squeeze(-1)
    assert start[:, 0].all() and start[:, 1:].any() and not start[:, 1:].all()
    expected = torch.cat([torch.zeros(N, 1, A, 2), whole[ACTION][:, :-1]], 1).masked_fill(start[..., None, None], 0)
    assert torch.equal(whole[PREVIOUS], expected)  # also from one batch to the next
    assert torch.equal(whole[FEATURE], 2 * expected)


def test_its_next_value_is_in_the_batch_also_at_an_end():
    """What a critic or an encoder reads at the next observation."""
    for batch in collect(build()):
        assert torch.equal(batch["next", *PREVIOUS], batch[ACTION])
        assert batch["next", "done"].any()


def test_both_collectors_hand_on_the_same_values():
    fast, stock = collect(build()), collect(build(fast=False))
    for mine, theirs in zip(fast, stock, strict=True):
        for key in mine.keys(True, True):
            assert torch.equal(mine[key], theirs[key]), key


def test_a_restored_collector_hands_on_the_same_values(tmp_path):
    expected, collector = collect(build()), build()
    torch.manual_seed(11)
    next(iter(collector))
    torch.save({"collector": collector.state_dict(), "random": torch.get_rng_state()}, tmp_path / "state")
    saved = torch.load(tmp_path / "state", weights_only=True)
    again = build()
    again.load_state_dict(saved["collector"])
    torch.set_rng_state(saved["random"])
    for mine, theirs in zip(again, expected[1:], strict=True):
        assert (mine == theirs).all()


def test_distribution_parameters_are_stored_only_if_asked_for():
    loc, scale = (GROUP, "loc"), (GROUP, "scale")
    plain, one, both = (collect(build(carried=False, keep=keep)) for keep in ((), [loc], [loc, scale, OBSERVATION]))
    for a, b, c in zip(plain, one, both, strict=True):
        assert not {loc, scale} & set(a.keys(True, True))
        assert set(b.keys(True, True)) == set(a.keys(True, True)) | {loc}
        assert set(c.keys(True, True)) == set(a.keys(True, True)) | {loc, scale}
        assert b[loc].shape == c[scale].shape == (N, T, A, 2) and (c[scale] > 0).all()
        assert all(torch.equal(a[key], c[key]) for key in a.keys(True, True))


def test_what_is_kept_are_the_parameters_the_action_was_drawn_from():
    collector = build(carried=False, keep=[(GROUP, "loc"), (GROUP, "scale")])
    batch = collect(collector)[0]
    with torch.no_grad():
        dist = collector.policy.get_dist(batch.select(*collector.policy.in_keys))
    assert torch.allclose(dist.log_prob(batch[ACTION]), batch[GROUP, "action_log_prob"], atol=1e-4)
    fresh = collector.policy.get_dist_params(batch.select(*collector.policy.in_keys))
    for name in ("loc", "scale"):
        assert torch.allclose(fresh[GROUP, name], batch[GROUP, name], atol=1e-6)
