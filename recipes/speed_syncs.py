"""Where the host waits for a GPU: CUDA's debug mode warns of every such call; this notes the source line of each."""

from __future__ import annotations

import sys
import traceback
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

LIBRARIES = tuple(f"/site-packages/{name}/" for name in ("torch", "torchrl", "tensordict"))


def place(frames: list[tuple[str, int]]) -> str:
    """``folder/file.py:line`` of the innermost frame outside torch's libraries; the frames come innermost first."""
    own = [frame for frame in frames if not any(name in Path(frame[0]).as_posix() for name in LIBRARIES)]
    path, line = (own or frames)[0]
    return f"{'/'.join(Path(path).parts[-2:])}:{line}"


@contextmanager
def recorded(found: list[str]) -> Iterator[None]:
    """Append the `place` of every synchronising call that ``torch.cuda.set_sync_debug_mode("warn")`` warns of."""

    def note(message: Warning, *args: object, **kwargs: object) -> None:
        if "synchronizing" in str(message):
            stack = [(frame.f_code.co_filename, line) for frame, line in traceback.walk_stack(sys._getframe(1))]
            found.append(place([frame for frame in stack if frame[0] != warnings.__file__]))

    with warnings.catch_warnings():
        warnings.simplefilter("always")  # else a line is named once only
        warnings.showwarning = note
        yield
