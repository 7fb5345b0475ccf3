"""What the frames tell a recipe: sizes, background and counts, right for things of known size."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import numpy.typing as npt
import pytest

from objrl.pretrain.configure import Findings, configure, look
from objrl.pretrain.presets import preset
from tests.squares import SIDE, make_frames


def findings(width: float, height: float, *, largest: float = 20, count: float = 10) -> Findings:
    ground = np.zeros((210, 160, 3), np.uint8)
    return Findings(ground, width, height, spread=0.1, largest=largest, count=count)


class TestLook:
    def test_finds_what_was_drawn(self) -> None:
        frames = make_frames(200)
        found = look(frames)
        # Now and then two squares touch and count as one.
        assert SIDE <= found.width < SIDE + 1
        assert SIDE <= found.height < SIDE + 1
        assert SIDE <= found.largest <= 3 * SIDE
        assert found.count == 3
        ground = make_frames(1)[0]
        ground[:-8] = (20, 20, 60)
        assert np.array_equal(found.background, ground)

    def test_describes_itself_in_numbers_that_json_holds(self) -> None:
        told = look(make_frames(50)).describe()
        assert {"width", "height", "largest", "count"} <= told.keys()
        assert all(type(value) is float for value in told.values())

    @pytest.mark.parametrize(
        "frames",
        [np.full((30, 64, 64, 3), 7, np.uint8), np.repeat(make_frames(1), 30, axis=0)],
        ids=["one colour", "still"],
    )
    def test_frames_in_which_nothing_moves(self, frames: npt.NDArray[np.uint8]) -> None:
        with pytest.raises(ValueError, match=r"expected things that move .* in 30 frames"):
            look(frames)


class TestConfigure:
    @pytest.mark.parametrize(("side", "cell"), [(4, 8), (12, 8), (24, 16), (60, 32)])
    def test_cells_are_about_as_large_as_objects(self, side: float, cell: int) -> None:
        assert configure(preset("space-fast"), findings(side, side)).model.cell == cell

    @pytest.mark.parametrize("count", [1, 40, 100])
    def test_rows_suffice_for_the_fullest_frame(self, count: float) -> None:
        model = configure(preset("space-fast"), findings(8, 8, count=count)).model
        assert model.rendered >= count
        assert model.max_slots >= count

    @pytest.mark.parametrize("largest", [4, 18, 40, 60])
    def test_windows_hold_the_largest(self, largest: float) -> None:
        recipe = preset("space-fast")
        model = configure(recipe, findings(8, 8, largest=largest)).model
        assert model.window >= recipe.margin * largest
        assert model.window <= 96

    def test_the_prior_of_a_box_is_the_typical_object_with_its_margin(self) -> None:
        recipe = configure(preset("space-fast"), findings(16, 21))
        width, height = (1 / (1 + np.exp(-mean)) for mean in recipe.priors(0).scale_mean)
        assert width == pytest.approx(recipe.margin * 16 / 160)
        assert height == pytest.approx(recipe.margin * 21 / 210)

    def test_what_the_frames_do_not_tell_stays(self) -> None:
        recipe = replace(preset("space-fast"), fg_lr=0.123, steps=7)
        changed = configure(recipe, findings(8, 8))
        assert (changed.fg_lr, changed.steps, changed.batch) == (0.123, 7, recipe.batch)
        assert changed.model.frame_size == (210, 160)
