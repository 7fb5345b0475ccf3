"""Pieces of what differs from the background: things that touch are told apart by colour."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from objrl.models.pieces import Palette, find_pieces, learn_palette
from objrl.models.regions import Image, Labels, coarse_colours
from objrl.models.scenery import Scenery
from tests.drawn import (
    GREEN,
    GROUND,
    HEIGHT,
    MAX_SIDE,
    RED,
    THRESHOLD,
    WALL,
    WIDTH,
    YELLOW,
    Colour,
    ground,
    look_at,
    paint,
)

NOTHING = Palette(np.zeros(0, np.int32), np.zeros((0, 0), np.bool_))


def plain() -> Scenery:
    return look_at(ground(3))


def code(colour: Colour) -> int:
    return int(coarse_colours(np.array(colour, np.uint8)))


def boxes_of(frame: Image, scenery: Scenery, palette: Palette = NOTHING) -> list[list[float]]:
    boxes, labels = find_pieces(frame, scenery, palette, min_area=3)
    check(boxes, labels)
    rows: list[list[float]] = boxes.tolist()
    return rows


def check(boxes: npt.NDArray[np.float32], labels: Labels, *, tight: bool = False) -> None:
    """Every box is its label's, in the frame, and no label is without a box."""
    assert boxes.dtype == np.float32
    assert boxes.shape == (len(boxes), 4)
    assert labels.shape == (HEIGHT, WIDTH)
    assert labels.dtype == np.int32
    assert set(np.unique(labels)) - {0} == set(range(1, len(boxes) + 1))
    for number, (x0, y0, x1, y1) in enumerate(boxes.astype(int), start=1):
        y, x = np.nonzero(labels == number)
        here = [x.min(), y.min(), x.max() + 1, y.max() + 1]
        assert 0 <= x0 <= here[0] < here[2] <= x1 <= WIDTH
        assert 0 <= y0 <= here[1] < here[3] <= y1 <= HEIGHT
        assert not tight or here == [x0, y0, x1, y1]


class TestFindPieces:
    def test_pieces_come_by_falling_area_with_their_labels(self) -> None:
        frame = ground(1)[0]
        paint(frame, 3, 2, 6, 3, RED)
        paint(frame, 40, 10, 8, 8, GREEN)
        boxes, labels = find_pieces(frame, plain(), NOTHING, min_area=3)
        assert boxes.tolist() == [[40, 10, 48, 18], [3, 2, 9, 5]]
        check(boxes, labels, tight=True)
        assert (labels > 0).sum() == 64 + 18

    def test_nothing_in_an_empty_frame(self) -> None:
        boxes, labels = find_pieces(ground(1)[0], plain(), NOTHING, min_area=3)
        assert boxes.shape == (0, 4)
        assert boxes.dtype == np.float32
        assert not labels.any()

    def test_specks_and_scenery_are_left_out(self) -> None:
        frame = ground(1)[0]
        paint(frame, 5, 5, 2, 1, RED)
        paint(frame, 5, 20, MAX_SIDE + 1, 3, RED)
        paint(frame, 5, 30, 3, MAX_SIDE + 1, RED)
        paint(frame, 40, 30, MAX_SIDE, MAX_SIDE, RED)
        paint(frame, 40, 5, 3, 1, RED)
        assert boxes_of(frame, plain()) == [[40, 30, 60, 50], [40, 5, 43, 6]]

    def test_what_is_left_of_the_background_is_no_piece(self) -> None:
        frame = ground(1)[0]
        frame[:] = RED
        paint(frame, 20, 20, 5, 5, GROUND)
        assert boxes_of(frame, plain()) == []

    def test_at_the_border_a_thing_is_no_larger(self) -> None:
        frame = ground(1)[0]
        paint(frame, 1, 1, 4, 4, RED)
        paint(frame, WIDTH - 5, HEIGHT - 5, 4, 4, RED)
        paint(frame, 0, 30, 4, 4, RED)
        assert sorted(boxes_of(frame, plain())) == [
            [0, 30, 4, 34],
            [1, 1, 5, 5],
            [WIDTH - 5, HEIGHT - 5, WIDTH - 1, HEIGHT - 1],
        ]

    def test_where_banks_scroll_only_small_things_are_pieces(self) -> None:
        rng = np.random.default_rng(0)
        frames = ground(60)
        for frame in frames:
            for row in range(0, HEIGHT, 10):
                paint(frame, 0, row, int(rng.integers(21, 50)), 10, GREEN)
        scenery = look_at(frames)
        assert scenery.changing
        paint(frames[7], 10, 0, 30, 8, WALL)  # an island that nobody has seen before
        paint(frames[7], 15, 2, 3, 3, RED)
        paint(frames[7], 60, 20, 5, 5, RED)  # on the water
        paint(frames[7], 5, 31, 4, 4, YELLOW)  # on the bank
        expected = [[60, 20, 65, 25], [5, 31, 9, 35], [15, 2, 18, 5]]
        assert boxes_of(frames[7], scenery) == expected


class TestStanding:
    def scene(self) -> Scenery:
        frames = ground(100)
        paint(frames[:95], 20, 20, 4, 4, YELLOW)
        return look_at(frames)

    def test_a_pill_is_a_piece_of_its_own_when_a_ghost_touches_it(self) -> None:
        frame = ground(1)[0]
        paint(frame, 20, 20, 4, 4, YELLOW)
        paint(frame, 24, 17, 8, 8, RED)
        assert boxes_of(frame, self.scene()) == [[24, 17, 32, 25], [20, 20, 24, 24]]

    def test_even_one_of_its_own_kind_of_colour_a_gap_away(self) -> None:
        frame = ground(1)[0]
        paint(frame, 20, 20, 4, 4, YELLOW)
        paint(frame, 25, 20, 4, 3, YELLOW)  # a closing alone would join them
        assert boxes_of(frame, self.scene()) == [[20, 20, 24, 24], [25, 20, 29, 23]]

    def test_what_has_grown_is_one_piece(self) -> None:
        frame = ground(1)[0]
        paint(frame, 20, 20, 6, 4, YELLOW)
        assert boxes_of(frame, self.scene()) == [[20, 20, 26, 24]]

    def test_what_was_eaten_is_none(self) -> None:
        assert boxes_of(ground(1)[0], self.scene()) == []


class TestColours:
    def boxers(self) -> Image:
        """A boxer with a head of another colour, and another boxer: they meet now and then."""
        frames = ground(40)
        for t, frame in enumerate(frames):
            self.boxer(frame, 2 + 7 * t % 30)
            paint(frame, 40 + 5 * t % 30, 30, 6, 6, GREEN)
        self.meet(frames[0])
        return frames

    def boxer(self, frame: Image, x: int) -> None:
        paint(frame, x, 28, 6, 4, YELLOW)
        paint(frame, x, 32, 6, 6, RED)

    def meet(self, frame: Image) -> None:
        frame[:] = GROUND
        self.boxer(frame, 10)
        paint(frame, 16, 30, 6, 6, GREEN)

    def learn(self, frames: Image) -> tuple[Scenery, Palette]:
        scenery = look_at(frames)
        return scenery, learn_palette(frames, scenery)

    def test_two_that_touch_are_told_apart_and_one_of_two_colours_is_not(self) -> None:
        frames = self.boxers()
        scenery, palette = self.learn(frames)
        assert palette.colours.tolist() == sorted([code(RED), code(GREEN), code(YELLOW)])
        red, green, yellow = (
            int(np.searchsorted(palette.colours, code(c))) for c in (RED, GREEN, YELLOW)
        )
        assert palette.joined[red, yellow]
        assert palette.joined[yellow, red]
        assert not palette.joined[green, [red, yellow]].any()
        assert boxes_of(frames[0], scenery, palette) == [[10, 28, 16, 38], [16, 30, 22, 36]]
        assert boxes_of(frames[0], scenery) == [[10, 28, 22, 38]]

    def test_a_flash_stays_with_its_thing(self) -> None:
        frames = self.boxers()
        scenery, palette = self.learn(frames)
        frame = frames[3]
        paint(frame, 24, 33, 3, 3, WALL)  # within the boxer
        assert len(boxes_of(frame, scenery, palette)) == 2

    def test_those_that_always_touch_are_one(self) -> None:
        frames = ground(20)
        for t, frame in enumerate(frames):
            paint(frame, 3 * t, 10, 4, 4, RED)
            paint(frame, 3 * t + 4, 10, 4, 4, GREEN)
        scenery, palette = self.learn(frames)
        assert palette.joined.all()
        assert boxes_of(frames[5], scenery, palette) == [[15, 10, 23, 14]]

    @pytest.mark.parametrize(("together", "joined"), [(13, True), (11, False)])
    def test_mostly_is_six_of_ten_of_the_rarer_one(self, together: int, joined: bool) -> None:
        frames = ground(60)
        for t, frame in enumerate(frames):
            paint(frame, t, 10, 4, 4, RED)
            if t < 20:
                paint(frame, t + 4 if t < together else t + 10, 10, 4, 4, GREEN)
        _, palette = self.learn(frames)
        assert len(palette.colours) == 2
        assert palette.joined[0, 1] == joined

    def test_a_few_pixels_or_a_few_sightings_make_no_colour(self) -> None:
        frames = ground(20)
        for t, frame in enumerate(frames):
            paint(frame, 3 * t, 10, 4, 4, RED)
            paint(frame, 3 * t, 10, 2, 1, GREEN)
        for frame in frames[:4]:
            paint(frame, 70, 40, 4, 4, YELLOW)
        assert self.learn(frames)[1].colours.tolist() == [code(RED)]

    def test_where_nothing_moves_no_colour_is_known(self) -> None:
        _, palette = self.learn(ground(3))
        assert palette.colours.shape == (0,)
        assert palette.joined.shape == (0, 0)

    def test_no_part_is_lost_under_another(self) -> None:
        """Stripes: either colour's closing would cover the other."""
        frame = ground(1)[0]
        paint(frame, 10, 10, 9, 9, RED)
        frame[10:19, 11:18:2] = GREEN
        colours = np.sort(np.array([code(RED), code(GREEN)], np.int32))
        apart = Palette(colours, np.eye(2, dtype=np.bool_))
        boxes, labels = find_pieces(frame, plain(), apart, min_area=3)
        check(boxes, labels)
        assert boxes.tolist() == [[10, 10, 19, 19], [11, 10, 18, 19]]
        for colour in (RED, GREEN):
            assert len(np.unique(labels[(frame == colour).all(2)])) == 1


class TestGroups:
    def groups(self, colours: list[int], counts: list[int]) -> list[int]:
        """Of a palette of 10, 20, 30, 40, where 10 goes with 20 and 20 with 30."""
        joined = np.eye(4, dtype=np.bool_)
        for a, b in ((0, 1), (1, 2)):
            joined[a, b] = joined[b, a] = True
        palette = Palette(np.array([10, 20, 30, 40], np.int32), joined)
        found: list[int] = palette.groups(np.array(colours, np.int32), np.array(counts)).tolist()
        return found

    def test_belonging_is_passed_on(self) -> None:
        assert self.groups([10, 20, 30, 40], [1, 1, 1, 1]) == [0, 0, 0, 3]

    def test_but_only_by_those_that_are_there(self) -> None:
        assert self.groups([10, 30], [1, 1]) == [0, 1]

    @pytest.mark.parametrize(
        ("counts", "expected"), [([9, 1, 2], [0, 0, 2]), ([2, 1, 9], [0, 1, 1])]
    )
    def test_a_rare_colour_goes_with_the_commonest(
        self, counts: list[int], expected: list[int]
    ) -> None:
        assert self.groups([10, 15, 40], counts) == expected

    def test_one_beyond_the_palette_is_rare_too(self) -> None:
        assert self.groups([10, 40, 99], [2, 9, 1]) == [0, 1, 1]

    def test_a_piece_of_rare_colours_is_one(self) -> None:
        assert self.groups([5, 15, 99], [1, 2, 3]) == [0, 0, 0]


COLOURS: list[Colour] = [RED, GREEN, YELLOW, WALL, GROUND]


def standing_things() -> tuple[Image, Labels]:
    """A median with two of them, and their labels."""
    median = ground(1)[0]
    paint(median, 20, 20, 4, 4, YELLOW)
    paint(median, 40, 0, 5, 3, RED)
    standing = np.zeros((HEIGHT, WIDTH), np.int32)
    standing[20:24, 20:24], standing[0:3, 40:45] = 1, 2
    return median, standing


@st.composite
def scenes(draw: st.DrawFn) -> Image:
    """A frame of rectangles that may touch, overlap, lie at the border and hide what stands."""
    frame: Image = standing_things()[0].copy()
    for _ in range(draw(st.integers(0, 8))):
        x, y = draw(st.integers(0, WIDTH - 1)), draw(st.integers(0, HEIGHT - 1))
        w, h = draw(st.integers(1, 12)), draw(st.integers(1, 12))
        paint(frame, x, y, w, h, draw(st.sampled_from(COLOURS)))
    return frame


@given(scenes(), st.integers(0, 2**12 - 1), st.integers(1, 30))
@settings(max_examples=60, deadline=None)
def test_boxes_and_labels_belong_together(frame: Image, bits: int, min_area: int) -> None:
    """Whatever is in a frame, stands in it and belongs together."""
    median, standing = standing_things()
    scenery = Scenery(ground(1), median, standing, False, False, False, MAX_SIDE, THRESHOLD)
    colours = np.array(sorted(map(code, COLOURS[:3])), np.int32)
    flags = np.array([bits >> i & 1 for i in range(9)], np.bool_).reshape(3, 3)
    palette = Palette(colours, flags | flags.T | np.eye(3, dtype=np.bool_))
    boxes, labels = find_pieces(frame, scenery, palette, min_area=min_area)
    check(boxes, labels)
    side = boxes[:, 2:] - boxes[:, :2]
    assert (side <= MAX_SIDE).all()
    assert (side.prod(1) >= min_area).all()
    again, same = find_pieces(frame.copy(), scenery, palette, min_area=min_area)
    assert np.array_equal(boxes, again)
    assert np.array_equal(labels, same)
    whole, tight = find_pieces(frame, plain(), NOTHING, min_area=min_area)
    check(whole, tight, tight=True)
