"""How well a SCALOR agrees with its teacher, on squares whose ways are known."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks import agreement
from benchmarks.agreement import AgreementConfig, main, shown_by_teacher
from objrl.models.median import Median, MedianConfig
from objrl.models.scalor import Scalor
from objrl.models.scalor_config import ScalorConfig
from objrl.perceiver import FramePerceiver
from objrl.pretrain.configure import look
from objrl.pretrain.tracks import Tracks, run_tracks
from objrl.weights import save_weights
from tests.squares import write_store
from tests.test_scalor_task import film

FRAMES = np.concatenate([film(20)] * 10)


def test_who_follows_the_same_pieces_agrees() -> None:
    seen = look(FRAMES).seen
    track = shown_by_teacher(film(20), seen, 6)
    ids = [names.tolist() for names in track.ids]
    assert ids == [[0, 1]] * 20 or ids == [[1, 0]] * 20
    model = Median.fit(FRAMES, MedianConfig(max_slots=6))
    found = run_tracks(FramePerceiver(model), Tracks("squares", (track,))).metrics()
    assert found["mota_iou"] == found["idf1_iou"] == 1


def test_who_has_learnt_nothing_does_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Twice as large as the canvas: the teacher must see them as the training shows them.
    large = FRAMES.repeat(2, axis=1).repeat(2, axis=2)
    data = write_store(tmp_path / "squares.h5", large, episode=20)
    torch.manual_seed(0)
    model = Scalor(
        ScalorConfig(architecture="fast", mask_stride=4, background="static", anchor=None)
    )
    weights = save_weights(
        *(tmp_path / "scalor.safetensors", model),
        model_name="scalor",
        data={},
        training={},
        metrics={},
    )
    asked = AgreementConfig(str(weights), data, sequences=1, length=20)
    assert main(asked)["mota_distance"] < 0.5
    # And one who sees what the teacher does agrees wholly.
    sharp = FramePerceiver(Median.fit(FRAMES, MedianConfig(max_slots=64)))
    monkeypatch.setattr(agreement, "run_tracks", lambda _, tracks: run_tracks(sharp, tracks))
    scores = main(asked)
    assert scores["mota_iou"] == scores["idf1_iou"] == 1
    assert scores["identities_iou"] == 2
    with pytest.raises(ValueError, match="expected a SCALOR's"):
        main(AgreementConfig("space-pong", data))
