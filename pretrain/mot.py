"""How well boxes with identities follow objects: MOTA, IDF1, HOTA, and where identities switch.

A found box fits a true one

- by IoU, when their intersection over union is at least 0.5;
- by distance, when their centres lie within twice the true box's size (the mean of its sides) of
  each other. That is how SCALOR's tables count (section 5.1); it says little of the boxes
  themselves, and in a crowd little of the tracking either, for neighbours are within reach.

What is left over in an ignored box counts neither way, as in `objrl.metrics`. The scores are
TrackEval's, from counts that are summed over the sequences.

References:
    Bernardin and Stiefelhagen 2008, CLEAR MOT (MOTA, MOTP, switches).
    Ristani et al. 2016, arXiv 1609.01775 (IDF1).
    Luiten et al. 2021, arXiv 2009.07736 (HOTA, DetA, AssA).
    Jiang et al. 2020, SCALOR, arXiv 1910.02384 (which scores, and the distance).

Letters: T frames of a sequence, n true boxes and p found boxes of one frame.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt

from objrl.metrics import FIT, MARGIN, Boxes, iou

Ids = npt.NDArray[np.int64]
"""(n,) int64, one identity a box."""

Rule = Literal["iou", "distance"]
"""When a found box fits a true one."""

REACH = 2.0
"""Distance at which centres still fit, in sizes of the true box."""


@dataclass(frozen=True)
class Followed:
    """Boxes with identities in the T frames of one sequence: what there is, or what was found.

    Attributes:
        boxes: T arrays (n, 4).
        ids: T arrays (n,). No identity twice in a frame; which number it is does not matter.
    """

    boxes: Sequence[Boxes]
    ids: Sequence[Ids]

    def __post_init__(self) -> None:
        if len(self.boxes) != len(self.ids):
            raise ValueError(
                "Followed: expected boxes and ids for the same number of frames, got "
                f"{len(self.boxes)} and {len(self.ids)}"
            )
        for index, (boxes, ids) in enumerate(zip(self.boxes, self.ids, strict=True)):
            if ids.ndim != 1 or boxes.shape != (len(ids), 4):
                raise ValueError(
                    f"Followed: expected boxes (n, 4) and ids (n,) in frame {index}, got "
                    f"{boxes.shape} and {ids.shape}"
                )
            if len(np.unique(ids)) < len(ids):
                raise ValueError(
                    f"Followed: expected every identity once in frame {index}, got {ids.tolist()}"
                )

    def __len__(self) -> int:
        return len(self.boxes)

    @property
    def identities(self) -> Ids:
        """Every identity once, ascending."""
        return np.unique(np.concatenate([np.zeros(0, np.int64), *self.ids]))


class Switch(NamedTuple):
    """An object is followed under another identity than when it was last followed."""

    sequence: int
    frame: int
    identity: int
    """The object's."""
    since: int
    """The frame in which it was last followed."""
    before: int
    """The identity that it was given there."""
    after: int
    """And the one that it has now."""


@dataclass(frozen=True)
class TrackScore:
    """How well objects are followed, by one rule; the larger the better but for the errors.

    Attributes:
        mota: 1 - (misses + false alarms + switches) / objects; at most 1, and below 0 when there
            are more errors than objects.
        motp: mean similarity of the hits in [0.5, 1]: the IoU, or 1 - distance / 4 sizes.
        idf1: F1 of boxes that carry the identity which their object has most of the time, in the
            best one-to-one pairing of identities; in [0, 1].
        hota: mean over 19 thresholds of similarity of the root of detection times association; in
            [0, 1].
        deta: the detection in it.
        assa: the association in it.
        precision: hits / (hits + false alarms).
        recall: hits / objects.
        count_error: SCALOR's CountMAE, the mean over frames of |found - there| / max(there, 1).
        objects: true boxes in all frames.
        hits: those that are found.
        false_alarms: found boxes that fit none.
        identities: true ones, summed over sequences.
        found_identities: of the found boxes, summed likewise.
        switches: every change of an object's identity.
    """

    mota: float
    motp: float
    idf1: float
    hota: float
    deta: float
    assa: float
    precision: float
    recall: float
    count_error: float
    objects: int
    hits: int
    false_alarms: int
    identities: int
    found_identities: int
    switches: tuple[Switch, ...]


def similarity(true: Boxes, found: Boxes, rule: Rule) -> npt.NDArray[np.float64]:
    """Return (n, p) in [0, 1]; a pair fits from 0.5 on."""
    if rule == "iou":
        return iou(true, found)
    apart = np.linalg.norm(_centres(true)[:, None] - _centres(found)[None], axis=-1)
    size = (true[:, 2:] - true[:, :2]).mean(axis=1, keepdims=True)
    return np.asarray((1 - (1 - FIT) * apart / np.maximum(REACH * size, 1e-9)).clip(0))


def score_tracks(
    wanted: Sequence[Followed],
    ignored: Sequence[Sequence[Boxes]],
    found: Sequence[Followed],
    rule: Rule,
) -> TrackScore:
    """Score what was found in some sequences by one rule.

    Args:
        wanted: what there is to follow, one each sequence.
        ignored: for each sequence T arrays (m, 4), where what is left over counts neither way.
        found: what was found in the same sequences.
        rule: when a box fits.

    Returns:
        The scores; 0 for those whose denominator is 0.

    Raises:
        ImportError: TrackEval is missing.
        ValueError: no sequence, or other numbers of sequences or frames.
    """
    try:
        from trackeval.metrics import CLEAR, HOTA, Identity
    except ImportError as error:
        raise ImportError(
            "scoring tracks needs trackeval, which is not installed: pip install 'objrl[eval]'"
        ) from error
    _check(wanted, ignored, found)
    kept = [_without_ignored(*each, rule) for each in zip(wanted, ignored, found, strict=True)]
    data = [_data(true, seen, rule) for true, seen in zip(wanted, kept, strict=True)]
    quiet = {"THRESHOLD": FIT, "PRINT_CONFIG": False}
    total: dict[str, Any] = {}
    for metric in (CLEAR(quiet), Identity(quiet), HOTA()):
        each = {str(i): metric.eval_sequence(one) for i, one in enumerate(data)}
        total |= metric.combine_sequences(each)
    switches = [
        switch
        for number, (true, seen, one) in enumerate(zip(wanted, kept, data, strict=True))
        for switch in _switches(number, true, seen, one["similarity_scores"])
    ]
    errors = [
        abs(len(seen) - len(true)) / max(len(true), 1)
        for one, other in zip(wanted, kept, strict=True)
        for true, seen in zip(one.ids, other.ids, strict=True)
    ]
    return TrackScore(
        **{name.lower(): float(total[name]) for name in ("MOTA", "MOTP", "IDF1")},
        **{name.lower(): float(np.mean(total[name])) for name in ("HOTA", "DetA", "AssA")},
        precision=float(total["CLR_Pr"]),
        recall=float(total["CLR_Re"]),
        count_error=float(np.mean(errors)) if errors else 0.0,
        objects=sum(one["num_gt_dets"] for one in data),
        hits=int(total["CLR_TP"]),
        false_alarms=int(total["CLR_FP"]),
        identities=sum(one["num_gt_ids"] for one in data),
        found_identities=sum(one["num_tracker_ids"] for one in data),
        switches=tuple(switches),
    )


def _data(true: Followed, found: Followed, rule: Rule) -> dict[str, Any]:
    """Return a sequence as TrackEval wants it, identities counted from 0."""
    there, seen = true.identities, found.identities
    return {
        "gt_ids": [np.searchsorted(there, ids) for ids in true.ids],
        "tracker_ids": [np.searchsorted(seen, ids) for ids in found.ids],
        "similarity_scores": [
            similarity(*boxes, rule) for boxes in zip(true.boxes, found.boxes, strict=True)
        ],
        "num_timesteps": len(true),
        "num_gt_ids": len(there),
        "num_tracker_ids": len(seen),
        "num_gt_dets": sum(map(len, true.ids)),
        "num_tracker_dets": sum(map(len, found.ids)),
    }


def _without_ignored(
    true: Followed, ignored: Sequence[Boxes], found: Followed, rule: Rule
) -> Followed:
    """Drop what fits no true box and has its centre in an ignored one."""
    keep = []
    for boxes, aside, seen in zip(true.boxes, ignored, found.boxes, strict=True):
        centre, wide = _centres(seen)[:, None], (aside + MARGIN)[None]
        inside = (centre >= wide[..., :2]) & (centre <= wide[..., 2:])
        kept = ~inside.all(-1).any(1)
        fit = similarity(boxes, seen, rule)
        kept[_pairs(np.where(fit >= FIT, fit, 0.0))[1]] = True
        keep.append(kept)
    return Followed(
        [boxes[kept] for boxes, kept in zip(found.boxes, keep, strict=True)],
        [ids[kept] for ids, kept in zip(found.ids, keep, strict=True)],
    )


def _switches(
    number: int, true: Followed, found: Followed, fits: Sequence[npt.NDArray[np.float64]]
) -> list[Switch]:
    """List what TrackEval's CLEAR counts as switches, which does not tell which they are.

    Pairs of the frame before go on where they still fit; the others are chosen to fit best.
    """
    switches = []
    last: dict[int, tuple[int, int]] = {}  # of every object: frame and identity
    before: Mapping[int, int] = {}
    for frame, (ids, names, fit) in enumerate(zip(true.ids, found.ids, fits, strict=True)):
        if not len(ids) or not len(names):
            continue
        stays = np.array([[before.get(identity) == name for name in names] for identity in ids])
        rows, columns = _pairs(np.where(fit >= FIT - np.finfo(float).eps, fit + 1000 * stays, 0))
        before = dict(zip(ids[rows].tolist(), names[columns].tolist(), strict=True))
        for identity, name in before.items():
            since, known = last.get(identity, (frame, name))
            if known != name:
                switches.append(Switch(number, frame, identity, since, known, name))
            last[identity] = frame, name
    return switches


def _pairs(worth: npt.NDArray[np.float64]) -> tuple[npt.NDArray[np.intp], npt.NDArray[np.intp]]:
    """Rows and columns of the one-to-one pairs of most summed worth; none that is worth nothing."""
    from scipy.optimize import linear_sum_assignment  # TrackEval brings it

    rows, columns = linear_sum_assignment(-worth)
    good = worth[rows, columns] > 0
    return rows[good], columns[good]


def _centres(boxes: Boxes) -> Boxes:
    """(n, 2) x and y."""
    return (boxes[:, :2] + boxes[:, 2:]) / 2


def _check(
    wanted: Sequence[Followed], ignored: Sequence[Sequence[Boxes]], found: Sequence[Followed]
) -> None:
    if not len(wanted) == len(ignored) == len(found):
        raise ValueError(
            "score_tracks: expected wanted, ignored and found for the same number of sequences, "
            f"got {len(wanted)}, {len(ignored)} and {len(found)}"
        )
    if not wanted:
        raise ValueError("score_tracks: expected at least one sequence, got none")
    for index, lengths in enumerate(
        zip(map(len, wanted), map(len, ignored), map(len, found), strict=True)
    ):
        if len(set(lengths)) > 1:
            raise ValueError(
                f"score_tracks: expected sequence {index} to have {lengths[0]} frames, as many as "
                f"are wanted, got {lengths[1]} ignored and {lengths[2]} found"
            )
