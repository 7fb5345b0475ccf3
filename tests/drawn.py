"""Tiny frames drawn by hand, for the tests of what finds objects without learning."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from objrl.models.regions import Image
from objrl.models.scenery import Scenery, survey

HEIGHT, WIDTH = 60, 80
MAX_SIDE, THRESHOLD = 20, 24
GROUND, WALL = (30, 60, 90), (150, 150, 150)
RED, GREEN, YELLOW = (200, 30, 30), (30, 200, 30), (220, 220, 40)
PALE = ((230, 220, 120), (140, 180, 240), (170, 230, 170), (200, 200, 200))
"""Colours of walls and floors."""
Colour = tuple[int, int, int]

SPRITE = np.array(
    [[int(c) for c in row] for row in ("111000", "111000", "010000", "011110", "011111", "010001")],
    np.bool_,
)
"""(6, 6) a thing with a shape, unlike its mirror image."""


def ground(count: int) -> Image:
    frames = np.empty((count, HEIGHT, WIDTH, 3), np.uint8)
    frames[:] = GROUND
    return frames


def paint(frames: Image, x: int, y: int, w: int, h: int, colour: Colour) -> None:
    """Fill a rectangle of (…, H, W, 3) frames."""
    frames[..., y : y + h, x : x + w, :] = colour


def stamp(
    frames: Image, x: int, y: int, colour: Colour, shape: npt.NDArray[np.bool_] = SPRITE
) -> None:
    """Draw a shape into (…, H, W, 3) frames."""
    h, w = shape.shape
    frames[..., y : y + h, x : x + w, :][..., shape, :] = colour


def look_at(frames: Image) -> Scenery:
    return survey(frames, max_side=MAX_SIDE, threshold=THRESHOLD)


def shows(image: Image, x: int, y: int, w: int, h: int, colour: Sequence[int]) -> bool:
    """Whether an image has one colour in a rectangle."""
    return bool((image[y : y + h, x : x + w] == colour).all())


def lit(frames: Image) -> Image:
    """Let light fall from the upper left onto (…, H, W, 3) frames: hues stay, shades are many."""
    y, x = np.mgrid[:HEIGHT, :WIDTH]
    light = 1 - 0.7 * (x / WIDTH + y / HEIGHT) / 2
    shaded: Image = np.rint(frames * light[..., None]).astype(np.uint8)
    return shaded


def rooms(count: int, seed: int = 0) -> Image:
    """Rooms in which every wall and floor has a colour of its own; for `lit`."""
    rng = np.random.default_rng(seed)
    frames = np.empty((count, HEIGHT, WIDTH, 3), np.uint8)
    for frame in frames:
        wall, floor = rng.permutation(PALE)[:2]
        frame[:20], frame[20:] = wall, floor
    return frames
