"""One writer at a time."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from objrl.locking import Lock

HOLD = """
import sys
from pathlib import Path
from objrl.locking import Lock
lock = Lock(Path(sys.argv[1]))
print("held", flush=True)
sys.stdin.read()
"""

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="there are no such locks")


@pytest.fixture(params=["a file", "a folder"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    path = tmp_path / "place"
    path.write_bytes(b"as it was") if request.param == "a file" else path.mkdir()
    return path


def test_one_at_a_time(place: Path) -> None:
    lock = Lock(place)
    with pytest.raises(ValueError, match=f"{place}: .* another process is writing"):
        Lock(place)
    lock.close()
    lock.close()
    Lock(place).close()


def test_a_process_that_is_killed_leaves_nothing(place: Path) -> None:
    command = [sys.executable, "-c", HOLD, str(place)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == b"held\n"
        with pytest.raises(ValueError, match="another process is writing"):
            Lock(place)
        other.kill()
        other.wait()
    Lock(place).close()
    assert [path.name for path in place.parent.iterdir()] == ["place"]


def test_a_place_that_there_is_not(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        Lock(tmp_path / "none")
