"""What everything is measured on: frames of Space Invaders, and what they tell a recipe."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import ale_py
import gymnasium as gym
import numpy as np
from tqdm import tqdm

import objrl
from objrl.models.median import Median, MedianConfig
from objrl.models.regions import Image
from objrl.models.space import Space
from objrl.perceiver import FramePerceiver, model_of
from objrl.pretrain.configure import Findings, configure, look
from objrl.pretrain.presets import SPACE, SpaceRecipe

GAME = "ALE/SpaceInvaders-v5"
EVERY = 8
"""Frames next to each other are all but the same: one of so many is kept."""

gym.register_envs(ale_py)


@dataclass(frozen=True)
class Scene:
    """The input of every contestant; small and picklable.

    Attributes:
        path: .npy file of (N, 210, 160, 3) uint8 frames.
        found: what they tell.
        weights: name or path of the detector to measure; None for an untrained one.
    """

    path: Path
    found: Findings
    weights: str | None = None

    def frames(self, count: int) -> Image:
        """Return (count, H, W, 3) uint8 frames, spread over the file."""
        frames = np.load(self.path, mmap_mode="r")
        chosen = np.linspace(0, len(frames) - 1, count).astype(np.int64)
        return np.ascontiguousarray(frames[chosen])

    def recipe(self) -> SpaceRecipe:
        """Return `space-fast` as it configures itself on these frames."""
        return configure(SPACE["space-fast"], self.found)

    def fast(self) -> FramePerceiver:
        """Return the detector that is measured as `space-fast`."""
        if self.weights is None:
            return FramePerceiver(Space(self.recipe().model))
        return FramePerceiver(model_of(objrl.load(self.weights, device="cpu")))

    def median(self) -> FramePerceiver:
        """Return the baseline without learning."""
        (seen,) = self.found.seen.every
        height, width = seen.scenery.median.shape[:2]
        config = MedianConfig(frame_size=(height, width), max_slots=self.found.rows)
        return FramePerceiver(Median.knowing(seen, config))

    def paper(self, *, rows: int, dense: bool, cell: int) -> FramePerceiver:
        """Return the paper's architecture with its three background components, untrained."""
        model = SPACE["space-paper-space_invaders"].model
        return FramePerceiver(Space(replace(model, max_slots=rows, dense=dense, cell=cell)))


def play(path: Path, count: int, weights: str | None) -> Scene:
    """Write `count` frames of a random agent, seed 0, and look at them."""
    env = gym.make(GAME)
    env.action_space.seed(0)
    kept = [env.reset(seed=0)[0]]
    for step in tqdm(range(1, EVERY * count), desc="play"):
        frame, _, terminated, truncated, _ = env.step(env.action_space.sample())
        if terminated or truncated:
            frame, _ = env.reset()
        if step % EVERY == 0:
            kept.append(frame)
    env.close()
    frames = np.stack(kept)
    np.save(path, frames)
    return Scene(path, look(frames), weights)
