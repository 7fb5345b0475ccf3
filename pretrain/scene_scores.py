"""How well a perceiver takes scenes apart, where every pixel's owner is known.

- `score_scenes`: whose pixel is whose (ARI, covering), boxes drawn round the masks, how many there
  are, what is painted, and what the slots tell of their objects (`objrl.segmentation` and
  `objrl.metrics` say what the scores are).
- `by_colour`: the same without learning, by colour alone or by colour and connected pieces. Scenes
  of plain sprites need no more; a table without this row says little.
- ECON's own: whether an expert stands for a class, and how well hidden parts are filled in.

Letters: N frames, H W pixels, K slots, D features, M objects of all frames, F factors.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt
import torch
from torch.nn.functional import interpolate

from objrl import metrics
from objrl.frames import to_image
from objrl.metrics import Boxes, Truth
from objrl.models.econ import Econ
from objrl.models.mixture import LEAST
from objrl.perceiver import Perceiver, model_of
from objrl.pretrain.learners import linear, normalised_mutual_information
from objrl.pretrain.measure import Frames, take_apart
from objrl.pretrain.truth import read_arrays, read_truth
from objrl.segmentation import Ids, adjusted_rand, covering

Mask = npt.NDArray[np.bool_]

ALIKE = 24
"""Colours that differ by less in every channel are one; as in the baseline for games."""

SEGMENTATION = ("ari_fg", "ari", "covering_fg", "count_error", "count_right")
"""Scores that whose pixel is whose tells alone."""

_TURNS = ("angle",)
"""Factors that are no number: shapes look the same at several."""


@dataclass(frozen=True)
class LabelledScenes:
    """Scenes and all that there is to know of them.

    Attributes:
        frames: (N, H, W, 3) uint8 RGB.
        truth: boxes and classes of what is seen.
        ids: (N, H, W) k where the frame's k-th object is seen, from 1; else 0.
        owner: (M,) int64 the frame of each object.
        kind: (M,) int64 its class.
        whole: (M, H, W) bool where it is, also behind others; None where nobody knows.
        factors: (M, F) float32; F is 0 where nobody knows.
        names: F names of factors.
    """

    frames: Frames
    truth: Truth
    ids: Ids
    owner: npt.NDArray[np.int64]
    kind: npt.NDArray[np.int64]
    whole: Mask | None
    factors: npt.NDArray[np.float32]
    names: tuple[str, ...]

    @property
    def number(self) -> npt.NDArray[np.int64]:
        """(M,) which of its frame's objects each is, from 1: its number in `ids`."""
        first = np.searchsorted(self.owner, self.owner)
        return np.asarray(np.arange(len(self.owner)) - first + 1)

    def select(self, rows: npt.NDArray[np.int64]) -> LabelledScenes:
        """Return some of the scenes, by rising number."""
        kept = np.isin(self.owner, rows)
        return LabelledScenes(
            self.frames[rows],
            self.truth.select(rows),
            self.ids[rows],
            np.searchsorted(rows, self.owner[kept]),
            self.kind[kept],
            None if self.whole is None else self.whole[kept],
            self.factors[kept],
            self.names,
        )


def read_scenes(path: Path) -> LabelledScenes | None:
    """Read a truth file that has masks (`objrl scenes`, `objrl rooms`); None if it has none.

    Raises:
        FileNotFoundError, ValueError: as `read_truth`, or masks of another size than the frames.
    """
    arrays = read_arrays(path)
    if "masks" not in arrays:
        return None
    labelled = read_truth(path)
    ids, boxes = arrays["masks"], arrays["boxes"]
    if ids.shape != labelled.frames.shape[:3]:
        raise ValueError(
            f"{path}: expected masks of shape {labelled.frames.shape[:3]}, got {ids.shape}"
        )
    order = np.argsort(boxes[:, 0], kind="stable")
    whole, factors = arrays.get("whole"), arrays.get("factors", np.zeros((len(boxes), 0)))
    return LabelledScenes(
        frames=labelled.frames,
        truth=labelled.truth,
        ids=ids.astype(np.int64),
        owner=boxes[order, 0].astype(np.int64),
        kind=boxes[order, 1].astype(np.int64),
        whole=None if whole is None else whole[order],
        factors=factors[order].astype(np.float32),
        names=tuple(str(name) for name in arrays.get("factor_names", ())),
    )


@dataclass(frozen=True)
class Apart:
    """What a perceiver makes of N scenes.

    Attributes:
        masks: (N, K + 1, H, W) float32, the background last.
        what: (N, K, D) float32, 0 where a slot is no object.
        there: (N, K) bool.
        presence: (N, K) float32.
        mse: mean squared error of a pixel's channel; NaN if it paints nothing.
    """

    masks: npt.NDArray[np.float32]
    what: npt.NDArray[np.float32]
    there: Mask
    presence: npt.NDArray[np.float32]
    mse: float

    @property
    def ids(self) -> Ids:
        """(N, H, W) whose pixel is whose: slot k has k, the background K."""
        return np.asarray(self.masks.argmax(1))


def perceive_scenes(perceiver: Perceiver, frames: Frames, batch: int = 16) -> Apart:
    """Take (N, H, W, 3) frames apart, each without a past."""
    masks, what, there, presence, errors = [], [], [], [], []
    for start in range(0, len(frames), batch):
        part = torch.from_numpy(frames[start : start + batch])
        slots = perceiver.encode(part).to("cpu")
        masks.append(perceiver.segment(part).cpu().numpy())
        what.append(slots.what.numpy())
        there.append(slots.mask.numpy())
        presence.append(slots.presence[..., 0].numpy())
        parts = take_apart(perceiver, part)
        if parts is not None:
            error = metrics.squared_error(parts.image, parts.reconstruction)
            errors += (error / parts.image[0].numel()).tolist()
    return Apart(
        np.concatenate(masks),
        np.concatenate(what),
        np.concatenate(there),
        np.concatenate(presence),
        mse=float(np.mean(errors)) if errors else float("nan"),
    )


def score_scenes(perceiver: Perceiver, scenes: LabelledScenes, batch: int = 16) -> dict[str, float]:
    """Return the scores by name; those of slots' factors begin with `r2_`, `accuracy_kind`.

    `ari_fg`, `covering_fg`: of the pixels of objects, means over frames. `ari`: of all pixels.
    `mask_ap50`, `mask_ap50_95`: of tight boxes round slots. `count_error`: mean of
    |counted - n| / n; `count_right`: share of frames with as many slots as objects. `matched`:
    share of the objects that a slot has more of than the background; only those are probed.
    """
    seen = perceive_scenes(perceiver, scenes.frames, batch)
    scores = score_ids(scenes, seen.ids, background=seen.what.shape[1])
    boxes, confidence = _boxes(seen)
    precision = metrics.average_precision(scenes.truth, boxes, confidence)
    scores |= {"mask_ap50": precision.ap50, "mask_ap50_95": precision.ap50_95}
    if np.isfinite(seen.mse):
        scores["mse"] = seen.mse
    if not len(scenes.owner):
        return scores
    row, matched = match_slots(scenes, seen)
    scores["matched"] = float(matched.mean())
    scores |= probe_factors(scenes, seen.what[scenes.owner, row], matched)
    model = model_of(perceiver)
    if isinstance(model, Econ) and matched.any():
        scores |= _score_experts(model, scenes, matched, batch)
    return scores


def score_ids(scenes: LabelledScenes, ids: Ids, background: int) -> dict[str, float]:
    """Return what whose pixel is whose tells alone.

    Args:
        scenes: what there is to find.
        ids: (N, H, W) what was found.
        background: the number that is no object.
    """
    objects = np.array([len(boxes) for boxes in scenes.truth.boxes])
    # As the truth has it, and as slots have it: what has less is no object.
    large = [np.bincount(one.ravel()) * LEAST >= one.size for one in ids]
    counted = np.array([len(set(np.flatnonzero(one)) - {background}) for one in large])
    # To count the background as an object like others, its number must not be 0.
    return {
        "ari_fg": float(np.nanmean(adjusted_rand(scenes.ids, ids))),
        "ari": float(np.nanmean(adjusted_rand(scenes.ids + 1, ids))),
        "covering_fg": float(np.nanmean(covering(scenes.ids, ids))),
        "count_error": float(np.mean(np.abs(counted - objects) / np.maximum(objects, 1))),
        "count_right": float(np.mean(counted == objects)),
    }


def match_slots(scenes: LabelledScenes, seen: Apart) -> tuple[npt.NDArray[np.int64], Mask]:
    """Return (M,) the slot that has most of each object, and (M,) if the background has less."""
    share = np.stack(
        [
            (seen.masks[frame] * (scenes.ids[frame] == number)).sum((1, 2))
            for frame, number in zip(scenes.owner, scenes.number, strict=True)
        ]
    )
    row = share[:, :-1].argmax(1)
    best = share[np.arange(len(share)), row]
    return row, (best > share[:, -1]) & seen.there[scenes.owner, row]


def probe_factors(
    scenes: LabelledScenes, what: npt.NDArray[np.float32], matched: Mask
) -> dict[str, float]:
    """Return how well a linear map of (M, D) `what` tells factors and class.

    Learned on the first half of the frames, tested on the last: R² of numbers, accuracy of the
    class. Nothing where too few objects are matched.
    """
    late = scenes.owner >= len(scenes.frames) // 2
    train, test = matched & ~late, matched & late
    if min(train.sum(), test.sum()) <= 2 * what.shape[1]:
        return {}
    centre, spread = what[train].mean(0), what[train].std(0)
    points = (what - centre) / np.where(spread > 1e-6, spread, 1)
    points = np.concatenate([points, np.ones((len(points), 1))], 1).astype(np.float64)
    scores = {}
    for name, factor in zip(scenes.names, scenes.factors.T.astype(np.float64), strict=True):
        if name in _TURNS or np.ptp(factor) < 1e-6:
            continue
        square = points[train].T @ points[train] + 1e-3 * np.eye(points.shape[1])
        weight = np.linalg.solve(square, points[train].T @ factor[train])
        left = np.square(factor[test] - points[test] @ weight).sum()
        whole = np.square(factor[test] - factor[test].mean()).sum()
        scores[f"r2_{name}"] = float(1 - left / whole)
    if len(np.unique(scenes.kind[train])) > 1:
        guessed = linear(points[train], scenes.kind[train], points[test])
        scores["accuracy_kind"] = float(np.mean(guessed == scenes.kind[test]))
    return scores


def _score_experts(
    model: Econ,
    scenes: LabelledScenes,
    matched: Mask,
    batch: int,
) -> dict[str, float]:
    """Return NMI of experts and classes, and IoU of filled-in shapes with whole objects.

    `whole_iou` is the mean over all matched objects, `hidden_iou` over those of which a tenth or
    more is hidden; `seen_iou` is of the same objects' visible parts with their wholes: what no
    filling in at all would have.
    """
    winner: list[npt.NDArray[np.int64]] = []
    region: list[npt.NDArray[np.float32]] = []
    shape: list[npt.NDArray[np.float32]] = []
    size, device = scenes.frames.shape[1:3], next(model.parameters()).device
    with torch.no_grad():
        for start in range(0, len(scenes.frames), batch):
            part = torch.from_numpy(scenes.frames[start : start + batch]).to(device)
            out = model(to_image(part, *model.frame_size), sample=False)
            winner.append(out.winner.cpu().numpy())
            for kept, made in ((region, out.part.region), (shape, out.part.shape)):
                large = interpolate(made[:, :, 0], size, mode="bilinear", align_corners=False)
                kept.append(large.cpu().numpy())
    owner, number = scenes.owner[matched], scenes.number[matched]
    visible = scenes.ids[owner] == number[:, None, None]
    # The step that takes most of an object; slots have an order of their own.
    taken = np.concatenate(region)[owner] * visible[:, None]
    step = taken.sum((2, 3)).argmax(1)
    expert = np.concatenate(winner)[owner, step]
    scores = {"expert_nmi": normalised_mutual_information(scenes.kind[matched], expert)}
    if scenes.whole is None:
        return scores
    true, filled = scenes.whole[matched], np.concatenate(shape)[owner, step] > 0.5
    hidden = visible.sum((1, 2)) <= 0.9 * true.sum((1, 2))
    fits = _iou(true, filled)
    scores["whole_iou"] = float(fits.mean())
    if hidden.any():
        scores["hidden_iou"] = float(fits[hidden].mean())
        scores["seen_iou"] = float(_iou(true, visible)[hidden].mean())
    return scores


def _iou(one: Mask, other: Mask) -> npt.NDArray[np.float64]:
    shared, union = (one & other).sum((1, 2)), (one | other).sum((1, 2))
    return np.asarray(shared / np.maximum(union, 1))


def _boxes(seen: Apart) -> tuple[list[Boxes], list[npt.NDArray[np.float32]]]:
    """Draw tight boxes round the pixels that are an object's more than anybody else's."""
    ids, boxes, confidence = seen.ids, [], []
    for frame, here in enumerate(seen.there):
        rows = [k for k in np.flatnonzero(here) if (ids[frame] == k).any()]
        tight = [cv2.boundingRect((ids[frame] == k).astype(np.uint8)) for k in rows]
        corners = np.array([(x, y, x + w, y + h) for x, y, w, h in tight], dtype=np.float64)
        boxes.append(corners.reshape(-1, 4))
        confidence.append(seen.presence[frame][rows])
    return boxes, confidence


def by_colour(frames: Frames, pieces: bool) -> Ids:
    """Tell pixels apart without learning; 0 is the background.

    The commonest colour of the frame's edge is the background. Every other colour that a 200th of
    the pixels have is a segment's, unless it is a blend of two that more have, as edges are; pixels
    of other colours go with the likest one of these that a pixel beside them has.

    Args:
        frames: (N, H, W, 3) uint8 RGB.
        pieces: segments are connected; otherwise all that is of a colour is one.
    """
    return np.stack([_by_colour(frame, pieces) for frame in frames])


def _by_colour(frame: npt.NDArray[np.uint8], pieces: bool) -> npt.NDArray[np.int64]:
    edge = np.concatenate([frame[0], frame[-1], frame[1:-1, 0], frame[1:-1, -1]])
    common, count = np.unique(edge, axis=0, return_counts=True)
    palette = [common[count.argmax()].astype(np.float64)]
    colours, count = np.unique(frame.reshape(-1, 3), axis=0, return_counts=True)
    for index in np.argsort(-count, kind="stable"):
        if 200 * count[index] < count.sum():
            break
        colour = colours[index].astype(np.float64)
        if not any(_between(colour, a, b) for a in palette for b in palette):
            palette.append(colour)
    far = np.abs(frame[:, :, None] - np.stack(palette)).sum(-1)
    pure = np.abs(frame[:, :, None] - np.stack(palette)).max(-1) < ALIKE
    for number in range(len(palette)):
        near = cv2.dilate(pure[:, :, number].astype(np.uint8), np.ones((3, 3), np.uint8))
        far[near == 0, number] += 3 * 256
    nearest: npt.NDArray[np.int64] = far.argmin(-1)
    if not pieces:
        return nearest
    ids = np.zeros_like(nearest)
    for number in range(1, len(palette)):
        _, labels = cv2.connectedComponents((nearest == number).astype(np.uint8), connectivity=4)
        ids = np.where(labels > 0, labels + ids.max(), ids)
    return ids


def _between(
    colour: npt.NDArray[np.float64], one: npt.NDArray[np.float64], other: npt.NDArray[np.float64]
) -> bool:
    """Whether a colour is alike to a blend of two, or to one of them."""
    along = other - one
    share = np.clip((colour - one) @ along / max(float(along @ along), 1.0), 0, 1)
    return bool(np.abs(colour - one - share * along).max() < ALIKE)


def baselines(scenes: LabelledScenes) -> dict[str, dict[str, float]]:
    """Return the scores of what needs no learning, by name."""
    return {
        name: score_ids(scenes, by_colour(scenes.frames, pieces), background=0)
        for name, pieces in (("colour", False), ("colour and pieces", True))
    }


def table(rows: dict[str, dict[str, float]], names: Sequence[str]) -> list[str]:
    """Lay scores out as lines of text, one row each."""
    wide = {name: max(9, len(name) + 3) for name in names}
    lines = [f"{'':20}" + "".join(f"{name:>{wide[name]}}" for name in names)]
    for title, scores in rows.items():
        cells = [f"{scores[name]:.3f}" if name in scores else "-" for name in names]
        pairs = zip(wide.values(), cells, strict=True)
        lines.append(f"{title:20}" + "".join(f"{cell:>{width}}" for width, cell in pairs))
    return lines
