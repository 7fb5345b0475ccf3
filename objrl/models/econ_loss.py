"""ECON's loss: the terms of eq. 13, and two of ours about what codes are.

Letters: B batch, T steps, K experts, L size of a code, H W canvas, n times that a part is hidden.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from objrl.models.econ import Econ, EconOutput
from objrl.nn.distributions import Gaussian, gaussian_kl

_HIDDEN = 4
"""How often each part is hidden: the encoder is cheap beside the rest of a step."""


def econ_terms(output: EconOutput, sigma: float) -> dict[str, Tensor]:
    """Return the terms of eq. 13 as (B,) nats: the loss is nll + beta kl_what + gamma kl_mask.

    The Gaussians' constant, which eq. 10 leaves out, is in nll.
    """
    far, kl_what, kl_mask, _ = output.part.cost.sum(1).unbind(1)
    numbers = output.part.mean[0, 0].numel()
    constant = numbers * (0.5 * math.log(2 * math.pi) + math.log(sigma))
    return {"nll": far + constant, "kl_what": kl_what, "kl_mask": kl_mask}


def code_gap(output: EconOutput) -> Tensor:
    """Return () nats by which the codes of a batch are not spread as the prior is, of all experts.

    Of each expert's codes together: KL(N(m, S) || N(0, I)), m their mean and S their covariance
    with what each is uncertain about. The KL of eq. 11 has it too, but so weakly that codes fill a
    part of the prior alone, and samples of the rest are of nothing that was ever seen (the
    aggregate posterior of Makhzani et al. 2016, arXiv 1511.05644; its Gaussian is ours).
    """
    code, gap = output.part.code, output.scope.new_zeros(())
    size = code.mean.shape[-1]
    for expert in range(int(output.winner.max()) + 1):
        mine = output.winner == expert
        if mine.sum() > size:  # fewer have no covariance of their own
            mean, std = code.mean[mine], code.std[mine]
            away = mean - mean.mean(0)
            # No matrix product: that would be taken in bfloat16 where a run is.
            spread = (away[:, :, None] * away[:, None]).mean(0) + std.square().mean(0).diag()
            far = mean.mean(0).square().sum()
            gap = gap + 0.5 * (spread.trace() + far - size - spread.logdet())
    return gap


def hidden_gap(model: Econ, image: Tensor, output: EconOutput) -> Tensor:
    """Return () nats a part: how much less is known of it where another is laid before it.

    Each part but the last is hidden by one of another image in the batch, not its last, that which
    comes nearest to hiding a share of it that is drawn from 0 to 1; and so again, `_HIDDEN` times.
    Of what is left to be seen its expert should guess the code that the whole part has. Ours:
    eq. 12 asks for nothing where others are in front, so that a guess which covers what is seen is
    as good as another. 0 for one image, which has no other beside it.

    Args:
        model: whose experts.
        image: (B, 3, H, W).
        output: what the model makes of it.
    """
    if len(image) < 2:
        return image.new_zeros(())
    part, winner = output.part, output.winner[:, :-1]
    whole = [code[:, :-1].detach() for code in (part.code.mean, part.code.std)]
    region = part.region[:, :-1].detach()
    other, step = _occluders(region)
    before = region[other, step]
    seen = region * (1 - before)
    shown = image[:, None] * (1 - before) + image[other] * before
    gap = image.new_zeros(())
    for number, expert in enumerate(model.known):
        mine = winner == number
        if mine.any():
            guess = expert.encode(shown[:, mine].flatten(0, 1), seen[:, mine].flatten(0, 1))
            mean, std = (code[mine].repeat(_HIDDEN, 1) for code in whole)
            gap = gap + gaussian_kl(Gaussian(mean, std), guess.mean, guess.std).sum()
    return gap / other.numel()


def _occluders(region: Tensor) -> tuple[Tensor, Tensor]:
    """(B, T, 1, H, W) -> (n, B, T) image and step of the part to lay before each, n times.

    Of several that hide as much the first. In bfloat16 the shares are rough, as they may be.
    """
    images, steps = region.shape[:2]
    flat = region.flatten(2).flatten(0, 1)
    hidden = flat @ flat.T / flat.sum(1, keepdim=True).clamp(min=1e-5)
    own = torch.arange(images, device=region.device).repeat_interleave(steps)
    hidden = hidden.masked_fill(own[:, None] == own, torch.inf)
    wanted = torch.rand(_HIDDEN, images * steps, 1, device=region.device)
    chosen = (hidden - wanted).abs().argmin(2).view(_HIDDEN, images, steps)
    return chosen // steps, chosen % steps
