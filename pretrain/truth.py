"""Labelled frames: the file that `objrl evaluate --truth` reads, and how to make your own.

A truth file is what `numpy.savez_compressed` writes (.npz, no pickled objects), with these arrays:

| array | shape, dtype | meaning |
|---|---|---|
| `frames` | (N, H, W, 3) uint8 | RGB frames |
| `classes` | (L,) str | class names |
| `boxes` | (M, 6) integers | one row an object: frame, class, x, y, width, height |
| `ignore` | (I, 5) integers, may be left out | frame, x, y, width, height |
| `game` | () str, may be left out | name of the game; the file's name otherwise |

`frame` counts from 0 and `class` is an index of `classes`; x, y is the upper left corner in pixels.
`ignore` holds places where a detection is neither right nor wrong, such as the score, or objects
that exist but are not drawn in this very frame:

    numpy.savez_compressed("mine.npz", frames=frames, classes=["ball", "paddle"], boxes=boxes)

Nothing is ever trained on such a file, or chosen by it.

Letters: N frames, H W pixels, L classes, M true boxes, I ignored boxes.
"""

from __future__ import annotations

import io
import zipfile
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from objrl.atomic import write_atomically
from objrl.metrics import Boxes, Truth

IGNORED_CLASSES = {"MsPacman": ("Pill",), "Qbert": ("Cube",)}
"""Classes by game that are part of the maze: found or not, they count neither way."""


@dataclass(frozen=True)
class LabelledFrames:
    """The content of a truth file.

    Attributes:
        game: name of the game.
        frames: (N, H, W, 3) uint8 RGB.
        truth: what there is to find in them.
    """

    game: str
    frames: npt.NDArray[np.uint8]
    truth: Truth


def read_truth(path: str | Path) -> LabelledFrames:
    """Read a truth file; its format is in the module's docstring.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: of another format, damaged, arrays missing or contradictory, or no boxes.
    """
    path = Path(path)
    arrays = read_arrays(path)
    missing = [name for name in ("frames", "classes", "boxes") if name not in arrays]
    if missing:
        raise ValueError(
            f"{path}: expected the arrays frames, classes and boxes, got "
            f"{', '.join(sorted(arrays)) or 'none'}; missing: {', '.join(missing)}"
        )
    game = str(arrays.get("game", path.stem))
    frames, names = arrays["frames"], [str(name) for name in np.ravel(arrays["classes"])]
    if frames.ndim != 4 or frames.shape[3] != 3 or frames.dtype != np.uint8:
        raise ValueError(
            f"{path}: expected frames (N, H, W, 3) uint8 RGB, got {frames.shape} {frames.dtype}"
        )
    boxes = _check_rows(path, "boxes", arrays["boxes"], 6, len(frames))
    ignored = _check_rows(path, "ignore", arrays.get("ignore", np.zeros((0, 5))), 5, len(frames))
    if not len(boxes):
        raise ValueError(f"{path}: expected at least one true box to measure against, got no boxes")
    flat = boxes[:, 4:].min(axis=1) <= 0
    if flat.any():
        raise ValueError(
            f"{path}: expected x, y, width, height with positive sizes in boxes, "
            f"got {boxes[flat][0, 2:].tolist()}"
        )
    labels = boxes[:, 1].astype(int)
    if labels.min() < 0 or labels.max() >= len(names):
        raise ValueError(
            f"{path}: expected class numbers of boxes in 0..{len(names) - 1} (one for each of "
            f"classes), got {labels.min()}..{labels.max()}"
        )

    aside = np.isin([names[label] for label in labels], IGNORED_CLASSES.get(game, ()))
    ignored = np.concatenate([ignored, boxes[aside][:, [0, 2, 3, 4, 5]]])
    boxes, labels = boxes[~aside], labels[~aside]
    rows = [np.flatnonzero(boxes[:, 0] == index) for index in range(len(frames))]
    truth = Truth(
        boxes=[_corners(boxes[chosen, 2:]) for chosen in rows],
        labels=[tuple(names[label] for label in labels[chosen]) for chosen in rows],
        ignored=[_corners(ignored[ignored[:, 0] == i, 1:]) for i in range(len(frames))],
    )
    return LabelledFrames(game, frames, truth)


def write_truth(path: Path, **arrays: Any) -> None:
    """Write a truth file, with whatever else belongs to it; the same arrays give the same bytes.

    `boxes` and `ignore` may be lists of rows, also empty ones.
    """
    for name, width in (("boxes", 6), ("ignore", 5)):
        arrays[name] = np.array(arrays[name], dtype=np.int64).reshape(-1, width)
    file = io.BytesIO()
    np.savez_compressed(file, **arrays)
    write_atomically(path, file.getvalue())


def join_truth(parts: Sequence[LabelledFrames]) -> LabelledFrames:
    """Make one of labelled frames of one game, in their order."""
    return LabelledFrames(
        game=parts[0].game,
        frames=np.concatenate([part.frames for part in parts]),
        truth=Truth(
            boxes=[boxes for part in parts for boxes in part.truth.boxes],
            labels=[names for part in parts for names in part.truth.labels],
            ignored=[boxes for part in parts for boxes in part.truth.ignored],
        ),
    )


def holds(path: Path, about: str) -> bool:
    """Whether a file of labelled frames is there already, made with the settings `about` (JSON).

    Raises:
        ValueError: another file is.
    """
    if not path.exists():
        return False
    try:
        with np.load(path, allow_pickle=False) as archive:
            found = str(archive["about"])
    except Exception:  # numpy and zipfile raise half a dozen kinds on what is not theirs
        found = "another file"
    if found != about:
        raise ValueError(
            f"{path}: expected no file, or the labelled frames of {about}, got {found}; "
            "nothing was changed: choose another --out, delete it, or leave it by --labelled 0"
        )
    return True


def read_arrays(path: Path) -> dict[str, npt.NDArray[Any]]:
    """Return everything that a truth file holds, by name.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: of another format, or damaged.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path}: there is no such truth file")
    try:
        with np.load(path, allow_pickle=False) as archive:
            return {name: archive[name] for name in archive.files}
    except (ValueError, TypeError, OSError, EOFError, zipfile.BadZipFile, zlib.error) as problem:
        raise ValueError(
            f"{path}: expected labelled frames as numpy.savez_compressed writes them (.npz, see "
            f"objrl/pretrain/truth.py), got a damaged file or another format ({problem})"
        ) from problem


def _check_rows(
    path: Path, name: str, rows: npt.NDArray[Any], width: int, frames: int
) -> npt.NDArray[np.float64]:
    """Return (M, width) rows as float64 when their frame numbers are possible."""
    if rows.ndim != 2 or rows.shape[1] != width or rows.dtype.kind not in "iuf":
        raise ValueError(
            f"{path}: expected {name} to be numbers of shape (·, {width}), "
            f"got {rows.shape} {rows.dtype}"
        )
    rows = rows.astype(np.float64)
    outside = (rows[:, 0] < 0) | (rows[:, 0] >= frames)
    if outside.any():
        raise ValueError(
            f"{path}: expected frame numbers of {name} in 0..{frames - 1}, "
            f"got {rows[outside][0, 0]:.0f}"
        )
    return rows


def _corners(boxes: npt.NDArray[np.float64]) -> Boxes:
    """(n, 4) x y width height to x0 y0 x1 y1."""
    return np.concatenate([boxes[:, :2], boxes[:, :2] + boxes[:, 2:]], axis=1)
