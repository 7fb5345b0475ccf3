"""What a run has cost."""

from __future__ import annotations

import time

import pytest

from objrl.clock import Clock


def test_it_goes_on_from_what_was_spent(monkeypatch: pytest.MonkeyPatch) -> None:
    now = {"wall": 100.0, "cpu": 10.0}
    monkeypatch.setattr(time, "perf_counter", lambda: now["wall"])
    monkeypatch.setattr(time, "process_time", lambda: now["cpu"])
    clock = Clock(5.0, 3.0)
    now |= {"wall": 107.0, "cpu": 14.0}
    assert (clock.wall, clock.cpu) == (12.0, 7.0)
    with clock.stopped():
        now |= {"wall": 150.0, "cpu": 40.0}
    assert (clock.wall, clock.cpu) == (12.0, 7.0)
    now |= {"wall": 151.0, "cpu": 42.0}
    assert (clock.wall, clock.cpu) == (13.0, 9.0)
