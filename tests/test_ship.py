"""Tests of `objrl.pretrain.ship`: from a run's weights to shipped ones with a card."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from objrl.models.median import Median, MedianConfig
from objrl.models.space import Space, SpaceConfig
from objrl.pretrain import ship as module
from objrl.pretrain.ship import ShipConfig, ship
from objrl.pretrain.stills import ScenesConfig, generate_stills
from objrl.pretrain.synthetic import SyntheticConfig, generate_sequences
from objrl.pretrain.tracks import read_tracks, run_tracks
from objrl.weights import load, read_header, registry, save_weights
from tests import test_monet
from tests.helpers import make_scalor

SAMPLE = Path(__file__).parent / "data" / "space_invaders_sample.npz"


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    model = Space(SpaceConfig((210, 160), 16, "fast", 8, False, 16, 32, "static", max_slots=16))
    return save_weights(
        *(tmp_path / "weights.safetensors", model),
        model_name="space",
        data={
            "env_id": "ALE/SpaceInvaders-v5",
            "frames": 7,
            "sha256": "ab" * 32,
            "policy": "r",
            "seed": 3,
        },
        training={
            **{"preset": "space-fast", "steps": 5, "seed": 1, "seconds": 2.5, "cpu_seconds": 3.5},
            **{"machine": "here", "found": {"width": 8.0}},
        },
        metrics={"val_mse": 12.0},
    )


def test_a_scene_mixture_is_scored_on_scenes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "package"
    monkeypatch.setattr(module, "FOLDER", folder)
    monkeypatch.setattr(registry, "FOLDER", folder)
    scenes = generate_stills(ScenesConfig("tetris", out=tmp_path / "t.h5", frames=1, labelled=9))
    weights = save_weights(
        *(tmp_path / "weights.safetensors", test_monet.build()),
        model_name="monet",
        data={"env_id": "tetris", "frames": 9, "sha256": "ab" * 32, "policy": "none", "seed": 3},
        training={"preset": "monet-tetris", "steps": 5, "seed": 1},
        metrics={},
    )
    config = ShipConfig(weights, "monet-test", truth=(scenes.with_suffix(".npz"),))
    card = ship(config).read_text()
    metrics = registry.read_index(folder)["monet-test"].metrics
    assert {"ari_fg", "covering_fg", "mask_ap50", "f1_centre"} <= metrics.keys()
    assert "boxes were drawn with them" in card
    assert "no environment" in card


def test_shipped_weights_carry_their_scores_and_a_card(
    weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "package"
    monkeypatch.setattr(module, "FOLDER", folder)
    monkeypatch.setattr(registry, "FOLDER", folder)
    ids = ("ALE/SpaceInvaders-v5",)
    config = ShipConfig(weights, "space-test", ids, truth=(SAMPLE,), misses="Nearly everything.")
    card = ship(config).read_text()
    metrics = read_header(folder / "space-test.safetensors")["metrics"]
    assert metrics["val_mse"] == 12
    assert 0 <= metrics["f1_centre"] < 0.5  # untrained
    assert registry.read_index(folder)["space-test"].metrics == metrics
    for fact in ("7 frames", "space-fast, 5 steps, seed 1", "3.5 cpu_seconds", "Alien", "here"):
        assert fact in card
    assert f"| f1_centre | {metrics['f1_centre']:.4g} |" in card
    assert card.endswith("## Known misses\n\nNearly everything.\n")


def test_nothing_is_shipped_when_the_truth_is_missing(
    weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(registry, "FOLDER", tmp_path / "package")
    with pytest.raises(FileNotFoundError, match=r"no\.npz"):
        ship(ShipConfig(weights, "space-test", ("X-v0",), truth=(tmp_path / "no.npz",)))
    assert not (tmp_path / "package").exists()


def test_the_baseline_without_learning_can_be_shipped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "package"
    monkeypatch.setattr(module, "FOLDER", folder)
    monkeypatch.setattr(registry, "FOLDER", folder)
    path = save_weights(
        *(tmp_path / "median.safetensors", Median(MedianConfig(max_slots=9))),
        model_name="median",
        data={"env_id": "ALE/Pong-v5", "frames": 70},
        training={"preset": "median"},
        metrics={},
    )
    card = ship(ShipConfig(path, "median-pong", ("ALE/Pong-v5",))).read_text()
    assert "| model | median, canvas [210, 160], 9 slots |" in card
    assert "| preset | median |" in card
    assert "| cost |" not in card
    assert registry.read_index(folder)["median-pong"].model == "median"


def test_nothing_is_shipped_without_a_card(
    weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object) -> str:
        raise KeyError("steps")

    monkeypatch.setattr(module, "_card", broken)
    monkeypatch.setattr(registry, "FOLDER", tmp_path / "package")
    with pytest.raises(KeyError, match="steps"):
        ship(ShipConfig(weights, "space-test", ("X-v0",)))
    assert not (tmp_path / "package").exists()


def test_one_that_follows_is_scored_on_sequences(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("trackeval")
    folder = tmp_path / "package"
    monkeypatch.setattr(module, "FOLDER", folder)
    monkeypatch.setattr(registry, "FOLDER", folder)
    tracks = generate_sequences(
        SyntheticConfig(density="VLD", sequences=0, labelled=2, length=4, out=tmp_path / "VLD.h5")
    )
    weights = save_weights(
        *(tmp_path / "weights.safetensors", make_scalor()),
        model_name="scalor",
        data={"env_id": "shapes-VLD", "frames": 8},
        training={"preset": "scalor-fast", "steps": 3, "seed": 0},
        metrics={"val_mse": 12.0},
    )
    card = ship(ShipConfig(weights, "scalor-test", ("Shapes-v0",), tracks=tracks)).read_text()
    metrics = read_header(folder / "scalor-test.safetensors")["metrics"]
    expected = run_tracks(load(weights, device="cpu"), read_tracks(tracks)).metrics()
    for score in ("mota_iou", "idf1_distance", "hota_distance", "id_switches_iou"):
        assert metrics[score] == pytest.approx(expected[score], abs=1e-4)
        assert f"| {score} | {metrics[score]:.4g} |" in card
    assert metrics["val_mse"] == 12
    assert registry.read_index(folder)["scalor-test"].metrics == metrics
    assert "`VLD.npz`, 2 sequences" in card
    assert "| class | objects | switches of identity by IoU |" in card
    assert any(f"| {kind} | " in card for kind in ("square", "ellipse", "heart"))
