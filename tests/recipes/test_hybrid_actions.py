"""The hybrid-action recipe: every algorithm with every codec it knows, exact resume, its defaults, what it refuses."""

import re
import shlex
import sys

import pytest
import torch

import recipes.hybrid_actions as recipe
from recipes.hybrid_actions import configure, make_trainer, swap_flags
from recipes.hybrid_checks import check_config, check_specs
from recipes.hybrid_presets import ALGORITHMS, ANY_CODEC, TUNED
from suite.config import run_cli
from suite.losses.codecs import CODECS
from suite.run import MemoryRun
from suite.trainer import Trainer
from tests.batches import make_specs
from tests.runs import differences, metrics, state

COMMON = ["--num-envs", "4", "--steps", "5", "--actor-cells", "8", "--critic-cells", "8", "--eval-episodes", "2",
          "--evaluations", "1", "--quiet", "--no-video", "--loggers", "csv"]
REPLAYED = ["--first-update", "16", "--minibatch-size", "8", "--buffer-size", "60"]
HYAR = ["--codec-options", "warmup=40", "pretrain=4", "bounds_rows=20", "num_cells=8", "refresh_after=2",
        "refresh_every=2", "batch=8", "memory=200"]
PAIRS = [(algorithm, codec) for algorithm in ALGORITHMS for codec in CODECS
         if codec == "none" or algorithm in ANY_CODEC]
CATCH, SPREAD = ["--task", "hybrid/catch_point"], ["--task", "hybrid/particle.spread-2", "--max-steps", "6"]


def words(algorithm, codec, task):
    on_policy = ALGORITHMS[algorithm][0] == "on_policy"
    return [*task, "--algorithm", algorithm, "--codec", codec, *COMMON,
            *(["--epochs", "2", "--minibatch-size", "10"] if on_policy else REPLAYED),
            *(HYAR if codec == "hyar" else [])]


def main(monkeypatch, *given):
    with monkeypatch.context() as patch:
        patch.setattr(sys, "argv", ["recipes/hybrid_actions.py", *given])
        run_cli(recipe.main)


def parsed(*given):
    return recipe.parse_cli(configure, recipe.Config, choosers=recipe.CHOOSERS, prog="", args=[*given])


@pytest.mark.parametrize("task", [CATCH, SPREAD], ids=["one agent", "two agents"])
@pytest.mark.parametrize("algorithm, codec", PAIRS)
def test_every_choice_trains(algorithm, codec, task):
    """Two iterations of learning, after two of warm-up with a learned codec; all that learns has moved."""
    torch.manual_seed(0)
    cfg = parsed(*words(algorithm, codec, task), "--frames", "80" if codec == "hyar" else "40")
    trainer = make_trainer(cfg, MemoryRun())
    before = [p.detach().clone() for loss in trainer.updates[0].losses for p in loss.parameters() if p.requires_grad]
    trainer.train()
    after = [p for loss in trainer.updates[0].losses for p in loss.parameters() if p.requires_grad]
    assert sum(not torch.equal(a, b) for a, b in zip(before, after, strict=True)) > len(before) // 2
    assert trainer.iteration == (4 if codec == "hyar" else 2)
    row = trainer.run.rows[-1]
    assert "eval/success" in row or "particle" in cfg.task
    assert ("eval/success_sampled" in row) == (ALGORITHMS[algorithm][0] == "on_policy" and "particle" not in cfg.task)


def test_the_warm_up_is_random_and_never_replayed():
    cfg = parsed(*words("td3", "hyar", CATCH), "--frames", "80", "--evaluations", "0")
    trainer = make_trainer(cfg, MemoryRun())
    [codec], (own, learn) = trainer.losses, trainer.updates
    replay = own.data.owner
    choices = []
    for k, batch in enumerate(trainer.collector):
        choices.append(batch["agents", "action", "discrete"].float().mean())
        trainer.iterate(batch)
        trainer.iteration += 1
        assert len(replay.buffer) == max(0, k - 1) * 20 and bool(codec.warming) == (k == 0)
        assert len(learn.data.owner.buffer) == (k + 1) * 20
    assert all(0.1 < share < 0.9 for share in choices[:2]), "both choices are drawn"


def test_exploration_falls_with_finished_episodes():
    """From 1 to 0.1 over eight episodes, of all copies together."""
    cfg = parsed(*words("td3", "none", CATCH), "--frames", "40", "--max-steps", "5", "--exploration-start", "1.0",
                 "--exploration-episodes", "8", "--evaluations", "0")
    trainer = make_trainer(cfg, MemoryRun())
    noise = [m for m in trainer.policy.modules() if hasattr(m, "level")]
    levels, ends = [], 0
    for batch in trainer.collector:
        trainer.iterate(batch)
        ends += int(batch["next", "done"].sum())
        levels.append(noise[0].level.item())
        assert levels[-1] == pytest.approx(max(0.1, 1 - 0.9 * ends / 8), abs=1e-6)
    assert ends >= 8 and levels[0] < 1


@pytest.mark.parametrize("algorithm, codec, task", [
    ("td3", "hyar", CATCH), ("ddpg", "hyar", SPREAD), ("td3", "none", CATCH), ("pdqn_td3", "none", CATCH),
    ("hppo", "none", SPREAD)])
@pytest.mark.filterwarnings("ignore:warmup of codec 'hyar'")
def test_extending_a_finished_run_equals_a_longer_run(algorithm, codec, task, tmp_path, monkeypatch):
    """To the last bit: codec, bounds, clocks, buffers, moments, noise, environments; with a learned codec the first
    break is in the middle of its warm-up, the second behind it."""
    given, whole, parts = [*words(algorithm, codec, task), "--evaluations", "0"], tmp_path / "whole", tmp_path / "parts"
    main(monkeypatch, *given, "--frames", "140", "--run-dir", str(whole))
    main(monkeypatch, *given, "--frames", "20", "--run-dir", str(parts))
    if codec == "hyar":
        assert state(parts)["losses"][0]["warming"] and state(parts)["sources"][0]["skip"] == 20
    for frames in ("60", "140"):
        torch.manual_seed(999)  # what else this process draws must not matter
        main(monkeypatch, "--resume", str(parts), "--frames", frames)
    assert metrics(whole) == metrics(parts)
    assert differences(state(whole), state(parts)) == []
    if codec == "hyar":
        found = state(whole)["losses"][0]["_extra_state"]
        assert found["frames"] == 140 and found["episodes"] > 2
        assert state(whole)["updates"]["hyar"]["optimizers"]["codec"]["state"]


def test_one_more_update_for_each_episode_that_ends():
    cfg = parsed(*words("td3", "none", CATCH), "--frames", "60", "--max-steps", "4", "--evaluations", "0",
                 "--update-at-reset")
    trainer = make_trainer(cfg, MemoryRun())
    [update] = trainer.updates
    for batch in trainer.collector:
        before = update.steps
        trainer.iterate(batch)
        ended = int(batch["next", "done"].sum())
        assert ended >= 4 and update.steps - before == 20 + ended


def test_settings_of_the_published_runs():
    cfg = configure({"task": "hybrid/goal", "algorithm": "ddpg", "codec": "hyar"})
    assert (cfg.lr, cfg.critic_lr, cfg.gamma, cfg.tau, cfg.critic_tau) == (1e-5, 1e-3, 0.9, 1e-4, 1e-3)
    assert cfg.policy_delay == 1 and cfg.max_grad_norm == 1.0 and cfg.exploration_start == 1.0
    cfg = configure({"task": "hybrid/hard_move-8"})
    assert (cfg.frames, cfg.codec, cfg.algorithm, cfg.smoothing, cfg.policy_delay) == (1_144_500, "hyar", "td3", 0.1, 2)
    cfg = configure({"algorithm": "td3", "codec": "none"})
    assert cfg.exploration_start == cfg.exploration_end == 0.1 and cfg.smoothing == 0.2
    cfg = configure({"algorithm": "pdqn"})
    assert (cfg.codec, cfg.gamma, cfg.buffer_size, cfg.first_update) == ("none", 0.9, 10_000, 500)
    assert cfg.pass_through and configure({"algorithm": "ddpg"}).codec == "hyar"
    cfg = configure({"algorithm": "hppo"})
    assert (cfg.actor_epochs, cfg.epochs, cfg.steps, cfg.lr, cfg.critic_lr) == (2, 10, 50, 1e-4, 1e-3)


@pytest.mark.parametrize("algorithm", ["td3", "ddpg", "hhqn_td3", "pdqn"])
def test_equal_tuning_is_that_of_hyar(algorithm):
    """What makes the algorithm stays, such as its delay and its warm start, and P-DQN's last probability."""
    for task in ("hybrid/platform", "hybrid/hard_move-4"):
        own = {"algorithm": algorithm, "codec": "none"}
        paper, equal, model = (configure({"task": task} | chosen) for chosen in (own, own | {"tuning": "equal"}, {}))
        same = set(TUNED) - ({"exploration_end"} if algorithm == "pdqn" else set())
        assert paper != equal and all(getattr(equal, name) == getattr(model, name) for name in same)
        for name in ("policy_delay", "pass_through", "frames", "actor_cells"):
            assert getattr(equal, name) == getattr(paper, name)
        assert equal.smoothing == (0.1 if algorithm == "td3" else 0.0)
        assert algorithm != "pdqn" or equal.exploration_end == 0.01


def test_embeddings_alone_have_hyars_settings():
    for task, algorithm in (("hard_move-4", "td3"), ("goal", "ddpg"), ("catch_point", "td3")):
        whole, alone = (configure({"task": f"hybrid/{task}", "algorithm": algorithm, "codec": codec})
                        for codec in ("hyar", "embedding"))
        for name in ("buffer_size", "gamma", "lr", "critic_lr", "tau", "critic_tau", "exploration_start", "smoothing"):
            assert getattr(alone, name) == getattr(whole, name)
        assert alone.codec_options.get("embed_dim") == whole.codec_options.get("embed_dim")


@pytest.mark.parametrize("algorithm", ["td3", "hhqn", "pdqn", "ppo"])
def test_choices_that_are_forbidden_now_and_then_are_for_algorithms_that_know_masks(algorithm):
    cfg = configure({"task": "hybrid/platform", "algorithm": algorithm})
    specs = make_specs("masked", param_mask=torch.ones(5, 2, dtype=torch.bool))
    if algorithm in ("pdqn", "ppo"):
        check_specs(cfg, specs)
    else:
        with pytest.raises(ValueError, match=rf"{algorithm!r} does not know: take one of \['pdqn', 'pdqn_td3', 'ppo'"):
            check_specs(cfg, specs)


LARGE = {("hyar", "td3", "hard_move-4"), ("hyar", "ddpg", "hard_move-4"), ("hyar", "ddpg", "goal"),
         ("hyar", "ddpg", "catch_point"), ("hyar", "ddpg", "simple_move")}
SMALL = {"platform": 10_000, "goal": 20_000, "hard_goal": 20_000}  # of P-DQN


@pytest.mark.parametrize("task", ["platform", "goal", "hard_goal", "catch_point", "simple_move", "hard_move-4"])
@pytest.mark.parametrize("codec, algorithm", [("hyar", "td3"), ("hyar", "ddpg"), ("none", "td3"), ("none", "ddpg"),
                                              ("none", "hhqn"), ("none", "hhqn_td3"), ("none", "pdqn")])
def test_sizes_of_the_published_buffers(task, codec, algorithm):
    cfg = configure({"task": f"hybrid/{task}", "algorithm": algorithm, "codec": codec})
    small = SMALL.get(task, 100_000) if algorithm == "pdqn" else 100_000
    assert cfg.buffer_size == (1_000_000 if (codec, algorithm, task) in LARGE else small)
    assert cfg.first_update == (500 if (algorithm, task) == ("pdqn", "platform") else 128)


def test_a_run_that_ends_before_its_first_update_says_so():
    cfg = parsed(*words("td3", "none", CATCH), "--frames", "10", "--evaluations", "0")
    with pytest.warns(UserWarning, match="10 frames of learning are fewer than the first_update 16"):
        make_trainer(cfg, MemoryRun())
    for frames, said in (("30", "warmup of codec 'hyar' is 40 frames of random actions, but the run has 30: no policy"),
                         ("40", "but the run has 40: no policy is trained; give it more frames, or a shorter warmup"),
                         ("50", "^10 frames of learning are fewer than the first_update 16: no update will be made")):
        cfg = parsed(*words("td3", "hyar", CATCH), "--frames", frames, "--evaluations", "0")
        with pytest.warns(UserWarning, match=said) as caught:
            make_trainer(cfg, MemoryRun())
        assert len(caught) == 1


@pytest.mark.parametrize("given, frames", [
    ([], 210_900), (["--codec-options", "warmup=50000"], 250_000), (["--codec-options", "warmup=5000"], 205_000),
    (["--codec-options", "latent_dim=3", "warmup=50000", "relabel=none"], 250_000),
    (["--codec-options=warmup=50000"], 250_000), (["--codec_options", "warmup=50000", "--tuning", "equal"], 250_000),
    (["--codec-options", "latent_dim=3"], 210_900), (["--codec-options"], 210_000),  # the codec's own 10,000
    (["--codec-options", "warmup=50000", "--frames", "210900"], 210_900),
    (["--frames", "210900", "--codec-options", "warmup=50000"], 210_900),
    (["--task", "hybrid/hard_move-4", "--codec-options", "warmup=50000"], 1_050_000),
    (["--task", "hybrid/vmas.navigation"], 200_000),  # nothing published: the default, of which 10,000 are warm-up
    (["--task", "hybrid/vmas.navigation", "--codec-options", "warmup=50000"], 240_000),
    (["--codec", "none"], 200_000), (["--codec", "embedding"], 200_000)])
def test_a_run_is_as_much_longer_as_its_warm_up(given, frames):
    cfg = parsed(*given)
    assert cfg.frames == frames
    assert "warmup=50000" not in given or cfg.codec_options["warmup"] == 50_000


def test_the_swap_flags_take_no_frames_from_a_warm_up():
    cfg = parsed("--codec-options", "warmup=50000")
    assert parsed(*shlex.split(swap_flags(cfg))).frames == 200_000


def test_the_swap_flags_are_a_run():
    cfg = parsed(*words("td3", "hyar", CATCH))
    other = parsed(*swap_flags(cfg).split())
    assert (other.codec, other.algorithm, other.task) == ("none", "td3", cfg.task)
    assert parsed(*swap_flags(other).split()).codec == "hyar"
    assert (other.num_envs, other.steps, other.actor_cells) == (4, 5, (8,))


def test_the_swap_flags_keep_what_the_other_algorithm_reads():
    cfg = parsed("--algorithm", "hppo", "--task", "hybrid/catch_point", "--clip", "0.1", "--gamma", "0.9", "--frames",
                 "70")
    other = parsed(*shlex.split(swap_flags(cfg)))
    assert (other.codec, other.gamma, other.frames, other.clip) == ("hyar", 0.9, 70, 0.2)


@pytest.mark.parametrize("given", [["--algorithm", "ppo", "--minibatch-size", "512"], ["--exploration-end", "0.5"]])
def test_the_swap_flags_fit_the_other_algorithm(given):
    check_config(parsed(*shlex.split(swap_flags(parsed(*given)))))


@pytest.mark.parametrize("given, message", [
    (["--algorithm", "tdd"], r"unknown algorithm 'tdd'; choose from \['ddpg'"),
    (["--codec", "hyarr"], r"unknown codec 'hyarr'; choose from \['embedding', 'hyar', 'none'\]"),
    (["--algorithm", "pdqn", "--codec", "hyar"], "'pdqn' acts in the hybrid actions themselves: give --codec none"),
    (["--task", "vmas/navigation", "--codec", "none"], "continuous actions, not hybrid ones.*hybrid/vmas.navigation"),
    (["--task", "vmas/navigation"], "has continuous actions, not hybrid ones"),
    (["--task", "hybrid/platfrom"], "unknown hybrid task 'platfrom'.*mean 'platform'"),
    (["--codec-options", "latent_dimm=3"], r"unknown option of codec 'hyar' 'latent_dimm'.*mean 'latent_dim'"),
    (["--codec-options", "latent_dim=0"], "latent_dim of codec 'hyar' must be positive, got 0"),
    (["--codec-options", "warmup=100"], "bounds_rows"),
    (["--codec-options", "warmup=many"], "warmup of codec 'hyar' must be an integer, such as 10000, got 'many'"),
    (["--codec-options", "warmup=-1"], "warmup of codec 'hyar' must be positive, got -1"),
    (["--codec-options", "warmup"], "write options as name=value, got 'warmup'"),
    (["--codec-options", "memory=5000"], "memory"),
    (["--codec-options", "bounds_rows=1"], "bounds_rows of codec 'hyar' must be at least 2: one row has no range"),
    (["--codec-options", "lr_embeddings=big"], "lr_embeddings of codec 'hyar' must be a number or None, got 'big'"),
    (["--first-update", "64"], "minibatch_size 128 is more than first_update 64"),
    (["--task", "foraging/2s-8x8-2p-2f-coop"], r"has discrete actions, not hybrid ones: take a hybrid task \(hyb"),
    (["--task-options", "levels=5"], "levels make 'hybrid/platform' a task with discrete actions: leave them out"),
    (["--codec-options", "agent_id=no"], "agent_id of codec 'hyar' must be True or False, .* got 'no'"),
    (["--codec-options", "latent_dim=3.5"], "latent_dim of codec 'hyar' must be an integer, such as 6, got 3.5"),
    (["--buffer-size", "100"], "buffer_size 100 holds fewer frames than first_update 128 needs"),
    (["--exploration-end", "2.0"], "exploration falls from exploration_start 1.0 to exploration_end 2.0"),
    (["--algorithm", "ppo", "--tau", "0.1"], "algorithm 'ppo' does not use tau: leave it at 0.005"),
    (["--epochs", "3"], "algorithm 'td3' does not use epochs"),
    (["--gamma", "1.5"], "gamma must be between 0 and 1, got 1.5"),
    (["--share", "some"], "share"),
    (["--algorithm", "pdqn", *CATCH, "--pass-through"], r"pass_through is for \['goal', 'platform'"),
    (["--algorithm", "ppo", "--tuning", "equal"], "tuning 'equal' is for algorithms that replay, not for 'ppo'"),
    (["--tuning", "fair"], r"unknown tuning 'fair'; choose from \['equal', 'paper'\]"),
    (["--algorithm", "td3", "--clamp-samples"], "algorithm 'td3' does not use clamp_samples"),
    (["--eval-starts", "fresh", "--evaluations", "0"], "--evaluations 0 makes none: leave one of them out"),
    (["--codec-options", "relabel=None"], r"relabel of codec 'hyar' must be one of \['both', 'discrete', 'none'\]"),
    (["--task-options", "seed=3"], "seed is no task option but a flag of its own: --seed"),
])
def test_wrong_words_and_numbers_are_refused_before_training(given, message, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(Trainer, "train", lambda self: pytest.fail("the training began"))
    with pytest.raises(SystemExit) as caught:
        main(monkeypatch, *given, "--quiet", "--run-dir", str(tmp_path / "r"))
    assert caught.value.code == 2
    printed = " ".join(capsys.readouterr().err.replace("│", " ").split())
    assert re.search(message, printed), printed
    assert not (tmp_path / "r").exists()


def test_the_cooperative_recipe_names_this_one(monkeypatch, capsys):
    import recipes.cooperative as cooperative

    monkeypatch.setattr(sys, "argv", ["recipes/cooperative.py", "--task", "hybrid/catch_point", "--quiet"])
    with pytest.raises(SystemExit):
        run_cli(cooperative.main)
    assert "train on it with python -m recipes.hybrid_actions" in " ".join(capsys.readouterr().err.split())
