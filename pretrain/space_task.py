"""What SPACE brings to the training loop: batches with evidence, a loss, pictures.

Letters: B batch, N cells, K rendered cells, H W canvas.
"""

from __future__ import annotations

from typing import NamedTuple, Protocol

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from objrl.frames import to_image
from objrl.models.regions import Image
from objrl.models.space import Space, SpaceConfig, SpaceOutput
from objrl.models.space_background import Static
from objrl.models.space_loss import (
    Evidence,
    alpha_evidence,
    boundary_loss,
    elbo_terms,
    evidence_terms,
)
from objrl.models.spair import Spair
from objrl.perceiver import FramePerceiver
from objrl.pretrain.configure import Findings, fit_canvas
from objrl.pretrain.presets import SpaceRecipe

_MOST_SHIFT = 0.9
"""How far from its cell's centre, in cells, an object is meant to sit at most."""


class Grid(Protocol):
    """A canvas and the cells on it: what SPACE's and SCALOR's settings have in common."""

    @property
    def frame_size(self) -> tuple[int, int]:
        """(H, W)."""

    @property
    def cell(self) -> int:
        """Side of a cell in pixels."""

    @property
    def grid(self) -> tuple[int, int]:
        """(rows, columns)."""


class Batch(NamedTuple):
    """What goes to the device each step; evidence is empty where the recipe asks for none."""

    frames: Tensor
    """(B, H, W, 3) uint8."""
    presence: Tensor
    """(B, N, 1) float32."""
    weight: Tensor
    """(B, N, 1) float32."""
    z_where: Tensor
    """(B, N, 4) float32."""
    alpha: Tensor
    """(B, 1, H, W) uint8."""

    def to(self, device: torch.device) -> Batch:
        """Move to a device."""
        return Batch(*(field.to(device, non_blocking=True) for field in self))


class SpaceTask(nn.Module):
    """One recipe on one set of frames; `forward` is the loss, so that DDP sees a whole step."""

    length = 1

    def __init__(self, recipe: SpaceRecipe, found: Findings | None) -> None:
        super().__init__()
        self.recipe, self.found = recipe, found
        self.model_name = "spair" if recipe.sequential else "space"
        self.model = Spair(recipe.model) if recipe.sequential else Space(recipe.model)
        if recipe.self_configure:
            _begin_at_priors(self.model, recipe)
        if found is not None and isinstance(self.model.background, Static):
            every = [seen.scenery.faces for seen in found.seen.every]
            # All have as many faces as the one with most: the usual one again and again.
            most = np.arange(max(map(len, every)))
            faces = np.concatenate([f[np.where(most < len(f), most, 0)] for f in every])
            self.model.background.faces.copy_(torch.from_numpy(faces).permute(0, 3, 1, 2))

    def perceiver(self) -> FramePerceiver:
        """Return the model as an agent has it."""
        return FramePerceiver(self.model)

    def optimizers(self) -> list[torch.optim.Optimizer]:
        """Return one for the foreground, one for the background (D.2)."""
        # All that is not the background's: SPAIR has more than its foreground's networks.
        behind = {id(parameter) for parameter in self.model.background.parameters()}
        foreground = [p for p in self.model.parameters() if id(p) not in behind]
        kind = torch.optim.Adam if self.recipe.fg_optimizer == "adam" else torch.optim.RMSprop
        background = torch.optim.Adam(self.model.background.parameters(), lr=self.recipe.bg_lr)
        return [kind(foreground, lr=self.recipe.fg_lr), background]

    def prepare(self, frames: Image) -> Batch:
        """Turn (B, H, W, 3) uint8 frames of any size into a batch, on the host."""
        config = self.recipe.model
        height, width = config.frame_size
        tensor = torch.from_numpy(frames)
        if self.found is None or not self.recipe.self_configure:
            none = torch.zeros(0)
            return Batch(tensor, none, none, none, none)
        sized = fit_canvas(frames, config.frame_size)
        presence = torch.zeros(len(frames), config.cells, 1)
        weight = torch.ones_like(presence)
        z_where = torch.zeros(len(frames), config.cells, 4)
        alpha = torch.zeros(len(frames), 1, height, width, dtype=torch.uint8)
        for b, frame in enumerate(sized):
            seen = self.found.seen.of(frame)
            boxes, labels = seen.pieces(frame)
            shown = labels > 0
            if seen.scenery.shaded:
                # Things of one hue run together and make no piece: how many, the ELBO must say.
                shown |= seen.scenery.differs(frame) > 0
                weight[b, at_centres(shown & (labels == 0), config), 0] = 0
            cell, where = blobs_by_cell(boxes, config, self.recipe.margin)
            cell, where = cell[cell >= 0], where[cell >= 0]
            presence[b, cell, 0] = 1
            weight[b, cells_within(boxes, config), 0] = self.recipe.split_weight
            weight[b, cell, 0] = 1
            z_where[b, cell] = where
            alpha[b, 0] = torch.from_numpy(shown.astype(np.uint8))
        return Batch(torch.from_numpy(sized), presence, weight, z_where, alpha)

    def forward(self, batch: Batch, at: float) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the loss, and its terms by name as means over the batch.

        Args:
            batch: on the model's device.
            at: time in the recipe's unit.
        """
        recipe = self.recipe
        image = to_image(batch.frames, *recipe.model.frame_size)
        if recipe.model.patch and self.model.training:
            image = random_patches(image, recipe.model.patch)
        out: SpaceOutput = self.model(image, recipe.temperature(at))
        terms = elbo_terms(out, image, recipe.priors(at))
        weights = dict.fromkeys(terms, 1.0)
        if at < recipe.boundary_until:
            height, width = image.shape[2:]
            terms["boundary"] = boundary_loss(out, (height, width))
            weights["boundary"] = recipe.boundary_weight
        if batch.presence.numel():
            evidence = Evidence(*batch[1:4], alpha=batch.alpha.float())
            pull = evidence_terms(out, evidence)
            weights |= dict.fromkeys(pull, recipe.evidence(at))
            terms |= pull
            if recipe.alpha_evidence(at) > 0:
                terms["evidence_alpha"] = alpha_evidence(out.foreground.alpha, evidence.alpha)
                weights["evidence_alpha"] = recipe.alpha_evidence(at)
        means = {name: term.mean() for name, term in terms.items()}
        total = torch.stack([weights[name] * term for name, term in means.items()]).sum()
        with torch.no_grad():
            means["loss"] = total
            means["objects"] = (out.cells.logit > 0).sum() / len(image)
            means["mse"] = F.mse_loss(out.reconstruction, image)
        return total, means


def random_patches(image: Tensor, side: int) -> Tensor:
    """(B, C, H, W) -> (B, C, side, side), cut out anywhere, of each image at a place of its own."""
    batch, channels, height, width = image.shape
    top = torch.randint(height - side + 1, (batch, 1), device=image.device)
    left = torch.randint(width - side + 1, (batch, 1), device=image.device)
    along = torch.arange(side, device=image.device)
    index = ((top + along)[:, :, None] * width + (left + along)[:, None]).view(batch, 1, -1)
    cut = image.flatten(2).gather(2, index.expand(-1, channels, -1))
    return cut.view(batch, channels, side, side)


def blobs_by_cell(
    boxes: np.ndarray[tuple[int, ...], np.dtype[np.float32]], config: Grid, margin: float
) -> tuple[Tensor, Tensor]:
    """Give blobs to the cells that their centres lie in, each cell one at most.

    Of several in one cell the largest has it, and each of the others the free cell nearest to it of
    those whose z_shift reaches so far, where there is one.

    Args:
        boxes: (M, 4) x0 y0 x1 y1 in canvas pixels, by falling area.
        config: whose grid.
        margin: how much wider than its blob a box is meant to be.

    Returns:
        (M,) int64 each blob's cell, -1 where there is none, and (M, 4) z_where.
    """
    height, width = config.frame_size
    rows, columns = config.grid
    side = np.array([width, height], np.float32)
    centre = (boxes[:, :2] + boxes[:, 2:]) / 2
    column, row = np.minimum(centre // config.cell, [columns - 1, rows - 1]).astype(np.int64).T
    own = row * columns + column
    _, first = np.unique(own, return_index=True)
    cell = np.full(len(boxes), -1)
    cell[first] = own[first]
    for late in np.setdiff1d(np.arange(len(boxes)), first):
        # How far each cell's centre is from the blob's, in cells; tanh never gets to 1.
        y = np.abs(np.arange(rows) + 0.5 - centre[late, 1] / config.cell)
        x = np.abs(np.arange(columns) + 0.5 - centre[late, 0] / config.cell)
        far = np.hypot(y[:, None], x) + np.where(
            (y[:, None] < _MOST_SHIFT) & (x < _MOST_SHIFT), 0, np.inf
        )
        far.ravel()[cell[cell >= 0]] = np.inf
        if np.isfinite(far.min()):
            cell[late] = far.argmin()
    scale = np.minimum((boxes[:, 2:] - boxes[:, :2]) * margin / side, 0.99)
    where = np.concatenate([scale, 2 * centre / side - 1], axis=1)
    return torch.from_numpy(cell), torch.from_numpy(where.astype(np.float32))


def at_centres(
    mask: np.ndarray[tuple[int, ...], np.dtype[np.bool_]], config: SpaceConfig
) -> np.ndarray[tuple[int, ...], np.dtype[np.bool_]]:
    """(H, W) bool -> (N,) what it is at the cells' centres."""
    rows, columns = (np.arange(n) * config.cell + config.cell // 2 for n in config.grid)
    at: np.ndarray[tuple[int, ...], np.dtype[np.bool_]] = mask[np.ix_(rows, columns)].ravel()
    return at


def cells_within(
    boxes: np.ndarray[tuple[int, ...], np.dtype[np.float32]], config: Grid
) -> np.ndarray[tuple[int, ...], np.dtype[np.bool_]]:
    """(M, 4) boxes in canvas pixels -> (N,) bool: cells whose centres lie in one."""
    rows, columns = config.grid
    y, x = ((np.arange(n) + 0.5) * config.cell for n in (rows, columns))
    inside_x = (x >= boxes[:, None, 0]) & (x < boxes[:, None, 2])
    inside_y = (y >= boxes[:, None, 1]) & (y < boxes[:, None, 3])
    within: np.ndarray[tuple[int, ...], np.dtype[np.bool_]] = (
        (inside_y[:, :, None] & inside_x[:, None, :]).any(0).ravel()
    )
    return within


def _begin_at_priors(model: Space, recipe: SpaceRecipe) -> None:
    """Let the boxes begin as large as the prior has them, and nearly certain of it."""
    heads = model.foreground.heads
    assert heads.bias is not None
    with torch.no_grad():
        heads.weight[3:].mul_(0.3)
        # Rows of the heads: z_pres, z_depth (mean, std), z_scale (2 means, 2 stds), z_shift (same).
        heads.bias[3:5] = torch.tensor([mean(0) for mean in recipe.scale_mean])
        heads.bias[5:7] = -2.0
        heads.bias[9:11] = -1.0
