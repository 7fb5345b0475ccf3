"""MONet, and what scene mixtures hand to an agent."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from objrl.models.mixture import Scene, slots_of
from objrl.models.monet import Monet, MonetConfig, MonetOutput, monet_terms
from objrl.nn.distributions import Gaussian
from objrl.perceiver import FramePerceiver

SMALL = MonetConfig(
    frame_size=(16, 20),
    slots=3,
    z_what=5,
    attention=(8, 8, 8),
    encoder=(8, 8),
    decoder=8,
    hidden=16,
)


def build(config: MonetConfig = SMALL) -> Monet:
    torch.manual_seed(0)
    return Monet(config)


def scene(*masks: Tensor) -> Scene:
    """Slots that have these (H, W) masks, and one before the last that has the rest."""
    given = torch.stack(masks)
    whole = torch.cat([given[:-1], 1 - given.sum(0, keepdim=True), given[-1:]])[None, :, None]
    code = torch.arange(1.0, whole.shape[1] + 1)[None, :, None].expand(-1, -1, 2)
    mean = torch.zeros(1, whole.shape[1], 3, *given.shape[1:])
    return Scene(mean, whole.clamp(min=1e-6).log(), Gaussian(code, torch.ones_like(code)))


# ---- slots -----------------------------------------------------------------------------------


def test_a_slot_is_where_its_mask_lies() -> None:
    box, dot = torch.zeros(32, 64), torch.zeros(32, 64)
    box[8:16, 16:48] = 0.9
    dot[30, 62] = 0.8
    slots = slots_of(scene(box, dot))
    # The second has the frame's edge, the last less than a 1,024th of the pixels.
    assert slots.mask.tolist() == [[True, False, False]]
    torch.testing.assert_close(slots.boxes(32, 64)[0, 0], torch.tensor([16.0, 8.0, 48.0, 16.0]))
    assert slots.presence[0, 0].item() == pytest.approx(0.9, rel=1e-3)
    assert slots.what[0].tolist() == [[1, 1], [0, 0], [0, 0]]
    assert slots.track_id.flatten().tolist() == [-1, -1, -1]
    for field in (slots.position, slots.scale, slots.presence):
        assert not field[0, 1:].any()


def test_a_perceiver_sees_and_segments() -> None:
    model = build().eval()
    perceiver = FramePerceiver(model)
    frames = torch.randint(0, 256, (2, 40, 30, 3), dtype=torch.uint8)
    state, first = perceiver.initial_state(2), torch.ones(2, dtype=torch.bool)
    slots, _ = perceiver.step(frames, state, first)
    assert slots.what.shape == (2, 3, 5)
    masks = perceiver.segment(frames)
    assert masks.shape == (2, 4, 40, 30)
    torch.testing.assert_close(masks.sum(1), torch.ones(2, 40, 30))
    parts = model.decompose(frames)
    torch.testing.assert_close(parts.foreground + parts.background, parts.reconstruction)
    encoded = perceiver.encode(frames[:1])
    torch.testing.assert_close(encoded.position, perceiver.encode(frames).position[:1])


# ---- MONet -----------------------------------------------------------------------------------


def test_each_slot_takes_of_what_is_left_and_the_last_has_the_rest() -> None:
    model = build()
    image = torch.rand(2, 3, 16, 20)
    log_mask = model.attend(image)
    scope, expected = torch.ones(2, 1, 16, 20), []
    for _ in range(2):
        share = torch.sigmoid(model.attention(torch.cat([image, scope.log()], 1)))
        expected.append(scope * share)
        scope = scope * (1 - share)
    torch.testing.assert_close(log_mask.exp(), torch.stack([*expected, scope], 1))
    torch.testing.assert_close(log_mask.exp().sum(1), torch.ones(2, 1, 16, 20))


def test_the_terms_by_hand() -> None:
    """One pixel, two slots: the first with the background's sigma."""

    def normal(value: float, mean: float, std: float) -> float:
        return math.exp(-0.5 * ((value - mean) / std) ** 2) / std / math.sqrt(2 * math.pi)

    log_mask = torch.tensor([0.3, 0.7]).log().view(1, 2, 1, 1, 1)
    log_painted = torch.tensor([0.6, 0.4]).log().view(1, 2, 1, 1, 1)
    mean = torch.tensor([0.5, 0.9]).view(1, 2, 1, 1, 1).expand(1, 2, 3, 1, 1)
    code = Gaussian(torch.tensor([[[1.0], [0.0]]]), torch.tensor([[[1.0], [0.5]]]))
    image = torch.full((1, 3, 1, 1), 0.8)
    terms = monet_terms(MonetOutput(Scene(mean, log_mask, code), log_painted), image, 0.2, 0.3)
    likelihood = 0.3 * normal(0.8, 0.5, 0.2) ** 3 + 0.7 * normal(0.8, 0.9, 0.3) ** 3
    assert terms["nll"].item() == pytest.approx(-math.log(likelihood), rel=1e-5)
    kl_what = 0.5 + 0.5 * (0.25 - 1 - math.log(0.25))
    assert terms["kl_what"].item() == pytest.approx(kl_what, rel=1e-5)
    kl_mask = 0.3 * math.log(0.3 / 0.6) + 0.7 * math.log(0.7 / 0.4)
    assert terms["kl_mask"].item() == pytest.approx(kl_mask, rel=1e-5)


def mse(model: Monet, image: Tensor) -> float:
    model.eval()
    with torch.no_grad():
        error = (model.explain(image).image - image).square().mean().item()
    model.train()
    return error


def test_it_learns_with_all_its_weights() -> None:
    model = build()
    image = torch.zeros(4, 3, 16, 20)
    for b in range(4):  # a red and a green block on black
        image[b, 0, 2 + b : 8 + b, 2:8] = 1
        image[b, 1, 6:12, 10 + b : 16 + b] = 1
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    losses = []
    before = mse(model, image)
    for step in range(50):
        out = model(image)
        terms = monet_terms(out, image, 0.3, 0.35)
        loss = (terms["nll"] + 0.5 * terms["kl_what"] + 0.5 * terms["kl_mask"]).mean()
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        if not step:
            for name, parameter in model.named_parameters():
                assert parameter.grad is not None, name
                assert parameter.grad.abs().sum() > 0, name
        optimizer.step()
        losses.append(loss.item())
    assert sum(losses[-5:]) / 5 < losses[0] - 100
    assert mse(model, image) < 0.8 * before
