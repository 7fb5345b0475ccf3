"""Region proposals against brute force, and what they learn."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from objrl.nn.proposals import (
    ProposalHead,
    Proposed,
    best_proposals,
    clip,
    lay_anchors,
    move_to,
    moved,
    overlap,
    proposal_terms,
    suppress,
)
from objrl.nn.resnet import Pyramid, ResNet18


def boxes(*shape: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    low = torch.rand(*shape, 2, generator=generator) * 40
    return torch.cat([low, low + 2 + torch.rand(*shape, 2, generator=generator) * 20], -1)


def slow_iou(a: list[float], b: list[float]) -> float:
    width = max(0.0, min(a[2], b[2]) - max(a[0], b[0]))
    height = max(0.0, min(a[3], b[3]) - max(a[1], b[1]))
    area = (a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1])
    return width * height / (area - width * height)


def slow_suppress(rows: list[list[float]], threshold: float) -> list[bool]:
    kept: list[int] = []
    for number, box in enumerate(rows):
        if all(slow_iou(box, rows[other]) <= threshold for other in kept):
            kept.append(number)
    return [number in kept for number in range(len(rows))]


@given(st.integers(0, 10_000), st.integers(1, 30), st.sampled_from([0.1, 0.3, 0.7]))
def test_suppression_equals_the_plain_loop(seed: int, count: int, threshold: float) -> None:
    many = boxes(3, count, seed=seed)
    stays = suppress(many, threshold)
    for image, kept in zip(many.tolist(), stays.tolist(), strict=True):
        assert kept == slow_suppress(image, threshold)


def test_overlap_by_hand() -> None:
    one = torch.tensor([[0.0, 0, 4, 4], [8, 8, 9, 9]])
    other = torch.tensor([[2.0, 0, 6, 4], [0, 0, 0, 0]])
    torch.testing.assert_close(overlap(one, other), torch.tensor([[8 / 24, 0], [0, 0]]))


def test_moving_to_a_box_gets_there() -> None:
    anchor, box = boxes(50, seed=1), boxes(50, seed=2)
    torch.testing.assert_close(moved(anchor, move_to(anchor, box)), box, atol=1e-3, rtol=1e-4)


def test_anchors_lie_round_the_cells_middles() -> None:
    laid = lay_anchors(torch.zeros(1, 1, 2, 4), (20, 40), 8.0, (0.5, 1.0, 2.0))
    assert laid.shape == (24, 4)
    middle, size = (laid[:, :2] + laid[:, 2:]) / 2, laid[:, 2:] - laid[:, :2]
    assert middle[::3].tolist() == [[5 + 10 * x, 5 + 10 * y] for y in range(2) for x in range(4)]
    torch.testing.assert_close(size.prod(1), torch.full((24,), 64.0))
    torch.testing.assert_close((size[:, 1] / size[:, 0])[:3], torch.tensor([0.5, 1.0, 2.0]))


def test_the_papers_number_of_anchors() -> None:
    """1,023 at 64 pixels, 4,092 at 128: three on each place of five maps."""
    backbone = ResNet18(width=8)
    pyramid = Pyramid(backbone.channels[1:], 8)
    head = ProposalHead(8, (16, 32, 64, 128, 256), (0.5, 1, 2))
    for side, count in ((64, 1023), (128, 4092)):
        maps = backbone(torch.zeros(1, 3, side, side))
        assert [m.shape[-1] for m in maps] == [side // 2**n for n in range(1, 6)]
        proposed = head(pyramid(maps[1:]), (side, side))
        assert proposed.anchor.shape == (count, 4)
        assert proposed.logit.shape == (1, count)
        assert proposed.move.shape == (1, count, 4)


def propose(box: Tensor, score: list[float]) -> Proposed:
    logit = torch.logit(torch.tensor([score]))
    return Proposed(logit, torch.zeros(1, len(score), 4), box)


def test_the_best_come_first_and_are_apart() -> None:
    box = torch.tensor([[0.0, 0, 8, 8], [1, 0, 9, 8], [20, 20, 40, 28], [50, 0, 50.5, 9]])
    found, score = best_proposals(propose(box, [0.6, 0.9, 0.7, 0.95]), (30, 30), 4)
    # The last is none: narrower than a pixel; the first overlaps the second.
    torch.testing.assert_close(score, torch.tensor([[0.9, 0.7, 0.0, 0.0]]))
    assert found[0, :2].tolist() == [[1, 0, 9, 8], [20, 20, 30, 28]]


def test_fewer_anchors_than_regions() -> None:
    found, score = best_proposals(propose(torch.tensor([[0.0, 0, 8, 8]]), [0.8]), (30, 30), 3)
    assert found.shape == (1, 3, 4)
    torch.testing.assert_close(score, torch.tensor([[0.8, 0.0, 0.0]]))


def test_the_terms_by_hand() -> None:
    """One anchor holds the box, one holds none, one is neither; the box itself is far by a bit."""
    anchor = torch.tensor([[0.0, 0, 10, 10], [50, 50, 60, 60], [0, 5, 10, 15]])
    true, there = (
        torch.tensor([[[0.0, 0, 10, 11], [50, 50, 60, 60]]]),
        torch.tensor([[True, False]]),
    )
    proposed = Proposed(torch.tensor([[2.0, -1.0, 5.0]]), torch.zeros(1, 3, 4), anchor)
    terms = proposal_terms(proposed, true, there)
    yes, no = -torch.tensor(2.0).sigmoid().log(), -torch.tensor(1.0).sigmoid().log()
    torch.testing.assert_close(terms["proposal"], ((yes + no) / 2)[None])
    far = torch.tensor([0.05, torch.tensor(1.1).log()])  # of the centre's y, and of the height
    beta = 1 / 9
    each = torch.where(far < beta, 0.5 * far**2 / beta, far - beta / 2)
    torch.testing.assert_close(terms["proposal_box"], each.sum()[None] / 2)


def test_without_boxes_all_anchors_hold_nothing() -> None:
    anchor = boxes(40)
    proposed = Proposed(torch.zeros(2, 40), torch.zeros(2, 40, 4), anchor)
    none = torch.zeros(2, 0, 4), torch.zeros(2, 0, dtype=torch.bool)
    empty = torch.zeros(2, 3, 4), torch.zeros(2, 3, dtype=torch.bool)
    for true, there in (none, empty):
        terms = proposal_terms(proposed, true, there)
        torch.testing.assert_close(terms["proposal"], torch.tensor([0.5, 0.5]).log().neg())
        assert not terms["proposal_box"].any()


def test_the_likeliest_anchor_of_a_box_holds_it_however_badly() -> None:
    anchor = torch.tensor([[0.0, 0, 10, 10], [40, 40, 44, 44]])
    true, there = torch.tensor([[[0.0, 0, 4, 10]]]), torch.ones(1, 1, dtype=torch.bool)
    sure = Proposed(torch.tensor([[20.0, -20.0]]), torch.zeros(1, 2, 4), anchor)
    assert proposal_terms(sure, true, there)["proposal"].item() == pytest.approx(0, abs=1e-6)


def test_samples_are_half_positive_at_most() -> None:
    anchor = boxes(1).expand(100, -1)
    far = anchor + 500
    proposed = Proposed(
        torch.cat([torch.full((1, 100), 3.0), torch.full((1, 100), -1.0)], 1),
        torch.zeros(1, 200, 4),
        torch.cat([anchor, far]),
    )
    true, there = anchor[:1][None], torch.ones(1, 1, dtype=torch.bool)
    terms = proposal_terms(proposed, true, there, samples=20)
    yes, no = (-torch.tensor(v).sigmoid().log() for v in (3.0, 1.0))
    torch.testing.assert_close(terms["proposal"], ((yes + no) / 2)[None])


def test_it_learns_where_a_square_is() -> None:
    torch.manual_seed(0)
    backbone, canvas = ResNet18(width=8), (32, 32)
    pyramid = Pyramid(backbone.channels[1:], 16)
    head = ProposalHead(16, (8, 16, 24, 32, 40), (0.5, 1, 2))
    modules = torch.nn.ModuleList([backbone, pyramid, head])
    optimizer = torch.optim.Adam(modules.parameters(), lr=5e-3)
    image, true = torch.zeros(8, 3, 32, 32), torch.zeros(8, 1, 4)
    for b in range(8):
        x, y = 2 * b, (5 * b) % 20
        image[b, :, y : y + 9, x : x + 9] = 1
        true[b, 0] = torch.tensor([x, y, x + 9, y + 9])
    there = torch.ones(8, 1, dtype=torch.bool)
    for step in range(60):
        proposed = head(pyramid(backbone(image)[1:]), canvas)
        terms = proposal_terms(proposed, true, there, samples=16)
        optimizer.zero_grad()
        (terms["proposal"] + terms["proposal_box"]).mean().backward()  # type: ignore[no-untyped-call]
        if not step:
            for name, parameter in modules.named_parameters():
                assert parameter.grad is not None, name
        optimizer.step()
    found, score = best_proposals(head(pyramid(backbone(image)[1:]), canvas), canvas, 2)
    fit = overlap(found[:, :1], true)[:, 0, 0]
    assert (fit > 0.6).float().mean() >= 0.75
    assert (score[:, 0] > 0.5).float().mean() >= 0.75


def test_clipping() -> None:
    assert clip(torch.tensor([[-3.0, 2, 50, 9]]), (8, 20)).tolist() == [[0, 2, 20, 8]]
