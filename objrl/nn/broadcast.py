"""Spatial broadcast (Watters et al. 2019, arXiv 1901.07017): a code, at every pixel of a map."""

from __future__ import annotations

import torch
from torch import Tensor


def broadcast(code: Tensor, size: tuple[int, int]) -> Tensor:
    """(N, D) -> (N, D + 2, H, W): the code everywhere, then y and x from -1 to 1."""
    height, width = size
    y = torch.linspace(-1, 1, height, device=code.device, dtype=code.dtype)
    x = torch.linspace(-1, 1, width, device=code.device, dtype=code.dtype)
    grid = torch.stack(torch.meshgrid(y, x, indexing="ij")).expand(len(code), -1, -1, -1)
    spread = code[:, :, None, None].expand(-1, -1, height, width)
    return torch.cat([spread, grid], dim=1)
