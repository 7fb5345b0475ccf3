"""SCALOR's two branches: propagation (Algorithm 2) and discovery (Algorithm 1).

Letters: B environments, K followed objects, M proposals, N cells, D size of z_what, G grid cells,
C channels, H W canvas, g glimpse side.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from objrl.models.boxes import apart
from objrl.models.scalor_config import ScalorConfig
from objrl.models.scalor_latents import Beliefs, Look, Objects, Proposals
from objrl.models.scalor_networks import Glimpses, Search, Table, mlp
from objrl.models.scalor_state import ScalorState
from objrl.nn.blocks import Conv, conv_stack
from objrl.nn.distributions import Gaussian, relaxed_bernoulli, take
from objrl.nn.spatial import extract, place

BOUND = 8.8
"""The authors bound the logits of z_pres to this, so that presence never saturates for good."""


def bounded(raw: Tensor) -> Tensor:
    """Raw logits of z_pres, bounded."""
    return BOUND * torch.tanh(raw)


def draw(belief: Gaussian, sample: bool) -> Tensor:
    """Return a draw, or the mean."""
    return belief.sample() if sample else belief.mean


def draw_presence(logit: Tensor, temperature: float, sample: bool) -> Tensor:
    """Return a draw of the relaxed z_pres, or its probability."""
    return relaxed_bernoulli(logit, temperature) if sample else torch.sigmoid(logit)


class Propagation(nn.Module):
    """Follows every object by a tracker RNN, all at once."""

    def __init__(self, config: ScalorConfig, table: Table, inputs: int) -> None:
        super().__init__()
        self.config, (channels, self.taps) = config, table.attention
        h, d, hidden = table.tracker, config.z_what, table.hidden
        self.hidden = hidden
        self.search: Search | None = None
        if not config.attention:
            pass
        elif table.search:
            # So that taps are at most 1.5 pixels apart for what is small.
            blur = max(1, round(config.step * config.frame_size[1] / (1.5 * table.search)))
            self.search = Search(inputs, table, d, config.step, blur)
        else:
            self.attend = conv_stack(table.memory[1], [Conv(channels, 1, 1, 4)])
            self.attended = nn.Linear(channels * self.taps**2, hidden)
        self.tracker_input = nn.Linear(hidden + d + 4 + 4 + 1, h)
        self.tracker = nn.GRUCell(h, h)
        self.where = mlp(h + d + 4 + 4 + hidden, hidden, 8)
        self.what = mlp(h, hidden, 2 * d)
        self.gates = mlp(h + hidden, hidden, 2)
        self.depth = mlp(h + d + hidden, hidden, 2)
        self.pres = mlp(h + 4 + 4 + d, hidden, 1)
        self.prior_input = nn.Linear(d + 4 + 4 + 1 + 1, 2 * table.prior)
        self.prior_cell = nn.LSTMCell(2 * table.prior, table.prior)
        self.prior_heads = nn.Linear(table.prior, 1 + 8 + 2 + 2 * d)
        self._size = table.prior

    def forward(
        self,
        image: Tensor,
        shown: Tensor,
        features: Tensor,
        glimpses: Glimpses,
        state: ScalorState,
        *,
        temperature: float,
        sample: bool,
    ) -> tuple[Beliefs, Objects, Tensor, tuple[Look, ...]]:
        """Find every object again.

        Args:
            image: (B, 3, H, W), of which glimpses are taken.
            shown: (B, C, H, W) what the image encoder is shown, which is searched.
            features: (B, C, G, G).
            glimpses: encoder and decoder.
            state: of the frame before.
            temperature: of the relaxed z_pres.
            sample: draw latents, or take the likeliest.

        Returns:
            Posterior, latents (z_pres 0 in free rows), the tracker RNN's next state, and where the
            objects were searched for.
        """
        alive = state.alive[..., None]
        attended, looks = self._look(shown, features, state)
        past = torch.cat([attended, state.z_what, state.z_where, state.bias, state.z_pres], dim=-1)
        h = self.tracker(self.tracker_input(past).flatten(0, 1), state.tracker.flatten(0, 1))
        h = h.unflatten(0, past.shape[:2])
        raw = self.where(torch.cat([h, state.z_what, state.z_where, state.bias, attended], -1))
        mean, std = raw.chunk(2, dim=-1)
        if looks:
            found = self.raw_step(looks[-1].place - state.z_where[..., 2:])
            # The rest of the network mends little: what was found is seldom off by a pixel.
            mean = torch.cat([mean[..., :2], 0.1 * mean[..., 2:] + found], dim=-1)
        # Begins certain: the authors take 2 from the raw deviation.
        where = Gaussian(mean, F.softplus(std - 2) + 1e-4)
        bias = draw(where, sample)
        z_where = self.moved(bias, state.z_where)
        glimpsed = Gaussian.from_raw(
            glimpses.encode(extract(image, torch.where(alive, z_where, 1.0), glimpses.side))
        )
        recalled = Gaussian.from_raw(self.what(h))
        new, old = torch.sigmoid(self.gates(torch.cat([h, attended], -1))).chunk(2, dim=-1)
        # The authors' softplus of what is a softplus already never lets it fall below ln 2.
        what = Gaussian(
            new * glimpsed.mean + old * recalled.mean, new * glimpsed.std + old * recalled.std
        )
        z_what = draw(what, sample)
        depth = Gaussian.from_raw(self.depth(torch.cat([h, z_what, attended], -1)))
        # Begins sure that what was there is there: section 3.2's first remedy.
        logit = bounded(self.pres(torch.cat([h, z_where, bias, z_what], -1)) + 2)
        appearance, mask = glimpses.decode(z_what)
        objects = Objects(
            z_pres=draw_presence(logit, temperature, sample) * alive,
            z_where=z_where,
            bias=bias,
            z_depth=draw(depth, sample),
            z_what=z_what,
            appearance=appearance,
            mask=mask,
        )
        return Beliefs(logit, where, depth, what), objects, h, looks

    def moved(self, bias: Tensor, z_where: Tensor) -> Tensor:
        """Where an object of z_where (B, K, 4) is after a raw size and displacement."""
        centre = z_where[..., 2:] + self.config.step * torch.tanh(bias[..., 2:])
        return torch.cat([self.config.size(bias[..., :2]), centre.clamp(-1.05, 1.05)], dim=-1)

    def raw_step(self, displacement: Tensor) -> Tensor:
        """Return of (…, 2) how far an object goes the raw one, of which `moved` makes it."""
        return torch.atanh((displacement / self.config.step).clamp(-0.95, 0.95))

    def foresee(self, state: ScalorState) -> tuple[Beliefs, Tensor]:
        """Return p(z_t | z_<t) of every object and the next state of the prior's RNN, (B, K, 2, ·).

        The paper does not say what is before an object's second frame: the RNN begins at zero. And
        its heads tell latents, ours how they change: objects look as they did and go on as they
        went, before anything is learnt.
        """
        past = torch.cat(
            [state.z_what, state.z_where, state.bias, state.z_depth, state.z_pres], dim=-1
        )
        h, c = self.prior_cell(
            self.prior_input(past).flatten(0, 1), tuple(state.prior.flatten(0, 1).unbind(1))
        )
        heads = self.prior_heads(h).unflatten(0, past.shape[:2])
        logit, where, depth, what = heads.split([1, 8, 2, heads.shape[-1] - 11], dim=-1)
        # The bias of the newborn is where in its cell it was found, and not how far it went.
        went = torch.where(state.newborn[..., None], 0.0, state.bias[..., 2:])
        before = torch.cat([state.bias[..., :2], went], dim=-1), state.z_depth, state.z_what
        changes = (Gaussian.from_raw(raw) for raw in (where, depth, what))
        beliefs = Beliefs(
            logit + 5,  # 0.993: objects seldom leave
            *(Gaussian(b + q.mean, q.std) for b, q in zip(before, changes, strict=True)),
        )
        return beliefs, torch.stack([h, c], dim=1).view(*past.shape[:2], 2, -1)

    def _look(
        self, shown: Tensor, features: Tensor, state: ScalorState
    ) -> tuple[Tensor, tuple[Look, ...]]:
        """Attend to what is around where the objects were.

        Returns:
            (B, K, ·), and how they were searched for, where they were.
        """
        z_where = state.z_where
        if not self.config.attention:
            return features.new_zeros(*z_where.shape[:2], self.hidden), ()
        if self.search is not None:
            found: tuple[Tensor, tuple[Look, ...]]
            found = self.search(shown, z_where, state.z_what, state.velocity)
            return found
        around = torch.cat(
            [torch.full_like(z_where[..., :2], self.config.attended), z_where[..., 2:].detach()], -1
        )
        cut = extract(self.attend(features), around, self.taps)
        return self.attended(cut.flatten(2)), ()


class Discovery(nn.Module):
    """Proposes an object a cell, and rejects those that are followed already."""

    def __init__(self, config: ScalorConfig, table: Table) -> None:
        super().__init__()
        self.config = config
        self.mask_encoder = conv_stack(1, table.mask_encoder)
        width = table.memory[1]
        joint = width + table.mask_encoder[-1].channels
        self.fuse = conv_stack(joint, [Conv(width, 1, 1, 8), Conv(width, 1, 1, 8)])
        self.heads = nn.Conv2d(width, 1 + 8 + 2, 1)
        rows, columns = torch.meshgrid(*(torch.arange(n) for n in config.grid), indexing="ij")
        at = torch.stack([columns, rows], dim=-1).view(-1, 2).float()
        self.register_buffer("cell_index", at, persistent=False)

    cell_index: Tensor

    def forward(
        self,
        shown: Tensor,
        features: Tensor,
        glimpses: Glimpses,
        propagated: Tensor,
        boxes: Tensor,
        *,
        temperature: float,
        sample: bool,
    ) -> Proposals:
        """Propose and reject.

        Args:
            shown: (B, C, H, W) the image, of which glimpses are taken.
            features: (B, C, G, G).
            glimpses: encoder and decoder.
            propagated: (B, 1, h, w) the mask of what is followed, M^P.
            boxes: (B, K, 4) z_where of the same; of no size where nobody is.
            temperature: of the relaxed z_pres.
            sample: draw latents, or take the likeliest.
        """
        rows, columns = self.config.grid
        mask = self.mask_encoder(propagated.detach())[..., :rows, :columns]
        heads = self.heads(self.fuse(torch.cat([features, mask], dim=1)))
        logit, where, depth = heads.flatten(2).transpose(1, 2).split([1, 8, 2], dim=-1)
        logit = bounded(logit)
        z_pres = draw_presence(logit, temperature, sample)
        index = z_pres[..., 0].topk(self.config.proposed, dim=1).indices
        q_where, q_depth = Gaussian.from_raw(where), Gaussian.from_raw(depth)
        every = draw(q_where, sample)
        every_where = self.placed(every)
        z_where = take(every_where, index)
        what = Gaussian.from_raw(glimpses.encode(extract(shown, z_where, glimpses.side)))
        z_what = draw(what, sample)
        appearance, drawn = glimpses.decode(z_what)
        offered = take(z_pres, index)
        rejected = self.rejects(drawn, z_where, propagated, boxes)
        objects = Objects(
            z_pres=offered * ~rejected[..., None],
            z_where=z_where,
            bias=take(every, index),
            z_depth=take(draw(q_depth, sample), index),
            z_what=z_what,
            appearance=appearance,
            mask=drawn,
        )
        return Proposals(
            logit=logit,
            where=_take(q_where, index),
            depth=_take(q_depth, index),
            what=what,
            index=index,
            offered=offered,
            objects=objects,
            rejected=rejected,
            every_where=every_where,
        )

    def placed(self, raw: Tensor) -> Tensor:
        """Raw size and shift (B, N, 4) -> z_where; at most one cell from the cell's centre."""
        height, width = self.config.frame_size
        centre = (self.cell_index + 0.5 + torch.tanh(raw[..., 2:])) * 2 * self.config.cell
        x, y = centre[..., :1] / width - 1, centre[..., 1:] / height - 1
        return torch.cat([self.config.size(raw[..., :2]), x, y], dim=-1)

    @torch.no_grad()
    def rejects(self, mask: Tensor, z_where: Tensor, propagated: Tensor, boxes: Tensor) -> Tensor:
        """Algorithm 1's test, (B, M) bool: is too much of a proposal's area followed already?

        What counts as area, 0.3 of a proposal's mask and 0.1 of what is followed, is the authors'.
        """
        if not self.config.rejection:
            return torch.zeros(mask.shape[:2], dtype=torch.bool, device=mask.device)
        size = self.config.masks
        origin = torch.zeros_like(z_where[..., :2], dtype=torch.int64)
        own = place(mask, z_where, origin, size, size)[:, :, 0] > 0.3
        shared = own & (propagated > 0.1)
        share = shared.sum((2, 3)) / own.sum((2, 3)).clamp(min=1)
        followed = apart(z_where, boxes).amin(2) < self.config.known
        return (share >= self.config.overlap) | followed


def mask_of(objects: Objects, presence: Tensor, size: tuple[int, int]) -> Tensor:
    """Return M, the sum of the objects' masks times presence (B, K, 1), at most 1: (B, 1, h, w)."""
    mask = objects.mask * presence[..., None, None]
    origin = torch.zeros_like(objects.z_where[..., :2], dtype=torch.int64)
    placed = place(mask, objects.z_where, origin, size, size)
    return placed.sum(1).clamp(max=1)


def _take(belief: Gaussian, index: Tensor) -> Gaussian:
    return Gaussian(take(belief.mean, index), take(belief.std, index))
