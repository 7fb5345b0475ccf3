"""What every model gives an agent, whatever the paper: frames in, slots out.

A model that looks at one frame at a time is a `Detector`; `FramePerceiver` lends it a memory
(the tracker) and so makes it a `Perceiver`. A recurrent model (SCALOR) is a `Perceiver` itself.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import chain
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from objrl import tracking
from objrl.frames import check_frames
from objrl.slots import Slots


@runtime_checkable
class Perceiver(Protocol):
    """Online perception of B environments at once; see `FramePerceiver` for the words."""

    max_slots: int
    what_size: int

    @property
    def device(self) -> torch.device:
        """Where it computes; frames from elsewhere are moved there."""
        ...

    def initial_state(self, batch: int) -> Any:
        """Return the state of B environments that have seen nothing."""
        ...

    def step(self, frames: Tensor, state: Any, is_first: Tensor) -> tuple[Slots, Any]:
        """See the next frame of every environment."""
        ...

    def encode(self, frames: Tensor) -> Slots:
        """See frames that have no past."""
        ...

    def segment(self, frames: Tensor) -> Tensor:
        """Return whose pixel is whose."""
        ...


@dataclass(frozen=True)
class Decomposition:
    """A frame taken apart, for pictures; every field (B, ·, h, w) float32 in [0, 1].

    h and w are the model's own canvas, which need not be the frame's size.

    Attributes:
        image: (B, 3, h, w) what the model was shown.
        reconstruction: (B, 3, h, w) what it makes of it.
        foreground: (B, 3, h, w) the objects on black.
        background: (B, 3, h, w) the rest.
        alpha: (B, 1, h, w) where the objects are.
    """

    image: Tensor
    reconstruction: Tensor
    foreground: Tensor
    background: Tensor
    alpha: Tensor


class Detector(Protocol):
    """A model that sees one frame at a time and follows nothing."""

    max_slots: int
    what_size: int

    def detect(self, frames: Tensor) -> Slots:
        """Return slots that are not followed, by falling presence: ids are -1, velocities 0."""
        ...

    def segment(self, frames: Tensor) -> Tensor:
        """Return (B, K+1, H, W) masks in the order of `detect`'s rows, the background last."""
        ...

    def decompose(self, frames: Tensor) -> Decomposition:
        """Return the parts that a picture shows."""
        ...


class FramePerceiver(nn.Module):
    """A detector with a tracker: the `Perceiver` of every model without a memory of its own.

    Attributes:
        detector: the model (SPACE, median, …), an `nn.Module` that is also a `Detector`.
        max_slots: K.
        what_size: D.
    """

    def __init__(self, detector: nn.Module, follow: tracking.TrackerConfig | None = None) -> None:
        super().__init__()
        self.detector: Any = detector
        sizes: Any = detector  # nn.Module's attributes have no type of their own
        self.max_slots: int = sizes.max_slots
        self.what_size: int = sizes.what_size
        self.follow = follow or tracking.TrackerConfig()
        self.eval()

    @property
    def device(self) -> torch.device:
        """Where it computes; frames from elsewhere are moved there."""
        tensors = chain(self.detector.parameters(), self.detector.buffers())
        return next((tensor.device for tensor in tensors), torch.device("cpu"))

    def initial_state(self, batch: int) -> tracking.TrackerState:
        """Return the state of `batch` environments that have seen nothing."""
        return tracking.initial_state(batch, self.max_slots, self.what_size, self.device)

    @torch.no_grad()  # not inference_mode: its tensors could not enter a policy that learns
    def step(
        self, frames: Tensor, state: tracking.TrackerState, is_first: Tensor
    ) -> tuple[Slots, tracking.TrackerState]:
        """See the next frame of every environment; pure, and env b depends on env b alone.

        Args:
            frames: (B, H, W, 3) uint8 RGB, any H and W.
            state: what `initial_state` or the last `step` returned.
            is_first: (B,) bool. Environments whose frame begins an episode: their past is dropped.

        Returns:
            The slots, rows kept per followed object, and the next state.

        Raises:
            TypeError, ValueError: frames as `check_frames` says, or a state or `is_first` that do
                not belong to as many environments.
        """
        check_step(frames, len(state), is_first)
        found = self.detector.detect(frames.to(self.device))
        return tracking.follow(found, state, is_first.to(self.device), self.follow)

    @torch.no_grad()
    def encode(self, frames: Tensor) -> Slots:
        """See (B, H, W, 3) uint8 RGB frames without a past: `step` from a fresh state."""
        return tracking.number(self.detector.detect(check_frames(frames).to(self.device)))

    @torch.no_grad()
    def segment(self, frames: Tensor) -> Tensor:
        """Return (B, K+1, H, W) float32 masks that sum to one over dim 1.

        Mask k belongs to row k of `encode(frames)`; the last one is the background.
        """
        masks: Tensor = self.detector.segment(check_frames(frames).to(self.device))
        return masks


def model_of(perceiver: Perceiver) -> Any:
    """Return the model beneath: a `FramePerceiver`'s detector, or what is a perceiver by itself."""
    return perceiver.detector if isinstance(perceiver, FramePerceiver) else perceiver


def check_step(frames: Tensor, environments: int, is_first: Tensor) -> None:
    """Raise what `Perceiver.step` does for arguments that do not belong together.

    Args:
        frames: (B, H, W, 3) uint8 RGB.
        environments: of the state.
        is_first: (B,) bool.

    Raises:
        TypeError, ValueError: frames as `check_frames` says, or a state or `is_first` that do not
            belong to as many environments.
    """
    batch = len(check_frames(frames))
    if environments != batch:
        raise ValueError(
            f"state: expected one of {batch} environments, as many as frames, got "
            f"{environments}; begin with initial_state({batch})"
        )
    if tuple(is_first.shape) != (batch,) or is_first.dtype != torch.bool:
        raise ValueError(
            f"is_first: expected shape ({batch},) bool, one for every frame, got "
            f"{tuple(is_first.shape)} {is_first.dtype}"
        )
