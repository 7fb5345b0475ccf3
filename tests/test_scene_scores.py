"""Scores of scenes taken apart: a perceiver that knows all gets full marks, a blind one none."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from objrl.models.econ import Econ, EconConfig
from objrl.perceiver import FramePerceiver
from objrl.pretrain.evaluate import EvaluateConfig, evaluate
from objrl.pretrain.learners import normalised_mutual_information
from objrl.pretrain.scene_scores import (
    SEGMENTATION,
    LabelledScenes,
    baselines,
    by_colour,
    perceive_scenes,
    probe_factors,
    read_scenes,
    score_scenes,
)
from objrl.pretrain.scenes import Fill, Which
from objrl.pretrain.stills import ScenesConfig, generate_stills
from objrl.slots import Slots
from objrl.weights.registry import save_weights


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("scenes")


def scenes(folder: Path, which: Which = "tetris", fill: Fill = "own") -> LabelledScenes:
    path = folder / f"{which}_{fill}.h5"
    if not path.exists():
        generate_stills(ScenesConfig(which, fill, path, frames=1, labelled=24))
    read = read_scenes(path.with_suffix(".npz"))
    assert read is not None
    return read


class Knowing(torch.nn.Module):
    """Sees what the labels say, in frames that it finds among the labelled ones."""

    def __init__(self, known: LabelledScenes, features: Tensor) -> None:
        super().__init__()
        self.known, self.features = known, features
        self.max_slots, self.what_size = 6, features.shape[1]

    def _rows(self, frames: Tensor) -> list[int]:
        return [
            next(i for i, own in enumerate(self.known.frames) if np.array_equal(own, frame))
            for frame in frames.numpy()
        ]

    def detect(self, frames: Tensor) -> Slots:
        empty = Slots.empty(len(frames), 6, self.what_size)
        for b, row in enumerate(self._rows(frames)):
            for k, index in enumerate(np.flatnonzero(self.known.owner == row)):
                empty.presence[b, k] = 1
                empty.scale[b, k] = 0.1
                empty.what[b, k] = self.features[index]
        return empty

    def segment(self, frames: Tensor) -> Tensor:
        masks = torch.zeros(len(frames), 7, *frames.shape[1:3])
        for b, row in enumerate(self._rows(frames)):
            ids = torch.from_numpy(self.known.ids[row])
            for k in range(6):
                masks[b, k] = (ids == k + 1).float()
            masks[b, 6] = (ids == 0).float()
        return masks


@pytest.mark.parametrize("which", ["tetris", "dsprites_grey"])
def test_who_knows_all_gets_full_marks(folder: Path, which: Which) -> None:
    known = scenes(folder, which)
    features = torch.from_numpy(known.factors)
    scores = score_scenes(FramePerceiver(Knowing(known, features)), known)
    for name in (
        "ari_fg",
        "ari",
        "covering_fg",
        "mask_ap50",
        "mask_ap50_95",
        "count_right",
        "matched",
    ):
        assert scores[name] == pytest.approx(1), name
    assert scores["count_error"] == 0
    for name in ("r2_x", "r2_y", "r2_red", "r2_depth"):
        assert scores[name] == pytest.approx(1, abs=1e-3), name
    assert "mse" not in scores
    assert "r2_angle" not in scores


def test_features_of_noise_tell_nothing(folder: Path) -> None:
    known = scenes(folder)
    noise = np.random.default_rng(0).normal(size=(len(known.owner), 3)).astype(np.float32)
    scores = probe_factors(known, noise, np.ones(len(noise), dtype=np.bool_))
    assert scores["r2_x"] < 0.3
    assert probe_factors(known, noise, np.zeros(len(noise), dtype=np.bool_)) == {}


def test_a_blind_one_gets_nothing(folder: Path) -> None:
    known = scenes(folder)

    class Blind(Knowing):
        def detect(self, frames: Tensor) -> Slots:
            return Slots.empty(len(frames), 6, self.what_size)

        def segment(self, frames: Tensor) -> Tensor:
            masks = torch.zeros(len(frames), 7, *frames.shape[1:3])
            masks[:, 6] = 1
            return masks

    scores = score_scenes(FramePerceiver(Blind(known, torch.zeros(1, 2))), known)
    assert scores["ari_fg"] == 0
    assert scores["matched"] == 0
    assert scores["count_error"] == 1
    assert scores["mask_ap50"] == 0


def test_colour_and_pieces_solve_what_is_plain_and_not_what_is_alike(folder: Path) -> None:
    plain, alike = (baselines(scenes(folder, fill=fill)) for fill in ("own", "same"))
    assert plain["colour and pieces"]["ari_fg"] > 0.9
    assert plain["colour"]["ari_fg"] < plain["colour and pieces"]["ari_fg"]
    assert alike["colour"]["ari_fg"] == pytest.approx(0, abs=1e-9)
    assert alike["colour and pieces"]["ari_fg"] < 0.9


def test_blends_at_edges_are_no_segments() -> None:
    frame = np.zeros((20, 20, 3), dtype=np.uint8)
    frame[5:15, 5:15] = 200
    frame[5:15, 5] = frame[5:15, 14] = 90
    ids = by_colour(frame[None], pieces=True)[0]
    assert ids.max() == 1
    assert ids[10, 10] == 1
    assert ids[0, 0] == 0


def test_some_of_the_scenes_keep_what_is_theirs(folder: Path) -> None:
    known = scenes(folder, "econ_unique")
    rows = np.array([3, 10, 11])
    some = known.select(rows)
    assert some.whole is not None
    assert known.whole is not None
    assert set(some.owner) == {0, 1, 2}
    for frame, row in enumerate(rows):
        np.testing.assert_array_equal(some.ids[frame], known.ids[row])
        mine, theirs = some.owner == frame, known.owner == row
        np.testing.assert_array_equal(some.whole[mine], known.whole[theirs])
        np.testing.assert_array_equal(some.number[mine], known.number[theirs])
        for number, whole in zip(some.number[mine], some.whole[mine], strict=True):
            assert whole[some.ids[frame] == number].all()


def test_experts_are_scored(folder: Path) -> None:
    known = scenes(folder, "econ_unique")
    torch.manual_seed(0)
    config = EconConfig(attention=(4, 4), blocks=2, features=4)
    scores = score_scenes(FramePerceiver(Econ(config)), known)
    for name in ("expert_nmi", "whole_iou"):
        assert 0 <= scores[name] <= 1
    assert scores["mse"] > 0


def test_mutual_information_by_hand() -> None:
    a = np.array([0, 0, 1, 1])
    assert normalised_mutual_information(a, 1 - a) == pytest.approx(1)
    assert normalised_mutual_information(a, np.array([0, 1, 0, 1])) == pytest.approx(0)
    half = normalised_mutual_information(a, np.array([0, 1, 2, 3]))
    assert half == pytest.approx(np.log(2) / ((np.log(2) + np.log(4)) / 2))


def test_the_command_shows_and_writes_them(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    scenes(folder, "econ_unique")
    weights = tmp_path / "econ.safetensors"
    model = Econ(EconConfig(attention=(4, 4), blocks=2, features=4))
    save_weights(weights, model, model_name="econ", data={}, training={}, metrics={})
    truth = folder / "econ_unique_own.npz"
    config = EvaluateConfig(weights=str(weights), truth=truth, out=tmp_path, device="cpu", limit=20)
    result = evaluate(config)
    written = json.loads((tmp_path / "evaluation.json").read_text())
    assert written["segmentation"] == result["segmentation"]
    assert set(SEGMENTATION) < set(written["segmentation"])
    assert written["segmentation_without_learning"]["colour and pieces"]["ari_fg"] > 0.8
    shown = capsys.readouterr().out
    for words in ("whose pixel is whose", "colour and pieces", "mask_ap50"):
        assert words in shown


def test_files_without_masks_are_no_scenes(tmp_path: Path) -> None:
    frames = np.zeros((1, 8, 8, 3), np.uint8)
    arrays: dict[str, Any] = {"frames": frames, "classes": ["a"], "boxes": [[0, 0, 1, 1, 3, 3]]}
    np.savez_compressed(tmp_path / "plain.npz", **arrays)
    assert read_scenes(tmp_path / "plain.npz") is None
    np.savez_compressed(tmp_path / "odd.npz", **arrays, masks=np.zeros((1, 9, 8), np.uint8))
    with pytest.raises(ValueError, match="expected masks of shape"):
        read_scenes(tmp_path / "odd.npz")


def test_what_is_perceived_has_the_frames_size(folder: Path) -> None:
    known = scenes(folder)
    seen = perceive_scenes(
        FramePerceiver(Knowing(known, torch.zeros(80, 2))), known.frames, batch=7
    )
    np.testing.assert_array_equal(np.where(seen.ids == 6, 0, seen.ids + 1), known.ids)
    assert np.isnan(seen.mse)
