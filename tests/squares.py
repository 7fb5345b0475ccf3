"""What the tests of training share: frames of wandering squares, a store of them, a short run."""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from safetensors.torch import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import Tensor

from objrl.pretrain.store import FrameWriter
from objrl.pretrain.train import TrainConfig

SIZE, SIDE = 64, 6
STEPS = 40
"""Of the run that others are compared with."""


def make_frames(count: int, seed: int = 0) -> npt.NDArray[np.uint8]:
    """(count, 64, 64, 3) uint8; each frame has its squares in places of its own."""
    rng = np.random.default_rng(seed)
    frames = np.full((count, SIZE, SIZE, 3), (20, 20, 60), np.uint8)
    frames[:, -8:] = (90, 60, 0)
    for frame in frames:
        for colour in ((250, 30, 30), (30, 250, 30), (240, 240, 240)):
            x, y = rng.integers(0, (SIZE - SIDE, SIZE - SIDE - 10))
            frame[y : y + SIDE, x : x + SIDE] = colour
    return frames


def write_store(
    path: Path,
    frames: npt.NDArray[np.uint8],
    *,
    episode: int = 10,
    env_id: str = "MovingSquares-v0",
    asked: int | None = None,
    last_two: int | None = None,
) -> Path:
    """Write frames as episodes of that length."""
    rows = np.arange(len(frames))
    attributes: dict[str, str | int | float] = {"env_id": env_id, "policy": "random", "seed": 0}
    if last_two is not None:
        attributes["last_two"] = last_two
    with FrameWriter(
        path,
        frame_shape=frames.shape[1:],
        action_shape=(),
        action_dtype=np.int64,
        attributes=attributes,
        asked=asked or len(frames),
    ) as writer:
        writer.append(
            frames=frames,
            action=np.zeros(len(frames), np.int64),
            reward=np.zeros(len(frames), np.float32),
            terminated=rows % episode == episode - 1,
            truncated=np.zeros(len(frames), np.bool_),
            episode=rows // episode,
            stream=np.zeros(len(frames), np.int64),
            step=rows % episode,
        )
    return path


def config(data: Path, out: Path, **changes: Any) -> TrainConfig:
    plain = TrainConfig(data=(data,), out=out, steps=3, batch=2, threads=1, device="cpu")
    return dataclasses.replace(plain, **changes)


def command(data: Path, out: Path, *more: str) -> list[str]:
    words = f"-m objrl.cli pretrain --data {data} --out {out} --batch 2 --threads 1 --device cpu"
    return [sys.executable, *words.split(), *more]


def tensors(path: Path) -> dict[str, Tensor]:
    return load_file(path / "weights.safetensors" if path.is_dir() else path)


def same(ours: dict[str, Tensor], theirs: dict[str, Tensor]) -> bool:
    assert ours.keys() == theirs.keys()
    return all(torch.equal(ours[name], theirs[name]) for name in ours)


def events(out: Path) -> EventAccumulator:
    board = EventAccumulator(str(out / "logs"), size_guidance={"images": 0, "scalars": 0})
    board.Reload()
    return board
