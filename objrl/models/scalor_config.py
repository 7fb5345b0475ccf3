"""SCALOR's settings, and how raw numbers become boxes.

Letters: B environments, K objects.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from objrl.models.scalor_networks import Table, fast_table, paper_table


@dataclass(frozen=True)
class ScalorConfig:
    """Size and shape of a SCALOR, and its rules of birth and death."""

    frame_size: tuple[int, int] = (64, 64)
    """Canvas (H, W) that frames are resized to."""
    cell: int = 8
    """Side of a grid cell in canvas pixels: 8 makes the 8 x 8 grid of the paper's Task 1."""
    architecture: Literal["paper", "fast"] = "paper"
    """The authors' layers, or our small ones for 16 x 16 glimpses."""
    glimpse: int = 32
    """Side of a glimpse in the authors' layers: 32 or 64."""
    z_what: int = 64
    """D, size of the appearance latent."""
    z_bg: int = 10
    """Size of the background's latent."""
    background: Literal["none", "decoder", "static"] = "decoder"
    """Black; drawn from z_bg; or a picture known beforehand with a weak residual."""
    faces: int = 1
    """F of the known picture: how many backgrounds a pixel may show."""
    flat: int = 0
    """Pixels in a row or column of one colour that are background wherever they are; 0: none."""
    contrast: float = 24 / 255
    """How far from the known picture, in [0, 1], a pixel is seen to be of an object: for tight
    boxes, and for who is on nothing."""
    reach: float = 1.0
    """How much of z_where's box a tight box may fill, from the middle."""
    max_slots: int = 45
    """K, how many objects are followed at once."""
    proposals: int = 0
    """M, how many cells are glimpsed and drawn: those of the highest presence; 0 for all."""
    window: int = 0
    """Side in pixels of the square that a glimpse may draw on; 0 for the whole canvas."""
    anchor: tuple[float, float, float, float] | None = (0.1, 0.03, 2.5, 0.5)
    """Size as a fraction of the canvas and its range, height over width and its range: what the
    authors call anchors. None lets width and height be anything."""
    step: float = 0.2
    """Furthest that an object moves in a frame, in units of its centre (the canvas is 2 wide)."""
    attention: bool = True
    """Whether propagation looks at the map around the object's last place (Fig. 8 a, b)."""
    attended: float = 0.5
    """Part of the map's width and height that it looks at."""
    rejection: bool = True
    """Whether proposals that lie on propagated objects are rejected (Fig. 8 a, b)."""
    overlap: float = 0.3
    """tau of Algorithm 1: share of a proposal's area from which on it is rejected."""
    mask_stride: int = 1
    """Pixels of the canvas a side for one of the masks that are compared."""
    distinct: float = 1.0
    """IoU with a likelier proposal's box from which on a proposal is the same object again."""
    known: float = 0.0
    """How near a proposal's box may be to that of who is followed (`boxes.apart`) and not be
    rejected: masks of a few pixels tell little. The paper goes by masks alone."""
    doubled: float = 1.0
    """IoU of two followed boxes from which on one counts as not seen: both follow the same
    (`boxes.doubled`). The paper has no such rule."""
    birth: float = 0.7
    """Presence above which a proposal becomes an object that is followed."""
    death: float = 0.5
    """Presence below which an object counts as not seen."""
    patience: int = 3
    """Frames that an object may be out of sight and still come back as itself."""
    deletion: Literal["patience", "paper"] = "patience"
    """By patience, or by the authors' sum of 1 - z_pres over a life, by which every track ends."""

    @property
    def grid(self) -> tuple[int, int]:
        """(rows, columns) of whole cells."""
        return self.frame_size[0] // self.cell, self.frame_size[1] // self.cell

    @property
    def cells(self) -> int:
        """N."""
        return self.grid[0] * self.grid[1]

    @property
    def proposed(self) -> int:
        """M."""
        return min(self.proposals or self.cells, self.cells)

    @property
    def windows(self) -> tuple[int, int]:
        """(h, w) of what a glimpse may draw on."""
        height, width = self.frame_size
        return min(self.window or height, height), min(self.window or width, width)

    @property
    def masks(self) -> tuple[int, int]:
        """(h, w) of the masks that are compared."""
        return self.frame_size[0] // self.mask_stride, self.frame_size[1] // self.mask_stride

    def table(self) -> Table:
        """Return the layers.

        Raises:
            ValueError: there are none for that canvas, cell, glimpse and masks.
        """
        height, width = self.frame_size
        if self.architecture == "fast":
            if self.cell not in (8, 16) or self.mask_stride != 4:
                raise ValueError(
                    "ScalorConfig: expected for the fast layers cells of 8 or 16 and a "
                    f"mask_stride of 4, got {self.cell} and {self.mask_stride}"
                )
            return fast_table(self.cell)
        if height != width or self.mask_stride != 1:
            raise ValueError(
                "ScalorConfig: expected for the paper's layers a square canvas and a mask_stride "
                f"of 1, got {height} x {width} and {self.mask_stride}"
            )
        return paper_table(height, self.cell, self.glimpse)

    def size(self, raw: Tensor) -> Tensor:
        """(…, 2) raw -> width and height as a fraction of the canvas."""
        if self.anchor is None:
            return torch.sigmoid(raw)
        size, size_range, ratio, ratio_range = self.anchor
        side = size + size_range * torch.tanh(raw[..., :1])
        root = (ratio + ratio_range * torch.tanh(raw[..., 1:])).sqrt()
        return torch.cat([side / root, side * root], dim=-1)
