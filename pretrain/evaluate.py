"""`objrl evaluate`: how good is a perceiver, by labelled frames or by frames alone.

It prints a table and writes `evaluation.json` and `worst.png`, the frames with most errors beside
what there was to find. The measuring itself is in `objrl.pretrain.measure`; the format of labelled
frames, so that you can make your own, is told in `objrl.pretrain.truth`.

Letters: N frames, H W pixels.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch

import objrl
from objrl import draw
from objrl.atomic import write_atomically
from objrl.metrics import Truth
from objrl.models.median import Median
from objrl.perceiver import FramePerceiver, Perceiver
from objrl.pretrain.measure import (
    Agreement,
    Frames,
    Report,
    Seen,
    compare_with_baseline,
    evaluate_perceiver,
    look_alike,
    perceive,
    take_apart,
)
from objrl.pretrain.store import FrameStore
from objrl.pretrain.truth import read_truth

__all__ = ["EvaluateConfig", "Report", "evaluate", "evaluate_perceiver", "worst_frames"]

_BASELINE_FRAMES = 256
"""Frames whose median is the baseline's background."""


@dataclass(frozen=True)
class EvaluateConfig:
    """Measure a perceiver on frames that it was not trained on."""

    weights: str
    """Name of shipped weights (`objrl weights` lists them), or path of a .safetensors file."""
    truth: Path | None = None
    """Labelled frames, .npz: F1, average precision, recall per class, reconstruction error."""
    data: Path | None = None
    """Frames without labels, .h5: reconstruction error and agreement with the baseline."""
    split: Literal["train", "val", "test"] = "test"
    """Which episodes of --data."""
    limit: int = 512
    """At most so many frames, spread evenly."""
    out: Path | None = None
    """Folder for evaluation.json and worst.png; by default runs/evaluate-WEIGHTS-DATA: the name of
    the weights (of their folder, where the file is called weights.safetensors) and of the frames'
    file."""
    device: str = "auto"
    """auto (CUDA where there is one), cpu, cuda or cuda:N."""
    batch: int = 16
    """Frames encoded at once."""
    worst: int = 8
    """Rows of the contact sheet."""


def evaluate(config: EvaluateConfig) -> dict[str, Any]:
    """Measure as the command line asks: print a table, write a JSON file and a contact sheet.

    Returns:
        What the JSON file holds.

    Raises:
        ValueError: neither or both of truth and data, an empty split, a limit below 1, or a file
            that is not what it should be.
        FileNotFoundError: no such file.
    """
    if (config.truth is None) == (config.data is None):
        raise ValueError(
            "evaluate: expected either --truth FILE.npz (labelled frames) or --data FILE.h5 "
            f"(frames alone), got {'neither' if config.truth is None else 'both'}"
        )
    for name in ("limit", "batch", "worst"):
        if getattr(config, name) < 1:
            raise ValueError(f"evaluate: expected {name} >= 1, got {getattr(config, name)}")
    source = config.truth or config.data
    assert source is not None
    perceiver = objrl.load(config.weights, device=config.device)
    report: Report | Agreement
    if config.truth is not None:
        labelled = read_truth(config.truth)
        rows = _spread(len(labelled.frames), config.limit)
        frames, truth = labelled.frames[rows], labelled.truth.select(rows)
        report, column = evaluate_perceiver(perceiver, frames, truth, config.batch), "truth"
        lines = _truth_table(report)
    else:
        rows, frames, background = _unlabelled(source, config.split, config.limit)
        baseline = FramePerceiver(Median.fit(background))
        truth, column = look_alike(perceive(baseline, frames, config.batch)), "baseline"
        report = compare_with_baseline(perceiver, frames, truth, config.batch)
        lines = _data_table(report)

    result: dict[str, Any] = {
        "weights": config.weights,
        "source": source.name,
        "split": config.split if config.data else None,
        "frames": len(frames),
        "metrics": report.metrics(),
        "classes": report.classes() if isinstance(report, Report) else None,
    }
    print(f"{config.weights} on {source.name}: {len(frames)} frames")
    print("\n".join(lines))

    out = config.out or Path("runs", f"evaluate-{_name(config.weights)}-{source.stem}")
    worst = np.argsort(-report.errors, kind="stable")[: config.worst]
    titles = [
        f"frame {rows[i]}: {report.centre.errors[i]} wrong by centre, {report.iou.errors[i]} by IoU"
        for i in worst
    ]
    picture = worst_frames(perceiver, frames[worst], truth.select(worst), titles, column)
    draw.write_png(out / "worst.png", picture)
    text = json.dumps(result, indent=2) + "\n"
    write_atomically(out / "evaluation.json", text.encode())
    print(f"written: {out / 'evaluation.json'}, {out / 'worst.png'}")
    return result


def worst_frames(
    perceiver: Perceiver, frames: Frames, truth: Truth, titles: Sequence[str], column: str
) -> draw.Image:
    """Draw a contact sheet of frames, with the boxes that are to be found in a column beside."""
    part = torch.from_numpy(frames)
    wanted = [
        draw.draw_slots(frame, boxes, np.ones(len(boxes)), np.full(len(boxes), -1), scale=2)
        for frame, boxes in zip(frames, truth.boxes, strict=True)
    ]
    return draw.contact_sheet(
        frames, perceiver.encode(part), take_apart(perceiver, part), titles, {column: wanted}
    )


def _name(weights: str) -> str:
    """Return what tells weights from others: every run calls its file weights.safetensors."""
    path = Path(weights)
    return path.resolve().parent.name if path.name == "weights.safetensors" else path.stem


def _spread(count: int, limit: int) -> npt.NDArray[np.int64]:
    """At most `limit` of 0..count-1, evenly spread."""
    return np.linspace(0, count - 1, min(count, limit)).round().astype(np.int64)


def _unlabelled(path: Path, split: str, limit: int) -> tuple[npt.NDArray[np.int64], Frames, Frames]:
    """Numbers and frames to measure on, and frames whose median is the baseline's background."""
    with FrameStore(path) as store:
        rows, background = store.split(split), store.split("train")
        if not len(rows):
            raise ValueError(
                f"{path}: expected frames in the split {split!r}, got none of {len(store)}; "
                "collect more episodes, or choose another split"
            )
        rows = rows[_spread(len(rows), limit)]
        background = background[_spread(len(background), _BASELINE_FRAMES)]
        return rows, store.frames(rows), store.frames(background)


def _truth_table(report: Report) -> list[str]:
    lines = [f"{'':16}{'F1':>8}{'precision':>11}{'recall':>8}{'count error':>13}"]
    for name, score in (("by centre", report.centre), ("by IoU 0.5", report.iou)):
        lines.append(
            f"{name:16}{score.f1:8.3f}{score.precision:11.3f}{score.recall:8.3f}"
            f"{score.count_error:13.3f}"
        )
    ap = report.precision
    lines += [f"{'AP50':16}{ap.ap50:8.3f}", f"{'AP50:95':16}{ap.ap50_95:8.3f}", ""]
    lines.append(f"{'class':16}{'objects':>8}{'recall by centre':>18}{'by IoU 0.5':>12}")
    for name, row in report.classes().items():
        lines.append(
            f"{name:16}{row['objects']:8.0f}{row['recall_centre']:18.3f}{row['recall_iou']:12.3f}"
        )
    return [*lines, "", *_plain_lines(report.seen)]


def _data_table(report: Agreement) -> list[str]:
    return [
        *_plain_lines(report.seen),
        "agreement with the baseline without learning (not accuracy: nobody labelled these frames)",
        f"{'by centre':32}{report.centre.f1:10.3f}",
        f"{'by IoU 0.5':32}{report.iou.f1:10.3f}",
        f"{'slots per frame of the baseline':32}{report.baseline_slots:10.2f}",
    ]


def _plain_lines(seen: Seen) -> list[str]:
    """Slots per frame and reconstruction error as lines of a table."""
    found = seen.plain()
    lines = [f"{'slots per frame':32}{found['slots_per_frame']:10.2f}"]
    if seen.squared_error is not None:
        canvas = " x ".join(str(side) for side in seen.image_shape[1:])
        lines += [
            f"{'squared error of an image':32}{found['squared_error']:10.4g}",
            f"{'mean squared error':32}{found['mse']:10.4g}   (canvas {canvas}, values 0 to 1)",
        ]
    return lines
