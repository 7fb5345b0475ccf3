"""`objrl video`: bring a video, or a folder of pictures, into a frame store to learn from.

Any video that OpenCV reads will do; pictures of a folder are taken in the order of their names, 2
before 10. Parts of the picture can be taken as videos of their own (`--crops`), as SCALOR does with
the Grand Central Station (Jiang et al. 2020, arXiv 1910.02384, appendix D); `docs/synthetic.md`
has the command for it.

Letters: H W pixels of a frame, P parts of the picture.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Generator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
from tqdm import tqdm

import objrl
from objrl.pretrain.store import FrameStore, FrameWriter

Frame = npt.NDArray[np.uint8]

ENDINGS = (".png", ".jpg", ".jpeg")
"""Of the pictures of a folder; others are left out."""


@dataclass(frozen=True)
class VideoConfig:
    """Bring a video, or a folder of pictures, into a file of frames to learn from.

    Run it again after an interruption, or with a later end, and it goes on where it was.
    """

    source: Path
    """A video file, or a folder of .png, .jpg and .jpeg files."""
    out: Path | None = None
    """The HDF5 file to write, or to go on with; by default runs/<name of the source>.h5."""
    length: int | None = None
    """Cut the video into episodes of so many frames, of which train, val and test get some each; by
    default it is one episode, whose end is held out."""
    every: int = 1
    """Take one of so many frames; 1 takes all."""
    begin: int = 0
    """The first frame of the source that is taken, from 0."""
    end: int | None = None
    """The frame of the source before which to stop; by default there is none."""
    size: tuple[int, int] | None = None
    """Height and width that frames are brought to; by default they stay as they are."""
    crops: tuple[tuple[int, int, int, int], ...] = ()
    """Parts of the picture to take, each as a video of its own: x and y of the upper left corner,
    width and height in pixels, and again for the next; by default the whole picture."""
    seed: int = 0
    """Of the split into train, val and test; at least 0."""


def import_video(config: VideoConfig) -> Path:
    """Do what the configuration says and return the path of the store.

    Raises:
        FileNotFoundError: there is no such source.
        ValueError: a bad setting, a source without frames, one that cannot be read or whose
            pictures differ in size, or `out` holds something else.
        OSError: the disk is full; what was written before stays.
    """
    _check(config)
    source = _Source(config.source, mixed=config.size is not None)
    wanted = range(config.begin, config.end or sys.maxsize, config.every)
    with closing(source.read(wanted)) as frames:
        first = next(frames, None)
    if first is None:
        raise ValueError(
            f"{config.source}: expected a frame of number {config.begin}, got none that can be "
            f"read; it tells of {source.count} frames"
        )
    out = config.out or Path("runs", f"{config.source.resolve().stem}.h5")
    parts = _cut(config, first)
    known = range(wanted.start, min(wanted.stop, source.count), wanted.step)
    with FrameWriter(
        out,
        frame_shape=parts.shape[1:],
        action_shape=(),
        action_dtype=np.int64,
        attributes=_attributes(config, source),
        versions={"objrl_version": objrl.__version__, "opencv_version": cv2.__version__},
        asked=len(known) * len(parts),
    ) as writer:
        _fill(config, source, wanted, writer, len(known))
    with FrameStore(out) as store:
        print(f"written: {out}, {len(store):,} frames of {store.env_id}")
        if not store.complete:
            print(
                f"{config.source} is cut short or its header wrong: of {len(known):,} frames that "
                f"it tells of, {len(store) // len(parts):,} could be read"
            )
    return out


def _fill(
    config: VideoConfig, source: _Source, wanted: range, writer: FrameWriter, known: int
) -> None:
    """Take what the store still lacks."""
    parts = max(1, len(config.crops))
    done = len(writer) // parts  # all parts of a frame are committed together
    part = np.arange(parts)
    bar = tqdm(
        desc=str(writer.path), initial=len(writer), total=known * parts or None, unit="frame"
    )
    with bar, closing(source.read(wanted[done:])) as frames:
        for number, frame in enumerate(frames, done):
            clip, step = divmod(number, config.length or sys.maxsize)
            writer.append(
                frames=_cut(config, frame),
                action=np.zeros(parts, dtype=np.int64),
                reward=np.zeros(parts, dtype=np.float32),
                terminated=np.zeros(parts, dtype=np.bool_),
                truncated=np.full(parts, step + 1 == config.length),
                episode=clip * parts + part,
                stream=part,
                step=np.full(parts, step),
            )
            bar.update(parts)


def _cut(config: VideoConfig, frame: Frame) -> Frame:
    """Return (P, H, W, 3) the parts of a frame, in the size asked for."""
    height, width = frame.shape[:2]
    parts = []
    for x, y, w, h in config.crops or [(0, 0, width, height)]:
        if min(x, y) < 0 or min(w, h) < 1 or x + w > width or y + h > height:
            raise ValueError(
                f"crops: expected x, y, width and height within frames of {width} x {height} "
                f"(width x height), got {x} {y} {w} {h}"
            )
        part = frame[y : y + h, x : x + w]
        if config.size is not None and config.size != (h, w):
            smaller = config.size[0] * config.size[1] < h * w
            way = cv2.INTER_AREA if smaller else cv2.INTER_LINEAR
            part = _uint8(cv2.resize(part, config.size[::-1], interpolation=way))
        parts.append(part)
    if len({part.shape for part in parts}) > 1:
        raise ValueError("crops: expected parts of one size, or a --size for all, got several")
    return np.stack(parts)


class _Source:
    """A video file or a folder of pictures.

    Attributes:
        count: frames; of a video, what its header tells, and 0 where it tells nothing.
        bytes: of all files.
    """

    def __init__(self, path: Path, *, mixed: bool) -> None:
        """Look what is there; `mixed` allows pictures of different sizes."""
        if not path.exists():
            raise FileNotFoundError(f"{path}: there is no such video or folder")
        self._path, self._mixed = path, mixed
        self._pictures: list[Path] = []
        if path.is_dir():
            self._pictures = sorted(
                (file for file in path.iterdir() if _is_picture(file)), key=_in_natural_order
            )
            if not self._pictures:
                raise ValueError(
                    f"{path}: expected pictures that end in {', '.join(ENDINGS)}, got none"
                )
            self.count = len(self._pictures)
            self.bytes = sum(picture.stat().st_size for picture in self._pictures)
            return
        if _is_picture(path):
            raise ValueError(f"{path}: expected a video or a folder of pictures, got one picture")
        video = self._open()
        self.count = max(0, int(video.get(cv2.CAP_PROP_FRAME_COUNT)))
        video.release()
        self.bytes = path.stat().st_size

    def read(self, numbers: range) -> Generator[Frame]:
        """Yield the (H, W, 3) uint8 RGB frames of these numbers, as far as there are so many."""
        return self._read_pictures(numbers) if self._pictures else self._read_video(numbers)

    def _read_pictures(self, numbers: range) -> Generator[Frame]:
        shape = None
        for picture in self._pictures[numbers.start : numbers.stop : numbers.step]:
            frame = cv2.imread(str(picture), cv2.IMREAD_COLOR)
            if frame is None:
                raise ValueError(f"{picture}: expected a picture, got a file that cannot be read")
            shape = shape or frame.shape
            if frame.shape != shape and not self._mixed:
                (height, width), (h, w) = shape[:2], frame.shape[:2]
                raise ValueError(
                    f"{picture}: expected {width} x {height} pixels like those before, got "
                    f"{w} x {h}; bring all to one size by --size HEIGHT WIDTH"
                )
            yield _uint8(cv2.cvtColor(frame, cv2.COLOR_BGR2RGB))

    def _read_video(self, numbers: range) -> Generator[Frame]:
        video = self._open()
        try:
            here = 0
            for number in numbers:
                # Frame by frame, because to jump is inexact in many formats.
                while here <= number:
                    if not video.grab():
                        return
                    here += 1
                good, frame = video.retrieve()
                if not good:
                    raise ValueError(f"{self._path}: expected a frame, got number {number} damaged")
                yield _uint8(cv2.cvtColor(frame, cv2.COLOR_BGR2RGB))
        finally:
            video.release()

    def _open(self) -> cv2.VideoCapture:
        video = cv2.VideoCapture(str(self._path))
        if not video.isOpened():
            raise ValueError(
                f"{self._path}: expected a video that OpenCV reads, got another file or a damaged "
                "one; or bring its frames as a folder of pictures"
            )
        return video


def _uint8(frame: npt.NDArray[Any]) -> Frame:
    """For the type checker: OpenCV's functions keep the kind of number, its types do not say so."""
    return np.asarray(frame, dtype=np.uint8)


def _is_picture(path: Path) -> bool:
    return path.suffix.lower() in ENDINGS and not path.name.startswith(".")


def _in_natural_order(path: Path) -> tuple[list[str | int], str]:
    """Sort frame2.png before frame10.png."""
    pieces = re.split(r"([0-9]+)", path.name)
    return [int(piece) if number % 2 else piece for number, piece in enumerate(pieces)], path.name


def _attributes(config: VideoConfig, source: _Source) -> dict[str, str | int | float]:
    """Return what identifies a run: a file is only continued by one that says the same."""
    return {
        "env_id": f"video-{config.source.resolve().stem}",
        "policy": "none",
        "seed": config.seed,
        "source_bytes": source.bytes,
        "length": config.length or 0,
        "every": config.every,
        "begin": config.begin,
        "size": json.dumps(config.size),
        "crops": json.dumps(config.crops),
    }


def _check(config: VideoConfig) -> None:
    for name, least in (("every", 1), ("begin", 0), ("seed", 0), ("length", 1)):
        value = getattr(config, name)
        if value is not None and value < least:
            raise ValueError(f"{name}: expected at least {least}, got {value}")
    if config.end is not None and config.end <= config.begin:
        raise ValueError(f"end: expected more than begin ({config.begin}), got {config.end}")
    if config.size is not None and min(config.size) < 1:
        raise ValueError(f"size: expected a height and a width of at least 1, got {config.size}")
