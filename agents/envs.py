"""The environments that agents learn and play in: the same game, whatever is seen of it.

How a game plays stays as its id has it: in ALE's v5 games four frames an action, and a quarter of
the actions repeated. Beyond that there is what is usual for Atari: up to 30 frames without action
at the start, a lost life that counts as an end, a press of fire where a game or a life waits for
it, and, while an agent learns, rewards of -1, 0 or 1. Agents are scored by whole games and true
rewards, which `infos[i]["episode"]` tells in either case.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import ale_py
import gymnasium as gym
from stable_baselines3.common import atari_wrappers
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import DummyVecEnv, VecEnv, VecFrameStack

from objrl.agents.presets import Sight
from objrl.agents.ram import RamSlots
from objrl.perceiver import Perceiver
from objrl.wrappers import AtariVecEnv, VecObjectSlots
from objrl.wrappers.choose import unknown_env

PIXELS = 84
"""Side of the grey frames that agents see who see pixels (Mnih et al. 2015)."""


def make_envs(
    env_id: str,
    sight: Sight,
    count: int,
    *,
    learning: bool,
    seed: int,
    stack: int = 1,
    weights: str | Perceiver | None = None,
    device: str = "auto",
    threads: int = 1,
) -> VecEnv:
    """Make environments of Stable-Baselines3.

    Args:
        env_id: a game of ALE, as `ALE/Pong-v5`.
        sight: what is seen of it: slots of a perceiver, pixels, the objects of the RAM, or frames
            in colour, for an encoder that learns with the agent.
        count: how many.
        learning: whether rewards are clipped.
        seed: of the games.
        stack: frames that are seen at once, those of slots too.
        weights: of the perceiver; by default what is shipped for the game.
        device: where the perceiver computes.
        threads: that games run in; those of the RAM always run in one.

    Raises:
        ValueError: no such game, one that is not played as ALE's v5 games are, or no weights.
        ImportError: the RAM's objects are wanted, and OCAtari is not there.
    """
    check_game(env_id)
    if sight == "ram":
        envs: VecEnv = DummyVecEnv([_ram_env(env_id, learning)] * count)
    else:
        envs = _ale_envs(env_id, sight, count, learning, threads)
    envs.seed(seed)
    if sight == "slots":
        envs = VecObjectSlots(envs, weights, device=device)
    return VecFrameStack(envs, stack) if stack > 1 else envs


def check_game(env_id: str) -> None:
    """Check that agents can play it.

    Raises:
        ValueError: no such game, or one that is not played as ALE's v5 games are.
    """
    gym.register_envs(ale_py)
    if env_id not in gym.registry:
        raise unknown_env(env_id)
    skip = gym.spec(env_id).kwargs.get("frameskip")
    if not isinstance(skip, int) or "repeat_action_probability" not in gym.spec(env_id).kwargs:
        raise ValueError(
            f"env: expected a game of ALE with a fixed number of frames an action, as ALE/Pong-v5, "
            f"got {env_id!r}"
        )


def _ale_envs(env_id: str, sight: Sight, count: int, learning: bool, threads: int) -> AtariVecEnv:
    game = gym.spec(env_id).kwargs
    pixels = sight == "pixels"
    return AtariVecEnv(
        *(env_id, count),
        grayscale=pixels,
        maxpool=pixels,
        screen_size=PIXELS if pixels else _screen(env_id),
        frame_skip=game["frameskip"],
        action_repeat_probability=game["repeat_action_probability"],
        clip_reward=learning,
        num_threads=threads,
    )


def _screen(env_id: str) -> tuple[int, int]:
    """Return (H, W) of a game's own frames: mostly 210 x 160, but 250 high in some."""
    with gym.make(env_id) as env:
        height, width = env.observation_space.shape[:2]  # type: ignore[index]
    return height, width


def _ram_env(env_id: str, learning: bool) -> Callable[[], gym.Env[Any, Any]]:
    """Nearly as ALE's vector environments play, game by game: OCAtari reads one RAM at a time.

    SB3's wrappers wait for whole actions at the start, press FIRE before the first action where
    ALE's has it in that action's place, and play an action unseen after a lost life.
    """

    def make() -> gym.Env[Any, Any]:
        env: gym.Env[Any, Any] = Monitor(gym.make(env_id, render_mode="rgb_array"))
        env = atari_wrappers.NoopResetEnv(env, noop_max=30 // gym.spec(env_id).kwargs["frameskip"])
        env = atari_wrappers.EpisodicLifeEnv(env)
        if "FIRE" in env.unwrapped.get_action_meanings():  # type: ignore[attr-defined]
            env = atari_wrappers.FireResetEnv(env)
        return RamSlots(atari_wrappers.ClipRewardEnv(env) if learning else env)

    return make
