"""SPACE's objective, term by term: eq. 6 as appendix B writes it out, and what is added to it.

Every function is pure and returns (B,) nats, unreduced, unless it says otherwise.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from objrl.models.space import SpaceOutput
from objrl.nn.distributions import bernoulli_kl, gaussian_kl, gaussian_log_prob, take
from objrl.nn.spatial import place

_EPS = 1e-5


@dataclass(frozen=True)
class Priors:
    """The values of one step: the tables of D.2 after annealing.

    Attributes:
        presence: rho, prior probability of z_pres.
        scale_mean: prior mean of z_scale before its sigmoid, width and height.
        scale_std: its standard deviation.
        sigma_fg: standard deviation of the foreground's pixels.
        sigma_bg: that of the background's.
        fixed_alpha: alpha in the likelihood while it is held fixed, else None.
        mixture: eq. 1 mixes pixels; the authors' code mixes every channel of a pixel by itself.
        gate: whether z_pres gates the KL of the other latents (appendix B) or not (authors' code).
    """

    presence: float
    scale_mean: tuple[float, float]
    scale_std: float
    sigma_fg: float
    sigma_bg: float
    fixed_alpha: float | None = None
    mixture: Literal["pixel", "channel"] = "pixel"
    gate: bool = True


def elbo_terms(output: SpaceOutput, image: Tensor, priors: Priors) -> dict[str, Tensor]:
    """Return the negative ELBO (eq. 6) as named (B,) terms whose sum it is."""
    return {
        "nll": -log_likelihood(output, image, priors),
        **foreground_kl(output, priors),
        "kl_bg_mask": output.background.kl_mask,
        "kl_bg_component": output.background.kl_component,
    }


def log_likelihood(output: SpaceOutput, image: Tensor, priors: Priors) -> Tensor:
    """Return log p(x | z_fg, z_bg), eq. 1 with Gaussians, summed over pixels.

    mu_fg is Algorithm 1's: it holds alpha already, and is used as the mean as it is.
    """
    alpha = output.foreground.alpha
    if priors.fixed_alpha is not None:
        alpha = torch.full_like(alpha, priors.fixed_alpha)
    fg = gaussian_log_prob(image, output.foreground.mean, priors.sigma_fg)
    bg = gaussian_log_prob(image[:, None], output.background.mean, priors.sigma_bg)
    mask = output.background.mask
    if priors.mixture == "pixel":
        fg, bg = fg.sum(1, keepdim=True), bg.sum(2, keepdim=True)
    bg = torch.logsumexp(bg + (mask + _EPS).log(), dim=1) if mask.shape[1] > 1 else bg[:, 0]
    both = torch.logaddexp(fg + (alpha + _EPS).log(), bg + (1 - alpha + _EPS).log())
    return both.flatten(1).sum(1)


def foreground_kl(output: SpaceOutput, priors: Priors) -> dict[str, Tensor]:
    """Return KL(q(z_fg | x) || p(z_fg)) by latent: appendix B.

    z_what is charged for the glimpsed cells alone, for the others have none: where not all are,
    the sum of the terms is the ELBO of the scene that was drawn.
    """
    cells = output.cells
    gate = output.z_pres if priors.gate else torch.ones_like(output.z_pres)
    mean = torch.tensor(priors.scale_mean, device=gate.device, dtype=gate.dtype)
    terms = {
        "kl_pres": bernoulli_kl(cells.logit, priors.presence),
        "kl_scale": gate * gaussian_kl(cells.scale, mean, priors.scale_std),
        "kl_shift": gate * gaussian_kl(cells.shift, 0.0, 1.0),
        "kl_depth": gate * gaussian_kl(cells.depth, 0.0, 1.0),
        "kl_what": take(gate, output.index) * gaussian_kl(output.what, 0.0, 1.0),
    }
    return {name: term.flatten(1).sum(1) for name, term in terms.items()}


def boundary_loss(output: SpaceOutput, canvas: tuple[int, int], border: int = 6) -> Tensor:
    """Penalise masks that reach the border of their glimpse: section 2.2 and appendix C.

    A kernel that is 1 on the glimpse's border and 0 inside is put where the object is, and
    multiplied with the scene's alpha; the paper minimises the mean of that map. The authors' code
    has a log-density of it instead, which weighs about a hundred times as much at our weight.
    `border` is the paper's 6 pixels of a 32-pixel glimpse. The paper's text calls the weights
    negative "inside the boundary"; read as weights of the border, its "penalize" holds.
    """
    z_pres, where = (take(field, output.index) for field in (output.z_pres, output.z_where))
    g = output.mask.shape[-1]
    edge = max(1, round(border * g / 32))
    kernel = F.pad(
        torch.zeros(g - 2 * edge, g - 2 * edge, device=where.device), [edge] * 4, value=1
    )
    kernels = kernel * z_pres[..., None, None]
    origin = torch.zeros_like(where[..., :2], dtype=torch.int64)
    overlap = place(kernels, where, origin, canvas, canvas).sum(1)
    return (overlap * output.foreground.alpha).flatten(1).mean(1)


@dataclass(frozen=True)
class Evidence:
    """What the no-learning baseline found, by cell: a free and weak teacher.

    Attributes:
        presence: (B, N, 1) 1 where a blob's centre lies in the cell.
        weight: (B, N, 1) how much that counts: more within a blob that another cell has, for
            there an object would be split in two.
        z_where: (B, N, 4) that blob, in z_where's units, zero elsewhere.
        alpha: (B, 1, H, W) 1 where the frame differs from the static background.
    """

    presence: Tensor
    weight: Tensor
    z_where: Tensor
    alpha: Tensor


def evidence_terms(output: SpaceOutput, evidence: Evidence) -> dict[str, Tensor]:
    """Return how far presence and boxes are from the blobs; no nats, weighed by the preset."""
    on = evidence.presence
    pull = F.binary_cross_entropy_with_logits(
        output.cells.logit, on, evidence.weight, reduction="none"
    )
    # Sizes as ratios and centres in units of the size: a pixel means more to a small thing.
    goal = evidence.z_where[..., :2].clamp(min=1e-3)
    size = (output.z_where[..., :2] / goal).clamp(min=1e-6).log()
    centre = (output.z_where[..., 2:] - evidence.z_where[..., 2:]) / (goal + 0.02)
    off = F.smooth_l1_loss(
        torch.cat([size, centre], dim=-1),
        torch.zeros_like(output.z_where),
        beta=0.2,
        reduction="none",
    )
    return {
        "evidence_pres": pull.flatten(1).sum(1),
        "evidence_where": (on * off).flatten(1).sum(1),
    }


def alpha_evidence(alpha: Tensor, found: Tensor) -> Tensor:
    """Return the cross-entropy between alpha and what differs from the background, (B,).

    Args:
        alpha: (B, 1, H, W) in [0, 1].
        found: (B, 1, H, W) in [0, 1].
    """
    alpha = alpha.clamp(_EPS, 1 - _EPS)
    # Written out, for autocast forbids F.binary_cross_entropy.
    entropy = -(found * alpha.log() + (1 - found) * (1 - alpha).log())
    return entropy.flatten(1).sum(1)
