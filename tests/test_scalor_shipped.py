"""How shipped SCALORs follow real frames that are changed by hand."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

import objrl
from objrl.models.scalor import Scalor
from objrl.models.scalor_state import ScalorState
from objrl.models.space_background import Static
from tests.helpers import firsts


@pytest.fixture(scope="module")
def invaders() -> tuple[Scalor, Tensor]:
    """Shipped weights, and (1, 210, 160, 3) uint8 of their game."""
    model = objrl.load("scalor-space_invaders", device="cpu")
    assert isinstance(model, Scalor)
    with np.load(Path(__file__).parent / "data" / "space_invaders_sample.npz") as sample:
        return model, torch.from_numpy(sample["frames"][:1])


def settled(model: Scalor, frame: Tensor) -> tuple[Tensor, ScalorState]:
    """See a still frame six times; return the ids (1, K, 1) and the state."""
    state, first = model.initial_state(1), firsts(1, 0)
    for _ in range(6):
        slots, state = model.step(frame, state, first)
        first = firsts(1)
    assert slots.mask.sum() > 40
    return slots.track_id, state


def empty(model: Scalor) -> Tensor:
    """(1, H, W, 3) uint8, the background with nobody before it."""
    assert isinstance(model.background, Static)
    return model.background.faces[:1].permute(0, 2, 3, 1)


class TestShipped:
    @pytest.mark.parametrize("count", [30, pytest.param(10_000, marks=pytest.mark.slow)])
    def test_still_objects_keep_their_ids(
        self, invaders: tuple[Scalor, Tensor], count: int
    ) -> None:
        model, frame = invaders
        ids, state = settled(model, frame)
        for t in range(count):
            slots, state = model.step(frame, state, firsts(1))
            assert torch.equal(slots.track_id, ids), t

    @pytest.mark.parametrize("too_long", [False, True])
    def test_who_vanishes_is_waited_for_but_not_for_long(
        self, invaders: tuple[Scalor, Tensor], too_long: bool
    ) -> None:
        model, frame = invaders
        ids, state = settled(model, frame)
        for _ in range(model.config.patience + too_long):
            slots, state = model.step(empty(model), state, firsts(1))
            assert not slots.mask.any()
        assert state.alive.any() == (not too_long)
        slots, state = model.step(frame, state, firsts(1))
        if too_long:
            assert not torch.isin(slots.track_id[slots.mask], ids).any()
        else:
            assert torch.equal(slots.track_id, ids)

    def test_who_comes_back_late_is_found_anew(self, invaders: tuple[Scalor, Tensor]) -> None:
        model, frame = invaders
        _, state = settled(model, frame)
        for shown in [empty(model)] * (model.config.patience + 1) + [frame] * 4:
            slots, state = model.step(shown, state, firsts(1))
        assert slots.mask.sum() > 40
