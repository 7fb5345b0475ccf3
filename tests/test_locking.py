"""One writer at a time."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from objrl.locking import Lock, writing

fcntl = pytest.importorskip("fcntl", reason="Windows has no such locks")

HOLD = """
import sys
from pathlib import Path
from objrl.locking import Lock
lock = Lock(Path(sys.argv[1]))
print("held", flush=True)
sys.stdin.read()
"""


@pytest.fixture(params=["a file", "a folder"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    path = tmp_path / "place"
    path.write_bytes(b"as it was") if request.param == "a file" else path.mkdir()
    return path


def test_one_at_a_time(place: Path) -> None:
    with Lock(place) as lock:
        with pytest.raises(ValueError, match=f"{place}: .* is being written"):
            Lock(place)
        lock.close()
        Lock(place).close()
    Lock(place).close()


def test_a_file_that_was_replaced_before_it_was_locked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, flock = tmp_path / "place", fcntl.flock
    path.write_bytes(b"old")

    def late(descriptor: int, how: int) -> None:
        path.unlink()
        path.write_bytes(b"new")
        flock(descriptor, how)

    with monkeypatch.context() as patch:
        patch.setattr(fcntl, "flock", late)
        with pytest.raises(ValueError, match="is being written"):
            Lock(path)
    Lock(path).close()


def test_where_there_are_no_locks_nobody_is_kept_away(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unknown(*_: int) -> None:
        raise OSError(errno.ENOLCK, "no locks available")

    monkeypatch.setattr(fcntl, "flock", unknown)
    with Lock(place), Lock(place):
        pass


def test_a_child_does_not_keep_what_its_parent_gave_back(place: Path) -> None:
    with Lock(place):
        child = os.fork()
        if child == 0:
            time.sleep(60)
            os._exit(0)
    try:
        Lock(place).close()
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)


def test_a_process_that_is_killed_leaves_nothing(place: Path) -> None:
    command = [sys.executable, "-c", HOLD, str(place)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == b"held\n"
        with pytest.raises(ValueError, match="is being written"):
            Lock(place)
        other.kill()
        other.wait()
    Lock(place).close()
    assert [path.name for path in place.parent.iterdir()] == ["place"]


def test_a_place_that_there_is_not(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        Lock(tmp_path / "none")


def test_a_folder_to_write_stays_if_anything_was_written(tmp_path: Path) -> None:
    folder = tmp_path / "of" / "a run"
    with writing(folder):
        assert folder.is_dir()
    assert list(tmp_path.iterdir()) == []
    with writing(folder):
        (folder / "file").touch()
        with pytest.raises(ValueError, match="folder that nobody writes"), writing(folder):
            pass
    assert (folder / "file").exists()


def test_a_folder_that_was_there_stays(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    with writing(tmp_path / "run"):
        pass
    assert (tmp_path / "run").is_dir()


def test_a_file_is_no_folder_to_write(tmp_path: Path) -> None:
    (tmp_path / "run").touch()
    message = "run: expected a folder, got a file"
    with pytest.raises(FileExistsError, match=message), writing(tmp_path / "run"):
        pass
