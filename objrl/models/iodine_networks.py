"""The size of an IODINE, and its two networks (appendix B's tables).

What is done with them is in `iodine.py`.

Letters: B batch, K slots, D size of a slot's code, M units of the LSTM, H W canvas.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor, nn

from objrl.models.mixture import check_slots
from objrl.nn.broadcast import BroadcastConv

_PIXEL_INPUTS = 17
"""Channels of what the refinement network sees: the table of appendix B, colours counting three."""


@dataclass(frozen=True)
class IodineConfig:
    """The size of an IODINE, and what it holds an image against."""

    frame_size: tuple[int, int] = (64, 64)
    """Canvas (H, W) that frames are resized to."""
    slots: int = 6
    """K, the background among them; may be changed after training."""
    refinements: int = 5
    """T; may be changed after training."""
    z_what: int = 16
    """D, size of a slot's code."""
    decoder: tuple[int, ...] = (32, 32, 32, 32)
    """Channels of the decoder's convolutions, before the one that paints."""
    encoder: tuple[int, ...] = (32, 32, 32)
    """Channels of the refinement network's convolutions, each of which halves the map."""
    kernel: int = 5
    """Side of all of them; odd."""
    hidden: tuple[int, ...] = (128,)
    """Units of the layers after them."""
    memory: int = 128
    """Units of the LSTM; 0 for none, as for Tetris."""
    likelihood: Literal["mixture", "blend"] = "mixture"
    """Each pixel is one slot's (the paper, eq. 2), or all slots' (as in EfficientMORL's)."""
    sigma: float = 0.1
    """Standard deviation of a pixel; what is refined depends on it."""

    def __post_init__(self) -> None:
        check_slots(self.slots)
        for name, good, expected in (
            ("decoder", len(self.decoder) > 0, "a convolution or more"),
            ("kernel", self.kernel % 2 == 1, "an odd side"),
            ("refinements", self.refinements >= 1, "1 or more"),
            ("likelihood", self.likelihood in ("mixture", "blend"), "mixture or blend"),
        ):
            if not good:
                raise ValueError(f"{name}: expected {expected}, got {getattr(self, name)!r}")

    def with_slots(self, count: int) -> IodineConfig:
        """Return the same with another K, which training does not fix."""
        return replace(self, slots=count)


@dataclass(frozen=True)
class Guess:
    """What is believed of B images, and what the refinement network remembers.

    Attributes:
        raw: (B, K, 2 D) lambda, the posterior as its mean and what its deviation is softplus of.
        hidden: (B, K, M) of the LSTM; M is 0 where there is none.
        cell: (B, K, M) of the LSTM.
    """

    raw: Tensor
    hidden: Tensor
    cell: Tensor


class Decoder(nn.Module):
    """Spatial broadcast: z -> what a slot paints, and the logit of where it is seen (B.1)."""

    def __init__(self, config: IodineConfig) -> None:
        super().__init__()
        first, *others = config.decoder
        size, kernel = config.frame_size, config.kernel
        layers = [BroadcastConv(config.z_what, first, kernel, size), nn.ELU()]
        before = first
        for channels in others:
            layers += [nn.Conv2d(before, channels, kernel, padding="same"), nn.ELU()]
            before = channels
        self.layers = nn.Sequential(*layers, nn.Conv2d(before, 4, config.kernel, padding="same"))

    def forward(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """(B, K, D) -> (B, K, 3, H, W) in [0, 1] and (B, K, 1, H, W) logarithms of masks."""
        drawn = self.layers(z.flatten(0, 1)).float().unflatten(0, z.shape[:2])
        return torch.sigmoid(drawn[:, :, :3]), torch.log_softmax(drawn[:, :, 3:], dim=1)


class Refinement(nn.Module):
    """Sees what is wrong with each slot, and says by how much its posterior should change."""

    def __init__(self, config: IodineConfig) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        before = _PIXEL_INPUTS
        for channels in config.encoder:
            layers += [
                nn.Conv2d(before, channels, config.kernel, 2, config.kernel // 2),
                nn.ELU(),
            ]
            before = channels
        self.convolutions = nn.Sequential(*layers)
        layers = []
        for units in config.hidden:
            layers += [nn.Linear(before, units), nn.ELU()]
            before = units
        self.layers = nn.Sequential(*layers)
        before += 4 * config.z_what
        self.memory = nn.LSTMCell(before, config.memory) if config.memory else None
        self.update = nn.Linear(config.memory or before, 2 * config.z_what)

    def forward(self, guess: Guess, seen: Tensor, slope: Tensor) -> Guess:
        """Guess anew.

        Args:
            guess: what was believed.
            seen: (B, K, 17, H, W).
            slope: (B, K, 2 D) gradient of the posterior.
        """
        shape = seen.shape[:2]
        felt = self.layers(self.convolutions(seen.flatten(0, 1)).mean((2, 3)))
        felt = torch.cat([felt, guess.raw.flatten(0, 1), slope.flatten(0, 1)], dim=1)
        hidden, cell = guess.hidden, guess.cell
        if self.memory is not None:
            h, c = self.memory(felt, (hidden.flatten(0, 1), cell.flatten(0, 1)))
            felt, hidden, cell = h, h.unflatten(0, shape), c.unflatten(0, shape)
        return Guess(guess.raw + self.update(felt).unflatten(0, shape), hidden, cell)
