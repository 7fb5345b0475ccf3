"""R-MONet: regions, heads, masks, and the boxes that masks give."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from objrl.models.monet import MonetConfig, monet_terms
from objrl.models.rmonet import Rmonet, RmonetConfig, RmonetOutput, _AlignHead, region_mask
from objrl.nn.proposals import proposal_terms
from objrl.perceiver import FramePerceiver
from objrl.pretrain.pseudo_boxes import PseudoBoxes, pseudo_boxes, thresholds

VAE = MonetConfig(
    frame_size=(32, 36), slots=3, z_what=4, attention=(8,), encoder=(8, 8), decoder=8, hidden=16
)
SMALL = RmonetConfig(vae=VAE, width=8, depth=8, anchors=(8, 12, 16, 24, 32))


def build(**changes: Any) -> Rmonet:
    torch.manual_seed(0)
    return Rmonet(replace(SMALL, **changes))


def image(count: int = 2) -> Tensor:
    made = torch.zeros(count, 3, 32, 36)
    for b in range(count):
        made[b, 0, 4 + b : 14 + b, 4:14] = 1
        made[b, 1, 16:26, 20 + b : 30 + b] = 1
    return made


# ---- regions ---------------------------------------------------------------------------------


def test_a_region_is_one_inside_and_minus_one_around() -> None:
    box = torch.tensor([[[4.0, 8.0, 14.0, 18.0]]])
    mask = region_mask(box, (32, 36), (32, 36), 0.3)[0, 0, 0]
    assert (mask[8:18, 4:14] == 1).all()
    ring = torch.zeros(32, 36, dtype=torch.bool)
    ring[5:21, 1:17] = True  # three pixels more at each side
    ring[8:18, 4:14] = False
    assert (mask[ring] == -1).all()
    rest = ~ring
    rest[8:18, 4:14] = False
    assert (mask[rest] == 0).all()


def test_a_small_box_is_seen_on_a_small_map() -> None:
    box = torch.tensor([[[9.0, 9.0, 11.0, 10.0]]])  # between the middles of cells of 8
    mask = region_mask(box, (4, 4), (32, 32), 0.3)
    assert (mask == 1).sum() >= 1


@pytest.mark.parametrize("head", ["unet", "lite", "align"])
def test_masks_stay_in_their_regions_and_sum_to_one(head: str) -> None:
    model = build(head=head)
    out: RmonetOutput = model(image())
    mask = out.monet.scene.mask
    torch.testing.assert_close(mask.sum(1), torch.ones(2, 1, 32, 36))
    region = region_mask(out.box, (32, 36), (32, 36), 0.3)
    assert mask[:, :-1][region == 0].max() < 1e-6
    assert (mask[:, :-1] > 0.05).any()


def test_without_a_sure_proposal_all_is_background() -> None:
    model = build(sure=1.1).eval()
    scene = model.explain(image())
    torch.testing.assert_close(scene.mask[:, -1], torch.ones(2, 1, 32, 36))
    assert not FramePerceiver(model).encode((image() * 255).byte().permute(0, 2, 3, 1)).mask.any()


def test_aligned_crops_lie_where_their_boxes_are() -> None:
    """With a head that only passes on, what comes back is the map within the boxes."""
    head = _AlignHead(replace(SMALL, head="align"))
    head.layers = torch.nn.Sequential()
    y, x = torch.meshgrid(torch.arange(32.0) + 0.5, torch.arange(36.0) + 0.5, indexing="ij")
    box = torch.tensor([[[4.0, 6.0, 24.0, 20.0]]])
    for plane in (x, y):
        logit = head(image(1), [], [torch.zeros(0), plane[None, None]], box)[0, 0, 0]
        torch.testing.assert_close(logit[8:18, 6:22], plane[8:18, 6:22], atol=0.2, rtol=0)
        assert (logit[:5] < -10).all()
        assert (logit[:, 25:] < -10).all()


@pytest.mark.parametrize("head", ["unet", "lite", "align"])
def test_gradients_reach_every_parameter(head: str) -> None:
    model = build(head=head)
    out = model(image())
    terms = monet_terms(out.monet, image(), 0.2, 0.2, behind=-1)
    true = torch.tensor([[[4.0, 4, 14, 14]]] * 2)
    terms |= proposal_terms(out.proposed, true, torch.ones(2, 1, dtype=torch.bool))
    torch.stack([term.mean() for term in terms.values()]).sum().backward()  # type: ignore[no-untyped-call]
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().sum() > 0, name


def test_it_learns() -> None:
    model = build()
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)
    losses = []
    for _ in range(40):
        out = model(image(4))
        terms = monet_terms(out.monet, image(4), 0.3, 0.3, behind=-1)
        loss = torch.stack([term.mean() for term in terms.values()]).sum()
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        losses.append(loss.item())
    assert sum(losses[-5:]) / 5 < sum(losses[:5]) / 5 - 100


# ---- boxes that masks give -------------------------------------------------------------------


def test_each_piece_of_a_mask_gets_a_box() -> None:
    mask = torch.zeros(2, 2, 24, 30)
    mask[0, 0, 2:8, 3:10] = 0.9
    mask[0, 0, 12:20, 15:25] = 0.8
    mask[0, 1, 2:4, 20:22] = 0.9  # too small
    mask[1, 1, 10:13, 2:28] = 0.9  # too slim
    box, there = pseudo_boxes(mask, PseudoBoxes())
    assert there.tolist() == [[True, True], [False, False]]
    assert box[0].tolist() == [[3, 2, 10, 8], [15, 12, 25, 20]]


def test_what_two_heights_show_alike_is_one_box() -> None:
    """A piece above a lower ledge: two heights see other boxes, but of most, one box."""
    mask = torch.zeros(1, 1, 24, 30)
    mask[0, 0, 4:16, 4:16] = 0.5
    mask[0, 0, 4:16, 4:15] = 1.0
    _, there = pseudo_boxes(mask, PseudoBoxes())
    assert there.sum() == 1
    mask[0, 0, 4:16, 4:16] = 0.5
    mask[0, 0, 4:9, 4:9] = 1.0
    _, there = pseudo_boxes(mask, PseudoBoxes())
    assert there.sum() == 2


@pytest.mark.parametrize(
    "mask",
    [
        np.zeros((8, 8)),
        np.ones((8, 8)),
        np.eye(8),
        np.full((8, 8), 0.3),
        np.linspace(0, 1, 64).reshape(8, 8),
    ],
)
@pytest.mark.parametrize("classes", [2, 3, 5])
def test_flat_masks_have_no_thresholds_and_no_errors(
    mask: np.ndarray[Any, np.dtype[np.float64]], classes: int
) -> None:
    heights = thresholds(mask, PseudoBoxes(classes=classes))
    assert len(heights) < classes
    if len(np.unique(mask)) == 1:
        assert not heights
    else:
        assert heights
    assert all(mask.min() <= height < mask.max() for height in heights)
