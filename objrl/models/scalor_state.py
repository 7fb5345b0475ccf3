"""What SCALOR remembers of every environment, and who gets a row.

Fixed shapes and no loop over environments: an object is born into a free row, keeps it for life,
and gets an id that was never used before in that environment.

Letters: B environments, K rows, M proposals, D size of z_what, G grid cells.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from objrl.slots import NO_TRACK

if TYPE_CHECKING:  # they import this module
    from objrl.models.scalor_config import ScalorConfig
    from objrl.models.scalor_networks import Table


@dataclass(frozen=True)
class ScalorState:
    """The past of B environments.

    Attributes:
        track_id: (B, K) int64. -1 where the row is free.
        missed: (B, K) int64. Frames since the object was last seen.
        stopped: (B, K) float32. Sum of 1 - z_pres over a life: the authors' rule of deletion.
        z_pres: (B, K, 1) float32.
        z_where: (B, K, 4) float32. Width and height as a fraction of the canvas, centre x, y.
        bias: (B, K, 4) float32. What z_where was made of: raw size and displacement.
        z_depth: (B, K, 1) float32. Larger is nearer.
        z_what: (B, K, D) float32.
        velocity: (B, K, 2) float32. Displacement a step, in units of the centre.
        newborn: (B, K) bool. Seen once so far.
        tracker: (B, K, ·) float32. Hidden state of the tracker RNN, h_t,n of Algorithm 2.
        prior: (B, K, 2, ·) float32. Hidden state and memory of the prior's RNN.
        memory: (B, 2 L, C, G, G) float32. The ConvLSTM's hidden states and memories, L layers.
        z_bg: (B, ·) float32. The background's latent.
        prior_bg: (B, ·) float32. Hidden state of its transition.
        fresh: (B,) bool. The frame before was not drawn: nothing foresaw the objects, and there is
            no z_bg to go on from.
        next_id: (B,) int64. Never falls, not even at a reset, so no id is ever used twice.
        overflow: (B,) int64. Objects that found no row.
    """

    track_id: Tensor
    missed: Tensor
    stopped: Tensor
    z_pres: Tensor
    z_where: Tensor
    bias: Tensor
    z_depth: Tensor
    z_what: Tensor
    velocity: Tensor
    newborn: Tensor
    tracker: Tensor
    prior: Tensor
    memory: Tensor
    z_bg: Tensor
    prior_bg: Tensor
    fresh: Tensor
    next_id: Tensor
    overflow: Tensor

    @classmethod
    def empty(
        cls, batch: int, config: ScalorConfig, table: Table, device: torch.device
    ) -> ScalorState:
        """Return the state of `batch` environments that have seen nothing."""
        rows, (layers, channels) = config.max_slots, table.memory

        def zeros(*shape: int) -> Tensor:
            return torch.zeros(batch, *shape, device=device)

        def counts(*shape: int) -> Tensor:
            return torch.zeros(batch, *shape, dtype=torch.int64, device=device)

        return cls(
            track_id=counts(rows) + NO_TRACK,
            missed=counts(rows),
            stopped=zeros(rows),
            z_pres=zeros(rows, 1),
            z_where=zeros(rows, 4),
            bias=zeros(rows, 4),
            z_depth=zeros(rows, 1),
            z_what=zeros(rows, config.z_what),
            velocity=zeros(rows, 2),
            newborn=torch.zeros(batch, rows, dtype=torch.bool, device=device),
            tracker=zeros(rows, table.tracker),
            prior=zeros(rows, 2, table.prior),
            memory=zeros(2 * layers, channels, *config.grid),
            z_bg=zeros(config.z_bg),
            prior_bg=zeros(32),
            fresh=torch.ones(batch, dtype=torch.bool, device=device),
            next_id=counts(),
            overflow=counts(),
        )

    @property
    def alive(self) -> Tensor:
        """(B, K) bool: which rows are taken."""
        return self.track_id != NO_TRACK

    @property
    def ahead(self) -> Tensor:
        """(B, K, 4) z_where of who goes on as it went."""
        centre = (self.z_where[..., 2:] + self.velocity).clamp(-1.05, 1.05)
        return torch.cat([self.z_where[..., :2], centre], dim=-1)

    def __len__(self) -> int:
        return len(self.next_id)

    def __getitem__(self, index: slice) -> ScalorState:
        """Select environments."""
        return self.map(lambda field: field[index])

    def map(self, change: Callable[[Tensor], Tensor]) -> ScalorState:
        """Apply one function to every field."""
        return ScalorState(**{f.name: change(getattr(self, f.name)) for f in fields(self)})

    def without_history(self) -> ScalorState:
        """Cut the gradients' way into the past, but for the map's memory and the background."""
        cut = self.map(Tensor.detach)
        return replace(cut, memory=self.memory, z_bg=self.z_bg, prior_bg=self.prior_bg)

    def freed(self, rows: Tensor) -> ScalorState:
        """Forget the objects of (B, K) bool `rows`."""
        return replace(
            self,
            track_id=torch.where(rows, NO_TRACK, self.track_id),
            z_pres=torch.where(rows[..., None], 0.0, self.z_pres),
        )

    def begun_anew(self, is_first: Tensor) -> ScalorState:
        """Drop the past of the environments where (B,) `is_first`; ids go on counting."""
        kept = {"next_id": self.next_id, "overflow": self.overflow}
        empty = self.map(torch.zeros_like)
        empty = replace(
            empty,
            track_id=torch.full_like(self.track_id, NO_TRACK),
            fresh=torch.ones_like(self.fresh),
            **kept,
        )

        def choose(name: str) -> Tensor:
            old, new = getattr(self, name), getattr(empty, name)
            return torch.where(is_first.view(-1, *[1] * (old.ndim - 1)), new, old)

        return ScalorState(**{f.name: choose(f.name) for f in fields(self)})

    def with_minds(self, tracker: Tensor, prior: Tensor, seats: Seats) -> ScalorState:
        """Keep the RNNs' states of who is followed; those of the newborn begin at zero."""
        old = (self.alive & ~seats.born)[..., None]
        return replace(
            self,
            tracker=torch.where(old, tracker, 0.0),
            prior=torch.where(old[..., None], prior, 0.0),
        )


@dataclass(frozen=True)
class Fate:
    """What became of who was followed.

    Attributes:
        missed: (B, K) int64. Frames since the object was last seen.
        stopped: (B, K) float32. Sum of 1 - z_pres over its life.
        stays: (B, K) bool. Who is followed on.
    """

    missed: Tensor
    stopped: Tensor
    stays: Tensor

    @property
    def unseen(self) -> Tensor:
        """(B, K) bool: who is not seen now."""
        return self.missed > 0

    def covering(self, z_pres: Tensor) -> Tensor:
        """Presence (B, K, 1) for the mask that proposals are held against.

        Who is out of sight for a moment still holds its place, or it would come back as another.
        """
        return torch.where((self.unseen & self.stays)[..., None], 1.0, z_pres)


@dataclass(frozen=True)
class Seats:
    """Who was born where.

    Attributes:
        source: (B, K) int64. The proposal that a row's object was born from; -1 for none.
        number: (B, K) int64. Number of the birth within its frame, by falling score.
        overflow: (B,) int64. How many found no seat.
    """

    source: Tensor
    number: Tensor
    overflow: Tensor

    @property
    def born(self) -> Tensor:
        """(B, K) bool."""
        return self.source >= 0

    def take(self, proposed: Tensor, otherwise: Tensor) -> Tensor:
        """Bring (B, M, ·) proposals into the rows of the newborn; other rows keep `otherwise`."""
        index = self.source.clamp(min=0).view(*self.source.shape, *[1] * (proposed.ndim - 2))
        picked = proposed.gather(1, index.expand(-1, -1, *proposed.shape[2:]))
        born = self.born.view(*self.born.shape, *[1] * (otherwise.ndim - 2))
        return torch.where(born, picked, otherwise)


def seat(new: Tensor, score: Tensor, taken: Tensor) -> Seats:
    """Seat the proposals that are `new` (B, M) bool in the rows that are not `taken` (B, K) bool.

    Args:
        new: which proposals are to be born.
        score: (B, M), the highest first where there are not enough seats.
        taken: which rows are.
    """
    rows, proposals = taken.shape[1], new.shape[1]
    guests = score.masked_fill(~new, -torch.inf).argsort(dim=1, descending=True, stable=True)
    seats = taken.to(torch.uint8).argsort(dim=1, stable=True)
    coming, room = new.sum(1), (~taken).sum(1)
    order = torch.arange(rows, device=new.device).expand_as(seats)
    seated = order < torch.minimum(coming, room)[:, None]
    guest = guests.gather(1, order.clamp(max=proposals - 1))
    none = torch.full_like(seats, -1)
    return Seats(
        source=none.scatter(1, seats, torch.where(seated, guest, -1)),
        number=torch.zeros_like(seats).scatter(1, seats, order),
        overflow=(coming - room).clamp(min=0),
    )
