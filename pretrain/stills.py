"""`objrl scenes`: draw the still scenes of IODINE, MONet and ECON, to learn from and to score on.

`scenes` draws them. Scene n is a function of (seed, n) alone, so that a run that was killed goes on
where it was. The frames go to a store for `objrl pretrain`, each an episode of its own. Others,
drawn by a seed of their own, go to a truth file (`objrl.pretrain.truth`) with all that there is to
know of them. It has beside the usual arrays

| array | shape, dtype | meaning |
|---|---|---|
| `masks` | (N, H, W) uint8 | k where the object of the frame's k-th box is seen, from 1; else 0 |
| `whole` | (M, H, W) bool | where the object of each row of `boxes` is, also behind others |
| `factors` | (M, F) float32 | what there is to know of it |
| `factor_names` | (F,) str | `scenes.FACTORS` |
| `about` | () str | the settings, as JSON |

Boxes and masks are of what is seen of an object. One of which hardly anything is seen
(`rooms.LEAST_SEEN`) is not to be found, but ignored.

Letters: N frames, H W pixels, M true boxes, F factors.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from tqdm import tqdm

import objrl
from objrl.pretrain.rooms import find_objects
from objrl.pretrain.scenes import FACTORS, Fill, Still, Which, draw_still, kinds_of, side_of
from objrl.pretrain.store import FrameStore, FrameWriter
from objrl.pretrain.truth import holds, write_truth

_FRAMES, _LABELLED = 0, 1  # join the seed: no labelled scene is one of the store


@dataclass(frozen=True)
class ScenesConfig:
    """Draw still scenes of figures: frames to learn from, and labelled ones to score on.

    Run it again after an interruption, or with more frames, and it goes on where it was.
    """

    which: Which = "tetris"
    """Which set: tetris; dsprites on grey, on any colour, or white on black; shapes; ECON's circle,
    square and triangle in their own or in random colours."""
    fill: Fill = "own"
    """own is the papers'; same gives all objects of a scene one colour, textured stripes of two."""
    out: Path | None = None
    """The HDF5 file to write, or to go on with; by default runs/<which>_<fill>.h5. The labelled
    frames go beside it, into a file that ends in .npz instead."""
    frames: int = 60_000
    """Frames that the file has in the end; as many as most papers'."""
    labelled: int = 320
    """Labelled frames, as most papers score on; 0 writes none."""
    side: int | None = None
    """Side of a frame, in pixels; by default the papers'. 16 to 256."""
    seed: int = 0
    """Of the scenes and of the split into train, val and test; at least 0."""


def generate_stills(config: ScenesConfig) -> Path:
    """Do what the configuration says and return the path of the store.

    Raises:
        ValueError: a bad setting, or a file that is there already holds something else.
        OSError: the disk is full; what was written before stays.
    """
    _check(config)
    out = config.out or Path("runs", f"{config.which}_{config.fill}.h5")
    labels, side = out.with_suffix(".npz"), _side(config)
    # What is wrong with either file shows before anything is written.
    unlabelled = config.labelled > 0 and not holds(labels, _about(config))
    with FrameWriter(
        out,
        frame_shape=(side, side, 3),
        action_shape=(),
        action_dtype=np.int64,
        attributes={**_attributes(config), "policy": "none"},
        versions={"objrl_version": objrl.__version__},
        asked=config.frames,
    ) as writer:
        if unlabelled:
            _label(config, labels)
        done, end = len(writer), config.frames
        for number in tqdm(range(done, end), desc=str(out), initial=done, total=end, unit="frame"):
            writer.append_still(_draw(config, _FRAMES, number).frame, number)
    with FrameStore(out) as store:
        print(f"written: {out}, {len(store):,} frames of {store.env_id}")
    return out


def _label(config: ScenesConfig, path: Path) -> None:
    """Write the truth file."""
    frames, masks, boxes, ignore, whole, factors = [], [], [], [], [], []
    for number in tqdm(range(config.labelled), desc=str(path), unit="frame"):
        still = _draw(config, _LABELLED, number)
        seen, mask, aside = find_objects(still.ids)
        frames.append(still.frame)
        masks.append(mask)
        boxes += [(number, still.kind[row], *box) for row, box in seen]
        ignore += [(number, *box) for box in aside]
        whole += [still.whole[row] for row, _ in seen]
        factors += [still.factors[row] for row, _ in seen]
    write_truth(
        path,
        frames=np.stack(frames),
        classes=kinds_of(config.which),
        boxes=boxes,
        ignore=ignore,
        game=_attributes(config)["env_id"],
        masks=np.stack(masks),
        whole=np.stack(whole),
        factors=np.stack(factors),
        factor_names=FACTORS,
        about=_about(config),
    )
    print(f"written: {path}, {config.labelled:,} labelled frames with {len(boxes):,} objects")


def _draw(config: ScenesConfig, purpose: int, number: int) -> Still:
    rng = np.random.default_rng([config.seed, purpose, number])
    return draw_still(config.which, rng, fill=config.fill, side=_side(config))


def _side(config: ScenesConfig) -> int:
    return config.side or side_of(config.which)


def _attributes(config: ScenesConfig) -> dict[str, str | int | float]:
    """Return what identifies a run: a file is only continued by one that says the same."""
    return {
        "env_id": config.which if config.fill == "own" else f"{config.which}-{config.fill}",
        "seed": config.seed,
        "side": _side(config),
    }


def _about(config: ScenesConfig) -> str:
    return json.dumps({**_attributes(config), "labelled": config.labelled})


def _check(config: ScenesConfig) -> None:
    for name, least in (("frames", 1), ("labelled", 0), ("seed", 0)):
        if getattr(config, name) < least:
            raise ValueError(f"{name}: expected at least {least}, got {getattr(config, name)}")
    if not 16 <= _side(config) <= 256:
        raise ValueError(f"side: expected 16 to 256 pixels, got {config.side}")
    if config.out is not None and config.out.suffix == ".npz":
        raise ValueError(
            f"out: expected a name like scenes.h5, got {config.out}; .npz is for labels"
        )
