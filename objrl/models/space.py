"""SPACE: spatially parallel attention and component extraction (Lin et al. 2020, arXiv 2001.02407).

A frame is a foreground of objects, one at most for every cell of a grid, over a background:
p(x) = alpha p(x|z_fg) + (1 - alpha) sum_k pi_k p(x|z_bg_k) (eq. 1). All cells are inferred in
parallel (eq. 7, Algorithm 1). `space_foreground.py` has their networks, `space_background.py` the
background (Algorithms 3 and 4), `space_loss.py` the ELBO (eq. 6).

Two readings from the same code. `dense` is the paper: every cell is glimpsed, decoded and warped
onto the whole canvas. Otherwise only the `rendered` likeliest cells are, each within a window of
its own; at rendered = all and window = canvas the two agree (tests/test_space.py).

Letters: B batch, N cells (rows x columns of the grid), K rendered cells or slots, D z_what,
H W canvas, g glimpse side.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from objrl.frames import to_image
from objrl.models.boxes import clip_boxes, repeated, tight_boxes
from objrl.models.space_background import (
    BackgroundOutput,
    Components,
    Smooth,
    Static,
    is_foreign,
)
from objrl.models.space_foreground import Cells, Foreground, SpaceConfig
from objrl.models.spair_background import Patches, Single
from objrl.nn.distributions import Gaussian, relaxed_bernoulli, take
from objrl.nn.spatial import Layers, composite, composite_dense, extract, place
from objrl.perceiver import Decomposition
from objrl.slots import NO_TRACK, Slots

__all__ = ["Cells", "Foreground", "Percept", "Space", "SpaceConfig", "SpaceOutput"]


@dataclass(frozen=True)
class Latents:
    """What is inferred of the objects, before anything is drawn.

    Attributes:
        cells: latents of all N cells.
        z_pres: (B, N, 1) relaxed samples in training, probabilities otherwise.
        index: (B, K) int64 cells that were glimpsed.
        z_where: (B, N, 4) width, height in (0, 1), centre x, y in [-1, 1].
        z_depth: (B, N, 1).
        what: (B, K, D) of the glimpsed cells.
        z_what: (B, K, D).
    """

    cells: Cells
    z_pres: Tensor
    index: Tensor
    z_where: Tensor
    z_depth: Tensor
    what: Gaussian
    z_what: Tensor


@dataclass(frozen=True)
class SpaceOutput(Latents):
    """Everything that the loss, the pictures and the slots need.

    Attributes:
        appearance: (B, K, 3, g, g) o_att in [0, 1].
        mask: (B, K, 1, g, g) alpha_att in [0, 1], before z_pres.
        foreground: mu_fg and alpha on the canvas.
        background: the explained background.
    """

    appearance: Tensor
    mask: Tensor
    foreground: Layers
    background: BackgroundOutput

    @property
    def reconstruction(self) -> Tensor:
        """(B, 3, H, W) the objects laid over the background, alpha counted once.

        Eq. 1 with Algorithm 1's mu_fg, which holds alpha already, has it twice in its mean; that
        darkens half-transparent edges, so the likelihood has it so and the picture has not.
        """
        return self.foreground.mean + (1 - self.foreground.alpha) * self.background.image


class Space(nn.Module):
    """The whole model; a `Detector` for `FramePerceiver`."""

    def __init__(self, config: SpaceConfig) -> None:
        super().__init__()
        if config.patch and type(self) is Space:
            raise ValueError(f"patch: SPAIR alone learns from patches, got {config.patch}")
        self.config = config
        self.max_slots, self.what_size = config.max_slots, config.z_what
        self.foreground = Foreground(config)
        self.background: Static | Components | Single | Patches
        if config.background == "components":
            self.background = Components(config.components, config.frame_size)
        elif config.background == "single":
            self.background = _one_behind(config)
        elif config.background == "smooth":
            self.background = Smooth(config.frame_size, config.faces, config.scenes)
        else:
            self.background = Static(
                *(config.frame_size, config.faces, config.flat, config.scenes, config.changing)
            )

    def infer(self, image: Tensor) -> Cells:
        """(B, 3, H, W) in [0, 1] -> the latents of every cell."""
        return self.foreground.infer(self._shown(image)[0])

    def _shown(self, image: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Add to an image, where the background is known, how far it is from that.

        Returns:
            (B, 6, H, W) and the background's picture; or the image alone.
        """
        if not self._background_is_known:
            return image, ()
        assert isinstance(self.background, Static)
        picture = self.background.picture(image)
        # In place: fresh memory for each intermediate result takes longer than the arithmetic.
        shown = image.repeat(1, 2, 1, 1)
        shown[:, 3:].sub_(picture).abs_()
        return shown, (picture,)

    @property
    def _background_is_known(self) -> bool:
        return self.config.background == "static"

    def forward(self, image: Tensor, temperature: float = 0.5) -> SpaceOutput:
        """Explain images; samples in training mode, posterior means otherwise.

        Args:
            image: (B, 3, H, W) float32 in [0, 1], H W the config's frame_size, or its patch.
            temperature: tau of the relaxed Bernoulli.
        """
        shown, picture = self._shown(image)
        seen = self.latents(shown, temperature)
        appearance, mask = self.foreground.decode(seen.z_what)
        drawn = (take(field, seen.index) for field in (seen.z_pres, seen.z_where, seen.z_depth))
        height, width = image.shape[2:]
        layers = self._draw((height, width), appearance, mask, *drawn)
        return SpaceOutput(
            **{f.name: getattr(seen, f.name) for f in fields(seen)},
            appearance=appearance,
            mask=mask,
            foreground=layers,
            background=self.background(image, *picture),
        )

    def latents(self, shown: Tensor, temperature: float) -> Latents:
        """Infer the objects of (B, C, H, W), the image first: all cells at once (eq. 7)."""
        cells = self.foreground.infer(shown)
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
        glimpses = extract(shown[:, :3], take(z_where, index), self.foreground.glimpse)
        what = self.foreground.encode_glimpses(glimpses)
        return Latents(cells, z_pres, index, z_where, z_depth, what, draw(what))

    @property
    def _window(self) -> tuple[int, int]:
        height, width = self.config.frame_size
        side = max(height, width) if self.config.dense else self.config.window
        return min(side, height), min(side, width)

    def _choose(self, z_pres: Tensor, count: int) -> Tensor:
        """(B, count) cells of the highest presence."""
        return z_pres[..., 0].topk(min(count, self.config.cells), dim=1).indices

    def _draw(
        self,
        canvas: tuple[int, int],
        appearance: Tensor,
        mask: Tensor,
        z_pres: Tensor,
        where: Tensor,
        depth: Tensor,
    ) -> Layers:
        mask = mask * z_pres[..., None, None]
        if self.config.dense:
            return composite_dense(appearance, mask, where, depth, canvas=canvas)
        return composite(
            *(appearance, mask, where, depth),
            canvas=canvas,
            window=self._window,
            cells=self.config.cells,
        )

    @torch.no_grad()
    def generate(
        self,
        batch: int,
        *,
        presence: float,
        scale_mean: tuple[float, float],
        scale_std: float,
    ) -> Tensor:
        """Draw scenes from the prior (eq. 3 and Algorithm 4): (B, 3, H, W) in [0, 1].

        Args:
            batch: how many.
            presence: prior probability of z_pres.
            scale_mean: prior mean of z_scale before its sigmoid, width and height.
            scale_std: its standard deviation.
        """
        n = self.config.cells
        device = self.foreground.cell_index.device
        z_pres = torch.bernoulli(torch.full((batch, n, 1), presence, device=device))
        shift, z_depth = (torch.randn(batch, n, d, device=device) for d in (2, 1))
        scale = torch.tensor(scale_mean, device=device) + scale_std * torch.randn_like(shift)
        where = self.foreground.where(scale, shift)
        index = self._choose(z_pres, n if self.config.dense else self.config.rendered)
        z_what = torch.randn(batch, index.shape[1], self.config.z_what, device=device)
        appearance, mask = self.foreground.decode(z_what)
        drawn = (take(field, index) for field in (z_pres, where, z_depth))
        layers = self._draw(self.config.frame_size, appearance, mask, *drawn)
        scene = layers.mean + (1 - layers.alpha) * self.background.generate(batch).image
        return scene.clamp(0, 1)

    def perceive(self, frames: Tensor, least: float = 0.0) -> Percept:
        """See (B, H, W, 3) uint8 frames as an agent needs it: posterior means, no picture.

        Where that saves time, cells whose presence is `least` or below are not looked into: their
        rows are zeros, and come last as they do anyway.
        """
        net = self.foreground
        shown, _ = self._shown(to_image(frames, *self.config.frame_size))
        cells = net.infer(shown)
        presence = torch.sigmoid(cells.logit)
        index = self._choose(presence, self.max_slots)
        if least > 0 and _on_host(presence):  # elsewhere, to wait for the count would take longer
            index = index[:, : max(1, int((presence > least).sum(1).max()))]
        where = take(net.where(cells.scale.mean, cells.shift.mean), index)
        # Where the background is known, what differs from it shows an object's outline for free;
        # in black and white, so that the outline's half height is at the pixels' borders.
        known = self._background_is_known
        far = shown[:, 3:].amax(1, keepdim=True) > self.config.contrast if known else shown[:, :0]
        if known:  # what is nowhere like the background is another scene, and its things unknown
            presence = presence * ~is_foreign(far)[:, None, None]
        z_what = net.encode_glimpses(extract(shown[:, :3], where, net.glimpse)).mean
        if known:
            outline = extract(far.to(shown.dtype), where, net.glimpse)[:, :, 0]
        else:
            outline = self.masks(z_what)
        depth = take(cells.depth.mean, index)
        return Percept(take(presence, index), where, depth, z_what, outline).padded(self.max_slots)

    def masks(self, z_what: Tensor) -> Tensor:
        """(B, K, D) -> (B, K, g, g) alpha_att."""
        return self.foreground.decode(z_what)[1][:, :, 0]

    def detect(self, frames: Tensor) -> Slots:
        """Return slots without identity, by falling presence, in tight boxes."""
        seen, box = self._objects(frames)
        here = seen.presence > 0
        return Slots(
            position=box[..., 2:] * here,
            velocity=torch.zeros_like(box[..., 2:]),
            scale=box[..., :2] * here,
            depth=seen.z_depth * here,
            what=seen.z_what * here,
            presence=seen.presence,
            track_id=torch.full_like(seen.presence, NO_TRACK, dtype=torch.int64),
        )

    def _objects(self, frames: Tensor) -> tuple[Percept, Tensor]:
        """See each object once: rows that show none, or one again, have presence 0 and come last.

        Returns:
            What is seen, and the objects' tight boxes (B, K, 4).
        """
        config = self.config
        seen = self.perceive(frames, config.threshold)
        box = tight_boxes(seen.outline, seen.z_where, config.reach)
        box = clip_boxes(box, config.frame_size)
        here = seen.presence > config.threshold
        here &= ~repeated(box, seen.presence * here, config.distinct)
        order = torch.argsort((~here[..., 0]).to(torch.uint8), dim=1, stable=True)
        batch = torch.arange(len(order), device=order.device)[:, None]
        sorted_rows = Percept(
            presence=(seen.presence * here)[batch, order],
            z_where=seen.z_where[batch, order],
            z_depth=seen.z_depth[batch, order],
            z_what=seen.z_what[batch, order],
            outline=seen.outline[batch, order],
        )
        return sorted_rows, box[batch, order]

    def segment(self, frames: Tensor) -> Tensor:
        """Return (B, K+1, H, W) masks in the order of `detect`; a pixel goes to who draws it.

        A slot's share is its weighted mask of Algorithm 1, with the K rows as all the cells that
        there are; the background has the rest.
        """
        seen, _ = self._objects(frames)
        canvas = self.config.frame_size
        # Without a known background the outlines are the masks already.
        mask = self.masks(seen.z_what) if self._background_is_known else seen.outline
        mask = mask[:, :, None] * seen.presence[..., None, None]
        importance = 100 * mask * torch.sigmoid(seen.z_depth)[..., None, None]
        origin = torch.zeros_like(seen.z_where[..., :2], dtype=torch.int64)
        placed = place(torch.cat([mask, importance], dim=2), seen.z_where, origin, canvas, canvas)
        share = torch.softmax(placed[:, :, 1], dim=1) * placed[:, :, 0]
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
        outline: (B, K, g, g) where in z_where's box something is seen: what differs from the
            background if that is known, else the decoded mask alpha_att.
    """

    presence: Tensor
    z_where: Tensor
    z_depth: Tensor
    z_what: Tensor
    outline: Tensor

    def padded(self, rows: int) -> Percept:
        """Return as many rows, empty ones last."""
        return Percept(*(_pad_rows(getattr(self, f.name), rows) for f in fields(self)))


def _one_behind(config: SpaceConfig) -> Single | Patches:
    """Return the background without parts: of the canvas, or of each patch."""
    size, side = config.frame_size, config.patch
    return Patches(size, side) if side else Single(size)


def _on_host(tensor: Tensor) -> bool:
    """Say whether values can be looked at without waiting for a device."""
    return tensor.device.type == "cpu"


def _pad_rows(field: Tensor, rows: int) -> Tensor:
    """(B, n, …) -> (B, rows, …): a grid may have fewer cells than an agent wants slots."""
    missing = rows - field.shape[1]
    if missing <= 0:
        return field
    return torch.cat([field, field.new_zeros(len(field), missing, *field.shape[2:])], dim=1)
