"""Reading the objects of an Atari game out of the console's RAM, with OCAtari's functions.

Of OCAtari only the two functions are used that turn RAM into objects: its own environment class
swaps terminated and truncated. OCAtari is no dependency; `INSTALL` says how to get it.

References: Delfosse et al. 2023, OCAtari, arXiv 2306.08649.
"""

from __future__ import annotations

import importlib
import os
from collections.abc import Sequence
from itertools import count
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

INSTALL = (
    "pip install --no-deps ocatari && pip install termcolor pyfiglet scikit-image matplotlib pygame"
)
"""Without its dependencies: it asks for numpy < 2, which the functions used here do not need."""

ABSENT = 2
"""Steps in a row that the RAM may be without an object which then is still the same."""

LEAP = 12
"""Pixels beyond its width that an object's centre may move sideways, and beyond its height up or
down, between two steps in which the RAM has it; what is farther away is another one in its place.
In 2500 steps each of Pong, Freeway and SpaceInvaders what went on was at most 10 beyond (Pong's
ball; aliens once 12), and what began anew 13 and more (Pong's enemy, shots, cars)."""


class Thing(NamedTuple):
    """An object as the RAM tells it: name of its class, upper left corner and size in pixels.

    `identity` is the same as long as it is the same object (`RamReader.read`).
    """

    name: str
    x: int
    y: int
    width: int
    height: int
    identity: int = 0


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
        self._numbers = count()
        self._time = 0
        self._last: dict[int, tuple[int, Thing]] = {}
        self.begin()

    def begin(self) -> None:
        """Forget what was: an episode begins."""
        self._last.clear()
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

        An object of the scene keeps its place in OCAtari's list, so what is in the same place is
        the same object and has the identity that it had, unless the RAM was without it for more
        than `ABSENT` steps, its class is another, or it has leapt (`LEAP`): then it is a new one,
        such as the next shot, ball or wave. Things that are not of the scene have no identity.

        Args:
            ram: (128,) int64 in [0, 255]. As ALE's uint8, OCAtari's sums would wrap around.

        Raises:
            ValueError: OCAtari fails on this game.
        """
        try:
            self._functions.detect_objects_ram(self._scene, ram, self._game, False)
            self._functions.detect_objects_ram(self._all, ram, self._game, True)
            scene, everything = _things(self._scene), _things(self._all)
        except Exception as problem:  # every game has code, and faults, of its own
            raise self._failed(problem) from problem
        self._time += 1
        return [self._identify(*found) for found in scene.items()], list(everything.values())

    def _identify(self, place: int, thing: Thing) -> Thing:
        """Give what is now in a place of the list its identity."""
        time, last = self._last.get(place, (0, None))
        if last and self._time - time <= ABSENT + 1 and _can_be(last, thing):
            thing = thing._replace(identity=last.identity)
        else:
            thing = thing._replace(identity=next(self._numbers))
        self._last[place] = self._time, thing
        return thing

    def _failed(self, problem: Exception) -> ValueError:
        return ValueError(
            f"env: OCAtari fails on {self._game} ({problem!r}), a fault of its own; "
            "docs/truth.md names the games in which that is known"
        )


def _things(objects: Sequence[Any]) -> dict[int, Thing]:
    """Return those of OCAtari's objects that are there by their places in its list.

    Absent ones keep theirs.
    """
    things = {
        place: Thing(str(thing.category), *map(int, thing.xywh))
        for place, thing in enumerate(objects)
        if thing is not None and thing.category != "NoObject" and getattr(thing, "visible", True)
    }
    return {place: thing for place, thing in things.items() if min(thing.width, thing.height) > 0}


def _can_be(last: Thing, thing: Thing) -> bool:
    """Whether what was in a place of the list may be what is there now."""
    (x, y, w, h), (u, v, a, b) = thing[1:5], last[1:5]
    sideways, up = abs(x + w / 2 - u - a / 2), abs(y + h / 2 - v - b / 2)
    near = sideways <= LEAP + max(w, a) and up <= LEAP + max(h, b)
    return last.name == thing.name and near
