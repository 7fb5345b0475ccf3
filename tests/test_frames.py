"""Frames as they come: which are taken, and what an image is."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from objrl.frames import check_frames, to_image


@pytest.mark.parametrize("shape", [(1, 1, 1, 3), (2, 210, 160, 3), (4, 3, 7, 3), (3, 3, 3, 3)])
def test_rgb_frames_pass_as_they_are(shape: tuple[int, ...]) -> None:
    frames = torch.zeros(shape, dtype=torch.uint8)
    assert check_frames(frames) is frames


@pytest.mark.parametrize(
    ("frames", "error", "words"),
    [
        (np.zeros((1, 4, 4, 3), np.uint8), TypeError, r"got ndarray; use torch\.from_numpy"),
        (None, TypeError, "expected a torch.Tensor"),
        (torch.zeros(1, 3, 8, 9, dtype=torch.uint8), ValueError, r"permute\(0, 2, 3, 1\)"),
        (torch.zeros(8, 9, 3, dtype=torch.uint8), ValueError, r"frames\[None\]"),
        (torch.zeros((), dtype=torch.uint8), ValueError, r"got shape \(\)"),
        (torch.zeros(1, 84, 84, 1, dtype=torch.uint8), ValueError, "a grayscale one cannot"),
        (torch.zeros(1, 84, 84, 4, dtype=torch.uint8), ValueError, r"got shape \(1, 84, 84, 4\)"),
        (torch.zeros(0, 4, 4, 3, dtype=torch.uint8), ValueError, "at least one frame"),
        (torch.zeros(1, 0, 4, 3, dtype=torch.uint8), ValueError, "at least one frame"),
        (torch.zeros(1, 4, 4, 3), TypeError, r"expected dtype uint8 .* got torch.float32"),
        (torch.full((1, 4, 4, 3), torch.nan), TypeError, "do not normalise frames"),
        (torch.zeros(1, 4, 4, 3, dtype=torch.int64), TypeError, "got torch.int64"),
    ],
)
def test_others_are_refused_with_a_way_out(frames: Any, error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        check_frames(frames)


def test_an_image_of_the_right_size_is_exact() -> None:
    frames = torch.arange(2 * 2 * 4 * 3, dtype=torch.uint8).view(2, 2, 4, 3) * 5
    kept = frames.clone()
    image = to_image(frames, 2, 4)
    assert image.dtype == torch.float32
    assert image.is_contiguous()
    assert torch.equal(image, frames.permute(0, 3, 1, 2).float() / 255)
    assert torch.equal(frames, kept)


@pytest.mark.parametrize("size", [(5, 7), (40, 30), (128, 128)])
def test_resizing_keeps_range_and_flat_colours(size: tuple[int, int]) -> None:
    frames = torch.randint(0, 256, (2, 21, 16, 3), dtype=torch.uint8)
    image = to_image(frames, *size)
    assert image.shape == (2, 3, *size)
    assert image.min() >= 0
    assert image.max() <= 1 + 1e-6
    flat = torch.tensor([10, 100, 255], dtype=torch.uint8).expand(1, 21, 16, 3)
    torch.testing.assert_close(
        to_image(flat, *size),
        (flat.float() / 255)[:, :1, :1].permute(0, 3, 1, 2).expand(-1, -1, *size),
    )


def test_a_thing_one_pixel_wide_survives_a_fourfold_reduction() -> None:
    for column in range(8, 16):
        frames = torch.zeros(1, 32, 32, 3, dtype=torch.uint8)
        frames[:, :, column] = 255
        image = to_image(frames, 8, 8)
        # A quarter of a pixel's worth of light, wherever the line falls.
        assert image[0, 0, 4].sum() == pytest.approx(0.25, abs=0.01)


def test_frames_need_not_be_contiguous() -> None:
    frames = torch.randint(0, 256, (2, 6, 8, 3), dtype=torch.uint8)
    turned = frames.transpose(1, 2)
    assert torch.equal(to_image(turned, 8, 6), to_image(turned.contiguous(), 8, 6))
