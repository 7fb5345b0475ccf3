"""One writer at a time: locks that go with the process that holds them."""

from __future__ import annotations

import os
import sys
from pathlib import Path

if sys.platform != "win32":
    import fcntl


class Lock:
    """Keeps other writers from a file or a folder, until it is closed or the process has died.

    It leaves nothing behind. On Windows, which has no such locks, it keeps nobody away.

    Raises:
        FileNotFoundError: there is no such file or folder.
        ValueError: somebody else is writing it.
    """

    def __init__(self, path: Path) -> None:
        self._number: int | None = None
        if sys.platform == "win32":
            return
        number = os.open(path, os.O_RDONLY)
        try:
            fcntl.flock(number, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(number)
            kind = "folder" if path.is_dir() else "file"
            raise ValueError(
                f"{path}: expected a {kind} that nobody writes, got one that another process is "
                f"writing; wait for it, or choose another {kind}"
            ) from None
        self._number = number

    def close(self) -> None:
        """Let others write; a second time does nothing."""
        if self._number is not None:
            os.close(self._number)
            self._number = None
