"""Frames as they come (uint8, height x width x RGB) and as networks want them."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def check_frames(frames: Tensor) -> Tensor:
    """Return `frames` when they are (B, H, W, 3) uint8 RGB.

    Raises:
        TypeError: not a uint8 tensor.
        ValueError: not of that shape.
    """
    if not isinstance(frames, Tensor):
        raise TypeError(
            f"frames: expected a torch.Tensor (B, H, W, 3) uint8, got {type(frames).__name__}; "
            "use torch.from_numpy(frames)"
        )
    shape = tuple(frames.shape)
    if len(shape) == 4 and shape[1] == 3 and shape[3] != 3:
        raise ValueError(
            f"frames: expected (B, H, W, 3), got {shape}, which looks channels-first; "
            "use frames.permute(0, 2, 3, 1)"
        )
    if len(shape) != 4 or shape[3] != 3:
        raise ValueError(
            f"frames: expected RGB frames (B, H, W, 3), got shape {shape}; "
            "a single frame needs frames[None], a grayscale one cannot be used"
        )
    if 0 in shape[:3]:
        raise ValueError(f"frames: expected at least one frame with pixels, got shape {shape}")
    if frames.dtype != torch.uint8:
        raise TypeError(
            f"frames: expected dtype uint8 in 0..255, got {frames.dtype}; "
            "do not normalise frames before objrl sees them"
        )
    return frames


def to_image(frames: Tensor, height: int, width: int) -> Tensor:
    """Resize (B, H, W, 3) uint8 frames to (B, 3, height, width) float32 in [0, 1], where they are.

    Antialiased bilinear, which keeps a thing one pixel wide visible; nothing is computed where the
    size is right already.
    """
    image = frames.permute(0, 3, 1, 2).to(torch.float32).div_(255)
    if image.shape[2:] == (height, width):
        return image.contiguous()
    return F.interpolate(
        image, (height, width), mode="bilinear", align_corners=False, antialias=True
    )
