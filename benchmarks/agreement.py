"""How well a SCALOR follows what its teacher follows, on frames held out: no labels are needed.

    .venv/bin/python -m benchmarks.agreement --weights scalor-pong --data runs/pong.h5

It is what recipes and rules are chosen by, so that labelled sequences stay for measuring alone.
The teacher loses objects, too, and shows what no label does: agreement is no score of its own.

Letters: T frames, S sequences.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import tyro

import objrl
from objrl.metrics import Truth
from objrl.models.median import Scenes
from objrl.models.scalor import Scalor
from objrl.pretrain.configure import fit_canvas, look
from objrl.pretrain.joint import by_game
from objrl.pretrain.reading import items, read, spread
from objrl.pretrain.scalor_task import followed
from objrl.pretrain.store import FrameStore
from objrl.pretrain.tracks import TrackedSequence, Tracks, run_tracks

SCORES = ("mota", "idf1", "precision", "recall", "id_switches", "identities", "found_identities")


@dataclass(frozen=True)
class AgreementConfig:
    """Follow held-out sequences, and compare with the teacher."""

    weights: str
    """Name or path of a SCALOR's weights."""
    data: Path
    """Frames of the game, from `objrl collect`; those of `val` are followed."""
    sequences: int = 6
    """S."""
    length: int = 64
    """T."""


def main(config: AgreementConfig) -> dict[str, float]:
    """Print and return the scores, by IoU and by distance."""
    torch.set_num_threads(1)
    model = objrl.load(config.weights, device="cpu")
    if not isinstance(model, Scalor):
        raise ValueError(f"weights: expected a SCALOR's, got {config.weights!r}")
    with FrameStore(config.data) as store:
        looked_at = next(by_game(store))  # as the training does
        rows = items(store, "val", config.length)
        films = read(store, rows[spread(len(rows), config.sequences)])
    size = model.config.frame_size
    seen = look(fit_canvas(looked_at, size)).seen
    shown = tuple(shown_by_teacher(fit_canvas(film, size), seen, model.max_slots) for film in films)
    found = run_tracks(model, Tracks("what the teacher follows", shown)).metrics()
    scores = {
        f"{name}_{rule}": round(float(found[f"{name}_{rule}"]), 4)
        for rule in ("iou", "distance")
        for name in SCORES
    }
    print("\n".join(f"{name:<26}{value:g}" for name, value in scores.items()))
    return scores


def shown_by_teacher(film: np.ndarray, seen: Scenes, rows: int) -> TrackedSequence:
    """Take what the teacher follows for the truth."""
    boxes, ids = followed(film, seen, rows)
    kept = [names >= 0 for names in ids]
    pieces = [np.asarray(b, float)[k] for b, k in zip(boxes, kept, strict=True)]
    names = [i[k] for i, k in zip(ids, kept, strict=True)]
    truth = Truth(pieces, [("piece",) * len(p) for p in pieces], [np.zeros((0, 4)) for _ in pieces])
    return TrackedSequence(film, truth, names)


if __name__ == "__main__":
    main(tyro.cli(AgreementConfig))
