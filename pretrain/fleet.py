"""Train a detector for every game that is shipped, several games side by side.

For maintainers, in a checkout: `python -m objrl.pretrain.fleet --workers 2`, and again with
`--ship` to put them all into the package. Every game gets the same command, which is what a user
would type: `objrl pretrain --env ALE/<game>-v5 --minutes 10 --threads 1`. What is finished is left
alone, what was killed goes on.
"""

from __future__ import annotations

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from objrl.pretrain.run import CHECKPOINT, WEIGHTS
from objrl.pretrain.ship import ShipConfig, ship
from objrl.wrappers.choose import game_of

GAMES = (
    *("SpaceInvaders", "AirRaid", "Riverraid", "MontezumaRevenge", "Asterix", "Atlantis"),
    *("Carnival", "DoubleDunk", "Kangaroo", "MsPacman", "Pooyan", "Qbert", "Boxing", "Freeway"),
    *("Pong", "Seaquest", "Skiing", "Tennis", "Breakout", "Frostbite"),
)
"""In ALE's spelling: the four games of SPACE's paper, those of its joint training that are not
among them, those of SPACE+MOC that are not either, and two more."""


@dataclass(frozen=True)
class FleetConfig:
    """Train detectors for many games."""

    games: tuple[str, ...] = GAMES
    """In ALE's spelling, without ALE/ and -v5."""
    minutes: float = 10.0
    """Wall time of training a game, at most: a run that has converged ends."""
    seed: int = 0
    """Of training; frames are always collected with the same seed."""
    workers: int = 2
    """Games trained at once, one thread each."""
    out: Path = Path("runs")
    """Folder of the runs."""
    ship: bool = False
    """Ship what is trained, in place of training."""
    truth_dirs: tuple[Path, ...] = ()
    """Folders with labelled frames, Pong.npz say, to measure what is shipped by; those of one game
    in several folders are joined."""


def run_of(config: FleetConfig, game: str) -> Path:
    """Return the folder of a game's run."""
    return config.out / f"{game}-space-fast-{config.seed}"


def train_fleet(config: FleetConfig) -> list[str]:
    """Train what is not trained yet; return the games that failed."""
    with ThreadPoolExecutor(config.workers) as pool:
        codes = list(pool.map(lambda game: _train(config, game), config.games))
    failed = [game for game, code in zip(config.games, codes, strict=True) if code]
    for game in failed:
        print(f"{game} failed: see {run_of(config, game)}.log", file=sys.stderr)
    return failed


def ship_fleet(config: FleetConfig) -> None:
    """Ship the runs that are finished, each measured on labelled frames where there are some."""
    for game in config.games:
        weights = run_of(config, game) / WEIGHTS
        if not weights.exists():
            print(f"{game}: not trained yet", file=sys.stderr)
            continue
        labelled = tuple(
            d / f"{game}.npz" for d in config.truth_dirs if (d / f"{game}.npz").exists()
        )
        ids = (f"ALE/{game}-v5", f"{game}NoFrameskip-v4")
        name = f"space-{game_of(ids[0])}"
        ship(ShipConfig(weights, name, ids, truth=labelled))
        print(f"shipped: {name}")


def _train(config: FleetConfig, game: str) -> int:
    folder = run_of(config, game)
    if (folder / WEIGHTS).exists():
        return 0
    command = [sys.executable, "-m", "objrl.cli", "pretrain", "--env", f"ALE/{game}-v5"]
    command += ["--minutes", str(config.minutes), "--seed", str(config.seed), "--threads", "1"]
    command += ["--out", str(folder), *(["--resume"] if (folder / CHECKPOINT).exists() else [])]
    folder.parent.mkdir(parents=True, exist_ok=True)
    with Path(f"{folder}.log").open("a") as log:
        code = subprocess.run(command, stdout=log, stderr=subprocess.STDOUT, check=False).returncode
    print(f"{game}: {'failed' if code else 'trained'}", flush=True)
    return code


if __name__ == "__main__":
    import tyro

    asked = tyro.cli(FleetConfig)
    if asked.ship:
        ship_fleet(asked)
    else:
        sys.exit(bool(train_fleet(asked)))
