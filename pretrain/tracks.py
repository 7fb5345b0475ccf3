"""Labelled sequences with identities, and how well a perceiver follows the objects in them.

A file of tracks, what `objrl evaluate --tracks` reads, is a truth file (`objrl.pretrain.truth`)
with two arrays more:

| array | shape, dtype | meaning |
|---|---|---|
| `ids` | (M,) integers, at least 0 | the identity of each row of `boxes` within its sequence |
| `sequence` | (N,) integers | the sequence that each frame is of |

The frames of a sequence lie together and in order. An object keeps its identity as long as it is
there, also while it is not drawn; the same number in another sequence is another object:

    numpy.savez_compressed("mine.npz", frames=frames, classes=["ball", "paddle"], boxes=boxes,
                           ids=ids, sequence=sequence)

Nothing is ever trained on such a file, or chosen by it.

Letters: N frames of all sequences, T frames of one, B sequences side by side, H W pixels, M boxes
of the file, n boxes of one frame.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from tqdm import tqdm

from objrl import draw
from objrl.metrics import Truth
from objrl.perceiver import Perceiver
from objrl.pretrain.mot import Followed, Ids, Switch, TrackScore, score_tracks
from objrl.pretrain.truth import IGNORED_CLASSES, read_truth


@dataclass(frozen=True)
class TrackedSequence:
    """Consecutive frames and what there is to follow in them.

    Attributes:
        frames: (T, H, W, 3) uint8 RGB.
        truth: boxes of T frames, their classes, and where finding something counts neither way.
        ids: T arrays (n,) int64, the identities of the boxes.
    """

    frames: npt.NDArray[np.uint8]
    truth: Truth
    ids: Sequence[Ids]

    @property
    def wanted(self) -> Followed:
        """The boxes with their identities."""
        return Followed(self.truth.boxes, self.ids)


@dataclass(frozen=True)
class Tracks:
    """The content of a file of tracks.

    Attributes:
        game: name of the game.
        sequences: in the order of the file; they may differ in length.
    """

    game: str
    sequences: tuple[TrackedSequence, ...]


@dataclass(frozen=True)
class TrackReport:
    """A perceiver measured on sequences with identities.

    Attributes:
        found: its boxes and ids, one each sequence.
        iou: how they fit by IoU.
        distance: how they fit by the distance of the centres.
        classes: by class name, the number of true boxes and, by IoU, of switches of identity.
    """

    found: list[Followed]
    iou: TrackScore
    distance: TrackScore
    classes: dict[str, dict[str, int]]

    def metrics(self) -> dict[str, float]:
        """Return the scores by name, as `mota_iou` and `id_switches_distance`."""
        return {
            f"{name}_{rule}": value
            for rule, score in (("iou", self.iou), ("distance", self.distance))
            for name, value in _plain(score).items()
        }


def read_tracks(path: str | Path) -> Tracks:
    """Read a file of tracks; its format is in the module's docstring.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: as `read_truth`; or no identities, an identity twice in a frame, or frames of
            a sequence that do not lie together.
    """
    path = Path(path)
    labelled = read_truth(path)
    frames = len(labelled.frames)
    with np.load(path, allow_pickle=False) as archive:
        missing = [name for name in ("ids", "sequence") if name not in archive.files]
        if missing:
            raise ValueError(
                f"{path}: expected labels with identities, got no {' and no '.join(missing)}; "
                "`objrl truth --sequences` makes some, objrl/pretrain/tracks.py tells the format"
            )
        boxes, names = archive["boxes"].astype(np.int64), np.ravel(archive["classes"]).astype(str)
        ids = _check_numbers(path, "ids", archive["ids"], len(boxes), "boxes")
        sequence = _check_numbers(path, "sequence", archive["sequence"], frames, "frames")
    if len(ids) and ids.min() < 0:
        raise ValueError(f"{path}: expected ids of 0 and above, got {ids.min()}")

    counted = ~np.isin(names[boxes[:, 1]], IGNORED_CLASSES.get(labelled.game, ()))  # as read_truth
    ids, rows = ids[counted], boxes[counted, 0]
    begins = np.flatnonzero(np.diff(sequence, prepend=sequence[0] - 1))
    again = [number for number, times in Counter(sequence[begins].tolist()).items() if times > 1]
    if again:
        raise ValueError(
            f"{path}: expected the frames of a sequence to lie together, got sequence {again[0]} "
            "again after another; sort the frames, and number the first column of boxes anew"
        )
    by_frame = [ids[rows == index] for index in range(len(sequence))]
    for index, numbers in enumerate(by_frame):
        if len(np.unique(numbers)) < len(numbers):
            raise ValueError(
                f"{path}: expected every identity once in a frame, got {numbers.tolist()} in frame "
                f"{index}; two objects need two numbers"
            )
    parts = np.split(np.arange(len(sequence)), begins[1:])
    return Tracks(
        labelled.game,
        tuple(
            TrackedSequence(
                labelled.frames[part[0] : part[-1] + 1],
                labelled.truth.select(part),
                [by_frame[i] for i in part],
            )
            for part in parts
        ),
    )


def run_tracks(perceiver: Perceiver, tracks: Tracks, batch: int = 16) -> TrackReport:
    """Let a perceiver see sequences frame by frame, and measure how it follows.

    Args:
        perceiver: any; every sequence begins with a fresh state and `is_first`.
        tracks: what there is to follow.
        batch: how many sequences of one length are seen side by side at most.

    Raises:
        ImportError: the packages of `objrl[eval]` are missing.
        ValueError: the perceiver gives two objects of a frame one id.
    """
    found: list[Followed] = [Followed([], [])] * len(tracks.sequences)
    total = sum(len(one.frames) for one in tracks.sequences)
    with tqdm(total=total, desc="follow", unit="frame", delay=2, leave=False) as bar:
        for group in _groups([len(one.frames) for one in tracks.sequences], batch):
            seen = follow(perceiver, np.stack([tracks.sequences[i].frames for i in group]))
            for index, followed in zip(group, seen, strict=True):
                found[index] = followed
                bar.update(len(followed))
    wanted = [one.wanted for one in tracks.sequences]
    ignored = [one.truth.ignored for one in tracks.sequences]
    by_iou = score_tracks(wanted, ignored, found, "iou")
    objects = Counter(
        name for one in tracks.sequences for labels in one.truth.labels for name in labels
    )
    lost = Counter(_label(tracks, switch) for switch in by_iou.switches)
    return TrackReport(
        found,
        by_iou,
        score_tracks(wanted, ignored, found, "distance"),
        {name: {"objects": objects[name], "id_switches": lost[name]} for name in sorted(objects)},
    )


def follow(perceiver: Perceiver, frames: npt.NDArray[np.uint8]) -> list[Followed]:
    """Step a perceiver through (B, T, H, W, 3) uint8 frames of B sequences side by side."""
    batch, length, height, width = frames.shape[:4]
    state = perceiver.initial_state(batch)
    boxes: list[list[npt.NDArray[np.float64]]] = [[] for _ in range(batch)]
    ids: list[list[Ids]] = [[] for _ in range(batch)]
    for time in range(length):
        part = torch.from_numpy(np.ascontiguousarray(frames[:, time]))
        slots, state = perceiver.step(part, state, torch.full((batch,), time == 0))
        corners = slots.boxes(height, width).double().cpu().numpy()
        numbers, mask = slots.track_id[..., 0].cpu().numpy(), slots.mask.cpu().numpy()
        for row in range(batch):
            boxes[row].append(corners[row][mask[row]])
            ids[row].append(numbers[row][mask[row]])
    return [Followed(*each) for each in zip(boxes, ids, strict=True)]


def picture(tracks: Tracks, report: TrackReport, rows: int, scale: int = 2) -> draw.Image:
    """Draw frames of the sequence with most switches, boxes in the colours of their identities.

    Args:
        tracks: what there is to follow.
        report: what was found there.
        rows: so many frames: those before and after the first switches; where there are none,
            spread evenly.
        scale: how many times the frames are enlarged.
    """
    switches = report.iou.switches
    worst = Counter(s.sequence for s in switches).most_common(1)[0][0] if switches else 0
    one, found = tracks.sequences[worst], report.found[worst]
    here = [s for s in switches if s.sequence == worst]
    moments = list(dict.fromkeys(t for s in here for t in (s.since, s.frame)))[:rows]
    if not moments:
        moments = (
            np.linspace(0, len(one.frames) - 1, min(rows, len(one.frames))).astype(int).tolist()
        )
    moments.sort()
    titles = []
    for time in moments:
        new = [f"{s.identity}: {s.before} -> {s.after}" for s in here if s.frame == time]
        titles.append(f"sequence {worst}, frame {time}" + ", object ".join(["", *new]))

    def column(followed: Followed) -> list[draw.Image]:
        return [
            draw.draw_slots(
                one.frames[time],
                followed.boxes[time],
                np.ones(len(followed.ids[time])),
                followed.ids[time],
                scale,
            )
            for time in moments
        ]

    columns = {"found": column(found), "objects": column(one.wanted)}
    height, width = one.frames.shape[1:3]
    return draw.sheet(columns, height * scale, width * scale, titles)


def _plain(score: TrackScore) -> dict[str, float]:
    """Return the fields of a score, its switches as a number."""
    fields = asdict(score)
    switches = fields.pop("switches")
    return {**fields, "id_switches": len(switches)}


def _label(tracks: Tracks, switch: Switch) -> str:
    """Return the class of the object that a switch befell."""
    one = tracks.sequences[switch.sequence]
    row = one.ids[switch.frame].tolist().index(switch.identity)
    name: str = one.truth.labels[switch.frame][row]
    return name


def _groups(lengths: Sequence[int], batch: int) -> Iterator[list[int]]:
    """Yield the numbers of sequences of one length, at most `batch` at once."""
    for length in sorted(set(lengths)):
        alike = [index for index, each in enumerate(lengths) if each == length]
        for start in range(0, len(alike), batch):
            yield alike[start : start + batch]


def _check_numbers(
    path: Path, name: str, values: npt.NDArray[np.generic], count: int, of: str
) -> npt.NDArray[np.int64]:
    if values.shape != (count,) or values.dtype.kind not in "iu":
        raise ValueError(
            f"{path}: expected {name} to be integers of shape ({count},), one for each of {of}, "
            f"got {values.shape} {values.dtype}"
        )
    return values.astype(np.int64)
