"""SCALOR's objective, eq. 9, term by term, and what a teacher adds to it.

Every function is pure and returns (B,) nats of one frame, unreduced, unless it says otherwise.

Letters: B environments, K followed objects, M proposals, N cells, J pieces that a teacher shows.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from objrl.models.boxes import apart
from objrl.models.scalor_latents import Beliefs, Look, ScalorFrame
from objrl.models.scalor_state import Seats
from objrl.nn.distributions import bernoulli_kl, gaussian_kl, gaussian_log_prob, take
from objrl.nn.spatial import axis


@dataclass(frozen=True)
class ScalorPriors:
    """The values of one training step.

    Attributes:
        presence: prior probability of a proposal's z_pres.
        sigma: standard deviation of a pixel.
    """

    presence: float
    sigma: float


def elbo_terms(frame: ScalorFrame, image: Tensor, priors: ScalorPriors) -> dict[str, Tensor]:
    """Return one frame's negative ELBO (eq. 9) as named (B,) terms whose sum it is."""
    nll = -gaussian_log_prob(image, frame.reconstruction, priors.sigma)
    terms = {"nll": nll.flatten(1).sum(1)}
    terms |= propagation_kl(frame)
    terms |= discovery_kl(frame, priors)
    assert frame.kl_bg is not None
    return terms | {"kl_bg": frame.kl_bg}


def propagation_kl(frame: ScalorFrame) -> dict[str, Tensor]:
    """Return KL(q(z^P | z_<t, x) || p(z^P | z_<t)) by latent; where is what z_where is made of."""
    assert frame.prior is not None
    here = frame.followed[..., None].float()
    gate = frame.propagated.z_pres
    q, p = frame.posterior, frame.prior
    return {
        "kl_prop_pres": (here * _bernoulli_kl(q.logit, p.logit)).flatten(1).sum(1),
        **{f"kl_prop_{name}": (gate * kl).flatten(1).sum(1) for name, kl in _gaussian_kls(q, p)},
    }


def discovery_kl(frame: ScalorFrame, priors: ScalorPriors) -> dict[str, Tensor]:
    """Return KL(q(z^D | z^P, x) || p(z^D)) by latent.

    All but z_pres are charged for the glimpsed cells alone, weighted by z_pres before the
    rejection, as the authors have it: who proposes what is followed already has paid for it.
    """
    found = frame.discovered
    gate = found.offered
    parts = {"where": found.where, "depth": found.depth, "what": found.what}
    return {
        "kl_disc_pres": bernoulli_kl(found.logit, priors.presence).flatten(1).sum(1),
        **{
            f"kl_disc_{name}": (gate * gaussian_kl(q, 0.0, 1.0)).flatten(1).sum(1)
            for name, q in parts.items()
        },
    }


def _gaussian_kls(q: Beliefs, p: Beliefs) -> list[tuple[str, Tensor]]:
    pairs = (("where", q.where, p.where), ("depth", q.depth, p.depth), ("what", q.what, p.what))
    return [(name, gaussian_kl(a, b.mean, b.std)) for name, a, b in pairs]


def _bernoulli_kl(q: Tensor, p: Tensor) -> Tensor:
    """KL between Bernoullis by their logits."""
    on, off = F.logsigmoid(q) - F.logsigmoid(p), F.logsigmoid(-q) - F.logsigmoid(-p)
    share = torch.sigmoid(q)
    return share * on + (1 - share) * off


@dataclass(frozen=True)
class Shown:
    """What a teacher shows in one frame: pieces without labels, followed without learning.

    Attributes:
        track: (B, J) int64. Which piece it is; -1 for none.
        z_where: (B, J, 4). Its box.
        cell: (B, J) int64. The cell that is to propose it; -1 for none.
        weight: (B, N, 1). How much it counts that a cell proposes nothing.
    """

    track: Tensor
    z_where: Tensor
    cell: Tensor
    weight: Tensor

    @property
    def visible(self) -> Tensor:
        """(B, J) bool: which pieces are to be proposed."""
        return (self.track >= 0) & (self.cell >= 0)


def pupils(frame: ScalorFrame, shown: Shown, pupil: Tensor) -> tuple[Tensor, Tensor]:
    """Say who is to follow which piece in a frame, and who goes on with which after it.

    A row that was born where a piece is shown is to follow it, until it has lost it: from afar it
    could only be taught to guess. One that follows nothing that is shown takes the piece that it
    is on.

    Args:
        frame: what was inferred.
        shown: by the teacher.
        pupil: (B, K) int64. The piece that each row followed up to here; -1 for none.

    Returns:
        Twice the like of `pupil`.
    """
    now = _rebound(frame, shown, pupil)
    lost = _follows(now, shown) & torch.isinf(_distance(frame, shown))
    after = _born(frame, shown, now.masked_fill(lost.any(2), -1))
    return now, torch.where(frame.kept, after, -1)


def taught(frame: ScalorFrame, shown: Shown, pupil: Tensor) -> dict[str, Tensor]:
    """Return how far a frame is from what a teacher shows: no nats, weighed by the preset.

    Every piece is to be proposed: those that somebody follows are rejected, and one that is lost
    is found again in the same frame. Who is on no piece is to be absent.

    Args:
        frame: what was inferred.
        shown: by the teacher.
        pupil: (B, K) int64. Who is to follow which piece in this frame, from `pupils`.
    """
    same = _follows(pupil, shown)
    there, which = same.any(2), same.to(torch.uint8).argmax(2)
    goal = take(shown.z_where, which)
    followed = frame.followed
    pres = F.binary_cross_entropy_with_logits(
        frame.posterior.logit, there[..., None].float(), reduction="none"
    )
    terms = {
        "taught_prop_pres": (pres * followed[..., None]).flatten(1).sum(1),
        "taught_prop_where": (_off(frame.propagated.z_where, goal) * (there & followed)[..., None])
        .flatten(1)
        .sum(1),
    }
    if frame.looks:
        nats = torch.stack([look_loss(look, goal) for look in frame.looks]).sum(0)
        terms["taught_prop_look"] = (nats * (there & followed)).sum(1)
    logit = frame.discovered.logit[..., 0]
    visible, column = shown.visible, torch.where(shown.visible, shown.cell, 0)
    wanted = torch.zeros_like(logit).scatter_add(1, column, visible.float()).clamp(max=1)
    weight = torch.where(wanted > 0, 1.0, shown.weight[..., 0])
    pull = F.binary_cross_entropy_with_logits(logit, wanted, weight, reduction="none")
    placed = take(frame.discovered.every_where, column)
    off = _off(placed, shown.z_where) * visible[..., None]
    return terms | {"taught_disc_pres": pull.sum(1), "taught_disc_where": off.flatten(1).sum(1)}


def _follows(pupil: Tensor, shown: Shown) -> Tensor:
    """(B, K, J) bool: which row follows which piece that is shown."""
    return (pupil[:, :, None] == shown.track[:, None]) & (pupil[:, :, None] >= 0)


def _distance(frame: ScalorFrame, shown: Shown) -> Tensor:
    """(B, K, J) how far rows are from the pieces that they are on; infinite for the others."""
    far = apart(shown.z_where, frame.propagated.z_where.detach()).mT
    return far.masked_fill((far >= 1) | (shown.track < 0)[:, None], torch.inf)


def _rebound(frame: ScalorFrame, shown: Shown, pupil: Tensor) -> Tensor:
    """Give rows that follow nothing shown the nearest piece that they are on.

    Also one that another row follows: both see the same, so both are to be taught the same. That
    they come to lie on each other is what ends one of them (`ScalorConfig.doubled`).
    """
    idle = frame.followed & ~_follows(pupil, shown).any(2)
    nearest, which = _distance(frame, shown).min(2)
    found = idle & torch.isfinite(nearest)
    return torch.where(found, shown.track.gather(1, which), pupil)


def _born(frame: ScalorFrame, shown: Shown, pupil: Tensor) -> Tensor:
    """Give the newborn the piece of their cell, whoever else follows it."""
    cells = frame.discovered.logit.shape[1]
    piece = torch.full((len(pupil), cells + 1), -1, dtype=torch.int64, device=pupil.device)
    piece = piece.scatter(1, torch.where(shown.visible, shown.cell, cells), shown.track)[:, :cells]
    seats: Seats = frame.seats
    born_from = frame.discovered.index.gather(1, seats.source.clamp(min=0))
    return torch.where(seats.born, piece.gather(1, born_from), pupil)


def look_loss(look: Look, goal: Tensor) -> Tensor:
    """(B, K) nats of the cells that goals (B, K, 4) are between; 0 where they are not in sight."""
    at = (goal[..., 2:] - look.centre.detach()) / look.reach
    n = look.logits.shape[-1]
    # Shared by the cells around it so that their mean place is the goal.
    near = (1 - (at[..., None] - axis(n, at)).abs() * n / 2).clamp(min=0)
    near = near / near.sum(-1, keepdim=True).clamp(min=1e-6)
    wanted = near[..., 1, :, None] * near[..., 0, None, :]
    nats = -(wanted.flatten(2) * look.logits.flatten(2).log_softmax(2)).sum(2)
    return nats * (at.abs() < 1).all(-1)


def _off(z_where: Tensor, goal: Tensor) -> Tensor:
    """How far boxes are off, sizes as ratios and centres in units of the size."""
    size = goal[..., :2].clamp(min=1e-3)
    ratio = (z_where[..., :2] / size).clamp(min=1e-6).log()
    centre = (z_where[..., 2:] - goal[..., 2:]) / (size + 0.02)
    off = torch.cat([ratio, centre], dim=-1)
    return F.smooth_l1_loss(off, torch.zeros_like(off), beta=0.2, reduction="none")
