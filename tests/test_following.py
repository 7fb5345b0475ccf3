"""The page of how well objects are followed, with a model that has learnt nothing."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks.following import FollowingConfig, main
from objrl.models.scalor import Scalor
from objrl.pretrain.scalor_presets import SCALOR
from objrl.pretrain.synthetic import SyntheticConfig, generate_sequences
from objrl.weights import save_weights

pytest.importorskip("trackeval")


@pytest.fixture
def config(tmp_path: Path) -> FollowingConfig:
    """Two labelled sequences of very low density, and weights for them."""
    generate_sequences(
        SyntheticConfig(density="VLD", sequences=0, labelled=2, length=4, out=tmp_path / "VLD.h5")
    )
    torch.manual_seed(0)
    model = replace(SCALOR["scalor-fast"].model, frame_size=(64, 64), max_slots=8, proposals=8)
    save_weights(
        tmp_path / "scalor-VLD" / "weights.safetensors",
        Scalor(model),
        model_name="scalor",
        data={"env_id": "shapes-VLD", "frames": 8},
        training={"preset": "scalor-fast", "steps": 3, "cpu_seconds": 1.5},
        metrics={},
    )
    return FollowingConfig("sprites", sprites=tmp_path, runs=tmp_path, out=tmp_path / "page.md")


def test_a_part_is_kept_and_its_table_written(config: FollowingConfig) -> None:
    main(config)
    (row,) = json.loads((config.out.with_suffix("") / "sprites.json").read_text())["rows"]
    assert (row["setting"], row["sequences"], row["frames"]) == ("VLD", 2, 8)
    assert row["distance"]["mota"] <= 1
    assert row["mse"] > 0
    assert np.isfinite(row["nll_bound"])
    table = [line for line in config.out.read_text().splitlines() if line.startswith("|")]
    assert len({line.count("|") for line in table}) == 1
    assert "| VLD |" in config.out.read_text()
    assert (config.out.with_suffix("") / "VLD.png").exists()


def test_what_is_no_longer_there_keeps_its_row(config: FollowingConfig) -> None:
    main(config)
    before = config.out.read_text()
    (config.sprites / "VLD.npz").unlink()
    main(config)
    assert config.out.read_text() == before
