"""Moving sprites: true boxes and identities, the paper's densities, the same after a stop."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from objrl.pretrain import sprites, synthetic
from objrl.pretrain.rooms import find_objects
from objrl.pretrain.sequences import DENSITIES, VIEW, Scene, centres, draw, make_scene
from objrl.pretrain.sprites import DIGITS, SHAPES, make_bank
from objrl.pretrain.store import FrameStore
from objrl.pretrain.synthetic import SyntheticConfig, generate_sequences
from objrl.pretrain.truth import read_truth

BANK = make_bank("shapes", SHAPES)


def rng(*seed: int) -> np.random.Generator:
    return np.random.default_rng(seed)


def white(*places: tuple[float, float], size: float = 12, **changes: Any) -> Scene:
    """White squares at places of the frame, at rest and upright, in a world as large as it."""
    count = len(places)
    scene = Scene(
        size=size,
        world=float(VIEW),
        sprite=np.zeros(count, dtype=np.int64),
        turn=np.zeros(count),
        colour=np.ones((count, 3)),
        place=np.array(places),
        velocity=np.zeros((count, 2)),
        waves=np.zeros((0, 7)),
    )
    return replace(scene, **changes)


@settings(deadline=None, max_examples=40)
@given(
    kind=st.integers(0, len(SHAPES) - 1),
    place=st.tuples(st.floats(0, VIEW), st.floats(0, VIEW)),
    turn=st.floats(0, 7),
    size=st.floats(4, 32),
)
def test_boxes_are_tight_around_what_is_drawn(
    kind: int, place: tuple[float, float], turn: float, size: float
) -> None:
    scene = white(place, size=size, sprite=np.array([kind]), turn=np.array([turn]))
    (frame,), (ids,) = draw(scene, BANK, 1)
    y, x = np.nonzero(frame[..., 0] >= 128)
    tight = int(x.min()), int(y.min()), int(np.ptp(x)) + 1, int(np.ptp(y)) + 1
    seen, _, aside = find_objects(ids)
    assert [box for _, box in seen] + aside == [tight]
    # Half covered or more: softer pixels, as at a tip, reach two further at most.
    y, x = np.nonzero(frame[..., 0])
    assert (x.min() >= tight[0] - 2) & (x.max() <= tight[0] + tight[2] + 1)
    assert (y.min() >= tight[1] - 2) & (y.max() <= tight[1] + tight[3] + 1)
    if size <= min(*place, *(VIEW - at for at in place)):  # all of it is in view
        assert 0.6 * size - 1 < min(tight[2:]) <= max(tight[2:]) < 1.25 * size + 1
        middle = tight[0] + tight[2] / 2, tight[1] + tight[3] / 2
        assert abs(np.subtract(place, middle)).max() < 0.15 * size + 1


@pytest.mark.parametrize("turn", [0.0, 0.3, np.pi / 4])
def test_edges_are_smooth(turn: float) -> None:
    for place in [(30.0, 30.0), (30.5, 30.25), (30.9, 29.7)]:
        (frame,), _ = draw(white(place, turn=np.array([turn])), BANK, 1)
        weight = frame[..., 0] / 255
        assert weight.sum() == pytest.approx((0.84 * 12) ** 2, rel=0.02)
        middle = [
            (weight.sum(axis=axis) @ (np.arange(VIEW) + 0.5)) / weight.sum() for axis in (0, 1)
        ]
        np.testing.assert_allclose(middle, place, atol=0.05)


def test_a_heart_is_upright_when_it_is_not_turned() -> None:
    heart = SHAPES.index("heart")
    (frame,), _ = draw(white((32, 32), size=20, sprite=np.array([heart])), BANK, 1)
    rows = np.nonzero(frame[..., 0].max(axis=1) >= 128)[0]
    widths = (frame[..., 0] >= 128).sum(axis=1)[rows]
    assert widths[2] > 2 * widths[-3]  # broad above, a point below
    np.testing.assert_array_equal(frame, frame[:, ::-1])


def test_the_later_object_hides_the_earlier() -> None:
    colour = np.array([[1.0, 0, 0], [0, 0, 1.0]])
    (frame,), (ids,) = draw(white((30, 30), (35, 32), colour=colour), BANK, 1)
    assert frame[31, 33].tolist() == [0, 0, 255]
    assert frame[28, 27].tolist() == [255, 0, 0]
    assert ids[31, 33] == 2
    _, (alone,) = draw(white((30, 30)), BANK, 1)
    assert 0 < (ids == 1).sum() < 0.8 * (alone == 1).sum()
    assert ((ids > 0) >= (alone > 0)).all()


def test_objects_go_straight_on_and_back_at_the_walls() -> None:
    scene = white((10, 60), world=80.0, velocity=np.array([[2.0, 3.0]]))
    way = centres(scene, np.arange(200))[:, 0]
    np.testing.assert_allclose(way[:3], [[2, 52], [4, 55], [6, 58]])
    assert way.min() >= -8
    assert way.max() <= 72
    assert (abs(np.diff(way, axis=0)) <= [2 + 1e-9, 3 + 1e-9]).all()
    assert way[:, 0].max() > 70
    assert way[:, 0].min() < -6


def test_scenes_follow_speed_and_colours() -> None:
    scene = make_scene(DENSITIES["VHD"], BANK, rng(3), speed=(0.5, 2.0))
    pace = np.linalg.norm(scene.velocity, axis=1)
    assert 0.5 <= pace.min() < 0.7
    assert 1.8 < pace.max() <= 2.0
    assert len(set(scene.sprite)) == len(SHAPES)
    assert scene.colour.max(axis=1).min() >= 0.75  # brighter than any background
    assert (np.ptp(scene.colour, axis=1) >= 0.37).all()  # and none of them grey


@pytest.mark.parametrize(
    ("name", "objects", "in_view"),
    [
        ("VLD", (2, 4), 2.9),
        ("LD", (8, 11), 8),
        ("MD", (18, 24), 20),
        ("HD", (50, 64), 55),
        ("VHD", (90, 110), 90),
    ],
)
def test_as_many_are_in_view_as_in_the_paper(
    name: str, objects: tuple[int, int], in_view: float
) -> None:
    counts, seen = set(), []
    for number in range(300):
        scene = make_scene(DENSITIES[name], BANK, rng(number))
        counts.add(len(scene.sprite))
        reach = scene.size / 2
        at = centres(scene, np.arange(10))
        seen.append(((at > -reach) & (at < VIEW + reach)).all(axis=-1).sum(axis=1).mean())
    assert (min(counts), max(counts)) == objects
    assert np.mean(seen) == pytest.approx(in_view, rel=0.05)


def test_the_background_moves_behind_the_same_objects() -> None:
    plain, rich = (make_scene(DENSITIES["LD"], BANK, rng(5), background=b) for b in (False, True))
    (black, ids), (frames, same) = draw(plain, BANK, 5), draw(rich, BANK, 5)
    np.testing.assert_array_equal(ids, same)
    colours = np.rint(255 * plain.colour).astype(np.uint8)
    solid = (black[..., None, :] == colours).all(axis=-1).any(axis=-1)
    assert solid.sum() > 1000
    np.testing.assert_array_equal(frames[solid], black[solid])
    open_ = black.max(axis=-1) == 0
    assert frames[open_].max() <= round(0.55 * 255)
    still = open_[1:] & open_[:-1]
    moved = abs(np.diff(frames.astype(int), axis=0)).max(axis=-1)
    assert (moved[still] > 0).mean() > 0.8
    assert moved[still].max() < 60  # and it does not jump


def test_a_longer_sequence_begins_with_a_shorter() -> None:
    scene = make_scene(DENSITIES["MD"], BANK, rng(1), background=True)
    long, short = draw(scene, BANK, 70), draw(scene, BANK, 10)
    for whole, part in zip(long, short, strict=True):
        np.testing.assert_array_equal(whole[:10], part)
    assert long[0].shape == (70, VIEW, VIEW, 3)


def test_sprites_are_the_same_to_the_bit_every_time() -> None:
    for _ in range(5):
        np.testing.assert_array_equal(make_bank("shapes", SHAPES).distance, BANK.distance)


def test_digits_look_like_the_digits_they_are() -> None:
    datasets = pytest.importorskip("sklearn.datasets")
    bank = make_bank("digits", ["3", "8"])
    found = datasets.load_digits()
    chosen = np.isin(found.target, [3, 8])
    np.testing.assert_array_equal(np.array([3, 8])[bank.kind], found.target[chosen])
    for row in (0, 50, 300):
        scene = white((32, 32), size=32, sprite=np.array([row]))
        (frame,), _ = draw(scene, bank, 1)
        small = frame[16:48, 16:48, 0].reshape(8, 4, 8, 4).mean(axis=(1, 3))
        alike = [np.corrcoef(small.ravel(), image.ravel())[0, 1] for image in found.images[chosen]]
        assert np.argmax(alike) == row


def test_without_scikit_learn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    monkeypatch.setattr(sprites, "_digits", sprites._digits.__wrapped__)
    with pytest.raises(ImportError, match=r"pip install 'objrl\[synthetic\]'"):
        generate_sequences(SyntheticConfig(which="digits", out=tmp_path / "digits.h5"))
    assert not any(tmp_path.iterdir())


# --- Files


@pytest.fixture
def config(tmp_path: Path) -> SyntheticConfig:
    return SyntheticConfig(density="LD", out=tmp_path / "some.h5", sequences=10, labelled=3)


def test_files_for_training_and_scoring(
    config: SyntheticConfig, capsys: pytest.CaptureFixture[str]
) -> None:
    path = generate_sequences(config)
    said = capsys.readouterr().out
    assert f"written: {path}, 100 frames of shapes-LD\n" in said
    with FrameStore(path) as store:
        assert (len(store), store.frame_shape, store.complete) == (100, (64, 64, 3), True)
        assert store.columns["episode"].tolist() == np.repeat(range(10), 10).tolist()
        assert store.columns["step"].tolist() == [*range(10)] * 10
        assert np.flatnonzero(store.columns["truncated"]).tolist() == [*range(9, 100, 10)]
        assert len(store.windows(10, "train")) == 8
        frames = store.frames(range(100))

    labels = path.with_suffix(".npz")
    found = read_truth(labels)
    assert f"{labels}, 3 labelled sequences with {found.truth.count} boxes\n" in said
    assert found.game == "shapes-LD"
    assert found.frames.shape == (30, 64, 64, 3)
    assert found.truth.count > 30 * 5
    # None of them is among those to learn from.
    assert not (found.frames[:, None] == frames).all(axis=(2, 3, 4)).any()
    with np.load(labels) as archive:
        boxes, ids, masks = archive["boxes"], archive["ids"], archive["masks"]
        assert archive["sequence"].tolist() == np.repeat(range(3), 10).tolist()
        assert archive["sequence"].dtype == ids.dtype == np.int64
        assert archive["classes"].tolist() == ["square", "ellipse", "heart"]
    assert ids.shape == boxes.shape[:1]
    for number, mask in enumerate(masks):
        mine = boxes[boxes[:, 0] == number]
        assert mask.max() == len(mine)
        for row, (x, y, w, h) in enumerate(mine[:, 2:], 1):
            rows, columns = np.nonzero(mask == row)
            assert (columns.min(), rows.min()) == (x, y)
            assert (np.ptp(columns) + 1, np.ptp(rows) + 1) == (w, h)


def test_an_id_is_one_object_for_a_whole_sequence(config: SyntheticConfig) -> None:
    wide = replace(config, density="MD", world=100.0, sequences=0, labelled=4, length=20)
    path = generate_sequences(wide)
    assert path.suffix == ".npz"
    assert not wide.out.exists()  # type: ignore[union-attr]
    with np.load(path) as archive:
        boxes, ids, of = archive["boxes"], archive["ids"], archive["sequence"]
    came = left = back = 0
    for sequence in range(4):
        there = of[boxes[:, 0]] == sequence
        # The scene that it was drawn from, by the documented rule: (seed, 1, n) decides.
        bank = make_bank("shapes")
        scene = make_scene(replace(DENSITIES["MD"], world=100.0), bank, rng(0, 1, sequence))
        for number in range(len(scene.sprite)):
            mine = boxes[there & (ids == number)]
            time = mine[:, 0] - 20 * sequence
            assert (mine[:, 1] == scene.sprite[number]).all()
            assert len(set(time)) == len(time)
            middle = mine[:, 2:4] + mine[:, 4:] / 2
            way = centres(scene, np.arange(20))[time, number]
            assert (abs(middle - way) <= 0.75 * scene.size).all()  # what is seen is part of it
            came += len(time) > 0 and time[0] > 0
            left += len(time) > 0 and time[-1] < 19
            back += (np.diff(time) > 1).any()
        assert set(ids[there]) <= set(range(len(scene.sprite)))
    assert min(came, left, back) > 0


def test_a_stopped_run_ends_as_one_that_was_not(
    config: SyntheticConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    generate_sequences(replace(config, out=tmp_path / "whole.h5"))
    left = iter([True] * 8)  # three that are labelled and five to keep

    def stop(*arguments: Any) -> Any:
        if not next(left, False):
            raise KeyboardInterrupt
        return draw(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(synthetic, "draw", stop)
        with pytest.raises(KeyboardInterrupt):
            generate_sequences(config)
    with FrameStore(tmp_path / "some.h5") as store:
        assert (len(store), store.complete) == (50, False)
    generate_sequences(config)
    assert (tmp_path / "some.npz").read_bytes() == (tmp_path / "whole.npz").read_bytes()
    with FrameStore(tmp_path / "some.h5") as first, FrameStore(tmp_path / "whole.h5") as second:
        np.testing.assert_array_equal(first.frames(range(100)), second.frames(range(100)))
        for name in first.columns:
            np.testing.assert_array_equal(first.columns[name], second.columns[name])


def test_the_seed_decides(config: SyntheticConfig, tmp_path: Path) -> None:
    for seed in (0, 1):
        one = replace(config, out=tmp_path / f"{seed}.h5", seed=seed, sequences=2, labelled=0)
        generate_sequences(one)
    with FrameStore(tmp_path / "0.h5") as first, FrameStore(tmp_path / "1.h5") as second:
        assert (first.frames(range(20)) != second.frames(range(20))).any(axis=(1, 2, 3)).all()


def test_other_kinds_and_more_objects_can_be_asked_for(
    config: SyntheticConfig, tmp_path: Path
) -> None:
    pytest.importorskip("sklearn.datasets")
    seen = []
    for kinds in (DIGITS[:6], DIGITS[6:]):
        out = tmp_path / f"{kinds[0]}.h5"
        some = replace(config, which="digits", kinds=kinds, objects=(30, 40), out=out, sequences=0)
        truth = read_truth(generate_sequences(some)).truth
        seen.append({label for labels in truth.labels for label in labels})
        assert np.mean([len(boxes) for boxes in truth.boxes]) > 20
    assert seen == [set(DIGITS[:6]), set(DIGITS[6:])]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"sequences": -1}, "sequences: expected at least 0, got -1"),
        ({"sequences": 0, "labelled": 0}, "sequences: expected some"),
        ({"labelled": -1}, "labelled: expected at least 0"),
        ({"seed": -1}, "seed: expected at least 0"),
        ({"length": 1}, "length: expected 2 to 10,000 frames, got 1"),
        ({"size": 40.0}, "size: expected 4 to 32 pixels, got 40"),
        ({"size": 0.0}, "size: expected 4 to 32 pixels, got 0"),
        ({"world": 20.0}, "world: expected 64 to 512 pixels"),
        ({"objects": (9, 3)}, "objects: expected the least and the most, from 1 to 255, got 9 and"),
        ({"objects": (1, 256)}, "objects: expected the least and the most"),
        ({"speed": (-1.0, 3.0)}, "speed: expected the least and the most, from 0 to 16"),
        (
            {"kinds": ("square", "7")},
            "kinds: expected different ones of square, ellipse, heart, tri",
        ),
        ({"kinds": ("square", "square")}, "kinds: expected different ones of"),
        ({"out": Path("some.npz")}, r"out: expected a name like shapes\.h5"),
    ],
)
def test_bad_settings(
    config: SyntheticConfig, tmp_path: Path, change: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        generate_sequences(replace(config, **change))
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize(
    "change", [{"density": "MD"}, {"seed": 1}, {"length": 5}, {"background": True}, {"size": 9.0}]
)
@pytest.mark.parametrize("kept", ["some.h5", "some.npz"])
def test_files_of_another_run_stay(
    config: SyntheticConfig, tmp_path: Path, kept: str, change: dict[str, Any]
) -> None:
    generate_sequences(replace(config, sequences=2))
    before = (tmp_path / kept).read_bytes()
    for path in tmp_path.iterdir():
        if path.name != kept:
            path.unlink()
    with pytest.raises(ValueError, match="nothing was changed: choose another"):
        generate_sequences(replace(config, **change))
    assert [path.name for path in tmp_path.iterdir()] == [kept]
    assert (tmp_path / kept).read_bytes() == before
