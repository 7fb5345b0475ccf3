"""Following objects from frame to frame, for models that see one frame at a time.

`follow` is a pure function of fixed shapes: every environment of the batch is matched at once on
the device, without a loop over environments or a host synchronisation.

Letters: B environments, K rows (an object keeps its row for life), N detections, D features.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from objrl.slots import NO_TRACK, Slots


@dataclass(frozen=True)
class TrackerConfig:
    """How an object is recognised in the next frame."""

    gate: float = 2.0
    """Furthest that an object may be from where it was expected, in mean sides of its box."""
    slack: float = 0.02
    """Added to the mean side, as a fraction of the frame: tiny things outrun their size."""
    size_weight: float = 0.5
    """Cost of a change of size: this times |log of the ratio|, summed over width and height."""
    what_weight: float = 0.5
    """Cost of a change of look: this times (1 - cosine of the two `what`)."""
    patience: int = 3
    """Frames that an object may be out of sight and still come back as itself."""
    smoothing: float = 0.5
    """Weight of the newest displacement in the velocity."""
    rounds: int = 8
    """Rounds of mutual best choice; pairs still undecided after them count as unmatched."""


@dataclass(frozen=True)
class TrackerState:
    """What is remembered of B x K rows.

    Attributes:
        position: (B, K, 2) float32. Last seen centre, moved on by the velocity while out of sight.
        scale: (B, K, 2) float32. Last seen size.
        what: (B, K, D) float32. Last seen appearance.
        velocity: (B, K, 2) float32. Displacement a step, in units of `position`.
        track_id: (B, K) int64. -1 where the row is free.
        missed: (B, K) int64. Frames since the object was last seen.
        next_id: (B,) int64. Never falls, not even at a reset, so no id is ever used twice.
        overflow: (B,) int64. Objects that found no row.
    """

    position: Tensor
    scale: Tensor
    what: Tensor
    velocity: Tensor
    track_id: Tensor
    missed: Tensor
    next_id: Tensor
    overflow: Tensor

    def __len__(self) -> int:
        return len(self.next_id)

    def __getitem__(self, index: slice) -> TrackerState:
        """Select environments."""
        return TrackerState(**{f.name: getattr(self, f.name)[index] for f in fields(self)})


def initial_state(
    batch: int, rows: int, features: int, device: torch.device | str = "cpu"
) -> TrackerState:
    """Return the state of `batch` environments that have seen nothing."""
    return TrackerState(
        position=torch.zeros(batch, rows, 2, device=device),
        scale=torch.zeros(batch, rows, 2, device=device),
        what=torch.zeros(batch, rows, features, device=device),
        velocity=torch.zeros(batch, rows, 2, device=device),
        track_id=torch.full((batch, rows), NO_TRACK, dtype=torch.int64, device=device),
        missed=torch.zeros(batch, rows, dtype=torch.int64, device=device),
        next_id=torch.zeros(batch, dtype=torch.int64, device=device),
        overflow=torch.zeros(batch, dtype=torch.int64, device=device),
    )


def follow(
    found: Slots, state: TrackerState, is_first: Tensor, config: TrackerConfig
) -> tuple[Slots, TrackerState]:
    """Give the objects of a new frame the rows and ids of those that they continue.

    Args:
        found: (B, N, ·) detections, of any number; ids are ignored.
        state: what is remembered.
        is_first: (B,) bool. Environments whose past is dropped before matching.
        config: how an object is recognised.

    Returns:
        The same detections in their rows with ids, and the next state.
    """
    track_id = torch.where(is_first[:, None], NO_TRACK, state.track_id)
    alive = track_id != NO_TRACK
    expected = state.position + state.velocity
    cost = _cost(found, expected, state, config)
    cost = cost.masked_fill(~(alive[:, :, None] & found.mask[:, None, :]), torch.inf)
    source = _mutual_best(cost, config.rounds)  # (B, K): detection that continues the row, or -1

    matched = source >= 0
    missed = torch.where(matched, 0, state.missed + 1)
    alive = alive & (missed <= config.patience)
    taken = _taken(source, found.mask.shape[1])
    source, born, number, overflow = _births(source, found.mask & ~taken, alive, missed)

    track_id = torch.where(born, state.next_id[:, None] + number, track_id)
    seen = source >= 0
    track_id = torch.where(alive | born, track_id, NO_TRACK)
    slots = _gather(found, source, track_id)

    moved = slots.position - state.position
    velocity = torch.lerp(state.velocity, moved, config.smoothing)
    velocity = torch.where(matched[..., None], velocity, state.velocity)
    velocity = torch.where((born | ~alive)[..., None], 0.0, velocity)
    here, size, look = seen[..., None], slots.scale, slots.what
    return slots, replace(
        state,
        position=torch.where(here, slots.position, expected),
        scale=torch.where(here, size, state.scale),
        what=torch.where(here, look, state.what),
        velocity=velocity,
        track_id=track_id,
        missed=torch.where(seen, 0, missed),
        next_id=state.next_id + born.sum(1),
        overflow=state.overflow + overflow,
    )


def number(found: Slots) -> Slots:
    """Give detections that have no past ids from 0 on: what `follow` does from a fresh state.

    Args:
        found: (B, N, ·) detections, present rows first; ids are ignored.
    """
    mask = found.mask
    ids = torch.where(mask, mask.cumsum(1) - 1, NO_TRACK)
    return replace(found, track_id=ids[..., None])


def _cost(found: Slots, expected: Tensor, state: TrackerState, config: TrackerConfig) -> Tensor:
    """(B, K, N) cost of taking detection n for row k; infinite beyond the gate."""
    size = (state.scale[:, :, None] + found.scale[:, None]) / 2
    reach = size.mean(-1) + config.slack
    # Half of the distance in [-1, 1] is the distance as a fraction of the frame.
    apart = (expected[:, :, None] - found.position[:, None]).norm(dim=-1) / 2 / reach
    tiny = 1e-3
    ratio = (
        torch.log((state.scale[:, :, None] + tiny) / (found.scale[:, None] + tiny)).abs().sum(-1)
    )
    # A product of matrices: the pairs of features would not fit into memory side by side.
    known, shown = (F.normalize(what, dim=-1, eps=1e-6) for what in (state.what, found.what))
    look = known @ shown.transpose(1, 2)
    cost = apart + config.size_weight * ratio + config.what_weight * (1 - look)
    beyond: Tensor = cost.masked_fill(apart > config.gate, torch.inf)
    return beyond


def _mutual_best(cost: Tensor, rounds: int) -> Tensor:
    """Pair rows and columns that prefer each other, round by round: (B, K) column or -1.

    A round settles at least the cheapest pair of every environment, and usually nearly all.
    """
    batch, rows, columns = cost.shape
    source = torch.full((batch, rows), -1, dtype=torch.int64, device=cost.device)
    index = torch.arange(rows, device=cost.device).expand(batch, rows)
    for _ in range(rounds):
        price, column = cost.min(dim=2)
        back = cost.argmin(dim=1).gather(1, column)
        agreed = (back == index) & torch.isfinite(price)
        source = torch.where(agreed, column, source)
        cost = cost.masked_fill(agreed[:, :, None], torch.inf)
        cost = cost.masked_fill(_taken(source, columns)[:, None, :], torch.inf)
    return source


def _taken(source: Tensor, columns: int) -> Tensor:
    """(B, N) bool: which columns some row has taken."""
    # Rows that took none mark one column more, which is then cut off.
    marks = torch.zeros(source.shape[0], columns + 1, dtype=torch.bool, device=source.device)
    marks = marks.scatter(1, source % (columns + 1), torch.ones_like(source, dtype=torch.bool))
    cut: Tensor = marks[:, :columns]
    return cut


def _births(
    source: Tensor, new: Tensor, alive: Tensor, missed: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Seat new detections in free rows, then in those of objects longest out of sight.

    Returns:
        source with the newborn, (B, K) bool born, (B, K) int64 number of the birth within its
        frame, (B,) int64 how many found no seat.
    """
    visible = source >= 0
    never = torch.iinfo(torch.int64).max
    # Free rows first (0), then the hidden by falling absence, the visible never.
    order = torch.where(alive, never - 1 - missed, 0).masked_fill(visible, never)
    seats = order.argsort(dim=1, stable=True)
    guests = (~new).to(torch.int8).argsort(dim=1, stable=True)
    number = torch.arange(seats.shape[1], device=seats.device).expand_as(seats)
    coming = new.sum(1)
    room = (~visible).sum(1)
    seated = number < torch.minimum(coming, room)[:, None]
    guest = guests.gather(1, number.clamp(max=guests.shape[1] - 1))
    guest = torch.where(seated, guest, source.gather(1, seats))
    born = torch.zeros_like(alive).scatter(1, seats, seated)
    source = source.scatter(1, seats, guest)
    number = torch.zeros_like(seats).scatter(1, seats, number)
    return source, born, number, (coming - room).clamp(min=0)


def _gather(found: Slots, source: Tensor, track_id: Tensor) -> Slots:
    """Bring the detections into their rows; rows without one become empty."""
    seen = (source >= 0)[..., None]
    index = source.clamp(min=0)[..., None]

    def pick(field: Tensor) -> Tensor:
        return torch.where(seen, field.gather(1, index.expand(-1, -1, field.shape[-1])), 0)

    return Slots(
        position=pick(found.position),
        scale=pick(found.scale),
        depth=pick(found.depth),
        what=pick(found.what),
        presence=pick(found.presence),
        track_id=torch.where(seen, track_id[..., None], NO_TRACK),
    )
