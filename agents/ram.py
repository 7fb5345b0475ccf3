"""`RamSlots`: an Atari game's objects as its RAM tells them, where a perceiver's would be.

It is the baseline that learnt objects must come near to: people found out, game by game, where in
the console's memory things are, and `RamSlots` hands their findings (OCAtari's) to an agent in the
form of `objrl.ObjectSlots`. OCAtari is no dependency; the error says how to get it.

Letters: K slots, D classes.

References: Delfosse et al. 2023, OCAtari, arXiv 2306.08649.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, SupportsFloat

import gymnasium as gym
import numpy as np
import numpy.typing as npt
import torch
from gymnasium.core import ActType, RenderFrame
from gymnasium.utils import RecordConstructorArgs

from objrl.slots import NO_TRACK, Slots
from objrl.wrappers.ram_reader import LEAP, RamObjects
from objrl.wrappers.spaces import Array, Observation, annotate, make_layout

Integers = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Rows:
    """What is in the K rows after a step, in pixels; 0 where there is nothing.

    Attributes:
        kind: (K,) int64. Index of the class, -1 in rows without an object.
        boxes: (K, 4) float32. x0 y0 x1 y1.
        moved: (K, 2) float32. How far the centre came in the last step, times two.
        track_id: (K,) int64. -1 in rows without an object.
        used: how many ids there were so far.
    """

    kind: Integers
    boxes: Floats
    moved: Floats
    track_id: Integers
    used: int

    @classmethod
    def empty(cls, rows: int, used: int = 0) -> Rows:
        """Return those without an object."""
        nothing, boxes = np.full(rows, NO_TRACK), np.zeros((rows, 4), np.float32)
        return cls(nothing, boxes, boxes[:, :2], nothing, used)

    def fields(self, size: Floats, classes: int) -> dict[str, Array]:
        """Return the fields of `Slots`, (K, ·) each, given width and height of the frame."""
        present = (self.kind >= 0).astype(np.float32)[:, None]
        return {
            "position": _centres(self.boxes) / size - present,
            "velocity": self.moved / size,
            "scale": _sizes(self.boxes) / size,
            "depth": np.zeros_like(present),
            # The last row, which -1 takes, is empty.
            "what": np.eye(classes + 1, classes, dtype=np.float32)[self.kind],
            "presence": present,
            "track_id": self.track_id[:, None].copy(),
        }


def follow(kind: Integers, boxes: Floats, last: Rows) -> Rows:
    """Return what is in the rows now, given what was there one step ago.

    An object goes on being the same while its row is never empty, its class stays and it does not
    leap, by the rule of `objrl.wrappers.ram_reader`: what leaps is the next ball, shot or car.

    Args:
        kind: (K,) index of the class, -1 for none.
        boxes: (K, 4) x0 y0 x1 y1 in pixels, inside the frame, 0 where there is none.
        last: of the step before.
    """
    moved = _centres(boxes) - _centres(last.boxes)
    near = np.abs(moved) <= 2 * (LEAP + np.maximum(_sizes(boxes), _sizes(last.boxes)))
    present = kind >= 0
    same = present & (kind == last.kind) & near[:, 0] & near[:, 1]
    new = np.flatnonzero(present & ~same)
    track_id = np.where(same, last.track_id, NO_TRACK)
    track_id[new] = range(last.used, last.used + len(new))
    return Rows(kind, boxes, moved * same[:, None], track_id, last.used + len(new))


def _centres(boxes: Floats) -> Floats:
    """(K, 2) centres, times two."""
    return boxes[:, :2] + boxes[:, 2:]


def _sizes(boxes: Floats) -> Floats:
    """(K, 2) widths and heights."""
    return boxes[:, 2:] - boxes[:, :2]


class RamSlots(
    gym.Wrapper[Any, ActType, Any, ActType],
    RecordConstructorArgs,
):
    """Replace the observations of an Atari game by the objects that its RAM tells.

    The observation is that of `objrl.ObjectSlots`, which says what the fields mean. Here

    - a row is a place in OCAtari's list, so that in most games it keeps its class (Pong: Player,
      Ball, Enemy); K is the number of places and differs from game to game;
    - `what` is a one-hot of the class, in the order of `classes`;
    - `presence` is 1 or 0, and `depth` always 0;
    - `velocity` is the displacement since the last step, not smoothed;
    - boxes are cut at the frame's edges, and what is outside is absent.

    An object that is absent for a step, becomes one of another class or leaps has a new `track_id`
    and velocity 0. Ids are counted as `objrl.ObjectSlots` does.

    What OCAtari gets wrong is wrong here, too; docs/truth.md has a list. Whatever the environment
    and the wrappers below show, the RAM after their step is read: frames may be grey, small or
    left out (`obs_type="ram"`). For Stable-Baselines3 each environment is wrapped by itself.

    Attributes:
        classes: (D,) names of the columns of `what`.

    Example:
        >>> import ale_py, gymnasium as gym
        >>> from objrl.agents.ram import RamSlots
        >>> gym.register_envs(ale_py)
        >>> env = RamSlots(gym.make("ALE/Pong-v5"))      # doctest: +SKIP
        >>> env.classes                                  # doctest: +SKIP
        ('Player', 'Ball', 'Enemy')
        >>> env.reset(seed=0)[0]["position"].shape       # doctest: +SKIP
        (3, 2)
    """

    def __init__(
        self,
        env: gym.Env[Any, ActType],
        *,
        keys: Sequence[str] | None = None,
        flatten: bool = False,
        hud: bool = False,
    ) -> None:
        """Wrap a single game of ALE.

        Args:
            env: made by `gym.make`; it may have other wrappers.
            keys: the fields of the observation, in order; by default all of them, and with
                `flatten` all but `track_id`.
            flatten: one vector instead of a dictionary, row by row.
            hud: whether the score, lives and the like are objects, too.

        Raises:
            ImportError: OCAtari or what it imports is not installed.
            ValueError: no game of ALE, one that OCAtari does not know or fails on, or bad keys.
        """
        plain = None if keys is None else list(keys)
        RecordConstructorArgs.__init__(self, keys=plain, flatten=flatten, hud=hud)
        self._objects = RamObjects(_game_of(env), hud)
        gym.Wrapper.__init__(self, env)
        atari: Any = env.unwrapped
        self._ale = atari.ale
        self._size = np.array(self._ale.getScreenDims()[::-1], np.float32)
        self._edges = np.tile(self._size, 2)
        self.classes = self._objects.classes
        self._layout = make_layout(self._objects.rows, len(self.classes), keys, flatten)
        self.observation_space = self._layout.space()
        self._rows = Rows.empty(self._objects.rows)
        self._over = False

    @property
    def slots(self) -> Slots:
        """(1, K, ·) `Slots` of the last step, also the fields left out of `keys`."""
        fields = self._rows.fields(self._size, len(self.classes))
        return Slots(**{name: torch.from_numpy(field)[None] for name, field in fields.items()})

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Observation, dict[str, Any]]:
        """Begin an episode; with a seed, begin the counting of ids as well."""
        _, info = self.env.reset(seed=seed, options=options)
        self._begin(used=0 if seed is not None else self._rows.used)
        return self._see(), info

    def step(
        self, action: ActType
    ) -> tuple[Observation, SupportsFloat, bool, bool, dict[str, Any]]:
        """Act, and read what comes of it."""
        _, reward, terminated, truncated, info = self.env.step(action)
        if self._over:  # an environment that resets itself has begun the next episode
            self._begin(self._rows.used)
        self._over = bool(terminated or truncated)
        return self._see(), reward, terminated, truncated, info

    def render(self) -> RenderFrame | list[RenderFrame] | None:
        """Render the environment; in mode `rgb_array` with the boxes and ids of the objects."""
        frame: RenderFrame | list[RenderFrame] | None = annotate(self.env.render(), self.slots)
        return frame

    def _begin(self, used: int) -> None:
        """Forget the last episode, but for how many ids were used."""
        self._objects.begin()
        self._rows = Rows.empty(self._objects.rows, used)
        self._over = False

    def _see(self) -> Observation:
        """Read the RAM as it is now."""
        found = self._objects.read(self._ale.getRAM())
        found[:, 4:] += found[:, 2:4]
        corners = np.minimum(np.maximum(found[:, 2:], 0), self._edges)
        inside = (corners[:, 2] > corners[:, 0]) & (corners[:, 3] > corners[:, 1])
        places = found[inside, 0]
        kind = np.full(self._objects.rows, -1)
        kind[places] = found[inside, 1]
        boxes = np.zeros((self._objects.rows, 4), np.float32)
        boxes[places] = corners[inside]
        self._rows = follow(kind, boxes, self._rows)

        # Not by way of `slots`, which takes as long as all the rest.
        fields = self._rows.fields(self._size, len(self.classes))
        wanted = {key: fields[key] for key in self._layout.keys}
        if not self._layout.flatten:
            return wanted
        return np.concatenate(list(wanted.values()), axis=1, dtype=np.float32).ravel()


def _game_of(env: gym.Env[Any, Any]) -> str:
    """Return the name that a game has in ALE."""
    spec = getattr(env.unwrapped, "spec", None)
    game = spec.kwargs.get("game") if spec else None
    if game is None or not hasattr(getattr(env.unwrapped, "ale", None), "getRAM"):
        raise ValueError(
            f"env: expected a single Atari game of ALE made by gym.make, got {env}; "
            "others have no RAM, and of several each must be wrapped by itself"
        )
    return str(game)
