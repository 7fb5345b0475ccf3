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
from torch.nn import functional

from objrl.frames import check_frames, to_image
from objrl.models.boxes import clip_boxes, doubled, repeated, tight_boxes
from objrl.models.scalor_config import ScalorConfig
from objrl.models.scalor_latents import Beliefs, Objects, ScalorFrame
from objrl.models.scalor_networks import Backdrop, Glimpses, ImageEncoder
from objrl.models.scalor_parts import Discovery, Propagation, draw, mask_of
from objrl.models.scalor_state import ScalorState, Seats, seat
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
        known = config.background == "static"
        # Where the background is known, what differs from it is shown too.
        inputs = 6 if known else 3
        self.encoder = ImageEncoder(inputs, table, config.grid)
        self.glimpses = Glimpses(table, config.z_what)
        self.propagation = Propagation(config, table, inputs)
        self.discovery = Discovery(config, table)
        self.background: Backdrop | Static | None = None
        if config.background == "decoder":
            self.background = Backdrop(table, config.frame_size, config.z_bg)
        elif known:
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
        shown, picture = self._shown(image)
        features, memory = self.encoder(shown, state.memory)
        posterior, followed, tracker, looks = self.propagation(
            *(image, shown, features, self.glimpses, state),
            temperature=temperature,
            sample=sample,
        )
        empty = self._empty(shown, followed.z_where) if picture is not None else None
        followed, missed, stopped, stays = self.stop(followed, posterior, state, empty)
        covered = mask_of(followed, self.covering(followed, missed, stays), config.masks)
        found = self.discovery(
            *(image, features, self.glimpses, covered, followed.z_where * stays[..., None]),
            temperature=temperature,
            sample=sample,
        )
        new = (found.objects.z_pres > config.birth)[..., 0]
        if config.distinct < 1:
            box = found.objects.z_where
            new = new & ~repeated(box, found.objects.z_pres, config.distinct)[..., 0]
        if picture is not None:
            new = new & ~is_foreign(self._far(shown))[:, None]
            new = new & ~self._empty(shown, found.objects.z_where)
        seats = seat(new, found.objects.z_pres[..., 0], stays)
        kept = stays | seats.born
        frame = ScalorFrame(state.alive, kept, posterior, None, followed, found, seats, looks)
        prior, ahead = self.propagation.foresee(state) if drawn else (None, state.prior)
        after = self.remember(
            *(followed, found.objects, seats, state, memory, tracker, ahead),
            *(missed, stopped, stays),
        )
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

    def _shown(self, image: Tensor) -> tuple[Tensor, Tensor | None]:
        """Add to an image how far it is from the background, where that is known."""
        if not isinstance(self.background, Static):
            return image, None
        picture = self.background.picture(image)
        return torch.cat([image, (image - picture).abs()], dim=1), picture

    def _far(self, shown: Tensor) -> Tensor:
        """(B, 6, H, W) of `_shown` -> (B, 1, H, W) bool, what differs from the background."""
        return shown[:, 3:].amax(1, keepdim=True) > self.config.contrast

    def differs(self, image: Tensor) -> Tensor | None:
        """(B, 3, H, W) -> (B, 1, H, W) bool, what differs from the background where it is known.

        Nothing does where the whole frame is another scene.
        """
        shown, picture = self._shown(image)
        if picture is None:
            return None
        far = self._far(shown)
        return far & ~is_foreign(far)[:, None, None, None]

    def _empty(self, shown: Tensor, z_where: Tensor) -> Tensor:
        """(B, K) bool: whose box shows nothing but the background.

        Not by a few taps, which might miss what is small: by the mean of the box, from a table of
        sums.
        """
        height, width = self.config.frame_size
        sums = functional.pad(self._far(shown).float().cumsum(2).cumsum(3), (1, 0, 1, 0))
        table = sums.flatten(1)

        def edge(axis: int, sign: int, pixels: int) -> Tensor:
            place = (z_where[..., 2 + axis] + sign * z_where[..., axis] + 1) / 2 * pixels
            whole = place.floor() if sign < 0 else place.ceil()
            # What is no number must come out as a loss that is none, not as an index.
            return whole.clamp(0, pixels).nan_to_num().long()

        def at(x: Tensor, y: Tensor) -> Tensor:
            return table.gather(1, y * (width + 1) + x)

        left, right = edge(0, -1, width), edge(0, 1, width)
        top, bottom = edge(1, -1, height), edge(1, 1, height)
        found = at(right, bottom) - at(left, bottom) - at(right, top) + at(left, top)
        return found < 0.5

    def stop(
        self, objects: Objects, posterior: Beliefs, state: ScalorState, empty: Tensor | None = None
    ) -> tuple[Objects, Tensor, Tensor, Tensor]:
        """Decide who is followed no longer.

        Args:
            objects: who was followed.
            posterior: what is believed of them.
            state: of the frame before.
            empty: (B, K) bool, whose place shows nothing but a known background: whatever the
                network believes, that object is not seen.

        Returns:
            The objects, z_pres 0 for who is not, and who is not seen where it would be by now;
            frames unseen, sum of 1 - z_pres, and who stays.
        """
        gone = 1 - objects.z_pres[..., 0]
        stopped = torch.where(state.alive, state.stopped + gone.detach(), 0.0)
        unseen = torch.sigmoid(posterior.logit[..., 0]) < self.config.death
        if empty is not None:
            unseen = unseen | empty
        size, centre = state.z_where[..., :2], state.z_where[..., 2:]
        ahead = torch.cat([size, (centre + state.velocity).clamp(-1.05, 1.05)], dim=-1)
        if self.config.doubled < 1:
            surprise = (objects.z_where - ahead)[..., 2:].abs().sum(-1)
            seen = torch.where(unseen, NO_TRACK, state.track_id)
            unseen = unseen | doubled(
                *(objects.z_where, seen, state.missed > 0, surprise, self.config.doubled)
            )
        # Where somebody is while it is not seen cannot be looked up: it goes on as it went.
        z_where = torch.where(unseen[..., None], ahead, objects.z_where)
        objects = replace(objects, z_where=z_where)
        missed = torch.where(state.alive & unseen, state.missed + 1, 0)
        if self.config.deletion == "paper":
            stays = state.alive & (stopped < 0.6)
        else:
            stays = state.alive & (missed <= self.config.patience)
        objects = replace(objects, z_pres=objects.z_pres * stays[..., None])
        return objects, missed, stopped, stays

    def covering(self, objects: Objects, missed: Tensor, stays: Tensor) -> Tensor:
        """Presence (B, K, 1) for the mask that proposals are held against.

        Who is out of sight for a moment still holds its place, or it would come back as another.
        """
        hidden = (missed > 0) & stays
        return torch.where(hidden[..., None], 1.0, objects.z_pres)

    def remember(
        self,
        old: Objects,
        new: Objects,
        seats: Seats,
        state: ScalorState,
        memory: Tensor,
        tracker: Tensor,
        prior: Tensor,
        missed: Tensor,
        stopped: Tensor,
        stays: Tensor,
    ) -> ScalorState:
        """Put the followed and the newborn together."""
        here = stays[..., None]
        track_id = torch.where(stays, state.track_id, NO_TRACK)
        track_id = torch.where(seats.born, state.next_id[:, None] + seats.number, track_id)
        fields = {
            name: seats.take(getattr(new, name), getattr(old, name) * here)
            for name in ("z_pres", "z_where", "bias", "z_depth", "z_what")
        }
        waiting = stays & (missed > 0)
        moved = (old.z_where - state.z_where)[..., 2:]
        # The first displacement counts whole, as in `objrl.tracking`.
        weight = torch.where(state.newborn, 1.0, _SMOOTHING)[..., None]
        velocity = torch.lerp(state.velocity, moved, weight) * here
        velocity = torch.where(waiting[..., None], state.velocity, velocity)
        newborn = seats.born[..., None]
        return replace(
            state,
            **fields,
            track_id=track_id,
            missed=torch.where(seats.born, 0, missed),
            stopped=torch.where(seats.born, 0.0, stopped),
            velocity=torch.where(newborn, 0.0, velocity),
            newborn=seats.born | (state.newborn & waiting),
            # The RNNs of who is new begin at zero, the authors' way.
            tracker=torch.where(newborn, 0.0, tracker * here),
            prior=torch.where(newborn[..., None], 0.0, prior * here[..., None]),
            memory=memory,
            next_id=state.next_id + seats.born.sum(1),
            overflow=state.overflow + seats.overflow,
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
        config, table, device = self.config, self.table, self.device
        rows, (layers, channels) = config.max_slots, table.memory

        def zeros(*shape: int) -> Tensor:
            return torch.zeros(batch, *shape, device=device)

        def counts(*shape: int) -> Tensor:
            return torch.zeros(batch, *shape, dtype=torch.int64, device=device)

        return ScalorState(
            track_id=counts(rows) + NO_TRACK,
            missed=counts(rows),
            stopped=zeros(rows),
            z_pres=zeros(rows, 1),
            z_where=zeros(rows, 4),
            bias=zeros(rows, 4),
            z_depth=zeros(rows, 1),
            z_what=zeros(rows, config.z_what),
            velocity=zeros(rows, 2),
            newborn=torch.zeros(batch, rows, dtype=torch.bool, device=device),
            tracker=zeros(rows, table.tracker),
            prior=zeros(rows, 2, table.prior),
            memory=zeros(2 * layers, channels, *config.grid),
            z_bg=zeros(config.z_bg),
            prior_bg=zeros(32),
            fresh=torch.ones(batch, dtype=torch.bool, device=device),
            next_id=counts(),
            overflow=counts(),
        )

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
        _, state = self.see(
            image, state.begun_anew(is_first.to(self.device)), sample=False, drawn=False
        )
        return self.slots(image, state), state

    def slots(self, image: Tensor, state: ScalorState) -> Slots:
        """Return what is seen now of who is followed, in tight boxes."""
        here = (state.alive & (state.missed == 0))[..., None]
        box = clip_boxes(self._tight(image, state), self.config.frame_size)
        return Slots(
            position=box[..., 2:] * here,
            velocity=state.velocity * here,
            scale=box[..., :2] * here,
            depth=state.z_depth * here,
            what=state.z_what * here,
            presence=state.z_pres * here,
            track_id=torch.where(here, state.track_id[..., None], NO_TRACK),
        )

    def _tight(self, image: Tensor, state: ScalorState) -> Tensor:
        """Return (B, K, 4) boxes around what is seen in z_where's."""
        shown, picture = self._shown(image)
        if picture is None:
            outline = self.glimpses.decode(state.z_what)[1][:, :, 0]
        else:
            far = self._far(shown).float()
            where = torch.where(state.alive[..., None], state.z_where, 1.0)
            outline = extract(far, where, self.glimpses.side)[:, :, 0]
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
