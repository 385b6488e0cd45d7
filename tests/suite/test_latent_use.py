"""Shuffled latents: which rows they come from, and what they cost a policy that needs them or does not."""

import pytest
import torch
from tensordict import TensorDict
from tensordict.nn import TensorDictModule, TensorDictSequential
from torch import nn

import recipes.cooperative as recipe
from suite.evaluate import Evaluator
from suite.latent_use import OtherEpisode, latent_sensitivity, latent_use, shuffled_latent
from suite.modules import make_actor
from suite.modules.lowered import Lowered
from suite.specs import ACTION, GROUP, IS_INIT, OBSERVATION, RECURRENT, Specs
from suite.state_figures import PANELS
from tests.small import config, make_toy, train
from tests.toy import ToyEnv

N, A = 6, 2
Z = (GROUP, "z")


def walker(reads):
    """A latent that holds the way to the target, and an actor that goes by it, or by what it sees itself."""
    return TensorDictSequential(
        TensorDictModule(lambda x: x[..., 2:], in_keys=[OBSERVATION], out_keys=[Z]),
        TensorDictModule(lambda x: x[..., -2:].clamp(-1, 1), in_keys=[reads], out_keys=[ACTION]))


def make_evaluator(policy):
    return Evaluator(ToyEnv(N, A, seed=9), policy, seed=3)


def test_no_environment_keeps_its_row_and_every_row_is_handed_out_once():
    for n in (2, 3, 17):
        rows = OtherEpisode()(torch.arange(n))
        assert (rows != torch.arange(n)).all() and rows.sort().values.tolist() == list(range(n))
    module = OtherEpisode(seed=4)
    x = torch.randn(5, 3, 2, generator=torch.Generator().manual_seed(0))
    assert torch.equal(module(x), module(x)) and torch.equal(module(x), OtherEpisode(seed=4)(x))
    with pytest.raises(ValueError, match="one environment"):
        module(torch.zeros(1, 3))


def test_a_policy_that_goes_by_its_latent_loses_and_one_that_does_not_loses_nothing():
    used, ignored = (latent_use(make_evaluator, walker(key), Z) for key in (Z, OBSERVATION))
    assert used["return"] == ignored["return"] == make_evaluator(walker(Z))()["return"]
    assert used["z_use"] > 1 and used["z_use"] == used["return"] - used["return_shuffled"]
    assert used["z_use_share"] == pytest.approx(used["z_use"] / -used["return"])
    assert ignored["z_use"] == ignored["z_use_share"] == 0


def test_what_is_shuffled_is_the_last_writing_and_nothing_before_it():
    policy = TensorDictSequential(
        TensorDictModule(lambda x: x + 1, in_keys=["x"], out_keys=["z"]),
        TensorDictModule(lambda z: z * 1, in_keys=["z"], out_keys=["early"]),
        TensorDictModule(lambda z: z * 10, in_keys=["z"], out_keys=["z"]),
        TensorDictModule(lambda z: z * 1, in_keys=["z"], out_keys=["late"]))
    out = Lowered(shuffled_latent(policy, "z"))({"x": torch.arange(4.0)})
    assert out["early"].tolist() == [1, 2, 3, 4]
    assert out["late"].tolist() == OtherEpisode()(torch.tensor([10.0, 20, 30, 40])).tolist()
    with pytest.raises(ValueError, match="no module"):
        shuffled_latent(policy, "y")


def test_a_recurrent_actor_keeps_its_own_memory_and_parameters():
    env = ToyEnv(N, A)
    torch.manual_seed(0)
    actor = make_actor(Specs.from_env(env), {Z: 2}, share="all", agent_id=True, cells=(8,), activation="tanh",
                       init="default", recurrent_dim=6, head="tanh_normal", state_dependent_scale=True, device="cpu")
    policy = TensorDictSequential(TensorDictModule(nn.Linear(4, 2), in_keys=[OBSERVATION], out_keys=[Z]), actor)
    shuffled = shuffled_latent(policy, Z)
    assert {id(p) for p in shuffled.parameters()} == {id(p) for p in policy.parameters()}
    before = torch.get_rng_state()
    found = latent_use(make_evaluator, policy, Z)
    assert torch.equal(torch.get_rng_state(), before)
    assert found["return"] != found["return_shuffled"] and found == latent_use(make_evaluator, policy, Z)


def test_how_far_a_latent_moves_the_outputs_by_hand():
    """Slopes 3, 0 and 1, 2 of two outputs, spreads 2 and 0.5: (3 x 2 + 1 x 2 + 0 + 2 x 0.5) / 4."""
    class Linear(nn.Module):
        def forward(self, z, x):
            return z @ torch.tensor([[3.0, 0.0], [1.0, 2.0]]).T + x.detach(), x

    actor = TensorDictModule(Linear(), in_keys=[Z, OBSERVATION], out_keys=[(GROUP, "loc"), "unread"])
    z = torch.randn(4, 50, A, 2, generator=torch.Generator().manual_seed(0)).flatten(0, 2)
    z = (z - z.mean(0)) / z.std(0) * torch.tensor([2.0, 0.5])
    batch = TensorDict({Z: z.view(4, 50, A, 2), OBSERVATION: torch.randn(4, 50, A, 2)}, batch_size=[4, 50])
    with torch.no_grad():
        assert latent_sensitivity(actor, batch, Z) == pytest.approx(9 / 4, rel=1e-5)
        batch["alive"] = torch.rand(4, 50, A, generator=torch.Generator().manual_seed(1)) < 0.5
        batch[Z] = torch.where(batch["alive"].unsqueeze(-1), 3 * batch[Z], 100.0)
        living = (batch[Z][batch["alive"]].std(0) * torch.tensor([4.0, 2.0])).sum().item() / 4
        assert latent_sensitivity(actor, batch, Z, alive="alive") == pytest.approx(living, rel=1e-5)
    assert not batch[Z].requires_grad


@pytest.mark.parametrize("recurrent", [0, 6])
def test_each_step_of_a_recurrent_actor_counts_alone(recurrent):
    """From its stored state: what a latent does to later steps is no part of it."""
    torch.manual_seed(0)
    actor = make_actor(Specs.from_env(ToyEnv(N, A)), {Z: 2}, share="all", agent_id=True, cells=(8,), activation="tanh",
                       init="default", recurrent_dim=recurrent, head="normal", state_dependent_scale=False,
                       device="cpu")
    batch = TensorDict({Z: torch.randn(3, 4, A, 2), OBSERVATION: torch.randn(3, 4, A, 4),
                        RECURRENT: torch.randn(3, 4, A, 6), IS_INIT: torch.zeros(3, 4, 1, dtype=torch.bool)}, [3, 4])
    rows = batch.flatten(0, 1).unsqueeze(1)
    assert latent_sensitivity(actor, batch, Z) == pytest.approx(latent_sensitivity(actor, rows, Z), rel=1e-5) != 0


@pytest.mark.parametrize("loss, there", [("moa", True), ("smpe", True), ("next_observation", True), ("none", False)])
def test_runs_measure_what_their_latents_are_good_for(loss, there, monkeypatch):
    monkeypatch.setattr(recipe, "make_env", make_toy)
    options = {} if loss == "none" else {"latent_dim": 3}
    trainer = train(config("mappo", loss=loss, loss_options=options, evaluations=2))
    rows = [row for row in trainer.run.rows if "eval/return" in row]
    assert len(rows) > 1 and all(("policy/z_use" in row) == there for row in rows)
    assert ("policy/z_sensitivity" in rows[-1]) == (loss in ("moa", "smpe"))
    drawn = {line.metric for panel in PANELS for line in panel.lines if line.metric.startswith("policy/")}
    assert loss not in ("moa", "smpe") or drawn == {name for name in rows[-1] if name.startswith("policy/")}
    evaluator = trainer.evaluate
    if there:
        lost = evaluator.play(deterministic=False, seed=1)["return"]
        lost -= evaluator.play(deterministic=False, seed=1, policy=evaluator.shuffled)["return"]
        evaluator.seed = 1
        assert evaluator()["policy/z_use"] == pytest.approx(lost) != 0
