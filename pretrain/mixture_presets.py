"""Recipes of the scene mixtures: the papers' tables, and ours for two CPU cores.

`*-paper-*` are the papers' and want a GPU; where a paper and public code differ, the preset says
what it follows. The others are small. Each names the set of scenes (`objrl scenes`) that it is for,
which is drawn where no other frames are given; on other frames they work as well or as badly.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import ClassVar, Literal

from objrl.models.econ import EconConfig
from objrl.models.iodine import IodineConfig
from objrl.models.monet import MonetConfig
from objrl.models.rmonet import RmonetConfig
from objrl.pretrain.pseudo_boxes import PseudoBoxes
from objrl.pretrain.scenes import Which
from objrl.schedule import Linear

UNCLIPPED = 1e9
"""A norm that no gradient reaches."""


@dataclass(frozen=True)
class MixtureRecipe:
    """What the recipes of all scene mixtures say."""

    steps: int = 1_000_000
    """Length of the run; `--steps` and `--minutes` override it."""
    unit: Literal["steps", "run"] = "steps"
    """What the schedules count: steps, or the fraction of the run that is done."""
    batch: int = 32
    """Frames a step, over all devices."""
    optimizer: Literal["adam", "rmsprop"] = "adam"
    """Of everything."""
    lr: float = 3e-4
    """Learning rate."""
    decay: Linear = field(default_factory=lambda: Linear(1.0))
    """What the learning rate is multiplied with."""
    clip: float = UNCLIPPED
    """Largest norm of the gradient."""
    scenes: Which | None = "dsprites_grey"
    """What it learns from where no frames are given; None where some must be."""
    self_configure: ClassVar[bool] = False
    """Nothing of a scene mixture is taken from the frames."""


@dataclass(frozen=True)
class MonetRecipe(MixtureRecipe):
    """How a MONet is trained."""

    model: MonetConfig = field(default_factory=MonetConfig)
    """Size and shape of the network."""
    sigma_bg: float = 0.09
    """Standard deviation of the first slot's pixels."""
    sigma_fg: float = 0.11
    """That of the others'."""
    beta: float = 0.5
    """Weight of the codes' KL."""
    gamma: float = 0.5
    """Weight of the masks' KL."""


@dataclass(frozen=True)
class IodineRecipe(MixtureRecipe):
    """How an IODINE is trained."""

    model: IodineConfig = field(default_factory=IodineConfig)
    """Size and shape of the network, and the likelihood."""
    clip: float = 5.0
    """Largest norm of the gradient (appendix B); all are larger, so that a step has one length."""
    beta: float = 1.0
    """Weight of the codes' KL."""
    length: int = 1
    """Frames of a sequence, one for each guess (B.4): then each guess but the first is refined by
    one frame, and held against the next. 1 for stills."""
    goal: float | None = None
    """Nats of a pixel's channel down to which the likelihood alone is learnt; then codes are made
    as simple as they can be (GECO, as in EfficientMORL). None for a fixed `beta`."""
    step: float = 1e-6
    """How fast GECO's weight changes."""


@dataclass(frozen=True)
class RmonetRecipe(MixtureRecipe):
    """How an R-MONet is trained."""

    model: RmonetConfig = field(default_factory=RmonetConfig)
    """Size and shape of the network."""
    boxes: PseudoBoxes = field(default_factory=PseudoBoxes)
    """How boxes are drawn round masks."""
    sigma_bg: float = 0.09
    """Standard deviation of the background's pixels."""
    sigma_fg: float = 0.11
    """That of the objects'."""
    beta: float = 0.5
    """Weight of the codes' KL."""
    gamma: float = 0.5
    """Weight of the masks' KL."""
    delta: float = 1.0
    """Weight of whether anchors hold an object."""
    lambda_: float = 1.0
    """Weight of how they should be moved."""
    drawn: int = 256
    """Anchors of an image that these two look at. Few hold an object: of 256, 1 or 2 in a hundred,
    and what they teach is slow to be learnt."""


@dataclass(frozen=True)
class EconRecipe(MixtureRecipe):
    """How an ECON is trained."""

    model: EconConfig = field(default_factory=EconConfig)
    """Size and shape of the network, and the competition."""
    lr: float = 5e-4
    """Learning rate (C.3)."""
    beta: float = 0.52
    """Weight of the codes' KL."""
    gamma: Linear = field(default_factory=lambda: Linear(9.54))
    """Weight of the shapes' KL. C.4 swaps these two, and so leaves its own ranges."""
    temperature: Linear = field(default_factory=lambda: Linear(1.0))
    """Of the competition, in nats; the paper's is 1."""
    alone: float = 0.0
    """Until when (in `unit`) one expert learns, against the mean colour of what is left."""
    pair: float = 0.0
    """Until when two learn; then the one that wins most is copied over the others."""
    balance: float = 0.0
    """Nats by which an expert becomes dearer with every step in which it wins twice its share; what
    that came to is for training alone, and not in the weights."""
    fill: Linear = field(default_factory=lambda: Linear(0.0))
    """Weight of how far an expert's codes, taken together, are from the prior."""
    hide: Linear = field(default_factory=lambda: Linear(0.0))
    """Weight of how far the code of a part that is hidden on purpose is from that of the whole."""

    def __post_init__(self) -> None:
        if self.pair and not 0 < self.alone <= self.pair:
            raise ValueError(f"pair: expected 0 < alone <= pair, got {self.alone} and {self.pair}")
        if self.alone and self.fill(0.0) + self.fill(self.alone) > 0:
            raise ValueError(
                f"fill: expected to begin when more than one learn, at {self.alone}, got "
                f"{self.fill}"
            )


_SMALL = MonetConfig(
    frame_size=(35, 35),
    slots=4,
    attention=(16, 16, 32, 32),
    encoder=(16, 32, 32),
    decoder=16,
    hidden=64,
)
_LARGER = replace(
    _SMALL,
    frame_size=(64, 64),
    slots=6,
    attention=(16, 16, 32, 32, 32),
    encoder=(16, 32, 32, 32),
)
_MONET = MonetRecipe(optimizer="rmsprop", lr=1e-4, batch=64)  # its appendix B
_MONET_FAST = MonetRecipe(
    scenes="tetris",
    model=_SMALL,
    steps=3000,
    unit="run",
    lr=5e-4,
    clip=5.0,
    sigma_bg=0.1,
    sigma_fg=0.1,
    beta=0.25,
    gamma=0.25,
)
_IODINE = IodineRecipe()  # appendix B of the paper; the authors' code differs in batch and rate
_IODINE_TETRIS = replace(
    _IODINE,
    scenes="tetris",
    # B.3: four slots, no LSTM, codes of 32.
    model=IodineConfig(frame_size=(35, 35), slots=4, z_what=32, memory=0),
)

_IODINE_FAST = replace(
    _IODINE_TETRIS,
    model=replace(
        _IODINE_TETRIS.model,
        kernel=3,
        refinements=3,
        z_what=16,
        decoder=(32, 32, 32),
        # The paper's mixture is content with a slot for each colour, anywhere, for thousands of
        # steps: to be sure of a pixel gains little. What all slots paint together must be right.
        likelihood="blend",
    ),
    steps=6000,
    unit="run",
    batch=8,
    lr=1e-3,
    decay=Linear(1.0, 0.1, 0.5, 1.0),
)
_RMONET = RmonetRecipe(lr=1e-4, batch=64)
_RMONET_FAST = RmonetRecipe(
    scenes="tetris",
    model=RmonetConfig(
        vae=_SMALL,
        width=16,
        depth=32,
        anchors=(12.0, 16.0, 24.0, 32.0, 48.0),
    ),
    steps=9000,
    unit="run",
    lr=1e-3,
    decay=Linear(1.0, 0.1, 0.5, 1.0),
    clip=100.0,
    sigma_bg=0.1,
    sigma_fg=0.11,
    # The VAE draws shapes badly for long; to match it, masks would stay as soft as those.
    gamma=0.1,
    drawn=24,
)
_ECON = EconRecipe(steps=100_000, scenes="econ_unique")

Mixture = MonetRecipe | IodineRecipe | RmonetRecipe | EconRecipe
MIXTURES: dict[str, Mixture] = {
    "monet-paper-multi_dsprites": _MONET,
    "monet-tetris": _MONET_FAST,
    "monet-multi_dsprites": replace(_MONET_FAST, scenes="dsprites_grey", model=_LARGER, batch=16),
    "iodine-paper-tetris": _IODINE_TETRIS,
    "iodine-paper-multi_dsprites": _IODINE,
    "iodine-tetris": _IODINE_FAST,
    "iodine-multi_dsprites": replace(
        _IODINE_FAST,
        scenes="dsprites_grey",
        # Half as tall and wide as the scenes: a quarter of the time a step, and so more of them.
        model=replace(_IODINE_FAST.model, frame_size=(32, 32), slots=6, memory=64),
        steps=9000,
    ),
    # Appendix B.4: a frame a guess. For `objrl synthetic`, whose sequences have ten frames.
    "iodine-sequences": replace(
        _IODINE_FAST,
        model=replace(_IODINE_FAST.model, frame_size=(64, 64), refinements=1, memory=64),
        scenes=None,
        length=8,
        batch=4,
    ),
    "rmonet-paper-multi_dsprites": _RMONET,
    "rmonet-tetris": _RMONET_FAST,
    "rmonet-multi_dsprites": replace(
        _RMONET_FAST,
        scenes="dsprites_grey",
        model=replace(_RMONET_FAST.model, vae=_LARGER, anchors=(16.0, 24.0, 32.0, 48.0, 64.0)),
        steps=4000,
        batch=16,
    ),
    "econ-paper-sprites": _ECON,
    # 5 latents, 3 blocks, lambda 0: shapes alone compete (section 5.2, C.4).
    "econ-paper-sprites_random": replace(
        _ECON,
        scenes="econ_random",
        model=replace(_ECON.model, z_what=5, blocks=3, appearance=0.0),
        beta=1.0,
        gamma=Linear(3.26),
    ),
    "econ-sprites": replace(
        _ECON,
        model=replace(
            _ECON.model,
            z_what=3,
            attention=(16, 32, 32, 32),
            blocks=3,
            features=16,
            hidden=64,
            # With the KL, to take half of everything costs nothing; then all know the background.
            entropy=0.0,
            rest=1.0,
            taken=0.12,
        ),
        steps=6000,
        unit="run",
        batch=16,
        lr=2e-3,
        decay=Linear(1.0, 0.03, 0.65, 1.0),
        beta=0.25,
        # Shapes that weigh much before colours are learnt let all take nothing.
        gamma=Linear(0.2, 2.0, 0.3, 0.48),
        temperature=Linear(300.0, 5.0, 0.0, 0.18),
        alone=0.3,
        pair=0.36,
        balance=5.0,
        # Once all are there.
        fill=Linear(0.0, 40.0, 0.36, 0.6),
        hide=Linear(0.0, 40.0, 0.374, 0.558),
    ),
}
