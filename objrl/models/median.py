"""Objects without learning: a background from the frames, and the pieces that differ from it.

It finds objects about as well as published detectors do: the row in every table that learning must
beat, what `ObjectSlots` offers for a game that has no weights yet, and the free evidence that
unsupervised training starts from. `scenery.py` finds the background, `pieces.py` the pieces.

Letters: B batch, H W pixels, K slots, F faces, C colours.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from objrl.models.pieces import Boxes, Palette, find_pieces, learn_palette
from objrl.models.regions import Image, Labels
from objrl.models.scenery import Scenery, survey
from objrl.perceiver import Decomposition
from objrl.slots import Slots


@dataclass(frozen=True)
class MedianConfig:
    """How a pixel counts as different, and a piece of pixels as an object."""

    frame_size: tuple[int, int] = (210, 160)
    """(H, W) of the background; frames of another size are resized to it."""
    threshold: int = 24
    """Least difference from the background in any channel, of 255."""
    min_area: int = 3
    """Fewest pixels of an object."""
    largest: float = 0.29
    """Longest side of an object, as a fraction of the frame's longer side; larger is scenery."""
    max_slots: int = 64
    """Rows of the slots that an agent gets."""
    faces: int = 1
    """F, how many backgrounds a pixel may show; `fit` finds it."""
    colours: int = 0
    """C, how many colours of moving things are known; `fit` finds it."""
    changing: bool = False
    """Whether large areas of one colour are background wherever they are; `fit` finds it."""
    shaded: bool = False
    """Whether there are light and shadow; `fit` finds it."""
    colourful: bool = False
    """Whether moving things have too many colours to be known one by one; `fit` finds it."""

    @property
    def max_side(self) -> int:
        """Longest side of an object in pixels."""
        return int(self.largest * max(self.frame_size))


@dataclass(frozen=True)
class Seen:
    """What a look at a game's frames has shown: the teacher that needs no teacher.

    Attributes:
        scenery: the background.
        palette: which colours belong together.
        min_area: fewest pixels of an object.
    """

    scenery: Scenery
    palette: Palette
    min_area: int

    @classmethod
    def of(cls, frames: Image, config: MedianConfig) -> Seen:
        """Look at (N, H, W, 3) uint8 frames of the config's size, spread over episodes."""
        scenery = survey(frames, max_side=config.max_side, threshold=config.threshold)
        palette = learn_palette(frames[:: 1 + len(frames) // 200], scenery)
        return cls(scenery, palette, config.min_area)

    def pieces(self, frame: Image) -> tuple[Boxes, Labels]:
        """Return boxes and labels as `find_pieces` does."""
        return find_pieces(frame, self.scenery, self.palette, min_area=self.min_area)


@dataclass(frozen=True)
class Scenes:
    """What was seen of several games; a frame is of the one whose background it is most like.

    Attributes:
        every: (S,) one game's each, of frames of one size.
    """

    every: tuple[Seen, ...]

    def of(self, frame: Image) -> Seen:
        """Say which game a (H, W, 3) uint8 frame is of."""
        if len(self.every) == 1:
            return self.every[0]
        part = frame[::4, ::4]
        usual = [seen.scenery.faces[0][::4, ::4] for seen in self.every]
        return self.every[int(np.argmin([cv2.norm(part, u, cv2.NORM_L1) for u in usual]))]

    def pieces(self, frame: Image) -> tuple[Boxes, Labels]:
        """Return boxes and labels as `find_pieces` does."""
        return self.of(frame).pieces(frame)


class Median(nn.Module):
    """The baseline as a `Detector`: `FramePerceiver(Median.fit(frames))`.

    `what` is the mean colour and the log of the area: enough to tell most sprites apart.
    Connected components run on the host, frame by frame: a yardstick, not a fast path.
    """

    faces: Tensor
    median: Tensor
    standing: Tensor
    colours: Tensor
    joined: Tensor
    what_size = 4

    def __init__(self, config: MedianConfig) -> None:
        super().__init__()
        self.config = config
        self.max_slots = config.max_slots
        size, colours = config.frame_size, config.colours
        self._kept: tuple[tuple[int, ...], Seen] | None = None
        for name, shape, kind in (
            ("faces", (config.faces, *size, 3), torch.uint8),
            ("median", (*size, 3), torch.uint8),
            ("standing", size, torch.int32),
            ("colours", (colours,), torch.int32),
            ("joined", (colours, colours), torch.bool),
        ):
            self.register_buffer(name, torch.zeros(shape, dtype=kind))

    @classmethod
    def fit(cls, frames: Image, config: MedianConfig | None = None) -> Median:
        """Look at (N, H, W, 3) uint8 frames, spread over episodes; some hundreds are enough.

        Without a config, the background is as large as the frames, and there are as many slots as
        the fullest frames need.
        """
        if config is not None:
            sized = np.stack([_resize(frame, *config.frame_size) for frame in frames])
            return cls.knowing(Seen.of(sized, config), config)
        config = MedianConfig(frame_size=(frames.shape[1], frames.shape[2]))
        seen = Seen.of(frames, config)
        counts = [len(seen.pieces(frame)[0]) for frame in frames[:: 1 + len(frames) // 200]]
        return cls.knowing(seen, replace(config, max_slots=enough_slots(counts)))

    @classmethod
    def knowing(cls, seen: Seen, config: MedianConfig) -> Median:
        """Make a detector of what was seen in frames of the config's size."""
        scenery, palette = seen.scenery, seen.palette
        found = replace(
            config,
            faces=len(scenery.faces),
            colours=len(palette.colours),
            changing=scenery.changing,
            shaded=scenery.shaded,
            colourful=scenery.colourful,
        )
        model = cls(found)
        for name, value in (
            *(("faces", scenery.faces), ("median", scenery.median)),
            *(("standing", scenery.standing), ("colours", palette.colours)),
            ("joined", palette.joined),
        ):
            getattr(model, name).copy_(torch.from_numpy(value))
        return model

    @property
    def seen(self) -> Seen:
        """What it knows, on the host; made anew when the buffers have changed."""
        versions = tuple(buffer._version for buffer in self.buffers())
        if self._kept is None or self._kept[0] != versions:
            self._kept = versions, self._read()
        return self._kept[1]

    def _read(self) -> Seen:
        faces, median, standing, colours, joined = (
            getattr(self, name).cpu().numpy()
            for name in ("faces", "median", "standing", "colours", "joined")
        )
        config = self.config
        scenery = Scenery(
            *(faces, median, standing, config.changing, config.shaded, config.colourful),
            *(config.max_side, config.threshold),
        )
        return Seen(scenery, Palette(colours, joined), config.min_area)

    def _pieces(self, frames: Tensor) -> list[tuple[Image, Boxes, Labels]]:
        """Return each frame at the background's size, its boxes and labels."""
        seen, found = self.seen, []
        for frame in frames.cpu().numpy():
            sized = _resize(frame, *self.config.frame_size)
            boxes, labels = seen.pieces(sized)
            rows = np.where(labels > self.max_slots, 0, labels)
            found.append((sized, boxes[: self.max_slots], rows))
        return found

    def detect(self, frames: Tensor) -> Slots:
        """Return slots by falling area; presence is 1, depth 0."""
        height, width = self.config.frame_size
        slots = Slots.empty(len(frames), self.max_slots, self.what_size)
        for b, (frame, boxes, labels) in enumerate(self._pieces(frames)):
            count = len(boxes)
            if not count:
                continue
            area = np.maximum(np.bincount(labels.ravel(), minlength=count + 1)[1:], 1)
            colour = [
                np.bincount(labels.ravel(), frame[..., c].ravel(), count + 1) for c in range(3)
            ]
            what = np.stack([*(c[1:] / area / 255 for c in colour), np.log(area)], axis=1)
            box = torch.from_numpy(boxes) / torch.tensor([width, height, width, height])
            slots.position[b, :count] = box[:, :2] + box[:, 2:] - 1
            slots.scale[b, :count] = box[:, 2:] - box[:, :2]
            slots.what[b, :count] = torch.from_numpy(what.astype(np.float32))
            slots.presence[b, :count] = 1
        return slots.to(self.faces.device)

    def segment(self, frames: Tensor) -> Tensor:
        """Return (B, K+1, H, W) masks of 0 and 1, the background last."""
        labels = np.stack([labels for _, _, labels in self._pieces(frames)])
        masks = F.one_hot(torch.from_numpy(labels).long(), self.max_slots + 1).permute(0, 3, 1, 2)
        masks = F.interpolate(masks.float(), tuple(frames.shape[1:3]), mode="nearest")
        return masks.roll(-1, dims=1).to(self.faces.device)

    def decompose(self, frames: Tensor) -> Decomposition:
        """Take frames apart; the reconstruction is the frame where an object is."""
        found = self._pieces(frames)
        shown = torch.from_numpy(np.stack([frame for frame, _, _ in found]))
        image = shown.permute(0, 3, 1, 2).float() / 255
        alpha = torch.from_numpy(np.stack([labels > 0 for _, _, labels in found]))[:, None].float()
        usual = self.faces[0].cpu().permute(2, 0, 1).float() / 255
        background = usual.expand_as(image)
        return Decomposition(
            image, alpha * image + (1 - alpha) * background, alpha * image, background, alpha
        )


def enough_slots(counts: Sequence[int]) -> int:
    """Return rows that suffice for the fullest frames, by how many objects some frames have."""
    return min(192, max(16, 16 * math.ceil(1.25 * float(np.quantile(counts, 0.99)) / 16)))


def _resize(frame: Image, height: int, width: int) -> Image:
    if frame.shape[:2] == (height, width):
        return frame
    return cv2.resize(frame, (width, height), interpolation=cv2.INTER_AREA).astype(np.uint8)
