"""How well pixels are told apart: scores of segmentations against true ones.

True segments are numbers a pixel, 0 for the background, k for a frame's k-th object; found ones are
any numbers from 0 on. Which number a segment has plays no part.

Letters: N frames, H W pixels, S true segments with the background, P found segments, n objects.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Ids = npt.NDArray[np.integer]
"""(N, H, W) whose pixel is whose."""

Scores = npt.NDArray[np.float64]
"""(N,) one of each frame."""


def overlaps(true: Ids, found: Ids) -> npt.NDArray[np.int64]:
    """Count pixels by true and by found segment: (N, S, P).

    Raises:
        ValueError: of different shapes, or negative numbers.
    """
    if true.shape != found.shape or true.ndim != 3:
        raise ValueError(
            f"segments: expected two arrays (N, H, W), got {true.shape} and {found.shape}"
        )
    if min(true.min(initial=0), found.min(initial=0)) < 0:
        raise ValueError("segments: expected numbers from 0 on, got negative ones")
    count, rows, columns = len(true), *(int(ids.max(initial=0)) + 1 for ids in (true, found))
    frame = np.arange(count)[:, None, None]
    cell = (frame * rows + true) * columns + found
    table = np.bincount(cell.ravel(), minlength=count * rows * columns)
    return table.reshape(count, rows, columns).astype(np.int64)


def adjusted_rand(true: Ids, found: Ids) -> Scores:
    """Return the adjusted Rand index of each frame's pixels that are an object's (ARI-FG).

    The share of pairs of pixels that both segmentations treat alike, less chance: 1 the same, 0 as
    good as chance. What covers the background plays no part. A frame of one object found in one
    piece has 1; a frame without objects is not a number.

    References:
        Hubert, Arabie: Comparing partitions. Journal of Classification 2, 1985. As IODINE (4.1)
        uses it.
    """
    table = overlaps(true, found)[:, 1:]
    pixels = table.sum((1, 2))
    alike, rows, columns = (
        _pairs(part).sum(-1) for part in (table.reshape(len(table), -1), table.sum(2), table.sum(1))
    )
    chance = rows * columns / np.maximum(_pairs(pixels), 1)
    room = (rows + columns) / 2 - chance
    score = np.where(room > 0, (alike - chance) / np.where(room > 0, room, 1), 1.0)
    return np.where(pixels > 0, score, np.nan)


def covering(true: Ids, found: Ids) -> Scores:
    """Return how well each frame's objects are covered: the mean of their best IoUs (mSC-FG).

    As in GENESIS (4.2): each object takes the found segment that fits it best, the same one twice
    if need be. A frame without objects is not a number.
    """
    table = overlaps(true, found)
    shared = table[:, 1:]
    union = shared.sum(2, keepdims=True) + table.sum(1)[:, None] - shared
    best = np.max(shared / np.maximum(union, 1), axis=2, initial=0.0)
    there = shared.sum(2) > 0
    objects = there.sum(1)
    mean = (best * there).sum(1) / np.maximum(objects, 1)
    return np.where(objects > 0, mean, np.nan)


def _pairs(count: npt.NDArray[np.int64]) -> Scores:
    """Return how many pairs there are of so many."""
    size = count.astype(np.float64)
    return np.asarray(size * (size - 1) / 2)
