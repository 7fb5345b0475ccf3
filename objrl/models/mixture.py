"""What the scene mixtures (MONet, IODINE, R-MONet, ECON) have in common: K slots share the pixels.

Each slot paints the whole canvas and has a mask; masks sum to one at every pixel. An agent gets the
slots as objects: where a mask lies, how large it is, and its code. The slot that has most of the
frame's edge is the background and no object.

Letters: B batch, K slots, D size of a slot's code, H W canvas, h w frame.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from objrl.frames import to_image
from objrl.nn.distributions import Gaussian, take
from objrl.perceiver import Decomposition
from objrl.slots import NO_TRACK, Slots

LEAST = 1024
"""An object has this part of the canvas at least: of 64 x 64 pixels, four."""


def check_slots(count: int) -> None:
    """Raise a ValueError for a number of slots that cannot hold an object and the background."""
    if count < 2:
        raise ValueError(f"slots: expected 2 or more, an object and the background, got {count}")


@dataclass(frozen=True)
class Scene:
    """An image taken apart.

    Attributes:
        mean: (B, K, 3, H, W) what each slot paints.
        log_mask: (B, K, 1, H, W) logarithms of masks that sum to one over K.
        code: (B, K, D) q(z_k | x).
    """

    mean: Tensor
    log_mask: Tensor
    code: Gaussian

    @property
    def mask(self) -> Tensor:
        """(B, K, 1, H, W)."""
        return self.log_mask.exp()

    @property
    def image(self) -> Tensor:
        """(B, 3, H, W) the mixture's mean."""
        return (self.mask * self.mean).sum(1)

    @property
    def background(self) -> Tensor:
        """(B,) int64 which slot has most of the frame's edge."""
        mask = self.mask[:, :, 0]
        edge = mask[..., 0, :].sum(-1) + mask[..., -1, :].sum(-1)
        edge = edge + mask[..., 1:-1, 0].sum(-1) + mask[..., 1:-1, -1].sum(-1)
        return edge.argmax(1)

    @property
    def owner(self) -> Tensor:
        """(B, K, H, W) bool: whose each pixel is more than any other's."""
        mask = self.mask[:, :, 0]
        # `max` is ten times faster than `argmax` over a dimension that is not the last.
        return _rows(mask) == mask.max(1, keepdim=True).indices

    @property
    def objects(self) -> Tensor:
        """(B, K) bool: who has a 1,024th of the canvas or more, and is not the background."""
        height, width = self.mean.shape[-2:]
        large = self.owner.sum((2, 3)) * LEAST >= height * width
        return large & (_rows(large) != self.background[:, None])


def slots_of(scene: Scene) -> Slots:
    """Return slots without identity: of the pixels that are a slot's more than any other's.

    Centre and size are their moments (an evenly filled box has its own width and height), presence
    is what share of those pixels is the slot's, `depth` is 0. Slots that have less than a 1,024th
    of the canvas, and the background, are no objects. Rows are in the scene's order.
    """
    mask, won = scene.mask[:, :, 0], scene.owner.to(scene.mean.dtype)
    height, width = mask.shape[2:]
    most = won.sum((2, 3)).clamp(min=1)
    share = (won * mask).sum((2, 3)) / most
    here = scene.objects

    centre, extent = [], []
    for dim, side in ((3, width), (2, height)):
        at = (torch.arange(side, device=mask.device, dtype=mask.dtype) + 0.5) * 2 / side - 1
        along = won.sum(5 - dim)  # over the other dimension: (B, K, side)
        mean = (along * at).sum(-1) / most
        spread = (along * (at - mean[..., None]) ** 2).sum(-1) / most
        # A pixel's own width counts: one alone is as wide as it is, not of width 0.
        extent.append((3 * spread + 1 / side**2).sqrt().clamp(max=1))
        centre.append(mean)
    known = here[..., None].to(mask.dtype)
    return Slots(
        position=torch.stack(centre, -1) * known,
        velocity=torch.zeros_like(scene.code.mean[..., :2]),
        scale=torch.stack(extent, -1) * known,
        depth=torch.zeros_like(known),
        what=scene.code.mean * known,
        presence=share[..., None].clamp(0, 1) * known,
        track_id=torch.full_like(known, NO_TRACK, dtype=torch.int64),
    )


def masks_of(scene: Scene, size: tuple[int, int]) -> Tensor:
    """Return (B, K + 1, h, w) masks of the objects, the last of all the rest; in scene's order."""
    masks = scene.mask[:, :, 0] * scene.objects[..., None, None]
    if masks.shape[2:] != size:
        masks = F.interpolate(masks, size, mode="bilinear", align_corners=False)
    return torch.cat([masks, 1 - masks.sum(1, keepdim=True)], dim=1)


class MixtureDetector(nn.Module):
    """A scene mixture as a `Detector`; what it is made of says `explain`.

    Attributes:
        frame_size: (H, W) of the canvas.
        max_slots: K.
        what_size: D.
    """

    frame_size: tuple[int, int]
    max_slots: int
    what_size: int

    def explain(self, image: Tensor) -> Scene:
        """(B, 3, H, W) in [0, 1] -> what is likeliest, in training mode too."""
        raise NotImplementedError

    def paint(self, code: Tensor) -> Tensor:
        """(B, K, D) codes of one's own, as `Scene.code` has them -> (B, 3, H, W)."""
        raise NotImplementedError

    def detect(self, frames: Tensor) -> Slots:
        """Return slots without identity of (B, h, w, 3) uint8 frames, by falling presence."""
        slots = slots_of(self.explain(to_image(frames, *self.frame_size)))
        order = _order(slots)
        return slots.map(lambda field: take(field, order))

    def segment(self, frames: Tensor) -> Tensor:
        """Return (B, K+1, h, w) masks in the order of `detect`, the background last."""
        scene = self.explain(to_image(frames, *self.frame_size))
        masks, order = masks_of(scene, (frames.shape[1], frames.shape[2])), _order(slots_of(scene))
        batch = torch.arange(len(order), device=order.device)[:, None]
        return torch.cat([masks[batch, order], masks[:, -1:]], dim=1)

    def decompose(self, frames: Tensor) -> Decomposition:
        """Take frames apart for a picture."""
        image = to_image(frames, *self.frame_size)
        scene = self.explain(image)
        mask, mean = scene.mask, scene.mean.clamp(0, 1)
        behind = _rows(mask[..., 0, 0, 0]) == scene.background[:, None]
        behind = behind[..., None, None, None].to(mask.dtype)
        return Decomposition(
            image,
            scene.image.clamp(0, 1),
            (mask * mean * (1 - behind)).sum(1),
            (mask * mean * behind).sum(1),
            (mask * (1 - behind)).sum(1),
        )


def _rows(like: Tensor) -> Tensor:
    """(K, 1, …) numbers of the slots, to be compared with (B, K, …)."""
    count = like.shape[1]
    return torch.arange(count, device=like.device).view(count, *[1] * (like.ndim - 2))


def _order(slots: Slots) -> Tensor:
    """(B, K) rows by falling presence."""
    return torch.argsort(slots.presence[..., 0], dim=1, descending=True, stable=True)
