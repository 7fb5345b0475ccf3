"""`Slots`: what an agent reads, and what a user draws."""

from __future__ import annotations

from dataclasses import fields, replace
from itertools import islice
from typing import Any

import numpy as np
import pytest
import torch

from objrl.slots import NO_TRACK, Slots


def some(batch: int = 3, rows: int = 2, features: int = 4) -> Slots:
    """Row 0 holds an object, the others none."""
    torch.manual_seed(0)
    slots = Slots.empty(batch, rows, features)
    slots.position[:, 0] = torch.rand(batch, 2) - 0.5
    slots.scale[:, 0] = 0.2
    slots.what[:, 0] = torch.randn(batch, features)
    slots.presence[:, 0] = 0.9
    slots.track_id[:, 0, 0] = torch.arange(batch)
    return slots


def test_empty_slots_hold_nothing() -> None:
    slots = Slots.empty(2, 5, 7)
    assert len(slots) == 2
    assert not slots.mask.any()
    assert slots.what.shape == (2, 5, 7)
    assert slots.track_id.dtype == torch.int64
    assert (slots.track_id == NO_TRACK).all()
    for name in ("position", "velocity", "scale", "depth", "what", "presence"):
        field = getattr(slots, name)
        assert field.dtype == torch.float32
        assert (field == 0).all()


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("position", (1, 2, 3)),
        ("velocity", (1, 2, 1)),
        ("scale", (1, 2)),
        ("depth", (1, 2, 2)),
        ("presence", (1, 2, 2)),
        ("track_id", (1, 3, 1)),
        ("what", (1, 3, 4)),
        ("what", (1, 2)),
    ],
)
def test_a_field_of_the_wrong_shape_is_named(name: str, shape: tuple[int, ...]) -> None:
    slots = Slots.empty(1, 2, 4)
    with pytest.raises(ValueError, match=rf"Slots\.{name}: expected shape"):
        replace(slots, **{name: torch.zeros(shape)})


def test_boxes_are_pixels_with_x_first() -> None:
    slots = Slots.empty(1, 2, 1)
    slots.position[0, 0] = torch.tensor([-0.5, 0.5])
    slots.scale[0, 0] = torch.tensor([0.25, 0.1])
    slots.presence[0, 0] = 1
    # Centre x = 160 / 4, y = 210 * 3 / 4; width 40, height 21.
    box = slots.boxes(210, 160)[0]
    torch.testing.assert_close(box[0], torch.tensor([20, 147, 60, 168.0]))
    assert (box[1] == 0).all()


def test_boxes_are_clipped_to_the_frame() -> None:
    slots = Slots.empty(1, 3, 1)
    slots.position[0] = torch.tensor([[-1.0, 1.0], [1.0, -1.0], [3.0, 0.0]])
    slots.scale[0] = 0.5
    slots.presence[0] = 1
    boxes = slots.boxes(100, 200)[0]
    torch.testing.assert_close(boxes[0], torch.tensor([0, 75, 50, 100.0]))
    torch.testing.assert_close(boxes[1], torch.tensor([150, 0, 200, 25.0]))
    torch.testing.assert_close(boxes[2], torch.tensor([200, 25, 200, 75.0]))


@pytest.mark.parametrize("index", [0, 2, -1, -3, np.int64(1)])
def test_one_frame_of_many_keeps_its_batch_dimension(index: int) -> None:
    slots = some()
    one = slots[index]
    assert len(one) == 1
    for field in fields(slots):
        assert torch.equal(getattr(one, field.name)[0], getattr(slots, field.name)[index])


def test_a_slice_selects_frames() -> None:
    assert torch.equal(some()[1:].track_id, some().track_id[1:])
    assert len(some()[3:]) == 0


@pytest.mark.parametrize("index", [3, -4, 10**9])
def test_a_frame_that_is_not_there_is_an_error(index: int) -> None:
    with pytest.raises(IndexError, match="expected an index below 3 frames"):
        some()[index]


def test_a_loop_over_slots_sees_every_frame_once_and_ends() -> None:
    frames: Any = some()
    seen = [int(one.track_id[0, 0]) for one in islice(frames, 10)]
    assert seen == [0, 1, 2]


def test_arrays_on_the_host() -> None:
    slots = some()
    slots.what.requires_grad_()
    arrays = slots.numpy()
    assert list(arrays) == (
        ["position", "velocity", "scale", "depth", "what", "presence", "track_id"]
    )
    assert arrays["what"].dtype == np.float32
    assert arrays["track_id"].dtype == np.int64
    np.testing.assert_array_equal(arrays["what"], slots.what.detach().numpy())


def test_map_and_to_reach_every_field() -> None:
    slots = some().map(lambda field: field.flip(1))
    assert (slots.mask == torch.tensor([False, True])).all()
    assert slots.to("meta").presence.device.type == "meta"
