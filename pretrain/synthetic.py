"""`objrl synthetic`: draw videos of moving shapes or digits, to learn from and to score on.

They are after SCALOR's task 1 (Jiang et al. 2020, arXiv 1910.02384, section 5.1); `sequences`
draws them, and `docs/synthetic.md` tells what is the paper's and what is ours. Sequence n is a
function of (seed, n) alone, so that a run that was killed goes on where it was.

The frames go to a store for `objrl pretrain`, an episode a sequence. Other sequences, drawn by a
seed of their own, go to a truth file (`objrl.pretrain.truth`) that also tells which object is
which, so that tracks can be scored. It has beside the usual arrays

| array | shape, dtype | meaning |
|---|---|---|
| `ids` | (M,) int64 | which object of its sequence each row of `boxes` is, from 0 |
| `sequence` | (N,) int64 | which sequence each frame is of, from 0; in order, frame by frame |
| `masks` | (N, H, W) uint8 | k where the object of the frame's k-th box is seen, from 1; else 0 |
| `about` | () str | the settings, as JSON |

Boxes and masks are of what is seen of an object. One of which hardly anything is seen
(`rooms.LEAST_SEEN`: fewer than 4 pixels) is not to be found, but ignored.

Letters: N frames, H W pixels, M true boxes.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np
from tqdm import tqdm

import objrl
from objrl.pretrain.rooms import find_objects
from objrl.pretrain.sequences import DENSITIES, VIEW, Density, Frames, draw, make_scene
from objrl.pretrain.sprites import Bank, make_bank
from objrl.pretrain.store import FrameStore, FrameWriter
from objrl.pretrain.truth import holds, write_truth

_STORED, _LABELLED = 0, 1  # join the seed: no labelled sequence is one of the store


@dataclass(frozen=True)
class SyntheticConfig:
    """Draw videos of moving sprites: frames to learn from, and labelled ones to score on.

    Run it again after an interruption, or with more sequences, and it goes on where it was.
    """

    which: Literal["shapes", "digits"] = "shapes"
    """shapes like dSprites', turned, or scikit-learn's handwritten digits."""
    density: Literal["VLD", "LD", "MD", "HD", "VHD"] = "MD"
    """From very low to very high: 2-4, 8-11, 18-24, 50-64 or 90-110 objects in the world, of 14,
    12, 10, 8 or 6 pixels; most of them are in view."""
    out: Path | None = None
    """The HDF5 file to write, or to go on with; by default runs/<which>_<density>.h5. The labelled
    frames go beside it, into a file that ends in .npz instead."""
    sequences: int = 2_000
    """Sequences that the file has in the end; 0 writes none, only labelled ones."""
    labelled: int = 64
    """Labelled sequences; 0 writes none."""
    length: int = 10
    """Frames of a sequence; 2 to 10,000. A longer one begins with the frames of a shorter one."""
    background: bool = False
    """Whether a coloured background moves behind the objects; else it is black."""
    kinds: tuple[str, ...] = ()
    """Of square, ellipse, heart and triangle, or of the digits, those to draw; by default the first
    three, or all digits. Score on others than those learnt from to see what carries over."""
    objects: tuple[int, int] | None = None
    """Fewest and most objects, in place of the density's; 1 to 255."""
    size: float | None = None
    """Of objects in pixels, in place of the density's; 4 to 32."""
    world: float | None = None
    """Side in pixels of the world that objects' centres keep to, in place of the density's; 64 to
    512. The frame shows its middle: the larger it is, the longer objects stay away."""
    speed: tuple[float, float] = (1.0, 3.0)
    """Least and most pixels that an object moves from frame to frame; 0 to 16."""
    seed: int = 0
    """Of the sequences and of the split into train, val and test; at least 0."""


def generate_sequences(config: SyntheticConfig) -> Path:
    """Do what the configuration says and return the path of the store, or else of the labels.

    Raises:
        ValueError: a bad setting, or a file that is there already holds something else.
        ImportError: digits are wanted and scikit-learn is not installed.
        OSError: the disk is full; what was written before stays.
    """
    density = _check(config)
    out = config.out or Path("runs", f"{config.which}_{config.density}.h5")
    labels = out.with_suffix(".npz")
    bank = make_bank(config.which, config.kinds)
    # What is wrong with either file shows before anything is written.
    unlabelled = config.labelled > 0 and not holds(labels, _about(config, bank))
    if not config.sequences:
        if unlabelled:
            _label(config, density, bank, labels)
        return labels
    with FrameWriter(
        out,
        frame_shape=(VIEW, VIEW, 3),
        action_shape=(),
        action_dtype=np.int64,
        attributes={**_attributes(config, bank), "policy": "none"},
        versions={"objrl_version": objrl.__version__},
        asked=config.sequences * config.length,
    ) as writer:
        if unlabelled:
            _label(config, density, bank, labels)
        _fill(config, density, bank, writer)
    with FrameStore(out) as store:
        print(f"written: {out}, {len(store):,} frames of {store.env_id}")
    return out


def _fill(config: SyntheticConfig, density: Density, bank: Bank, writer: FrameWriter) -> None:
    """Draw what the store still lacks."""
    length = config.length
    step = np.arange(length)
    done, end = len(writer) // length, config.sequences  # a sequence is committed as a whole
    for number in tqdm(
        range(done, end), desc=str(writer.path), initial=done, total=end, unit="sequence"
    ):
        writer.append(
            frames=_sequence(config, density, bank, _STORED, number)[0],
            action=np.zeros(length, dtype=np.int64),
            reward=np.zeros(length, dtype=np.float32),
            terminated=np.zeros(length, dtype=np.bool_),
            truncated=step == length - 1,
            episode=np.full(length, number),
            stream=np.zeros(length, dtype=np.int64),
            step=step,
        )


def _label(config: SyntheticConfig, density: Density, bank: Bank, path: Path) -> None:
    """Write the truth file."""
    frames: list[Frames] = []
    masks, boxes, ignore, ids = [], [], [], []
    for number in tqdm(range(config.labelled), desc=str(path), unit="sequence"):
        pictures, shown, kind = _sequence(config, density, bank, _LABELLED, number)
        for picture, objects in zip(pictures, shown, strict=True):
            seen, mask, aside = find_objects(objects)
            boxes += [(len(frames), kind[row], *box) for row, box in seen]
            ignore += [(len(frames), *box) for box in aside]
            ids += [row for row, _ in seen]
            frames.append(picture)
            masks.append(mask)
    write_truth(
        path,
        frames=np.stack(frames),
        classes=bank.kinds,
        boxes=boxes,
        ignore=ignore,
        game=_attributes(config, bank)["env_id"],
        ids=np.array(ids, dtype=np.int64),
        sequence=np.repeat(np.arange(config.labelled), config.length),
        masks=np.stack(masks),
        about=_about(config, bank),
    )
    print(f"written: {path}, {config.labelled:,} labelled sequences with {len(boxes):,} boxes")


def _sequence(
    config: SyntheticConfig, density: Density, bank: Bank, purpose: int, number: int
) -> tuple[Frames, Frames, list[int]]:
    """Return frames and ids as `draw` does, and the kind of each object."""
    lots = np.random.default_rng([config.seed, purpose, number])
    scene = make_scene(density, bank, lots, speed=config.speed, background=config.background)
    return *draw(scene, bank, config.length), bank.kind[scene.sprite].tolist()


def _attributes(config: SyntheticConfig, bank: Bank) -> dict[str, str | int | float]:
    """Return what identifies a run: a file is only continued by one that says the same."""
    density = _density(config)
    return {
        "env_id": f"{config.which}-{config.density}",
        "seed": config.seed,
        "length": config.length,
        "background": int(config.background),
        "kinds": " ".join(bank.kinds),
        "objects": " ".join(map(str, density.objects)),
        "size": float(density.size),
        "world": float(density.world),
        "speed": " ".join(str(float(pace)) for pace in config.speed),
    }


def _about(config: SyntheticConfig, bank: Bank) -> str:
    return json.dumps({**_attributes(config, bank), "labelled": config.labelled})


def _density(config: SyntheticConfig) -> Density:
    density = DENSITIES[config.density]
    return replace(
        density,
        objects=config.objects or density.objects,
        size=config.size or density.size,
        world=config.world or density.world,
    )


def _check(config: SyntheticConfig) -> Density:
    for name, least in (("sequences", 0), ("labelled", 0), ("seed", 0)):
        if getattr(config, name) < least:
            raise ValueError(f"{name}: expected at least {least}, got {getattr(config, name)}")
    if not config.sequences and not config.labelled:
        raise ValueError("sequences: expected some, or --labelled some, got 0 of both")
    if not 2 <= config.length <= 10_000:
        raise ValueError(f"length: expected 2 to 10,000 frames, got {config.length:,}")
    for name, least, most in (("size", 4, 32), ("world", VIEW, 512)):
        value = getattr(config, name)
        if value is not None and not least <= value <= most:
            raise ValueError(f"{name}: expected {least} to {most} pixels, got {value}")
    for name, (low, high), least, most in (
        ("objects", config.objects or (1, 1), 1, 255),
        ("speed", config.speed, 0, 16),
    ):
        if not least <= low <= high <= most:
            raise ValueError(
                f"{name}: expected the least and the most, from {least} to {most}, "
                f"got {low} and {high}"
            )
    if config.out is not None and config.out.suffix == ".npz":
        raise ValueError(
            f"out: expected a name like shapes.h5, got {config.out}; .npz is for labels"
        )
    return _density(config)
