"""What a user is told about the frames that weights learnt from, and those that they are shown."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ale_py
import gymnasium as gym
import numpy as np
from ale_py.vector_env import AtariVectorEnv
from gymnasium.envs.registration import EnvSpec
from gymnasium.wrappers import (
    AtariPreprocessing,
    MaxAndSkipObservation,
    RecordEpisodeStatistics,
)
from stable_baselines3.common.atari_wrappers import MaxAndSkipEnv

from objrl.models.median import Median
from objrl.weights import save_weights
from objrl.wrappers import ObjectSlots, VectorObjectSlots
from objrl.wrappers.choose import shows_last_two
from tests.helpers import MOVING_SQUARES

gym.register_envs(ale_py)
RGB: dict[str, Any] = {"grayscale": False, "stack_num": 1, "img_height": 210, "img_width": 160}


def pooled(frame_skip: int) -> gym.Env[Any, Any]:
    env = gym.make("ALE/Pong-v5", frameskip=1)
    return AtariPreprocessing(
        env, frame_skip=frame_skip, screen_size=(160, 210), grayscale_obs=False
    )


def spec_of(env: Any) -> EnvSpec | None:
    with env:
        spec: EnvSpec | None = env.spec
        return spec


def weights(path: Path, **data: int) -> Path:
    frames = np.random.default_rng(0).integers(0, 256, (4, 210, 160, 3), dtype=np.uint8)
    model = Median.fit(frames)
    return save_weights(path, model, model_name="median", data=data, training={}, metrics={})


def complaints(env: Any, path: Path | str) -> list[str]:
    wrapper = VectorObjectSlots if isinstance(env, gym.vector.VectorEnv) else ObjectSlots
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        wrapper(env, path, device="cpu").close()
    return [str(w.message) for w in caught if "emulator frame" in str(w.message)]


def test_it_is_known_which_emulator_frames_are_shown() -> None:
    assert shows_last_two(spec_of(gym.make("ALE/Pong-v5"))) is False
    assert shows_last_two(spec_of(pooled(4))) is True
    assert shows_last_two(spec_of(pooled(1))) is False
    skipping = gym.make("ALE/Pong-v5", frameskip=1)
    assert shows_last_two(spec_of(MaxAndSkipObservation(skipping))) is True
    assert shows_last_two(spec_of(MaxAndSkipEnv(skipping))) is True
    assert shows_last_two(spec_of(RecordEpisodeStatistics(skipping))) is None
    assert shows_last_two(spec_of(RecordEpisodeStatistics(gym.make("ALE/Pong-v5")))) is False
    assert shows_last_two(gym.make_vec("ALE/Pong-v5", 1, **RGB).spec) is True  # ALE's default
    assert shows_last_two(gym.make_vec("ALE/Pong-v5", 1, maxpool=False, **RGB).spec) is False
    assert shows_last_two(spec_of(gym.make(MOVING_SQUARES))) is None
    assert shows_last_two(None) is None


def test_frames_of_the_other_kind_are_warned_of(tmp_path: Path) -> None:
    one = weights(tmp_path / "one.safetensors", last_two=0)
    two = weights(tmp_path / "two.safetensors", last_two=1)
    unknown = weights(tmp_path / "unknown.safetensors")
    plain: list[Callable[[], Any]] = [
        lambda: gym.make("ALE/Pong-v5"),
        lambda: gym.make_vec("ALE/Pong-v5", 1, maxpool=False, **RGB),
        lambda: gym.make_vec("ALE/Pong-v5", 1, vectorization_mode="sync"),
    ]
    for make in plain:
        assert complaints(make(), one) == complaints(make(), unknown) == []
        (message,) = complaints(make(), two)
        assert "--last-two" not in message
    both: list[Callable[[], Any]] = [
        lambda: pooled(4),
        lambda: gym.make_vec("ALE/Pong-v5", 1, **RGB),
    ]
    for make in both:
        assert complaints(make(), two) == complaints(make(), unknown) == []
        (message,) = complaints(make(), one)
        assert "leave out" in message
        assert "--last-two" in message
    # And so it is with what is shipped.
    env = gym.make_vec("ALE/SpaceInvaders-v5", 1, **RGB)
    assert len(complaints(env, "space-space_invaders")) == 1
    # An environment without a spec tells nothing, and neither does a game that is not ALE's.
    assert complaints(AtariVectorEnv("pong", 1, **RGB), two) == []
    assert complaints(gym.make(MOVING_SQUARES), two) == []
