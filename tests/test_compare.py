"""The comparison of agents: what is run, what is left alone, what the page says of it."""

from __future__ import annotations

import csv
import json
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks import agents
from benchmarks.agents import AgentsConfig, interquartile_mean, main
from benchmarks.curves import COLUMNS, Curve, Group
from objrl.agents import compare
from objrl.agents.agent import AGENT
from objrl.agents.compare import CompareConfig, Run, plan
from objrl.agents.train import COLUMNS as TRAINED
from objrl.agents.train import CURVE


def write_run(folder: Path, steps: int, score: float, evaluated: float | str) -> None:
    """Write what `objrl train` leaves after so many steps: half of them at half the score."""
    folder.mkdir(parents=True)
    (folder / AGENT).touch()
    with (folder / CURVE).open("w", newline="") as file:
        writer = csv.DictWriter(file, TRAINED, restval="")
        writer.writeheader()
        for part in (0.2, 0.6, 1.04):  # never on the mark: a run is looked at between rollouts
            row = {"steps": int(part * steps), "games": 3, "score": part / 1.04 * score}
            writer.writerow({**row, "wall_seconds": 9.5, "cpu_seconds": 5.25})
        writer.writerow({"steps": int(1.04 * steps), "evaluated": evaluated, "spread": 0.5})


def test_what_has_ended_is_left_alone_and_what_was_cut_off_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = CompareConfig(games=("Pong",), kinds=("space", "pixels"), steps=200, out=tmp_path)
    first, second = (run.folder for run in plan(config)[:2])
    assert first.name == "Pong-space-ppo-200-0"
    write_run(first, 200, 1.0, 2.0)
    write_run(second, 100, 1.0, 2.0)
    (second / "checkpoint.safetensors").touch()
    commands: list[list[str]] = []

    class Process:
        returncode = 0

        def __init__(self, command: list[str], **_: Any) -> None:
            commands.append(command)

        def poll(self) -> int:
            return 0

    monkeypatch.setattr(subprocess, "Popen", Process)
    assert compare.compare(config) == []
    assert len(commands) == 3
    by_folder = {command[command.index("--out") + 1]: command for command in commands}
    assert str(first) not in by_folder
    assert "--resume" in by_folder[str(second)]
    other = by_folder[str(tmp_path / "Pong-space-ppo-200-1")]
    assert "--resume" not in other
    assert other[other.index("--weights") + 1] == "space-pong"


def test_games_without_weights_of_a_kind_are_left_out() -> None:
    runs = plan(CompareConfig(games=("Asterix",), seeds=(0,)))
    assert [run.kind for run in runs] == ["space", "ram", "pixels"]
    with pytest.raises(ValueError, match=r"seeds: expected some of 0 or more, got \(-1,\)"):
        plan(CompareConfig(seeds=(-1,)))
    with pytest.raises(
        ValueError, match=r"expected some that there are weights of for Asterix, got sc"
    ):
        plan(CompareConfig(games=("Asterix",), kinds=("scalor",)))
    with pytest.raises(ValueError, match=r"games: .*Did you mean: `Pong`"):
        plan(CompareConfig(games=("Pnog",)))


def test_when_the_time_is_over_runs_are_asked_to_stop(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    waits = "import signal, sys; signal.signal(15, lambda *_: sys.exit(130)); signal.pause()"
    monkeypatch.setattr(Run, "command", lambda run: [sys.executable, "-c", waits])
    config = CompareConfig(games=("Pong",), kinds=("pixels",), minutes=0.02, out=tmp_path)
    assert compare.compare(config) == []


def test_asked_to_stop_it_asks_its_runs(tmp_path: Path) -> None:
    script = f"""
import sys
from pathlib import Path
from objrl.agents import compare
waits = "import signal as s; s.signal(15, lambda *_: exit(130)); print(1, flush=True); s.pause()"
compare.Run.command = lambda run: [sys.executable, "-c", waits]
found = compare.compare(compare.CompareConfig(
    games=("Pong",), kinds=("pixels",), seeds=(0,), out=Path({str(tmp_path)!r})
))
sys.exit(len(found))
"""
    process = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE)
    log = tmp_path / "Pong-pixels-ppo-200000-0.log"
    while not (log.exists() and log.read_text()):
        assert process.poll() is None
        time.sleep(0.1)
    process.terminate()
    assert b"not ended" in process.communicate(timeout=60)[0]  # waits for whoever has its output
    assert process.returncode == 0


def test_a_run_that_fails_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Run, "command", lambda run: [sys.executable, "-c", "raise SystemExit(1)"])
    config = CompareConfig(games=("Pong",), kinds=("pixels",), seeds=(0,), out=tmp_path)
    assert [run.folder.name for run in compare.compare(config)] == ["Pong-pixels-ppo-200000-0"]


def test_the_page_says_what_the_curves_say_and_keeps_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Whole games of Pong take a minute; the real thing is tried below, on games that are cut.
    chance = {"steps": "0", "score": "-20.5", "evaluated": "-20.5"}
    monkeypatch.setattr(
        agents, "_play_at_random", lambda curve, games: replace(curve, rows=(chance,))
    )
    runs, config = tmp_path / "runs", AgentsConfig(tmp_path / "runs", tmp_path / "agents.md", 8)
    for kind, scores in (("space", (4.0, 6.0)), ("pixels", (-20.0, -18.0))):
        for seed, score in enumerate(scores):
            write_run(runs / f"Pong-{kind}-ppo-200-{seed}", 200, score, score + 1)
    write_run(runs / "Pong-space-ppo-200-2", 100, 9.0, "")
    write_run(runs / "another-thing", 100, 9.0, "")
    (tmp_path / "agents").mkdir()
    played = {"agent": "pong-1", "env": "ALE/Pong-v5", "seed": 0}
    changes = [{"change": "unchanged", "returns": [-0.5]}]
    changes += [{"change": "recoloured", "returns": [-14.5, -16.5]}]
    (tmp_path / "agents" / "robustness.json").write_text(json.dumps([played | c for c in changes]))
    page = main(config)
    assert "| Pong | pong-1 | unchanged | -0.5 ± 0.0 | 1 | — |" in page
    assert "| Pong | pong-1 | recoloured | -15.5 ± 1.0 | 2 | 0.25 |" in page
    assert "## PPO, 200 actions" in page
    row = next(line for line in page.splitlines() if "slots of SPACE" in line)
    assert "2 (and 1 under way)" in row
    # Learning at a quarter and half, the third run's too (0.96, 1.44, 4.33; 1.92, 2.88, 8.65).
    assert "| 2.2 ± 1.7 | 4.5 ± 3.4 | 5.0 ± 1.0 | 6.0 ± 1.0 | 6.0 ± 1.0 | 5 | 10 |" in row
    assert "- Pong: slots of SPACE are 24.0 ahead of pixels (2 of 2 seeds)." in page
    assert "| Pong | random | — | — | — | -20.5 |" in page
    assert "there are too few" in page
    assert (tmp_path / "agents" / "ppo-200.png").stat().st_size > 5000
    with (tmp_path / "agents" / "curves.csv").open() as file:
        assert tuple(next(csv.reader(file))) == COLUMNS
    assert main(AgentsConfig(tmp_path / "gone", config.out, 8)) == page


def test_the_interquartile_mean_leaves_out_a_quarter_at_either_end() -> None:
    scores = np.array([[0.0, 1.0], [2.0, 100.0]])
    middle, low, high = interquartile_mean(scores)
    assert middle == 1.5
    assert low <= middle <= high
    assert interquartile_mean(np.full((3, 2), 4.0)) == (4.0, 4.0, 4.0)


def test_a_curve_is_straight_between_its_entries_and_ends_with_them() -> None:
    rows = [{"steps": "90", "score": "1"}, {"steps": "104", "score": "5"}]
    curve = Curve("Pong", "ram", Group("ppo", 100), 0, tuple(rows))
    assert curve.last() == 5
    line = curve.line(np.array([50.0, 89.5, 90.0, 97.0, 105.0]))
    assert np.array_equal(line, [np.nan, 1, 1, 3, np.nan], equal_nan=True)
