"""What the loggers of a run hold, also after a kill and a resume."""

import re
from typing import ClassVar

from suite.run import Run
from tests.runs import CONFIG, finished, rows


def board(path):
    """Steps and values of a tag as TensorBoard shows them."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    return [(e.step, e.value) for e in EventAccumulator(str(path / "metrics")).Reload().Scalars("episode/return")]


def age(path):
    """TensorBoard reads files in the order of their names, which begin with the second in which they were made."""
    for file in (path / "metrics").glob("events*"):
        _, prefix, second, rest = re.split(r"^(.*tfevents\.)(\d+)", file.name)
        file.rename(file.with_name(f"{prefix}{int(second) - 60:010d}{rest}"))


def test_tensorboard_hides_what_a_killed_run_logged_after_its_checkpoint(tmp_path):
    with Run(tmp_path, CONFIG, quiet=True) as run:
        run.save({}, iteration=1, frames=50)
        for frames in (0, 50, 70, 100):
            run.log({"episode/return": 1.0}, frames=frames)
    age(tmp_path)
    with Run(tmp_path, CONFIG, resume=True, quiet=True) as run:
        assert board(tmp_path) == [(0, 1), (50, 1)], "also before the resumed run has logged anything"
        run.log({"episode/return": 2.0}, frames=90)
    assert board(tmp_path) == [(0, 1), (50, 1), (90, 2)] == rows(tmp_path)
    files = list((tmp_path / "metrics").glob("events.out.tfevents*"))
    assert len(files) == 2, "no file beside the resumed run's own"


def test_tensorboard_of_a_run_that_begins_again_shows_it_once(tmp_path):
    with Run(tmp_path, CONFIG, quiet=True) as run:
        run.log({"episode/return": 3.0}, frames=0)
    age(tmp_path)
    with Run(tmp_path, CONFIG, resume=True, quiet=True) as run:
        run.log({"episode/return": 7.0}, frames=0)
    assert board(tmp_path) == [(0, 7)]


def test_a_logger_named_twice_writes_once(tmp_path):
    finished(tmp_path, loggers=("csv", "csv"))
    assert rows(tmp_path) == [(0, 0), (50, 50), (100, 100)]


class Weights:
    """Stands for W&B's package: what a run asks of its logger."""

    made: ClassVar[list] = []

    def __init__(self, **options):
        self.options, self.experiment, self.rows = options, self, []
        self.made.append(self)

    def log_scalar(self, name, value, step):
        self.rows.append((name, value, step))

    def finish(self):
        self.rows.append("finished")


def test_wandb_writes_into_the_run_folder_and_goes_on_in_the_same_run(tmp_path, monkeypatch):
    monkeypatch.setattr("torchrl.record.WandbLogger", Weights)
    monkeypatch.setattr(Weights, "made", [])
    finished(tmp_path / "r", loggers=("wandb",), project="mine")
    with Run(tmp_path / "r", CONFIG, resume=True, quiet=True, loggers=("wandb",), project="mine"):
        pass
    finished(tmp_path / "r", loggers=("wandb",), overwrite=True)
    first, again, other = (logger.options for logger in Weights.made)
    assert first == again and first["save_dir"] == str(tmp_path / "r" / "metrics") and first["config"] == CONFIG
    assert (first["project"], other["project"]) == ("mine", "murmur")
    assert other["id"] != first["id"] and Weights.made[0].rows[-1] == "finished"
    assert ("episode/return", 50.0, 50) in Weights.made[0].rows
