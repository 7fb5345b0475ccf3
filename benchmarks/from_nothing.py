"""From nothing to a detector on one core: train a few seeds and score them as they come out.

`.venv/bin/python -m benchmarks.from_nothing --data runs/space_invaders.h5 --truth FILE.npz`
"""

from __future__ import annotations

import json
import platform
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import torch
import tyro

import objrl
from objrl.atomic import write_atomically
from objrl.pretrain.evaluate import evaluate_perceiver
from objrl.pretrain.truth import read_truth


@dataclass(frozen=True)
class FromNothingConfig:
    """Train several seeds for so many steps on one thread, and write a table of their scores."""

    data: Path
    """Frames to learn from, of `objrl collect`."""
    truth: Path
    """Labelled frames to score on."""
    steps: int = 600
    """Of training."""
    seeds: int = 3
    """How many, from 0."""
    out: Path = Path("docs/from_nothing.md")
    """The page."""


def main(config: FromNothingConfig) -> None:
    """Train, score, write the page."""
    labelled = read_truth(config.truth)
    rows = []
    for seed in range(config.seeds):
        with tempfile.TemporaryDirectory() as folder:
            run = Path(folder, "run")
            options = {"data": config.data, "steps": config.steps, "seed": seed, "out": run}
            command = [f"--{name}={value}" for name, value in options.items()]
            subprocess.run(
                [sys.executable, "-m", "objrl.cli", "pretrain", "--threads=1", *command], check=True
            )
            report = json.loads((run / "report.json").read_text())
            perceiver = objrl.load(run / "weights.safetensors", device="cpu")
        scores = evaluate_perceiver(perceiver, labelled.frames, labelled.truth).metrics()
        picked = [scores[name] for name in ("f1_centre", "f1_iou", "count_error_centre")]
        rows.append((seed, report["cpu_seconds"], report["seconds"], *picked))
    write_atomically(config.out, _page(config, len(labelled.frames), rows).encode())


def _page(config: FromNothingConfig, frames: int, rows: list[tuple[float, ...]]) -> str:
    lines = [
        "# From nothing on one core",
        "",
        "Written by `.venv/bin/python -m benchmarks.from_nothing`; do not edit by hand.",
        "",
        f"`objrl pretrain --preset space-fast --steps {config.steps} --threads 1` on "
        f"`{config.data.name}`, scored on the {frames} frames of `{config.truth.name}`. CPU "
        "seconds are all of the training process's, reading frames and drawing pictures included. "
        f"{platform.machine()}, torch {torch.__version__}.",
        "",
        "| seed | CPU-s | wall-s | F1 by centre | F1 at IoU 0.5 | count error |",
        "|--:|--:|--:|--:|--:|--:|",
    ]
    lines += [
        f"| {seed} | {cpu:.0f} | {wall:.0f} | {f1:.3f} | {iou:.3f} | {count:.3f} |"
        for seed, cpu, wall, f1, iou, count in rows
    ]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main(tyro.cli(FromNothingConfig))
