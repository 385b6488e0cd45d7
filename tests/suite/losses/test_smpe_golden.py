"""Numbers of the official SMPE2 program, reproduced with the loss, the updates and the return estimators of the suite.

n = 3 agents (2 in the warehouse's files, where present), batches of 10 padded episodes of up to 12 steps.
"""

from functools import partial
from pathlib import Path

import pytest
import torch
from tensordict import TensorDict
from torch.testing import assert_close

from suite.data import Sequences
from suite.losses import PolicyLoss, Returns, SMPELoss, ValueLoss
from suite.losses.smpe import BELIEF, FILTERED
from suite.modules import make_actor, make_critic
from suite.modules.simhash import SimHash
from suite.specs import (
    ACTION,
    ACTION_MASK,
    ADVANTAGE,
    ALIVE,
    DONE,
    IS_INIT,
    OBSERVATION,
    RECURRENT,
    REWARD,
    TERMINATED,
    VALUE,
    VALUE_TARGET,
    Specs,
)
from suite.update import Update
from tests.archives import FOLDER, Golden
from tests.batches import make_learner

torch.set_num_threads(1)
T, K, WIDTH = 12, 8, 16
ENCODER, DECODER = {"fc1": "fc1", "fc2": "fc2"}, {"fc1": "fc1", "fc2": "fc2", "fc3": "fc3"}
FILTER = {"fc1": "fc1", "fc2": "fc2"}
ACTOR = {"fc1": "trunk.hidden.0", "rnn.ih": "trunk.gru.from_input", "rnn.hh": "trunk.gru.from_hidden", "fc2": "out"}
CRITIC = {"fc1": "trunk.hidden.0", "fc2": "trunk.hidden.2", "fc3": "out"}


def variants(kind):
    found = sorted(path.stem for path in Path(FOLDER / "smpe").glob(f"{kind}_*.npz"))
    assert found
    return found


def number(golden, name):
    return golden[f"cfg.{name}"].item()


def make_loss(golden, specs, **changes):
    """The loss with the file's coefficients, statistics and weights, in the preset ``official``."""
    torch.manual_seed(0)
    options = dict(preset="official", latent_dim=K, clip_max=1.0, encode_every=1)
    for theirs, ours in (("lambda_rec", "rec_coef"), ("lambda_kl_loss_obs", "kl_coef"), ("l2_lambda", "norm_coef"),
                         ("lr_agent_model", "lr"), ("lr_filter", "lr_filter"), ("clip_min", "clip_min")):
        if f"cfg.{theirs}" in golden.arrays:
            options[ours] = number(golden, theirs)
    if "cfg.use_2layer_filter" in golden.arrays:
        options["filter_layers"] = 2 if number(golden, "use_2layer_filter") else 1
    loss = SMPELoss(specs, **options | changes)
    for moments, name in ((loss.scaler.moments, "obs_ms"), (loss.joint_moments, "state_ms")):
        for part in ("mean", "var"):
            getattr(moments, part).copy_(golden[f"{name}.{part}"].view(getattr(moments, part).shape))
    return loss


def load_encoder(golden, loss, prefix=""):
    n = loss.specs.n_agents
    weights = golden.stacked(prefix + "encoder{}", ENCODER, n)
    heads = golden.stacked(prefix + "encoder{}", {"mu": "mu", "logvar": "logvar"}, n)
    for kind in ("weight", "bias"):
        weights[f"heads.{kind}"] = torch.cat([heads[f"mu.{kind}"], heads[f"logvar.{kind}"]], 1)
    loss.encoder.load_state_dict(weights)
    return weights


def load(network, weights):
    assert network.state_dict().keys() == weights.keys()
    network.load_state_dict(weights)


def specs_of(golden, observations, actions=6):
    n, o = observations.shape[-2:]
    return Specs(n_agents=n, obs_dim=o, action_dim=actions, discrete=True, agent_types=(0,) * n, has_mask=True,
                 alive=ALIVE, horizon=T)


def noise_from(monkeypatch, draws):
    """Every ``randn_like`` gives the file's next draw."""
    queue = list(draws)
    monkeypatch.setattr(torch, "randn_like", lambda x: queue.pop(0).reshape(x.shape).to(x.dtype))


@pytest.mark.parametrize("name", variants("encodings_forward"))
def test_encodings_forward(name, monkeypatch):
    golden = Golden("smpe", name)
    specs = specs_of(golden, golden["obs"])
    n, rows = specs.n_agents, len(golden["obs"])
    loss = make_loss(golden, specs, encode_rows=rows)
    load_encoder(golden, loss)
    load(loss.decoder, golden.stacked("decoder{}", DECODER, n))
    load(loss.am_filter, golden.stacked("filter{}", FILTER, n))
    load(loss.slow_filter, golden.stacked("target_filter{}", FILTER, n))

    def theirs(key):
        return torch.stack([golden[f"out{k}.{key}"] for k in range(n)], 1 if golden[f"out0.{key}"].ndim else 0)

    with torch.no_grad():
        x = loss.scaler(golden["obs"])
        golden.check("normalised", x, golden["obs_normalised"], 2e-5)
        mu, sigma = loss.encoder(x)
        z = mu + sigma * theirs("eps")
        for key, value in {"mu": mu, "sigma": sigma, "z": z, "decoded": loss.decoder(z), "w": loss.am_filter(x),
                           "w_target": loss.slow_filter(x), "z_test": loss.encoders[0].module(golden["obs"]),
                           "rec_target": loss.others(loss.joint_moments(golden["obs"]))}.items():
            golden.check(key, value, theirs(key), 2e-5)
        minibatch = TensorDict({OBSERVATION: golden["obs"]}, [rows])
        noise_from(monkeypatch, [theirs("eps")] * 2)
        out = loss(minibatch)
        golden.check("kl", out["loss_kl"] / loss.kl_coef, theirs("kl_sum").sum(), 2e-5)
        golden.check("rec", out["loss_rec"] / loss.rec_coef, theirs("rec_loss_sum").sum(), 2e-5)
        golden.check("norm", loss.am_filter.parameter_norm(), theirs("filter_param_norm_sum").sum(), 2e-5)
        total = out["loss_kl"] + out["loss_rec"] + out["loss_norm"]
        golden.check("total", total, theirs("total").sum(), 2e-5)
        loss.filters = False
        golden.check("rec without filters", loss(minibatch)["loss_rec"] / loss.rec_coef,
                     theirs("rec_loss_nofilter_sum").sum(), 2e-5)
    print(name, {key: f"{value:.1e}" for key, value in golden.largest.items()})


def encodings_setup(golden):
    observations = [golden[f"dataset{k}.obs"] for k in range(2)]
    specs = specs_of(golden, observations[0])
    loss = make_loss(golden, specs)
    load_encoder(golden, loss, "before.")
    load(loss.decoder, golden.stacked("before.decoder{}", DECODER, specs.n_agents))
    load(loss.am_filter, golden.stacked("before.filter{}", FILTER, specs.n_agents))
    load(loss.slow_filter, golden.stacked("target_filter{}", FILTER, specs.n_agents))
    return loss, [x[:, :T].flatten(0, 1) for x in observations]


@pytest.mark.parametrize("name", variants("encodings_update"))
def test_encodings_update(name, monkeypatch):
    """Each agent has rows and noise of its own in the file: train all on each agent's, and compare that agent's."""
    golden = Golden("smpe", name)
    n = len(golden["dataset_ids"])
    for agent in range(n):
        loss, rows = encodings_setup(golden)
        loss.filtered_critic = False
        update = loss.updates("smpe", Sequences(1), optimizer=None, max_grad_norm=10.0)[0]
        noise_from(monkeypatch, [golden["eps"][agent, step].unsqueeze(1).expand(-1, n, -1) for step in range(4)])
        for step in range(4):
            where = agent, step // 2, step % 2
            chosen = rows[golden["dataset_ids"][where]][golden["row_ids"][where]]
            update.step(TensorDict({OBSERVATION: chosen}, [32]))
            for part, network, names in (("encoder", loss.encoder, ENCODER), ("decoder", loss.decoder, DECODER),
                                         ("filter", loss.am_filter, FILTER)):
                for key, ours in names.items():
                    for kind in ("weight", "bias"):
                        theirs = golden[f"grad.step{4 * agent + step}.agent{agent}.{part}.{key}.{kind}"]
                        grad = getattr(getattr(network, ours), kind).grad[agent]
                        golden.check(f"grad {part}", grad, theirs, 5e-4)
        after = {"encoder": golden.weights(f"after.encoder{agent}", ENCODER),
                 "decoder": golden.weights(f"after.decoder{agent}", DECODER),
                 "filter": golden.weights(f"after.filter{agent}", FILTER)}
        heads = golden.weights(f"after.encoder{agent}", {"mu": "mu", "logvar": "logvar"})
        for kind in ("weight", "bias"):
            after["encoder"][f"heads.{kind}"] = torch.cat([heads[f"mu.{kind}"], heads[f"logvar.{kind}"]])
        for (part, weights), network in zip(after.items(), (loss.encoder, loss.decoder, loss.am_filter), strict=True):
            for key, theirs in weights.items():
                golden.check(part, network.state_dict()[key][agent], theirs, 5e-4)
    print(name, {key: f"{value:.1e}" for key, value in golden.largest.items()})


def test_simhash():
    golden = Golden("smpe", "simhash")
    visits = SimHash(1, golden["projection"].shape[0])
    visits.projection.copy_(golden["projection"])
    assert_close(visits.powers.long(), golden["mods"], rtol=0, atol=0)
    assert_close(visits.sizes, golden["bucket_sizes"], rtol=0, atol=0)
    for call in range(4):
        x = golden[f"call{call}.x"].unsqueeze(1)  # one agent
        assert_close(visits.keys(x).squeeze(1), golden[f"call{call}.keys"], rtol=0, atol=0)
        visits.count(x)
        counts = visits(x).squeeze(1)
        assert_close(counts.double(), golden[f"call{call}.counts"], rtol=0, atol=0)
        golden.check("bonus", counts.clamp_min(1).double().rsqrt(), golden[f"call{call}.bonus"], 1e-12)
    assert_close(visits.tables[0].double(), golden["tables"], rtol=0, atol=0)
    print("simhash", golden.largest)


def padded_batch(golden):
    """T transitions of the padded episodes under our keys; ALIVE is True inside an episode."""
    n = golden["batch.obs"].shape[-2]
    batch = TensorDict(batch_size=[10, T])
    batch[OBSERVATION], batch["next", *OBSERVATION] = golden["batch.obs"][:, :T], golden["batch.obs"][:, 1:]
    batch[ACTION] = golden["batch.actions"][:, :T].squeeze(-1)
    batch[ACTION_MASK] = golden["batch.avail_actions"][:, :T].bool()
    batch[RECURRENT] = torch.zeros(10, T, n, WIDTH)
    batch[IS_INIT] = torch.zeros(10, T, 1, dtype=torch.bool)
    batch[IS_INIT][:, 0] = True
    mask = golden["batch.filled"][:, :T].float()
    mask[:, 1:] *= 1 - golden["batch.terminated"][:, : T - 1].float()
    batch[ALIVE] = mask.expand(10, T, n).bool()
    for key in (DONE, TERMINATED):
        batch["next", *key] = golden["batch.terminated"][:, :T].bool().unsqueeze(-1).expand(10, T, n, 1)
    team = golden["batch.reward"][:, :T].unsqueeze(2).expand(10, T, n, 1)
    batch["next", *REWARD] = golden["new_rewards"][:, :T].unsqueeze(-1) if "new_rewards" in golden.arrays else team
    return batch


@pytest.mark.parametrize("name", variants("intrinsic"))
def test_novelty_reward(name, monkeypatch):
    golden = Golden("smpe", name)
    n, steps = golden["batch.obs"].shape[2], golden["batch.obs"].shape[1]
    loss = make_loss(golden, specs_of(golden, golden["batch.obs"]), novelty=number(golden, "z_rew_coeff"))
    load_encoder(golden, loss)
    loss.visits.projection.copy_(torch.stack([golden[f"projection{k}"] for k in range(n)]))
    batch = padded_batch(golden)
    for call in range(2):
        noise = golden[f"call{call}.eps"].permute(1, 2, 0, 3)  # [B, T + 1, n, k]
        noise_from(monkeypatch, [noise])
        bonus = loss.reward_terms(batch)["novelty"].squeeze(-1)
        task = number(golden, "true_rew_coeff") * golden["batch.reward"][:, :T]
        total = task + loss.reward_weights["novelty"] * bonus
        golden.check("reward", total, golden[f"call{call}.rewards"][:, : steps - 1], 1e-6)
    tables = torch.stack([golden[f"tables{k}"] for k in range(n)])
    assert_close(loss.visits.tables.double(), tables, rtol=0, atol=0)
    print(name, golden.largest)


def learner(golden):
    """Everything the recipe's composition would make, with the file's weights."""
    separate = "before.actor.agents.0.fc1.weight" in golden.arrays
    actions = golden["batch.avail_actions"].shape[-1]
    specs = specs_of(golden, golden["batch.obs"], actions)
    n = specs.n_agents
    loss = make_loss(golden, specs)
    load_encoder(golden, loss)
    common = dict(agent_id=True, activation="relu", init="default", device="cpu")
    actor = make_actor(specs, loss.features, cells=[WIDTH], recurrent_dim=WIDTH, head="normal",
                       state_dependent_scale=False, share="none" if separate else "all", **common)
    new_critic = partial(make_critic, cells=[WIDTH, WIDTH], share="all", **common)
    critic = new_critic(specs, {}, centralized=True, recurrent_dim=0)
    load(critic.module, golden.weights("before.critic", CRITIC))
    make_returns = partial(Returns, kind="padded_nstep", gamma=number(golden, "gamma"), lmbda=1.0,
                           n=number(golden, "q_nstep"), target_tau=number(golden, "target_update_interval_or_tau"),
                           standardize_reward=n, mask=ALIVE, mask_rewards=False)
    returns = make_returns(critic, normalize="none")
    load(returns.target.module, golden.weights("before.target_critic", CRITIC))
    # the copy that the loss takes of the central critic is the file's frozen target of the filtered one
    load(critic.module, golden.weights("before.target_critic_w", CRITIC))
    filtered, = loss.estimators(make_learner(make_returns, new_critic, critic))
    load(critic.module, golden.weights("before.critic", CRITIC))
    load(loss.filtered.module.critic, golden.weights("before.critic_w", CRITIC))
    load(loss.am_filter, golden.stacked("before.filter{}", FILTER, n))
    weights = golden.stacked("before.actor.agents.{}", ACTOR, n) if separate else golden.weights("before.actor", ACTOR)
    load(actor[0].module, weights)
    return specs, loss, actor, critic, returns, filtered


def check_estimates(golden, batch, returns):
    golden.check("mask", batch[ALIVE].float(), golden["mask"], 0)
    for key, theirs in ((VALUE_TARGET, "nstep_returns"), (FILTERED[1], "nstep_returns_w")):
        golden.check(theirs, batch[key].squeeze(-1), golden[theirs], 1e-4)
    golden.check("advantages", batch[ADVANTAGE].squeeze(-1) * golden["mask"], golden["advantages"], 1e-4)
    for part in ("mean", "var"):
        ours, theirs = getattr(returns.reward_moments, part).squeeze(-1), golden[f"rew_ms_learner.{part}"]
        golden.check("reward statistics", ours, theirs.expand(len(ours)), 1e-4)


def make_updates(golden, loss, actor, critic):
    """Of actor and critic, and of the filter, with the state of the file's optimiser."""
    lr, clip = number(golden, "lr"), number(golden, "grad_norm_clip")
    adam = partial(torch.optim.Adam, lr=lr)
    losses = {"actor": PolicyLoss(actor, clip=None, entropy_coef=number(golden, "entropy_coef"), mask=ALIVE),
              "critic": ValueLoss(critic, clip=None, kind="l2", mask=ALIVE)}
    # the program's two Adam optimisers of the central critic: one at twice the rate
    first = Update("maa2c", losses, None, max_grad_norm=clip,
                   optimizer={"actor": adam, "critic": partial(torch.optim.Adam, lr=2 * lr)})
    encode, second = loss.updates("smpe", Sequences(1), optimizer=adam, max_grad_norm=clip)
    assert second.optimizers["filter"] is encode.optimizers["filter"]
    named = dict(loss.am_filter.named_parameters())
    for key, square in golden.stacked("before.filter{}_rms_square_avg", FILTER, loss.specs.n_agents).items():
        second.optimizers["filter"].state[named[key]] = {"step": torch.tensor(1.0), "square_avg": square.clone()}
    return first, second


def check_networks(golden, loss, actor, critic, returns, filtered):
    n, separate = loss.specs.n_agents, "before.actor.agents.0.fc1.weight" in golden.arrays
    after = golden.stacked("after.actor.agents.{}", ACTOR, n) if separate else golden.weights("after.actor", ACTOR)
    for what, network, weights in (
        ("actor", actor[0].module, after), ("critic", critic.module, golden.weights("after.critic", CRITIC)),
        ("target critic", returns.target.module, golden.weights("after.target_critic", CRITIC)),
        ("filtered critic", loss.filtered.module.critic, golden.weights("after.critic_w", CRITIC)),
        ("filtered target", filtered.target.module.critic, golden.weights("after.target_critic_w", CRITIC)),
        ("filter", loss.am_filter, golden.stacked("after.filter{}", FILTER, n)),
    ):
        for key, theirs in weights.items():
            golden.check(what, network.state_dict()[key], theirs, 5e-4)
    named = dict(loss.am_filter.named_parameters())
    for key, theirs in golden.stacked("filter{}_grad", FILTER, n).items():
        grad = named[key].grad
        assert_close(theirs if grad is None else grad, theirs, rtol=1e-3, atol=1e-3 * theirs.abs().max().item())
        assert grad is not None or not theirs.any()
    moved = golden.stacked("before.filter{}", FILTER, n)
    assert any((loss.am_filter.state_dict()[key] - moved[key]).abs().max() > 1e-4 for key in moved)


@pytest.mark.parametrize("name", variants("learner_update"))
def test_learner_update(name):
    golden = Golden("smpe", name)
    _, loss, actor, critic, returns, filtered = learner(golden)
    batch = padded_batch(golden)
    batch[BELIEF] = loss.encoders[0].module(batch[OBSERVATION])
    returns(batch)
    filtered(batch)
    check_estimates(golden, batch, returns)

    first, second = make_updates(golden, loss, actor, critic)
    values = critic.module(batch[OBSERVATION]).detach()
    metrics = first.step(batch.select(*first.keys))
    golden.check("critic loss", metrics["loss_value"], golden["stat.critic_loss"].float(), 1e-4)
    golden.check("policy loss", metrics["loss_policy"] + metrics["loss_entropy"], golden["stat.pg_loss"].float(), 1e-4)
    for part in ("critic", "actor"):
        golden.check("gradient norms", metrics[f"grad_norm_{part}"], golden[f"grad_norm.{part}"].float(), 1e-4)
    second.step(batch.select(*second.keys))
    returns.step_target(batch)
    filtered.step_target(batch)
    golden.check("values", (values.squeeze(-1) * golden["mask"]).sum() / golden["mask"].sum(),
                 golden["stat.v_taken_mean"].float(), 1e-4)
    check_networks(golden, loss, actor, critic, returns, filtered)
    assert VALUE in batch.keys(True)
    print(name, {key: f"{value:.1e}" for key, value in golden.largest.items()})
