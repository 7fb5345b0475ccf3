"""The networks of SPACE against the tables of the paper's appendix D.3."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import nn

from objrl.models.space import Space, SpaceConfig
from objrl.models.space_background import Components
from objrl.nn.blocks import Conv, conv_stack

FAST = SpaceConfig(architecture="fast", z_what=8, dense=False, background="static")


@pytest.fixture(scope="module")
def paper() -> Space:
    return Space(SpaceConfig())


def table(*modules: nn.Module) -> list[str]:
    """Write networks as the paper writes them: layer, channels, stride, normalisation."""
    rows: list[str] = []
    for module in (part for whole in modules for part in whole.modules()):
        if isinstance(module, nn.Conv2d):
            side, stride = module.kernel_size[0], module.stride[0]
            rows.append(f"Conv {side} {module.out_channels} /{stride}")
        elif isinstance(module, nn.PixelShuffle) and module.upscale_factor > 1:
            _, _, channels, step = rows[-1].split()
            n = module.upscale_factor
            rows[-1] = f"Sub({n}) {int(channels) // n**2} {step}"
        elif isinstance(module, nn.GroupNorm):
            assert module.num_channels == int(rows[-1].split()[-2])
            rows[-1] += f" GN({module.num_groups})"
        elif isinstance(module, nn.Linear):
            rows.append(f"Linear {module.out_features}")
    return rows


def test_the_foreground_encoders_are_the_tables(paper: Space) -> None:
    net = paper.foreground
    assert net.residual is not None
    assert table(net.image_encoder) == [
        *("Conv 4 16 /2 GN(4)", "Conv 4 32 /2 GN(8)", "Conv 4 64 /2 GN(8)"),
        *("Conv 3 128 /1 GN(16)", "Conv 3 256 /1 GN(32)", "Conv 1 128 /1 GN(16)"),
    ]
    assert table(net.residual) == ["Conv 3 128 /1 GN(16)"] * 2
    assert table(net.residual_encoder) == ["Conv 3 128 /1 GN(16)"]
    assert table(net.glimpse_encoder, net.what_head) == [
        *("Conv 3 16 /1 GN(4)", "Conv 4 32 /2 GN(8)", "Conv 3 32 /1 GN(4)"),
        *("Conv 4 64 /2 GN(8)", "Conv 4 128 /2 GN(8)", "Conv 4 256 /1 GN(16)", "Linear 64"),
    ]


def test_the_glimpse_decoder_is_the_table(paper: Space) -> None:
    net = paper.foreground
    assert table(net.glimpse_decoder) == [
        "Conv 1 256 /1 GN(16)",
        *("Sub(2) 128 /1 GN(16)", "Conv 3 128 /1 GN(16)"),
        *("Sub(2) 128 /1 GN(16)", "Conv 3 128 /1 GN(16)"),
        *("Sub(2) 64 /1 GN(8)", "Conv 3 64 /1 GN(8)"),
        *("Sub(2) 32 /1 GN(8)", "Conv 3 32 /1 GN(8)"),
        *("Sub(2) 16 /1 GN(4)", "Conv 3 16 /1 GN(4)"),
    ]


def test_the_background_networks_are_the_tables(paper: Space) -> None:
    """Where the tables have batch normalisation we have GN(8), and say so in the module."""
    net = paper.background
    assert isinstance(net, Components)
    assert table(net.image_encoder) == ["Conv 3 64 /2 GN(8)"] * 4 + ["Linear 64"]
    assert table(net.component_encoder) == (
        ["Conv 3 32 /2 GN(8)"] * 2 + ["Conv 3 64 /2 GN(8)"] * 2 + ["Linear 64"]
    )
    assert table(net.component_decoder) == ["Conv 3 32 /1 GN(8)"] * 3 + ["Conv 3 3 /1"]
    assert table(net.mask_decoder) == [
        "Conv 1 256 /1 GN(16)",
        *("Sub(4) 256 /1 GN(16)", "Conv 3 256 /1 GN(16)"),
        *("Sub(2) 128 /1 GN(16)", "Conv 3 128 /1 GN(16)"),
        *("Sub(4) 64 /1 GN(8)", "Conv 3 64 /1 GN(8)"),
        *("Sub(4) 16 /1 GN(4)", "Conv 3 16 /1 GN(4)"),
        *("Conv 3 16 /1 GN(4)", "Conv 3 1 /1"),
    ]
    assert (net.rnn.input_size, net.rnn.hidden_size) == (32 + 64, 64)
    assert (net.prior_rnn.input_size, net.prior_rnn.hidden_size) == (32, 64)
    assert table(net.predict_component) == ["Linear 64"] * 3  # two hidden layers of 64


def size(*modules: nn.Module | None) -> int:
    return sum(p.numel() for module in modules if module is not None for p in module.parameters())


def test_as_many_parameters_as_the_authors_code(paper: Space) -> None:
    net = paper.foreground
    assert size(net.image_encoder, net.residual, net.residual_encoder, net.heads) == 1_037_403
    assert size(net.glimpse_encoder, net.what_head) == 724_000
    assert size(net.glimpse_decoder, net.drawing_head) == 595_764
    # Theirs carries 1,024 dead ones beside them, an older boundary kernel.
    assert size(net) == 2_358_191 - 1_024

    back = paper.background
    assert isinstance(back, Components)
    assert size(back.image_encoder) == 375_296
    assert size(back.component_encoder) == 328_448
    assert size(back.mask_decoder) == 2_123_217
    assert size(back.rnn) == 41_472
    assert size(back.prior_rnn) == 25_088
    assert size(back.predict_mask) == size(back.predict_mask_prior) == 4_160
    assert size(back.predict_component) == 10_432
    # The table has four convolutions; the authors' code four of 32 channels and a 1 x 1 head.
    theirs, last_3x3_and_norm, head, ours = (
        37_923,
        32 * 32 * 9 + 32 + 64,
        32 * 3 + 3,
        32 * 3 * 9 + 3,
    )
    assert size(back.component_decoder) == theirs - last_3x3_and_norm - head + ours
    # Initial states and dummy mask; theirs shares the dummy between posterior and prior.
    assert back.start.numel() == 288 + 32


@pytest.mark.parametrize(("cell", "grid"), [(8, (16, 16)), (16, (8, 8)), (32, (4, 4))])
@pytest.mark.parametrize("architecture", ["paper", "fast"])
def test_every_grid_has_a_feature_for_every_cell(
    cell: int, grid: tuple[int, int], architecture: str
) -> None:
    base = SpaceConfig() if architecture == "paper" else FAST
    model = Space(replace(base, cell=cell))
    assert model.config.grid == grid
    cells = model.infer(torch.rand(1, 3, 128, 128))
    count = grid[0] * grid[1]
    assert cells.logit.shape == (1, count, 1)
    assert cells.logit.abs().max() < 8.8
    for name, width in (("depth", 1), ("scale", 2), ("shift", 2)):
        assert getattr(cells, name).mean.shape == (1, count, width)
        assert (getattr(cells, name).std > 0).all()


@pytest.mark.parametrize("size", [(210, 160), (84, 84), (100, 67)])
@pytest.mark.parametrize("cell", [8, 16, 32])
def test_a_canvas_need_not_be_whole_cells(size: tuple[int, int], cell: int) -> None:
    model = Space(replace(FAST, frame_size=size, cell=cell)).eval()
    out = model(torch.rand(1, 3, *size))
    assert out.z_where.shape == (1, (size[0] // cell) * (size[1] // cell), 4)
    assert out.reconstruction.shape == (1, 3, *size)


def test_an_unknown_cell_is_an_error() -> None:
    with pytest.raises(ValueError, match="cell: expected 8, 16 or 32 pixels, got 12"):
        Space(replace(FAST, cell=12))


def test_a_row_of_a_table_is_convolution_celu_norm() -> None:
    stack = conv_stack(3, [Conv(8, 3, 1, 2), Conv(4, 1, up=2), Conv(6, 4, 2)])
    kinds = [type(layer).__name__ for layer in stack]
    assert kinds == [
        *("Conv2d", "CELU", "GroupNorm"),
        *("Conv2d", "PixelShuffle", "CELU"),
        *("Conv2d", "CELU"),
    ]
    assert stack(torch.zeros(1, 3, 10, 12)).shape == (1, 6, 10, 12)
