"""The examples run as a reader would run them, in miniature, and the loop of our own learns."""

from __future__ import annotations

import ast
import io
import os
import subprocess
import sys
import tokenize
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium.spaces import Box, Discrete
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from gymnasium.wrappers import TimeLimit
from gymnasium.wrappers.vector import RecordEpisodeStatistics

from examples import cleanrl_ppo

ROOT = Path(__file__).parent.parent


def run(name: str, cwd: Path, *options: str, **variables: str) -> str:
    """Run an example in an empty folder and return what it printed."""
    done = subprocess.run(
        [sys.executable, str(ROOT / "examples" / name), *options],
        cwd=cwd,
        env=os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"} | variables,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def code_lines(source: str) -> int:
    """Count lines that hold more than a comment, without the module's docstring."""
    first = ast.parse(source).body[0]
    assert isinstance(first, ast.Expr)
    told = {
        *(tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT),
        tokenize.ENDMARKER,
    }
    lines: set[int] = set()
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type not in told:
            lines.update(range(token.start[0], token.end[0] + 1))
    return len(lines - set(range(first.lineno, (first.end_lineno or 0) + 1)))


def test_the_tutorial_is_short() -> None:
    assert code_lines('"""Doc\n\nstring."""\n# comment\nx = (\n    1\n)  # one\n\ny = 2\n') == 4
    assert code_lines((ROOT / "examples/tutorial.py").read_text()) < 30


def test_the_tutorial_leaves_an_agent_and_a_film(tmp_path: Path) -> None:
    shown = run("tutorial.py", tmp_path, "--steps", "16")
    assert "in 16 frames" in shown
    assert {path.name for path in (tmp_path / "runs").iterdir()} == {
        *("tutorial.zip", "tutorial.mp4")
    }


def test_our_own_loop_runs(tmp_path: Path) -> None:
    shown = run("cleanrl_ppo.py", tmp_path, "--steps", "16", "--envs", "2")
    assert shown.splitlines()[-1] == "16 steps, no game over yet"


def test_recurrent_ppo_runs(tmp_path: Path) -> None:
    pytest.importorskip("sb3_contrib")
    assert "after 16 steps" in run("recurrent_ppo.py", tmp_path, "--steps", "16", "--envs", "2")


@pytest.mark.parametrize("envs", ["1", "2"])
def test_rllib_runs(tmp_path: Path, envs: str) -> None:
    pytest.importorskip("ray.rllib")
    options = ("--steps", "32", "--envs", envs)
    # It writes into the home folder.
    shown = run("rllib_ppo.py", tmp_path, *options, HOME=str(tmp_path), RAY_USAGE_STATS_ENABLED="0")
    assert "iteration 2: 64 steps" in shown


SEEN = {
    "position": np.zeros((2, 2), np.float32),
    "presence": np.array([[1], [0]], np.float32),
}


class Still(gym.Env[dict[str, Any], np.int64]):
    """One object that never moves, and a reward of 1 for whatever is done."""

    observation_space = gym.spaces.Dict(
        {"position": Box(-1, 1, (2, 2), np.float32), "presence": Box(0, 1, (2, 1), np.float32)}
    )
    action_space = Discrete(2)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        super().reset(seed=seed)
        return SEEN, {}

    def step(self, action: np.int64) -> tuple[dict[str, Any], float, bool, bool, dict[str, Any]]:
        return SEEN, 1.0, False, False, {}


@pytest.mark.parametrize("mode", cleanrl_ppo.MODES.values())
def test_our_own_loop_treats_ends_right(
    mode: AutoresetMode, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in {"GAMMA": 0.5, "RATE": 3e-3, "LENGTH": 16}.items():
        monkeypatch.setattr(cleanrl_ppo, name, value)
    alone = [lambda: TimeLimit(Still(), 2)] * 4
    envs = RecordEpisodeStatistics(SyncVectorEnv(alone, autoreset_mode=mode))
    agent = cleanrl_ppo.train(envs, 25 * 64)
    observation, _ = envs.reset()
    with torch.no_grad():
        _, values = agent(observation)
    # 1 + 1/2 + 1/4 + ...: less if the steps that begin games counted, or a cut were an end.
    assert values.tolist() == pytest.approx([2.0] * 4, abs=0.1)
