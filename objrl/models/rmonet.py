"""R-MONet: boxes and masks that must agree (under review, ICLR 2021).

"Region-Based Unsupervised Scene Decomposition and Representation via Consistency of Object
Representations". A region proposal network says where objects may be, a segmentation head cuts each
out of its region, and MONet's VAE explains what was cut out. Masks teach boxes in turn: those drawn
round their pieces (`objrl.pretrain.pseudo_boxes`) are what the network should have proposed.
`attend` is eq. 1 and section 3.2; the loss (eq. 3) is MONet's and `proposal_terms`. Its eq. 8 takes
background and foreground apart, against eq. 2; this is eq. 2.

What the paper leaves open is ours: widths, group norm, the order of the objects (by falling score),
and that a mask is 0 beyond its enlarged region.

Letters: B batch, K slots, R = K - 1 regions, H W canvas, h w a map.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from objrl.models.mixture import MixtureDetector, Scene
from objrl.models.monet import ComponentVae, MonetConfig, MonetOutput
from objrl.nn.mixture import stick_breaking
from objrl.nn.proposals import ProposalHead, Proposed, best_proposals
from objrl.nn.resnet import Pyramid, ResNet18, channels_of

_NOTHING = -20.0
"""Logit of what a region does not have."""

_ALIGNED = 14
"""Side of a region's map in the ablation, as in Mask R-CNN."""


@dataclass(frozen=True)
class RmonetConfig:
    """The size of an R-MONet."""

    vae: MonetConfig = field(default_factory=MonetConfig)
    """Canvas, number of slots (the background is the last), and the VAE; its `attention` is not
    used."""
    head: Literal["unet", "lite", "align"] = "unet"
    """R-MONet (UNet), (Lite), or the ablation (ROI Align)."""
    width: int = 64
    """Channels of the backbone's first map."""
    depth: int = 256
    """Channels of the pyramid."""
    anchors: tuple[float, ...] = (16.0, 32.0, 64.0, 128.0, 256.0)
    """Sizes of the anchors in pixels, for each map of the pyramid."""
    ratios: tuple[float, ...] = (0.5, 1.0, 2.0)
    """Height over width of them."""
    suppress: float = 0.3
    """IoU above which two proposals are one."""
    expand: float = 0.3
    """How far a region goes beyond its box at each side, in units of the box."""
    sure: float = 0.5
    """Score below which nothing is proposed; while training, all regions are used."""

    def __post_init__(self) -> None:
        if len(self.anchors) != 5:
            raise ValueError(
                f"anchors: expected 5 sizes, one for each map of the pyramid, got {self.anchors}"
            )
        if self.head not in _HEADS:
            raise ValueError(f"head: expected one of {', '.join(_HEADS)}, got {self.head!r}")

    def with_slots(self, count: int) -> RmonetConfig:
        """Return the same with another K, which training does not fix."""
        return replace(self, vae=self.vae.with_slots(count))


@dataclass(frozen=True)
class RmonetOutput:
    """Everything that the loss and the pictures need.

    Attributes:
        monet: the scene, and the masks as the VAE paints them.
        proposed: what was said of all anchors.
        box: (B, R, 4) x0 y0 x1 y1 in pixels, the regions.
        score: (B, R) in [0, 1], 0 where there is none.
    """

    monet: MonetOutput
    proposed: Proposed
    box: Tensor
    score: Tensor


class Rmonet(MixtureDetector):
    """The whole model; a `Detector` for `FramePerceiver`."""

    def __init__(self, config: RmonetConfig) -> None:
        super().__init__()
        self.config = config
        self.frame_size = config.vae.frame_size
        self.max_slots, self.what_size = config.vae.slots, config.vae.z_what
        self.backbone = ResNet18(3, config.width)
        self.pyramid = Pyramid(self.backbone.channels[1:], config.depth)
        self.proposals = ProposalHead(config.depth, config.anchors, config.ratios)
        self.head = _HEADS[config.head](config)
        self.component = ComponentVae(config.vae)

    def forward(self, image: Tensor, learn: bool | None = None) -> RmonetOutput:
        """Explain (B, 3, H, W) images.

        Args:
            image: in [0, 1].
            learn: draw the codes and use all regions, or take means and the sure ones; None: as
                the module is in training.
        """
        learn = self.training if learn is None else learn
        log_mask, proposed, box, score = self.attend(image, 0.0 if learn else self.config.sure)
        monet = MonetOutput(*self.component(image, log_mask, learn))
        return RmonetOutput(monet, proposed, box, score)

    def attend(self, image: Tensor, sure: float) -> tuple[Tensor, Proposed, Tensor, Tensor]:
        """Cut (B, 3, H, W) images into masks (eq. 1).

        Args:
            image: in [0, 1].
            sure: score below which there is no region.

        Returns:
            (B, K, 1, H, W) logarithms of masks, what is proposed, regions, their scores.
        """
        maps = self.backbone(image)
        pyramid = self.pyramid(maps[1:])
        proposed = self.proposals(pyramid, self.frame_size)
        box, score = best_proposals(
            *(proposed, self.frame_size, self.max_slots - 1), threshold=self.config.suppress
        )
        score = torch.where(score >= sure, score, 0.0)
        logit = self.head(image, maps, pyramid, box).float()
        region = region_mask(box, self.frame_size, self.frame_size, self.config.expand)
        mine = (region != 0) & (score > 0)[:, :, None, None, None]
        logit = torch.where(mine, logit, _NOTHING)
        rest = torch.zeros_like(logit[:, :1])
        return stick_breaking(torch.cat([logit, rest], 1)), proposed, box, score

    def explain(self, image: Tensor) -> Scene:
        """(B, 3, H, W) in [0, 1] -> what is likeliest, in training mode too."""
        out: RmonetOutput = self(image, learn=False)
        return out.monet.scene

    def paint(self, code: Tensor) -> Tensor:
        """(B, K, D) codes -> (B, 3, H, W), by the masks that the VAE paints."""
        return self.component.painted(code)


def region_mask(
    box: Tensor, size: tuple[int, int], canvas: tuple[int, int], expand: float
) -> Tensor:
    """Return the masks of ROI masking: 1 in a box, -1 round it, 0 elsewhere (S4Net, section 3.3).

    Args:
        box: (B, R, 4) in pixels of the canvas.
        size: (h, w) of the map.
        canvas: (H, W).
        expand: how far -1 goes beyond the box at each side, in units of the box.

    Returns:
        (B, R, 1, h, w).
    """
    height, width = size
    y = (torch.arange(height, device=box.device) + 0.5) * canvas[0] / height
    x = (torch.arange(width, device=box.device) + 0.5) * canvas[1] / width
    more = (box[..., 2:] - box[..., :2]) * expand
    # A box thinner than a map's cell must not fall between the middles of two.
    least = torch.stack([x[0], y[0]])  # half a cell: the first one's middle
    inner = _within(box, x, y, least)
    outer = _within(torch.cat([box[..., :2] - more, box[..., 2:] + more], -1), x, y, least)
    return (2 * inner - outer)[:, :, None]


def _within(box: Tensor, x: Tensor, y: Tensor, least: Tensor) -> Tensor:
    """(B, R, h, w) 1 where a box reaches, 0 elsewhere."""
    centre = (box[..., :2] + box[..., 2:]) / 2
    half = torch.maximum((box[..., 2:] - box[..., :2]) / 2, least)
    across = (x - centre[..., :1]).abs() <= half[..., :1]
    down = (y - centre[..., 1:]).abs() <= half[..., 1:]
    return (down[..., :, None] & across[..., None, :]).to(box.dtype)


class _Head(nn.Module):
    """What cuts objects out of their regions."""

    def __init__(self, config: RmonetConfig) -> None:
        super().__init__()
        self.canvas, self.expand = config.vae.frame_size, config.expand

    def masked(self, here: Tensor, box: Tensor) -> Tensor:
        """(B, C, h, w) -> (B R, C, h, w): what each region sees of a map."""
        size = here.shape[-2], here.shape[-1]
        region = region_mask(box, size, self.canvas, self.expand)
        return (here[:, None] * region).flatten(0, 1)

    def whole(self, here: Tensor, box: Tensor) -> Tensor:
        """(B R, C, h, w) -> (B, R, C, H, W)."""
        large = F.interpolate(here, self.canvas, mode="bilinear", align_corners=False)
        return large.view(*box.shape[:2], *large.shape[1:])


class _LiteHead(_Head):
    """S4Net's: conv3 of the pyramid alone, in its region."""

    def __init__(self, config: RmonetConfig) -> None:
        super().__init__(config)
        self.layers = _plain(config.depth, config.depth)

    def forward(
        self, image: Tensor, maps: list[Tensor], pyramid: list[Tensor], box: Tensor
    ) -> Tensor:
        """Return (B, R, 1, H, W) logits."""
        return self.whole(self.layers(self.masked(pyramid[1], box)), box)


class _UnetHead(_Head):
    """The paper's: up from conv5, seen whole, to conv1 and the image, seen in the region (3.2).

    The image itself, at full size, is ours: conv1 is half as large, and so would be the edges.
    """

    def __init__(self, config: RmonetConfig) -> None:
        super().__init__(config)
        first = channels_of(config.width)
        height, width = self.canvas
        for _ in range(5):
            height, width = -(-height // 2), -(-width // 2)
        flat, self.bottom = first[-1] * height * width, (first[-1], height, width)
        self.middle = nn.Sequential(
            *(nn.Flatten(), nn.Linear(flat, 128), nn.ReLU()),
            *(nn.Linear(128, flat), nn.ReLU()),
        )
        layers, before = [], first[-1]
        for beside in (*reversed(first[:-1]), 3):
            outputs = max(16, beside)
            layers.append(_block(before + beside, outputs))
            before = outputs
        self.up = nn.ModuleList(layers)
        self.out = nn.Conv2d(before, 1, 1)

    def forward(
        self, image: Tensor, maps: list[Tensor], pyramid: list[Tensor], box: Tensor
    ) -> Tensor:
        """Return (B, R, 1, H, W) logits."""
        count = box.shape[1]
        here = self.middle(maps[-1]).unflatten(1, self.bottom)
        whole, regional = [maps[3]], [maps[2], maps[1], maps[0], image]
        beside = [here.repeat_interleave(count, 0) for here in whole]
        beside += [self.masked(here, box) for here in regional]
        here = here.repeat_interleave(count, 0)
        for layer, skipped in zip(self.up, beside, strict=True):
            here = F.interpolate(here, skipped.shape[-2:], mode="nearest")
            here = layer(torch.cat([here, skipped], 1))
        return self.whole(self.out(here), box)


class _AlignHead(_Head):
    """The ablation: a region cut out and resized (ROI Align), as in Mask R-CNN."""

    def __init__(self, config: RmonetConfig) -> None:
        super().__init__(config)
        self.layers = _plain(config.depth, config.depth)

    def forward(
        self, image: Tensor, maps: list[Tensor], pyramid: list[Tensor], box: Tensor
    ) -> Tensor:
        """Return (B, R, 1, H, W) logits, far below 0 beyond the boxes."""
        height, width = self.canvas
        left, top, right, bottom = box.unbind(-1)
        # Of the canvas, in [-1, 1].
        centre = torch.stack([(left + right) / width, (top + bottom) / height], -1) - 1
        half = torch.stack([(right - left) / width, (bottom - top) / height], -1).clamp(min=1e-3)
        there = _grid(half, centre, (_ALIGNED, _ALIGNED))
        crops = F.grid_sample(
            pyramid[1].repeat_interleave(box.shape[1], 0),
            there,
            padding_mode="border",
            align_corners=False,
        )
        back = _grid(1 / half, -centre / half, self.canvas)
        inside = (back.abs() <= 1).all(-1)[:, None]
        drawn = F.grid_sample(self.layers(crops), back, padding_mode="border", align_corners=False)
        logit = torch.where(inside, drawn, _NOTHING)
        return logit.view(*box.shape[:2], *logit.shape[1:])


_HEADS = {"unet": _UnetHead, "lite": _LiteHead, "align": _AlignHead}


def _grid(scale: Tensor, shift: Tensor, size: tuple[int, int]) -> Tensor:
    """(B, R, 2) scales and shifts -> (B R, h, w, 2) where to sample."""
    theta = torch.diag_embed(scale.flatten(0, 1))
    theta = torch.cat([theta, shift.flatten(0, 1)[..., None]], -1)
    return F.affine_grid(theta, [len(theta), 1, *size], align_corners=False)


def _plain(inputs: int, channels: int) -> nn.Sequential:
    """Four convolutions and one more that draws (Mask R-CNN's head, without its transpose)."""
    layers: list[nn.Module] = []
    for _ in range(4):
        layers += [_block(inputs, channels)]
        inputs = channels
    return nn.Sequential(*layers, nn.Conv2d(inputs, 1, 1))


def _block(inputs: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, 3, padding=1, bias=False), nn.GroupNorm(8, outputs), nn.ReLU()
    )
