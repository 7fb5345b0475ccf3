"""The still scenes of IODINE, MONet, R-MONet and ECON, drawn anew: nothing is fetched.

| set | scene | side | after |
|---|---|---|---|
| `tetris` | 3 tetrominoes of 5 x 5 blocks, apart, of 6 colours, on black | 35 | IODINE |
| `dsprites_grey` | 2 to 5 coloured sprites on a grey of any shade | 64 | IODINE |
| `dsprites_colour` | 1 to 4 sprites on any colour, of 125 | 64 | MONet, GENESIS |
| `dsprites_binary` | 2 or 3 white sprites on black | 64 | IODINE |
| `shapes` | 3 white triangles, up or down, and squares on black | 28 | IODINE |
| `econ_unique` | a red circle, a green square, a blue triangle on any dark colour | 32 | ECON |
| `econ_random` | the same, in any bright colours | 32 | ECON |

What the papers leave open (sizes above all) is ours: docs/scenes.md. Two fillings more than the
papers have show who goes by colour alone: `same` gives all objects of a scene one colour,
`textured` stripes of two, the same two for all, each object's in a direction of its own.

Letters: H W pixels, M objects, F factors.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal, NamedTuple

import cv2
import numpy as np
import numpy.typing as npt

from objrl.pretrain.sequences import rgb
from objrl.pretrain.sprites import REACH, TEXELS, make_bank

Which = Literal[
    "tetris",
    "dsprites_grey",
    "dsprites_colour",
    "dsprites_binary",
    "shapes",
    "econ_unique",
    "econ_random",
]
Fill = Literal["own", "same", "textured"]
Floats = npt.NDArray[np.float64]
Mask = npt.NDArray[np.bool_]

FACTORS = ("x", "y", "size", "angle", "red", "green", "blue", "depth")
"""Of an object: centre in [-1, 1], x right and y down; size as a share of the frame; angle in
radians; colour in [0, 1], of stripes their mean; depth from 0, larger is nearer."""

_STRIPE = 4.0
"""Pixels from a stripe to the next of its colour."""


@dataclass(frozen=True)
class Still:
    """A scene.

    Attributes:
        frame: (H, W, 3) uint8 RGB.
        ids: (H, W) int64, k where object k - 1 covers half of the pixel or more and none before it
            does, else 0.
        whole: (M, H, W) bool, where objects are, also behind others.
        kind: (M,) int64, index of the set's kinds.
        factors: (M, F) float32, `FACTORS`.
    """

    frame: npt.NDArray[np.uint8]
    ids: npt.NDArray[np.int64]
    whole: Mask
    kind: npt.NDArray[np.int64]
    factors: npt.NDArray[np.float32]


class _Figure(NamedTuple):
    """An object before it is painted: how much of each pixel it covers, and what it is."""

    cover: Floats
    kind: int
    x: float
    y: float
    size: float
    angle: float


@dataclass(frozen=True)
class _Set:
    """How the scenes of a set are drawn.

    Attributes:
        side: H and W of the papers' frames.
        kinds: names of the classes.
        figures: what is in a scene of so many pixels a side, the farthest first.
        colours: (M, 3) of so many objects of these kinds, in [0, 1].
        background: (3,) in [0, 1].
    """

    side: int
    kinds: tuple[str, ...]
    figures: Callable[[np.random.Generator, int], list[_Figure]]
    colours: Callable[[np.random.Generator, npt.NDArray[np.int64]], Floats]
    background: Callable[[np.random.Generator], Floats]


def side_of(which: Which) -> int:
    """Return H and W of a set's frames."""
    return _SETS[which].side


def kinds_of(which: Which) -> tuple[str, ...]:
    """Return the names of a set's classes."""
    return _SETS[which].kinds


def draw_still(
    which: Which, rng: np.random.Generator, *, fill: Fill = "own", side: int | None = None
) -> Still:
    """Draw a scene.

    Args:
        which: of which set.
        rng: decides everything.
        fill: what objects are filled with.
        side: of the frame; by default as in the papers. Objects are larger in larger ones.
    """
    made = _SETS[which]
    side = side or made.side
    figures = made.figures(rng, side)
    kind = np.array([figure.kind for figure in figures], dtype=np.int64)
    picture = np.tile(made.background(rng), (side, side, 1))
    colours = made.colours(rng, kind)
    paint = [np.broadcast_to(colour, picture.shape) for colour in colours]
    if fill == "same":
        colours = np.repeat(colours[:1], len(colours), axis=0)
        paint = [np.broadcast_to(colour, picture.shape) for colour in colours]
    elif fill == "textured":
        hue = rng.uniform(0, 6) + np.array([0, rng.uniform(1.5, 4.5)])
        two = rgb(hue, np.ones(2), np.array([1.0, 0.6]))
        colours = np.repeat(two.mean(0)[None], len(colours), axis=0)
        paint = [_stripes(two, rng.uniform(0, np.pi), side) for _ in figures]
    ids = np.zeros((side, side), dtype=np.int64)
    for number, (figure, colour) in enumerate(zip(figures, paint, strict=True), start=1):
        picture += figure.cover[..., None] * (colour - picture)
        ids[figure.cover >= 0.5] = number
    told = [
        (2 * f.x / side - 1, 2 * f.y / side - 1, f.size / side, f.angle, *colour, depth)
        for depth, (f, colour) in enumerate(zip(figures, colours, strict=True))
    ]
    return Still(
        frame=np.rint(255 * picture).astype(np.uint8),
        ids=ids,
        whole=np.stack([figure.cover >= 0.5 for figure in figures]),
        kind=kind,
        factors=np.array(told, dtype=np.float32),
    )


def _stripes(two: Floats, angle: float, side: int) -> Floats:
    """(side, side, 3) stripes of (2, 3) colours, with soft edges."""
    y, x = np.mgrid[:side, :side]
    wave = np.sin((np.cos(angle) * x + np.sin(angle) * y) * 2 * np.pi / _STRIPE)
    share = np.clip(0.5 + 2 * wave, 0, 1)[..., None]
    return np.asarray(two[0] + share * (two[1] - two[0]))


# ---- tetris ----------------------------------------------------------------------------------

_LETTERS = {
    "O": ("##", "##"),
    "S": (".##", "##."),
    "Z": ("##.", ".##"),
    "T": ("###", ".#."),
    "J": ("###", "..#"),
    "L": ("###", "#.."),
}
"""Six of the seven tetrominoes. With their quarter turns they are 17, the paper's number; I, which
would make it 19, must be what it leaves out."""


def _pieces() -> dict[str, Mask]:
    pieces: dict[str, Mask] = {}
    for letter, rows in _LETTERS.items():
        turned = np.array([[cell == "#" for cell in row] for row in rows])
        known: list[bytes] = []
        for _ in range(4):
            if (key := bytes([*turned.shape]) + turned.tobytes()) not in known:
                pieces[f"{letter}{len(known)}"] = turned
                known.append(key)
            turned = np.rot90(turned)
    return pieces


_PIECES = _pieces()


def _tetris(rng: np.random.Generator, side: int) -> list[_Figure]:
    """Three pieces that do not overlap, anywhere on the grid of pixels."""
    block, shapes = side // 7, list(_PIECES.values())
    while True:
        figures: list[_Figure] = []
        taken = np.zeros((side, side), dtype=np.bool_)
        for kind in rng.integers(len(shapes), size=3):
            piece = np.kron(shapes[kind], np.ones((block, block), dtype=np.bool_))
            height, width = piece.shape
            for _ in range(50):
                top, left = (int(rng.integers(side - length + 1)) for length in (height, width))
                here = np.zeros_like(taken)
                here[top : top + height, left : left + width] = piece
                if not (here & taken).any():
                    taken |= here
                    middle = left + width / 2, top + height / 2
                    cover = here.astype(np.float64)
                    figures.append(_Figure(cover, int(kind), *middle, 2.0 * block, 0.0))
                    break
        if len(figures) == 3:
            return figures


# ---- sprites ---------------------------------------------------------------------------------


def _sprites(
    kinds: tuple[str, ...],
    count: tuple[int, int],
    size: tuple[float, float],
    *,
    turned: bool = True,
    each_once: bool = False,
    inside: bool = False,
    down: bool = False,
) -> Callable[[np.random.Generator, int], list[_Figure]]:
    """Return what draws figures of a bank.

    Args:
        kinds: of `sprites.SHAPES`.
        count: the fewest and the most.
        size: the least and the greatest, as a share of the frame.
        turned: by any angle; otherwise they stand upright.
        each_once: one of each kind instead of `count` of any.
        inside: wholly in the frame; otherwise their centres are, off the edge by half a size.
        down: the last kind is the first upside down.
    """
    bank = make_bank("shapes", kinds[:-1] if down else kinds)

    def figures(rng: np.random.Generator, side: int) -> list[_Figure]:
        number = int(rng.integers(count[0], count[1] + 1))
        chosen = rng.permutation(len(kinds)) if each_once else rng.integers(len(kinds), size=number)
        made = []
        for kind in chosen.tolist():
            large = side * rng.uniform(*size)
            over = down and kind == len(kinds) - 1
            angle = rng.uniform(0, 2 * np.pi) if turned else np.pi * over
            margin = large * (0.6 if inside else 0.5)
            x, y = rng.uniform(margin, side - margin, 2)
            cover = _cover(bank.distance[0 if over else kind], x, y, large, angle, side)
            made.append(_Figure(cover, kind, x, y, large, angle))
        return made

    return figures


def _cover(
    distance: npt.NDArray[np.float32], x: float, y: float, size: float, angle: float, side: int
) -> Floats:
    """(side, side) how much of each pixel a sprite covers."""
    texels = TEXELS / (2 * REACH * size)
    down, right = np.mgrid[:side, :side] + 0.5
    right, down = (right - x) * texels, (down - y) * texels
    cos, sin = np.cos(angle), np.sin(angle)
    middle = (TEXELS - 1) / 2
    column = (cos * right + sin * down + middle).astype(np.float32)
    row = (cos * down - sin * right + middle).astype(np.float32)
    found = cv2.remap(
        *(distance, column, row, cv2.INTER_LINEAR),
        borderMode=cv2.BORDER_CONSTANT,
        borderValue=1.0,
    )
    return np.clip(0.5 - found.astype(np.float64) * size, 0, 1)


# ---- colours ---------------------------------------------------------------------------------


def _any_of(*colours: tuple[float, float, float]) -> Callable[..., Floats]:
    return lambda rng, kind: np.array(colours)[rng.integers(len(colours), size=len(kind))]


def _by_kind(*colours: tuple[float, float, float]) -> Callable[..., Floats]:
    return lambda rng, kind: np.array(colours, dtype=np.float64)[kind]


def _vivid(rng: np.random.Generator, kind: npt.NDArray[np.int64]) -> Floats:
    return rgb(*rng.uniform([0, 0.5, 0.5], [6, 1, 1], (len(kind), 3)).T)


def _of_125(rng: np.random.Generator, kind: npt.NDArray[np.int64]) -> Floats:
    return np.array([0, 63, 127, 191, 255])[rng.integers(5, size=(len(kind), 3))] / 255


def _channels(low: int, high: int) -> Callable[..., Floats]:
    """Any whole numbers from `low` to `high` in each channel."""
    return lambda rng, kind: rng.integers(low, high + 1, size=(len(kind), 3)) / 255


def _one(colours: Callable[..., Floats]) -> Callable[[np.random.Generator], Floats]:
    return lambda rng: colours(rng, np.zeros(1, dtype=np.int64))[0]


def _grey(rng: np.random.Generator) -> Floats:
    return np.full(3, rng.uniform())


_WHITE, _BLACK = (1.0, 1.0, 1.0), (0.0, 0.0, 0.0)
_RED, _GREEN, _BLUE = (1.0, 0.0, 0.0), (0.0, 1.0, 0.0), (0.0, 0.0, 1.0)
_MIXED = (1.0, 1.0, 0.0), (0.0, 1.0, 1.0), (1.0, 0.0, 1.0)
_DSPRITES = "square", "ellipse", "heart"
_BINARY = _Set(
    *(64, _DSPRITES, _sprites(_DSPRITES, (2, 3), (0.25, 0.45)), _any_of(_WHITE)),
    background=_one(_any_of(_BLACK)),
)
_ECON = _Set(
    side=32,
    kinds=("circle", "square", "triangle"),
    figures=_sprites(
        *(("circle", "square", "triangle"), (3, 3), (0.3, 0.45)),
        turned=False,
        each_once=True,
        inside=True,
    ),
    colours=_by_kind(_RED, _GREEN, _BLUE),
    background=_one(_channels(0, 127)),
)
_SETS: dict[Which, _Set] = {
    "tetris": _Set(
        *(35, tuple(_PIECES), _tetris, _any_of(_RED, _GREEN, _BLUE, *_MIXED)),
        background=_one(_any_of(_BLACK)),
    ),
    "dsprites_grey": _Set(
        *(64, _DSPRITES, _sprites(_DSPRITES, (2, 5), (0.2, 0.4)), _vivid), background=_grey
    ),
    "dsprites_colour": _Set(
        *(64, _DSPRITES, _sprites(_DSPRITES, (1, 4), (0.2, 0.4)), _of_125),
        background=_one(_of_125),
    ),
    "dsprites_binary": _BINARY,
    "shapes": _Set(
        side=28,
        kinds=("triangle", "square", "triangle down"),
        figures=_sprites(
            *(("triangle", "square", "triangle down"), (3, 3), (0.38, 0.38)),
            turned=False,
            inside=True,
            down=True,
        ),
        colours=_any_of(_WHITE),
        background=_one(_any_of(_BLACK)),
    ),
    "econ_unique": _ECON,
    "econ_random": replace(_ECON, colours=_channels(128, 255)),
}
