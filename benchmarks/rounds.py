"""Measuring contestants against each other on a machine that is never quiet.

Every contestant lives in a process of its own, so that its peak of memory is its own, and all take
turns (A B C, A B C, …), so that what else the machine does falls on all of them alike. Process CPU
time is what is compared; a ratio is taken within each round before anything is averaged.
"""

from __future__ import annotations

import os
import re
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import cv2
import torch
from tqdm import tqdm

Work = Callable[[], object]


@dataclass(frozen=True)
class Contestant:
    """Something to be timed.

    Attributes:
        name: unique among those measured together.
        make: builds it on a device and returns the call to time; picklable (a module's function,
            or a `partial` of one).
        items: frames, images or steps that a call handles; times are given for one of them.
    """

    name: str
    make: Callable[[torch.device], Work]
    items: int = 1


@dataclass(frozen=True)
class Timing:
    """What was measured of a contestant; one entry a round.

    Attributes:
        cpu: seconds of process CPU time an item, all threads together.
        wall: seconds an item.
        peak: MiB, the high-water mark of its process, torch included; None where unknown.
    """

    cpu: tuple[float, ...]
    wall: tuple[float, ...]
    peak: float | None


@dataclass(frozen=True)
class Effort:
    """How thoroughly to measure.

    Attributes:
        rounds: how often everybody has a turn.
        seconds: least duration of a turn; a call that is faster is repeated.
        threads: of torch, OpenMP and OpenCV, in each process.
        apart: each in a process of its own; otherwise all in this one, and no peak of memory.
    """

    rounds: int
    seconds: float
    threads: int = 1
    apart: bool = True


def measure(
    contestants: Sequence[Contestant], effort: Effort, device: str = "cpu", title: str = ""
) -> dict[str, Timing]:
    """Return what each contestant takes, by name.

    Raises:
        ValueError: two contestants of one name.
        RuntimeError: a contestant failed in its process.
    """
    names = [contestant.name for contestant in contestants]
    if len(set(names)) != len(names):
        raise ValueError(f"contestants: expected different names, got {names}")
    kind: type[_Apart | _Here] = _Apart if effort.apart else _Here
    with ExitStack() as stack, tqdm(total=len(names) * (effort.rounds + 1), desc=title) as bar:
        seats: list[_Apart | _Here] = []
        for contestant in contestants:
            seat = kind(contestant, effort, device)
            stack.enter_context(seat)
            seats.append(seat)
            bar.update()
        turns: dict[str, list[tuple[float, float]]] = {name: [] for name in names}
        for _ in range(effort.rounds):
            for name, seat in zip(names, seats, strict=True):
                turns[name].append(seat.turn())
                bar.update()
        timings = {}
        for name, seat in zip(names, seats, strict=True):
            cpu, wall = zip(*turns[name], strict=True)
            timings[name] = Timing(cpu, wall, seat.peak())
        return timings


def ratio(slow: Sequence[float], fast: Sequence[float]) -> tuple[float, float, float]:
    """Return the median, least and greatest of the rounds' ratios."""
    ratios = [a / b for a, b in zip(slow, fast, strict=True)]
    return statistics.median(ratios), min(ratios), max(ratios)


def peak_memory() -> float | None:
    """Return the MiB that this process had in memory at most; None where there is no /proc.

    Not getrusage: after an exec its mark still holds the memory of whoever started the process.
    """
    try:
        status = Path("/proc/self/status").read_text()
    except FileNotFoundError:
        return None
    mark = re.search(r"VmHWM:\s+(\d+) kB", status)
    return int(mark[1]) / 1024 if mark else None


class _Here:
    """A contestant in this process."""

    def __init__(self, contestant: Contestant, effort: Effort, device: str) -> None:
        torch.set_num_threads(effort.threads)
        cv2.setNumThreads(effort.threads)
        self.items, self.device = contestant.items, torch.device(device)
        torch.manual_seed(0)
        self.work = contestant.make(self.device)
        self.calls = 1
        self.turn()  # the first calls choose algorithms and fill caches
        once = self.turn()[1] * self.items
        self.calls = max(1, round(effort.seconds / once))

    def __enter__(self) -> None:
        pass

    def __exit__(self, *_: object) -> None:
        pass

    def turn(self) -> tuple[float, float]:
        """Return the seconds of CPU and of wall time that an item takes."""
        if self.calls > 1:
            self.work()  # others have had the caches since the last turn
        self._wait()
        cpu, wall = time.process_time(), time.perf_counter()
        for _ in range(self.calls):
            self.work()
        self._wait()
        done = self.calls * self.items
        return (time.process_time() - cpu) / done, (time.perf_counter() - wall) / done

    def peak(self) -> float | None:
        """Return None: this process has held others too."""
        return None

    def _wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)


class _Apart:
    """A contestant in a process of its own, which waits for its turns."""

    def __init__(self, contestant: Contestant, effort: Effort, device: str) -> None:
        self.name = contestant.name
        context = get_context("spawn")
        self.pipe, theirs = context.Pipe()
        for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
            os.environ[name] = str(effort.threads)  # read when the process starts
        self.process = context.Process(
            target=_serve, args=(theirs, contestant, effort, device), daemon=True
        )
        self.process.start()
        theirs.close()

    def __enter__(self) -> None:
        self._receive()  # one after the other: they do not start up in each other's way

    def __exit__(self, *_: object) -> None:
        self.pipe.close()
        self.process.join(timeout=10)
        self.process.terminate()

    def turn(self) -> tuple[float, float]:
        """Return the seconds of CPU and of wall time that an item takes."""
        self.pipe.send("turn")
        cpu, wall = self._receive()
        return cpu, wall

    def peak(self) -> float | None:
        """Return the MiB that its process held at most."""
        self.pipe.send("peak")
        value: float | None = self._receive()
        return value

    def _receive(self) -> Any:
        try:
            return self.pipe.recv()
        except EOFError:
            self.process.join()
            raise RuntimeError(
                f"{self.name}: its process ended with code {self.process.exitcode}; see above"
            ) from None


def _serve(pipe: Connection, contestant: Contestant, effort: Effort, device: str) -> None:
    seat = _Here(contestant, effort, device)
    answers: Mapping[str, Callable[[], object]] = {"turn": seat.turn, "peak": peak_memory}
    pipe.send(None)
    while True:
        try:
            question = pipe.recv()
        except EOFError:
            return
        pipe.send(answers[question]())
