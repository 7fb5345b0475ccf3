"""The contract: what every perceiver gives an agent, on SPACE and on the baseline."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import fields, replace
from functools import partial
from typing import Any, Literal

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from objrl.models import space
from objrl.models.median import Median, MedianConfig
from objrl.models.scalor import Scalor
from objrl.models.space import Space, SpaceConfig
from objrl.models.space_background import Static
from objrl.perceiver import FramePerceiver, Perceiver
from objrl.slots import NO_TRACK, Slots
from objrl.tracking import TrackerState
from tests.helpers import BACKGROUNDS, SMALL_SCALOR, make_scalor

HEIGHT, WIDTH, ROWS = 80, 64, 12
FLOATS = ("position", "velocity", "scale", "depth", "what", "presence")


def film(envs: int, length: int, seed: int = 0, background: int = 20) -> Tensor:
    """(T, B, H, W, 3) uint8: squares that move over a plain background."""
    generator = np.random.default_rng(seed)
    frames = np.full((length, envs, HEIGHT, WIDTH, 3), background, np.uint8)
    for b in range(envs):
        for colour in generator.integers(80, 255, (5, 3)):
            x, y, dx, dy = generator.uniform((4, 4, -2, -2), (WIDTH - 12, HEIGHT - 12, 2, 2))
            for t in range(length):
                left = int(np.clip(x + dx * t, 0, WIDTH - 8))
                top = int(np.clip(y + dy * t, 0, HEIGHT - 8))
                frames[t, b, top : top + 7, left : left + 6] = colour
    return torch.from_numpy(frames)


def make_space(max_slots: int = ROWS) -> FramePerceiver:
    """A SPACE that was taught nothing, but sees different things in different places."""
    torch.manual_seed(1)
    model = Space(
        SpaceConfig(
            frame_size=(HEIGHT, WIDTH),
            architecture="fast",
            z_what=8,
            dense=False,
            background="static",
            max_slots=max_slots,
        )
    )
    assert isinstance(model.background, Static)
    model.background.faces.fill_(20)
    bias = model.foreground.heads.bias
    assert bias is not None
    with torch.no_grad():
        bias[0] -= 1.4  # some ten of the 80 cells
        bias[3:5] = -2  # boxes of an eighth of the frame
    return FramePerceiver(model)


def make_median(max_slots: int = ROWS) -> FramePerceiver:
    model = Median(MedianConfig(frame_size=(HEIGHT, WIDTH), max_slots=max_slots))
    model.faces.fill_(20)
    return FramePerceiver(model)


def make_known_scalor(background: Literal["none", "decoder", "static"]) -> Scalor:
    """One with every rule on."""
    return make_scalor(replace(SMALL_SCALOR, background=background, known=0.8, doubled=0.6))


Make = Callable[..., FramePerceiver]
both = pytest.mark.parametrize("make", [make_space, make_median], ids=["space", "median"])


def first(envs: int) -> Tensor:
    return torch.ones(envs, dtype=torch.bool)


@both
def test_shapes_dtypes_and_ranges(make: Make) -> None:
    perceiver = make()
    assert isinstance(perceiver, Perceiver)
    slots = perceiver.encode(film(8, 1)[0])
    widths = {"position": 2, "velocity": 2, "scale": 2, "depth": 1, "presence": 1}
    widths |= {"what": perceiver.what_size}
    for name, width in widths.items():
        field = getattr(slots, name)
        assert field.shape == (8, ROWS, width)
        assert field.dtype == torch.float32
        assert field.isfinite().all()
    assert slots.track_id.shape == (8, ROWS, 1)
    assert slots.track_id.dtype == torch.int64
    here = slots.mask
    assert here.any()
    assert not here.all()
    assert (slots.position.abs() <= 1).all()
    assert (slots.velocity == 0).all()  # one frame tells no motion
    assert ((slots.scale[here] > 0) & (slots.scale[here] <= 1)).all()
    assert ((slots.presence >= 0) & (slots.presence <= 1)).all()
    assert (slots.track_id[here] >= 0).all()
    # Boxes lie within the frame, so clipping them takes nothing away.
    boxes = slots.boxes(1, 1)
    sides = boxes[..., 2:] - boxes[..., :2]
    torch.testing.assert_close(sides[here], slots.scale[here])


@both
def test_empty_rows_are_zero_in_every_field(make: Make) -> None:
    perceiver = make()
    frames = film(6, 4)
    state = perceiver.initial_state(6)
    for frame in frames:
        slots, state = perceiver.step(frame, state, first(6) & False)
        empty = ~slots.mask
        assert empty.any()
        for name in FLOATS:
            assert (getattr(slots, name)[empty] == 0).all()
        assert (slots.track_id[empty] == NO_TRACK).all()
        assert (slots.boxes(HEIGHT, WIDTH)[empty] == 0).all()


@both
def test_environments_do_not_touch_one_another(make: Make) -> None:
    perceiver, frames = make(), film(8, 6)
    together = perceiver.initial_state(8)
    alone = [perceiver.initial_state(1) for _ in range(8)]
    for t, frame in enumerate(frames):
        begins = torch.arange(8) == t
        slots, together = perceiver.step(frame, together, begins)
        for b in range(8):
            one, alone[b] = perceiver.step(frame[b : b + 1], alone[b], begins[b : b + 1])
            assert torch.equal(one.track_id, slots[b].track_id)
            for name in FLOATS:
                torch.testing.assert_close(
                    getattr(one, name), getattr(slots[b], name), rtol=1e-4, atol=1e-5
                )


@both
def test_a_reset_leaves_the_others_bit_for_bit(make: Make) -> None:
    perceiver, frames = make(), film(4, 6)
    calm, torn = perceiver.initial_state(4), perceiver.initial_state(4)
    none, second = torch.zeros(4, dtype=torch.bool), torch.arange(4) == 1
    others = torch.tensor([0, 2, 3])
    ids: list[set[int]] = [set(), set()]  # of the second, before its reset and after
    for t, frame in enumerate(frames):
        left, calm = perceiver.step(frame, calm, none)
        right, torn = perceiver.step(frame, torn, second if t == 3 else none)
        for name in (*FLOATS, "track_id"):
            assert torch.equal(getattr(left, name)[others], getattr(right, name)[others])
        for field in fields(TrackerState):
            assert torch.equal(getattr(calm, field.name)[others], getattr(torn, field.name)[others])
        ids[t >= 3] |= set(right[1].track_id[right[1].mask].flatten().tolist())
    assert all(ids)
    assert not ids[0] & ids[1]


@both
def test_step_changes_neither_its_frames_nor_its_state(make: Make) -> None:
    perceiver, frames = make(), film(2, 2)
    _, state = perceiver.step(frames[0], perceiver.initial_state(2), first(2))
    kept = {field.name: getattr(state, field.name).clone() for field in fields(TrackerState)}
    frame = frames[1].clone()
    one, _ = perceiver.step(frame, state, first(2) & False)
    two, _ = perceiver.step(frame, state, first(2) & False)
    assert torch.equal(frame, frames[1])
    for name, value in kept.items():
        assert torch.equal(getattr(state, name), value)
    for name in (*FLOATS, "track_id"):
        assert torch.equal(getattr(one, name), getattr(two, name))


@both
def test_encode_is_a_step_from_a_fresh_state(make: Make) -> None:
    perceiver, frames = make(), film(5, 1)[0]
    encoded = perceiver.encode(frames)
    for begins in (first(5), ~first(5)):
        stepped, _ = perceiver.step(frames, perceiver.initial_state(5), begins)
        for name in (*FLOATS, "track_id"):
            assert torch.equal(getattr(encoded, name), getattr(stepped, name))


@both
def test_segment_shares_the_frame_out_in_the_order_of_encode(make: Make) -> None:
    perceiver, frames = make(), film(4, 1)[0]
    slots, masks = perceiver.encode(frames), perceiver.segment(frames)
    assert masks.shape == (4, ROWS + 1, HEIGHT, WIDTH)
    assert masks.dtype == torch.float32
    torch.testing.assert_close(masks.sum(1), torch.ones(4, HEIGHT, WIDTH))
    assert masks.min() >= -1e-6
    mass = masks[:, :ROWS].flatten(2).sum(2)
    assert (mass[~slots.mask] == 0).all()
    # What a mask covers lies around its row's centre, wherever another object does not hide it.
    x, y = torch.arange(WIDTH) + 0.5, torch.arange(HEIGHT) + 0.5
    if isinstance(perceiver.detector, Space):  # untrained: its masks fill all of z_where
        where = perceiver.detector.perceive(frames).z_where
        slots = replace(slots, scale=where[..., :2], position=where[..., 2:])
    boxes = slots.boxes(HEIGHT, WIDTH)
    checked = 0
    for b, k in slots.mask.nonzero().tolist():
        if mass[b, k] < 4:
            continue
        mask = masks[b, k] / mass[b, k]
        left, top, right, bottom = boxes[b, k].tolist()
        assert left - 2 <= float((mask.sum(0) * x).sum()) <= right + 2
        assert top - 2 <= float((mask.sum(1) * y).sum()) <= bottom + 2
        checked += 1
    assert checked >= 8


@both
@pytest.mark.parametrize("size", [(210, 160), (84, 84), (HEIGHT, WIDTH), (33, 47)])
def test_frames_of_any_size_are_seen(make: Make, size: tuple[int, int]) -> None:
    perceiver = make()
    frames = torch.randint(0, 255, (2, *size, 3), dtype=torch.uint8)
    assert perceiver.encode(frames).presence.shape == (2, ROWS, 1)
    masks = perceiver.segment(frames)
    assert masks.shape == (2, ROWS + 1, *size)
    torch.testing.assert_close(masks.sum(1), torch.ones(2, *size))


@both
@pytest.mark.parametrize("rows", [1, 3, 200])
def test_max_slots_is_what_an_agent_gets(make: Make, rows: int) -> None:
    # 200 is more than SPACE's 80 cells.
    perceiver, frames = make(max_slots=rows), film(2, 3)
    state = perceiver.initial_state(2)
    for frame in frames:
        slots, state = perceiver.step(frame, state, first(2) & False)
        assert slots.presence.shape == (2, rows, 1)
    assert perceiver.segment(frames[0]).shape == (2, rows + 1, HEIGHT, WIDTH)
    # The first rows of a fresh look are the likeliest objects, however many rows there are.
    few, many = perceiver.encode(frames[0]), make().encode(frames[0])
    shared = min(rows, ROWS)
    torch.testing.assert_close(few.position[:, :shared], many.position[:, :shared])


@both
def test_present_rows_come_first_by_falling_presence(make: Make) -> None:
    detector: Any = make().detector
    slots: Slots = detector.detect(film(8, 1)[0])
    assert (slots.track_id == NO_TRACK).all()
    presence = slots.presence[..., 0]
    assert (presence[:, 1:] <= presence[:, :-1]).all()


BAD: list[tuple[Any, type[Exception], str]] = [
    (torch.zeros(2, 3, 80, 64, dtype=torch.uint8), ValueError, "looks channels-first"),
    (torch.zeros(80, 64, 3, dtype=torch.uint8), ValueError, r"needs frames\[None\]"),
    (torch.zeros(2, 80, 64, 1, dtype=torch.uint8), ValueError, "grayscale"),
    (torch.zeros((), dtype=torch.uint8), ValueError, "expected RGB frames"),
    (torch.full((2, 80, 64, 3), torch.nan), TypeError, "expected dtype uint8"),
    (np.zeros((2, 80, 64, 3), np.uint8), TypeError, "use torch.from_numpy"),
]


@both
@pytest.mark.parametrize(("frames", "error", "words"), BAD)
def test_what_is_no_frame_is_refused(
    make: Make, frames: Any, error: type[Exception], words: str
) -> None:
    perceiver = make()
    for see in (
        perceiver.encode,
        perceiver.segment,
        lambda bad: perceiver.step(bad, perceiver.initial_state(2), first(2)),
    ):
        with pytest.raises(error, match=words):
            see(frames)


def test_a_state_or_reset_flags_of_other_environments_are_refused() -> None:
    perceiver, frames = make_median(), film(3, 1)[0]
    state = perceiver.initial_state(3)
    with pytest.raises(ValueError, match=r"state: expected one of 3 environments.* got 1"):
        perceiver.step(frames, perceiver.initial_state(1), first(3))
    with pytest.raises(ValueError, match=r"is_first: expected shape \(3,\) bool.* got \(1,\)"):
        perceiver.step(frames, state, first(1))
    with pytest.raises(ValueError, match=r"is_first: .* got \(3,\) torch.float32"):
        perceiver.step(frames, state, torch.zeros(3))


@both
def test_decompose_takes_frames_apart(make: Make) -> None:
    detector: Any = make().detector
    with torch.no_grad():
        parts = detector.decompose(film(2, 1)[0])
    for name in ("image", "reconstruction", "foreground", "background"):
        picture = getattr(parts, name)
        assert picture.shape == (2, 3, HEIGHT, WIDTH)
        assert ((picture >= 0) & (picture <= 1)).all()
    assert parts.alpha.shape == (2, 1, HEIGHT, WIDTH)
    assert ((parts.alpha >= 0) & (parts.alpha <= 1 + 1e-6)).all()


@both
def test_seeing_the_same_twice_is_the_same(make: Make) -> None:
    perceiver, frames = make().train(), film(2, 1)[0]  # even if someone leaves it in training
    one, two = perceiver.encode(frames), perceiver.encode(frames)
    for name in (*FLOATS, "track_id"):
        assert torch.equal(getattr(one, name), getattr(two, name))


def test_a_policy_may_learn_from_slots() -> None:
    perceiver = make_space()
    slots, _ = perceiver.step(film(2, 1)[0], perceiver.initial_state(2), first(2))
    probe = nn.Linear(perceiver.what_size, 1)
    probe(slots.what).sum().backward()
    assert probe.weight.grad is not None
    assert probe.weight.grad.abs().sum() > 0
    assert all(weight.grad is None for weight in perceiver.parameters())


class Operations(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Count the tensor operations; those that wait for, or copy from, the host by name."""

    HOST = ("_local_scalar_dense", "nonzero", "lift_fresh", "masked_select", "is_nonzero", "equal")

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.count = 0
        self.host: Counter[str] = Counter()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        self.count += 1
        name = func.overloadpacket.__name__
        if name in self.HOST:
            self.host[name] += 1
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize(
    "make",
    [make_space, *(partial(make_known_scalor, kind) for kind in BACKGROUNDS)],
    ids=["space", *(f"scalor, {kind}" for kind in BACKGROUNDS)],
)
def test_a_step_neither_loops_over_environments_nor_waits_for_the_host(
    make: Callable[[], Perceiver], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(space, "_on_host", lambda tensor: False)  # as on CUDA
    perceiver = make()
    counts = []
    for envs in (1, 8):
        frames, state = film(envs, 1)[0], perceiver.initial_state(envs)
        with Operations() as operations:
            perceiver.step(frames, state, first(envs))
        assert not operations.host
        counts.append(operations.count)
    # A reshape may copy for eight and not for one; a loop would add one for each of seven.
    assert counts[1] - counts[0] < 7


@pytest.mark.gpu
@both
def test_cuda_sees_what_the_cpu_sees(make: Make) -> None:
    here, there = make(), make().to("cuda")
    here_state, there_state = here.initial_state(4), there.initial_state(4)
    for frame in film(4, 5):
        left, here_state = here.step(frame, here_state, first(4) & False)
        right, there_state = there.step(frame, there_state, first(4) & False)
        assert torch.equal(left.track_id, right.track_id.cpu())
        torch.testing.assert_close(left.position, right.position.cpu(), rtol=0, atol=1e-2)
