"""`objrl evaluate --all`: every shipped detector on the games it is for, as one page of tables.

It writes results.md and results/GAME.png, a contact sheet a game. A game is judged by labelled
frames; where there are none, by how far the detector agrees with the baseline without learning,
and by looking at its picture. The page itself is laid out in `objrl.pretrain.results_page`.

Letters: N frames, H W pixels.
"""

from __future__ import annotations

import contextlib
import shlex
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import chain
from pathlib import Path

import cv2

import objrl
from objrl import metrics
from objrl.atomic import write_atomically
from objrl.metrics import Boxes, Rule, Score, Truth
from objrl.models.median import Median
from objrl.models.scenery import median_frame
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
    picture,
    ten_lines,
)
from objrl.pretrain.probe import Probe, TooFewMatches, probe_perceiver
from objrl.pretrain.reading import sample, spread
from objrl.pretrain.results_page import MAIN_GAMES, Row, page, title
from objrl.pretrain.store import FrameStore
from objrl.pretrain.truth import join_truth, read_truth
from objrl.weights import Weights, list_weights, read_header, registry
from objrl.wrappers.choose import game_of

BASELINE_FRAMES = 256
"""Frames whose median is the baseline's background."""

SHOWN = 4
"""Frames of a contact sheet."""

RULES: tuple[Rule, ...] = ("centre", "iou")


@dataclass(frozen=True)
class Scene:
    """Frames of a game, and what the baselines see in them.

    Attributes:
        game: as `game_of` spells it.
        frames: (N, H, W, 3) uint8 RGB.
        truth: what there is to find in them; None where nobody labelled them.
        background: whose median the baselines took: `training` frames or the `measured` ones.
        median: what `objrl.models.median` sees.
        ten_lines: N arrays (n, 4), what `measure.ten_lines` sees.
    """

    game: str
    frames: Frames
    truth: Truth | None
    background: str
    median: Seen
    ten_lines: list[Boxes]


def write_results(
    truth_dirs: Sequence[Path],
    data_dir: Path,
    out: Path,
    *,
    device: str = "auto",
    batch: int = 16,
    limit: int = 512,
    split: str = "test",
) -> dict[str, dict[str, dict[str, float]]]:
    """Measure all shipped weights; write `out`/results.md and `out`/results/GAME.png.

    Files are found by game: SpaceInvaders.npz and space_invaders.npz are both of Space Invaders.
    Every file is replaced as a whole, the page last.

    Args:
        truth_dirs: folders of labelled frames, GAME.npz; those of one game are joined.
        data_dir: folder of frames without labels, GAME.h5. Those of `train` give the baselines
            their background, those of `split` are measured where nothing is labelled.
        out: folder to write to.
        device: of the detectors.
        batch: how many frames are encoded at once.
        limit: at most so many frames a game, evenly spread.
        split: of `data_dir`.

    Returns:
        The scores by name of the weights and by game.

    Raises:
        FileNotFoundError: a folder of labelled frames is not there.
        ValueError: nothing is shipped, no frames of any game, or a file that is not what it should
            be.
        ImportError: the packages of `objrl[eval]` are missing.
    """
    for folder in truth_dirs:
        if not folder.is_dir():
            raise FileNotFoundError(f"{folder}: there is no such folder of labelled frames")
    shipped = _shipped_by_game()
    rows: list[Row] = []
    unseen: list[str] = []
    found: dict[str, dict[str, dict[str, float]]] = {}
    for game, entries in shipped.items():
        scene = _scene(game, truth_dirs, data_dir, split, limit, batch)
        if scene is None:
            unseen.append(game)
            continue
        for weights in entries:
            perceiver = objrl.load(weights.name, device=device)
            row = _measure(scene, weights, perceiver, batch)
            if weights == entries[0]:
                _draw(scene, perceiver, out / "results" / f"{title(game)}.png")
            scores = found.setdefault(weights.name, {})[title(game)] = row.report.metrics()
            shown = {name: value for name, value in scores.items() if "f1" in name}
            said = ", ".join(f"{name} {value:.3f}" for name, value in shown.items())
            print(f"{weights.name} on {title(game)}, {row.frames} frames: {said}", flush=True)
            rows.append(row)
    if not rows:
        raise ValueError(
            "evaluate: expected frames of a shipped game (--truth-dir with GAME.npz, or --data-dir "
            f"with GAME.h5), got none of {', '.join(map(title, shipped)) or 'none shipped'} in "
            f"{', '.join(map(str, (*truth_dirs, data_dir)))}"
        )
    options = {"truth-dir": truth_dirs, "data-dir": [data_dir], "split": [split], "limit": [limit]}
    words = [[f"--{name}", *map(str, given)] for name, given in options.items() if given]
    command = shlex.join(["objrl", "evaluate", "--all", *chain.from_iterable(words)])
    write_atomically(out / "results.md", page(rows, unseen, command).encode())
    print(f"written: {out / 'results.md'} and {out / 'results'}/")
    return found


def _shipped_by_game() -> dict[str, list[Weights]]:
    """Weights by game, main games first; those of one game alone before those of many."""
    by_game: dict[str, list[Weights]] = {}
    detectors = [weights for weights in list_weights() if weights.model != "scalor"]
    for weights in sorted(detectors, key=_is_joint):
        for game in dict.fromkeys(map(game_of, weights.env_ids)):
            by_game.setdefault(game, []).append(weights)
    others = sorted(set(by_game) - set(MAIN_GAMES))
    return {game: by_game[game] for game in (*MAIN_GAMES, *others) if game in by_game}


def _is_joint(weights: Weights) -> bool:
    return len(set(map(game_of, weights.env_ids))) > 1


def _scene(
    game: str, truth_dirs: Sequence[Path], data_dir: Path, split: str, limit: int, batch: int
) -> Scene | None:
    """Read a game's frames and see them with the baselines; None where there are none."""
    labelled = [read_truth(path) for folder in truth_dirs for path in _files(folder, game, ".npz")]
    stores = _files(data_dir, game, ".h5")
    truth, training = None, None
    if stores:
        with FrameStore(stores[0]) as store:
            training = sample(store, "train", BASELINE_FRAMES)
            if not labelled:
                frames = sample(store, split, limit)
    elif not labelled:
        return None
    if labelled:
        whole = join_truth(labelled)
        rows = spread(len(whole.frames), limit)
        frames, truth = whole.frames[rows], whole.truth.select(rows)
    known = frames if training is None else training
    return Scene(
        game,
        frames,
        truth,
        "measured" if training is None else "training",
        perceive(FramePerceiver(Median.fit(known)), frames, batch),
        ten_lines(frames, median_frame(known)),
    )


def _files(folder: Path, game: str, suffix: str) -> list[Path]:
    return [path for path in sorted(folder.glob(f"*{suffix}")) if game_of(path.stem) == game]


def _measure(scene: Scene, weights: Weights, perceiver: Perceiver, batch: int) -> Row:
    """Measure a detector, and the baselines where there is truth."""
    report: Report | Agreement
    median: list[Score] = []
    ten: list[Score] = []
    probes: dict[str, Probe] = {}
    if scene.truth is None:
        baseline = look_alike(scene.median)
        report = compare_with_baseline(perceiver, scene.frames, baseline, batch)
    else:
        report = evaluate_perceiver(perceiver, scene.frames, scene.truth, batch)
        for rule in RULES:
            median.append(metrics.score(scene.truth, scene.median.boxes, rule))
            ten.append(metrics.score(scene.truth, scene.ten_lines, rule))
        with contextlib.suppress(TooFewMatches):  # one kind of object: nothing to tell apart
            probes = probe_perceiver(perceiver, scene.frames, scene.truth, batch)
    path = Path(str(registry.FOLDER), weights.file)
    return Row(
        game=scene.game,
        frames=len(scene.frames),
        background=scene.background,
        weights=weights,
        joint=_is_joint(weights),
        date=_date(path),
        header=read_header(path),
        report=report,
        median=median,
        ten_lines=ten,
        probe=probes,
    )


def _draw(scene: Scene, perceiver: Perceiver, path: Path) -> None:
    rows = spread(len(scene.frames), SHOWN)
    wanted, column = scene.truth, "truth"
    if wanted is None:
        wanted, column = look_alike(scene.median), "median"
    titles = [f"frame {row}" for row in rows]
    sheet = picture(perceiver, scene.frames[rows], wanted.select(rows), titles, column, scale=1)
    # Gradients that nobody sees would be half of the file, which is to be committed.
    coarse = sheet[..., ::-1] & 0xF8
    good, data = cv2.imencode(".png", coarse, [cv2.IMWRITE_PNG_COMPRESSION, 9])
    if not good:
        raise OSError(f"{path}: the image could not be encoded as PNG")
    write_atomically(path, data.tobytes())


def _date(path: Path) -> str:
    """Return the day of a file's last commit; of the file itself where that is not committed."""
    if shutil.which("git"):
        asked = (["log", "-1", "--format=%cs"], ["status", "--porcelain"])
        committed, changed = (
            subprocess.run(
                ["git", "-C", str(path.parent), *words, "--", path.name],
                capture_output=True,
                text=True,
                check=False,
            ).stdout.strip()
            for words in asked
        )
        if committed and not changed:
            return committed
    return datetime.fromtimestamp(path.stat().st_mtime, UTC).date().isoformat()
