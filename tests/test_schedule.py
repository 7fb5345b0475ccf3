"""Annealing, and the tables of SPACE's appendix D.2 that are written with it."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from objrl.pretrain.presets import SPACE, SpaceRecipe
from objrl.schedule import Linear


def test_a_constant() -> None:
    assert [Linear(0.3)(step) for step in (-1, 0, 1e9)] == [0.3] * 3


def test_the_tables_notation() -> None:
    rho = Linear(0.1, 0.01, 4000, 10000)  # (0.1 -> 0.01) : (4000 -> 10000)
    assert rho(0) == rho(4000) == 0.1
    assert rho(7000) == pytest.approx(0.055)
    assert rho(10000) == rho(10**8) == 0.01


def test_a_jump() -> None:
    step = Linear(1.0, 2.0, 5, 5)
    assert (step(5), step(5.0001)) == (1.0, 2.0)


@given(
    st.floats(-1e3, 1e3),
    st.floats(-1e3, 1e3),
    st.floats(0, 1e6),
    st.floats(0, 1e6),
    st.floats(-1e6, 3e6),
)
def test_it_never_leaves_its_ends(
    start: float, end: float, begin: float, length: float, step: float
) -> None:
    value = Linear(start, end, begin, begin + length)(step)
    slack = 1e-9 * max(abs(start), abs(end))
    assert min(start, end) - slack <= value <= max(start, end) + slack


def test_an_end_before_the_beginning_is_an_error() -> None:
    with pytest.raises(ValueError, match="expected begin <= finish, got 10 and 5"):
        Linear(1.0, 2.0, 10, 5)


def test_the_table_of_3d_room_large() -> None:
    recipe = SPACE["space-paper-room_large"]
    assert recipe.presence == Linear(0.1, 0.01, 4000, 10000)
    assert recipe.scale_mean == (Linear(-1.0, -2.0, 10000, 20000),) * 2
    assert recipe.scale_std == 0.1
    assert (recipe.sigma_fg, recipe.sigma_bg) == (0.15, 0.15)
    assert recipe.model.components == 5
    assert recipe.temperature == Linear(2.5, 0.5, 0, 20000)
    assert recipe.fixed_alpha is None
    assert recipe.boundary_until == 100_000
    _check_regime(recipe)
    assert SPACE["space-paper-room_small"].model.grid == (8, 8)


def test_the_table_of_ten_atari_games() -> None:
    recipe = SPACE["space-paper-atari_joint"]
    for step in (0, 50_000):
        priors = recipe.priors(step)
        assert priors.presence == 1e-10
        assert priors.scale_mean == (-2.5, -2.5)
        assert priors.scale_std == 0.1
        assert (priors.sigma_fg, priors.sigma_bg) == (0.20, 0.10)
    assert recipe.temperature == Linear(2.5, 1.0, 0, 10000)
    assert recipe.model.components == 3
    assert recipe.priors(0).fixed_alpha == recipe.priors(3999).fixed_alpha == 0.1
    assert recipe.priors(4000).fixed_alpha is None
    assert recipe.boundary_until == 0
    _check_regime(recipe)


def _check_regime(recipe: SpaceRecipe) -> None:
    """Section D.2's text, and D.3's table of sizes."""
    assert recipe.model.frame_size == (128, 128)
    assert recipe.model.grid == (16, 16)
    assert recipe.model.dense
    assert recipe.model.z_what == 32
    assert (recipe.fg_optimizer, recipe.fg_lr, recipe.bg_lr) == ("rmsprop", 1e-5, 1e-3)
    assert recipe.clip == 1.0
    assert 12 <= recipe.batch <= 16
    assert recipe.steps == 160_000
    assert (recipe.mixture, recipe.gate) == ("pixel", True)  # eq. 1, appendix B


def test_the_grids_of_figure_5() -> None:
    for grid in (4, 8, 16):
        recipe = SPACE[f"space-paper-grid{grid}"]
        assert recipe.model.grid == (grid, grid)
        assert recipe.fg_lr == 1e-4  # "as SPAIR"
