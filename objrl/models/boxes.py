"""From raw boxes to those that an agent gets: tight, on the canvas, each object once.

Boxes are (B, K, 4) as z_where has them: width and height as a fraction of the canvas, centre x, y
in [-1, 1].
"""

from __future__ import annotations

import torch
from torch import Tensor


def clip_boxes(box: Tensor, canvas: tuple[int, int]) -> Tensor:
    """(B, K, 4) boxes -> the part of each that lies on the canvas, at least one pixel of it."""
    scale, centre = box[..., :2], box[..., 2:]
    lows, highs = (centre - scale).unbind(-1), (centre + scale).unbind(-1)
    edges = []
    for low, high, pixel in zip(lows, highs, (2 / canvas[1], 2 / canvas[0]), strict=True):
        low = low.clamp(-1, 1 - pixel)
        edges.append((low, torch.maximum(high.clamp(max=1), low + pixel)))
    low, high = (torch.stack([edge[i] for edge in edges], dim=-1) for i in (0, 1))
    return torch.cat([(high - low) / 2, (low + high) / 2], dim=-1)


def repeated(box: Tensor, presence: Tensor, distinct: float) -> Tensor:
    """(B, K, 4) boxes, (B, K, 1) presence by falling value -> (B, K, 1) bool: seen before.

    An object between two cells may be found by both. A box counts as a repetition if it overlaps
    one further up by an IoU above `distinct`, be that one a repetition or not: all at once, so
    that there is no loop over boxes.
    """
    same = (overlaps(box, box) > distinct) & (presence > 0).mT
    return same.tril(diagonal=-1).any(2, keepdim=True)


def doubled(box: Tensor, track_id: Tensor, distinct: float) -> Tensor:
    """(B, K, 4) boxes of (B, K) int64 identities -> (B, K) bool: is on one that is older.

    Two rows may come to follow one object; it was the elder's. A free row is nobody's elder.
    """
    elder = (track_id[:, None] >= 0) & (track_id[:, None] < track_id[:, :, None])
    return (elder & (overlaps(box, box) > distinct)).any(2)


def overlaps(some: Tensor, others: Tensor) -> Tensor:
    """(B, M, 4) and (B, K, 4) boxes -> (B, M, K) their IoU."""
    low, high = ([box[..., 2:] + sign * box[..., :2] for box in (some, others)] for sign in (-1, 1))
    shared = torch.minimum(high[0][:, :, None], high[1][:, None]) - torch.maximum(
        low[0][:, :, None], low[1][:, None]
    )
    both = shared.clamp(min=0).prod(-1)
    areas = [(h - w).prod(-1) for w, h in zip(low, high, strict=True)]
    return both / (areas[0][:, :, None] + areas[1][:, None] - both).clamp(min=1e-9)


def tight_boxes(mask: Tensor, z_where: Tensor, reach: float = 1.0) -> Tensor:
    """(B, K, g, g) outlines in (B, K, 4) boxes -> (B, K, 4) boxes around what they show.

    An edge lies where the outline's profile crosses half of its maximum, at a fraction of a pixel
    by linear interpolation. z_where itself obeys its prior and is up to 1.7 times too wide.
    """
    edges = [_extent(mask.amax(dim)) for dim in (-2, -1)]  # over rows: x; over columns: y
    low, high = (torch.stack([edge[i] for edge in edges], -1).clamp(-reach, reach) for i in (0, 1))
    scale, centre = z_where[..., :2], z_where[..., 2:]
    return torch.cat([scale * (high - low) / 2, centre + scale * (low + high) / 2], dim=-1)


def _extent(profile: Tensor) -> tuple[Tensor, Tensor]:
    """(…, g) -> where it first and last crosses half of its maximum, in [-1, 1]."""
    count = profile.shape[-1]
    half = profile.amax(-1, keepdim=True).clamp(max=1) / 2

    def first(values: Tensor) -> Tensor:
        at = (values >= half).to(torch.uint8).argmax(-1, keepdim=True)
        inside = values.gather(-1, at)
        outside = values.gather(-1, (at - 1).clamp(min=0)) * (at > 0)
        cross = (half - outside) / (inside - outside).clamp(min=1e-6)
        return ((at - 0.5 + cross) * 2 / count - 1)[..., 0].clamp(-1, 1)

    return first(profile), -first(profile.flip(-1))
