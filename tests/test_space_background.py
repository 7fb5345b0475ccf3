"""The backgrounds: Algorithms 3 and 4 of the paper, and a known picture with a residual."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from objrl.models.space_background import Components, MaskDecoder, Static, stick_breaking

SIZE = (128, 128)


@pytest.fixture(scope="module")
def components() -> Components:
    torch.manual_seed(0)
    return Components(3, SIZE).eval()


def test_stick_breaking_is_genesis() -> None:
    torch.manual_seed(0)
    logit = torch.randn(2, 4, 1, 3, 5)
    mask = stick_breaking(logit)
    left, expected = torch.ones(2, 1, 3, 5), []
    for k in range(3):
        share = torch.sigmoid(logit[:, k])
        expected.append(left * share)
        left = left * (1 - share)
    torch.testing.assert_close(mask, torch.stack([*expected, left], dim=1))
    torch.testing.assert_close(mask.sum(1), torch.ones(2, 1, 3, 5))


@pytest.mark.parametrize("value", [-200.0, 0.0, 200.0])
@pytest.mark.parametrize("count", [1, 2, 5])
def test_stick_breaking_is_finite_at_the_extremes(value: float, count: int) -> None:
    logit = torch.full((1, count, 1, 1, 1), value, requires_grad=True)
    mask = stick_breaking(logit)
    assert mask.sum().item() == pytest.approx(1)
    (gradient,) = torch.autograd.grad(mask[:, 0].sum(), logit)
    assert gradient.isfinite().all()


def test_components_explain_an_image(components: Components) -> None:
    out = components(torch.rand(2, 3, *SIZE))
    assert out.mean.shape == (2, 3, 3, *SIZE)
    assert out.mask.shape == (2, 3, 1, *SIZE)
    torch.testing.assert_close(out.mask.sum(1), torch.ones(2, 1, *SIZE))
    assert ((out.mean >= 0) & (out.mean <= 1)).all()
    assert ((out.image >= 0) & (out.image <= 1 + 1e-6)).all()
    assert (out.kl_mask > 0).all()
    assert (out.kl_component > 0).all()
    torch.testing.assert_close(
        out.image, sum((out.mask[:, k] * out.mean[:, k] for k in range(3)), torch.tensor(0.0))
    )


def test_components_sample_in_training_only(components: Components) -> None:
    image = torch.rand(1, 3, *SIZE)
    assert torch.equal(components(image).image, components(image).image)
    components.train()
    different = not torch.equal(components(image).image, components(image).image)
    components.eval()
    assert different


def test_a_frame_is_explained_by_itself_whatever_is_beside_it(components: Components) -> None:
    images = torch.rand(3, 3, *SIZE)
    together, alone = components(images), components(images[:1])
    torch.testing.assert_close(together.image[:1], alone.image, rtol=0, atol=1e-5)
    torch.testing.assert_close(together.kl_mask[:1], alone.kl_mask, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(together.kl_component[:1], alone.kl_component, rtol=1e-4, atol=1e-4)


def _constant(layer: nn.Linear, mean: float, raw_std: float) -> None:
    nn.init.zeros_(layer.weight)
    half = layer.out_features // 2
    with torch.no_grad():
        layer.bias[:half] = mean
        layer.bias[half:] = raw_std


def _kl(mean: float, std: float, prior_mean: float, prior_std: float) -> float:
    ratio = (std / prior_std) ** 2
    return 0.5 * (ratio + ((mean - prior_mean) / prior_std) ** 2 - 1 - math.log(ratio))


def test_the_kl_is_the_sum_over_components_and_latents() -> None:
    torch.manual_seed(0)
    model = Components(2, SIZE)
    _constant(model.predict_mask, 0.5, 0.0)
    _constant(model.predict_mask_prior, -0.5, 1.0)
    _constant(model.component_encoder.head, 1.0, -1.0)
    last = model.predict_component[-1]
    assert isinstance(last, nn.Linear)
    _constant(last, 0.0, 0.0)
    with torch.no_grad():
        out = model(torch.rand(1, 3, *SIZE))
    soft = [math.log1p(math.exp(raw)) + 1e-4 for raw in (-1.0, 0.0, 1.0)]
    assert float(out.kl_mask) == pytest.approx(2 * 32 * _kl(0.5, soft[1], -0.5, soft[2]), rel=1e-4)
    assert float(out.kl_component) == pytest.approx(
        2 * 32 * _kl(1.0, soft[0], 0, soft[1]), rel=1e-4
    )


def test_the_prior_of_a_mask_knows_the_masks_before_it() -> None:
    """Eq. 4: p(z_m_k | z_m_<k), given what was sampled; the first has the dummy alone."""
    torch.manual_seed(0)
    model = Components(2, SIZE)
    seen: list[Tensor] = []
    model.prior_rnn.register_forward_hook(lambda _, inputs, __: seen.append(inputs[0].detach()))
    model.train()
    for _ in range(2):
        model(torch.rand(1, 3, *SIZE))
    (first, second), (again, other) = seen[:2], seen[2:]
    assert torch.equal(first, again)
    assert not torch.equal(second, other)


def test_components_are_drawn_from_the_prior(components: Components) -> None:
    torch.manual_seed(0)
    with torch.no_grad():
        out = components.generate(4)
    assert out.image.shape == (4, 3, *SIZE)
    assert ((out.image >= 0) & (out.image <= 1 + 1e-6)).all()
    torch.testing.assert_close(out.mask.sum(1), torch.ones(4, 1, *SIZE))
    assert not torch.equal(out.image[0], out.image[1])


def test_the_mask_decoder_says_what_it_can_draw() -> None:
    with pytest.raises(ValueError, match=r"draws 128 x 128, got \(210, 160\)"):
        MaskDecoder(32, (210, 160))


def test_a_known_picture_is_the_background_until_training_finds_otherwise() -> None:
    torch.manual_seed(0)
    model = Static((50, 40))
    model.picture.copy_(torch.rand(3, 50, 40))
    out = model(torch.rand(2, 3, 50, 40))
    assert out.mask.shape == (2, 1, 1, 50, 40)
    assert (out.mask == 1).all()
    assert (out.kl_mask == 0).all()
    assert (out.kl_component >= 0).all()
    torch.testing.assert_close(out.image, model.picture.expand(2, -1, -1, -1))
    torch.testing.assert_close(model.generate(3).image, model.picture.expand(3, -1, -1, -1))


def _teach(model: Static) -> None:
    nn.init.normal_(model.decoder[-1].weight)  # type: ignore[arg-type]


def test_the_residual_is_too_coarse_to_draw_an_object() -> None:
    torch.manual_seed(0)
    model = Static((64, 64), coarse=16).eval()
    _teach(model)
    residual = model(torch.rand(1, 3, 64, 64)).image - model.picture
    spread = residual.std()
    # Between two pixels it changes by no more than a sixteenth of what two knots differ by.
    for step in (residual.diff(dim=2), residual.diff(dim=3)):
        assert step.abs().max() < (residual.max() - residual.min()) / 15
    assert spread > 0.1


def test_the_static_background_samples_in_training_only() -> None:
    torch.manual_seed(0)
    model = Static((32, 32))
    _teach(model)
    image = torch.rand(1, 3, 32, 32)
    assert not torch.equal(model(image).image, model(image).image)
    model.eval()
    assert torch.equal(model(image).image, model(image).image)
    assert not torch.equal(model.generate(1).image, model.generate(1).image)


def test_the_picture_is_saved_with_the_weights() -> None:
    model = Static((32, 32))
    assert model.state_dict()["picture"].shape == (3, 32, 32)
    assert all(name != "picture" for name, _ in model.named_parameters())
