"""`objrl imagine`: how a SCALOR thinks that sequences go on, beside how they do.

It sees the first frames of sequences, imagines the rest, draws both beside the true frames, and
prints how far off it is each step ahead. What is imagined stands beside what needs no world model:
the last frame kept, and everybody going on as they last moved. "followed" sees every frame, and is
what could be hoped for. Centres are held against where the model itself finds the same object when
it goes on following, so nothing needs to be labelled. With --from-nothing it also draws sequences
that begin with no frame at all.

Letters: B sequences, T frames, S frames that are seen, K rows, H W canvas.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

import objrl
from objrl import draw
from objrl.atomic import write_atomically
from objrl.frames import to_image
from objrl.models.scalor import Scalor
from objrl.models.scalor_generate import Footage, dream, imagine, watch
from objrl.models.scalor_latents import Objects
from objrl.pretrain.reading import sample, spread
from objrl.pretrain.store import FrameStore
from objrl.pretrain.tracks import read_tracks

_IMAGINED = (255, 150, 40)
"""Colour of the frame around what is imagined."""
_COLUMNS = 10
"""Steps ahead that the printed table has at most; the file has all."""

Scores = dict[str, dict[str, list[float]]]
"""By measure, then by who guessed; one value a step ahead, NaN where nothing could be measured."""


@dataclass(frozen=True)
class ImagineConfig:
    """Let a SCALOR imagine how sequences go on, or sequences from nothing."""

    weights: str
    """A SCALOR's: a name of `objrl weights`, or the path of a .safetensors file."""
    data: Path | None = None
    """Frames, .h5: sequences spread evenly over the split."""
    tracks: Path | None = None
    """Labelled sequences, .npz, instead: the beginning of each; labels are not looked at."""
    split: Literal["train", "val", "test"] = "test"
    """Which episodes of --data."""
    seen: int = 5
    """S, frames that it sees."""
    frames: int = 10
    """Frames that it then imagines."""
    sequences: int = 4
    """How many are drawn."""
    limit: int = 64
    """At most so many are measured."""
    births: float = 0.0
    """Probability of a new object, each cell and imagined frame."""
    from_nothing: bool = False
    """Also draw as many sequences from nothing; with neither --data nor --tracks only these."""
    first: float = 0.2
    """Probability of an object in each cell of the first frame of a sequence from nothing. The
    paper has 8 x 8 cells; a canvas of more wants less."""
    boxes: bool = False
    """Draw boxes and identities."""
    seed: int = 0
    """Of what is imagined."""
    out: Path = Path("futures.png")
    """The picture; the figures go beside it, to a .json file of the same name."""
    device: str = "auto"
    """auto (CUDA where there is one), cpu, cuda or cuda:N."""
    batch: int = 16
    """Sequences imagined side by side."""


def imagine_futures(config: ImagineConfig) -> dict[str, Any]:
    """Imagine as the command line asks: print a table, write a picture and a JSON file.

    Returns:
        What the JSON file holds.

    Raises:
        ValueError: options that do not go together or are out of range, weights of another model,
            or no sequence that is long enough.
        FileNotFoundError: no such file.
    """
    for name in ("seen", "frames", "sequences", "limit", "batch"):
        if getattr(config, name) < 1:
            raise ValueError(f"imagine: expected {name} >= 1, got {getattr(config, name)}")
    sources = [path for path in (config.data, config.tracks) if path is not None]
    if len(sources) > 1 or not (sources or config.from_nothing):
        raise ValueError(
            "imagine: expected --data FILE.h5, --tracks FILE.npz or --from-nothing, got "
            f"{'--data and --tracks' if sources else 'none of them'}"
        )
    model = objrl.load(config.weights, device=config.device)
    if not isinstance(model, Scalor):
        raise ValueError(
            f"imagine: expected weights of a SCALOR, got {config.weights}, which follows objects "
            "without a model of how they move; `objrl pretrain --preset scalor-fast` makes some"
        )
    result: dict[str, Any] = {
        "weights": config.weights,
        "source": sources[0].name if sources else None,
        **{name: getattr(config, name) for name in ("seen", "frames", "births", "first", "seed")},
    }
    rows: list[tuple[str, list[draw.Image]]] = []
    length = config.frames
    if sources:
        length += config.seen
        frames = _read(config, length)
        scores = _measure(model, frames, config)
        result |= {"sequences": len(frames), "scores": _plain(scores)}
        print(f"{config.weights} on {sources[0].name}: {len(frames)} sequences")
        print("\n".join(_table(scores, config.frames)))
        rows += _futures(model, frames, config)
    if config.from_nothing:
        dreams = dream(
            *(model, config.sequences, length),
            first=config.first,
            births=config.births,
            seed=config.seed,
        )
        titles = [f"from nothing, {i}" for i in range(config.sequences)]
        rows += zip(titles, _strips([dreams], 0, config.boxes), strict=True)
    ahead = length - config.frames
    names = [f"seen {t + 1}" if t < ahead else f"+{t - ahead + 1}" for t in range(length)]
    columns = {name: [row[t] for _, row in rows] for t, name in enumerate(names)}
    height, width = rows[0][1][0].shape[:2]
    sheet = draw.sheet(columns, height, width, [title for title, _ in rows])
    draw.write_png(config.out, sheet)
    written = config.out.with_suffix(".json")
    write_atomically(written, (json.dumps(result, indent=2) + "\n").encode())
    print(f"written: {config.out}, {written}")
    return result


def _read(config: ImagineConfig, length: int) -> npt.NDArray[np.uint8]:
    """Return (B, T, H, W, 3) frames, at most `limit` sequences."""
    if config.data is not None:
        with FrameStore(config.data) as store:
            return sample(store, config.split, config.limit, length)
    assert config.tracks is not None
    sequences = read_tracks(config.tracks).sequences
    long = [one.frames[:length] for one in sequences if len(one.frames) >= length]
    if not long:
        raise ValueError(
            f"{config.tracks}: expected sequences of {length} frames and more, got at most "
            f"{max(len(one.frames) for one in sequences)}; take fewer --frames"
        )
    return np.stack([long[i] for i in spread(len(long), config.limit)])


def _images(model: Scalor, frames: npt.NDArray[np.uint8]) -> Tensor:
    """(B, T, H, W, 3) uint8 frames -> (B, T, 3, H, W) images on the canvas."""
    flat = torch.from_numpy(frames).flatten(0, 1).to(model.device)
    images = to_image(flat, *model.config.frame_size)
    return images.view(*frames.shape[:2], *images.shape[1:])


def _measure(model: Scalor, frames: npt.NDArray[np.uint8], config: ImagineConfig) -> Scores:
    parts: list[dict[str, dict[str, Tensor]]] = []
    for number, start in enumerate(range(0, len(frames), config.batch)):
        images = _images(model, frames[start : start + config.batch])
        parts.append(_compare(model, images, config, config.seed + number))

    def mean(measure: str, name: str) -> list[float]:
        values = torch.cat([part[measure][name].flatten(0, -2) for part in parts])
        found: list[float] = values.nanmean(0).tolist()
        return found

    return {measure: {n: mean(measure, n) for n in names} for measure, names in parts[0].items()}


def _compare(
    model: Scalor, images: Tensor, config: ImagineConfig, seed: int
) -> dict[str, dict[str, Tensor]]:
    """Return measures (B, frames) of images and (B, K, frames) of objects, NaN where there is none.

    Args:
        model: what imagines.
        images: (B, S + frames, 3, H, W).
        config: how.
        seed: of the draws.
    """
    begun, rest = images[:, : config.seen], images[:, config.seen :]
    seen = watch(model, begun, model.initial_state(len(images)))
    followed = watch(model, rest, seen.state)
    drawn = imagine(
        *(model, seen.state, config.frames),
        background=seen.background,
        births=config.births,
        seed=seed,
    )
    likeliest = imagine(model, seen.state, config.frames, background=seen.background, sample=False)
    steady = _steady(model, seen, config.frames)
    last = seen.slots[-1]
    side = torch.tensor(model.config.frame_size[::-1], device=images.device) / 2
    distances: dict[str, list[Tensor]] = {}
    there: list[Tensor] = []
    for t, now in enumerate(followed.slots):
        both = last.mask & now.mask & (last.track_id == now.track_id)[..., 0]
        # The same objects for all: who imagines the hard ones away is not the better for it.
        here = both & drawn.slots[t].mask & likeliest.slots[t].mask

        def off(position: Tensor, here: Tensor = here, goal: Tensor = now.position) -> Tensor:
            return torch.where(here, ((position - goal) * side).norm(dim=-1), torch.nan)

        guesses = {
            "imagined": drawn.slots[t].position,
            "likeliest": likeliest.slots[t].position,
            "constant velocity": last.position + (t + 1) * last.velocity,
            "standing still": last.position,
        }
        for name, position in guesses.items():
            distances.setdefault(name, []).append(off(position))
        there.append(torch.where(both, drawn.slots[t].mask.float(), torch.nan))

    def error(guess: Tensor) -> Tensor:
        return (guess - rest).square().mean((2, 3, 4))

    return {
        "mean squared error": {
            "followed": error(followed.images),
            "imagined": error(drawn.images),
            "likeliest": error(likeliest.images),
            "constant velocity": error(steady),
            "last frame": error(begun[:, -1:]),
        },
        "distance of centres, pixels": {
            name: torch.stack(values, dim=-1) for name, values in distances.items()
        },
        "share still there": {"imagined": torch.stack(there, dim=-1)},
    }


@torch.no_grad()
def _steady(model: Scalor, seen: Footage, frames: int) -> Tensor:
    """Draw (B, frames, 3, H, W) in which all go on as they last moved, and nothing else changes."""
    state = seen.state
    appearance, mask = model.glimpses.decode(state.z_what)
    images = []
    for step in range(1, frames + 1):
        size, centre = state.z_where[..., :2], state.z_where[..., 2:]
        objects = Objects(
            z_pres=state.z_pres * state.alive[..., None],
            z_where=torch.cat([size, centre + step * state.velocity], dim=-1),
            bias=state.bias,
            z_depth=state.z_depth,
            z_what=state.z_what,
            appearance=appearance,
            mask=mask,
        )
        layers = model.draw(objects)
        images.append((layers.mean + (1 - layers.alpha) * seen.background).clamp(0, 1))
    return torch.stack(images, dim=1)


def _futures(
    model: Scalor, frames: npt.NDArray[np.uint8], config: ImagineConfig
) -> list[tuple[str, list[draw.Image]]]:
    """Return two titled rows of tiles a sequence: true frames, and what the model makes of them."""
    which = spread(len(frames), config.sequences)
    images = _images(model, frames[which])
    seen = watch(model, images[:, : config.seen], model.initial_state(len(which)))
    future = imagine(
        *(model, seen.state, config.frames),
        background=seen.background,
        births=config.births,
        seed=config.seed,
    )
    made = _strips([seen, future], config.seen, config.boxes)
    rows: list[tuple[str, list[draw.Image]]] = []
    for number, true, strip in zip(which, images, made, strict=True):
        scale = strip[0].shape[1] // true.shape[-1]
        rows.append((f"sequence {number}: true frames", [_enlarged(x, scale) for x in true]))
        rows.append((f"sequence {number}: inferred, then imagined", strip))
    return rows


def _strips(parts: Iterable[Footage], seen: int, boxes: bool) -> list[list[draw.Image]]:
    """Return a list of T tiles for each of B sequences; from frame `seen` on they have a frame."""
    parts = list(parts)
    images = torch.cat([part.images for part in parts], dim=1)
    slots = [slots for part in parts for slots in part.slots]
    height, width = images.shape[-2:]
    scale = max(1, -(-128 // width))
    strips: list[list[draw.Image]] = [[] for _ in range(len(images))]
    for t, now in enumerate(slots):
        corners, fields = now.boxes(height, width).cpu().numpy(), now.numpy()
        for b, strip in enumerate(strips):
            tile = _enlarged(images[b, t], scale)
            if boxes:
                names = (fields["presence"][b], fields["track_id"][b])
                tile = draw.draw_slots(_enlarged(images[b, t], 1), corners[b], *names, scale)
            if t >= seen:
                tile[:2] = tile[-2:] = tile[:, :2] = tile[:, -2:] = _IMAGINED
            strip.append(tile)
    return strips


def _enlarged(image: Tensor, scale: int) -> draw.Image:
    """(3, H, W) in [0, 1] -> (H * scale, W * scale, 3) uint8."""
    values = image.mul(255).round().byte().permute(1, 2, 0).cpu().numpy()
    return np.asarray(values.repeat(scale, axis=0).repeat(scale, axis=1), dtype=np.uint8)


def _table(scores: Scores, frames: int) -> list[str]:
    steps = spread(frames, _COLUMNS)
    lines = [f"{'steps ahead':20}" + "".join(f"{t + 1:>10}" for t in steps)]
    for measure, names in scores.items():
        lines.append(measure)
        for name, values in names.items():
            lines.append(f"  {name:18}" + "".join(f"{values[t]:10.3g}" for t in steps))
    return lines


def _plain(scores: Scores) -> dict[str, dict[str, list[float | None]]]:
    """Return scores as JSON can hold them."""
    return {
        measure: {
            name: [None if math.isnan(value) else value for value in values]
            for name, values in names.items()
        }
        for measure, names in scores.items()
    }
