"""The contract of perceivers, on the scene mixtures and SPAIR; untrained, so they see nonsense."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import objrl
from objrl.perceiver import FramePerceiver, Perceiver, model_of
from objrl.slots import NO_TRACK
from objrl.weights.registry import save_weights
from tests import test_econ, test_iodine, test_monet, test_rmonet, test_spair
from tests.test_perceiver import FLOATS, Operations, film, first


def spread(model: Any) -> Any:
    """Let the slots of an untrained model differ, so that several have pixels."""
    torch.manual_seed(3)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            # Where a network draws: its logits, of masks above all.
            if "weight" in name and parameter.shape[0] <= 4:
                parameter.mul_(8)
    return model


def make_rmonet() -> Any:
    return spread(test_rmonet.build(sure=0.0))


def make_spair() -> Any:
    model = test_spair.build()
    bias = model.foreground.heads.bias
    assert bias is not None
    with torch.no_grad():
        bias[0] += 0.5
        bias[3:5] = -2
    return model


MAKE: dict[str, Callable[[], Any]] = {
    "monet": lambda: spread(test_monet.build()),
    "rmonet": make_rmonet,
    "econ": lambda: spread(test_econ.build()),
    "spair": make_spair,
    "iodine": lambda: spread(test_iodine.build(replace(test_iodine.SMALL, slots=5))),
}
every = pytest.mark.parametrize("name", MAKE)


def perceiver(name: str) -> Perceiver:
    model: Any = MAKE[name]().eval()
    made: Perceiver = model if isinstance(model, Perceiver) else FramePerceiver(model)
    return made


def frames(envs: int = 4) -> Tensor:
    return film(envs, 1)[0]


@every
def test_empty_rows_are_zero_in_every_field(name: str) -> None:
    seen = perceiver(name)
    state, some = seen.initial_state(4), False
    for frame in film(4, 3):
        slots, state = seen.step(frame, state, first(4) & False)
        empty = ~slots.mask
        some |= bool(slots.mask.any())
        assert empty.any()
        for field in FLOATS:
            assert (getattr(slots, field)[empty] == 0).all(), field
        assert (slots.track_id[empty] == NO_TRACK).all()
        assert (slots.track_id[slots.mask] >= 0).all()
    assert some


@every
def test_encode_is_a_step_from_a_fresh_state(name: str) -> None:
    seen = perceiver(name)
    encoded = seen.encode(frames())
    stepped, _ = seen.step(frames(), seen.initial_state(4), first(4))
    for field in (*FLOATS, "track_id"):
        assert torch.equal(getattr(encoded, field), getattr(stepped, field)), field


@every
def test_environments_do_not_touch_one_another(name: str) -> None:
    seen = perceiver(name)
    together, alone = seen.initial_state(4), seen.initial_state(1)
    for time, frame in enumerate(film(4, 3)):
        begins = torch.arange(4) == time
        slots, together = seen.step(frame, together, begins)
        one, alone = seen.step(frame[2:3], alone, begins[2:3])
        for field in FLOATS:
            torch.testing.assert_close(
                getattr(one, field), getattr(slots[2], field), rtol=1e-3, atol=1e-4
            )


@every
def test_segment_shares_the_frame_out_in_the_order_of_encode(name: str) -> None:
    seen = perceiver(name)
    slots, masks = seen.encode(frames()), seen.segment(frames())
    rows = seen.max_slots
    assert masks.shape == (4, rows + 1, 80, 64)
    torch.testing.assert_close(masks.sum(1), torch.ones(4, 80, 64))
    assert masks.min() >= -1e-5
    mass = masks[:, :rows].flatten(2).sum(2)
    assert (mass[~slots.mask] == 0).all()
    seen_at_all = (mass[slots.mask] > 0).float().mean()
    # Of SPAIR's objects one may hide another.
    assert seen_at_all > 0.8 if name == "spair" else seen_at_all == 1


@every
def test_training_mode_changes_nothing_of_what_an_agent_gets(name: str) -> None:
    seen: Any = perceiver(name)
    calm = seen.encode(frames()), seen.segment(frames())
    seen.train()
    restless = seen.encode(frames()), seen.segment(frames())
    for field in (*FLOATS, "track_id"):
        assert torch.equal(getattr(calm[0], field), getattr(restless[0], field)), field
    assert torch.equal(calm[1], restless[1])


@pytest.mark.parametrize("name", [name for name in MAKE if name != "iodine"])
def test_present_rows_come_first_by_falling_presence(name: str) -> None:
    detector: Any = model_of(perceiver(name))
    presence = detector.detect(frames()).presence[..., 0]
    assert (presence[:, 1:] <= presence[:, :-1]).all()
    assert presence.any()


@every
@pytest.mark.parametrize("size", [(210, 160), (33, 47)])
def test_frames_of_any_size_are_seen(name: str, size: tuple[int, int]) -> None:
    seen = perceiver(name)
    some = torch.randint(0, 255, (2, *size, 3), dtype=torch.uint8)
    assert seen.encode(some).presence.shape == (2, seen.max_slots, 1)
    assert seen.segment(some).shape == (2, seen.max_slots + 1, *size)


@every
def test_a_step_neither_loops_over_environments_nor_waits_for_the_host(name: str) -> None:
    seen, counts = perceiver(name), []
    for envs in (1, 6):
        frame, state = frames(envs), seen.initial_state(envs)
        begins = first(envs)
        with Operations() as operations:
            seen.step(frame, state, begins)
        assert not operations.host
        counts.append(operations.count)
    assert counts[1] - counts[0] < 5


@pytest.mark.parametrize("name", ["monet", "rmonet", "econ", "iodine"])
def test_max_slots_may_be_changed_when_weights_are_loaded(name: str, tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    save_weights(path, MAKE[name](), model_name=name, data={}, training={}, metrics={})
    seen = objrl.load(path, device="cpu", max_slots=7)
    assert seen.max_slots == 7
    assert seen.encode(frames()).presence.shape == (4, 7, 1)
    with pytest.raises(ValueError, match="slots: expected 2 or more"):
        objrl.load(path, device="cpu", max_slots=1)


def test_iodine_has_velocities_of_what_moves() -> None:
    seen = perceiver("iodine")
    state = seen.initial_state(3)
    for time, frame in enumerate(film(3, 4)):
        before = state
        slots, state = seen.step(frame, state, torch.full((3,), time == 0))
        if time == 0:
            assert (slots.velocity == 0).all()
        if time == 1:
            both = slots.mask & (before.track_id[..., 0] == slots.track_id[..., 0])
            assert both.any()
            moved = slots.position - before.position
            torch.testing.assert_close(slots.velocity[both], moved[both])
    assert slots.velocity.any()


BAD: list[tuple[Callable[[], Any], str]] = [
    (partial(replace, test_iodine.SMALL, decoder=()), "decoder: expected a convolution"),
    (partial(replace, test_iodine.SMALL, kernel=4), "kernel: expected an odd side"),
    (partial(replace, test_iodine.SMALL, likelihood="x"), "likelihood: expected mixture or blend"),
    (partial(replace, test_iodine.SMALL, slots=0), "slots: expected 2 or more"),
    (partial(replace, test_rmonet.SMALL, anchors=(16.0,)), "anchors: expected 5 sizes"),
    (partial(replace, test_rmonet.SMALL, head="foo"), "head: expected one of unet, lite, align"),
    (lambda: test_rmonet.build(width=12), "width: expected a multiple of 8"),
    (partial(replace, test_econ.SMALL, blocks=6), "at most 4 blocks"),
    (partial(replace, test_monet.SMALL, slots=1), "slots: expected 2 or more"),
]


@pytest.mark.parametrize(("make", "words"), BAD)
def test_settings_that_cannot_be_are_refused(make: Callable[[], Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        make()
