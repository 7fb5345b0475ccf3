"""`objrl rooms`: draw SPACE's 3D rooms, to learn from and to score on.

Room n is a function of (seed, n) alone, so that a run that was killed goes on where it was.
`studio` draws the rooms; how they differ from the paper's is in `docs/rooms.md`.

The frames go to a store for `objrl pretrain`, each an episode of its own. Others, whose rooms are
drawn by a seed of their own, go with boxes and masks to a truth file for `objrl evaluate --truth`
(`objrl.pretrain.truth`), which has beside the usual arrays

| array | shape, dtype | meaning |
|---|---|---|
| `masks` | (N, H, W) uint8 | k where the object of the frame's k-th box is seen, from 1; else 0 |
| `about` | () str | the settings, as JSON |

Boxes and masks are of what is seen of an object. An object of which less than a `LEAST_SEEN`-th of
the picture is seen is not to be found, but ignored.

Letters: N frames, H W pixels.
"""

from __future__ import annotations

import importlib.metadata
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt
from tqdm import tqdm

import objrl
from objrl.pretrain.store import FrameStore, FrameWriter
from objrl.pretrain.studio import SHAPES, Studio, make_scene
from objrl.pretrain.truth import holds, write_truth

LEAST_SEEN = 1024
"""An object counts when this part of the picture shows it: 16 pixels of 128 x 128."""

_FRAMES, _LABELLED = 0, 1  # join the seed: no labelled room is one of the store


@dataclass(frozen=True)
class RoomsConfig:
    """Draw rooms with objects in them: frames to learn from, and labelled ones to score on.

    Run it again after an interruption, or with more frames, and it goes on where it was.
    """

    which: Literal["small", "large"] = "small"
    """small has 4 to 8 objects, large 18 to 24."""
    out: Path | None = None
    """The HDF5 file to write, or to go on with; by default runs/rooms_<which>.h5. The labelled
    frames go beside it, into a file that ends in .npz instead."""
    frames: int = 77_000
    """Frames that the file has in the end; as many as the paper's."""
    labelled: int = 256
    """Labelled frames; 0 writes none."""
    seed: int = 0
    """Of the rooms and of the split into train, val and test; at least 0."""
    size: int = 128
    """Side of a frame, in pixels; 32 to 1024."""
    shadows: bool = True
    """Whether objects cast shadows; they take most of the time."""


def generate_rooms(config: RoomsConfig) -> Path:
    """Do what the configuration says and return the path of the store.

    Raises:
        ValueError: a bad setting, or a file that is there already holds something else.
        ImportError: MuJoCo is not installed, or has nothing to draw with.
        OSError: the disk is full; what was written before stays.
    """
    _check(config)
    out = config.out or Path("runs", f"rooms_{config.which}.h5")
    labels = out.with_suffix(".npz")
    # What is wrong with either file shows before anything is written.
    unlabelled = config.labelled > 0 and not holds(labels, _about(config))
    studio = Studio(config.which, config.size, config.shadows)
    try:
        with FrameWriter(
            out,
            frame_shape=(config.size, config.size, 3),
            action_shape=(),
            action_dtype=np.int64,
            attributes={**_attributes(config), "policy": "none"},
            versions=_versions(studio),
            asked=config.frames,
        ) as writer:
            if unlabelled:
                _label(config, studio, labels)
            _fill(config, studio, writer)
    finally:
        studio.close()
    with FrameStore(out) as store:
        print(f"written: {out}, {len(store):,} frames of {store.env_id}")
    return out


def _fill(config: RoomsConfig, studio: Studio, writer: FrameWriter) -> None:
    """Draw what the store still lacks."""
    done, end = len(writer), config.frames
    for number in tqdm(
        range(done, end), desc=str(writer.path), initial=done, total=end, unit="frame"
    ):
        scene = make_scene(config.which, _lots(config, _FRAMES, number))
        writer.append_still(studio.draw(scene), number)


def _label(config: RoomsConfig, studio: Studio, path: Path) -> None:
    """Write the truth file."""
    frames, masks, boxes, ignore = [], [], [], []
    for number in tqdm(range(config.labelled), desc=str(path), unit="frame"):
        scene = make_scene(config.which, _lots(config, _LABELLED, number))
        frame, ids = studio.draw_with_ids(scene)
        seen, mask, aside = find_objects(ids)
        frames.append(frame)
        masks.append(mask)
        boxes += [(number, scene.shape[row], *box) for row, box in seen]
        ignore += [(number, *box) for box in aside]
    write_truth(
        path,
        frames=np.stack(frames),
        classes=SHAPES,
        boxes=boxes,
        ignore=ignore,
        game=_attributes(config)["env_id"],
        masks=np.stack(masks),
        about=_about(config),
    )
    print(f"written: {path}, {config.labelled:,} labelled frames with {len(boxes):,} objects")


Box = tuple[int, int, int, int]
"""x, y of the upper left corner, width, height; in pixels."""


def find_objects(
    ids: npt.NDArray[np.int64],
) -> tuple[list[tuple[int, Box]], npt.NDArray[np.uint8], list[Box]]:
    """Find what is seen of each object.

    Args:
        ids: (H, W) int64, k where object k is seen, from 1; 0 where none is.

    Returns:
        Row k - 1 and box of each object that counts; (H, W) uint8 mask, which has 1 where the first
        of them is seen, and so on; boxes of objects of which too little is seen.
    """
    mask = np.zeros(ids.shape, dtype=np.uint8)
    seen: list[tuple[int, Box]] = []
    aside: list[Box] = []
    for number in np.unique(ids[ids > 0]):
        y, x = np.nonzero(ids == number)
        left, top = int(x.min()), int(y.min())
        box = left, top, int(x.max()) - left + 1, int(y.max()) - top + 1
        if len(x) * LEAST_SEEN < ids.size:
            aside.append(box)
        else:
            seen.append((int(number) - 1, box))
            mask[y, x] = len(seen)
    return seen, mask, aside


def _lots(config: RoomsConfig, purpose: int, number: int) -> np.random.Generator:
    return np.random.default_rng([config.seed, purpose, number])


def _attributes(config: RoomsConfig) -> dict[str, str | int | float]:
    """Return what identifies a run: a file is only continued by one that says the same."""
    return {
        "env_id": f"rooms-{config.which}",
        "seed": config.seed,
        "size": config.size,
        "shadows": int(config.shadows),
    }


def _about(config: RoomsConfig) -> str:
    return json.dumps({**_attributes(config), "labelled": config.labelled})


def _versions(studio: Studio) -> dict[str, str]:
    return {
        "objrl_version": objrl.__version__,
        "mujoco_version": importlib.metadata.version("mujoco"),
        "mujoco_backend": studio.backend,
    }


def _check(config: RoomsConfig) -> None:
    for name, least in (("frames", 1), ("labelled", 0), ("seed", 0), ("size", 32)):
        if getattr(config, name) < least:
            raise ValueError(f"{name}: expected at least {least}, got {getattr(config, name)}")
    if config.size > 1024:
        raise ValueError(f"size: expected at most 1024, got {config.size}")
    if config.out is not None and config.out.suffix == ".npz":
        raise ValueError(
            f"out: expected a name like rooms.h5, got {config.out}; .npz is for labels"
        )
