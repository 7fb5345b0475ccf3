"""From raw boxes to those that an agent gets: tight, on the canvas, each object once.

Boxes are (B, K, 4) as z_where has them: width and height as a fraction of the canvas, centre x, y
in [-1, 1].
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
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


def doubled(box: Tensor, track_id: Tensor, lost: Tensor, leap: Tensor, distinct: float) -> Tensor:
    """Tell who is on another's object: of rows that came to follow one, one is seen.

    Whose it is: who was seen in the frame before has it before who was not; then who leapt there
    less, for where two objects cross, a row may be taken along by the other's; then the elder. All
    at once, as in `repeated`: who yields may yield to one that yields itself.

    Args:
        box: (B, K, 4).
        track_id: (B, K) int64, -1 in free rows, which are on nobody's object and have none.
        lost: (B, K) bool, who was not seen in the frame before.
        leap: (B, K) how far a row is from where it would be if it had gone on as it went, in units
            of its size; leaps count as one below 0.2, and from there on as different by octaves.
        distinct: IoU above which two are on one object.

    Returns:
        (B, K) bool.
    """
    octave = (leap.nan_to_num() / 0.1).clamp(1, 1e9).log2().long()
    # One order of all, or of three on one place each might yield to another.
    rank = ((lost.long() * 32 + octave) << 40) + track_id
    alive = track_id >= 0
    both = alive[:, :, None] & alive[:, None] & (overlaps(box, box) > distinct)
    return (both & (rank[:, :, None] > rank[:, None])).any(2)


def overlaps(some: Tensor, others: Tensor) -> Tensor:
    """(B, M, 4) and (B, K, 4) boxes -> (B, M, K) their IoU."""
    low, high = ([box[..., 2:] + sign * box[..., :2] for box in (some, others)] for sign in (-1, 1))
    shared = torch.minimum(high[0][:, :, None], high[1][:, None]) - torch.maximum(
        low[0][:, :, None], low[1][:, None]
    )
    both = shared.clamp(min=0).prod(-1)
    areas = [(h - w).prod(-1) for w, h in zip(low, high, strict=True)]
    return both / (areas[0][:, :, None] + areas[1][:, None] - both).clamp(min=1e-9)


def apart(some: Tensor, others: Tensor) -> Tensor:
    """(B, M, 4) and (B, K, 4) boxes -> (B, M, K) how far they are apart, in units of the first's.

    Differences in width, height and place are summed up, and divided by width plus height: 1 for
    squares of one size that touch, which have an IoU of 0. For boxes of a few pixels an IoU tells
    too little: one pixel beside the place, and it is gone.
    """
    return torch.cdist(some, others, p=1.0) / some[..., :2].sum(-1, keepdim=True).clamp(min=1e-9)


def summed(shown: Tensor) -> Tensor:
    """(B, 1, H, W) bool -> (B, 1, H + 1, W + 1) table of sums, for `on_nothing`."""
    return F.pad(shown.float().cumsum(2).cumsum(3), (1, 0, 1, 0))


def on_nothing(table: Tensor, box: Tensor) -> Tensor:
    """(B, K) bool: in whose box (B, K, 4) nothing is shown.

    Not by a few taps, which might miss what is small: by the sum over the box, from `summed`.
    """
    height, width = table.shape[2] - 1, table.shape[3] - 1
    flat = table.flatten(1)

    def edge(axis: int, sign: int, pixels: int) -> Tensor:
        place = (box[..., 2 + axis] + sign * box[..., axis] + 1) / 2 * pixels
        whole = place.floor() if sign < 0 else place.ceil()
        # What is no number must come out as a loss that is none, not as an index.
        return whole.clamp(0, pixels).nan_to_num().long()

    def at(x: Tensor, y: Tensor) -> Tensor:
        return flat.gather(1, y * (width + 1) + x)

    left, right = edge(0, -1, width), edge(0, 1, width)
    top, bottom = edge(1, -1, height), edge(1, 1, height)
    found = at(right, bottom) - at(left, bottom) - at(right, top) + at(left, top)
    return found < 0.5


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
