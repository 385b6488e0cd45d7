"""Where the metrics of a run go: CSV, TensorBoard and W&B, through TorchRL's loggers."""

from __future__ import annotations

import uuid
from pathlib import Path
from typing import Any

from torch.utils.tensorboard import SummaryWriter
from torchrl.record import CSVLogger, TensorboardLogger
from torchrl.record.loggers.common import Logger

LOGGERS = ("csv", "tensorboard", "wandb")


class Board(TensorboardLogger):
    """TorchRL's logger on a writer that hides what was logged from ``purge_step`` on: a resumed run logs it again."""

    def __init__(self, path: Path, purge_step: int | None):
        self.purge_step = purge_step
        super().__init__(exp_name="metrics", log_dir=str(path))

    def _create_experiment(self) -> SummaryWriter:
        writer = SummaryWriter(log_dir=str(Path(self.log_dir) / self.exp_name), purge_step=self.purge_step)
        writer.flush()  # hidden from now on, not only once the resumed run has logged
        return writer


def make_logger(name: str, path: Path, *, purge_step: int | None, project: str, config: dict[str, Any]) -> Logger:
    """A logger by name that writes into a run folder.

    Args:
        name: one of ``LOGGERS``.
        purge_step: see `Board`.
        project, config: W&B's project, and what it shows of the run.
    """
    if name == "csv":
        return CSVLogger(exp_name="metrics", log_dir=str(path))
    if name == "tensorboard":
        return Board(path, purge_step)
    from torchrl.record import WandbLogger

    (path / "metrics").mkdir(exist_ok=True)
    file = path / "metrics" / "wandb.id"  # a resumed run goes on in the same W&B run
    if not file.exists():
        file.write_text(uuid.uuid4().hex[:12])
    try:
        return WandbLogger(exp_name=str(path), project=project, save_dir=str(path / "metrics"), id=file.read_text(),
                           config=config)
    except ImportError as error:
        raise ValueError(f"logger 'wandb' needs the extra: pip install -e '.[wandb]' ({error})") from error


def close_logger(logger: Logger) -> None:
    """Close the files of a logger that `make_logger` made."""
    if isinstance(logger, CSVLogger):
        for file in logger.experiment.files.values():
            file.close()
    elif isinstance(logger, TensorboardLogger):
        logger.experiment.close()  # else its thread writes on, into a folder that may be gone
    else:
        logger.experiment.finish()
