"""One process at a time trains in a run folder: a lock that ends with the process that holds it, however that ends."""

from __future__ import annotations

import os
import platform
import warnings
from pathlib import Path
from typing import TextIO

try:
    import fcntl
except ImportError:  # Windows has none: nobody is kept out there
    fcntl = None

LOCK = "run.lock"


class FolderLock:
    """The lock of a folder, held from `take` to `release`.

    Its file stays behind (who deletes a lock may delete another one's); it says who took the lock last.
    """

    def __init__(self, folder: str | Path):
        self.folder, self._file = Path(folder), None

    def take(self) -> None:
        """Hold the lock, if not held yet; ValueError if another process holds it, which is named."""
        if fcntl is None or self._file is not None:
            return
        file = open(self.folder / LOCK, "a+")  # noqa: SIM115 (held until `release`)
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = _holder(file)
            file.close()
            raise ValueError(f"process {holder} trains in {self.folder}: wait for its end or stop it, or name another "
                             "folder") from None
        except OSError as error:
            warnings.warn(f"{self.folder} cannot be locked ({error}): nothing keeps a second process out", stacklevel=2)
        file.truncate(0)
        file.write(f"{os.getpid()} on {platform.node()}")
        file.flush()
        self._file = file

    def release(self) -> None:
        """Let others take it; nothing if it is not held."""
        if self._file is not None:
            self._file.close()
            self._file = None


def _holder(file: TextIO) -> str:
    file.seek(0)
    return file.read().strip() or "unknown"  # it has not written it yet
