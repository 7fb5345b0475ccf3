"""Objects without learning: what differs from the median frame, in connected pieces.

Ten lines that find objects about as well as published detectors: the row in every table that
learning must beat, and the free evidence that unsupervised training starts from.

Letters: B batch, H W pixels, K slots, M blobs.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from objrl.perceiver import Decomposition
from objrl.slots import Slots

Image = npt.NDArray[np.uint8]
Boxes = npt.NDArray[np.float32]


@dataclass(frozen=True)
class MedianConfig:
    """How a pixel counts as different, and a piece of pixels as an object."""

    frame_size: tuple[int, int] = (210, 160)
    """(H, W) of the background; frames of another size are resized to it."""
    threshold: int = 24
    """Least difference from the background in any channel, of 255."""
    closing: int = 3
    """Side of the closing that joins a sprite's loose pixels."""
    min_area: int = 3
    """Fewest pixels of an object."""
    largest: float = 0.29
    """Longest side of an object, as a fraction of the frame's longer side; larger is scenery."""
    max_slots: int = 64
    """Rows of the slots that an agent gets."""

    @property
    def max_side(self) -> int:
        """Longest side of an object in pixels."""
        return int(self.largest * max(self.frame_size))


def differs(frame: Image, background: Image, threshold: int) -> Image:
    """Return (H, W) uint8, 1 where any channel is further than `threshold` from the background."""
    far: Image = (cv2.absdiff(frame, background).max(axis=2) > threshold).astype(np.uint8)
    return far


def blobs(mask: Image, config: MedianConfig) -> tuple[Boxes, npt.NDArray[np.int32]]:
    """Return the connected pieces of a (H, W) mask that may be objects.

    Returns:
        (M, 4) float32 boxes x0 y0 x1 y1 in pixels by falling area, and (H, W) int32 labels: 1 + the
        index of the box whose piece a pixel belongs to, 0 for none.
    """
    side = config.closing
    closed = cv2.morphologyEx(mask, cv2.MORPH_CLOSE, np.ones((side, side), np.uint8))
    _, labels, stats, _ = cv2.connectedComponentsWithStats(closed, connectivity=8)
    x, y, w, h, area = stats.T
    fits = (area >= config.min_area) & (w <= config.max_side) & (h <= config.max_side)
    fits[0] = False  # the background
    chosen = np.flatnonzero(fits)
    chosen = chosen[np.argsort(-area[chosen], kind="stable")]
    rename = np.zeros(len(stats), np.int32)
    rename[chosen] = 1 + np.arange(len(chosen), dtype=np.int32)
    boxes = np.stack([x, y, x + w, y + h], axis=1)[chosen].astype(np.float32)
    return boxes, rename[labels]


def median_frame(frames: Image) -> Image:
    """Return the pixel-wise median (H, W, 3) of (N, H, W, 3) frames; some hundred are enough."""
    if frames.ndim != 4 or frames.shape[3] != 3 or frames.dtype != np.uint8 or not len(frames):
        raise ValueError(
            f"frames: expected (N, H, W, 3) uint8, N > 0, got {frames.shape} {frames.dtype}"
        )
    half = len(frames) // 2
    return np.stack([np.partition(row, half, axis=0)[half] for row in frames.swapaxes(0, 1)])


def backdrop(frames: Image, config: MedianConfig, share: float = 0.05, least: int = 3) -> Image:
    """Return the median frame without the things on it that come and go: (H, W, 3) uint8.

    A shield, a pill or a key that stands still most of the time is part of the median. It is an
    object all the same if it can vanish: a piece of the median, as small as objects, of which a
    little turns into what surrounds it in some frames. Such pieces are painted over. Things that
    never change, or are only ever hidden by others, cannot be told from scenery, and stay.

    Args:
        frames: (N, H, W, 3) uint8, spread over episodes.
        config: what counts as different, and as an object.
        share: how much of a piece must have vanished.
        least: in how many frames.
    """
    median = median_frame(frames[:: 1 + len(frames) // 500])
    pieces, count = _flat_pieces(median, config.max_side)
    if not count:
        return median
    bare = _paint_over(median, pieces > 0)
    where = np.flatnonzero(pieces)
    owner = pieces.ravel()[where]
    size = np.maximum(np.bincount(owner, minlength=count + 1), 1)
    vanished = np.zeros(count + 1, np.int64)
    flat, known, under = (
        frames.reshape(len(frames), -1, 3),
        median.reshape(-1, 3),
        bare.reshape(-1, 3),
    )
    known, under = known[where].astype(np.int16), under[where].astype(np.int16)
    for frame in flat:
        shown = frame[where].astype(np.int16)
        gone = np.abs(shown - known).max(1) > config.threshold
        gone &= np.abs(shown - under).max(1) <= config.threshold
        lost = np.bincount(owner, weights=gone, minlength=count + 1) / size > share
        # When all vanish at once it is the screen that blinks, not the things on it.
        if lost.sum() < max(0.97 * count, 5):
            vanished += lost
    return np.where((vanished >= least)[pieces][..., None], bare, median)


def _flat_pieces(image: Image, max_side: int) -> tuple[npt.NDArray[np.int32], int]:
    """Label (H, W) the pieces that stand out from the larger areas of one colour, 0 elsewhere.

    Returns:
        The labels, from 1 on without a gap, and how many there are.
    """
    code = _colours(image)
    small = np.zeros(code.shape, np.uint8)
    for colour in np.unique(code):
        _, labels, stats, _ = cv2.connectedComponentsWithStats(
            (code == colour).astype(np.uint8), connectivity=8
        )
        tiny = (stats[:, 2] <= max_side) & (stats[:, 3] <= max_side)
        tiny[0] = False
        small |= tiny[labels].astype(np.uint8)
    _, labels, stats, _ = cv2.connectedComponentsWithStats(small, connectivity=8)
    fits = (stats[:, 2] <= max_side) & (stats[:, 3] <= max_side)
    fits[0] = False
    number = np.cumsum(fits, dtype=np.int32) * fits
    return number[labels], int(number.max())


def _colours(image: Image) -> npt.NDArray[np.int32]:
    """(H, W, 3) -> (H, W) one number a colour; coarser ones where there are very many."""
    for bits in (8, 4, 2):
        parts = (image >> (8 - bits)).astype(np.int32)
        code: npt.NDArray[np.int32] = (parts[..., 0] << 16) | (parts[..., 1] << 8) | parts[..., 2]
        if len(np.unique(code)) <= 64:
            break
    return code


def _paint_over(image: Image, hidden: npt.NDArray[np.bool_]) -> Image:
    """Give hidden pixels the colour of the nearest one that is not."""
    _, nearest = cv2.distanceTransformWithLabels(
        hidden.astype(np.uint8), cv2.DIST_L2, 5, labelType=cv2.DIST_LABEL_PIXEL
    )
    colours = np.zeros((nearest.max() + 1, 3), np.uint8)
    colours[nearest[~hidden]] = image[~hidden]
    return np.where(hidden[..., None], colours[nearest], image)


class Median(nn.Module):
    """The baseline as a `Detector`: `FramePerceiver(Median.fit(frames))`.

    `what` is the mean colour and the log of the area: enough to tell most sprites apart.
    Connected components run on the host, frame by frame: a yardstick, not a fast path.
    """

    background: Tensor
    what_size = 4

    def __init__(self, config: MedianConfig) -> None:
        super().__init__()
        self.config = config
        self.max_slots = config.max_slots
        self.register_buffer("background", torch.zeros(*config.frame_size, 3, dtype=torch.uint8))

    @classmethod
    def fit(cls, frames: Image, config: MedianConfig | None = None) -> Median:
        """Take the background from (N, H, W, 3) uint8 frames."""
        model = cls(config or MedianConfig(frame_size=(frames.shape[1], frames.shape[2])))
        height, width = model.config.frame_size
        sized = np.stack([_resize(frame, height, width) for frame in frames])
        model.background.copy_(torch.from_numpy(backdrop(sized, model.config)))
        return model

    def _pieces(self, frame: Image) -> tuple[Image, Boxes, npt.NDArray[np.int32]]:
        frame = _resize(frame, *self.config.frame_size)
        background = self.background.cpu().numpy()
        mask = differs(frame, background, self.config.threshold)
        boxes, labels = blobs(mask, self.config)
        return frame, boxes[: self.max_slots], np.where(labels > self.max_slots, 0, labels)

    def detect(self, frames: Tensor) -> Slots:
        """Return slots by falling area; presence is 1, depth 0."""
        height, width = self.config.frame_size
        slots = Slots.empty(len(frames), self.max_slots, self.what_size)
        for b, frame in enumerate(frames.cpu().numpy()):
            frame, boxes, labels = self._pieces(frame)
            count = len(boxes)
            if not count:
                continue
            area = np.bincount(labels.ravel(), minlength=count + 1)[1:]
            colour = [
                np.bincount(labels.ravel(), frame[..., c].ravel(), count + 1) for c in range(3)
            ]
            what = np.stack([*(c[1:] / area / 255 for c in colour), np.log(area)], axis=1)
            box = torch.from_numpy(boxes) / torch.tensor([width, height, width, height])
            slots.position[b, :count] = box[:, :2] + box[:, 2:] - 1
            slots.scale[b, :count] = box[:, 2:] - box[:, :2]
            slots.what[b, :count] = torch.from_numpy(what.astype(np.float32))
            slots.presence[b, :count] = 1
        return slots.to(self.background.device)

    def segment(self, frames: Tensor) -> Tensor:
        """Return (B, K+1, H, W) masks of 0 and 1, the background last."""
        labels = np.stack([self._pieces(frame)[2] for frame in frames.cpu().numpy()])
        masks = F.one_hot(torch.from_numpy(labels).long(), self.max_slots + 1).permute(0, 3, 1, 2)
        masks = F.interpolate(masks.float(), tuple(frames.shape[1:3]), mode="nearest")
        return masks.roll(-1, dims=1).to(self.background.device)

    def decompose(self, frames: Tensor) -> Decomposition:
        """Take frames apart; the reconstruction is the frame where an object is."""
        shown = np.stack([_resize(f, *self.config.frame_size) for f in frames.cpu().numpy()])
        image = torch.from_numpy(shown).permute(0, 3, 1, 2).float() / 255
        small = torch.from_numpy(shown)
        alpha = 1 - self.segment(small)[:, -1:].cpu()
        background = (self.background.cpu().permute(2, 0, 1).float() / 255).expand_as(image)
        return Decomposition(
            image, alpha * image + (1 - alpha) * background, alpha * image, background, alpha
        )


def _resize(frame: Image, height: int, width: int) -> Image:
    if frame.shape[:2] == (height, width):
        return frame
    return cv2.resize(frame, (width, height), interpolation=cv2.INTER_AREA).astype(np.uint8)
