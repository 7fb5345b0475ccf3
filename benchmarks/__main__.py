"""Measure everything and write the page: `.venv/bin/python -m benchmarks`, some ten minutes."""

from __future__ import annotations

import os
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path

import torch
import tyro

import objrl
from benchmarks import acting, perception, training
from benchmarks.report import Results, report
from benchmarks.rounds import Effort, Timing, measure
from benchmarks.scene import Scene, play
from objrl.atomic import write_atomically

SHIPPED = "space-space_invaders"


@dataclass(frozen=True)
class BenchmarkConfig:
    """Measure what seeing and training cost, and write the results as a page of Markdown."""

    out: Path = Path("docs/benchmarks.md")
    """The page."""
    weights: str | None = None
    """Detector to measure as space-fast, by name or path; by default what is shipped for Space
    Invaders, or if nothing is, an untrained one as large as space-fast makes it for this game."""
    rounds: int = 9
    """How often everything is measured, in turns."""
    threads: int = 1
    """CPU threads of each process; agents' environments are timed with two, too."""
    mini: bool = False
    """Everything once, small and in one process, to see that it runs; the numbers mean nothing."""


def main(config: BenchmarkConfig) -> str:
    """Measure, write the page and return it."""
    if config.rounds < 1 or config.threads < 1:
        raise ValueError(
            f"expected at least 1 round and 1 thread, got {config.rounds} and {config.threads}"
        )
    effort = Effort(rounds=config.rounds, seconds=0.4, threads=config.threads)
    if config.mini:
        effort = Effort(rounds=1, seconds=0.0, threads=config.threads, apart=False)
    before = os.getloadavg()[0]
    with tempfile.TemporaryDirectory() as folder:
        frames = 60 if config.mini else 1000
        scene = play(Path(folder) / "frames.npy", frames, config.weights or _shipped())
        results = _measure_all(scene, effort, config.mini)
        about = _describe(scene)
    page = report(results, effort, about, (before, os.getloadavg()[0]))
    config.out.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(config.out, page.encode())
    return page


def _measure_all(scene: Scene, effort: Effort, mini: bool) -> Results:
    cell, sides = (32, (4,)) if mini else (8, (4, 8, 16))
    sizes, batches, counts = ((1,), (1,), (1, 2)) if mini else ((1, 16), (2, 12), (1, 8))
    batch = batches[0]
    steps = [
        *training.on_grids(scene, sides, batch),
        *training.by_part(scene, max(sides), batch),
        *training.ours(scene, batches),
    ]

    def seeing(device: str) -> dict[int, dict[str, Timing]]:
        return {
            size: measure(
                perception.encoders(scene, size, cell), effort, device, f"see {size} on {device}"
            )
            for size in sizes
        }

    cuda = torch.cuda.is_available()
    return Results(
        encode=seeing("cpu"),
        encode_cuda=seeing("cuda") if cuda else {},
        train=measure(steps, effort, "cpu", "train on cpu"),
        train_cuda=measure(steps, effort, "cuda", "train on cuda") if cuda else {},
        play=measure(perception.environments(scene, counts), effort, title="play"),
        act={
            threads: measure(
                acting.environments(scene, counts[-1]),
                replace(effort, threads=threads),
                title=f"act, {threads} threads",
            )
            for threads in sorted({effort.threads, 2})
        },
        learn=measure(
            acting.updates(scene, counts[-1], 2 if mini else None), effort, title="learn"
        ),
        bare=measure([perception.NOTHING], effort, title="nothing")["nothing"].peak,
        sides=sides,
        batches=batches,
        counts=counts,
    )


def _shipped() -> str | None:
    names = [weights.name for weights in objrl.list_weights()]
    return SHIPPED if SHIPPED in names else None


def _describe(scene: Scene) -> str:
    """Say what is measured as `space-fast`."""
    config = scene.fast().detector.config
    height, width = config.frame_size
    learnt = f"weights {Path(scene.weights).stem}" if scene.weights else "untrained"
    return (
        f"{learnt}; a {height} x {width} canvas, cells of {config.cell}, {config.rendered} of "
        f"{config.cells} cells drawn in windows of {config.window}, {config.max_slots} slots"
    )


if __name__ == "__main__":
    print(main(tyro.cli(BenchmarkConfig, prog="python -m benchmarks")))
