"""What the frames tell a recipe: sizes, background and counts, right for things of known size."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import numpy.typing as npt
import pytest

from objrl.models.median import Scenes, Seen
from objrl.models.pieces import Palette
from objrl.models.scenery import Scenery
from objrl.pretrain.configure import LONGEST, Findings, configure, join, look
from objrl.pretrain.presets import SPACE
from tests.squares import SIDE, make_frames


def findings(
    width: float,
    height: float,
    *,
    largest: float = 20,
    rows: int = 16,
    faces: tuple[int, ...] = (1,),
    changing: bool = False,
    shaded: bool = False,
    spread: float = 0.1,
) -> Findings:
    """Of as many games as there are numbers of faces."""
    nothing = np.zeros((210, 160), np.int32)
    palette = Palette(np.zeros(0, np.int32), np.zeros((0, 0), np.bool_))
    every = []
    for count in faces:
        ground = np.zeros((count, 210, 160, 3), np.uint8)
        scenery = Scenery(ground, ground[0], nothing, changing, shaded, False, 60, threshold=24)
        every.append(Seen(scenery, palette, min_area=3))
    seen = Scenes(tuple(every))
    return Findings(seen, width, height, spread=spread, largest=largest, rows=rows)


class TestLook:
    def test_finds_what_was_drawn(self) -> None:
        frames = make_frames(200)
        found = look(frames)
        # Squares that touch are told apart by colour; now and then one hides a part of another.
        assert found.width == pytest.approx(SIDE, rel=0.02)
        assert found.height == pytest.approx(SIDE, rel=0.02)
        assert found.largest == SIDE
        assert found.rows == 16
        ground = make_frames(1)[0]
        ground[:-8] = (20, 20, 60)
        (seen,) = found.seen.every
        assert np.array_equal(seen.scenery.faces, ground[None])
        assert len(seen.palette.colours) == 3

    def test_the_fullest_frames_decide_about_the_rows(self) -> None:
        frames = make_frames(60)
        rng = np.random.default_rng(1)
        for frame in frames[::10]:
            for place in rng.permutation(12 * 15)[:40]:  # flashes, one a tile
                y, x = divmod(int(place), 15)
                frame[4 * y : 4 * y + 2, 4 * x : 4 * x + 2] = (255, 0, 255)
        assert 43 <= look(frames).rows < 100

    def test_large_frames_are_shrunk(self) -> None:
        large = make_frames(40).repeat(6, 1).repeat(4, 2)
        found = look(large)
        height, width = found.seen.every[0].scenery.median.shape[:2]
        assert (height, width) == (LONGEST, round(4 * 64 * LONGEST / (6 * 64)))
        assert found.width == pytest.approx(4 * SIDE * width / (4 * 64), rel=0.1)
        assert found.height == pytest.approx(6 * SIDE * height / (6 * 64), rel=0.1)

    def test_describes_itself_in_numbers_that_json_holds(self) -> None:
        told = look(make_frames(50)).describe()
        assert {"width", "height", "largest", "rows", "faces", "standing"} <= told.keys()
        assert json.loads(json.dumps(told)) == told
        assert (told["background"], told["shaded"]) == ("static", False)
        told = join([findings(8, 8), findings(8, 8, changing=True, shaded=True)]).describe()
        assert json.loads(json.dumps(told)) == told
        assert (told["background"], told["shaded"], told["scenes"]) == ("changing", True, 2)

    @pytest.mark.parametrize(
        "frames",
        [np.full((30, 64, 64, 3), 7, np.uint8), np.repeat(make_frames(1), 30, axis=0)],
        ids=["one colour", "still"],
    )
    def test_frames_in_which_nothing_moves(self, frames: npt.NDArray[np.uint8]) -> None:
        with pytest.raises(ValueError, match=r"expected things that move .* in 30 frames"):
            look(frames)


class TestJoin:
    def test_of_one_game_it_is_what_was_found_there(self) -> None:
        found = findings(8, 8)
        assert join([found]) is found

    def test_rows_and_windows_suffice_for_all_and_no_background_is_lost(self) -> None:
        found = (
            findings(8, 8, largest=50, rows=32),
            findings(8, 8, largest=20, rows=112, faces=(3, 1)),
        )
        joint = join(found)
        assert (joint.largest, joint.rows) == (50, 112)
        assert joint.seen.every == (*found[0].seen.every, *found[1].seen.every)

    def test_sizes_are_in_the_middle_and_spread_over_all_of_them(self) -> None:
        """As of log-normal sizes, of each game as many."""
        games = [(4.0, 10.0, 0.2), (16.0, 10.0, 0.4)]
        joint = join([findings(w, h, spread=s) for w, h, s in games])
        assert joint.width == pytest.approx(8)
        assert joint.height == pytest.approx(10)
        rng = np.random.default_rng(0)
        logs = np.concatenate(
            [np.log((w, h)) + s * rng.standard_normal((100_000, 2)) for w, h, s in games]
        )
        # As `look` has it: the mean of both sides' variances.
        assert joint.spread == pytest.approx(np.sqrt(logs.var(0).mean()), rel=0.02)


class TestConfigure:
    @pytest.mark.parametrize(("side", "cell"), [(4, 8), (12, 8), (24, 16), (60, 32)])
    def test_cells_are_about_as_large_as_objects(self, side: float, cell: int) -> None:
        assert configure(SPACE["space-fast"], findings(side, side)).model.cell == cell

    @pytest.mark.parametrize("rows", [16, 48, 112])
    def test_rows_suffice_for_the_fullest_frame(self, rows: int) -> None:
        model = configure(SPACE["space-fast"], findings(8, 8, rows=rows)).model
        assert model.rendered >= rows
        assert model.max_slots >= rows

    def test_the_background_is_of_the_kind_that_was_seen(self) -> None:
        still = configure(SPACE["space-fast"], findings(8, 8)).model
        assert (still.faces, still.flat) == (1, 0)
        flips = configure(SPACE["space-fast"], findings(8, 8, faces=(3,))).model
        assert (flips.faces, flips.flat) == (3, 0)
        joint = configure(SPACE["space-fast"], findings(8, 8, faces=(1, 4, 2))).model
        assert (joint.scenes, joint.faces) == (3, 4)
        scrolls = configure(SPACE["space-fast"], findings(8, 8, changing=True)).model
        assert scrolls.faces == 1
        # Longer than a typical object, shorter than what the teacher holds for scenery.
        assert 20 < scrolls.flat < 60

    def test_of_several_scenes_it_is_known_which_change(self) -> None:
        one, other = findings(8, 8), findings(8, 8, changing=True)
        for parts, changing in (((one, other), (1,)), ((other, other), ()), ((one, one), ())):
            model = configure(SPACE["space-fast"], join(parts)).model
            assert model.changing == changing
            assert bool(model.flat) == any(part is other for part in parts)

    def test_shaded_scenes_that_change_have_no_picture_and_the_mask_is_taught(self) -> None:
        plain = SPACE["space-fast"]
        for changing, shaded in ((False, False), (False, True), (True, False)):
            recipe = configure(plain, findings(8, 8, changing=changing, shaded=shaded))
            assert recipe.model.background == "static"
            assert recipe.alpha_evidence == plain.alpha_evidence
        rooms = configure(plain, findings(8, 8, changing=True, shaded=True))
        assert rooms.model.background == "smooth"
        assert plain.alpha_evidence(1) == 0
        assert rooms.alpha_evidence(1) == rooms.alpha_evidence(0) > 0

    @pytest.mark.parametrize("largest", [4, 18, 40, 60])
    def test_windows_hold_the_largest(self, largest: float) -> None:
        recipe = SPACE["space-fast"]
        model = configure(recipe, findings(8, 8, largest=largest)).model
        assert model.window >= recipe.margin * largest
        assert model.window <= 96

    def test_the_prior_of_a_box_is_the_typical_object_with_its_margin(self) -> None:
        recipe = configure(SPACE["space-fast"], findings(16, 21))
        width, height = (1 / (1 + np.exp(-mean)) for mean in recipe.priors(0).scale_mean)
        assert width == pytest.approx(recipe.margin * 16 / 160)
        assert height == pytest.approx(recipe.margin * 21 / 210)

    def test_what_the_frames_do_not_tell_stays(self) -> None:
        recipe = replace(SPACE["space-fast"], fg_lr=0.123, steps=7)
        changed = configure(recipe, findings(8, 8))
        assert (changed.fg_lr, changed.steps, changed.batch) == (0.123, 7, recipe.batch)
        assert changed.model.frame_size == (210, 160)
