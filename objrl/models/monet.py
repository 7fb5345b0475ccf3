"""MONet: an attention network cuts a scene in K parts, a VAE explains each (Burgess et al. 2019).

arXiv 1901.11390. R-MONet and ECON extend it, and compare with it. `forward` follows sections 2.1
and 2.2, `monet_terms` is eq. 3; the tables are appendix B.

Letters: B batch, K slots, D size of a slot's code, H W canvas.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from objrl.models.mixture import MixtureDetector, Scene, check_slots
from objrl.nn.broadcast import BroadcastConv
from objrl.nn.distributions import Gaussian, gaussian_kl
from objrl.nn.mixture import mask_kl, mixture_log_prob
from objrl.nn.unet import UNet

_CONVOLUTIONS = 4
"""Of the decoder, without padding: each uses up a pixel at each side of the map."""


@dataclass(frozen=True)
class MonetConfig:
    """The size of a MONet."""

    frame_size: tuple[int, int] = (64, 64)
    """Canvas (H, W) that frames are resized to."""
    slots: int = 6
    """K, the background among them."""
    z_what: int = 16
    """D, size of a slot's code."""
    attention: tuple[int, ...] = (32, 32, 64, 64, 64)
    """Channels of the U-Net's blocks: five for 64 x 64, six for 128 x 128."""
    encoder: tuple[int, ...] = (32, 32, 64, 64)
    """Channels of the encoder's convolutions, each of which halves the map."""
    decoder: int = 32
    """Channels of the decoder's four convolutions."""
    hidden: int = 256
    """Units between the encoder's convolutions and the code."""

    def __post_init__(self) -> None:
        check_slots(self.slots)

    def with_slots(self, count: int) -> MonetConfig:
        """Return the same with another K, which training does not fix."""
        return replace(self, slots=count)


@dataclass(frozen=True)
class MonetOutput:
    """Everything that the loss and the pictures need.

    Attributes:
        scene: the attention network's masks, what the VAE paints, and its codes.
        log_painted: (B, K, 1, H, W) the masks as the VAE paints them, p(c | z).
    """

    scene: Scene
    log_painted: Tensor


class ComponentVae(nn.Module):
    """Appendix B.1: sees an image through a mask; paints both anew, in colour and as a logit."""

    def __init__(self, config: MonetConfig) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        before, (height, width) = 4, config.frame_size
        for channels in config.encoder:
            layers += [nn.Conv2d(before, channels, 3, 2, 1), nn.ReLU()]
            before, height, width = channels, -(-height // 2), -(-width // 2)
        self.encoder = nn.Sequential(
            *layers,
            nn.Flatten(),
            *(nn.Linear(before * height * width, config.hidden), nn.ReLU()),
            nn.Linear(config.hidden, 2 * config.z_what),
        )
        more = 2 * (_CONVOLUTIONS - 1)
        height, width = config.frame_size
        layers = [
            BroadcastConv(config.z_what, config.decoder, 3, (height + more, width + more)),
            nn.ReLU(),
        ]
        for _ in range(_CONVOLUTIONS - 1):
            layers += [nn.Conv2d(config.decoder, config.decoder, 3), nn.ReLU()]
        self.decoder = nn.Sequential(*layers, nn.Conv2d(config.decoder, 4, 1))

    def forward(self, image: Tensor, log_mask: Tensor, sample: bool) -> tuple[Scene, Tensor]:
        """(B, 3, H, W) and (B, K, 1, H, W) -> the scene, and the masks that it paints."""
        shape = log_mask.shape[:2]
        shown = torch.cat([image[:, None].expand(-1, shape[1], -1, -1, -1), log_mask], dim=2)
        code = Gaussian.from_raw(self.encoder(shown.flatten(0, 1)).unflatten(0, shape))
        mean, painted = self.paint(code.sample() if sample else code.mode())
        return Scene(mean, log_mask, code), painted

    def painted(self, z: Tensor) -> Tensor:
        """(B, K, D) -> (B, 3, H, W), by the masks that are painted too."""
        mean, log_mask = self.paint(z)
        return (log_mask.exp() * mean).sum(1)

    def paint(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """(B, K, D) -> (B, K, 3, H, W) colours, (B, K, 1, H, W) logarithms of masks."""
        drawn = self.decoder(z.flatten(0, 1)).float().unflatten(0, z.shape[:2])
        return torch.sigmoid(drawn[:, :, :3]), torch.log_softmax(drawn[:, :, 3:], dim=1)


class Monet(MixtureDetector):
    """The whole model; a `Detector` for `FramePerceiver`."""

    def __init__(self, config: MonetConfig) -> None:
        super().__init__()
        self.config = config
        self.frame_size = config.frame_size
        self.max_slots, self.what_size = config.slots, config.z_what
        self.attention = UNet(4, 1, config.frame_size, config.attention)
        self.component = ComponentVae(config)

    def forward(self, image: Tensor, sample: bool | None = None) -> MonetOutput:
        """Explain (B, 3, H, W) images.

        Args:
            image: in [0, 1].
            sample: draw the codes, or take their means; None: as the module is in training.
        """
        log_mask = self.attend(image)
        return MonetOutput(
            *self.component(image, log_mask, self.training if sample is None else sample)
        )

    def attend(self, image: Tensor) -> Tensor:
        """(B, 3, H, W) -> (B, K, 1, H, W) logarithms of masks (eq. 2).

        The network sees the scope, what no slot has yet, as its logarithm; the last slot has the
        rest of it.
        """
        log_scope = torch.zeros_like(image[:, :1])
        log_masks = []
        for _ in range(self.config.slots - 1):
            logit = self.attention(torch.cat([image, log_scope], dim=1)).float()
            log_masks.append(log_scope + F.logsigmoid(logit))
            log_scope = log_scope + F.logsigmoid(-logit)
        return torch.stack([*log_masks, log_scope], dim=1)

    def explain(self, image: Tensor) -> Scene:
        """(B, 3, H, W) in [0, 1] -> what is likeliest, in training mode too."""
        scene: Scene = self(image, sample=False).scene
        return scene

    def paint(self, code: Tensor) -> Tensor:
        """(B, K, D) codes -> (B, 3, H, W), by the masks that the VAE paints."""
        return self.component.painted(code)


def monet_terms(
    output: MonetOutput, image: Tensor, sigma_bg: float, sigma_fg: float, behind: int = 0
) -> dict[str, Tensor]:
    """Return the terms of eq. 3 as (B,) nats: the loss is nll + beta kl_what + gamma kl_mask.

    Args:
        output: of the model.
        image: (B, 3, H, W).
        sigma_bg: standard deviation of one slot's pixels, which so is apt to be the background.
        sigma_fg: that of the others'.
        behind: which slot that is.
    """
    scene = output.scene
    std = image.new_full((scene.mean.shape[1], 1, 1, 1), sigma_fg)
    std[behind] = sigma_bg
    return {
        "nll": -mixture_log_prob(image, scene.mean, scene.log_mask, std).flatten(1).sum(1),
        "kl_what": gaussian_kl(scene.code, 0.0, 1.0).sum((1, 2)),
        "kl_mask": mask_kl(scene.log_mask, output.log_painted),
    }
