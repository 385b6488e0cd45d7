import dataclasses

import pytest

from recipes.cooperative import configure, untouched
from recipes.cooperative_config import Config
from recipes.presets import PRESETS
from recipes.smpe_presets import SMPE, settings
from suite.config import as_flags, parse_cli
from suite.losses import SMPELoss
from suite.specs import Specs

CHOOSERS = ("algorithm", "preset", "loss", "task", "resume")
TASKS = {"foraging": "foraging/2s-9x9-3p-2f-coop", "warehouse": "warehouse/tiny-2ag-hard",
         "particle": "particle/spread-3", "vmas": "vmas/simple_spread"}


def parse(*words):
    return parse_cli(configure, Config, choosers=CHOOSERS, prog="p", args=list(words))


def smpe(preset, family, algorithm="maa2c", *words):
    return parse("--preset", preset, "--algorithm", algorithm, "--loss", "smpe", "--task", TASKS[family], *words)


# the table of the program's shipped configurations: foraging, warehouse, particle; other families as particle
@pytest.mark.parametrize("name, foraging, warehouse, particle", [
    ("share", "all", "all", "none"), ("actor_cells", (128,), (64,), (128,)), ("actor_recurrent_dim", 128, 64, 128),
    ("critic_cells", (128, 128), (64, 64), (128, 128)), ("frames", 10_050_000, 40_050_000, 10_050_000),
    *[(name, value, value, value) for name, value in {
        "num_envs": 10, "steps": None, "gamma": 0.99, "n_step": 5, "entropy_coef": 0.01, "max_grad_norm": 10.0,
        "target_tau": 0.01, "standardize_reward": True, "agent_id": True, "lr": 5e-4, "critic_lr": 1e-3,
        "returns": "padded_nstep", "whole_episodes": True, "mask_padding": False, "normalize_advantage": "none",
        "epochs": 1, "minibatch_size": None, "clip": None, "adam_eps": 1e-8, "activation": "relu", "team_reward": True,
        "centralized": True, "critic_recurrent_dim": 0, "evaluations": 200, "eval_episodes": 100, "init": "default",
    }.items()],
])
def test_the_recipe_of_the_program(name, foraging, warehouse, particle):
    for family, value in (("foraging", foraging), ("warehouse", warehouse), ("particle", particle), ("vmas", particle)):
        assert getattr(smpe("official", family), name) == value, family


@pytest.mark.parametrize("name, foraging, warehouse, particle", [
    ("latent_dim", 32, 32, 64), ("filter_layers", 1, 1, 2), ("clip_min", 0.3, 0.1, 0.1), ("novelty", 0.1, 0.001, 0.0),
    ("rec_coef", 0.1, 1.0, 1.0), ("norm_coef", 0.5, 0.1, 0.1), ("kl_coef", 0.1, 0.1, 0.1), ("lr", 5e-4, 5e-4, 5e-4),
    ("lr_filter", 5e-4, 5e-5, 5e-4), ("filter_every", 1, 0, 10), ("copy_every", 2000, 6000, 6000),
])
def test_the_loss_of_the_program(name, foraging, warehouse, particle):
    for family, value in (("foraging", foraging), ("warehouse", warehouse), ("particle", particle), ("vmas", particle)):
        assert smpe("official", family).loss_options[name] == value, family


def test_what_the_program_has_everywhere_is_the_default_of_the_loss():
    """225 steps of 32 rows every 80 episodes, on the last 500; clamp up to 1; V_k's rate has no effect."""
    specs = Specs(n_agents=3, obs_dim=5, action_dim=5, discrete=True, agent_types=(0,) * 3, horizon=50)
    for family in TASKS:
        loss = SMPELoss(specs, **smpe("official", family).loss_options)
        assert (loss.encode_every, loss.encode_steps, loss.encode_rows, loss.memory) == (4000, 225, 32, 25_000)
        assert loss.am_filter.high == 1.0 and loss.lr_filtered_critic == 0.0 and not loss.train_filtered_critic
        assert "lr_filtered_critic" not in smpe("official", family).loss_options


@pytest.mark.parametrize("preset", ["paper", "fixed"])
@pytest.mark.parametrize("family, rate", [("foraging", 5e-5), ("warehouse", 5e-7), ("particle", 5e-7), ("vmas", 5e-7)])
def test_the_filter_has_the_rate_of_the_critics_loss_where_it_has_an_effect(preset, family, rate):
    cfg, official = smpe(preset, family), smpe("official", family)
    assert cfg.loss_options["lr_filtered_critic"] == rate and cfg.loss_options["preset"] == preset
    assert cfg.loss_options["filter_every"] == max(1, official.loss_options["filter_every"])
    same = official.loss_options.keys() - {"preset", "filter_every"}
    assert all(cfg.loss_options[name] == official.loss_options[name] for name in same)


def test_the_presets_differ_in_returns_padding_and_rates():
    paper, fixed, official = (smpe(preset, "foraging") for preset in ("paper", "fixed", "official"))
    assert [(cfg.returns, cfg.n_step) for cfg in (paper, fixed, official)] == [
        ("nstep", 1), ("nstep", 5), ("padded_nstep", 5)]
    assert [cfg.whole_episodes for cfg in (paper, fixed, official)] == [False, False, True]
    assert [cfg.mask_padding for cfg in (paper, fixed, official)] == [True, True, False]
    assert [cfg.critic_lr for cfg in (paper, fixed, official)] == [None, None, 1e-3]


@pytest.mark.parametrize("preset", SMPE)
def test_mappo_has_its_own_numbers_and_the_inputs_that_acted(preset):
    cfg = smpe(preset, "foraging", "mappo")
    assert (cfg.lr, cfg.entropy_coef, cfg.epochs, cfg.clip) == (3e-4, 0.001, 4, 0.2)
    assert cfg.critic_lr == (6e-4 if preset == "official" else None)
    assert cfg.loss_options["reencode"] is False and "reencode" not in smpe(preset, "foraging").loss_options


def test_the_critic_of_the_program_has_twice_the_rate():
    for algorithm in SMPE["official"]:
        cfg = smpe("official", "particle", algorithm)
        assert cfg.critic_lr == 2 * cfg.lr


@pytest.mark.parametrize("preset", SMPE)
def test_another_loss_has_none_of_the_options(preset):
    for words in ([], ["--loss", "next_observation"]):
        cfg = parse("--preset", preset, "--task", TASKS["warehouse"], *words)
        assert cfg.loss_options == {} and cfg.actor_cells == (64,) and cfg.frames == 40_050_000
    assert "loss_options" not in settings(preset, "maa2c", "none", TASKS["foraging"])


@pytest.mark.parametrize("preset", SMPE)
def test_the_usual_algorithm(preset):
    assert parse("--preset", preset).algorithm == "maa2c" and parse("--preset", "epymarl").algorithm == "mappo"
    assert parse("--preset", preset, "--algorithm", "mappo").algorithm == "mappo"
    assert sorted(PRESETS[preset]) == ["maa2c", "mappo"]
    with pytest.raises(ValueError, match=rf"preset '{preset}' has no algorithm 'qmix'; it has \['maa2c', 'mappo'\]"):
        parse("--preset", preset, "--algorithm", "qmix")


def test_options_of_the_user_are_added_to_the_presets():
    cfg = smpe("official", "foraging", "maa2c", "--loss-options", "novelty=0.7", "encode_every=5")
    assert cfg.loss_options == smpe("official", "foraging").loss_options | {"novelty": 0.7, "encode_every": 5}
    assert smpe("official", "foraging", "maa2c", "--loss-options", "preset=fixed").loss_options["preset"] == "fixed"
    assert smpe("official", "foraging", "maa2c", "--loss-options").loss_options == {}, "none at all clears them"
    assert parse("--loss", "smpe", "--loss-options", "novelty=0.7").loss_options == {"novelty": 0.7}


@pytest.mark.parametrize("order", [1, -1])
def test_the_order_of_the_flags_does_not_matter(order):
    pairs = [["--task", TASKS["warehouse"]], ["--loss", "smpe"], ["--preset", "paper"], ["--gamma", "0.9"]][::order]
    cfg = parse(*[word for pair in pairs for word in pair])
    assert cfg == dataclasses.replace(smpe("paper", "warehouse"), gamma=0.9)


@pytest.mark.parametrize("preset", SMPE)
@pytest.mark.parametrize("family", TASKS)
def test_every_preset_builds_its_loss_and_comes_back_from_flags(preset, family):
    for algorithm in SMPE[preset]:
        cfg = smpe(preset, family, algorithm)
        assert set(cfg.loss_options) <= set(SMPELoss.option_names())
        changed = dataclasses.replace(cfg, gamma=0.5, loss_options=cfg.loss_options | {"kl_coef": 0.3})
        words = as_flags(changed, untouched(changed), always=["task", "algorithm", "loss", "preset"])
        assert parse(*words) == changed
