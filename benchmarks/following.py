"""How well objects are followed: Atari, moving sprites, ablation, cost; docs/following.md.

One command a part, each keeps its figures in docs/following/PART.json and writes the page anew:

    .venv/bin/python -m benchmarks.following atari      # runs/tracks/GAME.npz, shipped weights
    .venv/bin/python -m benchmarks.following sprites    # runs/sprites/NAME.npz, runs/scalor-NAME
    .venv/bin/python -m benchmarks.following ablation   # runs/sprites, runs/scalor-fast-NAME
    .venv/bin/python -m benchmarks.following cost

Futures are `objrl imagine`'s, which leaves its picture and figures in docs/following, too.

Letters: B sequences, T frames, K rows, N objects.
"""

from __future__ import annotations

import json
import platform
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import tyro

import objrl
from benchmarks.following_page import SCORES, SETTINGS, case, page
from benchmarks.rounds import Contestant, Effort, Work, measure
from objrl import draw
from objrl.atomic import write_atomically
from objrl.frames import to_image
from objrl.models.median import Median
from objrl.models.scalor import Scalor
from objrl.models.scalor_config import ScalorConfig
from objrl.models.scalor_loss import ScalorPriors, elbo_terms
from objrl.perceiver import FramePerceiver, Perceiver
from objrl.pretrain.reading import sample
from objrl.pretrain.scalor_presets import ABLATION, SCALOR
from objrl.pretrain.scalor_task import ScalorTask, Sequences
from objrl.pretrain.store import FrameStore
from objrl.pretrain.tracks import TrackReport, Tracks, follow, read_tracks, run_tracks
from objrl.weights import WEIGHTS, read_header

Part = Literal["atari", "sprites", "ablation", "cost"]

GAMES = {
    "SpaceInvaders": "space_invaders",
    "Pong": "pong",
    "Freeway": "freeway",
    "Boxing": "boxing",
    "MsPacman": "ms_pacman",
}
"""Name of the truth, name of the weights."""


@dataclass(frozen=True)
class FollowingConfig:
    """Measure one part and write the page."""

    part: tyro.conf.Positional[Part]
    """atari, sprites, ablation or cost."""
    tracks: Path = Path("runs/tracks")
    """Folder of GAME.npz, from `objrl truth --sequences 8 --length 64 --seed 777`."""
    sprites: Path = Path("runs/sprites")
    """Folder of NAME.h5, from `objrl synthetic`, and of NAME.npz, from `objrl synthetic --seed
    777 --sequences 0`."""
    runs: Path = Path("runs")
    """Folder of scalor-NAME/weights.safetensors."""
    limit: int | None = None
    """At most so many sequences of a file."""
    rounds: int = 5
    """How often cost is measured, in turns."""
    out: Path = Path("docs/following.md")
    """The page; figures and pictures go into a folder of that name."""


def main(config: FollowingConfig) -> None:
    """Measure, keep the figures, write the page of all there are."""
    torch.set_num_threads(1)
    measured = {"atari": atari, "sprites": sprites, "ablation": ablation, "cost": cost}[config.part]
    folder = config.out.with_suffix("")
    folder.mkdir(parents=True, exist_ok=True)
    text = json.dumps(measured(config), indent=1) + "\n"
    write_atomically(folder / f"{config.part}.json", text.encode())
    write_atomically(config.out, page(folder).encode())
    print(f"written: {config.out}, {folder / config.part}.json")


def atari(config: FollowingConfig) -> dict[str, Any]:
    """SPACE with the tracker and SCALOR, on sequences that neither has seen."""
    rows = []
    for game, short in GAMES.items():
        path = config.tracks / f"{game}.npz"
        names = [name for name in (f"space-{short}", f"scalor-{short}") if name in WEIGHTS]
        if not path.exists():
            rows += [row for row in _kept(config, "atari") if row["game"] == game]
            print(f"{path} is not there: not measured anew")
            continue
        tracks = _first(read_tracks(path), config.limit)
        for name in names:
            perceiver = objrl.load(name, device="cpu")
            row = {"game": game, **_row(name, perceiver, tracks)}
            rows.append(row)
            print(row)
            if isinstance(perceiver, Scalor):
                _draw(perceiver, tracks, config.out.with_suffix("") / f"{game}.png")
    return {"machine": _machine(), "rows": rows}


def sprites(config: FollowingConfig) -> dict[str, Any]:
    """SCALOR on the paper's task 1, and the teacher without learning beside it."""
    rows, known = [], _kept(config, "sprites")
    for setting in SETTINGS:
        weights = config.runs / f"scalor-{setting.weights}" / "weights.safetensors"
        path = config.sprites / f"{setting.tracks}.npz"
        if not (weights.exists() and path.exists()):
            rows += [row for row in known if row["setting"] == setting.name]
            print(f"{setting.name}: {weights} or {path} is not there, not measured anew")
            continue
        tracks = _first(read_tracks(path), config.limit)
        model = objrl.load(weights, device="cpu", max_slots=setting.rows)
        row = {"setting": setting.name, **_row(str(weights), model, tracks)}
        store = config.sprites / f"{setting.weights}.h5"
        if store.exists():
            row["median"] = _median(store, tracks)
        rows.append(row)
        print(row)
        _draw(model, tracks, config.out.with_suffix("") / f"{setting.tracks}.png", scale=4)
    return {"machine": _machine(), "rows": rows}


def ablation(config: FollowingConfig) -> dict[str, Any]:
    """Without rejection, without attention: how much is propagated, how often discovered."""
    rows = []
    for name in ABLATION:
        weights = config.runs / f"scalor-fast-{name}" / "weights.safetensors"
        path = config.sprites / "MD6to36.npz"
        if not (weights.exists() and path.exists()):
            rows += [row for row in _kept(config, "ablation") if row["setting"] == name]
            print(f"{name}: {weights} or {path} is not there, not measured anew")
            continue
        tracks = _first(read_tracks(path), config.limit)
        row = {"setting": name, **_row(str(weights), objrl.load(weights, device="cpu"), tracks)}
        rows.append(row)
        print(row)
    return {"machine": _machine(), "rows": rows}


def cost(config: FollowingConfig) -> dict[str, Any]:
    """CPU-ms a frame against the number of objects, and a training step."""
    fast = SCALOR["scalor-fast"].model
    models = {
        64: replace(fast, frame_size=(64, 64), proposals=16),
        128: replace(fast, frame_size=(128, 128), cell=16, proposals=16),
    }
    contestants = [
        Contestant(
            case(side, count, rows), partial(_stepping, replace(model, max_slots=rows), count)
        )
        for side, model in models.items()
        for rows, counts in ((64, (4, 64)), (4, (4,)), (8, (8,)), (16, (16,)), (32, (32,)))
        for count in counts
    ]
    contestants.append(Contestant("training step", partial(_training, models[64])))
    effort = Effort(rounds=config.rounds, seconds=0.4)
    found = measure(contestants, effort)
    return {
        "machine": _machine(),
        "rows": {
            name: {
                "cpu_ms": [round(1e3 * value, 3) for value in timing.cpu],
                "wall_ms": [round(1e3 * value, 3) for value in timing.wall],
                "peak_mib": timing.peak,
            }
            for name, timing in found.items()
        },
    }


def _stepping(config: ScalorConfig, count: int, device: torch.device) -> Work:
    """Step a model of random weights with so many objects alive."""
    model = Scalor(config).to(device).eval()
    state = model.initial_state(1)
    ids = torch.arange(config.max_slots)[None]
    state = replace(
        state,
        track_id=torch.where(ids < count, ids, -1),
        z_pres=(ids < count).float()[..., None],
        z_where=torch.rand(1, config.max_slots, 4) / 5,
    )
    frames = torch.randint(0, 256, (1, *config.frame_size, 3), dtype=torch.uint8)
    first = torch.zeros(1, dtype=torch.bool)
    return lambda: model.step(frames, state, first)


def _training(config: ScalorConfig, device: torch.device) -> Work:
    """Batch 4, 10 frames of 64 x 64, 16 rows."""
    model = replace(config, max_slots=16)
    recipe = replace(SCALOR["scalor-fast"], model=model, self_configure=False, lead=0, length=10)
    task = ScalorTask(recipe, None).to(device).train()
    (optimizer,) = task.optimizers()
    frames = torch.randint(0, 256, (4, 10, *config.frame_size, 3), dtype=torch.uint8)
    batch = Sequences(frames, *(torch.zeros(0) for _ in range(4)))

    def step() -> None:
        loss, _ = task(batch, 1.0)  # gradients through all frames
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    return step


def _row(name: str, perceiver: Perceiver, tracks: Tracks) -> dict[str, Any]:
    """Follow the sequences, and see what a model of their pictures makes of them."""
    report = run_tracks(perceiver, tracks)
    row: dict[str, Any] = {
        "weights": name,
        "sequences": len(tracks.sequences),
        "frames": sum(len(one.frames) for one in tracks.sequences),
        **{
            rule: {score: _score(report, f"{score}_{rule}") for score in SCORES}
            for rule in ("iou", "distance")
        },
    }
    training = read_header(name)["training"]
    row |= {"steps": training["steps"], "cpu_seconds": training["cpu_seconds"]}
    if isinstance(perceiver, Scalor):
        row |= _seen(perceiver, tracks)
    return row


def _score(report: TrackReport, name: str) -> float:
    return round(float(report.metrics()[name]), 4)


@torch.no_grad()
def _seen(model: Scalor, tracks: Tracks) -> dict[str, float]:
    """Reconstruction, bound, and who is propagated."""
    size, pixels = model.config.frame_size, model.config.frame_size[0] * model.config.frame_size[1]
    errors, bounds, kept, alive, births = [], [], 0, 0, 0
    torch.manual_seed(0)
    for one in tracks.sequences:
        images = to_image(torch.from_numpy(np.ascontiguousarray(one.frames)), *size)
        state, drawn = model.initial_state(1), model.initial_state(1)
        for t, image in enumerate(images[:, None]):
            frame, state = model.see(image, state, sample=False)
            errors.append(float((frame.reconstruction - image).square().mean()))
            born = int(frame.seats.born.sum())
            births += born
            if t:
                alive += int(state.alive.sum())
                kept += int(state.alive.sum()) - born
            frame, drawn = model.see(image, drawn)
            terms = elbo_terms(frame, image, ScalorPriors(presence=1e-3, sigma=0.1))
            bounds.append(float(torch.stack([term.sum() for term in terms.values()]).sum()))
    wanted = sum(len(set(np.concatenate(one.ids).tolist())) for one in tracks.sequences)
    count = len(tracks.sequences)
    return {
        "mse": round(float(np.mean(errors)), 6),
        "nll_bound": round(float(np.mean(bounds)) / pixels, 4),
        "propagated": round(kept / max(alive, 1), 4),
        "discovered": round(births / count, 2),
        "identities": round(wanted / count, 2),
    }


def _median(store: Path, tracks: Tracks) -> dict[str, float]:
    """Score the baseline without learning, with the tracker: it was the teacher."""
    with FrameStore(store) as frames:
        detector = Median.fit(sample(frames, "train", 600))
    report = run_tracks(FramePerceiver(detector), tracks)
    return {name: _score(report, f"{name}_distance") for name in SCORES}


def _draw(perceiver: Perceiver, tracks: Tracks, path: Path, count: int = 6, scale: int = 2) -> None:
    """Draw the first frames of a sequence, every other, with the tracks up to them."""
    one = tracks.sequences[0]
    (followed,) = follow(perceiver, one.frames[None, : 2 * count])
    tiles = [
        draw.draw_slots(one.frames[t], boxes, np.ones(len(ids)), ids, scale)
        for t, (boxes, ids) in enumerate(zip(followed.boxes, followed.ids, strict=True))
    ][::2]
    draw.write_png(path, np.concatenate(tiles, axis=1))


def _first(tracks: Tracks, limit: int | None) -> Tracks:
    return replace(tracks, sequences=tracks.sequences[:limit])


def _kept(config: FollowingConfig, part: str) -> list[dict[str, Any]]:
    path = config.out.with_suffix("") / f"{part}.json"
    return list(json.loads(path.read_text())["rows"]) if path.exists() else []


def _machine() -> str:
    return f"{platform.machine()}, one thread, torch {torch.__version__}"


if __name__ == "__main__":
    main(tyro.cli(FollowingConfig))
