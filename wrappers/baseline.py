"""What `ObjectSlots` sees with where no weights are shipped: the baseline without learning.

The median of some frames of random play is the background, and what differs from it, in connected
pieces, are objects (`objrl.models.median`). The frames come from an environment of their own, made
from the spec of the caller's, which is neither played nor seeded for it.
"""

from __future__ import annotations

import warnings
from dataclasses import replace

import cv2
import gymnasium as gym
import numpy as np
import numpy.typing as npt
import torch
from gymnasium.envs.registration import EnvSpec

from objrl.models.median import Median
from objrl.perceiver import FramePerceiver
from objrl.weights import registry
from objrl.wrappers.spaces import frame_shape

FRAMES = 512
"""How many frames the background is taken from."""
STRIDE = 8
"""One frame is kept out of so many: a few episodes of most games, not the first one's beginning."""

_fitted: dict[str, tuple[EnvSpec, Median]] = {}
"""What this process has fitted already, by what was played."""


def fit_baseline(
    spec: EnvSpec, shape: tuple[int, ...], max_slots: int | None, device: str | torch.device
) -> FramePerceiver:
    """Return the baseline for a game, fitted once per process; the first time with a warning.

    The same spec gives the same baseline in every process.

    Args:
        spec: what the caller's environment was made from, single.
        shape: (H, W, 3) of the frames that will be seen; those played are resized to it.
        max_slots: K; by default that of `MedianConfig`.
        device: "auto" takes CUDA where there is one.

    Raises:
        ValueError: the environment cannot be made again from its spec or shows no RGB frames, a
            bad device or number of slots.
    """
    place = registry.resolve_device(device)
    if max_slots is not None and max_slots < 1:
        raise ValueError(f"max_slots: expected at least 1, got {max_slots}")
    spec = _unwatched(spec)
    key = repr((shape, replace(spec, kwargs={**spec.kwargs, "render_mode": None})))
    if key not in _fitted:
        with _make(spec) as env:
            warnings.warn(
                f"{none_shipped(spec.id)}: the baseline without learning is used (median "
                f"background, connected pieces), fitted now on {FRAMES} frames of random play, "
                f"which takes some seconds; {how_to_make_some(spec.id)}; any weights=, a "
                "ready perceiver among them, silences this",
                stacklevel=4,
            )
            frames = _play(env, shape)
        # The spec stays with it: a function in the key is told by its address, which must not
        # become another's.
        _fitted[key] = spec, Median.fit(frames)
    _, fitted = _fitted[key]
    # A model of the caller's own, who may move it to another device.
    model = Median(replace(fitted.config, max_slots=max_slots or fitted.max_slots))
    model.load_state_dict(fitted.state_dict())
    return FramePerceiver(model).to(place)


def none_shipped(env_id: str) -> str:
    """Say that there are no weights for a game, and which there are."""
    names = ", ".join(entry.name for entry in registry.list_weights()) or "none"
    return f"no weights are shipped for {env_id!r} (shipped: {names})"


def how_to_make_some(env_id: str) -> str:
    """Say how to come by weights for a game."""
    return (
        f"make a learnt detector with `objrl pretrain --env {env_id} --minutes 10`, and pass the "
        "file that it writes as weights="
    )


def _unwatched(spec: EnvSpec) -> EnvSpec:
    """Leave out what opens windows or writes videos; the caller's environment does that.

    Mode `rgb_array` stays: environments may observe what they render, and it shows nothing.
    """
    kwargs = {
        name: value
        for name, value in spec.kwargs.items()
        if name != "render_mode" or value == "rgb_array"
    }
    wrappers = tuple(
        wrapper
        for wrapper in spec.additional_wrappers
        if not wrapper.entry_point.startswith("gymnasium.wrappers.rendering:")
    )
    return replace(spec, kwargs=kwargs, additional_wrappers=wrappers)


def _make(spec: EnvSpec) -> gym.Env[npt.NDArray[np.uint8], object]:
    try:
        return gym.make(spec, disable_env_checker=True)  # the caller's was checked
    except Exception as problem:  # whatever its constructor or those of its wrappers raise
        raise ValueError(
            f"{none_shipped(spec.id)}, and the baseline without learning cannot be fitted, because "
            f"the environment cannot be made again from its spec ({problem}); "
            f"{how_to_make_some(spec.id)}"
        ) from problem


def _play(
    env: gym.Env[npt.NDArray[np.uint8], object], shape: tuple[int, ...]
) -> npt.NDArray[np.uint8]:
    """Return (FRAMES, H, W, 3) of random play, always the same ones, in that shape."""
    shown = frame_shape(env.observation_space)
    frames = np.empty((FRAMES, *shape), np.uint8)
    env.action_space.seed(0)
    frame, _ = env.reset(seed=0)
    for step in range(FRAMES * STRIDE):
        if step % STRIDE == 0:
            # As ALE's vector environments shrink theirs: rows become mixtures alike.
            sized = cv2.resize(frame.reshape(shown), shape[1::-1], interpolation=cv2.INTER_AREA)
            frames[step // STRIDE] = sized
        frame, _, terminated, truncated, _ = env.step(env.action_space.sample())
        if terminated or truncated:
            frame, _ = env.reset()
    return frames
