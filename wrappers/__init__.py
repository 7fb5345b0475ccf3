"""Wrappers that put object slots in the place of pixels, for Gymnasium and Stable-Baselines3."""

from objrl.wrappers.atari_vec_env import AtariVecEnv
from objrl.wrappers.object_slots import ObjectSlots
from objrl.wrappers.sb3 import VecObjectSlots
from objrl.wrappers.vector import VectorObjectSlots

__all__ = ["AtariVecEnv", "ObjectSlots", "VecObjectSlots", "VectorObjectSlots"]
