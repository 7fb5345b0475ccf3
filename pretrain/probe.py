"""How well the latent `what` tells classes of objects apart, beside rows that need no learning.

Detections are matched to true boxes by centre (`objrl.metrics`), so that each gets a class; what
was missed plays no part here. From the features of the matched ones a class is guessed

- by a linear probe (multinomial logistic regression) and by the nearest neighbours, learned on
  the first half of the frames and tested on the last half: no frame is on both sides;
- by k-means, which sees no labels, with as many clusters as classes and with `CLUSTERS`. Classes
  need not be clusters (a game may draw its aliens in six ways), so the larger number is fairer;
  it is one fixed number because purity grows with it and would not compare otherwise.

`probe_perceiver` measures four rows of features alike: `what`; `crop`, the pixels in the same
boxes; `crop-pca`, those in as few numbers as `what` has; and `size`, width and height alone, which
is what a box tells without `what`. A `what` that does no better than `size` adds nothing.

Letters: N frames, H W pixels, n boxes of one frame, M matched detections, F features, L classes,
D features of `what`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from objrl import metrics
from objrl.metrics import Boxes, Truth
from objrl.nn.spatial import extract
from objrl.perceiver import Perceiver
from objrl.pretrain import learners
from objrl.pretrain.learners import Numbers

Features = npt.NDArray[np.floating[Any]]
"""(M, F) of matched detections."""

SIDE = 16
"""Pixels of a side that crops are resized to."""

NEIGHBOURS = 5
"""How many of the nearest vote."""

CLUSTERS = 16
"""k of the k-means that is not told how many classes there are."""

MIN_MEMBERS = 5
"""A class with fewer detections in either half of the frames is left out."""

STARTS = 10
"""k-means is begun so often, and the figures are means. The tightest alone would be a lottery:
with as many clusters as classes, that of 20 had an AMI of 0.07 to 0.32 by the seed (`what` of
Space Invaders)."""


class TooFewMatches(ValueError):
    """What was matched cannot be probed: fewer than two classes have enough members."""


@dataclass(frozen=True)
class Probe:
    """How well features tell L classes apart; figures are in [0, 1], and only AMI may fall below.

    Balanced accuracy is the mean over classes of the recall; always naming one class gives 1 / L.
    Accuracies are those of the last half of the frames, clusters are made of all of them.

    Attributes:
        classes: detections by class, of those that are told apart.
        left_out: detections by class, of those with fewer than `MIN_MEMBERS` in either half.
        train: detections in the first half of the frames.
        test: detections in the last half.
        majority: chance: accuracy of always naming the class that is commonest in `train`.
        majority_balanced: chance: 1 / L.
        majority_purity: chance: purity of one single cluster.
        linear: accuracy of the linear probe.
        linear_balanced: its balanced accuracy.
        neighbours: accuracy of the vote of the `NEIGHBOURS` nearest.
        neighbours_balanced: its balanced accuracy.
        ami: adjusted mutual information of L clusters and the classes; chance is 0.
        purity: share of detections that are of the commonest class of their cluster.
        ami_many: `ami` of `CLUSTERS` clusters.
        purity_many: `purity` of `CLUSTERS` clusters.
    """

    classes: dict[str, int]
    left_out: dict[str, int]
    train: int
    test: int
    majority: float
    majority_balanced: float
    majority_purity: float
    linear: float
    linear_balanced: float
    neighbours: float
    neighbours_balanced: float
    ami: float
    purity: float
    ami_many: float
    purity_many: float

    def metrics(self) -> dict[str, float]:
        """Return the figures by name, without the counts."""
        return {name: value for name, value in asdict(self).items() if isinstance(value, float)}


def probe_perceiver(
    perceiver: Perceiver,
    frames: npt.NDArray[np.uint8],
    truth: Truth,
    batch: int = 16,
    seed: int = 0,
) -> dict[str, Probe]:
    """Encode frames without a past and probe what was seen.

    Args:
        perceiver: any; its weights are not changed.
        frames: (N, H, W, 3) uint8 RGB, in the order in which they were played.
        truth: what there is to find in them, in their pixels.
        batch: how many are encoded at once.
        seed: of the first guesses of k-means.

    Returns:
        The rows `what`, `crop`, `crop-pca` and `size`.

    Raises:
        TooFewMatches: fewer than two classes with enough detections.
        ValueError: not as many frames as the truth has.
        ImportError: scipy of `objrl[eval]` is missing.
    """
    if len(frames) != len(truth):
        raise ValueError(
            f"probe_perceiver: expected truth for each of the {len(frames)} frames, "
            f"got it for {len(truth)}"
        )
    height, width = frames.shape[1:3]
    boxes: list[Boxes] = []
    others: list[Features] = []  # width, height and what
    for start in range(0, len(frames), batch):
        slots = perceiver.encode(torch.from_numpy(frames[start : start + batch]))
        found, mask = slots.boxes(height, width).double().cpu().numpy(), slots.mask.cpu().numpy()
        told = torch.cat([slots.scale, slots.what], dim=2).detach().cpu().numpy()
        boxes += [rows[here] for rows, here in zip(found, mask, strict=True)]
        others += [rows[here] for rows, here in zip(told, mask, strict=True)]
    rows, labels = matched(truth, boxes)
    index = np.repeat(np.arange(len(rows)), [len(chosen) for chosen in rows])
    slot = np.concatenate([each[chosen] for each, chosen in zip(others, rows, strict=True)])
    size, what = slot[:, :2], slot[:, 2:]
    pixels = crops(frames, [found[chosen] for found, chosen in zip(boxes, rows, strict=True)])
    small = _principal(pixels, _first_half(index), what.shape[1])
    features = {"what": what, "crop": pixels, "crop-pca": small, "size": size}
    return {name: probe(each, labels, index, seed) for name, each in features.items()}


def matched(truth: Truth, predicted: Sequence[Boxes]) -> tuple[list[Numbers], npt.NDArray[np.str_]]:
    """Return which predicted boxes fit a true one by centre, and the classes of those.

    Args:
        truth: what there is to find in N frames.
        predicted: N arrays (p, 4), what was found.

    Returns:
        N int64 arrays of rows of `predicted`, in the order of the true boxes; and the (M,) labels
        of all of them, frame by frame.

    Raises:
        ValueError: not one array of predictions for each frame of the truth.
    """
    if len(predicted) != len(truth):
        raise ValueError(
            f"matched: expected predictions for each of the {len(truth)} frames of the truth, "
            f"got them for {len(predicted)}"
        )
    rows: list[Numbers] = []
    labels: list[str] = []
    for true, names, found in zip(truth.boxes, truth.labels, predicted, strict=True):
        partner = metrics.match(true, found, "centre")
        rows.append(partner[partner >= 0])
        labels += [name for name, row in zip(names, partner, strict=True) if row >= 0]
    return rows, np.array(labels, dtype=np.str_)


def crops(frames: npt.NDArray[np.uint8], boxes: Sequence[Boxes]) -> npt.NDArray[np.float32]:
    """Cut boxes out of their frames, resized to `SIDE` x `SIDE` as SPACE cuts its glimpses.

    Nothing is smoothed: of a box with longer sides, pixels are skipped.

    Args:
        frames: (N, H, W, 3) uint8 RGB.
        boxes: N arrays (n, 4) x0 y0 x1 y1 in pixels.

    Returns:
        (M, 3 * SIDE * SIDE) float32 in [0, 1], frame by frame.
    """
    scale = np.array([frames.shape[2], frames.shape[1]], dtype=np.float64)
    cut = [np.zeros((0, 3 * SIDE * SIDE), dtype=np.float32)]
    for frame, found in zip(frames, boxes, strict=True):
        if not len(found):
            continue
        size, centre = found[:, 2:] - found[:, :2], found[:, 2:] + found[:, :2]
        where = torch.from_numpy(np.concatenate([size / scale, centre / scale - 1], axis=1))
        image = torch.from_numpy(frame).permute(2, 0, 1)[None].float() / 255
        cut.append(extract(image, where[None], SIDE)[0].flatten(1).numpy())
    return np.concatenate(cut)


def probe(
    features: Features,
    labels: npt.NDArray[Any],
    frame_index: npt.NDArray[np.integer[Any]],
    seed: int = 0,
) -> Probe:
    """Measure how well features tell classes apart; the same every time for the same seed.

    Every feature is brought to mean 0 and deviation 1, as the first half of the frames has it.

    Args:
        features: (M, F) floats.
        labels: (M,) int or str, the class of each.
        frame_index: (M,) int, the frame that each is from, in the order of play. An episode's
            number serves as well: then no episode is on both sides.
        seed: of the first guesses of k-means.

    Raises:
        TooFewMatches: fewer than two classes have `MIN_MEMBERS` in both halves of the frames.
        ValueError: arrays of other shapes, or features that are not finite.
    """
    features = np.asarray(features, dtype=np.float64)
    count = len(features)
    if features.ndim != 2 or labels.shape != (count,) or frame_index.shape != (count,):
        raise ValueError(
            "probe: expected features (M, F), labels (M,) and frame_index (M,), got "
            f"{features.shape}, {labels.shape} and {frame_index.shape}"
        )
    if not np.isfinite(features).all():
        raise ValueError("probe: expected finite features, got NaN or infinity; see the perceiver")

    names, label = np.unique(labels, return_inverse=True)
    first = _first_half(frame_index)
    halves = [np.bincount(label[half], minlength=len(names)) for half in (first, ~first)]
    enough = np.minimum(*halves) >= MIN_MEMBERS
    members = zip(names, halves[0] + halves[1], strict=True)
    total = {str(name): int(number) for name, number in members}
    classes = {str(name): total[str(name)] for name in names[enough]}
    if len(classes) < 2:
        found = ", ".join(f"{name} {number}" for name, number in total.items()) or "none"
        raise TooFewMatches(
            f"probe: expected two classes or more with {MIN_MEMBERS} matched detections in each "
            f"half of the frames, got {len(classes)} (detections in all: {found}); give more "
            "frames, or a perceiver that finds more"
        )

    keep = enough[label]
    features, first = features[keep], first[keep]
    label = np.unique(label[keep], return_inverse=True)[1]  # 0..L-1 of those that are left
    spread = features[first].std(axis=0)
    # What varies by the rounding errors of float32 tells nothing; made larger, it would seem to.
    spread[spread <= 1e-6 * np.abs(features).max(axis=0)] = np.inf
    points = (features - features[first].mean(axis=0)) / spread

    train, known, test, asked = points[first], label[first], points[~first], label[~first]
    linear = learners.linear(train, known, test)
    vote = learners.nearest(train, known, test, NEIGHBOURS)
    ami, pure = _cluster(points, label, len(classes), seed)
    ami_many, pure_many = _cluster(points, label, CLUSTERS, seed)
    return Probe(
        classes=classes,
        left_out={name: number for name, number in total.items() if name not in classes},
        train=len(train),
        test=len(test),
        majority=float((asked == np.bincount(known).argmax()).mean()),
        majority_balanced=1 / len(classes),
        majority_purity=max(classes.values()) / len(points),
        linear=float((linear == asked).mean()),
        linear_balanced=_balanced(linear, asked),
        neighbours=float((vote == asked).mean()),
        neighbours_balanced=_balanced(vote, asked),
        ami=ami,
        purity=pure,
        ami_many=ami_many,
        purity_many=pure_many,
    )


def _first_half(frame_index: npt.NDArray[np.integer[Any]]) -> npt.NDArray[np.bool]:
    """(M,) bool: which are from the first half of the frames that have any."""
    frames, position = np.unique(frame_index, return_inverse=True)
    return np.asarray(position < (len(frames) + 1) // 2)


def _balanced(guess: Numbers, label: Numbers) -> float:
    """Mean over classes of the share that was guessed right."""
    return float(np.mean([(guess[label == each] == each).mean() for each in np.unique(label)]))


def _cluster(points: Features, label: Numbers, count: int, seed: int) -> tuple[float, float]:
    """Mean AMI and purity of k-means from `STARTS` first guesses."""
    rng = np.random.default_rng(seed)
    found = [learners.kmeans(points, count, rng) for _ in range(STARTS)]
    ami = [learners.adjusted_mutual_information(label, clusters) for clusters in found]
    pure = [learners.purity(label, clusters) for clusters in found]
    return float(np.mean(ami)), float(np.mean(pure))


def _principal(points: Features, fit: npt.NDArray[np.bool], count: int) -> Features:
    """(M, F) -> (M, at most count): principal components of the rows to fit on."""
    if not fit.any():
        return points[:, :count]
    mean = points[fit].mean(axis=0)
    _, along, axes = np.linalg.svd(points[fit] - mean, full_matrices=False)
    axes = axes[along > 1e-6 * along[0]][:count]  # the rest is rounding
    return np.asarray((points - mean) @ axes.T)
