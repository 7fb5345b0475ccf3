"""The frame store: what goes in comes out, whatever happens to its writer."""

from __future__ import annotations

import hashlib
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import numpy.typing as npt
import pytest

from objrl.pretrain.store import SPLITS, FrameStore, FrameWriter

SHAPE = (12, 10, 3)
ATTRIBUTES: dict[str, str | int | float] = {"env_id": "Toy-v0", "policy": "random", "seed": 3}
Rows = dict[str, npt.NDArray[Any]]


def make_rows(first: int, count: int, *, streams: int = 2, length: int = 7) -> Rows:
    """Rows `first`.. of `streams` environments with episodes of `length`; frames tell their row."""
    row = np.arange(first, first + count)
    time, stream = np.divmod(row, streams)
    lap, step = np.divmod(time, length)
    frames = np.random.default_rng(first).integers(0, 256, (count, *SHAPE), dtype=np.uint8)
    frames[:, 0, 0, :2] = np.stack([row // 256, row % 256], axis=1)
    return {
        "frames": frames,
        "action": row % 4,
        "reward": row / 2,
        "terminated": step == length - 1,
        "truncated": np.zeros(count, dtype=bool),
        "episode": lap * streams + stream,
        "stream": stream,
        "step": step,
    }


def writer(path: Path, **changes: Any) -> FrameWriter:
    settings: dict[str, Any] = {
        "frame_shape": SHAPE,
        "action_shape": (),
        "action_dtype": np.int64,
        "attributes": ATTRIBUTES,
        "asked": 100,
    }
    return FrameWriter(path, **(settings | changes))


def fill(path: Path, count: int, **changes: int) -> Path:
    with writer(path) as store:
        store.append(**make_rows(0, count, **changes))
    return path


def row_of(frames: npt.NDArray[np.uint8]) -> list[int]:
    """Which rows these frames were made for."""
    return [int(high) * 256 + int(low) for high, low in frames[:, 0, 0, :2]]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "runs" / "toy.h5"


def test_what_goes_in_comes_out_in_the_order_asked(path: Path) -> None:
    rows = make_rows(0, 70)
    with writer(path, versions={"ale_version": "1"}) as store:
        for start in range(0, 70, 10):
            store.append(**{name: column[start : start + 10] for name, column in rows.items()})
    with FrameStore(path) as found:
        assert (len(found), found.frame_shape, found.env_id) == (70, SHAPE, "Toy-v0")
        assert not found.complete  # 100 were asked for
        assert found.attributes["ale_version"] == "1"
        asked = [5, 69, 0, 5]
        np.testing.assert_array_equal(found.frames(asked), rows["frames"][asked])
        assert found.frames([]).shape == (0, *SHAPE)
        for name, column in found.columns.items():
            np.testing.assert_array_equal(column, rows[name])


def test_an_array_may_be_used_again_and_lie_in_any_order(path: Path) -> None:
    rows = make_rows(0, 20)
    wanted = rows["frames"].copy()
    rows["frames"] = np.asfortranarray(wanted)
    with writer(path) as store:
        store.append(**rows)
        rows["frames"][:] = 0
    with FrameStore(path) as found:
        np.testing.assert_array_equal(found.frames(range(20)), wanted)


def test_any_hdf5_reader_can_read_a_finished_file(path: Path) -> None:
    fill(path, 20)
    with h5py.File(path, "r") as file:
        np.testing.assert_array_equal(file["frames"][:], make_rows(0, 20)["frames"])


@pytest.mark.parametrize("indices", [[-1], [20], [0, 3, 99]])
def test_frames_out_of_range(path: Path, indices: list[int]) -> None:
    with (
        FrameStore(fill(path, 20)) as store,
        pytest.raises(IndexError, match=r"expected frame numbers in 0\.\.19"),
    ):
        store.frames(indices)


def test_fingerprint_is_that_of_the_file(path: Path) -> None:
    with FrameStore(fill(path, 20)) as store:
        assert store.fingerprint() == {
            "env_id": "Toy-v0",
            "frames": 20,
            "policy": "random",
            "seed": 3,
            "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
        }


def test_splits_are_of_whole_episodes_eight_one_one(path: Path) -> None:
    with FrameStore(fill(path, 7 * 40)) as store:
        parts = {name: store.split(name) for name in SPLITS}
        episodes = {name: set(store.columns["episode"][rows]) for name, rows in parts.items()}
    assert sorted(np.concatenate(list(parts.values()))) == list(range(280))
    assert {name: len(held) for name, held in episodes.items()} == {
        "train": 32,
        "val": 4,
        "test": 4,
    }
    assert set.union(*episodes.values()) == set(range(40))


def test_splits_stay_when_the_file_grows(path: Path) -> None:
    fill(path, 7 * 14)
    with FrameStore(path) as store:
        before = {name: store.split(name) for name in SPLITS}
    with writer(path) as more:
        more.append(**make_rows(7 * 14, 7 * 30))
    with FrameStore(path) as store:
        for name in SPLITS:
            after = store.split(name)
            np.testing.assert_array_equal(after[after < 7 * 14], before[name])


@pytest.mark.parametrize(("streams", "count"), [(1, 7), (2, 14), (3, 6), (5, 5)])
def test_no_split_is_empty_however_few_the_episodes(path: Path, streams: int, count: int) -> None:
    with FrameStore(fill(path, count, streams=streams)) as store:
        parts = [store.split(name) for name in SPLITS]
    assert all(len(rows) for rows in parts)
    assert sorted(np.concatenate(parts)) == list(range(count))


def test_two_episodes_are_cut_by_time(path: Path) -> None:
    with FrameStore(fill(path, 40, streams=2, length=20)) as store:
        parts = {name: store.split(name).tolist() for name in SPLITS}
    assert parts == {
        "train": list(range(32)),
        "val": list(range(32, 36)),
        "test": list(range(36, 40)),
    }


def test_an_unknown_split(path: Path) -> None:
    with (
        FrameStore(fill(path, 20)) as store,
        pytest.raises(ValueError, match="expected one of train, val, test, got 'valid'"),
    ):
        store.split("valid")


@pytest.mark.parametrize("length", [1, 3, 7, 8])
def test_windows_are_all_runs_within_an_episode(path: Path, length: int) -> None:
    with FrameStore(fill(path, 7 * 30, streams=3)) as store:
        windows = store.windows(length, "train")
        train = set(store.split("train").tolist())
        episode, step = store.columns["episode"], store.columns["step"]
    assert windows.shape[1:] == (length,)
    assert windows.dtype == np.int64
    # With three streams side by side the next frame of the same one is three rows on.
    starts = [row for row in train if step[row] + length <= 7]
    wanted = {tuple(row + 3 * np.arange(length)) for row in starts}
    assert {tuple(window) for window in windows} == wanted
    assert all(len(set(episode[window])) == 1 for window in windows)


def test_a_file_goes_on_where_it_was(path: Path) -> None:
    fill(path, 30)
    with writer(path, asked=50) as store:
        assert len(store) == 30
        assert store.next_episode == make_rows(0, 30)["episode"].max() + 1
        store.append(**make_rows(30, 20))
    with FrameStore(path) as found:
        assert found.complete
        assert row_of(found.frames(range(50))) == list(range(50))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"attributes": ATTRIBUTES | {"env_id": "Other-v0"}}, "env_id = 'Other-v0'.*'Toy-v0'"),
        ({"attributes": ATTRIBUTES | {"seed": 4}}, "seed = 4.*got one with 3"),
        ({"frame_shape": (8, 8, 3)}, r"frames of shape \(8, 8, 3\)"),
        ({"action_shape": (2,), "action_dtype": np.float32}, "action of shape"),
    ],
)
def test_the_file_of_another_run_is_left_alone(
    path: Path, changes: dict[str, Any], message: str
) -> None:
    before = fill(path, 30).read_bytes()
    with pytest.raises(ValueError, match=message):
        writer(path, **changes)
    assert path.read_bytes() == before


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda rows: rows.pop("step"), "expected the columns"),
        (lambda rows: rows.update(step=rows["step"][:3]), "expected 10 rows in every column"),
        (lambda rows: rows.update(frames=rows["frames"][:, :5]), "expected frames"),
        (lambda rows: rows.update(frames=rows["frames"] / 255), "expected frames.*got.*float"),
    ],
)
def test_rows_that_do_not_fit(path: Path, change: Any, message: str) -> None:
    rows = make_rows(0, 10)
    change(rows)
    with writer(path) as store, pytest.raises(ValueError, match=message):
        store.append(**rows)


def test_one_writer_at_a_time(path: Path) -> None:
    with writer(path) as store:
        store.append(**make_rows(0, 10))
        with pytest.raises(ValueError, match="is being written"):
            writer(path)
        store.append(**make_rows(10, 10))
    with FrameStore(path) as found:
        assert len(found) == 20


def test_labels_in_place_of_frames_are_not_called_damaged(tmp_path: Path) -> None:
    np.savez(tmp_path / "truth.npz", boxes=np.zeros((0, 6)))
    with pytest.raises(ValueError, match="that is for --truth"):
        FrameStore(tmp_path / "truth.npz")


def test_a_file_can_be_read_while_it_is_written(path: Path) -> None:
    with writer(path) as store:
        store.append(**make_rows(0, 10))
        store.commit()
        store.append(**make_rows(10, 10))
        with FrameStore(path) as found:
            assert row_of(found.frames(range(len(found)))) == list(range(10))


# --- what a process leaves that dies, or finds no room

_CHILD = """
import resource, sys
from pathlib import Path
from tests.test_store import make_rows, writer

limit = int(sys.argv[2])
if limit:
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
with writer(Path(sys.argv[1]), asked=10**6) as store:
    while True:
        store.append(**make_rows(len(store), 64))
        store.commit()
        print(len(store), flush=True)
"""


def start(path: Path, limit: int = 0) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", _CHILD, str(path), str(limit)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=Path(__file__).parents[1],
    )


@pytest.fixture
def killed(path: Path) -> tuple[Path, int]:
    """A store whose writer got SIGKILL in the middle of writing, and what it had committed."""
    child = start(path)
    assert child.stdout is not None
    for _ in range(20):
        child.stdout.readline()
    child.send_signal(signal.SIGKILL)
    said = child.communicate()[0].split()
    return path, int(said[-1]) if said else 20 * 64


def test_a_killed_writer_loses_nothing_that_was_committed(killed: tuple[Path, int]) -> None:
    path, committed = killed
    with pytest.raises(OSError, match="already open for write"):
        h5py.File(path, "r")  # so it was not closed; what follows is no matter of course
    with FrameStore(path) as store:
        held = len(store)
        assert held >= committed
        assert row_of(store.frames(range(held))) == list(range(held))
        np.testing.assert_array_equal(store.columns["step"], make_rows(0, held)["step"])
    with writer(path) as more:
        assert len(more) == held
        more.append(**make_rows(held, 64))
    with FrameStore(path) as store:
        assert row_of(store.frames(range(len(store)))) == list(range(held + 64))
    h5py.File(path, "r").close()
    assert [file.name for file in path.parent.iterdir()] == [path.name]


def test_a_full_disk_is_said_and_costs_nothing_that_was_there(path: Path) -> None:
    child = start(path, limit=2_500_000)
    said, complaint = child.communicate(timeout=60)
    committed = int(said.split()[-1])
    assert child.returncode == 1
    assert f"its first {committed} frames are safe: make room" in complaint.splitlines()[-1]
    with FrameStore(path) as store:
        assert row_of(store.frames(range(len(store)))) == list(range(committed))
    with writer(path) as more:
        more.append(**make_rows(committed, 64))
    with FrameStore(path) as store:
        assert row_of(store.frames(range(len(store)))) == list(range(committed + 64))


def test_no_room_even_for_an_empty_store(path: Path) -> None:
    child = start(path, limit=1000)
    complaint = child.communicate(timeout=60)[1]
    assert child.returncode == 1
    assert "could not write on (a file may not be larger here)" in complaint.splitlines()[-1]
    assert list(path.parent.iterdir()) == []


@pytest.mark.parametrize("share", [0.0001, 0.3, 0.9, 0.999])
def test_a_file_cut_short(path: Path, share: float) -> None:
    whole = fill(path, 60).read_bytes()
    path.write_bytes(whole[: int(len(whole) * share)])
    with pytest.raises(ValueError, match=r"toy\.h5: expected a whole HDF5 file.*collect anew"):
        FrameStore(path)
    with pytest.raises(ValueError, match=r"toy\.h5: expected a whole HDF5 file.*collect anew"):
        writer(path)


@pytest.mark.parametrize("share", [0.01, 0.5, 0.99])
def test_a_killed_file_cut_short(killed: tuple[Path, int], share: float) -> None:
    path, _ = killed
    whole = path.read_bytes().rstrip(b"\0")  # without the room that it had reserved
    path.write_bytes(whole[: int(len(whole) * share)])
    with pytest.raises(ValueError, match="expected a whole HDF5 file"):
        FrameStore(path)


def test_a_frame_with_a_flipped_byte(path: Path) -> None:
    fill(path, 60)
    with h5py.File(path, "r") as file:
        chunk = file["frames"].id.get_chunk_info(30)
    with path.open("r+b") as file:
        file.seek(chunk.byte_offset + chunk.size // 2)
        byte = file.read(1)[0]
        file.seek(-1, 1)
        file.write(bytes([byte ^ 1]))
    with FrameStore(path) as store:
        store.frames([29, 31])
        with pytest.raises(ValueError, match="cut short or damaged"):
            store.frames([30])


def test_no_file(path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"toy\.h5: no such file; .*collect --env GAME"):
        FrameStore(path)


def test_not_a_store(tmp_path: Path) -> None:
    text = tmp_path / "text.h5"
    text.write_text("frames")
    with pytest.raises(ValueError, match="expected a whole HDF5 file"):
        FrameStore(text)
    other = tmp_path / "other.h5"
    h5py.File(other, "w").close()
    with pytest.raises(ValueError, match="expected a frame store"):
        FrameStore(other)


def test_a_store_without_a_frame(path: Path) -> None:
    writer(path).close()
    with pytest.raises(ValueError, match="none is written yet"):
        FrameStore(path)
