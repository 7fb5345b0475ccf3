"""`objrl evaluate --all`: all shipped detectors on one page, with fake registries."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
import pytest

from objrl import cli
from objrl.models.median import Median
from objrl.perceiver import FramePerceiver
from objrl.pretrain.evaluate import EvaluateConfig, evaluate, evaluate_perceiver
from objrl.pretrain.store import FrameWriter
from objrl.pretrain.truth import read_truth
from objrl.weights import register, registry, save_weights

SAMPLE = Path(__file__).parent / "data" / "space_invaders_sample.npz"
TRAINING = {"cpu_seconds": 321.0, "preset": "none", "steps": 7, "seed": 5}


class Shop:
    """A registry of its own, folders of frames, and the command with them."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.monkeypatch = monkeypatch
        self.folder, self.truth, self.more = (folder / name for name in ("shop", "truth", "more"))
        self.data, self.out = folder / "data", folder / "docs"
        for made in (self.truth, self.more, self.data):
            made.mkdir()
        # Twice, as the page of two folders has them: a colour must be seen a few times to count.
        self.model = Median.fit(np.concatenate([read_truth(SAMPLE).frames] * 2))

    def ship(self, name: str, *env_ids: str) -> Path:
        source = save_weights(
            self.folder.parent / "new.safetensors",
            self.model,
            model_name="median",
            data={"env_id": env_ids[0], "frames": 70, "policy": "random", "seed": 3},
            training=TRAINING,
            metrics={},
        )
        file = register(source, name, env_ids, folder=self.folder).file
        self.monkeypatch.setattr(registry, "WEIGHTS", registry.read_index(self.folder))
        return self.folder / file

    def label(self, folder: Path, game: str) -> None:
        with np.load(SAMPLE) as archive:
            np.savez(folder / f"{game}.npz", **{**archive, "game": np.asarray(game)})

    def record(self, game: str, count: int = 30) -> None:
        frames, rows = read_truth(SAMPLE).frames, np.arange(count)
        with FrameWriter(
            self.data / f"{game}.h5",
            frame_shape=(210, 160, 3),
            action_shape=(),
            action_dtype=np.int64,
            attributes={"env_id": f"ALE/{game}-v5", "policy": "random", "seed": 0},
            asked=count,
        ) as writer:
            writer.append(
                frames=frames[rows % 8],
                action=rows,
                reward=rows.astype(np.float32),
                terminated=rows % 2 == 1,
                truncated=np.zeros(count, np.bool_),
                episode=rows // 2,
                stream=np.zeros(count, np.int64),
                step=rows % 2,
            )

    def evaluate(self, **changes: object) -> dict[str, dict[str, dict[str, float]]]:
        options = {"truth_dir": (self.truth,), "data_dir": self.data, "out": self.out, "limit": 40}
        return evaluate(EvaluateConfig(all=True, device="cpu", **(options | changes)))  # type: ignore[arg-type]

    def page(self) -> str:
        return (self.out / "results.md").read_text()


@pytest.fixture
def shop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Shop:
    shop = Shop(tmp_path, monkeypatch)
    monkeypatch.setattr(registry, "FOLDER", shop.folder)
    monkeypatch.setattr(registry, "WEIGHTS", {})
    return shop


def line(page: str, heading: str, *start: str) -> list[str]:
    """The cells of the only line of a section's table that begins like this."""
    section = page.partition(f"\n## {heading}\n")[2].partition("\n## ")[0]
    rows = [row.strip("| ").split(" | ") for row in section.splitlines() if row.startswith("|")]
    (found,) = [row for row in rows if row[: len(start)] == list(start)]
    return found


def test_the_page_holds_what_was_measured_on_all_frames(shop: Shop) -> None:
    weights = shop.ship("median-si", "ALE/SpaceInvaders-v5", "SpaceInvadersNoFrameskip-v4")
    os.utime(weights, (0, 0))
    shop.label(shop.truth, "SpaceInvaders")
    shop.label(shop.more, "space_invaders")
    found = shop.evaluate(truth_dir=(shop.truth, shop.more))["median-si"]["SpaceInvaders"]
    labelled = read_truth(SAMPLE)
    alone = evaluate_perceiver(FramePerceiver(shop.model), labelled.frames, labelled.truth)
    scores = alone.metrics()
    for name in ("f1_centre", "f1_iou", "count_error_centre", "slots_per_frame"):
        assert found[name] == pytest.approx(scores[name]), name  # the same frames twice
    page = shop.page()
    cells = line(page, "median: a detector a game", "SpaceInvaders")
    assert cells[1] == "16"
    # The detector is the baseline, so the first two columns of either rule are equal.
    assert cells[2] == cells[3] == f"{scores['f1_centre']:.3f}"
    assert cells[6] == cells[7] == f"{scores['f1_iou']:.3f}"
    assert cells[5] == "—"  # nobody published one
    assert cells[9:] == [f"{found[n]:.3f}" for n in ("count_error_centre", "ap50")] + ["321"]
    aliens = alone.classes()["Alien"]
    assert line(page, "Recall by class", "SpaceInvaders", "median-si", "Alien")[3:] == [
        f"{2 * aliens['objects']:.0f}",
        f"{aliens['recall_centre']:.3f}",
        f"{aliens['recall_iou']:.3f}",
    ]
    probed = line(page, "Telling objects apart", "SpaceInvaders")
    assert float(probed[3]) == pytest.approx(1 / int(probed[2]), abs=1e-3)  # chance, by classes
    assert all(-1 <= float(cell) <= 1 for cell in probed[4:])
    assert line(page, "The weights", "median-si", "1970-01-01", "none", "7", "5", "70", "random")
    assert "median of the measured ones for SpaceInvaders." in page
    assert f"--truth-dir {shop.truth} {shop.more} --data-dir" in page


def test_detectors_of_many_games_have_a_table_of_their_own(shop: Shop) -> None:
    games = ("Breakout", "SpaceInvaders", "Pong")
    for name in games:
        shop.label(shop.truth, name)
    shop.ship("median-all", *(f"ALE/{name}-v5" for name in games))
    shop.ship("median-pong", "ALE/Pong-v5")
    found = shop.evaluate(limit=4)
    assert {name: list(each) for name, each in found.items()} == {
        "median-pong": ["Pong"],
        "median-all": ["Pong", "SpaceInvaders", "Breakout"],  # main games first
    }
    page = shop.page()
    joint = "median-all: one detector for all of these"
    assert line(page, "median: a detector a game", "Pong")[5] == "0.890"
    rows = [line(page, joint, name) for name in games]
    means = line(page, joint, "mean of 3 games in all")
    assert float(means[2]) == pytest.approx(np.mean([float(row[2]) for row in rows]), abs=1e-3)
    assert means[5] == "—"  # only one of the three was published
    assert line(page, joint, "mean of 2 of the 12 main games")
    assert sorted(path.name for path in (shop.out / "results").iterdir()) == sorted(
        f"{name}.png" for name in games
    )


def test_games_without_labels_are_judged_by_agreement_and_picture(shop: Shop) -> None:
    for name in ("Pong", "Breakout"):
        shop.ship(f"median-{name.lower()}", f"ALE/{name}-v5")
    shop.record("Pong")
    found = shop.evaluate(truth_dir=())["median-pong"]["Pong"]
    page = shop.page()
    cells = line(page, "Games without labelled frames", "Pong", "median-pong")
    assert cells[3] == f"{found['agreement_f1_centre']:.3f}"
    assert "f1_centre" not in found
    assert "want of any frames: Breakout." in page
    assert "Recall by class" not in page
    path = shop.out / "results" / "Pong.png"
    assert path.stat().st_size < 150_000
    picture = cv2.imread(str(path))
    assert picture is not None
    assert picture.shape[0] > 4 * 210
    assert re.findall(r"!\[.*\]\((.*)\)", page) == ["results/Pong.png"]


def test_the_baselines_take_their_background_from_training_frames(shop: Shop) -> None:
    shop.ship("median-pong", "ALE/Pong-v5")
    shop.label(shop.truth, "Pong")
    shop.record("pong")
    shop.evaluate()
    assert "median of the frames of the training split for Pong." in shop.page()


def test_an_interrupted_run_leaves_the_page_as_it_was(shop: Shop) -> None:
    shop.ship("median-pong", "ALE/Pong-v5")
    shop.ship("median-breakout", "ALE/Breakout-v5")
    shop.label(shop.truth, "Pong")
    shop.evaluate(limit=2)
    before = shop.page()
    (shop.truth / "Breakout.npz").write_text("cut short")
    with pytest.raises(ValueError, match=r"Breakout\.npz.*damaged"):
        shop.evaluate()
    assert shop.page() == before
    assert [path.name for path in shop.out.iterdir() if path.is_file()] == ["results.md"]


def test_wrong_calls_say_what_to_do(shop: Shop, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"frames of a shipped game .* got none of none shipped"):
        shop.evaluate()
    shop.ship("median-pong", "ALE/Pong-v5")
    with pytest.raises(ValueError, match="got none of Pong in"):
        shop.evaluate()
    with pytest.raises(FileNotFoundError, match="absent: there is no such folder"):
        shop.evaluate(truth_dir=(tmp_path / "absent",))
    with pytest.raises(ValueError, match=r"takes no --weights, --truth$"):
        shop.evaluate(weights="median-pong", truth=SAMPLE)
    assert not shop.out.exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--truth", str(SAMPLE)], "expected --weights NAME_OR_FILE .* got neither"),
        (["--weights", "x", "--truth-dir", "."], "got --truth-dir without --all"),
    ],
)
def test_the_command_tells_one_from_all(
    options: Sequence[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["evaluate", *options]) == 2
    assert re.search(message, capsys.readouterr().err)
