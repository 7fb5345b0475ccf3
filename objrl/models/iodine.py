"""IODINE: K codes, guessed anew again and again from what they get wrong (Greff et al. 2019).

arXiv 1903.00450. A guess is decoded, compared with the image, and refined by a network that sees
where and how it is wrong, the gradient of the loss above all. `forward` is section 3.3 (its page is
missing from some copies; where the text leaves something open we follow the authors' code, and say
so), `refine` the table of inputs in appendix B, `step` appendix B.4: slots keep their objects from
frame to frame, because a frame's refinement begins where the last one's ended.

Letters: B batch, K slots, T refinements, D size of a slot's code, H W canvas.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from objrl.frames import check_frames, to_image
from objrl.models.iodine_networks import Decoder, Guess, IodineConfig, Refinement
from objrl.models.mixture import MixtureDetector, Scene, masks_of, slots_of
from objrl.nn.broadcast import places
from objrl.nn.distributions import Gaussian, gaussian_kl, gaussian_log_prob
from objrl.nn.mixture import blend_log_prob, mixture_log_prob
from objrl.perceiver import check_step
from objrl.slots import NO_TRACK, Slots

__all__ = ["Explained", "Guess", "Iodine", "IodineConfig", "IodineState", "iodine_terms"]

_SURE = 1 - 1e-6
"""A slot's share of a pixel counts as this much at most: the rest must still explain something."""

_NEWEST = 0.5
"""Weight of the newest displacement in the velocity, as the tracker has it."""


@dataclass(frozen=True)
class Explained:
    """A guess, held against the image.

    Attributes:
        scene: what it decodes to.
        nll: (B,) nats, -log p(x | z).
        kl: (B,) nats, KL(q(z) || p(z)) of all slots.
    """

    scene: Scene
    nll: Tensor
    kl: Tensor


@dataclass(frozen=True)
class IodineState:
    """What is carried from a frame to the next.

    Attributes:
        guess: of each environment.
        track_id: (B, K, 1) int64 of the last frame.
        next_id: (B,) int64. Never falls, so that no id is used twice.
        position: (B, K, 2) of the last frame's slots.
        velocity: (B, K, 2) of those.
        moved: (B, K, 1) bool, whose velocity is known.
    """

    guess: Guess
    track_id: Tensor
    next_id: Tensor
    position: Tensor
    velocity: Tensor
    moved: Tensor

    def __len__(self) -> int:
        return len(self.next_id)


class Iodine(MixtureDetector):
    """The whole model; a `Perceiver` by itself, for its guesses follow what they are of.

    The slots are alike: what parts them is chance, z drawn from one first guess. At work that
    chance is always the same, so that the same frame gives the same slots.
    """

    noise: Tensor

    def __init__(self, config: IodineConfig) -> None:
        super().__init__()
        self.config = config
        self.frame_size = config.frame_size
        self.max_slots, self.what_size = config.slots, config.z_what
        self.log_prob = mixture_log_prob if config.likelihood == "mixture" else blend_log_prob
        self.decoder = Decoder(config)
        self.refinement = Refinement(config)
        # Mean 0 and standard deviation 1, the prior; both are learnt.
        one = torch.tensor(1.0).expm1().log()
        self.first = nn.Parameter(
            torch.cat([torch.zeros(config.z_what), one.repeat(config.z_what)])
        )
        shape = config.refinements, config.slots, config.z_what
        noise = torch.randn(shape, generator=torch.Generator().manual_seed(0))
        self.register_buffer("noise", noise, persistent=False)

    @property
    def device(self) -> torch.device:
        """Where it computes; frames from elsewhere are moved there."""
        return self.first.device

    def forward(self, image: Tensor) -> list[Explained]:
        """Explain images: T + 1 guesses, the first of them blind.

        In training mode z is drawn, and gradients flow through all refinements, but not through the
        gradients that these look at ("drop double derivatives").

        Args:
            image: (B, 3, H, W), or (B, T + 1, 3, H, W) for one frame a guess (B.4): then each guess
                is held against a frame that it has not seen yet.
        """
        frames = image if image.ndim == 5 else self._repeated(image)
        learning = self.training and torch.is_grad_enabled()
        return self._guesses(frames, self.begin(len(image)), learning)[0]

    def _repeated(self, image: Tensor) -> Tensor:
        """(B, 3, H, W) -> (B, T + 1, 3, H, W): the same image for every guess."""
        return image[:, None].expand(-1, self.config.refinements + 1, -1, -1, -1)

    def _guesses(
        self, frames: Tensor, guess: Guess, learning: bool
    ) -> tuple[list[Explained], Guess]:
        """Refine a guess by (B, T + 1, 3, H, W), and explain the last of them.

        `learning` draws z, and keeps the graph through all of it.
        """
        explained = []
        # Refinement is made of gradients: it needs them also where nobody else does.
        with torch.inference_mode(False), torch.enable_grad():
            frames = frames.clone() if frames.is_inference() else frames
            *before, last = frames.unbind(1)
            for number, frame in enumerate(before):
                if not learning:
                    guess = _copied(guess, grows=True)
                now = self.look(guess, frame, number, learning)
                guess = self.refine(guess, now, frame, learning)
                explained.append(now)
            explained.append(self.look(guess, last, len(before), learning))
        if not learning:
            explained, guess = [_plain(now) for now in explained], _copied(guess)
        return explained, guess

    def begin(self, batch: int) -> Guess:
        """Return what is guessed of B images that nobody has looked at."""
        count, memory = self.config.slots, self.config.memory
        none = self.first.new_zeros(batch, count, memory)
        return Guess(self.first.expand(batch, count, -1), none, none)

    def look(self, guess: Guess, image: Tensor, number: int, sample: bool = False) -> Explained:
        """Decode a guess, the number-th of an image, and hold it against (B, 3, H, W).

        `sample` draws z; otherwise the chance is always the same, and the last guess's is its mean.
        """
        code = Gaussian.from_raw(guess.raw)
        if sample:
            z = code.sample()
        elif number < self.config.refinements:
            z = code.mean + code.std * self.noise[number]
        else:
            z = code.mode()
        mean, log_mask = self.decoder(z)
        return Explained(
            Scene(mean, log_mask, code),
            nll=-self.log_prob(image, mean, log_mask, self.config.sigma).flatten(1).sum(1),
            kl=gaussian_kl(code, 0.0, 1.0).sum((1, 2)),
        )

    def refine(self, guess: Guess, now: Explained, image: Tensor, learning: bool) -> Guess:
        """Guess anew from what is wrong with a guess (appendix B's table of inputs).

        Args:
            guess: what was believed.
            now: how it looks beside the image.
            image: (B, 3, H, W).
            learning: keep the graph that leads here.
        """
        scene, config = now.scene, self.config
        wrong = (now.nll + now.kl).sum()
        slopes = torch.autograd.grad(
            wrong, (scene.mean, scene.log_mask, guess.raw), retain_graph=learning
        )
        if not learning:
            guess, scene = _copied(guess), _plain(now).scene
        slope_mean, slope_mask, slope_raw = (slope.detach() for slope in slopes)
        # Of the logits (the authors' code; the paper's table says of the masks).
        slope_mask = slope_mask - scene.mask.detach() * slope_mask.sum(1, keepdim=True)
        # Of the mixture, whatever the likelihood: who of the slots explains a pixel, and how well.
        each = gaussian_log_prob(image[:, None], scene.mean, config.sigma).sum(2, keepdim=True)
        total = mixture_log_prob(image, scene.mean, scene.log_mask, config.sigma)[:, None]
        share = (each + scene.log_mask - total).exp()
        without = total + torch.log1p(-share.clamp(max=_SURE))
        here = [image[:, None].expand_as(scene.mean), scene.mean, scene.mask, scene.log_mask]
        here += [_normed(slope_mean), _normed(slope_mask), share]
        here += [_normed(total.detach()).expand_as(share), _normed(without.detach())]
        where = places(image, self.frame_size).expand(*share.shape[:2], -1, -1, -1)
        seen = torch.cat([*here, where], dim=2)
        refined: Guess = self.refinement(guess, seen, _normed(slope_raw, 1))
        return refined

    # ---- what agents get ---------------------------------------------------------------------

    def explain(self, image: Tensor) -> Scene:
        """(B, 3, H, W) in [0, 1] -> what is likeliest after T refinements."""
        explained, _ = self._guesses(self._repeated(image), self.begin(len(image)), False)
        return explained[-1].scene

    def paint(self, code: Tensor) -> Tensor:
        """(B, K, D) codes -> (B, 3, H, W)."""
        painted: tuple[Tensor, Tensor] = self.decoder(code)
        return (painted[1].exp() * painted[0]).sum(1)

    def initial_state(self, batch: int) -> IodineState:
        """Return the state of B environments that have seen nothing."""
        ids = torch.full((batch, self.config.slots, 1), NO_TRACK, device=self.device)
        none = self.first.new_zeros(batch, self.config.slots, 2)
        guess, never = _copied(self.begin(batch)), torch.zeros_like(ids, dtype=torch.bool)
        return IodineState(guess, ids, ids.new_zeros(batch), none, none, never)

    @torch.no_grad()
    def step(
        self, frames: Tensor, state: IodineState, is_first: Tensor
    ) -> tuple[Slots, IodineState]:
        """See the next frame of every environment; see `FramePerceiver.step`.

        The frame is refined T times from what was believed of the last one. A slot keeps its
        `track_id` as long as it has an object.
        """
        check_step(frames, len(state), is_first)
        fresh, new = self.initial_state(len(frames)), is_first.to(self.device)

        def kept(field: str) -> Tensor:
            begun, gone_on = getattr(fresh.guess, field), getattr(state.guess, field)
            return torch.where(new[:, None, None], begun, gone_on)

        guess = Guess(kept("raw"), kept("hidden"), kept("cell"))
        image = to_image(frames.to(self.device), *self.frame_size)
        explained, guess = self._guesses(self._repeated(image), guess, False)
        slots = slots_of(explained[-1].scene)
        known = torch.where(new[:, None, None], NO_TRACK, state.track_id)
        here = slots.mask[..., None]
        born = here & (known == NO_TRACK)
        ids = torch.where(born, state.next_id[:, None, None] + born.cumsum(1) - 1, known)
        ids = torch.where(here, ids, NO_TRACK)
        issued = state.next_id + born.sum((1, 2))
        moved = slots.position - state.position
        # The first displacement counts whole, as for the tracker.
        weight = torch.where(state.moved, _NEWEST, 1.0)
        velocity = torch.lerp(state.velocity, moved, weight) * (here & ~born)
        slots = replace(slots, track_id=ids, velocity=velocity)
        return slots, IodineState(guess, ids, issued, slots.position, velocity, here & ~born)

    @torch.no_grad()
    def encode(self, frames: Tensor) -> Slots:
        """See (B, H, W, 3) uint8 RGB frames without a past: `step` from a fresh state."""
        new = torch.ones(len(check_frames(frames)), dtype=torch.bool)
        return self.step(frames, self.initial_state(len(frames)), new)[0]

    @torch.no_grad()
    def segment(self, frames: Tensor) -> Tensor:
        """Return (B, K+1, H, W) float32 masks that sum to one, in `encode`'s order."""
        size = check_frames(frames).shape[1], frames.shape[2]
        return masks_of(self.explain(to_image(frames.to(self.device), *self.frame_size)), size)


def iodine_terms(explained: list[Explained]) -> dict[str, Tensor]:
    """Return the terms of the loss as (B,) nats, each guess weighted by how late it is.

    sum_t t/T L_t: the first, blind one counts nothing (the authors' code; section 3.3 has (t/T)
    too). Divided by the sum of the weights, so that a term is one guess's worth.
    """
    last = len(explained) - 1
    whole = sum(range(last + 1))
    late = [number / whole for number in range(last + 1)] if last else [1.0]
    pairs = list(zip(late, explained, strict=True))
    return {
        "nll": torch.stack([share * now.nll for share, now in pairs]).sum(0),
        "kl_what": torch.stack([share * now.kl for share, now in pairs]).sum(0),
    }


def _normed(field: Tensor, dims: int = 3) -> Tensor:
    """Layer norm of the last dimensions, without weights: gradients come in all sizes."""
    return F.layer_norm(field, field.shape[-dims:])


def _copied(guess: Guess, grows: bool = False) -> Guess:
    """The same guess without the graph that led to it; `grows` lets a new one begin here.

    A copy, because tensors of PyTorch's inference mode cannot take part in a graph.
    """
    raw, hidden, cell = (field.detach().clone() for field in (guess.raw, guess.hidden, guess.cell))
    return Guess(raw.requires_grad_(grows), hidden, cell)


def _plain(now: Explained) -> Explained:
    """The same, without the graph that led to it."""
    scene = now.scene
    code = Gaussian(scene.code.mean.detach(), scene.code.std.detach())
    bare = Scene(scene.mean.detach(), scene.log_mask.detach(), code)
    return Explained(bare, now.nll.detach(), now.kl.detach())
