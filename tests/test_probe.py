"""Whether `what` tells classes apart: the probes, the clusters, and the rows beside them."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from objrl.metrics import Truth
from objrl.pretrain.learners import (
    adjusted_mutual_information,
    kmeans,
    linear,
    nearest,
    purity,
    squared_distances,
)
from objrl.pretrain.probe import (
    NEIGHBOURS,
    SIDE,
    Probe,
    TooFewMatches,
    crops,
    matched,
    probe,
    probe_perceiver,
)
from tests.helpers import make_stub_perceiver

NOTHING = np.zeros((0, 4))
Floats = npt.NDArray[np.float64]


def blobs(labels: npt.NDArray[Any], apart: float, seed: int = 0) -> Floats:
    """Points around a centre of their own for each label."""
    rng = np.random.default_rng(seed)
    number = np.unique(labels, return_inverse=True)[1]
    return rng.normal(size=(len(labels), 3)) + apart * np.eye(3)[number]


def many(classes: int = 3, frames: int = 40, each: int = 6) -> tuple[Any, Any]:
    """Labels and frame numbers, the classes equally common."""
    index = np.repeat(np.arange(frames), each)
    return np.arange(len(index)) % classes, index


def coloured_squares(frames: int = 16) -> tuple[npt.NDArray[np.uint8], Truth]:
    """Squares of one size in random places, one of each colour a frame: colour is the class."""
    rng = np.random.default_rng(0)
    pictures = np.zeros((frames, 40, 60, 3), np.uint8)
    truth = []
    for picture in pictures:
        corners = [(20 * column + rng.integers(14), rng.integers(34)) for column in range(3)]
        for (x, y), colour in zip(corners, ((255, 0, 0), (0, 255, 0), (0, 0, 255)), strict=True):
            picture[y : y + 6, x : x + 6] = colour
        truth.append(np.array([(x, y, x + 6, y + 6) for x, y in corners], dtype=np.float64))
    return pictures, Truth(truth, [("red", "green", "blue")] * frames, [NOTHING] * frames)


def test_classes_that_lie_apart_are_told_apart_and_noise_is_not() -> None:
    labels, index = many()
    clear = probe(blobs(labels, apart=20.0), labels, index)
    assert clear.linear == clear.linear_balanced == clear.neighbours == 1
    assert clear.neighbours_balanced == 1
    assert clear.ami > 0.7  # some of the first guesses of k-means end badly
    assert clear.purity_many > 0.99
    assert clear.ami_many < 0.7  # 16 clusters are too many for three blobs
    noise = probe(blobs(labels, apart=0.0), labels, index)
    assert all(abs(share - 1 / 3) < 0.15 for share in (noise.linear, noise.neighbours_balanced))
    assert abs(noise.ami) < 0.05


def test_no_frame_is_on_both_sides() -> None:
    # Each frame has one class and one look, so that a split within frames would be solved at once.
    index = np.repeat(np.arange(60), 8)
    labels = np.random.default_rng(0).integers(0, 2, 60)[index]
    features = np.random.default_rng(1).normal(size=(60, 4))[index]
    found = probe(features, labels, index)
    assert found.neighbours < 0.75
    assert found.train == found.test == 240
    shuffled = np.random.default_rng(2).permutation(480)
    again = probe(features[shuffled], labels[shuffled], index[shuffled])
    assert again.neighbours == found.neighbours  # the order of the rows is not that of the frames


def test_what_is_learned_comes_from_the_first_half_alone() -> None:
    labels, index = many(classes=2)
    features = (2.0 * labels - 1)[:, None] * np.where(index < 20, 1.0, -1.0)[:, None]
    found = probe(features, labels, index)
    assert found.linear == found.neighbours == 0


def test_chance_and_the_balance_of_rare_classes() -> None:
    index = np.repeat(np.arange(20), 10)
    labels = np.where(np.arange(200) % 10 == 0, "player", "alien")
    found = probe(np.ones((200, 2)), labels, index)  # nothing to go by
    assert found.classes == {"alien": 180, "player": 20}
    assert found.majority == found.majority_purity == found.linear == found.purity == 0.9
    assert found.majority_balanced == found.linear_balanced == found.neighbours_balanced == 0.5
    assert found.ami == 0


def test_rare_classes_are_left_out_and_named() -> None:
    labels, index = many(classes=3)
    names = np.array(["a", "b", "c"], dtype="<U4")[labels]
    late = index[names == "b"] >= 30  # enough of them, but none in the first half
    names[np.flatnonzero(names == "b")[~late]] = "a"
    names[np.flatnonzero(names == "b")[:2]] = "once"
    found = probe(blobs(labels, apart=20.0), names, index)
    assert set(found.classes) == {"a", "c"}
    assert found.left_out == {"b": 18, "once": 2}
    assert found.train + found.test == sum(found.classes.values()) == 240 - 20


def test_the_same_seed_gives_the_same_and_names_play_no_part() -> None:
    labels, index = many()
    features = blobs(labels, apart=2.0)
    first = probe(features, labels, index)
    assert probe(features, labels, index) == first
    renamed = probe(features, np.array(["z", "y", "x"])[labels], index)
    assert renamed.metrics() == pytest.approx(first.metrics())
    assert probe(features * (1, 1000, 0.001) + 5, labels, index).metrics() == pytest.approx(
        first.metrics()
    )  # every feature is standardised
    assert 0 < first.linear < 1
    assert set(first.metrics()) >= {"linear", "neighbours_balanced", "ami_many", "majority"}
    assert all(isinstance(value, float) for value in first.metrics().values())


def test_what_cannot_be_probed_says_why() -> None:
    labels, index = many()
    features = blobs(labels, apart=1.0)
    with pytest.raises(TooFewMatches, match=r"two classes.* got 1 .*0 240"):
        probe(features, np.zeros(240, int), index)
    with pytest.raises(TooFewMatches, match=r"got 0 .*0 2, 1 2, 2 2.*more frames"):
        probe(features[:6], labels[:6], index[:6])
    with pytest.raises(TooFewMatches, match="in all: none"):
        probe(features[:0], labels[:0], index[:0])
    with pytest.raises(ValueError, match=r"labels \(M,\).* got \(240, 3\), \(239,\)"):
        probe(features, labels[1:], index)
    features[3, 1] = np.nan
    with pytest.raises(ValueError, match="finite"):
        probe(features, labels, index)


def test_neighbours_see_what_no_line_can_part() -> None:
    corner = np.random.default_rng(0).integers(0, 2, (400, 2))
    points, label = 4.0 * corner - 2 + blobs(np.zeros(400), 0)[:, :2] / 4, corner.sum(axis=1) % 2
    guess = nearest(points[:200], label[:200], points[200:], NEIGHBOURS)
    assert (guess == label[200:]).mean() == 1
    assert (linear(points[:200], label[:200], points[200:]) == label[200:]).mean() < 0.8


def test_the_majority_of_neighbours_wins_and_the_nearest_where_there_is_none() -> None:
    train, test = np.array([[0.0], [2.0], [3.0], [9.0]]), np.zeros((1, 1))
    assert nearest(train, np.array([1, 0, 0, 1]), test, 3).tolist() == [0]
    assert nearest(train, np.array([1, 0, 0, 1]), test, 4).tolist() == [1]
    assert nearest(train, np.array([2, 0, 1, 1]), test, 2).tolist() == [2]


def test_adjusted_mutual_information_by_hand() -> None:
    half = np.array([0, 0, 1, 1])
    # E[MI]: two of a cell's four points meet in 1 of 6 ways, worth log(2) / 2 in each of 4 cells.
    assert adjusted_mutual_information(half, np.array([0, 1, 0, 1])) == pytest.approx(-1 / 2)
    assert adjusted_mutual_information(half, np.array([7, 7, 3, 3])) == pytest.approx(1)
    assert adjusted_mutual_information(half, np.zeros(4, int)) == pytest.approx(0)
    assert adjusted_mutual_information(np.zeros(4, int), np.zeros(4, int)) == 1
    assert adjusted_mutual_information(np.arange(4), np.arange(4)) == 1


@pytest.mark.parametrize("second", [(0, 0, 1, 1, 2, 2), (0, 0, 0, 0, 0, 1)])
def test_adjusted_mutual_information_is_zero_on_average_over_all_orders(
    second: tuple[int, ...],
) -> None:
    first = np.array([0, 0, 0, 1, 1, 2])
    orders = [np.array(order) for order in itertools.permutations(second)]
    found = [adjusted_mutual_information(first, order) for order in orders]
    assert np.mean(found) == pytest.approx(0, abs=1e-12)
    assert max(found) > 0.4


def test_adjusted_mutual_information_asks_neither_names_nor_order() -> None:
    rng = np.random.default_rng(0)
    first = rng.integers(0, 4, 3000)
    second = np.where(rng.random(3000) < 0.5, first, rng.integers(0, 9, 3000))
    found = adjusted_mutual_information(first, second)
    assert 0.1 < found < 0.6
    assert adjusted_mutual_information(second, first) == pytest.approx(found)
    assert adjusted_mutual_information(first, 10 - second) == pytest.approx(found)
    assert abs(adjusted_mutual_information(first, rng.integers(0, 9, 3000))) < 0.01


def test_purity_by_hand() -> None:
    labels = np.array([0, 0, 0, 1, 1, 2])
    assert purity(labels, np.array([5, 5, 8, 8, 8, 8])) == pytest.approx((2 + 2) / 6)
    assert purity(labels, np.arange(6)) == 1
    assert purity(labels, np.zeros(6, int)) == 0.5


def test_kmeans_finds_blobs_and_bears_fewer_points_than_clusters() -> None:
    labels = np.repeat(np.arange(3), 20)
    found = kmeans(blobs(labels, apart=100.0), 3, np.random.default_rng(0))
    assert adjusted_mutual_information(labels, found) == pytest.approx(1)
    twice = np.array([[0.0], [1.0]] * 4)
    assert purity(np.array([0, 1] * 4), kmeans(twice, 5, np.random.default_rng(0))) == 1
    np.testing.assert_allclose(squared_distances(twice[:1], twice[:2]), [[0, 1]])


def test_matches_are_rows_of_what_was_found() -> None:
    true = np.array([[0, 0, 4, 4], [20, 0, 24, 4], [40, 0, 44, 4]], dtype=np.float64)
    truth = Truth(
        [true, NOTHING, true[:1]], [("a", "b", "c"), (), ("a",)], [NOTHING, NOTHING, NOTHING]
    )
    rows, labels = matched(truth, [true[[2, 0]] + 1, true, NOTHING])  # b is missed
    assert [each.tolist() for each in rows] == [[1, 0], [], []]
    assert labels.tolist() == ["a", "c"]
    with pytest.raises(ValueError, match="each of the 3 frames"):
        matched(truth, [true])


def test_crops_show_what_is_in_the_boxes() -> None:
    frames = np.zeros((3, 30, 50, 3), np.uint8)
    frames[0, 5:15, 10:20] = 0, 51, 255  # a box of one colour
    frames[2, 8:24, 30:46] = np.arange(16)[:, None, None] * 17  # brighter downwards, of SIDE pixels
    found = crops(frames, [np.array([[10.0, 5, 20, 15]]), NOTHING, np.array([[30.0, 8, 46, 24]])])
    assert found.shape == (2, 3 * SIDE * SIDE)
    assert found.dtype == np.float32
    inner = found[0].reshape(3, SIDE, SIDE)[:, 1:-1, 1:-1]  # at the rim, what is outside mixes in
    np.testing.assert_allclose(inner, np.broadcast_to([[[0]], [[0.2]], [[1]]], inner.shape))
    down = np.broadcast_to(np.arange(16)[:, None] / 15, (3, 16, 16)).ravel()
    np.testing.assert_allclose(found[1], down, atol=1e-5)
    assert crops(frames, [NOTHING] * 3).shape == (0, 3 * SIDE * SIDE)


def test_a_perceiver_whose_what_is_the_colour_tells_colours_apart() -> None:
    frames, truth = coloured_squares()
    rows = probe_perceiver(make_stub_perceiver(), frames, truth)
    assert list(rows) == ["what", "crop", "crop-pca", "size"]
    assert all(isinstance(row, Probe) for row in rows.values())
    assert rows["what"].classes == {"blue": 16, "green": 16, "red": 16}
    for name in ("what", "crop", "crop-pca"):
        assert rows[name].linear == rows[name].neighbours == 1
    assert rows["size"].linear == rows["size"].majority == pytest.approx(1 / 3)  # all are alike
    assert probe_perceiver(make_stub_perceiver(), frames, truth, batch=5) == rows
    with pytest.raises(ValueError, match="each of the 15 frames"):
        probe_perceiver(make_stub_perceiver(), frames[1:], truth)


def test_a_perceiver_that_finds_nothing_is_told_so() -> None:
    frames, truth = coloured_squares()
    with pytest.raises(TooFewMatches, match="finds more"):
        probe_perceiver(make_stub_perceiver(), np.zeros_like(frames), truth)
