"""Measuring perceivers: truth files, the reports, and what the command writes."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
import pytest
import torch

from objrl.metrics import Truth
from objrl.models.median import Median
from objrl.perceiver import FramePerceiver
from objrl.pretrain.evaluate import EvaluateConfig, evaluate, evaluate_perceiver
from objrl.pretrain.measure import (
    compare_with_baseline,
    look_alike,
    perceive,
    take_apart,
    ten_lines,
)
from objrl.pretrain.store import FrameWriter
from objrl.pretrain.truth import LabelledFrames, read_truth
from objrl.slots import Slots
from objrl.weights.registry import save_weights

SAMPLE = Path(__file__).parent / "data" / "space_invaders_sample.npz"
Arrays = dict[str, npt.NDArray[Any]]


@pytest.fixture(scope="module")
def sample() -> LabelledFrames:
    return read_truth(SAMPLE)


@pytest.fixture(scope="module")
def median(sample: LabelledFrames) -> FramePerceiver:
    return FramePerceiver(Median.fit(sample.frames))


@pytest.fixture(scope="module")
def weights(median: FramePerceiver, tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("weights") / "median-mine.safetensors"
    save_weights(path, median.detector, model_name="median", data={}, training={}, metrics={})
    return str(path)


class Oracle:
    """Sees the given boxes, whatever the frames; a perceiver that reconstructs nothing."""

    what_size = 1
    device = torch.device("cpu")

    def __init__(self, truth: Truth, presence: float = 1.0) -> None:
        self.truth, self.presence, self.seen = truth, presence, 0
        self.max_slots = max(len(boxes) for boxes in truth.boxes)

    def initial_state(self, batch: int) -> None: ...

    def step(self, frames: torch.Tensor, state: None, is_first: torch.Tensor) -> tuple[Slots, None]:
        return self.encode(frames), None

    def encode(self, frames: torch.Tensor) -> Slots:
        slots = Slots.empty(len(frames), self.max_slots, 1)
        size = torch.tensor([frames.shape[2], frames.shape[1]] * 2)
        for row in range(len(frames)):
            boxes = torch.from_numpy(self.truth.boxes[self.seen + row]).float() / size
            slots.position[row, : len(boxes)] = boxes[:, :2] + boxes[:, 2:] - 1
            slots.scale[row, : len(boxes)] = boxes[:, 2:] - boxes[:, :2]
            slots.presence[row, : len(boxes)] = self.presence
        self.seen += len(frames)
        return slots

    def segment(self, frames: torch.Tensor) -> torch.Tensor:
        raise NotImplementedError


def test_the_sample_is_read_as_corners(sample: LabelledFrames) -> None:
    assert sample.game == "SpaceInvaders"
    assert sample.frames.shape == (8, 210, 160, 3)
    with np.load(SAMPLE) as archive:
        raw = archive["boxes"]
        names = archive["classes"]
    assert sample.truth.count == len(raw)
    frame, label, x, y, width, height = raw[-1]
    assert sample.truth.boxes[frame][-1].tolist() == [x, y, x + width, y + height]
    assert sample.truth.labels[frame][-1] == names[label]
    assert all(len(ignored) for ignored in sample.truth.ignored)  # the score, at least


@pytest.fixture
def own_file(tmp_path: Path) -> Callable[..., Path]:
    """Write a truth file of two small frames, with arrays replaced or (None) left out."""

    def write(**changes: npt.ArrayLike | None) -> Path:
        arrays: dict[str, npt.ArrayLike | None] = {
            "frames": np.zeros((2, 20, 30, 3), np.uint8),
            "classes": ["ball", "Pill"],
            "boxes": [[0, 0, 1, 2, 3, 4], [1, 1, 5, 6, 7, 8]],
        }
        arrays |= changes
        path = tmp_path / "mine.npz"
        given = {name: np.asarray(value) for name, value in arrays.items() if value is not None}
        np.savez(path, **given)  # type: ignore[arg-type]
        return path

    return write


def test_a_file_of_ones_own_needs_three_arrays(own_file: Callable[..., Path]) -> None:
    mine = read_truth(own_file())
    assert mine.game == "mine"
    assert [boxes.tolist() for boxes in mine.truth.boxes] == [[[1, 2, 4, 6]], [[5, 6, 12, 14]]]
    assert mine.truth.labels == [("ball",), ("Pill",)]
    assert [len(ignored) for ignored in mine.truth.ignored] == [0, 0]


def test_the_pills_of_the_maze_are_ignored(own_file: Callable[..., Path]) -> None:
    pacman = read_truth(own_file(game="MsPacman", ignore=[[0, 9, 9, 2, 2]])).truth
    assert pacman.labels == [("ball",), ()]
    assert [boxes.tolist() for boxes in pacman.ignored] == [[[9, 9, 11, 11]], [[5, 6, 12, 14]]]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"boxes": None, "classes": None}, r"got frames; missing: classes, boxes"),
        ({"frames": np.zeros((2, 20, 30), np.uint8)}, r"frames \(N, H, W, 3\) uint8 RGB, got \(2,"),
        ({"frames": np.zeros((2, 20, 30, 3))}, r"got \(2, 20, 30, 3\) float64"),
        ({"boxes": np.zeros((0, 6), int)}, "at least one true box.*got no boxes"),
        ({"boxes": [[0, 1, 2, 3, 4]]}, r"boxes to be numbers of shape \(·, 6\), got \(1, 5\)"),
        ({"boxes": [[2, 0, 1, 2, 3, 4]]}, r"frame numbers of boxes in 0\.\.1, got 2"),
        ({"boxes": [[0, 2, 1, 2, 3, 4]]}, r"class numbers of boxes in 0\.\.1 .*got 2\.\.2"),
        ({"boxes": [[0, 0, 1, 2, 0, 4]]}, r"positive sizes in boxes, got \[1\.0, 2\.0, 0\.0"),
        ({"ignore": [[7, 1, 2, 3, 4]]}, r"frame numbers of ignore in 0\.\.1, got 7"),
        ({"boxes": np.array([None])}, "another format"),  # would have to be unpickled
    ],
)
def test_wrong_truth_files_are_refused(
    own_file: Callable[..., Path], changes: Arrays, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        read_truth(own_file(**changes))


def test_files_of_another_kind_are_refused(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no such truth file"):
        read_truth(tmp_path / "absent.npz")
    whole = SAMPLE.read_bytes()
    np.save(tmp_path / "array.npy", np.zeros(3))
    (tmp_path / "text.npz").write_text("hello")
    (tmp_path / "empty.npz").write_bytes(b"")
    (tmp_path / "short.npz").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "flipped.npz").write_bytes(whole[:2000] + bytes(64) + whole[2064:])
    for name in ("array.npy", "text.npz", "empty.npz", "short.npz", "flipped.npz"):
        with pytest.raises(ValueError, match="a damaged file or another format"):
            read_truth(tmp_path / name)


def test_an_oracle_scores_one(sample: LabelledFrames) -> None:
    report = evaluate_perceiver(Oracle(sample.truth), sample.frames, sample.truth, batch=3)
    found = report.metrics()
    for name in ("f1_centre", "f1_iou", "precision_iou", "recall_iou", "ap50", "ap50_95"):
        assert found[name] == pytest.approx(1), name
    assert found["count_error_centre"] == 0
    assert found["slots_per_frame"] == pytest.approx(sample.truth.count / 8)
    assert "mse" not in found
    assert report.errors.tolist() == [0] * 8


def test_a_missing_class_shows_in_its_recall_and_in_its_frames(sample: LabelledFrames) -> None:
    truth = sample.truth
    keep = [np.array([name != "Shield" for name in names]) for names in truth.labels]
    blind = Truth(
        [boxes[kept] for boxes, kept in zip(truth.boxes, keep, strict=True)],
        [tuple(name for name in names if name != "Shield") for names in truth.labels],
        truth.ignored,
    )
    report = evaluate_perceiver(Oracle(blind), sample.frames, truth)
    classes = report.classes()
    assert (classes["Shield"]["recall_centre"], classes["Alien"]["recall_iou"]) == (0, 1)
    assert report.metrics()["recall_centre"] == pytest.approx(blind.count / truth.count)
    assert report.centre.errors.tolist() == [int((~kept).sum()) for kept in keep]


def test_the_baseline_is_measured_alike_in_any_batch(
    sample: LabelledFrames, median: FramePerceiver
) -> None:
    one = evaluate_perceiver(median, sample.frames, sample.truth, batch=1).metrics()
    many = evaluate_perceiver(median, sample.frames, sample.truth, batch=5).metrics()
    assert one == pytest.approx(many)
    assert one["f1_centre"] > 0.8
    assert one["mse"] == pytest.approx(one["squared_error"] / (3 * 210 * 160))


def test_ten_lines_find_what_differs_and_is_neither_a_speck_nor_scenery() -> None:
    background = np.full((210, 160, 3), 100, np.uint8)
    frame = background.copy()
    frame[10:12, 20:30] = frame[13:15, 20:30] = 130  # closed to one
    frame[50, 50:53, 2] = 125  # three pixels, one channel, just far enough
    frame[60, 60:62] = 200  # too small
    frame[80:90, 80:83] = 124  # too near
    frame[100:105, 10:71] = 200  # too wide
    frame[120:180, 10:70] = 200
    found = ten_lines(np.stack([background, frame]), background)
    assert [boxes.tolist() for boxes in found] == [
        [],
        [[20, 10, 30, 15], [50, 50, 53, 51], [10, 120, 70, 180]],
    ]


def test_reconstruction_error_is_the_decompositions(
    sample: LabelledFrames, median: FramePerceiver
) -> None:
    parts = take_apart(median, torch.from_numpy(sample.frames))
    assert parts is not None
    want = (parts.image - parts.reconstruction).square().sum((1, 2, 3))
    found = perceive(median, sample.frames, batch=3).squared_error
    assert found is not None
    np.testing.assert_allclose(found, want.numpy(), rtol=1e-5)


def test_agreement_is_full_with_oneself_and_falls_with_a_box_less(
    sample: LabelledFrames, median: FramePerceiver
) -> None:
    seen = perceive(median, sample.frames)
    alike = compare_with_baseline(median, sample.frames, look_alike(seen)).metrics()
    assert alike["agreement_f1_centre"] == alike["agreement_f1_iou"] == 1
    assert alike["slots_per_frame"] == alike["baseline_slots_per_frame"] > 20
    fewer = [boxes[1:] for boxes in seen.boxes]
    less = Oracle(Truth(fewer, [("",) * len(boxes) for boxes in fewer], [np.zeros((0, 4))] * 8))
    other = compare_with_baseline(less, sample.frames, look_alike(seen))
    assert other.centre.errors.tolist() == [1] * 8


def test_evaluate_on_truth_writes_what_it_returns(
    weights: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = EvaluateConfig(weights, truth=SAMPLE, out=tmp_path / "out", worst=2, device="cpu")
    result = evaluate(config)
    assert json.loads((tmp_path / "out" / "evaluation.json").read_text()) == result
    assert result["frames"] == 8
    assert set(result["classes"]) == {"Alien", "Bullet", "Player", "Shield"}
    printed = capsys.readouterr().out
    for word in ("by centre", "AP50:95", "Alien", "mean squared error", "evaluation.json"):
        assert word in printed
    assert f"{result['metrics']['f1_centre']:.3f}" in printed
    picture = cv2.imread(str(tmp_path / "out" / "worst.png"))
    assert picture is not None
    assert picture.shape[0] > 2 * 420  # two rows, twice as large
    assert picture.shape[1] > 6 * 320  # input, boxes, truth, foreground, background, alpha


def test_evaluate_on_tracks_writes_what_it_returns(
    weights: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with np.load(SAMPLE) as archive:
        arrays = {name: archive[name] for name in archive.files}
    for name in ("boxes", "ignore"):  # every frame three times: a sequence of a still
        still = np.repeat(arrays[name], 3, axis=0)
        still[:, 0] = 3 * still[:, 0] + np.arange(len(still)) % 3
        arrays[name] = still
    arrays["frames"] = np.repeat(arrays["frames"], 3, axis=0)
    arrays["ids"] = np.arange(len(arrays["boxes"])) // 3
    arrays["sequence"] = np.arange(24) // 3
    path = tmp_path / "stills.npz"
    np.savez(path, **arrays)

    config = EvaluateConfig(weights, tracks=path, out=tmp_path / "out", worst=2, device="cpu")
    result = evaluate(config)
    assert json.loads((tmp_path / "out" / "evaluation.json").read_text()) == result
    assert (result["frames"], result["sequences"]) == (24, 8)
    found = result["metrics"]
    assert found["id_switches_iou"] == found["id_switches_distance"] == 0
    assert 0.7 < found["mota_iou"] <= found["mota_distance"] <= 1
    single = evaluate(EvaluateConfig(weights, truth=path, out=tmp_path, device="cpu"))["metrics"]
    for name in ("precision_iou", "recall_iou"):  # what is ignored is ignored alike
        assert found[name] == pytest.approx(single[name])
    printed = capsys.readouterr().out
    for word in ("MOTA", "HOTA", "by distance, 2 sizes", "Alien", "tracks.png"):
        assert word in printed
    assert f"{found['hota_iou']:.3f}" in printed
    picture = cv2.imread(str(tmp_path / "out" / "tracks.png"))
    assert picture is not None
    assert picture.shape[0] > 2 * 420  # two rows, twice as large


@pytest.mark.parametrize(
    ("name", "folder"),
    [("pong-space-fast/weights", "pong-space-fast"), ("other/mine", "mine")],
)
def test_results_are_named_after_the_run(
    name: str, folder: str, weights: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / f"{name}.safetensors"
    path.parent.mkdir()
    path.write_bytes(Path(weights).read_bytes())
    monkeypatch.chdir(tmp_path)
    evaluate(EvaluateConfig(str(path), truth=SAMPLE, limit=1, worst=1, device="cpu"))
    assert (tmp_path / f"runs/evaluate-{folder}-{SAMPLE.stem}/evaluation.json").exists()


def test_evaluate_on_frames_alone_speaks_of_agreement(
    sample: LabelledFrames, weights: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    count = 40
    with FrameWriter(
        tmp_path / "run.h5",
        frame_shape=(210, 160, 3),
        action_shape=(),
        action_dtype=np.int64,
        attributes={"env_id": "ALE/SpaceInvaders-v5", "policy": "random", "seed": 0},
        asked=count,
    ) as writer:
        rows = np.arange(count)
        writer.append(
            frames=sample.frames[rows % 8],
            action=rows,
            reward=rows.astype(np.float32),
            terminated=rows % 8 == 7,
            truncated=np.zeros(count, np.bool_),
            episode=rows // 8,
            stream=np.zeros(count, np.int64),
            step=rows % 8,
        )
    config = EvaluateConfig(weights, data=tmp_path / "run.h5", out=tmp_path, limit=5, device="cpu")
    result = evaluate(config)
    assert (result["frames"], result["split"], result["classes"]) == (5, "test", None)
    assert result["metrics"]["agreement_f1_centre"] > 0.9  # the same eight frames, again and again
    assert not {"f1_centre", "ap50"} & set(result["metrics"])
    assert "not accuracy" in capsys.readouterr().out
    assert (tmp_path / "worst.png").stat().st_size > 0


def test_evaluate_wants_one_source_and_sensible_numbers(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"either --truth .* --tracks .* or --data .* got none"):
        evaluate(EvaluateConfig("x"))
    with pytest.raises(ValueError, match="got more than one"):
        evaluate(EvaluateConfig("x", truth=SAMPLE, data=tmp_path / "run.h5"))
    with pytest.raises(ValueError, match="got more than one"):
        evaluate(EvaluateConfig("x", truth=SAMPLE, tracks=SAMPLE))
    with pytest.raises(ValueError, match="takes no --tracks"):
        evaluate(EvaluateConfig(all=True, tracks=SAMPLE))
    with pytest.raises(ValueError, match="expected limit >= 1, got 0"):
        evaluate(EvaluateConfig("x", truth=SAMPLE, limit=0))
