"""What it costs to see: a frame, and a step of an environment that shows objects."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import gymnasium as gym
import torch

from benchmarks.rounds import Contestant, Work
from benchmarks.scene import GAME, Scene
from objrl.perceiver import FramePerceiver
from objrl.wrappers import ObjectSlots, VectorObjectSlots

FAST, MEDIAN = "space-fast", "median, no learning"
DENSE = "SPACE as in the paper, every cell"
SPARSE = "the same, 64 cells, windows of 32"
FOLLOWED = ", followed"

Build = Callable[[Scene], FramePerceiver]


def encoders(scene: Scene, batch: int, cell: int = 8) -> list[Contestant]:
    """Return everything that turns `batch` frames into slots with tight boxes.

    Args:
        scene: the frames.
        batch: frames a call.
        cell: of the paper's architecture; 8 is its 16 x 16 grid.
    """
    cells = (128 // cell) ** 2
    sparse = partial(Scene.paper, rows=min(64, cells), dense=False, cell=cell)
    dense = partial(Scene.paper, rows=cells, dense=True, cell=cell)
    rows: list[tuple[str, Build, bool]] = [
        (FAST, Scene.fast, False),
        (FAST + FOLLOWED, Scene.fast, True),
        (MEDIAN, Scene.median, False),
        (MEDIAN + FOLLOWED, Scene.median, True),
        (DENSE, dense, False),
        (SPARSE, sparse, False),
    ]
    return [
        Contestant(name, partial(_see, scene, build, followed, batch), batch)
        for name, build, followed in rows
    ]


def environments(scene: Scene, counts: Sequence[int]) -> list[Contestant]:
    """Return the game bare and with `space-fast` in front of it, one and several at once."""
    return [
        Contestant(playing(count, seen), partial(_play, scene, count, seen), count)
        for count in counts
        for seen in (False, True)
    ]


def playing(count: int, seen: bool) -> str:
    """Return the name of a contestant of `environments`."""
    return f"{count} {'with objects' if seen else 'bare'}"


def _see(scene: Scene, build: Build, followed: bool, batch: int, device: torch.device) -> Work:
    perceiver = build(scene).to(device)
    frames = torch.from_numpy(scene.frames(batch))
    if not followed:
        return torch.inference_mode()(lambda: perceiver.detector.detect(frames.to(device)))
    state, first = perceiver.initial_state(batch), torch.zeros(batch, dtype=torch.bool)

    def step() -> None:
        nonlocal state
        _, state = perceiver.step(frames, state, first)

    return step


def _play(scene: Scene, count: int, seen: bool, device: torch.device) -> Work:
    perceiver = scene.fast().to(device)
    if count == 1:
        env: Any = gym.make(GAME)
        env = ObjectSlots(env, perceiver) if seen else env
    else:
        options: dict[str, Any] = {"img_height": 210, "img_width": 160, "grayscale": False}
        options |= {"stack_num": 1, "maxpool": False, "num_threads": torch.get_num_threads()}
        env = gym.make_vec(GAME, count, **options)
        env = VectorObjectSlots(env, perceiver) if seen else env
    env.action_space.seed(0)
    env.reset(seed=0)

    def step() -> None:
        _, _, terminated, truncated, _ = env.step(env.action_space.sample())
        if count == 1 and (terminated or truncated):
            env.reset()

    return step


def _nothing(device: torch.device) -> Work:
    return int


NOTHING = Contestant("nothing", _nothing)
"""Its peak of memory is what Python and the imports take."""
