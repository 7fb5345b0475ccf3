"""Boxes round the pieces of masks: what R-MONet's proposals learn from (its section 3.4).

A mask is cut at several heights, which multi-Otsu thresholding finds (Liao et al. 2001), and every
connected piece above one of them gets a box. So a mask with two objects in it gives two boxes.

Letters: B batch, R masks, M boxes of an image, H W canvas.
"""

from __future__ import annotations

import warnings
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
    return box.to(mask.device), there.to(mask.device)


def _of_one(masks: Floats, config: PseudoBoxes) -> npt.NDArray[np.float32]:
    """(R, H, W) -> (M, 4)."""
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
    if not boxes:
        return np.zeros((0, 4), np.float32)
    ordered = np.array(boxes, np.float32)[np.argsort(scores)[::-1]]
    stays: npt.NDArray[np.bool_] = suppress(torch.from_numpy(ordered)[None], config.suppress)[
        0
    ].numpy()
    kept: npt.NDArray[np.float32] = ordered[stays]
    return kept


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
    for classes in range(config.classes, 1, -1):
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                cut: Any = filters.threshold_multiotsu
                found = cut(mask, classes=classes, nbins=config.bins)
        except ValueError:  # fewer different values, or bins, than classes
            continue
        return [float(height) for height in found]
    return []
