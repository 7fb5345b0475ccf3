"""What stands still: the background that no learning needs to find, from a few hundred frames.

The median frame is the start. Three things are wrong with it, and each tells itself in the frames:
a shield or a pill that may vanish is an object although it stands still; so is a second chicken
that never moves, if the first one does; and where large areas change colour or scroll, a pixel's
background has several faces.

Letters: N frames, H W pixels, F faces.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

from objrl.models.regions import (
    Image,
    Labels,
    Mask,
    areas,
    coarse_colours,
    components,
    connected,
    differs,
    exact_colours,
    flat_pieces,
    has_a_shape,
    hues,
    is_shaded,
    large_areas,
    looks_of,
    opened,
    paint_over,
    ring_of,
)

CHANGING = 0.03
"""Share of the pixels that differ from the median and yet belong to large areas of one colour,
from which on a background counts as changing: 0.1 in Riverraid, whose banks scroll, 0.4 in
Air Raid, whose sky flips, 0 to 0.02 in eighteen games whose background stands still."""

COLOURFUL = 256
"""Coarse colours of moving things from which on they are told apart by their hues: an Atari 2600
has 128."""


@dataclass(frozen=True)
class _Pixels:
    """Some of a frame's pixels: where, whose, and which colour they are expected to show."""

    at: npt.NDArray[np.int64]
    owner: Labels
    colour: Image

    def like(self, frame: Image, threshold: int) -> Mask:
        """Say which of them show that colour."""
        shown = frame.reshape(-1, 3)[self.at].astype(np.int16)
        near: Mask = np.abs(shown - self.colour).max(1, initial=0) <= threshold
        return near


@dataclass(frozen=True)
class Scenery:
    """The background, as far as single pixels and large areas tell it.

    Attributes:
        faces: (F, H, W, 3) uint8 what a pixel may show when nothing is before it; the first is the
            usual one, and repeated where a pixel has no other.
        median: (H, W, 3) uint8 the median frame, objects that stand still included.
        standing: (H, W) int32 those objects, one label from 1 on each, 0 elsewhere.
        changing: whether large areas of one colour are background wherever they are.
        shaded: whether there are light and shadow, and so hardly two pixels of one colour.
        colourful: whether moving things have too many colours to be known one by one.
        max_side: longest side in pixels of what may be an object.
        threshold: least difference in any channel, of 255, that counts.
    """

    faces: Image
    median: Image
    standing: Labels
    changing: bool
    shaded: bool
    colourful: bool
    max_side: int
    threshold: int

    def differs(self, frame: Image) -> Image:
        """(H, W, 3) -> (H, W) uint8, 1 where a frame shows none of its background's faces."""
        if self.shaded and self.changing:
            # Things of one hue that touch make an area, too, but not one as large as walls are.
            return opened(1 - large_areas(frame, 2 * self.max_side, shaded=True))
        far = differs(frame, self.faces[0], self.threshold)
        for face in self.faces[1:]:
            far &= differs(frame, face, self.threshold)
        if self.changing:
            far &= 1 - large_areas(frame, self.max_side, shaded=self.shaded)
        return far

    def colours(self, pixels: Image) -> Labels:
        """(…, 3) uint8 -> (…) int32 a number for what counts as one colour."""
        if self.shaded:
            return hues(pixels, 12)
        return hues(pixels, 36) if self.colourful else coarse_colours(pixels)

    def still_there(self, frame: Image, share: float = 0.9) -> Labels:
        """(H, W, 3) -> (H, W) int32, the labels of the standing objects that a frame shows whole.

        So a pill remains a pill when a ghost touches it.
        """
        shown = self._stand.like(frame, self.threshold)
        owner = self._stand.owner
        least = share * np.bincount(owner, minlength=1)
        whole = np.bincount(owner[shown], minlength=len(least)) >= least
        # More of it beside it: it was larger than the median has it, or has moved.
        whole[self._beside.owner[self._beside.like(frame, self.threshold)]] = False
        still = np.zeros_like(self.standing)
        still.ravel()[self._stand.at] = np.where(shown & whole[owner], owner, 0)
        return still

    @cached_property
    def _stand(self) -> _Pixels:
        """The pixels of what stands, and what they show."""
        at = np.flatnonzero(self.standing)
        return _Pixels(at, self.standing.ravel()[at], self.median.reshape(-1, 3)[at])

    @cached_property
    def _beside(self) -> _Pixels:
        """The pixels around what stands, and what they would show if it were larger."""
        ring = ring_of(self.standing)
        owner = ring.ravel()[np.flatnonzero(ring)]
        mean = [
            np.bincount(self._stand.owner, self._stand.colour[:, c], owner.max(initial=0) + 1)
            / np.maximum(np.bincount(self._stand.owner, minlength=owner.max(initial=0) + 1), 1)
            for c in range(3)
        ]
        pixels = _Pixels(
            np.flatnonzero(ring), owner, np.stack(mean, axis=1)[owner].astype(np.uint8)
        )
        other = ~pixels.like(self.faces[0], self.threshold)
        return _Pixels(pixels.at[other], owner[other], pixels.colour[other])


def survey(frames: Image, *, max_side: int, threshold: int) -> Scenery:
    """Find the background of (N, H, W, 3) uint8 frames, spread over episodes.

    Raises:
        ValueError: no frames, or not of that shape.
    """
    median = usual = median_frame(frames[:: 1 + len(frames) // 500])
    some = frames[:: 1 + len(frames) // 300]
    shaded = sum(map(is_shaded, some)) > len(some) / 2
    if not shaded:  # else no two pictures of a thing are equal
        usual = without_what_vanishes(median, frames, max_side=max_side, threshold=threshold)
        usual = without_what_moves_elsewhere(usual, frames, max_side=max_side, threshold=threshold)
    large = np.stack([large_areas(frame, max_side, shaded=shaded) for frame in some])
    odd = [
        (area & differs(f, usual, threshold)).mean() for f, area in zip(some, large, strict=True)
    ]
    faces = usual[None]
    if not shaded:
        faces = _faces(usual, some, large, max_side=max_side, threshold=threshold)
        other = _recoloured(usual, some, max_side=max_side, threshold=threshold)
        faces = np.concatenate([faces, other])
    return Scenery(
        faces=faces,
        median=median,
        standing=_standing(median, usual, some, threshold),
        changing=float(np.mean(odd)) > CHANGING,
        shaded=shaded,
        colourful=_colours_of(some, usual, threshold) > COLOURFUL,
        max_side=max_side,
        threshold=threshold,
    )


def _colours_of(frames: Image, usual: Image, threshold: int) -> int:
    """Count the colours of what is not background."""
    seen = [np.unique(coarse_colours(f[differs(f, usual, threshold) > 0])) for f in frames]
    return len(np.unique(np.concatenate(seen)))


def median_frame(frames: Image) -> Image:
    """Return the pixel-wise median (H, W, 3) of (N, H, W, 3) frames; some hundred are enough."""
    if frames.ndim != 4 or frames.shape[3] != 3 or frames.dtype != np.uint8 or not len(frames):
        raise ValueError(
            f"frames: expected (N, H, W, 3) uint8, N > 0, got {frames.shape} {frames.dtype}"
        )
    half = len(frames) // 2
    return np.stack([np.partition(row, half, axis=0)[half] for row in frames.swapaxes(0, 1)])


def without_what_vanishes(
    image: Image,
    frames: Image,
    *,
    max_side: int,
    threshold: int,
    share: float = 0.3,
    least: int = 3,
) -> Image:
    """Paint over the pieces of an image that some frames lack.

    A shield, a pill or a key that stands still most of the time is part of the median. It is an
    object all the same if it can vanish: a piece as small as objects, of which a third turns into
    what surrounds it in some frames. Small pieces come first, so that a ghost in its small house is
    told from the house. What never changes, or is only ever hidden, cannot be told from scenery.

    Args:
        image: (H, W, 3) uint8, the median.
        frames: (N, H, W, 3) uint8, spread over episodes.
        max_side: longest side of an object in pixels.
        threshold: least difference that counts.
        share: how much of a piece must have vanished.
        least: in how many frames.
    """
    for side in (max_side // 4, max_side // 2, max_side):
        pieces, count = flat_pieces(image, side)
        if not count:
            continue
        bare = paint_over(image, pieces > 0)
        where = np.flatnonzero(pieces)
        owner = pieces.ravel()[where]
        size = np.maximum(np.bincount(owner, minlength=count + 1), 1)
        vanished = np.zeros(count + 1, np.int64)
        known, under = (i.reshape(-1, 3)[where].astype(np.int16) for i in (image, bare))
        for frame in frames.reshape(len(frames), -1, 3):
            shown = frame[where].astype(np.int16)
            gone = np.abs(shown - known).max(1) > threshold
            gone &= np.abs(shown - under).max(1) <= threshold
            lost = np.bincount(owner, weights=gone, minlength=count + 1) / size > share
            # When all vanish at once it is the screen that blinks, not the things on it.
            if lost.sum() < max(0.97 * count, 5):
                vanished += lost
        can = vanished >= least
        # What looks just like a thing that can vanish can vanish too, seen so far or not.
        looks = dict(looks_of(image, pieces, areas(pieces, count)))
        kinds = Counter(look for index, look in looks.items() if can[index])
        for index, look in looks.items():
            can[index] |= kinds[look] >= least
        image = np.where(can[pieces][..., None], bare, image)
    return image


def without_what_moves_elsewhere(
    image: Image, frames: Image, *, max_side: int, threshold: int, places: int = 3
) -> Image:
    """Paint over the pieces of an image that look just like something that moves.

    A second player who stands still, the ships that are left: sprites repeat to the pixel, so the
    same outline filled with the same colours, mirrored or not, is the same kind of thing. Full
    rectangles say too little and do not count.

    Args:
        image: (H, W, 3) uint8 background.
        frames: (N, H, W, 3) uint8, spread over episodes.
        max_side: longest side of an object in pixels.
        threshold: least difference that counts.
        places: in how many places the thing must have been seen.
    """
    seen: dict[bytes, set[int]] = defaultdict(set)
    for frame in frames[:: 1 + len(frames) // 200]:
        far = differs(frame, image, threshold)
        labels, stats = connected(far, 8)
        for index, look in looks_of(frame, labels, stats):
            if has_a_shape(stats[index]):
                seen[look].add(int(stats[index, 1]) * 4096 + int(stats[index, 0]))
    for side in (max_side // 4, max_side // 2, max_side):
        pieces, count = flat_pieces(image, side)
        if not count:
            continue
        stats = areas(pieces, count)
        known = np.zeros(count + 1, bool)
        for index, look in looks_of(image, pieces, stats):
            known[index] = len(seen.get(look, ())) >= places
        if known.any():
            image = np.where(known[pieces][..., None], paint_over(image, known[pieces]), image)
    return image


def _standing(median: Image, usual: Image, frames: Image, threshold: int) -> Labels:
    """Label (H, W) the things of the median that stand by themselves.

    A piece that the background lacks is one if it is often whole, and then mostly has nothing
    beside it. What is left of a thing that moves about in one place is never so.
    """
    far = differs(median, usual, threshold)
    labels, stats = components(far)
    labels, count = labels * far, len(stats)
    size, ring = np.bincount(labels.ravel(), minlength=count), ring_of(labels)
    length = np.bincount(ring.ravel(), minlength=count)
    whole, alone = np.zeros(count), np.zeros(count)
    for frame in frames:
        there = differs(frame, median, threshold) == 0
        shown = np.bincount(labels[there], minlength=count) >= 0.9 * size
        bare = np.bincount(ring[there], minlength=count) >= 0.95 * length
        whole += shown
        alone += shown & bare
    stands = (whole >= 0.1 * len(frames)) & (alone >= 0.5 * whole)
    stands[0] = False
    return np.where(stands, np.cumsum(stands), 0)[labels].astype(np.int32)


def _recoloured(usual: Image, frames: Image, *, max_side: int, threshold: int) -> Image:
    """Return (1, H, W, 3) with the other colours of what changes them all at once; or (0, H, W, 3).

    When Tennis's players change ends, the lines of the court do, too. Nothing has gone or come:
    what stood out from the large areas still does, in one other colour, and all of it together.
    What changes colour by itself, as Qbert's cubes do, is a thing.
    """
    none = np.zeros((0, *usual.shape), np.uint8)
    at = np.flatnonzero(large_areas(usual, max_side) == 0)
    shown = exact_colours(np.stack([frame.reshape(-1, 3)[at] for frame in frames]))
    far = np.stack([differs(frame, usual, threshold).ravel()[at] > 0 for frame in frames])
    codes = np.unique(shown[far])
    if not len(codes) or len(codes) > 64:
        return none
    counts = np.stack([((shown == code) & far).sum(0) for code in codes])
    other, often = codes[counts.argmax(0)], far.mean(0)
    two = (often >= 0.1) & (often <= 0.9) & (counts.max(0) >= 0.95 * far.sum(0))
    if two.sum() < max_side:
        return none
    together = (shown[:, two] == other[two]).mean(1)
    if ((together < 0.1) | (together > 0.9)).mean() < 0.95:
        return none
    face = usual.copy()
    colours = np.stack([other >> 16, other >> 8 & 255, other & 255], axis=1).astype(np.uint8)
    face.reshape(-1, 3)[at[two]] = colours[two]
    return face[None]


def _faces(
    usual: Image,
    frames: Image,
    large: Image,
    *,
    max_side: int,
    threshold: int,
    share: float = 0.02,
    most: int = 8,
) -> Image:
    """Return (F, H, W, 3): the usual background, and the large areas that lie over it at times.

    Args:
        usual: (H, W, 3).
        frames: (N, H, W, 3).
        large: (N, H, W) 1 where a frame shows a large area.
        max_side: longest side of an object in pixels; a colour on fewer fills no large area.
        threshold: least difference that makes two faces.
        share: of the frames in which a pixel must show a face.
        most: faces at most.
    """
    counts: dict[int, npt.NDArray[np.int32]] = defaultdict(
        lambda: np.zeros(usual.shape[:2], np.int32)
    )
    for frame, area in zip(frames, large, strict=True):
        code = exact_colours(frame)
        colours, sizes = np.unique(code[area > 0], return_counts=True)
        for colour in colours[sizes > max_side]:
            counts[int(colour)] += (code == colour) & (area > 0)
    faces = [usual]
    # The commonest face that a pixel has not got yet, for all pixels at once, again and again.
    shown = {c: np.array([c >> 16, c >> 8 & 255, c & 255], np.uint8) for c in counts}
    while len(faces) < most:
        face, best = usual.copy(), np.full(usual.shape[:2], max(1.0, share * len(frames)))
        for colour, count in counts.items():
            flat = np.broadcast_to(shown[colour], usual.shape)
            new = np.logical_and.reduce([differs(flat, f, threshold) for f in faces])
            better = new & (count >= best)
            face[better], best[better] = shown[colour], count[better]
        if (face == usual).all():
            break
        faces.append(face)
    return np.stack(faces)
