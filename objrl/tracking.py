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
    """How an object is recognised in the next frame. Lengths are fractions of the frame."""

    gate: float = 1.5
    """Furthest that an object may be from where it was expected, in mean sides of its box."""
    slack: float = 0.03
    """Added to the mean side: tiny things outrun their size."""
    leap: float = 0.1
    """Furthest that a thing seen but once goes in a step, beside the slack: shots are fast."""
    together: float = 0.1
    """Cost of having gone with the others instead of one's own way."""
    horizon: float = 0.13
    """Furthest that the objects may have gone together, sideways and up or down each."""
    size_weight: float = 0.5
    """Cost of a change of size: this times |log of the ratio|, summed over width and height."""
    what_weight: float = 0.5
    """Cost of a change of look: this times (1 - cosine of the two `what`)."""
    patience: int = 3
    """Frames that an object may be out of sight and still come back as itself."""
    smoothing: float = 0.5
    """Weight of the newest displacement in the velocity; the first one counts whole."""
    rounds: int = 8
    """Rounds of mutual best choice; pairs still undecided after them count as unmatched."""


CELLS = 25
"""Cells a side of the grid on which common displacements are counted."""
FADING = 0.8
"""How much of an object's longest step is left a step later."""


@dataclass(frozen=True)
class TrackerState:
    """What is remembered of B x K rows.

    Attributes:
        position: (B, K, 2) float32. Last seen centre.
        scale: (B, K, 2) float32. Last seen size.
        what: (B, K, D) float32. Last seen appearance.
        velocity: (B, K, 2) float32. Displacement a step, in units of `position`.
        track_id: (B, K) int64. -1 where the row is free.
        missed: (B, K) int64. Frames since the object was last seen.
        stride: (B, K) float32. Longest step of late, as a fraction of the frame.
        fresh: (B, K) bool. Seen once so far: velocity and stride are guesses.
        next_id: (B,) int64. Never falls, not even at a reset, so no id is ever used twice.
        overflow: (B,) int64. Objects that found no row.
    """

    position: Tensor
    scale: Tensor
    what: Tensor
    velocity: Tensor
    track_id: Tensor
    missed: Tensor
    stride: Tensor
    fresh: Tensor
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
        stride=torch.zeros(batch, rows, device=device),
        fresh=torch.zeros(batch, rows, dtype=torch.bool, device=device),
        next_id=torch.zeros(batch, dtype=torch.int64, device=device),
        overflow=torch.zeros(batch, dtype=torch.int64, device=device),
    )


def follow(
    found: Slots, state: TrackerState, is_first: Tensor, config: TrackerConfig
) -> tuple[Slots, TrackerState]:
    """Give the objects of a new frame the rows and ids of those that they continue.

    Args:
        found: (B, N, ·) detections, of any number; ids and velocities are ignored.
        state: what is remembered.
        is_first: (B,) bool. Environments whose past is dropped before matching.
        config: how an object is recognised.

    Returns:
        The same detections in their rows with ids and velocities, and the next state.
    """
    track_id = torch.where(is_first[:, None], NO_TRACK, state.track_id)
    alive = track_id != NO_TRACK
    cost = _cost(found, state, alive, config)
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

    moved = (slots.position - state.position) / (state.missed + 1)[..., None]
    weight = torch.where(state.fresh, 1.0, config.smoothing)[..., None]
    velocity = torch.lerp(state.velocity, moved, weight)
    velocity = torch.where(matched[..., None], velocity, state.velocity)
    velocity = torch.where((alive & ~born)[..., None], velocity, 0.0)
    stride = torch.where(state.fresh, 0.0, FADING * state.stride)
    stride = torch.maximum(stride, moved.norm(dim=-1) / 2)
    stride = torch.where(matched, stride, state.stride)
    here = seen[..., None]
    return replace(slots, velocity=torch.where(here, velocity, 0.0)), replace(
        state,
        position=torch.where(here, slots.position, state.position),
        scale=torch.where(here, slots.scale, state.scale),
        what=torch.where(here, slots.what, state.what),
        velocity=velocity,
        track_id=track_id,
        missed=torch.where(seen, 0, missed),
        stride=torch.where(born, config.leap, stride),
        fresh=born | (state.fresh & ~matched),
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


def _cost(found: Slots, state: TrackerState, alive: Tensor, config: TrackerConfig) -> Tensor:
    """(B, K, N) cost of taking detection n for row k; infinite where it cannot be the same."""
    pair = alive[:, :, None] & found.mask[:, None, :]
    frames = (state.missed + 1)[..., None]
    side = (state.scale.mean(-1)[:, :, None] + found.scale.mean(-1)[:, None]) / 2 + config.slack
    gone = _apart(state.position, found)
    own = _apart(state.position + state.velocity * frames, found)
    still = pair & (torch.maximum(own, gone) < config.slack / 3)
    shift, agreed = _common_shift(found, state, pair, still, config)
    common = _apart(state.position + shift[:, None], found)
    common = common.masked_fill(~agreed[:, None, None], torch.inf)

    # What moves may turn, as a ball does at a wall: it goes as far as before, but elsewhere. Of
    # what is new or out of sight less is believed: the next shot would be taken for the last.
    steady = (~state.fresh & (state.missed == 0))[..., None]
    spare = torch.where(steady, side, config.slack)
    near = torch.minimum(own, common) <= config.gate * side
    possible = pair & (near | (gone <= state.stride[..., None] + spare))

    apart = torch.minimum(own / side, common / side + config.together)
    tiny = 1e-3
    size, shown_size = torch.log(state.scale + tiny), torch.log(found.scale + tiny)
    ratio = torch.cdist(size, shown_size, p=1.0)
    known, shown = (F.normalize(what, dim=-1, eps=1e-6) for what in (state.what, found.what))
    look = known @ shown.transpose(1, 2)
    cost = apart + config.size_weight * ratio + config.what_weight * (1 - look)
    return cost.masked_fill(~possible, torch.inf)


def _apart(position: Tensor, found: Slots) -> Tensor:
    """(B, K, N) distance of places (B, K, 2) from detections, as a fraction of the frame."""
    # Not by a product of matrices: its rounding would put what stands still elsewhere.
    exact = "donot_use_mm_for_euclid_dist"
    return torch.cdist(position, found.position, compute_mode=exact) / 2


def _common_shift(
    found: Slots, state: TrackerState, pair: Tensor, still: Tensor, config: TrackerConfig
) -> tuple[Tensor, Tensor]:
    """Find the displacement that most of what moves has in common.

    A block of equal things that marches, halts or turns, or a screen that begins to scroll, cannot
    be told one by one: the neighbour's place may be nearer than one's own. But only the true
    displacement carries all of them to something. So every displacement between a row and a
    detection is a vote, counted on a grid (a Hough transform); what stands still has none.

    Args:
        found: the detections.
        state: what is remembered.
        pair: (B, K, N) bool. Rows and detections that there are.
        still: (B, K, N) bool. Those of which the detection is right where the row was, and was
            expected to be.
        config: how an object is recognised.

    Returns:
        (B, 2) displacement in units of `position`, to about a cell; (B,) bool: three or more agree.
    """
    moves = ~still.any(2) & (state.missed == 0)
    vote = pair & moves[:, :, None] & ~still.any(1)[:, None]
    # A ring around the grid takes what is beyond it and what has no vote; it is cut off again.
    side = CELLS + 2
    across, down = (
        ((new[:, None] - old[:, :, None]) * (CELLS / (4 * config.horizon)) + side / 2).floor()
        for new, old in zip(found.position.unbind(-1), state.position.unbind(-1), strict=True)
    )
    index = across.clamp(0, side - 1) * side + down.clamp(0, side - 1)
    index = (index * vote).long().flatten(1)
    votes = torch.zeros(len(index), side**2, device=index.device)
    votes = votes.scatter_add(1, index, torch.ones_like(index, dtype=votes.dtype))
    votes = votes.view(-1, 1, side, side)[..., 1:-1, 1:-1]
    # Noise spreads votes over neighbours; of windows with equal counts, the best centred.
    around = F.avg_pool2d(votes, 3, stride=1, padding=1, divisor_override=1)
    best = (around + votes / 10).flatten(1).argmax(1, keepdim=True)
    agreed = around.flatten(1).gather(1, best)[:, 0] >= 3
    centre = torch.cat([best // CELLS, best % CELLS], dim=1) + 0.5
    return (centre * (2 / CELLS) - 1) * (2 * config.horizon), agreed


def _mutual_best(cost: Tensor, rounds: int) -> Tensor:
    """Pair rows and columns that prefer each other, round by round: (B, K) column or -1.

    A round settles at least the cheapest pair of every environment, and usually nearly all.
    """
    batch, rows, columns = cost.shape
    source = torch.full((batch, rows), -1, dtype=torch.int64, device=cost.device)
    index = torch.arange(rows, device=cost.device).expand(batch, rows)
    for _ in range(rounds):
        price, column = cost.min(dim=2)
        back = cost.min(dim=1).indices.gather(1, column)
        agreed = (back == index) & torch.isfinite(price)
        source = torch.where(agreed, column, source)
        # Several times faster than masked_fill.
        cost = cost + torch.where(agreed, torch.inf, 0.0)[:, :, None]
        cost = cost + torch.where(_taken(source, columns), torch.inf, 0.0)[:, None]
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
        velocity=pick(found.velocity),
        scale=pick(found.scale),
        depth=pick(found.depth),
        what=pick(found.what),
        presence=pick(found.presence),
        track_id=torch.where(seen, track_id[..., None], NO_TRACK),
    )
