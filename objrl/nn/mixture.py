"""Scenes as mixtures of K components: masks that share the pixels, and what an image is worth.

Letters: B batch, K components, C channels, H W pixels. Everything is in nats.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from objrl.nn.distributions import gaussian_log_prob

_LEAST = 1e-5
"""Below it a mask's share counts as this much, as in all public code of MONet and GENESIS."""


def stick_breaking(logit: Tensor, dim: int = 1) -> Tensor:
    """Return the logarithms of masks that sum to one over `dim`.

    Each takes the part sigmoid(logit) of what those before it have left, and the last what is left
    then, whatever its logit (MONet, eq. 2; GENESIS, eq. 5): m_k = s_{k-1} a_k, s_k = s_{k-1}
    (1 - a_k), s_0 = 1.
    """
    first = logit.narrow(dim, 0, logit.shape[dim] - 1)
    taken, left = F.logsigmoid(first), F.logsigmoid(-first).cumsum(dim)
    none = torch.zeros_like(logit.narrow(dim, 0, 1))
    return torch.cat([taken, none], dim) + torch.cat([none, left], dim)


def mixture_log_prob(image: Tensor, mean: Tensor, log_mask: Tensor, std: float | Tensor) -> Tensor:
    """Return log sum_k m_k N(x; mu_k, sigma_k²), a pixel's channels together: (B, 1, H, W).

    IODINE eq. 2, MONet eq. 3, R-MONet eq. 2: each pixel is one component's.

    Args:
        image: (B, C, H, W).
        mean: (B, K, C, H, W).
        log_mask: (B, K, 1, H, W), logarithms of masks that sum to one over K.
        std: of all, or (K, 1, 1, 1), one for each.
    """
    each = gaussian_log_prob(image[:, None], mean, std).sum(2, keepdim=True)
    return torch.logsumexp(each + log_mask, dim=1)


def blend_log_prob(image: Tensor, mean: Tensor, log_mask: Tensor, std: float) -> Tensor:
    """Return log N(x; sum_k m_k mu_k, sigma²): (B, 1, H, W); a pixel is all components'.

    The "deterministic" mixture: where components paint alike it does not ask them to share out
    pixels, and where they do not it has no trough between one's colour and the other's.

    Args:
        image: (B, C, H, W).
        mean: (B, K, C, H, W).
        log_mask: (B, K, 1, H, W).
        std: of all.
    """
    blend = (log_mask.exp() * mean).sum(1)
    return gaussian_log_prob(image, blend, std).sum(1, keepdim=True)


def mask_kl(log_q: Tensor, log_p: Tensor) -> Tensor:
    """Return KL(q || p) of who a pixel belongs to, summed over pixels: (B, K, 1, H, W) -> (B,)."""
    q, p = (log.exp().clamp(min=_LEAST) for log in (log_q, log_p))
    return (q * (q.log() - p.log())).flatten(1).sum(1)
