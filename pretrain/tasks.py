"""Which task a recipe calls for."""

from __future__ import annotations

from objrl.pretrain.configure import Findings
from objrl.pretrain.mixture_presets import IodineRecipe, MonetRecipe, RmonetRecipe
from objrl.pretrain.mixture_task import EconTask, IodineTask, MonetTask, RmonetTask
from objrl.pretrain.presets import Recipe, SpaceRecipe
from objrl.pretrain.scalor_presets import ScalorRecipe
from objrl.pretrain.scalor_task import ScalorTask
from objrl.pretrain.space_task import SpaceTask
from objrl.pretrain.task import Task


def make_task(recipe: Recipe, found: Findings | None) -> Task:
    """Return the task of a recipe; what was found in the frames concerns SPACE and SCALOR alone."""
    if isinstance(recipe, SpaceRecipe):
        return SpaceTask(recipe, found)
    if isinstance(recipe, ScalorRecipe):
        return ScalorTask(recipe, found)
    if isinstance(recipe, MonetRecipe):
        return MonetTask(recipe)
    if isinstance(recipe, IodineRecipe):
        return IodineTask(recipe)
    if isinstance(recipe, RmonetRecipe):
        return RmonetTask(recipe)
    return EconTask(recipe)
