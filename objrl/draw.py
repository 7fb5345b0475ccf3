"""Pictures of what a perceiver sees: boxes with ids, contact sheets, PNG and MP4 files.

Every image here is (H, W, 3) uint8 RGB. Files appear whole or not at all.

Letters: N frames, K slots, H W pixels.
"""

from __future__ import annotations

import colorsys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
from torch import Tensor

from objrl.atomic import replacing, write_atomically
from objrl.perceiver import Decomposition
from objrl.slots import NO_TRACK, Slots

Image = npt.NDArray[np.uint8]
"""(H, W, 3) uint8 RGB."""

# Digits of 3 x 5 pixels, row by row: the smallest that can be read beside an object of 8 pixels.
_DIGITS = (
    "111101101101111", "010110010010111", "111001111100111", "111001111001111", "101101111001001",
    "111100111001111", "111100111101111", "111001010010010", "111101111101111", "111101111001111",
)  # fmt: skip
_GLYPHS = [np.array([c == "1" for c in digit]).reshape(5, 3) for digit in _DIGITS]
_INK = (225, 225, 225)
_PAPER = 24
_GAP = 6
_TITLE = 22


def track_colour(track_id: int) -> tuple[int, int, int]:
    """Return the RGB colour of an id: always the same, and unlike that of its neighbours."""
    if track_id == NO_TRACK:
        return (255, 255, 255)
    # The golden ratio spreads any run of ids evenly over the hues; every third id is paler, and
    # none is so pure that it vanishes on black.
    hue = (0.08 + track_id * 0.618034) % 1
    red, green, blue = colorsys.hsv_to_rgb(hue, 0.45 if track_id % 3 == 2 else 0.75, 1.0)
    return round(red * 255), round(green * 255), round(blue * 255)


def draw_slots(
    frame: Image,
    boxes: npt.NDArray[np.floating[Any]],
    presence: npt.NDArray[np.floating[Any]],
    track_id: npt.NDArray[np.integer[Any]],
    scale: int = 1,
) -> Image:
    """Draw a thin box around every present object and its id beside it.

    Args:
        frame: (H, W, 3) uint8 RGB; it is not changed.
        boxes: (K, 4) x0 y0 x1 y1 in pixels of the frame.
        presence: (K,) or (K, 1). Rows at 0 are not drawn.
        track_id: (K,) or (K, 1) int. It chooses the colour; -1 gives white and no label.
        scale: how many times larger the result is.

    Returns:
        (H * scale, W * scale, 3) uint8 RGB.
    """
    frame = _check_image(frame)
    rows = len(boxes)
    if np.shape(boxes) != (rows, 4) or np.size(presence) != rows or np.size(track_id) != rows:
        raise ValueError(
            "draw_slots: expected boxes (K, 4), presence (K,) and track_id (K,), got "
            f"{np.shape(boxes)}, {np.shape(presence)} and {np.shape(track_id)}"
        )
    if scale < 1:
        raise ValueError(f"draw_slots: expected scale >= 1, got {scale}")
    image = np.repeat(np.repeat(frame, scale, axis=0), scale, axis=1)
    present = [row for row in range(rows) if np.ravel(presence)[row] > 0]
    ids = np.ravel(track_id)
    # One pixel outside of the object, so that nothing of it is covered but at the frame's edge.
    limit = np.array(image.shape[1::-1]) - 1
    low = np.clip(np.floor(np.asarray(boxes)[:, :2] * scale) - 1, 0, limit).astype(int)
    high = np.clip(np.ceil(np.asarray(boxes)[:, 2:] * scale), 0, limit).astype(int)
    for row in present:
        if scale > 1:  # a black rim: pale colours would be lost on snow
            cv2.rectangle(image, (low[row] - 1).tolist(), (high[row] + 1).tolist(), (0, 0, 0))
        colour = track_colour(int(ids[row]))
        cv2.rectangle(image, low[row].tolist(), high[row].tolist(), colour)
    for row in present:  # labels last: the box of a neighbour must not cross them
        if ids[row] != NO_TRACK:
            _label(image, int(ids[row]), low[row], high[row], max(1, scale // 2))
    return image


def contact_sheet(
    frames: npt.NDArray[np.uint8],
    slots: Slots,
    decomposition: Decomposition | None = None,
    rows: Sequence[str] | None = None,
    extra: Mapping[str, Sequence[Image]] | None = None,
    tile_width: int = 320,
) -> Image:
    """Lay N frames out, one a row: input | boxes | extra | foreground | background | alpha.

    Args:
        frames: (N, H, W, 3) uint8 RGB.
        slots: what was seen in them; B = N.
        decomposition: the same frames taken apart; None leaves these columns out.
        rows: N titles, one above each row.
        extra: further columns by title, N images each, of any size.
        tile_width: least width of a tile; frames are enlarged by a whole factor to reach it.

    Returns:
        One (·, ·, 3) uint8 RGB image.
    """
    count, height, width = frames.shape[:3]
    if len(slots) != count or (rows is not None and len(rows) != count):
        raise ValueError(
            f"contact_sheet: expected slots and row titles of {count} frames, got slots of "
            f"{len(slots)} and {None if rows is None else len(rows)} titles"
        )
    scale = max(1, -(-tile_width // width))
    fields = slots.numpy()
    boxes = slots.boxes(height, width).cpu().numpy()
    columns: dict[str, Sequence[Image]] = {"input": list(frames)}
    columns["boxes"] = [
        draw_slots(frames[i], boxes[i], fields["presence"][i], fields["track_id"][i], scale)
        for i in range(count)
    ]
    columns |= extra or {}
    if decomposition is not None:
        for name in ("foreground", "background", "alpha"):
            columns[name] = _to_images(getattr(decomposition, name))
    return sheet(columns, height * scale, width * scale, rows)


def sheet(
    columns: Mapping[str, Sequence[Image]],
    tile_height: int,
    tile_width: int,
    rows: Sequence[str] | None = None,
) -> Image:
    """Lay columns of images out as equal tiles under their titles; see `contact_sheet`."""
    count = len(next(iter(columns.values())))
    wrong = {name: len(images) for name, images in columns.items() if len(images) != count}
    if wrong:
        raise ValueError(f"sheet: expected {count} images in every column, got {wrong}")
    above = _TITLE if rows else _GAP
    step_y, step_x = tile_height + above, tile_width + _GAP
    whole = np.full(
        (_TITLE + count * step_y + _GAP, _GAP + len(columns) * step_x, 3), _PAPER, np.uint8
    )
    for column, (title, images) in enumerate(columns.items()):
        left = _GAP + column * step_x
        _write(whole[:_TITLE, left : left + tile_width], title)
        for row, image in enumerate(images):
            top = _TITLE + row * step_y + above
            tile = _enlarge(_check_image(image), tile_height, tile_width)
            whole[top : top + tile_height, left : left + tile_width] = tile
    for row, title in enumerate(rows or ()):
        _write(whole[_TITLE + row * step_y : _TITLE + row * step_y + above, _GAP:], title)
    return whole


def write_png(path: str | Path, image: Image) -> None:
    """Write an RGB image as PNG.

    Raises:
        OSError: the disk is full, the folder cannot be written, …; nothing is left behind.
    """
    good, data = cv2.imencode(".png", _check_image(image)[..., ::-1])
    if not good:
        raise OSError(f"{path}: the image could not be encoded as PNG")
    write_atomically(Path(path), data.tobytes())


def write_video(path: str | Path, frames: Iterable[Image], fps: float) -> int:
    """Write RGB images of one size as an MP4 video and return how many there were.

    Args:
        path: must end in .mp4.
        frames: they are taken one by one, so a generator needs no memory.
        fps: frames a second.

    Raises:
        ValueError: another ending, no frames, or frames of several sizes.
        OSError: the video cannot be written; nothing is left behind.
    """
    path = Path(path)
    if path.suffix != ".mp4":
        raise ValueError(f"write_video: expected a name that ends in .mp4, got {path.name!r}")
    writer: cv2.VideoWriter | None = None
    shape: tuple[int, ...] = ()
    count = 0
    with replacing(path) as temporary:
        try:
            for frame in frames:
                if writer is None:
                    shape = _check_image(frame).shape
                    code = cv2.VideoWriter.fourcc(*"mp4v")
                    writer = cv2.VideoWriter(str(temporary), code, fps, (shape[1], shape[0]))
                    if not writer.isOpened():
                        raise OSError(f"{path}: OpenCV cannot write MP4 video there")
                if _check_image(frame).shape != shape:  # OpenCV would leave it out silently
                    raise ValueError(
                        f"write_video: expected every frame to be {shape}, "
                        f"got {frame.shape} for frame {count}"
                    )
                writer.write(np.ascontiguousarray(frame[..., ::-1]))
                count += 1
        finally:
            if writer is not None:
                writer.release()
        if count == 0:
            raise ValueError("write_video: expected at least one frame, got none")
        # OpenCV raises nothing when a write fails, so a full disk shows only here.
        held = cv2.VideoCapture(str(temporary)).get(cv2.CAP_PROP_FRAME_COUNT)
        written = max(0, int(held))  # below zero when it cannot be read at all
        if written != count:
            raise OSError(
                f"{path}: only {written} of {count} frames could be written; is the disk full?"
            )
    return count


def _check_image(image: Image) -> Image:
    if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8:
        raise ValueError(
            f"expected an RGB image (H, W, 3) uint8, got {image.shape} {image.dtype}; "
            "a batch must be passed frame by frame"
        )
    return image


def _label(
    image: Image, number: int, low: npt.NDArray[Any], high: npt.NDArray[Any], pixel: int
) -> None:
    """Write an id above the box from `low` to `high`, or below it where there is no room."""
    glyphs = [np.pad(_GLYPHS[int(digit)], ((0, 0), (0, 1))) for digit in str(number)]
    ink = np.kron(np.hstack(glyphs)[:, :-1], np.ones((pixel, pixel), dtype=bool))
    ink = np.pad(ink, 1)
    height, width = ink.shape
    top = low[1] - height if low[1] >= height else high[1] + 1
    left = int(np.clip(low[0] - 1, 0, max(image.shape[1] - width, 0)))
    area = image[top : top + height, left : left + width]
    area //= 3  # darkened, not covered: a neighbour may lie there
    area[ink[: area.shape[0], : area.shape[1]]] = track_colour(number)


def _to_images(tensor: Tensor) -> list[Image]:
    """(N, C, h, w) float in [0, 1], C 1 or 3, as N uint8 RGB images."""
    values = tensor.detach().clamp(0, 1).mul(255).round().byte().permute(0, 2, 3, 1).cpu().numpy()
    return list(np.broadcast_to(values, (*values.shape[:3], 3)))


def _enlarge(image: Image, height: int, width: int) -> Image:
    """Resize to a tile: by whole factors pixel for pixel, else smoothly."""
    if image.shape[:2] == (height, width):
        return image
    whole = height % image.shape[0] == 0 and width % image.shape[1] == 0
    how = cv2.INTER_NEAREST if whole else cv2.INTER_LINEAR
    return np.asarray(cv2.resize(image, (width, height), interpolation=how), dtype=np.uint8)


def _write(area: Image, text: str) -> None:
    """Write a line of text into a strip; what does not fit is cut off."""
    strip = np.ascontiguousarray(area)
    font = cv2.FONT_HERSHEY_SIMPLEX
    cv2.putText(strip, text, (2, area.shape[0] - 7), font, 0.45, _INK, 1, cv2.LINE_AA)
    area[:] = strip
