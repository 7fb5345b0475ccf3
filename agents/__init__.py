"""Agents that act on slots: feature extractors for Stable-Baselines3, training, and the demo."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from objrl.agents.agent import load_agent
    from objrl.agents.end_to_end import EncoderAdam, EncoderExtractor
    from objrl.agents.extractors import (
        DeepSetsExtractor,
        FlatExtractor,
        RelationalExtractor,
        SlotExtractor,
    )
    from objrl.agents.ram import RamSlots

__all__ = [
    "DeepSetsExtractor",
    "EncoderAdam",
    "EncoderExtractor",
    "FlatExtractor",
    "RamSlots",
    "RelationalExtractor",
    "SlotExtractor",
    "load_agent",
]

_HOMES = {
    "DeepSetsExtractor": "extractors",
    "EncoderAdam": "end_to_end",
    "EncoderExtractor": "end_to_end",
    "FlatExtractor": "extractors",
    "RamSlots": "ram",
    "RelationalExtractor": "extractors",
    "SlotExtractor": "extractors",
    "load_agent": "agent",
}


def __getattr__(name: str) -> Any:
    """Import a name's module when it is asked for: Stable-Baselines3 takes seconds."""
    if name in _HOMES:
        return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
