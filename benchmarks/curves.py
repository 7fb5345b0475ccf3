"""Learning curves: read from the folders of runs, kept as CSV, drawn.

Letters: S seeds.
"""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import matplotlib as mpl
import numpy as np
import numpy.typing as npt

from objrl.agents.compare import KINDS
from objrl.agents.train import CURVE
from objrl.atomic import replacing

Floats = npt.NDArray[np.float64]

NAMES = {
    "space": "slots of SPACE",
    "scalor": "slots of SCALOR",
    "ram": "objects of the RAM",
    "pixels": "pixels",
}
COLOURS = {"space": "tab:blue", "scalor": "tab:green", "ram": "tab:orange", "pixels": "tab:gray"}
RUN = re.compile(rf"(\w+)-({'|'.join(KINDS)})-(\w+)-(\d+)-(\d+)")
COLUMNS = (
    *("game", "kind", "algo", "budget", "seed", "steps", "games", "score", "evaluated", "spread"),
    *("wall_seconds", "cpu_seconds"),
)


class Group(NamedTuple):
    """Runs that are to be compared with each other."""

    algo: str
    budget: int

    @property
    def name(self) -> str:
        """As its picture is called."""
        return f"{self.algo}-{self.budget}"


@dataclass(frozen=True)
class Curve:
    """What a run's curve.csv says.

    Attributes:
        game: in ALE's spelling.
        kind: what the agent saw; or random.
        group: algorithm and steps.
        seed: of it.
        rows: of the file.
    """

    game: str
    kind: str
    group: Group
    seed: int
    rows: tuple[dict[str, str], ...]

    @property
    def key(self) -> tuple[Group, str, str, int]:
        """What no other curve is, in the order in which they are kept."""
        return self.group, self.game, self.kind, self.seed

    @property
    def ended(self) -> bool:
        """Whether all steps were done, and it was evaluated after them."""
        evaluated = [row for row in self.rows if row["evaluated"]]
        return bool(evaluated) and int(evaluated[-1]["steps"]) >= self.group.budget

    def entries(self, column: str) -> list[float]:
        """Return what there is of a column."""
        return [float(row[column]) for row in self.rows if row[column]]

    def last(self, column: str = "score") -> float:
        """Return the last entry of a column, NaN where none is."""
        return (self.entries(column) or [np.nan])[-1]

    def line(self, steps: Floats) -> Floats:
        """Return its score at steps, straight from entry to entry; NaN before and after them.

        A run is looked at between rollouts, some steps beyond what was asked for: the first entry
        counts from a hundredth before it on.
        """
        scored = [row for row in self.rows if row["score"]]
        if not scored:
            return np.full(len(steps), np.nan)
        known = [float(row["steps"]) for row in scored]
        near = np.where(steps >= 0.99 * known[0], np.maximum(steps, known[0]), steps)
        line: Floats = np.interp(near, known, self.entries("score"), left=np.nan, right=np.nan)
        return line


def read_runs(runs: Path) -> list[Curve]:
    """Read the runs of a folder."""
    curves = []
    for path in sorted(runs.glob(f"*/{CURVE}")):
        named = RUN.fullmatch(path.parent.name)
        rows = _rows(path)
        if named and rows:
            game, kind, algo, budget, seed = named.groups()
            curves.append(Curve(game, kind, Group(algo, int(budget)), int(seed), tuple(rows)))
    return curves


def read_csv(path: Path) -> list[Curve]:
    """Read what an earlier page was made of."""
    curves: dict[tuple[Group, str, str, int], Curve] = {}
    for row in _rows(path) if path.exists() else []:
        group = Group(row["algo"], int(row["budget"]))
        empty = Curve(row["game"], row["kind"], group, int(row["seed"]), ())
        before = curves.get(empty.key, empty)
        curves[empty.key] = replace(before, rows=(*before.rows, row))
    return list(curves.values())


def _rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def to_csv(curves: Iterable[Curve]) -> str:
    """Return what `read_csv` reads."""
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, COLUMNS, restval="", lineterminator="\n")
    writer.writeheader()
    for curve in curves:
        group = {"algo": curve.group.algo, "budget": curve.group.budget}
        names = {"game": curve.game, "kind": curve.kind, **group, "seed": curve.seed}
        for row in curve.rows:
            writer.writerow({**row, **names})
    return text.getvalue()


def draw(curves: Sequence[Curve], path: Path) -> None:
    """Draw the training returns over steps, a panel a game: mean of the seeds and their range.

    Runs under way are drawn where none has ended.
    """
    mpl.use("Agg")
    from matplotlib import pyplot as plt
    from matplotlib.lines import Line2D

    games = sorted({curve.game for curve in curves})
    figure, axes = plt.subplots(
        1, len(games), figsize=(1 + 4 * len(games), 3.6), squeeze=False, layout="constrained"
    )
    for axis, game in zip(axes[0], games, strict=True):
        for kind in KINDS:
            mine = [c for c in curves if (c.game, c.kind) == (game, kind)]
            mine = [c for c in mine if c.ended] or mine
            if not mine:
                continue
            last = min(int(c.rows[-1]["steps"]) for c in mine)
            steps = np.linspace(0, last, 60)[1:]
            scores = np.array([c.line(steps) for c in mine])
            shown = ~np.isnan(scores).any(0)
            x, y, colour = steps[shown], scores[:, shown], COLOURS[kind]
            axis.plot(x, y.mean(0), color=colour)
            axis.fill_between(x, y.min(0), y.max(0), color=colour, alpha=0.2, linewidth=0)
        axis.set(title=game, xlabel="thousands of actions")
        axis.xaxis.set_major_formatter(lambda value, _: f"{value / 1000:g}")
    axes[0, 0].set_ylabel("return, last 100 games")
    drawn = [kind for kind in KINDS if any(c.kind == kind for c in curves)]
    lines = [Line2D([], [], color=COLOURS[kind], label=NAMES[kind]) for kind in drawn]
    figure.legend(handles=lines, loc="outside lower center", ncols=len(lines), fontsize=8)
    with replacing(path) as temporary:
        figure.savefig(temporary, dpi=80, format="png")
    plt.close(figure)
