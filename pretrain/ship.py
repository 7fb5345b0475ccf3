"""Turn a run into shipped weights: measure, write the scores into the header, register, card.

For maintainers, in a checkout, one command a game:
`python -m objrl.pretrain.ship --weights runs/pong-space-fast/weights.safetensors --name space-pong
--env-ids ALE/Pong-v5 PongNoFrameskip-v4 --truth pong.npz`
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from objrl.atomic import write_atomically
from objrl.perceiver import model_of
from objrl.pretrain.evaluate import evaluate_perceiver
from objrl.pretrain.measure import Report
from objrl.pretrain.scene_scores import read_scenes, score_scenes
from objrl.pretrain.tracks import TrackReport, read_tracks, run_tracks
from objrl.pretrain.truth import join_truth, read_truth
from objrl.weights import load, read_header, register, save_weights
from objrl.weights.registry import FOLDER

# What a user compares: the rest of an evaluation is in its own JSON.
_SCORES = ("f1_centre", "f1_iou", "count_error_centre", "ap50", "ap50_95", "mse")
_TRACK_SCORES = tuple(
    f"{score}_{rule}"
    for rule in ("iou", "distance")
    for score in ("mota", "idf1", "hota", "precision", "recall", "id_switches", "count_error")
)

_MODEL = {
    "model": "{}",
    "frame_size": "canvas {}",
    "cell": "cells of {} px",
    "max_slots": "{} slots",
    "z_what": "{} features",
}
_DATA = {
    "frames": "{:,} frames",
    "env_id": "{}",
    "policy": "policy {}",
    "seed": "seed {}",
    "sha256": "sha256 {}…",
}
_PRESET = {"preset": "{}", "steps": "{} steps", "seed": "seed {}"}


@dataclass(frozen=True)
class ShipConfig:
    """Measure trained weights and put them into the package."""

    weights: Path
    """A file that `objrl pretrain` wrote."""
    name: str
    """Name to ship it under, model-game."""
    env_ids: tuple[str, ...] = ()
    """Gymnasium ids that it is for; none for scenes."""
    truth: tuple[Path, ...] = ()
    """Files of labelled frames to score it on, together; never seen in training."""
    tracks: Path | None = None
    """A file of labelled sequences to score it on as it follows; never seen in training."""
    misses: str = ""
    """What it is known to miss, in a sentence, for the card."""


def ship(config: ShipConfig) -> Path:
    """Ship and return the path of the model card.

    Raises:
        ValueError: a file that is no weights file or no truth.
        FileNotFoundError: no such file.
    """
    header = read_header(config.weights)
    perceiver = load(config.weights, device="cpu")
    report, followed, metrics = None, None, dict(header["metrics"])
    if config.truth:
        labelled = join_truth([read_truth(path) for path in config.truth])
        report = evaluate_perceiver(perceiver, labelled.frames, labelled.truth)
        scores = report.metrics()
        metrics |= {name: round(scores[name], 4) for name in _SCORES if name in scores}
        scenes = read_scenes(config.truth[0]) if len(config.truth) == 1 else None
        if scenes is not None:
            apart = score_scenes(perceiver, scenes)
            metrics |= {name: round(value, 4) for name, value in apart.items()}
    if config.tracks:
        followed = run_tracks(perceiver, read_tracks(config.tracks))
        scores = followed.metrics()
        metrics |= {name: round(scores[name], 4) for name in _TRACK_SCORES}
    # Before anything is shipped that lacks one.
    card = _card(config, header, metrics, report, followed)
    with tempfile.TemporaryDirectory() as folder:
        scored = save_weights(
            *(Path(folder, "scored.safetensors"), model_of(perceiver)),
            model_name=header["model"],
            data=header["data"],
            training=header["training"],
            metrics=metrics,
        )
        register(scored, config.name, config.env_ids)
    path = Path(str(FOLDER), f"{config.name}.md")
    write_atomically(path, card.encode())
    return path


def _card(
    config: ShipConfig,
    header: dict[str, Any],
    metrics: dict[str, float],
    report: Report | None,
    followed: TrackReport | None,
) -> str:
    data = {**header["data"], "sha256": str(header["data"].get("sha256", "?"))[:16]}
    training = header["training"]
    rows = {
        "for": ", ".join(config.env_ids) or "no environment",
        "model": _say({"model": header["model"], **header["config"]}, _MODEL),
        "data": _say(data, _DATA),
        "preset": _say(training, _PRESET),
        "found in the frames": ", ".join(f"{k} {v}" for k, v in training.get("found", {}).items()),
        "cost": ", ".join(f"{v} {k}" for k, v in training.items() if "seconds" in k),
        "machine": training.get("machine", ""),
        "licence": header["licence"],
    }
    lines = [f"# {config.name}", "", "| | |", "|---|---|"]
    lines += [f"| {name} | {value} |" for name, value in rows.items() if value]
    lines += ["", "## Scores", "", "| score | value |", "|---|---|"]
    lines += [f"| {name} | {value:.4g} |" for name, value in metrics.items()]
    if report is not None:
        lines += ["", "`val_*` on held-out episodes of the data, without labels; the others on "]
        names = ", ".join(dict.fromkeys(f"`{path.name}`" for path in config.truth))
        lines[-1] += (
            f"{len(report.seen.boxes)} frames of {names} (`objrl evaluate --truth`), whose "
        )
        lines[-1] += f"boxes {'were drawn with them' if 'ari_fg' in metrics else 'come from RAM'}."
        lines += [
            "",
            "| class | objects | recall by centre | recall by IoU 0.5 |",
            "|---|---|---|---|",
        ]
        lines += [
            f"| {name} | {row['objects']} | {row['recall_centre']:.2f} | {row['recall_iou']:.2f} |"
            for name, row in report.classes().items()
        ]
    if config.tracks and followed is not None:
        lines += ["", f"`mota`, `idf1` and what follows them: `{config.tracks.name}`, "]
        lines[-1] += f"{len(followed.found)} sequences, followed frame by frame "
        lines[-1] += "(`objrl evaluate --tracks`; docs/tracking.md says what the scores are)."
        lines += ["", "| class | objects | switches of identity by IoU |", "|---|---|---|"]
        lines += [
            f"| {name} | {row['objects']:.0f} | {row['id_switches']:.0f} |"
            for name, row in followed.classes.items()
        ]
    misses = config.misses or (_missed(report) if report is not None else "")
    if misses:
        lines += ["", "## Known misses", "", misses]
    return "\n".join(lines) + "\n"


def _missed(report: Report, share: float = 0.6) -> str:
    """Name the classes of which less than that share is found."""
    few = [
        f"{name} ({row['recall_centre']:.0%} of {row['objects']:.0f})"
        for name, row in report.classes().items()
        if row["recall_centre"] < share
    ]
    return f"Of these it finds few, by centre: {', '.join(few)}." if few else ""


def _say(values: Mapping[str, Any], phrases: Mapping[str, str]) -> str:
    """Say what is known: a model without learning has no cells and no steps."""
    return ", ".join(text.format(values[key]) for key, text in phrases.items() if key in values)


if __name__ == "__main__":
    import tyro

    print(f"written: {ship(tyro.cli(ShipConfig))}")
