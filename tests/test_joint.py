"""Several games' frames as one's."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

import objrl
from objrl.perceiver import model_of
from objrl.pretrain.joint import JointStore, by_game
from objrl.pretrain.train import TrainConfig, train
from objrl.weights import read_header
from tests.squares import make_frames, write_store


@pytest.fixture
def paths(tmp_path: Path) -> list[Path]:
    wide = np.repeat(make_frames(20, seed=2), 2, axis=2)
    return [
        write_store(tmp_path / "a.h5", make_frames(60, seed=0), env_id="A-v0"),
        write_store(tmp_path / "b.h5", make_frames(40, seed=1), env_id="B-v0"),
        write_store(tmp_path / "wide.h5", wide, env_id="Wide-v0"),
    ]


def test_frames_come_from_their_stores_in_the_order_asked(paths: list[Path]) -> None:
    with JointStore(paths[:2]) as joint:
        assert len(joint) == 100
        found = joint.frames([99, 0, 60, 59, 0])
    expected = [make_frames(40, 1)[39], *(make_frames(60)[:1]), make_frames(40, 1)[0]]
    for frame, wanted in zip(found, [*expected, make_frames(60)[59], expected[1]], strict=True):
        assert np.array_equal(frame, wanted)


def test_splits_are_those_of_the_stores(paths: list[Path]) -> None:
    with JointStore(paths) as joint:
        splits = [joint.split(name) for name in ("train", "val", "test")]
        every = np.concatenate(splits)
        assert np.array_equal(np.sort(every), np.arange(len(joint)))
        first = joint.parts[1].split("val") + 60
        assert set(first) <= set(splits[1])


def test_frames_of_another_size_take_the_commonest(paths: list[Path]) -> None:
    with JointStore(paths) as joint:
        assert joint.frames([0, 110]).shape == (2, 64, 64, 3)


def test_games_are_looked_at_one_by_one_in_one_size(paths: list[Path]) -> None:
    with JointStore(paths) as joint:
        looks = list(by_game(joint, count=10))
    assert [len(frames) for frames in looks] == [10, 10, 10]
    assert {frames.shape[1:] for frames in looks} == {(64, 64, 3)}


def test_of_mixed_emulator_frames_nothing_is_said(tmp_path: Path) -> None:
    def told(*kinds: int | None) -> object:
        stores = [
            write_store(tmp_path / f"{kind}-{i}.h5", make_frames(20, seed=i), last_two=kind)
            for i, kind in enumerate(kinds)
        ]
        with JointStore(stores) as joint:
            return joint.fingerprint().get("last_two")

    assert told(1, 1) == 1
    assert told(0, 0, 0) == 0
    assert told(0, 1) is None
    assert told(0, None) is None


def test_the_fingerprint_tells_which_stores(paths: list[Path]) -> None:
    with JointStore(paths[:2]) as joint, JointStore(paths[1::-1]) as other:
        told = joint.fingerprint()
        assert (told["env_id"], told["frames"]) == ("A-v0, B-v0", 100)
        assert told["sha256"] != other.fingerprint()["sha256"]


def test_bad_wishes_are_refused(paths: list[Path]) -> None:
    with pytest.raises(ValueError, match="expected different files"):
        JointStore([paths[0], paths[0]])
    with pytest.raises(FileNotFoundError):
        JointStore([paths[0], paths[0].with_name("none.h5")])
    with JointStore(paths[:2]) as joint, pytest.raises(IndexError, match=r"0\.\.99"):
        joint.frames([100])


def test_one_detector_learns_from_several_games(tmp_path: Path) -> None:
    paths = []
    for name, shade in (("dark", 0), ("light", 90)):
        frames = make_frames(60)
        frames[(frames == (20, 20, 60)).all(-1)] = (20 + shade, 20 + shade, 60 + shade)
        paths.append(write_store(tmp_path / f"{name}.h5", frames, env_id=f"{name}-v0"))
    out = train(
        TrainConfig(data=tuple(paths), out=tmp_path / "run", steps=2, batch=2, device="cpu")
    )
    header = read_header(out)
    assert header["data"]["env_id"] == "dark-v0, light-v0"
    assert header["config"]["scenes"] == 2
    background = model_of(objrl.load(out, device="cpu")).background
    seen = torch.stack([torch.full((3, 64, 64), 0.1), torch.full((3, 64, 64), 0.5)])
    assert background.scene(seen).tolist() == [0, 1]
