"""Identity in scenes that games have: things that cross, march, bounce, flicker, scroll and shoot.

A film is a scene in many environments at once, of which the truth is known. All things look alike,
so that only where they are can tell which one is which.

Letters: T frames, B environments, M things.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import pytest
import torch
from torch import Tensor

from objrl.slots import NO_TRACK, Slots
from objrl.tracking import TrackerConfig, follow, initial_state

CONFIG = TrackerConfig()
FRAME = torch.tensor([160.0, 210.0])
B = 16


@dataclass(frozen=True)
class Film:
    centre: Tensor
    """(T, B, M, 2) pixels"""
    size: Tensor
    """(M, 2) pixels"""
    shown: Tensor
    """(T, B, M) bool"""


@dataclass(frozen=True)
class Seen:
    ids: Tensor
    """(T, B, M) int64; -1 where the thing was not shown"""
    velocity: Tensor
    """(T, B, M, 2) pixels a step"""

    @property
    def switches(self) -> int:
        """How often a thing was shown with another id than when it was shown before."""
        count, last = 0, torch.full_like(self.ids[0], NO_TRACK)
        for ids in self.ids:
            here = ids != NO_TRACK
            count += int((here & (last != NO_TRACK) & (ids != last)).sum())
            last = torch.where(here, ids, last)
        return count

    @property
    def thefts(self) -> int:
        """How many more things there are than one to an id."""
        count = 0
        for env in self.ids.unbind(1):
            pairs = {pair for ids in env.tolist() for pair in enumerate(ids) if pair[1] != NO_TRACK}
            count += len(pairs) - len({name for _, name in pairs})
        return count


def rand(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


def film(
    centre: Tensor, size: tuple[float, float], shown: Tensor | None = None, still: bool = False
) -> Film:
    """Whole pixels, unless things are to stay exactly where they are; none beyond the edges."""
    centre = centre if still else centre.round()
    inside = ((centre > 0) & (centre < FRAME)).all(-1)
    return Film(
        centre,
        torch.tensor(size).expand(centre.shape[2], 2),
        inside if shown is None else inside & shown,
    )


def both(one: Film, other: Film) -> Film:
    return Film(
        torch.cat([one.centre, other.centre], 2),
        torch.cat([one.size, other.size]),
        torch.cat([one.shown, other.shown], 2),
    )


def dropped(whole: Film, share: float) -> Film:
    """Some detections fail."""
    return replace(whole, shown=whole.shown & (rand(*whole.shown.shape, seed=9) >= share))


def watch(whole: Film, config: TrackerConfig = CONFIG) -> Seen:
    """Follow the things of a film, shown in any order."""
    frames, envs, things = whole.shown.shape
    name = torch.arange(1, things + 1.0).expand(envs, things)[..., None]
    state, seen = initial_state(envs, things, 1), []
    for t in range(frames):
        shown = whole.shown[t]
        order = (-shown.float() + 0.5 * rand(envs, things, seed=t)).argsort(1)[..., None]

        def arrange(field: Tensor, shown: Tensor = shown, order: Tensor = order) -> Tensor:
            return (field * shown[..., None]).gather(1, order.expand(-1, -1, field.shape[-1]))

        found = replace(
            Slots.empty(envs, things, 1),
            position=arrange(whole.centre[t] / FRAME * 2 - 1),
            scale=arrange((whole.size / FRAME).expand(envs, things, 2)),
            what=arrange(torch.ones(envs, things, 1)),
            presence=arrange(torch.ones(envs, things, 1)),
            depth=arrange(name),  # which the tracker takes along and does not look at
        )
        slots, state = follow(found, state, torch.zeros(envs, dtype=torch.bool), config)
        # Column 0 is of rows that hold nothing.
        whose = slots.depth.long()
        ids = torch.full((envs, things + 1, 1), NO_TRACK).scatter(1, whose, slots.track_id)
        pace = slots.velocity * FRAME / 2
        pace = torch.zeros(envs, things + 1, 2).scatter(1, whose.expand(-1, -1, 2), pace)
        assert (slots.velocity[~slots.mask] == 0).all()
        seen.append((ids[:, 1:, 0], pace[:, 1:]))
    ids, velocity = (torch.stack(part) for part in zip(*seen, strict=True))
    assert torch.equal(ids != NO_TRACK, whole.shown)
    return Seen(ids, velocity)


# ---------------------------------------------------------------- scenes


def bouncing(
    things: int, speed: float, size: tuple[float, float], frames: int = 100, seed: int = 0
) -> Film:
    """Between walls."""
    low, high = torch.tensor([4.0, 10.0]), torch.tensor([156.0, 200.0])
    place = low + (high - low) * rand(B, things, 2, seed=seed)
    angle = 2 * math.pi * rand(B, things, seed=seed + 1)
    pace, path = speed * torch.stack([angle.cos(), angle.sin()], -1), []
    for _ in range(frames):
        path.append(place)
        place = place + pace
        pace = torch.where((place < low) | (place > high), -pace, pace)
        place = torch.where(place < low, 2 * low - place, place)
        place = torch.where(place > high, 2 * high - place, place)
    return film(torch.stack(path), size)


def bricks(frames: int) -> Film:
    x, y = torch.meshgrid(torch.arange(8.0, 160, 16), torch.arange(50.0, 110, 10), indexing="xy")
    grid = torch.stack([x, y], -1).view(-1, 2)
    return film(grid.expand(frames, B, -1, 2), (14, 6))


def marching(step: int, every: int, frames: int = 60) -> Film:
    """6 x 6 equal things 16 pixels apart: sideways all at once, at the wall down and back."""
    x, y = torch.meshgrid(torch.arange(6) * 16.0, torch.arange(6) * 18.0, indexing="xy")
    block, corner = torch.stack([x, y], -1).view(-1, 2), torch.tensor([10.0, 30.0])
    path, way = [], step
    for t in range(frames):
        path.append((block + corner).expand(B, 36, 2))
        if t % every == every - 1:
            turns = not 8 <= corner[0] + way <= 64
            corner = corner + torch.tensor([0.0, 4.0] if turns else [way, 0.0])
            way = -way if turns else way
    # Boxes wobble by a pixel, each on its own.
    return film(torch.stack(path) + 0.8 * (rand(frames, B, 36, 2) - 0.5), (8, 10), still=True)


def in_lanes(frames: int = 40, fastest: float = 4.0) -> Film:
    """Six things sideways, each at its own speed and so far from the others that none is near."""
    lanes = torch.arange(6) * 32.0 + 25
    speed = fastest * (2 * rand(B, 6) - 1)
    x = 80 + speed * (torch.arange(frames)[:, None, None] - frames / 2)
    return film(torch.stack([x, lanes.expand_as(x)], -1), (6, 6), still=True)


def shooting(speed: float, size: tuple[float, float], wait: int) -> Film:
    """One shot after the other upwards: each is seen for 6 to 12 frames, then none for a while."""
    frames, shots = 100, 10
    fly = 6 + (6 * rand(B, shots)).floor()
    begin = (fly + wait).cumsum(1) - fly - wait
    age = torch.arange(frames)[:, None, None] - begin
    x = (20 + 120 * rand(B, 1, seed=1) + 10 * rand(B, shots, seed=2)).expand(frames, B, shots)
    return film(torch.stack([x, 200 - speed * age], -1), size, (age >= 0) & (age < fly))


# ---------------------------------------------------------------- what is followed


@pytest.mark.parametrize("drop", [0.0, 0.1])
def test_things_that_cross_at_clear_velocities_come_out_as_themselves(drop: float) -> None:
    first = 2 * math.pi * rand(B, 1)
    angle = torch.cat([first, first + math.pi * (0.3 + 0.7 * rand(B, 1, seed=1))], 1)
    pace = (2 + 3 * rand(B, 2, 1, seed=2)) * torch.stack([angle.cos(), angle.sin()], -1)
    time = torch.arange(30)[:, None, None, None] - 14.6  # they meet between two frames
    whole = dropped(film(FRAME / 2 + pace * time, (8, 8)), drop)
    ids = watch(whole).ids
    # Where they meet, who is who is nobody's business.
    met = (whole.centre[:, :, 0] - whole.centre[:, :, 1]).norm(dim=-1) < 4
    seen = Seen(ids.masked_fill(met[..., None], NO_TRACK), torch.zeros_like(whole.centre))
    assert seen.switches == 0
    assert seen.thefts == 0


@pytest.mark.parametrize(("step", "every"), [(2, 1), (5, 1), (8, 1), (2, 3), (8, 3), (12, 3)])
def test_a_block_that_shifts_as_one_keeps_its_ids(step: int, every: int) -> None:
    """Also by half of its spacing and more, where the neighbour's place is as near as one's own."""
    shields = film(torch.tensor([[30.0, 190], [80, 190], [130, 190]]).expand(60, B, 3, 2), (12, 12))
    seen = watch(both(marching(step, every), shields))
    assert seen.switches == 0


def test_a_block_keeps_nearly_all_ids_when_detections_fail() -> None:
    whole = dropped(marching(8, 3), 0.05)
    assert watch(whole).switches < 0.002 * whole.shown.sum()


@pytest.mark.parametrize("speed", [4, 8, 12])
def test_a_small_fast_ball_bounces(speed: float) -> None:
    assert watch(bouncing(1, speed, (2, 4))).switches == 0


def test_a_ball_takes_no_bricks_id() -> None:
    seen = watch(both(bouncing(1, 8, (2, 4), frames=60), bricks(60)))
    assert seen.switches == 0
    assert seen.thefts == 0


@pytest.mark.parametrize("period", [2, CONFIG.patience + 1])
def test_what_flickers_keeps_ids_and_velocity(period: int) -> None:
    whole = in_lanes()
    phase = (torch.arange(40)[:, None] + torch.arange(6)) % period == 0
    seen = watch(replace(whole, shown=whole.shown & phase[:, None]))
    assert seen.switches == 0
    assert seen.thefts == 0
    # Seen twice or more, each goes as it goes, also from one sight to the next.
    truth = (whole.centre[1] - whole.centre[0]).expand_as(seen.velocity)
    again = (seen.ids >= 0) & ((seen.ids >= 0).cumsum(0) > 1)
    torch.testing.assert_close(seen.velocity[again], truth[again], rtol=0, atol=1e-3)
    assert (seen.velocity[~again] == 0).all()


def test_most_ids_outlast_a_crowd_that_flickers() -> None:
    """Eight that look alike, half of them hidden in every frame, on paths that cross."""
    whole = bouncing(8, 3, (6, 6), frames=60)
    phase = (torch.arange(60)[:, None] + torch.arange(8)) % 2 == 0
    whole = replace(whole, shown=whole.shown & phase[:, None])
    assert watch(whole).switches < 0.02 * whole.shown.sum()


@pytest.mark.parametrize(("speed", "size"), [(8, (1, 4)), (16, (1, 2)), (20, (8, 1))])
def test_a_shot_is_one_from_its_first_frame_on(speed: float, size: tuple[float, float]) -> None:
    seen = watch(shooting(speed, size, wait=5))
    assert seen.switches == 0
    assert seen.thefts == 0


def test_the_next_shot_is_another() -> None:
    """Also where the last one is still remembered."""
    seen = watch(shooting(12, (2, 6), wait=1))
    assert seen.switches == 0
    assert seen.thefts == 0


def test_births_and_deaths_in_a_crowd_disturb_few() -> None:
    frames, things = 80, 30
    begin, life = (frames * rand(B, things)).floor(), 5 + 20 * rand(B, things, seed=1)
    angle = 2 * math.pi * rand(B, things, seed=2)
    pace = 8 * rand(B, things, 1, seed=3) * torch.stack([angle.cos(), angle.sin()], -1)
    age = torch.arange(frames)[:, None, None] - begin
    where = FRAME * (0.1 + 0.8 * rand(B, things, 2, seed=4)) + pace * age[..., None]
    whole = film(where, (3, 6), (age >= 0) & (age < life))
    seen = watch(whole)
    assert seen.switches < 0.003 * whole.shown.sum()
    assert seen.thefts < 0.1 * B * things


def test_a_screen_that_begins_and_ceases_to_scroll_keeps_its_things() -> None:
    frames, things = 60, 40
    where = rand(B, things, 2) * torch.tensor([160.0, 840.0]) - torch.tensor([0.0, 630.0])
    scrolled = 12.0 * (torch.arange(frames) // 10 % 2 == 0).cumsum(0)
    path = where + torch.stack([torch.zeros(frames), scrolled], -1)[:, None, None]
    whole = film(path, (8, 8))
    assert watch(whole).switches < 0.008 * whole.shown.sum()


def test_switches_and_thefts_are_counted() -> None:
    ids = torch.tensor([[[0, 1]], [[0, -1]], [[1, 0]], [[1, 2]]])
    seen = Seen(ids, torch.zeros(4, 1, 2, 2))
    assert seen.switches == 3
    assert seen.thefts == 2
