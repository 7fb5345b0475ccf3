"""SCALOR: objects that are followed from frame to frame.

Jiang, Janghorbani, de Melo, Ahn 2020, "SCALOR: Generative World Models with Scalable Object
Representations" (arXiv 1910.02384). `see` is one frame of Algorithms 1 to 3, for training and for
an agent alike: propagate what is followed, propose what is new, reject what is followed already,
explain the rest by the background, draw. Where paper and authors' code differ, a comment says so.

Letters: B environments, T frames, K rows (an object keeps its row for life), M proposals, N cells,
D size of z_what, G grid cells, C channels, H W canvas.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor, nn

from objrl.frames import check_frames, to_image
from objrl.models.boxes import clip_boxes, doubled, on_nothing, repeated, summed, tight_boxes
from objrl.models.scalor_config import ScalorConfig
from objrl.models.scalor_latents import Beliefs, Objects, ScalorFrame
from objrl.models.scalor_networks import Backdrop, Glimpses, ImageEncoder
from objrl.models.scalor_parts import Discovery, Propagation, draw, mask_of
from objrl.models.scalor_state import Fate, ScalorState, Seats, seat
from objrl.models.space_background import Static, is_foreign
from objrl.nn.distributions import Gaussian, gaussian_kl
from objrl.nn.spatial import Layers, extract, overlay, place
from objrl.perceiver import Decomposition, check_step
from objrl.slots import NO_TRACK, Slots

_SMOOTHING = 0.5  # weight of the newest displacement in the velocity


class Scalor(nn.Module):
    """The whole model; a `Perceiver` by itself."""

    def __init__(self, config: ScalorConfig) -> None:
        super().__init__()
        self.config, table = config, config.table()
        self.table = table
        self.max_slots, self.what_size = config.max_slots, config.z_what
        pictured = config.background == "static"
        # Where the background is known, how far the image is from it is shown too.
        inputs = 6 if pictured else 3
        self.encoder = ImageEncoder(inputs, table, config.grid)
        self.glimpses = Glimpses(table, config.z_what)
        self.propagation = Propagation(config, table, inputs)
        self.discovery = Discovery(config, table)
        self.background: Backdrop | Static | None = None
        if config.background == "decoder":
            self.background = Backdrop(table, config.frame_size, config.z_bg)
        elif pictured:
            self.background = Static(config.frame_size, config.faces, config.flat)

    @property
    def device(self) -> torch.device:
        """Where it computes; frames from elsewhere are moved there."""
        return self.discovery.heads.weight.device

    def see(
        self,
        image: Tensor,
        state: ScalorState,
        *,
        temperature: float = 0.5,
        sample: bool = True,
        drawn: bool = True,
    ) -> tuple[ScalorFrame, ScalorState]:
        """Explain the next frame.

        Args:
            image: (B, 3, H, W) float32 in [0, 1], H W the config's frame_size.
            state: of the frame before; `begun_anew` where an episode begins.
            temperature: of the relaxed z_pres.
            sample: draw latents, or take the likeliest.
            drawn: explain the background and draw; an agent needs neither.
        """
        config = self.config
        shown, picture, differs = self._shown(image)
        features, memory = self.encoder(shown, state.memory)
        posterior, followed, tracker, looks = self.propagation(
            *(image, shown, features, self.glimpses, state),
            temperature=temperature,
            sample=sample,
        )
        sums = None if differs is None else summed(differs)
        fate = self.judge(followed, self._unseen(followed, posterior, state, sums), state)
        followed = replace(followed, z_pres=followed.z_pres * fate.stays[..., None])
        held = self.held(followed, fate, state)
        covered = mask_of(held, fate.covering(held.z_pres), config.masks)
        found = self.discovery(
            *(image, features, self.glimpses, covered, held.z_where * fate.stays[..., None]),
            temperature=temperature,
            sample=sample,
        )
        seats = seat(self._new(found.objects, sums), found.objects.z_pres[..., 0], fate.stays)
        kept = fate.stays | seats.born
        frame = ScalorFrame(
            *(state.alive, kept, posterior, None, followed, found, seats, looks, differs)
        )
        prior, ahead = self.propagation.foresee(state) if drawn else (None, state.prior)
        after = self.remember(held, found.objects, seats, fate, state)
        after = replace(after, memory=memory).with_minds(tracker, ahead, seats)
        if not drawn:
            return frame, after
        layers = self.draw(followed.joined(found.objects))
        background, kl_bg, z_bg, prior_bg = self._explain_rest(
            image, layers, state, picture, sample
        )
        frame = replace(
            frame,
            prior=prior,
            background=background,
            kl_bg=kl_bg,
            foreground=layers.mean,
            alpha=layers.alpha,
        )
        fresh = torch.zeros_like(state.fresh)
        return frame, replace(after, z_bg=z_bg, prior_bg=prior_bg, fresh=fresh)

    def _shown(self, image: Tensor) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """Return what the encoder is shown; and the known background and what differs from it.

        (B, 6, H, W), the image and how far it is from the background, (B, 3, H, W) and
        (B, 1, H, W) bool. Where the background is not known, the image and twice None.
        """
        if not isinstance(self.background, Static):
            return image, None, None
        picture = self.background.picture(image)
        far = (image - picture).abs()
        differs = far.amax(1, keepdim=True) > self.config.contrast
        # Where the whole frame is another scene nothing is to be seen.
        differs = differs & ~is_foreign(differs)[:, None, None, None]
        return torch.cat([image, far], dim=1), picture, differs

    def differs(self, image: Tensor) -> Tensor | None:
        """(B, 3, H, W) -> (B, 1, H, W) bool, what differs from the background where it is known."""
        return self._shown(image)[2]

    def _unseen(
        self, objects: Objects, posterior: Beliefs, state: ScalorState, sums: Tensor | None
    ) -> Tensor:
        """(B, K) bool: who is not seen, by belief; or on nothing; or on another's object."""
        unseen = torch.sigmoid(posterior.logit[..., 0]) < self.config.death
        if sums is not None:  # whatever the network believes
            unseen = unseen | on_nothing(sums, objects.z_where)
        if self.config.doubled < 1:
            leap = (objects.z_where - state.ahead)[..., 2:].abs().sum(-1)
            leap = leap / objects.z_where[..., :2].sum(-1).clamp(min=1e-9)
            seen = torch.where(unseen, NO_TRACK, state.track_id)
            unseen = unseen | doubled(
                *(objects.z_where, seen, state.missed > 0, leap, self.config.doubled)
            )
        return unseen

    def judge(self, objects: Objects, unseen: Tensor, state: ScalorState) -> Fate:
        """Decide who is followed no longer, by who (B, K) bool is not seen."""
        gone = 1 - objects.z_pres[..., 0].detach()
        stopped = torch.where(state.alive, state.stopped + gone, 0.0)
        unseen = state.alive & unseen
        missed = torch.where(unseen, state.missed + 1, 0)
        if self.config.deletion == "paper":
            stays = state.alive & (stopped < 0.6)
        else:
            stays = state.alive & (missed <= self.config.patience)
        return Fate(missed, stopped, stays)

    def held(self, objects: Objects, fate: Fate, state: ScalorState) -> Objects:
        """Let who is not seen go on as it went: where it was looked for, it is not."""
        ahead, unseen = state.ahead, fate.unseen[..., None]
        went = self.propagation.raw_step((ahead - state.z_where)[..., 2:])
        bias = torch.cat([state.bias[..., :2], went], dim=-1)
        return replace(
            objects,
            z_where=torch.where(unseen, ahead, objects.z_where),
            bias=torch.where(unseen, bias, objects.bias),
        )

    def _new(self, proposed: Objects, sums: Tensor | None) -> Tensor:
        """(B, M) bool: which proposals are to be born."""
        new = proposed.z_pres[..., 0] > self.config.birth
        if sums is not None:
            new = new & ~on_nothing(sums, proposed.z_where)
        if self.config.distinct < 1:
            likely = proposed.z_pres * new[..., None]
            new = new & ~repeated(proposed.z_where, likely, self.config.distinct)[..., 0]
        return new

    def remember(
        self, old: Objects, new: Objects, seats: Seats, fate: Fate, state: ScalorState
    ) -> ScalorState:
        """Put the followed, `held` where they are not seen, and the newborn together."""
        here = fate.stays[..., None]
        track_id = torch.where(fate.stays, state.track_id, NO_TRACK)
        track_id = torch.where(seats.born, state.next_id[:, None] + seats.number, track_id)
        fields = {
            name: seats.take(getattr(new, name), getattr(old, name) * here)
            for name in ("z_pres", "z_where", "bias", "z_depth", "z_what")
        }
        waiting = fate.stays & fate.unseen
        # While it was not seen it went on as it went; now it is known how far it came in all.
        waited = state.missed[..., None]
        moved = (old.z_where - state.z_where)[..., 2:] + waited * state.velocity
        moved = moved / (waited + 1)
        # The first displacement counts whole, as in `objrl.tracking`.
        weight = torch.where(state.newborn, 1.0, _SMOOTHING)[..., None]
        velocity = torch.lerp(state.velocity, moved, weight) * here
        velocity = torch.where(waiting[..., None], state.velocity, velocity)
        return replace(
            state,
            **fields,
            track_id=track_id,
            missed=torch.where(seats.born, 0, fate.missed),
            stopped=torch.where(seats.born, 0.0, fate.stopped),
            velocity=velocity,
            newborn=seats.born | (state.newborn & waiting),
            next_id=state.next_id + seats.born.sum(1),
            overflow=state.overflow + seats.overflow,
            fresh=torch.ones_like(state.fresh),
        )

    def draw(self, objects: Objects) -> Layers:
        """Algorithm 3's foreground."""
        return overlay(
            *(objects.appearance, objects.mask * objects.z_pres[..., None, None]),
            *(objects.z_where, objects.z_depth),
            canvas=self.config.frame_size,
            window=self.config.windows,
        )

    def _explain_rest(
        self,
        image: Tensor,
        layers: Layers,
        state: ScalorState,
        picture: Tensor | None,
        sample: bool,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Algorithm 3's background: its picture, KL (B,), z_bg, and the transition's state."""
        if self.background is None:
            return (
                *(torch.zeros_like(image), image.new_zeros(len(image))),
                *(state.z_bg, state.prior_bg),
            )
        if isinstance(self.background, Static):  # what is known needs no transition
            seen = self.background(image, picture, sample)
            return seen.image, seen.kl_component, state.z_bg, state.prior_bg
        q = Gaussian.from_raw(self.background.encode(image, layers.alpha))
        z_bg = draw(q, sample)
        p, h = self.background.foresee(state.z_bg, state.prior_bg, state.fresh)
        kl = gaussian_kl(q, p.mean, p.std).sum(1)
        return self.background.decode(z_bg), kl, z_bg, h

    def unroll(
        self,
        images: Tensor,
        is_first: Tensor,
        state: ScalorState,
        *,
        temperature: float = 0.5,
        sample: bool = True,
        detach: bool = False,
    ) -> tuple[list[ScalorFrame], ScalorState]:
        """See (B, T, 3, H, W) images; where (B, T) `is_first`, an episode begins.

        Args:
            images: float32 in [0, 1].
            is_first: bool.
            state: of the frame before the first.
            temperature: of the relaxed z_pres.
            sample: draw latents, or take the likeliest.
            detach: cut the gradients between frames, as the authors do for the first 30,000 steps.
        """
        frames = []
        for t in range(images.shape[1]):
            state = state.begun_anew(is_first[:, t])
            frame, state = self.see(images[:, t], state, temperature=temperature, sample=sample)
            if detach:
                state = state.without_history()
            frames.append(frame)
        return frames, state

    def initial_state(self, batch: int) -> ScalorState:
        """Return the state of `batch` environments that have seen nothing."""
        return ScalorState.empty(batch, self.config, self.table, self.device)

    @torch.no_grad()
    def step(
        self, frames: Tensor, state: ScalorState, is_first: Tensor
    ) -> tuple[Slots, ScalorState]:
        """See the next frame of every environment; pure, and env b depends on env b alone.

        Args:
            frames: (B, H, W, 3) uint8 RGB, any H and W.
            state: what `initial_state` or the last `step` returned.
            is_first: (B,) bool. Environments whose frame begins an episode: their past is dropped.

        Returns:
            The slots, rows kept per followed object, and the next state.

        Raises:
            TypeError, ValueError: frames as `check_frames` says, or a state or `is_first` that do
                not belong to as many environments.
        """
        check_step(frames, len(state), is_first)
        image = to_image(frames.to(self.device), *self.config.frame_size)
        frame, state = self.see(
            image, state.begun_anew(is_first.to(self.device)), sample=False, drawn=False
        )
        return self.slots(state, frame.differs), state

    def slots(self, state: ScalorState, differs: Tensor | None) -> Slots:
        """Return what is seen now of who is followed, in tight boxes around what `differs`."""
        here = (state.alive & (state.missed == 0))[..., None]
        box = clip_boxes(self._tight(state, differs), self.config.frame_size)
        return Slots(
            position=box[..., 2:] * here,
            velocity=state.velocity * here,
            scale=box[..., :2] * here,
            depth=state.z_depth * here,
            what=state.z_what * here,
            presence=state.z_pres * here,
            track_id=torch.where(here, state.track_id[..., None], NO_TRACK),
        )

    def _tight(self, state: ScalorState, differs: Tensor | None) -> Tensor:
        """Return (B, K, 4) boxes around what is seen in z_where's."""
        if differs is None:
            outline = self.glimpses.decode(state.z_what)[1][:, :, 0]
        else:
            where = torch.where(state.alive[..., None], state.z_where, 1.0)
            outline = extract(differs.float(), where, self.glimpses.side)[:, :, 0]
        return tight_boxes(outline, state.z_where, self.config.reach)

    def encode(self, frames: Tensor) -> Slots:
        """See (B, H, W, 3) uint8 frames that have no past."""
        batch = len(check_frames(frames))
        first = torch.ones(batch, dtype=torch.bool, device=self.device)
        return self.step(frames, self.initial_state(batch), first)[0]

    @torch.no_grad()
    def segment(self, frames: Tensor) -> Tensor:
        """Return (B, K+1, H, W) float32 masks that sum to one, the background last.

        A pixel goes to the objects of `encode` as Algorithm 3 weighs them.
        """
        image = to_image(check_frames(frames).to(self.device), *self.config.frame_size)
        state = self.initial_state(len(frames))
        _, state = self.see(image, state, sample=False, drawn=False)
        mask = self.glimpses.decode(state.z_what)[1] * state.z_pres[..., None, None]
        near = mask * torch.sigmoid(state.z_depth)[..., None, None]
        canvas = self.config.frame_size
        where = torch.where(state.alive[..., None], state.z_where, 1.0)
        origin = torch.zeros_like(where[..., :2], dtype=torch.int64)
        placed = place(torch.cat([mask, near], dim=2), where, origin, canvas, canvas)
        alpha = placed[:, :, 0].sum(1, keepdim=True).clamp(max=1)
        share = alpha * placed[:, :, 1] / (placed[:, :, 1].sum(1, keepdim=True) + 1e-5)
        share = nn.functional.interpolate(
            share, frames.shape[1:3], mode="bilinear", align_corners=False
        )
        return torch.cat([share, 1 - share.sum(1, keepdim=True)], dim=1)

    @torch.no_grad()
    def decompose(self, frames: Tensor) -> Decomposition:
        """Take frames without a past apart for a picture."""
        image = to_image(check_frames(frames).to(self.device), *self.config.frame_size)
        state = self.initial_state(len(frames))
        frame, _ = self.see(image, state, sample=False)
        assert frame.foreground is not None
        assert frame.alpha is not None
        assert frame.background is not None
        return Decomposition(
            image,
            frame.reconstruction.clamp(0, 1),
            frame.foreground.clamp(0, 1),
            frame.background.clamp(0, 1),
            frame.alpha,
        )
