"""A fleet of trainings: the finished are left alone, the killed go on, failures are told."""

from __future__ import annotations

import runpy
import subprocess
import sys
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import IO, Any

import ale_py
import gymnasium as gym
import pytest

from objrl import cli
from objrl.pretrain import fleet
from objrl.pretrain.fleet import GAMES, FleetConfig, run_of, ship_fleet, train_fleet
from objrl.pretrain.run import CHECKPOINT, WEIGHTS
from objrl.pretrain.ship import ShipConfig
from objrl.pretrain.train import TrainConfig


class Trainings:
    """What was started in place of `subprocess.run`; the games that it is told to fail do."""

    def __init__(self) -> None:
        self.commands: dict[str, list[str]] = {}
        self.failing: dict[str, int] = {}
        self.together: threading.Barrier | None = None

    def run(self, command: list[str], *, stdout: IO[str], **how: Any) -> SimpleNamespace:
        assert how == {"stderr": subprocess.STDOUT, "check": False}
        (game,) = (w[4:-3] for w in command if w.startswith("ALE/"))
        assert game not in self.commands
        self.commands[game] = command
        if self.together:
            self.together.wait(timeout=10)
        print(f"training {game}", file=stdout)
        return SimpleNamespace(returncode=self.failing.get(game, 0))


@pytest.fixture
def trainings(monkeypatch: pytest.MonkeyPatch) -> Trainings:
    stub = Trainings()
    monkeypatch.setattr(subprocess, "run", stub.run)
    return stub


def options(command: list[str], monkeypatch: pytest.MonkeyPatch) -> TrainConfig:
    """What the command asks the trainer for."""
    assert command[:3] == [sys.executable, "-m", "objrl.cli"]
    asked: list[TrainConfig] = []
    monkeypatch.setattr("objrl.pretrain.train.train", asked.append)
    assert not cli.main(command[3:])
    return asked[0]


def begun(config: FleetConfig, game: str, file: str) -> None:
    run_of(config, game).mkdir(parents=True)
    (run_of(config, game) / file).touch()


def test_a_game_gets_the_command_that_a_user_would_type(
    tmp_path: Path, trainings: Trainings, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = FleetConfig(games=("Pong",), minutes=2.5, seed=3, out=tmp_path / "runs")
    assert train_fleet(config) == []
    wanted = TrainConfig(
        env="ALE/Pong-v5", minutes=2.5, seed=3, threads=1, out=run_of(config, "Pong")
    )
    assert options(trainings.commands["Pong"], monkeypatch) == wanted
    assert Path(f"{run_of(config, 'Pong')}.log").read_text() == "training Pong\n"


def test_the_finished_are_left_alone_and_the_killed_go_on(
    tmp_path: Path, trainings: Trainings, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = FleetConfig(games=("Pong", "Boxing", "Tennis"), out=tmp_path)
    begun(config, "Pong", WEIGHTS)
    begun(config, "Boxing", CHECKPOINT)
    assert train_fleet(config) == []
    asked = {game: options(c, monkeypatch) for game, c in trainings.commands.items()}
    assert {game: train.resume for game, train in asked.items()} == {
        "Boxing": True,
        "Tennis": False,
    }
    # A finished run may still have its last checkpoint.
    (run_of(config, "Pong") / CHECKPOINT).touch()
    trainings.commands.clear()
    train_fleet(config)
    assert "Pong" not in trainings.commands


def test_another_seed_is_another_run(tmp_path: Path, trainings: Trainings) -> None:
    begun(FleetConfig(out=tmp_path), "Pong", WEIGHTS)
    train_fleet(FleetConfig(games=("Pong",), seed=1, out=tmp_path))
    assert set(trainings.commands) == {"Pong"}


def test_failures_are_told_and_stop_nobody_else(
    tmp_path: Path, trainings: Trainings, capsys: pytest.CaptureFixture[str]
) -> None:
    config = FleetConfig(games=("Pong", "Boxing", "Tennis"), workers=1, out=tmp_path)
    trainings.failing = {"Pong": 2, "Tennis": -9}
    assert train_fleet(config) == ["Pong", "Tennis"]
    assert set(trainings.commands) == set(config.games)
    told = capsys.readouterr()
    assert told.out.splitlines() == ["Pong: failed", "Boxing: trained", "Tennis: failed"]
    logs = [f"{run_of(config, game)}.log" for game in ("Pong", "Tennis")]
    assert all(log in line for log, line in zip(logs, told.err.splitlines(), strict=True))
    # What it says the next time is kept beside what it said.
    trainings.commands.clear()
    train_fleet(config)
    assert Path(logs[0]).read_text() == "training Pong\n" * 2


def test_workers_train_side_by_side(tmp_path: Path, trainings: Trainings) -> None:
    trainings.together = threading.Barrier(2)  # broken unless both are there at once
    config = FleetConfig(games=("Pong", "Boxing", "Tennis", "Skiing"), workers=2, out=tmp_path)
    assert train_fleet(config) == []


@pytest.mark.parametrize("code", [0, 1])
def test_the_exit_code_says_whether_one_failed(
    code: int, tmp_path: Path, trainings: Trainings, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainings.failing = {"Boxing": code}
    words = ["fleet", "--games", "Pong", "Boxing", "--out", str(tmp_path)]
    monkeypatch.setattr(sys, "argv", words)
    with pytest.raises(SystemExit) as stop:
        runpy.run_path(str(fleet.__file__), run_name="__main__")
    assert int(stop.value.code or 0) == code
    assert set(trainings.commands) == {"Pong", "Boxing"}


def test_what_is_trained_is_shipped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    shipped: list[ShipConfig] = []
    monkeypatch.setattr(fleet, "ship", shipped.append)
    folders = tuple(tmp_path / name for name in ("mine", "others"))
    for folder in folders:
        folder.mkdir()
    (folders[1] / "Pong.npz").touch()
    config = FleetConfig(
        games=("Pong", "Boxing", "MsPacman"), out=tmp_path / "runs", truth_dirs=folders
    )
    for game in ("Pong", "MsPacman"):
        begun(config, game, WEIGHTS)
    begun(config, "Boxing", CHECKPOINT)
    ship_fleet(config)
    weights = [run_of(config, game) / WEIGHTS for game in ("Pong", "MsPacman")]
    assert shipped == [
        ShipConfig(
            *(weights[0], "space-pong", ("ALE/Pong-v5", "PongNoFrameskip-v4")),
            truth=(folders[1] / "Pong.npz",),
        ),
        ShipConfig(*(weights[1], "space-ms_pacman", ("ALE/MsPacman-v5", "MsPacmanNoFrameskip-v4"))),
    ]
    assert capsys.readouterr().err == "Boxing: not trained yet\n"
    (folders[0] / "Pong.npz").touch()
    ship_fleet(config)
    assert shipped[2].truth == tuple(folder / "Pong.npz" for folder in folders)


def test_every_game_is_one_of_ales_under_both_names() -> None:
    gym.register_envs(ale_py)
    assert len(set(GAMES)) == len(GAMES)
    for game in GAMES:
        assert gym.spec(f"ALE/{game}-v5")
        assert gym.spec(f"{game}NoFrameskip-v4")
