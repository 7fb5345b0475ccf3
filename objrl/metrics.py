"""How well boxes and pictures fit: the scores that are reported, and what exactly they count.

Boxes are x0 y0 x1 y1 in pixels of the frame. A predicted box fits a true one

- by centre, when their centres lie within half of the true box's diagonal of each other;
- by IoU, when their intersection over union is at least 0.5.

Pairs are one to one, chosen so that they fit best in sum; classes play no part in the matching.
A prediction that is left over counts as a false alarm, unless its centre lies in an ignored box
(score digits, an object that is there but not drawn): then it counts neither way.

Letters: N frames, n true boxes and p predicted boxes of one frame.
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from torch import Tensor

Boxes = npt.NDArray[np.float64]
"""(n, 4) float64 x0 y0 x1 y1 in pixels."""

Rule = Literal["centre", "iou"]
"""When a predicted box fits a true one."""

FIT = 0.5
"""A pair fits from here on: the IoU, or 1 - distance of the centres / diagonal."""

MARGIN = np.array([-12.0, -3.0, 12.0, 3.0])
"""Added to ignored boxes: those of a score leave out its leading digits."""

IOU_THRESHOLDS = np.linspace(0.5, 0.95, 10)
"""The thresholds that AP50:95 averages over."""


@dataclass(frozen=True)
class Truth:
    """What there is to find in N frames.

    Attributes:
        boxes: N arrays (n, 4). The objects.
        labels: N tuples of n class names, which only the recall per class looks at.
        ignored: N arrays (m, 4). Where predictions count neither way, without `MARGIN`.
    """

    boxes: Sequence[Boxes]
    labels: Sequence[tuple[str, ...]]
    ignored: Sequence[Boxes]

    def __post_init__(self) -> None:
        if not len(self.boxes) == len(self.labels) == len(self.ignored):
            raise ValueError(
                "Truth: expected boxes, labels and ignored for the same number of frames, "
                f"got {len(self.boxes)}, {len(self.labels)} and {len(self.ignored)}"
            )
        for index, (boxes, names) in enumerate(zip(self.boxes, self.labels, strict=True)):
            if boxes.shape != (len(names), 4):
                raise ValueError(
                    f"Truth: frame {index} has {len(names)} labels, so boxes must have shape "
                    f"{(len(names), 4)}, got {boxes.shape}"
                )

    def __len__(self) -> int:
        return len(self.boxes)

    @property
    def count(self) -> int:
        """How many objects there are in all frames together."""
        return sum(len(boxes) for boxes in self.boxes)

    def select(self, indices: Sequence[int] | npt.NDArray[np.int64]) -> Truth:
        """Return the truth of some of the frames, in the order asked."""
        return Truth(
            [self.boxes[i] for i in indices],
            [self.labels[i] for i in indices],
            [self.ignored[i] for i in indices],
        )


@dataclass(frozen=True)
class Score:
    """How well the boxes of N frames fit by one rule; all in [0, 1] but the errors.

    Attributes:
        f1: 2 hits / (2 hits + false alarms + misses).
        precision: hits / (hits + false alarms).
        recall: hits / (hits + misses).
        count_error: mean over frames of |counted - n| / max(n, 1); may exceed 1.
        class_recall: recall by class name.
        class_count: true boxes by class name.
        errors: (N,) int64. Misses and false alarms of each frame.
    """

    f1: float
    precision: float
    recall: float
    count_error: float
    class_recall: dict[str, float]
    class_count: dict[str, int]
    errors: npt.NDArray[np.int64]


@dataclass(frozen=True)
class AveragePrecision:
    """Area under the precision-recall curve, classes ignored, in [0, 1]."""

    ap50: float
    """At IoU 0.5."""
    ap50_95: float
    """Mean over IoU 0.5, 0.55, …, 0.95."""


def iou(true: Boxes, predicted: Boxes) -> npt.NDArray[np.float64]:
    """Return the (n, p) intersections over unions.

    The 1e-9 serves empty boxes, and it is part of the rule: exactly one half does not reach `FIT`.
    """
    low = np.maximum(true[:, None, :2], predicted[None, :, :2])
    high = np.minimum(true[:, None, 2:], predicted[None, :, 2:])
    shared = (high - low).clip(0).prod(-1)
    areas = _sizes(true).prod(-1)[:, None] + _sizes(predicted).prod(-1)[None]
    return np.asarray(shared / (areas - shared + 1e-9))


def closeness(true: Boxes, predicted: Boxes) -> npt.NDArray[np.float64]:
    """Return (n, p): 1 - distance of the centres / the true box's diagonal."""
    apart = np.linalg.norm(_centres(true)[:, None] - _centres(predicted)[None], axis=-1)
    diagonal = np.linalg.norm(_sizes(true), axis=-1)[:, None]
    return np.asarray(1 - apart / np.maximum(diagonal, 1e-9))


def match(true: Boxes, predicted: Boxes, rule: Rule) -> npt.NDArray[np.int64]:
    """Return for each true box the predicted box that fits it, or -1; (n,) int64."""
    partner = np.full(len(true), -1, dtype=np.int64)
    if not len(true) or not len(predicted):
        return partner
    fit = iou(true, predicted) if rule == "iou" else closeness(true, predicted)
    rows, columns = _assign(-np.where(fit >= FIT, fit, 0.0))
    fits = fit[rows, columns] >= FIT
    partner[rows[fits]] = columns[fits]
    return partner


def score(truth: Truth, predicted: Sequence[Boxes], rule: Rule) -> Score:
    """Score the boxes of N frames by one rule.

    Args:
        truth: what there is to find.
        predicted: N arrays (p, 4), what was found.
        rule: when a box fits.

    Raises:
        ValueError: not one array of predictions for each frame of the truth.
    """
    _check_frames(truth, predicted)
    hits = alarms = 0
    seen: dict[str, int] = {}
    number: dict[str, int] = {}
    errors, count_errors = [], []
    for true, names, ignored, found in zip(
        truth.boxes, truth.labels, truth.ignored, predicted, strict=True
    ):
        partner = match(true, found, rule)
        left = _left_over(found, partner, ignored)
        here, wrong = int((partner >= 0).sum()), int(left.sum())
        hits, alarms = hits + here, alarms + wrong
        errors.append(len(true) - here + wrong)
        count_errors.append(abs(here + wrong - len(true)) / max(len(true), 1))
        for name, hit in zip(names, partner >= 0, strict=True):
            seen[name] = seen.get(name, 0) + int(hit)
            number[name] = number.get(name, 0) + 1
    return Score(
        f1=2 * hits / max(hits + alarms + truth.count, 1),
        precision=hits / max(hits + alarms, 1),
        recall=hits / max(truth.count, 1),
        count_error=float(np.mean(count_errors)) if count_errors else 0.0,
        class_recall={name: seen[name] / number[name] for name in sorted(number)},
        class_count={name: number[name] for name in sorted(number)},
        errors=np.array(errors, dtype=np.int64),
    )


def average_precision(
    truth: Truth, predicted: Sequence[Boxes], confidence: Sequence[npt.NDArray[np.floating[Any]]]
) -> AveragePrecision:
    """Score boxes with confidences by pycocotools; frames without a true box are fine.

    Args:
        truth: what there is to find.
        predicted: N arrays (p, 4). Those left over in ignored boxes are dropped first, so that
            the same predictions count here and in `score`.
        confidence: N arrays (p,). Larger is surer.

    Raises:
        ImportError: pycocotools is missing.
        ValueError: no true box in any frame, or other numbers of frames.
    """
    try:
        from pycocotools.coco import COCO
        from pycocotools.cocoeval import COCOeval
    except ImportError as error:
        raise ImportError(_needs("average precision", "pycocotools")) from error
    _check_frames(truth, predicted)
    if truth.count == 0:
        raise ValueError("average_precision: expected at least one true box, got none in any frame")

    true_rows: list[dict[str, Any]] = []
    found_rows: list[dict[str, Any]] = []
    for index, (true, ignored, found, sure) in enumerate(
        zip(truth.boxes, truth.ignored, predicted, confidence, strict=True)
    ):
        partner = match(true, found, "iou")
        keep = _left_over(found, partner, ignored)
        keep[partner[partner >= 0]] = True
        true_rows += _coco_rows(index, true)
        found_rows += _coco_rows(index, found[keep], sure[keep])

    def coco(rows: list[dict[str, Any]]) -> Any:
        # Ids from 1: pycocotools writes the id of the partner and takes 0 for "none".
        rows = [{**row, "id": number} for number, row in enumerate(rows, start=1)]
        images = [{"id": index} for index in range(len(truth))]
        held = COCO()
        held.dataset = {"images": images, "categories": [{"id": 1}], "annotations": rows}
        held.createIndex()
        return held

    with contextlib.redirect_stdout(io.StringIO()):
        run = COCOeval(coco(true_rows), coco(found_rows), "bbox")
        run.params.iouThrs = IOU_THRESHOLDS
        run.params.areaRng, run.params.areaRngLbl = [[0, 1e10]], ["all"]
        run.params.maxDets = [max(1, *(len(found) for found in predicted))]
        run.evaluate()
        run.accumulate()
    precision = run.eval["precision"][..., 0, 0, 0].mean(axis=1)  # (thresholds,) over 101 recalls
    return AveragePrecision(float(precision[0]), float(precision.mean()))


def squared_error(image: Tensor, reconstruction: Tensor) -> Tensor:
    """Return the squared error of each image, summed over its pixels and channels.

    Args:
        image: (B, C, H, W) float32 in [0, 1].
        reconstruction: the same shape.

    Returns:
        (B,) float32; divided by C * H * W it is the mean squared error of that image.
    """
    if image.shape != reconstruction.shape:
        raise ValueError(
            "squared_error: expected two batches of one shape, got "
            f"{tuple(image.shape)} and {tuple(reconstruction.shape)}"
        )
    return (image - reconstruction).square().flatten(1).sum(1)


def _sizes(boxes: Boxes) -> Boxes:
    """(n, 2) width and height."""
    return boxes[:, 2:] - boxes[:, :2]


def _centres(boxes: Boxes) -> Boxes:
    """(n, 2) x and y."""
    return (boxes[:, :2] + boxes[:, 2:]) / 2


def _assign(cost: npt.NDArray[np.float64]) -> tuple[npt.NDArray[Any], npt.NDArray[Any]]:
    """Rows and columns of the one-to-one pairs of least summed cost."""
    try:
        from scipy.optimize import linear_sum_assignment
    except ImportError as error:
        raise ImportError(_needs("matching boxes", "scipy")) from error
    rows, columns = linear_sum_assignment(cost)
    return rows, columns


def _left_over(
    found: Boxes, partner: npt.NDArray[np.int64], ignored: Boxes
) -> npt.NDArray[np.bool]:
    """(p,) bool: which predictions are false alarms."""
    alarms = np.ones(len(found), dtype=np.bool)
    alarms[partner[partner >= 0]] = False
    if len(ignored):
        centres, wide = _centres(found)[:, None], (ignored + MARGIN)[None]
        inside = (centres >= wide[..., :2]) & (centres <= wide[..., 2:])
        alarms &= ~inside.all(-1).any(1)
    return alarms


def _coco_rows(
    frame: int, boxes: Boxes, confidence: npt.NDArray[np.floating[Any]] | None = None
) -> list[dict[str, Any]]:
    """Boxes as pycocotools wants them: x y width height, with their area."""
    rows: list[dict[str, Any]] = []
    for index, (corner, size) in enumerate(zip(boxes[:, :2], _sizes(boxes), strict=True)):
        row: dict[str, Any] = {"image_id": frame, "category_id": 1, "iscrowd": 0}
        row |= {"bbox": [*corner.tolist(), *size.tolist()], "area": float(size.prod())}
        if confidence is not None:
            row["score"] = float(confidence[index])
        rows.append(row)
    return rows


def _check_frames(truth: Truth, predicted: Sequence[Boxes]) -> None:
    if len(predicted) != len(truth):
        raise ValueError(
            f"expected predictions for each of the {len(truth)} frames of the truth, "
            f"got them for {len(predicted)}"
        )


def _needs(what: str, package: str) -> str:
    return f"{what} needs {package}, which is not installed: pip install 'objrl[eval]'"
