"""Spatial broadcast (Watters et al. 2019, arXiv 1901.07017): a code, at every pixel of a map."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def broadcast(code: Tensor, size: tuple[int, int]) -> Tensor:
    """(N, D) -> (N, D + 2, H, W): the code everywhere, then y and x from -1 to 1."""
    height, width = size
    spread = code[:, :, None, None].expand(-1, -1, height, width)
    return torch.cat([spread, places(code, size).expand(len(code), -1, -1, -1)], dim=1)


class BroadcastConv(nn.Module):
    """A decoder's first convolution, of a broadcast code, without broadcasting it.

    Of a code that is the same everywhere each pixel gets the same: the kernel summed, times the
    code. What differs from pixel to pixel is the places alone, and they are every code's. The
    result is that of a convolution without padding of `broadcast(code)`, at hardly any cost.
    """

    def __init__(self, inputs: int, outputs: int, kernel: int, size: tuple[int, int]) -> None:
        """Make it.

        Args:
            inputs: D.
            outputs: channels out.
            kernel: side of the kernel.
            size: (H, W) that comes out; the map of the codes is larger by kernel - 1.
        """
        super().__init__()
        self.convolution = nn.Conv2d(inputs + 2, outputs, kernel)
        self.inputs, self.size = inputs, size

    def forward(self, code: Tensor) -> Tensor:
        """(N, D) -> (N, outputs, H, W)."""
        weight, kernel = self.convolution.weight, self.convolution.kernel_size[0]
        height, width = (side + kernel - 1 for side in self.size)
        grid = places(code, (height, width))[None]
        where = F.conv2d(grid, weight[:, self.inputs :], self.convolution.bias)
        what = F.linear(code, weight[:, : self.inputs].sum((2, 3)))
        return where + what[:, :, None, None]


def places(like: Tensor, size: tuple[int, int]) -> Tensor:
    """(2, H, W) y and x from -1 to 1."""
    y, x = (torch.linspace(-1, 1, n, device=like.device, dtype=like.dtype) for n in size)
    return torch.stack(torch.meshgrid(y, x, indexing="ij"))
