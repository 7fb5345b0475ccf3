"""Areas and pieces of a single picture, flat or shaded."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from objrl.models.regions import (
    Image,
    areas,
    components,
    differs,
    hues,
    is_shaded,
    large_areas,
    opened,
)
from tests.drawn import (
    GREEN,
    GROUND,
    HEIGHT,
    MAX_SIDE,
    PALE,
    RED,
    WALL,
    WIDTH,
    YELLOW,
    Colour,
    ground,
    lit,
    paint,
)


def test_differs_looks_at_every_channel() -> None:
    one = ground(1)[0]
    for channel in range(3):
        other = one.copy()
        other[3, 4, channel] += 25
        assert differs(other, one, 24).sum() == differs(one, other, 24).sum() == 1
        assert differs(other, one, 25).sum() == 0


def test_large_is_wider_or_taller_than_any_object() -> None:
    image = ground(1)[0]
    paint(image, 0, 0, MAX_SIDE, MAX_SIDE, RED)
    paint(image, 30, 0, MAX_SIDE + 1, 1, RED)
    paint(image, 70, 20, 1, MAX_SIDE + 1, GREEN)
    found = large_areas(image, MAX_SIDE)
    assert (found == 1)[(image == GROUND).all(2)].all()
    assert not found[:MAX_SIDE, :MAX_SIDE].any()
    assert found[0, 30 : 31 + MAX_SIDE].all()
    assert found[20 : 21 + MAX_SIDE, 70].all()


class TestShaded:
    def room(self, wall: Colour = PALE[0], floor: Colour = PALE[1]) -> Image:
        frame: Image = ground(1)[0]
        frame[:20], frame[20:] = wall, floor
        return frame

    @pytest.mark.parametrize(("colours", "shaded"), [(256, False), (257, True)])
    def test_is_what_has_more_colours_than_a_game_draws(self, colours: int, shaded: bool) -> None:
        code = np.arange(HEIGHT * WIDTH).reshape(HEIGHT, WIDTH) % colours
        image = np.stack([code & 15, code >> 4, np.full_like(code, 7)], axis=-1).astype(np.uint8)
        assert is_shaded(image) == shaded

    def test_an_area_goes_on_through_light_and_shadow_and_ends_where_the_hue_does(self) -> None:
        room = self.room()
        paint(room, 30, 30, 8, 6, RED)
        paint(room, 50, 30, 8, 6, (70, 90, 120))  # the floor in a shadow half as light
        image = lit(room)
        assert is_shaded(image)
        small = large_areas(image, MAX_SIDE, shaded=True) == 0
        expected = np.zeros_like(small)
        expected[30:36, 30:38] = True
        assert np.array_equal(small, expected)

    def test_an_area_is_as_large_as_no_object(self) -> None:
        room = self.room()
        paint(room, 5, 30, MAX_SIDE, MAX_SIDE, RED)
        paint(room, 40, 30, MAX_SIDE + 3, 5, RED)
        large = large_areas(lit(room), MAX_SIDE, shaded=True)
        assert not large[31:49, 6:24].any()
        assert large[32:34, 42:60].all()

    def test_in_little_light_an_area_is_one_all_the_same(self) -> None:
        """Shares of the light are rough where there is little of it, but not that rough."""
        image = lit(lit(self.room()))
        assert is_shaded(image)
        assert image.min() < 20
        assert large_areas(image, MAX_SIDE, shaded=True).all()


class TestHues:
    def test_are_twelve_whatever_the_light(self) -> None:
        colours = cv2.cvtColor(
            np.array([[[15 * i, 255, v] for i in range(12)] for v in (255, 80)], np.uint8),
            cv2.COLOR_HSV2RGB,
        )
        assert hues(colours.astype(np.uint8), 12).tolist() == [list(range(12))] * 2

    def test_red_has_two_ends(self) -> None:
        reds = np.array([[255, 0, 25], [255, 0, 0], [255, 25, 0]], np.uint8)
        assert hues(reds, 12).tolist() == [0, 0, 0]

    def test_grey_is_none_of_them(self) -> None:
        greys = np.array([WALL, (0, 0, 0), (130, 150, 150), (100, 150, 150)], np.uint8)
        assert hues(greys, 12).tolist() == [12, 12, 12, 6]

    def test_pixels_come_in_any_shape_and_may_be_none(self) -> None:
        assert int(hues(np.array(RED, np.uint8), 12)) == int(hues(np.array(RED, np.uint8) // 2, 12))
        image = np.array([[RED, GREEN, YELLOW]], np.uint8)
        assert hues(image, 12).shape == (1, 3)
        assert len(np.unique(hues(image, 12))) == 3
        assert hues(image[:, :0], 12).shape == (1, 0)
        assert hues(image[:0], 12).dtype == np.int32


def test_opening_takes_lines_and_leaves_things() -> None:
    mask = np.zeros((HEIGHT, WIDTH), np.uint8)
    mask[10:20, 10:13] = mask[30:35, 40:60] = 1
    things = mask.copy()
    mask[25:27] = 1  # two pixels thick
    mask[36:50, 70] = mask[33, 60:68] = 1
    assert np.array_equal(opened(mask), things)


def test_a_closing_joins_loose_pixels_and_reaches_for_no_border() -> None:
    far = np.zeros((20, 30), np.uint8)
    far[1:4, 1:4] = far[16:19, 26:29] = 1  # a pixel away from two borders each
    far[8, 10:20:2] = 1
    labels, stats = components(far)
    assert labels.max() == 3
    assert sorted(map(tuple, stats[1:].tolist())) == [
        (1, 1, 3, 3, 9),
        (10, 8, 9, 1, 9),
        (26, 16, 3, 3, 9),
    ]
    far[:] = 0
    assert not components(far)[0].any()


@given(st.integers(0, 10**6), st.integers(1, 12), st.integers(1, 12))
@settings(max_examples=50, deadline=None)
def test_areas_are_opencvs(seed: int, height: int, width: int) -> None:
    mask = np.random.default_rng(seed).integers(0, 2, (height, width), np.uint8)
    count, labels, stats, _ = cv2.connectedComponentsWithStats(mask, connectivity=8)
    ours = areas(labels.astype(np.int32), count - 1)
    assert np.array_equal(ours[1:], stats[1:])
