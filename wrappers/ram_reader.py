"""Reading the objects of an Atari game out of the console's RAM, with OCAtari's functions.

Of OCAtari only the two functions are used that turn RAM into objects: its own environment class
swaps terminated and truncated. OCAtari is no dependency; `INSTALL` says how to get it.

Letters: D classes, K places of OCAtari's list, N objects that are there.

References: Delfosse et al. 2023, OCAtari, arXiv 2306.08649.
"""

from __future__ import annotations

import difflib
import importlib
import importlib.util
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
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


class RamObjects:
    """OCAtari's reading of one environment's RAM, with a memory of its own.

    Several games have notes on the last step in variables of their module, shared by all
    environments of a process and by the readings with and without HUD: alone, Assault, Carnival,
    Centipede, Hero, Pooyan and Qbert tell other objects than beside a second one. So each reader
    has a module of its own, and a fresh one in every episode.

    Attributes:
        classes: (D,) names of what OCAtari says there may be, in a fixed order.
        rows: K, the places of OCAtari's list.
    """

    def __init__(self, game: str, hud: bool = False) -> None:
        """Find the functions for a game.

        Args:
            game: its name in ALE, e.g. space_invaders.
            hud: whether to read the score, lives and the like as well.

        Raises:
            ImportError: OCAtari or what it imports is not installed.
            ValueError: OCAtari does not know the game, knows no object of it, or fails on it.
        """
        os.environ.setdefault("PYGAME_HIDE_SUPPORT_PROMPT", "1")
        try:
            self._functions: Any = importlib.import_module("ocatari.ram.extract_ram_info")
        except ImportError as problem:
            raise ImportError(f"OCAtari cannot be imported ({problem}): {INSTALL}") from problem
        self._game, self._hud = game, hud
        self._key = game.replace("_", "")  # OCAtari's name of it
        self._name = f"ocatari.ram.{self._key}"
        if not _reads_ram(sys.modules.get(self._name)):
            raise _unknown(game)
        self.begin()
        table, self.classes = _table(self._module, hud)
        self._index = {name: index for index, name in enumerate(self.classes)}
        # Some games' lists are longer than their tables say, others begin short and grow.
        self.rows = max(sum(table.values()), len(self._objects))
        if not self.rows:
            raise ValueError(f"env: OCAtari knows no objects of {game!r}; take another game")

    def begin(self) -> None:
        """Forget what was: an episode begins."""
        spec: Any = sys.modules[self._name].__spec__
        self._module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(self._module)
        with self._at_work():
            self._objects: Any = self._functions.init_objects(self._key, self._hud)

    def things(self, ram: npt.NDArray[np.uint8]) -> dict[int, Thing]:
        """Return the objects that are there and larger than nothing, by their places in the list.

        Also those of classes and places that OCAtari's tables leave out (`classes`, `rows`). To be
        called once after every step, for some are told by what changed since the last.

        Args:
            ram: (128,) uint8, as ALE has it.

        Raises:
            ValueError: OCAtari fails on this game.
        """
        # As uint8 its sums would wrap around on numpy 2.
        wide = ram.astype(np.int64)
        with self._at_work():
            self._functions.detect_objects_ram(self._objects, wide, self._key, self._hud)
            found = {
                place: Thing(str(it.category), *map(int, it.xywh))
                for place, it in enumerate(self._objects)
                if it is not None and it.category != "NoObject" and getattr(it, "visible", True)
            }
        return {place: it for place, it in found.items() if it.width > 0 and it.height > 0}

    def read(self, ram: npt.NDArray[np.uint8]) -> npt.NDArray[np.int64]:
        """Return `things` of known classes and places, for a table of fixed shape.

        Returns:
            (N, 6) place, class, x, y, width, height in pixels.
        """
        found = [
            (place, self._index[it.name], *it[1:5])
            for place, it in self.things(ram).items()
            if place < self.rows and it.name in self._index
        ]
        return np.array(found, np.int64).reshape(-1, 6)

    @contextmanager
    def _at_work(self) -> Iterator[None]:
        """Let OCAtari find this reader's module where it looks for the game's."""
        shared = sys.modules[self._name]
        sys.modules[self._name] = self._module
        try:
            yield
        except Exception as problem:  # every game has code, and faults, of its own
            raise ValueError(
                f"env: OCAtari fails on {self._game!r} ({problem!r}), a fault of its own; "
                "docs/truth.md names the games in which that is known"
            ) from problem
        finally:
            sys.modules[self._name] = shared


class RamReader:
    """Reads a game's objects twice, with and without HUD, and follows those of the scene."""

    def __init__(self, game: str) -> None:
        """Find the functions for a game.

        Args:
            game: its name in ALE, e.g. space_invaders.

        Raises:
            ImportError: OCAtari or what it imports is not installed.
            ValueError: OCAtari does not know the game, knows no object of it, or fails on it.
        """
        self._scene, self._everything = RamObjects(game), RamObjects(game, hud=True)
        self._numbers = count()
        self._time = 0
        self._last: dict[int, tuple[int, Thing]] = {}

    def begin(self) -> None:
        """Forget what was: an episode begins."""
        self._last.clear()
        self._scene.begin()
        self._everything.begin()

    def read(self, ram: npt.NDArray[np.uint8]) -> tuple[list[Thing], list[Thing]]:
        """Return the objects of the scene, and those together with score, lives and the like.

        To be called after every step, for some objects are told by what changed since the last.

        An object of the scene keeps its place in OCAtari's list, so what is in the same place is
        the same object and has the identity that it had, unless the RAM was without it for more
        than `ABSENT` steps, its class is another, or it has leapt (`LEAP`): then it is a new one,
        such as the next shot, ball or wave. Things that are not of the scene have no identity.

        Args:
            ram: (128,) uint8, as ALE has it.

        Raises:
            ValueError: OCAtari fails on this game.
        """
        scene, everything = self._scene.things(ram), self._everything.things(ram)
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


def _reads_ram(module: Any) -> bool:
    return hasattr(module, "_detect_objects_ram")


def _unknown(game: str) -> ValueError:
    """Return the error for a game that OCAtari has not, with those whose names are like its."""
    ours = [name for name in sys.modules if name.startswith("ocatari.ram.")]
    known = {name.rpartition(".")[2] for name in ours if _reads_ram(sys.modules[name])}
    near = difflib.get_close_matches(game.replace("_", ""), sorted(known), n=3)
    return ValueError(
        f"env: expected a game that OCAtari can read from RAM, got {game!r}; "
        f"it knows {' and '.join(near) or 'none of a name like that'}, and {len(known)} in all"
    )


def _table(module: Any, hud: bool) -> tuple[dict[str, int], tuple[str, ...]]:
    """Return how many there may be of each class, and the names of all classes.

    Where the table leaves out what its game shows, classes follow that the module defines.
    """
    scene: dict[str, int] = getattr(module, "MAX_NB_OBJECTS", {})
    everything: dict[str, int] = getattr(module, "MAX_NB_OBJECTS_HUD", scene)
    table = everything if hud else scene
    others = (
        name
        for name, kind in vars(module).items()
        if getattr(kind, "__module__", None) == module.__name__ and hasattr(kind, "category")
    )
    scenic = (name for name in others if name not in everything and not name.startswith("_"))
    return table, tuple(dict.fromkeys((*table, *scenic)))


def _can_be(last: Thing, thing: Thing) -> bool:
    """Whether what was in a place of the list may be what is there now."""
    (x, y, w, h), (u, v, a, b) = thing[1:5], last[1:5]
    sideways, up = abs(x + w / 2 - u - a / 2), abs(y + h / 2 - v - b / 2)
    near = sideways <= LEAP + max(w, a) and up <= LEAP + max(h, b)
    return last.name == thing.name and near
