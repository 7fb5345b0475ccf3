"""From nothing to detectors of several games, a few seeds each: what comes out, and how often not.

`.venv/bin/python -m benchmarks.from_nothing --truth-dirs DIR` trains what is not trained yet, by
the command that users have, and scores everything. DIR has labelled frames, Pong.npz say.
"""

from __future__ import annotations

import json
import platform
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import tyro

import objrl
from objrl.atomic import write_atomically
from objrl.checkpoint import load_checkpoint
from objrl.pretrain.evaluate import evaluate_perceiver
from objrl.pretrain.fleet import FleetConfig, run_of, train_fleet
from objrl.pretrain.run import CHECKPOINT, REPORT, WEIGHTS
from objrl.pretrain.truth import read_truth

FAILED = 0.75
"""F1 by centre below which a run counts as failed."""


@dataclass(frozen=True)
class FromNothingConfig:
    """Train games with several seeds, one thread each, and write a table of their scores."""

    truth_dirs: tuple[Path, ...]
    """Folders of labelled frames to score on; of several with the same game the first counts."""
    games: tuple[str, ...] = ("Pong", "Boxing", "MsPacman", "Riverraid", "Freeway")
    """In ALE's spelling."""
    seeds: int = 3
    """How many of each, from 0."""
    minutes: float = 10.0
    """Wall time of a training, at most."""
    workers: int = 2
    """Trainings at once."""
    runs: Path = Path("runs")
    """Folder of the runs."""
    out: Path = Path("docs/from_nothing.md")
    """The page."""


def main(config: FromNothingConfig) -> None:
    """Train, score, write the page."""
    truths = {game: _truth_of(config, game) for game in config.games}  # missing ones show at once
    fleets = [
        FleetConfig(
            games=config.games,
            minutes=config.minutes,
            seed=seed,
            workers=config.workers,
            out=config.runs,
        )
        for seed in range(config.seeds)
    ]
    for fleet in fleets:
        train_fleet(fleet)
    rows = [_row(run_of(fleet, game), truths[game]) for game in config.games for fleet in fleets]
    write_atomically(config.out, _page(config, rows).encode())


def _truth_of(config: FromNothingConfig, game: str) -> Path:
    for folder in config.truth_dirs:
        if (folder / f"{game}.npz").exists():
            return folder / f"{game}.npz"
    raise FileNotFoundError(
        f"truth_dirs: expected {game}.npz in one of {', '.join(map(str, config.truth_dirs))}; "
        f"`objrl truth --env ALE/{game}-v5` makes one"
    )


def _row(run: Path, truth: Path) -> dict[str, Any]:
    """Score a run; one that left no weights has failed."""
    row: dict[str, Any] = {
        "run": run.name,
        "frames": 0,
        "asked": None,
        "f1": 0.0,
        "iou": 0.0,
        "count": 1.0,
    }
    if (run / CHECKPOINT).exists():
        row["asked"] = load_checkpoint(run / CHECKPOINT).about["minutes"]
    if not (run / REPORT).exists():
        return row
    labelled = read_truth(truth)
    perceiver = objrl.load(run / WEIGHTS, device="cpu")
    scores = evaluate_perceiver(perceiver, labelled.frames, labelled.truth).metrics()
    names = {"f1": "f1_centre", "iou": "f1_iou", "count": "count_error_centre"}
    report = json.loads((run / REPORT).read_text())
    return {
        **row,
        **report,
        **{short: scores[name] for short, name in names.items()},
        "frames": len(labelled.frames),
    }


def _page(config: FromNothingConfig, rows: list[dict[str, Any]]) -> str:
    frames = ", ".join(map(str, sorted({row["frames"] for row in rows if row["frames"]})))
    failed = [row["run"] for row in rows if row["f1"] < FAILED]
    lines = [
        "# From nothing, seed by seed",
        "",
        "Written by `.venv/bin/python -m benchmarks.from_nothing`; do not edit by hand.",
        "",
        "`objrl pretrain --env ALE/<game>-v5 --minutes <minutes> --threads 1 --seed <seed>`, "
        f"{config.workers} at a time, the frames of a game the same for all seeds. Minutes are "
        "those that were asked for and those that it took, on a machine with other work to do; "
        "both and the CPU seconds without the last measurements. "
        f"{platform.machine()}, torch {torch.__version__}. Truth: {frames} frames of random "
        "play a game, with the boxes that the RAM tells.",
        "",
        "| run | steps | converged at | begun again | minutes asked, taken | CPU-s | F1 by centre "
        "| F1 at IoU 0.5 | count error |",
        "|---|--:|--:|---|--:|--:|--:|--:|--:|",
    ]
    lines += [
        f"| {row['run']} | {row.get('steps', '-')} | {row.get('converged') or '-'} "
        f"| {', '.join(row.get('mended', [])) or '-'} "
        f"| {row['asked'] or '-'}, {row.get('seconds', 0) / 60:.1f} "
        f"| {row.get('cpu_seconds', 0):.0f} "
        f"| {row['f1']:.3f} | {row['iou']:.3f} | {row['count']:.3f} |"
        for row in rows
    ]
    spread = [
        np.ptp([row["f1"] for row in rows[i : i + config.seeds]])
        for i in range(0, len(rows), config.seeds)
    ]
    lines += [
        "",
        f"Failed (F1 by centre below {FAILED}): {len(failed)} of {len(rows)}"
        f"{': ' + ', '.join(failed) if failed else ''}. Largest difference between the seeds of a "
        f"game: {max(spread):.3f} by centre.",
    ]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main(tyro.cli(FromNothingConfig))
