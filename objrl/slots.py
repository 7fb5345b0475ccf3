"""The set of objects that a perceiver sees in a frame.

Letters, here and everywhere: B batch (or envs), T time, H W pixels, G grid cells a side,
K slots, D features of `what`, C channels.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields
from operator import index as as_int
from typing import SupportsIndex

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

NO_TRACK = -1
"""The `track_id` of a row that holds no object."""

_WIDTHS = {"position": 2, "velocity": 2, "scale": 2, "depth": 1, "presence": 1, "track_id": 1}


@dataclass(frozen=True, kw_only=True)
class Slots:
    """K object slots for each of B frames; a row without an object is 0 in every field.

    Attributes:
        position: (B, K, 2) float32. Centre (x, y), each in [-1, 1], x right, y down.
        velocity: (B, K, 2) float32. Smoothed displacement of the centre a step, in units of
            `position`; 0 where an object is seen for the first time, or not followed.
        scale: (B, K, 2) float32. (width, height) as a fraction of the frame, in (0, 1].
        depth: (B, K, 1) float32. Larger is nearer.
        what: (B, K, D) float32. Appearance latent (posterior mean).
        presence: (B, K, 1) float32. Probability in [0, 1].
        track_id: (B, K, 1) int64. Identity, kept as long as the object is followed; -1 for none.
    """

    position: Tensor
    velocity: Tensor
    scale: Tensor
    depth: Tensor
    what: Tensor
    presence: Tensor
    track_id: Tensor

    def __post_init__(self) -> None:
        batch, rows = self.presence.shape[:2]
        for name, width in _WIDTHS.items():
            found = tuple(getattr(self, name).shape)
            if found != (batch, rows, width):
                raise ValueError(
                    f"Slots.{name}: expected shape {(batch, rows, width)}, got {found}"
                )
        if self.what.ndim != 3 or tuple(self.what.shape[:2]) != (batch, rows):
            found = tuple(self.what.shape)
            raise ValueError(f"Slots.what: expected shape ({batch}, {rows}, D), got {found}")

    @classmethod
    def empty(
        cls, batch: int, rows: int, features: int, device: torch.device | str = "cpu"
    ) -> Slots:
        """Return B x K slots that hold no object."""

        def zeros(width: int) -> Tensor:
            return torch.zeros(batch, rows, width, device=device)

        ids = torch.full((batch, rows, 1), NO_TRACK, dtype=torch.int64, device=device)
        return cls(
            position=zeros(2),
            velocity=zeros(2),
            scale=zeros(2),
            depth=zeros(1),
            what=zeros(features),
            presence=zeros(1),
            track_id=ids,
        )

    @property
    def mask(self) -> Tensor:
        """(B, K) bool: which rows hold an object."""
        return self.presence[..., 0] > 0

    def boxes(self, height: int, width: int) -> Tensor:
        """Return (B, K, 4) float32 x0 y0 x1 y1 in pixels, clipped to the frame; empty rows 0."""
        size = torch.tensor([width, height], dtype=torch.float32, device=self.position.device)
        centre = (self.position + 1) / 2 * size
        half = self.scale * size / 2
        low = torch.minimum((centre - half).clamp(min=0), size)
        high = torch.minimum((centre + half).clamp(min=0), size)
        return torch.cat([low, high], dim=-1) * self.mask[..., None]

    def map(self, change: Callable[[Tensor], Tensor]) -> Slots:
        """Apply one function to every field, e.g. `slots.map(lambda field: field[:1])`."""
        return Slots(**{field.name: change(getattr(self, field.name)) for field in fields(self)})

    def to(self, device: torch.device | str) -> Slots:
        """Move every field to a device."""
        return self.map(lambda field: field.to(device))

    def __getitem__(self, index: SupportsIndex | slice) -> Slots:
        """Select frames; the batch dimension stays, also for an int.

        Raises:
            IndexError: an int beyond the frames; without it, a loop over slots would not end.
        """
        if isinstance(index, slice):
            return self.map(lambda field: field[index])
        at = as_int(index)
        if not -len(self) <= at < len(self):
            raise IndexError(f"Slots: expected an index below {len(self)} frames, got {at}")
        return self.map(lambda field: field[at % len(self)][None])

    def __len__(self) -> int:
        return self.presence.shape[0]

    def numpy(self) -> dict[str, npt.NDArray[np.float32 | np.int64]]:
        """Return the fields as arrays on the host, by name."""
        return {f.name: getattr(self, f.name).detach().cpu().numpy() for f in fields(self)}
