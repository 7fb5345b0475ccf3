"""Boxes that may hold an object: a region proposal network (Ren et al. 2015, 1506.01497).

Own, because torchvision does not import beside the CPU build of torch. Anchors lie on the maps of a
pyramid (Lin et al. 2017), one size a map; the network says of each whether it holds an object, and
how it should be moved.

Boxes are x0 y0 x1 y1 in pixels. Letters: B batch, A anchors, N boxes, R proposals, M true boxes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

_LARGEST = math.log(1000 / 16)
"""A box grows to at most so many times its anchor, in logarithms; as everywhere in this field."""


@dataclass(frozen=True)
class Proposed:
    """What the network says of an image's anchors.

    Attributes:
        logit: (B, A) whether they hold an object.
        move: (B, A, 4) how they should be moved.
        anchor: (A, 4) boxes.
    """

    logit: Tensor
    move: Tensor
    anchor: Tensor


class ProposalHead(nn.Module):
    """One small network for all maps of a pyramid."""

    def __init__(self, depth: int, sizes: Sequence[float], ratios: Sequence[float]) -> None:
        """Make it.

        Args:
            depth: channels of the maps.
            sizes: of the anchors in pixels, the root of their area; one a map.
            ratios: height over width.
        """
        super().__init__()
        self.sizes, self.ratios = tuple(sizes), tuple(ratios)
        self.shared = nn.Conv2d(depth, depth, 3, padding=1)
        self.logit = nn.Conv2d(depth, len(self.ratios), 1)
        self.move = nn.Conv2d(depth, 4 * len(self.ratios), 1)
        for layer in (self.shared, self.logit, self.move):
            nn.init.normal_(layer.weight, std=0.01)
            assert layer.bias is not None
            nn.init.zeros_(layer.bias)

    def forward(self, maps: Sequence[Tensor], canvas: tuple[int, int]) -> Proposed:
        """(B, depth, h, w) maps of a canvas (H, W) -> what is proposed."""
        logits, moves, anchors = [], [], []
        for here, size in zip(maps, self.sizes, strict=True):
            seen = F.relu(self.shared(here))
            logits.append(self.logit(seen).permute(0, 2, 3, 1).flatten(1))
            moves.append(self.move(seen).permute(0, 2, 3, 1).flatten(1).unflatten(1, (-1, 4)))
            anchors.append(lay_anchors(here, canvas, size, self.ratios))
        return Proposed(torch.cat(logits, 1), torch.cat(moves, 1), torch.cat(anchors))


def lay_anchors(
    here: Tensor, canvas: tuple[int, int], size: float, ratios: Sequence[float]
) -> Tensor:
    """Return (h * w * ratios, 4) boxes round the middles of a map's cells, row by row."""
    height, width = here.shape[-2:]
    y = (torch.arange(height, device=here.device) + 0.5) * canvas[0] / height
    x = (torch.arange(width, device=here.device) + 0.5) * canvas[1] / width
    y, x = torch.meshgrid(y, x, indexing="ij")
    boxes = []
    for root in map(math.sqrt, ratios):
        half_x, half_y = size / root / 2, size * root / 2
        boxes.append(torch.stack([x - half_x, y - half_y, x + half_x, y + half_y], -1))
    return torch.stack(boxes, 2).flatten(0, 2)


def moved(anchor: Tensor, move: Tensor) -> Tensor:
    """Move (…, 4) anchors: centre in units of their size, size in logarithms."""
    size, centre = anchor[..., 2:] - anchor[..., :2], (anchor[..., :2] + anchor[..., 2:]) / 2
    centre = centre + move[..., :2] * size
    half = size * move[..., 2:].clamp(max=_LARGEST).exp() / 2
    return torch.cat([centre - half, centre + half], -1)


def move_to(anchor: Tensor, box: Tensor) -> Tensor:
    """Return what `moved` needs to make (…, 4) boxes of anchors."""
    size = anchor[..., 2:] - anchor[..., :2]
    wanted = (box[..., 2:] - box[..., :2]).clamp(min=1e-3)
    far = (box[..., :2] + box[..., 2:] - anchor[..., :2] - anchor[..., 2:]) / 2
    return torch.cat([far / size, (wanted / size).log()], -1)


def overlap(one: Tensor, other: Tensor) -> Tensor:
    """(…, N, 4) and (…, M, 4) boxes -> (…, N, M) intersections over unions."""
    low = torch.maximum(one[..., :, None, :2], other[..., None, :, :2])
    high = torch.minimum(one[..., :, None, 2:], other[..., None, :, 2:])
    shared = (high - low).clamp(min=0).prod(-1)
    area, others = ((b[..., 2:] - b[..., :2]).clamp(min=0).prod(-1) for b in (one, other))
    return shared / (area[..., :, None] + others[..., None, :] - shared).clamp(min=1e-9)


def suppress(box: Tensor, threshold: float) -> Tensor:
    """Return (B, N) bool which boxes stay: non-maximum suppression of (B, N, 4) by falling score.

    A box goes if it overlaps one that stays, further up, by an IoU above the threshold. The loop is
    over boxes, not over images.
    """
    over = overlap(box, box) > threshold
    stays = torch.ones(box.shape[:2], dtype=torch.bool, device=box.device)
    for number in range(box.shape[1] - 1):
        hidden = over[:, number, number + 1 :] & stays[:, number, None]
        stays[:, number + 1 :] &= ~hidden
    return stays


@torch.no_grad()
def best_proposals(
    proposed: Proposed,
    canvas: tuple[int, int],
    count: int,
    *,
    before: int = 100,
    threshold: float = 0.3,
    least: float = 1.0,
) -> tuple[Tensor, Tensor]:
    """Return (B, R, 4) boxes by falling score and (B, R) scores in [0, 1], 0 where there are fewer.

    Args:
        proposed: by the network.
        canvas: (H, W) that boxes are cut off at.
        count: R.
        before: how many of the likeliest are looked at.
        threshold: IoU above which two boxes are one.
        least: side in pixels below which a box is none.
    """
    score, index = proposed.logit.sigmoid().topk(min(before, proposed.logit.shape[1]), dim=1)
    move = proposed.move.gather(1, index[..., None].expand(-1, -1, 4))
    box = clip(moved(proposed.anchor[index], move), canvas)
    stays = suppress(box, threshold) & ((box[..., 2:] - box[..., :2]) >= least).all(-1)
    score = torch.where(stays, score, 0.0)
    missing = count - score.shape[1]
    if missing > 0:
        score, box = F.pad(score, (0, missing)), F.pad(box, (0, 0, 0, missing))
    score, order = score.topk(count, dim=1)
    return box.gather(1, order[..., None].expand(-1, -1, 4)), score


def clip(box: Tensor, canvas: tuple[int, int]) -> Tensor:
    """Return the parts of (…, 4) boxes that lie on a canvas (H, W)."""
    height, width = canvas
    x, y = box[..., ::2].clamp(0, width), box[..., 1::2].clamp(0, height)
    return torch.stack([x, y], -1).flatten(-2)


def proposal_terms(
    proposed: Proposed,
    true: Tensor,
    there: Tensor,
    *,
    positive: float = 0.7,
    negative: float = 0.3,
    samples: int = 256,
) -> dict[str, Tensor]:
    """Return how far proposals are from true boxes, as (B,): what holds an object, and how moved.

    Anchors that overlap a true box by `positive` hold it, and those that overlap one most; those
    below `negative` hold none. Of them a number is drawn, half of it positive if there are so many
    (Ren et al., 3.1.2 and 3.1.3). Both terms are means over the drawn.

    Args:
        proposed: by the network.
        true: (B, M, 4) boxes.
        there: (B, M) bool which of them there are.
        positive: IoU from which on an anchor holds a box.
        negative: IoU below which it holds none.
        samples: anchors drawn from each image.
    """
    fit = torch.where(there[:, None], overlap(proposed.anchor, true), 0.0)  # (B, A, M)
    if fit.shape[2] == 0:
        best, which = fit.new_zeros(fit.shape[:2]), None
    else:
        best, which = fit.max(2)
    holds = best >= positive
    if which is not None:
        most = fit.amax(1, keepdim=True)
        holds |= ((fit == most) & (most > 0)).any(2)
    empty = (best < negative) & ~holds
    yes = _drawn(holds, torch.full_like(holds[:, 0], samples // 2, dtype=torch.int64))
    no = _drawn(empty, samples - yes.sum(1))
    count = (yes | no).sum(1).clamp(min=1)
    wrong = F.binary_cross_entropy_with_logits(
        proposed.logit, holds.to(proposed.logit.dtype), reduction="none"
    )
    terms = {"proposal": (wrong * (yes | no)).sum(1) / count}
    if which is None:
        return {**terms, "proposal_box": torch.zeros_like(terms["proposal"])}
    target = move_to(proposed.anchor, true.gather(1, which[..., None].expand(-1, -1, 4)))
    far = F.smooth_l1_loss(proposed.move, target, reduction="none", beta=1 / 9).sum(2)
    return {**terms, "proposal_box": torch.where(yes, far, 0.0).sum(1) / count}


def _drawn(mask: Tensor, count: Tensor) -> Tensor:
    """Keep (B,) `count` of (B, A) bool, drawn at random, or all if there are fewer."""
    chance = torch.where(mask, torch.rand(mask.shape, device=mask.device), -1.0)
    rank = chance.argsort(1, descending=True).argsort(1)
    return mask & (rank < count[:, None])
