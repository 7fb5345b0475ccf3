"""`objrl evaluate`: how good is a perceiver, by labelled frames or by frames alone.

It prints a table and writes `evaluation.json` and `worst.png`, the frames with most errors beside
what there was to find; with --all it does what `objrl.pretrain.results` says. The measuring itself
is in `objrl.pretrain.measure`; the format of labelled frames, so that you can make your own, is
told in `objrl.pretrain.truth`. With --tracks it steps through sequences and measures how objects
are followed (`objrl.pretrain.tracks`), and the picture is `tracks.png`.

Letters: N frames, H W pixels.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

import objrl
from objrl import draw
from objrl.atomic import write_atomically
from objrl.models.median import Median
from objrl.perceiver import FramePerceiver
from objrl.pretrain.measure import (
    Agreement,
    Report,
    Seen,
    compare_with_baseline,
    evaluate_perceiver,
    look_alike,
    perceive,
    picture,
)
from objrl.pretrain.reading import sample, split_rows, spread
from objrl.pretrain.results import BASELINE_FRAMES, write_results
from objrl.pretrain.scene_scores import (
    SEGMENTATION,
    baselines,
    read_scenes,
    score_scenes,
    table,
)
from objrl.pretrain.store import FrameStore
from objrl.pretrain.tracks import TrackReport, read_tracks, run_tracks
from objrl.pretrain.tracks import picture as draw_tracks
from objrl.pretrain.truth import read_truth

__all__ = ["EvaluateConfig", "Report", "evaluate", "evaluate_perceiver"]


@dataclass(frozen=True)
class EvaluateConfig:
    """Measure a perceiver on frames that it was not trained on."""

    weights: str | None = None
    """Name of shipped weights (`objrl weights` lists them), or path of a .safetensors file."""
    truth: Path | None = None
    """Labelled frames, .npz: F1, average precision, recall per class, reconstruction error; where
    the file has masks (`objrl scenes`, `objrl rooms`) also whose pixel is whose, and what slots
    tell of their objects."""
    tracks: Path | None = None
    """Labelled sequences with identities, .npz: MOTA, IDF1, HOTA, switches of identity."""
    data: Path | None = None
    """Frames without labels, .h5: reconstruction error and agreement with the baseline."""
    all: bool = False
    """Measure all shipped weights instead of --weights: writes results.md, one table of all games,
    and a picture a game."""
    truth_dir: tuple[Path, ...] = ()
    """With --all: folders of labelled frames, GAME.npz with the game as in ALE's ids, e.g.
    SpaceInvaders.npz. Those of one game in several folders are joined."""
    data_dir: Path = Path("runs")
    """With --all: folder of frames without labels, GAME.h5: the background of the baselines, and
    what to measure on where nothing is labelled."""
    split: Literal["train", "val", "test"] = "test"
    """Which episodes of frames without labels."""
    limit: int = 512
    """At most so many frames, spread evenly. Sequences are always taken whole."""
    out: Path | None = None
    """Folder for evaluation.json and the picture; by default runs/evaluate-WEIGHTS-DATA: the name
    of the weights (of their folder, where the file is called weights.safetensors) and of the
    frames' file. With --all for results.md and results/GAME.png; by default docs."""
    device: str = "auto"
    """auto (CUDA where there is one), cpu, cuda or cuda:N."""
    batch: int = 16
    """Frames encoded at once; of sequences, how many are seen side by side."""
    worst: int = 8
    """Rows of the picture."""


def evaluate(config: EvaluateConfig) -> dict[str, Any]:
    """Measure as the command line asks: print a table, write a JSON file and a contact sheet.

    Returns:
        What the JSON file holds; with `all`, the scores by name of the weights and by game.

    Raises:
        ValueError: options that do not go together, an empty split, a limit below 1, a file that
            is not what it should be, or nothing to measure.
        FileNotFoundError: no such file or folder.
    """
    for name in ("limit", "batch", "worst"):
        if getattr(config, name) < 1:
            raise ValueError(f"evaluate: expected {name} >= 1, got {getattr(config, name)}")
    if config.all:
        return _evaluate_all(config)
    if config.weights is None or config.truth_dir:
        raise ValueError(
            "evaluate: expected --weights NAME_OR_FILE with --truth, --tracks or --data, or "
            "--all with --truth-dir, got "
            f"{'--truth-dir without --all' if config.truth_dir else 'neither'}"
        )
    sources = [path for path in (config.truth, config.tracks, config.data) if path is not None]
    if len(sources) != 1:
        raise ValueError(
            "evaluate: expected either --truth FILE.npz (labelled frames), --tracks FILE.npz "
            "(labelled sequences) or --data FILE.h5 (frames alone), got "
            f"{'more than one' if sources else 'none of them'}"
        )
    source = sources[0]
    out = config.out or Path("runs", f"evaluate-{_name(config.weights)}-{source.stem}")
    if config.tracks is not None:
        return _evaluate_tracks(config.weights, config.tracks, config, out)
    perceiver = objrl.load(config.weights, device=config.device)
    report: Report | Agreement
    apart, unlearnt = None, None
    if config.truth is not None:
        labelled = read_truth(config.truth)
        rows = spread(len(labelled.frames), config.limit)
        frames, truth = labelled.frames[rows], labelled.truth.select(rows)
        report, column = evaluate_perceiver(perceiver, frames, truth, config.batch), "truth"
        lines = _truth_table(report)
        scenes = read_scenes(source)
        if scenes is not None:
            apart = score_scenes(perceiver, scenes.select(rows), config.batch)
            unlearnt = baselines(scenes.select(rows))
            lines += ["", *_scene_lines(apart, unlearnt)]
    else:
        with FrameStore(source) as store:
            rows = split_rows(store, config.split, config.limit)
            frames = store.frames(rows)
            background = sample(store, "train", BASELINE_FRAMES)
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
        "segmentation": apart,
        "segmentation_without_learning": unlearnt,
    }
    print(f"{config.weights} on {source.name}: {len(frames)} frames")
    print("\n".join(lines))

    worst = np.argsort(-report.errors, kind="stable")[: config.worst]
    titles = [
        f"frame {rows[i]}: {report.centre.errors[i]} wrong by centre, {report.iou.errors[i]} by IoU"
        for i in worst
    ]
    sheet = picture(perceiver, frames[worst], truth.select(worst), titles, column)
    return _write(result, sheet, out / "worst.png")


def _evaluate_tracks(
    weights: str, source: Path, config: EvaluateConfig, out: Path
) -> dict[str, Any]:
    tracks = read_tracks(source)
    report = run_tracks(objrl.load(weights, device=config.device), tracks, config.batch)
    frames = sum(len(one.frames) for one in tracks.sequences)
    result: dict[str, Any] = {
        "weights": weights,
        "source": source.name,
        "split": None,
        "frames": frames,
        "sequences": len(tracks.sequences),
        "metrics": report.metrics(),
        "classes": report.classes,
    }
    print(f"{weights} on {source.name}: {frames} frames in {len(tracks.sequences)} sequences")
    print("\n".join(_track_table(report)))
    return _write(result, draw_tracks(tracks, report, config.worst), out / "tracks.png")


def _write(result: dict[str, Any], picture: draw.Image, path: Path) -> dict[str, Any]:
    """Write the picture to the path and the result beside it, and return the result."""
    draw.write_png(path, picture)
    text = json.dumps(result, indent=2) + "\n"
    written = path.with_name("evaluation.json")
    write_atomically(written, text.encode())
    print(f"written: {written}, {path}")
    return result


def _evaluate_all(config: EvaluateConfig) -> dict[str, Any]:
    names = ("weights", "truth", "tracks", "data")
    single = [name for name in names if getattr(config, name) is not None]
    if single:
        raise ValueError(
            "evaluate: --all measures every shipped detector on the files of --truth-dir and "
            f"--data-dir, and takes no --{', --'.join(single)}"
        )
    return write_results(
        config.truth_dir,
        config.data_dir,
        config.out or Path("docs"),
        device=config.device,
        batch=config.batch,
        limit=config.limit,
        split=config.split,
    )


def _name(weights: str) -> str:
    """Return what tells weights from others: every run calls its file weights.safetensors."""
    path = Path(weights)
    return path.resolve().parent.name if path.name == "weights.safetensors" else path.stem


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


def _track_table(report: TrackReport) -> list[str]:
    names = ("MOTA", "IDF1", "HOTA", "DetA", "AssA", "MOTP", "precision", "recall")
    titles = "".join(f"{name:>{max(8, len(name) + 2)}}" for name in names)
    lines = [f"{'':20}{titles}{'switches':>10}{'count error':>13}"]
    for title, score in (("by IoU 0.5", report.iou), ("by distance, 2 sizes", report.distance)):
        values = (f"{getattr(score, name.lower()):{max(8, len(name) + 2)}.3f}" for name in names)
        lines.append(
            f"{title:20}{''.join(values)}{len(score.switches):10}{score.count_error:13.3f}"
        )
    found = f"{report.iou.found_identities} found for {report.iou.identities}"
    lines += ["", f"{'identities':20}{found:>24}", ""]
    lines.append(f"{'class':20}{'objects':>8}{'switches by IoU':>17}")
    for name, row in report.classes.items():
        lines.append(f"{name:20}{row['objects']:8}{row['id_switches']:17}")
    return lines


def _scene_lines(apart: dict[str, float], unlearnt: dict[str, dict[str, float]]) -> list[str]:
    """Whose pixel is whose, beside what needs no learning; then what slots tell."""
    named = {"this": apart, **unlearnt}
    shown = {*SEGMENTATION, "mse"}
    told = {name: value for name, value in apart.items() if name not in shown}
    lines = ["whose pixel is whose", *table(named, SEGMENTATION), ""]
    return lines + [f"{name:32}{value:10.3f}" for name, value in told.items()]


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
