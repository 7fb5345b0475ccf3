"""3D rooms: true boxes and masks, the same rooms after a stop, files that the other verbs read."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from objrl.pretrain import studio
from objrl.pretrain.rooms import RoomsConfig, find_objects, generate_rooms
from objrl.pretrain.store import FrameStore
from objrl.pretrain.studio import COUNTS, REACH, SHAPES, Scene, Studio, make_scene
from objrl.pretrain.truth import read_truth


def rng(*seed: int) -> np.random.Generator:
    return np.random.default_rng(seed)


@pytest.mark.parametrize("which", ["small", "large"])
def test_objects_stand_apart_in_the_middle_of_a_room(which: str) -> None:
    scenes = [make_scene(which, rng(number)) for number in range(40)]
    counts = {len(scene.half) for scene in scenes}
    assert (min(counts), max(counts)) == COUNTS[which]
    for scene in scenes:
        # Of a cube, what its corners reach.
        reach = np.where(scene.shape == 0, np.sqrt(2), 1) * scene.half
        assert (np.linalg.norm(scene.place, axis=1) + reach <= REACH).all()
        gaps = np.linalg.norm(scene.place[:, None] - scene.place, axis=-1) - reach - reach[:, None]
        assert gaps[~np.eye(len(gaps), dtype=bool)].min() > 0
        assert len(np.unique(scene.room, axis=0)) == 3
    assert {int(kind) for scene in scenes for kind in scene.shape} == {0, 1, 2}


def test_what_is_seen_of_an_object_counts_and_slivers_do_not() -> None:
    ids = np.zeros((64, 64), dtype=np.int64)  # four pixels are enough
    ids[10:20, 5:9] = 2
    ids[12:14, 6:8] = 4  # in front of it
    ids[0, 60:63] = 3
    ids[63, 60:64] = 1
    seen, mask, aside = find_objects(ids)
    assert seen == [(0, (60, 63, 4, 1)), (1, (5, 10, 4, 10)), (3, (6, 12, 2, 2))]
    assert aside == [(60, 0, 3, 1)]
    assert [(mask == number).sum() for number in (1, 2, 3)] == [4, 36, 4]
    assert mask[0, 61] == 0
    seen, mask, aside = find_objects(np.zeros((64, 64), dtype=np.int64))
    assert not seen
    assert not aside
    assert not mask.any()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"frames": 0}, "frames: expected at least 1, got 0"),
        ({"labelled": -1}, "labelled: expected at least 0"),
        ({"seed": -1}, "seed: expected at least 0"),
        ({"size": 16}, "size: expected at least 32"),
        ({"size": 4000}, "size: expected at most 1024"),
        ({"out": Path("rooms.npz")}, r"out: expected a name like rooms\.h5"),
    ],
)
def test_bad_settings(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    out = tmp_path / "rooms.h5"
    with pytest.raises(ValueError, match=message):
        generate_rooms(replace(RoomsConfig(out=out), **change))
    assert not any(tmp_path.iterdir())


def test_without_mujoco(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "mujoco", None)
    with pytest.raises(ImportError, match=r"pip install 'objrl\[rooms\]'"):
        generate_rooms(RoomsConfig(out=tmp_path / "rooms.h5"))
    assert not any(tmp_path.iterdir())


# --- With MuJoCo, and something for it to draw with


@pytest.fixture(scope="module")
def small() -> Any:
    pytest.importorskip("mujoco")
    try:
        made = Studio("small", size=64)
    except ImportError as problem:
        pytest.skip(str(problem))
    yield made
    made.close()


@pytest.fixture
def config(small: Studio, tmp_path: Path) -> RoomsConfig:
    """Asks for `small`, so that it is skipped where nothing can be drawn."""
    return RoomsConfig(out=tmp_path / "rooms.h5", frames=10, labelled=3, size=64)


def one(shape: str, *place: float, **changes: Any) -> Scene:
    """A scene with one red object, seen from where x is far and y left."""
    scene = Scene(
        shape=np.array([SHAPES.index(shape)]),
        half=np.array([0.5]),
        place=np.array([place]),
        turn=np.zeros(1),
        colour=np.array([[1.0, 0.0, 0.0]]),
        room=np.array([[0.5, 0.5, 0.5], [0.0, 0.0, 1.0], [0.0, 1.0, 0.0]]),
        azimuth=0.0,
        elevation=-30.0,
    )
    return replace(scene, **changes)


@pytest.mark.parametrize("shape", SHAPES)
def test_ids_are_where_the_object_is_drawn(small: Studio, shape: str) -> None:
    frame, ids = small.draw_with_ids(one(shape, 0, 0))
    red = (frame[..., 0] > 60) & (frame[..., 1:].max(axis=-1) < 40)
    assert red.sum() > 50
    assert (red & (ids == 1)).sum() / (red | (ids == 1)).sum() > 0.85  # edges are blended
    x = np.nonzero(ids == 1)[1]
    assert abs(x.mean() - 31.5) < 1  # the camera looks at the middle
    np.testing.assert_array_equal(frame[0, 0], [0, 255, 0])  # the sky
    assert frame[-1, 0, 2] > 2 * frame[-1, 0, :2].max()  # the floor


def test_objects_are_where_the_scene_says(small: Studio) -> None:
    def middle(scene: Scene) -> tuple[float, float, int]:
        y, x = np.nonzero(small.draw_with_ids(scene)[1] == 1)
        return float(x.mean()), float(y.mean()), len(x)

    x, y, area = middle(one("sphere", 0, 0))
    assert middle(one("sphere", 0, 2))[0] < x - 10
    assert middle(one("sphere", 0, -2))[0] > x + 10
    assert middle(one("sphere", 2, 0))[1:] < (y - 5, area)
    assert middle(one("sphere", -2, 0))[1] > y + 10
    assert middle(one("sphere", 2, 0, azimuth=180.0))[1] > y + 10
    assert middle(one("sphere", 0, 0, half=np.array([0.25])))[2] < area / 3
    # A cube turned by an eighth shows an edge and is wider.
    straight, turned = (
        np.ptp(np.nonzero(small.draw_with_ids(one("cube", 0, 0, turn=np.array([t])))[1])[1])
        for t in (0, np.pi / 4)
    )
    assert turned > straight


def test_the_nearer_object_hides_the_farther(small: Studio) -> None:
    near, far = one("cube", -1, 0, half=np.array([0.6])), one("sphere", 0.2, 0)
    both: dict[str, Any] = {
        name: np.concatenate([getattr(near, name), getattr(far, name)])
        for name in ("shape", "half", "place", "turn", "colour")
    }
    ids = small.draw_with_ids(replace(near, **both))[1]
    alone = small.draw_with_ids(far)[1]
    assert 0 < (ids == 2).sum() < 0.7 * (alone == 1).sum()
    assert (ids == 1).sum() > (ids == 2).sum()


def test_a_picture_does_not_depend_on_those_before(small: Studio) -> None:
    scenes = [make_scene("small", rng(number)) for number in range(4)]
    forward = [small.draw_with_ids(scene) for scene in scenes]
    backward = [small.draw(scene) for scene in scenes[::-1]][::-1]
    for (frame, _), again in zip(forward, backward, strict=True):
        np.testing.assert_array_equal(frame, again)


def test_shadows(small: Studio) -> None:
    scene = one("sphere", 1, 1)
    without = Studio("small", size=64, shadows=False)
    lit, shaded = without.draw(scene).astype(int), small.draw(scene).astype(int)
    without.close()
    ids = small.draw_with_ids(scene)[1]
    darker = ((lit - shaded).max(axis=-1) > 30) & (ids == 0)
    assert 10 < darker.sum() < 200
    assert (shaded - lit).max() < 10


def test_files_for_training_and_scoring(
    config: RoomsConfig, capsys: pytest.CaptureFixture[str]
) -> None:
    path = generate_rooms(config)
    said = capsys.readouterr().out
    assert f"written: {path}, 10 frames of rooms-small\n" in said
    with FrameStore(path) as store:
        assert (len(store), store.frame_shape, store.complete) == (10, (64, 64, 3), True)
        frames = store.frames(range(10))
        assert store.columns["episode"].tolist() == list(range(10))
        assert store.columns["terminated"].all()
        assert [len(store.split(name)) for name in ("train", "val", "test")] == [8, 1, 1]
    assert len(np.unique(frames.reshape(10, -1), axis=0)) == 10

    labels = path.with_suffix(".npz")
    found = read_truth(labels)
    assert f"written: {labels}, 3 labelled frames with {found.truth.count} objects\n" in said
    assert found.game == "rooms-small"
    # None of them is among those to learn from.
    assert not (found.frames[:, None] == frames).all(axis=(2, 3, 4)).any()
    with np.load(labels) as archive:
        masks = archive["masks"]
    for number, (mask, boxes) in enumerate(zip(masks, found.truth.boxes, strict=True)):
        assert mask.max() == len(boxes)
        for row, box in enumerate(boxes, 1):
            y, x = np.nonzero(mask == row)
            assert [x.min(), y.min(), x.max() + 1, y.max() + 1] == box.tolist()
        assert set(found.truth.labels[number]) <= set(SHAPES)


def test_a_stopped_run_ends_as_one_that_was_not(config: RoomsConfig, tmp_path: Path) -> None:
    generate_rooms(replace(config, frames=5))
    labels = (tmp_path / "rooms.npz").read_bytes()
    generate_rooms(config)
    assert (tmp_path / "rooms.npz").read_bytes() == labels
    generate_rooms(replace(config, out=tmp_path / "whole.h5"))
    with FrameStore(tmp_path / "rooms.h5") as first, FrameStore(tmp_path / "whole.h5") as second:
        np.testing.assert_array_equal(first.frames(range(10)), second.frames(range(10)))
        for name in first.columns:
            np.testing.assert_array_equal(first.columns[name], second.columns[name])
    assert (tmp_path / "whole.npz").read_bytes() == labels


def test_the_seed_decides(config: RoomsConfig, tmp_path: Path) -> None:
    for seed in (0, 1):
        generate_rooms(replace(config, out=tmp_path / f"{seed}.h5", seed=seed, frames=2))
    with FrameStore(tmp_path / "0.h5") as first, FrameStore(tmp_path / "1.h5") as second:
        assert (first.frames([0, 1]) != second.frames([0, 1])).any(axis=(1, 2, 3)).all()


@pytest.mark.parametrize("change", [{"which": "large"}, {"seed": 1}, {"size": 32}])
@pytest.mark.parametrize("kept", ["rooms.h5", "rooms.npz"])
def test_files_of_another_run_stay(
    config: RoomsConfig, tmp_path: Path, kept: str, change: dict[str, Any]
) -> None:
    generate_rooms(replace(config, frames=2))
    before = (tmp_path / kept).read_bytes()
    for path in tmp_path.iterdir():
        if path.name != kept:
            path.unlink()
    with pytest.raises(ValueError, match="nothing was changed: choose another"):
        generate_rooms(replace(config, **change))
    assert [path.name for path in tmp_path.iterdir()] == [kept]
    assert (tmp_path / kept).read_bytes() == before


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere MuJoCo has one way to draw")
def test_nothing_to_draw_with(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("mujoco")
    monkeypatch.setattr(studio, "_PROBE", "raise OSError('{} is missing')")
    monkeypatch.setattr(studio, "_find_backend", studio._find_backend.__wrapped__)
    monkeypatch.delenv("MUJOCO_GL", raising=False)
    message = r"\(egl: OSError: egl is missing; osmesa: .* missing\); .*apt-get install libegl1"
    with pytest.raises(ImportError, match=message):
        Studio("small")
    monkeypatch.setenv("MUJOCO_GL", "osmesa")
    with pytest.raises(ImportError, match=r"\(osmesa: [^;]*\); .* MUJOCO_GL not to be 'osmesa'"):
        Studio("small")
