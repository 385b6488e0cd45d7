import dataclasses
import math
import shlex

import pytest
import torch
from torch import Tensor

import recipes.cooperative as recipe
from recipes.cooperative_config import Config
from recipes.moa_presets import MOA
from recipes.presets import ALGORITHMS, PRESETS
from suite.config import parse_cli
from suite.losses import STATE_MODELS
from suite.run import MemoryRun
from tests.small import TOY, config, make_toy, timeless, train, weights

DISCRETE = {"is_discrete": True}
CHOICES = [(algorithm, preset, loss, actions) for preset, table in PRESETS.items() for algorithm in table
           for loss in STATE_MODELS for actions in ("discrete", "continuous")
           if ALGORITHMS[algorithm][2] in ("any", actions) and MOA.get(preset, (None,))[0] in (None, loss)
           and preset != "oracle"]  # which needs hidden variables, see test_moa_presets


@pytest.fixture(autouse=True)
def toy(monkeypatch):
    monkeypatch.setattr(recipe, "make_env", make_toy)


def start(cfg):
    """Weights before training."""
    return weights(recipe.make_trainer(cfg, MemoryRun()))


def check(cfg, *, iterations=2):
    """Train; every row is finite, the rows are complete, and every trainable network has moved."""
    before, trainer = start(cfg), train(cfg)
    rows = trainer.run.rows
    assert all(math.isfinite(value) for row in rows for value in row.values())
    assert trainer.iteration == iterations
    names = set().union(*rows)
    assert {"reward/task", "eval/return", "eval/return_greedy", "time/total", "episode/return"} <= names
    assert any(name.startswith(f"{cfg.algorithm}/loss_") for name in names)
    after = weights(trainer)
    owned = {id(p) for update in trainer.updates for params in update.params.values() for p in params}
    modules = [trainer.policy, *(loss for update in trainer.updates for loss in update.losses)]
    named = ((f"{k}.{name}", p) for k, module in enumerate(modules) for name, p in module.named_parameters())
    live = {name for name, p in named if id(p) in owned}
    still = sorted(name for name in live if torch.equal(before[name], after[name]))
    assert live and not still, f"did not move: {still}"
    return trainer


@pytest.mark.parametrize("algorithm, preset, loss, actions", CHOICES, ids=str)
def test_every_choice_trains(algorithm, preset, loss, actions):
    options = DISCRETE if actions == "discrete" else {}
    trainer = check(config(algorithm, preset, loss=loss, task_options=options))
    names = set().union(*trainer.run.rows)
    used = loss == "next_observation"
    assert ("next_observation/loss_prediction" in names) == ("reward/curiosity" in names) == used


@pytest.mark.parametrize("change", [
    {"actor_recurrent_dim": 6}, {"critic_recurrent_dim": 6}, {"actor_recurrent_dim": 6, "critic_recurrent_dim": 5},
    {"actor_recurrent_dim": 6, "critic_recurrent_dim": 5, "loss": "next_observation"},
    {"actor_recurrent_dim": 6, "critic_recurrent_dim": 5, "target_tau": 0.1, "agent_id": True},
    {"critic_recurrent_dim": 5, "centralized": False}, {"critic_recurrent_dim": 5, "task_options": {"state": False}},
    {"share": "roles", "task_options": {"n_agents": 3, "agent_types": [0, 1, 1]}}, {"share": "none"},
    {"agent_id": True},
    {"share": "none", "actor_recurrent_dim": 6, "critic_recurrent_dim": 5}, {"head": "normal"},
    {"head": "normal", "state_dependent_scale": False}, {"state_dependent_scale": False, "share": "none"},
    {"init": "orthogonal", "activation": "relu"}, {"activation": "elu"}, {"task_options": {"state": False}},
    {"returns": "nstep", "n_step": 3}, {"normalize_advantage": "agent"}, {"normalize_advantage": "none"},
    {"normalize_advantage": "minibatch"}, {"normalize_advantage": "minibatch", "recompute_advantage": True},
    {"normalize_advantage": "minibatch", "actor_recurrent_dim": 6},
    {"standardize_reward": True}, {"target_tau": 0.5}, {"recompute_advantage": True}, {"lr_decay": "linear"},
    {"max_grad_norm": None}, {"minibatch_size": None}, {"minibatch_size": 7}, {"clip": None}, {"value_clip": 0.2},
    {"value_loss": "smooth_l1"}, {"value_loss": "huber", "value_clip": 0.2}, {"entropy_coef": 0.0},
    {"team_reward": True}, {"truncate": False}, {"steps": None},
    {"actor_cells": (), "critic_cells": ()}, {"fast_collector": False}, {"autocast": True},
    {"loss": "next_observation", "loss_options": {"curiosity": 0.1, "use_latent": False}},
    {"loss": "next_observation", "reward_weights": {"task": 0.0, "curiosity": 1.0}},
    {"task_options": {"is_discrete": True, "mask": True}},
    {"task_options": {"is_discrete": True, "mask": True}, "actor_recurrent_dim": 6},
], ids=lambda change: ",".join(f"{k}={v}" for k, v in change.items()))
def test_every_switch_of_the_on_policy_side_trains(change):
    check(config(**change))


@pytest.mark.parametrize("algorithm, change", [
    ("qmix", {"task_options": {"is_discrete": True, "mask": True}}),
    ("qmix", {"task_options": {"is_discrete": True, "state": False}}),
    ("vdn", {"share": "none", "task_options": DISCRETE}),
    ("qmix", {"agent_id": True, "share": "roles", "task_options": DISCRETE}),
    ("maddpg", {"share": "none"}), ("maddpg", {"agent_id": True, "task_options": {"state": False}}),
    ("maddpg", {"fast_collector": False}), ("qmix", {"fast_collector": False, "task_options": DISCRETE}),
    ("maddpg", {"team_reward": True, "lr_decay": "linear"}),
], ids=str)
def test_every_switch_of_the_off_policy_side_trains(algorithm, change):
    check(config(algorithm, **change))


# ---------------------------------------------------------------------- seeds


@pytest.mark.parametrize("algorithm, change", [
    ("mappo", {}), ("mappo", {"actor_recurrent_dim": 6, "critic_recurrent_dim": 5}), ("maa2c", {"preset": "epymarl"}),
    ("qmix", {"task_options": DISCRETE}), ("maddpg", {}), ("mappo", {"loss": "next_observation"}),
    ("mappo", {"loss": "smpe"}), ("maa2c", {"preset": "official", "loss": "smpe"}), ("mappo", {"loss": "moa"}),
], ids=str)
def test_a_seed_decides_every_number(algorithm, change):
    cfg = config(algorithm, change.pop("preset", "default"), frames=80, **change)
    first, again, other = train(cfg), train(cfg), train(dataclasses.replace(cfg, seed=2))
    assert timeless(first) == timeless(again)
    assert all(torch.equal(weights(first)[name], weights(again)[name]) for name in weights(first))
    assert all(a != b for a, b in zip(timeless(first), timeless(other), strict=True))


@pytest.mark.parametrize("change", [{}, {"actor_recurrent_dim": 6},
                                    {"task_options": {"is_discrete": True, "mask": True}}], ids=str)
def test_both_collectors_train_alike(change):
    fast, stock = (train(config(frames=80, fast_collector=choice, **change)) for choice in (True, False))
    assert timeless(fast) == timeless(stock)


@pytest.mark.parametrize("algorithm, options", [("mappo", {}), ("qmix", DISCRETE), ("maddpg", {})])
def test_evaluation_changes_nothing(algorithm, options):
    often, never = (train(config(algorithm, frames=80, evaluations=count, task_options=options)) for count in (4, 0))
    rows = [row for row in timeless(often) if not any(key.startswith("eval/") for key in row)]
    assert rows == timeless(never) and len(timeless(often)) == len(rows) + 5
    assert all(torch.equal(weights(often)[name], weights(never)[name]) for name in weights(often))


# ---------------------------------------------------------------------- what an iteration does


def test_frames_are_rounded_up_to_whole_batches():
    assert [train(config(frames=frames)).frames for frames in (1, 20, 21, 40)] == [20, 20, 40, 40]


@pytest.mark.parametrize("algorithm, change", [
    ("mappo", {}), ("ippo", {"loss": "next_observation"}),
    ("mappo", {"actor_recurrent_dim": 6, "critic_recurrent_dim": 5}),
    ("maa2c", {"preset": "epymarl"}), ("mappo", {"task_options": {"is_discrete": True, "mask": True}}),
    ("maa2c", {"preset": "official", "loss": "smpe"}), ("mappo", {"preset": "fixed", "loss": "smpe"}),
    ("mappo", {"loss": "smpe", "loss_options": {"observation_novelty": 0.1, "bonus_belief": "sample"}}),
    ("mappo", {"loss": "moa", "loss_options": {"curiosity": 0.1, "policy_latent": "sample"}}),
], ids=str)
def test_no_host_synchronisation_between_batch_and_log(algorithm, change, monkeypatch):
    """One synchronisation per iteration, where the metrics become numbers."""
    trainer = recipe.make_trainer(config(algorithm, change.pop("preset", "default"), **change), MemoryRun())
    batch = next(iter(trainer.collector))
    calls = []
    for name in ("item", "tolist", "__bool__", "__int__", "__float__", "__index__", "numpy", "nonzero", "cpu"):
        original = getattr(Tensor, name)
        monkeypatch.setattr(Tensor, name, lambda self, *args, _name=name, _original=original, **kwargs:
                            (calls.append(_name), _original(self, *args, **kwargs))[1])
    torch.zeros(1).item()
    assert calls == ["item"], "the count works"
    calls.clear()
    metrics = trainer.iterate(batch)
    assert calls == []
    trainer._to_host(metrics)
    assert calls == ["tolist"]


def test_reward_weights_reach_the_reward():
    plain = config(loss="next_observation")
    trainer = recipe.make_trainer(dataclasses.replace(plain, reward_weights={"task": 2.0, "curiosity": 3.0}),
                                  MemoryRun())
    assert trainer.reward_weights == {"task": 2.0, "curiosity": 3.0}
    assert recipe.make_trainer(plain, MemoryRun()).reward_weights == {"task": 1.0, "curiosity": 0.0}
    by_option = dataclasses.replace(plain, loss_options={"curiosity": 0.5})
    assert recipe.make_trainer(by_option, MemoryRun()).reward_weights == {"task": 1.0, "curiosity": 0.5}


@pytest.mark.parametrize("preset, algorithm", [("official", "maa2c"), ("paper", "maa2c"), ("fixed", "mappo")])
def test_a_state_model_of_the_other_agents_shows_its_numbers(preset, algorithm):
    """The rewards, the three losses, the filter, the filtered critic; the belief acts and the critic does without."""
    cfg = config(algorithm, preset, loss="smpe", task_options=DISCRETE | {"arrive": 0.5},
                 loss_options={"novelty": 0.2, "observation_novelty": 0.1, "filter_every": 1})
    trainer = train(cfg)
    expected = {"reward/task", "reward/novelty", "reward/observation_novelty", "smpe/loss_rec", "smpe/loss_kl",
                "smpe/loss_norm", "smpe/reconstruction", "smpe/kl_per_unit", "smpe/filter", "smpe_critic/loss_value",
                f"{algorithm}/loss_policy", f"{algorithm}/loss_value"}
    for row in (row for row in trainer.run.rows if "reward/task" in row):
        assert expected <= set(row), expected - set(row)
        assert 0 < row["reward/novelty"] <= 1 and 0.1 <= row["smpe/filter"] <= 1
    assert trainer.reward_weights == {"task": 1.0, "novelty": 0.2, "observation_novelty": 0.1}
    belief = ("agents", "belief")
    assert belief in trainer.updates[0].parts["actor"][0].in_keys
    assert not any(belief in loss.in_keys for update in trainer.updates for part, group in update.parts.items()
                   for loss in group if part != "actor")
    assert [update.name for update in trainer.updates] == [algorithm, "smpe", "smpe_critic"]
    assert [update.early for update in trainer.updates] == [False, True, False] and len(trainer.estimators) == 2


def test_a_state_model_warns_of_schedules_that_never_come_due():
    options = {"encode_every": 80, "copy_every": 2000}
    with pytest.warns(UserWarning, match="loss 'smpe': .*_every is .* episodes of 6 steps, .* but the run has 40") as w:
        recipe.make_trainer(config(loss="smpe", loss_options=options), MemoryRun())
    assert [("encode_every is 80" in str(x.message), "copy_every is 2000" in str(x.message)) for x in w] == [
        (True, False), (False, True)]


def test_exploration_falls_with_the_frames():
    trainer = train(config("qmix", frames=60, task_options=DISCRETE, exploration_frames=40))
    assert trainer.policy[-1].module.level.item() == pytest.approx(0.05)
    trainer = train(config("qmix", frames=20, task_options=DISCRETE, exploration_frames=40))
    assert trainer.policy[-1].module.level.item() == pytest.approx((1 + 0.05) / 2)


def test_replay_waits_for_its_warmup():
    rows = train(config("maddpg", frames=80, warmup=50, buffer_size=60)).run.rows
    learned = [row["frames"] for row in rows if "maddpg/loss_value" in row]
    assert learned == [60, 80]


def test_learning_rate_falls_linearly_for_the_algorithm_only():
    """Four iterations: the last is made with a quarter of the rate, and the next one's would be 0."""
    cfg = config(frames=80, lr=0.01, lr_decay="linear", loss="next_observation", loss_options={"lr": 0.02})
    trainer = recipe.make_trainer(cfg, MemoryRun())
    seen = []

    def look(batch):
        seen.append({u.name: {group["lr"] for o in u.optimizers.values() for group in o.param_groups}
                     for u in trainer.updates})

    trainer.refresh.append(look)
    trainer.train()
    assert [list(row["mappo"]) for row in seen] == [pytest.approx([0.01 * left]) for left in (1, 0.75, 0.5, 0.25)]
    assert [row["next_observation"] for row in seen] == [{0.02}] * 4


def test_maddpg_clips_and_logs_its_networks_apart():
    trainer = train(config("maddpg"))
    names = set().union(*trainer.run.rows)
    assert {"maddpg/grad_norm_actor", "maddpg/grad_norm_critic"} <= names and "maddpg/grad_norm" not in names
    assert trainer.updates[0].params.keys() == trainer.updates[0].optimizers.keys() == {"actor", "critic"}


@pytest.mark.parametrize("cfg", [
    config(), config(loss="next_observation", loss_options={"latent_dim": 3}, reward_weights={"curiosity": 0.1}),
    config("maa2c", "epymarl", seed=7, run_dir="somewhere", overwrite=True), config("ippo", "benchmarl", threads=2),
    config("maddpg", fast_collector=False, video=False, team_reward=True, max_grad_norm=None),
    config("qmix", task_options=DISCRETE | {"agent_types": [0, 1], "kind": "1", "word": "two words"}),
], ids=lambda cfg: f"{cfg.algorithm}-{cfg.preset}-{cfg.loss}")
def test_the_printed_swap_is_this_run_with_another_loss(cfg):
    """What a shell makes of the line, parsed."""
    words = shlex.split(recipe.swap_flags(cfg))
    found = parse_cli(recipe.configure, Config, choosers=("algorithm", "preset", "resume"), prog="p", args=words)
    assert found.loss != cfg.loss and {found.loss, cfg.loss} == {"none", "next_observation"}
    assert found == dataclasses.replace(cfg, loss=found.loss, loss_options={}, reward_weights={}, run_dir=None,
                                        overwrite=False)
    assert {"--task", "--algorithm", "--loss"} <= set(words) and "--gamma" not in words


def test_advantages_of_one_minibatch_are_those_of_the_batch():
    """A first update on the whole batch is the same either way, and not that without; on parts of it, it is not."""
    def moved(kind, size):
        trainer = recipe.make_trainer(config(normalize_advantage=kind, minibatch_size=size, clip=None), MemoryRun())
        trainer.iterate(next(iter(trainer.collector)))
        return torch.cat([p.detach().flatten() for p in trainer.policy.parameters()])

    assert torch.allclose(moved("batch", None), moved("minibatch", None), atol=1e-6)
    assert not torch.allclose(moved("none", None), moved("minibatch", None), atol=1e-4)
    assert not torch.allclose(moved("batch", 5), moved("minibatch", 5), atol=1e-4)


def test_the_target_critic_follows_the_critic():
    trainer = recipe.make_trainer(config(target_tau=0.5), MemoryRun())
    [advantage] = trainer.estimators
    before = [p.clone() for p in advantage.target.parameters()]
    trainer.iterate(next(iter(trainer.collector)))
    for old, new, critic in zip(before, advantage.target.parameters(), advantage.value_network.parameters(),
                                strict=True):
        assert torch.allclose(new, (old + critic) / 2) and not torch.equal(old, critic)


def test_the_task_name_of_these_tests_is_unknown_outside_them(monkeypatch):
    monkeypatch.undo()
    with pytest.raises(ValueError, match="unknown task 'toy/walk'"):
        train(config(task=TOY))
