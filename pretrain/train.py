"""`objrl pretrain`: what is asked for, checked before anything costs time; `run` does the work."""

from __future__ import annotations

import dataclasses
import os
from contextlib import nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import cv2
import torch
from lightning_fabric import Fabric
from lightning_fabric.loggers.tensorboard import TensorBoardLogger
from lightning_fabric.strategies.ddp import DDPStrategy

from objrl.checkpoint import Checkpoint, load_checkpoint
from objrl.locking import writing
from objrl.pretrain.collect import CollectConfig, collect, default_store
from objrl.pretrain.health import Course
from objrl.pretrain.joint import JointStore
from objrl.pretrain.mixture_presets import MixtureRecipe
from objrl.pretrain.presets import Recipe, preset
from objrl.pretrain.run import CHECKPOINT, LOGS, WEIGHTS, Run
from objrl.pretrain.scenes import Which
from objrl.pretrain.stills import ScenesConfig, generate_stills
from objrl.pretrain.store import EmptyStoreError, FrameStore

_FRAMES = 20_000


@dataclass(frozen=True)
class TrainConfig:
    """Train an encoder on frames; ends with weights, a picture and a report.

    From a file of frames (--data), or for a game (--env), whose frames are collected first. The
    presets of scene mixtures (iodine-tetris, …) name the scenes that they are for; with neither
    option those are drawn.
    """

    data: tuple[Path, ...] = ()
    """HDF5 file of frames, from `objrl collect`; several, of as many games, make one detector."""
    env: str | None = None
    """Game to collect frames of, e.g. ALE/Pong-v5, into runs/<game>.h5; what is there is reused."""
    frames: int | None = None
    """Without --data, how many frames there should be; by default 20,000, or what the file has."""
    preset: str = "space-fast"
    """Recipe; those with `paper` in their names are the papers' and want a GPU."""
    out: Path | None = None
    """Folder of the run; by default runs/<data>-<preset>, or runs/<preset> of scenes that it draws
    itself."""
    minutes: float | None = None
    """Wall time of training; the number of steps follows from the speed of a few trial steps."""
    steps: int | None = None
    """Number of steps; by default the preset's, unless minutes are given."""
    batch: int | None = None
    """Frames a step over all devices; by default the preset's."""
    seed: int = 0
    """Of weights, batches and samples; at least 0."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where to train; auto takes CUDA where there is one."""
    devices: int = 1
    """How many of them; on a CPU, processes."""
    precision: Literal["32-true", "bf16-mixed"] = "32-true"
    """bf16-mixed nearly halves the time of scene mixtures on a CPU with avx512_bf16 or AMX;
    on CUDA it has not been measured yet."""
    threads: int | None = None
    """CPU threads; by default as many as there are cores."""
    resume: bool = False
    """Go on from the folder's last checkpoint; the other options must be those of the run."""
    checkpoint_every: float = 60.0
    """Seconds between checkpoints; 0 writes one after every step."""
    log_every: int = 20
    """Steps between scalars."""
    picture_every: int = 200
    """Steps between pictures."""


def train(config: TrainConfig) -> Path:
    """Train and return the path of the weights file.

    Raises:
        FileNotFoundError: no such data, or nothing to resume.
        FileExistsError: the folder holds a run, and `resume` was not asked for.
        ValueError: bad preset, setting, data or checkpoint, or a folder that is being written.
        FloatingPointError: the loss is no longer finite; the last checkpoint stays.
        OSError: the disk is full; the last checkpoint stays.
        KeyboardInterrupt: asked to stop, by Ctrl-C or SIGTERM; a checkpoint was written.
    """
    recipe = _recipe(config)
    _check(config, recipe)
    out = _folder(config)
    # Of several processes the one that writes, which has started the others.
    with writing(out) if os.environ.get("LOCAL_RANK", "0") == "0" else nullcontext():
        resumed = _checkpoint(config, out)
        paths = config.data or (_made(config, recipe),)
        with FrameStore(paths[0]) if len(paths) == 1 else JointStore(paths) as store:
            fabric = _fabric(config, out, resumed)
            fabric.launch()
            if config.threads is not None:
                torch.set_num_threads(config.threads)  # after the launch, which sets them too
                cv2.setNumThreads(config.threads)  # of the teacher
            fabric.print(f"learns from {len(store):,} frames of {', '.join(map(str, paths))}")
            run = Run(fabric, store, config, recipe, out, resumed)
            run.fit()
            return run.export()


def _check(config: TrainConfig, recipe: Recipe) -> None:
    both, neither = config.data and config.env, not config.data and not config.env
    if both or (neither and not (isinstance(recipe, MixtureRecipe) and recipe.scenes)):
        given = ", ".join(map(str, config.data)) or "nothing"
        raise ValueError(
            f"expected one of --data and --env, got data={given} and "
            f"env={config.env or 'nothing'}; --data takes a file from `objrl collect`, --env "
            "ALE/Pong-v5 collects frames itself"
        )
    if config.frames is not None and config.data:
        raise ValueError("frames: expected it without --data, which takes the file as it is")
    if config.minutes is not None and config.steps is not None:
        raise ValueError("expected minutes or steps, got both; give one")
    for name, least in (
        *(("steps", 1), ("batch", 1), ("threads", 1), ("devices", 1), ("frames", 1)),
        *(("seed", 0), ("log_every", 1), ("picture_every", 1), ("checkpoint_every", 0)),
    ):
        value = getattr(config, name)
        if value is not None and not value >= least:
            raise ValueError(f"{name}: expected at least {least}, got {value}")
    if config.minutes is not None and not config.minutes > 0:
        raise ValueError(f"minutes: expected more than 0, got {config.minutes}")
    if config.device == "cuda" and config.devices > torch.cuda.device_count():
        raise ValueError(
            f"device: expected {config.devices} CUDA device(s), found "
            f"{torch.cuda.device_count()}; take --device cpu, or a torch built for CUDA"
        )


def _recipe(config: TrainConfig) -> Recipe:
    """Return the preset with what the command line overrides."""
    recipe = preset(config.preset)
    recipe = dataclasses.replace(
        recipe, steps=config.steps or recipe.steps, batch=config.batch or recipe.batch
    )
    if recipe.batch % config.devices:
        raise ValueError(
            f"batch: expected a multiple of the {config.devices} devices, got {recipe.batch}"
        )
    return recipe


def _folder(config: TrainConfig) -> Path:
    """Return the run's folder."""
    name = config.preset
    if config.data or config.env:
        data = config.data or (default_store(config.env or ""),)
        name = f"{data[0].stem if len(data) == 1 else f'joint{len(data)}'}-{name}"
    return config.out or Path("runs") / name


def _checkpoint(config: TrainConfig, out: Path) -> Checkpoint | None:
    """Return the checkpoint of a run that goes on."""
    if config.resume:
        return load_checkpoint(out / CHECKPOINT)
    if any((out / name).exists() for name in (CHECKPOINT, WEIGHTS)):
        raise FileExistsError(f"{out} holds a run; go on with --resume, or choose another --out")
    return None


def _made(config: TrainConfig, recipe: Recipe) -> Path:
    """Return the file with frames that nobody has given."""
    if config.env is None:
        assert isinstance(recipe, MixtureRecipe)  # others have nothing to learn from then
        assert recipe.scenes is not None
        return _drawn(config, recipe.scenes)
    return _collected(config)


def _drawn(config: TrainConfig, which: Which) -> Path:
    """Return the file with the scenes that a recipe is for, drawing what is missing."""
    path = Path("runs", f"{which}_own.h5")
    scenes = ScenesConfig(which, out=path, labelled=0)
    with suppress(FileNotFoundError, EmptyStoreError), FrameStore(path) as store:
        if store.complete and len(store) >= (config.frames or 0):
            return path
    return generate_stills(dataclasses.replace(scenes, frames=config.frames or _FRAMES))


def _collected(config: TrainConfig) -> Path:
    """Return the file with a game's frames, collecting what is missing."""
    path = default_store(config.env or "")
    frames = config.frames or _FRAMES
    policy = "wander"
    # One that was killed before its first frame is begun again.
    with suppress(FileNotFoundError, EmptyStoreError), FrameStore(path) as store:
        if store.env_id != config.env:
            raise ValueError(
                f"{path}: expected frames of {config.env}, got some of {store.env_id}; name "
                "the file to use with --data, or collect another with `objrl collect`"
            )
        if store.complete and len(store) >= (config.frames or 0):
            return path
        frames = max(frames, len(store))
        if store.attributes["policy"] == "random":  # a file is gone on with as it was begun
            policy = "random"
    return collect(CollectConfig(env=config.env, out=path, frames=frames, policy=policy))


def _fabric(config: TrainConfig, out: Path, resumed: Checkpoint | None) -> Fabric:
    cuda = torch.cuda.is_available() and config.device != "cpu"
    # Not every term reaches every parameter, and which ones do changes during a run.
    # Buffers never change, or (GECO's) change alike everywhere.
    spread = DDPStrategy(find_unused_parameters=True, broadcast_buffers=False)
    # What was logged after the checkpoint will be logged again: let the board forget it.
    purge = None
    if resumed:
        purge = Course(**resumed.about["course"]).before + resumed.about["step"]
    return Fabric(
        accelerator="cuda" if cuda else "cpu",
        devices=config.devices,
        strategy=spread if config.devices > 1 else "auto",
        precision=config.precision,
        loggers=TensorBoardLogger(out, name="", version=LOGS, purge_step=purge),
    )
