"""Videos and folders of pictures: the right frames in the right order, and plain errors."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
import pytest

from objrl.pretrain.store import FrameStore
from objrl.pretrain.video import VideoConfig, import_video

Frames = npt.NDArray[np.uint8]
COUNT, HEIGHT, WIDTH = 12, 32, 48


@pytest.fixture(scope="module")
def frames() -> Frames:
    """A red square that goes right over blue, frame after frame brighter."""
    made = np.zeros((COUNT, HEIGHT, WIDTH, 3), dtype=np.uint8)
    for number, frame in enumerate(made):
        frame[..., 2] = 60 + 10 * number
        frame[8:24, 2 * number : 2 * number + 16] = 220, 20, 20
    return made


@pytest.fixture
def folder(frames: Frames, tmp_path: Path) -> Path:
    """As 0.png to 11.png, beside what is no picture."""
    path = tmp_path / "station"
    path.mkdir()
    for number, frame in enumerate(frames):
        write(path / f"{number}.png", frame)
    (path / "readme.txt").write_text("pictures")
    (path / "._0.png").write_bytes(b"what macOS leaves")
    return path


def write(path: Path, frame: Frames) -> None:
    assert cv2.imwrite(str(path), cv2.cvtColor(frame, cv2.COLOR_RGB2BGR))


def encode(path: Path, frames: Frames, codec: str) -> Path:
    writer = cv2.VideoWriter(
        str(path), cv2.VideoWriter.fourcc(*codec), 25, frames.shape[2:0:-1], isColor=True
    )
    if not writer.isOpened():
        pytest.skip(f"OpenCV cannot write {codec} here")
    for frame in frames:
        writer.write(cv2.cvtColor(frame, cv2.COLOR_RGB2BGR))
    writer.release()
    return path


def stored(path: Path) -> tuple[Frames, dict[str, list[Any]]]:
    with FrameStore(path) as store:
        assert store.complete
        columns = {name: column.tolist() for name, column in store.columns.items()}
        return store.frames(range(len(store))), columns


@pytest.mark.parametrize(("name", "codec"), [("a.mp4", "mp4v"), ("a.avi", "MJPG")])
def test_a_video_comes_back(tmp_path: Path, frames: Frames, name: str, codec: str) -> None:
    source = encode(tmp_path / name, frames, codec)
    path = import_video(VideoConfig(source, out=tmp_path / "out.h5"))
    found, columns = stored(path)
    assert found.shape == frames.shape
    assert abs(found.astype(int) - frames).mean() < 6  # the codecs lose some, and red is red
    assert columns["episode"] == [0] * COUNT
    assert columns["step"] == [*range(COUNT)]
    assert not any(columns["truncated"])
    part = import_video(VideoConfig(source, out=tmp_path / "part.h5", begin=2, end=11, every=3))
    np.testing.assert_array_equal(stored(part)[0], found[2:11:3])


def test_pictures_come_in_natural_order(
    tmp_path: Path, folder: Path, frames: Frames, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    path = import_video(VideoConfig(folder))
    assert path == Path("runs", "station.h5")
    np.testing.assert_array_equal(stored(path)[0], frames)
    with FrameStore(path) as store:
        assert store.env_id == "video-station"
        assert [len(store.split(name)) for name in ("train", "val", "test")] == [10, 1, 1]


def test_episodes_of_a_length(tmp_path: Path, folder: Path, frames: Frames) -> None:
    config = VideoConfig(folder, out=tmp_path / "out.h5", length=5)
    found, columns = stored(import_video(config))
    np.testing.assert_array_equal(found, frames)
    assert columns["episode"] == [0] * 5 + [1] * 5 + [2] * 2
    assert columns["step"] == [*range(5), *range(5), 0, 1]
    assert np.flatnonzero(columns["truncated"]).tolist() == [4, 9]


def test_parts_of_the_picture_are_videos_of_their_own(
    tmp_path: Path, folder: Path, frames: Frames
) -> None:
    crops = (0, 0, 16, 16), (16, 8, 16, 16)
    config = VideoConfig(folder, out=tmp_path / "out.h5", crops=crops, length=6, every=2)
    found, columns = stored(import_video(config))
    np.testing.assert_array_equal(found[0::2], frames[::2, 0:16, 0:16])
    np.testing.assert_array_equal(found[1::2], frames[::2, 8:24, 16:32])
    assert columns["stream"] == [0, 1] * 6
    assert columns["episode"] == [0, 1] * 6
    shorter = replace(config, length=3, out=tmp_path / "more.h5")
    assert stored(import_video(shorter))[1]["episode"] == [0, 1] * 3 + [2, 3] * 3
    with FrameStore(tmp_path / "more.h5") as store:
        windows = store.windows(3, "train")
        assert len(windows) == 2  # of the four; the others are held out
        assert (np.diff(windows, axis=1) == 2).all()  # each is of one part alone


def test_frames_are_resized(tmp_path: Path, folder: Path, frames: Frames) -> None:
    config = VideoConfig(folder, out=tmp_path / "out.h5", size=(16, 24))
    found, _ = stored(import_video(config))
    average = frames.reshape(COUNT, 16, 2, 24, 2, 3).mean(axis=(2, 4))
    assert abs(found - average).max() <= 1
    larger = stored(import_video(replace(config, size=(40, 40), out=tmp_path / "larger.h5")))[0]
    assert larger.shape == (COUNT, 40, 40, 3)


@pytest.mark.parametrize("kind", ["folder", "video"])
def test_a_stopped_run_ends_as_one_that_was_not(
    tmp_path: Path, folder: Path, frames: Frames, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = folder if kind == "folder" else encode(tmp_path / "a.avi", frames, "MJPG")
    crops = (0, 0, 16, 16), (16, 8, 16, 16)
    config = VideoConfig(source, out=tmp_path / "some.h5", begin=1, every=2, length=4, crops=crops)
    whole = stored(import_video(replace(config, out=tmp_path / "whole.h5")))
    convert, left = cv2.cvtColor, iter([True] * 4)  # one to look at, and three to keep

    def stop(*arguments: Any) -> Any:
        if not next(left, False):
            raise KeyboardInterrupt
        return convert(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(cv2, "cvtColor", stop)
        with pytest.raises(KeyboardInterrupt):
            import_video(config)
    with FrameStore(tmp_path / "some.h5") as store:
        assert (len(store), store.complete) == (6, False)
    again = stored(import_video(config))
    np.testing.assert_array_equal(again[0], whole[0])
    assert again[1] == whole[1]


def test_a_later_end_goes_on(tmp_path: Path, folder: Path, frames: Frames) -> None:
    config = VideoConfig(folder, out=tmp_path / "out.h5", end=5)
    np.testing.assert_array_equal(stored(import_video(config))[0], frames[:5])
    np.testing.assert_array_equal(stored(import_video(replace(config, end=None)))[0], frames)


def test_a_video_that_is_cut_short(
    tmp_path: Path, frames: Frames, capsys: pytest.CaptureFixture[str]
) -> None:
    source = encode(tmp_path / "a.avi", frames, "MJPG")
    data = source.read_bytes()
    source.write_bytes(data[: len(data) * 4 // 5])
    path = import_video(VideoConfig(source, out=tmp_path / "out.h5"))
    with FrameStore(path) as store:
        assert 0 < len(store) < COUNT
        assert not store.complete
        told = f"of {COUNT} frames that it tells of, {len(store)} could be read\n"
    assert told in capsys.readouterr().out
    source = encode(tmp_path / "a.mp4", frames, "mp4v")  # which has its table at the end
    source.write_bytes(source.read_bytes()[:-200])
    with pytest.raises(ValueError, match=r"a\.mp4: expected a (video|frame of number 0)"):
        import_video(VideoConfig(source, out=tmp_path / "other.h5"))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"every": 0}, "every: expected at least 1, got 0"),
        ({"begin": -1}, "begin: expected at least 0"),
        ({"seed": -1}, "seed: expected at least 0"),
        ({"length": 0}, "length: expected at least 1"),
        ({"begin": 4, "end": 4}, r"end: expected more than begin \(4\), got 4"),
        ({"size": (0, 4)}, "size: expected a height and a width of at least 1"),
        ({"begin": 99}, "expected a frame of number 99, got none that can be read; it tells of 12"),
        ({"crops": ((40, 0, 16, 16),)}, r"crops: .* within frames of 48 x 32 .* got 40 0 16 16"),
        ({"crops": ((0, 0, 16, 16), (0, 0, 8, 8))}, "crops: expected parts of one size"),
    ],
)
def test_bad_settings(tmp_path: Path, folder: Path, change: dict[str, Any], message: str) -> None:
    out = tmp_path / "out.h5"
    with pytest.raises(ValueError, match=message):
        import_video(replace(VideoConfig(folder, out=out), **change))
    assert not out.exists()


def test_sources_that_cannot_be_read(tmp_path: Path, folder: Path, frames: Frames) -> None:
    out = tmp_path / "out.h5"
    with pytest.raises(FileNotFoundError, match="there is no such video or folder"):
        import_video(VideoConfig(tmp_path / "gone.mp4", out=out))
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(ValueError, match=r"expected pictures that end in \.png, .*, got none"):
        import_video(VideoConfig(empty, out=out))
    with pytest.raises(ValueError, match="got one picture"):
        import_video(VideoConfig(folder / "3.png", out=out))
    text = tmp_path / "text.mp4"
    text.write_text("no video")
    with pytest.raises(ValueError, match=r"text\.mp4: expected a video that OpenCV reads"):
        import_video(VideoConfig(text, out=out))
    assert not out.exists()
    (folder / "4.png").write_bytes((folder / "4.png").read_bytes()[:40])
    with pytest.raises(ValueError, match=r"4\.png: expected a picture"):
        import_video(VideoConfig(folder, out=out))


def test_pictures_of_different_sizes(tmp_path: Path, folder: Path, frames: Frames) -> None:
    write(folder / "7.png", frames[7, :20, :20])
    config = VideoConfig(folder, out=tmp_path / "out.h5")
    with pytest.raises(ValueError, match=r"7\.png: expected 48 x 32 .* got 20 x 20; .* --size"):
        import_video(config)
    resized = replace(config, out=tmp_path / "resized.h5", size=(16, 16))
    assert stored(import_video(resized))[0].shape == (COUNT, 16, 16, 3)


@pytest.mark.parametrize("change", [{"every": 2}, {"begin": 1}, {"length": 4}, {"seed": 1}])
def test_files_of_another_run_stay(tmp_path: Path, folder: Path, change: dict[str, Any]) -> None:
    config = VideoConfig(folder, out=tmp_path / "out.h5")
    before = import_video(config).read_bytes()
    with pytest.raises(ValueError, match="nothing was changed: choose another"):
        import_video(replace(config, **change))
    assert (tmp_path / "out.h5").read_bytes() == before
