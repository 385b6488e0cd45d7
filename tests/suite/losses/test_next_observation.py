import pytest
import torch
from tensordict import TensorDict
from torch.testing import assert_close

from suite.data import Minibatches, Replay, Sequences
from suite.losses import NextObservationLoss, PolicyLoss, ValueLoss
from suite.losses.next_observation import LATENT, NEXT_OBSERVATION
from suite.modules import make_actor, make_critic
from suite.specs import ACTION, GROUP, OBSERVATION, REWARD, Specs
from tests.batches import make_batch, make_specs

torch.set_num_threads(1)
COMMON = dict(share="all", agent_id=False, cells=[8], activation="tanh", init="default", device="cpu")


def set_weights(module, value):
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.fill_(value)


def hand_batch(discrete):
    """Two frames of two agents with one observation each."""
    td = TensorDict(batch_size=[2])
    td[OBSERVATION] = torch.tensor([[[0.0], [1.0]], [[2.0], [3.0]]])
    td[NEXT_OBSERVATION] = torch.tensor([[[1.0], [1.0]], [[0.0], [6.0]]])
    td[ACTION] = torch.tensor([[0, 1], [1, 0]]) if discrete else torch.tensor([[[1.0], [-1.0]], [[0.5], [0.0]]])
    return td


def hand_specs(discrete):
    return Specs(n_agents=2, obs_dim=1, action_dim=2 if discrete else 1, discrete=discrete, agent_types=(0, 0))


# all weights 0: the prediction is "no change": errors 1, 0, 4, 9; mean 3.5
@pytest.mark.parametrize("discrete", [True, False])
@pytest.mark.parametrize("coef", [1.0, 0.5])
def test_without_weights_nothing_changes(discrete, coef):
    loss = NextObservationLoss(hand_specs(discrete), coef=coef)
    set_weights(loss, 0.0)
    td = hand_batch(discrete)
    assert_close(loss.error(td).detach().flatten(), torch.tensor([1.0, 0.0, 4.0, 9.0]))
    assert loss(td)["loss_prediction"].item() == pytest.approx(3.5 * coef)


# the predictor's output bias b predicts o + b: errors (o + 2 - o')^2 = 1, 4, 16, 1; d/db = 2 * mean(1, 2, 4, -1) = 3
def test_bias_of_two_and_its_gradient():
    loss = NextObservationLoss(hand_specs(False))
    set_weights(loss, 0.0)
    bias = loss.predictor[-1].bias
    with torch.no_grad():
        bias.fill_(2.0)
    td = hand_batch(False)
    assert_close(loss.error(td).detach().flatten(), torch.tensor([1.0, 4.0, 16.0, 1.0]))
    out = loss(td)["loss_prediction"]
    out.backward()
    assert out.item() == pytest.approx(5.5) and bias.grad.item() == pytest.approx(3.0)


# one cell everywhere and every weight 1, biases 0: z = tanh(tanh(o)), change = tanh(z + a) for continuous actions;
# with choices a is one-hot, so its sum is 1 whatever the choice: change = tanh(z + 1)
@pytest.mark.parametrize("discrete", [True, False])
def test_unit_weights(discrete):
    loss = NextObservationLoss(hand_specs(discrete), latent_dim=1, num_cells=1)
    set_weights(loss, 1.0)
    with torch.no_grad():
        for name, parameter in loss.named_parameters():
            if name.endswith("bias"):
                parameter.zero_()
    td = hand_batch(discrete)
    z = torch.tanh(torch.tanh(td[OBSERVATION]))
    change = torch.tanh(z + (1.0 if discrete else td[ACTION]))
    assert_close(loss.error(td), (td[OBSERVATION] + change - td[NEXT_OBSERVATION]).square())
    assert_close(loss.encoders[0](td)[LATENT], z)


def test_actions_matter():
    torch.manual_seed(0)
    for kind in ("discrete", "continuous"):
        specs = make_specs(kind)
        loss, batch = NextObservationLoss(specs), make_batch(specs)
        before = loss.error(batch)
        batch[ACTION] = batch[ACTION].flip(0)
        assert not torch.allclose(before, loss.error(batch))


def test_curiosity_is_the_error_of_each_agent():
    specs = make_specs("continuous")
    loss, batch = NextObservationLoss(specs, curiosity=0.3, coef=7.0), make_batch(specs)
    terms = loss.reward_terms(batch)
    assert set(terms) == {"curiosity"} and loss.reward_weights == {"curiosity": 0.3}
    assert terms["curiosity"].shape == batch["next", *REWARD].shape
    assert torch.equal(terms["curiosity"], loss.error(batch))  # coef weighs the loss, not the reward
    assert (terms["curiosity"] >= 0).all()
    assert NextObservationLoss(specs).reward_weights == {"curiosity": 0.0}


def test_features_feed_actor_and_critic_and_their_gradients_stop_there():
    specs = make_specs("discrete")
    loss, batch = NextObservationLoss(specs, latent_dim=3), make_batch(specs).reshape(-1)
    assert loss.features == {LATENT: 3}
    actor = make_actor(specs, loss.features, recurrent_dim=0, head="normal", state_dependent_scale=False, **COMMON)
    critic = make_critic(specs, loss.features, centralized=True, recurrent_dim=0, **COMMON)
    with torch.no_grad():
        loss.encoders[0](batch)  # as the collector does
    assert batch[LATENT].shape == (24, 3, 3) and (batch[LATENT].abs() < 1).all()
    policy, value = PolicyLoss(actor, clip=0.2, entropy_coef=0.01), ValueLoss(critic, clip=None, kind="l2")
    assert LATENT in policy.in_keys and LATENT in value.in_keys
    (policy(batch)["loss_policy"] + value(batch)["loss_value"]).backward()
    assert all(parameter.grad is None for parameter in loss.parameters())
    assert actor[0].module.trunk.hidden[0].weight.grad[:, 4:].any()  # but they do use the latent
    loss(batch)["loss_prediction"].backward()
    assert all(parameter.grad.any() for parameter in loss.parameters())


def test_encoder_is_the_loss_own_network():
    loss = NextObservationLoss(make_specs("discrete"))
    assert {id(p) for p in loss.encoders[0].parameters()} < {id(p) for p in loss.parameters()}


def test_latent_may_be_kept_from_the_policy():
    loss = NextObservationLoss(make_specs("discrete"), use_latent=False)
    assert loss.encoders == [] and loss.features == {}
    assert loss(make_batch(make_specs("discrete")))["loss_prediction"] > 0


def test_training_lowers_curiosity():
    torch.manual_seed(0)
    specs = make_specs("continuous")
    loss, batch = NextObservationLoss(specs, lr=3e-3, epochs=30), make_batch(specs)
    before = loss.reward_terms(batch)["curiosity"].mean()
    [update] = loss.updates("state_model", Minibatches(1, 12), optimizer=torch.optim.SGD, max_grad_norm=1.0)
    metrics = update.run(batch)
    assert loss.reward_terms(batch)["curiosity"].mean() < 0.9 * before
    assert set(metrics) == {"state_model/loss_prediction", "state_model/grad_norm"}


@pytest.mark.parametrize("source", [Minibatches(9, 6), Sequences(9, 6)])
def test_own_optimiser_and_epochs_on_the_recipes_data(source):
    specs = make_specs("discrete")
    loss = NextObservationLoss(specs, lr=0.01, epochs=2)
    [update] = loss.updates("state_model", source, optimizer=torch.optim.SGD, max_grad_norm=0.5)
    [optimizer] = update.optimizers.values()
    assert isinstance(optimizer, torch.optim.Adam) and optimizer.param_groups[0]["lr"] == 0.01
    assert update.max_grad_norm == {"state_model": 0.5} and type(update.data) is type(source)
    assert (update.data.epochs, update.data.size, source.epochs) == (2, 6, 9)
    assert update.keys == loss.in_keys


def test_replayed_data_is_sampled_epochs_times_as_often():
    loss = NextObservationLoss(make_specs("discrete"), epochs=3)
    replay = Replay(capacity=50, steps=2, size=4, warmup=4, keys=loss.in_keys, device="cpu")
    [update] = loss.updates("state_model", replay, optimizer=torch.optim.SGD, max_grad_norm=None)
    assert update.data.owner is replay and update.data.steps == 6 and replay.steps == 2


@pytest.mark.parametrize("options", [{"latent_dim": 0}, {"epochs": 0}, {"lr": 0.0}])
def test_wrong_options_are_named(options):
    with pytest.raises(ValueError, match="latent_dim, epochs and lr must be positive, got"):
        NextObservationLoss(make_specs("discrete"), **options)


def test_option_names():
    assert NextObservationLoss.option_names() == ["latent_dim", "num_cells", "coef", "lr", "epochs", "curiosity",
                                                  "use_latent"]
    assert LATENT == (GROUP, "latent")
