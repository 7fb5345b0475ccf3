"""Recipes: they say what the paper's tables say, and a wrong name is told the right ones."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest

from objrl.models.space import Space
from objrl.models.spair import Spair
from objrl.pretrain.presets import PRESETS, SPACE, SpaceRecipe, preset
from objrl.pretrain.tasks import make_task


@pytest.mark.parametrize("name", ["space", "space-fst", ""])
def test_an_unknown_name_is_told_all_that_there_are(name: str) -> None:
    with pytest.raises(ValueError, match=r"preset: .*expected one of") as caught:
        preset(name)
    assert all(known in str(caught.value) for known in PRESETS)
    assert f"got {name!r}" in str(caught.value)
    assert ("did you mean space-fast?" in str(caught.value)) == bool(name)


@pytest.mark.parametrize("name", SPACE)
def test_every_schedule_stays_where_its_value_makes_sense(name: str) -> None:
    recipe = SPACE[name]
    end = recipe.steps if recipe.unit == "steps" else 1
    for share in (0, 0.1, 0.5, 1, 2):
        priors = recipe.priors(share * end)
        assert 0 < priors.presence < 1
        assert priors.scale_std > 0
        assert min(priors.sigma_fg, priors.sigma_bg) > 0
        assert 0 < recipe.temperature(share * end) <= 2.5
        assert 0 < recipe.decay(share * end) <= 1
    assert recipe.priors(2 * end).fixed_alpha is None, "alpha must be set free in the end"


@pytest.mark.parametrize(
    ("name", "grid", "components"),
    [
        ("space-paper-room_large", 16, 5),
        ("space-paper-room_small", 8, 5),
        ("space-paper-atari_joint", 16, 3),
        ("space-paper-space_invaders", 16, 3),
        ("space-paper-grid4", 4, 3),
        ("space-paper-grid8", 8, 3),
        ("space-paper-grid16", 16, 3),
    ],
)
def test_the_papers_grids_and_backgrounds(name: str, grid: int, components: int) -> None:
    model = SPACE[name].model
    assert (model.frame_size, model.grid) == ((128, 128), (grid, grid))
    assert (model.components, model.dense, model.z_what) == (components, True, 32)
    Space(model)  # the layers fit together


@pytest.mark.parametrize("grid", [4, 8, 16])
def test_spair_differs_from_space_in_how_cells_are_inferred(grid: int) -> None:
    space, spair = (SPACE[f"{name}-paper-grid{grid}"] for name in ("space", "spair"))
    assert spair.sequential
    assert not space.sequential
    assert (spair.model.grid, spair.fg_lr) == ((grid, grid), space.fg_lr)
    assert spair.model.background == "single"
    Spair(spair.model)


def test_plain_space_and_spair_differ_in_nothing_else() -> None:
    space, spair, patches = (
        SPACE[name] for name in ("space-plain", "spair-plain", "spair-plain-patches")
    )
    assert spair == replace(space, sequential=True)
    assert patches == replace(
        spair, model=replace(spair.model, patch=32), scale_mean=patches.scale_mean
    )
    assert not space.self_configure
    for at in (0.0, 1.0):
        of_canvas, of_patch = (r.priors(at).scale_mean[0] for r in (spair, patches))
        assert 64 / (1 + math.exp(-of_canvas)) == pytest.approx(32 / (1 + math.exp(-of_patch)))


def test_spair_p_has_the_same_priors_in_pixels() -> None:
    whole, patches = SPACE["spair-paper-grid16"], SPACE["spair-paper-patches_atari"]
    Spair(patches.model)
    assert (patches.model.cell, patches.model.patch) == (8, 32)
    for at in (0, 20_000):
        for recipe, side in ((whole, 128), (patches, 32)):
            raw = recipe.priors(at).scale_mean[0]
            pixels = side / (1 + math.exp(-raw))
            assert pixels == pytest.approx(15.26 if at == 0 else 9.71, abs=0.01)
    room = SPACE["spair-paper-patches_room"].priors(0).scale_mean[1]
    assert 1 / (1 + math.exp(-room)) == pytest.approx(0.9)  # 34 pixels are more than a patch


def test_the_papers_annealing() -> None:
    room = SPACE["space-paper-room_large"]
    assert (room.batch, room.clip, room.fg_optimizer) == (12, 1.0, "rmsprop")
    assert (room.fg_lr, room.bg_lr) == (1e-5, 1e-3)
    assert room.priors(0).presence == 0.1
    assert room.priors(7000).presence == pytest.approx(0.055)  # half-way from 4,000 to 10,000
    assert room.priors(10_000).presence == pytest.approx(0.01)
    assert room.priors(15_000).scale_mean == pytest.approx((-1.5, -1.5))
    assert room.temperature(10_000) == pytest.approx(1.5)
    assert room.boundary_until == 100_000
    invaders = SPACE["space-paper-space_invaders"]
    assert invaders.priors(1999).fixed_alpha == 0.2
    assert invaders.priors(2000).fixed_alpha is None
    assert math.isclose(invaders.priors(20_000).scale_mean[0], -2.5)


def test_lengths_of_time_are_shares_of_the_run_in_our_own() -> None:
    recipe = SPACE["space-fast"]
    assert recipe.unit == "run"
    assert recipe.priors(0).presence > recipe.priors(1).presence
    assert recipe.temperature(0) > recipe.temperature(1)
    assert recipe.alpha_evidence(1) == 0, "the last word is the likelihood's"


def test_a_recipe_of_ones_own_needs_no_name() -> None:
    assert SpaceRecipe(sigma_bg=0.3).priors(0).sigma_bg == 0.3


SOME = [name for name in PRESETS if "paper" not in name or "grid4" in name]


@pytest.mark.parametrize("name", SOME)
def test_every_weight_has_an_optimizer(name: str) -> None:
    task = make_task(PRESETS[name], None)
    held = [p for o in task.optimizers() for group in o.param_groups for p in group["params"]]
    assert len(held) == len({id(p) for p in held})
    assert {id(p) for p in held} == {id(p) for p in task.model.parameters()}
