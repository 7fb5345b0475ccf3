"""docs/results.md: the measured rows as Markdown; nothing is measured or read here."""

from __future__ import annotations

import os
import platform
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import torch

from objrl.metrics import Score
from objrl.pretrain.measure import Agreement, Report
from objrl.pretrain.probe import CLUSTERS, MIN_MEMBERS, Probe
from objrl.weights import Weights

Cell = str | float | None
"""A number that was measured, words, or nothing."""

MAIN_GAMES = (
    *("asterix", "boxing", "freeway", "kangaroo", "pong", "seaquest", "skiing", "tennis"),
    *("space_invaders", "ms_pacman", "riverraid", "carnival"),
)
"""The games that objrl is measured by, first those that others published figures of."""

PUBLISHED = {
    **{"asterix": 0.90, "boxing": 0.90, "freeway": 0.95, "kangaroo": 0.33},
    **{"pong": 0.89, "seaquest": 0.63, "skiing": 0.91, "tennis": 0.58},
}
"""F1 of SPACE+MOC, localisation and class together, as its authors' report of 31 March 2025 has it
in table 3 (github.com/nlsgrndn/SCoBots): the best published ones of detectors without labels."""

_NONE = "—"


@dataclass(frozen=True)
class Row:
    """One detector on one game.

    Attributes:
        game: as `game_of` spells it.
        frames: how many were measured on.
        background: whose median the two baselines took: `training` frames or the `measured` ones.
        weights: the detector.
        joint: whether it is for several games.
        date: of the weights.
        header: of the weights file.
        report: how good it is, or where nothing is labelled, how far it agrees.
        median: scores of `objrl.models.median`, by centre and by IoU; empty where nothing is
            labelled.
        ten_lines: of `measure.ten_lines`, in the same way.
        probe: what `probe_perceiver` found; empty where there were too few objects or no truth.
    """

    game: str
    frames: int
    background: str
    weights: Weights
    joint: bool
    date: str
    header: Mapping[str, Any]
    report: Report | Agreement
    median: Sequence[Score]
    ten_lines: Sequence[Score]
    probe: Mapping[str, Probe]

    @property
    def training(self) -> Mapping[str, Any]:
        """What the header says of the training; empty for what was not trained."""
        return dict(self.header["training"])


def title(game: str) -> str:
    """Spell a game as ALE's ids do: ms_pacman becomes MsPacman."""
    return game.title().replace("_", "")


def page(rows: Sequence[Row], unseen: Sequence[str], command: str) -> str:
    """Return the whole page.

    Args:
        rows: what was measured, in the order of the tables.
        unseen: games of shipped detectors without any frames.
        command: that wrote it.
    """
    labelled = [row for row in rows if isinstance(row.report, Report)]
    probed = [row for row in labelled if row.probe]
    parts = [
        "# Results",
        f"Written by `{command}`; do not edit by hand. {datetime.now(UTC).date()}, "
        f"{platform.machine()}, {os.cpu_count()} cores, torch {torch.__version__}.",
        _RULES + _backgrounds(labelled),
    ]
    for name, group in _groups(labelled).items():
        parts += [f"## {name}", _scores(group)]
    if labelled:
        parts += ["## Recall by class", _classes(labelled)]
    if probed:
        parts += ["## Telling objects apart", _PROBES, _probes(probed)]
    if len(labelled) < len(rows) or unseen:
        parts += ["## Games without labelled frames", _unlabelled(rows, unseen)]
    parts += ["## The weights", _origins(rows)]
    parts += ["## Pictures", _PICTURES]
    parts += [f"![{title(game)}](results/{title(game)}.png)" for game in _games(rows)]
    return "\n\n".join(parts) + "\n"


_RULES = f"""\
- *Learnt* is the shipped detector, *median* is `objrl.models.median`, *ten lines* the plainest way
  without learning: what differs by more than 24 from the pixel-wise median, 3 x 3 closing,
  connected pieces of at least 3 pixels, none wider or taller than 60.
- A box fits by centre, within half of the true box's diagonal, or by IoU of at least 0.5; one to
  one, classes play no part (`objrl.metrics`). The pills of MsPacman and the cubes of Qbert count
  neither way.
- *Published* is the best F1 by centre that others published, SPACE+MOC's (report of 31 March 2025,
  table 3). It is of other frames and counts wrong classes too, so it only tells about where to be.
- *Count error* is the mean over frames of |found - there| / there, by centre. *CPU-s* is the
  training's, as the header of the weights has it.
- How objects are followed from frame to frame, by SPACE with the tracker and by SCALOR:
  [following.md](following.md). Whether an agent plays better for it: [agents.md](agents.md).
- Main games are {", ".join(map(title, MAIN_GAMES))}.
- A mean is given where every row has the figure."""

_COLUMNS = "F1 by either rule; count error, AP50 and CPU-s are of the learnt detector."

_PROBES = f"""\
Classes guessed from `what`, from the pixels in the same boxes (*crop*) and from width and height
alone (*size*), of the objects that were found, classes with at least {MIN_MEMBERS} in either half
of the frames. Linear probe and nearest neighbours: balanced accuracy, learnt on the first half of
the frames and tested on the last; *chance* is theirs. AMI: {CLUSTERS} clusters without labels
against the classes; chance is 0. See `objrl.pretrain.probe`."""

_PICTURES = """\
Four frames of each game, evenly spread and not chosen: as it is, what was found, what there is to
find (or what the median baseline finds, where nothing is labelled), then the frame taken apart."""


def _groups(rows: Iterable[Row]) -> dict[str, list[Row]]:
    """By heading: those of one game by their model, those of several each by itself."""
    groups: dict[str, list[Row]] = {}
    for row in rows:
        name = f"{row.weights.name}: one detector for all of these"
        if not row.joint:
            name = f"{row.weights.model}: a detector a game"
        groups.setdefault(name, []).append(row)
    return groups


def _scores(rows: Sequence[Row]) -> str:
    header = ["game", "frames"]
    header += [f"{who}, by centre" for who in ("learnt", "median", "ten lines", "published")]
    header += [f"{who}, by IoU" for who in ("learnt", "median", "ten lines")]
    header += ["count error", "AP50", "CPU-s"]
    lines: list[list[Cell]] = []
    for row in rows:
        ours = row.report.metrics()
        centre, iou = ((m.f1, t.f1) for m, t in zip(row.median, row.ten_lines, strict=True))
        scores = [ours["f1_centre"], *centre, PUBLISHED.get(row.game), ours["f1_iou"], *iou]
        scores += [ours["count_error_centre"], ours["ap50"], row.training.get("cpu_seconds")]
        lines.append([title(row.game), str(row.frames), *scores])
    main = [line for row, line in zip(rows, lines, strict=True) if row.game in MAIN_GAMES]
    means = _means(main, f"of the {len(MAIN_GAMES)} main games") + _means(lines, "games in all")
    return f"{_COLUMNS}\n\n{_table(header, [*lines, *means])}"


def _means(lines: Sequence[Sequence[Cell]], what: str) -> list[list[Cell]]:
    """Return the line of means, or none where there is nothing to average."""
    found: list[list[Cell]] = []
    if lines:
        means: list[Cell] = []
        for column in list(zip(*lines, strict=True))[2:]:
            values = [value for value in column if isinstance(value, float | int)]
            means.append(statistics.fmean(values) if len(values) == len(lines) else None)
        found.append([f"mean of {len(lines)} {what}", "", *means])
    return found


def _classes(rows: Sequence[Row]) -> str:
    lines: list[list[Cell]] = []
    for row in rows:
        assert isinstance(row.report, Report)
        for name, found in row.report.classes().items():
            recalls = [found["recall_centre"], found["recall_iou"]]
            lines.append([title(row.game), row.weights.name, name, f"{found['objects']}", *recalls])
    return _table(["game", "weights", "class", "objects", "by centre", "by IoU"], lines, words=3)


def _probes(rows: Sequence[Row]) -> str:
    sources = ("what", "crop", "size")
    kinds = {"linear_balanced": "linear", "neighbours_balanced": "neighbours", "ami_many": "AMI"}
    header = ["game", "weights", "classes", "chance"]
    header += [f"{kind}: {source}" for kind in kinds.values() for source in sources]
    lines: list[list[Cell]] = []
    for row in rows:
        found = {source: row.probe[source].metrics() for source in sources}
        line: list[Cell] = [title(row.game), row.weights.name]
        line += [str(len(row.probe["what"].classes)), found["what"]["majority_balanced"]]
        lines.append([*line, *(found[source][kind] for kind in kinds for source in sources)])
    return _table(header, lines, words=2)


def _unlabelled(rows: Sequence[Row], unseen: Sequence[str]) -> str:
    lines: list[list[Cell]] = []
    for row in rows:
        if isinstance(row.report, Agreement):
            ours = row.report.metrics()
            names = ["agreement_f1_centre", "agreement_f1_iou"]
            names += ["slots_per_frame", "baseline_slots_per_frame"]
            line = [title(row.game), row.weights.name, str(row.frames)]
            lines.append([*line, *(ours[name] for name in names)])
    parts = []
    if lines:
        header = ["game", "weights", "frames", "by centre", "by IoU", "slots", "slots of median"]
        parts += [
            "Nobody labelled frames of these. They are judged by their pictures below, and by F1 "
            "of the detector against the median baseline: agreement, not accuracy.",
            _table(header, lines, words=2),
        ]
    if unseen:
        parts.append(f"Not measured, for want of any frames: {', '.join(map(title, unseen))}.")
    return "\n\n".join(parts)


def _origins(rows: Sequence[Row]) -> str:
    shipped = {row.weights.name: row for row in rows}
    header = ["weights", "date", "preset", "steps", "seed", "frames", "policy", "seed of frames"]
    header += ["CPU-s", "machine"]
    lines: list[list[Cell]] = []
    for name, row in shipped.items():
        data, training = row.header["data"], row.training
        facts = [training.get("preset"), training.get("steps"), training.get("seed")]
        facts += [data.get("frames"), data.get("policy"), data.get("seed")]
        line: list[Cell] = [name, row.date, *(None if f is None else str(f) for f in facts)]
        lines.append([*line, training.get("cpu_seconds"), training.get("machine")])
    return _table(header, lines)


def _backgrounds(rows: Sequence[Row]) -> str:
    """Say whose median the baselines took."""
    said = []
    for words, which in (
        ("frames of the training split", "training"),
        ("measured ones", "measured"),
    ):
        games = _games(row for row in rows if row.background == which)
        if games:
            said.append(f"of the {words} for {', '.join(map(title, games))}")
    return f"\n- The baselines' background is the median {'; '.join(said)}." if said else ""


def _games(rows: Iterable[Row]) -> list[str]:
    return list(dict.fromkeys(row.game for row in rows))


def _table(header: Sequence[str], lines: Sequence[Sequence[Cell]], words: int = 1) -> str:
    """Write a table, all columns after the first `words` to the right."""
    rule = ["---"] * words + ["--:"] * (len(header) - words)
    cells = [header, rule, *([_cell(value) for value in line] for line in lines)]
    return "\n".join("| " + " | ".join(row) + " |" for row in cells)


def _cell(value: Cell) -> str:
    if value is None:
        return _NONE
    if isinstance(value, str):
        return value
    return f"{value:,.0f}" if value >= 100 else f"{value:.3f}"
