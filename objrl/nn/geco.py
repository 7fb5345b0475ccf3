"""GECO (Rezende and Viola 2018, arXiv 1810.00597): as good as asked for, then as simple."""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor, nn


class Geco(nn.Module):
    """Weighs a divergence so that an error comes down to a goal and stays there.

    The weight falls while the error, smoothed, is above the goal, and rises below it. As GENESIS's
    code has it, rising is ten times as fast.

    Attributes:
        weight: () of the divergence.
        smooth: () the smoothed error; NaN before the first.
    """

    weight: Tensor
    smooth: Tensor

    def __init__(
        self,
        goal: float,
        step: float,
        *,
        keep: float = 0.99,
        faster: float = 10.0,
        bounds: tuple[float, float] = (1e-10, 1e10),
    ) -> None:
        """Begin with weight 1.

        Args:
            goal: of the error, in its units.
            step: how much the logarithm of the weight changes for each unit beyond the goal.
            keep: of the smoothed error, from step to step.
            faster: how much faster the weight rises than it falls.
            bounds: least and greatest weight.
        """
        super().__init__()
        self.goal, self.step, self.keep, self.faster = goal, step, keep, faster
        self.bounds = bounds
        self.register_buffer("weight", torch.ones(()))
        self.register_buffer("smooth", torch.full((), torch.nan))

    def forward(self, error: Tensor, divergence: Tensor) -> Tensor:
        """Return error + weight * divergence; while training, adapt the weight afterwards.

        Args:
            error: () mean of a batch.
            divergence: () mean of a batch.
        """
        # A copy: the weight changes in place before the gradient is asked for.
        loss = error + self.weight.clone() * divergence
        if self.training:
            self._adapt(error.detach())
        return loss

    @torch.no_grad()
    def _adapt(self, error: Tensor) -> None:
        if dist.is_available() and dist.is_initialized():
            error = error.clone()  # all devices adapt alike
            dist.all_reduce(error)
            error /= dist.get_world_size()
        kept = self.keep * self.smooth + (1 - self.keep) * error
        self.smooth.copy_(torch.where(self.smooth.isnan(), error, kept))
        room = self.goal - self.smooth
        change = self.step * torch.where(room > 0, self.faster * room, room)
        self.weight.mul_(change.exp()).clamp_(*self.bounds)
