"""ECON: experts compete for the parts of a scene, front to back (von Kügelgen et al. 2020).

arXiv 2004.12906. A scene is layers of objects. Each of T steps explains the frontmost part of what
is left, by the one of K experts that does it best; so experts come to know a class of objects each,
and what is hidden behind others is filled in, for nothing is asked of it there. `Expert` is section
4, `forward` section 5, `layered` section 2; the loss is in `econ_loss.py`.

Letters: B batch, T steps, K experts, L size of a code, H W canvas. Steps are counted as inference
goes, from the front: the paper's t falls from T to 1.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from objrl.models.mixture import MixtureDetector, Scene, check_slots
from objrl.nn.broadcast import BroadcastConv
from objrl.nn.distributions import Gaussian, gaussian_kl
from objrl.nn.unet import UNet

_LEAST = 1e-5
"""Probabilities count as this much at least and as one less this much at most; ours."""

_MOST = 4.6
"""Logits of attention are between this and its negative, so that 1 in 100 of a pixel stays to learn
from; ours, after GENESIS-V2's."""


@dataclass(frozen=True)
class EconConfig:
    """The size of an ECON, and how its experts compete."""

    frame_size: tuple[int, int] = (32, 32)
    """Canvas (H, W) that frames are resized to; the paper names none."""
    experts: int = 4
    """K: classes of objects, and the background."""
    layers: int = 4
    """T: parts of a scene, the background among them; may be changed after training."""
    z_what: int = 2
    """L, size of a code."""
    attention: tuple[int, ...] = (32, 64, 64, 64)
    """Channels of the attention network's blocks (C.2.2)."""
    blocks: int = 4
    """Of encoder and decoder (C.2.1)."""
    features: int = 32
    """Channels of those."""
    hidden: int = 0
    """Units of the encoder's last layer but one; 0 for the paper's 4 L."""
    sigma: float = 0.1
    """Standard deviation of a pixel; the paper names none."""
    appearance: float = 1.0
    """lambda: how much colours count in the competition, beside shapes."""
    rest: float = 0.0
    """How much what an expert leaves counts in the competition, as far as it is from its own mean
    colour. In the paper it does not, so that who takes nothing is the cheapest."""
    entropy: float = 1.0
    """How much of a region's entropy L_r (eq. 12) has. 1 is the paper's KL, by which half of every
    pixel costs nothing; 0 the cross entropy, by which regions should be here or there."""
    taken: float = 0.5
    """About which share of what is left attention takes before it has learnt anything; between 0.01
    and 0.99."""

    def __post_init__(self) -> None:
        check_slots(self.layers)
        if self.experts < 1 or min(self.frame_size) >> self.blocks < 1:
            raise ValueError(
                f"expected 1 expert or more and at most {min(self.frame_size).bit_length() - 1} "
                f"blocks for a canvas of {self.frame_size}, got {self.experts} and {self.blocks}"
            )
        if not 0.01 <= self.taken <= 0.99:
            raise ValueError(f"taken: expected a share from 0.01 to 0.99, got {self.taken}")

    def with_slots(self, count: int) -> EconConfig:
        """Return the same with another T, which training does not fix."""
        return replace(self, layers=count)


@dataclass(frozen=True)
class Part:
    """What an expert makes of what is left of an image.

    Attributes:
        region: (B, 1, H, W) what it takes of it, r.
        code: (B, L) q(z | x, r).
        mean: (B, 3, H, W) what it paints, mu.
        shape: (B, 1, H, W) where it would be seen if nothing were before it, m.
        cost: (B, 4) nats of eqs. 10 to 12, L_x, L_z, L_r; and how far what it leaves is from its
            mean colour.
    """

    region: Tensor
    code: Gaussian
    mean: Tensor
    shape: Tensor
    cost: Tensor

    def map(self, change: Callable[[Tensor], Tensor]) -> Part:
        """Apply one function to every field."""
        code = Gaussian(change(self.code.mean), change(self.code.std))
        fields = (self.region, self.mean, self.shape, self.cost)
        region, mean, shape, cost = (change(field) for field in fields)
        return Part(region, code, mean, shape, cost)

    @staticmethod
    def join(parts: Sequence[Part], how: Callable[[list[Tensor]], Tensor]) -> Part:
        """Make one of several, field by field."""
        codes = [part.code for part in parts]
        return Part(
            how([part.region for part in parts]),
            Gaussian(how([code.mean for code in codes]), how([code.std for code in codes])),
            how([part.mean for part in parts]),
            how([part.shape for part in parts]),
            how([part.cost for part in parts]),
        )


@dataclass(frozen=True)
class EconOutput:
    """An image taken apart, the front first.

    Attributes:
        scope: (B, T, 1, H, W) what was left at each step, s.
        winner: (B, T) int64 which expert won.
        part: what it makes of it, with T after B in every field; its regions sum to one over T.
    """

    scope: Tensor
    winner: Tensor
    part: Part


class Econ(MixtureDetector):
    """The whole model; a `Detector` for `FramePerceiver`.

    An object's `what` is its code, and after it which expert knows it, one hot.
    """

    def __init__(self, config: EconConfig) -> None:
        super().__init__()
        self.config = config
        self.frame_size = config.frame_size
        self.max_slots, self.what_size = config.layers, config.z_what + config.experts
        self.experts = nn.ModuleList(Expert(config) for _ in range(config.experts))

    @property
    def known(self) -> list[Expert]:
        """The experts."""
        return [expert for expert in self.experts if isinstance(expert, Expert)]

    def forward(
        self,
        image: Tensor,
        temperature: float = 1.0,
        handicap: Tensor | None = None,
        flat: bool = False,
        sample: bool | None = None,
    ) -> EconOutput:
        """Take (B, 3, H, W) images apart.

        Args:
            image: in [0, 1].
            temperature: of the softmax of costs by which winners are drawn, in nats; the larger,
                the more chance decides.
            handicap: (K,) nats that experts are dearer where winners are drawn; those of infinity
                take no part, drawn or not. None for 0.
            flat: paint what is left for the last step in its mean colour, instead of by an expert;
                the winner there counts as the first.
            sample: draw codes and winners, or take means and the cheapest; None: as the module is
                in training.
        """
        drawn = self.training if sample is None else sample
        if handicap is None:
            handicap = image.new_zeros(self.config.experts)
        scope = torch.ones_like(image[:, :1])
        scopes, parts, winners = [], [], []
        for step in range(self.config.layers):
            last = step == self.config.layers - 1
            if last and flat:
                part, winner = self._flat(image, scope)
            elif drawn:
                part, winner = self._drawn(image, scope, last, temperature, handicap)
            else:
                part, winner = self._best(image, scope, last, handicap.isinf())
            scopes.append(scope)
            parts.append(part)
            winners.append(winner)
            scope = scope - part.region  # eq. 14: s (1 - a), for r = s a
        return EconOutput(
            torch.stack(scopes, 1), torch.stack(winners, 1), Part.join(parts, _side_by_side)
        )

    def _best(self, image: Tensor, scope: Tensor, last: bool, out: Tensor) -> tuple[Part, Tensor]:
        """Return the part of the cheapest expert but those that are out, and (B,) who that is."""
        parts = [expert(image, scope, last, False) for expert in self.experts]
        every = Part.join(parts, _side_by_side)
        winner = self._price(every.cost).masked_fill(out, torch.inf).argmin(1)
        row = torch.arange(len(image), device=image.device)
        return every.map(lambda field: field[row, winner]), winner

    def _drawn(
        self, image: Tensor, scope: Tensor, last: bool, temperature: float, handicap: Tensor
    ) -> tuple[Part, Tensor]:
        """Return the part of an expert drawn by its costs; only the winners get gradients."""
        with torch.no_grad():
            price = handicap.repeat(len(image), 1)
            for number in handicap.isfinite().nonzero()[:, 0].tolist():
                part: Part = self.experts[number](image, scope, last, True)
                price[:, number] += self._price(part.cost)
            winner = torch.multinomial(torch.softmax(-price / temperature, 1), 1)[:, 0]
        order, parts = [], []
        for number, expert in enumerate(self.experts):
            mine = (winner == number).nonzero()[:, 0]
            if len(mine):
                order.append(mine)
                parts.append(expert(image[mine], scope[mine], last, True))
        back = torch.cat(order).argsort()
        return Part.join(parts, torch.cat).map(lambda field: field[back]), winner

    def _flat(self, image: Tensor, scope: Tensor) -> tuple[Part, Tensor]:
        """Return what is left in its mean colour, which needs no code, and the first as (B,)."""
        mean = mean_colour(image, scope)
        code, shape = image.new_zeros(len(image), self.config.z_what), torch.ones_like(scope)
        far = colour_cost(image, scope, mean, self.config.sigma)
        nothing = torch.zeros_like(far)
        unsure = shape_cost(scope, scope, self.config.entropy)
        cost = torch.stack([far, nothing, unsure, nothing], 1)
        known = Gaussian(code, torch.ones_like(code))
        part = Part(scope, known, mean.expand_as(image), shape, cost)
        winner = torch.zeros(len(image), dtype=torch.int64, device=image.device)
        return part, winner

    def _price(self, cost: Tensor) -> Tensor:
        """(..., 4) -> (...) what decides the competition (section 5.2)."""
        seen = cost[..., 0] + self.config.rest * cost[..., 3]
        return self.config.appearance * seen + cost[..., 2]

    def explain(self, image: Tensor) -> Scene:
        """(B, 3, H, W) in [0, 1] -> what is likeliest, in training mode too."""
        out: EconOutput = self(image, sample=False)
        return self.scene(out)

    def scene(self, out: EconOutput) -> Scene:
        """Return an image taken apart as other scene mixtures have it, experts beside codes."""
        part = out.part
        every = torch.arange(self.config.experts, device=out.winner.device)
        known = (out.winner[..., None] == every).to(part.mean.dtype)
        mean = torch.cat([part.code.mean, known], -1)
        std = torch.cat([part.code.std, torch.zeros_like(known)], -1)
        return Scene(part.mean, part.region.clamp(min=1e-9).log(), Gaussian(mean, std))

    def paint(self, code: Tensor) -> Tensor:
        """(B, T, L + K) codes and who paints them, one hot -> (B, 3, H, W), the last behind all."""
        size = self.config.z_what
        mean, shape = self.paint_parts(code[..., size:].argmax(-1), code[..., :size])
        return layered(mean, torch.cat([shape[:, :-1], torch.ones_like(shape[:, -1:])], 1))

    def paint_parts(self, experts: Tensor, z: Tensor) -> tuple[Tensor, Tensor]:
        """Let experts paint codes, wherever they come from.

        Args:
            experts: (B, T) int64 which expert paints each.
            z: (B, T, L).

        Returns:
            (B, T, 3, H, W) colours and (B, T, 1, H, W) shapes.
        """
        flat = z.flatten(0, 1)
        every = torch.stack([expert.paint(flat) for expert in self.known], 1)  # (B T, K, 4, H, W)
        row = torch.arange(len(flat), device=z.device)
        chosen = every[row, experts.flatten()].view(*experts.shape, *every.shape[2:])
        return chosen[:, :, :3], chosen[:, :, 3:]


def mean_colour(image: Tensor, region: Tensor) -> Tensor:
    """(B, 3, H, W) images, (B, 1, H, W) regions -> (B, 3, 1, 1)."""
    return (region * image).sum((2, 3), True) / region.sum((2, 3), True).clamp(min=_LEAST)


def colour_cost(image: Tensor, region: Tensor, mean: Tensor, sigma: float) -> Tensor:
    """Return (B,) L_x, of a region that is painted as `mean` (eq. 10)."""
    error = region * (image - mean).square() / (2 * sigma**2)
    return error.flatten(1).sum(1)


def shape_cost(region: Tensor, expected: Tensor, entropy: float) -> Tensor:
    """Return (B,) L_r: cross entropy, less the region's entropy or a part of it (eq. 12)."""
    q, p = (value.clamp(_LEAST, 1 - _LEAST) for value in (region, expected))
    here = q * (entropy * q.log() - p.log())
    cost = here + (1 - q) * (entropy * (1 - q).log() - (1 - p).log())
    return cost.flatten(1).sum(1)


def layered(mean: Tensor, shape: Tensor) -> Tensor:
    """Lay (B, T, 3, H, W) over each other, the first in front (section 2): (B, 3, H, W)."""
    canvas = torch.zeros_like(mean[:, 0])
    for step in reversed(range(mean.shape[1])):
        canvas = shape[:, step] * mean[:, step] + (1 - shape[:, step]) * canvas
    return canvas


class Expert(nn.Module):
    """One class of objects: attention, encoder and decoder (section 4, C.2)."""

    def __init__(self, config: EconConfig) -> None:
        super().__init__()
        self.config = config
        self.attention = UNet(4, 1, config.frame_size, config.attention)
        with torch.no_grad():
            assert self.attention.out.bias is not None
            self.attention.out.bias += math.log(config.taken / (1 - config.taken))
        layers: list[nn.Module] = []
        before, (height, width) = 4, config.frame_size
        for _ in range(config.blocks):
            layers += [nn.Conv2d(before, config.features, 3, padding=1), nn.ReLU()]
            layers.append(nn.MaxPool2d(2))
            before, height, width = config.features, height // 2, width // 2
        hidden = config.hidden or 4 * config.z_what
        layers += [nn.Flatten(), nn.Linear(before * height * width, hidden), nn.ReLU()]
        self.encoder = nn.Sequential(*layers, nn.Linear(hidden, 2 * config.z_what))
        first = BroadcastConv(config.z_what, config.features, 3, config.frame_size)
        layers = [first, nn.ReLU()]
        for _ in range(config.blocks - 1):
            layers += [nn.Conv2d(config.features, config.features, 3, padding=1), nn.ReLU()]
        self.decoder = nn.Sequential(*layers, nn.Conv2d(config.features, 4, 1))

    def forward(self, image: Tensor, scope: Tensor, last: bool, sample: bool) -> Part:
        """Explain a part of what is left.

        Args:
            image: (B, 3, H, W).
            scope: (B, 1, H, W).
            last: take all of it (footnote 7).
            sample: draw the code, or take its mean.
        """
        region = scope
        if not last:
            seen = torch.cat([image, scope.clamp(min=_LEAST).log()], 1)
            # In bfloat16 a sigmoid is soon 1 for good; beyond some nats it hardly learns any more.
            logit = self.attention(seen).float()
            region = scope * torch.sigmoid(_MOST * torch.tanh(logit / _MOST))
        code = self.encode(image, region)
        painted = self.paint(code.sample() if sample else code.mode())
        mean, shape = painted[:, :3], painted[:, 3:]
        left = (scope - region).detach()  # for the competition alone, which has no gradient
        sigma = self.config.sigma
        cost = [
            colour_cost(image, region, mean, sigma),
            gaussian_kl(code, 0.0, 1.0).sum(1),
            shape_cost(region, scope * shape, self.config.entropy),
            colour_cost(image, left, mean_colour(image, left), sigma),
        ]
        return Part(region, code, mean, shape, torch.stack(cost, 1))

    def encode(self, image: Tensor, region: Tensor) -> Gaussian:
        """(B, 3, H, W), (B, 1, H, W) -> (B, L) q(z | x, r)."""
        return Gaussian.from_raw(self.encoder(torch.cat([image, region], 1)))

    def paint(self, z: Tensor) -> Tensor:
        """(B, L) -> (B, 4, H, W): colours and a shape, in [0, 1]."""
        return torch.sigmoid(self.decoder(z).float())


def _side_by_side(fields: list[Tensor]) -> Tensor:
    """(B, ·) -> (B, n, ·)."""
    return torch.stack(fields, 1)
