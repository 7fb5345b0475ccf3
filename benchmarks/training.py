"""What a training step costs: forward, backward and optimisers, batch preparation included.

Every contestant is a recipe that goes through `objrl.pretrain.space_task` as in training. The
paper's dense path and the sparse one differ in the recipe's `dense`, the paper's network and the
small one in its `architecture`; so what each of the two saves can be told apart.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import torch

from benchmarks.rounds import Contestant, Work
from benchmarks.scene import Scene
from objrl.pretrain.presets import SPACE, SpaceRecipe
from objrl.pretrain.space_task import SpaceTask

FAST = "space-fast on 210 x 160"
WIDE = "16 x 16, sparse, windows of 48"
SMALL_DENSE, SMALL_SPARSE = "small network, dense", "small network, sparse"
STILL = "small network, sparse, known background"


def grid_name(side: int, dense: bool) -> str:
    """Return the name of the paper's recipe on side x side cells."""
    return f"{side} x {side}, {'dense' if dense else 'sparse'}"


def dense_name(side: int) -> str:
    """Return the name of the paper's own path."""
    return grid_name(side, dense=True)


def sequential_name(side: int) -> str:
    """Return the name of SPAIR, cell after cell, on side x side cells."""
    return f"{side} x {side}, SPAIR"


def on_grids(scene: Scene, sides: tuple[int, ...], batch: int) -> list[Contestant]:
    """Return the paper's architecture on Fig. 5's grids of a 128 x 128 canvas, dense and sparse.

    And SPAIR, which it compares with: the same layers, cell after cell.
    """
    ours = [
        _contestant(grid_name(side, dense), scene, paper(side, dense=dense), batch)
        for side in sides
        for dense in (True, False)
    ]
    others = [
        _contestant(sequential_name(side), scene, SPACE[f"spair-paper-grid{side}"], batch)
        for side in sides
    ]
    return [*ours, *others]


def by_part(scene: Scene, side: int, batch: int) -> list[Contestant]:
    """Return what lies between the paper's path and `space-fast`, on one grid of 128 x 128."""
    recipe = paper(side, dense=True)
    small = replace(recipe.model, architecture="fast", z_what=16)
    sparse = replace(small, dense=False, window=32)
    still = replace(sparse, background="static")
    return [
        _contestant(WIDE, scene, paper(side, dense=False, window=48), batch),
        *(
            _contestant(name, scene, replace(recipe, model=model), batch)
            for name, model in ((SMALL_DENSE, small), (SMALL_SPARSE, sparse), (STILL, still))
        ),
    ]


def fast_name(batch: int) -> str:
    """Return the name of `space-fast` at a batch size."""
    return f"{FAST}, batch {batch}"


def ours(scene: Scene, batches: tuple[int, ...]) -> list[Contestant]:
    """Return `space-fast` as it configures itself on the frames."""
    return [_contestant(fast_name(batch), scene, scene.recipe(), batch) for batch in batches]


def paper(side: int, *, dense: bool, window: int = 32) -> SpaceRecipe:
    """Return the recipe of Fig. 5 on side x side cells."""
    recipe = SPACE[f"space-paper-grid{side}"]
    return replace(recipe, model=replace(recipe.model, dense=dense, rendered=64, window=window))


def _contestant(name: str, scene: Scene, recipe: SpaceRecipe, batch: int) -> Contestant:
    return Contestant(name, partial(_train, scene, recipe, batch), batch)


def _train(scene: Scene, recipe: SpaceRecipe, batch: int, device: torch.device) -> Work:
    found = scene.found if recipe.self_configure else None
    task = SpaceTask(recipe, found).to(device).train()
    optimizers = task.optimizers()
    frames = scene.frames(batch)

    def step() -> None:
        # At 0 every term that a recipe has is on.
        loss, _ = task(task.prepare(frames).to(device), 0.0)
        for optimizer in optimizers:
            optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(task.parameters(), recipe.clip)
        for optimizer in optimizers:
            optimizer.step()

    return step
