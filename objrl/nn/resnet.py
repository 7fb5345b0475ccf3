"""ResNet18 with a feature pyramid on it (He et al. 2016, 1512.03385; Lin et al. 2017, 1612.03144).

Own, because torchvision does not import beside the CPU build of torch. Of any width; group norm in
place of batch norm, so that what is seen in one image does not depend on the others.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

_GROUPS = 8


class ResNet18(nn.Module):
    """An image -> maps of it, the first half as large, each next one half of that: conv1 to conv5.

    Attributes:
        channels: of the five maps.
    """

    def __init__(self, inputs: int = 3, width: int = 64) -> None:
        """Make it.

        Args:
            inputs: channels in.
            width: channels of conv1 and conv2; 64 in the paper. A multiple of 8.
        """
        super().__init__()
        self.channels = channels_of(width)
        self.stem = nn.Sequential(nn.Conv2d(inputs, width, 7, 2, 3, bias=False), *_norm(width))
        stages: list[nn.Module] = [nn.MaxPool2d(3, 2, 1)]
        before = width
        for number, channels in enumerate(self.channels[1:]):
            stride = 2 if number else 1
            stage = [_Block(before, channels, stride), _Block(channels, channels, 1)]
            stages.append(nn.Sequential(*stage))
            before = channels
        pool, first, *rest = stages
        self.stages = nn.ModuleList([nn.Sequential(pool, first), *rest])

    def forward(self, image: Tensor) -> list[Tensor]:
        """(B, inputs, H, W) -> five maps."""
        maps: list[Tensor] = [self.stem(image)]
        for stage in self.stages:
            maps.append(stage(maps[-1]))
        return maps


def channels_of(width: int) -> tuple[int, ...]:
    """Return the channels of the five maps.

    Raises:
        ValueError: a width that the norms' groups do not divide.
    """
    if width < _GROUPS or width % _GROUPS:
        raise ValueError(f"width: expected a multiple of {_GROUPS}, got {width}")
    return width, width, 2 * width, 4 * width, 8 * width


class Pyramid(nn.Module):
    """conv2 to conv5 -> as many maps of one depth, each with what the smaller ones know.

    And one smaller still, which anchors of the largest size lie on.
    """

    def __init__(self, channels: tuple[int, ...], depth: int = 256) -> None:
        super().__init__()
        self.across = nn.ModuleList(nn.Conv2d(c, depth, 1) for c in channels)
        self.smooth = nn.ModuleList(nn.Conv2d(depth, depth, 3, padding=1) for _ in channels)

    def forward(self, maps: list[Tensor]) -> list[Tensor]:
        """Maps from the largest to the smallest -> one more."""
        flat = [layer(here) for layer, here in zip(self.across, maps, strict=True)]
        merged = [flat[-1]]
        for here in reversed(flat[:-1]):
            merged.append(here + F.interpolate(merged[-1], here.shape[-2:], mode="nearest"))
        out = [layer(m) for layer, m in zip(self.smooth, reversed(merged), strict=True)]
        return [*out, F.max_pool2d(out[-1], 1, 2)]


class _Block(nn.Module):
    """Two convolutions and a way around them."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.first = nn.Sequential(
            nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False), *_norm(outputs)
        )
        second = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.second = nn.Sequential(second, nn.GroupNorm(_GROUPS, outputs))
        self.around: nn.Module = nn.Identity()
        if stride > 1 or inputs != outputs:
            around = nn.Conv2d(inputs, outputs, 1, stride, bias=False)
            self.around = nn.Sequential(around, nn.GroupNorm(_GROUPS, outputs))

    def forward(self, here: Tensor) -> Tensor:
        through: Tensor = self.second(self.first(here))
        return F.relu(through + self.around(here))


def _norm(channels: int) -> tuple[nn.Module, nn.Module]:
    return nn.GroupNorm(_GROUPS, channels), nn.ReLU()
