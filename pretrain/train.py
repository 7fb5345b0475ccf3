"""The one training loop: any task, CPU or CUDA, one device or several, resumable.

Every step is a function of (seed, step) and the checkpoint, so that a run that was killed and
resumed ends bit-equal on a CPU with one that was not.
"""

from __future__ import annotations

import dataclasses
import json
import platform
import time
import warnings
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from lightning_fabric import Fabric
from lightning_fabric.loggers.tensorboard import TensorBoardLogger
from tqdm import tqdm

from objrl.draw import write_png
from objrl.models.median import Image
from objrl.perceiver import FramePerceiver
from objrl.pretrain.checkpoint import load_checkpoint, restore, save_checkpoint
from objrl.pretrain.configure import configure, look
from objrl.pretrain.presets import SpaceRecipe, preset
from objrl.pretrain.report import final_metrics, picture
from objrl.pretrain.space_task import Batch, SpaceTask
from objrl.pretrain.store import FrameStore
from objrl.weights.files import write_atomically
from objrl.weights.registry import save_weights

CHECKPOINT, WEIGHTS, SHEET, REPORT = (
    "checkpoint.safetensors",
    "weights.safetensors",
    "sheet.png",
    "report.json",
)


@dataclass(frozen=True)
class TrainConfig:
    """Train an encoder on collected frames; ends with weights, a picture and a report."""

    data: Path
    """HDF5 file of frames, from `objrl collect`."""
    preset: str = "space-fast"
    """Recipe; `space-paper-*` are the paper's and want a GPU."""
    out: Path | None = None
    """Folder of the run; by default runs/<data>-<preset>."""
    minutes: float | None = None
    """Wall time of training; the number of steps follows from the speed of the first ones."""
    steps: int | None = None
    """Number of steps; by default the preset's, unless minutes are given."""
    batch: int | None = None
    """Frames a step over all devices; by default the preset's."""
    seed: int = 0
    """Of weights, batches and samples."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where to train; auto takes CUDA where there is one."""
    devices: int = 1
    """How many of them."""
    precision: Literal["auto", "32-true", "bf16-mixed"] = "auto"
    """auto is bf16-mixed on CUDA, 32-true on a CPU."""
    threads: int | None = None
    """CPU threads of torch; by default as many as it finds cores."""
    resume: bool = False
    """Go on from the folder's last checkpoint."""
    checkpoint_every: float = 60.0
    """Seconds between checkpoints."""
    log_every: int = 20
    """Steps between scalars."""
    picture_every: int = 200
    """Steps between pictures."""


def train(config: TrainConfig) -> Path:
    """Train and return the path of the weights file.

    Raises:
        FileNotFoundError: no such data.
        FileExistsError: the folder holds a run, and `resume` was not asked for.
        ValueError: bad preset, lengths, data or checkpoint.
        FloatingPointError: the loss is no longer finite; the last checkpoint stays.
    """
    recipe = _recipe(config)
    out = config.out or Path("runs") / f"{config.data.stem}-{config.preset}"
    _check_folder(out, config.resume)
    if config.threads:
        torch.set_num_threads(config.threads)
    fabric = Fabric(
        accelerator=config.device,
        devices=config.devices,
        precision=_precision(config),
        loggers=TensorBoardLogger(out, name="", version="logs"),
    )
    fabric.launch()
    with FrameStore(config.data) as store:
        run = _Run(fabric, store, config, recipe, out)
        run.train()
        return run.export()


class _Run:
    """One run: what the loop needs to know, and how far it is."""

    def __init__(
        self, fabric: Fabric, store: FrameStore, config: TrainConfig, recipe: SpaceRecipe, out: Path
    ) -> None:
        self.fabric, self.store, self.config, self.out = fabric, store, config, out
        self.indices = store.split("train")
        found = None
        if recipe.self_configure:
            found = look(_sample(store, "train", 1500))
            recipe = configure(recipe, found)
            fabric.print(f"found in the frames: {found.describe()}")
        self.recipe = recipe
        torch.manual_seed(config.seed)
        self.task = SpaceTask(recipe, found)
        self.optimizers = self.task.optimizers()
        self.step, self.seconds, self.warned = 0, 0.0, ""
        # With --minutes the first steps are timed; until then the length is unknown.
        self.steps: int | None = None if config.minutes else recipe.steps
        self.about = {
            "preset": config.preset,
            "recipe": json.loads(json.dumps(dataclasses.asdict(recipe))),
            "data": store.fingerprint(),
            "seed": config.seed,
            "found": found.describe() if found else {},
        }
        if config.resume:
            self._resume()
        self.objective, *self.optimizers = fabric.setup(self.task, *self.optimizers)

    @property
    def _first(self) -> bool:
        """Whether this process is the one that writes."""
        return self.fabric.is_global_zero

    def _resume(self) -> None:
        path = self.out / CHECKPOINT
        tensors, state = load_checkpoint(path)
        for name, value in self.about.items():
            if state[name] != value:
                raise ValueError(
                    f"{path}: expected a run of the same {name} as asked for, but it differs; "
                    "resume with the same options and data, or choose another --out"
                )
        restore(tensors, self.task.model, self.optimizers)
        self.step, self.seconds, self.steps = state["step"], state["seconds"], state["steps"]
        self.fabric.print(f"resumed at step {self.step}")

    def train(self) -> None:
        """Run to the end, leaving a checkpoint now and then and at an interruption."""
        self.task.train()
        began, saved = time.monotonic() - self.seconds, time.monotonic()
        bar = tqdm(initial=self.step, total=self.steps, unit="step", disable=not self._first)
        with _prefetch(self) as batches, bar:
            try:
                for batch in batches:
                    self._one_step(batch, bar)
                    self.seconds = time.monotonic() - began
                    self._settle_length(bar)
                    if time.monotonic() - saved > self.config.checkpoint_every:
                        self._save()
                        saved = time.monotonic()
                    if self.config.minutes and self.seconds > 60 * self.config.minutes:
                        break
            except KeyboardInterrupt:
                self._save()
                raise
        self._save()

    def _settle_length(self, bar: tqdm[Any]) -> None:
        """Fix the number of steps from the speed so far: the schedules need an end."""
        if self.steps is None and self.config.minutes and self.step >= 20:
            pace = self.seconds / self.step
            self.steps = max(self.step + 1, int(60 * self.config.minutes / pace))
            bar.total = self.steps

    def _one_step(self, batch: Batch, bar: tqdm[Any]) -> None:
        # Noise is a function of the step: nothing to save, and a resumed run draws the same.
        torch.manual_seed(_mix(self.config.seed, self.step, self.fabric.global_rank))
        at = self.step if self.recipe.unit == "steps" else self.step / (self.steps or 10**9)
        total, terms = self.objective(batch.to(self.fabric.device), at)
        for optimizer in self.optimizers:
            optimizer.zero_grad()
        self.fabric.backward(total)
        norm = torch.nn.utils.clip_grad_norm_(self.task.parameters(), self.recipe.clip)
        if self.step % self.config.log_every == 0:
            self._log({**terms, "gradient": norm}, bar)
        for optimizer in self.optimizers:
            optimizer.step()
        if self.step % self.config.picture_every == 0 and self._first:
            image = picture(FramePerceiver(self.task.model), _sample(self.store, "val", 4))
            logger: Any = self.fabric.logger
            logger.experiment.add_image("frames", image, self.step, dataformats="HWC")
            self.task.train()
        self.step += 1

    def _log(self, terms: dict[str, torch.Tensor], bar: tqdm[Any]) -> None:
        values = {name: float(term) for name, term in terms.items()}
        if not np.isfinite(values["loss"]) or not np.isfinite(values["gradient"]):
            raise FloatingPointError(
                f"the loss is not finite at step {self.step}: {values}; the checkpoint before "
                f"is in {self.out}; a lower learning rate or 32-true precision may help"
            )
        self.fabric.log_dict(values, self.step)
        bar.set_postfix(loss=f"{values['loss']:.0f}", objects=f"{values['objects']:.1f}")
        bar.update(self.step - bar.n)
        # The first tenth may look like a collapse without being one.
        verdict = self.task.verdict(values["objects"])
        if verdict and verdict != self.warned and self.step > 0.1 * (self.steps or 10**9):
            warnings.warn(f"step {self.step}: {verdict}", stacklevel=2)
            self.warned = verdict

    def _save(self) -> None:
        if self._first:
            about = {**self.about, "step": self.step, "seconds": self.seconds, "steps": self.steps}
            save_checkpoint(self.out / CHECKPOINT, self.task.model, self.optimizers, about)
        self.fabric.barrier()

    def export(self) -> Path:
        """Measure on held-out frames and write weights, picture and report."""
        path = self.out / WEIGHTS
        if not self._first:
            return path
        held_out = _sample(self.store, "val", 256)
        metrics = final_metrics(self.task, held_out)
        training = {
            **{name: self.about[name] for name in ("preset", "recipe", "seed", "found")},
            "steps": self.step,
            "seconds": round(self.seconds, 1),
            "machine": f"{platform.machine()}, {torch.get_num_threads()} threads, "
            f"{self.fabric.device.type}, torch {torch.__version__}",
        }
        save_weights(
            *(path, self.task.model),
            model_name=self.task.model_name,
            data=self.about["data"],
            training=training,
            metrics=metrics,
        )
        report = {"weights": str(path), **self.about, **training, "metrics": metrics}
        write_atomically(self.out / REPORT, json.dumps(report, indent=2).encode())
        write_png(self.out / SHEET, picture(FramePerceiver(self.task.model), held_out[::32]))
        self.fabric.print(f"wrote {path}, {SHEET} and {REPORT}: {metrics}")
        return path


def _recipe(config: TrainConfig) -> SpaceRecipe:
    """Return the preset with what the command line overrides."""
    recipe = preset(config.preset)
    for name, value in (("steps", config.steps), ("batch", config.batch)):
        if value is not None and value < 1:
            raise ValueError(f"{name}: expected at least 1, got {value}")
    recipe = dataclasses.replace(
        recipe,
        steps=recipe.steps if config.steps is None else config.steps,
        batch=recipe.batch if config.batch is None else config.batch,
    )
    if config.minutes is not None and config.minutes <= 0:
        raise ValueError(f"minutes: expected more than 0, got {config.minutes}")
    if config.minutes is not None and config.steps is not None:
        raise ValueError("expected minutes or steps, got both; give one")
    if recipe.batch % config.devices:
        raise ValueError(
            f"batch: expected a multiple of the {config.devices} devices, got {recipe.batch}"
        )
    return recipe


def _check_folder(out: Path, resume: bool) -> None:
    there = (out / CHECKPOINT).exists()
    if resume and not there:
        raise FileNotFoundError(f"{out / CHECKPOINT}: nothing to resume; leave --resume out")
    if there and not resume:
        raise FileExistsError(f"{out} holds a run; go on with --resume, or choose another --out")
    out.mkdir(parents=True, exist_ok=True)


def _precision(config: TrainConfig) -> Literal["32-true", "bf16-mixed"]:
    if config.precision != "auto":
        return config.precision
    cuda = config.device != "cpu" and torch.cuda.is_available()
    return "bf16-mixed" if cuda else "32-true"


def _sample(store: FrameStore, split: str, count: int) -> Image:
    """Take frames spread evenly over a split."""
    indices = store.split(split)
    chosen = np.linspace(0, len(indices) - 1, min(count, len(indices))).astype(np.int64)
    return store.frames(indices[np.unique(chosen)])


def _mix(*numbers: int) -> int:
    """Make one seed of several numbers."""
    return int(np.random.SeedSequence(numbers).generate_state(1)[0])


@contextmanager
def _prefetch(run: _Run, ahead: int = 3) -> Iterator[Iterator[Batch]]:
    """Read and prepare batches in a thread, a few steps ahead of the loop."""
    share = run.recipe.batch // run.fabric.world_size

    def make(step: int) -> Batch:
        rng = np.random.default_rng([run.config.seed, step, run.fabric.global_rank])
        chosen = rng.choice(run.indices, share, replace=len(run.indices) < share)
        frames = run.store.frames(chosen)
        return run.task.prepare(frames)

    def batches() -> Iterator[Batch]:
        queue: list[Future[Batch]] = []
        step = run.step
        while run.steps is None or run.step < run.steps:
            while len(queue) < ahead:
                queue.append(pool.submit(make, step))
                step += 1
            yield queue.pop(0).result()

    with ThreadPoolExecutor(1) as pool:
        try:
            yield batches()
        finally:
            pool.shutdown(cancel_futures=True)
