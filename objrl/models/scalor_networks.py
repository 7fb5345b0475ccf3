"""SCALOR's networks: what Algorithms 1 to 3 call f^nn, encoders, decoders and RNNs.

The paper lists no layers; sizes of `paper` are those of the authors' code, `fast` is ours.

Letters: B environments, K objects, N cells, D size of z_what, G grid cells, C channels, H W canvas.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from objrl.models.scalor_latents import Look
from objrl.nn.blocks import Conv, conv_stack
from objrl.nn.distributions import Gaussian
from objrl.nn.spatial import axis, extract


@dataclass(frozen=True)
class Table:
    """Layers and sizes of one architecture.

    Attributes:
        glimpse: g, side of a glimpse.
        image_encoder: from the image to the grid.
        lateral: more convolutions at the grid's size, beside a connection that skips them.
        memory: layers of the ConvLSTM and its channels.
        mask_encoder: from the propagated mask to the grid.
        glimpse_encoder: from a glimpse to a vector.
        glimpse_decoder: from z_what to almost a glimpse; a last convolution draws it.
        head_up: sub-pixel factor of that last one.
        attention: channels of the attended part of the map, and its side in taps.
        search: side in taps of the window of pixels that is searched instead; 0 for the map.
        tracker: size of the tracker RNN.
        prior: size of the prior's RNN.
        hidden: width of the small networks.
        background_encoder: from image and mask to a small map.
        background_decoder: from z_bg to the image, or to a small one that is enlarged.
    """

    glimpse: int
    image_encoder: tuple[Conv, ...]
    lateral: tuple[Conv, ...]
    memory: tuple[int, int]
    mask_encoder: tuple[Conv, ...]
    glimpse_encoder: tuple[Conv, ...]
    glimpse_decoder: tuple[Conv, ...]
    head_up: int
    attention: tuple[int, int]
    search: int
    tracker: int
    prior: int
    hidden: int
    background_encoder: tuple[Conv, ...]
    background_decoder: tuple[Conv, ...]


_G = {8: 4, 16: 4, 24: 4, 32: 8, 48: 8, 64: 8, 128: 16, 256: 16}


def _conv(channels: int, kernel: int = 3, stride: int = 1, up: int = 1) -> Conv:
    return Conv(channels, kernel, stride, _G[channels], up)


_STAGES = (16, 32, 64, 128)


def paper_table(canvas: int, cell: int, glimpse: int) -> Table:
    """Return the authors' sizes for a square canvas, cells of 8 or 16 and glimpses of 32 or 64.

    Raises:
        ValueError: a size that they have no layers for.
    """
    if (canvas, cell, glimpse) not in ((64, 8, 32), (64, 16, 32), (128, 16, 64), (128, 8, 32)):
        raise ValueError(
            "ScalorConfig: expected for the paper's layers a canvas of 64 with cells of 8 or 16 "
            "and glimpses of 32, or one of 128 with cells of 16 and glimpses of 64 or of 8 and "
            f"32, got {canvas}, {cell} and {glimpse}"
        )
    stages = _STAGES[: 3 if cell == 8 else 4]
    image = [row for c in stages for row in (_conv(c, 4, 2), _conv(c))]
    if cell == 16:
        image.pop()  # no 3 x 3 follows the last one
    shrink = [_conv(16, 4, 2), _conv(32, 4, 2), _conv(32), _conv(64, 4, 2), _conv(64)]
    if cell == 16:
        shrink.append(_conv(64, 4, 2))
    small = glimpse == 32
    encoder = [_conv(c, 4, 2) for c in ((16, 32, 64) if small else _STAGES)]
    encoder += [_conv(64)] if small else []
    decoder = [
        *(_conv(64, 1, up=4), _conv(64)),
        *((_conv(64, 1, up=2),) if small else (_conv(64, 1, up=4), _conv(64))),
        *(_conv(32, 1, up=2), _conv(32), _conv(16, 1, up=2)),
    ]
    if small:
        decoder += [_conv(16)]
    else:
        decoder = [_conv(128, 1), *decoder]
    backwards = [16, 32, 64, 64, 64] if canvas == 128 else [16, 32, 64, 64]
    ahead = (
        [_conv(256, 1), _conv(256, 1, up=4), _conv(256), _conv(128, 1, up=4), _conv(128)]
        if canvas == 128
        else [_conv(128, 1, up=4), _conv(128), _conv(64, 1, up=4), _conv(64)]
    )
    ahead += (
        [_conv(64, 1, up=2), _conv(64), _conv(16, 1, up=4), _conv(16), _conv(16)]
        if canvas == 128
        else [_conv(16, 1, up=4), _conv(16)]
    )
    return Table(
        glimpse=glimpse,
        image_encoder=(*image, _conv(64, 1)),
        lateral=(_conv(64), _conv(64)),
        memory=(2, 64),
        mask_encoder=(*shrink, _conv(32, 1)),
        glimpse_encoder=(*encoder, _conv(128, 4, 1)),
        glimpse_decoder=tuple(decoder),
        head_up=1,
        attention=(64, 4),
        search=0,
        tracker=128,
        prior=64,
        hidden=128,
        background_encoder=tuple(_conv(c, 4, 2) for c in backwards),
        background_decoder=tuple(ahead),
    )


def fast_table(cell: int) -> Table:
    """Return our sizes: glimpses of 16 x 16 and a background of a 16th of the canvas."""
    return Table(
        glimpse=16,
        image_encoder=(
            *(_conv(24, 6, 4), _conv(48, 4, 2)),
            *((_conv(48, 4, 2),) if cell == 16 else ()),
            _conv(48),
        ),
        lateral=(),
        memory=(1, 32),
        mask_encoder=(_conv(8, 4, 2), *((_conv(8, 4, 2),) if cell == 16 else ())),
        glimpse_encoder=(_conv(16, 4, 2), _conv(32, 4, 2), _conv(64, 4, 1)),
        glimpse_decoder=(_conv(32, 1, up=4), _conv(16, 3, up=2)),
        head_up=2,
        attention=(16, 4),
        search=16,
        tracker=64,
        prior=32,
        hidden=64,
        background_encoder=(_conv(16, 4, 4), _conv(32, 4, 4)),
        background_decoder=(_conv(32, 1, up=4), _conv(32)),
    )


class ConvLSTM(nn.Module):
    """Xingjian et al. 2015, layer over layer; the output is the last layer's hidden state.

    Peepholes are one weight a channel, not one a place: a grid of any size will do.
    """

    def __init__(self, inputs: int, channels: int, layers: int) -> None:
        super().__init__()
        self.layers, self.channels = layers, channels
        sizes = [inputs, *[channels] * (layers - 1)]
        self.gates = nn.ModuleList(nn.Conv2d(n + channels, 4 * channels, 3, 1, 1) for n in sizes)
        self.peep = nn.Parameter(torch.zeros(layers, 3, channels, 1, 1))

    def forward(self, x: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        """(B, ·, G, G), (B, 2 L, C, G, G) -> (B, C, G, G), the next state."""
        after: list[Tensor] = []
        for n, gates in enumerate(self.gates):
            h, c = state[:, 2 * n], state[:, 2 * n + 1]
            i, f, g, o = gates(torch.cat([x, h], dim=1)).chunk(4, dim=1)
            peep = self.peep[n]
            c = torch.sigmoid(f + peep[0] * c) * c + torch.sigmoid(i + peep[1] * c) * torch.tanh(g)
            x = torch.sigmoid(o + peep[2] * c) * torch.tanh(c)
            after += [x, c]
        return x, torch.stack(after, dim=1)


class ImageEncoder(nn.Module):
    """e^img of Algorithms 1 and 2: what was seen up to now, on the grid."""

    def __init__(self, inputs: int, table: Table, grid: tuple[int, int]) -> None:
        super().__init__()
        layers, channels = table.memory
        self.grid = grid
        self.image = conv_stack(inputs, table.image_encoder)
        width = table.image_encoder[-1].channels
        self.lateral = conv_stack(width, table.lateral) if table.lateral else None
        self.join = conv_stack(2 * width, [_conv(width)]) if table.lateral else None
        self.memory = ConvLSTM(width, channels, layers)

    def forward(self, image: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        """(B, C, H, W) and the memory -> (B, C', G, G), the next memory."""
        rows, columns = self.grid
        features = self.image(image)[..., :rows, :columns]
        if self.lateral is not None and self.join is not None:
            features = self.join(torch.cat([features, self.lateral(features)], dim=1))
        seen: tuple[Tensor, Tensor] = self.memory(features, state)
        return seen


class Glimpses(nn.Module):
    """GlimpseEnc and GlimpseDec: what is seen in a box, and what a z_what looks like."""

    def __init__(self, table: Table, z_what: int) -> None:
        super().__init__()
        self.side = table.glimpse
        self.encoder = conv_stack(3, table.glimpse_encoder)
        self.head = nn.Linear(table.glimpse_encoder[-1].channels, 2 * z_what)
        self.decoder = conv_stack(z_what, table.glimpse_decoder)
        last, up = table.glimpse_decoder[-1].channels, table.head_up
        self.draw = nn.Sequential(nn.Conv2d(last, 4 * up**2, 3, 1, 1), nn.PixelShuffle(up))

    def encode(self, glimpses: Tensor) -> Tensor:
        """(B, K, C, g, g) -> (B, K, 2 D) raw mean and standard deviation."""
        code = self.head(self.encoder(glimpses.flatten(0, 1)).flatten(1))
        raw: Tensor = code.unflatten(0, glimpses.shape[:2])
        return raw

    def decode(self, z_what: Tensor) -> tuple[Tensor, Tensor]:
        """(B, K, D) -> appearance (B, K, 3, g, g) and mask (B, K, 1, g, g), both in [0, 1]."""
        drawn = self.draw(self.decoder(z_what.flatten(0, 1)[:, :, None, None]))
        drawn = drawn.sigmoid().unflatten(0, z_what.shape[:2])
        return drawn[:, :, :3], drawn[:, :, 3:]


class Search(nn.Module):
    """Looks for an object around its last place, knowing how it looks: ours, for the fast layers.

    The map that the paper attends to has a few taps for half of the canvas; where an object moves
    by much of its size in a frame, its displacement cannot be read off them. Here it can: pixels
    are weighed by how well they agree with z_what, and their mean place is the displacement. It
    looks twice: as far as an object may go, a few pixels a tap, around where it would be if it went
    on as it did, and then closely at where that leads.
    """

    def __init__(self, inputs: int, table: Table, z_what: int, step: float, blur: int) -> None:
        super().__init__()
        self.taps, self.step, self.blur = table.search, step, blur
        self.far, self.near = (_Window(inputs, z_what, self.taps) for _ in range(2))
        self.head = nn.Linear(2 * 32 * (self.taps // 4) ** 2, table.hidden)

    def forward(
        self, shown: Tensor, z_where: Tensor, z_what: Tensor, velocity: Tensor
    ) -> tuple[Tensor, tuple[Look, Look]]:
        """Search (B, C, H, W) for (B, K, ·) objects: what both looks show (B, K, hidden), and both.

        The place of the second is where they are.
        """
        size, place = z_where[..., :2].detach(), z_where[..., 2:].detach()
        blurred = F.avg_pool2d(shown, self.blur) if self.blur > 1 else shown
        centre, reach = place + velocity.detach(), self.step + size
        seen = extract(blurred, torch.cat([reach, centre], -1), self.taps)
        far_code, logits = self.far(seen, z_what)
        far = Look(centre, reach, logits)
        # As wide as the object, and one of the first look's eight cells: so far off that may be.
        close = size + reach / 8
        seen = extract(shown, torch.cat([close, far.place.detach()], -1), self.taps)
        near_code, logits = self.near(seen, z_what)
        code = self.head(torch.cat([far_code, near_code], dim=1))
        return code.unflatten(0, z_where.shape[:2]), (far, Look(far.place, close, logits))


class _Window(nn.Module):
    """One look of a search: where in a window is what agrees with z_what?"""

    def __init__(self, inputs: int, z_what: int, taps: int) -> None:
        super().__init__()
        channels = 16
        # Convolutions know no places; but who is near is likelier than who looks the same afar.
        # In units of ten nats: so that it is learnt as soon as the rest.
        square = axis(taps // 2, torch.zeros(0)) ** 2
        self.usual = nn.Parameter(-0.3 * (square[:, None] + square))
        self.first = conv_stack(inputs, [Conv(channels, 4, 2)])
        self.wanted = nn.Linear(z_what, 2 * channels)
        self.second = conv_stack(channels, [Conv(channels, 3, 1, 4)])
        self.score = nn.Conv2d(channels, 1, 1)
        self.last = conv_stack(channels, [Conv(32, 4, 2, 4)])

    def forward(self, window: Tensor, z_what: Tensor) -> tuple[Tensor, Tensor]:
        """(B, K, C, t, t) -> what is there (B K, ·), and the cells' logits (B, K, t/2, t/2)."""
        scale, shift = self.wanted(z_what).flatten(0, 1)[..., None, None].chunk(2, dim=1)
        seen = self.second(self.first(window.flatten(0, 1)) * (1 + scale) + shift)
        logits = self.score(seen)[:, 0].unflatten(0, window.shape[:2]) + 10 * self.usual
        return self.last(seen).flatten(1), logits


class Backdrop(nn.Module):
    """BackgroundEncoder and BackgroundDecoder of Algorithm 3, and the transition p(z_bg | past)."""

    def __init__(self, table: Table, canvas: tuple[int, int], z_bg: int) -> None:
        super().__init__()
        self.canvas = canvas
        self.encoder = conv_stack(4, table.background_encoder)
        with torch.no_grad():
            small = self.encoder(torch.zeros(1, 4, *canvas)).flatten(1).shape[1]
        self.head = nn.Linear(small, 2 * z_bg)
        self.decoder = conv_stack(z_bg, table.background_decoder)
        self.paint = nn.Conv2d(table.background_decoder[-1].channels, 3, 3, 1, 1)
        self.rnn = nn.GRUCell(z_bg, 32)
        self.transition = nn.Linear(32, 2 * z_bg)

    def encode(self, image: Tensor, mask: Tensor) -> Tensor:
        """(B, 3, H, W) and the objects' (B, 1, H, W) -> (B, 2 Z) raw."""
        seen = torch.cat([image, 1 - mask], dim=1)
        code: Tensor = self.head(self.encoder(seen).flatten(1))
        return code

    def decode(self, z_bg: Tensor) -> Tensor:
        """(B, Z) -> (B, 3, H, W) in [0, 1]."""
        small = torch.sigmoid(self.paint(self.decoder(z_bg[:, :, None, None])))
        return F.interpolate(small, self.canvas, mode="bilinear", align_corners=False)

    def foresee(self, z_bg: Tensor, h: Tensor, fresh: Tensor) -> tuple[Gaussian, Tensor]:
        """Return p(z_bg | z_bg before) and the next h; N(0, 1) where (B,) nothing was seen yet."""
        h, first = self.rnn(z_bg, h), fresh[:, None]
        step = Gaussian.from_raw(self.transition(h))
        mean = torch.where(first, 0.0, z_bg + step.mean)
        return Gaussian(mean, torch.where(first, 1.0, step.std)), torch.where(first, 0.0, h)


def mlp(inputs: int, hidden: int, outputs: int) -> nn.Sequential:
    """One hidden layer with CELU."""
    return nn.Sequential(nn.Linear(inputs, hidden), nn.CELU(), nn.Linear(hidden, outputs))
