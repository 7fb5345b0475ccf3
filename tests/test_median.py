"""The baseline without learning: exact on what it can see, and honest about the rest."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from objrl.models import MODELS
from objrl.models.median import Image, Median, MedianConfig, backdrop, blobs, differs, median_frame

HEIGHT, WIDTH = 60, 80
GROUND = (30, 60, 90)


def ground(count: int) -> Image:
    frames = np.empty((count, HEIGHT, WIDTH, 3), np.uint8)
    frames[:] = GROUND
    return frames


def paint(frame: Image, x: int, y: int, w: int, h: int, colour: tuple[int, int, int]) -> None:
    frame[y : y + h, x : x + w] = colour


def fitted(max_slots: int = 8, **rule: int) -> Median:
    config = MedianConfig(frame_size=(HEIGHT, WIDTH), max_slots=max_slots, **rule)
    return Median.fit(ground(5), config)


def two_things() -> torch.Tensor:
    frame = ground(1)
    paint(frame[0], 10, 20, 6, 4, (250, 0, 0))
    paint(frame[0], 50, 5, 12, 20, (0, 250, 0))
    return torch.from_numpy(frame)


def test_things_are_boxed_exactly_the_largest_first() -> None:
    slots = fitted().detect(two_things())
    boxes = slots.boxes(HEIGHT, WIDTH)[0]
    torch.testing.assert_close(boxes[0], torch.tensor([50, 5, 62, 25.0]))
    torch.testing.assert_close(boxes[1], torch.tensor([10, 20, 16, 24.0]))
    assert slots.presence[0, :, 0].tolist() == [1, 1, 0, 0, 0, 0, 0, 0]
    for field in ("position", "scale", "depth", "what"):
        assert (getattr(slots, field)[0, 2:] == 0).all()


def test_what_is_colour_and_size() -> None:
    what = fitted().detect(two_things()).what[0]
    torch.testing.assert_close(what[0], torch.tensor([0, 250 / 255, 0, np.log(240)]).float())
    torch.testing.assert_close(what[1], torch.tensor([250 / 255, 0, 0, np.log(24)]).float())


def test_boxes_fit_frames_of_another_size_too() -> None:
    model = fitted()
    large = two_things().repeat_interleave(2, 1).repeat_interleave(3, 2)
    boxes = model.detect(large).boxes(2 * HEIGHT, 3 * WIDTH)[0]
    torch.testing.assert_close(boxes[0], torch.tensor([150, 10, 186, 50.0]))
    torch.testing.assert_close(boxes[1], torch.tensor([30, 40, 48, 48.0]))
    masks = model.segment(large)
    assert masks[0, 0].sum() == 36 * 40


def test_masks_are_the_things_themselves() -> None:
    masks = fitted().segment(two_things())
    assert masks.shape == (1, 9, HEIGHT, WIDTH)
    expected = torch.zeros(HEIGHT, WIDTH)
    expected[5:25, 50:62] = 1
    assert torch.equal(masks[0, 0], expected)
    assert masks[0, 1].sum() == 24
    assert (masks[0, 2:8] == 0).all()
    assert (masks.sum(1) == 1).all()


def test_what_finds_no_row_is_background() -> None:
    model = fitted(max_slots=1)
    assert model.detect(two_things()).presence.shape == (1, 1, 1)
    masks = model.segment(two_things())
    assert masks[0, 0].sum() == 240
    assert masks[0, 1].sum() == HEIGHT * WIDTH - 240


def test_scenery_and_specks_are_no_objects() -> None:
    frame = ground(1)
    paint(frame[0], 0, 0, WIDTH, 4, (255, 255, 255))  # longer than max_side
    paint(frame[0], 40, 40, 1, 1, (255, 255, 255))  # smaller than min_area
    paint(frame[0], 60, 40, 3, 3, (42, 60, 90))  # too faint
    frames = torch.from_numpy(frame)
    assert not fitted().detect(frames).mask.any()
    assert fitted(largest=1).detect(frames).mask.sum() == 1
    assert fitted(min_area=1).detect(frames).mask.sum() == 1
    assert fitted(threshold=10).detect(frames).mask.sum() == 1


def test_loose_pixels_of_a_sprite_are_joined() -> None:
    frame = ground(1)
    frame[0, 20:24, 30:40:2] = 255  # every other column
    slots = fitted().detect(torch.from_numpy(frame))
    assert slots.mask.sum() == 1
    torch.testing.assert_close(slots.boxes(HEIGHT, WIDTH)[0, 0], torch.tensor([30, 20, 39, 24.0]))


def test_blobs_and_labels_belong_together() -> None:
    mask = np.zeros((20, 30), np.uint8)
    mask[2:5, 3:9] = 1
    mask[10:18, 20:28] = 1
    boxes, labels = blobs(mask, MedianConfig())
    assert boxes.tolist() == [[20, 10, 28, 18], [3, 2, 9, 5]]
    for number, (x0, y0, x1, y1) in enumerate(boxes.astype(int), start=1):
        assert (labels[y0:y1, x0:x1] == number).all()
    assert (labels > 0).sum() == mask.sum()
    nothing, none = blobs(mask * 0, MedianConfig())
    assert nothing.shape == (0, 4)
    assert not none.any()


def test_differs_looks_at_every_channel() -> None:
    one = ground(1)[0]
    for channel in range(3):
        other = one.copy()
        other[3, 4, channel] += 25
        assert differs(other, one, 24).sum() == differs(one, other, 24).sum() == 1
        assert differs(other, one, 25).sum() == 0


def test_the_median_of_frames_has_nothing_that_moves() -> None:
    frames = ground(21)
    for t, frame in enumerate(frames):
        paint(frame, 3 * t, 20, 6, 6, (255, 255, 255))
    assert (median_frame(frames) == ground(1)[0]).all()


@pytest.mark.parametrize(
    "frames",
    [
        np.zeros((0, 4, 4, 3), np.uint8),
        np.zeros((4, 4, 3), np.uint8),
        np.zeros((2, 4, 4, 1), np.uint8),
        np.zeros((2, 4, 4, 3), np.float32),
    ],
)
def test_a_median_of_something_else_is_refused(frames: Image) -> None:
    with pytest.raises(ValueError, match=r"frames: expected \(N, H, W, 3\) uint8, N > 0, got"):
        median_frame(frames)


def test_things_that_stand_still_but_can_vanish_are_found() -> None:
    """Two pills: one is eaten in the last tenth of the frames, the other never."""
    frames = ground(100)
    frames[:, 20:24, 20:24] = (200, 200, 0)
    frames[:90, 40:44, 60:64] = (200, 200, 0)
    assert (median_frame(frames)[41, 61] == (200, 200, 0)).all()
    bare = backdrop(frames, MedianConfig(frame_size=(HEIGHT, WIDTH)))
    assert (bare[40:44, 60:64] == GROUND).all()
    assert (bare[20:24, 20:24] == (200, 200, 0)).all()
    slots = Median.fit(frames).detect(torch.from_numpy(frames[[0, 95]]))
    assert slots.mask.sum(1).tolist() == [1, 0]
    torch.testing.assert_close(slots.boxes(HEIGHT, WIDTH)[0, 0], torch.tensor([60, 40, 64, 44.0]))


def test_what_is_only_hidden_stays_scenery() -> None:
    frames = ground(100)
    frames[:, 20:24, 20:24] = (200, 200, 0)
    frames[::10, 16:28, 16:28] = (255, 0, 255)  # something passes in front of it
    bare = backdrop(frames, MedianConfig(frame_size=(HEIGHT, WIDTH)))
    assert (bare[20:24, 20:24] == (200, 200, 0)).all()


def test_decompose_shows_the_objects_on_black() -> None:
    parts = fitted().decompose(two_things())
    torch.testing.assert_close(parts.reconstruction, parts.image)
    assert parts.alpha.sum() == 264
    assert parts.foreground.count_nonzero() == 264
    torch.testing.assert_close(parts.background[0, :, 0, 0], torch.tensor(GROUND) / 255)


def test_everything_that_it_learnt_is_in_its_state() -> None:
    config = MedianConfig(frame_size=(HEIGHT, WIDTH), max_slots=8)
    model = fitted()
    kind, build = MODELS["median"]
    assert isinstance(config, kind)
    copy = build(config)
    copy.load_state_dict(model.state_dict())
    assert isinstance(copy, Median)
    assert torch.equal(copy.detect(two_things()).position, model.detect(two_things()).position)
