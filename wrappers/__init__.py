"""Gymnasium wrappers that put object slots in the place of pixels."""

from objrl.wrappers.object_slots import ObjectSlots
from objrl.wrappers.vector import VectorObjectSlots

__all__ = ["ObjectSlots", "VectorObjectSlots"]
