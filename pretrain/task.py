"""What a model brings to the training loop."""

from __future__ import annotations

from typing import Any, Protocol

import torch
from torch import Tensor, nn

from objrl.models.regions import Image
from objrl.perceiver import Perceiver
from objrl.pretrain.presets import Recipe


class Batch(Protocol):
    """What goes to the device each step: a named tuple of tensors."""

    def to(self, device: torch.device) -> Any:
        """Move to a device."""
        ...


class Task(Protocol):
    """A model, its loss and its batches; an `nn.Module` whose `forward` is the loss."""

    model_name: str
    length: int
    """Frames of an item: 1 for models that see one at a time, else those of a sequence."""

    @property
    def model(self) -> nn.Module:
        """Return what is trained."""
        ...

    @property
    def recipe(self) -> Recipe:
        """Return how it is trained."""
        ...

    def perceiver(self) -> Perceiver:
        """Return the model as an agent has it."""
        ...

    def optimizers(self) -> list[torch.optim.Optimizer]:
        """Return those of the model's parts."""
        ...

    def prepare(self, frames: Image) -> Any:
        """Turn (B, H, W, 3) uint8 frames, or (B, T, H, W, 3), into a batch, on the host."""
        ...

    def __call__(self, batch: Any, at: float) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the loss, and its terms by name as means over the batch."""
        ...
