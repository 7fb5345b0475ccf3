"""SPAIR: cells depend on those before them, and on no others; the rest is SPACE's."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from objrl.models.space import SpaceConfig
from objrl.models.space_loss import Priors, elbo_terms
from objrl.models.spair import Spair
from objrl.perceiver import FramePerceiver

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
