"""The demo, with the median baseline in place of shipped weights."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import ale_py
import cv2
import gymnasium as gym
import numpy as np
import pytest
import torch

from objrl.agents.demo import DemoConfig, demo, format_slots
from objrl.models.median import Median
from objrl.slots import Slots
from objrl.weights import save_weights


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A median detector of Space Invaders, fitted to a few random frames."""
    gym.register_envs(ale_py)
    env = gym.make("ALE/SpaceInvaders-v5")
    env.action_space.seed(0)
    env.reset(seed=0)
    frames = [env.step(env.action_space.sample())[0] for _ in range(60)]
    env.close()
    model = Median.fit(np.stack(frames[30:]))
    path = tmp_path_factory.mktemp("weights") / "median.safetensors"
    return save_weights(path, model, model_name="median", data={}, training={}, metrics={})


@pytest.fixture
def config(weights: Path, tmp_path: Path) -> DemoConfig:
    return DemoConfig(weights=str(weights), steps=40, out=tmp_path / "new", device="cpu", threads=1)


def test_the_demo_shows_objects_and_names_its_files(
    config: DemoConfig, capsys: pytest.CaptureFixture[str]
) -> None:
    threads = torch.get_num_threads()
    report = demo(config)
    shown = capsys.readouterr().out
    assert torch.get_num_threads() == threads

    count = int(report.slots.mask.sum())
    assert 10 <= count <= 64  # 36 aliens, shields and a cannon, some of them touching
    table = shown[shown.index("row") :].split("\n\n")[0].splitlines()
    assert len(table) == 1 + count
    assert f"{report.perception_fps:.1f} frames/s" in shown
    assert f"{report.whole_fps:.1f} frames/s" in shown
    assert f"wrote {report.video} and {report.sheet}" in shown

    assert sorted(path.name for path in config.out.iterdir()) == ["demo.mp4", "demo.png"]
    video = cv2.VideoCapture(str(report.video))
    assert video.get(cv2.CAP_PROP_FRAME_COUNT) == config.steps + 1
    sheet = cv2.imread(str(report.sheet))
    assert sheet is not None
    assert sheet.std() > 10


def test_the_same_seed_shows_the_same_objects(config: DemoConfig) -> None:
    config = dataclasses.replace(config, steps=80)  # the cannon obeys after 30 frames
    first, again = demo(config).slots, demo(config).slots
    other = demo(dataclasses.replace(config, seed=3)).slots
    assert torch.equal(first.position, again.position)
    assert torch.equal(first.track_id, again.track_id)
    assert not torch.equal(first.position, other.position)


def test_the_table_has_one_line_for_every_object() -> None:
    slots = Slots.empty(1, 3, 2)
    assert format_slots(slots, 100, 200).splitlines()[1:] == ["(no objects)"]
    slots.position[0, 1] = torch.tensor([0.5, -0.5])
    slots.scale[0, 1] = torch.tensor([0.1, 0.2])
    slots.depth[0, 1], slots.presence[0, 1], slots.track_id[0, 1] = 0.25, 0.9, 17
    (line,) = format_slots(slots, 100, 200).splitlines()[1:]
    assert [float(word) for word in line.split()] == [
        *(1, 17, 0.5, -0.5, 0.1, 0.2, 0.9, 0.25),
        *(140, 15, 160, 35),
    ]


def test_mistakes_are_named_before_anything_is_played(config: DemoConfig) -> None:
    mistakes: tuple[tuple[dict[str, Any], str], ...] = (
        ({"steps": 0}, "steps: expected at least 1, got 0"),
        ({"threads": 0}, "threads: expected at least 1, got 0"),
        ({"weights": "space-nothing"}, "unknown weights 'space-nothing'"),
        ({"weights": None, "env": "ALE/Krull-v5"}, "no weights are shipped for 'ALE/Krull-v5'"),
    )
    for change, message in mistakes:
        with pytest.raises(ValueError, match=message):
            demo(dataclasses.replace(config, **change))
    with pytest.raises(gym.error.NameNotFound, match="Pongg"):
        demo(dataclasses.replace(config, env="ALE/Pongg-v5"))
    assert not list(config.out.parent.glob("new/*"))
