"""Sequences with identities: the file, stepping a perceiver through them, the picture."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch

from objrl import draw
from objrl.pretrain.mot import Followed
from objrl.pretrain.tracks import Tracks, picture, read_tracks, run_tracks
from objrl.slots import Slots
from tests.helpers import BlobDetector, make_stub_perceiver

HEIGHT, WIDTH, SIDE = 24, 40, 4
Write = Callable[..., Path]


def squares(lengths: Sequence[int]) -> dict[str, npt.NDArray[Any]]:
    """A file's arrays: two squares that pass each other, in another place in every sequence."""
    frames: list[npt.NDArray[np.uint8]] = []
    rows, ids, sequence = [], [], []
    for number, length in enumerate(lengths):
        for time in range(length):
            frame = np.zeros((HEIGHT, WIDTH, 3), np.uint8)
            for name, (x, y) in enumerate([(2 * time, 2 + number), (30 - 2 * time, 12 + number)]):
                frame[y : y + SIDE, x : x + SIDE] = (255, 0, 0) if name else (0, 255, 255)
                rows.append([len(frames), name, x, y, SIDE, SIDE])
                ids.append(7 * name)
            frames.append(frame)
            sequence.append(3 - number)  # any numbers
    return {
        "frames": np.array(frames),
        "classes": np.array(["cyan", "red"]),
        "boxes": np.array(rows),
        "ids": np.array(ids),
        "sequence": np.array(sequence),
    }


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """Write a file of two sequences of 6 and 4 frames, with arrays replaced or (None) left out."""

    def written(lengths: Sequence[int] = (6, 4), **changes: npt.ArrayLike | None) -> Path:
        arrays = {**squares(lengths), **changes}
        path = tmp_path / "mine.npz"
        given = {name: np.asarray(value) for name, value in arrays.items() if value is not None}
        np.savez(path, **given)  # type: ignore[arg-type]
        return path

    return written


class Script:
    """Gives the boxes and ids of a script, whatever the frames: one sequence at a time."""

    max_slots, what_size, device = 3, 1, torch.device("cpu")

    def __init__(self, script: Followed) -> None:
        self.script = script

    def initial_state(self, batch: int) -> int:
        return 0

    def step(self, frames: torch.Tensor, state: int, is_first: torch.Tensor) -> tuple[Slots, int]:
        assert is_first.tolist() == [state == 0]
        slots = Slots.empty(1, self.max_slots, 1)
        size = torch.tensor([WIDTH, HEIGHT] * 2)
        boxes = torch.from_numpy(self.script.boxes[state]).float() / size
        slots.position[0, : len(boxes)] = boxes[:, :2] + boxes[:, 2:] - 1
        slots.scale[0, : len(boxes)] = boxes[:, 2:] - boxes[:, :2]
        slots.presence[0, : len(boxes)] = 1
        slots.track_id[0, : len(boxes), 0] = torch.from_numpy(self.script.ids[state])
        return slots, state + 1

    def encode(self, frames: torch.Tensor) -> Slots:
        raise NotImplementedError

    def segment(self, frames: torch.Tensor) -> torch.Tensor:
        raise NotImplementedError


def test_a_file_falls_into_its_sequences(write: Write) -> None:
    tracks = read_tracks(write(game="Squares"))
    assert tracks.game == "Squares"
    assert [one.frames.shape[0] for one in tracks.sequences] == [6, 4]
    second = tracks.sequences[1]
    assert second.truth.boxes[1].tolist() == [[2, 3, 6, 7], [28, 13, 32, 17]]
    assert second.frames[1][3, 2].tolist() == [0, 255, 255]
    assert second.truth.labels[1] == ("cyan", "red")
    assert second.wanted.ids[1].tolist() == [0, 7]


def test_rows_may_be_in_any_order_and_frames_without_objects(write: Write) -> None:
    arrays = squares((6, 4))
    order = np.random.default_rng(0).permutation(len(arrays["ids"]))
    order = order[arrays["boxes"][order, 0] != 2]
    shuffled = read_tracks(write(boxes=arrays["boxes"][order], ids=arrays["ids"][order]))
    first = shuffled.sequences[0]
    assert [len(ids) for ids in first.ids] == [2, 2, 0, 2, 2, 2]
    for index, (boxes, ids) in enumerate(zip(first.truth.boxes, first.ids, strict=True)):
        for box, name in zip(boxes, ids, strict=True):
            assert box[0] == (30 - 2 * index if name else 2 * index)


def test_identities_of_what_is_ignored_go_with_it(write: Write) -> None:
    tracks = read_tracks(write(game="MsPacman", classes=["Pill", "red"]))
    first = tracks.sequences[0]
    assert [ids.tolist() for ids in first.ids] == [[7]] * 6
    assert [len(aside) for aside in first.truth.ignored] == [1] * 6


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"ids": None}, "with identities, got no ids; `objrl truth --sequences` makes some"),
        ({"ids": None, "sequence": None}, "got no ids and no sequence"),
        ({"ids": np.zeros(19, int)}, r"ids to be integers of shape \(20,\), one for each of boxes"),
        ({"ids": np.zeros(20)}, r"got \(20,\) float64"),
        ({"ids": -np.ones(20, int)}, "expected ids of 0 and above, got -1"),
        ({"ids": np.zeros(20, int)}, r"every identity once in a frame, got \[0, 0\] in frame 0"),
        ({"sequence": [1] * 9}, r"integers of shape \(10,\), one for each of frames, got \(9,\)"),
        ({"sequence": [1, 1, 2, 2, 2, 1, 1, 3, 3, 3]}, "lie together, got sequence 1 again"),
        ({"boxes": None}, "missing: boxes"),
    ],
)
def test_wrong_files_are_refused(
    write: Write, changes: dict[str, npt.ArrayLike | None], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        read_tracks(write(**changes))


def test_who_sees_all_and_follows_scores_one(write: Write) -> None:
    report = run_tracks(make_stub_perceiver(), read_tracks(write((6, 4, 6))))
    for score in (report.iou, report.distance):
        assert (score.mota, score.idf1, score.switches) == (1, 1, ())
        assert [score.hota, score.motp] == pytest.approx([1, 1])
        assert (score.objects, score.identities, score.found_identities) == (32, 6, 6)
    assert report.metrics()["mota_iou"] == 1
    assert report.metrics()["id_switches_distance"] == 0
    assert "switches_iou" not in report.metrics()
    assert report.classes["red"] == {"objects": 16, "id_switches": 0}


@pytest.mark.parametrize("batch", [1, 2, 16])
def test_sequences_of_one_length_are_seen_side_by_side(write: Write, batch: int) -> None:
    tracks = read_tracks(write((6, 4, 6, 6)))
    perceiver = make_stub_perceiver()
    report = run_tracks(perceiver, tracks, batch)
    for one, found in zip(tracks.sequences, report.found, strict=True):
        assert len(found) == len(one.frames)
        assert [sorted(boxes.round(3).tolist()) for boxes in found.boxes] == [
            sorted(boxes.tolist()) for boxes in one.truth.boxes
        ]
        assert found.identities.tolist() == [0, 1]  # a fresh state each
    detector = perceiver.detector
    assert isinstance(detector, BlobDetector)
    assert len(detector.calls) == {1: 22, 2: 4 + 6 + 6, 16: 4 + 6}[batch]


@pytest.fixture
def switched(write: Write) -> tuple[Tracks, Script]:
    """One sequence, and somebody who from frame 3 on has another name for what is red."""
    tracks = read_tracks(write((6,)))
    wanted = tracks.sequences[0].wanted
    names = [np.array([4, 5])] * 3 + [np.array([4, 6])] * 3
    return tracks, Script(replace(wanted, ids=names))


def test_switches_are_told_by_class(switched: tuple[Tracks, Script]) -> None:
    tracks, script = switched
    report = run_tracks(script, tracks)
    assert report.classes == {
        "cyan": {"objects": 6, "id_switches": 0},
        "red": {"objects": 6, "id_switches": 1},
    }
    assert report.metrics()["mota_iou"] == pytest.approx(11 / 12)


def test_two_objects_of_one_id_are_the_perceivers_fault(switched: tuple[Tracks, Script]) -> None:
    tracks, script = switched
    script.script.ids[4][:] = 4
    with pytest.raises(ValueError, match=r"every identity once in frame 3, got \[4, 4\]"):
        run_tracks(script, tracks)


def test_the_picture_shows_frames_before_and_after_switches(
    switched: tuple[Tracks, Script], write: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    titles: list[str] = []
    columns: dict[str, Any] = {}

    def sheet(images: dict[str, Any], height: int, width: int, rows: list[str]) -> draw.Image:
        titles[:] = rows
        columns.update(images)
        return real(images, height, width, rows)

    real = draw.sheet
    monkeypatch.setattr(draw, "sheet", sheet)
    tracks, script = switched
    image = picture(tracks, run_tracks(script, tracks), rows=5, scale=3)
    assert titles == ["sequence 0, frame 2", "sequence 0, frame 3, object 7: 5 -> 6"]
    assert image.shape[1] > 2 * 3 * WIDTH
    for name, identity in (("found", 6), ("objects", 7)):  # frame 3: red is at 24, 12
        colours = columns[name][1][12 * 3 - 1, 24 * 3 : 28 * 3]
        assert (colours == draw.track_colour(identity)).all(), name
    calm = read_tracks(write((6, 4)))
    picture(calm, run_tracks(make_stub_perceiver(), calm), rows=3)
    assert titles == [f"sequence 0, frame {time}" for time in (0, 2, 5)]
