"""Identity: kept while an object is followed, and never given to another."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from objrl.slots import NO_TRACK, Slots
from objrl.tracking import TrackerConfig, TrackerState, _mutual_best, follow, initial_state

CONFIG = TrackerConfig()
FEATURES = 4
NOT_FIRST = torch.zeros(1, dtype=torch.bool)


@dataclass(frozen=True)
class Thing:
    """An object of one frame; x, y in [-1, 1]."""

    x: float
    y: float
    width: float = 0.05
    height: float = 0.05
    look: int = 0


def sighting(*envs: Sequence[Thing], rows: int) -> Slots:
    """Detections as a detector gives them: present ones first."""
    slots = Slots.empty(len(envs), rows, FEATURES)
    for b, things in enumerate(envs):
        for k, thing in enumerate(things):
            slots.position[b, k] = torch.tensor([thing.x, thing.y])
            slots.scale[b, k] = torch.tensor([thing.width, thing.height])
            slots.what[b, k, thing.look] = 1
            slots.presence[b, k] = 0.9
    return slots


class Watcher:
    """One environment's tracker over time."""

    def __init__(self, rows: int, config: TrackerConfig = CONFIG) -> None:
        self.rows, self.config = rows, config
        self.state = initial_state(1, rows, FEATURES)

    def see(self, things: Sequence[Thing], first: bool = False) -> list[int]:
        """Return the id of every thing, in the order given; -1 for one that found no row."""
        found = sighting(things, rows=max(self.rows, len(things)))
        slots, self.state = follow(found, self.state, torch.tensor([first]), self.config)
        ids = []
        for thing in things:
            apart = (slots.position[0] - torch.tensor([thing.x, thing.y])).abs().amax(-1)
            here = slots.mask[0] & (apart < 1e-6) & (slots.what[0, :, thing.look] == 1)
            ids.append(int(slots.track_id[0, here, 0]) if here.any() else NO_TRACK)
        return ids


def test_first_sight_gives_rows_and_ids_in_the_detectors_order() -> None:
    found = sighting([Thing(0, 0), Thing(0.5, 0.5)], rows=4)
    slots, state = follow(found, initial_state(1, 4, FEATURES), NOT_FIRST, CONFIG)
    assert slots.track_id[0, :, 0].tolist() == [0, 1, NO_TRACK, NO_TRACK]
    for name in ("position", "velocity", "scale", "depth", "what", "presence"):
        assert torch.equal(getattr(slots, name), getattr(found, name))
    assert state.next_id.tolist() == [2]


def test_a_still_scene_keeps_rows_and_ids_for_2000_frames() -> None:
    generator = torch.Generator().manual_seed(0)
    corners = torch.randperm(64, generator=generator)[:20].tolist()
    things = [Thing(-0.9 + 0.25 * (c % 8), -0.9 + 0.25 * (c // 8)) for c in corners]
    scene, state = sighting(things, rows=24), initial_state(1, 24, FEATURES)
    before: Tensor | None = None
    for _ in range(2000):
        jitter = 0.004 * torch.randn(scene.position.shape, generator=generator)
        seen = replace(scene, position=scene.position + jitter * scene.mask[..., None])
        order = torch.randperm(20, generator=generator)  # a detector's order means nothing
        order = torch.cat([order, torch.arange(20, 24)])
        found = seen.map(lambda field, order=order: field[:, order])  # type: ignore[misc]
        slots, state = follow(found, state, NOT_FIRST, CONFIG)
        if before is not None:
            assert torch.equal(slots.track_id, before)
        before = slots.track_id
    assert state.next_id.tolist() == [20]


@pytest.mark.parametrize("hidden", [1, CONFIG.patience])
def test_a_flicker_keeps_the_id(hidden: int) -> None:
    watcher = Watcher(4)
    still, moving = Thing(0.5, 0.5), Thing(-0.9, 0, look=1)
    step = 0.1  # so much that it is missed where it was last seen
    assert watcher.see([still, moving]) == [0, 1]
    at = moving.x
    for _ in range(5):
        for _ in range(3):
            at += step
            assert watcher.see([still, replace(moving, x=at)]) == [0, 1]
        for _ in range(hidden):
            at += step
            assert watcher.see([still]) == [0]
        at += step
        if at > 0.9:
            break
        assert watcher.see([still, replace(moving, x=at)]) == [0, 1]


def test_longer_out_of_sight_is_another_object() -> None:
    watcher = Watcher(4)
    thing = Thing(0, 0)
    assert watcher.see([thing]) == [0]
    for _ in range(CONFIG.patience + 1):
        watcher.see([])
    assert watcher.see([thing]) == [1]
    assert watcher.see([thing]) == [1]


def test_crossing_objects_of_different_looks_keep_their_ids() -> None:
    watcher = Watcher(4)
    for frame in range(41):
        x = -0.5 + 0.025 * frame
        left, right = Thing(x, 0.001, look=1), Thing(-x, 0, look=2)
        assert watcher.see([left, right] if frame % 2 else [right, left]) == (
            [1, 0] if frame % 2 else [0, 1]
        )


@pytest.mark.parametrize("step", [1, 2, 4])
def test_a_marching_block_of_equal_objects_keeps_ids(step: int) -> None:
    """Space Invaders: 6 x 6 aliens 16 pixels apart, sideways, at the wall back and down."""
    watcher = Watcher(40)
    x, direction, y = 10, step, 31
    for frame in range(120):
        block = [
            Thing((x + 16 * j) / 80 - 1, (y + 18 * i) / 105 - 1, 8 / 160, 10 / 210)
            for i in range(6)
            for j in range(6)
        ]
        assert watcher.see(block) == list(range(36)), f"frame {frame}"
        if not 8 <= x + direction <= 64:
            direction, y = -direction, y + 4
        else:
            x += direction
    assert int(watcher.state.overflow) == 0


def test_looks_outweigh_a_small_step() -> None:
    watcher = Watcher(4)
    left, right = Thing(-0.01, 0, look=1), Thing(0.01, 0, look=2)
    assert watcher.see([left, right]) == [0, 1]
    assert watcher.see([replace(left, x=0.01), replace(right, x=-0.01)]) == [0, 1]


def test_speed_is_learnt() -> None:
    """In the end it leaps beyond the gate: only where it is expected can it be recognised."""
    watcher = Watcher(4)
    gate = 2 * CONFIG.gate * (0.02 + CONFIG.slack)
    x, speed = -0.95, 0.02
    while x < 1:
        assert watcher.see([Thing(x, 0, 0.02, 0.02)]) == [0]
        speed = min(speed + 0.025, 1.5 * gate)
        x += speed
    assert speed > 1.4 * gate


class Speedometer(Watcher):
    def see_one(self, *x: float) -> list[list[float]]:
        """Return the velocity of every row when things are seen at x."""
        found = sighting([Thing(at, 0) for at in x], rows=self.rows)
        slots, self.state = follow(found, self.state, NOT_FIRST, self.config)
        return [[round(v, 5) for v in row] for row in slots.velocity[0].tolist()]


def test_velocity_is_the_displacement_a_step() -> None:
    watcher = Speedometer(2)
    assert watcher.see_one(0.0) == [[0, 0], [0, 0]]
    assert watcher.see_one(0.1) == [[0.1, 0], [0, 0]]  # the first displacement counts whole
    assert watcher.see_one(0.2) == [[0.1, 0], [0, 0]]
    assert watcher.see_one(0.24) == [[0.07, 0], [0, 0]]  # the next ones are smoothed
    assert watcher.see_one() == [[0, 0], [0, 0]]  # out of sight
    assert watcher.see_one(0.38) == [[0.07, 0], [0, 0]]  # 0.14 in two steps
    assert watcher.see_one(0.45, -0.8) == [[0.07, 0], [0, 0]]  # a newcomer


def test_a_shift_by_half_of_the_spacing_is_seen_also_beside_many_that_stay() -> None:
    watcher = Watcher(80)
    spots = 2 * torch.rand(44, 2, generator=torch.Generator().manual_seed(0)) - 1
    still = [Thing(x, 0.65 + 0.3 * y) for x, y in spots.tolist()]
    for x in (0.0, 0.1, 0.1, 0.1, 0.0, 0.0, 0.0, -0.1):
        block = [Thing(x + 0.2 * j - 0.5, 0.2 * i - 0.9) for i in range(6) for j in range(6)]
        assert watcher.see(block + still) == list(range(80))


def test_a_newcomer_does_not_inherit_the_speed_of_whose_row_it_takes() -> None:
    watcher = Watcher(1)
    for x in (-0.5, -0.4, -0.3):
        assert watcher.see([Thing(x, 0)]) == [0]
    assert (watcher.state.velocity[0, 0, 0] > 0.05).all()
    assert watcher.see([Thing(0.5, 0.9)]) == [1]
    assert (watcher.state.velocity == 0).all()


def test_an_object_that_outgrows_the_gate_is_new() -> None:
    watcher = Watcher(4)
    assert watcher.see([Thing(-0.8, 0)]) == [0]
    assert watcher.see([Thing(0.8, 0)]) == [1]


def test_a_reset_forgets_everything_but_the_ids_given() -> None:
    watcher = Watcher(4)
    assert watcher.see([Thing(0, 0), Thing(0.5, 0)]) == [0, 1]
    assert watcher.see([Thing(0, 0), Thing(0.5, 0)], first=True) == [2, 3]
    assert watcher.see([Thing(0.5, 0)]) == [3]


def test_objects_that_find_no_row_are_counted() -> None:
    watcher = Watcher(2)
    things = [Thing(x, 0) for x in (-0.8, -0.2, 0.4, 0.8)]
    assert watcher.see(things) == [0, 1, NO_TRACK, NO_TRACK]
    assert int(watcher.state.overflow) == 2
    assert watcher.see(things) == [0, 1, NO_TRACK, NO_TRACK]
    assert int(watcher.state.overflow) == 4
    # One goes; the next frame's newcomer may have the row of what is out of sight.
    assert watcher.see(things[1:3]) == [1, 2]
    assert watcher.see(things[:2]) == [3, 1]


def test_newcomers_take_the_row_of_what_is_longest_out_of_sight() -> None:
    watcher = Watcher(3)
    a, b, c = (Thing(x, 0) for x in (-0.8, 0.0, 0.8))
    assert watcher.see([a, b, c]) == [0, 1, 2]
    watcher.see([b, c])  # a missed once
    watcher.see([c])  # a twice, b once
    assert watcher.see([c, Thing(0, 0.8)]) == [2, 3]
    assert watcher.see([b]) == [1]
    assert watcher.see([a]) == [4]


def test_fewer_detections_than_rows_are_welcome() -> None:
    state = initial_state(1, 6, FEATURES)
    slots, state = follow(sighting([Thing(0, 0)], rows=2), state, NOT_FIRST, CONFIG)
    assert slots.presence.shape == (1, 6, 1)
    assert slots.track_id[0, :, 0].tolist() == [0] + [NO_TRACK] * 5


def test_objects_without_a_look_are_told_apart_by_place() -> None:
    found = sighting([Thing(-0.5, 0), Thing(0.5, 0)], rows=3)
    found = replace(found, what=torch.zeros_like(found.what))
    state = initial_state(1, 3, FEATURES)
    first, state = follow(found, state, NOT_FIRST, CONFIG)
    again, _ = follow(found.map(lambda field: field.flip(1)), state, NOT_FIRST, CONFIG)
    assert torch.equal(again.track_id, first.track_id)
    assert torch.equal(again.position, first.position)


def random_life(envs: int, rows: int, frames: int, seed: int) -> list[tuple[Slots, Tensor]]:
    """Births, deaths, jumps, flicker and resets: nothing that a tracker could be right about."""
    generator = torch.Generator().manual_seed(seed)

    def rand(*shape: int) -> Tensor:
        return torch.rand(*shape, generator=generator)

    position, velocity = 2 * rand(envs, rows, 2) - 1, 0.05 * (rand(envs, rows, 2) - 0.5)
    scale, what = 0.02 + 0.1 * rand(envs, rows, 2), rand(envs, rows, FEATURES)
    life = []
    for _ in range(frames):
        jump = (rand(envs, rows, 1) < 0.03) | ((position + velocity).abs() > 1).any(-1, True)
        position = torch.where(jump, 2 * rand(envs, rows, 2) - 1, position + velocity)
        shown = (rand(envs, rows, 1) < 0.7).float()
        order = (-shown[..., 0] + 0.5 * rand(envs, rows)).argsort(1)[..., None]

        def arrange(field: Tensor, shown: Tensor = shown, order: Tensor = order) -> Tensor:
            return (field * shown).gather(1, order.expand(-1, -1, field.shape[-1]))

        ids = torch.full((envs, rows, 1), NO_TRACK)
        fields = {"position": position, "velocity": torch.zeros_like(position), "scale": scale}
        fields |= {"depth": rand(envs, rows, 1), "what": what}
        fields |= {"presence": 0.5 + 0.5 * rand(envs, rows, 1)}
        slots = Slots(**{name: arrange(field) for name, field in fields.items()}, track_id=ids)
        life.append((slots, rand(envs) < 0.01))
    return life


def check_frame(slots: Slots, found: Slots) -> None:
    """Nothing is lost, made up or doubled; empty rows are empty."""
    assert torch.equal(slots.mask, slots.track_id[..., 0] != NO_TRACK)
    assert torch.equal(slots.mask.sum(1), found.mask.sum(1))
    assert (slots.velocity[~slots.mask] == 0).all()
    assert (slots.velocity.abs() <= 2).all()
    for field in fields(Slots):
        if field.name not in ("track_id", "velocity"):
            given, got = getattr(found, field.name), getattr(slots, field.name)
            assert (got[~slots.mask] == 0).all()
            assert torch.equal(given.sort(dim=1).values, got.sort(dim=1).values)


def test_ids_are_never_used_again_and_rows_are_for_life() -> None:
    envs, rows, frames = 4, 6, 3000
    state = initial_state(envs, rows, FEATURES)
    owner: dict[tuple[int, int], tuple[int, int]] = {}  # (env, id) -> row, frame last seen
    newest = [-1] * envs
    reset_at = [0] * envs
    follows = 0
    for frame, (found, is_first) in enumerate(random_life(envs, rows, frames, seed=5)):
        slots, state = follow(found, state, is_first, CONFIG)
        check_frame(slots, found)
        reset_at = [
            frame if first else at for first, at in zip(is_first.tolist(), reset_at, strict=True)
        ]
        for b, row_ids in enumerate(slots.track_id[..., 0].tolist()):
            present = [name for name in row_ids if name != NO_TRACK]
            assert len(set(present)) == len(present)
            born = sorted(name for name in present if (b, name) not in owner)
            assert born == list(range(newest[b] + 1, newest[b] + 1 + len(born)))
            newest[b] += len(born)
            for row, name in enumerate(row_ids):
                if name == NO_TRACK:
                    continue
                if (b, name) in owner:
                    follows += 1
                    home, last = owner[b, name]
                    assert home == row
                    assert frame - last <= CONFIG.patience + 1
                    assert last >= reset_at[b]
                owner[b, name] = row, frame
    assert state.next_id.tolist() == [n + 1 for n in newest]
    assert min(newest) > 200
    assert follows > frames  # and yet objects are followed


def test_an_environment_depends_on_itself_alone() -> None:
    envs, rows = 8, 6
    together = initial_state(envs, rows, FEATURES)
    alone = [initial_state(1, rows, FEATURES) for _ in range(envs)]
    for found, is_first in random_life(envs, rows, 60, seed=1):
        slots, together = follow(found, together, is_first, CONFIG)
        for b in range(envs):
            one, alone[b] = follow(found[b], alone[b], is_first[b : b + 1], CONFIG)
            for name in ("track_id", "position", "velocity"):
                assert torch.equal(getattr(one, name), getattr(slots[b], name))
            for field in fields(TrackerState):
                all_of_it = getattr(together[b : b + 1], field.name)
                assert torch.equal(getattr(alone[b], field.name), all_of_it)


def test_a_reset_leaves_the_other_environments_bit_for_bit() -> None:
    life = random_life(4, 6, 12, seed=2)
    calm, torn = initial_state(4, 6, FEATURES), initial_state(4, 6, FEATURES)
    none = torch.zeros(4, dtype=torch.bool)
    for found, _ in life:
        left, calm = follow(found, calm, none, CONFIG)
        right, torn = follow(found, torn, torch.tensor([False, True, False, False]), CONFIG)
        for b in (0, 2, 3):
            for field in fields(TrackerState):
                one, other = getattr(calm, field.name)[b], getattr(torn, field.name)[b]
                assert torch.equal(one, other)
            assert torch.equal(left[b].track_id, right[b].track_id)
    assert not torch.equal(left[1].track_id, right[1].track_id)


def test_following_needs_no_values_on_the_host() -> None:
    """On the meta device there are none, so a read of one is an error."""
    found = sighting([Thing(0, 0)], [Thing(0, 0)], rows=5).to("meta")
    is_first = torch.zeros(2, dtype=torch.bool, device="meta")
    slots, state = follow(found, initial_state(2, 5, FEATURES, "meta"), is_first, CONFIG)
    assert slots.track_id.shape == (2, 5, 1)
    assert state.next_id.device.type == "meta"


def greedy(cost: Tensor) -> list[int]:
    """The cheapest pair first, then the cheapest of what is left."""
    source, left = [-1] * cost.shape[0], cost.clone()
    while torch.isfinite(left).any():
        row, column = divmod(int(left.argmin()), cost.shape[1])
        source[row] = column
        left[row] = torch.inf
        left[:, column] = torch.inf
    return source


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 9), st.integers(1, 9), st.integers(0, 10**6), st.booleans())
def test_mutual_best_choice_is_greedy_matching(
    rows: int, columns: int, seed: int, ties: bool
) -> None:
    generator = torch.Generator().manual_seed(seed)
    cost = torch.rand(2, rows, columns, generator=generator)
    if ties:
        cost = (cost * 4).round()
    cost = cost.masked_fill(torch.rand(cost.shape, generator=generator) < 0.3, torch.inf)
    source = _mutual_best(cost, rounds=min(rows, columns))
    for b in range(2):
        found, expected = source[b].tolist(), greedy(cost[b])
        taken = [column for column in found if column >= 0]
        assert len(set(taken)) == len(taken)
        if ties:  # which of two equal pairs comes first is nobody's business: only the end is
            left = cost[b].clone()
            left[[row for row, column in enumerate(found) if column >= 0]] = torch.inf
            left[:, taken] = torch.inf
            assert not torch.isfinite(left).any()
        else:
            assert found == expected


def test_rounds_bound_the_work_and_leave_the_rest_unmatched() -> None:
    # A chain in which every pair waits for the one before it.
    cost = torch.full((1, 6, 6), torch.inf)
    for i in range(6):
        cost[0, i, i] = 2 * i
        if i:
            cost[0, i, i - 1] = 2 * i - 1
    assert _mutual_best(cost, rounds=6)[0].tolist() == [0, 1, 2, 3, 4, 5]
    assert _mutual_best(cost, rounds=2)[0].tolist() == [0, 1, -1, -1, -1, -1]
