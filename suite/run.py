"""The run folder: resolved config, versions, metrics, checkpoints, videos; the progress bar; stopping and resuming.

    runs/cooperative/vmas.navigation/mappo-none/seed1/
        config.json      every number, library versions, git commit, command
        metrics/         scalars/<name>.csv (frames,value) and TensorBoard events, through TorchRL's loggers
        checkpoints/     <iteration>.rank<r>.pt with a .sha256 beside it
        run.lock         held by the process that trains here
        videos/          episodes as GIF
"""

from __future__ import annotations

import json
import math
import os
import platform
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

from tqdm import tqdm

from suite import distributed
from suite.checkpoint import CheckpointError, Checkpoints
from suite.lock import LOCK, FolderLock
from suite.loggers import LOGGERS, close_logger, make_logger

LIBRARIES = ("torch", "torchrl", "tensordict", "vmas", "numpy", "gymnasium", "pettingzoo")
STORED = {"config": dict, "processes": int, "versions": dict, "commit": str, "command": str}  # in every config.json
# a resumed run may change these: they do not alter what an iteration computes
FREE = ("frames", "evaluations", "eval_episodes", "eval_starts", "checkpoint_every", "keep_checkpoints", "loggers",
        "video", "quiet")
WHERE = ("resume", "overwrite", "run_dir")  # which folder is meant


class Run:
    """One training run on disk, written to from ``with run:`` on.

    What is resumed is checked when it is made; whether the folder is free only then, so that whatever else is wrong
    with a new run is said first.

    Args:
        path: the run folder; must not exist unless ``resume`` or ``overwrite``.
        config: every option of the run as plain data.
        resume: continue from the newest whole checkpoint; the config must agree with the stored one.
        overwrite: delete the run that is there.
        loggers: names out of ``LOGGERS``.
        quiet: no progress bar.
        project: of W&B.
        defaults: values of the options that an earlier version did not have, so that its runs can be resumed.
        no_resume: why this run could not be resumed, said before it begins and instead of the command at its end.
    """

    def __init__(self, path: str | Path, config: dict[str, Any], *, resume: bool = False, overwrite: bool = False,
                 loggers: Sequence[str] = ("csv", "tensorboard"), keep_checkpoints: int = 2, quiet: bool = False,
                 project: str = "murmur", defaults: dict[str, Any] | None = None, no_resume: str | None = None):
        self.path, self.config, self.project, self.defaults = Path(path), config, project, defaults or {}
        self.first = distributed.rank() == 0
        self.checkpoints = Checkpoints(self.path / "checkpoints", rank=distributed.rank(), keep=keep_checkpoints)
        for name in loggers:
            if name not in LOGGERS:
                raise ValueError(f"unknown logger {name!r}; choose from {sorted(LOGGERS)}")
        self.stored = stored_run(self.path) if resume else None
        self.state = self._resume() if resume else None
        self.finished = self._check_frames(self.state["frames"]) if self.state else False
        self.overwrite, self.lock = overwrite, FolderLock(self.path)
        # a name given twice would write every row twice
        self.logger_names, self.loggers, self.quiet = tuple(dict.fromkeys(loggers)), [], quiet
        self.no_resume = no_resume
        self.shown: dict[str, float] = {}
        self.evaluations: list[tuple[int, float]] = [] if self.state is None else list(self.state["evaluations"])
        self._signal: int | None = None

    # ------------------------------------------------------------------ creating and resuming

    def _resume(self) -> dict[str, Any] | None:
        if reason := self.stored.get("no_resume"):
            raise ValueError(f"{self.path} cannot be resumed: {reason}")
        stored = self.defaults | self.stored["config"] | {"processes": self.stored["processes"]}
        given = self.config | {"processes": distributed.world_size()}
        if differences := [f"{key}: {stored.get(key)!r} -> {value!r}" for key, value in given.items()
                           if key not in (*FREE, *WHERE) and stored.get(key) != value]:
            start = launcher(stored["processes"])
            how = "" if stored["processes"] == given["processes"] else f" (it was started by {start} -m <recipe>)"
            flags = ", ".join("--" + name.replace("_", "-") for name in FREE)
            raise ValueError(f"cannot resume {self.path} with another config: {'; '.join(differences)}{how}. What may "
                             f"change: {flags}")
        if not distributed.any_process(bool(self.checkpoints.paths())):
            if done := _logged(self.path):
                raise ValueError(f"{self.path} has metrics of {done:,} frames, but no checkpoint to resume from: "
                                 f"--run-dir {self.path} --overwrite begins it anew and deletes them")
            return None  # stopped before its first checkpoint, which comes before the first frame: it begins again
        if distributed.world_size() == 1:
            return self.checkpoints.load()
        return self.checkpoints.load(distributed.largest_common(set(self.checkpoints.whole())))

    def _check_frames(self, done: int) -> bool:
        """Whether all frames wanted are done; ValueError if they are fewer than those done and those wanted before."""
        wanted = self.config.get("frames", math.inf)
        if wanted < min(done, self.stored["config"].get("frames", math.inf)):
            raise ValueError(f"{self.path} has {done:,} frames already: --frames {wanted} would not train it")
        return wanted <= done

    def _write_config(self) -> None:
        now = {"versions": versions(), "commit": commit(), "command": " ".join(sys.argv)}
        record = {"config": self.config, "processes": distributed.world_size(), "no_resume": self.no_resume}
        if self.stored is None:
            record |= now
        else:
            frames = 0 if self.state is None else self.state["frames"]
            record = self.stored | record | {"resumed": [*self.stored.get("resumed", []), {"frames": frames, **now}]}
        write_whole(self.path / "config.json", json.dumps(record, indent=2))

    # ------------------------------------------------------------------ what the trainer calls

    def expect(self, frames: int) -> None:
        """How many frames the run will have: a whole number of batches."""
        self.bar.total = frames

    def log(self, row: dict[str, float], *, frames: int) -> None:
        """Write one row of metrics at a frame count, and show the main ones on the bar."""
        for logger in self.loggers:
            for name, value in row.items():
                logger.log_scalar(name, value, step=frames)
        if "eval/return_greedy" in row:
            self.evaluations.append((frames, row["eval/return_greedy"]))
        names = {"episode/return": "return", "eval/return_greedy": "greedy", "eval/success": "success"}
        self.shown |= {short: row[name] for name, short in names.items() if name in row}
        text = {short: f"{value:.2f}" for short, value in self.shown.items()}
        if "time/update" in row:
            share = row["time/collect"] / (row["time/collect"] + row["time/update"])
            text["collect/update"] = f"{share:.0%}/{1 - share:.0%}"
        self.bar.set_postfix(text, refresh=False)
        self.bar.update(frames - self.bar.n)

    def save(self, state: dict[str, Any], *, iteration: int, frames: int) -> None:
        """Write a checkpoint; every process its own."""
        row = {"frames": frames, "iteration": iteration, "evaluations": list(self.evaluations)}
        self.checkpoints.save(state | row, iteration)

    @property
    def stop_requested(self) -> bool:
        """True after Ctrl-C or SIGTERM, on every process as soon as one process was told."""
        return distributed.any_process(self._signal is not None)

    @property
    def exit_code(self) -> int:
        """What a shell expects of a program: 0, or 128 and the number of the signal that stopped it."""
        return 0 if self._signal is None else 128 + self._signal

    def conclude(self, trainer: Any, *, video: bool, module: str, swap: str, again: Sequence[str] = ()) -> None:
        """Print what came out: returns before and after, the folder, and the commands to watch, resume and swap.

        ``again``: the flags that resuming needs beside its own.
        """
        self.bar.close()
        if not self.first:
            return
        stopped = self._signal is not None  # not `stop_requested`: the other processes do not come here
        lines = [f"stopped  after {trainer.frames:,} of {self.bar.total:,} frames"] if stopped else []
        if self.evaluations:
            lines.append(self._returns())
        if video and trainer.evaluate is not None and not stopped:
            try:
                lines.append(f"video    {trainer.evaluate.video(self.path / 'videos' / f'{trainer.frames}.gif')}")
            except ValueError as error:  # a task that cannot be drawn is no reason to lose the summary
                lines.append(f"video    none: {error}")
        from suite.state_figures import draw_run  # matplotlib takes a second to import

        if figure := draw_run(self.path):
            lines.append(f"figure   {figure}")
        more = "" if stopped else f" --frames {2 * self.config.get('frames', trainer.frames)}"
        start = f"{launcher(distributed.world_size())} -m {module}"
        resume = " ".join([f"{start} --resume {self.path}{more}", *again])
        lines += [f"run      {self.path}", f"watch    tensorboard --logdir {self.path}",
                  f"resume   {resume if self.no_resume is None else f'not possible: {self.no_resume}'}",
                  f"swap     {start} {swap}"]
        print("\n".join(lines))

    def _returns(self) -> str:
        """The first and the last evaluation, in a line."""
        (first, before), (frames, after) = self.evaluations[0], self.evaluations[-1]
        reached = f", success {self.shown['success']:.0%}" if "success" in self.shown else ""
        change = f"{after:.3f}" if frames == first else f"{before:.3f} -> {after:.3f}"
        return f"return   {change}{reached} after {frames:,} frames (greedy)"

    # ------------------------------------------------------------------ signals

    def __enter__(self) -> Run:
        if self.first:
            try:
                self._open()
            except OSError as error:
                self.lock.release()
                raise ValueError(f"cannot write the run folder {self.path}: {error}") from error
            except BaseException:
                self.lock.release()
                raise
            if self.finished:
                print(f"note: {self.path} has all its frames: --frames with more of them trains on", file=sys.stderr)
            if self.no_resume is not None:
                print(f"note: this run cannot be resumed: {self.no_resume}", file=sys.stderr)
        self.bar = tqdm(total=self.config.get("frames"), unit="frame", unit_scale=True, dynamic_ncols=True,
                        initial=0 if self.state is None else self.state["frames"], disable=self.quiet or not self.first)
        self.state = None  # the trainer has taken it
        self._previous = {number: signal.signal(number, self._on_signal) for number in (signal.SIGINT, signal.SIGTERM)}
        return self

    def _open(self) -> None:
        """Take the folder, empty it for a new run, and begin to write."""
        if self.stored is None:
            if (self.path / "config.json").exists() and (self.path / LOCK).exists():
                self.lock.take()  # that somebody trains there is said first
            _check_free(self.path, self.overwrite)
        self.path.mkdir(parents=True, exist_ok=True)
        self.lock.take()
        if self.stored is None:
            _clear(self.path)
        self._write_config()
        # a run at its first frame evaluates again
        kept = -1 if self.state is None else self.state["frames"] or -1
        _trim(self.path / "metrics" / "scalars", kept)
        purge = None if self.stored is None else kept + 1
        self.loggers = [make_logger(name, self.path, purge_step=purge, project=self.project, config=self.config)
                        for name in self.logger_names]

    def __exit__(self, *error: Any) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        self.bar.close()
        for logger in self.loggers:
            close_logger(logger)
        self.loggers = []
        self.lock.release()

    def _on_signal(self, number: int, frame: Any) -> None:
        if self._signal is not None:  # asked twice: leave at once, the last checkpoint stays
            raise KeyboardInterrupt
        self._signal = number
        self.bar.write("stopping after this iteration, with a checkpoint (again to stop at once)", file=sys.stderr)


class MemoryRun:
    """A run that keeps its rows in a list and writes nothing: for notebooks and tests."""

    stop_requested = False

    def __init__(self):
        self.rows: list[dict[str, float]] = []

    def expect(self, frames: int) -> None:
        """No bar to set."""

    def log(self, row: dict[str, float], *, frames: int) -> None:
        """Keep the row."""
        self.rows.append({"frames": frames, **row})

    def save(self, state: dict[str, Any], *, iteration: int, frames: int) -> None:
        """Checkpoints are not kept."""


def stored_run(path: str | Path) -> dict[str, Any]:
    """Config, number of processes, versions, commit and command of a run folder; ValueError if it is none."""
    file = Path(path) / "config.json"
    if not file.exists():
        raise ValueError(f"{path} is not a run folder: it has no config.json")
    try:
        record = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{file} is truncated or altered: {error}") from None
    for name, kind in STORED.items():
        value = record.get(name) if isinstance(record, dict) else None
        if not isinstance(value, kind):
            raise ValueError(f"{file} is not as a run writes it: {name} is {value!r}, expected {kind.__name__}")
    return record


@contextmanager
def restoring(path: str | Path) -> Iterator[None]:
    """Around the use of what a run folder saved: CheckpointError where it does not fit what is built today."""
    try:
        yield
    except (RuntimeError, KeyError, ValueError) as error:
        saved, reason = stored_run(path)["commit"], " ".join(str(error).split())
        raise CheckpointError(f"the checkpoint of {path} does not fit: it was saved at commit {saved}, this is "
                              f"{commit()}, where the same config has other parts ({reason[:300]})") from error


def launcher(processes: int) -> str:
    """The beginning of the command that starts that many processes."""
    return "python" if processes == 1 else f"python -m torch.distributed.run --nproc_per_node {processes}"


def versions() -> dict[str, str]:
    """Python and library versions, and the processor."""
    return {"python": platform.python_version(), "machine": platform.machine()} | {
        name: version(name) for name in LIBRARIES
    }


def commit() -> str:
    """The git commit of the source tree, marked if it was changed (results apart); 'unknown' outside a checkout."""
    try:
        changes = _git("status", "--porcelain", "--untracked-files=no", "--", ":(exclude)results")
        return _git("rev-parse", "--short", "HEAD") + ("+changes" if changes else "")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def _git(*command: str) -> str:
    root = str(Path(__file__).resolve().parents[1])
    return subprocess.run(["git", "-C", root, *command], capture_output=True, text=True, check=True).stdout.strip()


def _check_free(path: Path, overwrite: bool) -> None:
    if not path.exists():
        return
    if not path.is_dir():
        raise ValueError(f"{path} is a file; name a folder with --run-dir")
    if any(entry.name != LOCK for entry in path.iterdir()):  # a process killed before it wrote its config leaves that
        is_run = (path / "config.json").exists()
        if not overwrite:
            reason = stored_run(path).get("no_resume") if is_run else None
            way = f"continue it with --resume {path}, or" if reason is None else f"it cannot be resumed ({reason});"
            raise ValueError(f"{path} exists: {way} replace it with --overwrite")
        if not is_run:
            raise ValueError(f"{path} is not a run folder (it has no config.json), so --overwrite does not delete it")


def _clear(path: Path) -> None:
    """Delete a run but for the lock on it; config.json last, so that what is left of a half deleted one is a run."""
    for entry in sorted(path.iterdir(), key=lambda entry: entry.name == "config.json"):
        if entry.is_dir() and not entry.is_symlink():
            shutil.rmtree(entry)
        elif entry.name != LOCK:
            entry.unlink()


def write_whole(path: Path, text: str) -> None:
    """Replace a file at once: who reads it meanwhile, or after a kill, finds the old text or the new one."""
    aside = path.with_name(f"{path.name}.{os.getpid()}.tmp")  # two processes may write the same file
    aside.write_text(text)
    os.replace(aside, path)


def _logged(path: Path) -> int:
    """The last frame that the metrics of a run folder have a row of."""
    files = (path / "metrics" / "scalars").rglob("*.csv")
    rows = (line for file in files for line in file.read_text().splitlines(keepends=True) if line.endswith("\n"))
    return max((int(row.split(",")[0]) for row in rows), default=0)


def _trim(folder: Path, frames: int) -> None:
    """Drop the rows after a checkpoint: the resumed run writes them again."""
    for file in folder.rglob("*.csv"):
        lines = file.read_text().splitlines(keepends=True)
        kept = [line for line in lines if line.endswith("\n") and int(line.split(",")[0]) <= frames]
        if len(kept) < len(lines):
            write_whole(file, "".join(kept))
