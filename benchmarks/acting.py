"""What it costs to act on objects: environments for Stable-Baselines3, and PPO's update."""

from __future__ import annotations

from functools import partial
from typing import Literal

import numpy as np
import torch
from stable_baselines3 import PPO
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.logger import Logger
from stable_baselines3.common.vec_env import VecEnv

from benchmarks.rounds import Contestant, Work
from benchmarks.scene import GAME, Scene
from objrl.agents.agent import EXTRACTORS, AgentConfig
from objrl.agents.envs import make_envs

Sight = Literal["slots", "pixels"]
SIGHTS: tuple[Sight, ...] = ("slots", "pixels")
WAYS = ("random", "policy")


def playing(sight: Sight, way: str) -> str:
    """Return the name of a contestant of `environments`."""
    return f"{sight}, {way}"


def environments(scene: Scene, count: int) -> list[Contestant]:
    """Return `count` games at once, seen as slots or as pixels, played at random or by a policy."""
    return [
        Contestant(playing(sight, way), partial(_play, scene, sight, way, count), count)
        for sight in SIGHTS
        for way in WAYS
    ]


def updates(scene: Scene, count: int, steps: int | None = None) -> list[Contestant]:
    """Return PPO's update from a rollout in `count` games, from slots and from pixels.

    Args:
        scene: the perceiver.
        count: games at once.
        steps: of the rollout in each; by default as the recipe has it.
    """
    return [
        Contestant(
            sight, partial(_update, scene, sight, count, steps), count * (steps or n_steps(sight))
        )
        for sight in SIGHTS
    ]


def n_steps(sight: Sight) -> int:
    """Return how many steps a rollout has in each game."""
    steps: int = _config(sight).recipe.arguments["n_steps"]
    return steps


def extractor() -> str:
    """Return the name of what a policy takes slots with."""
    return EXTRACTORS[_config("slots").extractor].__name__


def gradient_steps(sight: Sight, count: int) -> int:
    """Return how many gradient steps an update from `count` games takes."""
    arguments = _config(sight).recipe.arguments
    return int(arguments["n_epochs"] * -(-count * arguments["n_steps"] // arguments["batch_size"]))


def _config(sight: Sight) -> AgentConfig:
    return AgentConfig(GAME, "ppo", sight, None)


def _envs(scene: Scene, sight: Sight, count: int) -> VecEnv:
    perceiver = scene.fast() if sight == "slots" else None
    stack = _config(sight).recipe.stack
    return make_envs(GAME, sight, count, learning=True, seed=0, stack=stack, weights=perceiver)


def _play(scene: Scene, sight: Sight, way: str, count: int, device: torch.device) -> Work:
    envs = _envs(scene, sight, count)
    observations = envs.reset()
    rng = np.random.default_rng(0)
    model = _config(sight).build(envs, seed=0, device=str(device))

    def step() -> None:
        nonlocal observations
        if way == "policy":
            actions, _ = model.predict(observations)  # type: ignore[arg-type]
        else:
            actions = rng.integers(0, envs.action_space.n, count)  # type: ignore[attr-defined]
        observations, *_ = envs.step(actions)

    return step


def _update(
    scene: Scene, sight: Sight, count: int, steps: int | None, device: torch.device
) -> Work:
    model = _config(sight).build(_envs(scene, sight, count), seed=0, device=str(device))
    assert isinstance(model, PPO)
    steps = steps or model.n_steps
    model.set_logger(Logger(None, []))
    buffer = model.rollout_buffer
    buffer.buffer_size = steps
    buffer.reset()
    _, callback = model._setup_learn(count * steps, _Silent())
    assert model.env is not None
    model.collect_rollouts(model.env, callback, buffer, steps)
    return model.train


class _Silent(BaseCallback):
    def _on_step(self) -> bool:
        return True
