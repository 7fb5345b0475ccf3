"""The frame store: one HDF5 file a run, written a block at a time and read a frame at a time.

- `FrameStore`: the read side; frames by index, splits by episode, windows of consecutive frames.
- `FrameWriter`: the write side; goes on where an earlier run stopped, however that stopped.

Inside the file, row n is one frame of one environment, in the order of time; the frames of several
environments are interleaved. A row tells what led *to* its frame:

| data set | shape, dtype | meaning |
|---|---|---|
| `frames` | (N, H, W, 3) uint8 | RGB; one frame a chunk, gzip level 1 |
| `action` | (N, ...) | taken to get here; 0 where the episode begins |
| `reward` | (N,) float32 | received on getting here; 0 where the episode begins |
| `terminated`, `truncated` | (N,) bool | whether the episode ends with this frame |
| `episode` | (N,) int64 | 0, 1, 2, ... over the whole file |
| `stream` | (N,) int64 | which of the environments side by side |
| `step` | (N,) int64 | frames of the episode before this one |
| `progress` | (2,) int64 | frames written, frames asked for |

An episode whose recording stopped before it did has neither flag set on its last frame.

**What a killed process leaves.** The file is open in HDF5's single-writer mode, in which nothing
that is already on disk is ever in a state that a reader cannot follow, and `progress` grows only
after the rows that it counts are out. So a process killed at any moment loses what it had not yet
committed (`BLOCK` rows or `SECONDS` at most), and nothing else. The rows are with the operating
system then, not necessarily on the platter: a power cut may cost more.

Letters: N frames, H W pixels, M windows.
"""

from __future__ import annotations

import hashlib
import time
import zlib
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from objrl.pretrain import hdf5

BLOCK = 512
"""Rows that are committed together."""
SECONDS = 2.0
"""Longest that a row waits to be committed while others keep coming."""
SPLITS = ("train", "val", "test")
COLUMNS: dict[str, type[np.generic]] = {
    "reward": np.float32,
    "terminated": np.bool_,
    "truncated": np.bool_,
    "episode": np.int64,
    "stream": np.int64,
    "step": np.int64,
}
"""Data sets of one number a frame; `action`, whose shape the environment decides, comes on top."""


class EmptyStoreError(ValueError):
    """A store whose writer was stopped before it had written a frame."""


class FrameStore:
    """The frames of one run, read only; also while `objrl collect` is still writing them.

    Attributes:
        path: the file.
        attributes: what the writer was told about the run, plain values.
        columns: `action`, `reward`, ... as arrays of N rows; see the module's table.
        frame_shape: (H, W, 3).
        complete: whether as many frames are here as were asked for.

    Example:
        >>> with FrameStore("runs/pong.h5") as store:  # doctest: +SKIP
        ...     batch = store.frames(store.split("train")[:32])  # (32, 210, 160, 3) uint8
    """

    def __init__(self, path: str | Path) -> None:
        """Open a store.

        Raises:
            FileNotFoundError: there is no such file.
            ValueError: not a frame store, cut short, damaged, or without a frame.
        """
        self.path = Path(path)
        self._file = hdf5.open_to_read(self.path)
        try:
            # First of all: what is looked at later is then at least as new, while a writer goes on.
            self._length, asked = (int(number) for number in self._file["progress"])
            self.attributes: dict[str, Any] = hdf5.attributes(self._file)
            self.frame_shape: tuple[int, int, int] = tuple(self._file["frames"].shape[1:])
            self.complete: bool = self._length >= asked
            if not self._length:
                raise EmptyStoreError(
                    f"{self.path}: expected frames, got a store in which none is written yet; "
                    "run the `objrl collect` that began it again"
                )
            self.columns: dict[str, npt.NDArray[Any]] = {
                name: self._file[name][: self._length] for name in ("action", *COLUMNS)
            }
            self.frames([self._length - 1])  # the last to be written is the first to be cut off
        except EmptyStoreError:
            self.close()
            raise
        except (OSError, KeyError) as problem:
            self.close()
            raise hdf5.damaged(self.path, problem) from problem
        except ValueError:
            self.close()
            raise

    def __len__(self) -> int:
        return self._length

    @property
    def env_id(self) -> str:
        """The environment's id, e.g. `ALE/Pong-v5`."""
        return str(self.attributes["env_id"])

    def frames(self, indices: npt.ArrayLike) -> npt.NDArray[np.uint8]:
        """Return (n, H, W, 3) uint8 RGB frames in the order asked; an index may come twice.

        Raises:
            IndexError: an index that is not in 0..N-1.
            ValueError: the file has been cut short.
        """
        rows = np.asarray(indices, dtype=np.int64).reshape(-1)
        if rows.size and not 0 <= rows.min() <= rows.max() < self._length:
            raise IndexError(
                f"{self.path}: expected frame numbers in 0..{self._length - 1}, "
                f"got {rows.min()}..{rows.max()}"
            )
        out = np.empty((len(rows), *self.frame_shape), dtype=np.uint8)
        chunks = self._file["frames"].id
        try:
            # Fetching the compressed chunk is a quarter quicker than `dataset[row]`.
            for frame, row in zip(out, rows, strict=True):
                _, packed = chunks.read_direct_chunk((int(row), 0, 0, 0))
                frame.reshape(-1)[:] = np.frombuffer(zlib.decompress(packed), dtype=np.uint8)
        except (OSError, MemoryError, ValueError, zlib.error) as problem:
            raise hdf5.damaged(self.path, problem) from problem
        return out

    def split(self, name: str) -> npt.NDArray[np.int64]:
        """Return the rising frame numbers of `train`, `val` or `test` (eight, one, one tenth).

        Whole episodes go to one split: of every ten in a row, eight, one and one, drawn with the
        file's seed; val and test get theirs among the first three. An episode never changes its
        split when the file grows beyond three. A file of fewer than three episodes is cut by time:
        its last tenth is test, the tenth before is val.
        """
        if name not in SPLITS:
            raise ValueError(f"split: expected one of {', '.join(SPLITS)}, got {name!r}")
        wanted = SPLITS.index(name)
        episode = self.columns["episode"]
        count = int(episode.max()) + 1
        if count < 3:
            held = min(max(1, self._length // 10), (self._length - 1) // 2)
            ends = [0, self._length - 2 * held, self._length - held, self._length]
            return np.arange(ends[wanted], ends[wanted + 1], dtype=np.int64)
        labels = _split_of_episodes(count, int(self.attributes["seed"]))
        return np.flatnonzero(labels[episode] == wanted).astype(np.int64)

    def windows(self, length: int, split: str) -> npt.NDArray[np.int64]:
        """Return (M, length) frame numbers: all runs of consecutive frames within one episode."""
        if length < 1:
            raise ValueError(f"windows: expected a length of at least 1, got {length}")
        rows = self.split(split)
        rows = rows[np.lexsort((rows, self.columns["episode"][rows]))]
        episode, step = self.columns["episode"][rows], self.columns["step"][rows]
        breaks = (np.diff(episode) != 0) | (np.diff(step) != 1)
        run = np.concatenate([[0], np.cumsum(breaks)])[: len(rows)]
        starts = np.flatnonzero(run[length - 1 :] == run[: max(len(run) - length + 1, 0)])
        found: npt.NDArray[np.int64] = rows[starts[:, None] + np.arange(length)]
        return found

    def fingerprint(self) -> dict[str, str | int]:
        """Return what tells these data from others, plain values for a file's header."""
        # Not everything that frames come from has emulator frames.
        known = {k: int(self.attributes[k]) for k in ("last_two",) if k in self.attributes}
        return {
            "env_id": self.env_id,
            "frames": len(self),
            "policy": str(self.attributes["policy"]),
            **known,
            "seed": int(self.attributes["seed"]),
            "sha256": self._sha256,
        }

    @cached_property
    def _sha256(self) -> str:
        with self.path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()

    def close(self) -> None:
        """Close the file; nothing can be read afterwards."""
        self._file.close()

    def __enter__(self) -> FrameStore:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class FrameWriter:
    """The write side of a store: makes the file, or goes on with the one that is there.

    Rows are buffered and committed in blocks; leaving the `with` commits the rest, also on an
    error or Ctrl-C.
    """

    def __init__(
        self,
        path: str | Path,
        *,
        frame_shape: tuple[int, ...],
        action_shape: tuple[int, ...],
        action_dtype: npt.DTypeLike,
        attributes: Mapping[str, str | int | float],
        asked: int,
        versions: Mapping[str, str] | None = None,
    ) -> None:
        """Open a store for writing.

        Args:
            path: the file; its folder is made when there is none.
            frame_shape: (H, W, 3).
            action_shape: shape of one environment's action, () for a number.
            action_dtype: dtype of an action.
            attributes: what identifies the run, `env_id`, `policy` and `seed` among it. A file that
                is there already must say the same.
            asked: frames that the run is to have in the end.
            versions: noted in a new file, not compared with an old one.

        Raises:
            ValueError: the file there holds another run, is damaged, or is being written.
            OSError: the disk is full, or the file may not be written.
        """
        self.path = Path(path)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        layout = {
            "frames": (tuple(frame_shape), np.dtype(np.uint8)),
            "action": (tuple(action_shape), np.dtype(action_dtype)),
            **{name: ((), np.dtype(dtype)) for name, dtype in COLUMNS.items()},
        }
        if self.path.exists():
            _check_same(self.path, layout, attributes)
        else:
            hdf5.create(self.path, layout, {**attributes, **(versions or {})})
        self._file, self._lock = hdf5.open_to_write(self.path)
        self._file["progress"][1] = asked
        self._layout = layout
        self._committed = int(self._file["progress"][0])
        self.next_episode: int = 1 + int(self._file["episode"][: self._committed].max(initial=-1))
        """The first episode number that is still free."""
        self._buffer: list[dict[str, npt.NDArray[Any]]] = []
        self._frames: list[Future[bytes]] = []
        self._pool = ThreadPoolExecutor(2)
        self._last_commit = time.monotonic()

    def __len__(self) -> int:
        return self._committed + len(self._frames)

    def append(self, **columns: npt.NDArray[Any]) -> None:
        """Add rows: one array per data set of the module's table, all of the same length."""
        if set(columns) != set(self._layout):
            raise ValueError(
                f"append: expected the columns {sorted(self._layout)}, got {sorted(columns)}"
            )
        frames = columns.pop("frames")
        if frames.dtype != np.uint8 or frames.shape[1:] != self._layout["frames"][0]:
            raise ValueError(
                f"append: expected frames (n, *{self._layout['frames'][0]}) uint8, "
                f"got {frames.shape} {frames.dtype}"
            )
        lengths = {name: len(column) for name, column in columns.items()}
        if set(lengths.values()) != {len(frames)}:
            raise ValueError(f"append: expected {len(frames)} rows in every column, got {lengths}")
        self._buffer.append({name: np.array(column) for name, column in columns.items()})
        # Compressing releases Python's lock, so it goes on while the emulator makes new frames;
        # of a copy, because the caller may use its array again.
        copies = np.array(frames, order="C")
        self._frames += [self._pool.submit(zlib.compress, frame, hdf5.LEVEL) for frame in copies]
        self.next_episode = max(self.next_episode, 1 + int(columns["episode"].max(initial=-1)))
        if len(self._frames) >= BLOCK or time.monotonic() - self._last_commit > SECONDS:
            self.commit()

    def append_still(self, frame: npt.NDArray[np.uint8], number: int) -> None:
        """Add a frame that is an episode of its own, with nothing before or after it."""
        one = {name: np.zeros((1, *shape), kind) for name, (shape, kind) in self._layout.items()}
        one |= {"frames": frame[None], "terminated": np.ones(1, np.bool_)}
        self.append(**one | {"episode": np.full(1, number)})

    def commit(self) -> None:
        """Bring the buffered rows to the file, then count them."""
        if not self._buffer:
            return
        columns = {
            name: np.concatenate([rows[name] for rows in self._buffer])
            for name in ("action", *COLUMNS)
        }
        frames = [frame.result() for frame in self._frames]
        try:
            hdf5.write_rows(self.path, self._file, columns, frames)
        except OSError:
            self._buffer, self._frames = [], []  # else `close` would try again, in vain
            raise
        self._committed += len(frames)
        self._buffer, self._frames = [], []
        self._last_commit = time.monotonic()

    def close(self) -> None:
        """Commit what is buffered and close the file."""
        try:
            self.commit()
        finally:
            self._pool.shutdown()
            hdf5.close_written(self.path, self._file)
            self._lock.close()

    def __enter__(self) -> FrameWriter:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _split_of_episodes(count: int, seed: int) -> npt.NDArray[np.int64]:
    """(count,) which of `SPLITS` each episode is in; a longer file begins with the same answers."""
    train, val, test = range(3)
    tens = []
    for block in range(-(-count // 10)):
        rng = np.random.default_rng([seed, block])
        if block:
            tens.append(rng.permutation([val, test] + [train] * 8))
        else:  # so that three episodes are enough for three splits
            tens.append(np.array([*rng.permutation([train, val, test]), *[train] * 7]))
    return np.concatenate(tens)[:count]


def _check_same(path: Path, layout: hdf5.Layout, wanted: Mapping[str, str | int | float]) -> None:
    """Refuse to go on with a file that holds another run."""
    with hdf5.open_to_read(path) as file:
        found = hdf5.attributes(file)
        for name, value in wanted.items():
            if found.get(name) != value:
                raise ValueError(
                    f"{path}: expected a file with {name} = {value!r} to go on with, got one with "
                    f"{found.get(name)!r}; nothing was changed: choose another file, or delete it"
                )
        for name, (shape, dtype) in layout.items():
            if name not in file or (file[name].shape[1:], file[name].dtype) != (shape, dtype):
                held = f"{file[name].shape[1:]} {file[name].dtype}" if name in file else "none"
                raise ValueError(
                    f"{path}: expected {name} of shape {shape} {dtype} a frame, got {held}; "
                    "nothing was changed: choose another file, or delete it"
                )
