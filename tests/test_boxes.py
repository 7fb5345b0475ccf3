"""Boxes as agents get them: tight, on the canvas, each object once."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from objrl.models.boxes import clip_boxes, doubled, repeated, tight_boxes
from objrl.models.space import Space, SpaceConfig
from objrl.models.space_background import Static

TINY = SpaceConfig(
    frame_size=(48, 64),
    architecture="fast",
    z_what=8,
    dense=False,
    background="static",
    rendered=12,
    window=24,
    max_slots=10,
)


def glimpsing_the_middle(config: SpaceConfig) -> Space:
    """A model before a dark background whose every cell looks at x 16 to 48, y 12 to 36."""
    torch.manual_seed(0)
    model = Space(config).eval()
    assert isinstance(model.background, Static)
    model.background.faces.fill_(20)
    where = torch.tensor([0.5, 0.5, 0.0, 0.0])
    net = model.foreground
    net.where = lambda *_: where.expand(1, config.cells, 4)  # type: ignore[method-assign]
    model.config = replace(config, threshold=0.0)
    return model


def box_of(mask: Tensor, where: tuple[float, ...] = (0.5, 0.25, 0.0, 0.0)) -> list[float]:
    box: list[float] = tight_boxes(mask[None, None], torch.tensor(where).view(1, 1, 4))[
        0, 0
    ].tolist()
    return box


def rectangle(x0: int, y0: int, x1: int, y1: int, value: float = 1.0) -> Tensor:
    mask = torch.zeros(16, 16)
    mask[y0:y1, x0:x1] = value
    return mask


@pytest.mark.parametrize(
    "corners", [(4, 2, 12, 14), (0, 0, 16, 16), (0, 5, 1, 6), (15, 15, 16, 16), (3, 0, 9, 16)]
)
def test_a_rectangles_box_is_exact(corners: tuple[int, int, int, int]) -> None:
    x0, y0, x1, y1 = corners
    # The glimpse spans 0.5 x 0.25 of the frame, so a mask pixel is a 32nd by a 64th of it.
    expected = [(x1 - x0) / 32, (y1 - y0) / 64, (x0 + x1 - 16) / 32, (y0 + y1 - 16) / 64]
    assert box_of(rectangle(*corners)) == pytest.approx(expected, abs=1e-6)
    # However faint the object is drawn.
    assert box_of(rectangle(*corners, value=0.2)) == pytest.approx(expected, abs=1e-6)


def test_soft_edges_are_interpolated() -> None:
    mask = rectangle(4, 4, 12, 12)
    mask[4:12, 3] = 0.25  # half of the maximum lies a third of the way from pixel 3 to 4
    width, height, x, y = box_of(mask)
    left = 3 + 1 / 3 + 0.5
    assert width == pytest.approx((12 - left) / 32, abs=1e-6)
    assert x == pytest.approx((12 + left - 16) / 32, abs=1e-6)
    assert (height, y) == pytest.approx((8 / 64, 0), abs=1e-6)
    for fraction in (0.6, 0.8, 1.0):  # an edge that grows moves outwards, and nowhere jumps
        mask[4:12, 3] = fraction
        wider = box_of(mask)[0]
        assert wider > width
        width = wider


@pytest.mark.parametrize("value", [0.0, 1e-12, 1e-3])
def test_a_mask_of_nothing_gives_a_box_all_the_same(value: float) -> None:
    box = box_of(torch.full((16, 16), value))
    assert all(math.isfinite(side) for side in box)
    assert 0 < box[0] <= 0.5 + 1e-6


def test_boxes_end_where_the_frame_does() -> None:
    box = torch.tensor([[0.4, 0.2, 0.9, -1.1], [0.1, 0.1, 1.5, 0.0], [0.5, 0.5, 0.0, 0.0]])
    clipped = clip_boxes(box[None], (50, 100))[0]
    torch.testing.assert_close(clipped[0], torch.tensor([0.25, 0.05, 0.75, -0.95]))
    torch.testing.assert_close(clipped[1], torch.tensor([0.01, 0.1, 0.99, 0.0]))  # a last pixel
    torch.testing.assert_close(clipped[2], box[2])


def test_an_outlines_box_ends_at_its_reach() -> None:
    wide, far = rectangle(0, 4, 16, 12), rectangle(13, 4, 16, 12)
    where = torch.tensor([0.5, 0.25, 0.0, 0.0]).view(1, 1, 4)
    box = tight_boxes(wide[None, None], where, reach=0.6)[0, 0]
    torch.testing.assert_close(box, torch.tensor([0.3, 0.125, 0.0, 0.0]))
    # Of what begins beyond it nothing is left.
    box = tight_boxes(far[None, None], where, reach=0.6)[0, 0]
    torch.testing.assert_close(box, torch.tensor([0.0, 0.125, 0.3, 0.0]))


class TestRepeated:
    def seen(
        self, boxes: list[tuple[float, ...]], presence: list[float], distinct: float = 0.6
    ) -> list[bool]:
        rows = repeated(torch.tensor([boxes]), torch.tensor([presence])[..., None], distinct)
        assert rows.shape == (1, len(boxes), 1)
        found: list[bool] = rows[0, :, 0].tolist()
        return found

    def test_the_likelier_of_two_alike_stays(self) -> None:
        box, elsewhere = (0.2, 0.1, 0.0, 0.0), (0.2, 0.1, 0.5, 0.0)
        assert self.seen([box, elsewhere, box], [0.9, 0.8, 0.7]) == [False, False, True]

    def test_what_is_not_there_repeats_nothing(self) -> None:
        box = (0.2, 0.1, 0.0, 0.0)
        assert not self.seen([box, box], [0.0, 0.0])[1]

    @pytest.mark.parametrize(("shift", "again"), [(0.09, True), (0.11, False)])
    def test_alike_is_an_overlap_above_the_limit(self, shift: float, again: bool) -> None:
        # Boxes 0.4 wide in units of [-1, 1]; shifted by 0.1 they share 0.3 of 0.5, an IoU of 0.6.
        one, other = (0.2, 0.1, 0.0, 0.0), (0.2, 0.1, shift, 0.0)
        assert self.seen([one, other], [0.9, 0.8]) == [False, again]
        one, other = (0.1, 0.2, 0.0, 0.0), (0.1, 0.2, 0.0, -shift)
        assert self.seen([one, other], [0.9, 0.8]) == [False, again]
        assert self.seen([one, other], [0.9, 0.8], distinct=0.5) == [False, True]

    def test_a_thing_within_another_is_one_of_its_own(self) -> None:
        assert self.seen([(0.4, 0.4, 0.0, 0.0), (0.2, 0.2, 0.1, 0.1)], [0.9, 0.8])[1] is False

    def test_boxes_far_apart_both_ways_share_nothing(self) -> None:
        assert not any(self.seen([(0.2, 0.2, -0.5, -0.5), (0.2, 0.2, 0.5, 0.5)], [0.9, 0.8]))

    def test_a_chain_ends_with_its_first(self) -> None:
        """The third is like the second alone, which is a repetition itself."""
        chain: list[tuple[float, ...]] = [(0.2, 0.1, 0.08 * i, 0.0) for i in range(3)]
        assert self.seen(chain, [0.9, 0.8, 0.7]) == [False, True, True]
        assert self.seen([chain[0], chain[2]], [0.9, 0.8]) == [False, False]

    def test_other_frames_do_not_count(self) -> None:
        box = torch.tensor([0.2, 0.1, 0.0, 0.0]).expand(2, 1, 4)
        assert not repeated(box, torch.ones(2, 1, 1), 0.6).any()

    @pytest.mark.parametrize(
        ("lost", "leap", "expected"),
        [
            ([], [0.0, 0.0], [True, False]),
            ([], [0.1, 0.19], [True, False]),
            ([], [0.5, 0.7], [True, False]),
            ([], [0.5, 0.9], [False, True]),
            ([], [0.1, torch.nan], [True, False]),
            ([0], [0.1, 0.9], [True, False]),
            ([1], [0.0, 0.0], [False, True]),
        ],
        ids=["younger", "small leaps", "alike", "leapt", "no number", "lost", "elder lost"],
    )
    def test_of_two_on_one_place_one_is_double(
        self, lost: list[int], leap: list[float], expected: list[bool]
    ) -> None:
        """The first is the younger; the third is elsewhere, the fourth a free row."""
        box = torch.tensor([[0.2, 0.1, x, 0.0] for x in (0.0, 0.01, 0.5, 0.0)])
        gone = torch.zeros(1, 4, dtype=torch.bool)
        gone[0, lost] = True
        far = torch.tensor([[*leap, 0.0, 9.0]])
        found = doubled(box[None], torch.tensor([[5, 2, 1, -1]]), gone, far, 0.85)
        assert found.tolist() == [[*expected, False, False]]

    @given(rows=st.lists(st.tuples(st.booleans(), st.floats(0, 1e6)), min_size=2, max_size=6))
    def test_of_any_number_on_one_place_one_is_seen(self, rows: list[tuple[bool, float]]) -> None:
        lost, leap = (torch.tensor([values]) for values in zip(*rows, strict=True))
        box = torch.tensor([0.2, 0.1, 0.0, 0.0]).expand(1, len(rows), 4)
        ids = torch.arange(len(rows))[None] * 1000
        assert (~doubled(box, ids, lost, leap, 0.85)).sum() == 1

    def test_a_detector_shows_an_object_once(self) -> None:
        """All cells see the same thing; with `distinct` at 1, every row is shown."""
        frames = torch.full((1, 48, 64, 3), 20, dtype=torch.uint8)
        frames[:, 18:30, 24:40] = 255
        for distinct, count in ((0.6, 1), (1.0, 10)):
            model = glimpsing_the_middle(replace(TINY, distinct=distinct))
            with torch.no_grad():
                assert model.detect(frames).mask.sum() == count


class TestTightBoxes:
    """Where the background is known, a box ends where the frame stops differing from it."""

    def see(self, image: Tensor, config: SpaceConfig = TINY) -> list[float]:
        """The most likely slot's box where the canvas's middle is glimpsed, in pixels."""
        model = glimpsing_the_middle(config)
        with torch.no_grad():
            box: list[float] = model.detect(image).boxes(48, 64)[0, 0].tolist()
        return box

    def thing(self, value: int) -> Tensor:
        image = torch.full((1, 48, 64, 3), 20, dtype=torch.uint8)
        image[:, 18:30, 24:40] = value
        return image

    @pytest.mark.parametrize("value", [60, 120, 255])
    def test_it_is_the_things_own(self, value: int) -> None:
        # A glimpse of 16 x 16 has two pixels of the canvas in one.
        assert self.see(self.thing(value)) == pytest.approx([24, 18, 40, 30], abs=1.1)

    def test_what_is_fainter_beside_it_counts_from_the_contrast_on(self) -> None:
        """However bright the thing is; so shadows and half-lit edges are not cut off."""
        image = self.thing(255)
        image[:, 18:30, 20:24] = 20 + 30
        image[:, 18:30, 40:44] = 20 + 15
        assert self.see(image) == pytest.approx([20, 18, 40, 30], abs=1.1)
        fainter = replace(TINY, contrast=10 / 255)
        assert self.see(image, fainter) == pytest.approx([20, 18, 44, 30], abs=1.1)
        stronger = replace(TINY, contrast=50 / 255)
        assert self.see(image, stronger) == pytest.approx([24, 18, 40, 30], abs=1.1)

    def test_beyond_its_reach_it_is_a_neighbours(self) -> None:
        near = self.see(self.thing(255), replace(TINY, reach=0.4))
        assert near == pytest.approx([32 - 0.4 * 16, 24 - 0.4 * 12, 32 + 0.4 * 16, 24 + 0.4 * 12])
        assert self.see(self.thing(255), replace(TINY, reach=0.8)) == self.see(self.thing(255))
