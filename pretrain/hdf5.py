"""The file under the frame store: making, opening, locking and mending it.

HDF5's single-writer mode (SWMR) keeps a file readable whatever happens to its writer, but a writer
that dies leaves a mark in the file's header, and HDF5 then refuses to open it in the usual ways.
Here a marked file is read in the mode that takes it as it is, and before it is written again it is
mended: what was committed is copied, still compressed, to a new file that takes its place.

HDF5 does not survive a write that fails (h5py 3.16 dies of a segmentation fault on a full disk), so
it never meets one: `_reserve` takes the room beforehand, by plain writes that fail in plain ways.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import numpy.typing as npt

from objrl.atomic import replacing
from objrl.locking import Lock

Layout = Mapping[str, tuple[tuple[int, ...], np.dtype[Any]]]
"""Shape (without N) and dtype of every data set that has a row for each frame."""

LEVEL = 1
"""Of gzip: higher ones take longer and save little on the flat colours of games."""

_FORMAT = "objrl-frames-1"
_LIBVER = ("v110", "v110")  # the oldest that knows the single-writer mode
_ROWS = 4096  # of a chunk of one-number data sets; a frame has a chunk of its own
_FULL = {errno.ENOSPC: "the disk is full", errno.EFBIG: "a file may not be larger here"}
_FULL[errno.EDQUOT] = "the disk quota is used up"


def create(path: Path, layout: Layout, attributes: Mapping[str, str | int | float]) -> None:
    """Make a store without a frame, under a temporary name first.

    Raises:
        OSError: the disk is full, or the folder may not be written.
    """
    # Made in memory: a plain write reports a full disk, HDF5's own would crash.
    with h5py.File(path.name, "w", driver="core", backing_store=False, libver=_LIBVER) as file:
        file.attrs["format"] = _FORMAT
        for name, value in attributes.items():
            file.attrs[name] = value
        for name, (shape, dtype) in layout.items():
            frames = name == "frames"
            file.create_dataset(
                name,
                shape=(0, *shape),
                maxshape=(None, *shape),
                chunks=(1 if frames else _ROWS, *shape),
                dtype=dtype,
                **({"compression": "gzip", "compression_opts": LEVEL} if frames else {}),
            )
        file.create_dataset("progress", data=np.zeros(2, dtype=np.int64))
        file.flush()
        image = file.id.get_file_image()
    try:
        with replacing(path) as temporary:
            temporary.write_bytes(image)
    except OSError as problem:
        raise not_written(path, 0, problem) from problem


def open_to_read(path: Path) -> h5py.File:
    """Open a store, also one that is being written or whose writer was killed.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: not a frame store, cut short or damaged.
    """
    if not path.is_file():
        raise FileNotFoundError(
            f"{path}: no such file; `objrl collect --env GAME --out {path}` would make it"
        )
    if path.suffix == ".npz":
        raise ValueError(
            f"{path}: expected a frame store (.h5), got the name of a file with labels (.npz); "
            "that is for --truth"
        )
    marked, length = _superblock(path)
    size = path.stat().st_size
    if size < length:  # of a marked file HDF5 would not say so, but wait for the rest for ever
        raise damaged(path, EOFError(f"it has {size} of {length} bytes"))
    try:
        file = h5py.File(path, "r", swmr=marked, locking=False)
    except PermissionError:
        raise
    except OSError as problem:
        raise damaged(path, problem) from problem
    if file.attrs.get("format") != _FORMAT:
        found = file.attrs.get("format")
        file.close()
        raise ValueError(
            f"{path}: expected a frame store ({_FORMAT}), got an HDF5 file with format {found!r}; "
            "make one with `objrl collect`"
        )
    return file


def open_to_write(path: Path) -> tuple[h5py.File, Lock]:
    """Open a store in the single-writer mode, mending it before when its last writer was killed.

    Returns:
        The file, and the lock to close after it.

    Raises:
        ValueError: somebody else is writing it.
        OSError: no room to mend it.
    """
    lock = Lock(path)
    try:
        if _superblock(path)[0]:
            _mend(path)
            lock.close()
            lock = Lock(path)  # the mended file is another one
        return _open_as_single_writer(path), lock
    except BaseException:
        lock.close()
        raise


def close_written(path: Path, file: h5py.File) -> None:
    """Close a file from `open_to_write` and give back what room it did not use."""
    file.close()
    marked, length = _superblock(path)
    if length and not marked:
        os.truncate(path, length)


def _reserve(path: Path, file: h5py.File, rows: int, packed: int) -> None:
    """Make sure that HDF5 has room for `rows` more rows, `packed` bytes of frames in them.

    Raises:
        OSError: it has not; the file is as it was.
    """
    # Beside the frames: columns by the chunk of `_ROWS`, and an index that grows by doubling.
    needed = packed + 64 * (rows + len(file["frames"])) + 2**21
    with path.open("r+b", buffering=0) as raw:
        size = raw.seek(0, os.SEEK_END)
        missing = file.id.get_filesize() + needed - size
        try:
            while missing > 0:
                missing -= raw.write(bytes(min(missing, 2**20)))
        except OSError as problem:
            raw.truncate(size)
            raise not_written(path, int(file["progress"][0]), problem) from problem


def write_rows(
    path: Path,
    file: h5py.File,
    columns: Mapping[str, npt.NDArray[Any]],
    frames: Sequence[bytes],
) -> None:
    """Add rows after the committed ones, then count them.

    Args:
        path: of the file.
        file: opened by `open_to_write`.
        columns: every data set of the layout but `frames`.
        frames: compressed, one after the other.

    Raises:
        OSError: there is no room for them; the file is as it was.
    """
    start = int(file["progress"][0])
    end = start + len(frames)
    _reserve(path, file, len(frames), sum(map(len, frames)))
    for name, values in columns.items():
        _grow(file[name], end)
        file[name][start:end] = values
    _grow(file["frames"], end)
    for row, packed in enumerate(frames, start):
        file["frames"].id.write_direct_chunk((row, 0, 0, 0), packed)
    file.flush()
    file["progress"][0] = end
    file.flush()


def _grow(dataset: h5py.Dataset, rows: int) -> None:
    """Make a data set at least that long; an interrupted `write_rows` may have done so before."""
    if len(dataset) < rows:
        dataset.resize(rows, axis=0)


def _open_as_single_writer(path: Path) -> h5py.File:
    """Open a store that nobody else writes and that has no mark."""
    # By the low-level call: `File(...).swmr_mode = True` comes a moment after the file is marked as
    # open for plain writing, and nobody could read it if the process died between the two.
    access = h5py.h5p.create(h5py.h5p.FILE_ACCESS)
    access.set_libver_bounds(h5py.h5f.LIBVER_V110, h5py.h5f.LIBVER_V110)
    access.set_file_locking(False, False)
    mode = h5py.h5f.ACC_RDWR | h5py.h5f.ACC_SWMR_WRITE
    return h5py.File(h5py.h5f.open(os.fsencode(path), mode, access))


def damaged(path: Path, problem: Exception) -> ValueError:
    """Return the error for a file that HDF5 cannot follow."""
    return ValueError(
        f"{path}: expected a whole HDF5 file, got one that is cut short or damaged ({problem}); "
        "copy it again from where it was made, or delete it and collect anew"
    )


def not_written(path: Path, kept: int, problem: OSError) -> OSError:
    """Return the error for rows that could not be written."""
    number = problem.errno or 0
    return OSError(
        number,
        f"could not write on ({_FULL.get(number, problem)}); its first {kept} frames are safe: "
        "make room and run the same command again to go on",
        str(path),
    )


def _superblock(path: Path) -> tuple[bool, int]:
    """Return whether a writer has marked the file as open, and how long the file says that it is.

    The mark is bit 0 of byte 11, the length is in bytes 28 to 35 of an HDF5 superblock of
    version 3; other files are left to HDF5 to judge.
    """
    with path.open("rb") as file:
        head = file.read(36)
    if len(head) < 36 or head[:9] != b"\x89HDF\r\n\x1a\n\x03":
        return False, 0
    return bool(head[11] & 1), int.from_bytes(head[28:], "little")


def _mend(path: Path) -> None:
    """Replace a file whose writer died by one with the same committed rows and no mark."""
    with open_to_read(path) as old, replacing(path) as temporary:
        names = [name for name in old if name not in ("frames", "progress")]
        layout = {name: (old[name].shape[1:], old[name].dtype) for name in ["frames", *names]}
        create(temporary, layout, dict(old.attrs))
        count, asked = (int(number) for number in old["progress"])
        new = _open_as_single_writer(temporary)
        try:
            new["progress"][1] = asked
            for start in range(0, count, _ROWS):
                rows = range(start, min(start + _ROWS, count))
                columns = {name: old[name][rows.start : rows.stop] for name in names}
                chunks = old["frames"].id
                frames = [chunks.read_direct_chunk((row, 0, 0, 0))[1] for row in rows]
                write_rows(temporary, new, columns, frames)
        finally:
            close_written(temporary, new)


def attributes(file: h5py.File) -> dict[str, Any]:
    """Return a store's attributes as plain Python values."""
    return {
        name: value.item() if isinstance(value, np.generic) else value
        for name, value in file.attrs.items()
    }
