"""SPACE: spatially parallel attention and component extraction (Lin et al. 2020, arXiv 2001.02407).

A frame is a foreground of objects, one at most for every cell of a grid, over a background:
p(x) = alpha p(x|z_fg) + (1 - alpha) sum_k pi_k p(x|z_bg_k) (eq. 1). All cells are inferred in
parallel (eq. 7, Algorithm 1). `space_loss.py` has the ELBO (eq. 6), `space_background.py` the
background (Algorithms 3 and 4).

Two readings from the same code. `dense` is the paper: every cell is glimpsed, decoded and warped
onto the whole canvas. Otherwise only the `rendered` likeliest cells are, each within a window of
its own; at rendered = all and window = canvas the two agree (tests/test_space.py).

Letters: B batch, N cells (rows x columns of the grid), K rendered cells or slots, D z_what,
H W canvas, g glimpse side.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from objrl.frames import to_image
from objrl.models.space_background import BackgroundOutput, Components, Static
from objrl.nn.blocks import Conv, conv_stack
from objrl.nn.distributions import Gaussian, relaxed_bernoulli, take
from objrl.nn.spatial import Layers, composite, composite_dense, extract, place
from objrl.perceiver import Decomposition
from objrl.slots import NO_TRACK, Slots


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
    background: Literal["components", "static"] = "components"
    """K components as in the paper, or a known picture with a weak residual."""
    components: int = 3
    """K of the background's mixture."""
    box_margin: float = 0.0
    """How much wider than the object z_where was taught to be: slots get its box divided by that.
    0 where nothing taught it: slots get the box around the decoded mask, which costs a decoder."""
    max_slots: int = 64
    """Rows of the slots that an agent gets."""
    threshold: float = 0.5
    """Presence above which a cell counts as an object."""

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


@dataclass(frozen=True)
class SpaceOutput:
    """Everything that the loss, the pictures and the slots need.

    Attributes:
        cells: latents of all N cells.
        z_pres: (B, N, 1) relaxed samples in training, probabilities otherwise.
        index: (B, K) int64 cells that were glimpsed.
        z_where: (B, N, 4) width, height in (0, 1), centre x, y in [-1, 1].
        z_depth: (B, N, 1).
        what: (B, K, D) of the glimpsed cells.
        z_what: (B, K, D).
        appearance: (B, K, 3, g, g) o_att in [0, 1].
        mask: (B, K, 1, g, g) alpha_att in [0, 1], before z_pres.
        foreground: mu_fg and alpha on the canvas.
        background: the explained background.
    """

    cells: Cells
    z_pres: Tensor
    index: Tensor
    z_where: Tensor
    z_depth: Tensor
    what: Gaussian
    z_what: Tensor
    appearance: Tensor
    mask: Tensor
    foreground: Layers
    background: BackgroundOutput

    @property
    def reconstruction(self) -> Tensor:
        """(B, 3, H, W) mean of eq. 1; mu_fg holds alpha already (see `space_loss`)."""
        return self.foreground.mean + (1 - self.foreground.alpha) * self.background.image


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
        self.appearance_head = _head(last, 3, layers.head_up)
        self.mask_head = _head(last, 1, layers.head_up)
        self.register_buffer("cell_index", _cell_index(config.grid), persistent=False)

    cell_index: Tensor

    def infer(self, image: Tensor) -> Cells:
        """(B, C, H, W) -> the latents of every cell; ZPresNet, ZDepthNet, ZScaleNet, ZShiftNet."""
        rows, columns = self.config.grid
        features = self.image_encoder(image)[..., :rows, :columns]
        if self.residual is not None:
            features = torch.cat([features, self.residual(features)], dim=1)
            features = self.residual_encoder(features)
        heads = self.heads(features).flatten(2).transpose(1, 2)
        logit, depth, scale, shift = heads.split([1, 2, 4, 4], dim=-1)
        # The authors' code bounds the logit to ±8.8, so that presence never saturates for good.
        return Cells(
            8.8 * torch.tanh(logit),
            *(Gaussian.from_raw(raw) for raw in (depth, scale, shift)),
        )

    def where(self, scale: Tensor, shift: Tensor) -> Tensor:
        """Algorithm 2: raw z_scale and z_shift (B, N, 2) -> z_where (B, N, 4).

        A cell's object may sit up to one cell from the cell's centre, on either side.
        """
        height, width = self.config.frame_size
        centre = (self.cell_index + 0.5 + torch.tanh(shift)) * 2 * self.config.cell
        x, y = centre[..., :1] / width - 1, centre[..., 1:] / height - 1
        return torch.cat([torch.sigmoid(scale), x, y], dim=-1)

    def encode_glimpses(self, glimpses: Tensor) -> Gaussian:
        """(B, K, 3, g, g) -> q(z_what | x, z_where)."""
        code = self.what_head(self.glimpse_encoder(glimpses.flatten(0, 1)).flatten(1))
        return Gaussian.from_raw(code.unflatten(0, glimpses.shape[:2]))

    def decode(self, z_what: Tensor) -> tuple[Tensor, Tensor]:
        """(B, K, D) -> o_att (B, K, 3, g, g), alpha_att (B, K, 1, g, g); both in [0, 1]."""
        drawn = self.glimpse_decoder(z_what.flatten(0, 1)[:, :, None, None])
        appearance, mask = self.appearance_head(drawn), self.mask_head(drawn)
        return appearance.unflatten(0, z_what.shape[:2]), mask.unflatten(0, z_what.shape[:2])


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

    The table is for cells of 8; for 16 its last 3 x 3 layer has stride 2 (appendix D.3), for 32
    the one before it too (authors' code).
    """
    extra = {8: 0, 16: 1, 32: 2}.get(cell)
    if extra is None:
        raise ValueError(f"SpaceConfig.cell: expected 8, 16 or 32 pixels, got {cell}")
    changed = list(rows)
    plain = [i for i, row in enumerate(rows) if row.kernel == 3 and row.stride == 1]
    for i in plain[::-1][:extra]:
        changed[i] = Conv(rows[i].channels, 3, 2, rows[i].groups)
    return changed


class Space(nn.Module):
    """The whole model; a `Detector` for `FramePerceiver`."""

    def __init__(self, config: SpaceConfig) -> None:
        super().__init__()
        self.config = config
        self.max_slots, self.what_size = config.max_slots, config.z_what
        self.foreground = Foreground(config)
        self.background: Static | Components = (
            Static(config.frame_size)
            if config.background == "static"
            else Components(config.components, config.frame_size)
        )

    def infer(self, image: Tensor) -> Cells:
        """(B, 3, H, W) in [0, 1] -> the latents of every cell."""
        if isinstance(self.background, Static):
            image = torch.cat([image, (image - self.background.picture).abs()], dim=1)
        return self.foreground.infer(image)

    def forward(self, image: Tensor, temperature: float = 0.5) -> SpaceOutput:
        """Explain images; samples in training mode, posterior means otherwise.

        Args:
            image: (B, 3, H, W) float32 in [0, 1], H W the config's frame_size.
            temperature: tau of the relaxed Bernoulli.
        """
        cells = self.infer(image)
        draw = Gaussian.sample if self.training else Gaussian.mode
        if self.training:
            z_pres = relaxed_bernoulli(cells.logit, temperature)
        else:
            z_pres = torch.sigmoid(cells.logit)
        z_where = self.foreground.where(draw(cells.scale), draw(cells.shift))
        z_depth = draw(cells.depth)
        index = self._choose(
            z_pres, self.config.cells if self.config.dense else self.config.rendered
        )
        where = take(z_where, index)
        glimpses = extract(image, where, self.foreground.glimpse)
        what = self.foreground.encode_glimpses(glimpses)
        z_what = draw(what)
        appearance, mask = self.foreground.decode(z_what)
        layers = self._draw(appearance, mask, take(z_pres, index), where, take(z_depth, index))
        return SpaceOutput(
            *(cells, z_pres, index, z_where, z_depth, what, z_what, appearance, mask, layers),
            background=self.background(image),
        )

    @property
    def _window(self) -> tuple[int, int]:
        height, width = self.config.frame_size
        side = max(height, width) if self.config.dense else self.config.window
        return min(side, height), min(side, width)

    def _choose(self, z_pres: Tensor, count: int) -> Tensor:
        """(B, count) cells of the highest presence."""
        return z_pres[..., 0].topk(min(count, self.config.cells), dim=1).indices

    def _draw(
        self, appearance: Tensor, mask: Tensor, z_pres: Tensor, where: Tensor, depth: Tensor
    ) -> Layers:
        mask = mask * z_pres[..., None, None]
        canvas = self.config.frame_size
        if self.config.dense:
            return composite_dense(appearance, mask, where, depth, canvas=canvas)
        return composite(
            *(appearance, mask, where, depth),
            canvas=canvas,
            window=self._window,
            cells=self.config.cells,
        )

    @torch.no_grad()
    def generate(self, batch: int, *, presence: float, scale: float) -> Tensor:
        """Draw scenes from the prior (eq. 3 and Algorithm 4): (B, 3, H, W).

        Args:
            batch: how many.
            presence: prior probability of z_pres.
            scale: prior mean of z_scale, before its sigmoid.
        """
        n = self.config.cells
        device = self.foreground.cell_index.device
        z_pres = torch.bernoulli(torch.full((batch, n, 1), presence, device=device))
        shift, z_depth = (torch.randn(batch, n, d, device=device) for d in (2, 1))
        where = self.foreground.where(scale + 0.1 * torch.randn_like(shift), shift)
        index = self._choose(z_pres, n if self.config.dense else self.config.rendered)
        z_what = torch.randn(batch, index.shape[1], self.config.z_what, device=device)
        appearance, mask = self.foreground.decode(z_what)
        layers = self._draw(
            *(appearance, mask, take(z_pres, index), take(where, index), take(z_depth, index))
        )
        return layers.mean + (1 - layers.alpha) * self.background.generate(batch).image

    def perceive(self, frames: Tensor) -> Percept:
        """See (B, H, W, 3) uint8 frames as an agent needs it: posterior means, no picture."""
        net = self.foreground
        image = to_image(frames, *self.config.frame_size)
        cells = self.infer(image)
        presence = torch.sigmoid(cells.logit)
        index = self._choose(presence, self.max_slots)
        where = take(net.where(cells.scale.mean, cells.shift.mean), index)
        z_what = net.encode_glimpses(extract(image, where, net.glimpse)).mean
        rows = self.max_slots
        return Percept(
            presence=_pad_rows(take(presence, index), rows),
            z_where=_pad_rows(where, rows),
            z_depth=_pad_rows(take(cells.depth.mean, index), rows),
            z_what=_pad_rows(z_what, rows),
        )

    def masks(self, z_what: Tensor) -> Tensor:
        """(B, K, D) -> (B, K, g, g) alpha_att, without the appearance beside it."""
        net = self.foreground
        mask: Tensor = net.mask_head(net.glimpse_decoder(z_what.flatten(0, 1)[:, :, None, None]))
        return mask.view(*z_what.shape[:2], *mask.shape[2:])

    def detect(self, frames: Tensor) -> Slots:
        """Return slots without identity, by falling presence, in tight boxes."""
        seen = self.perceive(frames)
        here = seen.presence > self.config.threshold
        if self.config.box_margin:
            scale, centre = seen.z_where[..., :2], seen.z_where[..., 2:]
            box = torch.cat([scale / self.config.box_margin, centre], dim=-1)
        else:
            box = tight_boxes(self.masks(seen.z_what), seen.z_where)
        box = clip_boxes(box, self.config.frame_size)
        return Slots(
            position=box[..., 2:] * here,
            scale=box[..., :2] * here,
            depth=seen.z_depth * here,
            what=seen.z_what * here,
            presence=seen.presence * here,
            track_id=torch.full_like(seen.presence, NO_TRACK, dtype=torch.int64),
        )

    def segment(self, frames: Tensor) -> Tensor:
        """Return (B, K+1, H, W) masks in the order of `detect`; a pixel goes to who draws it.

        The share of a slot is that of Algorithm 1's weighted masks; the background has the rest.
        """
        seen = self.perceive(frames)
        canvas = self.config.frame_size
        mask = (
            self.masks(seen.z_what)[:, :, None]
            * (seen.presence * (seen.presence > self.config.threshold))[..., None, None]
        )
        importance = 100 * mask * torch.sigmoid(seen.z_depth)[..., None, None]
        origin = torch.zeros_like(seen.z_where[..., :2], dtype=torch.int64)
        placed = place(torch.cat([mask, importance], dim=2), seen.z_where, origin, canvas, canvas)
        weight = torch.softmax(placed[:, :, 1], dim=1)
        share = weight * placed[:, :, 0]
        share = F.interpolate(share, frames.shape[1:3], mode="bilinear", align_corners=False)
        return torch.cat([share, 1 - share.sum(1, keepdim=True)], dim=1)

    def decompose(self, frames: Tensor) -> Decomposition:
        """Take frames apart for a picture."""
        image = to_image(frames, *self.config.frame_size)
        out = self(image)
        return Decomposition(
            image,
            out.reconstruction.clamp(0, 1),
            out.foreground.mean.clamp(0, 1),
            out.background.image.clamp(0, 1),
            out.foreground.alpha,
        )


@dataclass(frozen=True)
class Percept:
    """The latents of K slots, before they are boxed.

    Attributes:
        presence: (B, K, 1) probability.
        z_where: (B, K, 4) width, height, centre x, y: the raw box, as wide as its prior likes it.
        z_depth: (B, K, 1).
        z_what: (B, K, D).
    """

    presence: Tensor
    z_where: Tensor
    z_depth: Tensor
    z_what: Tensor


def _pad_rows(field: Tensor, rows: int) -> Tensor:
    """(B, n, …) -> (B, rows, …): a grid may have fewer cells than an agent wants slots."""
    missing = rows - field.shape[1]
    if missing <= 0:
        return field
    return torch.cat([field, field.new_zeros(len(field), missing, *field.shape[2:])], dim=1)


def clip_boxes(box: Tensor, canvas: tuple[int, int]) -> Tensor:
    """(B, K, 4) boxes -> the part of each that lies on the canvas, at least one pixel of it."""
    scale, centre = box[..., :2], box[..., 2:]
    pixel = 2 / max(canvas)
    low = (centre - scale).clamp(-1, 1 - pixel)
    high = torch.maximum((centre + scale).clamp(max=1), low + pixel)
    return torch.cat([(high - low) / 2, (low + high) / 2], dim=-1)


def tight_boxes(mask: Tensor, z_where: Tensor) -> Tensor:
    """(B, K, g, g) masks in (B, K, 4) boxes -> (B, K, 4) boxes around what they show.

    An edge lies where the mask's profile crosses half of its maximum, at a fraction of a pixel by
    linear interpolation. z_where itself obeys its prior and is up to 1.7 times too wide.
    """
    edges = [_extent(mask.amax(dim)) for dim in (-2, -1)]  # over rows: x; over columns: y
    low, high = (torch.stack([edge[i] for edge in edges], dim=-1) for i in (0, 1))
    scale, centre = z_where[..., :2], z_where[..., 2:]
    low, high = ((centre + scale * edge).clamp(-1, 1) for edge in (low, high))
    return torch.cat([(high - low) / 2, (high + low) / 2], dim=-1)


def _extent(profile: Tensor) -> tuple[Tensor, Tensor]:
    """(…, g) -> where it first and last crosses half of its maximum, in [-1, 1]."""
    count = profile.shape[-1]
    half = profile.amax(-1, keepdim=True).clamp(max=1) / 2

    def first(values: Tensor) -> Tensor:
        at = (values >= half).to(torch.uint8).argmax(-1, keepdim=True)
        inside = values.gather(-1, at)
        outside = values.gather(-1, (at - 1).clamp(min=0)) * (at > 0)
        cross = (half - outside) / (inside - outside).clamp(min=1e-6)
        return ((at - 0.5 + cross) * 2 / count - 1)[..., 0].clamp(-1, 1)

    return first(profile), -first(profile.flip(-1))
