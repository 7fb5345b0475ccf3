"""What a run has cost so far, over all the times that it was gone on with."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator


class Clock:
    """Seconds that were spent, of wall time and of all threads of this process together."""

    def __init__(self, wall: float = 0.0, cpu: float = 0.0) -> None:
        self._since = time.perf_counter() - wall, time.process_time() - cpu

    @property
    def wall(self) -> float:
        """Seconds on the wall."""
        return time.perf_counter() - self._since[0]

    @property
    def cpu(self) -> float:
        """Seconds of the processors."""
        return time.process_time() - self._since[1]

    @contextlib.contextmanager
    def stopped(self) -> Iterator[None]:
        """Do not count what is spent meanwhile."""
        wall, cpu = self.wall, self.cpu
        try:
            yield
        finally:
            self._since = Clock(wall, cpu)._since
