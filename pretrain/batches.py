"""Frames for the training loop: batches that follow from (seed, step, rank), made ahead of time."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np
import numpy.typing as npt

from objrl.pretrain.reading import Frames, items, read
from objrl.pretrain.task import Batch, Task


def choose(
    indices: npt.NDArray[np.int64], count: int, *, seed: int, step: int, rank: int
) -> npt.NDArray[np.int64]:
    """Draw the items of one step on one device, each once where there are enough of them."""
    rng = np.random.default_rng([seed, step, rank])
    drawn: npt.NDArray[np.int64] = rng.choice(indices, count, replace=len(indices) < count)
    return drawn


class Batches:
    """The batches from a step on, without end, read and prepared in a thread of their own."""

    def __init__(
        self,
        store: Frames,
        task: Task,
        *,
        count: int,
        seed: int,
        rank: int = 0,
        step: int = 0,
        ahead: int = 3,
    ) -> None:
        """Begin to read.

        Args:
            store: whose frames of `train`.
            task: makes batches of them.
            count: frames a batch, or sequences.
            seed: of the run.
            rank: of this process.
            step: of the first batch.
            ahead: how many batches may wait.
        """
        self._store, self._task, self._ahead = store, task, ahead
        self._indices = items(store, "train", task.length)
        self._count, self._seed, self._rank, self._next = count, seed, rank, step
        self._waiting: deque[Future[Batch]] = deque()
        self._pool = ThreadPoolExecutor(1)

    def _make(self, step: int) -> Batch:
        rows = choose(self._indices, self._count, seed=self._seed, step=step, rank=self._rank)
        batch: Batch = self._task.prepare(read(self._store, rows))
        return batch

    def __next__(self) -> Batch:
        while len(self._waiting) < self._ahead:
            self._waiting.append(self._pool.submit(self._make, self._next))
            self._next += 1
        return self._waiting.popleft().result()

    def __iter__(self) -> Iterator[Batch]:
        return self

    def __enter__(self) -> Batches:
        return self

    def __exit__(self, *_: object) -> None:
        self._pool.shutdown(cancel_futures=True)
