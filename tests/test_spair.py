"""SPAIR: cells depend on those before them, and on no others; the rest is SPACE's."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from objrl.models.space import Space, SpaceConfig
from objrl.models.space_loss import Priors, elbo_terms
from objrl.models.spair import Spair
from objrl.models.spair_background import Patches, Single
from objrl.perceiver import FramePerceiver
from objrl.pretrain.presets import SpaceRecipe
from objrl.pretrain.space_task import Batch, SpaceTask, random_patches

SMALL = SpaceConfig(cell=32, architecture="fast", z_what=6, background="single", max_slots=20)
PRIORS = Priors(presence=0.1, scale_mean=(-2.0, -2.0), scale_std=0.1, sigma_fg=0.15, sigma_bg=0.15)


def build(config: SpaceConfig = SMALL) -> Spair:
    torch.manual_seed(0)
    return Spair(config)


def image(count: int = 2) -> Tensor:
    made = torch.zeros(count, 3, 128, 128)
    for b in range(count):
        made[b, 0, 20 + b : 40 + b, 30:50] = 1
        made[b, 1, 80:100, 60 + b : 90 + b] = 1
    return made


@pytest.mark.parametrize("side", [64, 128])
def test_one_vae_draws_the_whole_canvas(side: int) -> None:
    torch.manual_seed(0)
    background = Single((side, side))
    out = background(torch.rand(2, 3, side, side))
    assert out.image.shape == (2, 3, side, side)
    assert background.generate(3).image.shape == (3, 3, side, side)


@pytest.mark.parametrize("size", [(32, 32), (128, 64)])
def test_the_vae_says_what_it_can_draw(size: tuple[int, int]) -> None:
    with pytest.raises(ValueError, match="128 x 128 or 64 x 64"):
        Single(size)


def test_a_cell_depends_on_the_four_beside_it_that_came_before() -> None:
    """By gradients: of the latents of one cell by those of all others."""
    model = build().eval()
    seen: list[Tensor] = []

    def watched(_: object, inputs: tuple[Tensor]) -> None:
        inputs[0].retain_grad()
        seen.append(inputs[0])

    model.lateral.register_forward_pre_hook(watched)
    latents = model.latents(image(1), 0.5)
    assert latents.index.tolist() == [list(range(16))]
    assert latents.z_pres.shape == (1, 16, 1)
    assert latents.z_what.shape == (1, 16, 6)
    made = torch.cat(
        [latents.z_pres, latents.z_depth, latents.cells.scale.mean, latents.cells.shift.mean], 2
    )
    width, size = model.foreground.heads.in_channels, model.latent
    given = seen[6][0, width:].view(4, size)  # cell 6 is row 1, column 2 of 4 x 4
    for number, neighbour in enumerate((1, 2, 3, 5)):
        torch.testing.assert_close(given[number, :6], made[0, neighbour])
        torch.testing.assert_close(given[number, 6:], latents.z_what[0, neighbour])
    corner = seen[0][0, width:].view(4, size)
    torch.testing.assert_close(corner, model.edge.expand(4, -1))
    latents.z_depth[0, 5].sum().backward()  # type: ignore[no-untyped-call]
    reached = [part.grad is not None and bool(part.grad.abs().sum() > 0) for part in seen]
    # Above are 0, 1 and 2, before it is 4; nothing after it, nor 3, which is beside none of these.
    assert [number for number, here in enumerate(reached) if here] == [0, 1, 2, 4, 5]


def test_gradients_reach_every_parameter() -> None:
    model = build()
    terms = elbo_terms(model(image()), image(), PRIORS)
    torch.stack([term.mean() for term in terms.values()]).sum().backward()  # type: ignore[no-untyped-call]
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().sum() > 0, name


def test_an_agent_gets_slots_and_masks() -> None:
    model = build()
    with torch.no_grad():
        bias = model.foreground.heads.bias
        assert bias is not None
        bias[0] = 1.0  # something is present
    perceiver = FramePerceiver(model)
    frames = (image() * 255).byte().permute(0, 2, 3, 1)
    slots = perceiver.encode(frames)
    assert slots.what.shape == (2, 20, 6)
    assert slots.mask.any()
    assert not slots.mask[:, 16:].any()
    masks = perceiver.segment(frames)
    torch.testing.assert_close(masks.sum(1), torch.ones(2, 128, 128))
    alone = perceiver.encode(frames[:1])
    torch.testing.assert_close(alone.position, slots.position[:1], atol=1e-5, rtol=1e-4)


def test_it_learns() -> None:
    model = build()
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)
    losses = []
    for _ in range(12):
        terms = elbo_terms(model(image()), image(), PRIORS)
        loss = torch.stack([term.mean() for term in terms.values()]).sum()
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.8 * losses[0]


@pytest.mark.parametrize("changes", [{"dense": False}, {"background": "static"}])
def test_what_spair_does_not_have_is_refused(changes: dict[str, bool]) -> None:
    with pytest.raises(ValueError, match="SPAIR looks into every cell"):
        Spair(replace(SMALL, **changes))  # type: ignore[arg-type]


PATCHED = replace(SMALL, cell=8, patch=32, max_slots=64)


def test_a_patch_has_a_background_of_its_own() -> None:
    torch.manual_seed(0)
    behind = Patches((128, 128), 32).eval()
    scene = torch.rand(2, 3, 128, 128)
    whole = behind(scene)
    assert whole.mean.shape == (2, 1, 3, 128, 128)
    alone = behind(scene[1:, :, 32:64, 96:])
    torch.testing.assert_close(whole.mean[1:, :, :, 32:64, 96:], alone.mean, atol=1e-5, rtol=1e-4)
    corner = scene.clone()
    corner[:, :, :32, :32] = 0
    others = behind(corner).mean[..., 32:] - whole.mean[..., 32:]
    assert others.abs().max() < 1e-5
    plain = torch.stack([torch.zeros(3, 32, 32), torch.ones(3, 32, 32), torch.rand(3, 32, 32)])
    kl = behind(plain).kl_component
    assert kl.max() > 1.01 * kl.min(), "some patches have more to tell than others"
    behind.train()
    assert behind.generate(2).mean.shape == (2, 1, 3, 128, 128)


def test_an_object_is_as_large_on_the_canvas_as_on_a_patch() -> None:
    net = build(PATCHED).foreground
    scale, shift = torch.tensor([[[0.3, -0.7]]]), torch.tensor([[[0.2, -0.4]]])
    near = net.where(scale, shift, torch.tensor([1.0, 2.0]), (32, 32))[0, 0]
    far = net.where(scale, shift, torch.tensor([1.0 + 4, 2.0 + 8]))[0, 0]  # 32 and 64 pixels on
    size, centre = near[:2] * 32, (near[2:] + 1) * 16
    torch.testing.assert_close(size, torch.sigmoid(scale[0, 0]) * 32)
    torch.testing.assert_close(far[:2] * 128, size)
    torch.testing.assert_close((far[2:] + 1) * 64, centre + torch.tensor([32.0, 64.0]))


def test_patches_are_cut_out_anywhere_and_whole() -> None:
    torch.manual_seed(0)
    row, column = torch.meshgrid(torch.arange(40.0), torch.arange(50.0), indexing="ij")
    images = torch.stack([row, column]).expand(200, 2, 40, 50)
    cut = random_patches(images, 32)
    assert cut.shape == (200, 2, 32, 32)
    top, left = cut[:, 0, 0, 0], cut[:, 1, 0, 0]
    for axis, begin in enumerate((top, left)):
        along = begin[:, None] + torch.arange(32.0)
        expected = along.unsqueeze(2 - axis).expand(-1, 32, 32)
        torch.testing.assert_close(cut[:, axis], expected)
    assert (set(top.tolist()), set(left.tolist())) == (set(range(9)), set(range(19)))


def test_spair_p_learns_from_patches_and_sees_the_canvas() -> None:
    torch.manual_seed(0)
    task = SpaceTask(SpaceRecipe(model=PATCHED, sequential=True, scale_std=0.5), None)
    shown: list[tuple[int, ...]] = []
    task.model.register_forward_pre_hook(lambda _, inputs: shown.append(tuple(inputs[0].shape)))
    frames = (image() * 255).byte().permute(0, 2, 3, 1)
    batch = Batch(frames, *[torch.zeros(0)] * 4)
    loss, means = task.train()(batch, 0.0)
    loss.backward()
    assert all(p.grad is not None for p in task.parameters())
    with torch.no_grad():
        _, whole = task.eval()(batch, 0.0)
    assert shown == [(2, 3, 32, 32), (2, 3, 128, 128)]
    # Sixteen times the pixels have about as much more to explain.
    assert 4 < whole["kl_shift"] / means["kl_shift"] < 40


def test_cells_of_a_patch_lie_in_the_patch() -> None:
    model = build(PATCHED).eval()
    seen = model.latents(torch.rand(1, 3, 32, 32), 0.5)
    row, column = torch.meshgrid(torch.arange(4.0), torch.arange(4.0), indexing="ij")
    cells = torch.stack([column, row], -1).view(16, 2)
    expected = model.foreground.where(
        seen.cells.scale.mean, seen.cells.shift.mean, cells, canvas=(32, 32)
    )
    torch.testing.assert_close(seen.z_where, expected)
    assert seen.z_where[..., 2:].abs().max() < 1.5  # a cell's centre, and a cell beside it


def test_patches_that_cannot_be_are_refused() -> None:
    with pytest.raises(ValueError, match="SPAIR alone"):
        Space(PATCHED)
    with pytest.raises(ValueError, match="expected no patches"):
        SpaceRecipe(model=PATCHED, sequential=True, self_configure=True)
    with pytest.raises(ValueError, match="of whole cells, with background single"):
        Spair(replace(PATCHED, background="components"))
    with pytest.raises(ValueError, match="expected patches of 32"):
        Spair(replace(PATCHED, patch=64))
