"""What SCALOR brings to the training loop: sequences, what a teacher shows in them, a loss.

Letters: B sequences, T frames, J pieces, N cells, H W canvas.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from objrl.frames import to_image
from objrl.models.median import Scenes
from objrl.models.pieces import Boxes
from objrl.models.regions import Image
from objrl.models.scalor import Scalor
from objrl.models.scalor_loss import Shown, elbo_terms, pupils, taught
from objrl.models.scalor_state import ScalorState
from objrl.models.space_background import Static
from objrl.models.space_loss import alpha_evidence
from objrl.pretrain.configure import Findings, fit_canvas
from objrl.pretrain.scalor_presets import ScalorRecipe
from objrl.pretrain.space_task import blobs_by_cell, cells_within
from objrl.slots import Slots
from objrl.tracking import TrackerConfig, follow, initial_state


class Sequences(NamedTuple):
    """What goes to the device each step; what is shown is empty where the recipe has no teacher."""

    frames: Tensor
    """(B, T, H, W, 3) uint8."""
    track: Tensor
    """(B, T, J) int64."""
    z_where: Tensor
    """(B, T, J, 4) float32."""
    cell: Tensor
    """(B, T, J) int64."""
    weight: Tensor
    """(B, T, N, 1) float32."""

    def to(self, device: torch.device) -> Sequences:
        """Move to a device."""
        return Sequences(*(field.to(device, non_blocking=True) for field in self))

    def shown(self, t: int) -> Shown:
        """Return what a teacher shows in one frame."""
        return Shown(*(field[:, t] for field in self[1:]))


class ScalorTask(nn.Module):
    """One recipe on one set of sequences; `forward` is the loss."""

    model_name = "scalor"

    def __init__(self, recipe: ScalorRecipe, found: Findings | None) -> None:
        super().__init__()
        self.recipe, self.found = recipe, found
        self.length = recipe.lead + recipe.length
        self.model = Scalor(recipe.model)
        if found is not None and isinstance(self.model.background, Static):
            (seen,) = found.seen.every
            faces = torch.from_numpy(seen.scenery.faces).permute(0, 3, 1, 2)
            self.model.background.faces.copy_(faces)

    def perceiver(self) -> Scalor:
        """Return the model as an agent has it."""
        return self.model.eval()

    def optimizers(self) -> list[torch.optim.Optimizer]:
        """Return the one of the whole model."""
        kind = torch.optim.Adam if self.recipe.optimizer == "adam" else torch.optim.RMSprop
        return [kind(self.model.parameters(), lr=self.recipe.lr)]

    def prepare(self, frames: Image) -> Sequences:
        """Turn (B, T, H, W, 3) uint8 frames of any size into a batch, on the host."""
        config = self.recipe.model
        if self.found is None or not self.recipe.has_teacher:
            none = torch.zeros(0)
            return Sequences(torch.from_numpy(frames), none, none, none, none)
        batch, length = frames.shape[:2]
        sized = fit_canvas(frames.reshape(-1, *frames.shape[2:]), config.frame_size)
        sized = sized.reshape(batch, length, *sized.shape[1:])
        rows = config.max_slots
        track = torch.full((batch, length, rows), -1)
        cell = torch.full((batch, length, rows), -1)
        z_where = torch.zeros(batch, length, rows, 4)
        weight = torch.ones(batch, length, config.cells, 1)
        for b in range(batch):
            pieces, ids = followed(sized[b], self.found.seen, rows)
            for t, (boxes, names) in enumerate(zip(pieces, ids, strict=True)):
                n = len(boxes)
                track[b, t, :n] = torch.from_numpy(names)
                # Who has no cell cannot be proposed, but followed.
                shown = blobs_by_cell(boxes, config, self.recipe.margin)
                cell[b, t, :n], z_where[b, t, :n] = shown
                weight[b, t, cells_within(boxes, config), 0] = self.recipe.split_weight
        return Sequences(torch.from_numpy(sized), track, z_where, cell, weight)

    def forward(self, batch: Sequences, at: float) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the loss, and its terms by name as means over sequences and frames.

        Args:
            batch: on the model's device.
            at: time in the recipe's unit.
        """
        recipe, model = self.recipe, self.model
        count, length = batch.frames.shape[:2]
        flat = to_image(batch.frames.flatten(0, 1), *recipe.model.frame_size)
        images = flat.view(count, length, *flat.shape[1:])
        state, pupil = self._led(images, batch, at)
        lead, length = recipe.lead, recipe.length
        images = images[:, lead:]
        frames, state = model.unroll(
            images,
            torch.zeros(count, length, dtype=torch.bool, device=images.device),
            state,
            temperature=recipe.temperature(at),
            sample=model.training,
            detach=at < recipe.detach_until,
        )
        sums: dict[str, Tensor] = {}
        weights: dict[str, float] = {}

        def add(terms: dict[str, Tensor], weight: float) -> None:
            for name, term in terms.items():
                sums[name] = sums.get(name, torch.zeros_like(term)) + term / length
                weights[name] = weight

        error = objects = born = torch.zeros((), device=images.device)
        for t, frame in enumerate(frames):
            add(elbo_terms(frame, images[:, t], recipe.priors(at)), 1.0)
            evidence = recipe.mask_evidence(at)
            if evidence > 0 and frame.differs is not None and frame.alpha is not None:
                add(
                    {"evidence_alpha": alpha_evidence(frame.alpha, frame.differs.float())}, evidence
                )
            if batch.track.numel():
                shown = batch.shown(lead + t)
                now, pupil = pupils(frame, shown, pupil)
                add(taught(frame, shown, now), recipe.taught(at))
            with torch.no_grad():
                error = error + F.mse_loss(frame.reconstruction, images[:, t]) / length
                objects = objects + frame.kept.sum() / (count * length)
                born = born + frame.seats.born.sum() / (count * length)
        means = {name: term.mean() for name, term in sums.items()}
        total = torch.stack([weights[name] * term for name, term in means.items()]).sum()
        return total, {
            **means,
            **{"loss": total.detach(), "mse": error, "objects": objects, "born": born},
        }

    @torch.no_grad()
    def _led(self, images: Tensor, batch: Sequences, at: float) -> tuple[ScalorState, Tensor]:
        """See the frames of the lead, and forget some of what was found.

        Returns:
            The state, and (B, K) int64 the piece that each row follows; -1 for none.
        """
        recipe, model = self.recipe, self.model
        state = model.initial_state(len(images))
        pupil = torch.full_like(state.track_id, -1)
        for t in range(recipe.lead):
            frame, state = model.see(
                *(images[:, t], state),
                temperature=recipe.temperature(at),
                sample=model.training,
                drawn=False,
            )
            if batch.track.numel():
                _, pupil = pupils(frame, batch.shown(t), pupil)
        if recipe.lead and recipe.forgotten and model.training:
            rows = torch.rand(pupil.shape, device=pupil.device) < recipe.forgotten
            # Half of the sequences begin after the lead: first sights are to be learnt, too.
            anew = torch.rand(len(rows), device=rows.device) < 0.5
            rows |= anew[:, None]
            state = state.freed(rows).begun_anew(anew)
            pupil = torch.where(rows, -1, pupil)
        return state, pupil


def followed(
    frames: Image, seen: Scenes, rows: int
) -> tuple[list[Boxes], list[npt.NDArray[np.int64]]]:
    """Find the pieces of (T, H, W, 3) uint8 frames and follow them, without any learning.

    Returns:
        T arrays (M, 4) of boxes in pixels by falling area, at most `rows` of them, and T arrays
        (M,) int64 of which piece each is.
    """
    height, width = frames.shape[1:3]
    side = torch.tensor([width, height], dtype=torch.float32)
    state = initial_state(1, rows, 3)
    first = torch.ones(1, dtype=torch.bool)
    pieces: list[Boxes] = []
    ids: list[npt.NDArray[np.int64]] = []
    for frame in frames:
        boxes, labels = seen.pieces(frame)
        boxes = boxes[:rows]
        count = len(boxes)
        area = np.bincount(labels.ravel(), minlength=count + 1)[1 : count + 1]
        colour = [
            np.bincount(labels.ravel(), frame[..., c].ravel(), count + 1)[1 : count + 1] / 255
            for c in range(3)
        ]
        box = torch.from_numpy(boxes)
        found = Slots.empty(1, rows, 3)
        found.position[0, :count] = (box[:, :2] + box[:, 2:]) / side - 1
        found.scale[0, :count] = (box[:, 2:] - box[:, :2]) / side
        look = np.stack(colour, axis=1) / np.maximum(area, 1)[:, None]
        found.what[0, :count] = torch.from_numpy(look.astype(np.float32))
        # The row that a piece gets tells, by its number there, which it is.
        found.depth[0, :count, 0] = torch.arange(count, dtype=torch.float32)
        found.presence[0, :count] = 1
        slots, state = follow(found, state, first, TrackerConfig())
        first = torch.zeros(1, dtype=torch.bool)
        names = np.full(count, -1)
        here = slots.mask[0]
        names[slots.depth[0, here, 0].long().numpy()] = slots.track_id[0, here, 0].numpy()
        pieces.append(boxes)
        ids.append(names)
    return pieces, ids
