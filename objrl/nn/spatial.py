"""The spatial transformer, its inverse, and the picture that they put together.

Boxes are upright, so a bilinear warp is a product of two small matrices, one for rows and one for
columns (`_hat`); no sampling grid, and a gradient that is again a product. `composite_dense` is
the paper's way, every glimpse warped onto the whole canvas with `grid_sample`, kept as the oracle;
`composite` warps a glimpse into a window of its own and adds the windows up.

Letters: B batch, K slots, C channels, H W canvas, g glimpse side, h w window sides.
`z_where` is (B, K, 4): width and height as a fraction of the canvas, then centre x, y in [-1, 1]
(SPACE, Algorithm 1; the order is that of the authors' code). Pixel i of n has its centre at
(2i + 1) / n - 1, `grid_sample`'s align_corners=False; outside the canvas is zero.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

# exp(importance) spans exp(0) to exp(100), which float32 holds only when shifted to the middle.
_SHIFT = 50.0


@dataclass(frozen=True)
class Layers:
    """What K glimpses make of a canvas.

    Attributes:
        mean: (B, 3, H, W) foreground appearance, mu_fg of Algorithm 1.
        alpha: (B, 1, H, W) foreground mask in [0, 1].
    """

    mean: Tensor
    alpha: Tensor


def _hat(centre: Tensor, taps: int) -> Tensor:
    """(…, n) sampling positions in pixels -> (…, n, taps) bilinear weights, 0 outside."""
    index = torch.arange(taps, device=centre.device, dtype=centre.dtype)
    return (1 - (centre[..., None] - index).abs()).clamp(min=0)


def _resample(down: Tensor, pixels: Tensor, across: Tensor) -> Tensor:
    """Down (B, K, m, h) @ pixels (B, K, h, C, w) @ across^T (B, K, n, w) -> (B, K, m, C, n).

    Rows come before channels so that neither product copies the pixels.
    """
    channels, width = pixels.shape[3:]
    pixels = pixels.to(down.dtype).flatten(0, 1).flatten(2)
    # Autocast would round positions, and importances of up to 100, to the 8 bits of bfloat16.
    with torch.autocast(down.device.type, enabled=False):
        rows = down.flatten(0, 1) @ pixels
        both = rows.view(-1, down.shape[2] * channels, width) @ across.flatten(0, 1).mT
    return both.view(*down.shape[:3], channels, across.shape[2])


def axis(count: int, like: Tensor) -> Tensor:
    """(count,) centres of as many pixels beside each other, from -1 to 1."""
    return (2 * torch.arange(count, device=like.device, dtype=like.dtype) + 1) / count - 1


def window_origin(z_where: Tensor, canvas: tuple[int, int], window: tuple[int, int]) -> Tensor:
    """(B, K, 2) int64 x, y of the top left pixel of each box's window, inside the canvas."""
    (height, width), (h, w) = canvas, window

    def corner(side: int, whole: int, part: int) -> Tensor:
        at = (z_where[..., 2 + side].detach() + 1) / 2 * whole - part / 2
        # A NaN must come out as a NaN loss, not as a wild index that ends a CUDA process.
        return at.nan_to_num().round().clamp(0, whole - part)

    return torch.stack([corner(0, width, w), corner(1, height, h)], dim=-1).to(torch.int64)


def _window_index(origin: Tensor, width: int, window: tuple[int, int]) -> Tensor:
    """(B, K, h, w) flat index of the windows' pixels into a canvas of that width."""
    h, w = window
    rows = origin[..., 1, None] + torch.arange(h, device=origin.device)
    columns = origin[..., 0, None] + torch.arange(w, device=origin.device)
    return rows[..., :, None] * width + columns[..., None, :]


def extract(image: Tensor, z_where: Tensor, glimpse: int) -> Tensor:
    """Cut glimpses out of an image: ST(x, z_where) of Algorithm 1; beyond the image is zero.

    One `grid_sample` reads every glimpse of an image: no copy of it for every cell.

    Args:
        image: (B, C, H, W).
        z_where: (B, K, 4).
        glimpse: g.

    Returns:
        (B, K, C, g, g).
    """
    scale, centre = z_where[..., :2], z_where[..., 2:]
    at = centre[:, :, None] + scale[:, :, None] * axis(glimpse, z_where)[:, None]  # (B, K, g, 2)
    x, y = at[..., None, :, 0], at[..., :, None, 1]
    grid = torch.stack([x.expand(-1, -1, glimpse, -1), y.expand(-1, -1, -1, glimpse)], dim=-1)
    cut = F.grid_sample(image, grid.flatten(1, 2).to(image.dtype), align_corners=False)
    return cut.view(*image.shape[:2], -1, glimpse, glimpse).transpose(1, 2)


def place(
    glimpses: Tensor,
    z_where: Tensor,
    origin: Tensor,
    canvas: tuple[int, int],
    window: tuple[int, int],
) -> Tensor:
    """Warp (B, K, C, g, g) glimpses into their windows: ST^-1 of Algorithm 1, (B, K, C, h, w)."""
    (height, width), (h, w) = canvas, window
    glimpse = glimpses.shape[-1]
    # The authors' code divides by s + 1e-9 too: a box may shrink towards nothing.
    scale = z_where[..., :2] + 1e-9

    def taps(side: int, count: int, whole: int) -> Tensor:
        pixel = origin[..., side, None] + torch.arange(count, device=origin.device)
        unit = (2 * pixel + 1).to(z_where.dtype) / whole - 1
        inside = (unit - z_where[..., 2 + side, None]) / scale[..., side, None]
        return _hat(((inside + 1) * glimpse - 1) / 2, glimpse)

    return _resample(taps(1, h, height), glimpses.transpose(2, 3), taps(0, w, width)).transpose(
        2, 3
    )


def _add_up(windows: Tensor, origin: Tensor, canvas: tuple[int, int]) -> Tensor:
    """(B, K, C, h, w) windows at their places (B, K, 2) -> their sum, (B, C, H, W)."""
    batch, _, channels, *window = windows.shape
    height, width = canvas
    index = _window_index(origin, width, (window[0], window[1])).view(batch, 1, -1)
    total = windows.new_zeros(batch, channels, height * width).scatter_add(
        2,
        index.expand(-1, channels, -1),
        windows.transpose(1, 2).reshape(batch, channels, -1),
    )
    return total.view(batch, channels, height, width)


def composite(
    appearance: Tensor,
    mask: Tensor,
    z_where: Tensor,
    z_depth: Tensor,
    *,
    canvas: tuple[int, int],
    window: tuple[int, int],
    cells: int,
) -> Layers:
    """Put K glimpses together on a canvas, each within its window.

    The weights of Algorithm 1 are a softmax over all cells at every pixel, of 100 * sigmoid of the
    depth * mask (the algorithm's sign is a slip: the text and the authors' code have larger means
    nearer, through sigmoid(-z_depth); here `z_depth` larger is nearer). A cell that does not reach
    a pixel enters with exp(0) = 1, so a softmax over windows is two sums: what the windows add to
    the numerator, and `cells` plus what they add to the denominator.

    Args:
        appearance: (B, K, 3, g, g) o_att in [0, 1].
        mask: (B, K, 1, g, g) alpha_att * z_pres in [0, 1].
        z_where: (B, K, 4).
        z_depth: (B, K, 1), larger is nearer.
        canvas: (H, W).
        window: (h, w); a box that is larger is cut off.
        cells: how many cells compete, those without a glimpse included.
    """
    importance = 100 * mask * torch.sigmoid(z_depth)[..., None, None]
    origin = window_origin(z_where, canvas, window)
    layers = torch.cat([mask * appearance, mask, importance], dim=2)
    placed = place(layers, z_where, origin, canvas, window)
    weight = torch.exp(placed[:, :, 4:] - _SHIFT)
    base = math.exp(-_SHIFT)
    sums = torch.cat([weight * placed[:, :, :4], weight - base], dim=2)
    total = _add_up(sums, origin, canvas)
    blend = total[:, :4] / (total[:, 4:] + cells * base)
    return Layers(blend[:, :3], blend[:, 3:])


def overlay(
    appearance: Tensor,
    mask: Tensor,
    z_where: Tensor,
    z_depth: Tensor,
    *,
    canvas: tuple[int, int],
    window: tuple[int, int],
) -> Layers:
    """Put K glimpses together as SCALOR does (Algorithm 3), each within its window.

    Unlike `composite`, the weights of the objects at a pixel are normalised by their sum, and the
    foreground's mask is the sum of the masks, at most 1; gradients flow as if it were not cut off.

    Args:
        appearance: (B, K, 3, g, g) o in [0, 1].
        mask: (B, K, 1, g, g) m * z_pres in [0, 1].
        z_where: (B, K, 4).
        z_depth: (B, K, 1), larger is nearer.
        canvas: (H, W).
        window: (h, w); a box that is larger is cut off.
    """
    near = mask * torch.sigmoid(z_depth)[..., None, None]
    origin = window_origin(z_where, canvas, window)
    # One warp for everything that has to be warped.
    placed = place(torch.cat([mask * appearance, mask, near], 2), z_where, origin, canvas, window)
    weight = placed[:, :, 4:]
    parts = torch.cat([weight * placed[:, :, :3], placed[:, :, 3:]], dim=2)
    total = _add_up(parts, origin, canvas)
    alpha = total[:, 3:4]
    alpha = alpha + (alpha.clamp(max=1) - alpha).detach()
    return Layers(total[:, :3] / (total[:, 4:] + 1e-5), alpha)


def composite_dense(
    appearance: Tensor, mask: Tensor, z_where: Tensor, z_depth: Tensor, *, canvas: tuple[int, int]
) -> Layers:
    """Do what `composite` does with every glimpse on the whole canvas: Algorithm 1 as it stands."""
    batch, rows = mask.shape[:2]
    importance = 100 * mask * torch.sigmoid(z_depth)[..., None, None]
    layers = torch.cat([mask * appearance, mask, importance], dim=2).flatten(0, 1).to(z_where.dtype)
    scale, shift = z_where.flatten(0, 1)[:, :2] + 1e-9, z_where.flatten(0, 1)[:, 2:]
    theta = torch.cat([torch.diag_embed(1 / scale), (-shift / scale)[..., None]], dim=2)
    with torch.autocast(mask.device.type, enabled=False):  # as in `_resample`
        grid = F.affine_grid(theta, [batch * rows, 5, *canvas], align_corners=False)
        placed = F.grid_sample(layers, grid, align_corners=False).view(batch, rows, 5, *canvas)
    weight = torch.softmax(placed[:, :, 4:], dim=1)
    blend = (weight * placed[:, :, :4]).sum(1)
    return Layers(blend[:, :3], blend[:, 3:])
