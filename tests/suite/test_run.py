import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from recipes.cooperative_config import Config
from suite.run import FREE, WHERE, MemoryRun, Run, stored_run
from suite.trainer import Trainer
from tests.fakes import Batches, update
from tests.runs import CONFIG, finished, rows

ROOT = Path(__file__).resolve().parents[2]


# ---------------------------------------------------------------------- the folder


def test_what_a_run_leaves(tmp_path):
    finished(tmp_path / "r")
    record = stored_run(tmp_path / "r")
    assert record["config"] == CONFIG and record["processes"] == 1
    assert {"python", "torch", "torchrl", "tensordict"} <= record["versions"].keys()
    assert record["versions"]["torch"].split("+")[0] == torch.__version__.split("+")[0]
    assert record["commit"] and record["command"]
    assert rows(tmp_path / "r") == [(0, 0), (50, 50), (100, 100)]
    assert list((tmp_path / "r" / "metrics").glob("events.out.tfevents*"))
    assert [p.name for p in sorted((tmp_path / "r" / "checkpoints").glob("*.pt"))] == ["000000001.rank0.pt",
                                                                                       "000000002.rank0.pt"]
    assert not list((tmp_path / "r").rglob("*.tmp"))


def test_nothing_is_written_before_the_run_begins(tmp_path):
    """So that a refused task or option leaves no folder behind, and --overwrite deletes nothing in vain."""
    Run(tmp_path / "new", CONFIG)
    assert not (tmp_path / "new").exists()
    finished(tmp_path / "old")
    before = {path: path.read_bytes() for path in (tmp_path / "old").rglob("*") if path.is_file()}
    Run(tmp_path / "old", CONFIG, overwrite=True)
    Run(tmp_path / "old", CONFIG, resume=True)
    assert {path: path.read_bytes() for path in (tmp_path / "old").rglob("*") if path.is_file()} == before


def test_an_existing_folder_is_refused_with_the_two_ways_on(tmp_path):
    finished(tmp_path)
    with pytest.raises(ValueError, match=rf"{tmp_path} exists: .*--resume {tmp_path}.*--overwrite"), Run(
            tmp_path, CONFIG):
        pass


def test_an_empty_folder_is_taken(tmp_path):
    finished(tmp_path)


def test_overwrite_replaces_the_run(tmp_path):
    finished(tmp_path)
    with Run(tmp_path, CONFIG | {"lr": 7.0}, overwrite=True, quiet=True):
        pass
    assert stored_run(tmp_path)["config"]["lr"] == 7.0
    assert not (tmp_path / "checkpoints").exists() and not list(tmp_path.rglob("*.csv"))


def test_what_is_left_of_a_half_deleted_run_can_be_overwritten(tmp_path, monkeypatch):
    def killed(path):
        raise KeyboardInterrupt

    finished(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr("shutil.rmtree", killed)
        with pytest.raises(KeyboardInterrupt), Run(tmp_path, CONFIG, overwrite=True, quiet=True):
            pass
    finished(tmp_path, overwrite=True)


def test_overwrite_never_deletes_what_is_no_run(tmp_path):
    (tmp_path / "thesis.txt").write_text("three years")
    with pytest.raises(ValueError, match=r"is not a run folder.*--overwrite does not delete it"), Run(tmp_path, CONFIG,
                                                                                                 overwrite=True):
        pass
    assert (tmp_path / "thesis.txt").read_text() == "three years"
    with pytest.raises(ValueError, match="is a file"), Run(tmp_path / "thesis.txt", CONFIG, overwrite=True):
        pass


def test_a_folder_that_cannot_be_written_is_a_clear_error(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match=r"cannot write the run folder .*file/run"), Run(tmp_path / "file" / "run",
                                                                                         CONFIG):
        pass


# ---------------------------------------------------------------------- resuming


def test_resume_gives_the_newest_state_and_appends(tmp_path):
    finished(tmp_path)
    run = Run(tmp_path, CONFIG | {"frames": 150}, resume=True, quiet=True)
    assert run.state["iteration"] == 2 and run.state["frames"] == 100 and run.state["w"].tolist() == [100, 100]
    with run:
        run.log({"episode/return": 150.0}, frames=150)
    assert rows(tmp_path) == [(0, 0), (50, 50), (100, 100), (150, 150)]
    record = stored_run(tmp_path)
    assert record["config"]["frames"] == 150, "or the next --resume would stop at the old frames"
    assert [entry["frames"] for entry in record["resumed"]] == [100]
    assert record["resumed"][0].keys() == {"frames", "versions", "commit", "command"}


def test_rows_after_the_checkpoint_are_trimmed_and_half_a_row_too(tmp_path):
    finished(tmp_path)
    newest = max((tmp_path / "checkpoints").glob("*.pt"))
    newest.unlink()
    scalars = tmp_path / "metrics" / "scalars" / "episode" / "return.csv"
    with open(scalars, "a") as file:
        file.write("12")  # killed in the middle of a row
    with Run(tmp_path, CONFIG, resume=True, quiet=True) as run:
        assert run.state is None  # handed over, not kept in memory
        run.log({"episode/return": 51.0}, frames=51)
    assert rows(tmp_path) == [(0, 0), (50, 50), (51, 51)]
    assert rows(tmp_path, "eval/return_greedy") == [(0, 0), (50, 1)]


def test_a_run_at_its_first_checkpoint_begins_again_without_doubled_rows(tmp_path):
    finished(tmp_path, keep_checkpoints=3)
    for path in sorted((tmp_path / "checkpoints").glob("*.pt"))[1:]:
        path.unlink()
    with Run(tmp_path, CONFIG, resume=True, quiet=True) as run:  # the trainer evaluates at frame 0 again
        run.log({"eval/return_greedy": 0.0}, frames=0)
    assert rows(tmp_path, "eval/return_greedy") == [(0, 0)]


def test_a_run_killed_before_its_first_checkpoint_begins_again(tmp_path):
    with Run(tmp_path, CONFIG, quiet=True) as run:
        run.log({"episode/return": 7.0}, frames=0)
    run = Run(tmp_path, CONFIG, resume=True, quiet=True)
    assert run.state is None
    with run:
        run.log({"episode/return": 1.0}, frames=10)
    assert rows(tmp_path) == [(10, 1)]


def test_a_run_whose_checkpoints_are_gone_keeps_its_metrics_and_says_how_to_begin_anew(tmp_path):
    finished(tmp_path)
    for path in (tmp_path / "checkpoints").iterdir():
        path.unlink()
    message = f"metrics of 100 frames, but no checkpoint to resume from: --run-dir {tmp_path} --overwrite begins it"
    with pytest.raises(ValueError, match=message):
        Run(tmp_path, CONFIG, resume=True)
    assert rows(tmp_path) == [(0, 0), (50, 50), (100, 100)]


def test_another_config_is_refused_with_every_difference(tmp_path):
    finished(tmp_path)
    other = CONFIG | {"lr": 0.2, "options": {"a": 2}, "new": None, "frames": 7}
    with pytest.raises(ValueError) as caught:
        Run(tmp_path, other, resume=True)
    message = str(caught.value)
    assert "cannot resume" in message and "lr: 0.1 -> 0.2" in message and "options: {'a': 1} -> {'a': 2}" in message
    differences, _, allowed = message.partition(". What may change: ")
    assert "frames" not in differences and "task" not in message
    assert allowed.split(", ")[:3] == ["--frames", "--evaluations", "--eval-episodes"] and "--lr" not in allowed
    assert "--resume" not in allowed and "--run-dir" not in allowed


def test_a_run_is_not_cut_below_what_it_has_and_a_finished_one_says_so(tmp_path, capsys):
    finished(tmp_path)
    with pytest.raises(ValueError, match=r"has 100 frames already: --frames 99 would not train it"):
        Run(tmp_path, CONFIG | {"frames": 99}, resume=True)
    for frames, finished_already in ((100, True), (150, False), (120, False)):  # the last is cut, but not below 100
        with Run(tmp_path, CONFIG | {"frames": frames}, resume=True, quiet=True):
            assert ("has all its frames" in capsys.readouterr().err) == finished_already


def test_a_run_of_a_version_without_an_option_goes_on_with_its_default(tmp_path):
    finished(tmp_path)
    Run(tmp_path, CONFIG | {"new": 3}, resume=True, defaults={"new": 3, "lr": 9.0})
    with pytest.raises(ValueError, match=r"with another config: new: 3 -> 4\. What may"):
        Run(tmp_path, CONFIG | {"new": 4}, resume=True, defaults={"new": 3, "lr": 9.0})


def test_another_number_of_processes_is_refused(tmp_path, monkeypatch):
    finished(tmp_path)
    record = stored_run(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(record | {"processes": 4}))
    with pytest.raises(ValueError, match="processes: 4 -> 1"):
        Run(tmp_path, CONFIG, resume=True)


def test_what_may_change_on_resume_are_fields_of_the_recipe():
    assert {*FREE, *WHERE} <= {field for field in Config.__dataclass_fields__}


def test_resume_of_something_else_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"is not a run folder: it has no config.json"):
        Run(tmp_path, CONFIG, resume=True)


@pytest.mark.parametrize("damage, message", [
    (lambda text: text[:30], "truncated or altered: "),
    (lambda text: "", "truncated or altered: Expecting value"),
    (lambda text: "[]", "not as a run writes it: config is None, expected dict"),
    (lambda text: json.dumps(json.loads(text) | {"config": 3}), "not as a run writes it: config is 3, expected dict"),
    (lambda text: json.dumps(json.loads(text) | {"processes": "two"}), "not as .*: processes is 'two', expected int"),
    (lambda text: text.replace('"commit"', '"comit"'), "not as a run writes it: commit is None, expected str"),
], ids=range(6))
def test_a_damaged_config_is_named_with_what_is_wrong(tmp_path, damage, message):
    finished(tmp_path)
    file = tmp_path / "config.json"
    file.write_text(damage(file.read_text()))
    with pytest.raises(ValueError, match=rf"^{file} is (?:{message})"):
        Run(tmp_path, CONFIG, resume=True)


# ---------------------------------------------------------------------- loggers, bar, end


def test_unknown_loggers_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"unknown logger 'txt'; choose from \['csv', 'tensorboard', 'wandb'\]"):
        Run(tmp_path / "r", CONFIG, loggers=("csv", "txt"))
    assert not (tmp_path / "r").exists()


def test_only_the_chosen_loggers_write(tmp_path):
    finished(tmp_path / "csv", loggers=("csv",))
    finished(tmp_path / "board", loggers=("tensorboard",))
    finished(tmp_path / "none", loggers=())
    assert not list((tmp_path / "csv").rglob("events*")) and list((tmp_path / "csv").rglob("*.csv"))
    assert list((tmp_path / "board").rglob("events*")) and not list((tmp_path / "board").rglob("*.csv"))
    assert not (tmp_path / "none" / "metrics").exists()


def test_the_csv_holds_every_digit(tmp_path):
    value = 0.1 + 0.2
    with Run(tmp_path, CONFIG, quiet=True) as run:
        run.log({"x": value}, frames=3)
    assert rows(tmp_path, "x") == [(3, value)]


def test_tensorboard_holds_the_rows(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    finished(tmp_path)
    events = EventAccumulator(str(tmp_path / "metrics")).Reload()
    assert [(e.step, e.value) for e in events.Scalars("episode/return")] == [(0, 0), (50, 50), (100, 100)]


def test_the_bar_ends_at_the_frames_to_expect(tmp_path, capsys):
    """A run has whole batches only, so more frames than were asked for."""
    with Run(tmp_path, CONFIG, loggers=()) as run:
        run.expect(120)
        run.log({"episode/return": 1.25}, frames=120)
        run.bar.refresh()
    shown = capsys.readouterr().err
    assert "120/120" in shown and "/100" not in shown.split("120/120")[-1]
    MemoryRun().expect(120)


def test_the_trainer_says_how_many_frames_to_expect():
    said = []

    class Listening(MemoryRun):
        def expect(self, frames):
            said.append(frames)

    Trainer(Batches(5), torch.nn.Module(), [update()], reward_weights={"task": 1.0}, run=Listening()).train()
    assert said == [60]


def test_the_bar_shows_frames_return_and_the_split(tmp_path, capsys):
    with Run(tmp_path, CONFIG, loggers=()) as run:
        run.log({"episode/return": 1.25, "time/collect": 1.0, "time/update": 3.0}, frames=50)
        run.bar.refresh()
    shown = capsys.readouterr().err
    assert "50.0/100" in shown and "return=1.25" in shown and "collect/update=25%/75%" in shown


def test_memory_run_keeps_rows_and_writes_nothing(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run = MemoryRun()
    Trainer(Batches(), torch.nn.Module(), [update()], reward_weights={"task": 1.0}, run=run).train()
    assert [row["frames"] for row in run.rows] == [12, 24, 36] and not list(tmp_path.iterdir())


# ---------------------------------------------------------------------- signals

SCRIPT = """
import sys, time, torch
from suite.run import Run
from suite.trainer import Trainer
from tests.fakes import Batches, update
from tests.runs import CONFIG, finished, rows

class Slow(Batches):
    def batch(self):
        print("collecting", flush=True)
        time.sleep(float(sys.argv[2]))
        return super().batch()

config = {"frames": 10**9}
with Run(sys.argv[1], config, quiet=True, loggers=("csv",)) as run:
    Trainer(Slow(10**6), torch.nn.Module(), [update()], reward_weights={"task": 1.0}, run=run).train()
    run.conclude(type("T", (), {"frames": 36, "evaluate": None}), video=True, module="m", swap="s")
print("left in peace", flush=True)
sys.exit(run.exit_code)
"""


def started(path, pause="0.02", iterations=3):
    process = subprocess.Popen([sys.executable, "-c", SCRIPT, str(path), pause], cwd=ROOT, stdout=subprocess.PIPE,
                               stderr=subprocess.PIPE, text=True, env=os.environ | {"PYTHONPATH": str(ROOT)})
    for _ in range(iterations):
        assert process.stdout.readline() == "collecting\n"
    return process


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_leaves_a_checkpoint_of_a_finished_iteration(tmp_path, number):
    process = started(tmp_path / "r")
    process.send_signal(number)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 128 + number, err
    assert "left in peace" in out and "stopping after this iteration, with a checkpoint" in err
    assert f"resume   python -m m --resume {tmp_path / 'r'}\n" in out, "a stopped run goes on to its own frames"
    logged = rows(tmp_path / "r", "u/loss_square")
    run = Run(tmp_path / "r", {"frames": 10**9}, resume=True)
    assert run.state["iteration"] == len(logged) >= 2
    assert run.state["frames"] == logged[-1][0] == run.state["collector"]["frames"]


def test_a_second_signal_stops_at_once(tmp_path):
    process = started(tmp_path / "r", pause="600", iterations=1)
    process.send_signal(signal.SIGTERM)
    line = process.stderr.readline()
    while line and "stopping after this iteration" not in line:
        line = process.stderr.readline()
    begin = time.perf_counter()
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=60)
    assert process.returncode != 0 and time.perf_counter() - begin < 30
    assert Run(tmp_path / "r", {"frames": 10**9}, resume=True).state["iteration"] == 0


def test_the_previous_handlers_come_back(tmp_path):
    before = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)
    with pytest.raises(RuntimeError, match="inside"), Run(tmp_path, CONFIG, quiet=True):
        assert signal.getsignal(signal.SIGTERM) != before[0]
        raise RuntimeError("inside")
    assert (signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)) == before
