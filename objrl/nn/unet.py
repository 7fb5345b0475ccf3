"""MONet's U-Net (Burgess et al. 2019, arXiv 1901.11390, appendix B.2): images in, logits out."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class UNet(nn.Module):
    """Blocks of convolution, instance norm and ReLU, halving down and doubling up again.

    Down, every block but the last halves the map, by leaving out every other pixel; at the bottom
    are three linear layers; up, every block sees what the block opposite to it made. Sides need not
    be powers of two.
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        size: tuple[int, int],
        channels: Sequence[int] = (32, 32, 64, 64, 64),
        hidden: int = 128,
    ) -> None:
        """Make it for maps of one size.

        Args:
            inputs: channels in.
            outputs: channels out.
            size: (H, W); at least 2 ** (blocks - 1), and twice that on one side.
            channels: of the blocks, from the whole map on.
            hidden: of the linear layers.

        Raises:
            ValueError: maps that cannot be halved so often.
        """
        super().__init__()
        halvings = len(channels) - 1
        height, width = (side >> halvings for side in size)
        if height * width < 2:  # instance norm knows no single pixel
            raise ValueError(
                f"size: expected at least {2**halvings} x {2 ** (halvings + 1)} for "
                f"{len(channels)} blocks, got {size[0]} x {size[1]}; take fewer channels"
            )
        before = (inputs, *channels)
        self.down = nn.ModuleList(_block(a, b) for a, b in zip(before, channels, strict=False))
        self.bottom = (channels[-1], height, width)
        flat = channels[-1] * height * width
        self.linear = nn.Sequential(
            *(nn.Linear(flat, hidden), nn.ReLU(), nn.Linear(hidden, hidden), nn.ReLU()),
            *(nn.Linear(hidden, flat), nn.ReLU()),
        )
        # The way up: a block takes what comes from below and what its opposite made.
        above = (channels[0], *channels[:-1])
        self.up = nn.ModuleList(
            _block(2 * a, b) for a, b in zip(reversed(channels), reversed(above), strict=True)
        )
        self.out = nn.Conv2d(channels[0], outputs, 1)

    def forward(self, image: Tensor) -> Tensor:
        """(B, inputs, H, W) -> (B, outputs, H, W)."""
        made: list[Tensor] = []
        here = image
        for number, block in enumerate(self.down):
            if number:
                here = _resized(here, (here.shape[-2] >> 1, here.shape[-1] >> 1))
            here = block(here)
            made.append(here)
        here = self.linear(here.flatten(1)).unflatten(1, self.bottom)
        for block, opposite in zip(self.up, reversed(made), strict=True):
            here = _resized(here, (opposite.shape[-2], opposite.shape[-1]))
            here = block(torch.cat([here, opposite], dim=1))
        logits: Tensor = self.out(here)
        return logits


def _block(inputs: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, 3, padding=1, bias=False),
        nn.InstanceNorm2d(outputs, affine=True),
        nn.ReLU(),
    )


def _resized(image: Tensor, size: tuple[int, int]) -> Tensor:
    if image.shape[-2:] == size:
        return image
    return F.interpolate(image, size, mode="nearest")
