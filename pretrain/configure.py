"""What the frames themselves tell a recipe: background, sizes of things, how many there are.

No labels and no values by game: everything follows from the no-learning baseline's blobs
(`objrl.models.median`) on a few hundred training frames.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import overload

import cv2
import numpy as np
import numpy.typing as npt

from objrl.models.median import MedianConfig, Scenes, Seen, enough_slots
from objrl.models.regions import Image
from objrl.pretrain.presets import Configurable, SpaceRecipe
from objrl.pretrain.scalor_presets import ScalorRecipe
from objrl.schedule import Linear


@dataclass(frozen=True)
class Findings:
    """What a look at the frames shows; pixels are the canvas's.

    Attributes:
        seen: backgrounds and colours, as the baseline knows them, game by game.
        width: typical width of a blob, large ones counting for more.
        height: typical height.
        spread: standard deviation of the log of a blob's sides.
        largest: side that 98 % of the blobs' area stays below.
        rows: how many slots suffice for the fullest frames.
    """

    seen: Scenes
    width: float
    height: float
    spread: float
    largest: float
    rows: int

    def describe(self) -> dict[str, float | str | bool]:
        """Return what is logged and stored with the weights."""
        sceneries = [seen.scenery for seen in self.seen.every]
        changing = any(scenery.changing for scenery in sceneries)
        sizes = {
            name: round(float(getattr(self, name)), 2)
            for name in ("width", "height", "spread", "largest")
        }
        return {
            "background": "changing" if changing else "static",
            "shaded": any(scenery.shaded for scenery in sceneries),
            "scenes": len(sceneries),
            "faces": max(len(scenery.faces) for scenery in sceneries),
            "standing": max(int(scenery.standing.max()) for scenery in sceneries),
            "colours": max(len(seen.palette.colours) for seen in self.seen.every),
            **sizes,
            "rows": self.rows,
        }


_REACH = 1.12
"""How much larger than z_where without its margin a tight box may be."""

_DRAWN = 300_000
"""Pixels that all the windows of a frame may have together: a training step's cost goes with it.
Where there are many small things and large ones, as in several games, the large ones are cut off in
the picture; their boxes are not."""

LONGEST = 256
"""Pixels of a canvas's longer side; larger frames are shrunk: Atari's are 210 or 250."""


def look(frames: Image) -> Findings:
    """Measure (N, H, W, 3) uint8 frames, spread over episodes; one or two thousand are enough.

    Raises:
        ValueError: nothing in the frames ever moves, or only as a whole.
    """
    height, width = frames.shape[1:3]
    shrink = min(1.0, LONGEST / max(height, width))
    frames = fit_canvas(frames, (round(height * shrink), round(width * shrink)))
    config = MedianConfig(frame_size=(frames.shape[1], frames.shape[2]))
    seen = Seen.of(frames, config)
    found = [seen.pieces(frame)[0] for frame in frames[:: 1 + len(frames) // 500]]
    boxes = np.concatenate(found)
    if not len(boxes):
        raise ValueError(
            f"frames: expected things that move before a background, but in {len(frames)} frames "
            f"nothing between {config.min_area} pixels and {config.max_side} a side differs from "
            "the median; collect more frames, or with an agent that plays (objrl collect --policy)"
        )
    size = boxes[:, 2:] - boxes[:, :2]
    area = size.prod(axis=1)
    width, height = np.average(size, axis=0, weights=np.sqrt(area))
    return Findings(
        seen=Scenes((seen,)),
        width=float(width),
        height=float(height),
        spread=float(np.sqrt(np.mean([np.log(side).var() for side in size.T]))),
        largest=_weighted_quantile(size.max(axis=1), area, 0.98),
        rows=enough_slots([len(b) for b in found]),
    )


def join(found: Sequence[Findings]) -> Findings:
    """Make one of what was found in several games: sizes for all of them, every background."""
    if len(found) == 1:
        return found[0]
    logs = np.log([[f.width, f.height] for f in found])
    width, height = np.exp(logs.mean(0))
    return Findings(
        seen=Scenes(tuple(seen for f in found for seen in f.seen.every)),
        width=float(width),
        height=float(height),
        spread=float(np.sqrt(np.mean([f.spread**2 for f in found]) + logs.var(0).mean())),
        largest=max(f.largest for f in found),
        rows=max(f.rows for f in found),
    )


def fit_canvas(frames: Image, size: tuple[int, int]) -> Image:
    """Resize (B, H, W, 3) uint8 frames to a canvas (H, W), on the host."""
    if frames.shape[1:3] == size:
        return frames
    height, width = size
    return np.stack([cv2.resize(f, (width, height), interpolation=cv2.INTER_AREA) for f in frames])


def _weighted_quantile(
    values: npt.NDArray[np.float32], weights: npt.NDArray[np.float32], share: float
) -> float:
    order = np.argsort(values)
    below = np.cumsum(weights[order]) / weights.sum()
    return float(values[order][np.searchsorted(below, share)])


@overload
def configure(recipe: SpaceRecipe, found: Findings) -> SpaceRecipe: ...
@overload
def configure(recipe: ScalorRecipe, found: Findings) -> ScalorRecipe: ...
def configure(recipe: Configurable, found: Findings) -> Configurable:
    """Fit a recipe to what was found.

    A cell is about as large as the objects (smaller splits them, larger merges neighbours), a
    window holds the largest box that z_where may ask for, and rows suffice for the fullest frame.

    Raises:
        ValueError: several games for a model that knows one background.
    """
    if isinstance(recipe, ScalorRecipe):
        return _configure_scalor(recipe, found)
    return _configure_space(recipe, found)


def _configure_scalor(recipe: ScalorRecipe, found: Findings) -> ScalorRecipe:
    if len(found.seen.every) > 1:
        raise ValueError(
            f"data: expected one game for SCALOR, got {len(found.seen.every)}; train one each"
        )
    scenery = found.seen.every[0].scenery
    height, width = scenery.faces.shape[1:3]
    model = replace(
        recipe.model,
        frame_size=(height, width),
        cell=8 if found.width * found.height < 16**2 else 16,
        window=_window(recipe.margin, found),
        faces=len(scenery.faces),
        flat=2 * scenery.max_side // 3 if scenery.changing else 0,
        reach=min(1.0, _REACH / recipe.margin),
        max_slots=max(16, found.rows),
        proposals=max(16, found.rows),
    )
    return replace(recipe, model=model)


def _window(margin: float, found: Findings) -> int:
    """Return a window's side: for the largest box, but no more pixels than can be paid for."""
    holds = min(96, 8 * math.ceil(margin * found.largest / 8))
    paid = math.isqrt(_DRAWN // max(32, found.rows)) // 8 * 8
    return max(24, min(holds, paid))


def _configure_space(recipe: SpaceRecipe, found: Findings) -> SpaceRecipe:
    sceneries = [seen.scenery for seen in found.seen.every]
    height, width = sceneries[0].faces.shape[1:3]
    side = math.sqrt(found.width * found.height)
    changing = tuple(i for i, scenery in enumerate(sceneries) if scenery.changing)
    model = replace(
        recipe.model,
        frame_size=(height, width),
        cell=8 if side < 16 else 16 if side < 40 else 32,
        window=_window(recipe.margin, found),
        scenes=len(sceneries),
        faces=max(len(scenery.faces) for scenery in sceneries),
        # Shorter than for the teacher, who follows areas around corners.
        flat=max(2 * s.max_side // 3 if s.changing else 0 for s in sceneries),
        changing=changing if len(changing) < len(sceneries) else (),
        reach=min(1.0, _REACH / recipe.margin),
        rendered=max(32, found.rows),
        max_slots=max(32, found.rows),
    )

    def logit(share: float) -> Linear:
        share = min(max(share * recipe.margin, 0.01), 0.9)
        return Linear(math.log(share / (1 - share)))

    if any(scenery.shaded and scenery.changing for scenery in sceneries):
        # Nothing but the mask tells an outline there, so the mask is taught to the end.
        model = replace(model, background="smooth")
        recipe = replace(recipe, alpha_evidence=Linear(1.0))
    return replace(
        recipe,
        model=model,
        scale_mean=(logit(found.width / width), logit(found.height / height)),
        scale_std=min(max(found.spread, recipe.scale_std), 1.0),
    )
