"""The backgrounds of SPACE: K components as in the paper, or a known picture with a weak residual.

`Components` is Algorithms 3 and 4 of SPACE (arXiv 2001.02407): masks by stick-breaking from an
LSTM, one appearance a mask. `Static` is ours for scenes whose background hardly changes: the
picture that `objrl.models.median` finds plus a residual too coarse to draw an object.

Letters: B batch, K components, C channels, H W canvas, D latent size.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from objrl.nn.blocks import Conv, conv_stack
from objrl.nn.broadcast import broadcast
from objrl.nn.distributions import Gaussian, gaussian_kl
from objrl.nn.mixture import stick_breaking

_EPS = 1e-5


@dataclass(frozen=True)
class BackgroundOutput:
    """A background explained.

    Attributes:
        mean: (B, K, 3, H, W) appearance of every component, mu_bg_k.
        mask: (B, K, 1, H, W) mixing weights pi_k, sum to one over K.
        kl_mask: (B,) KL of z_m against its autoregressive prior, in nats.
        kl_component: (B,) KL of z_c given z_m.
    """

    mean: Tensor
    mask: Tensor
    kl_mask: Tensor
    kl_component: Tensor

    @property
    def image(self) -> Tensor:
        """(B, 3, H, W) the mixture's mean."""
        return (self.mask * self.mean).sum(1)


class ImageEncoder(nn.Module):
    """Tables "Background Image Encoder" and "Component Encoder": four convolutions, one linear.

    The tables have batch normalisation; we take group normalisation, which does not fail at the
    batch sizes that a small machine allows and makes a frame's code independent of its batch.
    Their ELU is CELU's alpha = 1.
    """

    def __init__(self, inputs: int, channels: tuple[int, ...], outputs: int, size: tuple[int, int]):
        super().__init__()
        rows = [Conv(c, 3, 2, groups=8) for c in channels]
        self.features = conv_stack(inputs, rows)
        height, width = (-(-side // 2 ** len(channels)) for side in size)
        self.head = nn.Linear(channels[-1] * height * width, outputs)

    def forward(self, image: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, outputs)."""
        code: Tensor = self.head(self.features(image).flatten(1))
        return code


class MaskDecoder(nn.Module):
    """Table "Mask Decoder": sub-pixel convolutions from 1 x 1 to 128 x 128."""

    def __init__(self, z_dim: int, size: tuple[int, int]) -> None:
        super().__init__()
        if size != (128, 128):
            raise ValueError(f"MaskDecoder: the paper's table draws 128 x 128, got {size}")
        rows = [
            Conv(256, 1, 1, 16),
            *(Conv(256, 1, 1, 16, up=4), Conv(256, 3, 1, 16)),
            *(Conv(128, 1, 1, 16, up=2), Conv(128, 3, 1, 16)),
            *(Conv(64, 1, 1, 8, up=4), Conv(64, 3, 1, 8)),
            *(Conv(16, 1, 1, 4, up=4), Conv(16, 3, 1, 4), Conv(16, 3, 1, 4)),
        ]
        self.layers = nn.Sequential(conv_stack(z_dim, rows), nn.Conv2d(16, 1, 3, 1, 1))

    def forward(self, z: Tensor) -> Tensor:
        """(N, D) -> (N, 1, 128, 128) logits."""
        logit: Tensor = self.layers(z[:, :, None, None])
        return logit


class ComponentDecoder(nn.Module):
    """Table "Component Decoder": spatial broadcast (Watters et al. 2019), four convolutions.

    The authors' code has four of 32 channels without padding and a 1 x 1 head; this is the table.
    """

    def __init__(self, z_dim: int, channels: int, size: tuple[int, int]) -> None:
        super().__init__()
        self.size = size
        rows = [Conv(channels, 3, groups=8) for _ in range(3)]
        self.layers = nn.Sequential(
            conv_stack(z_dim + 2, rows), nn.Conv2d(channels, 3, 3, 1, 1), nn.Sigmoid()
        )

    def forward(self, z: Tensor) -> Tensor:
        """(N, D) -> (N, 3, H, W) in [0, 1]."""
        image: Tensor = self.layers(broadcast(z, self.size))
        return image


class Components(nn.Module):
    """K components: z_m draws a mask, z_c given the mask its appearance (Algorithms 3 and 4)."""

    def __init__(
        self, components: int, size: tuple[int, int], z_mask: int = 32, z_component: int = 32
    ) -> None:
        super().__init__()
        self.components = components
        hidden, code = 64, 64
        self.image_encoder = ImageEncoder(3, (64, 64, 64, 64), code, size)
        self.rnn = nn.LSTMCell(z_mask + code, hidden)
        self.predict_mask = nn.Linear(hidden, 2 * z_mask)
        self.mask_decoder = MaskDecoder(z_mask, size)
        self.component_encoder = ImageEncoder(4, (32, 32, 64, 64), 2 * z_component, size)
        self.component_decoder = ComponentDecoder(z_component, 32, size)
        self.prior_rnn = nn.LSTMCell(z_mask, hidden)
        self.predict_mask_prior = nn.Linear(hidden, 2 * z_mask)
        self.predict_component = nn.Sequential(
            *(nn.Linear(z_mask, hidden), nn.CELU(), nn.Linear(hidden, hidden), nn.CELU()),
            nn.Linear(hidden, 2 * z_component),
        )
        # h_0, c_0 and the dummy z_m_0, learned, for the posterior and for the prior.
        self.start = nn.Parameter(torch.zeros(2, hidden + hidden + z_mask))

    def _begin(self, which: int, batch: int) -> tuple[Tensor, Tensor, Tensor]:
        hidden = self.rnn.hidden_size
        start = self.start[which].expand(batch, -1)
        return start[:, :hidden], start[:, hidden : 2 * hidden], start[:, 2 * hidden :]

    def forward(self, image: Tensor) -> BackgroundOutput:
        """Explain (B, 3, H, W) images; samples in training mode, posterior means otherwise."""
        batch = len(image)
        draw = Gaussian.sample if self.training else Gaussian.mode
        code = F.celu(self.image_encoder(image))  # this table's linear layer has an ELU
        h, c, z = self._begin(0, batch)
        h_prior, c_prior, z_prior = self._begin(1, batch)
        samples: list[Tensor] = []
        kl_mask = image.new_zeros(batch)
        for _ in range(self.components):
            h, c = self.rnn(torch.cat([z, code], dim=1), (h, c))
            q = Gaussian.from_raw(self.predict_mask(h))
            h_prior, c_prior = self.prior_rnn(z_prior, (h_prior, c_prior))
            p = Gaussian.from_raw(self.predict_mask_prior(h_prior))
            z = z_prior = draw(q)
            samples.append(z)
            kl_mask = kl_mask + gaussian_kl(q, p.mean, p.std).sum(1)
        z_mask = torch.stack(samples, dim=1)
        mask = self._masks(z_mask)
        shown = image[:, None].expand(-1, self.components, -1, -1, -1)
        # The mask enters as its logarithm, as in the authors' code; Algorithm 3 has pi_k itself.
        seen = torch.cat([(mask + _EPS).log(), shown], dim=2).flatten(0, 1)
        q = Gaussian.from_raw(self.component_encoder(seen))
        p = Gaussian.from_raw(self.predict_component(z_mask.flatten(0, 1)))
        kl = gaussian_kl(q, p.mean, p.std).sum(1).view(batch, -1).sum(1)
        mean = self.component_decoder(draw(q)).unflatten(0, (batch, self.components))
        return BackgroundOutput(mean, mask, kl_mask, kl)

    def _masks(self, z_mask: Tensor) -> Tensor:
        logit = self.mask_decoder(z_mask.flatten(0, 1))
        return stick_breaking(logit.unflatten(0, z_mask.shape[:2])).exp()

    def generate(self, batch: int) -> BackgroundOutput:
        """Draw backgrounds from the prior (Algorithm 4)."""
        h, c, z = self._begin(1, batch)
        samples: list[Tensor] = []
        for _ in range(self.components):
            h, c = self.prior_rnn(z, (h, c))
            z = Gaussian.from_raw(self.predict_mask_prior(h)).sample()
            samples.append(z)
        z_mask = torch.stack(samples, dim=1)
        prior = Gaussian.from_raw(self.predict_component(z_mask.flatten(0, 1)))
        mean = self.component_decoder(prior.sample()).unflatten(0, (batch, self.components))
        none = z_mask.new_zeros(batch)
        return BackgroundOutput(mean, self._masks(z_mask), none, none)


FOREIGN = 0.75
"""Part of a frame that differs from a known background from which on no object is reported. Pong's
first frame, green where all others are brown, differs everywhere; of twenty games' frames none lies
between this and two thirds, and sixty sprites cover up to 0.62 of theirs."""


def is_foreign(far: Tensor) -> Tensor:
    """(B, 1, H, W) bool, what differs from a known background -> (B,) bool: another scene."""
    return far.flatten(1).float().mean(1) > FOREIGN


class Static(nn.Module):
    """One component: a picture known beforehand plus a residual of a few latents on a coarse map.

    Where large areas come and go, a pixel has several faces, and the picture has the one nearest to
    what is seen. Where they change or scroll, what is large and of one colour is background. A
    model of several games has as many scenes, and takes for a frame the one that is most like it.

    Attributes:
        faces: (S * F, 3, H, W) uint8, F of each scene, its usual one first; set from the frames
            before training, saved with the weights.
    """

    faces: Tensor
    changes: Tensor

    def __init__(
        self,
        size: tuple[int, int],
        faces: int = 1,
        flat: int = 0,
        scenes: int = 1,
        changing: tuple[int, ...] = (),
        z_component: int = 8,
        coarse: int = 16,
        hidden: int = 64,
    ) -> None:
        super().__init__()
        self.flat, self.scenes = flat, scenes
        # (S,) bool: in which of them large areas are background wherever they are.
        every = torch.tensor([not changing or scene in changing for scene in range(scenes)])
        self.register_buffer("changes", every, persistent=False)
        self.size, self.coarse = size, (-(-size[0] // coarse), -(-size[1] // coarse))
        self.z_component = z_component
        self.register_buffer("faces", torch.zeros(scenes * faces, 3, *size, dtype=torch.uint8))
        inputs = 3 * self.coarse[0] * self.coarse[1]
        self.encoder = nn.Sequential(
            nn.Linear(inputs, hidden), nn.CELU(), nn.Linear(hidden, 2 * z_component)
        )
        last = nn.Linear(hidden, inputs)
        self.decoder = nn.Sequential(nn.Linear(z_component, hidden), nn.CELU(), last)
        # The picture is right until training finds otherwise.
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)

    def picture(self, image: Tensor) -> Tensor:
        """(B, 3, H, W) -> what is known of its background, (B, 3, H, W) or (1, 3, H, W)."""
        scene = self.scene(image)
        if len(self.faces) == 1:
            best = self.usual
        else:
            scenes = self.faces.view(self.scenes, -1, 3, *self.size)
            best = self._nearest(image, scenes[scene])
        if self.flat:
            large = long_runs(image, self.flat)
            large &= self.changes[scene][:, None, None, None]
            best = torch.where(large, image, best)
        return best

    @property
    def usual(self) -> Tensor:
        """(S, 3, H, W) in [0, 1], what a pixel shows most of the time."""
        return self.faces[:: len(self.faces) // self.scenes].float() / 255

    def scene(self, image: Tensor) -> Tensor:
        """(B, 3, H, W) -> (B,) int64 which scene's usual background a frame is most like."""
        if self.scenes == 1:
            return torch.zeros(len(image), dtype=torch.int64, device=image.device)
        seen, usual = image[..., ::4, ::4].flatten(1), self.usual[..., ::4, ::4].flatten(1)
        return torch.cdist(seen, usual, p=1).argmin(1)

    def _nearest(self, image: Tensor, faces: Tensor) -> Tensor:
        """(B, 3, H, W) and the (B, F, 3, H, W) uint8 that it may show."""
        best = faces[:, 0].float() / 255
        far = (image - best).abs().amax(1, keepdim=True)
        for face in (faces[:, 1:].float() / 255).unbind(1):
            other = (image - face).abs().amax(1, keepdim=True)
            best, far = torch.where(other < far, face, best), torch.minimum(other, far)
        return best

    def forward(
        self, image: Tensor, picture: Tensor | None = None, sample: bool | None = None
    ) -> BackgroundOutput:
        """Explain (B, 3, H, W) images.

        Args:
            image: in [0, 1].
            picture: of the images, where it is there already: that saves time.
            sample: draw the latents, or take the likeliest; None: as the module is in training.
        """
        if picture is None:
            picture = self.picture(image)
        small = F.adaptive_avg_pool2d(image - picture, self.coarse)
        q = Gaussian.from_raw(self.encoder(small.flatten(1)))
        kl = gaussian_kl(q, 0.0, 1.0).sum(1)
        z = q.sample() if (self.training if sample is None else sample) else q.mode()
        return self._draw(picture, z, kl)

    def generate(self, batch: int) -> BackgroundOutput:
        """Draw backgrounds from the prior, with the usual face of a scene."""
        z = torch.randn(batch, self.z_component, device=self.faces.device)
        scene = torch.randint(self.scenes, (batch,), device=self.faces.device)
        return self._draw(self.usual[scene], z, z.new_zeros(batch))

    def _draw(self, picture: Tensor, z: Tensor, kl: Tensor) -> BackgroundOutput:
        coarse = self.decoder(z).view(-1, 3, *self.coarse)
        residual = F.interpolate(coarse, self.size, mode="bilinear", align_corners=False)
        mean = (picture + residual)[:, None]
        return BackgroundOutput(mean, torch.ones_like(mean[:, :, :1]), torch.zeros_like(kl), kl)


class Smooth(Static):
    """One component that is never seen bare: more latents on a finer map, about the mean picture.

    For shaded scenes that differ from frame to frame. The picture is only where the residual
    begins, and is not shown to the foreground.
    """

    def __init__(self, size: tuple[int, int], faces: int = 1, scenes: int = 1) -> None:
        super().__init__(size, faces, scenes=scenes, z_component=32, coarse=8, hidden=128)


def long_runs(image: Tensor, least: int) -> Tensor:
    """(B, C, H, W) -> (B, 1, H, W) bool: pixels in a row or column of `least` equal ones."""

    def same(dim: int) -> Tensor:
        # Resizing leaves equal colours unequal in the last bit.
        return (image.diff(dim=dim).abs() < 0.5 / 255).all(1, keepdim=True)

    return _in_runs(same(-2), -2, least) | _in_runs(same(-1), -1, least)


def _in_runs(same: Tensor, dim: int, least: int) -> Tensor:
    """(…, n - 1) bool whether a pixel equals the one before -> (…, n) whether its run is as long.

    By sums, which cost the same however long a run is: a window of `least` pixels is all equal if
    as many of its neighbours are, and a pixel is in a run if such a window holds it.
    """
    same = same.transpose(dim, -1)
    count = same.shape[-1] + 1
    if count < least:
        return torch.zeros_like(F.pad(same, (0, 1))).transpose(dim, -1)
    equal = F.pad(same.cumsum(-1, dtype=torch.int32), (1, 0))
    begins = equal[..., least - 1 :] - equal[..., : count - least + 1] == least - 1
    before = F.pad(begins.cumsum(-1, dtype=torch.int32), (1, 0))
    at = torch.arange(count, device=same.device)
    last, first = at.clamp(max=count - least) + 1, (at - least + 1).clamp(min=0)
    return (before[..., last] > before[..., first]).transpose(dim, -1)
