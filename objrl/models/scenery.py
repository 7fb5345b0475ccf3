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

import cv2
import numpy as np
import numpy.typing as npt

Image = npt.NDArray[np.uint8]
Labels = npt.NDArray[np.int32]
Mask = npt.NDArray[np.bool_]

_SQUARE = np.ones((3, 3), np.uint8)

CHANGING = 0.03
"""Share of the pixels that differ from the median and yet belong to large areas of one colour,
from which on a background counts as changing: 0.1 in Riverraid, whose banks scroll, 0.4 in
Air Raid, whose sky flips, 0 to 0.02 in eighteen games whose background stands still."""


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
        max_side: longest side in pixels of what may be an object.
        threshold: least difference in any channel, of 255, that counts.
    """

    faces: Image
    median: Image
    standing: Labels
    changing: bool
    max_side: int
    threshold: int

    def differs(self, frame: Image) -> Image:
        """(H, W, 3) -> (H, W) uint8, 1 where a frame shows none of its background's faces."""
        far = differs(frame, self.faces[0], self.threshold)
        for face in self.faces[1:]:
            far &= differs(frame, face, self.threshold)
        if self.changing:
            far &= 1 - large_areas(frame, self.max_side)
        return far

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
        ring = _ring(self.standing)
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


def differs(frame: Image, background: Image, threshold: int) -> Image:
    """Return (H, W) uint8, 1 where any channel is further than `threshold` from the background."""
    red, green, blue = cv2.split(cv2.absdiff(frame, background))
    most = cv2.max(cv2.max(red, green), blue)
    return cv2.threshold(most, threshold, 1, cv2.THRESH_BINARY)[1].astype(np.uint8, copy=False)


def survey(frames: Image, *, max_side: int, threshold: int) -> Scenery:
    """Find the background of (N, H, W, 3) uint8 frames, spread over episodes.

    Raises:
        ValueError: no frames, or not of that shape.
    """
    median = median_frame(frames[:: 1 + len(frames) // 500])
    usual = without_what_vanishes(median, frames, max_side=max_side, threshold=threshold)
    usual = without_what_moves_elsewhere(usual, frames, max_side=max_side, threshold=threshold)
    some = frames[:: 1 + len(frames) // 300]
    large = np.stack([large_areas(frame, max_side) for frame in some])
    odd = [
        (area & differs(f, usual, threshold)).mean() for f, area in zip(some, large, strict=True)
    ]
    return Scenery(
        faces=_faces(usual, some, large, max_side=max_side, threshold=threshold),
        median=median,
        standing=_standing(median, usual, some, threshold),
        changing=float(np.mean(odd)) > CHANGING,
        max_side=max_side,
        threshold=threshold,
    )


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
    share: float = 0.05,
    least: int = 3,
) -> Image:
    """Paint over the pieces of an image that some frames lack.

    A shield, a pill or a key that stands still most of the time is part of the median. It is an
    object all the same if it can vanish: a piece as small as objects, of which a little turns into
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
        pieces, count = _flat_pieces(image, side)
        if not count:
            continue
        bare = _paint_over(image, pieces > 0)
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
        looks = dict(_looks(image, pieces, areas(pieces, count)))
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
        labels, stats = _connected(far, 8)
        for index, look in _looks(frame, labels, stats):
            if _has_a_shape(stats[index]):
                seen[look].add(int(stats[index, 1]) * 4096 + int(stats[index, 0]))
    for side in (max_side // 4, max_side // 2, max_side):
        pieces, count = _flat_pieces(image, side)
        if not count:
            continue
        stats = areas(pieces, count)
        known = np.zeros(count + 1, bool)
        for index, look in _looks(image, pieces, stats):
            known[index] = len(seen.get(look, ())) >= places
        if known.any():
            image = np.where(known[pieces][..., None], _paint_over(image, known[pieces]), image)
    return image


def large_areas(image: Image, max_side: int) -> Image:
    """Return (H, W) uint8, 1 in areas of one colour that are wider or taller than any object."""
    code = _colours(image)
    large = np.zeros(code.shape, np.uint8)
    colours, counts = np.unique(code, return_counts=True)
    for colour in colours[counts > max_side]:
        labels, stats = _connected((code == colour).astype(np.uint8), 4)
        wide = (stats[:, 2] > max_side) | (stats[:, 3] > max_side)
        wide[0] = False
        large |= wide[labels].astype(np.uint8)
    return large


def _standing(median: Image, usual: Image, frames: Image, threshold: int) -> Labels:
    """Label (H, W) the things of the median that stand by themselves.

    A piece that the background lacks is one if it is often whole, and then mostly has nothing
    beside it. What is left of a thing that moves about in one place is never so.
    """
    far = differs(median, usual, threshold)
    labels, stats = components(far)
    labels, count = labels * far, len(stats)
    size, ring = np.bincount(labels.ravel(), minlength=count), _ring(labels)
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


def _ring(labels: Labels) -> Labels:
    """Label the pixels beside labelled ones, 0 elsewhere."""
    grown = cv2.dilate(labels.astype(np.float32), _SQUARE).astype(np.int32)
    return np.where(labels == 0, grown, 0).astype(np.int32)


def components(far: Image) -> tuple[Labels, Labels]:
    """Label (H, W) pieces; a closing joins a sprite's loose pixels. Stats are OpenCV's."""
    # Framed, for at the border OpenCV's closing would let what is near grow up to it.
    framed = cv2.copyMakeBorder(far, 1, 1, 1, 1, cv2.BORDER_CONSTANT, value=0)
    closed = np.ascontiguousarray(cv2.morphologyEx(framed, cv2.MORPH_CLOSE, _SQUARE)[1:-1, 1:-1])
    return _connected(closed.astype(np.uint8, copy=False), 8)


def _connected(mask: Image, connectivity: int) -> tuple[Labels, Labels]:
    """Label (H, W) pieces, and return x, y, width, height, area of every label; 0 is the rest."""
    _, labels, stats, _ = cv2.connectedComponentsWithStats(mask, connectivity=connectivity)
    return labels.astype(np.int32, copy=False), stats.astype(np.int32, copy=False)


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
        code = _exact(frame)
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


def _looks(image: Image, labels: Labels, stats: Labels) -> list[tuple[int, bytes]]:
    """Say what labelled pieces look like, to the pixel: pairs of label and look.

    stats are OpenCV's: x, y, width, height, area by label.
    """
    code = coarse_colours(image)
    found = []
    for index, (x, y, w, h, area) in enumerate(stats.tolist()):
        if index == 0 or area == 0:
            continue
        part = slice(y, y + h), slice(x, x + w)
        patch = np.where(labels[part] == index, code[part], -1)
        key = min(patch.tobytes(), np.ascontiguousarray(patch[:, ::-1]).tobytes())
        found.append((index, bytes((w % 256, h % 256)) + key))
    return found


def _has_a_shape(stats: Labels) -> bool:
    """Whether a piece is more than a speck or a full rectangle."""
    _, _, w, h, area = stats.tolist()
    return bool(area >= 16 and area <= 0.95 * w * h)


def areas(labels: Labels, count: int) -> Labels:
    """Return (count + 1, 5) int32 x, y, width, height, area of every label; row 0 means nothing."""
    y, x = np.nonzero(labels)
    owner = labels[y, x]
    low = np.full((count + 1, 2), 1 << 20, np.int32)
    high = np.zeros((count + 1, 2), np.int32)
    place = np.stack([x, y], axis=1).astype(np.int32)
    np.minimum.at(low, owner, place)
    np.maximum.at(high, owner, place + 1)
    area = np.bincount(owner, minlength=count + 1).astype(np.int32)
    return np.concatenate([low, high - low, area[:, None]], axis=1)


def _flat_pieces(image: Image, max_side: int) -> tuple[Labels, int]:
    """Label (H, W) the pieces that stand out from the larger areas of one colour, 0 elsewhere.

    Small areas that touch make one piece, or where that would be too large, one each.

    Returns:
        The labels, from 1 on without a gap, and how many there are.
    """
    code = _colours(image)
    small = np.zeros(code.shape, np.int32)
    count = 0
    for colour in np.unique(code):
        labels, stats = _connected((code == colour).astype(np.uint8), 8)
        number = _numbered(stats, max_side)
        small = np.where(number[labels] > 0, number[labels] + count, small)
        count += int(number.max())
    labels, stats = _connected((small > 0).astype(np.uint8), 8)
    number = _numbered(stats, max_side)
    # What fits as a whole, and after that the parts of what does not.
    pieces = np.where(number[labels] > 0, number[labels], np.where(small, count + 1 + small, 0))
    _, pieces = np.unique(np.append(pieces, 0), return_inverse=True)
    return pieces[:-1].reshape(code.shape).astype(np.int32), int(pieces.max())


def _numbered(stats: Labels, max_side: int) -> Labels:
    """Number OpenCV's components that are no larger than that from 1 on; the others have 0."""
    fits = (stats[:, 2] <= max_side) & (stats[:, 3] <= max_side)
    fits[0] = False
    return np.cumsum(fits, dtype=np.int32) * fits


def coarse_colours(image: Image) -> Labels:
    """(…, 3) uint8 -> (…) int32 one number a colour, of 16 shades a channel."""
    parts = (image >> 4).astype(np.int32)
    return (parts[..., 0] << 8) | (parts[..., 1] << 4) | parts[..., 2]


def _exact(image: Image) -> Labels:
    """(H, W, 3) -> (H, W) one number a colour."""
    parts = image.astype(np.int32)
    return (parts[..., 0] << 16) | (parts[..., 1] << 8) | parts[..., 2]


def _colours(image: Image) -> Labels:
    """(H, W, 3) -> (H, W) one number a colour; coarser ones where there are very many."""
    for bits in (8, 4, 2):
        code = _exact((image >> (8 - bits)).astype(np.uint8))
        if len(np.unique(code)) <= 64:
            break
    return code


def _paint_over(image: Image, hidden: Mask) -> Image:
    """Give hidden pixels the colour of the nearest one that is not."""
    _, nearest = cv2.distanceTransformWithLabels(
        hidden.astype(np.uint8), cv2.DIST_L2, 5, labelType=cv2.DIST_LABEL_PIXEL
    )
    colours = np.zeros((nearest.max() + 1, 3), np.uint8)
    colours[nearest[~hidden]] = image[~hidden]
    return np.where(hidden[..., None], colours[nearest], image)
