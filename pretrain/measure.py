"""What a perceiver sees in a set of frames, and how good that is; no files, no printing.

- `evaluate_perceiver`: its boxes against true ones (`objrl.metrics` says what counts).
- `compare_with_baseline`: where there is no truth, how far it agrees with the baseline without
  learning (`objrl.models.median`). Agreement is no accuracy: both may be wrong alike.
- `ten_lines`: the plainest way to find objects, which every table has beside ours.
- `picture`: what it sees, to be looked at.

Letters: N frames, H W pixels, C channels, n boxes of one frame.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np
import numpy.typing as npt
import torch
from tqdm import tqdm

from objrl import draw, metrics
from objrl.metrics import AveragePrecision, Boxes, Score, Truth
from objrl.perceiver import Decomposition, Perceiver, model_of

Frames = npt.NDArray[np.uint8]
"""(N, H, W, 3) uint8 RGB."""


@dataclass(frozen=True)
class Seen:
    """What a perceiver sees in N frames.

    Attributes:
        boxes: N arrays (n, 4), those of present slots.
        presence: N arrays (n,).
        squared_error: (N,) of the reconstruction, summed over an image; None if it makes none.
        image_shape: (C, H, W) of the reconstruction.
    """

    boxes: list[Boxes]
    presence: list[npt.NDArray[np.float64]]
    squared_error: npt.NDArray[np.float64] | None
    image_shape: tuple[int, ...]

    def plain(self) -> dict[str, float]:
        """Return what needs no truth, by name."""
        found = {"slots_per_frame": float(np.mean([len(boxes) for boxes in self.boxes]))}
        if self.squared_error is not None:
            error = float(self.squared_error.mean())
            found |= {"squared_error": error, "mse": error / float(np.prod(self.image_shape))}
        return found


@dataclass(frozen=True)
class Report:
    """A perceiver measured on labelled frames."""

    seen: Seen
    objects: int
    centre: Score
    iou: Score
    precision: AveragePrecision

    @property
    def errors(self) -> npt.NDArray[np.int64]:
        """(N,) misses and false alarms by both rules together."""
        return self.centre.errors + self.iou.errors

    def metrics(self) -> dict[str, float]:
        """Return the scores by name, as the header of a weights file holds them."""
        return {
            **_scores(self.centre, "centre"),
            **_scores(self.iou, "iou"),
            "ap50": self.precision.ap50,
            "ap50_95": self.precision.ap50_95,
            **self.seen.plain(),
        }

    def classes(self) -> dict[str, dict[str, float]]:
        """Return number and recall of the objects by class."""
        return {
            name: {
                "objects": count,
                "recall_centre": self.centre.class_recall[name],
                "recall_iou": self.iou.class_recall[name],
            }
            for name, count in self.centre.class_count.items()
        }


@dataclass(frozen=True)
class Agreement:
    """A perceiver beside the baseline without learning, on frames that nobody labelled."""

    seen: Seen
    baseline_slots: float
    centre: Score
    iou: Score

    @property
    def errors(self) -> npt.NDArray[np.int64]:
        """(N,) boxes that only one of the two has, by both rules together."""
        return self.centre.errors + self.iou.errors

    def metrics(self) -> dict[str, float]:
        """Return what was measured by name."""
        return {
            **self.seen.plain(),
            "baseline_slots_per_frame": self.baseline_slots,
            "agreement_f1_centre": self.centre.f1,
            "agreement_f1_iou": self.iou.f1,
        }


def perceive(perceiver: Perceiver, frames: Frames, batch: int = 16) -> Seen:
    """Encode frames one by one, without a past, and reconstruct them if the model can.

    Args:
        perceiver: any; its weights are not changed.
        frames: (N, H, W, 3) uint8 RGB.
        batch: how many at once; the result does not depend on it.
    """
    height, width = frames.shape[1:3]
    boxes: list[Boxes] = []
    presence: list[npt.NDArray[np.float64]] = []
    errors: list[float] = []
    shape: tuple[int, ...] = ()
    with tqdm(total=len(frames), desc="encode", unit="frame", delay=2, leave=False) as bar:
        for start in range(0, len(frames), batch):
            part = torch.from_numpy(frames[start : start + batch])
            slots = perceiver.encode(part)
            found = slots.boxes(height, width).double().cpu().numpy()
            sure, mask = slots.presence[..., 0].double().cpu().numpy(), slots.mask.cpu().numpy()
            boxes += [rows[here] for rows, here in zip(found, mask, strict=True)]
            presence += [rows[here] for rows, here in zip(sure, mask, strict=True)]
            parts = take_apart(perceiver, part)
            if parts is not None:
                errors += metrics.squared_error(parts.image, parts.reconstruction).tolist()
                shape = tuple(parts.image.shape[1:])
            bar.update(len(part))
    return Seen(boxes, presence, np.array(errors) if errors else None, shape)


@torch.inference_mode()
def take_apart(perceiver: Perceiver, frames: torch.Tensor) -> Decomposition | None:
    """Decompose (B, H, W, 3) uint8 frames; None where the perceiver cannot."""
    decompose = getattr(model_of(perceiver), "decompose", None)
    return decompose(frames.to(perceiver.device)) if decompose is not None else None


def evaluate_perceiver(
    perceiver: Perceiver, frames: Frames, truth: Truth, batch: int = 16
) -> Report:
    """Measure a perceiver on labelled frames.

    Args:
        perceiver: any.
        frames: (N, H, W, 3) uint8 RGB.
        truth: what there is to find in them, in their pixels.
        batch: how many are encoded at once.

    Raises:
        ImportError: the packages of `objrl[eval]` are missing.
        ValueError: no true box, or another number of frames.
    """
    seen = perceive(perceiver, frames, batch)
    return Report(
        seen,
        truth.count,
        metrics.score(truth, seen.boxes, "centre"),
        metrics.score(truth, seen.boxes, "iou"),
        metrics.average_precision(truth, seen.boxes, seen.presence),
    )


def compare_with_baseline(
    perceiver: Perceiver, frames: Frames, baseline: Truth, batch: int = 16
) -> Agreement:
    """Measure how far a perceiver agrees with boxes that another one found; see `look_alike`."""
    seen = perceive(perceiver, frames, batch)
    return Agreement(
        seen,
        baseline.count / max(len(baseline), 1),
        metrics.score(baseline, seen.boxes, "centre"),
        metrics.score(baseline, seen.boxes, "iou"),
    )


def look_alike(seen: Seen) -> Truth:
    """Take what was seen for the truth, to compare something else with it."""
    nothing = [np.zeros((0, 4))] * len(seen.boxes)
    return Truth(seen.boxes, [("object",) * len(boxes) for boxes in seen.boxes], nothing)


def ten_lines(frames: Frames, background: npt.NDArray[np.uint8]) -> list[Boxes]:
    """Find objects without learning: connected pieces of what differs from the background.

    Written out here and not taken from `objrl.models.median`, which grew out of it: a yardstick
    must not change when what it measures gets better.

    Args:
        frames: (N, H, W, 3) uint8 RGB.
        background: (H, W, 3) uint8, the pixel-wise median of frames.

    Returns:
        N arrays (n, 4).
    """
    found = []
    for frame in frames:
        far = (cv2.absdiff(frame, background).max(axis=2) > 24).astype(np.uint8)
        closed = cv2.morphologyEx(far, cv2.MORPH_CLOSE, np.ones((3, 3), np.uint8))
        stats = cv2.connectedComponentsWithStats(closed, connectivity=8)[2][1:]  # 0: the rest
        x, y, w, h, area = stats.T
        kept = (area >= 3) & (w <= 60) & (h <= 60)
        found.append(np.stack([x, y, x + w, y + h], axis=1)[kept].astype(np.float64))
    return found


def picture(
    perceiver: Perceiver,
    frames: Frames,
    wanted: Truth,
    titles: Sequence[str],
    column: str,
    scale: int = 2,
) -> draw.Image:
    """Draw a contact sheet of frames, with the boxes that are to be found in a column beside.

    Args:
        perceiver: any.
        frames: (N, H, W, 3) uint8 RGB, one a row.
        wanted: the boxes that are to be found in them.
        titles: N, one above each row.
        column: title of the column with the wanted boxes.
        scale: how many times the frames are enlarged.
    """
    part = torch.from_numpy(frames)
    boxes = [
        draw.draw_slots(frame, true, np.ones(len(true)), np.full(len(true), -1), scale)
        for frame, true in zip(frames, wanted.boxes, strict=True)
    ]
    slots, parts = perceiver.encode(part), take_apart(perceiver, part)
    return draw.contact_sheet(
        frames, slots, parts, titles, {column: boxes}, tile_width=scale * frames.shape[2]
    )


def _scores(score: Score, rule: str) -> dict[str, float]:
    names = ("f1", "precision", "recall", "count_error")
    return {f"{name}_{rule}": getattr(score, name) for name in names}
