"""What the scene-mixture models share: masks, likelihoods, divergences, U-Net, GECO."""

from __future__ import annotations

import math

import pytest
import torch

from objrl.nn.broadcast import BroadcastConv, broadcast
from objrl.nn.geco import Geco
from objrl.nn.mixture import blend_log_prob, mask_kl, mixture_log_prob, stick_breaking
from objrl.nn.unet import UNet

# ---- masks ---------------------------------------------------------------------------------


def test_each_takes_its_part_of_what_is_left() -> None:
    torch.manual_seed(0)
    logit = torch.randn(2, 4, 1, 3, 5)
    mask = stick_breaking(logit).exp()
    left, expected = torch.ones(2, 1, 3, 5), []
    for k in range(3):
        share = torch.sigmoid(logit[:, k])
        expected.append(left * share)
        left = left * (1 - share)
    torch.testing.assert_close(mask, torch.stack([*expected, left], dim=1))
    torch.testing.assert_close(mask.sum(1), torch.ones(2, 1, 3, 5))


@pytest.mark.parametrize("value", [-200.0, 0.0, 200.0])
@pytest.mark.parametrize("count", [1, 2, 5])
def test_masks_and_their_gradients_are_finite_at_the_extremes(value: float, count: int) -> None:
    logit = torch.full((1, count, 1, 1, 1), value, requires_grad=True)
    log_mask = stick_breaking(logit)
    assert log_mask.exp().sum().item() == pytest.approx(1)
    assert log_mask.isfinite().all()
    (gradient,) = torch.autograd.grad(log_mask.sum() + log_mask[:, 0].exp().sum(), logit)
    assert gradient.isfinite().all()


# ---- likelihoods and divergences, by hand --------------------------------------------------


def normal(value: float, mean: float, std: float) -> float:
    return math.exp(-0.5 * ((value - mean) / std) ** 2) / std / math.sqrt(2 * math.pi)


def test_a_pixel_of_a_mixture_is_one_components() -> None:
    image = torch.tensor([0.2, 0.7]).view(1, 2, 1, 1)  # a pixel of two channels
    mean = torch.tensor([[0.1, 0.6], [0.9, 0.3]]).view(1, 2, 2, 1, 1)
    log_mask = torch.tensor([0.25, 0.75]).log().view(1, 2, 1, 1, 1)
    std = torch.tensor([0.1, 0.3]).view(2, 1, 1, 1)
    first = normal(0.2, 0.1, 0.1) * normal(0.7, 0.6, 0.1)
    second = normal(0.2, 0.9, 0.3) * normal(0.7, 0.3, 0.3)
    found = mixture_log_prob(image, mean, log_mask, std).flatten(1).sum(1)
    assert found.tolist() == pytest.approx([math.log(0.25 * first + 0.75 * second)], rel=1e-5)
    blended = normal(0.2, 0.25 * 0.1 + 0.75 * 0.9, 0.2) * normal(0.7, 0.25 * 0.6 + 0.75 * 0.3, 0.2)
    found = blend_log_prob(image, mean, log_mask, 0.2).flatten(1).sum(1)
    assert found.tolist() == pytest.approx([math.log(blended)], rel=1e-5)


def test_likelihoods_are_of_single_pixels_and_do_not_mind_the_order_of_components() -> None:
    torch.manual_seed(1)
    image, mean = torch.rand(2, 3, 4, 5), torch.rand(2, 3, 3, 4, 5)
    log_mask = torch.randn(2, 3, 1, 4, 5).log_softmax(1)
    order = torch.tensor([2, 0, 1])
    for score in (mixture_log_prob, blend_log_prob):
        whole = score(image, mean, log_mask, 0.3)
        top, low = (
            score(image[:, :, rows], mean[..., rows, :], log_mask[..., rows, :], 0.3)
            for rows in (slice(0, 1), slice(1, 4))
        )
        torch.testing.assert_close(whole, torch.cat([top, low], 2))
        torch.testing.assert_close(whole, score(image, mean[:, order], log_mask[:, order], 0.3))
    # With one component alone in each pixel, both are the same.
    alone = torch.full_like(log_mask, -1e9)
    alone[:, 1] = 0
    torch.testing.assert_close(
        mixture_log_prob(image, mean, alone, 0.3), blend_log_prob(image, mean, alone, 0.3)
    )


def test_the_divergence_of_masks() -> None:
    q = torch.tensor([0.25, 0.75]).view(1, 2, 1, 1, 1).expand(1, 2, 1, 1, 3)
    p = torch.tensor([0.5, 0.5]).view(1, 2, 1, 1, 1).expand(1, 2, 1, 1, 3)
    expected = 3 * (0.25 * math.log(0.5) + 0.75 * math.log(1.5))
    assert mask_kl(q.log(), p.log()).item() == pytest.approx(expected, rel=1e-5)
    assert mask_kl(q.log(), q.log()).item() == 0
    nothing = torch.tensor([0.0, 1.0]).view(1, 2, 1, 1, 1).log()
    assert 0 < mask_kl(p.log()[..., :1], nothing).item() < 6  # and not infinite


# ---- networks ------------------------------------------------------------------------------


def test_a_code_is_at_every_pixel_beside_where_that_is() -> None:
    spread = broadcast(torch.tensor([[5.0, 6.0]]), (2, 3))
    assert spread[0, :2].tolist() == [[[5] * 3] * 2, [[6] * 3] * 2]
    assert spread[0, 2].tolist() == [[-1] * 3, [1] * 3]
    assert spread[0, 3].tolist() == [[-1, 0, 1]] * 2


@pytest.mark.parametrize("kernel", [1, 3, 5])
def test_a_convolution_of_a_broadcast_code_needs_no_broadcast(kernel: int) -> None:
    first, code = BroadcastConv(4, 6, kernel, (5, 7)), torch.randn(3, 4)
    more = kernel - 1
    expected = first.convolution(broadcast(code, (5 + more, 7 + more)))
    torch.testing.assert_close(first(code), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("size", [(32, 32), (35, 35), (28, 20)])
def test_a_u_net_keeps_any_size_and_every_weight_learns(size: tuple[int, int]) -> None:
    torch.manual_seed(0)
    net = UNet(4, 1, size, channels=(8, 8, 16))
    logits = net(torch.rand(2, 4, *size))
    assert logits.shape == (2, 1, *size)
    logits.square().sum().backward()
    for name, parameter in net.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().sum() > 0, name


def test_a_u_net_sees_far_and_near() -> None:
    torch.manual_seed(0)
    net = UNet(1, 1, (32, 32), channels=(8, 8, 16, 16)).eval()
    image = torch.rand(1, 1, 32, 32, requires_grad=True)
    (gradient,) = torch.autograd.grad(net(image)[0, 0, 0, 0], image)
    assert gradient[0, 0, -4:, -4:].abs().max() > 0  # by way of the bottom
    assert gradient[0, 0, :4, :4].abs().max() > gradient[0, 0, -4:, -4:].abs().max()


def test_what_is_too_small_to_be_halved_is_said() -> None:
    with pytest.raises(ValueError, match="at least 16 x 32 for 5 blocks, got 8 x 8"):
        UNet(3, 1, (8, 8))


# ---- GECO ----------------------------------------------------------------------------------


def test_the_weight_falls_above_the_goal_and_rises_below() -> None:
    geco = Geco(goal=10.0, step=0.01, keep=0.5)
    error = torch.tensor(30.0, requires_grad=True)
    loss = geco(error, torch.tensor(2.0))
    assert loss.item() == 32  # the weight is 1 to begin with
    loss.backward()
    assert error.grad == 1
    assert geco.weight.item() == pytest.approx(math.exp(0.01 * (10 - 30)))
    geco(torch.tensor(0.0), torch.tensor(2.0))
    assert geco.smooth.item() == 15
    assert geco.weight.item() == pytest.approx(math.exp(0.01 * (-20 - 5)), rel=1e-5)
    geco(torch.tensor(0.0), torch.tensor(2.0))
    # 7.5 is below, and the way up is ten times as fast.
    assert geco.weight.item() == pytest.approx(math.exp(0.01 * (-25 + 10 * 2.5)), rel=1e-5)
    before = geco.weight.clone()
    assert geco.eval()(torch.tensor(9.0), torch.tensor(1.0)) == 9 + before
    assert geco.weight == before


def test_the_weight_stays_within_its_bounds_and_is_saved() -> None:
    geco = Geco(goal=0.0, step=1.0, bounds=(1e-3, 1e3))
    for _ in range(5):
        geco(torch.tensor(100.0), torch.tensor(1.0))
    assert geco.weight.item() == pytest.approx(1e-3)
    other = Geco(goal=0.0, step=1.0)
    other.load_state_dict(geco.state_dict())
    assert other.weight == geco.weight
    assert other.smooth == geco.smooth
