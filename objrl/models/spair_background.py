"""The backgrounds that SPACE's paper gives SPAIR and SPAIR-P, which have none (its D.3): one VAE.

Letters: B batch, C channels, H W canvas.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from objrl.models.space_background import BackgroundOutput, ImageEncoder
from objrl.nn.blocks import Conv, conv_stack
from objrl.nn.distributions import Gaussian, gaussian_kl


class Single(nn.Module):
    """One component: the VAE that SPACE's paper gives SPAIR, which has no background (D.3).

    Ours: for a canvas of 64 x 64 the decoder's last upsampling is twofold, where the paper's is
    fourfold.
    """

    def __init__(self, size: tuple[int, int], z_component: int = 32) -> None:
        super().__init__()
        if size not in ((128, 128), (64, 64)):
            raise ValueError(f"Single: expected a canvas of 128 x 128 or 64 x 64, got {size}")
        self.z_component = z_component
        self.encoder = ImageEncoder(3, (64, 64, 64, 64), 2 * z_component, size)
        rows = [
            *(Conv(256, 1, 1, 16), Conv(256, 1, 1, 16, up=4), Conv(256, 3, 1, 16)),
            *(Conv(128, 1, 1, 16, up=4), Conv(128, 3, 1, 16)),
            *(Conv(64, 1, 1, 8, up=2), Conv(64, 3, 1, 8)),
            *(Conv(16, 1, 1, 4, up=size[0] // 32), Conv(16, 3, 1, 4), Conv(16, 3, 1, 4)),
        ]
        self.decoder = nn.Sequential(
            conv_stack(z_component, rows), nn.Conv2d(16, 3, 3, 1, 1), nn.Sigmoid()
        )

    def forward(self, image: Tensor) -> BackgroundOutput:
        """Explain (B, 3, H, W) images; samples in training mode, posterior means otherwise."""
        q = Gaussian.from_raw(self.encoder(image))
        kl = gaussian_kl(q, 0.0, 1.0).sum(1)
        return self._draw(q.sample() if self.training else q.mode(), kl)

    def generate(self, batch: int) -> BackgroundOutput:
        """Draw backgrounds from the prior."""
        z = torch.randn(batch, self.z_component, device=next(self.parameters()).device)
        return self._draw(z, z.new_zeros(batch))

    def _draw(self, z: Tensor, kl: Tensor) -> BackgroundOutput:
        return _one(self.decoder(z[:, :, None, None]), kl)


def _one(mean: Tensor, kl: Tensor) -> BackgroundOutput:
    """Return a background of one component, from (B, 3, H, W) and (B,)."""
    mean = mean[:, None]
    return BackgroundOutput(mean, torch.ones_like(mean[:, :, :1]), torch.zeros_like(kl), kl)


class Patches(nn.Module):
    """A VAE for each patch of an image, alone: SPAIR-P's background (D.3, "For Patch Training").

    In the table of its decoder a 1 x 1 convolution comes before each ConvSub; their sizes say that
    both are one of our rows, convolution and shuffle. The table has a norm more than the rows that
    this leaves. The encoder's additional linear layer (D.3) comes after its last norm.
    """

    def __init__(self, size: tuple[int, int], side: int, z_component: int = 16) -> None:
        super().__init__()
        if side != 32 or any(length % side for length in size):
            raise ValueError(
                f"Patches: the paper's tables draw 32 x 32, expected patches of 32 on a canvas of "
                f"whole ones, got {side} on {size}"
            )
        self.size, self.side, self.z_component = size, side, z_component
        encoder = ((16, 4), (32, 8), (64, 8), (128, 16), (2 * z_component, 4))
        self.encoder = conv_stack(3, [Conv(c, 2, 2, groups) for c, groups in encoder])
        self.head = nn.Linear(2 * z_component, 2 * z_component)
        rows = [
            *(Conv(256, 1, 1, 16), Conv(128, 1, 1, 16, up=4), Conv(128, 3, 1, 16)),
            *(Conv(64, 1, 1, 8, up=2), Conv(64, 3, 1, 8)),
            *(Conv(16, 1, 1, 4, up=4), Conv(16, 3, 1, 4), Conv(16, 3, 1, 4)),
        ]
        self.decoder = nn.Sequential(
            conv_stack(z_component, rows), nn.Conv2d(16, 3, 3, 1, 1), nn.Sigmoid()
        )

    def forward(self, image: Tensor) -> BackgroundOutput:
        """Explain (B, 3, H, W) of any whole patches; samples in training mode, as `Single`."""
        height, width = image.shape[2:]
        rows, columns = height // self.side, width // self.side
        patches = image.view(-1, 3, rows, self.side, columns, self.side).permute(0, 2, 4, 1, 3, 5)
        q = Gaussian.from_raw(self.head(self.encoder(patches.flatten(0, 2)).flatten(1)))
        kl = gaussian_kl(q, 0.0, 1.0).view(len(image), -1).sum(1)
        return self._draw(q.sample() if self.training else q.mode(), kl, (height, width))

    def generate(self, batch: int) -> BackgroundOutput:
        """Draw backgrounds from the prior."""
        count = batch * self.size[0] * self.size[1] // self.side**2
        z = torch.randn(count, self.z_component, device=next(self.parameters()).device)
        return self._draw(z, z.new_zeros(batch), self.size)

    def _draw(self, z: Tensor, kl: Tensor, size: tuple[int, int]) -> BackgroundOutput:
        rows, columns = (length // self.side for length in size)
        drawn = self.decoder(z[:, :, None, None]).view(-1, rows, columns, 3, self.side, self.side)
        return _one(drawn.permute(0, 3, 1, 4, 2, 5).reshape(-1, 3, *size), kl)
