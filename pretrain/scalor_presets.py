"""SCALOR's recipes: the paper's, with the authors' values where it gives none, and ours.

`scalor-paper-vld` to `-vhd` are the paper's Task 1 at its five densities (sections 5.1 and E; what
it leaves out is the authors' advice in their issues 3 and 5), `scalor-paper-crowd` is its Task 2,
whose configuration the authors published. `scalor-fast` is small, takes sizes and background from
the frames, and is shown without labels what moves (`pretrain/scalor_task.py`); its schedules are
in fractions of the run. `scalor-fast-sprites` is for sequences as short as the paper's,
`scalor-fast-alone` that without the teacher and our rules against doubles; `-no_rejection`,
`-no_attention` and `-neither` lack more: they are for the paper's ablation.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import Literal

from objrl.models.scalor_config import ScalorConfig
from objrl.models.scalor_loss import ScalorPriors
from objrl.pretrain.sequences import DENSITIES
from objrl.schedule import Linear


@dataclass(frozen=True)
class ScalorRecipe:
    """How a SCALOR is trained."""

    model: ScalorConfig = field(default_factory=ScalorConfig)
    """Size and shape of the network."""
    steps: int = 100_000
    """Length of the run; `--steps` and `--minutes` override it."""
    unit: Literal["steps", "run"] = "steps"
    """What the schedules count: steps, or the fraction of the run that is done."""
    batch: int = 16
    """Sequences a step, over all devices."""
    length: int = 10
    """T, frames of a sequence that count."""
    lead: int = 0
    """Frames before them that are only seen: an agent's episodes are longer than T."""
    forgotten: float = 0.0
    """Share of the objects that are forgotten after the lead, and so are to be found again; half of
    the sequences forget everything."""
    optimizer: Literal["rmsprop", "adam"] = "rmsprop"
    """Of everything."""
    lr: float = 5e-4
    """Learning rate."""
    decay: Linear = field(default_factory=lambda: Linear(1.0))
    """What the learning rate is multiplied with."""
    clip: float = 1.0
    """Largest norm of the gradient."""
    presence: Linear = field(default_factory=lambda: Linear(0.1, 1e-3, 0, 500))
    """Prior probability of a proposal's z_pres."""
    temperature: Linear = field(default_factory=lambda: Linear(1.0, 0.3, 0, 20000))
    """tau of the relaxed Bernoulli; the authors' code ends at 0.5, and falls exponentially."""
    sigma: float = 0.1
    """Standard deviation of a pixel."""
    detach_until: float = 30_000
    """When gradients begin to flow through more than one frame."""
    self_configure: bool = False
    """Take background, sizes and counts from the frames, and show what moves."""
    taught: Linear = field(default_factory=lambda: Linear(0.0))
    """Weight of the pull towards what a teacher without labels shows."""
    mask_evidence: Linear = field(default_factory=lambda: Linear(0.0))
    """Weight of the pull of the masks towards what differs from a known background."""
    split_weight: float = 1.0
    """How much more that pull counts in cells within a piece whose centre another cell has."""
    margin: float = 1.25
    """How much wider than a piece z_where's box is meant to be, so that the mask has room."""

    @property
    def has_teacher(self) -> bool:
        """Whether anything is taught at any time."""
        return bool(self.taught.start or self.taught.end)

    def priors(self, at: float) -> ScalorPriors:
        """Return the priors at a time in `unit`s."""
        return ScalorPriors(presence=self.presence(at), sigma=self.sigma)


def _sizes(pixels: float) -> tuple[float, float, float, float]:
    """Anchors for objects of so many pixels of 64: half to one and a half times as large (E)."""
    return pixels / 64, 0.5 * pixels / 64, 1.0, 0.25


_TASK_1 = ScalorRecipe(
    model=ScalorConfig(z_what=8, max_slots=64, background="none"),
    presence=Linear(0.1, 1e-4, 0, 500),
    sigma=0.2,
)


def _task_1(density: str, background: Literal["none", "decoder"] = "none") -> ScalorRecipe:
    """Task 1 at a density of `objrl synthetic`: rows for as many objects as there can be."""
    setting = DENSITIES[density]
    model = replace(
        _TASK_1.model,
        anchor=_sizes(setting.size),
        max_slots=16 * math.ceil(1.2 * setting.objects[1] / 16),
        background=background,
    )
    return replace(_TASK_1, model=model)


_FAST = ScalorRecipe(
    model=ScalorConfig(
        architecture="fast",
        z_what=16,
        background="static",
        anchor=None,
        mask_stride=4,
        distinct=0.6,
        known=0.8,
        doubled=0.6,
        step=0.3,
    ),
    steps=1500,
    unit="run",
    batch=2,
    length=8,
    lead=8,
    forgotten=0.15,
    optimizer="adam",
    lr=1e-3,
    decay=Linear(1.0, 0.1, 0.5, 1.0),
    presence=Linear(0.1, 1e-3, 0.0, 0.4),
    temperature=Linear(1.0, 0.5, 0.0, 0.4),
    sigma=0.1,
    # The teacher says where each frame's objects are: what follows from that ten frames later tells
    # little more, and its gradients through objects explode.
    detach_until=1.0,
    self_configure=True,
    taught=Linear(100.0),
    # Until appearances are learnt: else the residual may explain what is of one colour.
    mask_evidence=Linear(1.0, 0.0, 0.0, 0.3),
    split_weight=5.0,
)

_SPRITES = replace(_FAST, lead=2, model=replace(_FAST.model, doubled=0.95))
"""For sequences of 10 frames, as the paper's Task 1 has, in which objects lie on each other."""

ABLATION = {
    "alone": (True, True),
    "no_attention": (True, False),
    "no_rejection": (False, True),
    "neither": (False, False),
}
"""Without the teacher, with or without rejection and attention: the paper's Fig. 8 a, b."""


def _ablation(rejection: bool, attention: bool) -> ScalorRecipe:
    """Ours, with nothing but the frames to learn from, and without our rules against doubles.

    What those make good would hide what is missing.
    """
    model = replace(_FAST.model, rejection=rejection, attention=attention)
    alone = replace(model, distinct=1.0, known=0.0, doubled=1.0)
    return replace(
        _SPRITES, model=alone, taught=Linear(0.0), mask_evidence=Linear(0.0), detach_until=0.3
    )


SCALOR: dict[str, ScalorRecipe] = {
    **{f"scalor-paper-{density.lower()}": _task_1(density) for density in DENSITIES},
    "scalor-paper-md_background": _task_1("MD", "decoder"),
    "scalor-paper-crowd": ScalorRecipe(
        model=ScalorConfig(frame_size=(128, 128), cell=16, glimpse=64),
        batch=20,
        lr=4e-5,
    ),
    "scalor-fast": _FAST,
    "scalor-fast-sprites": _SPRITES,
    **{f"scalor-fast-{name}": _ablation(*parts) for name, parts in ABLATION.items()},
}
