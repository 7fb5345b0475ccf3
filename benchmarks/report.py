"""docs/benchmarks.md: what was measured as tables, beside what was asked for.

Letters: M measurements by the names of their contestants.
"""

from __future__ import annotations

import platform
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

import torch

from benchmarks import acting, perception, training
from benchmarks.markdown import NONE, machine, table
from benchmarks.rounds import Effort, Timing, ratio

Timings = Mapping[str, Timing]


@dataclass(frozen=True)
class Results:
    """Everything that was measured; the CUDA halves are empty where there is no CUDA.

    Attributes:
        encode: by batch size.
        encode_cuda: by batch size.
        train: a training step.
        train_cuda: a training step.
        play: steps of environments.
        act: steps of an agent's environments, by threads.
        learn: PPO's update, a step of its rollout.
        bare: MiB of a process that has imported everything and built nothing.
        sides: grids of the training table.
        batches: of `space-fast` in training; the first is also that of everything else.
        counts: environments at once; the last is also that of agents.
    """

    encode: Mapping[int, Timings]
    encode_cuda: Mapping[int, Timings]
    train: Timings
    train_cuda: Timings
    play: Timings
    act: Mapping[int, Timings]
    learn: Timings
    bare: float | None
    sides: Sequence[int]
    batches: Sequence[int]
    counts: Sequence[int]


def report(results: Results, effort: Effort, about: str, loads: Sequence[float]) -> str:
    """Return the whole page in Markdown.

    Args:
        results: what was measured.
        effort: how.
        about: what `space-fast` was.
        loads: load averages of the machine before and after.
    """
    parts = [
        "# Benchmarks",
        "Written by `make bench` (`.venv/bin/python -m benchmarks`); do not edit by hand.",
        _how(results, effort, about, loads),
        "## The bars",
        _bars(results),
        "## Seeing a frame",
        _SEEING,
        _encode_table(results),
        "## A training step, by grid cells",
        _GRIDS.format(batch=results.batches[0]),
        _grid_table(results),
        "## What sparse cells save, and what the smaller network saves",
        _PARTS.format(batch=results.batches[0]),
        _part_table(results),
        "## Environment steps",
        _PLAYING,
        _play_table(results),
        "## Agents",
        _ACTING.format(count=results.counts[-1]),
        _act_table(results),
        _LEARNING.format(extractor=acting.extractor()),
        _learn_table(results),
        "## The authors' implementation",
        _REFERENCE,
    ]
    return "\n\n".join(parts) + "\n"


_SEEING = f"""\
210 x 160 frames of Space Invaders to slots with tight boxes; with *followed*, to slots with
identities (`Perceiver.step`). *Times* is CPU time over that of `{perception.FAST}` at the same
batch, least and greatest of the rounds in brackets. The paper's rows are its architecture on
128 x 128, untrained; they too draw the masks that tight boxes need, but no background."""
_GRIDS = """\
The left of the paper's Fig. 5: presets `space-paper-grid*` at batch {batch} on a 128 x 128 canvas.
Dense is the paper's way, every cell warped onto the whole canvas; sparse draws the 64 likeliest
cells, or all if there are fewer, each in a window of 32 x 32 pixels. The network is the same. SPAIR
has its layers too, but infers cell after cell, and has one VAE for its background
(`spair-paper-grid*`).
*Cheaper* is CPU time of dense over that of sparse, least and greatest of the rounds in brackets."""
_PARTS = """\
From the paper's path at the top to `space-fast` at the bottom, 128 x 128 and batch {batch} unless
it says otherwise. *Cheaper* is CPU time an image of the first row over that of the row."""
_PLAYING = """\
Random actions in Space Invaders; *with objects* is `ObjectSlots` around one environment and
`VectorObjectSlots` around several, `space-fast` on the CPU in both."""
_ACTING = """\
{count} games of Space Invaders at once for Stable-Baselines3, as `objrl train` makes them: slots
(`AtariVecEnv` under `VecObjectSlots`, `space-fast` on the CPU) and pixels (four grey frames of
84 x 84). At random, or by an untrained policy, whose forward pass is counted. *Times* is CPU time
over that of pixels."""
_LEARNING = """\
PPO's update from one rollout, for a step of the rollout and for a gradient step; pixels through
NatureCNN with the RL Zoo's hyperparameters, slots through `{extractor}` with ours, one thread.
*Times* is CPU time over that of pixels for the same steps of the game."""
_REFERENCE = """\
Measured at another time on a loaded two-core machine, one thread, process CPU time; good for the
order of magnitude and not for a close comparison. Encoding here is the image encoder, the crops and
the z_what encoder, without the masks that tight boxes need.

| 128 x 128 canvas | encode, CPU-ms a frame, batch 1 | batch 16 | train, CPU-s an image |
| --- | --: | --: | --: |
| 16 x 16 cells | 126 to 163 | 190 to 232 | 2.1 to 2.5 |
| 8 x 8 cells | 25 to 33 | 52 | 0.54 to 0.89 |
| 4 x 4 cells | 12 to 15 | — | 0.43 to 0.49 |"""


def _how(results: Results, effort: Effort, about: str, loads: Sequence[float]) -> str:
    cuda = torch.cuda.get_device_name() if results.train_cuda else "none, so its columns are empty"
    bare = f"{results.bare:.0f} MiB" if results.bare else "an unknown part"
    return "\n".join(
        [
            f"- {datetime.now(UTC).date()}; {machine()}; torch {torch.__version__}, Python "
            f"{platform.python_version()}; load average {loads[0]:.1f} before and "
            f"{loads[1]:.1f} after, this run's own load of 1 included.",
            f"- {effort.threads} thread(s) for torch, OpenMP and OpenCV. CUDA device: {cuda}.",
            f"- `space-fast`: {about}.",
            f"- Medians of {effort.rounds} rounds. Each contestant has a process of its own and "
            f"all take turns of at least {effort.seconds} s, so that what else the machine does "
            "falls on all alike; ratios are taken within a round.",
            "- CPU-ms is process CPU time, all threads together; it is what is compared. The wall "
            "time beside it is longer where others had the core.",
            f"- Peak is the high-water mark of resident memory; {bare} of it is Python with "
            "everything imported.",
        ]
    )


def _bars(results: Results) -> str:
    encode = 1000 * statistics.median(results.encode[1][perception.FAST].cpu)
    batch = results.batches[0]
    dense = results.train[training.dense_name(max(results.sides))].cpu
    factor = ratio(dense, results.train[training.fast_name(batch)].cpu)[0]
    threads, count = max(results.act), results.counts[-1]
    pace = 1 / statistics.median(results.act[threads][acting.playing("slots", "random")].wall)
    slower = ratio(results.learn["slots"].cpu, results.learn["pixels"].cpu)[0]
    rows = [
        [
            "encode one frame, tight boxes included, one thread",
            "at most 6 CPU-ms",
            f"{encode:.1f} CPU-ms",
            _verdict(encode <= 6),
        ],
        [
            f"a training step, an image, cheaper than the dense path (both at batch {batch})",
            "at least 40 times",
            f"{factor:.0f} times",
            _verdict(factor >= 40),
        ],
        [
            f"{count} games with slots, {threads} threads",
            "at least 172 steps a second",
            f"{pace:.0f}",
            _verdict(pace >= 172),
        ],
        [
            "PPO's update from slots, over that from pixels, same steps",
            "at most 1.5 times",
            f"{slower:.2f} times",
            _verdict(slower <= 1.5),
        ],
    ]
    return table(["what", "asked", "measured", ""], rows)


def _verdict(holds: bool) -> str:
    return "met" if holds else "**missed**"


def _encode_table(results: Results) -> str:
    rows = []
    for batch, timings in results.encode.items():
        fast = timings[perception.FAST].cpu
        for name, timing in timings.items():
            gpu = results.encode_cuda.get(batch, {}).get(name)
            rows.append([name, str(batch), *_costs(timing), _times(timing.cpu, fast), _gpu(gpu)])
    header = ["detector", "batch", "CPU-ms a frame", "wall-ms", "peak MiB", "times", "CUDA-ms"]
    return table(header, rows)


def _grid_table(results: Results) -> str:
    rows = []
    for side in results.sides:
        dense = results.train[training.dense_name(side)].cpu
        names = {
            "dense": training.dense_name(side),
            "sparse": training.grid_name(side, dense=False),
            "SPAIR": training.sequential_name(side),
        }
        for kind, name in names.items():
            timing, gpu = results.train[name], results.train_cuda.get(name)
            cheaper = _times(dense, timing.cpu) if kind != "dense" else NONE
            rows.append([f"{side} x {side}", kind, *_costs(timing), cheaper, _gpu(gpu)])
    header = ["cells", "", "CPU-ms an image", "wall-ms", "peak MiB", "cheaper", "CUDA-ms"]
    return table(header, rows)


def _part_table(results: Results) -> str:
    side = max(results.sides)
    described = {
        training.dense_name(side): "the paper's path",
        training.grid_name(side, dense=False): "sparse, windows of 32",
        training.WIDE: "sparse, windows of 48",
        training.SMALL_DENSE: "small network, dense",
        training.SMALL_SPARSE: "small network, sparse, windows of 32",
        training.STILL: "and the background a known picture",
        **{
            training.fast_name(batch): f"`space-fast` on the whole 210 x 160, batch {batch}"
            for batch in results.batches
        },
    }
    dense = results.train[training.dense_name(side)].cpu
    rows = [
        [
            words,
            *_costs(results.train[name]),
            _times(dense, results.train[name].cpu),
            _gpu(results.train_cuda.get(name)),
        ]
        for name, words in described.items()
    ]
    return table(["", "CPU-ms an image", "wall-ms", "peak MiB", "cheaper", "CUDA-ms"], rows)


def _play_table(results: Results) -> str:
    rows = []
    for count in results.counts:
        for seen in (False, True):
            timing = results.play[perception.playing(count, seen)]
            pace = 1 / statistics.median(timing.wall)
            kind = "with objects" if seen else "bare"
            rows.append([str(count), kind, f"{pace:,.0f}", *_costs(timing)])
    header = ["environments", "", "steps a second", "CPU-ms a step", "wall-ms", "peak MiB"]
    return table(header, rows)


def _act_table(results: Results) -> str:
    rows = []
    for threads, timings in results.act.items():
        for sight in acting.SIGHTS:
            for way in acting.WAYS:
                timing = timings[acting.playing(sight, way)]
                pixels = timings[acting.playing("pixels", way)].cpu
                pace = 1 / statistics.median(timing.wall)
                row = [sight, way, str(threads), f"{pace:,.0f}", *_costs(timing)]
                rows.append([*row, _times(timing.cpu, pixels)])
    header = ["sees", "plays", "threads", "steps a second", "CPU-ms a step", "wall-ms"]
    return table([*header, "peak MiB", "times"], rows)


def _learn_table(results: Results) -> str:
    rows = []
    for sight in acting.SIGHTS:
        timing, count = results.learn[sight], results.counts[-1]
        whole = statistics.median(timing.cpu) * count * acting.n_steps(sight)
        one = _number(1000 * whole / acting.gradient_steps(sight, count))
        times = _times(timing.cpu, results.learn["pixels"].cpu)
        rows.append([sight, *_costs(timing), one, times])
    header = ["sees", "CPU-ms a step", "wall-ms", "peak MiB", "CPU-ms a gradient step", "times"]
    return table(header, rows)


def _costs(timing: Timing) -> list[str]:
    cpu, wall = (_number(1000 * statistics.median(part)) for part in (timing.cpu, timing.wall))
    return [cpu, wall, f"{timing.peak:,.0f}" if timing.peak else NONE]


def _times(slow: Sequence[float], fast: Sequence[float]) -> str:
    middle, least, most = (_number(value) for value in ratio(slow, fast))
    return middle if least == most else f"{middle} ({least} to {most})"


def _gpu(timing: Timing | None) -> str:
    return _number(1000 * statistics.median(timing.wall)) if timing else NONE


def _number(value: float) -> str:
    """Write about three digits."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"
