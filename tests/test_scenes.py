"""Still scenes: what is drawn is what is told, and colour gives nothing away that it must not."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest

from objrl.pretrain import stills
from objrl.pretrain.scenes import (
    FACTORS,
    Fill,
    Still,
    Which,
    draw_still,
    kinds_of,
    side_of,
)
from objrl.pretrain.stills import ScenesConfig, generate_stills
from objrl.pretrain.store import FrameStore
from objrl.pretrain.truth import read_truth

SETS, FILLS = get_args(Which), get_args(Fill)
COUNTS = {
    **{"tetris": (3, 3), "dsprites_grey": (2, 5), "dsprites_colour": (1, 4)},
    **{"dsprites_binary": (2, 3), "shapes": (3, 3), "econ_unique": (3, 3), "econ_random": (3, 3)},
}


def some(which: Which, count: int = 40, **options: Any) -> list[Still]:
    return [draw_still(which, np.random.default_rng([7, n]), **options) for n in range(count)]


@pytest.mark.parametrize("which", SETS)
def test_there_is_what_the_set_says(which: Which) -> None:
    scenes, side = some(which), side_of(which)
    counts = {len(scene.kind) for scene in scenes}
    assert (min(counts), max(counts)) == COUNTS[which]
    assert {int(kind) for scene in scenes for kind in scene.kind} == set(
        range(len(kinds_of(which)))
    )
    for scene in scenes:
        assert scene.frame.shape == (side, side, 3)
        assert scene.factors.shape == (len(scene.kind), len(FACTORS))
        # Who is seen somewhere is there, and in front of all others that are.
        front = np.zeros_like(scene.ids)
        for number, there in enumerate(scene.whole, start=1):
            front[there] = number
        np.testing.assert_array_equal(scene.ids, front)
        assert all(there.any() for there in scene.whole)


@pytest.mark.parametrize("which", SETS)
def test_factors_say_where_and_of_which_colour_an_object_is(which: Which) -> None:
    for scene in some(which, 10):
        side = side_of(which)
        for number, factors in enumerate(scene.factors, start=1):
            told = dict(zip(FACTORS, factors.tolist(), strict=True))
            y, x = np.nonzero(scene.whole[number - 1])
            # The middle of its box or of its mass, whose share of its size differs by kind.
            reach = 0.25 * told["size"] * side + 1
            left, top = (told["x"] + 1) / 2 * side, (told["y"] + 1) / 2 * side
            assert abs((x.min() + x.max() + 1) / 2 - left) < reach
            assert abs((y.min() + y.max() + 1) / 2 - top) < reach
            inside = (scene.ids == number) & (np.roll(scene.ids, 1, 0) == number)
            inside &= (np.roll(scene.ids, 1, 1) == number) & (np.roll(scene.ids, -1, 0) == number)
            inside &= np.roll(scene.ids, -1, 1) == number
            colour = np.rint(255 * np.array([told[c] for c in ("red", "green", "blue")]))
            if inside.any():
                assert (abs(scene.frame[inside].astype(float) - colour) <= 1).mean() > 0.9


def test_seventeen_pieces_that_keep_apart() -> None:
    assert len(kinds_of("tetris")) == 17
    for scene in some("tetris"):
        assert scene.whole.sum(0).max() == 1
        assert scene.whole.sum((1, 2)).tolist() == [100] * 3  # four blocks of 5 x 5


@pytest.mark.parametrize("which", ["tetris", "dsprites_grey"])
def test_colour_does_not_tell_who_is_who_where_it_must_not(which: Which) -> None:
    for scene in some(which, 10, fill="same"):
        colours = scene.factors[:, 4:7]
        assert (colours == colours[0]).all()
    apart = []
    for own, textured in zip(some(which), some(which, fill="textured"), strict=True):
        np.testing.assert_array_equal(own.whole, textured.whole)
        parts = [textured.frame[textured.ids == k + 1] for k in range(len(own.kind))]
        large = [pixels for pixels in parts if len(pixels) > 60]
        means = np.array([pixels.mean(0) for pixels in large])
        assert (abs(means - means[0]) < 60).all()
        apart += [pixels.std(0).max() for pixels in large]
    assert np.mean(apart) > 40  # of 255, though each object is of one colour on the whole


def test_econs_objects_have_the_colours_of_their_kinds_or_any() -> None:
    for scene in some("econ_unique"):
        np.testing.assert_array_equal(scene.factors[:, 4:7], np.eye(3)[scene.kind])
        assert set(scene.kind) == {0, 1, 2}
        assert not scene.whole[:, [0, -1]].any()  # wholly inside
        assert not scene.whole[:, :, [0, -1]].any()
        assert scene.frame[scene.ids == 0].max() < 250
    bright = np.concatenate([scene.factors[:, 4:7] for scene in some("econ_random")])
    assert bright.min() >= 128 / 255
    assert len(np.unique(bright, axis=0)) > 100


# --- Files


@pytest.fixture
def config(tmp_path: Path) -> ScenesConfig:
    return ScenesConfig("dsprites_grey", out=tmp_path / "some.h5", frames=12, labelled=5)


def test_files_for_training_and_scoring(config: ScenesConfig) -> None:
    path = generate_stills(config)
    with FrameStore(path) as store:
        assert (len(store), store.frame_shape, store.complete) == (12, (64, 64, 3), True)
        assert store.columns["episode"].tolist() == list(range(12))
        assert store.env_id == "dsprites_grey"
        frames = store.frames(range(12))
    found = read_truth(path.with_suffix(".npz"))
    assert not (found.frames[:, None] == frames).all(axis=(2, 3, 4)).any()
    with np.load(path.with_suffix(".npz")) as archive:
        boxes, masks, whole = archive["boxes"], archive["masks"], archive["whole"]
        assert archive["factor_names"].tolist() == list(FACTORS)
        assert archive["factors"].shape == (len(boxes), len(FACTORS))
    assert whole.shape == (len(boxes), 64, 64)
    row = 0
    for number, mask in enumerate(masks):
        for k in range(1, int(mask.max()) + 1):
            assert boxes[row, 0] == number
            assert whole[row][mask == k].all()
            row += 1
    assert row == len(boxes)


def test_a_stopped_run_ends_as_one_that_was_not(
    config: ScenesConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    generate_stills(replace(config, out=tmp_path / "whole.h5"))
    left = iter([True] * 9)  # five that are labelled and four to keep

    def stop(*arguments: Any, **options: Any) -> Still:
        if not next(left, False):
            raise KeyboardInterrupt
        return draw_still(*arguments, **options)

    with monkeypatch.context() as patch:
        patch.setattr(stills, "draw_still", stop)
        with pytest.raises(KeyboardInterrupt):
            generate_stills(config)
    generate_stills(config)
    assert (tmp_path / "some.npz").read_bytes() == (tmp_path / "whole.npz").read_bytes()
    with FrameStore(tmp_path / "some.h5") as first, FrameStore(tmp_path / "whole.h5") as second:
        np.testing.assert_array_equal(first.frames(range(12)), second.frames(range(12)))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"frames": 0}, "frames: expected at least 1, got 0"),
        ({"labelled": -1}, "labelled: expected at least 0"),
        ({"seed": -1}, "seed: expected at least 0"),
        ({"side": 8}, "side: expected 16 to 256 pixels, got 8"),
        ({"out": Path("scenes.npz")}, r"out: expected a name like scenes\.h5"),
    ],
)
def test_bad_settings(config: ScenesConfig, change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        generate_stills(replace(config, **change))


def test_another_set_does_not_go_into_the_same_file(config: ScenesConfig) -> None:
    generate_stills(config)
    for change in ({"which": "tetris"}, {"fill": "same"}, {"side": 32}):
        with pytest.raises(ValueError, match="expected"):
            generate_stills(replace(config, **change))
