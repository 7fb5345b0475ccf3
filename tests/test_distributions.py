"""Densities and divergences against torch's own and against numbers worked out by hand."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torch.distributions import Bernoulli, Normal, kl_divergence

from objrl.nn.distributions import (
    Gaussian,
    bernoulli_kl,
    gaussian_kl,
    gaussian_log_prob,
    relaxed_bernoulli,
    take,
)


def test_gaussian_log_prob() -> None:
    torch.manual_seed(0)
    value, mean, std = torch.randn(3, 4), torch.randn(3, 4), torch.rand(3, 4) + 0.1
    expected: Tensor = Normal(mean, std).log_prob(value)  # type: ignore[no-untyped-call]
    torch.testing.assert_close(gaussian_log_prob(value, mean, std), expected)
    by_hand = -0.5 * (0.3 / 0.2) ** 2 - math.log(0.2 * math.sqrt(2 * math.pi))
    found = gaussian_log_prob(torch.tensor(0.5), torch.tensor(0.2), 0.2)
    assert float(found) == pytest.approx(by_hand, abs=1e-6)


def test_gaussian_kl() -> None:
    torch.manual_seed(0)
    q = Gaussian(torch.randn(3, 4), torch.rand(3, 4) + 0.1)
    mean, std = torch.randn(3, 4), torch.rand(3, 4) + 0.1
    expected = kl_divergence(Normal(q.mean, q.std), Normal(mean, std))
    torch.testing.assert_close(gaussian_kl(q, mean, std), expected)
    torch.testing.assert_close(
        gaussian_kl(q, 0.5, 0.1), kl_divergence(Normal(q.mean, q.std), Normal(0.5, 0.1))
    )
    # KL(N(1, 2²) || N(0, 1)) = (4 + 1 - 1 - log 4) / 2.
    one = Gaussian(torch.tensor(1.0), torch.tensor(2.0))
    assert float(gaussian_kl(one, 0.0, 1.0)) == pytest.approx(2 - math.log(2))
    assert float(gaussian_kl(one, 1.0, 2.0)) == pytest.approx(0, abs=1e-6)


def test_bernoulli_kl() -> None:
    logit = torch.linspace(-8, 8, 17)
    for prior in (0.01, 0.1, 0.5):
        expected = kl_divergence(Bernoulli(logits=logit), Bernoulli(torch.tensor(prior)))
        torch.testing.assert_close(bernoulli_kl(logit, prior), expected, rtol=1e-4, atol=1e-5)
    # p = 1/2 against 1/4: (log 2 + log 2/3) / 2.
    by_hand = 0.5 * math.log(2) + 0.5 * math.log(2 / 3)
    assert float(bernoulli_kl(torch.tensor(0.0), 0.25)) == pytest.approx(by_hand, abs=1e-6)


@pytest.mark.parametrize("logit", [-500.0, -8.8, 0.0, 8.8, 500.0])
def test_bernoulli_kl_is_finite_for_the_papers_prior(logit: float) -> None:
    at = torch.tensor(logit, requires_grad=True)
    kl = bernoulli_kl(at, 1e-10)
    kl.backward()  # type: ignore[no-untyped-call]
    assert at.grad is not None
    assert at.grad.isfinite()
    p = 1 / (1 + math.exp(-logit))
    expected = p * math.log(p / 1e-10) if p else 0.0
    expected += (1 - p) * math.log((1 - p) / (1 - 1e-10)) if p < 1 else 0.0
    assert float(kl.detach()) == pytest.approx(expected, rel=1e-4, abs=1e-6)


def test_relaxed_bernoulli_is_a_bernoulli_when_it_is_cold() -> None:
    torch.manual_seed(0)
    for logit in (-2.0, 0.0, 1.5):
        drawn = relaxed_bernoulli(torch.full((20_000,), logit), 0.01)
        assert ((drawn < 0.01) | (drawn > 0.99)).float().mean() > 0.95
        # Whatever the temperature, P(z > 1/2) is the Bernoulli's probability.
        assert (drawn > 0.5).float().mean() == pytest.approx(1 / (1 + math.exp(-logit)), abs=0.015)


def test_relaxed_bernoulli_hands_gradients_on() -> None:
    torch.manual_seed(0)
    logit = torch.zeros(100, requires_grad=True)
    drawn = relaxed_bernoulli(logit, 2.5)
    drawn.sum().backward()  # type: ignore[no-untyped-call]
    assert ((drawn >= 0) & (drawn <= 1)).all()
    assert logit.grad is not None
    assert (logit.grad > 0).all()


def test_gaussian_from_raw() -> None:
    raw = torch.tensor([[1.0, -2.0, 0.0, -200.0]])
    gaussian = Gaussian.from_raw(raw)
    assert gaussian.mean.tolist() == [[1.0, -2.0]]
    torch.testing.assert_close(gaussian.std, torch.tensor([[math.log(2) + 1e-4, 1e-4]]))
    assert gaussian_kl(gaussian, 0.0, 1.0).isfinite().all()
    assert torch.equal(gaussian.mode(), gaussian.mean)


def test_samples_follow_their_gaussian() -> None:
    torch.manual_seed(0)
    mean = torch.full((50_000,), 3.0, requires_grad=True)
    drawn = Gaussian(mean, torch.full_like(mean, 0.5)).sample()
    assert float(drawn.mean().detach()) == pytest.approx(3, abs=0.02)
    assert float(drawn.std().detach()) == pytest.approx(0.5, abs=0.02)
    drawn.sum().backward()  # type: ignore[no-untyped-call]
    assert mean.grad is not None
    assert (mean.grad == 1).all()


def test_latents_are_full_precision_whatever_the_network_computes_in() -> None:
    raw = torch.randn(2, 4).bfloat16()
    gaussian = Gaussian.from_raw(raw)
    assert (gaussian.mean.dtype, gaussian.std.dtype) == (torch.float32, torch.float32)
    assert relaxed_bernoulli(raw, 0.5).dtype == torch.float32
    assert bernoulli_kl(raw, 1e-10).dtype == torch.float32
    assert Gaussian.from_raw(raw.double()).mean.dtype == torch.float64


def test_take_picks_rows() -> None:
    field = torch.arange(2 * 4 * 3).view(2, 4, 3).float()
    index = torch.tensor([[2, 0], [3, 3]])
    picked = take(field, index)
    assert torch.equal(picked[0], field[0, [2, 0]])
    assert torch.equal(picked[1], field[1, [3, 3]])
