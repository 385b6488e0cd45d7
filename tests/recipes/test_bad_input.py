"""Every wrong word or number is refused before training, with what was given and what is allowed; no folder is left."""

import re
import sys

import pytest
import torch

import recipes.cooperative as recipe
from suite.config import run_cli
from suite.losses import NextObservationLoss
from suite.run import stored_run
from suite.trainer import Trainer
from tests.small import make_toy

TINY = ["--num-envs", "2", "--steps", "4", "--max-steps", "4", "--frames", "16", "--minibatch-size", "4",
        "--actor-cells", "4", "--eval-episodes", "2", "--evaluations", "1",
        "--quiet", "--no-video"]
TOY = ["--task", "toy/walk"]
REPLAYED = [*TOY, "--algorithm", "qmix", "--task-options", "is_discrete=True"]


def main(monkeypatch, *words):
    """The command line, in this process."""
    monkeypatch.setattr(sys, "argv", ["recipes/cooperative.py", *words])
    run_cli(recipe.main)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path / "r"


@pytest.fixture
def toy(monkeypatch):
    monkeypatch.setattr(recipe, "make_env", make_toy)


@pytest.fixture
def no_training(monkeypatch):
    def train(self):
        raise AssertionError("the training began")

    monkeypatch.setattr(Trainer, "train", train)


def refused(monkeypatch, capsys, folder, words, message):
    with pytest.raises(SystemExit) as caught:
        main(monkeypatch, *TINY, "--run-dir", str(folder), *words)
    assert caught.value.code == 2
    printed = " ".join(capsys.readouterr().err.replace("│", " ").split())
    assert re.search(message, printed), printed
    assert not folder.exists()


# the real doors: names of tasks and their options
@pytest.mark.parametrize("words, message", [
    (["--task", "vmass/navigation"],
     r"unknown task 'vmass/navigation'.*\['foraging', 'gymnasium', .*'vmas', 'warehouse'\].*mean 'vmas'"),
    (["--task", "navigation"], r"unknown task 'navigation': write 'family/name'.*'vmas'"),
    (["--task", "vmas/navigatoin"], r"'navigatoin'.*balance.*'navigation'"),
    (["--task", "vmas/navigation", "--task-options", "n_agent=3"], r"'n_agent'.*'?n_agents'?"),
    (["--task", "vmas/navigation", "--task-options", "continuous_actions=no"],
     "continuous_actions of vmas/navigation must be True or False, got 'no'"),
    (["--algorithm", "maddpg", "--task-options", "continuous_actions=false"],
     "algorithm 'maddpg' needs continuous actions.*'qmix'"),
    (["--device", "tpu9"], r"unknown device 'tpu9'; write 'cpu', 'cuda'"),
    (["--num-envs", "0"], "num_envs must be a positive integer, got 0"),
    (["--num-envs", "-4"], "num_envs must be a positive integer, got -4"),
    (["--max-steps", "0"], "max_steps must be a positive integer, got 0"),
    (["--algorithm", "qmix", "--num-envs", "2"],
     r"algorithm 'qmix' needs discrete actions, but 'vmas/navigation' has continuous "
     r"ones \(vmas: --task-options continuous_actions=False\); algorithms for continuous actions: .*'maddpg', 'mappo'"),
    (["--algorithm", "maddpg", "--task-options", "continuous_actions=False"],
     "algorithm 'maddpg' needs continuous actions.*'qmix'"),
])
def test_tasks_and_their_options(words, message, folder, monkeypatch, capsys, no_training):
    refused(monkeypatch, capsys, folder, words, message)


@pytest.mark.skipif(torch.cuda.is_available(), reason="a CUDA device is present")
def test_a_device_that_is_not_there(folder, monkeypatch, capsys, no_training):
    refused(monkeypatch, capsys, folder, ["--device", "cuda"],
            "device 'cuda' was asked for, but no CUDA device is present")


@pytest.mark.parametrize("words, message", [
    ([*TOY, "--algorithm", "mapp"], r"unknown algorithm 'mapp'; choose from \['ia2c', .*'vdn'\]. Did you mean 'mappo'"),
    ([*TOY, "--loss", "moaa"], r"unknown loss 'moaa'; choose from \[.*'next_observation', 'none'"),
    ([*TOY, "--preset", "epymarll"], r"unknown preset 'epymarll'; choose from \['benchmarl', .*'shuffled'\]"),
    ([*TOY, "--preset", "benchmarl", "--algorithm", "vdn"], "preset 'benchmarl' has no algorithm 'vdn'; it has"),
    ([*TOY, "--loss", "next_observation", "--loss-options", "latent_dm=3"],
     r"unknown option of loss 'next_observation' 'latent_dm'; choose from \['coef', .*'latent_dim'.*mean 'latent_dim'"),
    ([*TOY, "--loss-options", "coef=3"], r"loss 'none' has no options, got \['coef'\]"),
    ([*TOY, "--loss", "next_observation", "--loss-options", "coef=0.5", "coef=0.1"],
     "option 'coef' is given twice: 0.5 and 0.1"),
    ([*TOY, "--loss", "smpe", "--loss-options", "filters=false", "filter_layers=2"],
     "filter_layers of loss 'smpe' is read by nobody here: give filters=True, or leave it out"),
    ([*TOY, "--no-mask-padding"], "--no-mask-padding is of padded steps, and there are none: give --whole-episodes"),
    ([*TOY, "--eval-starts", "fresh", "--evaluations", "0"], "--evaluations 0 makes none: leave one of them out"),
    ([*TOY, "--loss", "moa", "--loss-options", "memory=gru", "memory_chunk=3"],
     "chunks of 3 steps do not divide a batch of 4 steps"),
    ([*TOY, "--loss", "next_observation", "--loss-options", "latent_dim=0"],
     "latent_dim, epochs and lr must be positive, got 0"),
    ([*TOY, "--reward-weights", "style=1"], r"unknown reward term 'style'; choose from \['task'\]"),
    ([*TOY, "--minibatch-size", "9"], r"minibatch_size 9 is larger than the batch of 8 frames \(num_envs \* steps\)"),
    ([*TOY, "--minibatch-size", "0"], "minibatch_size must be positive, got 0"),
    ([*TOY, "--frames", "0"], "frames must be positive, got 0"),
    ([*TOY, "--steps", "0"], "steps must be positive, got 0"),
    ([*TOY, "--gamma", "1.5"], "gamma must be between 0 and 1, got 1.5"),
    ([*TOY, "--max-grad-norm", "0"], "max_grad_norm must be positive, got 0"),
    ([*TOY, "--threads", "0"], "threads must be positive, got 0"),
    ([*TOY, "--task-options", "seed=3"], "seed is no task option but a flag of its own: --seed"),
    ([*TOY, "--head", "beta"], "beta.*--head.*tanh_normal"),
    ([*TOY, "--learning-rate", "0.1"], "[Uu]nrecognized.*--learning-rate"),
    ([*TOY, "--lr", "fast"], "--lr.*fast|fast.*--lr"),
    ([*TOY, "--loggers", "csvv"], "csvv.*--loggers.*tensorboard"),
    ([*REPLAYED, "--warmup", "9", "--minibatch-size", "10"],
     "needs minibatch_size <= warmup <= buffer_size, got 10, 9, 200000"),
    ([*REPLAYED, "--warmup", "9", "--buffer-size", "8"], "needs minibatch_size <= warmup <= buffer_size, got 4, 9, 8"),
    ([*REPLAYED, "--minibatch-size", "None"], "needs minibatch_size <= warmup"),
    ([*REPLAYED, "--actor-recurrent-dim", "4"], "'qmix' has no recurrent networks"),
    ([*REPLAYED, "--epochs", "3"], "algorithm 'qmix' does not use epochs: leave it at 10"),
    ([*REPLAYED, "--exploration-start", "0.1", "--exploration-end", "0.2"],
     "exploration falls from exploration_start 0.1 to exploration_end 0.2, but 0 <= exploration_end <= "
     "exploration_start <= 1 is needed"),
    ([*REPLAYED, "--exploration-start", "1.5"], "exploration_start 1.5 .* exploration_start <= 1 is needed"),
    ([*REPLAYED, "--critic-cells", "3"], r"algorithm 'qmix' does not use critic_cells: leave it at \(64, 64\)"),
    ([*REPLAYED, "--no-centralized"], "algorithm 'qmix' does not use centralized: leave it at True"),
    ([*TOY, "--task-options", "is_discrete=True", "--head", "normal"],
     "a task with discrete actions does not use head: leave it at 'tanh_normal'"),
    ([*TOY, "--warmup", "99"], "algorithm 'mappo' does not use warmup: leave it at 5000"),
    ([*TOY, "--reward-weights", "task=much"], "the weight of reward term 'task' must be a finite number, got 'much'"),
    ([*TOY, "--actor-cells", "8", "0"], "actor_cells must be positive, got 0"),
    (["--resume", "nowhere"], "nowhere is not a run folder: it has no config.json"),
], ids=lambda x: " ".join(x[2:]) if isinstance(x, list) else "")
def test_words_and_numbers(words, message, folder, monkeypatch, capsys, toy, no_training):
    refused(monkeypatch, capsys, folder, words, message)


# ---------------------------------------------------------------------- folders


def contents(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_an_existing_run_is_refused_and_stays_as_it_is(folder, monkeypatch, capsys, toy):
    main(monkeypatch, *TINY, *TOY, "--run-dir", str(folder))
    before = contents(folder)
    with pytest.raises(SystemExit):
        main(monkeypatch, *TINY, *TOY, "--run-dir", str(folder))
    expected = f"{folder} exists: continue it with --resume {folder}, or replace it with --overwrite"
    assert expected in capsys.readouterr().err
    with pytest.raises(SystemExit):  # a wrong word beside --overwrite must not cost the old run
        main(monkeypatch, *TINY, *TOY, "--run-dir", str(folder), "--overwrite", "--loss-options", "x=1")
    assert contents(folder) == before
    main(monkeypatch, *TINY, *TOY, "--run-dir", str(folder), "--overwrite", "--seed", "5")
    assert stored_run(folder)["config"]["seed"] == 5


def test_flags_that_contradict_resume_are_refused(folder, monkeypatch, capsys, toy):
    main(monkeypatch, *TINY, *TOY, "--run-dir", str(folder))
    before = contents(folder)
    for words, message in ((["--overwrite"], "--resume continues a run and --overwrite replaces it: give one of them"),
                           (["--run-dir", "other"], "so --run-dir other has no use")):
        with pytest.raises(SystemExit) as caught:
            main(monkeypatch, "--resume", str(folder), *words)
        assert caught.value.code == 2 and message in capsys.readouterr().err
    assert contents(folder) == before


def test_a_run_of_the_stock_collector_says_first_that_it_cannot_be_resumed(folder, monkeypatch, capsys, toy):
    reason = "TorchRL's collector (fast_collector=False) does not save open episodes"
    said = []
    train = Trainer.train
    monkeypatch.setattr(Trainer, "train", lambda self: (said.append(capsys.readouterr().err), train(self))[1])
    main(monkeypatch, *TINY, *TOY, "--run-dir", str(folder), "--no-fast-collector")
    assert f"note: this run cannot be resumed: {reason}" in said[0]
    printed = capsys.readouterr().out
    assert f"resume   not possible: {reason}\n" in printed and "--resume" not in printed
    for words in (["--resume", str(folder)], ["--resume", str(folder), "--fast-collector"]):
        with pytest.raises(SystemExit) as caught:
            main(monkeypatch, *words)
        assert caught.value.code == 2 and f"{folder} cannot be resumed: {reason}" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(monkeypatch, *TINY, *TOY, "--run-dir", str(folder))
    error = capsys.readouterr().err
    assert f"{folder} exists: it cannot be resumed ({reason}); replace it with --overwrite" in error


def test_resume_with_another_config_lists_the_differences(folder, monkeypatch, capsys, toy):
    main(monkeypatch, *TINY, *TOY, "--run-dir", str(folder))
    before = contents(folder)
    with pytest.raises(SystemExit) as caught:
        main(monkeypatch, "--resume", str(folder), "--lr", "0.5", "--actor-cells", "6", "6", "--frames", "32")
    printed = capsys.readouterr().err
    assert caught.value.code == 2 and "with another config: " in printed and "What may change: --frames, " in printed
    assert "actor_cells: [4] -> [6, 6]" in printed and re.search(r"lr: \S+ -> 0.5", printed)
    assert contents(folder) == before


def test_a_run_whose_checkpoints_are_all_broken_says_so(folder, monkeypatch, capsys, toy):
    main(monkeypatch, *TINY, *TOY, "--run-dir", str(folder))
    for path in (folder / "checkpoints").glob("*.pt"):
        path.write_bytes(path.read_bytes()[:99])
    with pytest.raises(SystemExit) as caught, pytest.warns(UserWarning, match="is broken"):
        main(monkeypatch, "--resume", str(folder), "--frames", "32")
    assert caught.value.code == 2 and "no whole checkpoint" in capsys.readouterr().err


def test_a_disk_that_fills_up_ends_the_run_with_one_line(folder, monkeypatch, capsys, toy):
    """The checkpoint of the beginning is written, the one at the end is not."""
    save, count = torch.save, []

    def full(*args, **kwargs):
        count.append(1)
        if len(count) > 1:
            raise OSError(28, "No space left on device")
        return save(*args, **kwargs)

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(SystemExit) as caught:
        main(monkeypatch, *TINY, *TOY, "--run-dir", str(folder))
    printed = capsys.readouterr().err
    assert caught.value.code == 2 and re.search("could not write .*000000002.*No space left.*Still there: .*000000000",
                                                printed)
    monkeypatch.undo()
    monkeypatch.setattr(recipe, "make_env", make_toy)
    main(monkeypatch, "--resume", str(folder))
    assert recipe.Run(folder, stored_run(folder)["config"], resume=True).state["iteration"] == 2


def test_a_run_folder_that_cannot_be_made(tmp_path, monkeypatch, capsys, toy):
    (tmp_path / "file").write_text("")
    with pytest.raises(SystemExit) as caught:
        main(monkeypatch, *TINY, *TOY, "--run-dir", str(tmp_path / "file" / "run"))
    assert caught.value.code == 2 and "cannot write the run folder" in capsys.readouterr().err


def test_a_non_finite_reward_ends_the_run_with_one_line(folder, monkeypatch, capsys):
    def make_bad(*args, **options):
        env = make_toy(*args, **options)
        simulate, count = env._simulate, []

        def bad(actions):
            reward, over = simulate(actions)
            count.append(1)
            return (reward * float("nan") if len(count) > 6 else reward), over

        env._simulate = bad
        return env

    monkeypatch.setattr(recipe, "make_env", make_bad)
    with pytest.raises(SystemExit) as caught:
        main(monkeypatch, *TINY, *TOY, "--run-dir", str(folder), "--evaluations", "0", "--checkpoint-every", "1")
    assert caught.value.code == 2 and "error: non-finite reward at frame 16" in capsys.readouterr().err
    assert recipe.Run(folder, stored_run(folder)["config"], resume=True).state["iteration"] == 1


def test_an_error_that_torch_raises_in_a_loss_keeps_its_traceback(folder, monkeypatch, capsys, toy):
    """It is no mistake of the command line; the run leaves the checkpoint of its beginning."""
    def forward(self, minibatch):
        raise ValueError("raised by torch")

    monkeypatch.setattr(NextObservationLoss, "forward", forward)
    with pytest.raises(ValueError, match="raised by torch"):
        main(monkeypatch, *TINY, *TOY, "--run-dir", str(folder), "--loss", "next_observation")
    assert "error:" not in capsys.readouterr().err and (folder / "config.json").exists()
