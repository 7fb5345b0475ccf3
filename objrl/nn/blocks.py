"""Convolution stacks as the papers' tables write them: one line of the table, one `Conv`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import nn


@dataclass(frozen=True)
class Conv:
    """A row of an architecture table: channels, kernel, stride, groups of the norm."""

    channels: int
    kernel: int = 3
    stride: int = 1
    groups: int = 0
    """Groups of the GroupNorm after it; 0 for none."""
    up: int = 1
    """Sub-pixel factor: a ConvSub(n), convolution and PixelShuffle(n) (Shi et al. 2016)."""


def conv_stack(inputs: int, rows: Sequence[Conv]) -> nn.Sequential:
    """Return convolution → CELU → GroupNorm for every row (SPACE's order, in the authors' code).

    Odd kernels keep the size at stride 1; a kernel of stride + 2 divides it by the stride; one of 4
    at stride 1 takes what is left, a 4 x 4 map, to 1 x 1.
    """
    layers: list[nn.Module] = []
    for row in rows:
        padding = (row.kernel - row.stride + 1) // 2
        if row.kernel == 4 and row.stride == 1:
            padding = 0
        outputs = row.channels * row.up**2
        layers.append(nn.Conv2d(inputs, outputs, row.kernel, row.stride, padding))
        if row.up > 1:
            layers.append(nn.PixelShuffle(row.up))
        layers.append(nn.CELU())
        if row.groups:
            layers.append(nn.GroupNorm(row.groups, row.channels))
        inputs = row.channels
    return nn.Sequential(*layers)
