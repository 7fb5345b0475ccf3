"""What a run says of itself at its end: held-out terms of the loss, and a picture. No labels."""

from __future__ import annotations

import torch

from objrl.draw import contact_sheet
from objrl.models.regions import Image
from objrl.perceiver import Perceiver
from objrl.pretrain.measure import take_apart
from objrl.pretrain.task import Task


@torch.no_grad()
def final_metrics(task: Task, frames: Image, batch: int = 16) -> dict[str, float]:
    """Return means over (N, H, W, 3) uint8 held-out frames, posterior means in place of samples.

    Or over (N, T, H, W, 3) sequences of them.

    `val_elbo` is in nats a frame with the priors at the end of the recipe's schedules, `val_mse`
    the mean squared error of a pixel's channel, `val_objects` the number of objects a frame.
    """
    task.model.eval()
    device = next(task.model.parameters()).device
    last = float("inf") if task.recipe.unit == "steps" else 1.0
    sums = {"elbo": 0.0, "mse": 0.0, "objects": 0.0}
    for begin in range(0, len(frames), batch):
        part = task.prepare(frames[begin : begin + batch])
        _, terms = task(part.to(device), last)
        nats = [v for k, v in terms.items() if k == "nll" or k.startswith("kl_")]
        count = len(frames[begin : begin + batch])
        sums["elbo"] -= float(torch.stack(nats).sum()) * count
        sums["mse"] += float(terms["mse"]) * count
        sums["objects"] += float(terms["objects"]) * count
    return {f"val_{name}": round(value / len(frames), 6) for name, value in sums.items()}


@torch.no_grad()
def picture(perceiver: Perceiver, frames: Image) -> Image:
    """Draw input, boxes, foreground, background and mask of (N, H, W, 3) uint8 frames."""
    tensor = torch.from_numpy(frames)
    slots = perceiver.encode(tensor)
    parts = take_apart(perceiver, tensor)
    assert parts is not None
    return contact_sheet(frames, slots.to("cpu"), parts)
