"""The spatial transformer against `grid_sample`, the sparse picture against the dense one."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from objrl.nn.spatial import (
    Layers,
    composite,
    composite_dense,
    extract,
    place,
    window_origin,
)

Scene = tuple[Tensor, Tensor, Tensor, Tensor]
"""Appearance, mask, z_where, z_depth."""


def scene(
    slots: int,
    low: float = 0.05,
    high: float = 0.9,
    spread: float = 1.1,
    glimpse: int = 8,
    dtype: torch.dtype = torch.float32,
) -> Scene:
    torch.manual_seed(3)
    where = torch.rand(2, slots, 4, dtype=torch.float64)
    where[..., :2] = low + (high - low) * where[..., :2]
    where[..., 2:] = spread * (2 * where[..., 2:] - 1)
    parts = (
        torch.rand(2, slots, 3, glimpse, glimpse, dtype=torch.float64),
        torch.rand(2, slots, 1, glimpse, glimpse, dtype=torch.float64),
        where,
        torch.randn(2, slots, 1, dtype=torch.float64),
    )
    appearance, mask, where, depth = (part.to(dtype).requires_grad_() for part in parts)
    return appearance, mask, where, depth


def values_and_gradients(
    draw: Callable[..., Layers], inputs: Scene, **sizes: object
) -> tuple[list[Tensor], tuple[Tensor, ...]]:
    layers = draw(*inputs, **sizes)
    torch.manual_seed(4)
    pictures = [layers.mean, layers.alpha]
    total = torch.stack([(p * torch.randn_like(p)).sum() for p in pictures]).sum()
    return pictures, torch.autograd.grad(total, inputs)


def check_equal(found: Tensor, expected: Tensor, tolerance: float = 1e-4) -> None:
    """Within `tolerance` of the largest entry: gradients of a weight of 100 are large."""
    assert found.isfinite().all()
    assert (found - expected).abs().max() <= tolerance * expected.abs().max().clamp(min=1)


@pytest.mark.parametrize("canvas", [(32, 32), (24, 40), (21, 16)])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-4), (torch.float64, 1e-10)])
def test_whole_canvas_windows_draw_what_the_dense_renderer_draws(
    canvas: tuple[int, int], dtype: torch.dtype, tolerance: float
) -> None:
    inputs = scene(16, dtype=dtype)
    dense, dense_gradients = values_and_gradients(composite_dense, inputs, canvas=canvas)
    sparse, sparse_gradients = values_and_gradients(
        composite, inputs, canvas=canvas, window=canvas, cells=16
    )
    assert dense[1].max() > 0.5
    for found, expected in zip(
        (*sparse, *sparse_gradients), (*dense, *dense_gradients), strict=True
    ):
        check_equal(found, expected, tolerance)


def test_small_windows_are_enough_for_boxes_inside_them() -> None:
    # 0.15 of 80 pixels, and what bilinear drawing smears around it, fit into 16.
    inputs = scene(24, low=0.05, high=0.15)
    small = values_and_gradients(composite, inputs, canvas=(60, 80), window=(16, 16), cells=24)
    dense = values_and_gradients(composite_dense, inputs, canvas=(60, 80))
    for found, expected in zip((*small[0], *small[1]), (*dense[0], *dense[1]), strict=True):
        check_equal(found, expected)


def test_a_window_cuts_what_a_larger_box_would_draw_beyond_it() -> None:
    inputs = scene(1, low=0.9, high=0.95, spread=0.0)
    alpha = composite(*inputs, canvas=(32, 32), window=(8, 8), cells=1).alpha
    assert (alpha[..., 12:20, 12:20] > 0).all()
    outside = alpha.clone()
    outside[..., 12:20, 12:20] = 0
    assert (outside == 0).all()


def test_cells_without_a_glimpse_compete_as_empty_ones() -> None:
    appearance, mask, where, depth = scene(9)
    shown = mask.detach() * (torch.arange(9) < 4).view(1, 9, 1, 1, 1)
    dense = composite_dense(appearance, shown, where, depth, canvas=(32, 32))
    four = (field[:, :4] for field in (appearance, mask, where, depth))
    sparse = composite(*four, canvas=(32, 32), window=(32, 32), cells=9)
    check_equal(sparse.mean, dense.mean)
    check_equal(sparse.alpha, dense.alpha)


@pytest.mark.parametrize("canvas", [(32, 32), (24, 40)])
def test_extract_is_grid_sample(canvas: tuple[int, int]) -> None:
    torch.manual_seed(0)
    image = torch.rand(2, 3, *canvas, dtype=torch.float64, requires_grad=True)
    where = scene(5, dtype=torch.float64)[2]
    found = extract(image, where, 8)
    theta = torch.zeros(2, 5, 2, 3, dtype=torch.float64)
    theta[..., 0, 0], theta[..., 1, 1] = where[..., 0], where[..., 1]
    theta[..., 2] = where[..., 2:]
    grid = F.affine_grid(theta.flatten(0, 1), [10, 3, 8, 8], align_corners=False)
    copies = image[:, None].expand(-1, 5, -1, -1, -1).flatten(0, 1)
    expected = F.grid_sample(copies, grid, align_corners=False).view(2, 5, 3, 8, 8)
    torch.testing.assert_close(found, expected)
    noise = torch.randn_like(found)
    gradients = [
        torch.autograd.grad((cut * noise).sum(), (image, where)) for cut in (found, expected)
    ]
    torch.testing.assert_close(*gradients)


def test_a_glimpse_put_back_where_it_was_cut_is_the_picture() -> None:
    image = torch.rand(1, 3, 32, 32)
    where = torch.tensor([[[0.25, 0.5, 0.25, -0.5]]])  # x 16..24, y 0..16
    cut = extract(image, where, 8)
    torch.testing.assert_close(cut[0, 0, :, :, 3], image[0, :, :16, 19].view(3, 8, 2).mean(2))
    tall = torch.tensor([[[0.25, 0.25, 0.25, -0.75]]])  # one glimpse pixel a canvas pixel
    back = place(
        extract(image, tall, 8),
        tall,
        torch.zeros(1, 1, 2, dtype=torch.int64),
        *[(32, 32)] * 2,
    )
    torch.testing.assert_close(back[0, 0, :, :8, 16:24], image[0, :, :8, 16:24])
    back[0, 0, :, :8, 16:24] = 0
    assert back.abs().max() < 1e-5


def test_the_nearer_object_hides_the_other() -> None:
    glimpse = torch.ones(1, 2, 1, 4, 4)
    colour = torch.tensor([0.2, 0.9]).view(1, 2, 1, 1, 1).expand(1, 2, 3, 4, 4)
    where = torch.tensor([0.5, 0.5, 0, 0]).expand(1, 2, 4)
    for front, back in ((0, 1), (1, 0)):
        depth = torch.zeros(1, 2, 1)
        depth[0, front], depth[0, back] = 1.0, -1.0
        for layers in (
            composite(colour, glimpse, where, depth, canvas=(16, 16), window=(16, 16), cells=2),
            composite_dense(colour, glimpse, where, depth, canvas=(16, 16)),
        ):
            centre = layers.mean[0, :, 8, 8]
            torch.testing.assert_close(centre, colour[0, front, :, 0, 0])
            assert layers.alpha[0, 0, 8, 8] == pytest.approx(1)
            assert (layers.alpha[0, 0, 0] == 0).all()


def test_nothing_to_draw_is_black_and_clear() -> None:
    appearance, mask, where, depth = scene(4)
    layers = composite(
        appearance, mask * 0, where, depth, canvas=(32, 32), window=(16, 16), cells=4
    )
    assert (layers.mean == 0).all()
    assert (layers.alpha == 0).all()


@pytest.mark.parametrize("side", [0.0, 1e-7, 1e-3])
def test_a_box_may_shrink_to_nothing(side: float) -> None:
    appearance, mask, where, depth = scene(4)
    small = where.detach().clone()
    small[..., :2] = side
    inputs = (appearance, mask, small.requires_grad_(), depth)
    pictures, gradients = values_and_gradients(
        composite, inputs, canvas=(32, 32), window=(16, 16), cells=4
    )
    assert all(tensor.isfinite().all() for tensor in (*pictures, *gradients))


def test_a_position_that_is_not_a_number_stays_one() -> None:
    appearance, mask, where, depth = scene(4)
    broken = where.detach().clone()
    broken[0, 1, 2] = torch.nan
    layers = composite(appearance, mask, broken, depth, canvas=(32, 32), window=(16, 16), cells=4)
    assert layers.alpha[0].isnan().any()
    assert layers.alpha[1].isfinite().all()


def test_the_strongest_importance_does_not_overflow() -> None:
    ones = torch.ones(1, 64, 1, 8, 8)
    where = torch.tensor([0.9, 0.9, 0, 0]).expand(1, 64, 4)
    layers = composite(
        *(ones.expand(-1, -1, 3, -1, -1), ones, where, torch.full((1, 64, 1), 50.0)),
        canvas=(16, 16),
        window=(16, 16),
        cells=64,
    )
    assert layers.alpha[0, 0, 8, 8] == pytest.approx(1)
    torch.testing.assert_close(layers.mean, layers.alpha.expand(-1, 3, -1, -1))


@pytest.mark.parametrize("dense", [True, False])
def test_positions_keep_their_digits_under_bfloat16(dense: bool) -> None:
    inputs = scene(16)
    image = torch.rand(2, 3, 64, 64)

    def draw() -> tuple[Tensor, ...]:
        if dense:
            layers = composite_dense(*inputs, canvas=(64, 64))
        else:
            layers = composite(*inputs, canvas=(64, 64), window=(64, 64), cells=16)
        return layers.mean, layers.alpha, extract(image, inputs[2], 8)

    expected = draw()
    with torch.autocast("cpu", torch.bfloat16):
        found = draw()
        # What a network computed in bfloat16 is taken, too.
        half = composite(
            *(inputs[0].bfloat16(), inputs[1].bfloat16(), *inputs[2:]),
            canvas=(64, 64),
            window=(64, 64),
            cells=16,
        )
    torch.testing.assert_close(found, expected)
    assert half.mean.dtype == torch.float32
    assert (half.alpha - expected[1]).abs().mean() < 0.02


@settings(max_examples=50, deadline=None)
@given(st.floats(-3, 3), st.floats(-3, 3), st.integers(1, 40), st.integers(1, 40), st.data())
def test_windows_lie_on_the_canvas_around_their_boxes(
    x: float, y: float, height: int, width: int, data: st.DataObject
) -> None:
    window = (data.draw(st.integers(1, height)), data.draw(st.integers(1, width)))
    where = torch.tensor([[[0.1, 0.1, x, y]]])
    left, top = window_origin(where, (height, width), window)[0, 0].tolist()
    for start, part, whole, at in (
        (left, window[1], width, x),
        (top, window[0], height, y),
    ):
        assert 0 <= start <= whole - part
        centre = (at + 1) / 2 * whole
        nearest = min(max(centre, part / 2), whole - part / 2)
        assert abs(start + part / 2 - nearest) <= 0.5 + 1e-3
