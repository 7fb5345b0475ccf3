"""What moves in the sequences of `objrl synthetic`: shapes like dSprites' and handwritten digits.

A sprite is kept as the distance to its outline, so that it can be drawn with smooth edges at any
size, place and angle. The shapes are drawn here; the digits are the 8 x 8 ones that come with
scikit-learn, enlarged.

Letters: F sprites of a bank, R texels of a sprite's side, S of any side.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float32]

DIGITS = tuple("0123456789")
REACH = 0.75
"""Half the side of a sprite's square, in object sizes; nothing is drawn further out."""
TEXELS = 72
"""R; an object's size has 48 of them, six for each pixel of a digit."""

_FINER = 4  # shapes are drawn this much finer first
_INK = 7.037  # of 16: strokes keep their width; between the values that flat areas have


@dataclass(frozen=True)
class Bank:
    """The sprites to choose from.

    Attributes:
        kinds: names of the classes.
        distance: (F, R, R) float32 from each texel to the sprite's outline, in object sizes, below
            0 inside; the middle of the object is in the middle, a size is 48 texels.
        kind: (F,) int64 index of `kinds`.
        turned: whether objects are turned by a random angle.
    """

    kinds: tuple[str, ...]
    distance: Floats
    kind: npt.NDArray[np.int64]
    turned: bool


_Points = npt.NDArray[np.float64]
_OUTLINES: dict[str, Callable[[_Points, _Points], npt.NDArray[np.bool_]]] = {
    "square": lambda x, y: np.maximum(abs(x), abs(y)) < 0.42,
    "ellipse": lambda x, y: np.hypot(x / 0.5, y / 0.36) < 1,
    "heart": lambda x, y: _heart(2.3 * x, 0.1 - 2.3 * y),
    "triangle": lambda x, y: (y < 0.29) & (abs(x) < (y + 0.57) / np.sqrt(3)),
    "circle": lambda x, y: np.hypot(x, y) < 0.45,
}
SHAPES = tuple(_OUTLINES)
"""dSprites' three, and more that a detector can be asked about without having seen them."""


def _heart(x: _Points, y: _Points) -> npt.NDArray[np.bool_]:
    """The inside of the well-known curve (x^2 + y^2 - 1)^3 = x^2 y^3, y up."""
    return np.asarray((x**2 + y**2 - 1) ** 3 < x**2 * y**3)


def make_bank(which: str, kinds: Sequence[str] = ()) -> Bank:
    """Draw the sprites of some kinds.

    Args:
        which: `shapes` or `digits`.
        kinds: of `SHAPES` or `DIGITS`; by default dSprites' three, or all digits.

    Raises:
        ValueError: a kind that there is not, or the same twice.
        ImportError: scikit-learn is needed for digits and not installed.
    """
    known = SHAPES if which == "shapes" else DIGITS
    chosen = tuple(kinds) or (SHAPES[:3] if which == "shapes" else DIGITS)
    if len(set(chosen)) < len(chosen) or not set(chosen) <= set(known):
        raise ValueError(
            f"kinds: expected different ones of {', '.join(known)}, got {', '.join(chosen)}"
        )
    if which == "shapes":
        distance = np.stack([_shape(kind) for kind in chosen])
        return Bank(chosen, distance, np.arange(len(chosen)), turned=True)
    distance, digit = _digits()
    rows = np.flatnonzero(np.isin(digit, [int(kind) for kind in chosen]))
    order = np.array([chosen.index(str(number)) for number in digit[rows]])
    return Bank(chosen, distance[rows], order, turned=False)


def _shape(kind: str) -> Floats:
    """(R, R) distance of a shape."""
    side = TEXELS * _FINER
    along = ((np.arange(side) + 0.5) / side - 0.5) * 2 * REACH
    fine = _distance(_OUTLINES[kind](*np.meshgrid(along, along)))
    return np.asarray(fine.reshape(TEXELS, _FINER, TEXELS, _FINER).mean(axis=(1, 3)))


@lru_cache(maxsize=1)
def _digits() -> tuple[Floats, npt.NDArray[np.int64]]:
    """(1797, R, R) distance of scikit-learn's 8 x 8 digits, and which digit each is."""
    try:
        datasets: Any = importlib.import_module("sklearn.datasets")
    except ModuleNotFoundError as problem:
        raise ImportError(
            "expected scikit-learn, whose digits are drawn, got none: "
            "pip install 'objrl[synthetic]', or draw --which shapes"
        ) from problem
    found = datasets.load_digits()
    side = TEXELS * 2 // 3  # of the 8 x 8 pixels: the square is 1.5 sizes wide
    inside = np.zeros((len(found.images), TEXELS, TEXELS), dtype=np.bool_)
    low = (TEXELS - side) // 2
    for image, into in zip(found.images, inside, strict=True):
        large = cv2.resize(image, (side, side), interpolation=cv2.INTER_CUBIC)
        into[low : low + side, low : low + side] = large > _INK
    return np.stack([_distance(mask) for mask in inside]), found.target.astype(np.int64)


def _distance(inside: npt.NDArray[np.bool_]) -> Floats:
    """(S, S) signed distance to the outline, in object sizes; the square is 2 REACH wide."""
    out, within = (_texels_to(side) for side in (inside, ~inside))
    return np.asarray((out - within) * (2 * REACH / len(inside)), dtype=np.float32)


def _texels_to(inside: npt.NDArray[np.bool_]) -> npt.NDArray[np.float64]:
    """(S, S) how far each texel's centre is from the outline of what is inside; 0 within it."""
    found = cv2.distanceTransform((~inside).astype(np.uint8), cv2.DIST_L2, cv2.DIST_MASK_PRECISE)
    # OpenCV's last bit differs from call to call. A distance's square is a whole number.
    exact = np.sqrt(np.rint(found.astype(np.float64) ** 2))
    return np.maximum(exact - 0.5, 0)
