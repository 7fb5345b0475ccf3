"""The sequences of `objrl synthetic`: where objects go, and drawing them.

- `DENSITIES`: how many objects of what size.
- `Scene`: the objects of one sequence and what is behind them; `make_scene` draws lots for it,
  `draw` its frames.

They are those of SCALOR's task 1 (Jiang et al. 2020, arXiv 1910.02384, section 5.1 and appendix C).
The paper tells the size of the view, and how many objects there are and are seen. It says nothing
of sizes, colours, speeds, walls and backgrounds: those are ours.

Letters: T frames, K objects, H W pixels, J waves of the background, n side of a window.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from objrl.pretrain.sprites import REACH, TEXELS, Bank, Floats

Frames = npt.NDArray[np.uint8]

VIEW = 64
"""Side of a frame in pixels: the middle of the world, as in the paper."""

_WAVES = 3
_CHUNK = 32  # frames that are drawn at once: more take much memory and are no quicker


@dataclass(frozen=True)
class Density:
    """One of the paper's five settings."""

    objects: tuple[int, int]
    """Fewest and most objects in the world; the paper's."""
    size: float
    """Of an object, in pixels. The paper names none; these fill half of the view at most."""
    world: float
    """Side of the world that objects' centres keep to, in pixels. It follows from the number of
    objects that the paper sees in a frame: `VIEW` and one size, squared, are that part of it."""


DENSITIES = {
    "VLD": Density((2, 4), 14, 79.3),  # 2.9 in view
    "LD": Density((8, 11), 12, 82.8),  # 8
    "MD": Density((18, 24), 10, 75.8),  # 20
    "HD": Density((50, 64), 8, 73.3),  # 55
    "VHD": Density((90, 110), 6, 73.8),  # 90
}


@dataclass(frozen=True)
class Scene:
    """The objects of a sequence, the farthest first, and what is behind them.

    Attributes:
        size: of every object, in pixels.
        world: side of the world, in pixels.
        sprite: (K,) int64 index of a bank's sprites.
        turn: (K,) angle in radians.
        colour: (K, 3) RGB in [0, 1].
        place: (K, 2) x, y of the centres in the first frame, from 0 to `world`.
        velocity: (K, 2) pixels a frame.
        waves: (J, 7) of the background: wave numbers x and y in radians a pixel, radians a frame,
            phase, and amplitude of R, G and B; of no rows where the background is black.
    """

    size: float
    world: float
    sprite: npt.NDArray[np.int64]
    turn: npt.NDArray[np.float64]
    colour: npt.NDArray[np.float64]
    place: npt.NDArray[np.float64]
    velocity: npt.NDArray[np.float64]
    waves: npt.NDArray[np.float64]


def make_scene(
    density: Density,
    bank: Bank,
    rng: np.random.Generator,
    *,
    speed: tuple[float, float] = (1.0, 3.0),
    background: bool = False,
) -> Scene:
    """Draw lots for a sequence.

    Args:
        density: how many objects of what size in how large a world.
        bank: what they may look like.
        rng: decides everything; the same objects come with and without a background.
        speed: least and most pixels a frame, the same for the whole sequence.
        background: whether there is one.
    """
    count = int(rng.integers(density.objects[0], density.objects[1] + 1))
    sprite = rng.integers(len(bank.distance), size=count)
    turn = rng.uniform(0, 2 * np.pi, count) * bank.turned
    hue, saturation, value = rng.uniform([0, 0.5, 0.75], [6, 1, 1], (count, 3)).T
    place = rng.uniform(0, density.world, (count, 2))
    pace, course = rng.uniform(*speed, count), rng.uniform(0, 2 * np.pi, count)
    waves = np.zeros((0, 7))
    if background:
        course_of_wave = rng.uniform(0, 2 * np.pi, _WAVES)
        number = 2 * np.pi / rng.uniform(32, 96, _WAVES)
        drift = number * rng.uniform(0.5, 2, _WAVES)  # so many pixels a frame
        waves = np.column_stack(
            [
                *(number * np.cos(course_of_wave), number * np.sin(course_of_wave), drift),
                *(rng.uniform(0, 2 * np.pi, _WAVES), rng.uniform(-0.15, 0.15, (_WAVES, 3))),
            ]
        )
    return Scene(
        size=density.size,
        world=density.world,
        sprite=sprite,
        turn=turn,
        colour=rgb(hue, saturation, value),
        place=place,
        velocity=pace[:, None] * np.column_stack([np.cos(course), np.sin(course)]),
        waves=waves,
    )


def rgb(
    hue: npt.NDArray[np.float64],
    saturation: npt.NDArray[np.float64],
    value: npt.NDArray[np.float64],
) -> npt.NDArray[np.float64]:
    """(K, 3) RGB in [0, 1]; the hue is in [0, 6)."""
    turned = (np.array([5, 3, 1]) + hue[:, None]) % 6
    grey = np.clip(np.minimum(turned, 4 - turned), 0, 1)
    return np.asarray(value[:, None] * (1 - saturation[:, None] * grey))


def centres(scene: Scene, times: npt.NDArray[np.int64]) -> npt.NDArray[np.float64]:
    """(T, K, 2) x, y of the objects in pixels of the frame: straight on, and back at a wall."""
    way = scene.place + scene.velocity * times[:, None, None]
    folded = scene.world - abs(way % (2 * scene.world) - scene.world)
    return np.asarray(folded - (scene.world - VIEW) / 2)


def draw(scene: Scene, bank: Bank, length: int) -> tuple[Frames, Frames]:
    """Draw the first frames of a sequence.

    Args:
        scene: of at most 255 objects.
        bank: the one that the scene was made with.
        length: T.

    Returns:
        (T, H, W, 3) uint8 RGB frames, and (T, H, W) uint8: k where object k - 1 covers half of the
        pixel or more and none before it does, else 0.
    """
    times = np.split(np.arange(length), range(_CHUNK, length, _CHUNK))
    frames, ids = zip(*(_draw(scene, bank, some) for some in times), strict=True)
    return np.concatenate(frames), np.concatenate(ids)


def _draw(scene: Scene, bank: Bank, times: npt.NDArray[np.int64]) -> tuple[Frames, Frames]:
    corner, cover = _cover(scene, bank, centres(scene, times))
    window = cover.shape[-1]
    # A margin takes the windows that reach out of the view, and those that are out of it.
    corner = np.clip(corner, -window, VIEW) + window
    inner = slice(window, window + VIEW)
    canvas = np.zeros((len(times), *2 * [VIEW + 2 * window], 3), dtype=np.float32)
    canvas[:, inner, inner] = _background(scene, times)
    ids = np.zeros(canvas.shape[:3], dtype=np.uint8)
    frame, along = np.arange(len(times))[:, None, None], np.arange(window)
    for number, colour in enumerate(scene.colour.astype(np.float32)):
        x, y = (corner[:, number, axis, None, None] for axis in (0, 1))
        at = frame, y + along[:, None], x + along
        mine = cover[:, number]
        behind = canvas[at]
        canvas[at] = behind + mine[..., None] * (colour - behind)
        ids[at] = np.where(mine >= 0.5, number + 1, ids[at])
    return np.rint(255 * canvas[:, inner, inner]).astype(np.uint8), ids[:, inner, inner]


def _cover(
    scene: Scene, bank: Bank, centre: npt.NDArray[np.float64]
) -> tuple[npt.NDArray[np.int64], Floats]:
    """Return (T, K, 2) corners of windows and (T, K, n, n) how much of each pixel is covered."""
    reach = int(np.ceil(REACH * scene.size)) + 1
    corner = np.rint(centre).astype(np.int64) - reach
    way = corner[..., None] + np.arange(2 * reach) + 0.5 - centre[..., None]  # (T, K, 2, n)
    texels_a_pixel = TEXELS / (2 * REACH * scene.size)
    x, y = np.moveaxis((way * texels_a_pixel).astype(np.float32), 2, 0)
    x, y = x[:, :, None, :], y[:, :, :, None]
    cos, sin = (f(scene.turn).astype(np.float32)[:, None, None] for f in (np.cos, np.sin))
    last = TEXELS - 1
    column, row = (
        np.clip(texel + last / 2, 0, last - 1e-3)
        for texel in (cos * x + sin * y, cos * y - sin * x)
    )
    # Bilinear: the distance is smooth, so texels of a third of a pixel are fine enough.
    left, top = column.astype(np.int64), row.astype(np.int64)
    right, low = column - left, row - top
    first = (scene.sprite[:, None, None] * TEXELS + top) * TEXELS + left
    texels = bank.distance.reshape(-1)
    upper, lower = (
        texels[first + down] * (1 - right) + texels[first + down + 1] * right
        for down in (0, TEXELS)
    )
    distance = (upper * (1 - low) + lower * low) * np.float32(scene.size)
    return corner, np.clip(0.5 - distance, 0, 1)


def _background(scene: Scene, times: npt.NDArray[np.int64]) -> Floats:
    """(T, VIEW, VIEW, 3) RGB in [0, 1], darker than any object: plane waves, each on its way."""
    if not len(scene.waves):
        return np.zeros((len(times), VIEW, VIEW, 3), dtype=np.float32)
    y, x = np.ogrid[:VIEW, :VIEW]
    t = times[:, None, None]
    picture = np.full((len(times), VIEW, VIEW, 3), 0.25, dtype=np.float32)
    for in_x, in_y, in_t, phase, *amplitude in scene.waves:
        wave = np.cos((in_x * x + in_y * y - in_t * t + phase).astype(np.float32))
        picture += wave[..., None] * np.array(amplitude, dtype=np.float32)
    return np.clip(picture, 0, 0.55)
