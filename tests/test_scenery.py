"""The background without learning: what stands still is told from what only happens to."""

from __future__ import annotations

import tracemalloc
from dataclasses import replace

import numpy as np
import numpy.typing as npt
import pytest

from objrl.models.regions import Image
from objrl.models.scenery import Scenery, median_frame, survey
from tests.drawn import (
    GREEN,
    GROUND,
    HEIGHT,
    MAX_SIDE,
    RED,
    SPRITE,
    WALL,
    WIDTH,
    YELLOW,
    ground,
    look_at,
    paint,
    shows,
    stamp,
)

PILL = 4


def differs_but_for_changes(scenery: Scenery, frame: Image) -> Image:
    """What differs from every face, large areas included."""
    return replace(scenery, changing=False).differs(frame)


class TestMedian:
    def test_has_nothing_that_moves(self) -> None:
        frames = ground(21)
        for t, frame in enumerate(frames):
            paint(frame, 3 * t, 20, 6, 6, WALL)
        assert (median_frame(frames) == GROUND).all()

    def test_keeps_what_stands_still(self) -> None:
        frames = ground(20)
        paint(frames, 0, 50, WIDTH, 10, WALL)
        paint(frames, 10, 10, PILL, PILL, YELLOW)
        for t, frame in enumerate(frames):
            paint(frame, 3 * t, 30, 6, 6, RED)
        scenery = look_at(frames)
        assert len(scenery.faces) == 1
        assert not scenery.changing
        assert not scenery.standing.any()
        for image in (scenery.median, scenery.faces[0]):
            assert shows(image, 0, 50, WIDTH, 10, WALL)
            assert shows(image, 10, 10, PILL, PILL, YELLOW)
            assert (image == GROUND).all(2).sum() == WIDTH * 50 - PILL**2

    @pytest.mark.parametrize(
        "frames",
        [
            np.zeros((0, 4, 4, 3), np.uint8),
            np.zeros((4, 4, 3), np.uint8),
            np.zeros((2, 4, 4, 1), np.uint8),
            np.zeros((2, 4, 4, 3), np.float32),
        ],
    )
    def test_of_something_else_is_refused(self, frames: Image) -> None:
        with pytest.raises(ValueError, match=r"frames: expected \(N, H, W, 3\) uint8, N > 0, got"):
            look_at(frames)


class TestWhatVanishes:
    def pills(self, missing: list[int]) -> Image:
        """100 frames with a pill a number, missing in so many frames, each at its own time."""
        frames = ground(100)
        for number, count in enumerate(missing):
            here = frames[15 * number + count :], frames[: 15 * number]
            for part in here:
                paint(part, 5 + 12 * number, 20, PILL, PILL, YELLOW)
        return frames

    def kept(self, missing: list[int]) -> list[bool]:
        """Which pills are scenery; of the others, that the ground is under them."""
        frames = self.pills(missing)
        scenery = look_at(frames)
        kept = []
        for number in range(len(missing)):
            place = 5 + 12 * number, 20, PILL, PILL
            assert shows(scenery.median, *place, YELLOW)
            kept.append(shows(scenery.faces[0], *place, YELLOW))
            assert kept[-1] or shows(scenery.faces[0], *place, GROUND)
            labels = set(scenery.standing[20 : 20 + PILL, 5 + 12 * number : 9 + 12 * number].flat)
            assert (labels == {0}) == kept[-1]
            assert len(labels) == 1
        gone = len(kept) - sum(kept)
        assert scenery.standing.max() == gone
        assert np.count_nonzero(scenery.standing) == PILL**2 * gone
        return kept

    def test_three_frames_without_it_make_a_pill_an_object(self) -> None:
        assert self.kept([3]) == [False]
        assert self.kept([2]) == [True]
        assert self.kept([0, 10]) == [True, False]

    def test_what_looks_like_three_that_can_vanish_can_too(self) -> None:
        assert self.kept([3, 4, 5, 0]) == [False] * 4
        assert self.kept([3, 4, 0, 0]) == [False, False, True, True]

    def test_another_kind_does_not(self) -> None:
        frames = self.pills([3, 4, 5])
        paint(frames, 5, 40, PILL, PILL, RED)
        paint(frames, 25, 40, PILL + 1, PILL, YELLOW)
        scenery = look_at(frames)
        assert scenery.standing.max() == 3
        assert shows(scenery.faces[0], 5, 40, PILL, PILL, RED)
        assert shows(scenery.faces[0], 25, 40, PILL + 1, PILL, YELLOW)

    def test_a_pill_that_is_only_hidden_stays_scenery(self) -> None:
        frames = self.pills([0])
        paint(frames[::10], 1, 16, 12, 12, RED)  # something passes in front of it
        assert shows(look_at(frames).faces[0], 5, 20, PILL, PILL, YELLOW)

    def test_a_ghost_leaves_its_small_house_and_the_house_stays(self) -> None:
        frames = ground(50)
        house, inside = (30, 20, 16, 14), (32, 22, 12, 10)
        paint(frames, *house, WALL)
        paint(frames, *inside, GROUND)
        paint(frames[:40], 36, 25, 4, 4, RED)  # of house and ghost too little to turn them both
        scenery = look_at(frames)
        assert shows(scenery.faces[0], *inside, GROUND)
        assert (scenery.faces[0] == WALL).all(2).sum() == 16 * 14 - 12 * 10
        assert scenery.standing.max() == 1
        assert np.count_nonzero(scenery.standing) == 16

    @pytest.mark.parametrize(("columns", "stays"), [(2, True), (3, False)])
    def test_a_third_of_it_must_have_gone(self, columns: int, stays: bool) -> None:
        """A dent makes no object of a piece of scenery."""
        frames = ground(100)
        paint(frames, 30, 20, 8, 4, WALL)
        paint(frames[:10], 30, 20, columns, 4, GROUND)
        assert shows(look_at(frames).faces[0], 30, 20, 8, 4, WALL if stays else GROUND)

    def test_a_blinking_screen_makes_no_objects(self) -> None:
        frames = ground(100)
        for number in range(6):
            paint(frames, 5 + 12 * number, 20, PILL, PILL, YELLOW)
        frames[::20] = GROUND
        scenery = look_at(frames)
        assert (scenery.faces[0] == YELLOW).all(2).sum() == 6 * PILL**2
        assert not scenery.standing.any()

    def test_what_is_left_of_a_thing_that_moves_in_one_place_does_not_stand(self) -> None:
        frames = ground(100)
        for t, frame in enumerate(frames[:90]):
            paint(frame, 10, 20 + t % 7, 3, 14, RED)
        scenery = look_at(frames)
        assert shows(scenery.median, 10, 26, 3, 8, RED)
        assert shows(scenery.faces[0], 10, 20, 3, 20, GROUND)
        assert not scenery.standing.any()

    def test_two_that_take_turns_are_not_one_that_stands(self) -> None:
        """The median has both at once, as hardly a frame does."""
        frames = ground(100)
        paint(frames[:54], 10, 20, 4, 4, RED)
        paint(frames[47:], 14, 20, 4, 4, RED)
        scenery = look_at(frames)
        assert shows(scenery.median, 10, 20, 8, 4, RED)
        assert shows(scenery.faces[0], 10, 20, 8, 4, GROUND)
        assert not scenery.standing.any()


class TestWhatMovesElsewhere:
    def second_player(self, still: npt.NDArray[np.bool_], places: int = 10) -> Image:
        """A shape that never moves, a sprite that does."""
        frames = ground(60)
        stamp(frames, 60, 10, RED, still)
        for t, frame in enumerate(frames):
            stamp(frame, 5 + 4 * (t % places), 40, RED)
        return frames

    @pytest.mark.parametrize("mirrored", [False, True])
    def test_the_same_sprite_elsewhere_is_an_object(self, mirrored: bool) -> None:
        scenery = look_at(self.second_player(SPRITE[:, ::-1] if mirrored else SPRITE))
        assert (scenery.faces[0] == GROUND).all()
        assert np.count_nonzero(scenery.standing) == SPRITE.sum()
        assert scenery.standing.max() == 1

    def test_upside_down_or_in_another_colour_it_is_not_the_same(self) -> None:
        frames = self.second_player(SPRITE[::-1])
        stamp(frames, 60, 30, GREEN)
        faces = look_at(frames).faces
        assert (faces[0] != GROUND).any(2).sum() == 2 * SPRITE.sum()

    def test_it_must_have_been_in_three_places(self) -> None:
        assert (look_at(self.second_player(SPRITE, places=3)).faces[0] == GROUND).all()
        stays = look_at(self.second_player(SPRITE, places=2)).faces[0]
        assert (stays[10:16, 60:66] == RED).all(2).sum() == SPRITE.sum()

    def test_a_rectangle_says_too_little(self) -> None:
        frames = ground(60)
        paint(frames, 60, 10, 6, 4, RED)
        for t, frame in enumerate(frames):
            paint(frame, 5 + 4 * (t % 10), 40, 6, 4, RED)
        scenery = look_at(frames)
        assert shows(scenery.faces[0], 60, 10, 6, 4, RED)
        assert not scenery.standing.any()


class TestFaces:
    def wall(self, hole: slice) -> Image:
        """A wall across the frame with a hole in some of the frames, as in Breakout."""
        frames = ground(100)
        paint(frames, 0, 10, WIDTH, 6, WALL)
        paint(frames[hole], 30, 10, 8, 6, GROUND)
        return frames

    def test_a_hole_that_lasts_is_a_face_and_no_object(self) -> None:
        frames = self.wall(slice(70, 100))
        paint(frames[80], 32, 11, 3, 3, RED)  # the ball in it
        scenery = look_at(frames)
        assert scenery.faces.shape == (2, HEIGHT, WIDTH, 3)
        assert shows(scenery.faces[0], 30, 10, 8, 6, WALL)
        assert shows(scenery.faces[1], 30, 10, 8, 6, GROUND)
        assert not scenery.differs(frames[0]).any()
        assert not scenery.differs(frames[90]).any()
        assert scenery.differs(frames[80]).sum() == 9
        # Elsewhere the second face is the first.
        same = (scenery.faces[1] == scenery.faces[0]).all(2)
        assert same.sum() == HEIGHT * WIDTH - 8 * 6

    def test_a_hole_that_does_not_last_differs(self) -> None:
        scenery = look_at(self.wall(slice(99, 100)))
        assert len(scenery.faces) == 1
        assert scenery.differs(self.wall(slice(0, 1))[0]).sum() == 8 * 6

    def test_a_wall_behind_a_gate_that_is_there_at_times(self) -> None:
        """Small things are no faces, however often they are there."""
        frames = ground(100)
        paint(frames[:30], 30, 10, 8, 6, RED)
        scenery = look_at(frames)
        assert len(scenery.faces) == 1
        assert scenery.differs(frames[0]).sum() == 8 * 6

    def test_every_colour_of_a_sky_that_flips_is_one(self) -> None:
        frames = ground(90)
        frames[50:70] = WALL
        frames[70:] = GREEN
        scenery = look_at(frames)
        assert len(scenery.faces) == 3
        for frame in frames[[0, 60, 80]]:
            assert not differs_but_for_changes(scenery, frame).any()


class TestChanging:
    def river(self) -> Image:
        """Banks that never end where they did."""
        rng = np.random.default_rng(0)
        frames = ground(60)
        for frame in frames:
            for row in range(0, HEIGHT, 10):
                paint(frame, 0, row, int(rng.integers(21, 50)), 10, GREEN)
        return frames

    def test_large_areas_that_move_are_background(self) -> None:
        frames = self.river()
        scenery = look_at(frames)
        assert scenery.changing
        paint(frames[0], 10, 0, 30, 8, WALL)  # nobody has seen it before
        paint(frames[0], 30, 20, 5, 5, RED)
        expected = np.zeros((HEIGHT, WIDTH), np.uint8)
        expected[20:25, 30:35] = 1
        assert np.array_equal(scenery.differs(frames[0]), expected)

    def test_a_large_thing_now_and_then_is_not_a_changing_background(self) -> None:
        frames = ground(60)
        paint(frames[:9], 20, 20, 30, 10, GREEN)  # a sixteenth of the frame, in 15 % of them
        assert not look_at(frames).changing


class TestStillThere:
    def test_a_pill_is_there_whole_or_not_at_all(self) -> None:
        frames = ground(100)
        paint(frames[3:], 20, 20, PILL, PILL, YELLOW)
        scenery = look_at(frames)
        assert not scenery.still_there(frames[0]).any()
        assert np.array_equal(scenery.still_there(frames[50]), scenery.standing)
        frame = frames[50].copy()
        paint(frame, 24, 16, 8, 8, RED)  # a ghost touches it
        assert np.array_equal(scenery.still_there(frame), scenery.standing)
        paint(frame, 22, 16, 8, 8, RED)  # and covers half of it
        assert not scenery.still_there(frame).any()

    def test_more_of_it_beside_it_is_something_else(self) -> None:
        frames = ground(100)
        paint(frames[3:], 20, 20, PILL, PILL, YELLOW)
        scenery = look_at(frames)
        frame = frames[50].copy()
        paint(frame, 24, 20, 2, PILL, YELLOW)
        assert not scenery.still_there(frame).any()

    def test_nothing_stands(self) -> None:
        frames = ground(3)
        assert not look_at(frames).still_there(frames[0]).any()


def test_frames_of_very_many_colours_take_no_memory_for_each() -> None:
    rng = np.random.default_rng(0)
    frames = ground(20)
    frames[:] = rng.integers(130, 143, (HEIGHT, WIDTH, 3), np.uint8)  # 2197 shades of one
    for t, frame in enumerate(frames):
        paint(frame, 3 * t, 20, 6, 6, RED)
    tracemalloc.start()
    scenery = look_at(frames)
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(scenery.faces) == 1
    assert most < 20 * frames[0].size * 8


def test_frames_without_a_colour_twice_are_borne() -> None:
    rng = np.random.default_rng(0)
    still = rng.integers(0, 256, (HEIGHT, WIDTH, 3), np.uint8)
    frames = np.repeat(still[None], 20, axis=0)
    for t, frame in enumerate(frames):
        paint(frame, 3 * t, 20, 6, 6, RED)
    scenery = look_at(frames)
    assert np.array_equal(scenery.faces, still[None])


class TestRecoloured:
    """A court whose lines take another colour when the sides are changed."""

    def court(self, *, together: bool) -> Image:
        frames = ground(60)
        for t, frame in enumerate(frames):
            for i, x in enumerate((10, 30, 50, 70)):
                swapped = t >= 30 if together else (t // (5 + i)) % 2 == 0
                paint(frame, x, 5, 2, MAX_SIDE, YELLOW if swapped else RED)
        return frames

    def test_what_changes_colour_all_at_once_is_background(self) -> None:
        frames = self.court(together=True)
        scenery = survey(frames, max_side=MAX_SIDE, threshold=24)
        assert not any(scenery.differs(frame).any() for frame in frames)

    def test_what_changes_colour_by_itself_is_a_thing(self) -> None:
        frames = self.court(together=False)
        scenery = survey(frames, max_side=MAX_SIDE, threshold=24)
        assert any(scenery.differs(frame).any() for frame in frames)
