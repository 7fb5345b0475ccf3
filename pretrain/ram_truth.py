"""`objrl truth`: label frames of an Atari game with the boxes that its memory tells.

The console's RAM holds where things are, and OCAtari's authors found out, game by game, how to read
it. What is read so is written as `objrl.pretrain.truth` describes, for `objrl evaluate --truth`; it
is for measuring only, never for training. With `--sequences` the frames follow each other and
every box has an identity, as `objrl.pretrain.tracks` describes, for `objrl evaluate --tracks`.
docs/truth.md says how to get OCAtari, and what is known to be wrong in it.

Letters: N frames, M boxes, H W pixels.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
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
from objrl.wrappers.ram_reader import RamReader, Thing

OPENING = 40
"""Steps before the first frame that may be kept: games begin blank, or with everything in place.
Before each sequence, too: counted from the episode's begin, or from the last sequence."""

MARGIN = 3
"""Width in pixels of the frame around a box whose commonest colour is taken for the background."""

DRAWN = 0.08
"""An object is drawn when at least this share of its box is not in the background's colour."""

TRIES = 20
"""Episodes in a row that may be too short for a sequence."""


@dataclass(frozen=True)
class TruthConfig:
    """Label frames of an Atari game with boxes from its RAM; needs OCAtari (docs/truth.md)."""

    env: str
    """Environment id of an Atari game, e.g. ALE/Pong-v5."""
    out: Path
    """The .npz file to write, for `objrl evaluate`; one that exists is replaced."""
    frames: int = 64
    """How many frames."""
    sequences: int = 0
    """Instead of --frames apart from each other: so many sequences of consecutive frames, with the
    identities of objects, for `objrl evaluate --tracks`."""
    length: int = 64
    """How many frames a sequence has; none goes on after its episode."""
    last_two: bool = False
    """Show the brighter of the last two emulator frames, as `objrl collect --last-two` does."""
    every: int = 11
    """Keep every so manieth frame: neighbours look alike and add little. Not of sequences."""
    policy: str = "random"
    """'random'; 'wander', which holds each random action for a while; or the zip of an SB3 agent
    (PPO, A2C or DQN with a CnnPolicy on grey frames)."""
    epsilon: float = 0.05
    """How often an agent acts at random instead, in [0, 1]."""
    seed: int = 0
    """Of the game and the actions; at least 0. It must differ from the seed of the frames that a
    detector was trained on, or it is measured on what it has seen."""


class Step(NamedTuple):
    """What a step of the game shows: a frame, and the two lists of things that are in the RAM."""

    frame: Frames
    scene: list[Thing]
    everything: list[Thing]
    over: bool
    """Whether the episode ends with it."""


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
    reader = RamReader(spec.kwargs["game"])
    with _make(spec, config.last_two) as env:
        if (env.observation_space.shape or ())[2:] != (3,):
            raise ValueError(
                f"env: expected RGB frames Box(H, W, 3), got {env.observation_space} of {spec.id}"
            )
        policy = make_policy(config.policy, env.action_space, env.action_space, config.epsilon)
        policy.seed(config.seed)
        steps = _play(env, policy, reader, config.seed)
        if config.sequences:
            stretches = islice(_stretches(steps, config.length), config.sequences)
            kept = [step for stretch in stretches for step in stretch]
        else:
            far = (s for n, s in enumerate(steps, 1) if n > OPENING and n % config.every == 0)
            kept = list(islice(far, config.frames))

    sorted_out = [sort_out(*step[:3]) for step in kept]
    rows = [(i, thing) for i, (seen, _) in enumerate(sorted_out) for thing in seen]
    ignored = [(i, *thing[1:5]) for i, (_, aside) in enumerate(sorted_out) for thing in aside]
    if not rows:
        raise ValueError(
            f"env: expected objects to measure against, got none in {len(kept)} frames of {game}; "
            "try more --frames, or a --policy that plays further"
        )
    number = Counter(thing.name for _, thing in rows)
    classes = sorted(number)
    arrays: dict[str, Any] = {
        "game": np.array(game),
        "frames": np.stack([step.frame for step in kept]),
        "classes": np.array(classes),
        "boxes": np.array([(i, classes.index(t.name), *t[1:5]) for i, t in rows], dtype=np.int16),
        "ignore": np.array(ignored, dtype=np.int16).reshape(-1, 5),
    }
    if config.sequences:
        sequence = np.arange(len(kept)) // config.length
        arrays["sequence"] = sequence
        arrays["ids"] = _renumber(sequence[[i for i, _ in rows]], [t.identity for _, t in rows])
    with replacing(config.out) as temporary, temporary.open("wb") as file:
        np.savez_compressed(file, **arrays)
    found = ", ".join(f"{name} {number[name]}" for name in classes)
    of = f" in {config.sequences} sequences" if config.sequences else ""
    print(f"written: {config.out}, {len(kept)} frames{of} of {game}")
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


def _play(env: gym.Env[Any, Any], policy: Policy, reader: RamReader, seed: int) -> Iterator[Step]:
    """Play for ever; yield every step."""
    frame, _ = env.reset(seed=seed)
    begins = True
    while True:
        action = policy(frame[None], np.array([begins])).item()
        frame, _, terminated, truncated, _ = env.step(action)
        atari: Any = env.unwrapped
        things = reader.read(atari.ale.getRAM())
        begins = terminated or truncated
        yield Step(frame, *things, begins)
        if begins:
            frame, _ = env.reset()
            reader.begin()


def _stretches(steps: Iterable[Step], length: int) -> Iterator[list[Step]]:
    """Yield stretches of consecutive steps of one episode, with a pause before each."""
    pause, short = OPENING, 0
    stretch: list[Step] = []
    for step in steps:
        if pause:
            pause -= 1
        else:
            stretch.append(step)
        if len(stretch) == length:
            yield stretch
            short = 0
        elif step.over:
            short += 1
            if short == TRIES:
                raise ValueError(
                    f"length: expected episodes that last {OPENING} + {length} steps, got {short} "
                    "in a row that were shorter; try a smaller --length"
                )
        if len(stretch) == length or step.over:
            pause, stretch = OPENING, []


def _renumber(sequence: npt.NDArray[np.int64], identity: Sequence[int]) -> npt.NDArray[np.int64]:
    """(M,) identities that begin with 0 in every sequence, given which each is of."""
    known: list[dict[int, int]] = [{} for _ in range(int(sequence.max()) + 1)]
    pairs = zip(sequence, identity, strict=True)
    return np.array([known[i].setdefault(number, len(known[i])) for i, number in pairs])


def _cut(thing: Thing, width: int, height: int) -> Thing:
    """Return the part inside a frame; where there is none, a size is 0 or below."""
    left, top = max(thing.x, 0), max(thing.y, 0)
    right, bottom = min(thing.x + thing.width, width), min(thing.y + thing.height, height)
    return Thing(thing.name, left, top, right - left, bottom - top, thing.identity)


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
    """Return a game's name as the ids of v5 spell it: SpaceInvaders for space_invaders."""
    if spec.entry_point != "ale_py.env:AtariEnv":
        raise ValueError(f"env: expected an Atari game of ALE, got {spec.id}; others have no RAM")
    return "".join(word.capitalize() for word in spec.kwargs["game"].split("_"))


def _check(config: TruthConfig) -> None:
    for name, least in (("frames", 1), ("every", 1), ("seed", 0), ("sequences", 0), ("length", 2)):
        value = getattr(config, name)
        if value < least:
            raise ValueError(f"{name}: expected at least {least}, got {value}")
    if not 0 <= config.epsilon <= 1:
        raise ValueError(f"epsilon: expected a probability in [0, 1], got {config.epsilon}")
