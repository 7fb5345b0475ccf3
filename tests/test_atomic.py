"""Files appear whole or not at all."""

from __future__ import annotations

from pathlib import Path

import pytest

from objrl.atomic import replacing, sweep, write_atomically


def test_a_file_and_its_folder_appear(tmp_path: Path) -> None:
    path = tmp_path / "new" / "a.bin"
    write_atomically(path, b"first")
    write_atomically(path, b"second")
    assert path.read_bytes() == b"second"
    assert list(path.parent.iterdir()) == [path]


def test_a_block_that_fails_leaves_the_old_file_alone(tmp_path: Path) -> None:
    path = tmp_path / "a.mp4"
    path.write_bytes(b"old")
    with replacing(path) as temporary:
        assert (temporary.parent, temporary.suffix) == (tmp_path, ".mp4")
        temporary.write_bytes(b"new")
        assert path.read_bytes() == b"old"
    assert path.read_bytes() == b"new"
    with pytest.raises(FileNotFoundError, match="lost"), replacing(path) as temporary:
        (temporary.write_bytes(b"half"), (tmp_path / "lost").read_bytes())
    assert path.read_bytes() == b"new"
    assert list(tmp_path.iterdir()) == [path]


def test_the_leftovers_of_the_killed_are_swept_up_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "a [1].h5"
    write_atomically(path, b"kept")
    for name in (".a [1].12345.tmp.h5", ".a [1].12346.tmp.h5", ".a 1.12345.tmp.h5", "a [1].tmp.h5"):
        (tmp_path / name).write_bytes(b"half")
    sweep(path)
    assert {file.name for file in tmp_path.iterdir()} == {
        *("a [1].h5", ".a 1.12345.tmp.h5", "a [1].tmp.h5")
    }
