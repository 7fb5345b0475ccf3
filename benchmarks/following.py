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
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import tyro

import objrl
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


@dataclass(frozen=True)
class FollowingConfig:
    """Measure one part and write the page."""

    part: tyro.conf.Positional[Part]
    """atari, sprites, ablation or cost."""
    tracks: Path = Path("runs/tracks")
    """Folder of GAME.npz, from `objrl truth --sequences 8 --length 64 --seed 4242`."""
    sprites: Path = Path("runs/sprites")
    """Folder of NAME.npz and NAME.h5, from `objrl synthetic`."""
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
    write_atomically(config.out, _page(folder).encode())
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
            _case(side, count, rows), partial(_stepping, replace(model, max_slots=rows), count)
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


def _case(side: int, count: int, rows: int) -> str:
    return f"{side}, {count} objects, {rows} rows"


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
        fresh=torch.zeros_like(state.fresh),
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


def _page(folder: Path) -> str:
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
        "Sequences of random play that no model has learnt from, identities from the RAM. SPACE is "
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
            cells.append(f"{np.median(rows[_case(side, count, slots)]['cpu_ms']):.1f}")
            cells.append(str(REFERENCE[side].get(count, "")))
        lines.append(f"| {' | '.join(cells)} |")
    step = rows["training step"]
    lines += [
        "",
        f"A training step (64 x 64, batch 4, 10 frames, 16 rows) takes "
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


if __name__ == "__main__":
    main(tyro.cli(FollowingConfig))
