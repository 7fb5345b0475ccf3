"""What training and measuring read: frames of a split, some of them, or sequences of them.

Letters: N frames, M items, T frames of a sequence, H W pixels.
"""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

import numpy as np
import numpy.typing as npt


class Frames(Protocol):
    """What training reads: a `FrameStore`, or several as one (`objrl.pretrain.joint`)."""

    @property
    def path(self) -> Path:
        """Where they are, for messages."""

    def __len__(self) -> int: ...

    def split(self, name: str) -> npt.NDArray[np.int64]:
        """Return the frame numbers of `train`, `val` or `test`."""

    def windows(self, length: int, split: str) -> npt.NDArray[np.int64]:
        """Return (M, length) frame numbers of consecutive frames within an episode."""

    def frames(self, indices: npt.ArrayLike) -> npt.NDArray[np.uint8]:
        """Return (n, H, W, 3) uint8 frames in the order asked."""

    def fingerprint(self) -> dict[str, str | int]:
        """Return what tells these data from others."""


def sample(store: Frames, split: str, count: int, length: int = 1) -> npt.NDArray[np.uint8]:
    """Take (n, H, W, 3) uint8 frames spread evenly over a split, n at most `count`.

    Sequences of a length above 1 are (n, T, H, W, 3), all of a sequence of one episode.

    Raises:
        ValueError: the split is empty.
    """
    if length == 1:
        return store.frames(split_rows(store, split, count))
    rows = items(store, split, length)
    return read(store, rows[spread(len(rows), count)])


def items(store: Frames, split: str, length: int) -> npt.NDArray[np.int64]:
    """Return the frame numbers of every item of a split: (M,), or (M, T) for sequences.

    Raises:
        ValueError: no episode is as long.
    """
    if length == 1:
        return store.split(split)
    rows = store.windows(length, split)
    if not len(rows):
        raise ValueError(
            f"{store.path}: expected episodes of {length} frames and more in {split!r}, got none; "
            "collect longer ones"
        )
    return rows


def read(store: Frames, rows: npt.NDArray[np.int64]) -> npt.NDArray[np.uint8]:
    """Return the frames of (n,) numbers, (n, H, W, 3), or of (n, T), (n, T, H, W, 3)."""
    found = store.frames(rows.ravel())
    return found.reshape(*rows.shape, *found.shape[1:])


def split_rows(store: Frames, split: str, count: int) -> npt.NDArray[np.int64]:
    """Return the numbers of at most `count` frames of a split, spread evenly.

    Raises:
        ValueError: the split is empty.
    """
    rows = store.split(split)
    if not len(rows):
        raise ValueError(
            f"{store.path}: expected frames in the split {split!r}, got none of {len(store)}; "
            "collect more episodes, or choose another split"
        )
    return rows[spread(len(rows), count)]


def spread(count: int, most: int) -> npt.NDArray[np.int64]:
    """Return at most `most` of 0..count-1, spread evenly."""
    return np.linspace(0, count - 1, min(count, most)).astype(np.int64)
