"""Agents play games that look different: what is changed, and that nothing else is."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest

from objrl.agents.agent import AgentConfig
from objrl.agents.envs import make_envs
from objrl.agents.robustness import (
    ChangedFrames,
    RobustnessConfig,
    changed_envs,
    main,
    recoloured,
    usual_picture,
    without,
)
from objrl.agents.train import TrainConfig, train
from tests.helpers import STILL_PONG
from tests.test_agents import make_small

ocatari = pytest.mark.skipif(
    importlib.util.find_spec("ocatari") is None, reason="OCAtari is no dependency"
)


def test_what_differs_has_other_colours_and_nothing_else() -> None:
    usual = np.full((4, 5, 3), 50, np.uint8)
    frame = usual.copy()
    frame[0, 0] = 200, 200, 200
    frame[1, 1] = 0, 250, 100
    frame[2, 2] = 60, 50, 50  # hardly different
    changed = recoloured(frame, usual)
    assert changed[0, 0].tolist() == [200, 120, 200]
    assert changed[1, 1].tolist() == [250, 60, 0]
    same = np.ones((4, 5), np.bool_)
    same[0, 0] = same[1, 1] = False
    assert np.array_equal(changed[same], frame[same])


def test_what_is_hidden_gives_way_to_the_usual_picture() -> None:
    usual = np.arange(300, dtype=np.uint8).reshape(10, 10, 3)
    frame = np.full_like(usual, 255)
    changed = without(frame, usual, np.array([[0, 2, 3, 1]]))
    assert np.array_equal(changed[1:4, :4], usual[1:4, :4])
    assert (changed[4:] == 255).all()
    assert (changed[:, 4:] == 255).all()
    assert np.array_equal(without(frame, usual, np.zeros((0, 4), int)), frame)


@ocatari
def test_the_enemy_is_not_drawn_any_more() -> None:
    usual = usual_picture(STILL_PONG)
    plain, changed = gym.make(STILL_PONG), gym.make(STILL_PONG)
    changed = ChangedFrames(changed, "hidden:Enemy", usual)
    plain.reset(seed=0)
    changed.reset(seed=0)
    for _ in range(40):
        whole, parted = plain.step(3)[0], changed.step(3)[0]
    enemy = (whole == (213, 130, 74)).all(-1)
    enemy[:34] = False  # the score has its colour
    assert enemy.sum() > 20
    assert not (parted[enemy] == (213, 130, 74)).all(-1).any()
    differs = (whole != parted).any(-1)
    assert differs[~enemy].sum() < 20


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("upside_down", "expected unchanged, recoloured or hidden:CLASS, got 'upside_down'"),
        pytest.param("hidden:Elephant", "one of Player, Ball, Enemy", marks=ocatari),
    ],
)
def test_another_change_is_refused(change: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ChangedFrames(gym.make(STILL_PONG), change, np.zeros((210, 160, 3), np.uint8))


@pytest.mark.parametrize("sight", ["slots", "pixels"])
def test_games_are_shown_in_the_space_where_the_agent_learnt(sight: str) -> None:
    weights = "space-pong" if sight == "slots" else None
    config = AgentConfig("ALE/Pong-v5", "ppo", sight, weights)  # type: ignore[arg-type]
    usual = np.zeros((210, 160, 3), np.uint8)
    ours = changed_envs(config, "unchanged", usual, 1, seed=0)
    theirs = make_envs(
        *("ALE/Pong-v5", config.sees, 1),
        learning=False,
        seed=0,
        stack=config.recipe.stack,
        weights=weights,
    )
    assert ours.observation_space == theirs.observation_space
    ours.close()
    theirs.close()


def test_the_figures_of_several_changes_are_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_small(monkeypatch)
    run = tmp_path / "agent"
    train(TrainConfig("ALE/Breakout-v5", obs="pixels", steps=32, episodes=1, out=run, video=False))
    out = tmp_path / "found.json"
    for change in ("unchanged", "recoloured"):
        main(RobustnessConfig((run,), (change,), games=1, envs=1, out=out))
    entries = json.loads(out.read_text())
    assert [entry["change"] for entry in entries] == ["recoloured", "unchanged"]
    assert all(len(entry["returns"]) == 1 for entry in entries)
