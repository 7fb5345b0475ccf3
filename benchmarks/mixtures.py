"""How well scene mixtures take scenes apart, beside what needs no learning.

    .venv/bin/python -m benchmarks.mixtures --runs runs/mixtures

The shipped ones, and runs: folders of `objrl pretrain`, called after their presets, e.g.
`objrl pretrain --preset rmonet-tetris --out runs/mixtures/rmonet-tetris`; a run stands for shipped
weights of its name. Each is scored on scenes of the set that it learnt and on the same in one
colour, drawn by a seed of their own.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import get_args

import torch
import tyro
from tqdm import tqdm

import objrl
from benchmarks.markdown import NONE, machine, table
from objrl.atomic import write_atomically
from objrl.pretrain.run import WEIGHTS
from objrl.pretrain.scene_scores import LabelledScenes, baselines, read_scenes, score_scenes
from objrl.pretrain.scenes import Fill, Which
from objrl.pretrain.stills import ScenesConfig, generate_stills
from objrl.weights import list_weights, read_header

_MODELS = ("econ", "iodine", "monet", "rmonet")

_COLUMNS = ("ari_fg", "covering_fg", "mask_ap50", "count_right", "mse")
_TOLD = ("r2_x", "r2_y", "r2_size", "r2_red", "r2_green", "r2_blue", "accuracy_kind")
_EXPERTS = ("expert_nmi", "whole_iou", "hidden_iou", "seen_iou")

PAPERS: Mapping[tuple[str, str], str] = {
    ("iodine", "tetris"): "0.995",
    ("iodine", "dsprites_grey"): "0.87; 0.767 and 0.724 in later papers",
    ("rmonet", "dsprites_grey"): "0.951",
    ("monet", "dsprites_grey"): "0.944, as R-MONet's authors ran it",
}
"""ARI-FG that papers report (IODINE 4.1; R-MONet table 1; EfficientMORL table 1), with a million
updates, or some ten thousand of R-MONet's."""


@dataclass(frozen=True)
class MixturesConfig:
    """Score scene mixtures and write the page."""

    runs: Path = Path("runs/mixtures")
    """Folder of the runs."""
    scenes: Path = Path("runs/scenes")
    """Folder of the labelled scenes, which are drawn if they are not there."""
    out: Path = Path("docs/mixtures_results.md")
    """The page."""
    labelled: int = 320
    """Scenes that are scored, as many as most papers'."""
    seed: int = 777
    """Of those; nothing is learnt from them or chosen by them."""


def main(config: MixturesConfig) -> str:
    """Score, write the page and return it."""
    torch.set_num_threads(1)
    rows: dict[str, list[list[str]]] = {"own": [], "same": [], "told": [], "experts": []}
    seen: set[tuple[Which, Fill]] = set()
    weights = {w.name: w.name for w in list_weights() if w.model in _MODELS}
    weights |= {path.parent.name: str(path) for path in config.runs.glob(f"*/{WEIGHTS}")}
    for name in tqdm(sorted(weights), unit="model"):
        header = read_header(weights[name])
        which = next((w for w in get_args(Which) if header["data"]["env_id"] == w), None)
        if which is None:
            print(f"left out: {name}, which learnt from {header['data']['env_id']}")
            continue
        perceiver = objrl.load(weights[name], device="cpu")
        for fill in _fills(which):
            scenes = _labelled(config, which, fill)
            if (which, fill) not in seen:
                seen.add((which, fill))
                for kind, scores in baselines(scenes).items():
                    rows[fill].append([which, f"{kind}, no learning", *_cells(scores), *[NONE] * 3])
            scores = score_scenes(perceiver, scenes)
            paper = PAPERS.get((header["model"], which), NONE) if fill == "own" else NONE
            cost = [f"{header['training'][name]:,.0f}" for name in ("steps", "cpu_seconds")]
            rows[fill].append([which, name, *_cells(scores), *cost, paper])
            if fill == "own":
                rows["told"].append([name, *_cells(scores, ("matched", *_TOLD))])
                if "expert_nmi" in scores:
                    rows["experts"].append([name, *_cells(scores, _EXPERTS)])
    page = _page(config, rows)
    config.out.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(config.out, page.encode())
    return page


def _fills(which: Which) -> tuple[Fill, ...]:
    """Return what a set is drawn in: white sprites are all of one colour as they are."""
    return ("own",) if which in ("dsprites_binary", "shapes") else ("own", "same")


def _labelled(config: MixturesConfig, which: Which, fill: Fill) -> LabelledScenes:
    path = config.scenes / f"test_{which}_{fill}.h5"
    asked = ScenesConfig(which, fill, path, frames=1, labelled=config.labelled, seed=config.seed)
    generate_stills(asked)  # what is there is checked, and kept
    scenes = read_scenes(path.with_suffix(".npz"))
    assert scenes is not None
    return scenes


def _cells(scores: Mapping[str, float], names: tuple[str, ...] = _COLUMNS) -> list[str]:
    return [f"{scores[name]:.3f}" if name in scores else NONE for name in names]


def _page(config: MixturesConfig, rows: Mapping[str, list[list[str]]]) -> str:
    head = ["set", "model", "ARI-FG", "covering", "AP50", "count right", "MSE"]
    head += ["steps", "CPU-s", "paper's ARI-FG"]
    parts = [
        "# How well scenes are taken apart",
        "Written by `.venv/bin/python -m benchmarks.mixtures`; do not edit by hand. "
        f"{machine()}, torch {torch.__version__}, one thread. {config.labelled} scenes a set, "
        f"seed {config.seed}, which nothing was learnt from or chosen by; what the columns are "
        "says [mixtures.md](mixtures.md). AP50 is of tight boxes round the masks.",
        "## The sets as in the papers",
        table(head, sorted(rows["own"], key=lambda row: row[0])),
        "## All objects of a scene in one colour",
        "The same weights; colour is no help here, and none of them has learnt from such scenes.",
        table(head[:-1], sorted((row[:-1] for row in rows["same"]), key=lambda row: row[0])),
        "## What slots tell of their objects",
        "A linear map from a slot's code, learnt on half of the scenes and tested on the others: "
        "R² of numbers, accuracy of the class. Only objects that a slot has more of than the "
        "background, *matched* of all, are asked for.",
        table(["model", "matched", *(name.replace("_", " ") for name in _TOLD)], rows["told"]),
    ]
    if rows["experts"]:
        parts += [
            "## Experts",
            "NMI of experts and classes; IoU of filled-in shapes with whole objects: of all, and "
            "of those of which a tenth or more is hidden, beside what is seen of them alone.",
            table(["model", "NMI", "whole", "hidden", "seen alone"], rows["experts"]),
        ]
    return "\n\n".join(parts) + "\n"


if __name__ == "__main__":
    print(main(tyro.cli(MixturesConfig)))
