"""Boxes round the pieces of masks: what R-MONet's proposals learn from (its section 3.4).

A mask is cut at several heights, which multi-Otsu thresholding finds (Liao et al. 2001), and every
connected piece above one of them gets a box. So a mask with two objects in it gives two boxes.

Letters: B batch, R masks, M boxes of an image, H W canvas.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from objrl.nn.proposals import suppress

Floats = npt.NDArray[np.floating]


@dataclass(frozen=True)
class PseudoBoxes:
    """How boxes are drawn round masks.

    The paper gives the number of bins, and that of the classes not; more classes than three find no
    thresholds among five bins.
    """

    least: float = 1e-3
    """A mask's values below are 0."""
    classes: int = 3
    """Into which a mask's values fall."""
    bins: int = 5
    """Of the histogram in which they are told apart."""
    side: int = 3
    """Boxes have this many pixels a side at least; 5 on CLEVR."""
    slim: float = 3.0
    """The longer side is at most so many times the shorter."""
    suppress: float = 0.7
    """IoU above which two boxes are one."""


def pseudo_boxes(mask: Tensor, config: PseudoBoxes) -> tuple[Tensor, Tensor]:
    """Draw boxes round the pieces of (B, R, H, W) masks in [0, 1].

    Returns:
        (B, M, 4) x0 y0 x1 y1 by falling score, and (B, M) bool which of them there are.
    """
    found = [_of_one(masks, config) for masks in mask.detach().float().cpu().numpy()]
    most = max((len(boxes) for boxes in found), default=0)
    box, there = torch.zeros(len(found), most, 4), torch.zeros(len(found), most, dtype=torch.bool)
    for b, boxes in enumerate(found):
        box[b, : len(boxes)] = torch.from_numpy(boxes)
        there[b, : len(boxes)] = True
    there &= suppress(box, config.suppress)
    # What stays moves to the front.
    order = torch.argsort(~there, dim=1, stable=True)[:, : there.sum(1).max()]
    box, there = box.take_along_dim(order[..., None], 1), there.gather(1, order)
    return (box * there[..., None]).to(mask.device), there.to(mask.device)


def _of_one(masks: Floats, config: PseudoBoxes) -> npt.NDArray[np.float32]:
    """(R, H, W) -> (M, 4) by falling score, those that are nearly the same among them."""
    boxes, scores = [], []
    for mask in masks:
        mask = np.where(mask < config.least, 0, mask)
        for height in thresholds(mask, config):
            stats = cv2.connectedComponentsWithStats((mask > height).astype(np.uint8))[2][1:]
            for x, y, width, tall, _ in stats:
                short, long = sorted((width, tall))
                if short < config.side or long > config.slim * short:
                    continue
                boxes.append((x, y, x + width, y + tall))
                scores.append(mask[y : y + tall, x : x + width].mean())
    ordered = np.array(boxes, np.float32).reshape(-1, 4)[np.argsort(scores)[::-1]]
    return np.ascontiguousarray(ordered)


def thresholds(mask: Floats, config: PseudoBoxes) -> Sequence[float]:
    """Return the heights at which (H, W) is cut, none where it is flat.

    Where its values fall into fewer bins than there are classes, they are told apart into fewer.

    Raises:
        ImportError: scikit-image is missing.
    """
    try:
        from skimage import filters
    except ImportError as error:
        raise ImportError(
            "R-MONet's boxes need scikit-image, which is not installed: pip install "
            "'objrl[pretrain]'"
        ) from error
    least, most = float(mask.min()), float(mask.max())
    if least == most:
        return []
    # numpy's own histogram takes as long as all else here.
    each = np.minimum((mask - least) * (config.bins / (most - least)), config.bins - 1)
    counts = np.bincount(each.astype(np.intp).ravel(), minlength=config.bins)
    classes = min(config.classes, int(np.count_nonzero(counts)))
    if classes < 2:
        return []
    middle = least + (np.arange(config.bins) + 0.5) * (most - least) / config.bins
    cut: Any = filters.threshold_multiotsu
    return [float(height) for height in cut(hist=(counts, middle), classes=classes)]
