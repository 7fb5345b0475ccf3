"""The page of `benchmarks.following`: a section for each part that has been measured."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np


@dataclass(frozen=True)
class Setting:
    """A row of the sprites' table.

    Attributes:
        name: as the paper calls it.
        weights: the run that learnt it, runs/scalor-WEIGHTS.
        tracks: what it is scored on, TRACKS.npz.
        paper: its MOTA, precision, recall and count error (table 1), in that order.
        rows: K, where it takes more than the model was trained with.
    """

    name: str
    weights: str
    tracks: str
    paper: tuple[float, float, float, float] | None = None
    rows: int | None = None


SETTINGS = (
    Setting("VLD", "VLD", "VLD", (0.938, 0.963, 0.989, 0.067)),
    Setting("LD", "LD", "LD", (0.925, 0.979, 0.949, 0.059)),
    Setting("MD", "MD", "MD", (0.935, 0.978, 0.959, 0.041)),
    Setting("HD", "HD", "HD", (0.928, 0.976, 0.954, 0.033)),
    Setting("VHD", "VHD", "VHD", (0.846, 0.968, 0.881, 0.091)),
    Setting("MD, moving background", "MDbg", "MDbg", (0.919, 0.972, 0.953, 0.034)),
    Setting("20 frames, learnt from 10", "MD", "MDlong", (0.923, 0.970, 0.957, 0.032)),
    Setting("50 to 60 objects, learnt from 18 to 24", "MD", "MDcrowded", rows=96),
    Setting("triangles, never learnt", "MD", "MDunseen"),
)

REFERENCE = {64: {4: 99, 8: 83, 16: 92, 32: 98, 64: 112}, 128: {4: 278, 64: 453}}
"""CPU-ms a frame of the authors' code by canvas and objects, on one thread."""

SCORES = ("mota", "idf1", "hota", "precision", "recall", "id_switches", "count_error")


def case(side: int, count: int, rows: int) -> str:
    """Return the name of a contestant in the measurement of cost."""
    return f"{side}, {count} objects, {rows} rows"


def page(folder: Path) -> str:
    """Lay out what the JSON files of a folder hold, and its pictures."""
    parts = {path.stem: json.loads(path.read_text()) for path in sorted(folder.glob("*.json"))}
    lines = [
        "# How well objects are followed",
        "",
        "Written by `.venv/bin/python -m benchmarks.following PART`; do not edit by hand. What the "
        "scores are: [tracking.md](tracking.md). The models see one frame after the other, as an "
        "agent has them.",
    ]
    if "atari" in parts:
        lines += _atari_table(parts["atari"], folder)
    if "sprites" in parts:
        lines += _sprites_table(parts["sprites"], folder)
    if "ablation" in parts:
        lines += _ablation_table(parts["ablation"])
    if "cost" in parts:
        lines += _cost_table(parts["cost"])
    for name in (name for name in parts if name.startswith("futures")):
        lines += _futures_table(name, parts[name], folder)
    return "\n".join(lines) + "\n"


def _atari_table(part: dict[str, Any], folder: Path) -> list[str]:
    names = ("MOTA", "IDF1", "HOTA", "precision", "recall", "switches", "count error")
    lines = [
        *("", "## Atari", ""),
        "Sequences of random play that nothing was learnt from or chosen by "
        "([scalor.md](scalor.md)), identities from the RAM. SPACE is "
        "the detector of one frame with our tracker, SCALOR follows by itself. MSE is of pixels in "
        "[0, 1]; *propagated* the share of the objects after the first frame that were there in "
        f"the frame before. {part['machine']}.",
        "",
        f"| game | model | rule | {' | '.join(names)} | MSE | propagated | CPU-s |",
        f"|---|---|---|{'--:|' * (len(names) + 3)}",
    ]
    for row in part["rows"]:
        for rule in ("iou", "distance"):
            first = rule == "iou"
            cells = [
                row["game"] if first else "",
                row["weights"] if first else "",
                "IoU" if first else rule,
                *_figures(row[rule][score] for score in SCORES),
                *(_figures([row.get("mse"), row.get("propagated")]) if first else ["", ""]),
                f"{row['cpu_seconds']:,.0f}" if first else "",
            ]
            lines.append(f"| {' | '.join(cells)} |")
    lines += _pictures(folder, [row["game"] for row in part["rows"]])
    return lines


def _sprites_table(part: dict[str, Any], folder: Path) -> list[str]:
    papers = {setting.name: setting.paper for setting in SETTINGS}
    files = {setting.name: setting.tracks for setting in SETTINGS}
    lines = [
        *("", "## Moving sprites", ""),
        "The paper's task 1 on our data ([synthetic.md](synthetic.md)), by distance within 2 "
        "sizes, as the paper counts. *Paper* is its table 1, of data that was never published. "
        "*Median* is the baseline without learning with our tracker, which is also the teacher. "
        "The bound is the negative ELBO in nats a pixel and frame at a standard deviation of 0.1, "
        "one sample. *Discovered* counts births a sequence, beside the identities that there are. "
        f"{part['machine']}.",
        "",
        "| setting | MOTA | paper | median | IDF1 | HOTA | precision | recall | switches | "
        "count error | paper | MSE | bound | propagated | discovered | steps | CPU-s |",
        f"|---|{'--:|' * 16}",
    ]
    for row in part["rows"]:
        paper, ours = papers[row["setting"]], row["distance"]
        cells = [
            row["setting"],
            *_figures([ours["mota"], paper and paper[0], row.get("median", {}).get("mota")]),
            *_figures(ours[name] for name in ("idf1", "hota", "precision", "recall")),
            *_figures([ours["id_switches"], ours["count_error"], paper and paper[3]]),
            *_figures([row["mse"], row["nll_bound"], row["propagated"]]),
            f"{row['discovered']:.1f} of {row['identities']:.1f}",
            *(f"{row[name]:,.0f}" for name in ("steps", "cpu_seconds")),
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return lines + _pictures(folder, [files[row["setting"]] for row in part["rows"]])


def _ablation_table(part: dict[str, Any]) -> list[str]:
    lines = [
        *("", "## Rejection and attention", ""),
        "The paper's Fig. 8 a and b: 6 to 36 objects, the same steps each, without the teacher and "
        "without our rules against doubles (`scalor-fast-alone` and what it lacks). "
        "Attention is our search around the object's last "
        f"place. By distance. {part['machine']}.",
        "",
        "| without | propagated | discovered | MOTA | IDF1 | switches | MSE | steps | CPU-s |",
        f"|---|{'--:|' * 8}",
    ]
    for row in part["rows"]:
        ours = row["distance"]
        without = {"alone": "nothing", "neither": "both"}.get(row["setting"], row["setting"][3:])
        cells = [
            without,
            *_figures([row["propagated"]]),
            f"{row['discovered']:.1f} of {row['identities']:.1f}",
            *_figures([ours["mota"], ours["idf1"], ours["id_switches"], row["mse"]]),
            *(f"{row[name]:,.0f}" for name in ("steps", "cpu_seconds")),
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def _cost_table(part: dict[str, Any]) -> list[str]:
    rows = part["rows"]
    lines = [
        *("", "## Cost against the number of objects", ""),
        "The paper's Fig. 8 c: process CPU-ms of a step of one environment, the median of rounds "
        "in turns, on one thread; 16 proposals a frame, an 8 x 8 grid. Rows without an object "
        "cost as much as those with one, so rows count, not objects. *Authors* is their "
        "code on a machine of the same kind, measured apart from this run.",
        "",
        "| objects | rows | 64 x 64 | authors | 128 x 128 | authors |",
        "|--:|--:|--:|--:|--:|--:|",
    ]
    for count, slots in ((4, 4), (8, 8), (16, 16), (32, 32), (64, 64), (4, 64)):
        cells = [str(count), str(slots)]
        for side in (64, 128):
            cells.append(f"{np.median(rows[case(side, count, slots)]['cpu_ms']):.1f}")
            cells.append(str(REFERENCE[side].get(count, "")))
        lines.append(f"| {' | '.join(cells)} |")
    step = rows["training step"]
    lines += [
        "",
        "A training step (64 x 64, batch 4, 10 frames, 16 rows, gradients through all frames and "
        "no teacher) takes "
        f"{np.median(step['cpu_ms']) / 1e3:.2f} CPU-s and its process {step['peak_mib'] / 1024:.2f}"
        f" GiB; the authors' 5.8 CPU-s and 4.2 GB. {part['machine']}.",
    ]
    return lines


def _futures_table(name: str, part: dict[str, Any], folder: Path) -> list[str]:
    scores = part["scores"]
    errors, off = scores["mean squared error"], scores["distance of centres, pixels"]
    steps = [step for step in (1, 3, 5, 8) if step <= part["frames"]]
    lines = [
        *("", f"## Futures: {part['source']}", ""),
        f"`objrl imagine --weights {part['weights']} --seen {part['seen']} --frames "
        f"{part['frames']} --seed {part['seed']}`, {part['sequences']} held-out sequences. Mean "
        "squared error of a frame so many steps ahead, times 1,000, and how many pixels the "
        "centres are from where the model finds them later. *Likeliest* takes means, not draws.",
        "",
        f"| | {' | '.join(f'error, +{step}' for step in steps)} | "
        f"{' | '.join(f'pixels, +{step}' for step in steps)} |",
        f"|---|{'--:|' * 2 * len(steps)}",
    ]
    for who in ("followed", "imagined", "likeliest", "constant velocity", "last frame"):
        centre = off.get("standing still" if who == "last frame" else who)
        cells = [
            *(f"{1e3 * errors[who][step - 1]:.2f}" for step in steps),
            *(f"{centre[step - 1]:.1f}" if centre else "" for step in steps),
        ]
        lines.append(f"| {who} | {' | '.join(cells)} |")
    lines += ["", "In orange frames what is imagined, below it sequences from nothing."]
    return [*lines, "", f"![{name}]({folder.name}/{name}.png)"]


def _pictures(folder: Path, names: Sequence[str]) -> list[str]:
    there = [name for name in dict.fromkeys(names) if (folder / f"{name}.png").exists()]
    lines = [*("", "Every other frame of the first sequence; a colour is an identity.")]
    return lines + [f"\n![{name}]({folder.name}/{name}.png)" for name in there] if there else []


def _figures(values: Iterable[Any]) -> list[str]:
    """Write numbers, and nothing where there is none."""
    return [
        "" if v is None else f"{v:.0f}" if float(v).is_integer() and v > 1 else f"{v:.3f}"
        for v in values
    ]
