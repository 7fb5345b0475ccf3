"""`objrl watch`: a trained agent plays, and what it sees is drawn.

Letters: H W pixels.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import torch
import tyro
from tqdm import tqdm

from objrl.agents.agent import Agent, load_agent
from objrl.draw import Image, write_video

FPS = 15
"""As fast as the game: the v5 games act on every fourth of 60 frames a second."""
LONGEST = 5000
"""Steps of a film for each game: a policy may get stuck."""


@dataclass(frozen=True)
class WatchConfig:
    """Let a trained agent play, and film it with its objects drawn."""

    agent: tyro.conf.Positional[Path]
    """agent.safetensors of a run, the run's folder, or the name of a shipped agent: pong or
    space_invaders."""
    games: int = 1
    """How many to play."""
    out: Path = Path("watch.mp4")
    """The film."""
    seed: int = 0
    """Of the games."""
    device: str = "auto"
    """auto, cpu, cuda or cuda:N; auto takes CUDA where there is one."""
    threads: int = 1
    """CPU threads for networks."""


def watch(config: WatchConfig) -> list[float]:
    """Film some games, and return what they came to.

    Raises:
        FileNotFoundError: no such agent.
        ValueError: no agent of ours, or a bad setting.
    """
    for name in ("games", "threads"):
        if getattr(config, name) < 1:
            raise ValueError(f"{name}: expected at least 1, got {getattr(config, name)}")
    torch.set_num_threads(config.threads)
    agent = load_agent(config.agent, device=config.device, seed=config.seed)
    scores = film(agent, config.out, config.games)
    for number, score in enumerate(scores, start=1):
        print(f"game {number}: {score:g}")
    if len(scores) < config.games:
        print(f"cut after {LONGEST * config.games:,} steps")
    print(f"wrote {config.out}")
    return scores


def film(agent: Agent, path: Path, games: int = 1) -> list[float]:
    """Play with the likeliest actions, write an MP4 file, and return the games' returns.

    The agent's games are closed then.
    """
    scores: list[float] = []
    with contextlib.closing(agent.envs):
        write_video(path, _play(agent, games, scores), FPS)
    return scores


def _play(agent: Agent, games: int, scores: list[float]) -> Iterator[Image]:
    """Yield what is seen step by step; put the returns into `scores`."""
    envs = agent.envs
    observation = envs.reset()
    for _ in tqdm(range(LONGEST * games), unit="step", desc="plays, at most", leave=False):
        yield _enlarged(envs.get_images()[0])
        action, _ = agent.model.predict(observation, deterministic=True)  # type: ignore[arg-type]
        observation, _, _, infos = envs.step(action)
        if "episode" in infos[0]:
            scores.append(float(infos[0]["episode"]["r"]))
            if len(scores) == games:
                return


def _enlarged(image: Image | None) -> Image:
    """Twice as large: (H, W, 3) -> (2 H, 2 W, 3)."""
    assert image is not None
    return np.asarray(cv2.resize(image, None, fx=2, fy=2, interpolation=cv2.INTER_NEAREST))
