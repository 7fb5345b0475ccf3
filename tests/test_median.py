"""The baseline without learning: exact on what it can see, and honest about the rest."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from objrl.models import MODELS
from objrl.models.median import Median, MedianConfig, Scenes, Seen, enough_slots
from tests.drawn import GREEN, GROUND, HEIGHT, RED, WIDTH, YELLOW, ground, lit, paint, rooms


def fitted(max_slots: int = 8, **rule: Any) -> Median:
    config = MedianConfig(frame_size=(HEIGHT, WIDTH), max_slots=max_slots, **rule)
    return Median.fit(ground(5), config)


def two_things() -> torch.Tensor:
    frame = ground(1)
    paint(frame[0], 10, 20, 6, 4, (250, 0, 0))
    paint(frame[0], 50, 5, 12, 20, (0, 250, 0))
    return torch.from_numpy(frame)


def eventful() -> np.ndarray[Any, np.dtype[np.uint8]]:
    """100 frames: a pill that is eaten, a sky that flips, two that move and once touch."""
    frames = ground(100)
    paint(frames[60:], 0, 40, WIDTH, 20, (0, 0, 200))
    paint(frames[:90], 60, 30, 4, 4, YELLOW)
    for t, frame in enumerate(frames):
        paint(frame, 2 + 3 * t % 20, 10, 6, 6, RED)
        paint(frame, 40 + 3 * t % 20, 10, 6, 6, GREEN)
    return frames


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


def test_things_that_stand_still_but_can_vanish_are_found() -> None:
    """Two pills: one is eaten in the last tenth of the frames, the other never."""
    frames = ground(100)
    frames[:, 20:24, 20:24] = (200, 200, 0)
    frames[:90, 40:44, 60:64] = (200, 200, 0)
    slots = Median.fit(frames).detect(torch.from_numpy(frames[[0, 95]]))
    assert slots.mask.sum(1).tolist() == [1, 0]
    torch.testing.assert_close(slots.boxes(HEIGHT, WIDTH)[0, 0], torch.tensor([60, 40, 64, 44.0]))


def test_colours_that_are_learnt_tell_apart_what_touches() -> None:
    frame = ground(1)
    paint(frame[0], 20, 10, 6, 6, RED)
    paint(frame[0], 26, 10, 6, 6, GREEN)
    slots = Median.fit(eventful()).detect(torch.from_numpy(frame))
    assert slots.mask.sum() == 2
    assert fitted().detect(torch.from_numpy(frame)).mask.sum() == 1


def test_without_a_config_there_are_rows_for_the_fullest_frames() -> None:
    frames = ground(40)
    for t, frame in enumerate(frames):
        for number in range(18):
            x, y = 9 * (number % 9), 15 * (number // 9) + t % 30
            paint(frame, x, y, 4, 4, (255, 255, 255))
    model = Median.fit(frames)
    assert model.config.frame_size == (HEIGHT, WIDTH)
    assert model.max_slots == model.config.max_slots == 32
    assert model.detect(torch.from_numpy(frames)).mask.sum(1).tolist() == [18] * 40


@pytest.mark.parametrize(
    ("count", "rows"), [(0, 16), (12, 16), (13, 32), (30, 48), (150, 192), (10**4, 192)]
)
def test_rows_are_a_quarter_more_than_were_needed(count: int, rows: int) -> None:
    assert enough_slots([1] * 97 + [count] * 3) == rows


def test_a_config_is_kept_and_frames_are_fitted_to_it() -> None:
    large = eventful().repeat(2, 1).repeat(2, 2)
    config = MedianConfig(frame_size=(HEIGHT, WIDTH), max_slots=5)
    model = Median.fit(large, config)
    assert (model.config.frame_size, model.max_slots) == ((HEIGHT, WIDTH), 5)
    plain = Median.fit(eventful(), config)
    assert all(torch.equal(value, plain.state_dict()[n]) for n, value in model.state_dict().items())


def test_of_several_games_a_frame_is_taken_apart_by_its_own() -> None:
    config = MedianConfig(frame_size=(HEIGHT, WIDTH))
    other = ground(5)
    other[:] = (200, 200, 200)
    one, two = (Seen.of(frames, config) for frames in (ground(5), other))
    both = Scenes((one, two))
    for background, seen in ((ground(1)[0], one), (other[0], two)):
        frame = background.copy()
        paint(frame, 10, 20, 6, 4, RED)
        assert both.of(frame) is seen
        boxes, labels = both.pieces(frame)
        assert boxes.tolist() == [[10, 20, 16, 24]]
        assert (labels > 0).sum() == 24


def test_decompose_shows_the_objects_on_black() -> None:
    parts = fitted().decompose(two_things())
    torch.testing.assert_close(parts.reconstruction, parts.image)
    assert parts.alpha.sum() == 264
    assert parts.foreground.count_nonzero() == 264
    torch.testing.assert_close(parts.background[0, :, 0, 0], torch.tensor(GROUND) / 255)


def test_everything_that_it_learnt_is_in_its_state() -> None:
    frames = eventful()
    model = Median.fit(frames)
    assert model.config.faces == 2
    assert model.config.colours == 2
    assert model.standing.max() == 1
    kind, build = MODELS["median"]
    assert isinstance(model.config, kind)
    copy = build(model.config)
    assert isinstance(copy, Median)
    copy.load_state_dict(model.state_dict())
    some = torch.from_numpy(frames[::9])
    ours, theirs = model.detect(some), copy.detect(some)
    assert ours.mask.any()
    for name in ("position", "scale", "what", "presence"):
        assert torch.equal(getattr(theirs, name), getattr(ours, name))
    assert copy.seen.scenery.changing


def test_in_lit_rooms_too() -> None:
    frames = rooms(60)
    for t, frame in enumerate(frames):
        paint(frame, t, 30, 8, 8, RED)
    frames = lit(frames)
    model = Median.fit(frames, MedianConfig(frame_size=(HEIGHT, WIDTH), max_slots=8, largest=0.25))
    assert model.config.shaded
    assert not Median.fit(eventful()).config.shaded
    copy = Median(model.config)
    copy.load_state_dict(model.state_dict())
    slots = copy.detect(torch.from_numpy(frames[:1]))
    assert slots.mask.sum() == 1
    box = slots.boxes(HEIGHT, WIDTH)[0, 0].tolist()
    assert box == pytest.approx([0, 30, 8, 38], abs=1)
