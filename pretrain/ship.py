"""Turn a run into shipped weights: measure, write the scores into the header, register, card.

For maintainers, in a checkout, one command a game:
`python -m objrl.pretrain.ship --weights runs/pong-space-fast/weights.safetensors --name space-pong
--env-ids ALE/Pong-v5 PongNoFrameskip-v4 --truth pong.npz`
"""

from __future__ import annotations

import re
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from objrl.pretrain.evaluate import evaluate_perceiver
from objrl.pretrain.measure import Report
from objrl.pretrain.truth import read_truth
from objrl.weights import load, read_header, register, save_weights
from objrl.weights.files import write_atomically
from objrl.weights.registry import FOLDER

# What a user compares: the rest of an evaluation is in its own JSON.
_SCORES = ("f1_centre", "f1_iou", "count_error_centre", "ap50", "ap50_95", "mse")


@dataclass(frozen=True)
class ShipConfig:
    """Measure trained weights and put them into the package."""

    weights: Path
    """A file that `objrl pretrain` wrote."""
    name: str
    """Name to ship it under, model-game."""
    env_ids: tuple[str, ...]
    """Gymnasium ids that it is for."""
    truth: Path | None = None
    """Labelled frames to score it on; never seen in training."""
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
    report, metrics = None, dict(header["metrics"])
    if config.truth is not None:
        labelled = read_truth(config.truth)
        report = evaluate_perceiver(perceiver, labelled.frames, labelled.truth)
        scores = report.metrics()
        metrics |= {name: round(scores[name], 4) for name in _SCORES if name in scores}
    with tempfile.TemporaryDirectory() as folder:
        scored = save_weights(
            *(Path(folder, "scored.safetensors"), perceiver.detector),
            model_name=header["model"],
            data=header["data"],
            training=header["training"],
            metrics=metrics,
        )
        register(scored, config.name, config.env_ids)
    path = Path(str(FOLDER), f"{config.name}.md")
    write_atomically(path, _card(config, header, metrics, report).encode())
    return path


def _card(
    config: ShipConfig, header: dict[str, Any], metrics: dict[str, float], report: Report | None
) -> str:
    data, training = header["data"], header["training"]
    model = header["config"]
    rows = {
        "for": ", ".join(config.env_ids),
        "model": f"{header['model']}, canvas {model['frame_size']}, cells of {model['cell']} px, "
        f"{model['max_slots']} slots, {model['z_what']} features",
        "data": f"{data['frames']:,} frames of {data['env_id']}, policy {data['policy']}, "
        f"seed {data['seed']}, sha256 {str(data['sha256'])[:16]}…",
        "preset": f"{training['preset']}, {training['steps']} steps, seed {training['seed']}",
        "found in the frames": ", ".join(f"{k} {v}" for k, v in training["found"].items()),
        "cost": ", ".join(f"{v} {k}" for k, v in training.items() if re.search("seconds", k)),
        "machine": training["machine"],
        "licence": header["licence"],
    }
    lines = [f"# {config.name}", "", "| | |", "|---|---|"]
    lines += [f"| {name} | {value} |" for name, value in rows.items()]
    lines += ["", "## Scores", "", "| score | value |", "|---|---|"]
    lines += [f"| {name} | {value:.4g} |" for name, value in metrics.items()]
    if report is not None and config.truth is not None:
        lines += ["", "`val_*` on held-out episodes of the data, without labels; the others on "]
        lines[-1] += f"`{config.truth.name}` (`objrl evaluate --truth`), whose boxes come from RAM."
        lines += [
            "",
            "| class | objects | recall by centre | recall by IoU 0.5 |",
            "|---|---|---|---|",
        ]
        lines += [
            f"| {name} | {row['objects']} | {row['recall_centre']:.2f} | {row['recall_iou']:.2f} |"
            for name, row in report.classes().items()
        ]
    if config.misses:
        lines += ["", "## Known misses", "", config.misses]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    import tyro

    print(f"written: {ship(tyro.cli(ShipConfig))}")
