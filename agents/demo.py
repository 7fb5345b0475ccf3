"""`objrl demo`: play a game without a network connection and show what its objects are.

Where an agent is shipped for the game it plays, and nobody but chance does elsewhere.

Letters: N frames, K slots, H W pixels.
"""

from __future__ import annotations

import contextlib
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import ale_py
import gymnasium as gym
import numpy as np
import torch
from tqdm import tqdm

from objrl.agents.agent import load_agent, shipped_agents
from objrl.draw import Image, contact_sheet, draw_slots, write_png, write_video
from objrl.perceiver import Perceiver, model_of
from objrl.slots import Slots
from objrl.weights import load
from objrl.wrappers import ObjectSlots
from objrl.wrappers.choose import game_of, weights_for
from objrl.wrappers.spaces import Observation

RANDOM = "random"

VIDEO_SCALE = 3
VIDEO_FPS = 15
"""As fast as the game: the v5 games act on every fourth of 60 frames a second."""
SHEET_FRAMES = 4
TIMED_FRAMES = 100


@dataclass(frozen=True)
class DemoConfig:
    """Play a game offline and show its objects: a table, a video and a contact sheet."""

    env: str = "ALE/SpaceInvaders-v5"
    """Gymnasium id of the game."""
    weights: str | None = None
    """Shipped weights by name, or the path of a .safetensors file; by default the game's own."""
    agent: str | None = None
    """Who plays: as for `objrl watch`, or random; by default the agent that is shipped for the game
    and its weights, and random where none is."""
    steps: int = 300
    """How many actions to play."""
    out: Path = Path()
    """Folder for demo.mp4 and demo.png."""
    seed: int = 0
    """Seed of the game and of random actions."""
    device: str = "auto"
    """auto, cpu, cuda or cuda:N; auto takes CUDA where there is one."""
    threads: int = 1
    """CPU threads for the perception; where others use the machine, more wait for each other."""


@dataclass(frozen=True)
class DemoReport:
    """What the demo measured and wrote.

    Attributes:
        slots: B = 1, those of the table.
        perception_fps: frames a second of the perception alone, by its median time for one frame.
        whole_fps: frames a second of game, perception and agent, by the median time of one step.
        reward: what was won in all steps.
        video: the MP4 file.
        sheet: the PNG file.
    """

    slots: Slots
    perception_fps: float
    whole_fps: float
    reward: float
    video: Path
    sheet: Path


def demo(config: DemoConfig) -> DemoReport:
    """Play, print and write what `objrl demo` promises.

    Raises:
        ValueError: no steps or threads, unknown weights, none shipped for the game, a bad device,
            an agent for another game or for other weights.
        FileNotFoundError: no such agent.
        gymnasium.error.Error: unknown game.
        OSError: a file cannot be written.
    """
    for name in ("steps", "threads"):
        if getattr(config, name) < 1:
            raise ValueError(f"{name}: expected at least 1, got {getattr(config, name)}")
    gym.register_envs(ale_py)
    weights = config.weights or weights_for(config.env)
    perceiver = load(weights, device=config.device)
    player = _player(config, weights)
    config.out.mkdir(parents=True, exist_ok=True)
    video, sheet = config.out / "demo.mp4", config.out / "demo.png"

    with _threads(config.threads):
        frames, slots, whole_fps, reward = _play(config, perceiver, player)
        perception_fps = _time_perception(perceiver, frames)
        shown = len(frames) // 2
        print(f"{config.env}: {config.steps} actions, weights {weights}")
        print(f"played by {player.name}; reward {reward:g}")
        print(
            f"\nThe objects of frame {shown}; x and y in [-1, 1], w and h as fractions of the frame"
        )
        print(format_slots(slots[shown], *frames[shown].shape[:2]))
        print(f"\nperception alone     {perception_fps:7.1f} frames/s on {perceiver.device}")
        print(f"with game and player {whole_fps:7.1f} frames/s, both by the median frame")
        write_video(video, _draw_all(frames, slots), VIDEO_FPS)
        write_png(sheet, _draw_sheet(perceiver, frames, slots))
    print(f"\nwrote {video} and {sheet}")
    return DemoReport(slots[shown], perception_fps, whole_fps, reward, video, sheet)


@dataclass(frozen=True)
class _Player:
    """Who plays.

    Attributes:
        name: for people.
        act: the action for what an environment shows; None for random ones.
    """

    name: str
    act: Callable[[Observation], Any] | None = None


def _player(config: DemoConfig, weights: str) -> _Player:
    """Return who plays: the agent that is wanted, or the one that there is."""
    wanted, shipped = config.agent, game_of(config.env)
    if wanted == RANDOM or (wanted is None and shipped not in shipped_agents()):
        return _Player("chance")
    agent = load_agent(wanted or shipped, device=config.device)
    agent.envs.close()
    what = agent.config
    if (what.env, what.weights) != (config.env, weights) or what.sees != "slots":
        if wanted is None:
            return _Player("chance")
        raise ValueError(
            f"agent: expected one that sees slots of {weights} in {config.env}, got {wanted!r}, "
            f"which sees {what.sees} of {what.weights} in {what.env}; take its --env and --weights"
        )

    def act(seen: Observation) -> Any:
        return agent.model.predict(seen, deterministic=True)[0]

    learnt, chance = agent.about.get("measured"), agent.about.get("random")
    name = f"the agent {wanted or shipped}"
    if learnt and chance:
        name += f" (whole games {learnt['return']:g} on average, at random {chance['return']:g})"
    return _Player(name, act)


def format_slots(slots: Slots, height: int, width: int) -> str:
    """Return a table of the present rows of one frame's slots (B = 1), H x W pixels large."""
    values, boxes = slots.numpy(), slots.boxes(height, width)[0].cpu().numpy()
    lines = ["row   id       x       y      w      h  presence   depth  box x0 y0 x1 y1 in pixels"]
    for row in np.flatnonzero(values["presence"][0, :, 0]):
        (x, y), (w, h) = values["position"][0, row], values["scale"][0, row]
        presence, depth = values["presence"][0, row, 0], values["depth"][0, row, 0]
        lines.append(
            f"{row:3d} {values['track_id'][0, row, 0]:4d} {x:7.3f} {y:7.3f} {w:6.3f} {h:6.3f} "
            f"{presence:9.3f} {depth:7.3f}  " + " ".join(f"{side:5.1f}" for side in boxes[row])
        )
    return "\n".join(lines if len(lines) > 1 else [*lines, "(no objects)"])


def _play(
    config: DemoConfig, perceiver: Perceiver, player: _Player
) -> tuple[list[Image], Slots, float, float]:
    """Return N = steps + 1 frames, their slots (B = N), frames a second of it all, the reward."""
    env = ObjectSlots(gym.make(config.env, render_mode="rgb_array"), perceiver)
    env.action_space.seed(config.seed)
    meanings: list[str] = getattr(env.unwrapped, "get_action_meanings", list)()
    fire = meanings.index("FIRE") if "FIRE" in meanings else None
    try:
        observation, _ = env.reset(seed=config.seed)
        frames, seen = [_raw_frame(env)], [env.slots]
        seconds, won, waits, lives = [], 0.0, True, 0
        for _ in tqdm(range(config.steps), "playing", unit="frame", leave=False):
            begin = time.perf_counter()
            if player.act is None:
                action = env.action_space.sample()
            else:  # a game or life may wait for FIRE, which was pressed for it when it learnt, too
                action = fire if waits and fire is not None else player.act(observation)
            observation, reward, terminated, truncated, info = env.step(action)
            seconds.append(time.perf_counter() - begin)
            won += float(reward)
            waits, lives = info.get("lives", 0) < lives, info.get("lives", 0)
            if terminated or truncated:
                observation, _ = env.reset()
                waits = True
            frames.append(_raw_frame(env))
            seen.append(env.slots)
    finally:
        env.close()
    whole = {f.name: torch.cat([getattr(slots, f.name) for slots in seen]) for f in fields(Slots)}
    return frames, Slots(**whole), 1 / statistics.median(seconds), won


def _raw_frame(env: ObjectSlots) -> Image:
    """Return the frame without the boxes that `ObjectSlots.render` draws."""
    return np.asarray(env.unwrapped.render(), dtype=np.uint8)


def _time_perception(perceiver: Perceiver, frames: list[Image]) -> float:
    """Return frames a second of `step` alone, for one environment.

    By the median, which other work on the machine and the first, slow call hardly change.
    """
    state, first, seconds = perceiver.initial_state(1), torch.ones(1, dtype=torch.bool), []
    for frame in frames[:TIMED_FRAMES]:
        begin = time.perf_counter()
        slots, state = perceiver.step(torch.from_numpy(frame)[None], state, first)
        slots.presence.cpu()  # waits for the device
        seconds.append(time.perf_counter() - begin)
        first = torch.zeros_like(first)
    return 1 / statistics.median(seconds)


def _draw_all(frames: list[Image], slots: Slots) -> Iterator[Image]:
    values, boxes = slots.numpy(), slots.boxes(*frames[0].shape[:2]).cpu().numpy()
    each = zip(frames, boxes, values["presence"], values["track_id"], strict=True)
    for frame, box, presence, ids in tqdm(each, "drawing", len(frames), unit="frame", leave=False):
        yield draw_slots(frame, box, presence, ids, VIDEO_SCALE)


def _draw_sheet(perceiver: Perceiver, frames: list[Image], slots: Slots) -> Image:
    """Some frames of the whole run, input, boxes, foreground and background beside each other."""
    picked = np.linspace(0, len(frames) - 1, min(SHEET_FRAMES, len(frames))).astype(int)
    images = np.stack([frames[index] for index in picked])
    with torch.inference_mode():
        parts = model_of(perceiver).decompose(torch.from_numpy(images).to(perceiver.device))
    chosen = slots.map(lambda field: field[torch.from_numpy(picked).to(field.device)])
    return contact_sheet(images, chosen, parts, rows=[f"frame {index}" for index in picked])


@contextlib.contextmanager
def _threads(number: int) -> Iterator[None]:
    """Let torch use so many CPU threads for a while."""
    before = torch.get_num_threads()
    torch.set_num_threads(number)
    try:
        yield
    finally:
        torch.set_num_threads(before)
