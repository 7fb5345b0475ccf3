"""Areas and pieces of a single picture: of one colour, connected, as large as this or that.

Letters: H W pixels.
"""

from __future__ import annotations

import cv2
import numpy as np
import numpy.typing as npt

Image = npt.NDArray[np.uint8]
Labels = npt.NDArray[np.int32]
Mask = npt.NDArray[np.bool_]

_SQUARE = np.ones((3, 3), np.uint8)


def differs(frame: Image, background: Image, threshold: int) -> Image:
    """Return (H, W) uint8, 1 where any channel is further than `threshold` from the background."""
    red, green, blue = cv2.split(cv2.absdiff(frame, background))
    most = cv2.max(cv2.max(red, green), blue)
    return cv2.threshold(most, threshold, 1, cv2.THRESH_BINARY)[1].astype(np.uint8, copy=False)


def large_areas(image: Image, max_side: int, *, shaded: bool = False) -> Image:
    """Return (H, W) uint8, 1 in areas of one colour that are wider or taller than any object.

    In a shaded picture an area ends where the hue jumps, which light and shadow hardly change.
    """
    if shaded:
        across, down = _jumps(image)
        labels, stats = connected(1 - (across | down), 4)
        wide = (stats[:, 2] > max_side) | (stats[:, 3] > max_side)
        wide[0] = False
        large = wide[labels].astype(np.uint8)
        # The first pixel after a jump belongs to what follows it.
        large[:, :-1] |= large[:, 1:] & (1 - across[:, 1:])
        large[:-1] |= large[1:] & (1 - down[1:])
        return large
    code = _colours(image)
    large = np.zeros(code.shape, np.uint8)
    colours, counts = np.unique(code, return_counts=True)
    for colour in colours[counts > max_side]:
        labels, stats = connected((code == colour).astype(np.uint8), 4)
        wide = (stats[:, 2] > max_side) | (stats[:, 3] > max_side)
        wide[0] = False
        large |= wide[labels].astype(np.uint8)
    return large


def is_shaded(image: Image) -> bool:
    """Say whether an image has too many colours for areas of one.

    A resized picture has many, too, but only at its edges: most pixels are equal to the next. So
    may a crowd of small things, but before one of plain colour.
    """
    code = exact_colours(image)
    colours, counts = np.unique(code, return_counts=True)
    many = len(colours) > 256 and counts.max() < code.size / 4
    return bool(many and (code[:, 1:] == code[:, :-1]).mean() < 0.62)


def _jumps(image: Image, least: float = 0.03) -> tuple[Image, Image]:
    """Say where red or green has another share of the light than to the left, and than above.

    Returns:
        Two (H, W) uint8 of 0 and 1.
    """
    light = image.astype(np.float32) + 1
    share = light[..., :2] / light.sum(2, keepdims=True)
    across, down = np.zeros((2, *image.shape[:2]), np.uint8)
    across[:, 1:] = np.abs(np.diff(share, axis=1)).max(2) > least
    down[1:] = np.abs(np.diff(share, axis=0)).max(2) > least
    return across, down


def ring_of(labels: Labels) -> Labels:
    """Label the pixels beside labelled ones, 0 elsewhere."""
    grown = cv2.dilate(labels.astype(np.float32), _SQUARE).astype(np.int32)
    return np.where(labels == 0, grown, 0).astype(np.int32)


def components(far: Image) -> tuple[Labels, Labels]:
    """Label (H, W) pieces; a closing joins a sprite's loose pixels. Stats are OpenCV's."""
    # Framed, for at the border OpenCV's closing would let what is near grow up to it.
    framed = cv2.copyMakeBorder(far, 1, 1, 1, 1, cv2.BORDER_CONSTANT, value=0)
    closed = np.ascontiguousarray(cv2.morphologyEx(framed, cv2.MORPH_CLOSE, _SQUARE)[1:-1, 1:-1])
    return connected(closed.astype(np.uint8, copy=False), 8)


def opened(mask: Image, side: int = 3) -> Image:
    """Take away from a (H, W) mask what is thinner than so many pixels: lines between areas."""
    square = np.ones((side, side), np.uint8)
    thick: Image = cv2.morphologyEx(mask, cv2.MORPH_OPEN, square).astype(np.uint8, copy=False)
    return thick


def connected(mask: Image, connectivity: int) -> tuple[Labels, Labels]:
    """Label (H, W) pieces, and return x, y, width, height, area of every label; 0 is the rest."""
    _, labels, stats, _ = cv2.connectedComponentsWithStats(mask, connectivity=connectivity)
    return labels.astype(np.int32, copy=False), stats.astype(np.int32, copy=False)


def looks_of(image: Image, labels: Labels, stats: Labels) -> list[tuple[int, bytes]]:
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


def has_a_shape(stats: Labels) -> bool:
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


def flat_pieces(image: Image, max_side: int) -> tuple[Labels, int]:
    """Label (H, W) the pieces that stand out from the larger areas of one colour, 0 elsewhere.

    Small areas that touch make one piece, or where that would be too large, one each.

    Returns:
        The labels, from 1 on without a gap, and how many there are.
    """
    code = _colours(image)
    small = np.zeros(code.shape, np.int32)
    count = 0
    for colour in np.unique(code):
        labels, stats = connected((code == colour).astype(np.uint8), 8)
        number = _numbered(stats, max_side)
        small = np.where(number[labels] > 0, number[labels] + count, small)
        count += int(number.max())
    labels, stats = connected((small > 0).astype(np.uint8), 8)
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


def hues(image: Image, count: int) -> Labels:
    """(…, 3) uint8 -> (…) int32 one of so many hues, or `count` where there is hardly any.

    `count` divides 180, which is how many OpenCV tells apart.
    """
    if not image.size:  # which OpenCV refuses
        return np.zeros(image.shape[:-1], np.int32)
    flat = cv2.cvtColor(image.reshape(-1, 1, 3), cv2.COLOR_RGB2HSV).reshape(image.shape)
    wide = 180 // count
    hue = (flat[..., 0].astype(np.int32) + wide // 2) // wide % count
    return np.where(flat[..., 1] < 40, count, hue).astype(np.int32)


def exact_colours(image: Image) -> Labels:
    """(H, W, 3) -> (H, W) one number a colour."""
    parts = image.astype(np.int32)
    return (parts[..., 0] << 16) | (parts[..., 1] << 8) | parts[..., 2]


def _colours(image: Image) -> Labels:
    """(H, W, 3) -> (H, W) one number a colour; coarser ones where there are very many."""
    for bits in (8, 4, 2):
        code = exact_colours((image >> (8 - bits)).astype(np.uint8))
        if len(np.unique(code)) <= 64:
            break
    return code


def paint_over(image: Image, hidden: Mask) -> Image:
    """Give hidden pixels the colour of the nearest one that is not."""
    _, nearest = cv2.distanceTransformWithLabels(
        hidden.astype(np.uint8), cv2.DIST_L2, 5, labelType=cv2.DIST_LABEL_PIXEL
    )
    colours = np.zeros((nearest.max() + 1, 3), np.uint8)
    colours[nearest[~hidden]] = image[~hidden]
    return np.where(hidden[..., None], colours[nearest], image)
