"""What the frames themselves tell a recipe: background, sizes of things, how many there are.

No labels and no values by game: everything follows from the no-learning baseline's blobs
(`objrl.models.median`) on a few hundred training frames.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import cv2
import numpy as np
import numpy.typing as npt

from objrl.models.median import Image, MedianConfig, backdrop, blobs, differs
from objrl.pretrain.presets import SpaceRecipe
from objrl.schedule import Linear


@dataclass(frozen=True)
class Findings:
    """What a look at the frames shows; pixels are the canvas's.

    Attributes:
        background: (H, W, 3) uint8 median frame without the things that come and go.
        width: typical width of a blob, large ones counting for more.
        height: typical height.
        spread: standard deviation of the log of a blob's sides.
        largest: side that 98 % of the blobs' area stays below.
        count: how many blobs 99 % of the frames stay below.
    """

    background: Image
    width: float
    height: float
    spread: float
    largest: float
    count: float

    def describe(self) -> dict[str, float]:
        """Return what is logged and stored with the weights."""
        names = ("width", "height", "spread", "largest", "count")
        return {name: round(float(getattr(self, name)), 2) for name in names}


LONGEST = 256
"""Pixels of a canvas's longer side; larger frames are shrunk: Atari's are 210 or 250."""


def look(frames: Image) -> Findings:
    """Measure (N, H, W, 3) uint8 frames, spread over episodes; one or two thousand are enough.

    Raises:
        ValueError: nothing in the frames ever moves, or only as a whole.
    """
    height, width = frames.shape[1:3]
    shrink = min(1.0, LONGEST / max(height, width))
    frames = fit_canvas(frames, (round(height * shrink), round(width * shrink)))
    config = MedianConfig(frame_size=(frames.shape[1], frames.shape[2]))
    background = backdrop(frames, config)
    some = frames[:: 1 + len(frames) // 500]
    found = [blobs(differs(frame, background, config.threshold), config)[0] for frame in some]
    boxes = np.concatenate(found)
    if not len(boxes):
        raise ValueError(
            f"frames: expected things that move before a background, but in {len(frames)} frames "
            f"nothing between {config.min_area} pixels and {config.max_side} a side differs from "
            "the median; collect more frames, or with an agent that plays (objrl collect --policy)"
        )
    size = boxes[:, 2:] - boxes[:, :2]
    area = size.prod(axis=1)
    width, height = np.average(size, axis=0, weights=np.sqrt(area))
    return Findings(
        background=background,
        width=float(width),
        height=float(height),
        spread=float(np.sqrt(np.mean([np.log(side).var() for side in size.T]))),
        largest=_weighted_quantile(size.max(axis=1), area, 0.98),
        count=float(np.quantile([len(b) for b in found], 0.99)),
    )


def fit_canvas(frames: Image, size: tuple[int, int]) -> Image:
    """Resize (B, H, W, 3) uint8 frames to a canvas (H, W), on the host."""
    if frames.shape[1:3] == size:
        return frames
    height, width = size
    return np.stack([cv2.resize(f, (width, height), interpolation=cv2.INTER_AREA) for f in frames])


def _weighted_quantile(
    values: npt.NDArray[np.float32], weights: npt.NDArray[np.float32], share: float
) -> float:
    order = np.argsort(values)
    below = np.cumsum(weights[order]) / weights.sum()
    return float(values[order][np.searchsorted(below, share)])


def configure(recipe: SpaceRecipe, found: Findings) -> SpaceRecipe:
    """Fit a recipe to what was found.

    A cell is about as large as the objects (smaller splits them, larger merges neighbours), a
    window holds the largest box that z_where may ask for, and rows suffice for the fullest frame.
    """
    height, width = found.background.shape[:2]
    side = math.sqrt(found.width * found.height)
    rows = min(192, max(32, 16 * math.ceil(1.25 * found.count / 16)))
    model = replace(
        recipe.model,
        frame_size=(height, width),
        cell=8 if side < 16 else 16 if side < 40 else 32,
        window=min(96, max(24, 8 * math.ceil(recipe.margin * found.largest / 8))),
        rendered=rows,
        max_slots=rows,
    )

    def logit(share: float) -> Linear:
        share = min(max(share * recipe.margin, 0.01), 0.9)
        return Linear(math.log(share / (1 - share)))

    return replace(
        recipe,
        model=model,
        scale_mean=(logit(found.width / width), logit(found.height / height)),
        scale_std=min(max(found.spread, recipe.scale_std), 1.0),
    )
