"""Training recipes as Python values: the paper's tables, and ours for two CPU cores.

`space-paper-*` are the tables of SPACE's D.2 and the authors' configuration files, in steps.
`space-fast` is sparse and small, and takes sizes and background from the frames
(`pretrain/configure.py`); its schedules are in fractions of the run, so that a run of any length
anneals fully. `space-plain` and `spair-plain` are for comparing how cells are inferred, and take
nothing from the frames. Where the paper and the authors' code differ, the preset follows the paper
and says so.
"""

from __future__ import annotations

import difflib
import math
from dataclasses import dataclass, field, replace
from typing import Literal

from objrl.models.space import SpaceConfig
from objrl.models.space_loss import Priors
from objrl.pretrain.mixture_presets import MIXTURES, Mixture
from objrl.pretrain.scalor_presets import SCALOR, ScalorRecipe
from objrl.schedule import Linear


@dataclass(frozen=True)
class SpaceRecipe:
    """How a SPACE is trained."""

    model: SpaceConfig = field(default_factory=SpaceConfig)
    """Size and shape of the network."""
    sequential: bool = False
    """Infer cells one after the other: SPAIR, the baseline that SPACE's paper compares with."""
    steps: int = 100_000
    """Length of the run; `--steps` and `--minutes` override it."""
    unit: Literal["steps", "run"] = "steps"
    """What the schedules count: steps, or the fraction of the run that is done."""
    batch: int = 12
    """Frames a step, over all devices."""
    fg_optimizer: Literal["rmsprop", "adam"] = "rmsprop"
    """Of the foreground; the background always has Adam."""
    fg_lr: float = 1e-5
    """Learning rate of the foreground."""
    bg_lr: float = 1e-3
    """Learning rate of the background."""
    decay: Linear = field(default_factory=lambda: Linear(1.0))
    """What the learning rates are multiplied with; the paper keeps them constant."""
    clip: float = 1.0
    """Largest norm of the gradient, foreground and background together."""
    presence: Linear = field(default_factory=lambda: Linear(0.1, 0.01, 4000, 10000))
    """rho, prior probability of z_pres."""
    scale_mean: tuple[Linear, Linear] = (Linear(-1.0, -2.0, 10000, 20000),) * 2
    """Prior mean of z_scale before its sigmoid, width and height."""
    scale_std: float = 0.1
    """Prior standard deviation of z_scale."""
    temperature: Linear = field(default_factory=lambda: Linear(2.5, 0.5, 0, 20000))
    """tau of the relaxed Bernoulli."""
    sigma_fg: float = 0.15
    """Standard deviation of foreground pixels."""
    sigma_bg: float = 0.15
    """Standard deviation of background pixels."""
    fixed_alpha: float | None = None
    """Value of alpha while it is held fixed in the likelihood."""
    fixed_alpha_until: float = 0
    """When that ends."""
    boundary_until: float = 0
    """When the boundary loss is turned off; 0 never turns it on."""
    boundary_weight: float = 1000.0
    """Its weight; the paper gives none, and ours is untested at the paper's scale."""
    mixture: Literal["pixel", "channel"] = "pixel"
    """Eq. 1 mixes pixels; the authors' code mixes channels."""
    gate: bool = True
    """Appendix B gates the KL of what, where and depth by z_pres; the authors' code does not."""
    self_configure: bool = False
    """Take background, sizes and counts from the frames."""
    evidence: Linear = field(default_factory=lambda: Linear(0.0))
    """Weight of the pull of z_pres and z_where towards the no-learning baseline's blobs."""
    alpha_evidence: Linear = field(default_factory=lambda: Linear(0.0))
    """Weight of the pull of alpha towards what differs from the background."""
    split_weight: float = 1.0
    """How much more that pull counts in cells within a blob whose centre another cell has."""
    margin: float = 1.25
    """How much wider than a blob z_where's box is meant to be, so that the mask has room."""

    def __post_init__(self) -> None:
        if self.model.patch and self.self_configure:
            raise ValueError(
                "self_configure: what is taken from the frames is of whole ones, expected no "
                f"patches, got {self.model.patch}"
            )

    def priors(self, at: float) -> Priors:
        """Return the priors at a time in `unit`s."""
        fixed = self.fixed_alpha is not None and at < self.fixed_alpha_until
        return Priors(
            presence=self.presence(at),
            scale_mean=(self.scale_mean[0](at), self.scale_mean[1](at)),
            scale_std=self.scale_std,
            sigma_fg=self.sigma_fg,
            sigma_bg=self.sigma_bg,
            fixed_alpha=self.fixed_alpha if fixed else None,
            mixture=self.mixture,
            gate=self.gate,
        )


_ROOM = SpaceRecipe(
    model=SpaceConfig(cell=8, components=5),
    steps=160_000,
    boundary_until=100_000,
)
_ATARI = SpaceRecipe(
    model=SpaceConfig(cell=8, components=3),
    sigma_fg=0.20,
    sigma_bg=0.10,
    scale_mean=(Linear(-2.0, -2.5, 0, 20000),) * 2,
    fixed_alpha=0.1,
    fixed_alpha_until=4000,
)
# SPACE's loss alone, on a small canvas with one VAE behind: to compare its cells, inferred at once,
# with SPAIR's, one after the other.
_PLAIN = SpaceRecipe(
    model=SpaceConfig(
        frame_size=(64, 64), cell=8, architecture="fast", z_what=16, background="single"
    ),
    steps=2000,
    unit="run",
    fg_optimizer="adam",
    fg_lr=5e-4,
    decay=Linear(1.0, 0.1, 0.7, 1.0),
    presence=Linear(0.1, 0.01, 0.1, 0.3),
    scale_mean=(Linear(-1.0, -2.0, 0.1, 0.3),) * 2,
    scale_std=0.3,
    temperature=Linear(2.5, 0.5, 0.0, 0.4),
    boundary_until=0.6,
)
_PLAIN_SPAIR = replace(_PLAIN, sequential=True)


def _of_patches(mean: tuple[Linear, Linear], times: float) -> tuple[Linear, Linear]:
    """Keep objects as large in pixels where they are parts of a patch, of nine tenths at most."""

    def moved(raw: float) -> float:
        part = min(0.9, times / (1 + math.exp(-raw)))
        return math.log(part / (1 - part))

    width, height = (
        replace(m, start=moved(m.start), end=None if m.end is None else moved(m.end)) for m in mean
    )
    return width, height


SPACE: dict[str, SpaceRecipe] = {
    "space-paper-room_large": _ROOM,
    "space-paper-room_small": replace(_ROOM, model=replace(_ROOM.model, cell=16)),
    # Table "Joint Training on 10 Atari Games"; the authors' file holds tau at 2.5 and anneals rho.
    "space-paper-atari_joint": replace(
        _ATARI,
        steps=160_000,
        presence=Linear(1e-10),
        scale_mean=(Linear(-2.5),) * 2,
        temperature=Linear(2.5, 1.0, 0, 10000),
    ),
    # "Hyperparameters for other experiments are similar" (D.2): these are the authors' files'.
    "space-paper-space_invaders": replace(
        _ATARI,
        scale_mean=(Linear(-2.2, -2.5, 0, 20000),) * 2,
        scale_std=0.2,
        temperature=Linear(2.5, 0.1, 0, 20000),
        fixed_alpha=0.2,
        fixed_alpha_until=2000,
    ),
    "space-paper-riverraid": replace(
        _ATARI,
        model=replace(_ATARI.model, components=4),
        temperature=Linear(2.5, 0.1, 0, 20000),
        fixed_alpha=0.05,
    ),
    # Fig. 5's three grids, at SPAIR's learning rate (D.2); priors as in the authors' Atari files.
    **{
        f"space-paper-grid{grid}": replace(
            _ATARI, model=replace(_ATARI.model, cell=128 // grid), fg_lr=1e-4
        )
        for grid in (4, 8, 16)
    },
    # As the paper has its baseline (section 4, D.2, D.3): SPACE's layers, one VAE for the
    # background, the rate of SPAIR; SPAIR-P learns from patches, each with a VAE's background.
    **{
        f"spair-paper-{name}": replace(
            recipe,
            sequential=True,
            model=replace(recipe.model, background="single", cell=cell, patch=patch),
            fg_lr=1e-4,
            bg_lr=1e-4,
            scale_mean=_of_patches(recipe.scale_mean, 128 / patch) if patch else recipe.scale_mean,
        )
        for name, recipe, cell, patch in (
            ("room_large", _ROOM, 8, 0),
            ("room_small", _ROOM, 16, 0),
            ("grid4", _ATARI, 32, 0),
            ("grid8", _ATARI, 16, 0),
            ("grid16", _ATARI, 8, 0),
            ("patches_room", _ROOM, 8, 32),
            ("patches_atari", _ATARI, 8, 32),
        )
    },
    "space-plain": _PLAIN,
    "spair-plain": _PLAIN_SPAIR,
    "spair-plain-patches": replace(
        _PLAIN_SPAIR,
        model=replace(_PLAIN.model, patch=32),
        scale_mean=_of_patches(_PLAIN.scale_mean, 64 / 32),
    ),
    "space-fast": SpaceRecipe(
        model=SpaceConfig(
            frame_size=(210, 160),
            architecture="fast",
            z_what=16,
            dense=False,
            background="static",
        ),
        steps=2000,
        unit="run",
        fg_optimizer="adam",
        fg_lr=1e-3,
        presence=Linear(0.1, 1e-3, 0.0, 0.4),
        scale_std=0.3,
        # With evidence from the first step, z_pres need not begin undecided.
        temperature=Linear(1.0, 0.5, 0.0, 0.4),
        decay=Linear(1.0, 0.1, 0.5, 1.0),
        sigma_fg=0.10,
        sigma_bg=0.05,
        self_configure=True,
        evidence=Linear(100.0),
        split_weight=5.0,
        alpha_evidence=Linear(1.0, 0.0, 0.0, 0.15),
    ),
}


Configurable = SpaceRecipe | ScalorRecipe
"""Recipes that can take sizes and background from the frames."""
Recipe = Configurable | Mixture
PRESETS: dict[str, Recipe] = {**SPACE, **SCALOR, **MIXTURES}


def preset(name: str) -> Recipe:
    """Return a recipe by name.

    Raises:
        ValueError: there is none of that name.
    """
    if name not in PRESETS:
        near = difflib.get_close_matches(name, PRESETS, n=1)
        hint = f"did you mean {near[0]}? " if near else ""
        raise ValueError(f"preset: {hint}expected one of {', '.join(PRESETS)}; got {name!r}")
    return PRESETS[name]
