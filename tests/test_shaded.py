"""Where there are light and shadow: walls are told by their hue, and so are things."""

from __future__ import annotations

import cv2
import numpy as np
import pytest

from objrl.models.pieces import Palette, find_pieces, learn_palette
from objrl.models.regions import Image, hues
from objrl.models.scenery import Scenery
from tests.drawn import (
    GREEN,
    GROUND,
    HEIGHT,
    MAX_SIDE,
    RED,
    WIDTH,
    YELLOW,
    ground,
    lit,
    look_at,
    paint,
    rooms,
)

VIOLET = (200, 30, 200)
"""No wall's hue."""


def boxes(frame: Image, scenery: Scenery, palette: Palette) -> list[list[float]]:
    rows: list[list[float]] = find_pieces(frame, scenery, palette, min_area=3)[0].tolist()
    return rows


class TestScenery:
    def test_rooms_have_one_face_and_change(self) -> None:
        scenery = look_at(lit(rooms(40)))
        assert scenery.shaded
        assert scenery.changing
        assert np.array_equal(scenery.faces, scenery.median[None])
        assert not scenery.standing.any()

    def test_what_differs_from_a_room_is_no_wall_and_no_line(self) -> None:
        frames = rooms(40)
        paint(frames[7], 10, 30, 8, 6, RED)
        paint(frames[7], 30, 30, MAX_SIDE + 10, 8, GREEN)  # two that touch, say
        paint(frames[7], 30, 45, 2 * MAX_SIDE + 4, 8, RED)
        frames = lit(frames)
        far = look_at(frames).differs(frames[7])
        expected = np.zeros((HEIGHT, WIDTH), np.uint8)
        expected[30:36, 10:18] = expected[30:38, 30:60] = 1
        assert far[expected > 0].all()
        # The pixel after a jump counts, too.
        assert not far[cv2.dilate(expected, np.ones((3, 3), np.uint8)) == 0].any()

    def test_a_lit_scene_that_stands_still_differs_as_any_other(self) -> None:
        frames = rooms(1).repeat(60, axis=0)
        for t, frame in enumerate(frames):
            paint(frame, t, 30, 8, 6, RED)
        frames = lit(frames)
        scenery = look_at(frames)
        assert scenery.shaded
        assert not scenery.changing
        expected = np.zeros((HEIGHT, WIDTH), np.uint8)
        expected[30:36, 5:13] = 1
        assert np.array_equal(scenery.differs(frames[5]), expected)

    def test_what_stands_in_it_is_scenery(self) -> None:
        """No two pictures of a thing are equal, so none can be told to be another one's like."""
        frames = rooms(1).repeat(60, axis=0)
        paint(frames[:50], 20, 30, 4, 4, RED)
        frames = lit(frames)
        scenery = look_at(frames)
        assert np.array_equal(scenery.faces[0], frames[0])
        assert not scenery.standing.any()

    @pytest.mark.parametrize(("dark", "shaded"), [(19, True), (20, False)])
    def test_most_frames_decide(self, dark: int, shaded: bool) -> None:
        frames = lit(rooms(40))
        frames[:dark] = GROUND
        assert look_at(frames).shaded == shaded

    def test_of_shaded_colours_the_hue_counts(self) -> None:
        flat, shaded = look_at(ground(3)), look_at(lit(rooms(3)))
        pixels = np.array([RED, np.array(RED) // 2, GREEN], np.uint8)
        assert len(np.unique(flat.colours(pixels))) == 3
        dark = shaded.colours(pixels).tolist()
        assert dark[0] == dark[1] != dark[2]


class TestPieces:
    """Hues tell things apart; between two of them there is a line of mixtures."""

    def scene(self) -> tuple[Scenery, Palette]:
        frames = rooms(60)
        for t, frame in enumerate(frames):
            for number, colour in enumerate((RED, GREEN, YELLOW)):
                paint(frame, t % 50, 22 + 12 * number, 8, 8, colour)
            if t < 10:
                frame[20:] = frame[50, 70]
                self.pair(frame)
        scenery = look_at(lit(frames))
        assert scenery.shaded
        assert scenery.changing
        return scenery, learn_palette(lit(frames), scenery)

    def pair(self, frame: Image) -> None:
        """Red and green touch, with a line of yellow between."""
        paint(frame, 20, 30, 8, 8, RED)
        paint(frame, 28, 30, 1, 8, YELLOW)
        paint(frame, 29, 30, 8, 8, GREEN)

    def test_a_room_is_empty(self) -> None:
        scenery, palette = self.scene()
        for frame in lit(rooms(3, seed=9)):
            assert boxes(frame, scenery, palette) == []

    def test_a_picture_without_anything_is_none_either(self) -> None:
        scenery, palette = self.scene()
        assert boxes(np.zeros((HEIGHT, WIDTH, 3), np.uint8), scenery, palette) == []

    def test_two_that_touch_are_two_and_the_line_between_them_is_none(self) -> None:
        scenery, palette = self.scene()
        known = hues(np.array([RED, YELLOW, GREEN], np.uint8), 12)
        assert set(known) <= set(palette.colours)
        red, yellow, green = (int(np.flatnonzero(palette.colours == hue)[0]) for hue in known)
        assert not palette.joined[green, [red, yellow]].any()
        assert not palette.joined[red, yellow]
        (frame,) = rooms(1)
        self.pair(frame)
        left, right = sorted(boxes(lit(frame), scenery, palette))
        # The pixel after a jump counts, so boxes may end a pixel late.
        assert left == pytest.approx([20, 30, 28, 38], abs=1)
        assert right == pytest.approx([29, 30, 37, 38], abs=1)

    @pytest.mark.parametrize(("columns", "known"), [(1, False), (3, True)])
    def test_a_hue_is_one_from_a_fifth_of_a_piece_on(self, columns: int, known: bool) -> None:
        frames = rooms(40)
        for t, frame in enumerate(frames):
            paint(frame, t, 30, 8, 8, RED)
            paint(frame, t, 30, columns, 8, VIOLET)
        palette = learn_palette(lit(frames), look_at(lit(frames)))
        hue = int(hues(np.array(VIOLET, np.uint8), 12))
        assert (hue in palette.colours.tolist()) == known
