"""The one training loop: any task, CPU or CUDA, one device or several, resumable.

Every step is a function of (seed, step) and the checkpoint, so that a run that was killed and
resumed ends bit-equal on a CPU with one that was not.
"""

from __future__ import annotations

import copy
import dataclasses
import json
import platform
import statistics
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch
from lightning_fabric import Fabric
from torch import Tensor, nn
from tqdm import tqdm

from objrl.atomic import write_atomically
from objrl.checkpoint import Checkpoint, restore, save_checkpoint
from objrl.clock import Clock
from objrl.draw import write_png
from objrl.models.regions import Image
from objrl.pretrain.batches import Batches
from objrl.pretrain.configure import configure, fit_canvas, join, look
from objrl.pretrain.health import LOOKS, SYMPTOMS, Course, Trouble, look_at, mended
from objrl.pretrain.joint import by_game
from objrl.pretrain.presets import Configurable, Recipe
from objrl.pretrain.reading import Frames, sample
from objrl.pretrain.report import final_metrics, picture
from objrl.pretrain.scalor_presets import ScalorRecipe
from objrl.pretrain.tasks import make_task
from objrl.stopping import asked_to_stop
from objrl.weights.registry import save_weights

if TYPE_CHECKING:
    from objrl.pretrain.train import TrainConfig

CHECKPOINT, WEIGHTS = "checkpoint.safetensors", "weights.safetensors"
SHEET, REPORT, LOGS = "sheet.png", "report.json", "logs"


class Run:
    """One run: what it trains, and how far it is.

    Attributes:
        task: model and loss.
        step: steps done.
        steps: steps to do.
    """

    def __init__(
        self,
        fabric: Fabric,
        store: Frames,
        config: TrainConfig,
        recipe: Recipe,
        out: Path,
        resumed: Checkpoint | None,
    ) -> None:
        """Look at the frames, build the task, and take up the checkpoint where there is one.

        Raises:
            ValueError: too few frames, frames in which nothing moves, another run's checkpoint.
        """
        self._clock = Clock()
        self._fabric, self._store, self._config, self._out = fabric, store, config, out
        self._shown = sample(store, "val", 48)
        self._found, self._pieces = None, None
        if isinstance(recipe, Configurable) and recipe.self_configure:
            self._found = found = join([look(frames) for frames in by_game(store)])
            recipe = configure(recipe, found)
            fabric.print(f"found in the frames: {found.describe()}")
            # The detector's boxes are the canvas's and not the frame's: so are these.
            self._shown = fit_canvas(self._shown, recipe.model.frame_size)
            self._pieces = [found.seen.pieces(frame)[0] for frame in self._shown]
        self._recipe = recipe
        about = {
            "preset": config.preset,
            "recipe": dataclasses.asdict(recipe),
            "minutes": config.minutes,
            "data": store.fingerprint(),
            "seed": config.seed,
            "found": self._found.describe() if self._found else {},
            "devices": config.devices,
            "precision": config.precision,
        }
        self._about = json.loads(json.dumps(about))
        self.step, self.steps = 0, recipe.steps
        self.course = (
            Course(**resumed.about["course"]) if resumed else Course(self.steps, self.steps)
        )
        for trouble in self.course.mended:
            self._change(trouble)
        self._begin(resumed)
        if config.minutes and not resumed:
            self.steps = self._steps_in(60 * config.minutes)
            self.course = Course(self.steps, self.steps)

    def _begin(self, resumed: Checkpoint | None = None) -> None:
        """Build the task of this attempt, and take up the checkpoint where there is one."""
        attempt = len(self.course.mended)
        torch.manual_seed(_mix(self._config.seed, attempt) if attempt else self._config.seed)
        self.task = make_task(self._recipe, self._found)
        self._optimizers = self.task.optimizers()
        self._rates = [[group["lr"] for group in o.param_groups] for o in self._optimizers]
        if resumed:
            self._go_on(resumed)
        # Moves the model, and lets the optimisers follow; the task itself stays as it is.
        self._objective, *self._steppers = self._fabric.setup(self._whole, *self._optimizers)

    def fit(self) -> None:
        """Run to the end, leaving a checkpoint now and then and when asked to stop.

        Raises:
            FloatingPointError: the loss is not finite; nothing of that step is kept.
            KeyboardInterrupt: asked to stop; a checkpoint was written.
        """
        with asked_to_stop() as stop:
            while (trouble := self._train(stop)) is not None:
                self._mend(trouble)

    def _train(self, stop: Callable[[], bool]) -> Trouble | None:
        """Train to the end, or to a collapse that calls for another attempt."""
        config, saved = self._config, time.monotonic()
        bar = tqdm(initial=self.step, total=self.steps, unit="step", disable=not self._first)
        self.task.model.train()
        with self._batches(self.step) as batches, bar:
            while self.step < self.steps:
                terms = self._update(next(batches))
                last = self.step + 1 == self.steps
                if self._first and (last or self.step % config.log_every == 0):
                    self._log(terms, bar)
                if self._first and (last or self.step % config.picture_every == 0):
                    self._log_picture()
                self.step += 1
                bar.update()
                if self.step % self.course.apart == 0 and not last:
                    trouble = self._look()
                    if trouble:
                        return trouble
                    bar.total = self.steps
                if last or stop() or time.monotonic() - saved >= config.checkpoint_every:
                    self._save()
                    saved = time.monotonic()
                if stop():
                    self._fabric.print(f"stopped at step {self.step}; --resume goes on from there")
                    raise KeyboardInterrupt
        return None

    def _look(self) -> Trouble | None:
        """See how the run goes; end it early if it has converged, say so if it has collapsed.

        Returns:
            What calls for another attempt: a collapse that the look before has seen too, while
            there is time for one.
        """
        health = look_at(self.task.perceiver(), self._shown, self._pieces)
        self.task.model.train()
        if self._first:
            values = {f"health_{name}": value for name, value in health.describe().items()}
            self._fabric.log_dict(values, self._on_board)
        # The paper's tables are the paper's, and are not changed. The first device decides for all.
        recipe = self._recipe
        own, follows = recipe.self_configure, isinstance(recipe, ScalorRecipe)
        if isinstance(recipe, ScalorRecipe):
            own = own and recipe.has_teacher
        # A look is at single frames, which tell nothing of following.
        advice = self.course.see(
            *(health, self.step, self.steps), may_change=own, may_end=not follows
        )
        advice, self.course = self._fabric.broadcast((advice, self.course))
        if advice == "begin again":
            return self.course.trouble
        if advice == "warn" and health.trouble:
            self._warn(f"step {self.step}: {SYMPTOMS[health.trouble]}")
        if advice == "end":
            self.steps = self.course.end_of(self.step)
            self._fabric.print(
                f"converged at step {self.step}: {self.steps - self.step} more at falling rates"
            )
        return None

    def _mend(self, trouble: Trouble) -> None:
        """Begin again, with what is left of the steps, from a recipe against that trouble."""
        change = self._change(trouble)
        self._warn(f"step {self.step}: {SYMPTOMS[trouble]}; beginning again: {change}")
        self.step, self.steps = 0, self.steps - self.step
        self.course = Course(self.course.asked, self.steps, mended=[*self.course.mended, trouble])
        self._begin()
        self._save()

    def _change(self, trouble: Trouble) -> str:
        """Change the recipe against a trouble, and say in words how."""
        assert isinstance(self._recipe, Configurable)  # no others begin again
        self._recipe, change = mended(self._recipe, trouble)
        return change

    def _warn(self, message: str) -> None:
        if self._first:
            warnings.warn(message, stacklevel=4)

    def export(self) -> Path:
        """Measure on held-out frames, write weights, picture and report; return the weights."""
        path = self._out / WEIGHTS
        cpu = torch.tensor(self._clock.cpu)
        total: Any = self._fabric.all_reduce(cpu, reduce_op="sum")
        if self._first:
            self._export(path, self._clock.wall, float(total))
        self._fabric.barrier()
        return path

    def _export(self, path: Path, wall: float, cpu: float) -> None:
        items = sample(self._store, "val", 256 // self.task.length, self.task.length)
        metrics = final_metrics(self.task, items)
        health = look_at(self.task.perceiver(), self._shown, self._pieces)
        metrics |= {f"val_{name}": value for name, value in health.describe().items()}
        self._fabric.log_dict(metrics, self._on_board)
        self._logger.finalize("success")
        training = {
            **{name: self._about[name] for name in ("preset", "seed", "found")},
            "recipe": {**dataclasses.asdict(self._recipe), "steps": self.course.asked},
            "steps": self.step,
            "minutes": self._about["minutes"],
            "converged": self.course.converged,
            "mended": self.course.mended,
            "seconds": round(wall, 1),
            "cpu_seconds": round(cpu, 1),
            "machine": f"{platform.machine()}, {self._fabric.world_size} x "
            f"{self._fabric.device.type}, {torch.get_num_threads()} threads, "
            f"{self._fabric.strategy.precision.precision}, torch {torch.__version__}",
        }
        data = self._about["data"]
        verdict = SYMPTOMS[health.trouble] if health.trouble else ""
        if verdict:
            self._warn(f"held-out frames: {verdict}")
        report = {"weights": WEIGHTS, "data": data, **training, "metrics": metrics}
        report["warning"] = verdict
        write_atomically(self._out / REPORT, json.dumps(report, indent=2).encode())
        write_png(
            self._out / SHEET,
            picture(self.task.perceiver(), items.reshape(-1, *items.shape[-3:])[::32]),
        )
        # Last of all: where there are weights, the run is finished.
        save_weights(
            *(path, self.task.model),
            model_name=self.task.model_name,
            data=data,
            training=training,
            metrics=metrics,
        )
        scores = ", ".join(f"{name} {value:g}" for name, value in metrics.items())
        print(f"wrote {path}, {SHEET} and {REPORT} after {self.step} steps: {scores}")

    @property
    def _first(self) -> bool:
        """Whether this process is the one that writes."""
        return self._fabric.is_global_zero

    @property
    def _whole(self) -> nn.Module:
        """The model, and what its task remembers beside it."""
        return cast(nn.Module, self.task)

    @property
    def _logger(self) -> Any:
        return self._fabric.logger

    @property
    def _on_board(self) -> int:
        """Steps done, those of the attempts before this one included."""
        return self.course.before + self.step

    def _batches(self, step: int) -> Batches:
        return Batches(
            *(self._store, self.task),
            count=self._recipe.batch // self._fabric.world_size,
            seed=self._config.seed,
            rank=self._fabric.global_rank,
            step=step,
        )

    def _go_on(self, resumed: Checkpoint) -> None:
        there, here = _flat(resumed.about), _flat(self._about)
        differing = [
            f"{name} is {there.get(name)!r} there and {value!r} here"
            for name, value in here.items()
            if there.get(name) != value
        ]
        if differing:
            raise ValueError(
                f"{resumed.path}: expected the same options and data as of the run: "
                f"{'; '.join(differing)}; resume with the same ones, or choose another --out"
            )
        restore(resumed, self._whole, self._optimizers)
        self.step, self.steps = resumed.about["step"], resumed.about["steps"]
        before = resumed.about["seconds"], resumed.about["cpu_seconds"]
        self._clock = Clock(self._clock.wall + before[0], self._clock.cpu + before[1])
        self._fabric.print(f"resumed at step {self.step} of {self.steps}")

    def _steps_in(self, seconds: float) -> int:
        """Return how many steps fit, by trying a few and undoing them.

        The schedules need to know the end; and so a run by time is also a run by steps: with that
        number as --steps, it ends in the same weights.
        """
        before, times = copy.deepcopy(self._whole.state_dict()), [time.monotonic()]
        self.task.model.train()
        with self._batches(0) as batches:
            # The first one warms up and is not counted.
            while len(times) < 3 or (len(times) < 12 and times[-1] - times[0] < seconds / 20):
                self._update(next(batches))
                times.append(time.monotonic())
        self._whole.load_state_dict(before)
        for optimizer in self._optimizers:
            optimizer.state.clear()
        begin = time.monotonic()
        look_at(self.task.perceiver(), self._shown, self._pieces)
        # Looks cost time too; the last one stands for what is measured and written at the end.
        looks = (LOOKS + 1) * (time.monotonic() - begin)
        left = seconds - self._clock.wall - looks
        steps = max(1, int(left / statistics.median(np.diff(times[1:]))))
        return int(self._fabric.broadcast(steps))

    def _update(self, batch: Any) -> dict[str, Tensor]:
        """Take one step and return the terms of the loss."""
        # Noise is a function of the step: nothing to save, and a resumed run draws the same.
        torch.manual_seed(_mix(self._config.seed, self.step, self._fabric.global_rank))
        at = self.step if self._recipe.unit == "steps" else self.step / self.steps
        total, terms = self._objective(batch.to(self._fabric.device), at)
        for optimizer in self._steppers:
            optimizer.zero_grad()
        self._fabric.backward(total)
        norm = torch.nn.utils.clip_grad_norm_(self.task.model.parameters(), self._recipe.clip)
        terms = {name: term.detach() for name, term in terms.items()} | {"gradient": norm}
        # One look at the device a step, so that no bad step gets into weights or checkpoints.
        if not bool(torch.isfinite(total.detach() + norm)):
            values = {name: float(term) for name, term in terms.items()}
            raise FloatingPointError(
                f"the loss or its gradient is not finite at step {self.step}: {values}; "
                f"{self._kept()}; a lower learning rate or 32-true precision may help"
            )
        for optimizer, rates in zip(self._optimizers, self._rates, strict=True):
            for group, rate in zip(optimizer.param_groups, rates, strict=True):
                group["lr"] = rate * self._recipe.decay(at)
        for optimizer in self._steppers:
            optimizer.step()
        return terms

    def _kept(self) -> str:
        path = self._out / CHECKPOINT
        return f"the last checkpoint stays in {path}" if path.exists() else "no checkpoint yet"

    def _log(self, terms: dict[str, Tensor], bar: tqdm[Any]) -> None:
        values = {name: float(term) for name, term in terms.items()}
        self._fabric.log_dict(values, self._on_board)
        bar.set_postfix(
            loss=f"{values['loss']:.0f}", objects=f"{values['objects']:.1f}", refresh=False
        )

    def _log_picture(self) -> None:
        image: Image = picture(self.task.perceiver(), self._shown[:4])
        self._logger.experiment.add_image("frames", image, self._on_board, dataformats="HWC")
        self.task.model.train()

    def _save(self) -> None:
        if self._first:
            far = {"step": self.step, "steps": self.steps}
            spent = {"seconds": self._clock.wall, "cpu_seconds": self._clock.cpu}
            about = {**self._about, **far, **spent, "course": dataclasses.asdict(self.course)}
            save_checkpoint(self._out / CHECKPOINT, self._whole, self._optimizers, about)


def _flat(value: Any, name: str = "") -> dict[str, Any]:
    """Name what is nested: {"a": {"b": 1}} -> {"a.b": 1}."""
    if not isinstance(value, dict):
        return {name: value}
    parts = [_flat(v, f"{name}.{key}" if name else key) for key, v in value.items()]
    return {key: v for part in parts for key, v in part.items()}


def _mix(*numbers: int) -> int:
    """Make one seed of several numbers."""
    return int(np.random.SeedSequence(numbers).generate_state(1)[0])
