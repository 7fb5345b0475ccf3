"""The pages that benchmarks write: every row is there, also of a run that failed."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from benchmarks import frames, from_nothing, mixtures
from benchmarks.frames import FramesConfig, Kind
from benchmarks.from_nothing import FromNothingConfig
from benchmarks.mixtures import MixturesConfig
from objrl.models.median import Median
from objrl.pretrain.fleet import FleetConfig
from objrl.pretrain.run import REPORT, WEIGHTS
from objrl.pretrain.truth import read_truth
from objrl.weights import save_weights
from tests import test_econ, test_monet
from tests.squares import make_frames, write_store
from tests.test_ship import SAMPLE


def finished(run: Path) -> None:
    """What a run leaves, of a detector that sees the sample."""
    run.mkdir(parents=True)
    model = Median.fit(read_truth(SAMPLE).frames)
    path = run / WEIGHTS
    save_weights(path, model, model_name="median", data={}, training={}, metrics={})
    report = {"steps": 40, "converged": 24, "mended": ["nothing"], "seconds": 90}
    (run / REPORT).write_text(json.dumps(report | {"cpu_seconds": 80.4}))


def rows_of(page: str) -> list[list[str]]:
    """The cells of a page's tables, heads included."""
    lines = [line for line in page.splitlines() if line.startswith("| ")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


def test_a_run_that_left_nothing_has_failed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trained: list[FleetConfig] = []
    monkeypatch.setattr(from_nothing, "train_fleet", trained.append)
    (tmp_path / "Pong.npz").write_bytes(SAMPLE.read_bytes())
    finished(tmp_path / "runs/Pong-space-fast-0")
    config = FromNothingConfig(
        truth_dirs=(tmp_path,),
        games=("Pong",),
        seeds=2,
        runs=tmp_path / "runs",
        out=tmp_path / "page.md",
    )
    from_nothing.main(config)
    assert [fleet.seed for fleet in trained] == [0, 1]
    page = config.out.read_text()
    head, good, bad = rows_of(page)
    assert {len(head), len(good), len(bad)} == {9}
    assert good[:4] == ["Pong-space-fast-0", "40", "24", "nothing"]
    assert good[4].endswith("1.5")
    assert good[5] == "80"
    assert float(good[6]) > 0.9
    assert bad[1:4] == ["-", "-", "-"]
    assert bad[6:] == ["0.000", "0.000", "1.000"]
    assert "1 of 2: Pong-space-fast-1" in page
    assert f"{len(read_truth(SAMPLE).frames)} frames" in page


def test_every_kind_of_frames_has_its_scores(tmp_path: Path) -> None:
    config = FramesConfig(runs=tmp_path)
    kinds = [Kind("Pong", "random", "random"), Kind("Pong", "wander"), Kind("Pong", "agent", "x")]
    for kind in kinds:
        finished(tmp_path / f"Pong-{kind.name}")
        (tmp_path / f"Pong-{kind.name}.npz").write_bytes(SAMPLE.read_bytes())
        write_store(tmp_path / f"Pong-{kind.name}.h5", make_frames(20))
    head, *rows = rows_of("\n".join(frames._players(config, "Pong", kinds)))
    assert [row[0] for row in rows] == ["random", "wander", "agent"]
    assert {len(row) for row in (head, *rows)} == {4}
    two = [kinds[1], Kind("Pong", "agent", last_two=True)]
    head, *rows = rows_of("\n".join(frames._emulator_frames(config, "Pong", two)))
    assert {len(row) for row in (head, *rows)} == {4}
    classes = {name for names in read_truth(SAMPLE).truth.labels for name in names}
    assert [row[0] for row in rows] == ["F1", *sorted(classes)]
    assert np.all([cell.endswith(rows[1][1].split()[-1]) for cell in rows[1][1:]])


def test_scene_mixtures_stand_beside_what_needs_no_learning(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    learnt = {"steps": 3, "cpu_seconds": 4.5}
    for run, name, model, game in (
        ("monet-tetris", "monet", test_monet.build(), "tetris"),
        ("econ-sprites", "econ", test_econ.build(), "econ_unique"),
        ("other", "monet", test_monet.build(), "ALE/Pong-v5"),
    ):
        (tmp_path / "runs" / run).mkdir(parents=True)
        save_weights(
            *(tmp_path / "runs" / run / WEIGHTS, model),
            model_name=name,
            data={"env_id": game},
            training=learnt,
            metrics={},
        )
    config = MixturesConfig(
        tmp_path / "runs", tmp_path / "scenes", tmp_path / "page.md", labelled=6, seed=5
    )
    mixtures.main(config)
    page = config.out.read_text()
    assert "left out" in capsys.readouterr().out
    assert "6 scenes a set, seed 5" in page
    rows = [row for row in rows_of(page) if row[0] in ("tetris", "econ_unique")]
    named = [row[1] for row in rows]
    for name in ("monet-tetris", "econ-sprites"):
        assert named.count(name) == 2, "once in the papers' colours, once in one"
    assert named.count("colour and pieces, no learning") == 4
    own = next(row for row in rows if row[1] == "monet-tetris")
    assert own[7:9] == ["3", "4"]
    again = MixturesConfig(config.runs, config.scenes, config.out, labelled=6, seed=6)
    with pytest.raises(ValueError, match="expected no file, or the labelled frames"):
        mixtures.main(again)
