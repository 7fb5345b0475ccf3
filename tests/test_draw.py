"""Pictures: what is drawn where, and that files are whole or absent."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt
import pytest
import torch

from objrl.draw import Image, contact_sheet, draw_slots, sheet, track_colour, write_png, write_video
from objrl.perceiver import Decomposition
from objrl.slots import Slots

Row = tuple[npt.NDArray[np.float64], npt.NDArray[np.float64], npt.NDArray[np.int64]]


def grey(height: int = 60, width: int = 40, value: int = 90) -> Image:
    return np.full((height, width, 3), value, np.uint8)


def one(*corners: float, track_id: int = 7) -> Row:
    return np.array([corners]), np.ones(1), np.array([track_id])


def test_the_box_is_drawn_around_the_object_in_the_colour_of_its_id() -> None:
    frame = grey()
    image = draw_slots(frame, *one(10, 20, 18, 30))
    assert image.shape == frame.shape
    assert (frame == 90).all()
    rim = {tuple(image[19, 12]), tuple(image[30, 12]), tuple(image[25, 9]), tuple(image[25, 18])}
    assert rim == {track_colour(7)}
    np.testing.assert_array_equal(image[20:30, 10:18], frame[20:30, 10:18])


@pytest.mark.parametrize("top", [0, 1, 25, 49])
@pytest.mark.parametrize("scale", [1, 2, 5])
def test_labels_leave_the_object_free(top: int, scale: int) -> None:
    frame = grey()
    alone = draw_slots(frame, *one(12, top, 20, top + 10, track_id=-1), scale)
    image = draw_slots(frame, *one(12, top, 20, top + 10, track_id=128), scale)
    assert image.shape == (60 * scale, 40 * scale, 3)
    inside = np.s_[(top + 1) * scale : (top + 9) * scale, 12 * scale : 20 * scale]
    assert (image[inside] == 90).all()
    ink = np.all(image == track_colour(128), axis=-1).sum()
    assert ink > np.all(alone == track_colour(-1), axis=-1).sum()  # the digits are there


def test_absent_slots_are_not_drawn_and_ids_tell_colours_apart() -> None:
    box, _, ids = one(10, 20, 18, 30)
    np.testing.assert_array_equal(draw_slots(grey(), box, np.zeros(1), ids), grey())
    colours = np.array([track_colour(number) for number in range(40)])
    assert len(np.unique(colours, axis=0)) == 40
    assert np.abs(np.diff(colours, axis=0)).max(axis=1).min() > 60
    assert track_colour(-1) == (255, 255, 255)


def test_boxes_beyond_the_frame_are_drawn_at_its_edge() -> None:
    image = draw_slots(grey(), *one(-5, -5, 500, 500))
    assert tuple(image[30, 0]) == tuple(image[30, -1]) == track_colour(7)


def test_draw_slots_refuses_what_does_not_belong_together() -> None:
    with pytest.raises(ValueError, match=r"got \(1, 4\), \(2,\) and \(1,\)"):
        draw_slots(grey(), np.zeros((1, 4)), np.ones(2), np.zeros(1, np.int64))
    with pytest.raises(ValueError, match=r"expected an RGB image .* got \(60, 40\) uint8"):
        draw_slots(grey()[..., 0], *one(0, 0, 1, 1))
    with pytest.raises(ValueError, match="expected scale >= 1, got 0"):
        draw_slots(grey(), *one(0, 0, 1, 1), 0)


def some_slots(batch: int) -> Slots:
    slots = Slots.empty(batch, 3, 2)
    slots.presence[:, 0] = 1
    slots.scale[:, 0] = 0.25
    slots.track_id[:, 0] = 4
    return slots


def test_contact_sheet_shows_the_frames_and_their_parts() -> None:
    frames = np.stack([grey(value=40), grey(value=200)])
    parts = torch.zeros(2, 3, 16, 16)
    decomposition = Decomposition(parts, parts, parts + 1, parts + 0.5, parts[:, :1])
    plain = contact_sheet(frames, some_slots(2), tile_width=80)
    whole = contact_sheet(frames, some_slots(2), decomposition, tile_width=80)
    titled = contact_sheet(frames, some_slots(2), None, ["a", "b"], {"truth": list(frames)}, 80)
    assert plain.shape[1] < titled.shape[1] < whole.shape[1]  # two, three and five columns
    assert titled.shape[0] > plain.shape[0]
    for value in (40, 200):  # both inputs, twice as large
        assert (plain == value).all(-1).sum() >= 2 * 120 * 80 - 800
    for colour in (255, 128, 0):  # foreground, background, alpha
        assert (whole == colour).all(-1).sum() >= 2 * 120 * 80
    with pytest.raises(ValueError, match="of 2 frames, got slots of 1 and None titles"):
        contact_sheet(frames, some_slots(1))
    with pytest.raises(ValueError, match=r"expected 1 images in every column, got \{'b': 2\}"):
        sheet({"a": [grey()], "b": [grey(), grey()]}, 60, 40)


def test_png_comes_back_as_it_was(tmp_path: Path) -> None:
    image = np.random.default_rng(0).integers(0, 256, (12, 9, 3), dtype=np.uint8)
    write_png(tmp_path / "a.png", image)
    read = cv2.imread(str(tmp_path / "a.png"))
    assert read is not None
    np.testing.assert_array_equal(read[..., ::-1], image)
    assert [file.name for file in tmp_path.iterdir()] == ["a.png"]


def test_video_comes_back_with_its_frames_and_colours(tmp_path: Path) -> None:
    red = np.zeros((210, 160, 3), np.uint8)
    red[..., 0] = 255
    assert write_video(tmp_path / "a.mp4", (red for _ in range(7)), fps=15) == 7
    video = cv2.VideoCapture(str(tmp_path / "a.mp4"))
    assert video.get(cv2.CAP_PROP_FRAME_COUNT) == 7
    assert video.get(cv2.CAP_PROP_FPS) == pytest.approx(15)
    good, first = video.read()
    assert good
    assert first.shape == red.shape
    assert np.abs(first[..., ::-1].astype(int) - red).mean() < 12


def test_a_video_that_fails_leaves_the_old_file_alone(tmp_path: Path) -> None:
    path = tmp_path / "a.mp4"
    path.write_bytes(b"old")

    def breaks() -> Iterator[Image]:
        yield grey()
        raise RuntimeError("the environment died")

    with pytest.raises(RuntimeError, match="died"):
        write_video(path, breaks(), 30)
    with pytest.raises(ValueError, match=r"every frame to be \(60, 40, 3\), got .* for frame 1"):
        write_video(path, [grey(), grey(50)], 30)
    with pytest.raises(ValueError, match="at least one frame"):
        write_video(path, [], 30)
    with pytest.raises(ValueError, match=r"ends in \.mp4, got 'a\.avi'"):
        write_video(tmp_path / "a.avi", [grey()], 30)
    assert path.read_bytes() == b"old"
    assert [file.name for file in tmp_path.iterdir()] == ["a.mp4"]


@pytest.fixture
def small_disk() -> Iterator[None]:
    """No file may grow beyond 200 kB, which fails as a full disk does."""
    resource = pytest.importorskip("resource")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, hard))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.usefixtures("small_disk")
def test_a_full_disk_is_noticed_and_nothing_is_left(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    noise = rng.integers(0, 256, (20, 210, 160, 3), dtype=np.uint8)
    with pytest.raises(OSError, match="of 20 frames could be written; is the disk full"):
        write_video(tmp_path / "a.mp4", noise, 30)
    with pytest.raises(OSError, match="too large"):
        write_png(tmp_path / "a.png", noise.reshape(-1, 160, 3))
    assert not list(tmp_path.iterdir())
