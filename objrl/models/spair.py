"""SPAIR: cells that are inferred one after the other (Crawford and Pineau 2019, AAAI).

As the baseline that SPACE compares with (its section 4 and D.3): its networks are SPACE's, but a
cell's latents depend on those of the cells before it, so that two cells need not both take an
object; the price is a loop over cells. The background that SPAIR lacks is a VAE (`Single`).
Objects are drawn in parallel, as there. SPAIR-P, which learns from patches of frames, is the same
with another VAE (`Patches`).

Letters: B batch, N cells, D z_what, g glimpse side.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from objrl.frames import to_image
from objrl.models.space import Latents, Percept, Space
from objrl.models.space_foreground import Cells, SpaceConfig
from objrl.nn.distributions import Gaussian, relaxed_bernoulli, take
from objrl.nn.spatial import extract

_NEIGHBOURS = ((-1, -1), (-1, 0), (-1, 1), (0, -1))
"""Rows and columns away: the cells beside this one that came before it."""

_HIDDEN = 100
"""Units of the two layers that weigh a cell's features and its neighbours (auto_yolo)."""


class Spair(Space):
    """The whole model; a `Detector` for `FramePerceiver`."""

    def __init__(self, config: SpaceConfig) -> None:
        """Make it.

        Raises:
            ValueError: cells that are not all looked into, a background that is known, patches
                that are not of whole cells, or a canvas or a patch that the papers' tables do not
                draw.
        """
        if not config.dense or config.background not in ("single", "components"):
            raise ValueError(
                "SpaceConfig: SPAIR looks into every cell and knows no background: expected dense "
                f"and background single or components, got {config.dense}, {config.background}"
            )
        if config.patch and (config.background != "single" or config.patch % config.cell):
            raise ValueError(
                "SpaceConfig: expected patches of whole cells, with background single, got "
                f"{config.patch}, cells of {config.cell} and background {config.background}"
            )
        super().__init__(config)
        net = self.foreground
        width = net.heads.in_channels
        # Of a neighbour: z_pres, z_depth, z_scale, z_shift before they are squashed, z_what.
        self.latent = 1 + 1 + 2 + 2 + config.z_what
        inputs = width + len(_NEIGHBOURS) * self.latent
        self.lateral = nn.Sequential(
            *(nn.Linear(inputs, _HIDDEN), nn.CELU()),
            *(nn.Linear(_HIDDEN, _HIDDEN), nn.CELU(), nn.Linear(_HIDDEN, width)),
        )
        self.edge = nn.Parameter(torch.zeros(self.latent))

    def latents(self, shown: Tensor, temperature: float, sample: bool | None = None) -> Latents:
        """Infer the objects of (B, 3, H, W), a canvas or a patch, cell by cell, row by row."""
        sample = self.training if sample is None else sample
        net, height, width = self.foreground, *shown.shape[2:]
        features = net.features(shown)  # (B, C, rows, columns)
        rows, columns = features.shape[2:]
        draw = Gaussian.sample if sample else Gaussian.mode
        made: list[Tensor] = []
        cells: list[Latents] = []
        for number in range(rows * columns):
            row, column = divmod(number, columns)
            own = features[:, :, row, column]
            beside = [
                made[number + y * columns + x]
                if row + y >= 0 and 0 <= column + x < columns
                else self.edge.expand(len(shown), -1)
                for y, x in _NEIGHBOURS
            ]
            seen = own + self.lateral(torch.cat([own, *beside], dim=1))
            cell = net.read(seen[:, :, None, None])
            z_pres = torch.sigmoid(cell.logit)
            if sample:
                z_pres = relaxed_bernoulli(cell.logit, temperature)
            scale, shift, z_depth = (draw(q) for q in (cell.scale, cell.shift, cell.depth))
            place = net.cell_index[row * self.config.grid[1] + column]
            where = net.where(scale, shift, place, (height, width))
            what = net.encode_glimpses(extract(shown, where, net.glimpse))
            z_what = draw(what)
            made.append(torch.cat([z_pres, z_depth, scale, shift, z_what], dim=2)[:, 0])
            index = torch.full_like(z_pres[..., 0], number, dtype=torch.int64)
            cells.append(Latents(cell, z_pres, index, where, z_depth, what, z_what))
        return _joined(cells)

    def perceive(self, frames: Tensor, least: float = 0.0) -> Percept:
        """See (B, H, W, 3) uint8 frames as an agent needs it; all cells are looked into."""
        seen = self.latents(to_image(frames, *self.config.frame_size), 0.5, sample=False)
        index = self._choose(seen.z_pres, self.max_slots)
        z_what = take(seen.z_what, index)
        return Percept(
            presence=take(seen.z_pres, index),
            z_where=take(seen.z_where, index),
            z_depth=take(seen.z_depth, index),
            z_what=z_what,
            outline=self.masks(z_what),
        ).padded(self.max_slots)


def _joined(parts: list[Latents]) -> Latents:
    """Put cells side by side: (B, 1, ·) of each -> (B, N, ·)."""

    def gaussian(each: list[Gaussian]) -> Gaussian:
        return Gaussian(torch.cat([q.mean for q in each], 1), torch.cat([q.std for q in each], 1))

    return Latents(
        Cells(
            torch.cat([part.cells.logit for part in parts], 1),
            gaussian([part.cells.depth for part in parts]),
            gaussian([part.cells.scale for part in parts]),
            gaussian([part.cells.shift for part in parts]),
        ),
        torch.cat([part.z_pres for part in parts], 1),
        torch.cat([part.index for part in parts], 1),
        torch.cat([part.z_where for part in parts], 1),
        torch.cat([part.z_depth for part in parts], 1),
        gaussian([part.what for part in parts]),
        torch.cat([part.z_what for part in parts], 1),
    )
