"""Objects without learning: the pieces of what differs from the background.

Two things that touch make one piece. Their colours tell them apart: those of one sprite are seen
together nearly always, those of a boxer and of the other boxer only now and then (`Palette`).

Letters: H W pixels, M pieces, C colours.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import combinations, pairwise

import numpy as np
import numpy.typing as npt

from objrl.models.regions import Image, Labels, areas, components, opened
from objrl.models.scenery import Scenery

Boxes = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Palette:
    """Which colours belong to the same things.

    Attributes:
        colours: (C,) int32 those of moving things, rising, as `Scenery.colours` numbers them.
        joined: (C, C) bool whether two of them are mostly seen in one piece.
    """

    colours: npt.NDArray[np.int32]
    joined: npt.NDArray[np.bool_]

    def groups(
        self, colours: npt.NDArray[np.int32], counts: npt.NDArray[np.int64]
    ) -> npt.NDArray[np.int64]:
        """Part the colours of one piece into those that belong together: (n,) a group's number.

        A colour that was hardly ever seen, a flash say, goes with the piece's commonest.
        """
        if not len(self.colours) or len(colours) == 1:
            return np.zeros(len(colours), np.int64)
        at = np.minimum(np.searchsorted(self.colours, colours), len(self.colours) - 1)
        known = self.colours[at] == colours
        near: npt.NDArray[np.bool_] = self.joined[np.ix_(at, at)] & known & known[:, None]
        near |= np.eye(len(at), dtype=bool)
        common = int(counts.argmax())
        near[~known, common] = near[common, ~known] = True
        while True:
            wider = near @ near
            if (wider == near).all():
                group: npt.NDArray[np.int64] = near.argmax(1)
                return group
            near = wider


def learn_palette(
    frames: Image, scenery: Scenery, share: float = 0.6, least: int = 5, pixels: int = 3
) -> Palette:
    """See in (N, H, W, 3) uint8 frames which colours move together.

    Args:
        frames: spread over episodes; some two hundred are enough.
        scenery: their background.
        share: two colours are joined if the rarer one has the other in its piece so often.
        least: in how many pieces a colour must have been seen to be known.
        pixels: how many of a colour a piece must have.
    """
    one: Counter[int] = Counter()
    both: Counter[tuple[int, int]] = Counter()
    for frame in frames:
        far, _ = _moving(frame, scenery)
        for _, colours, counts in _coloured(scenery, frame, far, components(far)[0]):
            # Between things of many hues every mixture is seen, but of none is there much.
            hued = scenery.shaded or scenery.colourful
            enough = counts.sum() / 5 if hued else pixels
            some = sorted(colours[counts >= enough].tolist())
            one.update(some)
            both.update(combinations(some, 2))
    known = sorted(colour for colour, count in one.items() if count >= least)
    at = {colour: i for i, colour in enumerate(known)}
    joined = np.eye(len(known), dtype=bool)
    for (a, b), count in both.items():
        if a in at and b in at and count >= share * min(one[a], one[b]):
            joined[at[a], at[b]] = joined[at[b], at[a]] = True
    return Palette(np.array(known, np.int32), joined)


def find_pieces(
    frame: Image, scenery: Scenery, palette: Palette, *, min_area: int
) -> tuple[Boxes, Labels]:
    """Return the pieces of a (H, W, 3) uint8 frame that may be objects.

    Returns:
        (M, 4) float32 boxes x0 y0 x1 y1 in pixels by falling area, and (H, W) int32 labels: 1 + the
        index of the box whose piece a pixel belongs to, 0 for none.
    """
    far, still = _moving(frame, scenery)
    labels, stats = components(far)
    for piece, colours, counts in list(_coloured(scenery, frame, far, labels)):
        group = palette.groups(colours, counts)
        if (group != group[0]).any():
            parts = [colours[group == g] for g in np.unique(group)]
            stats = _split(scenery, frame, far, labels, stats, piece, parts)
    labels, stats = _with(labels, stats, still)
    x, y, w, h, area = stats.T
    fits = (area >= min_area) & (w <= scenery.max_side) & (h <= scenery.max_side)
    fits[0] = False
    chosen = np.flatnonzero(fits)
    chosen = chosen[np.argsort(-area[chosen], kind="stable")]
    rename = np.zeros(len(area), np.int32)
    rename[chosen] = 1 + np.arange(len(chosen), dtype=np.int32)
    boxes = np.stack([x, y, x + w, y + h], axis=1)[chosen].astype(np.float32)
    return boxes, rename[labels]


def _moving(frame: Image, scenery: Scenery) -> tuple[Image, Labels]:
    """Return (H, W) what differs from the background, and apart from it what stands there still."""
    still = scenery.still_there(frame)
    return scenery.differs(frame) & (still == 0), still


def _with(labels: Labels, stats: Labels, still: Labels) -> tuple[Labels, Labels]:
    """Add the things that stand still to the pieces, over what a closing has put there."""
    count = int(still.max())
    if not count:
        return labels, stats
    labels = np.where(still, still + len(stats) - 1, labels)
    return labels, np.concatenate([stats, areas(still, count)[1:]])


def _coloured(
    scenery: Scenery, frame: Image, far: Image, labels: Labels
) -> Iterator[tuple[int, npt.NDArray[np.int32], npt.NDArray[np.int64]]]:
    """Yield each piece with the colours in it and how many pixels each has."""
    at = np.flatnonzero(far)
    code = scenery.colours(frame.reshape(-1, 3)[at])
    key, counts = np.unique(labels.ravel()[at].astype(np.int64) << 32 | code, return_counts=True)
    owner = key >> 32
    colour = (key & 0xFFFFFFFF).astype(np.int32)
    begin = np.flatnonzero(np.diff(owner, prepend=-1)).tolist()
    for i, j in pairwise([*begin, len(key)]):
        yield int(owner[i]), colour[i:j], counts[i:j]


def _split(
    scenery: Scenery,
    frame: Image,
    far: Image,
    labels: Labels,
    stats: Labels,
    piece: int,
    groups: list[npt.NDArray[np.int32]],
) -> Labels:
    """Label, in place, the parts of a piece that groups of colours make; return longer stats."""
    x, y, w, h, _ = stats[piece]
    part = slice(y, y + h), slice(x, x + w)
    inside = labels[part] == piece
    code = scenery.colours(frame[part])
    labels[part][inside] = 0
    stats[piece, 4] = 0
    for colours in groups:
        mine = np.isin(code, colours) & (far[part] > 0) & inside
        if scenery.shaded or scenery.colourful:
            mine = opened(mine.astype(np.uint8), 3 if scenery.shaded else 2) > 0
        found, more = components(mine.astype(np.uint8))
        # A closing takes no pixel that another group has, before or after.
        free = (found > 0) & inside & ((labels[part] == 0) | mine)
        labels[part][free] = found[free] + len(stats) - 1
        stats = np.concatenate([stats, more[1:] + np.array([x, y, 0, 0, 0], np.int32)])
    return stats
