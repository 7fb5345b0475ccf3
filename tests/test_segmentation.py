"""Scores of segmentations, against brute force and by hand."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from objrl.segmentation import adjusted_rand, covering

IDS = arrays(np.int64, (1, 4, 4), elements=st.integers(0, 3))


def pairwise(true: npt.NDArray[np.int64], found: npt.NDArray[np.int64]) -> float:
    """The adjusted Rand index by looking at every pair of pixels."""
    kept = [(a, b) for a, b in zip(true.ravel(), found.ravel(), strict=True) if a]
    pairs = list(combinations(kept, 2))
    together = sum(a == c and b == d for (a, b), (c, d) in pairs)
    rows, columns = sum(a == c for (a, _), (c, _) in pairs), sum(b == d for (_, b), (_, d) in pairs)
    chance = rows * columns / max(len(pairs), 1)
    room = (rows + columns) / 2 - chance
    return 1.0 if room == 0 else (together - chance) / room


@given(IDS, IDS)
def test_adjusted_rand_counts_pairs(
    true: npt.NDArray[np.int64], found: npt.NDArray[np.int64]
) -> None:
    score = adjusted_rand(true, found)[0]
    if true.any():
        assert score == pytest.approx(pairwise(true, found), abs=1e-12)
    else:
        assert np.isnan(score)


def test_numbers_and_the_background_play_no_part() -> None:
    true = np.array([[[0, 0, 1, 1], [2, 2, 0, 3]]])
    found = np.array([[[5, 1, 4, 4], [0, 0, 2, 2]]])
    assert adjusted_rand(true, found)[0] == 1
    assert adjusted_rand(true, np.zeros_like(true))[0] == 0


def test_covering_by_hand() -> None:
    """Object 1 has 2 of 3 pixels of its segment, object 2 half of a segment of two."""
    true = np.array([[[1, 1, 0, 0], [2, 0, 0, 0]], [[0, 0, 0, 0]] * 2])
    found = np.array([[[1, 1, 1, 0], [2, 2, 0, 0]], [[1, 0, 0, 0]] * 2])
    score = covering(true, found)
    assert score[0] == pytest.approx((2 / 3 + 1 / 2) / 2)
    assert np.isnan(score[1])


def test_what_cannot_be_compared_is_refused() -> None:
    with pytest.raises(ValueError, match="expected two arrays"):
        adjusted_rand(np.zeros((1, 2, 2), int), np.zeros((1, 3, 2), int))
    with pytest.raises(ValueError, match="from 0 on"):
        covering(np.full((1, 2, 2), -1), np.zeros((1, 2, 2), int))
