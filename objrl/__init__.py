"""Objects instead of pixels for reinforcement learning.

`ObjectSlots(gym.make("ALE/SpaceInvaders-v5"))` is the whole of it for most users;
`load(name).encode(frames)` for those who bring their own loop.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from objrl.perceiver import FramePerceiver, Perceiver
    from objrl.slots import Slots
    from objrl.weights import list_weights, load
    from objrl.wrappers import ObjectSlots, VectorObjectSlots

__all__ = [
    "FramePerceiver",
    "ObjectSlots",
    "Perceiver",
    "Slots",
    "VectorObjectSlots",
    "list_weights",
    "load",
]
__version__ = "0.1.0"

_HOMES = {
    "FramePerceiver": "objrl.perceiver",
    "Perceiver": "objrl.perceiver",
    "Slots": "objrl.slots",
    "list_weights": "objrl.weights",
    "load": "objrl.weights",
    "ObjectSlots": "objrl.wrappers",
    "VectorObjectSlots": "objrl.wrappers",
}


def __getattr__(name: str) -> Any:
    """Import a name's module when it is asked for.

    So that `objrl --help` needs no torch, and the library needs Gymnasium only for the wrappers.
    """
    if name in _HOMES:
        return getattr(importlib.import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'objrl' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
