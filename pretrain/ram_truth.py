"""`objrl truth`: label frames of an Atari game with the boxes that its memory tells.

The console's RAM holds where things are, and OCAtari's authors found out, game by game, how to read
it. What is read so is written as `objrl.pretrain.truth` describes, for `objrl evaluate --truth`; it
is for measuring only, never for training. OCAtari is no dependency: `INSTALL` says how to get it,
docs/truth.md what is known to be wrong in it.

Of OCAtari only the two functions are used that turn RAM into objects, beside a plain Gymnasium
environment: its own environment class swaps terminated and truncated.

References: Delfosse et al. 2023, OCAtari, arXiv 2306.08649.

Letters: H W pixels.
"""

from __future__ import annotations

import importlib
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import gymnasium as gym
import numpy as np
import numpy.typing as npt
from gymnasium.envs.registration import EnvSpec
from gymnasium.wrappers import AtariPreprocessing

from objrl.atomic import replacing
from objrl.pretrain.collect import find_spec
from objrl.pretrain.policies import Frames, Policy, make_policy

INSTALL = (
    "pip install --no-deps ocatari && pip install termcolor pyfiglet scikit-image matplotlib pygame"
)
"""Without its dependencies: it asks for numpy < 2, which the functions used here do not need."""

OPENING = 40
"""Steps before the first frame that may be kept: games begin blank, or with everything in place."""

MARGIN = 3
"""Width in pixels of the frame around a box whose commonest colour is taken for the background."""

DRAWN = 0.08
"""An object is drawn when at least this share of its box is not in the background's colour."""


@dataclass(frozen=True)
class TruthConfig:
    """Label frames of an Atari game with boxes from its RAM; needs OCAtari (docs/truth.md)."""

    env: str
    """Environment id of an Atari game, e.g. ALE/Pong-v5."""
    out: Path
    """The .npz file to write, for `objrl evaluate --truth`; one that exists is replaced."""
    frames: int = 64
    """How many frames."""
    last_two: bool = False
    """Show the brighter of the last two emulator frames, as `objrl collect --last-two` does."""
    every: int = 11
    """Keep every so manieth frame: neighbours look alike and add little."""
    policy: str = "random"
    """'random'; 'wander', which holds each random action for a while; or the zip of an SB3 agent
    (PPO, A2C or DQN with a CnnPolicy on grey frames)."""
    epsilon: float = 0.05
    """How often an agent acts at random instead, in [0, 1]."""
    seed: int = 0
    """Of the game and the actions; at least 0. It must differ from the seed of the frames that a
    detector was trained on, or it is measured on what it has seen."""


class Thing(NamedTuple):
    """An object as the RAM tells it: name of its class, upper left corner and size in pixels."""

    name: str
    x: int
    y: int
    width: int
    height: int


class RamReader:
    """Reads objects out of a game's RAM with OCAtari's functions."""

    def __init__(self, game: str) -> None:
        """Find the functions for a game.

        Args:
            game: its name as OCAtari spells it, e.g. SpaceInvaders.

        Raises:
            ImportError: OCAtari or what it imports is not installed.
            ValueError: OCAtari does not know the game, or fails on it.
        """
        os.environ.setdefault("PYGAME_HIDE_SUPPORT_PROMPT", "1")
        try:
            self._functions: Any = importlib.import_module("ocatari.ram.extract_ram_info")
        except ImportError as problem:
            raise ImportError(f"OCAtari cannot be imported ({problem}): {INSTALL}") from problem
        self._game = game
        self.begin()

    def begin(self) -> None:
        """Forget what was: an episode begins."""
        try:
            self._scene = self._functions.init_objects(self._game, hud=False)
            self._all = self._functions.init_objects(self._game, hud=True)
        except KeyError as problem:  # how it says that it has no module of that name
            raise ValueError(
                f"env: expected a game that OCAtari can read from RAM, got {self._game!r}; "
                "label frames yourself (the format is in objrl/pretrain/truth.py)"
            ) from problem
        except Exception as problem:
            raise self._failed(problem) from problem

    def read(self, ram: npt.NDArray[np.int64]) -> tuple[list[Thing], list[Thing]]:
        """Return the objects of the scene, and those together with score, lives and the like.

        To be called after every step, for some objects are told by what changed since the last.

        Args:
            ram: (128,) int64 in [0, 255]. As ALE's uint8, OCAtari's sums would wrap around.

        Raises:
            ValueError: OCAtari fails on this game.
        """
        try:
            self._functions.detect_objects_ram(self._scene, ram, self._game, False)
            self._functions.detect_objects_ram(self._all, ram, self._game, True)
            return _things(self._scene), _things(self._all)
        except Exception as problem:  # every game has code, and faults, of its own
            raise self._failed(problem) from problem

    def _failed(self, problem: Exception) -> ValueError:
        return ValueError(
            f"env: OCAtari fails on {self._game} ({problem!r}), a fault of its own; "
            "docs/truth.md names the games in which that is known"
        )


def make_truth(config: TruthConfig) -> Path:
    """Play, label and write as the command line asks.

    Returns:
        The path of the file.

    Raises:
        ImportError: OCAtari is not installed.
        ValueError: a bad setting, an unknown environment, one that is no Atari game or shows no
            RGB frames, a game that OCAtari does not know or fails on, or no object in any frame.
        OSError: no such policy file, or `out` cannot be written.
    """
    _check(config)
    spec = find_spec(config.env)
    game = _game_name(spec)
    reader = RamReader(game)
    with _make(spec, config.last_two) as env:
        if (env.observation_space.shape or ())[2:] != (3,):
            raise ValueError(
                f"env: expected RGB frames Box(H, W, 3), got {env.observation_space} of {spec.id}"
            )
        policy = make_policy(config.policy, env.action_space, env.action_space, config.epsilon)
        policy.seed(config.seed)
        kept = list(islice(_play(env, policy, reader, config), config.frames))

    sorted_out = [sort_out(*found) for found in kept]
    rows = [(i, *thing) for i, (seen, _) in enumerate(sorted_out) for thing in seen]
    ignored = [(i, *thing[1:]) for i, (_, aside) in enumerate(sorted_out) for thing in aside]
    if not rows:
        raise ValueError(
            f"env: expected objects to measure against, got none in {len(kept)} frames of {game}; "
            "try more --frames, or a --policy that plays further"
        )
    count = Counter(name for _, name, *_ in rows)
    classes = sorted(count)
    numbered = [(i, classes.index(name), *box) for i, name, *box in rows]
    with replacing(config.out) as temporary, temporary.open("wb") as file:
        np.savez_compressed(
            file,
            game=np.array(game),
            frames=np.stack([frame for frame, _, _ in kept]),
            classes=np.array(classes),
            boxes=np.array(numbered, dtype=np.int16),
            ignore=np.array(ignored, dtype=np.int16).reshape(-1, 5),
        )
    found = ", ".join(f"{name} {count[name]}" for name in classes)
    print(f"written: {config.out}, {len(kept)} frames of {game}")
    print(f"{len(rows)} boxes ({found}), {len(ignored)} to ignore")
    return config.out


def sort_out(
    frame: Frames, scene: Sequence[Thing], everything: Sequence[Thing]
) -> tuple[list[Thing], list[Thing]]:
    """Part what can be found in a frame from what is neither right nor wrong to find.

    Boxes are cut at the frame's edges; those with nothing left are dropped.

    Args:
        frame: (H, W, 3) uint8 RGB.
        scene: objects of the game.
        everything: the same and what is shown about the game, such as the score.

    Returns:
        Objects that are drawn in this frame. Then what to ignore: things of classes that the scene
        has not, and objects that the RAM knows but that are not drawn now, e.g. because they
        flicker.
    """
    height, width = frame.shape[:2]
    colours = frame.astype(np.int64) @ (1 << 16, 1 << 8, 1)
    names = {thing.name for thing in scene}
    seen: list[Thing] = []
    aside = [_cut(thing, width, height) for thing in everything if thing.name not in names]
    for thing in scene:
        cut = _cut(thing, width, height)
        (seen if _is_drawn(colours, cut) else aside).append(cut)
    return seen, [thing for thing in aside if thing.width > 0 and thing.height > 0]


def _make(spec: EnvSpec, last_two: bool) -> gym.Env[Any, Any]:
    if not last_two:
        return gym.make(spec)
    skip = spec.kwargs["frameskip"]
    env = gym.make(spec, frameskip=1)
    height, width = (env.observation_space.shape or (0, 0))[:2]
    return AtariPreprocessing(
        env, noop_max=0, frame_skip=skip, screen_size=(width, height), grayscale_obs=False
    )


def _play(
    env: gym.Env[Any, Any], policy: Policy, reader: RamReader, config: TruthConfig
) -> Iterator[tuple[Frames, list[Thing], list[Thing]]]:
    """Play for ever; yield the frames to keep, each with the two lists that were read with it."""
    frame, _ = env.reset(seed=config.seed)
    begins, step = True, 0
    while True:
        action = policy(frame[None], np.array([begins])).item()
        frame, _, terminated, truncated, _ = env.step(action)
        step += 1
        atari: Any = env.unwrapped
        things = reader.read(atari.ale.getRAM().astype(np.int64))
        if step > OPENING and step % config.every == 0:
            yield frame, *things
        begins = terminated or truncated
        if begins:
            frame, _ = env.reset()
            reader.begin()


def _things(objects: Sequence[Any]) -> list[Thing]:
    """Return those of OCAtari's objects that are there; absent ones keep a place in its lists."""
    present = [
        thing
        for thing in objects
        if thing is not None and thing.category != "NoObject" and getattr(thing, "visible", True)
    ]
    things = [Thing(str(thing.category), *map(int, thing.xywh)) for thing in present]
    return [thing for thing in things if thing.width > 0 and thing.height > 0]


def _cut(thing: Thing, width: int, height: int) -> Thing:
    """Return the part inside a frame; where there is none, a size is 0 or below."""
    left, top = max(thing.x, 0), max(thing.y, 0)
    right, bottom = min(thing.x + thing.width, width), min(thing.y + thing.height, height)
    return Thing(thing.name, left, top, right - left, bottom - top)


def _is_drawn(colours: npt.NDArray[np.int64], thing: Thing) -> bool:
    """Whether a box inside the frame holds something else than what surrounds it.

    Args:
        colours: (H, W), one number a colour.
        thing: the box.
    """
    if thing.width <= 0 or thing.height <= 0:
        return False
    bottom, right = thing.y + thing.height, thing.x + thing.width
    top, left = max(thing.y - MARGIN, 0), max(thing.x - MARGIN, 0)
    around = np.ones_like(colours, dtype=np.bool_)
    around[thing.y : bottom, thing.x : right] = False
    patch = np.s_[top : bottom + MARGIN, left : right + MARGIN]
    surrounding = colours[patch][around[patch]]
    if not surrounding.size:
        return True  # it fills the screen
    found, count = np.unique(surrounding, return_counts=True)
    inside = colours[thing.y : bottom, thing.x : right]
    return bool((inside != found[count.argmax()]).mean() >= DRAWN)


def _game_name(spec: EnvSpec) -> str:
    """Return a game's name as OCAtari and the ids of v5 spell it: space_invaders, SpaceInvaders."""
    if spec.entry_point != "ale_py.env:AtariEnv":
        raise ValueError(f"env: expected an Atari game of ALE, got {spec.id}; others have no RAM")
    return "".join(word.capitalize() for word in spec.kwargs["game"].split("_"))


def _check(config: TruthConfig) -> None:
    for name, least in (("frames", 1), ("every", 1), ("seed", 0)):
        value = getattr(config, name)
        if value < least:
            raise ValueError(f"{name}: expected at least {least}, got {value}")
    if not 0 <= config.epsilon <= 1:
        raise ValueError(f"epsilon: expected a probability in [0, 1], got {config.epsilon}")
