"""One writer at a time: locks that go with the process that holds them."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType

if sys.platform != "win32":
    import fcntl


class Lock:
    """Keeps other writers from a file or a folder, until it is closed or the process has died.

    It leaves nothing behind. Windows and some network drives know no such locks, and others know
    them on one machine alone: there it keeps nobody away. Can be used in `with`.

    Raises:
        FileNotFoundError: there is no such file or folder.
        ValueError: somebody else is writing it, or is just replacing it by another.
        OSError: it may not be read.
    """

    def __init__(self, path: Path) -> None:
        self._descriptor: int | None = None
        if sys.platform == "win32":
            return
        descriptor = os.open(path, os.O_RDONLY)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            taken = not os.path.samestat(os.fstat(descriptor), os.stat(path))
        except BlockingIOError:
            taken = True
        except OSError:  # there are no locks here
            os.close(descriptor)
            return
        if taken:
            os.close(descriptor)
            kind = "folder" if path.is_dir() else "file"
            raise ValueError(
                f"{path}: expected a {kind} that nobody writes, got one that is being written; "
                f"wait for whoever does, or choose another {kind}"
            )
        self._descriptor = descriptor

    def close(self) -> None:
        """Let others write; a second time does nothing."""
        if self._descriptor is not None and sys.platform != "win32":
            fcntl.flock(self._descriptor, fcntl.LOCK_UN)  # also where a forked process lives on
            os.close(self._descriptor)
            self._descriptor = None

    def __enter__(self) -> Lock:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


@contextlib.contextmanager
def writing(folder: Path) -> Iterator[None]:
    """Make a folder and keep other writers from it; what it made and stays empty goes again.

    Raises:
        FileExistsError: it is a file.
        ValueError: somebody else is writing it.
        OSError: it cannot be made.
    """
    if folder.is_file():
        raise FileExistsError(f"{folder}: expected a folder, got a file; choose another")
    made = [path for path in (folder, *folder.parents) if not path.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    with Lock(folder):
        try:
            yield
        finally:
            with contextlib.suppress(OSError):  # a folder that is not empty
                for path in made:
                    path.rmdir()
