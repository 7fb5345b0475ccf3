"""The foreground of SPACE: its size, its tables of layers (appendix D.3) and its networks.

Algorithm 1's networks and Algorithm 2; what is done with them is in `space.py`.

Letters: B batch, N cells (rows x columns of the grid), K glimpsed cells, D z_what, H W canvas,
g glimpse side.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from objrl.nn.blocks import Conv, conv_stack
from objrl.nn.distributions import Gaussian


@dataclass(frozen=True)
class SpaceConfig:
    """The size and shape of a SPACE; what training alone needs is in the presets."""

    frame_size: tuple[int, int] = (128, 128)
    """Canvas (H, W) that frames are resized to: the paper's 128 x 128, or all of Atari's."""
    cell: int = 8
    """Side of a grid cell in canvas pixels: 8 makes the paper's 16 x 16 grid of 128 x 128."""
    architecture: Literal["paper", "fast"] = "paper"
    """Which table of layers: the paper's D.3, or our small one for 16 x 16 glimpses."""
    z_what: int = 32
    """D, size of the appearance latent."""
    dense: bool = True
    """Glimpse and draw every cell on the whole canvas, as the paper does."""
    rendered: int = 64
    """K, how many cells are glimpsed and drawn when not dense: those of the highest presence."""
    window: int = 32
    """Side in pixels of the square that a glimpse may draw on when not dense."""
    background: Literal["components", "single", "static", "smooth"] = "components"
    """K components as in the paper; one, as the paper gives SPAIR; a known picture with a weak
    residual; or a stronger residual alone, for shaded scenes that differ from frame to frame."""
    faces: int = 1
    """F of the known picture: how many backgrounds a pixel may show."""
    scenes: int = 1
    """How many games' backgrounds are known."""
    flat: int = 0
    """Pixels in a row or column of one colour that are background wherever they are, where large
    areas change or scroll; 0 where they do not."""
    changing: tuple[int, ...] = ()
    """The scenes whose large areas do, where others' do not; empty for all or none of them."""
    contrast: float = 24 / 255
    """How far from the known picture a pixel is seen to be an object's, for tight boxes."""
    reach: float = 1.0
    """How much of z_where's box a tight box may fill, from the middle: what is further out belongs
    to a neighbour, where boxes were trained to have a margin."""
    distinct: float = 0.6
    """IoU with a likelier object's box from which on a box is the same object once more."""
    components: int = 3
    """K of the background's mixture."""
    max_slots: int = 64
    """Rows of the slots that an agent gets."""
    threshold: float = 0.5
    """Presence above which a cell counts as an object."""
    patch: int = 0
    """Side of the squares that SPAIR-P learns from: z_scale is relative to them, and each has a
    background of its own. 0 for the canvas."""

    @property
    def grid(self) -> tuple[int, int]:
        """(rows, columns) of whole cells; what is left over is in reach of the last ones."""
        return self.frame_size[0] // self.cell, self.frame_size[1] // self.cell

    @property
    def cells(self) -> int:
        """N."""
        return self.grid[0] * self.grid[1]


@dataclass(frozen=True)
class Architecture:
    """Layers of the foreground, as the tables of appendix D.3 list them."""

    glimpse: int
    image_encoder: tuple[Conv, ...]
    """Without the strides of the last layers, which follow from the cell's side."""
    residual: tuple[Conv, ...]
    glimpse_encoder: tuple[Conv, ...]
    glimpse_decoder: tuple[Conv, ...]
    head_up: int = 1
    """Sub-pixel factor of the two heads that end the glimpse decoder."""


PAPER = Architecture(
    glimpse=32,
    image_encoder=(
        *(Conv(16, 4, 2, 4), Conv(32, 4, 2, 8), Conv(64, 4, 2, 8)),
        *(Conv(128, 3, 1, 16), Conv(256, 3, 1, 32), Conv(128, 1, 1, 16)),
    ),
    residual=(Conv(128, 3, 1, 16), Conv(128, 3, 1, 16)),
    glimpse_encoder=(
        *(Conv(16, 3, 1, 4), Conv(32, 4, 2, 8), Conv(32, 3, 1, 4)),
        *(Conv(64, 4, 2, 8), Conv(128, 4, 2, 8), Conv(256, 4, 1, 16)),
    ),
    glimpse_decoder=(
        Conv(256, 1, 1, 16),
        *(Conv(128, 1, 1, 16, up=2), Conv(128, 3, 1, 16)),
        *(Conv(128, 1, 1, 16, up=2), Conv(128, 3, 1, 16)),
        *(Conv(64, 1, 1, 8, up=2), Conv(64, 3, 1, 8)),
        *(Conv(32, 1, 1, 8, up=2), Conv(32, 3, 1, 8)),
        *(Conv(16, 1, 1, 4, up=2), Conv(16, 3, 1, 4)),
    ),
)
FAST = Architecture(
    glimpse=16,
    image_encoder=(
        *(Conv(24, 6, 4, 4), Conv(48, 4, 2, 8)),
        *(Conv(64, 3, 1, 8), Conv(64, 3, 1, 8)),
    ),
    residual=(),
    glimpse_encoder=(Conv(16, 4, 2, 4), Conv(32, 4, 2, 4), Conv(64, 4, 1, 8)),
    glimpse_decoder=(Conv(32, 1, 1, 4, up=4), Conv(16, 3, 1, 4, up=2)),
    head_up=2,
)
ARCHITECTURES = {"paper": PAPER, "fast": FAST}


@dataclass(frozen=True)
class Cells:
    """The latents of every cell before any is glimpsed; Gaussians in the paper's own units.

    Attributes:
        logit: (B, N, 1) of rho, the probability of z_pres.
        depth: (B, N, 1) z_depth; larger is nearer.
        scale: (B, N, 2) z_scale before its sigmoid, width and height.
        shift: (B, N, 2) z_shift before its tanh, x and y.
    """

    logit: Tensor
    depth: Gaussian
    scale: Gaussian
    shift: Gaussian


class Foreground(nn.Module):
    """Algorithm 1's networks."""

    def __init__(self, config: SpaceConfig) -> None:
        super().__init__()
        layers = ARCHITECTURES[config.architecture]
        self.config, self.glimpse = config, layers.glimpse
        rows = _strided(layers.image_encoder, config.cell)
        width = rows[-1].channels
        # Where the background is known, what differs from it is shown too.
        inputs = 6 if config.background == "static" else 3
        self.image_encoder = conv_stack(inputs, rows)
        self.residual = conv_stack(width, layers.residual) if layers.residual else None
        self.residual_encoder = conv_stack(2 * width, layers.residual[:1])
        self.heads = nn.Conv2d(width, 1 + 2 + 4 + 4, 1)
        self.glimpse_encoder = conv_stack(3, layers.glimpse_encoder)
        self.what_head = nn.Linear(layers.glimpse_encoder[-1].channels, 2 * config.z_what)
        self.glimpse_decoder = conv_stack(config.z_what, layers.glimpse_decoder)
        last = layers.glimpse_decoder[-1].channels
        # The table's two heads, appearance and mask, as one convolution.
        self.drawing_head = _head(last, 3 + 1, layers.head_up)
        self.register_buffer("cell_index", _cell_index(config.grid), persistent=False)

    cell_index: Tensor

    def infer(self, image: Tensor) -> Cells:
        """(B, C, H, W) -> the latents of every cell; ZPresNet, ZDepthNet, ZScaleNet, ZShiftNet."""
        return self.read(self.features(image))

    def features(self, image: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, ·, rows, columns) what is seen from every cell."""
        rows, columns = (side // self.config.cell for side in image.shape[2:])
        features: Tensor = self.image_encoder(image)[..., :rows, :columns]
        if self.residual is not None:
            features = torch.cat([features, self.residual(features)], dim=1)
            features = self.residual_encoder(features)
        return features

    def read(self, features: Tensor) -> Cells:
        """(B, ·, rows, columns) of any cells -> their latents, row by row."""
        heads = self.heads(features).flatten(2).transpose(1, 2)
        logit, depth, scale, shift = heads.split([1, 2, 4, 4], dim=-1)
        # The authors' code bounds the logit to ±8.8, so that presence never saturates for good.
        return Cells(
            8.8 * torch.tanh(logit),
            *(Gaussian.from_raw(raw) for raw in (depth, scale, shift)),
        )

    def where(
        self,
        scale: Tensor,
        shift: Tensor,
        cell: Tensor | None = None,
        canvas: tuple[int, int] | None = None,
    ) -> Tensor:
        """Algorithm 2: raw z_scale and z_shift (B, N, 2) -> z_where (B, N, 4).

        A cell's object may sit up to one cell from the cell's centre, on either side. `cell` says
        of which cells (columns and rows), by default of all; `canvas` how large (H, W) the image
        is, where that is a patch.
        """
        height, width = canvas or self.config.frame_size
        index = self.cell_index if cell is None else cell
        centre = (index + 0.5 + torch.tanh(shift)) * 2 * self.config.cell
        x, y = centre[..., :1] / width - 1, centre[..., 1:] / height - 1
        size = torch.sigmoid(scale)
        if patch := self.config.patch:
            w, h = size[..., :1] * (patch / width), size[..., 1:] * (patch / height)
            size = torch.cat([w, h], dim=-1)
        return torch.cat([size, x, y], dim=-1)

    def encode_glimpses(self, glimpses: Tensor) -> Gaussian:
        """(B, K, 3, g, g) -> q(z_what | x, z_where)."""
        code = self.what_head(self.glimpse_encoder(glimpses.flatten(0, 1)).flatten(1))
        return Gaussian.from_raw(code.unflatten(0, glimpses.shape[:2]))

    def decode(self, z_what: Tensor) -> tuple[Tensor, Tensor]:
        """(B, K, D) -> o_att (B, K, 3, g, g), alpha_att (B, K, 1, g, g); both in [0, 1]."""
        drawn = self.glimpse_decoder(z_what.flatten(0, 1)[:, :, None, None])
        drawn = self.drawing_head(drawn).unflatten(0, z_what.shape[:2])
        return drawn[:, :, :3], drawn[:, :, 3:]


def _head(inputs: int, outputs: int, up: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inputs, outputs * up**2, 3, 1, 1), nn.PixelShuffle(up), nn.Sigmoid()
    )


def _cell_index(grid: tuple[int, int]) -> Tensor:
    """(N, 2) column and row of every cell, row by row."""
    rows, columns = torch.meshgrid(*(torch.arange(n) for n in grid), indexing="ij")
    return torch.stack([columns, rows], dim=-1).view(-1, 2).float()


def _strided(rows: tuple[Conv, ...], cell: int) -> list[Conv]:
    """Give the table's first stride-1 layers, from the last 3 x 3 on, the strides that cells need.

    The table is for cells of 8. For 16 "the last layer" has stride 2 (appendix D.3), which in the
    authors' code is the last of 3 x 3, not the 1 x 1 after it; for 32 the one before it too.
    """
    extra = {8: 0, 16: 1, 32: 2}.get(cell)
    if extra is None:
        raise ValueError(f"SpaceConfig.cell: expected 8, 16 or 32 pixels, got {cell}")
    changed = list(rows)
    plain = [i for i, row in enumerate(rows) if row.kernel == 3 and row.stride == 1]
    for i in plain[::-1][:extra]:
        changed[i] = Conv(rows[i].channels, 3, 2, rows[i].groups)
    return changed
