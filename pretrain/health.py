"""Whether a run goes well, told on held-out frames without labels, and what mends it.

The yardstick is the no-learning baseline: it is no truth, but a detector that has collapsed agrees
with it in nothing. SPACE is known to collapse in four ways (the authors' README, MOC's issues):
nothing is an object, everything is, one box swallows many, one object is split among many.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Literal, overload

import numpy as np
import numpy.typing as npt
import torch

from objrl.metrics import Truth, score
from objrl.models.regions import Image
from objrl.perceiver import Perceiver
from objrl.pretrain.presets import Configurable, SpaceRecipe
from objrl.pretrain.scalor_presets import ScalorRecipe
from objrl.schedule import Linear

Trouble = Literal["nothing", "everything", "swallowed", "split"]

SYMPTOMS: dict[Trouble, str] = {
    "nothing": "no objects: the background draws everything",
    "everything": "everything is an object: far more of them than things that move",
    "swallowed": "one box swallows many: most boxes hold several things",
    "split": "one object is split among many: most things are in several boxes",
}

Advice = Literal["go on", "warn", "begin again", "end"]

# A run is looked at so often, but not before so many steps more: fewer change too little.
LOOKS, _APART = 20, 25
# It has converged when this many looks on end bring no better agreement than this.
_PATIENCE, _GAIN, _LOSS = 6, 0.002, 0.02
# How far a run that has converged counts as being: the rates fall over what is left.
_LAST = 0.6
# How often a run begins before a collapse is only told, and what share of its steps that takes.
_ATTEMPTS, _LEAST_LEFT = 3, 0.4
# The first fifth may look like a collapse without being one.
_EARLY = 0.2


@dataclass(frozen=True)
class Health:
    """What a look at N frames shows.

    Attributes:
        found: objects a frame.
        rows: of the slots, the most that could be found.
        expected: the baseline's pieces a frame; None where it does not apply.
        agreement: F1 by centre of the detector's boxes with those pieces.
        swallowed: share of the boxes that hold the centres of two pieces or more.
        split: share of the pieces that hold the centres of two boxes or more.
    """

    found: float
    rows: int
    expected: float | None = None
    agreement: float = 0.0
    swallowed: float = 0.0
    split: float = 0.0

    @property
    def trouble(self) -> Trouble | None:
        """Which collapse this looks like."""
        if self.expected is None:
            if self.found < 0.1:
                return "nothing"
            return "everything" if self.found > 0.9 * self.rows else None
        if self.found < 0.1 * self.expected:
            return "nothing"
        if self.swallowed > 0.5 and self.found < self.expected:
            return "swallowed"
        if self.split > 0.5:
            return "split"
        # The slots end what can be found, and there are not many more than things.
        most = min(3 * max(self.expected, 1), 0.9 * self.rows)
        return "everything" if self.found > max(most, 1.2 * self.expected) else None

    def describe(self) -> dict[str, float]:
        """Return what is logged: all there is, or without a baseline the count alone."""
        if self.expected is None:
            return {"found": round(self.found, 2)}
        names = ("found", "expected", "agreement", "swallowed", "split")
        return {name: round(float(getattr(self, name)), 4) for name in names}


def look_at(
    perceiver: Perceiver, frames: Image, pieces: Sequence[npt.NDArray[np.float32]] | None
) -> Health:
    """Compare what is perceived in (N, H, W, 3) uint8 frames with the baseline's (M, 4) boxes."""
    height, width = frames.shape[1:3]
    boxes: list[npt.NDArray[np.float64]] = []
    for begin in range(0, len(frames), 16):
        slots = perceiver.encode(torch.from_numpy(frames[begin : begin + 16])).to("cpu")
        here = slots.presence[..., 0] > 0
        found = slots.boxes(height, width).double()
        boxes += [found[b][here[b]].numpy() for b in range(len(found))]
    count = sum(map(len, boxes)) / len(frames)
    if pieces is None:
        return Health(found=count, rows=slots.presence.shape[1])
    things = [p.astype(np.float64) for p in pieces]
    none = [np.zeros((0, 4))] * len(frames)
    truth = Truth(things, [("thing",) * len(p) for p in things], none)
    pairs = list(zip(boxes, things, strict=True))
    return Health(
        found=count,
        rows=slots.presence.shape[1],
        expected=sum(map(len, things)) / len(frames),
        agreement=score(truth, boxes, "centre").f1,
        swallowed=_share([_held(box, thing) for box, thing in pairs]),
        split=_share([_held(thing, box) for box, thing in pairs]),
    )


def _share(counts: list[npt.NDArray[np.int64]]) -> float:
    """Return how many hold more than one."""
    every = np.concatenate(counts)
    return float((every > 1).mean()) if len(every) else 0.0


def has_converged(agreements: Sequence[float]) -> bool:
    """Say whether the last looks have neither gained on the best before them nor lost it."""
    if len(agreements) <= _PATIENCE:
        return False
    best, last = max(agreements[:-_PATIENCE]), agreements[-_PATIENCE:]
    return max(last) < best + _GAIN and last[-1] > best - _LOSS


@dataclass
class Course:
    """What the looks at a run have found so far; kept in its checkpoint.

    Attributes:
        asked: steps of the run; with as many as `--steps`, it happens again.
        planned: steps of this attempt: fewer, when there was one before.
        agreements: with the baseline, look by look.
        trouble: which collapse the last look saw.
        mended: the collapses after which the run began again.
        converged: the step at which it had.
    """

    asked: int
    planned: int
    agreements: list[float] = field(default_factory=list)
    trouble: Trouble | None = None
    mended: list[Trouble] = field(default_factory=list)
    converged: int | None = None

    @property
    def apart(self) -> int:
        """Steps from look to look."""
        return max(_APART, self.planned // LOOKS)

    @property
    def before(self) -> int:
        """Steps of the attempts before this one."""
        return self.asked - self.planned

    def see(
        self, health: Health, step: int, steps: int, *, may_change: bool, may_end: bool = True
    ) -> Advice:
        """Take in a look at a step, of so many, and say what follows.

        A collapse that two looks on end have seen calls for another attempt, while there is time
        for one. A run whose recipe `may_change` also ends early, at the end of its schedules, if it
        `may_end`.
        """
        before, self.trouble = self.trouble, health.trouble
        self.agreements.append(health.agreement)
        if self.trouble and step >= _EARLY * self.planned:
            time_left = steps - step >= _LEAST_LEFT * self.planned
            attempts_left = may_change and len(self.mended) < _ATTEMPTS - 1
            if before == self.trouble and time_left and attempts_left:
                return "begin again"
            return "go on" if before == self.trouble else "warn"
        early = self.converged is None and self.end_of(step) < steps
        if may_change and may_end and early and has_converged(self.agreements):
            self.converged = step
            return "end"
        return "go on"

    def end_of(self, step: int) -> int:
        """Return how many steps a run has that converges at this one."""
        return math.ceil(step / _LAST)


@overload
def mended(recipe: SpaceRecipe, trouble: Trouble) -> tuple[SpaceRecipe, str]: ...
@overload
def mended(recipe: ScalorRecipe, trouble: Trouble) -> tuple[ScalorRecipe, str]: ...
def mended(recipe: Configurable, trouble: Trouble) -> tuple[Configurable, str]:
    """Return a recipe against a collapse, and in words what is different."""
    if trouble == "nothing":
        changed = replace(recipe, presence=Linear(max(recipe.presence.start, 0.1)))
        if isinstance(changed, SpaceRecipe):
            changed = replace(changed, fixed_alpha=None)
        return changed, "presence prior held at its start, alpha not fixed"
    if trouble == "everything":
        prior = recipe.presence
        end = None if prior.end is None else 0.1 * prior.end
        changed = replace(recipe, presence=replace(prior, start=0.1 * prior.start, end=end))
        return changed, "presence prior a tenth of what it was"
    cell, largest = recipe.model.cell, 16 if isinstance(recipe, ScalorRecipe) else 32
    if trouble == "split" and cell < largest:
        changed = replace(_with_cell(recipe, 2 * cell), split_weight=2 * recipe.split_weight)
        return changed, f"cells of {2 * cell} pixels, splitting weighs twice as much"
    if trouble == "swallowed" and cell > 8:
        return _with_cell(recipe, cell // 2), f"cells of {cell // 2} pixels"
    if isinstance(recipe, ScalorRecipe):
        return replace(recipe, taught=Linear(2 * recipe.taught.start)), "taught twice as hard"
    step = 0.5 if trouble == "split" else -0.5
    means = tuple(
        replace(m, start=m.start + step, end=None if m.end is None else m.end + step)
        for m in recipe.scale_mean
    )
    assert len(means) == 2
    return replace(recipe, scale_mean=means), f"size prior {step:+} in logits"


def _with_cell(recipe: Configurable, cell: int) -> Configurable:
    if isinstance(recipe, ScalorRecipe):
        return replace(recipe, model=replace(recipe.model, cell=cell))
    return replace(recipe, model=replace(recipe.model, cell=cell))


def _held(boxes: npt.NDArray[np.float64], things: npt.NDArray[np.float64]) -> npt.NDArray[np.int64]:
    """Count for each box (n, 4) the centres of things (m, 4) that lie in it."""
    centre = (things[:, :2] + things[:, 2:]) / 2
    inside = (centre[None] >= boxes[:, None, :2]) & (centre[None] <= boxes[:, None, 2:])
    count: npt.NDArray[np.int64] = inside.all(-1).sum(1)
    return count
