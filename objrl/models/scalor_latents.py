"""What SCALOR infers of a frame: latents of its two branches, and all that comes of them.

Letters: B environments, K followed objects, M proposals, N cells, D size of z_what, H W canvas.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from objrl.models.scalor_state import Seats
from objrl.nn.distributions import Gaussian
from objrl.nn.spatial import axis


@dataclass(frozen=True)
class Beliefs:
    """Distributions over the latents of objects: a posterior, or a prior.

    Attributes:
        logit: (B, ·, 1) of z_pres.
        where: (B, ·, 4) raw size and displacement, of which z_where is made.
        depth: (B, ·, 1) z_depth.
        what: (B, ·, D) z_what.
    """

    logit: Tensor
    where: Gaussian
    depth: Gaussian
    what: Gaussian


@dataclass(frozen=True)
class Objects:
    """Latents of objects, drawn or the likeliest ones, and what they look like.

    Attributes:
        z_pres: (B, ·, 1) in [0, 1].
        z_where: (B, ·, 4) width and height as a fraction of the canvas, centre x, y.
        bias: (B, ·, 4) what z_where was made of.
        z_depth: (B, ·, 1) larger is nearer.
        z_what: (B, ·, D).
        appearance: (B, ·, 3, g, g) in [0, 1].
        mask: (B, ·, 1, g, g) in [0, 1], without z_pres.
    """

    z_pres: Tensor
    z_where: Tensor
    bias: Tensor
    z_depth: Tensor
    z_what: Tensor
    appearance: Tensor
    mask: Tensor

    def joined(self, other: Objects) -> Objects:
        """Return both, one after the other."""
        names = self.__dataclass_fields__
        return Objects(
            **{n: torch.cat([getattr(self, n), getattr(other, n)], dim=1) for n in names}
        )


@dataclass(frozen=True)
class Proposals:
    """Algorithm 1's outcome.

    Attributes:
        logit: (B, N, 1) of every cell's z_pres.
        where: (B, M, 4) of the glimpsed cells.
        depth: (B, M, 1).
        what: (B, M, D).
        index: (B, M) int64. The cells that were glimpsed, by falling presence.
        offered: (B, M, 1) z_pres before the rejection.
        objects: (B, M, ·), z_pres 0 where rejected.
        rejected: (B, M) bool.
        every_where: (B, N, 4) z_where of every cell, for what is taught.
    """

    logit: Tensor
    where: Gaussian
    depth: Gaussian
    what: Gaussian
    index: Tensor
    offered: Tensor
    objects: Objects
    rejected: Tensor
    every_where: Tensor


@dataclass(frozen=True)
class Look:
    """Where propagation looked for the objects, and where it thinks that they are.

    Attributes:
        centre: (B, K, 2) x, y of a window, as in z_where.
        reach: (B, K, 2) half its width and height in the same units.
        logits: (B, K, n, n) of its cells, rows first: how much each looks like the object.
    """

    centre: Tensor
    reach: Tensor
    logits: Tensor

    @property
    def place(self) -> Tensor:
        """(B, K, 2) x, y: the mean place of what looks like the object."""
        n = self.logits.shape[-1]
        share = self.logits.flatten(2).softmax(2).view_as(self.logits)
        cells = axis(n, share)
        mean = torch.stack([(share.sum(2) * cells).sum(-1), (share.sum(3) * cells).sum(-1)], dim=-1)
        return self.centre + mean * self.reach


@dataclass(frozen=True)
class ScalorFrame:
    """Everything about one frame.

    Attributes:
        followed: (B, K) bool. Who was followed into this frame.
        kept: (B, K) bool. Who is followed after it, the newborn too.
        posterior: of those who were followed.
        prior: of the same, from their past alone; None where only tracking was asked for.
        propagated: their latents; z_pres 0 where nobody is.
        discovered: the proposals.
        seats: where the newborn sit.
        looks: where the followed were searched for; none with the paper's attention.
        differs: (B, 1, H, W) bool. What differs from the background; None where that is not known.
        background: (B, 3, H, W); like all below None where only tracking was asked for.
        kl_bg: (B,) nats, KL(q(z_bg | z_fg, x) || p(z_bg | z_<t)).
        foreground: (B, 3, H, W).
        alpha: (B, 1, H, W) in [0, 1].
    """

    followed: Tensor
    kept: Tensor
    posterior: Beliefs
    prior: Beliefs | None
    propagated: Objects
    discovered: Proposals
    seats: Seats
    looks: tuple[Look, ...] = ()
    differs: Tensor | None = None
    background: Tensor | None = None
    kl_bg: Tensor | None = None
    foreground: Tensor | None = None
    alpha: Tensor | None = None

    @property
    def reconstruction(self) -> Tensor:
        """(B, 3, H, W): Algorithm 3's last line."""
        assert self.foreground is not None
        assert self.alpha is not None
        assert self.background is not None
        return self.foreground + (1 - self.alpha) * self.background
