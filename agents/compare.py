"""Do objects help? Agents that see objects, pixels or the RAM, trained alike on several games.

    python -m objrl.agents.compare --games Pong --steps 5e5 --minutes 120
    python -m objrl.agents.compare --games Boxing Freeway SpaceInvaders Asterix --minutes 120

Each agent is a run of `objrl train` by itself, with the same games, seeds, steps, clipping of
rewards and evaluations. What is finished is left alone, what the clock or Ctrl-C cut off goes on
where it was; SIGTERM does as Ctrl-C. `python -m benchmarks.agents` writes tables and curves of what
is there.
"""

from __future__ import annotations

import csv
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import ale_py
import gymnasium as gym

from objrl.agents.agent import AGENT
from objrl.agents.presets import Algorithm
from objrl.agents.train import CHECKPOINT, CURVE
from objrl.stopping import asked_to_stop
from objrl.weights import WEIGHTS
from objrl.wrappers.choose import game_of

Kind = Literal["space", "scalor", "ram", "pixels"]
KINDS: tuple[Kind, ...] = ("space", "scalor", "ram", "pixels")
"""What an agent sees: slots of shipped weights, the RAM's objects, or pixels (NatureCNN)."""

STOPPED = (130, -signal.SIGTERM)
"""How a run ends that was asked to stop: with a checkpoint, or before it had begun."""


@dataclass(frozen=True)
class CompareConfig:
    """Train agents that see the same games in different ways."""

    games: tuple[str, ...] = ("Pong", "Boxing", "Freeway", "SpaceInvaders", "Asterix")
    """In ALE's spelling, without ALE/ and -v5."""
    kinds: tuple[Kind, ...] = KINDS
    """What the agents see; games without weights of a kind are left out."""
    algo: Algorithm = "ppo"
    """Algorithm."""
    steps: float = 2e5
    """Actions of each agent."""
    seeds: tuple[int, ...] = (0, 1)
    """Of the agents of each kind and game."""
    workers: int = 2
    """Agents trained at once, one thread each."""
    minutes: float = 0.0
    """Wall time after which all are stopped, to go on another time; 0 for none."""
    out: Path = Path("runs/agents")
    """Folder of the runs."""


@dataclass(frozen=True)
class Run:
    """One agent of the comparison.

    Attributes:
        game: in ALE's spelling.
        kind: what it sees.
        algo: how it learns.
        seed: of game and agent.
        steps: its actions.
        folder: of its files.
    """

    game: str
    kind: Kind
    algo: str
    seed: int
    steps: int
    folder: Path

    @property
    def ended(self) -> bool:
        """Whether it has done all its steps, and was evaluated after them."""
        path = self.folder / CURVE
        if not ((self.folder / AGENT).exists() and path.exists()):
            return False
        with path.open(newline="") as file:
            rows = [row for row in csv.DictReader(file) if row["evaluated"]]
        return bool(rows) and int(rows[-1]["steps"]) >= self.steps

    def command(self) -> list[str]:
        """Return what to type for it."""
        words = ["--env", f"ALE/{self.game}-v5", "--algo", self.algo, "--seed", str(self.seed)]
        words += ["--steps", str(self.steps), "--threads", "1", "--no-video"]
        if self.kind in ("ram", "pixels"):
            words += ["--obs", self.kind]
        else:
            words += ["--obs", "slots", "--weights", _weights(self.kind, self.game)]
        words += ["--out", str(self.folder)]
        words += ["--resume"] if (self.folder / CHECKPOINT).exists() else []
        return [sys.executable, "-m", "objrl.cli", "train", *words]


def plan(config: CompareConfig) -> list[Run]:
    """Return the runs, those of one seed together, so that what is cut off is comparable.

    Raises:
        ValueError: a bad number, an unknown game, or nothing to run.
    """
    for name in ("steps", "workers"):
        if getattr(config, name) < 1:
            raise ValueError(f"{name}: expected at least 1, got {getattr(config, name)}")
    if not config.seeds or min(config.seeds) < 0:
        raise ValueError(f"seeds: expected some of 0 or more, got {config.seeds}")
    gym.register_envs(ale_py)
    for game in config.games:
        try:
            gym.spec(f"ALE/{game}-v5")
        except gym.error.NameNotFound as error:  # it names some that are like it
            raise ValueError(f"games: {error}") from error
    runs = [
        Run(
            *(game, kind, config.algo, seed, int(config.steps)),
            config.out / f"{game}-{kind}-{config.algo}-{int(config.steps)}-{seed}",
        )
        for seed in config.seeds
        for game in config.games
        for kind in config.kinds
        if kind in ("ram", "pixels") or _weights(kind, game) in WEIGHTS
    ]
    if not runs:
        raise ValueError(
            f"kinds: expected some that there are weights of for {', '.join(config.games)}, got "
            f"{', '.join(config.kinds)}; `objrl weights` lists them"
        )
    return runs


def compare(config: CompareConfig) -> list[Run]:
    """Train what is not trained yet, until the time is over; return the runs that failed."""
    runs = plan(config)
    until = time.monotonic() + 60 * config.minutes if config.minutes else None
    with asked_to_stop() as stop, ThreadPoolExecutor(config.workers) as pool:

        def over() -> bool:
            return stop() or (until is not None and time.monotonic() > until)

        codes = list(pool.map(lambda run: _train(run, over), runs))
    failed = [run for run, code in zip(runs, codes, strict=True) if code not in (0, *STOPPED)]
    _report(runs, failed)
    return failed


def _weights(kind: Kind, game: str) -> str:
    return f"{kind}-{game_of(f'ALE/{game}-v5')}"


def _train(run: Run, over: Callable[[], bool]) -> int:
    """Train one agent to its end or until all is over; return how its process ended."""
    if run.ended:
        return 0
    if over():
        return STOPPED[0]
    run.folder.parent.mkdir(parents=True, exist_ok=True)
    with Path(f"{run.folder}.log").open("a") as log:
        # In a session of its own: Ctrl-C is for us alone, who then ask it to stop once. Twice
        # would be at once.
        process = subprocess.Popen(
            run.command(), stdout=log, stderr=subprocess.STDOUT, start_new_session=True
        )
        while process.poll() is None:
            if over():
                process.send_signal(signal.SIGTERM)
                return process.wait()
            time.sleep(1)
    return process.returncode


def _report(runs: Sequence[Run], failed: Sequence[Run]) -> None:
    for run in runs:
        state = "failed, see its .log" if run in failed else "ended" if run.ended else "not ended"
        print(f"{run.folder}: {state}")


if __name__ == "__main__":
    import tyro

    sys.exit(bool(compare(tyro.cli(CompareConfig))))
