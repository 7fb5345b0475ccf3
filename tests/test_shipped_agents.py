"""Shipping an agent: it is measured, must be better than chance, and is found by its name."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from stable_baselines3.common.vec_env import VecEnv

from objrl.agents import agent as agents
from objrl.agents import ship as shipping
from objrl.agents.agent import AGENT, AgentConfig, load_agent, save_agent
from objrl.agents.demo import DemoConfig, demo
from objrl.agents.ship import ShipConfig, at_random, ship
from objrl.agents.train import ZIP
from objrl.wrappers import AtariVecEnv

ENV, WEIGHTS = "ALE/SpaceInvaders-v5", "space-space_invaders"


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What `objrl train` leaves, of an agent that has learnt nothing."""
    folder = tmp_path_factory.mktemp("runs") / "si"
    folder.mkdir()
    config = AgentConfig(ENV, "ppo", "slots", WEIGHTS)
    envs = config.envs(1, learning=False, seed=0, device="cpu")
    model = config.build(envs, seed=0, device="cpu")
    envs.close()
    save_agent(folder / AGENT, config, model, {"steps": 10, "seed": 3, "cpu_seconds": 1.5})
    model.save(folder / ZIP)
    return folder


def scored(value: float) -> dict[str, Any]:
    return {"games": 2, "return": value, "spread": 1.0}


def test_a_shipped_agent_is_measured_found_by_name_and_plays_the_demo(
    run: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(agents, "SHIPPED", tmp_path / "shipped")
    monkeypatch.setattr(shipping, "played", lambda agent, games: scored(300))
    monkeypatch.setattr(shipping, "at_random", lambda env_id, games: scored(150))
    path = ship(ShipConfig(run, games=2, out=tmp_path / "shipped"))
    names = {file.name for file in path.parent.iterdir()}
    assert names == {"space_invaders" + end for end in (".safetensors", ".zip", ".md")}
    card = path.with_suffix(".md").read_text()
    assert "| the agent, likeliest actions | 300 ± 1.0 | 2 |" in card
    assert "`DeepSetsExtractor`" in card

    agent = load_agent("space_invaders", device="cpu")
    agent.envs.close()
    assert agent.about["measured"] == scored(300)
    options = {"steps": 12, "device": "cpu"}
    demo(DemoConfig(out=tmp_path / "a", **options))  # type: ignore[arg-type]
    shown = capsys.readouterr().out
    assert "played by the agent space_invaders (whole games 300 on average, at random 150)" in shown
    demo(DemoConfig(out=tmp_path / "b", agent="random", **options))  # type: ignore[arg-type]
    assert "played by chance" in capsys.readouterr().out
    with pytest.raises(ValueError, match="agent: expected one that sees slots of space-pong"):
        demo(DemoConfig("ALE/Pong-v5", out=tmp_path / "c", agent=str(path)))
    assert not (tmp_path / "c").exists()


def test_who_is_no_better_than_chance_is_not_shipped(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shipping, "played", lambda agent, games: scored(150))
    monkeypatch.setattr(shipping, "at_random", lambda env_id, games: scored(150))
    with pytest.raises(ValueError, match="plays better than at random"):
        ship(ShipConfig(run, out=tmp_path / "shipped"))
    with pytest.raises(ValueError, match="games: expected at least 1"):
        ship(ShipConfig(run, games=0, out=tmp_path / "shipped"))
    assert not (tmp_path / "shipped").exists()


def test_who_is_not_there_is_named(tmp_path: Path, run: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"no such agent.*by name there are"):
        load_agent("nobody")
    shutil.copytree(run, tmp_path / "copy")
    load_agent(tmp_path / "copy", device="cpu").envs.close()


def test_at_random_every_environment_gives_as_many_games(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[VecEnv] = []

    def cut(env_id: str, sight: str, count: int, **options: Any) -> AtariVecEnv:
        envs = AtariVecEnv(env_id, count, screen_size=20, max_num_frames_per_episode=200)
        made.append(envs)
        return envs

    monkeypatch.setattr(shipping, "make_envs", cut)
    found = at_random("ALE/Pong-v5", 20)
    assert found["games"] == 20
    assert -3 <= found["return"] <= 1
    assert found["spread"] == np.round(found["spread"], 2) >= 0
    assert made[0].num_envs == 8
    assert at_random("ALE/Pong-v5", 3)["games"] == 3
