"""How a run goes: the four collapses, what mends them, and when there is no more to gain."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from objrl.perceiver import FramePerceiver
from objrl.pretrain.health import Course, Health, Trouble, has_converged, look_at, mended
from objrl.pretrain.presets import SPACE
from objrl.schedule import Linear
from objrl.slots import Slots

SIDE = 80
THINGS = np.array([[10, 10, 20, 20], [22, 10, 32, 20], [50, 50, 60, 60]], np.float32)


class Seeing(torch.nn.Module):
    """Sees the same boxes in every frame."""

    what_size, max_slots = 1, 16

    def __init__(self, boxes: list[tuple[float, float, float, float]]) -> None:
        super().__init__()
        self.place = torch.nn.Parameter(torch.zeros(0))
        self.boxes = torch.tensor(boxes).reshape(-1, 4)

    def detect(self, frames: Tensor) -> Slots:
        slots = Slots.empty(len(frames), self.max_slots, self.what_size)
        low, high = self.boxes[:, :2] / SIDE, self.boxes[:, 2:] / SIDE
        slots.position[:, : len(self.boxes)] = low + high - 1
        slots.scale[:, : len(self.boxes)] = high - low
        slots.presence[:, : len(self.boxes)] = 1
        return slots


def seen(boxes: list[tuple[float, float, float, float]]) -> Health:
    frames = np.zeros((20, SIDE, SIDE, 3), np.uint8)
    perceiver = FramePerceiver(Seeing(boxes))
    return look_at(perceiver, frames, [THINGS] * 20)


RIGHT = [tuple(box) for box in THINGS.tolist()]


@pytest.mark.parametrize(
    ("boxes", "trouble"),
    [
        (RIGHT, None),
        (RIGHT[:2], None),
        ([], "nothing"),
        ([(5, 5, 40, 25)], "swallowed"),
        ([(10, 10, 20, 15), (10, 15, 20, 20), (22, 10, 32, 15), (22, 15, 32, 20)], "split"),
        ([(1 + 4 * i, 70, 4 + 4 * i, 78) for i in range(15)], "everything"),
    ],
    ids=["right", "one missed", "nothing", "swallowed", "split", "everything"],
)
def test_each_collapse_is_told_by_its_name(
    boxes: list[tuple[float, float, float, float]], trouble: Trouble | None
) -> None:
    assert seen(boxes).trouble == trouble


def test_all_slots_full_is_everything_however_many_things_there_are() -> None:
    assert Health(found=64, rows=64, expected=41, split=0.4).trouble == "everything"
    assert Health(found=60, rows=64, expected=55).trouble is None


def test_agreement_is_f1_with_the_pieces() -> None:
    assert seen(RIGHT).agreement == 1
    assert seen(RIGHT[:2]).agreement == pytest.approx(2 * 2 / (2 + 3))
    assert seen([]).agreement == 0
    assert seen(RIGHT).describe()["expected"] == 3


@pytest.mark.parametrize(("count", "trouble"), [(0, "nothing"), (5, None), (16, "everything")])
def test_without_a_baseline_only_counts_tell(count: int, trouble: Trouble | None) -> None:
    boxes = [(4.0 * i, 0.0, 4.0 * i + 3, 9.0) for i in range(count)]
    frames = np.zeros((3, SIDE, SIDE, 3), np.uint8)
    health = look_at(FramePerceiver(Seeing(boxes)), frames, None)
    assert health.trouble == trouble
    assert health.describe() == {"found": float(count)}


class TestConvergence:
    def test_rising_agreement_has_not_converged(self) -> None:
        assert not has_converged([0.1 * i for i in range(10)])

    def test_too_few_looks_tell_nothing(self) -> None:
        assert not has_converged([0.9] * 6)

    def test_what_gets_worse_has_not_converged(self) -> None:
        assert not has_converged([0.95, *[0.5] * 6])

    def test_no_gain_over_six_looks_is_convergence(self) -> None:
        assert has_converged([0.3, *[0.9] * 7])
        assert has_converged([0.3, 0.9, 0.89, 0.901, 0.88, 0.9, 0.9, 0.9])
        assert not has_converged([0.3, 0.9, 0.89, 0.91, 0.88, 0.9, 0.9, 0.9])


GOOD = Health(found=3, rows=16, expected=3, agreement=0.9)
BAD = Health(found=0, rows=16, expected=3, agreement=0.0)


class TestCourse:
    def test_a_collapse_seen_twice_calls_for_another_attempt(self) -> None:
        course = Course(asked=1000, planned=1000)
        assert course.apart == 50
        assert course.see(BAD, 150, 1000, may_change=True) == "go on"  # the first fifth
        assert course.see(GOOD, 200, 1000, may_change=True) == "go on"
        assert course.see(BAD, 250, 1000, may_change=True) == "warn"
        assert course.see(BAD, 300, 1000, may_change=True) == "begin again"

    def test_but_not_when_time_or_attempts_have_run_out(self) -> None:
        late = Course(asked=1000, planned=1000, trouble="nothing")
        assert late.see(BAD, 700, 1000, may_change=True) == "go on"
        third = Course(asked=1000, planned=1000, trouble="nothing", mended=["nothing", "split"])
        assert third.see(BAD, 300, 1000, may_change=True) == "go on"

    def test_a_run_that_has_converged_ends_once_and_early(self) -> None:
        course = Course(asked=1000, planned=1000)
        said = [course.see(GOOD, 50 * i, 1000, may_change=True) for i in range(1, 10)]
        assert said == ["go on"] * 6 + ["end"] + ["go on"] * 2
        assert course.converged == 350
        assert 350 < course.end_of(350) < 1000

    def test_the_papers_recipes_are_neither_ended_nor_mended(self) -> None:
        course = Course(asked=1000, planned=1000, trouble="nothing")
        assert course.see(BAD, 300, 1000, may_change=False) == "go on"

    def test_schedules_in_steps_run_to_their_end(self) -> None:
        course = Course(asked=1000, planned=1000)
        said = {course.see(GOOD, 50 * i, 1000, may_change=False) for i in range(1, 15)}
        assert said == {"go on"}

    def test_near_its_end_a_run_goes_on_to_it(self) -> None:
        course = Course(asked=1000, planned=1000, agreements=[0.9] * 20)
        assert course.see(GOOD, 950, 1000, may_change=True) == "go on"


class TestMending:
    def test_every_collapse_has_a_change_and_says_it(self) -> None:
        recipe = SPACE["space-fast"]
        for trouble in ("nothing", "everything", "swallowed", "split"):
            changed, said = mended(recipe, trouble)
            assert changed != recipe
            assert said

    def test_splitting_coarsens_the_grid_and_swallowing_refines_it(self) -> None:
        recipe = SPACE["space-fast"]
        coarser, _ = mended(recipe, "split")
        assert coarser.model.cell == 2 * recipe.model.cell
        finer, _ = mended(coarser, "swallowed")
        assert finer.model.cell == recipe.model.cell

    def test_at_the_end_of_the_grids_the_size_prior_moves(self) -> None:
        recipe = replace(SPACE["space-fast"], scale_mean=(Linear(-2.0, -2.5, 0, 9), Linear(-1.0)))
        smaller, _ = mended(recipe, "swallowed")  # cells of 8 are the finest
        assert smaller.model.cell == recipe.model.cell == 8
        assert smaller.scale_mean[0] == Linear(-2.5, -3.0, 0, 9)
        assert smaller.scale_mean[1] == Linear(-1.5)
        coarse = replace(recipe, model=replace(recipe.model, cell=32))
        larger, _ = mended(coarse, "split")
        assert larger.scale_mean[1] == Linear(-0.5)

    def test_nothing_and_everything_move_the_presence_prior(self) -> None:
        recipe = replace(SPACE["space-paper-space_invaders"], presence=Linear(0.1, 1e-3, 0, 100))
        held, _ = mended(recipe, "nothing")
        assert held.presence(1000) == 0.1
        assert held.fixed_alpha is None
        fewer, _ = mended(recipe, "everything")
        assert fewer.presence(0) == pytest.approx(0.01)
        assert fewer.presence(100) == pytest.approx(1e-4)
