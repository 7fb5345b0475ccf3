"""SPACE's objective against numbers worked out by hand: two pixels, one cell."""

from __future__ import annotations

import math
from dataclasses import replace
from types import SimpleNamespace
from typing import Literal, cast

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from objrl.models.space import Cells, SpaceOutput
from objrl.models.space_background import BackgroundOutput
from objrl.models.space_loss import (
    Evidence,
    Priors,
    alpha_evidence,
    boundary_loss,
    elbo_terms,
    evidence_terms,
    foreground_kl,
    log_likelihood,
)
from objrl.nn.distributions import Gaussian
from objrl.nn.spatial import Layers

EPS = 1e-5
PRIORS = Priors(presence=0.25, scale_mean=(-2.0, -1.0), scale_std=0.5, sigma_fg=0.2, sigma_bg=0.1)

# Two pixels of three channels; alpha, foreground, two backgrounds and their masks.
IMAGE = [[0.1, 0.9], [0.2, 0.8], [0.3, 0.7]]
FOREGROUND = [[0.0, 0.8], [0.3, 0.9], [0.5, 0.6]]
ALPHA = [0.2, 0.9]
BACKGROUNDS = [[[0.1, 0.5], [0.1, 0.5], [0.2, 0.6]], [[0.4, 0.1], [0.3, 0.2], [0.2, 0.3]]]
MASKS = [[0.7, 0.4], [0.3, 0.6]]

Q = {  # mean and standard deviation
    "depth": [(0.5, 0.8)],
    "scale": [(-1.5, 0.3), (-1.0, 0.5)],
    "shift": [(0.2, 0.9), (-0.4, 1.1)],
    "what": [(1.0, 0.5), (0.0, 1.0), (-0.5, 2.0)],
}
LOGIT, Z_PRES = 0.4, 0.7


def gaussian(name: str) -> Gaussian:
    mean, std = torch.tensor(Q[name]).T.view(2, 1, 1, -1)
    return Gaussian(mean, std)


def output(components: int = 2) -> SpaceOutput:
    background = BackgroundOutput(
        mean=torch.tensor(BACKGROUNDS[:components]).view(1, components, 3, 1, 2),
        mask=torch.tensor(MASKS[:components]).view(1, components, 1, 1, 2),
        kl_mask=torch.tensor([1.5]),
        kl_component=torch.tensor([2.5]),
    )
    return SpaceOutput(
        cells=Cells(
            torch.tensor([[[LOGIT]]]), gaussian("depth"), gaussian("scale"), gaussian("shift")
        ),
        z_pres=torch.tensor([[[Z_PRES]]]),
        index=torch.tensor([[0]]),
        z_where=torch.zeros(1, 1, 4),
        z_depth=torch.zeros(1, 1, 1),
        what=gaussian("what"),
        z_what=torch.zeros(1, 1, 3),
        appearance=torch.zeros(1, 1, 3, 32, 32),
        mask=torch.zeros(1, 1, 1, 32, 32),
        foreground=Layers(
            torch.tensor(FOREGROUND).view(1, 3, 1, 2), torch.tensor(ALPHA).view(1, 1, 1, 2)
        ),
        background=background,
    )


def image() -> Tensor:
    return torch.tensor(IMAGE).view(1, 3, 1, 2)


def density(value: float, mean: float, std: float) -> float:
    return math.exp(-0.5 * ((value - mean) / std) ** 2) / (std * math.sqrt(2 * math.pi))


def by_hand(mixture: str, alphas: list[float], components: int = 2) -> float:
    """Eq. 1 in plain numbers: a mixture of pixels, or of every channel by itself."""
    total = 0.0
    for x in range(2):
        groups = [[0, 1, 2]] if mixture == "pixel" else [[0], [1], [2]]
        for channels in groups:
            fg = math.prod(density(IMAGE[c][x], FOREGROUND[c][x], 0.2) for c in channels)
            bg = sum(
                (MASKS[k][x] + EPS if components > 1 else 1)
                * math.prod(density(IMAGE[c][x], BACKGROUNDS[k][c][x], 0.1) for c in channels)
                for k in range(components)
            )
            total += math.log((alphas[x] + EPS) * fg + (1 - alphas[x] + EPS) * bg)
    return total


@pytest.mark.parametrize("mixture", ["pixel", "channel"])
@pytest.mark.parametrize("components", [1, 2])
def test_the_likelihood_is_equation_1(
    mixture: Literal["pixel", "channel"], components: int
) -> None:
    priors = replace(PRIORS, mixture=mixture)
    found = log_likelihood(output(components), image(), priors)
    assert found.shape == (1,)
    assert float(found) == pytest.approx(by_hand(mixture, ALPHA, components), rel=1e-5)


def test_pixels_and_channels_mix_differently() -> None:
    assert abs(by_hand("pixel", ALPHA) - by_hand("channel", ALPHA)) > 0.1


def test_alpha_may_be_held_fixed_in_the_likelihood() -> None:
    priors = replace(PRIORS, fixed_alpha=0.1)
    found = log_likelihood(output(), image(), priors)
    assert float(found) == pytest.approx(by_hand("pixel", [0.1, 0.1]), rel=1e-5)


@pytest.mark.parametrize("alpha", [0.0, 1.0])
def test_the_likelihood_is_finite_where_alpha_is_certain(alpha: float) -> None:
    out = output()
    sure = torch.full_like(out.foreground.alpha, alpha, requires_grad=True)
    out = replace(out, foreground=Layers(out.foreground.mean, sure))
    found = log_likelihood(out, image(), PRIORS)
    (gradient,) = torch.autograd.grad(found.sum(), sure)
    assert found.isfinite().all()
    assert gradient.isfinite().all()


def kl(mean: float, std: float, prior_mean: float = 0.0, prior_std: float = 1.0) -> float:
    ratio = (std / prior_std) ** 2
    return 0.5 * (ratio + ((mean - prior_mean) / prior_std) ** 2 - 1 - math.log(ratio))


@pytest.mark.parametrize(("gate", "factor"), [(True, Z_PRES), (False, 1.0)])
def test_the_kl_is_appendix_b(gate: bool, factor: float) -> None:
    terms = foreground_kl(output(), replace(PRIORS, gate=gate))
    p = 1 / (1 + math.exp(-LOGIT))
    expected = {
        "kl_pres": p * math.log(p / 0.25) + (1 - p) * math.log((1 - p) / 0.75),
        "kl_scale": factor * (kl(-1.5, 0.3, -2.0, 0.5) + kl(-1.0, 0.5, -1.0, 0.5)),
        "kl_shift": factor * sum(kl(*q) for q in Q["shift"]),
        "kl_depth": factor * sum(kl(*q) for q in Q["depth"]),
        "kl_what": factor * sum(kl(*q) for q in Q["what"]),
    }
    assert set(terms) == set(expected)
    for name, value in expected.items():
        assert float(terms[name]) == pytest.approx(value, rel=1e-5), name


def test_only_glimpsed_cells_have_a_what_to_pay_for() -> None:
    out = output()
    two = Cells(
        torch.zeros(1, 2, 1),
        *(Gaussian(torch.zeros(1, 2, d), torch.ones(1, 2, d)) for d in (1, 2, 2)),
    )
    out = replace(out, cells=two, z_pres=torch.tensor([[[0.2], [0.9]]]), index=torch.tensor([[1]]))
    terms = foreground_kl(out, PRIORS)
    assert float(terms["kl_what"]) == pytest.approx(0.9 * sum(kl(*q) for q in Q["what"]), rel=1e-5)
    assert float(terms["kl_depth"]) == pytest.approx(0, abs=1e-6)


def test_the_papers_presence_prior_costs_a_finite_number_of_nats() -> None:
    terms = foreground_kl(output(), replace(PRIORS, presence=1e-10))
    p = 1 / (1 + math.exp(-LOGIT))
    expected = p * math.log(p / 1e-10) + (1 - p) * math.log(1 - p)
    assert float(terms["kl_pres"]) == pytest.approx(expected, rel=1e-5)


def test_the_negative_elbo_is_the_sum_of_its_terms() -> None:
    terms = elbo_terms(output(), image(), PRIORS)
    assert set(terms) == {
        *("nll", "kl_pres", "kl_scale", "kl_shift", "kl_depth", "kl_what"),
        *("kl_bg_mask", "kl_bg_component"),
    }
    assert all(term.shape == (1,) for term in terms.values())
    assert float(terms["nll"]) == pytest.approx(-by_hand("pixel", ALPHA), rel=1e-5)
    assert (float(terms["kl_bg_mask"]), float(terms["kl_bg_component"])) == (1.5, 2.5)


def framed(alpha: Tensor, z_pres: float = 1.0, glimpse: int = 32) -> SpaceOutput:
    """One object whose glimpse covers a canvas of 32 x 32."""
    return replace(
        output(),
        z_pres=torch.tensor([[[z_pres]]]),
        z_where=torch.tensor([[[1.0, 1.0, 0.0, 0.0]]]),
        mask=torch.zeros(1, 1, 1, glimpse, glimpse),
        foreground=Layers(torch.zeros(1, 3, 32, 32), alpha),
    )


def test_the_boundary_loss_is_the_share_of_alpha_on_the_border() -> None:
    everywhere = torch.ones(1, 1, 32, 32)
    inside = torch.zeros(1, 1, 32, 32)
    inside[..., 6:26, 6:26] = 1
    border = 1 - (20 / 32) ** 2
    loss = boundary_loss(framed(everywhere), (32, 32))
    assert loss.shape == (1,)
    assert float(loss) == pytest.approx(border, rel=1e-5)
    assert float(boundary_loss(framed(inside), (32, 32))) == pytest.approx(0, abs=1e-6)
    half = boundary_loss(framed(0.5 * everywhere, z_pres=0.4), (32, 32))
    assert float(half) == pytest.approx(0.2 * border, rel=1e-5)
    # A glimpse of 16 has a border of the same share, 3; bilinear drawing fades out a quarter of
    # a pixel at the very edge of the canvas.
    coarse = boundary_loss(framed(everywhere, glimpse=16), (32, 32))
    assert float(coarse) == pytest.approx((31.5**2 - 20**2) / 32**2, rel=1e-5)


def test_the_boundary_loss_tells_alpha_and_boxes_to_give_way() -> None:
    alpha = torch.full((1, 1, 32, 32), 0.5, requires_grad=True)
    out = framed(alpha)
    where = torch.tensor([[[0.5, 0.5, 0.1, 0.0]]], requires_grad=True)
    pres = torch.ones(1, 1, 1, requires_grad=True)
    loss = boundary_loss(replace(out, z_where=where, z_pres=pres), (32, 32)).sum()
    gradients = torch.autograd.grad(loss, (alpha, where, pres))
    assert all(g.isfinite().all() and (g != 0).any() for g in gradients)
    assert (gradients[0] >= 0).all()


def test_the_pull_on_alpha_is_a_cross_entropy() -> None:
    """Written out in the code, for CUDA's autocast refuses the library's."""
    layers = Layers(torch.rand(2, 3, 4, 4), torch.rand(2, 1, 4, 4))
    none = torch.zeros(2, 1, 1)
    found = (torch.rand(2, 1, 4, 4) > 0.5).float()
    evidence = Evidence(none, none, torch.zeros(2, 1, 4), found)
    expected = F.binary_cross_entropy(layers.alpha, found, reduction="none").flatten(1).sum(1)
    torch.testing.assert_close(
        alpha_evidence(layers.alpha, evidence.alpha), expected, rtol=1e-3, atol=1e-3
    )


def test_the_pull_of_a_blob_by_hand() -> None:
    """One cell of two holds a blob; its box is twice as wide as asked, and half a unit off."""
    logit = torch.tensor([[[0.0], [0.0]]])
    where = torch.tensor([[[0.2, 0.1, 0.03, 0.0], [0.5, 0.5, 0.5, 0.5]]])
    some = Gaussian(torch.zeros(1, 2, 1), torch.ones(1, 2, 1))
    output = SimpleNamespace(cells=Cells(logit, some, some, some), z_where=where)
    on = torch.tensor([[[1.0], [0.0]]])
    goal = torch.tensor([[[0.1, 0.1, 0.0, 0.0], [0.0, 0.0, 0.0, 0.0]]])
    evidence = Evidence(on, torch.tensor([[[1.0], [5.0]]]), goal, torch.zeros(1, 1, 1, 1))
    terms = evidence_terms(cast(SpaceOutput, output), evidence)
    assert terms["evidence_pres"].item() == pytest.approx(6 * math.log(2))
    wide, off = math.log(2) - 0.1, 0.25 - 0.1  # smooth L1 beyond its beta of 0.2
    assert terms["evidence_where"].item() == pytest.approx(wide + off, rel=1e-4)
