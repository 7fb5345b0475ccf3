"""The benchmarks run, and what they compute from timings is right."""

from __future__ import annotations

import time
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks.__main__ import BenchmarkConfig, main
from benchmarks.rounds import Contestant, Effort, Work, measure, peak_memory, ratio


def busy(milliseconds: float, mebibytes: int, device: torch.device) -> Work:
    """Take CPU time and memory that are known."""
    held = np.ones(mebibytes * 2**20, dtype=np.uint8)

    def work() -> None:
        end = time.process_time() + milliseconds / 1000
        while time.process_time() < end:
            held[0] ^= 1

    return work


def broken(device: torch.device) -> Work:
    raise ValueError("cannot be built")


def test_a_small_run_writes_every_table(tmp_path: Path) -> None:
    page = main(BenchmarkConfig(out=tmp_path / "page.md", mini=True))
    assert (tmp_path / "page.md").read_text() == page
    headings = [line for line in page.splitlines() if line.startswith("## ")]
    assert len(headings) == 7
    tables = [block.splitlines() for block in page.split("\n\n") if block.startswith("| ")]
    assert [len(table) - 2 for table in tables] == [4, 6, 3, 7, 4, 8, 2, 3]
    for table in tables:
        assert len({line.count("|") for line in table}) == 1
    assert "nan" not in page


@pytest.mark.parametrize("apart", [True, False])
def test_time_is_per_item_and_taken_in_turns(apart: bool) -> None:
    contestants = [
        Contestant("short", partial(busy, 2, 1)),
        Contestant("long, four at once", partial(busy, 32, 100), items=4),
    ]
    effort = Effort(rounds=3, seconds=0.02, apart=apart)
    timings = measure(contestants, effort)
    for timing in timings.values():
        assert len(timing.cpu) == len(timing.wall) == effort.rounds
    middle, least, most = ratio(timings["long, four at once"].cpu, timings["short"].cpu)
    assert least <= middle <= most
    assert middle == pytest.approx(4, rel=0.15)
    small, large = timings["short"].peak, timings["long, four at once"].peak
    if not apart or peak_memory() is None:
        assert small is None
        assert large is None
    else:
        assert small is not None
        assert large is not None
        assert large - small == pytest.approx(99, abs=30)


def test_ratios_are_taken_within_rounds() -> None:
    # The machine was three times slower in the second round, for both.
    assert ratio([2.0, 6.0, 2.0], [1.0, 3.0, 1.0]) == (2.0, 2.0, 2.0)


def test_what_cannot_be_measured_is_said() -> None:
    twice = [Contestant("same", partial(busy, 1, 1))] * 2
    with pytest.raises(ValueError, match="expected different names"):
        measure(twice, Effort(1, 0.0))
    with pytest.raises(RuntimeError, match="bad: its process ended with code 1"):
        measure([Contestant("bad", broken)], Effort(1, 0.0))
    with pytest.raises(ValueError, match="at least 1 round"):
        main(BenchmarkConfig(rounds=0))
