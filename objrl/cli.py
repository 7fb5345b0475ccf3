"""The `objrl` command: one verb per job, its options are the fields of the job's config.

Verbs are imported when they are used, so that `objrl --help` answers at once. Nothing imports
this module; it is the one place that looks up at everything else.
"""

from __future__ import annotations

import contextlib
import ctypes
import difflib
import importlib
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from objrl.weights import Weights


@dataclass(frozen=True)
class Verb:
    """Where a verb's work is done."""

    module: str
    config: str
    """Name of the frozen dataclass in `module` whose fields are the options."""
    function: str
    """Name of the function in `module` that takes it."""
    summary: str
    extra: str = "pretrain"
    """The extra that installs what it needs beyond the core."""


VERBS = {
    "demo": Verb(
        "objrl.agents.demo", "DemoConfig", "demo", "play a game offline and show its objects"
    ),
    "train": Verb(
        "objrl.agents.train",
        "TrainConfig",
        "train",
        "teach an agent to play from objects, pixels or the RAM",
        extra="train",
    ),
    "watch": Verb(
        "objrl.agents.watch",
        "WatchConfig",
        "watch",
        "let a trained agent play, its objects drawn",
        extra="train",
    ),
    "collect": Verb(
        "objrl.pretrain.collect", "CollectConfig", "collect", "record a game's frames to learn from"
    ),
    "pretrain": Verb(
        "objrl.pretrain.train", "TrainConfig", "train", "learn a detector from recorded frames"
    ),
    "evaluate": Verb(
        "objrl.pretrain.evaluate",
        "EvaluateConfig",
        "evaluate",
        "score a detector against true boxes or frames",
        extra="eval",
    ),
    "imagine": Verb(
        "objrl.pretrain.imagine",
        "ImagineConfig",
        "imagine_futures",
        "draw how a SCALOR thinks that sequences go on",
    ),
    "figures": Verb(
        "objrl.pretrain.figures",
        "FiguresConfig",
        "figures",
        "draw what a MONet, IODINE, R-MONet or ECON makes of scenes",
    ),
    "truth": Verb(
        "objrl.pretrain.ram_truth",
        "TruthConfig",
        "make_truth",
        "label a game's frames by its RAM, to evaluate on",
        extra="eval",
    ),
    "rooms": Verb(
        "objrl.pretrain.rooms",
        "RoomsConfig",
        "generate_rooms",
        "draw 3D rooms with objects, to learn from and to score on",
        extra="rooms",
    ),
    "scenes": Verb(
        "objrl.pretrain.stills",
        "ScenesConfig",
        "generate_stills",
        "draw still scenes of figures, to learn from and to score on",
    ),
    "synthetic": Verb(
        "objrl.pretrain.synthetic",
        "SyntheticConfig",
        "generate_sequences",
        "draw videos of moving shapes or digits, to learn from and to score on",
        extra="synthetic",
    ),
    "video": Verb(
        "objrl.pretrain.video",
        "VideoConfig",
        "import_video",
        "bring a video or a folder of pictures, to learn from",
    ),
    "weights": Verb(
        "objrl.cli", "WeightsConfig", "show_weights", "list the shipped detectors and their scores"
    ),
}


_SEEN = ("f1_centre", "f1_iou", "ap50", "ap50_95", "count_error_centre")
_FOLLOWED = ("mota_iou", "idf1_iou", "mota_distance", "idf1_distance")
"""What tells shipped weights apart at a glance, of single frames and of identities; the rest is in
their cards."""
_MOST_IDS = 3


@dataclass(frozen=True)
class WeightsConfig:
    """List the shipped detectors and their scores."""


def show_weights(config: WeightsConfig) -> None:
    """Print a table of what is shipped."""
    from objrl.weights import list_weights

    shipped = list_weights()
    if not shipped:
        print("No weights are shipped yet; `objrl pretrain` makes some.")
        return
    followers = [weights for weights in shipped if "mota_distance" in weights.metrics]
    detectors = [weights for weights in shipped if weights not in followers]
    parts = [_table(detectors, _SEEN), _table(followers, _FOLLOWED)]
    print("\n\n".join("\n".join(lines) for lines in parts if len(lines) > 1))


def _table(some: Sequence[Weights], scores: Sequence[str]) -> list[str]:
    """Lay out weights with some of their scores."""
    table = [["name", *scores, "learnt from", "for"]]
    for weights in some:
        values = [f"{weights.metrics[s]:.3g}" if s in weights.metrics else "-" for s in scores]
        ids, more = weights.env_ids[:_MOST_IDS], len(weights.env_ids) - _MOST_IDS
        names = ", ".join(ids) + (f" and {more} more" if more > 0 else "")
        table.append([weights.name, *values, weights.title, names])
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    rows = (zip(row, widths, strict=True) for row in table)
    return ["  ".join(f"{cell:<{width}}" for cell, width in row).rstrip() for row in rows]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one verb.

    Args:
        arguments: the words after `objrl`; by default those of the process.

    Returns:
        The exit code: 0, 2 for a mistake that a user can mend, 130 when interrupted.
    """
    words = list(sys.argv[1:] if arguments is None else arguments)
    if not words or words[0] in ("-h", "--help"):
        print(_help())
        return 0 if words else 2
    if words[0] == "--version":
        from objrl import __version__

        print(f"objrl {__version__}")
        return 0
    name, *options = words
    try:
        _run(name, options)
    except KeyboardInterrupt:
        print(f"\nobjrl {name}: interrupted", file=sys.stderr)
        return 130
    except Exception as error:
        message = _readable(error, name)
        if message is None or os.environ.get("OBJRL_DEBUG") == "1":
            raise
        print(f"objrl {name}: {message.removeprefix(f'{name}: ')}", file=sys.stderr)
        return 2
    return 0


def _run(name: str, options: list[str]) -> None:
    if name not in VERBS:
        close = difflib.get_close_matches(name, VERBS, n=1)
        hint = f"did you mean '{close[0]}'? " if close else ""
        raise ValueError(f"no such command; {hint}There are {', '.join(VERBS)} (objrl --help)")
    verb = VERBS[name]
    import tyro

    module = importlib.import_module(verb.module)
    config = tyro.cli(getattr(module, verb.config), prog=f"objrl {name}", args=options)
    _keep_memory()
    getattr(module, verb.function)(config)


def _keep_memory() -> None:
    """Let glibc keep what is freed, up to half a gigabyte.

    A network asks for the same tens of megabytes at every step. Given back and fetched anew, the
    system has to clear each page again, a fifth of the CPU time of seeing. Other systems and C
    libraries have no `mallopt`, and stay as they are.
    """
    trim_threshold, mmap_threshold = -1, -3
    with contextlib.suppress(AttributeError, OSError, TypeError):
        libc = ctypes.CDLL(None)
        libc.mallopt(mmap_threshold, 32 << 20)  # the largest that glibc takes
        libc.mallopt(trim_threshold, 512 << 20)


def _help() -> str:
    width = max(map(len, VERBS))
    lines = [f"  {name:<{width}}  {verb.summary}" for name, verb in VERBS.items()]
    return "\n".join(
        [
            "usage: objrl COMMAND [OPTIONS]",
            "",
            "Objects instead of pixels for reinforcement learning.",
            "",
            "commands:",
            *lines,
            "",
            "objrl COMMAND --help shows its options; objrl --version the version.",
            "OBJRL_DEBUG=1 shows the traceback of an error.",
        ]
    )


def _readable(error: Exception, name: str) -> str | None:
    """Return one line for a mistake that a user can mend, None for what looks like our own."""
    if isinstance(error, ModuleNotFoundError) and error.name:
        missing = error.name.partition(".")[0]
        if missing == "objrl":
            return None
        extra = VERBS[name].extra
        return f"needs {missing}: pip install 'objrl[{extra}]' (in a clone: -e '.[{extra}]')"
    # FloatingPointError is a diverged training. An ImportError without a module's name was raised
    # by hand, to say what to install. Gymnasium's errors (an unknown id, say) share no base with
    # the built-in ones.
    mendable = isinstance(error, ValueError | OSError | FloatingPointError)
    mendable |= isinstance(error, ImportError) and error.name is None
    mendable |= any(base.__module__ == "gymnasium.error" for base in type(error).__mro__)
    return " ".join(str(error).split()) or type(error).__name__ if mendable else None


if __name__ == "__main__":
    sys.exit(main())
