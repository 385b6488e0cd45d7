"""One process at a time trains in a run folder: a lock that ends with the process that holds it, however that ends."""

from __future__ import annotations

import os
import platform
from pathlib import Path

from filelock import FileLock, Timeout

LOCK = "run.lock"


class FolderLock:
    """The lock of a folder, held from `take` to `release`.

    Its file stays behind (who deletes a lock may delete another one's); it says who took the lock last.
    """

    def __init__(self, folder: str | Path):
        self.folder, self.file = Path(folder), Path(folder) / LOCK
        self._lock = FileLock(self.file)

    def take(self) -> None:
        """Hold the lock, if not held yet; ValueError if another process holds it, which is named."""
        if self._lock.is_locked:
            return
        try:
            self._lock.acquire(blocking=False)
        except Timeout:
            holder = self.file.read_text().strip() or "unknown"  # it has not written it yet
            raise ValueError(f"process {holder} trains in {self.folder}: wait for its end or stop it, or name another "
                             "folder") from None
        self.file.write_text(f"{os.getpid()} on {platform.node()}")

    def release(self) -> None:
        """Let others take it; nothing if it is not held."""
        if self._lock.is_locked:
            self._lock.release()
