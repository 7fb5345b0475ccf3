"""Densities and divergences, elementwise and unreduced, for reparameterised latents."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

_LOG_2PI = math.log(2 * math.pi)


@dataclass(frozen=True)
class Gaussian:
    """A diagonal Gaussian: mean and standard deviation of one shape."""

    mean: Tensor
    std: Tensor

    @classmethod
    def from_raw(cls, raw: Tensor, dim: int = -1, floor: float = 1e-4) -> Gaussian:
        """Split a network's output in two: mean and softplus standard deviation (SPACE, D.3).

        The floor is ours: without it a softplus may underflow to 0 and the KL to infinity. At
        least float32, also where a network computes in bfloat16.
        """
        mean, std = _full(raw).chunk(2, dim=dim)
        return cls(mean, F.softplus(std) + floor)

    def sample(self) -> Tensor:
        """Draw a value through which gradients flow."""
        return self.mean + self.std * torch.randn_like(self.mean)

    def mode(self) -> Tensor:
        """Return the likeliest value, which is the mean."""
        return self.mean


def _full(value: Tensor) -> Tensor:
    """At least float32: noise and logarithms need more digits than bfloat16 has."""
    return value.to(torch.promote_types(value.dtype, torch.float32))


def take(field: Tensor, index: Tensor) -> Tensor:
    """Pick rows of dim 1: (B, N, D) by (B, K) -> (B, K, D)."""
    return field.gather(1, index[..., None].expand(-1, -1, field.shape[-1]))


def gaussian_log_prob(value: Tensor, mean: Tensor, std: float | Tensor) -> Tensor:
    """Return log N(value; mean, std²)."""
    log_std = std.log() if isinstance(std, Tensor) else math.log(std)
    return -0.5 * (((value - mean) / std) ** 2 + _LOG_2PI) - log_std


def gaussian_kl(q: Gaussian, mean: float | Tensor, std: float | Tensor) -> Tensor:
    """Return KL(q || N(mean, std²))."""
    ratio = (q.std / std) ** 2
    return 0.5 * (ratio + ((q.mean - mean) / std) ** 2 - 1 - ratio.log())


def bernoulli_kl(logit: Tensor, prior: float) -> Tensor:
    """Return KL(Bernoulli(sigmoid(logit)) || Bernoulli(prior)), finite for a prior of 1e-10 too."""
    logit = _full(logit)
    p = torch.sigmoid(logit)
    on = F.logsigmoid(logit) - math.log(prior)
    off = F.logsigmoid(-logit) - math.log1p(-prior)
    return p * on + (1 - p) * off


def relaxed_bernoulli(logit: Tensor, temperature: float) -> Tensor:
    """Draw from the binary concrete distribution (Maddison et al. 2017; SPACE, appendix B)."""
    logit = _full(logit)
    uniform = torch.rand_like(logit).clamp(1e-6, 1 - 1e-6)
    return torch.sigmoid((logit + torch.logit(uniform)) / temperature)
